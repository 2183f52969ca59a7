import tomllib

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import classes
from pipeline.classes import IGNORE_COLOUR, ClassInfo, ClassMap
from pipeline.errors import ConfigError
from tests import ROOT

CAMVID = "sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist"

LETTERS = st.characters(codec="utf-8")
colours = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def class_maps(draw, letters=LETTERS):
    names = draw(st.lists(st.text(letters, min_size=1, max_size=8), min_size=2, max_size=30, unique=True))
    infos = tuple(ClassInfo(name=name, colour=draw(colours)) for name in names)
    return ClassMap(name="drawn", classes=infos, ignore_id=draw(st.integers(len(infos), 255)))


def voc_colour(class_id):
    """The three lowest bits of the id become the highest bits of R, G and B, the next three the next, and so on."""
    rgb = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            rgb[channel] |= (class_id >> (3 * bit + channel) & 1) << (7 - bit)
    return tuple(rgb)


@pytest.mark.parametrize(
    ("name", "count"), [("farmland", 7), ("voc", 21), ("cityscapes", 19), ("ade20k", 150), ("camvid", 11)]
)
def test_shipped_maps_load_and_are_complete(name, count):
    one = classes.load_class_map(name)
    assert (one.name, len(one), one.ignore_id) == (name, count, 255)
    assert name in classes.shipped_class_maps()


def test_voc_colours_follow_the_development_kit():
    voc = classes.load_class_map("voc")
    assert voc.names[0] == "background"
    assert [one.colour for one in voc.classes] == [voc_colour(class_id) for class_id in range(21)]


def test_camvid_is_in_the_order_of_segnet():
    assert classes.load_class_map("camvid").names == tuple(CAMVID.split())


@pytest.mark.parametrize("name", ["farmland", "voc", "cityscapes", "camvid"])
def test_no_two_classes_share_a_colour(name):
    drawn = [one.colour for one in classes.load_class_map(name).classes]
    assert len(set(drawn)) == len(drawn)


def test_ade20k_repeats_one_colour_only():
    """The published palette draws road and skyscraper alike; anything more would be a slip of ours."""
    ade = classes.load_class_map("ade20k")
    drawn = [one.colour for one in ade.classes]
    assert {name for name, colour in zip(ade.names, drawn, strict=True) if drawn.count(colour) > 1} == {
        "road",
        "skyscraper",
    }


def test_shipped_maps_are_part_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged = {path for glob in settings["package-data"]["pipeline"] for path in (ROOT / "pipeline").glob(glob)}
    assert {classes.PALETTES / f"{name}.yaml" for name in classes.shipped_class_maps()} <= packaged


@given(class_maps())
def test_png_palette_draws_every_id_in_its_colour(one):
    palette = one.png_palette()
    assert len(palette) == 768
    mask = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    mask.putpalette(palette)
    drawn = np.asarray(mask.convert("RGB"))[0].tolist()
    assert drawn[: len(one)] == [list(info.colour) for info in one.classes]
    assert drawn[len(one) :] == [list(IGNORE_COLOUR)] * (256 - len(one))


def swapped(line):
    where, sides = line.split(": ")
    return f"{where}: {' / '.join(reversed(sides.split(' / ')))}"


@given(class_maps(st.sampled_from("ab")), class_maps(st.sampled_from("ab")))
def test_differences_are_symmetric_and_none_between_equals(one, other):
    assert one.differences(one) == []
    assert [swapped(line) for line in one.differences(other)] == other.differences(one)
    assert bool(one.differences(other)) == (one.names != other.names)


@given(class_maps())
def test_a_map_written_as_yaml_is_read_back(one):
    text = yaml.safe_dump(one.model_dump(mode="json"))
    assert classes.from_dict(yaml.safe_load(text), origin="test") == one


def test_own_map_is_loaded_from_its_path(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nclasses: [{name: a, colour: [0, 0, 0]}, {name: ä, colour: [1, 2, 3]}]\n", "utf-8")
    assert classes.load_class_map(str(path)).names == ("a", "ä")


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="no class map 'vok'") as caught:
        classes.load_class_map("vok")
    assert all(name in caught.value.hint for name in classes.shipped_class_maps())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classes: [", "is not YAML"),
        (b"name: caf\xe9", "is not YAML"),
        ("", "class map"),
        ("name: own\nclasses: [{name: a, colour: [0, 0, 0]}]", "classes"),
        ("name: own\nclasses: [{name: a, colour: [0, 0, 0]}, {name: b, colour: [0, 0, 256]}]", "classes.1.colour.2"),
        ("name: own\nclasses: [{name: a, colour: [0, 0, 0]}, {name: a, colour: [0, 0, 1]}]", "given twice: a"),
        ("name: own\nclasses: [{name: a, colour: [0, 0, 0]}, {name: b, color: [0, 0, 1]}]", "classes.1.color"),
        (
            "name: own\nignore_id: 1\nclasses: [{name: a, colour: [0, 0, 0]}, {name: b, colour: [0, 0, 1]}]",
            "ignore_id 1 is also the id of class 'b'",
        ),
    ],
)
def test_bad_map_is_refused_with_file_and_field(tmp_path, text, said):
    path = tmp_path / "own.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        classes.load_class_map(str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
