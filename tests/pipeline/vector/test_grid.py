"""Polygons on pixel grids against shapes that were drawn there, by pyproj and GDAL on whole rasters."""

from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio import features as gdal
from rasterio.crs import CRS

from pipeline.errors import ConfigError
from pipeline.geotiff.raster import Raster
from pipeline.vector.antimeridian import unroll
from pipeline.vector.features import Features, read_features
from pipeline.vector.grid import GridShapes, to_grid
from tests.support.polygons import geojson

DEGREES = "OGC:CRS84"
HEIGHT, WIDTH = 120, 160


def raster_on(crs: str, transform: rasterio.Affine, height: int = HEIGHT, width: int = WIDTH) -> Raster:
    wkt = CRS.from_user_input(crs).to_wkt(version="WKT2_2019")
    return Raster(
        *("a.tif", "1", 1, height, width, "uint8", 1, (1,), ("grey",), None, None),
        transform=tuple(transform)[:6],
        crs_wkt=wkt,
    )


def grid_of(left: float, top: float, px: float) -> rasterio.Affine:
    return rasterio.Affine(px, 0, left, 0, -px, top)


def drawn(seed: int, count: int = 12, reach: float = 0.15) -> list[Any]:
    """Rotated squares with holes in pixels, on a raster of HEIGHT x WIDTH pixels and a little around it."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        x, y = rng.uniform(-reach, 1 + reach, 2) * (WIDTH, HEIGHT)
        square = shapely.box(x - 15, y - 10, x + 15, y + 10).difference(shapely.box(x - 5, y - 3, x + 5, y + 3))
        out.append(shapely.affinity.rotate(square, rng.uniform(0, 90)))
    return out


def placed(shapes: list[Any], raster: Raster) -> list[Any]:
    """Shapes in pixels, in coordinates of the raster."""
    a, b, c, d, e, f = raster.transform or ()
    return [shapely.affinity.affine_transform(shape, [a, b, d, e, c, f]) for shape in shapes]


def features_of(shapes: list[Any], crs: str = DEGREES) -> Features:
    return read_features(geojson(shapes, range(len(shapes)), crs=crs), name="fields", field="kind")


def burned(shapes: Any, ids: Any, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width) int32: 1 + index of the last shape that covers the centre of a pixel, else 0."""
    pairs = [(shape, int(index) + 1) for shape, index in zip(shapes, ids, strict=True) if not shape.is_empty]
    return gdal.rasterize(pairs or [(shapely.Point(-9, -9), 1)], (height, width), dtype="int32")


def on_grid(grid: GridShapes) -> np.ndarray:
    return burned(grid.shapes, grid.indices)


def to_degrees(shapes: list[Any], crs: str, edge: float) -> list[Any]:
    """Shapes of another coordinate system in longitudes of -180 to 180, by pyproj."""
    return list(geopandas.GeoSeries(shapely.segmentize(shapes, edge), crs=crs).to_crs(DEGREES))


def eastern(shape: Any) -> Any:
    """The same shape in longitudes of 0 to 360."""
    return shapely.transform(shape, lambda xy: np.stack([xy[:, 0] % 360, xy[:, 1]], axis=1))


def western(shape: Any) -> Any:
    """The same shape in longitudes of -180 to 180, with jumps where it crosses the antimeridian."""
    return shapely.transform(shape, lambda xy: np.stack([(xy[:, 0] + 180) % 360 - 180, xy[:, 1]], axis=1))


def cut_at_180(shape: Any) -> Any:
    """A shape in longitudes of 0 to 360 as RFC 7946 writes it, sec. 3.1.9."""
    west = shapely.clip_by_rect(shape, 180, -90, 360, 90)
    moved = shapely.affinity.translate(west, -360)
    parts = [*shapely.get_parts(shapely.clip_by_rect(shape, 0, -90, 180, 90)), *shapely.get_parts(moved)]
    return shapely.MultiPolygon([part for part in parts if not part.is_empty])


