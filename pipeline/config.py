"""Settings of segmentation and evaluation, as frozen pydantic classes.

The same classes define schema, validation, command line, documentation and fingerprint. Settings that can change a mask
are part of the fingerprint; those that cannot (worker counts, log format, progress) are in `RuntimeConfig`, outside it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard, TypeVar

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from pipeline.errors import ConfigError

CODE_VERSION = 5
"""Version of the code that makes masks, part of the fingerprint: raise it by hand when a code change alters masks."""

C = TypeVar("C", bound=BaseModel)
_Channel = Annotated[int, Field(ge=0, le=255)]
Scale = Annotated[float, Field(ge=0.1, le=4)]
LabelValue = Annotated[int, Field(ge=0, le=65535)]
Width = Annotated[float, Field(gt=0, le=1000)]
BandNumber = Annotated[str, Field(pattern=r"^[^=]+=[1-9][0-9]{0,2}$")]
"""Band of a checkpoint and its number in a file: `nir=4`."""
OTHER_FLAGS = {"zones.file": "--zones"}
"""Flags that have not the name of their setting."""
Dtype = Literal["uint8", "uint16", "int16", "float32"]
"""Types of samples that are read."""
DATE_PARTS = ("year", "month", "day", "hour", "minute", "second")
"""Groups of `raster.date_pattern`, from the coarsest: each needs those before it."""
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0)]
EngineName = Literal["native", "torch", "pydensecrf", "domain_transform", "none"]
"""Keys of `refine.engine.REFINE_ENGINES`."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BandScale(_Frozen):
    """Linear scale of each band: `low` becomes level 0, `high` level 255, values outside are clipped."""

    dtype: Dtype = Field(description="Type of the samples of the training set; other types are refused.")
    low: tuple[_Finite, ...] = Field(description="Value of each band at level 0, by default its 2nd percentile.")
    high: tuple[_Finite, ...] = Field(description="Value of each band at level 255, by default its 98th percentile.")

    @model_validator(mode="after")
    def _ranges(self) -> "BandScale":
        if len(self.low) != len(self.high):
            raise ValueError(f"low has {len(self.low)} values, high {len(self.high)}: one each per band")
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"each high must be above its low, got {self.low} and {self.high}")
        return self


class ReadConfig(_Frozen):
    """Source: listing, sharding and columns."""

    kind: Literal["auto", "folder", "webdataset", "parquet", "raster"] = Field(
        "auto",
        description="Type of the source; auto detects it from file names. raster: TIFFs of any size, in windows.",
    )
    slice_images: int = Field(64, ge=1, description="Average number of images per shard of a folder.")
    image_column: str = Field("image", description="Parquet column: binary, or struct of bytes and path.")
    key_column: str | None = Field(
        None, description="Parquet column with the last part of each key; unset or absent: the row number."
    )
    on_duplicate: Literal["fail", "suffix"] = Field(
        "fail", description="Duplicate keys: fail before _SUCCESS, or keep both, as key and key~2."
    )
    labels: str | None = Field(
        None, description="Labels: URL of their folder, extension in the tar (png, seg.png), or Parquet column."
    )
    label_field: str | None = Field(
        None, description="Attribute with the class of a polygon, a name or id, where polygons are labels of rasters."
    )


