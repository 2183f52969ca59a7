"""Conversion of a weight file to a checkpoint: recognise the layout, rename tensors, account for every tensor.

In: a `WeightsFile` and import options. Out: a state dict and a card, or an error that lists each tensor that is
missing, unknown or of another shape. Every unused tensor has a reason.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.config import explain
from pipeline.errors import ConfigError
from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.shapes import ShapeOptions, filters
from pipeline.importing.layouts.table import LAYOUT_BY_NAME, REFUSED, WEIGHTS_LAYOUTS
from pipeline.importing.reader import WeightsFile
from pipeline.models import checkpoint, zoo
from pipeline.models.card import Card
from pipeline.models.layers import widen
from pipeline.models.network import Network

_SHOWN = 40
"""Largest number of tensors that an error lists."""

GUESSED_CLASSES = {21: "voc", 19: "cityscapes", 150: "ade20k"}
"""Class map guessed from the number of classes of a well-known data set."""

COUNTER = ".num_batches_tracked"
"""Suffix of a batch norm's counter, absent before torch 0.4.1 and in Caffe, and not used in inference."""

BACKBONES = ("backbone.", "encoder.")
"""Prefixes of the feature extractor in our networks."""

_SAME_STATISTIC = 2e-3
"""Largest difference of equal means and deviations, of pixels from 0 to 1: people round them to three digits."""
_RGB = ("red", "green", "blue")
NO_LICENCE = "NOASSERTION"
"""SPDX identifier of an unstated licence."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Facts about a file that it does not store, given by the user."""

    layout: str = "auto"
    """Name of the layout, or auto."""
    classes: str | None = None
    """Class map name or YAML file; None: guessed from the number of classes."""
    output_stride: int | None = None
    """Output stride in training; None: the source's default."""
    architecture: str | None = None
    """Network around a backbone; other layouts determine theirs."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network; they override those of the layout."""
    seed: int = 0
    """Seed of the weights that a backbone does not have."""
    source: str | None = None
    """Origin for the card; None: the file's name and layout."""
    license: str = NO_LICENCE
    """SPDX name of the licence of the weights."""
    drop_scores: tuple[int, ...] = ()
    """Scores to leave out, from 0 on, such as that of an unlabelled class."""
    mean: tuple[float, ...] | None = None
    """Mean of each band, for pixels of 0 to 1; None: the layout's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each band, likewise."""


@dataclass(frozen=True, slots=True)
class ImportedCheckpoint:
    """Checkpoint imported from a weight file, and the fate of every tensor."""

    layout: WeightsLayout
    card: Card
    state: dict[str, Tensor]
    """State dict for `checkpoint.save_checkpoint`, in the file's precision."""
    used: Mapping[str, str]
    """Our tensor names by the file's."""
    unused: Mapping[str, str]
    """The file's other tensors, with the reason why they are not used."""
    filled: tuple[str, ...]
    """Our tensors that the file does not have: counters of batch norm; scales and statistics of a batch norm that is
    folded into the file's convolutions; tensors from a seed."""
    notes: tuple[str, ...]
    """Guesses, and facts to check, for the report."""
    scores: int | None
    """Scores per pixel in the file: 1 for a sigmoid's, which became two classes; None for a backbone."""

    def trained(self) -> dict[str, Tensor]:
        """The tensors of the state dict that the file has; a seed filled the others."""
        return {name: self.state[name] for name in self.used.values()}

    def build(self) -> Network:
        """Build the network in evaluation mode, in float32."""
        network = _network(self.card)
        network.load_state_dict(self.state)
        return network.eval()


