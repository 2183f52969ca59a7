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
        """List the tiles of `<split>.txt`, sorted by scene, because `read` keeps the last scene in memory.

        Raises:
            ConfigError: also if a line is not the name of a tile.
        """
        self.check_split(split)
        lines = fetch_listing(root, f"{split}.txt").split()
        return sorted((_example(split, line) for line in lines), key=lambda example: example.key)

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Cut the tile out of the scene's mask."""
        return _cut(_mask(root, example.label_file), example)

    def read(self, root: Url, example: ListedExample) -> Labelled:
        """Cut the tile out of image and mask; the image becomes a PNG. The scene stays in memory, up to 350 MB."""
        pixels_hwc, label_hw = _image(root, example.image), _mask(root, example.label_file)
        if pixels_hwc.shape[:2] != label_hw.shape:
            raise LabelError(
                f"the label {example.label_file} has {label_hw.shape} pixels, its image {pixels_hwc.shape[:2]}"
            )
        return Labelled(example.key, picture.encode_png(_cut(pixels_hwc, example)), _cut(label_hw, example))


def _example(split: str, line: str) -> ListedExample:
    match = _TILE.fullmatch(line)
    if not match:
        raise ConfigError(f"{split}.txt has the line {line!r}, which is not <scene>_<number>")
    scene = match["scene"]
    return ListedExample(f"{split}/{line}", f"images/{scene}.tif", f"masks/{scene}.tif", (match["number"],))


@lru_cache(maxsize=1)
def _image(root: Url, path: str) -> UInt8:
    """Decode the image of a scene, (H, W, 3); the last one is cached."""
    return picture.decode_picture(fetch(root, path), name=path)


@lru_cache(maxsize=1)
def _mask(root: Url, path: str) -> UInt8:
    """Decode the mask of a scene, (H, W); the last one is cached."""
    return from_ids(decode_ids(fetch(root, path), name=path), _IDS, name=path)


def _cut(scene: UInt8, example: ListedExample) -> UInt8:
    """Cut the tile out of a scene's image (H, W, 3) or mask (H, W)."""
    height, width = scene.shape[:2]
    row, column = divmod(int(example.more[0]), math.ceil(width / _TILE_PX))
    top, left = row * _TILE_PX, column * _TILE_PX
    if top + _TILE_PX > height or left + _TILE_PX > width:
        raise LabelError(f"{example.key} is not a complete tile of its scene, which has {height}x{width} pixels")
    return scene[top : top + _TILE_PX, left : left + _TILE_PX].copy()


LANDCOVER = LandCover(
    name="landcover",
    palette="landcover",
    splits=("train", "val", "test"),
    source="https://landcover.ai.linuxpolska.com",
    license="CC BY-NC-SA 4.0",
)
