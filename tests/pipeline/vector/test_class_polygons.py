"""Polygons against rasterio's own rasterisation and reprojection, and files that are refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio import features, warp

from pipeline.classes import ClassMap, load_class_map
from pipeline.config import RasterConfig
from pipeline.errors import ConfigError
from pipeline.geotiff.raster import Raster
from pipeline.records import Window
from pipeline.source.raster import NetworkBands, describe
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector.class_polygons import class_polygons
from pipeline.vector.features import read_features
from tests.support.polygons import geojson, squares
from tests.support.rasters import values, write_raster

CLASSES: ClassMap = load_class_map("farmland")
HEIGHT, WIDTH = 150, 210


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Raster:
    path = write_raster(tmp_path_factory.mktemp("r") / "a.tif", values(HEIGHT, WIDTH, 1))
    return described(path)


def described(path: Path) -> Raster:
    url = Url(str(path))
    return describe(url, objects.info(url), RasterConfig(), NetworkBands(("grey",)))[0]


def burned(polygons: Any, raster: Raster, window: Window | None = None, fill: int = 255) -> np.ndarray:
    window = window or Window(0, 0, raster.height, raster.width)
    out = np.full((window.height, window.width), fill, np.uint8)
    polygons.on(raster).burn(window, out)
    return out


def by_rasterio(shapes: list, ids: list[int], raster: Raster) -> np.ndarray:
    where = rasterio.Affine(*raster.transform)
    pairs = list(zip(shapes, ids, strict=True))
    return features.rasterize(pairs, (raster.height, raster.width), fill=255, transform=where, dtype="uint8")


def geopackage(shapes: list, names: list[str], crs: str | None) -> bytes:
    out, wkb = io.BytesIO(), np.array([shape.wkb for shape in shapes], object)
    fields = [np.array(names, object)]
    pyogrio.raw.write(out, wkb, fields, ["kind"], driver="GPKG", geometry_type="Polygon", crs=crs, layer="x")
    return out.getvalue()


def geoparquet(shapes: list, names: list[str], crs: Any) -> bytes:
    geo = {"version": "1.1.0", "primary_column": "g", "columns": {"g": {"encoding": "WKB", "crs": crs}}}
    table = pa.table({"kind": names, "g": [shape.wkb for shape in shapes]})
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), out)
    return out.getvalue()


def read(data: bytes, field: str = "kind") -> Any:
    return class_polygons(read_features(data, name="fields", field=field), field=field, classes=CLASSES)


def test_every_format_burns_what_rasterio_burns(raster: Raster) -> None:
    shapes, ids = squares(raster, 12)
    names = [CLASSES.names[index] for index in ids]
    utm = {"id": {"authority": "EPSG", "code": 32614}}
    for data in (
        geopackage(shapes, names, "EPSG:32614"),
        geoparquet(shapes, names, utm),
        geojson(shapes, names, crs="urn:ogc:def:crs:EPSG::32614"),
    ):
        np.testing.assert_array_equal(burned(read(data), raster), by_rasterio(shapes, ids, raster))


def test_polygons_in_degrees_fall_on_the_pixels_that_they_were_drawn_on(raster: Raster) -> None:
    shapes, ids = squares(raster, 12)
    degrees = [shapely.geometry.shape(warp.transform_geom("EPSG:32614", "OGC:CRS84", s)) for s in shapes]
    ours = burned(read(geojson(degrees, [str(index) for index in ids])), raster)
    assert (ours != by_rasterio(shapes, ids, raster)).mean() < 1e-3


def test_long_edges_follow_the_curve_of_their_coordinate_system(tmp_path: Path) -> None:
    wide = described(
        write_raster(
            tmp_path / "w.tif",
            values(400, 600, 1),
            crs="EPSG:32614",
            transform=rasterio.transform.from_origin(200_000, 6_800_000, 1000, 1000),
        )
    )
    band = shapely.box(-105, 58, -92, 60)  # its parallels are curves in UTM
    dense = shapely.segmentize(band, 0.01)
    expected = shapely.geometry.shape(warp.transform_geom("OGC:CRS84", "EPSG:32614", dense))
    ours = burned(read(geojson([band], ["0"])), wide)
    assert (ours != by_rasterio([expected], [0], wide)).sum() <= 6
    straight = shapely.geometry.shape(warp.transform_geom("OGC:CRS84", "EPSG:32614", band))
    assert (ours != by_rasterio([straight], [0], wide)).sum() > 1000


@given(y=st.integers(0, HEIGHT - 1), x=st.integers(0, WIDTH - 1), side=st.integers(1, 200), seed=st.integers(0, 5))
def test_a_window_is_burned_as_its_part_of_the_whole_raster(raster, y: int, x: int, side: int, seed: int) -> None:
    shapes, ids = squares(raster, 9, seed=seed)
    window = Window(y, x, min(side, HEIGHT - y), min(side, WIDTH - x))
    polygons = read(geojson(shapes, [str(index) for index in ids], crs="EPSG:32614"))
    whole = burned(polygons, raster)
    part = whole[y : y + window.height, x : x + window.width]
    np.testing.assert_array_equal(burned(polygons, raster, window), part)


def test_the_last_polygon_wins_where_several_overlap(raster: Raster) -> None:
    shape = squares(raster, 1)[0][0]
    for names in (["0", "3"], ["3", "0"]):
        found = burned(read(geojson([shape, shape], names, crs="EPSG:32614")), raster)
        assert set(np.unique(found)) == {int(names[1]), 255}


def test_invalid_polygons_are_repaired_and_counted_and_features_without_area_too(raster: Raster) -> None:
    a, b, c, d = shapely.get_coordinates(squares(raster, 1)[0][0])[:4].tolist()
    bow = shapely.Polygon([a, c, b, d])
    data = geojson([bow, shapely.Point(*a), None], ["1", "1", "1"], crs="EPSG:32614")
    polygons = read(data)
    assert (polygons.features.repaired, polygons.features.left_out) == (1, 1 + 1)
    assert len(polygons.features.notes) == 2
    assert (burned(polygons, raster) == 1).sum() > 50


def test_what_cannot_be_placed_or_named_is_refused_by_name(raster: Raster, tmp_path: Path) -> None:
    shapes, _ = squares(raster, 2)
    cases = {
        "its attributes are kind": lambda: read(geojson(shapes, ["0", "1"]), field="crop"),
        "kind = 'lava'": lambda: read(geojson(shapes, ["0", "lava"])),
        "kind = '77'": lambda: read(geojson(shapes, ["77", "0"])),
        "kind = None": lambda: read(geojson(shapes, [None, "0"])),
        "names no coordinate system": lambda: read(geoparquet(shapes, ["0", "1"], None)),
        "has no polygon": lambda: read(geojson([shapely.Point(0, 0)], ["0"])),
        "no file of polygons": lambda: read(b"<OGRVRTDataSource></OGRVRTDataSource>"),
        "no GeoJSON of features": lambda: read(b'{"type": "Topology"}'),
        "damaged JSON": lambda: read(b'{"type": '),
        "cannot be read as a GeoPackage": lambda: read(geopackage(shapes, ["0", "1"], "EPSG:32614")[:5000]),
    }
    for words, attempt in cases.items():
        with pytest.raises(ConfigError) as refused:
            attempt()
        assert words in f"{refused.value} {refused.value.hint}", words
    bare = described(write_raster(tmp_path / "bare.tif", values(64, 64, 1), crs=None, transform=None))
    with pytest.raises(ConfigError, match="no coordinate system"):
        read(geojson(shapes, ["0", "1"])).on(bare)


def test_a_virtual_data_set_in_json_leads_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.geojson"
    secret.write_bytes(geojson([shapely.box(0, 0, 1, 1)], ["0"]))
    layer = f"<OGRVRTDataSource><OGRVRTLayer name='s'><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>"
    for data in (layer.encode(), json.dumps({"type": layer}).encode(), b"SQLite format 3\0" + layer.encode()):
        with pytest.raises(ConfigError):
            read(data)
