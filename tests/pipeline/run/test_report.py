import html
import io
import re
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classes import ClassInfo, ClassMap
from pipeline.page.paint import HATCH, overlay, paint
from pipeline.records import Row
from pipeline.run import report
from tests.support.examples import examples
from tests.support.pages import Outline, laid_out_width, needs_browser

HOSTILE = "<script>alert(1)</script>"
CLASSES = ClassMap(
    name="three",
    classes=(
        ClassInfo(name="soil", colour=(188, 143, 92)),
        ClassInfo(name="<b>crop</b>", colour=(40, 160, 60)),
        ClassInfo(name="grey road", colour=(128, 128, 128)),
    ),
)
EMPTY = report.RunSummary(
    run="3fa9c17be204d8a6", shards=0, parts=0, rows=0, ok=0, failed=0, error_codes={}, class_pixels=[], seconds={},
    wall_s=0.5, working_s=0, images_per_s=0, confidence=None, entropy=None, changed_share=None, refined=0,
    refine_notes={},
)  # fmt: skip
FULL = replace(
    EMPTY, shards=3, parts=2, rows=1234, ok=1230, failed=4, error_codes={"truncated": 3, "empty": 1},
    class_pixels=[3000, 1000, 0], seconds={"read": 1.5, "infer": 90.0, "refine": 400.0},
    wall_s=4000.0, working_s=3900.0,
    images_per_s=18.25, confidence=0.87, entropy=0.2, changed_share=0.03, refined=1228,
    refine_notes={"refine_timeout": 2},
)  # fmt: skip


def saved(pixels, form):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def preview(key, *, confidence=0.5, height=24, width=32, scale=2, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height * scale, width * scale))
    return Row(
        key=key, status="ok", shard="s", source_etag="e", model_fp="m", config_fp="c", confidence=confidence,
        mask=saved(mask, "PNG"), class_pixels=np.bincount(mask[mask < 3], minlength=3).tolist(),
        preview_image=saved(rng.integers(0, 256, (height, width, 3), np.uint8), "JPEG"),
        preview_confidence=saved(rng.integers(0, 256, (height, width), np.uint8), "PNG"),
    )  # fmt: skip


def page(summary=FULL, previews=(), failures=(), facts=None, **more):
    return report.render_run(
        summary=summary, previews=previews, classes=CLASSES, failures=failures, facts=facts or {}, **more
    )


def test_the_page_closes_every_tag_it_opens():
    failures = [("a.jpg", "truncated", "ends early")]
    outline = Outline(page(previews=[preview("a"), preview("b")], failures=failures, next_commands=["ls"]))
    assert outline.stack == []
    assert {"html", "main", "figure", "dl"} <= {tag for tag, _ in outline.tags}


def test_a_hostile_text_renders_as_text_wherever_it_stands():
    text = page(
        replace(FULL, run=HOSTILE, error_codes={HOSTILE: 1}, refine_notes={HOSTILE: 1}),
        [preview(HOSTILE), preview('" onload="x')],
        [(HOSTILE, HOSTILE, HOSTILE)],
        {HOSTILE: HOSTILE, "source": HOSTILE},
        next_commands=[HOSTILE],
        substituted=HOSTILE,
    )
    outline = Outline(text)
    assert outline.stack == []
    assert outline.text.count(HOSTILE) >= 8
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in outline.tags}
    assert not [attrs for _, attrs in outline.tags if "onload" in attrs]
    assert "<b>crop</b>" not in text
    assert "<b>crop</b>" in outline.text


def test_a_substituted_engine_stands_in_the_head_of_the_page():
    text = Outline(page(substituted="torch in place of native")).text
    assert text.index("another engine than configured: torch in place of native") < text.index("Contact sheet")
    assert "another engine" not in Outline(page()).text


