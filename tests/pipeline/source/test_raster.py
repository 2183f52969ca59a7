"""Planning of rasters: what each kind of file becomes, and that windows cover a raster exactly once."""

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine, from_origin

from pipeline.config import BandScale, SegmentConfig
from pipeline.errors import ConfigError, NothingThere
from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Values, encode_directories
from pipeline.geotiff.window import decode_window
from pipeline.source import raster
from pipeline.source.plan import plan_source, read_items
from pipeline.source.raster import NetworkBands, unpack
from pipeline.source.raster_survey import survey_rasters
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.examples import examples
from tests.support.rasters import RGBN, config, failure_of, plan_and_read, values, write_raster

RGB = NetworkBands(("red", "green", "blue"))
FOUR = NetworkBands(RGBN)


def described(source: Path, network: NetworkBands = FOUR, **settings):
    """Description of the only raster of a folder."""
    shard = plan_source(config(source, **settings), network).shards[0]
    here = unpack(shard)
    assert isinstance(here, raster.RasterShard), here
    return here.raster


def huge(path: Path, width: int, height: int, *, tile: int = 512, nodata: bytes = b"0\0") -> Path:
    """File that announces a raster and holds none of its tiles: all are sparse."""
    count = -(-width // tile) * -(-height // tile)
    page = {
        tiff.WIDTH: Values(tiff.LONG, np.array([width])),
        tiff.LENGTH: Values(tiff.LONG, np.array([height])),
        tiff.BITS: Values(tiff.SHORT, np.array([8] * 4)),
        tiff.COMPRESSION: Values(tiff.SHORT, np.array([8])),
        tiff.PHOTOMETRIC: Values(tiff.SHORT, np.array([1])),
        tiff.SAMPLES: Values(tiff.SHORT, np.array([4])),
        tiff.TILE_WIDTH: Values(tiff.LONG, np.array([tile])),
        tiff.TILE_LENGTH: Values(tiff.LONG, np.array([tile])),
        tiff.TILE_OFFSETS: Values(tiff.LONG8, np.zeros(count)),
        tiff.TILE_COUNTS: Values(tiff.LONG, np.zeros(count)),
        tiff.NODATA: Values(tiff.ASCII, nodata),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_directories([page], big=True))
    return path


# Windows --------------------------------------------------------------------------------------------------------------


@given(
    height=st.integers(1, 40_000),
    width=st.integers(1, 40_000),
    core_px=st.sampled_from([512, 1024, 2048]),
    halo_px=st.sampled_from([0, 64, 160]),
    bands=st.integers(1, 16),
)
@examples(60)
def test_cores_cover_a_raster_exactly_once_and_shards_lie_in_squares(height, width, core_px, halo_px, bands) -> None:
    one = raster.Raster(
        "a.tif",
        "",
        1,
        height,
        width,
        "uint8",
        bands,
        tuple(range(1, bands + 1)),
        ("x",) * bands,
        None,
        None,
    )
    covered, square = 0, raster.SQUARE * core_px
    starts = set()
    for window in raster._rectangles(one, core_px):
        here = raster.RasterShard(one, window, core_px, halo_px)
        assert window.y // square == (window.y + window.height - 1) // square
        assert window.x // square == (window.x + window.width - 1) // square
        for core in here.cores():
            assert core.y % core_px == core.x % core_px == 0
            covered += core.height * core.width
            starts.add((core.y, core.x))
            outer = here.outer(core)
            assert 0 <= outer.y <= core.y
            assert core.y + core.height <= outer.y + outer.height <= height
            assert outer.width <= core.width + 2 * halo_px
    assert covered == height * width
    assert len(starts) == -(-height // core_px) * -(-width // core_px)


def test_the_halo_is_the_reach_of_the_engine_or_the_overlap_of_tiles() -> None:
    def halo(**settings) -> int:
        return raster.halo_px(
            SegmentConfig.model_validate({"source": "s", "output": "o", "checkpoint": "c", **settings})
        )

    assert halo() == 160
    assert halo(refine={"preset": "crf-rnn"}) == 320
    assert halo(refine={"engine": "none"}) == 128
    assert halo(raster={"halo_px": 0}) == 0


def test_shards_do_not_depend_on_the_place_but_on_all_that_changes_a_window(tmp_path) -> None:
    for folder in ("one", "two"):
        write_raster(tmp_path / folder / "a.tif", values(600, 600, 4), names=RGBN)

    def ids(folder: str, bands: NetworkBands = FOUR, **settings) -> list[str]:
        return [shard.id for shard in plan_source(config(tmp_path / folder, **settings), bands).shards]

    assert ids("one") == ids("one")
    seen = [ids("one"), ids("one", core_px=1024), ids("one", halo_px=32), ids("one", nodata=0)]
    seen.append(ids("one", NetworkBands(RGBN[::-1])))
    assert len({tuple(one) for one in seen}) == len(seen)


def test_a_limit_counts_windows(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(1100, 1100, 4), names=RGBN)
    cfg = config(tmp_path).model_copy(update={"limit": 4})
    plan = plan_source(cfg, FOUR)
    assert plan.rows == 4
    assert len(list(read_items(plan.shards[0], cfg.read, max_bytes=1))) == 4


# What arrives ---------------------------------------------------------------------------------------------------------


def test_a_raster_is_described_by_its_header(tmp_path) -> None:
    write_raster(tmp_path / "d/a.tif", values(300, 400, 4, "uint16"), names=RGBN, nodata=7)
    one = described(tmp_path)
    assert (one.path, one.height, one.width, one.dtype, one.count) == ("d/a.tif", 300, 400, "uint16", 4)
    assert (one.bands, one.channels, one.alpha, one.nodata) == ((1, 2, 3, 4), RGBN, None, 7)
    assert one.transform == (0.25, 0, 485900, 0, -0.25, 5209245)
    assert one.epsg == 32614
    assert raster.Raster.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    "transform",
    [
        from_origin(10, 20, 0.5, 0.25),
        Affine(0.5, 0, 10, 0, 0.5, 20),
        Affine(0.4, 0.3, 10, 0.3, -0.4, 20),
        Affine(0.4, 0.1, 10, 0, -0.4, 20),
    ],
    ids=["pixels that are not square", "south up", "rotated", "sheared"],
)
def test_any_transform_is_kept(transform, tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 4), names=RGBN, transform=transform)
    assert described(tmp_path).transform == pytest.approx(tuple(transform)[:6])


