"""HTML report of a run as one self-contained file, its pictures at full size, and its contact sheet as one PNG.

In: totals of a finished run, rows with previews, failures. Out: a string, and encoded pictures. Nothing is read or
written here, and the page loads nothing from outside: no font, and no script but that of a map, which it holds. Each of
its pictures links to the one at full size in the folder `FULL_SIZE` beside it.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.classes import ClassInfo, ClassMap
from pipeline.errors import ERROR_CODES
from pipeline.image.encode import PREVIEW_PX
from pipeline.page import frame
from pipeline.page.map import PageMap
from pipeline.page.paint import overlay, paint
from pipeline.records import Row, UInt8

PAGE_ITEMS = 24
"""Most items on the page: half the least certain, half a random sample."""
_PAGE_BYTES = 4_500_000
"""Most bytes of all data URIs, so that the page can be mailed."""
PICTURE_ITEMS = 6
"""Items in `overlays_png`."""
RAMP_ANCHORS = (
    (0, 0, 4), (29, 17, 71), (81, 18, 124), (130, 38, 129), (182, 54, 121),
    (230, 81, 100), (251, 136, 97), (254, 194, 135), (252, 253, 191),
)  # fmt: skip
"""Every eighth of `magma`, a perceptually uniform ramp (van der Walt and Smith 2015, https://bids.github.io/colormap)."""
PREVIEW_VIEWS = ("image", "mask", "overlay", "confidence")
"""Pictures of each item, left to right."""
FORMATS = ("JPEG", "PNG", "JPEG", "PNG")
"""Format of each of `PREVIEW_VIEWS`."""
CARD_PX = 320
"""Longest side of a picture on the page and in `overlays_png`."""
SHOWN_FAILURES = 3
"""Failed items shown of each error code."""
FULL_SIZE = "pictures"
"""Folder of the pictures at full size, beside the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Totals of a finished run. Means are over `ok` rows; None where there are none."""

    run: str
    """Fingerprint of the run, hex digits."""
    shards: int
    parts: int
    """Committed Parquet objects."""
    rows: int
    """Work items, `ok` and `failed`."""
    ok: int
    failed: int
    error_codes: Mapping[str, int]
    """Failed rows per code of `errors.ERROR_CODES`."""
    class_pixels: Sequence[int]
    """Pixels per class id over all rows."""
    seconds: Mapping[str, float]
    """Stage (`read`, `decode`, `infer`, `refine`, `encode`) to seconds summed over all items, so over all workers."""
    wall_s: float
    """Wall time of the run, seconds."""
    working_s: float
    """Of it from the first image in a worker to the last commit, seconds; 0 when this driver had no work."""
    images_per_s: float
    """While working."""
    confidence: float | None
    """0 to 1."""
    entropy: float | None
    """0 certain, 1 uniform."""
    changed_share: float | None
    """Share of pixels whose class the refiner changed, 0 to 1."""
    refined: int
    """Rows whose whole mask the refiner produced."""
    refine_notes: Mapping[str, int]
    """Rows per reason why refinement was configured but did not happen, or did in part of the image."""


@dataclass(frozen=True, slots=True)
class ClassShare:
    """Pixels of a class and their share of all pixels, 0 to 1."""

    name: str
    colour: tuple[int, int, int]
    pixels: int
    share: float


@dataclass(frozen=True, slots=True)
class PreviewCard:
    """One item of the contact sheet, ready for the page."""

    row: Row
    uris: tuple[str, ...]
    """Data URIs in the order of `PREVIEW_VIEWS`."""
    links: tuple[str, ...]
    """Paths of the same pictures at full size, relative to the page."""
    width: int
    """Of each picture, pixels."""
    height: int
    shares: list[ClassShare]


def render_run(
    *,
    summary: RunSummary,
    previews: Sequence[Row],
    classes: ClassMap,
    failures: Sequence[tuple[str, str, str]],
    facts: Mapping[str, str],
    next_commands: Sequence[str] = (),
    substituted: str | None = None,
    page_map: PageMap | None = None,
) -> str:
    """Lay out the report of a run as one HTML file below 5 MB; with a map, below 9 MB.

    Args:
        summary: counts and means of the whole run.
        previews: rows that may be shown; rows without mask or previews are left out.
        classes: names and colours of the ids in the masks.
        failures: (key, code, detail) of failed items; `SHOWN_FAILURES` of each code are shown, so a sample is enough.
        facts: facts about the run, name to value, in this order. Shown as given: pass no credentials.
        next_commands: shell commands worth running next.
        substituted: refine engine in place of the configured one, and why; None without.
        page_map: map of the masks of rasters; None without.
    """
    uncertain, sample = choose_previews(previews, count=PAGE_ITEMS)
    groups = [_cards_within(rows, classes, budget=_PAGE_BYTES // 2) for rows in (sample, uncertain)]
    return frame.load_template("run/report").render(
        summary=summary,
        substituted=substituted,
        page_map=page_map,
        groups=[
            (
                "Random sample",
                "random choice among the other previews, the same in every report of this run",
                groups[0],
            ),
            ("Least certain", "lowest mean confidence among the previews", groups[1]),
        ],
        views=PREVIEW_VIEWS,
        full_px=PREVIEW_PX,
        folder=FULL_SIZE,
        classes=classes,
        legend=_legend([summary.class_pixels], classes),
        shares=class_shares(summary.class_pixels, classes),
        failures=failures_by_code(summary.error_codes, failures),
        facts=facts,
        next_commands=next_commands,
        ramp=RAMP_ANCHORS,
    )


def choose_previews(previews: Sequence[Row], *, count: int) -> tuple[list[Row], list[Row]]:
    """Choose previews: (least certain, random others), together at most `count` rows, no key twice.

    The choice depends on the set of rows only, not on their order.
    """
    shown = {row.key: row for row in previews if row.mask and row.preview_image and row.preview_confidence}
    by_confidence = sorted(shown.values(), key=lambda row: (row.confidence or 0.0, row.key))
    half = min(count // 2, len(by_confidence) // 2)
    others = sorted(by_confidence[half:], key=lambda row: hashlib.sha256(f"report {row.key}".encode()).digest())
    return by_confidence[:half], others[: count - count // 2]


def shown_on_page(previews: Sequence[Row]) -> list[Row]:
    """Rows that are items of the page."""
    uncertain, sample = choose_previews(previews, count=PAGE_ITEMS)
    return [*sample, *uncertain]


def full_size_pictures(row: Row, classes: ClassMap) -> Iterator[tuple[str, bytes]]:
    """Encoded pictures of an item of the page, at the size of its preview, with their paths beside the page."""
    pictures = zip(_links(row), _pictures(row, classes, longest_px=PREVIEW_PX), FORMATS, strict=True)
    for path, picture, form in pictures:
        yield path, _encoded(picture, form)


def _links(row: Row) -> tuple[str, ...]:
    """Paths of an item's pictures at full size; a key may hold anything, so its digest names them."""
    digest = hashlib.sha256(row.key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    suffixes = {"JPEG": "jpg", "PNG": "png"}
    return tuple(
        f"{FULL_SIZE}/{digest}-{view}.{suffixes[form]}" for view, form in zip(PREVIEW_VIEWS, FORMATS, strict=True)
    )


def class_shares(class_pixels: Sequence[int], classes: ClassMap) -> list[ClassShare]:
    """Share of each class with at least one pixel, largest first."""
    total = sum(class_pixels) or 1
    shares = [
        ClassShare(info.name, info.colour, pixels, pixels / total)
        for info, pixels in zip(classes.classes, class_pixels, strict=False)
        if pixels
    ]
    return sorted(shares, key=lambda share: -share.pixels)


def confidence_ramp() -> UInt8:
    """Colours of confidence 0/255 to 255/255: (256, 3) RGB, dark for low, pale for high confidence."""
    anchors = np.array(RAMP_ANCHORS, np.float64)
    positions = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(positions, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def overlays_png(previews: Sequence[Row], classes: ClassMap) -> bytes:
    """Draw the contact sheet as one PNG, 1400 pixels wide: a row per item, a column per view, the legend below.

    Without previews the sheet is a note.
    """
    uncertain, sample = choose_previews(previews, count=PICTURE_ITEMS)
    rows = [*sample, *uncertain]
    lines = [_sheet_line(row, classes) for row in rows] or [_sheet_note("no previews were kept")]
    parts = [_sheet_head(), *lines, _sheet_legend([row.class_pixels or [] for row in rows], classes)]
    sheet = Image.new("RGB", (SHEET_PX, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return _encoded(sheet, "PNG")


def _legend(counts: Iterable[Sequence[int]], classes: ClassMap) -> list[ClassInfo]:
    """Classes with a pixel in any of the counts, in the order of their ids; all of them when none has."""
    seen = {index for pixels in counts for index, number in enumerate(pixels) if number}
    return [info for index, info in enumerate(classes.classes) if index in seen or not seen]


def _pictures(row: Row, classes: ClassMap, *, longest_px: int = CARD_PX) -> list[Image.Image]:
    """Four pictures of an item in the order of `PREVIEW_VIEWS`, of the preview's size or smaller."""
    image = Image.open(BytesIO(row.preview_image or b"")).convert("RGB")
    image.thumbnail((longest_px, longest_px))
    mask = Image.open(BytesIO(row.mask or b"")).resize(image.size, Image.Resampling.NEAREST)
    confidence = (
        Image.open(BytesIO(row.preview_confidence or b"")).convert("L").resize(image.size, Image.Resampling.BOX)
    )
    confidence.putpalette(confidence_ramp().tobytes())
    mask_hw = np.asarray(mask, np.uint8)
    painted = Image.fromarray(paint(mask_hw, classes))
    return [image, painted, Image.fromarray(overlay(np.asarray(image), mask_hw, classes)), confidence]


def _encoded(picture: Image.Image, kind: str) -> bytes:
    """Encode a picture. PNG is not optimised: that takes three to five times as long for 1 or 2 % of the bytes."""
    buffer = BytesIO()
    picture.save(buffer, kind, quality=88, optimize=kind == "JPEG")
    return buffer.getvalue()


def _card(row: Row, classes: ClassMap) -> PreviewCard:
    pictures = _pictures(row, classes)
    uris = tuple(frame.data_uri(_encoded(picture, form), form) for picture, form in zip(pictures, FORMATS, strict=True))
    shares = class_shares(row.class_pixels or [], classes)
    return PreviewCard(row, uris, _links(row), *pictures[0].size, shares)


def _cards_within(rows: Sequence[Row], classes: ClassMap, *, budget: int) -> list[PreviewCard]:
    """Cards of the first rows whose data URIs fit into `budget` bytes; noise compresses badly, photos all fit."""
    cards: list[PreviewCard] = []
    for row in rows:
        card = _card(row, classes)
        budget -= sum(map(len, card.uris))
        if budget < 0:
            break
        cards.append(card)
    return cards


def failures_by_code(
    counts: Mapping[str, int], failures: Sequence[tuple[str, str, str]]
) -> list[tuple[str, int, str, list[tuple[str, str]]]]:
    """(code, count, meaning, up to `SHOWN_FAILURES` (key, detail)) per code, most frequent first."""
    return [
        (
            code,
            count,
            ERROR_CODES.get(code, ""),
            [(key, detail) for key, failure_code, detail in failures if failure_code == code][:SHOWN_FAILURES],
        )
        for code, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


# The sheet of `overlays_png`: four columns of pictures on white.
CELL_PX, GAP_PX, MARGIN_PX = CARD_PX, 16, 36
SHEET_PX = 2 * MARGIN_PX + 4 * CELL_PX + 3 * GAP_PX
PAPER, INK, FAINT = (255, 255, 255), (28, 30, 33), (98, 104, 112)


def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


def _column_left(column: int) -> int:
    return MARGIN_PX + column * (CELL_PX + GAP_PX)


def _blank_strip(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    strip = Image.new("RGB", (SHEET_PX, height), PAPER)
    return strip, ImageDraw.Draw(strip)


def _sheet_head() -> Image.Image:
    strip, draw = _blank_strip(62)
    for column, name in enumerate(PREVIEW_VIEWS):
        draw.text((_column_left(column), 30), name, INK, _font(17))
    return strip


def _sheet_note(text: str) -> Image.Image:
    strip, draw = _blank_strip(80)
    draw.text((MARGIN_PX, 20), text, FAINT, _font(17))
    return strip


def _sheet_line(row: Row, classes: ClassMap) -> Image.Image:
    """One item: its four views side by side, its key and largest classes below."""
    fitted = [ImageOps.contain(picture.convert("RGB"), (CELL_PX, CELL_PX)) for picture in _pictures(row, classes)]
    tall = fitted[0].height
    strip, draw = _blank_strip(tall + 48)
    for column, picture in enumerate(fitted):
        strip.paste(picture, (_column_left(column) + (CELL_PX - picture.width) // 2, 0))
    top = [f"{share.name} {share.share:.0%}" for share in class_shares(row.class_pixels or [], classes)[:3]]
    caption = "   ".join([*top, f"confidence {row.confidence or 0.0:.2f}"])
    draw.text((SHEET_PX - MARGIN_PX, tall + 8), caption, FAINT, _font(14), anchor="ra")
    room = SHEET_PX - 2 * MARGIN_PX - 2 * GAP_PX - _font(14).getlength(caption)
    draw.text((MARGIN_PX, tall + 8), _shortened(row.key, room), INK, _font(14))
    return strip


def _shortened(key: str, room_px: float) -> str:
    """Key on one line, shortened at its start if necessary: the end tells keys apart."""
    text = "".join(letter if letter.isprintable() else " " for letter in key)
    if _font(14).getlength(text) <= room_px:
        return text
    start = bisect_left(range(len(text)), -room_px, key=lambda start: -_font(14).getlength("…" + text[start:]))
    return "…" + text[start:]


def _sheet_legend(counts: Iterable[Sequence[int]], classes: ClassMap) -> Image.Image:
    """Legend: swatches and names of the classes drawn, the stripes of no class and the confidence ramp, wrapped."""
    legend = _legend(counts, classes)
    names = [*(info.name for info in legend), "no class", "confidence 0 to 1"]
    swatches = [Image.new("RGB", (18, 18), info.colour) for info in legend]
    swatches.append(Image.fromarray(paint(np.full((18, 18), classes.ignore_id, np.uint8), classes)))
    swatches.append(Image.fromarray(np.repeat(confidence_ramp()[None, ::4], 18, axis=0)))
    places, height = _wrap_legend(
        [_font(14).getlength(name) + swatch.width for name, swatch in zip(names, swatches, strict=True)]
    )
    strip, draw = _blank_strip(height)
    for name, swatch, (left, top) in zip(names, swatches, places, strict=True):
        strip.paste(swatch, (left, top))
        draw.text((left + swatch.width + 8, top + 1), name, INK, _font(14))
    return strip


def _wrap_legend(widths: Sequence[float]) -> tuple[list[tuple[int, int]], int]:
    """Left and top of legend entries wrapped like text, and their total height, pixels."""
    places, left, top = [], MARGIN_PX, 14
    for width in widths:
        step = round(width) + 34
        if left + step > SHEET_PX - MARGIN_PX:
            left, top = MARGIN_PX, top + 28
        places.append((left, top))
        left += step
    return places, top + 28 + MARGIN_PX // 2
