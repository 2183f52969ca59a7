"""`atrous view` as a process: the URL it prints, what it serves, and how it ends."""

import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from jobs import view
from pipeline.run import manifest
from pipeline.store.url import Url
from tests.support.committed import commit, rows_of, tar


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Output folder with one finished run."""
    run = tmp_path / "out/run=0123456789ab"
    commit(run, rows_of(tar("a"), 3))
    manifest.mark_finished(Url(str(run)))
    return tmp_path / "out"


def start(output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.view", str(output), "--port", "0", "--cache", str(output.parent / "cache")]
    return subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_printed_url_opens_the_page_and_ctrl_c_ends_it(output: Path) -> None:
    with start(output) as process:
        try:
            url = re.fullmatch(r"open (http://localhost:\d+/\?token=[0-9a-f]{48})\n", process.stdout.readline())[1]
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
            assert b"<title>Atrous</title>" in browser.open(url).read()
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(url.partition("?")[0])
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()


def test_a_port_that_is_taken_is_an_error_that_names_the_option(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert view.main([str(output), "--port", str(port), "--cache", str(output / "cache")]) == 1
    assert f"--port {port}" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name == "index"]


def test_a_run_without_rows_and_several_runs_are_refused(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    (output / "run=ba9876543210").mkdir()
    (output / "run=ba9876543210/x").touch()
    assert view.main([str(output)]) == 1
    assert "2 runs" in caplog.text
    assert view.main([str(output / "run=ba9876543210")]) == 1
    assert "no committed rows" in caplog.text


def test_a_cache_that_is_a_file_is_an_error_that_names_the_option(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (output / "file").touch()
    assert view.main([str(output), "--port", "0", "--cache", str(output / "file")]) == 1
    assert f"--cache {output / 'file'}" in caplog.text


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_an_error_that_asks_for_another_host(
    output: Path, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert view.main([str(output), "--host", host, "--port", "0", "--cache", str(output / "cache")]) == 1
    assert "give another --host" in caplog.text


@pytest.mark.parametrize("flag", ["--compare", "--labels", "--cache"])
def test_an_empty_place_is_an_error_that_names_the_option(
    output: Path, flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert view.main([str(output), "--port", "0", "--cache", str(output / "cache"), flag, ""]) == 1
    assert f"{flag} is empty" in caplog.text


@pytest.mark.parametrize("flags", [["--port", "99999"], ["--cache-gib", "nan"], ["--cache-gib", "-1"]])
def test_numbers_out_of_range_are_errors_that_name_the_option(
    output: Path, flags: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert view.main([str(output), "--port", "0", "--cache", str(output / "cache"), *flags]) == 1
    assert " ".join(flags) in caplog.text
