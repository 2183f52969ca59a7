"""Rasters over HTTP: their tiles against GDAL, outlines against shapely, and what is refused."""

import io
import os
import shutil

import geopandas
import numpy as np
import PIL.Image
import pytest
import shapely

from pipeline.geotiff.overview import TilePlace
from pipeline.geotiff.pyramid import TILE_PX
from pipeline.view import outlines, source_tiles
from tests.support import viewed_rasters
from tests.support.served import visit
from tests.support.viewed_rasters import CORE_PX, HOSTILE, MASKS, PLAIN, ZONES, level_by_gdal

ALL = {"y": 0, "x": 0, "height": 10_000, "width": 10_000, "level": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with masks, polygons and zones, and a copy of it as it was before its windows were joined."""
    folder = tmp_path_factory.mktemp("rasters")
    url = viewed_rasters.commit(folder)
    shutil.copytree(url.raw, folder / "unjoined/run=0123456789ab")
    viewed_rasters.join(url)
    viewed_rasters.make_outlines(url, folder / "fields.geojson")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    opened = viewed_rasters.open_run(viewed_rasters.Url(str(folder / "out/run=0123456789ab")), folder / "cache")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def unjoined(folder):
    opened = viewed_rasters.open_run(viewed_rasters.Url(str(folder / "unjoined/run=0123456789ab")), folder / "cache2")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def visitor(run):
    return visit(run)


def whole(tile, size):
    """A level put together from its tiles, each given by its row and column."""
    rows, columns = (range(-(-side // TILE_PX)) for side in size)
    return np.concatenate([np.concatenate([tile(row, column) for column in columns], axis=1) for row in rows])


def mask_over_http(visitor, number, level, size):
    def tile(row, column):
        answer = visitor.get(f"/api/rasters/{number}/mask/{level}/{row}/{column}")
        shape = int(answer.headers["X-Height"]), int(answer.headers["X-Width"])
        return np.frombuffer(answer.content, np.uint8).reshape(shape)

    return whole(tile, size)


def test_the_list_has_every_raster_with_its_size_and_windows(visitor):
    answer = visitor.get("/api/rasters").json()
    assert answer["unreadable"] == 0
    listed = {one["uri"]: (one["height"], one["width"], one["assembled"]) for one in answer["rasters"]}
    assert listed == {name: (*mask.shape, True) for name, mask in MASKS.items()}
    assert [one["windows"] for one in answer["rasters"]] == [6, 4]
    assert visitor.get("/api/run").json()["of_rasters"]


@pytest.mark.parametrize("number", [PLAIN, HOSTILE])
def test_mask_tiles_are_the_levels_of_the_file_as_gdal_reads_them(visitor, run, number):
    sizes = visitor.get(f"/api/rasters/{number}").json()["sizes"]
    name = run.rasters.raster(number).name
    assert len(sizes) == 3 if number == PLAIN else 2
    for level, size in enumerate(sizes):
        (expected,) = level_by_gdal(run.url.raw + f"/masks/{name}.tif", level)
        np.testing.assert_array_equal(mask_over_http(visitor, number, level, size), expected)
    np.testing.assert_array_equal(mask_over_http(visitor, number, 0, sizes[0]), list(MASKS.values())[number])


@pytest.mark.parametrize("number", [PLAIN, HOSTILE])
def test_windows_that_are_not_joined_give_the_tiles_that_the_joined_mask_has(visitor, unjoined, number):
    here = visit(unjoined)
    answer = here.get(f"/api/rasters/{number}").json()
    assert f"run `atrous assemble {unjoined.url}`" in answer["mask_problem"]
    assert not here.get("/api/rasters").json()["rasters"][number]["assembled"]
    for level in answer["mask_levels"]:
        joined, single = (mask_over_http(one, number, level, answer["sizes"][level]) for one in (visitor, here))
        np.testing.assert_array_equal(single, joined)


def test_source_tiles_are_the_levels_of_the_file_as_gdal_reads_them(run, folder):
    tiles = run.rasters.source(PLAIN)
    assert tiles.levels == [0, 1, 2]
    for level, size in enumerate(tiles.sizes):
        expected = np.moveaxis(level_by_gdal(folder / "source/plain.tif", level), 0, -1)
        np.testing.assert_array_equal(
            whole(lambda row, column, at=level: tiles.tile(TilePlace(at, row, column)), size), expected
        )


def test_a_level_without_an_overview_is_the_mean_of_the_pixels_of_a_finer_page(run, folder):
    tiles = run.rasters.source(HOSTILE)
    found = tiles.tile(TilePlace(1, 0, 0)).astype(float)
    full = np.moveaxis(level_by_gdal(folder / "source/west/<b>hostile.tif", 0), 0, -1)
    mean = full.reshape(310, 2, 265, 2, 3).mean(axis=(1, 3))
    assert np.abs(found - mean).max() <= 1  # rounded twice, along each axis


def test_a_level_that_would_read_too_much_shows_the_mask_alone_and_says_why(run, visitor, monkeypatch):
    monkeypatch.setattr(source_tiles, "MOST_TILE_BYTES", 512 * 512 * 3)
    answer = visitor.get(f"/api/rasters/{HOSTILE}").json()
    assert (answer["source_levels"], answer["mask_levels"]) == ([0], [0, 1])
    assert "no overview" in answer["source_problem"]
    assert visitor.get(f"/api/rasters/{HOSTILE}/source/1/0/0").status_code == 404
    assert visitor.get(f"/api/rasters/{PLAIN}").json()["source_levels"] == [0, 1, 2]


def test_a_source_tile_over_http_is_a_jpeg_from_the_cache_the_second_time(run, visitor, monkeypatch):
    path = f"/api/rasters/{PLAIN}/source/1/0/1"
    first = visitor.get(path)
    expected = run.rasters.source(PLAIN).tile(TilePlace(1, 0, 1))
    shown = np.asarray(PIL.Image.open(io.BytesIO(first.content)))
    assert np.abs(shown.astype(int) - expected).mean() < 6
    monkeypatch.setattr(source_tiles.SourceTiles, "tile", None)
    assert visitor.get(path).content == first.content


@pytest.mark.parametrize(
    "path",
    [
        "/api/rasters/2",
        "/api/rasters/-1",
        "/api/rasters/x",
        "/api/rasters/99999999999999999999",
        "/api/rasters/0/mask/3/0/0",
        "/api/rasters/0/mask/0/2/0",
        "/api/rasters/0/mask/0/0/3",
        "/api/rasters/0/mask/0/-1/0",
        "/api/rasters/0/source/3/0/0",
        "/api/rasters/0/source/0/99999999999999999999/0",
        "/api/rasters/0/source/0/0/0/../../../../../../etc/passwd",
        "/api/rasters/0/mask/..%2f..%2f..%2fetc%2fpasswd/0/0",
        "/api/rasters/..%2f..%2fetc%2fpasswd",
        "/api/rasters/0/outlines/..%2f..%2f..%2fetc%2fpasswd",
        "/api/rasters/0/outlines/nothing",
        "/api/rasters/0/outlines/zones/99",
        "/api/rasters/0/outlines/polygons/-1",
        "/api/rasters/0/outlines/polygons/999999999",
    ],
)
def test_a_number_that_is_none_and_a_path_that_leads_elsewhere_find_nothing(visitor, path):
    answer = visitor.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "wrong", [{"level": -1}, {"level": 99}, {"y": "x"}, {"x": "1e9"}, {"x": "9" * 400}, {"width": ""}]
)
def test_a_rectangle_that_makes_no_sense_is_refused(visitor, wrong):
    assert visitor.get("/api/rasters/0/outlines/zones", params=ALL | wrong).status_code == 400


def test_a_rectangle_beyond_the_raster_has_no_outlines(visitor):
    for beyond in ({"y": 10**30}, {"x": -(10**30)}, {"height": -5}):
        assert visitor.get("/api/rasters/0/outlines/polygons", params=ALL | beyond).json()["shapes"] == []


def shapes_of(answer):
    """Shapes by their number, of the rings of an answer."""
    rings = {one["number"]: [np.reshape(ring, (-1, 2)) for ring in one["rings"]] for one in answer["shapes"]}
    return {number: shapely.Polygon(parts[0], parts[1:]) for number, parts in rings.items()}


def test_polygons_cover_the_pixels_of_their_class(visitor, monkeypatch):
    monkeypatch.setattr(outlines, "MOST_OUTLINES", 10**5)
    monkeypatch.setattr(outlines, "MOST_POINTS", 10**6)
    answer = visitor.get("/api/rasters/0/outlines/polygons", params=ALL).json()
    assert answer["left_out"] == 0
    mask, found = MASKS["plain.tif"], shapes_of(answer)
    areas = np.zeros(len(viewed_rasters.CLASSES))
    for one in answer["shapes"]:
        areas[one["class_id"]] += found[one["number"]].area
    np.testing.assert_allclose(areas, np.bincount(mask[mask < 255], minlength=len(areas)), rtol=0.01)
    number, shape = next(iter(found.items()))
    table = visitor.get(f"/api/rasters/0/outlines/polygons/{number}").json()
    assert dict(zip(table["columns"], table["rows"][0], strict=True))["pixels"] == pytest.approx(shape.area)


def test_outlines_are_clipped_to_the_rectangle(visitor):
    part = {"y": 100, "x": 200, "height": 150, "width": 120, "level": 0}
    shapes = shapes_of(visitor.get("/api/rasters/0/outlines/polygons", params=part).json())
    assert shapely.union_all(list(shapes.values())).within(shapely.box(200, 100, 320, 250))


def test_small_and_too_many_outlines_are_left_out_and_counted(visitor, monkeypatch):
    monkeypatch.setattr(outlines, "MOST_OUTLINES", 5)
    every = visitor.get("/api/rasters/0/outlines/polygons", params=ALL).json()
    assert len(every["shapes"]) == 5
    assert every["left_out"] > 100
    coarse = visitor.get("/api/rasters/0/outlines/polygons", params=ALL | {"level": 9}).json()
    assert coarse["shapes"] == []
    monkeypatch.setattr(outlines, "MOST_POINTS", 10)
    assert len(visitor.get("/api/rasters/0/outlines/polygons", params=ALL).json()["shapes"]) < 5


def test_zones_lie_where_their_file_says_and_have_their_statistics(visitor, run):
    shapes = shapes_of(visitor.get("/api/rasters/0/outlines/zones", params=ALL).json())
    raster = run.rasters.raster(PLAIN).raster
    a, _, c, _, e, f = raster.transform
    drawn = geopandas.GeoSeries([shapely.affinity.affine_transform(one, [a, 0, 0, e, c, f]) for one in shapes.values()])
    expected = sorted(zone.area for zone in ZONES.values())
    np.testing.assert_allclose(sorted(drawn.area), expected, rtol=0.01)
    tables = [visitor.get(f"/api/rasters/0/outlines/zones/{number}").json() for number in shapes]
    names = {row[table["columns"].index("zone")] for table in tables for row in table["rows"]}
    assert names == set(ZONES)


def test_a_run_without_outlines_says_so(unjoined):
    here = visit(unjoined)
    assert here.get("/api/rasters/0").json()["outlines"] == []
    assert here.get("/api/rasters/0/outlines/zones", params=ALL).status_code == 404


def test_a_source_that_changed_since_is_not_shown_and_one_that_moved_is(run, folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder / "source", moved)
    os.utime(moved / "plain.tif", (1, 1))
    elsewhere = viewed_rasters.open_run(run.url, tmp_path / "cache", source=(str(moved),))
    assert elsewhere.source_tile(PLAIN, TilePlace(0, 0, 0)) == run.source_tile(PLAIN, TilePlace(0, 0, 0))
    elsewhere.close()
    shutil.copy(moved / "west/<b>hostile.tif", moved / "plain.tif")
    other = viewed_rasters.open_run(run.url, tmp_path / "cache", source=(str(moved),))
    assert "source_changed" in visit(other).get("/api/rasters/0").json()["source_problem"]
    other.close()


def test_a_source_that_was_written_again_or_deleted_is_not_shown(visitor, folder):
    path = folder / "source/plain.tif"
    before = path.stat()
    visitor.get("/api/rasters/0/source/0/0/0")
    os.utime(path, (1, 1))
    answer = visitor.get("/api/rasters/0").json()
    assert answer["source_levels"] == []
    assert "source_changed" in answer["source_problem"]
    assert visitor.get("/api/rasters/0/source/0/0/0").json()["code"] == "source_changed"
    path.rename(path.with_name("elsewhere.tif"))
    assert "not_found" in visitor.get("/api/rasters/0").json()["source_problem"]
    path.with_name("elsewhere.tif").rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert visitor.get("/api/rasters/0").json()["source_problem"] is None


def test_a_mask_that_is_damaged_or_of_another_raster_is_not_shown(folder, tmp_path):
    url = viewed_rasters.Url(str(tmp_path / "run=0123456789ab"))
    shutil.copytree(folder / "out/run=0123456789ab", url.raw)
    shutil.copy(tmp_path / "run=0123456789ab/masks/west/<b>hostile.tif", tmp_path / "run=0123456789ab/masks/plain.tif")
    opened = viewed_rasters.open_run(url, tmp_path / "cache")
    here = visit(opened)
    assert "no mask of 1100x700" in here.get("/api/rasters/0").json()["mask_problem"]
    path = tmp_path / "run=0123456789ab/masks/west/<b>hostile.tif"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 3000] + b"\xff" * 3000)
    answers = [here.get(f"/api/rasters/1/mask/0/{row}/{column}") for row in (0, 1) for column in (0, 1)]
    assert "corrupt" in {answer.json()["code"] for answer in answers if "json" in answer.headers["content-type"]}
    path.write_bytes(data[:100])
    assert here.get("/api/rasters/1").json()["mask_levels"] == []
    opened.close()


def test_windows_are_on_the_grid_that_the_page_computes(run):
    keys = {key for (key,) in run.index.fetch("SELECT key FROM rows")}
    expected = {
        f"{name}#{y},{x}"
        for name, mask in MASKS.items()
        for y in range(0, mask.shape[0], CORE_PX)
        for x in range(0, mask.shape[1], CORE_PX)
    }
    assert keys == expected
