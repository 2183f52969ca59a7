"""Tables of polygons: the columns of `polygons/<path>.parquet`, and pieces that wait for the rest of their raster.

In: pieces, in pixels. Out: rows of a GeoParquet file in the raster's coordinate system, or the bytes of open pieces.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.geotiff.raster import Raster
from pipeline.polygons.pieces import Edges, Pieces
from pipeline.records import Ids
from pipeline.vector.geoparquet import geo_schema, geo_table, load_shapely

MADE_KEY = b"atrous.polygons"
"""Metadata of the file: what it was made from."""
_COLUMNS = (
    pa.field("pixels", pa.int64(), nullable=False),
    pa.field("hectares", pa.float64()),
    pa.field("confidence", pa.float32()),
)
"""Pixels before simplification; their true area, null without coordinates; mean of the largest probability of the
network, 0 to 1, null where it is not known."""
_EDGE = ("piece", "line", "start", "end", "after")


class ClassNames(Protocol):
    """Columns that say what the ids of polygons mean."""

    @property
    def fields(self) -> Sequence[pa.Field]:
        """Their names and types."""

    def columns(self, class_ids: Ids) -> dict[str, Any]:
        """Their values, by name."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class NamedClasses:
    """Columns `class_id` and `class`."""

    names: tuple[str, ...]

    @property
    def fields(self) -> Sequence[pa.Field]:
        """Names and types of the columns."""
        return pa.field("class_id", pa.uint8(), nullable=False), class_field("class")

    def columns(self, class_ids: Ids) -> dict[str, Any]:
        """Values of the columns."""
        return {"class_id": class_ids, "class": class_column(class_ids, self.names)}

    def __len__(self) -> int:
        return len(self.names)


def class_field(name: str) -> pa.Field:
    """Column of class names."""
    return pa.field(name, pa.dictionary(pa.int16(), pa.string()), nullable=False)


def class_column(class_ids: npt.NDArray[Any], names: Sequence[str]) -> pa.Array:
    """Values of a column of class names."""
    return pa.DictionaryArray.from_arrays(class_ids.astype(np.int16), list(names))


def polygon_schema(raster: Raster, names: ClassNames, made_from: str) -> pa.Schema:
    """Schema of the polygons of a raster, in its coordinate system; without one, in pixels.

    Args:
        raster: the raster.
        names: columns of the classes.
        made_from: stored in the metadata.
    """
    schema = geo_schema([*names.fields, *_COLUMNS], crs=raster.crs_wkt, types=["Polygon"])
    return schema.with_metadata(schema.metadata | {MADE_KEY: made_from.encode()})


def polygon_table(pieces: Pieces, raster: Raster, names: ClassNames, schema: pa.Schema, *, min_ha: float) -> pa.Table:
    """Rows of whole polygons.

    Args:
        pieces: the polygons, in pixels.
        raster: the raster.
        names: columns of the classes.
        schema: of `polygon_schema`.
        min_ha: polygons below this area are left out; all are kept where areas are not known.
    """
    kept = pieces.take(~(pieces.hectares < min_ha))
    known = kept.confidence_pixels > 0
    confidence = kept.confidence_sum / np.maximum(kept.confidence_pixels, 1) / 255
    columns = names.columns(kept.class_ids) | {
        "pixels": kept.pixels,
        "hectares": pa.array(kept.hectares, mask=np.isnan(kept.hectares)),
        "confidence": pa.array(confidence.astype(np.float32), mask=~known),
    }
    return geo_table(schema, columns, to_coordinates(kept.shapes, raster))


def to_coordinates(shapes: npt.NDArray[Any], raster: Raster) -> npt.NDArray[Any]:
    """Shapes in pixels, in coordinates of the raster; as they are where it has no transform."""
    if raster.transform is None:
        return shapes
    a, b, c, d, e, f = raster.transform

    def convert(xy: npt.NDArray[Any]) -> npt.NDArray[Any]:
        x, y = xy.T
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    return np.asarray(load_shapely().transform(shapes, convert))


def encode_open(pieces: Pieces, edges: Edges) -> bytes:
    """Bytes of pieces that are not whole yet; the inverse of `decode_open`."""
    order = np.argsort(edges.piece, kind="stable")
    starts = np.searchsorted(edges.piece[order], np.arange(len(pieces) + 1))
    values = [pa.array(getattr(edges, name)[order]) for name in _EDGE[1:]]
    stretches = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.StructArray.from_arrays(values, _EDGE[1:]))
    table = pa.table(
        {
            "shape": pa.array(load_shapely().to_wkb(pieces.shapes), pa.binary()),
            "class_id": pieces.class_ids,
            "pixels": pieces.pixels,
            "hectares": pieces.hectares,
            "confidence_sum": pieces.confidence_sum,
            "confidence_pixels": pieces.confidence_pixels,
            "row": pieces.first[:, 0],
            "column": pieces.first[:, 1],
            "edges": stretches,
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def decode_open(data: bytes) -> tuple[Pieces, Edges]:
    """Pieces that are not whole yet, and their edges."""
    table = pq.read_table(io.BytesIO(data)).combine_chunks()
    column = {name: table[name].to_numpy() for name in table.column_names if name not in ("shape", "edges")}
    shapes = load_shapely().from_wkb(np.array(table["shape"].to_pylist(), object))
    first = np.stack([column["row"], column["column"]], axis=1)
    stretches = table["edges"].combine_chunks()
    piece = np.repeat(np.arange(len(table)), np.diff(stretches.offsets.to_numpy()))
    values = [stretches.flatten().field(name).to_numpy(zero_copy_only=False) for name in _EDGE[1:]]
    pieces = Pieces(
        shapes=shapes,
        class_ids=column["class_id"],
        pixels=column["pixels"],
        hectares=column["hectares"],
        confidence_sum=column["confidence_sum"],
        confidence_pixels=column["confidence_pixels"],
        first=first,
    )
    return pieces, Edges(piece, *values)
