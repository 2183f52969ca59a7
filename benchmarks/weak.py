"""Measure the gain of weak labels: mIoU after training on few full labels, with and without many weak ones.

    python -m benchmarks.weak --seeds 1 --steps 60        # one minute on one core

    python -m benchmarks.weak                             # the table of docs/benchmarks/weak.md, fifteen minutes
    python -m benchmarks.weak --alone                     # no full labels at all, from a pretrained backbone; an hour

The scenes are generated farmland with three classes: water and trees as objects, land as background. Every seed draws
its own few and many training images; one further set of images validates all. A network trained on the few images is
trained further in each way, for as many steps: on the few alone, or with the many as half of each batch. With `--alone`
a network starts from ImageNet and sees the many images only, each way with the biases and shares of the authors. Runs
are those of the training job; an interrupted benchmark resumes. Progress on stderr, the table on stdout.
"""

import argparse
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image as PILImage
from scipy import ndimage

from infra import log as logs
from jobs import command_line
from pipeline import classes
from pipeline.datasets import farmland
from pipeline.models import checkpoint
from pipeline.records import UInt8
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import loop, run
from pipeline.training.config import TrainConfig
from pipeline.training.ranks import Group
from pipeline.training.start import with_initial_settings

log = logging.getLogger(__name__)

_IMAGE_PX = 64
FEW, MANY, JUDGED = 12, 300, 150
FURTHER_LR = 0.3
"""Factor on the learning rate of further training: the first E-steps need the network's knowledge intact."""
FIRST_JUDGED_SEED = 900_000
LEAST_PX = 12
"""Objects with fewer pixels get no box, as no annotator would draw one."""
NAMES = ("land", "water", "tree")
OF_FARMLAND = np.array([0, 0, 0, 1, 0, 2, 0], np.uint8)
"""Class of ours for each class of farmland: soil, crop, meadow, road and building are land."""
_SETTINGS: dict[str, Any] = {
    "network": {"name": "unet", "options": {"padding": "same", "batch_norm": True, "width_multiplier": 0.125}},
    "augment": {"crop_px": (_IMAGE_PX, _IMAGE_PX), "scale": (1, 1), "symmetries": True},
    "optimise": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.01, "batch": 4},
    # Objects are a seventh of the pixels: with cross entropy alone a network predicts only land for hundreds of steps.
    "loss": {"terms": {"cross_entropy": 1.0, "dice": 1.0}},
    "runtime": {"device": "cpu", "loader_workers": 0, "tracker": "none"},
}


@dataclass(frozen=True, slots=True)
class Way:
    """Variant of further training."""

    part: str = ""
    """Labels of the many images: a kind of `_LABELS`; empty leaves the images out."""
    weak: dict[str, Any] = field(default_factory=dict)
    """Fields of `WeakConfig`."""


WAYS = {
    "the few alone": Way(),
    "classes, EM-Fixed": Way("classes", {"classes": "em_fixed", "bias_fg": 1.0, "bias_bg": 0.5}),
    "classes, EM-Adapt": Way("classes", {"classes": "em_adapt", "share_fg": 0.05, "share_bg": 0.4}),
    "boxes, Bbox-Rect": Way("boxes", {"boxes": "rect"}),
    "boxes, Bbox-EM-Fixed": Way("boxes", {"boxes": "em_fixed", "bias_fg": 1.0, "bias_bg": 0.5}),
    "boxes, Bbox-Seg": Way("boxes", {"boxes": "seg"}),
    "all with full labels": Way("full"),
}


ALONE = {
    "classes, EM-Fixed": Way("classes", {"classes": "em_fixed"}),
    "classes, EM-Adapt": Way("classes", {"classes": "em_adapt"}),
    "all with full labels": Way("full"),
}
"""Ways without full labels, by the defaults of `WeakConfig`, which are the authors'; the last is the upper bound."""
_PRETRAINED: dict[str, Any] = {
    "network": {
        "name": "deeplab_v3plus",
        "options": {"aspp_channels": 64, "decoder_channels": 64, "low_level_channels": 16, "separable": True},
        "initial": "efficientnet-lite0",
    },
    "augment": {"crop_px": (128, 128), "scale": (1, 1), "symmetries": True},
    "optimise": {"kind": "adamw", "lr": 0.001, "head_lr": 10.0, "weight_decay": 0.01, "batch": 8},
    "loss": {"terms": {"cross_entropy": 1.0}},
}
"""Settings of `--alone`, where they differ: scenes of 128 pixels, and cross entropy alone as in the paper."""


