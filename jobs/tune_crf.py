"""Find the parameters of the dense CRF for a network and its images, or that they are better off without one.

    ray job submit --working-dir . -- python jobs/tune_crf.py --images s3://bucket/val/images \
        --labels s3://bucket/val/labels --checkpoint s3://bucket/model --output s3://bucket/tuned

Labels are PNGs of class ids that stand where their images do: images/a/1.jpg, labels/a/1.png. Two minutes on a laptop:

    python -c "from pipeline.datasets.farmland import *; write_folder('f', 20, size_px=96, seed=1, with_labels=True)"
    python -m jobs.tune_crf --images f/images --labels f/labels --checkpoint farmland --output tuned

Writes params.yaml (`segment_dataset --config` takes it), results.parquet (one row per candidate) and report/index.html.
Nothing is kept of a search that is stopped; the same command does it anew.
"""

import io
import json
import logging
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import tyro
from pydantic import BaseModel, ConfigDict, Field

from infra import log as logs
from infra import preflight, session
from jobs import command_line, segment_dataset
from jobs.crf_search import Search, look
from jobs.segment_dataset import Run
from pipeline.config import (
    DecodeConfig,
    InferConfig,
    ReadConfig,
    RefineConfig,
    RuntimeConfig,
    SegmentConfig,
    TileConfig,
)
from pipeline.errors import ConfigError
from pipeline.image import labels
from pipeline.infer import segmenter
from pipeline.redact import redact
from pipeline.refine.engine import resolve_engine
from pipeline.run import workers
from pipeline.source.plan import Plan, plan_source
from pipeline.store import objects
from pipeline.tune import chunks as tuning
from pipeline.tune import report, search
from pipeline.tune.chunks import Outcome
from pipeline.tune.search import Candidate

log = logging.getLogger(__name__)

_NAMED = 5
"""Images left out that the log names; the report names all of them."""
BEYOND = 1.5
"""How much farther than the grid a finer one may reach, for the memory of refiners."""


class TuneConfig(BaseModel):
    """Search for the CRF's parameters on images with labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str = Field(description="Folder of images: local or s3://.")
    labels: str = Field(description="Folder of their labels, PNG of class ids, under the same relative names.")
    checkpoint: str = Field(
        description="Folder with model.safetensors and card.json, or a shipped name: farmland, camvid, cwfid."
    )
    output: str = Field(description="Folder that receives params.yaml, results.parquet and report/; overwritten.")
    classes: str | None = Field(None, description="Class map of the labels; unset takes the checkpoint's.")
    limit: int | None = Field(None, ge=1, description="Only the first N images; the papers use 100.")
    grid: str = Field("coarse", description=f"What is tried first: {' or '.join(search.GRIDS)}.")
    finer: int = Field(1, ge=0, le=5, description="How often the search goes on around the best, with half the steps.")
    trimap_px: tuple[float, ...] = Field((1, 2, 4, 8, 12, 16, 24, 32, 40), description="Widths of boundary bands.")
    samples: int = Field(1000, ge=100, description="Bootstrap draws.")
    seed: int = Field(0, ge=0, description="Of the draws.")
    chunk_images: int = Field(4, ge=1, description="Images that are worked on together, on average.")
    decode: DecodeConfig = Field(DecodeConfig(), description="Decoding.")
    tile: TileConfig = Field(TileConfig(), description="Tiling.")
    segmenter: InferConfig = Field(InferConfig(), description="Network.")
    refine: RefineConfig = Field(
        RefineConfig(), description="What all candidates share; pos_w 3, pos_xy 3 and 10 iterations unless given."
    )

    def run(self, grid: list[Candidate]) -> SegmentConfig:
        """The run whose refinement is searched; its refiners' memory is planned for the largest sigma."""
        largest = BEYOND * max(one.params.bi_xy for one in (*grid, *search.references()) if one.params)
        return SegmentConfig(
            source=(self.images,),
            output=self.output,
            checkpoint=self.checkpoint,
            classes=self.classes,
            limit=self.limit,
            read=ReadConfig(kind="folder", slice_images=self.chunk_images),
            decode=self.decode,
            tile=self.tile,
            infer=self.infer,
            refine=self.refine.model_copy(update={"bi_xy": largest}),
            runtime=RuntimeConfig(previews=0),
        )


