"""Reader of untrusted weight files: torch, safetensors, Caffe, TensorFlow Lite and Lasagne, running no code of theirs.

In: the URL of a `.pth` of `torch.save`, a `.safetensors`, a `.caffemodel`, a `.tflite`, or of Lasagne's arrays in a
`.npz`; the name tells Caffe's and Lasagne's, the first bytes the others.
Out: tensors by name. Only this module may call `torch.load`, and only with `weights_only=True`. Before that, the
functions that a pickle names are checked against a short list: a file that names any other is refused.
"""

import hashlib
import io
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import ConfigError, InputError
from pipeline.importing import caffe, lasagne, tflite
from pipeline.store import objects
from pipeline.store.url import Url

_MAX_BYTES = 4 * 2**30
"""Largest file, and largest size of its tensors, bytes."""
MAX_TENSORS = 100_000
_MAX_NAME = 300
"""Longest name of a tensor, characters."""
_PLAIN = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
"""Dtypes of weights and counters."""

WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model")
"""Keys under which training programs save the weights beside optimisers and counters, whatever the names in them."""
OPTIMISER = ("optim", "scheduler", "lr_scheduler")
"""Beginnings of keys whose tensors are no weights, though some have the names of weights."""
_MAX_DEPTH = 6
"""Deepest nesting of dicts in which weights are looked for."""

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
_ZIP_END, _ZIP64 = b"PK\x05\x06", 0xFFFF
"""Start of a zip's end record, whose bytes 10 and 11 count the entries, and the count where a zip64 has it elsewhere.

PKWARE's APPNOTE 4.3.16, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""
LEGACY_PICKLES = 5
"""Pickles in a file of torch before 1.6: magic number, version, system, object, names of storages; bytes follow."""

DAMAGE = (
    *(zipfile.BadZipFile, EOFError, IndexError, KeyError, OverflowError),
    *(NotImplementedError, RuntimeError, ValueError, struct.error),
)
"""Exceptions of zipfile and pickletools at damaged bytes."""

STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
NUMPY = {
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool")),
}
"""Types of a best score stored as a numpy number; `_Score` replaces them."""
KNOWN = {
    "collections.OrderedDict",
    "_codecs.encode",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
    *(f"torch.{name}Storage" for name in STORAGES),
    *NUMPY,
}
"""Functions that a pickle may name: the parts of state dicts, optimisers and counters."""
NAMING = {"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
"""Other opcodes that name a function; `torch.save` does not use them."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Content of a weight file."""

    name: str
    """Last part of its URL."""
    sha256: str
    """SHA-256 of its bytes, 64 hex digits."""
    kind: str
    """`torch`, `safetensors`, `caffemodel`, `tflite` or `npz`."""
    tensors: dict[str, Tensor]
    """Tensors on the CPU in the dtypes of the file, by name; dicts of one file keep theirs apart, as `ema.NAME`."""
    left_out: tuple[str, ...]
    """Names of entries beside the weights, such as an optimiser's state."""
    entries: tuple[str, ...] = ()
    """Prefixes of the dicts of tensors, if the file has several: `("model.", "ema.")`."""
    taken_off: tuple[str, ...] = ()
    """Texts that `selection.select_weights` took off the names, such as the prefix `module.model.`."""
    weights: str = ""
    """Name of the set of weights that it chose, if that is an average or one of several; empty for the only one."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """Reasons, by name, for the tensors that it found to belong to no network."""
    normalisation: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Values, by name, of those of them that are means or deviations of the input."""
    notes: tuple[str, ...] = ()
    """What it chose and why, for the report."""


class _Score:
    """Replacement for numpy numbers in a pickle: accepts any arguments and stores nothing."""

    def __init__(self, *values: object) -> None:
        del values

    def __setstate__(self, state: object) -> None:
        del state


