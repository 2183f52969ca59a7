"""State of a training run: everything that another process needs to resume it exactly.

In: networks and optimisers. Out: `checkpoints/step-00000500/` with `state.safetensors` (every tensor) and `state.json`
(everything else), in any store. The tensors are written first, so a folder with a JSON is whole. Pickle is not used.

Random generators have no state here: all randomness is derived from the seed and the step.
"""

import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.errors import JobError, NothingThere, StorageError
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

STATES_FOLDER = "checkpoints"
STATE_TENSORS, STATE_JSON = "state.safetensors", "state.json"
DIGEST = "sha256"
"""Field of `state.json` with the digest of both files."""
STATES_KEPT = 2
"""Number of states kept: the newest, and the one before it in case the newest is damaged."""


@dataclass(frozen=True, slots=True)
class Point:
    """Measurements at a step."""

    step: int
    """Steps done, over all phases."""
    values: dict[str, float]
    """Values by curve name, such as `train/loss`."""


@dataclass(slots=True)
class RunState:
    """Step, phase, best score and history of a run: the content of `state.json`."""

    step: int = 0
    """Steps done, over all phases."""
    phase: int = 0
    """Phase of the weights, from 0."""
    best_miou: float = -1.0
    """Best mIoU of this phase's validations, 0 to 1; -1 before the first."""
    best_step: int = -1
    """Step of the best validation; -1 before the first."""
    history: list[Point] = field(default_factory=list)
    """Points of all curves, by step."""
    began: dict[str, str] = field(default_factory=dict)
    """Digests at the start of the run: settings, data, class map, initial weights, code."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of packages; no longer filled in."""

    def to_json(self) -> bytes:
        """Serialise every field."""
        return json.dumps(asdict(self), indent=1).encode()


def parse_state(fields: Mapping[str, Any]) -> RunState:
    """Rebuild a state from the fields of `state.json`: inverse of `RunState.to_json`."""
    return RunState(**{**fields, "history": [Point(**point) for point in fields["history"]]})


# ---------------------------------------------------------------- tensors


def optimiser_buffers(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Buffers of an optimiser, by index of the parameter and name: `17/momentum_buffer`."""
    buffers = optimiser.state_dict()["state"]
    return {
        f"{index}/{name}": torch.as_tensor(value)
        for index, values in buffers.items()
        for name, value in values.items()
        if value is not None
    }


def load_optimiser_buffers(optimiser: torch.optim.Optimizer, buffers: Mapping[str, Tensor]) -> None:
    """Load `optimiser_buffers`. They get the memory format of their parameters, so that rounding is the same."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    by_index: dict[int, dict[str, Tensor]] = {}
    for key, value in buffers.items():
        index, _, name = key.partition("/")
        like = parameters[int(index)]
        same_format = torch.empty_like(like, device="cpu").copy_(value) if value.shape == like.shape else value
        by_index.setdefault(int(index), {})[name] = same_format
    optimiser.load_state_dict({"state": by_index, "param_groups": optimiser.state_dict()["param_groups"]})


def copy_fitting(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copy every tensor that fits a network by name and shape; returns the names of the network's other tensors."""
    own = network.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prepend `prefix/` to the names of tensors."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def take_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names begin with `prefix/`, and remove it: inverse of `add_prefix`."""
    start = prefix + "/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, contiguous, so that later steps do not change them."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


# ---------------------------------------------------------------- states in a store


def state_url(output: Url, step: int) -> Url:
    """Folder of the state after `step` steps."""
    return output / STATES_FOLDER / f"step-{step:08d}"


def save_state(output: Url, run_state: bytes, tensors: Mapping[str, Tensor], *, step: int) -> None:
    """Write a state: the tensors, then the JSON, which makes it whole."""
    url, data = state_url(output, step), safetensors.torch.save(dict(tensors))
    fields = json.loads(run_state)
    objects.put(url / STATE_TENSORS, data)
    objects.put(url / STATE_JSON, json.dumps(fields | {DIGEST: _digest(fields, data)}, indent=1).encode())


def _digest(fields: Mapping[str, Any], tensors: bytes) -> str:
    """SHA-256 of the tensors' file and of all other fields of `state.json`, 64 hex digits."""
    digest = hashlib.sha256(tensors)  # the tensors are not copied: they may be gigabytes
    digest.update(json.dumps(fields).encode())
    return digest.hexdigest()


def saved_steps(output: Url) -> list[int]:
    """Steps of the whole states of a run, ascending; folders with other names, such as copies, are ignored."""
    try:
        paths = [file.path for file in objects.list_files(output / STATES_FOLDER)]
    except NothingThere:
        return []
    matches = (re.fullmatch(rf"step-(\d{{8,}})/{re.escape(STATE_JSON)}", path) for path in paths)
    return sorted(int(match[1]) for match in matches if match)


def load_state(output: Url, step: int) -> tuple[RunState, dict[str, Tensor]]:
    """Read the state after `step` steps.

    Raises:
        JobError: the state is damaged, down to one flipped bit; the hint names the folder to delete. A state written
            before there was a digest is checked by its structure only.
    """
    url = state_url(output, step)
    try:
        fields, data = dict(json.loads(objects.read_bytes(url / STATE_JSON))), objects.read_bytes(url / STATE_TENSORS)
        if (stored := fields.pop(DIGEST, None)) and stored != _digest(fields, data):
            raise ValueError(f"its bytes do not have the stored {DIGEST}")
        return parse_state(fields), safetensors.torch.load(data)
    except (SafetensorError, FileNotFoundError, ValueError, KeyError, TypeError) as error:
        hint = f"delete {url}; the run then resumes from the state before it"
        raise JobError(f"the state after step {step} is damaged: {error}", hint=hint) from error


def delete_old_states(output: Url) -> None:
    """Delete all but the newest `STATES_KEPT` states. The JSON is deleted first, so that no half state looks whole."""
    for step in saved_steps(output)[:-STATES_KEPT]:
        for name in (STATE_JSON, STATE_TENSORS):
            objects.delete(state_url(output, step) / name)
        objects.remove_empty_folders(state_url(output, step))


class BackgroundWriter:
    """Writer in a background thread, one write at a time, while training continues.

    An error of a write, after the store's own retries, is raised by the next `put` or at the end of the context.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def put(self, *writes: Callable[[], object]) -> None:
        """Wait for the writes before, then run these in the background, one after the other.

        Raises:
            StorageError: a write before these failed.
        """
        if writes:
            self.wait()
            self._thread = threading.Thread(target=self._run, args=(writes,), name="checkpoint", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            StorageError: a write failed.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            hint = "run the same command to resume from the last whole state"
            raise StorageError(f"a checkpoint could not be written: {error}", hint=hint) from error

    def _run(self, writes: Sequence[Callable[[], object]]) -> None:
        try:
            for write in writes:
                write()
        except Exception as error:  # noqa: BLE001  # raised again by `wait`, in the thread that it can stop
            self._error = error
