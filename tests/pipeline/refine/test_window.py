"""Windows: cores cover an image once, halos surround them, and halves are smaller than what they halve."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Window
from pipeline.refine.window import halves, inside, windows, with_halo


@given(st.integers(1, 700), st.integers(1, 700))
def test_windows_cover_every_pixel_exactly_once(height: int, width: int) -> None:
    seen = np.zeros((height, width), int)
    for core in windows(height, width, 128):
        seen[core.y : core.y + core.height, core.x : core.x + core.width] += 1
        outer = with_halo(core, height, width, 20)
        assert outer.y <= core.y
        assert outer.y + outer.height >= core.y + core.height
    assert (seen == 1).all()


@given(st.integers(1, 200), st.integers(2, 200), st.integers(0, 300))
def test_halves_cover_a_window_once_and_each_is_smaller_however_wide_the_halo(
    height: int, width: int, halo_px: int
) -> None:
    whole, seen = Window(0, 0, height, width), np.zeros((height, width), int)
    for core, outer in halves(height, width, halo_px):
        seen[inside(whole, core)] += 1
        rows, columns = inside(outer, core)
        assert min(rows.start, columns.start) >= 0
        assert rows.stop <= outer.height
        assert columns.stop <= outer.width
        assert outer.height * outer.width < height * width
    assert (seen == 1).all()
