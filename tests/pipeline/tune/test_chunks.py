import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as PilImage

from jobs import command_line
from jobs.segment_dataset import SegmentArguments
from pipeline import classes
from pipeline.classes import ClassInfo, ClassMap
from pipeline.config import ReadConfig, RefineConfig, SegmentConfig
from pipeline.datasets import farmland
from pipeline.image import encode, labels
from pipeline.image.labels import Coding
from pipeline.records import Item, Scored, scored_to_table
from pipeline.refine.presets import crf_params
from pipeline.run.stages import Job
from pipeline.score.metrics import confusion
from pipeline.source.plan import plan_source
from pipeline.store.url import Url
from pipeline.tune import chunks, report, search
from pipeline.tune.chunks import CandidateResult, ScoredChunk, SearchOutcome
from pipeline.tune.search import NO_CRF

FARM = classes.load_class_map("farmland")
FARM_COLOURS = np.array([one.colour for one in FARM.classes], np.uint8)
K = len(FARM)
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>$x_1$.jpg"


# ---------------------------------------------------------------- reading


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    farmland.write_folder(Url(str(tmp_path)), 6, size_px=64, seed=3, with_labels=True)
    return tmp_path


def prepared(fields: Path, coding: Coding = labels.IDS) -> tuple[chunks.LabelledChunk, chunks.ChunkProblems]:
    cfg = SegmentConfig(
        source=(str(fields / "images"),), output="out", checkpoint="farmland", read=ReadConfig(kind="folder")
    )
    (shard,) = plan_source(cfg).shards
    at = labels.by_stem(path.name for path in (fields / "labels").iterdir())
    urls = {
        one.key: Url(str(fields / "labels")) / at[labels.label_stem(one.key)]
        for one in shard.members()
        if labels.label_stem(one.key) in at
    }
    return chunks.fetch_chunk(Job(cfg, FARM, Url(""), "", "", 0), shard, urls, coding)


@pytest.mark.parametrize("kind", ["colours", "other ids"])
def test_labels_of_colours_and_of_other_values_become_class_ids(kind: str, fields: Path) -> None:
    expected, _ = prepared(fields)
    for path in (fields / "labels").iterdir():
        ids = np.asarray(PilImage.open(path))
        PilImage.fromarray(FARM_COLOURS[ids] if kind == "colours" else (ids * 10 + 7).astype(np.uint8)).save(path)
    coding = Coding("colours") if kind == "colours" else Coding("ids", {value * 10 + 7: value for value in range(7)})
    kept, found = prepared(fields, coding)
    assert (found.images, found.faults) == (6, [])
    for key, png in expected.labels.items():
        np.testing.assert_array_equal(encode.read_mask_png(kept.labels[key]), encode.read_mask_png(png))


def test_images_and_labels_come_together(fields: Path) -> None:
    kept, found = prepared(fields)
    assert kept.items["key"].to_pylist() == [f"farm_{index:06d}.jpg" for index in range(6)]
    assert kept.labels["farm_000002.jpg"] == (fields / "labels/farm_000002.png").read_bytes()
    assert (found.images, found.left_out, found.faults) == (6, [], [])


def test_an_image_without_label_or_that_cannot_be_read_is_named(fields: Path) -> None:
    (fields / "labels/farm_000001.png").unlink()
    (fields / "images/farm_000004.jpg").write_bytes(b"<html>no</html>")
    kept, found = prepared(fields)
    assert found.left_out == [("farm_000001.jpg", "no label"), ("farm_000004.jpg", "not_an_image")]
    assert found.images == len(kept.labels) == kept.items.num_rows == 4


def test_every_wrong_label_is_a_fault_with_its_file_and_value(fields: Path) -> None:
    def spoil(index: int, label: np.ndarray) -> None:
        PilImage.fromarray(label).save(fields / f"labels/farm_{index:06d}.png")

    spoil(0, np.full((64, 64), K, np.uint8))
    spoil(2, np.zeros((64, 63), np.uint8))
    spoil(5, np.full((64, 64), 300, np.uint16))
    _, found = prepared(fields)
    assert len(found.faults) == 3
    for fault, index, says in zip(found.faults, (0, 2, 5), ("the value 7", "64x63", "300"), strict=True):
        assert f"farm_{index:06d}.png" in fault
        assert says in fault


# ---------------------------------------------------------------- judging


def chunk_of(images: int, *, noise: float, seed: int = 0) -> ScoredChunk:
    """Farmland images with logits of the true labels plus noise."""
    rng = np.random.default_rng(seed)
    scored, pngs = [], {}
    for index in range(images):
        sample = farmland.generate_scene(seed + index, height=48, width=56)
        logits = 3.0 * (np.arange(K)[:, None, None] == sample.label_hw) + rng.normal(0, noise, (K, 48, 56))
        files = [io.BytesIO(), io.BytesIO()]
        PilImage.fromarray(sample.image_hwc).save(files[0], "PNG")
        PilImage.fromarray(sample.label_hw).save(files[1], "PNG")
        item = Item(f"{index}.png", "shard", "", files[0].getvalue())
        scored.append(Scored(item, 48, 56, logits_khw=logits.astype(np.float16), stride=1))
        pngs[item.key] = files[1].getvalue()
    return ScoredChunk(scored_to_table(scored), pngs)


def judged(chunk: ScoredChunk, candidate: search.Candidate, widths=()) -> chunks.ChunkCounts:
    cfg = SegmentConfig(source=("in",), output="out", checkpoint="farmland")
    return chunks.count_chunk(chunk, candidate.config(RefineConfig()), FARM, cfg.decode, widths)


