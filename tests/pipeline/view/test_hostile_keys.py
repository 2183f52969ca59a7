"""Keys as an attacker would choose them: text in the page, reasons from the server, plain names in the zip."""

import io
import json
import re
import zipfile
from xml.etree import ElementTree as ET

import pytest

from pipeline.view.opened import OpenedRun
from tests.support.browser import browser
from tests.support.hostile_keys import HOSTILE_KEYS, IN_PARTS, ON_DISK, hostile_run
from tests.support.pages import needs_browser
from tests.support.served import TOKEN, serving, visit

FOUND = "document.querySelectorAll('main script, dialog script, main svg[onload], img[onerror], [onfocus], iframe')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def run(folder):
    opened = OpenedRun(hostile_run(folder), cache=folder / "cache", max_cache_bytes=10**8, source=(), labels=None)
    opened.start()
    opened._filler.join()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def visitor(run):
    return visit(run)


def test_there_are_enough_of_them_and_no_two_are_the_same():
    assert len(set(HOSTILE_KEYS.values())) == len(HOSTILE_KEYS) >= 60


@pytest.mark.parametrize("why", HOSTILE_KEYS)
def test_a_hostile_key_arrives_as_it_is_and_only_as_json(visitor, why):
    key = HOSTILE_KEYS[why]
    answer = visitor.get("/api/row", params={"key": key})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["row"]["key"] == key
    found = visitor.get("/api/rows", params={"query": json.dumps({"text": key[:500]})}).json()
    assert key in [row["key"] for row in found["rows"]]


@pytest.mark.parametrize("why", ON_DISK)
def test_the_image_of_a_hostile_name_is_shown(visitor, why):
    row = visitor.get("/api/row", params={"key": ON_DISK[why]}).json()["id"]
    assert visitor.get(f"/api/rows/{row}/thumbnail").headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize("why", IN_PARTS)
@pytest.mark.parametrize("moved", [False, True])
def test_a_key_that_names_another_place_reads_nothing_there(run, visitor, folder, why, moved, monkeypatch):
    """The version in these rows is that of the secret beside the source; at a new place versions do not count."""
    if moved:
        (source,) = run.originals.cfg.source
        monkeypatch.setattr(run.originals, "_moved", {source: source})
    row = visitor.get("/api/row", params={"key": IN_PARTS[why]}).json()["id"]
    for picture in ("image", "thumbnail?picture=image", "layers/truth", "layers/network"):
        answer = visitor.get(f"/api/rows/{row}/{picture}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json()["error"]


@pytest.mark.parametrize("tool", ["labelstudio", "cvat", "coco"])
def test_the_zip_has_plain_names_and_every_image_once(visitor, folder, tool):
    answer = visitor.post(f"/api/hand-over/{tool}", json=list(HOSTILE_KEYS.values()))
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["X-Left-Out"] == f"{len(IN_PARTS)} not_found"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = archive.namelist()
        assert all(re.fullmatch(r"[a-z_]+(/[A-Za-z0-9][A-Za-z0-9._~-]*)?(\.[a-z]+)?", name) for name in names)
        assert len({name.casefold() for name in names}) == len(names)
        images = {archive.read(name) for name in names if name.startswith("images/")}
        if tool == "cvat":
            ET.fromstring(archive.read("cvat/annotations.xml"))
        if tool == "coco":
            listed = json.loads(archive.read("coco/annotations.json"))["images"]
            assert {one["key"] for one in listed} == set(ON_DISK.values())
    assert images == {(folder / "photos" / name).read_bytes() for name in ON_DISK.values()}


@needs_browser
@pytest.mark.timeout(600)
def test_every_hostile_key_is_text_in_grid_detail_search_and_marks(run, tmp_path):
    with serving(run) as address, browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}", height=4000)  # all rows are in sight
        page.wait(f"document.querySelector('#count')?.textContent === '{len(HOSTILE_KEYS)} rows'")
        check_grid(page)
        for key in HOSTILE_KEYS.values():
            check_search_and_detail(page, key)
        check_marks(page)
        assert page.run(f"[window.owned ?? null, {FOUND}.length]") == [None, 0]
        assert page.run("document.title").startswith("run=")
        assert page.complaints == []


def check_grid(page):
    """Each card has its key as text, and as the address that it leads to."""
    page.wait("[...document.querySelectorAll('.card')].every(card => card.querySelector('img, .badge'))")
    shown = page.run(
        "[...document.querySelectorAll('.card')].map(card => [card.querySelector('a').title,"
        "new URLSearchParams(card.querySelector('a').hash.slice(1)).get('key')])"
    )
    assert dict(shown) == {key: key for key in HOSTILE_KEYS.values()}


def check_search_and_detail(page, key):
    """Type a key and open the card that is found; what a field of text cannot hold is opened by its address."""
    page.run(
        f"{{ const field = document.querySelector('#search'); field.value = {json.dumps(key[:500])};"
        "field.dispatchEvent(new Event('input')) }"
    )
    if page.run("document.querySelector('#search').value.trim()") == key != "":
        card = f"[...document.querySelectorAll('.card a')].find(link => link.title === {json.dumps(key)})"
        query = "new URLSearchParams(location.hash.slice(1)).get('query') ?? '{}'"
        page.wait(f"JSON.parse({query}).text === {json.dumps(key)} && !!{card}")
        page.run(f"{card}.click()")
    else:
        page.run(f"location.hash = new URLSearchParams({{key: {json.dumps(key)}}})")
    page.wait(f"document.querySelector('#key').textContent === {json.dumps(key)}")
    assert page.run("document.querySelector('#key').childElementCount") == 0
    assert page.run("document.documentElement.scrollWidth") <= 1280
    page.run("document.querySelector('#close').click()")
    page.wait("!document.querySelector('#detail').open")


def check_marks(page):
    """Mark all rows and save their keys: the file holds the keys as they are."""
    marked = json.dumps(json.dumps([*HOSTILE_KEYS.values()]))
    page.run(f"localStorage.setItem('marked ' + document.querySelector('#run').title, {marked})")
    page.run("location.hash = ''")
    page.reload()
    page.wait(f"document.querySelector('#marked')?.textContent === '{len(HOSTILE_KEYS)} marked'")
    page.run("HTMLAnchorElement.prototype.click = function () { window.name_of_file = this.download }")
    page.run(
        "{ const make = URL.createObjectURL; URL.createObjectURL = blob => {"
        "if (blob.type === 'application/json') window.saved = blob; return make.call(URL, blob) } }"
    )
    page.click("#send")
    assert page.run("name_of_file") == "keys.json"
    assert json.loads(page.run("saved.text()")) == [*HOSTILE_KEYS.values()]
