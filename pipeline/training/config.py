"""Settings of a training run as frozen pydantic classes: schema, command line, documentation and fingerprint.

The fingerprint holds every setting that can change the weights. Settings that cannot (worker counts, log lines,
trackers) are in `TrainRuntimeConfig`, outside it.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tyro.conf import Suppress

from pipeline.config import BandScale, LabelsConfig, Scale
from pipeline.models.normalisation import IMAGENET
from pipeline.store.url import Url

TRAINING_CODE_VERSION = 2
"""Version of the training code in the fingerprint; raised by hand when a change of code changes weights."""

UNFINGERPRINTED = {"data", "output", "classes", "runtime", "license"}
"""Fields outside the fingerprint: they change no weights, or their content is hashed instead of their name."""

Factor = Annotated[float, Field(gt=0, le=10)]
_Side = Annotated[int, Field(ge=1)]
_Deviation = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Weight = Annotated[float, Field(ge=0)]
Term = Literal["cross_entropy", "ohem", "bootstrapped", "focal", "dice", "lovasz"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SetsConfig(LabelsConfig):
    """Parts of the data to train and validate on. A part holds images/ and labels/, or tars, or Parquet files."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train: tuple[str, ...] = Field(("train",), min_length=1, description="Training parts, relative to --data.")
    validation: str = Field(
        "val", description="Validation part, which selects the best weights; empty: split from sets.train."
    )
    validation_share: float = Field(
        0.1, gt=0, lt=1, description="Validation share of images when sets.validation is empty."
    )
    hold_out: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="Held-out groups, such as drives, fields or days: images of sets.train whose names begin so "
        "validate and are never trained on; sets.validation is not read.",
    )
    labels: str | None = Field(
        None, description="Label folder, tar member or Parquet column; default: labels, png, label."
    )
    max_left_out_share: _Share = Field(
        0.01, description="Largest share of images left out, undecodable or without a label; more stops the run."
    )
    max_ignored_share: _Share = Field(
        0.95, description="Largest share of ignored pixels in the training labels; more stops the run."
    )


class NetworkConfig(_Frozen):
    """Architecture, input bands and initial weights."""

    name: str = Field("deeplab_v3plus", description="Architecture; `python -m jobs.models` lists the names.")
    options: dict[str, Any] = Field({}, description="Architecture options, by name.")
    output_stride: int | None = Field(None, ge=1, description="Encoder output stride; default: the published one.")
    channels: tuple[str, ...] = Field(("red", "green", "blue"), min_length=1, description="Input bands, in this order.")
    mean: tuple[_Share, ...] = Field(
        IMAGENET.mean, description="Mean of each band, on values of 0 to 1; subtracted first."
    )
    std: tuple[_Deviation, ...] = Field(
        IMAGENET.std, description="Standard deviation of each band; divides after the mean is subtracted."
    )
    scale: Annotated[BandScale | None, Suppress] = Field(
        None, description="Scale of stored samples to 8 bits, from the manifest.json of a set of rasters; no flag."
    )
    initial: str | None = Field(
        None,
        description="Initial weights: checkpoint folder, or name of a shipped one or of a pretrained backbone, as "
        "`atrous models` lists them; default: from scratch.",
    )
    initial_classes: dict[str, str] = Field(
        {}, description="Class of this run to the checkpoint's class that initialises it, where the names differ."
    )

    @model_validator(mode="after")
    def _one_value_per_band(self) -> "NetworkConfig":
        for name in ("mean", "std"):
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values, channels has {len(self.channels)}: one each"
                )
        if self.scale is not None and len(self.scale.low) != len(self.channels):
            raise ValueError(f"scale has {len(self.scale.low)} bands, channels has {len(self.channels)}: one each")
        return self