def read_weights(url: Url) -> WeightsFile:
    """Read a weight file.

    Raises:
        ConfigError: the file is missing, too large, damaged, not a weight file, or names functions beyond tensors.
    """
    try:
        data = objects.read_bytes(url, max_bytes=_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{url} does not exist") from error
    except InputError as error:
        raise ConfigError(f"{url}: {error.detail}") from error
    return parse_weights(data, origin=url.name)


def parse_weights(data: bytes, *, origin: str) -> WeightsFile:
    """Parse the bytes of a file called `origin`.

    Raises:
        ConfigError: as `read_weights`, except for a missing or too large file.
    """
    digest = hashlib.sha256(data).hexdigest()
    if origin.endswith(".npz"):
        return WeightsFile(origin, digest, "npz", _checked(_load_lasagne(data, origin=origin), origin=origin), ())
    if data.startswith((ZIP, PICKLE)):
        tensors, left_out, entries = _weights_in(_load_pickle(data, origin=origin), origin=origin)
        return WeightsFile(origin, digest, "torch", _checked(tensors, origin=origin), left_out, entries)
    if origin.endswith(".caffemodel"):
        tensors = _checked(caffe.named_tensors(caffe.read_layers(data)), origin=origin)
        return WeightsFile(origin, digest, "caffemodel", tensors, ())
    if data[4:8] == tflite.IDENTIFIER or origin.endswith(".tflite"):
        return WeightsFile(origin, digest, "tflite", _checked(tflite.named_tensors(data), origin=origin), ())
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        known = "a zip or pickle of torch.save, safetensors, tflite, or a name that ends in .caffemodel or .npz"
        raise ConfigError(f"{origin} is not a weight file: {error}", hint=f"known: {known}") from error
    return WeightsFile(origin, digest, "safetensors", _checked(tensors, origin=origin), ())


def _load_pickle(data: bytes, *, origin: str) -> Any:
    try:
        _check_archive(data, origin=origin)
        for name in _functions_named(data):
            if name not in KNOWN:
                hint = "nothing was run; where you trust the file, save its state_dict() alone"
                raise ConfigError(f"{origin} calls {name}: more than tensors", hint=hint)
    except DAMAGE as error:
        raise ConfigError(f"{origin} is damaged: {error or type(error).__name__}") from error
    try:
        with torch.serialization.safe_globals([(_Score, name) for name in NUMPY]):
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can make the unpickler raise any exception
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{origin} cannot be unpickled as tensors: {first}") from error


def _load_lasagne(data: bytes, *, origin: str) -> dict[str, Tensor]:
    if not data.startswith(ZIP):
        raise ConfigError(f"{origin} is not a zip of arrays")
    try:
        _check_archive(data, origin=origin)
        return lasagne.named_tensors(lasagne.read_arrays(data))
    except DAMAGE as error:
        raise ConfigError(f"{origin} is damaged: {error or type(error).__name__}") from error


def _check_archive(data: bytes, *, origin: str) -> None:
    """Refuse a zip that is compressed or claims more than its size: torch and numpy store without compression."""
    if not data.startswith(ZIP):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    # zipfile has found the end record. A damaged length in the header of an entry makes it pass over others.
    (counted,) = struct.unpack_from("<H", data, data.rfind(_ZIP_END) + 10)
    if counted not in (len(entries), _ZIP64):
        raise ConfigError(f"{origin} is damaged: a zip of {counted} entries, of which {len(entries)} can be read")
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise ConfigError(f"{origin} is a TorchScript program, not a weight file")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ConfigError(f"{origin} is a zip with two files of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ConfigError(f"{origin} is a compressed zip; torch.save and np.savez write none")
    if sum(entry.file_size for entry in entries) > len(data) or len(entries) > MAX_TENSORS:
        raise ConfigError(f"{origin} is a zip of {len(entries)} entries that claim more than its {len(data)} bytes")


def _functions_named(data: bytes) -> Iterator[str]:
    """Yield the functions that the pickles of a file name, as `module.function`."""
    for stream in _pickles(data):
        for opcode, value, _ in pickletools.genops(stream):
            if opcode.name == "GLOBAL":
                yield str(value).replace(" ", ".", 1)
            elif opcode.name in NAMING:
                yield f"a function by {opcode.name}"


def _pickles(data: bytes) -> Iterator[io.BytesIO]:
    """Yield a stream at the start of each pickle of a file; in an old file, reading one ends at the next."""
    if not data.startswith(ZIP):
        yield from [io.BytesIO(data)] * LEGACY_PICKLES
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                yield io.BytesIO(archive.read(name))


def _weights_in(loaded: Any, *, origin: str) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Find the dicts of tensors in an unpickled object.

    Returns:
        Tensors; names of the entries beside their dicts; and the dicts' prefixes. A dict that is alone under one of
        `WRAPPERS` has no prefix.
    """
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(f"{origin} has no dict of tensors")
    if _is_state(loaded):
        return dict(loaded), (), ()
    dicts, others = _dicts_in(loaded, origin=origin)
    names = tuple(name for name in WRAPPERS if isinstance(loaded.get(name), Mapping))
    damaged = [name for name in names if not any(path[0] == name for path in dicts)]
    if damaged or not dicts:
        raise _no_state(loaded[damaged[0]] if damaged else loaded, origin=origin)
    left_out = _shortest(others, dicts)
    if len(dicts) == 1 and next(iter(dicts)) in [(name,) for name in WRAPPERS]:
        return dict(*dicts.values()), left_out, ()
    prefixes = {".".join(path) + ".": state for path, state in dicts.items()}
    tensors = {prefix + name: tensor for prefix, state in prefixes.items() for name, tensor in state.items()}
    if len(tensors) < sum(map(len, dicts.values())):
        raise ConfigError(f"{origin} has dicts whose names run into each other: {', '.join(prefixes)}")
    return tensors, left_out, tuple(prefixes)


def _dicts_in(
    loaded: Mapping[Any, Any], *, origin: str
) -> tuple[dict[tuple[str, ...], Mapping[str, Tensor]], list[tuple[str, ...]]]:
    """Find the dicts of tensors by their paths of keys, and the paths of all other entries."""
    dicts: dict[tuple[str, ...], Mapping[str, Tensor]] = {}
    others: list[tuple[str, ...]] = []
    rest: list[tuple[tuple[str, ...], Any]] = [((str(key),), value) for key, value in reversed(list(loaded.items()))]
    entries = 0
    while rest:
        path, value = rest.pop()
        entries += len(value) if isinstance(value, Mapping) else 1
        if entries > MAX_TENSORS:
            raise ConfigError(f"{origin} has more than {MAX_TENSORS} entries")
        if path[-1].lower().startswith(OPTIMISER):
            others.append(path)
        elif _is_state(value) and (path[-1] in WRAPPERS or any("." in name for name in value)):
            dicts[path] = value
        elif path[-1] not in WRAPPERS and (state := _state_among_numbers(value)):
            dicts[path] = state
            others += [(*path, name) for name in value if name not in state]
        elif len(path) < _MAX_DEPTH and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            rest += [((*path, key), inner) for key, inner in reversed(list(value.items()))]
        else:
            others.append(path)
    return dicts, others


def _is_state(value: Any) -> bool:
    """Return True for a dict of tensors by name."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _state_among_numbers(value: Any) -> dict[str, Tensor]:
    """Tensors of a dict that has numbers beside them, as averages do that keep their decay; empty for other dicts."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return {}
    state = {name: entry for name, entry in value.items() if isinstance(entry, Tensor) and "." in name}
    others = [entry for name, entry in value.items() if name not in state]
    return state if all(isinstance(entry, int | float | Tensor) for entry in others) else {}


def _shortest(others: list[tuple[str, ...]], dicts: Mapping[tuple[str, ...], object]) -> tuple[str, ...]:
    """Names of entries beside the weights; those of one parent that has no weights are its name alone."""
    parents = {path[:length] for path in dicts for length in range(len(path) + 1)}
    ends = (next(path[:end] for end in range(1, len(path) + 1) if path[:end] not in parents) for path in others)
    return tuple(dict.fromkeys(map(".".join, ends)))


def _no_state(entries: Mapping[Any, Any], *, origin: str) -> ConfigError:
    """Error of a dict that is empty, or has entries that are no tensors."""
    no_tensors = [name for name, value in entries.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if not no_tensors:
        return ConfigError(f"{origin} has no dict of tensors")
    names = ", ".join(map(repr, no_tensors[:5]))
    return ConfigError(f"{origin} has entries that are no tensors: {names}", hint=f"known wrappers: {WRAPPERS}")


def _checked(tensors: dict[str, Tensor], *, origin: str) -> dict[str, Tensor]:
    """Check that tensors are plain and dense, and that none repeats its storage."""
    if len(tensors) > MAX_TENSORS or not tensors:
        raise ConfigError(f"{origin} has {len(tensors)} tensors, allowed are 1 to {MAX_TENSORS}")
    for name, tensor in tensors.items():
        if len(name) > _MAX_NAME:
            raise ConfigError(f"{origin}: name of {len(name)} characters, limit {_MAX_NAME}: {name[:40]}...")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _PLAIN:
            raise ConfigError(
                f"{origin}: {name} is not a plain tensor: {tensor.layout}, {tensor.device}, {tensor.dtype}"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(f"{origin}: {name} has the shape {tuple(tensor.shape)}, more than the numbers stored")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > _MAX_BYTES:
        raise ConfigError(f"{origin} has more than {_MAX_BYTES} bytes of tensors")
    return {name: tensor.detach() for name, tensor in tensors.items()}
