"""Measure the training loop against a hand-written loop, on the same network and the same batches.

    python -m benchmarks.training --steps 30 --repeats 5

    python -m benchmarks.training --steps 4 --repeats 1 --crop-px 128      # one minute

DeepLab v3+ on generated farmland. The *bare* loop is forward, cross entropy, backward and SGD, in our precision and
memory format. Our loader feeds both, and its start counts on both sides; validations and checkpoints count on neither.
The sides take turns, and ratios are medians over the repeats. Ends with one JSON line.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, interpolate

from infra import log as logs
from jobs import command_line
from pipeline.datasets import farmland
from pipeline.store.url import Url
from pipeline.training import learner, loop
from pipeline.training.config import TrainConfig
from pipeline.training.examples import batches
from pipeline.training.ranks import Group, rank_device
from pipeline.training.run import TrainingRun, open_run

log = logging.getLogger(__name__)

_IMAGES = 32


@dataclass(frozen=True, slots=True)
class MeasuredLoop:
    """One side in one repeat."""

    images_per_s: float
    data_wait: float
    """Share of the time that steps waited for the loader, 0 to 1."""


def train_config(args: argparse.Namespace, data: str, output: str) -> TrainConfig:
    """A run with one progress line and one validation of one image, both at its end."""
    steps = args.steps
    settings = {
        "data": data,
        "output": output,
        "classes": "farmland",
        "network": {"name": "deeplab_v3plus", "options": {"backbone": args.backbone}},
        "augment": {"crop_px": (args.crop_px, args.crop_px), "flip": False, "symmetries": True},
        "optimise": {"batch": args.batch, "lr": 0.01},
        "schedule": {"steps": steps, "kind": "constant"},
        "validation": {"every": steps, "limit": 1},
        "runtime": {"log_every": steps, "checkpoint_every": steps, "tracker": "none", "cache": f"{data}/cache"},
    }
    return TrainConfig.model_validate(settings)


def ours(run: TrainingRun) -> MeasuredLoop:
    """Time the training loop of every run."""
    run_state = loop.train_phases(run)
    values = next(point.values for point in run_state.history if "speed/data_wait" in point.values)
    return MeasuredLoop(values["speed/images_per_s"], values["speed/data_wait"])


def bare_loop(run: TrainingRun) -> MeasuredLoop:
    """Time the hand-written loop."""
    cfg, device = run.cfg, run.group.device
    network = learner.build_phase_network(cfg, run.classes).to(device, memory_format=learner.memory_format(cfg)).train()  # type: ignore[call-overload]
    dtype = learner.convolution_dtype(cfg, device)
    optimiser = torch.optim.SGD(network.parameters(), lr=cfg.optimise.lr, momentum=0.9, weight_decay=4e-5)
    mean, std = (torch.tensor(band, device=device).view(1, 3, 1, 1) for band in (cfg.network.mean, cfg.network.std))
    began, waited = time.monotonic(), 0.0
    examples = batches(run.training[cfg.sets.train], cfg, run.classes, first_step=0, last_step=cfg.schedule.steps)
    for batch, wait_s in loop.timed_batches(examples):
        images, labels = batch.images_nchw.to(device), batch.labels_nhw.to(device)
        x = ((images / 255 - mean) / std).contiguous(memory_format=learner.memory_format(cfg))
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            logits = interpolate(network(x), size=labels.shape[1:], mode="bilinear")
            loss = cross_entropy(logits, labels.long(), ignore_index=run.classes.ignore_id)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        waited += wait_s
    float(loss)  # waits for the GPU
    seconds = time.monotonic() - began
    return MeasuredLoop(cfg.schedule.steps * cfg.optimise.batch / seconds, waited / seconds)


def compare_training(args: argparse.Namespace, scratch: Path) -> dict[str, list[MeasuredLoop]]:
    """Time both sides in every repeat, in turns, after a warm-up."""
    data = str(scratch / "data")
    for part, seed in (("train", 0), ("val", _IMAGES)):
        farmland.write_folder(Url(data) / part, _IMAGES, size_px=args.crop_px, seed=seed, with_labels=True)
    sides: dict[str, Callable[[TrainingRun], MeasuredLoop]] = {"ours": ours, "bare": bare_loop}
    loops: dict[str, list[MeasuredLoop]] = {name: [] for name in sides}
    for turn in range(args.repeats + 1):
        for name, side in sides.items():
            run = open_run(
                train_config(args, data, str(scratch / f"{name}-{turn}")), Group(device=rank_device("auto")), about={}
            )
            measured = side(run)
            log.info("%s, turn %d: %s", name, turn, measured)
            if turn:
                loops[name].append(measured)
    return loops


def main(argv: list[str] | None = None) -> int:
    """Compare, then print one JSON line with every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenet_v2", help="backbone of DeepLab v3+")
    parser.add_argument("--crop-px", type=int, default=256, help="side of the crops, pixels")
    parser.add_argument("--batch", type=int, default=4, help="images per step")
    parser.add_argument("--steps", type=int, default=30, help="steps of a run; the last one also validates and saves")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    args = parser.parse_args(argv)
    logs.configure()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="atrous-benchmark-") as scratch:
        loops = compare_training(args, Path(scratch))
    pairs = zip(loops["ours"], loops["bare"], strict=True)
    figures = {
        "loop_over_bare": statistics.median(our.images_per_s / bare.images_per_s for our, bare in pairs),
        "images_per_s": statistics.median(our.images_per_s for our in loops["ours"]),
        "data_wait": statistics.median(our.data_wait for our in loops["ours"]),
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()} | {"threads": args.threads}))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
