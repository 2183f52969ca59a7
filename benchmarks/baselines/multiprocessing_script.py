"""Baseline: a hand-written script for one machine, a pool of processes that each do every step for a few images.

    python -m benchmarks.baselines.multiprocessing_script --source FOLDER --output FOLDER --checkpoint farmland

Same decoder, network, refiner, rows and Parquet settings as the job; it cannot resume, has no object store, and does
not survive the failure of a worker. `benchmarks.pipeline` measures the job against it.
"""

import argparse
import multiprocessing
import sys
from pathlib import Path

import torch

from pipeline.config import SegmentConfig
from pipeline.image import encode
from pipeline.image.decode import decode_image
from pipeline.infer.segmenter import Segmenter
from pipeline.models import checkpoint
from pipeline.models.card import load_card
from pipeline.records import Item, Row, Scored, rows_to_table
from pipeline.refine.refiner import Refiner
from pipeline.refine.unary import active_classes
from pipeline.run import parts
from pipeline.run.parts import FEWEST_ROWS
from pipeline.store.url import Url

IMAGES_AT_ONCE = 16


class Worker:
    """One network and one refiner; each process of the pool has one."""

    def __init__(self, cfg: SegmentConfig) -> None:
        torch.set_num_threads(1)
        model = checkpoint.load_checkpoint(cfg.checkpoint)
        self.cfg, self.classes = cfg, model.card.classes
        self.segmenter = Segmenter(model, cfg.infer, cfg.tile)
        self.refiner = Refiner(cfg.refine, self.classes)

    def __call__(self, paths: list[Path]) -> list[Row]:
        """Segment these images."""
        images = [decode_image(path.read_bytes(), self.cfg.decode) for path in paths]
        rows = []
        for path, image, prediction in zip(paths, images, self.segmenter(images), strict=True):
            logits = prediction.logits_khw
            ids, _ = active_classes(logits, prune=self.cfg.refine.prune)
            item = Item(key=path.name, shard="all", etag="")
            scored = Scored(item, image.height, image.width, 1, logits[list(ids)], ids, self.segmenter.stride)
            refinement = self.refiner(scored, image)
            rows.append(encode.segmented_row(scored, refinement, None, classes=self.classes, model_fp="", config_fp=""))
        return rows


def start(cfg: SegmentConfig) -> None:
    """Create the worker of a process of the pool."""
    global worker  # noqa: PLW0603  # a pool has no other place for the state of its processes
    worker = Worker(cfg)


def segment_paths(paths: list[Path]) -> list[Row]:
    """Segment in a process of the pool."""
    return worker(paths)


def main() -> int:
    """Segment a folder with one process per core."""
    parser = argparse.ArgumentParser()
    for name in ("source", "output", "checkpoint"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    cfg = SegmentConfig(source=args.source, output=args.output, checkpoint=args.checkpoint)
    classes = load_card(args.checkpoint).classes
    paths = sorted(Path(args.source).rglob("*.jpg"))
    batches = [paths[first : first + IMAGES_AT_ONCE] for first in range(0, len(paths), IMAGES_AT_ONCE)]
    pending: list[Row] = []
    with multiprocessing.get_context("spawn").Pool(initializer=start, initargs=(cfg,)) as pool:
        for rows in pool.imap_unordered(segment_paths, batches):
            pending += rows
            if len(pending) >= FEWEST_ROWS:
                parts.write_part(Url(args.output), rows_to_table(pending), classes)
                pending = []
    if pending:
        parts.write_part(Url(args.output), rows_to_table(pending), classes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
