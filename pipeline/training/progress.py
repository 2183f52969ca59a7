"""Progress lines of a training run: steps, loss, speed, share of time spent waiting for data, ETA.

In: images and waiting time of each step, and readings of a clock. Out: a line for people, or one JSON object. Nothing
is printed or timed here.
"""

import json
from dataclasses import asdict, dataclass

from pipeline.run.progress import short_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLine:
    """One progress line. Rates are over the time since the line before it."""

    epoch: float
    """Epochs done, with fractions."""
    step: int
    """Steps done, over all phases."""
    steps: int
    """Steps of all phases."""
    loss: float
    lr: float
    """Learning rate of the network's body."""
    images_per_s: float
    """Over all workers."""
    data_wait: float
    """Share of time spent waiting for the loader, 0 to 1."""
    eta_s: float
    """Seconds that the remaining steps take at the mean speed of all steps so far, without pauses."""

    def human(self) -> str:
        """`epoch 2.25, step 900/3000, loss 0.4132, lr 0.0052, 38.1 images/s, ETA 3 min 40 s, data wait 0%`."""
        return (
            f"epoch {self.epoch:.2f}, step {self.step}/{self.steps}, loss {self.loss:.4f}, lr {self.lr:.3g}, "
            f"{self.images_per_s:.1f} images/s, ETA {short_duration(self.eta_s)}, data wait {self.data_wait:.0%}"
        )

    def json(self) -> str:
        """Format the fields as one JSON object on one line."""
        return json.dumps(asdict(self))

    def scalars(self) -> dict[str, float]:
        """Points for the curves of a tracker, by name."""
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
        """Exclude `seconds` of a validation or checkpoint from the speed."""
        self._line_s += seconds

    def line(self, now_s: float, *, epoch: float, step: int, steps: int, loss: float, lr: float) -> ProgressLine:
        """Summarise the steps since the last line, or the start, and reset the counters.

        Args:
            now_s: reading of the clock.
            epoch: as in `ProgressLine`, like the other fields.
            step: starts above 0 in a resumed run.
            steps: of all phases.
            loss: mean since the last line; the caller reads it, because reading waits for the device.
            lr: learning rate of the last step.
        """
        passed_s = max(now_s - self._line_s, 1e-9)
        self._all_s += passed_s
        self._all_steps += self._steps
        line = ProgressLine(
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
        return line
