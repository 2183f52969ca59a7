"""Labels as people really save them, good and bad, each with the image it belongs to; made anew from plain code.

`CASES` lists them with what must become of each: `ok`, where the label then reads as `TRUTH`, or the error code of the
row. The image is 10 rows of 14 columns, so that a label that was turned does not fit.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from pipeline.classes import ClassMap
from pipeline.config import JudgeConfig

HEIGHT, WIDTH = 10, 14
CLASSES = ClassMap(
    name="yard",
    classes=(
        {"name": "ground", "colour": (90, 60, 20)},
        {"name": "plant", "colour": (10, 160, 30)},
        {"name": "stone", "colour": (128, 128, 128)},
    ),
)
IGNORE = CLASSES.ignore_id
VOID = (224, 224, 192)

y, x = np.mgrid[:HEIGHT, :WIDTH]
TRUTH = np.select([x + y > 18, (x // 4 + y // 3) % 3 == 1, x > 9], [IGNORE, 1, 2], 0).astype(np.uint8)
WHOLE = np.where(TRUTH == IGNORE, 2, TRUTH).astype(np.uint8)
"""As `TRUTH`, with a class everywhere: for files of few bits, which cannot hold 255."""

ALMOST = np.full_like(TRUTH, IGNORE)
ALMOST[4, 4] = 1
MASK = np.where(WHOLE == 1, 255, 0).astype(np.uint8)

COLOURS = JudgeConfig(labels_as="colours")
OWN_IDS = JudgeConfig(label_ids={7: 0, 300: 1, 21: 2, 0: IGNORE})
RAW_OF = {0: 7, 1: 300, 2: 21, IGNORE: 0}


@dataclass(frozen=True, eq=False)
class Case:
    """One label file, or none."""

    name: str
    make: Callable[[], bytes | None]
    expected: str = "ok"
    """`ok`, or the code of the failure row."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    file: str = "{}.png"
    """Its name, for the stem of its image."""
    truth: np.ndarray = field(default_factory=lambda: TRUTH)
    """What it reads as when it is `ok`."""
    orientation: int = 1
    """EXIF orientation of the image, which is then stored turned, so that upright it has 10 rows of 14 columns."""

    def __str__(self) -> str:
        return self.name


