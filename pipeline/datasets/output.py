"""Output folder of a preparation: its settings, unfinished shards, and summary.

    <output>/_run/config.yaml   settings that determine its content
    <output>/_run/plan.json     shard ids of each split

In: a `PrepareConfig`, planned shards, receipts. Out: unfinished shards, log lines, plain data for the summary line.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Sequence

import yaml
from pydantic import TypeAdapter

from pipeline.datasets import annotated, rasters, receipts
from pipeline.datasets.catalogue import DATASET_LAYOUTS
from pipeline.datasets.config import ANNOTATED, RASTERS, PrepareConfig
from pipeline.datasets.layout import DatasetLayout
from pipeline.datasets.prepare import ExampleShard, Preparation
from pipeline.datasets.receipts import Origin, SetManifest
from pipeline.errors import ConfigError, JobError
from pipeline.redact import redact
from pipeline.score.coverage import listed
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

_Shards = TypeAdapter(dict[str, list[str]])
"""Content of `plan.json`."""
LOGGED_PROBLEMS = 20
"""Largest number of problems that `--verify` logs."""


def find_layout(cfg: PrepareConfig) -> DatasetLayout:
    """Look up the layout of a data set, or open that of rasters or of an export.

    Raises:
        ConfigError: the name is unknown; the hint lists all names. As the functions `open_layout`.
    """
    if cfg.layout == RASTERS:
        return rasters.open_layout(cfg)
    if cfg.layout in ANNOTATED:
        return annotated.open_layout(cfg)
    if cfg.layout not in DATASET_LAYOUTS:
        known = ", ".join([*DATASET_LAYOUTS, RASTERS, *ANNOTATED])
        raise ConfigError(f"--layout {cfg.layout!r} is unknown", hint=f"known: {known}")
    return DATASET_LAYOUTS[cfg.layout]


def preparation_of(cfg: PrepareConfig, layout: DatasetLayout, label_member: str) -> Preparation:
    """Describe a preparation for its workers."""
    return Preparation(
        layout=layout,
        root=Url(cfg.root),
        output=cfg.output_url,
        format=cfg.format,
        label_member=label_member,
        cut_px=cfg.cut_px,
        part_bytes=int(cfg.part_mib * 2**20),
        decode=cfg.decode,
        timeout_s=cfg.item_timeout_s,
    )


def set_origin(job: Preparation, version: str) -> Origin:
    """Origin of a prepared set for its manifest; `version` is the version of the code."""
    return Origin(
        layout=job.layout.name,
        source=job.layout.source,
        license=job.layout.license,
        atrous=version,
        format=job.format,
        labels=job.label_member,
        cut_px=job.cut_px,
        bands=list(job.layout.bands),
    )


# ---------------------------------------------------------------- resuming


def refuse_other_settings(cfg: PrepareConfig) -> None:
    """Refuse an output that was prepared with other settings.

    Raises:
        ConfigError: settings differ; the message has both values of each.
    """
    url = cfg.output_url / "_run/config.yaml"
    if not objects.exists(url):
        return
    with objects.naming_damage(url, hint="delete it if the settings are the same, or set another --output"):
        stored = dict(yaml.safe_load(objects.read_bytes(url)))
    settings = cfg.model_dump(mode="json", include=cfg.output_settings)
    if Url(str(stored.get("root"))).place == Url(cfg.root).place:
        settings["root"] = stored["root"]  # spelled otherwise
    other = [
        f"{name}: {stored.get(name)} stored, now {value}"
        for name, value in settings.items()
        if stored.get(name) != value
    ]
    if other:
        hint = f"set another --output, or restore the settings that {url} has"
        raise ConfigError(f"{cfg.output_url} was prepared with other settings: {redact('; '.join(other))}", hint=hint)


def unfinished_shards(cfg: PrepareConfig, shards: Sequence[ExampleShard]) -> list[ExampleShard]:
    """Write settings and plan to the output; returns the shards without a receipt.

    Raises:
        ConfigError: the output was prepared with other settings.
        JobError: the download has other examples than when the output was begun.
    """
    refuse_other_settings(cfg)
    folder = cfg.output_url / "_run"
    settings = cfg.model_dump(mode="json", include=cfg.output_settings)
    objects.put(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    plan_url, plan = folder / "plan.json", shard_ids(shards)
    if objects.exists(plan_url):
        with objects.naming_damage(plan_url, hint="delete it if the download is unchanged, or set another --output"):
            before = _Shards.validate_json(objects.read_bytes(plan_url))
        if before != plan:
            hint = f"the download has changed since {plan_url} was written; set another --output"
            raise JobError(f"{Url(cfg.root)} has other examples than when this output was begun", hint=hint)
    objects.put(plan_url, json.dumps(plan, indent=1).encode())
    if cfg.retry_failed:
        log.info("retrying %d failed example(s)", receipts.forget_failed_shards(cfg.output_url))
    done = receipts.finished_shards(cfg.output_url)
    return [shard for shard in shards if shard.id not in done]


def shard_ids(shards: Sequence[ExampleShard]) -> dict[str, list[str]]:
    """Ids of the shards of each split, in order."""
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for shard in shards:
        ids[shard.split].append(shard.id)
    return dict(ids)


# ---------------------------------------------------------------- the summary


def verify_set(output: Url, manifest: SetManifest | None) -> int:
    """Read every part and log differences from the manifest; returns the number of problems.

    Raises:
        JobError: the set is unfinished.
    """
    if manifest is None:
        raise JobError(f"{output} is not finished", hint="run the command without --verify first")
    problems = list(receipts.set_problems(output, manifest))
    for problem in problems[:LOGGED_PROBLEMS]:
        log.error("%s", problem)
    return len(problems)


def set_summary(cfg: PrepareConfig, manifest: SetManifest, *, examples_now: int) -> tuple[int, dict[str, object]]:
    """Log the splits of a finished set; returns the exit status and the summary line.

    The status is 1 if more examples failed than `max_failed_fraction`. This driver prepared `examples_now`.
    """
    for name, split in manifest.splits.items():
        log.info("%-12s %8d ok %6d failed %8d images %s", name, split.ok, split.failed, split.rows, split.error_codes)
        if split.rows and (unlabelled := manifest.unlabelled(name)):
            log.warning("%-12s no label has a pixel of: %s", name, listed(unlabelled))
    log.info("licence: %s (%s)", manifest.origin.license, manifest.origin.source)
    labels = "" if manifest.origin.labels in ("label", "png") else f" --sets.labels {manifest.origin.labels}"
    log.info("train on it: python -m jobs.train --data %s%s", cfg.output_url, labels)
    status = int(manifest.failed_fraction > cfg.max_failed_fraction)
    if status:
        shares = (manifest.failed_fraction * 100, cfg.max_failed_fraction * 100)
        log.error("%.1f%% of the examples failed, limit %.1f%% (--max-failed-fraction)", *shares)
    splits = manifest.splits.items()
    return status, {
        "output": str(cfg.output_url),
        "splits": {name: {"ok": split.ok, "failed": split.failed, "rows": split.rows} for name, split in splits},
        "unlabelled": {name: manifest.unlabelled(name) for name in manifest.splits},
        "examples_now": examples_now,
        "exit_status": status,
    }
