import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.evaluate import gate
from pipeline.evaluate.gate import (
    Baseline,
    Comparison,
    Gates,
    GateVerdict,
    MetricGate,
    SeasonGate,
    apply_gates,
    shared_images,
)
from pipeline.score.drift import Drift, measure_drift, reference_of
from pipeline.score.intervals import METRICS, Estimates, by_group, estimate
from pipeline.score.metrics import Interval
from pipeline.score.season import season_table
from pipeline.store.url import Url
from tests import ROOT
from tests.support.evaluations import CLASSES, NAMES, evaluation, without_class
from tests.support.seasons import summers, zones_of

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


def test_the_order_of_a_baselines_images_changes_nothing():
    before, now = evaluation(40, network=2), evaluation(40, network=1)
    turned = np.random.default_rng(0).permutation(40)
    answers = {name: replace(one, counts_nkk=one.counts_nkk[turned]) for name, one in before.answers.items()}
    shuffled = replace(before, images=before.images.iloc[turned].reset_index(drop=True), answers=answers)
    assert against(now, shuffled).comparison == against(now, before).comparison


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


def test_images_are_paired_from_the_least_number_on() -> None:
    now, before = evaluation(20, network=1), evaluation(20, network=2)
    at, above = (against(now, before, min_images=least).comparison for least in (20, 21))
    assert (at.paired, at.images, at.note) == (True, 20, "paired over 20 of 20 images")
    assert (above.paired, above.images, above.note) == (False, 20, "not paired: only 20 images are shared")


def test_a_paired_comparison_is_the_bootstrap_of_shared_images_with_the_settings_of_the_gates() -> None:
    now, before = evaluation(30, network=1), evaluation(30, network=2)
    now.images.loc[0, "source_etag"] = "changed"
    settings = {"samples": 150, "seed": 4, "level": 0.9}
    comparison = against(now, before, **settings).comparison
    shared, theirs = now.answer.counts_nkk[1:], before.answer.counts_nkk[1:]
    assert comparison.change == estimate(shared, against_nkk=theirs, **settings)
    assert (comparison.run_url, comparison.checkpoint) == (before.run_url, before.checkpoint)
    assert comparison.note == "paired over 29 of 30 images"


def test_an_unpaired_comparison_is_that_of_two_estimates_with_the_settings_of_the_gates() -> None:
    now, before = evaluation(30, network=1), evaluation(40, network=2, seed=1)
    now.images["source_etag"] = "changed"
    settings = {"samples": 150, "seed": 4, "level": 0.9}
    mine, theirs = (estimate(one.answer.counts_nkk, **settings) for one in (now, before))
    assert against(now, before, **settings).comparison.change == mine.minus(theirs)
    kept = Baseline(before.run_url, "net", theirs)
    gone = apply_gates(now, gates(**settings), baseline=kept).comparison
    assert gone.change == mine.minus(theirs)
    assert (gone.run_url, gone.checkpoint, gone.paired, gone.images) == (before.run_url, "net", False, 0)


def test_groups_are_drawn_together_in_every_kind_of_comparison() -> None:
    group = r"^(drive_\d+)/"
    now, before = evaluation(80, network=1), evaluation(80, network=2)
    mine, theirs = (by_group(one.answer.counts_nkk, one.keys, group) for one in (now, before))
    settings = {"group": group, "min_images": 8}
    assert against(now, before, **settings).comparison.change == estimate(mine, against_nkk=theirs, samples=200)
    now.images["source_etag"] = "changed"
    apart = estimate(mine, samples=200).minus(estimate(theirs, samples=200))
    assert against(now, before, **settings).comparison.change == apart


@pytest.mark.parametrize("number", [1, 2, 5])
def test_what_lies_outside_the_intervals_is_shared_by_all_metrics(number: int) -> None:
    now, before = evaluation(30, network=1), evaluation(30, network=2)
    change = against(now, before, metrics={name: {} for name in METRICS[:number]}).comparison.change
    level = 1 - (1 - 0.95) / number
    assert change == estimate(now.answer.counts_nkk, against_nkk=before.answer.counts_nkk, samples=200, level=level)


