"""Reader of MATLAB files: version 5 to 7.2 whole, by SciPy; version 7.3, which is HDF5, one array at a time, by h5py.

SciPy builds arrays of numbers, text and structures; it runs no code, and functions and classes come out as their bytes.
Files of version 7.3 are too large to download, so each array is fetched when it is read; an array that is stored in
another file is refused.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat

from pipeline import optional
from pipeline.datasets.layout import missing_file_error
from pipeline.errors import InputError, LabelError, StorageError
from pipeline.store import objects
from pipeline.store.url import Url

if TYPE_CHECKING:
    import h5py

_MAX_MIB = 256
"""Largest decoded size of one image or label: a damaged or hostile file can announce any size."""


# ---------------------------------------------------------------- version 5 to 7.2


def read_variable(data: bytes, variable: str, *, name: str) -> npt.NDArray[Any]:
    """Read one variable of a file; every array has two axes or more, as in MATLAB, and structures are records.

    Args:
        data: content of the file.
        variable: name of the variable.
        name: name of the file, for messages.

    Raises:
        LabelError: the file is damaged or of another version, or has no such variable.
    """
    try:
        variables: dict[str, npt.NDArray[Any]] = loadmat(
            io.BytesIO(data),  # type: ignore[arg-type]  # the stubs accept only paths
            variable_names=[variable],
        )
    except Exception as error:  # SciPy raises many types on damaged data, and lists none of them
        raise LabelError(f"the label {name} is not a MATLAB file of version 5 to 7.2: {error}") from error
    if variable not in variables:
        raise LabelError(f"the label {name} has no variable {variable!r}")
    return variables[variable]


def fetch_variable(root: Url, path: str, variable: str) -> npt.NDArray[Any]:
    """Read one variable of a file that is needed to list the data set.

    Raises:
        ConfigError: the file does not exist.
        LabelError: as `read_variable`.
    """
    try:
        data = objects.read_bytes(root / path)
    except FileNotFoundError as error:
        raise missing_file_error(root, path) from error
    return read_variable(data, variable, name=path)


# ---------------------------------------------------------------- version 7.3


def require_h5py() -> Any:
    """Import h5py, an optional package.

    Raises:
        ConfigError: h5py is not installed.
    """
    with optional.package("h5py", extra="datasets", needed_by="reading MATLAB files of version 7.3"):
        import h5py  # noqa: PLC0415
    return h5py


@contextmanager
def open_hdf5(root: Url, path: str) -> Iterator["h5py.File"]:
    """Open a file of version 7.3; arrays are fetched when they are read within this context.

    Raises:
        ConfigError: h5py is not installed.
        InputError: the file does not exist or is damaged, or has no array that is read within this context.
    """
    h5py = require_h5py()
    try:
        with objects.open_read(root / path) as stream, h5py.File(stream, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError("not_found", f"{path} is not in {root}") from error
    except StorageError as error:
        raise objects.as_input_error(error) from error
    except (OSError, LookupError, RuntimeError, ValueError, TypeError) as error:  # h5py's, on damaged data
        raise InputError("corrupt", f"{path} cannot be read as MATLAB 7.3: {error}") from error


def read_piece(file: "h5py.File", name: str, index: int) -> npt.NDArray[Any]:
    """Read `name[index]` with its axes in MATLAB's order, which HDF5 reverses. Call it within `open_hdf5`.

    `name[index]` is the array itself, or a reference to it, as MATLAB stores cells and structures.
    """
    pieces = _dataset(file, name)
    if pieces.dtype == require_h5py().ref_dtype:
        return _load(_dataset(file, pieces[index].item()), ())
    return _load(pieces, index)


def _dataset(file: "h5py.File", name: "str | h5py.Reference") -> "h5py.Dataset":
    """Look an array up; one that is stored in another file is refused, before h5py opens that file or crashes."""
    dataset = file[name]
    if not isinstance(dataset, require_h5py().Dataset):
        raise InputError("corrupt", f"{name} is not an array")
    if dataset.file != file or dataset.external or dataset.is_virtual:
        raise InputError("corrupt", f"{dataset.name} is stored in another file")
    return dataset


def _load(dataset: "h5py.Dataset", index: int | tuple[()]) -> npt.NDArray[Any]:
    shape = dataset.shape if index == () else dataset.shape[1:]
    size_mib = math.prod(shape) * dataset.dtype.itemsize / 2**20
    if size_mib > _MAX_MIB:
        raise InputError("too_many_bytes", f"{dataset.name} announces {size_mib:.0f} MiB, limit {_MAX_MIB} MiB")
    return np.asarray(dataset[index]).T
