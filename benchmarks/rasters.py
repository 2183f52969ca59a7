"""Measure rasters: reading against a loop of rasterio, assembly against GDAL's COG driver, seams, and memory by size.

    python -m benchmarks.rasters read             # windows of 2048 with a halo of 160
    python -m benchmarks.rasters assemble         # 20,000 x 20,000 pixels of a busy mask
    python -m benchmarks.rasters huge             # planning, reading and joining 100 gigapixels
    python -m benchmarks.rasters seams            # windows against the whole raster at once, network and CRF
    python -m benchmarks.rasters flow             # read, stub network, encode and commit on a local Ray

Both sides run in turns, each in a process of its own; figures are ratios of wall and CPU time, and peaks of memory.
Progress on stderr, one JSON line at the end on stdout.
"""

import argparse
import itertools
import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin
from rasterio.windows import Window as RasterioWindow

from infra import log as logs
from jobs import command_line
from pipeline.assemble.join import join_mask
from pipeline.assemble.plan import Assembly
from pipeline.assemble.squares import encode_square
from pipeline.classes import ClassMap, load_class_map
from pipeline.config import InferConfig, RefineConfig, SegmentConfig, TileConfig
from pipeline.datasets import farmland
from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Values, encode_directories
from pipeline.geotiff.raster import Raster
from pipeline.geotiff.window import decode_window
from pipeline.process_memory import status_bytes
from pipeline.records import Image, Item, Scored, UInt8, Window, items_from_table, scored_to_table
from pipeline.source.plan import plan_source, read_items
from pipeline.source.raster import NetworkBands, RasterShard, unpack
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

CHANNELS = ("red", "green", "blue", "nir")
CLASSES: ClassMap = load_class_map("farmland")
READ_PX, MASK_PX, SEAM_PX = 8192, 20_000, 3072
HUGE_PX = 320_000
"""Edge of a raster of 102 gigapixels."""
NEAR_PX = 8
"""Pixels this near to a seam are compared."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one side, in a process of its own."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    """Peak memory of the process, its imports included."""
    result: Any = None


def measured(work: Callable[..., Any], *arguments: Any) -> Cost:
    """Call a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, arguments))


