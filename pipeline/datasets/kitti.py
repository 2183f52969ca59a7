"""KITTI semantic segmentation: 200 images of the streets of Karlsruhe, labelled as Cityscapes is.

The root holds data_semantics.zip, unpacked into a folder of its name:

    data_semantics/training/  image_2/000000_10.png  semantic/000000_10.png

Labels are grey PNGs of Cityscapes' ids. The labels of the testing folder are withheld, and there is no official
validation split.
"""

from pipeline.datasets.cityscapes import TRAIN_IDS
from pipeline.datasets.layout import DatasetLayout, ListedExample, decode_ids, fetch, file_stem, files_below
from pipeline.image.labels import from_ids
from pipeline.records import UInt8
from pipeline.store.url import Url

_TRAINING = "data_semantics/training"


class Kitti(DatasetLayout):
    """Layout of KITTI, with the 19 classes of Cityscapes."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List the training images, which alone have labels."""
        self.check_split(split)
        labels = files_below(root, f"{_TRAINING}/semantic", ".png")
        return [
            ListedExample(f"{split}/{file_stem(label)}", f"{_TRAINING}/image_2/{file_stem(label)}.png", label)
            for label in labels
        ]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one grey PNG."""
        return from_ids(
            decode_ids(fetch(root, example.label_file), name=example.label_file), TRAIN_IDS, name=example.label_file
        )


KITTI = Kitti(
    name="kitti",
    palette="cityscapes",
    splits=("train",),
    source="https://www.cvlibs.net/datasets/kitti/eval_semseg.php",
    license="CC BY-NC-SA 3.0",
)
