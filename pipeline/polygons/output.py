"""Polygons of masks: `polygons/<path>.parquet` for each raster, made square by square and joined at the seams.

In: masks. Out: one GeoParquet file per raster. All work is idempotent and gives the same bytes, whoever does it:
squares are the unit, and what a square leaves open is stored beside its whole polygons until the raster is joined.

    _run/polygons/<id>/<y>_<x>.parquet    whole polygons of a square
    _run/polygons/<id>/<y>_<x>.open       pieces that go on in other squares; written last
    polygons/<path>.parquet               all polygons of the raster
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.assemble.layers import Layers
from pipeline.assemble.masks import MaskSource, whole
from pipeline.assemble.plan import Assembly
from pipeline.assemble.squares import Square
from pipeline.config import PolygonsConfig
from pipeline.polygons.pieces import Pieces, block_pieces
from pipeline.polygons.seams import Seams
from pipeline.polygons.table import MADE_KEY, ClassNames, decode_open, encode_open, polygon_schema, polygon_table
from pipeline.records import Window
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.area import pixel_areas
from pipeline.vector.geoparquet import file_chunks

FOLDER = "polygons"
WAITING = "_run/polygons"
"""Folder of the polygons of squares."""
_VERSION = 1
"""Of what is written: another one makes all files anew."""
_GROUP_ROWS = 20_000
"""Rows of a row group at least, but for the last one: large enough to compress, small enough to skip."""
_THREADS = 16
_AGAIN = "delete it and run the same command again"


@dataclass(frozen=True, slots=True)
class PolygonWork:
    """Polygons to be made of some masks."""

    masks: MaskSource
    names: ClassNames
    cfg: PolygonsConfig
    made_from: str = ""
    """What shapes the masks beside their assemblies."""

    def id(self, assembly: Assembly) -> str:
        """16 hex digits: of the masks of a raster, and of all that shapes its polygons."""
        facts = repr((assembly.id, self.cfg.min_ha, self.cfg.simplify_px, self.names, self.made_from, _VERSION))
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def url(self, assembly: Assembly) -> Url:
        """URL of the file of a raster."""
        return self.masks.output / f"{FOLDER}/{assembly.name}.parquet"

    def style_url(self, assembly: Assembly) -> Url:
        """URL of the style of QGIS beside the file of a raster."""
        return self.masks.output / f"{FOLDER}/{assembly.name}.qml"

    def square_url(self, assembly: Assembly, square: Window, suffix: str) -> Url:
        """URL of what is stored of a square until its raster is joined."""
        return self.masks.output / f"{WAITING}/{self.id(assembly)}/{square.y}_{square.x}.{suffix}"

    def schema(self, assembly: Assembly) -> pa.Schema:
        """Schema of the file of a raster."""
        return polygon_schema(assembly.raster, self.names, self.id(assembly))

    def table(self, pieces: Pieces, assembly: Assembly) -> pa.Table:
        """Rows of whole polygons."""
        min_ha = self.cfg.min_ha or 0.0
        return polygon_table(pieces, assembly.raster, self.names, self.schema(assembly), min_ha=min_ha)


def left_to_do(work: PolygonWork, assemblies: Sequence[Assembly]) -> list[Assembly]:
    """Rasters whose file is not there, or made of other masks or with other settings."""

    def is_done(assembly: Assembly) -> bool:
        try:
            with objects.open_read(work.url(assembly)) as file:
                made = pq.read_schema(file).metadata.get(MADE_KEY, b"")
        except (FileNotFoundError, pa.ArrowInvalid):
            return False
        return bool(made.decode() == work.id(assembly))

    with ThreadPoolExecutor(_THREADS) as pool:
        done = pool.map(is_done, assemblies)
        return [assembly for assembly, finished in zip(assemblies, done, strict=True) if not finished]


def squares_left(work: PolygonWork, assemblies: Sequence[Assembly]) -> list[Square]:
    """Squares of rasters that are not made yet."""
    there = {work.masks.output / WAITING / path for path in objects.list_below(work.masks.output / WAITING)}
    return [
        Square(assembly, window)
        for assembly in assemblies
        for window in assembly.squares
        if work.square_url(assembly, window, "open") not in there
    ]


def do_squares(group: Sequence[Square], *, work: PolygonWork) -> None:
    """Make the polygons of some squares."""
    for square, layers in zip(group, work.masks.layers(group), strict=True):
        assembly, window = square.assembly, square.window
        seams = Seams(assembly.raster.height, assembly.raster.width)
        tables = _grouped(work.table(pieces, assembly) for pieces in square_polygons(layers, assembly, seams, work))
        alone = len(assembly.squares) == 1
        url = work.url(assembly) if alone else work.square_url(assembly, window, "parquet")
        objects.put_stream(url, file_chunks(tables, work.schema(assembly)))
        if not alone:
            objects.put(work.square_url(assembly, window, "open"), encode_open(*seams.open()))


def square_polygons(layers: Layers, assembly: Assembly, seams: Seams, work: PolygonWork) -> Iterator[Pieces]:
    """Whole polygons of a square, block by block; `seams` has the others when all are taken."""
    for block in layers.blocks():
        areas = pixel_areas(assembly.raster, block.window)
        made = block_pieces(block, areas, len(work.names), simplify_px=work.cfg.simplify_px)
        yield seams.add(*made)
    yield seams.settle([layers.window])


def do_join(assembly: Assembly, *, work: PolygonWork) -> None:
    """Join the squares of a raster into its file, and delete what was stored of them."""
    if len(assembly.squares) > 1:
        tables = _grouped(_joined(assembly, work))
        objects.put_stream(work.url(assembly), file_chunks(tables, work.schema(assembly)))
    for window in assembly.squares:
        for suffix in ("parquet", "open"):
            objects.delete(work.square_url(assembly, window, suffix))


def _joined(assembly: Assembly, work: PolygonWork) -> Iterator[pa.Table]:
    """Rows of all squares, then those of the polygons that lie in several."""
    seams = Seams(assembly.raster.height, assembly.raster.width)
    schema = work.schema(assembly)
    for window in assembly.squares:
        url = work.square_url(assembly, window, "parquet")
        with objects.naming_damage(url, hint=_AGAIN), objects.open_read(url) as file:
            groups = pq.ParquetFile(file)
            for number in range(groups.num_row_groups):
                yield groups.read_row_group(number).cast(schema)
        url = work.square_url(assembly, window, "open")
        with objects.naming_damage(url, hint=_AGAIN):
            pieces, edges = decode_open(objects.read_bytes(url))
        yield work.table(seams.add(pieces, edges), assembly)
    yield work.table(seams.settle([whole(assembly.raster)]), assembly)


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `_GROUP_ROWS` rows or more, but for the last one."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _GROUP_ROWS:
            yield pa.concat_tables(waiting)
            waiting.clear()
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)


def delete_waiting(work: PolygonWork) -> None:
    """Delete what drivers that were killed left behind; nobody may be making polygons meanwhile."""
    objects.delete_below(work.masks.output / WAITING)
