import pytest
from pydantic import BaseModel, ValidationError

from pipeline.training.config import LATER_SETTINGS, TrainConfig
from tests.pipeline.test_config import leaves

REQUIRED = {"data": "data", "output": "out"}

# Every setting there is, by its dotted path, with a value that is not the default. A new setting fails the tests until
# it stands in one of these two tables.
CHANGES_WEIGHTS = {
    "sets.labels_as": "colours",
    "sets.label_ids": {255: 1},
    "sets.ignored_colours": [[1, 2, 3]],
    "seed": 1,
    "overfit": 3,
    "batch_norm": "frozen",
    "ema": 0.99,
    "half": False,
    "then": ({"name": "second", "schedule": {"steps": 10}},),
    "sets.train": ("train", "more"),
    "sets.validation": "",
    "sets.validation_share": 0.2,
    "sets.hold_out": ("drive1",),
    "sets.labels": "masks",
    "network.name": "unet",
    "network.options": {"backbone": "mobilenet_v2"},
    "network.output_stride": 8,
    "network.channels": ("near_infrared", "red", "green"),
    "network.mean": (0.5, 0.5, 0.5),
    "network.std": (0.2, 0.2, 0.2),
    "network.scale": {"dtype": "uint16", "low": (0, 0, 0), "high": (9, 9, 9)},
    "network.initial_classes": {"field": "crop"},
    "augment.crop_px": (64, 64),
    "augment.scale": (1.0, 1.0),
    "augment.aspect": 1.2,
    "augment.rare_share": 0.1,
    "augment.rare_tries": 3,
    "augment.flip": False,
    "augment.symmetries": True,
    "augment.brightness": 0.1,
    "augment.contrast": 0.1,
    "augment.saturation": 0.1,
    "augment.hue": 0.1,
    "augment.blur_px": 1.0,
    "augment.haze": 0.1,
    "augment.gamma": 1.5,
    "augment.noise": 0.05,
    "augment.elastic_px": 10.0,
    "augment.jpeg": 70,
    "sample.hard_classes": ("bicycle",),
    "sample.hard_times": 3,
    "sample.weak_share": 0.5,
    "optimise.kind": "adamw",
    "optimise.lr": 0.1,
    "optimise.head_lr": 10.0,
    "optimise.head_bias_lr": 20.0,
    "optimise.momentum": 0.0,
    "optimise.weight_decay": 0.0,
    "optimise.decay_all": False,
    "optimise.clip_norm": 1.0,
    "optimise.batch": 8,
    "optimise.accumulate": 2,
    "schedule.kind": "step",
    "schedule.steps": 100,
    "schedule.power": 1.0,
    "schedule.every": 100,
    "schedule.factor": 0.5,
    "schedule.warmup": 10,
    "schedule.floor": 0.1,
    "loss.terms": {"lovasz": 1.0},
    "loss.at": "logits",
    "loss.class_weights": "median_frequency",
    "loss.effective_beta": 0.9,
    "loss.log_offset": 1.1,
    "loss.label_smoothing": 0.1,
    "loss.ohem_keep": 0.5,
    "loss.ohem_below": 0.5,
    "loss.bootstrapped_pixels": 64,
    "loss.focal_gamma": 1.0,
    "loss.branches": {"aux": 0.1},
    "distill.weight": 0.5,
    "distill.temperature": 4.0,
    "weak.classes": "em_fixed",
    "weak.boxes": "rect",
    "weak.background": "soil",
    "weak.bias_fg": 1.0,
    "weak.bias_bg": 1.0,
    "weak.share_fg": 0.1,
    "weak.share_bg": 0.1,
    "weak.sure_share": 0.5,
    "validation.every": 10,  # decides among which weights the best are chosen
    "validation.limit": 10,
    "validation.scales": (0.5, 1.0),
    "validation.flip": True,
    "validation.samples": 1,
}
CHANGES_NO_WEIGHTS = {
    "runtime.start_limit_s": 5.0,
    "runtime.dashboard": True,
    "sets.max_left_out_share": 0.5,
    "sets.max_ignored_share": 0.5,
    "data": "copied",  # its content counts, not its address
    "output": "elsewhere",
    "classes": "own.yaml",  # its content counts, not its address
    "license": "CC0-1.0",
    "network.initial": "a/copy/of/it",  # its digest counts, not its address
    "distill.teacher": "a/copy/of/it",  # its digest counts, not its address
    "runtime.workers": 2,
    "runtime.min_workers": 1,
    "runtime.device": "cpu",
    "runtime.cpus_per_worker": 0.5,
    "runtime.expect_cpus": 64,
    "runtime.expect_gpus": 8,
    "runtime.precision": "fp32",
    "runtime.channels_last": False,
    "runtime.compile": True,
    "runtime.loader_workers": 0,
    "runtime.prefetch": 1,
    "runtime.checkpoint_every": 1,
    "runtime.max_failures": 0,
    "runtime.log_every": 1,
    "runtime.tracker": "none",
    "runtime.cache": "cache",
    "runtime.log_format": "json",
}


