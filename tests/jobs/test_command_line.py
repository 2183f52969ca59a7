import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
import yaml

from jobs import command_line, evaluate, train
from jobs.segment_dataset import SegmentArguments
from pipeline.config import EvaluateConfig, SegmentConfig
from pipeline.errors import ConfigError, JobError
from tests import ROOT

REQUIRED = ["--source", "in", "--output", "out", "--checkpoint", "farmland"]


def parse(*flags: str) -> SegmentConfig:
    return command_line.parse(list(flags), SegmentArguments, description="test").cfg


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("source: here\noutput: there\ntile: {tile_px: 320, overlap_px: 64}\nrefine: {engine: none}\n")
    cfg = parse("--config", str(path), "--checkpoint", "farmland", "--tile.tile-px", "640")
    assert cfg.source == ("here",)
    assert (cfg.tile.tile_px, cfg.tile.overlap_px, cfg.tile.bucket_px) == (640, 64, 32)
    assert cfg.refine.engine == "none"


def test_what_is_printed_is_a_file_that_gives_the_same_config(tmp_path: Path) -> None:
    cfg = parse(*REQUIRED, "--infer.output-stride", "8", "--decode.formats", "png", "--limit", "9")
    path = tmp_path / "resolved.yaml"
    path.write_text(command_line.to_yaml(cfg))
    assert parse("--config", str(path)) == cfg
    assert yaml.safe_load(path.read_text())["limit"] == 9


SETTINGS = """checkpoint: farmland
infer: {flip: true}
refine: {engine: torch, iterations: 3}
settings: {fine: {infer: {output_stride: 8}}, short: {refine: {iterations: 2, engine: native}}}
"""


def parse_evaluation(path: Path, *flags: str) -> EvaluateConfig:
    given = ["--config", str(path), "--source", "in", "--output", "out", *flags]
    return command_line.parse(given, evaluate.EvaluateArguments, description="test").cfg


def test_what_a_setting_does_not_say_stays_as_the_file_and_the_flags_have_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(SETTINGS)
    fine, short = parse_evaluation(path, "--infer.scales", "0.5").named().values()
    assert (fine.infer.output_stride, fine.infer.flip, fine.infer.scales) == (8, True, (0.5,))
    assert (fine.refine.engine, fine.refine.iterations) == ("torch", 3)
    assert (short.refine.engine, short.refine.iterations, short.infer.flip) == ("native", 2, True)


def test_printed_settings_say_no_more_than_was_said(tmp_path: Path) -> None:
    path, resolved = tmp_path / "run.yaml", tmp_path / "resolved.yaml"
    path.write_text(SETTINGS)
    cfg = parse_evaluation(path)
    resolved.write_text(command_line.to_yaml(cfg))
    assert yaml.safe_load(resolved.read_text())["settings"]["fine"] == {"infer": {"output_stride": 8}}
    assert parse_evaluation(resolved).named() == cfg.named()


def test_several_sources_are_taken_in_order() -> None:
    assert parse("--source", "b", "a", *REQUIRED[2:]).source == ("b", "a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tile: {tile_pixels: 320}", "tile.tile_pixels: there is no such setting, did you mean tile.tile_px?"),
        ("runtim: {}", "runtim: there is no such setting, did you mean runtime?"),
        ("zebra: 1", "zebra: there is no such setting\n"),
        ("refine: {engine: non}", "refine.engine: Input should be 'native', "),
    ],
)
def test_a_wrong_key_in_the_file_is_refused_with_the_file_its_path_and_the_nearest(text, says, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        parse("--config", str(path), *REQUIRED)
    assert f"{path}:\n  {says}" in f"{refusal.value}\n"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--tile.tile-pix", "320"], "--tile.tile-pix"),
        (["--tile.tile-px", "63"], "tile_px"),
        (["--refine.engine", "best"], "--refine.engine"),
    ],
)
def test_wrong_flags_end_the_process_and_are_named(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*REQUIRED, *flags)
    assert ended.value.code != 0
    assert named in capsys.readouterr().err


def test_what_is_required_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--source", "in")
    said = capsys.readouterr().err
    assert "--output" in said
    assert "--checkpoint" in said


def test_a_wrong_flag_outside_all_groups_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the flags:\n  limit: .* greater than"):
        parse(*REQUIRED, "--limit", "0")


def test_an_error_on_purpose_is_a_message_and_status_one(caplog: pytest.LogCaptureFixture) -> None:
    def job() -> int:
        raise JobError("the disk is full", hint="free 3 GiB")

    assert command_line.exit_status(job) == 1
    assert "the disk is full\n  -> free 3 GiB" in caplog.text


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("atrous ")


