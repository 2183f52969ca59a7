"""Measure all refinement engines side by side, each called as the refiner calls it, on the same images and logits.

    python -m benchmarks.densecrf --brief                        # one minute, on generated farmland

    python -m benchmarks.densecrf --photos FOLDER --plot densecrf.png

    python -m benchmarks.densecrf --halo --photos FOLDER --checkpoint FOLDER --enlarge 2    # width of halos

    python -m benchmarks.densecrf --stage --photos CAMVID        # the refine stage with default settings, real logits

Engines take turns in one process on one core. Figures are ratios of wall time and of CPU time, because other work on
the machine disturbs ratios less than times. Logits are synthetic, from colours at stride 8, as soft as those of a
DeepLab. Progress on stderr, one JSON line at the end on stdout.
"""

import argparse
import gc
import io
import json
import logging
import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from PIL import Image as PILImage
from scipy.spatial.distance import cdist

from infra import log as logs
from jobs import command_line
from pipeline.classes import ClassMap
from pipeline.config import DecodeConfig, InferConfig, RefineConfig, TileConfig
from pipeline.datasets import farmland
from pipeline.image.decode import decode_image
from pipeline.image.encode import segmented_row
from pipeline.infer.segmenter import Segmenter
from pipeline.models import checkpoint
from pipeline.process_memory import status_bytes
from pipeline.records import Float16, Float32, Image, Item, Scored, UInt8, Window
from pipeline.refine.engine import HALO_SIGMAS, REFINE_ENGINES, Engine, WindowInput, make_engine
from pipeline.refine.presets import CrfParams, crf_params
from pipeline.refine.refiner import Refiner, windows, with_halo
from pipeline.refine.unary import active_classes, softmax, upsample_window

log = logging.getLogger(__name__)

ENGINES: dict[str, dict[str, str]] = {
    "pydensecrf": {"engine": "pydensecrf"},
    "native lattice": {"engine": "native", "spatial": "lattice"},
    "native auto": {"engine": "native", "spatial": "auto"},
    **{name: {"engine": name} for name in REFINE_ENGINES if name not in ("pydensecrf", "native", "none")},
}
"""Settings by name; the first engine is the reference. Engines without a preset are other filters: their labels are
meant to differ."""
STAGE_ENGINES = ("pydensecrf", "native")
"""Engines whose refine stages are compared: the reference and the default."""
STRIDE = 8
ORACLE_PX = 48
"""Side of the crops for the exact mean field, which sums over all pairs of pixels."""
HALOS = (0, 0.5, 1, 1.5, 2, 3)
"""Halos that are measured, in sigmas of the widest kernel."""
SHIFT_PX = 8
"""Rows and columns cut off to move the lattice."""
LATTICE_ERROR = 0.002
"""Share of labels in which lattice and separable Gaussian differ: the error of an engine itself."""
SUFFIXES = (".jpg", ".jpeg", ".png")
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Case:
    """An image and its logits."""

    pixels_hwc: UInt8
    scored: Scored

    @property
    def window(self) -> Window:
        """The whole image."""
        return Window(0, 0, *self.pixels_hwc.shape[:2])

    @property
    def logits_khw(self) -> Float16:
        """(K, h, w), at the network's stride."""
        if self.scored.logits_khw is None:
            raise ValueError("a case without logits")
        return self.scored.logits_khw


@dataclass(frozen=True, slots=True)
class Workload:
    """One image to refine in a process of its own, described instead of sent."""

    photos: Path | None
    height: int
    width: int
    classes: int
    cfg: RefineConfig


def refine_config(engine: str, preset: str, iterations: int) -> RefineConfig:
    """Settings of one engine; `iterations` holds for CRFs only."""
    cfg = RefineConfig.model_validate({"preset": preset, "deadline_s": 1e6, **ENGINES[engine]})
    given = {"iterations": iterations} if REFINE_ENGINES[cfg.engine].has_preset else {}
    return RefineConfig.model_validate(cfg.model_dump() | given)


def sigma_px(cfg: RefineConfig) -> float:
    """Spatial sigma of the engine's widest kernel, pixels."""
    return REFINE_ENGINES[cfg.engine].sigma_px(cfg)


