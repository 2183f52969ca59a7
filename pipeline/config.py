"""Every setting of a run, as frozen pydantic classes.

The same classes are schema, validation, command line, documentation and fingerprint. What can change a mask is in the
fingerprint; what cannot (worker counts, log format, where to report) sits in `RuntimeConfig` and is left out of it.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from pipeline.errors import ConfigError

CODE_VERSION = 2
"""Raised by hand when a change of the code changes masks; part of the fingerprint."""

_Channel = Annotated[int, Field(ge=0, le=255)]
Scale = Annotated[float, Field(ge=0.1, le=4)]
LabelValue = Annotated[int, Field(ge=0, le=65535)]
Width = Annotated[float, Field(gt=0, le=1000)]
_Weight = Annotated[float, Field(ge=0)]
EngineName = Literal["native", "torch", "pydensecrf", "domain_transform", "none"]
"""Keys of `refine.engine.REFINE_ENGINES`."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReadConfig(_Frozen):
    """How the source is listed and cut into shards."""

    kind: Literal["auto", "folder", "webdataset", "parquet"] = Field(
        "auto", description="What the source holds; auto decides by file names."
    )
    slice_images: int = Field(64, ge=1, description="Images per shard of a folder, on average.")
    image_column: str = Field("image", description="Parquet column: binary, or struct of bytes and path.")
    key_column: str | None = Field(
        None, description="Parquet column of names that keys end with; unset, or where there is none: row numbers."
    )
    on_duplicate: Literal["fail", "suffix"] = Field(
        "fail", description="A key met twice: stop before _SUCCESS, or keep both as key and key~2."
    )
    labels: str | None = Field(
        None, description="Labels to deliver: URL of their folder, tar member (png, seg.png) or Parquet column."
    )


class DecodeConfig(_Frozen):
    """What is accepted as an image, and how it becomes 8-bit RGB."""

    formats: tuple[Literal["jpeg", "png", "webp", "tiff", "bmp"], ...] = Field(
        ("jpeg", "png", "webp", "tiff"), min_length=1, description="Formats that may be decoded."
    )
    max_mpx: float = Field(100.0, gt=0, description="Megapixels the header may announce.")
    max_mib: float = Field(256.0, gt=0, description="Size of one encoded image, MiB.")
    min_px: int = Field(1, ge=1, description="Smallest side accepted, pixels.")
    frame: Literal["fail", "first"] = Field("fail", description="Files of several frames: refuse, or take the first.")
    sixteen_bit: Literal["divide", "percentile"] = Field(
        "divide", description="16-bit to 8-bit: value/257, or stretch percentiles 2 to 98 of the image."
    )
    background: tuple[_Channel, _Channel, _Channel] = Field((0, 0, 0), description="Colour under transparent pixels.")


class TileConfig(_Frozen):
    """How an image of any size becomes inputs of the network."""

    mode: Literal["sliding", "whole"] = Field(
        "sliding", description="Cut large images into tiles, or give the network every image whole."
    )
    whole_mpx: float = Field(4.0, gt=0, description="Megapixels the network takes at once with mode whole.")
    tile_px: int = Field(512, ge=64, multiple_of=32, description="Images a quarter larger than this are cut, pixels.")
    overlap_px: int = Field(128, ge=0, multiple_of=32, description="Overlap of neighbouring tiles, pixels.")
    bucket_px: int = Field(32, ge=32, multiple_of=32, description="Smaller images are padded to multiples of this.")

    @model_validator(mode="after")
    def _tiles_advance(self) -> "TileConfig":
        if self.overlap_px * 2 > self.tile_px:
            raise ValueError(f"overlap_px {self.overlap_px} is more than half of tile_px {self.tile_px}")
        return self


