"""The records that travel between stages, and the Arrow schema each has on the wire.

    Item (encoded bytes)  ->  Scored (logits at the network's stride)  ->  Row (mask and statistics)

Only plain Arrow types are used, so that any Parquet reader understands what is stored and nothing is ever unpickled.
Pixels and full-size probabilities never appear here: they live inside one stage of one process.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LEFT_WHOLE = 1.25
"""A side up to this many times a tile or window is left whole: two that overlap are more work than a larger one."""


@dataclass(frozen=True, slots=True)
class Window:
    """A core rectangle of an image, in pixels of the upright source. A photo is one window that covers it."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one work item has no mask."""

    code: str
    """Stable name, one of `errors.ERROR_CODES`."""
    detail: str
    """One line for a person: what was seen, what is allowed, which option changes it."""


@dataclass(frozen=True, slots=True)
class Image:
    """Decoded pixels of one work item. Lives inside one process, never on the wire."""

    pixels_hwc: UInt8
    """(H, W, 3) upright RGB."""
    valid_hw: Bool | None
    """(H, W), False where there is no data (transparent, not finite); None when every pixel is valid."""
    orientation: int = 1
    """EXIF orientation the file had, 1 to 8; pixels are already upright."""

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels_hwc.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels_hwc.shape[1])


@dataclass(frozen=True, slots=True)
class Item:
    """One work item as it leaves a source: encoded bytes, or the reason there are none."""

    key: str
    """Stable id: `{uri relative to the source}#{member, row or window}`; the `#` part is absent for plain files."""
    shard: str
    """Id of the shard it came from."""
    etag: str
    """Version of the source object, as the store names it."""
    data: bytes = b""
    """The encoded image; empty when `failure` is set."""
    label: bytes | None = None
    """The encoded label: PNG of class ids, or JSON of weak labels. None when it was not asked for, or is not there."""
    failure: Failure | None = None
    """Set when the source could not deliver this item."""
    shard_rows: int | None = None
    """On the last item of a shard: how many items the shard has in all. None on every other item."""
    window: Window | None = None
    """The part of the image to segment; None is the whole image."""
    seconds_read: float = 0.0
    """Time spent fetching it, seconds."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One work item after the network: logits at the network's stride, still without colours or full-size maps."""

    item: Item
    """Where it came from. `item.data` is kept only when the next stage needs the pixels again."""
    height: int = 0
    """Height of the upright image, pixels; 0 for a failure before the size was known."""
    width: int = 0
    """Width of the upright image, pixels."""
    orientation: int = 1
    """EXIF orientation the file had."""
    logits_khw: Float16 | None = None
    """(A, h, w) scores; cell (i, j) covers source pixels [i*stride, (i+1)*stride). None for a failure."""
    class_ids: tuple[int, ...] | None = None
    """The A classes of the logits, ascending, where those that cannot win were left out; None when all are there."""
    pruned_mass: float = 0.0
    """Mean over cells of the probability of the classes that were left out, 0 to 1."""
    stride: int = 4
    """Source pixels per logit, per axis."""
    align_corners: bool = False
    """How the network upsamples its own logits, and so how the refiner must."""
    inference: str = ""
    """How the network looked at the image; see `Row.inference`."""
    seconds_decode: float = 0.0
    seconds_infer: float = 0.0


@dataclass(slots=True)
class PixelStats:
    """Sums over the valid pixels of some windows of one image."""

    class_pixels: Int64
    """(K,) pixels per class."""
    valid_pixels: int = 0
    confidence_sum: float = 0.0
    """Sum of the largest probability of each pixel."""
    entropy_sum: float = 0.0
    """Sum of each pixel's entropy divided by log(K)."""
    changed_pixels: int = 0
    """Pixels to which the refiner gave another class."""

    def add(
        self, mask_hw: UInt8, confidence_hw: Float32, nats_hw: Float32, changed_hw: Bool, valid_hw: Bool | None
    ) -> None:
        """Count one window; pixels that are not valid do not count.

        Args:
            mask_hw: class ids.
            confidence_hw: the largest probability the network gave.
            nats_hw: entropy of its probabilities, of all classes or of those that can win.
            changed_hw: where the refiner changed the class.
            valid_hw: None when every pixel is valid.
        """
        valid = np.ones(mask_hw.shape, bool) if valid_hw is None else valid_hw
        uniform = np.log(max(len(self.class_pixels), 2))
        self.class_pixels += np.bincount(mask_hw[valid], minlength=len(self.class_pixels))
        self.valid_pixels += int(valid.sum())
        self.confidence_sum += float(confidence_hw[valid].sum(dtype=np.float64))
        self.entropy_sum += float(nats_hw[valid].sum(dtype=np.float64) / uniform)
        self.changed_pixels += int((changed_hw & valid).sum())

    def mean(self, total: float) -> float:
        """A sum per valid pixel; 0 when there are none."""
        return total / self.valid_pixels if self.valid_pixels else 0.0


