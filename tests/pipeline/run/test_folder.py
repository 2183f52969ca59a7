"""The folder of a run: one table for other tools, and names of older versions that are still read."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from jobs import run as runs
from jobs.run import Run, RunOutcome
from pipeline.datasets import farmland
from pipeline.records import ROW_SCHEMA
from pipeline.run import folder, inspection, manifest
from pipeline.run.footers import read_footers
from pipeline.run.ledger import RunProgress
from pipeline.source.plan import plan_source
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support import judged_runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three images, of which one is damaged, with its report."""
    base = tmp_path_factory.mktemp("finished")
    farmland.write_folder(Url(str(base / "in")), 3, size_px=64, seed=1, with_labels=True)
    (base / "in/images/broken.jpg").write_bytes(b"no image")
    said = {"source": [str(base / "in")], "output": str(base / "out"), "checkpoint": "farmland"}
    run = judged_runs.carry_out(judged_runs.config(**said))
    done = manifest.read_manifest(run.url)
    assert done is not None
    runs.write_report(run, RunOutcome(done, RunProgress(), 1.0), read_footers(run.url))
    return run


def names_in(url: Url) -> set[str]:
    return {file.path for file in objects.list_files(url)}


def age(url: Url) -> None:
    """Give the objects of a run the names and forms of older versions."""
    with pa.ipc.open_file(objects.read_bytes(url / folder.PLAN)) as plan:
        pq.write_table(plan.read_all(), (url / folder.OLDER_NAMES[folder.PLAN]).raw)
    objects.put(url / folder.OLDER_NAMES[folder.MANIFEST], objects.read_bytes(url / folder.MANIFEST))
    objects.delete(url / folder.PLAN)
    objects.delete(url / folder.MANIFEST)
    objects.delete(url / folder.HUGGING_FACE)


def test_pandas_and_pyarrow_read_the_folder_of_a_run_as_its_rows(finished: Run) -> None:
    done = manifest.read_manifest(finished.url)
    assert done is not None
    table = pyarrow.dataset.dataset(finished.url.raw)
    assert (done.rows, done.failed) == (4, 1)
    assert table.count_rows() == len(pd.read_parquet(finished.url.raw)) == done.rows
    assert table.schema.remove_metadata() == ROW_SCHEMA
    whole = pd.read_parquet(Path(finished.url.raw).parent)
    assert whole["run"].unique().tolist() == [finished.fingerprint[:12]]


def test_hugging_face_reads_the_folder_of_a_run_as_its_rows(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(finished.url.raw, split="train", cache_dir=str(tmp_path))
    assert sorted(rows["key"]) == sorted(pd.read_parquet(finished.url.raw)["key"])


def test_beside_the_parts_nothing_is_parquet_and_every_name_is_skipped_by_readers(finished: Run) -> None:
    others = {name for name in names_in(finished.url) if not name.startswith("parts/part-")}
    assert {folder.MANIFEST, folder.SUCCESS, folder.REPORT, folder.OVERLAYS, folder.PLAN} < others
    assert [name for name in others if name[0] not in "_." or name.endswith(".parquet")] == []


def test_a_run_of_an_older_version_is_read_under_its_names(tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 2, size_px=64, seed=1, with_labels=True)
    said = {"source": [str(tmp_path / "in")], "output": str(tmp_path / "out"), "checkpoint": "farmland"}
    run = judged_runs.carry_out(judged_runs.config(**said))
    before = manifest.read_manifest(run.url)
    age(run.url)
    assert manifest.read_manifest(run.url) == before
    assert inspection.run_status(run.url)["finished"]
    assert inspection.count_problems(run.url) == 0
    runs.refuse_changed_source(run, plan_source(run.cfg))  # reads the older plan


def test_an_older_run_that_has_work_again_ends_with_the_present_names_alone(tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 2, size_px=64, seed=1, with_labels=True)
    said = {"source": [str(tmp_path / "in")], "output": str(tmp_path / "out"), "checkpoint": "farmland"}
    run = judged_runs.carry_out(judged_runs.config(**said))
    age(run.url)
    objects.put(run.url / folder.OLDER_NAMES[folder.REPORT], b"of before")
    runs.resume(run, plan_source(run.cfg))
    assert manifest.read_manifest(run.url) is None
    assert folder.OLDER_NAMES[folder.MANIFEST] not in names_in(run.url)
    assert folder.OLDER_NAMES[folder.REPORT] in names_in(run.url)  # until there is another one
    closed, footers = manifest.close_run(
        run.url, plan_source(run.cfg), run.classes, fingerprint=run.fingerprint, on_duplicate="fail"
    )
    runs.write_report(run, RunOutcome(closed, RunProgress(), 1.0), footers)
    manifest.mark_finished(run.url)
    assert manifest.read_manifest(run.url) == closed
    assert names_in(run.url).isdisjoint(folder.OLDER_NAMES.values())


def test_a_retry_of_failed_rows_keeps_the_plan_of_an_older_run(tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 2, size_px=64, seed=1, with_labels=True)
    (tmp_path / "in/images/broken.jpg").write_bytes(b"no image")
    said = {"source": [str(tmp_path / "in")], "output": str(tmp_path / "out"), "checkpoint": "farmland"}
    run = judged_runs.carry_out(judged_runs.config(**said))
    age(run.url)
    assert inspection.retry_failed_rows(run.url) == 1
    assert folder.find_object(run.url, folder.PLAN).name == "plan.parquet"
