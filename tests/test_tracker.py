import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from pipeline import classes as class_maps
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.paint import paint
from pipeline.training import tracker
from pipeline.training.tracker import GAP_PX, Sample

CLASSES = class_maps.load("farmland")


def sample(key: str = "field/1", *, height: int = 6, width: int = 9, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    truth, mask = rng.choice(np.array([0, 1, 255], np.uint8), (2, height, width))
    return Sample(key, pixels, truth, mask)


def made(kind: tracker.Kind, output: Path | str, *, first_step: int = 0) -> tracker.Tracker:
    return tracker.make(kind, output=str(output), run="ab" * 32, first_step=first_step, classes=CLASSES)


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_a_sample_is_drawn_as_image_truth_and_prediction_side_by_side():
    one = sample()
    drawn = tracker.draw(one, CLASSES)
    assert drawn.shape == (6, 3 * 9 + 2 * GAP_PX, 3)
    np.testing.assert_array_equal(drawn[:, :9], one.image_hwc)
    np.testing.assert_array_equal(drawn[:, 9 + GAP_PX : 18 + GAP_PX], paint(one.truth_hw, CLASSES))
    np.testing.assert_array_equal(drawn[:, -9:], paint(one.mask_hw, CLASSES))


def test_tensorboard_reads_back_the_points_and_the_pictures(tmp_path):
    one = made("tensorboard", tmp_path)
    one.scalars(10, {"train/loss": 0.5})
    one.scalars(20, {"train/loss": 0.25, "train/lr": 0.007})
    one.images(20, [sample("a"), sample("b")])
    one.close()
    read = events(tmp_path / tracker.FOLDER)
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
    points = events(tmp_path / tracker.FOLDER).Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [(10, 9.0), (20, 1.0)]


def test_curves_of_a_run_in_a_store_are_copied_there_with_every_picture_and_at_the_end(tmp_path):
    output = f"file://{tmp_path}/run"
    one = made("tensorboard", output)
    one.scalars(10, {"train/loss": 0.5})
    one.images(10, [sample()])
    first = {file.path: file.size for file in storage.list_files(f"{output}/{tracker.FOLDER}")}
    one.scalars(20, {"train/loss": 0.25})
    one.close()
    assert len(first) == 1
    read = events(tmp_path / "run" / tracker.FOLDER)
    assert [point.step for point in read.Scalars("train/loss")] == [10, 20]
    assert len(read.Images("samples/field/1")) == 1


def test_a_tracker_that_is_not_installed_is_an_error_that_says_what_to_install(monkeypatch, tmp_path):
    for kind, (module, package) in tracker.LIBRARIES.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=f"tracker {kind} .*not installed") as failed:
            made(kind, tmp_path)
        assert package in failed.value.hint


def test_no_tracker_leaves_nothing(tmp_path):
    one = made("none", tmp_path)
    one.scalars(1, {"train/loss": 1.0})
    one.images(1, [sample()])
    one.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [[], [SimpleNamespace(info=SimpleNamespace(run_id="old"))]])
def test_mlflow_goes_on_with_the_run_of_the_same_fingerprint(monkeypatch, tmp_path, before):
    library = MagicMock()
    library.search_runs.return_value = before
    monkeypatch.setitem(sys.modules, "mlflow", library)
    one = made("mlflow", tmp_path / "camvid/")
    one.scalars(5, {"train/loss": 0.5})
    one.images(5, [sample("a/b")])
    one.close()
    asked = library.start_run.call_args.kwargs
    assert (asked["run_id"], asked["run_name"]) == ("old" if before else None, "camvid")
    library.log_metrics.assert_called_once_with({"train/loss": 0.5}, step=5)
    assert library.log_image.call_args.kwargs == {"key": "a-b", "step": 5}
    library.end_run.assert_called_once_with()


def test_weights_and_biases_is_given_points_and_pictures_by_step(monkeypatch, tmp_path):
    library = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", library)
    one = made("wandb", tmp_path / "camvid")
    one.scalars(5, {"train/loss": 0.5})
    one.images(5, [sample("a")])
    one.close()
    assert library.init.call_args.kwargs == {"id": "ab" * 16, "name": "camvid", "resume": "allow"}
    (points, picture) = library.init.return_value.log.call_args_list
    assert points.args == ({"train/loss": 0.5},)
    assert picture.kwargs == {"step": 5}
    library.init.return_value.finish.assert_called_once_with()