class RasterConfig(_Frozen):
    """Rasters (`--read.kind raster`): windows, bands and pixels without data; bands are also those of images."""

    core_px: Literal[512, 1024, 2048, 4096, 8192] = Field(2048, description="Window edge without halo, pixels.")
    halo_px: int | None = Field(
        None,
        ge=0,
        le=2048,
        multiple_of=32,
        description="Pixels read around a window; unset: the engine's reach, at least the overlap of tiles.",
    )
    bands: tuple[BandNumber, ...] = Field(
        (), description="Number of a band in the files for each band of the checkpoint: red=1 nir=4."
    )
    nodata: float | None = Field(None, description="Value of pixels without data, instead of the files'.")
    crs: str | None = Field(None, description="Coordinate system such as EPSG:32614, instead of the files'.")
    max_gpx: float = Field(400.0, gt=0, description="Largest raster, gigapixels, checked in its header.")
    holes: bool = Field(
        False, description="Write the COG of a raster with failed windows too, without data in their place."
    )

    date_pattern: str | None = Field(
        None,
        description="Regular expression on paths whose groups are the date: year, month, day, hour, minute, second, or "
        "date.",
    )

    @field_validator("date_pattern", mode="after")
    @classmethod
    def _date_groups(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            named = set(re.compile(value).groupindex)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        parts = [set(DATE_PARTS[:count]) for count in range(1, len(DATE_PARTS) + 1)]
        if named != {"date"} and named not in parts:
            wanted = f"(?P<date>...), or the first ones of {', '.join(DATE_PARTS)}, such as (?P<year>[0-9]{{4}})"
            raise ValueError(f"{value!r} names the groups {', '.join(sorted(named)) or 'none'}; it needs {wanted}")
        return value

    @field_validator("bands", mode="after")
    @classmethod
    def _bands_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [text.partition("=")[0] for text in value]
        if len(set(names)) < len(names):
            raise ValueError(f"{' '.join(value)} names a band twice")
        return value

    @property
    def numbers(self) -> dict[str, int]:
        """Number in the file, from 1, by the name of a band."""
        pairs = (text.split("=") for text in self.bands)
        return {name: int(number) for name, number in pairs}


class DecodeConfig(_Frozen):
    """Decoding: limits on images, and conversion to 8-bit RGB."""

    formats: tuple[Literal["jpeg", "png", "webp", "tiff", "bmp"], ...] = Field(
        ("jpeg", "png", "webp", "tiff"), min_length=1, description="Image formats to accept."
    )
    max_mpx: float = Field(100.0, gt=0, description="Largest image, megapixels, checked in its header before decoding.")
    max_mib: float = Field(256.0, gt=0, description="Largest encoded image, MiB.")
    min_px: int = Field(1, ge=1, description="Shortest side allowed, pixels.")
    frame: Literal["fail", "first"] = Field(
        "fail", description="Files with several frames: fail, or use the first frame."
    )
    sixteen_bit: Literal["divide", "percentile"] = Field(
        "divide", description="16-bit to 8-bit: divide by 257, or stretch percentiles 2 to 98 of each image."
    )
    background: tuple[_Channel, _Channel, _Channel] = Field((0, 0, 0), description="RGB colour of transparent pixels.")


class TileConfig(_Frozen):
    """Tiling: network inputs from images of any size."""

    mode: Literal["sliding", "whole"] = Field(
        "sliding", description="sliding cuts large images into overlapping tiles; whole feeds each image uncut."
    )
    whole_mpx: float = Field(4.0, gt=0, description="mode whole: largest image, megapixels.")
    tile_px: int = Field(
        512, ge=64, multiple_of=32, description="Tile edge, pixels; a side up to 1.25 times this stays uncut."
    )
    overlap_px: int = Field(128, ge=0, multiple_of=32, description="Overlap of neighbouring tiles, pixels.")
    bucket_px: int = Field(32, ge=32, multiple_of=32, description="Pad smaller images to multiples of this, pixels.")

    @model_validator(mode="after")
    def _tiles_advance(self) -> "TileConfig":
        if self.overlap_px * 2 > self.tile_px:
            raise ValueError(f"overlap_px {self.overlap_px} is more than half of tile_px {self.tile_px}")
        return self


class InferConfig(_Frozen):
    """Inference: precision, stride and test-time augmentation of the network."""

    batch: int | None = Field(
        None, ge=1, description="Tiles per forward pass, halved when GPU memory runs out; unset: 16 on GPU, 2 on CPU."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else fp16 on GPU and fp32 on CPU."
    )
    output_stride: Literal[8, 16] | None = Field(
        None, description="Output stride of the encoder; unset: the checkpoint's."
    )
    scales: tuple[Scale, ...] = Field(
        (1.0,), min_length=1, description="Multi-scale inference: factors of the image size."
    )
    flip: bool = Field(False, description="Also infer the image mirrored left to right.")
    fuse: Literal["mean_probability", "max_score"] = Field(
        "mean_probability",
        description="Fusion of scales and flips: mean of probabilities (v3), or maximum of scores (v2).",
    )
    compile: bool = Field(False, description="Compile the network with torch.compile when a worker starts.")
    max_logits_mib: float = Field(1024.0, gt=0, description="Largest logits of one image in float16, MiB.")

    @model_validator(mode="after")
    def _scales_differ(self) -> "InferConfig":
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {self.scales} contain a duplicate")
        return self


class RefineConfig(_Frozen):
    """Refinement of boundaries by an engine."""

    engine: EngineName = Field(
        "native",
        description="Dense CRF in C++ (native), torch or pydensecrf; edge-aware filter; none: network mask.",
    )
    preset: str = Field("deeplab-v2", description="Published CRF parameters; `pipeline/refine/presets.py` lists them.")
    bi_w: float | None = Field(None, ge=0, description="Weight of the bilateral kernel (w1), instead of the preset's.")
    bi_xy: float | None = Field(
        None, gt=0, description="Spatial sigma of the bilateral kernel, pixels (theta alpha), instead of the preset's."
    )
    bi_rgb: float | None = Field(
        None, gt=0, description="Colour sigma of the bilateral kernel (theta beta), instead of the preset's."
    )
    pos_w: float | None = Field(
        None, ge=0, description="Weight of the smoothness kernel (w2), instead of the preset's."
    )
    pos_xy: float | None = Field(
        None, gt=0, description="Sigma of the smoothness kernel, pixels (theta gamma), instead of the preset's."
    )
    iterations: int | None = Field(None, ge=1, le=100, description="CRF iterations, instead of the preset's.")
    spatial: Literal["auto", "lattice", "separable"] = Field(
        "auto", description="native: smoothness kernel on a lattice, as in pydensecrf, or exact and separable."
    )
    freeze: float = Field(
        0.99,
        ge=0,
        le=1,
        description="native: pixels with network confidence above this keep their class; 1 freezes none.",
    )
    guide: tuple[str, ...] = Field(
        (), max_length=3, description="Bands whose edges guide the refinement; unset: the first three."
    )
    guide_sigmas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="native, torch: colour sigma of each guide band, 8-bit levels; unset: the preset's for each."
    )
    sigma_s: float = Field(100.0, gt=0, description="domain_transform: spatial sigma where there is no edge, pixels.")
    sigma_r: float = Field(
        1.0, gt=0, description="domain_transform: range sigma; larger smooths across stronger edges."
    )
    prune: float = Field(
        0.05, ge=0, lt=0.5, description="Drop classes whose probability is below this at every pixel; 0 keeps all."
    )
    window_px: int = Field(1024, ge=128, description="Window edge, pixels; larger images are refined in windows.")
    deadline_s: float = Field(
        60.0,
        gt=0,
        description="Time limit, seconds per megapixel and at least for one; past it the whole image is not refined.",
    )

    @model_validator(mode="after")
    def _one_sigma_per_guide(self) -> "RefineConfig":
        if self.guide_sigmas and self.engine not in ("native", "torch"):
            raise ValueError(f"guide_sigmas are for the engines native and torch, not {self.engine}")
        if self.guide and self.guide_sigmas and len(self.guide_sigmas) != len(self.guide):
            raise ValueError(f"guide_sigmas has {len(self.guide_sigmas)} values for {', '.join(self.guide)}: one each")
        return self


