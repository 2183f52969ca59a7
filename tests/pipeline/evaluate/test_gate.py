from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.evaluate import gate
from pipeline.evaluate.gate import Baseline, Gates, GateVerdict, MetricGate, apply_gates, shared_images
from pipeline.score.drift import measure_drift, reference_of
from pipeline.score.intervals import estimate
from pipeline.store.url import Url
from tests import ROOT
from tests.support.evaluations import CLASSES, NAMES, evaluation, without_class

EXAMPLE = ROOT / "jobs/configs/gates.yaml"


def gates(**changes: object) -> Gates:
    return Gates.model_validate({"samples": 200} | changes)


def against(now, before, **changes) -> GateVerdict:
    return apply_gates(now, gates(**changes), baseline=Baseline(before.run_url), baseline_evaluation=before)


def failed(verdict: GateVerdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


# ---------------------------------------------------------------- against a baseline


def test_a_worse_network_fails_with_its_figures():
    verdict = against(evaluation(recall=0.7, network=1), evaluation(network=2))
    assert failed(verdict) == ["mean_iou"]
    (reason,) = verdict.reasons
    assert reason.startswith("mean_iou: -0.1")
    assert reason.endswith("against s3://models/net-2, paired over 60 of 60 images")


def test_a_better_network_passes():
    assert against(evaluation(recall=0.9, network=1), evaluation(network=2)).passed


def test_the_same_network_passes_with_every_seed():
    now = evaluation()
    assert all(against(now, now, seed=seed, metrics={"mean_iou": {"tolerance": 0}}).passed for seed in range(20))


def test_the_same_network_on_other_hardware_passes_with_every_seed():
    passed = [
        against(evaluation(network=2 * seed, spread=1e-4, seed=seed), evaluation(network=1, spread=1e-4, seed=seed))
        for seed in range(20)
    ]
    assert all(verdict.passed for verdict in passed)


def test_a_loss_within_the_tolerance_passes_although_it_is_sure():
    now, before = evaluation(recall=0.79, network=1, spread=0.001), evaluation(network=2, spread=0.001)
    assert failed(against(now, before, metrics={"mean_iou": {"tolerance": 0.001}})) == ["mean_iou"]
    assert against(now, before, metrics={"mean_iou": {"tolerance": 0.05}}).passed


def test_a_loss_that_may_be_chance_passes():
    now, before = evaluation(25, recall=0.79, network=1, spread=0.2), evaluation(25, network=2, spread=0.2)
    verdict = against(now, before)
    change = verdict.comparison.change.metrics["mean_iou"]
    assert verdict.passed
    assert change.low < 0 < change.high


def test_several_metrics_share_what_lies_outside_their_intervals():
    now, before = evaluation(network=1), evaluation(network=2)
    alone = against(now, before).comparison.change.metrics["mean_iou"]
    both = against(now, before, metrics={"mean_iou": {}, "mean_dice": {}}).comparison.change.metrics["mean_iou"]
    assert both.low < alone.low < alone.high < both.high


def test_only_images_that_both_have_unchanged_are_compared():
    before, now = evaluation(60, network=2), evaluation(60, network=1)
    rows = now.images.copy()
    rows.loc[0, "key"] = "new.jpg"
    rows.loc[1, "source_etag"] = "other"
    now.answer.counts_nkk[2, 0, 0] += 1  # another label
    turned = np.arange(60)[::-1]
    answers = {name: replace(one, counts_nkk=one.counts_nkk[turned]) for name, one in before.answers.items()}
    before = replace(before, images=before.images.iloc[turned].reset_index(drop=True), answers=answers)
    mine, theirs = shared_images(replace(now, images=rows), before)
    assert mine.tolist() == list(range(3, 60))
    assert theirs.tolist() == list(range(56, -1, -1))


def test_groups_of_images_are_compared_as_one():
    now, before = evaluation(80, network=1), evaluation(80, network=2)
    verdict = against(now, before, group=r"^(drive_\d+)/", min_images=8)
    assert verdict.comparison.note == "paired over 80 of 80 images in 8 groups"
    assert failed(against(now, before, group=r"^(drive_\d+)/")) == ["images"]


def test_too_few_images_in_common_are_compared_unpaired_and_it_is_said():
    before, now = evaluation(60, network=2), evaluation(60, network=1)
    now.images["source_etag"] = "changed"
    comparison = against(now, before).comparison
    assert (comparison.paired, comparison.images) == (False, 0)
    assert comparison.note == "not paired: only 0 images are shared"


def test_a_vanished_run_is_compared_by_what_the_history_kept():
    before = evaluation(network=2)
    kept = Baseline(before.run_url, before.checkpoint, estimate(before.answer.counts_nkk))
    verdict = apply_gates(evaluation(recall=0.6, network=1), gates(), baseline=kept)
    assert failed(verdict) == ["mean_iou"]
    assert "its run is gone" in verdict.reasons[0]
    assert apply_gates(evaluation(network=1), gates(), baseline=kept).passed


def test_a_vanished_run_that_no_history_knows_is_an_error():
    with pytest.raises(ConfigError, match="s3://gone/run=1, is gone"):
        apply_gates(evaluation(), gates(), baseline=Baseline(Url("s3://gone/run=1")))


def test_a_baseline_of_other_classes_is_an_error():
    other = CLASSES.model_copy(update={"classes": CLASSES.classes[::-1]})
    with pytest.raises(ConfigError, match="id 0: stone / soil"):
        against(evaluation(), evaluation(network=2, classes=other))


# ---------------------------------------------------------------- floors and limits


def test_the_first_evaluation_is_only_held_against_floors():
    verdict = apply_gates(evaluation(), gates())
    assert verdict.passed
    assert verdict.comparison is None
    assert [check.name for check in verdict.checks] == ["images", "failed"]


def test_a_class_below_its_floor_fails_by_name_and_value():
    verdict = apply_gates(evaluation(), gates(floors={"weed": 0.95, "soil": 0.1}))
    assert failed(verdict) == ["weed floor"]
    iou = evaluation().answer.scores.iou[NAMES.index("weed")]
    assert verdict.reasons == [f"weed floor: {iou:.4f}, floor 0.9500"]


def test_a_metric_below_its_floor_fails_without_a_baseline():
    verdict = apply_gates(evaluation(), gates(metrics={"pixel_accuracy": {"floor": 0.99}}))
    assert failed(verdict) == ["pixel_accuracy floor"]


def test_a_class_that_is_nowhere_cannot_keep_its_floor():
    now = evaluation()
    now.answer.counts_nkk[:, 3, :] = now.answer.counts_nkk[:, :, 3] = 0
    verdict = apply_gates(now, gates(floors={"stone": 0.0}))
    assert verdict.reasons == ["stone floor: undefined: in no label and no mask, floor 0.0000"]


def test_a_floor_of_no_class_is_an_error_that_lists_the_classes():
    with pytest.raises(
        ConfigError,
        match="floors names 'wheat', which is not a class of field\n  -> classes: soil, crop, weed, stone",
    ):
        apply_gates(evaluation(), gates(floors={"wheat": 0.5}))


@pytest.mark.parametrize(("failures", "passes"), [(2, True), (3, False)])
def test_more_failures_than_allowed_fail(failures, passes):
    verdict = apply_gates(evaluation(98, failed=failures), gates(max_failed_share=0.02))
    assert verdict.passed is passes
    assert passes or "label_missing 3" in verdict.reasons[0]


def test_too_few_images_fail_and_none_is_no_accident():
    assert failed(apply_gates(evaluation(19), gates())) == ["images"]
    assert failed(apply_gates(evaluation(0), gates(floors={"crop": 0.5}))) == ["images", "crop floor"]
    assert "images" in failed(against(evaluation(0), evaluation()))


def test_a_baseline_without_a_scored_image_is_nothing_to_keep_up_with():
    verdict = against(evaluation(), evaluation(0))
    assert failed(verdict) == ["mean_iou"]
    assert "not paired: only 0 images are shared" in verdict.reasons[0]


def test_drift_beyond_its_limit_fails_and_unknown_drift_does_not():
    before, now = evaluation(100, seed=1).images, evaluation(100, brightness=60)
    limits = gates(drift={"brightness": 0.25})
    measured = measure_drift(now.images, {"reference": reference_of(before)}, NAMES)
    assert failed(apply_gates(now, limits, drift=measured)) == ["brightness drift"]
    assert apply_gates(now, gates(), drift=measured).passed
    unknown = apply_gates(now, limits, drift=measure_drift(now.images, {}, NAMES))
    assert unknown.passed
    assert "unknown: the checkpoint's card has no reference" in unknown.checks[-1].says


# ---------------------------------------------------------------- the file


def test_the_example_says_what_the_defaults_are():
    example = gate.load_gates(str(EXAMPLE))
    shown = {"metrics", "drift"}
    assert example.model_dump(exclude=shown) == Gates().model_dump(exclude=shown)
    assert example.model_fields_set == set(Gates.model_fields)
    assert example.metrics["mean_iou"].tolerance == MetricGate().tolerance


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metrics: {miou: {}}", "metrics.miou"),
        ("metrics: {mean_iou: {tolerance: 2}}", "metrics.mean_iou.tolerance"),
        ("floors: {crop: 60}", "floors.crop"),
        ("drift: {colour: 1}", "drift.colour"),
        ("min_image: 3", "min_image"),
        ("group: '(['", "not a regular expression"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, says):
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"gates.yaml") as error:
        gate.load_gates(str(path))
    assert says in str(error.value)


def test_gates_that_ask_for_something_else_have_another_fingerprint():
    assert gates().fingerprint() == gates().fingerprint()
    assert gates().fingerprint() != gates(floors={"crop": 0.1}).fingerprint()


def test_every_check_of_a_mean_over_fewer_classes_says_over_how_many() -> None:
    few = without_class(evaluation(), "stone")
    checks = apply_gates(few, gates(metrics={"mean_iou": {"floor": 0.1}}, floors={"weed": 0.1})).checks
    texts = {check.name: check.says for check in checks}
    assert " over 3 of 4 classes, no label of: stone, floor" in texts["mean_iou floor"]
    assert "classes" not in texts["weed floor"]
    compared = against(few, without_class(evaluation(network=1), "stone"))
    assert " over 3 of 4 classes, no label of: stone, interval" in {c.name: c.says for c in compared.checks}["mean_iou"]
