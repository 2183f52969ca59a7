import subprocess
import sys

import pytest

from jobs import cli, command_line
from jobs.completion import completion_script, job_flags

COMPLETE = """
source /dev/stdin
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_atrous
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", "atrous", *words], input=script, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.fixture(scope="module")
def script() -> str:
    return completion_script("bash", {name: job.module for name, job in cli.JOBS.items()})


def test_commands_are_completed(script: str) -> None:
    assert completed(script, "") == [*cli.JOBS, "completion", "--help", "--version"]
    assert completed(script, "in") == ["inspect"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["segment", "--refine.eng"], ["--refine.engine"]),
        (["train", "--config", "x", "--optimise.l"], ["--optimise.lr"]),
        (["inspect", "out", "--ver"], ["--version", "--verify"]),
        (["completion", ""], ["bash", "zsh"]),
        (["segment", "no_such"], []),
    ],
)
def test_flags_of_the_command_are_completed(script: str, words: list[str], offered: list[str]) -> None:
    assert completed(script, *words) == offered


@pytest.mark.parametrize("name", cli.JOBS)
def test_every_job_gives_its_flags(name: str) -> None:
    flags = job_flags(name, cli.JOBS[name].module)
    assert "--help" in flags
    assert len(flags) > 3
    assert len(set(flags)) == len(flags)


def test_asking_for_a_script_leaves_the_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["atrous", "completion"])
    job_flags("demo", "jobs.demo")
    assert command_line.program() != "atrous demo"


def test_zsh_loads_what_runs_a_script_of_bash(script: str) -> None:
    zsh = completion_script("zsh", {name: job.module for name, job in cli.JOBS.items()})
    assert zsh == f"autoload -U +X bashcompinit && bashcompinit\n{script}"
