"""Price of a run: hours, requests and bytes times the list prices of a file.

The file is `infra/prices.yaml`, or that of `--prices`. Money is linear in what is used: twice the hours, requests and
bytes cost twice as much. Nodes are not rounded up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config import RuntimeConfig, explain, read_yaml
from pipeline.run.parts import rows_per_part
from pipeline.source.shard import Shard
from pipeline.store.lease import BEATS_PER_LEASE

GB = 1e9
"""Bytes of the gigabyte that stores bill by."""
LIST_PAGE = 1000
"""Objects per page of a listing, ListObjectsV2 of S3."""
RANGE_BYTES = 8 * 2**20
"""Bytes per request for tars, Parquet files and rasters."""
RUN_OBJECTS = 12
"""Objects of a run beside its parts: config, plan, environment, manifest, report, success."""
READS_PER_PART = 6
"""Requests for one part when a run is closed: size, footer and columns, twice."""
_Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ListPrice(BaseModel):
    """One price."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd: _Money = Field(description="US dollars per unit of the price's name.")
    source: str = Field(min_length=1, description="What it is the price of, and where it is published.")


class Prices(BaseModel):
    """List prices of one region at one date."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str = Field(min_length=1, description="Provider and region.")
    as_of: date = Field(description="Date of the list prices.")
    note: str = Field(description="How far they can be relied on.")
    core_hour: ListPrice = Field(description="A core for an hour, on nodes without GPUs.")
    gpu_hour: ListPrice = Field(description="A GPU for an hour, with the cores beside it.")
    cores_per_gpu: float = Field(ge=0, description="Cores that come with a GPU.")
    head_hour: ListPrice = Field(description="The head node for an hour.")
    thousand_get: ListPrice = Field(description="1,000 GET or HEAD requests.")
    thousand_put: ListPrice = Field(description="1,000 PUT requests.")
    thousand_list: ListPrice = Field(description="1,000 LIST requests.")
    gb_read: ListPrice = Field(description="A gigabyte from the store to the cluster.")
    gb_written: ListPrice = Field(description="A gigabyte from the cluster to the store.")
    gb_month: ListPrice = Field(description="A gigabyte stored for a month.")


def read_prices(path: str) -> Prices:
    """Read a file of prices.

    Raises:
        ConfigError: it is missing or not YAML, or a price is missing, unknown or negative; names it.
    """
    try:
        return Prices.model_validate(read_yaml(path))
    except ValidationError as error:
        raise explain(error, origin=path, model=Prices) from error


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run uses."""

    hours: float
    core_hours: float
    gpu_hours: float
    gets: float
    puts: float
    lists: float
    bytes_read: float
    bytes_written: float


@dataclass(frozen=True, slots=True)
class Price:
    """What a run costs, US dollars."""

    compute: float
    requests: float
    transfer: float
    storage_per_month: float
    """For its output; not part of the total."""

    @property
    def total(self) -> float:
        """Compute, requests and transfer."""
        return self.compute + self.requests + self.transfer


def price_of(usage: Usage, prices: Prices) -> Price:
    """Price of a usage. The cores that come with GPUs are paid with them."""
    own_core_hours = max(usage.core_hours - usage.gpu_hours * prices.cores_per_gpu, 0.0)
    compute = own_core_hours * prices.core_hour.usd + usage.gpu_hours * prices.gpu_hour.usd
    requests = usage.gets * prices.thousand_get.usd + usage.puts * prices.thousand_put.usd
    requests += usage.lists * prices.thousand_list.usd
    transfer = usage.bytes_read * prices.gb_read.usd + usage.bytes_written * prices.gb_written.usd
    return Price(
        compute + usage.hours * prices.head_hour.usd,
        requests / 1000,
        transfer / GB,
        usage.bytes_written / GB * prices.gb_month.usd,
    )


@dataclass(frozen=True, slots=True)
class Requests:
    """Estimated requests to the stores of source and output."""

    gets: int
    puts: int
    lists: int


def estimate_requests(shards: Sequence[Shard], images: int, *, runtime: RuntimeConfig, hours: float) -> Requests:
    """Requests of a run, from its shards, images and parts, and the progress that its driver writes.

    An image file is one GET. A tar or Parquet file is its size and ranges of `RANGE_BYTES`; a raster is header and
    overview and at least one range per window.
    """
    files = {(shard.root, shard.path): shard.size for shard in shards if shard.kind != "folder"}
    ranges = sum(math.ceil(size / RANGE_BYTES) for size in files.values())
    gets = images if not files else 2 * len(files) + ranges
    if any(shard.kind == "raster" for shard in shards):
        gets = 2 * len(files) + max(images, ranges)
    parts = math.ceil(images / (runtime.rows_per_part or rows_per_part(images)))
    signs = hours * 3600 * (1 / runtime.progress_s + BEATS_PER_LEASE / runtime.lease_s)
    listed = math.ceil((len(files) or images) / LIST_PAGE) + 2 * math.ceil(parts / LIST_PAGE)
    return Requests(gets + READS_PER_PART * parts, parts + RUN_OBJECTS + math.ceil(signs), listed)
