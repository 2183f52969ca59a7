"""One submission a day: the id, and the crontab's own command run against a cluster that asks for a token."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import submission
from jobs import submit
from pipeline.errors import ConfigError, JobError
from tests import ROOT
from tests.support import ports, ray_servers
from tests.support.ray_servers import Cluster

KUBERNETES_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

WAIT_S = 90.0

names = st.text("ab0-", min_size=1, max_size=40).filter(submit.ID_PREFIX.fullmatch)

# Stands for the evaluation: notes under --history that it ran, and fails the gate for one checkpoint.
STAND_IN = """
import sys, pathlib
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with (pathlib.Path(flags["--history"]) / "ran").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + chr(10))
print("mean IoU 0.41, tolerated from 0.52")
sys.exit(3 if flags["--checkpoint"] == "worse" else 0)
"""


@dataclass(frozen=True, slots=True)
class Crontab:
    """What cron makes of a crontab with one line."""

    schedule: str
    command: str
    environment: dict[str, str]


def read_crontab(text: str) -> Crontab:
    """Assignments before the line hold for it; `%` would be a line end, and has no place here (crontab(5))."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assignments = [line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line)]
    (job,) = [line for line in lines if not re.match(r"[A-Z_]+=", line)]
    *schedule, command = job.split(maxsplit=5)
    assert "%" not in command
    return Crontab(" ".join(schedule), command, dict(assignments))


CRONTAB = read_crontab((ROOT / "infra/cron/crontab").read_text())


@given(names, names, st.dates(), st.dates())
def test_ids_are_the_same_only_for_the_same_name_and_day(name, other, day, another):
    assert (submit.submission_id(name, day) == submit.submission_id(other, another)) == (
        (name, day) == (other, another)
    )


@given(names, st.dates())
def test_an_id_is_also_good_for_kubernetes(name, day):
    made = submit.submission_id(name, day)
    assert KUBERNETES_NAME.fullmatch(made)
    assert len(made) <= 63


@pytest.mark.parametrize("name", ["", "Eval", "eval/", "-eval", "eval-", "a b", 41 * "a"])
def test_a_name_that_no_id_can_begin_with_is_refused(name):
    with pytest.raises(ConfigError, match="--name"):
        submit.submission_id(name, date(2026, 11, 20))


def test_everything_after_the_dashes_is_the_command():
    args = submit.parse_submission(["--name", "eval", "--date", "2026-11-20", "--", "python", "-m", "x", "--wait"])
    assert args.command == ["python", "-m", "x", "--wait"]
    assert args.date == date(2026, 11, 20)
    assert not args.wait


class Head:
    """Answers like a head that is starting: so often that it has no agent yet, then with one more refusal or none."""

    def __init__(self, *, not_yet: int, then: str = "") -> None:
        self.refusals = not_yet * [submission.NO_AGENT] + ([then] if then else [])
        self.taken: list[str] = []

    def submit_job(self, *, entrypoint: str, submission_id: str) -> None:
        if self.refusals:
            raise RuntimeError(f"Request failed with status code 500: {self.refusals.pop(0)}")
        self.taken.append(submission_id)

    def list_jobs(self) -> list:
        return []


def test_a_head_that_is_only_starting_is_waited_for(monkeypatch):
    monkeypatch.setattr(submission, "POLL_S", 0.0)
    head = Head(not_yet=3)
    assert submission.submit_once(head, "eval-2026-11-20", "true")
    assert head.taken == ["eval-2026-11-20"]


@pytest.mark.parametrize(("head", "patience_s"), [(Head(not_yet=0, then="no disk"), 60.0), (Head(not_yet=9), -1.0)])
def test_another_refusal_and_a_head_that_never_starts_are_errors(monkeypatch, head, patience_s):
    monkeypatch.setattr(submission, "POLL_S", 0.0)
    monkeypatch.setattr(submission, "HEAD_START_S", patience_s)
    with pytest.raises(JobError, match="was not accepted"):
        submission.submit_once(head, "eval-2026-11-20", "true")
    assert head.taken == []


