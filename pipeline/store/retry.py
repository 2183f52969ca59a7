"""Retries: policy, loop, and the classes of errors that decide whether a request is repeated.

A request goes in as a function without arguments; its result comes out, or one of the errors that `objects` lists. No
client retries on its own, so the attempts counted here are the requests that were sent.
"""

import errno
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import AccessDenied, StorageError, StorageTimeout
from pipeline.redact import redact
from pipeline.store.url import Url

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Capped exponential backoff with full jitter.

    M. Brooker, "Exponential Backoff And Jitter", aws.amazon.com/blogs/architecture, 2015.
    """

    attempts: int = 6
    """Most requests, the first included."""
    first_s: float = 0.2
    """Upper bound of the first pause; it doubles with every attempt."""
    longest_s: float = 8.0
    """Upper bound of any pause."""
    total_s: float = 40.0
    """Limit for all attempts, seconds: the third and later attempts start within this."""
    request_s: float = 30.0
    """Time limit of a request, seconds, in addition to the time for its bytes."""
    slowest_bytes_per_s: float = 256 * 1024
    """Slowest transfer, bytes per second; a slower one is cancelled and tried again."""

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait after `attempt` (1 is the first)."""
        return random.uniform(0, min(self.longest_s, self.first_s * 2 ** (attempt - 1)))  # noqa: S311

    def deadline_s(self, size: int) -> float:
        """Time limit of a request that moves `size` bytes, seconds."""
        return self.request_s + size / self.slowest_bytes_per_s


RETRY = RetryPolicy()
"""The policy of this process."""

_IAM = {"read": "s3:GetObject", "list": "s3:ListBucket", "write": "s3:PutObject", "delete": "s3:DeleteObject"}
_TRANSIENT = {408, 409, 429, 500, 502, 503, 504}
"""HTTP statuses worth a repeat. 409: two concurrent conditional PUTs (S3 docs, "Conditional writes")."""
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
"""botocore's errors for missing credentials; a metadata service under load causes them for a moment."""


def with_retries(verb: str, url: Url, request: Callable[[], T], refresh: Callable[[], None]) -> T:
    """Send a request until it succeeds or a repeat is pointless.

    Args:
        verb: `read`, `list`, `write` or `delete`, for the error.
        url: the object or folder, for the error.
        request: sends one request.
        refresh: fetches new credentials, called at most once, when the store answers that they are missing or expired.

    Raises:
        FileNotFoundError: the store answers that there is no such object.
        AccessDenied: 403, or credentials that stay refused after `refresh`.
        StorageError: a permanent error, or no attempt left (`StorageTimeout` when the last timed out).
    """
    began, attempt, refreshed = time.monotonic(), 0, False
    while True:
        attempt += 1
        try:
            return request()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(url)) from error
        except _client_errors() as error:
            pause_s = RETRY.pause_s(attempt)
            late = attempt > 1 and time.monotonic() - began + pause_s > RETRY.total_s
            if _needs_credentials(error) and not refreshed:
                refreshed = True
                refresh()
            elif _is_denied(error):
                raise _denied(verb, url, error) from error
            elif not _is_transient(error) or late or attempt >= RETRY.attempts:
                raise _gave_up(verb, url, error, attempt) from error
            time.sleep(pause_s)


def _client_errors() -> tuple[type[Exception], ...]:
    """OSError, and the errors of those clients that are loaded."""
    if "aiobotocore" not in sys.modules:
        return (OSError, *_broken_connections())
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    return (OSError, BotoCoreError, ClientError, *_broken_connections())


def _broken_connections() -> tuple[type[Exception], ...]:
    """Errors of the clients for a connection that broke before the whole answer arrived."""
    if "aiohttp" not in sys.modules:
        return ()
    from aiohttp import ClientError as HTTPError  # noqa: PLC0415

    if "aiobotocore" not in sys.modules:
        return (HTTPError,)
    from botocore import exceptions, parsers  # noqa: PLC0415

    return (
        HTTPError,
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        parsers.ResponseParserError,
    )


def answer(error: BaseException) -> tuple[int, str]:
    """HTTP status and error code of the store; (0, "") when it did not answer."""
    for raised in (error, error.__cause__):
        response = getattr(raised, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return status, response.get("Error", {}).get("Code", "")
        if status := getattr(raised, "status", 0):  # aiohttp
            return int(status), str(getattr(raised, "message", ""))
    return 0, ""


def _needs_credentials(error: Exception) -> bool:
    return answer(error)[1] in _EXPIRED or type(error).__name__ in _NO_CREDENTIALS


def _is_denied(error: Exception) -> bool:
    """True for 403, except for an archived object (Glacier): other objects may be readable."""
    archived = answer(error)[1] == "InvalidObjectState"
    return (isinstance(error, PermissionError) and not archived) or _needs_credentials(error)


def _is_transient(error: Exception) -> bool:
    """True when a repeat may help: by the status of the answer, or because the connection broke."""
    status, _ = answer(error)
    if status:
        return status in _TRANSIENT or isinstance(error, TimeoutError)
    return isinstance(error, (TimeoutError, ConnectionError, *_broken_connections()))


def _denied(verb: str, url: Url, error: Exception) -> AccessDenied:
    status, code = answer(error)
    if url.scheme == "s3" and type(error).__name__ in _NO_CREDENTIALS:
        hint = (
            "this process has no credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run "
        )
        hint += "it on a machine with a role; on a cluster every node needs them"
    elif url.scheme == "s3":
        hint = f"the credentials in use need {_IAM[verb]} here; check AWS_PROFILE or the role of this machine"
        if verb == "read":
            hint += " (without s3:ListBucket a missing object answers 403 too)"
    else:
        hint = f"give this user the right to {verb} it"
    answer_text = f"{status} {code}" if status else redact(str(error))
    return AccessDenied(f"cannot {verb} {url}: {answer_text}", hint=hint)


def _gave_up(verb: str, url: Url, error: Exception, attempts: int) -> StorageError:
    status, code = answer(error)
    timed_out = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
    if status:
        answer_text = f"{status} {code}"
    else:
        answer_text = "timed out" if timed_out else redact(f"{type(error).__name__}: {error}")
    kind = StorageTimeout if timed_out else StorageError
    return kind(f"cannot {verb} {url}: {answer_text}, {attempts} attempt{'s' if attempts > 1 else ''}")
