"""Inputs of a training run: collections, class map, tracker, and fingerprint.

In: a config and this process's rank. Out: a `TrainingRun` for the loop. An output that was begun with other settings is
refused, with the settings that differ.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import JsonValue, ValidationError

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.image.labels import label_coding
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import distill, state, tracker
from pipeline.training.collection import Collection, image_name, open_collection
from pipeline.training.config import TRAINING_CODE_VERSION, TrainConfig
from pipeline.training.distill import Teacher
from pipeline.training.ranks import Group
from pipeline.training.start import open_initial
from pipeline.training.tracker import Tracker

CLASSES_FILE = "classes.yaml"
"""File name of the class map, beside the parts of the data."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Inputs that all phases of a run share."""

    cfg: TrainConfig
    classes: ClassMap
    training: Mapping[tuple[str, ...], Collection]
    """Training collections, by the parts that a phase names."""
    validation: Collection
    began: dict[str, str]
    """Digests of settings, data, class map, initial weights, teacher and code; a state with others is refused."""
    about: dict[str, JsonValue]
    """Facts for the checkpoint card beside scores: command, versions, data."""
    group: Group
    tracker: Tracker
    teacher: Teacher | None = None
    """Trained network for distillation."""

    @property
    def ends(self) -> list[int]:
        """Last step of each phase, counted over all phases."""
        ends: list[int] = np.cumsum([phase.schedule.steps for phase in self.cfg.phases()]).tolist()
        return ends


def open_run(cfg: TrainConfig, group: Group, *, about: Mapping[str, JsonValue]) -> TrainingRun:
    """Open the inputs of a run.

    Args:
        cfg: settings of the run.
        group: this process's rank.
        about: facts for the checkpoint card; fingerprint, data, numbers of images and seed are added.

    Raises:
        ConfigError: data, classes or a checkpoint do not exist or do not fit each other.
        LabelError: a label does not fit its image or the class map.
    """
    class_map = class_map_of_config(cfg)
    validation = validation_set(cfg, class_map)
    training = {phase.sets.train: training_set(phase, class_map) for phase in cfg.phases()}
    if not cfg.overfit and (cfg.sets.hold_out or not cfg.sets.validation):
        # Other parts may put other images on the validation side.
        training = {parts: examples.without(validation.keys) for parts, examples in training.items()}
    start = open_initial(cfg.network.initial) if cfg.network.initial else None
    initial = start.sha256 if start else None
    teacher = distill.load_teacher(cfg, class_map, group.device)
    taught = {"teacher": teacher.sha256} if teacher else {}  # nothing in runs without one, as before there were any
    data = _digest([examples.fingerprint for examples in (*training.values(), validation)])
    fingerprint = cfg.fingerprint(data=data, initial=initial, classes=class_map.model_dump(mode="json"), **taught)
    facts: dict[str, JsonValue] = {
        "fingerprint": fingerprint,
        "data": data,
        "training_images": len(training[cfg.sets.train]),
        "validation_images": len(validation),
        "seed": cfg.seed,
    }
    if start:
        facts |= {"initial_source": start.card.source, "initial_license": start.card.license}
    if teacher:
        facts["teacher_sha256"] = teacher.sha256
    if unlabelled := validation.coverage.unlabelled:
        facts["validation_unlabelled"] = list[JsonValue](unlabelled)
    kind = cfg.runtime.tracker if group.leads else "none"
    first_step = max(state.saved_steps(cfg.output_url), default=0)
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
            **taught,
        },
        about={**about, **facts},
        group=group,
        tracker=tracker.make_tracker(
            kind, output=cfg.output_url, run=fingerprint, first_step=first_step, classes=class_map
        ),
        teacher=teacher,
    )


# ---------------------------------------------------------------- data


def class_map_of_config(cfg: TrainConfig) -> ClassMap:
    """Load the class map that the config names, or the one beside the data.

    Raises:
        ConfigError: there is no class map, or the file is not one.
    """
    if cfg.classes:
        return classes.load_class_map(cfg.classes)
    url = Url(cfg.data) / CLASSES_FILE
    try:
        data = objects.read_bytes(url, max_bytes=1 << 20)
    except FileNotFoundError as error:
        hint = "check --data, or set --classes to a class map"
        raise ConfigError(f"no {CLASSES_FILE} in {Url(cfg.data).located}", hint=hint) from error
    return classes.from_yaml(data, origin=str(url))


