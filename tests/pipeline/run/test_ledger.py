import os
import random
import socket

import pytest

from pipeline.run.ledger import Ledger, work_guarded
from pipeline.source.left_out import LeftOut
from tests.support.dying_workers import WorkerDiedError, work_or_die


def until_it_survives(ledger: Ledger, batch: list[str], poison: set[str]) -> tuple[list[str], int, list[list[str]]]:
    """Retry `batch` in new workers until one survives, as Ray does."""
    tries: list[list[str]] = []
    for deaths in range(100):
        try:
            return work_or_die(ledger, batch, poison, tries), deaths, tries
        except WorkerDiedError:
            continue
    raise AssertionError("the batch never came through")


def test_what_a_shard_leaves_out_counts_once_however_often_it_is_read():
    ledger = Ledger()
    for shard in ("s1", "s2", "s1"):
        left_out = LeftOut()
        left_out.add(".pkl", f"{shard}.pkl")
        ledger.count_left_out(shard, left_out)
    assert str(ledger.progress().left_out) == "2 .pkl ('s1.pkl')"


def test_a_batch_without_poison_is_worked_on_once_and_together() -> None:
    results, deaths, tries = until_it_survives(Ledger(), ["a", "b", "c"], set())
    assert results == ["done a", "done b", "done c"]
    assert (deaths, tries) == (0, [["a", "b", "c"]])


def test_a_poison_key_costs_two_workers_and_its_neighbours_are_fine() -> None:
    results, deaths, _ = until_it_survives(Ledger(), ["a", "b", "c"], {"b"})
    assert results == ["done a", "crashed b", "done c"]
    assert deaths == 2


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_poison_every_key_ends_once_and_deaths_are_bounded(seed: int) -> None:
    rng = random.Random(seed)
    batch = [f"k{index}" for index in range(rng.randint(1, 12))]
    poison = set(rng.sample(batch, rng.randint(0, len(batch))))
    results, deaths, _ = until_it_survives(Ledger(), batch, poison)
    assert results == [f"crashed {key}" if key in poison else f"done {key}" for key in batch]
    assert deaths <= 1 + len(poison)


def test_a_key_that_died_once_is_tried_alone_never_with_others() -> None:
    _, _, tries = until_it_survives(Ledger(), ["a", "b", "c"], {"c"})
    assert tries[0] == ["a", "b", "c"]
    assert all(len(keys) == 1 for keys in tries[1:])


def test_stages_do_not_share_their_deaths() -> None:
    ledger = Ledger()
    ledger.enter("infer", ["a"], "w1")
    assert ledger.enter("refine", ["a"], "w2") == [[]]
    assert ledger.enter("infer", ["a"], "w3") == [["w1"]]


def test_a_failure_names_the_workers_that_died_with_its_key() -> None:
    ledger = Ledger()
    ledger.enter("infer", ["a", "b"], "pid 1 on north")
    ledger.enter("infer", ["a", "b"], "pid 2 on south")
    ledger.enter_alone("infer", "b", "pid 2 on south")
    (result,) = work_guarded(
        ledger, "infer", ["b"], key=str, work=list, seconds=lambda _: 1.0, failure_of=lambda key, dead: f"{key}: {dead}"
    )
    assert result == "b: pid 1 on north and pid 2 on south"
    assert ledger.progress().dead_workers == ("pid 1 on north", "pid 2 on south")


def test_counters_add_up() -> None:
    ledger = Ledger()
    until_it_survives(ledger, ["a", "b"], {"a"})
    ledger.count_bytes_out("infer", 100)
    ledger.count_bytes_out("infer", 20)
    ledger.commit(2, {"crashed": 1}, 0.5)
    progress = ledger.progress()
    assert progress.done == {"infer": 1, "write": 2}
    assert progress.bytes_out == {"infer": 120}
    assert (progress.committed, progress.failed, progress.deaths) == (2, {"crashed": 1}, 3)


