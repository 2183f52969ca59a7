"""Agreement of a run's masks with other class ids of the same images, pixel by pixel: of a second run, or of labels.

In: an index, and what compares some of its rows. Out: a table in the index with a line for each row that was compared,
columns by which rows are sorted and filtered, and sums per class over the rows of a query.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from pipeline.records import Int64
from pipeline.score.metrics import Scores
from pipeline.view.columns import Column
from pipeline.view.index import RunIndex
from pipeline.view.query import Query, select_matching

COMPARED = "compared"
"""Word in place of the reason why a row cannot be compared."""
BATCH_ROWS = 256
"""Rows per insertion into the index."""
LABELS, OTHER_RUN = "labels", "other"
_TITLES = {
    LABELS: ("wrong pixels", "mIoU with labels", "label"),
    OTHER_RUN: ("pixels that differ", "mIoU of both runs", "pixel by pixel"),
}
_MEANINGS = {
    LABELS: (
        "Share of the labelled pixels whose class in the mask is another, or none.",
        "Mean IoU over the classes of the label or the mask.",
        "compared, or the reason why mask and label cannot be compared; none for rows that were not compared yet.",
    ),
    OTHER_RUN: (
        "Share of the pixels with a class here whose class in the other run is another, or none.",
        "Mean IoU of the masks of both runs, over the classes of either.",
        "compared, or the reason why the masks cannot be compared; none for rows that were not compared yet.",
    ),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One row that was compared, or that cannot be."""

    row_id: int
    version: str
    """What it was compared with: a part of the other run; empty for labels, which have no version."""
    counts: Int64 | None
    """(K, K + 1) confusion, see `score.metrics.confusion`; None where it cannot be compared."""
    reason: str = COMPARED
    """`COMPARED`, or an error code."""


class Counterpart(Protocol):
    """What the masks of a run are compared with."""

    condition: str
    """SQL condition of the rows that can be compared."""

    def versions(self) -> list[str]:
        """Everything that a row can be compared with now, see `Compared.version`."""

    def compare(self, part: str, rows: Sequence[tuple[int, int]]) -> Iterator[Compared]:
        """Compare rows of one part, given by their number in the index and their place in the part."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many rows of a query were compared."""

    compared: int
    refused: int
    """Rows that cannot be compared; the column `..._compared` has the reasons."""
    comparable: int
    """All rows with a mask, and with one in the other run."""


class Agreement:
    """Agreement of one run with one counterpart. Any thread may ask; one compares."""

    def __init__(self, index: RunIndex, name: str, counterpart: Counterpart, *, kept: bool) -> None:
        """Add table and columns to an index, beside its rows.

        Args:
            index: index of the run.
            name: `LABELS` or `OTHER_RUN`, the start of the names of the columns.
            counterpart: what the masks are compared with.
            kept: keep what an earlier process compared.
        """
        self.index, self.name, self.counterpart = index, name, counterpart
        differing, iou, compared = zip(_TITLES[name], _MEANINGS[name], strict=True)
        self.columns = (
            Column(f"{name}_differing", differing[0], "share", differing[1]),
            Column(f"{name}_iou", iou[0], "share", iou[1]),
            Column(f"{name}_compared", compared[0], "word", compared[1]),
        )
        self._table = f"agreement_{name}"
        with index.cursor() as cursor:
            cursor.register("example", self._lines([]))
            create = "CREATE TABLE IF NOT EXISTS" if kept else "CREATE OR REPLACE TABLE"
            cursor.execute(f"{create} {self._table} AS SELECT * FROM example").fetchall()
        index.show_beside(self._table, self.columns)

    def forget_other_versions(self) -> None:
        """Delete the lines of rows that were compared with something that is not there any more."""
        with self.index.cursor() as cursor:
            sql = f"DELETE FROM {self._table} WHERE {self.name}_version NOT IN (SELECT unnest(?::VARCHAR[]))"
            cursor.execute(sql, [self.counterpart.versions()]).fetchall()

    def coverage(self, query: Query) -> Coverage:
        """Rows of a query that were compared, and those that can be."""
        word = f"{self.name}_compared"
        counts = f"count(*) FILTER ({word} = '{COMPARED}'), count(*) FILTER ({word} <> '{COMPARED}'), count(*)"
        return Coverage(*select_matching(self.index, query, counts, self.counterpart.condition)[0])

    def by_class(self, query: Query) -> list[dict[str, int]]:
        """Pixels of each class over the compared rows of a query: in both, `here` in the first and `there`.

        Of labels, `here` is the label and `there` the mask.
        """
        names = ("both", "here", "there")
        sums = ", ".join(
            f"sum({self.name}_{column}[{number + 1}])" for number in range(len(self.index.classes)) for column in names
        )
        ((*values,),) = select_matching(self.index, query, sums)
        pixels = [int(value or 0) for value in values]
        return [dict(zip(names, pixels[at : at + 3], strict=True)) for at in range(0, len(pixels), 3)]

    def compare(self, query: Query, *, is_over: Callable[[], bool]) -> Iterator[int]:
        """Compare the rows of a query that were not compared yet, part by part, until `is_over`.

        Yields:
            the number of rows of each batch, after they are in the index.

        Raises:
            StorageError: a part is damaged, or a store refuses.
        """
        open_ = f"{self.counterpart.condition} AND {self.name}_compared IS NULL"
        numbers = [number for (number,) in select_matching(self.index, query, "DISTINCT part", open_)]
        names = dict(self.index.fetch("SELECT number, name FROM parts"))
        for number in sorted(names.keys() & set(numbers)):
            rows = select_matching(self.index, query, "id, row", f"{open_} AND part = {int(number)}")
            batch: list[Compared] = []
            for compared in self.counterpart.compare(names[number], rows):
                batch.append(compared)
                if len(batch) == BATCH_ROWS or is_over():
                    yield self._add(batch)
                    batch = []
                if is_over():
                    return
            yield self._add(batch)

    def _add(self, batch: Sequence[Compared]) -> int:
        with self.index.cursor() as cursor:
            cursor.register("added", self._lines(batch))
            cursor.execute(f"INSERT INTO {self._table} SELECT * FROM added").fetchall()
        return len(batch)

    def _lines(self, batch: Sequence[Compared]) -> pa.Table:
        """Lines of the table: scores, and the three sums per class from which those of a query are added up."""
        scores = [None if one.counts is None else Scores(one.counts) for one in batch]

        def numbers(value: Callable[[Scores], Any]) -> list[Any]:
            return [None if score is None else value(score) for score in scores]

        columns = {
            "differing": pa.array(numbers(lambda score: 1 - score.pixel_accuracy), pa.float32(), from_pandas=True),
            "iou": pa.array(numbers(lambda score: score.mean_iou), pa.float32(), from_pandas=True),
            "compared": pa.array([one.reason for one in batch], pa.string()),
            "version": pa.array([one.version for one in batch], pa.string()),
            "both": pa.array(numbers(lambda score: score.hits), pa.list_(pa.int64())),
            "here": pa.array(numbers(lambda score: score.support), pa.list_(pa.int64())),
            "there": pa.array(numbers(lambda score: score.answered), pa.list_(pa.int64())),
        }
        ids = {"id": pa.array([one.row_id for one in batch], pa.int64())}
        return pa.table(ids | {f"{self.name}_{name}": values for name, values in columns.items()})
