"""Records that stages exchange, and their Arrow schemas on the wire.

    Item (encoded bytes)  ->  Scored (logits at the network's stride)  ->  Row (mask and statistics)

All types are plain Arrow types, so any Parquet reader understands the parts, and nothing is ever unpickled. Pixels and
full-size probabilities are not in the schemas: they stay inside one stage of one process.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

UInt8 = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.unsignedinteger[Any]]
"""Class ids: of masks uint8; pairs of them, before and after, uint16."""
Bool = npt.NDArray[np.bool_]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

LEFT_WHOLE = 1.25
"""Sides up to this many times a tile or window stay uncut: two that overlap are more work than a single larger one."""


@dataclass(frozen=True, slots=True)
class Window:
    """A core rectangle of an image, in pixels of the upright source. A photo is one window that covers it."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason why a work item has no mask."""

    code: str
    """Stable name, one of `errors.ERROR_CODES`."""
    detail: str
    """One line for people: the value seen, the value allowed, the setting that changes it."""


@dataclass(frozen=True, slots=True)
class Position:
    """Place of the camera, as its GPS measured it, in WGS 84."""

    longitude: float
    """Degrees east, -180 to 180."""
    latitude: float
    """Degrees north, -90 to 90."""
    altitude: float | None = None
    """Metres above sea level, negative below; None where the file has none."""


@dataclass(frozen=True, slots=True)
class Image:
    """Decoded pixels of one work item; never leaves its process."""

    pixels_hwc: UInt8
    """(H, W, 3) upright RGB, or (H, W, C) of the bands of a checkpoint."""
    valid_hw: Bool | None
    """(H, W), False for pixels without data (transparent, not finite); None when every pixel is valid."""
    orientation: int = 1
    """EXIF orientation of the file, 1 to 8; the pixels are already upright."""
    origin: tuple[int, int] = (0, 0)
    """Row and column of the first pixel in its raster; (0, 0) for a whole image."""
    position: Position | None = None
    """Place of the camera by the EXIF of the file; None without one, and for a window of a raster."""

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
    """Work item as it leaves a source: encoded bytes, or a failure."""

    key: str
    """Stable id: `{uri relative to the source}#{member, row or window}`; the `#` part is absent for plain files."""
    shard: str
    """Id of its shard."""
    etag: str
    """Version of the source object, as the store names it."""
    data: bytes = b""
    """The encoded image; empty when `failure` is set."""
    label: bytes | None = None
    """The encoded label: PNG of class ids, or JSON of weak labels. None when labels are not read or it has none."""
    failure: Failure | None = None
    """Set when the source cannot deliver this item."""
    shard_rows: int | None = None
    """Number of items in the shard, set on its last item; None on every other item."""
    window: Window | None = None
    """Part of the raster to segment; None for a whole image. With it, empty `data` without a failure means that every
    pixel is known to be without data."""
    outer: Window | None = None
    """`window` with its halo, cut off at the edges of the raster: the pixels to decode. None for a whole image."""
    seconds_read: float = 0.0
    """Time spent fetching it, seconds."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Work item after the network: logits at the network's stride, no full-size arrays."""

    item: Item
    """The work item; `item.data` is kept only when the next stage needs the pixels again."""
    height: int = 0
    """Height of the upright image, or of a window with its halo, pixels; 0 before the size is known."""
    width: int = 0
    """Width of the same, pixels."""
    orientation: int = 1
    """EXIF orientation of the file."""
    logits_khw: Float16 | None = None
    """(A, h, w) scores; cell (i, j) covers source pixels [i*stride, (i+1)*stride). None for a failure, and for a window
    without a pixel with data."""
    class_ids: tuple[int, ...] | None = None
    """Ids of the A active classes, ascending, after pruning those that cannot win; None for all classes."""
    pruned_mass: float = 0.0
    """Mean over cells of the probability of the pruned classes, 0 to 1."""
    stride: int = 4
    """Source pixels per logit, per axis."""
    align_corners: bool = False
    """Corner alignment of the network's upsampling; the refiner must upsample alike."""
    inference: str = ""
    """Inference mode of the network; see `Row.inference`."""
    position: Position | None = None
    """Place of the camera by the EXIF of the file; None without one."""
    seconds_decode: float = 0.0
    seconds_infer: float = 0.0


