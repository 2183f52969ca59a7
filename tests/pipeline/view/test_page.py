"""The page in a real browser, over the real server."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from urllib.parse import quote

import pytest

from pipeline.run import manifest
from pipeline.run.progress import WORKING, Snapshot, write_progress
from pipeline.store.url import Url
from pipeline.view import opened as opened_module
from pipeline.view.agreement import Agreement
from pipeline.view.comparing import Comparing
from pipeline.view.opened import OpenedRun
from pipeline.view.query import Query
from tests.support.browser import browser
from tests.support.committed import commit, mask_row, rows_of, tar
from tests.support.pages import needs_browser
from tests.support.served import TOKEN, serving
from tests.support.viewed_runs import FARM, HOSTILE, IMAGES, ids_by_key

ROWS = IMAGES + len(HOSTILE) + 1

pytestmark = needs_browser


@pytest.fixture(scope="module")
def opened(viewed, tmp_path_factory):
    shared = {"cache": tmp_path_factory.mktemp("cache"), "max_cache_bytes": 10**8, "source": (), "labels": None}
    run = OpenedRun(viewed.url, **shared)
    run.compare_with(OpenedRun(viewed.other, **shared))
    run.start()
    run._filler.join()
    while run.comparing.pace.is_working:
        run._closed.wait(0.05)
    yield run
    run.close()


@pytest.fixture(scope="module")
def address(opened):
    with serving(opened) as url:
        yield url


@pytest.fixture
def page(address, tmp_path):
    """The page, with its rows drawn; at the end it may not have complained."""
    with browser(tmp_path) as tab:
        tab.open(f"{address}?token={TOKEN}")
        tab.wait(f"document.querySelector('#count')?.textContent === '{ROWS} rows'")
        tab.wait("document.querySelectorAll('.histogram .bar').length > 5")
        yield tab
        assert tab.complaints == []


CARDS = "[...document.querySelectorAll('.card')].sort((a, b) => a.dataset.position - b.dataset.position)"
OVERLAYS = "[...document.querySelectorAll('#overlays button')]"
CANVAS = "document.querySelector('#canvas')"


def cards(page):
    """Keys in the grid, in order, once all of them have a caption."""
    page.wait(f"{CARDS}.every(card => card.querySelector('a').title)")
    return page.run(f"{CARDS}.map(card => card.querySelector('a').title)")


def choose(page, selector, value, event="change"):
    """Give a field a value as a user does."""
    page.run(
        f"{{ const field = document.querySelector('{selector}'); field.value = {json.dumps(value)};"
        f"field.dispatchEvent(new Event('{event}')) }}"
    )


def open_row(page, opened, key):
    """Open a row by its address; returns its number."""
    page.run(f"location.hash = new URLSearchParams({{key: {json.dumps(key)}}})")
    page.wait(f"document.querySelector('#key').textContent === {json.dumps(key)}")
    return ids_by_key(opened.index)[key]


def test_the_grid_shows_a_picture_of_every_row_and_the_reason_where_there_is_none(page):
    page.wait(f"document.querySelectorAll('.frame img').length === {ROWS - 1}")
    assert page.wait("document.querySelector('.badge')?.textContent") == "not_an_image"
    assert page.run("[...document.querySelectorAll('.frame img')].every(image => image.alt)")
    assert page.wait("[...document.querySelectorAll('.frame img')].every(image => image.naturalWidth > 0)")


def test_a_search_narrows_the_grid_and_stays_in_the_address(page):
    choose(page, "#search", "FARM_00000", "input")
    page.wait("document.querySelector('#count').textContent === '10 rows'")
    assert "FARM_00000" in page.run("decodeURIComponent(location.hash)")
    page.reload()
    page.wait("document.querySelector('#count')?.textContent === '10 rows'")
    page.click("#clear")
    page.wait(f"document.querySelector('#count').textContent === '{ROWS} rows'")


def test_brushing_a_histogram_filters_by_its_column(page):
    histogram = "document.querySelector('[data-column=share_1] svg')"
    page.run(f"void {histogram}.scrollIntoView()")
    box = f"(({{x, y, width, height}}) => [x, y, width, height])({histogram}.getBoundingClientRect())"
    x, y, width, height = page.run(box)
    page.drag(x + 1, y + height / 2, x + width / 2, y + height / 2)
    page.wait("location.hash.includes('share_1')")
    query = json.loads(page.run("new URLSearchParams(location.hash.slice(1)).get('query')"))
    (chosen,) = query["ranges"]
    assert chosen["column"] == "share_1"
    assert 0 <= chosen["low"] < 0.05
    assert chosen["high"] == pytest.approx(0.5, abs=0.02)


def drag_over(page, column, begin, end):
    """Drag over the histogram of a column, from one share of its width to another."""
    histogram = f"document.querySelector('[data-column={column}] svg')"
    page.run(f"void {histogram}.scrollIntoView({{block: 'center'}})")
    box = f"(({{x, y, width, height}}) => [x, y, width, height])({histogram}.getBoundingClientRect())"
    x, y, width, height = page.run(box)
    page.drag(x + width * begin, y + height / 2, x + width * end, y + height / 2)


def test_a_brush_to_the_end_of_a_histogram_leaves_no_row_out(page):
    drag_over(page, "seconds", 0.3, 1.2)
    page.wait("location.hash.includes('seconds')")
    (chosen,) = json.loads(page.run("new URLSearchParams(location.hash.slice(1)).get('query')"))["ranges"]
    assert chosen["high"] is None


def test_a_click_on_a_histogram_of_one_value_filters_nothing(page):
    drag_over(page, "seconds", 0.3, 1.2)
    page.wait("location.hash.includes('seconds')")
    before = page.run("location.hash")
    drag_over(page, "megapixels", 0.5, 0.5)
    drag_over(page, "seconds", 0.6, 1.2)
    page.wait(f"location.hash !== {json.dumps(before)}")
    assert "megapixels" not in page.run("location.hash")


def test_search_and_pictures_follow_the_back_button(page):
    choose(page, "#sort", "entropy")
    choose(page, "#search", "farm_00000", "input")
    page.wait("document.querySelector('#count').textContent === '10 rows'")
    page.click("input[value=mask]")
    page.run("history.back()")
    page.wait("document.querySelector('input[value=overlay]').checked")
    page.click("#clear")
    page.wait(f"document.querySelector('#count').textContent === '{ROWS} rows'")
    assert page.run("document.querySelector('#search').value") == ""
    page.run("history.back()")
    page.wait("document.querySelector('#search').value === 'farm_00000'")


def test_marks_of_another_tab_are_not_undone(page):
    keys = cards(page)
    name = page.run("`marked ${document.querySelector('#run').title}`")
    page.run(f"localStorage.setItem({json.dumps(name)}, {json.dumps(json.dumps(keys[:1]))})")
    page.run(f"void window.dispatchEvent(new StorageEvent('storage', {{key: {json.dumps(name)}}}))")
    assert page.run("document.querySelector('#marked').textContent") == "1 marked"
    page.run(f"{CARDS}[1].querySelector('.mark').click()")
    assert json.loads(page.run(f"localStorage.getItem({json.dumps(name)})")) == keys[:2]


def test_sorting_orders_the_cards(page, opened):
    choose(page, "#sort", "entropy")
    page.wait("location.hash.includes('entropy')")
    page.click("#direction")
    page.wait("document.querySelector('#direction').textContent === '\u2193'")
    expected = [key for (key,) in opened.index.fetch("SELECT key FROM rows ORDER BY entropy DESC NULLS LAST, key")]
    titles = f"JSON.stringify({CARDS}.map(card => card.querySelector('a').title))"
    page.wait(f"{titles} === JSON.stringify({json.dumps(expected)})")


def test_an_image_opens_steps_and_closes_by_keyboard(page):
    keys = cards(page)
    page.run("document.querySelector('.card[data-position=\"0\"] a').focus()")
    page.press("ArrowRight")
    page.wait("document.activeElement.closest('.card').dataset.position === '1'")
    page.run("document.activeElement.click()")
    page.wait(f"document.querySelector('#key').textContent === {json.dumps(keys[1])}")
    page.press("ArrowRight")
    page.wait(f"document.querySelector('#key').textContent === {json.dumps(keys[2])}")
    assert page.run("document.querySelector('#place').textContent") == f"3 of {ROWS}"
    page.press("Escape")
    page.wait("!document.querySelector('#detail').open")
    assert "key=" not in page.run("location.hash")


def test_the_open_image_shows_the_mask_its_classes_and_the_value_under_the_cursor(page, opened):
    row = open_row(page, opened, "farm_000003.jpg")
    page.wait(f"{OVERLAYS}.find(button => button.ariaPressed === 'true')?.textContent === 'mask'")
    assert page.run("document.querySelectorAll('#classes label').length") == len(FARM)
    choose(page, "#opacity", 100, "input")
    mask = opened.pictures.mask(opened.place(row))
    x, y = page.run(f"[{CANVAS}.width, {CANVAS}.height].map(side => Math.floor(side / 2) + 2)")  # within pixel (32, 32)
    colour = json.dumps(list(FARM.classes[mask[32, 32]].colour), separators=(",", ":"))
    copied = (
        f"copy.drawImage({CANVAS}, {x}, {y}, 1, 1, 0, 0, 1, 1), [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3)"
    )
    page.wait(f"(copy => JSON.stringify(({copied})) === '{colour}')(new OffscreenCanvas(1, 1).getContext('2d'))")
    page.run(
        f"const box = {CANVAS}.getBoundingClientRect(), place = {{clientX: box.x + {x}, clientY: box.y + {y}}};"
        f"{CANVAS}.dispatchEvent(new PointerEvent('pointermove', place))"
    )
    assert FARM.names[mask[32, 32]] in page.wait("document.querySelector('#readout').textContent")


def test_two_runs_stand_side_by_side_with_a_divider(page, opened):
    open_row(page, opened, "farm_000003.jpg")
    page.wait("[...document.querySelectorAll('#beside option')].some(option => option.value === 'other')")
    choose(page, "#beside", "other")
    page.wait("!document.querySelector('#divider').hidden")
    page.wait(f"document.querySelectorAll('#changes tbody tr').length === {len(FARM)}")


def test_the_network_is_asked_again_on_demand(page, opened):
    open_row(page, opened, "farm_000004.jpg")
    page.wait(f"{OVERLAYS}.some(button => button.textContent === 'confidence' && !button.disabled)")
    page.run(f"{OVERLAYS}.find(button => button.textContent === 'confidence').click()")
    page.wait(f"{OVERLAYS}.find(button => button.ariaPressed === 'true').textContent === 'confidence'")
    page.wait("document.querySelector('#working').textContent === ''")


def test_marked_images_are_kept_over_a_reload_and_sent_to_a_tool(page, opened):
    page.click(".card[data-position='1'] .mark")
    page.run("document.querySelector('.card[data-position=\"3\"] a').focus()")
    page.press("m")
    page.wait("document.querySelector('#marked').textContent === '2 marked'")
    page.reload()
    page.wait("document.querySelectorAll('.card.marked').length === 2")
    page.run("window.saved = []; HTMLAnchorElement.prototype.click = function () { saved.push(this.download) }")
    choose(page, "#send-to", "coco")
    page.click("#send")
    page.wait("saved[0] === 'coco.zip'")
    page.click("#unmark")
    page.wait("document.querySelector('#marked').textContent === '0 marked'")


def test_the_server_chooses_images_worth_labelling(page):
    choose(page, "#choose-count", 4)
    page.click("#choose button")
    page.wait("document.querySelector('#marked').textContent === '4 marked'")
    assert page.wait("document.querySelector('#marks-said').textContent").startswith("4 chosen")
    page.click("#unmark")


def test_a_run_that_goes_on_shows_its_progress_and_its_rows_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(opened_module, "REFRESH_S", 0.1)
    url = Url(str(tmp_path / "run=0123456789ab"))
    commit(url.raw, rows_of(tar("a"), 3, failed=1))
    shown = {"phase": WORKING, "planned": 9, "done": 4, "images_per_s": 2.5, "failed": {"truncated": 1}}
    write_progress(url, Snapshot(time="", bottleneck="refine", bottleneck_busy=0.9, **shown))
    run = OpenedRun(url, cache=tmp_path / "cache", max_cache_bytes=10**8, source=(), labels=None)
    run.start()
    with serving(run) as address, browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}")
        page.wait("document.querySelector('#count')?.textContent === '3 rows'")
        line = page.wait("document.querySelector('#progress').textContent")
        for text in ("4 of 9 images", "2.5 images/s", "bottleneck refine 90", "failed: 1 truncated"):
            assert text in line
        commit(url.raw, rows_of(tar("b"), 2))
        page.wait("document.querySelector('#count').textContent === '5 rows'")
        manifest.mark_finished(url)
        page.wait("document.querySelector('#progress').textContent === ''")
        assert page.complaints == []
    run.close()


@pytest.mark.parametrize("hash_", ["#query={", "#query=null", "#query=[1]", "#key=x", "#picture=<script>"])
def test_an_address_that_makes_no_sense_still_shows_a_page(address, tmp_path, hash_):
    with browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}")
        page.wait("document.querySelector('#count')?.textContent")
        page.open(f"{address}{quote(hash_, safe='#=')}")
        page.reload()
        page.wait("document.querySelector('#count')?.textContent || document.querySelector('#problem')?.textContent")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(address, tmp_path, width):
    with browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}", width=width)
        page.wait(f"document.querySelector('#count')?.textContent === '{ROWS} rows'")
        page.wait("document.querySelectorAll('.frame img').length > 3")
        assert page.run("document.documentElement.scrollWidth") <= width
        page.click(".card a")
        page.wait("document.querySelectorAll('#classes label').length > 0")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.complaints == []


def test_runs_are_sorted_by_the_pixels_that_differ_and_the_page_says_how_many_rows_that_covers(page, opened):
    box = "document.querySelector('[data-against=other]')"
    masks = ROWS - 1
    page.wait(f"{box}.textContent.includes('exact for {masks} of {masks} rows')")
    choose(page, "#sort", "other_differing")
    page.wait("location.hash.includes('other_differing')")
    page.click("#direction")
    expected = [
        key for (key,) in opened.index.fetch("SELECT key FROM shown ORDER BY other_differing DESC NULLS LAST, key")
    ]
    titles = f"JSON.stringify({CARDS}.map(card => card.querySelector('a').title))"
    page.wait(f"{titles} === JSON.stringify({json.dumps(expected)})")
    assert page.run(f"{box}.querySelectorAll('tbody tr').length") == len(FARM)
    (agreement,) = opened.comparing.agreements
    soil = agreement.by_class(Query())[0]
    iou = 100 * soil["both"] / (soil["here"] + soil["there"] - soil["both"])
    shown = page.run(f"{box}.querySelector('tbody tr td:last-child').textContent")
    assert float(shown.removesuffix(" %")) == pytest.approx(iou, abs=0.06)
    page.wait("!!document.querySelector('[data-column=other_differing] svg')")


def test_rows_are_compared_with_labels_on_request_and_the_worst_come_first(viewed, tmp_path, monkeypatch):
    monkeypatch.setattr(Comparing, "AUTOMATIC_ROWS", 0)
    labels = str(viewed.folder / "labels")
    run = OpenedRun(viewed.other, cache=tmp_path / "cache", max_cache_bytes=10**8, source=(), labels=labels)
    run.start()
    run._filler.join()
    box = "document.querySelector('[data-against=labels]')"
    with serving(run) as address, browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}")
        page.wait(f"{box}?.textContent.includes('exact for 0 of {ROWS - 1} rows')")
        choose(page, "#search", "farm_00000", "input")
        page.wait(f"{box}.querySelector('.compare')?.textContent === 'compare these 10'")
        page.click(".compare")
        page.wait(f"{box}.textContent.includes('exact for 10 of 10 rows')")
        choose(page, "#sort", "labels_iou")
        expected = run.index.fetch("SELECT key FROM shown WHERE labels_iou IS NOT NULL ORDER BY labels_iou, key")
        assert len(expected) == 10
        titles = f"JSON.stringify({CARDS}.map(card => card.querySelector('a').title))"
        page.wait(f"{titles} === JSON.stringify({json.dumps([key for (key,) in expected])})")
        assert page.run(f"{box}.querySelector('caption').textContent") == "Labels and masks"
        assert page.complaints == []
    run.close()


PLACE = "document.querySelector('#place').textContent"


def test_a_reload_with_an_open_row_keeps_its_place_and_its_neighbours(page, opened):
    choose(page, "#sort", "entropy")
    page.wait("location.hash.includes('entropy')")
    expected = [key for (key,) in opened.index.fetch("SELECT key FROM rows ORDER BY entropy NULLS LAST, key")]
    titles = f"JSON.stringify({CARDS}.map(card => card.querySelector('a').title))"
    page.wait(f"{titles} === JSON.stringify({json.dumps(expected)})")
    page.click(".card[data-position='5'] a")
    page.wait(f"{PLACE} === '6 of {ROWS}'")
    page.reload()
    page.wait(f"{PLACE} === '6 of {ROWS}'")
    page.press("ArrowRight")
    page.wait(f"document.querySelector('#key').textContent === {json.dumps(expected[6])}")
    assert page.run(PLACE) == f"7 of {ROWS}"


@pytest.fixture
def growing(tmp_path, monkeypatch):
    """A run of three rows that goes on: its page, and the way to commit more and wait for them."""
    monkeypatch.setattr(opened_module, "REFRESH_S", 0.05)
    url = Url(str(tmp_path / "run=0123456789ab"))
    commit(url.raw, rows_of(tar("m"), 3))
    run = OpenedRun(url, cache=tmp_path / "cache", max_cache_bytes=10**8, source=(), labels=None)
    run.start()
    with serving(run) as address, browser(tmp_path) as tab:
        tab.open(f"{address}?token={TOKEN}")
        tab.wait("document.querySelector('#count')?.textContent === '3 rows'")
        tab.wait("document.querySelectorAll('.histogram .bar').length > 5")

        def grow(rows):
            total = run.index.counts()[0] + len(rows)
            name = commit(url.raw, rows)
            tab.wait(f"document.querySelector('#count').textContent === '{total} rows'")
            return Path(url.raw) / "parts" / name

        yield tab, grow
        assert tab.complaints == []
    run.close()


def test_what_is_being_typed_stays_when_rows_come(growing):
    page, grow = growing
    field = "document.querySelector('[data-column=confidence] input')"
    page.run(f"{field}.focus()")
    page.press("7")
    grow(rows_of(tar("n"), 3, failed=1))
    page.wait("!document.querySelector('[data-column=error_code]').hidden")  # the boxes are up to date
    assert page.run(f"document.activeElement === {field} && {field}.value") == "7"
    page.press("5")
    assert page.run(f"{field}.value") == "75"


def test_cards_and_the_keyboard_stay_when_rows_come(growing):
    page, grow = growing
    page.wait("document.querySelectorAll('.frame img').length === 3")
    page.run("void (window.held = document.querySelector(\".card[data-position='1']\"))")
    page.run("held.querySelector('a').focus()")
    page.run("void (window.picture = held.querySelector('img'))")
    key = page.run("held.dataset.key")
    grow(rows_of(tar("a"), 3))  # before them
    page.wait("held.dataset.position === '4'")
    grow(rows_of(tar("n"), 3))
    page.wait("document.querySelectorAll('.frame img').length === 9")
    assert page.run("held.isConnected && held.dataset.position === '4'")
    assert page.run("held.dataset.key") == key
    assert page.run("held.contains(document.activeElement) && held.contains(picture)")
    page.press("m")
    assert page.run("[...document.querySelectorAll('.card.marked')].map(card => card.dataset.key)") == [key]


def test_the_place_of_an_open_row_follows_the_rows_that_come_before_it(growing):
    page, grow = growing
    page.click(".card[data-position='1'] a")
    page.wait(f"{PLACE} === '2 of 3'")
    grow(rows_of(tar("a"), 3))
    page.wait(f"{PLACE} === '5 of 6'")


def delayed(part):
    """Script that lets the next request for a path with this part wait until `window.release()`."""
    return (
        "{ const fetched = window.fetch; let held = false;"
        "window.fetch = async (path, more) => {"
        f"if (held || !path.includes({json.dumps(part)})) return fetched(path, more);"
        "held = true; await new Promise(go => window.release = go);"
        "const late = await fetched(path, more); setTimeout(() => window.answered = true, 50); return late } }"
    )


def test_an_older_answer_that_comes_late_changes_no_card(growing):
    page, grow = growing
    grow(rows_of(tar("n"), 150))
    page.run("void document.querySelector('#grid').scrollTo(0, 1e6)")
    page.wait("!!document.querySelector(\".card[data-position='120'] img\")")
    page.run(delayed("offset=100"))
    grow(rows_of(tar("a"), 1))
    page.wait("!!window.release")
    grow(rows_of(tar("b"), 1))
    shown = "document.querySelector(\".card[data-position='120']\")?.dataset.key"
    expected = json.dumps(
        sorted(
            row.key for name, rows in [("a", 1), ("b", 1), ("m", 3), ("n", 150)] for row in rows_of(tar(name), rows)
        )[120]
    )
    page.wait(f"{shown} === {expected}")
    page.run("void window.release()")
    page.wait("window.answered")
    assert page.run(f"{shown} === {expected}")


def test_an_image_that_was_closed_does_not_come_back(growing):
    page, grow = growing
    grow(rows_of(tar("n"), 150))
    key = sorted(row.key for row in rows_of(tar("m"), 3) + rows_of(tar("n"), 150))[99]
    page.run(f"location.hash = new URLSearchParams({{key: {json.dumps(key)}}})")
    page.wait(f"{PLACE} === '100 of 153'")
    page.run(delayed("offset=100"))
    page.press("ArrowRight")
    page.wait("!!window.release")
    page.press("Escape")
    page.wait("!document.querySelector('#detail').open")
    page.run("void window.release()")
    page.wait("window.answered")
    assert not page.run("document.querySelector('#detail').open")


def test_rows_written_anew_are_shown_though_their_number_is_the_same(growing):
    page, grow = growing
    part = grow(rows_of(tar("n"), 3))
    commit(part.parent.parent, rows_of(tar("o"), 3))
    part.unlink()
    page.wait(f"{CARDS}.some(card => card.dataset.key?.includes('o.tar'))")
    page.wait(f"!{CARDS}.some(card => card.dataset.key?.includes('n.tar'))")
    page.wait(f"{CARDS}.every(card => card.querySelector('img')?.alt.startsWith(card.dataset.key))")


def test_arrow_keys_pass_over_a_key_that_is_there_twice(growing):
    page, grow = growing
    grow([mask_row(f"{tar('m').uri}#0", tar("m"))])
    page.click(".card[data-position='0'] a")
    page.wait(f"{PLACE} === '1 of 4'")
    page.press("ArrowRight")
    page.wait(f"{PLACE} === '3 of 4'")
    page.press("ArrowLeft")
    page.wait(f"{PLACE} === '2 of 4'")


def test_a_chosen_word_that_no_row_has_any_more_can_be_taken_back(growing):
    page, grow = growing
    grow(rows_of(tar("n"), 3, failed=1))
    labels = "[...document.querySelectorAll('[data-column=error_code] label')]"
    box = f"{labels}.find(one => one.textContent.includes('truncated'))"
    page.wait(f"!!{box}")
    page.run(f"{box}.querySelector('input').click()")
    page.wait("document.querySelector('#count').textContent === '1 row'")
    choose(page, "#search", "m.tar", "input")
    page.wait(f"{box}?.textContent === 'truncated0'")
    page.run(f"{box}.querySelector('input').click()")
    page.wait("document.querySelector('#count').textContent === '3 rows'")


def test_a_brush_over_values_that_lie_close_keeps_the_rows_below_it(growing):
    page, grow = growing
    shard = tar("n")
    grow([replace(mask_row(f"n{number}", shard), brightness=200 + number / 1000) for number in range(41)])
    page.wait("!document.querySelector('[data-column=brightness]').hidden")
    drag_over(page, "brightness", 0.25, 0.75)
    page.wait("/^[12][0-9] rows$/.test(document.querySelector('#count').textContent)")


def test_a_bound_is_shown_as_it_was_typed_and_text_that_is_no_number_is_not(growing):
    page, _ = growing
    choose(page, "[data-column=confidence] input", "12.3456")
    page.wait("location.hash.includes('0.123456')")
    choose(page, "#search", "m.tar#1", "input")
    page.wait("document.querySelector('#count').textContent === '1 row'")
    field = "document.querySelector('[data-column=confidence] input')"
    assert page.run(f"{field}.value") == "12.3456"
    page.run(f"{field}.select()")
    page.press("-")
    page.run("document.querySelector('#search').focus()")
    page.wait(f"{field}.value === '12.3456'")
    assert "0.123456" in page.run("location.hash")


def test_an_open_row_that_is_not_there_shows_nothing_of_the_one_before(growing):
    page, _ = growing
    page.click(".card[data-position='1'] a")
    page.wait("document.querySelectorAll('#facts dt').length > 3")
    page.run("location.hash = 'key=nonexistent'")
    page.wait("document.querySelector('#image-problem').textContent.includes('nonexistent')")
    assert page.run("document.querySelector('#key').textContent") == "nonexistent"
    assert page.run("document.querySelectorAll('#facts dt, #overlays button').length") == 0


def test_a_picture_that_was_not_fetched_is_asked_for_again_when_rows_come(growing):
    page, grow = growing
    page.wait("document.querySelectorAll('.frame img').length === 3")
    page.run(
        "{ const fetched = window.fetch; window.away = true; window.fetch = (path, more) => window.away &&"
        "path.includes('thumbnail') ? Promise.reject(new TypeError('gone')) : fetched(path, more) }"
    )
    grow(rows_of(tar("n"), 3))
    gone = "[...document.querySelectorAll('.badge')].filter(badge => badge.textContent === 'gone').length"
    page.wait(f"{gone} === 3")
    page.run("window.away = false")
    grow(rows_of(tar("o"), 3))
    page.wait("document.querySelectorAll('.frame img').length === 9")
    page.wait(f"{gone} === 0")


def test_rows_that_cannot_be_fetched_say_why(growing):
    page, grow = growing
    grow(rows_of(tar("n"), 105))
    page.run("void (window.fetch = () => Promise.reject(new Error('the server is gone')))")
    page.run("void document.querySelector('#grid').scrollTo(0, 1e6)")
    page.wait("document.querySelector(\".card[data-position='107'] .badge\")?.textContent === 'the server is gone'")


def test_an_address_from_a_comparison_shows_the_rows_without_it_and_says_so(address, tmp_path):
    ranges = [{"column": "labels_iou", "low": 0.5}, {"column": "brightness", "low": 0}, {"column": "key", "high": 1}]
    query = json.dumps({"sort": "labels_differing", "descending": True, "ranges": ranges})
    with browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}")
        page.wait("document.querySelector('#count')?.textContent")
        page.open(f"{address}#query={quote(query)}")
        page.reload()
        page.wait(f"document.querySelector('#count')?.textContent === '{ROWS - 1} rows'")
        said = page.run("document.querySelector('#unknown').textContent")
        assert said.endswith("no such column: labels_differing, labels_iou, key")
        page.click("#clear")
        page.wait(f"document.querySelector('#count').textContent === '{ROWS} rows'")
        assert page.run("document.querySelector('#unknown').textContent") == ""
        assert page.complaints == []


def test_other_rows_are_asked_for_while_some_are_compared(viewed, tmp_path, monkeypatch):
    compare = Agreement.compare

    def endless_without_a_filter(self, query, *, is_over):
        pause = Event()
        while not query.text and not is_over():
            pause.wait(0.01)
            yield 0
        yield from compare(self, query, is_over=is_over)

    monkeypatch.setattr(Comparing, "AUTOMATIC_ROWS", 0)
    monkeypatch.setattr(Agreement, "compare", endless_without_a_filter)
    labels = str(viewed.folder / "labels")
    run = OpenedRun(viewed.other, cache=tmp_path / "cache", max_cache_bytes=10**8, source=(), labels=labels)
    run.start()
    box = "document.querySelector('[data-against=labels]')"
    with closing(run), serving(run) as address, browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}")
        page.wait(f"{box}?.querySelector('.compare').textContent === 'compare all {ROWS - 1}'")
        page.click(".compare")
        page.wait(f"{box}.textContent.includes('comparing, ')")
        choose(page, "#search", "farm_00000", "input")
        page.wait(f"{box}.querySelector('.compare').textContent === 'compare these 10 now'")
        page.click(".compare")
        page.wait(f"{box}.textContent.includes('exact for 10 of 10 rows')")
        assert page.complaints == []


def test_a_page_that_was_opened_before_anything_is_read_shows_the_rows_of_both_runs(viewed, tmp_path, monkeypatch):
    shared = {"cache": tmp_path / "cache", "max_cache_bytes": 10**8, "source": (), "labels": None}
    run = OpenedRun(viewed.url, **shared)
    run.compare_with(OpenedRun(viewed.other, **shared))
    with closing(run), serving(run) as address, browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}")
        page.wait("document.querySelector('#count')?.textContent === '0 rows'")
        run.start()
        page.wait(f"document.querySelector('#count').textContent === '{ROWS} rows'")
        page.wait(f"document.querySelector('[data-against=other]').textContent.includes('exact for {ROWS - 1} of')")
        assert page.complaints == []
