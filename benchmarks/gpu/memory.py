"""Memory: what a network takes on the device and on the host, against what a run reserves for it.

`network_gib` of `run/workers.py` reserves memory of the host; on a GPU it counts no feature maps, and nothing in a run
plans the GPU's own memory. The bytes per input pixel that it takes for feature maps on a CPU are compared with those
seen. Images are as large as a tile can be, and the reservation is for images of that size.
"""

from functools import partial

from benchmarks.gpu.clock import GIB, peak_memory
from benchmarks.gpu.networks import (
    NetworkCase,
    Precision,
    default_batch,
    model_of,
    random_images,
    segmenter_of,
    whole_stream,
)
from benchmarks.gpu.plan import Figures, GpuSetting, Measurement
from pipeline.config import DecodeConfig, SegmentConfig, TileConfig
from pipeline.infer.segmenter import Segmenter, footprint
from pipeline.records import LEFT_WHOLE
from pipeline.run.workers import BYTES_PER_INPUT_PIXEL, network_gib

CASES = (
    NetworkCase("deeplab_v3plus_resnet101", 16),
    NetworkCase("deeplab_v3plus_resnet101", 8),
    NetworkCase("deeplab_v3plus_mobilenet_v2", 16),
    NetworkCase("unet"),
)
TINY_CASES = (NetworkCase("farmland"),)
TILE, TINY_TILE = TileConfig(), TileConfig(tile_px=128, overlap_px=64)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def measurements(setting: GpuSetting) -> list[Measurement]:
    """One row per network and precision."""
    return [
        Measurement(f"{case.title} {precision}", partial(peaks, setting, case, precision))
        for case in (TINY_CASES if setting.tiny else CASES)
        for precision in PRECISIONS
    ]


def peaks(setting: GpuSetting, case: NetworkCase, precision: Precision) -> Figures:
    """Peaks of building a segmenter and of two batches, and what is reserved for them."""
    tile, batch = TINY_TILE if setting.tiny else TILE, default_batch(setting)
    side = int(tile.tile_px * LEFT_WHOLE)
    built: list[Segmenter] = []
    building = peak_memory(
        lambda: built.append(segmenter_of(setting, case, precision, batch, tile=tile)), device=setting.device
    )
    segmenter = built[0]
    images = random_images(side, 2 * batch, segmenter.num_channels)
    running = peak_memory(whole_stream(segmenter, images), device=setting.device)
    maps = running.device_added if setting.device == "cuda" else running.host_added
    model = footprint(model_of(case), case.output_stride)
    cfg = SegmentConfig(
        source=("images",),
        output="masks",
        checkpoint="network",
        decode=DecodeConfig(max_mpx=side**2 / 1e6),
        infer=segmenter.infer,
        tile=tile,
    )
    hosts = [peak.host for peak in (building, running) if peak.host is not None]
    return {
        "device_gib": None if running.device is None else running.device / GIB,
        "host_gib": max(hosts) / GIB if hosts else None,
        "host_gib_reserved": network_gib(cfg, model, device=setting.device),
        "maps_bytes_per_pixel": None if maps is None else maps / (batch * side**2),
        "maps_bytes_per_pixel_planned": BYTES_PER_INPUT_PIXEL["reduced" if model.stride > 1 else "full"],
    }
