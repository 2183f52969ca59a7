"""Name of a tar member: its sample, and whether it is the sample's image, its label, or something beside them.

In: a member's name. Out: a `MemberName`, or the reason why the member belongs to no sample. Only names are looked at,
so the keys of a tar do not depend on its pixels. The rule and its reasons: docs/decisions/015-names-with-dots.md.
"""

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.source.shard import suffix_of

IMAGES = ("jpg", "jpeg", "webp", "tif", "tiff", "bmp", "png")
"""Suffixes of images."""
COMPANIONS = ("json", "txt", "cls")
"""Suffixes of other members that belong to a sample. All others, such as .pkl, are ignored and counted."""
AUXILIARY = frozenset(
    (
        *(
            "annotation",
            "annotations",
            "gt",
            "groundtruth",
            "instance",
            "instances",
            "label",
            "labels",
            "mask",
            "masks",
        ),
        *("panoptic", "seg", "segm", "segmentation", "semantic", "depth", "disp", "disparity"),
        *("icon", "preview", "quicklook", "thumb", "thumbnail", "thumbs"),
    )
)
"""Words between two dots that name a label or a preview: `a.seg.png`, `a.thumb.jpg` are never images."""

HIDDEN, UNSAFE, NOT_A_FILE = "(hidden)", "(unsafe name)", "(not a plain file)"
"""Reasons that are no suffix."""

_MAX_NAME = 4096
"""Most characters of a member's name: PATH_MAX of Linux."""
_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
"""Base name and extension, split at the first dot of the last path component."""


@dataclass(frozen=True, slots=True)
class MemberName:
    """Name of a member, taken apart: `d/a.left.PNG` is an image `d/a.left` of the group `d/a`."""

    role: Literal["image", "label", "auxiliary", "companion"]
    base: str
    """Name up to the first dot of its last component: members of one group."""
    stem: str
    """Name without its suffix, or without the extension of labels: the image and the label of one sample."""
    extension: str
    """All after the first dot, in lower case."""
    suffix: str
    """Image: all after the last dot, in lower case. Label: the extension of labels that it has."""


def parse_name(name: str, labels: tuple[str, ...]) -> MemberName | str:
    """Take a name apart; the name of a member that belongs to no sample gives the reason.

    Args:
        name: name of the member.
        labels: extensions of labels in lower case, such as `png` or `seg.png`; empty where no labels are read.
    """
    if len(name) > _MAX_NAME or name.startswith("/") or ".." in name.split("/"):
        return UNSAFE
    split, suffix = _SAMPLE.fullmatch(name), suffix_of(name)[1:]
    if split is None:
        return HIDDEN if name.rpartition("/")[2].startswith(".") else suffix_of(name)
    if suffix not in IMAGES + COMPANIONS:
        return suffix_of(name)
    base, extension = split[1], split[2].lower()
    for label in labels:
        if f".{extension}".endswith(f".{label}"):
            return MemberName("label", base, name[: -len(label) - 1], extension, label)
    stem = name[: -len(suffix) - 1]
    if suffix not in IMAGES:
        return MemberName("companion", base, stem, extension, suffix)
    word = stem[len(base) :].rpartition(".")[2].lower()
    return MemberName("auxiliary" if word in AUXILIARY else "image", base, stem, extension, suffix)
