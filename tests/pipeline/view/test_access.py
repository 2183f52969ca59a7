from urllib.parse import urljoin

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from pipeline.view.access import HEADERS, Access, new_token

TOKEN = "a" * 48


def client(*, any_host=False, base_url="http://localhost:8181"):
    app = Starlette(routes=[Route("/{path:path}", lambda _: PlainTextResponse("secret"), methods=["GET", "POST"])])
    guarded = Access(app, token=TOKEN, port=8181, posts="/api/take/", any_host=any_host)
    return TestClient(guarded, base_url=base_url, follow_redirects=False)


def test_the_token_opens_the_page_and_leaves_the_address_bar():
    visitor = client()
    first = visitor.get(f"/?token={TOKEN}")
    assert (first.status_code, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert visitor.get("/api/run").text == "secret"


@pytest.mark.parametrize("path", ["//evil.example/", "///evil.example", "//evil.example/%2e%2e"])
def test_the_way_out_of_the_address_bar_stays_on_this_host(path):
    visitor = client()
    visitor.get(f"/?token={TOKEN}")
    location = visitor.get(f"http://localhost:8181{path}?token={TOKEN}").headers["location"]
    assert urljoin("http://localhost:8181/", location).startswith("http://localhost:8181/")


@pytest.mark.parametrize("query", ["", "?token=", "?token=" + "b" * 48, "?token=" + "a" * 47, "?token=\u00e9"])
def test_without_the_token_nothing_is_answered(query):
    answer = client().get(f"/api/run{query}")
    assert answer.status_code == 403
    assert "secret" not in answer.text


def test_a_cookie_of_another_port_does_not_open_the_page():
    visitor = client()
    visitor.cookies.set("atrous-view-9999", TOKEN)
    assert visitor.get("/").status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "[", "localhost@evil"]
)
def test_a_foreign_host_name_is_refused_even_with_the_token(host):
    assert client().get(f"/?token={TOKEN}", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8181", "127.0.0.1:8181", "[::1]:8181", "localhost:9000"])
def test_names_of_this_machine_pass_also_through_a_tunnel_of_another_port(host):
    assert client().get(f"/?token={TOKEN}", headers={"host": host}).status_code == 303


def test_a_server_for_other_machines_takes_any_name_but_still_wants_the_token():
    visitor = client(any_host=True)
    assert visitor.get("/", headers={"host": "gpu7.lab"}).status_code == 403
    assert visitor.get(f"/?token={TOKEN}", headers={"host": "gpu7.lab"}).status_code == 303


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_but_reading_is_answered(method):
    assert client().request(method, f"/?token={TOKEN}").status_code == 405


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/api/take/x", "application/json", 200),
        ("/api/take/x", "text/plain", 405),
        ("/api/take/x", "application/x-www-form-urlencoded", 405),
        ("/api/run", "application/json", 405),
    ],
)
def test_json_is_taken_where_it_is_expected_and_no_form_is(path, kind, status):
    visitor = client()
    assert visitor.post(path, content="[]", headers={"content-type": kind}).status_code in (403, 405)
    visitor.get(f"/?token={TOKEN}")
    assert visitor.post(path, content="[]", headers={"content-type": kind}).status_code == status


def test_every_answer_carries_the_headers_also_a_refusal():
    for answer in (client().get("/"), client().get(f"/?token={TOKEN}")):
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_tokens_are_long_and_differ():
    assert len({new_token() for _ in range(100)}) == 100
    assert len(new_token()) == 48