def test_the_time_of_a_picture_is_read_and_taken_as_utc(tmp_path) -> None:
    path = write_raster(tmp_path / "a.tif", values(60, 60, 4), names=RGBN)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2020:08:31 10:11:12")
    assert described(tmp_path).datetime == "2020-08-31T10:11:12Z"


def test_ground_control_points_are_no_georeferencing(tmp_path) -> None:
    points = [GroundControlPoint(row, column, 10 + column, 20 - row) for row in (0, 60) for column in (0, 60)]
    whole = {"driver": "GTiff", "count": 3, "height": 60, "width": 60, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", **whole, gcps=points, crs="EPSG:32614") as dataset:
        dataset.write(values(60, 60, 3))
    plan = plan_source(config(tmp_path), RGB)
    assert unpack(plan.shards[0]).raster.transform is None
    assert plan.warnings == ["a.tif: no georeferencing; its mask has none either"]


def test_a_coordinate_system_of_the_user_takes_the_place_of_the_files(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 4), names=RGBN, crs=None)
    assert described(tmp_path).epsg is None
    given = described(tmp_path, crs="EPSG:32633")
    assert (given.epsg, given.transform) == (32633, (0.25, 0, 485900, 0, -0.25, 5209245))
    with pytest.raises(ConfigError, match=r"--raster.crs 'EPSG:nine' is no coordinate system"):
        described(tmp_path, crs="EPSG:nine")


def test_files_beside_rasters_are_named_and_change_nothing(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 4), names=RGBN, crs=None, transform=Affine.identity())
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n5\n5\n")
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:32614</SRS></PAMDataset>")
    (tmp_path / "a.tif.msk").write_bytes(b"x")
    plan = plan_source(config(tmp_path), FOUR)
    assert unpack(plan.shards[0]).raster.transform is None
    assert any("1 .aux.xml, 1 .msk, 1 .tfw" in warning for warning in plan.warnings)


def test_a_nodata_value_that_no_sample_can_have_is_ignored_with_a_warning(tmp_path) -> None:
    huge(tmp_path / "a.tif", 600, 600, nodata=b"-9999\0")
    plan = plan_source(config(tmp_path), FOUR)
    assert unpack(plan.shards[0]).raster.nodata is None
    assert plan.warnings[:1] == ["a.tif: no sample of uint8 can be its nodata value -9999, which is ignored"]


# Bands ----------------------------------------------------------------------------------------------------------------


