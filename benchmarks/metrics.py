"""Measure the time one core takes to score a mask against its label, with the native extension and without.

    python -m benchmarks.metrics --labels camvid/val/labels

    python -m benchmarks.metrics                 # ten seconds, generated labels only

The mask is the label shifted by three pixels: nearly right, with wrong pixels along every boundary. Random pairs, in
which no two neighbours agree, are the worst case. Prints one JSON line.
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
from jobs import command_line
from pipeline.records import UInt8
from pipeline.score import label_maps
from pipeline.score.metrics import confusion, count_judgement

log = logging.getLogger(__name__)

WIDTHS_PX = (1, 2, 3, 5, 8, 12, 18, 27, 40)
NUM_CLASSES = 32
SHIFTED_PX = 3


def best_ms(work: Callable[[], object], repeats: int) -> float:
    """CPU time of the fastest of several calls, ms; other programs on the machine do not count."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds) * 1e3


def generated(side_px: int) -> UInt8:
    """Blobs of 21 classes, (side, side): signs of smooth waves, read as bits."""
    yy, xx = np.mgrid[:side_px, :side_px] / 512
    waves = [np.sin(9 * yy + 3 * k) + np.sin(11 * xx * (k + 1) / 3 + k) for k in range(5)]
    bits: UInt8 = sum(((wave > 0).astype(np.uint8) << k for k, wave in enumerate(waves)), np.zeros_like(xx, np.uint8))
    return bits % 21


def pairs(labels: Path | None) -> dict[str, tuple[UInt8, UInt8]]:
    """Labels and masks by name."""
    maps = {f"generated {side}x{side}": generated(side) for side in (512, 2048)}
    if labels is not None:
        files = sorted(labels.glob("*.png"))[:8]
        stack = np.concatenate([np.array(PilImage.open(file), np.uint8) for file in files])
        maps[f"{len(files)} of {labels.parent}, {stack.size / 1e6:.1f} Mpx"] = stack
    shifted = {name: (label_hw, np.roll(label_hw, SHIFTED_PX, axis=1)) for name, label_hw in maps.items()}
    label_hw, mask_hw = np.random.default_rng(0).integers(0, 21, (2, 2048, 2048)).astype(np.uint8)
    return shifted | {"random 2048x2048": (label_hw, mask_hw)}


def measure_counts(label_hw: UInt8, mask_hw: UInt8, repeats: int) -> dict[str, float]:
    """Confusion counts, megapixels per ms; and all counts of one image, ms."""
    confidence = np.random.default_rng(1).integers(0, 256, label_hw.shape).astype(np.uint8)
    counts_ms = best_ms(lambda: confusion(label_hw, mask_hw, NUM_CLASSES), repeats)
    all_ms = best_ms(
        lambda: count_judgement(label_hw, mask_hw, confidence, NUM_CLASSES, name="", widths_px=WIDTHS_PX), repeats
    )
    return {"counts_mpx_per_ms": round(label_hw.size / 1e6 / counts_ms, 2), "judge_ms": round(all_ms, 2)}


def main(argv: list[str] | None = None) -> int:
    """Measure every pair with and without the extension, then print one JSON line with every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder of PNG labels")
    parser.add_argument("--repeats", type=int, default=10, help="calls; the fastest counts")
    args = parser.parse_args(argv)
    logs.configure()
    native, figures = label_maps._native, {}
    for name, (label_hw, mask_hw) in pairs(args.labels).items():
        for kind, code in (("native", native), ("numpy", None)):
            label_maps._native = code
            title = f"{name}, {kind}"
            figures[title] = measure_counts(label_hw, mask_hw, args.repeats if code else 2)
            log.info("%-50s %s", title, figures[title])
    label_maps._native = native
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
