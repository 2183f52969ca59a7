"""Measure polygons and statistics of zones of a mask, against rasterio, rasterstats and exactextract.

    python -m benchmarks.fields polygons          # 20,000 x 20,000 pixels of a busy mask
    python -m benchmarks.fields zones             # 10,000 fields on the same mask
    python -m benchmarks.fields index             # a million zones on 400 rasters: which lie where

Both sides read the same Cloud Optimized GeoTIFF, in turns, each in a process of its own. Progress on stderr, one JSON
line at the end on stdout.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import exactextract
import geopandas
import numpy as np
import pyarrow.parquet as pq
import rasterio
import rasterio.shutil
import rasterstats
import shapely
from rasterio import features
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterioWindow

from benchmarks.rasters import CLASSES, busy_mask, described, measured, ratios
from infra import log as logs
from jobs import command_line
from pipeline.assemble.assemble import group_squares
from pipeline.assemble.layers import Block
from pipeline.assemble.masks import FileMasks, open_mask_file
from pipeline.assemble.plan import Assembly
from pipeline.config import PolygonsConfig
from pipeline.polygons import output as polygons
from pipeline.polygons.table import NamedClasses
from pipeline.refine.window import windows
from pipeline.store.url import Url
from pipeline.vector.files import load_features
from pipeline.vector.grid import to_grid
from pipeline.zones import output as zones
from pipeline.zones.counts import zone_sums
from pipeline.zones.plan import ZonePlan, find_squares
from pipeline.zones.work import ZoneWork, do_squares

log = logging.getLogger(__name__)

MASK_PX, SMALL_PX, FIELDS = 20_000, 8192, 10_000
CRS = "EPSG:32614"
LEFT, TOP, PIXEL_M = 485900.0, 5209245.0, 0.5
_BLOCK_PX = 2048


def write_mask(path: Path, side_px: int) -> None:
    """Write a busy mask as a COG."""
    profile = {"driver": "GTiff", "height": side_px, "width": side_px, "count": 1, "dtype": "uint8", "nodata": 255}
    place = {"crs": CRS, "transform": from_origin(LEFT, TOP, PIXEL_M, PIXEL_M)}
    plain = path.with_suffix(".plain.tif")
    with rasterio.open(plain, "w", **profile, **place, tiled=True, compress="deflate") as dataset:
        dataset.write(busy_mask(side_px, side_px), 1)
    rasterio.shutil.copy(plain, path, driver="COG", COMPRESS="DEFLATE", OVERVIEWS="NONE")
    plain.unlink()


def write_fields(path: Path, side_px: int, count: int) -> None:
    """Write rotated fields that cover a mask without overlap, by rows, in degrees."""
    across = round(count**0.5)
    step = side_px * PIXEL_M / across
    x, y = (values.ravel() for values in np.meshgrid(np.arange(across) * step, np.arange(across) * step))
    fields = shapely.box(LEFT + x, TOP - y - 0.97 * step, LEFT + x + 0.97 * step, TOP - y)
    turned = [shapely.affinity.rotate(field, 3) for field in fields]
    frame = geopandas.GeoDataFrame({"name": [f"f{number}" for number in range(len(turned))]}, geometry=turned, crs=CRS)
    frame.to_crs(4326).to_parquet(path)


# Polygons -------------------------------------------------------------------------------------------------------------


def polygons_with_atrous(mask: Path, simplify_px: float) -> int:
    """Polygons as `atrous polygons` makes them; their number."""
    file = open_mask_file(Url(str(mask)))
    masks = FileMasks(file, Url(str(mask.parent / "ours")), CLASSES)
    cfg = PolygonsConfig(min_ha=0, simplify_px=simplify_px)
    work, assembly = polygons.PolygonWork(masks, NamedClasses(CLASSES.names), cfg), file.assembly()
    for group in group_squares(polygons.squares_left(work, [assembly])):
        polygons.do_squares(group, work=work)
    polygons.do_join(assembly, work=work)
    rows: int = pq.read_metadata(mask.parent / f"ours/polygons/{mask.stem}.parquet").num_rows
    return rows


def polygons_with_rasterio(mask: Path) -> int:
    """All polygons at once, as a script does, with geodesic hectares; their number."""
    with rasterio.open(mask) as dataset:
        found = list(features.shapes(rasterio.band(dataset, 1), connectivity=4, transform=dataset.transform))
    shapes = [shapely.geometry.shape(shape) for shape, _ in found]
    frame = geopandas.GeoDataFrame({"class_id": [int(value) for _, value in found]}, geometry=shapes, crs=CRS)
    frame["hectares"] = frame.to_crs("EPSG:6933").area / 1e4
    frame.to_parquet(mask.parent / "theirs.parquet", write_covering_bbox=True, compression="zstd")
    return len(frame)


def compare_polygons(folder: Path, turns: int) -> dict[str, Any]:
    """Polygons of a small mask on both sides, and of the large one on ours."""
    small, large = folder / "small.tif", folder / "large.tif"
    write_mask(small, SMALL_PX)
    write_mask(large, MASK_PX)
    ours, theirs = [], []
    for _ in range(turns):
        ours.append(measured(polygons_with_atrous, small, 0.0))
        theirs.append(measured(polygons_with_rasterio, small))
        (folder / f"ours/polygons/{small.stem}.parquet").unlink()
        log.info("%.1f s and %.1f s", ours[-1].wall_s, theirs[-1].wall_s)
    if ours[0].result != theirs[0].result:
        raise ValueError(f"{ours[0].result} and {theirs[0].result} polygons")
    whole = measured(polygons_with_atrous, large, 0.0)
    log.info("%d pixels across: %.0f s, %.0f MiB", MASK_PX, whole.wall_s, whole.peak_mib)
    simple = measured(polygons_with_atrous, small, 1.0)
    return {
        "over_rasterio": ratios(ours, theirs),
        "peak_mib": [round(max(cost.peak_mib for cost in side)) for side in (ours, theirs)],
        "polygons": [ours[0].result, whole.result],
        "large_wall_s": round(whole.wall_s),
        "large_cpu_s": round(whole.cpu_s),
        "large_peak_mib": round(whole.peak_mib),
        "simplified_over_exact": round(simple.cpu_s / median(cost.cpu_s for cost in ours), 2),
    }


# Zones ----------------------------------------------------------------------------------------------------------------


def zones_with_atrous(mask: Path, fields: Path) -> list[int]:
    """Pixels of each class in all fields, as `atrous zones` counts them."""
    file = open_mask_file(Url(str(mask)))
    masks, read = (
        FileMasks(file, Url(str(mask.parent / "ours")), CLASSES),
        load_features(Url(str(fields)), field="name"),
    )
    work, plan = ZoneWork(masks, len(CLASSES), "x", bands=False), ZonePlan()
    units = zones.put_squares(work, find_squares(read, [file.assembly()], plan))
    for group in zones.groups_left(work, units):
        do_squares(group, work=work)
    ids = [str(value) for value in read.values]
    table, _ = zones.write_tables(work, units, plan, read, ids, classes=CLASSES)
    zones.delete_waiting(work)
    return pixels_of(table.to_pandas())


def pixels_of(rows: Any) -> list[int]:
    """Pixels of each class over all fields."""
    rows = rows[rows["class_id"].notna()]
    return rows.groupby("class_id")["pixels"].sum().reindex(range(len(CLASSES)), fill_value=0).astype(int).tolist()


def count_bare(mask: Path, _: Path) -> int:
    """Read the mask by blocks and count its ids, without any field: what no counting of zones does without."""
    counts = np.zeros(256, np.int64)
    with rasterio.open(mask) as dataset:
        for y in range(0, dataset.height, _BLOCK_PX):
            for x in range(0, dataset.width, _BLOCK_PX):
                size = min(_BLOCK_PX, dataset.width - x), min(_BLOCK_PX, dataset.height - y)
                counts += np.bincount(dataset.read(1, window=RasterioWindow(x, y, *size)).ravel(), minlength=256)
    return int(counts.sum())


def count_alone(mask: Path, fields: Path) -> float:
    """Seconds of counting fields over those of a bare bincount of the same blocks, both in memory."""
    file, read = open_mask_file(Url(str(mask))), load_features(Url(str(fields)), field="name")
    found = to_grid(read, file.raster)
    tree, spent = shapely.STRtree(found.shapes), np.zeros(2)
    with file.open() as read_window:
        for window in windows(file.raster.height, file.raster.width, _BLOCK_PX):
            block = Block(window, read_window(window), None, None, ())
            box = shapely.box(window.x, window.y, window.x + window.width, window.y + window.height)
            times = [time.perf_counter()]
            near = tree.query(box, predicate="intersects")
            for _ in zone_sums(block, found.shapes[near], {}, len(CLASSES)):
                pass
            times.append(time.perf_counter())
            np.bincount(block.ids_hw.ravel(), minlength=256)
            spent += np.diff([*times, time.perf_counter()])
    return float(spent[0] / spent[1])


def zones_with_rasterstats(mask: Path, fields: Path) -> list[int]:
    """Counts of rasterstats, whose fields must be in the raster's coordinate system."""
    frame = geopandas.read_parquet(fields).to_crs(CRS)
    found = rasterstats.zonal_stats(frame.geometry, str(mask), categorical=True)
    return [int(sum(one.get(index, 0) for one in found)) for index in range(len(CLASSES))]


