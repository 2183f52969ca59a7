"""Shapefiles: the files that belong together, put into one zip archive in memory that GDAL reads.

In: the bytes of a .shp and of the files beside it, or a zip archive of them. Out: a zip archive of these files alone,
under names of our own. Nothing is unpacked to disk, and no name of an archive becomes a path. Lengths are checked here,
since GDAL reads a file that ends early as one of fewer features (ESRI Shapefile Technical Description, 1998, p. 4 f.;
dBASE III's header: number of rows at byte 4, its own length at byte 8, that of a row at byte 10).
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping

from pipeline.errors import ConfigError

MAGIC = b"\x00\x00\x27\x0a"
"""First bytes of a .shp and a .shx: 9994, big-endian."""
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
"""First bytes of a zip archive, and of an empty one."""
NEEDED = (".shx", ".dbf")
"""Suffixes of the files that a .shp cannot do without."""
ALSO_READ = (".prj", ".cpg")
"""Suffixes of the files with its coordinate system and the encoding of its text."""
_MOST_BYTES = 4 * 2**30
"""Unpacked bytes of an archive: the .shp and the .dbf of a shapefile have 2 GiB each at most."""
_NAME = "features"


def bundle(shp: bytes, beside: Mapping[str, bytes], name: str) -> bytes:
    """Zip archive of a shapefile.

    Args:
        shp: the .shp.
        beside: the files beside it, by suffix in lower case.
        name: of the .shp, for messages.

    Raises:
        ConfigError: a file that is needed is missing, ends early, or is of another format.
    """
    if missing := [suffix for suffix in NEEDED if suffix not in beside]:
        hint = f"a shapefile is several files: copy {' and '.join(missing)} beside it, or give all in one .zip"
        raise ConfigError(f"{name} lacks its {' and '.join(missing)}", hint=hint)
    _check_length(shp, ".shp", name)
    _check_length(beside[".shx"], ".shx", name)
    rows = _rows(beside[".dbf"], name)
    if rows != (shapes := (len(beside[".shx"]) - 100) // 8):
        raise ConfigError(f"{name} is damaged: its .shx has {shapes} features, its .dbf {rows}")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_NAME}.shp", shp)
        for suffix in (*NEEDED, *ALSO_READ):
            if suffix in beside:
                archive.writestr(f"{_NAME}{suffix}", beside[suffix])
    return out.getvalue()


def unpack(data: bytes, name: str) -> tuple[bytes, dict[str, bytes]]:
    """The .shp of a zip archive with one shapefile, and the files beside it by suffix in lower case.

    Raises:
        ConfigError: it is damaged or encrypted, holds none or several, or more than 4 GiB.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
            stem, suffix = _only_shapefile(list(entries), name)
            members = {".shp": entries[stem + suffix]}
            for file, entry in entries.items():
                ending = file[-4:].lower()
                if file[:-4] == stem and ending in (*NEEDED, *ALSO_READ):
                    members[ending] = entry
            if (total := sum(entry.file_size for entry in members.values())) > _MOST_BYTES:
                raise ConfigError(f"{name} has {total} bytes unpacked, limit {_MOST_BYTES}")
            files = {ending: _member(archive, entry) for ending, entry in members.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read as a zip archive: {error}") from error
    return files.pop(".shp"), files


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Bytes of a member, no more than its size says: `ZipFile.read` would unpack all before it looks."""
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def _only_shapefile(files: list[str], name: str) -> tuple[str, str]:
    """Name without suffix, and suffix, of the only .shp of an archive."""
    found = [file for file in files if file.lower().endswith(".shp") and not _of_finder(file)]
    if len(found) != 1:
        listed = ", ".join(repr(file) for file in (found or files)[:5]) or "no file"
        hint = "an archive holds the files of one shapefile; other formats are given without an archive"
        raise ConfigError(f"{name} holds {len(found)} shapefiles: {listed}", hint=hint)
    return found[0][:-4], found[0][-4:]


def _of_finder(file: str) -> bool:
    """True for the files of macOS's Finder that lie beside each file of its archives."""
    return file.startswith("__MACOSX/") or file.rpartition("/")[2].startswith("._")


def _check_length(data: bytes, suffix: str, name: str) -> None:
    if data[:4] != MAGIC or len(data) < 100:
        raise ConfigError(f"{name} is no shapefile: its {suffix} begins with {data[:16]!r}")
    said = 2 * int(struct.unpack(">i", data[24:28])[0])
    if said != len(data):
        raise ConfigError(f"{name} is damaged: its {suffix} has {len(data)} bytes, its header says {said}")


def _rows(dbf: bytes, name: str) -> int:
    """Number of rows of a .dbf."""
    if len(dbf) < 32:
        raise ConfigError(f"{name} is damaged: its .dbf has {len(dbf)} bytes")
    rows, header, row = struct.unpack("<IHH", dbf[4:12])
    if len(dbf) < header + rows * row:
        raise ConfigError(f"{name} is damaged: its .dbf has {len(dbf)} bytes, its header says {header + rows * row}")
    return int(rows)
