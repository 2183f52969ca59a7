import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import pytest

from pipeline.classes import ClassInfo, ClassMap
from pipeline.config import ScoreConfig
from pipeline.evaluate import gate, history, report, scoring
from pipeline.evaluate.evaluation import AnswerCounts, Evaluation, Slice
from pipeline.evaluate.gate import Baseline, Gates
from pipeline.evaluate.report import ScoredSetting, most_confused, shown_keys
from pipeline.records import Sample
from pipeline.score.drift import Drift
from pipeline.score.metrics import Interval
from pipeline.score.season import season_table
from pipeline.store.url import Url
from tests.support import evaluations
from tests.support.pages import Outline, laid_out, needs_browser, needs_printer, printed
from tests.support.seasons import summers, zones_of

HOSTILE = "<script>alert(1)</script>"
CFG = ScoreConfig(samples=100)
WIDTHS = (1.0, 4.0, 16.0)


def judged(classes: ClassMap | None = None, images: int = 60, **changes) -> ScoredSetting:
    """Evaluation with all optional parts of the report."""
    one = evaluations.evaluation(images, failed=2, **changes)
    k = len(classes or one.classes)
    answers = {name: _grown(answer, k) for name, answer in one.answers.items()}
    facts = {"source": "s3://labelled/val"}
    one = replace(one, classes=classes or one.classes, widths_px=WIDTHS, answers=answers, facts=facts)
    return ScoredSetting(
        one, {each.name: scoring.score_answer(each, one.classes, WIDTHS, CFG) for each in answers.values()}
    )


