"""Drift of a run's statistics from the reference in the checkpoint's card, without labels.

In: the rows of segmented images, and the `reference` that training wrote into the card. Out: a population stability
index for each of four quantities, with its significance. No pixel is read: the run has counted all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.records import Float64, Int64

Quantity = Literal["class_shares", "confidence", "entropy", "brightness"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

RANGES: dict[Quantity, tuple[int, float]] = {"confidence": (20, 1.0), "entropy": (20, 1.0), "brightness": (32, 256.0)}
"""Number of bins of equal width, and upper end of the last bin; the first starts at 0."""
MODERATE, SHIFTED = 0.1, 0.25
"""The usual bounds of the population stability index: Siddiqi 2006, "Credit risk scorecards" (Wiley), ch. 10."""
CHANCE = 0.999
"""Quantile of the index without drift that a value must exceed to count as drift: one false alarm in a thousand."""
DRAWS, POPULATION = 1000, 2000
"""Draws for this quantile, and images they are drawn from at most."""

Count = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


class Reference(BaseModel):
    """Reference statistics of a checkpoint, in its card under `training.reference`."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    images: int = Field(ge=1, description="Images the statistics are of.")
    class_shares: tuple[_Share, ...] = Field(description="Share of each class in all predicted pixels.")
    confidence: tuple[Count, ...] = Field(
        min_length=20, max_length=20, description="Images by mean confidence, 0 to 1."
    )
    entropy: tuple[Count, ...] = Field(min_length=20, max_length=20, description="Images by mean entropy, 0 to 1.")
    brightness: tuple[Count, ...] = Field(min_length=32, max_length=32, description="Images by mean luma, 0 to 256.")


@dataclass(frozen=True, slots=True)
class Drift:
    """Drift of one quantity."""

    quantity: Quantity
    value: float
    """Population stability index, 0 for no change; NaN when unknown."""
    chance: float
    """Index that the same number of images without drift exceeds once in a thousand times; NaN when unknown."""
    verdict: Literal["stable", "moderate", "shifted", "unknown"]
    says: str
    """Values in training and now, or the reason why they are unknown, in words."""


def reference_of(images: pd.DataFrame) -> dict[str, object]:
    """Reference statistics for `measure_drift`, as plain JSON for a card's `training.reference`.

    Args:
        images: one row each, at least one, with the columns `class_pixels`, `confidence`, `entropy`, `brightness` of a
            committed row, in its units.
    """
    pixels = _class_pixels(images).sum(axis=0)
    histograms: dict[str, object] = {name: _binned(images, name).sum(axis=0).astype(int).tolist() for name in RANGES}
    return {"images": len(images), "class_shares": (pixels / max(pixels.sum(), 1)).tolist(), **histograms}


def measure_drift(
    images: pd.DataFrame, training: Mapping[str, object], classes: Sequence[str], *, seed: int = 0
) -> list[Drift]:
    """Drift of images from the reference in a card, quantity by quantity.

    Args:
        images: as for `reference_of`.
        training: field `training` of the card; without a usable `reference` every verdict is `unknown`.
        classes: names by id.
        seed: of the draws behind `Drift.chance`.
    """
    if (stored := training.get("reference")) is None:
        return _unknown("the checkpoint's card has no reference: an older version or another program trained it")
    try:
        reference = Reference.model_validate(stored)
    except ValidationError as error:
        return _unknown(f"the reference in the checkpoint's card is damaged: {error.error_count()} fields are wrong")
    if images.empty:
        return _unknown("no image was scored")
    if len(reference.class_shares) != len(classes):
        return _unknown(f"the card's reference has {len(reference.class_shares)} classes, this run {len(classes)}")
    rng = np.random.default_rng(seed)
    return [_drift(name, images, reference, classes, rng) for name in QUANTITIES]


def stability_index(expected: Float64, actual: Float64) -> Float64:
    """Population stability index of shares of shape (..., B), all above 0: sum of (a - e) ln(a / e), (...).

    The Kullback-Leibler divergence of both directions added: Kullback and Leibler 1951, eq. 2.6.
    """
    index: Float64 = ((actual - expected) * np.log(actual / expected)).sum(axis=-1)
    return index


