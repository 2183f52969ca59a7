"""The connection to Ray: the cluster a job was submitted to, or a local one for this process alone."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import ray

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 2 * 2**30
"""Of a local cluster. Only encoded images and small logits pass through it."""


@contextmanager
def connect() -> Generator[list[dict[str, float]]]:
    """Connect for as long as the block lasts; yields the resources of every node that is alive, by name.

    `ray job submit` and RAY_ADDRESS lead to an existing cluster. Without them a local one is started, never joined:
    a job must not land on whatever cluster happens to run on the machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What Ray's C++ core writes to stderr is for Ray's authors; its log files keep it.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # No runtime_env: with one, every worker would be started afresh instead of taken from those Ray keeps ready.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**options)
    else:
        store = min(OBJECT_STORE_BYTES, int(0.2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
        ray.init(address="local", include_dashboard=False, object_store_memory=store, **options)
    try:
        log.info("Ray %s with %s", ray.__version__, _describe(ray.cluster_resources()))
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def _describe(resources: dict[str, float]) -> str:
    memory = resources.get("memory", 0) / 2**30
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU, {memory:.1f} GiB"