def test_a_cluster_that_does_not_answer_is_named(monkeypatch, caplog):
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{ports.free_port()}")
    assert submit.main(["--name", "eval", "--", "true"]) == 1
    assert os.environ["RAY_ADDRESS"] in caplog.text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with token authentication, whose `jobs.evaluate` is the stand-in."""
    package = tmp_path_factory.mktemp("image") / "jobs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "evaluate.py").write_text(STAND_IN)
    # `python -m` looks in the working directory first, where the real one would be.
    with ray_servers.cluster(cwd=package.parent, PYTHONPATH=str(package.parent)) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Machine:
    """Where cron runs: a home with the token, and nothing else in the environment than cron puts there."""

    home: Path
    cluster: Cluster

    def environment(self, **changed: str) -> dict[str, str]:
        own = {"HOME": str(self.home), "LOGNAME": "ray", "SHELL": "/bin/sh"}
        here = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "RAY_ADDRESS": self.cluster.dashboard}
        return own | CRONTAB.environment | here | {"HISTORY": str(self.home)} | changed

    def start(self, command: str = CRONTAB.command, **changed: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        environment = self.environment(**changed)
        return subprocess.Popen(
            ["/bin/sh", "-c", command], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    def ran(self) -> list[str]:
        return (self.home / "ran").read_text().splitlines() if (self.home / "ran").exists() else []


@pytest.fixture
def machine(tmp_path: Path, cluster: Cluster) -> Machine:
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.touch(mode=0o600)
    token.write_text(cluster.environment["RAY_AUTH_TOKEN"])
    return Machine(tmp_path, cluster)


def ended(process: subprocess.Popen) -> tuple[int, dict, str]:
    """Exit status, the line on stdout and the log."""
    out, log = process.communicate(timeout=WAIT_S)
    assert out, log
    return process.returncode, json.loads(out), log


@pytest.mark.ray
def test_the_crontab_runs_once_however_often_it_is_started(machine):
    both = [ended(process) for process in [machine.start(), machine.start()]]
    status, said, log = ended(machine.start())
    assert sorted(answer["submitted"] for _, answer, _ in both) == [False, True]
    assert [code for code, _, _ in both] == [0, 0] == [status, int(said["submitted"])]
    assert said["status"] == "SUCCEEDED"
    assert "already submitted, status SUCCEEDED" in log
    (flags,) = machine.ran()
    assert (
        flags
        == f"--source s3://labelled/val --checkpoint s3://bucket/model --history {machine.home} --baseline last-good"
    )


@pytest.mark.ray
def test_a_gate_that_fails_is_cron_s_status_and_mail_and_not_tried_again(machine):
    command = CRONTAB.command.replace("--name eval", "--name gate --date 2026-11-20")
    for submitted in (True, False):
        status, said, log = ended(machine.start(command, CHECKPOINT="worse"))
        assert (status, said) == (3, {"submission_id": "gate-2026-11-20", "submitted": submitted, "status": "FAILED"})
        assert "mean IoU 0.41, tolerated from 0.52" in log
    assert len(machine.ran()) == 1
    assert ended(machine.start(command.replace("--wait", ""), CHECKPOINT="worse"))[0] == 0


@pytest.mark.ray
def test_another_day_is_another_run_and_another_command_is_pointed_out(machine):
    command = CRONTAB.command.replace("--name eval", "--name days --date {}")
    days = ["2026-11-20", "2026-11-21"]
    assert [ended(machine.start(command.format(day)))[1]["submitted"] for day in days] == [True, True]
    status, _, log = ended(machine.start(command.format(days[0]), SOURCE="s3://labelled/test"))
    assert status == 0
    assert "was submitted before with another command" in log
    assert len(machine.ran()) == 2


@pytest.mark.ray
def test_without_the_cluster_s_token_nothing_is_submitted(machine):
    (machine.home / ".ray/auth_token").write_text("0" * 64)
    process = machine.start(CRONTAB.command.replace("--name eval", "--name stranger"))
    _, log = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert "refuses the token" in log
    assert "Traceback" not in log
    assert machine.ran() == []
