"""What the HTML pages have in common: one frame and style, numbers written in one way, and pictures inside the page.

In: the name of a template beside this file, numbers and bytes. Out: a template to be rendered, text and data URIs.
Nothing is written to a store, and nothing a page shows lies outside it.
"""

import math
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pipeline.page.paint import HATCH


def load_template(name: str, **filters: Callable[..., str]) -> Template:
    """Open `name`.html.j2 below `pipeline/`, which extends page/page.html.j2.

    What it inserts is escaped; a name it is not given is an error.

    Args:
        name: of the page, such as `run/report`.
        filters: what the page may format values with beside what stands below, by name.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "duration": format_duration,
        "percent": format_percent,
        "figure": format_figure,
        "points": format_points,
    } | filters
    pages.globals["hatch"] = HATCH
    return pages.get_template(f"{name}.html.j2")


def data_uri(data: bytes, kind: str) -> str:
    """An encoded image as a data URI; `kind` is its format, such as PNG."""
    return f"data:image/{kind.lower()};base64,{b64encode(data).decode()}"


def format_duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 3 h 07 min: two units at most."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.9995 else f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:,} h {minutes_left:02} min" if hours else f"{minutes} min {rest:02} s"


def format_percent(share: float) -> str:
    """42 %, 4.2 %, 0.42 %: two digits that matter; never 0 for something, never 100 for less than all."""
    for digits in (0, 1, 2):
        shown = round(share * 100, digits)
        if share >= 10.0 ** (-1 - digits) and (shown < 100 or share >= 1):
            return f"{shown:.{digits}f}\u202f%"
    if share > 0.5:
        return ">\u202f99.99\u202f%"
    return "<\u202f0.01\u202f%" if share > 0 else "0\u202f%"


def format_figure(number: float) -> str:
    """Three digits that matter, thousands apart: 0.0123, 4.56, 78.9, 12,345."""
    if number >= 100 or number == int(number):
        return f"{number:,.0f}"
    return f"{number:.3g}"


def format_points(share: float) -> str:
    """Percentage points with their sign: +1.25, \u22120.30; a dash for NaN."""
    if math.isnan(share):
        return "–"
    return f"{share * 100:+.2f}".replace("-", "\u2212") if abs(share) >= 5e-5 else "0.00"
