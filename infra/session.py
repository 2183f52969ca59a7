"""Connection to Ray: the cluster that a job was submitted to, or a local cluster of this process."""

import logging
import math
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from pipeline.errors import ConfigError, JobError

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 2 * 2**30
"""Object store of a local cluster, bytes: it holds only encoded images and small logits."""

IDLE_WORKER_MS = 60_000
"""Life of a worker without work in a local cluster, milliseconds."""
RESOURCE_POLL_S = 1.0
"""Interval of looking for an expected resource, seconds."""
WAIT_LOG_S = 30.0
"""Interval of log lines while waiting for it, seconds."""


@contextmanager
def connect(*, dashboard: bool = False) -> Generator[list[dict[str, float]]]:
    """Connect to Ray while the block lasts; yields the resources of each live node, by name.

    `ray job submit` and RAY_ADDRESS select an existing cluster. Without them a local cluster is started; a cluster that
    happens to run on the machine is never joined. Inside another `connect` it is that one's cluster.

    Args:
        dashboard: start Ray's dashboard with a local cluster, on 127.0.0.1 alone; an existing cluster has its own.
    """
    if ray.is_initialized():
        yield _alive_nodes()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Messages of Ray's C++ core are for its developers; its log files keep them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Workers of a local cluster that have been idle for a second would be ended, and started anew for the last writes.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_WORKER_MS))
    # No runtime_env: it would make Ray start every worker anew instead of using its idle workers.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**options)
    else:
        store = min(OBJECT_STORE_BYTES, int(0.2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
        context = ray.init(
            address="local",
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=store,
            **options,
        )
        if dashboard:
            log.info("Ray's dashboard: http://%s, which asks for the token in ~/.ray/auth_token", context.dashboard_url)
    try:
        log.info("Ray %s with %s", ray.__version__, _describe(ray.cluster_resources()))
        log.info("logs of the workers: %s on each node", worker_logs())
        yield _alive_nodes()
    finally:
        ray.shutdown()


def _alive_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def worker_logs() -> str:
    """Folder of the logs of Ray's workers, the same path on each node; a file's name ends in the worker's pid."""
    context = ray.get_runtime_context()
    return f"{context.get_temp_dir()}/{context.get_session_name()}/logs"


def wait_for_expected(expected: Mapping[str, float | None], *, limit_s: float) -> None:
    """Wait until the cluster has one of each expected resource, which asks its autoscaler for a first node.

    A job that starts Ray itself is refused at once what this machine lacks: nothing scales up there.

    Args:
        expected: number of each resource by Ray's name, `CPU` and `GPU`; None and 0 expect none.
        limit_s: longest wait, seconds.

    Raises:
        ConfigError: this job's own Ray has fewer than expected.
        JobError: the cluster had none within the limit.
    """
    wanted = {name: number for name, number in expected.items() if number}
    if not wanted:
        return
    if "RAY_ADDRESS" not in os.environ:
        _refuse_missing(wanted)
    if not (missing := _missing(wanted)):
        return
    request_resources(bundles=[dict.fromkeys(missing, 1)])
    deadline, logged = time.monotonic() + limit_s, -math.inf
    try:
        while missing := _missing(wanted):
            state = ", ".join(f"1 {name}, the cluster has 0" for name in missing)
            if time.monotonic() > deadline:
                hint = "start a node that has it, raise --runtime.start-limit-s, or leave out --runtime.expect-*"
                raise JobError(f"waited {limit_s:g} s for {state}", hint=hint)
            if time.monotonic() - logged > WAIT_LOG_S:
                logged = time.monotonic()
                log.info("waiting for %s", state)
            time.sleep(RESOURCE_POLL_S)
    finally:
        request_resources(bundles=[])


def _missing(wanted: Mapping[str, float]) -> list[str]:
    return [name for name in wanted if not ray.cluster_resources().get(name)]


def _refuse_missing(wanted: Mapping[str, float]) -> None:
    resources = ray.cluster_resources()
    for name, number in wanted.items():
        if resources.get(name, 0) < number:
            option = f"--runtime.expect-{name.lower()}s {number:g}"
            message = (
                f"{option}: this job started Ray on this machine alone, which has {resources.get(name, 0):g} {name}"
            )
            raise ConfigError(message, hint="leave the option out, or submit the job to a cluster that scales up")


def _describe(resources: dict[str, float]) -> str:
    memory = resources.get("memory", 0) / 2**30
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU, {memory:.1f} GiB"
