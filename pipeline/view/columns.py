"""Columns of the index of a run: what rows are filtered, sorted and counted by.

In: the light columns of a part, those without masks. Out: an Arrow table with one number or one word per cell, such as
the share of each class and the IoU where an image was judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.classes import ClassMap
from pipeline.records import ROW_SCHEMA, Float32, Int64, judgements_from

READ = (
    *("key", "status", "shard", "error_code", "height", "width", "refined", "refine_note", "class_pixels"),
    *("nodata_pixels", "confidence", "entropy", "changed_share", "brightness", "judgements"),
    *("seconds_read", "seconds_decode", "seconds_infer", "seconds_refine", "seconds_encode"),
)
"""Columns of a part that the index is made of. All others are read again for single rows."""
_SECONDS = tuple(name for name in READ if name.startswith("seconds_"))

REFINED, NETWORK = "refined", "network's"
"""Words of the column `mask_of`."""

Kind = Literal["share", "number", "word"]


@dataclass(frozen=True, slots=True)
class Column:
    """Column by which rows are filtered and sorted."""

    name: str
    title: str
    """Name for people."""
    kind: Kind
    """`share`: 0 to 1. `number`: any finite number. `word`: one of few texts, of which several can be chosen."""
    meaning: str
    """One sentence for people."""
    class_id: int | None = None
    """Class of which this is the share; None for other columns."""


_OF_EVERY_RUN = (
    Column("status", "status", "word", "ok, or failed."),
    Column("error_code", "error code", "word", "Stable name of the failure; none for rows that are ok."),
    Column("mask_of", "mask", "word", "refined, or the network's own with the reason why no refiner changed it."),
    Column("source", "source", "word", "URL from which the image was read."),
    Column("confidence", "confidence", "share", "Mean of the largest probability that the network gave."),
    Column("entropy", "entropy", "share", "Mean entropy of the network's probabilities over log K: 1 is uniform."),
    Column("changed_share", "changed share", "share", "Share of pixels whose class the refiner changed."),
    Column("iou", "mIoU", "share", "Mean IoU over the classes of the label or the mask; only where it was judged."),
    Column("nodata_share", "without data", "share", "Share of pixels without data, which count for no class."),
    Column("brightness", "brightness", "number", "Mean luma of the pixels, 0 to 255."),
    Column("megapixels", "size", "number", "Height times width, megapixels."),
    Column("seconds", "time", "number", "Time that the image took over all stages, seconds."),
)


def columns_of(classes: ClassMap) -> tuple[Column, ...]:
    """Columns of a run's index: those of every run, and the share of each class."""
    shares = (
        Column(share_name(index), name, "share", f"Share of the pixels with a class that are {name}.", index)
        for index, name in enumerate(classes.names)
    )
    return (*_OF_EVERY_RUN, *shares)


def share_name(class_id: int) -> str:
    """Name of the column with the share of a class."""
    return f"share_{class_id}"


def index_table(table: pa.Table, *, part: int, classes: ClassMap, sources: Mapping[str, str]) -> pa.Table:
    """Rows of the index, in the order of a part.

    Args:
        table: columns of `READ`; those that an older version did not write may be missing.
        part: number of the part.
        classes: class map of the run.
        sources: URL of the source of each shard.

    Raises:
        ValueError, LookupError, TypeError: the part has other columns than those of rows, or text that is not UTF-8.
    """
    rows, table = len(table), _checked(table)
    absent = {name for name in READ if name not in table.column_names}
    pixels = _floats(pc.multiply(pc.cast(table["height"], pa.int64()), pc.cast(table["width"], pa.int64())))
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "part": pa.array(np.full(rows, part, np.int32)),
        "row": pa.array(np.arange(rows, dtype=np.int32)),
        "key": table["key"],
        "shard": table["shard"],
        "status": table["status"],
        "error_code": table["error_code"],
        "height": table["height"],
        "width": table["width"],
        "mask_of": pa.array(_mask_of(table), pa.string()),
        "source": pa.array([sources.get(shard) for shard in table["shard"].to_pylist()], pa.string()),
        "megapixels": _nullable(pixels / 1e6),
        "seconds": _nullable(sum((_floats(table[name]) for name in _SECONDS), np.zeros(rows, np.float32))),
        "iou": _nullable(np.full(rows, np.nan) if "judgements" in absent else _mean_iou(table["judgements"])),
        "nodata_share": _nullable(_shares(_floats_or_nan(table, "nodata_pixels"), pixels)),
    }
    for name in ("confidence", "entropy", "changed_share", "brightness"):
        columns[name] = _nullable(_floats_or_nan(table, name))
    shares_nk = _class_shares(table["class_pixels"], len(classes))
    columns |= {share_name(index): _nullable(shares_nk[:, index]) for index in range(len(classes))}
    return pa.table(columns)


