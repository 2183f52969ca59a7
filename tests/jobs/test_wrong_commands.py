"""Wrong commands that a newcomer types: each ends with its status, a message that helps, and nothing on stdout."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from infra import preflight
from jobs import cli

SEGMENT = "segment --source src --checkpoint farmland --output out"


@dataclass(frozen=True)
class Wrong:
    """A command, its exit status, and words of its message."""

    command: str
    status: int
    words: tuple[str, ...]


WRONG = {
    "misspelt subcommand": Wrong("segmnt --source src", 2, ("no command 'segmnt'", "nearest is 'segment'")),
    "misspelt flag": Wrong(
        f"{SEGMENT} --tile.tile-pix 320", 2, ("--tile.tile-pix", "Perhaps you meant", "--tile.tile-px")
    ),
    "missing output": Wrong("segment --source src --checkpoint farmland", 2, ("Missing", "--output")),
    "unknown config key": Wrong(f"{SEGMENT} --config key.yaml", 1, ("key.yaml", "did you mean tile.tile_px?")),
    "tab in a config": Wrong(f"{SEGMENT} --config tab.yaml", 1, ("tab.yaml is not YAML", "'\\t'", "line 2")),
    "config that is a list": Wrong(f"{SEGMENT} --config list.yaml", 1, ("list.yaml must hold settings by name",)),
    "config that is not there": Wrong(f"{SEGMENT} --config gone.yaml", 1, ("cannot read gone.yaml",)),
    "rehearsal without a plan": Wrong(f"{SEGMENT} --rehearse 64", 1, ("--rehearse belongs to --plan", "add --plan")),
    "rehearsal of nothing": Wrong(f"{SEGMENT} --plan --rehearse 0", 1, ("--rehearse 0: at least 1 image",)),
    "budget without a rehearsal": Wrong(
        f"{SEGMENT} --plan --budget-hours 3", 1, ("--budget-hours needs a rehearsal", "--rehearse 64")
    ),
    "budget of no hours": Wrong(
        f"{SEGMENT} --plan --rehearse 8 --budget-hours 0", 1, ("--budget-hours 0: hours above 0",)
    ),
    "crew that is not there": Wrong(
        f"{SEGMENT} --runtime.crew gone.json", 1, ("--runtime.crew gone.json: there is no such file", "--crew-output")
    ),
    "crew and a number of workers": Wrong(
        f"{SEGMENT} --runtime.crew gone.json --runtime.infer-workers 2", 2, ("crew and infer_workers",)
    ),
    "missing source": Wrong(
        "segment --source gone --checkpoint farmland --output out", 1, ("no such file or folder: gone ({cwd}/gone)",)
    ),
    "source without an image": Wrong(
        "segment --source notes --checkpoint farmland --output out",
        1,
        ("no images in notes", "ignored: 1 .txt", ".jpg"),
    ),
    "bucket without a name": Wrong(
        "segment --source s3:// --checkpoint farmland --output out", 1, ("bucket name", "AWS_PROFILE")
    ),
    "unknown checkpoint": Wrong(
        "segment --source src --checkpoint framland --output out",
        1,
        ("no checkpoint 'framland'", "camvid, camvid_lite0, cwfid, farmland"),
    ),
    "checkpoint without a card": Wrong(
        "segment --source src --checkpoint notes --output out", 1, ("no checkpoint 'notes'", "card.json")
    ),
    "assembly of what is no run": Wrong("assemble notes", 1, ("notes has no parts", "run=<12 digits>")),
    "assembly of nothing": Wrong("assemble gone", 1, ("gone has no parts",)),
    "unknown class map": Wrong(f"{SEGMENT} --classes cityscape", 1, ("no class map 'cityscape'", "cityscapes")),
    "classes of another set": Wrong(
        f"{SEGMENT} --classes voc", 1, ("checkpoint has 7 classes", "voc has 21", "leave --classes unset")
    ),
    "unknown engine": Wrong(f"{SEGMENT} --refine.engine natve", 2, ("natve", "--refine.engine", "native")),
    "limit of 0": Wrong(f"{SEGMENT} --limit 0", 1, ("limit", "greater than or equal to 1 (got 0)")),
    "word in place of a number": Wrong(f"{SEGMENT} --infer.batch two", 2, ("'two'", "--infer.batch")),
    "overlap off the grid": Wrong(
        f"{SEGMENT} --tile.overlap-px 600", 2, ("overlap_px", "should be a multiple of 32", "600")
    ),
    "label of another size": Wrong(
        "train --bare --config farmland --data labelled --sets.train all --sets.validation all --classes farmland"
        " --output out",
        1,
        ("label of a.png has 32x32 pixels, its image 64x64", "resize a label by nearest neighbour"),
    ),
    "labels of another suffix": Wrong(
        "train --bare --config farmland --data suffixed --sets.train all --sets.validation all --classes farmland"
        " --output out",
        1,
        ("has no labelled image", "labels are PNG: found a.tif for a.png"),
    ),
    "output that is a file": Wrong(
        "segment --source src --checkpoint farmland --output taken",
        1,
        ("cannot write taken", "a file where a folder should be"),
    ),
    "unknown recipe": Wrong("train --config camvd", 1, ("--config camvd", "camvid")),
    "missing training data": Wrong(
        "train --config camvid --data gone --output out", 1, ("no classes.yaml in gone ({cwd}/gone)", "check --data")
    ),
    "images without labels": Wrong(
        "evaluate --source src --checkpoint farmland --output out", 1, ("labels", "--read.labels")
    ),
    "last-good without a history": Wrong(
        "evaluate --source src --checkpoint farmland --output out --baseline last-good",
        1,
        ("needs a history", "--history"),
    ),
    "missing labels": Wrong(
        "tune-crf --images src --labels gone --checkpoint farmland --output out", 1, ("gone ({cwd}/gone)",)
    ),
    "missing download": Wrong(
        "prepare --layout voc --root gone --output out --splits train",
        1,
        ("gone ({cwd}/gone) does not exist", "--root", "VOCdevkit"),
    ),
    "weights without a destination": Wrong("import gone.pth", 2, ("DST",)),
    "folder without a run": Wrong("inspect src", 1, ("no run in src", "--output")),
    "submission without a name": Wrong("submit -- segment", 2, ("--name",)),
    "unknown variant": Wrong(
        "compare --output out --only nosuch", 1, ("no variant 'nosuch'", "deeplab_v3plus_resnet50")
    ),
}


LABELLED = {"labelled": ("a.png", 32), "suffixed": ("a.tif", 64)}
"""Training data with a wrong label: its name and its side, px."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder of a newcomer: one image, and files that are not what they seem."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for folder in ("src", "notes", *(f"{data}/all/{kind}" for data in LABELLED for kind in ("images", "labels"))):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("src", *(f"{data}/all/images" for data in LABELLED)):
        PIL.Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / folder / "a.png")
    for data, (name, side) in LABELLED.items():
        PIL.Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / data / "all/labels" / name)
    (tmp_path / "notes/notes.txt").write_text("no image")
    (tmp_path / "key.yaml").write_text("tile: {tile_pixels: 320}")
    (tmp_path / "tab.yaml").write_text("tile:\n\ttile_px: 320\n")
    (tmp_path / "list.yaml").write_text("- source: src\n")
    (tmp_path / "taken").write_text("a file")
    return tmp_path


def test_a_submitted_job_with_a_relative_output_is_told_where_it_would_have_written(
    desk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(preflight.SUBMITTED, "{}")
    assert cli.main(shlex.split(f"segment --source {desk}/src --checkpoint farmland --output out")) == 1
    assert f"out is a relative path in a submitted job: it would be {desk}/out" in caplog.text
    assert "s3://bucket/folder" in caplog.text


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_ends_with_a_message_that_helps(
    name: str, desk: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = WRONG[name]
    try:
        status = cli.main(shlex.split(wrong.command))
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    said = " ".join(f"{printed.err} {caplog.text}".split())
    assert status == wrong.status, said
    assert printed.out == ""
    assert "Traceback" not in said
    assert "pydantic" not in said
    for words in wrong.words:
        assert words.format(cwd=desk) in said
