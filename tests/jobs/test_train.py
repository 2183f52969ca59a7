import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from jobs import train, training_run
from pipeline.errors import ConfigError, LabelError
from pipeline.models.card import load_card
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import run, state
from pipeline.training.collection import image_name
from pipeline.training.config import TrainConfig
from pipeline.training.ranks import Group
from tests import ROOT
from tests.support import ray_servers, training_runs
from tests.support.drivers import finish
from tests.support.forked import LIMIT_S, Forked, ForkServer
from tests.support.ports import free_port
from tests.support.ray_servers import Cluster
from tests.support.training_runs import UNET, WIDER, config

DOUBLE = "tests.support.double_precision"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def file_of(cfg: TrainConfig) -> str:
    """Write the config; replaced whole, since another rank may be reading it."""
    path = Path(cfg.data) / "run.yaml"
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    fresh.replace(path)
    return str(path)


def bare(forks: ForkServer, cfg: TrainConfig, *first: str, module: str = "jobs.train", **env: str) -> Forked:
    """Start a job on a config without Ray, in a process of its own; `first` are arguments of its module."""
    return forks.start(module, *first, "--config", file_of(cfg), "--bare", env=env)


def on_ray(cluster: Cluster, cfg: TrainConfig, *, module: str = "jobs.train", **env: str) -> subprocess.Popen:
    """Start a job on a config and a cluster."""
    return subprocess.Popen(
        [sys.executable, "-m", module, "--config", file_of(cfg)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | cluster.environment | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def here(cfg: TrainConfig, capsys: pytest.CaptureFixture[str], *flags: str) -> dict:
    """Run a job in this process, without Ray, to its good end; returns its line of JSON."""
    assert train.main(["--bare", "--config", file_of(cfg), *flags]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def train_in_group(forks: ForkServer, size: int, cfg: TrainConfig, **how: Any) -> None:
    """Run a job to its good end in processes as torchrun starts them."""
    common = how | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    ranks = [bare(forks, cfg, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(size)]
    for rank in ranks:
        assert rank.wait() == 0, rank.log


def losses(output: Path) -> list[float]:
    run_state, _ = state.load_state(Url(str(output)), state.saved_steps(Url(str(output)))[-1])
    return [point.values["train/loss"] for point in run_state.history if "train/loss" in point.values]


def assert_same_end(one: Path, other: Path) -> None:
    step = state.saved_steps(Url(str(one)))[-1]
    (mine, tensors), (yours, expected) = state.load_state(Url(str(one)), step), state.load_state(Url(str(other)), step)
    tensors |= safetensors.torch.load_file(one / "model.safetensors")
    expected |= safetensors.torch.load_file(other / "model.safetensors")
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []
    assert (mine.best_step, mine.best_miou) == (yours.best_step, yours.best_miou)


STEPS = 20
"""Of runs that are compared in float64."""


def comparable(data: Path, output: Path, **runtime: Any) -> TrainConfig:
    """A run that another number of workers changes by rounding alone."""
    return config(
        data,
        output,
        network=WIDER,
        batch_norm="sync",
        augment={"crop_px": (64, 64), "scale": (1.0, 1.0)},
        schedule={"steps": STEPS},
        validation={"every": STEPS},
        optimise={"lr": 0.01, "batch": 9},  # of two workers one has 5 images, the other 4
        runtime={"checkpoint_every": STEPS} | runtime,
    )


def assert_same_but_for_rounding(one: Path, other: Path) -> None:
    """Two runs in float64 lost the same in every step, and ended with the same weights, statistics and momentum."""
    curve, second = np.array(losses(one)), np.array(losses(other))
    print(f"from {curve[0]:.3f} to {curve[-1]:.3f}, apart by {np.abs(curve - second).max():.1e} at most")
    assert len(curve) == STEPS
    assert curve[-1] < 0.9 * curve[0], "there was something to learn"
    np.testing.assert_allclose(second, curve, rtol=1e-9)
    (_, expected), (_, found) = (state.load_state(Url(str(output)), STEPS) for output in (one, other))
    assert torch.float32 not in {tensor.dtype for tensor in expected.values()}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.faults
def test_two_workers_have_the_loss_curve_of_one(forks, tmp_path):
    larger = training_runs.write_data(tmp_path / "data", size_px=65)
    for size, name in ((1, "alone"), (2, "shared")):
        train_in_group(forks, size, comparable(larger, tmp_path / name), module=DOUBLE)
    assert_same_but_for_rounding(tmp_path / "alone", tmp_path / "shared")


@pytest.mark.faults
def test_a_run_killed_again_and_again_ends_as_the_undisturbed_one_and_then_has_nothing_to_do(
    data, forks, tmp_path, capsys
):
    changed = {"ema": 0.9, "runtime": {"checkpoint_every": 2, "loader_workers": 1}}
    whole, killed = (config(data, tmp_path / name, **changed) for name in ("whole", "killed"))
    said = here(whole, capsys)
    assert said["step"] in (4, 6)
    for step in (3, 4):
        assert bare(forks, killed, str(step), module="tests.support.training_runs").wait() == -signal.SIGKILL
    assert here(killed, capsys) == said | {"output": killed.output}
    assert_same_end(tmp_path / "killed", tmp_path / "whole")

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*")}

    before = written()
    assert here(killed, capsys) == said | {"output": killed.output}
    assert written() == before


def test_a_rehearsal_forecasts_and_leaves_nothing(data, tmp_path, capsys):
    said = here(config(data, tmp_path / "run", schedule={"steps": 1000}), capsys, "--dry-run")
    assert said["train_s"] > 0
    assert 0.05 < said["peak_gib"] < 20
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


def test_a_search_finds_a_rate_between_its_ends_and_leaves_nothing(data, tmp_path, capsys):
    said = here(config(data, tmp_path / "run", augment={"crop_px": (16, 16)}), capsys, "--find-lr")
    assert 1e-6 <= said["lr"] <= 1
    assert not (tmp_path / "run").exists()


def test_a_search_refuses_passes_without_an_image(data, tmp_path, caplog):
    cfg = config(data, tmp_path, optimise={"batch": 2, "accumulate": 3})
    assert train.main(["--bare", "--config", file_of(cfg), "--find-lr"]) == 1
    assert "--optimise.batch 2 is too small" in caplog.text


@pytest.mark.parametrize("flags", [{}, {"overfit": 2}])
@pytest.mark.parametrize("value", [0, 255])
def test_training_labels_of_one_class_or_none_are_refused_with_the_remedy(tmp_path, value, flags):
    data = training_runs.write_data(tmp_path / "data")
    for path in (data / "train" / "labels").iterdir():
        Image.fromarray(np.full((40, 40), value, np.uint8)).save(path)
    with pytest.raises(LabelError, match=r"labels of [01] of 3 classes, none of: ") as refusal:
        run.open_run(config(data, tmp_path / "run", **flags), Group(), about={})
    assert "--sets.label-ids 0 0 255 1" in refusal.value.hint


def test_validation_labels_that_are_all_ignored_are_refused(tmp_path):
    data = training_runs.write_data(tmp_path / "data")
    for path in (data / "val" / "labels").iterdir():
        Image.fromarray(np.full((40, 40), 255, np.uint8)).save(path)
    with pytest.raises(ConfigError, match="is ignored"):
        run.open_run(config(data, tmp_path / "run"), Group(), about={})


def test_no_phase_trains_on_an_image_that_is_validated(tmp_path):
    data = training_runs.write_data(tmp_path / "data", train=3)
    for kind in ("images", "labels"):
        for path in sorted((data / "train" / kind).iterdir()):
            for copy in range(8):
                copied = data / "more" / kind / f"{copy}-{path.name}"
                copied.parent.mkdir(parents=True, exist_ok=True)
                copied.write_bytes(path.read_bytes())
    later = [{"name": "second", "schedule": {"steps": 1}, "train": ["train", "more"]}]
    cut = {"validation": "", "validation_share": 1e-6}
    opened = run.open_run(config(data, tmp_path / "run", sets=cut, then=later), Group(), about={})
    judged = set(opened.validation.keys)
    assert [len(judged & set(one.keys)) for one in opened.training.values()] == [0, 0]


def test_a_held_out_group_validates_and_no_phase_trains_on_it(tmp_path):
    data = training_runs.write_data(tmp_path / "data", train=4)
    for kind in ("images", "labels"):
        for number, path in enumerate(sorted((data / "train" / kind).iterdir())):
            for folder, group in (("train", "ab"[number % 2]), ("more", "bc"[number % 2])):
                copied = data / folder / kind / f"{group}_{path.name}"
                copied.parent.mkdir(parents=True, exist_ok=True)
                copied.write_bytes(path.read_bytes())
            path.unlink()
    later = [{"name": "second", "schedule": {"steps": 1}, "train": ["more"]}]
    opened = run.open_run(config(data, tmp_path / "run", sets={"hold_out": ["b"]}, then=later), Group(), about={})
    groups = [{image_name(key)[0] for key in one.keys} for one in (opened.validation, *opened.training.values())]
    assert groups == [{"b"}, {"a"}, {"c"}]
    for wrong, says in ((["x"], "hold-out x: no image"), (["a", "b"], "leaves none of 4 images")):
        with pytest.raises(ConfigError, match=says):
            run.open_run(config(data, tmp_path / "other", sets={"hold_out": wrong}), Group(), about={})


def test_a_few_images_can_be_learned_by_heart(data, tmp_path, capsys):
    steep = {"schedule": {"steps": 40}, "optimise": {"lr": 0.1, "batch": 2}, "validation": {"every": 40}}
    runtime = {"checkpoint_every": 40, "log_every": 40}
    said = here(config(data, tmp_path, overfit=2, network=UNET, runtime=runtime, **steep), capsys)
    assert said["miou"] > 0.9
    assert load_card(said["output"]).training["training_images"] == 2


@pytest.mark.s3
def test_a_run_leaves_in_a_store_what_it_leaves_in_a_folder(data, tmp_path, s3_url, capsys):
    local = config(data, tmp_path / "run", runtime={"checkpoint_every": 2, "tracker": "tensorboard"})
    remote = local.model_copy(update={"output": f"{s3_url}/run"})
    assert here(remote, capsys) == here(local, capsys) | {"output": remote.output}
    files, stored = (
        {re.sub(r"events.*", "events", one.path) for one in objects.list_files(Url(output))}
        for output in (local.output, remote.output)
    )
    assert stored == files
    assert {"model.safetensors", "card.json", "report/index.html", "_SUCCESS", "tensorboard/events"} <= files
    weights = (tmp_path / "run/model.safetensors").read_bytes()
    assert objects.read_bytes(remote.output_url / "model.safetensors") == weights


def test_the_card_says_how_to_train_again_and_not_on_which_machine():
    said = training_run.repeatable_command(
        ["--config", "/home/me/field.yaml", "--data=/mnt/disk/field", "--output", "s3://bucket/run"]
    )
    assert said == "python -m jobs.train --config field.yaml --data=field --output s3://bucket/run"
    assert training_run.repeatable_command(["--data", "../field", "--optimise.lr", "0.1"]).endswith(
        "--data ../field --optimise.lr 0.1"
    )


def first_within(seconds: float, found: Callable[[], Any]) -> Any:
    """What `found` returns as soon as that is something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if something := found():
            return something
        time.sleep(0.02)
    raise TimeoutError(f"nothing found within {seconds} s")


@pytest.mark.ray
@pytest.mark.faults
def test_a_run_whose_worker_and_then_driver_are_killed_ends_as_the_undisturbed_one(
    data, forks, tmp_path, ray_cluster, capsys
):
    changed = {
        "schedule": {"steps": 400},
        "validation": {"every": 400},
        "runtime": {"workers": 2, "checkpoint_every": 10, "max_failures": 1},
    }
    whole, killed = (config(data, tmp_path / name, **changed) for name in ("whole", "killed"))
    train_in_group(forks, 2, whole)

    driver = on_ray(ray_cluster, killed)
    first_within(LIMIT_S, lambda: state.saved_steps(Url(killed.output)))
    first_within(LIMIT_S, lambda: ray_cluster.kill("RayTrainWorker"))
    assert any("resuming after step" in line for line in driver.stderr), "the run began anew"
    driver.kill()
    assert driver.wait(LIMIT_S) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "_SUCCESS").exists()

    resumed = finish(on_ray(ray_cluster, killed))
    assert resumed.status == 0, resumed.log
    assert "resuming after step" in resumed.log
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert here(killed, capsys) == resumed.summary


@pytest.mark.ray
@pytest.mark.faults
def test_an_elastic_run_that_loses_a_node_goes_on_with_fewer_workers_and_the_same_loss_curve(forks, tmp_path):
    larger = training_runs.write_data(tmp_path / "data", size_px=65)
    elastic = {"workers": 2, "min_workers": 1, "checkpoint_every": 1, "max_failures": 1}
    shrunk = comparable(larger, tmp_path / "shrunk", **elastic)
    train_in_group(forks, 1, comparable(larger, tmp_path / "whole"), module=DOUBLE)
    with ray_servers.cluster(num_cpus=1, PYTHONPATH=str(ROOT)) as cluster, ray_servers.node(cluster) as lost:
        # Before it takes fewer, Ray waits this long (unset: 60 s) for the place of a worker that is gone.
        driver = on_ray(cluster, shrunk, module=DOUBLE, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15")
        first_within(LIMIT_S, lambda: len(state.saved_steps(Url(shrunk.output))) > 1)
        os.killpg(lost.pid, signal.SIGKILL)
        outcome = finish(driver)
    assert outcome.status == 0, outcome.log
    assert re.findall(r"training in (\d)", outcome.log) == ["2", "1"], outcome.log
    assert "resuming after step" in outcome.log
    assert_same_but_for_rounding(tmp_path / "whole", tmp_path / "shrunk")


def test_other_settings_on_the_same_output_are_named(data, tmp_path):
    cfg = config(data, tmp_path)
    (tmp_path / "_run").mkdir()
    (tmp_path / "_run" / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    run.refuse_changed_settings(cfg)
    run.refuse_changed_settings(config(data, tmp_path, runtime={"workers": 9}))
    other = config(data, tmp_path, optimise={"lr": 0.06}, network={"output_stride": 8})
    with pytest.raises(ConfigError) as refused:
        run.refuse_changed_settings(other)
    assert "network.output_stride: None, now 8\n  optimise.lr: 0.05, now 0.06" in str(refused.value)
