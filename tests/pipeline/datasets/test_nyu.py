"""NYU Depth v2 in miniature: one MATLAB 7.3 file of images and labels, a list of splits, a map of names to classes."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.nyu import NYU13, NYU40, Nyu
from pipeline.errors import ConfigError, InputError, LabelError
from pipeline.store import objects
from pipeline.store.local import LocalBackend
from pipeline.store.url import Url
from tests.support.miniatures import mat, put

COUNT, HEIGHT, WIDTH = 5, 6, 8
FILE = "nyu_depth_v2_labeled.mat"
MAPPING = np.arange(894) % 40 + 1


def write(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write (H, W, 3, N) and (H, W, N) as MATLAB does: axes reversed, compressed in chunks."""
    with h5py.File(root / FILE, "w", userblock_size=512) as file:
        for name, array in (("images", images), ("labels", labels)):
            turned = np.ascontiguousarray(array.T)
            file.create_dataset(name, data=turned, chunks=(2, *turned.shape[1:]), compression="gzip")


def rooms() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (HEIGHT, WIDTH, 3, COUNT), np.uint8)
    return images, rng.integers(0, 895, (HEIGHT, WIDTH, COUNT), np.uint16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, *rooms())
    numbers = {"trainNdxs": np.array([[3], [5]], np.uint16), "testNdxs": np.array([[1], [2], [4]], np.uint16)}
    put(tmp_path, "splits.mat", mat(**numbers))
    put(
        tmp_path,
        "classMapping40.mat",
        mat(mapClass=MAPPING[None].astype(np.uint8), className=np.zeros((1, 40), object)),
    )
    return tmp_path


def test_splits_count_from_one(root: Path) -> None:
    assert [one.key for one in NYU40.examples(Url(str(root)), "train")] == ["train/0003", "train/0005"]
    assert [one.key for one in NYU40.examples(Url(str(root)), "test")] == ["test/0001", "test/0002", "test/0004"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_stand_upright_and_names_become_classes(root: Path, split: str) -> None:
    images, names = rooms()
    for one in NYU40.examples(Url(str(root)), split):
        at = int(one.key[-4:]) - 1
        read = NYU40.read(Url(str(root)), one)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(read.image))), images[..., at])
        wanted = [[MAPPING[name - 1] - 1 if name else 255 for name in row] for row in names[..., at]]
        np.testing.assert_array_equal(read.label_hw, wanted)
        np.testing.assert_array_equal(NYU40.label(Url(str(root)), one), wanted)


def test_thirteen_classes_are_unions_of_the_forty(root: Path) -> None:
    forty, thirteen = [], []
    for one in NYU40.examples(Url(str(root)), "test"):
        forty.append(NYU40.label(Url(str(root)), one))
        thirteen.append(NYU13.label(Url(str(root)), one))
    pairs = set(zip(np.ravel(forty).tolist(), np.ravel(thirteen).tolist(), strict=True))
    assert len(pairs) == len({fine for fine, _ in pairs})
    assert {(fine == 255) == (coarse == 255) for fine, coarse in pairs} == {True}
    assert set(NYU13.merged) == set(range(1, 14))


@pytest.mark.parametrize(
    "name", ["bed", "books", "ceiling", "chair", "floor", "picture", "sofa", "table", "wall", "window"]
)
def test_a_class_of_the_thirteen_holds_its_namesake_of_the_forty(name: str) -> None:
    assert NYU13.classes.names[NYU13.merged[NYU40.classes.names.index(name)] - 1] == name


@pytest.mark.parametrize("layout", [NYU40, NYU13])
def test_every_class_is_reachable(layout: Nyu) -> None:
    assert set(layout.merged) == set(range(1, len(layout.classes) + 1))


def test_reading_an_example_leaves_the_rest_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    shape = (120, 160, 3, 40)
    write(tmp_path, rng.integers(0, 256, shape, np.uint8), np.zeros((120, 160, 40), np.uint16))
    put(tmp_path, "splits.mat", mat(trainNdxs=np.array([[7]]), testNdxs=np.array([[1]])))
    put(tmp_path, "classMapping40.mat", mat(mapClass=MAPPING[None]))
    monkeypatch.setattr(objects, "_BLOCK_BYTES", 2**14)
    fetched = []
    whole = LocalBackend.read
    monkeypatch.setattr(LocalBackend, "read", lambda *at, **how: fetched.append(whole(*at, **how)) or fetched[-1])
    NYU40.read(Url(str(tmp_path)), NYU40.examples(Url(str(tmp_path)), "train")[0])
    assert sum(map(len, fetched)) < (tmp_path / FILE).stat().st_size / 5


def test_the_file_may_be_in_an_object_store(root: Path) -> None:
    for path in root.iterdir():
        objects.put(Url(f"memory://nyu/{path.name}"), path.read_bytes())
    one = NYU40.examples(Url("memory://nyu"), "train")[1]
    remote, local = NYU40.read(Url("memory://nyu"), one), NYU40.read(Url(str(root)), one)
    assert remote.image == local.image
    np.testing.assert_array_equal(remote.label_hw, local.label_hw)


@pytest.mark.parametrize("gone", ["splits.mat", "classMapping40.mat"])
def test_a_list_that_is_not_there_is_asked_for(root: Path, gone: str) -> None:
    (root / gone).unlink()
    with pytest.raises(ConfigError, match=f"has no {gone}"):
        NYU40.examples(Url(str(root)), "train")


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("splits.mat", b"MATLAB 5.0 MAT-file", "splits.mat is not a MATLAB file"),
        ("splits.mat", mat(testNdxs=np.ones((1, 1))), "splits.mat has no variable 'trainNdxs'"),
        ("splits.mat", mat(trainNdxs=np.zeros((2, 1))), "splits.mat must have numbers"),
        ("splits.mat", mat(trainNdxs=np.array(["NYU0001"], object)), "splits.mat must have numbers"),
        ("classMapping40.mat", mat(mapClass=np.ones((1, 40))), "for each of 894 names"),
        ("classMapping40.mat", mat(mapClass=np.full((1, 894), 41)), "a class from 1 to 40"),
    ],
)
def test_a_wrong_list_is_named(root: Path, path: str, data: bytes, says: str) -> None:
    put(root, path, data)
    with pytest.raises((ConfigError, LabelError), match=says):
        NYU40.examples(Url(str(root)), "train")


def test_a_value_that_is_no_name_is_an_error(root: Path) -> None:
    images, names = rooms()
    names[1, 2, 2] = 895
    write(root, images, names)
    with pytest.raises(LabelError, match="train/0003 has the value 895"):
        NYU40.read(Url(str(root)), NYU40.examples(Url(str(root)), "train")[0])


def test_a_number_beyond_the_file_fails_alone(root: Path) -> None:
    put(root, "splits.mat", mat(trainNdxs=np.array([[5], [6]])))
    last, beyond = NYU40.examples(Url(str(root)), "train")
    with pytest.raises(InputError, match="corrupt"):
        NYU40.read(Url(str(root)), beyond)
    assert NYU40.read(Url(str(root)), last).key == "train/0005"


def test_images_of_another_size_than_labels_are_refused(root: Path) -> None:
    images, names = rooms()
    write(root, images, names[:, 1:])
    with pytest.raises(LabelError, match=r"train/0003: image \(6, 8, 3\) uint8, label \(6, 7\)"):
        NYU40.read(Url(str(root)), NYU40.examples(Url(str(root)), "train")[0])
