import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluate import history
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.gate import Baseline, Gates, apply_gates
from pipeline.evaluate.history import HistoryEntry, find_baseline, history_entries
from pipeline.score.drift import measure_drift, reference_of
from pipeline.score.intervals import METRICS, by_group, estimate
from pipeline.score.season import season_table
from pipeline.store.url import Url
from tests.support.evaluations import CLASSES, evaluation, without_class
from tests.support.seasons import summers, zones_of

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
GATES = Gates(samples=100, floors={"crop": 0.2})


def judged(
    now: Evaluation, *, day: int = 0, gates: Gates = GATES, source: str = "s3://fields/val"
) -> list[HistoryEntry]:
    verdict = apply_gates(now, gates)
    time = NOON + timedelta(days=day)
    return history_entries(now, time=time, command="evaluate", source=source, gates=gates, verdict=verdict)


def same(one: list[HistoryEntry], other: list[HistoryEntry]) -> bool:
    return repr(one) == repr(other)  # NaN is not NaN


# ---------------------------------------------------------------- entries


def test_an_evaluation_has_an_entry_for_each_answer_and_one_was_judged() -> None:
    entries = judged(evaluation(failed=2))
    assert [(one.answer, one.judged, one.verdict) for one in entries] == [
        ("network", False, "none"),
        ("native", True, "failed"),
    ]
    assert entries[1].reasons == ["failed: 3.23% of the images have no score, limit 1.00%; label_missing 2"]
    assert (entries[1].images, entries[1].failed, entries[1].seconds) == (60, 2, 42.0)


def test_an_entry_says_which_evaluation_it_is_of() -> None:
    now = evaluation(9, network=5, seed=3, failed=1, name="stride 8")
    entry = history_entries(now, time=NOON, command="evaluate it", source="s3://a, s3://b", gates=GATES)[1]
    assert (entry.time, entry.command, entry.source) == (NOON, "evaluate it", "s3://a, s3://b")
    assert (entry.setting, entry.data_fp, entry.run_fp) == ("stride 8", "data00000003", "000000000005")
    assert entry.run_url == "s3://runs/5/run=0123456789ab"
    assert (entry.checkpoint, entry.model_fp) == ("s3://models/net-5", "abcdef000005")
    assert (entry.class_map, entry.classes) == ("field", ["soil", "crop", "weed", "stone"])
    assert entry.gates_fp == GATES.fingerprint()
    assert (entry.verdict, entry.baseline, entry.reasons) == ("none", "", [])  # gates, but no verdict of theirs
    assert history_entries(now, time=NOON, command="", source="")[1].gates_fp == ""


def test_a_verdict_is_recorded_with_its_baseline_on_the_judged_answer_alone() -> None:
    before = evaluation(30, network=1)
    verdict = apply_gates(
        evaluation(30, network=2), GATES, baseline=Baseline(before.run_url), baseline_evaluation=before
    )
    network, judged_one = history_entries(
        evaluation(30, network=2), time=NOON, command="", source="", gates=GATES, verdict=verdict
    )
    assert (network.verdict, network.baseline) == ("none", "")
    assert (judged_one.verdict, judged_one.baseline) == ("passed", before.run_url.place)


def test_the_intervals_of_an_entry_are_those_of_the_groups_of_its_gates() -> None:
    now = evaluation(60)
    grouped = history_entries(now, time=NOON, command="", source="", gates=Gates(samples=100, group=r"^drive_\d+"))
    counts_nkk = by_group(now.answer.counts_nkk, now.keys, r"^drive_\d+")
    assert len(counts_nkk) == 6
    assert grouped[1].metrics["mean_iou"] == estimate(counts_nkk).metrics["mean_iou"]
    assert grouped[1].metrics["mean_iou"] != estimate(now.answer.counts_nkk).metrics["mean_iou"]


def test_the_classes_of_a_mean_are_those_with_an_iou() -> None:
    assert [one.classes_scored for one in judged(evaluation(20))] == [4, 4]
    assert [one.classes_scored for one in judged(without_class(evaluation(20), "stone"))] == [3, 3]


