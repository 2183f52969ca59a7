"""The main job in processes of this machine, without Ray: same rows, and faults of its processes cost nothing."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from pipeline.datasets import farmland
from pipeline.store.url import Url
from tests import ROOT
from tests.support import poison
from tests.support.drivers import QUICK, SMALL_PARTS, finish, flags_for, forked, rows_in, rows_of, start
from tests.support.forked import LIMIT_S, ForkServer

MANY = 60
"""Images of a run that is still at work when some of them are committed."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    farmland.write_folder(Url(str(folder)), MANY, size_px=96, seed=7)
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos: Path, forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Rows of a run in one process, one image after the other."""
    outcome = forked(forks, *flags_for(photos, tmp_path_factory.mktemp("undisturbed")), *QUICK, *SMALL_PARTS)
    assert outcome.status == 0, outcome.log
    return rows_of(outcome)


def server_of(pid: int) -> psutil.Process:
    (server,) = (child for child in psutil.Process(pid).children() if "pipeline.run.fork_server" in child.cmdline())
    return server


def workers_of(pid: int) -> list[psutil.Process]:
    return sorted(server_of(pid).children(), key=lambda process: process.pid)


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def committed(output: Path) -> list[Path]:
    return list(output.glob("run=*/parts/part-*"))


def flags(photos: Path, output: Path) -> list[str]:
    return [*flags_for(photos, output), *QUICK, *SMALL_PARTS]


def test_a_small_run_takes_processes_and_its_rows_are_those_of_one_process(
    photos: Path, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    outcome = finish(start(*flags(photos, tmp_path)))
    assert outcome.status == 0, outcome.log
    assert outcome.summary["flow"] == "processes"
    assert "in processes of this machine, without Ray" in outcome.log
    pd.testing.assert_frame_equal(rows_of(outcome), undisturbed)
    again = finish(start(*flags(photos, tmp_path)))
    assert (again.status, again.summary["flow"], again.summary["rows_now"]) == (0, "none", 0)


def test_masks_are_scored_alike(forks: ForkServer, tmp_path: Path) -> None:
    """Those of a network, and existing ones."""
    farmland.write_folder(Url(str(tmp_path / "in")), 6, size_px=64, seed=9, with_labels=True)
    scored = {}
    for name, run in {
        "forked": lambda *said: forked(forks, *said, module="jobs.evaluate"),
        "processes": lambda *said: finish(start(*said, module="jobs.evaluate")),
    }.items():
        outcome = run(*flags_for(tmp_path / "in", tmp_path / name), *QUICK)
        assert outcome.status == 0, outcome.log
        rows = rows_in(outcome.summary["settings"]["default"]["run"])
        (masks,) = (tmp_path / "forked").glob("run=*")
        source = ["--source", str(tmp_path / "in"), "--output", str(tmp_path / f"{name} masks")]
        again = run(*source, "--masks", str(masks), *QUICK)
        assert again.status == 0, again.log
        scored[name] = [rows, rows_in(again.summary["settings"]["default"]["run"])]
    for one, other in zip(scored["forked"], scored["processes"], strict=True):
        pd.testing.assert_frame_equal(one, other)


@pytest.mark.faults
@pytest.mark.parametrize(
    "choose_victims",
    [
        lambda pid: workers_of(pid)[:1],
        lambda pid: workers_of(pid)[1:],
        lambda pid: [server_of(pid), *workers_of(pid)[:1]],
    ],
    ids=["network", "refiner", "server and network"],
)
def test_processes_killed_in_the_middle_cost_nothing(
    choose_victims: Callable[[int], list[psutil.Process]], photos: Path, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    driver = start(*flags(photos, tmp_path))
    wait_until(lambda: committed(tmp_path))
    for victim in choose_victims(driver.pid):
        victim.kill()
    outcome = finish(driver)
    assert outcome.status == 0, outcome.log
    pd.testing.assert_frame_equal(rows_of(outcome), undisturbed)


@pytest.mark.faults
def test_workers_end_with_a_killed_driver_and_the_same_command_goes_on(
    photos: Path, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    driver = start(*flags(photos, tmp_path))
    wait_until(lambda: committed(tmp_path))
    workers = workers_of(driver.pid)
    driver.kill()
    finish(driver)
    assert len(workers) == 2
    psutil.wait_procs(workers, timeout=LIMIT_S)
    assert not any(worker.is_running() for worker in workers)
    rows = sum(len(pd.read_parquet(part)) for part in committed(tmp_path))
    resumed = finish(start(*flags(photos, tmp_path)))
    assert resumed.status == 0, resumed.log
    assert resumed.summary["rows_now"] == MANY - rows
    pd.testing.assert_frame_equal(rows_of(resumed), undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_asked_to_end_takes_its_workers_along(
    signal_number: signal.Signals, photos: Path, tmp_path: Path
) -> None:
    driver = start(*flags(photos, tmp_path))
    wait_until(lambda: committed(tmp_path))
    workers = workers_of(driver.pid)
    driver.send_signal(signal_number)
    outcome = finish(driver)
    assert outcome.status != 0
    assert "Traceback" not in outcome.log
    assert not any(worker.is_running() for worker in workers)
    (owner,) = tmp_path.glob("run=*/_run/owner-*.json")
    assert '"released":true' in owner.read_text().replace(" ", "")


def in_workers(folder: Path, code: str) -> dict[str, str]:
    """Environment in which the server that forks the workers runs some code before anything else."""
    (folder / "sitecustomize.py").write_text(
        f"import sys\nif 'pipeline.run.fork_server' in sys.orig_argv:\n    {code}\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.faults
def test_an_image_that_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 12, size_px=64, seed=1)
    for name, mark in {"farm_000003": poison.DECODER, "farm_000007": poison.REFINER}.items():
        path = tmp_path / f"in/images/{name}.jpg"
        path.write_bytes(poison.poisoned(path.read_bytes(), mark))
    deadly = in_workers(tmp_path, "from tests.support.poison import make_deadly; make_deadly()")
    some = [*flags_for(tmp_path / "in", tmp_path / "out"), *QUICK, "--runtime.max-failed-fraction", "0.2"]
    outcome = finish(start(*some, env=deadly))
    assert outcome.status == 0, outcome.log
    rows = rows_of(outcome).set_index("key")
    codes = rows["error_code"].dropna().to_dict()
    assert codes == {"images/farm_000003.jpg": "crashed", "images/farm_000007.jpg": "refine_crashed"}
    assert (rows["status"] == "ok").sum() == 10
    pids = rows["error_detail"].dropna().str.findall(r"pid (\d+) on")
    assert [len(dead) for dead in pids] == [2, 2]
    folder = Path(outcome.log.partition("their logs are worker-*-PID.* in ")[2].split()[0])
    assert all(list(folder.glob(f"worker-*-{pid}.err")) for dead in pids for pid in dead)


@pytest.mark.faults
def test_a_server_of_workers_that_never_starts_ends_the_run_with_the_end_of_its_log(
    fields: Path, tmp_path: Path
) -> None:
    broken = in_workers(tmp_path, "import os; os.write(2, b'no such chip'); os.kill(os.getpid(), 9)")
    outcome = finish(start(*flags_for(fields, tmp_path / "out"), *QUICK, env=broken))
    assert outcome.status == 1
    assert "the server of workers died 3 times while it started, exit status -9" in outcome.log
    assert "its log ends: no such chip" in outcome.log


@pytest.mark.faults
def test_a_stage_that_kills_its_worker_at_once_ends_the_run_with_the_end_of_its_log(
    fields: Path, tmp_path: Path
) -> None:
    dies = "s.RefineStage.__init__ = lambda *_: os.write(2, b'no room') and os.abort()"
    code = f"import os, pipeline.run.stages as s; {dies}"
    outcome = finish(start(*flags_for(fields, tmp_path / "out"), *QUICK, env=in_workers(tmp_path, code)))
    assert outcome.status == 1
    assert "the worker of the stage refine died 3 times while it started, exit status -6" in outcome.log
    assert "ends: no room" in outcome.log


@pytest.mark.faults
def test_an_error_of_a_stage_ends_the_run_with_its_traceback(fields: Path, tmp_path: Path) -> None:
    code = "import pipeline.run.stages as s; s.RefineStage.__call__ = lambda *_: 1 / 0"
    outcome = finish(start(*flags_for(fields, tmp_path / "out"), *QUICK, env=in_workers(tmp_path, code)))
    assert outcome.status == 1
    assert "a worker of the stage refine failed" in outcome.log
    assert "ZeroDivisionError: division by zero" in outcome.log
