"""The lifecycle of a run that `segment_dataset`, `evaluate` and `tune_crf` share: identify, carry out, resume, report.

    identify(cfg) -> Run        checkpoint and class map are loaded and checked, the fingerprint names the run
    carry_out(run, plan)        segments the missing rows, closes the run, writes its report -> RunOutcome

A driver that was killed leaves committed parts; `carry_out` of the same run continues from them. Importing this module
imports torch, so a job does it after its flags are parsed.
"""

import hashlib
import json
import logging
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import distributions
from typing import TYPE_CHECKING

import pyarrow as pa

from infra import preflight
from jobs import command_line, flow_choice, flows
from pipeline import classes
from pipeline.assemble.masks import RunMasks
from pipeline.assemble.plan import read_shards
from pipeline.assemble.qgis import points_qml
from pipeline.assemble.stac import COLLECTION
from pipeline.classes import ClassMap
from pipeline.config import CODE_VERSION, EvaluateConfig, JudgeConfig, SegmentConfig
from pipeline.errors import NO_IMAGE, ConfigError, JobError
from pipeline.models import checkpoint
from pipeline.models.card import Card, check_classes
from pipeline.models.checkpoint import Checkpoint
from pipeline.records import Failure, Row
from pipeline.redact import redact
from pipeline.refine.engine import describe_engine, guide_bands, resolve_engine, substitution
from pipeline.run import folder, manifest, masks, parts, points, rehearsal, report
from pipeline.run.footers import Footers, gather_footers, read_footers
from pipeline.run.ledger import RunProgress
from pipeline.run.manifest import Manifest
from pipeline.run.pending import PendingShard, pending_shards
from pipeline.run.progress import Snapshot, utc_now, write_progress
from pipeline.run.stages import Job
from pipeline.source.left_out import in_words
from pipeline.source.plan import Plan, changed
from pipeline.source.raster import RGB, NetworkBands, check_band_names, unpack
from pipeline.source.shard import Shard
from pipeline.source.truth import raster_labels
from pipeline.store import objects
from pipeline.store.lease import Lease
from pipeline.store.url import Url
from pipeline.zones.map import run_map

if TYPE_CHECKING:
    from jobs.assembly import Assembled
    from jobs.from_masks import Made
    from pipeline.run.forks import Forks

log = logging.getLogger(__name__)

STORED_VERSIONS = {
    "ray",
    "torch",
    "pyarrow",
    "pillow",
    "simplejpeg",
    "pydensecrf",
    "pydensecrf2",
    "fsspec",
    "s3fs",
    "numpy",
}
"""Packages that shape masks: `environment.json` of a run has their versions."""
LAST_UNPLACED = 2
"""Last code version whose fingerprints hold places as they were typed."""
TYPICAL_IMAGE_BYTES = 200_000
"""Estimates the images in a tar before it is read; sets only the share of images that keep a preview."""
REPORT_PREVIEWS = 400
"""Previews read back for the report at most: it shows the least certain ones and a random sample."""
REPORTED_COUNTS = [
    column.name
    for column in fields(report.RunSummary)
    if column.name not in ("parts", "wall_s", "working_s", "images_per_s")
]
"""Fields of a manifest that the report takes over."""


@dataclass(frozen=True, slots=True)
class Run:
    """One config on one output."""

    cfg: SegmentConfig
    classes: ClassMap
    model: Checkpoint | None
    """None when existing masks are scored."""
    sha256: str
    """Digest of the checkpoint, or of the masks."""
    fingerprint: str
    """64 hex digits; the first 12 name the run's folder."""
    url: Url
    """`<output>/run=<fingerprint>`."""
    judge: JudgeConfig | None = None
    """Rules of the comparison of masks with labels; None when nothing is scored."""
    masks: Url | None = None
    """Existing masks, scored in place of a network's."""
    substituted: str | None = None
    """Refine engine in place of the configured one, and why; None when the configured one is there."""
    older_urls: tuple[Url, ...] = ()
    """Folders that earlier code versions give the same command, the latest first."""

    @property
    def bands(self) -> NetworkBands:
        """Bands that the run reads of each image; see `network_bands`."""
        return network_bands(self.model.card if self.model else None)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run, and what this driver added to it."""

    manifest: Manifest
    progress: RunProgress
    """Work of this driver alone; empty when the run was finished before."""
    wall_s: float
    """Seconds this driver took."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Files of the source that are no input, by suffix; see `Plan.ignored`."""
    flow: flow_choice.FlowKind = "none"
    """Where the stages of this driver worked."""
    assembled: "Assembled | None" = None
    """Joined masks of rasters; None for other sources."""
    made: "Made | None" = None
    """Polygons and zones of rasters; None for other sources, and where none are asked for."""


