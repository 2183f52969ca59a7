"""Rasters as a source: large TIFFs, cut into windows on a grid from pixel (0, 0); planning.

In: the listing of a source. Out: shards, each a rectangle of windows of one raster inside a square of 8x8 windows. The
header of each file is read by ranges. A file that cannot be read becomes a shard of one item, its failure.

    core    the pixels of a window that it is responsible for: cores cover the raster exactly once
    outer   the core with its halo, cut off at the edges of the raster: the pixels that are read
"""

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import numpy as np

from pipeline.config import BandScale, RasterConfig, SegmentConfig
from pipeline.errors import ConfigError, InputError, JobError, StorageError
from pipeline.geotiff import directory as tiff
from pipeline.geotiff.georeference import check_crs, read_georeference
from pipeline.geotiff.header import Header, check_blocks, read_header, read_text
from pipeline.geotiff.raster import Raster
from pipeline.image.channels import RGB as RGB_NAMES
from pipeline.image.scale import check_dtype
from pipeline.records import Failure, Window
from pipeline.refine.engine import reach_px
from pipeline.refine.window import with_halo
from pipeline.source.raster_dates import RasterDates, time_of_tag
from pipeline.source.shard import Shard, read_failure, window_shard
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

SQUARE = 8
"""Windows per side of a square: neighbours share tiles, so a reader fetches most tiles of a square once."""
ALIGN_PX = 32
"""Halos are multiples of this, so that corners of network tiles are: see `infer.tile`."""
_BUFFERED = 4 * 2048**2
"""Samples of a window up to which a shard is a whole square; above, its sides are halved: a reader buffers a row."""
_HEADER_BLOCK = 2**16
_MOST_BLOCKS = 256


@dataclass(frozen=True, slots=True)
class NetworkBands:
    """Bands that a network takes, and the scale of their samples."""

    channels: tuple[str, ...]
    """Names, in input order."""
    scale: BandScale | None = None
    """Scale of the checkpoint's card; None for 8 bits as they are and 16 bits divided by 257."""


RGB = NetworkBands(RGB_NAMES)


@dataclass(frozen=True, slots=True)
class RasterShard:
    """Windows of one raster that are read together."""

    raster: Raster
    window: Window
    """Rectangle of cores, pixels."""
    core_px: int
    halo_px: int
    scale: BandScale | None = None
    """Scale of the samples to 8 bits, by the checkpoint's card."""

    def cores(self) -> Iterator[Window]:
        """Core of each window, row by row."""
        end_y, end_x = self.window.y + self.window.height, self.window.x + self.window.width
        for y in range(self.window.y, end_y, self.core_px):
            for x in range(self.window.x, end_x, self.core_px):
                yield Window(y, x, min(self.core_px, end_y - y), min(self.core_px, end_x - x))

    def outer(self, core: Window) -> Window:
        """Core with its halo."""
        return with_halo(core, self.raster.height, self.raster.width, self.halo_px)


class Ranges:
    """Reads ranges of one version of an object, in blocks that are kept: fields of a header lie close together."""

    def __init__(self, url: Url, etag: str, size: int) -> None:
        self.url, self.etag, self.size = url, etag, size
        self._blocks: dict[int, bytes] = {}

    def __call__(self, at: int, size: int) -> bytes:
        """Bytes from an offset; fewer only where the object ends. Raises as `objects.read_range`."""
        end = min(at + size, self.size)
        if at >= end:
            return b""
        first, last = at // _HEADER_BLOCK, (end - 1) // _HEADER_BLOCK
        if last - first >= _MOST_BLOCKS // 2:
            return objects.read_range(self.url, at, end, etag=self.etag)
        blocks = {number: self._blocks.get(number) for number in range(first, last + 1)}  # other threads may clear it
        if missing := [number for number, block in blocks.items() if block is None]:
            blocks |= self._fetch(missing[0], missing[-1])
        data = b"".join(block for block in blocks.values() if block is not None)
        start = at - first * _HEADER_BLOCK
        return data[start : start + end - at]

    def _fetch(self, first: int, last: int) -> dict[int, bytes]:
        start, end = first * _HEADER_BLOCK, min((last + 1) * _HEADER_BLOCK, self.size)
        data = objects.read_range(self.url, start, end, etag=self.etag)
        if len(self._blocks) > _MOST_BLOCKS:
            self._blocks.clear()
        starts = {number: number * _HEADER_BLOCK - start for number in range(first, last + 1)}
        fetched = {number: data[at : at + _HEADER_BLOCK] for number, at in starts.items()}
        self._blocks |= fetched
        return fetched


