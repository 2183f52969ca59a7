"""Ledgers of workers that die and start again, without Ray: a death is an exception, a successor a new object."""

import json
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run import journal
from pipeline.run.journal import Journal, WorkerLedger, take_journal
from pipeline.run.ledger import Held, Ledger, Place
from tests import ROOT
from tests.support.dying_workers import WorkerDiedError, work_or_die


class Processes:
    """The processes of one worker, which follow each other."""

    def __init__(self, run: Ledger, folder: Path, worker_id: str = "w") -> None:
        self.run, self.folder, self.worker_id = run, folder, worker_id
        self.node = "north"
        self.lost: set[str] = set()
        self.kept: list[WorkerLedger] = []

    def start(self) -> WorkerLedger:
        """The next process; the one before is not ended, as one that was killed is not."""
        self.kept.append(WorkerLedger(self.run, self.place, self.take_from))
        return self.kept[-1]

    def place(self) -> Place:
        return Place(self.worker_id, self.node, str(self.folder / self.node / self.worker_id))

    def take_from(self, place: Place) -> Held | None:
        return None if place.node in self.lost else take_journal(place.journal)

    def end(self) -> None:
        """Let the last process end in order; those before it are forgotten."""
        for process in self.kept[:-1]:
            process._journal = None
        self.kept.clear()


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(Ledger(), tmp_path)


def until_it_survives(
    processes: Processes, batches: list[list[str]], poison: set[str], *, on_death: Callable[[], object] = lambda: None
) -> tuple[list[str], int, list[list[str]]]:
    """Give the batches to one worker, and the one that killed it to its successor, as Ray does."""
    results: list[str] = []
    tries: list[list[str]] = []
    deaths, process = 0, processes.start()
    for batch in batches:
        while True:
            try:
                results += work_or_die(process, batch, poison, tries)
                break
            except WorkerDiedError:
                deaths += 1
                assert deaths < 100, "a batch never came through"
                on_death()
                process = processes.start()
    processes.end()
    return results, deaths, tries


def test_a_poison_key_costs_two_workers_and_its_neighbours_are_fine(processes: Processes) -> None:
    results, deaths, tries = until_it_survives(processes, [["a", "b"], ["c", "d", "e"], ["f"]], {"d"})
    assert results == ["done a", "done b", "done c", "crashed d", "done e", "done f"]
    assert deaths == 2
    assert tries == [["a", "b"], ["c", "d", "e"], ["c"], ["d"], ["c"], ["e"], ["f"]]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_poison_every_key_ends_once_and_deaths_are_bounded(seed: int, processes: Processes) -> None:
    rng = random.Random(seed)
    batches = [[f"k{batch}.{index}" for index in range(rng.randint(1, 6))] for batch in range(rng.randint(1, 5))]
    keys = [key for batch in batches for key in batch]
    poison = set(rng.sample(keys, rng.randint(0, len(keys))))
    results, deaths, _ = until_it_survives(processes, batches, poison)
    assert results == [f"crashed {key}" if key in poison else f"done {key}" for key in keys]
    assert deaths <= len(batches) + len(poison)


def test_a_worker_that_starts_on_another_node_reads_the_journal_it_left_behind(processes: Processes) -> None:
    moves = iter(["south", "north", "south"])

    def move() -> None:
        processes.node = next(moves)

    results, deaths, _ = until_it_survives(processes, [["a", "b", "c"]], {"b"}, on_death=move)
    assert (results, deaths) == (["done a", "crashed b", "done c"], 2)


def test_an_image_that_takes_its_node_along_is_found_by_what_the_worker_last_reported(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "REPORT_S", 0.0)
    nodes = iter(range(100))

    def lose_the_node() -> None:
        processes.lost.add(processes.node)
        processes.node = f"node {next(nodes)}"

    results, deaths, _ = until_it_survives(processes, [["a", "b", "c"]], {"b"}, on_death=lose_the_node)
    assert (results, deaths) == (["done a", "crashed b", "done c"], 2)


def test_no_key_is_blamed_for_a_lost_node_whose_worker_had_nothing_in_hand(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "REPORT_S", 0.0)
    work_or_die(processes.start(), ["a", "b"], set(), [])
    processes.lost.add("north")
    processes.node = "south"
    work_or_die(processes.start(), ["a", "b"], set(), tries := [])
    assert tries == [["a", "b"]]
    assert processes.run.progress().deaths == 0


