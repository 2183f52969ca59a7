"""Estimate time and memory of a run from trial steps (`--dry-run`) of the same code on the same machines.

In: the config of a run. Out: the config of its trial run, and from the trial's output a forecast of time, memory and
checkpoint size.
"""

import uuid
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pipeline.errors import NothingThere
from pipeline.models.card import load_card
from pipeline.run.progress import short_duration
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import state
from pipeline.training.config import TrainConfig
from pipeline.training.state import RunState

TRIAL_STEPS = 3
"""Steps of each phase in a trial: the first ones select algorithms and start loaders, the last one is timed."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Estimated time, memory and checkpoint size of a run."""

    train_s: float
    """Seconds of training, over all phases."""
    validate_s: float
    """Upper bound on the seconds of all validations: it counts the setup time once per image."""
    peak_gib: float
    """Peak memory of one process, GiB: of its GPU where it has one."""
    state_mib: float
    """Size of one checkpoint state in the store, MiB."""

    def __str__(self) -> str:
        return (
            f"forecast: {short_duration(self.train_s)} of training, "
            f"at most {short_duration(self.validate_s)} of validation; "
            f"{self.peak_gib:.1f} GiB per worker; {self.state_mib:.0f} MiB per state, {state.STATES_KEPT + 1} at a time"
        )


def trial_config(cfg: TrainConfig) -> TrainConfig:
    """Config of a trial: `TRIAL_STEPS` of every phase and one image per validation, in an output folder of its own."""
    short = cfg.schedule.model_copy(update={"steps": TRIAL_STEPS})
    return cfg.model_copy(
        update={
            "output": (cfg.output_url / f"_rehearsal-{uuid.uuid4().hex[:8]}").raw,
            "schedule": short,
            "then": tuple(phase.model_copy(update={"schedule": short}) for phase in cfg.then),
            "validation": cfg.validation.model_copy(update={"limit": 1, "every": TRIAL_STEPS}),
            "runtime": cfg.runtime.model_copy(
                update={"log_every": 1, "checkpoint_every": TRIAL_STEPS, "tracker": "none"}
            ),
        }
    )


def forecast_run(cfg: TrainConfig, trial: Url) -> Forecast:
    """Forecast a run from its trial.

    Args:
        cfg: config of the run.
        trial: the trial's output.
    """
    step = state.saved_steps(trial)[-1]
    run_state, tensors = state.load_state(trial, step)
    images = int(str(load_card(trial.raw).training["validation_images"]))
    per_image = float(np.mean(_values(run_state, "validation/seconds")))
    phases = cfg.phases()
    speeds = _values(run_state, "speed/images_per_s")[TRIAL_STEPS - 1 :: TRIAL_STEPS]
    times = sum(-(-phase.schedule.steps // cfg.validation.every) for phase in phases)
    return Forecast(
        train_s=sum(
            phase.schedule.steps * phase.optimise.batch / speed for phase, speed in zip(phases, speeds, strict=True)
        ),
        validate_s=times * min(images, cfg.validation.limit or images) * per_image,
        peak_gib=max(_values(run_state, "memory/peak_gib")),
        state_mib=sum(tensor.nbytes for tensor in tensors.values()) / 2**20,
    )


def delete_trial(trial: Url) -> None:
    """Delete the output of a trial with its folders, and the output of the run when it holds nothing else."""
    with suppress(NothingThere):  # a trial that failed early has none
        for file in list(objects.list_files(trial)):
            objects.delete(trial / file.path)
    objects.remove_empty_folders(trial.parent)


def _values(run_state: RunState, name: str) -> list[float]:
    return [point.values[name] for point in run_state.history if name in point.values]
