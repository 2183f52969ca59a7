import logging
import re
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline import classes
from pipeline.config import InferConfig, TileConfig
from pipeline.infer.segmenter import DEFAULT_BATCH, Segmenter, footprint, resolve_precision
from pipeline.infer.tile import plan_tiles
from pipeline.models import zoo
from pipeline.models.card import Card
from pipeline.models.checkpoint import Checkpoint, blank
from pipeline.records import Image
from tests.support.examples import examples

TILE = TileConfig(tile_px=64, overlap_px=32, bucket_px=32)
WHOLE = TileConfig(mode="whole")
FP32 = InferConfig(batch=4, precision="fp32")
SMALL = {"backbone": "mobilenet_v2", "width_multiplier": 0.25, "aspp_channels": 16, "decoder_channels": 16}


class Pooling(nn.Module):
    """A network whose answer is known: the mean colour of every 4x4 cell, undone normalisation and all."""

    stride, align_corners = 4, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, 4)


class Corners(nn.Module):
    """A network whose cell (i, j) looks at pixel (8 i, 8 j)."""

    stride, align_corners = 8, True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 1, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * 4


class Pixelwise(nn.Module):
    """A network of stride 1: the colours themselves."""

    stride, align_corners = 1, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


class Coarse(Pooling):
    """As real networks do: a coarse map is brought back to the size of a finer one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = super().forward(x)
        coarse = nn.functional.avg_pool2d(x, 16)
        return fine + F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)


class Broken(Pooling):
    """Gives NaN wherever the first pixel of a tile is white; in float32 only when told so."""

    def __init__(self, *, also_in_float32: bool) -> None:
        super().__init__()
        self.also_in_float32 = also_in_float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x).clone()
        if torch.is_autocast_enabled("cpu") or self.also_in_float32:
            logits[x[:, 0, 0, 0] > 0.99] = float("nan")
        return logits


class Small(Pooling):
    """Runs out of GPU memory with more tiles than it holds."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.holds, self.seen = holds, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.holds:
            raise torch.cuda.OutOfMemoryError
        return super().forward(x)


def segmenter(network: nn.Module, infer: InferConfig = FP32, tile: TileConfig = TILE) -> Segmenter:
    """A segmenter around any network; its card says three classes and no normalisation."""
    card = SimpleNamespace(classes=range(3), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), output_stride=8)
    return Segmenter(SimpleNamespace(build=lambda _: network, card=card), infer, tile, device="cpu")


def image(height: int, width: int, seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 200, (height, width, 3)).astype(np.uint8), None)