def _grown(answer: AnswerCounts, k: int) -> AnswerCounts:
    """Counts of an answer grown to more classes, most without a pixel, and trimaps."""
    few = answer.counts_nkk.shape[1]
    counts = np.zeros((len(answer.counts_nkk), k, k + 1), np.int64)
    counts[:, :few, :few] = answer.counts_nkk[:, :, :few]
    bands = np.stack([counts.sum(axis=0) // part for part in (4, 3, 2)])
    boundary = np.tile(np.array([100, 90, 60]), (k, 1))
    return replace(answer, counts_nkk=counts, bands_bkk=bands, boundary=boundary)


def sample(key: str, *, classes: ClassMap = evaluations.CLASSES, height: int = 24, width: int = 32) -> Sample:
    rng = np.random.default_rng(0)
    truth, mask = rng.integers(0, len(classes), (2, height, width), np.uint8)
    return Sample(key, rng.integers(0, 256, (height, width, 3), np.uint8), truth, mask)


def samples(one: ScoredSetting, **size) -> list[Sample]:
    worst, best = shown_keys(one.evaluation)
    return [sample(key, classes=one.evaluation.classes, **size) for key in worst + best]


def verdict(one: Evaluation, **gates) -> gate.GateVerdict:
    before = replace(one, run_url=Url("s3://runs/before"), checkpoint="s3://models/before")
    return gate.apply_gates(
        one, Gates(samples=100, **gates), baseline=Baseline(before.run_url), baseline_evaluation=before
    )


def entries(one: Evaluation, count: int = 3) -> list[history.HistoryEntry]:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    runs = [replace(one, run_url=one.run_url if at == count - 1 else Url(f"s3://runs/{at}")) for at in range(count)]
    return [
        entry
        for at, run in enumerate(runs)
        for entry in history.history_entries(
            run, time=start + timedelta(days=at), command="x", source="s3://labelled/val"
        )
    ]


def page(one: ScoredSetting, **said) -> str:
    return report.render_evaluation(one, cfg=CFG, **said)


def full(one: ScoredSetting, **said) -> str:
    """Report with all optional parts."""
    found = one.evaluation
    told = {
        "verdict": verdict(found), "history": entries(found), "samples": samples(one),
        "drift": [Drift("brightness", 0.31, 0.05, "shifted", "mean 90 in training, 120 here")],
    }  # fmt: skip
    return page(one, **told | said)


@cache
def usual() -> str:
    return full(judged())


def test_seasons_are_shown_for_all_zones_and_for_those_outside():
    crop = {(day, zone): 0.4 for day in summers([2023, 2024]) for zone in ("calm", HOSTILE)}
    new = {(date(2025, 6, 15), "calm"): 0.4, (date(2025, 6, 15), HOSTILE): 0.9}
    text = page(judged(), season=season_table(zones_of(crop | new)))
    rows = text.partition('<section id="season">')[2].partition("</section>")[0]
    assert rows.count("<tr><td>") == 3 + 2  # all zones; the zone outside has two classes
    assert "outside" in rows
    assert "calm" not in rows
    assert HOSTILE not in text
    assert 'id="season"' not in usual()


def test_the_page_leads_with_the_score_its_interval_and_the_change_to_the_baseline():
    one = judged()
    text = Outline(usual()).text
    head = text.partition("Scores per class")[0]
    miou = one.evaluation.answer.scores.mean_iou
    assert f"{miou * 100:.1f}% mean IoU" in head
    low, high = re.search(r"95% interval ([\d.]+) to ([\d.]+)", head).groups()
    assert float(low) < miou * 100 < float(high)
    assert re.search(r"Change from the baseline\s*0.00\s*0.00 to 0.00 percentage points", head), (
        "the baseline is the same network"
    )


def test_a_failed_gate_is_said_first_and_why():
    one = judged()
    head = Outline(full(one, verdict=verdict(one.evaluation, floors={"crop": 0.99}))).text.partition("Class by")[0]
    assert "Gate failed" in head
    assert "crop floor: 0." in head
    assert "Gate passed" in Outline(full(one, verdict=verdict(one.evaluation, max_failed_share=0.5))).text
    assert "Gate" not in Outline(page(one)).text, "none was asked for"


def test_what_is_mixed_up_is_every_mistake_once_most_pixels_first():
    counts = np.random.default_rng(0).integers(0, 50, (4, 5))
    found = most_confused(counts, evaluations.CLASSES, most=99)
    assert sum(one.pixels for one in found) == counts.sum() - np.trace(counts)
    assert [one.pixels for one in found] == sorted((one.pixels for one in found), reverse=True)
    names = [(one.truth.name, one.answer and one.answer.name) for one in found]
    assert len(set(names)) == len(names)
    for one, (truth, answer) in zip(found, names, strict=True):
        row = evaluations.NAMES.index(truth)
        column = evaluations.NAMES.index(answer) if answer else -1
        assert one.share == counts[row, column] / counts[row].sum()


@pytest.mark.parametrize("images", [1, 20, 28, 60])
def test_the_worst_and_the_best_images_are_shown_and_none_twice(images):
    one = judged(images=images).evaluation
    worst, best = shown_keys(one)
    assert len(worst) == min(24, images)
    assert len(set(worst + best)) == len(worst + best) == min(32, images)
    iou = dict(zip(one.keys, one.image_iou, strict=True))
    shown = [iou[key] for key in worst + best[::-1]]
    assert shown == sorted(shown)


def test_every_image_shown_has_its_four_pictures_and_a_word_on_what_went_wrong():
    outline = Outline(usual())
    pictures = list(outline.images())
    assert len(pictures) == 4 * 32
    assert {picture.size for _, picture in pictures} == {(32, 24)}
    assert [attrs["alt"].partition(" of ")[0] for attrs, _ in pictures[:4]] == ["image", "truth", "prediction", "wrong"]
    assert outline.text.count("predicted as crop") + outline.text.count("predicted as weed") > 8


def test_images_that_could_not_be_read_again_are_left_out():
    one = judged()
    outline = Outline(full(one, samples=samples(one)[:3]))
    assert len(list(outline.images())) == 12
    assert "No images: none has a score" in Outline(page(one)).text


def test_classes_come_by_score_and_one_that_never_occurs_last_without():
    names = ("a", "b", "c", "d", "never")
    classes = ClassMap(name="five", classes=tuple(ClassInfo(name=f"class {name}", colour=(1, 2, 3)) for name in names))
    one = judged(classes)
    rows = Outline(page(one)).text.partition("Scores per class")[2].partition("Confused classes")[0]
    iou = one.evaluation.answer.scores.iou
    order = sorted(range(4), key=lambda index: -iou[index])
    places = [rows.index(f"class {names[index]}") for index in [*order, 4]]
    assert places == sorted(places)
    assert "–" in rows[places[-1] :]


def test_settings_stand_in_one_table_and_only_what_is_refined_has_a_gain():
    one, other = judged(), judged(name="stride 8", network=1)
    text = Outline(page(one, others=[other])).text
    table = text.partition("Settings, with and without refinement")[2].partition("Failures")[0]
    assert table.count("network") >= 2
    assert "stride 8" in table
    single = replace(one.evaluation, answers={"network": one.evaluation.answers["network"]})
    text = Outline(page(ScoredSetting(single, one.scores))).text
    assert "no refinement ran" in text


def test_names_of_anything_cannot_become_script():
    infos = tuple(ClassInfo(name=f"{index}{HOSTILE}", colour=(index, 9, 9)) for index in range(4))
    one = judged(ClassMap(name=HOSTILE, classes=infos), name=HOSTILE, checkpoint=HOSTILE)
    images = one.evaluation.images.assign(key=[f"{key}{HOSTILE}" for key in one.evaluation.keys])
    cut = {HOSTILE: [Slice(HOSTILE, 3, Interval(0.5, 0.4, 0.6), [0.5] * 4)]}
    found = replace(
        one.evaluation, images=images, slices=cut, facts={HOSTILE: HOSTILE}, failures=[(HOSTILE, "label_size", HOSTILE)]
    )
    one = replace(one, evaluation=found)
    text = full(one, drift=[Drift("entropy", 0.3, 0.1, "shifted", HOSTILE)], next_commands=[HOSTILE])
    outline = Outline(text)
    assert outline.stack == []
    assert outline.text.count(HOSTILE) > 60
    assert not {"script", "iframe", "object", "link"} & {tag for tag, _ in outline.tags}


def test_the_page_is_whole_by_itself_and_its_ids_are_its_own():
    text = usual()
    outline = Outline(text)
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {attrs["href"].removeprefix("#") for tag, attrs in outline.tags if tag == "a"}
    assert wanted <= set(ids)
    assert sum(tag == "svg" for tag, _ in outline.tags) == 8
    assert all(attrs["src"].startswith("data:") for tag, attrs in outline.tags if tag == "img")
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", text), "colours that no variable of the page replaced"
    assert text == full(judged()), "the same evaluation has the same page"


def test_a_mean_over_fewer_classes_says_so_in_the_headline():
    few = evaluations.without_class(evaluations.evaluation(), "stone")
    scored = {name: scoring.score_answer(answer, few.classes, (), CFG) for name, answer in few.answers.items()}
    text = Outline(page(ScoredSetting(few, scored))).text
    assert "% mean IoU over 3 of 4 classes, no label of: stone" in text
    assert str(few.coverage) in text


def test_an_evaluation_of_nothing_has_a_page():
    one = judged(images=1).evaluation
    nothing = {name: replace(each, counts_nkk=each.counts_nkk[:0], reliability=np.zeros((256, 2), np.int64))
               for name, each in one.answers.items()}  # fmt: skip
    empty = replace(one, images=one.images[:0], answers=nothing)
    text = Outline(page(ScoredSetting(empty, {name: [] for name in nothing}))).text
    assert "No image has a score" in text
    assert "the image has no label" in text or "label_missing" in text


@pytest.mark.slow
def test_a_page_of_noise_150_classes_and_500_slices_stays_below_five_megabytes():
    rng = np.random.default_rng(0)
    infos = tuple(ClassInfo(name=f"class {index}", colour=(index, 255 - index, 9)) for index in range(150))
    one = judged(ClassMap(name="many", classes=infos))
    noise = rng.integers(0, 1000, (60, 150, 151))
    answers = {name: replace(each, counts_nkk=noise) for name, each in one.evaluation.answers.items()}
    cut = [Slice(f"place {index}", 3, Interval(0.5, 0.4, 0.6), [0.5] * 150) for index in range(500)]
    one = replace(one, evaluation=replace(one.evaluation, answers=answers, slices={"place": cut}))
    text = full(one, verdict=None, history=[], samples=samples(one, height=240, width=240))
    assert len(text.encode()) < 5_000_000
    assert text.count("<figure") >= 16, "noise does not compress; photographs all fit"
    assert text.count("place ") == 500


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_lays_the_page_out_within_its_window_and_complains_of_nothing(width, tmp_path):
    long = "x" * 300
    infos = (ClassInfo(name=long, colour=(1, 2, 3)), *(ClassInfo(name=name, colour=(4, 5, 6)) for name in "abc"))
    one = judged(ClassMap(name=long, classes=infos), checkpoint=long)
    images = one.evaluation.images.assign(key=[f"{key}{long}" for key in one.evaluation.keys])
    cut = {long: [Slice(long, 3, Interval(0.5, 0.4, 0.6), [0.5] * 4)]}
    failures = [(long, "label_size", long)]
    found = replace(one.evaluation, images=images, slices=cut, facts={long: long}, failures=failures)
    seen = laid_out(full(replace(one, evaluation=found), next_commands=[long]), window_px=width, folder=tmp_path)
    assert seen.width_px == width
    assert seen.complaints == []
    assert seen.faults == []


@needs_browser
@pytest.mark.parametrize("width", [390, 900])
def test_a_matrix_of_many_classes_and_a_table_beside_a_plot_fit(width, tmp_path):
    names = [f"a class with a name {index}" for index in range(20)]
    classes = ClassMap(name="many", classes=tuple(ClassInfo(name=name, colour=(1, 2, 3)) for name in names))
    assert laid_out(full(judged(classes)), window_px=width, folder=tmp_path).faults == []


@needs_printer
@pytest.mark.parametrize("classes", [4, 12, 19, 30])
def test_a_printed_heading_stands_on_the_sheet_of_its_plot(classes, tmp_path):
    infos = tuple(ClassInfo(name=f"class {index}", colour=(index, 2, 3)) for index in range(classes))
    sheets = printed(full(judged(ClassMap(name="some", classes=infos)), samples=[]), folder=tmp_path)
    for heading, of_plot in (
        ("Confused classes", "prediction"),
        ("Scores per image", "mean IoU of an image"),
        ("With and without refinement", "calibration error"),
        ("History", "mean IoU, %"),
    ):
        sheet = next(sheet for sheet in sheets if re.search(rf"^{heading}$", sheet, re.MULTILINE))
        assert of_plot in sheet.partition(heading)[2], heading
