"""The weights a run starts from, where it does not start from scratch.

In: a network with first values, and a checkpoint of any classes and bands. Out: the network with all that fits, and
the scores of a class taken over by its name. Never downloads anything.
"""

import logging

import torch
from torch import Tensor

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.models import checkpoint, zoo
from pipeline.models.checkpoint import Card
from pipeline.models.network import Network
from pipeline.training import state
from pipeline.training.config import NetworkConfig

log = logging.getLogger(__name__)


def load_initial_weights(network: Network, cfg: NetworkConfig, classes: ClassMap) -> None:
    """Start a network from the checkpoint that its config names, if it names one.

    Tensors are taken by name and shape. Where their shape follows the number of classes, each class of ours takes the
    values of the class of the same name, or of the one that `cfg.initial_classes` gives, and keeps its own without one.
    A network around another one also takes the checkpoint of that other one.

    Raises:
        ConfigError: for a class that does not exist, and when nothing fits.
    """
    if cfg.initial is None:
        return
    model = checkpoint.load_checkpoint(cfg.initial)
    pairs = class_pairs(cfg, classes, model.card.classes)
    own, found, heads = network.state_dict(), {}, per_class(model.card)
    for theirs, tensor in model.state.items():
        name = theirs if theirs in own else f"inner.{theirs}"
        found[name] = with_classes(own[name], tensor, pairs) if theirs in heads and name in own else tensor
    kept = state.carry(network, found)
    if len(kept) == len(own):
        raise ConfigError(f"nothing of {cfg.initial} ({model.card.architecture}) fits the network {cfg.name}")
    log.info("starting from %s: %d of %d tensors, %d classes", cfg.initial, len(own) - len(kept), len(own), len(pairs))


def class_pairs(cfg: NetworkConfig, ours: ClassMap, theirs: ClassMap) -> dict[int, int]:
    """Ids of our classes and of the checkpoint's that start them.

    Raises:
        ConfigError: `initial_classes` names a class that is not there.
    """
    names = {name: name for name in ours.names if name in theirs.names} | cfg.initial_classes
    for name, known in [*((mine, ours) for mine in names), *((yours, theirs) for yours in names.values())]:
        if name not in known.names:
            hint = f"it has {', '.join(known.names)}"
            raise ConfigError(f"--network.initial-classes: {known.name} has no class {name!r}", hint=hint)
    return {ours.names.index(mine): theirs.names.index(yours) for mine, yours in names.items()}


def per_class(card: Card) -> set[str]:
    """Names of the tensors of a network whose shape follows the number of classes."""

    def shapes(num_classes: int) -> dict[str, torch.Size]:
        with torch.device("meta"):
            network = zoo.build_network(
                card.architecture,
                num_classes,
                in_channels=card.in_channels,
                output_stride=card.output_stride,
                **card.options,
            )
        return {name: tensor.shape for name, tensor in network.state_dict().items()}

    one, other = shapes(len(card.classes)), shapes(len(card.classes) + 1)
    return {name for name, shape in one.items() if other[name] != shape}


def with_classes(own: Tensor, theirs: Tensor, pairs: dict[int, int]) -> Tensor:
    """First values with those of the classes that the checkpoint knows; classes are along the first axis.

    Where anything but the number of classes differs, the first values stay.
    """
    if own.shape[1:] != theirs.shape[1:] or not pairs:
        return own
    found = own.clone()
    found[list(pairs)] = theirs[list(pairs.values())].to(found)
    return found
