"""Plots of HTML reports as inline SVG in the colours of the page, which follow its light and dark mode.

In: a matplotlib figure in the colours given here. Out: an SVG element whose colours are CSS variables of the page.
Names of files and classes are escaped.
"""

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.score.metrics import Interval

INK, SOFT, RULE, ACCENT, ALARM = COLOURS = ("#010101", "#020202", "#030303", "#040404", "#050505")
"""Placeholder colours in a plot, replaced by `VARIABLES` of the page."""
VARIABLES = ("--ink", "--soft", "--rule", "--accent", "--alarm")
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
"""Settings for `matplotlib.rc_context` around all drawing."""


def new_figure(*, width: float = 4.6, height: float = 3.1) -> tuple[Figure, Axes]:
    """Empty figure of this size, inches: about the width of a phone, so that text stays legible there."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def figure_svg(figure: Figure, name: str, title: str) -> Markup:
    """Convert a figure to an SVG element in the page's colours; `name` prefixes its ids, `title` is its label."""
    for axes in figure.axes:
        axes.set_axisbelow(True)
    out = StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in zip(COLOURS, VARIABLES, strict=True):
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    head = Markup('<svg role="img" aria-label="{}" ').format(title)
    # Escaped by matplotlib, which writes every text through its XML writer.
    return head + Markup(text.removeprefix("<svg "))  # noqa: S704


def forest_plot(rows: Sequence[tuple[str, Interval]], name: str, *, title: str, than: str) -> Markup:
    """Forest plot: differences in IoU to `than` with intervals, first row on top, coloured if the interval excludes 0.

    `name` and `title` as for `figure_svg`.
    """
    figure, axes = new_figure(height=0.75 + 0.24 * max(len(rows), 1))
    for row, (_, gain) in enumerate(rows):
        colour = ACCENT if gain.low > 0 else ALARM if gain.high < 0 else SOFT
        axes.plot([gain.low * 100, gain.high * 100], [row, row], color=colour, lw=2.2, solid_capstyle="round")
        axes.plot([gain.value * 100], [row], "o", color=colour, ms=5)
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(rows)), [shorten_label(label) for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=f"IoU minus that of {than}, percentage points")
    return figure_svg(figure, name, title)


def shorten_label(label: str, letters: int = 26) -> str:
    """Shorten a label to at most `letters` characters."""
    return label if len(label) <= letters else f"{label[: letters - 1]}…"
