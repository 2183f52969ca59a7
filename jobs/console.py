"""Console output of every job: changed settings as log lines on stderr, the summary as one JSON line on stdout."""

import json
import logging
import os
import select
import sys
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from infra import notify

log = logging.getLogger(__name__)


def print_json(summary: object) -> None:
    """Print the JSON line of a job on stdout, after everything on stderr; also post it where `--notify` says."""
    notify.send(summary)
    sys.stderr.flush()
    print(json.dumps(summary), flush=True)


def log_changed_settings(cfg: BaseModel, *, known: Collection[str] = ()) -> None:
    """Log the settings that differ from their defaults, a line for each group, without those in `known`."""
    changes = [change for change in changed_settings(cfg) if change.partition(" ")[0] not in known]
    for _, group in groupby(changes, key=lambda change: change.partition(" ")[0].rpartition(".")[0]):
        log.info("settings: %s", ", ".join(group))


def changed_settings(cfg: BaseModel) -> list[str]:
    """`name default -> value` of every setting that differs from its default, in the order of the fields.

    Required settings have no default and are left out.
    """
    fields = {name: field for name, field in type(cfg).model_fields.items() if not field.is_required()}
    defaults = type(cfg).model_construct(
        **{name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    )
    before = dict(_flat(defaults.model_dump(mode="json", include=set(fields))))
    after = dict(_flat(cfg.model_dump(mode="json", include=set(fields))))
    names = [*after, *(name for name in before if name not in after)]
    pairs = ((name, before.get(name, PydanticUndefined), after.get(name, PydanticUndefined)) for name in names)
    return [f"{name} {_plain(default)} -> {_plain(value)}" for name, default, value in pairs if default != value]


def _flat(data: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of the values in nested mappings; an empty mapping has none."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _plain(value: Any) -> str:
    """Format a value on one line: text unchanged, everything else as JSON."""
    if value is None or value is PydanticUndefined:
        return "unset"
    return value if isinstance(value, str) and value and value.isprintable() else json.dumps(value, ensure_ascii=False)


def reader_is_gone() -> bool:
    """True when what reads stdout through a pipe, such as `head`, has closed it."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in pipe.poll(0))


def silence_stdout() -> None:
    """Send to nowhere what is still printed, since nobody reads it: the flush at exit then succeeds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
