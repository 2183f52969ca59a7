"""Ranks: the processes that train together, one alone or the workers of torchrun or Ray Train.

In: an existing process group, or the environment variables of torchrun. Out: this process's rank and the collective
operations of training. Only tensors are sent, never objects.
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
    """Rank of this process in a process group, and its device."""

    rank: int = 0
    """0 to size - 1; rank 0 writes checkpoints and logs."""
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def leads(self) -> bool:
        """True on rank 0, which logs and writes for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place: any shape, on `device`."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, number: int) -> int:
        """Return rank 0's number on every rank."""
        value = torch.tensor(number, dtype=torch.int64, device=self.device)
        if self.size > 1:
            dist.broadcast(value, src=0)
        return int(value)

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Copy rank 0's values to every rank, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def rank_device(kind: str) -> torch.device:
    """Device of this process: the GPU of LOCAL_RANK, or the CPU.

    Args:
        kind: "cuda", "cpu", or "auto": a GPU where there is one.

    Raises:
        ConfigError: `kind` is "cuda" and there is no GPU.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--runtime.device cuda: this machine has no GPU", hint="set --runtime.device auto or cpu")
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: torch.device) -> Generator[Group]:
    """Join a process group within this context.

    1. The existing one, as in a worker of Ray Train. 2. One that torchrun's environment variables describe, which is
    destroyed at the end. 3. None: this process trains alone.
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
