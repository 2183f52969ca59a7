import resource
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest

from jobs import cli
from tests import ROOT


def test_every_command_is_a_job_with_a_main() -> None:
    assert all(find_spec(job.module) for job in cli.JOBS.values())
    assert len({job.module for job in cli.JOBS.values()}) == len(cli.JOBS)


def test_help_lists_every_command_in_one_line_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [*cli.JOBS, "completion"]
    assert cli.main([]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("name", "nearest"), [("segmnt", "segment"), ("tune_crf", "tune-crf"), ("prepare_dataset", "prepare")]
)
def test_an_unknown_command_is_answered_with_the_nearest(
    name: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 2
    assert f"no command {name!r}; the nearest is {nearest!r}" in capsys.readouterr().err


def test_a_job_gets_its_flags_and_its_status_is_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["atrous"])
    assert cli.main(["segment", "--config", "nothing"]) == 1
    assert sys.argv == ["atrous segment", "--config", "nothing"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["segment", "--limit"])
    assert ended.value.code == 2
    assert "--limit" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("atrous ")


def test_the_package_installs_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["atrous"].partition(":")
    assert (module, callable(getattr(cli, function))) == ("jobs.cli", True)


HELP_OF_ALL = """
import sys
from contextlib import redirect_stdout
from io import StringIO
from jobs import cli

heavy = {"torch", "ray", "scipy", "matplotlib", "pyarrow", "pandas"}
for name in cli.JOBS:
    for flag in ("--help", "--help-all"):
        text = StringIO()
        try:
            with redirect_stdout(text):
                cli.main([name, flag])
        except SystemExit as ended:
            usage = text.getvalue().startswith(f"usage: atrous {name} ")
            print(name, ended.code, usage, sorted(heavy & set(sys.modules)))
"""


def test_help_imports_nothing_heavy() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines() == [f"{name} 0 True []" for name in cli.JOBS for _ in range(2)]
    assert after.ru_utime - before.ru_utime < 5  # seconds of the processor, for 22 texts; one takes 0.3 to 0.6


def test_the_page_of_the_command_line_lists_the_same_commands() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    rows = [
        f"| `atrous {name}` | `{job.module.replace('.', '/')}.py` | {job.summary} |" for name, job in cli.JOBS.items()
    ]
    assert [row for row in rows if row not in page] == []
