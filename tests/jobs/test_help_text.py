import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from typing import get_type_hints

import pytest
from pydantic import BaseModel

from jobs import command_line, evaluate, prepare_dataset, train, tune_crf
from jobs.segment_dataset import SegmentArguments
from pipeline.config import OTHER_FLAGS
from tests import ROOT

CONFIGS = [
    SegmentArguments,
    train.TrainArguments,
    evaluate.EvaluateArguments,
    tune_crf.TuneArguments,
    prepare_dataset.PrepareArguments,
]


def help_of(*flags: str, arguments: type = SegmentArguments) -> str:
    """What a job prints, and nothing else."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        command_line.parse(flags, arguments, description=DESCRIPTION)
    assert ended.value.code == 0
    return printed.getvalue()


DESCRIPTION = """A first line that says what this is for.

    ray job submit --working-dir . -- python jobs/segment_dataset.py --source s3://bucket/images --output s3://bucket/o

A paragraph of several lines, each of which
ends where the source of the module had it end, however wide the terminal of somebody who reads it is by now.
"""


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"^  (?:-h, )?(--[a-z][\w.-]*)", text, re.MULTILINE))


def flat(kind: type[BaseModel], above: str = "") -> set[str]:
    """Flags of all settings of a config, as YAML has their names."""
    names = set()
    for name, field in kind.model_fields.items():
        group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        names |= flat(field.annotation, f"{above}{name}.") if group else {above + name}
    return names


@pytest.mark.parametrize("arguments", CONFIGS, ids=lambda one: one.job)
def test_short_help_shows_what_is_required_and_what_the_job_marks(arguments: type) -> None:
    kind = get_type_hints(arguments)["cfg"]
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    beside = {field.name for field in fields(arguments)} - {"cfg"}
    wanted = required | set(arguments.shown) | beside | {"help"}
    assert flags_in(help_of("--help", arguments=arguments)) == {f"--{name.replace('_', '-')}" for name in wanted}
    assert set(arguments.shown) <= flat(kind)
    assert 8 <= len(arguments.shown) <= 13


@pytest.mark.parametrize("arguments", CONFIGS, ids=lambda one: one.job)
def test_long_help_shows_every_setting(arguments: type) -> None:
    kind = get_type_hints(arguments)["cfg"]
    in_files_only = {"settings", "then", "network.options", "network.scale"}
    wanted = {OTHER_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in flat(kind) - in_files_only}
    shown = flags_in(help_of("--help-all", arguments=arguments))
    hidden = {flag for flag in wanted - shown if not any(one.startswith(f"{flag}.") for one in shown)}
    assert hidden == set()


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_help_fits_the_terminal(flag: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(flag)
    longest = max(len(line) for line in text.splitlines())
    assert columns - 12 <= longest <= columns
    assert os.environ["COLUMNS"] == str(columns)


def test_help_is_no_wider_than_is_good_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, help_of("--help-all").splitlines())) <= 120
    monkeypatch.delenv("COLUMNS")  # nor wraps a pipe at more than the usual
    assert max(map(len, help_of("--help").splitlines())) <= 80
    assert "COLUMNS" not in os.environ


def test_a_command_in_help_goes_on_after_a_backslash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of("--help")
    command = text[text.index("    ray job") : text.index("A paragraph")].replace("\\\n", "")
    assert shlex.split(command) == shlex.split(DESCRIPTION.splitlines()[2])
    assert "each of which ends where the source" in text


def test_help_says_how_the_job_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["atrous segment"])
    assert help_of("--help").startswith("usage: atrous segment [-h]")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["-m", "jobs.segment_dataset"], "python -m jobs.segment_dataset"),
        (["jobs/segment_dataset.py"], "python jobs/segment_dataset.py"),
        (["-m", "jobs.cli", "segment"], "atrous segment"),
    ],
)
def test_each_way_of_starting_a_job_is_in_its_usage(command: list[str], shown: str) -> None:
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    job = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, env=here, capture_output=True, text=True)
    assert job.stdout.startswith(f"usage: {shown} [-h]"), job.stderr
