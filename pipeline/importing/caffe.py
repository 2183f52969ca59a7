"""Parser of the weights in a `.caffemodel`: names and blobs of a NetParameter in protobuf's wire format.

In: untrusted bytes. Out: the blobs of each layer by the layer's name. Field numbers:
https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto; encoding:
https://protobuf.dev/programming-guides/encoding. Three functions of fixed depth read nested messages, so no input
causes recursion, and every length is checked against the remaining bytes before memory is allocated.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError

MAX_LAYERS, MAX_BLOBS, MAX_AXES = 5_000, 8, 8
MAX_FIELDS = 1_000_000
"""Largest number of fields of one message, a bound on time: a field may have two bytes."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. Groups (3 and 4) are refused: Caffe has none."""

LAYER_FIELDS = {2: (4, 6), 100: (1, 7)}
"""Fields of NetParameter that hold layers, V1LayerParameter and LayerParameter: field numbers of (name, blobs)."""

SHAPE, DATA, DOUBLE_DATA = 7, 5, 8
OLD_SHAPE = (1, 2, 3, 4)
"""Fields of BlobProto: num, channels, height and width, in files older than `shape`."""


def read_layers(data: bytes) -> dict[str, list[Tensor]]:
    """Blobs by layer name, without layers that have no blobs.

    Returns:
        float32 tensors in the shapes of the file; a shape of num, channels, height and width has four axes.

    Raises:
        ConfigError: the bytes are not a NetParameter; the message names the layer.
    """
    layers: dict[str, list[Tensor]] = {}
    count = 0
    for number, value in _fields(memoryview(data), origin="the file"):
        if number not in LAYER_FIELDS:
            continue
        count += 1
        if count > MAX_LAYERS:
            raise ConfigError(f"caffemodel: more than {MAX_LAYERS} layers")
        name, blobs = _layer(_message(value, origin=f"layer {count}"), *LAYER_FIELDS[number], origin=f"layer {count}")
        if name in layers:
            raise ConfigError(f"caffemodel: two layers are called {name!r}")
        if blobs:
            layers[name] = blobs
    if not layers:
        raise ConfigError("caffemodel: no layer with weights", hint="is this a .caffemodel at all?")
    return layers


def _layer(view: memoryview, name_field: int, blobs_field: int, *, origin: str) -> tuple[str, list[Tensor]]:
    name, blobs = "", []
    for number, value in _fields(view, origin=origin):
        if number == name_field:
            name = _text(_message(value, origin=origin), origin=origin)
        elif number == blobs_field:
            blobs.append(_message(value, origin=origin))
            if len(blobs) > MAX_BLOBS:
                raise ConfigError(f"caffemodel: {origin} has more than {MAX_BLOBS} blobs")
    origin = f"{origin} ({name!r})"
    return name, [_blob(blob, origin=origin) for blob in blobs]


def _blob(view: memoryview, *, origin: str) -> Tensor:
    """Parse one array and check its size against its shape."""
    old: dict[int, int] = {}
    shape: list[int] | None = None
    values: np.ndarray | None = None
    for number, value in _fields(view, origin=origin):
        if number in OLD_SHAPE and isinstance(value, int):
            old[number] = value
        elif number == SHAPE:
            shape = _shape(_message(value, origin=origin), origin=origin)
        elif number in (DATA, DOUBLE_DATA):
            if values is not None:
                raise ConfigError(f"caffemodel: {origin} gives its numbers twice")
            values = _numbers(_message(value, origin=origin), "<f8" if number == DOUBLE_DATA else "<f4", origin=origin)
    sizes = shape if shape is not None else [old.get(number, 1) for number in OLD_SHAPE]
    values = np.empty(0, "<f4") if values is None else values
    if len(sizes) > MAX_AXES or math.prod(sizes) != values.size:
        shape_text = "x".join(map(str, sizes[:MAX_AXES]))
        raise ConfigError(f"caffemodel: {origin} has a blob of {shape_text} with {values.size} numbers")
    return torch.from_numpy(values.astype(np.float32)).reshape(sizes)


def _shape(view: memoryview, *, origin: str) -> list[int]:
    """Parse the `dim` field of a BlobShape, packed or not."""
    sizes: list[int] = []
    for number, value in _fields(view, origin=origin):
        if number != 1:
            continue
        if isinstance(value, int):
            sizes.append(value)
            continue
        offset = 0
        while offset < len(value) and len(sizes) <= MAX_AXES:
            size, offset = _varint(value, offset, origin=origin)
            sizes.append(size)
    return sizes


def _numbers(view: memoryview, dtype: str, *, origin: str) -> np.ndarray:
    if len(view) % np.dtype(dtype).itemsize:
        raise ConfigError(f"caffemodel: {origin} has {len(view)} bytes of numbers, not a multiple of {dtype[-1]}")
    return np.frombuffer(view, dtype)


def _text(view: memoryview, *, origin: str) -> str:
    try:
        return bytes(view).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"caffemodel: {origin} has a name that is not text") from error


def _message(value: int | memoryview, *, origin: str) -> memoryview:
    if isinstance(value, int):
        raise ConfigError(f"caffemodel: {origin} has a number where a message belongs")
    return value


def _fields(view: memoryview, *, origin: str) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an int for a varint, else a view of the bytes."""
    offset, count = 0, 0
    while offset < len(view):
        count += 1
        if count > MAX_FIELDS:
            raise ConfigError(f"caffemodel: {origin} has more than {MAX_FIELDS} fields")
        tag, offset = _varint(view, offset, origin=origin)
        kind = tag & 7
        if kind == VARINT:
            value, offset = _varint(view, offset, origin=origin)
            yield tag >> 3, value
            continue
        if kind == BYTES:
            length, offset = _varint(view, offset, origin=origin)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ConfigError(f"caffemodel: {origin} has a field of wire type {kind} at byte {offset}")
        if length > len(view) - offset:
            raise ConfigError(f"caffemodel: {origin} ends early: {length} bytes wanted, {len(view) - offset} left")
        yield tag >> 3, view[offset : offset + length]
        offset += length


def _varint(view: memoryview, offset: int, *, origin: str) -> tuple[int, int]:
    """Parse an unsigned number of at most 64 bits at `offset`; returns it and the offset after it."""
    value = 0
    for index, byte in enumerate(view[offset : offset + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80 and value < 2**64:
            return value, offset + index + 1
    raise ConfigError(f"caffemodel: {origin} has a number that does not end at byte {offset}")


def named_tensors(layers: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Name blobs in torch's way: `conv1_1.weight`, `bn_conv1.running_mean`.

    A BatchNorm has three blobs: scaled mean, scaled variance, and the scale factor, by which this function divides, as
    the layer does when it runs (https://github.com/BVLC/caffe, src/caffe/layers/batch_norm_layer.cpp). Other layers,
    also Scale, have a weight and a bias.

    Raises:
        ConfigError: a layer has other blobs.
    """
    tensors: dict[str, Tensor] = {}
    for name, blobs in layers.items():
        if len(blobs) == 3 and blobs[2].numel() == 1:
            factor = blobs[2].item()
            mean, variance = (blob.flatten() * (0 if factor == 0 else 1 / factor) for blob in blobs[:2])
            tensors |= {f"{name}.running_mean": mean, f"{name}.running_var": variance}
        elif len(blobs) in (1, 2):
            tensors[f"{name}.weight"] = blobs[0]
            tensors |= {f"{name}.bias": blob.flatten() for blob in blobs[1:]}
        else:
            raise ConfigError(
                f"caffemodel: layer {name!r} has {len(blobs)} blobs; only a weight and a bias are supported"
            )
    return tensors
