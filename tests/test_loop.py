"""docs/loop.md: its commands and snippets run in order, as pasted, and the network at the end is the better one."""

import json
import os
import re
import signal
import subprocess
import sys
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from jobs import demo
from tests import ROOT
from tests.support.forked import LIMIT_S

PAGE = ROOT / "docs/loop.md"
BLOCK = re.compile(r"^```python\n(?P<snippet>.*?)^```$|(?P<commands>(?:^ {4}[^\n]*\n)+)", re.S | re.M)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a shell in which this source is installed, with an empty cache, and one thread for each process."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    of_source = {"PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    return os.environ | of_source | {"OMP_NUM_THREADS": "1"}


def look(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Open the page that a command serves, and end it as Ctrl-C does."""
    told = ["env", "--default-signal=INT", *command.split(), "--port", "0"]
    with subprocess.Popen(told, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as serving:
        try:
            address = serving.stdout.readline().removeprefix("open ").strip()
            browser = build_opener(HTTPCookieProcessor(CookieJar()))
            assert b"<title>Atrous</title>" in browser.open(address).read()
            serving.send_signal(signal.SIGINT)
            assert serving.wait(LIMIT_S) == 0
        finally:
            serving.kill()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_loop_runs_as_pasted_and_the_network_at_its_end_is_better(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run_job", lambda *_: 0)  # its run and evaluation, which the page does not use
    assert demo.main(["--output", str(tmp_path / "demo")]) == 0
    scores = []
    for block in BLOCK.finditer(PAGE.read_text()):
        if (commands := block["commands"]) and commands.strip().startswith("atrous view"):
            look(commands, tmp_path, environment)
            continue
        told = ["bash", "-euc", commands] if commands else [sys.executable, "-c", block["snippet"]]
        done = subprocess.run(told, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
        if commands and commands.strip().startswith("atrous evaluate"):
            scores.append(json.loads(done.stdout)["settings"]["default"]["mean_iou"])
    first, second = scores
    assert second["network"] > first["network"] + 0.05