def test_gates_without_a_metric_compare_all_the_same() -> None:
    verdict = against(evaluation(30, recall=0.5, network=1), evaluation(30, network=2), metrics={})
    assert verdict.passed
    assert verdict.comparison.change.metrics["mean_iou"].high < 0


def change_of(high: float) -> Comparison:
    metrics = {"mean_iou": Interval(high - 0.01, high - 0.02, high)}
    return Comparison(Url("s3://runs/1/run=1"), "", False, 0, "not paired", Estimates(metrics, []))


@pytest.mark.parametrize(("high", "passes"), [(-0.25, True), (-0.2501, False), (0.1, True), (np.nan, False)])
def test_a_metric_fails_where_its_interval_lies_wholly_below_the_tolerance(
    high: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "compare_to_baseline", lambda *_: change_of(high))
    limits = gates(metrics={"mean_iou": {"tolerance": 0.25}})
    verdict = apply_gates(evaluation(20), limits, baseline=Baseline(Url("s3://runs/1/run=1")))
    assert verdict.passed is passes
    text = verdict.checks[-1].says
    assert "tolerance 0.2500" in text
    assert "against s3://runs/1/run=1, not paired" in text  # the run, where the checkpoint is unknown
    assert passes or f"{high - 0.02:+.4f} to {high:+.4f}" in text


def test_each_metric_has_a_tolerance_of_its_own() -> None:
    now, before = evaluation(60, recall=0.7, network=1), evaluation(60, network=2)
    verdict = against(now, before, metrics={"mean_iou": {"tolerance": 1.0}, "mean_dice": {"tolerance": 0.0}})
    assert failed(verdict) == ["mean_dice"]


def test_classes_that_differ_are_named_up_to_three_with_a_remedy() -> None:
    other = CLASSES.model_copy(update={"classes": CLASSES.classes[::-1]})
    with pytest.raises(ConfigError) as refused:
        against(evaluation(), evaluation(network=2, classes=other))
    assert "id 0: stone / soil; id 1: weed / crop; id 2: crop / weed" in refused.value.message
    assert "id 3" not in refused.value.message
    assert "--baseline" in refused.value.hint
    with pytest.raises(ConfigError) as refused:
        apply_gates(evaluation(), gates(), baseline=Baseline(Url("s3://gone/run=1")))
    assert "--baseline" in refused.value.hint


# ---------------------------------------------------------------- floors and limits


@pytest.mark.parametrize(("floor", "passes"), [(0.5, True), (0.5001, False)])
def test_a_class_or_a_metric_at_its_floor_passes(floor: float, passes: bool) -> None:
    now = evaluation(20)
    table = now.answer.counts_nkk
    table[:] = 0
    table[:, range(4), range(4)] = 10
    table[:, range(4), 4] = 10  # no class was answered: IoU 10 / 20 of each
    for limits in (gates(floors={"weed": floor}), gates(metrics={"mean_iou": {"floor": floor}})):
        verdict = apply_gates(now, limits)
        assert verdict.passed is passes
        assert f"0.5000, floor {floor:.4f}" in verdict.checks[-1].says


def test_every_floor_is_checked_metrics_before_classes_and_unset_ones_are_not() -> None:
    limits = gates(metrics={"mean_iou": {}, "mean_dice": {"floor": 0.1}}, floors={"weed": 0.1, "crop": 0.2})
    names = [check.name for check in apply_gates(evaluation(), limits).checks]
    assert names == ["images", "failed", "mean_dice floor", "weed floor", "crop floor"]


@pytest.mark.parametrize("group", [None, r"^(drive_\d+)/"])
def test_the_least_number_of_images_or_groups_is_enough(group: str | None) -> None:
    now = evaluation(30)
    count, unit = (30, "images") if group is None else (3, "groups of images")
    assert apply_gates(now, gates(group=group, min_images=count)).passed
    verdict = apply_gates(now, gates(group=group, min_images=count + 1))
    assert verdict.reasons == [f"images: {count} {unit} have a score, at least {count + 1} are needed"]


