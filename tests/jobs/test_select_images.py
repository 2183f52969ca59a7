"""`atrous select` and the way back: what a tool exports of the pre-labels is a set that trains, with the same masks."""

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from infra import session
from jobs import prepare_dataset, select_images
from pipeline.datasets.cvat import MASKS
from pipeline.image.encode import read_mask_png
from pipeline.run import flow
from pipeline.run.ledger import Ledger
from pipeline.select import files
from pipeline.store.url import Url
from tests.support.miniatures import put, rgb_png
from tests.support.photo_runs import FARM, mask_of, photo, photo_run

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KEYS = ["a.jpg", "b/c.jpg", "b/d e.jpg", "turned.jpg"]


@pytest.fixture
def chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A selection of all four images, handed over to every tool."""
    photos = {key: photo(number, orientation=6 if key == "turned.jpg" else 1) for number, key in enumerate(KEYS)}
    run_url = photo_run(tmp_path, photos)
    flags = [str(run_url), "--images", "4", "--output", str(tmp_path / "chosen")]
    assert select_images.main([*flags, "--to", "labelstudio", "cvat", "coco"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["chosen"], summary["handed_over"], summary["exit_status"]) == (4, 4, 0)
    return tmp_path / "chosen"


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`atrous prepare` of a selection in this process, without Ray, which only hands the shards around."""
    monkeypatch.setattr(session, "connect", lambda: nullcontext([{"CPU": 1.0}]))
    monkeypatch.setattr(flow, "RemoteLedger", Ledger)
    monkeypatch.setattr(flow, "run_tasks", lambda _, units, work, **__: [work(unit) for unit in units])

    def run(root: Path, layout: str, *flags: str) -> int:
        where = ["--layout", layout, "--root", str(root), "--output", str(tmp_path / f"set_{layout}")]
        return prepare_dataset.main([*where, "--splits", "train", "--annotated.val-share", "0", *flags])

    return run


def export_of_label_studio(root: Path) -> None:
    """The project's JSON after every prediction was submitted as it is; the URLs are those of an upload."""
    tasks = json.loads((root / "label_studio/tasks.json").read_bytes())
    for number, task in enumerate(tasks):
        result = task.pop("predictions")[0]["result"]
        task["annotations"] = [{"id": number, "was_cancelled": False, "ground_truth": False, "result": result}]
        task["data"]["image"] = f"/data/upload/3/0123abcd-{task['data']['image'].rpartition('/')[2]}"
    put(root, "project-3.json", json.dumps(tasks))


def export_of_cvat(root: Path) -> None:
    (root / "annotations.xml").write_bytes((root / "cvat/annotations.xml").read_bytes())


def export_of_cvat_masks(root: Path) -> None:
    """Segmentation mask 1.1: CVAT's black is no label."""
    colours = {name: (10 * k + 10, 20, 30) for k, name in enumerate(FARM.names)}
    lines = ["background:0,0,0::", *(f"{name}:{','.join(map(str, colour))}::" for name, colour in colours.items())]
    put(root, "labelmap.txt", "\n".join(lines))
    table = np.zeros((256, 3), np.uint8)
    table[: len(FARM)] = list(colours.values())
    for picture in files.read_pictures(Url(str(root))):
        put(root, f"{MASKS}/{picture.file.rpartition('.')[0]}.png", rgb_png(table[mask_of(picture.key)]))


def export_of_coco(root: Path) -> None:
    (root / "annotations").mkdir()
    (root / "annotations/instances_default.json").write_bytes((root / "coco/annotations.json").read_bytes())


EXPORTS: dict[str, Callable[[Path], None]] = {
    "label_studio": export_of_label_studio,
    "cvat": export_of_cvat,
    "cvat_masks": export_of_cvat_masks,
    "coco_file": export_of_coco,
}


def rows_of(prepared: Path) -> dict[str, Any]:
    table = pd.concat(pd.read_parquet(path) for path in (prepared / "train").glob("*.parquet"))
    return {row["key"]: row for row in table.to_dict("records")}


