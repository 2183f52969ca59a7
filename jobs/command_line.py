"""Command line of a job: a validated config. Flags override the file of `--config`, which overrides defaults.

Neither torch nor Ray is imported here, so that help appears at once.
"""

import argparse
import atexit
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, get_type_hints

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from infra import notify
from jobs import console
from jobs.help_text import WrappedFormatter, narrow, print_help, wrapped
from pipeline.config import explain, read_yaml
from pipeline.errors import ConfigError, JobError
from pipeline.redact import redact

log = logging.getLogger(__name__)

FILE_ONLY = ("settings",)
"""Config fields that only a file can set: as flags, tyro would fill every setting they leave unset with its default."""
RECIPES = Path(__file__).parent / "configs"
"""Folder of the shipped recipes: `--config <name>` of a job reads `<job>/<name>.yaml`."""


class JobArguments(Protocol):
    """Command line arguments of a job: a dataclass with its config as `cfg`, and other flags beside it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    job: ClassVar[str]
    """Subcommand of the job, and its folder in `RECIPES`."""
    shown: ClassVar[tuple[str, ...]]
    """Settings that `--help` shows beside the required ones, such as `tile.mode`."""

    @property
    def cfg(self) -> Any:
        """Config of the job."""


A = TypeVar("A", bound=JobArguments)
C = TypeVar("C", bound=BaseModel)


def parse(argv: Sequence[str] | None, arguments: type[A], *, description: str) -> A:
    """Parse the command line. Precedence: flags, then the file of `--config`, then defaults.

    Args:
        argv: flags of the job; None takes those of this process.
        arguments: dataclass of the job's flags, with its config as `cfg` and, where it takes one, the file as `config`.
        description: description of the job for help.

    Raises:
        ConfigError: the file is invalid, there is no recipe of that name, or a flag outside all groups is invalid.
        SystemExit: another flag is invalid; tyro has printed a message that names it. Also after help and version.
    """
    flags = sys.argv[1:] if argv is None else list(argv)
    if "--version" in flags:
        print_version()
    if {"-h", "--help", "--help-all"} & set(flags):
        print_help(arguments, description, program=program(), shown=None if "--help-all" in flags else arguments.shown)
    kind = get_type_hints(arguments)["cfg"]
    cfg = _from_file(flags, kind, arguments)
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # tyro prints pydantic's reports as they are
    kept = {name: getattr(cfg, name) for name in FILE_ONLY if hasattr(cfg, name)}
    default = arguments(cfg=cfg.model_copy(update={name: {} for name in kept}))  # type: ignore[call-arg]
    try:
        with narrow():
            parsed = tyro.cli(arguments, prog=program(), args=flags, default=default)
    except ValidationError as error:  # tyro reports the errors of groups itself
        raise explain(error, origin="the flags") from error
    return replace(parsed, cfg=parsed.cfg.model_copy(update=kept))


# ---------------------------------------------------------------- --config


def _from_file(flags: Sequence[str], kind: type[C], arguments: type[JobArguments]) -> C:
    """Defaults of the flags: the file of `--config`, else the class's; required settings of neither are missing."""
    path = _config_path(flags, arguments.job) if "config" in arguments.__dataclass_fields__ else None
    settings = read_yaml(path) if path else {}
    required = [name for name, field in kind.model_fields.items() if field.is_required() and name not in settings]
    try:
        config = kind.model_validate({name: _placeholder(kind, name) for name in required} | settings)
    except ValidationError as error:
        raise explain(error, origin=path or "the settings", model=kind) from error
    return config.model_copy(update=dict.fromkeys(required, tyro.MISSING))


