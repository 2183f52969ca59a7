import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline import classes
from pipeline.errors import ConfigError
from pipeline.models import checkpoint
from pipeline.store.url import Url
from pipeline.training import loop, run, state
from pipeline.training.learner import half_precision
from pipeline.training.ranks import Group
from pipeline.training.validate import validate
from tests.support import training_runs
from tests.support.training_runs import CLASSES, NORMED, config, train

PHASES = [{"name": "second", "schedule": {"steps": 2}, "batch_norm": "frozen", "lr": 0.02}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(output: Path) -> dict[str, Tensor]:
    """Every tensor that a run leaves."""
    run_state, tensors = state.load_state(Url(str(output)), state.saved_steps(Url(str(output)))[-1])
    best = safetensors.torch.load_file(output / "model.safetensors")
    return tensors | state.add_prefix("best", best) | {"miou": torch.tensor(run_state.best_miou)}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    "changed",
    [
        {"schedule": {"steps": 3}, "then": PHASES, "network": NORMED, "ema": 0.9},
        {"schedule": {"steps": 4}, "optimise": {"kind": "adamw", "lr": 0.003, "accumulate": 2, "clip_norm": 1.0}},
    ],
)
def test_a_run_that_stops_after_any_step_ends_as_the_undisturbed_one(data, tmp_path, monkeypatch, changed):
    monkeypatch.setattr(state, "STATES_KEPT", 1000)
    whole = config(data, tmp_path / "whole", **changed)
    train(whole)
    for step in state.saved_steps(Url(whole.output))[:-1]:
        cut = tmp_path / f"cut-{step}"
        shutil.copytree(whole.output, cut)
        for later in state.saved_steps(Url(str(cut))):
            if later > step:
                shutil.rmtree(state.state_url(Url(str(cut)), later).raw)
        train(config(data, cut, **changed))
        assert_same(outcome(cut), outcome(Path(whole.output)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"options": {"breadth": 2}}, "breadth"),
        ({"options": {"output_stride": 8}}, "output_stride"),
        ({"output_stride": 7}, "output stride 7"),
        ({"batch": 1}, "--optimise.batch 1 is too small"),
    ],
)
def test_a_later_phase_that_cannot_be_is_refused_before_the_first_step(data, tmp_path, wrong, said):
    later = [{"name": "second", "schedule": {"steps": 2}, **wrong}]
    with pytest.raises(ConfigError, match=said):
        train(config(data, tmp_path, then=later, optimise={"batch": 4, "accumulate": 2}))
    assert state.saved_steps(Url(str(tmp_path))) == []


def test_weights_that_are_not_finite_are_in_no_state(data, tmp_path, monkeypatch):
    take = loop.take_step

    def overflowing(made, batch, group, *, step, rate):
        if step == 3:
            next(made.network.parameters()).data.fill_(torch.nan)
        return take(made, batch, group, step=step, rate=rate)

    monkeypatch.setattr(loop, "take_step", overflowing)
    with pytest.raises(ConfigError, match="the loss is nan before step 4"):
        train(config(data, tmp_path, runtime={"log_every": 6, "checkpoint_every": 2}))
    assert state.saved_steps(Url(str(tmp_path))) == [2]


@pytest.mark.parametrize("half", [True, False])
def test_the_figures_of_the_card_are_those_of_the_weights_as_they_are_kept(data, tmp_path, half):
    cfg = config(data, tmp_path, network=NORMED, schedule={"steps": 2}, half=half)
    train(cfg)
    kept = checkpoint.load_checkpoint(cfg.output)
    found = validate(kept, run.validation_set(cfg, classes.from_dict(CLASSES, origin="test")), cfg, Group())
    assert {tensor.dtype for tensor in kept.state.values()} == {torch.float16 if half else torch.float32, torch.int64}
    assert kept.card.training["miou"] == round(float(found.scores.mean_iou), 6)
    assert kept.card.training["reference"] == found.reference
    assert found.reference["images"] == 3


def test_what_float16_cannot_hold_is_kept_as_it_is():
    within, beyond, count = torch.tensor([1.0, 65504.0]), torch.tensor([1.0, 65520.0]), torch.tensor(70_000)
    assert half_precision(within).dtype == torch.float16
    assert half_precision(beyond) is beyond
    assert half_precision(count) is count