def test_an_unnamed_fourth_band_is_refused_unless_the_user_names_the_bands(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 4), photometric="RGB", alpha="NO")
    code, detail = failure_of(config(tmp_path), RGB)
    assert code == "band_mismatch"
    assert "1 red, 2 green, 3 blue, 4 unnamed; the checkpoint takes red, green, blue" in detail
    assert "--raster.bands red=1 green=2 blue=3" in detail
    assert described(tmp_path, RGB, bands=("red=1", "green=2", "blue=3")).bands == (1, 2, 3)


def test_a_band_tagged_as_alpha_is_no_band_of_a_network(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 4), photometric="RGB", alpha="YES")
    assert (described(tmp_path, RGB).bands, described(tmp_path, RGB).alpha) == ((1, 2, 3), 4)
    code, detail = failure_of(config(tmp_path), FOUR)
    assert code == "band_mismatch"
    assert "4 alpha" in detail


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_unnamed_bands_are_taken_in_order_where_their_number_fits(count, tmp_path) -> None:
    names = tuple(f"b{number}" for number in range(count))
    write_raster(tmp_path / "a.tif", values(60, 60, count), photometric="MINISBLACK")
    assert described(tmp_path, NetworkBands(names)).bands == tuple(range(1, count + 1))
    assert failure_of(config(tmp_path), NetworkBands((*names, "more")))[0] == "band_mismatch"


def test_names_in_the_file_decide_where_every_band_has_one(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 5), names=("Coastal", "Blue", "Green", "Red", "NIR"))
    assert described(tmp_path).bands == (4, 3, 2, 5)
    assert described(tmp_path, bands=("nir=1",)).bands == (4, 3, 2, 1)
    assert failure_of(config(tmp_path), NetworkBands(("red", "thermal")))[0] == "band_mismatch"


def test_a_band_that_the_checkpoint_does_not_take_is_refused_before_anything_is_read(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"--raster.bands names nir; the checkpoint takes red, green, blue"):
        plan_source(config(tmp_path / "nothing", bands=("nir=4",)), RGB)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_types_without_a_scale_in_the_card_are_refused(dtype, tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 4, dtype), names=RGBN)
    code, detail = failure_of(config(tmp_path), FOUR)
    assert code == "band_mismatch"
    assert f"samples of {dtype}, but the checkpoint's card has no scale" in detail
    scale = BandScale(dtype=dtype, low=(0,) * 4, high=(100,) * 4)
    assert described(tmp_path, NetworkBands(RGBN, scale)).dtype == dtype


def test_another_type_than_that_of_the_training_is_refused(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 4), names=RGBN)
    scale = BandScale(dtype="uint16", low=(0,) * 4, high=(100,) * 4)
    assert failure_of(config(tmp_path), NetworkBands(RGBN, scale)) == (
        "band_mismatch",
        "samples of uint8, the checkpoint was trained on uint16",
    )


@pytest.mark.parametrize("dtype", ["float64", "uint32", "int32", "complex64"])
def test_other_types_are_refused_by_name(dtype, tmp_path) -> None:
    write_raster(tmp_path / "a.tif", np.ones((4, 60, 60), dtype), names=RGBN)
    assert failure_of(config(tmp_path), FOUR)[0] == "band_mismatch"


# Refused --------------------------------------------------------------------------------------------------------------

OTHERS = {
    "vrt": b'<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand/></VRTDataset>',
    "wms": b"<GDAL_WMS><Service/></GDAL_WMS>",
    "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
    "netcdf": b"CDF\x01" + bytes(99),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "zarr": b'{"zarr_format": 2, "shape": [9, 9]}',
    "text": b"no raster at all",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(99),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_named_tif_are_refused_with_a_way_out(name, tmp_path) -> None:
    (tmp_path / "a.tif").write_bytes(OTHERS[name])
    code, detail = failure_of(config(tmp_path), RGB)
    assert code == "unsupported_format"
    assert "gdal_translate -of COG" in detail


def test_a_vrt_does_not_reach_the_file_that_it_names(tmp_path) -> None:
    (tmp_path / "secret.txt").write_bytes(b"s" * 9999)
    (tmp_path / "a.tif").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8">'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        '<SourceFilename relativetoVRT="1">secret.txt</SourceFilename></VRTRasterBand></VRTDataset>'
    )
    assert failure_of(config(tmp_path), RGB)[0] == "unsupported_format"


