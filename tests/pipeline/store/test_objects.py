"""Laws of every store (local, memory, moto's S3, rclone's), and the URLs that are refused."""

import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.examples import examples
from tests.support.listing import paths
from tests.support.s3_servers import SECRET

EVERY_STORE = [
    "local",
    "memory",
    pytest.param("s3", marks=pytest.mark.s3),
    pytest.param("rclone", marks=pytest.mark.s3),
]
HARD_NAMES = ["ü é 日本.jpg", "x#1?y=2.jpg", "..dots", "a+b %20.jpg", "q?versionId=3", "&=;'\"", "-", "~", "A", "a"]


every_store = pytest.mark.parametrize("root", EVERY_STORE, indirect=True)


@every_store
@pytest.mark.parametrize("data", [b"", b"\0", os.urandom(100_000)], ids=len)
def test_put_then_read_is_identity(root: Url, data: bytes) -> None:
    url = root / "a" / "b.bin"
    objects.put(url, b"something older and longer than a byte")
    objects.put(url, data)
    assert objects.read_bytes(url) == data
    with objects.open_read(url) as file:
        assert file.read() == data


@every_store
def test_any_name_survives_put_list_and_read(root: Url) -> None:
    for name in HARD_NAMES:
        objects.put(root / name, name.encode())
    listed = list(objects.list_files(root))
    assert {file.path for file in listed} == set(HARD_NAMES)
    for file in listed:
        url = root / file.path
        assert objects.read_bytes(url, etag=file.etag) == file.path.encode()
        assert objects.info(url) == file


@every_store
def test_listing_is_recursive_and_in_code_point_order(root: Url) -> None:
    names = ["a/b/c", "a/b.c", "a-b/x", "a.b", "a0", "_hidden", ".dot", "a/ä", "a/z", "B/1", "deep/1/2/3/4"]
    for name in names:
        objects.put(root / name, b"x")
    assert paths(root) == sorted(names)
    assert paths(Url(root.raw + "/")) == sorted(names)
    assert paths(root / "a") == ["b.c", "b/c", "z", "ä"]


@every_store
def test_a_single_object_lists_as_itself_and_nothing_is_an_error(root: Url) -> None:
    objects.put(root / "folder/shard.tar", b"12345")
    (only,) = objects.list_files(root / "folder/shard.tar")
    assert (only.path, only.size) == ("shard.tar", 5)
    with pytest.raises(StorageError, match="no such file or folder"):
        paths(root / "absent")
    with pytest.raises(StorageError, match="no such file or folder"):
        paths(root / "fold")


@every_store
def test_exists_is_about_objects_not_folders(root: Url) -> None:
    objects.put(root / "folder/file", b"x")
    assert objects.exists(root / "folder/file")
    assert not objects.exists(root / "folder")
    assert not objects.exists(root / "folder/fil")


@every_store
def test_a_deleted_object_is_gone_and_deleting_again_is_quiet(root: Url) -> None:
    url = root / "file"
    objects.put(url, b"x")
    objects.delete(url)
    objects.delete(url)
    for read in (objects.read_bytes, objects.open_read, objects.info):
        with pytest.raises(FileNotFoundError, match="no such object"):
            read(url)


@every_store
def test_a_larger_object_than_allowed_is_refused(root: Url) -> None:
    url = root / "file"
    objects.put(url, b"x" * 100)
    assert len(objects.read_bytes(url, max_bytes=100)) == 100
    with pytest.raises(InputError, match="100 bytes, limit 99") as caught:
        objects.read_bytes(url, max_bytes=99)
    assert caught.value.code == "too_many_bytes"


