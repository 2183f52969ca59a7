"""Make a small aerial farmland set and segment it on a local Ray: the whole job, with nothing to bring along.

    python -m jobs.demo --output demo

About a minute on two cores. The same command again finds everything done.
"""

import argparse
import logging
import sys
from pathlib import Path

from infra import log as logs
from jobs import segment_dataset
from pipeline.datasets import farmland

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Generate, segment, say where to look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="demo", help="folder that receives images/ and out/")
    parser.add_argument("--images", type=int, default=24, help="how many images")
    parser.add_argument("--size-px", type=int, default=512, help="their side, pixels")
    args = parser.parse_args(argv)
    logs.configure()
    source = Path(args.output) / "source"
    if not source.exists():
        log.info("generating %d images of farmland in %s", args.images, source)
        farmland.write_folder(str(source), args.images, size_px=args.size_px, seed=2026)
    flags = ["--source", str(source), "--output", str(Path(args.output) / "out"), "--checkpoint", "farmland"]
    log.info("python -m jobs.segment_dataset %s", " ".join(flags))
    return segment_dataset.main([*flags, "--runtime.progress-s", "2"])


if __name__ == "__main__":
    sys.exit(main())
