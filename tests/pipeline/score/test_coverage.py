"""Beside every mean stands how many classes it is over, and labels that teach nothing are refused with the remedy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classes import ClassMap
from pipeline.errors import LabelError
from pipeline.score.coverage import Coverage, listed, mean_over
from pipeline.score.metrics import Scores, weights_without

NAMES = ("soil", "weed", "crop")
CLASSES = ClassMap.model_validate(
    {"name": "field", "classes": [{"name": name, "colour": (index, 0, 0)} for index, name in enumerate(NAMES)]}
)
counts = st.lists(st.integers(0, 3), min_size=12, max_size=12).map(lambda cells: np.array(cells).reshape(3, 4))


def labelled(*support: int, pixels: int = 100) -> Coverage:
    return Coverage(NAMES, np.array(support), pixels)


@given(counts)
def test_a_mean_over_every_class_says_nothing_and_any_other_says_its_number(table: np.ndarray) -> None:
    scores = Scores(table)
    defined = int((~np.isnan(scores.iou)).sum())
    unlabelled = [name for name, pixels in zip(NAMES, table.sum(axis=1), strict=True) if not pixels]
    text = mean_over(scores, NAMES)
    assert (text == "") is (not unlabelled)
    if unlabelled:
        assert text == f" over {defined} of 3 classes, no label of: {', '.join(unlabelled)}"


def test_a_class_that_a_weight_excludes_is_not_counted() -> None:
    scores = Scores(np.eye(3, 4, dtype=np.int64), weights_without(3, 0))
    assert mean_over(scores, NAMES) == " over 2 of 3 classes"


@given(counts, st.integers(0, 50))
def test_coverage_adds_up_to_all_pixels(table: np.ndarray, ignored: int) -> None:
    total = int(table.sum()) + ignored
    coverage = Coverage(NAMES, table.sum(axis=1), total)
    assert coverage.ignored_share * total == pytest.approx(ignored)
    assert set(coverage.unlabelled) == {name for name, row in zip(NAMES, table, strict=True) if not row.any()}


def test_the_text_names_classes_without_a_label_and_the_ignored_share() -> None:
    assert str(labelled(60, 0, 26)) == "labels of 2 of 3 classes, none of: weed; 14.0% of their pixels are ignored"
    assert str(labelled(50, 25, 25)) == "labels of 3 of 3 classes; 0.0% of their pixels are ignored"


@pytest.mark.parametrize(
    ("support", "seen"),
    [
        ((86, 0, 0), "all labelled pixels are of the class 'soil'"),
        ((0, 0, 9), "all labelled pixels are of the class 'crop'"),
        ((0, 0, 0), "no label has a pixel of a class"),
        ((2, 1, 1), "96.0% of the pixels are ignored, limit 95.0%"),
    ],
)
def test_labels_from_which_no_network_learns_are_refused_with_the_remedy(support: tuple[int, ...], seen: str) -> None:
    with pytest.raises(LabelError, match=seen) as refusal:
        labelled(*support).check(max_ignored=0.95, classes=CLASSES, option="--sets.label-ids")
    assert "--sets.label-ids 0 0 255 1" in refusal.value.hint


@pytest.mark.parametrize("support", [(3, 2, 0), (90, 5, 5)])
def test_labels_of_two_classes_are_accepted_up_to_the_limit(support: tuple[int, ...]) -> None:
    labelled(*support).check(max_ignored=0.95, classes=CLASSES, option="")


def test_one_class_is_all_that_a_map_of_one_class_can_have() -> None:
    Coverage(("field",), np.array([5]), 5).check(max_ignored=0.95, classes=CLASSES, option="")


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    assert listed([str(index) for index in range(11)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
