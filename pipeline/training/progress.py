"""The line that says how far a training run is, how fast it goes, and whether it waits for its data.

In: what each step took, and a clock's readings. Out: a line for people, or one JSON object. Nothing is printed, timed
or waited for here.
"""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of progress. Rates are over the time since the last one."""

    epoch: float
    """How often the training data was gone through, whole and in part."""
    step: int
    """Steps taken, over all phases."""
    steps: int
    """Steps there are."""
    loss: float
    lr: float
    """Of the network's body."""
    images_per_s: float
    """Over all workers."""
    data_wait: float
    """Share of the time in which the step waited for the loader, 0 to 1."""
    eta_s: float
    """Seconds that the steps left take at the mean pace of all steps so far, without pauses."""

    def human(self) -> str:
        """`epoch 2.25, step 900/3000, loss 0.4132, lr 0.0052, 38.1 images/s, ETA 3 min 40 s, data wait 0%`."""
        return (
            f"epoch {self.epoch:.2f}, step {self.step}/{self.steps}, loss {self.loss:.4f}, lr {self.lr:.3g}, "
            f"{self.images_per_s:.1f} images/s, ETA {short_duration(self.eta_s)}, data wait {self.data_wait:.0%}"
        )

    def json(self) -> str:
        """The fields as one JSON object on one line."""
        return json.dumps(asdict(self))

    def scalars(self) -> dict[str, float]:
        """The points it adds to the curves of a tracker."""
        return {
            "train/loss": self.loss,
            "train/lr": self.lr,
            "speed/images_per_s": self.images_per_s,
            "speed/data_wait": self.data_wait,
        }


class TrainingProgress:
    """Counts steps, images and waiting between lines."""

    def __init__(self, now_s: float) -> None:
        """`now_s`: reading of a monotonic clock when the first step starts."""
        self._line_s = now_s
        self._images = self._steps = self._all_steps = 0
        self._wait_s = self._all_s = 0.0

    def step(self, *, images: int, wait_s: float) -> None:
        """Count a step of `images` over all workers that waited `wait_s` seconds for its data."""
        self._images += images
        self._steps += 1
        self._wait_s += wait_s

    def pause(self, seconds: float) -> None:
        """Leave out time that was no step's: a validation, a checkpoint."""
        self._line_s += seconds

    def line(self, now_s: float, *, epoch: float, step: int, steps: int, loss: float, lr: float) -> Line:
        """Say what happened since the last line, or the start, and begin to count anew.

        Args:
            now_s: reading of the clock.
            epoch: as in `Line`, like the rest.
            step: may start above 0, where a run was resumed.
            steps: all there are.
            loss: mean since the last line; the caller's, who alone knows when a device has it ready.
            lr: of the last step.
        """
        passed_s = max(now_s - self._line_s, 1e-9)
        self._all_s += passed_s
        self._all_steps += self._steps
        made = Line(
            epoch=epoch,
            step=step,
            steps=steps,
            loss=loss,
            lr=lr,
            images_per_s=self._images / passed_s,
            data_wait=min(self._wait_s / passed_s, 1.0),
            eta_s=(steps - step) * self._all_s / max(self._all_steps, 1),
        )
        self._line_s, self._images, self._steps, self._wait_s = now_s, 0, 0, 0.0
        return made


def short_duration(seconds: float) -> str:
    """12 s, 4 min 05 s, 3 h 07 min: two units at most."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_left:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
