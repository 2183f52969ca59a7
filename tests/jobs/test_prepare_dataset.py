"""Preparing a data set from end to end: in this process, on a real server, and on a real cluster."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra import session
from jobs import prepare_dataset
from pipeline.datasets.catalogue import DATASET_LAYOUTS
from pipeline.run import flow
from pipeline.run.ledger import Ledger
from pipeline.store.url import Url
from tests.pipeline.datasets.test_prepare import files_of, preparation, read_back
from tests.pipeline.datasets.test_receipts import problems
from tests.support import tiny_layout
from tests.support.drivers import Outcome, finish, forked, start
from tests.support.forked import ForkServer
from tests.support.ray_servers import Cluster
from tests.support.s3_servers import S3Server
from tests.support.tiny_layout import TINY, picture

TRAIN, VAL = 12, 3
Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A download without a fault."""
    folder = tmp_path_factory.mktemp("download")
    tiny_layout.write(Url(str(folder)), train=TRAIN, val=VAL)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the job in this process, without Ray, which only hands the shards around."""
    monkeypatch.setitem(DATASET_LAYOUTS, "tiny", TINY)
    monkeypatch.setattr(session, "connect", lambda: nullcontext([{"CPU": 1.0}]))
    monkeypatch.setattr(flow, "RemoteLedger", Ledger)
    monkeypatch.setattr(flow, "run_tasks", lambda _, units, work, **__: [work(unit) for unit in units])

    def run(root: Path | str, output: Path | str, *flags: str) -> Outcome:
        status = prepare_dataset.main([*flags_for(root, output), *flags])
        said = capfd.readouterr()
        lines = said.out.strip().splitlines()
        return Outcome(status, json.loads(lines[-1]) if lines else {}, said.err)

    return run


@pytest.fixture
def whole(here: Run, download: Path, tmp_path: Path) -> Path:
    """What a run that nothing happened to leaves."""
    outcome = here(download, tmp_path / "whole")
    assert outcome.status == 0, outcome.log
    return tmp_path / "whole"


def flags_for(root: Path | str, output: Path | str) -> list[str]:
    flags = ["--layout", "tiny", "--root", str(root), "--output", str(output), "--splits", "train", "val"]
    return [*flags, "--shard-examples", "2", "--lease-s", "3"]


def content_of(output: Path) -> dict[str, bytes]:
    """Every file but leases, which tell processes apart, and settings, which name the folder."""
    own = ("_run/owner", "_run/config")
    return {name: data for name, data in files_of(output).items() if not name.startswith(own)}


# ---------------------------------------------------------------- in this process


def test_every_example_is_there_and_the_manifest_describes_it(whole: Path, download: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_bytes())
    found = {name: (split["ok"], split["failed"]) for name, split in manifest["splits"].items()}
    assert found == {"train": (TRAIN, 0), "val": (VAL, 0)}
    labels = [TINY.read(Url(str(download)), one).label_hw for one in TINY.examples(Url(str(download)), "val")]
    counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)[:7]
    assert manifest["splits"]["val"]["class_pixels"] == counts.tolist()
    assert (manifest["origin"]["license"], manifest["origin"]["source"]) == (TINY.license, TINY.source)
    assert problems(whole) == []


def test_tars_hold_what_the_download_holds(here: Run, download: Path, tmp_path: Path) -> None:
    outcome = here(download, tmp_path / "out", "--format", "tar")
    assert outcome.status == 0, outcome.log
    found = read_back(preparation(tmp_path, format="tar"))
    expected = [TINY.read(Url(str(download)), one) for one in TINY.examples(Url(str(download)), "train")]
    assert {key: image for key, (image, _) in found.items()} == {one.key: one.image for one in expected}


def test_the_same_command_after_success_changes_nothing(here: Run, whole: Path, download: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    again = here(download, whole)
    assert (again.status, again.summary["examples_now"]) == (0, 0)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


@pytest.mark.parametrize("flag", ["--format=tar", "--cut-px=64", "--root=elsewhere", "--shard-examples=3"])
def test_another_preparation_of_the_same_output_is_refused_by_name(
    here: Run, flag: str, whole: Path, download: Path
) -> None:
    before = files_of(whole)
    refused = here(download, whole, flag)
    assert refused.status == 1
    assert f"{flag[2:].partition('=')[0].replace('-', '_')}: " in refused.log
    assert files_of(whole) == before


def test_a_download_that_changed_under_an_unfinished_output_is_refused(here: Run, tmp_path: Path) -> None:
    tiny_layout.write(Url(str(tmp_path / "in")), train=4, val=1)
    here(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/_SUCCESS").unlink()
    tiny_layout.write(Url(str(tmp_path / "in")), train=5, val=1)
    refused = here(tmp_path / "in", tmp_path / "out")
    assert refused.status == 1
    assert "has other examples" in refused.log


def test_bad_examples_are_counted_rows_and_tried_again_once_the_cause_is_gone(here: Run, tmp_path: Path) -> None:
    root, output = tmp_path / "in", tmp_path / "out"
    tiny_layout.write(Url(str(root)), train=0, val=1)
    expected = tiny_layout.write_broken(Url(str(root)))
    first = here(root, output)
    assert first.status == 1  # more than one in a hundred
    assert first.summary["splits"]["train"] == {"ok": 1, "failed": len(expected) - 1, "rows": 1}
    rows = [row for path in output.rglob("failures/**/*.parquet") for row in pq.read_table(path).to_pylist()]
    bad = {key: code for key, code in expected.items() if code != "ok"}
    assert {row["key"]: row["error_code"] for row in rows} == bad
    for key in expected:
        tiny_layout.add(Url(str(root)), f"{Path(key).name}.jpg", *picture(3))
    again = here(root, output, "--retry-failed")
    assert again.status == 0, again.log
    assert again.summary["splits"]["train"] == {"ok": len(expected), "failed": 0, "rows": len(expected)}
    assert problems(output) == []
    assert not list(output.rglob("failures/**/*.parquet"))


def test_verify_finds_a_changed_byte(here: Run, whole: Path, download: Path) -> None:
    assert here(download, whole, "--verify").summary["problems"] == 0
    part = next((whole / "val").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    found = here(download, whole, "--verify")
    assert (found.status, found.summary["problems"]) == (1, 1)
    assert part.name in found.log


def test_an_unknown_set_is_refused_with_those_there_are(here: Run, tmp_path: Path) -> None:
    refused = here(tmp_path / "in", tmp_path / "out", "--layout", "nope")
    assert refused.status == 1
    assert "'nope'" in refused.log
    assert "voc" in refused.log


@pytest.mark.s3
def test_an_object_store_holds_what_a_folder_holds(here: Run, s3_url: str, moto_server: S3Server, whole: Path) -> None:
    tiny_layout.write(Url(f"{s3_url}/in"), train=TRAIN, val=VAL)
    outcome = here(f"{s3_url}/in", f"{s3_url}/out")
    assert outcome.status == 0, outcome.log
    client, bucket = moto_server.client(), s3_url.removeprefix("s3://")
    for name, data in content_of(whole).items():
        assert client.get_object(Bucket=bucket, Key=f"out/{name}")["Body"].read() == data
    assert here(f"{s3_url}/in", f"{s3_url}/out").summary["examples_now"] == 0
    assert here(f"{s3_url}/in", f"{s3_url}/out", "--verify").summary["problems"] == 0


# ---------------------------------------------------------------- on a cluster


def on_a_cluster(root: Path, output: Path, *flags: str, moment: str = "never", **how: Any) -> Outcome:
    return finish(start(moment, *flags_for(root, output), *flags, module="tests.support.tiny_layout", **how))


def test_what_a_killed_writer_left_is_gone_from_the_finished_set(
    here: Run, download: Path, whole: Path, tmp_path: Path
) -> None:
    left = tmp_path / "out/_run/shards/.tmp-0123456789abcdef"
    left.parent.mkdir(parents=True)
    left.touch()
    assert here(download, tmp_path / "out").status == 0
    assert content_of(tmp_path / "out") == content_of(whole)


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["plan.json", "receipts=1", "manifest.json"])
def test_a_driver_killed_at_any_moment_is_finished_by_the_same_command(
    moment: str, here: Run, forks: ForkServer, whole: Path, download: Path, tmp_path: Path
) -> None:
    flags = flags_for(download, tmp_path / "out")
    killed = forked(forks, moment, *flags, module="tests.support.tiny_layout")
    assert_finished_by(lambda: here(download, tmp_path / "out"), killed, tmp_path, whole)


@pytest.mark.ray
@pytest.mark.faults
def test_a_driver_killed_while_its_workers_go_on_is_finished_by_the_same_command(
    whole: Path, download: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    killed = on_a_cluster(download, tmp_path / "out", cluster=ray_cluster, moment="receipts=1")
    resume = partial(on_a_cluster, download, tmp_path / "out", cluster=ray_cluster)
    assert_finished_by(resume, killed, tmp_path, whole)


def assert_finished_by(resume: Callable[[], Outcome], killed: Outcome, tmp_path: Path, whole: Path) -> None:
    """What a killed driver left in `tmp_path/out` becomes, by one more run, what a whole run leaves."""
    assert killed.status == -9, killed.log
    assert not (tmp_path / "out/_SUCCESS").exists()
    receipts = len(list(tmp_path.glob("out/_run/shards/*.json")))
    resumed = resume()
    assert resumed.status == 0, resumed.log
    assert resumed.summary["examples_now"] <= TRAIN + VAL - receipts  # a shard has one example at least
    assert content_of(tmp_path / "out") == content_of(whole)


@pytest.mark.ray
@pytest.mark.faults
def test_an_example_that_kills_its_worker_fails_alone(ray_cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "in"
    tiny_layout.write(Url(str(root)), train=6, val=1)
    tiny_layout.add(Url(str(root)), f"{tiny_layout.DEADLY}.jpg", *picture(3))
    (root / "train.txt").write_text(f"{tiny_layout.DEADLY}.jpg " + (root / "train.txt").read_text())
    outcome = on_a_cluster(root, tmp_path / "out", "--max-failed-fraction", "0.2", cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    assert manifest["splits"]["train"]["error_codes"] == {"crashed": 1}
    assert manifest["splits"]["train"]["ok"] == 6