def test_a_boundary_score_averages_classes_with_a_contour_and_is_unknown_without_any() -> None:
    def entry(boundary: list[list[int]]) -> HistoryEntry:
        now = evaluation(3)
        answers = {name: replace(one, boundary=np.array(boundary)) for name, one in now.answers.items()}
        return judged(replace(now, answers=answers))[1]

    one, half, none = [10, 10, 10], [10, 15, 5], [0, 0, 0]
    found = entry([one, one, none, [10, 5, 5]]).metrics["boundary_iou"]
    assert found.value == pytest.approx((1 + 1 + 0.5) / 3)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert entry([half] * 4).metrics["boundary_iou"].value == pytest.approx(0.25)
    assert math.isnan(entry([none] * 4).metrics["boundary_iou"].value)


def test_an_entry_holds_every_score_of_its_answer_with_intervals() -> None:
    now = evaluation()
    for entry, answer in zip(judged(now), now.answers.values(), strict=True):
        found = estimate(answer.counts_nkk)
        assert entry.iou == found.iou
        assert {name: entry.metrics[name] for name in METRICS} == found.metrics
        assert entry.metrics["mean_iou"].value == pytest.approx(float(answer.scores.mean_iou))
        assert entry.metrics["boundary_iou"].value == pytest.approx(60 / 130)
        assert entry.metrics["calibration_error"].value == pytest.approx(abs(0.8 - 200 / 255))
        assert sum(entry.support) == answer.counts_nkk.sum()


def test_secrets_of_command_and_source_are_left_out() -> None:
    (entry, *_) = history_entries(
        evaluation(), time=NOON, command="evaluate --token=abcdefgh123", source="https://me:word@host/val"
    )
    assert "abcdefgh123" not in entry.command
    assert entry.source == "https://***@host/val"


# ---------------------------------------------------------------- the folder


def test_what_is_appended_is_read_oldest_first(tmp_path: Path) -> None:
    days = [judged(evaluation(network=day), day=day) for day in (2, 0, 1)]
    assert all(history.append_history(Url(str(tmp_path)), entries) for entries in days)
    assert same(history.read_history(Url(str(tmp_path))), [*days[1], *days[2], *days[0]])


def test_entries_come_oldest_first_where_the_names_of_their_objects_sort_the_other_way(tmp_path: Path) -> None:
    networks = sorted(
        range(6), key=lambda n: history.history_object_name(judged(evaluation(5, network=n))), reverse=True
    )
    for day, network in enumerate(networks):
        history.append_history(Url(str(tmp_path)), judged(evaluation(5, network=network), day=day))
    read = history.read_history(Url(str(tmp_path)))
    assert [entry.run_fp for entry in read] == [f"{network:012x}" for network in networks for _ in range(2)]
    assert [entry.judged for entry in read] == [False, True] * 6


def test_entries_of_one_moment_come_by_run_and_the_judged_answer_last(tmp_path: Path) -> None:
    """Two settings of one run are submitted at once, and the judged answer may be written first."""
    for network in (3, 1, 2):
        history.append_history(Url(str(tmp_path)), judged(evaluation(5, network=network))[::-1])
    read = history.read_history(Url(str(tmp_path)))
    assert [(int(entry.run_fp, 16), entry.judged) for entry in read] == [
        (network, last) for network in (1, 2, 3) for last in (False, True)
    ]


def test_an_evaluation_of_the_network_alone_is_history_too(tmp_path: Path) -> None:
    now = evaluation(5)
    alone = judged(replace(now, answers={"network": now.answers["network"]}))
    assert history.append_history(Url(str(tmp_path)), alone)
    assert [(one.answer, one.judged) for one in history.read_history(Url(str(tmp_path)))] == [("network", True)]


def test_the_object_of_an_evaluation_is_named_by_20_digits(tmp_path: Path) -> None:
    history.append_history(Url(str(tmp_path)), judged(evaluation(5)))
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"evaluation-[0-9a-f]{20}\.parquet", path.name)
    for name in ("evaluation-0123.parquet", f"x{path.name}", f"{path.name}.bak"):
        (tmp_path / name).write_bytes(b"another file")
    assert len(history.read_history(Url(str(tmp_path)))) == 2


@pytest.mark.s3
def test_a_history_lives_in_an_object_store(s3_url: str) -> None:
    entries = judged(evaluation())
    assert history.read_history(Url(f"{s3_url}/history")) == []
    assert history.append_history(Url(f"{s3_url}/history"), entries)
    assert not history.append_history(Url(f"{s3_url}/history"), judged(evaluation(), day=1))
    assert same(history.read_history(Url(f"{s3_url}/history")), entries)