def zones_with_exactextract(mask: Path, fields: Path) -> list[int]:
    """Shares of exactextract, times the pixels of each field."""
    frame = geopandas.read_parquet(fields).to_crs(CRS)
    found = exactextract.exact_extract(str(mask), frame, ["count", "unique", "frac"], output="pandas")
    counts = np.zeros(len(CLASSES))
    for row in found.itertuples():
        counts[np.asarray(row.unique, int)] += np.asarray(row.frac) * row.count
    return [round(count) for count in counts]


def compare_zones(folder: Path, turns: int) -> dict[str, Any]:
    """Statistics of fields on each side."""
    mask, fields = folder / "mask.tif", folder / "fields.parquet"
    write_mask(mask, MASK_PX)
    write_fields(fields, MASK_PX, FIELDS)
    sides: dict[str, Callable[..., Any]] = {
        "bare": count_bare,
        "rasterstats": zones_with_rasterstats,
        "exactextract": zones_with_exactextract,
    }
    ours, others = [], {name: [] for name in sides}
    for _ in range(turns):
        for name, work in sides.items():
            others[name].append(measured(work, mask, fields))
        ours.append(measured(zones_with_atrous, mask, fields))
        log.info("%.1f s; %s", ours[-1].wall_s, {name: round(costs[-1].wall_s, 1) for name, costs in others.items()})
    alone = [measured(count_alone, mask, fields).result for _ in range(turns)]
    facts: dict[str, Any] = {"counting_over_bincount": round(median(alone), 2)}
    facts |= {f"over_{name}": ratios(ours, costs) for name, costs in others.items()}
    pixels = {"ours": ours[0].result, **{name: others[name][0].result for name in ("rasterstats", "exactextract")}}
    return facts | {"peak_mib": round(max(cost.peak_mib for cost in ours)), "pixels": pixels}


