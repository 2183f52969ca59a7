"""Turn the official download of a public data set into sharded Parquet files or tars to train on, once.

    ray job submit --working-dir . -- python jobs/prepare_dataset.py --layout voc --root s3://bucket/download \
        --output s3://bucket/voc --splits train val

Two minutes on a laptop, with data made on the spot:

    python -m jobs.prepare_dataset --layout farmland --root none --output fields --splits val

The root is the folder into which the official archives were unpacked. The output then holds a folder for each split,
classes.yaml, and manifest.json with checksums and statistics of the classes; `jobs/train.py --data` takes it. Examples
that cannot be used end as rows under failures/. The same command again finishes what a crash left, and does nothing
when nothing is left; with --verify it reads everything again and compares checksums.
"""

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Literal

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field

from infra import log as logs
from infra import preflight, session
from infra.progress import Reporter
from jobs import command_line
from pipeline.config import DecodeConfig
from pipeline.datasets import prepare as preparing
from pipeline.datasets import receipts
from pipeline.datasets.catalogue import DATASET_LAYOUTS
from pipeline.datasets.layout import DatasetLayout
from pipeline.datasets.prepare import ExampleShard, Preparation
from pipeline.datasets.receipts import Origin, SetManifest
from pipeline.errors import ConfigError, JobError
from pipeline.redact import redact
from pipeline.run import flow
from pipeline.run.ledger import CONDEMNED_AFTER, RunProgress
from pipeline.store import objects
from pipeline.store.lease import Lease

log = logging.getLogger(__name__)

SHAPING = {"layout", "root", "splits", "format", "cut_px", "shard_examples", "part_mib", "decode"}
"""Settings that decide what is in the output: one output has one value of each."""
PROBLEMS_NAMED = 20


class PrepareConfig(BaseModel):
    """Turn an official download into Parquet files or tars to train on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: str = Field(description=f"Name of the set: {', '.join(DATASET_LAYOUTS)}.")
    root: str = Field(description="Folder into which its archives were unpacked: local or s3://.")
    output: str = Field(description="Folder that receives <split>/, classes.yaml and manifest.json.")
    splits: tuple[str, ...] = Field(min_length=1, description="Which parts of the set.")
    format: Literal["parquet", "tar"] = Field("parquet", description="Parquet files, or WebDataset tars.")
    cut_px: int | None = Field(
        None, ge=64, description="Cut images a quarter larger than this into windows, pixels; unset leaves them whole."
    )
    shard_examples: int = Field(128, ge=1, description="Examples that are done, and done again, together.")
    part_mib: float = Field(256.0, gt=0, le=1024, description="Size at which a file is closed, MiB.")
    decode: DecodeConfig = Field(DecodeConfig(), description="What is accepted as an image.")
    max_failed_fraction: float = Field(0.01, ge=0, le=1, description="More failed examples than this: exit status 1.")
    retry_failed: bool = Field(False, description="Do the shards with failures again, once their cause is gone.")
    verify: bool = Field(False, description="Only read a finished output again and compare checksums.")
    lease_s: float = Field(30.0, gt=0, description="A driver silent for this long has lost the output, seconds.")
    item_timeout_s: float = Field(600.0, gt=0, description="A worker stuck on an example this long is killed, seconds.")
    progress_s: float = Field(5.0, gt=0, description="Seconds between progress lines.")
    log_format: Literal["human", "json"] = Field("human", description="Log lines for people, or one JSON object each.")


def prepare(cfg: PrepareConfig) -> int:
    """Do the job; returns the exit status."""
    layout = find_layout(cfg.layout)
    preflight.check_apart([cfg.root], cfg.output)
    done = receipts.read_set_manifest(cfg.output)
    if done or cfg.verify:
        refuse_other(cfg)
    if cfg.verify:
        return verify(cfg.output, done)
    if done and not (cfg.retry_failed and done.failed_fraction):
        log.info("nothing to do: the whole set is there")
        return finish(cfg, done, examples_now=0)
    shards = preparing.plan_examples(layout, cfg.root, cfg.splits, shard_examples=cfg.shard_examples)
    preflight.check_authentication()
    preflight.check_output(objects.join(cfg.output, "_run"))
    with Lease(cfg.output, lease_s=cfg.lease_s, command=redact(" ".join(sys.argv))):
        owed = resume(cfg, shards)
        member = preparing.label_member(shards, cfg.cut_px) if cfg.format == "tar" else "label"
        progress = work(cfg, layout, member, shards, owed) if owed else RunProgress()
        done = receipts.close_set(cfg.output, ids_of(shards), layout.classes, origin_of(cfg, layout, member))
    return finish(cfg, done, examples_now=progress.committed)


def find_layout(name: str) -> DatasetLayout:
    """The set of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in DATASET_LAYOUTS:
        raise ConfigError(f"no data set {name!r}", hint=f"--layout is one of {', '.join(DATASET_LAYOUTS)}")
    return DATASET_LAYOUTS[name]


def origin_of(cfg: PrepareConfig, layout: DatasetLayout, member: str) -> Origin:
    """What the manifest says of the set and of how it was prepared."""
    return Origin(
        layout=layout.name,
        source=layout.source,
        license=layout.license,
        atrous=command_line.code_version(),
        format=cfg.format,
        labels=member,
        cut_px=cfg.cut_px,
    )


# ---------------------------------------------------------------- one output, one preparation


