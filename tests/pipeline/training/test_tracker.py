import json
import os
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import classes as class_maps
from pipeline.page.paint import paint, paint_edges
from pipeline.records import Sample
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import tracker
from pipeline.training.tracker import GAP_PX
from tests.support.ports import free_port, wait_for

CLASSES = class_maps.load_class_map("farmland")


def sample(key: str = "field/1", *, height: int = 6, width: int = 9, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    truth, mask = rng.choice(np.array([0, 1, 255], np.uint8), (2, height, width))
    return Sample(key, pixels, truth, mask)


def made(kind: tracker.TrackerKind, output: Path | str, *, first_step: int = 0) -> tracker.Tracker:
    return tracker.make_tracker(kind, output=Url(str(output)), run="ab" * 32, first_step=first_step, classes=CLASSES)


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_a_sample_is_drawn_as_image_truth_and_prediction_side_by_side():
    one = sample()
    drawn = tracker.draw_sample(one, CLASSES)
    assert drawn.shape == (6, 3 * 9 + 2 * GAP_PX, 3)
    np.testing.assert_array_equal(drawn[:, :9], one.image_hwc)
    np.testing.assert_array_equal(drawn[:, 9 + GAP_PX : 18 + GAP_PX], paint(one.truth_hw, CLASSES))
    np.testing.assert_array_equal(drawn[:, -9:], paint(one.mask_hw, CLASSES))


def test_the_edge_map_of_a_network_that_predicts_one_is_the_fourth_picture():
    edges = np.linspace(0, 0.02, 54, dtype=np.float32).reshape(6, 9)
    drawn = tracker.draw_sample(replace(sample(), edges_hw=edges), CLASSES)
    assert drawn.shape == (6, 4 * 9 + 3 * GAP_PX, 3)
    np.testing.assert_array_equal(drawn[:, -9:], paint_edges(edges))
    np.testing.assert_array_equal(drawn[:, : -9 - GAP_PX], tracker.draw_sample(sample(), CLASSES))


def test_tensorboard_reads_back_the_points_and_the_pictures(tmp_path):
    one = made("tensorboard", tmp_path)
    one.scalars(10, {"train/loss": 0.5})
    one.scalars(20, {"train/loss": 0.25, "train/lr": 0.007})
    one.images(20, [sample("a"), sample("b")])
    one.close()
    read = events(tmp_path / tracker.TENSORBOARD_FOLDER)
    assert [(point.step, point.value) for point in read.Scalars("train/loss")] == [(10, 0.5), (20, 0.25)]
    assert {"samples/a", "samples/b"} == set(read.Tags()["images"])
    assert read.Images("samples/a")[0].width == 3 * 9 + 2 * GAP_PX


def test_points_that_a_killed_run_left_beyond_the_checkpoint_are_hidden(tmp_path):
    killed = made("tensorboard", tmp_path)
    for step in (10, 20, 30):
        killed.scalars(step, {"train/loss": 9.0})
    killed.close()
    resumed = made("tensorboard", tmp_path, first_step=20)
    resumed.scalars(20, {"train/loss": 1.0})
    resumed.close()
    points = events(tmp_path / tracker.TENSORBOARD_FOLDER).Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [(10, 9.0), (20, 1.0)]


def test_curves_of_a_run_in_a_store_are_copied_there_with_every_picture_and_at_the_end(tmp_path):
    output = f"file://{tmp_path}/run"
    one = made("tensorboard", output)
    one.scalars(10, {"train/loss": 0.5})
    one.images(10, [sample()])
    first = {file.path: file.size for file in objects.list_files(Url(f"{output}/{tracker.TENSORBOARD_FOLDER}"))}
    one.scalars(20, {"train/loss": 0.25})
    one.close()
    assert len(first) == 1
    read = events(tmp_path / "run" / tracker.TENSORBOARD_FOLDER)
    assert [point.step for point in read.Scalars("train/loss")] == [10, 20]
    assert len(read.Images("samples/field/1")) == 1


def test_no_tracker_leaves_nothing(tmp_path):
    one = made("none", tmp_path)
    one.scalars(1, {"train/loss": 1.0})
    one.images(1, [sample()])
    one.close()
    assert not list(tmp_path.iterdir())


@contextmanager
def mlflow_server(folder: Path) -> Generator[str]:
    """A server of MLflow's own on a free port."""
    port = free_port()
    stores = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", f"{folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *stores]
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(port, server, timeout_s=120, log=log)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself; what is said then is why
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_a_server_of_mlflow_has_the_points_and_pictures_of_both_halves_of_a_resumed_run(monkeypatch, tmp_path):
    with mlflow_server(tmp_path) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        import mlflow

        killed = made("mlflow", tmp_path / "camvid/")
        killed.scalars(5, {"train/loss": 0.5, "train/lr": 0.007})
        killed.images(5, [sample("a/b"), sample("c d", seed=1)])
        killed.close()
        resumed = made("mlflow", tmp_path / "camvid/", first_step=5)
        resumed.scalars(10, {"train/loss": 0.25})
        resumed.close()

        (run,) = mlflow.search_runs(output_format="list")
        client = mlflow.MlflowClient()
        points = client.get_metric_history(run.info.run_id, "train/loss")
        pictures = [one.path for one in client.list_artifacts(run.info.run_id, "images") if one.path.endswith("png")]
        shown = mlflow.artifacts.load_image(f"runs:/{run.info.run_id}/{min(pictures)}")
    assert (run.info.run_name, run.info.status) == ("camvid", "FINISHED")
    assert [(point.step, point.value) for point in points] == [(5, 0.5), (10, 0.25)]
    assert [re.match(r"images/(.*?)\+step\+5", one).group(1) for one in sorted(pictures)] == ["a-b", "c d"]
    np.testing.assert_array_equal(np.asarray(shown), tracker.draw_sample(sample("a/b"), CLASSES))


def test_a_tracker_that_fails_is_left_out_and_says_so_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    import mlflow

    one = made("mlflow", tmp_path / "camvid")
    one.scalars(5, {"train/loss": 0.5})
    with sqlite3.connect(tmp_path / "runs.db") as store:
        store.execute("drop table metrics")
    one.scalars(10, {"train/loss": 0.25})
    one.images(10, [sample()])
    one.close()
    mlflow.end_run()  # which else MLflow does when the process ends, in a store of its own choice
    assert caplog.text.count("the run continues without it") == 1


def wandb_records(file: Path) -> Iterator:
    """What Weights & Biases keeps of a run: a log in LevelDB's format behind a header of seven bytes.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7:  # padding up to the next block
            at += left
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_weights_and_biases_keeps_points_and_pictures_by_step(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    one = made("wandb", tmp_path / "camvid")
    one.scalars(5, {"train/loss": 0.5})
    one.images(5, [sample("a"), sample("b", seed=1)])
    one.scalars(10, {"train/loss": 0.25})
    one.close()

    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + 60  # its service writes on for a moment after the run is closed
    records = []
    while not any(record.HasField("exit") for record in records):
        assert time.monotonic() < until
        records = list(wandb_records(file))
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.display_name) == ("ab" * 16, "camvid")
    rows = [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(5, 0.5), (10, 0.25)]
    assert rows[0]["samples/captions"] == ["a", "b"]
    for name, said in zip(rows[0]["samples/filenames"], [sample("a"), sample("b", seed=1)], strict=True):
        np.testing.assert_array_equal(
            np.asarray(Image.open(file.parent / "files" / name)), tracker.draw_sample(said, CLASSES)
        )