class InferConfig(_Frozen):
    """How the network runs."""

    batch: int | None = Field(
        None, ge=1, description="Tiles per forward pass, halved when the GPU runs out of memory; unset: 16, on a CPU 2."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else fp16 on GPU and fp32 on CPU."
    )
    output_stride: Literal[8, 16] | None = Field(None, description="Encoder stride; unset takes the checkpoint's.")
    scales: tuple[Scale, ...] = Field(
        (1.0,), min_length=1, description="Look at every image at these sizes, factors of its own."
    )
    flip: bool = Field(False, description="Look at every image mirrored left to right as well.")
    fuse: Literal["mean_probability", "max_score"] = Field(
        "mean_probability", description="What several looks become: mean of probabilities (v3), maximum of scores (v2)."
    )
    compile: bool = Field(False, description="Compile the network with torch.compile when a worker starts.")
    max_logits_mib: float = Field(1024.0, gt=0, description="Size of the logits of one image in float16, MiB.")

    @model_validator(mode="after")
    def _scales_differ(self) -> "InferConfig":
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {self.scales} hold the same one twice")
        return self


class RefineConfig(_Frozen):
    """How boundaries are refined."""

    engine: EngineName = Field(
        "native",
        description="Dense CRF in C++, in torch or by pydensecrf; an edge-aware filter; or the network's mask.",
    )
    preset: str = Field("deeplab-v2", description="Published parameters; `pipeline/refine/presets.py` lists them.")
    bi_w: float | None = Field(None, ge=0, description="Overrides the preset: weight of the bilateral kernel (w1).")
    bi_xy: float | None = Field(
        None, gt=0, description="Overrides the preset: its spatial sigma, pixels (theta alpha)."
    )
    bi_rgb: float | None = Field(None, gt=0, description="Overrides the preset: its sigma in colour (theta beta).")
    pos_w: float | None = Field(None, ge=0, description="Overrides the preset: weight of the smoothness kernel (w2).")
    pos_xy: float | None = Field(None, gt=0, description="Overrides the preset: its sigma, pixels (theta gamma).")
    iterations: int | None = Field(None, ge=1, le=100, description="Overrides the preset: iterations.")
    spatial: Literal["auto", "lattice", "separable"] = Field(
        "auto", description="native: smoothness kernel on a lattice as pydensecrf, or exactly, row by row."
    )
    freeze: float = Field(
        0.99,
        ge=0,
        le=1,
        description="native: pixels the network is surer of than this keep its answer; 1 freezes none.",
    )
    sigma_s: float = Field(100.0, gt=0, description="domain_transform: spatial sigma where there are no edges, pixels.")
    sigma_r: float = Field(1.0, gt=0, description="domain_transform: an edge this strong is as far as sigma_s pixels.")
    prune: float = Field(
        0.05, ge=0, lt=0.5, description="Drop classes whose probability stays below this everywhere; 0 keeps all."
    )
    window_px: int = Field(1024, ge=128, description="Images larger than this are refined in windows, pixels.")
    deadline_s: float = Field(60.0, gt=0, description="Give up refining an image after this, keep its mask, seconds.")


class RuntimeConfig(_Frozen):
    """Everything that cannot change a mask: outside the fingerprint."""

    infer_workers: int | None = Field(None, ge=1, description="Network actors; unset: one per GPU, or by CPU count.")
    refine_workers: int | None = Field(None, ge=1, description="Refiner actors at most; unset: one per CPU.")
    expect_cpus: int | None = Field(
        None, ge=1, description="CPUs the cluster will scale up to; unset: what it has now."
    )
    expect_gpus: int | None = Field(None, ge=0, description="GPUs it will scale up to; unset: what it has now.")
    decode_threads: int = Field(4, ge=1, description="Decoding threads beside each network.")
    rows_per_part: int = Field(256, ge=1, description="Rows per committed Parquet part.")
    block_mib: float = Field(2.0, gt=0, description="Size of the blocks between stages, MiB.")
    max_failed_fraction: float = Field(0.01, ge=0, le=1, description="More failed rows than this: exit status 1.")
    lease_s: float = Field(30.0, gt=0, description="A driver silent for this long has lost the output, seconds.")
    item_timeout_s: float = Field(600.0, gt=0, description="A worker stuck on an image this long is killed, seconds.")
    progress_s: float = Field(5.0, gt=0, description="Seconds between progress lines.")
    log_format: Literal["human", "json"] = Field("human", description="Log lines for people, or one JSON object each.")
    previews: int = Field(48, ge=0, description="About how many images of the run are kept small for the report.")


