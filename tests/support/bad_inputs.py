"""Bad and odd images, made anew each time from plain code: no binary file is kept, and every run makes the same bytes.

`CASES` lists them with what must become of each under the default `DecodeConfig`: "ok", or an error code. `row` counts
as the project's fault table does:

    1 ends early       5 16 bits         9 EXIF orientation     13 huge, just over the limit    17 floating point
    2 empty            6 1 bit          10 1 pixel wide         14 contradicts itself           21 strange bands
    3 not an image     7 palette        11 odd sizes            15 several frames
    4 CMYK, YCCK       8 alpha          12 decompression bomb   16 other image formats
"""

import gzip
import io
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageCms

EPOCH = time.gmtime(0)
"""Instead of the time of writing, which a PDF holds."""


@dataclass(frozen=True)
class Case:
    """One input. `make` builds it in well under a second and a few MB, bombs included."""

    name: str
    suffix: str
    make: Callable[[], bytes]
    expected: str
    row: int

    def __str__(self):
        return self.name


# Pixels ---------------------------------------------------------------------------------------------------------------


def scene(height=40, width=56, bands=3):
    """(H, W, bands) uint8, or (H, W) for one band: slopes, an edge and a little noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(height * 7919 + width).integers(0, 24, (height, width, bands))
    slopes = np.stack([3 * x + 2 * y, 5 * y, 2 * x + 90 * (x > y), 255 - 4 * x], axis=-1)[..., :bands]
    pixels = (slopes % 232 + noise).astype(np.uint8)
    return pixels[..., 0] if bands == 1 else pixels


def deep(height=40, width=56, bands=1):
    """Like `scene` with 16 bits per sample: values from 0 to 60000, most below 4000."""
    values = (scene(height, width, bands).astype(np.float64) / 255) ** 4 * 60000
    return values.astype(np.uint16)


def save(pixels, kind, mode=None, **options):
    """Encode an array, or an image, with Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def with_alpha(bands=4):
    """(H, W, bands) with all alphas from 0 to 255, some of each end."""
    pixels = scene(bands=4)[..., :bands].copy()
    pixels[..., -1] = np.clip(np.arange(56) * 6 - 30, 0, 255)
    return pixels