def test_the_same_evaluation_submitted_again_appends_nothing(tmp_path: Path) -> None:
    first = judged(evaluation())
    assert history.append_history(Url(str(tmp_path)), first)
    assert not history.append_history(Url(str(tmp_path)), judged(evaluation(), day=1))
    assert same(history.read_history(Url(str(tmp_path))), first)


@pytest.mark.parametrize(
    "changed",
    [
        judged(evaluation(run_url=Url("s3://runs/tomorrow/run=0123456789ab"))),
        judged(evaluation(data_fp="more images")),
        judged(evaluation(fingerprint="another config")),
        judged(evaluation(name="stride 8")),
        judged(evaluation(), gates=Gates(samples=101)),
    ],
)
def test_another_output_other_data_or_other_gates_are_another_evaluation(changed: list[HistoryEntry]) -> None:
    assert history.history_object_name(changed) != history.history_object_name(judged(evaluation()))


def test_each_evaluation_is_one_object_of_one_row_group(tmp_path: Path) -> None:
    history.append_history(Url(str(tmp_path)), judged(evaluation()))
    (path,) = tmp_path.iterdir()
    assert pq.read_metadata(path).num_row_groups == 1
    assert pq.read_metadata(path).num_rows == 2


def test_pandas_reads_the_folder_as_one_table(tmp_path: Path) -> None:
    for day in range(3):
        history.append_history(Url(str(tmp_path)), judged(evaluation(network=day), day=day))
    table = pd.read_parquet(tmp_path)
    assert len(table) == 6
    assert {"time", "mean_iou", "mean_iou_low", "mean_iou_high", "iou", "drift_brightness"} <= set(table.columns)
    assert table["mean_iou"].between(table["mean_iou_low"], table["mean_iou_high"]).all()


def test_an_entry_survives_its_table() -> None:
    now = evaluation()
    drift = measure_drift(now.images, {"reference": reference_of(now.images)}, CLASSES.names)
    entries = history_entries(now, time=NOON, command="", source="here", drift=drift)
    assert same(history.history_from_table(history.history_to_table(entries)), entries)
    assert entries[0].drift["brightness"] == pytest.approx(0)
    assert math.isnan(judged(now)[0].drift["brightness"])


def in_season(crop: float) -> list[HistoryEntry]:
    zones = zones_of({(day, "a"): 0.4 for day in summers([2023, 2024])} | {(date(2025, 6, 15), "a"): crop})
    return history_entries(evaluation(), time=NOON, command="", source="here", season=season_table(zones))


def test_an_entry_keeps_the_season_of_its_zones(tmp_path: Path) -> None:
    entries = in_season(0.5)
    assert (entries[1].season["class_shares"], entries[1].season["confidence"]) == pytest.approx(
        (2, 0)
    )  # 10 points of 5
    assert entries[1].season_date == date(2025, 6, 15)
    history.append_history(Url(str(tmp_path)), entries)
    assert same(history.read_history(Url(str(tmp_path))), entries)
    assert {"season_class_shares", "season_confidence", "season_date"} <= set(pd.read_parquet(tmp_path).columns)
    assert (math.isnan(judged(evaluation())[0].season["confidence"]), judged(evaluation())[0].season_date) == (
        True,
        None,
    )


def test_the_same_evaluation_beside_other_zones_is_another_object() -> None:
    names = {history.history_object_name(one) for one in (in_season(0.5), in_season(0.6), in_season(0.5))}
    assert len(names) == 2


def test_an_object_of_a_version_without_seasons_is_read(tmp_path: Path) -> None:
    entries = judged(evaluation())
    older = [name for name in history.HISTORY_SCHEMA.names if not name.startswith("season_")]
    pq.write_table(history.history_to_table(entries).select(older), tmp_path / history.history_object_name(entries))
    assert same(history.read_history(Url(str(tmp_path))), entries)


def test_an_evaluation_without_a_scored_image_is_history_too(tmp_path: Path) -> None:
    assert history.append_history(Url(str(tmp_path)), judged(evaluation(0, failed=9)))
    (_, entry) = history.read_history(Url(str(tmp_path)))
    assert (entry.verdict, entry.images) == ("failed", 0)
    assert math.isnan(entry.metrics["mean_iou"].value)


def test_no_folder_is_no_history(tmp_path: Path) -> None:
    assert history.read_history(Url(str(tmp_path / "new"))) == []


