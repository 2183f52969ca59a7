"""File names of keys: below the output folder, and no two alike."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.names import Names
from pipeline.run.masks import folder_path
from tests.support.examples import examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
KEYS = st.lists(
    st.lists(TEXT | st.sampled_from(["..", ".", "a", "A", "a.jpg", "a.tif", "a.png", "t.tar#..", ""]), min_size=1).map(
        "/".join
    ),
    max_size=8,
    unique=True,
)


@examples(200)
@given(KEYS)
def test_names_differ_also_without_case_and_lie_below_the_folder(keys: list[str]) -> None:
    names = Names([keys[:3], keys[3:]], ".png")
    paths = [names.path(key) for key in keys]
    assert len({path.casefold() for path in paths}) == len(keys)
    for path in paths:
        parts = path.split("/")
        assert path.endswith(".png")
        assert not {"", ".", ".."} & set(parts)
        assert "\\" not in path
        assert "\0" not in path
        assert all(len(part.encode()) < 255 for part in parts)
    folders = {str(folder).casefold() for path in paths for folder in PurePosixPath(path).parents}
    assert folders.isdisjoint(path.casefold() for path in paths)


def test_a_key_that_shares_its_name_with_none_has_the_name_by_which_masks_are_found() -> None:
    names = Names([["a/b.jpg", "t.tar#x", "t.tar#y.z"]], ".png")
    for key in ("a/b.jpg", "t.tar#x", "t.tar#y.z"):
        assert names.path(key) == f"{folder_path(key)}.png"


@pytest.mark.parametrize("keys", [["a.jpg", "a.tif"], ["A.jpg", "a.jpg"], ["a.jpg", "a.png/b.jpg"]])
def test_keys_that_would_share_a_name_are_marked(keys: list[str]) -> None:
    assert "~" in Names([keys], ".png").path(keys[0])


@pytest.mark.parametrize("key", ["../a.jpg", "/etc/a.jpg", "t.tar#../../a", "a\\..\\b.jpg", "c:/a.jpg"])
def test_no_key_leads_out_of_the_folder(key: str) -> None:
    path = Names([[key]], ".png").path(key)
    assert not path.startswith("/")
    assert ".." not in path.split("/")
    assert "\\" not in path
    assert ":" not in path
