"""Measure what scoring an answer against its label costs one core, with the extension and without it.

    python -m benchmarks.metrics --labels camvid/val/labels

    python -m benchmarks.metrics                 # generated labels only, ten seconds

The answer to a label is the label moved by three pixels: nearly right, with wrong pixels along every boundary. Random
pairs, where no two neighbours are alike, are the worst that can come. Prints one JSON line.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

from infra import log as logs
from pipeline.records import UInt8
from pipeline.score import label_maps
from pipeline.score.metrics import confusion, count_judgement

log = logging.getLogger(__name__)

WIDTHS_PX = (1, 2, 3, 5, 8, 12, 18, 27, 40)
NUM_CLASSES = 32
MOVED_PX = 3


def best_ms(work: Callable[[], object], repeats: int) -> float:
    """Processor time of the fastest of several calls: other programs on the machine do not count."""
    took = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took) * 1e3


def generated(side_px: int) -> UInt8:
    """Blobs of 21 classes: the sign of smooth waves, read as bits."""
    yy, xx = np.mgrid[:side_px, :side_px] / 512
    waves = [np.sin(9 * yy + 3 * k) + np.sin(11 * xx * (k + 1) / 3 + k) for k in range(5)]
    bits: UInt8 = sum(((wave > 0).astype(np.uint8) << k for k, wave in enumerate(waves)), np.zeros_like(xx, np.uint8))
    return bits % 21


def pairs(labels: Path | None) -> dict[str, tuple[UInt8, UInt8]]:
    """Labels and answers by name."""
    maps = {f"generated {side}x{side}": generated(side) for side in (512, 2048)}
    if labels is not None:
        files = sorted(labels.glob("*.png"))[:8]
        stack = np.concatenate([np.array(PilImage.open(file), np.uint8) for file in files])
        maps[f"{len(files)} of {labels.parent}, {stack.size / 1e6:.1f} Mpx"] = stack
    found = {name: (truth, np.roll(truth, MOVED_PX, axis=1)) for name, truth in maps.items()}
    truth, answer = np.random.default_rng(0).integers(0, 21, (2, 2048, 2048)).astype(np.uint8)
    return found | {"random 2048x2048": (truth, answer)}


def measure_counts(truth: UInt8, answer: UInt8, repeats: int) -> dict[str, float]:
    """Speed of the counts, and what everything about one image costs."""
    sure = np.random.default_rng(1).integers(0, 256, truth.shape).astype(np.uint8)
    counts_ms = best_ms(lambda: confusion(truth, answer, NUM_CLASSES), repeats)
    all_ms = best_ms(lambda: count_judgement(truth, answer, sure, NUM_CLASSES, name="", widths_px=WIDTHS_PX), repeats)
    return {"counts_mpx_per_ms": round(truth.size / 1e6 / counts_ms, 2), "judge_ms": round(all_ms, 2)}


def main(argv: list[str] | None = None) -> int:
    """Measure every pair of maps with each kind of code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder of PNG labels")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args(argv)
    logs.configure()
    native, found = label_maps._native, {}
    for name, (truth, answer) in pairs(args.labels).items():
        for kind, code in (("native", native), ("numpy", None)):
            label_maps._native = code
            found[f"{name}, {kind}"] = measure_counts(truth, answer, args.repeats if code else 2)
            log.info("%-50s %s", f"{name}, {kind}", found[f"{name}, {kind}"])
    label_maps._native = native
    print(json.dumps(found))
    return 0
