"""Pairs of masks: each mask of the earlier run, and the masks of the later one on the same ground.

In: two runs, or two GeoTIFFs of classes. Out: their files, and which lie over which. Masks are found by where they are,
not by their names.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.assemble.masks import SUFFIXES, MaskFile, open_mask_file
from pipeline.assemble.stac import footprint
from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.run import parts
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.geoparquet import load_shapely

_THREADS = 16


def mask_files(url: Url) -> list[MaskFile]:
    """Masks of a run over rasters, or one GeoTIFF of classes.

    Raises:
        ConfigError: there are none, or one cannot be read.
    """
    if url.name.lower().endswith(SUFFIXES):
        return [open_mask_file(url)]
    folder = url / "masks"
    paths = [path for path in objects.list_below(folder) if path.lower().endswith(SUFFIXES)]
    if not paths:
        hint = "give the folder of a run over rasters, .../run=<12 digits>, or a GeoTIFF; `atrous assemble` joins masks"
        raise ConfigError(f"{url} has no masks of rasters", hint=hint)
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: open_mask_file(folder / path, path.rsplit(".", 1)[0]), paths))


def classes_of(url: Url) -> ClassMap | None:
    """Class map of a run; None for a GeoTIFF."""
    names = [] if url.name.lower().endswith(SUFFIXES) else parts.list_parts(url)
    return parts.read_classes(url, names[0]) if names else None


def match(before: Sequence[MaskFile], after: Sequence[MaskFile]) -> tuple[dict[str, tuple[MaskFile, ...]], list[str]]:
    """Later masks on the ground of each earlier one, by its name; and the masks without a place on Earth, by URL."""
    shapely = load_shapely()
    outlines = [[footprint(one.raster)[0] for one in files] for files in (before, after)]
    nowhere = [
        str(one.url)
        for files, places in zip((before, after), outlines, strict=True)
        for one, place in zip(files, places, strict=True)
        if place is None
    ]
    placed = [(one, place) for one, place in zip(after, outlines[1], strict=True) if place is not None]
    tree = shapely.STRtree([shapely.geometry.shape(place) for _, place in placed])
    pairs = {}
    for one, place in zip(before, outlines[0], strict=True):
        if place is not None:
            found = np.sort(tree.query(shapely.geometry.shape(place), predicate="intersects"))
            pairs[one.name] = tuple(placed[number][0] for number in found)
    return pairs, nowhere
