"""Baseline: Ray Data as in its tutorials, with images and full-size probabilities between the stages.

    python -m benchmarks.baselines.naive_ray --source FOLDER --output FOLDER --checkpoint farmland

Same network and refiner as the job. `benchmarks.pipeline` measures the job against it; the last line on stdout is the
number of bytes between the stages.
"""

import argparse
import json
import sys

import numpy as np
import ray
import ray.data

from pipeline.config import SegmentConfig
from pipeline.models import checkpoint
from pipeline.records import Image, Item, Scored, Window
from pipeline.refine import densecrf
from pipeline.refine.presets import crf_params
from pipeline.refine.unary import softmax, upsample_window

CPUS = 0.25
"""CPUs of each actor: one of each stage fits a core, and half of every core is left for the reader."""

NumpyBatch = dict[str, np.ndarray]


@ray.remote(num_cpus=0)
class Counter:
    """Counts the bytes between all stages."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, count: int) -> None:
        """Count a batch."""
        self.bytes += count

    def total(self) -> int:
        """All bytes so far."""
        return self.bytes


def bytes_of(batch: NumpyBatch) -> int:
    """Bytes of the arrays and texts of a batch; columns of arrays of different shapes count by element."""
    values = (value for column in batch.values() for value in (column if column.dtype == object else [column]))
    return sum(len(value) if isinstance(value, str) else value.nbytes for value in values)


class NaiveNetwork:
    """Images in, images and full-size float32 probabilities out."""

    def __init__(self, cfg: SegmentConfig, counter: ray.actor.ActorHandle) -> None:
        import torch  # noqa: PLC0415

        from pipeline.infer.segmenter import Segmenter  # noqa: PLC0415

        torch.set_num_threads(1)
        self.segmenter = Segmenter(checkpoint.load_checkpoint(cfg.checkpoint), cfg.infer, cfg.tile)
        self.counter = counter

    def __call__(self, batch: NumpyBatch) -> NumpyBatch:
        """Segment a batch."""
        images = [Image(pixels, None) for pixels in batch["image"]]
        probs = []
        for image, prediction in zip(images, self.segmenter(images), strict=True):
            scored = Scored(Item("", "", ""), image.height, image.width, stride=self.segmenter.stride)
            window = Window(0, 0, image.height, image.width)
            probs.append(softmax(upsample_window(prediction.logits_khw, scored, window)))
        out = {"path": batch["path"], "image": batch["image"], "probs": np.stack(probs)}
        self.counter.add.remote(bytes_of(batch) + bytes_of(out))
        return out


class Crf:
    """Images and probabilities in, masks out."""

    def __init__(self, cfg: SegmentConfig, counter: ray.actor.ActorHandle) -> None:
        self.params, self.counter = crf_params(cfg.refine), counter

    def __call__(self, batch: NumpyBatch) -> NumpyBatch:
        """Refine a batch."""
        masks = []
        for pixels, probs in zip(batch["image"], batch["probs"], strict=True):
            marginals = densecrf.pydensecrf_marginals(pixels, np.log(np.maximum(probs, 1e-10)), None, self.params)
            masks.append(marginals.argmax(axis=0).astype(np.uint8))
        out = {"path": batch["path"], "mask": np.stack(masks)}
        self.counter.add.remote(bytes_of(out))
        return out


def main() -> int:
    """Segment a folder."""
    parser = argparse.ArgumentParser()
    for name in ("source", "output", "checkpoint"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    cfg = SegmentConfig(source=args.source, output=args.output, checkpoint=args.checkpoint)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    counter = Counter.remote()
    cores = int(ray.cluster_resources()["CPU"])
    pool = ray.data.ActorPoolStrategy(size=cores)
    arguments = {"cfg": cfg, "counter": counter}
    (
        ray.data.read_images(args.source, mode="RGB", include_paths=True)
        .map_batches(NaiveNetwork, fn_constructor_kwargs=arguments, batch_size=16, compute=pool, num_cpus=CPUS)
        .map_batches(Crf, fn_constructor_kwargs=arguments, batch_size=16, compute=pool, num_cpus=CPUS)
        .write_parquet(args.output)
    )
    print(json.dumps({"bytes_between_stages": ray.get(counter.total.remote())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
