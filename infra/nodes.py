"""Comparison of a cluster's nodes with the driver: the same code, packages and CRF engine on each.

A node with another version writes other masks into the same run, and one without the compiled CRF kills its refiners.
Nodes that an autoscaler adds later are not seen.
"""

import logging
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import RefineConfig
from pipeline.errors import ConfigError
from pipeline.refine.engine import substitution

log = logging.getLogger(__name__)

COMPARED_PACKAGES = ("atrous", "numpy", "pillow", "pyarrow", "pydensecrf2", "simplejpeg", "torch")
"""Packages whose versions can change a mask or a row."""
ANSWER_S = 120.0
"""Longest wait for the answers of all nodes, seconds."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What one node would run with."""

    host: str
    versions: dict[str, str]
    substituted: str | None
    """Engine that would take the place of the run's there, and why; None where the run's engine is there."""


def describe_node(refine: RefineConfig) -> NodeFacts:
    """Facts of the node that this process runs on."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in COMPARED_PACKAGES}
    return NodeFacts(socket.gethostname(), versions, substitution(refine))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def check_nodes(refine: RefineConfig) -> None:
    """Ask every node that can run work for its facts, and compare them with the driver's.

    Raises:
        ConfigError: a node lacks the refine engine of the run.
    """
    task = ray.remote(num_cpus=0)(describe_node)
    ids = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    placed = [NodeAffinitySchedulingStrategy(node_id, soft=False) for node_id in ids]
    answers = {
        task.options(scheduling_strategy=place).remote(refine): node for node, place in zip(ids, placed, strict=True)
    }
    ready, late = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_S)
    if late:
        log.warning("%d of %d nodes gave no answer within %g s: not compared", len(late), len(answers), ANSWER_S)
    compare_nodes(describe_node(refine), [facts for facts in map(_answer, ready) if facts])


def _answer(reference: "ray.ObjectRef[NodeFacts]") -> NodeFacts | None:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:  # the node was lost since it was listed
        log.warning("a node was not compared: %s", error)
        return None


def compare_nodes(here: NodeFacts, nodes: Sequence[NodeFacts]) -> None:
    """Refuse nodes without the engine of the run, and warn of other versions; see `check_nodes`."""
    if lacking := [node for node in nodes if node.substituted]:
        message = f"{len(lacking)} of {len(nodes)} node(s) lack the run's refine engine, first {lacking[0].host}"
        hint = "install the package there as on the driver's node (infra/Dockerfile), or give --refine.engine torch"
        raise ConfigError(f"{message}: {lacking[0].substituted}", hint=hint)
    for node in nodes:
        if differing := _differences(here.versions, node.versions):
            log.warning("node %s differs from this driver's: %s", node.host, differing)


def _differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {there[name]}, here {mine}" for name, mine in here.items() if there[name] != mine)
