"""What can be known to fail is found out before any GPU is asked for."""

import logging
import os

from pipeline import storage
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)


def check_output(url: str) -> None:
    """Write, read and delete a small object in the output.

    Warns when the store has no put-if-absent, since nothing then keeps two drivers apart.

    Raises:
        StorageError: when the output cannot be written.
    """
    if not storage.supports_put_if_absent(url):
        log.warning("this store ignores If-None-Match: make sure that only one driver works on %s", url)


def check_authentication() -> None:
    """Refuse a shared cluster without token authentication.

    Raises:
        ConfigError: when RAY_AUTH_MODE is switched off for a cluster that others can reach.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") == "disabled" and "RAY_ADDRESS" in os.environ:
        hint = "start the cluster with RAY_AUTH_MODE=token; see SECURITY.md"
        raise ConfigError("Ray's token authentication is disabled: anyone who reaches the cluster owns it", hint=hint)
