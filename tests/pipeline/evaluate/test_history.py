import io
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
from pipeline.score.intervals import METRICS, estimate
from pipeline.store.url import Url
from tests.support.evaluations import CLASSES, evaluation

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


def test_the_url_of_a_run_is_taken_whether_the_history_knows_it_or_not() -> None:
    assert found("s3://runs/4/run=0123456789ab").checkpoint == "s3://models/net-4"
    assert found("s3://elsewhere/run=ba9876543210/") == Baseline(Url("s3://elsewhere/run=ba9876543210"))


def test_an_unknown_baseline_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no baseline 'net-7'") as error:
        found("net-7")
    assert "s3://models/net-1, s3://models/net-2" in str(error.value)


def test_five_digits_are_no_fingerprint() -> None:
    with pytest.raises(ConfigError):
        found("abcde")


def test_the_history_tells_a_worse_network_when_the_run_of_the_baseline_is_gone() -> None:
    verdict = apply_gates(evaluation(recall=0.6, network=9), GATES, baseline=found("last-good"))
    assert [check.name for check in verdict.checks if not check.passed] == ["mean_iou"]
    assert not verdict.comparison.paired
