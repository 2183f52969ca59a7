"""Counterparts of a run's masks: the masks of another run, and labels. They compare rows of one part, pixel by pixel.

In: rows of an index. Out: their confusion counts, or the error code of what cannot be compared. Masks are read part by
part, labels as `Originals` reads them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any

from pipeline.classes import ClassMap
from pipeline.errors import InputError, LabelError
from pipeline.image.encode import read_mask_png
from pipeline.records import Int64, Item, UInt8
from pipeline.run import parts
from pipeline.score import answers
from pipeline.score.metrics import confusion
from pipeline.store.url import Url
from pipeline.view.agreement import Compared
from pipeline.view.index import RunIndex
from pipeline.view.originals import Originals
from pipeline.view.pictures import read_map

_READ_ROWS = 64
"""Rows of a part that are read at a time."""
_SIZE = ("height", "width", "mask")
_PLACED = ("key", "shard", "source_etag", "orientation")


class OtherMasks:
    """Masks of another run, whose rows were paired with those of the first."""

    condition = "status = 'ok' AND other_status = 'ok'"

    def __init__(self, first: RunIndex, second: RunIndex, *, max_mpx: float) -> None:
        """Keep both indexes.

        Args:
            first: index of the run, with the table `pairs`.
            second: index of the other run.
            max_mpx: largest mask, megapixels.
        """
        self._first, self._second, self._max_mpx = first, second, max_mpx

    def versions(self) -> list[str]:
        """The parts of the other run."""
        return [self._version(*part) for part in self._second.fetch("SELECT name, version FROM parts")]

    def compare(self, part: str, rows: Sequence[tuple[int, int]]) -> Iterator[Compared]:
        """Compare rows of a part with the other run's of the same keys; each of its parts is read once for them."""
        ids = {row: row_id for row_id, row in rows}
        ours = dict(_cells(self._first.run_url, part, ids.keys(), _SIZE))
        for (name, written), pairs in self._places(ids).items():
            for row, theirs in _cells(self._second.run_url, name, pairs.keys(), _SIZE):
                here = pairs[row]
                yield compared(ids[here], self._version(name, written), partial(self._counts, ours[here], theirs))

    def _version(self, part: str, written: str) -> str:
        return f"{self._second.run_url.place}/{part} {written}"

    def _places(self, ids: Mapping[int, int]) -> dict[tuple[str, str], dict[int, int]]:
        """Row here by row there, by name and version of the part of the other run."""
        row_of = {row_id: row for row, row_id in ids.items()}
        paired = dict(
            self._first.fetch("SELECT other_id, id FROM pairs WHERE id IN (SELECT unnest(?))", [list(row_of)])
        )
        sql = "SELECT id, name, version, row FROM rows JOIN parts ON part = number WHERE id IN (SELECT unnest(?))"
        places: defaultdict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        for other_id, name, written, row in self._second.fetch(sql, [list(paired)]):
            places[name, written][row] = row_of[paired[other_id]]
        return places

    def _counts(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Int64:
        return count_pixels(_mask(ours, self._max_mpx), _mask(theirs, self._max_mpx), self._first.classes)


class LabelMaps:
    """Labels of the images of a run, which the user named."""

    condition = "status = 'ok'"

    def __init__(self, run_url: Url, originals: Originals, classes: ClassMap) -> None:
        self._run_url, self._originals, self._classes = run_url, originals, classes

    def versions(self) -> list[str]:
        """The one version of all labels."""
        return [""]

    def compare(self, part: str, rows: Sequence[tuple[int, int]]) -> Iterator[Compared]:
        """Compare rows of a part with the labels of their images."""
        ids, by_key = {row: row_id for row_id, row in rows}, dict[str, tuple[int, dict[str, Any]]]()
        for row, cells in _cells(self._run_url, part, ids.keys(), (*_SIZE, *_PLACED)):
            by_key[cells["key"]] = ids[row], cells
        for key, item in self._originals.items([cells for _, cells in by_key.values()]):
            row_id, cells = by_key[key]
            yield compared(row_id, "", partial(self._counts, item, cells))

    def _counts(self, item: Item | InputError, cells: Mapping[str, Any]) -> Int64:
        if isinstance(item, InputError):
            raise item
        mask_hw, turned = _mask(cells, self._originals.cfg.decode.max_mpx), cells["orientation"] or 1
        truth_hw = answers.read_truth(
            item,
            self._originals.cfg.judge,
            self._classes,
            height=cells["height"],
            width=cells["width"],
            orientation=turned,
        )
        return count_pixels(truth_hw, mask_hw, self._classes)


def compared(row_id: int, version: str, count: Callable[[], Int64]) -> Compared:
    """A row with its counts, or the reason why it has none."""
    try:
        return Compared(row_id, version, count())
    except (InputError, LabelError) as error:
        return Compared(row_id, version, None, error.code)


def count_pixels(first_hw: UInt8, second_hw: UInt8, classes: ClassMap) -> Int64:
    """(K, K + 1) confusion of two maps of class ids; raises InputError where sizes differ or values are no classes."""
    try:
        return confusion(first_hw, second_hw, len(classes), ignore_id=classes.ignore_id)
    except ValueError as error:
        raise InputError("mask_unusable", str(error)) from error


def _mask(cells: Mapping[str, Any], max_mpx: float) -> UInt8:
    """Class ids of a row; raises InputError for a row without a mask, or with a damaged one."""
    if cells["mask"] is None:
        raise InputError("mask_missing", "the row has no mask")
    size_hw = cells["height"] or 0, cells["width"] or 0
    return read_map(cells["mask"], read_mask_png, size_hw=size_hw, max_mpx=max_mpx)


def _cells(run_url: Url, part: str, rows: Set[int], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Columns of some rows of a part, by their place; reading ends with the last of them."""
    first, last = 0, max(rows, default=-1)
    for batch in parts.read_batches(run_url, part, list(columns), rows=_READ_ROWS):
        for row in range(first, first + len(batch)):
            if row in rows:
                yield row, batch.slice(row - first, 1).to_pylist()[0]
        first += len(batch)
        if first > last:
            return