def test_the_time_of_work_runs_from_the_first_key_to_the_last_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0, 150.0])
    monkeypatch.setattr("pipeline.run.ledger.monotonic", lambda: next(clock))
    ledger = Ledger()
    assert ledger.progress().working_s == 0
    ledger.enter("infer", ["a"], "w")
    ledger.enter("infer", ["b"], "w")
    assert ledger.progress().working_s == 0, "nothing is committed"
    ledger.commit(1, {}, 0.1)
    assert ledger.progress().working_s == 30
    ledger.commit(1, {}, 0.1)
    assert ledger.progress().working_s == 50


def test_seconds_and_keys_of_a_stage_are_those_of_all_batches() -> None:
    ledger = Ledger()
    for batch, seconds in (("ab", 0.25), ("c", 0.5)):
        ledger.enter("infer", list(batch), "w")
        ledger.leave("infer", list(batch), seconds)
    for rows, seconds in ((2, 0.125), (1, 1.0)):
        ledger.commit(rows, {"corrupt": rows}, seconds)
    progress = ledger.progress()
    assert progress.seconds == {"infer": 0.75, "write": 1.125}
    assert progress.done == {"infer": 3, "write": 3}
    assert (progress.committed, progress.failed) == (3, {"corrupt": 3})
    assert (progress.deaths, progress.dead_workers) == (0, ())


def test_the_seconds_of_a_batch_are_those_of_its_results() -> None:
    ledger = Ledger()
    work_guarded(ledger, "infer", [0.5, 0.25], key=str, work=list, seconds=float, failure_of=lambda key, _: key)
    assert ledger.progress().seconds == {"infer": 0.75}
    assert ledger.progress().done == {"infer": 2}


def test_progress_is_a_copy_that_later_work_leaves_as_it_is() -> None:
    ledger = Ledger()

    def work() -> None:
        ledger.enter("infer", ["a"], "w")
        ledger.leave("infer", ["a"], 1.0)
        ledger.count_bytes_out("infer", 1)
        ledger.commit(1, {"corrupt": 1}, 1.0)
        left_out = LeftOut()
        left_out.add(".pkl", "a.pkl")
        ledger.count_left_out(f"shard {len(seen)}", left_out)

    seen: list[object] = []
    work()
    seen.append(ledger.progress())
    before = repr(seen[0])
    work()
    assert repr(seen[0]) == before != repr(ledger.progress())


def test_a_ledger_started_anew_takes_back_keys_that_it_does_not_know() -> None:
    ledger = Ledger()
    ledger.leave("infer", ["a", "b"], 1.0)
    assert ledger.progress().done == {"infer": 2}


@pytest.mark.parametrize("answers", [[], ["a", "b", "c"]])
def test_work_that_gives_too_few_or_too_many_results_is_an_error_and_its_keys_stay_in_hand(answers: list[str]) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="zip"):
        work_guarded(
            ledger, "infer", ["a", "b"], key=str, work=lambda _: answers, seconds=lambda _: 1.0, failure_of=str.join
        )
    assert ledger.enter("infer", ["a"], "next") == [[f"pid {os.getpid()} on {socket.gethostname()}"]]


def test_deaths_are_told_to_the_caller_but_not_lent() -> None:
    ledger = Ledger()
    ledger.enter("infer", ["a"], "w1")
    (dead,) = ledger.enter("infer", ["a"], "w2")
    dead.clear()
    assert ledger.enter("infer", ["a"], "w3") == [["w1"]]  # a suspect is not in flight until it is entered alone


def test_a_suspect_is_entered_alone_and_in_the_name_of_its_worker() -> None:
    ledger, me = Ledger(), f"pid {os.getpid()} on {socket.gethostname()}"
    ledger.enter("infer", ["a", "b"], "w1")
    with pytest.raises(WorkerDiedError):
        work_or_die(ledger, ["a", "b"], {"b"}, tries := [])
    assert tries == [["a"], ["b"]]
    assert ledger.enter("infer", ["a", "b"], "w3") == [["w1"], ["w1", me]]
    assert ledger.progress().dead_workers == ("w1", me)
    assert ledger.progress().deaths == 3


def test_a_key_that_came_through_is_no_suspect_when_its_batch_comes_again() -> None:
    ledger, tries = Ledger(), []
    work_or_die(ledger, ["a", "b"], set(), tries)
    work_or_die(ledger, ["a", "b"], set(), tries)
    assert tries == [["a", "b"], ["a", "b"]]
