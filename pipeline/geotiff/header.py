"""Header of a large TIFF, read by ranges: size, type, blocks, bands, and where its tiles or strips are.

In: a function that reads a range of a file. Out: `Header`, or an `InputError` that names why the file is not read as a
raster. Blocks themselves are not read here. Everything that a decoder would allocate is checked first: a file of 376
bytes can announce a tile of 3.4 GiB.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.geotiff import directory as tiff
from pipeline.geotiff.directory import Directories, Field, ReadRange
from pipeline.image.headers import looks_like
from pipeline.image.tiff import parse_nodata

TO_COG = "convert it with `gdal_translate -of COG IN OUT.tif`"
"""Hint for files of other kinds or layouts."""
MAX_BLOCK_BYTES = 64 * 2**20
"""Largest tile or strip, decoded: decoders allocate it whole, and a strip is decoded from its start for each window."""
MAX_METADATA_BYTES = 2**20
"""Largest XML of GDAL's metadata that is parsed."""
COMPRESSIONS = {
    **{1: "none", 5: "lzw", 7: "jpeg", 8: "deflate", 32773: "packbits", 32946: "deflate", 34887: "lerc"},
    **{34925: "lzma", 50000: "zstd", 50001: "webp"},
}
"""Compressions that GDAL decodes in the wheels of rasterio, by their number in the tag Compression."""
DTYPES = {(1, 8): "uint8", (1, 16): "uint16", (2, 16): "int16", (3, 32): "float32"}
"""Types that are read, by SampleFormat and BitsPerSample."""
_ALPHAS = (1, 2)  # ExtraSamples: associated and unassociated alpha
PALETTE, _RGB, _YCBCR = 3, 2, 6  # PhotometricInterpretation
_REDUCED, _MASK = 0b001, 0b100  # bits of NewSubfileType
_DECLARATIONS = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Tiles or strips of one page: a grid of blocks, for each plane."""

    height: int
    """Rows of the page, pixels."""
    width: int
    block_height: int
    """Rows of a tile or strip."""
    block_width: int
    """Columns of a tile; the width of the page for strips."""
    tiled: bool
    planes: int
    """Number of bands where each has blocks of its own; 1 where bands are interleaved."""
    offsets: Field
    counts: Field

    @property
    def rows(self) -> int:
        """Rows of blocks."""
        return -(-self.height // self.block_height)

    @property
    def columns(self) -> int:
        """Columns of blocks."""
        return -(-self.width // self.block_width)


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a raster: its first page, its mask page, and its overviews."""

    directories: Directories
    """To read values of fields."""
    fields: Mapping[int, Field]
    """Fields of the first page."""
    blocks: Blocks
    mask: Blocks | None
    """Blocks of the page that is the transparency mask of the first; None without."""
    mask_fields: Mapping[int, Field]
    overviews: tuple[Mapping[int, Field], ...]
    """Fields of the pages that are reduced copies of the first, in the order of the file."""
    dtype: str
    """A value of `DTYPES`."""
    count: int
    """Number of bands, an alpha included."""
    names: tuple[str | None, ...]
    """Description of each band in GDAL's metadata, or its colour where the page is tagged as RGB; None without."""
    alpha: int | None
    """Number of the band tagged as alpha, from 1."""
    photometric: int
    """PhotometricInterpretation; 1, grey, where the tag is missing."""
    nodata: float | None
    """Value of tag 42113; None without, or where its text is no number."""

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of all bands of a pixel, decoded."""
        return self.count * np.dtype(self.dtype).itemsize


def read_header(read: ReadRange, *, indices: bool = False) -> Header:
    """Read the header of a TIFF or BigTIFF.

    Args:
        read: reads a range of the file.
        indices: accept a palette, whose indices are then the samples, as those of labels are.

    Raises:
        InputError: `unsupported_format` for another format, compression or layout, `band_mismatch` for another type of
            samples, `block_too_large`, `truncated` or `corrupt`.
    """
    head = read(0, 1024)
    if (kind := looks_like(head)) != "tiff":
        raise InputError("unsupported_format", f"looks like {kind}; rasters are read from TIFF", hint=TO_COG)
    directories = Directories(read)
    pages = list(directories)
    if not pages:
        raise InputError("corrupt", "the TIFF has no directory")
    fields = pages[0]
    count = _number(directories, fields, tiff.SAMPLES, 1)
    dtype = _dtype(directories, fields, indices=indices)
    blocks = _blocks(directories, fields, count * np.dtype(dtype).itemsize)
    _check_compression(directories, fields)
    mask, mask_fields = _mask_page(directories, pages, blocks)
    extra = _numbers(directories, fields, tiff.EXTRA_SAMPLES, ())
    if len(extra) > count:
        raise InputError("corrupt", f"{len(extra)} extra samples of {count}")
    alpha = next((count - len(extra) + at + 1 for at, tag in enumerate(extra) if tag in _ALPHAS), None)
    return Header(
        directories=directories,
        fields=fields,
        blocks=blocks,
        mask=mask,
        mask_fields=mask_fields,
        overviews=tuple(page for page in pages[1:] if _kind(directories, page) & (_REDUCED | _MASK) == _REDUCED),
        dtype=dtype,
        count=count,
        names=_band_names(directories, fields, count),
        alpha=alpha,
        photometric=_number(directories, fields, tiff.PHOTOMETRIC, 1),
        nodata=parse_nodata(_text(directories, fields, tiff.NODATA)),
    )


def page_blocks(header: Header, fields: Mapping[int, Field]) -> Blocks:
    """Blocks of another page of the file, such as an overview. Raises as `read_header`."""
    return _blocks(header.directories, fields, header.bytes_per_pixel)


def overview_headers(header: Header) -> list[Header]:
    """Header of each overview whose samples are those of the first page, with its own mask page; the largest first.

    Raises:
        InputError: as `read_header`.
    """
    pages = list(header.directories)
    found = []
    for fields in header.overviews:
        if not _has_samples_of(header, fields):
            continue
        blocks = page_blocks(header, fields)
        mask, mask_fields = _mask_of_overview(header, pages, blocks)
        found.append(replace(header, fields=fields, blocks=blocks, mask=mask, mask_fields=mask_fields, overviews=()))
    return sorted(found, key=lambda one: -one.blocks.height * one.blocks.width)


def _has_samples_of(header: Header, fields: Mapping[int, Field]) -> bool:
    """True for a page that is decoded like the first one: as many samples of the same type and meaning."""
    tags = (tiff.SAMPLES, tiff.BITS, tiff.SAMPLE_FORMAT, tiff.PHOTOMETRIC, tiff.COMPRESSION)
    both = ([_numbers(header.directories, page, tag, (1,)) for tag in tags] for page in (header.fields, fields))
    return next(both) == next(both)


def _mask_of_overview(
    header: Header, pages: list[dict[int, Field]], blocks: Blocks
) -> tuple[Blocks | None, Mapping[int, Field]]:
    """Blocks and fields of the mask page of an overview: the reduced mask of its size and blocks; None without one."""
    for page in pages if header.mask is not None else ():
        if _kind(header.directories, page) & (_REDUCED | _MASK) == _REDUCED | _MASK:
            mask = _blocks(header.directories, page, 1)
            if _grid_of(mask) == _grid_of(blocks):
                return mask, page
    return None, {}


def _grid_of(blocks: Blocks) -> tuple[int, int, int, int, bool]:
    return blocks.height, blocks.width, blocks.block_height, blocks.block_width, blocks.tiled


def read_text(header: Header, tag: int) -> str | None:
    """Text of a field of the first page; None without it."""
    return _text(header.directories, header.fields, tag)


def check_blocks(header: Header, size: int) -> None:
    """Check that every block of the first page and its mask ends within a file of `size` bytes.

    Raises:
        InputError: `truncated`, or `corrupt` where a page lists fewer blocks than it must have.
    """
    for blocks in filter(None, (header.blocks, header.mask)):
        needed = blocks.rows * blocks.columns * blocks.planes
        listed = min(blocks.offsets.count, blocks.counts.count)
        if listed < needed:
            raise InputError("corrupt", f"the header announces {needed} tiles or strips, {listed} are listed")
        starts = header.directories.values(blocks.offsets).astype(np.uint64)
        sizes = header.directories.values(blocks.counts).astype(np.uint64)
        ends = starts[:needed] + sizes[:needed]
        if (behind := int((ends > size).sum())) and (sizes[:needed][ends > size]).any():
            raise InputError(
                "truncated", f"{behind} of {needed} tiles or strips end behind the end of the file, byte {size}"
            )


def _blocks(directories: Directories, fields: Mapping[int, Field], bytes_per_pixel: int) -> Blocks:
    width, height = (_number(directories, fields, tag, 0) for tag in (tiff.WIDTH, tiff.LENGTH))
    if min(width, height) < 1:
        raise InputError("too_small", f"the header announces {width}x{height} pixels")
    tiled = tiff.TILE_OFFSETS in fields
    if tiled:
        across, down = (_number(directories, fields, tag, 0) for tag in (tiff.TILE_WIDTH, tiff.TILE_LENGTH))
        tags = tiff.TILE_OFFSETS, tiff.TILE_COUNTS
    else:
        across, down = width, min(_number(directories, fields, tiff.ROWS_PER_STRIP, height), height)
        tags = tiff.STRIP_OFFSETS, tiff.STRIP_COUNTS
    if min(across, down) < 1 or not all(tag in fields for tag in tags):
        raise InputError("corrupt", "the header lists no tiles or strips")
    samples = _number(directories, fields, tiff.SAMPLES, 1)
    separate = samples > 1 and _number(directories, fields, tiff.PLANAR, 1) == 2
    size = across * down * bytes_per_pixel // (samples if separate else 1)
    if size > MAX_BLOCK_BYTES:
        what = "tile" if tiled else "strip"
        detail = f"a {what} of {across}x{down} pixels is {size / 2**20:.0f} MiB decoded, limit 64 MiB"
        raise InputError("block_too_large", detail, hint=TO_COG)
    return Blocks(height, width, down, across, tiled, samples if separate else 1, fields[tags[0]], fields[tags[1]])


def _check_compression(directories: Directories, fields: Mapping[int, Field]) -> None:
    code = _number(directories, fields, tiff.COMPRESSION, 1)
    if code not in COMPRESSIONS:
        names = ", ".join(dict.fromkeys(COMPRESSIONS.values()))
        detail = f"tiff with compression {code}; rasters are read with: {names}"
        raise InputError("unsupported_format", detail, hint=f"{TO_COG}, with -co COMPRESS=DEFLATE")


def _dtype(directories: Directories, fields: Mapping[int, Field], *, indices: bool) -> str:
    bits = set(_numbers(directories, fields, tiff.BITS, (1,)))
    kinds = set(_numbers(directories, fields, tiff.SAMPLE_FORMAT, (1,)))
    pair = min(kinds), min(bits)
    if len(bits) > 1 or len(kinds) > 1 or pair not in DTYPES:
        seen = " and ".join(f"{number}-bit" for number in sorted(bits)) + f" samples of format {sorted(kinds)}"
        detail = f"{seen}; rasters have {', '.join(DTYPES.values())}, the same in every band"
        raise InputError("band_mismatch", detail, hint="convert it with `gdal_translate -ot`")
    if _number(directories, fields, tiff.PHOTOMETRIC, 1) == PALETTE and not indices:
        raise InputError("band_mismatch", "a palette: its values are no colours", hint="`gdal_translate -expand rgb`")
    return DTYPES[pair]


def _mask_page(
    directories: Directories, pages: list[dict[int, Field]], blocks: Blocks
) -> tuple[Blocks | None, Mapping[int, Field]]:
    """Blocks and fields of the transparency mask of the first page, which must have the same blocks."""
    for page in pages[1:]:
        if _kind(directories, page) & (_REDUCED | _MASK) == _MASK:
            mask = _blocks(directories, page, 1)
            if _grid_of(mask) != _grid_of(blocks):
                raise InputError("unsupported_format", "a mask page whose tiles differ from the image's", hint=TO_COG)
            return mask, page
    return None, {}


def _band_names(directories: Directories, fields: Mapping[int, Field], count: int) -> tuple[str | None, ...]:
    """Names by GDAL's band descriptions, else red, green and blue where the page is tagged as RGB."""
    names: list[str | None] = [None] * count
    if _number(directories, fields, tiff.PHOTOMETRIC, 1) in (_RGB, _YCBCR) and count >= 3:
        names[:3] = ["red", "green", "blue"]
    for item in metadata_items(_text(directories, fields, tiff.GDAL_METADATA)):
        band = item.get("sample", "")
        if item.get("role") == "description" and band.isdigit() and int(band) < count and item.text:
            names[int(band)] = item.text.strip().lower()
    return tuple(names)