def oriented(kind, orientation, **options):
    """A scene whose EXIF says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(scene(), kind, exif=exif, **options)


# PNG, by chunk --------------------------------------------------------------------------------------------------------


def chunk(name, body, crc=None):
    return (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) if crc is None else crc)
    )


def png(width, height, depth, colour, idat, *extra, interlace=0, ihdr_crc=None):
    """A PNG from its parts: `idat` is the compressed stream, `extra` are whole chunks before it."""
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace), ihdr_crc)
    return b"\x89PNG\r\n\x1a\n" + ihdr + b"".join(extra) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def png_rows(samples):
    """Compress (H, ...) samples as PNG scanlines without a filter."""
    rows = samples.astype(samples.dtype.newbyteorder(">")).tobytes()
    step = len(rows) // len(samples)
    return zlib.compress(b"".join(b"\0" + rows[at : at + step] for at in range(0, len(rows), step)))


def zeros_deflated(size):
    """A zlib stream of `size` zero bytes, without ever holding or compressing them all.

    A fully flushed deflate block does not refer to what came before it, so one megabyte's block can be repeated; the
    Adler-32 of n zeros is known (RFC 1950, section 8.2: s1 = 1, s2 = n mod 65521).
    """
    whole, rest = divmod(size, 2**20)
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = block.compress(bytes(2**20)) + block.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = last.compress(bytes(rest)) + last.flush()
    return b"\x78\xda" + megabyte * whole + tail + struct.pack(">HH", size % 65521, 1)


def zeros_png(width, height):
    """Black 8-bit grey: about a thousand pixels per byte."""
    return png(width, height, 8, 0, zeros_deflated((width + 1) * height))


def text_bomb(name):
    """A good small PNG with a chunk that unpacks to 200 MB."""
    heads = {b"iCCP": b"profile\0\0", b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0"}
    return png(56, 40, 8, 2, png_rows(scene()), chunk(name, heads[name] + zeros_deflated(200 * 2**20)))


def with_trns(depth, colour, samples, trns):
    height, width = samples.shape[:2]
    return png(width, height, depth, colour, png_rows(samples), chunk(b"tRNS", trns))


def grey4_with_trns():
    """4-bit grey, value 3 transparent, with as many samples of each value."""
    values = np.arange(40 * 56).reshape(40, 56) % 16
    packed = (values[:, ::2] << 4 | values[:, 1::2]).astype(np.uint8)
    return png(56, 40, 4, 0, png_rows(packed), chunk(b"tRNS", b"\0\3"))


# TIFF, by tag ---------------------------------------------------------------------------------------------------------


def tiff(samples, *, photometric=1, tags=(), planar=False, after=b""):
    """A little-endian TIFF with one uncompressed strip per plane, then its directory, at the end of the file.

    samples: (H, W) or (H, W, bands) of any type. tags: (number, *values) that replace or join the usual ones. `after`
    follows the strips.
    """
    stack = samples if samples.ndim == 3 else samples[..., None]
    height, width, bands = stack.shape
    planes = [stack[..., band] for band in range(bands)] if planar else [stack]
    strips = [plane.astype(plane.dtype.newbyteorder("<")).tobytes() for plane in planes]
    offsets = np.cumsum([8, *map(len, strips)]).tolist()
    sample_format = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    extra = bands - (3 if photometric == 2 else 1)
    fields = {
        256: (width,),
        257: (height,),
        258: (samples.dtype.itemsize * 8,) * bands,
        259: (1,),
        262: (photometric,),
        273: tuple(offsets[:-1]),
        277: (bands,),
        278: (height,),
        279: tuple(map(len, strips)),
        284: (2 if planar else 1,),
        339: (sample_format,) * bands,
    } | ({338: (0,) * extra} if extra > 0 else {})
    fields |= {number: values for number, *values in tags}
    data = b"".join(strips) + after
    directory = ifd(fields, at=8 + len(data))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def ifd(fields, *, at, following=0):
    """An image file directory of LONG values that starts `at`, and its values behind it (TIFF 6.0, section 2)."""
    behind = at + 2 + 12 * len(fields) + 4
    entries, values = b"", b""
    for number, numbers in sorted(fields.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        where = packed if len(packed) == 4 else struct.pack("<I", behind + len(values))
        values += packed if len(packed) > 4 else b""
        entries += struct.pack("<HHI", number, 4, len(numbers)) + where
    return struct.pack("<H", len(fields)) + entries + struct.pack("<I", following) + values


def taller(data):
    """Double the height of 40 that a TIFF written by libtiff announces."""
    entry = struct.pack("<HHI", 257, 3, 1)
    return data.replace(entry + struct.pack("<I", 40), entry + struct.pack("<I", 80))


def tiff_with_overview():
    """Two pages, the second marked as a reduced copy of the first, as cloud-optimised GeoTIFFs have them."""
    pages = [Image.fromarray(scene()), Image.fromarray(scene(20, 28))]
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    return save(pages[0], "TIFF", save_all=True, append_images=pages[1:])


def tiff_with_broken_exif():
    """A good TIFF whose pointer to its EXIF directory leads into the pixels."""
    return tiff(scene(), photometric=2, tags=[(34665, 9)])


def tiff_all_nan():
    return tiff(np.full((40, 56), np.nan, np.float32))


def float_with_holes():
    """(H, W) float32 heights with NaN, both infinities and a wide range."""
    heights = scene(bands=1).astype(np.float32) * 1e3 - 5e4
    heights[:5], heights[5, :9], heights[6, :9] = np.nan, np.inf, -np.inf
    return heights


# JPEG, by segment -----------------------------------------------------------------------------------------------------

INK = np.array([[200, 40, 90, 20], [0, 0, 0, 0], [255, 0, 0, 0], [10, 250, 30, 120]], np.uint8)
"""Four CMYK colours, 0 no ink and 255 full; the CMYK cases show them as four vertical bands of 16 pixels."""


def ink_bands():
    return np.repeat(INK, 16, axis=0)[None].repeat(32, axis=0)


def cmyk_jpeg(adobe=True):
    """CMYK as Photoshop writes it: inverted, with an Adobe marker that says no transform."""
    data = save(Image.fromarray(ink_bands(), "CMYK"), "JPEG", quality=100, subsampling=0)
    return data if adobe else without_adobe(data)


def without_adobe(data):
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    return data[:at] + data[at + 16 :]


def ycck_jpeg():
    """The same colours as YCCK: Y, Cb and Cr of the inks as if they were light, then inverted black.

    The samples are stored through the CMYK encoder, which inverts; only the marker's transform flag is changed to 2.
    """
    inks = ink_bands()
    light = np.asarray(Image.fromarray(inks[..., :3].copy()).convert("YCbCr"))
    stored = np.dstack([light, 255 - inks[..., 3]])
    data = bytearray(save(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def jpeg_of_size(width, height):
    """A small JPEG whose header announces another size."""
    data = bytearray(save(scene(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_many_scans():
    """A progressive JPEG whose last scan comes a thousand times."""
    data = save(scene(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 1000 + data[-2:]


def jpeg_with_exif(body):
    segment = b"Exif\0\0" + body
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + save(scene(), "JPEG")[2:]


def with_preview():
    """A camera's JPEG with a second, smaller picture behind it (CIPA DC-007 multi-picture format)."""
    return save(scene(), "MPO", save_all=True, append_images=[Image.fromarray(scene(20, 28))])