class AugmentConfig(_Frozen):
    """Augmentation of training examples. Labels are never interpolated."""

    crop_px: tuple[_Side, _Side] = Field(
        (513, 513), description="Crop height and width in pixels, the network's input."
    )
    scale: tuple[Factor, Factor] = Field((0.5, 2.0), description="Range of the random scale.")
    aspect: float = Field(1.0, ge=1, le=4, description="Aspect ratio: largest random stretch of width over height.")
    rare_share: _Share = Field(
        0.0, description="Rare-class share: a crop with a smaller share of rare-class pixels is drawn again."
    )
    rare_tries: int = Field(10, ge=1, description="Largest number of crops drawn for rare_share.")
    flip: bool = Field(True, description="Random horizontal flip.")
    symmetries: bool = Field(False, description="Random rotation by 90 degrees and flip; for views from above.")
    brightness: _Share = Field(0.0, description="Brightness factor: 1 plus or minus at most this.")
    contrast: _Share = Field(0.0, description="Contrast factor: 1 plus or minus at most this.")
    saturation: _Share = Field(0.0, description="Saturation factor: 1 plus or minus at most this; RGB only.")
    hue: float = Field(0.0, ge=0, le=0.5, description="Hue shift, as a share of the colour circle; RGB only.")
    blur_px: float = Field(0.0, ge=0, description="Gaussian blur: largest sigma, pixels; on half the images.")
    haze: _Share = Field(0.0, description="Haze: largest share of bright grey blended in; on half the images.")
    gamma: float = Field(
        1.0, ge=1, le=4, description="Gamma: exponent of the levels from 1 / gamma (brighter) to gamma (darker)."
    )
    noise: _Share = Field(
        0.0, description="Gaussian noise: largest standard deviation, as a share of 255; on half the images."
    )
    elastic_px: float = Field(
        0.0, ge=0, description="Elastic deformation: standard deviation of displacements, pixels (U-Net: 10)."
    )
    jpeg: int = Field(100, ge=10, le=100, description="JPEG compression: lowest quality; on half the images; 100: off.")

    @model_validator(mode="after")
    def _from_small_to_large(self) -> "AugmentConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must not decrease, got {self.scale[0]:g} to {self.scale[1]:g}")
        return self


class SampleConfig(_Frozen):
    """Sampling of training images."""

    hard_classes: tuple[str, ...] = Field((), description="Hard classes: images that contain one are repeated.")
    hard_times: int = Field(
        2, ge=1, description="Repeats per epoch of images with a hard class (bootstrapping, Chen 2017, sec. 4.1)."
    )
    weak_share: _Share | None = Field(
        None, description="Weakly labelled share of each batch; default: their share of the data."
    )


class OptimiseConfig(_Frozen):
    """The optimiser."""

    kind: Literal["sgd", "adamw"] = Field("sgd", description="Optimiser: SGD with momentum, or AdamW.")
    lr: float = Field(0.007, gt=0, description="Learning rate of the body, before the schedule.")
    head_lr: float = Field(1.0, gt=0, description="Learning rate factor of the last layers' weights.")
    head_bias_lr: float = Field(1.0, gt=0, description="Learning rate factor of the last layers' biases.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(4e-5, ge=0, description="Weight decay: L2 penalty (SGD) or decoupled (AdamW).")
    decay_all: bool = Field(True, description="Decay biases and batch norm too, as the papers do.")
    clip_norm: float | None = Field(None, gt=0, description="Gradient clipping: largest norm; default: off.")
    batch: int = Field(16, ge=1, description="Batch size: images per step, over all workers.")
    accumulate: int = Field(1, ge=1, description="Gradient accumulation: passes per step on each worker.")


class ScheduleConfig(_Frozen):
    """Learning rate schedule of a phase."""

    kind: Literal["poly", "step", "cosine", "constant"] = Field("poly", description="Decay of the learning rate.")
    steps: int = Field(30_000, ge=1, description="Length of the phase, steps.")
    power: float = Field(0.9, gt=0, description="poly: exponent of (1 - step / steps).")
    every: int = Field(2000, ge=1, description="step: steps between reductions.")
    factor: float = Field(0.1, gt=0, lt=1, description="step: factor of each reduction.")
    warmup: int = Field(0, ge=0, description="Linear warm-up, steps.")
    floor: float = Field(0.0, ge=0, lt=1, description="Smallest share of lr that the decay reaches.")


class LossConfig(_Frozen):
    """Training loss."""

    terms: dict[Term, _Weight] = Field(
        {"cross_entropy": 1.0}, min_length=1, description="Loss terms and their weights."
    )
    at: Literal["labels", "logits"] = Field(
        "labels", description="Loss resolution: labels (logits are upsampled) or logits (labels are subsampled)."
    )
    class_weights: Literal["none", "inverse", "inverse_log", "median_frequency", "effective_number"] = Field(
        "none", description="Class weights, from pixel counts of the training data."
    )
    effective_beta: float = Field(0.999, gt=0, lt=1, description="effective_number: beta (Cui 2019).")
    log_offset: float = Field(1.02, gt=1, description="inverse_log: c of 1 / ln(c + share) (ENet: 1.02; ESPNet: 1.1).")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing: share of probability spread over all classes."
    )
    ohem_keep: float = Field(0.0625, gt=0, le=1, description="ohem: share of each image's pixels kept, the hardest.")
    ohem_below: _Share = Field(0.7, description="ohem: also keep pixels whose class has a probability below this.")
    bootstrapped_pixels: int = Field(
        32_768,
        ge=1,
        description="bootstrapped: number of each image's pixels in the mean, those with the largest loss.",
    )
    focal_gamma: float = Field(2.0, ge=0, description="focal: exponent gamma.")
    branches: dict[str, _Weight] = Field(
        {}, description="Weight of each score output of the network; default: the network's own."
    )


