"""Distillation: the teacher's scores, what is refused, and runs with a teacher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import classes as class_maps
from pipeline.errors import ConfigError
from pipeline.models import checkpoint, zoo
from pipeline.models.card import Card, load_card
from pipeline.store.url import Url
from pipeline.training import state
from pipeline.training.config import TrainConfig
from pipeline.training.distill import Teacher, load_teacher
from pipeline.training.learner import Learner, build_phase_network, make_learner, pass_loss, pass_units
from pipeline.training.ranks import Group
from tests import ROOT
from tests.pipeline.training.test_learner import COUNTS, SIZE_PX, THREE, batch, config, step, weights
from tests.support import training_runs
from tests.support.ports import free_port
from tests.support.training_runs import CLASSES, NORMED, TINY, UNET, train

CPU = torch.device("cpu")
STRIDED = {"name": "fasterseg", "options": {"width_multiplier": 1 / 16}}
"""Its scores are at stride 8, those of NORMED at full size."""
INPUT = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.2)}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_runs.write_data(tmp_path_factory.mktemp("data"))


def save_teacher(folder: Path, network: dict = STRIDED, *, classes: dict = CLASSES, seed: int = 3, **card) -> str:
    """A checkpoint of random weights that tell pixels apart."""
    class_map = class_maps.from_dict(classes, origin="test")
    torch.manual_seed(seed)
    built = zoo.build_network(network["name"], len(class_map), **network["options"])
    built.train()(torch.randn(2, 3, 64, 64))  # gives the batch norms statistics of their own
    for layer in built.last_layers():
        torch.nn.init.normal_(layer.weight, std=20)
    fields = {"architecture": network["name"], "options": network["options"], "output_stride": built.output_strides[0]}
    fields |= {"classes": class_map, "source": "test", "license": "CC0-1.0"} | INPUT | card
    checkpoint.save_checkpoint(Url(str(folder)), built.state_dict(), Card(**fields))
    return str(folder)


def taught(teacher: str, network: dict = NORMED, **changed) -> tuple[Learner, Teacher]:
    distill = {"teacher": teacher} | changed.pop("distill", {})
    cfg = config(network, distill=distill, **changed)
    loaded = load_teacher(cfg, THREE, CPU)
    torch.manual_seed(0)
    return make_learner(build_phase_network(cfg, THREE), cfg, THREE, COUNTS, Group(), teacher=loaded), loaded


# ---------------------------------------------------------------- its scores


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_teacher_scores_the_same_images_at_full_size_with_its_own_normalisation(
    tmp_path: Path, channels_last: bool
) -> None:
    made, teacher = taught(save_teacher(tmp_path), runtime={"channels_last": channels_last})
    images = batch().images_nchw
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in INPUT.values())
    assert made.cfg.network.mean != INPUT["mean"]
    with torch.no_grad():
        logits = checkpoint.load_checkpoint(str(tmp_path)).build()((images / 255 - mean) / std)
    assert logits.shape[2:] == (3, 4)
    cut = F.interpolate(logits, (17, 25), mode="bilinear", align_corners=True)
    given = teacher.scores(images, torch.float32)
    assert given.shape == (4, 3, *SIZE_PX)
    torch.testing.assert_close(given[:, :, :17, :25], cut, rtol=1e-4, atol=1e-5)


def test_a_teacher_takes_its_bands_by_name(tmp_path: Path) -> None:
    other = taught(save_teacher(tmp_path / "rgb"))[1]
    network = NORMED | {"channels": ("near", "blue", "green", "red"), "mean": (0.5,) * 4, "std": (0.5,) * 4}
    teacher = taught(save_teacher(tmp_path / "rgb"), network)[1]
    assert teacher.bands == (3, 2, 1)
    images = torch.randint(0, 256, (2, 4, *SIZE_PX), dtype=torch.uint8)
    torch.testing.assert_close(
        teacher.scores(images, torch.float32), other.scores(images[:, [3, 2, 1]].contiguous(), torch.float32)
    )


def test_a_teacher_stays_as_it_is_while_the_student_learns(tmp_path: Path) -> None:
    made, teacher = taught(save_teacher(tmp_path), batch_norm="train")
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    kept = weights(made)
    step(made, batch())
    assert not teacher.network.training
    assert made.network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.network.parameters())
    assert any(not torch.equal(tensor, kept[name]) for name, tensor in weights(made).items())
    names = {name.partition("/")[0] for name in made.tensors()}
    assert names == {"network", "optimiser"}


# ---------------------------------------------------------------- its loss


@pytest.mark.parametrize("at", ["labels", "logits"])
def test_the_loss_with_a_teacher_is_that_of_the_labels_and_the_weighted_divergence(tmp_path: Path, at: str) -> None:
    loss = {"at": at}
    distill = {"weight": 0.3, "temperature": 2.0}
    made, teacher = taught(save_teacher(tmp_path), STRIDED, loss=loss, distill=distill)
    torch.manual_seed(0)
    cfg = config(STRIDED, loss=loss)
    alone = make_learner(build_phase_network(cfg, THREE), cfg, THREE, COUNTS, Group())
    images = batch()
    with torch.no_grad():
        difference = pass_loss(made, images, pass_units(made, images)) - pass_loss(
            alone, images, pass_units(alone, images)
        )
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (cfg.network.mean, cfg.network.std))
        scores = made.network((images.images_nchw / 255 - mean) / std)
        full = teacher.scores(images.images_nchw, torch.float32)
        if at == "labels":
            scores = made.loss._at_one_size(scores, images.labels_nhw)[0]
            labels = images.labels_nhw
        else:
            full, labels = full[:, :, ::8, ::8], images.labels_nhw[:, ::8, ::8]
        ours, theirs = (F.softmax(one / 2, 1) for one in (scores, full))
        nats = (theirs * (theirs.log() - ours.log())).sum(1)
        cells = SIZE_PX[0] * SIZE_PX[1] / labels[0].numel()
        wanted = 0.3 * 4 * nats[labels != 255].sum() * cells / (images.labels_nhw != 255).sum()
    assert wanted > 0.01
    torch.testing.assert_close(difference, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_passes_add_up_to_one_pass_over_the_whole_batch(tmp_path: Path, accumulate: int) -> None:
    folder = save_teacher(tmp_path)
    whole, parts = (taught(folder, optimise={"lr": 0.1, "accumulate": passes})[0] for passes in (1, accumulate))
    torch.testing.assert_close(step(parts, batch()), step(whole, batch()))
    for one, other in zip(weights(whole).values(), weights(parts).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


RANK = """
import sys, safetensors.torch, torch
from dataclasses import fields
from pipeline.training.distill import load_teacher
from pipeline.training.learner import build_phase_network, make_learner
from pipeline.training.examples import Batch
from pipeline.training.ranks import process_group
from tests.pipeline.training.test_learner import COUNTS, THREE, batch, config, step, weights
from tests.support.training_runs import NORMED
torch.set_num_threads(1)
with process_group(torch.device("cpu")) as ours:
    cfg, whole = config(NORMED, distill={"teacher": sys.argv[2]}), batch()
    torch.manual_seed(0)
    teacher = load_teacher(cfg, THREE, ours.device)
    torch.manual_seed(0)
    made = make_learner(build_phase_network(cfg, THREE), cfg, THREE, COUNTS, ours, teacher=teacher)
    half = slice(0, 3) if ours.rank == 0 else slice(3, None)
    share = step(made, Batch(*(getattr(whole, field.name)[half] for field in fields(Batch))), ours)
    tensors = {name: tensor.contiguous() for name, tensor in weights(made).items()}
    safetensors.torch.save_file(tensors | {"loss": ours.sum(share)}, sys.argv[1] + str(ours.rank))
