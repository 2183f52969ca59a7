"""Evaluations end to end in this process; tests/jobs/test_evaluate.py has those on a cluster."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import evaluate
from jobs.evaluate import EvaluateArguments
from jobs.run import Run
from pipeline import classes, records
from pipeline.config import EvaluateConfig, JudgeConfig, ScoreConfig, SegmentConfig
from pipeline.datasets import farmland
from pipeline.errors import ERROR_CODES, ConfigError
from pipeline.evaluate import evaluation, scoring
from pipeline.image import encode
from pipeline.records import Row
from pipeline.run import manifest, masks, parts
from pipeline.score.metrics import Scores
from pipeline.source.plan import plan_source
from pipeline.store.url import Url
from tests.support import bad_labels, judged_runs
from tests.support.bad_labels import CASES, CLASSES
from tests.support.judged_runs import carry_out, config, counted, identify

IMAGES = 6


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small farmland images with labels: one without a label, one with an ignored border."""
    folder = tmp_path_factory.mktemp("labelled")
    farmland.write_folder(Url(str(folder)), IMAGES, size_px=48, seed=3, with_labels=True)
    (folder / "labels/farm_000004.png").unlink()
    ignored = label_of(folder, "farm_000001").copy()
    ignored[:9] = 255
    Image.fromarray(ignored).save(folder / "labels/farm_000001.png")
    return folder


@pytest.fixture(scope="module")
def run(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    output = tmp_path_factory.mktemp("out")
    return carry_out(config(source=str(fields), output=str(output), checkpoint="farmland"))


def label_of(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / f"labels/{name}.png"))


def rows_of(run: Run) -> dict[str, Row]:
    table = pq.read_table(parts.parts_url(run.url).raw)
    return {row.key: row for row in sorted(records.rows_from_table(table), key=lambda row: row.key)}


# ---------------------------------------------------------------- exact


def test_counts_are_those_of_a_loop_over_the_committed_masks(fields: Path, run: Run) -> None:
    found = evaluation.read_evaluation(run.url)
    assert found.keys == [f"farm_00000{index}.jpg" for index in (0, 1, 2, 3, 5)]
    rows = rows_of(run)
    for key, counts in zip(found.keys, found.answer.counts_nkk, strict=True):
        expected = counted(label_of(fields, key[:-4]), encode.read_mask_png(rows[key].mask), run.classes)
        np.testing.assert_array_equal(counts, expected)


def test_the_network_alone_counts_the_same_with_a_crf_behind_it_as_without(
    fields: Path, run: Run, tmp_path: Path
) -> None:
    alone = carry_out(
        config(source=str(fields), output=str(tmp_path), checkpoint="farmland", refine={"engine": "none"})
    )
    without, both = evaluation.read_evaluation(alone.url), evaluation.read_evaluation(run.url)
    assert (list(without.answers), list(both.answers)) == (["network"], ["network", "native"])
    plain, beside = without.answers["network"], both.answers["network"]
    for name in ("counts_nkk", "bands_bkk", "boundary"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(beside, name))
    # Confidences are higher by the mass of the classes that were pruned before the CRF: right and all stay the same.
    np.testing.assert_array_equal(plain.reliability.sum(axis=0), beside.reliability.sum(axis=0))
    assert (without.answers["network"].counts_nkk != both.answers["native"].counts_nkk).any()


@pytest.mark.parametrize("kind", ["parts", "folder"])
def test_masks_that_are_there_already_count_the_same(kind: str, fields: Path, run: Run, tmp_path: Path) -> None:
    there = Path(run.url.raw)
    if kind == "folder":
        there = tmp_path / "masks"
        there.mkdir()
        for key, row in rows_of(run).items():
            if row.mask:
                (there / f"{key[:-4]}.png").write_bytes(row.mask)
    cfg = config(source=str(fields), output=str(tmp_path / "out"), masks=str(there), classes="farmland")
    again, before = evaluation.read_evaluation(carry_out(cfg).url), evaluation.read_evaluation(run.url)
    assert again.codes == ({"label_missing": 1} if kind == "parts" else {"mask_missing": 1})
    assert (again.data_fp, list(again.answers)) == (before.data_fp, ["masks"])
    for name in ("counts_nkk", "bands_bkk", "boundary"):
        np.testing.assert_array_equal(getattr(again.answer, name), getattr(before.answer, name))
    assert not again.answer.reliability.any()


