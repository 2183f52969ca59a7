"""The evaluation job from end to end: without Ray, and on a real cluster over S3 on loopback."""

import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import farmland
from pipeline.evaluate import evaluation
from pipeline.image import encode
from pipeline.records import rows_from_table
from pipeline.run import parts
from pipeline.store import objects
from pipeline.store.url import Url
from tests import ROOT
from tests.support import ray_servers
from tests.support.checkpoints import small_edges
from tests.support.drivers import QUICK, SMALL_PARTS, Outcome, finish, forked, kill_a_worker, start
from tests.support.forked import ForkServer
from tests.support.judged_runs import counted
from tests.support.ray_servers import Cluster
from tests.support.s3_servers import S3Server
from tests.support.seasons import summers, write_zones, zones_of

FIELDS = 40


Run = Callable[..., Outcome]


@pytest.fixture
def evaluate(forks: ForkServer) -> Run:
    """Runs the job to its end, small and quick, in a process of its own and without Ray."""
    return lambda *flags: forked(forks, *flags, *QUICK, module="jobs.evaluate")


def expected_counts(run_url: Url, labels: str, class_map) -> np.ndarray:
    """(N, K, K + 1) by one process and numpy, from the labels as files and the masks as committed."""
    tables = [parts.read_columns(run_url, name, ["key", "mask", "status"]) for name in parts.list_parts(run_url)]
    masks = {row["key"]: row["mask"] for table in tables for row in table.to_pylist() if row["status"] == "ok"}
    found = []
    for key in sorted(masks):
        truth_hw = encode.read_mask_png(objects.read_bytes(Url(f"{labels}/{key[:-4]}.png")))
        found.append(counted(truth_hw, encode.read_mask_png(masks[key]), class_map))
    return np.stack(found)


def run_of(outcome: Outcome) -> str:
    return outcome.summary["settings"]["default"]["run"]


@pytest.fixture(scope="module")
def wide_cluster(moto_server: S3Server) -> Iterator[Cluster]:
    """Room for four networks, on however few cores; its workers know the store."""
    with ray_servers.cluster(num_cpus=8, PYTHONPATH=str(ROOT), **moto_server.environment) as running:
        yield running


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.faults
def test_scores_over_s3_are_those_of_one_process_with_any_number_of_workers_and_one_killed(
    s3_url: str, wide_cluster: Cluster, tmp_path: Path
) -> None:
    farmland.write_folder(Url(f"{s3_url}/val"), FIELDS, size_px=96, seed=9, with_labels=True)
    flags = ["--source", f"{s3_url}/val", "--checkpoint", "farmland", *QUICK, *SMALL_PARTS]
    quiet = None
    for workers, killed in ((1, ""), (2, "InferStage"), (4, "RefineStage")):
        output = tmp_path / f"{workers}-{killed}"
        how = ["--output", str(output), "--runtime.infer-workers", str(workers)]
        driver = start(*flags, *how, module="jobs.evaluate", cluster=wide_cluster)
        if killed:
            kill_a_worker(wide_cluster, killed, when=lambda at=output: any(at.glob("run=*/parts/part-*")))
        outcome = finish(driver)
        assert outcome.status == 0, outcome.log
        found = evaluation.read_evaluation(Url(run_of(outcome)))
        assert len(found.images) == FIELDS
        np.testing.assert_array_equal(
            found.answer.counts_nkk, expected_counts(found.run_url, f"{s3_url}/val/labels", found.classes)
        )
        quiet = quiet or found
        assert found.keys == quiet.keys
        for name, answer in quiet.answers.items():
            for array in ("counts_nkk", "bands_bkk", "boundary", "reliability"):
                np.testing.assert_array_equal(getattr(answer, array), getattr(found.answers[name], array))


