import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from pipeline.datasets import layout
from pipeline.errors import ConfigError, InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import grey_png, palette_png, put, rgb_png


@given(arrays(np.uint8, (3, 4)))
def test_ids_are_read_as_they_are_stored_whatever_the_palette(ids_hw: np.ndarray) -> None:
    palette = bytes(range(255, -1, -1)) * 3
    np.testing.assert_array_equal(layout.decode_ids(grey_png(ids_hw), name="a.png"), ids_hw)
    np.testing.assert_array_equal(layout.decode_ids(palette_png(ids_hw, palette), name="a.png"), ids_hw)


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", grey_png(np.zeros((9, 9)))[:45], rgb_png(np.zeros((2, 2, 3)))],
    ids=["empty", "header", "cut", "colours"],
)
def test_what_holds_no_ids_is_refused(data: bytes) -> None:
    with pytest.raises(LabelError, match=r"the label a\.png"):
        layout.decode_ids(data, name="a.png")


def test_colours_are_not_read_from_grey() -> None:
    with pytest.raises(LabelError, match="not colours"):
        layout.decode_colours(grey_png(np.zeros((2, 2))), name="a.png")


def test_a_list_is_read_however_its_lines_are_written(tmp_path) -> None:
    put(tmp_path, "list.txt", "2007_2\r\n\n/CamVid/train/2007_1.png /CamVid/trainannot/2007_1.png\n2007_2 \n")
    assert layout.names_in(Url(str(tmp_path)), "list.txt") == ["2007_1", "2007_2"]
    put(tmp_path, "empty.txt", "\n")
    with pytest.raises(ConfigError, match=r"empty\.txt in .* is empty"):
        layout.names_in(Url(str(tmp_path)), "empty.txt")
    put(tmp_path, "image.txt", grey_png(np.zeros((2, 2))))
    with pytest.raises(ConfigError, match=r"image\.txt in .* is not UTF-8"):
        layout.names_in(Url(str(tmp_path)), "image.txt")


def test_what_is_missing_is_named_beside_what_is_there(tmp_path) -> None:
    put(tmp_path, "VOC2012/JPEGImages/a.jpg", b"")
    root = str(tmp_path)
    for ask in (
        lambda: layout.names_in(Url(root), "VOCdevkit/l.txt"),
        lambda: layout.files_below(Url(root), "VOCdevkit", "l"),
    ):
        with pytest.raises(ConfigError, match="has no VOCdevkit/") as caught:
            ask()
        assert "this one holds VOC2012" in caught.value.hint


def test_a_folder_without_the_right_files_is_not_empty_success(tmp_path) -> None:
    put(tmp_path, "labels/a.txt", b"")
    with pytest.raises(ConfigError, match=r"has no labels/\*\.png"):
        layout.files_below(Url(str(tmp_path)), "labels", ".png")


def test_a_root_that_is_not_there_is_said_to_be(tmp_path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        layout.names_in(Url(f"{tmp_path}/nowhere"), "list.txt")


def test_a_missing_file_of_one_example_is_that_example_s_failure(tmp_path) -> None:
    with pytest.raises(InputError, match=r"not_found: images/a\.jpg"):
        layout.fetch(Url(str(tmp_path)), "images/a.jpg")


@pytest.mark.s3
def test_a_layout_is_read_from_an_object_store_too(s3_url: str) -> None:
    from pipeline.store import objects

    objects.put(Url(f"{s3_url}/voc/lists/train.txt"), b"b\na\n")
    objects.put(Url(f"{s3_url}/voc/labels/x/a.png"), b"")
    assert layout.names_in(Url(f"{s3_url}/voc"), "lists/train.txt") == ["a", "b"]
    assert layout.files_below(Url(f"{s3_url}/voc"), "labels", ".png") == ["labels/x/a.png"]
    with pytest.raises(ConfigError) as caught:
        layout.files_below(Url(f"{s3_url}/voc"), "images", ".jpg")
    assert "this one holds labels, lists" in caught.value.hint
