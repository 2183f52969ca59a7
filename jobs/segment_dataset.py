"""Segment every image of a collection and commit masks and statistics as Parquet.

    ray job submit --working-dir . -- python jobs/segment_dataset.py --source s3://bucket/images \
        --output s3://bucket/out --checkpoint s3://bucket/model

Two minutes on a laptop, with data made on the spot:

    python -m jobs.demo --output demo

The same command again finishes what a crash left, and does nothing when nothing is left.
"""

import io
import json
import logging
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import distributions

import pyarrow.parquet as pq

from infra import log as logs
from infra import preflight, session
from infra.progress import Reporter
from jobs import command_line, summary
from jobs.command_line import Arguments
from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.config import JudgeConfig, SegmentConfig
from pipeline.errors import JobError
from pipeline.infer import segmenter
from pipeline.models import checkpoint
from pipeline.models.checkpoint import Checkpoint
from pipeline.records import Footprint
from pipeline.redact import redact
from pipeline.refine.engine import resolve_engine
from pipeline.run import flow, manifest, workers
from pipeline.run.ledger import RunProgress
from pipeline.run.manifest import Manifest, Todo
from pipeline.run.stages import Job
from pipeline.source.plan import Plan, changed, plan_source
from pipeline.store import objects
from pipeline.store.lease import Lease

log = logging.getLogger(__name__)

SHAPING_MASKS = {"ray", "torch", "pyarrow", "pillow", "pydensecrf", "pydensecrf2", "fsspec", "s3fs", "numpy"}
"""Packages whose versions are stored with a run."""
BANDS = ("red", "green", "blue")
"""What decoding gives."""
NO_NETWORK = Footprint(weight_bytes=0, num_classes=1, stride=1)
"""What masks need that exist already."""
TYPICAL_IMAGE_BYTES = 200_000
"""To guess how many images are in a tar before it is read; only decides how many previews are kept."""


@dataclass(frozen=True, slots=True)
class Run:
    """One config on one output: what is asked, what answers, and where it goes."""

    cfg: SegmentConfig
    classes: ClassMap
    model: Checkpoint | None
    """None where masks are only scored."""
    sha256: str
    """Of what answers: the checkpoint, or the masks."""
    fingerprint: str
    url: str
    judge: JudgeConfig | None = None
    """How answers are judged, where they are."""
    masks: str | None = None
    """URL of the masks that are scored instead of a network's."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended."""

    manifest: Manifest
    progress: RunProgress
    """What this driver itself has done: nothing when the run was finished before."""
    wall_s: float


def identify(cfg: SegmentConfig) -> Run:
    """Load the checkpoint, check it against the class map, and name the run."""
    cfg = cfg.model_copy(update={"refine": resolve_engine(cfg.refine)})
    model = checkpoint.load_checkpoint(cfg.checkpoint)
    class_map = classes.load_class_map(cfg.classes) if cfg.classes else model.card.classes
    checkpoint.check_classes(model.card, class_map)
    checkpoint.check_bands(model.card, BANDS)
    checkpoint.blank(model.card, cfg.infer.output_stride)  # refuses a stride that its network does not have
    fingerprint = cfg.fingerprint(model_sha256=model.sha256, classes=class_map.model_dump(mode="json"))
    url = objects.join(cfg.output, f"run={fingerprint[:12]}")
    return Run(cfg, class_map, model, model.sha256, fingerprint, url)


def describe(run: Run, planned: Plan) -> None:
    """Store what explains a run beside it: config, plan, versions."""
    folder = objects.join(run.url, "_run")
    environment = {
        "fingerprint": run.fingerprint,
        "model_sha256": run.sha256,
        "atrous": command_line.code_version(),
        "python": platform.python_version(),
        **{one.name: one.version for one in distributions() if one.name in SHAPING_MASKS},
    }
    objects.put(objects.join(folder, "config.yaml"), command_line.to_yaml(run.cfg).encode())
    objects.put(objects.join(folder, "environment.json"), json.dumps(environment, indent=1).encode())
    table = io.BytesIO()
    pq.write_table(planned.to_table(), table)
    objects.put(objects.join(folder, "plan.parquet"), table.getvalue())


def segment(args: Arguments) -> int:
    """Do the job; returns the exit status."""
    run = identify(args.cfg)
    preflight.check_apart(args.cfg.source, args.cfg.output)
    planned = plan_source(args.cfg)
    if args.plan:
        return summary.print_plan(run.url, planned, manifest.footers(run.url))
    return summary.finish(run, carry_out(run, planned))