@every_store
def test_a_replaced_object_is_noticed_by_whole_reads_and_by_ranges(root: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_BLOCK_BYTES", 10)
    url = root / "file"
    objects.put(url, b"a" * 100)
    planned = objects.info(url).etag
    half_read = objects.open_read(url, etag=planned)
    assert half_read.read(10) == b"a" * 10
    time.sleep(0.01)
    objects.put(url, b"b" * 100)
    for read in (
        lambda: half_read.read(50),
        lambda: objects.read_bytes(url, etag=planned),
        lambda: objects.open_read(url, etag=planned),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert caught.value.code == "source_changed"


@every_store
def test_ranges_read_like_a_file_on_disk(root: Url, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(objects, "_BLOCK_BYTES", 64)
    data = os.urandom(1000)
    (tmp_path / "twin").write_bytes(data)
    url = root / "file"
    objects.put(url, data)
    with objects.open_read(url) as ours, (tmp_path / "twin").open("rb") as twin:
        for offset, whence, length in [(0, 0, 10), (-16, 2, 16), (500, 0, 300), (-5, 1, 70), (990, 0, 50), (3, 0, -1)]:
            assert ours.seek(offset, whence) == twin.seek(offset, whence)
            assert ours.read(length) == twin.read(length)
            assert ours.tell() == twin.tell()


@every_store
def test_the_second_writer_of_put_if_absent_is_refused_where_the_probe_says_so(root: Url) -> None:
    url = root / "_run" / "owner-000001.json"
    supported = objects.supports_put_if_absent(root)
    assert objects.put_if_absent(url, b"first")
    assert objects.put_if_absent(url, b"second") is not supported
    assert objects.read_bytes(url) == (b"first" if supported else b"second")
    assert paths(root) == ["_run/owner-000001.json"], "the probe leaves nothing behind"


@pytest.mark.parametrize("root", EVERY_STORE[:3], indirect=True)
def test_fifty_racing_writers_make_one_owner(root: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    url, start = root / "owner", threading.Barrier(50)
    looks = MemoryFileSystem.exists

    def exists_for_a_moment(self: MemoryFileSystem, path: str, **kwargs: Any) -> bool:
        found: bool = looks(self, path, **kwargs)
        time.sleep(0.001)  # what was true when looked at may not be so when acted upon
        return found

    def race(me: int) -> bool:
        start.wait()
        return objects.put_if_absent(url, b"%d" % me)

    monkeypatch.setattr(MemoryFileSystem, "exists", exists_for_a_moment)
    with ThreadPoolExecutor(50) as pool:
        won = list(pool.map(race, range(50)))
    assert sum(won) == 1
    assert objects.read_bytes(url) == b"%d" % won.index(True)


@examples(25)
@given(st.sets(st.lists(st.text("aA0-_. ", max_size=2), max_size=3).map(tuple), max_size=8))
def test_local_and_memory_list_the_same_in_the_same_order(folders: set[tuple[str, ...]]) -> None:
    names = ["/".join([*(f"d{part}" for part in folder), "file"]) for folder in folders]
    memory = Url(f"memory://{uuid.uuid4().hex}")
    with tempfile.TemporaryDirectory() as local:
        for name in names:
            objects.put(Url(local) / name, b"")
            objects.put(memory / name, b"")
        assert paths(Url(local)) == sorted(names)
    assert not names or paths(memory) == sorted(names)


@pytest.mark.parametrize("url", ["http://host/a", "ftp://a/b", "s3a://b/k", "zip://a::s3://b", ""])
def test_other_schemes_are_refused_with_the_list_of_what_is_allowed(url: str) -> None:
    with pytest.raises(ConfigError, match=r"use a local path, .*s3://, gs://"):
        objects.read_bytes(Url(url))


@pytest.mark.parametrize(
    "url",
    [f"s3://KEY:{SECRET}@bucket/k", f"s3://KEY:a/{SECRET}@bucket/k", f"s3://{SECRET}@bucket/k", f"gs://a:{SECRET}@b"],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials never belong in a URL") as caught:
        objects.put(Url(url), b"")
    assert SECRET not in f"{caught.value}{caught.value!r}"


def test_importing_storage_loads_no_client() -> None:
    clients = {"s3fs", "botocore", "pyarrow", "ray"}
    code = f"import sys, pipeline.store.objects; sys.exit(bool({clients} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
