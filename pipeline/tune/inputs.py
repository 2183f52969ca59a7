"""Inputs of a parameter search: the run whose refinement is searched, and the label of each image.

In: a `TuneConfig`. Out: a `SegmentConfig`, label URLs by key. Lists objects, reads none.
"""

import logging
from collections.abc import Sequence

from pipeline.config import ReadConfig, RuntimeConfig, SegmentConfig
from pipeline.errors import ConfigError
from pipeline.image import labels
from pipeline.source.plan import Plan
from pipeline.store import objects
from pipeline.tune import search
from pipeline.tune.config import TuneConfig
from pipeline.tune.search import Candidate

log = logging.getLogger(__name__)

FINER_REACH = 1.5
"""Finer grids reach at most this much beyond the largest sigma of the first one; refiners' memory is planned for it."""


def first_grid(cfg: TuneConfig) -> list[Candidate]:
    """Candidates of the grid `--grid`, without the published parameters.

    Raises:
        ConfigError: for an unknown grid, and refinement settings that leave nothing to search.
    """
    if cfg.grid not in search.GRIDS:
        raise ConfigError(f"no grid {cfg.grid!r}", hint=f"--grid is one of {', '.join(search.GRIDS)}")
    return search.candidate_grid(cfg.grid, cfg.refine)


def segment_config(cfg: TuneConfig, grid: Sequence[Candidate]) -> SegmentConfig:
    """The run whose refinement is searched; its refiners' memory is planned for the largest sigma."""
    largest = FINER_REACH * max(
        candidate.params.bi_xy for candidate in (*grid, *search.reference_candidates()) if candidate.params
    )
    return SegmentConfig(
        source=(cfg.images,),
        output=cfg.output,
        checkpoint=cfg.checkpoint,
        classes=cfg.classes,
        limit=cfg.limit,
        read=ReadConfig(kind="folder", slice_images=cfg.chunk_images),
        decode=cfg.decode,
        tile=cfg.tile,
        infer=cfg.infer,
        refine=cfg.refine.model_copy(update={"bi_xy": largest}),
        runtime=RuntimeConfig(previews=0),
    )


def find_labels(cfg: TuneConfig, plan: Plan) -> dict[str, str]:
    """URL of each image's label, by key; images without a label are left out.

    Raises:
        ConfigError: fewer images have a label than a choice needs.
    """
    names = labels.by_stem(file.path for file in objects.list_files(cfg.labels))
    keys = [member.key for shard in plan.shards for member in shard.members()[: shard.max_rows]]
    labelled = [key for key in keys if labels.label_stem(key) in names]
    log.info("%d image(s), %d label file(s), %d image(s) with a label", len(keys), len(names), len(labelled))
    if len(labelled) < search.FOLDS:
        hint = "labels stand under the same names as images: images/a/1.jpg and labels/a/1.png"
        raise ConfigError(
            f"{len(labelled)} of {len(keys)} image(s) have a label, a choice needs {search.FOLDS}", hint=hint
        )
    return {key: objects.join(cfg.labels, names[labels.label_stem(key)]) for key in labelled}
