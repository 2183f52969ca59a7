import struct

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.importing import caffe
from tests.support.examples import examples

FIELD = descriptor_pb2.FieldDescriptorProto
SCHEMA = {
    "Shape": [("dim", 1, FIELD.TYPE_INT64, True, True)],
    "Blob": [
        ("num", 1, FIELD.TYPE_INT32, False, False),
        ("channels", 2, FIELD.TYPE_INT32, False, False),
        ("height", 3, FIELD.TYPE_INT32, False, False),
        ("width", 4, FIELD.TYPE_INT32, False, False),
        ("data", 5, FIELD.TYPE_FLOAT, True, True),
        ("diff", 6, FIELD.TYPE_FLOAT, True, True),
        ("shape", 7, "Shape", False, False),
        ("double_data", 8, FIELD.TYPE_DOUBLE, True, True),
    ],
    "V1Layer": [
        ("bottom", 2, FIELD.TYPE_STRING, True, False),
        ("name", 4, FIELD.TYPE_STRING, False, False),
        ("type", 5, FIELD.TYPE_INT32, False, False),
        ("blobs", 6, "Blob", True, False),
    ],
    "Layer": [
        ("name", 1, FIELD.TYPE_STRING, False, False),
        ("type", 2, FIELD.TYPE_STRING, False, False),
        ("bottom", 3, FIELD.TYPE_STRING, True, False),
        ("blobs", 7, "Blob", True, False),
    ],
    "Net": [
        ("name", 1, FIELD.TYPE_STRING, False, False),
        ("layers", 2, "V1Layer", True, False),
        ("layer", 100, "Layer", True, False),
    ],
}
"""The part of caffe.proto that weights are in, for Google's own protobuf: name, number, type, repeated, packed."""


def messages() -> dict[str, type]:
    file = descriptor_pb2.FileDescriptorProto(name="caffe_for_tests.proto", package="caffe_for_tests", syntax="proto2")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, packed in fields:
            label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            added.type = FIELD.TYPE_MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                added.type_name = f".caffe_for_tests.{kind}"
            if packed:
                added.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe_for_tests.{name}")) for name in SCHEMA
    }


MESSAGE = messages()


def write(layers: dict[str, list[np.ndarray]], *, old: bool = False, double: bool = False) -> bytes:
    """A caffemodel as Caffe would write it."""
    net = MESSAGE["Net"](name="a net")
    for name, blobs in layers.items():
        layer = net.layers.add(name=name, type=4) if old else net.layer.add(name=name, type="Convolution")
        layer.bottom.append("data")
        for array in blobs:
            blob = layer.blobs.add()
            if old:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
            else:
                blob.shape.dim.extend(array.shape)
            (blob.double_data if double else blob.data).extend(array.ravel().tolist())
            blob.diff.extend([9.0])
    return net.SerializeToString()


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def message(number: int, body: bytes, *, length: int | None = None) -> bytes:
    return varint(number << 3 | 2) + varint(len(body) if length is None else length) + body


def blob(*shape: int, data: bytes) -> bytes:
    return message(7, message(1, b"".join(map(varint, shape)))) + message(5, data)


def layer(name: bytes, *blobs: bytes) -> bytes:
    return message(100, message(1, name) + b"".join(message(7, one) for one in blobs))


ONE = struct.pack("<f", 1.0)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
nets = st.dictionaries(
    st.text(min_size=1, max_size=8), st.lists(shapes, min_size=1, max_size=3), min_size=1, max_size=4
)


@given(nets, st.booleans(), st.booleans(), st.integers(0, 99))
def test_what_protobuf_writes_is_read_back(net: dict, old: bool, double: bool, seed: int) -> None:
    random = np.random.RandomState(seed)
    layers = {name: [random.randn(*one).astype(np.float32) for one in blobs] for name, blobs in net.items()}
    found = caffe.read_layers(write(layers, old=old, double=double))
    assert found.keys() == layers.keys()
    for name, blobs in layers.items():
        for array, tensor in zip(blobs, found[name], strict=True):
            assert tensor.dtype == torch.float32
            assert tuple(tensor.shape) == ((1,) * (4 - array.ndim) + array.shape if old else array.shape)
            np.testing.assert_array_equal(tensor.numpy().reshape(array.shape), array)


def test_layers_without_weights_and_fields_of_no_interest_are_passed_over() -> None:
    net = message(1, b"name") + message(100, message(1, b"data")) + varint(9 << 3 | 1) + b"12345678"
    net += varint(9 << 3 | 5) + b"1234" + varint(9 << 3) + varint(2**64 - 1) + layer(b"conv", blob(1, data=ONE))
    assert list(caffe.read_layers(net)) == ["conv"]


WHOLE = write({"conv1_1": [np.zeros((2, 3, 3, 3), np.float32), np.ones(2, np.float32)], "fc": [np.ones(3, np.float32)]})