def identify(cfg: SegmentConfig) -> Run:
    """Load the checkpoint, check it against class map, bands and stride, and name the run by its fingerprint."""
    substituted = substitution(cfg.refine)
    cfg = cfg.model_copy(update={"refine": resolve_engine(cfg.refine)})
    model = checkpoint.load_checkpoint(cfg.checkpoint)
    class_map = classes.load_class_map(cfg.classes) if cfg.classes else model.card.classes
    check_classes(model.card, class_map)
    check_band_names(cfg.raster, model.card.channels)
    guide_bands(cfg.refine, model.card.channels)
    checkpoint.blank(model.card, cfg.infer.output_stride)  # raises for a stride that the network does not have
    if cfg.runtime.crew:
        rehearsal.read_crew(Url(cfg.runtime.crew)).check(cfg, model.sha256)
    url = Url(cfg.output)
    return _named(Run(cfg, class_map, model, model.sha256, fingerprint="", url=url, substituted=substituted))


def identify_labelled(cfg: EvaluateConfig, data_sha256: str) -> Run:
    """Name the run that scores a checkpoint's masks, or existing ones, on labelled images of this digest."""
    run = identify_masks(cfg) if cfg.masks else identify(cfg)
    return replace(_named(run, data_sha256), judge=cfg.judge)


def identify_masks(cfg: EvaluateConfig) -> Run:
    """Name the run that scores the existing masks at `cfg.masks`; its class map is theirs, or `--classes`."""
    url = Url(cfg.masks or "")
    sha256 = masks.digest_masks(url)
    stored = masks.class_map_of_run(url)
    class_map = classes.load_class_map(cfg.classes) if cfg.classes else stored
    if stored and class_map and (lines := stored.differences(class_map)):
        raise ConfigError(f"the masks have other classes: {'; '.join(lines[:3])}", hint="leave --classes unset")
    if class_map is None:
        raise ConfigError(f"{url} is a folder of PNGs, which names no classes", hint="give --classes")
    return _named(Run(cfg, class_map, None, sha256, fingerprint="", url=Url(cfg.output), masks=url))


def _named(run: Run, data_sha256: str = "") -> Run:
    """The run with its fingerprint and folder; with `data_sha256`, of the labelled images that it scores."""

    def fingerprint(place: Callable[[str], str], code: int) -> str:
        facts = run.classes.model_dump(mode="json")
        segmented = run.cfg.fingerprint(model_sha256=run.sha256, classes=facts, place=place, code=code)
        return hashlib.sha256(f"{segmented} {data_sha256}".encode()).hexdigest() if data_sha256 else segmented

    output = Url(run.cfg.output)

    def placed(code: int) -> str:
        return fingerprint(lambda text: Url(text).place, code)

    named = placed(CODE_VERSION)
    older = [*(placed(code) for code in range(CODE_VERSION - 1, LAST_UNPLACED, -1)), fingerprint(str, LAST_UNPLACED)]
    older_urls = tuple(run_url(output, text) for text in older)
    return replace(run, fingerprint=named, url=run_url(output, named), older_urls=older_urls)


def run_url(output: Url, fingerprint: str) -> Url:
    """Folder of a run: `<output>/run=` and 12 digits of its fingerprint."""
    return output / f"run={fingerprint[:12]}"


# ---------------------------------------------------------------- the lifecycle


