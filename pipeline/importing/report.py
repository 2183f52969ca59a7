"""Report of an import: every tensor and every check, as plain data and as text.

In: a weight file and the checkpoint imported of it. Out: a mapping for JSON, or lines for people.
"""

from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.importing import convert, verify
from pipeline.importing.convert import ImportedCheckpoint
from pipeline.importing.reader import WeightsFile

TRIAL_PX = 64
"""Side of the random image on which every imported network is run, pixels."""


def verify_import(source: WeightsFile, imported: ImportedCheckpoint, *, compare: bool) -> tuple[list[str], list[str]]:
    """Run the network on a random image, and with `compare` the source's own package; returns (verified, not verified).

    Raises:
        ConfigError: scores are not finite, or differ from the source's.
    """
    network = imported.build()
    image = torch.randn(1, imported.card.in_channels, TRIAL_PX, TRIAL_PX, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not network(image).isfinite().all():
            raise ConfigError("the network gives scores that are not finite")
    verified = ["names and shapes of all tensors", f"finite scores of a random image of {TRIAL_PX} x {TRIAL_PX}"]
    if not compare:
        return verified, [
            "equality of outputs with the source's: --verify compares them where its package is installed"
        ]
    comparison = verify.compare_outputs(source, imported, network)
    return verified + comparison.verified, comparison.not_verified


def import_facts(source: WeightsFile, imported: ImportedCheckpoint) -> dict[str, Any]:
    """File, layout, network, classes and every tensor, as plain data."""
    card = imported.card
    return {
        "file": source.name,
        "sha256": source.sha256,
        "left_out": list(source.left_out),
        "layout": imported.layout.name,
        "title": imported.layout.title,
        "recognised_by": list(imported.layout.marks),
        "architecture": card.architecture,
        "options": card.options,
        "output_stride": card.output_stride,
        "classes": card.classes.name,
        "num_classes": len(card.classes),
        "in_channels": card.in_channels,
        "mean": list(card.mean),
        "std": list(card.std),
        "normalisation": _normalisation_origin(imported),
        "taken_off": list(source.taken_off),
        "weights": source.weights,
        "tensors": len(imported.used) + len(imported.unused),
        "used": dict(imported.used),
        "unused": dict(imported.unused),
        "filled": list(imported.filled),
        "folded": imported.layout.folded,
        "notes": list(imported.notes),
    }


def import_text(facts: dict[str, Any]) -> str:
    """The report for people: counts of tensors where JSON lists their names.

    `facts` are those of `import_facts` with `verified`, `not_verified` and `checkpoint`.
    """
    counters = sum(map(convert.is_counter, facts["filled"]))
    others = len(facts["filled"]) - counters
    options = " ".join(f"{name}={value}" for name, value in facts["options"].items())
    unused = _count_by_reason(facts["unused"]).items()
    lines = [
        f"{facts['file']}  sha256 {facts['sha256'][:12]}",
        f"layout         {facts['layout']}: {facts['title']}, by {', '.join(facts['recognised_by'])}",
        f"network        {facts['architecture']} {options}, output stride {facts['output_stride']}",
        f"classes        {facts['num_classes']}, {facts['classes']}",
        f"bands          {facts['in_channels']}; normalisation: {facts['normalisation']}",
        f"tensors        {facts['tensors']}: {len(facts['used'])} used, {len(facts['unused'])} not",
        *([f"  taken off    {', '.join(facts['taken_off'])} of the file's names"] if facts["taken_off"] else []),
        *(f"  not used     {count} that begin with {prefix}: {reason}" for (prefix, reason), count in unused),
        *([f"  filled in    {counters} counters of batch norm, with 0"] if counters else []),
        *([f"  batch norm   {others} scales and statistics, as the identity"] if others and facts["folded"] else []),
        *([f"  from a seed  {others}"] if others and not facts["folded"] else []),
        *([f"  beside them  {', '.join(facts['left_out'])}: left out"] if facts["left_out"] else []),
        *(f"note           {note}" for note in facts["notes"]),
        *(f"verified       {check}" for check in facts["verified"]),
        *(f"not verified   {check}" for check in facts["not_verified"]),
        f"checkpoint     {facts['checkpoint'][:12]}",
    ]
    return "\n".join(lines)


def _normalisation_origin(imported: ImportedCheckpoint) -> str:
    """Origin of the card's means and deviations: the layout, or the flags that replace them."""
    card, normalisation = imported.card, imported.layout.input_normalisation(imported.scores)
    if (card.mean[:3], card.std[:3]) == (normalisation.mean[: len(card.mean)], normalisation.std[: len(card.std)]):
        return normalisation.origin
    return f"mean {_numbers(card.mean)}, deviation {_numbers(card.std)}, as --mean and --std say"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _count_by_reason(unused: dict[str, str]) -> dict[tuple[str, str], int]:
    """Unused tensors by (first part of their name, reason)."""
    counts: dict[tuple[str, str], int] = {}
    for name, reason in unused.items():
        group = (name.split(".")[0], reason)
        counts[group] = counts.get(group, 0) + 1
    return counts
