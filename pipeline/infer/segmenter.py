"""Inference: one network on one device, images in, logits at the network's stride out.

In: a stream of decoded images of any size, so decoding runs beside the network. Out: for each image float16 logits, or
its error. Full-size probabilities are never computed here.
"""

import copy
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from torch import nn

from pipeline.config import InferConfig, TileConfig
from pipeline.errors import InputError
from pipeline.infer.stitch import Canvas, to_half
from pipeline.infer.tile import CPU_BATCH, cut_tile, plan_tiles
from pipeline.infer.views import View, ViewFusion, apply_view, views
from pipeline.models import checkpoint
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.fold import fold_batch_norm
from pipeline.records import Float16, Float32, Footprint, Image, UInt8

log = logging.getLogger(__name__)

DEFAULT_BATCH = {"cuda": 16, "cpu": CPU_BATCH}
"""Tiles per batch, unless set. On a CPU 16 tiles of 512x512 fill more than the caches and take twice as long each."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

FOLD_PX = 64, 64
"""Size of the input that traces which batch norm follows which convolution; any will do."""
WARM_UP_PX = 96, 160
"""Size of the warm-up; the lengths differ, or the compiler treats height and width as one symbol."""


@dataclass(slots=True)
class Prediction:
    """Result of the network for one image."""

    logits_khw: Float16 | None = None
    """(K, ceil(H/stride), ceil(W/stride)), largest logit of each cell shifted to 0; None when `error` is set."""
    error: InputError | None = None
    """`too_many_pixels`, `non_finite_logits` or `gpu_oom`."""
    seconds: float = 0.0
    """Share of this image in the network's time."""


@dataclass(slots=True)
class _Job:
    """One image in work."""

    fusion: ViewFusion
    prediction: Prediction = field(default_factory=Prediction)


@dataclass(slots=True)
class _ViewTiles:
    """Tiles of one view of an image; they share batches with the tiles of other views and images."""

    job: _Job
    view: View
    canvas: Canvas
    pixels_hwc: UInt8 | None
    """Pixels of the view; None once every tile is cut."""
    uncut: int
    """Tiles that are not cut yet."""


Tile = tuple[_ViewTiles, int]


@dataclass(slots=True)
class _Flight:
    """A dispatched batch, whose results may still be on the device."""

    tiles: list[Tile]
    pixels_nhwc: torch.Tensor
    scored: tuple[torch.Tensor, torch.Tensor]
    """Logits, (N, K, h, w), and the mask of tiles with finite logits only, (N,) bool."""
    landed: torch.cuda.Event | None
    seconds: float


def _finished(jobs: deque[_Job]) -> Iterator[Prediction]:
    """Results of the first images in the queue that are complete or failed, in order."""
    while jobs and (jobs[0].prediction.logits_khw is not None or jobs[0].prediction.error):
        yield jobs.popleft().prediction


