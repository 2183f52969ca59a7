import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import classes as class_maps
from pipeline.errors import ConfigError
from pipeline.training import batch_norm, weak
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Batch
from pipeline.training.learner import (
    Learner,
    build_phase_network,
    complete_labels,
    convolution_dtype,
    derive_seed,
    make_learner,
    memory_format,
    normalise,
    split_batch,
    take_step,
    to_device,
)
from pipeline.training.ranks import Group
from tests import ROOT
from tests.support.ports import free_port
from tests.support.training_runs import CLASSES, NORMED, TINY

THREE = class_maps.from_dict(CLASSES, origin="test")
COUNTS = np.array([[100, 200, 300], [50, 0, 70]])
TWO_SCORES = {
    "name": "pspnet",
    "options": {"backbone": "resnet50", "width_multiplier": 0.0625, "aux": True, "align_corners": False},
}
"""Has a second score with a loss of its own, and batch norm."""
SIZE_PX = 24, 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(network: dict = NORMED, **changed) -> TrainConfig:
    """Without dropout and with frozen batch norm, an image's scores do not depend on the other images of its pass."""
    base = {"data": "data", "output": "run", "network": network, "optimise": {"lr": 0.1}, "batch_norm": "frozen"}
    return TrainConfig.model_validate(base | changed)


def learner(cfg: TrainConfig, group: Group | None = None) -> Learner:
    torch.manual_seed(0)
    network = build_phase_network(cfg, THREE)
    return make_learner(network, cfg, THREE, COUNTS, group or Group())


def batch(count: int = 4, *, supervision: int = weak.FULL, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, *SIZE_PX), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count, *SIZE_PX), generator=generator, dtype=torch.uint8)
    labels[0, :5] = 255
    present = torch.ones(count, 3, dtype=torch.bool)
    return Batch(images, labels, present, torch.full((count,), supervision, dtype=torch.int8))


def step(made: Learner, examples: Batch, group: Group | None = None, *, number: int = 0, rate: float = 1.0) -> Tensor:
    return take_step(made, examples, group or Group(), step=number, rate=rate)


def weights(made: Learner) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in made.network.state_dict().items()}


# ---------------------------------------------------------------- construction


@pytest.mark.parametrize("reserved", ["num_classes", "in_channels", "output_stride"])
def test_options_that_other_settings_determine_are_refused(reserved: str) -> None:
    with pytest.raises(ConfigError, match=f"--network.options must not contain {reserved}"):
        build_phase_network(config({"name": "unet", "options": {reserved: 3}}), THREE)


