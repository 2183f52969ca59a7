"""Where the curves and sample predictions of a training run go: TensorBoard, MLflow, Weights & Biases, or nowhere.

In: numbers and pictures by step. Out: a tracker's own files or requests. A tracker never steers training, and only one
process of a run has one.
"""

import importlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from pipeline import optional
from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.page.paint import paint
from pipeline.records import Sample, UInt8
from pipeline.redact import redact
from pipeline.store import objects

log = logging.getLogger(__name__)

TrackerKind = Literal["auto", "tensorboard", "mlflow", "wandb", "none"]
TENSORBOARD_FOLDER = "tensorboard"
"""Below the run's output."""
GAP_PX = 8
"""White between the pictures of a sample."""
LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Module of a tracker. Its package, and the extra that brings it, are called as the tracker is."""


class Tracker(Protocol):
    """Takes what a run says about itself."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve named."""

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        """Show predictions after `step` steps."""

    def close(self) -> None:
        """Send what is left. Nothing may follow."""


def make_tracker(kind: TrackerKind, *, output: str, run: str, first_step: int, classes: ClassMap) -> Tracker:
    """Start a tracker, or go on with the curves of an interrupted run.

    Args:
        kind: which; `auto` is TensorBoard where it is installed, and none, with a warning, where it is not.
        output: folder of the run, local or in a store; TensorBoard's files go below it.
        run: fingerprint of the run; what the other trackers know it by.
        first_step: where the run starts or resumes; TensorBoard hides points from there on that a killed run left.
        classes: colours of truths and predictions.

    Raises:
        ConfigError: the tracker is not installed.
    """
    match _installed(kind):
        case "tensorboard":
            made: Tracker = _TensorBoard(objects.join(output, TENSORBOARD_FOLDER), first_step, classes)
        case "mlflow":
            made = _MLflow(output, run, classes)
        case "wandb":
            made = _WeightsAndBiases(output, run, classes)
        case _:
            made = _Nowhere()
    return _Expendable(made)


def draw_sample(sample: Sample, classes: ClassMap) -> UInt8:
    """Image, truth and prediction side by side: (H, 3 W + 2 `GAP_PX`, 3) uint8 RGB, stripes where there is no class."""
    gap = np.full((sample.image_hwc.shape[0], GAP_PX, 3), 255, np.uint8)
    return np.hstack([sample.image_hwc, gap, paint(sample.truth_hw, classes), gap, paint(sample.mask_hw, classes)])


class _Nowhere:
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        pass

    def close(self) -> None:
        pass


class _Expendable:
    """A tracker that is left out from its first failure on: no run ends for its curves, which its state has as well."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self.tracker.scalars(step, values))

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        self._try(lambda: self.tracker.images(step, samples))

    def close(self) -> None:
        self._try(self.tracker.close)

    def _try(self, say: Callable[[], None]) -> None:
        try:
            say()
        except Exception as error:  # noqa: BLE001  # whatever a server, its client or a disk may raise
            log.warning("the tracker failed; the run goes on without it: %s", redact(str(error)))
            self.tracker = _Nowhere()


class _TensorBoard:
    """Event files. For a store they are written here first, and copied whole with every set of images and at the end.

    A resumed run opens a file of its own, so that what was copied before stays, also from another machine.
    """

    def __init__(self, url: str, first_step: int, classes: ClassMap) -> None:
        self.url, self.classes = url, classes
        self.here = tempfile.TemporaryDirectory(prefix="atrous-curves-") if "://" in url else None
        self.folder = Path(self.here.name if self.here else url)
        self.writer: Any = _library("tensorboard").SummaryWriter(self.folder, purge_step=first_step or None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self.writer.add_image(f"samples/{sample.key}", draw_sample(sample, self.classes), step, dataformats="HWC")
        self.writer.flush()
        self._send()

    def close(self) -> None:
        self.writer.close()
        self._send()
        if self.here:
            self.here.cleanup()

    def _send(self) -> None:
        for file in self.folder.iterdir() if self.here else ():
            objects.put(objects.join(self.url, file.name), file.read_bytes())


class _MLflow:
    """A run of the server, and of the experiment, that MLflow's own environment variables name."""

    def __init__(self, output: str, run: str, classes: ClassMap) -> None:
        self.mlflow, self.classes = _library("mlflow"), classes
        before = self.mlflow.search_runs(filter_string=f"tags.atrous = '{run}'", output_format="list")
        self.mlflow.start_run(
            run_id=before[0].info.run_id if before else None, run_name=_last_name(output), tags={"atrous": run}
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            picture = Image.fromarray(draw_sample(sample, self.classes))
            # Not in MLflow's own thread, which a worker that Ray ends would not wait for.
            self.mlflow.log_image(picture, key=sample.key.replace("/", "-"), step=step, synchronous=True)

    def close(self) -> None:
        self.mlflow.end_run()


class _WeightsAndBiases:
    """A run of the project that WANDB_PROJECT names. Steps it saw before a resume stay as they are."""

    def __init__(self, output: str, run: str, classes: ClassMap) -> None:
        self.wandb, self.classes = _library("wandb"), classes
        self.run = self.wandb.init(id=run[:32], name=_last_name(output), resume="allow")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        pictures = [self.wandb.Image(draw_sample(one, self.classes), caption=one.key) for one in samples]
        self.run.log({"samples": pictures}, step=step)

    def close(self) -> None:
        self.run.finish()


def _installed(kind: TrackerKind) -> TrackerKind:
    """The tracker that `auto` stands for on this machine; any other one is what it is."""
    if kind != "auto":
        return kind
    try:
        _library("tensorboard")
    except ConfigError as error:
        why = error.__cause__
        log.warning("curves are in report/index.html only (%s); pip install 'atrous[tensorboard]' for more", why)
        return "none"
    return "tensorboard"


def _library(kind: str) -> ModuleType:
    instead = "give --runtime.tracker none"
    with optional.package(kind, extra=kind, needed_by=f"--runtime.tracker {kind}", instead=instead):
        return importlib.import_module(LIBRARIES[kind])


def _last_name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
