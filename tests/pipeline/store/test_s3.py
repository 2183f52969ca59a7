"""S3: requests that are sent, pages of a listing, put-if-absent when an answer is lost, threads and forks."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import StorageError
from pipeline.store import objects
from pipeline.store.backend import FileInfo
from pipeline.store.s3 import S3Backend
from pipeline.store.url import Url
from tests.support.listing import paths
from tests.support.s3_servers import Fault, FaultProxy, S3Server


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["lost", 409, 503])
def test_the_owner_knows_itself_when_its_answer_was_lost(s3_url: str, s3_proxy: FaultProxy, fault: Fault) -> None:
    s3_proxy.fail_next(1, fault, method="PUT")
    assert objects.put_if_absent(Url(f"{s3_url}/owner"), b"same bytes")
    assert not objects.put_if_absent(Url(f"{s3_url}/owner"), b"same bytes")


@pytest.mark.s3
def test_small_reads_cost_one_request_and_ranges_one_each(
    object_url: Url, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.read_bytes(object_url, max_bytes=5000)
    assert [(one.method, one.path) for one in s3_proxy.requests] == [("GET", object_url.raw.removeprefix("s3://"))]
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
    files = objects.list_files(Url(f"{s3_url}/folder"))
    first = next(files)
    assert s3_proxy.count("GET") == 1, "the second page waits until it is needed"
    s3_proxy.fail_next(1, 503)
    assert [first.path, *(file.path for file in files)] == sorted(names)
    assert s3_proxy.count() == 3


@pytest.mark.s3
def test_a_store_that_lists_out_of_order_is_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = [FileInfo("b", 1, ""), FileInfo("a", 1, "")]
    monkeypatch.setattr(S3Backend, "_page", lambda *_: (page, None))
    with pytest.raises(StorageError, match="is not sorted"):
        paths(Url(s3_url))


@pytest.mark.s3
def test_threads_and_a_forked_child_share_the_url_not_the_connection(object_url: Url) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert all(len(data) == 1000 for data in pool.map(objects.read_bytes, [object_url] * 64))
    child = os.fork()
    if child == 0:
        os._exit(0 if len(objects.read_bytes(object_url)) == 1000 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(objects.read_bytes(object_url)) == 1000
