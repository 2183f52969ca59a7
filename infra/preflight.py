"""Preflight checks of output and cluster, before a job reserves a GPU."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence

from pipeline.errors import ConfigError
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)


SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the entrypoint of a submitted job."""


def check_reachable(urls: Iterable[Url]) -> None:
    """Refuse relative paths in a submitted job: its working directory is a copy that Ray deletes.

    Raises:
        ConfigError: names the path and what it would mean.
    """
    if SUBMITTED not in os.environ:
        return
    for url in urls:
        if url.scheme == "file" and not os.path.isabs(url.raw):
            seen = f"{url} is a relative path in a submitted job: it would be {url.place}, in a copy that Ray deletes"
            hint = (
                "give a URL that every node reaches, such as s3://bucket/folder, or an absolute path of a shared disk"
            )
            raise ConfigError(seen, hint=hint)


def warn_of_local_output(output: Url, nodes: Sequence[Mapping[str, float]]) -> None:
    """Warn when workers on several nodes write to a local path, which is another disk on each."""
    workers = sum(bool(node.get("CPU")) for node in nodes)
    if output.scheme == "file" and workers > 1:
        log.warning("%s is a local path, and %d nodes write to it: all of them must share that disk", output, workers)


def check_apart(sources: Sequence[Url], output: Url) -> None:
    """Refuse an output inside a source: the next run would read masks and reports as images.

    Raises:
        ConfigError: the output is inside a source, names both; or as `check_reachable`.
    """
    check_reachable([*sources, output])
    for source in sources:
        if _folder(output).startswith(_folder(source)):
            message = f"the output {output} lies inside the source {source}"
            raise ConfigError(message, hint="choose an --output beside the source")


def _folder(url: Url) -> str:
    """The place of a folder, ending in a slash."""
    return url.place.rstrip("/") + "/"


def check_output(url: Url) -> None:
    """Write, read and delete a small object in the output.

    Warns when the store has no put-if-absent, since then two drivers could work on the same run.

    Raises:
        StorageError: the output cannot be written.
    """
    if not objects.supports_put_if_absent(url):
        log.warning("this store ignores If-None-Match: make sure that only one driver works on %s", url)


def check_authentication() -> None:
    """Refuse a shared cluster without token authentication.

    Raises:
        ConfigError: RAY_AUTH_MODE is `disabled` for a cluster that others can reach.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") == "disabled" and "RAY_ADDRESS" in os.environ:
        hint = "start the cluster with RAY_AUTH_MODE=token; see docs/SECURITY.md"
        raise ConfigError(
            "Ray's token authentication is disabled: anyone who reaches the cluster can control it", hint=hint
        )