@pytest.mark.parametrize("layout", EXPORTS)
def test_masks_come_back_from_each_tool_as_they_went(
    layout: str, chosen: Path, tmp_path: Path, prepare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    EXPORTS[layout](chosen)
    assert prepare(chosen, layout) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["splits"]["train"] == {"ok": 4, "failed": 0, "rows": 4}
    rows = rows_of(tmp_path / f"set_{layout}")
    for picture in files.read_pictures(Url(str(chosen))):
        row = rows[f"train/{picture.file.rpartition('.')[0]}"]
        np.testing.assert_array_equal(read_mask_png(row["label"]), mask_of(picture.key))
        assert row["image"] == (chosen / "images" / picture.file).read_bytes()


def test_what_cannot_be_used_is_counted_and_the_rest_is_prepared(
    chosen: Path, tmp_path: Path, prepare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    export_of_cvat(chosen)
    pictures = files.read_pictures(Url(str(chosen)))
    (chosen / "images" / pictures[0].file).unlink()
    text = (chosen / "annotations.xml").read_text()
    (chosen / "annotations.xml").write_text(
        text.replace(f'name="{pictures[1].file}" width="7"', f'name="{pictures[1].file}" width="8"')
    )
    assert prepare(chosen, "cvat") == 1
    assert json.loads(capsys.readouterr().out)["splits"]["train"] == {"ok": 2, "failed": 2, "rows": 2}
    (failures,) = (tmp_path / "set_cvat/failures/train").iterdir()
    assert sorted(pd.read_parquet(failures)["error_code"]) == ["label_size", "not_found"]


def test_another_unlabelled_class_on_the_same_output_is_refused(
    chosen: Path, prepare: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    export_of_cvat(chosen)
    assert prepare(chosen, "cvat") == 0
    assert prepare(chosen, "cvat", "--annotated.unlabelled", FARM.names[0]) == 1
    assert "other settings" in caplog.text


# ---------------------------------------------------------------- flags


def select(tmp_path: Path, *flags: str, output: str = "chosen") -> int:
    return select_images.main([str(tmp_path / "out"), "--output", str(tmp_path / output), *flags])


def test_labelled_images_are_excluded_from_the_next_selection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo_run(tmp_path, {key: photo(number) for number, key in enumerate(KEYS)})
    assert select(tmp_path, "--images", "3") == 0
    assert select(tmp_path, "--images", "3", "--exclude", str(tmp_path / "chosen"), output="next") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["chosen"], second["chosen"], second["left_out"]) == (3, 1, {"excluded": 3})


def test_an_image_that_is_gone_makes_the_job_fail_after_the_others_are_handed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo_run(tmp_path, {key: photo(number) for number, key in enumerate(KEYS)})
    (tmp_path / "photos/a.jpg").unlink()
    assert select(tmp_path, "--images", "4", "--to", "cvat") == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["handed_over"], summary["not_handed_over"]) == (3, {"not_found": 1})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--images", "0"], "--images 0 chooses nothing"),
        (["--images", "2", "--exclude", "gone.txt"], "--exclude gone.txt"),
        (["--images", "2", "--output", "{}/photos/chosen"], "lies inside the source"),
        (["--images", "2", "--output", "{}/out/run=0123456789ab/chosen"], "lies inside the run"),
    ],
)
def test_wrong_flags_end_with_a_message(
    flags: list[str], says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo_run(tmp_path, {key: photo(number) for number, key in enumerate(KEYS)})
    assert select(tmp_path, *(flag.format(tmp_path) for flag in flags)) == 1
    assert says in caplog.text


def test_of_several_runs_one_must_be_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo_run(tmp_path, {"a.jpg": photo(1)})
    (tmp_path / "out/run=ba9876543210").mkdir()
    (tmp_path / "out/run=ba9876543210/x").write_bytes(io.BytesIO().getvalue())
    assert select(tmp_path, "--images", "1") == 1
    assert "run=0123456789ab, run=ba9876543210" in caplog.text