@dataclass(frozen=True, slots=True)
class Refinement:
    """The mask of one image and what is known about it."""

    mask_hw: UInt8
    """(H, W) class ids; `ignore_id` where the image is not valid."""
    network_hw: UInt8
    """(H, W) the same before any refinement."""
    confidence_hw: UInt8
    """(H, W) largest probability the network gave, 0 to 255."""
    stats: PixelStats
    refined: bool
    note: str | None
    """Why fewer iterations were done than asked for."""
    active_classes: int
    """Classes the logits came with: all, or those that can win."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A validation image, what it should give and what it gives."""

    key: str
    image_hwc: UInt8
    """(H, W, 3) RGB."""
    truth_hw: UInt8
    """(H, W) class ids, and the ignore id."""
    mask_hw: UInt8
    """(H, W) class ids: the prediction."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the memory of a network depends on."""

    weight_bytes: int
    """As float32."""
    num_classes: int
    stride: int
    """Input pixels per logit, per axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What was counted of one answer against a label: whole numbers of pixels, of one image or of any sum of images."""

    name: str
    """Which answer: `network`, or the engine that refined it."""
    counts: Int64
    """(K, K + 1) rows are the truth, columns the answer, the last column no answer; see `metrics.confusion`."""
    bands: Int64
    """(B, K, K + 1) the same within each trimap width, narrow to wide; see `boundary.boundary_rings`."""
    boundary: Int64
    """(K, 3) pixels on the boundary of the truth, of the answer, of both; see `boundary.overlap`."""
    reliability: Int64
    """(256, 2) pixels of each confidence that are right, and all of them; see `calibration.reliability`."""

    def __add__(self, other: "Judgement") -> "Judgement":
        """Both together: images, shards and runs merge by addition, exactly. Raises ValueError for another name."""
        if self.name != other.name:
            raise ValueError(f"judgements of {self.name!r} and {other.name!r} do not add up to anything")
        return Judgement(self.name, *(mine + theirs for mine, theirs in zip(self.arrays, other.arrays, strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Judgement):
            return NotImplemented
        return self.name == other.name and all(map(np.array_equal, self.arrays, other.arrays))

    __hash__ = None  # type: ignore[assignment]

    @property
    def arrays(self) -> tuple[Int64, Int64, Int64, Int64]:
        """Everything that was counted, in the order of the fields."""
        return self.counts, self.bands, self.boundary, self.reliability


@dataclass(frozen=True, slots=True)
class Row:
    """One committed row: everything known about one work item."""

    key: str
    """Stable id of the work item: `{path relative to the source}#{member or row}`."""
    status: str
    """`ok` or `failed`."""
    shard: str
    """Id of the shard it came from."""
    source_etag: str
    """Version of the source object, as the store names it."""
    model_fp: str
    """First 12 hex digits of the checkpoint's SHA-256."""
    config_fp: str
    """First 12 hex digits of the run's fingerprint; the same as in `run=<fp12>/`."""
    error_code: str | None = None
    """Stable name of the failure, one of `errors.ERROR_CODES`; null for `ok`."""
    error_detail: str | None = None
    """What was seen, what is allowed, and the setting that changes it; null for `ok`."""
    height: int | None = None
    """Pixels, of the upright image."""
    width: int | None = None
    """Pixels, of the upright image."""
    window_y: int | None = None
    """Top row of the window in its image, pixels; 0 for a whole image."""
    window_x: int | None = None
    """Left column of the window in its image, pixels; 0 for a whole image."""
    orientation: int | None = None
    """EXIF orientation of the source; the mask is in the upright frame."""
    inference: str | None = None
    """How the network looked at the image, as words: `os16 bf16 sliding`, and where asked for `scales=0.5,1 flip
    mean_probability compiled`. Says what the worker's hardware did: the precision that `auto` became, `eager (...)`
    where the compiler failed."""
    mask: bytes | None = None
    """Palette PNG: value = class id, 255 = ignore."""
    refined: bool | None = None
    """Whether a refiner produced the mask."""
    refine_note: str | None = None
    """Why `refined` is False although a refiner was asked for, e.g. `refine_timeout`."""
    class_pixels: list[int] | None = None
    """Pixels per class id, ignored pixels left out."""
    classes_present: list[int] | None = None
    """Class ids with at least one pixel, ascending."""
    confidence: float | None = None
    """Mean over valid pixels of the largest probability the network gave, before any refinement, 0 to 1."""
    entropy: float | None = None
    """Mean over valid pixels of the entropy of the network's probabilities over log(K): 0 certain, 1 uniform."""
    changed_share: float | None = None
    """Share of valid pixels whose class the refiner changed, 0 to 1."""
    active_classes: int | None = None
    """Classes left after those that cannot win were pruned; all of them without a refiner."""
    pruned_mass: float | None = None
    """Mean probability of the classes that were pruned, 0 to 1."""
    brightness: float | None = None
    """Mean luma of the valid pixels, 0 to 255."""
    judgements: list[Judgement] | None = None
    """Each answer against the label of the image; None where labels were not asked for, or there is no answer."""
    seconds_read: float = 0.0
    """Time spent fetching it, seconds."""
    seconds_decode: float = 0.0
    """Time spent decoding it before the network, seconds."""
    seconds_infer: float = 0.0
    """Its share of the time in the network, seconds."""
    seconds_refine: float = 0.0
    """Time in the refiner, with decoding, seconds."""
    seconds_encode: float = 0.0
    """Time spent encoding the mask, seconds."""
    shard_rows: int | None = None
    """On the last row of a shard: how many rows the shard has in all. Null on every other row."""
    preview_image: bytes | None = None
    """On a seeded sample of rows: JPEG of the image, longest side at most 320 pixels, for the report."""
    preview_confidence: bytes | None = None
    """On the same rows: grey PNG of the largest probability, 0 to 255."""


_COUNTED = ("counts", "bands", "boundary", "reliability")
"""The arrays of a `Judgement`, flat in C order on the wire; their shapes follow from K, which `boundary` gives."""

ITEM_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
        ("label", pa.large_binary()),
        ("error_code", pa.string()),
        ("error_detail", pa.string()),
        ("shard_rows", pa.int64()),
        ("window", pa.list_(pa.int64(), 4)),
        pa.field("seconds_read", pa.float32(), nullable=False),
    ]
)