def carry_out(run: Run, planned: Plan) -> Done:
    """Do what is owed, close the run and leave its report; nothing when it is finished."""
    started, cfg = time.monotonic(), run.cfg
    log.info("%s -> %s", ", ".join(redact(url) for url in cfg.source), redact(run.url))
    if planned.ignored:
        log.info("files that are no input: %s", dict(planned.ignored))
    for warning in planned.warnings:
        log.warning("%s", warning)
    finished = manifest.read_manifest(run.url)
    if finished and not manifest.todo(run.url, planned, manifest.footers(run.url)):
        log.info("nothing to do: every row of this run is committed")
        return Done(finished, RunProgress(), time.monotonic() - started)
    preflight.check_authentication()
    preflight.check_output(objects.join(run.url, "_run"))
    with Lease(run.url, lease_s=cfg.runtime.lease_s, command=redact(" ".join(sys.argv))):
        owed, committed = resume(run, planned)
        progress = work(run, planned, owed, already=committed) if owed else RunProgress()
        closed = manifest.close_run(
            run.url, planned, run.classes, fingerprint=run.fingerprint, on_duplicate=cfg.read.on_duplicate
        )
        done = Done(closed, progress, time.monotonic() - started)
        if run.model:
            summary.write_report(run, done)
        manifest.succeed(run.url)
    return done


def resume(run: Run, planned: Plan) -> tuple[list[Todo], int]:
    """What is left to do, and how many rows are committed; a finished run that has work again is opened."""
    refuse_changed(run, planned)
    describe(run, planned)
    manifest.reopen(run.url)
    parts = manifest.footers(run.url)
    owed = manifest.todo(run.url, planned, parts)
    rows = sum(part.rows for part in parts)
    if parts:
        log.info("resuming: %d row(s) in %d part(s) are committed, %d shard(s) are left", rows, len(parts), len(owed))
    return owed, rows


def refuse_changed(run: Run, planned: Plan) -> None:
    """Stop when an archive was replaced since this run was planned: its rows would be of two contents."""
    url = objects.join(run.url, "_run/plan.parquet")
    if not objects.exists(url):
        return
    before = pq.read_table(io.BytesIO(objects.read_bytes(url)))
    if names := changed(before, planned):
        hint = "write to another --output, or give the new content a new name"
        raise JobError(f"{len(names)} file(s) changed since this run was planned, first {names[0]!r}", hint=hint)


def work(run: Run, planned: Plan, owed: list[Todo], *, already: int) -> RunProgress:
    """Run the flow over what is owed, beside the rows `already` committed; returns what was done."""
    with session.connect() as nodes:
        network = segmenter.footprint(run.model, run.cfg.infer.output_stride) if run.model else NO_NETWORK
        crew = workers.plan_workers(run.cfg, workers.nodes_of(nodes, run.cfg.runtime), network)
        log.info("%s", crew.describe())
        ledger = flow.RemoteLedger()
        reporter = Reporter(
            ledger.progress,
            planned=planned.rows,
            already=already,
            slots={"infer": crew.infer, "refine": crew.refine},
            every_s=run.cfg.runtime.progress_s,
        )
        with reporter:
            flow.run_flow(job_of(run, planned), owed, crew, ledger)
    summary.print_stages(reporter.latest)
    return reporter.latest


def job_of(run: Run, planned: Plan) -> Job:
    """What the workers need to know of a run."""
    images = planned.rows or planned.bytes / TYPICAL_IMAGE_BYTES
    return Job(
        cfg=run.cfg,
        classes=run.classes,
        run_url=run.url,
        model_fp=run.sha256[:12],
        config_fp=run.fingerprint[:12],
        preview_share=min(1.0, run.cfg.runtime.previews / max(images, 1)),
        judge=run.judge,
        masks=run.masks,
    )


def main(argv: list[str] | None = None) -> int:
    """Parse, segment, and turn errors into a message and an exit status."""
    logs.configure()

    def job() -> int:
        args = command_line.parse(sys.argv[1:] if argv is None else argv, description=__doc__ or "")
        logs.configure(args.cfg.runtime.log_format)
        log.info("resolved config:\n%s", command_line.to_yaml(args.cfg))
        return segment(args)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
