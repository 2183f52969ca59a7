"""The page of a run in a bucket with its images: the same bytes as from a disk, and plain words when it is gone."""

import json
import logging
import uuid
from pathlib import Path

import pytest

from pipeline.records import rows_to_table
from pipeline.run import parts
from pipeline.store import retry
from pipeline.store.retry import RetryPolicy
from pipeline.store.url import Url
from pipeline.view import opened as opened_module
from pipeline.view.opened import OpenedRun
from pipeline.view.query import Query
from tests.support import viewed_runs
from tests.support.browser import browser
from tests.support.committed import rows_of, tar
from tests.support.pages import needs_browser
from tests.support.s3_servers import KEY_ID, SECRET, FaultProxy
from tests.support.served import TOKEN, serving, visit

pytestmark = pytest.mark.s3

KEY = "farm_000003.jpg"
PATHS = ("image", "thumbnail", "thumbnail?picture=mask", "layers/mask", "layers/truth")


def opened(url, cache, **more):
    return OpenedRun(url, **{"cache": cache, "max_cache_bytes": 10**8, "source": (), "labels": None} | more)


def upload(client, folder, bucket, prefix):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())


@pytest.fixture
def in_rclone(viewed, rclone_server, monkeypatch):
    """Bucket of a real S3 server with the images, the labels and the run of `viewed`."""
    for name, value in rclone_server.environment.items():
        monkeypatch.setenv(name, value)
    client = rclone_server.client()
    bucket = f"seen-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    for name in ("images", "labels"):
        for path in sorted((viewed.folder / name).glob("farm_*")):
            client.put_object(Bucket=bucket, Key=f"{name}/{path.name}", Body=path.read_bytes())
    upload(client, Path(viewed.url.raw), bucket, f"out/{viewed.url.name}")
    return bucket, Url(f"s3://{bucket}/out/{viewed.url.name}")


@pytest.fixture
def bucket_run(s3_proxy, s3_url, moto_server):
    """Run of made-up rows in a bucket, behind a proxy that can refuse, and that goes on."""
    client, bucket = moto_server.client(), s3_url.removeprefix("s3://")
    url = Url(f"{s3_url}/out/run=0123456789ab")
    parts.write_part(url, rows_to_table(rows_of(tar("a"), 3)), viewed_runs.FARM)
    return url, client, bucket


def test_rows_and_pictures_from_a_bucket_are_those_from_a_disk(in_rclone, viewed, tmp_path):
    bucket, url = in_rclone
    there = opened(url, tmp_path / "s3", source=[f"s3://{bucket}/images"], labels=f"s3://{bucket}/labels")
    here = opened(viewed.url, tmp_path / "disk", labels=str(viewed.folder / "labels"))
    found = []
    for run in (there, here):
        run.index.fill()
        (agreement,) = run.comparing.agreements
        visitor, query = visit(run), json.dumps({"text": "farm_"})
        assert sum(agreement.compare(Query(text="farm_"), is_over=lambda: False)) == 12
        rows = visitor.get("/api/rows", params={"query": query}).json()["rows"]
        row = next(row for row in rows if row["key"] == KEY)["id"]
        pictures = [visitor.get(f"/api/rows/{row}/{path}").content for path in PATHS]
        found.append(([{name: value for name, value in row.items() if name != "id"} for row in rows], pictures))
    assert found[0] == found[1]
    there.close()
    here.close()


@needs_browser
def test_grid_and_image_of_a_bucket_are_shown(in_rclone, tmp_path):
    bucket, url = in_rclone
    run = opened(url, tmp_path / "cache", source=[f"s3://{bucket}/images"])
    run.start()
    run._filler.join()
    with serving(run) as address, browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}#query=%7B%22text%22%3A%22farm_%22%7D")
        page.wait("document.querySelector('#count')?.textContent === '12 rows'")
        page.wait("document.querySelectorAll('.frame img').length === 12 && !document.querySelector('.badge')")
        page.run(f"location.hash = 'key={KEY}'")
        page.wait("document.querySelectorAll('#classes label').length > 0")
        page.wait("document.querySelector('#working').textContent === ''")
        assert page.run("document.querySelector('#image-problem').textContent") == ""
        assert page.complaints == []
    run.close()


def refuse(proxy, _client, _bucket):
    proxy.fail_share(1.0, (403,), seed=0)


def delete_bucket(_proxy, client, bucket):
    for entry in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        client.delete_object(Bucket=bucket, Key=entry["Key"])
    client.delete_bucket(Bucket=bucket)


def break_down(proxy: FaultProxy, _client, _bucket):
    proxy.fail_share(1.0, (503,), seed=0)


@needs_browser
@pytest.mark.parametrize(("fault", "words"), [(refuse, "403"), (delete_bucket, "no rows"), (break_down, "503")])
def test_a_bucket_that_refuses_or_is_gone_is_told_in_plain_words(
    bucket_run, s3_proxy, tmp_path, monkeypatch, caplog, fault, words
):
    monkeypatch.setattr(opened_module, "REFRESH_S", 0.1)
    monkeypatch.setattr(retry, "RETRY", RetryPolicy(attempts=2, first_s=0.01))
    caplog.set_level(logging.DEBUG, "pipeline")
    url, client, bucket = bucket_run
    run = opened(url, tmp_path / "cache")
    run.start()
    with serving(run) as address, browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}")
        page.wait("document.querySelector('#count')?.textContent === '3 rows'")
        fault(s3_proxy, client, bucket)
        problem = page.wait("document.querySelector('#problem').textContent")
        assert words in problem
        page.run("document.querySelector('.card a').click()")
        page.wait("document.querySelector('#image-problem').textContent")
        assert page.run("document.querySelector('#count').textContent") == "3 rows"
        text = page.run("document.body.textContent")
        assert page.complaints == []
    run.close()
    for secret in (SECRET, KEY_ID):
        assert secret not in text
        assert secret not in caplog.text