def _config_path(flags: Sequence[str], job: str) -> str | None:
    """Path of the file of `--config`; None without that flag."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    config = finder.parse_known_args(flags)[0].config
    return recipe_path(config, job) if config else None


def _placeholder(kind: type[BaseModel], name: str) -> Any:
    """Placeholder of a required setting, until a flag replaces it: a text, or a tuple of texts, as all of them are."""
    return "-" if kind.model_fields[name].annotation is str else ("-",)


def recipe_path(config: str, job: str) -> str:
    """Path of the file of `--config`: a value with a slash or suffix .yaml is a path, any other names a shipped recipe.

    Raises:
        ConfigError: there is no recipe of that name; the message lists those of the job.
    """
    if "/" in config or config.endswith((".yaml", ".yml")):
        return config
    names = recipe_names(job)
    if config in names:
        return str(RECIPES / job / f"{config}.yaml")
    hint = f"one of {', '.join(names)}" if names else f"no recipe is shipped for `{job}`"
    hint += f"; a file of yours: --config ./{config}, or a name that ends in .yaml"
    raise ConfigError(f"--config {config}: no shipped recipe has this name", hint=hint)


def recipe_names(job: str) -> list[str]:
    """Names of the recipes that are shipped for a job, sorted."""
    return sorted(path.stem for path in (RECIPES / job).glob("*.yaml"))


# ---------------------------------------------------------------- the process


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Argument parser of a job without a config: wraps help, adds `--version`; `--help-all` is `--help`."""
    parser = argparse.ArgumentParser(prog=program(), description=wrapped(description), formatter_class=WrappedFormatter)
    parser.add_argument("--help-all", action="help", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"atrous {code_version()}")
    return parser


def program() -> str:
    """Program name for messages: `atrous segment`, `python -m jobs.segment_dataset` or `python jobs/train.py`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if sys.argv[0].startswith("atrous "):
        return sys.argv[0]
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"


def command(argv: Sequence[str] | None = None) -> str:
    """Command line of this process, quoted for a shell and without credentials; `argv` replaces its flags."""
    return redact(f"{program()} {shlex.join(sys.argv[1:] if argv is None else argv)}".strip())


def to_yaml(cfg: BaseModel) -> str:
    """YAML of a resolved config, to be printed and stored; `--config` reads it."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)


def print_version() -> NoReturn:
    """Print the version, and end the process."""
    print(f"atrous {code_version()}")
    raise SystemExit(0)


def code_version() -> str:
    """Version of the installed package."""
    try:
        return version("atrous")
    except PackageNotFoundError:
        return "0 (not installed)"


def exit_status(job: Callable[[], int]) -> int:
    """Run a job; a `JobError` becomes status 1 and a logged message, without a traceback.

    A reader of stdout that has seen enough, such as `head`, ends it without a message. Whatever else ends the job early
    is posted to the URL of `--notify`, in place of the closing JSON line.
    """
    try:
        return job()
    except BrokenPipeError:
        if not console.reader_is_gone():
            raise
        console.silence_stdout()
        return 128 + signal.SIGPIPE  # as a shell reports other programs: the job's own status is not known
    except JobError as error:
        log.error("%s", error)
        _notify_of_end(redact(str(error)))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where this one stopped\n")
        _notify_of_end("interrupted")
        return 1
    except SystemExit as stop:  # of Ray's handler of SIGTERM
        _notify_of_end(f"stopped with exit status {stop.code}")
        raise
    except BaseException as error:
        _notify_of_end(redact(f"{type(error).__name__}: {error}"))
        raise


def _notify_of_end(reason: str) -> None:
    notify.send({"job": command(), "error": reason, "exit_status": 1})


def leave(status: int) -> NoReturn:
    """End the process of a job without finalising the interpreter: join threads, run `atexit`, flush, `os._exit`.

    A library's thread may still hold a Python object when the job is done. A thread of Arrow's pool frees the bytes it
    decoded after it has returned the result, and takes the interpreter's lock for that. Up to Python 3.13 finalisation
    ends such a thread in the middle of a C++ destructor, so the process dies with SIGABRT ("terminate called without an
    active exception"); from 3.14 on the thread hangs, and Arrow waits for it. Without finalisation neither happens.

    Args:
        status: exit status, 0 to 255.

    Raises:
        SystemExit: always. Python then joins threads and runs `_end_process` before all other `atexit` functions.
    """
    atexit.register(_end_process, status)
    raise SystemExit(status)


def _end_process(status: int) -> None:
    atexit.unregister(_end_process)
    atexit._run_exitfuncs()  # of logging, Ray, multiprocessing and temporary folders
    try:  # no other error is caught: Python then ends normally, fails to flush again and exits with 120
        sys.stdout.flush()
    except BrokenPipeError:
        console.silence_stdout()
    sys.stderr.flush()
    os._exit(status)
