"""Survey of the rasters of a plan, for `--plan`: windows, gigapixels, and what their smallest overviews tell.

In: a plan. Out: `RasterSurvey`. Overviews may lose single pixels, so nothing is left out because of them: the figures
are estimates, and a black border without a nodata value is worth a warning before a network segments it as something.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipeline.errors import InputError, StorageError
from pipeline.geotiff.header import Header, overview_headers, read_header
from pipeline.geotiff.raster import Raster
from pipeline.records import Failure, Window
from pipeline.source.plan import Plan
from pipeline.source.raster import Ranges, RasterShard, unpack
from pipeline.source.raster_windows import read_stored
from pipeline.source.shard import Shard

MAX_OVERVIEWS = 200
"""Most rasters whose overview is read."""
MAX_OVERVIEW_PX = 4096 * 4096
BLACK_SHARE = 0.05
"""Share of zeros in an overview without a nodata value above which they look like a border."""


@dataclass(slots=True)
class RasterSurvey:
    """Figures of the rasters of a plan."""

    rasters: int = 0
    unreadable: int = 0
    """Files that become a failure row."""
    windows: int = 0
    gigapixels: float = 0.0
    nodata_share: float | None = None
    """Estimate of the share of pixels without data, of the rasters that have an overview; None without any."""
    overviews: int = 0
    """Rasters whose overview was read."""
    warnings: list[str] = field(default_factory=list)


def survey_rasters(plan: Plan) -> RasterSurvey:
    """Survey the rasters of a plan; reads one small overview of each of the first `MAX_OVERVIEWS`."""
    survey, empty, seen = RasterSurvey(), 0.0, 0.0
    for shard, raster in _rasters(plan, survey):
        pixels = raster.height * raster.width
        survey.gigapixels += pixels / 1e9
        if survey.overviews >= MAX_OVERVIEWS or (shares := overview_shares(shard, raster)) is None:
            continue
        nodata, zeros = shares
        survey.overviews += 1
        empty, seen = empty + nodata * pixels, seen + pixels
        if zeros > BLACK_SHARE:
            survey.warnings.append(
                f"{raster.path}: {zeros:.0%} of its overview is 0 in every band and counts as data; "
                "if that is a border, give --raster.nodata 0"
            )
    survey.nodata_share = empty / seen if seen else None
    return survey


def _rasters(plan: Plan, survey: RasterSurvey) -> Iterator[tuple[Shard, Raster]]:
    """First shard of each raster, and its description; counts windows and failures."""
    before: tuple[str, str] | None = None
    for shard in plan.shards:
        here = unpack(shard)
        if isinstance(here, Failure):
            survey.unreadable += 1
            continue
        survey.windows += shard.rows or 0
        if (shard.root, shard.uri) != before:
            before = shard.root, shard.uri
            survey.rasters += 1
            yield shard, here.raster


def overview_shares(shard: Shard, raster: Raster) -> tuple[float, float] | None:
    """Share of pixels without data, and of pixels with data that are 0 in every band, of the smallest overview.

    None where there is no overview, or it cannot be read: the run itself will say so.
    """
    try:
        header = _smallest_overview(read_header(Ranges(shard.url, raster.etag, raster.size)))
        if header is None:
            return None
        blocks = header.blocks
        bands = tuple(number for number in range(1, raster.count + 1) if number != raster.alpha)
        reduced = replace(
            raster,
            height=blocks.height,
            width=blocks.width,
            bands=bands,
            channels=tuple(map(str, bands)),
        )
        whole = Window(0, 0, blocks.height, blocks.width)
        values, valid = read_stored(shard.url, RasterShard(reduced, whole, 1, 0), header, whole)
    except (InputError, FileNotFoundError, StorageError):
        return None
    zeros = ~values.astype(bool).any(axis=0)
    if valid is None:
        return 0.0, float(zeros.mean())
    return float(1 - valid.mean()), float((zeros & valid).mean())


def _smallest_overview(header: Header) -> Header | None:
    """Header whose first page is the smallest overview; None without one, or where it is large."""
    overviews = overview_headers(header)
    if not overviews or overviews[-1].blocks.height * overviews[-1].blocks.width > MAX_OVERVIEW_PX:
        return None
    return overviews[-1]