def test_help_that_nobody_reads_to_its_end_is_no_error() -> None:
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.segment_dataset", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    job.stdout.close()
    assert (job.stderr.read(), job.wait()) == (b"", 0)


# ---------------------------------------------------------------- --config by name


def test_a_name_means_the_recipe_that_is_shipped_for_the_job() -> None:
    flags = ["--config", "camvid", "--data", "d", "--output", "o"]
    cfg = command_line.parse(flags, train.TrainArguments, description="").cfg
    assert cfg.network.name == yaml.safe_load((ROOT / "jobs/configs/train/camvid.yaml").read_text())["network"]["name"]
    assert set(command_line.recipe_names("train")) == {path.stem for path in (ROOT / "jobs/configs/train").iterdir()}


def test_the_example_of_several_settings_is_a_recipe_of_the_evaluation() -> None:
    cfg = command_line.parse(
        ["--config", "settings", "--source", "in", "--output", "out"], evaluate.EvaluateArguments, description=""
    ).cfg
    assert list(cfg.named()) == ["as_trained", "stride_8", "scales_and_flip"]


def test_a_file_in_the_working_directory_wins_only_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("camvid", "camvid.yaml", "mine"):
        (tmp_path / name).write_text("seed: 77\n")
    shipped = command_line.recipe_path("camvid", "train")
    assert Path(shipped).parent == ROOT / "jobs/configs/train"
    for path in ("./camvid", "camvid.yaml", "./mine"):
        flags = ["--config", path, "--data", "d", "--output", "o"]
        assert command_line.parse(flags, train.TrainArguments, description="").cfg.seed == 77
    with pytest.raises(ConfigError, match=r"--config mine: no shipped recipe .*\n.*camvid.*--config \./mine"):
        command_line.recipe_path("mine", "train")


def test_a_job_without_recipes_says_that_there_are_none() -> None:
    with pytest.raises(ConfigError, match="no recipe is shipped for `segment`"):
        parse(*REQUIRED, "--config", "run")


# ---------------------------------------------------------------- the end of a process

BUSY_END = """
import atexit, io, sys, threading, time
import pyarrow as pa
import pyarrow.parquet as pq
from jobs import command_line

class Slow(io.BytesIO):
    slow = threading.Event()
    reached = threading.Event()

    def read(self, *size):
        if self.slow.is_set():
            self.reached.set()
            time.sleep(2)
        return super().read(*size)

def last_words():
    time.sleep(0.2)
    print("joined")

out = io.BytesIO()
pq.write_table(pa.table({"a": [1, 2], "b": [3, 4]}), out)
file = Slow(out.getvalue())
opened = pq.ParquetFile(file)
file.slow.set()
threading.Thread(target=opened.read, daemon=True).start()
file.reached.wait()
atexit.register(print, "tidied")
threading.Thread(target=last_words).start()
print("done")
print("logged", file=sys.stderr)
"""
"""A thread of Arrow's pool will be back for the interpreter after the process has come to its end."""


def ended(code: str, stdout: int | IO[str] = subprocess.PIPE) -> tuple[int, str | None, str]:
    """Status, stdout and stderr of a process."""
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=buffered, stdout=stdout, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_ends_with_its_status_whatever_threads_of_libraries_are_doing(status: int) -> None:
    found = ended(f"{BUSY_END}command_line.leave({status})")
    assert found == (status, "done\njoined\ntidied\n", "logged\n")


def test_output_that_cannot_be_written_is_not_lost_in_silence() -> None:
    with open("/dev/full", "w") as full:
        status, _, log = ended("from jobs import command_line; print('done'); command_line.leave(0)", stdout=full)
    assert status == 120
    assert "No space left on device" in log


@pytest.mark.parametrize(("lines", "status"), [(1, 0), (100_000, 141)])
def test_a_reader_that_has_seen_enough_ends_a_job_without_a_message(lines: int, status: int) -> None:
    code = f"from jobs import command_line as c; c.leave(c.exit_status(lambda: print('line\\n' * {lines}) or 0))"
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:
        assert ended(code, stdout=gone) == (status, None, "")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_every_job_ends_its_process_in_the_one_orderly_way(path: Path) -> None:
    blocks = [one for one in ast.parse(path.read_text()).body if isinstance(one, ast.If)]
    started = [ast.unparse(one.body) for one in blocks if "__main__" in ast.unparse(one.test)]
    assert started in ([], ["command_line.leave(main())"])
