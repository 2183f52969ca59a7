"""Styles of QGIS: class colours and names for masks, polygons and points.

In: a class map. Out: the bytes of a `.qml` file, which QGIS applies by itself when it opens the layer of the same name
beside it: `masks/a.qml` for `masks/a.tif` (QgsMapLayer::styleURI). The elements are those that QGIS 3.28, a long-term
release, writes: a paletted raster renderer, and a categorized renderer of simple symbols.
"""

import re
import xml.etree.ElementTree as ET
from typing import Literal

from pipeline.classes import IGNORE_COLOUR, ClassMap
from pipeline.geotiff.pyramid import NODATA

VERSION = "3.28.0"
"""Version of QGIS by whose format the styles are written; later ones convert them when they are read."""
CLASS_COLUMN = "class"
"""Attribute with the name of the class, of polygons, zones and points."""
NO_CLASS = "no class"
"""Label of what has none of the classes: a zone without a classified pixel."""
_DOCTYPE = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_GEOMETRY_TYPES = {"marker": "0", "fill": "2"}
"""Values of Qgis::GeometryType: point, polygon."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""All but the characters of XML 1.0, section 2.2."""
_OUTLINE = "35,35,35,255"

Colour = tuple[int, int, int]


def raster_qml(classes: ClassMap) -> bytes:
    """Style of a mask: a colour and a label for each id, and pixels without data transparent."""
    root = _qgis()
    pipe = ET.SubElement(root, "pipe")
    resampling = {"enabled": "false", "maxOversampling": "2"}
    method = {f"zoomed{way}ResamplingMethod": "nearestNeighbour" for way in ("In", "Out")}
    ET.SubElement(ET.SubElement(pipe, "provider"), "resampling", resampling | method)
    renderer = {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    paletted = ET.SubElement(pipe, "rasterrenderer", renderer)
    transparent = ET.SubElement(ET.SubElement(paletted, "rasterTransparency"), "singleValuePixelList")
    nodata = {"min": str(NODATA), "max": str(NODATA), "percentTransparent": "100"}
    ET.SubElement(transparent, "pixelListEntry", nodata)
    palette = ET.SubElement(paletted, "colorPalette")
    for index, one in enumerate(classes.classes):
        entry = {"value": str(index), "color": _hex(one.colour), "alpha": "255", "label": _writable(one.name)}
        ET.SubElement(palette, "paletteEntry", entry)
    ET.SubElement(root, "blendMode").text = "0"
    return _encoded(root)


def polygons_qml(classes: ClassMap) -> bytes:
    """Style of polygons by their attribute `class`, such as those of a mask or the dominant classes of zones."""
    return _categorized(classes, "fill")


def points_qml(classes: ClassMap) -> bytes:
    """Style of points by their attribute `class`."""
    return _categorized(classes, "marker")


def _categorized(classes: ClassMap, kind: Literal["fill", "marker"]) -> bytes:
    """Style with a symbol for each class, and a grey one for what has none of them."""
    root = _qgis()
    facts = {"type": "categorizedSymbol", "attr": CLASS_COLUMN, "forceraster": "0", "symbollevels": "0"}
    renderer = ET.SubElement(root, "renderer-v2", facts | {"enableorderby": "0", "referencescale": "-1"})
    categories, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    shown = [(name := _writable(one.name), name, one.colour) for one in classes.classes]
    for number, (value, label, colour) in enumerate([*shown, ("", NO_CLASS, IGNORE_COLOUR)]):
        category = {"value": value, "label": label, "symbol": str(number), "render": "true", "type": "string"}
        ET.SubElement(categories, "category", category)
        _add_symbol(symbols, str(number), kind, colour)
    ET.SubElement(root, "layerGeometryType").text = _GEOMETRY_TYPES[kind]
    return _encoded(root)


def _add_symbol(symbols: ET.Element, name: str, kind: Literal["fill", "marker"], colour: Colour) -> None:
    facts = {"type": kind, "name": name, "alpha": "1", "clip_to_extent": "1", "force_rhr": "0"}
    symbol = ET.SubElement(symbols, "symbol", facts)
    layer_class, own = {
        "fill": ("SimpleFill", {"style": "solid", "joinstyle": "bevel"}),
        "marker": ("SimpleMarker", {"name": "circle", "size": "2.4", "size_unit": "MM"}),
    }[kind]
    layer = ET.SubElement(symbol, "layer", {"class": layer_class, "enabled": "1", "locked": "0", "pass": "0"})
    outline = {"outline_color": _OUTLINE, "outline_style": "solid", "outline_width": "0.1", "outline_width_unit": "MM"}
    options = ET.SubElement(layer, "Option", {"type": "Map"})
    for key, value in {"color": ",".join(map(str, (*colour, 255))), **outline, **own}.items():
        ET.SubElement(options, "Option", {"name": key, "type": "QString", "value": value})


def _qgis() -> ET.Element:
    return ET.Element("qgis", {"version": VERSION, "styleCategories": "Symbology", "hasScaleBasedVisibilityFlag": "0"})


def _writable(text: str) -> str:
    """The text with U+FFFD for characters that XML 1.0 has no way to write, such as NUL."""
    return _NOT_XML.sub("\ufffd", text)


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _encoded(root: ET.Element) -> bytes:
    ET.indent(root, " ")
    encoded: bytes = ET.tostring(root, "utf-8", xml_declaration=False)
    return _DOCTYPE + encoded + b"\n"
