import re

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import EvaluateConfig, JudgeConfig, ScoreConfig, SegmentConfig, explain, read_yaml
from pipeline.errors import ConfigError

REQUIRED = {"source": ("s3://bucket/images",), "output": "out", "checkpoint": "farmland"}

# Every setting there is, by its dotted path, with a value that is not the default. A new setting fails the tests until
# it stands in one of these two tables.
CHANGES_MASKS = {
    "source": ("s3://bucket/others",),
    "limit": 10,
    "read.image_column": "jpg",
    "read.on_duplicate": "suffix",
    "read.key_column": "name",
    "decode.formats": ("jpeg",),
    "decode.max_mpx": 50.0,
    "decode.max_mib": 10.0,
    "decode.min_px": 8,
    "decode.frame": "first",
    "decode.sixteen_bit": "percentile",
    "decode.background": (255, 255, 255),
    "tile.mode": "whole",
    "tile.whole_mpx": 1.0,
    "tile.tile_px": 640,
    "tile.overlap_px": 64,
    "tile.bucket_px": 128,
    "infer.precision": "fp32",
    "infer.output_stride": 8,
    "infer.scales": (0.5, 1.0),
    "infer.flip": True,
    "infer.fuse": "max_score",
    "infer.compile": True,
    "infer.max_logits_mib": 100.0,
    "refine.engine": "none",
    "refine.preset": "another",
    "refine.bi_w": 3.0,
    "refine.bi_xy": 40.0,
    "refine.bi_rgb": 5.0,
    "refine.pos_w": 2.0,
    "refine.pos_xy": 2.0,
    "refine.iterations": 3,
    "refine.spatial": "lattice",
    "refine.freeze": 1.0,
    "refine.sigma_s": 50.0,
    "refine.sigma_r": 0.5,
    "refine.prune": 0.0,
    "refine.window_px": 2048,
    "read.kind": "folder",
    "refine.deadline_s": 5.0,
    "refine.guide": ("nir", "red", "green"),
    "refine.guide_sigmas": (20.0, 13.0, 13.0),
    "raster.core_px": 1024,
    "raster.halo_px": 64,
    "raster.bands": ("red=1", "nir=4"),
    "raster.nodata": 0.0,
    "raster.crs": "EPSG:32614",
}
CHANGES_NO_MASK = {
    "output": "elsewhere",
    "checkpoint": "a/copy/of/it",  # its digest counts, not its address
    "classes": "own.yaml",  # its content counts, not its address
    "read.slice_images": 7,
    "read.labels": "s3://bucket/labels",
    "read.label_field": "crop",
    "raster.max_gpx": 1000.0,
    "raster.holes": True,
    "raster.date_pattern": "(?P<year>[0-9]{4})",
    "infer.batch": 8,
    "polygons.min_ha": 0.01,
    "polygons.simplify_px": 1.0,
    "zones.file": "fields.gpkg",
    "zones.id": "parcel",
    "zones.bands": False,
    "runtime.start_limit_s": 5.0,
    "runtime.dashboard": True,
    "runtime.flow": "ray",
    "runtime.infer_workers": 2,
    "runtime.refine_workers": 2,
    "runtime.crew": "crew.json",
    "runtime.expect_cpus": 64,
    "runtime.expect_gpus": 4,
    "runtime.decode_threads": 2,
    "runtime.rows_per_part": 16,
    "runtime.block_mib": 8.0,
    "runtime.max_failed_fraction": 0.5,
    "runtime.lease_s": 5.0,
    "runtime.item_timeout_s": 30.0,
    "runtime.progress_s": 1.0,
    "runtime.log_format": "json",
    "runtime.previews": 0,
}