def carry_out(run: Run, plan: Plan, forks: "Forks | None" = None) -> RunOutcome:
    """Segment the rows that are missing, close the run and write its report; does nothing when it is finished.

    Args:
        run: the run.
        plan: its images.
        forks: server of workers that was started early, for a run in processes; None starts one where it is needed.
    """
    started, cfg = time.monotonic(), run.cfg
    log.info("run %s, %s", run.url, size_of(plan))
    if plan.ignored:
        log.info("files that are no input: %s", in_words(plan.ignored))
    for warning in plan.warnings:
        log.warning("%s", warning)
    _warn_of_older_run(run)
    finished = manifest.read_manifest(run.url)
    committed = read_footers(run.url) if finished else Footers()
    if finished and not pending_shards(run.url, plan, committed):
        refuse_no_images(run, committed)
        log.info("nothing to do: every row of this run is committed")
        assembled, made = None, None
        redated = other_dates(run, plan)
        if is_to_assemble(run, redated=redated):
            with Lease(run.url, lease_s=cfg.runtime.lease_s, command=command_line.command()):
                if redated:
                    log.info("the rasters have other dates than before: their items are written anew")
                    objects.delete(run.url / COLLECTION)  # so that a driver that is killed now is continued
                    write_settings(run, plan)
                assembled, made = assemble_rasters(run), make_from_masks(run)
        outcome = RunOutcome(
            finished, RunProgress(), time.monotonic() - started, plan.ignored, assembled=assembled, made=made
        )
        if made is not None and made.is_new:
            write_report(run, outcome, committed)
        return outcome
    kind = flow_choice.choose_flow(cfg, images=typical_images(plan))
    preflight.check_authentication()
    preflight.check_output(run.url / "_run")
    with Lease(run.url, lease_s=cfg.runtime.lease_s, command=command_line.command()) as lease:
        missing, before = resume(run, plan)
        kind = kind if missing else "none"
        # Rasters need Ray again to be assembled: a local one starts once.
        with flows.opened(kind, cfg, forks) as opened:
            progress = RunProgress()
            if missing:
                job = stage_job(run, plan, owner=lease.generation)
                progress = flows.segment_missing(opened, run, job, missing, before)
            closed, footers = manifest.close_run(
                run.url, plan, run.classes, fingerprint=run.fingerprint, on_duplicate=cfg.read.on_duplicate
            )
            refuse_no_images(run, footers)
            assembled, made = assemble_rasters(run), make_from_masks(run)
            if closed.positions:
                counts = points.write_points(run.url, run.classes, footers)
                objects.put(run.url / folder.POINTS_STYLE, points_qml(run.classes))
                where = run.url / folder.POINTS
                log.info("%d image(s) with a position, %d without: %s", counts.points, counts.without, where)
        outcome = RunOutcome(closed, progress, time.monotonic() - started, plan.ignored, kind, assembled, made)
        if run.model:
            write_report(run, outcome, footers)
        manifest.mark_finished(run.url)
    return outcome


def assemble_rasters(run: Run) -> "Assembled | None":
    """Join the masks of a run over rasters, its last step; None for other sources, and where masks are scored."""
    if run.cfg.read.kind != "raster" or run.judge is not None:
        return None
    from jobs.assembly import assemble_run

    facts = {"atrous:run": run.fingerprint[:12], "atrous:model": run.sha256[:12]}
    return assemble_run(run.url, run.classes, holes=run.cfg.raster.holes, facts=facts)


def make_from_masks(run: Run) -> "Made | None":
    """Write the polygons and the statistics of zones that a run over rasters asks for; None where it asks for none."""
    cfg = run.cfg
    if cfg.read.kind != "raster" or run.judge is not None or not cfg.asks_of_masks:
        return None
    from jobs.from_masks import OpenedMasks, make, without_holes

    masks = RunMasks(run.url)
    assemblies, _ = without_holes(masks.assemblies(), holes=cfg.raster.holes)
    return make(OpenedMasks(masks, assemblies, run.classes, {}), cfg.polygons, cfg.zones)


def _warn_of_older_run(run: Run) -> None:
    """Warn when the same command was begun with an earlier code version, whose run is not continued."""
    for url in run.older_urls:
        if objects.exists(url / folder.CONFIG):
            message = (
                "%s is of an earlier version, whose masks of some images differ: it is not continued, this is a new run"
            )
            log.warning(message, url)


def size_of(plan: Plan) -> str:
    """Size of a plan in words: `24 image(s) in 1 shard(s), 6.2 MB`."""
    images = "images counted while reading," if plan.rows is None else f"{plan.rows} image(s) in"
    return f"{images} {len(plan.shards)} shard(s), {plan.bytes / 1e6:.1f} MB"


