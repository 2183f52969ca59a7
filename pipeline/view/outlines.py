"""Outlines of zones and polygons that a run has, in pixels of a raster, and the table of one of them.

In: `polygons/<path>.parquet` and `zones_map.parquet` as `atrous polygons` and `atrous zones` write them. Out: the
largest outlines in a rectangle, simplified to a level of the raster's pyramid, as lists of numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.geotiff.raster import Raster
from pipeline.polygons.output import FOLDER
from pipeline.records import Float64, Int64, Window
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.features import read_features
from pipeline.vector.geoparquet import BBOX, GEOMETRY, load_shapely
from pipeline.vector.grid import to_grid
from pipeline.zones.output import ZONES, ZONES_MAP

MOST_OUTLINES, MOST_POINTS = 2000, 100_000
"""Most outlines of one answer, and most points of all of them: what a browser draws while the picture is dragged."""
FEWEST_PX = 2
"""Outlines whose bounds are smaller than so many pixels of the level are left out."""
MOST_ZONES_BYTES = 256 * 2**20
"""Largest `zones_map.parquet` that is read; its shapes are kept in memory."""
OPEN_FILES, KEPT_GROUPS = 4, 32
"""Files whose bounds are kept, and row groups of polygons whose geometries are."""
_AGAIN = "delete it and run the same command again"

Kind = Literal["zones", "polygons"]


@dataclass(frozen=True)
class Shapes:
    """Shapes of one raster, in its pixels, of which geometries are read when they are asked for."""

    bounds: Float64
    """(N, 4) left, top, right and bottom of each."""
    classes: npt.NDArray[np.int64] | None
    """(N,) class of each; None for zones."""
    geometries: Callable[[Int64], npt.NDArray[Any]]
    """Shapes of shapely by their numbers, in pixels."""
    table: Callable[[int], pa.Table]
    """Columns of one of them, without geometry."""


class Outlines:
    """Zones and polygons of one run. Calls from several threads are safe."""

    def __init__(self, run_url: Url) -> None:
        self._run_url = run_url
        self._opened = lru_cache(OPEN_FILES)(self._open)

    def kinds(self, name: str) -> list[Kind]:
        """Which kinds the run has for the raster of a name."""
        return [kind for kind, url in self._urls(name).items() if objects.exists(url)]

    def within(self, kind: Kind, name: str, raster: Raster, window: Window, level: int) -> dict[str, Any]:
        """Outlines that touch a rectangle, clipped to it.

        Args:
            kind: zones or polygons.
            name: path of the raster's files, without suffix.
            raster: the raster.
            window: rectangle in pixels, of which the part inside the raster counts.
            level: they are simplified to half a pixel of this level, and those smaller than two are left out.

        Returns:
            `shapes`: each with its `number`, its `class_id` or null, and `rings` of x, y, x, y and so on;
            and `left_out`, how many others lie in the rectangle.

        Raises:
            LookupError: the run has none of this kind.
            StorageError, InputError, ConfigError: the file cannot be read.
        """
        shapes = self._shapes(kind, name, raster)
        chosen, here = _largest(shapes.bounds, _sides(window, raster), FEWEST_PX * 2**level)
        shapely = load_shapely()
        clipped = shapely.clip_by_rect(shapes.geometries(chosen), *_sides(window, raster))
        simple = shapely.simplify(clipped, 2**level / 2, preserve_topology=False)
        drawn = [
            {
                "number": int(chosen[at]),
                "class_id": None if shapes.classes is None else int(shapes.classes[chosen[at]]),
                "rings": _rings(simple[at]),
            }
            for at in _fitting(shapely.get_num_coordinates(simple))
        ]
        beside = int(shapely.is_empty(clipped).sum())  # their bounds touch the rectangle, they do not
        return {"shapes": drawn, "left_out": here - len(drawn) - beside}

    def facts(self, kind: Kind, name: str, raster: Raster, number: int) -> dict[str, Any]:
        """Columns of one zone, a row for each date and class, or of one polygon; LookupError for another number."""
        shapes = self._shapes(kind, name, raster)
        if not 0 <= number < len(shapes.bounds):
            raise LookupError(f"no {kind} {number} among {len(shapes.bounds)}")
        table = shapes.table(number)
        return {
            "columns": table.column_names,
            "rows": [[_plain(cell) for cell in row.values()] for row in table.to_pylist()],
        }

    def _urls(self, name: str) -> dict[Kind, Url]:
        return {"zones": self._run_url / ZONES_MAP, "polygons": self._run_url / f"{FOLDER}/{name}.parquet"}

    def _shapes(self, kind: Kind, name: str, raster: Raster) -> Shapes:
        if kind not in (urls := self._urls(name)):
            raise LookupError(f"no outlines {kind!r}; kinds: {', '.join(urls)}")
        try:
            etag = objects.info(urls[kind]).etag
        except FileNotFoundError as error:
            raise LookupError(f"the run has no {kind} of this raster") from error
        return self._opened(kind, urls[kind], etag, raster)

    def _open(self, kind: Kind, url: Url, etag: str, raster: Raster) -> Shapes:
        with objects.naming_damage(url, hint=_AGAIN):
            return _polygons(url, etag, raster) if kind == "polygons" else _zones(url, etag, raster)


def _sides(window: Window, raster: Raster) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of a window inside a raster."""
    right, bottom = window.x + window.width, window.y + window.height
    return max(window.x, 0), max(window.y, 0), min(right, raster.width), min(bottom, raster.height)


