"""Files of which miniatures of official downloads are made: labels as PNGs, photographs, MATLAB structures."""

import io
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

JPEG = b"\xff\xd8 a photograph, which no layout decodes \xff\xd9"


def put(root: Path, path: str, data: bytes | str) -> None:
    """Write a file below the root, with its folders."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def grey_png(ids_hw: np.ndarray) -> bytes:
    return _png(Image.fromarray(np.asarray(ids_hw, np.uint8), "L"))


def palette_png(ids_hw: np.ndarray, palette: bytes) -> bytes:
    picture = Image.fromarray(np.asarray(ids_hw, np.uint8), "L")
    picture.putpalette(palette)
    return _png(picture)


def rgb_png(rgb_hwc: np.ndarray) -> bytes:
    return _png(Image.fromarray(np.asarray(rgb_hwc, np.uint8), "RGB"))


def mat(**variables: object) -> bytes:
    """A compressed MATLAB 5 file; dictionaries become structures, object arrays of them structure arrays."""
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=True)
    return file.getvalue()


def mat_structs(*structs: dict[str, object]) -> np.ndarray:
    """A MATLAB structure array, (1, N)."""
    array = np.empty((1, len(structs)), [(field, object) for field in structs[0]])
    for index, one in enumerate(structs):
        array[0, index] = tuple(one.values())
    return array


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
