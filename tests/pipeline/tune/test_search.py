import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import classes
from pipeline.config import RefineConfig
from pipeline.errors import ConfigError
from pipeline.records import Image, Item, Scored
from pipeline.refine.presets import PRESETS, CrfParams
from pipeline.refine.refiner import Refiner
from pipeline.score.metrics import confusion
from pipeline.tune import search
from pipeline.tune.search import NO_CRF, Candidate

FARM = classes.load_class_map("farmland")
K = len(FARM)
BASE = RefineConfig(prune=0)


def values(candidates: list[Candidate], name: str) -> list[float]:
    return sorted({getattr(one.params, name) for one in candidates if one.params})


# ---------------------------------------------------------------- grids


def test_the_papers_grid_is_what_both_papers_print() -> None:
    v1 = set(itertools.product([5, 10], range(50, 101, 10), range(3, 11)))
    v2 = set(itertools.product(range(3, 7), range(30, 101, 10), range(3, 7)))
    published = {params for params in PRESETS.values() if params.pos_xy == 3 and params.iterations == 10}
    expected = {(w, xy, rgb) for w, xy, rgb in v1 | v2} - {(one.bi_w, one.bi_xy, one.bi_rgb) for one in published}
    found = search.candidate_grid("papers", BASE)
    assert {(one.params.bi_w, one.params.bi_xy, one.params.bi_rgb) for one in found} == expected
    assert len(found) == len(expected)
    assert {(one.params.pos_w, one.params.pos_xy, one.params.iterations) for one in found} == {(3, 3, 10)}


@pytest.mark.parametrize("name", search.GRIDS)
def test_no_two_candidates_have_a_name_or_parameters_in_common(name: str) -> None:
    tried = [*search.reference_candidates(), *search.candidate_grid(name, BASE)]
    for preset in PRESETS.values():
        tried += search.finer_grid(preset, tried)
    assert len({one.name for one in tried}) == len({one.params for one in tried}) == len(tried)


def test_what_is_fixed_can_be_given_and_what_is_searched_cannot() -> None:
    found = search.candidate_grid("coarse", RefineConfig(pos_xy=1.5, iterations=5))
    assert {(one.params.pos_w, one.params.pos_xy, one.params.iterations) for one in found} == {(3, 1.5, 5)}
    with pytest.raises(ConfigError, match=r"refine.bi_xy is a searched parameter"):
        search.candidate_grid("coarse", RefineConfig(bi_xy=50))


@pytest.mark.parametrize("engine", ["none", "domain_transform"])
def test_an_engine_without_the_searched_parameters_is_refused(engine: str) -> None:
    with pytest.raises(ConfigError, match=f"refine.engine {engine} has none of the parameters") as refusal:
        search.candidate_grid("coarse", RefineConfig.model_validate({"engine": engine}))
    assert refusal.value.hint == "set --refine.engine to one of: native, torch, pydensecrf"


def test_a_candidate_changes_the_parameters_of_a_config_and_nothing_else() -> None:
    base = RefineConfig(prune=0.1, window_px=512)
    for one in search.candidate_grid("coarse", base):
        config = one.config(base)
        assert RefineConfig.model_validate(config.model_dump()) == config
        assert (config.prune, config.window_px, config.engine) == (0.1, 512, base.engine)
        assert (config.bi_w, config.bi_xy, config.bi_rgb) == (one.params.bi_w, one.params.bi_xy, one.params.bi_rgb)
    assert NO_CRF.config(base) == base.model_copy(update={"engine": "none"})


# ---------------------------------------------------------------- from coarse to fine


def cube(*axes: tuple[float, ...]) -> list[Candidate]:
    return [Candidate(str(number), CrfParams(*three, 3, 3), 1) for number, three in enumerate(itertools.product(*axes))]


def test_the_finer_grid_goes_half_way_to_each_neighbour() -> None:
    tried = cube((3, 5, 10), (30, 60, 100), (3, 6, 10))
    found = search.finer_grid(CrfParams(5, 60, 6, 3, 3), tried)
    assert values(found, "bi_w") == [4, 5, 7.5]
    assert values(found, "bi_xy") == [45, 60, 80]
    assert values(found, "bi_rgb") == [4.5, 6, 8]
    assert len(found) == 26
    assert {one.stage for one in found} == {2}


def test_at_the_edge_of_a_grid_the_finer_one_reaches_beyond_it() -> None:
    found = search.finer_grid(CrfParams(3, 100, 10, 3, 3), cube((3, 5, 10), (30, 60, 100), (3, 6, 10)))
    assert values(found, "bi_w") == [2, 3, 4]
    assert values(found, "bi_xy") == [80, 100, 120]
    assert values(found, "bi_rgb") == [8, 10, 12]


def test_steps_are_halved_again_around_the_same_best() -> None:
    best = CrfParams(5, 60, 6, 3, 3)
    tried = cube((3, 5, 7), (40, 60, 80), (4, 6, 8))
    for width in (1, 0.5, 0.25):
        new = search.finer_grid(best, tried)
        assert values(new, "bi_w") == [5 - width, 5, 5 + width]
        tried += new


def test_a_published_best_keeps_its_smoothness_kernel_and_takes_its_steps_from_the_grid() -> None:
    found = search.finer_grid(
        PRESETS["deeplab-v2"], [*search.reference_candidates(), *search.candidate_grid("coarse", BASE)]
    )
    assert values(found, "bi_xy") == [63.5, 67, 83.5]
    assert {one.params.pos_xy for one in found} == {1}


positive = st.floats(0.01, 1000).map(lambda value: round(value, 3))


