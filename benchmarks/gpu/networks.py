"""Networks: images/s of the segmenter, of its network in a bare loop, and the share of the GPU's own matrix rate.

Images of 512x512 with 21 classes, random weights, which take as long as trained ones. This section has every network in
bf16 at the default batch; `grid` has the other precisions and batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.clock import Side, medians
from benchmarks.gpu.plan import Figures, GpuSetting, Measurement
from pipeline import classes
from pipeline.config import InferConfig, TileConfig
from pipeline.infer.segmenter import Segmenter
from pipeline.infer.tile import cut_tile, plan_tiles
from pipeline.models import checkpoint, zoo
from pipeline.models.card import Card, shipped_checkpoints
from pipeline.models.catalogue import count_macs, find_variant
from pipeline.models.checkpoint import Checkpoint, load_checkpoint
from pipeline.models.normalisation import IMAGENET
from pipeline.records import Image

Precision = Literal["fp32", "bf16", "fp16"]

SIDE_PX, TINY_SIDE_PX = 512, 64
BATCH, TINY_BATCH = 16, 2
BATCHES_PER_TURN = 4
DISTINCT = 8
"""Images that a stream repeats."""


@dataclass(frozen=True, slots=True)
class NetworkCase:
    """A network at an output stride."""

    name: str
    """Variant of the catalogue, or a shipped checkpoint."""
    output_stride: int | None = None
    """None: the published one."""

    @property
    def title(self) -> str:
        """Name and output stride."""
        return self.name if self.output_stride is None else f"{self.name} os{self.output_stride}"


CASES = (
    NetworkCase("deeplab_v3plus_resnet101", 16),
    NetworkCase("deeplab_v3_resnet50", 16),
    NetworkCase("deeplab_v3plus_mobilenet_v2", 16),
    NetworkCase("deeplab_v3plus_resnet101", 8),
    NetworkCase("camvid"),
    NetworkCase("deeplab_v3_resnet50", 8),
    NetworkCase("pspnet_resnet50"),
    NetworkCase("unet"),
)
TINY_CASES = (NetworkCase("farmland"), NetworkCase("farmland", 8))


def measurements(setting: GpuSetting) -> list[Measurement]:
    """Every network in bf16 at the default batch."""
    return [
        Measurement(case.title, partial(speed, setting, case, "bf16", default_batch(setting)))
        for case in cases(setting)
    ]


def cases(setting: GpuSetting) -> Sequence[NetworkCase]:
    """Networks to measure, the most wanted first."""
    return TINY_CASES if setting.tiny else CASES


def default_batch(setting: GpuSetting) -> int:
    """Tiles in a batch."""
    return TINY_BATCH if setting.tiny else BATCH


@lru_cache(maxsize=1)
def model_of(case: NetworkCase) -> Checkpoint:
    """Shipped checkpoint, or the variant for the 21 classes of VOC with random weights of a fixed seed."""
    if case.name in shipped_checkpoints():
        return load_checkpoint(case.name)
    variant = find_variant(case.name)
    stride = case.output_stride or zoo.NETWORKS[variant.network][0].output_strides[0]
    card = Card(
        architecture=variant.network,
        options=variant.options,
        output_stride=stride,
        classes=classes.load_class_map("voc"),
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        source="random",
        license="Apache-2.0",
    )
    torch.manual_seed(0)
    return Checkpoint(card, variant.build(len(card.classes), output_stride=stride).state_dict(), "0" * 64)


def segmenter_of(
    setting: GpuSetting,
    case: NetworkCase,
    precision: Precision,
    batch: int,
    *,
    tile: TileConfig | None = None,
    compiled: bool = False,
) -> Segmenter:
    """The segmenter as a run builds it."""
    infer = InferConfig.model_validate(
        {"precision": precision, "batch": batch, "output_stride": case.output_stride, "compile": compiled}
    )
    return Segmenter(model_of(case), infer, tile or TileConfig(), device=setting.device)


def side_px(setting: GpuSetting) -> int:
    """Side of the images, pixels: one tile each."""
    return TINY_SIDE_PX if setting.tiny else SIDE_PX


def random_images(side: int, count: int, bands: int = 3) -> list[Image]:
    """Square images of random pixels."""
    rng = np.random.default_rng(0)
    distinct = [Image(rng.integers(0, 256, (side, side, bands), np.uint8), None) for _ in range(min(count, DISTINCT))]
    return [distinct[number % DISTINCT] for number in range(count)]


def tile_batches(segmenter: Segmenter, images: Sequence[Image]) -> list[Tensor]:
    """Tiles of images in the segmenter's batches, each (N, h, w, C) uint8, in the host's memory."""
    shapes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for image in images:
        grid = plan_tiles(image.height, image.width, segmenter.tile, align_corners=segmenter.align_corners)
        tiles = [cut_tile(image.pixels_hwc, grid, index) for index in range(len(grid.corners))]
        shapes.setdefault(tiles[0].shape, []).extend(tiles)
    step = segmenter.batch
    return [
        torch.from_numpy(np.stack(tiles[first : first + step]))
        for tiles in shapes.values()
        for first in range(0, len(tiles), step)
    ]


@torch.inference_mode()  # as in the segmenter: for other tensors, a compiled network would be compiled again
def bare_network(segmenter: Segmenter, images: Sequence[Image]) -> Side:
    """The segmenter's network alone, on the segmenter's batches, already on the device."""
    batches = [
        batch.to(segmenter.device).permute(0, 3, 1, 2).float() / 255 for batch in tile_batches(segmenter, images)
    ]
    half = segmenter.dtype is not torch.float32

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(segmenter.device.type, segmenter.dtype, enabled=half):
            for batch in batches:
                segmenter.network(batch)

    return run


def whole_stream(segmenter: Segmenter, images: Sequence[Image]) -> Side:
    """The segmenter from pixels to logits."""
    return lambda: list(segmenter(images))


def with_cudnn_search(side: Side) -> Side:
    """The same work with cuDNN's search for the fastest convolution of each shape, which the segmenter leaves off."""

    def run() -> None:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            side()
        finally:
            torch.backends.cudnn.benchmark = before

    return run


