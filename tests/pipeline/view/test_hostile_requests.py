"""Requests as an attacker would make them, also while the run changes: refused or answered, and never an error."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.run import parts
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.view import opened as opened_module
from pipeline.view.opened import OpenedRun
from tests.pipeline.view.test_agreement import wait_for
from tests.support.committed import commit, mask_row, rows_of, tar
from tests.support.served import visit


@pytest.fixture
def url(tmp_path):
    for name in "ab":
        commit(tmp_path / "run=0123456789ab", rows_of(tar(name), 6, failed=1))
    return Url(str(tmp_path / "run=0123456789ab"))


@pytest.fixture
def run(url, tmp_path, monkeypatch):
    monkeypatch.setattr(opened_module, "REFRESH_S", 0.01)
    settings = {"cache": tmp_path / "cache", "max_cache_bytes": 10**8, "source": (), "labels": None}
    opened = OpenedRun(url, **settings)
    opened.compare_with(OpenedRun(url, **settings | {"cache": tmp_path / "other"}))
    opened.start()
    wait_for(lambda: opened.index.counts()[0] == 12)
    yield opened
    opened.close()


@pytest.fixture
def visitor(run):
    return visit(run)


def of(**fields):
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("path", "params", "statuses"),
    [
        ("/api/rows", {"offset": "-1", "limit": "-5"}, {200}),
        ("/api/rows", {"offset": "9" * 30}, {200}),
        ("/api/rows", {"offset": "9" * 5000}, {400}),
        ("/api/rows", {"limit": "1e9"}, {400}),
        ("/api/rows", {"query": of(ranges=[{"column": "entropy", "low": -1e308, "high": 1e308}])}, {200}),
        ("/api/rows", {"query": '{"ranges": [{"column": "entropy", "low": NaN}]}'}, {400}),
        ("/api/rows", {"query": '{"ranges": [{"column": "entropy", "low": 1e999}]}'}, {400}),
        ("/api/rows", {"query": of(ranges=[{"column": "status", "low": 1}])}, {400}),
        ("/api/rows", {"query": of(choices=[{"column": "entropy", "values": ["x"]}])}, {400}),
        ("/api/rows", {"query": of(choices=[{"column": "status", "values": ["x"] * 101}])}, {400}),
        ("/api/rows", {"query": of(ranges=[{"column": "entropy"}] * 301)}, {400}),
        ("/api/rows", {"query": "[" * 20_000}, {400}),
        ("/api/rows", {"query": of(text="\0")}, {200}),
        ("/api/rows", {"query": '{"text": "\\ud800"}'}, {400}),
        ("/api/rows", {"query": of(sort="id; DROP TABLE rows")}, {400}),
        ("/api/histograms", {"columns": ",".join(["entropy"] * 5_000)}, {200}),
        ("/api/rows/99999999999999999999999999999999999999999/image", {}, {404}),
        ("/api/rows/9223372036854775807/layers/mask", {}, {404}),
        (f"/api/rows/{'9' * 50}/layers/other", {}, {404}),
        (f"/api/rows/{'9' * 5000}/thumbnail", {}, {404}),
        (f"/api/rasters/0/mask/0/{'9' * 5000}/0", {}, {404}),
        ("/api/position", {"key": "\0", "query": of(sort="entropy")}, {200}),
        ("/api/position", {"query": of(sort="nothing")}, {400}),
        ("/api/rows/0/thumbnail", {"picture": "../mask"}, {400}),
        ("/api/agreement/other", {"query": "{"}, {400}),
        ("/api/agreement/nothing", {}, {404}),
        ("/api/compare", {"query": of(sort="x", ranges=[{"column": "y"}])}, {200, 400}),
        ("/api/choice", {"images": "-1"}, {400}),
        ("/api/choice", {"images": "9" * 40}, {400}),
    ],
)
def test_numbers_and_texts_beyond_all_bounds_are_refused_or_answered(visitor, path, params, statuses):
    answer = visitor.get(path, params=params)
    assert answer.status_code in statuses, answer.text
    assert visitor.get("/api/rows").json()["total"] == 12


def test_a_row_whose_part_is_gone_is_answered_with_the_reason(visitor, run, url):
    rows = visitor.get("/api/rows").json()["rows"]
    parts_folder = Path(url.raw) / "parts"
    sorted(parts_folder.iterdir())[0].unlink()
    wait_for(lambda: run.index.counts()[0] == 6)
    left = {row["id"] for row in visitor.get("/api/rows").json()["rows"]}
    gone = next(row["id"] for row in rows if row["id"] not in left)
    answer = visitor.get(f"/api/rows/{gone}/thumbnail")
    assert (answer.status_code, answer.json()["code"]) == (200, "not_found")


def test_a_run_that_is_deleted_while_it_is_open_keeps_its_rows_and_says_so(visitor, run, url):
    shutil.rmtree(url.raw)
    wait_for(lambda: visitor.get("/api/run").json()["problem"])
    assert "no rows any more" in visitor.get("/api/run").json()["problem"]
    row = visitor.get("/api/rows").json()["rows"][3]
    for path in (
        f"rows/{row['id']}/thumbnail",
        f"rows/{row['id']}/layers/mask",
        f"row?key={row['key'].replace('#', '%23')}",
    ):
        answer = visitor.get(f"/api/{path}")
        assert answer.status_code == 200
        assert answer.json()["error"]


def test_rows_of_another_run_that_goes_on_come_though_this_one_is_finished(viewed, tmp_path, monkeypatch):
    monkeypatch.setattr(opened_module, "REFRESH_S", 0.01)
    other = tmp_path / "run=0123456789ab"
    commit(other, [mask_row("farm_000000.jpg", tar("a"))])
    settings = {"cache": tmp_path / "cache", "max_cache_bytes": 10**8, "source": (), "labels": None}
    opened = OpenedRun(viewed.url, **settings)
    opened.compare_with(OpenedRun(Url(str(other)), **settings))
    opened.start()
    paired = "SELECT count(*) FROM shown WHERE other_status = 'ok'"
    wait_for(lambda: opened.index.fetch(paired) == [(1,)])
    commit(other, [mask_row("farm_000001.jpg", tar("b"))])
    wait_for(lambda: opened.index.fetch(paired) == [(2,)])
    assert opened.finished
    opened.close()


def test_a_cache_that_is_deleted_while_it_is_open_costs_nothing(visitor, run, tmp_path):
    shutil.rmtree(tmp_path / "cache")
    row = visitor.get("/api/rows").json()["rows"][3]["id"]
    assert visitor.get(f"/api/rows/{row}/thumbnail?picture=mask").headers["content-type"] == "image/jpeg"


def test_many_visitors_ask_while_parts_come_and_go(visitor, run, url):
    def ask(number):
        row = visitor.get("/api/rows", params={"query": of(sort="entropy")}).json()["rows"][number % 6]
        paths = [f"/api/rows/{row['id']}/thumbnail?picture=mask", "/api/run", "/api/agreement/other", "/api/changes"]
        paths += ["/api/histograms?columns=entropy,status,other_differing", "/api/compare"]
        return [visitor.get(path).status_code for path in paths]

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, number) for number in range(24)]
        for name in "cdef":
            commit(url.raw, rows_of(tar(name), 5))
        objects.delete(parts.parts_url(url) / parts.list_parts(url)[0])
        statuses = {status for answer in answers for status in answer.result()}
    assert statuses <= {200, 404}  # 404: the row of a part that was removed meanwhile
    rows = sum(len(parts.read_columns(url, name, ["key"])) for name in parts.list_parts(url))
    wait_for(lambda: visitor.get("/api/rows").json()["total"] == rows)
    run.comparing.request(opened_module.Query())
    wait_for(lambda: not run.comparing.pace.is_working)
    assert run.problem is None


def test_what_is_wrong_with_a_query_is_said_in_a_line(visitor):
    answer = visitor.get("/api/rows", params={"query": of(choices=[{"column": "status", "values": []}])})
    assert answer.json()["error"].startswith("query= is not valid: choices.0.values: ")
    assert "pydantic" not in answer.text
