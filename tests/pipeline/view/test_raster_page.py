"""Rasters of the page in a real browser, over the real server."""

import json

import numpy as np
import pytest
import shapely

from pipeline.run import manifest
from tests.support import viewed_rasters
from tests.support.browser import browser
from tests.support.pages import needs_browser
from tests.support.raster_runs import CLASSES
from tests.support.served import TOKEN, serving
from tests.support.viewed_rasters import MASKS, ZONES

pytestmark = needs_browser

CANVAS = "document.querySelector('#raster-canvas')"
MASK, HOSTILE = MASKS["plain.tif"], list(MASKS)[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rasters")
    url = viewed_rasters.commit(folder)
    viewed_rasters.join(url)
    viewed_rasters.make_outlines(url, folder / "fields.geojson")
    run = viewed_rasters.open_run(url, folder / "cache")
    manifest.mark_finished(url)
    with serving(run) as address:
        yield address
    run.close()


@pytest.fixture
def page(address, tmp_path):
    """The page with its rows; at the end it may not have complained."""
    with browser(tmp_path) as tab:
        tab.open(f"{address}?token={TOKEN}")
        tab.wait("document.querySelector('#count')?.textContent === '10 rows'")
        yield tab
        assert tab.complaints == []


def go(page, **state):
    """Go to a state of the page by its address."""
    page.run(f"location.hash = new URLSearchParams({json.dumps(state)})")


def show_raster(page, y, x, scale):
    """Open the first raster around a pixel, and wait until its tiles are drawn."""
    go(page, raster="plain.tif", at=f"{x},{y},{scale}")
    page.wait("document.querySelector('#raster-facts').textContent")
    page.wait("/^1 : \\d+$/.test(document.querySelector('#raster-level').textContent)")


def place_of(page, y, x):
    """Place of a pixel of the raster in the window, by the part in sight that the address has."""
    centre_x, centre_y, scale = map(float, page.run("new URLSearchParams(location.hash.slice(1)).get('at')").split(","))
    left, top, width, height = page.run(
        f"(({{x, y, width, height}}) => [x, y, width, height])({CANVAS}.getBoundingClientRect())"
    )
    return left + width / 2 + (x + 0.5 - centre_x) * scale, top + height / 2 + (y + 0.5 - centre_y) * scale


def colour_at(page, y, x):
    """(R, G, B, A) that is drawn at a pixel of the raster."""
    left, top = page.run(f"(({{x, y}}) => [x, y])({CANVAS}.getBoundingClientRect())")
    at_x, at_y = place_of(page, y, x)
    copied = f"copy.drawImage({CANVAS}, {int(at_x - left)}, {int(at_y - top)}, 1, 1, 0, 0, 1, 1)"
    drawn = f"(copy => ({copied}, [...copy.getImageData(0, 0, 1, 1).data]))"
    return page.run(f"{drawn}(new OffscreenCanvas(1, 1).getContext('2d'))")


def choose(page, selector, value):
    page.run(
        f"(field => {{ field.value = {value}; field.dispatchEvent(new Event('input')) }})"
        f"(document.querySelector('{selector}'))"
    )


def test_a_raster_opens_from_the_list_and_escape_leads_back(page):
    page.click("#list-rasters")
    page.wait("document.querySelectorAll('#rasters-lines tr').length === 2")
    names = page.run("[...document.querySelectorAll('#rasters-lines a')].map(link => link.textContent)")
    assert names == list(MASKS)
    page.run("document.querySelector('#rasters-search').value = 'hostile'")
    page.run("document.querySelector('#rasters-search').dispatchEvent(new Event('input'))")
    page.wait("document.querySelectorAll('#rasters-lines tr').length === 1")
    page.click("#rasters-lines a")
    page.wait(f"document.querySelector('#raster-name').textContent === {json.dumps(HOSTILE)}")
    assert page.run("document.querySelectorAll('dialog b, dialog i').length") == 0
    page.press("Escape")
    page.wait("!document.querySelector('#raster').open && document.querySelector('#rasters').open")
    page.press("Escape")
    page.wait("!document.querySelector('#rasters').open")


def test_tiles_of_every_level_are_painted_in_the_colours_of_the_mask(page):
    y, x = 352, 451
    assert len({int(one) for one in MASK[y - 3 : y + 4, x - 3 : x + 4].ravel()}) <= 4
    show_raster(page, y, x, 2)
    choose(page, "#raster-opacity", 100)
    page.run("document.querySelector('#raster-outlines input:checked').click()")
    assert colour_at(page, y, x)[:3] == list(CLASSES.classes[MASK[y, x]].colour)
    page.press("0")
    page.wait("document.querySelector('#raster-level').textContent === '1 : 1'")
    for _ in range(4):
        page.press("-")
    page.wait("document.querySelector('#raster-level').textContent === '1 : 4'")
    page.press("0")
    page.wait("document.querySelector('#raster-level').textContent === '1 : 1'")
    page.wait("document.querySelector('#raster-problems').textContent === ''")
    choose(page, "#raster-opacity", 0)
    assert colour_at(page, y, x)[3] == 255  # the source is there


def test_a_class_that_is_switched_off_is_not_painted(page):
    y, x = 352, 451
    show_raster(page, y, x, 4)
    choose(page, "#raster-opacity", 100)
    page.run("document.querySelector('#raster-outlines input:checked').click()")
    painted = colour_at(page, y, x)
    page.click(f"#raster-classes label:nth-child({MASK[y, x] + 1}) input")
    assert colour_at(page, y, x) != painted
    page.click(f"#raster-classes label:nth-child({MASK[y, x] + 1}) input")
    assert colour_at(page, y, x) == painted


def test_the_class_under_the_cursor_is_named_and_its_window_opens(page):
    y, x = 600, 700
    show_raster(page, y, x, 4)
    at_x, at_y = place_of(page, y, x)
    page.move(at_x, at_y)
    page.wait(f"document.querySelector('#raster-readout').textContent === '({x}, {y}) {CLASSES.names[MASK[y, x]]}'")
    page.press("w")
    page.wait("document.querySelector('#key').textContent === 'plain.tif#512,512'")
    page.click("#in-raster")
    page.wait("!document.querySelector('#detail').open && document.querySelector('#raster').open")
    page.wait("new URLSearchParams(location.hash.slice(1)).get('at')?.startsWith('768,606')")


def test_a_row_leads_to_its_raster(page):
    go(page, key="plain.tif#512,1024")
    page.click("#in-raster:not([hidden])")
    page.wait("document.querySelector('#raster-name').textContent === 'plain.tif'")
    page.wait("new URLSearchParams(location.hash.slice(1)).get('at')?.startsWith('1062,606')")
    page.run("history.back()")
    page.wait("document.querySelector('#detail').open && !document.querySelector('#raster').open")


def place_in_largest(page, kind):
    """Row and column of a pixel inside the largest outline of the first raster: small ones may be left out."""
    path = f"/api/rasters/0/outlines/{kind}?y=0&x=0&height=700&width=1100&level=0"
    outer, *holes = page.run(f"fetch('{path}').then(answer => answer.json()).then(found => found.shapes[0].rings)")
    shape = shapely.Polygon(np.reshape(outer, (-1, 2)), [np.reshape(hole, (-1, 2)) for hole in holes])
    middle = shape.representative_point()
    return int(middle.y), int(middle.x)


@pytest.mark.parametrize("kind", ["polygons", "zones"])
def test_a_click_on_an_outline_shows_its_columns(page, kind):
    y, x = place_in_largest(page, kind)
    show_raster(page, y, x, 3)
    if kind == "polygons":
        page.click("#raster-outlines input[value=polygons]")
        page.click("#raster-outlines input[value=zones]")
    page.wait(f"document.querySelector('#raster-counts').textContent.includes('{kind} here')")
    at = place_of(page, y, x)
    page.drag(*at, *at)
    page.wait("document.querySelector('#raster-shape').textContent")
    table = page.wait(
        "Object.fromEntries([...document.querySelectorAll('#raster-shape tr')].map(row => "
        "[row.firstChild.textContent, row.lastChild.textContent]))"
    )
    if kind == "polygons":
        assert table["class"] == CLASSES.names[MASK[y, x]]
    else:
        assert table["zone"] in ZONES


def test_outlines_that_were_left_out_come_when_the_picture_is_enlarged(page):
    counts = "document.querySelector('#raster-counts').textContent"
    show_raster(page, 350, 550, 0.9)
    page.click("#raster-outlines input[value=polygons]")
    page.wait(f"/^[0-9,]+ polygons here, [0-9,]+ smaller ones here and around are left out;/.test({counts})")
    for _ in range(7):
        page.press("+")
    page.wait(f"/^[1-9][0-9]{{0,2}} polygons here;/.test({counts})")


def test_a_tile_that_did_not_come_says_why_and_is_asked_for_again_when_it_comes_back_into_sight(page):
    page.run(
        "{ const fetched = window.fetch; window.away = true; window.fetch = (path, more) => window.away &&"
        "path.includes('/mask/') ? Promise.reject(new TypeError('the store is away')) : fetched(path, more) }"
    )
    show_raster(page, 350, 550, 1)
    said = "document.querySelector('#raster-working').textContent"
    page.wait(f"{said} === 'a tile is not shown: the store is away'")
    page.run("window.away = false")
    page.press("-")
    page.press("-")
    page.wait(f"{said} === ''")
    page.press("+")
    page.press("+")
    page.wait("/^1 : 1$/.test(document.querySelector('#raster-level').textContent)")
    assert page.run(said) == ""


def test_dragging_and_the_wheel_move_the_part_in_sight(page):
    show_raster(page, 350, 500, 2)
    x, y = place_of(page, 350, 500)
    page.drag(x, y, x - 100, y - 40)
    page.wait("new URLSearchParams(location.hash.slice(1)).get('at') === '550,370,2'")
    page.press("ArrowRight")
    page.wait("new URLSearchParams(location.hash.slice(1)).get('at') === '600,370,2'")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(address, tmp_path, width):
    with browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}", width=width)
        page.wait("document.querySelector('#count')?.textContent === '10 rows'")
        page.click("#list-rasters")
        page.wait("document.querySelectorAll('#rasters-lines tr').length === 2")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run("document.querySelector('#rasters').scrollWidth") <= width
        page.click("#rasters-lines a")
        page.wait("document.querySelector('#raster-facts').textContent")
        page.wait("/^1 : \\d+$/.test(document.querySelector('#raster-level').textContent)")
        assert page.run("document.querySelector('#raster').scrollWidth") <= width
        assert page.run("document.querySelector('#raster .about').scrollWidth") <= width
        assert page.complaints == []


def test_a_place_that_makes_no_sense_still_shows_the_raster(page):
    for at in ("", "x,y", "1e400,0,1", "0,0,-1", "5,5", "-1e9,1e9,1e9", "1,2,3,4"):
        go(page, raster="plain.tif", at=at)
        page.wait("document.querySelector('#raster-facts').textContent")
        go(page, raster="no such raster")
        page.wait("document.querySelector('#raster-working').textContent === 'the run has no such raster'")
