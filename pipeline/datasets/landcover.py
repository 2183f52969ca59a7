"""LandCover.ai v1: buildings, woodland, water and roads of Poland from the air, 0.25 or 0.5 m per pixel.

Boguszewski et al. 2021. The root holds what `landcover.ai.v1.zip` unpacks to:

    images/M-33-20-D-c-4-2.tif    masks/M-33-20-D-c-4-2.tif    41 scenes of up to 9500x9000 pixels, 5 km2 each
    train.txt  val.txt  test.txt                               names of tiles, e.g. M-33-20-D-c-4-2_17
    split.py                                                   cuts the scenes into tiles of 512 pixels

Tiles are cut here as split.py does: numbered row by row from 0, a number being spent on each incomplete tile of the
right and lower edge too. So its output folder is not needed, and a tile has the pixels of the scene, without the JPEG
compression that split.py adds. Version 1.0 of the masks has no roads: then class 4 is on no pixel.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from pipeline.datasets import picture
from pipeline.datasets.layout import DatasetLayout, Labelled, ListedExample, decode_ids, fetch, fetch_listing
from pipeline.errors import ConfigError, LabelError
from pipeline.image.labels import from_ids
from pipeline.records import UInt8
from pipeline.store.url import Url

_TILE_PX = 512
_IDS = {value: value for value in range(5)}
_TILE = re.compile(r"(?P<scene>[\w.-]+)_(?P<number>\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class LandCover(DatasetLayout):
    """Keys are `<split>/<scene>_<number>`. Image and label are the tile cut out of the scene's."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List the tiles of `<split>.txt`, those of a scene one after another: `read` keeps the last scene in memory.

        Raises:
            ConfigError: also when a line is no tile's name.
        """
        self.check_split(split)
        lines = fetch_listing(root, f"{split}.txt").split()
        return sorted((_example(split, line) for line in lines), key=lambda one: one.key)

    def label(self, root: Url, one: ListedExample) -> UInt8:
        """Cut the tile out of the scene's mask."""
        return _cut(_mask(root, one.label_file), one)

    def read(self, root: Url, one: ListedExample) -> Labelled:
        """Cut the tile out of both; the image becomes a PNG. Up to 350 MB stay in memory for the scene's next tile."""
        pixels_hwc, label_hw = _image(root, one.image), _mask(root, one.label_file)
        if pixels_hwc.shape[:2] != label_hw.shape:
            raise LabelError(
                f"the label {one.label_file} has {label_hw.shape} pixels, its image {pixels_hwc.shape[:2]}"
            )
        return Labelled(one.key, picture.encode_png(_cut(pixels_hwc, one)), _cut(label_hw, one))


def _example(split: str, line: str) -> ListedExample:
    found = _TILE.fullmatch(line)
    if not found:
        raise ConfigError(f"{split}.txt has the line {line!r}, which is not <scene>_<number>")
    scene = found["scene"]
    return ListedExample(f"{split}/{line}", f"images/{scene}.tif", f"masks/{scene}.tif", (found["number"],))


@lru_cache(maxsize=1)
def _image(root: Url, path: str) -> UInt8:
    """(H, W, 3) of the scene that was asked for last."""
    return picture.decode_picture(fetch(root, path), name=path)


@lru_cache(maxsize=1)
def _mask(root: Url, path: str) -> UInt8:
    """(H, W) of the scene that was asked for last."""
    return from_ids(decode_ids(fetch(root, path), name=path), _IDS, name=path)


def _cut(scene: UInt8, one: ListedExample) -> UInt8:
    """The tile of a scene's image (H, W, 3) or mask (H, W)."""
    height, width = scene.shape[:2]
    row, column = divmod(int(one.more[0]), math.ceil(width / _TILE_PX))
    top, left = row * _TILE_PX, column * _TILE_PX
    if top + _TILE_PX > height or left + _TILE_PX > width:
        raise LabelError(f"{one.key} is no complete tile of its scene, which has {height}x{width} pixels")
    return scene[top : top + _TILE_PX, left : left + _TILE_PX].copy()


LANDCOVER = LandCover(
    name="landcover",
    palette="landcover",
    splits=("train", "val", "test"),
    source="https://landcover.ai.linuxpolska.com",
    license="CC BY-NC-SA 4.0",
)
