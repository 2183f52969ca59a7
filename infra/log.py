"""Log lines of a job: for a person, or one JSON object each; never with a credential in them.

Records of any logger go in, lines on stderr come out; stdout stays free for what a job was asked to print. There is no
colour: the same lines are read in terminals, by `ray job logs` and in files, and NO_COLOR is honoured by itself.
"""

import json
import logging
import sys
import time
from types import TracebackType
from typing import Any, Literal

from pipeline.redact import redact

OURS = ("pipeline", "infra", "jobs", "__main__")
"""Loggers that are heard from INFO on; everybody else, Ray included, from WARNING on."""

NOISY = ("PIL", "ray.data._internal.progress", "ray._private.authentication")
"""Loggers of which only errors are news: broken EXIF in somebody's photo, bars that we switched off ourselves."""

_NAME = "atrous"
_HUMAN = "%(asctime)s %(levelname)-8s %(message)s"
_TRACEBACKS = logging.Formatter()


class _JsonLines(logging.Formatter):
    """Time (UTC, ISO 8601), level, logger and message of a record, and its traceback if there is one."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            said["exception"] = record.exc_text
        return json.dumps(said)


def configure(log_format: Literal["human", "json"] = "human") -> None:
    """Write this process's log to stderr and redact every record, for whatever handler. Again: replace the format.

    A job calls it once, after `pipeline.run.flow` is imported. Workers keep Python's own logging, in files on their
    nodes: what the pipeline raises and logs about a store is redacted where it is made.
    """
    _redact_records()
    sys.excepthook = _log_uncaught
    handler = logging.StreamHandler()
    handler.set_name(_NAME)
    handler.setFormatter(_JsonLines() if log_format == "json" else logging.Formatter(_HUMAN, "%H:%M:%S"))
    handler.addFilter(_is_heard)
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if one.get_name() != _NAME] + [handler]
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("ray", "ray.data"):
        _silence_console(logging.getLogger(name))


def _is_heard(record: logging.LogRecord) -> bool:
    """Ray Data marks what it has shown in another way with `hide`."""
    ours = record.name.partition(".")[0] in OURS
    return record.levelno >= (logging.INFO if ours else logging.WARNING) and not getattr(record, "hide", False)


def _silence_console(logger: logging.Logger) -> None:
    """Let Ray's lines come out once and in our format; its log files stay."""
    logger.handlers = [one for one in logger.handlers if type(one).__name__ != "PlainRayHandler"]
    logger.propagate = True


def _redact_records() -> None:
    """Redact where records are made, not where they are written: Ray's own log files get the same text as we do."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        # The finished message, not its parts: a secret may be spread over the format and its arguments.
        record.msg, record.args = redact(_message(record)), None
        if record.exc_info and record.exc_info[0]:
            record.exc_text = redact(_TRACEBACKS.formatException(record.exc_info))
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # format and arguments do not fit: still say both
        return f"{record.msg} {record.args}"


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The interpreter's own report of an error that ends the process would not be redacted."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("jobs").critical("stopped by an error", exc_info=(kind, error, trace))