def pictures(photos: Path | None, count: int, height: int, width: int) -> Iterator[UInt8]:
    """Photographs spread evenly over a folder, resized; without a folder, generated farmland."""
    if photos is None:
        for seed in range(count):
            yield farmland.generate_scene(seed, height=height, width=width).image_hwc
        return
    paths = sorted(path for path in photos.iterdir() if path.suffix.lower() in SUFFIXES)
    for path in paths[:: max(1, len(paths) // count)][:count]:
        with PILImage.open(path) as file:
            yield np.array(file.convert("RGB").resize((width, height), PILImage.Resampling.LANCZOS))


def synthetic_case(pixels_hwc: UInt8, classes: int) -> Case:
    """Logits at stride 8 from brightness: each of `classes` is the largest in an equal share of the cells."""
    height, width, _ = pixels_hwc.shape
    cells = -(-height // STRIDE), -(-width // STRIDE)
    coarse = PILImage.fromarray(pixels_hwc).resize(cells[::-1], PILImage.Resampling.BOX)
    brightness = np.array(coarse) @ (0.5, 0.3, 0.2)
    label = np.digitize(brightness, np.quantile(brightness, np.linspace(0, 1, classes + 1)[1:-1]))
    noise = np.random.default_rng(0).normal(0, 1, (classes, *cells))
    logits = (np.eye(classes)[label].transpose(2, 0, 1) * 4 + noise).astype(np.float16)
    scored = Scored(Item(key="", shard="", etag=""), height=height, width=width, logits_khw=logits, stride=STRIDE)
    return Case(pixels_hwc, scored)


def labels(engine: Engine, case: Case, window: Window) -> UInt8:
    """Labels of one call of an engine, with the arguments the refiner gives it."""
    pixels_hwc = case.pixels_hwc[window.y : window.y + window.height, window.x : window.x + window.width]
    return engine(WindowInput(case.logits_khw, case.scored, window, pixels_hwc), deadline=math.inf).labels_hw


def time_engine(engine: Engine, case: Case) -> tuple[float, float, UInt8]:
    """Wall seconds, CPU seconds, labels."""
    wall, cpu = time.perf_counter(), time.process_time()
    labels_hw = labels(engine, case, case.window)
    return time.perf_counter() - wall, time.process_time() - cpu, labels_hw


def compare_engines(cases: list[Case], preset: str, iterations: int, repeats: int) -> dict[str, dict[str, float]]:
    """Time of pydensecrf over that of each engine, and the share of labels that differ; engines take turns."""
    engines = {name: made for name in ENGINES if (made := make_engine(refine_config(name, preset, iterations)))}
    for engine in engines.values():
        labels(engine, cases[0], Window(0, 0, 32, 32))  # warm-up
    rounds = []
    for case in (cases[number % len(cases)] for number in range(repeats)):
        rounds.append({name: time_engine(engine, case) for name, engine in engines.items()})
        log.info("    round %d of %d", len(rounds), repeats)
    return {name: _figures([(turn["pydensecrf"], turn[name]) for turn in rounds]) for name in ENGINES}


def _figures(pairs: list[tuple[tuple[float, float, UInt8], tuple[float, float, UInt8]]]) -> dict[str, float]:
    """Medians over the rounds of (pydensecrf's, one engine's) measurements."""
    return {
        "clock_ratio": round(median(theirs[0] / ours[0] for theirs, ours in pairs), 3),
        "cpu_ratio": round(median(theirs[1] / ours[1] for theirs, ours in pairs), 3),
        "cpu_s": round(median(ours[1] for _, ours in pairs), 4),
        "labels_differ": round(mean(float((theirs[2] != ours[2]).mean()) for theirs, ours in pairs), 6),
    }


def exact(pixels_hwc: UInt8, logits_khw: Float32, params: CrfParams) -> UInt8:
    """Labels of the exact mean field, over every pair of pixels in float64: (H, W)."""
    classes, height, width = logits_khw.shape
    place = np.argwhere(np.ones((height, width), bool)).astype(float)
    colour = pixels_hwc.reshape(-1, 3) / params.bi_rgb
    message = np.zeros((height * width, height * width))
    for weight, features in (
        (params.pos_w, place / params.pos_xy),
        (params.bi_w, np.concatenate([place / params.bi_xy, colour], 1)),
    ):
        kernel = np.exp(-0.5 * cdist(features, features, "sqeuclidean"))
        norm = 1 / np.sqrt(kernel.sum(1))
        message += weight * norm[:, None] * kernel * norm
    unary = logits_khw.reshape(classes, -1).astype(float)
    q = softmax(unary)
    for _ in range(params.iterations):
        q = softmax(unary + q @ message)
    best: UInt8 = q.argmax(0).astype(np.uint8).reshape(height, width)
    return best


def off_the_oracle(cases: list[Case], preset: str, iterations: int) -> dict[str, float]:
    """Share of labels that differ from the exact mean field, on crops from the middle of the images."""
    engines = {name: made for name in ENGINES if (made := make_engine(refine_config(name, preset, iterations)))}
    params = crf_params(refine_config("native auto", preset, iterations))
    off: dict[str, list[float]] = {name: [] for name in ENGINES}
    for case in cases:
        whole = case.window
        y, x = (whole.height - ORACLE_PX) // 2, (whole.width - ORACLE_PX) // 2
        crop = Window(y, x, ORACLE_PX, ORACLE_PX)
        pixels = case.pixels_hwc[y : y + ORACLE_PX, x : x + ORACLE_PX]
        exact_hw = exact(pixels, upsample_window(case.logits_khw, case.scored, crop), params)
        for name, engine in engines.items():
            off[name].append(float((labels(engine, case, crop) != exact_hw).mean()))
    return {name: round(mean(shares), 6) for name, shares in off.items()}


def _prepared(work: Workload) -> tuple[Engine, Case]:
    torch.set_num_threads(1)
    engine = make_engine(work.cfg)
    if engine is None:
        raise ValueError("none is no engine")
    return engine, synthetic_case(next(pictures(work.photos, 1, work.height, work.width)), work.classes)


def engine_peak_mib(work: Workload) -> float:
    """Peak resident memory of one call beyond its inputs, MiB; run it in a process of its own."""
    engine, case = _prepared(work)
    labels(engine, case, Window(0, 0, 32, 32))  # warm-up
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak, see proc_pid_clear_refs(5)
    before = status_bytes("VmRSS")
    labels(engine, case, case.window)
    return round((status_bytes("VmHWM") - before) / _MIB, 1)


def seconds_each(work: Workload, seconds: float) -> tuple[float, float]:
    """Mean wall and CPU seconds of a call, repeated for some seconds; processes beside it slow both down."""
    engine, case = _prepared(work)
    labels(engine, case, case.window)
    wall, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        labels(engine, case, case.window)
        done += 1
    return (time.perf_counter() - wall) / done, (time.process_time() - cpu) / done


def throughput(pool: Pool, work: Workload, seconds: float) -> dict[str, float]:
    """Images per wall second and per CPU second, of one process and of two."""
    rates = {}
    for name, count in (("one", 1), ("two", 2)):
        each = pool.starmap(seconds_each, [(work, seconds)] * count, chunksize=1)
        rates[f"{name}_per_s"] = round(sum(1 / wall for wall, _ in each), 3)
        rates[f"{name}_per_core_s"] = round(mean(1 / cpu for _, cpu in each), 3)
    return rates


def cores_per_gpu(rate: float, per_core_s: float) -> int:
    """Cores that refine as fast as a GPU segments."""
    return math.ceil(rate / per_core_s)


def measure_speed(args: argparse.Namespace) -> list[dict[str, object]]:
    """Ratios of every size, number of classes, preset and engine."""
    rows: list[dict[str, object]] = []
    for height, width in args.sizes:
        images = list(pictures(args.photos, args.images, height, width))
        for classes in args.classes:
            cases = [synthetic_case(pixels, classes) for pixels in images]
            for preset in args.presets:
                setting = {"size": f"{width}x{height}", "classes": classes, "preset": preset}
                log.info("%s: pydensecrf's time over each engine's", setting)
                for name, figures in compare_engines(cases, preset, args.iterations, args.repeats).items():
                    rows.append({**setting, "engine": name, **figures})
                    log.info("  %-16s %s", name, figures)
    return rows


def measure_exactness(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Share of labels that differ from the exact mean field, by preset and engine."""
    height, width = args.sizes[0]
    cases = [synthetic_case(pixels, min(args.classes)) for pixels in pictures(args.photos, args.crops, height, width)]
    shares = {preset: off_the_oracle(cases, preset, args.iterations) for preset in args.presets}
    log.info("share of labels off the exact mean field: %s", shares)
    return shares


def measure_processes(args: argparse.Namespace) -> list[dict[str, object]]:
    """Peak memory at the largest size; throughput, and cores per GPU, at the first size."""
    fresh, rows = multiprocessing.get_context("spawn"), []
    for preset in args.presets:
        for name in ENGINES:
            cfg = refine_config(name, preset, args.iterations)
            first, largest = (
                Workload(args.photos, height, width, max(args.classes), cfg)
                for height, width in (args.sizes[0], max(args.sizes, key=math.prod))
            )
            with fresh.Pool(1) as pool:
                peak = pool.apply(engine_peak_mib, (largest,))
            with fresh.Pool(2) as pool:
                rates = throughput(pool, first, args.seconds)
            cores = cores_per_gpu(args.rate, rates["two_per_core_s"])
            rows.append({"preset": preset, "engine": name, "peak_mib": peak, **rates, "cores_per_gpu": cores})
            log.info("%s", rows[-1])
    return rows


def sizing_line(args: argparse.Namespace, processes: list[dict[str, object]]) -> str:
    """Cores per GPU of every engine and preset, as a sentence."""
    height, width = args.sizes[0]
    needs = ", ".join(f"{row['engine']} {row['preset']} {row['cores_per_gpu']}" for row in processes)
    workload = f"images of {width}x{height} with {max(args.classes)} classes that can win"
    return f"cores per GPU at {args.rate:g} images/s, {workload}: {needs}"


def draw_ratios(speed: list[dict[str, object]], target: Path) -> None:
    """Draw bars of the ratios of CPU time, a panel per size and number of classes."""
    import matplotlib as mpl  # noqa: PLC0415  # only for the plot

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    panels = list(dict.fromkeys((row["size"], row["classes"]) for row in speed))
    presets = list(dict.fromkeys(str(row["preset"]) for row in speed))
    figure, axes = plt.subplots(1, len(panels), figsize=(1 + 3.2 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for number, preset in enumerate(presets):
            shown = [row for row in speed if (row["size"], row["classes"]) == panel and row["preset"] == preset]
            rows = np.arange(len(shown)) + (number - (len(presets) - 1) / 2) * 0.8 / len(presets)
            bars = axis.barh(rows, [row["cpu_ratio"] for row in shown], 0.8 / len(presets), label=preset)
            axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axis.set_yticks(range(len(ENGINES)), list(ENGINES))
        axis.set(title=f"{panel[0]}, {panel[1]} classes", xlabel="times as fast as pydensecrf")
        axis.margins(x=0.15)
    axes[0][0].invert_yaxis()
    axes[0][-1].legend(fontsize=8, loc="best")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)


def segmented(args: argparse.Namespace, name: str, photos: Path | None) -> Iterator[Case]:
    """Images with the logits of the network `name`, without pruned classes."""
    height, width = args.sizes[0]
    small = list(pictures(photos, args.images, height // args.enlarge, width // args.enlarge))
    large = [PILImage.fromarray(pixels).resize((width, height), PILImage.Resampling.BICUBIC) for pixels in small]
    images = [Image(np.array(picture), None) for picture in large]
    segmenter = Segmenter(checkpoint.load_checkpoint(name), InferConfig(), TileConfig())
    for image, prediction in zip(images, segmenter(images), strict=True):
        if prediction.logits_khw is None:
            raise RuntimeError(f"the network gave no logits: {prediction.error}")
        ids, _ = active_classes(prediction.logits_khw, prune=RefineConfig().prune)
        scored = Scored(
            Item(key="", shard="", etag=""),
            height=height,
            width=width,
            logits_khw=np.ascontiguousarray(prediction.logits_khw[list(ids)]),
            class_ids=ids,
            stride=segmenter.stride,
            align_corners=segmenter.align_corners,
        )
        yield Case(image.pixels_hwc, scored)


def in_windows(case: Case, refiner: Refiner, halo_px: int) -> UInt8:
    """Mask of an image refined in windows with a halo of `halo_px`."""
    refiner.halo_px = halo_px
    return refiner(case.scored, Image(case.pixels_hwc, None)).mask_hw


def lattice_shift_share(case: Case, cfg: RefineConfig) -> float:
    """Share of labels that change when `SHIFT_PX` rows and columns far away are cut off; NaN for a small image.

    The cells of a lattice start at the first pixel, so even wide halos leave differences of this order.
    """
    engine, far = make_engine(cfg), int(max(HALOS) * sigma_px(cfg))
    if engine is None or min(case.window.height, case.window.width) <= far:
        return math.nan
    cut = Window(SHIFT_PX, SHIFT_PX, case.window.height - SHIFT_PX, case.window.width - SHIFT_PX)
    whole, less = labels(engine, case, case.window), labels(engine, case, cut)
    return float((whole[far:, far:] != less[far - SHIFT_PX :, far - SHIFT_PX :]).mean())


def work_factor(height: int, width: int, core_px: int, halo_px: int) -> float:
    """Pixels refined, halos included, over pixels of the image."""
    outer = [with_halo(core, height, width, halo_px) for core in windows(height, width, core_px)]
    return sum(window.height * window.width for window in outer) / (height * width)


def measure_halos(args: argparse.Namespace, preset: str) -> tuple[dict[str, dict[str, float]], float]:
    """Share of labels that differ from the image refined whole, and work, by halo in sigmas; `lattice_shift_share`."""
    classes, cfg = (
        checkpoint.load_checkpoint(args.checkpoint).card.classes,
        refine_config("native auto", preset, args.iterations),
    )
    height, width = args.sizes[0]
    whole = Refiner(cfg.model_copy(update={"window_px": max(height, width)}), classes)
    parts = Refiner(cfg.model_copy(update={"window_px": args.window_px}), classes)
    shares: dict[float, list[float]] = {sigmas: [] for sigmas in HALOS}
    floor = []
    for case in segmented(args, args.checkpoint, args.photos):
        reference = in_windows(case, whole, 0)
        floor.append(lattice_shift_share(case, cfg))
        for sigmas, differing in shares.items():
            mask = in_windows(case, parts, int(sigmas * sigma_px(cfg)))
            differing.append(float((mask != reference).mean()))
        log.info("%s: %s moved %.6f", preset, {s: round(d[-1], 6) for s, d in shares.items()}, floor[-1])
    figures = {}
    for sigmas, differing in shares.items():
        work = work_factor(height, width, args.window_px, int(sigmas * sigma_px(cfg)))
        large = work_factor(8192, 8192, RefineConfig().window_px, int(sigmas * sigma_px(cfg)))
        figures[f"{sigmas:g}"] = {
            "differ": mean(differing),
            "worst": max(differing),
            "work": work,
            "work_default_window": large,
        }
    rounded = {sigmas: {name: round(value, 6) for name, value in row.items()} for sigmas, row in figures.items()}
    return rounded, round(mean(floor), 6)


def smallest_halo(halos: dict[str, dict[str, float]], limit: float) -> float | None:
    """The smallest halo, in sigmas, whose share of differing labels is below `limit`; None when there is none."""
    return min((float(name) for name, figures in halos.items() if figures["differ"] < limit), default=None)


def run_halos(args: argparse.Namespace) -> dict[str, object]:
    """Measure the halos of all presets."""
    results: dict[str, object] = {}
    for preset in args.presets:
        halos, floor = measure_halos(args, preset)
        smallest = smallest_halo(halos, LATTICE_ERROR)
        results[preset] = {"halos": halos, "moved": floor, "smallest": smallest}
        for sigmas, figures in halos.items():
            log.info("%s, halo of %s sigmas: %s", preset, sigmas, figures)
        log.info("%s: below %g from %s sigmas on, HALO_SIGMAS is %g", preset, LATTICE_ERROR, smallest, HALO_SIGMAS)
    return {"halo": results}


def stage_case(case: Case) -> Case:
    """The case as it reaches a refiner: with its image as a JPEG."""
    file = io.BytesIO()
    PILImage.fromarray(case.pixels_hwc).save(file, "JPEG", quality=95)
    item = replace(case.scored.item, data=file.getvalue())
    return Case(case.pixels_hwc, replace(case.scored, item=item))


def time_stage(refiner: Refiner, case: Case, classes: ClassMap) -> tuple[float, float, UInt8]:
    """CPU seconds of the refine stage for one image: decoding, refining, encoding the mask; of refining alone; mask."""
    started = time.process_time()
    image = decode_image(case.scored.item.data, DecodeConfig())
    decoded = time.process_time()
    refinement = refiner(case.scored, image)
    refined = time.process_time()
    segmented_row(case.scored, refinement, None, classes=classes, model_fp="", config_fp="")
    return time.process_time() - started, refined - decoded, refinement.mask_hw


def measure_stage(args: argparse.Namespace, name: str, photos: Path | None) -> dict[str, float]:
    """The refine stage with default settings and with pydensecrf in turns, on the logits of the network `name`.

    Both get the same classes: those that can win, as the stage before sends them.
    """
    classes = checkpoint.load_checkpoint(name).card.classes
    settings = {engine: RefineConfig.model_validate({"engine": engine, "deadline_s": 1e6}) for engine in STAGE_ENGINES}
    refiners = {engine: Refiner(cfg, classes) for engine, cfg in settings.items()}
    cases = [stage_case(case) for case in segmented(args, name, photos)]
    for refiner in refiners.values():
        time_stage(refiner, cases[0], classes)  # warm-up
    turns = [
        {engine: time_stage(refiner, case, classes) for engine, refiner in refiners.items()}
        for case in cases
        for _ in range(args.repeats)
    ]
    theirs, ours = ([turn[engine] for turn in turns] for engine in STAGE_ENGINES)
    return {
        "stage_ratio": round(median(slow[0] / fast[0] for slow, fast in zip(theirs, ours, strict=True)), 2),
        "refine_ratio": round(median(slow[1] / fast[1] for slow, fast in zip(theirs, ours, strict=True)), 2),
        "pydensecrf_per_core_s": round(1 / mean(slow[0] for slow in theirs), 2),
        "native_per_core_s": round(1 / mean(fast[0] for fast in ours), 2),
        "labels_differ": round(mean(float((a[2] != b[2]).mean()) for a, b in zip(theirs, ours, strict=True)), 6),
        "classes": round(mean(len(case.logits_khw) for case in cases), 1),
    }


def run_stage(args: argparse.Namespace) -> dict[str, object]:
    """Measure the refine stage on the logits of the shipped networks; `camvid` needs photographs of streets."""
    networks = {"farmland": None} | ({"camvid": args.photos} if args.photos else {})
    results = {name: measure_stage(args, name, photos) for name, photos in networks.items()}
    for name, figures in results.items():
        log.info("refine stage, network %s: %s", name, figures)
    return {"stage": results}


def run_engines(args: argparse.Namespace) -> dict[str, object]:
    """Measure speed and exactness; without `--brief` also memory, throughput and cores per GPU."""
    speed = measure_speed(args)
    if args.plot:
        draw_ratios(speed, args.plot)
    results: dict[str, object] = {"speed": speed, "off_the_oracle": measure_exactness(args)}
    if not args.brief:
        processes = measure_processes(args)
        results |= {"processes": processes, "sizing": sizing_line(args, processes)}
        log.info("%s", results["sizing"])
    return results


def size(text: str) -> tuple[int, int]:
    """Height and width of `HxW`."""
    height, width = map(int, text.split("x"))
    return height, width


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; default sizes depend on `--halo` and `--stage`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEG or PNG photographs; unset: generated farmland")
    parser.add_argument("--images", type=int, default=4, help="images to use")
    parser.add_argument("--sizes", type=size, nargs="+", help="image sizes, height x width")
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 5], help="numbers of classes")
    parser.add_argument("--presets", nargs="+", default=["densecrf-demo", "deeplab-v2"], help="published parameters")
    parser.add_argument("--iterations", type=int, default=10, help="iterations of every CRF")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each calls every engine once")
    parser.add_argument("--crops", type=int, default=16, help="crops compared with the exact mean field")
    parser.add_argument("--seconds", type=float, default=4, help="duration of a throughput measurement, seconds")
    parser.add_argument("--rate", type=float, default=100, help="images/s of one GPU, for the sizing line")
    parser.add_argument("--plot", type=Path, help="PNG or SVG file for a plot of the ratios")
    parser.add_argument("--brief", action="store_true", help="one small size, one round, speed and exactness only")
    parser.add_argument("--halo", action="store_true", help="measure halos instead of engines")
    parser.add_argument("--stage", action="store_true", help="measure the refine stage with the networks' own logits")
    parser.add_argument("--checkpoint", default="farmland", help="halo: checkpoint that gives the logits")
    parser.add_argument("--enlarge", type=int, default=1, help="halo, stage: reduce photographs first, then enlarge")
    parser.add_argument("--window-px", type=int, default=256, help="halo: side of a window without its halo, pixels")
    args = parser.parse_args(argv)
    sizes = [(720, 960)] if args.halo else [(360, 480)] if args.stage else [(375, 500), (1024, 1024)]
    args.sizes = args.sizes or sizes
    if args.brief:
        args.sizes, args.classes, args.repeats, args.crops = args.sizes[:1], args.classes[:1], 1, 4
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure, then print one JSON line with every figure."""
    args = parse_arguments(argv)
    logs.configure()
    torch.set_num_threads(1)
    measure = run_halos if args.halo else run_stage if args.stage else run_engines
    print(json.dumps(measure(args)))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
