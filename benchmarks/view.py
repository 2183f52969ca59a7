"""Page of a run of a million rows: seconds to the first page, for a filter, and for the histograms, over HTTP.

    python -m benchmarks.view --output runs/view --rows 1000000

Makes up a run, unless the folder has one, and starts `atrous view` on it, first with an empty cache and then with the
index of the first time. The other side is DuckDB on the parts as they lie, which reads the columns of each query again.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.request import HTTPCookieProcessor, build_opener

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.classes import load_class_map
from pipeline.image.encode import mask_png
from pipeline.records import ROW_SCHEMA
from pipeline.run import folder, manifest, parts
from pipeline.run.footers import read_footers
from pipeline.store import objects
from pipeline.store.url import Url

PART_ROWS = parts.FEWEST_ROWS
FARM = load_class_map("farmland")
FILTER = {"ranges": [{"column": "confidence", "low": None, "high": 0.2}], "sort": "entropy", "descending": True}
SQL = "SELECT key FROM read_parquet('{parts}') WHERE confidence <= 0.2 ORDER BY entropy DESC, key LIMIT 100"


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one visit."""

    first_page: float
    """From the start of the process to the first 100 rows."""
    complete: float
    """From the start of the process until every row is in the index."""
    filter: float
    """100 rows of a filter in another order, and their number; median of five."""
    histograms: float
    """Histograms of all columns under that filter; median of five."""


def main() -> None:
    """Make up the run, visit it twice, ask DuckDB, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the run and its index")
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    run, cache = args.output / "run=000000000001", args.output / "cache"
    if not (run / "_SUCCESS").exists():
        make_up_run(run, args.rows)
    shutil.rmtree(cache, ignore_errors=True)
    visits = {"empty cache": visit(run, cache), "opened again": visit(run, cache)}
    direct = median(lambda: duckdb.sql(SQL.format(parts=run / "parts/*.parquet")).fetchall())
    print(f"{args.rows} rows in {len(list((run / 'parts').iterdir()))} parts, seconds:")
    print("| | first page | index complete | filter | histograms |\n|---|---|---|---|---|")
    for name, one in visits.items():
        print(f"| {name} | {one.first_page:.2f} | {one.complete:.2f} | {one.filter:.3f} | {one.histograms:.3f} |")
    again = visits["opened again"].filter
    print(f"DuckDB on the parts takes {direct:.2f} s for the filter, {direct / again:.0f} times as long")


def make_up_run(run: Path, rows: int) -> None:
    """Write a finished run of made-up rows; one in a hundred failed, and masks are all alike."""
    rng, mask = np.random.default_rng(0), mask_png(np.zeros((64, 64), np.uint8), FARM)
    url = Url(str(run))
    for start in range(0, rows, PART_ROWS):
        table = made_up_rows(range(start, min(start + PART_ROWS, rows)), rng, mask)
        parts.write_part(url, table, FARM)
    totals = manifest.manifest_of(read_footers(url), FARM, fingerprint="0" * 12, shards=1)
    objects.put(url / folder.MANIFEST, json.dumps(asdict(totals)).encode())
    manifest.mark_finished(url)


def made_up_rows(numbers: range, rng: np.random.Generator, mask: bytes) -> pa.Table:
    """Table of `ROW_SCHEMA` with rows of these numbers."""
    count = len(numbers)
    failed = rng.random(count) < 0.01
    pixels = (rng.dirichlet(np.full(len(FARM), 0.5), count) * 64 * 64).astype(np.int64)
    values: dict[str, Any] = {
        "key": [f"flight_{number // 5000:04}/image_{number:08}.jpg" for number in numbers],
        "status": np.where(failed, "failed", "ok"),
        "shard": [f"{number // 2000:016x}" for number in numbers],
        "error_code": np.where(failed, "truncated", None),
        "error_detail": np.where(failed, "the data end early", None),
        "height": np.full(count, 64),
        "width": np.full(count, 64),
        "refined": pa.array(~failed),
        "mask": [None if bad else mask for bad in failed],
        "class_pixels": [None if bad else row.tolist() for bad, row in zip(failed, pixels, strict=True)],
    }
    values |= {name: ["x"] * count for name in ("source_etag", "model_fp", "config_fp")}
    for name in ("confidence", "entropy", "changed_share", "brightness"):
        values[name] = pa.array(rng.random(count), mask=failed)
    values |= {name: np.full(count, 0.1) for name in ROW_SCHEMA.names if name.startswith("seconds_")}
    columns = [
        pa.array(values[field.name]).cast(field.type) if field.name in values else pa.nulls(count, field.type)
        for field in ROW_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=ROW_SCHEMA)


def visit(run: Path, cache: Path) -> Timed:
    """Start the page, wait for its rows, and ask as the page does."""
    started = time.monotonic()
    with serving(run, cache) as ask:
        ask("rows", limit="100")
        first_page = time.monotonic() - started
        while (parts_now := ask("run")["parts"])["indexed"] < parts_now["known"] or not parts_now["known"]:
            time.sleep(0.1)
        complete = time.monotonic() - started
        query, names = json.dumps(FILTER), ",".join(column["name"] for column in ask("run")["columns"])
        return Timed(
            first_page,
            complete,
            median(lambda: ask("rows", query=query, limit="100")),
            median(lambda: ask("histograms", query=query, columns=names)),
        )


@contextmanager
def serving(run: Path, cache: Path) -> Iterator[Callable[..., Any]]:
    """Function that asks the server of a run for JSON."""
    command = [sys.executable, "-m", "jobs.view", str(run), "--port", "0", "--cache", str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            opener = build_opener(HTTPCookieProcessor(CookieJar()))
            address = _printed_address(process)
            opener.open(address).close()
            base = address.partition("?")[0]

            def ask(what: str, **params: str) -> Any:
                with opener.open(f"{base}api/{what}?{urllib.parse.urlencode(params)}") as answer:
                    return json.load(answer)

            yield ask
        finally:
            process.terminate()


def _printed_address(process: "subprocess.Popen[str]") -> str:
    """URL with the token that `atrous view` prints when it listens."""
    line = process.stdout.readline() if process.stdout else ""
    if not (address := re.search(r"http://\S+", line)):
        raise RuntimeError(f"atrous view ended without a URL: {line!r}")
    return address[0]


def median(call: Callable[[], object], times: int = 5) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(times):
        started = time.monotonic()
        call()
        taken.append(time.monotonic() - started)
    return sorted(taken)[times // 2]


if __name__ == "__main__":
    main()
