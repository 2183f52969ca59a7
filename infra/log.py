"""Logging of a job: lines of text for people, or JSON objects, without credentials.

Records of any logger go in, lines on stderr come out; stdout is left to the output of a job. Lines have no colour:
they appear in terminals, in `ray job logs` and in files.
"""

import json
import logging
import sys
import time
from types import TracebackType
from typing import Any, Literal

from pipeline.redact import redact

OURS = ("pipeline", "infra", "jobs", "__main__")
"""Loggers shown from level INFO; all others, Ray included, are shown from WARNING."""

NOISY = ("PIL", "ray.data._internal.progress", "ray._private.authentication")
"""Loggers shown from level ERROR: they warn of broken EXIF in photos, or of progress bars that we switched off."""

_NAME = "atrous"
_HUMAN = "%(asctime)s %(levelname)-8s %(message)s"
_TRACEBACKS = logging.Formatter()


class _JsonLines(logging.Formatter):
    """Formatter of JSON lines: time (UTC, ISO 8601), level, logger, message, and traceback if there is one."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            fields["exception"] = record.exc_text
        return json.dumps(fields)


def configure(log_format: Literal["human", "json"] = "human") -> None:
    """Log to stderr, and redact every record for all handlers; a second call replaces the format.

    A job calls it once, after `pipeline.run.flow` is imported. Workers keep Python's default logging, in files on their
    nodes; there the pipeline redacts its own errors and messages about a store.
    """
    _redact_records()
    sys.excepthook = _log_uncaught
    handler = logging.StreamHandler()
    handler.set_name(_NAME)
    handler.setFormatter(_JsonLines() if log_format == "json" else logging.Formatter(_HUMAN, "%H:%M:%S"))
    handler.addFilter(_is_shown)
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if other.get_name() != _NAME] + [handler]
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("ray", "ray.data"):
        _silence_console(logging.getLogger(name))


def _is_shown(record: logging.LogRecord) -> bool:
    """Filter by level. Ray Data sets `hide` on records that it shows elsewhere."""
    ours = record.name.partition(".")[0] in OURS
    return record.levelno >= (logging.INFO if ours else logging.WARNING) and not getattr(record, "hide", False)


def _silence_console(logger: logging.Logger) -> None:
    """Remove Ray's console handler, so that its lines appear once, in our format; its log files stay."""
    logger.handlers = [handler for handler in logger.handlers if type(handler).__name__ != "PlainRayHandler"]
    logger.propagate = True


def _redact_records() -> None:
    """Redact records when they are created, so that Ray's own log files are redacted too."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        # Redact the formatted message: a secret may be split between the format and its arguments.
        record.msg, record.args = redact(_message(record)), None
        if record.exc_info and record.exc_info[0]:
            record.exc_text = redact(_TRACEBACKS.formatException(record.exc_info))
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # the arguments do not fit the format: log both as they are
        return f"{record.msg} {record.args}"


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an error that ends the process, redacted, in place of the interpreter's own report."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("jobs").critical("stopped by an error", exc_info=(kind, error, trace))