# Making files ---------------------------------------------------------------------------------------------------------


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def grey_png(
    values: np.ndarray,
    *,
    bits: int = 8,
    interlaced: bool = False,
    missing: int = 0,
    colour_type: int = 0,
    before: bytes = b"",
) -> bytes:
    """A PNG of one sample per pixel, packed by hand: Pillow writes no interlaced ones, and fills every row."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = [row for top, left, down, right in passes for row in values[top::down, left::right] if row.size]
    lines = b"".join(b"\0" + _packed(row, bits) for row in rows[: len(rows) - missing])
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _packed(row: np.ndarray, bits: int) -> bytes:
    each = (row[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.astype(np.uint8).ravel()).tobytes()


def palette(label: np.ndarray = TRUTH, **options: object) -> bytes:
    picture = Image.fromarray(label)
    picture.putpalette(CLASSES.png_palette())
    return saved(picture, **options)


def grey(label: np.ndarray = TRUTH) -> bytes:
    return saved(Image.fromarray(label))


def coloured(label: np.ndarray = TRUTH, void: tuple[int, int, int] = VOID, mode: str = "RGB") -> bytes:
    table = np.array([one.colour for one in CLASSES.classes] + [void] * 253, np.uint8)
    picture = Image.fromarray(table[label])
    return saved(picture.convert(mode) if mode != "P" else picture.quantize(8, dither=Image.Dither.NONE))


def one_pixel(value: int, dtype: type = np.uint8) -> np.ndarray:
    label = TRUTH.astype(dtype)
    label[3, 5] = value
    return label


def renamed(dtype: type) -> np.ndarray:
    return np.vectorize(RAW_OF.get)(TRUTH).astype(dtype)


def flipped(data: bytes, at: int) -> bytes:
    """One bit of the file is the other one."""
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def idat(data: bytes) -> int:
    """Where the compressed data begins."""
    return data.index(b"IDAT") + 4


def animated() -> bytes:
    first, second = (Image.fromarray(one) for one in (TRUTH, WHOLE))
    return saved(first, save_all=True, append_images=[second])


def apart(data: bytes) -> bytes:
    """Its data in many pieces."""
    start = idat(data)
    size = int.from_bytes(data[start - 8 : start - 4])
    pieces = [data[start + at : start + min(at + 5, size)] for at in range(0, size, 5)]
    return data[: start - 8] + b"".join(chunk(b"IDAT", piece) for piece in pieces) + data[start + size + 4 :]


def announced(side: int) -> bytes:
    """A header that promises a square, and the data of another picture."""
    data = grey()
    start = data.index(b"IHDR")
    header = struct.pack(">II", side, side) + data[start + 12 : start + 17]
    return data[: start - 4] + chunk(b"IHDR", header) + data[start + 21 :]


def smoothed() -> np.ndarray:
    """Scaled down and up again with interpolation: every boundary has values of neither side."""
    small = Image.fromarray(WHOLE * np.uint8(2)).resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BILINEAR)
    return np.array(small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def rgb_of_16_bits() -> bytes:
    values = np.repeat(TRUTH[..., None].astype(">u2"), 3, axis=2)
    lines = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def array_of_numpy() -> bytes:
    out = io.BytesIO()
    np.save(out, TRUTH)
    return out.getvalue()


def image_file(orientation: int = 1) -> bytes:
    """The JPEG of a case: 10 rows of 14 columns once it is upright."""
    ramp = (np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3) % 251).astype(np.uint8)
    turned = Image.fromarray(ramp.transpose(1, 0, 2).copy() if orientation >= 5 else ramp)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(turned, "JPEG", exif=exif)


SCALED = np.array(Image.fromarray(TRUTH).resize((WIDTH * 2, HEIGHT * 2), Image.Resampling.NEAREST))
OPAQUE = np.full((HEIGHT, WIDTH), 255, np.uint8)

CASES = [
    # Right, in all the ways in which ids are saved.
    Case("grey of 8 bits", grey),
    Case("palette", palette),
    Case("palette of two bits", partial(palette, WHOLE, bits=2), truth=WHOLE),
    Case("palette of four bits", partial(palette, WHOLE, bits=4), truth=WHOLE),
    Case("palette of one bit", partial(palette, WHOLE % 2, bits=1), truth=WHOLE % 2),
    Case("palette with transparent classes", partial(palette, transparency=b"\xff\0\xff")),
    Case("palette of other colours than the class map's", lambda: saved(Image.fromarray(TRUTH).convert("P"))),
    Case("grey of one bit", partial(grey_png, WHOLE % 2, bits=1), truth=WHOLE % 2),
    Case("grey of two bits", partial(grey_png, WHOLE, bits=2), truth=WHOLE),
    Case("grey of four bits", partial(grey_png, WHOLE, bits=4), truth=WHOLE),
    Case("grey of 16 bits", lambda: saved(Image.fromarray(TRUTH.astype(np.uint16)))),
    Case("interlaced", partial(grey_png, TRUTH, interlaced=True)),
    Case("interlaced with two bits", partial(grey_png, WHOLE, bits=2, interlaced=True), truth=WHOLE),
    Case("in many pieces", lambda: apart(grey())),
    Case("with text, a gamma and a resolution", lambda: saved(Image.fromarray(TRUTH), dpi=(300, 300))),
    Case("with a gamma of its own", partial(grey_png, TRUTH, before=chunk(b"gAMA", struct.pack(">I", 100000)))),
    Case("with bytes behind its end", lambda: grey() + b"left over by an editor"),
    Case("animated, the first picture counts", animated),
    Case("a single class everywhere", lambda: grey(np.zeros_like(TRUTH)), truth=np.zeros_like(TRUTH)),
    Case("one pixel that is not ignored", partial(grey, ALMOST), truth=ALMOST),
    Case("upright, its image turned by EXIF", grey, orientation=6),
    Case("upright, its image mirrored by EXIF", grey, orientation=7),
    Case("upright, its image upside down by EXIF", grey, orientation=3),
    # Colours and other ids.
    Case("colours", coloured, judge=COLOURS),
    Case("colours in a palette", partial(coloured, mode="P"), judge=COLOURS),
    Case("colours with black for no class", partial(coloured, void=(0, 0, 0)), judge=COLOURS),
    Case("a colour that no class has", partial(coloured, void=(1, 2, 3)), "label_value", COLOURS),
    Case("colours with alpha", partial(coloured, mode="RGBA"), "label_format", COLOURS),
    Case("ids where colours were asked for", grey, "label_format", COLOURS),
    Case("colours where ids were asked for", coloured, "label_format"),
    Case("colours, one off by rounding", lambda: coloured(void=(223, 224, 192)), "label_value", COLOURS),
    Case("ids of its own", lambda: saved(Image.fromarray(renamed(np.uint16))), judge=OWN_IDS),
    Case("an id that its table does not have", lambda: grey(one_pixel(8)), "label_value", OWN_IDS),
    # The wrong size.
    Case("twice as large", lambda: grey(SCALED), "label_size"),
    Case("half as large", lambda: grey(TRUTH[::2, ::2].copy()), "label_size"),
    Case("a row too few", lambda: grey(TRUTH[:-1]), "label_size"),
    Case("turned by 90 degrees", lambda: grey(TRUTH.T.copy()), "label_size"),
    Case("as its image was stored, before EXIF", lambda: grey(TRUTH.T.copy()), "label_size", orientation=6),
    Case("one pixel", lambda: grey(TRUTH[:1, :1]), "label_size"),
    Case("a header of 2 gigapixels a side", lambda: announced(2**31 - 1), "label_size"),
    Case("a header of no pixels", lambda: announced(0), "label_size"),
    # The wrong values.
    Case("one id too many", lambda: grey(one_pixel(3)), "label_value"),
    Case("254", lambda: palette(one_pixel(254)), "label_value"),
    Case("0 and 255 of a mask of one class", partial(grey, MASK), truth=MASK),
    Case("ids from 1 on", lambda: grey(WHOLE + np.uint8(1)), "label_value"),
    Case("16 bits above 255", lambda: saved(Image.fromarray(one_pixel(258, np.uint16))), "label_value"),
    Case("16 bits scaled from 8", lambda: saved(Image.fromarray(TRUTH.astype(np.uint16) * 257)), "label_value"),
    Case("smoothed by scaling", lambda: grey(smoothed()), "label_value"),
    Case("ignored everywhere", lambda: grey(np.full_like(TRUTH, IGNORE)), "label_empty"),
    # The wrong kind.
    Case("RGB", lambda: saved(Image.fromarray(np.repeat(TRUTH[..., None], 3, axis=2))), "label_format"),
    Case("RGB of 16 bits", rgb_of_16_bits, "label_format"),
    Case(
        "grey with alpha",
        lambda: saved(Image.merge("LA", [Image.fromarray(o) for o in (TRUTH, OPAQUE)])),
        "label_format",
    ),
    Case("JPEG", lambda: saved(Image.fromarray(TRUTH), "JPEG", quality=100), "label_format"),
    Case("TIFF", lambda: saved(Image.fromarray(TRUTH), "TIFF"), "label_format"),
    Case("lossless WebP", lambda: saved(Image.fromarray(TRUTH).convert("RGB"), "WEBP", lossless=True), "label_format"),
    Case("GIF", lambda: saved(Image.fromarray(TRUTH), "GIF"), "label_format"),
    Case("numpy", array_of_numpy, "label_format"),
    Case("text", lambda: b"the label will be here soon, we promise", "label_format"),
    Case("a page of an error", lambda: b"<!DOCTYPE html><title>403 Forbidden</title>", "label_format"),
    Case("no bytes", lambda: b"", "label_format"),
    Case("only classes", lambda: b'{"classes": ["plant"]}', "label_format"),
    # Damaged.
    Case("cut in its header", lambda: grey()[:20], "label_format"),
    Case("cut in its data", lambda: grey()[: idat(grey()) + 9], "label_format"),
    Case("a row missing", partial(grey_png, TRUTH, missing=1), "label_format"),
    Case("all rows missing", partial(grey_png, TRUTH, missing=HEIGHT), "label_format"),
    Case("an interlaced row missing", partial(grey_png, TRUTH, interlaced=True, missing=1), "label_format"),
    Case("a bit flipped in its data", lambda: flipped(grey(), idat(grey()) + 6), "label_format"),
    Case("a bit flipped in its checksum", lambda: flipped(grey(), grey().index(b"IEND") - 6), "label_format"),
    Case("a first chunk that is no header", lambda: grey().replace(b"IHDR", b"iDOT", 1), "label_format"),
    # In the wrong place.
    Case("missing", lambda: None, "label_missing"),
    Case("under another stem", grey, "label_missing", file="{}_gt.png"),
    Case("under another suffix", lambda: saved(Image.fromarray(TRUTH), "BMP"), "label_missing", file="{}.bmp"),
    Case("under a suffix in capitals", grey, file="{}.PNG"),
    Case("in a folder of its own", grey, "label_missing", file="labels/{}.png"),
]