class PolygonsConfig(_Frozen):
    """Polygons of the masks of rasters; outside the fingerprint, since they change no mask."""

    min_ha: float | None = Field(
        None,
        ge=0,
        description="Write polygons/<path>.parquet, without polygons below this area, hectares; 0 keeps all.",
    )
    simplify_px: float = Field(
        0.0,
        ge=0,
        le=64,
        description="Tolerance of simplification, pixels; borders stay shared. 0: every corner of pixels.",
    )


class ZonesConfig(_Frozen):
    """Statistics of zones (fields, parcels) of rasters; outside the fingerprint, since they change no mask."""

    file: Annotated[str | None, tyro.conf.arg(name=OTHER_FLAGS["zones.file"].strip("-"), prefix_name=False)] = Field(
        None, description="Polygons of zones: GeoParquet, GeoPackage, GeoJSON or Shapefile; writes zones.parquet."
    )
    id: str | None = Field(
        None, description="Attribute that names each zone; unset: their numbers in the file, from 1."
    )
    bands: bool = Field(
        True, description="Means of the bands and NDVI per class: reads the rasters again where zones are."
    )


class RuntimeConfig(_Frozen):
    """Workers, commits and progress: settings that cannot change a mask, outside the fingerprint."""

    flow: Literal["auto", "ray", "processes"] = Field(
        "auto",
        description="Workers on Ray, or as processes of this machine without a GPU; auto: processes for up to 5000 "
        "images where no cluster is given.",
    )
    infer_workers: int | None = Field(None, ge=1, description="Networks; unset: one per GPU, or by the number of CPUs.")
    refine_workers: int | None = Field(None, ge=1, description="Most refiners; unset: one per CPU.")
    crew: str | None = Field(
        None, description="Workers per stage, from a file of --crew-output; in place of infer_workers, refine_workers."
    )
    expect_cpus: int | None = Field(
        None, ge=1, description="CPUs after the cluster has scaled up; unset: those it has now."
    )
    expect_gpus: int | None = Field(
        None, ge=0, description="GPUs after the cluster has scaled up; unset: those it has now."
    )
    start_limit_s: float = Field(
        1800.0, gt=0, description="Longest wait for the first expected CPU and GPU of a cluster, seconds."
    )
    decode_threads: int = Field(4, ge=1, description="Decoding threads per network.")
    rows_per_part: int | None = Field(
        None,
        ge=1,
        description="Rows per committed Parquet part; unset: 256, in runs of more than a million up to 2048.",
    )
    block_mib: float = Field(2.0, gt=0, description="Ray Data block size between stages, MiB.")
    max_failed_fraction: float = Field(
        0.01, ge=0, le=1, description="Exit with status 1 above this share of failed rows."
    )
    lease_s: float = Field(30.0, gt=0, description="Lease: a driver silent for this long loses the run, seconds.")
    item_timeout_s: float = Field(
        600.0, gt=0, description="Kill a worker after this long on one image, or on one window of refinement, seconds."
    )
    progress_s: float = Field(5.0, gt=0, description="Seconds between progress lines.")
    log_format: Literal["human", "json"] = Field(
        "human", description="Log lines as text for people, or as JSON objects."
    )
    dashboard: bool = Field(
        False, description="Start Ray's dashboard with a local Ray, on 127.0.0.1; a cluster has its own."
    )
    previews: int = Field(48, ge=0, description="Approximate number of previews kept for the report.")

    @model_validator(mode="after")
    def _one_number_of_workers(self) -> Self:
        if self.crew and (self.infer_workers or self.refine_workers):
            raise ValueError("crew and infer_workers or refine_workers both say how many workers: give one of them")
        return self

    @model_validator(mode="after")
    def _dashboard_of_ray(self) -> Self:
        if self.dashboard and self.flow == "processes":
            raise ValueError("the dashboard is Ray's, and flow=processes starts no Ray: leave one of them out")
        return self


