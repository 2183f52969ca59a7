from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from pipeline.store.url import Url
from pipeline.training import forecast, state
from pipeline.training.config import TrainConfig
from pipeline.training.state import Point, RunState
from tests.support import training_runs
from tests.support.training_runs import config, train

SECOND = {"name": "second", "schedule": {"steps": 50}, "batch": 2}


@pytest.fixture
def cfg(tmp_path: Path) -> TrainConfig:
    data = training_runs.write_data(tmp_path / "data")
    return config(data, tmp_path / "run", schedule={"steps": 100}, then=[SECOND], validation={"every": 30})


def test_a_rehearsal_takes_a_few_steps_of_every_phase_and_is_the_run_otherwise(cfg):
    short = forecast.trial_config(cfg)
    assert [phase.schedule.steps for phase in short.phases()] == [forecast.TRIAL_STEPS] * 2
    assert short.output.startswith(cfg.output + "/_rehearsal-")
    assert (short.network, short.augment, short.optimise, short.loss) == (
        cfg.network,
        cfg.augment,
        cfg.optimise,
        cfg.loss,
    )
    assert short.runtime.workers == cfg.runtime.workers


def test_the_forecast_adds_up_what_the_rehearsal_measured(cfg):
    short = forecast.trial_config(cfg)
    train(short)
    _, tensors = state.load_state(Url(short.output), 2 * forecast.TRIAL_STEPS)
    speeds = [1.0, 1.0, 10.0, 1.0, 1.0, 5.0]  # images a second; the last step of a phase counts
    history = [
        Point(step, {"speed/images_per_s": speed, "memory/peak_gib": step / 2}) for step, speed in enumerate(speeds)
    ]
    history += [Point(step, {"validation/seconds": 0.5}) for step in (3, 6)]
    state.save_state(Url(short.output), RunState(step=6, history=history).to_json(), tensors, step=6)
    found = forecast.forecast_run(cfg, Url(short.output))
    mib = sum(tensor.nbytes for tensor in tensors.values()) / 2**20
    # 100 steps of 4 images at 10/s and 50 of 2 at 5/s; 4 and 2 validations of 3 images
    assert astuple(found) == pytest.approx((40 + 20, 6 * 3 * 0.5, 2.5, mib))
    assert str(found).startswith("forecast: 1 min 00 s of training, at most 9 s of validation; 2.5 GiB per worker")


def test_nothing_of_a_rehearsal_is_left(cfg):
    url = cfg.output_url / "_rehearsal"
    state.save_state(url, RunState().to_json(), {"a": torch.zeros(1)}, step=1)
    forecast.delete_trial(url)
    assert not Path(cfg.output).exists(), "no empty folder either"


def test_a_rehearsal_that_left_nothing_is_cleared_without_an_error(tmp_path):
    forecast.delete_trial(Url(str(tmp_path / "_rehearsal")))
