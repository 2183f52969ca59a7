"""Tables and plot of a comparison of networks: Markdown, Parquet, and mean IoU against speed as PNG.

In: the rows of a comparison. Out: text, a PNG, and both with a Parquet table in a folder. Published figures are in
columns of their own, each with its source: they were measured on other hardware.
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
from pipeline.store.url import Url

MEASURED_COLUMNS = (
    "network",
    "year",
    "parameters, M",
    "GMACs",
    "mean IoU here, %",
    "images/s",
    "ms, least to most",
    "processor ms",
    "time relative to the fastest",
    "peak MiB",
    "published mean IoU, %",
)
PLOTTED_DATA = "VOC 2012 val"
"""Data set of most published figures: the plot shows mean IoU on it for networks without a checkpoint."""


def comparison_markdown(rows: Sequence[ComparisonRow], *, size: str, machine: str) -> str:
    """Markdown of two tables: figures measured here, and published figures with their sources."""
    title = f"{len(rows)} networks, images of {size}; {machine}."
    published = [_published_line(figures) for figures in PUBLISHED]
    heads = ("network", "year", "mean IoU, %", "images/s", "ms", "data", "source")
    return "\n\n".join((title, _table(MEASURED_COLUMNS, [_line(row) for row in rows]), _table(heads, published))) + "\n"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def _line(row: ComparisonRow) -> tuple[str, ...]:
    spread = "" if row.ms is None else f"{row.ms:.0f} ({row.ms_least:.0f} to {row.ms_most:.0f})"
    return (
        row.name,
        str(row.year),
        f"{row.parameters / 1e6:.1f}",
        f"{row.gmacs:.1f}",
        "untrained" if row.miou is None else f"{row.miou:.1f} ({row.images_scored} images)",
        _figure(row.images_per_s, ".3g"),
        row.note or spread,
        _figure(row.cpu_ms, ".0f"),
        _figure(row.times_fastest, ".1f"),
        _figure(row.peak_mib, ".0f"),
        "" if row.published_miou is None else f"{row.published_miou:g}, {row.published_on}",
    )


def _published_line(figures: Published) -> tuple[str, ...]:
    speed = _figure(figures.images_per_s, "g"), _figure(figures.ms, "g")
    return figures.name, str(figures.year), f"{figures.miou:g}", *speed, figures.data, figures.source


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def quality_speed_png(rows: Sequence[ComparisonRow]) -> bytes:
    """Plot mean IoU against speed as PNG: measured here on the left, published on one test set on the right.

    The left panel shows mean IoU measured here; if nothing was measured, mean IoU published on `PLOTTED_DATA`.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=110)
    here, elsewhere = figure.subplots(1, 2)
    measured = [(row.name, row.images_per_s, row.miou) for row in rows if row.images_per_s and row.miou is not None]
    shown = measured or _with_published_quality(rows)
    title = "Measured here" if measured else f"Speed here, quality as published on {PLOTTED_DATA}"
    _panel(here, shown, title, filled=bool(measured))
    on_cityscapes = [
        (figures.name, figures.images_per_s, figures.miou)
        for figures in PUBLISHED
        if figures.data == CITYSCAPES and figures.images_per_s
    ]
    _panel(elsewhere, on_cityscapes, f"Published on {CITYSCAPES}, each on its own hardware", filled=False)
    figure.draw_without_rendering()
    for axes, points in ((here, shown), (elsewhere, on_cityscapes)):
        if points:
            _place_labels(axes, points)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


_Point = tuple[str, float, float]
"""Name, images a second, mean IoU in percent."""


def _with_published_quality(rows: Sequence[ComparisonRow]) -> list[_Point]:
    """Points with mean IoU published at a single scale: multi-scale testing costs several times the speed shown."""
    return [
        (row.name, row.images_per_s, row.published_miou)
        for row in rows
        if row.images_per_s
        and row.published_miou is not None
        and row.published_on.startswith(PLOTTED_DATA)
        and "MSC" not in row.published_on
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
"""Places of a label beside its point, best first: offset in points, horizontal and vertical alignment."""


def _place_labels(axes: Axes, points: Sequence[_Point]) -> None:
    """Label each point on the first of `_SIDES` without overlap of a point or another label, else on the first side.

    The figure must have been drawn before, since overlap is computed in pixels.
    """
    places = axes.transData.transform([(rate, miou) for _, rate, miou in points])
    occupied = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    for name, rate, miou in points:
        tried = [
            axes.annotate(name, (rate, miou), offset, textcoords="offset points", ha=ha, va=va, fontsize=7.5)
            for offset, ha, va in _SIDES
        ]
        chosen = next((label for label in tried if not label.get_window_extent().count_overlaps(occupied)), tried[0])
        occupied.append(chosen.get_window_extent())
        for label in tried:
            if label is not chosen:
                label.remove()


# ---------------------------------------------------------------- files


def write_comparison(rows: Sequence[ComparisonRow], output: Url, measure: SpeedSettings) -> str:
    """Write comparison.parquet, .md and .png, replacing those of the round before; returns the Markdown."""
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), parquet)
    text = comparison_markdown(rows, size=f"{measure.height_px}x{measure.width_px}", machine=machine_text(measure))
    objects.put(output / "comparison.parquet", parquet.getvalue())
    objects.put(output / "comparison.md", text.encode())
    objects.put(output / "comparison.png", quality_speed_png(rows))
    return text


def machine_text(measure: SpeedSettings) -> str:
    """Machine in one line: GPU, or threads and processor; torch version; load per core at the end."""
    threads = f"{measure.threads} thread(s), {platform.machine()}"
    device = torch.cuda.get_device_name() if measure.device == "cuda" else threads
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return f"{device}, torch {torch.__version__}, load per core {load:.1f} at the end"
