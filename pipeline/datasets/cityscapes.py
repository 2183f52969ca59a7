"""Cityscapes: streets of 50 towns, finely and coarsely labelled.

The root holds what leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack to, and for the coarse labels
leftImg8bit_trainextra.zip and gtCoarse.zip:

    leftImg8bit/{train,val,train_extra}/<town>/<town>_000000_000019_leftImg8bit.png
    gtFine/{train,val}/<town>/<town>_000000_000019_gtFine_labelIds.png
    gtCoarse/{train,train_extra,val}/<town>/<town>_000000_000019_gtCoarse_labelIds.png

Label files hold ids 0 to 33, of which 19 are classes; the others, and number plates (-1, which is 255 in eight bits),
are ignored. Where a copy has no *_labelIds.png its *_labelTrainIds.png are read: 0 to 18, and 255. The labels of the
test split are withheld (its files say "out of the region of interest" everywhere), so it is not one of ours. One image
of `train_extra`, troisdorf_000000_000073, is published black.
"""

from dataclasses import dataclass

from pipeline.datasets.layout import DatasetLayout, ListedExample, decode_ids, fetch, files_below
from pipeline.errors import ConfigError
from pipeline.image.labels import from_ids
from pipeline.records import UInt8
from pipeline.store.url import Url

_EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Ids that are classes, in the order of their train ids: helpers/labels.py of cityscapesScripts."""
IGNORED = 255
TRAIN_IDS: dict[int, int] = (
    dict.fromkeys((*range(34), IGNORED), IGNORED)
    | {raw: train_id for train_id, raw in enumerate(_EVALUATED)}
)  # fmt: skip
"""Class of every value of a *_labelIds.png."""
_OWN_IDS = {k: k for k in (*range(len(_EVALUATED)), IGNORED)}
"""Class of every value of a *_labelTrainIds.png."""


@dataclass(frozen=True)
class Cityscapes(DatasetLayout):
    """Layout of Cityscapes, with the 19 classes that are evaluated."""

    annotation: str = "gtFine"
    """Folder of the labels, which is also in their file names."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        labels = self._labels(root, split)
        return [self._example(split, label) for label in labels]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one PNG of ids or train ids."""
        raw_hw = decode_ids(fetch(root, example.label_file), name=example.label_file)
        return from_ids(
            raw_hw, _OWN_IDS if example.label_file.endswith("TrainIds.png") else TRAIN_IDS, name=example.label_file
        )

    def _labels(self, root: Url, split: str) -> list[str]:
        folder = f"{self.annotation}/{split}"
        try:
            return files_below(root, folder, "_labelIds.png")
        except ConfigError as missing:
            try:
                return files_below(root, folder, "_labelTrainIds.png")
            except ConfigError:
                raise missing from None

    def _example(self, split: str, label: str) -> ListedExample:
        town, file = label.split("/")[-2:]
        name, _, _ = file.partition(f"_{self.annotation}_")
        return ListedExample(f"{split}/{name}", f"leftImg8bit/{split}/{town}/{name}_leftImg8bit.png", label)


_SOURCE, _LICENSE = "https://www.cityscapes-dataset.com/", "non-commercial; not to be passed on"
FINE = Cityscapes(name="cityscapes", palette="cityscapes", splits=("train", "val"), source=_SOURCE, license=_LICENSE)
COARSE = Cityscapes(
    name="cityscapes_coarse",
    palette="cityscapes",
    splits=("train", "train_extra", "val"),
    source=_SOURCE,
    license=_LICENSE,
    annotation="gtCoarse",
)