def test_other_files_are_left_alone_and_a_damaged_entry_is_named(tmp_path: Path) -> None:
    (tmp_path / "trend.html").write_text("hello")
    (tmp_path / "evaluation-mine.parquet").write_text("hello")
    assert history.read_history(Url(str(tmp_path))) == []
    whole = io.BytesIO()
    pq.write_table(history.history_to_table(judged(evaluation())), whole)
    name = "evaluation-0123456789abcdef0123.parquet"
    (tmp_path / name).write_bytes(whole.getvalue()[:-20])
    with pytest.raises(StorageError, match=name):
        history.read_history(Url(str(tmp_path)))


def test_a_flipped_bit_in_a_text_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    entry = replace(judged(evaluation(5))[1], command="".join(chr(33 + 37 * at % 89) for at in range(89)))
    history.append_history(Url(str(tmp_path)), [entry])
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[data.index(entry.command[20:40].encode()) + 5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match=path.name) as refused:
        history.read_history(Url(str(tmp_path)))
    assert "delete it" in refused.value.hint


@pytest.mark.parametrize(
    ("column", "change"),
    [("judged", "missing"), ("classes", "missing"), ("mean_iou", "missing"), ("time", "empty"), ("iou", "empty")],
)
def test_an_entry_of_other_columns_is_named(column: str, change: str, tmp_path: Path) -> None:
    table = history.history_to_table(judged(evaluation()))
    at = table.column_names.index(column)
    empty = table.set_column(at, column, pa.nulls(len(table), table.schema.field(at).type))
    name = "evaluation-0123456789abcdef0123.parquet"
    pq.write_table(empty if change == "empty" else table.drop_columns([column]), tmp_path / name)
    with pytest.raises(StorageError, match=name):
        history.read_history(Url(str(tmp_path)))


@pytest.mark.parametrize("column", ["iou", "iou_low", "iou_high"])
def test_an_entry_with_scores_or_limits_of_fewer_classes_is_named(column: str, tmp_path: Path) -> None:
    table = history.history_to_table(judged(evaluation(5)))
    shorter = pa.array([values[:-1] for values in table[column].to_pylist()], table.schema.field(column).type)
    name = "evaluation-0123456789abcdef0123.parquet"
    pq.write_table(table.set_column(table.column_names.index(column), column, shorter), tmp_path / name)
    with pytest.raises(StorageError, match=name):
        history.read_history(Url(str(tmp_path)))


# ---------------------------------------------------------------- baselines

BAD = Gates(samples=100, floors={"crop": 0.99})


def past() -> Iterator[HistoryEntry]:
    """Entries of four days: passed, passed, failed, without a gate."""
    for day, gates in enumerate((GATES, GATES, BAD)):
        yield from judged(evaluation(20, network=day + 1), day=day, gates=gates)
    yield from history_entries(
        evaluation(20, network=4), time=NOON + timedelta(days=3), command="", source="s3://fields/val"
    )


PAST = list(past())
NOW = evaluation(20, network=9)


def found(wanted: str, now: Evaluation = NOW, source: str = "s3://fields/val") -> Baseline | None:
    return find_baseline(wanted, PAST, now, source=source)


def test_last_good_is_the_newest_that_passed() -> None:
    baseline = found("last-good")
    assert baseline.run_url == Url("s3://runs/2/run=0123456789ab")
    assert baseline.checkpoint == "s3://models/net-2"
    assert baseline.estimates == estimate(evaluation(20, network=2).answer.counts_nkk)


OTHER = ClassMap(name="field", classes=CLASSES.classes[::-1])


@pytest.mark.parametrize(
    ("now", "source"),
    [
        (NOW, "s3://fields/test"),
        (replace(NOW, name="stride 8"), "s3://fields/val"),
        (replace(NOW, classes=OTHER), "s3://fields/val"),
    ],
)
def test_there_is_no_last_good_of_another_source_setting_or_class_map(now: Evaluation, source: str) -> None:
    assert found("last-good", now, source) is None


def test_the_same_run_on_other_data_is_a_baseline() -> None:
    """A run is evaluated again when labels were added: its own earlier scores are what it is held against."""
    assert found("last-good", replace(evaluation(20, network=2), data_fp="more")).run_url == Url(
        "s3://runs/2/run=0123456789ab"
    )


