"""The comparison of networks as people read it: a Markdown table, and a plot of quality against speed.

In: the rows of a comparison. Out: text, a PNG, and both with a Parquet table in a folder. Published figures stand
beside measured ones, each line with its source, and never in one column with them.
"""

import io
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from pipeline.evaluate.comparison import ComparisonRow, SpeedSettings
from pipeline.models.catalogue import CITYSCAPES, PUBLISHED, Published
from pipeline.store import objects

MEASURED_COLUMNS = (
    "network",
    "year",
    "parameters, M",
    "GMACs",
    "mean IoU here, %",
    "images/s",
    "ms, least to most",
    "processor ms",
    "time over the fastest's",
    "peak MiB",
    "published mean IoU, %",
)
PLOTTED_DATA = "VOC 2012 val"
"""On which most of the catalogue was measured: the published quality that the plot shows of untrained networks."""


def comparison_markdown(rows: Sequence[ComparisonRow], *, size_px: int, machine: str) -> str:
    """Two tables: what was measured, and what was published."""
    title = f"{len(rows)} networks, images of {size_px}x{size_px}; {machine}."
    published = [_published_line(one) for one in PUBLISHED]
    heads = ("network", "year", "mean IoU, %", "images/s", "ms", "data", "source")
    return "\n\n".join((title, _table(MEASURED_COLUMNS, [_line(one) for one in rows]), _table(heads, published))) + "\n"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def _line(one: ComparisonRow) -> tuple[str, ...]:
    spread = "" if one.ms is None else f"{one.ms:.0f} ({one.ms_least:.0f} to {one.ms_most:.0f})"
    return (
        one.name,
        str(one.year),
        f"{one.parameters / 1e6:.1f}",
        f"{one.gmacs:.1f}",
        "untrained" if one.miou is None else f"{one.miou:.1f} ({one.images_scored} images)",
        _figure(one.images_per_s, ".3g"),
        one.note or spread,
        _figure(one.cpu_ms, ".0f"),
        _figure(one.times_fastest, ".1f"),
        _figure(one.peak_mib, ".0f"),
        "" if one.published_miou is None else f"{one.published_miou:g}, {one.published_on}",
    )


def _published_line(one: Published) -> tuple[str, ...]:
    speed = _figure(one.images_per_s, "g"), _figure(one.ms, "g")
    return one.name, str(one.year), f"{one.miou:g}", *speed, one.data, one.source


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def quality_speed_png(rows: Sequence[ComparisonRow]) -> bytes:
    """PNG of two panels: speed measured here, and all that others published on one test set.

    Quality in the first is what was measured here; where nothing is trained, what was published on one data set.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=110)
    here, theirs = figure.subplots(1, 2)
    measured = [(one.name, one.images_per_s, one.miou) for one in rows if one.images_per_s and one.miou is not None]
    shown = measured or _with_published_quality(rows)
    title = "Measured here" if measured else f"Speed here, quality as published on {PLOTTED_DATA}"
    _panel(here, shown, title, filled=bool(measured))
    tested = [
        (one.name, one.images_per_s, one.miou) for one in PUBLISHED if one.data == CITYSCAPES and one.images_per_s
    ]
    _panel(theirs, tested, f"Published on {CITYSCAPES}, each on its own hardware", filled=False)
    figure.draw_without_rendering()
    for axes, points in ((here, shown), (theirs, tested)):
        if points:
            _names(axes, points)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


_Point = tuple[str, float, float]
"""Name, images a second, mean IoU in percent."""


def _with_published_quality(rows: Sequence[ComparisonRow]) -> list[_Point]:
    """Not those that were published with several looks at an image, which cost several times the speed shown."""
    return [
        (one.name, one.images_per_s, one.published_miou)
        for one in rows
        if one.images_per_s
        and one.published_miou is not None
        and one.published_on.startswith(PLOTTED_DATA)
        and "MSC" not in one.published_on
    ]


def _panel(axes: Axes, points: Sequence[_Point], title: str, *, filled: bool) -> None:
    axes.set(title=title, xlabel="images a second", ylabel="mean IoU, %", xscale="log")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.margins(0.25, 0.12)
    for _, rate, miou in points:
        axes.scatter(rate, miou, s=36, c="tab:blue" if filled else "none", edgecolors="tab:blue")


_SIDES = (
    ((6, 0), "left", "center"),
    ((-6, 0), "right", "center"),
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
)
"""Where a name may stand beside its point, best first: offset in points, and which side of the name is there."""


def _names(axes: Axes, points: Sequence[_Point]) -> None:
    """Write each name beside its point, on the first side where it covers no point and no other name, if there is one.

    The figure must be laid out by now: what covers what is a matter of pixels.
    """
    at = axes.transData.transform([(rate, miou) for _, rate, miou in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in at]
    for name, rate, miou in points:
        tried = [
            axes.annotate(name, (rate, miou), offset, textcoords="offset points", ha=ha, va=va, fontsize=7.5)
            for offset, ha, va in _SIDES
        ]
        kept = next((one for one in tried if not one.get_window_extent().count_overlaps(taken)), tried[0])
        taken.append(kept.get_window_extent())
        for one in tried:
            if one is not kept:
                one.remove()


# ---------------------------------------------------------------- files


def write_comparison(rows: Sequence[ComparisonRow], output: str, measure: SpeedSettings) -> str:
    """Write comparison.parquet, .md and .png, over those of the round before; returns the Markdown."""
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), parquet)
    text = comparison_markdown(rows, size_px=measure.size_px, machine=machine_text(measure))
    objects.put(objects.join(output, "comparison.parquet"), parquet.getvalue())
    objects.put(objects.join(output, "comparison.md"), text.encode())
    objects.put(objects.join(output, "comparison.png"), quality_speed_png(rows))
    return text


def machine_text(measure: SpeedSettings) -> str:
    """GPU, or threads and processor; torch version; load per core at the end."""
    threads = f"{measure.threads} thread(s), {platform.machine()}"
    device = torch.cuda.get_device_name() if measure.device == "cuda" else threads
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return f"{device}, torch {torch.__version__}, load per core {load:.1f} at the end"
