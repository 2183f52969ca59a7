"""Convert the official download of a public data set into sharded Parquet files or tars for training.

    ray job submit --working-dir . -- python jobs/prepare_dataset.py --layout voc --root s3://bucket/download \
        --output s3://bucket/voc --splits train val

Two minutes on a laptop, on generated data:

    python -m jobs.prepare_dataset --layout farmland --root none --output fields --splits val

The root is the folder into which the official archives were unpacked. The output then holds a folder for each split,
classes.yaml, and manifest.json with checksums and statistics of the classes; `jobs/train.py --data` takes it. Examples
that cannot be used become rows under failures/. The same command again resumes after a crash, and does nothing when
the set is finished; with --verify it reads everything again and compares checksums.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from infra import log as logs
from infra import notify
from jobs import command_line, console
from pipeline.datasets.config import PrepareConfig
from pipeline.store.url import Url

if TYPE_CHECKING:
    from pipeline.datasets.prepare import ExampleShard, Preparation
    from pipeline.run.ledger import RunProgress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareArguments:
    """Flags of `prepare_dataset`."""

    job: ClassVar[str] = "prepare"
    shown: ClassVar[tuple[str, ...]] = (
        *("format", "cut_px", "shard_examples", "part_mib", "max_failed_fraction", "retry_failed", "verify"),
        *("decode.max_mpx", "log_format"),
    )

    cfg: Annotated[PrepareConfig, tyro.conf.arg(name="")]
    notify: str | None = None
    """URL that gets the closing JSON line by POST, or the error that ended the job; unset: ATROUS_NOTIFY."""


NO_ROOT = "none"
"""`--root` of layouts that generate their examples: no place is meant."""


def prepare_dataset(cfg: PrepareConfig) -> int:
    """Prepare the shards that are left, or verify a finished output; returns the exit status."""
    from infra import preflight
    from pipeline.datasets import output, prepare, receipts
    from pipeline.run.ledger import RunProgress
    from pipeline.store.lease import Lease

    layout = output.find_layout(cfg)
    preflight.check_apart([] if cfg.root == NO_ROOT else [Url(cfg.root)], cfg.output_url)
    manifest, progress = receipts.read_set_manifest(cfg.output_url), RunProgress()
    if manifest or cfg.verify:
        output.refuse_other_settings(cfg)
    if cfg.verify:
        problems = output.verify_set(cfg.output_url, manifest)
        console.print_json({"output": str(cfg.output_url), "problems": problems})
        return int(problems > 0)
    if manifest and not (cfg.retry_failed and manifest.failed_fraction):
        log.info("nothing to do: the whole set is there")
    else:
        shards = prepare.plan_examples(layout, Url(cfg.root), cfg.splits, shard_examples=cfg.shard_examples)
        preflight.check_authentication()
        preflight.check_output(cfg.output_url / "_run")
        member = prepare.label_member(shards, cfg.cut_px) if cfg.format == "tar" else "label"
        job = output.preparation_of(cfg, layout, member)
        with Lease(cfg.output_url, lease_s=cfg.lease_s, command=command_line.command()):
            left = output.unfinished_shards(cfg, shards)
            progress = prepare_shards(cfg, job, shards, left) if left else progress
            origin = output.set_origin(job, command_line.code_version())
            manifest = receipts.close_set(cfg.output_url, output.shard_ids(shards), layout.classes, origin)
    status, summary = output.set_summary(cfg, manifest, examples_now=progress.committed)
    console.print_json(summary)
    return status


def prepare_shards(
    cfg: PrepareConfig, job: "Preparation", shards: Sequence["ExampleShard"], left: Sequence["ExampleShard"]
) -> "RunProgress":
    """Prepare the unfinished shards, `left` of all `shards`, on Ray."""
    from infra import session
    from infra.progress import Reporter
    from pipeline.datasets import prepare
    from pipeline.run import flow
    from pipeline.run.ledger import MAX_WORKER_DEATHS

    logs.configure(cfg.log_format)  # again: importing Ray has set up its own loggers
    examples, to_do = (sum(len(shard.examples) for shard in some) for some in (shards, left))
    log.info("%d example(s) in %d shard(s), %d in %d are left", examples, len(shards), to_do, len(left))
    with session.connect() as nodes:
        ledger = flow.RemoteLedger()
        cpus = sum(node.get("CPU", 0) for node in nodes)
        reporter = Reporter(
            ledger.progress,
            planned=examples,
            already=examples - to_do,
            slots={prepare.STAGE: min(cpus, len(left))},
            every_s=cfg.progress_s,
            counted=prepare.STAGE,
        )
        work = partial(prepare.prepare_shard, job, ledger=ledger)
        with reporter:
            flow.run_tasks(prepare.STAGE, left, work, deaths=MAX_WORKER_DEATHS * cfg.shard_examples)
    return reporter.latest


def main(argv: list[str] | None = None) -> int:
    """Parse, prepare, and turn errors into a message and an exit status."""
    logs.configure()

    def job() -> int:
        args = command_line.parse(argv, PrepareArguments, description=__doc__ or "")
        notify.configure(args.notify)
        cfg = args.cfg
        logs.configure(cfg.log_format)
        log.info("preparing %s of %s in %s into %s", ", ".join(cfg.splits), cfg.layout, cfg.root, cfg.output)
        console.log_changed_settings(cfg)
        return prepare_dataset(cfg)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
