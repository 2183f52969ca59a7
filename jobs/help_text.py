"""Help of a job: the required settings and those a job marks with `shown`, or with `--help-all` every setting.

tyro, which is also the parser, renders both: the short one from a config that is reduced to the fields it shows.
Everything is wrapped to the terminal, at most at `MAX_WIDTH`, and read from COLUMNS where there is no terminal.
"""

import argparse
import io
import os
import re
import shutil
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import make_dataclass
from typing import Annotated, Any, NoReturn, get_type_hints

import tyro
from pydantic import BaseModel, Field, create_model

_HERE = "(description)"
"""Stands where the description goes: tyro would join its lines, those of commands too."""
MAX_WIDTH = 120
"""Columns of help at most, however wide the terminal is: tyro sets two columns of boxes in a wider one."""


class WrappedFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves the description as it is, and wraps all else at `MAX_WIDTH`, or the terminal's width if that is less."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, MAX_WIDTH) - 2)


def print_help(arguments: type[Any], description: str, *, program: str, shown: Sequence[str] | None) -> NoReturn:
    """Print the help of a job and end the process.

    Args:
        arguments: dataclass of the job's flags, those of its config as `cfg`.
        description: what the job does; indented lines are commands.
        program: how the job was started.
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
    except BrokenPipeError:  # `--help | head`: nobody reads on, and Python is not to flush to nobody either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def _reduced(kind: type[BaseModel], names: Iterable[str]) -> type[BaseModel]:
    """The config with no other settings than those of the dotted names: what tyro shows as short help."""
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
    """A description wrapped to the terminal. An indented line is a command: it goes on after a backslash."""
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
    """Let tyro and argparse see a terminal of `MAX_WIDTH` columns where it is wider; they read COLUMNS."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, MAX_WIDTH))
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        os.environ |= {"COLUMNS": before} if before is not None else {}
