"""What the HTML pages have in common: one frame and style, and pictures that are part of the page.

In: the name of a template beside this file, and bytes. Out: a template to be rendered, and data URIs. Nothing is
written, and nothing a page shows lies outside it.
"""

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pipeline.paint import HATCH


def template(name: str, **filters: Callable[..., str]) -> Template:
    """Open `name`.html.j2, which extends page.html.j2. What it inserts is escaped; a name it is not given is an error.

    Args:
        name: of the page.
        filters: what the page may format values with, by name.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= filters
    pages.globals["hatch"] = HATCH
    return pages.get_template(f"{name}.html.j2")


def uri(data: bytes, kind: str) -> str:
    """An encoded image as a data URI; `kind` is its format, such as PNG."""
    return f"data:image/{kind.lower()};base64,{b64encode(data).decode()}"