def recognise(names: Mapping[str, Tensor], layout_name: str = "auto") -> tuple[WeightsLayout, dict[str, Tensor]]:
    """Find the layout of a file; returns it and the tensors under the layout's aliases.

    Args:
        names: tensors of the file, by name.
        layout_name: name of a layout, or auto.

    Raises:
        ConfigError: no layout fits, or the named one does not; the message lists what is missing.
    """
    if layout := fit(names, layout_name):
        return layout, {_alias(name, layout): tensor for name, tensor in names.items()}
    if reason := refusal(names):
        raise ConfigError(reason)
    if layout_name != "auto":
        layout = LAYOUT_BY_NAME[layout_name]
        reasons = _mismatches(layout, {_alias(name, layout): tensor for name, tensor in names.items()})
        raise ConfigError(f"the file is not {layout_name}: {', '.join(reasons) or 'two names mean one tensor'}")
    hint = f"its first names are {', '.join(list(names)[:5])}; layouts: {', '.join(LAYOUT_BY_NAME)}"
    raise ConfigError(f"no known layout among {len(names)} tensors", hint=hint)


def fit(names: Mapping[str, Tensor], layout_name: str = "auto") -> WeightsLayout | None:
    """First layout that the names of a file fit, or with a name only that one; None if they do not.

    Raises:
        ConfigError: no layout is called `layout_name`.
    """
    if layout_name != "auto" and layout_name not in LAYOUT_BY_NAME:
        raise ConfigError(f"--layout {layout_name!r} is unknown", hint=f"known: auto, {', '.join(LAYOUT_BY_NAME)}")
    for layout in WEIGHTS_LAYOUTS if layout_name == "auto" else [LAYOUT_BY_NAME[layout_name]]:
        tensors = {_alias(name, layout): tensor for name, tensor in names.items()} if layout.aliases else names
        if len(tensors) == len(names) and not _mismatches(layout, tensors):
            return layout
    return None


def refusal(names: Mapping[str, Tensor]) -> str | None:
    """Reason why a known file fits no network here; None for other files."""
    return next((reason for reason, marks in REFUSED.items() if all(mark in names for mark in marks)), None)


def owns(layout: WeightsLayout, name: str) -> bool:
    """Return True if a layout has a rule for a tensor, or a reason not to use it."""
    name = _alias(name, layout)
    return _target(name, layout.rules) is not None or name.startswith((*layout.unused, *layout.copies))


def _mismatches(layout: WeightsLayout, names: Mapping[str, Tensor]) -> list[str]:
    missing = [f"it has no {mark}" for mark in layout.marks if mark not in names]
    return missing + [f"it has {name}" for name in names if layout.without and name.startswith(layout.without)]


def _alias(name: str, layout: WeightsLayout) -> str:
    for pattern, replacement in layout.aliases:
        name = re.sub(pattern, replacement, name)
    return name


def convert_weights(source: WeightsFile, choices: ImportOptions) -> ImportedCheckpoint:
    """Convert a weight file to a checkpoint.

    Raises:
        ConfigError: unknown layout, missing or unknown tensors, or a number of classes without a class map.
    """
    layout, tensors = recognise(source.tensors, choices.layout)
    class_map, notes = _classes(layout, tensors, choices)
    card = _card(layout, tensors, class_map, source, choices)
    network = checkpoint.blank(card)
    scores = _scores(layout, tensors)
    if scores == 1:
        tensors = _with_background(layout, tensors, card)
    tensors = _without_scores(layout, tensors, card, choices.drop_scores)
    identity = _identity_norms(network) if layout.folded else {}
    expected = {name: tensor for name, tensor in network.state_dict().items() if name not in identity}
    used, unused = _account(layout, tensors, expected, encoder=hasattr(network, "encoder"))
    network = _seeded(card, choices.seed) if layout.is_backbone else network
    joined = _joined_bands(layout, card) if layout.normalisation.bgr else {}
    state, filled = _assemble(layout, tensors, network.state_dict() | identity, used, joined)
    notes = (*source.notes, *notes, *_normalisation_notes(source, card), *layout.notes)
    return ImportedCheckpoint(layout, card, state, used, unused | dict(source.beside), filled, notes, scores)


def _network(card: Card) -> Network:
    return zoo.build_network(
        card.architecture,
        len(card.classes),
        in_channels=card.in_channels,
        output_stride=card.output_stride,
        **card.options,
    )


