import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.refine.domain_transform import smooth_scores
from pipeline.refine.domain_transform_torch import domain_transform
from pipeline.refine.presets import DomainTransformParams
from tests.support.examples import examples

SETTINGS = (7.0, 2.0, 3)


def scene(*size: int, num_classes: int = 3, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(size[0], num_classes, *size[1:], generator=rng, dtype=dtype)
    return scores, torch.rand(*size, generator=rng, dtype=dtype)


@examples(15)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.05, 1.0, 5.0]))
def test_it_is_the_numpy_filter_to_the_bit(height: int, width: int, iterations: int, sigma_r: float) -> None:
    scores, edges = scene(2, height, width)
    smooth = domain_transform(scores, edges, 7.0, sigma_r, iterations)
    params = DomainTransformParams(sigma_s=7, sigma_r=sigma_r, iterations=iterations)
    for own, image, edge in zip(smooth.numpy(), scores.numpy(), edges.numpy(), strict=True):
        np.testing.assert_array_equal(own, smooth_scores(image, edge[1:], edge[:, 1:], None, params))


@examples(6)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.integers(1, 3))
def test_gradients_are_those_of_finite_differences(height: int, width: int, count: int, iterations: int) -> None:
    leaves = [leaf.requires_grad_() for leaf in scene(count, height, width, num_classes=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda scores, edges: domain_transform(scores, edges, 4.0, 2.0, iterations), leaves)


def test_it_is_a_well_behaved_operator() -> None:
    leaves = [leaf.requires_grad_() for leaf in scene(2, 5, 6, dtype=torch.float64)]
    torch.library.opcheck(domain_transform, (*leaves, *SETTINGS))


def test_inputs_of_any_memory_layout_stay_as_they_are() -> None:
    scores, edges = scene(2, 8, 9)
    before = scores.clone(), edges.clone()
    plain = domain_transform(scores, edges, *SETTINGS)
    last = domain_transform(scores.to(memory_format=torch.channels_last), edges, *SETTINGS)
    torch.testing.assert_close(last, plain, rtol=0, atol=0)
    torch.testing.assert_close((scores, edges), before, rtol=0, atol=0)


def test_an_edge_map_without_edges_blurs_and_strong_edges_isolate_every_pixel() -> None:
    scores, edges = scene(1, 12, 15)
    apart = domain_transform(scores, torch.ones_like(edges), 100.0, 1e-4, 3)
    torch.testing.assert_close(apart, scores)
    together = domain_transform(scores, torch.zeros_like(edges), 100.0, 1.0, 3)
    assert together.std((2, 3)).max() < 0.01


def test_an_edge_lies_between_its_pixel_and_the_one_before_it() -> None:
    scores, _ = scene(1, 1, 10)
    edges = torch.zeros(1, 1, 10)
    edges[0, 0, 4] = 1
    louder = scores.clone()
    louder[..., 4:] *= 50
    one, two = (domain_transform(each, edges, 100.0, 1e-4, 3) for each in (scores, louder))
    torch.testing.assert_close(one[..., :4], two[..., :4], rtol=0, atol=0)
    assert (one[..., 4] - two[..., 4]).abs().max() > 1
