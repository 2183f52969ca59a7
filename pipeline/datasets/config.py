"""Settings of a preparation, as a frozen pydantic class: schema, validation, command line, documentation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import DecodeConfig
from pipeline.store.url import Url

DATASET_NAMES = (
    *("voc", "person_part", "ade20k", "coco", "coco_voc", "coco_stuff", "camvid", "camvid32", "cityscapes"),
    *("cityscapes_coarse", "kitti", "sun_rgbd", "nyu40", "nyu13", "agriculture_vision", "loveda", "potsdam"),
    *("vaihingen", "landcover", "cwfid", "farmland"),
)
"""Names of `catalogue.DATASET_LAYOUTS`, for the help text: importing the layouts themselves takes a second."""
OUTPUT_SETTINGS = {"layout", "root", "splits", "format", "cut_px", "shard_examples", "part_mib", "decode"}
"""Settings that decide the content of an output; one output has one value of each."""


class PrepareConfig(BaseModel):
    """Turn an official download into Parquet files or tars to train on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: str = Field(description=f"Name of the data set: {', '.join(DATASET_NAMES)}.")
    root: str = Field(description="Folder into which its archives were unpacked: local or s3://.")
    output: str = Field(description="Folder that receives <split>/, classes.yaml and manifest.json.")
    splits: tuple[str, ...] = Field(min_length=1, description="Splits of the data set to prepare.")
    format: Literal["parquet", "tar"] = Field("parquet", description="Parquet files, or WebDataset tars.")
    cut_px: int | None = Field(
        None, ge=64, description="Cut images a quarter larger than this into windows, pixels; unset leaves them whole."
    )
    shard_examples: int = Field(128, ge=1, description="Examples per shard, the unit of work and of commit.")
    part_mib: float = Field(256.0, gt=0, le=1024, description="Size at which a file is closed, MiB.")
    decode: DecodeConfig = Field(DecodeConfig(), description="Limits on images, and how they are decoded.")
    max_failed_fraction: float = Field(0.01, ge=0, le=1, description="More failed examples than this: exit status 1.")
    retry_failed: bool = Field(False, description="Prepare shards with failures again, once their cause is gone.")
    verify: bool = Field(False, description="Only read a finished output again and compare checksums.")
    lease_s: float = Field(30.0, gt=0, description="A driver silent for this long has lost the output, seconds.")
    item_timeout_s: float = Field(600.0, gt=0, description="A worker stuck on an example this long is killed, seconds.")
    progress_s: float = Field(5.0, gt=0, description="Seconds between progress lines.")
    log_format: Literal["human", "json"] = Field("human", description="Log lines for people, or one JSON object each.")

    @property
    def output_url(self) -> Url:
        """The output folder."""
        return Url(self.output)
