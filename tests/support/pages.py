"""Reading HTML pages: their tags and visible text, how wide a browser lays them out, and what it complains of."""

import html
import io
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


def laid_out(text: str, *, window_px: int, folder: Path) -> Layout:
    """Lay a page out in a window of this width."""
    measure = "document.title = f.contentDocument.documentElement.scrollWidth + ' of ' + f.contentWindow.innerWidth"
    frame = f'<iframe id="f" width="{window_px}" height="900" srcdoc="{html.escape(text)}" onload="{measure}"></iframe>'
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={folder}/profile"]
    dump = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", f"file://{folder}/frame.html"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    width, window = re.search(r"<title>(\d+) of (\d+)</title>", dump.stdout).groups()
    assert int(window) == window_px
    return Layout(int(width), re.findall(r"CONSOLE.*", dump.stderr))


def laid_out_width(text: str, *, window_px: int, folder: Path) -> int:
    """Pixels that a page takes in a window of this width; it may not complain of anything."""
    seen = laid_out(text, window_px=window_px, folder=folder)
    assert seen.complaints == []
    return seen.width_px
