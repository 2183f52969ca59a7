import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from scipy.stats import ttest_1samp

from benchmarks import chosen
from benchmarks.chosen import FIRST_JUDGED_SEED, FIRST_POOL_SEED, FLIGHT_STEP_PX, IMAGE_PX, JUDGED, Compared
from pipeline.datasets import farmland
from pipeline.datasets.generated import SEEDS

DIFFERENCES = [0.01, -0.02, 0.03, 0.005, 0.02]


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    middle, low, high = chosen.paired_interval(DIFFERENCES)
    expected = ttest_1samp(DIFFERENCES, 0).confidence_interval(0.95)
    assert middle == pytest.approx(np.mean(DIFFERENCES))
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert chosen.in_points(DIFFERENCES) == "+0.9 (-1.4 to +3.2)"


def test_one_seed_has_no_interval() -> None:
    assert chosen.paired_interval([0.25]) == (0.25, -np.inf, np.inf)


def test_the_table_pairs_the_seeds() -> None:
    scores = [[0.3, *[0.3] * 7], [0.4, *[0.4] * 7], [0.5, *[0.6] * 7]]
    lines = chosen.table([Compared(1, *scores, 40, 40), Compared(2, *scores, 4, 9)]).splitlines()
    assert lines[2] == "| 1 | 30.0 | 40.0 | 50.0 | +10.0 | 40 and 40 |"
    assert lines[3] == "| 2 | 30.0 | 40.0 | 50.0 | +10.0 | 4 and 9 |"
    assert lines[4] == "| mean | 30.0 | 40.0 | 50.0 | +10.0 (+10.0 to +10.0) | |"
    assert lines[8] == "| bare_soil | 40.0 | 60.0 | +20.0 (+20.0 to +20.0) |"


def test_nothing_that_judges_is_in_a_pool_or_was_trained_on_by_a_shipped_network() -> None:
    judged = range(FIRST_JUDGED_SEED, FIRST_JUDGED_SEED + JUDGED)
    assert judged.stop <= FIRST_POOL_SEED
    assert not any(judged.start in seeds or seeds.start in judged for seeds in SEEDS.values())


def test_nine_in_ten_of_a_flight_overlap_and_the_rest_are_places_of_their_own() -> None:
    examples = list(chosen.flight_pool(7, 20))
    names = [example.name for example in examples]
    assert len(set(names)) == 20
    assert [name.startswith("place") for name in names] == [False] * 18 + [True] * 2
    frames = dict(zip(names, examples, strict=True))
    left, right = frames["frame_00_00"].label_hw, frames["frame_00_01"].label_hw
    assert np.array_equal(left[:, FLIGHT_STEP_PX:], right[:, :-FLIGHT_STEP_PX])
    assert {PILImage.open(io.BytesIO(example.jpeg)).size for example in examples} == {(IMAGE_PX, IMAGE_PX)}


def labels_of(part: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(PILImage.open(path)) for path in (part / "labels").iterdir()}


def test_a_small_seed_labels_as_many_chosen_images_as_random_ones_of_one_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("FEW", 3), ("LABELLED", 4), ("JUDGED", 40)):
        monkeypatch.setattr(chosen, name, count)
    compared = chosen.compare(tmp_path, 1, pool=12, pool_of="places", steps=1)
    data = tmp_path / "data-1"
    pool = {path.stem for path in (data / "pool").iterdir()}
    labelled = {part: labels_of(data / part) for part in ("start", "random", "chosen")}
    assert [len(labels) for labels in labelled.values()] == [3, 4, 4]
    assert len(pool) == 12
    assert not pool & labelled["start"].keys()
    for part in ("random", "chosen"):
        assert labelled[part].keys() <= pool
        for name, label_hw in labelled[part].items():
            scene = farmland.generate_scene(int(name.removeprefix("place_")), height=IMAGE_PX, width=IMAGE_PX)
            assert np.array_equal(label_hw, scene.label_hw)
    assert labelled["random"].keys() != labelled["chosen"].keys()
    assert (compared.random_places, compared.chosen_places) == (4, 4)
    for scores in (compared.start, compared.random, compared.chosen):
        assert scores[0] == pytest.approx(np.mean(scores[1:]), abs=1e-5)
