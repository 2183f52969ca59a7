import json

import pytest

from jobs import console
from pipeline.config import EvaluateConfig, SegmentConfig
from pipeline.datasets.catalogue import DATASET_LAYOUTS
from pipeline.datasets.config import DATASET_NAMES
from pipeline.tune.config import TuneConfig
from pipeline.tune.search import GRIDS

GIVEN = {"source": "in", "output": "out", "checkpoint": "farmland"}


def changed(**settings: object) -> list[str]:
    return console.changed_settings(SegmentConfig.model_validate(GIVEN | settings))


def test_only_what_differs_from_its_default_is_named_with_both_values() -> None:
    lines = changed(tile={"tile_px": 640, "overlap_px": 128}, refine={"bi_w": 4}, infer={"scales": [0.5, 1]})
    assert lines == ["tile.tile_px 512 -> 640", "infer.scales [1.0] -> [0.5, 1.0]", "refine.bi_w unset -> 4.0"]


def test_required_settings_have_no_default_and_are_left_out() -> None:
    assert changed() == []


def test_settings_of_a_file_are_named_by_their_paths() -> None:
    settings = {"fine": {"infer": {"output_stride": 8}}}
    cfg = EvaluateConfig.model_validate({"source": "in", "settings": settings, "output": "out"})
    assert console.changed_settings(cfg) == ['output "" -> out', "settings.fine.infer.output_stride unset -> 8"]


def test_text_of_several_lines_stays_on_one_line() -> None:
    (line,) = changed(read={"labels": "a\n" + 90 * "long "})
    assert "\n" not in line


def test_the_log_has_a_line_for_each_group(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    settings = {"output": "out", "tile": {"tile_px": 640, "overlap_px": 64}, "limit": 3}
    console.log_changed_settings(EvaluateConfig.model_validate({"source": "in"} | settings), known=["output"])
    tile = "settings: tile.tile_px 512 -> 640, tile.overlap_px 128 -> 64"
    assert sorted(caplog.messages) == ["settings: limit unset -> 3", tile]


def test_the_json_line_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": [1, 2]})
    assert json.loads(capsys.readouterr().out) == {"a": [1, 2]}


def test_the_help_of_the_search_names_every_grid() -> None:
    description = TuneConfig.model_fields["grid"].description or ""
    assert [name for name in GRIDS if name not in description] == []


def test_the_help_of_preparing_names_every_data_set() -> None:
    assert tuple(DATASET_LAYOUTS) == DATASET_NAMES