def test_an_image_without_a_label_is_a_failure_and_no_image_is_forgotten(run: Run) -> None:
    found = evaluation.read_evaluation(run.url)
    assert found.failures == [("farm_000004.jpg", "label_missing", "this image has no label")]
    assert (len(found.images), found.failed_share) == (IMAGES - 1, 1 / IMAGES)
    assert found.codes == {"label_missing": 1}


def test_rows_of_an_evaluation_say_how_bright_images_are(fields: Path, run: Run) -> None:
    pixels = np.asarray(Image.open(fields / "images/farm_000000.jpg"), float)
    luma = float((pixels @ [0.299, 0.587, 0.114]).mean())
    assert rows_of(run)["farm_000000.jpg"].brightness == pytest.approx(luma, rel=1e-5)


# ---------------------------------------------------------------- labels, good and bad


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """Row of every case by name; cases with the same label settings share a source."""
    folder = tmp_path_factory.mktemp("cases")
    network = judged_runs.save_network(folder / "network", CLASSES)
    found: dict[str, Row] = {}
    for number, judge in enumerate({case.judge.model_dump_json(): case.judge for case in CASES}.values()):
        root = folder / str(number)
        named = {f"{index:02d}": case for index, case in enumerate(CASES) if case.judge == judge}
        for name, case in named.items():
            write(root / f"images/{name}.jpg", bad_labels.image_file(case.orientation))
            if (data := case.make()) is not None:
                write(root / "labels" / case.file.format(name), data)
        cfg = config(source=str(root), output=str(root / "out"), checkpoint=network, judge=judge.model_dump())
        rows = rows_of(carry_out(cfg))
        found |= {case.name: rows[f"{name}.jpg"] for name, case in named.items()}
    return found


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_label_ends_in_a_named_failure_or_a_right_count(case: bad_labels.Case, cases: dict[str, Row]) -> None:
    row = cases[case.name]
    assert (row.error_code or "ok") == case.expected
    if case.expected == "ok":
        expected = counted(case.truth, encode.read_mask_png(row.mask), CLASSES)
        np.testing.assert_array_equal(row.judgements[-1].counts, expected)
    else:
        assert row.error_code in ERROR_CODES
        assert row.judgements is None


def test_a_sample_that_a_tar_holds_twice_stops_the_evaluation(tmp_path: Path) -> None:
    network = judged_runs.save_network(tmp_path / "network", CLASSES)
    members = {"jpg": bad_labels.image_file(), "png": bad_labels.grey()}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("one", "two", "one"):
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    said = {"source": str(tmp_path / "a.tar"), "checkpoint": network}
    with pytest.raises(Exception, match="occur twice in the source"):
        carry_out(config(output=str(tmp_path / "out"), **said))
    both = carry_out(config(output=str(tmp_path / "both"), read={"on_duplicate": "suffix"}, **said))
    assert len(evaluation.read_evaluation(both.url).images) == 3


# ---------------------------------------------------------------- what a run is


def test_another_label_another_image_or_another_count_is_another_run(fields: Path, tmp_path: Path) -> None:
    def url(**changes: object) -> Url:
        cfg = config(source=str(fields), output=str(tmp_path), checkpoint="farmland", **changes)
        return identify(cfg).url

    first = url()
    assert url() == first
    assert url(score={"samples": 500}) == first
    assert url(judge={"trimap_px": (3,)}) != first
    label = fields / "labels/farm_000000.png"
    before = label.read_bytes()
    label.write_bytes(before + b" ")
    assert url() != first
    label.write_bytes(before)