def resume(run: Run, plan: Plan) -> tuple[list[PendingShard], Snapshot]:
    """Missing work, and the progress of former drivers; a finished run whose source has grown is opened again."""
    refuse_changed_source(run, plan)
    write_run_files(run, plan)
    manifest.reopen_run(run.url)
    committed = gather_footers(run.url)
    missing = pending_shards(run.url, plan, committed)
    rows, failed = committed.totals.rows, committed.totals.error_codes
    if rows:
        log.info(
            "resuming: %d row(s) in %d part(s) are committed, %d shard(s) are left", rows, len(committed), len(missing)
        )
    before = Snapshot(time=utc_now(), planned=plan.rows, done=rows, committed=rows, failed=failed)
    write_progress(run.url, before)
    return missing, before


def refuse_changed_source(run: Run, plan: Plan) -> None:
    """Stop when an archive was replaced since the run was planned: its rows would mix two contents.

    Raises:
        JobError: with the number of changed files and the first one's name.
    """
    hint = "delete it if no tar or Parquet file of the source has changed"
    before = folder.read_plan(run.url, hint=hint)
    if before is None:
        return
    with objects.naming_damage(folder.find_object(run.url, folder.PLAN), hint=hint):
        names = changed(before, plan)
    if names:
        hint = "write to another --output, or give the new content a new name"
        raise JobError(f"{len(names)} file(s) changed since this run was planned, first {names[0]!r}", hint=hint)


def refuse_no_images(run: Run, footers: Footers) -> None:
    """Stop when every row says that its tar, sample or Parquet file holds no image: such a run is no success.

    Raises:
        JobError: with the first such row.
    """
    totals = footers.totals
    if totals.rows > sum(totals.error_codes.get(code, 0) for code in NO_IMAGE):
        return
    source = ", ".join(Url(source).located for source in run.cfg.source)
    examples = manifest.example_failures(run.url, footers, each=1)
    reasons = [f"{key.removesuffix('#')}: {detail}" for key, _, detail in examples]
    first = f"first of {totals.failed}: {reasons[0]}" if reasons else "the run has no rows"
    raise JobError(f"no images in {source}; {first}", hint="check --source, --read.labels and --read.image-column")


def write_run_files(run: Run, plan: Plan) -> None:
    """Write config, plan and `environment.json` (versions, licence of weights) of `_run`, and `.huggingface.yaml`."""
    environment = {
        "fingerprint": run.fingerprint,
        "model_sha256": run.sha256,
        "atrous": command_line.code_version(),
        "python": platform.python_version(),
        **{package.name: package.version for package in distributions() if package.name in STORED_VERSIONS},
    }
    if run.model:
        environment["license"] = run.model.card.license
    objects.put(run.url / folder.ENVIRONMENT, json.dumps(environment, indent=1).encode())
    write_settings(run, plan)
    objects.put(run.url / folder.HUGGING_FACE, folder.HUGGING_FACE_YAML)


