"""Map of a report: pictures and polygons on a plain background, zoomed and clicked, without the network.

In: layers in degrees of longitude and latitude. Out: a fragment of HTML, and the style and scripts that draw it:
Leaflet (https://leafletjs.com, 1.9.4, in `leaflet/` with its licence) and `map.js`. The page holds all of it, and its
content security policy allows these two scripts alone, by their hashes.
"""

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

Bounds = tuple[tuple[float, float], tuple[float, float]]
"""South-west and north-east corner, each latitude and longitude."""
_HERE = Path(__file__).parent
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
"""What would end the element that the JSON stands in."""


@dataclass(frozen=True, slots=True)
class MapImage:
    """Picture in web Mercator, drawn between its bounds."""

    uri: str
    """Data URI."""
    bounds: Bounds
    title: str


@dataclass(frozen=True, slots=True)
class MapShape:
    """Polygon with a colour, and the table that a click shows."""

    geometry: dict[str, Any]
    """GeoJSON geometry in degrees."""
    fill: str
    """CSS colour."""
    line: str
    title: str
    note: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class MapLayer:
    """Pictures and polygons that are shown and hidden together."""

    name: str
    images: tuple[MapImage, ...] = ()
    shapes: tuple[MapShape, ...] = ()
    outline: bool = False
    """Draw outlines that cannot be clicked."""
    shown: bool = True


@dataclass(frozen=True, slots=True)
class PageMap:
    """Map of a page."""

    html: Markup
    style: Markup
    scripts: tuple[Markup, ...]
    policy: Markup
    """Hashes of the scripts, for `script-src` of the content security policy."""


def render_map(layers: Sequence[MapLayer], *, label: str, notes: Sequence[str] = ()) -> PageMap | None:
    """Lay out a map; None where no layer has anything to draw.

    Args:
        layers: from the lowest to the topmost.
        label: what the map shows, for those who cannot see it.
        notes: what is not on the map, and why; shown below it.
    """
    drawn = [layer for layer in layers if layer.images or layer.shapes]
    if not drawn:
        return None
    data = json.dumps({"layers": [asdict(layer) for layer in drawn]}, allow_nan=False, separators=(",", ":"))
    for letter, escaped in _ESCAPED.items():
        data = data.replace(letter, escaped)
    below = Markup("").join(Markup('<p class="soft">{}</p>').format(note) for note in notes)
    html = Markup(
        '<div class="map" data-map="map-data" role="application" aria-label="{}">'
        "<noscript>The map is drawn by a script in this page, which this browser does not run.</noscript></div>{}"
        '<script type="application/json" id="map-data">{}</script>'
    ).format(label, below, Markup(data))  # noqa: S704  # its letters that could end the element are escaped above
    scripts, policy = _scripts()
    return PageMap(html, _style(), scripts, policy)


@lru_cache(maxsize=1)
def _scripts() -> tuple[tuple[Markup, ...], Markup]:
    """Scripts of a page, and their hashes."""
    texts = [(_HERE / name).read_text(encoding="utf-8") for name in ("leaflet/leaflet.js", "map.js")]
    texts[0] = re.sub(r"\n//# sourceMappingURL=.*", "", texts[0])
    hashes = [b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return tuple(map(Markup, texts)), Markup(" ").join(Markup(f"'sha256-{one}'") for one in hashes)  # noqa: S704


@lru_cache(maxsize=1)
def _style() -> Markup:
    """Style of a page: Leaflet's without the pictures that no control here shows, and ours."""
    text = (_HERE / "leaflet/leaflet.css").read_text(encoding="utf-8")
    return Markup(re.sub(r"[\w-]+:\s*url\([^)]*\);", "", text) + _OWN_STYLE)  # noqa: S704


_OWN_STYLE = """
.map { height: clamp(20rem, 60vh, 38rem); margin: 1rem 0 .6rem; border: 1px solid var(--rule); border-radius: 3px;
  background: var(--sheet); font: .85rem/1.4 var(--sans); z-index: 0; }
.map .pixels { image-rendering: pixelated; }
.map path:focus-visible { outline: none; stroke: var(--accent); stroke-width: 3; }
.map svg { display: block; width: auto; height: auto; max-width: none; }
.map section { margin: 0; padding: 0; border: 0; }
.map .leaflet-bar a, .map .leaflet-control-layers, .map .leaflet-control-scale-line,
.map .leaflet-popup-content-wrapper, .map .leaflet-popup-tip {
  background: var(--paper); color: var(--ink); border-color: var(--rule);
}
.map .leaflet-popup-content { margin: .7rem .9rem; }
.map .leaflet-popup-content p { margin: .2rem 0 .4rem; color: var(--soft); }
.map .leaflet-control-layers { box-shadow: none; border: 1px solid var(--rule); }
.map .leaflet-control-layers label { margin: .1rem 0; font-size: .85rem; }
.map td, .map th { padding: .15rem .5rem .15rem 0; white-space: nowrap; }
@media (max-width: 44rem) { .map { height: 24rem; } }
"""