def test_failures_are_counted_by_code_and_none_is_named_where_there_is_none() -> None:
    says = {check.name: check.says for check in apply_gates(evaluation(98), gates()).checks}
    assert says["failed"] == "0.00% of the images have no score, limit 1.00%"
    now = evaluation(96, failed=3)
    now = replace(now, failures=[*now.failures, ("x.jpg", "corrupt", "")])
    says = {check.name: check.says for check in apply_gates(now, gates()).checks}
    assert says["failed"] == "4.00% of the images have no score, limit 1.00%; label_missing 3, corrupt 1"


@pytest.mark.parametrize(
    ("value", "chance", "passes"),
    [(0.2, 0.1, True), (0.2001, 0.1, False), (0.3, 0.3, True), (0.3, 0.29, False), (0.1, 0.3, True)],
)
def test_drift_up_to_its_limit_or_to_what_chance_reaches_passes(value: float, chance: float, passes: bool) -> None:
    drift = Drift("entropy", value, chance, "moderate", "from 1 to 2")
    check = apply_gates(evaluation(), gates(drift={"entropy": 0.2}), drift=[drift]).checks[-1]
    assert (check.name, check.passed) == ("entropy drift", passes)
    for text in (f"index {value:.3f}", "limit 0.200", f"chance alone reaches {chance:.3f}", "from 1 to 2"):
        assert text in check.says


def test_drift_without_a_limit_is_not_checked_and_unknown_drift_keeps_its_name() -> None:
    unknown = Drift("entropy", np.nan, np.nan, "unknown", "the card has no reference")
    known = Drift("brightness", 9.0, 0.1, "shifted", "")
    checks = apply_gates(evaluation(), gates(drift={"entropy": 0.0}), drift=[known, unknown]).checks
    assert [(check.name, check.passed) for check in checks[2:]] == [("entropy drift", True)]


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


# ---------------------------------------------------------------- seasons

NEW = date(2025, 6, 15)
HISTORY = {(day, zone): 0.4 for day in summers(range(2021, 2025)) for zone in "abc"}
ZONES = "s3://bucket/out"


def season_checks(
    crop: Mapping[str, float], history: Mapping[tuple[date, str], float] = HISTORY, **said: object
) -> dict[str, gate.Check]:
    """Checks of seasons by name, for shares of crop by zone on the newest date."""
    table = season_table(zones_of({**history, **{(NEW, zone): share for zone, share in crop.items()}}))
    verdict = apply_gates(evaluation(), gates(season={"zones": ZONES} | said), season=table)
    return {check.name: check for check in verdict.checks if check.name.endswith(" season")}


def test_a_share_outside_its_season_fails_and_the_confidence_has_a_check_of_its_own():
    checks = season_checks(dict.fromkeys("abc", 0.6))
    assert [(name, check.passed) for name, check in checks.items()] == [
        ("class_shares season", False),
        ("confidence season", True),
    ]
    says = checks["class_shares season"].says
    assert "crop 60.0% on 2025-06-15, 35.0% to 45.0% by 24 dates of the season in 4 year(s); over 3 of 3 zones" in says
    assert "soil 40.0%" in says
    assert "single zones outside, which fail nothing: 3 of 3 (a, b, c; 5% of these may be chance)" in says
    assert checks["confidence season"].says.startswith("1 inside, nearest to its limit confidence 90.0%")


def test_a_value_inside_its_season_passes_with_what_it_rests_on():
    (check, _) = season_checks(dict.fromkeys("abc", 0.42)).values()
    assert check.passed
    assert check.says.startswith("2 inside, nearest to its limit crop 42.0% on 2025-06-15, 35.0% to 45.0% by 24 dates")


def test_single_zones_outside_are_listed_and_fail_nothing():
    (check, _) = season_checks({"a": 0.55, "b": 0.33, "c": 0.33}).values()
    assert check.passed
    assert "single zones outside, which fail nothing: 3 of 3" in check.says


def test_no_verdict_is_said_and_fails_where_the_gate_asks_for_one():
    short = {key: share for key, share in HISTORY.items() if key[0] > date(2024, 7, 10)}
    for fails, passes in ((["class_shares"], True), (["class_shares", "unknown"], False)):
        (check,) = season_checks({"a": 0.9}, short, fails=fails).values()
        assert check.passed is passes
        assert check.says.startswith("2 unknown: 1 date(s) of the season, 3 needed; crop on 2025-06-15")
        assert check.says.endswith("zones without a verdict: 1 of 1")


