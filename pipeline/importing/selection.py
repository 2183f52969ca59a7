"""Selection of one network's weights in a file: prefixes of training programs, averages, and what is no network.

In: a `WeightsFile` as read. Out: the same with the tensors of one network alone, under the names that its source gave
them. A prefix is whatever stands in front of a network that a layout recognises: `model.`, `module._orig_mod.`, or the
key of a dict. Tensors of losses, metrics, counters and the input's normalisation are left out by their names; any other
tensor beside the network is an error. No tensor is changed here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.importing.convert import fit, is_counter, owns, refusal, shape_text
from pipeline.importing.reader import WeightsFile

EMA = "ema"
"""Value of `--weights` that asks for the average, whatever its name is."""
AVERAGES = {
    *("ema", "swa", "avg", "average", "averaged", "averages", "averaging"),
    *("shadow", "polyak", "teacher", "momentum", "target"),
}
"""Words in the prefix of an average of weights over training."""
AVERAGED = "n_averaged"
"""Counter of `torch.optim.swa_utils.AveragedModel`, beside its `module.`."""
LIGHTNING_AVERAGING, LIGHTNING_PLAIN = "averaging_state", "current_model_state."
"""Entries of Lightning's callback WeightAveraging; with them, `state_dict` is the average:
https://github.com/Lightning-AI/pytorch-lightning, src/lightning/pytorch/callbacks/weight_averaging.py."""
MMENGINE_AVERAGING, MMENGINE_PLAIN = "ema_state_dict.steps", "ema_state_dict."
"""Counter of mmengine's EMAHook, which saves the average as `state_dict` and the plain weights as `ema_state_dict`:
https://github.com/open-mmlab/mmengine, mmengine/hooks/ema_hook.py, `_swap_ema_state_dict`."""
MODULE_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing add, at any place."""
LAYER = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
"""Last parts of the names of a layer's tensors; no metric has them."""
_MAX_DEPTH = 10
"""Most parts of a prefix."""
_FEWEST = 2
"""Fewest tensors by which a layout recognises a network."""
_SHOWN = 20
"""Largest number of tensors that an error lists."""

LOSS, METRIC = "a loss's, no part of a network", "a metric's, no part of a network"
TRAINING_COUNTER = "a counter of the training program, no part of a network"
NORMALISATION = "normalisation of the input, no part of a network"
WORDS = {
    LOSS: {"loss", "losses", "criterion", "criteria", "criterions", "objective"},
    METRIC: {
        *("metric", "metrics", "iou", "miou", "jaccard", "acc", "accuracy", "confmat", "confusion", "dice", "f1"),
        *("fscore", "precision", "recall", "auroc", "kappa", "evaluator"),
    },
}
"""Words in any part of a name that make it no part of a network, with the reason."""
CLASS_WEIGHTS = re.compile(r"^(class|pos|loss|ce|label)_?weights?$")
COUNTERS = {AVERAGED, "num_updates", "decay", "step", "steps", "global_step", "epoch", "iteration", "initted"}
"""Last parts of scalars that a training program counts."""
STATISTIC = re.compile(r"^((pixel|image|img|input|norm|normali[sz]e|data|rgb|dataset|channel)_?)?(mean|std)s?$")
"""Last parts of buffers by which a program normalises its input."""
RUNNING = (".running_mean", ".running_var")
"""Statistics of batch norm; averages of parameters alone do not have them."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """Weights of one network in a file."""

    prefix: str
    """Text before each of its names; ends in a dot, or is empty."""
    tensors: Mapping[str, Tensor]
    """Its tensors, by name without the prefix."""
    names: frozenset[str]
    """Their names in the file."""
    average: bool
    """True for an average over training: EMA, SWA, or the teacher of a student."""
    dotless: bool = False
    """True if the file's names have no dots behind the prefix."""

    @property
    def name(self) -> str:
        """Value of `--weights` that takes it."""
        return self.prefix.removesuffix(".") or "all"

    @property
    def title(self) -> str:
        """Description for notes and errors."""
        return f"{self.name} ({'average, ' if self.average else ''}{len(self.tensors)} tensors)"


