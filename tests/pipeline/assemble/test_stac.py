"""STAC items: valid by the schemas, and footprints where rasters lie on the Earth. pyproj's own code is no oracle here:
corners are computed by GDAL, and the rest follows from closed forms."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform_bounds

from pipeline.assemble.join import JoinedMask
from pipeline.assemble.plan import Assembly
from pipeline.assemble.stac import counted, footprint, is_current, make_item
from pipeline.classes import ClassMap
from pipeline.geotiff.raster import Raster
from pipeline.store.url import Url
from tests.support.examples import examples
from tests.support.raster_runs import CLASSES
from tests.support.stac import faults

BUILDING_SITE = 'LOCAL_CS["site",UNIT["metre",1]]'


def raster(
    crs: str | None = "EPSG:32614", transform: Affine | None = None, height: int = 300, width: int = 400
) -> Raster:
    """A raster of zeros in name only."""
    affine = Affine(0.25, 0, 485900, 0, -0.25, 5209245) if transform is None else transform
    return Raster(
        path="d/a.tif",
        etag="e1",
        size=1,
        height=height,
        width=width,
        dtype="uint8",
        count=3,
        bands=(1, 2, 3),
        channels=("red", "green", "blue"),
        alpha=None,
        nodata=None,
        transform=tuple(affine)[:6],
        crs_wkt=None if crs is None else CRS.from_user_input(crs).to_wkt(version="WKT2_2019"),
        epsg=None if crs is None else CRS.from_user_input(crs).to_epsg(),
    )


def item_of(one: Raster, classes: ClassMap = CLASSES, root: str = "s3://bucket/in", **facts) -> dict:
    assembly = Assembly("d/a.tif", root, one, shards=(), parts=(), name="d/a", **facts)
    joined = JoinedMask(np.arange(256), holes=0, size=1)
    return make_item(
        assembly, joined, classes, run_url=Url("s3://bucket/out/run=0123456789ab"), facts={"atrous:run": "0"}
    )


# Schemas --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one",
    [
        raster(),
        raster("EPSG:4326", Affine(1e-5, 0, 7, 0, -1e-5, 50)),
        raster(transform=Affine(0.3, 0.4, 485900, 0.4, -0.3, 5209245)),
        raster("EPSG:32660", Affine(1000, 0, 700_000, 0, -1000, 6e6)),
        raster("EPSG:3995", Affine(1000, 0, -200_000, 0, -1000, 150_000)),
        raster("+proj=laea +lat_0=50 +lon_0=7 +ellps=GRS80", Affine(1, 0, 0, 0, -1, 0)),
        raster(BUILDING_SITE),
        raster(None),
        replace(raster(), transform=None, crs_wkt=None, epsg=None),
        replace(raster(), datetime="2024-05-06T07:08:09Z"),
        replace(raster(), datetime="1985-01-01T00:00:00Z", end_datetime="1985-12-31T23:59:59Z"),
    ],
    ids=[
        "utm",
        "degrees",
        "rotated",
        "180th meridian",
        "pole",
        "no code",
        "building site",
        "no crs",
        "nothing",
        "time",
        "year",
    ],
)
def test_items_are_valid_by_the_schemas_of_the_core_and_the_extensions(one) -> None:
    item = item_of(one)
    assert faults(item) == []
    assert (item["geometry"] is None) == ("bbox" not in item)
    assert (item["geometry"] is None) == ("description" in item["properties"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda item: item.pop("links"), "links"),
        (lambda item: item["properties"].update(datetime=None, start_datetime=None), "start_datetime"),
        (lambda item: item.pop("bbox"), "any of the given schemas"),
        (lambda item: item["properties"].update({"proj:epsg": 32614}), "proj:epsg"),
        (lambda item: item["properties"].update({"proj:shape": [1.5, 2]}), "proj:shape"),
        (lambda item: item["assets"]["mask"]["bands"][0]["classification:classes"][0].pop("name"), "name"),
        (
            lambda item: item["assets"]["mask"]["bands"][0].update({"raster:spatial_resolution": "x"}),
            "spatial_resolution",
        ),
        (lambda item: item["assets"]["mask"]["bands"][0].update(data_type="byte"), "data_type"),
    ],
)
def test_the_schemas_notice_what_is_wrong(change, fault) -> None:
    item = copy.deepcopy(item_of(raster()))
    change(item)
    assert any(fault in text for text in faults(item))


def test_an_interval_is_that_of_the_item_and_its_time_the_beginning() -> None:
    properties = item_of(replace(raster(), datetime="1985-01-01T00:00:00Z", end_datetime="1985-12-31T23:59:59Z"))[
        "properties"
    ]
    assert properties["datetime"] == properties["start_datetime"] == "1985-01-01T00:00:00Z"
    assert properties["end_datetime"] == "1985-12-31T23:59:59Z"


def test_an_item_is_current_with_the_date_of_its_raster_and_a_collection() -> None:
    dated = replace(raster(), datetime="1985-01-01T00:00:00Z", end_datetime="1985-12-31T23:59:59Z")
    rasters = [raster(), dated, replace(dated, end_datetime=None)]
    items = [item_of(one) for one in rasters]
    for number, one in enumerate(rasters):
        assert [is_current(item, one) for item in items] == [number == other for other in range(3)]
    items[0].pop("collection")
    assert not is_current(items[0], rasters[0])


def test_what_an_item_counts_gives_the_same_item_again() -> None:
    one, facts = raster(), {"atrous:run": "0"}
    assembly = Assembly("d/a.tif", "s3://bucket/in", one, shards=(), parts=(), name="d/a")
    joined = JoinedMask(np.arange(256) * (np.arange(256) < len(CLASSES)), holes=7, size=1)
    joined.class_pixels[255] = 1234
    item = make_item(assembly, joined, CLASSES, run_url=Url("s3://b/run=0"), facts=facts)
    again = make_item(assembly, counted(item, CLASSES), CLASSES, run_url=Url("s3://b/run=0"), facts=facts)
    assert again == item


def test_class_names_with_spaces_keep_them_in_the_title() -> None:
    named = CLASSES.model_copy(
        update={"classes": tuple(one.model_copy(update={"name": f"{one.name} (2024)"}) for one in CLASSES.classes)}
    )
    item = item_of(raster(), named)
    assert faults(item) == []
    first = item["assets"]["mask"]["bands"][0]["classification:classes"][0]
    assert first["title"] == named.names[0]


# Links ----------------------------------------------------------------------------------------------------------------


def test_the_source_is_a_path_that_can_be_opened_and_has_no_credentials(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert item_of(raster(), root="in")["assets"]["source"]["href"] == f"{tmp_path}/in/d/a.tif"
    assert item_of(raster())["assets"]["source"]["href"] == "s3://bucket/in/d/a.tif"
    secret = item_of(raster(), root="https://user:secret@host/in?X-Amz-Signature=abcdef")
    assert "secret" not in str(secret)
    assert "abcdef" not in str(secret)


def test_windows_without_an_answer_are_counted() -> None:
    properties = item_of(raster(), failed=2, missing=1)["properties"]
    assert properties["atrous:failed_windows"] == 3


# Footprints -----------------------------------------------------------------------------------------------------------


@given(st.floats(-179, 179), st.floats(-80, 80), st.floats(-math.pi, math.pi), st.floats(1e-4, 5), st.floats(0.1, 1.5))
@examples(100)
def test_a_footprint_is_counterclockwise_inside_its_box_and_of_the_rasters_area(x, y, turn, step, shear) -> None:
    affine = (
        Affine.translation(x, y) @ Affine.rotation(math.degrees(turn)) @ Affine.scale(step / 400, -step * shear / 300)
    )
    geometry, (west, south, east, north) = footprint(raster("EPSG:4326", affine))
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    total = 0.0
    for ((*ring, last),) in polygons:
        assert last == ring[0]
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)) / 2
        assert area > 0
        total += area
        assert all(-180 <= lon <= 180 and south <= lat <= north for lon, lat in ring)
        assert all(west <= lon <= east if west <= east else lon >= west or lon <= east for lon, _ in ring)
    assert total == pytest.approx(step * step * shear, rel=1e-3, abs=1e-8)


def test_a_raster_across_the_180th_meridian_has_two_polygons() -> None:
    geometry, bbox = footprint(raster("EPSG:4326", Affine(0.05, 0, 170, 0, -0.05, 10)))
    assert geometry["type"] == "MultiPolygon"
    assert bbox == pytest.approx([170, -5, -170, 10])
    east, west = geometry["coordinates"]
    assert max(lon for lon, _ in east[0]) == 180
    assert min(lon for lon, _ in west[0]) == -180


def test_a_raster_round_the_pole_reaches_it() -> None:
    geometry, bbox = footprint(raster("EPSG:3995", Affine(1000, 0, -200_000, 0, -1000, 150_000)))
    south = transform_bounds("EPSG:3995", "EPSG:4326", -200_000, -150_000, 200_000, 150_000, densify_pts=101)[1]
    assert bbox == pytest.approx([-180, south, 180, 90], abs=1e-2)
    points = [point for polygon in geometry["coordinates"] for ring in polygon for point in ring]
    assert {-180.0, 180.0} <= {lon for lon, _ in points}


@pytest.mark.parametrize(
    "one",
    [raster(BUILDING_SITE), raster("EPSG:3035", Affine(1e6, 0, 1e9, 0, -1e6, 1e9)), raster(None)],
    ids=["building site", "off the map", "no crs"],
)
def test_coordinates_that_are_nowhere_on_earth_are_no_error(one) -> None:
    assert footprint(one) == (None, [])
