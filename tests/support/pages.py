"""Reading HTML pages: their tags and visible text, how a browser lays them out and prints them, and its complaints."""

import html
import io
import json
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found to lay out the page")
needs_printer = pytest.mark.skipif(
    CHROMIUM is None or shutil.which("pdftotext") is None, reason="no chromium and pdftotext found to print the page"
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
]
MEASURE = """
const page = f.contentDocument, boxes = [...page.querySelectorAll('svg, table, .views, pre, h2, h3')];
const box = boxes.map(one => one.getBoundingClientRect()), name = one => one.getAttribute('aria-label') || one.tagName;
const lies = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const faults = boxes.flatMap((one, i) => boxes.slice(i + 1).flatMap((two, j) =>
    lies(box[i], box[i + 1 + j]) ? [name(one) + ' lies over ' + name(two)] : []));
const cut = boxes.filter((one, i) => box[i].right > f.contentWindow.innerWidth + 1).map(one => name(one) + ' is cut');
document.title = JSON.stringify([page.documentElement.scrollWidth, f.contentWindow.innerWidth, [...faults, ...cut]]);
"""
"""Script that puts into the title: width of the page, of its window, and what lies over something or is cut."""


class Outline(HTMLParser):
    """The tags of a page, those left open, and its visible text."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.stack, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data

    def images(self):
        for tag, attrs in self.tags:
            if tag == "img":
                data = b64decode(attrs["src"].partition("base64,")[2])
                yield attrs, PIL.Image.open(io.BytesIO(data))


@dataclass(frozen=True)
class Layout:
    """What a browser makes of a page."""

    width_px: int
    """More than the window's, when something in it does not fit."""
    complaints: list[str]
    """Messages on the console: what was blocked, and what went wrong."""
    faults: list[str]
    """Plots, tables, pictures and headings that lie over one another or leave the window."""


def laid_out(text: str, *, window_px: int, folder: Path) -> Layout:
    """Lay a page out in a window of this width."""
    content = f'width="{window_px}" height="900" srcdoc="{html.escape(text)}" onload="{html.escape(MEASURE)}"'
    (folder / "frame.html").write_text(f'<iframe id="f" {content}></iframe>', encoding="utf-8")
    dump = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}/profile", "--dump-dom", f"file://{folder}/frame.html"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = html.unescape(re.search(r"<title>(\[.*?\])</title>", dump.stdout, re.DOTALL)[1])
    width, window, faults = json.loads(title)
    assert window == window_px
    return Layout(width, re.findall(r"CONSOLE.*", dump.stderr), faults)


def laid_out_width(text: str, *, window_px: int, folder: Path) -> int:
    """Pixels that a page takes in a window of this width; it may not complain of anything."""
    seen = laid_out(text, window_px=window_px, folder=folder)
    assert seen.complaints == []
    return seen.width_px


def printed(text: str, *, folder: Path) -> list[str]:
    """Text of each sheet of the printed page."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    flags = [f"--user-data-dir={folder}/profile", "--no-pdf-header-footer", f"--print-to-pdf={folder}/page.pdf"]
    subprocess.run(
        [CHROMIUM, *FLAGS, *flags, f"file://{folder}/page.html"], capture_output=True, timeout=120, check=True
    )
    text = subprocess.run(["pdftotext", f"{folder}/page.pdf", "-"], capture_output=True, text=True, check=True).stdout
    return text.split("\f")[:-1]
