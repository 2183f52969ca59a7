"""The sample is that of all keys, however they come."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.select.sample import RowSample
from tests.pipeline.select.test_shortlist import some_candidates


@given(st.lists(st.integers(0, 200), max_size=200), st.integers(1, 20), st.integers(1, 30))
def test_a_sample_holds_the_smallest_hashes_of_all_keys_once(numbers: list[int], size: int, step: int) -> None:
    drawn = RowSample(size)
    for start in range(0, len(numbers) or 1, step):
        drawn.add(some_candidates([f"k{number}" for number in numbers[start : start + step]]))
    every = some_candidates(sorted({f"k{number}" for number in numbers}))
    assert drawn.drawn().keys.tolist() == every.keys[np.argsort(every.draws)][:size].tolist()
