from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models import zoo
from pipeline.models.layers import BatchNorm2d
from pipeline.training import batch_norm

SPLITS = ((3, 2), (1, 4), (2, 2))
"""Images of each worker in each step."""
STEPS = len(SPLITS)


def network() -> nn.Module:
    """Batch norm over maps and, as behind image pooling, over one value per image and channel; float64."""
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), BatchNorm2d(3), nn.Sigmoid())
    return nn.Sequential(nn.Conv2d(2, 4, 3), BatchNorm2d(4, momentum=0.3), nn.ReLU(), pooled).double()


def images(step: int) -> Tensor:
    """(N, 2, 6, 5) of all workers; of a mean far from 0, where the mean of squares loses digits."""
    generator = torch.Generator().manual_seed(step)
    return 3 * torch.randn(sum(SPLITS[step]), 2, 6, 5, generator=generator, dtype=torch.float64) + 1000


def trained(net: nn.Module, parts: list[Tensor], weights: list[Tensor], *, workers: int) -> dict[str, Tensor]:
    """Some steps of plain gradient descent; everything that could differ, of each."""
    found = {}
    wrapped = DistributedDataParallel(net) if workers > 1 else net
    for step, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        x = part.clone().requires_grad_()
        answer = wrapped(x)
        net.zero_grad()
        (workers * answer * weight).sum().backward()  # the wrapper takes the mean over workers
        found |= {f"{step}/answer": answer.detach(), f"{step}/grad": x.grad / workers}
        for name, parameter in net.named_parameters():
            found[f"{step}/grad of {name}"] = parameter.grad.clone()
            parameter.data -= 0.01 * parameter.grad
        found |= {f"{step}/{name}": one.clone() for name, one in net.state_dict().items()}
    return found


def weighted(step: int) -> Tensor:
    """A loss in which every image counts differently."""
    return torch.linspace(-1, 2, sum(SPLITS[step]) * 3, dtype=torch.float64).view(-1, 3, 1, 1)


def work(rank: int, folder: str) -> None:
    """One of two workers, whose part of each batch is in order of rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = network()
    batch_norm.sync(net)
    parts = [images(step).split(SPLITS[step])[rank] for step in range(STEPS)]
    weights = [weighted(step).split(SPLITS[step])[rank] for step in range(STEPS)]
    save_file(trained(net, parts, weights, workers=2), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """One process with the whole batches."""
    return trained(network(), [*map(images, range(STEPS))], [*map(weighted, range(STEPS))], workers=1)


@pytest.mark.parametrize("rows", ["answer", "grad"])
@pytest.mark.parametrize("step", range(STEPS))
def test_two_workers_give_the_answers_and_gradients_of_one(workers, alone, rows: str, step: int) -> None:
    found = torch.cat([worker[f"{step}/{rows}"] for worker in workers])
    torch.testing.assert_close(found, alone[f"{step}/{rows}"], atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("step", range(STEPS))
def test_two_workers_have_the_parameters_and_statistics_of_one(workers, alone, step: int) -> None:
    shared = {name for name in alone if name.startswith(f"{step}/") and name.split("/")[1] not in ("answer", "grad")}
    assert {f"{step}/1.running_var", f"{step}/1.num_batches_tracked", f"{step}/grad of 3.2.weight"} < shared
    for worker in workers:
        for name in shared:
            torch.testing.assert_close(worker[name], alone[name], atol=1e-8, rtol=1e-8, msg=name)
    for name in shared:
        assert torch.equal(workers[0][name], workers[1][name]), name


def test_alone_there_is_nothing_to_synchronise() -> None:
    net = network()
    before = list(net.modules())
    batch_norm.sync(net)
    assert list(net.modules()) == before


@pytest.fixture
def two_workers_seen_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)


@pytest.mark.usefixtures("two_workers_seen_by_one")
@pytest.mark.parametrize("change", [batch_norm.sync, batch_norm.freeze])
@pytest.mark.parametrize("name", ["deeplab_v3plus", "unet_resnet"])
def test_every_batch_norm_is_changed_around_the_same_tensors(name: str, change) -> None:
    net = zoo.build_network(name, 3, width_multiplier=1 / 16).train()
    before = net.state_dict(keep_vars=True)
    epsilon = {key: module.eps for key, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    change(net)
    after = net.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)
    changed = (batch_norm.SyncBatchNorm2d, batch_norm.FrozenBatchNorm2d)
    assert {key: module.eps for key, module in net.named_modules() if isinstance(module, changed)} == epsilon
    assert epsilon


@pytest.mark.usefixtures("two_workers_seen_by_one")
def test_in_use_synchronised_batch_norm_is_plain() -> None:
    net = network().eval()
    expected = net(images(0))
    batch_norm.sync(net)
    torch.testing.assert_close(net(images(0)), expected)


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_weights() -> None:
    net = network()
    net(images(0))
    expected = net.eval()(images(1)).detach()
    before = {name: one.clone() for name, one in net.named_buffers()}
    batch_norm.freeze(net)
    answer = net.train()(images(1))
    torch.testing.assert_close(answer, expected)
    assert all(torch.equal(one, before[name]) for name, one in net.named_buffers())
    answer.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert net.training
    assert not net[1].training
