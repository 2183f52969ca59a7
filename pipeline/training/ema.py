"""Exponential moving average (EMA) of a network's weights, which often scores better than the weights themselves.

In: the network after each step. Out: torch's `AveragedModel`, whose `.module` is a second network to validate and save.
Its state dict holds plain tensors, the count of updates among them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def make_average(network: nn.Module, decay: float) -> AveragedModel:
    """Make the average of a network; call `.update_parameters(network)` after every step.

    Floating-point parameters and buffers are averaged in their own precision: keep them in float32. Counters are
    copied. The decay after t updates is min(decay, (1 + t) / (10 + t)), so the initial weights are soon forgotten:
    `tf.train.ExponentialMovingAverage` with `num_updates`.

    Args:
        network: not wrapped by DDP or compiled.
        decay: 0 to below 1.
    """

    def update(averages: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        # It stays a tensor: reading its value would make every step wait for the GPU.
        share = 1 - torch.as_tensor((1 + updates) / (10 + updates)).clamp(max=decay)
        for average, now in zip(averages, current, strict=True):
            if average.is_floating_point():
                average.lerp_(now, share.to(average))
            else:
                average.copy_(now)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
