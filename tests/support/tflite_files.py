"""Files of TensorFlow Lite, written by hand: operators one by one, and a narrow DeepLab on MobileNetV2 of 8 bits."""

from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite

WIDE = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Channels, blocks and stride of each stage of MobileNetV2, as the paper's table 2 has them."""
TYPES = {
    np.dtype(np.float32): tflite.TensorType.FLOAT32,
    np.dtype(np.float16): tflite.TensorType.FLOAT16,
    np.dtype(np.uint8): tflite.TensorType.UINT8,
    np.dtype(np.int8): tflite.TensorType.INT8,
    np.dtype(np.int16): tflite.TensorType.INT16,
    np.dtype(np.int32): tflite.TensorType.INT32,
}


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes = b""
    scales: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    axis: int = 0


@dataclass
class TfliteFile:
    """Graph of operators; `tensor` and `operator` add to it, `written` gives the bytes."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[tuple[int, list[int], list[int], str, dict[str, int]]] = field(default_factory=list)

    def image(self, channels: int, side: int = 33) -> int:
        return self.empty("input", (1, side, side, channels))

    def empty(self, name: str, shape: tuple[int, ...]) -> int:
        """Result of an operator, or the input: numbers of 8 bits that the file does not have."""
        self.tensors.append(Tensor(name, shape, tflite.TensorType.UINT8, b"", (1 / 128,), (128,)))
        return len(self.tensors) - 1

    def stored(self, name: str, values: np.ndarray, scales: tuple = (), zeros: tuple = (), axis: int = 0) -> int:
        kind = TYPES[values.dtype]
        self.tensors.append(Tensor(name, values.shape, kind, values.tobytes(), scales, zeros, axis))
        return len(self.tensors) - 1

    def operator(self, kind: int, inputs: list[int], options: str = "", **values: int) -> int:
        result = self.empty(f"result {len(self.operators)}", (1, 1, 1, 1))
        self.operators.append((kind, inputs, [result], options, values))
        return result

    def written(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        kinds = sorted({operator[0] for operator in self.operators})
        buffers = list(
            dict.fromkeys([b"", *(tensor.data for tensor in self.tensors)])
        )  # equal ones once, as TensorFlow
        buffers_at = _vector(builder, [_buffer(builder, data) for data in buffers])
        tensors = [_tensor(builder, tensor, buffers.index(tensor.data)) for tensor in self.tensors]
        operators = [_operator(builder, kinds.index(kind), *rest) for kind, *rest in self.operators]
        parts = {"Tensors": _vector(builder, tensors), "Operators": _vector(builder, operators)}
        parts |= {"Inputs": _numbers(builder, [0], np.int32), "Outputs": _numbers(builder, [0], np.int32)}
        graphs = _vector(builder, [_table(builder, "SubGraph", **parts)])
        codes = [_table(builder, "OperatorCode", DeprecatedBuiltinCode=min(k, 127), BuiltinCode=k) for k in kinds]
        codes_at = _vector(builder, codes)
        model = _table(builder, "Model", Version=3, OperatorCodes=codes_at, Subgraphs=graphs, Buffers=buffers_at)
        builder.Finish(model, b"TFL3")
        return bytes(builder.Output())


def _table(builder: flatbuffers.Builder, name: str, **fields: Any) -> int:
    getattr(tflite, f"{name}Start")(builder)
    for field_name, value in fields.items():
        getattr(tflite, f"{name}Add{field_name}")(builder, value)
    return getattr(tflite, f"{name}End")(builder)


def _vector(builder: flatbuffers.Builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _numbers(builder: flatbuffers.Builder, values: Any, dtype: Any) -> int:
    return builder.CreateNumpyVector(np.asarray(values, dtype))


def _buffer(builder: flatbuffers.Builder, data: bytes) -> int:
    return _table(
        builder, "Buffer", **({"Data": builder.CreateNumpyVector(np.frombuffer(data, np.uint8))} if data else {})
    )


def _tensor(builder: flatbuffers.Builder, tensor: Tensor, buffer: int) -> int:
    fields: dict[str, int] = {"Name": builder.CreateString(tensor.name), "Type": tensor.kind, "Buffer": buffer}
    fields["Shape"] = _numbers(builder, tensor.shape, np.int32)
    if tensor.scales:
        scales, zeros = _numbers(builder, tensor.scales, np.float32), _numbers(builder, tensor.zeros, np.int64)
        fields["Quantization"] = _table(
            builder, "QuantizationParameters", Scale=scales, ZeroPoint=zeros, QuantizedDimension=tensor.axis
        )
    return _table(builder, "Tensor", **fields)


def _operator(
    builder: flatbuffers.Builder, code: int, inputs: list[int], outputs: list[int], options: str, values: dict[str, int]
) -> int:
    fields = {"OpcodeIndex": code, "Inputs": _numbers(builder, inputs, np.int32)}
    fields["Outputs"] = _numbers(builder, outputs, np.int32)
    if options:
        fields["BuiltinOptions"] = _table(builder, options, **values)
        fields["BuiltinOptionsType"] = getattr(tflite.BuiltinOptions, options)
    return _table(builder, "Operator", **fields)


@dataclass
class _DeepLab:
    """The authors' graph of research/deeplab on MobileNetV2, with random weights of 8 bits."""

    file: TfliteFile
    random: np.random.RandomState

    def conv(
        self, scope: str, x: int, shape: tuple[int, ...], activation: int, *, stride: int = 1, rate: int = 1
    ) -> int:
        """Convolution with the folded batch norm's bias; `shape` is (out, h, w, in), or (1, h, w, channels)."""
        depthwise = shape[0] == 1 and shape[1] == 3
        fan = 9 if depthwise else int(np.prod(shape[1:]))
        real = self.random.normal(0, (2 / fan) ** 0.5, shape)
        scale, zero = float(real.max() - real.min()) / 255, int(-real.min() / (real.max() - real.min()) * 255)
        numbers = np.clip(np.round(real / scale) + zero, 0, 255).astype(np.uint8)
        kernel = self.file.stored(f"{scope}/Conv2D_Fold;{scope}/weights_quant", numbers, (scale,), (zero,))
        channels = shape[3] if depthwise else shape[0]
        bias = (self.random.normal(0, 0.2, channels) * 1e4).astype(np.int32)
        inputs = [x, kernel, self.file.stored(f"{scope}/BatchNorm_Fold/bias", bias, (1e-4,), (0,))]
        strides = {"StrideH": stride, "StrideW": stride, "DilationHFactor": rate, "DilationWFactor": rate}
        padding = {"Padding": tflite.Padding.SAME, "FusedActivationFunction": activation}
        if depthwise:
            kind, options = tflite.BuiltinOperator.DEPTHWISE_CONV_2D, "DepthwiseConv2DOptions"
            return self.file.operator(kind, inputs, options, DepthMultiplier=1, **strides, **padding)
        return self.file.operator(tflite.BuiltinOperator.CONV_2D, inputs, "Conv2DOptions", **strides, **padding)

    def block(self, number: int, x: int, entering: int, leaving: int, *, stride: int, rate: int) -> int:
        scope = f"MobilenetV2/expanded_conv{f'_{number}' if number else ''}"
        wide = entering * 6 if number else entering
        relu6, none = tflite.ActivationFunctionType.RELU6, tflite.ActivationFunctionType.NONE
        inner = self.conv(f"{scope}/expand", x, (wide, 1, 1, entering), relu6) if number else x
        inner = self.conv(f"{scope}/depthwise", inner, (1, 3, 3, wide), relu6, stride=stride, rate=rate)
        inner = self.conv(f"{scope}/project", inner, (leaving, 1, 1, wide), none)
        same = stride == 1 and entering == leaving
        return self.file.operator(tflite.BuiltinOperator.ADD, [inner, x]) if same else inner