def _largest(bounds_n4: Float64, sides: tuple[int, int, int, int], least_px: float) -> tuple[Int64, int]:
    """Numbers of the shapes whose bounds touch a rectangle, the largest first, and how many touch it."""
    left, top, right, bottom = bounds_n4.T
    here = np.flatnonzero((left < sides[2]) & (right > sides[0]) & (top < sides[3]) & (bottom > sides[1]))
    width, height = (right - left)[here], (bottom - top)[here]
    order = np.argsort(-width * height, kind="stable")
    seen = order[np.maximum(width, height)[order] >= least_px]
    return here[seen][:MOST_OUTLINES], len(here)


def _fitting(points: Int64) -> list[int]:
    """Numbers of the shapes that are drawn, by their points: the first ones that fit into `MOST_POINTS` together."""
    chosen, left = [], MOST_POINTS
    for number, count in enumerate(points.tolist()):
        if 0 < count <= left:
            chosen.append(number)
            left -= count
    return chosen


def _rings(shape: Any) -> list[list[float]]:
    """Rings of a polygon, or of the polygons of a collection, as x, y, x, y and so on, to a tenth of a pixel."""
    shapely = load_shapely()
    parts = [part for part in shapely.get_parts([shape]) if part.geom_type == "Polygon"]
    return [(np.round(shapely.get_coordinates(ring), 1) + 0.0).ravel().tolist() for ring in shapely.get_rings(parts)]


def _plain(cell: Any) -> Any:
    return cell if cell is None or isinstance(cell, (int, float, str)) else str(cell)


# ---------------------------------------------------------------- polygons


def _polygons(url: Url, etag: str, raster: Raster) -> Shapes:
    """Polygons of a raster; geometries stay in the file, whose row groups are read as they are asked for."""
    with objects.open_read(url, etag=etag) as file:
        groups = pq.ParquetFile(file)
        ends = np.cumsum([groups.metadata.row_group(at).num_rows for at in range(groups.num_row_groups)])
        light = groups.read(columns=["class_id", BBOX])

    @lru_cache(KEPT_GROUPS)
    def group(number: int) -> pa.Table:
        with objects.naming_damage(url, hint=_AGAIN), objects.open_read(url, etag=etag) as opened:
            return pq.ParquetFile(opened).read_row_group(number)

    def place(number: int) -> tuple[int, int]:
        at = int(np.searchsorted(ends, number, side="right"))
        return at, number - (int(ends[at - 1]) if at else 0)

    def geometries(numbers: Int64) -> npt.NDArray[Any]:
        wkb = np.empty(len(numbers), object)
        for at in np.argsort(numbers, kind="stable").tolist():  # each row group once
            number, row = place(int(numbers[at]))
            wkb[at] = group(number)[GEOMETRY][row].as_py()
        return _to_pixels(load_shapely().from_wkb(wkb), raster)

    def table(number: int) -> pa.Table:
        at, row = place(number)
        return group(at).slice(row, 1).drop([GEOMETRY, BBOX])

    corners = [pc.struct_field(light[BBOX], [side]).to_numpy() for side in ("xmin", "ymin", "xmax", "ymax")]
    bounds = _bounds_in_pixels(np.stack(corners, axis=1), raster)
    return Shapes(bounds, light["class_id"].to_numpy().astype(np.int64), geometries, table)


def _to_pixels(shapes: npt.NDArray[Any], raster: Raster) -> npt.NDArray[Any]:
    """Shapes in coordinates of a raster, in its pixels; as they are where it has no transform."""
    if raster.transform is None:
        return shapes
    return np.asarray(load_shapely().transform(shapes, lambda xy: _pixels(xy, raster)))


def _pixels(xy_n2: Float64, raster: Raster) -> Float64:
    """(N, 2) column and row of coordinates, the inverse of the raster's transform."""
    if raster.transform is None:
        return xy_n2
    a, b, c, d, e, f = raster.transform
    x, y = xy_n2[:, 0] - c, xy_n2[:, 1] - f
    return np.stack([e * x - b * y, a * y - d * x], axis=1) / (a * e - b * d)


def _bounds_in_pixels(bounds_n4: Float64, raster: Raster) -> Float64:
    """(N, 4) bounds in pixels of bounds in coordinates: those of their four corners."""
    corners = np.stack([_pixels(bounds_n4[:, [x, y]], raster) for x in (0, 2) for y in (1, 3)])
    return np.hstack([corners.min(axis=0), corners.max(axis=0)])


# ---------------------------------------------------------------- zones


def _zones(url: Url, etag: str, raster: Raster) -> Shapes:
    """Zones that touch a raster, once each, whatever dates they are counted at."""
    features = read_features(
        objects.read_bytes(url, max_bytes=MOST_ZONES_BYTES, etag=etag), name=url.name, field="zone"
    )
    _, first = np.unique(np.array(features.values, object), return_index=True)
    laid = to_grid(features.take(np.sort(first)), raster)
    names = [features.values[at] for at in np.sort(first)[laid.indices].tolist()]

    def table(number: int) -> pa.Table:
        counted = url.parent / ZONES
        with objects.naming_damage(counted, hint=_AGAIN), objects.open_read(counted) as file:
            return pq.read_table(file, filters=[("zone", "==", names[number])])

    bounds = load_shapely().bounds(laid.shapes).reshape(-1, 4)
    return Shapes(bounds, None, lambda numbers: laid.shapes[numbers], table)
