import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.view import thumbnails
from pipeline.view.thumbnails import Thumbnails

PICTURE = bytes(68)
"""100 bytes with the digest before them."""


def test_a_thumbnail_is_made_once(tmp_path):
    cache, made = Thumbnails(tmp_path, max_bytes=1000), []
    for _ in range(3):
        assert cache.get("a", lambda: made.append(1) or PICTURE) == PICTURE
    assert made == [1]


def test_what_fails_is_not_kept(tmp_path):
    cache = Thumbnails(tmp_path, max_bytes=1000)
    with pytest.raises(ValueError, match="bad"):
        cache.get("a", lambda: (_ for _ in ()).throw(ValueError("bad")))
    assert cache.get("a", lambda: PICTURE) == PICTURE
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_stays_below_its_limit_and_keeps_what_was_used_last(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "SWEEP_EVERY", 1)
    cache = Thumbnails(tmp_path, max_bytes=1000)
    for number in range(30):
        cache.get(str(number), lambda: PICTURE)
        for age, path in enumerate(sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (age, age))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    remade = []
    cache.get("29", lambda: remade.append(1) or PICTURE)
    assert not remade


def test_names_with_slashes_and_dots_stay_in_the_folder(tmp_path):
    cache = Thumbnails(tmp_path / "cache", max_bytes=1000)
    cache.get("../../etc/passwd\n/", lambda: b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_threads_that_want_the_same_picture_all_get_it(tmp_path):
    cache = Thumbnails(tmp_path, max_bytes=10**6)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: cache.get("a", lambda: PICTURE), range(100))) == {PICTURE}
    assert len(list(tmp_path.iterdir())) == 1


def make_link(path, secret):
    path.symlink_to(secret)


def make_pipe(path, _):
    os.mkfifo(path)


def make_folder(path, _):
    path.mkdir()


def write_html(path, _):
    path.write_bytes(b"<script>alert(1)</script>")


def cut_short(path, _):
    path.write_bytes(PICTURE[:50])


@pytest.mark.parametrize("replace", [make_link, make_pipe, make_folder, write_html, cut_short])
def test_what_lies_in_the_cache_in_place_of_a_thumbnail_is_never_given_out(tmp_path, replace):
    (tmp_path / "secret").write_bytes(b"secret" + PICTURE)
    cache = Thumbnails(tmp_path / "cache", max_bytes=1000)
    cache.get("a", lambda: PICTURE)
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    replace(path, tmp_path / "secret")
    assert cache.get("a", lambda: PICTURE) == PICTURE
    assert b"secret" in (tmp_path / "secret").read_bytes()
    assert not [name for name in os.listdir(tmp_path / "cache") if name.startswith(".tmp-")]


def test_a_cache_folder_that_is_deleted_while_it_is_used_is_made_anew(tmp_path):
    cache = Thumbnails(tmp_path / "cache", max_bytes=1000)
    cache.get("a", lambda: PICTURE)
    shutil.rmtree(tmp_path / "cache")
    assert cache.get("a", lambda: PICTURE) == PICTURE
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "cache").write_bytes(b"a file")
    cache = Thumbnails(tmp_path / "cache", max_bytes=1000)
    for name in "abc":
        assert cache.get(name, lambda: PICTURE) == PICTURE
    assert caplog.text.count("not kept") == 1


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(thumbnails.os, "replace", full)
    assert Thumbnails(tmp_path, max_bytes=1000).get("a", lambda: PICTURE) == PICTURE
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(thumbnails, "open", lambda *_, **__: full(), raising=False)
    assert Thumbnails(tmp_path, max_bytes=1000).get("b", lambda: PICTURE) == PICTURE
    assert not list(tmp_path.iterdir())
