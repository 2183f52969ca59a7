"""Plan of the GPU benchmark: measurements by section, run within a budget of time, and the report of them.

Whatever was not measured is in the report, with its reason: a missing package, no time left, or an error.
"""

import importlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from time import monotonic
from typing import Any

Figures = Mapping[str, Any]
"""Figures of a measurement by name: numbers, texts, or None where this machine has no such figure."""

SECTIONS = ("crf", "agreement", "networks", "uploads", "memory", "compiling", "grid")
"""Modules of this package, in the order in which they run: what is wanted most comes first."""
PACKAGES = ("numpy", "pyarrow", "pydantic", "tyro", "yaml", "safetensors", "fsspec", "PIL", "tifffile", "imagecodecs")
"""Packages by import name that the sections need besides torch; a test tells when one is missing here."""
OURS = ("pipeline", "benchmarks", "infra", "jobs")


@dataclass(frozen=True, slots=True)
class GpuSetting:
    """What the sections measure with."""

    device: str
    """`cuda` or `cpu`."""
    repeats: int = 5
    """Turns of each side; figures are medians."""
    tiny: bool = False
    """Smallest networks and images: only whether everything runs."""
    bf16_tflops: float = float("nan")
    """This device's own rate of bf16 matrix products, 1e12 operations a second."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of a section."""

    name: str
    work: Callable[[], Figures]
    needs_s: float = 8
    """Time left in the budget without which it does not start, seconds: about what it takes on a GPU."""


@dataclass(slots=True)
class Report:
    """Everything measured, and everything that was not."""

    machine: Figures = field(default_factory=dict)
    missing_packages: Sequence[str] = ()
    rows: dict[str, dict[str, Figures]] = field(default_factory=dict)
    """Figures by section and measurement."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """Sections and measurements that did not run: `section`, `name` and `because`."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """Measurements that raised, likewise."""
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON data, with the counts first."""
        counts = {"ran": sum(map(len, self.rows.values())), "left_out": len(self.left_out), "failed": len(self.failed)}
        return {
            "counts": counts,
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "missing_packages": list(self.missing_packages),
            "sections": self.rows,
            "left_out": self.left_out,
            "failed": self.failed,
        }


def missing_packages() -> list[str]:
    """Packages of `PACKAGES` that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def run_sections(
    report: Report, sections: Iterable[str], setting: GpuSetting, *, deadline: float, log: logging.Logger
) -> None:
    """Run the sections in order into `report`; start nothing that needs more than is left until `deadline`."""
    for section in sections:
        try:
            module = importlib.import_module(f"benchmarks.gpu.{section}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] in OURS:
                raise
            _leave_out(report, section, "all", f"the package {error.name} is missing", log)
            continue
        for measurement in module.measurements(setting):
            _run(report, section, measurement, deadline, log)


def _run(report: Report, section: str, measurement: Measurement, deadline: float, log: logging.Logger) -> None:
    left_s = deadline - monotonic()
    if left_s < measurement.needs_s:
        because = f"it needs about {measurement.needs_s:.0f} s, {max(left_s, 0):.0f} s of --budget-s are left"
        _leave_out(report, section, measurement.name, because, log)
        return
    started = monotonic()
    try:
        figures = measurement.work()
    except Exception as error:  # one row that fails, whyever, must not cost the rows after it
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        report.failed.append({"section": section, "name": measurement.name, "because": text})
        log.exception("%s, %s: failed", section, measurement.name)
        return
    report.rows.setdefault(section, {})[measurement.name] = {name: rounded(value) for name, value in figures.items()}
    log.info("%s, %s, %.1f s: %s", section, measurement.name, monotonic() - started, dict(figures))


def _leave_out(report: Report, section: str, name: str, because: str, log: logging.Logger) -> None:
    report.left_out.append({"section": section, "name": name, "because": because})
    log.warning("%s, %s: left out, %s", section, name, because)


def rounded(value: Any) -> Any:
    """Numbers to four significant digits, and those that JSON lacks as text; anything else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


def markdown(report: Report) -> str:
    """Report as Markdown: the machine, one table per section, and what was not measured."""
    lines = [f"{name}: {value}  " for name, value in report.machine.items()]
    for section, rows in report.rows.items():
        columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
        lines += ["", f"## {section}", "", _row(["", *columns]), _row(["---"] * (len(columns) + 1))]
        lines += [_row([name, *(_cell(figures.get(column)) for column in columns)]) for name, figures in rows.items()]
    for title, entries in {"Left out": report.left_out, "Failed": report.failed}.items():
        lines += ["", f"## {title}: {len(entries)}", ""]
        lines += [f"- {entry['section']}, {entry['name']}: {entry['because']}" for entry in entries]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