@examples(30)
@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=6))
def test_every_image_gets_its_own_cells_whatever_shares_its_batches(sizes: list[tuple[int, int]]) -> None:
    images = [image(*size, seed=index) for index, size in enumerate(sizes)]
    predictions = list(segmenter(Pooling())(images))
    assert len(predictions) == len(images)
    for one, prediction in zip(images, predictions, strict=True):
        cells = -(-one.height // 4), -(-one.width // 4)
        assert prediction.logits_khw.shape == (3, *cells)
        padded = np.pad(one.pixels_hwc, ((0, -one.height % 4), (0, -one.width % 4), (0, 0)), mode="symmetric")
        means = padded.reshape(cells[0], 4, cells[1], 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(prediction.logits_khw, means - means.max(axis=0), atol=2e-3)


def test_images_come_back_while_later_ones_are_still_being_read() -> None:
    given_out = []

    def stream():
        for index in range(20):
            given_out.append(index)
            yield image(32, 32)

    next(iter(segmenter(Pooling())(stream())))
    assert len(given_out) < 20


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(1, 1), (33, 65), (150, 100)])
def test_a_real_network_segments_any_size_at_any_stride(output_stride: int, size: tuple[int, int]) -> None:
    got = next(Segmenter(checkpoint(), InferConfig(output_stride=output_stride), TILE, device="cpu")([image(*size)]))
    assert got.logits_khw.shape == (21, -(-size[0] // 4), -(-size[1] // 4))
    assert np.isfinite(got.logits_khw).all()
    assert got.seconds > 0


class Timed(Pooling):
    """Takes four seconds of a clock of its own for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.batches = 0.0, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.now += 4
        self.batches.append(len(x))
        return super().forward(x)


def test_the_seconds_of_a_batch_are_shared_among_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tiles to a batch of four seconds: a second a tile, and a second and a third where three tiles are left."""
    network = Timed()
    made = segmenter(network)
    network.now, network.batches = 0.0, []
    monkeypatch.setattr("pipeline.infer.segmenter.perf_counter", lambda: network.now)
    tiles = len(plan_tiles(128, 128, TILE).corners)
    small, large, last = made([image(64, 64), image(128, 128), image(64, 64)])
    assert (tiles, network.batches) == (9, [4, 4, 3])
    assert small.seconds == 1
    assert large.seconds == pytest.approx(7 + 2 * 4 / 3)
    assert last.seconds == pytest.approx(4 / 3)


@pytest.mark.parametrize("infer", [{}, {"scales": (0.5, 1.0), "flip": True}])
def test_the_seconds_of_all_images_add_up_to_those_of_the_network(infer: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Timed()
    made = segmenter(network, InferConfig(precision="fp32", batch=3, **infer))
    network.now = 0.0
    monkeypatch.setattr("pipeline.infer.segmenter.perf_counter", lambda: network.now)
    images = [image(*size) for size in [(40, 40), (150, 70), (64, 200), (33, 90)]]
    assert sum(one.seconds for one in made(images)) == pytest.approx(network.now)


def test_the_network_runs_at_the_output_stride_that_is_asked_for_and_at_the_cards_else() -> None:
    model, pixels = lively_checkpoint(), image(64, 96).pixels_hwc
    mean, std = (torch.tensor(channel).view(1, 3, 1, 1) for channel in (model.card.mean, model.card.std))
    found = {}
    for stride in (None, 8, 16):
        made = Segmenter(model, InferConfig(precision="fp32", output_stride=stride), WHOLE, device="cpu")
        found[stride] = next(made([Image(pixels, None)])).logits_khw
        with torch.no_grad():
            logits = model.build(stride or 16)(
                (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - mean) / std
            )[0]
        np.testing.assert_allclose(found[stride], logits - logits.amax(0), atol=2e-2)
        assert made.inference.startswith(f"os{stride or 16} ")
    assert np.abs(found[8].astype(np.float32) - found[16]).max() > 0.1
    np.testing.assert_array_equal(found[None], found[16])


def slowly(network: nn.Module, pixels: np.ndarray, infer: InferConfig) -> torch.Tensor:
    """Multi-scale and flip as one would write it down: (K, h, w) logits of a whole image, one look after the other."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    beyond, align = int(network.align_corners), network.align_corners
    scores = []
    for scale in infer.scales:
        for flip in (False, True) if infer.flip else (False,):
            size = [round((side - beyond) * scale) + beyond for side in image.shape[2:]]
            seen = (F.interpolate(image, size, mode="bilinear", align_corners=align) + 0.5).floor() / 255
            with torch.no_grad():
                logits = network(seen.flip(3)).flip(3) if flip else network(seen)
            base = [-(-side // network.stride) for side in image.shape[2:]]
            scores.append(F.interpolate(logits, base, mode="bilinear", align_corners=align)[0])
    stacked = torch.stack(scores)
    fused = stacked.amax(0) if infer.fuse == "max_score" else stacked.softmax(1).mean(0).log()
    return fused - fused.amax(0)


@pytest.mark.parametrize("fuse", ["mean_probability", "max_score"])
@pytest.mark.parametrize("network", [Pooling(), Corners(), Pixelwise()])
@pytest.mark.parametrize(("scales", "flip"), [((1.0,), True), ((0.5, 1.0, 1.5), False), ((2.0, 0.5), True)])
def test_scales_and_flips_are_what_a_plain_loop_gives(
    network: nn.Module, scales: tuple[float, ...], flip: bool, fuse: str
) -> None:
    infer = InferConfig(precision="fp32", scales=scales, flip=flip, fuse=fuse)
    pixels = image(128 + network.align_corners, 192 + network.align_corners).pixels_hwc
    got = next(segmenter(network, infer, WHOLE)([Image(pixels, None)]))
    np.testing.assert_allclose(got.logits_khw, slowly(network, pixels, infer), atol=5e-3)


def test_scales_and_flips_of_a_real_network_are_what_a_plain_loop_gives() -> None:
    infer = InferConfig(precision="fp32", scales=(0.5, 1.0), flip=True)
    real = lively_checkpoint()
    pixels = image(64, 128).pixels_hwc
    got = next(Segmenter(real, infer, WHOLE, device="cpu")([Image(pixels, None)]))
    mean, std = (torch.tensor(channel).view(1, 3, 1, 1) for channel in (real.card.mean, real.card.std))
    network = real.build()
    plain = SimpleNamespace(stride=4, align_corners=False)
    expected = slowly(Normalised(network, mean, std, plain), pixels, infer)
    np.testing.assert_allclose(got.logits_khw, expected, atol=2e-2)


class Normalised(nn.Module):
    """A network with the normalisation of its card in front."""

    def __init__(self, network: nn.Module, mean: torch.Tensor, std: torch.Tensor, facts: SimpleNamespace) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std
        self.stride, self.align_corners = facts.stride, facts.align_corners

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) / self.std)


@examples(20)
@given(st.integers(1, 260), st.integers(1, 260), st.sampled_from([Pooling(), Corners(), Pixelwise()]))
def test_looks_at_large_images_are_cut_into_tiles_like_the_image_itself(height: int, width: int, network) -> None:
    """These networks see nothing beyond a cell, so that tiles give what the whole image gives."""
    infer = InferConfig(batch=3, precision="fp32", scales=(0.5, 1.5), flip=True)
    one = image(height, width)
    tiled, whole = (next(segmenter(network, infer, tile)([one])).logits_khw for tile in (TILE, WHOLE))
    assert tiled.shape == (3, -(-height // network.stride), -(-width // network.stride))
    np.testing.assert_allclose(tiled, whole, atol=5e-3)


def test_pixels_are_let_go_once_they_are_cut_although_an_earlier_image_still_waits() -> None:
    kept = []

    def stream():
        yield image(32, 32)  # of a shape of its own: waits for a full batch until the end
        for seed in range(8):
            one = image(64, 64, seed)
            kept.append(weakref.ref(one.pixels_hwc))
            yield one
            del one
        assert sum(ref() is not None for ref in kept) <= 4  # at most the batch that is being filled

    assert len(list(segmenter(Pooling())(stream()))) == 9


def test_more_logits_than_allowed_fail_by_name_and_alone() -> None:
    infer = InferConfig(precision="fp32", max_logits_mib=0.05)
    large, small = segmenter(Pixelwise(), infer)([image(100, 100), image(50, 50)])
    assert (large.error.code, small.error) == ("too_many_pixels", None)
    assert "100x100 pixels give 0 MiB of logits at stride 1 with 3 classes, limit 0.05 MiB" in large.error.detail
    assert "--infer.max-logits-mib" in large.error.hint


def test_an_image_too_large_to_look_at_whole_fails_by_name_and_alone() -> None:
    tile = TileConfig(mode="whole", whole_mpx=0.01)
    large, small = segmenter(Pooling(), FP32, tile)([image(100, 100), image(50, 50)])
    assert (large.error.code, small.error) == ("too_many_pixels", None)
    assert "128x128 = 0.0 Mpx at once, limit 0.01" in large.error.detail
    assert "--tile.whole-mpx" in large.error.hint


def test_an_image_exactly_at_a_limit_is_segmented_and_one_beyond_it_is_not() -> None:
    logits = InferConfig(precision="fp32", max_logits_mib=64 * 128 * 3 * 2 / 2**20)
    within, beyond = segmenter(Pixelwise(), logits)([image(64, 128), image(64, 129)])
    assert (within.error, beyond.error.code) == (None, "too_many_pixels")
    whole = TileConfig(mode="whole", whole_mpx=128 * 128 / 1e6)
    within, beyond = segmenter(Pooling(), FP32, whole)([image(128, 128), image(128, 129)])
    assert (within.error, beyond.error.code) == (None, "too_many_pixels")


@pytest.mark.parametrize(
    ("infer", "tile", "said"),
    [
        ({}, {}, "os8 fp32 sliding"),
        ({"output_stride": 16, "flip": True}, {"mode": "whole"}, "os16 fp32 whole scales=1 flip mean_probability"),
        ({"scales": (0.5, 1.25), "fuse": "max_score"}, {}, "os8 fp32 sliding scales=0.5,1.25 max_score"),
    ],
)
def test_a_segmenter_says_how_it_looks_at_images(infer: dict, tile: dict, said: str) -> None:
    assert segmenter(Pooling(), InferConfig(precision="fp32", **infer), TileConfig(**tile)).inference == said


def test_a_compiled_network_is_made_before_the_first_image_and_once_for_all_sizes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, freezing = [], set()

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        made.append(graph)
        freezing.add(torch._inductor.config.freezing)
        return graph

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, *, dynamic: real(network, dynamic=dynamic, backend=backend))
    images = [image(height, width) for height, width in [(30, 30), (64, 20), (90, 130), (33, 64), (300, 200)]]
    infer = InferConfig(precision="fp32", compile=True, batch=3)
    with caplog.at_level(logging.INFO, logger="pipeline.infer.segmenter"):
        compiled = segmenter(Coarse(), infer)
    assert re.fullmatch(r"network compiled in \d+\.\d s", caplog.messages[-1])
    assert compiled.inference == "os8 fp32 sliding compiled"
    before = len(made)
    for one, other in zip(compiled(images), segmenter(Coarse())(images), strict=True):
        np.testing.assert_allclose(one.logits_khw, other.logits_khw, atol=1e-3)
    assert before >= 1
    assert len(made) == before
    assert freezing == {True}  # on a CPU weights become constants


def test_a_compiler_that_fails_leaves_the_network_as_it_is_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(network: nn.Module, *, dynamic: bool):
        def call(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    one = segmenter(Pooling(), InferConfig(precision="fp32", compile=True))
    assert one.inference == "os8 fp32 sliding eager (RuntimeError)"
    assert "torch.compile failed, the network runs uncompiled: no C++ compiler" in caplog.text
    assert next(one([image(32, 32)])).error is None


def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    network = zoo.build_network("deeplab_v3plus", 21, **SMALL)
    card = Card(
        architecture="deeplab_v3plus",
        options=SMALL,
        classes=classes.load_class_map("voc"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        source="test",
        license="Apache-2.0",
    )
    return Checkpoint(card, network.state_dict(), "0" * 64)


def lively_checkpoint() -> Checkpoint:
    """Batch norm with the statistics of noise, as if it were trained: else random layers give next to nothing."""
    model = checkpoint()
    network = model.build().train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return replace(model, state=network.state_dict())


def test_the_footprint_is_that_of_the_network_as_float32() -> None:
    model = checkpoint()
    assert footprint(model).weight_bytes == sum(tensor.numel() for tensor in model.build().state_dict().values()) * 4
    assert (footprint(model).num_classes, footprint(model).stride) == (21, 4)


def test_the_footprint_knows_a_finer_output_stride() -> None:
    card = checkpoint().card.model_copy(update={"architecture": "deeplab_v3", "options": {"backbone": "resnet50"}})
    model = Checkpoint(card, blank(card).state_dict(), "0" * 64)
    assert [footprint(model, stride).stride for stride in (None, 8)] == [16, 8]


def test_batch_mates_do_not_change_an_images_mask() -> None:
    one = Segmenter(checkpoint(), InferConfig(batch=1, precision="fp32"), TILE, device="cpu")
    many = Segmenter(checkpoint(), InferConfig(batch=8, precision="fp32"), TILE, device="cpu")
    images = [image(64, 64, seed) for seed in range(8)]
    for alone, together in zip(one(images), many(images), strict=True):
        np.testing.assert_array_equal(alone.logits_khw.argmax(0), together.logits_khw.argmax(0))


def test_half_precision_agrees_with_float32_on_nearly_all_labels() -> None:
    full, half = (
        next(Segmenter(checkpoint(), InferConfig(precision=p), TILE, device="cpu")([image(64, 64)])).logits_khw
        for p in ("fp32", "bf16")
    )
    assert (full.argmax(0) != half.argmax(0)).mean() < 0.05


def test_weights_kept_in_half_precision_give_what_autocast_gives() -> None:
    half = Segmenter(checkpoint(), InferConfig(precision="bf16"), TILE, device="cpu")
    x = torch.rand(1, 3, 64, 96)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(half.network(x), half.exact(x), rtol=0, atol=0)
    assert all(tensor.dtype == torch.float32 for tensor in half.exact.state_dict().values() if tensor.ndim)


def white_and_good() -> list[Image]:
    return [Image(np.full((32, 32, 3), 255, np.uint8), None), image(32, 32)]


def test_an_overflow_of_half_precision_is_run_again_in_float32() -> None:
    half = InferConfig(batch=4, precision="bf16")
    got = list(segmenter(Broken(also_in_float32=False), half)(white_and_good()))
    assert [one.error for one in got] == [None, None]
    assert np.isfinite(got[0].logits_khw).all()


def test_an_image_whose_logits_are_never_finite_fails_alone() -> None:
    bad, good = segmenter(Broken(also_in_float32=True))(white_and_good())
    assert bad.error.code == "non_finite_logits"
    assert bad.logits_khw is None
    assert good.logits_khw is not None


@pytest.mark.parametrize("place", range(4))
def test_only_the_tile_that_overflows_is_run_again_and_takes_the_answer_of_float32(place: int) -> None:
    network = Again()
    images = [image(32, 32, seed) for seed in range(4)]
    images[place].pixels_hwc[:16] = 255
    made = segmenter(network, InferConfig(batch=4, precision="bf16"))
    network.full.clear()
    got = list(made(images))
    assert network.full == [1]
    assert [one.error for one in got] == [None] * 4
    exact = list(segmenter(Pooling())(images))
    for one, other in zip(got, exact, strict=True):
        np.testing.assert_allclose(one.logits_khw, other.logits_khw, atol=2e-2)
    np.testing.assert_array_equal(got[place].logits_khw, exact[place].logits_khw)


class Again(Broken):
    """Remembers the sizes of its batches in float32."""

    def __init__(self) -> None:
        super().__init__(also_in_float32=False)
        self.full = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            self.full.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(("which", "corner"), [(0, "(0, 0)"), (-1, "(64, 64)")])
def test_a_tile_that_is_never_finite_is_named_by_its_corner_and_not_tried_in_vain(which: int, corner: str) -> None:
    one = image(128, 128)
    y, x = plan_tiles(128, 128, TILE).corners[which]
    one.pixels_hwc[y, x] = 255
    (bad,) = segmenter(Broken(also_in_float32=True), InferConfig(batch=20, precision="fp32"))([one])
    assert bad.error.code == "non_finite_logits"
    assert f"tile at {corner}, also in float32" in bad.error.detail


class OnlyHalf(Broken):
    """Gives NaN in half precision, and does not fit the GPU in float32."""

    def __init__(self) -> None:
        super().__init__(also_in_float32=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            raise torch.cuda.OutOfMemoryError
        return super().forward(x)


def test_out_of_memory_while_running_again_in_float32_fails_that_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    bad, good = segmenter(OnlyHalf(), InferConfig(batch=4, precision="bf16"))(white_and_good())
    assert (bad.error.code, good.error) == ("gpu_oom", None)


@pytest.mark.parametrize("holds", [1, 2, 3])
def test_out_of_memory_halves_the_batch_until_it_fits(monkeypatch: pytest.MonkeyPatch, holds: int) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    network = Small(holds)
    got = list(segmenter(network)([image(32, 32, seed) for seed in range(8)]))
    assert all(one.error is None for one in got)
    assert network.seen[:2] == [4, 2]


def test_a_tile_that_never_fits_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    got = list(segmenter(Small(0))([image(32, 32), image(20, 20)]))
    assert [one.error.code for one in got] == ["gpu_oom", "gpu_oom"]
    assert "--tile.tile-px" in got[0].error.hint


@pytest.mark.parametrize(("asked", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_precision_that_is_asked_for_is_used(asked: str, dtype: torch.dtype) -> None:
    assert resolve_precision(asked, torch.device("cpu")) is dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)],
)
def test_bf16_is_chosen_only_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) is dtype


def test_batches_are_as_large_as_asked_or_as_suits_the_device() -> None:
    """DEFAULT_BATCH of a CPU: 16 tiles take twice as long each."""
    for batch, expected in ((None, DEFAULT_BATCH["cpu"]), (3, 3)):
        network = Timed()
        made = segmenter(network, InferConfig(precision="fp32", batch=batch))
        network.batches = []
        list(made([image(64, 64)] * 12))
        assert network.batches[0] == expected
        assert sum(network.batches) == 12


# ---------------------------------------------------------------- a GPU, acted by the CPU


class Streams:
    """Acts `torch.cuda`: copies that do not block are done only when their event is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.late, self.pinned, self.waited = [], [], 0
        copy, empty = torch.Tensor.copy_, torch.empty

        def copy_later(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            if not non_blocking:
                return copy(target, source)
            kept = source.clone()
            self.late.append(lambda: copy(target, kept))
            return target

        def page_locked(*size, pin_memory: bool = False, **options) -> torch.Tensor:
            made = empty(*size, **options)
            if pin_memory:
                made.view(torch.uint8).fill_(255)  # NaN until something is copied
                self.pinned.append((tuple(made.shape), made.dtype))
            return made

        monkeypatch.setattr(torch.Tensor, "copy_", copy_later)
        monkeypatch.setattr(torch, "empty", page_locked)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self)

    def record(self) -> None:
        self.landing, self.late = self.late, []

    def synchronize(self) -> None:
        for copy in self.landing:
            copy()

    def wait_stream(self, other: object) -> None:
        assert other is self
        self.waited += 1


def test_on_a_gpu_results_are_read_when_they_have_landed_and_every_batch_waits_for_its_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [image(64, 64, seed) for seed in range(3)]
    expected = list(segmenter(Pooling())(images))
    made = segmenter(Pooling())
    streams = made._upload = Streams(monkeypatch)
    for one, other in zip(made(images), expected, strict=True):
        np.testing.assert_array_equal(one.logits_khw, other.logits_khw)
    assert streams.waited == 1
    assert streams.pinned == [((3, 64, 64, 3), torch.uint8), ((3, 3, 16, 16), torch.float16), ((3,), torch.bool)]
    assert len(streams.landing) == 2
