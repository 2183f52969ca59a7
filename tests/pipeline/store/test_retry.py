"""Retries: faults between us and S3, the errors they end in, and the pauses between attempts."""

from collections.abc import Callable

import pytest

from pipeline.errors import AccessDenied, StorageError
from pipeline.store import objects
from pipeline.store.retry import RetryPolicy
from pipeline.store.url import Url
from tests.support.listing import paths
from tests.support.s3_servers import SECRET, Fault, FaultProxy


@pytest.mark.s3
@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "lost"])
def test_passing_faults_are_repeated_until_the_answer_is_whole(
    object_url: Url, s3_proxy: FaultProxy, quick_retries: RetryPolicy, fault: Fault
) -> None:
    s3_proxy.fail_next(2, fault)
    assert objects.read_bytes(object_url) == b"0123456789" * 100
    s3_proxy.fail_next(2, fault)
    objects.put(object_url, b"new")
    s3_proxy.fail_next(2, fault)
    assert objects.info(object_url).size == 3
    assert s3_proxy.count("GET") == s3_proxy.count("PUT") == s3_proxy.count("HEAD") == 3


@pytest.mark.s3
def test_a_body_cut_short_is_never_taken_for_the_object(object_url: Url, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_next(2, "cut")
    assert objects.read_bytes(object_url) == b"0123456789" * 100
    assert s3_proxy.count() == 3


@pytest.mark.s3
@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_lasting_fault_ends_after_the_last_attempt(
    object_url: Url, s3_proxy: FaultProxy, quick_retries: RetryPolicy, fault: Fault
) -> None:
    s3_proxy.fail_next(99, fault)
    with pytest.raises(StorageError, match=r"image\.jpg: .*3 attempts") as caught:
        objects.read_bytes(object_url)
    assert s3_proxy.count() == quick_retries.attempts, "s3fs, botocore and aiohttp must not repeat on their own"
    assert objects.as_input_error(caught.value).code == "storage_error"


@pytest.mark.s3
def test_a_dripping_body_is_given_up_and_read_again(
    object_url: Url, s3_proxy: FaultProxy, quick_retries: RetryPolicy
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
    object_url: Url, s3_proxy: FaultProxy, act: Callable[[Url], object], action: str
) -> None:
    s3_proxy.fail_next(9, 403)
    with pytest.raises(AccessDenied, match=r"image\.jpg: 403") as caught:
        act(object_url)
    assert action in caught.value.hint
    assert s3_proxy.count() == 1


@pytest.mark.s3
def test_404_is_not_repeated(object_url: Url, s3_proxy: FaultProxy) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        objects.read_bytes(Url(object_url.raw + ".not"))
    assert s3_proxy.count() == 1
    assert objects.as_input_error(caught.value).code == "not_found"


@pytest.mark.s3
def test_expired_credentials_are_fetched_anew_once(object_url: Url, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_next(1, 400, code="ExpiredToken")
    assert len(objects.read_bytes(object_url)) == 1000
    assert s3_proxy.count() == 2
    s3_proxy.fail_next(9, 400, code="ExpiredToken")
    with pytest.raises(AccessDenied, match="ExpiredToken"):
        objects.read_bytes(object_url)
    assert s3_proxy.count() == 4


@pytest.mark.s3
def test_one_archived_object_does_not_stop_the_job(object_url: Url, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_next(9, 403, code="InvalidObjectState")
    with pytest.raises(StorageError, match="InvalidObjectState") as caught:
        objects.read_bytes(object_url)
    assert objects.as_input_error(caught.value).code == "storage_error"
    assert s3_proxy.count() == 1


@pytest.mark.s3
def test_a_denied_read_is_never_a_work_items_failure(object_url: Url, s3_proxy: FaultProxy) -> None:
    s3_proxy.fail_next(9, 403)
    with pytest.raises(AccessDenied) as caught:
        objects.read_bytes(object_url)
    with pytest.raises(AccessDenied):
        objects.as_input_error(caught.value)


@pytest.mark.s3
def test_a_machine_without_credentials_is_told_so(object_url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDenied, match="credentials") as refusal:
        objects.read_bytes(object_url)
    assert "set AWS_PROFILE, or AWS_ACCESS_KEY_ID" in refusal.value.hint


@pytest.mark.s3
def test_no_message_of_a_broken_store_holds_a_secret(
    object_url: Url, s3_proxy: FaultProxy, quick_retries: RetryPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for fault in (403, 503, "reset", "slow"):
        s3_proxy.fail_next(6, fault)
        with pytest.raises(StorageError) as caught:
            objects.read_bytes(object_url)
        s3_proxy.clear()
        assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert SECRET not in caplog.text


def test_the_pauses_of_a_policy_grow_to_their_cap() -> None:
    policy = RetryPolicy(first_s=1, longest_s=4)
    for attempt, cap in [(1, 1), (2, 2), (3, 4), (9, 4)]:
        pauses = [policy.pause_s(attempt) for _ in range(200)]
        assert 0 <= min(pauses) < cap / 4 < 3 * cap / 4 < max(pauses) <= cap