@pytest.mark.parametrize("fails", [["confidence"], ["confidence", "unknown"]])
def test_zones_that_were_not_compared_are_no_silent_pass(fails: list[str]):
    verdict = apply_gates(evaluation(), gates(season={"zones": ZONES, "fails": fails}))
    assert verdict.checks[-1].says == "unknown: the zones were not compared"
    assert verdict.passed is ("unknown" not in fails)
    clouded = season_table(
        pd.DataFrame([{"zone": "a", "date": NEW, "class": None, "pixels": 0, "confidence": None, "valid_pixels": 0}])
    )
    verdict = apply_gates(evaluation(), gates(season={"zones": ZONES, "fails": fails}), season=clouded)
    assert "no classified pixel on 2025-06-15" in verdict.checks[-1].says
    assert verdict.passed is ("unknown" not in fails)


def test_without_a_season_in_the_gates_nothing_is_checked():
    table = season_table(zones_of(HISTORY | {(NEW, "a"): 0.9}))
    assert [check.name for check in apply_gates(evaluation(), gates(), season=table).checks] == ["images", "failed"]


# ---------------------------------------------------------------- the file


def test_the_example_of_a_season_has_the_defaults():
    lines = re.findall(r"^# ( .*)$", EXAMPLE.read_text(), re.M)
    shown = yaml.safe_load("\n".join(lines[lines.index("   season:".removeprefix(" ")) :][:9]))
    assert Gates.model_validate(shown).season == SeasonGate(zones=(ZONES,))
    assert shown["season"].keys() == set(SeasonGate.model_fields)


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
        ("season: {zones: []}", "season.zones"),
        ("season: {zones: ''}", "season.zones"),
        ("season: {window_days: 30}", "season.zones"),
        ("season: {zones: out, window_days: 200}", "season.window_days"),
        ("season: {zones: out, min_dates: 1}", "season.min_dates"),
        ("season: {zones: out, tolerance: 5}", "season.tolerance"),
        ("season: {zones: out, fails: [shares]}", "season.fails"),
        ("season: {zones: out, window: 30}", "season.window"),
        ("group: '(['", "not a regular expression"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, says):
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"gates.yaml") as error:
        gate.load_gates(str(path))
    assert says in str(error.value)


def test_a_fingerprint_of_gates_has_12_digits_and_follows_every_limit() -> None:
    changes = {"samples": 201, "min_images": 21, "level": 0.9, "seed": 1, "group": "a", "drift": {"entropy": 0.1}}
    changes |= {"season": {"zones": "out"}}
    fingerprints = {gates(**{name: value}).fingerprint() for name, value in changes.items()} | {gates().fingerprint()}
    assert len(fingerprints) == len(changes) + 1
    assert {len(fingerprint) for fingerprint in fingerprints} == {12}


def test_gates_that_ask_for_something_else_have_another_fingerprint():
    assert gates().fingerprint() == gates().fingerprint()
    assert gates().fingerprint() != gates(floors={"crop": 0.1}).fingerprint()


def test_gates_without_a_season_keep_the_fingerprint_of_versions_that_had_none() -> None:
    """Or evaluations of a history would be written a second time."""
    assert Gates().fingerprint() == "d033c09fc03e"


def test_every_check_of_a_mean_over_fewer_classes_says_over_how_many() -> None:
    few = without_class(evaluation(), "stone")
    checks = apply_gates(few, gates(metrics={"mean_iou": {"floor": 0.1}}, floors={"weed": 0.1})).checks
    texts = {check.name: check.says for check in checks}
    assert " over 3 of 4 classes, no label of: stone, floor" in texts["mean_iou floor"]
    assert "classes" not in texts["weed floor"]
    compared = against(few, without_class(evaluation(network=1), "stone"))
    assert " over 3 of 4 classes, no label of: stone, interval" in {c.name: c.says for c in compared.checks}["mean_iou"]