def refuse_other(cfg: PrepareConfig) -> None:
    """Stop when the output holds a set that was prepared with other settings.

    Raises:
        ConfigError: naming the settings.
    """
    url = objects.join(cfg.output, "_run/config.yaml")
    if not objects.exists(url):
        return
    before = yaml.safe_load(objects.read_bytes(url))
    asked = cfg.model_dump(mode="json", include=SHAPING)
    other = [
        f"{name}: {before.get(name)} there, {asked[name]} asked" for name in asked if before.get(name) != asked[name]
    ]
    if other:
        hint = "write to another --output, or give the same settings again"
        raise ConfigError(f"{redact(cfg.output)} was prepared otherwise: {redact('; '.join(other))}", hint=hint)


def resume(cfg: PrepareConfig, shards: Sequence[ExampleShard]) -> list[ExampleShard]:
    """Store settings and plan beside the output; returns the shards that are not done.

    Raises:
        ConfigError: the output was prepared with other settings.
        JobError: the download has changed since.
    """
    refuse_other(cfg)
    folder = objects.join(cfg.output, "_run")
    settings = cfg.model_dump(mode="json", include=SHAPING)
    objects.put(objects.join(folder, "config.yaml"), yaml.safe_dump(settings, sort_keys=False).encode())
    plan_url, planned = objects.join(folder, "plan.json"), ids_of(shards)
    if objects.exists(plan_url) and json.loads(objects.read_bytes(plan_url)) != planned:
        hint = "write to another --output: what is there is of the download as it was"
        raise JobError(f"{redact(cfg.root)} lists other examples than when this output was begun", hint=hint)
    objects.put(plan_url, json.dumps(planned, indent=1).encode())
    if cfg.retry_failed:
        log.info("%d failed example(s) are tried again", receipts.forget_failed_shards(cfg.output))
    done = receipts.done(cfg.output)
    return [shard for shard in shards if shard.id not in done]


def ids_of(shards: Sequence[ExampleShard]) -> dict[str, list[str]]:
    """Ids of the shards of each split."""
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for shard in shards:
        ids[shard.split].append(shard.id)
    return dict(ids)


# ---------------------------------------------------------------- work


def work(
    cfg: PrepareConfig, layout: DatasetLayout, member: str, shards: Sequence[ExampleShard], owed: Sequence[ExampleShard]
) -> RunProgress:
    """Prepare what is owed; returns what was done."""
    job = Preparation(
        layout=layout,
        root=cfg.root,
        output=cfg.output,
        format=cfg.format,
        label_member=member,
        cut_px=cfg.cut_px,
        part_bytes=int(cfg.part_mib * 2**20),
        decode=cfg.decode,
        timeout_s=cfg.item_timeout_s,
    )
    planned = sum(len(shard.examples) for shard in shards)
    left = sum(len(shard.examples) for shard in owed)
    log.info("%d examples in %d shards, %d and %d are left", planned, len(shards), left, len(owed))
    with session.connect() as nodes:
        ledger = flow.RemoteLedger()
        cpus = sum(node.get("CPU", 0) for node in nodes)
        reporter = Reporter(
            ledger.progress,
            planned=planned,
            already=planned - left,
            slots={preparing.STAGE: min(cpus, len(owed))},
            every_s=cfg.progress_s,
            counted=preparing.STAGE,
        )
        do = partial(preparing.prepare_shard, job, ledger=ledger)
        with reporter:
            flow.run_each(preparing.STAGE, owed, do, deaths=CONDEMNED_AFTER * cfg.shard_examples)
    return reporter.latest


# ---------------------------------------------------------------- what is said at the end


def verify(output: str, done: SetManifest | None) -> int:
    """Read every part again; the exit status says whether all are as the manifest says."""
    if done is None:
        raise JobError(f"{redact(output)} is not finished", hint="run the command without --verify first")
    found = list(receipts.set_problems(output, done))
    for problem in found[:PROBLEMS_NAMED]:
        log.error("%s", problem)
    print(json.dumps({"output": redact(output), "problems": len(found)}), flush=True)
    return int(bool(found))


def finish(cfg: PrepareConfig, done: SetManifest, *, examples_now: int) -> int:
    """Print what is there; the exit status says whether too many examples failed."""
    for name, split in done.splits.items():
        log.info("%-12s %8d ok %6d failed %8d images %s", name, split.ok, split.failed, split.rows, split.error_codes)
    log.info("licence: %s (%s)", done.origin.license, done.origin.source)
    labels = "" if done.origin.labels in ("label", "png") else f" --sets.labels {done.origin.labels}"
    log.info("train on it: python -m jobs.train --data %s%s", redact(cfg.output), labels)
    status = int(done.failed_fraction > cfg.max_failed_fraction)
    if status:
        shares = (done.failed_fraction * 100, cfg.max_failed_fraction * 100)
        log.error("%.1f%% of the examples failed, limit %.1f%% (--max-failed-fraction)", *shares)
    said = {
        "output": redact(cfg.output),
        "splits": {name: {"ok": one.ok, "failed": one.failed, "rows": one.rows} for name, one in done.splits.items()},
        "examples_now": examples_now,
        "exit_status": status,
    }
    sys.stderr.flush()
    print(json.dumps(said), flush=True)
    return status


def main(argv: list[str] | None = None) -> int:
    """Parse, prepare, and turn errors into a message and an exit status."""
    logs.configure()

    def job() -> int:
        cfg = tyro.cli(PrepareConfig, args=argv, description=__doc__)
        logs.configure(cfg.log_format)
        return prepare(cfg)

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
