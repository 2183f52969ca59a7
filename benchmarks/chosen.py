"""Compare labels of chosen images with labels of random ones: mIoU after training on 40 of either.

    python -m benchmarks.chosen --seeds 1 --steps 20 --pool 60    # half a minute on one core

    python -m benchmarks.chosen                   # first table of docs/benchmarks/chosen.md, a quarter of an hour
    python -m benchmarks.chosen --pool-of flight  # second table: nine in ten images overlap, as frames of a flight do

Every seed has a pool of generated farmland without labels, and few images with labels. A network trained on the few
segments the pool as `atrous segment` does, and 40 images are chosen from the rows of that run as by `atrous select`;
40 others are drawn at random from the same pool. The network is trained further on the few with either, in the same
way, and judged on the same unseen scenes. An interrupted benchmark resumes. Progress on stderr, tables on stdout.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.weak import png
from infra import log as logs
from jobs import command_line
from jobs import run as runs
from pipeline.classes import load_class_map
from pipeline.config import SegmentConfig
from pipeline.datasets import farmland
from pipeline.models.card import load_card
from pipeline.records import UInt8
from pipeline.select import output as selection
from pipeline.source.plan import plan_source
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import loop, run
from pipeline.training.config import TrainConfig
from pipeline.training.ranks import Group

log = logging.getLogger(__name__)

IMAGE_PX, CROP_PX = 128, 96
FEW, LABELLED, JUDGED = 20, 40, 150
"""Images that the first network is trained on, those that are labelled then, and those that judge."""
FIRST_JUDGED_SEED = 900_000
FIRST_POOL_SEED, SEEDS_APART = 10_000_000, 10_000
"""Scenes of seed s begin at `FIRST_POOL_SEED + SEEDS_APART * s`."""
FLIGHT_SHARE, FLIGHT_STEP_PX = 0.9, 26
"""Share of a pool that are frames of one flight, and the way from one to the next: 80 % of it is in its neighbour."""
LEVEL = 0.95
_SETTINGS: dict[str, Any] = {
    "classes": "farmland",
    "network": {
        "name": "deeplab_v3plus",
        "options": {
            "backbone": "mobilenet_v2",
            "width_multiplier": 0.35,
            "aspp_channels": 64,
            "decoder_channels": 64,
            "low_level_channels": 16,
            "separable": True,
        },
    },
    # As in the recipe `farmland`, whose network is wider, on smaller crops.
    "augment": {
        "crop_px": (CROP_PX, CROP_PX),
        "scale": (0.85, 1.2),
        "flip": False,
        "symmetries": True,
        "jpeg": 70,
    },
    "optimise": {"kind": "adamw", "lr": 0.003, "weight_decay": 0.01, "batch": 8},
    "runtime": {"device": "cpu", "loader_workers": 0, "tracker": "none"},
}


# ---------------------------------------------------------------- images


@dataclass(frozen=True, slots=True)
class Example:
    """Image of a pool, with the label that its annotator would draw."""

    name: str
    jpeg: bytes
    label_hw: UInt8


def plain_pool(first_seed: int, count: int) -> Iterator[Example]:
    """Scenes as they come, each of another place."""
    for seed in range(first_seed, first_seed + count):
        scene = farmland.generate_scene(seed, height=IMAGE_PX, width=IMAGE_PX)
        yield Example(f"place_{seed}", farmland.encode_jpeg(scene), scene.label_hw)


def flight_pool(first_seed: int, count: int) -> Iterator[Example]:
    """Frames of one flight, which overlap, and plain scenes as the other tenth."""
    frames = round(FLIGHT_SHARE * count)
    rows = int(np.ceil(np.sqrt(frames)))
    side_px = IMAGE_PX + FLIGHT_STEP_PX * (rows - 1)
    land = farmland.generate_scene(first_seed, height=side_px, width=side_px)
    for row, column in islice(product(range(rows), repeat=2), frames):
        y, x = row * FLIGHT_STEP_PX, column * FLIGHT_STEP_PX
        window = np.s_[y : y + IMAGE_PX, x : x + IMAGE_PX]
        frame = farmland.Scene(land.image_hwc[window], land.label_hw[window], land.nir_hw[window])
        yield Example(f"frame_{row:02}_{column:02}", farmland.encode_jpeg(frame), frame.label_hw)
    yield from plain_pool(first_seed + 1, count - frames)


POOLS: dict[str, Callable[[int, int], Iterator[Example]]] = {"places": plain_pool, "flight": flight_pool}


def write_data(data: Url, seed: int, *, pool: int, pool_of: str) -> None:
    """Write `pool/` without labels, `start/` and `val/` with labels, and `truth/`, what an annotator would draw."""
    if objects.exists(data / "written"):
        return
    examples = list(POOLS[pool_of](FIRST_POOL_SEED + SEEDS_APART * seed, FEW + pool))
    few = {examples[i].name for i in np.random.default_rng(seed).permutation(len(examples))[:FEW].tolist()}
    for example in examples:
        if example.name in few:
            write_labelled(data / "start", example)
        else:
            objects.put(data / "pool" / f"{example.name}.jpg", example.jpeg)
            objects.put(data / "truth" / f"{example.name}.png", png(example.label_hw))
    for example in plain_pool(FIRST_JUDGED_SEED, JUDGED):
        write_labelled(data / "val", example)
    objects.put(data / "written", b"")


def write_labelled(part: Url, example: Example) -> None:
    """Write an image and its label into a part of labelled data."""
    objects.put(part / "images" / f"{example.name}.jpg", example.jpeg)
    objects.put(part / "labels" / f"{example.name}.png", png(example.label_hw))


def annotate(data: Url, keys: Sequence[str], part: str) -> None:
    """Label some images of the pool: copy them, with their truth, into a part of labelled data."""
    for key in keys:
        name = key.removesuffix(".jpg")
        objects.put(data / part / "images" / key, objects.read_bytes(data / "pool" / key))
        objects.put(data / part / "labels" / f"{name}.png", objects.read_bytes(data / "truth" / f"{name}.png"))


# ---------------------------------------------------------------- runs


def train_once(
    scratch: Path, seed: int, parts: tuple[str, ...], *, steps: int, output: str, initial: str | None
) -> list[float]:
    """Train on parts of the data of a seed; mIoU and the IoU of every class on `val` after the last step, 0 to 1."""
    settings = _SETTINGS | {
        "data": str(scratch / f"data-{seed}"),
        "output": str(scratch / output),
        "seed": seed,
        "sets": {"train": parts},
        "network": _SETTINGS["network"] | {"initial": initial},
        "schedule": {"steps": steps, "warmup": 20},
        "validation": {"every": steps, "samples": 0},
        "runtime": _SETTINGS["runtime"] | {"cache": str(scratch / "cache")},
    }
    cfg = TrainConfig.model_validate(settings)
    loop.train_phases(run.open_run(cfg, Group(), about={}))
    measured: dict[str, Any] = load_card(cfg.output).training
    return [float(measured[name]) for name in ("miou", *(f"iou/{name}" for name in load_class_map("farmland").names))]


def choose(data: Url, network: str, output: Path) -> list[str]:
    """Segment the pool with a network, as `atrous segment`, and choose from the rows, as `atrous select`; keys."""
    settings = {"source": [str(data / "pool")], "output": str(output / "masks"), "checkpoint": network}
    cfg = SegmentConfig.model_validate(settings | {"runtime": {"flow": "processes", "previews": 0}})
    segmented = runs.identify(cfg)
    runs.carry_out(segmented, plan_source(segmented.cfg, segmented.bands))
    selection.select_images(segmented.url, LABELLED, Url(str(output / "chosen")))
    return [str(key) for key in selection.read_selection(Url(str(output / "chosen")))["key"].to_pylist()]


@dataclass(frozen=True, slots=True)
class Compared:
    """One seed; scores as of `train_once`."""

    seed: int
    start: list[float]
    random: list[float]
    chosen: list[float]
    random_places: int
    """Random images that are no frames of the flight."""
    chosen_places: int
    """Chosen images that are no frames of the flight."""


def compare(scratch: Path, seed: int, *, pool: int, pool_of: str, steps: int) -> Compared:
    """Train the network of one seed further with chosen and with random labels."""
    data = Url(str(scratch / f"data-{seed}"))
    write_data(data, seed, pool=pool, pool_of=pool_of)
    started = train_once(scratch, seed, ("start",), steps=steps, output=f"start-{seed}", initial=None)
    network = str(scratch / f"start-{seed}")
    in_pool = sorted(file.path for file in objects.list_files(data / "pool"))
    drawn = np.random.default_rng([seed, 1]).choice(len(in_pool), LABELLED, replace=False).tolist()
    keys = {"random": [in_pool[i] for i in drawn], "chosen": choose(data, network, scratch / f"select-{seed}")}
    scores = {}
    for part, some in keys.items():
        annotate(data, some, part)
        output = f"{part}-{seed}"
        scores[part] = train_once(scratch, seed, ("start", part), steps=steps, output=output, initial=network)
        log.info("seed %d, %s: mIoU %.3f, start %.3f", seed, part, scores[part][0], started[0])
    places = {part: sum(key.startswith("place") for key in some) for part, some in keys.items()}
    return Compared(seed, started, scores["random"], scores["chosen"], places["random"], places["chosen"])


# ---------------------------------------------------------------- tables


def paired_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences with the ends of Student's interval at `LEVEL`; infinite for one difference."""
    middle, count = mean(differences), len(differences)
    if count == 1:
        return middle, -np.inf, np.inf
    half = float(student.ppf((1 + LEVEL) / 2, count - 1)) * stdev(differences) / np.sqrt(count)
    return middle, middle - half, middle + half


