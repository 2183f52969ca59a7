"""Trackers of curves and sample predictions: TensorBoard, MLflow, Weights & Biases, or none.

In: numbers and pictures by step. Out: a tracker's own files or requests. A tracker does not affect training, and only
rank 0 has one.
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
from pipeline.page.paint import paint, paint_edges
from pipeline.records import Sample, UInt8
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

TrackerKind = Literal["auto", "tensorboard", "mlflow", "wandb", "none"]
TENSORBOARD_FOLDER = "tensorboard"
"""Folder of TensorBoard's files, below the run's output."""
GAP_PX = 8
"""White gap between the pictures of a sample, pixels."""
LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Module of each tracker; its package and its extra have the tracker's name."""


class Tracker(Protocol):
    """Receiver of a run's curves and sample predictions."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve named."""

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        """Show predictions after `step` steps."""

    def close(self) -> None:
        """Send everything that is buffered; no other call may follow."""


def make_tracker(kind: TrackerKind, *, output: Url, run: str, first_step: int, classes: ClassMap) -> Tracker:
    """Start a tracker, or continue the curves of an interrupted run.

    Args:
        kind: `auto` is TensorBoard where it is installed, else none, with a warning.
        output: folder of the run, local or in a store; TensorBoard's files go below it.
        run: fingerprint of the run, its id in MLflow and Weights & Biases.
        first_step: where the run starts or resumes; TensorBoard hides later points of a killed run.
        classes: colours of labels and predictions.

    Raises:
        ConfigError: the tracker is not installed.
    """
    match _installed(kind):
        case "tensorboard":
            tracker: Tracker = _TensorBoard(output / TENSORBOARD_FOLDER, first_step, classes)
        case "mlflow":
            tracker = _MLflow(output, run, classes)
        case "wandb":
            tracker = _WeightsAndBiases(output, run, classes)
        case _:
            tracker = _Nowhere()
    return _Expendable(tracker)


def draw_sample(sample: Sample, classes: ClassMap) -> UInt8:
    """Draw image, label and prediction side by side: (H, 3 W + 2 `GAP_PX`, 3) uint8 RGB; ignored pixels are striped.

    For a network that predicts edges, its edge map is the fourth picture.
    """
    gap = np.full((sample.image_hwc.shape[0], GAP_PX, 3), 255, np.uint8)
    pictures = [sample.image_hwc, gap, paint(sample.truth_hw, classes), gap, paint(sample.mask_hw, classes)]
    if sample.edges_hw is not None:
        pictures += [gap, paint_edges(sample.edges_hw)]
    return np.hstack(pictures)


class _Nowhere:
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        pass

    def close(self) -> None:
        pass


class _Expendable:
    """A tracker that is dropped at its first failure, so that it cannot end a run: the state has the curves too."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self.tracker.scalars(step, values))

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        self._try(lambda: self.tracker.images(step, samples))

    def close(self) -> None:
        self._try(self.tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # whatever a server, its client or a disk may raise
            log.warning("the tracker failed; the run continues without it: %s", redact(str(error)))
            self.tracker = _Nowhere()


class _TensorBoard:
    """Event files. For a store they are written locally and copied whole after every set of images and at the end.

    A resumed run opens a new file, so that files copied before, also from another machine, stay.
    """

    def __init__(self, url: Url, first_step: int, classes: ClassMap) -> None:
        self.url, self.classes = url, classes
        self.local = tempfile.TemporaryDirectory(prefix="atrous-curves-") if url.scheme != "file" else None
        self.folder = Path(self.local.name if self.local else url.raw)
        self.writer: Any = _library("tensorboard").SummaryWriter(self.folder, purge_step=first_step or None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self.writer.add_image(f"samples/{sample.key}", draw_sample(sample, self.classes), step, dataformats="HWC")
        self.writer.flush()
        self._copy()

    def close(self) -> None:
        self.writer.close()
        self._copy()
        if self.local:
            self.local.cleanup()

    def _copy(self) -> None:
        for file in self.folder.iterdir() if self.local else ():
            objects.put(self.url / file.name, file.read_bytes())


class _MLflow:
    """A run on the server and in the experiment that MLflow's environment variables name."""

    def __init__(self, output: Url, run: str, classes: ClassMap) -> None:
        self.mlflow, self.classes = _library("mlflow"), classes
        before = self.mlflow.search_runs(filter_string=f"tags.atrous = '{run}'", output_format="list")
        self.mlflow.start_run(
            run_id=before[0].info.run_id if before else None, run_name=output.name, tags={"atrous": run}
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            picture = Image.fromarray(draw_sample(sample, self.classes))
            # Not in MLflow's thread: Ray ends workers without waiting for it.
            self.mlflow.log_image(picture, key=sample.key.replace("/", "-"), step=step, synchronous=True)

    def close(self) -> None:
        self.mlflow.end_run()


class _WeightsAndBiases:
    """A run of the project that WANDB_PROJECT names. Steps logged before a resume stay unchanged."""

    def __init__(self, output: Url, run: str, classes: ClassMap) -> None:
        self.wandb, self.classes = _library("wandb"), classes
        self.run = self.wandb.init(id=run[:32], name=output.name, resume="allow")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def images(self, step: int, samples: Sequence[Sample]) -> None:
        pictures = [self.wandb.Image(draw_sample(sample, self.classes), caption=sample.key) for sample in samples]
        self.run.log({"samples": pictures}, step=step)

    def close(self) -> None:
        self.run.finish()


def _installed(kind: TrackerKind) -> TrackerKind:
    """Resolve `auto` to a tracker that is installed; other kinds are unchanged."""
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
    instead = "set --runtime.tracker none"
    with optional.package(kind, extra=kind, needed_by=f"--runtime.tracker {kind}", instead=instead):
        return importlib.import_module(LIBRARIES[kind])
