"""The network on one device: images in, logits at the network's stride out.

In: decoded images of any size, as a stream, so that decoding of the next ones goes on meanwhile. Out: for each, float16
logits or the error that stopped it. Full-size probabilities are never made here.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch

from pipeline.checkpoint import Checkpoint
from pipeline.config import InferConfig, TileConfig
from pipeline.errors import InputError
from pipeline.records import Bool, Float16, Float32, Image, UInt8
from pipeline.stitch import Canvas
from pipeline.tile import cut, plan_tiles

DEFAULT_BATCH = {"cuda": 16, "cpu": 2}
"""On a CPU the maps of more than a few tiles fall out of the caches: 16 tiles of 512x512 took twice as long each."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(slots=True)
class Prediction:
    """What the network said of one image."""

    logits_khw: Float16 | None = None
    """(K, ceil(H/stride), ceil(W/stride)), each pixel's largest shifted to 0; None when `error` is set."""
    error: InputError | None = None
    """`non_finite_logits` or `gpu_oom`."""
    seconds: float = 0.0
    """This image's share of the time in the network."""


@dataclass(slots=True)
class _Job:
    """One image on its way through: its tiles come back in batches shared with other images."""

    image: Image
    canvas: Canvas
    prediction: Prediction = field(default_factory=Prediction)


@dataclass(slots=True)
class _Flight:
    """A batch whose results may still be on their way back from the device."""

    tiles: list[tuple[_Job, int]]
    pixels_nhwc: UInt8
    logits_nkhw: torch.Tensor
    landed: torch.cuda.Event | None
    seconds: float


def _finished(jobs: deque[_Job]) -> Iterator[Prediction]:
    """Take off the front of the line every image that has all its tiles back, or has failed."""
    while jobs and (jobs[0].canvas.missing == 0 or jobs[0].prediction.error):
        job = jobs.popleft()
        if job.prediction.error is None:
            job.prediction.logits_khw = job.canvas.finish()
        yield job.prediction


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


class Segmenter:
    """Holds one network on one device.

    Tiles of equal shape share a batch, whichever image they come from. On a GPU the pixels travel from pinned memory
    and the results of a batch are fetched while the next one runs.
    """

    def __init__(
        self, checkpoint: Checkpoint, infer: InferConfig, tile: TileConfig, *, device: str | None = None
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        network = checkpoint.build(infer.output_stride).to(self.device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.num_classes = len(checkpoint.card.classes)
        self.stride, self.align_corners = int(self.network.stride), bool(self.network.align_corners)
        self.dtype = resolve_precision(infer.precision, self.device)
        self.batch, self.tile = infer.batch or DEFAULT_BATCH[self.device.type], tile
        self._mean, self._std = (
            torch.tensor(channel, device=self.device).view(1, -1, 1, 1) * 255
            for channel in (checkpoint.card.mean, checkpoint.card.std)
        )

    def __call__(self, images: Iterable[Image]) -> Iterator[Prediction]:
        """Segment a stream of images; predictions come in the order of the images."""
        jobs: deque[_Job] = deque()
        waiting: dict[tuple[int, int], list[tuple[_Job, int]]] = defaultdict(list)
        flights: deque[_Flight] = deque()
        for image in images:
            job = self._open(image)
            jobs.append(job)
            for index in range(len(job.canvas.grid.corners)):
                queue = waiting[job.canvas.grid.tile_height, job.canvas.grid.tile_width]
                queue.append((job, index))
                if len(queue) == self.batch:
                    self._fly(flights, queue)
            yield from _finished(jobs)
        for queue in waiting.values():
            self._fly(flights, queue)
        while flights:
            self._land(flights.popleft())
        yield from _finished(jobs)

    def _open(self, image: Image) -> _Job:
        grid = plan_tiles(image.height, image.width, self.tile)
        return _Job(image, Canvas(grid, num_classes=self.num_classes, stride=self.stride))

    def _fly(self, flights: deque[_Flight], queue: list[tuple[_Job, int]]) -> None:
        """Start the queued tiles, then fetch the batch before: its results come back while this one runs."""
        if not queue:
            return
        flights.extend(self._launch(list(queue)))
        queue.clear()
        while len(flights) > 1:
            self._land(flights.popleft())

    def _launch(self, tiles: list[tuple[_Job, int]]) -> list[_Flight]:
        """Run one batch; when the GPU is out of memory, run its halves; alone and still too large is an error."""
        pixels = np.stack([cut(job.image.pixels_hwc, job.canvas.grid, index) for job, index in tiles])
        started = perf_counter()
        try:
            logits, landed = self._to_host(self._forward(pixels, self.dtype))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return self._halve(tiles)
        return [_Flight(tiles, pixels, logits, landed, perf_counter() - started)]

    def _halve(self, tiles: list[tuple[_Job, int]]) -> list[_Flight]:
        if len(tiles) > 1:
            middle = len(tiles) // 2
            return self._launch(tiles[:middle]) + self._launch(tiles[middle:])
        job, _ = tiles[0]
        height, width = job.canvas.grid.tile_height, job.canvas.grid.tile_width
        job.prediction.error = InputError(
            "gpu_oom", f"a single {height}x{width} tile does not fit the GPU", hint="lower --tile.tile-px"
        )
        return []

    @torch.inference_mode()
    def _forward(self, pixels_nhwc: UInt8, dtype: torch.dtype) -> torch.Tensor:
        """Logits on the device, (N, K, h, w) float32, of (N, H, W, 3) uint8 pixels."""
        pixels = torch.from_numpy(pixels_nhwc)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        # (N, H, W, C) in memory seen as (N, C, H, W) already is channels_last: no copy.
        normalised = (pixels.permute(0, 3, 1, 2).float() - self._mean) / self._std
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            logits: torch.Tensor = self.network(normalised)
        return logits.float()

    def _to_host(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        if self.device.type != "cuda":
            return logits, None
        host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        host.copy_(logits, non_blocking=True)
        landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        landed.record()
        return host, landed

    def _land(self, flight: _Flight) -> None:
        """Wait for a batch and hand each tile's logits to its canvas."""
        started = perf_counter()
        if flight.landed is not None:
            flight.landed.synchronize()
        logits_nkhw: Float32 = flight.logits_nkhw.numpy()
        finite: Bool = np.asarray(np.isfinite(logits_nkhw).all(axis=(1, 2, 3)))
        if not finite.all():
            logits_nkhw = self._again_in_float32(flight, logits_nkhw, finite)
        share = (flight.seconds + perf_counter() - started) / len(flight.tiles)
        for (job, index), logits_khw, good in zip(flight.tiles, logits_nkhw, finite, strict=True):
            job.canvas.add(index, logits_khw)
            job.prediction.seconds += share
            if not good and not np.isfinite(logits_khw).all():
                detail = f"the network gave NaN or infinity for the tile at {job.canvas.grid.corners[index]}"
                job.prediction.error = InputError("non_finite_logits", f"{detail}, also in float32")

    def _again_in_float32(self, flight: _Flight, logits_nkhw: Float32, finite: Bool) -> Float32:
        """Run the tiles with NaN or infinity once more in float32: half precision overflows where float32 does not."""
        again = np.flatnonzero(~finite)
        patched = logits_nkhw.copy()
        patched[again] = self._forward(flight.pixels_nhwc[again], torch.float32).cpu().numpy()
        return patched
