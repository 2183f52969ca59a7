"""jobs.compare_models: what its figures rest on, and the table and the plot they become."""

import io
import mmap
import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image as PILImage

from jobs import compare_models
from pipeline import classes
from pipeline.config import InferConfig, RefineConfig, TileConfig
from pipeline.datasets import farmland
from pipeline.errors import ConfigError, JobError
from pipeline.evaluate import comparison, comparison_table
from pipeline.evaluate.comparison import ComparisonRow, NetworkTimings, RoundTiming, SpeedSettings
from pipeline.infer.segmenter import Segmenter
from pipeline.models import catalogue, checkpoint
from pipeline.models.catalogue import PUBLISHED
from pipeline.records import Image, Item, Scored
from pipeline.refine.refiner import Refiner
from pipeline.score import metrics

ONCE = SpeedSettings(height_px=65, width_px=65, images=2, rounds=1, device="cpu", threads=1)
FARMLAND = comparison.compared_checkpoint("farmland", "farmland")


def turn(seconds: float, *, cpu_s: float = 1.0) -> RoundTiming:
    return RoundTiming(stream_s=seconds, alone_s=2 * seconds, cpu_s=cpu_s, peak_mib=100)


def a_row(name: str = "one", **changes) -> ComparisonRow:
    made = comparison.comparison_row(
        comparison.network_facts(FARMLAND, ONCE), None, 0, NetworkTimings([turn(0.5)]), 1.0
    )
    return replace(made, name=name, **changes)


def farmland_turn() -> RoundTiming:
    return comparison.time_network(FARMLAND, ONCE)


def raises() -> None:
    raise JobError("the GPU has too little memory")


def dies() -> None:
    os._exit(1)


# ---------------------------------------------------------------- subjects


def test_a_checkpoint_takes_the_line_of_its_variant_or_one_of_its_own() -> None:
    name = "deeplab_v3plus_mobilenet_v2"
    assert comparison.compared_checkpoint(name, "farmland").variant == catalogue.find_variant(name)
    own = FARMLAND.variant
    assert (own.year, own.miou, own.options) == (2018, None, FARMLAND.card.options)


def test_a_checkpoint_under_the_name_of_another_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="is a deeplab_v3plus, the variant icnet a icnet"):
        comparison.compared_checkpoint("icnet", "farmland")


def test_untrained_networks_are_the_published_ones_with_the_same_weights_every_time() -> None:
    subject = comparison.untrained_network(catalogue.find_variant("icnet"), classes.load_class_map("voc"))
    with torch.device("meta"):
        assert comparison.network_facts(subject, ONCE)["parameters"] == catalogue.count_parameters(
            catalogue.find_variant("icnet").build(21)
        )
    one, other = (subject.load().state for _ in range(2))
    assert all(tensor.equal(other[key]) for key, tensor in one.items())


def test_subjects_stand_in_the_order_asked_for_and_checkpoints_in_place_of_their_variants() -> None:
    flags = ["--output", "x", "--only", "deeplab_v3plus_mobilenet_v2", "icnet"]
    given = ["--checkpoint", "mine=farmland", "--checkpoint", "deeplab_v3plus_mobilenet_v2=farmland"]
    found = compare_models.subjects(compare_models.parse_comparison([*flags, *given]))
    names = [(one.variant.name, one.checkpoint) for one in found]
    assert names == [("deeplab_v3plus_mobilenet_v2", "farmland"), ("icnet", None), ("mine", "farmland")]


# ---------------------------------------------------------------- speed and memory


def test_a_turn_takes_time_and_memory() -> None:
    found = comparison.in_own_process(farmland_turn)
    assert min(found.stream_s, found.alone_s, found.cpu_s) > 0
    assert 20 < found.peak_mib < 4096


def test_what_was_freed_before_is_no_part_of_the_peak() -> None:
    with mmap.mmap(-1, 200 * comparison._MIB) as block:  # not of the heap, which may keep what is freed
        for start in range(0, len(block), mmap.PAGESIZE):
            block[start] = 1
        before = comparison.peak_mib("cpu")
    comparison.reset_peak("cpu")
    assert comparison.peak_mib("cpu") < before - 100


def test_a_network_that_fails_or_dies_takes_no_other_along(monkeypatch) -> None:
    calls = iter([raises, farmland_turn, dies, farmland_turn])
    real = comparison.in_own_process
    monkeypatch.setattr(comparison, "in_own_process", lambda _: real(next(calls)))
    timings = [NetworkTimings() for _ in range(3)]
    for _ in range(2):
        comparison.run_round([FARMLAND] * 3, ONCE, timings)
        monkeypatch.setattr(comparison, "in_own_process", lambda _: real(farmland_turn))
    assert [mine.note for mine in timings] == [
        "the GPU has too little memory",
        "",
        "its process was killed, probably out of memory",
    ]
    assert [len(mine.turns) for mine in timings] == [0, 2, 0]


def test_ratios_compare_turns_of_the_same_round() -> None:
    slow_machine = [1.0, 1.0, 50.0]
    fast = [turn(0.1 * load, cpu_s=1 * load) for load in slow_machine]
    slow = [turn(0.4 * load, cpu_s=3 * load) for load in slow_machine]
    assert comparison.ratios_to_fastest([slow, [], fast], "cpu") == pytest.approx([3, None, 1])
    assert comparison.ratios_to_fastest([slow, [], fast], "cuda") == pytest.approx([4, None, 1])
    assert comparison.ratios_to_fastest([[], []], "cpu") == [None, None]