def _measure(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Cost:
    wall, cpu = time.monotonic(), time.process_time()
    result = work(*arguments)
    return Cost(time.monotonic() - wall, time.process_time() - cpu, status_bytes("VmHWM") / 2**20, result)


def ratios(ours: list[Cost], theirs: list[Cost]) -> dict[str, float]:
    """Median over turns of ours over theirs."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "wall": round(median(a.wall_s / b.wall_s for a, b in pairs), 2),
        "cpu": round(median(a.cpu_s / b.cpu_s for a, b in pairs), 2),
    }


# Reading --------------------------------------------------------------------------------------------------------------


def write_texture(path: Path, side_px: int) -> None:
    """Write a raster of four bands with tiles of 512, DEFLATE, and a wedge without data."""
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": side_px, "height": side_px, "count": 4, "dtype": "uint8", "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "photometric": "minisblack"}
    with rasterio.open(path, "w", **profile, crs="EPSG:32614", transform=from_origin(0, 0, 1, 1)) as dataset:
        for band, name in enumerate(CHANNELS, start=1):
            coarse = rng.integers(20, 236, (side_px // 16, side_px // 16), np.uint8)
            smooth = np.kron(coarse, np.ones((16, 16), np.uint8)).astype(np.int16)
            pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 1, 255).astype(np.uint8)
            pixels[np.arange(side_px) + np.arange(side_px)[:, None] * 0.3 < side_px * 0.18] = 0
            dataset.write(pixels, band)
            dataset.set_band_description(band, name)


def raster_config(folder: Path) -> SegmentConfig:
    """Config of a run over the rasters of a folder."""
    facts = {"source": str(folder), "output": "o", "checkpoint": "c", "read": {"kind": "raster"}}
    return SegmentConfig.model_validate(facts | {"raster": {"max_gpx": 1e6}})


def read_with_atrous(folder: Path) -> dict[str, int]:
    """Plan, read and decode every window as the job does."""
    cfg, fetched = raster_config(folder), []
    read_range = objects.read_range

    def counted(url: Url, start: int, end: int, *, etag: str) -> bytes:
        fetched.append(end - start)
        return read_range(url, start, end, etag=etag)

    objects.read_range = counted  # type: ignore[assignment]
    pixels = 0
    for shard in plan_source(cfg, NetworkBands(CHANNELS)).shards:
        for item in read_items(shard, cfg.read, max_bytes=1):
            pixels += 0 if not item.data else int(decode_window(item.data).pixels_hwc[::512, ::512].sum())
    return {"sum": pixels, "bytes": sum(fetched)}


def read_with_rasterio(folder: Path, outers: list[Window], *, for_a_network: bool) -> dict[str, int]:
    """Read the same windows in a loop; `for_a_network` with bands last, as a network of uint8 images takes them."""
    pixels = 0
    with rasterio.open(next(folder.glob("*.tif"))) as dataset:
        for outer in outers:
            where = RasterioWindow(outer.x, outer.y, outer.width, outer.height)
            bands, mask = dataset.read(window=where), dataset.dataset_mask(window=where)
            if for_a_network:
                bands = np.ascontiguousarray(np.moveaxis(bands, 0, -1))
                bands[mask == 0] = 0
                pixels += int(bands[::512, ::512].sum())
    return {"sum": pixels}


def read_with_rasterio_for_a_network(folder: Path, outers: list[Window]) -> dict[str, int]:
    """The loop with bands last."""
    return read_with_rasterio(folder, outers, for_a_network=True)


def read_with_rasterio_alone(folder: Path, outers: list[Window]) -> dict[str, int]:
    """The loop without any work on the pixels."""
    return read_with_rasterio(folder, outers, for_a_network=False)


def compare_reading(folder: Path, turns: int) -> dict[str, Any]:
    """Read and decode all windows of a raster, against two loops of rasterio."""
    path = folder / "texture.tif"
    write_texture(path, READ_PX)
    shards = [unpack(shard) for shard in plan_source(raster_config(folder), NetworkBands(CHANNELS)).shards]
    outers = [one.outer(core) for one in shards if isinstance(one, RasterShard) for core in one.cores()]
    ours, network, alone = [], [], []
    for _ in range(turns):
        network.append(measured(read_with_rasterio_for_a_network, folder, outers))
        ours.append(measured(read_with_atrous, folder))
        alone.append(measured(read_with_rasterio_alone, folder, outers))
        log.info("%s", [round(cost[-1].wall_s, 2) for cost in (ours, network, alone)])
    if ours[0].result["sum"] != network[0].result["sum"]:
        raise ValueError("the sides read other pixels")
    return {
        "windows": len(outers),
        "over_loop_with_bands_last": ratios(ours, network),
        "over_loop_of_reads_alone": ratios(ours, alone),
        "bytes_over_file": round(ours[0].result["bytes"] / path.stat().st_size, 3),
        "peak_mib": round(max(cost.peak_mib for cost in ours)),
    }


# Flow -----------------------------------------------------------------------------------------------------------------


class StubInfer:
    """Stage in place of inference: one class wins everywhere, so that what is left is the flow."""

    def __init__(self, job: Any, ledger: Any, *, threads: int) -> None:
        self.ledger = ledger

    def __call__(self, table: Any) -> Any:
        """ITEM_SCHEMA to SCORED_SCHEMA, row for row."""
        scored, items = [], items_from_table(table)
        self.ledger.enter("infer", [item.key for item in items], "stub")
        for item in items:
            image = decode_window(item.data)
            logits = np.zeros((1, -(-image.height // 4), -(-image.width // 4)), np.float16)
            one = Scored(item, image.height, image.width, logits_khw=logits, class_ids=(1,), stride=4)
            scored.append(one)
        self.ledger.leave("infer", [one.item.key for one in scored], 0.0)
        return scored_to_table(scored)


def flow_with_a_stub(folder: Path) -> float:
    """Run the flow on a local Ray; seconds from the first window in a worker to the last commit."""
    from benchmarks import rasters  # noqa: PLC0415, PLW0406  # by its name, under which workers import it
    from infra import session  # noqa: PLC0415  # Ray
    from pipeline.run import flow  # noqa: PLC0415
    from pipeline.run.pending import PendingShard  # noqa: PLC0415
    from pipeline.run.stages import Job  # noqa: PLC0415
    from pipeline.run.workers import Workers  # noqa: PLC0415

    cfg = raster_config(folder).model_copy(update={"refine": RefineConfig(engine="none")})
    bands = NetworkBands(CHANNELS)
    flow.InferStage = rasters.StubInfer  # type: ignore[misc,assignment]
    with session.connect():
        ledger = flow.RemoteLedger()
        job = Job(cfg, CLASSES, Url(str(folder / "run")), "model", "config", preview_share=0.0, bands=bands)
        pending = [PendingShard(shard, frozenset()) for shard in plan_source(cfg, bands).shards]
        flow.run_flow(job, pending, Workers(1, 0.3, 0, 1.0, 2, 0.3, 1.0), ledger)
        return ledger.progress().working_s


def compare_flow(folder: Path, turns: int) -> dict[str, Any]:
    """The whole flow with a stub network, against the loop of rasterio with bands last."""
    write_texture(folder / "texture.tif", READ_PX)
    shards = [unpack(shard) for shard in plan_source(raster_config(folder), NetworkBands(CHANNELS)).shards]
    outers = [one.outer(core) for one in shards if isinstance(one, RasterShard) for core in one.cores()]
    pairs = []
    for _ in range(turns):
        loop = measured(read_with_rasterio_for_a_network, folder, outers).wall_s
        pairs.append((measured(flow_with_a_stub, folder).result, loop))
        log.info("%.1f s and %.1f s", *pairs[-1])
    return {"windows": len(outers), "working_s_over_loop": round(median(ours / theirs for ours, theirs in pairs), 2)}


# Assembly -------------------------------------------------------------------------------------------------------------


def busy_mask(height: int, width: int) -> UInt8:
    """(H, W) ids of six classes in blobs with ragged borders."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 6, (height // 40 + 2, width // 40 + 2), np.uint8)
    ids = np.empty((height, width), np.uint8)
    for y in range(0, height, 1000):
        rows = np.arange(y, min(y + 1000, height))[:, None] + rng.integers(-4, 5, (min(1000, height - y), 1))
        columns = np.arange(width)[None] + rng.integers(-4, 5, (1, width)) + (rows // 7) % 3
        ids[y : y + len(rows)] = coarse[np.clip(rows, 0, height) // 40, np.clip(columns, 0, width) // 40]
    return ids


def described(height: int, width: int, **place: Any) -> Raster:
    """Description of a raster that nobody reads; `place` is its transform and coordinate system."""
    return Raster("a.tif", "e", 1, height, width, "uint8", 4, (1, 2, 3, 4), CHANNELS, None, 0, **place)


def assembly_of(height: int, width: int) -> Assembly:
    """Assembly of one raster whose squares are written by hand."""
    return Assembly("a.tif", "s", described(height, width), (), (), "a")


def assemble_with_atrous(folder: Path) -> int:
    """Compress the squares of the mask and join them; the size of the file."""
    run_url, assembly = Url(str(folder / "ours")), assembly_of(MASK_PX, MASK_PX)
    for square in assembly.squares:
        ids = np.load(folder / f"{square.y}_{square.x}.npy")
        objects.put(assembly.block_url(run_url, square), encode_square(ids, holes=0, raster=assembly))
    return join_mask(run_url, assembly, CLASSES).size


def assemble_with_gdal(folder: Path) -> int:
    """Write the mask window by window, and copy it with the COG driver; the size of the file."""
    ids = np.load(folder / "mask.npy", mmap_mode="r")
    height, width = ids.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8", "nodata": 255}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 6}
    with rasterio.open(folder / "windows.tif", "w", **profile) as dataset:
        for y, x in itertools.product(range(0, height, 2048), range(0, width, 2048)):
            part = ids[y : y + 2048, x : x + 2048]
            dataset.write(part, 1, window=RasterioWindow(x, y, part.shape[1], part.shape[0]))
    options = {"COMPRESS": "DEFLATE", "LEVEL": "6", "OVERVIEW_RESAMPLING": "MODE", "NUM_THREADS": "1"}
    rasterio.shutil.copy(folder / "windows.tif", folder / "gdal.tif", driver="COG", **options)
    return (folder / "gdal.tif").stat().st_size


def compare_assembly(folder: Path, turns: int) -> dict[str, Any]:
    """Make a COG of a busy mask, against GDAL's own driver with the same codec."""
    mask = busy_mask(MASK_PX, MASK_PX)
    np.save(folder / "mask.npy", mask)
    for square in assembly_of(MASK_PX, MASK_PX).squares:
        part = mask[square.y : square.y + square.height, square.x : square.x + square.width]
        np.save(folder / f"{square.y}_{square.x}.npy", part)
    ours, theirs = [], []
    for _ in range(turns):
        ours.append(measured(assemble_with_atrous, folder))
        theirs.append(measured(assemble_with_gdal, folder))
        log.info("%.1f s and %.1f s", ours[-1].wall_s, theirs[-1].wall_s)
    return {
        "over_gdal": ratios(ours, theirs),
        "wall_s": round(min(cost.wall_s for cost in ours), 1),
        "bytes_over_gdal": round(ours[0].result / theirs[0].result, 3),
        "peak_mib": round(max(cost.peak_mib for cost in ours)),
    }


# Size -----------------------------------------------------------------------------------------------------------------


def write_repeated(path: Path, side_px: int) -> None:
    """Write a raster of any size whose tiles are all one tile: its lists are real, its data are a megabyte."""
    tile = np.random.default_rng(0).integers(1, 256, (512, 512, 4), np.uint8)
    count = (-(-side_px // 512)) ** 2
    page = {
        tiff.WIDTH: Values(tiff.LONG, np.array([side_px])),
        tiff.LENGTH: Values(tiff.LONG, np.array([side_px])),
        tiff.BITS: Values(tiff.SHORT, np.array([8] * 4)),
        tiff.COMPRESSION: Values(tiff.SHORT, np.array([1])),
        tiff.PHOTOMETRIC: Values(tiff.SHORT, np.array([1])),
        tiff.SAMPLES: Values(tiff.SHORT, np.array([4])),
        tiff.EXTRA_SAMPLES: Values(tiff.SHORT, np.zeros(3)),
        tiff.TILE_WIDTH: Values(tiff.LONG, np.array([512])),
        tiff.TILE_LENGTH: Values(tiff.LONG, np.array([512])),
        tiff.TILE_OFFSETS: Values(tiff.LONG8, np.zeros(count)),
        tiff.TILE_COUNTS: Values(tiff.LONG, np.full(count, tile.size)),
    }
    page[tiff.TILE_OFFSETS] = Values(tiff.LONG8, np.full(count, len(encode_directories([page], big=True))))
    path.write_bytes(encode_directories([page], big=True) + tile.tobytes())


def plan_alone(folder: Path) -> int:
    """Plan the rasters of a folder; the number of windows."""
    return plan_source(raster_config(folder), NetworkBands(CHANNELS)).rows or 0


def read_one_square(folder: Path) -> int:
    """Read the windows of one square in the middle of the raster."""
    cfg = raster_config(folder)
    shards = plan_source(cfg, NetworkBands(CHANNELS)).shards
    return sum(len(item.data) > 0 for item in read_items(shards[len(shards) // 2], cfg.read, max_bytes=1))


def write_squares(folder: Path, side_px: int) -> None:
    """Write the compressed squares of a mask of any size; all squares are alike."""
    assembly, run_url = assembly_of(side_px, side_px), Url(str(folder / "run"))
    encoded: dict[tuple[int, int], bytes] = {}
    for square in assembly.squares:
        size = square.height, square.width
        if size not in encoded:
            encoded[size] = encode_square(busy_mask(*size), holes=0, raster=assembly)
        objects.put(assembly.block_url(run_url, square), encoded[size])


def join_alone(folder: Path, side_px: int) -> int:
    """Join the squares of a mask; the size of the file."""
    return join_mask(Url(str(folder / "run")), assembly_of(side_px, side_px), CLASSES).size


def measure_sizes(folder: Path) -> dict[str, Any]:
    """Time and memory of planning, reading and joining at 1 and at 100 gigapixels."""
    facts: dict[str, Any] = {}
    for name, side_px in (("1_gpx", 32_768), ("100_gpx", HUGE_PX)):
        here = folder / name
        (here / "in").mkdir(parents=True)
        write_repeated(here / "in/a.tif", side_px)
        write_squares(here, side_px)
        plan, read, join = (
            measured(plan_alone, here / "in"),
            measured(read_one_square, here / "in"),
            measured(join_alone, here, side_px),
        )
        facts[name] = {
            "windows": plan.result,
            "plan_s": round(plan.wall_s, 1),
            "plan_peak_mib": round(plan.peak_mib),
            "reader_peak_mib": round(read.peak_mib),
            "join_peak_mib": round(join.peak_mib),
            "join_s": round(join.wall_s, 1),
            "cog_bytes": join.result,
        }
        log.info("%s: %s", name, facts[name])
    return facts


# Seams ----------------------------------------------------------------------------------------------------------------


def measure_seams(core_px: int) -> dict[str, Any]:
    """Share of pixels near seams whose class differs from that of the raster segmented at once."""
    from pipeline.infer.segmenter import Segmenter  # noqa: PLC0415  # torch
    from pipeline.models.checkpoint import load_checkpoint  # noqa: PLC0415
    from pipeline.refine.refiner import Refiner  # noqa: PLC0415

    scene = farmland.generate_scene(77, height=SEAM_PX, width=SEAM_PX).four_bands_hwc
    network = Segmenter(load_checkpoint("farmland_nir"), InferConfig(precision="fp32"), TileConfig())
    refiner = Refiner(RefineConfig(deadline_s=1e6, window_px=2 * SEAM_PX), CLASSES)

    def segment(image: Image, core: Window | None) -> tuple[UInt8, UInt8]:
        (prediction,) = network([image])
        scored = Scored(Item("a", "", ""), image.height, image.width, logits_khw=prediction.logits_khw, stride=4)
        scored = replace(scored, stride=network.stride)
        guide = replace(image, pixels_hwc=np.ascontiguousarray(image.pixels_hwc[..., :3]))
        refinement = refiner(scored, guide, core=core)
        return refinement.network_hw, refinement.mask_hw

    whole = segment(Image(scene, None), None)
    joined = tuple(np.empty_like(mask) for mask in whole)
    shard = RasterShard(described(SEAM_PX, SEAM_PX), Window(0, 0, SEAM_PX, SEAM_PX), core_px, 160)
    near = np.zeros((SEAM_PX, SEAM_PX), bool)
    for core in shard.cores():
        outer = shard.outer(core)
        pixels = scene[outer.y : outer.y + outer.height, outer.x : outer.x + outer.width]
        image = Image(np.ascontiguousarray(pixels), None, origin=(outer.y, outer.x))
        inner = replace(core, y=core.y - outer.y, x=core.x - outer.x)
        for target, part, mask in zip(joined, segment(image, inner), whole, strict=True):
            if part.shape != (core.height, core.width):
                raise ValueError(f"a window of {part.shape}, its core {core}, the raster {mask.shape}")
            target[core.y : core.y + core.height, core.x : core.x + core.width] = part
        for y in filter(None, {core.y}):
            near[y - NEAR_PX : y + NEAR_PX] = True
        for x in filter(None, {core.x}):
            near[:, x - NEAR_PX : x + NEAR_PX] = True
    shares = [{"near": (a != b)[near].mean(), "all": (a != b).mean()} for a, b in zip(joined, whole, strict=True)]
    network_share, refined_share = ({name: round(float(share), 5) for name, share in one.items()} for one in shares)
    return {"core_px": core_px, "halo_px": 160, "network": network_share, "refined": refined_share}


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for; returns the exit status."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("what", choices=("read", "flow", "assemble", "huge", "seams"))
    parser.add_argument("--turns", type=int, default=3, help="turns of both sides")
    parser.add_argument("--core-px", type=int, default=1024, help="seams: edge of the windows")
    args: argparse.Namespace = parser.parse_args(argv)
    logs.configure()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works: dict[str, Callable[[], dict[str, Any]]] = {
            "read": lambda: compare_reading(folder, args.turns),
            "flow": lambda: compare_flow(folder, args.turns),
            "assemble": lambda: compare_assembly(folder, args.turns),
            "huge": lambda: measure_sizes(folder),
            "seams": lambda: measure_seams(args.core_px),
        }
        print(json.dumps({"benchmark": f"rasters {args.what}", **works[args.what]()}))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