def test_the_page_refers_to_nothing_outside_it():
    text = page(previews=[preview("a")], facts={"source": "s3://bucket/images"})
    assert not re.search(r"https?:|<script|<link|@import|javascript:", text)
    assert all(part.startswith("data:") for part in re.findall(r'src="([^"]*)', text))
    assert all(part.startswith(("#", "pictures/")) for part in re.findall(r'href="([^"]*)', text))
    policy = next(attrs["content"] for tag, attrs in Outline(text).tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_every_item_shows_four_pictures_of_the_preview_size():
    images = list(Outline(page(previews=[preview("wide"), preview("tall", height=40, width=10)])).images())
    assert [attrs["alt"].split(" of ")[0] for attrs, _ in images] == [*report.PREVIEW_VIEWS] * 2
    for attrs, picture in images:
        assert picture.size == ((32, 24) if attrs["alt"].endswith("wide") else (10, 40))
        assert picture.size == (int(attrs["width"]), int(attrs["height"]))


def test_every_picture_links_to_itself_at_the_size_of_the_preview():
    rows = [preview("large/../a b.jpg", height=700, width=900, scale=1), preview("small")]
    shown = report.shown_on_page(rows)
    pictures = [picture for row in shown for picture in report.full_size_pictures(row, CLASSES)]
    written = {path: PIL.Image.open(io.BytesIO(data)) for path, data in pictures}
    outline = Outline(page(previews=rows))
    links = [attrs["href"] for tag, attrs in outline.tags if tag == "a" and attrs["href"].startswith("pictures/")]
    assert links == list(written)
    assert all(re.fullmatch(r"pictures/[0-9a-f]{16}-[a-z]+\.(jpg|png)", path) for path in links)
    sizes = {picture.size for picture in written.values()}
    assert sizes == {(900, 700), (32, 24)}
    assert max(max(picture.size) for _, picture in outline.images()) == 320


def test_the_classes_the_failures_and_the_time_stand_before_the_pictures():
    text = page(previews=[preview("a")])
    places = [text.index(f'<section id="{name}"') for name in ("classes", "failures", "time", "sheet", "facts")]
    assert places == sorted(places)


def test_the_rate_is_that_of_the_work_and_the_start_is_told_apart():
    text = Outline(page()).text
    assert "18.2" in text
    assert "1 h 05 min from the first image in a worker to the last commit, 1 min 40 s to start Ray" in text
    assert "nothing was left to do" in Outline(page(EMPTY)).text


def test_the_picture_of_the_mask_is_the_mask_taken_at_preview_pixels():
    row = preview("a", scale=1)
    ids = np.asarray(PIL.Image.open(io.BytesIO(row.mask)))
    shown = next(
        picture for attrs, picture in Outline(page(previews=[row])).images() if attrs["alt"].startswith("mask")
    )
    np.testing.assert_array_equal(np.asarray(shown), paint(ids, CLASSES))


def test_paint_gives_classes_their_colour_and_other_pixels_two_greys():
    ids = np.repeat(np.array([[0, 1, 2, 3, 254, 255]], np.uint8), 12, axis=0)
    painted = paint(ids, CLASSES)
    for index, one in enumerate(CLASSES.classes):
        assert (painted[ids == index] == one.colour).all()
    greys = {tuple(colour) for colour in painted[ids >= len(CLASSES)].tolist()}
    assert greys == set(HATCH)


@examples(50)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_an_overlay_is_the_even_blend_inside_regions_and_the_colour_on_their_outlines(height, width, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    ids = rng.choice(np.array([0, 1, 255], np.uint8), (height, width), p=[0.7, 0.2, 0.1])
    painted, tinted = paint(ids, CLASSES), overlay(image, ids, CLASSES)
    for y in range(height):
        for x in range(width):
            neighbours = {int(ids[y, min(x + 1, width - 1)]), int(ids[min(y + 1, height - 1), x])}
            inside = neighbours == {int(ids[y, x])}
            expected = (image[y, x] / 2 + painted[y, x] / 2) if inside else painted[y, x]
            assert abs(tinted[y, x] - expected).max() <= 0.5


def test_the_ramp_gets_lighter_at_an_even_pace():
    linear = report.confidence_ramp() / 255.0
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    assert (np.diff(lightness[::8]) > 0).all()
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 6


def test_picks_do_not_depend_on_order_and_hold_no_key_twice():
    rows = [preview(f"{index % 40}", confidence=index % 40 / 40) for index in range(60)]
    uncertain, sample = report.choose_previews(rows, count=24)
    keys = [row.key for row in (*uncertain, *sample)]
    assert len(keys) == len(set(keys)) == 24
    assert [row.key for row in uncertain] == [str(index) for index in range(12)]
    again = report.choose_previews(rows[::-1], count=24)
    assert keys == [row.key for group in again for row in group]
    assert [row.key for row in sample] != sorted((row.key for row in sample), key=int)


@pytest.mark.parametrize("available", [0, 1, 2, 23, 24])
def test_all_previews_are_picked_when_there_are_few(available):
    uncertain, sample = report.choose_previews([preview(str(index)) for index in range(available)], count=24)
    assert len(uncertain) + len(sample) == available


def test_rows_without_previews_are_passed_over():
    rows = [preview("a"), replace(preview("b"), preview_confidence=None), replace(preview("c"), mask=None)]
    uncertain, sample = report.choose_previews(rows, count=24)
    assert [row.key for row in (*uncertain, *sample)] == ["a"]


def test_a_run_without_images_and_a_run_of_failures_have_a_page():
    assert "No previews were kept" in page(EMPTY)
    failed = replace(EMPTY, rows=2, failed=2, error_codes={"empty": 2})
    outline = Outline(page(failed, failures=[("a", "empty", "0 bytes"), ("b", "empty", "0 bytes")]))
    assert "100\u202f% of all" in outline.text
    assert "the object has no bytes" in outline.text


def test_failures_come_by_frequency_with_three_examples_of_each_code():
    failures = [(f"{code}-{index}", code, "seen") for code in ("empty", "truncated") for index in range(5)]
    text = Outline(page(replace(FULL, error_codes={"empty": 5, "truncated": 9}), failures=failures)).text
    assert text.index("the image data ends early") < text.index("the object has no bytes")
    assert "truncated-2" in text
    assert "truncated-3" not in text


def test_shares_are_of_pixels_with_a_class_and_add_up():
    shares = report.class_shares([30, 60, 10], CLASSES)
    assert [(one.name, one.share) for one in shares] == [("<b>crop</b>", 0.6), ("soil", 0.3), ("grey road", 0.1)]
    assert report.class_shares([0, 0, 0], CLASSES) == []


def test_classes_on_no_pixel_are_named_too():
    text = Outline(page()).text
    assert "1 class without a pixel" in text
    assert text.count("grey road") == 1


def test_a_page_of_noise_stays_below_five_megabytes():
    rows = [preview(f"{index}", height=320, width=320, scale=1, seed=index) for index in range(24)]
    text = page(previews=rows)
    assert len(text.encode()) < 5_000_000
    assert text.count("<figure") >= 6


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0, "0_%"), (1e-6, "<_0.01_%"), (0.00123, "0.12_%"), (0.0123, "1.2_%"), (0.42, "42_%"),
        (0.998, "99.8_%"), (0.99999, ">_99.99_%"), (1, "100_%"),
    ],
)  # fmt: skip
def test_a_percentage_never_rounds_to_nothing_or_to_all(share, shown):
    assert f"{shown.replace('_', chr(0x202F))} of all" in html.unescape(
        page(replace(FULL, rows=1_000_000, ok=round(share * 1_000_000), failed=0))
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "500 ms"), (0.9999, "1.0 s"), (12.34, "12.3 s"), (59.99, "1 min 00 s"), (3599.9, "1 h 00 min")],
)
def test_durations_carry_over(seconds, shown):
    assert f"{shown} wall time" in page(replace(FULL, wall_s=seconds))


def test_the_sheet_shows_every_colour_of_its_masks_and_keeps_its_width():
    rows = [preview("a" * 2000), preview("b"), preview("tall", height=40, width=10)]
    sheet = PIL.Image.open(io.BytesIO(report.overlays_png(rows, CLASSES)))
    assert sheet.width == 1400
    colours = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert {one.colour for one in CLASSES.classes} | set(HATCH) <= colours
    assert report.overlays_png(rows, CLASSES) == report.overlays_png(rows[::-1], CLASSES)


def test_the_sheet_writes_a_key_on_one_line_whatever_it_holds():
    assert report.overlays_png([preview("two\nlines")], CLASSES) == report.overlays_png([preview("two lines")], CLASSES)


def test_the_sheet_of_no_previews_is_a_picture_too():
    assert PIL.Image.open(io.BytesIO(report.overlays_png([], CLASSES))).width == 1400


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_no_wider_than_its_window(width, tmp_path):
    long = "x" * 300
    text = page(previews=[preview(long)], failures=[(long, "empty", long)], facts={long: long}, next_commands=[long])
    assert laid_out_width(text, window_px=width, folder=tmp_path) == width
