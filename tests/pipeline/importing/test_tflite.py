"""Files of TensorFlow Lite: what is read of them, and that damaged ones are refused."""

import numpy as np
import pytest
import tflite as schema
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.importing import reader, tflite
from tests.support import tflite_files
from tests.support.examples import examples
from tests.support.tflite_files import TfliteFile

CONV, DEPTHWISE = schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D
DENSE, DEQUANTIZE = schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.DEQUANTIZE
KERNEL = np.arange(2 * 3 * 1 * 4, dtype=np.uint8).reshape(2, 3, 1, 4)


def of_one(kernel: np.ndarray, kind: int = CONV, name: str = "scope/conv/weights", **quantization) -> bytes:
    """A file of one operator with a kernel."""
    file = TfliteFile()
    file.operator(kind, [file.image(4), file.stored(name, kernel, **quantization)])
    return file.written()


def refusal(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        reader.parse_weights(data, origin="net.tflite")
    return str(caught.value)


def test_whole_numbers_less_the_zero_point_are_multiplied_by_the_scale() -> None:
    (name, kernel), *others = tflite.named_tensors(of_one(KERNEL, scales=(0.5,), zeros=(3,))).items()
    assert (name, others) == ("scope.conv.weight", [])
    assert kernel.dtype == torch.float32
    assert kernel.shape == (2, 4, 3, 1)
    assert torch.equal(kernel, torch.tensor((KERNEL.astype(np.float32) - 3) / 2).permute(0, 3, 1, 2))


def test_scales_of_their_own_belong_to_their_axis() -> None:
    kernel = KERNEL.astype(np.int8)
    found = tflite.named_tensors(of_one(kernel, scales=(1.0, 10.0), zeros=(0, 1)))["scope.conv.weight"]
    wanted = np.stack([kernel[0] * 1.0, (kernel[1] - 1) * 10.0])
    assert torch.equal(found, torch.tensor(wanted, dtype=torch.float32).permute(0, 3, 1, 2))
    found = tflite.named_tensors(of_one(kernel, scales=(1.0, 2.0, 3.0, 4.0), zeros=(0,), axis=3))["scope.conv.weight"]
    assert torch.equal(found[:, 2, 0, 0], torch.tensor([2.0 * 3, 14.0 * 3]))


def test_depthwise_and_dense_kernels_have_torchs_axes() -> None:
    kernel = KERNEL.astype(np.float32)
    depthwise = tflite.named_tensors(of_one(kernel.reshape(1, 2, 3, 4), DEPTHWISE))["scope.conv.weight"]
    assert depthwise.shape == (4, 1, 2, 3)
    assert torch.equal(depthwise[1, 0], torch.tensor(kernel.reshape(2, 3, 4)[:, :, 1]))
    dense = tflite.named_tensors(of_one(kernel.reshape(4, 6), DENSE))["scope.conv.weight"]
    assert torch.equal(dense, torch.tensor(kernel.reshape(4, 6)))


def test_numbers_of_16_bits_are_found_behind_the_operator_that_widens_them() -> None:
    file = TfliteFile()
    image, half = file.image(4), file.stored("scope/conv/weights", KERNEL.astype(np.float16))
    file.operator(CONV, [image, file.operator(DEQUANTIZE, [half])])
    assert tflite.named_tensors(file.written())["scope.conv.weight"].sum() == KERNEL.sum()


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("MobilenetV2/Conv/Conv2D_Fold;MobilenetV2/Conv/weights_quant/FakeQuantWithMinMaxVars", "MobilenetV2.Conv"),
        ("MobilenetV2/Conv/weights_quant/FakeQuantWithMinMaxVars", "MobilenetV2.Conv"),
        ("MobilenetV2/expanded_conv/depthwise/depthwise_Fold", "MobilenetV2.expanded_conv.depthwise"),
        ("logits/semantic/Conv2D;logits/semantic/weights", "logits.semantic"),
        ("alone", "alone"),
    ],
)
def test_a_convolution_is_called_by_its_scope(name: str, scope: str) -> None:
    assert set(tflite.named_tensors(of_one(KERNEL, name=name, scales=(1.0,), zeros=(0,)))) == {f"{scope}.weight"}


