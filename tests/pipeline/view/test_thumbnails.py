import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.view import thumbnails
from pipeline.view.thumbnails import Thumbnails


def test_a_thumbnail_is_made_once(tmp_path):
    cache, made = Thumbnails(tmp_path, max_bytes=1000), []
    for _ in range(3):
        assert cache.get("a", lambda: made.append(1) or b"picture") == b"picture"
    assert made == [1]


def test_what_fails_is_not_kept(tmp_path):
    cache = Thumbnails(tmp_path, max_bytes=1000)
    with pytest.raises(ValueError, match="bad"):
        cache.get("a", lambda: (_ for _ in ()).throw(ValueError("bad")))
    assert cache.get("a", lambda: b"good") == b"good"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_stays_below_its_limit_and_keeps_what_was_used_last(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "SWEEP_EVERY", 1)
    cache = Thumbnails(tmp_path, max_bytes=1000)
    for number in range(30):
        cache.get(str(number), lambda: bytes(100))
        for age, path in enumerate(sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (age, age))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    remade = []
    cache.get("29", lambda: remade.append(1) or bytes(100))
    assert not remade


def test_names_with_slashes_and_dots_stay_in_the_folder(tmp_path):
    cache = Thumbnails(tmp_path / "cache", max_bytes=1000)
    cache.get("../../etc/passwd\n/", lambda: b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_threads_that_want_the_same_picture_all_get_it(tmp_path):
    cache = Thumbnails(tmp_path, max_bytes=10**6)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: cache.get("a", lambda: b"picture"), range(100))) == {b"picture"}
    assert len(list(tmp_path.iterdir())) == 1