def select_weights(source: WeightsFile, *, layout: str = "auto", weights: str | None = None) -> WeightsFile:
    """Reduce a file to the weights of one network.

    Args:
        source: the file as read.
        layout: name of a layout, or auto.
        weights: name of a set of weights, or ema for the average; None: the set that is no average, else the only one.

    Returns:
        The file with one set's tensors, without their prefix; unchanged if no layout recognises a network in it.

    Raises:
        ConfigError: no set or several have the name, several are no averages, or tensors beside the set are unknown.
    """
    if source.kind in ("caffemodel", "npz", "tflite"):  # its layers have the names of one network
        if weights:
            raise ConfigError(f"--weights {weights}: a .{source.kind} has one set of weights", hint="leave it out")
        return source
    original = {_unwrapped(name): name for name in source.tensors}
    if len(original) < len(source.tensors):
        original = {name: name for name in source.tensors}
    beside = {name: reason for name in original if (reason := _reason_beside(name, source.tensors[original[name]]))}
    tensors = {name: source.tensors[original[name]] for name in original if name not in beside}
    sets = _weight_sets(source, tensors, layout, counters=[name for name in beside if name.endswith(AVERAGED)])
    if not sets:
        return source
    weights = _unwrapped(weights) if weights else weights
    chosen = _choose(sets, weights, left_out=source.left_out)
    others = [other for other in sets if other is not chosen]
    named = weights != EMA and weights in _names(chosen)
    reasons = dict.fromkeys(tensors, f"beside --weights {weights}") if named else {}
    reasons |= {name: f"other weights: {other.name}" for other in others for name in other.names}
    unknown = {name: t for name, t in tensors.items() if name not in chosen.names and name not in reasons}
    left_out = _without_network(tuple(_unwrapped(entry) for entry in source.entries), sets)
    if wrong := [f"{name} {shape_text(t)}" for name, t in unknown.items() if not name.startswith(left_out)]:
        raise _unknown(wrong, chosen)
    reasons |= beside | dict.fromkeys(unknown, "in an entry without a known network")
    selected, notes = _completed(chosen, others)
    return replace(
        source,
        tensors=selected,
        taken_off=_taken_off(chosen, original),
        weights=chosen.name if chosen.average or others else "",
        beside={original[name]: reason for name, reason in reasons.items() if name not in chosen.names},
        normalisation={
            original[name]: tuple(source.tensors[original[name]].flatten().tolist())
            for name, reason in beside.items()
            if reason == NORMALISATION
        },
        notes=(*_choice_notes(chosen, others), *notes),
    )


def _unwrapped(name: str) -> str:
    """Name without the parts that wrappers add; one that is nothing else stays."""
    return ".".join(part for part in name.split(".") if part not in MODULE_WRAPPERS) or name


def _taken_off(chosen: WeightSet, original: Mapping[str, str]) -> tuple[str, ...]:
    """Text that the file's names have before a network's, and the wrappers' parts within them."""
    texts: dict[str, None] = {}
    for bare in () if chosen.dotless else chosen.tensors:
        name = original[chosen.prefix + bare]
        if name.endswith(bare):
            texts[name.removesuffix(bare)] = None
        else:
            wrappers = [f"{part}." for part in name.split(".") if part in MODULE_WRAPPERS]
            texts |= dict.fromkeys([chosen.prefix, *wrappers])
    return tuple(text for text in texts if text)


def _words(text: str) -> set[str]:
    """Lower-case words of a name: `valIoU` and `val_iou` have `val` and `iou`."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text.replace("IoU", "Iou"))
    return set(re.findall(r"[a-z]+[0-9]*", split.lower()))


def _reason_beside(name: str, tensor: Tensor) -> str | None:
    """Reason why a tensor is no part of a network; None for all others."""
    parts = name.split(".")
    words = set().union(*map(_words, parts))
    for reason, known in WORDS.items():
        if words & known and not (reason == METRIC and parts[-1] in LAYER):
            return reason
    if CLASS_WEIGHTS.match(parts[-1]):
        return LOSS
    if parts[-1] in COUNTERS and tensor.numel() == 1:
        return TRAINING_COUNTER
    return NORMALISATION if STATISTIC.match(parts[-1]) and tensor.numel() <= 16 else None


def _weight_sets(
    source: WeightsFile, tensors: Mapping[str, Tensor], layout: str, *, counters: list[str]
) -> list[WeightSet]:
    """Weights of every network in a file, in its order; `counters` are names of `n_averaged`."""
    prefixes = list(_prefixes(tensors, layout))
    averaged = tuple(name.removesuffix(AVERAGED) for name in counters)
    sets = []
    for prefix in prefixes:
        inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        names = [name for name in tensors if name.startswith(prefix) and not name.startswith(inner)]
        average = bool(_words(prefix) & AVERAGES) or prefix.startswith(averaged)
        average |= LIGHTNING_AVERAGING in source.left_out and not prefix.startswith(LIGHTNING_PLAIN)
        if MMENGINE_AVERAGING in source.tensors:
            average = not prefix.startswith(MMENGINE_PLAIN)
        inside = {name.removeprefix(prefix): tensors[name] for name in names}
        sets.append(WeightSet(prefix, inside, frozenset(names), average))
    return sets + _dotless(tensors, sets)


def _dotless(tensors: Mapping[str, Tensor], sets: list[WeightSet]) -> list[WeightSet]:
    """Averages whose names have lost their dots, as LitEma of CompVis/stable-diffusion, ldm/modules/ema.py, writes."""
    claimed = {name for one_set in sets for name in one_set.names if one_set.prefix}
    averages: dict[str, dict[str, str]] = {}
    for plain in sets:
        dotless = {name.replace(".", ""): name for name in plain.tensors}
        for name in tensors.keys() - claimed:
            prefix, dot, last = name.rpartition(".")
            if last in dotless and _words(prefix) & AVERAGES:
                averages.setdefault(prefix + dot, {})[name] = dotless[last]
    return [
        WeightSet(
            prefix, {bare: tensors[name] for name, bare in names.items()}, frozenset(names), average=True, dotless=True
        )
        for prefix, names in averages.items()
    ]


def _prefixes(tensors: Mapping[str, Tensor], layout_name: str, depth: int = 0) -> Iterator[str]:
    """Yield the prefixes behind which a layout recognises a network; a network's own parts are not searched."""
    if len(tensors) < _FEWEST:
        return
    layout = fit(tensors, layout_name)
    if layout or refusal(tensors):
        yield ""
    if depth == _MAX_DEPTH or (refusal(tensors) and not layout):
        return
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, dot, rest = name.partition(".")
        if dot and not (layout and owns(layout, name)):
            groups.setdefault(first + dot, {})[rest] = tensor
    for first, group in groups.items():
        yield from (first + prefix for prefix in _prefixes(group, layout_name, depth + 1))


