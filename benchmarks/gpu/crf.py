"""Dense CRF: the lattice of `refine/lattice_torch.py` on the device, against the native engine on one core.

Images are generated farmland of 375x500 pixels, 21 classes, logits at stride 8. A call takes pixels and logits from the
host's memory and brings labels back to it. Wanted: 300 images/s.
"""

import statistics
from functools import lru_cache, partial
from time import perf_counter, process_time

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from benchmarks.gpu.clock import Side, medians, peak_memory, wait
from benchmarks.gpu.plan import Figures, GpuSetting, Measurement
from pipeline.datasets import farmland
from pipeline.refine import lattice_torch, native
from pipeline.refine.lattice_torch import DenseCRF, upsample_logits
from pipeline.refine.presets import PRESETS, CrfParams

WANTED_PER_S = 300
SIZE, TINY_SIZE = (375, 500), (40, 56)
CLASSES, STRIDE = 21, 8
BATCHES, TINY_BATCHES = (16, 4, 1), (2, 1)
CHOSEN = ("densecrf-demo", "deeplab-v2")
"""Presets with the widest and the narrowest colour sigma: few vertices, and many."""
NATIVE_REPEATS = 3
CALLS_TO_CAPTURE = 3
"""A shape runs without a CUDA graph once, is captured, and is replayed."""
DISTINCT = 4
"""Scenes that a batch repeats: painting one takes as long as refining many."""


def measurements(setting: GpuSetting) -> list[Measurement]:
    """Speed and memory by preset and batch, and agreement by preset."""
    batches = TINY_BATCHES if setting.tiny else BATCHES
    sizes = [(preset, count) for count in batches for preset in CHOSEN]
    return [
        *(Measurement(f"{name}, agreement", partial(agreement, setting, PRESETS[name])) for name in CHOSEN),
        *(
            Measurement(f"{name}, batch {count}", partial(speed, setting, PRESETS[name], count))
            for name, count in sizes
        ),
    ]


@lru_cache(maxsize=4)
def scenes(setting: GpuSetting, count: int) -> tuple[Tensor, Tensor]:
    """Images (N, H, W, 3) uint8, and logits (N, 21, h, w) float32 at stride 8 that know shades of brightness."""
    height, width = TINY_SIZE if setting.tiny else SIZE
    pixels = [
        farmland.generate_scene(seed, height=height, width=width).image_hwc for seed in range(min(count, DISTINCT))
    ]
    images = torch.from_numpy(np.stack([pixels[number % DISTINCT] for number in range(count)]))
    cells = -(-height // STRIDE), -(-width // STRIDE)
    coarse = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float().mean(1, keepdim=True), cells)[:, 0]
    edges = torch.quantile(coarse.flatten(), torch.linspace(0, 1, CLASSES + 1)[1:-1])
    label = torch.bucketize(coarse, edges)
    noise = torch.randn(count, CLASSES, *cells, generator=torch.Generator().manual_seed(0))
    return images, F.one_hot(label, CLASSES).permute(0, 3, 1, 2).float() * 4 + noise


def full_size(images: Tensor, logits: Tensor) -> Tensor:
    """Logits at full size, (N, K, H, W)."""
    scores = upsample_logits(logits, *images.shape[1:3], stride=STRIDE, align_corners=False)
    return scores.permute(0, 3, 1, 2).contiguous()


def speed(setting: GpuSetting, params: CrfParams, count: int) -> Figures:
    """Images/s of a batch, times of its parts, memory, and images/s of the native engine on one core."""
    images, logits = scenes(setting, count)
    sides = sides_of(setting, params, images, logits)
    peak = peak_memory(lambda: [sides["refine"]() for _ in range(CALLS_TO_CAPTURE)], device=setting.device)
    seconds = medians(sides, setting.repeats, device=setting.device)
    rate, core = count / seconds["refine"], native_per_core_s(images, logits, params)
    added = peak.device_added if setting.device == "cuda" else peak.host_added
    pixels = images[..., 0].numel()
    return {
        "images_per_s": rate,
        "reaches_wanted": rate >= WANTED_PER_S,
        "different_images_per_s": DISTINCT / seconds["different"] if "different" in seconds else None,
        "as_engine_calls_it_per_s": 1 / seconds["engine"] if "engine" in seconds else None,
        "lattice_ms_per_image": seconds["lattice"] / count * 1e3,
        "gain_of_graph": seconds["no_graph"] / seconds["refine"] if "no_graph" in seconds else None,
        "native_per_core_s": core,
        "cores_replaced": None if core is None else rate / core,
        "vertices_per_pixel": appearance_lattice(setting, params, images).vertices / pixels,
        "peak_mib": None if added is None else added / 2**20,
        "peak_bytes_per_pixel": None if added is None else added / pixels,
        "reserved_bytes_per_pixel": reserved_bytes_per_pixel(),
    }


