"""The main job from end to end, without Ray: commit, resume, failures; `test_segment_dataset_on_ray` has the rest."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import records
from pipeline.config import CODE_VERSION, SegmentConfig
from pipeline.datasets import farmland
from pipeline.models import checkpoint
from pipeline.store.url import Url
from tests import ROOT
from tests.support import bad_inputs, tars
from tests.support.drivers import IMAGES, QUICK, SMALL_PARTS, Outcome, flags_for, forked, rows_of
from tests.support.forked import ForkServer
from tests.support.s3_servers import FaultProxy, S3Server

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def segment(forks: ForkServer) -> Run:
    """Runs the job to its end, small and quick, in a process of its own and without Ray."""

    def run(*flags: str, **how: Any) -> Outcome:
        return forked(forks, *flags, *QUICK, **how)

    return run


@pytest.fixture(scope="module")
def undisturbed(fields: Path, segment: Run, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The rows of a run that nothing happened to."""
    outcome = segment(*flags_for(fields, tmp_path_factory.mktemp("undisturbed")), *SMALL_PARTS)
    assert outcome.status == 0, outcome.log
    return rows_of(outcome)


# ---------------------------------------------------------------- what a user gets


def test_pandas_and_duckdb_read_the_parts_as_they_are(fields: Path, segment: Run, tmp_path: Path) -> None:
    (fields / "img.heic").write_bytes(b"a photo in a format that is not read")
    outcome = segment(*flags_for(fields, tmp_path), "--limit", "5")
    (fields / "img.heic").unlink()
    assert outcome.summary["ignored_files"] == {".heic": 1}
    assert "1 .heic" in (outcome.run / "_report/index.html").read_text()
    parts = outcome.run / "parts"
    frame = pd.read_parquet(parts)
    assert list(frame.columns) == records.ROW_SCHEMA.names
    query = f"select status, count(*), avg(confidence) from '{parts}/*.parquet' group by status"
    assert duckdb.sql(query).fetchall()[0][:2] == ("ok", 5)
    assert {path.name for path in outcome.run.iterdir()} == {
        *("_run", "parts", "_report", "_manifest.json", "_SUCCESS", ".huggingface.yaml")
    }


def test_the_dry_run_says_what_would_be_done_and_writes_nothing(fields: Path, segment: Run, tmp_path: Path) -> None:
    (fields / "notes.txt").write_text("not an image")
    outcome = segment(*flags_for(fields, tmp_path / "out"), "--plan")
    (fields / "notes.txt").unlink()
    assert outcome.status == 0, outcome.log
    assert outcome.summary["keys"] == IMAGES
    assert outcome.summary["bytes"] == sum(path.stat().st_size for path in fields.rglob("*.jpg"))
    assert outcome.summary["ignored_files"] == {".txt": 1}
    assert not (tmp_path / "out").exists()


def test_json_logs_are_json_and_the_summary_comes_last(fields: Path, segment: Run, tmp_path: Path) -> None:
    outcome = segment(*flags_for(fields, tmp_path), "--limit", "3", "--runtime.log-format", "json")
    said = [json.loads(line)["message"] for line in outcome.log.splitlines() if line.startswith("{")]
    assert any(message.startswith("every setting: ") for message in said)
    assert any(message.startswith("look here first") for message in said)
    assert outcome.summary["rows"] == 3


def test_images_of_a_tar_are_rows_whatever_dots_their_names_hold(fields: Path, segment: Run, tmp_path: Path) -> None:
    photo = next(fields.rglob("*.jpg")).read_bytes()
    names = ["0.25.jpg", "0.5.jpg", "2023.06.01_a.jpg", "2023.06.01_b.jpg", "x.jpg", "x.jpeg", "x.1.jpg"]
    (tmp_path / "in").mkdir()
    tar = tars.tar_of([(name, photo) for name in [*names, "x.png", "x.thumb.jpg", "._x.jpg"]])
    (tmp_path / "in/a.tar").write_bytes(tar)
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"))
    assert outcome.status == 0, outcome.log
    keys = ["0.25", "0.5", "2023.06.01_a", "2023.06.01_b", "x", "x.1", "x.jpeg"]
    assert sorted(rows_of(outcome)["key"]) == [f"a.tar#{key}" for key in keys]
    assert sum(outcome.summary["left_out"].values()) == 3
    assert "members of tars that were left out: 1 hidden ('._x.jpg')" in outcome.log


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.yaml", b"x", "ignored: 1 .yaml"),
        ("a.tar", tars.tar_of([("x.yaml", b"x")]), "a.tar: no sample; ignored: 1 .yaml ('x.yaml')"),
        ("a.tar", tars.tar_of([("x.json", b"{}")]), "a.tar#x: no image among .json"),
        ("a.parquet", b"", "the Parquet file has no rows"),
    ],
)
def test_a_source_without_images_is_never_a_success(
    name: str, content: bytes, reason: str, segment: Run, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / name).write_bytes(content)
    if name == "a.parquet":
        pq.write_table(pa.table({"image": pa.array([], pa.binary())}), source / name)
    flags = (*flags_for(source, tmp_path / "out"), "--runtime.max-failed-fraction", "1")
    for _ in ("the first time", "and again"):
        outcome = segment(*flags)
        assert outcome.status == 1, outcome.log
        assert f"no images in {source}" in outcome.log
        assert reason in outcome.log
        assert not list(tmp_path.rglob("_SUCCESS"))


