"""From tensors under somebody else's names to a checkpoint of ours: recognise, rename, account for every tensor.

In: what `reader` read and what a person knows of it. Out: a state dict and a card, or a refusal that lists each tensor
that is missing, unknown or of another shape. No tensor is left out without a reason.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.config import explain
from pipeline.errors import ConfigError
from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.shapes import ShapeOptions, filters
from pipeline.importing.layouts.table import LAYOUT_BY_NAME, REFUSED, WEIGHTS_LAYOUTS
from pipeline.importing.reader import Source
from pipeline.models import checkpoint, zoo
from pipeline.models.checkpoint import Card
from pipeline.models.layers import widen
from pipeline.models.network import Network

_SHOWN = 40
"""Tensors of a refusal that are named."""

GUESSES = {21: "voc", 19: "cityscapes", 150: "ade20k"}
"""Class maps by their number of classes, where a data set is known for it."""

COUNTER = ".num_batches_tracked"
"""Of a batch norm: absent before torch 0.4.1 and in Caffe, and never used for inference."""

BACKBONES = ("backbone.", "encoder.")
"""What our networks call a feature extractor."""

_RGB = ("red", "green", "blue")
NO_LICENCE = "NOASSERTION"
"""SPDX's word for a licence that nobody stated."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a file does not say, as far as a person said it."""

    layout: str = "auto"
    classes: str | None = None
    output_stride: int | None = None
    architecture: str | None = None
    """Of the network a backbone goes into; other files say theirs."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network, which win over those of the layout."""
    seed: int = 0
    """Of the weights of what a backbone has not."""
    source: str | None = None
    license: str = NO_LICENCE


@dataclass(frozen=True, slots=True)
class Import:
    """A checkpoint that was made of a file, and how."""

    layout: WeightsLayout
    card: Card
    state: dict[str, Tensor]
    """As `checkpoint.save` takes it, in the file's precision."""
    used: Mapping[str, str]
    """Names of ours by the file's."""
    unused: Mapping[str, str]
    """Names of the file's other tensors, and why they are not used."""
    filled: tuple[str, ...]
    """Names of ours that the file has not: counters of batch norm, and what a seed gave."""
    notes: tuple[str, ...]
    """What was guessed, and what only a person can know."""

    def build(self) -> Network:
        """The network in eval mode, in float32."""
        network = _network(self.card)
        network.load_state_dict(self.state)
        return network.eval()


def recognise(names: Mapping[str, Tensor], wanted: str = "auto") -> tuple[WeightsLayout, dict[str, Tensor]]:
    """The layout of a file, and its tensors under the layout's aliases.

    Args:
        names: the tensors of the file.
        wanted: a layout's name, or auto.

    Raises:
        ConfigError: when no layout fits or the one that was asked for does not, saying what it lacks.
    """
    if wanted != "auto" and wanted not in LAYOUT_BY_NAME:
        raise ConfigError(f"no layout {wanted!r}", hint=f"known: auto, {', '.join(LAYOUT_BY_NAME)}")
    for layout in WEIGHTS_LAYOUTS if wanted == "auto" else [LAYOUT_BY_NAME[wanted]]:
        tensors = {_alias(name, layout): tensor for name, tensor in names.items()}
        reasons = _lacking(layout, tensors)
        if not reasons and len(tensors) == len(names):
            return layout, tensors
    for reason, marks in REFUSED.items():
        if all(mark in names for mark in marks):
            raise ConfigError(reason)
    if wanted != "auto":
        raise ConfigError(f"this is not {wanted}: {', '.join(reasons) or 'two names mean one tensor'}")
    hint = f"it begins with {', '.join(list(names)[:5])}; --layout knows {', '.join(LAYOUT_BY_NAME)}"
    raise ConfigError(f"no known layout among {len(names)} tensors", hint=hint)


def _lacking(layout: WeightsLayout, names: Mapping[str, Tensor]) -> list[str]:
    missing = [f"it has no {mark}" for mark in layout.marks if mark not in names]
    return missing + [f"it has {name}" for name in names if layout.without and name.startswith(layout.without)]


def _alias(name: str, layout: WeightsLayout) -> str:
    for pattern, replacement in layout.aliases:
        name = re.sub(pattern, replacement, name)
    return name


