"""Inputs of an evaluation: locations of labels and outputs, checks of the config, and a digest of the data.

In: an `EvaluateConfig` as the user gave it. Out: the config with every location filled in. Lists objects, reads none.
"""

import hashlib
import json

from pipeline.classes import ClassMap
from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError, NothingThere
from pipeline.evaluate import gate, scoring
from pipeline.evaluate.history import LAST_GOOD
from pipeline.evaluate.setting import gates_of
from pipeline.image.labels import label_coding
from pipeline.models.card import Card, load_card
from pipeline.source.plan import Plan, plan_source
from pipeline.store import objects
from pipeline.store.url import Url

IMAGES, LABELS = "images", "labels"
"""Folders of a labelled source."""
LABELS_IN = {"webdataset": "png", "parquet": "label"}
"""Default tar member and Parquet column of labels."""


def complete_config(cfg: EvaluateConfig) -> EvaluateConfig:
    """Check the config and fill in the locations of labels and of runs.

    Raises:
        ConfigError: neither checkpoint nor masks, or both; no output and no history; `last-good` without a history;
            no labels.
    """
    models = {setting.checkpoint or setting.masks for setting in cfg.named().values()}
    if None in models or "" in models or (cfg.masks and (cfg.checkpoint or cfg.settings)):
        raise ConfigError("an evaluation needs --checkpoint, or --masks alone without --checkpoint and --settings")
    if not (cfg.output or cfg.history):
        raise ConfigError(
            "no output folder", hint="give --output, or --history: runs are then written to its folder _runs"
        )
    if cfg.baseline == LAST_GOOD and not cfg.history:
        raise ConfigError(f"--baseline {LAST_GOOD} needs a history", hint="give --history")
    output = cfg.output or _below(cfg.history or "", "_runs")
    return locate_labels(cfg.model_copy(update={"output": output}))


def locate_labels(cfg: EvaluateConfig) -> EvaluateConfig:
    """Fill in `read.labels` where it is unset: the folder labels/ beside images/, or the default of tars and Parquet.

    Raises:
        ConfigError: the source is a folder without labels/ beside images/, or mixes kinds of files.
    """
    if cfg.read.labels:
        return cfg
    first = Url(cfg.source[0])
    if len(cfg.source) == 1 and _has_files(first / LABELS) and _has_files(first / IMAGES):
        read = cfg.read.model_copy(update={"labels": _below(cfg.source[0], LABELS)})
        return cfg.model_copy(update={"read": read, "source": (_below(cfg.source[0], IMAGES),)})
    if cfg.read.kind == "raster":
        hint = "give --read.labels: a folder of label rasters, or a file of polygons with --read.label-field"
        raise ConfigError(f"{first} has no labels/ beside images/", hint=hint)
    kinds = {shard.kind for shard in plan_source(cfg).shards}
    if len(kinds) != 1 or not kinds <= LABELS_IN.keys():
        raise ConfigError(f"{first} has no labels/ beside images/", hint="name the labels with --read.labels")
    return cfg.model_copy(update={"read": cfg.read.model_copy(update={"labels": LABELS_IN[kinds.pop()]})})


def _below(folder: str, name: str) -> str:
    """The text of a folder in the config with a name appended: not normalised, since the history compares it."""
    return f"{folder}{'' if folder.endswith('/') or not folder else '/'}{name}"


def _has_files(url: Url) -> bool:
    try:
        return any(True for _ in objects.list_files(url))
    except NothingThere:
        return False


def check_setting(cfg: EvaluateConfig, classes: ClassMap) -> None:
    """Refuse labels, scores and gates that do not fit the class map or the counted trimaps.

    Raises:
        ConfigError: naming the class, trimap width or column that is missing.
    """
    label_coding(cfg.judge).check(classes)
    scoring.check_rules(cfg.score, classes, cfg.judge.trimap_px)
    gate.check_gates(gates_of(cfg), classes)


def card_of_settings(cfg: EvaluateConfig) -> Card | None:
    """Card of the checkpoints that see rasters; None for other sources, whose plan does not depend on it.

    Raises:
        ConfigError: existing masks, or checkpoints of different bands, scales or classes.
    """
    if cfg.read.kind != "raster":
        return None
    if cfg.masks:
        raise ConfigError("--masks are masks of images; for rasters give --checkpoint")
    if cfg.judge.labels_as != "ids" or cfg.judge.label_ids:
        raise ConfigError("labels of rasters hold class ids; --judge.labels-as and --judge.label-ids are for images")
    cards = {named.checkpoint: load_card(named.checkpoint) for named in cfg.named().values()}
    first = next(iter(cards.values()))
    for name, card in cards.items():
        if (card.channels, card.scale, card.classes) != (first.channels, first.scale, first.classes):
            raise ConfigError(f"{name} has other bands, scale or classes than {next(iter(cards))}: evaluate it alone")
    return first


def data_digest(plan: Plan, cfg: EvaluateConfig) -> str:
    """SHA-256 over names and etags of all planned objects and of labels in files of their own: 64 hex digits.

    Part of an evaluation's fingerprint, because rows record the etag of an image but not that of its label.
    """
    versions: list[object] = [
        [Url(shard.uri).place, shard.etag, shard.row_group, shard.max_rows] for shard in plan.shards
    ]
    versions += [[member.key, member.etag] for shard in plan.shards for member in shard.members()]
    if plan.shards and plan.shards[0].kind in ("folder", "raster"):
        versions += [[file.path, file.etag] for file in objects.list_files(Url(cfg.read.labels or ""))]
    if cfg.read.label_field:
        versions.append(cfg.read.label_field)
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()
