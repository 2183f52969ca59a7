"""A soak of a minute: `python -m tests.soak.soak` has all scenarios and many more kills."""

from pathlib import Path

import pytest

from tests.soak import scenarios
from tests.soak.collection import Images, write_images
from tests.soak.disturbed import FLAGS
from tests.support import ray_servers
from tests.support.drivers import flags_for, forked, rows_in
from tests.support.forked import ForkServer
from tests.support.ray_servers import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults]

IMAGES, KILLS = 60, 3


@pytest.fixture(scope="module")
def images(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Images, some of them damaged, and their rows by a run without Ray."""
    folder = tmp_path_factory.mktemp("soak")
    write_images(folder / "in", IMAGES, size_px=64, seed=3)
    outcome = forked(forks, *flags_for(folder / "in", folder / "out"), *FLAGS)
    assert outcome.status == 0, outcome.log
    return Images(folder / "in", rows_in(outcome.run))


def test_a_run_on_two_nodes_of_which_processes_die_at_random_ends_as_an_undisturbed_one(
    images: Images, ray_cluster: Cluster, tmp_path: Path
) -> None:
    with ray_servers.node(ray_cluster):
        report = scenarios.killed(images, ray_cluster, tmp_path / "out", kills=KILLS, seed=5, longest_s=1)
    assert report.problems == []
    assert report.rows >= IMAGES  # a quick run may be finished before the last kill, and is followed by another
    assert sum(count for name, count in report.figures.items() if name.startswith("killed")) == KILLS
