"""A `.tflite` run in float32, operator by operator: the reference of what its weights compute.

In: the bytes of a file, and pixels of any size. Out: the input of its last operator, ArgMax: scores at full size. It
shares nothing with the importer and our networks: it reads the graph by the schema, dequantises, and pads as TensorFlow
does. Between the operators the file rounds to 8 bits; here that is a choice, which tells its share in a difference.
Where the file says a size that belongs to its own input (the window of the image pooling, the grids of the resizes),
the size for the given pixels takes its place.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tflite
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.records import UInt8

BUILTIN = tflite.BuiltinOperator
RELU, RELU6 = tflite.ActivationFunctionType.RELU, tflite.ActivationFunctionType.RELU6
DTYPES = {tflite.TensorType.UINT8: np.uint8, tflite.TensorType.INT8: np.int8, tflite.TensorType.INT32: np.int32}


class FloatGraph:
    """Graph of one file; call it with normalised pixels.

    With `rounded`, every result is rounded to the 8 bits of the file and cut off at their range.
    """

    def __init__(self, data: bytes, *, rounded: bool = False) -> None:
        self.rounded = rounded
        self.model = tflite.Model.GetRootAs(data, 0)
        self.graph = self.model.Subgraphs(0)
        self.side = int(self.graph.Tensors(self.graph.Inputs(0)).Shape(1))
        """Height and width that the file was written for, pixels."""

    def normalised(self, pixels_hwc: UInt8) -> Tensor:
        """Pixels as the file reads them: less the zero point of its input, times the scale; (1, 3, H, W) float32."""
        quantization = self.graph.Tensors(self.graph.Inputs(0)).Quantization()
        real = (pixels_hwc.astype(np.float32) - quantization.ZeroPoint(0)) * quantization.Scale(0)
        return torch.from_numpy(real.transpose(2, 0, 1))[None]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) normalised -> (1, K, H, W) scores, before ArgMax."""
        values = {self.graph.Inputs(0): pixels}
        for number in range(self.graph.OperatorsLength()):
            operator = self.graph.Operators(number)
            code = self.model.OperatorCodes(operator.OpcodeIndex())
            kind = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
            first = values[operator.Inputs(0)]
            if kind == BUILTIN.ARG_MAX:
                return first
            result = self._run(kind, operator, values, pixels.shape[2:])
            values[operator.Outputs(0)] = self._to_8_bits(result, operator.Outputs(0)) if self.rounded else result
        raise ValueError("the graph has no ArgMax")

    def _run(self, kind: int, operator: Any, values: dict[int, Tensor], size: Sequence[int]) -> Tensor:
        first = values[operator.Inputs(0)]
        if kind in (BUILTIN.CONV_2D, BUILTIN.DEPTHWISE_CONV_2D):
            return self._convolve(kind, operator, first)
        if kind == BUILTIN.ADD:
            return first + values[operator.Inputs(1)]
        if kind == BUILTIN.AVERAGE_POOL_2D:  # over the whole grid
            return first.mean((2, 3), keepdim=True)
        if kind == BUILTIN.CONCATENATION:
            return torch.cat([values[operator.Inputs(n)] for n in range(operator.InputsLength())], dim=1)
        if kind == BUILTIN.RESIZE_BILINEAR:
            options = _options(operator, tflite.ResizeBilinearOptions)
            side = int(self._constant(operator.Inputs(1))[0])
            cells = [
                math.ceil(length / ((self.side - 1) / (side - 1))) if side < self.side else length for length in size
            ]
            return functional.interpolate(first, cells, mode="bilinear", align_corners=bool(options.AlignCorners()))
        if kind == BUILTIN.QUANTIZE:
            return first
        raise ValueError(f"operator {kind}")

    def _convolve(self, kind: int, operator: Any, x: Tensor) -> Tensor:
        depthwise = kind == BUILTIN.DEPTHWISE_CONV_2D
        options = _options(operator, tflite.DepthwiseConv2DOptions if depthwise else tflite.Conv2DOptions)
        kernel = self._constant(operator.Inputs(1))  # (out, h, w, in), or (1, h, w, channels)
        weight = torch.from_numpy(kernel.transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2)).copy())
        stride, rate = options.StrideH(), options.DilationHFactor()
        if options.Padding() == tflite.Padding.SAME:
            rows, columns = (_padding(length, weight.size(2), stride, rate) for length in x.shape[2:])
            x = functional.pad(x, (*columns, *rows))
        bias = torch.from_numpy(self._constant(operator.Inputs(2)))
        x = functional.conv2d(x, weight, bias, stride, 0, rate, x.size(1) if depthwise else 1)
        activation = options.FusedActivationFunction()
        return x.clamp(0, 6) if activation == RELU6 else x.relu() if activation == RELU else x

    def _to_8_bits(self, result: Tensor, index: int) -> Tensor:
        quantization = self.graph.Tensors(index).Quantization()
        scale, zero = quantization.Scale(0), quantization.ZeroPoint(0)
        return ((result / scale).round().clamp(-zero, 255 - zero)) * scale

    def _constant(self, index: int) -> Any:
        """Numbers of a tensor, float32 where they have a scale."""
        tensor = self.graph.Tensors(index)
        shape = [tensor.Shape(axis) for axis in range(tensor.ShapeLength())]
        data = self.model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
        numbers = np.frombuffer(data, DTYPES[tensor.Type()]).reshape(shape)
        quantization = tensor.Quantization()
        if quantization is None or not quantization.ScaleLength():
            return numbers
        return ((numbers.astype(np.float64) - quantization.ZeroPoint(0)) * quantization.Scale(0)).astype(np.float32)


def _padding(length: int, kernel: int, stride: int, rate: int) -> tuple[int, int]:
    """Cells in front and behind; where they cannot be equal, one more is behind."""
    total = max((math.ceil(length / stride) - 1) * stride + (kernel - 1) * rate + 1 - length, 0)
    return total // 2, total - total // 2


def _options(operator: Any, kind: type) -> Any:
    options, table = kind(), operator.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    return options
