"""The choice: uncertain and unlike, the same whatever the order of the parts, and nothing left out in silence."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.records import Row, rows_to_table
from pipeline.run import parts
from pipeline.select import choice
from pipeline.select.choice import choose_images
from pipeline.store.url import Url
from tests.support.examples import examples
from tests.support.photo_runs import FARM, failed_row, mask_row, write_run

SETS = ([90, 10, 0, 0, 0, 0, 0], [0, 0, 50, 50, 0, 0, 0], [0, 0, 0, 0, 0, 10, 90])
"""Class pixels of three sorts of images."""


def row(number: int, **more: object) -> Row:
    """Rows of three sorts in turn; entropy and change grow with the number."""
    fields = {"class_pixels": SETS[number % 3], "entropy": number / 1000, "changed_share": number / 2000}
    return mask_row(f"{number:03}.jpg", "s", **fields | more)


def chosen(run_url: Url, images: int, **more: object) -> list[str]:
    return choose_images(run_url, images, **more).images["key"].tolist()


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[[Iterable[Row]], Url]:
    numbers = itertools.count()

    def write(rows: Iterable[Row], part_rows: int = 1000) -> Url:
        url = Url(str(tmp_path / f"run={next(numbers):012}"))
        write_run(url, rows, part_rows=part_rows)
        return url

    return write


def test_one_of_each_sort_is_chosen_and_it_is_the_most_uncertain(run_of) -> None:
    assert chosen(run_of(map(row, range(300))), 3) == ["299.jpg", "298.jpg", "297.jpg"]


def test_sorts_of_uncertain_images_share_the_places_and_a_sort_that_the_network_knows_gets_none(run_of) -> None:
    """However many there are of the most uncertain sort."""
    rows = [row(3 * number, entropy=0.9 + number / 1e4, changed_share=0.2) for number in range(100)]
    rows += [row(3 * number + 1, entropy=0.8, changed_share=0.2) for number in range(10)]
    rows += [row(3 * number + 2, entropy=0.1, changed_share=0.0) for number in range(200)]
    sorts = [int(key[:3]) % 3 for key in chosen(run_of(rows), 10)]
    assert sorted(sorts) == [0] * 5 + [1] * 5


def test_ranks_count_from_one_and_scores_fall_within_a_round(run_of) -> None:
    images = choose_images(run_of(map(row, range(60))), 12).images
    assert images["rank"].tolist() == [*range(1, 13)]
    for _, one in images.groupby("cluster"):
        assert one["score"].is_monotonic_decreasing


def test_what_the_crf_changed_decides_between_equal_entropies(run_of) -> None:
    rows = [row(3 * number, entropy=0.5) for number in range(50)]
    assert chosen(run_of(rows), 1) == ["147.jpg"]


def test_without_a_refiner_the_entropy_alone_decides_and_the_choice_says_so(run_of) -> None:
    url = run_of([row(number, refined=False, changed_share=0.0) for number in range(30)])
    found = choose_images(url, 1)
    assert found.images["key"].tolist() == ["029.jpg"]
    assert not found.refined
    assert np.isnan(found.images["changed_share"]).all()
    assert "CRF" not in found.images["why"][0]


def test_an_image_whose_refiner_ran_out_of_time_is_judged_by_its_entropy(run_of) -> None:
    rows = [*map(row, range(30)), row(30, refined=False, changed_share=0.0, entropy=0.9)]
    assert chosen(run_of(rows), 1) == ["030.jpg"]


@examples(4)
@given(order=st.permutations(range(6)), seed=st.integers(0, 3))
def test_the_choice_depends_on_neither_the_order_nor_the_size_of_parts(order, seed, tmp_path_factory) -> None:
    rng = np.random.default_rng(seed)
    rows = [row(number, entropy=float(rng.random()), brightness=float(rng.random() * 255)) for number in range(60)]
    tables = [rows[start : start + 10] for start in range(0, 60, 10)]
    keys = []
    for groups in ([rows], [tables[index] for index in order]):
        url = Url(str(tmp_path_factory.mktemp("out") / "run=0123456789ab"))
        for group in groups:
            parts.write_part(url, rows_to_table(group), FARM)
        keys.append(choose_images(url, 17, seed=seed).images.to_dict("list"))
    assert str(keys[0]) == str(keys[1])


def test_a_sample_smaller_than_the_run_gives_the_same_choice_for_any_parts(run_of, monkeypatch) -> None:
    monkeypatch.setattr(choice, "SAMPLED", 20)
    rows = [row(number) for number in range(120)]
    assert chosen(run_of(rows), 10) == chosen(run_of(reversed(rows), part_rows=7), 10)


def test_another_seed_may_choose_otherwise_among_equals_and_the_same_seed_does_not(run_of) -> None:
    url = run_of(row(3 * number, entropy=0.5, changed_share=0.1) for number in range(60))
    by_seed = [chosen(url, 2, seed=seed) for seed in (0, 0, 1, 2)]
    assert by_seed[0] == by_seed[1]
    assert len({tuple(keys) for keys in by_seed}) > 1


def test_failed_rows_and_rows_without_statistics_are_counted_and_never_chosen(run_of) -> None:
    rows = [*map(row, range(5)), failed_row("x.jpg", "s"), failed_row("y.jpg", "s", "corrupt")]
    rows += [
        row(7, entropy=None),
        row(8, class_pixels=None),
        row(9, class_pixels=[0] * 7),
        row(10, entropy=float("nan")),
    ]
    found = choose_images(run_of(rows), 50)
    assert sorted(found.images["key"]) == [f"{number:03}.jpg" for number in range(5)]
    assert dict(found.census.failed) == {"truncated": 1, "corrupt": 1}
    assert found.census.left_out["no_statistics"] == 4
    assert (found.census.rows, found.census.candidates) == (11, 5)


def test_excluded_keys_are_counted_and_the_next_ones_take_their_places(run_of) -> None:
    url = run_of(map(row, range(30)))
    first = chosen(url, 3)
    found = choose_images(url, 3, exclude=frozenset(first))
    assert found.images["key"].tolist() == ["026.jpg", "025.jpg", "024.jpg"]
    assert found.census.left_out["excluded"] == 3


def test_when_nothing_can_be_chosen_the_error_counts_why(run_of) -> None:
    url = run_of([failed_row("x.jpg", "s"), row(1)])
    with pytest.raises(ConfigError, match="1 failed with truncated, 1 excluded"):
        choose_images(url, 3, exclude=frozenset(["001.jpg"]))


def test_a_run_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rows yet"):
        choose_images(Url(str(tmp_path / "run=0123456789ab")), 3)


def test_a_key_in_two_parts_is_chosen_once(tmp_path: Path) -> None:
    url = Url(str(tmp_path / "run=0123456789ab"))
    for rows in (range(10), range(5, 15)):
        parts.write_part(url, rows_to_table(list(map(row, rows))), FARM)
    assert sorted(chosen(url, 100)) == [f"{number:03}.jpg" for number in range(15)]


def test_parts_of_an_older_version_without_brightness_are_chosen_from(run_of, monkeypatch) -> None:
    url = run_of(map(row, range(9)))
    read = parts.read_columns
    monkeypatch.setattr(parts, "read_columns", lambda *of: read(*of).drop_columns(["brightness", "changed_share"]))
    assert len(chosen(url, 3)) == 3


def test_reasons_name_ranks_place_and_classes(run_of) -> None:
    (why,) = choose_images(run_of(map(row, range(100))), 1).images["why"]
    assert why == (
        "entropy above 99.5% of the run; the CRF changed more than in 99.5%; number 1 of 100 alike, "
        f"mostly {FARM.names[0]} and {FARM.names[1]}"
    )
