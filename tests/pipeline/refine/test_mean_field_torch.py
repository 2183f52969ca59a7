from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DeadlinePassed
from pipeline.refine import mean_field_torch
from pipeline.refine.lattice_torch import (
    LONGEST_BAG,
    DenseCRF,
    Lattice,
    SparseMatrix,
    bilateral_lattice,
    build_lattice,
    spatial_lattice,
)
from pipeline.refine.mean_field_torch import GRAPHS, GraphedMeanField, Iteration, mean_field, padded_vertices
from pipeline.refine.presets import PRESETS
from tests.support.examples import examples

FOREVER = float("inf")


def picture(seed: int, height: int = 24, width: int = 30) -> torch.Tensor:
    """(1, H, W, 3) float: two flat halves, so that some vertices have very many points, with grain in one of them."""
    rng = torch.Generator().manual_seed(seed)
    shades = torch.full((1, height, width, 3), 60.0)
    shades[:, :, width // 2 :] = 180 + 20 * torch.rand(1, height, width - width // 2, 3, generator=rng)
    return shades


def kernels_for_a_gpu(seed: int) -> list[Lattice]:
    image = picture(seed)
    kernels = [spatial_lattice(image, None, 3).scaled(3), bilateral_lattice(image, None, 40, 5).scaled(4)]
    return [kernel.in_short_sums() for kernel in kernels]


def scores_of(seed: int, num_classes: int = 5) -> torch.Tensor:
    return torch.randn(24 * 30, num_classes, generator=torch.Generator().manual_seed(seed))


class ActedGraph:
    """Acts a CUDA graph on a CPU: what is captured does not run until it is replayed."""

    captured = 0

    def replay(self) -> None:
        self.step()


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> type[ActedGraph]:
    run = Iteration.step

    @contextmanager
    def recording(graph: ActedGraph) -> Iterator[None]:
        def record(field: Iteration) -> None:
            graph.step = lambda: run(field)

        monkeypatch.setattr(Iteration, "step", record)
        yield
        monkeypatch.setattr(Iteration, "step", run)
        ActedGraph.captured += 1

    monkeypatch.setattr(ActedGraph, "captured", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", ActedGraph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    return ActedGraph


# ---------------------------------------------------------------- short sums


@examples(40)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(1, 9))
def test_a_split_matrix_is_the_product_of_its_factors_and_has_no_long_sum(lengths: list[int], longest: int) -> None:
    rng = torch.Generator().manual_seed(sum(lengths))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    entries = int(starts[-1])
    columns = torch.randint(7, (entries,), generator=rng, dtype=torch.int32)
    matrix = SparseMatrix(starts, columns, torch.rand(entries, generator=rng, dtype=torch.float64))
    sums, joins = matrix.split(longest)
    values = torch.rand(7, 3, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(joins @ (sums @ values), matrix @ values)
    assert not entries or sums.starts.diff().max() <= longest
    assert len(joins.columns) == sum(-(-length // longest) for length in lengths)


def test_a_filter_in_short_sums_is_the_filter() -> None:
    lattice = bilateral_lattice(picture(0), None, 40, 5)
    values = torch.rand(24 * 30, 4, generator=torch.Generator().manual_seed(0))
    assert lattice.splat.starts.diff().max() > 3 * LONGEST_BAG
    short = lattice.in_short_sums()
    assert short.vertices == lattice.vertices
    assert short.splat.starts.diff().max() <= LONGEST_BAG
    torch.testing.assert_close(short @ values, lattice @ values)
    torch.testing.assert_close(short.transposed() @ values, lattice.transposed() @ values)


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("short", [True, False])
@given(st.integers(0, 3), st.integers(0, 40))
def test_a_padded_filter_is_the_filter_to_the_bit(short: bool, seed: int, more: int) -> None:
    lattice = bilateral_lattice(picture(seed), None, 40, 5)
    lattice = lattice.in_short_sums() if short else lattice
    padded = lattice.padded(lattice.vertices + lattice.least_padding + more)
    values = torch.rand(24 * 30, 4, generator=torch.Generator().manual_seed(seed))
    assert padded.vertices == lattice.vertices + lattice.least_padding + more
    assert torch.equal(padded @ values, lattice @ values)


def test_lattices_padded_to_one_number_of_vertices_have_one_shape_and_no_long_sums() -> None:
    lattices = [bilateral_lattice(picture(seed), None, 40, sigma).in_short_sums() for seed, sigma in ((0, 5), (1, 9))]
    assert lattices[0].vertices != lattices[1].vertices
    most = max(map(padded_vertices, lattices))
    shapes = [[step.starts.shape + step.columns.shape for step in one.padded(most).steps] for one in lattices]
    assert shapes[0] == shapes[1]
    for lattice in lattices:
        added = lattice.padded(most).joins.starts.diff()[lattice.vertices :]
        assert added.min() >= 0
        assert added.max() <= LONGEST_BAG + 1


@given(st.integers(1, 3000), st.integers(0, 5000))
def test_padding_adds_at_most_an_eighth_to_what_is_needed(points: int, vertices: int) -> None:
    lattice = build_lattice(torch.zeros(1, points), torch.zeros(points, dtype=torch.long)).in_short_sums()
    lattice = lattice.padded(lattice.vertices + lattice.least_padding + vertices)
    least = lattice.vertices + lattice.least_padding
    assert least <= padded_vertices(lattice) <= least * 1.125


# ---------------------------------------------------------------- iterations


def test_without_a_graph_of_cuda_the_same_iterations_give_the_same_bits(acted: type[ActedGraph]) -> None:
    """Other images of one shape use the buffers of the first ones, one after the other."""
    graphed = GraphedMeanField()
    for turn, seed in enumerate([0, 0, 0, 7, 0]):
        scores, kernels = scores_of(seed), kernels_for_a_gpu(0)
        expected = mean_field(scores, kernels, 4, FOREVER)
        assert torch.equal(graphed(scores, kernels, 4, FOREVER), expected), turn
    assert acted.captured == 1


def test_results_of_a_graph_stay_when_it_is_used_again(acted: type[ActedGraph]) -> None:
    graphed, kernels = GraphedMeanField(), kernels_for_a_gpu(0)
    first, second, third = (graphed(scores_of(seed), kernels, 3, FOREVER) for seed in (0, 1, 2))
    assert acted.captured == 1
    assert torch.equal(second, mean_field(scores_of(1), kernels, 3, FOREVER))
    assert not torch.equal(second, third)
    assert not torch.equal(first, second)


def test_lattices_of_other_images_of_about_the_size_share_a_graph(
    acted: type[ActedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mean_field_torch, "padded_vertices", lambda kernel: 5000)
    graphed = GraphedMeanField()
    for seed in range(4):
        kernels = kernels_for_a_gpu(seed)
        assert torch.equal(
            graphed(scores_of(seed), kernels, 3, FOREVER), mean_field(scores_of(seed), kernels, 3, FOREVER)
        )
    assert acted.captured == 1


def test_the_last_shapes_are_kept(acted: type[ActedGraph]) -> None:
    graphed, kernels = GraphedMeanField(), kernels_for_a_gpu(0)
    for num_classes in (
        2,
        *range(2, 2 + GRAPHS),
        2,
        2,
    ):  # at the end 2 has been forgotten, and comes as if for the first time
        graphed(scores_of(0, num_classes), kernels, 1, FOREVER)
        graphed(scores_of(0, 99), kernels, 1, FOREVER)
    assert len(graphed._captured) == GRAPHS
    assert acted.captured == 3


def test_a_capture_that_fails_is_told_once_and_costs_no_result(
    acted: type[ActedGraph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(mean_field_torch, "capture", fail)
    graphed, kernels = GraphedMeanField(), kernels_for_a_gpu(0)
    expected = mean_field(scores_of(0), kernels, 2, FOREVER)
    for _ in range(4):
        assert torch.equal(graphed(scores_of(0), kernels, 2, FOREVER), expected)
    assert caplog.text.count("capture failed, it runs without: operation not permitted") == 1


def test_a_graph_is_not_replayed_after_the_deadline(acted: type[ActedGraph]) -> None:
    graphed, kernels = GraphedMeanField(), kernels_for_a_gpu(0)
    for _ in range(2):
        graphed(scores_of(0), kernels, 1, FOREVER)
    with pytest.raises(DeadlinePassed, match="after 0 of 10 iterations"):
        graphed(scores_of(0), kernels, 10, 0.0)


@pytest.mark.parametrize("valid", [None, torch.arange(24 * 30).view(1, 24, 30) % 3 > 0])
def test_a_crf_with_graphs_is_the_crf_and_captures_none_where_some_pixels_are_not_valid(
    acted: type[ActedGraph], valid: torch.Tensor | None
) -> None:
    logits = scores_of(0).t().reshape(1, 5, 24, 30)
    plain, graphed = DenseCRF("cpu"), DenseCRF("cpu", graphs=True)
    for _ in range(3):
        inputs = picture(0).byte(), logits, valid, PRESETS["deeplab-v2"]
        assert torch.equal(graphed.refine(*inputs), plain.refine(*inputs))
    assert acted.captured == (valid is None)


def test_without_kernels_nothing_is_captured(acted: type[ActedGraph]) -> None:
    graphed = GraphedMeanField()
    for _ in range(3):
        assert torch.equal(graphed(scores_of(0), [], 5, FOREVER), scores_of(0).softmax(1))
    assert acted.captured == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_graph_gives_the_bits_of_the_kernels_one_by_one() -> None:
    kernels = [
        spatial_lattice(picture(0).cuda(), None, 3).scaled(3),
        bilateral_lattice(picture(0).cuda(), None, 40, 5).scaled(4),
    ]
    graphed = GraphedMeanField()
    for seed in range(4):
        scores = scores_of(seed).cuda()
        assert torch.equal(graphed(scores, kernels, 5, FOREVER), mean_field(scores, kernels, 5, FOREVER))
    assert not graphed._fails
    assert DenseCRF("cuda").device.type == "cuda"
