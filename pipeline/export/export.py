"""Export of a run to files of another form: masks as PNGs, COCO, GeoTIFFs, or a Hugging Face data set.

In: the URL of a run and an empty folder, or one with an export that was stopped. Out: files, and plain data for the
JSON line. No Ray: the work is copying small objects, so threads of one process saturate a store or a disk. Memory holds
one part and `WAITING` masks, beside 8 bytes per key; for GeoTIFFs about 300 bytes per key.
"""

import logging
import time
from collections.abc import Iterator

import yaml

from pipeline.config import SegmentConfig
from pipeline.export import coco, geotiff, hugging_face, output, png
from pipeline.export.output import Form, Outcome, Tally
from pipeline.export.survey import Survey, survey_run
from pipeline.run import folder
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

PROGRESS_S = 10.0
"""Seconds between progress lines."""
_OF_THE_SOURCE = ("source", "limit", "read", "decode")
"""Settings of a run that say which images it read, and how."""


def export_run(run_url: Url, to: Form, target: Url, *, source: list[str] | None = None) -> dict[str, object]:
    """Export every row with a mask; returns the summary, whose `exit_status` is 1 when such rows are left out.

    Args:
        run_url: the folder `run=...`.
        to: form of the export.
        target: folder that receives it.
        source: where the run's images are now; None where they were. Read for GeoTIFFs alone.

    Raises:
        ConfigError: the run has no rows, the folder is not this export's, or a package is missing.
        StorageError: the run is damaged, or a job changed it meanwhile.
    """
    started, run = time.monotonic(), survey_run(run_url)
    if not run.finished:
        log.warning("the run is not finished: only its %d committed rows are exported; export it again later", run.rows)
    cfg = source_of_run(run_url, source) if to == "geotiff" else None
    resumed = output.open_output(target, run, to)
    if resumed:
        log.info("continuing the export in %s", target)
        output.delete_litter(target)
    tally = _count(_outcomes(run, to, target, cfg, resumed=resumed), run)
    complete = run.finished and not tally.left_out
    output.write_state(target, run, to, tally, finished=complete)
    _log_tally(run, tally, target)
    return {
        "run": str(run_url),
        "run_finished": run.finished,
        "to": to,
        "output": str(target),
        "rows": run.rows,
        "written": tally.written,
        "there": tally.there,
        "failed": run.failed,
        "left_out": dict(tally.left_out),
        "wall_s": round(time.monotonic() - started, 2),
        "exit_status": int(bool(tally.left_out)),
    }


def source_of_run(run_url: Url, source: list[str] | None) -> SegmentConfig:
    """Config with the source of a run and how it was read; `source` replaces where it was.

    Raises:
        StorageError: the run's config is missing or damaged.
    """
    url = run_url / folder.CONFIG
    with objects.naming_damage(url, hint="it names the images; export to png, hf or coco"):
        stored = yaml.safe_load(objects.read_bytes(url))
        if "runtime" not in stored:  # the last group: YAML that ends early can still be YAML
            raise ValueError("it ends before its last settings")
        settings = {name: stored[name] for name in _OF_THE_SOURCE if name in stored}
        settings |= {"source": source} if source else {}
        return SegmentConfig.model_validate({"checkpoint": "-", "output": run_url.raw} | settings)


def _outcomes(run: Survey, to: Form, target: Url, cfg: SegmentConfig | None, *, resumed: bool) -> Iterator[Outcome]:
    if cfg:
        return geotiff.write_geotiffs(run, cfg, target, resumed=resumed)
    write = {"png": png.write_pngs, "hf": hugging_face.write_data_set, "coco": coco.write_coco}[to]
    return write(run, target, resumed=resumed)


def _count(outcomes: Iterator[Outcome], run: Survey) -> Tally:
    tally, said = Tally(), time.monotonic()
    for outcome in outcomes:
        tally.add(outcome)
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            log.info("%d of %d rows", tally.written + tally.there, run.rows - sum(run.failed.values()))
    return tally


def _log_tally(run: Survey, tally: Tally, target: Url) -> None:
    log.info("%d mask(s) exported to %s, %d of them before", tally.written + tally.there, target, tally.there)
    for code, count in run.failed.items():
        log.warning("%d row(s) of the run failed and have no mask: %s", count, code)
    for reason, count in tally.left_out.items():
        log.error("%d mask(s) left out: %s, first %r", count, reason, tally.first[reason])
