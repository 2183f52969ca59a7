import copy
import threading

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.run.messages import Failed, pack, unpack
from pipeline.run.processes import SharedLedger, cut, gather
from tests.support.examples import examples


@examples(60)
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 12), st.sampled_from([1e-4, 1.0]))
def test_tables_are_joined_and_cut_and_no_row_is_lost_or_moved(sizes: list[int], rows: int, mib: float) -> None:
    whole = pa.table({"row": range(sum(sizes)), "data": [bytes(50)] * sum(sizes)})
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    tables = [whole.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
    joined = list(gather(tables, rows=rows, mib=mib))
    assert all(len(table) <= max(rows, *sizes) for table in joined)
    slices = [piece for table in joined for piece in cut(table, rows=rows, mib=mib)]
    assert all(0 < len(piece) <= rows for piece in slices)
    assert all(len(piece) == 1 or piece.nbytes <= 2 * mib * 2**20 for piece in slices)
    assert [row for piece in slices for row in piece["row"].to_pylist()] == list(range(sum(sizes)))


def test_large_images_are_a_table_each() -> None:
    large = [pa.table({"data": [bytes(2**20)]})] * 5
    assert [len(table) for table in gather(large, rows=32, mib=2)] == [2, 2, 1]
    assert [len(piece) for piece in cut(pa.concat_tables(large), rows=4, mib=2)] == [2, 2, 1]
    assert [len(piece) for piece in cut(pa.concat_tables(large), rows=4, mib=0.5)] == [1] * 5


def test_a_slice_is_packed_without_the_rest_of_its_table() -> None:
    whole = pa.table({"data": [bytes(100_000) for _ in range(50)]})
    packed = pack(whole.slice(7, 2))
    assert unpack(packed).equals(whole.slice(7, 2))
    assert len(packed) < 250_000


def test_counts_of_several_threads_add_up() -> None:
    ledger = SharedLedger()

    def count() -> None:
        for _ in range(2000):
            ledger.leave("read", ["key"], 1.0)
            ledger.commit(1, {"truncated": 1}, 1.0)
            ledger.progress()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress = ledger.progress()
    assert (progress.done, progress.committed) == ({"read": 8000, "write": 8000}, 8000)
    assert progress.failed == {"truncated": 8000}


class TwoNumbersError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_be_made_again_is_told_by_its_text() -> None:
    kept = Failed.of(StorageError("no such bucket", hint="make it"))
    assert isinstance(copy.deepcopy(kept.error), StorageError)
    assert "make it" in str(copy.deepcopy(kept.error))
    told = Failed.of(TwoNumbersError(1, 2))
    assert str(told.error) == "TwoNumbersError: 1 and 2"
    assert "TwoNumbersError" in told.traceback
