"""The benchmark of the page, on a run of some hundred rows."""

from pathlib import Path

import duckdb

from benchmarks import view
from pipeline.run import parts
from pipeline.store.url import Url


def test_a_made_up_run_has_the_rows_asked_for_and_is_visited_twice(tmp_path: Path) -> None:
    run = tmp_path / "run=000000000001"
    view.make_up_run(run, 600)
    url = Url(str(run))
    footers = [parts.read_part_footer(url, name) for name in parts.list_parts(url)]
    assert [part.totals.rows for part in footers if part.totals.rows != view.PART_ROWS] == [600 % view.PART_ROWS]
    assert sum(part.totals.rows for part in footers) == 600
    timed = view.visit(run, tmp_path / "cache")
    assert 0 < timed.first_page <= timed.complete
    assert 0 < timed.filter < timed.complete
    assert duckdb.sql(view.SQL.format(parts=run / "parts/*.parquet")).fetchall()