def footprint(model: Checkpoint, output_stride: int | None = None) -> Footprint:
    """Memory footprint of a checkpoint's network; `output_stride` as in `Checkpoint.build`."""
    weight_bytes = sum(tensor.numel() * 4 for tensor in model.state.values())
    stride = checkpoint.blank(model.card, output_stride).stride
    return Footprint(weight_bytes, len(model.card.classes), stride, model.card.in_channels)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Dtype of the convolutions; `auto` is bf16 where it is in hardware, else fp16 on a GPU and fp32 on a CPU.

    Emulated bf16 is several times slower than float32 on a CPU.
    """
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capabilities = torch.cpu.get_capabilities()
    in_hardware = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if in_hardware else torch.float32


def _with_half_weights(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy of a network with convolution weights in `dtype`, which autocast would cast at every call."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)
    return copied


class Segmenter:
    """Holds one network on one device.

    Tiles of equal shape share a batch across images. On a GPU pixels are uploaded from pinned memory while the batch
    before runs, and the results of a batch are fetched while the next one runs.
    """

    def __init__(self, model: Checkpoint, infer: InferConfig, tile: TileConfig, *, device: str | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        network = model.build(infer.output_stride)
        fold_batch_norm(network, torch.zeros(1, len(model.card.mean), *FOLD_PX))
        self.exact = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.num_classes, self.num_channels = len(model.card.classes), len(model.card.mean)
        self.stride, self.align_corners = int(network.stride), bool(network.align_corners)
        self.dtype = resolve_precision(infer.precision, self.device)
        self.network = self.exact if self.dtype is torch.float32 else _with_half_weights(self.exact, self.dtype)
        self.batch = infer.batch or DEFAULT_BATCH[self.device.type]
        self.infer, self.tile, self.views = infer, tile, views(infer)
        self.keeps_scores = len(self.views) > 1 and infer.fuse == "max_score"
        self._upload: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._upload = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._mean, self._std = (
            torch.tensor(channel, device=self.device).view(1, -1, 1, 1) * 255
            for channel in (model.card.mean, model.card.std)
        )
        compiled = self._compile() if infer.compile else ""
        self.inference = self._describe(infer.output_stride or model.card.output_stride, compiled)

    def __call__(self, images: Iterable[Image]) -> Iterator[Prediction]:
        """Segment a stream of images; predictions have the order of the images."""
        jobs: deque[_Job] = deque()
        waiting: dict[tuple[int, int], list[Tile]] = defaultdict(list)
        flights: deque[_Flight] = deque()
        for image in images:
            jobs.append(self._open(image))
            for view_tiles in self._views_of(jobs[-1], image):
                queue = waiting[view_tiles.canvas.grid.tile_height, view_tiles.canvas.grid.tile_width]
                for index in range(view_tiles.uncut):
                    queue.append((view_tiles, index))
                    if len(queue) == self.batch:
                        self._dispatch(flights, queue)
            yield from _finished(jobs)
        for queue in waiting.values():
            self._dispatch(flights, queue)
        while flights:
            self._collect(flights.popleft())
        yield from _finished(jobs)

    @torch.inference_mode()
    def edge_map(self, image: Image) -> Float32 | None:
        """Edge map of an image, (H, W), where the network predicts one: in float32, tiles blended as logits are."""
        grid = plan_tiles(image.height, image.width, self.tile, align_corners=self.align_corners)
        canvas = Canvas(grid, num_classes=1, stride=1)
        for index in range(len(grid.corners)):
            pixels = torch.from_numpy(cut_tile(image.pixels_hwc, grid, index)).to(self.device)
            edges = self.exact.edge_map((pixels.permute(2, 0, 1)[None].float() - self._mean) / self._std)
            if edges is None:
                return None
            canvas.add(index, edges.cpu().numpy())
        blended: Float32 = canvas.finish()[0]
        return blended

    def _open(self, image: Image) -> _Job:
        size = {"height": image.height, "width": image.width}
        job = _Job(ViewFusion(self.infer, **size, stride=self.stride, align_corners=self.align_corners))
        cells = -(-image.height // self.stride) * -(-image.width // self.stride)
        if (mib := cells * self.num_classes * 2 / 2**20) > self.infer.max_logits_mib:
            detail = f"{image.height}x{image.width} pixels give {mib:.0f} MiB of logits at stride {self.stride}"
            detail += f" with {self.num_classes} classes, limit {self.infer.max_logits_mib:g} MiB"
            job.prediction.error = InputError("too_many_pixels", detail, hint="raise --infer.max-logits-mib")
        return job

    def _views_of(self, job: _Job, image: Image) -> Iterator[_ViewTiles]:
        """Views of an image, resized one at a time, since each may be larger than the image."""
        for view in self.views:
            if job.prediction.error:
                return
            pixels = apply_view(image.pixels_hwc, view, align_corners=self.align_corners)
            origin = image.origin if view == View() else (0, 0)  # a resized or mirrored view has tiles of its own
            height, width = pixels.shape[:2]
            grid = plan_tiles(height, width, self.tile, align_corners=self.align_corners, origin=origin)
            mpx = grid.tile_height * grid.tile_width / 1e6
            if self.tile.mode == "whole" and mpx > self.tile.whole_mpx:
                detail = f"{grid.tile_height}x{grid.tile_width} = {mpx:.1f} Mpx at once, limit {self.tile.whole_mpx:g}"
                hint = "raise --tile.whole-mpx, or take --tile.mode sliding"
                job.prediction.error = InputError("too_many_pixels", detail, hint=hint)
                return
            canvas = Canvas(grid, num_classes=self.num_classes, stride=self.stride)
            yield _ViewTiles(job, view, canvas, pixels, len(grid.corners))

    def _dispatch(self, flights: deque[_Flight], queue: list[Tile]) -> None:
        """Run the queued tiles as a batch, and collect the previous batch meanwhile."""
        tiles = [tile for tile in queue if tile[0].job.prediction.error is None]
        queue.clear()
        if tiles:
            flights.extend(self._launch(tiles, self._cut(tiles)))
        while len(flights) > 1:
            self._collect(flights.popleft())

    def _cut(self, tiles: list[Tile]) -> torch.Tensor:
        """Pixels of tiles of equal shape, (N, h, w, C) uint8; in pinned memory for a GPU."""
        grid = tiles[0][0].canvas.grid
        shape = len(tiles), grid.tile_height, grid.tile_width, self.num_channels
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._upload is not None)
        for target, (view_tiles, index) in zip(pixels.numpy(), tiles, strict=True):
            if view_tiles.pixels_hwc is None:
                raise ValueError("a tile was cut twice")
            target[:] = cut_tile(view_tiles.pixels_hwc, view_tiles.canvas.grid, index)
            view_tiles.uncut -= 1
            if view_tiles.uncut == 0:
                view_tiles.pixels_hwc = None
        return pixels

    def _launch(self, tiles: list[Tile], pixels_nhwc: torch.Tensor) -> list[_Flight]:
        """Run one batch; split it in halves when GPU memory runs out; an image fails if a single tile does not fit."""
        started = perf_counter()
        try:
            scored, landed = self._to_host(*self._forward(pixels_nhwc, self.dtype))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        else:
            return [_Flight(tiles, pixels_nhwc, scored, landed, perf_counter() - started)]
        if len(tiles) > 1:
            middle = len(tiles) // 2
            first = self._launch(tiles[:middle], pixels_nhwc[:middle])
            return first + self._launch(tiles[middle:], pixels_nhwc[middle:])
        self._too_large(tiles[0][0])
        return []

    def _too_large(self, view_tiles: _ViewTiles) -> None:
        height, width = view_tiles.canvas.grid.tile_height, view_tiles.canvas.grid.tile_width
        hint = "lower --tile.tile-px" if self.tile.mode == "sliding" else "take --tile.mode sliding"
        view_tiles.job.prediction.error = InputError(
            "gpu_oom", f"a single {height}x{width} tile does not fit the GPU", hint=hint
        )

    @torch.inference_mode()
    def _forward(self, pixels_nhwc: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Run (N, H, W, C) uint8 pixels: logits, (N, K, h, w), and the mask of finite tiles, (N,), on the device.

        Logits are float16 with the largest of each cell shifted to 0. Only to compare scores of several views they
        stay float32 as the network returns them.
        """
        # (N, H, W, C) in memory, permuted to (N, C, H, W), is channels_last: no copy.
        pixels = self._to_device(pixels_nhwc).permute(0, 3, 1, 2)
        normalised = (pixels.float() - self._mean) / self._std
        network = self.network if dtype is self.dtype else self.exact
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            logits: torch.Tensor = network(normalised)
        finite = logits.isfinite().flatten(1).all(1)
        if self.keeps_scores:
            return logits.float(), finite
        shifted = logits.float() - logits.amax(1, keepdim=True)
        return shifted.clamp_(min=torch.finfo(torch.float16).min).half(), finite

    def _to_device(self, pixels_nhwc: torch.Tensor) -> torch.Tensor:
        """Upload pixels on a stream of their own; the network waits for them, this thread does not."""
        if self._upload is None:
            return pixels_nhwc
        with torch.cuda.stream(self._upload):
            pixels = pixels_nhwc.to(self.device, non_blocking=True)
        running = torch.cuda.current_stream(self.device)
        running.wait_stream(self._upload)
        pixels.record_stream(running)
        return pixels

    def _to_host(self, *scored: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.cuda.Event | None]:
        logits, finite = scored
        if self._upload is None:
            return (logits, finite), None
        hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in scored]
        for host, tensor in zip(hosts, scored, strict=True):
            host.copy_(tensor, non_blocking=True)
        landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        landed.record()
        return (hosts[0], hosts[1]), landed

    def _collect(self, flight: _Flight) -> None:
        """Wait for a batch and add each tile's logits to its canvas."""
        started = perf_counter()
        if flight.landed is not None:
            flight.landed.synchronize()
        logits, finite = flight.scored
        for number in np.flatnonzero(~finite.numpy()):
            self._again_in_float32(flight, int(number))
        for (view_tiles, index), logits_khw in zip(flight.tiles, logits.numpy(), strict=True):
            if view_tiles.job.prediction.error is None:
                view_tiles.canvas.add(index, logits_khw)
                if view_tiles.canvas.missing == 0:
                    view_tiles.job.fusion.add(view_tiles.view, view_tiles.canvas.finish())
                if view_tiles.job.fusion.missing == 0:
                    view_tiles.job.prediction.logits_khw = to_half(view_tiles.job.fusion.finish())
        share = (flight.seconds + perf_counter() - started) / len(flight.tiles)
        for view_tiles, _ in flight.tiles:
            view_tiles.job.prediction.seconds += share

    def _again_in_float32(self, flight: _Flight, number: int) -> None:
        """Run a tile with NaN or infinity again in float32, which has a larger range than half precision."""
        view_tiles, index = flight.tiles[number]
        scored: tuple[torch.Tensor, torch.Tensor] | None = None
        try:
            scored = self._forward(flight.pixels_nhwc[number : number + 1], torch.float32)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        if scored is None:
            self._too_large(view_tiles)
            return
        logits, finite = scored
        if finite.item():
            flight.scored[0].numpy()[number] = logits[0].cpu().numpy()
            return
        detail = f"the network gave NaN or infinity for the tile at {view_tiles.canvas.grid.corners[index]}"
        view_tiles.job.prediction.error = InputError("non_finite_logits", f"{detail}, also in float32")

    def _compile(self) -> str:
        """Compile the network for all sizes; returns `compiled`, or `eager (error)` when the compiler fails.

        The compiler builds one version for a single tile and one for several; the warm-up calls both. On a CPU weights
        are frozen to constants, in the memory layout that its convolutions read.
        """
        started, eager = perf_counter(), self.network
        self.network = torch.compile(eager, dynamic=True)
        try:
            with torch._inductor.config.patch(freezing=self.device.type == "cpu"):
                for count in (2, 1):
                    shape = count, *WARM_UP_PX, self.num_channels
                    self._forward(torch.zeros(shape, dtype=torch.uint8), self.dtype)
        except Exception as error:  # noqa: BLE001  # torch and the C++ compiler it starts raise many types
            self.network = eager
            log.warning("torch.compile failed, the network runs uncompiled: %s", error)
            return f"eager ({type(error).__name__})"
        log.info("network compiled in %.1f s", perf_counter() - started)
        return "compiled"

    def _describe(self, output_stride: int, compiled: str) -> str:
        """Value of the column `inference`: output stride, precision, tiling, views and compilation in one line."""
        facts = [f"os{output_stride}", next(name for name, dtype in PRECISIONS.items() if dtype is self.dtype)]
        facts += [self.tile.mode]
        if self.views != (View(),):
            facts += ["scales=" + ",".join(f"{scale:g}" for scale in self.infer.scales)]
            facts += ["flip"] * self.infer.flip + [self.infer.fuse] * (len(self.views) > 1)
        return " ".join(facts + [compiled] * bool(compiled))
