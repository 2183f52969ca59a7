import io
from dataclasses import replace

import numpy as np
import PIL.Image
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import classes
from pipeline.config import RefineConfig
from pipeline.image import encode
from pipeline.image.encode import confidence_cells, encode_maps, read_grey_png
from pipeline.records import Image, Item, PixelStats, Position, Refinement, Scored
from pipeline.refine.refiner import Refiner

VOC = classes.load_class_map("voc")


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_mask_survives_the_png(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(encode.read_mask_png(encode.mask_png(mask, VOC)), mask)


def test_a_viewer_shows_the_colours_of_the_class_map() -> None:
    mask = np.array([[0, 1, 20, 255]], np.uint8)
    with PIL.Image.open(io.BytesIO(encode.mask_png(mask, VOC))) as picture:
        assert picture.mode == "P"
        shown = np.asarray(picture.convert("RGB"))
    assert [tuple(pixel) for pixel in shown[0, :3].tolist()] == [VOC.classes[i].colour for i in (0, 1, 20)]
    assert tuple(shown[0, 3].tolist()) == classes.IGNORE_COLOUR


def test_a_mask_is_smaller_than_pillow_writes_it_at_level_one() -> None:
    """Blobs, and the same with single wrong pixels."""
    rng = np.random.default_rng(0)
    scores = [PIL.Image.fromarray(rng.normal(0, 1, (9, 9)).astype(np.float32)).resize((256, 256)) for _ in range(5)]
    blobs = np.stack([np.asarray(score) for score in scores]).argmax(0).astype(np.uint8)
    specks = np.where(rng.random(blobs.shape) < 0.01, np.uint8(3), blobs)
    for mask in (blobs, specks):
        out = io.BytesIO()
        PIL.Image.fromarray(mask).save(out, "PNG", compress_level=1)
        assert len(encode.mask_png(mask, VOC)) < len(out.getvalue())


@given(st.lists(st.text(), unique=True, min_size=1), st.floats(0, 1))
def test_previews_are_chosen_by_key_alone_and_a_larger_share_only_adds(keys: list[str], share: float) -> None:
    chosen = {key for key in keys if encode.is_preview(key, share)}
    assert chosen <= {key for key in keys if encode.is_preview(key, min(1.0, share * 1.5))}
    assert {key for key in keys if encode.is_preview(key, 1.0)} == set(keys)
    assert not any(encode.is_preview(key, 0.0) for key in keys)


def test_about_the_asked_share_of_keys_gets_a_preview() -> None:
    assert 150 < sum(encode.is_preview(f"images/{index:05d}.jpg", 0.2) for index in range(1000)) < 250


def test_a_row_holds_its_mask_its_counts_and_previews_at_full_size() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(21, 100, 120)).astype(np.float16)
    image = Image(rng.integers(0, 256, (400, 480, 3)).astype(np.uint8), None)
    scored = Scored(Item("a/b.jpg", "s1", "e1", shard_rows=7), 400, 480, 1, logits, inference="os8 fp32 whole")
    refinement = Refiner(RefineConfig(engine="none"), VOC)(scored, image)
    row = encode.segmented_row(scored, refinement, image, classes=VOC, model_fp="m", config_fp="c")
    mask = encode.read_mask_png(row.mask)
    assert row.class_pixels == np.bincount(mask.ravel(), minlength=21).tolist()
    assert row.classes_present == sorted(set(mask.ravel().tolist()))
    assert (row.status, row.height, row.width, row.shard_rows) == ("ok", 400, 480, 7)
    assert row.inference == "os8 fp32 whole"
    assert (row.longitude, row.latitude, row.altitude) == (None, None, None)
    placed = replace(scored, position=Position(7.5, -51.25, 80.0))
    row = encode.segmented_row(placed, refinement, image, classes=VOC, model_fp="m", config_fp="c")
    assert (row.longitude, row.latitude, row.altitude) == (7.5, -51.25, 80.0)
    assert 0 < row.confidence <= 1
    for data in (row.preview_image, row.preview_confidence):
        with PIL.Image.open(io.BytesIO(data)) as preview:
            assert preview.size == (480, 400)


def test_a_preview_has_at_most_2048_pixels_a_side() -> None:
    image = Image(np.zeros((1024, 4096, 3), np.uint8), None)
    for data in encode.encode_previews(image, np.zeros((1024, 4096), np.uint8)):
        with PIL.Image.open(io.BytesIO(data)) as preview:
            assert preview.size == (2048, 512)


@given(st.integers(1, 21), st.integers(1, 21), st.integers(0, 2**31))
def test_the_confidence_of_a_cell_is_the_mean_of_its_valid_pixels(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, valid = rng.integers(0, 256, (height, width), np.uint8), rng.random((height, width)) < 0.7
    cells = confidence_cells(confidence, valid)
    assert cells.shape == (-(-height // 4), -(-width // 4))
    for row, column in np.ndindex(*cells.shape):
        part = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
        own = confidence[part][valid[part]]
        assert cells[row, column] == (max(1, int(own.mean() + 0.5)) if own.size else 0)


def test_the_maps_of_a_window_say_what_the_refiner_changed() -> None:
    mask = np.array([[0, 1, 255, 1, 0, 1, 1]], np.uint8)
    network = np.array([[0, 0, 1, 1, 1, 1, 0]], np.uint8)
    stats = PixelStats(np.zeros(2, np.int64))
    confidence = np.full(mask.shape, 200, np.uint8)
    cells, changed = encode_maps(Refinement(mask, network, confidence, stats, True, None, 2), ignore_id=255)
    np.testing.assert_array_equal(read_grey_png(cells), [[200, 200]])
    np.testing.assert_array_equal(read_grey_png(changed), [[0, 1, 0, 0, 1, 0, 1]])
