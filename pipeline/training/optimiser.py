"""Optimiser of a network, SGD or AdamW, with parameter groups of different learning rates.

In: a network and the settings. Out: a torch optimiser whose groups hold a factor on the learning rate. The loop sets
the learning rate of a step with `set_lr`.
"""

from typing import NamedTuple

import torch
from torch import nn

from pipeline.models.network import Network
from pipeline.training.config import OptimiseConfig


class Treatment(NamedTuple):
    """Learning rate factor and weight decay of a parameter group."""

    factor: float
    """Factor on the learning rate."""
    weight_decay: float


def make_optimiser(network: Network, cfg: OptimiseConfig) -> torch.optim.Optimizer:
    """Make the optimiser of all parameters that require a gradient.

    The last layers have learning rates of their own: Chen 2014 (arXiv 1412.7062), sec. 5, ten times that of the body,
    and 20 times for their biases in the authors' prototxt files. Without `decay_all`, vectors are not decayed: biases
    and the parameters of batch norm.

    Returns:
        SGD or AdamW, at `cfg.lr`; its groups hold "factor".
    """
    groups: dict[Treatment, list[nn.Parameter]] = {}
    head = {parameter for layer in network.last_layers() for parameter in layer.parameters()}
    for parameter in network.parameters():
        if parameter.requires_grad:
            treatment = _treatment(parameter, cfg, in_head=parameter in head)
            groups.setdefault(treatment, []).append(parameter)
    described = [{"params": parameters, **treatment._asdict()} for treatment, parameters in groups.items()]
    if cfg.kind == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(described, lr=cfg.lr, momentum=cfg.momentum)
    else:
        optimiser = torch.optim.AdamW(described, lr=cfg.lr)
    set_lr(optimiser, cfg.lr)
    return optimiser


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group: `lr`, the body's, times the group's factor."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["factor"]


def _treatment(parameter: nn.Parameter, cfg: OptimiseConfig, *, in_head: bool) -> Treatment:
    vector = parameter.ndim <= 1
    factor = (cfg.head_bias_lr if vector else cfg.head_lr) if in_head else 1.0
    return Treatment(factor, 0.0 if vector and not cfg.decay_all else cfg.weight_decay)
