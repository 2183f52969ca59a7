"""What the manifest of a prepared set says, and what its check finds."""

from pathlib import Path

import pytest
import yaml

from pipeline import classes
from pipeline.datasets import receipts
from pipeline.datasets.receipts import Origin
from pipeline.errors import JobError
from pipeline.store.url import Url
from tests.pipeline.datasets.test_prepare import files_of, preparation, prepared
from tests.support import tiny_layout
from tests.support.tiny_layout import TINY

ORIGIN = Origin(layout="tiny", source="", license="CC0", atrous="0", format="parquet", labels="label", cut_px=None)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished set of six good images and one bad one in two shards."""
    root = str(tmp_path / "in")
    tiny_layout.write(Url(root), train=6)
    tiny_layout.add(Url(root), "bad.jpg", b"<html>", b"")
    (tmp_path / "in/train.txt").write_text((tmp_path / "in/train.txt").read_text() + "bad.jpg\n")
    close(tmp_path / "out", [one.shard for one in prepared(preparation(tmp_path))])
    return tmp_path / "out"


def close(output: Path, shards: list[str]) -> receipts.SetManifest:
    return receipts.close_set(Url(str(output)), {"train": shards}, TINY.classes, ORIGIN)


def problems(output: Path) -> list[str]:
    return list(receipts.set_problems(Url(str(output)), receipts.read_set_manifest(Url(str(output)))))


def test_the_manifest_comes_back_and_nothing_is_wrong_with_it(finished: Path) -> None:
    manifest = receipts.read_set_manifest(Url(str(finished)))
    assert (manifest.splits["train"].ok, manifest.splits["train"].failed) == (6, 1)
    assert manifest.failed_fraction == pytest.approx(1 / 7)
    assert manifest.origin == ORIGIN
    assert problems(finished) == []


def test_the_class_map_can_be_loaded_by_its_path(finished: Path) -> None:
    assert classes.load_class_map(str(finished / "classes.yaml")) == TINY.classes
    assert yaml.safe_load((finished / "classes.yaml").read_text())["name"] == "farmland"


def test_a_set_with_a_shard_that_is_not_done_is_not_closed(finished: Path) -> None:
    with pytest.raises(JobError, match="1 shard"):
        close(finished, [*receipts.finished_shards(Url(str(finished))), "0" * 16])


def test_one_changed_byte_in_any_part_is_found(finished: Path) -> None:
    for part in [*finished.rglob("part-*")]:
        whole = part.read_bytes()
        part.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        (problem,) = problems(finished)
        assert part.name in problem
        part.write_bytes(whole)


def test_a_lost_part_and_one_too_many_are_found(finished: Path) -> None:
    part = next((finished / "train").glob("part-*"))
    part.rename(part.with_name("part-other.parquet"))
    assert sorted(one.partition(": ")[2] for one in problems(finished)) == ["missing", "not in the manifest"]


def test_what_writers_that_died_left_behind_goes_when_the_set_is_closed(finished: Path) -> None:
    before = files_of(finished)
    (finished / "train/.tmp-0123").write_bytes(b"half")
    (finished / "train/part-of-before.parquet").write_bytes(b"old")
    (finished / "train/notes.txt").write_bytes(b"not ours")
    close(
        finished,
        [
            one.shard
            for one in receipts.read_receipts(Url(str(finished)), sorted(receipts.finished_shards(Url(str(finished)))))
        ],
    )
    after = files_of(finished)
    assert after.pop("train/notes.txt") == b"not ours"
    assert after.keys() == before.keys()


def test_forgetting_failures_reopens_the_set_and_owes_only_their_shards(finished: Path) -> None:
    before = receipts.finished_shards(Url(str(finished)))
    assert receipts.forget_failed_shards(Url(str(finished))) == 1
    assert receipts.read_set_manifest(Url(str(finished))) is None
    assert len(before - receipts.finished_shards(Url(str(finished)))) == 1
    assert receipts.forget_failed_shards(Url(str(finished))) == 0