class DistillConfig(_Frozen):
    """Distillation: a trained network's probabilities as a second target. Hinton 2015, arXiv 1503.02531."""

    teacher: str | None = Field(
        None, description="Teacher: checkpoint of the same classes, folder or shipped name; default: none."
    )
    weight: float = Field(1.0, gt=0, description="Weight of KL(teacher || student), the mean over labelled pixels.")
    temperature: float = Field(1.0, gt=0, description="Temperature: divides the scores of both before softmax.")


class WeakConfig(_Frozen):
    """Weak supervision: pixel labels from image-level classes or boxes. Papandreou 2015, arXiv 1502.02734."""

    classes: Literal["em_fixed", "em_adapt"] = Field(
        "em_adapt", description="Labels from image-level classes: EM-Fixed or EM-Adapt."
    )
    boxes: Literal["rect", "seg", "em_fixed"] = Field(
        "seg", description="Labels from boxes: Bbox-Rect (rect), Bbox-Seg (seg) or Bbox-EM-Fixed."
    )
    background: str | None = Field(None, description="Background class, present in every image; default: id 0.")
    bias_fg: float = Field(5.0, description="em_fixed: bias on the scores of present classes.")
    bias_bg: float = Field(3.0, description="em_fixed: bias on the score of background.")
    share_fg: _Share = Field(0.2, description="em_adapt: smallest pixel share of each present class.")
    share_bg: _Share = Field(0.4, description="em_adapt: smallest pixel share of background.")
    sure_share: _Share = Field(0.2, description="seg: share of a box around its centre that is fixed to its class.")


class Phase(_Frozen):
    """A later phase: starts from the weights of the phase before it and keeps every unset setting."""

    name: str = Field(description="Phase name in logs and curves.")
    schedule: ScheduleConfig = Field(description="Learning rate schedule of the phase.")
    lr: float | None = Field(None, gt=0, description="Learning rate of the body, before the schedule.")
    output_stride: int | None = Field(None, ge=1, description="Encoder output stride.")
    options: dict[str, Any] = Field({}, description="Architecture options that change.")
    batch_norm: Literal["train", "sync", "frozen"] | None = Field(None, description="Batch norm, as in the run.")
    batch: int | None = Field(None, ge=1, description="Batch size: images per step, over all workers.")
    train: tuple[str, ...] | None = Field(None, min_length=1, description="Training parts, relative to --data.")


class ValidateConfig(_Frozen):
    """Validation of the weights during training."""

    every: int = Field(1000, ge=1, description="Validation interval, steps; the end of a phase is always validated.")
    limit: int | None = Field(
        None, ge=1, description="Largest number of images validated, the first ones; default: all."
    )
    scales: tuple[Scale, ...] = Field(
        (1.0,), min_length=1, description="Multi-scale validation: probabilities are averaged over these scales."
    )
    flip: bool = Field(False, description="Average over the mirrored image too.")
    samples: int = Field(8, ge=0, description="Sample predictions in the tracker and the report.")

    @model_validator(mode="after")
    def _scales_differ(self) -> "ValidateConfig":
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales must differ, got {self.scales}")
        return self


class TrainRuntimeConfig(_Frozen):
    """Workers, precision, checkpoints and logs: outside the fingerprint, as they change weights by rounding alone."""

    workers: int = Field(1, ge=1, description="Training processes, one GPU each where there are GPUs.")
    min_workers: int | None = Field(
        None, ge=1, description="Elastic training: smallest number of workers; default: runtime.workers."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device; auto: GPUs where the cluster has them.")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs reserved per training process.")
    expect_cpus: int | None = Field(None, ge=1, description="CPUs that an autoscaling cluster will reach.")
    expect_gpus: int | None = Field(None, ge=0, description="GPUs that an autoscaling cluster will reach.")
    start_limit_s: float = Field(
        1800.0, gt=0, description="Longest wait for the first expected CPU and GPU of a cluster, seconds."
    )
    dashboard: bool = Field(
        False, description="Start Ray's dashboard with a local Ray, on 127.0.0.1; a cluster has its own."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Number format of convolutions; auto: bf16 on GPUs, fp32 on CPUs."
    )
    channels_last: bool = Field(True, description="Channels-last memory format of images and weights.")
    compile: bool = Field(False, description="Compile the network with torch.compile.")
    loader_workers: int = Field(
        1, ge=0, description="Loader processes per worker, which decode and augment; 0: load in the worker."
    )
    prefetch: int = Field(4, ge=1, description="Batches that each loader process prepares ahead.")
    checkpoint_every: int = Field(500, ge=1, description="Checkpoint interval, steps.")
    max_failures: int = Field(3, ge=0, description="Worker failures that are retried before the run fails.")
    log_every: int = Field(20, ge=1, description="Interval of progress lines and curve points, steps.")
    tracker: Literal["auto", "tensorboard", "mlflow", "wandb", "none"] = Field(
        "auto", description="Tracker of curves; auto: TensorBoard files where it is installed, else the report only."
    )
    cache: str | None = Field(
        None, description="Local folder that caches the data; default: below the temporary folder."
    )
    log_format: Literal["human", "json"] = Field("human", description="Log format: lines for people, or JSON.")

    @model_validator(mode="after")
    def _fewest_are_no_more_than_most(self) -> "TrainRuntimeConfig":
        if self.min_workers and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} exceeds workers {self.workers}")
        return self


