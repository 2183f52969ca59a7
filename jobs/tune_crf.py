"""Search the parameters of the dense CRF for a network, on labelled images; the result may be no CRF.

    ray job submit --working-dir . -- python jobs/tune_crf.py --images s3://bucket/val/images \
        --labels s3://bucket/val/labels --checkpoint s3://bucket/model --output s3://bucket/tuned

Labels are PNGs of class ids, or of colours with --labels-as colours, under the names of their images: images/a/1.jpg,
labels/a/1.png. Two minutes on a laptop:

    python -c "from pipeline.datasets.farmland import *; write_folder('f', 20, size_px=96, seed=1, with_labels=True)"
    python -m jobs.tune_crf --images f/images --labels f/labels --checkpoint farmland --output tuned

Writes params.yaml (`segment_dataset --config` takes it), results.parquet (one row per candidate) and report/index.html.
A stopped search keeps nothing; the same command starts it again.
"""

import logging
import time
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from infra import log as logs
from infra import notify
from jobs import command_line, console
from pipeline.store.url import Url
from pipeline.tune.config import TuneConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneArguments:
    """Flags of `tune_crf`."""

    job: ClassVar[str] = "tune-crf"
    shown: ClassVar[tuple[str, ...]] = (
        *("classes", "labels_as", "label_ids", "limit", "grid", "finer", "trimap_px", "samples"),
        *("tile.mode", "infer.output_stride", "refine.engine", "refine.prune"),
    )

    cfg: Annotated[TuneConfig, tyro.conf.arg(name="")]
    notify: str | None = None
    """URL that gets the closing JSON line by POST, or the error that ended the job; unset: ATROUS_NOTIFY."""


def tune(cfg: TuneConfig) -> int:
    """Search on Ray, and write parameters, table and report; returns the exit status."""
    from infra import preflight, session
    from jobs import run as runs
    from pipeline.image.labels import label_coding
    from pipeline.infer import segmenter
    from pipeline.refine.engine import resolve_engine
    from pipeline.run import workers
    from pipeline.source.plan import plan_source
    from pipeline.tune import inputs, on_ray, output

    logs.configure()  # again: importing Ray has set up its own loggers
    started = time.monotonic()
    cfg = cfg.model_copy(update={"refine": resolve_engine(cfg.refine)})  # native or torch
    grid = inputs.first_grid(cfg)
    run = runs.identify(inputs.segment_config(cfg, grid))
    inputs.check_bands(run.model.card)
    preflight.check_apart([Url(cfg.images), Url(cfg.labels)], cfg.output_url)
    plan = plan_source(run.cfg)
    label_urls, coding = inputs.find_labels(cfg, plan), label_coding(cfg)
    coding.check(run.classes)
    preflight.check_authentication()
    preflight.check_output(cfg.output_url)
    with session.connect() as nodes:
        network = segmenter.footprint(run.model, run.cfg.infer.output_stride)
        crew = workers.plan_workers(run.cfg, workers.cluster_nodes(nodes, run.cfg.runtime), network)
        job = runs.stage_job(run, plan)
        chunks, left_out = on_ray.score_images(job, plan.shards, label_urls, coding, crew)
        before_search_s = time.monotonic() - started
        search = on_ray.SearchOnRay(job, chunks, crew, base=cfg.refine, widths_px=cfg.trimap_px)
        left_out += search.left_out
        output.log_left_out(left_out)
        outcome = on_ray.search_parameters(search, cfg, grid)
    facts = output.search_facts(cfg, outcome, runs.run_facts(run))
    output.write_search(cfg, outcome, run.classes, left_out, facts)
    times = {"before_search_s": round(before_search_s, 1), "wall_s": round(time.monotonic() - started, 1)}
    console.print_json(output.search_summary(cfg, outcome, left_out) | times)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse, search, and turn errors into a message and an exit status; "no CRF" is a success."""
    logs.configure()

    def job() -> int:
        args = command_line.parse(argv, TuneArguments, description=__doc__ or "")
        notify.configure(args.notify)
        cfg = args.cfg
        log.info("tuning the CRF for %s on %s into %s", cfg.checkpoint, cfg.images, cfg.output)
        console.log_changed_settings(cfg)
        return tune(cfg)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
