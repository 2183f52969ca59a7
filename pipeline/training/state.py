"""The exact state of a training run: everything that a later process needs to go on as if nothing had happened.

In: networks and optimisers. Out: `checkpoints/step-00000500/` with `state.safetensors` (every tensor) and `state.json`
(everything else), in any store. The tensors are written first, so a folder with a JSON is whole. Nothing here pickles.

There is no state of random generators: everything random is derived from the seed and the step.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.errors import JobError, NothingThere, StorageError
from pipeline.store import objects

log = logging.getLogger(__name__)

STATES_FOLDER = "checkpoints"
TENSORS, STORY = "state.safetensors", "state.json"
KEPT = 2
"""States that are kept: the newest, and the one before it in case somebody damages that."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at a step."""

    step: int
    """Steps that were done."""
    values: dict[str, float]
    """By the names that the tracker is given, such as `train/loss`."""


@dataclass(slots=True)
class Story:
    """How far a run is and how it went."""

    step: int = 0
    """Steps done, over all phases."""
    phase: int = 0
    """Number of the phase the weights are of."""
    best_miou: float = -1.0
    """Of this phase's validations, 0 to 1; -1 before the first."""
    best_step: int = -1
    """Steps that were done then."""
    history: list[Point] = field(default_factory=list)
    began: dict[str, str] = field(default_factory=dict)
    """What the run began with, as digests: settings, data, classes, initial weights, code."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that this state was made with."""

    def to_json(self) -> bytes:
        """The whole of it, with the history."""
        return json.dumps(asdict(self), indent=1).encode()


def from_json(data: bytes) -> Story:
    """Inverse of `Story.to_json`."""
    said = json.loads(data)
    return Story(**said | {"history": [Point(**point) for point in said["history"]]})


# ---------------------------------------------------------------- tensors of one thing


def of_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its buffers, by number of the parameter and name: `17/momentum_buffer`."""
    buffers = optimiser.state_dict()["state"]
    return {
        f"{index}/{name}": torch.as_tensor(value)
        for index, one in buffers.items()
        for name, value in one.items()
        if value is not None
    }


def into_optimiser(optimiser: torch.optim.Optimizer, buffers: Mapping[str, Tensor]) -> None:
    """Inverse of `of_optimiser`. Buffers get the memory layout of their parameters, so that rounding is the same."""
    parameters = [one for group in optimiser.param_groups for one in group["params"]]
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in buffers.items():
        index, _, name = key.partition("/")
        like = parameters[int(index)]
        laid = torch.empty_like(like, device="cpu").copy_(value) if value.shape == like.shape else value
        found.setdefault(int(index), {})[name] = laid
    optimiser.load_state_dict({"state": found, "param_groups": optimiser.state_dict()["param_groups"]})


def carry(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copy into a network every tensor that it has by name and shape; returns the names that keep their own values."""
    own = network.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as part `prefix` of a state."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `prefixed`: the tensors of one part of a state."""
    start = prefix + "/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, contiguous, that later steps do not change."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


# ---------------------------------------------------------------- states in a store


def url_of(output: str, step: int) -> str:
    """Folder of the state after `step` steps."""
    return objects.join(output, STATES_FOLDER, f"step-{step:08d}")


def save_state(output: str, story: bytes, tensors: Mapping[str, Tensor], *, step: int) -> None:
    """Write a state: tensors, then the JSON that makes it whole."""
    url = url_of(output, step)
    objects.put(objects.join(url, TENSORS), safetensors.torch.save(dict(tensors)))
    objects.put(objects.join(url, STORY), story)


def steps(output: str) -> list[int]:
    """Steps of the whole states of a run, ascending; folders of other names, such as copies, are none."""
    try:
        paths = [one.path for one in objects.list_files(objects.join(output, STATES_FOLDER))]
    except NothingThere:
        return []
    found = (re.fullmatch(rf"step-(\d{{8,}})/{re.escape(STORY)}", path) for path in paths)
    return sorted(int(one[1]) for one in found if one)


def load_state(output: str, step: int) -> tuple[Story, dict[str, Tensor]]:
    """Read the state after `step` steps.

    Raises:
        JobError: it is damaged; says what to delete.
    """
    url = url_of(output, step)
    try:
        story = from_json(objects.read_bytes(objects.join(url, STORY)))
        return story, safetensors.torch.load(objects.read_bytes(objects.join(url, TENSORS)))
    except (SafetensorError, FileNotFoundError, ValueError, KeyError, TypeError) as error:
        hint = f"delete {url}; the run then goes on from the state before it"
        raise JobError(f"the state after step {step} is damaged: {error}", hint=hint) from error


def prune(output: str) -> None:
    """Delete all but the newest `KEPT` states. The JSON goes first: half a state is none."""
    for step in steps(output)[:-KEPT]:
        for name in (STORY, TENSORS):
            objects.delete(objects.join(url_of(output, step), name))


class Writer:
    """Writes in a thread of its own, one thing at a time, while training goes on.

    An error of writing, which storage has tried to avoid as often as it does, is raised by the next `put` or at the end
    of the block.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def put(self, *writes: Callable[[], object]) -> None:
        """Start writing, one after the other, as soon as what was put before is written.

        Raises:
            StorageError: the one before it failed.
        """
        if writes:
            self.wait()
            self._thread = threading.Thread(target=self._run, args=(writes,), name="checkpoint", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            StorageError: it could not be.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            hint = "the same command goes on from the last state that is whole"
            raise StorageError(f"a checkpoint could not be written: {error}", hint=hint) from error

    def _run(self, writes: Sequence[Callable[[], object]]) -> None:
        try:
            for write in writes:
                write()
        except Exception as error:  # noqa: BLE001  raised again where it can stop the run
            self._error = error
