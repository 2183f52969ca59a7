"""Config of a CRF parameter search: one frozen pydantic class for schema, validation, command line and docs."""

from pydantic import Field

from pipeline.config import DecodeConfig, InferConfig, LabelsConfig, RefineConfig, TileConfig
from pipeline.store.url import Url


class TuneConfig(LabelsConfig):
    """Search of CRF parameters on labelled images."""

    images: str = Field(description="Folder of images: local or s3://.")
    labels: str = Field(description="Folder of their labels, PNGs, under the same relative names.")
    checkpoint: str = Field(
        description="Folder with model.safetensors and card.json, or a shipped name such as farmland."
    )
    output: str = Field(description="Folder that receives params.yaml, results.parquet and report/; overwritten.")
    classes: str | None = Field(None, description="Class map of the labels; unset takes the checkpoint's.")
    limit: int | None = Field(None, ge=1, description="Use only the first N images; the papers use 100.")
    grid: str = Field("coarse", description="Grid of parameters to try first: coarse or papers.")
    finer: int = Field(1, ge=0, le=5, description="Rounds of finer grids around the best, each with half the steps.")
    trimap_px: tuple[float, ...] = Field(
        (1, 2, 4, 8, 12, 16, 24, 32, 40), description="Half widths of the trimaps, px."
    )
    samples: int = Field(1000, ge=100, description="Bootstrap draws.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    chunk_images: int = Field(4, ge=1, description="Images per task, on average.")
    decode: DecodeConfig = Field(DecodeConfig(), description="Decoding.")
    tile: TileConfig = Field(TileConfig(), description="Tiling.")
    infer: InferConfig = Field(InferConfig(), description="Network.")
    refine: RefineConfig = Field(
        RefineConfig(),
        description="Settings shared by all candidates; pos_w 3, pos_xy 3 and 10 iterations unless given.",
    )

    @property
    def output_url(self) -> Url:
        """The output folder."""
        return Url(self.output)
