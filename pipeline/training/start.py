"""Initial weights from a checkpoint (`--network.initial`), matched by tensor name and class name.

In: a randomly initialised network, and a checkpoint of any classes and bands. Out: the network with every tensor that
fits, and score weights copied class by class. Nothing is downloaded.
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
    """Load the checkpoint `cfg.initial`, if there is one, into a network.

    Tensors are matched by name and shape. In tensors whose shape depends on the number of classes, each class takes the
    values of the checkpoint's class of the same name or of the one in `cfg.initial_classes`; without either it keeps
    its initial values. Filters of the input are copied band by band, by name; those of new bands start at 0. A network
    that wraps another one also takes a checkpoint of the inner network.

    Raises:
        ConfigError: a class does not exist, or no tensor fits.
    """
    if cfg.initial is None:
        return
    model = checkpoint.load_checkpoint(cfg.initial)
    pairs = class_pairs(cfg, classes, model.card.classes)
    own, initial, heads, first = network.state_dict(), {}, class_tensors(model.card), band_tensors(model.card)
    for theirs, tensor in model.state.items():
        name = theirs if theirs in own else f"inner.{theirs}"
        if theirs in heads and name in own:
            initial[name] = copy_classes(own[name], tensor, pairs)
        elif theirs in first and name in own:
            initial[name] = copy_bands(own[name], tensor, cfg.channels, model.card.channels)
        else:
            initial[name] = tensor
    kept = state.copy_fitting(network, initial)
    if len(kept) == len(own):
        raise ConfigError(
            f"no tensor of {cfg.initial} ({model.card.architecture}) fits the network {cfg.name}",
            hint="check --network.name",
        )
    log.info("starting from %s: %d of %d tensors, %d classes", cfg.initial, len(own) - len(kept), len(own), len(pairs))


def class_pairs(cfg: NetworkConfig, ours: ClassMap, theirs: ClassMap) -> dict[int, int]:
    """Map ids of this run's classes to ids of the checkpoint's classes that initialise them.

    Raises:
        ConfigError: `initial_classes` names a class that does not exist.
    """
    names = {name: name for name in ours.names if name in theirs.names} | cfg.initial_classes
    for name, classes in [*((own, ours) for own in names), *((source, theirs) for source in names.values())]:
        if name not in classes.names:
            hint = f"it has {', '.join(classes.names)}"
            raise ConfigError(f"--network.initial-classes: {classes.name} has no class {name!r}", hint=hint)
    return {ours.names.index(own): theirs.names.index(source) for own, source in names.items()}


def class_tensors(card: Card) -> set[str]:
    """Names of the tensors of a network whose shape depends on the number of classes."""
    return _differing(_shapes(card, classes=1), _shapes(card))


def band_tensors(card: Card) -> set[str]:
    """Names of the tensors of a network whose shape depends on the number of bands."""
    return _differing(_shapes(card, bands=-1 if card.in_channels > 1 else 1), _shapes(card))


def _differing(more: dict[str, torch.Size], shapes: dict[str, torch.Size]) -> set[str]:
    return {name for name, shape in shapes.items() if more[name] != shape}


def _shapes(card: Card, *, classes: int = 0, bands: int = 0) -> dict[str, torch.Size]:
    """Shape of each tensor of a card's network, with so many more classes or bands."""
    with torch.device("meta"):
        network = zoo.build_network(
            card.architecture,
            len(card.classes) + classes,
            in_channels=card.in_channels + bands,
            output_stride=card.output_stride,
            **card.options,
        )
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def copy_classes(own: Tensor, theirs: Tensor, pairs: dict[int, int]) -> Tensor:
    """Copy the rows of paired classes from the checkpoint's tensor; classes are along the first axis.

    A tensor that differs in any other axis keeps its initial values.
    """
    if own.shape[1:] != theirs.shape[1:] or not pairs:
        return own
    mixed = own.clone()
    mixed[list(pairs)] = theirs[list(pairs.values())].to(mixed)
    return mixed


def copy_bands(own: Tensor, theirs: Tensor, ours: tuple[str, ...], names: tuple[str, ...]) -> Tensor:
    """Copy the filters of bands that both have, by name; those of new bands start at 0, which changes no answer.

    Bands are along the second axis. A tensor without a common band, or of another size, keeps its initial values.
    """
    common = [name for name in ours if name in names]
    if own.shape[0] != theirs.shape[0] or own.shape[2:] != theirs.shape[2:] or not common:
        return own
    mixed = torch.zeros_like(own)
    mixed[:, [ours.index(name) for name in common]] = theirs[:, [names.index(name) for name in common]].to(mixed)
    return mixed