def test_several_settings_history_and_gate_in_one_go(evaluate: Run, tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 4, size_px=64, seed=9, with_labels=True)
    settings = "settings:\n  plain: {refine: {engine: none}}\n  fine: {infer: {output_stride: 8}}\n"
    (tmp_path / "run.yaml").write_text(settings)
    (tmp_path / "gates.yaml").write_text("min_images: 2\nfloors: {crop: 0.999}\n")
    flags = ["--config", str(tmp_path / "run.yaml"), "--source", str(tmp_path / "in"), "--checkpoint", "farmland"]
    flags += ["--history", str(tmp_path / "history"), "--gates", str(tmp_path / "gates.yaml")]
    outcome = evaluate(*flags)
    assert (outcome.status, outcome.summary["gate"]) == (3, "failed"), outcome.log
    assert "crop floor" in outcome.log
    assert outcome.summary["settings"].keys() == {"plain", "fine"}
    assert outcome.summary["settings"]["plain"]["mean_iou"].keys() == {"network"}
    folder = Path(outcome.summary["evaluation"])
    assert json.loads((folder / "evaluation.json").read_text()).keys() == {"plain", "fine"}
    assert len(list((tmp_path / "history").glob("evaluation-*.parquet"))) == 2
    again = evaluate(*flags)
    assert [one["rows_now"] for one in again.summary["settings"].values()] == [0, 0]
    assert len(list((tmp_path / "history").glob("evaluation-*.parquet"))) == 2


def test_the_report_shows_the_learned_edges_of_the_worst_images(evaluate: Run, tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 10, size_px=40, seed=9, with_labels=True)
    flags = ["--source", str(tmp_path / "in"), "--refine.engine", "none", "--output"]
    learned = evaluate(*flags, str(tmp_path / "dt"), "--checkpoint", str(small_edges(tmp_path / "model")))
    page = Path(learned.summary["evaluation"], "report/index.html").read_text()
    assert page.count('alt="edge map of ') == 8
    assert "and of 8 images the edge map" in page
    other = evaluate(*flags, str(tmp_path / "other"), "--checkpoint", "farmland")
    assert "edge map" not in Path(other.summary["evaluation"], "report/index.html").read_text()


def test_zones_outside_their_season_fail_the_gate_and_damaged_ones_stop_the_job_before_it_runs(
    evaluate: Run, tmp_path: Path
) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 2, size_px=48, seed=9, with_labels=True)
    zones, (out, history) = tmp_path / "zones.parquet", (str(tmp_path / name) for name in ("out", "history"))
    (tmp_path / "gates.yaml").write_text(f"min_images: 2\nmetrics: {{}}\nseason: {{zones: '{zones}'}}\n")
    flags = ["--source", str(tmp_path / "in"), "--output", out, "--checkpoint", "farmland"]
    flags += ["--history", history, "--gates", str(tmp_path / "gates.yaml"), "--refine.engine", "none"]
    zones.write_bytes(b"PAR1")
    damaged = evaluate(*flags)
    assert (damaged.status, "zones.parquet is damaged" in damaged.log, Path(out).exists()) == (1, True, False)
    past = {(day, "a"): 0.4 for day in summers([2023, 2024])}
    for crop, status in ((0.42, 0), (0.7, 3)):
        write_zones(Url(str(zones)), zones_of(past | {(date(2025, 6, 15), "a"): crop}))
        outcome = evaluate(*flags)
        assert outcome.status == status, outcome.log
        assert outcome.summary["settings"]["default"]["season"]["outside"] == (2 if status else 0)
    assert "gate FAILED class_shares season: crop 70.0% on 2025-06-15, 35.0% to 45.0% by 12 dates" in outcome.log
    assert "35.0% to 45.0% by 12 dates" in Path(outcome.summary["report"]).read_text()
    assert len(list(Path(history).glob("evaluation-*.parquet"))) == 2


def test_more_failures_than_allowed_are_an_exit_status(evaluate: Run, tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 3, size_px=48, seed=9, with_labels=True)
    (tmp_path / "in/labels/farm_000001.png").unlink()
    flags = ["--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--checkpoint", "farmland"]
    outcome = evaluate(*flags)
    assert outcome.status == 1, outcome.log
    rows = rows_from_table(parts.read_columns(Url(run_of(outcome)), parts.list_parts(Url(run_of(outcome)))[0], [*ROW]))
    assert [row.error_code for row in rows if row.error_code] == ["label_missing"]


ROW = ("key", "status", "shard", "source_etag", "model_fp", "config_fp", "error_code")
