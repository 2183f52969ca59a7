"""What a run will need, from a rehearsal of a few steps: the same code on the same machines, made short.

In: the config of a run. Out: the config of its rehearsal, and from what that left, a forecast of time, memory and size.
"""

import uuid
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pipeline.errors import NothingThere
from pipeline.models import checkpoint
from pipeline.store import objects
from pipeline.training import state
from pipeline.training.config import TrainConfig
from pipeline.training.progress import short_duration
from pipeline.training.state import Story

STEPS = 3
"""Of each phase in a rehearsal: the first ones find algorithms and start loaders, the last one is timed."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will need."""

    train_s: float
    """Seconds of training, over all phases."""
    validate_s: float
    """Seconds of all validations, at most: setting up counts once per image here."""
    peak_gib: float
    """Memory of one process, of its GPU where it has one, GiB."""
    state_mib: float
    """Size of one state in the store, MiB."""

    def __str__(self) -> str:
        return (
            f"forecast: {short_duration(self.train_s)} of training, "
            f"at most {short_duration(self.validate_s)} of validation; "
            f"{self.peak_gib:.1f} GiB per worker; {self.state_mib:.0f} MiB per state, {state.KEPT + 1} at a time"
        )


def rehearsal(cfg: TrainConfig) -> TrainConfig:
    """The run with a few steps of every phase, one validation of one image each, in a folder of its own."""
    short = cfg.schedule.model_copy(update={"steps": STEPS})
    return cfg.model_copy(
        update={
            "output": objects.join(cfg.output, f"_rehearsal-{uuid.uuid4().hex[:8]}"),
            "schedule": short,
            "then": tuple(phase.model_copy(update={"schedule": short}) for phase in cfg.then),
            "validation": cfg.validation.model_copy(update={"limit": 1, "every": STEPS}),
            "runtime": cfg.runtime.model_copy(update={"log_every": 1, "checkpoint_every": STEPS, "tracker": "none"}),
        }
    )


def forecast_run(cfg: TrainConfig, rehearsed: str) -> Forecast:
    """The forecast of a run.

    Args:
        cfg: the run's.
        rehearsed: URL of the output of its rehearsal.
    """
    step = state.steps(rehearsed)[-1]
    story, tensors = state.load_state(rehearsed, step)
    images = int(str(checkpoint.load_card(rehearsed).training["validation_images"]))
    per_image = float(np.mean(_values(story, "validation/seconds")))
    phases = cfg.phases()
    speeds = _values(story, "speed/images_per_s")[STEPS - 1 :: STEPS]
    times = sum(-(-phase.schedule.steps // cfg.validation.every) for phase in phases)
    return Forecast(
        train_s=sum(
            phase.schedule.steps * phase.optimise.batch / speed for phase, speed in zip(phases, speeds, strict=True)
        ),
        validate_s=times * min(images, cfg.validation.limit or images) * per_image,
        peak_gib=max(_values(story, "memory/peak_gib")),
        state_mib=sum(tensor.nbytes for tensor in tensors.values()) / 2**20,
    )


def clear(rehearsed: str) -> None:
    """Delete what a rehearsal left."""
    with suppress(NothingThere):  # a rehearsal that failed early left none
        for file in list(objects.list_files(rehearsed)):
            objects.delete(objects.join(rehearsed, file.path))


def _values(story: Story, name: str) -> list[float]:
    return [point.values[name] for point in story.history if name in point.values]
