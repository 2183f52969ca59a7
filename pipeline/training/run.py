"""What a training run works on: opened examples, class map, tracker, and what names the run.

In: a config and this process's place in its group. Out: a `Run` for the loop. Refuses to go on with an output that was
begun with other settings, and names them.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import JsonValue, ValidationError

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.models import checkpoint
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.training import state, tracker
from pipeline.training.collection import Collection, open_collection
from pipeline.training.config import TRAINING_CODE_VERSION, UNFINGERPRINTED, TrainConfig
from pipeline.training.ranks import Group
from pipeline.training.tracker import Tracker

CLASSES_FILE = "classes.yaml"
"""The class map of labelled data, beside its parts."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What all phases of a run share."""

    cfg: TrainConfig
    classes: ClassMap
    training: Mapping[tuple[str, ...], Collection]
    """What is trained on, by the parts that a phase names."""
    validation: Collection
    began: dict[str, str]
    """What the run begins with, as digests; a state of another beginning is refused."""
    about: dict[str, JsonValue]
    """What the card is to say of the training beside its figures: command, versions, data."""
    group: Group
    tracker: Tracker

    @property
    def ends(self) -> list[int]:
        """The step that each phase ends with, counted over all phases."""
        ends: list[int] = np.cumsum([phase.schedule.steps for phase in self.cfg.phases()]).tolist()
        return ends


def open_run(cfg: TrainConfig, group: Group, *, about: Mapping[str, JsonValue]) -> TrainingRun:
    """Open what a run works on.

    Args:
        cfg: what is asked.
        group: this process's place.
        about: what the card is to say beside what is known here.

    Raises:
        ConfigError: for data, classes or a checkpoint that are not there or do not fit each other.
        LabelError: for a label that does not fit its image or the class map.
    """
    class_map = class_map_of_config(cfg)
    validation = validation_set(cfg, class_map)
    training = {phase.sets.train: training_set(phase, class_map) for phase in cfg.phases()}
    if not (cfg.sets.validation or cfg.overfit):  # of other parts another image may be the one that is cut at least
        training = {parts: one.without(validation.keys) for parts, one in training.items()}
    initial = checkpoint.load_checkpoint(cfg.network.initial).sha256 if cfg.network.initial else None
    data = _digest([one.fingerprint for one in (*training.values(), validation)])
    fingerprint = cfg.fingerprint(data=data, initial=initial, classes=class_map.model_dump(mode="json"))
    ours: dict[str, JsonValue] = {
        "fingerprint": fingerprint,
        "data": data,
        "training_images": len(training[cfg.sets.train]),
        "validation_images": len(validation),
        "seed": cfg.seed,
    }
    kind = cfg.runtime.tracker if group.leads else "none"
    first_step = max(state.steps(cfg.output), default=0)
    return TrainingRun(
        cfg=cfg,
        classes=class_map,
        training=training,
        validation=validation,
        began={
            "settings": _digest(settings(cfg)),
            "data": data,
            "class map": _digest(class_map.model_dump(mode="json")),
            "initial weights": initial or "",
            "code": str(TRAINING_CODE_VERSION),
        },
        about={**about, **ours},
        group=group,
        tracker=tracker.make_tracker(
            kind, output=cfg.output, run=fingerprint, first_step=first_step, classes=class_map
        ),
    )


# ---------------------------------------------------------------- data


def class_map_of_config(cfg: TrainConfig) -> ClassMap:
    """The class map that the config names, or the one beside the data.

    Raises:
        ConfigError: there is none, or it is not a class map.
    """
    if cfg.classes:
        return classes.load_class_map(cfg.classes)
    url = objects.join(cfg.data, CLASSES_FILE)
    try:
        data = objects.read_bytes(url, max_bytes=1 << 20)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{redact(cfg.data)} has no {CLASSES_FILE}", hint="name a class map with --classes"
        ) from error
    return classes.from_yaml(data, origin=redact(url))


def training_set(cfg: TrainConfig, classes: ClassMap) -> Collection:
    """What a phase trains on: its parts, without what is cut from them to validate on.

    Raises:
        ConfigError: its labels name no class.
    """
    found = _open(cfg, cfg.sets.train, classes)
    if cfg.overfit:
        found = found.subset(range(min(cfg.overfit, len(found))))
    elif not cfg.sets.validation:
        found = found.split(cfg.sets.validation_share)[0]
    if not found.weak_n.any() and not found.counts_nk.any():
        raise ConfigError("every pixel of the labels to train on is ignored", hint="look at ignore_id of the class map")
    return found


def validation_set(cfg: TrainConfig, classes: ClassMap) -> Collection:
    """What weights are chosen on: a part of its own, or cut from those the run begins with.

    Raises:
        ConfigError: none of its images has full labels, or all their pixels are ignored.
    """
    if cfg.overfit:
        found = training_set(cfg, classes)
    elif cfg.sets.validation:
        found = _open(cfg, (cfg.sets.validation,), classes)
    else:
        found = _open(cfg, cfg.sets.train, classes).split(cfg.sets.validation_share)[1]
    if found.weak_n.all():
        raise ConfigError("no image to validate on has full labels", hint="name another part with --sets.validation")
    if not found.counts_nk.any():
        said = "every pixel of the labels to validate on is ignored"
        raise ConfigError(said, hint="name another part with --sets.validation")
    return found


def _open(cfg: TrainConfig, parts: tuple[str, ...], classes: ClassMap) -> Collection:
    cache = Path(cfg.runtime.cache or Path(tempfile.gettempdir()) / f"atrous-data-{os.getuid()}")
    return open_collection(
        cfg.data, parts, classes=classes, cache=cache, where=cfg.sets.labels, channels=cfg.network.channels
    )


# ---------------------------------------------------------------- what names a run


def settings(cfg: TrainConfig) -> dict[str, Any]:
    """Every setting that can change the weights, by its dotted path."""
    return dict(_leaves(cfg.model_dump(mode="json", exclude=UNFINGERPRINTED)))


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [(prefix + name, value)]
    return found


def refuse_changed_settings(cfg: TrainConfig) -> None:
    """Stop when the output was begun with other settings.

    Raises:
        ConfigError: naming those that differ, with both values.
    """
    url = objects.join(cfg.output, "_run/config.yaml")
    try:
        before = settings(TrainConfig.model_validate(yaml.safe_load(objects.read_bytes(url, max_bytes=1 << 20))))
    except FileNotFoundError:
        return
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{redact(url)} is damaged", hint="take another --output") from error
    now = settings(cfg)
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if names:
        lines = "".join(f"\n  {name}: {before.get(name)!r}, now {now.get(name)!r}" for name in names)
        raise ConfigError(f"{redact(cfg.output)} was begun with other settings:{lines}", hint="take another --output")


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
