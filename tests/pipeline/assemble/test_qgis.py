"""Styles of QGIS, read back as XML: colours, labels and symbols, by the structure of styles that QGIS 3 saves."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.assemble.qgis import points_qml, polygons_qml, raster_qml
from pipeline.classes import ClassInfo, ClassMap
from tests.support.examples import examples
from tests.support.raster_runs import CLASSES

HEAD = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<qgis "
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
NAMES = NAMES.filter(lambda name: not {"\ufffe", "\uffff"} & set(name))


def named(*names: str) -> ClassMap:
    colours = [(number, 2 * number, 255 - number) for number in range(len(names))]
    classes = tuple(ClassInfo(name=name, colour=colour) for name, colour in zip(names, colours, strict=True))
    return ClassMap(name="own", classes=classes)


def options(symbol: ET.Element) -> dict[str, str]:
    return {option.get("name"): option.get("value") for option in symbol.findall("layer/Option/Option")}


def test_a_mask_has_the_colour_and_the_label_of_each_class() -> None:
    data = raster_qml(CLASSES)
    assert data.startswith(HEAD)
    (renderer,) = ET.fromstring(data).findall("pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band"), renderer.get("alphaBand")) == ("paletted", "1", "-1")
    entries = renderer.findall("colorPalette/paletteEntry")
    assert [int(entry.get("value")) for entry in entries] == list(range(len(CLASSES)))
    assert [entry.get("label") for entry in entries] == list(CLASSES.names)
    colours = [tuple(bytes.fromhex(entry.get("color").removeprefix("#"))) for entry in entries]
    assert colours == [one.colour for one in CLASSES.classes]
    assert {entry.get("alpha") for entry in entries} == {"255"}


def test_pixels_without_data_are_transparent() -> None:
    (entry,) = ET.fromstring(raster_qml(CLASSES)).findall(".//rasterTransparency/singleValuePixelList/pixelListEntry")
    assert entry.attrib == {"min": "255", "max": "255", "percentTransparent": "100"}


@pytest.mark.parametrize(
    ("style", "kind", "layer", "geometry"),
    [(polygons_qml, "fill", "SimpleFill", "2"), (points_qml, "marker", "SimpleMarker", "0")],
)
def test_polygons_and_points_have_a_symbol_for_each_class_and_one_for_none(style, kind, layer, geometry) -> None:
    root = ET.fromstring(style(CLASSES))
    (renderer,) = root.findall("renderer-v2")
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class")
    categories = renderer.findall("categories/category")
    assert [category.get("value") for category in categories] == [*CLASSES.names, ""]
    symbols = {symbol.get("name"): symbol for symbol in renderer.findall("symbols/symbol")}
    assert {symbol.get("type") for symbol in symbols.values()} == {kind}
    assert {symbol.find("layer").get("class") for symbol in symbols.values()} == {layer}
    colours = [options(symbols[category.get("symbol")])["color"] for category in categories]
    assert colours == [",".join(map(str, (*one.colour, 255))) for one in CLASSES.classes] + ["128,128,128,255"]
    assert root.findtext("layerGeometryType") == geometry


@given(st.lists(NAMES, min_size=2, max_size=4, unique=True))
@examples(60)
def test_any_name_is_read_back_as_it_is(names) -> None:
    classes = named(*names)
    palette = ET.fromstring(raster_qml(classes)).iter("paletteEntry")
    assert [entry.get("label") for entry in palette] == names
    categories = ET.fromstring(polygons_qml(classes)).iter("category")
    assert [category.get("value") for category in categories] == [*names, ""]


@pytest.mark.parametrize("letter", ["\0", "\x1f", "\ufffe"])
def test_a_letter_that_xml_cannot_write_is_replaced(letter) -> None:
    entries = ET.fromstring(raster_qml(named(f"a{letter}b", "c"))).iter("paletteEntry")
    assert next(entries).get("label") == "a\ufffdb"