@examples(200)
@given(st.integers(1, len(WHOLE) - 1))
def test_a_file_that_ends_early_is_refused_or_ends_between_two_layers(length: int) -> None:
    try:
        found = caffe.read_layers(WHOLE[:length])
    except ConfigError:
        return
    assert list(found) == ["conv1_1"]


@examples(300)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(garbage: bytes) -> None:
    try:
        assert caffe.read_layers(garbage)
    except ConfigError as error:
        assert "caffemodel" in error.message  # noqa: PT017


@examples(300)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_wrong_byte_gives_the_same_layers_or_a_refusal(position: int, value: int) -> None:
    damaged = WHOLE[:position] + bytes([value]) + WHOLE[position + 1 :]
    try:
        numbers = sum(tensor.numel() for blobs in caffe.read_layers(damaged).values() for tensor in blobs)
    except ConfigError:
        return
    assert numbers <= len(WHOLE) // 4


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no layer with weights"),
        (message(100, b"", length=2**62), "ends early"),
        (message(100, b"short", length=6), "ends early"),
        (b"\xff" * 11, "does not end"),
        (varint(100 << 3 | 2) + b"\xff" * 9 + b"\x7f", "does not end"),
        (varint(100 << 3 | 3), "wire type 3"),
        (varint(100 << 3), "does not end"),
        (varint(100 << 3) + b"\x01", "a number where a message belongs"),
        (layer(b"\xff", blob(1, data=ONE)), "a name that is not text"),
        (layer(b"a", blob(2, data=ONE)), "blob of 2 with 1 numbers"),
        (layer(b"a", blob(2**40, 2**40, data=ONE)), "with 1 numbers"),
        (layer(b"a", blob(*[1] * 9, data=ONE)), "with 1 numbers"),
        (layer(b"a", blob(1, data=ONE + b"\0")), "not a multiple of 4"),
        (layer(b"a", blob(1, data=ONE) + message(5, ONE)), "gives its numbers twice"),
        (layer(b"a", message(7, b"\x08\x01")), "with 0 numbers"),
        (layer(b"a", blob(1, data=ONE)) * 2, "two layers are called 'a'"),
        (layer(b"a", *[blob(1, data=ONE)] * 9), "more than 8 blobs"),
        (layer(b"a") * (caffe.MAX_LAYERS + 1), "more than 5000 layers"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(data: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        caffe.read_layers(data)


def test_messages_are_not_followed_deeper_than_a_net_has_them() -> None:
    nested = ONE
    for _ in range(2_000):
        nested = message(7, nested)
    with pytest.raises(ConfigError):
        caffe.read_layers(message(100, nested))
    with pytest.raises(ConfigError):
        caffe.read_layers(b"\xa2\x06\x80\x08" * 100_000)


def test_the_number_of_fields_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(caffe, "MAX_FIELDS", 100)
    with pytest.raises(ConfigError, match="more than 100 fields"):
        caffe.read_layers(b"\x08\x00" * 101)


def test_a_shape_longer_than_any_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="1x1x1x1x1x1x1x1 with"):
        caffe.read_layers(layer(b"a", message(7, message(1, b"\x01" * 1_000_000)) + message(5, ONE)))


@given(st.floats(0.5, 1000), st.integers(0, 99))
def test_folded_batch_norm_computes_what_caffes_layers_do(factor: float, seed: int) -> None:
    random = np.random.RandomState(seed)
    x, total = random.randn(2, 3, 4, 5).astype(np.float32), np.float32(factor)
    mean, variance = random.randn(3).astype(np.float32), random.rand(3).astype(np.float32) + 0.1
    weight, bias = random.randn(3).astype(np.float32), random.randn(3).astype(np.float32)
    layers = {"bn": [mean * total, variance * total, total.reshape(1)], "scale": [weight, bias]}
    found = caffe.named_tensors(caffe.read_layers(write(layers)))
    given = torch.nn.functional.batch_norm(
        torch.from_numpy(x),
        found["bn.running_mean"],
        found["bn.running_var"],
        found["scale.weight"],
        found["scale.bias"],
        eps=1e-5,
    )
    along = (slice(None), None, None)
    normalised = (x - mean[along]) / np.sqrt(variance[along] + 1e-5)
    np.testing.assert_allclose(given, normalised * weight[along] + bias[along], rtol=1e-4, atol=1e-4)


def test_a_batch_norm_that_saw_nothing_has_zero_mean_and_variance() -> None:
    found = caffe.named_tensors({"bn": [torch.ones(2), torch.ones(2), torch.zeros(1)]})
    assert found["bn.running_mean"].tolist() == found["bn.running_var"].tolist() == [0, 0]


def test_a_bias_of_four_axes_becomes_one_of_one() -> None:
    found = caffe.named_tensors({"conv": [torch.ones(2, 3, 1, 1), torch.ones(1, 1, 1, 2)]})
    assert found["conv.weight"].shape == (2, 3, 1, 1)
    assert found["conv.bias"].shape == (2,)


def test_a_layer_of_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'lstm' has 4 blobs"):
        caffe.named_tensors({"lstm": [torch.ones(2)] * 4})