# ---------------------------------------------------------------- data


def scene(seed: int, side_px: int) -> tuple[UInt8, UInt8]:
    """(H, W, 3) RGB and (H, W) ids of `NAMES`."""
    generated = farmland.generate_scene(seed, height=side_px, width=side_px)
    return generated.image_hwc, OF_FARMLAND[generated.label_hw]


def png(array: UInt8) -> bytes:
    """PNG of an image or a label."""
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def weak_classes(label_hw: UInt8) -> bytes:
    """Weak label with the names of an image's object classes, as JSON."""
    return json.dumps({"classes": [NAMES[k] for k in np.unique(label_hw) if k]}).encode()


def boxes_of(label_hw: UInt8) -> bytes:
    """Weak label with a box around every connected component of an object class, as JSON."""
    boxes = []
    for k, name in enumerate(NAMES[1:], 1):
        pieces_hw, _ = ndimage.label(label_hw == k, np.ones((3, 3)))
        for number, (rows, columns) in enumerate(ndimage.find_objects(pieces_hw), 1):
            if np.count_nonzero(pieces_hw[rows, columns] == number) >= LEAST_PX:
                boxes.append({"class": name, "box": [columns.start, rows.start, columns.stop, rows.stop]})
    return json.dumps({"boxes": boxes}).encode()


_LABELS: dict[str, tuple[str, Callable[[UInt8], bytes]]] = {
    "full": ("png", png),
    "classes": ("json", weak_classes),
    "boxes": ("json", boxes_of),
}
"""Suffix and content of each kind of label."""


def write_scenes(data: Url, seeds: range, parts: dict[str, str], side_px: int) -> None:
    """Write the scenes of these seeds into parts of the data, each part with its kind of label."""
    for seed in seeds:
        image_hwc, label_hw = scene(seed, side_px)
        for part, kind in parts.items():
            suffix, encode = _LABELS[kind]
            objects.put(data / part / "images" / f"{seed}.png", png(image_hwc))
            objects.put(data / part / "labels" / f"{seed}.{suffix}", encode(label_hw))


def write_data(data: Url, seed: int, side_px: int) -> None:
    """Write training and validation images of a seed; the class map last, which marks the data as complete."""
    if objects.exists(data / run.CLASSES_FILE):
        return
    write_scenes(data, range(FIRST_JUDGED_SEED, FIRST_JUDGED_SEED + JUDGED), {"val": "full"}, side_px)
    first = 1000 * seed
    write_scenes(data, range(first, first + FEW), {"few": "full"}, side_px)
    write_scenes(data, range(first + FEW, first + FEW + MANY), {kind: kind for kind in _LABELS}, side_px)
    palette = classes.load_class_map("farmland")
    colours = [palette.classes[k].colour for k in (farmland.CROP, farmland.WATER, farmland.TREE)]
    listed = [{"name": name, "colour": list(colour)} for name, colour in zip(NAMES, colours, strict=True)]
    objects.put(data / run.CLASSES_FILE, yaml.safe_dump({"name": "waters", "classes": listed}).encode())


# ---------------------------------------------------------------- runs


def weak_config(scratch: Path, seed: int, way: Way, *, steps: int, output: str, initial: str | None) -> TrainConfig:
    """Settings of one run; `initial` is the checkpoint that further training starts from."""
    many = (way.part,) if way.part else ()
    optimise = _SETTINGS["optimise"]
    settings = _SETTINGS | {
        "data": str(scratch / f"data-{seed}"),
        "output": output,
        "seed": seed,
        "sets": {"train": ("few", *many)},
        "network": _SETTINGS["network"] | {"initial": initial},
        "optimise": optimise | {"lr": optimise["lr"] * (FURTHER_LR if initial else 1)},
        "runtime": _SETTINGS["runtime"] | {"cache": str(scratch / "cache")},
        "sample": {"weak_share": 0.5 if way.weak else None},
        "schedule": {"steps": steps, "warmup": 10},
        "validation": {"every": steps, "samples": 0},
        "weak": way.weak,
    }
    return TrainConfig.model_validate(settings)