SCORED_SCHEMA = pa.schema(
    [
        *ITEM_SCHEMA,
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("orientation", pa.int8(), nullable=False),
        ("logits", pa.large_binary()),
        ("logits_shape", pa.list_(pa.int32(), 3)),
        ("class_ids", pa.list_(pa.int32())),
        pa.field("pruned_mass", pa.float32(), nullable=False),
        pa.field("stride", pa.int32(), nullable=False),
        pa.field("align_corners", pa.bool_(), nullable=False),
        pa.field("inference", pa.string(), nullable=False),
        pa.field("seconds_decode", pa.float32(), nullable=False),
        pa.field("seconds_infer", pa.float32(), nullable=False),
    ]
)

JUDGEMENT = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        *(pa.field(name, pa.list_(pa.int64()), nullable=False) for name in _COUNTED),
    ]
)

ROW_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("source_etag", pa.string(), nullable=False),
        pa.field("model_fp", pa.string(), nullable=False),
        pa.field("config_fp", pa.string(), nullable=False),
        ("error_code", pa.string()),
        ("error_detail", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("window_y", pa.int64()),
        ("window_x", pa.int64()),
        ("orientation", pa.int8()),
        ("inference", pa.string()),
        ("mask", pa.binary()),
        ("refined", pa.bool_()),
        ("refine_note", pa.string()),
        ("class_pixels", pa.list_(pa.int64())),
        ("classes_present", pa.list_(pa.int32())),
        ("confidence", pa.float32()),
        ("entropy", pa.float32()),
        ("changed_share", pa.float32()),
        ("active_classes", pa.int32()),
        ("pruned_mass", pa.float32()),
        ("brightness", pa.float32()),
        ("judgements", pa.list_(JUDGEMENT)),
        pa.field("seconds_read", pa.float32(), nullable=False),
        pa.field("seconds_decode", pa.float32(), nullable=False),
        pa.field("seconds_infer", pa.float32(), nullable=False),
        pa.field("seconds_refine", pa.float32(), nullable=False),
        pa.field("seconds_encode", pa.float32(), nullable=False),
        ("shard_rows", pa.int64()),
        ("preview_image", pa.binary()),
        ("preview_confidence", pa.binary()),
    ]
)


def _item_columns(item: Item) -> dict[str, Any]:
    failure, window = item.failure, item.window
    return {
        "key": item.key,
        "shard": item.shard,
        "etag": item.etag,
        "data": item.data,
        "label": item.label,
        "error_code": failure.code if failure else None,
        "error_detail": failure.detail if failure else None,
        "shard_rows": item.shard_rows,
        "window": [window.y, window.x, window.height, window.width] if window else None,
        "seconds_read": item.seconds_read,
    }


