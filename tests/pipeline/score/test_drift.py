import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.card import Card
from pipeline.score import drift
from pipeline.score.drift import QUANTITIES, measure_drift, reference_of, stability_index
from tests.support.evaluations import CLASSES, NAMES, evaluation


def verdicts(now, before) -> dict[str, str]:
    return {one.quantity: one.verdict for one in measure_drift(now, {"reference": reference_of(before)}, NAMES)}


shares = st.lists(st.integers(1, 1000), min_size=5, max_size=5).map(lambda counts: np.array(counts) / sum(counts))


@given(shares, shares)
def test_the_index_is_symmetric_and_nothing_only_for_the_same_shares(one, other):
    index = stability_index(one, other)
    assert index == pytest.approx(stability_index(other, one))
    assert index >= 0
    assert stability_index(one, one) == 0


@given(shares, shares)
def test_the_index_is_the_divergence_of_both_directions(one, other):
    divergence = sum(a * np.log(a / b) + b * np.log(b / a) for a, b in zip(one, other, strict=True))
    assert stability_index(one, other) == pytest.approx(divergence, abs=1e-12)


def test_images_do_not_drift_from_themselves():
    images = evaluation(80).images
    found = measure_drift(images, {"reference": reference_of(images)}, NAMES)
    assert [one.quantity for one in found] == list(QUANTITIES)
    assert [one.value for one in found] == pytest.approx([0.0] * 4, abs=1e-9)


@pytest.mark.parametrize("images", [20, 100])
def test_other_images_of_the_same_kind_are_stable_however_few(images):
    before = evaluation(100, seed=100).images
    found = [verdicts(evaluation(images, seed=seed).images, before) for seed in range(3)]
    assert all(set(one.values()) == {"stable"} for one in found)


def test_the_usual_bound_alone_would_call_chance_a_shift():
    before, now = evaluation(100, seed=1).images, evaluation(20, seed=2).images
    confidence = measure_drift(now, {"reference": reference_of(before)}, NAMES)[1]
    assert confidence.chance > drift.MODERATE


@pytest.mark.parametrize(
    ("column", "change"), [("brightness", lambda luma: luma * 0.6), ("confidence", lambda sure: sure - 0.2)]
)
def test_what_shifts_is_found_and_nothing_else(column, change):
    before, now = evaluation(100, seed=1).images, evaluation(100, seed=2).images
    found = verdicts(now.assign(**{column: change(now[column])}), before)
    assert {name: said for name, said in found.items() if said != "stable"} == {column: "shifted"}


def test_another_mixture_of_classes_is_found_and_the_class_named():
    before, now = evaluation(100, seed=1).images, evaluation(100, seed=2).images
    turned = now.assign(class_pixels=[pixels[[2, 1, 0, 3]] for pixels in now["class_pixels"]])
    found = measure_drift(turned, {"reference": reference_of(before)}, NAMES)[0]
    assert found.verdict == "shifted"
    assert found.says == "weed 12.5% of all pixels in training, 48.6% here"


def test_the_means_are_said_in_their_units():
    before, now = evaluation(100, brightness=180).images, evaluation(100, brightness=60).images
    found = measure_drift(now, {"reference": reference_of(before)}, NAMES)[3]
    assert found.says == "mean 181 in training, 60.8 here"


def test_a_reference_is_plain_json_that_a_card_holds():
    reference = reference_of(evaluation(30).images)
    assert json.loads(json.dumps(reference)) == reference
    card = Card(
        architecture="unet",
        classes=CLASSES,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        training={"reference": reference},  # type: ignore[dict-item]
        source="here",
        license="CC0-1.0",
    )
    found = measure_drift(evaluation(30).images, Card.model_validate_json(card.model_dump_json()).training, NAMES)
    assert {one.verdict for one in found} == {"stable"}


def damaged(**changes: object) -> dict[str, object]:
    return {"reference": reference_of(evaluation(30).images) | changes}


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({}, "has no reference"),
        ({"reference": "yes"}, "damaged"),
        (damaged(images=0), "damaged: 1 "),
        (damaged(brightness=[1, 2]), "damaged: 1 "),
        (damaged(confidence=[0.5] * 20), "damaged: "),
        (damaged(class_shares=[0.5, 0.5]), "has 2 classes, this run 4"),
    ],
)
def test_a_card_without_a_usable_reference_is_unknown_and_says_why(training, why):
    found = measure_drift(evaluation(30).images, training, NAMES)
    assert {one.verdict for one in found} == {"unknown"}
    assert all(why in one.says for one in found)


def test_what_was_not_counted_is_unknown_alone():
    images = evaluation(30).images
    found = verdicts(images.assign(brightness=np.nan), images)
    assert found == {"class_shares": "stable", "confidence": "stable", "entropy": "stable", "brightness": "unknown"}


def test_no_image_is_no_drift_that_is_known():
    images = evaluation(30).images
    assert set(verdicts(images[:0], images).values()) == {"unknown"}
