"""Export of runs: every mask equals the row's, in every form, also after a stop at any moment."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import classes
from pipeline.config import SegmentConfig
from pipeline.errors import ConfigError
from pipeline.export.export import export_run
from pipeline.image import encode
from pipeline.records import Row, rows_to_table
from pipeline.run import folder, manifest, parts
from pipeline.store import objects
from pipeline.store.url import Url

FARM = classes.load_class_map("farmland")
FORMS = ("png", "hf", "coco")
KEYS = ["a.jpg", "a.tif", "b/c.jpg", "b/d.jpg", "e.jpg"]


def mask_of(key: str) -> np.ndarray:
    """(9, 7) class ids, and ignored pixels."""
    ids = np.random.default_rng(sum(key.encode())).integers(0, len(FARM) + 1, (9, 7))
    return np.where(ids == len(FARM), FARM.ignore_id, ids).astype(np.uint8)


def row(key: str, *, failed: bool = False) -> Row:
    fields = {"key": key, "shard": "s", "source_etag": "e", "model_fp": "m", "config_fp": "c"}
    if failed:
        return Row(status="failed", error_code="truncated", error_detail="short", **fields)
    mask = mask_of(key)
    pixels = np.bincount(mask.ravel(), minlength=256)[: len(FARM)].tolist()
    present = [index for index, count in enumerate(pixels) if count]
    png = encode.mask_png(mask, FARM)
    return Row(
        status="ok", mask=png, height=9, width=7, class_pixels=pixels, classes_present=present, confidence=0.5, **fields
    )


@pytest.fixture
def run_url(tmp_path: Path) -> Url:
    """A finished run of two parts, with one failed row."""
    url = Url(str(tmp_path / "out/run=0123456789ab"))
    parts.write_part(url, rows_to_table([row(key) for key in KEYS[:3]]), FARM)
    parts.write_part(url, rows_to_table([*map(row, KEYS[3:]), row("z.jpg", failed=True)]), FARM)
    manifest.mark_finished(url)
    return url


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_exported_pngs_are_the_masks_of_the_rows_and_failures_are_counted(run_url: Url, tmp_path: Path) -> None:
    summary = export_run(run_url, "png", Url(str(tmp_path / "png")))
    assert (summary["written"], summary["failed"], summary["exit_status"]) == (5, {"truncated": 1}, 0)
    found = sorted(encode.read_mask_png(path.read_bytes()).tobytes() for path in (tmp_path / "png").rglob("*.png"))
    assert found == sorted(mask_of(key).tobytes() for key in KEYS)
    assert np.array_equal(encode.read_mask_png((tmp_path / "png/b/c.png").read_bytes()), mask_of("b/c.jpg"))
    state = json.loads((tmp_path / "png/_export.json").read_bytes())
    assert (state["finished"], state["failed"], state["exported"]) == (True, {"truncated": 1}, 5)


def test_exported_run_lengths_decode_to_the_masks_of_the_rows(run_url: Url, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    export_run(run_url, "coco", Url(str(tmp_path / "coco")))
    annotations = coco.COCO(str(tmp_path / "coco/annotations.json"))
    assert [one["name"] for one in annotations.loadCats(annotations.getCatIds())] == list(FARM.names)
    images = annotations.loadImgs(annotations.getImgIds())
    assert sorted(image["file_name"] for image in images) == KEYS
    for image in images:
        mask = np.full((image["height"], image["width"]), FARM.ignore_id, np.uint8)
        for one in annotations.loadAnns(annotations.getAnnIds(imgIds=image["id"])):
            mask[annotations.annToMask(one) == 1] = one["category_id"] - 1
        assert np.array_equal(mask, mask_of(image["file_name"]))


def test_hugging_face_loads_an_export_with_masks_decoded_and_classes_named(
    run_url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    export_run(run_url, "hf", Url(str(tmp_path / "hf")))
    rows = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["key"]) == KEYS
    assert all(np.array_equal(np.asarray(one["mask"]), mask_of(one["key"])) for one in rows)
    assert rows.features["classes_present"].feature.names == list(FARM.names)


class Stopped(Exception):
    """The process was killed."""


@pytest.mark.parametrize("form", FORMS)
def test_an_export_stopped_after_any_put_ends_with_the_same_files(
    form: str, run_url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(run_url, form, Url(str(tmp_path / "whole")))
    whole = contents(tmp_path / "whole")
    put = objects.put
    for allowed in range(len(whole) + 1):
        output, left = tmp_path / f"stopped{allowed}", iter(range(allowed))

        def counted(url: Url, data: bytes, left=left) -> None:
            if next(left, None) is None:
                raise Stopped
            put(url, data)

        with monkeypatch.context() as patch:
            patch.setattr(objects, "put", counted)
            with pytest.raises(Stopped):
                export_run(run_url, form, Url(str(output)))
        export_run(run_url, form, Url(str(output)))
        assert contents(output) == whole


@pytest.mark.parametrize("form", FORMS)
def test_an_unfinished_run_is_exported_with_a_warning_and_the_rest_later(
    form: str, run_url: Url, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_run(run_url, form, Url(str(tmp_path / "whole")))
    objects.delete(run_url / folder.SUCCESS)
    later = {name: objects.read_bytes(parts.parts_url(run_url) / name) for name in parts.list_parts(run_url)[:1]}
    for name in later:
        (Path(run_url.raw) / "parts" / name).rename(tmp_path / name)
    export_run(run_url, form, Url(str(tmp_path / "grown")))
    assert "not finished" in caplog.text
    for name in later:
        (tmp_path / name).rename(Path(run_url.raw) / "parts" / name)
    manifest.mark_finished(run_url)
    export_run(run_url, form, Url(str(tmp_path / "grown")))
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


def test_a_folder_of_other_files_or_of_another_export_is_refused(run_url: Url, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"not empty.*a\.png"):
        export_run(run_url, "png", Url(str(tmp_path / "photos")))
    assert (tmp_path / "photos/a.png").read_bytes() == b"mine"
    export_run(run_url, "png", Url(str(tmp_path / "png")))
    with pytest.raises(ConfigError, match="to png, not of run=0123456789ab to hf"):
        export_run(run_url, "hf", Url(str(tmp_path / "png")))
    with pytest.raises(ConfigError, match="inside the run"):
        export_run(run_url, "png", run_url / "png")


# ---------------------------------------------------------------- GeoTIFF


def geotiff(rasterio, *, transform=None) -> bytes:
    """(9, 7) RGB image."""
    profile = {"driver": "GTiff", "height": 9, "width": 7, "count": 3, "dtype": "uint8"}
    profile |= {"transform": transform, "crs": "EPSG:32633"} if transform else {}
    with rasterio.io.MemoryFile() as memory:
        with memory.open(**profile) as file:
            file.write(np.full((3, 9, 7), 90, np.uint8))
        return memory.read()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_geotiffs_have_the_grid_of_their_images_and_other_images_are_left_out_by_reason(
    run_url: Url, tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(0.5, 0, 400000, 0, -0.5, 5000000)
    (tmp_path / "in/b").mkdir(parents=True)
    (tmp_path / "in/a.tif").write_bytes(geotiff(rasterio, transform=transform))
    (tmp_path / "in/e.jpg").write_bytes(geotiff(rasterio, transform=transform))  # the bytes count, not the name
    (tmp_path / "in/b/c.jpg").write_bytes(geotiff(rasterio))
    cfg = SegmentConfig(source=[str(tmp_path / "in")], output="out", checkpoint="farmland")
    objects.put(run_url / folder.CONFIG, json.dumps(cfg.model_dump(mode="json")).encode())  # JSON is YAML
    for expected in ({"written": 2, "there": 0}, {"written": 0, "there": 2}):
        summary = export_run(run_url, "geotiff", Url(str(tmp_path / "tif")))
        assert {name: summary[name] for name in expected} == expected
        assert summary["left_out"] == {"no_georeferencing": 1, "not_found": 2}
        assert summary["exit_status"] == 1
    with rasterio.open(tmp_path / "tif/e.tif") as file:
        assert (file.transform, file.crs.to_epsg(), file.nodata) == (transform, 32633, 255)
        assert np.array_equal(file.read(1), mask_of("e.jpg"))
        assert file.colormap(1)[1][:3] == FARM.classes[1].colour
