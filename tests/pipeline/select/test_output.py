"""The folder of a selection: found again, never mixed with other files or other settings."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import ConfigError
from pipeline.records import rows_to_table
from pipeline.run import parts
from pipeline.select import output
from pipeline.select.output import read_keys, select_images
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.photo_runs import FARM, failed_row, mask_row, write_run


@pytest.fixture
def run_url(tmp_path: Path) -> Url:
    url = Url(str(tmp_path / "out/run=0123456789ab"))
    write_run(url, [*(mask_row(f"{name}.jpg", "s", entropy=value / 10) for value, name in enumerate("abcdef"))])
    return url


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_selection_has_a_row_for_each_image_in_the_order_of_its_ranks(run_url: Url, tmp_path: Path) -> None:
    summary = select_images(run_url, 4, Url(str(tmp_path / "chosen")))
    table = pd.read_parquet(tmp_path / "chosen/selection.parquet")
    assert table.columns.tolist() == output.SELECTION_SCHEMA.names
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert (summary["chosen"], summary["candidates"], summary["uncertainty"]) == (4, 6, ["entropy", "changed_share"])
    assert output.read_selection(Url(str(tmp_path / "chosen")))["key"].to_pylist() == table["key"].tolist()


def test_the_same_command_again_finds_the_selection_and_changes_no_byte(run_url: Url, tmp_path: Path) -> None:
    first = select_images(run_url, 4, Url(str(tmp_path / "chosen")))
    before = contents(tmp_path / "chosen")
    again = select_images(run_url, 4, Url(str(tmp_path / "chosen")))
    assert contents(tmp_path / "chosen") == before
    times = {"there", "wall_s"}
    assert again["there"]
    assert {name: again[name] for name in again.keys() - times} == {name: first[name] for name in first.keys() - times}


def test_a_selection_stopped_after_any_put_ends_with_the_same_files(
    run_url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_images(run_url, 4, Url(str(tmp_path / "whole")))
    put = objects.put
    for allowed in range(3):
        left = iter(range(allowed))

        def counted(url: Url, data: bytes, left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            put(url, data)

        with monkeypatch.context() as patch:
            patch.setattr(objects, "put", counted)
            with pytest.raises(KeyboardInterrupt):
                select_images(run_url, 4, Url(str(tmp_path / f"stopped{allowed}")))
        select_images(run_url, 4, Url(str(tmp_path / f"stopped{allowed}")))
        assert contents(tmp_path / f"stopped{allowed}") == contents(tmp_path / "whole")


def test_a_choice_stays_when_its_run_grows_and_the_log_says_so(
    run_url: Url, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    select_images(run_url, 2, Url(str(tmp_path / "chosen")))
    before = contents(tmp_path / "chosen")
    parts.write_part(run_url, rows_to_table([mask_row("z.jpg", "s", entropy=0.99)]), FARM)
    select_images(run_url, 2, Url(str(tmp_path / "chosen")))
    assert contents(tmp_path / "chosen") == before
    assert "the run has changed since" in caplog.text


@pytest.mark.parametrize("more", [{"images": 3}, {"seed": 1}, {"exclude": True}])
def test_other_settings_on_the_same_folder_are_refused_by_name(run_url: Url, tmp_path: Path, more: dict) -> None:
    (tmp_path / "keys.txt").write_text("a.jpg\n")
    select_images(run_url, 2, Url(str(tmp_path / "chosen")))
    settings = {"images": 2} | more | ({"exclude": [Url(str(tmp_path / "keys.txt"))]} if "exclude" in more else {})
    with pytest.raises(ConfigError, match=rf"another selection \({next(iter(more))}: "):
        select_images(run_url, output=Url(str(tmp_path / "chosen")), **settings)


def test_other_files_and_the_run_itself_are_refused(run_url: Url, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"not empty.*a\.txt"):
        select_images(run_url, 2, Url(str(tmp_path / "mine")))
    with pytest.raises(ConfigError, match="inside the run"):
        select_images(run_url, 2, run_url / "chosen")
    assert contents(tmp_path / "mine") == {"a.txt": b"mine"}


def test_keys_to_exclude_are_read_from_selections_parquet_files_and_texts(run_url: Url, tmp_path: Path) -> None:
    select_images(run_url, 2, Url(str(tmp_path / "chosen")))
    keys = frozenset(pd.read_parquet(tmp_path / "chosen/selection.parquet")["key"])
    assert read_keys(Url(str(tmp_path / "chosen"))) == keys
    assert read_keys(Url(str(tmp_path / "chosen/selection.parquet"))) == keys
    (tmp_path / "keys.txt").write_text("a b.jpg\n\nc#1.jpg\n")
    assert read_keys(Url(str(tmp_path / "keys.txt"))) == {"a b.jpg", "c#1.jpg"}
    second = select_images(run_url, 6, Url(str(tmp_path / "next")), exclude=[Url(str(tmp_path / "chosen"))])
    assert (second["chosen"], second["left_out"]) == (4, {"excluded": 2})


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"PAR1 damaged", None])
def test_files_without_keys_are_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--exclude .*keys"):
        read_keys(Url(str(tmp_path / "keys")))


def test_a_parquet_file_without_the_column_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"name": ["a"]}).to_parquet(tmp_path / "keys")
    with pytest.raises(ConfigError, match="holds no keys"):
        read_keys(Url(str(tmp_path / "keys")))


def test_fewer_candidates_than_asked_for_and_rows_that_failed_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = Url(str(tmp_path / "out/run=0123456789ab"))
    write_run(url, [mask_row("a.jpg", "s", refined=False), failed_row("b.jpg", "s")])
    objects.delete(url / "_SUCCESS")
    summary = select_images(url, 5, Url(str(tmp_path / "chosen")))
    assert (summary["asked"], summary["chosen"], summary["failed"]) == (5, 1, {"truncated": 1})
    for words in (
        "only 1 image(s) could be chosen, 5",
        "1 failed with truncated",
        "the entropy alone",
        "the run is not finished",
    ):
        assert words in caplog.text
    assert json.loads((tmp_path / "chosen/_selection.json").read_bytes())["summary"]["chosen"] == 1
