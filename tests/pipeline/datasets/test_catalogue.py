import pytest

from pipeline.datasets.catalogue import DATASET_LAYOUTS
from pipeline.errors import ConfigError
from pipeline.store.url import Url

DOWNLOADED = {name: one for name, one in DATASET_LAYOUTS.items() if not name.startswith("farmland")}


@pytest.mark.parametrize("name", DATASET_LAYOUTS)
def test_every_layout_has_a_class_map_a_page_and_a_licence(name: str) -> None:
    one = DATASET_LAYOUTS[name]
    assert one.name == name
    assert one.classes.ignore_id == 255
    assert one.splits
    assert one.source.startswith("http") or name not in DOWNLOADED
    assert one.license


def test_no_two_classes_share_a_colour() -> None:
    colours = {name: [info.colour for info in one.classes.classes] for name, one in DATASET_LAYOUTS.items()}
    twice = {name: len(drawn) - len(set(drawn)) for name, drawn in colours.items()}
    assert twice == dict.fromkeys(DATASET_LAYOUTS, 0) | {"ade20k": 1}  # as published


@pytest.mark.parametrize("name", DATASET_LAYOUTS)
def test_a_split_that_the_set_does_not_have_is_refused_with_those_it_has(name: str, tmp_path) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no split 'half'") as caught:
        DATASET_LAYOUTS[name].examples(Url(str(tmp_path)), "half")
    assert ", ".join(DATASET_LAYOUTS[name].splits) in caught.value.hint


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, one in DOWNLOADED.items() for split in one.splits])
def test_an_empty_folder_is_no_data_set(name: str, split: str, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no") as caught:
        DATASET_LAYOUTS[name].examples(Url(str(tmp_path / "empty")), split)
    assert "official archives" in caught.value.hint
