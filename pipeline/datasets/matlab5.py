"""Variables of MATLAB files (version 5 to 7.2), in which several data sets keep their labels.

SciPy's reader builds arrays of numbers, text and structures and nothing else: it runs no code, resolves no names and
does not unpickle; functions and classes in a file come out as their bytes. Files of version 7.3 are HDF5 and refused.
"""

import io
from typing import Any

import numpy.typing as npt
from scipy.io import loadmat

from pipeline.datasets.layout import not_there
from pipeline.errors import LabelError
from pipeline.store import objects
from pipeline.store.url import Url


def variable(data: bytes, wanted: str, *, name: str) -> npt.NDArray[Any]:
    """Read one variable of a file; everything is at least two-dimensional, as in MATLAB, and structures are records.

    Args:
        data: the file.
        wanted: name of the variable.
        name: of the file, for messages.

    Raises:
        LabelError: the file is damaged or of another kind, or has no such variable.
    """
    try:
        found: dict[str, npt.NDArray[Any]] = loadmat(
            io.BytesIO(data),  # type: ignore[arg-type]  # the stubs know paths only
            variable_names=[wanted],
        )
    except Exception as error:  # SciPy raises whatever the damage leads to, and lists none of it
        raise LabelError(f"the label {name} is no MATLAB file of version 5 to 7.2: {error}") from error
    if wanted not in found:
        raise LabelError(f"the label {name} has no variable {wanted!r}")
    return found[wanted]


def listed(root: Url, path: str, wanted: str) -> npt.NDArray[Any]:
    """Read one variable of a file that the set cannot be listed without.

    Raises:
        ConfigError: the file is not there.
        LabelError: as `variable`.
    """
    try:
        data = objects.read_bytes(root / path)
    except FileNotFoundError as error:
        raise not_there(root, path) from error
    return variable(data, wanted, name=path)