def test_files_of_other_suffixes_are_left_out_with_a_warning(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 3))
    for name in ("all.vrt", "b.jp2", "c.ecw"):
        (tmp_path / name).write_bytes(b"x")
    plan = plan_source(config(tmp_path), RGB)
    assert plan.rows == 1
    (warning,) = plan.warnings
    assert "1 .ecw, 1 .jp2, 1 .vrt" in warning
    assert "gdal_translate -of COG" in warning


def test_a_folder_without_a_tiff_is_an_error_that_names_the_way_out(tmp_path) -> None:
    (tmp_path / "b.jp2").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"ignored: 1 \.jp2") as raised:
        plan_source(config(tmp_path), RGB)
    assert "gdal_translate" in raised.value.hint
    with pytest.raises(NothingThere):
        plan_source(config(tmp_path / "nowhere"), RGB)


def test_a_block_above_64_mib_is_refused_before_it_is_allocated(tmp_path) -> None:
    huge(tmp_path / "a.tif", 59_392, 59_392, tile=59_392)
    code, detail = failure_of(config(tmp_path), FOUR)
    assert code == "block_too_large"
    assert "59392x59392" in detail
    assert "limit 64 MiB" in detail
    assert "gdal_translate" in detail


def test_a_single_large_strip_is_refused_as_a_large_tile_is(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", np.ones((4, 6000, 3000), np.uint8), names=RGBN, tiled=False, blockysize=6000)
    assert failure_of(config(tmp_path), FOUR)[0] == "block_too_large"


def test_a_raster_beyond_the_limit_is_refused_and_its_lists_are_not_read(tmp_path) -> None:
    huge(tmp_path / "a.tif", 10**6, 10**6)
    code, detail = failure_of(config(tmp_path), FOUR)
    assert code == "too_many_pixels"
    assert "1000 gigapixels, limit 400" in detail
    assert described(tmp_path, max_gpx=1001).width == 10**6


def test_a_file_that_ends_early_is_truncated_as_a_whole(tmp_path) -> None:
    path = write_raster(tmp_path / "a.tif", values(900, 900, 4), names=RGBN, compress="deflate")
    data = path.read_bytes()
    with rasterio.open(path) as dataset:
        first = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    path.write_bytes(data[: max(len(data) * 2 // 3, first)])
    code, detail = failure_of(config(tmp_path), FOUR)
    assert code == "truncated"
    assert "end behind the end of the file" in detail or "ends before byte" in detail


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_anywhere_is_one_failure_row_or_whole(share, tmp_path) -> None:
    path = write_raster(tmp_path / "a.tif", values(500, 500, 4), names=RGBN)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert failure_of(config(tmp_path), FOUR)[0] in ("truncated", "corrupt", "unsupported_format", "empty")


def test_a_page_without_the_meaning_of_its_samples_is_grey(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 1), photometric="MINISBLACK")
    data = (tmp_path / "a.tif").read_bytes()
    entry = struct.pack("<HHLL", 262, 3, 1, 1)
    assert data.count(entry) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(entry, struct.pack("<HHLL", 65000, 3, 1, 1)))
    _, ((_, item),) = plan_and_read(config(tmp_path), NetworkBands(("pan",)))
    np.testing.assert_array_equal(decode_window(item.data).pixels_hwc[..., 0], values(60, 60, 1)[0])


def test_more_extra_samples_than_samples_are_damage(tmp_path) -> None:
    write_raster(tmp_path / "a.tif", values(60, 60, 4), photometric="RGB", alpha="YES")
    data = (tmp_path / "a.tif").read_bytes()
    entry = struct.pack("<HHL", 338, 3, 1)
    assert data.count(entry) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(entry, struct.pack("<HHL", 338, 1, 4)))
    (tmp_path / "b.tif").write_bytes(data.replace(entry, struct.pack("<HHL", 338, 3, 9)))
    codes = [item.failure.code for _, item in failures(tmp_path)]
    assert set(codes) <= {"corrupt", "band_mismatch"}
    assert len(codes) == 2


def failures(source: Path) -> list:
    """Items of all files of a folder, of which none can be read."""
    cfg = config(source)
    shards = plan_source(cfg, RGB).shards
    return [(shard, item) for shard in shards for item in read_items(shard, cfg.read, max_bytes=1)]


def test_an_error_that_nobody_foresaw_fails_one_raster_alone(tmp_path, monkeypatch) -> None:
    for name in ("a.tif", "b.tif"):
        write_raster(tmp_path / name, values(60, 60, 3))
    checked = raster.check_blocks

    def odd(header, size):
        if not seen:
            seen.append(size)
            raise ZeroDivisionError("odd")
        checked(header, size)

    seen: list[int] = []
    monkeypatch.setattr(raster, "check_blocks", odd)
    items = failures(tmp_path)
    assert sorted(item.failure.code if item.failure else "ok" for _, item in items) == ["corrupt", "ok"]


def test_an_empty_file_is_a_failure_row(tmp_path) -> None:
    (tmp_path / "a.tif").write_bytes(b"")
    assert failure_of(config(tmp_path), RGB)[0] == "empty"


@given(at=st.integers(0, 600), patch=st.binary(min_size=1, max_size=6))
@examples(150)
def test_a_damaged_header_never_raises_anything_but_a_failure(at, patch, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    whole = write_raster(folder.parent / "whole.tif", values(70, 70, 4), names=RGBN, nodata=0, compress="deflate")
    data = whole.read_bytes()
    folder.mkdir(exist_ok=True)
    (folder / "a.tif").write_bytes(data[:at] + patch + data[at + len(patch) :])
    cfg = config(folder)
    for shard in plan_source(cfg, FOUR).shards:
        for item in read_items(shard, cfg.read, max_bytes=1):
            assert item.failure or item.data or item.window


# Size -----------------------------------------------------------------------------------------------------------------


def test_a_hundred_gigapixels_are_planned_from_a_few_megabytes(tmp_path, monkeypatch) -> None:
    huge(tmp_path / "a.tif", 320_000, 320_000)
    read, read_range = [], objects.read_range

    def counted(url, start, end, *, etag):
        read.append(end - start)
        return read_range(url, start, end, etag=etag)

    monkeypatch.setattr(objects, "read_range", counted)
    plan = plan_source(config(tmp_path, core_px=2048, halo_px=None), FOUR)
    assert plan.rows == 157**2
    assert len(plan.shards) == 20**2
    assert sum(read) < 20e6


def test_the_same_key_of_two_sources_is_refused(tmp_path) -> None:
    for folder in ("one", "two"):
        write_raster(tmp_path / folder / "a.tif", values(60, 60, 3))
    cfg = config(tmp_path / "one").model_copy(update={"source": (str(tmp_path / "one"), str(tmp_path / "two"))})
    with pytest.raises(Exception, match="occurs twice"):
        plan_source(cfg, RGB)


# Survey ---------------------------------------------------------------------------------------------------------------


def test_a_survey_estimates_nodata_and_warns_of_black_borders(tmp_path) -> None:
    pixels = values(1024, 1024, 4)
    pixels[:, :, :256] = 0
    for name, nodata in (("tagged", 0), ("bare", None)):
        path = write_raster(tmp_path / f"{name}.tif", pixels, names=RGBN, nodata=nodata)
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4, 8], rasterio.enums.Resampling.nearest)
    write_raster(tmp_path / "without.tif", pixels, names=RGBN)
    (tmp_path / "no.tif").write_bytes(b"x")
    survey = survey_rasters(plan_source(config(tmp_path), FOUR))
    assert (survey.rasters, survey.unreadable, survey.windows, survey.overviews) == (3, 1, 12, 2)
    assert survey.gigapixels == pytest.approx(3 * 1024**2 / 1e9)
    assert survey.nodata_share == pytest.approx(0.125, abs=0.01)
    (warning,) = survey.warnings
    assert warning.startswith("bare.tif: 25% of its overview is 0")


def test_items_of_a_raster_have_keys_of_their_first_pixel(tmp_path) -> None:
    write_raster(tmp_path / "d/a.tif", values(600, 600, 4), names=RGBN)
    _, pairs = plan_and_read(config(tmp_path), FOUR)
    assert [item.key for _, item in pairs] == ["d/a.tif#0,0", "d/a.tif#0,512", "d/a.tif#512,0", "d/a.tif#512,512"]


def test_threads_that_share_a_reader_of_ranges_all_get_the_bytes_of_the_file(tmp_path, monkeypatch):
    """Also while its blocks are forgotten: a header of more blocks than are kept is read by several threads."""
    monkeypatch.setattr(raster, "_HEADER_BLOCK", 16)
    monkeypatch.setattr(raster, "_MOST_BLOCKS", 8)
    data = np.random.default_rng(0).bytes(2000)
    (tmp_path / "a").write_bytes(data)
    url = Url(str(tmp_path / "a"))
    info = objects.info(url)
    ranges = raster.Ranges(url, info.etag, info.size)
    spans = np.random.default_rng(1).integers(0, [2100, 60], (400, 2)).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda span: ranges(*span), spans)) == [data[at : at + size] for at, size in spans]
