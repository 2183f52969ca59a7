from pathlib import Path

import pytest

from benchmarks import equal_budget
from pipeline.datasets import farmland
from pipeline.models.card import load_card
from pipeline.models.catalogue import find_variant
from pipeline.store.url import Url


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for part, seed in (("train", 0), ("val", 8)):
        farmland.write_folder(Url(str(tmp_path / "data" / part)), 8, size_px=48, seed=seed, with_labels=True)
    return tmp_path / "data"


def test_a_network_of_more_work_has_more_seconds_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_budget, "BATCH", 2)
    monkeypatch.setattr(equal_budget, "CROP_PX", (64, 64))
    assert equal_budget.step_seconds(find_variant("enet"), 7) < equal_budget.step_seconds(
        find_variant("deeplab_v3plus_mobilenet_v2"), 7
    )


@pytest.mark.slow
def test_networks_have_steps_for_their_budget_and_a_second_call_trains_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"enet": 3.0, "espnet": 1.5}
    monkeypatch.setattr(equal_budget, "step_seconds", lambda variant, num_classes: seconds[variant.name])
    monkeypatch.setattr(equal_budget, "BATCH", 2)
    monkeypatch.setattr(equal_budget, "LEAST_STEPS", 2)
    flags = ["--data", str(data), "--output", str(tmp_path / "runs"), "--classes", "farmland", "--minutes", "0.1"]
    assert equal_budget.main([*flags, "--only", "enet", "espnet"]) == 0
    said = capsys.readouterr().out
    assert "| enet | 2 | 0.5 |" in said
    assert "| espnet | 4 | 1.0 |" in said
    assert load_card(str(tmp_path / "runs/enet")).training["step"] == 2
    monkeypatch.setattr(equal_budget, "step_seconds", lambda variant, num_classes: pytest.fail("timed again"))
    assert equal_budget.main([*flags, "--only", "enet", "espnet"]) == 0
    assert capsys.readouterr().out == said


def test_a_budget_for_hardly_any_steps_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_budget, "step_seconds", lambda variant, num_classes: 60.0)
    flags = ["--data", str(data), "--output", str(tmp_path / "runs"), "--classes", "farmland", "--minutes", "5"]
    assert equal_budget.main([*flags, "--only", "enet"]) == 1
    assert not (tmp_path / "runs/enet.steps").exists()
