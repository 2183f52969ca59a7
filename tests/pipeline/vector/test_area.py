"""Areas against the geodesic ones of pyproj."""

from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Geod, Transformer

from pipeline.geotiff.raster import Raster, Transform
from pipeline.records import Window
from pipeline.vector.area import pixel_areas, shape_hectares

UTM = ((30.0, 0.0, 600000.0, 0.0, -30.0, 5200000.0), "EPSG:32614")
DRONE = ((0.02, 0.0, 485900.0, 0.0, -0.02, 5209245.0), "EPSG:32614")
SOUTH_UP = ((30.0, 0.0, 600000.0, 0.0, 30.0, 5200000.0), "EPSG:32614")
TURNED = ((20.0, 12.0, 600000.0, 12.0, -20.0, 5200000.0), "EPSG:32614")
MERCATOR = ((10.0, 0.0, 500000.0, 0.0, -10.0, 6800000.0), "EPSG:3857")
DEGREES = ((0.0003, 0.0, 10.0, 0.0, -0.0003, 52.0), "EPSG:4326")
ANTIMERIDIAN = ((0.0003, 0.0, 179.9, 0.0, -0.0003, -17.0), "EPSG:4326")
POLE = ((100.0, 0.0, -100000.0, 0.0, -100.0, 100000.0), "EPSG:3031")


def raster(transform: Transform | None, crs: str | None, height: int = 2000, width: int = 2000) -> Raster:
    wkt = None if crs is None else rasterio.crs.CRS.from_user_input(crs).to_wkt()
    return Raster("a", "", 1, height, width, "uint8", 1, (1,), ("a",), None, None, transform=transform, crs_wkt=wkt)


def pixel_hectares(raster: Raster, window: Window) -> np.ndarray | None:
    """(h, w) hectares, each pixel as a run of its own."""
    areas = pixel_areas(raster, window)
    rows, columns = np.indices((window.height, window.width))
    ones = np.ones(rows.size, int)
    return None if areas is None else areas.of_runs(rows.ravel(), columns.ravel(), ones).reshape(rows.shape)


def geodesic(shape: Any, crs: str, longest: float) -> float:
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    degrees = shapely.transform(
        shapely.segmentize(shape, longest), lambda xy: np.stack(to_degrees.transform(*xy.T), axis=1)
    )
    return abs(Geod(ellps="WGS84").geometry_area_perimeter(degrees)[0]) / 10_000


@pytest.mark.parametrize("place", [UTM, DRONE, SOUTH_UP, TURNED, MERCATOR, DEGREES, ANTIMERIDIAN, POLE])
@pytest.mark.parametrize("window", [Window(0, 0, 300, 500), Window(1000, 666, 333, 100), Window(1990, 1999, 10, 1)])
def test_the_pixels_of_a_window_have_its_geodesic_area(place: tuple[Transform, str], window: Window) -> None:
    transform, crs = place
    y, x = window.y, window.x
    box = shapely.box(x, y, x + window.width, y + window.height)
    affine = rasterio.Affine(*transform)
    shape = shapely.transform(
        shapely.segmentize(box, 5), lambda xy: np.array([affine @ tuple(point) for point in xy.tolist()])
    )
    hectares = pixel_hectares(raster(*place), window)
    assert hectares is not None
    assert hectares.shape == (window.height, window.width)
    assert hectares.sum() == pytest.approx(
        geodesic(shape, crs, 1e9), rel=1e-5
    )  # of pyproj for areas of square centimetres too


def test_areas_do_not_depend_on_how_windows_lie() -> None:
    whole = pixel_hectares(raster(*MERCATOR), Window(0, 0, 600, 700))
    part = pixel_hectares(raster(*MERCATOR), Window(130, 257, 300, 200))
    assert whole is not None
    np.testing.assert_allclose(part, whole[130:430, 257:457], rtol=1e-12)


def test_pixels_of_kilometres_are_right_to_a_hundred_thousandth() -> None:
    place = ((0.01, 0.0, -60.0, 0.0, -0.01, 60.0), "EPSG:4326")
    hectares = pixel_hectares(raster(*place, 1000, 1000), Window(0, 0, 1000, 1000))
    assert hectares is not None
    expected = geodesic(shapely.box(-60, 50, -50, 60), "EPSG:4326", 0.01)
    assert hectares.sum() == pytest.approx(expected, rel=1e-5)


def test_a_grid_whose_first_pixels_are_centred_on_a_pole_has_the_area_of_the_earth() -> None:
    place = ((0.25, 0.0, -180.125, 0.0, -0.25, 90.125), "EPSG:4326")
    hectares = pixel_hectares(raster(*place, 721, 1440), Window(0, 0, 721, 1440))
    assert hectares is not None
    assert hectares.sum() == pytest.approx(510_065_621.724 * 100, rel=1e-5)  # km2 of the ellipsoid WGS 84


def test_web_mercator_at_52_degrees_is_not_2_6_times_too_large() -> None:
    hectares = pixel_hectares(raster(*MERCATOR), Window(0, 0, 1, 1))
    assert hectares is not None
    assert 2.6 < 0.01 / hectares[0, 0] < 2.8


@pytest.mark.parametrize("place", [(None, "EPSG:32614"), (UTM[0], None), (UTM[0], 'LOCAL_CS["site",UNIT["metre",1]]')])
def test_a_raster_without_a_place_on_earth_has_no_areas(place: Any) -> None:
    transform, crs = place
    wkt = crs if crs and crs.startswith("LOCAL") else None
    here = raster(transform, None if wkt else crs)
    assert pixel_hectares(here if wkt is None else raster(transform, wkt), Window(0, 0, 5, 5)) is None


@pytest.mark.parametrize(
    ("crs", "centre", "size"),
    [
        ("EPSG:32614", (500000, 5200000), 300),
        ("EPSG:32614", (700000, 5200000), 20000),
        ("EPSG:3857", (1e6, 6.8e6), 9000),
        ("EPSG:4326", (10, 52), 0.05),
        ("EPSG:4326", (180, -17), 2.0),
        ("EPSG:32601", (170000, 5000000), 60000),
        ("EPSG:3031", (300000, 300000), 50000),
    ],
)
def test_polygons_have_their_geodesic_area(crs: str, centre: tuple[float, float], size: float) -> None:
    rng = np.random.default_rng(0)
    turns, radii = np.sort(rng.uniform(0, 6.28, (5, 9)), axis=1), rng.uniform(0.5, 1, (5, 9)) * size
    points = np.stack([centre[0] + radii * np.cos(turns), centre[1] + radii * np.sin(turns)], axis=-1)
    shapes = shapely.polygons(points)
    shapes[4] = shapely.multipolygons([shapes[4], shapely.transform(shapes[3], lambda xy: xy + 3 * size)])
    step = 0.005 if crs == "EPSG:4326" else 500
    expected = [geodesic(shape, crs, step / 5) for shape in shapes]
    hectares = shape_hectares(shapes, rasterio.crs.CRS.from_user_input(crs))
    np.testing.assert_allclose(hectares, expected, rtol=3e-5)
