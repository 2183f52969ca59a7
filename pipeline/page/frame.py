"""Frame of all HTML reports: templates with a common style, formatting of numbers, and data URIs of pictures.

In: the name of a template below `pipeline/`, numbers and bytes. Out: a template, text and data URIs. Nothing is written
to a store, and pages load nothing from outside.
"""

import math
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pipeline.page.paint import HATCH


def load_template(name: str, **filters: Callable[..., str]) -> Template:
    """Load `name`.html.j2 below `pipeline/`, which extends page/page.html.j2.

    Inserted text is escaped; an undefined variable is an error.

    Args:
        name: path of the template without suffix, such as `run/report`.
        filters: further filters of the template, by name.
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
    """Data URI of an encoded image; `kind` is its format, such as PNG."""
    return f"data:image/{kind.lower()};base64,{b64encode(data).decode()}"


def format_duration(seconds: float) -> str:
    """Format seconds in at most two units: 12.3 s, 4 min 05 s, 3 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.9995 else f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:,} h {minutes_left:02} min" if hours else f"{minutes} min {rest:02} s"


def format_percent(share: float) -> str:
    """Format a share with two significant digits: 42 %, 4.2 %, 0.42 %; never 0 % above 0, never 100 % below 1."""
    for digits in (0, 1, 2):
        shown = round(share * 100, digits)
        if share >= 10.0 ** (-1 - digits) and (shown < 100 or share >= 1):
            return f"{shown:.{digits}f}\u202f%"
    if share > 0.5:
        return ">\u202f99.99\u202f%"
    return "<\u202f0.01\u202f%" if share > 0 else "0\u202f%"


def format_figure(number: float) -> str:
    """Format a number with three significant digits and thousands separators: 0.0123, 4.56, 78.9, 12,345."""
    if number >= 100 or number == int(number):
        return f"{number:,.0f}"
    return f"{number:.3g}"


def format_points(share: float) -> str:
    """Format percentage points with sign: +1.25, \u22120.30; a dash for NaN."""
    if math.isnan(share):
        return "–"
    return f"{share * 100:+.2f}".replace("-", "\u2212") if abs(share) >= 5e-5 else "0.00"
