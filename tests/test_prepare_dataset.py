"""Preparing a data set from end to end, on a real cluster and a real server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import inventory
from tests import tiny_layout
from tests.drivers import ROOT, Outcome, finish, start
from tests.ray_servers import Cluster
from tests.s3_servers import S3Server
from tests.test_inventory import problems
from tests.test_prepare import files_of, preparation, prepared, read_back
from tests.tiny_layout import TINY, picture

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

TRAIN, VAL = 12, 3


@pytest.fixture(scope="session")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A download without a fault."""
    folder = tmp_path_factory.mktemp("download")
    tiny_layout.write(str(folder), train=TRAIN, val=VAL)
    return folder


@pytest.fixture(scope="session")
def whole(download: Path, ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run that nothing happened to leaves; not to be changed."""
    output = tmp_path_factory.mktemp("whole")
    outcome = prepare(download, output, cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    return output


def flags_for(root: Path | str, output: Path | str) -> list[str]:
    flags = ["--layout", "tiny", "--root", str(root), "--output", str(output), "--splits", "train", "val"]
    return [*flags, "--shard-examples", "2", "--lease-s", "3"]


def prepare(root: Path | str, output: Path | str, *flags: str, moment: str = "never", **how: Any) -> Outcome:
    return finish(start(moment, *flags_for(root, output), *flags, module="tests.tiny_layout", **how))


def content_of(output: Path) -> dict[str, bytes]:
    """Every file but those of leases, which tell processes apart, and settings, which name the folder."""
    return {name: data for name, data in files_of(output).items() if not name.startswith(("_run/owner", "_run/config"))}


def test_every_example_is_there_and_the_manifest_describes_it(whole: Path, download: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_bytes())
    found = {name: (split["ok"], split["failed"]) for name, split in manifest["splits"].items()}
    assert found == {"train": (TRAIN, 0), "val": (VAL, 0)}
    labels = [TINY.read(str(download), one).label_hw for one in TINY.examples(str(download), "val")]
    counts = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)[:7]
    assert manifest["splits"]["val"]["class_pixels"] == counts.tolist()
    assert (manifest["origin"]["license"], manifest["origin"]["source"]) == (TINY.license, TINY.source)
    assert problems(whole) == []


def test_a_cluster_gives_the_same_bytes_as_one_process(whole: Path, download: Path, tmp_path: Path) -> None:
    job = preparation(tmp_path, root=str(download), part_bytes=2**28)
    prepared(job, shard_examples=2)
    alone, together = files_of(tmp_path / "out"), content_of(whole)
    assert {name for name in together if name not in alone and not name.startswith(("val/", "_run/"))} == {
        "_SUCCESS",
        "classes.yaml",
        "manifest.json",
    }
    assert alone == {name: together[name] for name in alone}


def test_tars_hold_what_the_download_holds(download: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    outcome = prepare(download, tmp_path / "out", "--format", "tar", cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    found = read_back(preparation(tmp_path, format="tar"))
    expected = [TINY.read(str(download), one) for one in TINY.examples(str(download), "train")]
    assert {key: image for key, (image, _) in found.items()} == {one.key: one.image for one in expected}


def test_the_same_command_after_success_changes_nothing(whole: Path, download: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    again = prepare(download, whole)
    assert (again.status, again.summary["examples_now"]) == (0, 0)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


@pytest.mark.parametrize("flag", ["--format=tar", "--cut-px=64", "--root=elsewhere"])
def test_another_preparation_of_the_same_output_is_refused_by_name(flag: str, whole: Path, download: Path) -> None:
    refused = prepare(download, whole, flag)
    assert refused.status == 1
    assert f"{flag[2:].partition('=')[0].replace('-', '_')}: " in refused.log


def test_a_download_that_changed_under_an_unfinished_output_is_refused(ray_cluster: Cluster, tmp_path: Path) -> None:
    tiny_layout.write(str(tmp_path / "in"), train=4, val=1)
    prepare(tmp_path / "in", tmp_path / "out", cluster=ray_cluster, moment="plan.json")
    tiny_layout.write(str(tmp_path / "in"), train=5, val=1)
    refused = prepare(tmp_path / "in", tmp_path / "out", cluster=ray_cluster)
    assert refused.status == 1
    assert "lists other examples" in refused.log


def test_bad_examples_are_counted_rows_and_tried_again_once_the_cause_is_gone(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    root, output = tmp_path / "in", tmp_path / "out"
    tiny_layout.write(str(root), train=0, val=1)
    expected = tiny_layout.write_broken(str(root))
    first = prepare(root, output, cluster=ray_cluster)
    assert first.status == 1  # more than one in a hundred
    assert first.summary["splits"]["train"] == {"ok": 1, "failed": len(expected) - 1, "rows": 1}
    rows = [row for path in output.rglob("failures/**/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["key"]: row["error_code"] for row in rows} == {
        key: code for key, code in expected.items() if code != "ok"
    }
    for key in expected:
        tiny_layout.add(str(root), f"{Path(key).name}.jpg", *picture(3))
    again = prepare(root, output, "--retry-failed", cluster=ray_cluster)
    assert again.status == 0, again.log
    assert again.summary["splits"]["train"] == {"ok": len(expected), "failed": 0, "rows": len(expected)}
    assert problems(output) == []
    assert not list(output.rglob("failures/**/*.parquet"))


def test_verify_finds_a_changed_byte(whole: Path, download: Path, tmp_path: Path) -> None:
    output = shutil.copytree(whole, tmp_path / "copy")
    part = next((output / "val").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    found = prepare(download, output, "--verify")
    assert (found.status, found.summary["problems"]) == (1, 1)
    assert part.name in found.log


def test_an_unknown_set_is_refused_with_those_there_are(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/prepare_dataset.py", "--layout", "nope", "--root", "in", "--output", "out"]
    done = subprocess.run([*command, "--splits", "train"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "'nope'" in done.stderr
    assert "voc" in done.stderr


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["plan.json", "receipts=1", "receipts=4", "manifest.json"])
def test_a_driver_killed_at_any_moment_is_finished_by_the_same_command(
    moment: str, whole: Path, download: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    killed = prepare(download, tmp_path, cluster=ray_cluster, moment=moment)
    assert killed.status == -9, killed.log
    assert not (tmp_path / "_SUCCESS").exists()
    receipts = len(list(tmp_path.glob("_run/shards/*.json")))
    resumed = prepare(download, tmp_path, cluster=ray_cluster)
    assert resumed.status == 0, resumed.log
    assert resumed.summary["examples_now"] <= TRAIN + VAL - receipts  # a shard has one example at least
    assert content_of(tmp_path) == content_of(whole)


@pytest.mark.faults
def test_an_example_that_kills_its_worker_fails_alone(ray_cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "in"
    tiny_layout.write(str(root), train=6, val=1)
    tiny_layout.add(str(root), f"{tiny_layout.DEADLY}.jpg", *picture(3))
    (root / "train.txt").write_text(f"{tiny_layout.DEADLY}.jpg " + (root / "train.txt").read_text())
    outcome = prepare(root, tmp_path / "out", "--max-failed-fraction", "0.2", cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    assert manifest["splits"]["train"]["error_codes"] == {"crashed": 1}
    assert manifest["splits"]["train"]["ok"] == 6


@pytest.mark.s3
def test_an_object_store_holds_what_a_folder_holds(s3_url: str, moto_server: S3Server, whole: Path) -> None:
    tiny_layout.write(f"{s3_url}/in", train=TRAIN, val=VAL)
    outcome = prepare(f"{s3_url}/in", f"{s3_url}/out")
    assert outcome.status == 0, outcome.log
    client, bucket = moto_server.client(), s3_url.removeprefix("s3://")
    names = [one["Key"] for one in client.list_objects_v2(Bucket=bucket, Prefix="out/")["Contents"]]
    found = {name: client.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names}
    wanted = {f"out/{name}": data for name, data in content_of(whole).items()}
    assert {name: data for name, data in found.items() if name in wanted} == wanted
    assert list(inventory.problems(f"{s3_url}/out", inventory.load(f"{s3_url}/out"))) == []
