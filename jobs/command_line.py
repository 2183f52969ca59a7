"""From `sys.argv` to a validated config: defaults, then `--config run.yaml`, then flags."""

import argparse
import atexit
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, ClassVar, NoReturn, Protocol, TypeVar, get_type_hints

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import SegmentConfig, explain, read_yaml
from pipeline.errors import JobError

log = logging.getLogger(__name__)

FILE_ONLY = ("settings",)
"""Fields of a config that are no flags: tyro would fill what they leave open with defaults."""


class Asked(Protocol):
    """What a job was asked to do: a dataclass with its config."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def cfg(self) -> Any:
        """The config of the job."""


A = TypeVar("A", bound=Asked)
C = TypeVar("C", bound=BaseModel)


@dataclass(frozen=True)
class Arguments:
    """What `segment_dataset` was asked to do."""

    cfg: Annotated[SegmentConfig, tyro.conf.arg(name="")]
    config: str | None = None
    """YAML file with the same names as the flags; flags win."""
    plan: bool = False
    """Only say what would be done: shards, bytes, keys where known, what is committed, first problems."""


def parse(argv: Sequence[str], arguments: type[A] = Arguments, *, description: str) -> A:  # type: ignore[assignment]
    """Parse flags over the file over the defaults.

    Args:
        argv: what follows the name of the job.
        arguments: what the job can be asked, with its config as `cfg` and the file's name as `config`.
        description: of the job, for --help.

    Raises:
        ConfigError: when the file is wrong, or a flag outside all groups is. Other wrong flags end the process with a
            message that names them.
    """
    if "--version" in argv:
        print(f"atrous {code_version()}")
        raise SystemExit(0)
    cfg = _from_file(argv, get_type_hints(arguments)["cfg"])
    kept = {name: getattr(cfg, name) for name in FILE_ONLY if hasattr(cfg, name)}
    default = arguments(cfg=cfg.model_copy(update={name: {} for name in kept}))  # type: ignore[call-arg]
    try:
        parsed = tyro.cli(arguments, args=list(argv), default=default, description=description)
    except ValidationError as error:  # tyro catches those of groups, and says so itself
        raise explain(error, origin="the flags") from error
    except BrokenPipeError:  # `--help | head`: nobody reads on, and Python is not to flush to nobody either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    return replace(parsed, cfg=parsed.cfg.model_copy(update=kept))


def _from_file(argv: Sequence[str], kind: type[C]) -> C:
    """The config of `--config`, or the defaults; what neither the file nor a default gives is left for flags."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    said = read_yaml(path) if path else {}
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    try:
        config = kind.model_validate(dict.fromkeys(required, "-") | said)
    except ValidationError as error:
        raise explain(error, origin="the settings in --config") from error
    return config.model_copy(update={name: tyro.MISSING for name in required if name not in said})


def to_yaml(cfg: BaseModel) -> str:
    """The resolved config as it is printed and stored; a file `--config` takes."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)


def code_version() -> str:
    """Version of the installed package."""
    try:
        return version("atrous")
    except PackageNotFoundError:
        return "0 (not installed)"


def exit_status(job: Callable[[], int]) -> int:
    """Run a job; an error raised on purpose ends it with status 1 and its message, without a traceback."""
    try:
        return job()
    except JobError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where this one stopped\n")
        return 1


def leave(status: int) -> NoReturn:
    """End the process of a job: threads joined, `atexit` functions run, output flushed, and no interpreter taken down.

    A thread of a library may still hold a Python object when the job is done. One of Arrow's pool frees the bytes it
    decoded after it has handed over the result, and needs the interpreter for it. Up to Python 3.13 an interpreter that
    is being taken down ends such a thread in the middle of a C++ destructor, so the process dies with SIGABRT
    ("terminate called without an active exception"); from 3.14 on the thread hangs, and Arrow waits for it. Neither can
    happen when the process ends while the interpreter is whole.

    Args:
        status: of the process, 0 to 255.

    Raises:
        SystemExit: always. Python then joins threads and runs `_end_process` before all other `atexit` functions.
    """
    atexit.register(_end_process, status)
    raise SystemExit(status)


def _end_process(status: int) -> None:
    atexit.unregister(_end_process)
    atexit._run_exitfuncs()  # the others: of logging, Ray, multiprocessing, temporary folders
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # an error is left to Python, whose own end meets it again and turns the status into 120
    os._exit(status)
