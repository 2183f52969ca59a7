"""URLs: joining, equality, what is kept of a name, and that no text of one holds a secret."""

import copy
import json
import logging
import pickle
import uuid
from dataclasses import asdict, dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import objects
from pipeline.store.url import Url

CANARY = "c4n4ry/S3cret+Value"
SECRETS = [
    f"s3://AKIAABCDEFGHIJKLMNOP:{CANARY}@bucket/key",
    f"https://user:{CANARY}@host/path",
    f"https://b.s3.amazonaws.com/k?X-Amz-Credential=x&X-Amz-Signature={CANARY}&x=1",
    f"https://acc.blob.core.windows.net/c/b?sv=1&sig={CANARY}",
]
NAMES = st.text("aA0/ .?#%&=+~ä日", min_size=1, max_size=12).filter(lambda name: not name.endswith("/"))


@dataclass(frozen=True)
class Holder:
    url: Url


@pytest.mark.parametrize("text", SECRETS)
def test_no_text_of_a_url_holds_its_secret(text: str, caplog: pytest.LogCaptureFixture) -> None:
    url = Url(text)
    logging.getLogger(__name__).warning("%s %r", url, url)
    texts = [str(url), repr(url), f"{url} {url!r} {url!s}", f"{Holder(url)} {[url]}", str({url: url})]
    texts += [str(url / "part"), f"{ValueError(url)!r}", caplog.text]
    for shown in texts:
        assert CANARY not in shown
        assert "***" in shown
    assert url.raw == text


def test_a_url_goes_into_no_json_by_accident() -> None:
    for plain in ({"url": Url(SECRETS[0])}, asdict(Holder(Url(SECRETS[0])))):
        with pytest.raises(TypeError):
            json.dumps(plain)


@pytest.mark.parametrize(
    ("text", "raw", "scheme", "name"),
    [
        ("/a/b", "/a/b", "file", "b"),
        ("/a/b/", "/a/b", "file", "b"),
        ("/a/b//", "/a/b", "file", "b"),
        ("file:///a/b/", "/a/b", "file", "b"),
        ("file://a", "a", "file", "a"),
        ("/", "/", "file", ""),
        ("file:///", "/", "file", ""),
        (".", ".", "file", "."),
        ("", "", "file", ""),
        ("s3://bucket/", "s3://bucket", "s3", "bucket"),
        ("s3://bucket/a//b/", "s3://bucket/a//b", "s3", "b"),
        ("s3://bucket//a", "s3://bucket//a", "s3", "a"),
        ("memory://", "memory://", "memory", ""),
        ("https://host/a?b#c", "https://host/a?b#c", "https", "a?b#c"),
    ],
)
def test_only_file_and_slashes_at_the_end_are_normalised(text: str, raw: str, scheme: str, name: str) -> None:
    url = Url(text)
    assert (url.raw, url.scheme, url.name) == (raw, scheme, name)
    assert Url(url.raw) == url


def test_equal_places_are_equal_and_hash_alike() -> None:
    assert len({Url("/a"), Url("/a/"), Url("file:///a"), Url("/") / "a"}) == 1
    assert Url("s3://b/a") != Url("s3://b/A")
    assert Url("/a") != "/a"


@pytest.mark.parametrize("root", ["/data", "s3://bucket", "s3://bucket/folder/", "memory://x", "relative"])
@given(name=NAMES)
def test_a_joined_name_is_kept_to_the_letter(root: str, name: str) -> None:
    assert (Url(root) / name).raw == f"{root.rstrip('/')}/{name}"
    assert (Url(root) / "a" / name) == Url(root) / f"a/{name}"


def test_roots_get_no_second_slash() -> None:
    assert (Url("/") / "a").raw == "/a"
    assert (Url("memory://") / "a").raw == "memory://a"
    assert (Url("") / "a").raw == "a"


@pytest.mark.parametrize("text", ["/a", *SECRETS])
def test_a_url_survives_pickling_and_copying(text: str) -> None:
    url = Url(text)
    assert pickle.loads(pickle.dumps(url)) == copy.deepcopy(url) == url
    assert pickle.loads(pickle.dumps(url)).raw == text


def test_a_url_does_not_change() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        Url("/a").raw = "/b"


def test_a_listed_object_is_found_under_its_joined_name() -> None:
    root = Url(f"memory://{uuid.uuid4().hex}")
    for name in ("a b", "a?b", "a#b", "a%20b"):
        objects.put(root / name, name.encode())
    assert [objects.read_bytes(root / file.path).decode() for file in objects.list_files(root)] == sorted(
        ["a b", "a?b", "a#b", "a%20b"]
    )


def test_a_place_has_one_spelling_however_its_url_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    spelled = ("s", "./s", "s/", "s//", f"{tmp_path}/s", f"file://{tmp_path}/s/", "t/../s")
    assert {Url(text).place for text in spelled} == {f"{tmp_path}/s"}
    assert Url("s3://bucket/a//b/").place == "s3://bucket/a//b"
