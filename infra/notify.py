"""Notification of the end of a job: its JSON line, posted to a URL of the user.

The URL of a webhook is a secret as a rule, since whoever has it can post: it is in no config, output or log line, and
messages name its host alone.
"""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

VARIABLE = "ATROUS_NOTIFY"
"""Environment variable that names the URL where no flag does; a command line is seen by all users of a machine."""
TIMEOUT_S = 10.0
"""Longest wait for the receiver, seconds, per attempt."""
ATTEMPTS = 3
PAUSE_S = 2.0
"""Pause before the second attempt, seconds; doubled before the third."""

_receiver: list[str] = []
"""URL that gets the JSON line of this process; empty without one."""


def configure(url: str | None) -> None:
    """Post the JSON line of this job to `url`, or to `ATROUS_NOTIFY`; without both, nowhere.

    Raises:
        ConfigError: the URL is not of http or https.
    """
    _receiver[:] = [given] if (given := url or os.environ.get(VARIABLE)) else []
    if given and (urlsplit(given).scheme not in ("http", "https") or not urlsplit(given).hostname):
        raise ConfigError("--notify is no http or https URL", hint="give one such as https://hooks.example.com/atrous")


def send(line: object) -> None:
    """POST a JSON line to the configured URL; a receiver that fails costs warnings, and never the job's status."""
    for url in _receiver:
        host = urlsplit(url).hostname
        for attempt in range(ATTEMPTS):
            try:
                _post(url, json.dumps(line).encode())
            except (OSError, ValueError) as error:
                reason = f"status {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
                log.warning("could not notify %s: %s, attempt %d of %d", host, reason, attempt + 1, ATTEMPTS)
                if attempt + 1 < ATTEMPTS:
                    time.sleep(PAUSE_S * 2**attempt)
            else:
                log.info("notified %s", host)
                break


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would turn the POST into a GET, at an address that the user did not name."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """No request: the redirect becomes an `HTTPError`."""


def _post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "atrous"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310 - configure checks it
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S) as answer:
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise ValueError(f"status {answer.status}")
