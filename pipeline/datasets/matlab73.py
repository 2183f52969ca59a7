"""Arrays in MATLAB files of version 7.3, which are HDF5: too large to fetch, so they are read in pieces where they lie.

Nothing in a file can make us read another one: what is kept outside it is refused.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline import optional
from pipeline.errors import InputError, StorageError
from pipeline.store import objects
from pipeline.store.url import Url

if TYPE_CHECKING:
    import h5py

_MAX_MIB = 256
"""Decoded size of one image or label, at most: a damaged or hostile file can announce any."""


def require_h5py() -> Any:
    """Import h5py, which is an optional package.

    Raises:
        ConfigError: it is not installed.
    """
    with optional.package("h5py", extra="datasets", needed_by="reading MATLAB files of version 7.3"):
        import h5py  # noqa: PLC0415
    return h5py


@contextmanager
def opened(root: Url, path: str) -> Iterator["h5py.File"]:
    """Open a file; what is read inside is fetched then.

    Raises:
        ConfigError: h5py is not installed.
        InputError: it is not there, is no such file, or what is read inside is not there or damaged.
    """
    h5py = require_h5py()
    try:
        with objects.open_read(root / path) as stream, h5py.File(stream, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError("not_found", f"{path} is not in {root}") from error
    except StorageError as error:
        raise objects.as_input_error(error) from error
    except (OSError, LookupError, RuntimeError, ValueError, TypeError) as error:  # what h5py makes of damage
        raise InputError("corrupt", f"{path} cannot be read as MATLAB 7.3: {error}") from error


def read_piece(file: "h5py.File", name: str, index: int) -> npt.NDArray[Any]:
    """Read `name[index]` with its axes in MATLAB's order: HDF5 has them reversed. Run within `opened`.

    `name[index]` is the array itself, or a reference to it, as MATLAB stores cells and structs.
    """
    pieces = _inside(file, name)
    if pieces.dtype == require_h5py().ref_dtype:
        return _load(_inside(file, pieces[index].item()), ())
    return _load(pieces, index)


def _inside(file: "h5py.File", name: "str | h5py.Reference") -> "h5py.Dataset":
    """Look an array up; what is kept outside the file is refused, before h5py opens that or crashes over it."""
    found = file[name]
    if not isinstance(found, require_h5py().Dataset):
        raise InputError("corrupt", f"{name} is no array")
    if found.file != file or found.external or found.is_virtual:
        raise InputError("corrupt", f"{found.name} is kept in another file")
    return found


def _load(dataset: "h5py.Dataset", index: int | tuple[()]) -> npt.NDArray[Any]:
    shape = dataset.shape if index == () else dataset.shape[1:]
    size_mib = math.prod(shape) * dataset.dtype.itemsize / 2**20
    if size_mib > _MAX_MIB:
        raise InputError("too_many_bytes", f"{dataset.name} announces {size_mib:.0f} MiB, limit {_MAX_MIB} MiB")
    return np.asarray(dataset[index]).T