def test_a_network_has_an_input_for_each_band_a_score_for_each_class_and_the_output_stride_asked_for() -> None:
    small = {"backbone": "resnet18", "width_multiplier": 0.0625}
    bands = {"channels": ("red", "green", "blue", "near"), "mean": (0.5,) * 4, "std": (0.25,) * 4}
    for output_stride in (8, 16):
        cfg = config({"name": "deeplab_v3plus", "options": small, "output_stride": output_stride, **bands})
        network = build_phase_network(cfg, THREE).eval()
        with torch.no_grad():
            assert network(torch.zeros(1, 4, 64, 64)).shape[1] == 3
            deepest = network.backbone(torch.zeros(1, 4, 64, 64))
        assert min(x.shape[-1] for x in (deepest if isinstance(deepest, tuple) else deepest.values())) == (
            64 // output_stride
        )


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_weights_have_the_memory_format_that_is_asked_for(channels_last: bool) -> None:
    cfg = config(runtime={"channels_last": channels_last})
    expected = torch.channels_last if channels_last else torch.contiguous_format
    assert memory_format(cfg) is expected
    kernel = next(weight for weight in learner(cfg).network.parameters() if weight.ndim == 4 and weight.shape[1] > 1)
    pixels = normalise(batch().images_nchw, cfg)
    for tensor in (kernel, pixels):
        assert tensor.is_contiguous(memory_format=expected)
        assert not tensor.is_contiguous(memory_format=torch.contiguous_format if channels_last else torch.channels_last)


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("fp32", "cuda", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
    ],
)
def test_convolutions_have_the_precision_asked_for_and_bf16_on_a_gpu_unless_one_is(
    precision: str, device: str, dtype: torch.dtype
) -> None:
    assert convolution_dtype(config(runtime={"precision": precision}), torch.device(device)) is dtype


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_step_runs_the_convolutions_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    """Whatever precision autocast would take by itself: float16 on a GPU."""
    made, seen, usual = learner(config(runtime={"precision": precision})), set(), torch.get_autocast_dtype("cpu")
    for layer in made.network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, scores: seen.add(scores.dtype))
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        step(made, batch())
    finally:
        torch.set_autocast_dtype("cpu", usual)
    assert seen == {dtype}
    assert {weight.dtype for weight in made.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(("how", "moves"), [("train", True), ("frozen", False)])
def test_frozen_batch_norm_keeps_its_statistics_through_a_step(how: str, moves: bool) -> None:
    made = learner(config(batch_norm=how))
    before = weights(made)
    step(made, batch())
    after = weights(made)
    running = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert running
    assert {not torch.equal(before[name], after[name]) for name in running} == {moves}


@pytest.mark.parametrize("kind", ["none", "inverse", "effective_number"])
def test_the_loss_weighs_classes_by_their_pixels_in_the_data(kind: str) -> None:
    made = learner(config(loss={"class_weights": kind, "effective_beta": 0.9}))
    per_class = []
    for k in range(3):
        examples = batch()
        labels = torch.full_like(examples.labels_nhw, k)
        scores = torch.zeros(4, 3, *SIZE_PX)
        per_class.append(float(made.loss(scores, labels, torch.ones(1))))
    relative = torch.tensor(per_class) / per_class[0]
    totals = torch.tensor(COUNTS.sum(0), dtype=torch.float64)
    images = totals / totals.sum() * len(COUNTS)
    law = {"none": totals**0, "inverse": 1 / totals, "effective_number": (1 - 0.9) / (1 - 0.9**images)}[kind]
    torch.testing.assert_close(relative.double(), law / law[0], rtol=1e-4, atol=1e-4)


def test_the_loss_leaves_out_the_ignored_id_of_the_class_map() -> None:
    ignoring = THREE.model_copy(update={"ignore_id": 77})
    cfg = config()
    made = make_learner(build_phase_network(cfg, THREE), cfg, ignoring, COUNTS, Group())
    labels = torch.full((1, *SIZE_PX), 77, dtype=torch.uint8)
    assert float(made.loss.units(labels).sum()) == 0


def test_network_and_loss_are_on_the_device_of_the_rank() -> None:
    made = learner(config(), Group(device=torch.device("meta")))
    tensors = [*made.network.state_dict().values(), *made.network.parameters(), made.loss.weight_of_id]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_the_background_of_weak_labels_is_the_class_that_is_named() -> None:
    assert learner(config()).background == 0
    assert learner(config(weak={"background": "pond"})).background == 2


# ---------------------------------------------------------------- a step


@pytest.mark.parametrize("network", [NORMED, TWO_SCORES])
def test_a_step_of_plain_sgd_moves_each_weight_against_its_gradient_by_its_rate(network: dict) -> None:
    """The loss written down once more: the weighted sum of every branch's mean cross entropy over labelled pixels."""
    cfg = config(
        network,
        optimise={"lr": 0.2, "momentum": 0.0, "weight_decay": 0.0, "head_lr": 10.0, "head_bias_lr": 20.0},
    )
    made, examples = learner(cfg), batch()
    before = {name: weight.detach().clone() for name, weight in made.network.named_parameters()}
    mean, std = (torch.tensor(band).view(1, 3, 1, 1) for band in (cfg.network.mean, cfg.network.std))
    torch.manual_seed(derive_seed(cfg.seed, 3, 0))
    scores = made.network.supervised((examples.images_nchw.float() / 255 - mean) / std)
    labels = examples.labels_nhw.long()
    loss = sum(
        weight
        * F.cross_entropy(upsampled(scores[name], made.network.stride), labels, ignore_index=255, reduction="mean")
        for name, weight in made.network.loss_weights.items()
    )
    names, parameters = zip(*made.network.named_parameters(), strict=True)
    slopes = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    got = step(made, examples, number=3, rate=0.5)
    torch.testing.assert_close(got, loss.detach(), rtol=1e-4, atol=1e-5)
    head = {id(parameter) for layer in made.network.last_layers() for parameter in layer.parameters()}
    for name, weight in made.network.named_parameters():
        factor = (20.0 if weight.ndim == 1 else 10.0) if id(weight) in head else 1.0
        torch.testing.assert_close(
            weight.detach(), before[name] - 0.2 * 0.5 * factor * slopes[name], rtol=1e-4, atol=1e-5
        )


def upsampled(scores: Tensor, stride: int) -> Tensor:
    """Scores at the size of the labels, which is a multiple of the stride."""
    if scores.shape[2:] == SIZE_PX:
        return scores
    assert tuple(side * stride for side in scores.shape[2:]) == SIZE_PX
    return F.interpolate(scores, SIZE_PX, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_passes_of_a_step_add_up_to_one_pass_over_the_whole_batch(accumulate: int) -> None:
    """Images differ in their ignored pixels, so a mean of the passes' means is not the mean over all pixels."""
    examples = batch(4)
    whole, parts = (learner(config(optimise={"lr": 0.1, "accumulate": passes})) for passes in (1, accumulate))
    torch.testing.assert_close(step(parts, examples), step(whole, examples))
    for one, other in zip(weights(whole).values(), weights(parts).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_of_the_step_before_do_not_count() -> None:
    once, twice = (learner(config(optimise={"lr": 0.1, "momentum": 0.0})) for _ in range(2))
    step(twice, batch(seed=1), rate=1e-12)
    step(twice, batch())
    step(once, batch())
    for one, other in zip(weights(once).values(), weights(twice).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_clipping_bounds_the_norm_of_all_gradients_together(limit: float) -> None:
    plain = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    free, bounded = (learner(config(optimise=plain | more)) for more in ({}, {"clip_norm": limit}))
    moved = []
    for made in (free, bounded):
        before = weights(made)
        step(made, batch())
        moved.append(torch.cat([(tensor - before[name]).flatten() for name, tensor in weights(made).items()]))
    norm = moved[0].norm()
    torch.testing.assert_close(moved[1], moved[0] * min(1.0, limit / float(norm)), rtol=1e-3, atol=1e-6)


def test_dropout_is_drawn_from_the_seed_the_step_and_the_rank() -> None:
    def loss(seed: int, number: int, rank: int) -> float:
        return float(step(learner(config(TINY, seed=seed)), batch(), Group(rank=rank), number=number))

    assert loss(0, 1, 0) == loss(0, 1, 0)
    assert len({loss(0, 1, 0), loss(1, 1, 0), loss(0, 2, 0), loss(0, 1, 1)}) == 4


@given(st.lists(st.tuples(*[st.integers(0, 2**40)] * 3), min_size=2, max_size=5, unique=True))
def test_derived_seeds_are_seeds_of_torch_and_differ(numbers: list[tuple[int, int, int]]) -> None:
    seeds = [derive_seed(*several) for several in numbers]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [derive_seed(*several) for several in numbers]


def test_derived_seeds_have_63_bits_so_that_those_of_millions_of_steps_differ() -> None:
    seeds = [derive_seed(0, number, 0) for number in range(200)]
    assert 0.4 < np.mean([seed / 2**63 for seed in seeds]) < 0.6


@pytest.mark.parametrize("decay", [None, 0.5])
def test_the_weights_to_keep_are_the_moving_average_where_there_is_one(decay: float | None) -> None:
    made = learner(config(half=False, **({"ema": decay} if decay else {})))
    step(made, batch())
    start = weights(made)
    step(made, batch(), number=1)
    now, kept = weights(made), made.weights()
    assert kept.keys() == now.keys()
    moved, followed = (torch.cat([(x[name] - start[name]).flatten() for name in start]) for x in (now, kept))
    share = float(followed @ moved / (moved @ moved))
    assert share == pytest.approx(1.0) if decay is None else 0.1 < share < 0.9
    torch.testing.assert_close(followed, share * moved, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("half", [True, False])
def test_the_weights_to_keep_are_in_half_precision_where_that_is_asked_for(half: bool) -> None:
    kept = learner(config(half=half)).weights()
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {
        torch.float16 if half else torch.float32
    }


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_learner_with_the_tensors_of_another_takes_the_same_next_step(ema: float | None) -> None:
    cfg = config(ema=ema) if ema else config()
    one, other = learner(cfg), learner(cfg)
    step(one, batch())
    other.restore({name: tensor.detach().clone() for name, tensor in one.tensors().items()})
    assert float(step(one, batch(seed=1), number=1)) == float(step(other, batch(seed=1), number=1))
    tensors = one.tensors()
    assert tensors.keys() == other.tensors().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in other.tensors().items())
    assert {name.partition("/")[0] for name in tensors} == {"network", "optimiser"} | ({"average"} if ema else set())


# ---------------------------------------------------------------- batches


@given(st.integers(1, 9), st.integers(1, 5))
def test_parts_of_a_batch_are_the_batch_in_order_and_differ_by_one_image_at_most(count: int, passes: int) -> None:
    whole = batch(count)
    parts = split_batch(whole, passes)
    assert len(parts) == passes
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for field in ("images_nchw", "labels_nhw", "present_nk", "supervision_n"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))


def test_a_batch_is_copied_to_the_device_but_for_its_kind_of_supervision() -> None:
    moved = to_device(torch.device("meta"), batch())
    assert {field.device.type for field in (moved.images_nchw, moved.labels_nhw, moved.present_nk)} == {"meta"}
    assert moved.supervision_n.device.type == "cpu"


def test_images_are_normalised_band_by_band_where_they_are() -> None:
    bands = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.125)}
    cfg = config(NORMED | bands)
    images = batch().images_nchw
    expected = torch.stack(
        [(images[:, band].float() / 255 - bands["mean"][band]) / bands["std"][band] for band in range(3)], dim=1
    )
    torch.testing.assert_close(normalise(images, cfg), expected, rtol=1e-5, atol=1e-5)
    assert normalise(images.to("meta"), cfg).device.type == "meta"


# ---------------------------------------------------------------- weak labels


@pytest.mark.parametrize("supervision", [weak.CLASSES, weak.BOXES])
def test_weak_labels_are_completed_at_full_size_by_the_scores_of_the_network(supervision: int) -> None:
    """Scores are upsampled by the network's stride, the sides of the image differ, and background is not class 0."""
    cfg = config(
        {"name": "deeplab_v3plus", "options": {"backbone": "resnet18", "width_multiplier": 0.0625}},
        weak={"classes": "em_fixed", "boxes": "em_fixed", "background": "path", "bias_fg": 0.7, "bias_bg": 0.2},
    )
    made, examples = learner(cfg), batch(supervision=supervision)
    examples = replace(examples, present_nk=torch.tensor([[1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 1, 1]]).bool())
    stride = made.network.stride
    assert stride > 1
    logits = torch.randn(4, 3, *(side // stride for side in SIZE_PX), generator=torch.Generator().manual_seed(0))
    expected = weak.e_step(
        F.interpolate(logits, SIZE_PX, mode="bilinear", align_corners=False),
        examples.labels_nhw,
        examples.present_nk,
        examples.supervision_n,
        cfg.weak,
        background=1,
        ignore_id=255,
    )
    assert torch.equal(complete_labels(made, logits, examples), expected)
    assert (expected != examples.labels_nhw).any()


def test_a_step_learns_from_the_completed_labels_and_from_full_ones_as_they_are() -> None:
    """A weakly labelled image with one possible class is that image fully labelled with the class."""
    cfg = config(weak={"classes": "em_fixed", "background": "path"})
    examples = batch()
    only = torch.where(examples.labels_nhw == 255, 255, 1).to(torch.uint8)
    named = torch.tensor([[False, True, False]] * 4)
    full = replace(examples, labels_nhw=only)
    classes_only = Batch(
        examples.images_nchw,
        torch.where(only == 255, 255, 0).to(torch.uint8),
        named,
        torch.full((4,), weak.CLASSES, dtype=torch.int8),
    )
    mixed = Batch(
        full.images_nchw,
        torch.cat([full.labels_nhw[:2], classes_only.labels_nhw[2:]]),
        named,
        torch.tensor([weak.FULL, weak.FULL, weak.CLASSES, weak.CLASSES], dtype=torch.int8),
    )
    losses = [float(step(learner(cfg), one)) for one in (full, classes_only, mixed)]
    assert losses == pytest.approx([losses[0]] * 3)


# ---------------------------------------------------------------- several ranks


@pytest.fixture
def a_group_of_processes() -> Iterator[Group]:
    """A process group of this process alone, whose rank is told that there are two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Group(rank=0, size=2)
    dist.destroy_process_group()


@pytest.mark.parametrize("branches", [{}, {"logits": 1.0}])
def test_layers_without_a_loss_are_searched_for_only_where_there_are_some(
    a_group_of_processes: Group, branches: dict
) -> None:
    """DDP refuses a second step where a layer has no gradient that it did not search for; the search costs time."""
    made = learner(config(TWO_SCORES, loss={"branches": branches}), a_group_of_processes)
    for number in range(2):
        step(made, batch(), a_group_of_processes, number=number)
    assert isinstance(made.supervised, DistributedDataParallel)
    assert made.supervised.find_unused_parameters == bool(branches)
    assert made.supervised.gradient_as_bucket_view  # or each rank holds its gradients twice


def test_gradients_of_ranks_are_added_up_although_ddp_takes_their_mean(a_group_of_processes: Group) -> None:
    """With the other of two ranks away, the mean over all ranks that are there times two is twice the step."""
    plain = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    alone, one_of_two = learner(config(optimise=plain)), learner(config(optimise=plain), a_group_of_processes)
    before = weights(alone)
    assert float(step(alone, batch())) == pytest.approx(float(step(one_of_two, batch(), a_group_of_processes)))
    after = weights(one_of_two)
    for name, moved in weights(alone).items():
        torch.testing.assert_close(after[name], before[name] + 2 * (moved - before[name]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("how", "size", "shared"), [("sync", 2, True), ("train", 2, False), ("sync", 1, False)])
def test_batch_norm_is_synchronised_where_that_is_asked_for_and_there_are_several_ranks(
    a_group_of_processes: Group, monkeypatch: pytest.MonkeyPatch, how: str, size: int, shared: bool
) -> None:
    synchronised = []
    monkeypatch.setattr(batch_norm, "sync", synchronised.append)
    made = learner(config(batch_norm=how), replace(a_group_of_processes, size=size))
    assert synchronised == [made.network] * shared


def test_gradients_are_exchanged_once_a_step_however_many_passes_it_has(a_group_of_processes: Group) -> None:
    made = learner(config(optimise={"lr": 0.1, "accumulate": 3}), a_group_of_processes)
    exchanged = []

    def exchange(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        exchanged.append(bucket.index())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    made.supervised.register_comm_hook(None, exchange)
    step(made, batch(), a_group_of_processes)
    assert exchanged.count(0) == 1
    assert len(exchanged) == len(set(exchanged))


RANK = """
import sys, safetensors.torch, torch
from dataclasses import fields
from pipeline.training.examples import Batch
from pipeline.training.ranks import process_group
from tests.pipeline.training.test_learner import batch, config, learner, step, weights
torch.set_num_threads(1)
with process_group(torch.device("cpu")) as ours:
    made, whole = learner(config(batch_norm="sync"), ours), batch()
    half = slice(0, 3) if ours.rank == 0 else slice(3, None)
    share = step(made, Batch(*(getattr(whole, field.name)[half] for field in fields(Batch))), ours)
    tensors = {name: tensor.contiguous() for name, tensor in weights(made).items()}
    safetensors.torch.save_file(tensors | {"loss": ours.sum(share)}, sys.argv[1] + str(ours.rank))
"""


@pytest.mark.slow
def test_ranks_with_parts_of_a_batch_take_the_step_of_one_process_with_all_of_it(tmp_path: Path) -> None:
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "rank")],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    alone = learner(config(batch_norm="train"))
    expected = {"loss": step(alone, batch())} | weights(alone)
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    for rank in range(2):
        found = safetensors.torch.load_file(f"{tmp_path}/rank{rank}")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)
