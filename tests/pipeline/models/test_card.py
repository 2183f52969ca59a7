"""Cards of checkpoints, as read without their weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import classes
from pipeline.classes import ClassInfo, ClassMap
from pipeline.errors import ConfigError
from pipeline.models import card
from pipeline.models.card import CARD_FILE, Card, check_classes, load_card

CLASSES = ClassMap(
    name="field", classes=tuple(ClassInfo(name=name, colour=(0, 0, 0)) for name in ("soil", "crop", "weed"))
)
CARD = Card(
    architecture="deeplab_v3plus",
    classes=CLASSES,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.2, 0.3),
    source="a test",
    license="Apache-2.0",
)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / CARD_FILE).write_text(json.dumps(CARD.plain()))
    return str(tmp_path)


def refusal(ref: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_card(ref)
    return str(caught.value)


def test_a_card_is_read_as_it_was_written_and_without_torch(folder: str) -> None:
    assert load_card(folder) == CARD
    code = "import sys; from pipeline.models import card; card.load_card('farmland'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "card.json"),
        (b"{}", "architecture: Field required"),
    ],
)
def test_a_card_that_is_no_card_is_refused(folder: str, text: bytes, says: str) -> None:
    Path(folder, CARD_FILE).write_bytes(text)
    assert says in refusal(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour_space": "sRGB"}, "colour_space: there is no such setting"),
        ({"mean": [0.5]}, "mean has 1 values for 3 channels"),
        ({"mean": [124, 117, 104]}, "less than or equal to 1"),
        ({"std": [0.2, 0.0, 0.2]}, "std.1"),
        ({"std": [0.2, float("nan"), 0.2]}, "std.1"),
        ({"options": {"num_classes": 5}}, "options must not contain num_classes"),
    ],
)
def test_a_wrong_field_is_named(folder: str, change: dict, says: str) -> None:
    path = Path(folder, CARD_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert says in refusal(folder)


def test_errors_about_a_checkpoint_hide_what_its_url_must_not_show() -> None:
    with pytest.raises(ConfigError) as refusal:
        load_card("memory://key:hidden@models/none")
    assert "hidden" not in str(refusal.value)
    assert "models/none" in str(refusal.value)


def test_an_oversized_card_is_not_read(folder: str, monkeypatch) -> None:
    monkeypatch.setattr(card, "MAX_CARD_BYTES", 100)
    assert "100" in refusal(folder)


def test_a_class_map_of_another_data_set_is_refused_with_counts_and_names() -> None:
    streets = CARD.model_copy(update={"classes": classes.load_class_map("cityscapes")})
    with pytest.raises(ConfigError) as caught:
        check_classes(streets, classes.load_class_map("voc"))
    said = str(caught.value)
    assert "checkpoint has 19 classes (cityscapes), class map voc has 21" in said
    assert "id 0: road / background" in said
    assert said.count("\n  id ") == card._SHOWN
    assert f"... and {21 - card._SHOWN} more" in said


def test_the_same_names_under_another_title_and_other_colours_are_accepted() -> None:
    repainted = tuple(ClassInfo(name=one.name, colour=(1, 2, 3)) for one in CLASSES.classes)
    check_classes(CARD, ClassMap(name="repainted", classes=repainted))