def test_several_sources_are_the_same_however_each_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorded = history.source_text(["one", "two"])
    entries = judged(evaluation(20, network=1), source=recorded)
    assert find_baseline("last-good", entries, NOW, source=history.source_text([f"{tmp_path}/one/", "./two"]))
    assert find_baseline("last-good", entries, NOW, source=f"{tmp_path}/one, two")
    older = [replace(entry, source="./one, two/") for entry in entries]  # as versions without places wrote it
    assert find_baseline("last-good", older, NOW, source=recorded)
    for other in (["one"], ["two", "one"], ["one", "two", "three"]):
        assert find_baseline("last-good", entries, NOW, source=history.source_text(other)) is None


def test_a_source_with_a_secret_is_the_same_with_another() -> None:
    entries = judged(evaluation(20, network=1), source=history.source_text(["https://me:word@host/val"]))
    assert "word" not in entries[0].source
    assert find_baseline("last-good", entries, NOW, source="https://me:other@host/val") is not None


def test_an_evaluation_submitted_again_is_not_its_own_baseline() -> None:
    assert found("last-good", evaluation(20, network=2)).run_url == Url("s3://runs/1/run=0123456789ab")


@pytest.mark.parametrize("wanted", ["s3://models/net-3", "s3://models/net-3/", "net-3", "abcdef000003", "000000000003"])
def test_a_baseline_has_the_name_of_a_checkpoint_or_a_fingerprint(wanted: str) -> None:
    assert found(wanted).run_url == Url("s3://runs/3/run=0123456789ab")


def test_of_a_checkpoint_the_newest_evaluation_of_the_same_setting_is_taken() -> None:
    later = judged(evaluation(20, network=1, run_url=Url("s3://runs/b/run=1")), day=7)
    other = judged(evaluation(20, network=1, run_url=Url("s3://runs/c/run=1"), name="stride 8"), day=8)
    chosen = find_baseline("net-1", [*PAST, *later, *other], NOW, source="s3://fields/val")
    assert chosen.run_url == Url("s3://runs/b/run=1")


def test_of_a_checkpoint_another_setting_is_taken_where_the_same_has_none_whatever_the_order() -> None:
    days = [
        judged(evaluation(20, network=7, run_url=Url(f"s3://runs/{day}/run=1"), name="stride 8"), day=day)
        for day in (5, 9, 7)
    ]
    entries = [entry for day in days for entry in day]
    assert find_baseline("net-7", entries, NOW, source="s3://fields/val").run_url == Url("s3://runs/9/run=1")


def test_a_named_baseline_is_the_answer_that_was_judged() -> None:
    assert found("net-3").estimates == estimate(evaluation(20, network=3).answer.counts_nkk)


@pytest.mark.parametrize("recorded", ["/models/net-1", "/models/net-1/"])
@pytest.mark.parametrize("wanted", ["net-1", "net-1/", "/models/net-1", "/models/net-1/"])
def test_a_checkpoint_is_named_by_path_or_last_part_with_or_without_a_slash(recorded: str, wanted: str) -> None:
    entries = [replace(entry, checkpoint=recorded) for entry in judged(evaluation(20, network=1))]
    assert find_baseline(wanted, entries, NOW, source="s3://fields/val").checkpoint == recorded


def test_the_url_of_a_run_is_taken_whether_the_history_knows_it_or_not() -> None:
    assert found("s3://runs/4/run=0123456789ab").checkpoint == "s3://models/net-4"
    assert found("s3://elsewhere/run=ba9876543210/") == Baseline(Url("s3://elsewhere/run=ba9876543210"))


def test_an_unknown_baseline_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no baseline 'net-7'") as error:
        found("net-7")
    assert "s3://models/net-1, s3://models/net-2" in str(error.value)


def test_a_history_without_a_comparable_entry_says_so() -> None:
    with pytest.raises(ConfigError, match="no baseline 'net-1'") as error:
        found("net-1", source="s3://elsewhere")
    assert "no entry of this source and class map" in error.value.hint
    assert "last-good" in error.value.hint


@pytest.mark.parametrize("wanted", ["abcdef000003"[:digits] for digits in (6, 9)])
def test_six_digits_are_a_fingerprint(wanted: str) -> None:
    assert found(wanted) is not None


def test_five_digits_are_no_fingerprint() -> None:
    with pytest.raises(ConfigError):
        found("abcde")


def test_the_history_tells_a_worse_network_when_the_run_of_the_baseline_is_gone() -> None:
    verdict = apply_gates(evaluation(recall=0.6, network=9), GATES, baseline=found("last-good"))
    assert [check.name for check in verdict.checks if not check.passed] == ["mean_iou"]
    assert not verdict.comparison.paired
