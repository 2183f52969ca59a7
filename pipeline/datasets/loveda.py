"""LoveDA: Chinese cities and their countryside from the air, 0.3 m per pixel (Wang et al. 2021).

The root holds what `Train.zip` and `Val.zip` unpack to; the masks of `Test.zip` are not published:

    Train/Rural/images_png/0.png       Train/Rural/masks_png/0.png
    Train/Urban/images_png/1366.png    Train/Urban/masks_png/1366.png
    Val/...

Masks are grey: 0 is no data and is ignored here, 1 to 7 become 0 to 6.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.datasets.layout import DatasetLayout, ListedExample, decode_ids, fetch, files_below
from pipeline.image.labels import from_ids
from pipeline.records import UInt8
from pipeline.store.url import Url

_FOLDERS = {"train": "Train", "val": "Val"}
_IDS = {0: 255} | {value: value - 1 for value in range(1, 8)}


@dataclass(frozen=True)
class LoveDa(DatasetLayout):
    """Keys are `<split>/<scene>/<number>`, e.g. `train/Urban/1366`."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List both scenes."""
        self.check_split(split)
        images = files_below(root, _FOLDERS[split], ".png")
        examples = [_example(split, path) for path in images if "/images_png/" in path]
        return sorted(examples, key=lambda example: example.key)

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Decode the mask and subtract 1 from its ids."""
        return from_ids(
            decode_ids(fetch(root, example.label_file), name=example.label_file), _IDS, name=example.label_file
        )


def _example(split: str, image: str) -> ListedExample:
    path = PurePosixPath(image)
    scene = path.parts[1]
    return ListedExample(f"{split}/{scene}/{path.stem}", image, image.replace("/images_png/", "/masks_png/"))


LOVEDA = LoveDa(
    name="loveda",
    palette="loveda",
    splits=tuple(_FOLDERS),
    source="https://github.com/Junjue-Wang/LoveDA",
    license="CC BY-NC-SA 4.0",
)