def tune(cfg: TuneConfig) -> int:
    """Do the job; returns the exit status."""
    started = time.monotonic()
    if cfg.grid not in search.GRIDS:
        raise ConfigError(f"no grid {cfg.grid!r}", hint=f"--grid is one of {', '.join(search.GRIDS)}")
    cfg = cfg.model_copy(update={"refine": resolve_engine(cfg.refine)})  # candidates run on the engine that is there
    grid = search.candidate_grid(cfg.grid, cfg.refine)
    run = segment_dataset.identify(cfg.run(grid))
    preflight.check_apart([cfg.images, cfg.labels], cfg.output)
    planned = plan_source(run.cfg)
    label_urls = find(cfg, planned)
    preflight.check_authentication()
    preflight.check_output(cfg.output)
    with session.connect() as nodes:
        network = segmenter.footprint(run.model, run.cfg.infer.output_stride)
        crew = workers.plan_workers(run.cfg, workers.nodes_of(nodes, run.cfg.runtime), network)
        job = segment_dataset.job_of(run, planned)
        chunks, left_out = look(job, planned.shards, label_urls, crew)
        looked_s = time.monotonic() - started
        found = Search(job, chunks, crew, base=cfg.refine, widths_px=cfg.trimap_px)
        left_out += found.left_out
        say_left_out(left_out)
        outcome = seek(cfg, found, grid, run)
    return finish(cfg, run, outcome, left_out, looked_s=looked_s, wall_s=time.monotonic() - started)


def find(cfg: TuneConfig, planned: Plan) -> dict[str, str]:
    """Where the label of each image is; images without one are not in there."""
    at = labels.by_stem(file.path for file in objects.list_files(cfg.labels))
    keys = [member.key for shard in planned.shards for member in shard.members()[: shard.max_rows]]
    urls = {key: objects.join(cfg.labels, at[labels.label_stem(key)]) for key in keys if labels.label_stem(key) in at}
    log.info("%d image(s), %d label file(s), %d image(s) with a label", len(keys), len(at), len(urls))
    if len(urls) < search.FOLDS:
        hint = "labels stand under the same names as images: images/a/1.jpg and labels/a/1.png"
        raise ConfigError(
            f"{len(urls)} of {len(keys)} image(s) have a label, a choice needs {search.FOLDS}",
            hint=hint,
        )
    return urls


def say_left_out(left_out: list[tuple[str, str]]) -> None:
    """Name images that take no part."""
    for why, count in Counter(why for _, why in left_out).items():
        some = [key for key, its in left_out if its == why][:_NAMED]
        log.warning("%d image(s) left out, %s: %s", count, why, ", ".join(some) + ", ..." * (count > _NAMED))


def seek(cfg: TuneConfig, found: Search, grid: list[Candidate], run: Run) -> Outcome:
    """From the published parameters over the grid to the finer ones, and what is found."""
    found.evaluate("published", search.references()[1:], widths_px=cfg.trimap_px)
    found.evaluate(cfg.grid, grid)
    for number in range(cfg.finer):
        params = tuning.best_of(found.results).candidate.params
        if params:
            tried = [one.candidate for one in found.results]
            found.evaluate(f"finer {number + 1}", search.finer(params, tried))
    best = tuning.best_of(found.results)
    if best.bands_bkk is None:
        found.evaluate("boundaries", [best.candidate], widths_px=cfg.trimap_px)
    return tuning.conclude(
        found.results,
        found.counts,
        run.classes,
        widths_px=cfg.trimap_px,
        samples=cfg.samples,
        seed=cfg.seed,
    )


