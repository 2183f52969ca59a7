"""Messages between the driver of a flow without Ray and its workers: see `processes.py` and `worker.py`."""

import copy
import traceback
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from pipeline.run.ledger import Place
from pipeline.run.stages import Job

StageName = Literal["infer", "refine", "score"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Work of one worker."""

    stage: StageName
    job: Job
    place: Place
    """Id of the worker and its journal; both stay the same when its process is started again."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Answer of a process whose stage is open."""


@dataclass(frozen=True, slots=True)
class Done:
    """Answer of a stage: a packed table."""

    table: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """Error of a stage, which ends the run; images that cannot be used are rows, not errors."""

    error: Exception
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> "Failed":
        """Message of an error; one whose class cannot be made again from its arguments is told by its text."""
        told = "".join(traceback.format_exception(error))
        try:
            copy.deepcopy(error)
        except Exception:  # noqa: BLE001 - whatever its class raises
            return cls(RuntimeError(f"{type(error).__name__}: {error}"), told)
        return cls(error, told)


@dataclass(frozen=True, slots=True)
class Call:
    """Call of a method of the run's ledger."""

    method: str
    arguments: tuple[Any, ...]
    waits: bool
    """True where the worker waits for what it returns."""


def pack(table: pa.Table) -> bytes:
    """Encode a table as an Arrow stream."""
    stored = pa.BufferOutputStream()
    with pa.ipc.new_stream(stored, table.schema) as writer:
        writer.write_table(table)
    data: bytes = stored.getvalue().to_pybytes()
    return data


def unpack(data: bytes) -> pa.Table:
    """Table of an Arrow stream."""
    return pa.ipc.open_stream(pa.BufferReader(data)).read_all()
