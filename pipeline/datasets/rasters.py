"""Large rasters with labels, cut into chips for training: `--layout rasters`.

    fields/2026-06.tif  fields/2026-07.tif       rasters, at any depth below the root
    labels/fields/2026-06.tif                    label rasters on the same grid, under the same path; or
    fields.gpkg                                  polygons with an attribute, in any coordinate system

A chip is a window of the pixel grid, read by ranges and kept in the stored type. The ground is divided into square
blocks, and a hash of a block's place decides the split of all chips in it, on whichever raster; a chip that lies in
blocks of both splits is in neither, so no pixel of ground is both trained on and validated.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.config import BandScale, RasterConfig
from pipeline.datasets.config import RASTERS as LAYOUT
from pipeline.datasets.config import PrepareConfig
from pipeline.datasets.layout import DatasetLayout, Labelled, ListedExample
from pipeline.datasets.levels import count_levels
from pipeline.datasets.prepare import windows_of
from pipeline.errors import ConfigError, InputError, NothingThere, StorageError
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.header import Header, read_header
from pipeline.geotiff.raster import Raster, Transform, pixel_edge
from pipeline.records import Bool, UInt8, Window
from pipeline.source.plan import RASTERS
from pipeline.source.raster import RGB, NetworkBands, Ranges, RasterShard, describe
from pipeline.source.raster_windows import read_stored
from pipeline.source.shard import read_failure
from pipeline.source.truth import RasterLabels, find_labels
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url

TRAIN, VALIDATION = "train", "val"


@dataclass(frozen=True)
class GroundBlocks:
    """Division of the ground into blocks, and the split of each."""

    crs_wkt: str | None
    """Coordinate system of the places; None: each raster's own pixels."""
    side: float
    """Edge of a block in its units."""
    share: float
    """Share of the blocks that validate, 0 to 1."""
    seed: int

    def split_of(self, raster: Raster, window: Window) -> str | None:
        """Split of a window; None where it lies in blocks of both splits."""
        ys, xs = (window.y, window.y + window.height), (window.x, window.x + window.width)
        points = [(x, y) for x in (xs[0] + 0.5, xs[1] - 0.5) for y in (ys[0] + 0.5, ys[1] - 0.5)]
        ground = self._ground(raster, points)
        cells = [[math.floor(value / self.side) for value in values] for values in zip(*ground, strict=True)]
        columns, rows = (range(min(values), max(values) + 1) for values in cells)
        named = "" if self._is_placed(raster) else raster.path
        splits = {self._split(named, column, row) for column in columns for row in rows}
        return splits.pop() if len(splits) == 1 else None

    def split_of_file(self, path: str) -> str:
        """Split of a raster that cannot be read."""
        return self._split(path, 0, 0)

    def _is_placed(self, raster: Raster) -> bool:
        return self.crs_wkt is not None and raster.crs_wkt is not None and raster.transform is not None

    def _ground(self, raster: Raster, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        if not self._is_placed(raster):
            return points
        placed = [_affine(raster.transform) @ point for point in points]
        if raster.crs_wkt == self.crs_wkt:
            return placed
        load_rasterio()
        from rasterio import warp  # noqa: PLC0415

        xs, ys = warp.transform(raster.crs_wkt, self.crs_wkt, *zip(*placed, strict=True))
        return list(zip(xs, ys, strict=True))

    def _split(self, named: str, column: int, row: int) -> str:
        text = f"{self.seed} {named} {column} {row}"
        place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64
        return VALIDATION if place < self.share else TRAIN


@dataclass(frozen=True)
class Rasters(DatasetLayout):
    """Keys are `<split>/<path>#<y>,<x>`."""

    labels: RasterLabels = field(kw_only=True)
    blocks: GroundBlocks = field(kw_only=True)
    raster: RasterConfig = field(kw_only=True)
    channels: tuple[str, ...] = field(kw_only=True)
    """Names of the bands of the chips."""
    dtype: str = field(kw_only=True)
    """Type of the samples of every raster."""
    cut_px: int = field(kw_only=True)
    min_labelled: float = field(kw_only=True)
    """Smallest share of labelled pixels with data in a chip, 0 to 1."""

    @property
    def classes(self) -> ClassMap:
        """Class map of the labels."""
        return self.labels.classes

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of the chips."""
        return self.channels

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List the chips of a split, raster by raster, from the headers; a raster that cannot be read is one example.

        Raises:
            ConfigError: no ground is left for the split.
        """
        self.check_split(split)
        examples = [example for file in list_rasters(root, self.labels) for example in self._chips(root, file, split)]
        if not examples:
            hint = "lower --raster.block-chips or --cut-px, or change --raster.val-share or --raster.split-seed"
            raise ConfigError(f"no chip of {root} falls in the split {split!r}", hint=hint)
        return examples

    def _chips(self, root: Url, file: FileInfo, split: str) -> Iterator[ListedExample]:
        try:
            raster, _ = self._opened(root, file)
        except (InputError, FileNotFoundError, StorageError) as error:
            if self.blocks.split_of_file(file.path) == split:
                failure = read_failure(error)
                yield ListedExample(f"{split}/{file.path}", file.path, None, (failure.code, failure.detail))
            return
        for rows, columns in windows_of(raster.height, raster.width, self.cut_px):
            window = Window(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
            if self.blocks.split_of(raster, window) == split:
                place = map(str, (file.size, window.y, window.x, window.height, window.width))
                yield ListedExample(f"{split}/{file.path}#{window.y},{window.x}", file.path, None, (file.etag, *place))

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Label of a chip, without regard to pixels without data."""
        raster, _, window = self._place(root, example)
        return self.labels.read(raster, window)

    def read(self, root: Url, example: ListedExample) -> Labelled | None:
        """Read a chip and its label; None where fewer pixels than `min_labelled` have both data and a class."""
        raster, header, window = self._place(root, example)
        label_hw = self.labels.read(raster, window)
        shard = RasterShard(raster, window, self.cut_px, 0)
        values, valid = read_stored(root / raster.path, shard, header, window)
        if valid is not None:
            label_hw[~valid] = self.classes.ignore_id
        if (label_hw != self.classes.ignore_id).mean() < self.min_labelled:
            return None
        image = encode_chip(values, valid, self.channels, raster.nodata if self._has_all_bands(raster) else None)
        flat = values.reshape(len(values), -1) if valid is None else values[:, valid]
        return Labelled(example.key, image, label_hw, count_levels(flat))

    def _has_all_bands(self, raster: Raster) -> bool:
        return len(raster.bands) == raster.count - (raster.alpha is not None)

    def _place(self, root: Url, example: ListedExample) -> tuple[Raster, Header, Window]:
        """Raster, header and window of a chip; raises the InputError of a raster that could not be read."""
        if "#" not in example.key:
            raise InputError(*example.more)
        etag, size, y, x, height, width = example.more
        window = Window(int(y), int(x), int(height), int(width))
        return *self._opened(root, FileInfo(example.image, int(size), etag)), window

    def _opened(self, root: Url, file: FileInfo) -> tuple[Raster, Header]:
        count = len(self.channels)
        scale = BandScale(dtype=self.dtype, low=(0,) * count, high=(1,) * count)
        return _opened(root / file.path, file, self.raster, NetworkBands(self.channels, scale))


@lru_cache(maxsize=4)
def _opened(url: Url, file: FileInfo, cfg: RasterConfig, bands: NetworkBands) -> tuple[Raster, Header]:
    raster, header, _ = describe(url, file, cfg, bands)
    return raster, header


def _affine(transform: Transform | None) -> Any:
    return load_rasterio().Affine(*(transform or (1, 0, 0, 0, 1, 0)))


def list_rasters(root: Url, labels: RasterLabels | None = None) -> list[FileInfo]:
    """Rasters below a root, without those below the folder of labels, in the order of their paths.

    Raises:
        ConfigError: there is none.
    """
    try:
        files = [file for file in objects.list_files(root) if file.path.lower().endswith(RASTERS)]
    except NothingThere as error:
        raise ConfigError(f"{root.located} does not exist", hint="set --root to a folder of rasters") from error
    if labels is not None and not labels.files:
        below = Url(labels.place).place.rstrip("/") + "/"
        files = [file for file in files if not (root / file.path).place.startswith(below)]
    if not files:
        raise ConfigError(f"no raster in {root.located}", hint=f"files to read: {', '.join(RASTERS)}")
    return files


def open_layout(cfg: PrepareConfig) -> Rasters:
    """Layout of the rasters below `cfg.root`; the first one in the order of paths decides bands and type of samples.

    Raises:
        ConfigError: a setting is missing, or does not fit the rasters, the labels or the class map.
    """
    own, root = cfg.raster, Url(cfg.root)
    for name, value in {"--cut-px": cfg.cut_px, "--raster.labels": own.labels, "--raster.classes": own.classes}.items():
        if value is None:
            raise ConfigError(f"--layout {LAYOUT} needs {name}")
    class_map = classes.load_class_map(own.classes or "")
    labels = find_labels(own.labels or "", field=own.label_field, classes=class_map, unlabelled=own.unlabelled)
    raster_cfg = RasterConfig(bands=own.bands, nodata=own.nodata, crs=own.crs, max_gpx=own.max_gpx)
    channels, dtype, first = _first_readable(root, list_rasters(root, labels), raster_cfg)
    return Rasters(
        name=LAYOUT,
        palette=class_map.name,
        splits=(TRAIN, VALIDATION),
        source=str(root),
        license="that of the rasters",
        labels=labels,
        blocks=_blocks(first, cfg),
        raster=raster_cfg,
        channels=channels,
        dtype=dtype,
        cut_px=cfg.cut_px or 0,
        min_labelled=own.min_labelled,
    )


def _first_readable(root: Url, files: list[FileInfo], cfg: RasterConfig) -> tuple[tuple[str, ...], str, Raster]:
    """Names of the bands, type of the samples, and the first raster that can be read."""
    failures = []
    for file in files:
        try:
            header = read_header(Ranges(root / file.path, file.etag, file.size))
            channels = _channels(header, cfg)
            scale = BandScale(dtype=header.dtype, low=(0,) * len(channels), high=(1,) * len(channels))
            return channels, header.dtype, _opened(root / file.path, file, cfg, NetworkBands(channels, scale))[0]
        except (InputError, FileNotFoundError, StorageError) as error:
            failures.append(f"{file.path}: {read_failure(error).detail}")
    raise ConfigError(f"none of {len(files)} raster(s) can be read; {failures[0]}", hint="check --raster.bands")


def _channels(header: Header, cfg: RasterConfig) -> tuple[str, ...]:
    """Names of the bands of a set: those of `--raster.bands`, else of the file, else red, green and blue."""
    if cfg.numbers:
        return tuple(cfg.numbers)
    named = [name for number, name in enumerate(header.names, start=1) if number != header.alpha]
    if all(named):
        return tuple(name for name in named if name)
    if len(named) == len(RGB.channels):
        return RGB.channels
    raise ConfigError(
        f"{len(named)} bands without names", hint="name those to use by their numbers: --raster.bands red=1 nir=4"
    )


def _blocks(raster: Raster, cfg: PrepareConfig) -> GroundBlocks:
    placed = raster.transform is not None and raster.crs_wkt is not None
    pixel = pixel_edge(raster.transform) if raster.transform and placed else 1.0
    side = cfg.raster.block_chips * (cfg.cut_px or 0) * pixel
    return GroundBlocks(raster.crs_wkt, side, cfg.raster.val_share, cfg.raster.split_seed)


def encode_chip(
    values_chw: npt.NDArray[Any], valid_hw: Bool | None, names: tuple[str, ...], nodata: float | None
) -> bytes:
    """TIFF of a chip in its stored type, without loss: names of the bands, the nodata value, a mask of valid pixels."""
    rasterio = load_rasterio()
    count, height, width = values_chw.shape
    rgb = names == RGB.channels and values_chw.dtype == np.uint8
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values_chw.dtype.name}
    profile |= {"compress": "deflate", "photometric": "rgb" if rgb else "minisblack", "nodata": nodata}
    profile["predictor"] = 3 if values_chw.dtype.kind == "f" else 2
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_NUM_THREADS="1"),
        rasterio.io.MemoryFile() as memory,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # chips have no transform
        with memory.open(**profile) as dataset:
            dataset.write(values_chw)
            dataset.descriptions = names
            if valid_hw is not None:
                dataset.write_mask(valid_hw)
        return bytes(memory.read())