# Planning -------------------------------------------------------------------------------------------------------------


def check_rasters(cfg: SegmentConfig, bands: NetworkBands) -> None:
    """Check the settings of rasters before any file is read.

    Raises:
        ConfigError: rasterio is missing, `raster.bands` names a band that the checkpoint does not take, or
            `raster.crs` is none.
    """
    check_band_names(cfg.raster, bands.channels)
    if cfg.raster.crs is not None:
        check_crs(cfg.raster.crs)


def check_band_names(cfg: RasterConfig, channels: tuple[str, ...]) -> None:
    """Raise ConfigError for a name in `raster.bands` that is no band of the checkpoint."""
    if unknown := [name for name in cfg.numbers if name not in channels]:
        raise ConfigError(f"--raster.bands names {', '.join(unknown)}; the checkpoint takes {', '.join(channels)}")


def halo_px(cfg: SegmentConfig) -> int:
    """Halo of a window: the engine's reach or the overlap of tiles, whichever is larger, as a multiple of 32."""
    if cfg.raster.halo_px is not None:
        return cfg.raster.halo_px
    return ALIGN_PX * math.ceil(max(reach_px(cfg.refine), cfg.tile.overlap_px) / ALIGN_PX)


def raster_shards(
    root: str,
    file: FileInfo,
    cfg: SegmentConfig,
    bands: NetworkBands,
    *,
    copy: int = 1,
    dates: RasterDates | None = None,
) -> tuple[list[Shard], list[str]]:
    """Shards of one raster, or a shard of its failure; and warnings.

    Its date changes no id of a shard. Without `dates` it is that of the tag DateTime.

    Raises:
        AccessDenied: 403.
    """
    url = Url(root) / file.path
    try:
        raster, _, notes = describe(url, file, cfg.raster, bands)
        raster = dates.dated(raster) if dates else raster
    except (InputError, FileNotFoundError, StorageError) as error:
        failure: Failure | None = read_failure(error)
    except JobError:  # a missing package, for all rasters alike
        raise
    except Exception as error:  # noqa: BLE001  # damage that nobody foresaw fails one raster, not the run
        failure = Failure("corrupt", f"{type(error).__name__}: {error}")
    else:
        failure = None
    if failure is not None:
        packed = _pack({"failure": [failure.code, failure.detail]})
        return [window_shard(root, file, [failure.code], rows=1, packed=packed, copy=copy)], []
    halo = halo_px(cfg)
    shards = []
    for window in _rectangles(raster, cfg.raster.core_px):
        here = RasterShard(raster, window, cfg.raster.core_px, halo)
        identity = [astuple(window), here.core_px, halo, raster.bands, raster.alpha, repr(raster.nodata)]
        facts = {"raster": raster.to_json(), "window": astuple(window), "core_px": here.core_px, "halo_px": halo}
        packed = _pack(facts | {"scale": None if bands.scale is None else bands.scale.model_dump(mode="json")})
        rows = math.ceil(window.height / here.core_px) * math.ceil(window.width / here.core_px)
        shards.append(window_shard(root, file, identity, rows=rows, packed=packed, copy=copy))
    return shards, [f"{file.path}: {note}" for note in notes]


def describe(
    url: Url, file: FileInfo, cfg: RasterConfig, bands: NetworkBands, *, indices: bool = False
) -> tuple[Raster, Header, list[str]]:
    """Description of a raster, the header that it is from, and warnings; `indices` as in `read_header`.

    Raises:
        InputError: it cannot be read; see `read_header`, `check_blocks`, `choose_bands` and `check_dtype`;
            `too_many_pixels` above `cfg.max_gpx`.
    """
    if not file.size:
        raise InputError("empty", "0 bytes")
    header = read_header(Ranges(url, file.etag, file.size), indices=indices)
    blocks = header.blocks
    if (gpx := blocks.height * blocks.width / 1e9) > cfg.max_gpx:
        detail = f"{blocks.width}x{blocks.height} = {gpx:.6g} gigapixels, limit {cfg.max_gpx:g}"
        raise InputError("too_many_pixels", detail, hint="raise --raster.max-gpx")
    check_dtype(header.dtype, bands.scale)
    numbers, alpha = choose_bands(header, cfg, bands.channels)
    check_blocks(header, file.size)
    nodata, notes = _nodata(header, cfg)
    geo = read_georeference(header, cfg.crs)
    if geo.transform is None:
        notes.append("no georeferencing; its mask has none either")
    time, no_time = time_of_tag(read_text(header, tiff.DATETIME))
    raster = Raster(
        path=file.path,
        etag=file.etag,
        size=file.size,
        height=blocks.height,
        width=blocks.width,
        dtype=header.dtype,
        count=header.count,
        bands=numbers,
        channels=bands.channels,
        alpha=alpha,
        nodata=nodata,
        geo_tags=geo.tags,
        transform=geo.transform,
        crs_wkt=geo.crs_wkt,
        epsg=geo.epsg,
        datetime=time,
    )
    return raster, header, notes + no_time


