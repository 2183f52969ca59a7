"""Laws of the stores (local, memory, moto's S3, rclone's), faults between us and S3, and what never reaches a log."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import AccessDenied, ConfigError, InputError, StorageError
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.store.objects import FileInfo, RetryPolicy
from tests.support.s3_servers import SECRET, Fault, FaultProxy, S3Server

EVERY_STORE = [
    "local",
    "memory",
    pytest.param("s3", marks=pytest.mark.s3),
    pytest.param("rclone", marks=pytest.mark.s3),
]
HARD_NAMES = ["ü é 日本.jpg", "x#1?y=2.jpg", "..dots", "a+b %20.jpg", "q?versionId=3", "&=;'\"", "-", "~", "A", "a"]


@pytest.fixture
def root(request: pytest.FixtureRequest) -> str:
    """An empty folder of the store named by the parameter."""
    match request.param:
        case "local":
            return str(request.getfixturevalue("tmp_path"))
        case "memory":
            return f"memory://{uuid.uuid4().hex}"
        case "s3":
            return f"{request.getfixturevalue('s3_url')}/folder"
        case _:
            return rclone_folder(request.getfixturevalue("rclone_server"), request.getfixturevalue("monkeypatch"))


def rclone_folder(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=bucket)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/folder"


every_store = pytest.mark.parametrize("root", EVERY_STORE, indirect=True)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> RetryPolicy:
    policy = RetryPolicy(attempts=3, first_s=0.01, request_s=0.4, slowest_bytes_per_s=1e9)
    monkeypatch.setattr(objects, "RETRY", policy)
    return policy


def paths(url: str) -> list[str]:
    return [file.path for file in objects.list_files(url)]


# ---------------------------------------------------------------- laws of every store


@every_store
@pytest.mark.parametrize("data", [b"", b"\0", os.urandom(100_000)], ids=len)
def test_put_then_read_is_identity(root: str, data: bytes) -> None:
    url = objects.join(root, "a", "b.bin")
    objects.put(url, b"something older and longer than a byte")
    objects.put(url, data)
    assert objects.read_bytes(url) == data
    with objects.open_read(url) as file:
        assert file.read() == data


@every_store
def test_any_name_survives_put_list_and_read(root: str) -> None:
    for name in HARD_NAMES:
        objects.put(objects.join(root, name), name.encode())
    listed = list(objects.list_files(root))
    assert {file.path for file in listed} == set(HARD_NAMES)
    for file in listed:
        url = objects.join(root, file.path)
        assert objects.read_bytes(url, etag=file.etag) == file.path.encode()
        assert objects.info(url) == file


@every_store
def test_listing_is_recursive_and_in_code_point_order(root: str) -> None:
    names = ["a/b/c", "a/b.c", "a-b/x", "a.b", "a0", "_hidden", ".dot", "a/ä", "a/z", "B/1", "deep/1/2/3/4"]
    for name in names:
        objects.put(objects.join(root, name), b"x")
    assert paths(root) == sorted(names)
    assert paths(root + "/") == sorted(names)
    assert paths(objects.join(root, "a")) == ["b.c", "b/c", "z", "ä"]


@every_store
def test_a_single_object_lists_as_itself_and_nothing_is_an_error(root: str) -> None:
    objects.put(objects.join(root, "folder/shard.tar"), b"12345")
    (only,) = objects.list_files(objects.join(root, "folder/shard.tar"))
    assert (only.path, only.size) == ("shard.tar", 5)
    with pytest.raises(StorageError, match="no such file or folder"):
        paths(objects.join(root, "absent"))
    with pytest.raises(StorageError, match="no such file or folder"):
        paths(objects.join(root, "fold"))


@every_store
def test_exists_is_about_objects_not_folders(root: str) -> None:
    objects.put(objects.join(root, "folder/file"), b"x")
    assert objects.exists(objects.join(root, "folder/file"))
    assert not objects.exists(objects.join(root, "folder"))
    assert not objects.exists(objects.join(root, "folder/fil"))


@every_store
def test_a_deleted_object_is_gone_and_deleting_again_is_quiet(root: str) -> None:
    url = objects.join(root, "file")
    objects.put(url, b"x")
    objects.delete(url)
    objects.delete(url)
    for read in (objects.read_bytes, objects.open_read, objects.info):
        with pytest.raises(FileNotFoundError, match="no such object"):
            read(url)


@every_store
def test_a_larger_object_than_allowed_is_refused(root: str) -> None:
    url = objects.join(root, "file")
    objects.put(url, b"x" * 100)
    assert len(objects.read_bytes(url, max_bytes=100)) == 100
    with pytest.raises(InputError, match="100 bytes, limit 99") as caught:
        objects.read_bytes(url, max_bytes=99)
    assert caught.value.code == "too_many_bytes"


@every_store
def test_a_replaced_object_is_noticed_by_whole_reads_and_by_ranges(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_BLOCK_BYTES", 10)
    url = objects.join(root, "file")
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
def test_ranges_read_like_a_file_on_disk(root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(objects, "_BLOCK_BYTES", 64)
    data = os.urandom(1000)
    (tmp_path / "twin").write_bytes(data)
    url = objects.join(root, "file")
    objects.put(url, data)
    with objects.open_read(url) as ours, (tmp_path / "twin").open("rb") as twin:
        for offset, whence, length in [(0, 0, 10), (-16, 2, 16), (500, 0, 300), (-5, 1, 70), (990, 0, 50), (3, 0, -1)]:
            assert ours.seek(offset, whence) == twin.seek(offset, whence)
            assert ours.read(length) == twin.read(length)
            assert ours.tell() == twin.tell()


@every_store
def test_the_second_writer_of_put_if_absent_is_refused_where_the_probe_says_so(root: str) -> None:
    url = objects.join(root, "_run", "owner-000001.json")
    supported = objects.supports_put_if_absent(root)
    assert objects.put_if_absent(url, b"first")
    assert objects.put_if_absent(url, b"second") is not supported
    assert objects.read_bytes(url) == (b"first" if supported else b"second")
    assert paths(root) == ["_run/owner-000001.json"], "the probe leaves nothing behind"


@pytest.mark.parametrize("root", EVERY_STORE[:3], indirect=True)
def test_fifty_racing_writers_make_one_owner(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, start = objects.join(root, "owner"), threading.Barrier(50)
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


@settings(max_examples=25)
@given(st.sets(st.lists(st.text("aA0-_. ", max_size=2), max_size=3).map(tuple), max_size=8))
def test_local_and_memory_list_the_same_in_the_same_order(folders: set[tuple[str, ...]]) -> None:
    names = ["/".join([*(f"d{part}" for part in folder), "file"]) for folder in folders]
    memory = f"memory://{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as local:
        for name in names:
            objects.put(objects.join(local, name), b"")
            objects.put(objects.join(memory, name), b"")
        assert paths(local) == sorted(names)
    assert not names or paths(memory) == sorted(names)


# ---------------------------------------------------------------- local files


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
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
        "import sys; from pipeline.store import objects\n"
        "for n in range(10**6): objects.put(sys.argv[1], b'%d' % (n % 10) * 3_000_000)"
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
            objects.put(str(tmp_path / "new" / "part"), b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path / "new") == []


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "image.jpg").write_bytes(b"x")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "source" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    source = str(tmp_path / "source")
    assert paths(source) == ["gone.jpg", "linked/image.jpg"]
    with pytest.raises(FileNotFoundError):
        objects.read_bytes(objects.join(source, "gone.jpg"))
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match="links back"):
        paths(source)


def test_names_that_are_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    with pytest.raises(StorageError, match="UTF-8"):
        paths(str(tmp_path))


def test_relative_paths_and_file_urls_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects.put("out/part", b"x")
    assert objects.read_bytes(f"file://{tmp_path}/out/part") == b"x"
    assert paths("out") == paths(f"{tmp_path}/out/") == ["part"]
    assert paths(".") == ["out/part"]


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for write in (objects.put, objects.put_if_absent):
        with pytest.raises(StorageError, match="cannot write"):
            write(str(tmp_path / "file" / "part"), b"x")


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize("url", ["http://host/a", "ftp://a/b", "s3a://b/k", "zip://a::s3://b", ""])
def test_other_schemes_are_refused_with_the_list_of_what_is_allowed(url: str) -> None:
    with pytest.raises(ConfigError, match=r"use a local path, .*s3://, gs://"):
        objects.read_bytes(url)


@pytest.mark.parametrize(
    "url",
    [f"s3://KEY:{SECRET}@bucket/k", f"s3://KEY:a/{SECRET}@bucket/k", f"s3://{SECRET}@bucket/k", f"gs://a:{SECRET}@b"],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials never belong in a URL") as caught:
        objects.put(url, b"")
    assert SECRET not in f"{caught.value}{caught.value!r}"


def test_importing_storage_loads_no_client() -> None:
    clients = {"s3fs", "botocore", "pyarrow", "ray"}
    code = f"import sys, pipeline.store.objects; sys.exit(bool({clients} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- faults between us and S3


@pytest.fixture
def object_url(s3_url: str, s3_proxy: FaultProxy) -> str:
    """An object of 1000 bytes behind the proxy, whose counters start at zero."""
    url = f"{s3_url}/image.jpg"
    objects.put(url, b"0123456789" * 100)
    s3_proxy.clear()
    return url


@pytest.mark.s3
@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "lost"])
def test_passing_faults_are_repeated_until_the_answer_is_whole(
    object_url: str, s3_proxy: FaultProxy, quick_retries: RetryPolicy, fault: Fault
) -> None:
    s3_proxy.fail_next(2, fault)
    assert objects.read_bytes(object_url) == b"0123456789" * 100
    s3_proxy.fail_next(2, fault)
    objects.put(object_url, b"new")
    s3_proxy.fail_next(2, fault)
    assert objects.info(object_url).size == 3
    assert s3_proxy.count("GET") == s3_proxy.count("PUT") == s3_proxy.count("HEAD") == 3


@pytest.mark.s3
def test_a_body_cut_short_is_never_taken_for_the_object(object_url: str, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_next(2, "cut")
    assert objects.read_bytes(object_url) == b"0123456789" * 100
    assert s3_proxy.count() == 3


@pytest.mark.s3
@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_lasting_fault_ends_after_the_last_attempt(
    object_url: str, s3_proxy: FaultProxy, quick_retries: RetryPolicy, fault: Fault
) -> None:
    s3_proxy.fail_next(99, fault)
    with pytest.raises(StorageError, match=r"image\.jpg: .*3 attempts") as caught:
        objects.read_bytes(object_url)
    assert s3_proxy.count() == quick_retries.attempts, "s3fs, botocore and aiohttp must not repeat on their own"
    assert objects.as_input_error(caught.value).code == "storage_error"


@pytest.mark.s3
def test_a_dripping_body_is_given_up_and_read_again(
    object_url: str, s3_proxy: FaultProxy, quick_retries: RetryPolicy
) -> None:
    s3_proxy.fail_next(1, "slow")
    assert len(objects.read_bytes(object_url)) == 1000
    s3_proxy.fail_next(3, "slow")
    with pytest.raises(objects.StorageTimeout, match="timed out, 3 attempts") as caught:
        objects.read_bytes(object_url)
    assert objects.as_input_error(caught.value).code == "storage_timeout"


@pytest.mark.s3
@pytest.mark.parametrize(
    ("act", "action"),
    [
        (objects.read_bytes, "s3:GetObject"),
        (objects.info, "s3:GetObject"),
        (lambda url: objects.put(url, b""), "s3:PutObject"),
        (lambda url: objects.put_if_absent(url, b""), "s3:PutObject"),
        (paths, "s3:ListBucket"),
        (objects.delete, "s3:DeleteObject"),
    ],
)
def test_403_stops_at_once_and_names_the_missing_right(
    object_url: str, s3_proxy: FaultProxy, act: Callable[[str], object], action: str
) -> None:
    s3_proxy.fail_next(9, 403)
    with pytest.raises(AccessDenied, match=r"image\.jpg: 403") as caught:
        act(object_url)
    assert action in caught.value.hint
    assert s3_proxy.count() == 1


@pytest.mark.s3
def test_404_is_not_repeated(object_url: str, s3_proxy: FaultProxy) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        objects.read_bytes(object_url + ".not")
    assert s3_proxy.count() == 1
    assert objects.as_input_error(caught.value).code == "not_found"


@pytest.mark.s3
def test_expired_credentials_are_fetched_anew_once(object_url: str, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_next(1, 400, code="ExpiredToken")
    assert len(objects.read_bytes(object_url)) == 1000
    assert s3_proxy.count() == 2
    s3_proxy.fail_next(9, 400, code="ExpiredToken")
    with pytest.raises(AccessDenied, match="ExpiredToken"):
        objects.read_bytes(object_url)
    assert s3_proxy.count() == 4


@pytest.mark.s3
def test_one_archived_object_does_not_stop_the_job(object_url: str, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_next(9, 403, code="InvalidObjectState")
    with pytest.raises(StorageError, match="InvalidObjectState") as caught:
        objects.read_bytes(object_url)
    assert objects.as_input_error(caught.value).code == "storage_error"
    assert s3_proxy.count() == 1


@pytest.mark.s3
def test_a_denied_read_is_never_a_work_items_failure(object_url: str, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_next(9, 403)
    with pytest.raises(AccessDenied) as caught:
        objects.read_bytes(object_url)
    with pytest.raises(AccessDenied):
        objects.as_input_error(caught.value)


@pytest.mark.s3
def test_a_machine_without_credentials_is_told_so(object_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDenied, match="credentials"):
        objects.read_bytes(object_url)


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["lost", 409, 503])
def test_the_owner_knows_itself_when_its_answer_was_lost(s3_url: str, s3_proxy: FaultProxy, fault: Fault) -> None:
    s3_proxy.fail_next(1, fault, method="PUT")
    assert objects.put_if_absent(f"{s3_url}/owner", b"same bytes")
    assert not objects.put_if_absent(f"{s3_url}/owner", b"same bytes")


@pytest.mark.s3
def test_small_reads_cost_one_request_and_ranges_one_each(
    object_url: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.read_bytes(object_url, max_bytes=5000)
    assert [(one.method, one.path) for one in s3_proxy.requests] == [("GET", object_url.removeprefix("s3://"))]
    monkeypatch.setattr(objects, "_BLOCK_BYTES", 400)
    s3_proxy.clear()
    s3_proxy.fail_next(1, 503, method="GET")
    with objects.open_read(object_url) as file:
        assert file.read() == b"0123456789" * 100
    assert (s3_proxy.count("HEAD"), s3_proxy.count("GET")) == (1, 4), "1000 bytes in 400s, one of them repeated"


@pytest.mark.s3
def test_a_long_listing_goes_page_by_page_and_repeats_only_the_broken_page(
    s3_url: str, s3_proxy: FaultProxy, moto_server: S3Server
) -> None:
    client, bucket = moto_server.client(), s3_url.removeprefix("s3://")
    names = [f"{number % 3}/{number}.jpg" for number in range(moto_server.page + 5)]
    for name in names:
        client.put_object(Bucket=bucket, Key=f"folder/{name}", Body=b"")
    files = objects.list_files(f"{s3_url}/folder")
    first = next(files)
    assert s3_proxy.count("GET") == 1, "the second page waits until it is needed"
    s3_proxy.fail_next(1, 503)
    assert [first.path, *(file.path for file in files)] == sorted(names)
    assert s3_proxy.count() == 3


@pytest.mark.s3
def test_a_store_that_lists_out_of_order_is_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = [FileInfo("b", 1, ""), FileInfo("a", 1, "")]
    monkeypatch.setattr(objects._S3, "_page", lambda *_: (page, None))
    with pytest.raises(StorageError, match="not listed in order"):
        paths(s3_url)


@pytest.mark.s3
def test_threads_and_a_forked_child_share_the_url_not_the_connection(object_url: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert all(len(data) == 1000 for data in pool.map(objects.read_bytes, [object_url] * 64))
    child = os.fork()
    if child == 0:
        os._exit(0 if len(objects.read_bytes(object_url)) == 1000 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(objects.read_bytes(object_url)) == 1000


@pytest.mark.s3
def test_no_message_of_a_broken_store_holds_a_secret(
    object_url: str, s3_proxy: FaultProxy, quick_retries: RetryPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for fault in (403, 503, "reset", "slow"):
        s3_proxy.fail_next(6, fault)
        with pytest.raises(StorageError) as caught:
            objects.read_bytes(object_url)
        s3_proxy.clear()
        assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert SECRET not in caplog.text


# ---------------------------------------------------------------- redaction

CANARY = "c4n4ry/S3cret+Value"


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIAABCDEFGHIJKLMNOP:{CANARY}@bucket/key",
        f"https://user:{CANARY}@host/path and more",
        f"https://{CANARY.replace('/', '')}@host/path",
        f"https://b.s3.amazonaws.com/k?X-Amz-Credential=x&X-Amz-Signature={CANARY}&x=1",
        f"GET /k?versionId=3&Signature={CANARY} HTTP/1.1",
        f"https://acc.blob.core.windows.net/c/b?sv=1&sig={CANARY}",
        f"https://host/k?token={CANARY}",
        f"aws_secret_access_key={CANARY}",
        f"AWS_SECRET_ACCESS_KEY: '{CANARY}'",
        f'{{"SecretAccessKey": "{CANARY}", "ok": 1}}',
        f"aws_session_token = {CANARY}",
        f"RAY_AUTH_TOKEN={CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"'authorization': 'AWS4-HMAC-SHA256 Credential=x, Signature={CANARY}'",
        f"password={CANARY}",
    ],
)
def test_redact_removes_the_secret_and_nothing_more_a_second_time(text: str) -> None:
    clean = redact(text)
    assert CANARY not in clean
    assert CANARY.replace("/", "") not in clean
    assert "***" in clean
    assert redact(clean) == clean


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"])
def test_redact_knows_the_secrets_of_this_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, CANARY)
    assert redact(f"wrapped in<{CANARY}>prose") == "wrapped in<***>prose"


def test_redact_finds_key_ids_wherever_they_stand() -> None:
    assert redact("used AKIAABCDEFGHIJKLMNOP and ASIAABCDEFGHIJKLMNOP.") == "used *** and ***."


@pytest.mark.parametrize(
    "text",
    [
        "cannot read s3://bucket/a folder/image@2x.jpg?versionId=3: 503 SlowDown, 6 attempts",
        "http://127.0.0.1:9000/bucket/key@home",
        "30000x30000 = 900 Mpx, limit 256 Mpx; raise --decode.max-mpx",
        "key=photos/2024/a.jpg shard=12 tokens left",
    ],
)
def test_redact_leaves_ordinary_lines_alone(text: str) -> None:
    assert redact(text) == text


@given(st.text())
def test_redact_never_fails_and_is_idempotent(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_the_pauses_of_a_policy_grow_to_their_cap() -> None:
    policy = RetryPolicy(first_s=1, longest_s=4)
    for attempt, cap in [(1, 1), (2, 2), (3, 4), (9, 4)]:
        pauses = [policy.pause_s(attempt) for _ in range(200)]
        assert 0 <= min(pauses) < cap / 4 < 3 * cap / 4 < max(pauses) <= cap