def test_a_script_path_works_like_a_module(fields: Path, tmp_path: Path) -> None:
    command = [sys.executable, "jobs/segment_dataset.py", *flags_for(fields, tmp_path), "--plan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["keys"] == IMAGES


# ---------------------------------------------------------------- resume


def test_the_same_command_after_success_does_nothing(fields: Path, segment: Run, tmp_path: Path) -> None:
    segment(*flags_for(fields, tmp_path), "--limit", "5")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = segment(*flags_for(fields, tmp_path), "--limit", "5")
    assert again.status == 0
    assert again.summary["rows_now"] == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_one_source_is_one_run_however_it_is_spelled(fields: Path, segment: Run, tmp_path: Path) -> None:
    spelled = (str(fields), f"{fields}/", f"{fields}/../{fields.name}", f"file://{fields}", os.path.relpath(fields))
    outcomes = [segment(*flags_for(source, tmp_path), "--limit", "2") for source in spelled]
    assert len({outcome.run for outcome in outcomes}) == 1
    assert [outcome.summary["rows_now"] for outcome in outcomes] == [2, 0, 0, 0, 0]


@pytest.mark.parametrize("version", [CODE_VERSION - 1, 2])
def test_a_run_of_an_earlier_version_is_named_and_not_continued(
    version: int, fields: Path, segment: Run, tmp_path: Path
) -> None:
    first = segment(*flags_for(fields, tmp_path), "--limit", "2")
    name, folder = older_name(first.run, version), Path(first.run)
    folder.rename(folder.parent / name)
    again = segment(*flags_for(fields, tmp_path), "--limit", "2")
    assert again.run == first.run
    assert again.summary["rows_now"] == 2
    assert f"{name} is of an earlier version" in again.log


def older_name(run: str, version: int) -> str:
    """Folder that an earlier code version gives a run, by its stored settings; its source is absolute."""
    cfg = SegmentConfig.model_validate(yaml.safe_load((Path(run) / "_run/config.yaml").read_text()))
    model = checkpoint.load_checkpoint(cfg.checkpoint)
    classes = model.card.classes.model_dump(mode="json")
    return f"run={cfg.fingerprint(model_sha256=model.sha256, classes=classes, code=version)[:12]}"


def test_another_config_on_the_same_output_is_another_run(fields: Path, segment: Run, tmp_path: Path) -> None:
    one = segment(*flags_for(fields, tmp_path), "--limit", "3")
    two = segment(*flags_for(fields, tmp_path), "--limit", "3", "--refine.engine", "none")
    assert one.run != two.run
    assert rows_of(one)["refined"].all()
    assert not rows_of(two)["refined"].any()


def test_a_folder_that_grew_is_finished_by_the_same_command(segment: Run, tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 8, size_px=64, seed=1)
    first = segment(*flags_for(tmp_path / "in", tmp_path / "out"), *SMALL_PARTS)
    extra = tmp_path / "in/images/farm_000003b.jpg"
    extra.write_bytes((tmp_path / "in/images/farm_000003.jpg").read_bytes())
    second = segment(*flags_for(tmp_path / "in", tmp_path / "out"), *SMALL_PARTS)
    assert (first.summary["rows"], second.summary["rows"], second.summary["rows_now"]) == (8, 9, 1)
    assert rows_of(second)["key"].is_unique


@pytest.mark.faults
@pytest.mark.parametrize(
    "moment",
    [
        *("plan.arrow", "parts=1"),
        *(
            pytest.param(moment, marks=pytest.mark.slow)
            for moment in ("owner-000001.json", f"parts={IMAGES // 8}", "_manifest.json", "overlays.png")
        ),
    ],
)
def test_a_driver_killed_at_any_moment_is_finished_by_the_same_command(
    moment: str, fields: Path, segment: Run, forks: ForkServer, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    flags = [*flags_for(fields, tmp_path), *SMALL_PARTS]
    killed = segment(moment, *flags, module="tests.support.drivers")
    assert killed.status == -9, killed.log
    assert not list(tmp_path.glob("run=*/_SUCCESS"))
    committed = sum(len(pd.read_parquet(part)) for part in tmp_path.glob("run=*/parts/part-*"))
    resumed = segment(*flags)
    assert resumed.status == 0, resumed.log
    print(f"killed at {moment}: {committed} rows were committed, {resumed.summary['rows_now']} done after")
    assert resumed.summary["rows_now"] == IMAGES - committed
    pd.testing.assert_frame_equal(rows_of(resumed), undisturbed)
    for look in ("--clean", "--verify"):  # a write that was killed leaves its temporary file
        assert forks.start("jobs.inspect_run", str(tmp_path), look).wait() == 0


# ---------------------------------------------------------------- bad inputs


def test_bad_inputs_end_as_the_table_says_and_the_run_completes(segment: Run, tmp_path: Path) -> None:
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
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"), *flags)
    assert outcome.status == 0, outcome.log
    rows = rows_of(outcome).set_index("key")
    assert rows["error_code"].fillna("ok").to_dict() == expected
    assert (rows.loc[rows["status"] == "failed", "error_detail"].str.len() > 0).all()


def test_too_many_failures_decide_the_exit_status(segment: Run, tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 3, size_px=64, seed=1)
    (tmp_path / "in/broken.jpg").write_bytes(b"<html>no</html>")
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"))
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


def test_a_cut_tar_and_a_sample_without_image_are_counted_rows(segment: Run, tmp_path: Path) -> None:
    jpeg = next(farmland.encoded_jpegs(1, size_px=64, seed=1, workers=1))
    whole = tar_of({"a.jpg": jpeg, "b.json": b"{}", "c.jpg": jpeg})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/whole.tar").write_bytes(whole)
    (tmp_path / "in/cut.tar").write_bytes(whole[: 512 + -(-len(jpeg) // 512) * 512])
    flags = ["--runtime.max-failed-fraction", "1"]
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"), *flags)
    assert outcome.status == 0, outcome.log
    found = rows_of(outcome).set_index("key")["error_code"].fillna("ok").to_dict()
    assert found == {
        "cut.tar#": "archive_truncated",
        "cut.tar#a": "ok",
        "whole.tar#a": "ok",
        "whole.tar#b": "missing_pair",
        "whole.tar#c": "ok",
    }


def test_a_name_met_twice_in_a_tar_is_named_and_stops_success(segment: Run, tmp_path: Path) -> None:
    jpeg = next(farmland.encoded_jpegs(1, size_px=64, seed=1, workers=1))
    (tmp_path / "in").mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("a.jpg", "b.jpg", "a.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg)
            tar.addfile(info, io.BytesIO(jpeg))
    (tmp_path / "in/twice.tar").write_bytes(out.getvalue())
    outcome = segment(*flags_for(tmp_path / "in", tmp_path / "out"))
    assert outcome.status == 1
    assert "twice.tar#a" in outcome.log
    assert not list((tmp_path / "out").glob("run=*/_SUCCESS"))
    kept = segment(*flags_for(tmp_path / "in", tmp_path / "out2"), "--read.on-duplicate", "suffix")
    assert rows_of(kept)["key"].tolist() == ["twice.tar#a", "twice.tar#a~2", "twice.tar#b"]


# ---------------------------------------------------------------- inspect


def test_failed_rows_are_listed_and_retried_once_the_cause_is_gone(
    segment: Run, forks: ForkServer, tmp_path: Path
) -> None:
    """A missing object that comes back: its row fails, is retried, and then is fine."""
    farmland.write_folder(Url(str(tmp_path / "in")), 4, size_px=64, seed=1)
    good, bad = (tmp_path / f"in/images/farm_00000{index}.jpg" for index in (0, 1))
    bad.unlink()
    bad.symlink_to(tmp_path / "nowhere.jpg")
    flags = [*flags_for(tmp_path / "in", tmp_path / "out"), "--runtime.max-failed-fraction", "1"]
    first = segment(*flags)
    assert first.summary["error_codes"] == {"not_found": 1}
    listed = inspect(forks, tmp_path / "out", "--failures")
    assert listed["key"] == "images/farm_000001.jpg"
    (tmp_path / "nowhere.jpg").write_bytes(good.read_bytes())
    assert inspect(forks, tmp_path / "out", "--retry-failed")["to_retry"] == 1
    assert not (first.run / "_SUCCESS").exists()
    second = segment(*flags)
    assert (second.summary["rows"], second.summary["rows_now"], second.summary["failed"]) == (4, 1, 0)
    assert inspect(forks, tmp_path / "out", "--verify")["problems"] == 0


def inspect(forks: ForkServer, output: Path, *flags: str) -> dict:
    process = forks.start("jobs.inspect_run", str(output), *flags)
    assert process.wait() == 0, process.log
    return json.loads(process.out.splitlines()[-1])


# ---------------------------------------------------------------- object storage


@pytest.mark.s3
def test_after_success_no_source_object_is_opened_again(segment: Run, s3_url: str, s3_proxy: FaultProxy) -> None:
    farmland.write_folder(Url(f"{s3_url}/in"), 6, size_px=64, seed=1)
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


CAMVID = ROOT.parent / "shared/data/camvid/val/images"


@pytest.mark.s3
@pytest.mark.skipif(not CAMVID.exists(), reason="the labelled images are not on this machine")
def test_photos_give_the_same_masks_as_folder_tar_and_parquet(segment: Run, rclone_server: S3Server) -> None:
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
        outcome = segment(*flags, env=dict(rclone_server.environment))
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
