"""Labels of rasters: label rasters on the same grid, or polygons, read for any window of a raster.

In: the place of the labels, and a raster. Out: class ids per pixel. A label raster has the path of its raster in a
folder of labels; files of polygons are burned in, all of them, and the last polygon of the last file wins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.classes import ClassMap
from pipeline.config import RasterConfig, SegmentConfig
from pipeline.errors import ConfigError, LabelError, NothingThere
from pipeline.geotiff.decode import load_rasterio
from pipeline.geotiff.header import Header
from pipeline.geotiff.raster import Raster
from pipeline.image.labels import from_ids
from pipeline.records import UInt8, Window
from pipeline.source.raster import NetworkBands, RasterShard, describe
from pipeline.source.raster_windows import read_stored
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.url import Url
from pipeline.vector.class_polygons import ClassPolygons, PixelPolygons, class_polygons
from pipeline.vector.files import SUFFIXES, load_features, version

GRID_PX = 0.01
"""Largest distance between the corners of a raster and of its label raster, pixels."""
_LISTED = tuple(suffix for suffix in SUFFIXES if suffix not in (".json", ".zip"))
"""Suffixes of polygons among the files of a folder, where JSON and archives are often something else."""


@dataclass(frozen=True, slots=True)
class RasterLabels:
    """Place of the labels of rasters."""

    place: str
    """Folder of label rasters or of files of polygons, or one such file."""
    files: tuple[tuple[str, str], ...]
    """URL and version of each file of polygons; empty for label rasters."""
    field: str | None
    """Attribute with the class of a polygon."""
    classes: ClassMap
    fill: int
    """Id of pixels in no polygon."""

    def read(self, raster: Raster, window: Window) -> UInt8:
        """Class ids of a window of a raster, (h, w) uint8.

        Raises:
            LabelError: `label_missing` without a label raster, `label_size` for one of another grid, `label_value`;
            `label_format` where polygons cannot be laid on the raster.
                InputError, StorageError: the label raster cannot be read.
        """
        if self.files:
            out = np.full((window.height, window.width), self.fill, np.uint8)
            try:
                laid = _laid(self, raster)
            except ConfigError as error:  # of this raster alone
                raise LabelError(error.message, hint=error.hint) from error
            for polygons in laid:
                polygons.burn(window, out)
            return out
        label, header = _label_raster(self.place, raster)
        url = Url(self.place) / label.path
        shard = RasterShard(label, window, max(window.height, window.width), 0)
        values, valid = read_stored(url, shard, header, window)
        values_hw = values[0]
        if valid is not None:
            values_hw = np.where(valid, values_hw, self.classes.ignore_id)
        ids = {index: index for index in (*range(len(self.classes)), self.classes.ignore_id)}
        return from_ids(values_hw, ids, name=f"{label.path}#{window.y},{window.x}")


def find_labels(place: str, *, field: str | None, classes: ClassMap, unlabelled: str | None = None) -> RasterLabels:
    """Look for labels at a place, and read files of polygons once to check them.

    Args:
        place: folder of label rasters or of files of polygons, or one such file.
        field: attribute with the class of a polygon.
        classes: the class map.
        unlabelled: class of pixels in no polygon; None ignores them.

    Raises:
        ConfigError: there is nothing, or as `load_features` and `class_polygons`.
    """
    if unlabelled is not None and unlabelled not in classes.names:
        hint = f"its classes are {', '.join(classes.names)}"
        raise ConfigError(f"--raster.unlabelled {unlabelled!r} is no class of {classes.name!r}", hint=hint)
    fill = classes.ignore_id if unlabelled is None else classes.names.index(unlabelled)
    files = tuple(_polygon_files(place))
    labels = RasterLabels(place, files, field, classes, fill)
    if not files and (field or unlabelled):
        hint = f"files of polygons end in {', '.join(SUFFIXES)}; label rasters need neither field nor unlabelled class"
        raise ConfigError(f"{Url(place)} has no file of polygons", hint=hint)
    return labels


def raster_labels(cfg: SegmentConfig, classes: ClassMap) -> RasterLabels | None:
    """Labels of rasters at `read.labels`; None for other sources. Raises ConfigError as `find_labels`."""
    if cfg.read.kind != "raster" or cfg.read.labels is None:
        return None
    return find_labels(cfg.read.labels, field=cfg.read.label_field, classes=classes)


def label_notes(labels: RasterLabels) -> list[str]:
    """What people should know of files of polygons; reads them. Raises ConfigError as `find_labels`."""
    found = [_polygons(url, etag, labels.field, labels.classes).features for url, etag in labels.files]
    return [note for features in found for note in features.notes]


def _polygon_files(place: str) -> Iterator[tuple[str, str]]:
    url = Url(place)
    try:
        if place.lower().endswith(SUFFIXES):
            yield place, version(url)
            return
        for file in objects.list_files(url):
            if file.path.lower().endswith(_LISTED):
                yield (url / file.path).raw, version(url / file.path)
    except (FileNotFoundError, NothingThere) as error:
        raise ConfigError(f"{url.located} does not exist", hint="check the place of the labels") from error


@lru_cache(maxsize=8)
def _polygons(url: str, etag: str, field: str | None, classes: ClassMap) -> ClassPolygons:
    if field is None:
        hint = "give --raster.label-field, or --read.label-field to evaluate"
        raise ConfigError(f"polygons of {Url(url)} need the attribute with their class", hint=hint)
    return class_polygons(load_features(Url(url), field=field, expected=etag), field=field, classes=classes)


@lru_cache(maxsize=2)
def _laid(labels: RasterLabels, raster: Raster) -> list[PixelPolygons]:
    """Polygons in pixels of a raster."""
    return [_polygons(url, etag, labels.field, labels.classes).on(raster) for url, etag in labels.files]


@lru_cache(maxsize=2)
def _label_raster(place: str, raster: Raster) -> tuple[Raster, Header]:
    """Label raster of a raster, and its header.

    Raises:
        LabelError: there is none, or on another grid.
    """
    url = Url(place) / raster.path
    try:
        info = objects.info(url)
    except FileNotFoundError as error:
        raise LabelError(f"{raster.path} has no label raster {url}", code="label_missing") from error
    file = FileInfo(raster.path, info.size, info.etag)
    label, header, _ = describe(url, file, RasterConfig(), NetworkBands(("label",)), indices=True)
    if differences := grid_differences(raster, label):
        raise LabelError(
            f"the label raster {raster.path} is on another grid: {'; '.join(differences)}", code="label_size"
        )
    return label, header


def grid_differences(raster: Raster, label: Raster) -> list[str]:
    """Texts that say how the grids of two rasters differ; empty for one grid."""
    rasterio = load_rasterio()
    out = []
    if (raster.height, raster.width) != (label.height, label.width):
        out.append(f"{label.height}x{label.width} pixels, the raster {raster.height}x{raster.width}")
    if (raster.transform is None) != (label.transform is None):
        out.append("one of the two has no transform")
    elif raster.transform and label.transform:
        back = ~rasterio.Affine(*raster.transform) @ rasterio.Affine(*label.transform)
        corners = [(x, y) for x in (0, raster.width) for y in (0, raster.height)]
        away = max(np.abs(np.subtract(back @ corner, corner)).max() for corner in corners)
        if away > GRID_PX:
            out.append(f"a corner is {away:.3g} pixels away, limit {GRID_PX}")
    if raster.crs_wkt and label.crs_wkt and _crs(raster.crs_wkt) != _crs(label.crs_wkt):
        out.append(f"coordinate systems EPSG:{label.epsg} and EPSG:{raster.epsg}")
    return out


def _crs(wkt: str) -> Any:
    return load_rasterio().crs.CRS.from_wkt(wkt)