def _names(chosen: WeightSet) -> set[str]:
    """Values of `--weights` that name a set: its prefix, and the beginnings and parts of that."""
    parts = chosen.name.split(".")
    return {*parts, *(".".join(parts[:end]) for end in range(1, len(parts) + 1))}


def _choose(sets: list[WeightSet], weights: str | None, *, left_out: tuple[str, ...]) -> WeightSet:
    titles = ", ".join(one_set.title for one_set in sets)
    if weights is not None:
        fitting = [one_set for one_set in sets if one_set.name == weights]
        fitting = fitting or [one_set for one_set in sets if weights in _names(one_set)]
        if weights == EMA and not fitting:
            averages = [one_set for one_set in sets if one_set.average]
            fitting = [average for average in averages if EMA in _words(average.prefix)] or averages
        if len(fitting) != 1:
            count = f"{len(fitting)} sets" if fitting else "no set"
            nameless = f"; entries without named weights: {', '.join(left_out)}" if left_out else ""
            hint = f"the file has {titles}{nameless}"
            raise ConfigError(f"--weights {weights}: {count} of weights of that name", hint=hint)
        return fitting[0]
    fitting = [one_set for one_set in sets if not one_set.average] or sets
    if any(not _equal(fitting[0], other) for other in fitting[1:]):
        raise ConfigError(f"the file has weights of {len(sets)} networks: {titles}", hint="choose by --weights NAME")
    return fitting[0]


def _equal(mine: WeightSet, other: WeightSet) -> bool:
    return mine.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in mine.tensors.items()
    )


def _without_network(entries: tuple[str, ...], sets: list[WeightSet]) -> tuple[str, ...]:
    """Prefixes of the file's dicts in which no network is."""
    return tuple(entry for entry in entries if not any(one_set.prefix.startswith(entry) for one_set in sets))


def _unknown(wrong: list[str], chosen: WeightSet) -> ConfigError:
    more = [f"... and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
    lines = "\n  ".join([f"unknown: {line}" for line in wrong[:_SHOWN]] + more)
    return ConfigError(
        f"{len(wrong)} tensors beside {chosen.title} belong to no known network:\n  {lines}",
        hint=f"--weights {chosen.name} takes that network without them, where its scores do not depend on them",
    )


def _completed(chosen: WeightSet, others: list[WeightSet]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of a set; an average of parameters alone runs with the batch norm's statistics of the plain weights."""
    plain = [other for other in others if not other.average and other.tensors.keys() > chosen.tensors.keys()]
    if not chosen.average or len(plain) != 1 or any(name.endswith(RUNNING) for name in chosen.tensors):
        return dict(chosen.tensors), ()
    buffers = {name: tensor for name, tensor in plain[0].tensors.items() if name.endswith(RUNNING) or is_counter(name)}
    note = f"{chosen.name} has parameters alone: {len(buffers)} statistics of batch norm are those of {plain[0].name}"
    return dict(chosen.tensors) | buffers, (note,)


def _choice_notes(chosen: WeightSet, others: list[WeightSet]) -> tuple[str, ...]:
    notes = []
    if chosen.average:
        where = f"the weights under {chosen.prefix}" if chosen.prefix else "the weights"
        alone = "" if any(not other.average for other in others) else "; the file has none of a single step"
        notes.append(f"{where} are an average over training{alone}")
    if others:
        titles = ", ".join(other.title for other in others)
        notes.append(f"of several sets of weights {chosen.name} was taken, not {titles}; --weights NAME takes another")
    return tuple(notes)
