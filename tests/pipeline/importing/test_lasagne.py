"""Arrays without names, as Lasagne's users save them: well meant, damaged, and meant to harm."""

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.importing import lasagne, reader, selection
from tests.support.examples import examples

WEIGHT = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
VECTOR = np.array([0.5, 2.0], np.float32)
ARRAYS = [WEIGHT, VECTOR, 2 * VECTOR, 3 * VECTOR, 4 * VECTOR, WEIGHT[:, :, :1, :1], VECTOR]
"""A convolution with batch norm, then one with a bias."""


def npz(*arrays: np.ndarray, **named: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, *arrays, **named)
    return file.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        reader.parse_weights(data, origin="a.npz")
    return str(caught.value)


def zipped(content: bytes, name: str = "arr_0.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def test_arrays_get_the_names_and_the_meaning_of_torch() -> None:
    source = reader.parse_weights(npz(*ARRAYS), origin="a.npz")
    assert source.kind == "npz"
    found = source.tensors
    assert list(found) == [
        "layer0.conv.weight",
        *(f"layer0.bn.{name}" for name in ("bias", "weight", "running_mean", "running_var")),
        *("layer1.conv.weight", "layer1.conv.bias"),
    ]
    np.testing.assert_array_equal(found["layer0.conv.weight"], WEIGHT[:, :, ::-1, ::-1])
    np.testing.assert_array_equal(found["layer0.bn.weight"], 2 * VECTOR)
    scale = 1 / torch.sqrt(found["layer0.bn.running_var"] + lasagne.EPSILON)
    torch.testing.assert_close(scale, torch.from_numpy(4 * VECTOR))


def test_arrays_come_in_the_order_of_their_numbers_and_of_either_memory_order_and_width() -> None:
    weight = np.asfortranarray(np.random.default_rng(0).normal(size=(2, 3, 3, 2)))
    source = reader.parse_weights(npz(*[weight, VECTOR] * 6), origin="a.npz")
    assert len(source.tensors) == 12
    for layer in range(6):
        expected = weight[:, :, ::-1, ::-1].astype(np.float32)
        np.testing.assert_array_equal(source.tensors[f"layer{layer}.conv.weight"], expected)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ([VECTOR, WEIGHT], "layer 0 has arrays of"),
        ([WEIGHT, VECTOR, VECTOR], "layer 0 has arrays of (2, 1, 3, 3), (2,), (2,)"),
        ([WEIGHT, np.ones((4, 2), np.float32)], "layer 1 has arrays of (4, 2)"),
        ([WEIGHT.astype(np.int32)], "arr_0.npy is of int32"),
        ([np.array([{"a": 1}], dtype=object)], "arr_0.npy is of object"),
    ],
)
def test_other_layers_than_convolutions_and_other_numbers_than_floats_are_refused(arrays: list, says: str) -> None:
    assert says in refusal(npz(*arrays))


def test_named_and_compressed_arrays_are_refused() -> None:
    assert "entries are W.npy" in refusal(npz(W=WEIGHT))
    file = io.BytesIO()
    np.savez_compressed(file, WEIGHT)
    assert "compressed zip" in refusal(file.getvalue())
    assert "not a zip" in refusal(b"\x93NUMPY")
    assert "0 tensors" in refusal(zipped(b"", "x/")) or "entries are" in refusal(zipped(b"", "x/"))


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(-1, -3)", "(2, 2)", "(((((", "('a',)"])
def test_a_header_that_claims_another_size_or_is_no_header_is_refused(shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(12)
    assert "arr_0.npy has" in refusal(zipped(content))


def test_a_damaged_length_in_the_directory_of_a_zip_loses_no_array_in_silence() -> None:
    whole = bytearray(npz(*ARRAYS))
    second = whole.find(b"PK\x01\x02", whole.find(b"PK\x01\x02") + 1)
    others = whole.rfind(b"PK\x05\x06") - second - 46 - len("arr_1.npy")
    whole[second + 32 : second + 34] = others.to_bytes(2, "little")  # length of a comment
    assert "a zip of 7 entries, of which 2 can be read" in refusal(bytes(whole))


@examples(60)
@given(st.data())
def test_a_file_that_ends_early_or_has_a_wrong_byte_is_refused_or_has_as_many_numbers(data: st.DataObject) -> None:
    whole = npz(*ARRAYS)
    refusal(whole[: data.draw(st.integers(0, len(whole) - 1))])
    at, value = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    try:
        found = reader.parse_weights(whole[:at] + bytes([value]) + whole[at + 1 :], origin="a.npz").tensors
    except ConfigError:
        return
    assert sum(tensor.numel() for tensor in found.values()) == sum(array.size for array in ARRAYS)


def test_a_file_has_one_set_of_weights() -> None:
    source = reader.parse_weights(npz(*ARRAYS), origin="a.npz")
    assert selection.select_weights(source) is source
    with pytest.raises(ConfigError, match=r"a \.npz has one set of weights"):
        selection.select_weights(source, weights="ema")
