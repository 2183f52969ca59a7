"""Local files: writes that are whole or absent, links, names, relative paths."""

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.listing import paths


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    url = Url(str(tmp_path / "file"))
    versions = {bytes([value]) * 300_000 for value in range(4)}
    objects.put(url, b"\0" * 300_000)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(lambda: [objects.put(url, data) for data in sorted(versions) * 5])
        while not writing.done():
            assert objects.read_bytes(url) in versions
    writing.result()


@pytest.mark.faults
def test_a_killed_writer_leaves_the_old_object_whole(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.store import objects, url\n"
        "for n in range(10**6): objects.put(url.Url(sys.argv[1]), b'%d' % (n % 10) * 3_000_000)"
    )
    for delay_s in (0.0, 0.003, 0.01):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "part")])
        while not (tmp_path / "part").exists():
            time.sleep(0.005)
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        data = (tmp_path / "part").read_bytes()
        assert len(data) == 3_000_000
        assert len(set(data)) == 1
        assert {name.split("-")[0] for name in os.listdir(tmp_path)} <= {"part", ".tmp"}
        (tmp_path / "part").unlink()


def test_a_full_disk_leaves_no_file_and_says_how_much_is_needed(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # write() fails with EFBIG, as on a full quota
    try:
        with pytest.raises(StorageError, match="200000 bytes needed"):
            objects.put(Url(str(tmp_path / "new" / "part")), b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path / "new") == []


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "image.jpg").write_bytes(b"x")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "source" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    source = Url(str(tmp_path / "source"))
    assert paths(source) == ["gone.jpg", "linked/image.jpg"]
    with pytest.raises(FileNotFoundError):
        objects.read_bytes(source / "gone.jpg")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match="a folder above it"):
        paths(source)


def test_names_that_are_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    with pytest.raises(StorageError, match="UTF-8"):
        paths(Url(str(tmp_path)))


def test_relative_paths_and_file_urls_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects.put(Url("out/part"), b"x")
    assert objects.read_bytes(Url(f"file://{tmp_path}/out/part")) == b"x"
    assert paths(Url("out")) == paths(Url(f"{tmp_path}/out/")) == ["part"]
    assert paths(Url(".")) == ["out/part"]


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for write in (objects.put, objects.put_if_absent):
        with pytest.raises(StorageError, match="cannot write"):
            write(Url(str(tmp_path / "file" / "part")), b"x")
