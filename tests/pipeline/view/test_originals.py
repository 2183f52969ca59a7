import shutil
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DecodeConfig
from pipeline.errors import AccessDenied, ConfigError, InputError
from pipeline.image.decode import decode_image
from pipeline.run import parts
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.view.originals import Originals
from tests.support import viewed_runs
from tests.support.viewed_runs import FARM, HOSTILE


def rows(url):
    columns = ["key", "shard", "source_etag", "status"]
    return [row for name in parts.list_parts(url) for row in parts.read_columns(url, name, columns).to_pylist()]


def read(originals, row):
    item = originals.item(row["key"], row["shard"], row["source_etag"])
    return item, originals.decoded(item)


def test_every_image_of_a_folder_is_read_again_as_it_is_on_disk(viewed):
    originals = Originals(viewed.url, FARM)
    for row in rows(viewed.url):
        if row["status"] == "ok":
            expected = decode_image((viewed.folder / "images" / row["key"]).read_bytes(), DecodeConfig()).pixels_hwc
            np.testing.assert_array_equal(read(originals, row)[1].pixels_hwc, expected)


def test_a_source_that_is_not_there_is_named_with_the_way_to_say_where_it_is(viewed, tmp_path, monkeypatch, caplog):
    Originals(viewed.url, FARM)
    assert "--source" not in caplog.text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/_run").mkdir(parents=True)
    (tmp_path / "run/_run/config.yaml").write_text("source: [elsewhere]")
    Originals(Url(str(tmp_path / "run")), FARM)
    assert f"no elsewhere ({tmp_path}/elsewhere)" in caplog.text
    assert "--source says where" in caplog.text


@pytest.mark.parametrize("flag", ["--source", "--labels"])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("elsewhere", "no such file or folder"),
        ("ftp://host/x", "ftp:// is not supported"),
        ("", "the URL is empty"),
        ("EMPTY", "it is empty"),
    ],
)
def test_a_place_that_the_user_named_and_that_holds_nothing_is_an_error(viewed, tmp_path, flag, place, reason):
    place = str(tmp_path) if place == "EMPTY" else place
    with pytest.raises(ConfigError, match=reason) as raised:
        open_at(viewed.url, flag, place)
    assert str(raised.value).startswith(flag)


@pytest.mark.parametrize("flag", ["--source", "--labels"])
def test_a_place_that_cannot_be_listed_may_still_hold_what_is_asked_for_by_name(viewed, flag, monkeypatch, caplog):
    def refused(url):
        raise AccessDenied(f"{url}: ListBucket")

    open_at(viewed.url, flag, "https://example.org/files")
    monkeypatch.setattr(objects, "list_files", refused)
    open_at(viewed.url, flag, "s3://bucket/files")
    assert f"{flag} s3://bucket/files cannot be listed" in caplog.text


def open_at(url, flag, place):
    return Originals(url, FARM, **({"source": [place]} if flag == "--source" else {"labels": place}))


def test_labels_are_those_of_the_run(viewed):
    originals = Originals(viewed.url, FARM)
    assert originals.has_labels
    assert not Originals(viewed.other, FARM).has_labels
    row = next(row for row in rows(viewed.url) if row["key"] == "farm_000003.jpg")
    item, image = read(originals, row)
    label = np.asarray(PIL.Image.open(viewed.folder / "labels/farm_000003.png"))
    np.testing.assert_array_equal(originals.truth(item, image), label)


def test_labels_can_be_named_for_a_run_without(viewed):
    originals = Originals(viewed.other, FARM, labels=str(viewed.folder / "labels"))
    row = next(row for row in rows(viewed.other) if row["key"] == "farm_000003.jpg")
    assert originals.truth(*read(originals, row)).shape == (64, 64)


def test_an_image_that_changed_since_is_refused(viewed, tmp_path):
    moved = tmp_path / "images"
    shutil.copytree(viewed.folder / "images", moved)
    url = viewed_runs.segment(tmp_path, moved)
    row = rows(url)[1]
    (moved / row["key"]).write_bytes((moved / "farm_000002.jpg").read_bytes() + b"x")
    with pytest.raises(InputError, match="source_changed"):
        read(Originals(url, FARM), row)
    (moved / row["key"]).unlink()
    with pytest.raises(InputError, match="not_found"):
        read(Originals(url, FARM), row)


def test_a_source_that_moved_is_read_at_its_new_place(viewed, tmp_path):
    shutil.copytree(viewed.folder / "images", tmp_path / "elsewhere")
    originals = Originals(viewed.url, FARM, source=[str(tmp_path / "elsewhere")])
    for row in rows(viewed.url)[:2]:
        assert read(originals, row)[1].height == 64
    with pytest.raises(ConfigError, match="--source has 2 URLs, the run read 1"):
        Originals(viewed.url, FARM, source=["a", "b"])


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_of_archives_are_read_again_by_their_keys(viewed, tmp_path, kind):
    paths = sorted((viewed.folder / "images").glob("farm_*.jpg"))
    source = tmp_path / f"images.{kind}"
    if kind == "tar":
        with tarfile.open(source, "w") as archive:
            for path in paths:
                archive.add(path, path.name)
    else:
        table = pa.table({"image": [path.read_bytes() for path in paths]})
        pq.write_table(table, source, row_group_size=5)
    url = viewed_runs.segment(tmp_path, source)
    originals, found = Originals(url, FARM), rows(url)
    assert len(found) == len(paths)
    by_bytes = {read(originals, row)[0].data for row in found}
    assert by_bytes == {path.read_bytes() for path in paths}


def test_hostile_names_are_read_by_the_keys_that_the_run_wrote(viewed):
    keys = {row["key"] for row in rows(viewed.url)}
    assert set(HOSTILE) <= keys


@pytest.mark.parametrize("key", ["../labels/farm_000000.png", "/etc/passwd", "farm_000099.jpg"])
def test_a_key_outside_the_source_reads_nothing(viewed, key):
    """The server never takes keys from a request; should a part hold such a key, its version does not fit."""
    originals, row = Originals(viewed.url, FARM), rows(viewed.url)[0]
    with pytest.raises(InputError):
        originals.item(key, row["shard"], row["source_etag"])


def test_a_run_without_its_files_still_opens(viewed, tmp_path):
    run = tmp_path / "run=000000000000"
    shutil.copytree(viewed.url.raw, run)
    shutil.rmtree(run / "_run")
    originals, row = Originals(Url(str(run)), FARM), rows(viewed.url)[0]
    with pytest.raises(InputError, match="does not hold the shard"):
        read(originals, row)
