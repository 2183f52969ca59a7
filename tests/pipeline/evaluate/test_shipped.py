"""The list of shipped checkpoints: every score is the card's, and the page of the model zoo shows no other."""

import json
from dataclasses import asdict

import pytest

from jobs import models
from pipeline.evaluate import shipped
from pipeline.evaluate.shipped import ShippedCheckpoint
from pipeline.models.card import load_card, shipped_checkpoints
from tests import ROOT

MOST_BYTES = 15_000_000
"""Size of the weights that the package may ship, each."""


@pytest.fixture(scope="module")
def listed() -> list[ShippedCheckpoint]:
    return shipped.list_shipped(size_px=33, measure=False)


def test_each_shipped_checkpoint_is_listed_with_the_scores_of_its_card(listed: list[ShippedCheckpoint]) -> None:
    assert [one.name for one in listed] == shipped_checkpoints()
    for one in listed:
        card = load_card(one.name)
        assert list(one.iou) == list(card.classes.names)
        assert one.miou == pytest.approx(sum(one.iou.values()) / len(one.iou), abs=2e-6)
        assert one.license == card.license
        assert 0 < one.bytes <= MOST_BYTES


def test_a_held_out_mean_is_that_of_its_groups(listed: list[ShippedCheckpoint]) -> None:
    example = ShippedCheckpoint(**asdict(listed[0]) | {"held_out": {"dusk": 0.25, "noon": 0.75}})
    assert "held out: dusk 0.250, noon 0.750; mean 0.500" in shipped.shipped_text([example])
    assert "| held out | dusk 0.250, noon 0.750; mean **0.500** |" in shipped.shipped_markdown(example)


def test_weights_to_begin_with_are_named_with_their_licence(listed: list[ShippedCheckpoint]) -> None:
    for one in listed:
        record = load_card(one.name).training
        assert bool(one.initial) == ("initial_source" in record)
        assert str(record.get("initial_license", "")) in one.initial


def test_the_page_of_the_model_zoo_has_the_table_and_the_picture_of_each(listed: list[ShippedCheckpoint]) -> None:
    page = (ROOT / "docs/zoo.md").read_text(encoding="utf-8")
    for one in listed:
        assert shipped.shipped_markdown(one) in page, f"copy shipped_markdown of {one.name} to docs/zoo.md"
        assert f"](zoo/{one.name}.png)" in page
        assert (ROOT / f"docs/zoo/{one.name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_lists_and_times_them_also_those_of_four_bands(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["--shipped", "--size", "33", "--format", "json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line["name"] for line in lines] == shipped_checkpoints()
    assert all(line["images_per_s"] > 0 for line in lines)
    assert models.main(["--shipped", "--no-speed"]) == 0
    assert "measured by others: test 0.552" in capsys.readouterr().out


def test_a_selection_of_published_networks_is_refused_beside_them() -> None:
    assert models.main(["--shipped", "--only", "enet"]) == 1