def test_the_first_bytes_say_what_it_is_whatever_its_name() -> None:
    assert reader.parse_weights(of_one(KERNEL.astype(np.float32)), origin="renamed.bin").kind == "tflite"
    assert "damaged" in refusal(b"no FlatBuffer at all")


def two_of_one_name() -> bytes:
    file = TfliteFile()
    image = file.image(4)
    for _ in range(2):
        file.operator(CONV, [image, file.stored("scope/weights", KERNEL, (1.0,), (0,))])
    return file.written()


def without_a_kernel() -> bytes:
    file = TfliteFile()
    file.operator(CONV, [file.image(4)])
    return file.written()


def of_another_size() -> bytes:
    file = TfliteFile()
    kernel = file.stored("scope/weights", KERNEL, (1.0,), (0,))
    file.tensors[kernel].shape = (2, 3, 1, 10**6)
    file.operator(CONV, [file.image(4), kernel])
    return file.written()


def one_kernel_many_times() -> bytes:
    """A few bytes for each of many operators, that many numbers for each."""
    file = TfliteFile()
    image = file.image(4)
    for number in range(3):
        kernel = file.stored(f"scope{number}/weights", np.zeros((100, 1, 1, 100), np.uint8), (1.0,), (0,))
        file.operator(CONV, [image, kernel])
    return file.written()


WRONG = {
    "two convolutions are called 'scope'": two_of_one_name,
    "a convolution takes tensor -1, the file has 2": without_a_kernel,
    "has the shape 2x3x1x1000000, 24 numbers are stored": of_another_size,
    "has 2 axes, wanted are 4": lambda: of_one(KERNEL.reshape(6, 4), scales=(1.0,), zeros=(0,)),
    "whole numbers without a scale": lambda: of_one(KERNEL),
    "is of type 7": lambda: of_one(KERNEL.astype(np.int16), scales=(1.0,), zeros=(0,)),
    "has 3 scales along axis 0": lambda: of_one(KERNEL, scales=(1.0, 2.0, 3.0), zeros=(0, 0, 0)),
    "has 2 scales along axis 9": lambda: of_one(KERNEL, scales=(1.0, 2.0), zeros=(0, 0), axis=9),
    "more numbers than the file bytes": one_kernel_many_times,
    "no convolution with weights": lambda: of_one(KERNEL, schema.BuiltinOperator.ADD),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_cannot_be_read_is_refused_with_the_reason(says: str) -> None:
    assert says in refusal(WRONG[says]())


# ---------------------------------------------------------------- damaged files

WHOLE = {
    "one": of_one(KERNEL, scales=(1.0, 2.0), zeros=(0, 0)),
    "deeplab": tflite_files.deeplab(0.0625, head=2, classes=2),
}
NOTHING = 16
"""Bytes of the empty buffer at the end of these files, which no tensor has."""


@pytest.mark.parametrize("name", WHOLE)
@examples(100)
@given(st.data())
def test_a_file_that_ends_early_is_refused(name: str, drawn) -> None:
    length = drawn.draw(st.integers(0, len(WHOLE[name]) - NOTHING))
    refusal(WHOLE[name][:length])


@pytest.mark.parametrize("name", WHOLE)
@examples(200)
@given(st.data())
def test_wrong_bytes_are_a_refusal_or_other_numbers(name: str, drawn) -> None:
    damaged = bytearray(WHOLE[name])
    for _ in range(drawn.draw(st.integers(1, 4))):
        damaged[drawn.draw(st.integers(0, len(damaged) - 1))] = drawn.draw(st.integers(0, 255))
    try:
        found = reader.parse_weights(bytes(damaged), origin="net.tflite").tensors
    except ConfigError:
        return
    assert sum(one.numel() for one in found.values()) <= len(damaged)


@examples(100)
@given(st.binary(max_size=200))
def test_any_bytes_behind_the_identifier_are_refused(garbage: bytes) -> None:
    refusal(b"\x08\x00\x00\x00" + tflite.IDENTIFIER + garbage)
    refusal(garbage)
