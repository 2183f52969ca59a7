"""The main job over rasters from end to end, without Ray: windows in, a COG and an item for each raster out."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image as PilImage
from rio_cogeo import cog_validate

from pipeline.config import BandScale
from tests.support.checkpoints import small_checkpoint
from tests.support.drivers import QUICK, Outcome, flags_for, forked, rows_of
from tests.support.forked import ForkServer
from tests.support.rasters import RGBN, values, write_raster
from tests.support.s3_servers import S3Server

WINDOWS = ["--read.kind", "raster", "--raster.core-px", "512", "--runtime.rows-per-part", "2"]
WINDOWS += ["--tile.tile-px", "256", "--tile.overlap-px", "64", "--refine.bi-xy", "20"]
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rasters of four bands: one of 2x2 windows with a wedge without data, one smaller than a window."""
    folder = tmp_path_factory.mktemp("rasters")
    pixels = values(700, 900, 4)
    below = np.maximum(np.arange(700) - 512, 0)[:, None]
    pixels[:, np.arange(900) + below * 0.5 < 520] = 0
    write_raster(folder / "north/a.tif", pixels, names=RGBN, nodata=0, compress="deflate")
    write_raster(folder / "b.tif", values(90, 140, 4, seed=1), names=RGBN, nodata=0, tiled=False, blockysize=8)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("network"), RGBN)


@pytest.fixture(scope="module")
def segment(forks: ForkServer, network: Path) -> Run:
    def run(source: Path | str, output: Path | str, *flags: str, moment: str | None = None, **how: Any) -> Outcome:
        arguments = [*flags_for(source, output), "--checkpoint", str(network), *WINDOWS, *flags, *QUICK]
        killed = {} if moment is None else {"module": "tests.support.drivers"}
        return forked(forks, *([moment] if moment else []), *arguments, **killed, **how)

    return run


@pytest.fixture(scope="module")
def undisturbed(rasters: Path, segment: Run, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = segment(rasters, tmp_path_factory.mktemp("undisturbed"))
    assert outcome.status == 0, outcome.log
    return outcome


def mask_of(row: pd.Series) -> np.ndarray:
    if row["mask"] is None:
        return np.full((row["height"], row["width"]), 255, np.uint8)
    with PilImage.open(io.BytesIO(row["mask"])) as picture:
        return np.asarray(picture)


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob("masks/**/*.tif"))}


