"""From committed windows to COGs: GDAL and rio-cogeo are the oracles."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rio_cogeo import cog_validate

from pipeline.assemble import assemble, join, plan, squares
from pipeline.assemble.assemble import (
    delete_blocks,
    do_join,
    do_squares,
    group_squares,
    plan_work,
    renew_items,
    squares_left,
)
from pipeline.assemble.qgis import raster_qml
from pipeline.errors import ConfigError, StorageError
from pipeline.geotiff import cog
from pipeline.run import parts
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.raster_runs import CLASSES, busy_mask, commit_masks
from tests.support.rasters import values, write_raster

SIZES = [(1, 1), (511, 513), (512, 512), (600, 1301), (1537, 2050)]


@pytest.fixture
def run(tmp_path: Path) -> Url:
    return Url(str(tmp_path / "out/run=0123456789ab"))


def assemble_all(run_url: Url, *, holes: bool = False, order: int = 1) -> assemble.Todo:
    """Do all work that is left, squares in either order."""
    todo = plan_work(run_url, holes=holes)
    for group in group_squares(squares_left(run_url, todo.assemblies))[::order]:
        do_squares(group, run_url=run_url)
    for one in todo.assemblies:
        do_join(one, run_url=run_url, classes=CLASSES, facts={"atrous:run": "0123456789ab"})
    delete_blocks(run_url)
    return todo


def source_of(folder: Path, sizes: dict[str, tuple[int, int]], **profile) -> dict[str, np.ndarray]:
    masks = {}
    for number, (name, (height, width)) in enumerate(sizes.items()):
        write_raster(folder / name, values(height, width, 3), **profile)
        masks[name] = busy_mask(height, width, seed=number)
    return masks


def read_cog(run_url: Url, name: str) -> np.ndarray:
    with rasterio.open(str(run_url / f"masks/{name}.tif")) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("core_px", [512, 2048])
def test_a_cog_has_the_pixels_of_the_rows_and_is_strictly_valid(size, core_px, tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"d/a.tif": size})
    commit_masks(run, tmp_path / "in", masks, core_px=core_px)
    assemble_all(run)
    path = str(run / "masks/d/a.tif")
    with rasterio.open(path) as dataset, rasterio.open(tmp_path / "in/d/a.tif") as source:
        np.testing.assert_array_equal(dataset.read(1), masks["d/a.tif"])
        assert (dataset.crs, dataset.transform, dataset.shape) == (source.crs, source.transform, source.shape)
        assert dataset.nodata == 255
        assert dataset.colorinterp[0].name == "palette"
        assert dataset.colormap(1)[3][:3] == CLASSES.classes[3].colour
        assert dataset.descriptions == ("class",)
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])


@pytest.mark.parametrize("square_px", [512, 1024, 2048])
def test_squares_of_any_size_and_order_give_the_same_pixels_and_overviews(
    square_px, tmp_path, run, monkeypatch
) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (2100, 1700)})
    commit_masks(run, tmp_path / "in", masks)
    assemble_all(run)
    whole = (run / "masks/a.tif").raw
    with rasterio.open(whole) as dataset:
        expected = [dataset.read(1, out_shape=size) for size in ((2100, 1700), (1050, 850), (525, 425), (263, 213))]
    objects.delete(run / "items/a.json")
    for module in (plan, squares, join):
        monkeypatch.setattr(module, "SQUARE_PX", square_px, raising=False)
    levels = (square_px // 512).bit_length()
    for module in (squares, join):
        monkeypatch.setattr(module, "LEVELS", levels)
    assemble_all(run, order=-1)
    with rasterio.open(whole) as dataset:
        assert dataset.overviews(1) == [2, 4, 8]
        for ids in expected:
            np.testing.assert_array_equal(dataset.read(1, out_shape=ids.shape), ids)
    assert cog_validate(whole, strict=True, quiet=True)[0]


def test_the_same_rows_give_the_same_bytes_in_whatever_order_they_were_committed(tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (1100, 900)})
    other = Url(run.raw + "0")
    commit_masks(run, tmp_path / "in", masks)
    commit_masks(other, tmp_path / "in", masks, rows_per_part=2, order=-1)
    for url in (run, other):
        assemble_all(url)
    assert objects.read_bytes(run / "masks/a.tif") == objects.read_bytes(other / "masks/a.tif")


@pytest.mark.parametrize("level", [1, 2])
def test_overviews_differ_little_from_gdals_mode(level, tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (1500, 1400)})
    commit_masks(run, tmp_path / "in", masks)
    assemble_all(run)
    path = tmp_path / "gdal.tif"
    profile = {"driver": "GTiff", "height": 1500, "width": 1400, "count": 1, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", **profile) as dataset:  # without nodata: here it counts like a class
        dataset.write(masks["a.tif"], 1)
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.mode)
    with rasterio.open(str(run / "masks/a.tif")) as ours, rasterio.open(path) as theirs:
        shape = (1500 // 2**level, 1400 // 2**level)
        same = ours.read(1, out_shape=shape) == theirs.read(1, out_shape=shape)
    assert same.mean() > 0.9


@pytest.mark.parametrize(
    "transform",
    [Affine(0.5, 0, 10, 0, 0.5, 20), Affine(0.4, 0.3, 10, 0.3, -0.4, 20), Affine(0.5, 0, 10, 0, -0.25, 20)],
    ids=["south up", "rotated", "oblong"],
)
def test_the_georeferencing_of_the_source_is_kept_verbatim(transform, tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (300, 200)}, transform=transform, AREA_OR_POINT="Point")
    commit_masks(run, tmp_path / "in", masks)
    assemble_all(run)
    with rasterio.open(str(run / "masks/a.tif")) as ours, rasterio.open(tmp_path / "in/a.tif") as theirs:
        assert ours.transform == theirs.transform
        assert ours.crs == theirs.crs
        assert ours.tags().get("AREA_OR_POINT") == theirs.tags().get("AREA_OR_POINT")


def test_offsets_beyond_4_gib_make_a_big_tiff(tmp_path, run, monkeypatch) -> None:
    monkeypatch.setattr(join, "CLASSIC_BYTES", 2000)
    masks = source_of(tmp_path / "in", {"a.tif": (700, 700)})
    commit_masks(run, tmp_path / "in", masks)
    assemble_all(run)
    assert objects.read_bytes(run / "masks/a.tif")[:4] == b"II+\0"
    np.testing.assert_array_equal(read_cog(run, "a"), masks["a.tif"])
    assert cog_validate(str(run / "masks/a.tif"), strict=True, quiet=True)[0]
    assert cog.CLASSIC_BYTES < 2**32


# What is left, and what stays away ------------------------------------------------------------------------------------


def test_a_second_call_has_nothing_to_do_and_leaves_no_blocks(tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (700, 700), "b.tif": (100, 100)})
    commit_masks(run, tmp_path / "in", masks)
    assert len(assemble_all(run).assemblies) == 2
    again = plan_work(run, holes=False)
    assert (again.assemblies, again.done) == ([], 2)
    assert not [file.path for file in objects.list_files(run) if "blocks" in file.path]


def test_rows_that_were_made_again_are_assembled_again(tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (700, 700)})
    commit_masks(run, tmp_path / "in", masks, failed=frozenset({"a.tif#0,0"}))
    assert assemble_all(run).with_holes == {"a.tif": 1}
    assert not objects.exists(run / "masks/a.tif")
    assemble_all(run, holes=True)
    holed = read_cog(run, "a")
    assert (holed[:512, :512] == 255).all()
    np.testing.assert_array_equal(holed[512:], masks["a.tif"][512:])
    for name in parts.list_parts(run):
        objects.delete(parts.parts_url(run) / name)
    commit_masks(run, tmp_path / "in", masks)
    assemble_all(run)
    np.testing.assert_array_equal(read_cog(run, "a"), masks["a.tif"])


def test_holes_are_counted_in_the_item(tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (700, 700)})
    commit_masks(run, tmp_path / "in", masks, failed=frozenset({"a.tif#512,512"}))
    assemble_all(run, holes=True)
    properties = json.loads(objects.read_bytes(run / "items/a.json"))["properties"]
    assert properties["atrous:hole_pixels"] == 188**2
    counted = sum(properties["atrous:class_pixels"].values())
    assert counted + properties["atrous:nodata_pixels"] == 700**2


@pytest.mark.parametrize(
    "moment",
    [(squares, "encode_square"), (join.StoredSquare, "read"), (assemble, "make_item"), (objects, "delete")],
    ids=lambda moment: moment[1],
)
def test_an_assembly_killed_at_any_moment_ends_with_the_same_bytes(moment, tmp_path, run, monkeypatch) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (1100, 1300)})
    undisturbed = Url(run.raw + "0")
    for url in (run, undisturbed):
        commit_masks(url, tmp_path / "in", masks)
    assemble_all(undisturbed)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    place, name = moment
    with monkeypatch.context() as patched:
        patched.setattr(place, name, die)
        with pytest.raises(KeyboardInterrupt):
            assemble_all(run)
    assert not [file.path for file in objects.list_files(run) if ".tmp" in file.path]
    assemble_all(run)
    assert objects.read_bytes(run / "masks/a.tif") == objects.read_bytes(undisturbed / "masks/a.tif")
    assert objects.exists(run / "items/a.json")


def test_rasters_whose_names_differ_in_their_suffix_alone_keep_it(tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (60, 60), "a.tiff": (70, 70), "b.tif": (50, 50)})
    commit_masks(run, tmp_path / "in", masks)
    assemble_all(run)
    names = sorted(file.path for file in objects.list_files(run / "masks"))
    assert names == ["a.tif.qml", "a.tif.tif", "a.tiff.qml", "a.tiff.tif", "b.qml", "b.tif"]
    np.testing.assert_array_equal(read_cog(run, "a.tiff"), masks["a.tiff"])


def test_a_damaged_block_is_named_and_nothing_is_written(tmp_path, run) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (700, 700)})
    commit_masks(run, tmp_path / "in", masks)
    todo = plan_work(run, holes=False)
    (square,) = squares_left(run, todo.assemblies)
    do_squares([square], run_url=run)
    url = square.assembly.block_url(run, square.window)
    objects.put(url, objects.read_bytes(url)[:-5])
    with pytest.raises(StorageError, match="is damaged"):
        do_join(square.assembly, run_url=run, classes=CLASSES, facts={})
    assert not objects.exists(run / "masks/a.tif")


def test_a_run_of_photos_has_nothing_to_assemble(tmp_path, run) -> None:
    from pipeline.config import SegmentConfig
    from pipeline.source.plan import plan_source
    from tests.support.raster_runs import store_plan

    objects.put(Url(str(tmp_path / "in/a.jpg")), b"x")
    store_plan(run, plan_source(SegmentConfig(source=str(tmp_path / "in"), output="o", checkpoint="c")))
    with pytest.raises(ConfigError, match="is no run over rasters"):
        plan_work(run, holes=False)


# Styles, and items that are written anew ------------------------------------------------------------------------------


def test_a_style_lies_beside_each_mask_under_its_name(tmp_path, run) -> None:
    commit_masks(run, tmp_path / "in", source_of(tmp_path / "in", {"d.e/a.b.tif": (30, 40), "c.TIF": (30, 40)}))
    assemble_all(run)
    masks = [Path(path) for path in Path(run.raw).glob("masks/**/*.tif")]
    assert len(masks) == 2
    for path in masks:
        assert path.with_suffix(".qml").read_bytes() == raster_qml(CLASSES)
        name = str(path.relative_to(run.raw + "/masks").with_suffix(""))
        style = json.loads(objects.read_bytes(run / f"items/{name}.json"))["assets"]["style"]
        assert (Path(run.raw) / f"items/{name}.json").parent.joinpath(style["href"]).resolve() == path.with_suffix(
            ".qml"
        )


def strip_collection(item: dict) -> None:
    """Make an item as versions before catalogues wrote it."""
    item.pop("collection")
    item.update(links=[])
    item["assets"].pop("style")


@pytest.mark.parametrize("what", ["style", "date", "item of an older version"])
def test_what_lies_beside_a_mask_is_renewed_without_joining_it_again(what, tmp_path, run, monkeypatch) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (30, 40), "b.tif": (30, 40)})
    commit_masks(run, tmp_path / "in", masks, failed=frozenset({"b.tif#0,0"}))
    assemble_all(run, holes=True)
    names = ("masks/a.qml", "items/a.json", "items/b.json")
    before = {name: objects.read_bytes(run / name) for name in names}
    item = json.loads(before["items/b.json"])
    if what == "style":
        objects.delete(run / "masks/b.qml")
    elif what == "date":
        item["properties"].update(datetime="2012-07-31T00:00:00Z")
    else:
        strip_collection(item)
    objects.put(run / "items/b.json", json.dumps(item).encode())
    monkeypatch.setattr(assemble, "join_mask", None)
    todo = plan_work(run, holes=True)
    assert ([one.uri for one in todo.outdated], todo.assemblies, todo.done) == (["b.tif"], [], 1)
    renew_items(todo.outdated, run_url=run, classes=CLASSES, facts={"atrous:run": "0123456789ab"})
    assert {name: objects.read_bytes(run / name) for name in before} == before
    assert objects.read_bytes(run / "masks/b.qml") == raster_qml(CLASSES)
    assert plan_work(run, holes=True).done == 2


# Items ----------------------------------------------------------------------------------------------------------------


def item_of(tmp_path: Path, run_url: Url, **profile) -> dict:
    masks = source_of(tmp_path / "in", {"d/a.tif": (300, 400)}, **profile)
    commit_masks(run_url, tmp_path / "in", masks)
    assemble_all(run_url)
    return json.loads(objects.read_bytes(run_url / "items/d/a.json"))


def test_an_item_lies_where_its_raster_does(tmp_path, run) -> None:
    item = item_of(tmp_path, run)
    with rasterio.open(tmp_path / "in/d/a.tif") as dataset:
        bounds = rasterio.warp.transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds, densify_pts=21)
        transform = list(dataset.transform)[:6]
    assert item["bbox"] == pytest.approx(bounds, abs=1e-8)
    assert item["properties"]["proj:code"] == "EPSG:32614"
    assert item["properties"]["proj:transform"] == transform
    assert item["properties"]["proj:shape"] == [300, 400]
    ring = item["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1]
    (band,) = item["assets"]["mask"]["bands"]
    assert band["raster:spatial_resolution"] == pytest.approx(0.25)
    assert [one["name"] for one in band["classification:classes"]] == list(CLASSES.names)
    assert item["assets"]["mask"]["href"] == "../../masks/d/a.tif"


def test_the_edge_of_a_pixel_follows_from_the_determinant(tmp_path, run) -> None:
    item = item_of(tmp_path, run, transform=Affine(0.3, 0.4, 10, 0.4, -0.3, 20))
    (band,) = item["assets"]["mask"]["bands"]
    assert band["raster:spatial_resolution"] == pytest.approx(0.5)


def test_an_item_without_georeferencing_has_no_geometry_and_says_why(tmp_path, run) -> None:
    item = item_of(tmp_path, run, crs=None)
    assert item["geometry"] is None
    assert "bbox" not in item
    assert "no coordinate system" in item["properties"]["description"]


def test_a_time_is_the_files_or_unknown_and_never_now(tmp_path, run) -> None:
    properties = item_of(tmp_path, run)["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] == "0001-01-01T00:00:00Z"
    assert properties["end_datetime"] == "9999-12-31T23:59:59Z"
