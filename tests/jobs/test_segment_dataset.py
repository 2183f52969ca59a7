"""The main job from end to end, on real clusters and real servers."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import records
from pipeline.datasets import farmland
from pipeline.image import encode
from tests import ROOT
from tests.support import bad_inputs, poison
from tests.support.drivers import QUICK, finish, rows_of, segment, start
from tests.support.ray_servers import BIN, Cluster
from tests.support.s3_servers import FaultProxy, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

IMAGES = 30
SMALL_PARTS = ["--runtime.rows-per-part", "4", "--runtime.block-mib", "0.05", "--read.slice-images", "4"]


@pytest.fixture(scope="session")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small farmland images."""
    folder = tmp_path_factory.mktemp("fields")
    farmland.write_folder(str(folder), IMAGES, size_px=96, seed=7)
    return folder


@pytest.fixture(scope="session")
def undisturbed(fields: Path, ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The rows of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed")
    flags = ["--source", str(fields), "--output", str(output), "--checkpoint", "farmland", *SMALL_PARTS]
    outcome = segment(*flags, cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    return rows_of(outcome)


def flags_for(source: Path | str, output: Path | str) -> list[str]:
    return ["--source", str(source), "--output", str(output), "--checkpoint", "farmland"]


# ---------------------------------------------------------------- what a user gets


def test_every_image_gets_one_row_and_any_reader_understands_it(fields: Path, undisturbed: pd.DataFrame) -> None:
    assert undisturbed["key"].tolist() == [f"images/farm_{index:06d}.jpg" for index in range(IMAGES)]
    assert (undisturbed["status"] == "ok").all()
    first = undisturbed.iloc[0]
    mask = encode.read_mask_png(first["mask"])
    assert mask.shape == (first["height"], first["width"]) == (96, 96)
    assert list(first["class_pixels"]) == np.bincount(mask.ravel(), minlength=7).tolist()
    assert undisturbed["refined"].all()


def test_pandas_and_duckdb_read_the_parts_as_they_are(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    outcome = segment(*flags_for(fields, tmp_path), "--limit", "5", cluster=ray_cluster)
    parts = outcome.run / "parts"
    frame = pd.read_parquet(parts)
    assert list(frame.columns) == records.ROW_SCHEMA.names
    query = f"select status, count(*), avg(confidence) from '{parts}/*.parquet' group by status"
    assert duckdb.sql(query).fetchall()[0][:2] == ("ok", 5)
    assert {path.name for path in outcome.run.iterdir()} == {"_run", "parts", "report", "manifest.json", "_SUCCESS"}


def test_the_dry_run_says_what_would_be_done_and_writes_nothing(fields: Path, tmp_path: Path) -> None:
    (fields / "notes.txt").write_text("not an image")
    outcome = finish(start(*flags_for(fields, tmp_path / "out"), "--plan"))
    (fields / "notes.txt").unlink()
    assert outcome.status == 0, outcome.log
    assert outcome.summary["keys"] == IMAGES
    assert outcome.summary["bytes"] == sum(path.stat().st_size for path in fields.rglob("*.jpg"))
    assert outcome.summary["ignored_files"] == {".txt": 1}
    assert not (tmp_path / "out").exists()


def test_json_logs_are_json_and_the_summary_comes_last(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    outcome = segment(*flags_for(fields, tmp_path), "--limit", "3", "--runtime.log-format", "json", cluster=ray_cluster)
    said = [json.loads(line)["message"] for line in outcome.log.splitlines() if line.startswith("{")]
    assert any(message.startswith("resolved config") for message in said)
    assert any(message.startswith("look here first") for message in said)
    assert outcome.summary["rows"] == 3


def test_an_empty_folder_gives_a_finished_run_without_rows(ray_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"), cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    assert outcome.summary["rows"] == 0
    assert (outcome.run / "_SUCCESS").exists()


def test_a_script_path_works_like_a_module(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "jobs/segment_dataset.py", *flags_for(fields, tmp_path), "--plan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["keys"] == IMAGES


def test_ray_job_submit_runs_it_with_token_authentication(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    entry = ["python", "jobs/segment_dataset.py", *flags_for(fields, tmp_path), "--limit", "4", *QUICK]
    environment = {**ray_cluster.environment, "PATH": f"{BIN}:/usr/bin:/bin"}
    command = [BIN / "ray", "job", "submit", "--address", ray_cluster.dashboard, "--working-dir", "."]
    done = submitted([*command, "--", *entry], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_parquet(next(tmp_path.glob("run=*")) / "parts")) == 4
    refused = subprocess.run(
        [*command, "--", *entry],
        cwd=ROOT,
        env=environment | {"RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0


def submitted(command: list, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Submit a job, again for a while where the cluster's agent for jobs is not up: a busy machine starts it late."""
    until = time.monotonic() + 150
    while True:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > until:
            return done
        time.sleep(2)


# ---------------------------------------------------------------- resume


def test_the_same_command_after_success_does_nothing(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    segment(*flags_for(fields, tmp_path), "--limit", "5", cluster=ray_cluster)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = segment(*flags_for(fields, tmp_path), "--limit", "5")
    assert again.status == 0
    assert again.summary["rows_now"] == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_another_config_on_the_same_output_is_another_run(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    one = segment(*flags_for(fields, tmp_path), "--limit", "3", cluster=ray_cluster)
    two = segment(*flags_for(fields, tmp_path), "--limit", "3", "--refine.engine", "none", cluster=ray_cluster)
    assert one.run != two.run
    assert rows_of(one)["refined"].all()
    assert not rows_of(two)["refined"].any()


def test_a_folder_that_grew_is_finished_by_the_same_command(ray_cluster: Cluster, tmp_path: Path) -> None:
    farmland.write_folder(str(tmp_path / "in"), 8, size_px=64, seed=1)
    first = segment(*flags_for(tmp_path / "in", tmp_path / "out"), *SMALL_PARTS, cluster=ray_cluster)
    extra = tmp_path / "in/images/farm_000003b.jpg"
    extra.write_bytes((tmp_path / "in/images/farm_000003.jpg").read_bytes())
    second = segment(*flags_for(tmp_path / "in", tmp_path / "out"), *SMALL_PARTS, cluster=ray_cluster)
    assert (first.summary["rows"], second.summary["rows"], second.summary["rows_now"]) == (8, 9, 1)
    assert rows_of(second)["key"].is_unique


@pytest.mark.faults
@pytest.mark.parametrize(
    "moment", ["owner-000001.json", "plan.parquet", "parts=1", f"parts={IMAGES // 8}", "manifest.json", "overlays.png"]
)
def test_a_driver_killed_at_any_moment_is_finished_by_the_same_command(
    moment: str, fields: Path, ray_cluster: Cluster, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    flags = [*flags_for(fields, tmp_path), *SMALL_PARTS]
    killed = finish(start(moment, *flags, *QUICK, cluster=ray_cluster, module="tests.support.drivers"))
    assert killed.status == -9, killed.log
    assert not list(tmp_path.glob("run=*/_SUCCESS"))
    committed = sum(len(pd.read_parquet(part)) for part in tmp_path.glob("run=*/parts/part-*"))
    resumed = segment(*flags, cluster=ray_cluster)
    assert resumed.status == 0, resumed.log
    print(f"killed at {moment}: {committed} rows were committed, {resumed.summary['rows_now']} done after")
    # A write that was under way when its driver died may still land, so fewer rows may be left than were counted.
    assert resumed.summary["rows_now"] <= IMAGES - committed
    pd.testing.assert_frame_equal(rows_of(resumed), undisturbed)
    for look in ("--clean", "--verify"):  # a write that was killed leaves its temporary file
        assert subprocess.run([sys.executable, "-m", "jobs.inspect_run", tmp_path, look], cwd=ROOT).returncode == 0


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["InferStage", "RefineStage"])
def test_an_actor_killed_in_the_middle_of_a_task_costs_nothing(
    stage: str, fields: Path, ray_cluster: Cluster, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    driver = start(*flags_for(fields, tmp_path), *SMALL_PARTS, *QUICK, cluster=ray_cluster)
    kill_a_worker(ray_cluster, stage, when=lambda: any(tmp_path.glob("run=*/parts/part-*")))
    outcome = finish(driver)
    assert outcome.status == 0, outcome.log
    pd.testing.assert_frame_equal(rows_of(outcome), undisturbed)


def kill_a_worker(cluster: Cluster, stage: str, *, when: Callable[[], bool]) -> None:
    """Kill the actor of a stage with SIGKILL once `when` says so."""
    deadline = time.monotonic() + 150
    while not (when() and cluster.kill(stage)):
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.01)


@pytest.mark.faults
def test_an_image_that_kills_its_worker_fails_alone(ray_cluster: Cluster, tmp_path: Path) -> None:
    farmland.write_folder(str(tmp_path / "in"), 12, size_px=64, seed=1)
    for name, mark in {"farm_000003": poison.DECODER, "farm_000007": poison.REFINER}.items():
        path = tmp_path / f"in/images/{name}.jpg"
        path.write_bytes(poison.poisoned(path.read_bytes(), mark))
    flags = [*flags_for(tmp_path / "in", tmp_path / "out"), *QUICK, "--runtime.max-failed-fraction", "0.2"]
    outcome = finish(start(*flags, cluster=ray_cluster, module="tests.support.poison"))
    assert outcome.status == 0, outcome.log
    rows = rows_of(outcome).set_index("key")
    codes = rows["error_code"].dropna().to_dict()
    assert codes == {"images/farm_000003.jpg": "crashed", "images/farm_000007.jpg": "refine_crashed"}
    assert (rows["status"] == "ok").sum() == 10


# ---------------------------------------------------------------- one driver at a time


def test_of_two_drivers_one_works_and_the_other_names_it(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    flags = [*flags_for(fields, tmp_path), *SMALL_PARTS, *QUICK]
    first, second = (start(*flags, cluster=ray_cluster) for _ in range(2))
    outcomes = sorted((finish(driver) for driver in (first, second)), key=lambda one: one.status)
    assert [one.status for one in outcomes] == [0, 1], outcomes[1].log
    assert "another driver just took this run" in outcomes[1].log or "held by a live driver" in outcomes[1].log
    assert len(rows_of(outcomes[0])) == IMAGES


# ---------------------------------------------------------------- bad inputs


def test_bad_inputs_end_as_the_table_says_and_the_run_completes(ray_cluster: Cluster, tmp_path: Path) -> None:
    known = {"jpg", "jpeg", "png", "webp", "tif", "tiff"}
    expected = {}
    (tmp_path / "in").mkdir()
    for case in bad_inputs.CASES:
        suffix = case.suffix.lstrip(".")
        path = tmp_path / "in" / f"{case.name}.{suffix if suffix in known else 'jpg'}"
        path.write_bytes(case.make())
        expected[path.name] = case.expected
    assert len([code for code in expected.values() if code != "ok"]) >= 25
    flags = ["--decode.max-mpx", "20", "--runtime.max-failed-fraction", "1"]
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"), *flags, cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    rows = rows_of(outcome).set_index("key")
    assert rows["error_code"].fillna("ok").to_dict() == expected
    assert (rows.loc[rows["status"] == "failed", "error_detail"].str.len() > 0).all()


def test_too_many_failures_decide_the_exit_status(ray_cluster: Cluster, tmp_path: Path) -> None:
    farmland.write_folder(str(tmp_path / "in"), 3, size_px=64, seed=1)
    (tmp_path / "in/broken.jpg").write_bytes(b"<html>no</html>")
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"), cluster=ray_cluster)
    assert outcome.status == 1
    assert outcome.summary["error_codes"] == {"not_an_image": 1}
    assert (outcome.run / "_SUCCESS").exists()
    (tmp_path / "in/broken.jpg").unlink()


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_cut_tar_and_a_sample_without_image_are_counted_rows(ray_cluster: Cluster, tmp_path: Path) -> None:
    jpeg = next(farmland._jpegs(1, size_px=64, seed=1, workers=1))
    whole = tar_of({"a.jpg": jpeg, "b.json": b"{}", "c.jpg": jpeg})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/whole.tar").write_bytes(whole)
    (tmp_path / "in/cut.tar").write_bytes(whole[: 512 + -(-len(jpeg) // 512) * 512])
    flags = ["--runtime.max-failed-fraction", "1"]
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"), *flags, cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    found = rows_of(outcome).set_index("key")["error_code"].fillna("ok").to_dict()
    assert found == {
        "cut.tar#": "archive_truncated",
        "cut.tar#a": "ok",
        "whole.tar#a": "ok",
        "whole.tar#b": "missing_pair",
        "whole.tar#c": "ok",
    }


def test_a_name_met_twice_in_a_tar_is_named_and_stops_success(ray_cluster: Cluster, tmp_path: Path) -> None:
    jpeg = next(farmland._jpegs(1, size_px=64, seed=1, workers=1))
    (tmp_path / "in").mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("a.jpg", "b.jpg", "a.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg)
            tar.addfile(info, io.BytesIO(jpeg))
    (tmp_path / "in/twice.tar").write_bytes(out.getvalue())
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"), cluster=ray_cluster)
    assert outcome.status == 1
    assert "twice.tar#a" in outcome.log
    assert not list((tmp_path / "out").glob("run=*/_SUCCESS"))
    kept = segment(*flags_for(tmp_path / "in", tmp_path / "out2"), "--read.on-duplicate", "suffix", cluster=ray_cluster)
    assert rows_of(kept)["key"].tolist() == ["twice.tar#a", "twice.tar#a~2", "twice.tar#b"]


# ---------------------------------------------------------------- inspect


def test_failed_rows_are_listed_and_retried_once_the_cause_is_gone(ray_cluster: Cluster, tmp_path: Path) -> None:
    """A missing object that comes back: its row fails, is retried, and then is fine."""
    farmland.write_folder(str(tmp_path / "in"), 4, size_px=64, seed=1)
    good, bad = (tmp_path / f"in/images/farm_00000{index}.jpg" for index in (0, 1))
    bad.unlink()
    bad.symlink_to(tmp_path / "nowhere.jpg")
    flags = [*flags_for(tmp_path / "in", tmp_path / "out"), "--runtime.max-failed-fraction", "1"]
    first = segment(*flags, cluster=ray_cluster)
    assert first.summary["error_codes"] == {"not_found": 1}
    listed = inspect(tmp_path / "out", "--failures")
    assert listed["key"] == "images/farm_000001.jpg"
    (tmp_path / "nowhere.jpg").write_bytes(good.read_bytes())
    assert inspect(tmp_path / "out", "--retry-failed")["to_retry"] == 1
    assert not (first.run / "_SUCCESS").exists()
    second = segment(*flags, cluster=ray_cluster)
    assert (second.summary["rows"], second.summary["rows_now"], second.summary["failed"]) == (4, 1, 0)
    assert inspect(tmp_path / "out", "--verify")["problems"] == 0


def inspect(output: Path, *flags: str) -> dict:
    command = [sys.executable, "-m", "jobs.inspect_run", str(output), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- object storage


@pytest.mark.s3
def test_after_success_no_source_object_is_opened_again(s3_url: str, s3_proxy: FaultProxy, fields: Path) -> None:
    farmland.write_folder(f"{s3_url}/in", 6, size_px=64, seed=1)
    flags = flags_for(f"{s3_url}/in", f"{s3_url}/out")
    first = segment(*flags)
    assert first.status == 0, first.log
    source = f"{s3_url.removeprefix('s3://')}/in/"
    assert s3_proxy.count("GET", source) == 6
    s3_proxy.clear()
    started = time.monotonic()
    again = segment(*flags)
    assert (again.status, again.summary["rows_now"]) == (0, 0)
    assert s3_proxy.count("GET", source) == 0
    assert time.monotonic() - started < 30


@pytest.mark.s3
def test_faults_of_the_store_are_survived_and_no_secret_is_written(
    s3_url: str, s3_proxy: FaultProxy, moto_server: S3Server, tmp_path: Path
) -> None:
    farmland.write_folder(f"{s3_url}/in", 6, size_px=64, seed=1)
    for fault in (503, "reset", 500):
        s3_proxy.fail_next(2, fault, prefix=f"{s3_url.removeprefix('s3://')}/in/")
    outcome = segment(*flags_for(f"{s3_url}/in", str(tmp_path)))
    assert outcome.status == 0, outcome.log
    assert outcome.summary["ok"] == 6
    secret = moto_server.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in outcome.log
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


CAMVID = ROOT.parent / "shared/data/camvid/val/images"


@pytest.mark.s3
@pytest.mark.skipif(not CAMVID.exists(), reason="the labelled images are not on this machine")
def test_photos_give_the_same_masks_as_folder_tar_and_parquet(rclone_server: S3Server) -> None:
    photos = {path.name: path.read_bytes() for path in sorted(CAMVID.glob("*.jpg"))[::12]}
    names = sorted(photos)
    client = rclone_server.client()
    client.create_bucket(Bucket="camvid")
    for name, data in photos.items():
        client.put_object(Bucket="camvid", Key=f"folder/{name}", Body=data)
    for shard in range(3):
        some = {name: photos[name] for name in names[shard::3]}
        client.put_object(Bucket="camvid", Key=f"tar/{shard}.tar", Body=tar_of(some))
    table = pa.table({"image": [{"bytes": photos[name], "path": name} for name in names]})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=4)
    client.put_object(Bucket="camvid", Key="parquet/all.parquet", Body=out.getvalue())
    masks = {}
    for form in ("folder", "tar", "parquet"):
        flags = flags_for(f"s3://camvid/{form}", f"s3://camvid/out-{form}")
        outcome = finish(start(*flags, "--refine.iterations", "2", env=dict(rclone_server.environment)))
        assert outcome.status == 0, outcome.log
        rows = read_s3(client, outcome.summary["run"])
        assert len(rows) == len(photos)
        rows["name"] = [name_of(key, names) for key in rows["key"]]
        masks[form] = {
            name: hashlib.sha256(mask).hexdigest() for name, mask in zip(rows["name"], rows["mask"], strict=True)
        }
    assert masks["folder"] == masks["tar"] == masks["parquet"]


def name_of(key: str, names: list[str]) -> str:
    """The photo behind a key of any of the three forms."""
    if ".parquet#" in key:
        return names[int(key.partition("#")[2])]
    return key.partition("#")[2] + ".jpg" if "#" in key else key


def read_s3(client, run_url: str) -> pd.DataFrame:
    bucket, _, prefix = run_url.removeprefix("s3://").partition("/")
    listed = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/parts/")["Contents"]
    bodies = [client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in listed]
    return pd.concat([pd.read_parquet(io.BytesIO(body)) for body in bodies])
