from time import monotonic

import numpy as np
import pydensecrf.densecrf as pydensecrf
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DeadlinePassed
from pipeline.records import Item, Scored, Window
from pipeline.refine import densecrf, lattice_torch, unary
from pipeline.refine.lattice_torch import DenseCRF, build_lattice, upsample_logits
from pipeline.refine.presets import PRESETS, CrfParams
from tests.support.examples import examples

README = CrfParams(10, 80, 13, 3, 3)
DEEPLAB = CrfParams(4, 67, 3, 3, 1)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def scene(height: int, width: int, num_classes: int = 4, *, bands: int = 3, seed: int = 0) -> tuple:
    """A picture of regions with shading and grain, and scores that know them at stride 8: (H, W, B) and (K, H, W)."""
    rng = torch.Generator().manual_seed(seed)

    def clouds(channels: int, cell: int) -> torch.Tensor:
        coarse = torch.randn(1, channels, height // cell + 2, width // cell + 2, generator=rng)
        return F.interpolate(coarse, size=(height, width), mode="bicubic")[0]

    label = clouds(num_classes, 16).argmax(0)
    palette = torch.rand(num_classes, bands, generator=rng) * 170 + 40
    shades = (
        palette[label].permute(2, 0, 1) + 10 * clouds(bands, 8) + 2 * torch.randn(bands, height, width, generator=rng)
    )
    known = F.one_hot(label, num_classes).permute(2, 0, 1)[None].float()
    coarse = 6 * F.interpolate(known, size=(height // 8 + 1, width // 8 + 1), mode="area")
    coarse += torch.randn(coarse.shape, generator=rng)
    logits = F.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return shades.clamp(0, 255).byte().permute(1, 2, 0).contiguous(), logits


def batch(count: int, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    scenes = [scene(*args, **kwargs, seed=seed) for seed in range(count)]
    return torch.stack([image for image, _ in scenes]), torch.stack([logits for _, logits in scenes])


def some(valid_share: float, *size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) < valid_share


# ---------------------------------------------------------------- against others


def pydensecrfs(images: torch.Tensor, logits: torch.Tensor, params: CrfParams) -> torch.Tensor:
    pairs = zip(images.numpy(), logits.numpy(), strict=True)
    return torch.from_numpy(
        np.stack([densecrf.pydensecrf_marginals(image, scores, None, params) for image, scores in pairs])
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("params", [README, DEEPLAB])
def test_marginals_are_those_of_pydensecrf(params: CrfParams, device: str) -> None:
    images, logits = batch(2, 150, 200, 21)
    ours, theirs = DenseCRF(device).refine(images, logits, None, params).cpu(), pydensecrfs(images, logits, params)
    assert ((ours - theirs).abs().amax(1) > 1e-3).double().mean() <= 1e-4
    assert ((ours.argmax(1) != theirs.argmax(1)).sum((1, 2)) <= 2).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_marginals_of_every_preset_are_those_of_pydensecrf_as_far_as_float32_goes(preset: str) -> None:
    """The mean field amplifies rounding where a pixel is about to tip: pydensecrf is 0.0025 from float64 at three."""
    images, logits = batch(2, 90, 120, 21)
    params = PRESETS[preset]
    ours, theirs = DenseCRF().refine(images, logits, None, params), pydensecrfs(images, logits, params)
    assert ((ours - theirs).abs().amax(1) > 1e-3).double().mean() <= 2e-4
    assert (ours - theirs).abs().mean() < 1e-6
    assert ((ours.argmax(1) != theirs.argmax(1)).sum((1, 2)) <= 2).all()


def brute_force(image: torch.Tensor, logits: torch.Tensor, chosen: torch.Tensor, params: CrfParams) -> torch.Tensor:
    """Mean field with every pair of the chosen pixels, float64: (K, P)."""
    y, x = chosen.nonzero().double().unbind(1)
    place, colour = torch.stack([x, y], 1), image[chosen].double()

    def kernel(features: torch.Tensor) -> torch.Tensor:
        pairs = torch.exp(-0.5 * torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
        scale = pairs.sum(1).rsqrt()
        return scale[:, None] * pairs * scale

    both = torch.cat([place / params.bi_xy, colour / params.bi_rgb], 1)
    message = params.pos_w * kernel(place / params.pos_xy) + params.bi_w * kernel(both)
    scores = logits[:, chosen].double()
    q = scores.softmax(0)
    for _ in range(params.iterations):
        q = (scores + q @ message).softmax(0)
    return q


@pytest.mark.parametrize("params", [README, DEEPLAB, PRESETS["deeplab-v1"]])
@pytest.mark.parametrize("valid_share", [1.0, 0.8])
def test_marginals_are_near_those_with_every_pair_of_pixels(params: CrfParams, valid_share: float) -> None:
    image, logits = scene(40, 40, 3)
    valid = some(valid_share, 40, 40)
    ours = DenseCRF().refine(image[None], logits[None], valid[None], params)[0][:, valid]
    exact = brute_force(image, logits, valid, params)
    assert (ours - exact).abs().mean() < 5e-3
    assert (ours.argmax(0) != exact.argmax(0)).double().mean() < 0.01


def test_pixels_that_are_not_valid_are_as_if_they_were_not_there() -> None:
    """pydensecrf takes a list of points too: the valid ones."""
    image, logits = scene(50, 60, 5)
    valid = some(0.7, 50, 60)
    points = pydensecrf.DenseCRF(int(valid.sum()), 5)
    points.setUnaryEnergy(-logits[:, valid].numpy())
    y, x = valid.nonzero().float().unbind(1)
    place = torch.stack([x, y])
    points.addPairwiseEnergy((place / DEEPLAB.pos_xy).numpy(), compat=DEEPLAB.pos_w)
    both = torch.cat([place / DEEPLAB.bi_xy, image[valid].t() / DEEPLAB.bi_rgb])
    points.addPairwiseEnergy(both.numpy(), compat=DEEPLAB.bi_w)
    theirs = np.array(points.inference(DEEPLAB.iterations))
    ours = DenseCRF().refine(image[None], logits[None], valid[None], DEEPLAB)[0]
    np.testing.assert_allclose(ours[:, valid], theirs, atol=1e-3)
    np.testing.assert_allclose(ours[:, ~valid], logits.softmax(0)[:, ~valid], atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]), st.booleans())
def test_upsampling_is_that_of_the_refiner(height: int, width: int, stride: int, align_corners: bool) -> None:
    cells = -(-height // stride), -(-width // stride)
    logits = np.random.default_rng(height + 41 * width).normal(size=(3, *cells)).astype(np.float16)
    scored = Scored(Item(key="k", shard="s", etag="e"), stride=stride, align_corners=align_corners)
    expected = unary.upsample_window(logits, scored, Window(0, 0, height, width))
    ours = upsample_logits(
        torch.from_numpy(logits)[None].float(), height, width, stride=stride, align_corners=align_corners
    )
    np.testing.assert_allclose(ours[0].permute(2, 0, 1), expected, atol=1e-5)


def test_logits_at_a_stride_are_upsampled_first() -> None:
    images, _ = batch(2, 30, 42)
    small = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0)).half()
    full = upsample_logits(small.float(), 30, 42, stride=8, align_corners=True).permute(0, 3, 1, 2)
    one = DenseCRF().refine(images, small, None, DEEPLAB, stride=8, align_corners=True)
    torch.testing.assert_close(one, DenseCRF().refine(images, full, None, DEEPLAB))


# ---------------------------------------------------------------- laws


sizes = st.integers(1, 14)


@examples(40)
@given(sizes, sizes, st.integers(2, 30), st.integers(1, 3), st.integers(1, 16), st.sampled_from([None, 0.0, 0.6]))
def test_marginals_of_any_batch_are_probabilities_and_those_of_each_image_alone(
    height: int, width: int, num_classes: int, count: int, bands: int, valid_share: float | None
) -> None:
    images, logits = batch(count, height, width, num_classes, bands=bands)
    valid = None if valid_share is None else some(valid_share, count, height, width)
    together = DenseCRF().refine(images, logits, valid, DEEPLAB)
    assert together.shape == (count, num_classes, height, width)
    torch.testing.assert_close(together.sum(1), torch.ones(count, height, width))
    assert (together >= 0).all()
    for i in range(count):
        one = slice(i, i + 1)
        alone = DenseCRF().refine(images[one], logits[one], None if valid is None else valid[one], DEEPLAB)
        torch.testing.assert_close(together[one], alone, atol=1e-4, rtol=0)


@examples(20)
@given(st.permutations(range(6)))
def test_permuting_the_classes_permutes_the_marginals(order: list[int]) -> None:
    images, logits = batch(1, 20, 30, 6)
    plain = DenseCRF().refine(images, logits, None, README)
    torch.testing.assert_close(
        DenseCRF().refine(images, logits[:, order], None, README), plain[:, order], atol=1e-4, rtol=0
    )


def test_without_kernels_the_marginals_are_the_softmax() -> None:
    images, logits = batch(2, 20, 30)
    alone = DenseCRF().refine(images, 20 * logits, None, CrfParams(0, 1, 1, 0, 1))
    torch.testing.assert_close(alone, (20 * logits).softmax(1))


def test_an_image_without_valid_pixels_comes_back_as_it_was() -> None:
    images, logits = batch(2, 20, 30)
    valid = torch.zeros(2, 20, 30, dtype=torch.bool)
    valid[1] = True
    got = DenseCRF().refine(images, logits, valid, DEEPLAB)
    torch.testing.assert_close(got[0], logits[0].softmax(0))
    torch.testing.assert_close(got[1], DenseCRF().refine(images[1:], logits[1:], None, DEEPLAB)[0])


def test_what_is_in_pixels_that_are_not_valid_changes_nothing() -> None:
    images, logits = batch(1, 24, 24)
    valid = some(0.7, 1, 24, 24)
    others = torch.where(valid[..., None], images, images.flip(1))
    louder = torch.where(valid[:, None], logits, 50 * logits.flip(2))
    one = DenseCRF().refine(images, logits, valid, DEEPLAB).permute(0, 2, 3, 1)[valid]
    torch.testing.assert_close(DenseCRF().refine(others, louder, valid, DEEPLAB).permute(0, 2, 3, 1)[valid], one)


def test_scores_of_any_size_and_a_class_that_is_alone_give_finite_marginals() -> None:
    images, logits = batch(1, 12, 12)
    assert DenseCRF().refine(images, logits * 1e4, None, README).isfinite().all()
    assert (DenseCRF().refine(images, logits[:, :1], None, README) == 1).all()


def test_the_same_input_gives_the_same_bits() -> None:
    images, logits = batch(2, 40, 50, 21)
    torch.testing.assert_close(
        DenseCRF().refine(images, logits, None, README), DenseCRF().refine(images, logits, None, README), atol=0, rtol=0
    )


# ---------------------------------------------------------------- the lattice


def test_the_filter_and_its_transpose_are_adjoint() -> None:
    features = torch.randn(5, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    lattice = build_lattice(features, torch.arange(60) % 2).normalised()
    full = lattice @ torch.eye(60, dtype=torch.float64)
    torch.testing.assert_close(lattice.transposed() @ torch.eye(60, dtype=torch.float64), full.t())
    assert (full[::2, 1::2] == 0).all()  # groups do not mix
    assert (full >= 0).all()


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_filter_of_dense_points_is_a_gaussian(dims: int) -> None:
    """Away from the lattice's own grid, impulse responses scatter around exp(-r^2 / 2)."""
    features = torch.randn(dims, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lattice = build_lattice(features, torch.zeros(4000, dtype=torch.long))
    response = (lattice @ torch.eye(4000, dtype=torch.float64)[:, :200].contiguous())[:200]
    near = torch.exp(-0.5 * torch.cdist(features[:, :200].t(), features[:, :200].t()) ** 2)
    slope = (response * near).sum() / (near * near).sum()
    assert torch.corrcoef(torch.stack([response.flatten(), near.flatten()]))[0, 1] > 0.97
    assert slope > 0


def test_arbitrary_keys_give_the_lattice_of_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    images, logits = batch(2, 40, 50)
    exact = DenseCRF().refine(images, logits, None, DEEPLAB)
    monkeypatch.setattr(lattice_torch, "MAX_KEY", 0)
    torch.testing.assert_close(DenseCRF().refine(images, logits, None, DEEPLAB), exact, atol=1e-5, rtol=0)


def test_products_in_blocks_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    images, logits = batch(1, 30, 40)
    whole = DenseCRF().refine(images, logits, None, DEEPLAB)
    monkeypatch.setattr(lattice_torch, "_BLOCK_BYTES", 1000)
    torch.testing.assert_close(DenseCRF().refine(images, logits, None, DEEPLAB), whole, atol=0, rtol=0)


def test_spatial_lattices_are_kept_by_size() -> None:
    images, logits = batch(1, 17, 19)
    lattice_torch._spatial.cache_clear()
    for _ in range(3):
        DenseCRF().refine(images, logits, None, DEEPLAB)
    assert lattice_torch._spatial.cache_info().misses == 1


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": torch.zeros(1, 8, 8, 3)}, "uint8"),
        ({"images": torch.zeros(8, 8, 3, dtype=torch.uint8)}, "images"),
        ({"images": torch.zeros(1, 0, 8, 3, dtype=torch.uint8)}, "images"),
        ({"logits": torch.zeros(1, 4, 8, 8, dtype=torch.int64)}, "floating point"),
        ({"logits": torch.zeros(4, 8, 8)}, "logits"),
        ({"logits": torch.zeros(2, 4, 8, 8)}, "do not fit"),
        ({"logits": torch.zeros(1, 4, 8, 7)}, "do not fit"),
        ({"stride": 8}, r"expected \(1, K, 1, 1\)"),
        ({"stride": 0}, "stride"),
        ({"valid": torch.ones(1, 8, 8)}, "bool"),
        ({"valid": torch.ones(8, 8, dtype=torch.bool)}, "valid"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(wrong: dict, message: str) -> None:
    right = {"images": torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "logits": torch.zeros(1, 4, 8, 8), "valid": None}
    with pytest.raises(ValueError, match=message):
        DenseCRF().refine(**(right | wrong), params=DEEPLAB)


def test_no_iteration_starts_after_the_deadline() -> None:
    images, logits = batch(1, 8, 8)
    with pytest.raises(DeadlinePassed, match="after 0 of 10 iterations"):
        DenseCRF().refine(images, logits, None, DEEPLAB, deadline=monotonic() - 1)
