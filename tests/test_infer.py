from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline import classes
from pipeline.checkpoint import Card, Checkpoint
from pipeline.config import InferConfig, TileConfig
from pipeline.infer import Segmenter, resolve_precision
from pipeline.models import zoo
from pipeline.records import Image

TILE = TileConfig(tile_px=64, overlap_px=32, bucket_px=32)
FP32 = InferConfig(batch=4, precision="fp32")
SMALL = {"backbone": "mobilenet_v2", "width_multiplier": 0.25, "aspp_channels": 16, "decoder_channels": 16}


class Pooling(nn.Module):
    """A network whose answer is known: the mean colour of every 4x4 cell, undone normalisation and all."""

    stride, align_corners = 4, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, 4)


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


def segmenter(network: nn.Module, infer: InferConfig = FP32) -> Segmenter:
    """A segmenter around any network; its card says three classes and no normalisation."""
    card = SimpleNamespace(classes=range(3), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Segmenter(SimpleNamespace(build=lambda _: network, card=card), infer, TILE, device="cpu")


def image(height: int, width: int, seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 200, (height, width, 3)).astype(np.uint8), None)


@settings(max_examples=30)
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


def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    network = zoo.build("deeplab_v3plus", 21, **SMALL)
    card = Card(
        architecture="deeplab_v3plus",
        options=SMALL,
        classes=classes.load("voc"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        source="test",
        license="Apache-2.0",
    )
    return Checkpoint(card, network.state_dict(), "0" * 64)


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
