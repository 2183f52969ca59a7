from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.datasets import matlab5
from pipeline.errors import LabelError
from tests.support.miniatures import mat, mat_structs


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=3)))
def test_a_matrix_comes_out_as_it_went_in(matrix: np.ndarray) -> None:
    found = matlab5.variable(mat(wanted=matrix, other=np.zeros((2, 2))), "wanted", name="a.mat")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, matrix)


def test_structures_come_out_as_records() -> None:
    found = matlab5.variable(mat(wanted=mat_structs({"a": "x"}, {"a": "y"})), "wanted", name="a.mat")
    assert [one["a"].item() for one in found.ravel()] == ["x", "y"]


def test_version_7_3_is_refused_by_name() -> None:
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with pytest.raises(LabelError, match=r"a\.mat is no MATLAB file of version 5 to 7\.2"):
        matlab5.variable(header + bytes(400), "wanted", name="a.mat")


@given(arrays(np.uint8, 200))
def test_damage_anywhere_is_a_label_error_or_goes_unnoticed(noise: np.ndarray) -> None:
    data = np.frombuffer(mat(wanted=np.eye(9)), np.uint8).copy()
    data[128:] ^= np.resize(noise, data.size - 128)
    with suppress(LabelError):  # any other error fails
        matlab5.variable(data.tobytes(), "wanted", name="a.mat")
