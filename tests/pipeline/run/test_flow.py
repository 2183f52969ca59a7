"""Distribution of shards over read tasks, and journals of other nodes; the tests of the jobs show the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run import flow
from pipeline.run.flow import MAX_READ_TASKS, TaskSource
from tests import ROOT
from tests.support import ray_servers
from tests.support.ray_servers import Cluster


@pytest.mark.parametrize("count", [1, 7, MAX_READ_TASKS, 2 * MAX_READ_TASKS + 1])
def test_every_unit_is_done_by_exactly_one_of_not_too_many_tasks(count: int) -> None:
    done: list[int] = []
    tasks = TaskSource("count", range(count), done.append).get_read_tasks(1)
    assert len(tasks) <= MAX_READ_TASKS
    said = sum(len(block) for task in tasks for block in task())
    assert said == count
    assert sorted(done) == list(range(count))


def test_the_settings_of_ray_data_are_ours_only_while_they_are_used() -> None:
    before = flow.DataContext.get_current().target_max_block_size
    with flow._ray_data_settings(block_mib=1.5):
        assert flow.DataContext.get_current().target_max_block_size == 1.5 * 2**20
    assert flow.DataContext.get_current().target_max_block_size == before


LARGE_UNITS = """
import sys
from pathlib import Path
from infra import session
from pipeline.run import flow
with session.connect():
    flow.run_tasks("write", [(sys.argv[1], "x" * 2**21)], lambda unit: Path(unit[0]).write_text(unit[1]), deaths=1)
"""


@pytest.mark.ray
def test_a_unit_may_be_large_as_the_shapes_of_many_annotated_images_are(ray_cluster: Cluster, tmp_path: Path) -> None:
    environment = {**os.environ, **ray_cluster.environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LARGE_UNITS, str(tmp_path / "written")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "written").stat().st_size == 2**21
    assert "serialized size" not in done.stderr


TAKE_FROM_A_NODE = """
import os, signal, sys
import ray
from infra import session
from pipeline.run import flow
from pipeline.run.journal import Journal
from pipeline.run.ledger import Held, Place
with session.connect():
    here = ray.get_runtime_context().get_node_id()
    (there,) = (node["NodeID"] for node in ray.nodes() if node["NodeID"] != here)
    place = Place("w", there, sys.argv[1])
    Journal(place.journal).write(Held("infer", ("a", "b"), "pid 1"))
    print("took", flow._take_journal_from(place).keys, flow._take_journal_from(place).keys)
    Journal(place.journal).write(Held("infer", ("c",), "pid 1"))
    os.killpg(int(sys.argv[2]), signal.SIGKILL)
    print("took", flow._take_journal_from(place))
"""


@pytest.mark.ray
@pytest.mark.faults
def test_a_journal_on_another_node_is_taken_there_and_that_of_a_lost_node_is_lost(tmp_path: Path) -> None:
    with ray_servers.cluster(num_cpus=1, PYTHONPATH=str(ROOT)) as cluster, ray_servers.node(cluster) as lost:
        environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", TAKE_FROM_A_NODE, str(tmp_path / "journal"), str(lost.pid)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    took = [line for line in done.stdout.splitlines() if line.startswith("took")]  # Ray says more
    assert took == ["took ('a', 'b') ()", "took None"], done.stderr