@dataclass(slots=True)
class PixelStats:
    """Sums over the valid pixels of one image, window by window."""

    class_pixels: Int64
    """(K,) pixels per class."""
    valid_pixels: int = 0
    confidence_sum: float = 0.0
    """Sum of the largest probability of each pixel."""
    entropy_sum: float = 0.0
    """Sum of each pixel's entropy divided by log(K)."""
    changed_pixels: int = 0
    """Pixels whose class the refiner changed."""

    def add(
        self, mask_hw: UInt8, confidence_hw: Float32, nats_hw: Float32, changed_hw: Bool, valid_hw: Bool | None
    ) -> None:
        """Add one window; pixels that are not valid do not count.

        Args:
            mask_hw: class ids.
            confidence_hw: the largest probability the network gave.
            nats_hw: entropy of its probabilities over all or the active classes, nats.
            changed_hw: True where the refiner changed the class.
            valid_hw: None when every pixel is valid.
        """
        valid = np.ones(mask_hw.shape, bool) if valid_hw is None else valid_hw
        uniform = np.log(max(len(self.class_pixels), 2))
        self.class_pixels += np.bincount(mask_hw[valid], minlength=len(self.class_pixels))
        self.valid_pixels += int(valid.sum())
        self.confidence_sum += float(confidence_hw[valid].sum(dtype=np.float64))
        self.entropy_sum += float(nats_hw[valid].sum(dtype=np.float64) / uniform)
        self.changed_pixels += int((changed_hw & valid).sum())

    def count_unchanged(self, mask_hw: UInt8, valid_hw: Bool | None) -> None:
        """Count the classes of a whole image again, (H, W) ids that no refiner changed; the other sums stay."""
        ids = mask_hw.ravel() if valid_hw is None else mask_hw[valid_hw]
        self.class_pixels = np.bincount(ids, minlength=len(self.class_pixels))
        self.changed_pixels = 0

    def mean(self, total: float) -> float:
        """Mean of a sum per valid pixel; 0 when no pixel is valid."""
        return total / self.valid_pixels if self.valid_pixels else 0.0