def alone_config(scratch: Path, seed: int, way: Way, *, steps: int, output: str) -> TrainConfig:
    """Settings of one run on weak labels alone, from a pretrained backbone."""
    settings = _SETTINGS | _PRETRAINED
    settings |= {
        "data": str(scratch / f"data-128-{seed}"),
        "output": output,
        "seed": seed,
        "sets": {"train": (way.part,)},
        "runtime": _SETTINGS["runtime"] | {"cache": str(scratch / "cache")},
        "schedule": {"steps": steps, "warmup": 10},
        "validation": {"every": steps, "samples": 0},
        "weak": way.weak,
    }
    return with_initial_settings(TrainConfig.model_validate(settings))


def train_once(cfg: TrainConfig) -> list[float]:
    """Train one run; returns validation mIoU and the IoU of every class after its last step."""
    loop.train_phases(run.open_run(cfg, Group(), about={}))
    measured: dict[str, Any] = checkpoint.load_checkpoint(cfg.output).card.training
    return [float(measured[name]) for name in ("miou", *(f"iou/{name}" for name in NAMES))]


def runs(scratch: Path, seed: int, *, steps: int) -> Iterator[tuple[str, list[float]]]:
    """Train one seed in every way; yields name and scores as in `train_once`."""
    data = Url(str(scratch / f"data-{seed}"))
    write_data(data, seed, _IMAGE_PX)
    start = str(scratch / f"start-{seed}")
    train_once(weak_config(scratch, seed, Way(), steps=steps, output=start, initial=None))
    for name, way in WAYS.items():
        output = output_of(scratch, name, seed)
        scores = train_once(weak_config(scratch, seed, way, steps=steps, output=output, initial=start))
        log.info("seed %d, %s: mIoU %.3f", seed, name, scores[0])
        yield name, scores


def runs_alone(scratch: Path, seed: int, *, steps: int) -> Iterator[tuple[str, list[float]]]:
    """Train one seed in every way of `ALONE`; yields name and scores as in `train_once`."""
    write_data(Url(str(scratch / f"data-128-{seed}")), seed, 128)
    for name, way in ALONE.items():
        output = output_of(scratch, f"alone {name}", seed)
        scores = train_once(alone_config(scratch, seed, way, steps=steps, output=output))
        log.info("seed %d, %s: mIoU %.3f", seed, name, scores[0])
        yield name, scores


def output_of(scratch: Path, name: str, seed: int) -> str:
    """Folder of a run."""
    return str(scratch / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}")


# ---------------------------------------------------------------- table


def table(scores_by_way: dict[str, list[list[float]]]) -> str:
    """Markdown: mean and standard deviation over seeds, in percent, and the gain of each way over the first."""
    first = next(iter(scores_by_way))
    alone = [scores[0] for scores in scores_by_way[first]]
    lines = [f"| labels of the many | mIoU | gain over {first} | {' | '.join(NAMES)} |", "|---" * 6 + "|"]
    for name, rows in scores_by_way.items():
        gains = [100 * (scores[0] - before) for scores, before in zip(rows, alone, strict=True)]
        cells = [spread([100 * scores[place] for scores in rows]) for place in range(len(NAMES) + 1)]
        gain = f"{mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f})"
        lines.append(f"| {name} | {cells[0]} | {gain} | {' | '.join(cells[1:])} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """`55.0 ± 7.1`: mean and standard deviation; the value alone where there is one."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main(argv: list[str] | None = None) -> int:
    """Train in every way, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="repetitions, each with other images")
    parser.add_argument(
        "--steps", type=int, default=500, help="steps of the first training, and again of each further one"
    )
    parser.add_argument(
        "--alone", action="store_true", help="weak labels without full ones, from a pretrained backbone"
    )
    parser.add_argument("--scratch", type=Path, default=Path("demo/weak"), help="folder for data and runs")
    args = parser.parse_args(argv)
    logs.configure()
    torch.set_num_threads(1)
    train_all, ways = (runs_alone, ALONE) if args.alone else (runs, WAYS)
    scores_by_way: dict[str, list[list[float]]] = {name: [] for name in ways}
    for seed in args.seeds:
        for name, scores in train_all(args.scratch, seed, steps=args.steps):
            scores_by_way[name].append(scores)
    print(table(scores_by_way))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