def gflops(case: NetworkCase, side: int) -> float:
    """Operations of one image of `side` x `side` pixels, 1e9: two for each multiply-accumulate."""
    card = model_of(case).card
    return 2 * count_macs(checkpoint.blank(card, case.output_stride), side, in_channels=card.in_channels) / 1e9


def speed(setting: GpuSetting, case: NetworkCase, precision: Precision, batch: int) -> Figures:
    """Images/s of segmenter and bare loop, and the shares of the bf16 matrix rate that they reach."""
    segmenter = segmenter_of(setting, case, precision, batch)
    images = random_images(side_px(setting), batch * BATCHES_PER_TURN, segmenter.num_channels)
    bare = bare_network(segmenter, images)
    sides = {"segmenter": whole_stream(segmenter, images), "bare": bare}
    if setting.device == "cuda":
        sides["cudnn_search"] = with_cudnn_search(bare)
    seconds = medians(sides, setting.repeats, device=setting.device)
    rates = {name: len(images) / taken for name, taken in seconds.items()}
    image_gflops = gflops(case, side_px(setting))
    full_rate = setting.bf16_tflops * 1e3 / image_gflops
    return {
        "images_per_s": rates["segmenter"],
        "bare_loop_images_per_s": rates["bare"],
        "overhead": rates["bare"] / rates["segmenter"],
        "gain_of_cudnn_search": rates["cudnn_search"] / rates["bare"] if "cudnn_search" in rates else None,
        "gflops_per_image": image_gflops,
        "share_of_bf16_matrix_rate": rates["segmenter"] / full_rate,
        "bare_loop_share": rates["bare"] / full_rate,
    }