class SegmentConfig(_Frozen):
    """Segment every image under SOURCE and commit masks and statistics as Parquet under OUTPUT."""

    source: tuple[str, ...] = Field(min_length=1, description="Folder, tar or Parquet URLs: local, s3://, memory://.")
    output: str = Field(description="Folder that receives run=<fingerprint>/.")
    checkpoint: str = Field(
        description="Folder with model.safetensors and card.json, or a shipped name: farmland, camvid, cwfid."
    )
    classes: str | None = Field(None, description="Class map name or YAML file; unset takes the checkpoint's.")
    limit: int | None = Field(None, ge=1, description="Segment only the first N images, into a run of their own.")
    read: ReadConfig = Field(ReadConfig(), description="Listing and sharding.")
    decode: DecodeConfig = Field(DecodeConfig(), description="Decoding.")
    tile: TileConfig = Field(TileConfig(), description="Tiling.")
    infer: InferConfig = Field(InferConfig(), description="Network.")
    refine: RefineConfig = Field(RefineConfig(), description="Refinement.")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="Workers, progress, commits.")

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def fingerprint(self, *, model_sha256: str, classes: Any) -> str:
        """Identify everything that can change a mask: 64 hex digits.

        Args:
            model_sha256: digest of the checkpoint's weights and card.
            classes: the class map in use, as plain data.
        """
        said = self.model_dump(mode="json", include={"read", "decode", "tile", "infer", "refine", "limit"})
        said["read"].pop("slice_images")
        said["read"].pop("labels")
        if self.read.key_column is None:  # runs from before there was this setting are continued
            said["read"].pop("key_column")
        said["infer"].pop("batch")
        said |= {"source": self.source, "model": model_sha256, "classes": classes, "code": CODE_VERSION}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class JudgeConfig(_Frozen):
    """What is counted of every answer, and how its label is read: part of the fingerprint of an evaluation."""

    labels_as: Literal["ids", "colours"] = Field("ids", description="What pixels of labels are: class ids, or colours.")
    label_ids: dict[LabelValue, _Channel] = Field(
        {}, description="Class id of each value that labels may have; empty leaves values as they are."
    )
    ignored_colours: tuple[tuple[_Channel, _Channel, _Channel], ...] = Field(
        ((0, 0, 0), (224, 224, 192)),
        description="labels_as colours: those of pixels without a class, unless a class has them.",
    )
    trimap_px: tuple[Width, ...] = Field(
        (1, 2, 4, 8, 16, 32), max_length=32, description="Half widths of the bands around boundaries, pixels."
    )
    boundary_share: float = Field(
        0.02, gt=0, le=0.5, description="Boundary IoU: reach over the diagonal of the image (Cheng 2021)."
    )

    @field_validator("trimap_px", mode="after")
    @classmethod
    def _widths_ascend(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("widths of bands ascend")
        return value


class ScoreConfig(_Frozen):
    """How counts become scores: changes no count, so a finished run is scored anew without running again."""

    absent: Literal["skip", "unlabelled", "zero", "one"] = Field(
        "skip",
        description="A class in neither labels nor answers has no score; unlabelled: nor has one that is only in "
        "answers; or it scores 0 or 1.",
    )
    class_weights: dict[str, _Weight] = Field(
        {}, description="Weights of classes in every mean, by name; others weigh 1."
    )
    background: str | None = Field("background", description="Class left out of the means without background.")
    band_px: float | None = Field(
        None, gt=0, description="Pixels this near a boundary weigh `band_weight`; a trimap_px."
    )
    band_weight: float = Field(0.0, ge=0, le=1, description="What they weigh; 0 leaves them out.")
    samples: int = Field(1000, ge=100, description="Draws of the bootstrap.")
    level: float = Field(0.95, gt=0, lt=1, description="Share of the draws inside an interval.")
    seed: int = Field(0, ge=0, description="Of the draws.")
    slice_columns: tuple[str, ...] = Field(
        ("source",),
        description="A table of scores for every value of these columns, of the rows or `source` or `size`.",
    )
    slice_pattern: str | None = Field(
        None, description="Regular expression searched in keys: a table for every named group, such as (?P<place>..)."
    )

    @field_validator("slice_pattern", mode="after")
    @classmethod
    def _groups_have_names(cls, value: str | None) -> str | None:
        try:
            named = re.compile(value or "").groupindex
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        if value is not None and not named:
            raise ValueError(f"{value!r} has no named group such as (?P<place>[^/]+)")
        return value


class Setting(_Frozen):
    """What one setting of an evaluation does otherwise than the others; unset is as they have it."""

    checkpoint: str | None = Field(None, description="Another checkpoint.")
    tile: TileConfig | None = Field(None, description="Tiling; what is not said stays.")
    infer: InferConfig | None = Field(None, description="Network; what is not said stays.")
    refine: RefineConfig | None = Field(None, description="Refinement; what is not said stays.")


class EvaluateConfig(SegmentConfig):
    """Score every image under SOURCE against its label: with and without refinement, in as many settings as asked."""

    output: str = Field("", description="Folder that receives the runs and the report; unset: beside --history.")
    checkpoint: str = Field(
        "", description="Folder with model.safetensors and card.json, or a shipped name: farmland, camvid, cwfid."
    )
    masks: str | None = Field(None, description="Score these masks instead: URL of a run, or of a folder of PNGs.")
    judge: JudgeConfig = Field(JudgeConfig(), description="Labels, and what is counted.")
    score: ScoreConfig = Field(ScoreConfig(), description="Scores, intervals, slices.")
    settings: dict[str, Setting] = Field({}, description="Several in one go, by name; in the YAML file only.")
    history: str | None = Field(None, description="Folder of evaluations to which this one is added.")
    baseline: str | None = Field(None, description="Compared with: last-good, the URL of a run, or a checkpoint.")
    gates: str | None = Field(None, description="YAML file of tolerances and floors; unset: none but the intervals.")

    def named(self) -> "dict[str, EvaluateConfig]":
        """Each setting as a config of its own, by its name; `default` is the only one where none are given."""
        if not self.settings:
            return {"default": self}
        return {name: self._with(name, setting) for name, setting in self.settings.items()}

    @field_serializer("settings")
    def _as_said(self, value: dict[str, Setting]) -> dict[str, Any]:
        """Without what is not said: a default that was written out would change what stays."""
        return {name: setting.model_dump(mode="json", exclude_unset=True) for name, setting in value.items()}

    def _with(self, title: str, setting: Setting) -> "EvaluateConfig":
        said = self.model_dump()
        for name, stage in setting:
            if isinstance(stage, BaseModel):
                said[name] |= stage.model_dump(include=stage.model_fields_set)
            elif stage is not None:
                said[name] = stage
        try:
            return EvaluateConfig.model_validate(said | {"settings": {}})
        except ValidationError as error:
            raise explain(error, origin=f"the setting {title!r}") from error

    def fingerprint(self, *, model_sha256: str, classes: Any) -> str:
        """As that of the segmentation, and of all that changes a count; see `SegmentConfig.fingerprint`."""
        masks = super().fingerprint(model_sha256=model_sha256, classes=classes)
        said = [masks, self.judge.model_dump(mode="json"), self.masks]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_yaml(path: str) -> dict[str, Any]:
    """Read a run file.

    Raises:
        ConfigError: when it is missing, not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold settings by name, not a {type(data).__name__}")
    return data


def explain(error: ValidationError, *, origin: str) -> ConfigError:
    """Turn pydantic's report into one line per setting, by its dotted path."""
    lines = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r})" for item in error.errors()]
    return ConfigError(f"{origin}:\n" + "\n".join(lines))
