"""The network on one device: images in, logits at the network's stride out.

In: decoded images of any size, as a stream, so that decoding of the next ones goes on meanwhile. Out: for each, float16
logits or the error that stopped it. Full-size probabilities are never made here.
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
from pipeline.records import Float16, Footprint, Image, UInt8

log = logging.getLogger(__name__)

DEFAULT_BATCH = {"cuda": 16, "cpu": CPU_BATCH}
"""On a CPU the maps of more than a few tiles fall out of the caches: 16 tiles of 512x512 took twice as long each."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

FOLD_PX = 64, 64
"""Any input shows which batch norm follows which convolution."""
WARM_UP_PX = 96, 160
"""Two lengths that differ, or the compiler takes height and width for the same number."""


@dataclass(slots=True)
class Prediction:
    """What the network said of one image."""

    logits_khw: Float16 | None = None
    """(K, ceil(H/stride), ceil(W/stride)), each pixel's largest shifted to 0; None when `error` is set."""
    error: InputError | None = None
    """`too_many_pixels`, `non_finite_logits` or `gpu_oom`."""
    seconds: float = 0.0
    """This image's share of the time in the network."""


@dataclass(slots=True)
class _Job:
    """One image on its way through."""

    fusion: ViewFusion
    prediction: Prediction = field(default_factory=Prediction)


@dataclass(slots=True)
class _Look:
    """One look at an image: its tiles go out and come back in batches shared with other looks and images."""

    job: _Job
    view: View
    canvas: Canvas
    pixels_hwc: UInt8 | None
    """What there is to see; None once every tile is cut."""
    uncut: int


Tile = tuple[_Look, int]


@dataclass(slots=True)
class _Flight:
    """A batch whose results may still be on their way back from the device."""

    tiles: list[Tile]
    pixels_nhwc: torch.Tensor
    scored: tuple[torch.Tensor, torch.Tensor]
    """Logits, (N, K, h, w), and of which tiles all of them are finite, (N,) bool."""
    landed: torch.cuda.Event | None
    seconds: float


def _finished(jobs: deque[_Job]) -> Iterator[Prediction]:
    """Take off the front of the line every image that has all its looks back, or has failed."""
    while jobs and (jobs[0].prediction.logits_khw is not None or jobs[0].prediction.error):
        yield jobs.popleft().prediction


def footprint(model: Checkpoint, output_stride: int | None = None) -> Footprint:
    """What the memory of a checkpoint's network depends on; `output_stride` as in `Checkpoint.build`."""
    weight_bytes = sum(tensor.numel() * 4 for tensor in model.state.values())
    return Footprint(weight_bytes, len(model.card.classes), checkpoint.blank(model.card, output_stride).stride)


def resolve_precision(asked: str, device: torch.device) -> torch.dtype:
    """The dtype of convolutions: as asked, or the fastest the device has that keeps the range of float32.

    bf16 only where it is in hardware: emulated on an older CPU it is several times slower than float32.
    """
    if asked != "auto":
        return PRECISIONS[asked]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("amx_bf16") or has.get("avx512_bf16") or has.get("bf16") else torch.float32