def _seeded(card: Card, seed: int) -> Network:
    """Build the network with random weights from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _network(card)


def _identity_norms(network: Network) -> dict[str, Tensor]:
    """Scales and statistics with which every batch norm only adds its bias."""
    tensors: dict[str, Tensor] = {}
    for prefix, norm in network.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            ones = torch.ones(norm.num_features)
            tensors |= {f"{prefix}.weight": ones * (1 + norm.eps) ** 0.5, f"{prefix}.running_var": ones}
            tensors[f"{prefix}.running_mean"] = torch.zeros(norm.num_features)
    return tensors


def _classes(
    layout: WeightsLayout, tensors: Mapping[str, Tensor], choices: ImportOptions
) -> tuple[ClassMap, tuple[str, ...]]:
    """Class map, and notes if it was guessed or the file has one score for two classes."""
    count = _kept_scores(layout, tensors, choices.drop_scores)
    class_map = classes.load_class_map(choices.classes) if choices.classes else None
    if count == 1:
        return _two_classes(class_map)
    if class_map:
        if count is not None and len(class_map) != count:
            raise ConfigError(f"the file has {count} classes, --classes {class_map.name} has {len(class_map)}")
        return class_map, ()
    if count is None:
        raise ConfigError("a backbone has no classes", hint="set --classes to those the network will learn")
    if count not in GUESSED_CLASSES:
        known = ", ".join(f"{number} ({name})" for number, name in GUESSED_CLASSES.items())
        raise ConfigError(f"the file has {count} unnamed classes", hint=f"set --classes; guessed are {known}")
    guess = GUESSED_CLASSES[count]
    return classes.load_class_map(guess), (
        f"{count} classes were guessed to be those of {guess}; set --classes if they are others",
    )


def _scores(layout: WeightsLayout, tensors: Mapping[str, Tensor]) -> int | None:
    """Scores per pixel; None for a backbone."""
    return filters(tensors, layout.scores, axis=layout.scores_axis) if layout.scores else None


def _kept_scores(layout: WeightsLayout, tensors: Mapping[str, Tensor], dropped: tuple[int, ...]) -> int | None:
    """Scores per pixel without the dropped ones; None for a backbone.

    Raises:
        ConfigError: a dropped score is not in the file, or fewer than two scores remain.
    """
    count = _scores(layout, tensors)
    if not dropped:
        return count
    if count is None:
        raise ConfigError("a backbone has no scores", hint="leave --drop-scores unset")
    if unknown := [index for index in dropped if not 0 <= index < count]:
        raise ConfigError(f"--drop-scores {unknown[0]}: the file has the scores 0 to {count - 1}")
    if count - len(set(dropped)) < 2:
        raise ConfigError(f"--drop-scores leaves {count - len(set(dropped))} of {count} scores, at least 2 are needed")
    return count - len(set(dropped))


def _two_classes(class_map: ClassMap | None) -> tuple[ClassMap, tuple[str, ...]]:
    """Class map of a file with one score, and the note of its conversion."""
    if class_map is None or len(class_map) != 2:
        seen = f"--classes {class_map.name} has {len(class_map)} classes" if class_map else "--classes is unset"
        hint = "set --classes to a map of two: class 0 is the background, class 1 what the score is for"
        raise ConfigError(f"the file has one score per pixel, as for a sigmoid; {seen}", hint=hint)
    background, foreground = class_map.names
    return class_map, (
        f"one score per pixel, read as the logit of a sigmoid: class 1 ({foreground}) has that score, class 0 "
        f"({background}) the score 0, so softmax gives the sigmoid exactly; classes meet at probability 0.5",
    )


def _with_background(layout: WeightsLayout, tensors: Mapping[str, Tensor], card: Card) -> dict[str, Tensor]:
    """Put a score of 0 before the only one: softmax of (0, s) is (1 - sigmoid(s), sigmoid(s)).

    Weights and biases of class 0 are zeros in every layer that gives scores. Sums, averages and maxima of such scores
    over branches, and their interpolation, keep 0.
    """
    axes = _score_axes(layout, tensors, card)
    return {
        name: torch.cat((torch.zeros_like(tensor), tensor), axes[name])
        if name in axes and tensor.size(axes[name]) == 1
        else tensor
        for name, tensor in tensors.items()
    }


def _without_scores(
    layout: WeightsLayout, tensors: Mapping[str, Tensor], card: Card, dropped: tuple[int, ...]
) -> dict[str, Tensor]:
    """Leave scores out of every layer that gives them: a class without a score is never an answer."""
    kept = dict(tensors)
    for name, axis in _score_axes(layout, tensors, card).items() if dropped else ():
        indices = [index for index in range(tensors[name].size(axis)) if index not in dropped]
        kept[name] = tensors[name].index_select(axis, torch.tensor(indices))
    return kept


def _score_axes(layout: WeightsLayout, tensors: Mapping[str, Tensor], card: Card) -> dict[str, int]:
    """Axis of the scores, by the file's name of each tensor that has them: it grows with the number of classes."""
    grown = _grown(card, classes=1)
    targets = {name: _target(name, layout.rules) for name in tensors}
    return {name: grown[target] for name, target in targets.items() if target in grown}


