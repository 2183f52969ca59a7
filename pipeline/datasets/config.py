"""Settings of `atrous prepare` as a frozen pydantic class: schema, validation, command line, documentation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import BandNumber, DecodeConfig
from pipeline.store.url import Url

DATASET_NAMES = (
    *("voc", "person_part", "ade20k", "coco", "coco_voc", "coco_stuff", "camvid", "camvid32", "cityscapes"),
    *("cityscapes_coarse", "kitti", "sun_rgbd", "nyu40", "nyu13", "agriculture_vision", "loveda", "potsdam"),
    *("vaihingen", "landcover", "cwfid", "farmland", "farmland_nir"),
)
"""Names of `catalogue.DATASET_LAYOUTS`, for the help text: importing the layouts themselves takes a second."""
RASTERS = "rasters"
"""Name of the layout of rasters, which is not of one data set."""
ANNOTATED = ("label_studio", "cvat", "cvat_masks", "coco_file")
"""Names of the layouts of what labelling tools export, which are not of one data set either."""
OUTPUT_SETTINGS = {"layout", "root", "splits", "format", "cut_px", "shard_examples", "part_mib", "decode"}
"""Settings that determine the content of an output and must stay the same when it is continued."""


class RasterSetConfig(BaseModel):
    """Rasters with labels, for `--layout rasters`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: str | None = Field(None, description="Class map of the labels: name or YAML file.")
    labels: str | None = Field(
        None, description="Labels: folder of label rasters of the same paths, or a file or folder of polygons."
    )
    label_field: str | None = Field(None, description="Attribute with the class of a polygon: a name or an id.")
    unlabelled: str | None = Field(None, description="Class of pixels in no polygon; unset: they are ignored.")
    bands: tuple[BandNumber, ...] = Field(
        (), description="Bands to use, by their numbers in the files: red=1 nir=4; unset: all, by the files' names."
    )
    nodata: float | None = Field(None, description="Value of pixels without data, instead of the files'.")
    crs: str | None = Field(None, description="Coordinate system such as EPSG:32614, instead of the files'.")
    max_gpx: float = Field(400.0, gt=0, description="Largest raster, gigapixels, checked in its header.")
    min_labelled: float = Field(
        0.1, ge=0, le=1, description="Smallest share of pixels with data and label in a chip; others are left out."
    )
    val_share: float = Field(0.2, ge=0, le=1, description="Share of the blocks of ground that validate.")
    block_chips: int = Field(4, ge=1, description="Edge of a block of ground, chips.")
    split_seed: int = Field(0, ge=0, description="Seed of the split of blocks.")


class AnnotatedSetConfig(BaseModel):
    """Exports of labelling tools, for the layouts of `ANNOTATED`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: str | None = Field(
        None, description="Class map of the labels: name or YAML file; unset: classes.yaml in the root."
    )
    unlabelled: str | None = Field(None, description="Class of pixels that nobody labelled; unset: they are ignored.")
    val_share: float = Field(0.2, ge=0, le=1, description="Share of the images that validate.")
    split_seed: int = Field(0, ge=0, description="Seed of the split of images.")


class PrepareConfig(BaseModel):
    """Convert an official download to Parquet files or tars for training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: str = Field(
        description=f"Data set: {', '.join(DATASET_NAMES)}; {RASTERS}; or an export: {', '.join(ANNOTATED)}."
    )
    root: str = Field(description="Download: local folder or s3:// URL with the unpacked archives.")
    output: str = Field(description="Output folder for <split>/, classes.yaml and manifest.json.")
    splits: tuple[str, ...] = Field(min_length=1, description="Splits to prepare.")
    format: Literal["parquet", "tar"] = Field(
        "parquet", description="Output format: Parquet files, or WebDataset tars."
    )
    cut_px: int | None = Field(
        None,
        ge=64,
        description="Window size, pixels: images over 1.25 times this are cut into windows; default: never cut.",
    )
    shard_examples: int = Field(128, ge=1, description="Shard size, examples: the unit of work and of commit.")
    part_mib: float = Field(256.0, gt=0, le=1024, description="File size at which a part is closed, MiB.")
    decode: DecodeConfig = Field(DecodeConfig(), description="Decoding and its limits.")
    raster: RasterSetConfig = Field(RasterSetConfig(), description="Rasters, for the layout of that name.")
    annotated: AnnotatedSetConfig = Field(
        AnnotatedSetConfig(), description="Exports of labelling tools, for their layouts."
    )
    max_failed_fraction: float = Field(
        0.01, ge=0, le=1, description="Largest accepted fraction of failed examples; above it the exit status is 1."
    )
    retry_failed: bool = Field(False, description="Retry shards with failed examples, once their cause is fixed.")
    verify: bool = Field(False, description="Verify a finished output: read it and compare checksums.")
    lease_s: float = Field(
        30.0, gt=0, description="Lease, seconds: a driver without a heartbeat for this long loses the output."
    )
    item_timeout_s: float = Field(
        600.0, gt=0, description="Time limit per example, seconds; the worker is killed after it."
    )
    progress_s: float = Field(5.0, gt=0, description="Interval of progress lines, seconds.")
    log_format: Literal["human", "json"] = Field("human", description="Log format: lines for people, or JSON.")

    @property
    def output_url(self) -> Url:
        """The output folder."""
        return Url(self.output)

    @property
    def output_settings(self) -> set[str]:
        """Settings that must stay the same when the output is continued."""
        own = {"raster"} if self.layout == RASTERS else {"annotated"} if self.layout in ANNOTATED else set()
        return OUTPUT_SETTINGS | own
