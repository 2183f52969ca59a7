"""Histograms of stored values per band, added up over shards, and the scale of a set that follows from them.

In: valid pixels of chips. Out: `Levels`, which are whole numbers, so that sums do not depend on the order; mean,
deviation and percentiles of a set. Integers are counted by value: all results are exact. Of 32-bit floats the sign, the
exponent and 11 bits of the mantissa are counted, so each result is that of values known to one part in 4096.
"""

import base64
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from pipeline.config import BandScale
from pipeline.image.scale import eight_bits
from pipeline.records import Int64

SHARES = (0.02, 0.98)
"""Shares of the pixels below the values that become levels 0 and 255."""
_DROPPED_BITS = 12
"""Bits of the mantissa of a float that are not counted, of 23."""
_SIGN = np.uint32(1 << 31)


class Levels(BaseModel):
    """Histogram of the values of each band; see `count_levels`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    """Type of the samples."""
    bands: list[str]
    """Of each band the values that occur and their numbers of pixels, int64, compressed, in base 64."""


class BandSummary(BaseModel):
    """Statistics of the valid pixels of a set, per band."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: list[str]
    """Names of the bands, in the order of the chips."""
    dtype: str
    """Type of the samples."""
    pixels: int
    """Valid pixels."""
    mean: list[float]
    """Mean of the stored values."""
    std: list[float]
    """Standard deviation of the stored values."""
    low: list[float]
    """2nd percentile of the stored values."""
    high: list[float]
    """98th percentile of the stored values."""
    level_mean: list[float]
    """Mean after scaling to levels, of values 0 to 1: what a network sees."""
    level_std: list[float]
    """Standard deviation after scaling to levels, of values 0 to 1."""

    scale: BandScale | None
    """Scale of the samples to 8 bits; None for 8 bits, which stay as they are."""


def count_levels(values_cn: npt.NDArray[Any]) -> Levels:
    """Histogram of (bands, pixels) finite values in their stored type."""
    counted = (np.unique(_codes(band), return_counts=True) for band in values_cn)
    return Levels(dtype=values_cn.dtype.name, bands=[_pack(codes, counts) for codes, counts in counted])


def add_levels(parts: Iterable[Levels | None]) -> Levels | None:
    """Add up histograms of one type and number of bands; None without any."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    return Levels(dtype=there[0].dtype, bands=[_add(bands) for bands in zip(*(p.bands for p in there), strict=True)])


def summarise_levels(levels: Levels, names: Sequence[str]) -> BandSummary:
    """Statistics of a histogram of at least one pixel."""
    unpacked = [_unpack(band) for band in levels.bands]
    values = [_values(codes, levels.dtype) for codes, _ in unpacked]
    weights = [counts for _, counts in unpacked]
    stored = [_mean_and_std(*pair) for pair in zip(values, weights, strict=True)]
    low, high = ([_percentile(*pair, share) for pair in zip(values, weights, strict=True)] for share in SHARES)
    summary = BandSummary(
        names=list(names),
        dtype=levels.dtype,
        pixels=int(weights[0].sum()),
        mean=[mean for mean, _ in stored],
        std=[std for _, std in stored],
        low=low,
        high=high,
        scale=_scale(levels.dtype, low, high),
        level_mean=[],
        level_std=[],
    )
    scaled = [_mean_and_std(_scaled(band, summary, at), weights[at]) for at, band in enumerate(values)]
    means, deviations = ([round(value / 255, 6) for value in own] for own in zip(*scaled, strict=True))
    # a constant band divides by 1: its deviation of 0 cannot
    return summary.model_copy(update={"level_mean": means, "level_std": [std or 1.0 for std in deviations]})


def _scale(dtype: str, low: Sequence[float], high: Sequence[float]) -> BandScale | None:
    plain = {"dtype": dtype, "low": tuple(low), "high": tuple(map(_above, low, high))}
    return None if dtype == "uint8" else BandScale.model_validate(plain)


def _scaled(values: npt.NDArray[Any], summary: BandSummary, at: int) -> npt.NDArray[Any]:
    scale = summary.scale
    if scale is None:
        return values
    own = BandScale(dtype=scale.dtype, low=(scale.low[at],), high=(scale.high[at],))
    return eight_bits(values[:, None], own)[:, 0]


def _above(low: float, high: float) -> float:
    """Value of level 255, above the one of level 0 in a constant band too."""
    return high if high > low else low + max(1.0, abs(low) / 1024)


def _codes(values: npt.NDArray[Any]) -> Int64:
    """Whole number of each value, in the order of the values."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    bits = np.ascontiguousarray(values).view(np.uint32)
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered >> np.uint32(_DROPPED_BITS)).astype(np.int64)


def _values(codes: Int64, dtype: str) -> npt.NDArray[Any]:
    """Value in the middle of what each code stands for, in the stored type."""
    if dtype != "float32":
        return codes.astype(dtype)
    ordered = (codes.astype(np.uint32) << np.uint32(_DROPPED_BITS)) | np.uint32(1 << (_DROPPED_BITS - 1))
    return np.where(ordered & _SIGN, ordered & ~_SIGN, ~ordered).astype(np.uint32).view(np.float32)


def _pack(codes: Int64, counts: Int64) -> str:
    return base64.b64encode(zlib.compress(np.stack([codes, counts]).astype("<i8").tobytes(), 6)).decode()


def _unpack(packed: str) -> tuple[Int64, Int64]:
    codes, counts = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8").reshape(2, -1)
    return codes, counts


def _add(bands: Sequence[str]) -> str:
    codes, counts = (np.concatenate(columns) for columns in zip(*map(_unpack, bands), strict=True))
    unique, where = np.unique(codes, return_inverse=True)
    total = np.zeros(len(unique), np.int64)
    np.add.at(total, where, counts)
    return _pack(unique, total)


def _mean_and_std(values: npt.NDArray[Any], counts: Int64) -> tuple[float, float]:
    """Mean and standard deviation, the same in any order of the sums."""
    pixels, numbers, times = int(counts.sum()), values.astype(np.float64), counts.astype(np.float64)
    mean = math.fsum(numbers * times) / pixels
    return mean, math.sqrt(math.fsum((numbers - mean) ** 2 * times) / pixels)


def _percentile(values: npt.NDArray[Any], counts: Int64, share: float) -> float:
    """Smallest value that at least this share of the pixels does not exceed."""
    below = np.cumsum(counts)
    return float(values[np.searchsorted(below, math.ceil(share * int(below[-1])))])
