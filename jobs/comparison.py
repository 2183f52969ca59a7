"""Comparison of two runs over rasters: pairs of masks, tables, polygons and page.

compare(before, after, output, ...) -> facts     continues after a crash, does nothing when all is there
"""

import logging
from functools import partial

from jobs import command_line
from jobs.from_masks import LEASE_S, join_polygons, read_zones, run_each, warn_of_rasters
from pipeline.changes import output as changes
from pipeline.changes.map import comparison_map
from pipeline.changes.masks import ChangeMasks, Changes
from pipeline.changes.pairs import classes_of, mask_files, match
from pipeline.changes.report import render_changes
from pipeline.classes import ClassMap, load_class_map
from pipeline.config import PolygonsConfig, ZonesConfig
from pipeline.errors import ConfigError
from pipeline.polygons.output import PolygonWork
from pipeline.run import folder
from pipeline.store import objects
from pipeline.store.lease import Lease
from pipeline.store.url import Url
from pipeline.zones import output as zones
from pipeline.zones.plan import ZonePlan
from pipeline.zones.work import ZoneWork, do_squares

log = logging.getLogger(__name__)


def compare(
    before: Url,
    after: Url,
    output: Url,
    *,
    classes: str | None,
    polygons_cfg: PolygonsConfig,
    zones_cfg: ZonesConfig,
) -> dict[str, object]:
    """Compare two runs; returns the fields of the closing JSON line.

    Raises:
        ConfigError: there are no masks, they have other classes, or none lie over each other.
    """
    class_map = _classes(before, after, classes)
    masks, left_out = _pair(before, after, output, class_map)
    features, ids = read_zones(zones_cfg) if zones_cfg.file else (None, [])
    assemblies = [masks.before[name].assembly() for name in sorted(masks.before)]
    work = ZoneWork(masks, len(Changes(class_map.names)), changes.comparison_id(masks, features), bands=False)
    with Lease(output, lease_s=LEASE_S, command=command_line.command()):
        table = zones.read_made(output / changes.CHANGES, changes.MADE_KEY, work.id)
        now = table is None
        if table is None:
            for note in features.notes if features else []:
                log.warning("%s", note)
            plan = ZonePlan()
            units = zones.put_squares(work, changes.find_changed_squares(assemblies, features, plan))
            warn_of_rasters(plan.nowhere)
            groups = zones.groups_left(work, units)
            log.info("comparing %d mask(s): %d square(s) are left", len(assemblies), sum(map(len, groups)))
            run_each("changes", groups, partial(do_squares, work=work))
            table = changes.write_tables(work, units, features, ids, class_map.names)
        zones.delete_waiting(work)
        only = ChangeMasks(output, masks.before, masks.after, class_map, changed_only=True)
        made = PolygonWork(only, Changes(class_map.names), polygons_cfg, made_from=work.id)
        polygons_now = len(join_polygons(made, assemblies))
        facts = changes.summary(table)
        drawn = comparison_map(table, changes.read_map(output)) if features else None
        titles = before.name, after.name
        page = render_changes(table, class_map, titles=titles, left_out=left_out, page_map=drawn)
        objects.put(output / folder.REPORT, page.encode())
    log.info("look here first: %s", output / folder.REPORT)
    counts = {"masks": len(assemblies), "left_out": left_out, "made_now": now, "polygons_now": polygons_now}
    return {"output": str(output), **counts, **facts, "report": str(output / folder.REPORT)}


def _classes(before: Url, after: Url, given: str | None) -> ClassMap:
    """Class map of both sides."""
    own = [one for one in (classes_of(before), classes_of(after)) if one is not None]
    if given is not None:
        own.append(load_class_map(given))
    if not own:
        raise ConfigError("the class map is not known", hint="give --classes: two GeoTIFFs do not name their classes")
    for other in own[1:]:
        if lines := own[0].differences(other):
            raise ConfigError(f"the classes differ: {'; '.join(lines[:3])}", hint="compare masks of one class map")
    return own[0]


def _pair(before: Url, after: Url, output: Url, classes: ClassMap) -> tuple[ChangeMasks, int]:
    """Masks to compare, and how many of the earlier ones have no later one on their ground."""
    earlier, later = mask_files(before), mask_files(after)
    pairs, nowhere = match(earlier, later)
    for url in nowhere[:3]:
        log.warning("%s has no place on Earth and is not compared", url)
    compared = {one.name: one for one in earlier if pairs.get(one.name)}
    if not compared:
        raise ConfigError(f"no mask of {after} lies over one of {before}", hint="check that both are of the same place")
    if missing := len(earlier) - len(compared):
        log.warning("%d of %d earlier mask(s) have no later one on their ground", missing, len(earlier))
    return ChangeMasks(output, compared, pairs, classes), len(earlier) - len(compared)