# Index ----------------------------------------------------------------------------------------------------------------


def find_million(folder: Path) -> dict[str, float]:
    """Find the squares of a million zones on 400 rasters; seconds of reading them and of finding."""
    began = time.monotonic()
    read = load_features(Url(str(folder / "million.parquet")), field="name")
    found = time.monotonic()
    pairs = sum(len(numbers) for _, numbers, _ in find_squares(read, tiles(), ZonePlan()))
    return {"read_s": found - began, "find_s": time.monotonic() - found, "pairs": pairs}


def tiles() -> list[Assembly]:
    """400 rasters side by side, of 10,000 pixels across."""
    out = []
    wkt = rasterio.crs.CRS.from_user_input(CRS).to_wkt()
    for number in range(400):
        row, column = divmod(number, 20)
        place = (PIXEL_M, 0.0, LEFT + column * 5000, 0.0, -PIXEL_M, TOP - row * 5000)
        raster = described(10_000, 10_000, transform=place, crs_wkt=wkt)
        out.append(Assembly(f"{number}.tif", "s", raster, (), (), str(number)))
    return out


def measure_index(folder: Path) -> dict[str, Any]:
    """Time and memory of finding a million zones on 400 rasters."""
    write_fields(folder / "million.parquet", 200_000, 1_000_000)
    cost = measured(find_million, folder)
    seconds: dict[str, float] = {name: round(value, 1) for name, value in cost.result.items()}
    return seconds | {"peak_mib": round(cost.peak_mib)}


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for; returns the exit status."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("what", choices=("polygons", "zones", "index"))
    parser.add_argument("--turns", type=int, default=3, help="turns of both sides")
    args: argparse.Namespace = parser.parse_args(argv)
    logs.configure()
    with tempfile.TemporaryDirectory() as name:
        works = {
            "polygons": lambda: compare_polygons(Path(name), args.turns),
            "zones": lambda: compare_zones(Path(name), args.turns),
            "index": lambda: measure_index(Path(name)),
        }
        print(json.dumps({"benchmark": f"fields {args.what}", **works[args.what]()}))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