def sides_of(setting: GpuSetting, params: CrfParams, images: Tensor, logits: Tensor) -> dict[str, Side]:
    """Refining a batch, with CUDA graphs and without, building its lattice, and refining images one after the other.

    A batch that comes again has the same vertices, so its graph is used again; images that differ share graphs as far
    as they happen to have about as many vertices.
    """
    if setting.device == "cuda":
        images, logits = images.pin_memory(), logits.pin_memory()
    crf = DenseCRF(setting.device)
    sides: dict[str, Side] = {
        "refine": partial(labels, crf, images, logits, params),
        "lattice": partial(appearance_lattice, setting, params, images),
    }
    if setting.device == "cuda":
        sides["no_graph"] = partial(labels, DenseCRF(setting.device, graphs=False), images, logits, params)
    if len(images) == 1:
        others = [(image[None], scores[None]) for image, scores in zip(*scenes(setting, DISTINCT), strict=True)]
        sides["different"] = lambda: [labels(crf, image, scores, params) for image, scores in others]
        full = full_size(images, logits)[0].numpy()
        sides["engine"] = lambda: crf.refine_one(images[0].numpy(), full, None, params)
    return sides


def labels(crf: DenseCRF, images: Tensor, logits: Tensor, params: CrfParams) -> Tensor:
    """Labels of a batch in the host's memory, (N, H, W) uint8."""
    return crf.refine(images, logits, None, params, stride=STRIDE).argmax(1).to(torch.uint8).cpu()


def appearance_lattice(setting: GpuSetting, params: CrfParams, images: Tensor) -> lattice_torch.Lattice:
    """Lattice of the appearance kernel, which each batch builds anew."""
    on_device = images.to(setting.device).float()
    return lattice_torch.bilateral_lattice(on_device, None, params.bi_xy, params.bi_rgb)


def reserved_bytes_per_pixel() -> float | None:
    """Memory that a run reserves for the torch engine with so many classes; None without the packages of settings."""
    try:
        from pipeline.config import RefineConfig  # noqa: PLC0415  # needs pydantic, which this section does not
        from pipeline.records import Footprint  # noqa: PLC0415
        from pipeline.refine.engine import REFINE_ENGINES  # noqa: PLC0415
    except ModuleNotFoundError:
        return None
    model = Footprint(weight_bytes=0, num_classes=CLASSES, stride=STRIDE)
    return float(REFINE_ENGINES["torch"].window_bytes(RefineConfig(), 1, model))


def native_per_core_s(images: Tensor, logits: Tensor, params: CrfParams) -> float | None:
    """Images per second of CPU time of the native engine; None where the extension was not built."""
    if not native.available():
        return None
    crf = native.NativeCrf()
    pixels, scores = images[0].numpy(), logits[0].numpy()
    taken = []
    for _ in range(NATIVE_REPEATS + 1):
        started = process_time()
        crf.refine(pixels, scores, None, params, grid=native.LogitsGrid(STRIDE), probs=False, labels=True)
        taken.append(process_time() - started)
    return 1 / max(statistics.median(taken[1:]), 1e-9)


def agreement(setting: GpuSetting, params: CrfParams) -> Figures:
    """Marginals and labels on the device against this engine on the CPU, twice on the device, and against native."""
    images, logits = scenes(setting, 2)
    crf = DenseCRF(setting.device)
    started = perf_counter()
    first = crf.refine(images, logits, None, params, stride=STRIDE)
    wait(setting.device)
    first_s = perf_counter() - started
    again = crf.refine(images, logits, None, params, stride=STRIDE)
    on_cpu = DenseCRF("cpu").refine(images, logits, None, params, stride=STRIDE)
    ours = first.cpu()
    return {
        "labels_agreeing_with_cpu": share(ours.argmax(1), on_cpu.argmax(1)),
        "largest_difference_from_cpu": float((ours - on_cpu).abs().max()),
        "labels_agreeing_with_native": native_share(images, logits, params, ours.argmax(1)),
        "same_bits_twice": bool((first == again).all()),
        "first_call_s": first_s,
    }


def native_share(images: Tensor, logits: Tensor, params: CrfParams, labels: Tensor) -> float | None:
    """Share of labels that are the native engine's; None where the extension was not built."""
    if not native.available():
        return None
    crf = native.NativeCrf(spatial="lattice")
    refined = [
        crf.refine(pixels, scores, None, params, grid=native.LogitsGrid(STRIDE), probs=False, labels=True).labels_hw
        for pixels, scores in zip(images.numpy(), logits.numpy(), strict=True)
    ]
    return share(labels, torch.from_numpy(np.stack(refined)))  # type: ignore[arg-type]  # none is None: all requested


def share(labels: Tensor, others: Tensor) -> float:
    """Share of equal labels."""
    return float((labels == others).double().mean())
