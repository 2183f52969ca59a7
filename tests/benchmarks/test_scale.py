"""The made-up store holds what a real run would: its objects are read as those of a run, and add up."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.scale import __main__ as scale
from benchmarks.scale.store import PART_ROWS, RUN, SHARD_ROWS, Committed, MadeUpStore
from pipeline.run import footers, parts
from pipeline.store import objects


@pytest.fixture
def store() -> MadeUpStore:
    return MadeUpStore(Committed(rows=400 * PART_ROWS + 9, done=1.0, in_flight=0, unindexed=100), latency_s=0.0)


def test_index_objects_hold_the_footers_of_the_parts_that_they_name(store: MadeUpStore) -> None:
    with mock.patch.object(objects, "_backend", return_value=store):
        (name,) = footers.list_indexes(RUN)
        index = footers.read_index(RUN, name)
        some = [0, 3, 4, 200, 255]
        names = [index.names[at] for at in some]
        opened = footers.footers_of([parts.read_part_footer(RUN, part) for part in names])
    for indexed, read in zip(index.table.take(some).to_pylist(), opened.table.to_pylist(), strict=True):
        for row in (indexed, read):
            row["shards"].sort(key=lambda shard: shard["id"])
        assert indexed == read
    assert index.totals.rows == footers.INDEX_PARTS * PART_ROWS


@pytest.mark.parametrize("step", scale.STEPS)
def test_every_step_does_its_work_on_a_small_run(step: str) -> None:
    rows = 60 * PART_ROWS
    committed = Committed(rows, scale.DONE[step], min(scale.IN_FLIGHT[step], 5), unindexed=9)
    _, result = scale.timed_step(step, MadeUpStore(committed, latency_s=0.0))
    planned = -(-rows // SHARD_ROWS)
    if step == "resume":
        assert 5 <= result <= 15
    else:
        assert result == (planned if step == "plan" else rows)


def test_requests_take_their_time(store: MadeUpStore) -> None:
    with mock.patch("time.sleep") as sleep, mock.patch.object(objects, "_backend", return_value=store):
        parts.list_parts(RUN)
    assert sleep.call_count == 1
    assert store.requests == 1


def test_closing_of_a_folder_of_parts_is_timed(tmp_path: Path) -> None:
    script = str(Path(scale.__file__).parent / "closing.py")
    environment = {"PYTHONPATH": str(Path(scale.__file__).parents[2])}
    for step in ("write", "close"):
        command = [sys.executable, script, step, str(tmp_path / "run=0"), "9"]
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert json.loads(said)["seconds"] > 0
    assert json.loads((tmp_path / "run=0/_manifest.json").read_bytes())["rows"] == 9 * 256