def test_a_chunk_is_judged_image_by_image() -> None:
    chunk = chunk_of(3, noise=1.5)
    found = judged(chunk, NO_CRF, (2, 8))
    assert found.keys == ["0.png", "1.png", "2.png"]
    assert found.bands_bkk.shape == (2, K, K + 1)
    for counts, row, png in zip(found.counts_nkk, chunk.scored.to_pylist(), chunk.labels.values(), strict=True):
        logits = np.frombuffer(row["logits"], np.float16).reshape(row["logits_shape"])
        truth = labels.decode_label(png, FARM, name="", height=48, width=56)
        np.testing.assert_array_equal(counts, confusion(truth, logits.argmax(axis=0).astype(np.uint8), K))


def outcome_of(noise: float, names: ClassMap = FARM, images: int = 10) -> SearchOutcome:
    chunk = chunk_of(images, noise=noise)
    of_all: dict[str, np.ndarray] = {}
    results = []
    grid = [one for one in search.candidate_grid("coarse", RefineConfig()) if one.params.bi_xy == 30][::2]
    for candidate in [*search.reference_candidates()[:3], *grid]:
        found = judged(chunk, candidate, (2, 8))
        result = CandidateResult(candidate, np.zeros((search.FOLDS, K, K + 1), np.int64))
        result.add(found, search.fold_of_each_image(images))
        results.append(result)
        of_all[candidate.name] = found.counts_nkk
    return chunks.conclude_search(
        results, lambda one: of_all[one.candidate.name], names, widths_px=(2, 8), samples=200, seed=0
    )


@pytest.fixture(scope="module")
def noisy() -> SearchOutcome:
    return outcome_of(noise=2.5)


@pytest.fixture(scope="module")
def perfect() -> SearchOutcome:
    return outcome_of(noise=0)


def test_a_crf_that_helps_is_found_and_one_that_cannot_is_not(noisy: SearchOutcome, perfect: SearchOutcome) -> None:
    assert noisy.verdict.helps
    assert noisy.best.mean_iou == max(one.mean_iou for one in noisy.results) > noisy.none.mean_iou
    assert noisy.verdict.gain.value == pytest.approx(noisy.best.mean_iou - noisy.none.mean_iou)
    assert noisy.contenders[1].band_ious[0] > noisy.contenders[0].band_ious[0]
    assert perfect.none.mean_iou == 1
    assert not perfect.verdict.helps


def test_the_table_of_results_adds_up(noisy: SearchOutcome) -> None:
    table = chunks.results_table(noisy)
    assert table["name"].to_pylist() == [one.candidate.name for one in noisy.results]
    for row, one in zip(table.to_pylist(), noisy.results, strict=True):
        counts = np.array(row["counts"]).reshape(K, K + 1)
        np.testing.assert_array_equal(counts, one.counts_fkk.sum(axis=0))
        assert counts.sum() == 10 * 48 * 56
        assert row["mean_iou"] == one.mean_iou
    assert [row["gain_low"] is not None for row in table.to_pylist()].count(True) == len(noisy.contenders) - 1


def test_the_parameters_are_a_config_of_the_main_job(
    noisy: SearchOutcome, perfect: SearchOutcome, tmp_path: Path
) -> None:
    base = RefineConfig(prune=0.02)
    flags = ["--source", "in", "--output", "out", "--checkpoint", "farmland", "--config", str(tmp_path / "params.yaml")]
    for outcome in (noisy, perfect):
        text = chunks.params_yaml(outcome, base, facts={"images": f"{HOSTILE}\nrefine: {{engine: none}}"})
        (tmp_path / "params.yaml").write_text(text)
        cfg = command_line.parse(flags, SegmentArguments, description="test").cfg
        if outcome is perfect:
            assert cfg.refine.engine == "none"
            assert "no CRF" in text
        else:
            assert cfg.refine.prune == 0.02
            assert crf_params(cfg.refine) == outcome.best.candidate.params
        assert list(yaml.safe_load(text)) == ["refine"]


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """Tags, attributes and ids of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(outcome: SearchOutcome, names: ClassMap = FARM, left_out=()) -> str:
    facts = {"images": HOSTILE}
    return report.render_search(outcome, classes=names, left_out=left_out, facts=facts, params="refine:\n  a: 1\n")


def test_names_of_files_and_classes_cannot_become_script() -> None:
    infos = [ClassInfo(name=f"{index}{HOSTILE}", colour=one.colour) for index, one in enumerate(FARM.classes)]
    hostile = ClassMap(name=HOSTILE, classes=tuple(infos))
    page = page_of(outcome_of(1.0, hostile, images=5), hostile, [(HOSTILE, "no label")] * 300)
    found = Page(page)
    assert not {"script", "img", "iframe", "object", "link"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert HOSTILE in found.text
    assert "and 100 more" in found.text


def test_the_page_is_whole_by_itself_and_its_ids_are_its_own(noisy: SearchOutcome) -> None:
    found = Page(page_of(noisy))
    assert found.tags["svg"] == 6
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = [value for name, value in found.attributes if name in ("href", "xlink:href", "src")]
    assert all(one.startswith("#") and one[1:] in ids for one in references)
    clips = re.findall(r"url\(#([^)]+)\)", " ".join(value for _, value in found.attributes))
    assert set(clips) <= set(ids)
    assert "A CRF gains" in found.text
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", page_of(noisy))


def test_the_page_says_no_crf_where_none_helps(perfect: SearchOutcome) -> None:
    assert "No CRF" in Page(page_of(perfect)).text


def test_the_page_does_not_depend_on_the_clock(noisy: SearchOutcome) -> None:
    assert page_of(noisy) == page_of(noisy)
