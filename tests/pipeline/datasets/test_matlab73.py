"""What a damaged or hostile MATLAB 7.3 file can do to its reader: nothing but fail."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.datasets.matlab73 import opened, read_piece
from pipeline.errors import InputError
from pipeline.store.url import Url

SECRET = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def read(root: Path, index: int = 0, name: str = "images") -> np.ndarray:
    with opened(Url(str(root)), "a.mat") as file:
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
    with pytest.raises(InputError, match="images is no array"):
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
