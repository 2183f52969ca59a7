"""`atrous export`: one run, its JSON line and its exit status."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs import export
from pipeline import classes
from pipeline.image import encode
from pipeline.records import Row, rows_to_table
from pipeline.run import manifest, parts
from pipeline.store import objects
from pipeline.store.url import Url


def write_run(url: Url) -> None:
    """A finished run of one mask."""
    farm = classes.load_class_map("farmland")
    fields = {"key": "a.jpg", "shard": "s", "source_etag": "e", "model_fp": "m", "config_fp": "c"}
    mask = encode.mask_png(np.zeros((4, 4), "uint8"), farm)
    parts.write_part(url, rows_to_table([Row(status="ok", mask=mask, **fields)]), farm)
    manifest.mark_finished(url)


def test_the_one_run_of_an_output_is_exported_and_the_json_line_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(Url(str(tmp_path / "out/run=0123456789ab")))
    assert export.main([str(tmp_path / "out"), "--to", "png", "--output", str(tmp_path / "png")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["written"], summary["exit_status"]) == (1, 0)
    assert (tmp_path / "png/a.png").exists()


def test_of_several_runs_one_must_be_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("run=0123456789ab", "run=ba9876543210"):
        write_run(Url(str(tmp_path / "out" / name)))
    assert export.main([str(tmp_path / "out"), "--to", "png", "--output", str(tmp_path / "png")]) == 1
    assert "run=0123456789ab, run=ba9876543210" in caplog.text


def test_an_output_inside_the_source_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = Url(str(tmp_path / "out/run=0123456789ab"))
    write_run(url)
    objects.put(url / "_run/config.yaml", json.dumps({"source": [str(tmp_path / "in")], "runtime": {}}).encode())
    assert export.main([url.raw, "--to", "png", "--output", str(tmp_path / "in/masks")]) == 1
    assert "lies inside the source" in caplog.text