def test_settings_change_what_they_say_and_nothing_else() -> None:
    cfg = EvaluateConfig.model_validate(
        {
            "source": "in",
            "output": "out",
            "checkpoint": "farmland",
            "infer": {"flip": True},
            "settings": {"fine": {"infer": {"output_stride": 8}}, "plain": {"refine": {"engine": "none"}}},
        }
    )
    fine, plain = cfg.named().values()
    assert (fine.infer.output_stride, fine.infer.flip, fine.refine) == (8, True, cfg.refine)
    assert (plain.refine.engine, plain.infer) == ("none", cfg.infer)
    assert cfg.model_copy(update={"settings": {}}).named().keys() == {"default"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "needs --checkpoint, or --masks alone"),
        ({"checkpoint": "farmland", "masks": "m"}, "needs --checkpoint, or --masks alone"),
        ({"checkpoint": "farmland", "output": ""}, "no output folder"),
        ({"checkpoint": "farmland"}, "has no labels/ beside images/"),
        ({"checkpoint": "farmland", "baseline": "last-good"}, "last-good needs a history"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(said: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"an image")
    with pytest.raises(ConfigError, match=message):
        config(**{"source": str(tmp_path), "output": "out"} | said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"gates": "metrics: {iou: {}}"}, "metrics.iou"),
        ({"gates": "floors: {snow: 0.5}"}, "floors names 'snow'"),
        ({"score": {"class_weights": {"snow": 1.0}}}, "'snow', which is not a class"),
        ({"score": {"band_px": 5}}, "band-px 5 is not one of"),
        ({"score": {"slice_columns": ["colour"]}}, "'colour', which is not a column"),
    ],
)
def test_rules_and_gates_that_do_not_fit_are_refused_before_anything_is_done(
    said: dict, message: str, fields: Path, tmp_path: Path
) -> None:
    if "gates" in said:
        (tmp_path / "gates.yaml").write_text(said["gates"])
        said = {"gates": str(tmp_path / "gates.yaml")}
    cfg = config(source=str(fields), output=str(tmp_path / "out"), checkpoint="farmland", **said)
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate(EvaluateArguments(cfg))