class SegmentConfig(_Frozen):
    """Segment every image under SOURCE and commit masks and statistics as Parquet under OUTPUT."""

    source: tuple[str, ...] = Field(min_length=1, description="Folder, tar or Parquet URLs: local, s3://, memory://.")
    output: str = Field(description="Folder that receives run=<fingerprint>/.")
    checkpoint: str = Field(
        description="Folder with model.safetensors and card.json, or a shipped name such as farmland."
    )
    classes: str | None = Field(None, description="Class map name or YAML file; unset: the checkpoint's.")
    limit: int | None = Field(None, ge=1, description="Segment only the first N images, as a separate run.")
    read: ReadConfig = Field(ReadConfig(), description="Listing and sharding.")
    decode: DecodeConfig = Field(DecodeConfig(), description="Decoding.")
    raster: RasterConfig = Field(RasterConfig(), description="Rasters.")
    tile: TileConfig = Field(TileConfig(), description="Tiling.")
    infer: InferConfig = Field(InferConfig(), description="Network.")
    refine: RefineConfig = Field(RefineConfig(), description="Refinement.")
    polygons: PolygonsConfig = Field(PolygonsConfig(), description="Polygons of rasters.")
    zones: ZonesConfig = Field(ZonesConfig(), description="Zones of rasters.")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="Workers, progress, commits.")

    @property
    def asks_of_masks(self) -> bool:
        """True when polygons or statistics of zones are to be made from the masks."""
        return self.polygons.min_ha is not None or self.zones.file is not None

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def fingerprint(
        self, *, model_sha256: str, classes: Any, place: Callable[[str], str] = str, code: int = CODE_VERSION
    ) -> str:
        """Hash of everything that can change a mask: SHA-256, 64 hex digits.

        Args:
            model_sha256: digest of the checkpoint's weights and card.
            classes: the class map in use, as plain data.
            place: one spelling of a place, so that `s`, `./s` and its absolute path are one source.
            code: version of the code; an earlier one names the run that this version does not continue.
        """
        hashed = self.model_dump(mode="json", include={"read", "decode", "tile", "infer", "refine", "limit"})
        hashed["read"].pop("slice_images")
        hashed["read"].pop("labels")
        hashed["read"].pop("label_field")
        if self.read.key_column is None:  # keeps the fingerprint of runs that began before this setting existed
            hashed["read"].pop("key_column")
        hashed["infer"].pop("batch")
        for name in ("guide", "guide_sigmas"):
            if not getattr(self.refine, name):
                hashed["refine"].pop(name)
        no_mask = {"max_gpx", "holes", "date_pattern"}
        rasters = [cfg.model_dump(mode="json", exclude=no_mask) for cfg in (self.raster, RasterConfig())]
        if self.read.kind == "raster" or rasters[0] != rasters[1]:
            hashed["raster"] = rasters[0]
        sources = [place(source) for source in self.source]
        hashed |= {"source": sources, "model": model_sha256, "classes": classes, "code": code}
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


