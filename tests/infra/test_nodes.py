import os
import subprocess
import sys
from dataclasses import replace

import pytest

from infra import nodes
from infra.nodes import NodeFacts, compare_nodes
from pipeline.config import RefineConfig
from pipeline.errors import ConfigError
from pipeline.refine import native
from tests import ROOT
from tests.support import ray_servers

HERE = NodeFacts("head", {"python": "3.11.2", "torch": "2.13.0"}, substituted=None)


def test_nodes_like_the_drivers_pass_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    compare_nodes(HERE, [replace(HERE, host="a"), replace(HERE, host="b")])
    assert caplog.text == ""


def test_a_node_without_the_runs_engine_is_refused_by_name() -> None:
    lacking = replace(HERE, host="worker-7", substituted="torch in place of native (not built)")
    with pytest.raises(ConfigError, match=r"1 of 2 node\(s\) lack the run's refine engine, first worker-7.*not built"):
        compare_nodes(HERE, [HERE, lacking])


def test_other_versions_are_a_warning_with_both(caplog: pytest.LogCaptureFixture) -> None:
    compare_nodes(HERE, [replace(HERE, host="worker-7", versions={"python": "3.11.2", "torch": "2.12.0"})])
    assert "node worker-7 differs from this driver's: torch 2.12.0, here 2.13.0" in caplog.text


def test_a_node_says_which_engine_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes.describe_node(RefineConfig(engine="torch")).substituted is None
    monkeypatch.setattr(native, "available", lambda: False)
    assert "torch in place of native" in nodes.describe_node(RefineConfig(engine="native")).substituted
    assert nodes.describe_node(RefineConfig(engine="none")).substituted is None


def test_a_node_says_its_versions() -> None:
    assert set(nodes.describe_node(RefineConfig()).versions) == {"python", *nodes.COMPARED_PACKAGES}


@pytest.mark.ray
def test_every_node_of_a_cluster_answers_for_itself() -> None:
    answers = """
from infra import nodes, session
from pipeline.config import RefineConfig
nodes.compare_nodes = lambda here, all_nodes: print("answers", len(all_nodes), {node == here for node in all_nodes})
with session.connect():
    nodes.check_nodes(RefineConfig())
"""
    with ray_servers.cluster(num_cpus=1, PYTHONPATH=str(ROOT)) as cluster, ray_servers.node(cluster):
        environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT)}
        asked = subprocess.run([sys.executable, "-c", answers], env=environment, capture_output=True, text=True)
    assert asked.stdout.splitlines()[-1:] == ["answers 2 {True}"], asked.stderr
