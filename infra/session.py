"""Connection to Ray: the cluster that a job was submitted to, or a local cluster of this process."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import ray

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 2 * 2**30
"""Object store of a local cluster, bytes: it holds only encoded images and small logits."""


@contextmanager
def connect() -> Generator[list[dict[str, float]]]:
    """Connect to Ray while the block lasts; yields the resources of each live node, by name.

    `ray job submit` and RAY_ADDRESS select an existing cluster. Without them a local cluster is started; a cluster that
    happens to run on the machine is never joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Messages of Ray's C++ core are for its developers; its log files keep them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # No runtime_env: it would make Ray start every worker anew instead of using its idle workers.
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