def settings(**changed) -> TrainConfig:
    """Defaults, but for settings given by dotted path."""
    data = dict(REQUIRED)
    for path, value in changed.items():
        group, _, name = path.rpartition(".")
        data |= {group: {name: value}} if group else {name: value}
    return TrainConfig.model_validate(data)


def fingerprint(cfg: TrainConfig, data="ab" * 32, initial=None, classes=("a", "b")) -> str:
    return cfg.fingerprint(data=data, initial=initial, classes=classes)


def test_every_setting_is_known_to_change_weights_or_not():
    assert not CHANGES_WEIGHTS.keys() & CHANGES_NO_WEIGHTS.keys()
    assert CHANGES_WEIGHTS.keys() | CHANGES_NO_WEIGHTS.keys() == leaves(TrainConfig)


def test_fingerprint_changes_with_what_changes_weights():
    same = fingerprint(settings())
    assert [path for path, value in CHANGES_WEIGHTS.items() if fingerprint(settings(**{path: value})) == same] == []


def test_fingerprint_keeps_with_what_changes_no_weights():
    changed = {path: settings(**{path: value}) for path, value in CHANGES_NO_WEIGHTS.items()}
    assert [path for path, cfg in changed.items() if cfg == settings()] == []
    assert [path for path, cfg in changed.items() if fingerprint(cfg) != fingerprint(settings())] == []


def test_fingerprint_changes_with_data_start_and_class_map():
    cfg = settings()
    prints = [fingerprint(cfg), fingerprint(cfg, data=""), fingerprint(cfg, initial="x"), fingerprint(cfg, classes=())]
    assert len(set(prints)) == 4


def test_a_teacher_counts_by_its_digest_and_runs_without_one_keep_their_fingerprint():
    cfg = settings()
    assert "distill" not in cfg.weight_settings()
    both = [cfg.fingerprint(data="", initial=None, classes=(), teacher=teacher) for teacher in (None, "ab", "cd")]
    assert len(set(both)) == 3
    moved = (settings(**{"distill.teacher": place}) for place in ("here", "there"))
    assert len({one.fingerprint(data="", initial=None, classes=(), teacher="ab") for one in moved}) == 1


def test_every_setting_says_what_it_is():
    def undescribed(model):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from undescribed(field.annotation)
            if not field.description:
                yield f"{model.__name__}.{name}"

    assert list(undescribed(TrainConfig)) == []


def test_later_phases_change_what_they_name_and_keep_the_rest():
    cfg = settings(
        then=(
            {"name": "b", "schedule": {"steps": 7}, "output_stride": 8, "options": {"x": 1}},
            {"name": "c", "schedule": {"steps": 9}, "lr": 0.5, "batch": 3, "train": ["all"], "batch_norm": "frozen"},
        ),
        network={"options": {"y": 2}},
    )
    first, second, third = cfg.phases()
    assert first is cfg
    assert (second.schedule.steps, second.network.output_stride, second.network.options) == (7, 8, {"y": 2, "x": 1})
    assert (second.optimise, second.batch_norm, second.sets) == (first.optimise, "train", first.sets)
    assert (third.optimise.lr, third.optimise.batch, third.batch_norm, third.sets.train) == (0.5, 3, "frozen", ("all",))
    assert third.network == second.network
    assert third.optimise.weight_decay == first.optimise.weight_decay


@pytest.mark.parametrize(
    "wrong",
    [
        {"network.mean": (0.5,)},
        {"network.mean": (123.7, 116.8, 103.9)},
        {"network.std": (0.2, 0.0, 0.2)},
        {"network.std": (0.2, float("inf"), 0.2)},
        {"augment.crop_px": (0, 64)},
        {"augment.scale": (2.0, 0.5)},
        {"validation.scales": (0.05,)},
        {"validation.scales": (1.0, 1.0)},
        {"loss.terms": {}},
        {"loss.terms": {"l1": 1.0}},
        {"ema": 1.0},
        {"distill.weight": 0.0},
        {"distill.temperature": 0.0},
        {"sets.train": ()},
        {"runtime.min_workers": 2},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        settings(**wrong)


def test_settings_that_came_later_are_in_the_fingerprint_only_where_they_are_set():
    """So that a run begun before they existed goes on."""
    plain = TrainConfig(data="data", output="out").weight_settings()
    for section, names in LATER_SETTINGS.items():
        assert not set(names) & plain.get(section, {}).keys()
    assert "distill" not in plain
    chosen = TrainConfig(data="data", output="out", augment={"gamma": 2.0}, sets={"hold_out": ["a"]})
    assert chosen.weight_settings()["augment"]["gamma"] == 2
    assert chosen.weight_settings()["sets"]["hold_out"] == ["a"]
