"""Initial weights (`--network.initial`) from a checkpoint or a pretrained backbone, by tensor name and class name.

In: a randomly initialised network, and a checkpoint of any classes and bands, or a backbone of `importing.pretrained`.
Out: the network with every tensor that fits, and score weights copied class by class. Nothing is downloaded.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.importing import pretrained
from pipeline.importing.pretrained import PRETRAINED
from pipeline.models import checkpoint, zoo
from pipeline.models.card import Card, load_card
from pipeline.models.network import Network
from pipeline.training import state
from pipeline.training.config import NetworkConfig, TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Initial:
    """Initial weights: those of a checkpoint, or those of a backbone alone."""

    card: Card
    """Card of the checkpoint; for a backbone, of a network around it."""
    tensors: Mapping[str, Tensor]
    sha256: str
    classes: ClassMap | None
    """Classes of its scores; None for a backbone, which has none."""


def open_initial(name: str) -> Initial:
    """Open initial weights: a pretrained backbone by name, or a checkpoint by folder or shipped name.

    Raises:
        ConfigError: there is no such checkpoint, or the package of the backbone is not installed.
    """
    if name in PRETRAINED:
        backbone = pretrained.load_backbone(name)
        return Initial(backbone.card, backbone.trained(), str(backbone.card.training["sha256"]), None)
    model = checkpoint.load_checkpoint(name)
    return Initial(model.card, model.state, model.sha256, model.card.classes)


def with_initial_settings(cfg: TrainConfig) -> TrainConfig:
    """Fill in what the initial weights were trained with: a backbone's name, and mean and deviation of the bands.

    Only settings that are left at their defaults change. A mean or deviation that is set otherwise is warned of, since
    the weights then see other values than in their training.

    Raises:
        ConfigError: as `open_initial`.
    """
    network, name = cfg.network, cfg.network.initial
    if name is None:
        return cfg
    is_backbone = name in PRETRAINED
    card = pretrained.load_backbone(name).card if is_backbone else load_card(name)
    update = network.model_dump()
    if is_backbone and "backbone" in zoo.option_names(network.name):
        update["options"] = {"backbone": card.options["backbone"]} | network.options
    if network.channels == card.channels:
        fresh, theirs = NetworkConfig(), (card.mean, card.std)
        if (network.mean, network.std) == (fresh.mean, fresh.std):
            update["mean"], update["std"] = theirs
        elif (network.mean, network.std) != theirs:
            message = "--network.mean and --network.std are not those of %s, which was trained with mean %s and std %s"
            log.warning(message, name, *theirs)
    return cfg.model_copy(update={"network": NetworkConfig.model_validate(update)})


def load_initial_weights(network: Network, cfg: NetworkConfig, classes: ClassMap) -> None:
    """Load the initial weights `cfg.initial`, if there are any, into a network.

    Tensors are matched by name and shape. In tensors whose shape depends on the number of classes, each class takes the
    values of the checkpoint's class of the same name or of the one in `cfg.initial_classes`; without either it keeps
    its initial values. Filters of the input are copied band by band, by name; those of new bands start at 0. A network
    that wraps another one also takes a checkpoint of the inner network.

    Raises:
        ConfigError: a class does not exist, no tensor fits, or a tensor of a backbone does not.
    """
    if cfg.initial is None:
        return
    start = open_initial(cfg.initial)
    pairs = class_pairs(cfg, classes, start.classes)
    own, initial = network.state_dict(), {}
    same_classes = start.classes is not None and classes.names == start.classes.names and _is_identity(pairs)
    heads = set() if same_classes else class_tensors(start.card)
    first = set() if cfg.channels == start.card.channels else band_tensors(start.card)
    for theirs, tensor in start.tensors.items():
        name = _own_name(theirs, own)
        if theirs in heads and name in own:
            initial[name] = copy_classes(own[name], tensor, pairs, len(classes))
        elif theirs in first and name in own:
            initial[name] = copy_bands(own[name], tensor, cfg.channels, start.card.channels)
        else:
            initial[name] = tensor
    kept = state.copy_fitting(network, initial)
    _refuse_unfit(cfg, start, fitting=len(own) - len(kept))
    log.info("starting from %s: %d of %d tensors, %d classes", cfg.initial, len(own) - len(kept), len(own), len(pairs))


def _own_name(theirs: str, own: Mapping[str, Tensor]) -> str:
    """Name of a tensor in our network, which may wrap theirs or call its backbone `encoder`; theirs if it has none."""
    encoder = theirs.replace("backbone.", "encoder.", 1)
    candidates = (theirs, encoder, f"inner.{theirs}", f"inner.{encoder}")
    return next((name for name in candidates if name in own), theirs)


def _refuse_unfit(cfg: NetworkConfig, start: Initial, *, fitting: int) -> None:
    if start.classes is None and fitting < len(start.tensors):
        raise ConfigError(
            f"{fitting} of {len(start.tensors)} tensors of the backbone {cfg.initial} fit the network {cfg.name}",
            hint=f"leave its width at 1, and its option backbone unset or {start.card.options['backbone']}",
        )
    if not fitting:
        raise ConfigError(
            f"no tensor of {cfg.initial} ({start.card.architecture}) fits the network {cfg.name}",
            hint="check --network.name",
        )


def class_pairs(cfg: NetworkConfig, ours: ClassMap, theirs: ClassMap | None) -> dict[int, int]:
    """Map ids of this run's classes to ids of the checkpoint's classes that initialise them; a backbone has none.

    Raises:
        ConfigError: `initial_classes` names a class that does not exist.
    """
    if theirs is None:
        if cfg.initial_classes:
            hint = "leave it unset"
            raise ConfigError(f"--network.initial-classes: {cfg.initial} is a backbone, without classes", hint=hint)
        return {}
    names = {name: name for name in ours.names if name in theirs.names} | cfg.initial_classes
    for name, classes in [*((own, ours) for own in names), *((source, theirs) for source in names.values())]:
        if name not in classes.names:
            hint = f"it has {', '.join(classes.names)}"
            raise ConfigError(f"--network.initial-classes: {classes.name} has no class {name!r}", hint=hint)
    return {ours.names.index(own): theirs.names.index(source) for own, source in names.items()}


def _is_identity(pairs: Mapping[int, int]) -> bool:
    return all(ours == theirs for ours, theirs in pairs.items())


def class_tensors(card: Card) -> set[str]:
    """Names of the tensors of a network whose shape depends on the number of classes."""
    return _differing(checkpoint.shapes(card, classes=1), checkpoint.shapes(card))


def band_tensors(card: Card) -> set[str]:
    """Names of the tensors of a network whose shape depends on the number of bands."""
    fewer = -1 if card.in_channels > 1 else 1
    return _differing(checkpoint.shapes(card, bands=fewer), checkpoint.shapes(card))


def _differing(more: dict[str, torch.Size], shapes: dict[str, torch.Size]) -> set[str]:
    return {name for name, shape in shapes.items() if more[name] != shape}


def copy_classes(own: Tensor, theirs: Tensor, pairs: dict[int, int], classes: int) -> Tensor:
    """Copy the slices of paired classes from the checkpoint's tensor; ours has `classes` of them along one axis.

    That is the first axis, or the second in the weight of a transposed convolution. A tensor that differs in any other
    axis, or in which both could be the classes, keeps its initial values.
    """
    axes = [
        axis
        for axis in range(min(own.dim(), theirs.dim(), 2))
        if own.size(axis) == classes and own.select(axis, 0).shape == theirs.select(axis, 0).shape
    ]
    if len(axes) != 1 or not pairs:
        return own
    mixed = own.clone()
    to, source = torch.tensor(list(pairs)), torch.tensor(list(pairs.values()))
    return mixed.index_copy_(axes[0], to, theirs.index_select(axes[0], source).to(mixed))


def copy_bands(own: Tensor, theirs: Tensor, ours: tuple[str, ...], names: tuple[str, ...]) -> Tensor:
    """Copy the filters of bands that both have, by name; those of new bands start at 0, which changes no answer.

    Bands are along the second axis. A tensor without a common band, of another size, or whose second axis is not the
    bands, keeps its initial values.
    """
    common = [name for name in ours if name in names]
    bands = (own.shape[1:2], theirs.shape[1:2]) == ((len(ours),), (len(names),))
    if not bands or own.shape[0] != theirs.shape[0] or own.shape[2:] != theirs.shape[2:] or not common:
        return own
    mixed = torch.zeros_like(own)
    mixed[:, [ours.index(name) for name in common]] = theirs[:, [names.index(name) for name in common]].to(mixed)
    return mixed