# The same of what an evaluation has beside them.
CHANGES_COUNTS = {
    "masks": "s3://bucket/masks",
    "judge.labels_as": "colours",
    "judge.label_ids": {7: 0},
    "judge.ignored_colours": ((1, 2, 3),),
    "judge.trimap_px": (1, 3),
    "judge.boundary_share": 0.01,
}
CHANGES_NO_COUNT = {
    "score.absent": "zero",
    "score.class_weights": {"a": 2.0},
    "score.background": None,
    "score.band_px": 4.0,
    "score.band_weight": 0.5,
    "score.samples": 200,
    "score.level": 0.9,
    "score.seed": 1,
    "score.slice_columns": ("size",),
    "score.slice_pattern": "(?P<place>[a-z]+)/",
    "settings": {"plain": {"refine": {"engine": "none"}}},  # each is run as a config of its own, with its own print
    "history": "s3://bucket/evaluations",
    "baseline": "last-good",
    "gates": "gates.yaml",
}


def leaves(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        found |= leaves(kind, f"{prefix}{name}.") if nested else {prefix + name}
    return found


def settings(kind=SegmentConfig, /, **changed) -> SegmentConfig:
    """Defaults, but for settings given by dotted path."""
    data = dict(REQUIRED)
    for path, value in changed.items():
        group, _, name = path.rpartition(".")
        data |= {group: {name: value}} if group else {name: value}
    return kind.model_validate(data)


def fingerprint(cfg: SegmentConfig, model_sha256="ab" * 32, classes=("a", "b")) -> str:
    return cfg.fingerprint(model_sha256=model_sha256, classes=classes)


def test_every_setting_is_known_to_change_masks_or_not():
    assert not CHANGES_MASKS.keys() & CHANGES_NO_MASK.keys()
    assert CHANGES_MASKS.keys() | CHANGES_NO_MASK.keys() == leaves(SegmentConfig)


def unchanged(kind, changes: dict) -> list[str]:
    """Paths whose change keeps the fingerprint."""
    same = fingerprint(settings(kind))
    return [path for path, value in changes.items() if fingerprint(settings(kind, **{path: value})) == same]


def without_effect(kind, changes: dict) -> list[str]:
    """Paths whose change gives the same settings."""
    return [path for path, value in changes.items() if settings(kind, **{path: value}) == settings(kind)]


def test_fingerprint_changes_with_what_changes_masks():
    assert unchanged(SegmentConfig, CHANGES_MASKS) == []


def test_fingerprint_keeps_with_what_changes_no_mask():
    assert without_effect(SegmentConfig, CHANGES_NO_MASK) == []
    assert CHANGES_NO_MASK.keys() - unchanged(SegmentConfig, CHANGES_NO_MASK) == set()


def test_every_setting_of_an_evaluation_is_known_to_change_counts_or_not():
    assert not CHANGES_COUNTS.keys() & CHANGES_NO_COUNT.keys()
    assert CHANGES_COUNTS.keys() | CHANGES_NO_COUNT.keys() == leaves(EvaluateConfig) - leaves(SegmentConfig)


def test_the_fingerprint_of_an_evaluation_changes_with_what_changes_counts():
    assert unchanged(EvaluateConfig, CHANGES_COUNTS | CHANGES_MASKS) == []


def test_the_fingerprint_of_an_evaluation_keeps_with_what_changes_no_count():
    assert without_effect(EvaluateConfig, CHANGES_NO_COUNT) == []
    assert CHANGES_NO_COUNT.keys() - unchanged(EvaluateConfig, CHANGES_NO_COUNT) == set()


def test_fingerprint_changes_with_model_and_class_map():
    cfg = settings()
    assert len({fingerprint(cfg), fingerprint(cfg, model_sha256="cd" * 32), fingerprint(cfg, classes=("a", "c"))}) == 3


def test_fingerprint_is_about_values_not_about_how_they_are_written():
    cfg = settings(source=("b", "a"), **{"decode.max_mpx": 50})
    again = SegmentConfig.model_validate(yaml.safe_load(yaml.safe_dump(cfg.model_dump(mode="json"))))
    assert again == cfg
    assert fingerprint(again) == fingerprint(cfg)
    assert fingerprint(settings(source=("b", "a"), **{"decode.max_mpx": "50.0"})) == fingerprint(cfg)


def test_the_order_of_sources_counts():
    """It decides which images --limit keeps, and which of two equal keys gets a suffix."""
    assert fingerprint(settings(source=("a", "b"))) != fingerprint(settings(source=("b", "a")))


def test_fingerprint_is_a_sha256_in_hex():
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(settings()))