def test_keys_are_suspects_of_their_own_worker_alone(tmp_path: Path) -> None:
    run = Ledger()
    one, other = Processes(run, tmp_path, "one"), Processes(run, tmp_path, "other")
    with pytest.raises(WorkerDiedError):
        work_or_die(one.start(), ["a", "b"], {"a"}, [])
    work_or_die(other.start(), ["c", "d"], set(), tries := [])
    assert tries == [["c", "d"]]


def test_a_key_never_fails_for_its_neighbours() -> None:
    run, here = Ledger(), Place("w", "north", "journal")
    run.start_worker(here, None)
    run.start_worker(here, Held("infer", ("a", "b"), "pid 1"))
    assert run.start_worker(here, Held("infer", ("a", "b"), "pid 2")) == {
        ("infer", "a"): ["pid 1"],
        ("infer", "b"): ["pid 1"],
    }
    assert run.start_worker(here, Held("infer", ("a",), "pid 3"))["infer", "a"] == ["pid 1", "pid 3"]


def test_nothing_is_told_at_once_but_the_start_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(journal, "monotonic", lambda: clock[0])
    processes = Processes(Ledger(), tmp_path)
    worker = processes.start()
    work_or_die(
        worker, ["a"], set(), []
    )  # the first batch is reported as it is entered: this worker may be on a new node
    work_or_die(worker, ["b", "c"], set(), [])
    worker.count_bytes_out("infer", 7)
    assert processes.run.progress().done == {}
    clock[0] += journal.REPORT_S
    work_or_die(worker, ["d"], set(), [])
    progress = processes.run.progress()
    assert (progress.done, progress.bytes_out, progress.seconds) == ({"infer": 3}, {"infer": 7}, {"infer": 3.0})


def test_a_worker_that_ends_in_order_tells_the_rest_and_leaves_no_file(processes: Processes, tmp_path: Path) -> None:
    work_or_die(processes.start(), ["a", "b"], set(), [])
    assert processes.run.count_workers() == 1
    processes.end()
    assert processes.run.count_workers() == 0
    assert processes.run.progress().done == {"infer": 2}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_reader_opens_no_journal_and_its_counts_wait_for_the_flush(tmp_path: Path) -> None:
    processes = Processes(Ledger(), tmp_path)
    reader = pickle.loads(pickle.dumps(WorkerLedger(processes.run, list, dict)))
    reader.leave("read", ["a"], 0.25)
    reader.leave("read", ["b"], 0.25)
    reader.count_bytes_out("read", 5)
    reader.flush()
    progress = reader._run.progress()
    assert (progress.done, progress.seconds, progress.bytes_out) == ({"read": 2}, {"read": 0.5}, {"read": 5})
    assert reader._run.count_workers() == 0


HOLD_AND_DIE = """
import os, signal, sys
from pipeline.run.journal import Journal
from pipeline.run.ledger import Held
mine = Journal(sys.argv[1])
mine.write(Held("infer", ("a much longer key than the next ones",) * 3, "pid 1"))
mine.clear()
mine.write(Held("refine", ("ä", 'quote " and \\n line'), "pid 1"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_journal_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "journals" / "w"
    killed = subprocess.run([sys.executable, "-c", HOLD_AND_DIE, path], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert take_journal(str(path)) == Held("refine", ("ä", 'quote " and \n line'), "pid 1")
    assert take_journal(str(path)) == Held(), "a death is reported once"


def test_a_journal_is_for_its_owner_alone_and_is_no_link(tmp_path: Path) -> None:
    path = tmp_path / "journals" / "w"
    Journal(str(path)).write(Held("infer", ("a",), "pid 1"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Journal(str(tmp_path / "link"))
    assert (tmp_path / "elsewhere").read_text() == "kept"


@pytest.mark.parametrize("content", [None, b"", b"\n", b'["infer", ["a", "b', b'\n["infer", ["a"], "pid 1"]\n'])
def test_a_journal_that_is_missing_cleared_or_was_being_written_has_no_keys(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "w").write_bytes(content)
    assert take_journal(str(tmp_path / "w")) == Held()


def test_a_full_disk_is_an_error_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Journal(str(tmp_path / "w"))
    monkeypatch.setattr(os, "pwrite", lambda *_: 3)
    with pytest.raises(OSError, match=r"the disk of .*w is full"):
        mine.write(Held("infer", ("a",), "pid 1"))


def test_a_journal_says_what_json_says(tmp_path: Path) -> None:
    Journal(str(tmp_path / "w")).write(Held("infer", ("a", "b"), "pid 1"))
    assert json.loads((tmp_path / "w").read_text()) == ["infer", ["a", "b"], "pid 1"]