LATER_SETTINGS = {
    "sets": (*LabelsConfig.model_fields, "hold_out"),
    "network": ("scale",),
    "augment": ("gamma", "noise"),
    "loss": ("bootstrapped_pixels", "log_offset"),
    "distill": tuple(DistillConfig.model_fields),
}
"""Settings by section that are younger than the fingerprint: a default is left out of it, so that older runs go on."""


class TrainConfig(_Frozen):
    """Train a network on labelled images and write a checkpoint for segment_dataset."""

    data: str = Field(description="Labelled data: local folder or s3:// URL.")
    output: str = Field(description="Output folder for model.safetensors, card.json, checkpoints/ and report/.")
    classes: str | None = Field(None, description="Class map: name or YAML file; default: classes.yaml of the data.")
    license: str = Field("unknown", description="Licence of the weights: SPDX name or words.")
    seed: int = Field(0, ge=0, description="Random seed of initial weights, order, augmentation and dropout.")
    overfit: int | None = Field(
        None, ge=1, description="Overfitting test: train and validate on the first N images, without augmentation."
    )
    sets: SetsConfig = Field(SetsConfig(), description="Parts of the data.")
    network: NetworkConfig = Field(NetworkConfig(), description="Network.")
    augment: AugmentConfig = Field(AugmentConfig(), description="Augmentation.")
    sample: SampleConfig = Field(SampleConfig(), description="Sampling.")
    optimise: OptimiseConfig = Field(OptimiseConfig(), description="Optimiser.")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="Learning rate schedule.")
    loss: LossConfig = Field(LossConfig(), description="Loss.")
    distill: DistillConfig = Field(DistillConfig(), description="Distillation from a teacher.")
    weak: WeakConfig = Field(WeakConfig(), description="Weak labels.")
    batch_norm: Literal["train", "sync", "frozen"] = Field(
        "train", description="Batch norm statistics: per worker, over all workers, or frozen at the initial weights'."
    )
    ema: float = Field(0.0, ge=0, lt=1, description="Exponential moving average (EMA) of weights: decay; 0: off.")
    half: bool = Field(
        True, description="Save the best weights in float16, which are also the weights that are validated."
    )
    then: tuple[Phase, ...] = Field((), description="Later phases; in a config file only.")
    validation: ValidateConfig = Field(ValidateConfig(), description="Validation.")
    runtime: TrainRuntimeConfig = Field(TrainRuntimeConfig(), description="Workers, checkpoints, trackers.")

    @property
    def output_url(self) -> Url:
        """The output folder."""
        return Url(self.output)

    def phases(self) -> tuple["TrainConfig", ...]:
        """One config per phase; the first is this one."""
        configs = [self]
        for phase in self.then:
            configs.append(_apply_phase(configs[-1], phase))
        return tuple(configs)

    def weight_settings(self) -> dict[str, Any]:
        """Settings that can change the weights, as plain data."""
        plain = self.model_dump(mode="json", exclude=UNFINGERPRINTED)
        for name in ("max_left_out_share", "max_ignored_share"):
            plain["sets"].pop(name)
        for section, names in LATER_SETTINGS.items():
            chosen = getattr(self, section)
            for name in names:
                if getattr(chosen, name) == type(chosen).model_fields[name].default:
                    plain[section].pop(name)
        if not plain["distill"]:
            plain.pop("distill")
        return plain

    def fingerprint(self, *, data: str, initial: str | None, classes: Any, teacher: str | None = None) -> str:
        """Hash everything that can change the weights: 64 hex digits.

        Args:
            data: fingerprint of the examples, their labels and order.
            initial: SHA-256 of the initial checkpoint; None: from scratch.
            classes: the class map as plain data.
            teacher: SHA-256 of the teacher; None: no teacher.
        """
        facts = self.weight_settings()
        facts["network"].pop("initial")
        distill = facts.pop("distill", {})
        distill.pop("teacher", None)
        facts |= {"distill": distill} if distill else {}
        facts |= {"teacher": teacher} if teacher else {}
        facts |= {"data": data, "initial": initial, "classes": classes, "code": TRAINING_CODE_VERSION}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _apply_phase(before: TrainConfig, phase: Phase) -> TrainConfig:
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