def test_one_source_needs_no_list():
    assert settings(source="s3://bucket/images") == settings()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sauce", "x"),
        ("tile.tile_pix", 512),
        ("runtime.workers", 3),
        ("tile.tile_px", 500),
        ("decode.background", (0, 0, 256)),
        ("decode.formats", ("jpeg", "svg")),
        ("refine.prune", 0.5),
        ("source", ()),
    ],
)
def test_wrong_setting_is_named_by_its_dotted_path(path, value):
    with pytest.raises(ValidationError) as caught:
        settings(**{path: value})
    said = str(explain(caught.value, origin="run.yaml"))
    assert said.startswith("run.yaml:\n")
    assert f"  {path}" in said
    assert "pydantic" not in said


def test_tiles_that_do_not_advance_are_refused():
    with pytest.raises(ValidationError, match="overlap_px 320 is more than half of tile_px 512"):
        settings(**{"tile.overlap_px": 320})


def test_a_scale_given_twice_is_refused():
    with pytest.raises(ValidationError, match="contain a duplicate"):
        settings(**{"infer.scales": (1.0, 0.5, 1.0)})


@pytest.mark.parametrize("path", sorted({path.partition(".")[0] for path in leaves(SegmentConfig)}))
def test_settings_cannot_change_during_a_run(path):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings(), path, None)


def test_every_setting_says_what_it_is():
    def undescribed(model):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from undescribed(field.annotation)
            if not field.description:
                yield f"{model.__name__}.{name}"

    assert list(undescribed(SegmentConfig)) == []


def test_run_file_is_read_as_settings(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("source: images\ntile: {tile_px: 640}\n")
    assert read_yaml(str(path)) == {"source": "images", "tile": {"tile_px": 640}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"tile: [", "is not YAML"),
        (b"output: caf\xe9", "is not YAML"),
        (b"- tile", "must hold settings by name, not a list"),
        (b"", "must hold settings by name, not a NoneType"),
        (b"x: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_bad_run_file_is_refused_with_its_name(tmp_path, content, said):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_missing_run_file_is_refused_with_its_name():
    with pytest.raises(ConfigError, match=r"cannot read nowhere/run\.yaml: No such file"):
        read_yaml("nowhere/run.yaml")


def test_a_setting_that_is_unset_leaves_the_fingerprint_of_older_runs():
    older = settings().fingerprint(model_sha256="ab" * 32, classes=("a", "b"), code=2)
    assert older == "b4f84a0adb022e988068d258e4a4c24b24721708bd513d41e2bc9f67287e51fb"


def test_places_that_are_one_have_one_fingerprint():
    spelled = [settings(source=(text,)) for text in ("s", "./s", "s/")]
    prints = {cfg.fingerprint(model_sha256="", classes=(), place=lambda text: text.strip("./")) for cfg in spelled}
    assert len(prints) == 1


def test_a_setting_that_does_not_fit_the_others_is_named():
    said = {"tile": {"overlap_px": 256}, "settings": {"small": {"tile": {"tile_px": 320}}}}
    with pytest.raises(ConfigError, match=r"the setting 'small':\n  tile: .*overlap_px 256 is more than half"):
        EvaluateConfig.model_validate(REQUIRED | said).named()


def test_a_pattern_of_slices_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValidationError, match="is not a regular expression: missing"):
        ScoreConfig(slice_pattern="(?P<place>")


def test_boundary_iou_reaches_as_far_as_in_its_paper():
    """Cheng 2021, arXiv 2103.16562, sec. 4: a distance of 2 % of the image diagonal."""
    assert JudgeConfig().boundary_share == 0.02
