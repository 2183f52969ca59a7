"""Parser of the weights in a `.npz` that Lasagne's users write: arrays in the order of the layers, without names.

In: untrusted bytes of `np.savez(file, *lasagne.layers.get_all_param_values(network))`. Out: tensors named after the
place of their convolution. Facts: https://github.com/Lasagne/Lasagne, lasagne/layers/helper.py (`get_all_layers`),
conv.py (`flip_filters`) and normalization.py. No array is unpickled, and every size is checked before memory is
allocated.
"""

import io
import math
import zipfile
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError

EPSILON = 1e-4
"""Lasagne's default in batch norm."""

NORM = ("bn.bias", "bn.weight", "bn.running_mean", "bn.running_var")
"""Arrays of a BatchNormLayer in their order: beta, gamma, mean, and the inverse deviation in place of the variance."""

VECTORS = {0: (), 1: ("conv.bias",), 4: NORM, 5: ("conv.bias", *NORM)}
"""Names of the vectors behind the weight of a convolution, by their number."""


def read_arrays(data: bytes) -> list[Tensor]:
    """Arrays `arr_0`, `arr_1` and so on of a zip that is not compressed, in that order, float32.

    Raises:
        ConfigError: there are other entries, or an array is not of floats or not as long as its shape says.
        zipfile.BadZipFile, ValueError: the bytes are damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [f"arr_{number}.npy" for number in range(len(archive.namelist()))]
        if set(names) != set(archive.namelist()):
            hint = "known: arr_0, arr_1, ..., as np.savez names arrays without a name"
            raise ConfigError(f"npz: entries are {', '.join(archive.namelist()[:5])}", hint=hint)
        return [_array(archive.read(name), origin=name) for name in names]


def _array(data: bytes, *, origin: str) -> Tensor:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # a header is a Python literal: a damaged one can raise any exception
        raise ConfigError(f"npz: {origin} has no readable header: {error}") from error
    if version != (1, 0):
        raise ConfigError(f"npz: {origin} has version {version} of the format, known is (1, 0)")
    if dtype not in (np.float32, np.float64):
        raise ConfigError(f"npz: {origin} is of {dtype}, allowed are float32 and float64")
    left = len(data) - stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:
        raise ConfigError(f"npz: {origin} has the shape {shape} of {dtype} and {left} bytes")
    values = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(np.float32, order="C"))


def named_tensors(arrays: list[Tensor]) -> dict[str, Tensor]:
    """Name the arrays `layer0.conv.weight`, `layer0.bn.running_var` and so on, and convert them to torch's meaning.

    Lasagne convolves with flipped filters, and stores the mean of 1 / sqrt(variance + epsilon).

    Raises:
        ConfigError: there are other layers than convolutions, each with or without a bias and a batch norm.
    """
    starts = [number for number, array in enumerate(arrays) if array.dim() != 1]
    tensors: dict[str, Tensor] = {}
    for layer, (start, end) in enumerate(pairwise([*starts, len(arrays)])):
        weight, vectors = arrays[start], arrays[start + 1 : end]
        if starts[0] != 0 or weight.dim() != 4 or len(vectors) not in VECTORS:
            sizes = ", ".join(str(tuple(array.shape)) for array in arrays[start:end][:6])
            hint = "known: convolutions, each with or without a bias and a batch norm"
            raise ConfigError(f"npz: layer {layer} has arrays of {sizes}", hint=hint)
        tensors[f"layer{layer}.conv.weight"] = weight.flip(2, 3)
        names = [f"layer{layer}.{name}" for name in VECTORS[len(vectors)]]
        tensors |= {
            name: _variance(vector) if name.endswith("running_var") else vector
            for name, vector in zip(names, vectors, strict=True)
        }
    return tensors


def _variance(inverse_deviation: Tensor) -> Tensor:
    return (inverse_deviation.double() ** -2 - EPSILON).clamp(min=0).float()
