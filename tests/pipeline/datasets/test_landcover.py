"""LandCover.ai in miniature: two scenes, tiles numbered as its split.py numbers them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.landcover import LANDCOVER
from pipeline.errors import ConfigError, InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import put

WIDE, TALL = "M-33-20-D-c-4-2", "N-34-97-C-b-1-2"
SIZES = {WIDE: (520, 1300), TALL: (1100, 530)}


def tif(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "TIFF", compression="tiff_lzw")
    return out.getvalue()


def scene(name: str) -> tuple[np.ndarray, np.ndarray]:
    height, width = SIZES[name]
    y, x = np.mgrid[:height, :width]
    image = np.dstack([y % 251, x % 241, (y // 64 + x // 64) % 256]).astype(np.uint8)
    return image, ((y // 32 + x // 32) % 5).astype(np.uint8)


def tiles_of_split_py(name: str) -> dict[int, tuple[slice, slice]]:
    """What the set's own script writes: every position takes a number, complete ones give a file."""
    height, width = SIZES[name]
    corners = [(top, left) for top in range(0, height, 512) for left in range(0, width, 512)]
    return {
        number: (slice(top, top + 512), slice(left, left + 512))
        for number, (top, left) in enumerate(corners)
        if top + 512 <= height and left + 512 <= width
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in SIZES:
        image, mask = scene(name)
        put(tmp_path, f"images/{name}.tif", tif(image))
        put(tmp_path, f"masks/{name}.tif", tif(mask))
    names = [f"{name}_{number}" for name in SIZES for number in tiles_of_split_py(name)]
    put(tmp_path, "train.txt", "\r\n".join(reversed(names)) + "\r\n")
    put(tmp_path, "val.txt", f"{WIDE}_0\n")
    put(tmp_path, "test.txt", f"{WIDE}_2\n{TALL}_9\n")
    return tmp_path


def test_tiles_are_those_that_split_py_writes(root: Path) -> None:
    examples = LANDCOVER.examples(Url(str(root)), "train")
    wanted = [(name, number) for name in SIZES for number in tiles_of_split_py(name)]
    assert [one.key for one in examples] == [f"train/{name}_{number}" for name, number in wanted]
    assert [number for name, number in wanted if name == TALL] == [0, 2]  # 1 and 3 are the strip at the right
    for one, (name, number) in zip(examples, wanted, strict=True):
        image, mask = scene(name)
        window = tiles_of_split_py(name)[number]
        read = LANDCOVER.read(Url(str(root)), one)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(read.image))), image[window])
        np.testing.assert_array_equal(read.label_hw, mask[window])
        np.testing.assert_array_equal(LANDCOVER.label(Url(str(root)), one), mask[window])


def test_a_scene_is_decoded_once_for_all_its_tiles(root: Path) -> None:
    examples = LANDCOVER.examples(Url(str(root)), "train")
    LANDCOVER.read(Url(str(root)), examples[0])
    (root / f"images/{WIDE}.tif").unlink()
    assert LANDCOVER.read(Url(str(root)), examples[1]).key == f"train/{WIDE}_1"
    LANDCOVER.read(Url(str(root)), examples[2])  # another scene takes its place
    with pytest.raises(InputError, match="not_found"):
        LANDCOVER.read(Url(str(root)), examples[0])


def test_an_incomplete_or_impossible_tile_is_refused(root: Path) -> None:
    for one in LANDCOVER.examples(Url(str(root)), "test"):
        with pytest.raises(LabelError, match=f"{one.key} is not a complete tile of its scene"):
            LANDCOVER.read(Url(str(root)), one)


@pytest.mark.parametrize("line", ["M-33-20-D-c-4-2", "../../secret_1", "a_-1", "a_1.jpg"])
def test_a_line_that_is_no_tile_is_refused(root: Path, line: str) -> None:
    put(root, "val.txt", f"{WIDE}_0\n{line}\n")
    with pytest.raises(ConfigError, match=r"val\.txt has the line"):
        LANDCOVER.examples(Url(str(root)), "val")


def test_an_odd_value_of_a_mask_is_named(root: Path) -> None:
    mask = scene(WIDE)[1]
    mask[519, 7] = 5
    put(root, f"masks/{WIDE}.tif", tif(mask))
    with pytest.raises(LabelError, match=rf"{WIDE}\.tif has the value 5 on 1"):
        LANDCOVER.read(Url(str(root)), LANDCOVER.examples(Url(str(root)), "val")[0])


def test_a_mask_of_another_size_is_refused(root: Path) -> None:
    put(root, f"masks/{WIDE}.tif", tif(scene(TALL)[1]))
    with pytest.raises(LabelError, match=r"\(1100, 530\) pixels, its image \(520, 1300\)"):
        LANDCOVER.read(Url(str(root)), LANDCOVER.examples(Url(str(root)), "val")[0])


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"cut short", "corrupt"), (tif(np.zeros((520, 1300), np.uint16)), "band_mismatch")],
)
def test_an_image_that_cannot_be_cut_fails_alone(root: Path, data: bytes, code: str) -> None:
    put(root, f"images/{WIDE}.tif", data)
    with pytest.raises(InputError, match=rf"{code}: images/{WIDE}\.tif"):
        LANDCOVER.read(Url(str(root)), LANDCOVER.examples(Url(str(root)), "val")[0])