@dataclass(frozen=True, slots=True)
class Refinement:
    """Mask of one image, before and after refinement, with statistics."""

    mask_hw: UInt8
    """(H, W) class ids; `ignore_id` where the image is not valid."""
    network_hw: UInt8
    """(H, W) class ids before any refinement."""
    confidence_hw: UInt8
    """(H, W) largest probability the network gave, 0 to 255."""
    stats: PixelStats
    refined: bool
    """True when an engine refined every window, False when the mask is the network's everywhere."""
    note: str | None
    """Reason why `refined` is False although an engine is configured: a stable name, a colon, and the values."""
    active_classes: int
    """Number of classes in the logits: all, or those left after pruning."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Validation image with its true and its predicted mask."""

    key: str
    image_hwc: UInt8
    """(H, W, 3) RGB."""
    truth_hw: UInt8
    """(H, W) class ids, and the ignore id."""
    mask_hw: UInt8
    """(H, W) class ids: the prediction."""
    edges_hw: Float32 | None = None
    """(H, W) edge map of the network, at least 0; None for networks that predict no edges."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Properties of a network from which its memory is estimated."""

    weight_bytes: int
    """Size of the weights as float32."""
    num_classes: int
    stride: int
    """Input pixels per logit, per axis."""
    bands: int = 3
    """Bands of the input."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """Pixel counts of an answer against labels, as integers, of one image or summed over images."""

    name: str
    """Name of the answer: `network`, or the engine that refined it."""
    counts: Int64
    """(K, K + 1) confusion matrix: rows are the truth, columns the answer, the last column no answer; see
    `metrics.confusion`."""
    bands: Int64
    """(B, K, K + 1) confusion matrix within each trimap width, narrow to wide; see `boundary.boundary_rings`."""
    boundary: Int64
    """(K, 3) pixels on the boundary of the truth, of the answer, of both; see `boundary.overlap`."""
    reliability: Int64
    """(256, 2) correct pixels and all pixels at each confidence; see `calibration.reliability`."""

    def __add__(self, other: "Judgement") -> "Judgement":
        """Sum of two judgements; images, shards and runs merge by exact addition. ValueError for another name."""
        if self.name != other.name:
            raise ValueError(f"judgements of {self.name!r} and {other.name!r} cannot be added")
        return Judgement(self.name, *(mine + theirs for mine, theirs in zip(self.arrays, other.arrays, strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Judgement):
            return NotImplemented
        return self.name == other.name and all(map(np.array_equal, self.arrays, other.arrays))

    __hash__ = None  # type: ignore[assignment]

    @property
    def arrays(self) -> tuple[Int64, Int64, Int64, Int64]:
        """The arrays of counts, in the order of the fields."""
        return self.counts, self.bands, self.boundary, self.reliability


@dataclass(frozen=True, slots=True)
class Row:
    """Committed row: everything known about one work item."""

    key: str
    """Stable id of the work item: `{path relative to the source}#{member or row}`."""
    status: str
    """`ok` or `failed`."""
    shard: str
    """Id of its shard."""
    source_etag: str
    """Version of the source object, as the store names it."""
    model_fp: str
    """First 12 hex digits of the checkpoint's SHA-256."""
    config_fp: str
    """First 12 hex digits of the run's fingerprint; the same as in `run=<fp12>/`."""
    error_code: str | None = None
    """Stable name of the failure, one of `errors.ERROR_CODES`; null for `ok`."""
    error_detail: str | None = None
    """Value seen, value allowed, and the setting that changes it; null for `ok`."""
    height: int | None = None
    """Height of the upright image or of the window, pixels."""
    width: int | None = None
    """Width of the upright image or of the window, pixels."""
    window_y: int | None = None
    """Top row of the window in its raster, pixels; 0 for a whole image."""
    window_x: int | None = None
    """Left column of the window in its raster, pixels; 0 for a whole image."""
    orientation: int | None = None
    """EXIF orientation of the source; the mask is in the upright frame."""
    longitude: float | None = None
    """Longitude of the camera by the GPS of the EXIF, WGS 84, degrees east; null without a position, for windows of
    rasters, and for existing masks. Parts of older versions lack the three columns of the position."""
    latitude: float | None = None
    """Latitude of the camera, WGS 84, degrees north; null where `longitude` is."""
    altitude: float | None = None
    """Altitude of the camera as the EXIF has it, metres above sea level, negative below; null where it has none."""
    inference: str | None = None
    """Inference mode of the network, as words: `os16 bf16 sliding`, and if configured `scales=0.5,1 flip
    mean_probability compiled`. Records the choices of the worker: the precision that `auto` resolved to, and
    `eager (...)` if the compiler failed."""
    mask: bytes | None = None
    """Palette PNG: value = class id, 255 = ignore; null for a failure, and for a window of a raster without data."""
    refined: bool | None = None
    """True when a refiner produced the whole mask; False when all of it is the network's."""
    refine_note: str | None = None
    """Reason why `refined` is False although a refiner is configured: a stable name such as `refine_timeout`, a colon,
    and the values. Rows of versions that left images refined in part have this reason beside `refined` True."""
    class_pixels: list[int] | None = None
    """Pixels per class id, without ignored pixels."""
    nodata_pixels: int | None = None
    """Pixels without data, which count for no class; null in parts of older versions."""
    classes_present: list[int] | None = None
    """Class ids with at least one pixel, ascending."""
    confidence: float | None = None
    """Mean over valid pixels of the largest probability the network gave, before any refinement, 0 to 1."""
    entropy: float | None = None
    """Mean over valid pixels of the entropy of the network's probabilities, divided by log(K): 0 certain, 1 uniform."""
    changed_share: float | None = None
    """Share of valid pixels whose class the refiner changed, 0 to 1."""
    active_classes: int | None = None
    """Number of classes left after pruning those that cannot win; all classes without a refiner."""
    pruned_mass: float | None = None
    """Mean probability of the pruned classes, 0 to 1."""
    brightness: float | None = None
    """Mean luma of the valid pixels, 0 to 255."""
    judgements: list[Judgement] | None = None
    """Pixel counts of each answer against the image's label; null without labels, or without an answer."""
    seconds_read: float = 0.0
    """Time spent fetching the object, seconds."""
    seconds_decode: float = 0.0
    """Time spent decoding the image, before the network and again before the refiner, and its label, seconds."""
    seconds_infer: float = 0.0
    """The image's share of the time in the network, seconds."""
    seconds_refine: float = 0.0
    """Time in the refiner, seconds."""
    seconds_encode: float = 0.0
    """Time spent encoding the mask, seconds."""
    shard_rows: int | None = None
    """Number of rows in the shard, set on its last row; null on every other row."""
    confidence_map: bytes | None = None
    """Grey PNG with a pixel for each 4x4 pixels of the mask of a window: mean over the valid ones of the largest
    probability the network gave, 1 to 255; 0 without a valid pixel. Null for images, and in parts of older versions."""
    changed_map: bytes | None = None
    """PNG of 1 bit of a window: the pixels whose class the refiner changed. Null where `confidence_map` is."""
    preview_image: bytes | None = None
    """JPEG of the image for the report, longest side at most 2048 pixels; set on a seeded sample of rows."""
    preview_confidence: bytes | None = None
    """Grey PNG of the largest probability, 0 to 255; set on the same rows."""


