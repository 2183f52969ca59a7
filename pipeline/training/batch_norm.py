"""Batch norm in training: synchronised over all workers, or frozen at its running statistics.

In: a network, changed in place before its optimiser is made. Its parameters and buffers stay the same tensors under the
same names. Inference is never changed.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.models import layers


def sync(network: nn.Module) -> None:
    """Synchronise batch norm: take statistics over the images of all workers, also where workers have unequal numbers.

    GPUs use torch's `nn.SyncBatchNorm`, CPUs `SyncBatchNorm2d`: call this on the network's final device, before DDP
    wraps it. With one worker, or without a process group, nothing changes.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        on_gpu = next(network.parameters()).is_cuda
        _replace(network, nn.SyncBatchNorm if on_gpu else SyncBatchNorm2d)


def freeze(network: nn.Module) -> None:
    """Freeze batch norm: normalise by the running statistics also in training; weight and bias still learn.

    The second phase of DeepLab v3 (arXiv 1706.05587, sec. 4.1). The paper freezes "batch normalization parameters"; in
    the authors' code (tensorflow/models, research/deeplab, `fine_tune_batch_norm`) those are the statistics.
    """
    _replace(network, FrozenBatchNorm2d)


class FrozenBatchNorm2d(layers.BatchNorm2d):
    """Batch norm that stays in evaluation mode."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Ignore `mode`: stay in evaluation mode."""
        del mode
        super().train(False)
        return self


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Synchronised batch norm for CPUs, where `nn.SyncBatchNorm` raises an error."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); in training every worker must call it, with at least one image."""
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance, count = statistics(values)
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        normal = (values - _per_channel(mean)) * _per_channel((variance + self.eps).rsqrt() * self.weight)
        return (normal + _per_channel(self.bias)).to(x.dtype)

    def _remember(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        momentum = cast(float, self.momentum)  # no network of the zoo has None, the cumulative average
        cast(Tensor, self.num_batches_tracked).add_(1)
        cast(Tensor, self.running_mean).lerp_(mean, momentum)
        cast(Tensor, self.running_var).lerp_(unbiased_variance, momentum)


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all workers, both (C,), and the values per channel, a scalar.

    Differentiable: the gradient of one worker's loss reaches the images of the others.

    Args:
        x: (N, C, H, W) of this worker.
    """
    own = x.new_full((1,), x.numel() / x.size(1))
    summed = _sum_over_workers(torch.cat([own, x.sum((0, 2, 3))]))
    count = summed[0].detach()
    mean = summed[1:] / count
    # A second pass, because the mean of squares minus the square of the mean loses digits.
    variance = _sum_over_workers((x - _per_channel(mean)).square().sum((0, 2, 3))) / count
    return mean, variance, count


class SumOverWorkers(torch.autograd.Function):
    """A differentiable all-reduce: its gradient is a sum too, because every worker's loss depends on the total.

    `torch.distributed.nn` has one too, but is deprecated in favour of private modules.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(C,) of this worker -> (C,), the same on every worker."""
        del ctx
        return _all_reduced(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Gradient of this worker's input."""
        del ctx
        return _all_reduced(grads[0])


def _all_reduced(x: Tensor) -> Tensor:
    total = x.clone()
    dist.all_reduce(total)
    return total


def _sum_over_workers(x: Tensor) -> Tensor:
    total: Tensor = SumOverWorkers.apply(x)  # type: ignore[no-untyped-call]
    return total


def _per_channel(x: Tensor) -> Tensor:
    return x[:, None, None]


def _replace(network: nn.Module, kind: type[nn.BatchNorm2d] | type[nn.SyncBatchNorm]) -> None:
    """Replace every batch norm by a layer of another kind that holds the same tensors."""
    for parent in list(network.modules()):
        for name, old in parent.named_children():
            if isinstance(old, nn.BatchNorm2d | nn.SyncBatchNorm):
                new = kind(old.num_features, eps=old.eps, momentum=old.momentum)
                new.load_state_dict(old.state_dict(keep_vars=True), assign=True)
                setattr(parent, name, new.train(old.training))