def _drift(
    name: Quantity, images: pd.DataFrame, reference: Reference, classes: Sequence[str], rng: np.random.Generator
) -> Drift:
    each_nb = _class_pixels(images) if name == "class_shares" else _binned(images, name)
    before = np.array(getattr(reference, name), np.float64)
    if not each_nb.any() or not before.any():
        return Drift(name, np.nan, np.nan, "unknown", f"{name} was not counted, here or in training")
    sizes = reference.images, len(each_nb)
    value = float(stability_index(_smooth(before, sizes[0]), _smooth(each_nb.sum(axis=0), sizes[1])))
    chance = _chance(_pooled(name, before, each_nb), sizes, rng)
    verdict: Literal["stable", "moderate", "shifted"] = "stable"
    if value > max(chance, MODERATE):
        verdict = "shifted" if value > SHIFTED else "moderate"
    says = _shares(before, each_nb, classes) if name == "class_shares" else _means(name, before, each_nb)
    return Drift(name, value, chance, verdict, says)


def _chance(all_pb: Float64, sizes: tuple[int, int], rng: np.random.Generator) -> float:
    """Index that two draws of these sizes from the same (P, B) images exceed once in a thousand times.

    The usual bounds fail for few images: a hundred images in twenty bins exceed 0.25 by chance alone (Yurdakul
    and Naranjo 2020, "Statistical properties of the population stability index", J. Risk Model Validation 14(4)).
    """
    population = all_pb[:: ceil(len(all_pb) / POPULATION)]
    even = np.full(len(population), 1 / len(population))
    drawn = [_smooth(rng.multinomial(size, even, size=DRAWS) @ population, size) for size in sizes]
    return float(np.quantile(stability_index(drawn[0], drawn[1]), CHANCE))


def _pooled(name: Quantity, before: Float64, each_nb: Float64) -> Float64:
    """All images, as one population; those of training are known by their bins, but not by their class shares."""
    if name == "class_shares":
        return each_nb
    return np.concatenate([each_nb, np.repeat(np.eye(len(before)), before.astype(np.int64), axis=0)])


def _smooth(counts: Float64, images: int) -> Float64:
    """Shares of (..., B) counts of a number of images, all above 0: half an image more in each bin (Jeffreys 1946)."""
    shares = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-12)
    smoothed: Float64 = (shares * images + 0.5) / (images + 0.5 * counts.shape[-1])
    return smoothed


def _class_pixels(images: pd.DataFrame) -> Float64:
    """(N, K) pixels of each class."""
    return np.stack(images["class_pixels"].to_list()).astype(np.float64)


def _binned(images: pd.DataFrame, name: Quantity) -> Float64:
    """(N, B): 1 in the bin of each image; images without the value are skipped."""
    bins, end = RANGES[name]
    values = images[name].dropna().to_numpy(np.float64)
    bin_of: Int64 = np.clip(values / end * bins, 0, bins - 1).astype(np.int64)
    return np.eye(bins)[bin_of]


def _means(name: Quantity, before: Float64, each_nb: Float64) -> str:
    bins, end = RANGES[name]
    centres = (np.arange(bins) + 0.5) * end / bins
    trained, now = np.average(centres, weights=before), np.average(centres, weights=each_nb.sum(axis=0))
    return f"mean {trained:.3g} in training, {now:.3g} here"


def _shares(before: Float64, each_nb: Float64, classes: Sequence[str]) -> str:
    trained, now = before / before.sum(), each_nb.sum(axis=0) / each_nb.sum()
    most = int(np.abs(now - trained).argmax())
    return f"{classes[most]} {trained[most]:.1%} of all pixels in training, {now[most]:.1%} here"


def _unknown(reason: str) -> list[Drift]:
    return [Drift(name, np.nan, np.nan, "unknown", reason) for name in QUANTITIES]