def _checked(table: pa.Table) -> pa.Table:
    """The columns in the types of rows: text is UTF-8, and each row has a key, a status and a shard."""
    columns = {name: table[name].cast(ROW_SCHEMA.field(name).type) for name in table.column_names}
    checked = pa.table(columns)
    checked.validate(full=True)
    if empty := [name for name in ("key", "status", "shard") if checked[name].null_count]:
        raise ValueError(f"rows without {' and '.join(empty)}")
    return checked


def _mask_of(table: pa.Table) -> list[str | None]:
    """Word for who made each mask; None for rows without one."""
    notes = table["refine_note"].to_pylist()
    return [
        None if refined is None else REFINED if refined else f"{NETWORK}: {note.partition(':')[0]}" if note else NETWORK
        for refined, note in zip(table["refined"].to_pylist(), notes, strict=True)
    ]


def _mean_iou(judgements: pa.ChunkedArray) -> Float32:
    """Mean IoU of the last answer of each row, over the classes of its label or its mask; NaN where none was judged."""
    out = np.full(len(judgements), np.nan, np.float32)
    if judgements.null_count == len(judgements):
        return out
    for row, judged in enumerate(judgements_from(judgements)):
        if judged:
            out[row] = _iou(judged[-1].counts)
    return out


def _iou(counts: Int64) -> float:
    """Mean IoU of a (K, K + 1) confusion matrix over the classes that occur in it; NaN where none does."""
    hits = np.diag(counts)
    union = counts.sum(axis=1) + counts[:, :-1].sum(axis=0) - hits
    return float(np.mean(hits[union > 0] / union[union > 0])) if union.any() else float("nan")


def _class_shares(class_pixels: pa.ChunkedArray, num_classes: int) -> Float32:
    """(N, K): share of each class among the pixels that have one; NaN for rows without such a pixel."""
    shares = np.full((len(class_pixels), num_classes), np.nan, np.float32)
    present = np.flatnonzero(class_pixels.is_valid().to_numpy())
    counts = class_pixels.drop_null().combine_chunks().flatten().to_numpy().reshape(-1, num_classes)
    sums = counts.sum(axis=1, keepdims=True)
    shares[present] = np.divide(counts, sums, out=np.full(counts.shape, np.nan), where=sums > 0)
    return shares


def _shares(counts: Float32, pixels: Float32) -> Float32:
    """Quotient; NaN for an image without a pixel."""
    return np.divide(counts, pixels, out=np.full_like(counts, np.nan), where=pixels > 0)


def _floats(column: pa.ChunkedArray) -> Float32:
    return np.asarray(column.to_numpy(), np.float32)  # null becomes NaN


def _floats_or_nan(table: pa.Table, name: str) -> Float32:
    return _floats(table[name]) if name in table.column_names else np.full(len(table), np.nan, np.float32)


def _nullable(values: Sequence[float] | Float32) -> pa.Array:
    """Float32 column in which NaN and infinity are null: comparisons leave null out, and sorting puts it last."""
    numbers = np.asarray(values, np.float32)
    return pa.array(numbers, mask=~np.isfinite(numbers))