class LabelsConfig(_Frozen):
    """Encoding of label files."""

    labels_as: Literal["ids", "colours"] = Field("ids", description="Encoding of label pixels: class ids or colours.")
    label_ids: dict[LabelValue, _Channel] = Field(
        {}, description="Class id of each label value; empty: label values are class ids."
    )
    ignored_colours: tuple[tuple[_Channel, _Channel, _Channel], ...] = Field(
        ((0, 0, 0), (224, 224, 192)),
        description="labels_as colours: colours to ignore, except those of a class.",
    )


class JudgeConfig(LabelsConfig):
    """Labels and pixel counts of an evaluation; part of its fingerprint."""

    trimap_px: tuple[Width, ...] = Field(
        (1, 2, 4, 8, 16, 32), max_length=32, description="Half widths of the trimaps around class boundaries, pixels."
    )
    boundary_share: float = Field(
        0.02, gt=0, le=0.5, description="Boundary IoU: distance as a share of the image diagonal (Cheng 2021)."
    )

    @field_validator("trimap_px", mode="after")
    @classmethod
    def _widths_ascend(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"trimap_px must increase strictly, got {value}")
        return value


class ScoreConfig(_Frozen):
    """Scores from pixel counts: these settings change no count, so a finished run is scored again without inference."""

    absent: Literal["skip", "unlabelled", "zero", "one"] = Field(
        "skip",
        description="Score of a class in neither labels nor answers: none (skip), 0 or 1; unlabelled: none for a class "
        "without labels.",
    )
    class_weights: dict[str, _Weight] = Field({}, description="Class weights in means, by name; other classes weigh 1.")
    background: str | None = Field("background", description="Class left out of means without background.")
    band_px: float | None = Field(
        None, gt=0, description="Weigh pixels within this distance of a boundary by `band_weight`; one of trimap_px."
    )
    band_weight: float = Field(0.0, ge=0, le=1, description="Weight of pixels within `band_px`; 0 leaves them out.")
    samples: int = Field(1000, ge=100, description="Bootstrap samples.")
    level: float = Field(0.95, gt=0, lt=1, description="Confidence level of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    slice_columns: tuple[str, ...] = Field(
        ("source",),
        description="Slices by column of the rows, or by `source` or `size`: scores per value.",
    )
    slice_pattern: str | None = Field(
        None, description="Slices by regular expression on keys: one table per named group, e.g. (?P<place>..)."
    )

    @field_validator("slice_pattern", mode="after")
    @classmethod
    def _groups_have_names(cls, value: str | None) -> str | None:
        try:
            named = re.compile(value or "").groupindex
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        if value is not None and not named:
            raise ValueError(f"{value!r} has no named group such as (?P<place>[^/]+)")
        return value


class Setting(_Frozen):
    """Overrides of one named setting of an evaluation; fields left unset keep the value of the evaluation."""

    checkpoint: str | None = Field(None, description="Checkpoint; unset: that of the evaluation.")
    tile: TileConfig | None = Field(None, description="Tiling; omitted fields keep their value.")
    infer: InferConfig | None = Field(None, description="Network; omitted fields keep their value.")
    refine: RefineConfig | None = Field(None, description="Refinement; omitted fields keep their value.")


