"""The processes that train together: one alone, or the workers of torchrun or Ray Train.

In: a process group that somebody has set up, or the environment variables of torchrun. Out: this process's place in it.
Only tensors travel, never objects.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Group:
    """This process's place among those that train together."""

    rank: int = 0
    """0 to size - 1; process 0 writes checkpoints and logs."""
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def leads(self) -> bool:
        """Whether this is the one process that speaks and writes for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place: any shape, on `device`."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agreed(self, number: int) -> int:
        """What process 0 says."""
        said = torch.tensor(number, dtype=torch.int64, device=self.device)
        if self.size > 1:
            dist.broadcast(said, src=0)
        return int(said)

    def share(self, tensors: list[Tensor]) -> None:
        """Give every process the values that process 0 has, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def device_of(asked: str) -> torch.device:
    """The device of this process: its own GPU by LOCAL_RANK, or the CPU.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU here", hint="leave --runtime.device auto, or take cpu")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: torch.device) -> Generator[Group]:
    """Take this process's place for as long as the block lasts.

    1. A process group that exists, as in a worker of Ray Train. 2. That of torchrun, by its environment variables.
    3. Alone.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ours = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        if dist.is_initialized():
            yield Group(dist.get_rank(), dist.get_world_size(), device)
        else:
            yield Group(device=device)
    finally:
        if ours:
            dist.destroy_process_group()
