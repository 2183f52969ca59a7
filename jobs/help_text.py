"""Help text of a job: required settings and those in its `shown`; with `--help-all` every setting.

tyro, which is also the parser, renders both, the short text from a config class reduced to the fields shown. Text is
wrapped to the width of the terminal, or of COLUMNS where there is none, and to `MAX_WIDTH` at most.
"""

import argparse
import io
import os
import re
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import make_dataclass
from typing import Annotated, Any, NoReturn, get_type_hints

import tyro
from pydantic import BaseModel, Field, create_model

from jobs import console

_HERE = "(description)"
"""Placeholder of the description while tyro renders: tyro would join its lines, also those of commands."""
MAX_WIDTH = 120
"""Largest width of help, columns: in a wider terminal tyro puts boxes side by side."""


class WrappedFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter that keeps the description, and wraps the rest to the terminal, at most at `MAX_WIDTH`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, MAX_WIDTH) - 2)


def print_help(arguments: type[Any], description: str, *, program: str, shown: Sequence[str] | None) -> NoReturn:
    """Print the help of a job and end the process.

    Args:
        arguments: dataclass of the job's flags, those of its config as `cfg`.
        description: what the job does; indented lines are commands.
        program: name of the program, as by `command_line.program`.
        shown: dotted names of the settings to show beside the required ones; None shows all.
    """
    kind = get_type_hints(arguments)["cfg"]
    if shown is not None:
        required = [name for name, field in kind.model_fields.items() if field.is_required()]
        description = f"{description.rstrip()}\n\nThese flags are what most runs set; --help-all shows every setting."
        chosen = Annotated[_reduced(kind, [*required, *shown]), tyro.conf.arg(name="")]
        arguments = make_dataclass(arguments.__name__, [("cfg", chosen)], bases=(arguments,), frozen=True)
    text = io.StringIO()
    with narrow(), redirect_stdout(text), suppress(SystemExit):
        tyro.cli(arguments, prog=program, args=["--help"], description=_HERE)
    lines = text.getvalue().replace(_HERE, wrapped(description), 1).splitlines()
    try:  # lines are padded to the width of their box
        print("\n".join(map(str.rstrip, lines)), flush=True)
    except BrokenPipeError:
        console.silence_stdout()
    raise SystemExit(0)


def _reduced(kind: type[BaseModel], names: Iterable[str]) -> type[BaseModel]:
    """Config class reduced to the settings of these dotted names; tyro renders it as short help."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        head, _, rest = name.partition(".")
        groups[head].append(rest)
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if groups.get(name) == [""]:
            fields[name] = (field.annotation, field)
        elif name in groups:
            inner = _reduced(field.annotation, groups[name])  # type: ignore[arg-type]  # a group is a model
            fields[name] = (inner, Field(inner(), description=field.description))
    return create_model(kind.__name__, __doc__=kind.__doc__, **fields)


def wrapped(text: str) -> str:
    """Wrap a description to the terminal; an indented line is a command and is continued with a backslash."""
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    blocks = []
    for block in textwrap.dedent(text).strip("\n").split("\n\n"):
        lines = block.splitlines()
        if any(line.startswith(" ") for line in lines):
            blocks.append("\n".join(_wrapped_command(line, width) for line in lines))
        else:
            blocks.append(textwrap.fill(" ".join(lines), width, break_on_hyphens=False))
    return "\n\n".join(blocks)


def _wrapped_command(line: str, width: int) -> str:
    line = re.sub(r"(?<=\S) +", " ", line)
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    options = {"subsequent_indent": indent, "break_long_words": False, "break_on_hyphens": False}
    return " \\\n".join(textwrap.wrap(line, width - 2, **options)) if len(line) > width else line  # type: ignore[arg-type]


@contextmanager
def narrow() -> Iterator[None]:
    """Limit the terminal's width to `MAX_WIDTH` columns for tyro and argparse, by the variable COLUMNS."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, MAX_WIDTH))
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        os.environ |= {"COLUMNS": before} if before is not None else {}