def catalogue_of(run: Path) -> dict[str, bytes]:
    files = [run / "collection.json", run / "items.parquet", *run.glob("items/**/*.json"), *run.glob("masks/**/*.qml")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_every_window_is_a_row_and_every_pixel_counts_once(rasters: Path, undisturbed: Outcome) -> None:
    rows = rows_of(undisturbed)
    assert sorted(rows["key"]) == [
        "b.tif#0,0",
        *(f"north/a.tif#{y},{x}" for y in (0, 512) for x in (0, 512)),
    ]
    assert (rows["status"] == "ok").all()
    for path, own in rows.groupby(rows["key"].str.partition("#")[0]):
        with rasterio.open(rasters / path) as dataset:
            valid = dataset.dataset_mask() > 0
        counted = np.stack(own["class_pixels"].to_list()).sum()
        assert counted == valid.sum()
        assert own["nodata_pixels"].sum() == (~valid).sum()
        assert (own["height"] * own["width"]).sum() == valid.size
        for _, row in own.iterrows():
            here = valid[row["window_y"] : row["window_y"] + row["height"], row["window_x"] :][:, : row["width"]]
            np.testing.assert_array_equal(mask_of(row) != 255, here)


def test_a_window_without_data_is_no_failure_and_has_no_mask(undisturbed: Outcome) -> None:
    rows = rows_of(undisturbed).set_index("key")
    empty = rows.loc["north/a.tif#0,0"]
    assert (empty["status"], empty["mask"], empty["nodata_pixels"]) == ("ok", None, 512 * 512)
    assert not any(empty["class_pixels"])
    assert rows["mask"].notna().sum() == len(rows) - 1
    manifest = json.loads((undisturbed.run / "_manifest.json").read_text())
    assert manifest["empty"] == 1
    assert 0 < manifest["confidence"] <= 1


def test_a_cog_of_each_raster_has_the_masks_of_its_rows(rasters: Path, undisturbed: Outcome) -> None:
    rows = rows_of(undisturbed)
    assert (undisturbed.summary["cogs"], undisturbed.summary["without_cog"]) == (2, 0)
    for name in ("b.tif", "north/a.tif"):
        path = undisturbed.run / "masks" / name
        assert cog_validate(path, strict=True, quiet=True)[0]
        with rasterio.open(path) as dataset, rasterio.open(rasters / name) as source:
            joined = dataset.read(1)
            assert (dataset.crs, dataset.transform) == (source.crs, source.transform)
        for _, row in rows[rows["key"].str.startswith(f"{name}#")].iterrows():
            y, x = row["window_y"], row["window_x"]
            np.testing.assert_array_equal(joined[y : y + row["height"], x : x + row["width"]], mask_of(row))
        item = json.loads((undisturbed.run / "items" / name).with_suffix(".json").read_text())
        assert item["properties"]["atrous:run"] == undisturbed.run.name.removeprefix("run=")


def test_a_catalogue_lists_the_masks_with_the_licence_of_the_network(undisturbed: Outcome) -> None:
    collection = json.loads((undisturbed.run / "collection.json").read_text())
    assert collection["id"] == undisturbed.run.name.replace("=", "-")
    assert collection["license"] == json.loads((undisturbed.run / "_run/environment.json").read_text())["license"]
    assert (collection["atrous:rasters"], collection["atrous:without_cog"]) == (2, 0)
    table = pd.read_parquet(undisturbed.run / "items.parquet", columns=["id", "atrous:run"])
    assert table["id"].tolist() == ["b", "north/a"]
    assert set(table["atrous:run"]) == {undisturbed.run.name.removeprefix("run=")}


def test_dates_given_later_continue_a_finished_run_and_change_its_items_alone(
    rasters: Path, segment: Run, tmp_path: Path, undisturbed: Outcome
) -> None:
    shutil.copytree(rasters, tmp_path / "in")
    (tmp_path / "in/b.tif").rename(tmp_path / "in/b_20120731.tif")
    first = segment(tmp_path / "in", tmp_path / "out")
    before = files_of(first.run), {path: path.stat().st_mtime_ns for path in first.run.glob("masks/**/*.tif")}
    dated = segment(tmp_path / "in", tmp_path / "out", "--raster.date-pattern", "_(?P<date>[0-9]{8})")
    assert dated.status == 0, dated.log
    assert (dated.run, dated.summary["rows_now"], dated.summary["cogs_now"]) == (first.run, 0, 0)
    assert "no date for 1 raster(s), first 'north/a.tif': it does not match" in dated.log
    assert (files_of(dated.run), {path: path.stat().st_mtime_ns for path in before[1]}) == before
    collection = json.loads((dated.run / "collection.json").read_text())
    assert collection["extent"]["temporal"]["interval"] == [["2012-07-31T00:00:00Z", "2012-07-31T23:59:59Z"]]
    assert collection["atrous:without_date"] == 1
    after = catalogue_of(dated.run)
    again = segment(tmp_path / "in", tmp_path / "out", "--raster.date-pattern", "_(?P<date>[0-9]{8})")
    assert "items are written anew" not in again.log
    assert catalogue_of(again.run) == after


def test_the_catalogue_of_a_finished_run_that_lacks_it_is_written(
    rasters: Path, segment: Run, tmp_path: Path, undisturbed: Outcome
) -> None:
    run = segment(rasters, tmp_path / "out").run
    expected = catalogue_of(run)
    for name in ("collection.json", "items.parquet", "masks/b.qml"):
        (run / name).unlink()
    assert segment(rasters, tmp_path / "out").summary["rows_now"] == 0
    assert catalogue_of(run) == expected


def test_the_same_command_again_does_nothing_and_assemble_alone_neither(
    rasters: Path, segment: Run, forks: ForkServer, undisturbed: Outcome
) -> None:
    again = segment(rasters, undisturbed.run.parent)
    assert (again.status, again.summary["rows_now"]) == (0, 0)
    alone = forked(forks, str(undisturbed.run), module="jobs.assemble")
    assert alone.status == 0, alone.log
    assert (alone.summary["cogs"], alone.summary["cogs_now"]) == (2, 0)


def test_a_run_over_rasters_verifies_and_is_not_exported_window_by_window(
    undisturbed: Outcome, forks: ForkServer, tmp_path: Path
) -> None:
    look = forks.start("jobs.inspect_run", str(undisturbed.run), "--verify")
    assert look.wait() == 0, look.log
    assert json.loads(look.out.splitlines()[-1])["problems"] == 0
    export = forks.start("jobs.export", str(undisturbed.run), "--to", "png", "--output", str(tmp_path / "png"))
    assert export.wait() == 1
    assert "is a run over rasters" in export.log


@pytest.mark.faults
@pytest.mark.parametrize(
    "moment", ["parts=2", "0_0.bin", "items/b.json", "collection.json", "plan.arrow", "_manifest.json"]
)
def test_a_driver_killed_at_any_moment_ends_with_the_same_rows_and_the_same_bytes(
    moment: str, rasters: Path, segment: Run, tmp_path: Path, undisturbed: Outcome
) -> None:
    out = tmp_path / "out"
    killed = segment(rasters, out, moment=moment)
    assert killed.status == -9, killed.log
    resumed = segment(rasters, out)
    assert resumed.status == 0, resumed.log
    pd.testing.assert_frame_equal(rows_of(resumed), rows_of(undisturbed))
    assert files_of(resumed.run) == files_of(undisturbed.run)
    assert catalogue_of(resumed.run) == catalogue_of(undisturbed.run)
    assert not (resumed.run / "_run/blocks").exists()


def test_a_raster_with_a_failed_window_has_a_cog_only_with_holes(rasters: Path, segment: Run, tmp_path: Path) -> None:
    source = tmp_path / "in/a.tif"
    write_raster(source, values(600, 600, 4), names=RGBN, compress="deflate")
    data = bytearray(source.read_bytes())
    with rasterio.open(source) as dataset:
        at, size = (int(dataset.get_tag_item(f"BLOCK_{name}_9_9", "TIFF", bidx=1)) for name in ("OFFSET", "SIZE"))
    data[at : at + size] = bytes(size)
    source.write_bytes(data)
    limit = ("--runtime.max-failed-fraction", "1")
    outcome = segment(tmp_path / "in", tmp_path / "out", *limit)
    assert outcome.summary["error_codes"] == {"corrupt": 1}
    assert (outcome.summary["cogs"], outcome.summary["without_cog"]) == (0, 1)
    assert "no COG of a.tif: 1 of its windows failed or are missing; --raster.holes" in outcome.log
    again = segment(tmp_path / "in", tmp_path / "out", *limit, "--raster.holes")
    assert (again.summary["rows_now"], again.summary["cogs"]) == (0, 1)
    with rasterio.open(again.run / "masks/a.tif") as dataset:
        assert (dataset.read(1)[512:, 512:] == 255).all()


def test_files_that_are_no_rasters_are_failure_rows_beside_the_good_ones(
    rasters: Path, segment: Run, tmp_path: Path
) -> None:
    write_raster(tmp_path / "in/good.tif", values(90, 90, 4), names=RGBN)
    (tmp_path / "in/empty.tif").write_bytes(b"")
    (tmp_path / "in/page.tif").write_text("<html></html>")
    write_raster(tmp_path / "in/three.tif", values(90, 90, 3))
    outcome = segment(tmp_path / "in", tmp_path / "out", "--runtime.max-failed-fraction", "1")
    assert outcome.status == 0, outcome.log
    codes = rows_of(outcome).set_index("key")["error_code"].fillna("ok").to_dict()
    assert codes == {
        "empty.tif": "empty",
        "good.tif#0,0": "ok",
        "page.tif": "unsupported_format",
        "three.tif": "band_mismatch",
    }
    assert outcome.summary["cogs"] == 1


def test_the_plan_counts_windows_and_writes_nothing(rasters: Path, segment: Run, tmp_path: Path) -> None:
    outcome = segment(rasters, tmp_path / "out", "--plan")
    assert outcome.status == 0, outcome.log
    assert (outcome.summary["rasters"], outcome.summary["windows"], outcome.summary["keys"]) == (2, 5, 5)
    assert outcome.summary["gigapixels"] == 0.001
    assert outcome.summary["refine_core_hours"] >= 0
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_takes_windows_of_several_rasters_and_leaves_nothing(
    rasters: Path, segment: Run, tmp_path: Path
) -> None:
    outcome = segment(rasters, tmp_path / "out", "--plan", "--rehearse", "3")
    assert outcome.status == 0, outcome.log
    assert (outcome.summary["rehearsed"], outcome.summary["failed"], outcome.summary["images"]) == (3, 0, 5)
    assert "rehearsing 3 image(s) of 2 shard(s)" in outcome.log
    assert outcome.summary["cpu_s_per_image"]["read"] > 0
    assert not list((tmp_path / "out").rglob("*"))


def test_a_folder_of_chips_of_four_bands_is_segmented_as_photos_are(segment: Run, tmp_path: Path) -> None:
    pixels = values(120, 130, 4)
    write_raster(tmp_path / "chips/a.tif", pixels, nodata=0)
    write_raster(tmp_path / "chips/b.tif", values(120, 130, 5), photometric="MINISBLACK")
    outcome = segment(tmp_path / "chips", tmp_path / "out", "--read.kind", "folder")
    rows = rows_of(outcome).set_index("key")
    assert rows.loc["a.tif", "status"] == "ok"
    assert rows.loc["b.tif", "error_code"] == "band_mismatch"
    whole = segment(tmp_path / "chips", tmp_path / "windows")
    windows = rows_of(whole).set_index("key")
    np.testing.assert_array_equal(mask_of(rows.loc["a.tif"]), mask_of(windows.loc["a.tif#0,0"]))


def test_samples_of_sixteen_bits_are_scaled_by_the_card_alike_in_every_window(
    forks: ForkServer, tmp_path: Path
) -> None:
    scale = BandScale(dtype="uint16", low=(500.0,) * 4, high=(50_000.0,) * 4)
    deep = small_checkpoint(tmp_path / "deep", RGBN, scale)
    plain = small_checkpoint(tmp_path / "plain", RGBN)
    pixels = values(600, 600, 4, "uint16")
    levels = np.rint(np.clip((pixels - 500.0) / 49_500 * 255, 0, 255)).astype(np.uint8)
    write_raster(tmp_path / "in16/a.tif", pixels, names=RGBN)
    write_raster(tmp_path / "in8/a.tif", levels, names=RGBN)
    masks = []
    for source, network in (("in16", deep), ("in8", plain)):
        flags = [*flags_for(tmp_path / source, tmp_path / f"out{source}"), "--checkpoint", str(network)]
        outcome = forked(forks, *flags, *WINDOWS, *QUICK)
        assert outcome.status == 0, outcome.log
        with rasterio.open(outcome.run / "masks/a.tif") as dataset:
            masks.append(dataset.read(1))
    assert (masks[0] != masks[1]).mean() < 1e-3  # a level at a half may round either way in float32


@pytest.mark.s3
def test_rasters_in_a_bucket_become_cogs_in_a_bucket(
    rasters: Path, segment: Run, moto_server: S3Server, undisturbed: Outcome
) -> None:
    client = moto_server.client()
    client.create_bucket(Bucket="rasters")
    for path in rasters.rglob("*.tif"):
        client.upload_file(str(path), "rasters", f"in/{path.relative_to(rasters)}")
    outcome = segment("s3://rasters/in", "s3://rasters/out", env=moto_server.environment)
    assert outcome.status == 0, outcome.log
    run = outcome.summary["run"].removeprefix("s3://rasters/")
    for name, data in files_of(undisturbed.run).items():
        assert client.get_object(Bucket="rasters", Key=f"{run}/{name}")["Body"].read() == data