def convert(source: Source, wishes: Wishes) -> Import:
    """Make a checkpoint of a file's tensors.

    Raises:
        ConfigError: for an unknown layout, tensors that do not add up, or a number of classes without names.
    """
    layout, tensors = recognise(source.tensors, wishes.layout)
    class_map, notes = _classes(layout, tensors, wishes)
    card = _card(layout, tensors, class_map, source, wishes)
    network = checkpoint.blank(card)
    used, unused = _account(layout, tensors, network.state_dict(), encoder=hasattr(network, "encoder"))
    network = _seeded(card, wishes.seed) if layout.is_backbone else network
    state, filled = _assemble(layout, tensors, network.state_dict(), used)
    return Import(layout, card, state, used, unused, filled, (*notes, *layout.notes))


def _network(card: Card) -> Network:
    return zoo.build_network(
        card.architecture,
        len(card.classes),
        in_channels=card.in_channels,
        output_stride=card.output_stride,
        **card.options,
    )


def _seeded(card: Card, seed: int) -> Network:
    """The network with random weights that are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _network(card)


def _classes(layout: WeightsLayout, tensors: Mapping[str, Tensor], wishes: Wishes) -> tuple[ClassMap, tuple[str, ...]]:
    """The class map, and what was guessed of it."""
    count = filters(tensors, layout.scores) if layout.scores else None
    if wishes.classes:
        found = classes.load_class_map(wishes.classes)
        if count is not None and len(found) != count:
            raise ConfigError(f"the file scores {count} classes, {found.name} has {len(found)}")
        return found, ()
    if count is None:
        raise ConfigError("a backbone knows no classes", hint="--classes says those the network is to learn")
    if count not in GUESSES:
        known = ", ".join(f"{number} ({name})" for number, name in GUESSES.items())
        raise ConfigError(f"{count} classes could be anything", hint=f"give --classes; guessed are {known}")
    guess = GUESSES[count]
    return classes.load_class_map(guess), (
        f"{count} classes were taken for those of {guess}; --classes says otherwise",
    )


def _card(
    layout: WeightsLayout, tensors: Mapping[str, Tensor], class_map: ClassMap, source: Source, wishes: Wishes
) -> Card:
    architecture = layout.architecture
    if wishes.architecture and wishes.architecture != architecture:
        if not layout.is_backbone:
            raise ConfigError(f"{layout.title} is {architecture}, not {wishes.architecture}")
        architecture = wishes.architecture
    if architecture not in zoo.NETWORKS:
        raise ConfigError(f"no network {architecture!r}", hint=f"known: {', '.join(zoo.NETWORKS)}")
    network, options_class = zoo.NETWORKS[architecture]
    stride = wishes.output_stride or (layout.output_stride if architecture == layout.architecture else None)
    stride = stride or network.output_strides[0]
    found = layout.options(tensors)
    if layout.rates:
        found["rates"] = [rate * stride // 16 for rate in layout.rates]
    if layout.is_backbone:  # it may go into a network that has only one, and no option for it
        found = {name: value for name, value in found.items() if name in options_class.model_fields}
    bands = _bands(layout, tensors)
    look = layout.normalisation
    about: dict[str, Any] = {"imported_from": source.name, "sha256": source.sha256, "layout": layout.name}
    if layout.is_backbone:
        about["untrained"] = f"all but the backbone, filled from seed {wishes.seed}"
    try:
        return Card(
            architecture=architecture,
            options=plain(found | dict(wishes.options)),
            in_channels=bands,
            output_stride=stride,
            classes=class_map,
            mean=tuple(look.mean[index % 3] for index in range(bands)),
            std=tuple(look.std[index % 3] for index in range(bands)),
            channels=band_names(bands),
            training=about,
            source=wishes.source or f"{source.name}, in the layout of {layout.title} ({layout.url})",
            license=wishes.license,
        )
    except ValidationError as error:
        raise explain(error, origin=f"what {source.name} would be") from error


def plain(options: ShapeOptions) -> dict[str, Any]:
    """Options as JSON has them: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def band_names(bands: int) -> tuple[str, ...]:
    """Red, green and blue, and a number for every other band."""
    return tuple(_RGB[index] if bands >= 3 > index else f"band {index + 1}" for index in range(bands))


