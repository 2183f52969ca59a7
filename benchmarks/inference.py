"""Measure the network stage against hand-written loops, on the same images in the same process.

    python -m benchmarks.inference --networks resnet101 resnet50 mobilenet_v2 --images 8 --repeats 5

    python -m benchmarks.inference --networks mobilenet_v2 --images 2 --repeats 2      # one minute

DeepLab v3+ with random weights, which take as long as trained ones, on images of 513x513 and of mixed sizes. The sides
take turns in every repeat, so that other work on the machine disturbs all of them; ratios are medians over the repeats.
On a shared machine, use `--threads 1` and the ratios of CPU time. `benchmarks.gpu` has more of a GPU. Ends with one
JSON line.
"""

import argparse
import json
import logging
import platform
import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.clock import Side, interleaved, matmul_tflops, ratio
from benchmarks.gpu.networks import bare_network, whole_stream
from benchmarks.gpu.uploads import InStep
from infra import log as logs
from jobs import command_line
from pipeline import classes
from pipeline.config import InferConfig, TileConfig
from pipeline.datasets import farmland
from pipeline.evaluate.comparison import with_random_weights
from pipeline.infer.segmenter import Segmenter
from pipeline.infer.tile import plan_tiles
from pipeline.models import checkpoint
from pipeline.models.card import Card
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.normalisation import IMAGENET
from pipeline.records import Image

log = logging.getLogger(__name__)

MIXED = ((375, 500), (500, 375), (333, 500), (427, 640), (513, 513), (240, 320), (480, 640), (600, 800))
"""Heights and widths of photo collections: Pascal VOC, COCO, and a few larger and smaller ones."""


def random_checkpoint(backbone: str, output_stride: int) -> Checkpoint:
    """DeepLab v3+ for the 21 classes of VOC, with random weights."""
    card = Card(
        architecture="deeplab_v3plus",
        options={"backbone": backbone},
        output_stride=output_stride,
        classes=classes.load_class_map("voc"),
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        source="random",
        license="Apache-2.0",
    )
    return with_random_weights(card)


def random_images(sizes: Sequence[tuple[int, int]]) -> list[Image]:
    """Images of random pixels, heights and widths as given."""
    rng = np.random.default_rng(0)
    return [Image(rng.integers(0, 256, (*size, 3)).astype(np.uint8), None) for size in sizes]


def plain_loop(model: Checkpoint, images: Sequence[Image], *, device: str) -> Side:
    """A simple hand-written loop: float32, one whole image at a time, default memory format."""
    network = model.build().to(device)
    mean, std = (torch.tensor(channel, device=device).view(1, 3, 1, 1) for channel in (IMAGENET.mean, IMAGENET.std))

    @torch.inference_mode()
    def run() -> None:
        for image in images:
            x = torch.from_numpy(image.pixels_hwc).to(device).permute(2, 0, 1)[None].float().contiguous() / 255
            network((x - mean) / std).argmax(dim=1).cpu().numpy()

    return run


def tuned_loop(model: Checkpoint, images: Sequence[Image], *, device: str) -> Side:
    """A tuned hand-written loop: autocast to bf16, channels_last."""
    network = model.build().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = (torch.tensor(channel, device=device).view(1, 3, 1, 1) for channel in (IMAGENET.mean, IMAGENET.std))

    @torch.inference_mode()
    def run() -> None:
        for image in images:
            x = torch.from_numpy(image.pixels_hwc).to(device).permute(2, 0, 1)[None].float() / 255
            with torch.autocast(device, torch.bfloat16):
                network((x - mean) / std).float().argmax(dim=1).cpu().numpy()

    return run


def gmacs(model: Checkpoint, sizes: Sequence[tuple[int, int]], tile: TileConfig) -> float:
    """Multiply-accumulates of the segmenter's network on images of these sizes, 1e9."""
    network, total = checkpoint.blank(model.card), 0
    for height, width in sizes:
        grid = plan_tiles(height, width, tile)
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            network.eval()(torch.empty(1, 3, grid.tile_height, grid.tile_width))
        total += counter.get_total_flops() // 2 * len(grid.corners)
    return total / 1e9


def compare_inference(
    backbone: str, sizes: Sequence[tuple[int, int]], *, output_stride: int, args: argparse.Namespace
) -> dict[str, float]:
    """Images a second of our segmenter, and time of each other side over ours: above 1 where ours is faster."""
    model, images, tile = random_checkpoint(backbone, output_stride), random_images(sizes), TileConfig()
    ours = Segmenter(model, InferConfig(), tile, device=args.device)
    sides = {
        "ours": whole_stream(ours, images),
        "plain_loop": plain_loop(model, images, device=args.device),
        "tuned_loop": tuned_loop(model, images, device=args.device),
        "network_alone": bare_network(ours, images),
    }
    if args.compile:
        sides["compiled"] = whole_stream(Segmenter(model, InferConfig(compile=True), tile, device=args.device), images)
    if args.device == "cuda":
        sides["in_step"] = whole_stream(InStep(model, InferConfig(), tile, device=args.device), images)
    times = interleaved(sides, args.repeats, device=args.device)
    own = times.pop("ours")
    rate = len(images) / statistics.median(own.wall)
    figures = {"images_per_s": rate, "tflops": rate / len(images) * 2 * gmacs(model, sizes, tile) / 1e3}
    for name, theirs in times.items():
        figures[f"{name}_over_ours"] = ratio(theirs.wall, own.wall)
        figures[f"{name}_over_ours_processor"] = ratio(theirs.processor, own.processor)
    return {name: round(value, 3) for name, value in figures.items()}


def agreement(device: str) -> dict[str, float]:
    """Share of cells whose class differs from float32's, of the shipped network on farmland."""
    model = checkpoint.load_checkpoint("farmland")
    images = [Image(farmland.generate_scene(seed, height=513, width=513).image_hwc, None) for seed in range(8)]
    exact, ours = (
        [
            prediction.logits_khw
            for prediction in Segmenter(model, InferConfig(precision=precision), TileConfig(), device=device)(images)
        ]
        for precision in ("fp32", "auto")
    )
    differ = [(a.argmax(0) != b.argmax(0)).mean() for a, b in zip(exact, ours, strict=True) if a is not None]
    return {"share_of_labels_changed_by_half_precision": float(np.mean(differ))}


def main(argv: list[str] | None = None) -> int:
    """Compare, then print one JSON line with every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet101", "resnet50", "mobilenet_v2"], help="backbones")
    parser.add_argument("--output-strides", type=int, nargs="+", default=[16], help="encoder strides")
    parser.add_argument("--images", type=int, default=8, help="images of 513x513, and as many of mixed sizes")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="measure with torch.compile as well, a minute more each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    args = parser.parse_args(argv)
    logs.configure()
    torch.set_num_threads(args.threads)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    rates = {str(dtype): matmul_tflops(device=args.device, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    log.info("%s, torch %s, matrix products %s TFLOP/s", machine, torch.__version__, rates)
    figures: dict[str, object] = {"machine": machine, "torch": torch.__version__, "python": platform.python_version()}
    figures |= {"matmul_tflops": rates, "agreement": agreement(args.device)}
    log.info("%s", figures["agreement"])
    mixed = [MIXED[index % len(MIXED)] for index in range(args.images)]
    for backbone in args.networks:
        for stride in args.output_strides:
            for name, sizes in {"513x513": [(513, 513)] * args.images, "mixed": mixed}.items():
                title = f"{backbone}, output stride {stride}, {name}"
                figures[title] = compare_inference(backbone, sizes, output_stride=stride, args=args)
                log.info("%s: %s", title, figures[title])
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
