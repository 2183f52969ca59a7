"""What is made from the masks of rasters, as the last steps of `segment` and as jobs of their own.

write_polygons(masks, ...) -> int     polygons/<path>.parquet of each raster; returns how many are new
write_zones(masks, ...) -> Zoned      zones.parquet and zones_map.parquet

Both continue after a crash, do nothing when all is there, and start no Ray for a single unit of work.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from infra import session
from jobs import command_line
from jobs.assembly import item_facts
from pipeline.assemble.assemble import group_squares
from pipeline.assemble.collection import write_collection
from pipeline.assemble.masks import SUFFIXES, FileMasks, MaskSource, RunMasks, numbered_classes, open_mask_file
from pipeline.assemble.plan import Assembly
from pipeline.assemble.qgis import polygons_qml
from pipeline.assemble.stac import COLLECTION
from pipeline.classes import ClassMap, load_class_map
from pipeline.config import PolygonsConfig, SegmentConfig, ZonesConfig
from pipeline.errors import ConfigError
from pipeline.polygons import output as polygons
from pipeline.polygons.table import NamedClasses
from pipeline.run import flow, parts
from pipeline.run.ledger import MAX_WORKER_DEATHS
from pipeline.store import objects
from pipeline.store.lease import Lease
from pipeline.store.url import Url
from pipeline.vector.features import Features, zone_ids
from pipeline.vector.files import load_features
from pipeline.zones import output as zones
from pipeline.zones.plan import ZonePlan, find_squares, overlapping, zones_id
from pipeline.zones.work import ZoneWork, do_squares

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASE_S = 30.0


def check_settings(cfg: SegmentConfig) -> None:
    """Check what a run asks to be made from its masks before any image is read.

    Raises:
        ConfigError: the run is none of rasters, the file of zones cannot be read, or names in it are not unique.
    """
    if not cfg.asks_of_masks:
        return
    if cfg.read.kind != "raster":
        hint = "give --read.kind raster; photos have counts per image in their rows"
        raise ConfigError("--polygons.min-ha and --zones are for rasters", hint=hint)
    if cfg.zones.file is not None:
        read_zones(cfg.zones)


def read_zones(cfg: ZonesConfig) -> tuple[Features, list[str]]:
    """Zones of a file, and their names. Raises ConfigError where it cannot be read, or names are not unique."""
    url = Url(cfg.file or "")
    try:
        features = load_features(url, field=cfg.id)
    except FileNotFoundError as error:
        raise ConfigError(f"{url.located} does not exist", hint="check the place of the zones") from error
    return features, zone_ids(features.values, features.name, cfg.id)


@dataclass(frozen=True, slots=True)
class OpenedMasks:
    """Masks that a job was given."""

    masks: MaskSource
    assemblies: list[Assembly]
    """Rasters without a window that failed, or all of them where holes are allowed."""
    classes: ClassMap
    with_holes: dict[str, int]
    """Windows that failed or are missing, of the rasters left out because of them, by the start of keys."""


@contextmanager
def open_masks(place: str, output: str | None, classes: str | None, *, holes: bool) -> Iterator[OpenedMasks]:
    """Open the masks of a run, or a GeoTIFF of classes, under a lease of the folder that is written to.

    Args:
        place: folder of a run, or URL of a GeoTIFF.
        output: folder to write to; for a GeoTIFF alone.
        classes: class map of a GeoTIFF, name or file; None takes ids for names.
        holes: take rasters with windows that failed or are missing too.

    Raises:
        ConfigError: there is no such run or GeoTIFF, or a flag does not fit it.
    """
    url = Url(place)
    is_file = place.lower().endswith(SUFFIXES)
    if is_file and output is None:
        raise ConfigError(f"--output is needed for {url}", hint="give the folder for what is made of it")
    if not is_file and (output or classes):
        raise ConfigError(f"--output and --classes are for a GeoTIFF; {url} is none", hint="a run has its own")
    folder = Url(output) if is_file and output else url
    if not is_file and not parts.list_parts(url):
        raise ConfigError(f"{url} has no parts", hint="give the folder of a run: .../run=<12 digits>")
    with Lease(folder, lease_s=LEASE_S, command=command_line.command()):
        if is_file:
            class_map = load_class_map(classes) if classes else numbered_classes()
            file = open_mask_file(url)
            yield OpenedMasks(FileMasks(file, folder, class_map), [file.assembly()], class_map, {})
        else:
            run = RunMasks(url)
            found = run.assemblies()
            kept, left_out = without_holes(found, holes=holes)
            yield OpenedMasks(run, kept, parts.read_classes(url, parts.list_parts(url)[0]), left_out)


def without_holes(assemblies: Sequence[Assembly], *, holes: bool) -> tuple[list[Assembly], dict[str, int]]:
    """Rasters whose windows are all there, and the others' missing windows; all rasters where holes are allowed."""
    left_out = {} if holes else {one.uri: one.holes for one in assemblies if one.holes}
    return [one for one in assemblies if one.uri not in left_out], left_out


