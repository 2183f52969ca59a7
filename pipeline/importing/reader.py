"""Read somebody else's file of weights into plain tensors, without running anything it says.

In: the URL of a `.pth`, `.pt` or `.tar` of `torch.save`, of a `.safetensors` or of a `.caffemodel`; what a file is, its
first bytes say. Out: tensors by name. This is the only module that may call `torch.load`, and only with
`weights_only=True`. In front of it stands a check of its own: a pickle names the functions it wants called, and unless
all of them are on a short list the file is refused before torch sees it.
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
from pipeline.redact import redact
from pipeline.store import objects

_MAX_BYTES = 4 * 2**30
"""Largest file, and most bytes its tensors may unfold to."""
MAX_TENSORS = 100_000
_MAX_NAME = 300
"""Characters of a tensor's name."""
_PLAIN = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
"""Kinds of numbers that weights and counters are made of."""

WRAPPERS = ("model_state", "state_dict", "model_state_dict", "model")
"""Names under which training programs keep the weights beside optimisers and counters."""
PARALLEL = "module."
"""What DataParallel puts in front of every name."""

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
LEGACY_PICKLES = 5
"""A file of torch before 1.6: magic number, version, system, the object, its storages' names; then their bytes."""

DAMAGE = (
    *(zipfile.BadZipFile, EOFError, IndexError, KeyError, OverflowError),
    *(NotImplementedError, RuntimeError, ValueError, struct.error),
)
"""What zipfile and pickletools raise at bytes that are no zip or pickle."""

STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
NUMPY = {
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool")),
}
"""A best score kept as a number of numpy; `_Score` is called in their place."""
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
"""All that a pickle may name: what state dicts, optimisers and counters are made of."""
NAMING = {"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
"""Other ways to name a function, which `torch.save` does not use."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a file holds."""

    name: str
    """Last part of its URL."""
    sha256: str
    """64 hex digits over its bytes."""
    kind: str
    """`torch`, `safetensors` or `caffemodel`."""
    tensors: dict[str, Tensor]
    """On the CPU, in the dtypes of the file, each without what DataParallel puts in front of its name."""
    left_out: tuple[str, ...]
    """What stood beside the weights, as an optimiser's state."""


class _Score:
    """Stands in for numpy in a pickle: takes whatever it is given and keeps nothing."""

    def __init__(self, *values: object) -> None:
        del values

    def __setstate__(self, state: object) -> None:
        del state


def read_weights(url: str) -> Source:
    """Read a file of weights.

    Raises:
        ConfigError: when it is missing, too large, damaged, no file of weights, or asks for more than tensors.
    """
    try:
        data = objects.read_bytes(url, max_bytes=_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"no file {redact(url)}") from error
    except InputError as error:
        raise ConfigError(f"{redact(url)}: {error.detail}") from error
    name = url.rstrip("/").rpartition("/")[2]
    kind, tensors, left_out = parse_weights(data, origin=name)
    return Source(name, hashlib.sha256(data).hexdigest(), kind, tensors, left_out)


def parse_weights(data: bytes, *, origin: str) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Kind, tensors and what was left out of the bytes of a file.

    Raises:
        ConfigError: as `read`.
    """
    if data.startswith((ZIP, PICKLE)):
        tensors, left_out = _weights_in(_load_pickle(data, origin=origin), origin=origin)
        return "torch", tensors, left_out
    if origin.endswith(".caffemodel"):
        return "caffemodel", _checked(caffe.named(caffe.read_layers(data)), origin=origin), ()
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        known = "a zip or pickle of torch.save, safetensors, or a name that ends in .caffemodel"
        raise ConfigError(f"{origin} is no file of weights: {error}", hint=f"known: {known}") from error
    return "safetensors", _checked(tensors, origin=origin), ()


def _load_pickle(data: bytes, *, origin: str) -> Any:
    try:
        _check_archive(data, origin=origin)
        for name in _named(data):
            if name not in KNOWN:
                hint = "save its state_dict() where you trust it; nothing was run"
                raise ConfigError(f"{origin} asks for {name}: more than tensors", hint=hint)
    except DAMAGE as error:
        raise ConfigError(f"{origin} is damaged: {error or type(error).__name__}") from error
    try:
        with torch.serialization.safe_globals([(_Score, name) for name in NUMPY]):
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle makes the unpickler raise whatever it likes
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{origin} cannot be read as a file of tensors: {first}") from error


def _check_archive(data: bytes, *, origin: str) -> None:
    """Refuse a zip that unfolds to more than it is: `torch.save` only stores, it never compresses."""
    if not data.startswith(ZIP):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise ConfigError(f"{origin} is a TorchScript program, not a file of weights")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ConfigError(f"{origin} is a zip that holds two files of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ConfigError(f"{origin} is a compressed zip; torch.save writes none")
    if sum(entry.file_size for entry in entries) > len(data) or len(entries) > MAX_TENSORS:
        raise ConfigError(f"{origin} is a zip of {len(entries)} entries that claim more than its {len(data)} bytes")


def _named(data: bytes) -> Iterator[str]:
    """What the pickles of a file want called, as `module.function`."""
    for stream in _pickles(data):
        for opcode, value, _ in pickletools.genops(stream):
            if opcode.name == "GLOBAL":
                yield str(value).replace(" ", ".", 1)
            elif opcode.name in NAMING:
                yield f"a function by {opcode.name}"


def _pickles(data: bytes) -> Iterator[io.BytesIO]:
    """A stream at the beginning of each pickle of a file; reading one to its end leads to the next."""
    if not data.startswith(ZIP):
        yield from [io.BytesIO(data)] * LEGACY_PICKLES
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                yield io.BytesIO(archive.read(name))


def _weights_in(loaded: Any, *, origin: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The dict of tensors in what was loaded, and the names of what stood beside it."""
    left_out: tuple[str, ...] = ()
    if isinstance(loaded, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(loaded.get(wrapper), Mapping):
                left_out = tuple(str(name) for name in loaded if name != wrapper)
                loaded = loaded[wrapper]
                break
    if not isinstance(loaded, Mapping) or not loaded:
        raise ConfigError(f"{origin} holds no dict of tensors")
    strangers = [name for name, value in loaded.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strangers:
        said = ", ".join(map(repr, strangers[:5]))
        raise ConfigError(f"{origin}: not every entry is a tensor: {said}", hint=f"known wrappers: {WRAPPERS}")
    if all(name.startswith(PARALLEL) for name in loaded):
        loaded = {name.removeprefix(PARALLEL): value for name, value in loaded.items()}
    return _checked(dict(loaded), origin=origin), left_out


def _checked(tensors: dict[str, Tensor], *, origin: str) -> dict[str, Tensor]:
    """Plain dense tensors, none larger than the memory it was read into."""
    if len(tensors) > MAX_TENSORS or not tensors:
        raise ConfigError(f"{origin} has {len(tensors)} tensors; 1 to {MAX_TENSORS} are possible")
    for name, tensor in tensors.items():
        if len(name) > _MAX_NAME:
            raise ConfigError(f"{origin}: a name of {len(name)} characters: {name[:40]}...")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _PLAIN:
            raise ConfigError(f"{origin}: {name} is no plain tensor: {tensor.layout}, {tensor.device}, {tensor.dtype}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(f"{origin}: {name} repeats a few numbers as {tuple(tensor.shape)}")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > _MAX_BYTES:
        raise ConfigError(f"{origin} unfolds to more than {_MAX_BYTES} bytes of tensors")
    return {name: tensor.detach() for name, tensor in tensors.items()}
