"""Reader of untrusted weight files: `.pth`, `.safetensors` and `.caffemodel` to plain tensors, without running code.

In: the URL of a file of `torch.save`, of a `.safetensors` or of a `.caffemodel`; its first bytes decide the format.
Out: tensors by name. Only this module may call `torch.load`, and only with `weights_only=True`. Before that, the
functions that a pickle names are checked against a short list: a file that names any other is refused.
"""

import hashlib
import io
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import ConfigError, InputError
from pipeline.importing import caffe
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
"""Keys under which training programs save the weights beside optimisers and counters."""
PARALLEL = "module."
"""Prefix that DataParallel adds to every name."""

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
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
    """`torch`, `safetensors` or `caffemodel`."""
    tensors: dict[str, Tensor]
    """Tensors on the CPU in the dtypes of the file, by name without DataParallel's prefix."""
    left_out: tuple[str, ...]
    """Names of entries beside the weights, such as an optimiser's state."""


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
    kind, tensors, left_out = parse_weights(data, origin=url.name)
    return WeightsFile(url.name, hashlib.sha256(data).hexdigest(), kind, tensors, left_out)


def parse_weights(data: bytes, *, origin: str) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Parse the bytes of a file: kind, tensors, and names of entries beside the weights.

    Raises:
        ConfigError: as `read_weights`, except for a missing or too large file.
    """
    if data.startswith((ZIP, PICKLE)):
        tensors, left_out = _weights_in(_load_pickle(data, origin=origin), origin=origin)
        return "torch", tensors, left_out
    if origin.endswith(".caffemodel"):
        return "caffemodel", _checked(caffe.named_tensors(caffe.read_layers(data)), origin=origin), ()
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        known = "a zip or pickle of torch.save, safetensors, or a name that ends in .caffemodel"
        raise ConfigError(f"{origin} is not a weight file: {error}", hint=f"known: {known}") from error
    return "safetensors", _checked(tensors, origin=origin), ()


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


def _check_archive(data: bytes, *, origin: str) -> None:
    """Refuse a zip that is compressed or claims more than its size: `torch.save` stores without compression."""
    if not data.startswith(ZIP):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise ConfigError(f"{origin} is a TorchScript program, not a weight file")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ConfigError(f"{origin} is a zip with two files of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ConfigError(f"{origin} is a compressed zip; torch.save writes none")
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


def _weights_in(loaded: Any, *, origin: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the dict of tensors in an unpickled object; returns it and the names of entries beside it."""
    left_out: tuple[str, ...] = ()
    if isinstance(loaded, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(loaded.get(wrapper), Mapping):
                left_out = tuple(str(name) for name in loaded if name != wrapper)
                loaded = loaded[wrapper]
                break
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(f"{origin} has no dict of tensors")
    no_tensors = [name for name, value in loaded.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if no_tensors:
        names = ", ".join(map(repr, no_tensors[:5]))
        raise ConfigError(f"{origin} has entries that are no tensors: {names}", hint=f"known wrappers: {WRAPPERS}")
    if all(name.startswith(PARALLEL) for name in loaded):
        loaded = {name.removeprefix(PARALLEL): value for name, value in loaded.items()}
    return _checked(dict(loaded), origin=origin), left_out


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
