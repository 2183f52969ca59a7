"""Opened run: what the server holds of a run, and the thread that keeps its index up to date."""

import logging
from collections.abc import Sequence
from functools import cached_property
from math import isfinite
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any

import duckdb

from pipeline.errors import AtrousError, ConfigError, InputError
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
from pipeline.view.query import Query
from pipeline.view.rasters import Rasters
from pipeline.view.thumbnails import Thumbnails
from pipeline.view.window_masks import tile_of_windows

if TYPE_CHECKING:
    from pipeline.view.agreement import Agreement
    from pipeline.view.comparing import Comparing

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
            ConfigError: the run has no part yet, or `cache` cannot be a folder.
            StorageError: the run is damaged.
        """
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--cache {cache} cannot be a folder: {error.strerror}", hint="give another") from error
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
        self.finished = False
        """True when the run has written its manifest."""
        self.revision = 0
        """Changes of what the index shows since it was opened."""
        self.settled = False
        """True when the index has all rows that this run, and the other, will ever have."""
        self._changes = 0
        """Parts that were added or removed, and are not paired yet."""
        self.progress: Snapshot | None = None
        """Latest progress of the run's driver."""
        self._look()
        self._thumbnails = Thumbnails(cache / "thumbnails", max_bytes=max_cache_bytes)
        self._decoding, self._reading_tiles, self._closed = Semaphore(DECODERS), Semaphore(TILE_READERS), Event()
        self.comparing: Comparing | None = None
        """Comparison pixel by pixel with another run, and with labels that the user named; None without either."""
        if labels is not None:
            self._compare_with_labels()
        self._filler = Thread(target=self._keep_filled, name="index", daemon=True)

    def start(self) -> None:
        """Begin to fill the index, in a thread of its own."""
        self._filler.start()

    def compare_with(self, other: "OpenedRun") -> None:
        """Show another run's rows of the same keys beside these; before `start`, and for a run that is not started.

        Raises:
            ConfigError: the class maps differ.
        """
        from pipeline.view.agreement import OTHER_RUN, Agreement  # noqa: PLC0415
        from pipeline.view.counterparts import OtherMasks  # noqa: PLC0415

        check_comparable(self.index, other.index)
        pair_rows(self.index, other.index)  # of rows that an earlier process has indexed; its columns are there at once
        self.other = other
        masks = OtherMasks(self.index, other.index, max_mpx=self.originals.cfg.decode.max_mpx)
        self._add_agreement(Agreement(self.index, OTHER_RUN, masks, kept=True))

    def _compare_with_labels(self) -> None:
        from pipeline.view.agreement import LABELS, Agreement  # noqa: PLC0415
        from pipeline.view.counterparts import LabelMaps  # noqa: PLC0415

        labels = LabelMaps(self.url, self.originals, self.classes)
        # Not kept: labels are corrected between two visits, and have no version that could be compared.
        self._add_agreement(Agreement(self.index, LABELS, labels, kept=False))

    def _add_agreement(self, agreement: "Agreement") -> None:
        from pipeline.view.comparing import Comparing  # noqa: PLC0415  # scipy takes a quarter of a second to import

        agreement.forget_other_versions()
        self.comparing = Comparing([*(self.comparing.agreements if self.comparing else ()), agreement])

    def close(self) -> None:
        """Stop filling, and close the index."""
        self._closed.set()
        if self._filler.is_alive():
            self._filler.join()
        if self.comparing:
            self.comparing.close()
        self.index.close()
        if self.other:
            self.other.index.close()

    def place(self, row_id: int) -> RowPlace:
        """Place of a row in the parts; InputError for a row that is gone, LookupError for a number that none had."""
        sql = "SELECT name, version, row FROM rows JOIN parts ON part = number WHERE id = ?"
        found = self.index.fetch(sql, [row_id])
        if not found and self.index.has_given(row_id):
            raise InputError("not_found", "its part was removed, or written anew")
        if not found:
            raise LookupError(f"no row {row_id}")
        return RowPlace(*found[0])

    def row(self, row_id: int) -> dict[str, Any]:
        """Every column of a row but its pictures; None for a number that is not finite."""
        place = self.place(row_id)
        cells = parts.read_row(self.url, place.part, place.row, TEXT_COLUMNS)
        return {name: None if isinstance(cell, float) and not isfinite(cell) else cell for name, cell in cells.items()}

    def ids(self, keys: Sequence[str]) -> dict[str, int]:
        """Numbers of the rows of some keys, in their order; LookupError for a key that the index does not have.

        Of two rows of one key, as a run that goes on may have them, that of the first part.
        """
        sql = "SELECT key, min(id) FROM rows WHERE key IN (SELECT unnest(?)) GROUP BY key"
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

        name = "\n".join((self.url.place, place.part, place.version, str(place.row), kind, *self.source))
        return self._thumbnails.get(name, make)

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
            try:
                self._look()
                if self.other:
                    self.other._look()
                self._changes += self.index.fill(is_over=self._closed.is_set)
                if self.other:
                    self._changes += self.other.index.fill(is_over=self._closed.is_set)
                    if self._changes:
                        pair_rows(self.index, self.other.index)
                changes, self._changes, self.problem = self._changes, 0, None
                self.revision += changes
                self._compare_if_few(has_changed=changes > 0)
            except (AtrousError, duckdb.Error, OSError) as error:
                if str(error) != self.problem:  # said once, not every few seconds
                    log.error("%s", error)
                self.problem = str(error)
            if self.finished and (not self.other or self.other.finished) and self.problem is None:
                self.settled = True
                return
            self._closed.wait(REFRESH_S)

    def _compare_if_few(self, *, has_changed: bool) -> None:
        """Compare all rows of a small run pixel by pixel without a request, at first and when rows were added."""
        if not self.comparing:
            return
        if has_changed:
            for agreement in self.comparing.agreements:
                agreement.forget_other_versions()
        if (has_changed or not self.comparing.is_asked) and self.index.counts()[0] <= self.comparing.AUTOMATIC_ROWS:
            self.comparing.request(Query())

    def _look(self) -> None:
        """Look how far the run is. Requests do not: a store that is gone takes a minute to say so."""
        self.finished, self.progress = objects.exists(self.url / folder.SUCCESS), read_progress(self.url)
