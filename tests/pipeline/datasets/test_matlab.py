"""MATLAB files come out as they went in; a damaged or hostile one can do nothing but fail."""

from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.datasets.matlab import open_hdf5, read_piece, read_variable
from pipeline.errors import InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import mat, mat_structs

SECRET = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


# ---------------------------------------------------------------- version 5 to 7.2


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=3)))
def test_a_matrix_comes_out_as_it_went_in(matrix: np.ndarray) -> None:
    found = read_variable(mat(wanted=matrix, other=np.zeros((2, 2))), "wanted", name="a.mat")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, matrix)


def test_structures_come_out_as_records() -> None:
    found = read_variable(mat(wanted=mat_structs({"a": "x"}, {"a": "y"})), "wanted", name="a.mat")
    assert [one["a"].item() for one in found.ravel()] == ["x", "y"]


def test_version_7_3_is_refused_by_name() -> None:
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with pytest.raises(LabelError, match=r"a\.mat is not a MATLAB file of version 5 to 7\.2"):
        read_variable(header + bytes(400), "wanted", name="a.mat")


@given(arrays(np.uint8, 200))
def test_damage_anywhere_is_a_label_error_or_goes_unnoticed(noise: np.ndarray) -> None:
    data = np.frombuffer(mat(wanted=np.eye(9)), np.uint8).copy()
    data[128:] ^= np.resize(noise, data.size - 128)
    with suppress(LabelError):  # any other error fails
        read_variable(data.tobytes(), "wanted", name="a.mat")


# ---------------------------------------------------------------- version 7.3


def read(root: Path, index: int = 0, name: str = "images") -> np.ndarray:
    with open_hdf5(Url(str(root)), "a.mat") as file:
        return read_piece(file, name, index)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that nobody named."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["images"] = SECRET
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    return tmp_path


def test_axes_come_back_in_matlab_s_order(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["images"] = SECRET
    for index in range(2):
        np.testing.assert_array_equal(read(tmp_path, index), SECRET[index].T)


def link(file: h5py.File, root: Path) -> None:
    file["images"] = h5py.ExternalLink(str(root / "secret.h5"), "/images")


def external(file: h5py.File, root: Path) -> None:
    file.create_dataset("images", SECRET.shape, np.uint8, external=[(str(root / "secret.bin"), 0, SECRET.nbytes)])


def virtual(file: h5py.File, root: Path) -> None:
    layout = h5py.VirtualLayout(SECRET.shape, np.uint8)
    layout[:] = h5py.VirtualSource(str(root / "secret.h5"), "images", SECRET.shape)
    file.create_virtual_dataset("images", layout)


def behind_a_reference(file: h5py.File, root: Path) -> None:
    hidden = file.create_dataset("hidden", SECRET.shape, np.uint8, external=[(str(root / "secret.bin"), 0, 24)])
    file.create_dataset("images", data=np.array([[hidden.ref]], h5py.ref_dtype), dtype=h5py.ref_dtype)


@pytest.mark.parametrize("hide", [link, external, virtual, behind_a_reference])
def test_no_file_leads_to_another_one(secret: Path, hide) -> None:
    with h5py.File(secret / "a.mat", "w") as file:
        hide(file, secret)
    with pytest.raises(InputError, match="corrupt"):
        read(secret)


def test_a_size_that_is_only_announced_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("images", (3, 2**15, 2**15), np.uint8, chunks=(1, 64, 64))
    with pytest.raises(InputError, match="too_many_bytes: /images announces 1024 MiB, limit 256 MiB"):
        read(tmp_path)


def test_a_group_is_no_array(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_group("images")
    with pytest.raises(InputError, match="images is not an array"):
        read(tmp_path)


@pytest.mark.parametrize(("index", "name"), [(2, "images"), (0, "labels")])
def test_what_is_not_in_the_file_is_an_input_error(tmp_path: Path, index: int, name: str) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["images"] = SECRET
    with pytest.raises(InputError, match=r"corrupt: a\.mat cannot be read"):
        read(tmp_path, index, name)


def test_a_file_cut_short_at_any_byte_fails_or_reads_the_same(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "whole.mat", "w") as file:
        file.create_dataset("images", data=SECRET, chunks=(1, 3, 4), compression="gzip", fletcher32=True)
    whole = (tmp_path / "whole.mat").read_bytes()
    outcomes = set()
    for size in range(0, len(whole), 37):
        (tmp_path / "a.mat").write_bytes(whole[:size])
        outcomes.add(outcome(tmp_path))
    assert outcomes <= {"corrupt", SECRET[0].T.tobytes()}
    assert "corrupt" in outcomes


def outcome(root: Path) -> str | bytes:
    try:
        return read(root).tobytes()
    except InputError as error:
        return error.code


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not_found: a\.mat"):
        read(tmp_path)