@dataclass(frozen=True, slots=True)
class Zoned:
    """Statistics of zones that were written."""

    zones: int
    """Zones in the file."""
    zones_counted: int
    """Those with a pixel in a raster; the others lie outside of all."""
    zones_cut: int
    """Those with pixels outside of all rasters of a date."""
    zones_overlapped: int
    """Those with pixels that several rasters of one date count."""
    rasters_overlapping: int
    """Pairs of rasters of one date on the same ground."""
    zones_now: bool
    """True when this call has counted them."""

    @classmethod
    def of(cls, table: pa.Table, count: int, *, overlapping: int, now: bool) -> "Zoned":
        """Counts of `zones.parquet`.

        Args:
            table: its rows.
            count: zones in their file.
            overlapping: see `rasters_overlapping`.
            now: see `zones_now`.
        """

        def zones_with(column: str) -> int:
            return len(pc.unique(table.filter(pc.greater(table[column], 0))["zone"]))

        cut, overlapped = zones_with("outside_pixels"), zones_with("overlap_pixels")
        return cls(count, zones_with("rasters"), cut, overlapped, overlapping, now)


@dataclass(frozen=True, slots=True)
class Made:
    """What was made from masks."""

    polygons: int | None = None
    """Rasters with polygons; None where none were asked for."""
    polygons_now: int = 0
    """Those made by this call."""
    zones: Zoned | None = None
    """Statistics of zones; None where none were asked for."""

    def facts(self) -> dict[str, object]:
        """Fields of a closing JSON line."""
        polygons = {} if self.polygons is None else {"polygons": self.polygons, "polygons_now": self.polygons_now}
        return polygons | (asdict(self.zones) if self.zones else {})

    @property
    def is_new(self) -> bool:
        """True when this call has written something."""
        return self.polygons_now > 0 or (self.zones is not None and self.zones.zones_now)


def make(opened: OpenedMasks, polygons_cfg: PolygonsConfig, zones_cfg: ZonesConfig) -> Made:
    """Make what settings ask for, under a lease that the caller holds."""
    masks, assemblies, classes = opened.masks, opened.assemblies, opened.classes
    made = Made()
    if polygons_cfg.min_ha is not None:
        now = write_polygons(masks, assemblies, classes, polygons_cfg)
        made = replace(made, polygons=len(assemblies), polygons_now=now)
    if zones_cfg.file is not None:
        made = replace(made, zones=write_zones(masks, assemblies, classes, zones_cfg))
    if made.is_new and isinstance(masks, RunMasks) and objects.exists(masks.output / COLLECTION):
        write_collection(masks.output, classes, facts=item_facts(masks.output, parts.list_parts(masks.output)[0]))
    return made


