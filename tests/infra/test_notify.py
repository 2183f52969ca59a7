import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra import notify
from jobs import command_line, console
from pipeline.errors import ConfigError, JobError


class Receiver(ThreadingHTTPServer):
    """A webhook on loopback that keeps what it gets, and answers with each of `statuses` in turn, then with 200."""

    def __init__(self) -> None:
        self.got: list[dict] = []
        self.statuses: list[int] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/secret-path"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(json.loads(body) | {"path": self.path, "type": self.headers["Content-Type"]})
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: the output of a test is its own."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(notify, "PAUSE_S", 0.0)
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        notify.configure(server.url)
        yield server
        notify.configure(None)
        server.shutdown()


def test_the_closing_line_is_posted_as_it_is_printed(receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"rows": 3, "exit_status": 0})
    assert json.loads(capsys.readouterr().out) == {"rows": 3, "exit_status": 0}
    assert receiver.got == [{"rows": 3, "exit_status": 0, "path": "/secret-path", "type": "application/json"}]


@pytest.mark.parametrize(
    ("error", "text"),
    [(JobError("the disk is full"), "the disk is full"), (KeyboardInterrupt(), "interrupted")],
)
def test_an_error_that_ends_a_job_is_posted(error: BaseException, text: str, receiver: Receiver) -> None:
    def job() -> int:
        raise error

    assert command_line.exit_status(job) == 1
    assert (receiver.got[0]["error"], receiver.got[0]["exit_status"]) == (text, 1)


def test_an_unexpected_error_is_posted_and_raised(receiver: Receiver) -> None:
    def job() -> int:
        raise ValueError("token=hunter2")

    with pytest.raises(ValueError, match="hunter2"):
        command_line.exit_status(job)
    with pytest.raises(SystemExit):
        command_line.exit_status(lambda: sys.exit(1))
    assert [got["error"] for got in receiver.got] == ["ValueError: token=***", "stopped with exit status 1"]


def test_a_receiver_that_fails_is_tried_again_and_the_job_goes_on(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500, 503]
    notify.send({"rows": 1})
    assert len(receiver.got) == 3
    receiver.statuses = [500] * 9
    notify.send({"rows": 2})
    assert len(receiver.got) == 6
    assert "could not notify 127.0.0.1: status 500, attempt 3 of 3" in caplog.text


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.statuses = [302, 307]
    notify.send({"rows": 1})
    assert [got["path"] for got in receiver.got] == ["/secret-path"] * 3


def test_no_message_holds_more_of_the_url_than_its_host(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    receiver.statuses = [500]
    notify.send({})
    assert "127.0.0.1" in caplog.text
    assert "secret-path" not in caplog.text


def test_the_environment_names_a_receiver_where_no_flag_does(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setenv("ATROUS_NOTIFY", receiver.url)
    notify.configure(None)
    notify.send({"rows": 1})
    assert len(receiver.got) == 1


def test_without_a_receiver_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    notify.configure(None)
    notify.send({"rows": 1})
    assert receiver.got == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "hooks.example.com/x", "https:///x", "ftp://host/x"])
def test_only_http_and_https_are_urls_of_a_receiver_and_the_error_keeps_the_secret(url: str) -> None:
    with pytest.raises(ConfigError, match="no http or https URL") as error:
        notify.configure(url)
    assert url not in str(error.value)
    notify.configure(None)