_COUNTED = ("counts", "bands", "boundary", "reliability")
"""Arrays of a `Judgement`, flat in C order on the wire; their shapes follow from K, which `boundary` gives."""

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
        ("outer", pa.list_(pa.int64(), 4)),
        pa.field("seconds_read", pa.float32(), nullable=False),
    ]
)

SCORED_SCHEMA = pa.schema(
    [
        *ITEM_SCHEMA,
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("orientation", pa.int8(), nullable=False),
        ("position", pa.list_(pa.float64(), 3)),
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
        ("longitude", pa.float64()),
        ("latitude", pa.float64()),
        ("altitude", pa.float64()),
        ("inference", pa.string()),
        ("mask", pa.binary()),
        ("refined", pa.bool_()),
        ("refine_note", pa.string()),
        ("class_pixels", pa.list_(pa.int64())),
        ("nodata_pixels", pa.int64()),
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
        ("confidence_map", pa.binary()),
        ("changed_map", pa.binary()),
        ("preview_image", pa.binary()),
        ("preview_confidence", pa.binary()),
    ]
)


def _item_columns(item: Item) -> dict[str, Any]:
    failure = item.failure
    return {
        "key": item.key,
        "shard": item.shard,
        "etag": item.etag,
        "data": item.data,
        "label": item.label,
        "error_code": failure.code if failure else None,
        "error_detail": failure.detail if failure else None,
        "shard_rows": item.shard_rows,
        "window": astuple(item.window) if item.window else None,
        "outer": astuple(item.outer) if item.outer else None,
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
        outer=Window(*columns["outer"]) if columns["outer"] else None,
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
    for record in scored:
        logits = record.logits_khw
        rows.append(
            _item_columns(record.item)
            | {
                "height": record.height,
                "width": record.width,
                "orientation": record.orientation,
                "position": astuple(record.position) if record.position else None,
                "logits": None if logits is None else logits.astype(np.float16, copy=False).tobytes(),
                "logits_shape": None if logits is None else list(logits.shape),
                "class_ids": record.class_ids,
                "pruned_mass": record.pruned_mass,
                "stride": record.stride,
                "align_corners": record.align_corners,
                "inference": record.inference,
                "seconds_decode": record.seconds_decode,
                "seconds_infer": record.seconds_infer,
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
                position=Position(*columns["position"]) if columns["position"] else None,
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


def _judgement_columns(judgement: Judgement) -> dict[str, Any]:
    return {"name": judgement.name} | {name: getattr(judgement, name).ravel() for name in _COUNTED}


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
    """Decode the column `judgements` of stored rows without a Python integer per count."""
    return [[_judgement_from(struct) for struct in cell.values] if cell.is_valid else None for cell in column]


_ROW_NAMES = tuple(column.name for column in fields(Row))


def _row_columns(row: Row) -> dict[str, Any]:
    columns = {name: getattr(row, name) for name in _ROW_NAMES}
    if row.judgements is not None:
        columns["judgements"] = [_judgement_columns(judgement) for judgement in row.judgements]
    return columns


def rows_to_table(rows: Iterable[Row]) -> pa.Table:
    """Pack rows into a table of `ROW_SCHEMA`."""
    return pa.Table.from_pylist([_row_columns(row) for row in rows], schema=ROW_SCHEMA)


def rows_from_table(table: pa.Table) -> list[Row]:
    """Inverse of `rows_to_table`; columns missing from parts of older versions get their defaults."""
    names = [name for name in ROW_SCHEMA.names if name in table.column_names and name != "judgements"]
    rows = table.select(names).to_pylist()
    if "judgements" in table.column_names:
        for columns, judgements in zip(rows, judgements_from(table["judgements"]), strict=True):
            columns["judgements"] = judgements
    return [Row(**columns) for columns in rows]
