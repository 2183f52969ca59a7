"""The shipped checkpoints side by side: what they were trained on, how well they do, what they cost and their licences.

In: cards and weights in `models/weights`. Out: one record per checkpoint, as text or Markdown. Every score is one that
the card carries; speed is measured here, one image at a time on one thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.evaluate.listing import aligned, single_image_rate
from pipeline.models import catalogue, checkpoint
from pipeline.models.card import SHIPPED, WEIGHTS_FILE, Card, shipped_checkpoints

HELD_OUT, ELSEWHERE = "held_out", "elsewhere"
"""Keys of a card's training record: mean IoU of trainings without a group of images, and as others measured it."""


@dataclass(frozen=True, slots=True)
class ShippedCheckpoint:
    """Figures of one shipped checkpoint."""

    name: str
    network: str
    parameters: int
    bytes: int
    """Size of the weights file."""
    images_per_s: float | None
    """One image at a time, on the GPU where there is one, else on one thread; None when not measured."""
    training_images: int
    validation_images: int
    miou: float
    """Mean IoU of the validation images, which chose the step, 0 to 1."""
    iou: dict[str, float]
    """IoU of each class on them."""
    held_out: dict[str, float]
    """Mean IoU of trainings with the same network and loss that held out a group of images, by the group's name."""
    elsewhere: dict[str, float]
    """Mean IoU that others measured on images which the development never had, by what was measured."""
    license: str
    initial: str
    """Weights that the training began with, and their licence; empty: from scratch."""


def list_shipped(*, size_px: int, measure: bool) -> list[ShippedCheckpoint]:
    """Read the card of each shipped checkpoint; with `measure`, time it on one thread at `size_px` squared."""
    return [_listed(name, size_px if measure else None) for name in shipped_checkpoints()]


def _listed(name: str, timed_px: int | None) -> ShippedCheckpoint:
    model = checkpoint.load_checkpoint(name)
    card, record = model.card, model.card.training
    backbone = card.options.get("backbone")
    return ShippedCheckpoint(
        name=name,
        network=f"{card.architecture} on {backbone}" if backbone else card.architecture,
        parameters=catalogue.count_parameters(checkpoint.blank(card)),
        bytes=(SHIPPED / name / WEIGHTS_FILE).stat().st_size,
        images_per_s=None if timed_px is None else round(_rate_on_one_thread(model, timed_px), 2),
        training_images=int(str(record["training_images"])),
        validation_images=int(str(record["validation_images"])),
        miou=float(str(record["miou"])),
        iou={one: float(str(record[f"iou/{one}"])) for one in card.classes.names if f"iou/{one}" in record},
        held_out=_scores(card, HELD_OUT),
        elsewhere=_scores(card, ELSEWHERE),
        license=card.license,
        initial=_initial(card),
    )


def _scores(card: Card, key: str) -> dict[str, float]:
    scores = card.training.get(key)
    return {name: float(str(score)) for name, score in scores.items()} if isinstance(scores, Mapping) else {}


def _initial(card: Card) -> str:
    source = card.training.get("initial_source")
    return f"{source}: {card.training.get('initial_license')}" if source else ""


def _rate_on_one_thread(model: checkpoint.Checkpoint, size_px: int) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return single_image_rate(model.build(), size_px, channels=model.card.in_channels)
    finally:
        torch.set_num_threads(threads)


def shipped_text(shipped: Sequence[ShippedCheckpoint]) -> str:
    """For people: a line per checkpoint, then its scores and licences."""
    rows = [("name", "network", "Mparam", "MB", "img/s", "mIoU", "validated on")]
    for one in shipped:
        rate = "" if one.images_per_s is None else f"{one.images_per_s:.2f}"
        size = (f"{one.parameters / 1e6:.2f}", f"{one.bytes / 1e6:.1f}")
        rows.append((one.name, one.network, *size, rate, f"{one.miou:.3f}", f"{one.validation_images} images"))
    blocks = [aligned(rows)]
    for one in shipped:
        lines = [f"{one.name}, trained on {one.training_images} images", f"  IoU: {_listing(one.iou)}"]
        lines += [f"  held out: {_listing(one.held_out)}; mean {_mean(one.held_out):.3f}"] if one.held_out else []
        lines += [f"  measured by others: {_listing(one.elsewhere)}"] if one.elsewhere else []
        lines += [f"  licence: {one.license}", f"  began with: {one.initial or 'random weights'}"]
        blocks.append(lines)
    return "\n\n".join("\n".join(block) for block in blocks)


def shipped_markdown(one: ShippedCheckpoint) -> str:
    """For the documentation: the table of one checkpoint, without speed."""
    rows = [
        ("network", f"{one.network}, {one.parameters:,} parameters, {one.bytes / 1e6:.1f} MB"),
        ("trained on", f"{one.training_images} images"),
        ("mean IoU", f"**{one.miou:.3f}** on {one.validation_images} images, which chose the step"),
        ("IoU", _listing(one.iou)),
    ]
    rows += [("held out", f"{_listing(one.held_out)}; mean **{_mean(one.held_out):.3f}**")] if one.held_out else []
    rows += [("measured by others", _listing(one.elsewhere))] if one.elsewhere else []
    rows += [("licence", one.license), ("began with", one.initial or "random weights")]
    head, *rest = (f"| {name} | {value} |" for name, value in rows)
    return "\n".join([head, "|---|---|", *rest])


def _listing(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.3f}" for name, score in scores.items())


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)