def _with_half_weights(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose convolutions hold their weights in the dtype that autocast would cast them to at every call."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)
    return copied


class Segmenter:
    """Holds one network on one device.

    Tiles of equal shape share a batch, whichever image they come from. On a GPU the pixels travel from pinned memory,
    beside the batch that is running, and the results of a batch are fetched while the next one runs.
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
        """Segment a stream of images; predictions come in the order of the images."""
        jobs: deque[_Job] = deque()
        waiting: dict[tuple[int, int], list[Tile]] = defaultdict(list)
        flights: deque[_Flight] = deque()
        for image in images:
            jobs.append(self._open(image))
            for one in self._looks(jobs[-1], image):
                queue = waiting[one.canvas.grid.tile_height, one.canvas.grid.tile_width]
                for index in range(one.uncut):
                    queue.append((one, index))
                    if len(queue) == self.batch:
                        self._fly(flights, queue)
            yield from _finished(jobs)
        for queue in waiting.values():
            self._fly(flights, queue)
        while flights:
            self._land(flights.popleft())
        yield from _finished(jobs)

    def _open(self, image: Image) -> _Job:
        size = {"height": image.height, "width": image.width}
        job = _Job(ViewFusion(self.infer, **size, stride=self.stride, align_corners=self.align_corners))
        cells = -(-image.height // self.stride) * -(-image.width // self.stride)
        if (mib := cells * self.num_classes * 2 / 2**20) > self.infer.max_logits_mib:
            detail = f"{image.height}x{image.width} pixels give {mib:.0f} MiB of logits at stride {self.stride}"
            detail += f" with {self.num_classes} classes, limit {self.infer.max_logits_mib:g} MiB"
            job.prediction.error = InputError("too_many_pixels", detail, hint="raise --infer.max-logits-mib")
        return job

    def _looks(self, job: _Job, image: Image) -> Iterator[_Look]:
        """What the network is to see of an image, one look at a time: each may be larger than the image."""
        for view in self.views:
            if job.prediction.error:
                return
            pixels = apply_view(image.pixels_hwc, view, align_corners=self.align_corners)
            grid = plan_tiles(pixels.shape[0], pixels.shape[1], self.tile, align_corners=self.align_corners)
            mpx = grid.tile_height * grid.tile_width / 1e6
            if self.tile.mode == "whole" and mpx > self.tile.whole_mpx:
                detail = f"{grid.tile_height}x{grid.tile_width} = {mpx:.1f} Mpx at once, limit {self.tile.whole_mpx:g}"
                hint = "raise --tile.whole-mpx, or take --tile.mode sliding"
                job.prediction.error = InputError("too_many_pixels", detail, hint=hint)
                return
            canvas = Canvas(grid, num_classes=self.num_classes, stride=self.stride)
            yield _Look(job, view, canvas, pixels, len(grid.corners))

    def _fly(self, flights: deque[_Flight], queue: list[Tile]) -> None:
        """Start the queued tiles, then fetch the batch before: its results come back while this one runs."""
        tiles = [tile for tile in queue if tile[0].job.prediction.error is None]
        queue.clear()
        if tiles:
            flights.extend(self._launch(tiles, self._cut(tiles)))
        while len(flights) > 1:
            self._land(flights.popleft())

    def _cut(self, tiles: list[Tile]) -> torch.Tensor:
        """Pixels of tiles of one shape, (N, h, w, C) uint8; where the device is a GPU, in memory it can read itself."""
        grid = tiles[0][0].canvas.grid
        shape = len(tiles), grid.tile_height, grid.tile_width, self.num_channels
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._upload is not None)
        for target, (one, index) in zip(pixels.numpy(), tiles, strict=True):
            if one.pixels_hwc is None:
                raise ValueError("a tile was cut twice")
            target[:] = cut_tile(one.pixels_hwc, one.canvas.grid, index)
            one.uncut -= 1
            if one.uncut == 0:
                one.pixels_hwc = None
        return pixels

    def _launch(self, tiles: list[Tile], pixels_nhwc: torch.Tensor) -> list[_Flight]:
        """Run one batch; when the GPU is out of memory, run its halves; alone and still too large is an error."""
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

    def _too_large(self, one: _Look) -> None:
        height, width = one.canvas.grid.tile_height, one.canvas.grid.tile_width
        hint = "lower --tile.tile-px" if self.tile.mode == "sliding" else "take --tile.mode sliding"
        one.job.prediction.error = InputError(
            "gpu_oom", f"a single {height}x{width} tile does not fit the GPU", hint=hint
        )

    @torch.inference_mode()
    def _forward(self, pixels_nhwc: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Of (N, H, W, C) uint8 pixels: logits, (N, K, h, w), and of which tiles they are finite, (N,); on the device.

        The logits are float16 and shifted as they will be kept, which a GPU does in no time and a CPU in some; float32
        as the network gave them only where scores of several looks are to be compared.
        """
        # (N, H, W, C) in memory seen as (N, C, H, W) already is channels_last: no copy.
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
        """Send pixels to the device beside what it is doing; the network waits for them, this thread does not."""
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
        hosts = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in scored]
        for host, one in zip(hosts, scored, strict=True):
            host.copy_(one, non_blocking=True)
        landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        landed.record()
        return (hosts[0], hosts[1]), landed

    def _land(self, flight: _Flight) -> None:
        """Wait for a batch and hand each tile's logits to its canvas."""
        started = perf_counter()
        if flight.landed is not None:
            flight.landed.synchronize()
        logits, finite = flight.scored
        for number in np.flatnonzero(~finite.numpy()):
            self._again_in_float32(flight, int(number))
        for (one, index), logits_khw in zip(flight.tiles, logits.numpy(), strict=True):
            if one.job.prediction.error is None:
                one.canvas.add(index, logits_khw)
                if one.canvas.missing == 0:
                    one.job.fusion.add(one.view, one.canvas.finish())
                if one.job.fusion.missing == 0:
                    one.job.prediction.logits_khw = to_half(one.job.fusion.finish())
        share = (flight.seconds + perf_counter() - started) / len(flight.tiles)
        for one, _ in flight.tiles:
            one.job.prediction.seconds += share

    def _again_in_float32(self, flight: _Flight, number: int) -> None:
        """Run a tile with NaN or infinity once more in float32: half precision overflows where float32 does not."""
        one, index = flight.tiles[number]
        again: tuple[torch.Tensor, torch.Tensor] | None = None
        try:
            again = self._forward(flight.pixels_nhwc[number : number + 1], torch.float32)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        if again is None:
            self._too_large(one)
            return
        logits, finite = again
        if finite.item():
            flight.scored[0].numpy()[number] = logits[0].cpu().numpy()
            return
        detail = f"the network gave NaN or infinity for the tile at {one.canvas.grid.corners[index]}"
        one.job.prediction.error = InputError("non_finite_logits", f"{detail}, also in float32")

    def _compile(self) -> str:
        """Compile the network now and for every size at once; what the rows are to say of it.

        The compiler makes one version for a single tile and one for several: both are made here. On a CPU weights are
        taken for constants, which puts them into the order that its convolutions read.
        """
        started, eager = perf_counter(), self.network
        self.network = torch.compile(eager, dynamic=True)
        try:
            with torch._inductor.config.patch(freezing=self.device.type == "cpu"):
                for count in (2, 1):
                    shape = count, *WARM_UP_PX, self.num_channels
                    self._forward(torch.zeros(shape, dtype=torch.uint8), self.dtype)
        except Exception as error:  # noqa: BLE001  # whatever the compiler, and the compiler it starts, may raise
            self.network = eager
            log.warning("torch.compile failed, the network runs as it is: %s", error)
            return f"eager ({type(error).__name__})"
        log.info("network compiled in %.1f s", perf_counter() - started)
        return "compiled"

    def _describe(self, output_stride: int, compiled: str) -> str:
        """How images are looked at, in one line for their rows: what was asked for, as this device does it."""
        said = [f"os{output_stride}", next(name for name, dtype in PRECISIONS.items() if dtype is self.dtype)]
        said += [self.tile.mode]
        if self.views != (View(),):
            said += ["scales=" + ",".join(f"{scale:g}" for scale in self.infer.scales)]
            said += ["flip"] * self.infer.flip + [self.infer.fuse] * (len(self.views) > 1)
        return " ".join(said + [compiled] * bool(compiled))