class EvaluateConfig(SegmentConfig):
    """Score every image under SOURCE against its label, with and without refinement, in one or several settings."""

    output: str = Field("", description="Folder for runs and report; unset: beside --history.")
    checkpoint: str = Field(
        "",
        description="Folder with model.safetensors and card.json, or a shipped name such as farmland.",
    )
    masks: str | None = Field(None, description="Score existing masks instead: URL of a run or of a folder of PNGs.")
    judge: JudgeConfig = Field(JudgeConfig(), description="Labels and pixel counts.")
    score: ScoreConfig = Field(ScoreConfig(), description="Scores, intervals, slices.")
    settings: dict[str, Setting] = Field({}, description="Settings to compare, by name; only in the YAML file.")
    history: str | None = Field(None, description="Folder of past evaluations; this one is added.")
    baseline: str | None = Field(None, description="Baseline to compare with: last-good, URL of a run, or checkpoint.")
    gates: str | None = Field(None, description="YAML file of tolerances and floors; unset: intervals only.")

    @model_validator(mode="after")
    def _writes_nothing_of_masks(self) -> Self:
        if self.asks_of_masks:
            raise ValueError("an evaluation writes neither polygons nor zones: `atrous segment` does")
        return self

    def named(self) -> "dict[str, EvaluateConfig]":
        """Full config of each setting, by name; the single name `default` without settings."""
        if not self.settings:
            return {"default": self}
        return {name: self._with(name, setting) for name, setting in self.settings.items()}

    @field_serializer("settings")
    def _set_fields_only(self, value: dict[str, Setting]) -> dict[str, Any]:
        """Serialise only fields that were set: a default written out would override the value of the evaluation."""
        return {name: setting.model_dump(mode="json", exclude_unset=True) for name, setting in value.items()}

    def _with(self, title: str, setting: Setting) -> "EvaluateConfig":
        merged = self.model_dump()
        for name, stage in setting:
            if isinstance(stage, BaseModel):
                merged[name] |= stage.model_dump(include=stage.model_fields_set)
            elif stage is not None:
                merged[name] = stage
        try:
            return EvaluateConfig.model_validate(merged | {"settings": {}})
        except ValidationError as error:
            raise explain(error, origin=f"the setting {title!r}") from error

    def fingerprint(
        self, *, model_sha256: str, classes: Any, place: Callable[[str], str] = str, code: int = CODE_VERSION
    ) -> str:
        """Hash of the segmentation's fingerprint and of everything that can change a count."""
        segmented = super().fingerprint(model_sha256=model_sha256, classes=classes, place=place, code=code)
        counted = [segmented, self.judge.model_dump(mode="json"), place(self.masks) if self.masks else None]
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file of settings.

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


def checked(kind: type[C], **values: Any) -> C:
    """Settings of flags. Raises ConfigError for a value that is not allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(error, origin="the flags") from error


def explain(error: ValidationError, *, origin: str, model: type[BaseModel] | None = None) -> ConfigError:
    """Convert pydantic's report to a `ConfigError` of one line per setting, by its dotted path.

    Args:
        error: the report.
        origin: where the settings stand, such as the name of their file.
        model: class of the settings; an unknown one is then answered with the nearest known name.
    """
    lines = [f"  {'.'.join(map(str, item['loc']))}: {_reason(item, model)}" for item in error.errors()]
    return ConfigError(f"{origin}:\n" + "\n".join(lines))


def explain_without_values(error: ValidationError) -> str:
    """Pydantic's report in one line, without what was given, which may be long: a few aliases of YAML take hours."""
    items = error.errors(include_input=False)
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in items)


def _reason(item: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    """Reason of one line of pydantic's report, with the value; for an unknown setting the nearest known one."""
    if item["type"] != "extra_forbidden":
        return f"{item['msg']} (got {item['input']!r})"
    *groups, name = item["loc"]
    for group in groups:
        field = model.model_fields.get(str(group)) if model else None
        model = field.annotation if field and _is_model(field.annotation) else None
    nearest = get_close_matches(str(name), model.model_fields if model else (), n=1)
    return "there is no such setting" + (
        f", did you mean {'.'.join([*map(str, groups), *nearest])}?" if nearest else ""
    )


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