# Others ---------------------------------------------------------------------------------------------------------------


def webp_canvas(width, height):
    """A WebP whose extended header announces a canvas of any size around a small image."""
    body = save(scene(), "WEBP", lossless=True)[12:]
    head = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + struct.pack("<I", width - 1)[:3]
        + struct.pack("<I", height - 1)[:3]
    )
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(body)) + b"WEBP" + head + body


def frames(kind, **options):
    later = [Image.fromarray(255 - scene()), Image.fromarray(scene() // 2)]
    return save(scene(), kind, save_all=True, append_images=later, **options)


def lab_tiff():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(scene()), to_lab)
    lab.info.clear()  # the profile in it holds the time of day
    return save(lab, "TIFF")


def cut(make, share=0.5):
    """The first `share` of what `make` makes."""
    data = make()
    return data[: int(len(data) * share)]


JPEG, PNG, WEBP, TIFF = (partial(save, scene(), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF"))
DEFLATED = partial(save, scene(), "TIFF", compression="tiff_adobe_deflate")
PALETTE = Image.fromarray(scene()).quantize(16)
FITS_HEAD = (
    b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + b"END".ljust(2720)
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>'
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"


def flip(data, at):
    """Change one bit."""
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def blot(data, start, stop):
    """Overwrite some bytes."""
    return data[:start] + b"\xaa" * (stop - start) + data[stop:]


CASES = [
    Case("jpeg cut in half", "jpg", partial(cut, JPEG), "truncated", 1),
    Case("jpeg cut in its header", "jpg", partial(cut, JPEG, 0.1), "truncated", 1),
    Case("jpeg without its last bytes", "jpg", partial(cut, JPEG, 0.97), "truncated", 1),
    Case("progressive jpeg cut", "jpg", partial(cut, partial(JPEG, progressive=True), 0.7), "truncated", 1),
    Case("jpeg of its first 3 bytes", "jpg", lambda: b"\xff\xd8\xff", "truncated", 1),
    Case("png cut in half", "png", partial(cut, PNG), "truncated", 1),
    Case("png cut in its header", "png", lambda: PNG()[:20], "truncated", 1),
    Case("webp cut in half", "webp", partial(cut, WEBP), "truncated", 1),
    Case("webp cut in its header", "webp", lambda: WEBP()[:18], "truncated", 1),
    Case("tiff cut in half", "tif", partial(cut, TIFF), "truncated", 1),
    Case("compressed tiff cut", "tif", partial(cut, DEFLATED, 0.7), "truncated", 1),
    Case("tiff cut before its directory", "tif", partial(cut, partial(tiff, scene(), photometric=2)), "truncated", 1),
    Case("no bytes", "jpg", bytes, "empty", 2),
    Case("html page", "jpg", lambda: HTML, "not_an_image", 3),
    Case("text", "png", lambda: b"the upload failed, try again\n", "not_an_image", 3),
    Case("json", "jpg", lambda: b'{"error": "NoSuchKey"}', "not_an_image", 3),
    Case(
        "git lfs pointer",
        "png",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "not_an_image",
        3,
    ),
    Case("gzip of a png", "png", lambda: gzip.compress(PNG(), mtime=0), "not_an_image", 3),
    Case("noise", "jpg", lambda: scene().tobytes(), "not_an_image", 3),
    Case("zeros", "jpg", lambda: bytes(5000), "not_an_image", 3),
    Case("one byte", "jpg", lambda: b"\xff", "not_an_image", 3),
    Case("cmyk jpeg", "jpg", cmyk_jpeg, "ok", 4),
    Case("cmyk jpeg without adobe marker", "jpg", partial(cmyk_jpeg, adobe=False), "ok", 4),
    Case("ycck jpeg", "jpg", ycck_jpeg, "ok", 4),
    Case("cmyk tiff", "tif", lambda: save(Image.fromarray(ink_bands(), "CMYK"), "TIFF"), "ok", 4),
    Case("lab tiff", "tif", lab_tiff, "ok", 4),
    Case("ycbcr tiff", "tif", lambda: save(scene(), "TIFF", "YCbCr"), "ok", 4),
    Case("grey16 png", "png", lambda: save(deep(), "PNG"), "ok", 5),
    Case("grey16 tiff", "tif", lambda: save(deep(), "TIFF"), "ok", 5),
    Case("grey16 big-endian tiff", "tif", lambda: save(deep().astype(">u2"), "TIFF"), "ok", 5),
    Case("grey16 compressed tiff", "tif", lambda: save(deep(), "TIFF", compression="tiff_lzw"), "ok", 5),
    Case("grey16 png with trns", "png", lambda: with_trns(16, 0, deep(), struct.pack(">H", deep()[3, 3])), "ok", 5),
    Case(
        "grey16 alpha png", "png", lambda: png(56, 40, 16, 4, png_rows(with_alpha(2).astype(np.uint16) * 257)), "ok", 5
    ),
    Case("rgb16 png", "png", lambda: png(56, 40, 16, 2, png_rows(deep(bands=3))), "ok", 5),
    Case(
        "rgb16 png with trns",
        "png",
        lambda: with_trns(16, 2, deep(bands=3), deep(bands=3)[3, 3].astype(">u2").tobytes()),
        "ok",
        5,
    ),
    Case("rgba16 png", "png", lambda: png(56, 40, 16, 6, png_rows(with_alpha().astype(np.uint16) * 257)), "ok", 5),
    Case("grey16 tiff, white is zero", "tif", lambda: tiff(deep(), photometric=0), "ok", 5),
    Case("rgb16 tiff", "tif", lambda: tiff(deep(bands=3), photometric=2), "ok", 5),
    Case("1-bit png", "png", lambda: save(scene(bands=1), "PNG", "1"), "ok", 6),
    Case("1-bit fax tiff", "tif", lambda: save(scene(bands=1), "TIFF", "1", compression="group4"), "ok", 6),
    Case("palette png", "png", lambda: save(PALETTE, "PNG"), "ok", 7),
    Case("palette png with one hidden colour", "png", lambda: save(PALETTE, "PNG", transparency=3), "ok", 7),
    Case(
        "palette png with alphas", "png", lambda: save(PALETTE, "PNG", transparency=bytes(range(0, 256, 17))), "ok", 7
    ),
    Case("palette tiff", "tif", lambda: save(PALETTE, "TIFF"), "ok", 7),
    Case("grey png", "png", lambda: save(scene(bands=1), "PNG"), "ok", 7),
    Case(
        "grey png with trns",
        "png",
        lambda: with_trns(8, 0, scene(bands=1), b"\0" + scene(bands=1)[3, 3].tobytes()),
        "ok",
        8,
    ),
    Case("grey4 png with trns", "png", grey4_with_trns, "ok", 8),
    Case("rgb png with trns", "png", lambda: with_trns(8, 2, scene(), scene()[3, 3].astype(">u2").tobytes()), "ok", 8),
    Case("rgba png", "png", lambda: save(with_alpha(), "PNG"), "ok", 8),
    Case("la png", "png", lambda: save(with_alpha(2), "PNG"), "ok", 8),
    Case("rgba webp", "webp", lambda: save(with_alpha(), "WEBP", lossless=True, exact=True), "ok", 8),
    Case("rgba tiff", "tif", lambda: save(with_alpha(), "TIFF"), "ok", 8),
    Case("rgba png, all opaque", "png", lambda: save(scene(), "PNG", "RGBA"), "ok", 8),
    Case(
        "rgba png, all transparent", "png", lambda: save(np.zeros((40, 56, 4), np.uint8), "PNG"), "no_valid_pixels", 8
    ),
    *(Case(f"jpeg turned {way}", "jpg", partial(oriented, "JPEG", way), "ok", 9) for way in range(1, 9)),
    *(
        Case(f"{kind} turned 6", suffix, partial(oriented, kind, 6), "ok", 9)
        for kind, suffix in (("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"))
    ),
    Case("jpeg turned 0", "jpg", partial(oriented, "JPEG", 0), "ok", 9),
    Case("jpeg turned 700", "jpg", partial(oriented, "JPEG", 700), "ok", 9),
    Case("exif of noise", "jpg", lambda: jpeg_with_exif(scene().tobytes()[:600]), "ok", 9),
    Case("exif cut short", "jpg", lambda: jpeg_with_exif(b"II*\0\x08\0\0\0\x09\0\x12\x01"), "ok", 9),
    Case("tiff with broken exif", "tif", tiff_with_broken_exif, "ok", 9),
    Case("1x1", "png", lambda: save(scene(1, 1), "PNG"), "ok", 10),
    Case("1 wide strip", "png", lambda: save(scene(64, 1), "PNG"), "ok", 10),
    Case("1 high strip", "jpg", lambda: save(scene(1, 64), "JPEG"), "ok", 10),
    Case("511x513", "jpg", lambda: save(scene(513, 511), "JPEG"), "ok", 11),
    Case("7x3000", "png", lambda: save(scene(3000, 7), "PNG"), "ok", 11),
    Case("30000x30000 png", "png", partial(zeros_png, 30000, 30000), "too_many_pixels", 12),
    Case("16383x16383 webp", "webp", partial(webp_canvas, 16383, 16383), "too_many_pixels", 12),
    Case("60000x60000 jpeg", "jpg", partial(jpeg_of_size, 60000, 60000), "too_many_pixels", 12),
    Case(
        "60000x60000 tiff",
        "tif",
        lambda: tiff(scene(bands=1), tags=[(256, 60000), (257, 60000)]),
        "too_many_pixels",
        12,
    ),
    Case(
        "small tiff of one huge tile",
        "tif",
        lambda: tiff(scene(bands=1), tags=[(322, 60000), (323, 60000), (324, 8)]),
        "too_many_pixels",
        12,
    ),
    Case("10001x10000 png", "png", partial(zeros_png, 10001, 10000), "too_many_pixels", 13),
    Case("png larger than its data", "png", lambda: png(56, 4000, 8, 2, png_rows(scene())), "corrupt", 14),
    Case("jpeg larger than its data", "jpg", partial(jpeg_of_size, 4000, 4000), "corrupt", 14),
    Case("webp canvas larger than its image", "webp", partial(webp_canvas, 400, 400), "corrupt", 14),
    Case(
        "tiff larger than its data",
        "tif",
        lambda: tiff(scene(), photometric=2, tags=[(257, 4000), (278, 4000)]),
        "corrupt",
        14,
    ),
    Case("tiff taller than its strips", "tif", lambda: tiff(scene(), photometric=2, tags=[(257, 900)]), "corrupt", 14),
    Case("compressed tiff with its height changed", "tif", lambda: taller(DEFLATED()), "corrupt", 14),
    Case(
        "planar tiff without its third plane",
        "tif",
        lambda: tiff(scene(), photometric=2, planar=True, tags=[(273, 8, 2248), (279, 2240, 2240)]),
        "corrupt",
        14,
    ),
    Case(
        "tiff strips behind its end", "tif", lambda: tiff(scene(), photometric=2, tags=[(273, 10**6)]), "truncated", 14
    ),
    Case(
        "png with bad header checksum", "png", lambda: png(56, 40, 8, 2, png_rows(scene()), ihdr_crc=1), "corrupt", 14
    ),
    Case("png with a wrong bit", "png", lambda: flip(PNG(), 300), "corrupt", 14),
    Case("webp with wrong bytes", "webp", lambda: blot(WEBP(lossless=True), 30, 60), "corrupt", 14),
    Case("png that inflates to 900 MB", "png", lambda: png(56, 40, 8, 2, zeros_deflated(900 * 10**6)), "ok", 14),
    Case("png of 0 width", "png", lambda: png(0, 40, 8, 2, png_rows(scene())), "too_small", 14),
    Case("tiff of 0 height", "tif", lambda: tiff(scene(), photometric=2, tags=[(257, 0)]), "too_small", 14),
    *(
        Case(f"png with {name.decode()} bomb", "png", partial(text_bomb, name), "corrupt", 14)
        for name in (b"iCCP", b"zTXt", b"iTXt")
    ),
    Case("jpeg of 1000 scans", "jpg", jpeg_of_many_scans, "corrupt", 14),
    Case("animated webp", "webp", partial(frames, "WEBP"), "multi_frame", 15),
    Case("animated png", "png", partial(frames, "PNG"), "multi_frame", 15),
    Case("tiff of 3 pages", "tif", partial(frames, "TIFF"), "multi_frame", 15),
    Case("tiff with overview", "tif", tiff_with_overview, "ok", 15),
    Case("jpeg with preview", "jpg", with_preview, "ok", 15),
    Case("animated gif", "gif", partial(frames, "GIF"), "unsupported_format", 15),
    Case("gif", "jpg", lambda: save(scene(), "GIF"), "unsupported_format", 16),
    Case("bmp", "bmp", lambda: save(scene(), "BMP"), "unsupported_format", 16),
    Case("svg", "svg", lambda: SVG, "unsupported_format", 16),
    Case(
        "svg with xml header",
        "png",
        lambda: b'<?xml version="1.0"?>\n<!-- drawn by hand -->\n' + SVG,
        "unsupported_format",
        16,
    ),
    Case("pdf", "pdf", lambda: save(scene(), "PDF", creationDate=EPOCH, modDate=EPOCH), "unsupported_format", 16),
    Case(
        "eps", "jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "unsupported_format", 16
    ),
    Case("fits", "tif", lambda: FITS_HEAD, "unsupported_format", 16),
    Case(
        "psd",
        "psd",
        lambda: struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 40, 56, 8, 3) + bytes(14),
        "unsupported_format",
        16,
    ),
    Case("jpeg 2000", "jp2", lambda: save(scene(), "JPEG2000"), "unsupported_format", 16),
    Case("avif", "avif", lambda: b"\0\0\0\x20ftypavif" + bytes(20), "unsupported_format", 16),
    Case("heic", "jpg", lambda: b"\0\0\0\x18ftypheic" + bytes(12), "unsupported_format", 16),
    Case("float tiff with nan", "tif", lambda: save(float_with_holes(), "TIFF"), "ok", 17),
    Case(
        "float compressed tiff with nan",
        "tif",
        lambda: save(float_with_holes(), "TIFF", compression="tiff_lzw"),
        "ok",
        17,
    ),
    Case("float tiff, all nan", "tif", tiff_all_nan, "no_valid_pixels", 17),
    Case("float64 tiff", "tif", lambda: tiff(float_with_holes().astype(np.float64)), "ok", 17),
    Case("int16 tiff below zero", "tif", lambda: tiff(deep().astype(np.int16) - 100), "band_mismatch", 21),
    Case("int8 tiff below zero", "tif", lambda: tiff(scene(bands=1).view(np.int8)), "band_mismatch", 21),
    Case("uint32 tiff", "tif", lambda: tiff(deep().astype(np.uint32) * 70000), "band_mismatch", 21),
    Case("8-band tiff", "tif", lambda: tiff(np.dstack([scene(), scene(), scene()[..., :2]])), "band_mismatch", 21),
    Case("rgb16 tiff in planes", "tif", lambda: tiff(deep(bands=3), photometric=2, planar=True), "ok", 21),
    Case("tiff of unknown compression", "tif", lambda: tiff(scene(), tags=[(259, 34887)]), "unsupported_format", 21),
    Case("2 float bands tiff", "tif", lambda: tiff(np.ones((40, 56, 2), np.float32)), "band_mismatch", 21),
]
