"""Opened run: what the server holds of a run, and the thread that keeps its index up to date."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any

from pipeline.errors import ConfigError, InputError, JobError
from pipeline.geotiff.overview import TilePlace, tile_ids, tile_size
from pipeline.records import ROW_SCHEMA, UInt8
from pipeline.run import folder, parts
from pipeline.run.progress import Snapshot, read_progress
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.view.index import RunIndex
from pipeline.view.originals import Originals
from pipeline.view.pairs import check_comparable, pair_rows
from pipeline.view.pictures import IMAGE_QUALITY, Kind, Pictures, RowPlace, jpeg
from pipeline.view.rasters import Rasters
from pipeline.view.thumbnails import Thumbnails
from pipeline.view.window_masks import tile_of_windows

log = logging.getLogger(__name__)

REFRESH_S = 3.0
"""Seconds between two looks for new parts of a run that goes on."""
DECODERS = 4
"""Pictures decoded at a time; the others wait, so that a screen of large photos does not fill the memory."""
TILE_READERS = 2
"""Tiles of sources decoded at a time: one without an overview near its level takes about 300 MB meanwhile."""
TEXT_COLUMNS = [name for name in ROW_SCHEMA.names if ROW_SCHEMA.field(name).type != "binary" and name != "judgements"]
"""Columns of a row that are shown as text."""


class OpenedRun:
    """A run with its index, pictures and cache."""

    def __init__(
        self, url: Url, *, cache: Path, max_cache_bytes: int, source: Sequence[str], labels: str | None
    ) -> None:
        """Open a run, finished or not.

        Args:
            url: folder of the run.
            cache: folder for index, thumbnails and tiles.
            max_cache_bytes: limit of thumbnails and tiles.
            source: where the run's sources are now; empty where they were.
            labels: place of labels; None as the run had it.

        Raises:
            ConfigError: the run has no part yet.
            StorageError: the run is damaged.
        """
        names = parts.list_parts(url)
        if not names:
            raise ConfigError(f"{url} has no committed rows", hint="wait for the first part, or check the URL")
        self.url, self.classes, self.source = url, parts.read_classes(url, names[0]), source
        self.originals = Originals(url, self.classes, source=source, labels=labels)
        self.index = RunIndex(url, self.classes, cache=cache, sources=self.originals.sources())
        self.pictures = Pictures(url, self.classes, self.originals)
        self.other: OpenedRun | None = None
        """Run that this one is compared with."""
        self.problem: str | None = None
        """Why the index cannot be filled further; None while it can."""
        self._thumbnails = Thumbnails(cache / "thumbnails", max_bytes=max_cache_bytes)
        self._decoding, self._reading_tiles, self._closed = Semaphore(DECODERS), Semaphore(TILE_READERS), Event()
        self._filler = Thread(target=self._keep_filled, name="index", daemon=True)

    def start(self) -> None:
        """Begin to fill the index, in a thread of its own."""
        self._filler.start()

    def compare_with(self, other: "OpenedRun") -> None:
        """Show another run's rows of the same keys beside these; before `start`, and for a run that is not started.

        Raises:
            ConfigError: the class maps differ.
        """
        check_comparable(self.index, other.index)
        pair_rows(self.index, other.index)  # of rows that an earlier process has indexed; its columns are there at once
        self.other = other

    def close(self) -> None:
        """Stop filling, and close the index."""
        self._closed.set()
        if self._filler.is_alive():
            self._filler.join()
        self.index.close()
        if self.other:
            self.other.index.close()

    @property
    def finished(self) -> bool:
        """True when the run has written its manifest."""
        return objects.exists(self.url / folder.SUCCESS)

    def progress(self) -> Snapshot | None:
        """Latest progress of the run's driver."""
        return read_progress(self.url)

    def place(self, row_id: int) -> RowPlace:
        """Place of a row in the parts; LookupError for a number that the index does not have."""
        sql = "SELECT name, row FROM rows JOIN parts ON part = number WHERE id = ?"
        found = self.index.fetch(sql, [row_id])
        if not found:
            raise LookupError(f"no row {row_id}")
        return RowPlace(*found[0])

    def row(self, row_id: int) -> dict[str, Any]:
        """Every column of a row but its pictures."""
        place = self.place(row_id)
        return parts.read_row(self.url, place.part, place.row, TEXT_COLUMNS)

    def ids(self, keys: Sequence[str]) -> dict[str, int]:
        """Numbers of the rows of some keys, in their order; LookupError for a key that the index does not have."""
        sql = "SELECT key, id FROM rows WHERE key IN (SELECT unnest(?))"
        found = dict(self.index.fetch(sql, [list(keys)]))
        if absent := [key for key in keys if key not in found]:
            raise LookupError(f"no row {absent[0]!r} among those that the index has by now")
        return {key: found[key] for key in keys}

    def other_place(self, row_id: int) -> RowPlace:
        """Place of the other run's row of the same key; LookupError where it has none."""
        other_ids = self.index.fetch("SELECT other_id FROM shown WHERE id = ?", [row_id]) if self.other else []
        if not self.other or not other_ids or other_ids[0][0] is None:
            raise LookupError("the other run has no row of this key")
        return self.other.place(other_ids[0][0])

    def thumbnail(self, row_id: int, kind: Kind) -> bytes:
        """JPEG of a row, from the cache or made now; raises as `Pictures.thumbnail`."""
        place = self.place(row_id)

        def make() -> bytes:
            with self._decoding:
                return self.pictures.thumbnail(place, kind)

        return self._thumbnails.get(f"{self.url.place}\n{place.part}\n{place.row}\n{kind}", make)

    @cached_property
    def rasters(self) -> Rasters:
        """Rasters of the run; none for a run over photos."""
        return Rasters(self.url, self.originals)

    def source_tile(self, number: int, place: TilePlace) -> bytes:
        """JPEG of a tile of a raster's source, from the cache or made now; raises as `Rasters` and `SourceTiles`."""
        tiles = self.rasters.source(number)

        def make() -> bytes:
            with self._reading_tiles:
                return jpeg(tiles.tile(place), IMAGE_QUALITY)

        return self._thumbnails.get(self._tile_name(number, "source", tiles.etag, place), make)

    def mask_tile(self, number: int, place: TilePlace) -> UInt8:
        """(h, w) class ids of a tile of a raster's mask, 255 without data; of single windows until they are joined.

        Raises as `Rasters.mask` and `MaskPyramid.tile`.
        """
        try:
            pyramid, etag = self.rasters.mask(number)
        except InputError as error:
            if error.code != "mask_missing":
                raise
            one = self.rasters.raster(number)
            with self._decoding:
                return tile_of_windows(one.shard, one.uri, self._mask_of, place)
        height, width = tile_size(pyramid.sizes, place)
        name = self._tile_name(number, "mask", etag, place)
        return tile_ids(self._thumbnails.get(name, lambda: pyramid.tile(place)))[:height, :width]

    def _mask_of(self, key: str) -> UInt8 | None:
        """Mask of a row, (H, W); None where the index has no such row by now, or it has no mask."""
        found = self.index.fetch("SELECT id FROM rows WHERE key = ?", [key])
        return self.pictures.mask(self.place(found[0][0])) if found else None

    def _tile_name(self, number: int, kind: str, etag: str, place: TilePlace) -> str:
        uri = self.rasters.raster(number).uri
        return f"{self.url.place}\n{uri}\n{kind}\n{etag}\n{place.level}\n{place.row}\n{place.column}"

    def _keep_filled(self) -> None:
        """Fill the index; of a run that goes on, look for new parts until it is finished."""
        while not self._closed.is_set():
            was_finished = self.finished
            try:
                changed = self.index.fill()
                if self.other and self.other.index.fill() + changed:
                    pair_rows(self.index, self.other.index)
                self.problem = None
            except JobError as error:
                self.problem = str(error)
                log.error("%s", error)
            if was_finished and self.problem is None:
                return
            self._closed.wait(REFRESH_S)