def write_polygons(masks: MaskSource, assemblies: Sequence[Assembly], classes: ClassMap, cfg: PolygonsConfig) -> int:
    """Make the polygons of rasters that have none yet, or have others; returns the number of these rasters.

    Args:
        masks: the masks.
        assemblies: rasters.
        classes: class map of the masks.
        cfg: least area and simplification.
    """
    work = polygons.PolygonWork(masks, NamedClasses(classes.names), cfg)
    made = join_polygons(work, assemblies)
    for assembly in made:
        objects.put(work.style_url(assembly), polygons_qml(classes))
    return len(made)


def join_polygons(work: polygons.PolygonWork, assemblies: Sequence[Assembly]) -> list[Assembly]:
    """Make what polygons of rasters are missing; returns these rasters."""
    todo = polygons.left_to_do(work, assemblies)
    if todo:
        squares = polygons.squares_left(work, todo)
        log.info("polygons of %d mask(s): %d square(s) are left", len(todo), len(squares))
        groups = group_squares(squares)
        with session.connect() if max(len(groups), len(todo)) > 1 else nullcontext():  # a local Ray starts once
            run_each("polygons", groups, partial(polygons.do_squares, work=work))
            run_each("join polygons", todo, partial(polygons.do_join, work=work))
        if flat := sum(1 for one in todo if one.raster.crs_wkt is None or one.raster.transform is None):
            log.warning(
                "%d raster(s) have no coordinates: their polygons have no area, and --polygons.min-ha keeps all", flat
            )
    polygons.delete_waiting(work)
    return todo


def run_each(name: str, units: Sequence[T], work: Callable[[T], object]) -> None:
    """Do each unit of work: on Ray, or here where there is one."""
    if len(units) == 1:
        work(units[0])
    elif units:
        with session.connect():
            flow.run_tasks(name, units, work, deaths=MAX_WORKER_DEATHS)


def warn_of_rasters(texts: Sequence[str]) -> None:
    """Warn of what zones lack on each of some rasters: the first ones, and how many more there are."""
    for text in texts[:3]:
        log.warning("zones: %s", text)
    if len(texts) > 3:
        log.warning("zones: and the like of %d more raster(s)", len(texts) - 3)


def write_zones(masks: MaskSource, assemblies: Sequence[Assembly], classes: ClassMap, cfg: ZonesConfig) -> Zoned:
    """Write `zones.parquet` and `zones_map.parquet`, unless they are there for these zones and masks.

    Raises:
        ConfigError: the file of zones cannot be read, or its names are not unique.
    """
    features, ids = read_zones(cfg)
    made_from = zones_id(features, ids, assemblies, classes, bands=cfg.bands)
    work = ZoneWork(masks, len(classes), made_from, cfg.bands)
    table = zones.read_made(masks.output / zones.ZONES, zones.MADE_KEY, work.id)
    now = table is None
    if table is None:
        for note in features.notes:
            log.warning("%s", note)
        plan = ZonePlan()
        units = zones.put_squares(work, find_squares(features, assemblies, plan))
        groups = zones.groups_left(work, units)
        log.info("statistics of %d zone(s): %d square(s) are left", len(ids), sum(map(len, groups)))
        run_each("zones", groups, partial(do_squares, work=work))
        objects.put(masks.output / zones.ZONES_STYLE, polygons_qml(classes))
        table, unread = zones.write_tables(work, units, plan, features, ids, classes=classes)
        warn_of_rasters(plan.nowhere)
        warn_of_rasters([f"no means of bands of {text}" for text in unread])
    zones.delete_waiting(work)
    pairs = overlapping(assemblies)
    for one, other in pairs[:3]:
        log.warning("zones: %s and %s are of one date and cover the same ground: its pixels count twice", one, other)
    zoned = Zoned.of(table, len(ids), overlapping=len(pairs), now=now)
    for count, text in (
        (len(ids) - zoned.zones_counted, "have no pixel in a raster"),
        (zoned.zones_cut, "reach beyond the rasters: outside_pixels"),
        (zoned.zones_overlapped, "have pixels in several rasters of one date, counted in each: overlap_pixels"),
    ):
        if count:
            log.warning("%d of %d zone(s) %s", count, len(ids), text)
    return zoned
