"""Every setting of a training run, as frozen pydantic classes: schema, command line, documentation and fingerprint.

What can change the weights is in the fingerprint; what cannot (worker counts, log lines, trackers) sits in
`RuntimeConfig` and is left out of it.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config import Scale

TRAINING_CODE_VERSION = 2
"""Raised by hand when a change of the code changes weights; part of the fingerprint."""

UNFINGERPRINTED = {"data", "output", "classes", "runtime", "license"}
"""Left out of the fingerprint: what changes no weights, and what is there as its content instead of its name."""

Factor = Annotated[float, Field(gt=0, le=10)]
_Side = Annotated[int, Field(ge=1)]
_Deviation = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Weight = Annotated[float, Field(ge=0)]
Term = Literal["cross_entropy", "ohem", "focal", "dice", "lovasz"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SetsConfig(_Frozen):
    """Which parts of the data are for what. A part holds images/ and labels/, or tars, or Parquet files."""

    train: tuple[str, ...] = Field(("train",), min_length=1, description="Parts to train on, relative to --data.")
    validation: str = Field("val", description="Part to choose the best weights on; empty cuts it from the first.")
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of images cut, where no part is given.")
    labels: str | None = Field(
        None, description="Folder, tar member or Parquet column of labels; unset: labels, png, label."
    )


class NetworkConfig(_Frozen):
    """What is trained, and from where."""

    name: str = Field("deeplab_v3plus", description="A name of `python -m jobs.models`.")
    options: dict[str, Any] = Field({}, description="Options of the network.")
    output_stride: int | None = Field(None, ge=1, description="Encoder stride; unset takes the published one.")
    channels: tuple[str, ...] = Field(("red", "green", "blue"), min_length=1, description="Bands, in their order.")
    mean: tuple[_Share, ...] = Field((0.485, 0.456, 0.406), description="Subtracted from each band, of 0 to 1.")
    std: tuple[_Deviation, ...] = Field((0.229, 0.224, 0.225), description="Divides each band after that.")
    initial: str | None = Field(None, description="Checkpoint to start from: folder or shipped name; unset: scratch.")
    initial_classes: dict[str, str] = Field(
        {}, description="Class of ours to the checkpoint's that starts it, where the names differ."
    )

    @model_validator(mode="after")
    def _one_value_per_band(self) -> "NetworkConfig":
        for name in ("mean", "std"):
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {len(self.channels)} channels")
        return self


class AugmentConfig(_Frozen):
    """How a training example is varied. Labels are never interpolated."""

    crop_px: tuple[_Side, _Side] = Field((513, 513), description="Height and width the network sees, pixels.")
    scale: tuple[Factor, Factor] = Field((0.5, 2.0), description="Random scale, from and to.")
    aspect: float = Field(1.0, ge=1, le=4, description="Random stretch of width over height, up to this factor.")
    rare_share: _Share = Field(0.0, description="Crops are drawn again until this share of pixels is of a rare class.")
    rare_tries: int = Field(10, ge=1, description="How often at most.")
    flip: bool = Field(True, description="Mirror left and right at random.")
    symmetries: bool = Field(False, description="Any of the eight symmetries of a square: for views from above.")
    brightness: _Share = Field(0.0, description="Factor on brightness, up to this far from 1.")
    contrast: _Share = Field(0.0, description="The same of contrast.")
    saturation: _Share = Field(0.0, description="The same of saturation; RGB only.")
    hue: float = Field(0.0, ge=0, le=0.5, description="Shift of hue, as a share of the circle; RGB only.")
    blur_px: float = Field(0.0, ge=0, description="Sigma of a Gaussian blur, up to this, pixels; half the images.")
    haze: _Share = Field(0.0, description="Blend towards the colour of haze, up to this share; half the images.")
    elastic_px: float = Field(0.0, ge=0, description="Deviation of an elastic deformation, pixels (U-Net: 10).")
    jpeg: int = Field(
        100, ge=10, le=100, description="Lowest JPEG quality of a round trip; half the images; 100: none."
    )

    @model_validator(mode="after")
    def _from_small_to_large(self) -> "AugmentConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale goes from {self.scale[0]:g} down to {self.scale[1]:g}")
        return self


class SampleConfig(_Frozen):
    """How often an image is drawn."""

    hard_classes: tuple[str, ...] = Field((), description="Images with one of these are drawn more often.")
    hard_times: int = Field(2, ge=1, description="How often they are, per epoch (Chen 2017, sec. 4.1: bootstrapping).")
    weak_share: _Share | None = Field(None, description="Share of weak images per batch; unset: as many as there are.")


class OptimiseConfig(_Frozen):
    """The optimiser."""

    kind: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW.")
    lr: float = Field(0.007, gt=0, description="Learning rate of the body.")
    head_lr: float = Field(1.0, gt=0, description="Factor on the learning rate of the last layers' weights.")
    head_bias_lr: float = Field(1.0, gt=0, description="Factor on that of their biases.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum.")
    weight_decay: float = Field(4e-5, ge=0, description="L2 penalty (SGD), or decoupled decay (AdamW).")
    decay_all: bool = Field(True, description="Also decay biases and batch norm, as the papers do.")
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    batch: int = Field(16, ge=1, description="Images per step, over all workers.")
    accumulate: int = Field(1, ge=1, description="Passes in which a worker takes its images of a step.")


class ScheduleConfig(_Frozen):
    """The learning rate over the steps of a phase."""

    kind: Literal["poly", "step", "cosine", "constant"] = Field("poly", description="How it falls.")
    steps: int = Field(30_000, ge=1, description="Steps of the phase.")
    power: float = Field(0.9, gt=0, description="poly: (1 - step / steps) ** power.")
    every: int = Field(2000, ge=1, description="step: steps between falls.")
    factor: float = Field(0.1, gt=0, lt=1, description="step: factor of a fall.")
    warmup: int = Field(0, ge=0, description="Steps of a linear rise at the start.")
    floor: float = Field(0.0, ge=0, lt=1, description="Share of the learning rate that is left at least.")


class LossConfig(_Frozen):
    """What is minimised."""

    terms: dict[Term, _Weight] = Field({"cross_entropy": 1.0}, min_length=1, description="Losses and their weights.")
    at: Literal["labels", "logits"] = Field(
        "labels", description="Compare at the size of labels (logits upsampled), or of logits (labels subsampled)."
    )
    class_weights: Literal["none", "inverse", "median_frequency", "effective_number"] = Field(
        "none", description="Weights of classes from their pixels in the training data."
    )
    effective_beta: float = Field(0.999, gt=0, lt=1, description="effective_number: beta, over images' pixels.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of probability spread over all classes.")
    ohem_keep: float = Field(0.0625, gt=0, le=1, description="ohem: share of the hardest pixels of an image kept.")
    ohem_below: _Share = Field(0.7, description="ohem: pixels below this probability of their class are kept as well.")
    focal_gamma: float = Field(2.0, ge=0, description="focal: exponent.")
    branches: dict[str, _Weight] = Field({}, description="Weights of the network's scores; unset takes its own.")


class WeakConfig(_Frozen):
    """What labels images are given that have only classes or boxes. Papandreou 2015, arXiv 1502.02734."""

    classes: Literal["em_fixed", "em_adapt"] = Field("em_adapt", description="From image-level classes.")
    boxes: Literal["rect", "seg", "em_fixed"] = Field("seg", description="From boxes.")
    background: str | None = Field(None, description="Class every image has; unset takes the class with id 0.")
    bias_fg: float = Field(5.0, description="em_fixed: added to the scores of present classes.")
    bias_bg: float = Field(3.0, description="em_fixed: added to those of background.")
    share_fg: _Share = Field(0.2, description="em_adapt: share of pixels each present class gets at least.")
    share_bg: _Share = Field(0.4, description="em_adapt: the same of background.")
    sure_share: _Share = Field(0.2, description="seg: share of a box, around its centre, that is surely of its class.")


class Phase(_Frozen):
    """A later phase: starts from the weights before it; what is unset stays as it was."""

    name: str = Field(description="For logs and curves.")
    schedule: ScheduleConfig = Field(description="Its learning rates.")
    lr: float | None = Field(None, gt=0, description="Learning rate of the body.")
    output_stride: int | None = Field(None, ge=1, description="Encoder stride.")
    options: dict[str, Any] = Field({}, description="Options of the network that change.")
    batch_norm: Literal["train", "sync", "frozen"] | None = Field(None, description="As above.")
    batch: int | None = Field(None, ge=1, description="Images per step.")
    train: tuple[str, ...] | None = Field(None, min_length=1, description="Parts to train on.")


class ValidateConfig(_Frozen):
    """When and how the weights are judged."""

    every: int = Field(1000, ge=1, description="Steps between validations; there is one at the end.")
    limit: int | None = Field(None, ge=1, description="Only the first N images; unset takes all.")
    scales: tuple[Scale, ...] = Field((1.0,), min_length=1, description="Mean of probabilities over these scales.")
    flip: bool = Field(False, description="And over the mirrored image.")
    samples: int = Field(8, ge=0, description="Predictions shown to the tracker and in the report.")

    @model_validator(mode="after")
    def _scales_differ(self) -> "ValidateConfig":
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {self.scales} hold the same one twice")
        return self


class TrainRuntimeConfig(_Frozen):
    """Everything that does not change what is learned, but for rounding: outside the fingerprint."""

    workers: int = Field(1, ge=1, description="Training processes; on GPUs one each.")
    min_workers: int | None = Field(None, ge=1, description="Elastic: go on with as few as this; unset: never fewer.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where the cluster has them.")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs reserved per training process.")
    expect_cpus: int | None = Field(None, ge=1, description="CPUs an autoscaling cluster will reach.")
    expect_gpus: int | None = Field(None, ge=0, description="GPUs an autoscaling cluster will reach.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs, fp32 on CPUs.")
    channels_last: bool = Field(True, description="Memory format of images and weights.")
    compile: bool = Field(False, description="torch.compile the network.")
    loader_workers: int = Field(1, ge=0, description="Processes per worker that decode and vary images; 0: none.")
    prefetch: int = Field(4, ge=1, description="Batches each of them is ahead.")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    max_failures: int = Field(3, ge=0, description="Worker failures before the run gives up.")
    log_every: int = Field(20, ge=1, description="Steps between progress lines and points of the curves.")
    tracker: Literal["auto", "tensorboard", "mlflow", "wandb", "none"] = Field(
        "auto", description="Where curves go; auto: TensorBoard's files where it is installed, else the report only."
    )
    cache: str | None = Field(None, description="Local folder for a copy of the data; unset: a temporary one.")
    log_format: Literal["human", "json"] = Field("human", description="Log lines for people, or JSON.")

    @model_validator(mode="after")
    def _fewest_are_no_more_than_most(self) -> "TrainRuntimeConfig":
        if self.min_workers and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        return self


class TrainConfig(_Frozen):
    """Train a network on labelled images and leave a checkpoint that segment_dataset takes."""

    data: str = Field(description="Folder of the labelled data: local or s3://.")
    output: str = Field(description="Folder that receives model.safetensors, card.json, checkpoints/ and report/.")
    classes: str | None = Field(None, description="Class map name or YAML; unset takes classes.yaml of the data.")
    license: str = Field("unknown", description="SPDX name, or words, of the licence that the weights come under.")
    seed: int = Field(0, ge=0, description="Of first weights, order, augmentation and dropout.")
    overfit: int | None = Field(None, ge=1, description="Train and validate on the first N images, never varied.")
    sets: SetsConfig = Field(SetsConfig(), description="Parts of the data.")
    network: NetworkConfig = Field(NetworkConfig(), description="Network.")
    augment: AugmentConfig = Field(AugmentConfig(), description="Variation.")
    sample: SampleConfig = Field(SampleConfig(), description="Drawing.")
    optimise: OptimiseConfig = Field(OptimiseConfig(), description="Optimiser.")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="Learning rate.")
    loss: LossConfig = Field(LossConfig(), description="Loss.")
    weak: WeakConfig = Field(WeakConfig(), description="Weak labels.")
    batch_norm: Literal["train", "sync", "frozen"] = Field(
        "train", description="Statistics per worker, over all workers, or the initial weights' kept."
    )
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average of weights that is kept; 0: none.")
    half: bool = Field(True, description="Keep the best weights in float16; they are judged as they are kept.")
    then: tuple[Phase, ...] = Field((), description="Later phases; from a file only.")
    validation: ValidateConfig = Field(ValidateConfig(), description="Validation.")
    runtime: TrainRuntimeConfig = Field(TrainRuntimeConfig(), description="Workers, checkpoints, trackers.")

    def phases(self) -> tuple["TrainConfig", ...]:
        """The run as one config per phase, the first of them this one."""
        made = [self]
        for phase in self.then:
            made.append(_changed(made[-1], phase))
        return tuple(made)

    def fingerprint(self, *, data: str, initial: str | None, classes: Any) -> str:
        """Identify everything that can change the weights: 64 hex digits.

        Args:
            data: fingerprint of the examples, their labels and order.
            initial: SHA-256 of the checkpoint it starts from.
            classes: the class map, as plain data.
        """
        said = self.model_dump(mode="json", exclude=UNFINGERPRINTED)
        said["network"].pop("initial")
        said |= {"data": data, "initial": initial, "classes": classes, "code": TRAINING_CODE_VERSION}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _changed(before: TrainConfig, phase: Phase) -> TrainConfig:
    network = before.network.model_copy(
        update={
            "options": before.network.options | phase.options,
            "output_stride": phase.output_stride or before.network.output_stride,
        }
    )
    optimise = before.optimise.model_copy(
        update={"lr": phase.lr or before.optimise.lr, "batch": phase.batch or before.optimise.batch}
    )
    return before.model_copy(
        update={
            "network": network,
            "optimise": optimise,
            "schedule": phase.schedule,
            "batch_norm": phase.batch_norm or before.batch_norm,
            "sets": before.sets.model_copy(update={"train": phase.train or before.sets.train}),
        }
    )