WRITTEN = {"0 to 360": lambda shape: shape, "with jumps": western, "cut at 180": cut_at_180}
ACROSS = {
    "UTM 1": ("EPSG:32601", grid_of(301_400, 6_007_000, 40)),
    "UTM 60": ("EPSG:32660", grid_of(692_200, 6_007_000, 40)),
    "UTM 60 south": ("EPSG:32760", grid_of(766_800, 6_007_000, 40)),
    "degrees to 181": (DEGREES, grid_of(179.5, -16.0, 0.01)),
    "degrees from -181": (DEGREES, grid_of(-181.0, -16.0, 0.01)),
    "another datum": ("EPSG:4314", grid_of(179.5, -16.0, 0.01)),
    "polar": ("EPSG:3031", grid_of(-2400, -1_200_000, 40)),
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("place", ACROSS)
def test_polygons_across_the_antimeridian_lie_where_they_were_drawn(place: str, written: str) -> None:
    raster = raster_on(*ACROSS[place])
    truth = drawn(seed=3, count=20)
    degrees = [eastern(shape) for shape in to_degrees(placed(truth, raster), ACROSS[place][0], 16 * ACROSS[place][1].a)]
    assert any(shapely.bounds(shape)[0] < 180 < shapely.bounds(shape)[2] for shape in degrees)
    features = features_of([WRITTEN[written](shape) for shape in degrees])
    ours, expected = to_grid(features, raster), burned(truth, range(20))
    assert (on_grid(ours) != expected).sum() <= 3
    whole = to_grid(features, raster, clip=False)
    assert (on_grid(whole) != expected).sum() <= 3
    np.testing.assert_allclose(shapely.area(whole.shapes), shapely.area(truth)[whole.indices], rtol=1e-3)
    assert shapely.is_valid(ours.shapes).all()
    assert shapely.is_valid(whole.shapes).all()
    assert features.unrolled == (sum(shapely.bounds(s)[0] < 180 < shapely.bounds(s)[2] for s in degrees)) * (
        written == "with jumps"
    )
    assert len(features.notes) == (written == "with jumps")


@pytest.mark.parametrize("source", ["EPSG:32660", "EPSG:32601", "EPSG:3832"])
def test_polygons_in_metres_lie_on_degrees_beyond_180(source: str) -> None:
    raster = raster_on(DEGREES, grid_of(179.2, -16.0, 0.01))
    truth = drawn(seed=3)
    metres = geopandas.GeoSeries(shapely.segmentize(placed(truth, raster), 0.1), crs=DEGREES).to_crs(source)
    grid = to_grid(features_of(list(metres), source), raster)
    assert (on_grid(grid) != burned(truth, range(12))).sum() <= 3


SYSTEMS = ["EPSG:32614", DEGREES, "EPSG:3857", "EPSG:5070", "EPSG:4807", "EPSG:27561"]
TURNS = {
    "north-up": rasterio.Affine.identity(),
    "south-up": rasterio.Affine(1, 0, 0, 0, -1, HEIGHT),
    "east-left": rasterio.Affine(-1, 0, WIDTH, 0, 1, 0),
    "rotated": rasterio.Affine.rotation(30),
    "transposed": rasterio.Affine(0, 1, 0, 1, 0, 0),
    "sheared": rasterio.Affine(1, 0.3, 0, 0.1, 1, 0),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("source", SYSTEMS)
def test_polygons_lie_where_they_were_drawn_on_rasters_of_every_orientation(source: str, turn: str) -> None:
    raster = raster_on("EPSG:32631", grid_of(440_000, 5_420_000, 10) @ TURNS[turn])
    truth = drawn(seed=5)
    there = geopandas.GeoSeries(shapely.segmentize(placed(truth, raster), 160), crs="EPSG:32631").to_crs(source)
    if source == "EPSG:4807":  # its own axes are latitude and longitude, those of files never
        assert there.crs.axis_info[0].direction == "north"
    features = Features("fields", there.to_numpy(), list(range(12)), CRS.from_user_input(source))
    expected = burned(truth, range(12))
    assert expected.any()
    for clip in (True, False):
        assert (on_grid(to_grid(features, raster, clip=clip)) != expected).sum() <= 2


@given(seed=st.integers(0, 2**32 - 1), turn=st.sampled_from(list(TURNS)), degrees=st.booleans())
def test_whole_polygons_are_those_that_touch_the_raster_with_all_their_area(
    seed: int, turn: str, degrees: bool
) -> None:
    raster = raster_on("EPSG:32614", grid_of(440_000, 4_420_000, 10) @ TURNS[turn])
    truth = drawn(seed, reach=0.4)
    shapes = placed(truth, raster)
    if degrees:
        shapes = to_degrees(shapes, "EPSG:32614", 160)
    features = features_of(shapes, DEGREES if degrees else "EPSG:32614")
    clipped, whole = to_grid(features, raster), to_grid(features, raster, clip=False)
    touching = shapely.area(shapely.intersection(truth, shapely.box(0, 0, WIDTH, HEIGHT)))
    assert (
        set(np.flatnonzero(touching > 0.01))
        <= set(whole.indices)
        <= set(np.flatnonzero(touching > 0))
        | set(np.flatnonzero(shapely.distance(truth, shapely.box(0, 0, WIDTH, HEIGHT)) < 0.01))
    )
    assert (np.diff(whole.indices) > 0).all()
    alike = ~clipped.clipped
    np.testing.assert_allclose(shapely.area(clipped.shapes[alike]), shapely.area(whole.shapes[alike]))
    assert (shapely.area(clipped.shapes) <= shapely.area(whole.shapes) * 1.001).all()
    assert not whole.clipped.any()
    np.testing.assert_allclose(shapely.area(whole.shapes), shapely.area(truth)[whole.indices], rtol=1e-3)
    inside = shapely.area(shapely.intersection(clipped.shapes, shapely.box(0, 0, WIDTH, HEIGHT)))
    np.testing.assert_allclose(inside, touching[clipped.indices], rtol=1e-3, atol=0.02)


def test_whole_polygons_have_the_pixels_of_a_larger_raster() -> None:
    small = raster_on("EPSG:32614", grid_of(440_000, 4_420_000, 10))
    truth = drawn(seed=8)
    features = features_of(to_degrees(placed(truth, small), "EPSG:32614", 160))
    whole = to_grid(features, small, clip=False)
    around = [shapely.affinity.translate(shape, WIDTH, HEIGHT) for shape in whole.shapes]
    outside = 0
    for shape, index in zip(around, whole.indices, strict=True):
        counted = gdal.rasterize([shape], (3 * HEIGHT, 3 * WIDTH))
        moved = shapely.affinity.translate(truth[index], WIDTH, HEIGHT)
        expected = gdal.rasterize([moved], (3 * HEIGHT, 3 * WIDTH))
        assert (counted != expected).sum() <= 1
        outside += expected.sum() - expected[HEIGHT : 2 * HEIGHT, WIDTH : 2 * WIDTH].sum()
    assert outside > 300


@pytest.mark.parametrize("left", [-180.0, 0.0, -180.5])
def test_a_raster_around_the_earth_has_both_sides_of_a_polygon_at_its_edge(left: float) -> None:
    raster = raster_on(DEGREES, grid_of(left, 60, 1), 120, 360 + (left == -180.5))
    shapes = [shapely.box(175, -10, 188, 10), shapely.box(-4, 20, 6, 30), shapely.box(-180, -50, 180, -40)]
    here = [shapely.affinity.translate(shape, shift - left, 0, 0) for shift in (-360, 0, 360) for shape in shapes]
    expected = burned(
        [shapely.affinity.scale(shapely.affinity.translate(shape, 0, -60), 1, -1, origin=(0, 0)) for shape in here],
        [0, 1, 2] * 3,
        120,
        raster.width,
    )
    for write in WRITTEN.values():
        features = features_of([write(shapes[0]), *shapes[1:]])
        grid = to_grid(features, raster)
        np.testing.assert_array_equal(burned(grid.shapes, grid.indices, 120, raster.width), expected)
        whole = to_grid(features, raster, clip=False)
        np.testing.assert_allclose(shapely.area(whole.shapes), [13 * 20, 100, 3600])


@pytest.mark.parametrize(
    ("crs", "seam"), [("EPSG:3857", 180), ("+proj=merc +lon_0=150", 330), ("+proj=moll +lon_0=0", 180)]
)
@pytest.mark.parametrize("written", WRITTEN)
def test_a_map_of_the_earth_in_metres_has_both_sides_too(crs: str, seam: int, written: str) -> None:
    where = grid_of(-20_040_000, 10_000_000, 40_000)
    crossing = shapely.box(seam - 10, -10, seam + 15, 10)
    halves = [shapely.box(seam - 10, -10, seam - 1e-6, 10), shapely.box(seam - 360 + 1e-6, -10, seam - 345, 10)]
    there = geopandas.GeoSeries(shapely.segmentize(halves, 0.1), crs=DEGREES).to_crs(crs)
    expected = gdal.rasterize(there, (500, 1002), transform=where)
    features, raster = features_of([WRITTEN[written](crossing)]), raster_on(crs, where, 500, 1002)
    grid, whole = to_grid(features, raster), to_grid(features, raster, clip=False)
    assert whole.shapes[0].equals(grid.shapes[0])
    assert not whole.clipped[0]
    assert expected[:, :2].any() or "moll" in crs
    chords = 60 if "moll" in crs else 2  # pixels along curves, whose edges are 640 km long here
    assert (gdal.rasterize(grid.shapes, (500, 1002)) != expected).sum() <= chords


def test_a_polygon_that_a_map_of_the_earth_tears_is_refused() -> None:
    lopsided = grid_of(-18_000_000, 10_000_000, 40_000)
    raster = raster_on("+proj=merc +lon_0=150.5", lopsided, 500, 1002)
    assert to_grid(features_of([shapely.box(0, 0, 1, 1)]), raster).indices.tolist() == [0]
    with pytest.raises(ConfigError, match="tears them; the first is polygon 1"):
        to_grid(features_of([shapely.box(-40, -10, -20, 10)]), raster)
    raster = raster_on("EPSG:3857", grid_of(-20_040_000, 10_000_000, 40_000), 500, 1002)
    pacific = {at: features_of([shapely.box(at, 0, at + 10**6, 10**6)], "EPSG:3832") for at in (0, 3 * 10**6)}
    assert len(to_grid(pacific[0], raster).indices) == 1
    with pytest.raises(ConfigError, match="tears them"):  # it lies across the antimeridian
        to_grid(pacific[3 * 10**6], raster)


def test_a_pole_within_a_raster_is_covered_by_polygons_that_meet_there() -> None:
    raster = raster_on("EPSG:3031", grid_of(-600_000, 600_000, 10_000), 120, 120)
    cap = shapely.box(-180, -90, 180, -87)
    quarters = [shapely.box(at, -90, at + 90, -87) for at in (-180, -90, 0, 90)]
    for shapes in ([cap], quarters):
        grid = to_grid(features_of(shapes), raster)
        mask = gdal.rasterize(grid.shapes, (120, 120))
        y, x = np.mgrid[0:120, 0:120] - 59.5
        radius = geopandas.GeoSeries([shapely.Point(0, -87)], crs=DEGREES).to_crs("EPSG:3031").y[0] / 10_000
        differs = mask != (np.hypot(x, y) < radius)
        assert differs.sum() <= 12


@given(
    lon=st.floats(-179, 179),
    lat=st.floats(-60, 60),
    size=st.floats(0.2, 80),
    holes=st.booleans(),
)
def test_what_is_continued_is_the_polygon_that_was_written_with_jumps(
    lon: float, lat: float, size: float, holes: bool
) -> None:
    shape = shapely.Point(lon, lat).buffer(size / 2)
    if holes:
        shape = shape.difference(shapely.box(lon - size / 8, lat - size / 8, lon + size / 8, lat + size / 8))
    written = western(shape)
    (found,), changed = unroll(np.array([written]), 360.0, "fields")
    assert shapely.is_valid(found)
    np.testing.assert_allclose(found.area, shape.area)
    away = (found.centroid.x - shape.centroid.x) / 360
    assert abs(away - round(away)) < 1e-9
    assert changed == (not written.equals_exact(found, 0))


def test_only_the_parts_that_cross_are_continued() -> None:
    across, near = shapely.box(170, 0, 190, 5), shapely.box(-170, 10, -160, 20)
    (found,), changed = unroll(np.array([shapely.MultiPolygon([near, western(across)])]), 360.0, "fields")
    assert changed == 1
    assert found.geoms[0].equals(near)
    assert found.geoms[1].equals(across)


def test_a_ring_around_a_pole_is_refused_unless_it_is_closed_along_the_pole() -> None:
    ring = [(lon, -70 + lon / 90) for lon in range(-170, 180, 10)]
    with pytest.raises(ConfigError, match="goes around a pole"):
        features_of([shapely.Polygon(ring)])
    closed = [(-180, -90), (-180, -72), *ring, (180, -72), (180, -90)]
    assert features_of([shapely.Polygon(closed)]).unrolled == 0


def test_a_polygon_with_points_that_have_no_place_is_clipped_and_others_stay_whole() -> None:
    crs = "+proj=ortho +lat_0=40 +lon_0=10"
    raster = raster_on(crs, grid_of(-2000, 2000, 40))
    half, field, beyond = (
        shapely.segmentize(shapely.box(-170, 39.99, 170, 41), 30),
        shapely.box(9.99, 39.985, 10.01, 40.0),
        shapely.box(99, 0, 100, 1),
    )
    features = features_of([half, field, beyond])
    whole = to_grid(features, raster, clip=False)
    assert whole.indices.tolist() == [0, 1]
    assert whole.clipped.tolist() == [True, False]
    assert np.isfinite(shapely.bounds(whole.shapes)).all()
    np.testing.assert_array_equal(on_grid(whole), on_grid(to_grid(features, raster)))


PLACES = {
    "EPSG:27700": (400_000, 300_000),
    "EPSG:3035": (4_000_000, 3_000_000),
    "EPSG:32614": (500_000, 4_400_000),
    "EPSG:28992": (155_000, 463_000),
}


@pytest.mark.parametrize("source", PLACES)
@pytest.mark.parametrize(("crs", "px"), [(DEGREES, 0.2), ("EPSG:3857", 20_000)])
def test_polygons_of_one_country_lie_on_a_raster_of_the_whole_earth(crs: str, px: float, source: str) -> None:
    left, top = (-180, 90) if crs == DEGREES else (-20_040_000, 20_040_000)
    where, size = grid_of(left, top, px), (round(2 * top / px), round(-2 * left / px))
    x, y = PLACES[source]
    country = [shapely.box(x + at, y, x + at + 100_000, y + 130_000) for at in (0, 150_000)]
    there = geopandas.GeoSeries(shapely.segmentize(country, 1000), crs=source).to_crs(crs)
    expected = gdal.rasterize(there, size, transform=where)
    for clip in (True, False):
        grid = to_grid(features_of(country, source), raster_on(crs, where, *size), clip=clip)
        assert grid.indices.tolist() == [0, 1]
        assert (gdal.rasterize(grid.shapes, size) != expected).sum() <= 2
    assert expected.sum() > 50


def test_polygons_on_the_other_side_of_the_earth_give_nothing() -> None:
    crs = CRS.from_user_input("+proj=ortho +lon_0=10")
    metres = Features("fields", np.array([shapely.box(0, 0, 1, 1)]), ["1"], crs)
    assert not len(to_grid(metres, raster_on(DEGREES, grid_of(-170, 0, 0.01))).indices)


def test_polygons_elsewhere_give_nothing() -> None:
    raster = raster_on("EPSG:32614", grid_of(440_000, 4_420_000, 10))
    for clip in (True, False):
        grid = to_grid(features_of([shapely.box(10, 10, 11, 11)]), raster, clip=clip)
        assert (len(grid.indices), len(grid.shapes), len(grid.clipped)) == (0, 0, 0)