def test_the_line_at_the_end_is_json_where_no_image_has_a_score(
    fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/other.png").write_bytes(b"of no image")
    said = {"source": str(fields / "images"), "output": str(tmp_path / "out"), "checkpoint": "farmland"}
    cfg = config(**said, read={"labels": str(tmp_path / "labels")})
    carry_out(cfg)
    assert evaluate.evaluate(EvaluateArguments(cfg)) == 1
    line = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert line["settings"]["default"]["mean_iou"] == {"network": None, "native": None}


def test_the_line_at_the_end_scores_by_the_rules_that_were_asked_for(
    fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"source": str(fields), "output": str(tmp_path), "checkpoint": "farmland", "limit": 2}
    names = classes.load_class_map("farmland").names
    cfg = config(**said, score={"samples": 100, "class_weights": {name: 0.0 for name in names if name != "crop"}})
    found = evaluation.read_evaluation(carry_out(cfg).url)
    assert evaluate.evaluate(EvaluateArguments(cfg)) == 0
    line = json.loads(capsys.readouterr().out)["settings"]["default"]
    assert line["mean_iou"]["native"] == pytest.approx(float(found.answer.scores.iou[names.index("crop")]))


def test_a_segmentation_has_no_evaluation(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.url.raw, tmp_path / "run=0123456789ab")
    described = tmp_path / "run=0123456789ab/_run/config.yaml"
    described.write_text("source: in\noutput: out\ncheckpoint: farmland\n")
    with pytest.raises(ConfigError, match="is not a run of an evaluation"):
        evaluation.read_evaluation(Url(str(tmp_path / "run=0123456789ab")))
    described.unlink()
    with pytest.raises(ConfigError, match="is not a run of an evaluation"):
        evaluation.read_evaluation(Url(str(tmp_path / "run=0123456789ab")))


def test_masks_of_other_classes_are_refused(run: Run, fields: Path, tmp_path: Path) -> None:
    cfg = config(source=str(fields), output=str(tmp_path), masks=run.url.raw, classes="camvid")
    with pytest.raises(ConfigError, match="the masks have other classes: id 0"):
        identify(cfg)


@pytest.mark.parametrize(
    ("key", "name"),
    [("a#1.jpg", "a#1.png"), ("in.tar#a", "in.tar/a.png"), ("x#/in.PARQUET#7", "x#/in.PARQUET/7.png")],
)
def test_masks_in_a_folder_have_the_names_of_their_images(key: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"a mask")
    assert masks.FolderMasks(Url(str(tmp_path)))(key) == b"a mask"


def test_a_run_that_is_not_finished_has_no_evaluation(run: Run) -> None:
    done = manifest.read_manifest(run.url)
    assert done is not None
    manifest.reopen_run(run.url)
    with pytest.raises(ConfigError, match="is not a finished run"):
        evaluation.read_evaluation(run.url)
    manifest.close_run(run.url, plan_source(run.cfg), run.classes, fingerprint=run.fingerprint, on_duplicate="fail")
    manifest.mark_finished(run.url)


# ---------------------------------------------------------------- scores and slices


def test_scores_are_those_of_the_summed_counts(run: Run) -> None:
    found = evaluation.read_evaluation(run.url)
    scores = {(one.name, one.class_name): one for one in scores_of(found)}
    expected = Scores(found.answer.counts_nkk.sum(axis=0))
    assert scores["mean_iou", ""].interval.value == pytest.approx(expected.mean_iou)
    for index, name in enumerate(found.classes.names):
        assert scores["iou", name].interval.value == pytest.approx(expected.iou[index], nan_ok=True)
    interval = scores["mean_iou", ""].interval
    assert interval.low <= interval.value <= interval.high
    assert [one.class_name for one in scores_of(found)] == sorted(
        [one.class_name for one in scores_of(found)], key=bool
    )


def scores_of(found: evaluation.Evaluation, **said: object) -> list[scoring.Score]:
    cfg = ScoreConfig.model_validate({"samples": 100} | said)
    return scoring.score_answer(found.answer, found.classes, found.widths_px, cfg)


def test_classes_can_weigh_nothing_and_so_can_pixels_near_boundaries(run: Run) -> None:
    found = evaluation.read_evaluation(run.url)
    weights = {name: 0.0 for name in found.classes.names if name != "crop"}
    scores = {(one.name, one.class_name): one.interval.value for one in scores_of(found, class_weights=weights)}
    assert scores["mean_iou", ""] == pytest.approx(scores["iou", "crop"])
    away = {one.name: one.interval.value for one in scores_of(found, band_px=2)}
    left = found.answer.counts_nkk.sum(axis=0) - found.answer.bands_bkk[1]
    assert away["mean_iou_with_0_within_2_px"] == pytest.approx(Scores(left).mean_iou)


@pytest.mark.parametrize(
    ("said", "message"),
    [({"class_weights": {"snow": 1.0}}, "'snow', which is not a class"), ({"band_px": 5}, "band-px 5 is not one of")],
)
def test_rules_that_do_not_fit_are_refused(said: dict, message: str, run: Run) -> None:
    with pytest.raises(ConfigError, match=message):
        scores_of(evaluation.read_evaluation(run.url), **said)


def test_slices_hold_every_image_once_and_score_it_alone(run: Run) -> None:
    found = evaluation.read_evaluation(run.url)
    cfg = ScoreConfig(samples=100, slice_columns=("size", "key"), slice_pattern=r"farm_0*(?P<odd>\d)")
    slices = scoring.score_slices(found, cfg, {})
    assert list(slices) == ["size", "key", "odd"]
    assert [(one.value, one.images) for one in slices["size"]] == [("48x48", 5)]
    assert [one.value for one in slices["odd"]] == ["0", "1", "2", "3", "5"]
    ious = [one.mean_iou.value for one in slices["key"]]
    np.testing.assert_allclose(ious, found.image_iou)
    assert found.worst(2) == [found.keys[index] for index in np.argsort(ious)[:2]]
    with pytest.raises(ConfigError, match="'colour', which is not a column"):
        scoring.score_slices(found, ScoreConfig(slice_columns=("colour",)), {})


def test_many_numbers_are_cut_in_quarters() -> None:
    values = pd.Series(np.arange(100.0))
    assert scoring._bin_values(values).value_counts().tolist() == [25] * 4
    assert scoring._bin_values(pd.Series(["a", None])).tolist() == ["a", "(unknown)"]


def test_judging_is_a_setting_that_a_plain_run_does_not_have(tmp_path: Path) -> None:
    assert "judge" not in SegmentConfig.model_fields
    assert JudgeConfig().trimap_px == tuple(sorted(JudgeConfig().trimap_px))