def _bands(layout: WeightsLayout, tensors: Mapping[str, Tensor]) -> int:
    """Planes of the convolution that looks at the image."""
    name = next((name for name in tensors if _target(name, layout.rules) == layout.first[0]), None)
    bands = filters(tensors, name or layout.first[0], axis=1)
    if not 1 <= bands <= zoo.MAX_CHANNELS:
        raise ConfigError(f"{name} takes {bands} bands; 1 to {zoo.MAX_CHANNELS} are possible")
    if layout.normalisation.bgr and bands != 3:
        raise ConfigError(f"{name} takes {bands} bands; blue, green and red are turned around, no others")
    return bands


def _target(name: str, rules: Mapping[str, str]) -> str | None:
    """Our name, by the longest rule that fits."""
    for end in range(len(name), 0, -1):
        if name[:end] in rules:
            return rules[name[:end]] + name[end:]
    return None


def _account(
    layout: WeightsLayout, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, encoder: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Where each tensor of the file goes: ours by theirs, and reasons by name for those that go nowhere."""
    used: dict[str, str] = {}
    unused: dict[str, str] = {}
    wrong: list[str] = []
    missing = {name: one for name, one in wanted.items() if not layout.is_backbone or name.startswith(BACKBONES)}
    for name, tensor in tensors.items():
        target = _target(name, layout.rules) or ""
        target = target.replace("backbone.", "encoder.", 1) if encoder else target
        reason = next((why for begin, why in layout.unused.items() if name.startswith(begin)), None)
        if target in missing and tensor.shape == missing[target].shape:
            used[name] = target
            del missing[target]
            if not tensor.isfinite().all():
                wrong.append(f"not finite: {name}")
        elif target in wanted:
            wrong.append(f"other shape: {name} is {shape(tensor)}, {target} is {shape(wanted[target])}")
        elif reason:
            unused[name] = reason
        else:
            wrong.append(f"unknown: {name} {shape(tensor)}")
    wrong += [f"missing: {name} {shape(one)}" for name, one in missing.items() if not is_counter(name)]
    if wrong:
        more = [f"... and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise ConfigError(f"the tensors do not add up to {layout.title}:\n  " + "\n  ".join(wrong[:_SHOWN] + more))
    return used, unused


def is_counter(name: str) -> bool:
    """Whether it only counts batches of training."""
    return name.endswith(COUNTER)


def shape(tensor: Tensor) -> str:
    """Sizes, as people write them."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def _assemble(
    layout: WeightsLayout, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], used: Mapping[str, str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict, and the names in it that no tensor of the file became."""
    given = {target: _precise(tensors[name]) for name, target in used.items()}
    for name, axis in layout.swapped.items():
        # ASPP's channels, then the low-level ones: ours are the other way around.
        given[name] = given[name].roll(wanted["reduce.0.weight"].size(0), axis)
    if layout.normalisation.bgr:
        given |= {name: given[name].flip(1) for name in _first(layout, given)}
    filled = tuple(name for name in wanted if name not in given)
    state = {
        name: given.get(name, torch.zeros((), dtype=torch.int64)) if is_counter(name) else given.get(name, one)
        for name, one in wanted.items()
    }
    return state, filled


def _first(layout: WeightsLayout, state: Mapping[str, Tensor]) -> list[str]:
    """Names of the convolutions that look at the image, of those a layout may have."""
    placed = (name if name in state else name.replace("backbone.", "encoder.", 1) for name in layout.first)
    return [name for name in placed if name in state]


def _precise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def widened(made: Import, bands: int) -> Import:
    """The same for another number of bands.

    Raises:
        ConfigError: when the file's network does not take three, or the network cannot have so many.
    """
    card = made.card
    if bands == card.in_channels:
        return made
    if card.in_channels != 3 or not 1 <= bands <= zoo.MAX_CHANNELS:
        raise ConfigError(f"{card.in_channels} bands cannot become {bands}: 3 can become 1 to {zoo.MAX_CHANNELS}")
    state = made.state | {name: widen(made.state[name], bands) for name in _first(made.layout, made.state)}
    mean, std = (tuple(values[index % 3] for index in range(bands)) for values in (card.mean, card.std))
    changes = {"in_channels": bands, "mean": mean, "std": std, "channels": band_names(bands)}
    card = Card.model_validate(card.model_dump() | changes)
    note = f"widened from 3 to {bands} bands: filters, means and deviations repeat those of red, green, blue"
    return replace(made, card=card, state=state, notes=(*made.notes, note))
