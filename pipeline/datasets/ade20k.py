"""ADE20K as cut for the MIT Scene Parsing Benchmark: 150 classes of scenes indoors and out.

The root holds what ADEChallengeData2016.zip unpacks to:

    ADEChallengeData2016/  images/{training,validation}/*.jpg  annotations/{training,validation}/*.png

Labels are grey PNGs: 1 to 150 are the classes, which become 0 to 149, and 0 is everything else, which is ignored.
"""

from pipeline.datasets.layout import DatasetLayout, ListedExample, decode_ids, fetch, file_stem, files_below
from pipeline.image.labels import from_ids
from pipeline.records import UInt8
from pipeline.store.url import Url

_TOP = "ADEChallengeData2016"
_FOLDERS = {"train": "training", "val": "validation"}


class ADE20K(DatasetLayout):
    """Layout of the 150 classes of the benchmark: 20,210 training and 2,000 validation images."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        folder = _FOLDERS[split]
        labels = files_below(root, f"{_TOP}/annotations/{folder}", ".png")
        return [
            ListedExample(f"{split}/{file_stem(label)}", f"{_TOP}/images/{folder}/{file_stem(label)}.jpg", label)
            for label in labels
        ]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one grey PNG."""
        raw_hw = decode_ids(fetch(root, example.label_file), name=example.label_file)
        table = {0: self.classes.ignore_id} | {k + 1: k for k in range(len(self.classes))}
        return from_ids(raw_hw, table, name=example.label_file)


SCENE_PARSING = ADE20K(
    name="ade20k",
    palette="ade20k",
    splits=("train", "val"),
    source="http://sceneparsing.csail.mit.edu/",
    license="annotations BSD 3-Clause; images for non-commercial research and education",
)