def write_settings(run: Run, plan: Plan) -> None:
    """Write `_run/config.yaml` and `_run/plan.arrow`."""
    config_url = run.url / folder.CONFIG
    objects.put(config_url, command_line.to_yaml(run.cfg).encode())
    log.info("every setting: %s", config_url)
    table, stored = plan.to_table(), pa.BufferOutputStream()
    with pa.ipc.new_file(stored, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    objects.put(run.url / folder.PLAN, stored.getvalue().to_pybytes())


def is_to_assemble(run: Run, *, redated: bool) -> bool:
    """True for a finished run over rasters of which something may have to be written."""
    if run.cfg.read.kind != "raster" or run.judge is not None:
        return False
    asked = run.cfg.raster.holes or run.cfg.asks_of_masks
    return redated or asked or not objects.exists(run.url / COLLECTION)


def other_dates(run: Run, plan: Plan) -> bool:
    """True when rasters of a finished run have other dates in this plan than in the stored one."""
    if run.cfg.read.kind != "raster" or not objects.exists(run.url / folder.PLAN):
        return False
    before = {shard.id: shard for shard in read_shards(run.url)}
    return any(_dates(shard) != _dates(before[shard.id]) for shard in plan.shards if shard.id in before)


def _dates(shard: Shard) -> tuple[str | None, str | None]:
    """Time of the picture of a raster's shard, and the end of its interval."""
    here = unpack(shard)
    return (None, None) if isinstance(here, Failure) else (here.raster.datetime, here.raster.end_datetime)


def typical_images(plan: Plan) -> float:
    """Images of a plan; estimated from its bytes where tars are not read yet."""
    return plan.rows or plan.bytes / TYPICAL_IMAGE_BYTES


def stage_job(run: Run, plan: Plan, *, owner: int | None = None) -> Job:
    """Description of a run for its workers; `owner` is the generation of the lease of a driver that commits rows."""
    images = typical_images(plan)
    return Job(
        cfg=run.cfg,
        classes=run.classes,
        run_url=run.url,
        model_fp=run.sha256[:12],
        config_fp=run.fingerprint[:12],
        preview_share=min(1.0, run.cfg.runtime.previews / max(images, 1)),
        judge=run.judge,
        masks=run.masks,
        bands=run.bands,
        truth=raster_labels(run.cfg, run.classes) if run.judge else None,
        rows_per_part=run.cfg.runtime.rows_per_part or parts.rows_per_part(images),
        owner=owner,
    )


def network_bands(card: Card | None) -> NetworkBands:
    """Bands that a checkpoint takes; red, green and blue without one, where existing masks are scored."""
    return NetworkBands(card.channels, card.scale) if card else RGB


# ---------------------------------------------------------------- the report


def write_report(run: Run, outcome: RunOutcome, footers: Footers) -> None:
    """Write `_report/index.html`, the pictures it links to, and `_report/overlays.png`."""
    previews = manifest.read_previews(run.url, footers, limit=REPORT_PREVIEWS)
    with ThreadPoolExecutor(1) as beside:  # encoders of pictures leave Python's lock to the page
        pictures = beside.submit(_write_pictures, run, previews)
        objects.put(run.url / folder.REPORT, _lay_out_page(run, outcome, footers, previews).encode())
        pictures.result()


def _lay_out_page(run: Run, outcome: RunOutcome, footers: Footers, previews: list[Row]) -> str:
    counts = {name: getattr(outcome.manifest, name) for name in REPORTED_COUNTS}
    working_s = outcome.progress.working_s
    return report.render_run(
        summary=report.RunSummary(
            **counts,
            parts=len(outcome.manifest.parts),
            wall_s=outcome.wall_s,
            working_s=working_s,
            images_per_s=outcome.progress.committed / working_s if working_s else 0.0,
        ),
        previews=previews,
        classes=run.classes,
        failures=manifest.example_failures(run.url, footers, each=report.SHOWN_FAILURES),
        facts=run_facts(run) | {"files that are no input": in_words(outcome.ignored)},
        next_commands=_next_commands(run),
        substituted=run.substituted,
        page_map=run_map(run.url, run.classes) if run.cfg.read.kind == "raster" else None,
    )


def _write_pictures(run: Run, previews: list[Row]) -> None:
    def write(row: Row) -> None:
        for path, picture in report.full_size_pictures(row, run.classes):
            objects.put(run.url / folder.REPORT_FOLDER / path, picture)

    deque(parts.map_ahead(write, report.shown_on_page(previews)), maxlen=0)
    objects.put(run.url / folder.OVERLAYS, report.overlays_png(previews, run.classes))


def run_facts(run: Run) -> dict[str, str]:
    """Source, checkpoint, network, refinement, classes and version, by the name the report shows."""
    return {
        "run": str(run.url),
        "source": redact(", ".join(run.cfg.source)),
        **_origin_of_masks(run),
        "classes": f"{run.classes.name}, {len(run.classes)} classes",
        "atrous": command_line.code_version(),
    }


def _origin_of_masks(run: Run) -> dict[str, str]:
    if run.model is None:
        return {"masks": str(run.masks)}
    cfg, card = run.cfg, run.model.card
    return {
        "checkpoint": f"{redact(cfg.checkpoint)} ({card.architecture}, SHA-256 {run.sha256[:12]})",
        "network": f"output stride {cfg.infer.output_stride or card.output_stride}, precision {cfg.infer.precision}",
        "refinement": run.substituted or describe_engine(cfg.refine),
    }


def _next_commands(run: Run) -> list[str]:
    url = str(run.url)
    rows = f"{url}/parts" if run.cfg.read.kind == "raster" else url  # beside masks and items, which are no Parquet
    return [
        f"python -m jobs.inspect_run {url} --verify",
        f"python -m jobs.inspect_run {url} --failures",
        f"python -c \"import pandas; print(pandas.read_parquet('{rows}').head())\"",
    ]