def finish(
    cfg: TuneConfig, run: Run, outcome: Outcome, left_out: list[tuple[str, str]], *, looked_s: float, wall_s: float
) -> int:
    """Write everything, and say it as a line of JSON."""
    facts = facts_of(cfg, run, outcome)
    params = tuning.params_yaml(outcome, cfg.refine, facts=facts)
    page = report.render_search(outcome, classes=run.classes, left_out=left_out, facts=facts, params=params)
    table = io.BytesIO()
    pq.write_table(tuning.results_table(outcome), table)
    objects.put(objects.join(cfg.output, "results.parquet"), table.getvalue())
    objects.put(objects.join(cfg.output, "report/index.html"), page.encode())
    objects.put(objects.join(cfg.output, "params.yaml"), params.encode())
    for one in outcome.contenders:
        gain = "" if one.gain is None else f"{one.gain.value:+.4f} [{one.gain.low:+.4f}, {one.gain.high:+.4f}]"
        log.info("%-32s mean IoU %.4f %s", one.name, one.result.mean_iou, gain)
    if late := sum(one.notes.total() for one in outcome.results):
        log.warning("%d mask(s) were judged as the network made them: refining took too long or failed", late)
    log.info("look here first: %s", redact(objects.join(cfg.output, "report/index.html")))
    sys.stderr.flush()
    print(
        json.dumps(said(cfg, outcome, left_out) | {"before_search_s": round(looked_s, 1), "wall_s": round(wall_s, 1)})
    )
    return 0


def facts_of(cfg: TuneConfig, run: Run, outcome: Outcome) -> dict[str, str]:
    """What explains the search."""
    card = run.model.card
    return {
        "images": f"{redact(cfg.images)}, {outcome.none.images} with labels",
        "labels": redact(cfg.labels),
        "checkpoint": f"{redact(cfg.checkpoint)} ({card.architecture}, SHA-256 {run.model.sha256[:12]})",
        "classes": f"{run.classes.name}, {len(run.classes)} classes",
        "search": f"grid {cfg.grid}, {cfg.finer} time(s) finer, {len(outcome.results) - 1} candidates",
        "engine": f"{cfg.refine.engine}, classes below {cfg.refine.prune:g} pruned",
        "atrous": command_line.code_version(),
    }


def said(cfg: TuneConfig, outcome: Outcome, left_out: list[tuple[str, str]]) -> dict[str, object]:
    """The summary."""
    verdict, params = outcome.verdict, outcome.best.candidate.params
    return {
        "verdict": "crf" if verdict.helps else "no CRF",
        "images": outcome.none.images,
        "left_out": dict(Counter(why for _, why in left_out)),
        "candidates": len(outcome.results) - 1,
        "mean_iou_without": round(outcome.none.mean_iou, 5),
        "mean_iou_best": round(outcome.best.mean_iou, 5),
        "gain": [round(one, 5) for one in (verdict.gain.value, verdict.gain.low, verdict.gain.high)],
        "fair_gain": [
            round(one, 5) for one in (verdict.fair_gain.value, verdict.fair_gain.low, verdict.fair_gain.high)
        ],
        "best": {name: getattr(params, name) for name in (*search.SEARCHED, *search.FIXED)},
        "seconds_per_image": round(outcome.best.seconds / outcome.best.images, 4),
        "params": redact(objects.join(cfg.output, "params.yaml")),
        "report": redact(objects.join(cfg.output, "report/index.html")),
    }


def main(argv: list[str] | None = None) -> int:
    """Parse, search, and turn errors into a message and an exit status; "no CRF" is a success."""
    logs.configure()

    def job() -> int:
        args = sys.argv[1:] if argv is None else argv
        return tune(tyro.cli(TuneConfig, args=args, description=__doc__))

    return command_line.exit_status(job)


if __name__ == "__main__":
    command_line.leave(main())
