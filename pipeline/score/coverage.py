"""Label coverage: classes without a labelled pixel, the ignored share, and the number of classes behind a mean.

In: labelled pixels of each class. Out: numbers, and one text that stands beside every mean. A mean IoU leaves out a
class that occurs in neither labels nor masks (Everingham 2010, IJCV 88), so that 1.0 can rest on one class of ten.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.classes import ClassMap
from pipeline.errors import LabelError
from pipeline.records import Int64
from pipeline.score.metrics import Scores

SHOWN = 8
"""Names of classes in one text; the others are counted."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Pixels of a set of labels."""

    names: Sequence[str]
    """(K,) names of the classes."""
    support_k: Int64
    """(K,) labelled pixels of each class."""
    pixels: int
    """All pixels of the labels, those that are ignored included."""

    @property
    def unlabelled(self) -> list[str]:
        """Names of the classes without a labelled pixel."""
        return unlabelled_classes(self.names, self.support_k)

    @property
    def ignored_share(self) -> float:
        """Share of the pixels that no class has, 0 to 1."""
        return 1 - float(self.support_k.sum()) / self.pixels if self.pixels else 0.0

    def __str__(self) -> str:
        """Text such as `labels of 2 of 3 classes, none of: weed; 13.9 % of their pixels are ignored`."""
        count = len(self.names) - len(self.unlabelled)
        text = f"labels of {count} of {len(self.names)} classes"
        text += f", none of: {listed(self.unlabelled)}" if self.unlabelled else ""
        return text + f"; {self.ignored_share:.1%} of their pixels are ignored"

    def check(self, *, max_ignored: float, classes: ClassMap, option: str) -> None:
        """Refuse labels from which no network learns, since one answer everywhere would be right.

        Args:
            max_ignored: largest share of ignored pixels, 0 to 1.
            classes: class map of the labels.
            option: flag that maps values of label files to class ids, for the hint.

        Raises:
            LabelError: only one class of several occurs, or more pixels are ignored; says which and how to map values.
        """
        only = [name for name in self.names if name not in self.unlabelled]
        ignored = self.ignored_share
        if len(self.names) > 1 and len(only) <= 1:
            seen = f"all labelled pixels are of the class {only[0]!r}" if only else "no label has a pixel of a class"
        elif ignored > max_ignored:
            seen = f"{ignored:.1%} of the pixels are ignored, limit {max_ignored:.1%}"
        else:
            return
        value = classes.ignore_id
        hint = (
            f"{value} in a label means ignored; if it is a class, map the values of the files: {option} 0 0 {value} 1"
        )
        raise LabelError(f"{seen}: {self}", hint=f"{hint} (value, class id)")


def unlabelled_classes(names: Sequence[str], support_k: Iterable[float]) -> list[str]:
    """Names of the classes without a labelled pixel; both arguments are by class id."""
    return [name for name, count in zip(names, support_k, strict=True) if not count]


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def mean_over(scores: Scores, names: Sequence[str]) -> str:
    """Classes behind a mean IoU: ` over 2 of 3 classes, no label of: weed`, or nothing where all have labels.

    Args:
        scores: of one sum of counts, (K, K + 1).
        names: (K,) names of the classes.
    """
    missing = unlabelled_classes(names, scores.support)
    scored = int(scores.classes_scored)
    if scored == len(names) and not missing:
        return ""
    absent = f", no label of: {listed(missing)}" if missing else ""
    return f" over {scored} of {len(names)} classes{absent}"
