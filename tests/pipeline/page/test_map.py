"""The map of a page in a real browser."""

import base64
import hashlib
import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from rasterio.transform import from_origin

from pipeline.classes import load_class_map
from pipeline.geotiff.overview import Overview, read_overview
from pipeline.page import frame
from pipeline.page.map import MapLayer, MapShape, PageMap, render_map
from pipeline.page.mask_overlay import mask_overlay
from pipeline.store.url import Url
from tests.support.pages import CHROMIUM, FLAGS, laid_out, needs_browser

CLASSES = load_class_map("farmland")
HOSTILE = "</script><script>document.title='broken'</script><b onclick=x>"


def square(x: float, y: float) -> dict[str, Any]:
    return json.loads(shapely.to_geojson(shapely.box(x, y, x + 0.01, y + 0.01)))


def map_of(count: int = 3, title: str = "field") -> PageMap:
    rows = (("crop", "1.5", "70%"), ("water", "0.5", "30%"))
    columns = ("class", "ha", "share")
    shapes = tuple(
        MapShape(square(10 + 0.02 * number, 52), "#aa3300", "#333333", f"{title} {number}", "2 ha", columns, rows)
        for number in range(count)
    )
    outline = MapShape(square(10, 52), "none", "#333333", "raster")
    layers = [MapLayer("outlines", shapes=(outline,), outline=True), MapLayer("zones", shapes=shapes)]
    found = render_map(layers, label="Fields", notes=["2 of 5 rasters have no coordinates."])
    assert found is not None
    return found


def page_of(page_map: PageMap | None) -> str:
    facts: dict[str, Any] = {"titles": ("a", "b"), "unit": "ha", "flows": [], "cells": {}, "targets": [], "compared": 0}
    facts |= {"other": 0, "amount": 0.0, "changed": 0.0, "zones": [], "all_zones": 0, "left_out": 0}
    return frame.load_template("changes/report").render(**facts, page_map=page_map)


def in_browser(page: str, script: str, folder: Path, *, width_px: int = 1280) -> Any:
    """What a script says after the page has drawn its map, as JSON in its title."""
    text = f"setTimeout(() => {{ {script} }}, 300)"
    allowed = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{allowed}' ").replace(
        "</body>", f"<script>{text}</script></body>"
    )
    (folder / "page.html").write_text(page, encoding="utf-8")
    flags = [f"--user-data-dir={folder}/profile", f"--window-size={width_px},900", "--virtual-time-budget=5000"]
    dump = subprocess.run(
        [CHROMIUM, *FLAGS, *flags, "--dump-dom", f"file://{folder}/page.html"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert re.findall(r"CONSOLE.*", dump.stderr) == []
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dump.stdout, re.DOTALL)[1]))


@needs_browser
@pytest.mark.parametrize("width_px", [1280, 500])
def test_a_browser_draws_the_shapes_and_a_click_shows_the_table(width_px: int, tmp_path: Path) -> None:
    script = """
    const paths = [...document.querySelectorAll('.map path.leaflet-interactive')];
    paths[1].dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: 300, clientY: 300}));
    const cells = [...document.querySelectorAll('.leaflet-popup td')].map(cell => cell.textContent);
    const all = document.querySelectorAll('.map path').length;
    const title = document.querySelector('.leaflet-popup b').textContent;
    document.title = JSON.stringify([all, paths.length, title, cells, document.documentElement.scrollWidth]);
    """
    drawn, clickable, title, cells, width = in_browser(page_of(map_of()), script, tmp_path, width_px=width_px)
    assert (drawn, clickable) == (4, 3)
    assert title == "field 1"
    assert cells == ["crop", "1.5", "70%", "water", "0.5", "30%"]
    assert width <= width_px


@needs_browser
@pytest.mark.parametrize("window_px", [1280, 390])
def test_a_page_with_a_map_fits_its_window_and_asks_for_nothing_from_outside(window_px: int, tmp_path: Path) -> None:
    page = page_of(map_of())
    seen = laid_out(page, window_px=window_px, folder=tmp_path)
    assert seen.width_px <= window_px
    assert [line for line in seen.complaints if "srcdoc" not in line] == []
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|url\((?!data:)", without_scripts)


@needs_browser
def test_titles_of_users_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    script = """
    const path = document.querySelector('.map path.leaflet-interactive');
    path.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: 300, clientY: 300}));
    const popup = document.querySelector('.leaflet-popup-content');
    const elements = popup.querySelectorAll('script, b b').length;
    document.title = JSON.stringify([popup.querySelector('b').textContent, elements]);
    """
    title, elements = in_browser(page_of(map_of(title=HOSTILE)), script, tmp_path)
    assert title == f"{HOSTILE} 0"
    assert elements == 0
    assert HOSTILE not in page_of(map_of(title=HOSTILE))


def test_a_page_without_a_map_allows_no_script() -> None:
    assert "script" not in page_of(None)
    assert render_map([MapLayer("zones")], label="x") is None


def test_an_overview_is_the_one_that_gdal_reads(tmp_path: Path) -> None:
    ids = np.kron(np.random.default_rng(0).integers(0, 6, (40, 60), np.uint8), np.ones((40, 40), np.uint8))
    profile = {"driver": "GTiff", "height": 1600, "width": 2400, "count": 1, "dtype": "uint8", "nodata": 255}
    with rasterio.open(tmp_path / "plain.tif", "w", **profile) as out:
        out.write(ids, 1)
    options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": "512", "OVERVIEW_RESAMPLING": "NEAREST"}
    rasterio.shutil.copy(tmp_path / "plain.tif", tmp_path / "a.tif", driver="COG", **options)
    for longer_px, level in ((5000, None), (1200, 0), (700, 1)):
        found = read_overview(Url(str(tmp_path / "a.tif")), longer_px=longer_px)
        options = {} if level is None else {"overview_level": level}
        with rasterio.open(tmp_path / "a.tif", **options) as dataset:
            np.testing.assert_array_equal(found.ids_hw, dataset.read(1))
        assert (found.height, found.width) == (1600, 2400)


def test_the_picture_of_a_mask_lies_where_the_mask_does() -> None:
    ids = np.zeros((200, 300), np.uint8)
    ids[:100, :150] = 3
    transform = from_origin(500000, 5200000, 10, 10)
    crs = rasterio.crs.CRS.from_epsg(32614)
    image = mask_overlay(Overview(ids, 200, 300), tuple(transform)[:6], crs.to_wkt(), CLASSES, title="a")
    assert image is not None
    (south, west), (north, east) = image.bounds
    left, bottom, right, top = rasterio.warp.transform_bounds(crs, 4326, 500000, 5198000, 503000, 5200000)
    np.testing.assert_allclose([west, south, east, north], [left, bottom, right, top], atol=2e-4)