def deeplab(width: float, *, head: int = 256, classes: int = 21, side: int = 65, seed: int = 0) -> bytes:
    """DeepLab v3 without atrous branches at output stride 16; channels are rounded to whole numbers."""
    net = _DeepLab(TfliteFile(), np.random.RandomState(seed))
    relu, relu6 = tflite.ActivationFunctionType.RELU, tflite.ActivationFunctionType.RELU6
    channels = round(32 * width)
    x = net.conv("MobilenetV2/Conv", net.file.image(3, side), (channels, 3, 3, 3), relu6, stride=2)
    number, reached, rate = 0, 2, 1
    for wide, blocks, stride in WIDE:
        for index in range(blocks):
            wanted = stride if index == 0 else 1
            step = wanted if reached * wanted <= 16 else 1
            x = net.block(number, x, channels, round(wide * width), stride=step, rate=rate)
            channels, number, reached, rate = round(wide * width), number + 1, reached * step, rate * wanted // step
    kinds = tflite.BuiltinOperator
    aspp = net.conv("aspp0", x, (head, 1, 1, channels), relu)
    image = net.conv("image_pooling", net.file.operator(kinds.AVERAGE_POOL_2D, [x]), (head, 1, 1, channels), relu)
    cells = net.file.stored("cells", np.full(2, (side - 1) // 16 + 1, np.int32))
    image = net.file.operator(kinds.RESIZE_BILINEAR, [image, cells], "ResizeBilinearOptions", AlignCorners=1)
    both = net.file.operator(kinds.CONCATENATION, [image, aspp], "ConcatenationOptions", Axis=3)
    x = net.conv("concat_projection", both, (head, 1, 1, 2 * head), relu)
    x = net.conv("logits/semantic", x, (classes, 1, 1, head), tflite.ActivationFunctionType.NONE)
    full = net.file.stored("full", np.full(2, side, np.int32))
    x = net.file.operator(kinds.RESIZE_BILINEAR, [x, full], "ResizeBilinearOptions", AlignCorners=1)
    net.file.operator(kinds.ARG_MAX, [x])
    return net.file.written()
