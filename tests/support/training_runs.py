"""Small training runs for tests: data made on the spot, networks that take milliseconds, runs made to die.

    python -m tests.support.training_runs STEP FLAG ...

runs `jobs.train` with the flags and kills its own process with SIGKILL in the step after STEP steps.
"""

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pipeline.training import loop, run
from pipeline.training.config import TrainConfig
from pipeline.training.ranks import Group
from pipeline.training.state import RunState

CLASSES = {
    "name": "three",
    "classes": [
        {"name": name, "colour": [60 * index, 90, 120]} for index, name in enumerate(("field", "path", "pond"))
    ],
}
TINY = {"name": "deeplab_v1", "options": {"width_multiplier": 0.02}}
"""Has dropout, and no batch norm."""
NORMED = {"name": "segnet", "options": {"width_multiplier": 0.03}}
"""Has batch norm, and no dropout."""
WIDER = {"name": "unet_resnet", "options": {"backbone": "resnet18", "width_multiplier": 0.25}}
"""Has batch norm, no dropout, and channels enough for rounding errors to stay small over many steps."""
UNET = {"name": "unet", "options": {"width_multiplier": 0.06, "batch_norm": True, "padding": "same"}}
"""Learns fast."""


def write_data(folder: Path, *, train: int = 7, val: int = 3, size_px: int = 40) -> Path:
    """Images whose colour is almost their class, with labels, in two parts; and the class map."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for index in range(count):
            label = np.kron(rng.integers(0, 3, (5, 5)), np.ones((size_px // 5,) * 2)).astype(np.uint8)
            noise = rng.integers(0, 60, (size_px, size_px, 3))
            image = (label[..., None] * (80, 40, 60) + noise).astype(np.uint8)
            _write(folder / part / "images" / f"{index}.png", image)
            _write(folder / part / "labels" / f"{index}.png", label)
    (folder / "classes.yaml").write_text(yaml.safe_dump(CLASSES))
    return folder


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def config(data: Path, output: Path, **changed: Any) -> TrainConfig:
    """A run of a few steps in this process; `changed` are groups of settings or single ones."""
    said: dict[str, Any] = {
        "data": str(data),
        "output": str(output),
        "network": TINY,
        "augment": {"crop_px": (32, 32)},
        "optimise": {"lr": 0.05, "batch": 4},
        "schedule": {"steps": 6},
        "validation": {"every": 4},
        "runtime": {},
    }
    said |= {
        name: (said[name] | value if isinstance(said.get(name), dict) else value) for name, value in changed.items()
    }
    quick = {"device": "cpu", "loader_workers": 0, "tracker": "none", "log_every": 1, "cache": str(data / "cache")}
    return TrainConfig.model_validate(said | {"runtime": quick | {"checkpoint_every": 1} | said["runtime"]})


def train(cfg: TrainConfig, group: Group | None = None) -> RunState:
    """Run the loop in this process, to its end."""
    return loop.train_phases(run.open_run(cfg, group or Group(), about={}))


def _die_in(step: int) -> None:
    take = loop.take_step

    def taking(*args: Any, **kwargs: Any) -> Any:
        if kwargs["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(*args, **kwargs)

    loop.take_step = taking


def main(argv: list[str]) -> int:
    """See the top of this file."""
    from jobs import train as job

    _die_in(int(argv[0]))
    return job.main(argv[1:])


if __name__ == "__main__":
    from jobs import command_line

    command_line.leave(main(sys.argv[1:]))
