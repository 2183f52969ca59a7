"""Redaction: every kind of secret is removed, ordinary lines stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.redact import redact

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


@pytest.mark.parametrize("text", ["x --notify {} --limit 3", "--notify={}", "--notify '{}'"])
def test_the_url_of_a_webhook_is_a_secret(text: str) -> None:
    assert "T0/B1" not in redact(text.format("https://hooks.example.com/T0/B1"))


@given(st.text())
def test_redact_never_fails_and_is_idempotent(text: str) -> None:
    assert redact(redact(text)) == redact(text)