def training_set(cfg: TrainConfig, classes: ClassMap) -> Collection:
    """Open the training collection of a phase: its parts, without the validation split.

    Raises:
        LabelError: one class alone occurs in its labels, or more pixels are ignored than `sets.max_ignored_share`.
    """
    examples = _open(cfg, cfg.sets.train, classes)
    if not examples.weak_n.any():
        ignored = cfg.sets.max_ignored_share
        examples.coverage.check(max_ignored=ignored, classes=classes, option="--sets.label-ids")
    if cfg.overfit:
        examples = examples.subset(range(min(cfg.overfit, len(examples))))
    elif cfg.sets.hold_out:
        examples = examples.hold_out(cfg.sets.hold_out)[0]
    elif not cfg.sets.validation:
        examples = examples.split(cfg.sets.validation_share)[0]
    return examples


def validation_set(cfg: TrainConfig, classes: ClassMap) -> Collection:
    """Open the validation collection: a part of its own, or images of the first phase's training parts.

    Raises:
        ConfigError: none of its images has full labels, or all their pixels are ignored.
    """
    if cfg.overfit:
        examples = training_set(cfg, classes)
    elif cfg.sets.hold_out:
        examples = _held_out(_open(cfg, cfg.sets.train, classes), cfg.sets.hold_out)
    elif cfg.sets.validation:
        examples = _open(cfg, (cfg.sets.validation,), classes)
    else:
        examples = _open(cfg, cfg.sets.train, classes).split(cfg.sets.validation_share)[1]
    hint = "set --sets.validation to another part"
    if examples.weak_n.all():
        raise ConfigError("no validation image has full labels", hint=hint)
    if not examples.counts_nk.any():
        raise ConfigError("every pixel of the validation labels is ignored", hint=hint)
    return examples


def _held_out(examples: Collection, groups: Sequence[str]) -> Collection:
    """Images of the held-out groups.

    Raises:
        ConfigError: a group has no image, or no image is left to train on.
    """
    names = [image_name(key) for key in examples.keys]
    for group in groups:
        if not any(name.startswith(group) for name in names):
            hint = f"names are {', '.join(names[:3])}, ..."
            raise ConfigError(f"--sets.hold-out {group}: no image of --sets.train has a name that begins so", hint=hint)
    rest, held = examples.hold_out(groups)
    if not len(rest):
        raise ConfigError(f"--sets.hold-out {' '.join(groups)} leaves none of {len(examples)} images to train on")
    return held


def _open(cfg: TrainConfig, parts: tuple[str, ...], classes: ClassMap) -> Collection:
    cache = Path(cfg.runtime.cache or Path(tempfile.gettempdir()) / f"atrous-data-{os.getuid()}")
    return open_collection(
        Url(cfg.data),
        parts,
        classes=classes,
        cache=cache,
        where=cfg.sets.labels,
        channels=cfg.network.channels,
        scale=cfg.network.scale,
        coding=label_coding(cfg.sets),
        max_left_out=cfg.sets.max_left_out_share,
    )


# ---------------------------------------------------------------- fingerprint


def settings(cfg: TrainConfig) -> dict[str, Any]:
    """Every setting that can change the weights, by dotted path."""
    return dict(_leaves(cfg.weight_settings()))


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        leaves += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [(prefix + name, value)]
    return leaves


def refuse_changed_settings(cfg: TrainConfig) -> None:
    """Refuse an output that was begun with other settings.

    Raises:
        ConfigError: settings differ; the message has both values of each.
    """
    url = cfg.output_url / "_run/config.yaml"
    try:
        stored = yaml.safe_load(objects.read_bytes(url, max_bytes=1 << 20))
        before = settings(TrainConfig.model_validate(stored))
        _ = stored["runtime"]  # the last group: YAML that ends early can still be YAML
    except FileNotFoundError:
        return
    except (yaml.YAMLError, ValidationError, KeyError) as error:
        raise ConfigError(f"{url} is damaged", hint="set another --output") from error
    now = settings(cfg)
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if names:
        lines = "".join(f"\n  {name}: {before.get(name)!r}, now {now.get(name)!r}" for name in names)
        raise ConfigError(f"{cfg.output_url} was begun with other settings:{lines}", hint="set another --output")


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