def metadata_items(xml: str | None) -> list[ElementTree.Element]:
    """Items of GDAL's metadata, tag 42112; none where the XML is damaged, too large, or declares entities."""
    if not xml or len(xml) > MAX_METADATA_BYTES or _DECLARATIONS.search(xml.encode()):
        return []
    try:
        return list(ElementTree.fromstring(xml).iter("Item"))  # noqa: S314  # without declarations nothing expands
    except ElementTree.ParseError:
        return []


def _kind(directories: Directories, fields: Mapping[int, Field]) -> int:
    return _number(directories, fields, tiff.SUBFILE, 0)


def _number(directories: Directories, fields: Mapping[int, Field], tag: int, default: int) -> int:
    return next(iter(_numbers(directories, fields, tag, (default,))), default)


def _numbers(
    directories: Directories, fields: Mapping[int, Field], tag: int, default: tuple[int, ...]
) -> tuple[int, ...]:
    """Values of a short field of integers."""
    if tag not in fields:
        return default
    field = fields[tag]
    if field.count > tiff.MAX_FIELDS:
        raise InputError("corrupt", f"tag {tag} has {field.count} values")
    values: npt.NDArray[np.integer] = directories.values(field)
    return tuple(int(value) for value in values)


def _text(directories: Directories, fields: Mapping[int, Field], tag: int) -> str | None:
    if tag not in fields or fields[tag].num_bytes > MAX_METADATA_BYTES:
        return None
    return directories.raw(fields[tag]).split(b"\0")[0].decode("utf-8", "replace")