def choose_bands(header: Header, cfg: RasterConfig, channels: tuple[str, ...]) -> tuple[tuple[int, ...], int | None]:
    """Number in the file of each band of the checkpoint, and of the alpha, from 1.

    By `cfg.bands`; else by the names in the file, if all its bands but the alpha have one; else in order, if there are
    as many as the checkpoint takes and no name contradicts. A band tagged as alpha is one unless `cfg.bands` names it.

    Raises:
        InputError: `band_mismatch`.
    """
    given = cfg.numbers
    alpha = None if header.alpha in given.values() else header.alpha
    measured = [number for number in range(1, header.count + 1) if number != alpha]
    names = {number: header.names[number - 1] for number in measured}
    if given:
        by_name = {name: number for number, name in names.items() if name}
        chosen = [given.get(channel, by_name.get(channel)) for channel in channels]
        fits = all(number is not None and number <= header.count for number in chosen)
    elif all(names.values()):
        by_name = {name: number for number, name in reversed(names.items()) if name}
        chosen = [by_name.get(channel) for channel in channels]
        fits = None not in chosen
    else:
        chosen = list(measured)
        fits = len(measured) == len(channels) and all(
            names[number] in (None, channel) for number, channel in zip(measured, channels, strict=True)
        )
    if not fits:
        raise _mismatch(header, channels)
    return tuple(number for number in chosen if number is not None), alpha


def _mismatch(header: Header, channels: tuple[str, ...]) -> InputError:
    labels = [
        "alpha" if number == header.alpha else header.names[number - 1] or "unnamed"
        for number in range(1, header.count + 1)
    ]
    listed = ", ".join(f"{number} {label}" for number, label in enumerate(labels, start=1))
    example = " ".join(f"{name}={number}" for number, name in enumerate(channels, start=1))
    detail = f"the file has the bands {listed}; the checkpoint takes {', '.join(channels)}"
    return InputError("band_mismatch", detail, hint=f"say which is which, such as --raster.bands {example}")


def _nodata(header: Header, cfg: RasterConfig) -> tuple[float | None, list[str]]:
    """Nodata value in use; one that no sample can have is left out, with a warning."""
    value = header.nodata if cfg.nodata is None else cfg.nodata
    if value is None or header.dtype == "float32":
        return value, []
    limits = np.iinfo(header.dtype)
    if math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max:
        return value, []
    return None, [f"no sample of {header.dtype} can be its nodata value {value:g}, which is ignored"]


def _rectangles(raster: Raster, core_px: int) -> Iterator[Window]:
    """Rectangles of windows, one per shard: squares, or parts of them for many bands or large cores."""
    side = SQUARE
    while side > 1 and len(raster.bands) * core_px**2 * side > _BUFFERED * SQUARE:
        side //= 2
    step = side * core_px
    for y in range(0, raster.height, step):
        for x in range(0, raster.width, step):
            yield Window(y, x, min(step, raster.height - y), min(step, raster.width - x))


def _pack(facts: dict[str, object]) -> bytes:
    return zlib.compress(json.dumps(facts, separators=(",", ":")).encode(), 6)


def unpack(shard: Shard) -> RasterShard | Failure:
    """Windows of a shard of kind `raster`, or the failure of its file."""
    facts = json.loads(zlib.decompress(shard.packed))
    if "failure" in facts:
        return Failure(*facts["failure"])
    scale = None if facts["scale"] is None else BandScale.model_validate(facts["scale"])
    raster, window = Raster.from_json(facts["raster"]), Window(*facts["window"])
    return RasterShard(raster, window, facts["core_px"], facts["halo_px"], scale)
