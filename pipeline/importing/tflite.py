"""Parser of the weights in a `.tflite`: kernels and biases of its convolutions, as float32.

In: untrusted bytes. Out: tensors named after the operators, in torch's axes. The package `tflite` knows the fields of
the FlatBuffer, but checks nothing: here every count is compared with the length of the file before it is looped over,
and whatever the package raises on damaged bytes becomes one error. Nothing is run, and operators without weights are
not read.

Numbers of 8 bits are multiplied by their scales. In such a file batch norm is folded into the convolutions: it has
their biases only. Schema: https://github.com/tensorflow/tensorflow, tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import optional
from pipeline.errors import ConfigError

IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of a file."""
BIAS = 2
"""Place of the bias among an operator's inputs: image, kernel, bias."""
DAMAGE = (struct.error, IndexError, TypeError, ValueError, AttributeError, OverflowError)
"""Exceptions of the package at damaged bytes."""

Kernel = npt.NDArray[np.float32]


def named_tensors(data: bytes) -> dict[str, Tensor]:
    """Kernels and biases of a file: `MobilenetV2.expanded_conv.project.weight` and `.bias`.

    A name is the scope of the kernel, as TensorFlow wrote it, with dots for slashes. Kernels are (out, in, h, w), those
    of a depthwise convolution (channels, 1, h, w), those of a fully connected layer (out, in).

    Raises:
        ConfigError: the file is damaged, has no convolution, or one of a kind that is not supported.
    """
    with optional.package("tflite", extra="tflite", needed_by="reading a .tflite"):
        import tflite as schema  # noqa: PLC0415
    tensors: dict[str, Tensor] = {}
    try:
        with np.errstate(all="ignore"):  # a conversion refuses what is not finite, by name
            for name, kernel, bias in _Graph(schema, data).weights():
                if f"{name}.weight" in tensors:
                    raise ConfigError(f"tflite: two convolutions are called {name!r}")
                tensors[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
                if bias is not None:
                    tensors[f"{name}.bias"] = torch.from_numpy(bias)
    except DAMAGE as error:
        raise ConfigError(f"tflite: the file is damaged: {error or type(error).__name__}") from error
    if not tensors:
        raise ConfigError("tflite: no convolution with weights")
    return tensors


class _Graph:
    """Operators and tensors of the first subgraph; the others are bodies of loops and conditions."""

    def __init__(self, schema: ModuleType, data: bytes) -> None:
        self.schema, self.length = schema, len(data)
        self.model = schema.Model.GetRootAs(data, 0)
        self.numbers_left = len(data)
        """Numbers that may still be decoded: each has a byte at least, or many operators name one large tensor."""
        if not self._count(self.model.SubgraphsLength(), "subgraphs"):
            raise ConfigError("tflite: the file has no graph")
        self.graph = self.model.Subgraphs(0)
        self.tensor_count = self._count(self.graph.TensorsLength(), "tensors")
        operators = [self.graph.Operators(n) for n in range(self._count(self.graph.OperatorsLength(), "operators"))]
        self.operators = [(self._kind(operator), operator) for operator in operators]
        self.stored = {
            int(operator.Outputs(0)): int(operator.Inputs(0))
            for kind, operator in self.operators
            if kind == schema.BuiltinOperator.DEQUANTIZE
        }
        """Tensors of 16 bits, by the tensor of 32 bits that an operator makes of them."""

    def weights(self) -> Iterator[tuple[str, Kernel, Kernel | None]]:
        """Yield name, kernel and bias of every operator that has them."""
        kinds = self.schema.BuiltinOperator
        axes = {kinds.CONV_2D: (0, 3, 1, 2), kinds.DEPTHWISE_CONV_2D: (3, 0, 1, 2), kinds.FULLY_CONNECTED: (0, 1)}
        for kind, operator in self.operators:
            if kind not in axes:
                continue
            inputs = self._count(operator.InputsLength(), "inputs")
            tensor, name = self._stored_tensor(operator.Inputs(1) if inputs > 1 else -1)
            kernel = self._decode(tensor, name)
            if kernel.ndim != len(axes[kind]):
                raise ConfigError(f"tflite: the kernel {name} has {kernel.ndim} axes, wanted are {len(axes[kind])}")
            bias = operator.Inputs(BIAS) if inputs > BIAS else -1
            yield _scope(name), kernel.transpose(axes[kind]), None if bias < 0 else self._bias(int(bias))

    def _bias(self, index: int) -> Kernel:
        return self._decode(*self._stored_tensor(index)).reshape(-1)

    def _count(self, count: int, what: str) -> int:
        if count > self.length // 4:  # each has an offset of four bytes
            raise ConfigError(f"tflite: {count} {what} in a file of {self.length} bytes")
        return count

    def _kind(self, operator: Any) -> int:
        index = operator.OpcodeIndex()
        if index >= self.model.OperatorCodesLength():
            raise ConfigError(f"tflite: an operator of kind {index}, the file has {self.model.OperatorCodesLength()}")
        code = self.model.OperatorCodes(index)
        # Files of before 2020 have the first field only; the second holds numbers above 127, too.
        return max(int(code.DeprecatedBuiltinCode()), int(code.BuiltinCode()))

    def _stored_tensor(self, index: int) -> tuple[Any, str]:
        """Tensor of an index that has data, or that is made of one by a change of precision; and its name."""
        index = self.stored.get(int(index), int(index))
        if not 0 <= index < self.tensor_count:
            raise ConfigError(f"tflite: a convolution takes tensor {index}, the file has {self.tensor_count}")
        tensor = self.graph.Tensors(index)
        return tensor, (tensor.Name() or b"").decode()

    def _decode(self, tensor: Any, name: str) -> Kernel:
        """Numbers of a tensor as float32, in its shape."""
        types = self.schema.TensorType
        known = {types.FLOAT32: "<f4", types.FLOAT16: "<f2", types.UINT8: "u1", types.INT8: "i1", types.INT32: "<i4"}
        dtype = known.get(tensor.Type())
        if dtype is None or tensor.Sparsity() is not None:
            kind = "sparse" if dtype else f"of type {tensor.Type()}"
            raise ConfigError(f"tflite: {name} is {kind}", hint="known are dense float32, float16, uint8, int8, int32")
        if not 0 <= tensor.Buffer() < self.model.BuffersLength():
            raise ConfigError(f"tflite: {name} is in buffer {tensor.Buffer()} of {self.model.BuffersLength()}")
        buffer = self.model.Buffers(tensor.Buffer())
        shape = [int(size) for size in tensor.ShapeAsNumpy()] if self._count(tensor.ShapeLength(), "axes") else []
        stored = np.frombuffer(buffer.DataAsNumpy(), dtype) if buffer.DataLength() else np.empty(0, dtype)
        if min(shape, default=1) < 0 or stored.size != np.prod(shape, dtype=object):
            sizes = "x".join(map(str, shape)) or "scalar"
            raise ConfigError(f"tflite: {name or 'a kernel'} has the shape {sizes}, {stored.size} numbers are stored")
        self.numbers_left -= stored.size
        if self.numbers_left < 0:
            raise ConfigError(f"tflite: the convolutions have more numbers than the file bytes, {self.length}")
        values = stored.reshape(shape)
        return values.astype(np.float32) if values.dtype.kind == "f" else self._scaled(values, tensor, name)

    def _scaled(self, values: npt.NDArray[Any], tensor: Any, name: str) -> Kernel:
        """Numbers less their zero point, times their scale; both are one for all, or one for each index of an axis."""
        quantization = tensor.Quantization()
        count = self._count(quantization.ScaleLength(), "scales") if quantization else 0
        if not count:
            raise ConfigError(f"tflite: {name} has whole numbers without a scale")
        scale = quantization.ScaleAsNumpy().astype(np.float64)
        zero = np.zeros(count) if not quantization.ZeroPointLength() else quantization.ZeroPointAsNumpy()
        shape = [1] * values.ndim
        if count > 1:
            axis = quantization.QuantizedDimension()
            if not 0 <= axis < values.ndim or values.shape[axis] != count or zero.size not in (1, count):
                raise ConfigError(f"tflite: {name} has {count} scales along axis {axis} of {values.shape}")
            shape[axis] = count
            zero = np.broadcast_to(zero, count)
        real: npt.NDArray[np.float64] = (values - zero.astype(np.float64).reshape(shape)) * scale.reshape(shape)
        return real.astype(np.float32)


def _scope(name: str) -> str:
    """Scope of a kernel: `MobilenetV2/Conv/Conv2D_Fold;MobilenetV2/Conv/weights_quant/...` is of `MobilenetV2.Conv`."""
    first = name.partition(";")[0]
    for variable in ("/weights_quant/FakeQuantWithMinMaxVars", "/weights/read", "/weights"):
        if first.endswith(variable):
            return first.removesuffix(variable).replace("/", ".")
    return (first.rpartition("/")[0] or first).replace("/", ".")
