"""Inputs of a parameter search: the first grid, the config of its run, and the label of each image.

In: a `TuneConfig`. Out: a `SegmentConfig`, label URLs by key. Lists objects, reads none.
"""

import logging
from collections.abc import Sequence

from pipeline.config import ReadConfig, RuntimeConfig, SegmentConfig
from pipeline.errors import ConfigError
from pipeline.image import labels
from pipeline.image.channels import RGB
from pipeline.models.card import Card
from pipeline.source.plan import Plan
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.tune import search
from pipeline.tune.config import TuneConfig
from pipeline.tune.search import Candidate

log = logging.getLogger(__name__)

FINER_REACH = 1.5
"""Largest sigma of finer grids relative to that of the first grid; the memory of refiners is planned for it."""


def first_grid(cfg: TuneConfig) -> list[Candidate]:
    """Candidates of the grid `--grid`, without the published parameters.

    Raises:
        ConfigError: the grid is unknown, or the refinement settings leave nothing to search.
    """
    if cfg.grid not in search.GRIDS:
        raise ConfigError(f"--grid {cfg.grid!r} is not a grid", hint=f"use one of {', '.join(search.GRIDS)}")
    return search.candidate_grid(cfg.grid, cfg.refine)


def check_bands(card: Card) -> None:
    """Refuse a checkpoint of other bands than red, green and blue: the search decodes images to these.

    Raises:
        ConfigError: names the bands.
    """
    if card.channels != RGB:
        raise ConfigError(f"the checkpoint takes {', '.join(card.channels)}; the search reads red, green, blue alone")


def segment_config(cfg: TuneConfig, grid: Sequence[Candidate]) -> SegmentConfig:
    """Config of the run whose refinement is searched; its memory is planned for the largest sigma."""
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


def find_labels(cfg: TuneConfig, plan: Plan) -> dict[str, Url]:
    """URL of each image's label, by key; images without a label are left out.

    Raises:
        ConfigError: fewer images have a label than there are folds.
    """
    folder = Url(cfg.labels)
    paths = [file.path for file in objects.list_files(folder)]
    names = labels.by_stem(paths)
    keys = [member.key for shard in plan.shards for member in shard.members()[: shard.max_rows]]
    labelled = [key for key in keys if labels.label_stem(key) in names]
    log.info("%d image(s), %d label file(s), %d image(s) with a label", len(keys), len(names), len(labelled))
    if len(labelled) < search.FOLDS:
        bare = (key for key in keys if labels.label_stem(key) not in names)
        usual = "a label has the name of its image: images/a/1.jpg and labels/a/1.png"
        hint = labels.misnamed_label(bare, paths) or usual
        raise ConfigError(
            f"{len(labelled)} of {len(keys)} image(s) have a label, a search needs at least {search.FOLDS}", hint=hint
        )
    return {key: folder / names[labels.label_stem(key)] for key in labelled}