def in_points(differences: Sequence[float]) -> str:
    """`+1.2 (-0.3 to +2.7)`: mean and interval of differences of scores from 0 to 1, in points of a percent."""
    middle, low, high = (100 * value for value in paired_interval(differences))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def table(compared: Sequence[Compared]) -> str:
    """Markdown: mIoU of every seed in per cent, the mean difference with its interval, and the same for each class."""
    lines = [
        "| seed | first network | random | chosen | chosen - random | not of the flight |",
        "|---" * 6 + "|",
    ]
    for one in compared:
        start, random, chosen = (100 * scores[0] for scores in (one.start, one.random, one.chosen))
        places = f"{one.random_places} and {one.chosen_places}"
        lines.append(f"| {one.seed} | {start:.1f} | {random:.1f} | {chosen:.1f} | {chosen - random:+.1f} | {places} |")
    means = [100 * mean(getattr(one, way)[0] for one in compared) for way in ("start", "random", "chosen")]
    gain = in_points([one.chosen[0] - one.random[0] for one in compared])
    lines.append(f"| mean | {' | '.join(f'{value:.1f}' for value in means)} | {gain} | |")
    lines += ["", "| IoU | random | chosen | chosen - random |", "|---" * 4 + "|"]
    for place, name in enumerate(load_class_map("farmland").names, start=1):
        random, chosen = (100 * mean(getattr(one, way)[place] for one in compared) for way in ("random", "chosen"))
        gain = in_points([one.chosen[place] - one.random[place] for one in compared])
        lines.append(f"| {name} | {random:.1f} | {chosen:.1f} | {gain} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Compare seed by seed, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="repetitions, each of other land")
    parser.add_argument("--pool-of", choices=POOLS, default="places", help="single places, or mostly one flight")
    parser.add_argument("--pool", type=int, default=400, help="images without labels")
    parser.add_argument("--steps", type=int, default=300, help="steps of the first training, and of each further one")
    parser.add_argument("--scratch", type=Path, default=Path("demo/chosen"), help="folder for data and runs")
    args = parser.parse_args(argv)
    logs.configure()
    torch.set_num_threads(1)
    scratch = args.scratch / args.pool_of
    how = {"pool": args.pool, "pool_of": args.pool_of, "steps": args.steps}
    print(table([compare(scratch, seed, **how) for seed in args.seeds]))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