def test_a_row_has_medians_and_the_spread() -> None:
    found = comparison.comparison_row(
        comparison.network_facts(FARMLAND, ONCE), 50.0, 3, NetworkTimings([turn(s) for s in (0.1, 0.5, 0.2)]), 1.0
    )
    assert (found.images_per_s, found.ms, found.ms_least, found.ms_most) == pytest.approx((5, 400, 200, 1000))


# ---------------------------------------------------------------- quality


def test_the_score_is_that_of_a_plain_loop_over_the_images(tmp_path) -> None:
    folders = {name: tmp_path / "val" / name for name in ("images", "labels")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    model, counts = checkpoint.load_checkpoint("farmland"), 0
    segmenter, refiner = (
        Segmenter(model, InferConfig(), TileConfig(), device="cpu"),
        Refiner(RefineConfig(engine="none"), model.card.classes),
    )
    for seed, width in enumerate((96, 130)):
        scene = farmland.generate_scene(seed, height=96, width=width)
        PILImage.fromarray(scene.image_hwc).save(folders["images"] / f"{seed}.png")
        PILImage.fromarray(scene.label_hw).save(folders["labels"] / f"{seed}.png")
        (prediction,) = segmenter([Image(scene.image_hwc, None)])
        fields = {"stride": segmenter.stride, "align_corners": segmenter.align_corners}
        scored = Scored(Item("k", "s", "e"), 96, width, logits_khw=prediction.logits_khw, **fields)
        counts = counts + metrics.confusion(scene.label_hw, refiner(scored, None).mask_hw, 7)
    miou, images = comparison.score_checkpoint(FARMLAND, str(tmp_path / "val"), "cpu")
    assert images == 2
    assert miou == pytest.approx(100 * metrics.Scores(counts).mean_iou, abs=1e-12)


# ---------------------------------------------------------------- what was published, the table, the plot


def test_published_speeds_agree_with_their_milliseconds() -> None:
    timed = [one for one in PUBLISHED if one.images_per_s is not None]
    assert timed
    assert all(one.ms == pytest.approx(1000 / one.images_per_s, rel=0.07) for one in timed)


def test_every_published_figure_has_a_source_and_stands_once() -> None:
    assert all(one.source.startswith("arXiv ") and 50 < one.miou < 100 for one in PUBLISHED)
    assert len({(one.name, one.data) for one in PUBLISHED}) == len(PUBLISHED)


def test_the_table_says_what_is_untrained_and_why_figures_are_missing() -> None:
    failed = comparison.comparison_row(
        comparison.network_facts(FARMLAND, ONCE), None, 0, NetworkTimings(note="too large"), None
    )
    rows = [a_row(), a_row("two", miou=55.5, images_scored=4), failed]
    text = comparison_table.comparison_markdown(rows, size="65x65", machine="m")
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {len(line) for line in lines} == {len(comparison_table.MEASURED_COLUMNS), 7}
    assert "| untrained |" in text
    assert "| 55.5 (4 images) |" in text
    assert "| too large |" in text


def test_the_plot_shows_published_quality_only_where_nothing_was_measured(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(comparison_table, "_panel", lambda _, points, title, *, filled: shown.append((points, filled)))
    quoted = a_row(published_miou=70, published_on="VOC 2012 val")
    comparison_table.quality_speed_png(
        [quoted, a_row("msc", published_miou=75, published_on="VOC 2012 val, COCO, MSC")]
    )
    comparison_table.quality_speed_png([quoted, a_row("two", miou=55.5)])
    assert shown[0] == ([("one", 2.0, 70)], False)
    assert shown[2] == ([("two", 2.0, 55.5)], True)


def test_no_name_in_the_plot_covers_another_name_or_a_point() -> None:
    points = [("left", 10.0, 50.0), ("right", 11.0, 50.0), ("above", 10.5, 51.0), ("far", 100.0, 70.0)]
    figure = Figure(figsize=(5, 4), layout="constrained", dpi=110)
    axes = figure.subplots()
    comparison_table._panel(axes, points, "", filled=True)
    figure.draw_without_rendering()
    comparison_table._place_labels(axes, points)
    names = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [name for name, _, _ in points]
    assert all(one.count_overlaps([*names[:at], *names[at + 1 :]]) == 0 for at, one in enumerate(names))
    inside = axes.transData.transform([point[1:] for point in points])
    assert not any(one.contains(x, y) for one in names for x, y in inside)


# ---------------------------------------------------------------- the job


def test_a_table_a_parquet_file_and_a_plot_come_out(tmp_path, capsys) -> None:
    flags = ["--only", "--checkpoint", "mine=farmland", "--size", "65", "--images", "1", "--rounds", "1"]
    assert compare_models.main(["--output", str(tmp_path), *flags, "--device", "cpu"]) == 0
    (line,) = pq.read_table(tmp_path / "comparison.parquet").to_pylist()
    assert (line["name"], line["miou"], line["times_fastest"]) == ("mine", None, 1)
    assert (tmp_path / "comparison.md").read_text() in capsys.readouterr().out
    with PILImage.open(io.BytesIO((tmp_path / "comparison.png").read_bytes())) as plot:
        assert plot.format == "PNG"


@pytest.mark.parametrize(
    "flags",
    [
        ["--only"],
        ["--only", "alexnet"],
        ["--checkpoint", "icnet=farmland"],
        ["--checkpoint", "farmland"],
        ["--size", "0"],
        ["--size", "33", "0"],
        ["--size", "33", "33", "33"],
    ],
)
def test_a_wrong_request_ends_with_a_message(flags: list[str], tmp_path) -> None:
    assert compare_models.main(["--output", str(tmp_path), *flags]) == 1
    assert not list(tmp_path.iterdir())