def _normalisation_notes(source: WeightsFile, card: Card) -> tuple[str, ...]:
    """Notes on means and deviations in the file that are not those of the card."""
    notes = []
    for name, values in source.normalisation.items():
        expected = card.mean if "mean" in name.rpartition(".")[2] else card.std
        scale = 255 if max(map(abs, values)) > 1.5 else 1
        if len(values) == len(expected) and all(
            abs(value / scale - wanted) < _SAME_STATISTIC for value, wanted in zip(values, expected, strict=True)
        ):
            continue
        numbers, wanted_numbers = (", ".join(f"{value:.4g}" for value in some) for some in (values, expected))
        notes.append(
            f"the program's {name} is ({numbers}), the card's ({wanted_numbers}) of the layout; where the program "
            f"normalised images by it, change card.json"
        )
    return tuple(notes)


def _card(
    layout: WeightsLayout,
    tensors: Mapping[str, Tensor],
    class_map: ClassMap,
    source: WeightsFile,
    choices: ImportOptions,
) -> Card:
    architecture = layout.architecture
    if choices.architecture and choices.architecture != architecture:
        if not layout.is_backbone:
            raise ConfigError(f"--architecture {choices.architecture}: {layout.title} is {architecture}")
        architecture = choices.architecture
    if architecture not in zoo.NETWORKS:
        raise ConfigError(f"--architecture {architecture!r} is unknown", hint=f"known: {', '.join(zoo.NETWORKS)}")
    network, options_class = zoo.NETWORKS[architecture]
    stride = choices.output_stride or (layout.output_stride if architecture == layout.architecture else None)
    stride = stride or network.output_strides[0]
    options = layout.options(tensors)
    if layout.rates:
        options["rates"] = [rate * stride // 16 for rate in layout.rates]
    if layout.is_backbone:  # a network with only this backbone has no option for it
        options = {name: value for name, value in options.items() if name in options_class.model_fields}
    bands = _bands(layout, tensors)
    normalisation = layout.input_normalisation(_scores(layout, tensors))
    about: dict[str, Any] = {"imported_from": source.name, "sha256": source.sha256, "layout": layout.name}
    if source.weights:
        about["weights"] = source.weights
    if choices.drop_scores:
        about["dropped_scores"] = sorted(set(choices.drop_scores))
    if layout.is_backbone:
        about["untrained"] = f"all but the backbone, filled from seed {choices.seed}"
    try:
        return Card(
            architecture=architecture,
            options=plain_options(options | dict(choices.options)),
            in_channels=bands,
            output_stride=stride,
            classes=class_map,
            mean=choices.mean or tuple(normalisation.mean[index % 3] for index in range(bands)),
            std=choices.std or tuple(normalisation.std[index % 3] for index in range(bands)),
            channels=band_names(bands),
            training=about,
            source=choices.source or f"{source.name}, in the layout of {layout.title} ({layout.url})",
            license=choices.license,
        )
    except ValidationError as error:
        raise explain(error, origin=f"the card of {source.name}") from error


def plain_options(options: ShapeOptions) -> dict[str, Any]:
    """Convert options to JSON types: tuples to lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def band_names(bands: int) -> tuple[str, ...]:
    """Names of bands: red, green and blue, then numbers; numbers alone for fewer than three bands."""
    return tuple(_RGB[index] if bands >= 3 > index else f"band {index + 1}" for index in range(bands))


def _bands(layout: WeightsLayout, tensors: Mapping[str, Tensor]) -> int:
    """Number of bands: input channels of the convolution whose input is the image."""
    name = next((name for name in tensors if _target(name, layout.rules) == layout.first[0]), None)
    bands = filters(tensors, name or layout.first[0], axis=1)
    if not 1 <= bands <= zoo.MAX_CHANNELS:
        raise ConfigError(f"{name} takes {bands} bands, allowed are 1 to {zoo.MAX_CHANNELS}")
    if layout.normalisation.bgr and bands != 3:
        raise ConfigError(f"{name} takes {bands} bands; this layout is for 3, blue, green and red")
    return bands


def _target(name: str, rules: Mapping[str, str]) -> str | None:
    """Our name of a tensor, by the longest rule that fits; None without one."""
    for end in range(len(name), 0, -1):
        if name[:end] in rules:
            return rules[name[:end]] + name[end:]
    return None


def _account(
    layout: WeightsLayout, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, encoder: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Account for every tensor of the file: our names by theirs, and reasons by name of unused ones."""
    used: dict[str, str] = {}
    unused: dict[str, str] = {}
    wrong: list[str] = []
    missing = {name: tensor for name, tensor in wanted.items() if not layout.is_backbone or name.startswith(BACKBONES)}
    for name, tensor in tensors.items():
        target = _target(name, layout.rules) or ""
        target = target.replace("backbone.", "encoder.", 1) if encoder else target
        reason = next((text for prefix, text in layout.unused.items() if name.startswith(prefix)), None)
        original = _target(name, layout.copies) or ""
        if target in missing and tensor.shape == missing[target].shape:
            used[name] = target
            del missing[target]
            if not tensor.isfinite().all():
                wrong.append(f"not finite: {name}")
        elif target in wanted:
            wrong.append(f"other shape: {name} is {shape_text(tensor)}, {target} is {shape_text(wanted[target])}")
        elif reason:
            unused[name] = reason
        elif original in tensors and torch.equal(tensor, tensors[original]):
            unused[name] = f"equal to {original}"
        elif original in tensors:
            wrong.append(f"other values: {name} is not equal to {original}, which it repeats")
        else:
            wrong.append(f"unknown: {name} {shape_text(tensor)}")
    wrong += [f"missing: {name} {shape_text(tensor)}" for name, tensor in missing.items() if not is_counter(name)]
    if wrong:
        more = [f"... and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise ConfigError(f"the tensors do not match {layout.title}:\n  " + "\n  ".join(wrong[:_SHOWN] + more))
    return used, unused


def is_counter(name: str) -> bool:
    """Return True for a batch norm's counter of training batches."""
    return name.endswith(COUNTER)


def shape_text(tensor: Tensor) -> str:
    """Format a shape, such as 64x3x7x7 or scalar."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def _assemble(
    layout: WeightsLayout,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    used: Mapping[str, str],
    joined: Mapping[str, int],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Make the state dict; returns it and the names that the file does not fill."""
    from_file = {target: _precise(tensors[name]) for name, target in used.items()}
    for name, (axis, first) in layout.swapped.items():
        from_file[name] = from_file[name].roll(wanted[first].size(0), axis)
    if layout.normalisation.bgr:
        from_file |= {name: from_file[name].flip(1) for name in _first(layout, from_file)}
        from_file |= {name: _last_reversed(from_file[name], axis) for name, axis in joined.items()}
    filled = tuple(name for name in wanted if name not in from_file)
    state = {
        name: from_file.get(name, torch.zeros(())).to(torch.int64) if is_counter(name) else from_file.get(name, tensor)
        for name, tensor in wanted.items()
    }
    return state, filled


def _first(layout: WeightsLayout, state: Mapping[str, Any]) -> list[str]:
    """Names in `state` of the convolutions whose input is the image."""
    placed = (name if name in state else name.replace("backbone.", "encoder.", 1) for name in layout.first)
    return [name for name in placed if name in state]


def _joined_bands(layout: WeightsLayout, card: Card) -> dict[str, int]:
    """Axis, by our tensor, whose last channels are the image's, in networks that join the image to features.

    A network with one band more has one channel more there. Convolutions of the image alone are left out.
    """
    grown = _grown(card, bands=1)
    return {name: axis for name, axis in grown.items() if name not in _first(layout, grown)}


def _grown(card: Card, *, classes: int = 0, bands: int = 0) -> dict[str, int]:
    """Axis, by tensor, that is longer by one in a network with one class or band more."""
    before, after = checkpoint.shapes(card), checkpoint.shapes(card, classes=classes, bands=bands)
    axes = {
        name: [axis for axis, length in enumerate(after[name]) if length == shape[axis] + 1]
        for name, shape in before.items()
    }
    return {name: longer[0] for name, longer in axes.items() if longer}


def _last_reversed(tensor: Tensor, axis: int) -> Tensor:
    """Reverse the last three channels along an axis: blue, green, red become red, green, blue."""
    features, image = tensor.tensor_split([tensor.size(axis) - 3], axis)
    return torch.cat([features, image.flip(axis)], axis)


def _last_widened(tensor: Tensor, axis: int, bands: int) -> Tensor:
    """Widen the last three channels along an axis: filters as in `layers.widen`, values per channel repeat.

    A single band gets the mean of the three values.
    """
    features, image = tensor.tensor_split([tensor.size(axis) - 3], axis)
    if axis == 1:
        image = widen(image, bands)
    else:
        image = image.mean(0, keepdim=True) if bands == 1 else image[torch.arange(bands) % 3]
    return torch.cat([features, image], axis)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def widen_input(imported: ImportedCheckpoint, bands: int) -> ImportedCheckpoint:
    """Widen the first convolutions to another number of bands.

    Raises:
        ConfigError: the network does not have three bands, `bands` is out of range, or other layers depend on it.
    """
    card = imported.card
    if bands == card.in_channels:
        return imported
    if card.in_channels != 3 or not 1 <= bands <= zoo.MAX_CHANNELS:
        raise ConfigError(f"{card.in_channels} bands cannot become {bands}: 3 can become 1 to {zoo.MAX_CHANNELS}")
    layout, state = imported.layout, dict(imported.state)
    state |= {name: widen(state[name], bands) for name in _first(layout, state)}
    state |= {name: _last_widened(state[name], axis, bands) for name, axis in _joined_bands(layout, card).items()}
    mean, std = (tuple(values[index % 3] for index in range(bands)) for values in (card.mean, card.std))
    changes = {"in_channels": bands, "mean": mean, "std": std, "channels": band_names(bands)}
    card = Card.model_validate(card.model_dump() | changes)
    wanted = checkpoint.blank(card).state_dict()
    if odd := [name for name, tensor in wanted.items() if tensor.shape != state[name].shape]:
        other = f"{odd[0]} is {shape_text(state[odd[0]])}, of {bands} bands {shape_text(wanted[odd[0]])}"
        raise ConfigError(
            f"{card.architecture} of 3 bands cannot have {bands}: {other}", hint="leave --in-channels unset"
        )
    note = f"widened from 3 to {bands} bands: filters, means and deviations repeat those of red, green, blue"
    return replace(imported, card=card, state=state, notes=(*imported.notes, note))
