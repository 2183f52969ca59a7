import numpy as np
import pytest

from pipeline.datasets import farmland
from pipeline.datasets.farmland import scene, territories
from pipeline.datasets.farmland.territories import NODATA, plan_territories

SIZE, OUTSIDE = 700, 255


@pytest.fixture
def small_territories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several territories on a small mosaic."""
    monkeypatch.setattr(territories, "_TERRITORY_PX", 300)


@pytest.mark.parametrize(("size_px", "seed"), [(6000, 2026), (4000, 1), (4000, 8), (700, 3), (100, 0)])
def test_territories_leave_no_gap(size_px: int, seed: int) -> None:
    covered = np.zeros((size_px, size_px), bool)
    for one in plan_territories(size_px, seed):
        covered[one.top : one.top + one.height, one.left : one.left + one.width] |= one.is_inside()
    assert covered.all()


def test_neighbours_draw_the_same_road_between_them(small_territories) -> None:
    plan = plan_territories(SIZE, 5)
    seen = np.full((len(plan), SIZE, SIZE), OUTSIDE, np.uint8)
    for index, one in enumerate(plan):
        here = seen[index, one.top : one.top + one.height, one.left : one.left + one.width]
        inside = one.is_inside()
        here[inside] = one.paint()[inside, 4]
    overlap = (seen != OUTSIDE).sum(0) > 1
    ids = seen[:, overlap]
    assert overlap.sum() > 2000
    assert np.isin(ids[ids != OUTSIDE], (farmland.ROAD, farmland.TREE)).mean() > 0.99  # crowns hang over roads
    assert (ids == farmland.ROAD).sum() > 0.9 * (ids != OUTSIDE).sum()


def test_scenes_of_a_landscape_have_scale_light_and_soil_in_common(small_territories) -> None:
    first, second, *_ = plan_territories(SIZE, 5)
    canvases = [scene._new_canvas(np.random.default_rng(one.seed), 9, 9, one.landscape) for one in (first, second)]
    assert canvases[0].scale == canvases[1].scale
    np.testing.assert_array_equal(canvases[0].shade_xy, canvases[1].shade_xy)
    np.testing.assert_array_equal(canvases[0].soil, canvases[1].soil)
    assert (canvases[0].waves != canvases[1].waves).any()


def test_every_road_and_river_of_a_landscape_reaches_the_scenes_it_crosses(small_territories) -> None:
    plan = plan_territories(SIZE, 5)
    assert len({one.landscape.flight for one in plan}) == 1
    assert all(2 <= len(one.landscape.roads) <= 4 for one in plan)
    wet = [one.landscape.rivers[0] for one in plan if len(one.landscape.rivers[0].path)]
    assert len(wet) > 1
    assert all(len(river.path) == len(river.radius) for river in wet)


def test_bands_of_a_territory_are_never_nodata(small_territories) -> None:
    assert (plan_territories(SIZE, 5)[0].paint()[..., :4] > NODATA).all()