def _item_from(columns: dict[str, Any]) -> Item:
    code = columns["error_code"]
    return Item(
        key=columns["key"],
        shard=columns["shard"],
        etag=columns["etag"],
        data=columns["data"],
        label=columns["label"],
        failure=Failure(code, columns["error_detail"] or "") if code else None,
        shard_rows=columns["shard_rows"],
        window=Window(*columns["window"]) if columns["window"] else None,
        seconds_read=columns["seconds_read"],
    )


def items_to_table(items: Iterable[Item]) -> pa.Table:
    """Pack items into a table of `ITEM_SCHEMA`."""
    return pa.Table.from_pylist([_item_columns(item) for item in items], schema=ITEM_SCHEMA)


def items_from_table(table: pa.Table) -> list[Item]:
    """Inverse of `items_to_table`."""
    return [_item_from(columns) for columns in table.to_pylist()]


def scored_to_table(scored: Iterable[Scored]) -> pa.Table:
    """Pack scored items into a table of `SCORED_SCHEMA`; logits travel as C-order float16 bytes."""
    rows = []
    for one in scored:
        logits = one.logits_khw
        rows.append(
            _item_columns(one.item)
            | {
                "height": one.height,
                "width": one.width,
                "orientation": one.orientation,
                "logits": None if logits is None else logits.astype(np.float16, copy=False).tobytes(),
                "logits_shape": None if logits is None else list(logits.shape),
                "class_ids": one.class_ids,
                "pruned_mass": one.pruned_mass,
                "stride": one.stride,
                "align_corners": one.align_corners,
                "inference": one.inference,
                "seconds_decode": one.seconds_decode,
                "seconds_infer": one.seconds_infer,
            }
        )
    return pa.Table.from_pylist(rows, schema=SCORED_SCHEMA)


def scored_from_table(table: pa.Table) -> list[Scored]:
    """Inverse of `scored_to_table`. The logits are read-only."""
    scored = []
    for columns in table.to_pylist():
        shape = columns["logits_shape"]
        logits = None if shape is None else np.frombuffer(columns["logits"], np.float16).reshape(shape)
        scored.append(
            Scored(
                item=_item_from(columns),
                height=columns["height"],
                width=columns["width"],
                orientation=columns["orientation"],
                logits_khw=logits,
                class_ids=None if columns["class_ids"] is None else tuple(columns["class_ids"]),
                pruned_mass=columns["pruned_mass"],
                stride=columns["stride"],
                align_corners=columns["align_corners"],
                inference=columns["inference"],
                seconds_decode=columns["seconds_decode"],
                seconds_infer=columns["seconds_infer"],
            )
        )
    return scored


def _judgement_columns(one: Judgement) -> dict[str, Any]:
    return {"name": one.name} | {name: getattr(one, name).ravel() for name in _COUNTED}


def _judgement_from(scalar: pa.StructScalar) -> Judgement:
    counts, bands, boundary, reliability = (np.array(scalar[name].values, np.int64) for name in _COUNTED)
    k = len(boundary) // 3
    return Judgement(
        scalar["name"].as_py(),
        counts.reshape(k, k + 1),
        bands.reshape(-1, k, k + 1),
        boundary.reshape(k, 3),
        reliability.reshape(-1, 2),
    )


def judgements_from(column: pa.ChunkedArray) -> list[list[Judgement] | None]:
    """The column `judgements` of stored rows, without a Python integer for every count."""
    return [[_judgement_from(one) for one in each.values] if each.is_valid else None for each in column]


def _row_columns(row: Row) -> dict[str, Any]:
    columns = {column.name: getattr(row, column.name) for column in fields(Row)}
    if row.judgements is not None:
        columns["judgements"] = [_judgement_columns(one) for one in row.judgements]
    return columns


def rows_to_table(rows: Iterable[Row]) -> pa.Table:
    """Pack rows into a table of `ROW_SCHEMA`."""
    return pa.Table.from_pylist([_row_columns(row) for row in rows], schema=ROW_SCHEMA)


def rows_from_table(table: pa.Table) -> list[Row]:
    """Inverse of `rows_to_table`; columns that a part of an older version does not have keep their defaults."""
    names = [name for name in ROW_SCHEMA.names if name in table.column_names and name != "judgements"]
    rows = table.select(names).to_pylist()
    if "judgements" in table.column_names:
        for columns, judgements in zip(rows, judgements_from(table["judgements"]), strict=True):
            columns["judgements"] = judgements
    return [Row(**columns) for columns in rows]
