"""Preflight checks of output and cluster, before a job reserves a GPU."""

import logging
import os
from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)


def check_apart(sources: Sequence[Url], output: Url) -> None:
    """Refuse an output inside a source: the next run would read masks and reports as images.

    Raises:
        ConfigError: the output is inside a source; names both.
    """
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