@given(st.lists(positive, min_size=1, max_size=6), positive)
def test_finer_values_are_positive_and_hold_the_best(grid: list[float], best: float) -> None:
    found = search._half_steps(best, grid)
    assert best in found
    assert all(value > 0 for value in found)
    assert len(found) <= 3
    assert all(abs(value - best) <= max(abs(one - best) for one in grid) / 2 + 1e-9 for value in found)


# ---------------------------------------------------------------- choosing


def counts(right: list[int], of: int = 100) -> np.ndarray:
    """(N, 2, 3) counts of two classes with the given numbers of correct pixels."""
    out = np.zeros((len(right), 2, 3), np.int64)
    for image, one in enumerate(right):
        out[image, [0, 1], [0, 1]] = one
        out[image, [0, 1], [1, 0]] = of - one
    return out


def test_folds_are_runs_of_images_of_about_one_size() -> None:
    for images in (5, 6, 21, 100):
        found = search.fold_of_each_image(images)
        assert (np.diff(found) >= 0).all()
        sizes = np.bincount(found)
        assert len(sizes) == search.FOLDS
        assert sizes.max() - sizes.min() <= 1


def test_each_fold_is_judged_by_what_the_others_choose() -> None:
    """The first candidate is far better on fold 0 alone, the second a little better everywhere else."""
    first, second = counts([99, 50, 50, 50, 50]), counts([10, 55, 55, 55, 55])
    stacked = np.stack([first, second])
    assert search.best_index(stacked.sum(axis=1)) == 0
    assert search.best_index_per_fold(stacked) == [1, 0, 0, 0, 0]


def test_a_gain_everywhere_is_a_crf_and_chance_is_none() -> None:
    rng = np.random.default_rng(0)
    none = rng.integers(40, 60, 40)
    better = search.recommend(counts(list(none + 3)), counts(list(none + 3)), counts(list(none)), samples=300, seed=0)
    assert better.helps
    assert better.gain == better.fair_gain
    same = search.recommend(counts(list(none)), counts(list(none)), counts(list(none)), samples=300, seed=0)
    assert not same.helps
    assert same.gain.value == 0
    flattered = search.recommend(
        counts(list(none + 3)), counts(list(none - 1)), counts(list(none)), samples=300, seed=0
    )
    assert not flattered.helps


# ---------------------------------------------------------------- on images


def scene(seed: int, *, noise: float) -> tuple[Scored, Image, np.ndarray]:
    """Discs 60 grey levels from the background, noise of 8 levels; logits at stride 1 with some errors."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :48]
    y, x = rng.integers(8, 32, 2)
    truth = (np.hypot(rows - y, columns - x) < 9).astype(np.uint8)
    pixels = 100 + 60 * truth[..., None] + rng.normal(0, 8, (40, 48, 3))
    logits = np.where(np.arange(K)[:, None, None] == truth, 2.0, 0.0) + rng.normal(0, noise, (K, 40, 48))
    logits[2:] -= 20
    image = Image(pixels.clip(0, 255).astype(np.uint8), None)
    return Scored(Item(str(seed), "", ""), 40, 48, logits_khw=logits.astype(np.float16), stride=1), image, truth


def judged(candidates: list[Candidate], *, noise: float, images: int = 10) -> np.ndarray:
    """(C, N, K, K + 1)."""
    scenes = [scene(seed, noise=noise) for seed in range(images)]
    refiners = [Refiner(one.config(BASE), FARM) for one in candidates]
    return np.stack([[search.refine_and_count(*one, refiner).counts_kk for one in scenes] for refiner in refiners])


PLANTED = [
    Candidate("colours apart by more than the grain differ", CrfParams(5, 10, 1, 0, 1), 1),
    Candidate("grain is one colour, discs are another", CrfParams(5, 10, 20, 0, 1), 1),
    Candidate("all colours are one", CrfParams(5, 10, 300, 0, 1), 1),
]


def test_a_planted_optimum_is_found() -> None:
    found = judged([NO_CRF, *PLANTED], noise=2.0)
    assert PLANTED[search.best_index(found[1:].sum(axis=1))].params.bi_rgb == 20
    by_fold = np.stack([found[:, search.fold_of_each_image(10) == fold].sum(axis=1) for fold in range(5)], axis=1)
    assert search.best_index_per_fold(by_fold[1:]) == [1] * 5
    assert search.recommend(found[2], found[2], found[0], samples=200, seed=0).helps


def test_perfect_logits_need_no_crf() -> None:
    found = judged([NO_CRF, *PLANTED], noise=0.0)
    won = found[1:][search.best_index(found[1:].sum(axis=1))]
    assert not search.recommend(won, won, found[0], samples=200, seed=0).helps


def test_bands_are_counts_of_the_pixels_near_boundaries() -> None:
    scored, image, truth = scene(3, noise=2.0)
    refiner = Refiner(NO_CRF.config(BASE), FARM)
    found = search.refine_and_count(scored, image, truth, refiner, widths_px=(1, 3, 1000))
    mask = refiner(scored, image).mask_hw
    edge = np.zeros(truth.shape, bool)
    for y, x in np.ndindex(truth.shape):
        around = truth[max(y - 1, 0) : y + 2, x], truth[y, max(x - 1, 0) : x + 2]
        edge[y, x] = any((one != truth[y, x]).any() for one in around)
    np.testing.assert_array_equal(found.bands_bkk[0], confusion(truth, mask, K, where=edge))
    assert found.bands_bkk[0].sum() < found.bands_bkk[1].sum() < found.bands_bkk[2].sum()
    np.testing.assert_array_equal(found.bands_bkk[2], found.counts_kk)