"""


@pytest.mark.slow
def test_two_workers_with_a_teacher_each_take_the_step_of_one(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher")
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "rank"), folder],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    alone = taught(folder)[0]
    expected = {"loss": step(alone, batch())} | weights(alone)
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    for rank in range(2):
        found = safetensors.torch.load_file(f"{tmp_path}/rank{rank}")
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- what is refused


def refusal(folder: str, **changed) -> str:
    with pytest.raises(ConfigError) as caught:
        load_teacher(config(distill={"teacher": folder}, **changed), THREE, CPU)
    return str(caught.value)


def test_other_classes_or_the_same_in_another_order_are_refused(tmp_path: Path) -> None:
    turned = CLASSES | {"classes": CLASSES["classes"][::-1]}
    fewer = CLASSES | {"classes": CLASSES["classes"][:2]}
    for name, theirs, said in (("a", turned, "pond, path, field"), ("b", fewer, "field, path")):
        folder = save_teacher(tmp_path / name, classes=theirs)
        assert f"--distill.teacher {folder} has the classes {said}; this run has field, path, pond" in refusal(folder)


def test_bands_that_the_run_lacks_and_another_scale_are_refused(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "a", channels=("red", "green", "near"))
    assert "needs the bands near; --network.channels has red, green, blue" in refusal(folder)
    scale = {"dtype": "uint16", "low": (0, 0, 0), "high": (9, 9, 9)}
    folder = save_teacher(tmp_path / "b", scale=scale)
    assert "has the scale" in refusal(folder)
    assert load_teacher(config(NORMED | {"scale": scale}, distill={"teacher": folder}), THREE, CPU) is not None


def test_without_a_teacher_nothing_is_loaded_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert load_teacher(config(), THREE, CPU) is None
    assert "nowhere" in refusal(str(tmp_path / "nowhere"))


# ---------------------------------------------------------------- runs


def curve(output: Path) -> list[float]:
    run_state, _ = state.load_state(Url(str(output)), state.saved_steps(Url(str(output)))[-1])
    return [point.values["train/loss"] for point in run_state.history if "train/loss" in point.values]


def settings(data: Path, output: Path, teacher: str, **changed) -> TrainConfig:
    return training_runs.config(data, output, network=TINY, distill={"teacher": teacher}, **changed)


def outcome(output: Path) -> dict[str, Tensor]:
    run_state, tensors = state.load_state(Url(str(output)), state.saved_steps(Url(str(output)))[-1])
    return tensors | {"miou": torch.tensor(run_state.best_miou)}


def test_a_run_with_a_teacher_ends_the_same_after_a_stop_at_any_step_and_its_card_names_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATES_KEPT", 1000)
    folder = save_teacher(tmp_path / "teacher")
    then = [{"name": "second", "schedule": {"steps": 2}, "lr": 0.02}]
    whole = settings(data, tmp_path / "whole", folder, schedule={"steps": 2}, then=then)
    train(whole)
    for number in state.saved_steps(whole.output_url)[:-1]:
        cut = tmp_path / f"cut-{number}"
        shutil.copytree(whole.output, cut)
        for later in state.saved_steps(Url(str(cut))):
            if later > number:
                shutil.rmtree(state.state_url(Url(str(cut)), later).raw)
        train(settings(data, cut, folder, schedule={"steps": 2}, then=then))
        first, second = outcome(cut), outcome(Path(whole.output))
        assert [name for name in second if not torch.equal(first[name], second[name])] == []
    card = load_card(whole.output)
    assert card.training["teacher_sha256"] == checkpoint.load_checkpoint(folder).sha256
    alone = training_runs.config(data, tmp_path / "alone", schedule={"steps": 1})
    train(alone)
    assert "teacher_sha256" not in load_card(alone.output).training
    assert outcome(Path(whole.output)).keys() == outcome(Path(alone.output)).keys(), "no state has the teacher"


def test_a_run_is_not_continued_with_another_teacher_at_the_same_place(data: Path, tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher")
    cfg = settings(data, tmp_path / "run", folder, schedule={"steps": 1})
    train(cfg)
    save_teacher(tmp_path / "teacher", seed=4)
    with pytest.raises(ConfigError, match="holds a run with other teacher"):
        train(cfg)


def test_a_student_learns_from_a_teacher_alone(data: Path, tmp_path: Path) -> None:
    """The labels weigh nothing: what the student knows in the end is the teacher's knowledge."""

    def long(output: Path, network: dict, steps: int, **changed) -> TrainConfig:
        schedule, often = {"steps": steps}, {"checkpoint_every": steps}
        every = {"schedule": schedule, "validation": {"every": steps}, "runtime": often, "optimise": {"lr": 0.1}}
        return training_runs.config(data, output, network=network, **every, **changed)

    teacher = long(tmp_path / "teacher", UNET, 60)
    train(teacher)
    smaller = UNET | {"options": UNET["options"] | {"width_multiplier": 0.03}}
    nothing = {"terms": {"cross_entropy": 0.0}}
    student = long(tmp_path / "student", smaller, 120, loss=nothing, distill={"teacher": teacher.output})
    train(student)
    losses = curve(tmp_path / "student")
    miou = {name: load_card(str(tmp_path / name)).training["miou"] for name in ("teacher", "student")}
    print(f"divergence from {losses[0]:.3f} to {losses[-1]:.3f}; mean IoU {miou}")
    assert losses[-1] < 0.4 * losses[0]
    assert miou["teacher"] > 0.9
    assert miou["student"] > 0.75 * miou["teacher"]
