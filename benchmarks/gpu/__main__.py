"""Measure everything that a GPU can tell about this project, in one command of at most eight minutes.

    python -m benchmarks.gpu --markdown gpu.md                   # on a machine with a GPU

    python -m benchmarks.gpu --device cpu --tiny                 # does every section run? two minutes of torch.compile

Neither Ray nor the compiled CRF is needed. A section whose packages are missing is left out and counted, a measurement
that does not fit into the time left as well, and one that fails does not stop the others: `counts`, `left_out` and
`failed` in the output have them. `crf` needs torch, numpy, pyarrow, PIL, PyYAML and fsspec; the others need pydantic,
tyro and safetensors besides, and `memory` tifffile and imagecodecs.

Progress and the Markdown tables go to stderr, one JSON line to stdout. Exit status 1 when a measurement failed.
"""

import argparse
import json
import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import torch

from benchmarks.gpu.clock import COPIED_BYTES, GIB, copy_gb_per_s, matmul_tflops
from benchmarks.gpu.plan import SECTIONS, Figures, GpuSetting, Report, markdown, missing_packages, rounded, run_sections
from infra import log as logs

log = logging.getLogger(__name__)

TINY_MATMUL = 256
RATES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def describe_machine(device: str, *, tiny: bool) -> Figures:
    """Device, versions, and its own rates of matrix products and copies."""
    size = TINY_MATMUL if tiny else None
    figures: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "tf32": f"matmul {torch.backends.cuda.matmul.allow_tf32}, convolutions {torch.backends.cudnn.allow_tf32}",
    }
    for name, dtype in RATES.items():
        figures[f"{name}_matmul_tflops"] = rounded(matmul_tflops(device=device, dtype=dtype, size=size))
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures |= {
            "memory_gib": rounded(properties.total_memory / GIB),
            "multiprocessors": properties.multi_processor_count,
        }
        figures |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        for kind, pinned in {"pinned": True, "pageable": False}.items():
            for way, rate in copy_gb_per_s(pinned=pinned).items():
                figures[f"copy_{way}_{kind}_gb_per_s"] = rounded(rate)
        figures["copies_of"] = f"{COPIED_BYTES / 2**20:.0f} MiB"
    return figures


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="device to measure")
    parser.add_argument(
        "--budget-s", type=float, default=480, help="no measurement starts that would end after this, s"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections, in this order")
    parser.add_argument("--tiny", action="store_true", help="smallest networks and images: figures mean nothing")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no GPU; --device cpu --tiny runs every section on the CPU")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections, write the tables, and print one JSON line with every figure."""
    started = monotonic()
    args = parse_arguments(argv)
    logs.configure()
    if args.tiny:
        torch.set_num_threads(1)  # waking more costs more than they give for small tensors
    report = Report(missing_packages=missing_packages())
    if report.missing_packages:
        log.warning("missing packages: %s; sections that need them are left out", ", ".join(report.missing_packages))
    report.machine = describe_machine(args.device, tiny=args.tiny)
    log.info("%s", report.machine)
    setting = GpuSetting(args.device, args.repeats, args.tiny, float(str(report.machine["bf16_matmul_tflops"])))
    run_sections(report, args.sections, setting, deadline=started + args.budget_s, log=log)
    report.seconds = monotonic() - started
    tables = markdown(report)
    log.info("\n%s", tables)
    if args.markdown is not None:
        args.markdown.write_text(tables, encoding="utf-8")
    print(json.dumps(report.plain(), allow_nan=False))
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
