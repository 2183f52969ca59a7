import hashlib
import io
import json
import re
import zipfile

import numpy as np
import PIL.Image
import pytest

from pipeline.select.choice import choose_images
from pipeline.view.opened import OpenedRun
from pipeline.view.server import STATIC
from tests.support.served import visit
from tests.support.viewed_runs import FARM, HOSTILE, IMAGES, committed_mask, ids_by_key

ROWS = IMAGES + len(HOSTILE) + 1


@pytest.fixture(scope="module")
def run(viewed, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    shared = {"cache": cache, "max_cache_bytes": 10**8, "source": (), "labels": None}
    opened = OpenedRun(viewed.url, **shared)
    opened.compare_with(OpenedRun(viewed.other, **shared))
    opened.start()
    opened._filler.join()  # a finished run is filled once
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def visitor(run):
    return visit(run)


@pytest.fixture(scope="module")
def ids(run):
    return ids_by_key(run.index)


def test_the_run_is_described_with_its_classes_and_columns(visitor, viewed):
    run = visitor.get("/api/run").json()
    assert (run["finished"], run["rows"], run["labels"]) == (True, ROWS, True)
    assert [one["name"] for one in run["classes"]] == list(FARM.names)
    assert run["columns"][0]["name"] == "shift"
    assert run["other"] == str(viewed.other)


def test_rows_come_with_their_number_in_all(visitor):
    query = json.dumps({"choices": [{"column": "status", "values": ["failed"]}]})
    answer = visitor.get("/api/rows", params={"query": query}).json()
    assert answer["total"] == 1
    assert answer["rows"][0]["error_code"] == "not_an_image"


def test_histograms_come_for_the_columns_asked_for(visitor):
    answer = visitor.get("/api/histograms", params={"columns": "entropy,status,nothing"}).json()
    assert set(answer) == {"entropy", "status"}
    assert dict(answer["status"]["words"]) == {"ok": ROWS - 1, "failed": 1}


def test_a_row_has_every_column_but_its_pictures(visitor, ids):
    answer = visitor.get("/api/row", params={"key": "farm_000002.jpg"}).json()
    assert answer["id"] == ids["farm_000002.jpg"]
    assert answer["row"]["key"] == "farm_000002.jpg"
    assert not {"mask", "preview_image", "judgements"} & answer["row"].keys()
    assert answer["layers"] == ["mask", "truth", "network", "network_confidence", "other"]


@pytest.mark.parametrize("layer", ["mask", "other"])
def test_layers_are_the_pixels_of_the_committed_masks(visitor, viewed, ids, layer):
    answer = visitor.get(f"/api/rows/{ids['farm_000002.jpg']}/layers/{layer}")
    shape = int(answer.headers["X-Height"]), int(answer.headers["X-Width"])
    pixels = np.frombuffer(answer.content, np.uint8).reshape(shape)
    url = viewed.url if layer == "mask" else viewed.other
    np.testing.assert_array_equal(pixels, committed_mask(url, "farm_000002.jpg"))


def test_pictures_are_jpegs_and_thumbnails_come_from_the_cache_the_second_time(visitor, run, ids, monkeypatch):
    row = ids["farm_000005.jpg"]
    first = visitor.get(f"/api/rows/{row}/thumbnail?picture=overlay")
    monkeypatch.setattr(run.pictures, "thumbnail", None)
    assert visitor.get(f"/api/rows/{row}/thumbnail?picture=overlay").content == first.content
    assert PIL.Image.open(io.BytesIO(first.content)).format == "JPEG"
    assert PIL.Image.open(io.BytesIO(visitor.get(f"/api/rows/{row}/image").content)).size == (64, 64)


def test_a_failed_row_is_answered_by_its_reason(visitor, ids):
    answer = visitor.get(f"/api/rows/{ids['zz_broken.jpg']}/thumbnail")
    assert answer.status_code == 200
    assert answer.json()["code"] == "not_an_image"


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_arrive_as_they_are_and_only_as_json(visitor, key):
    answer = visitor.get("/api/row", params={"key": key})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["row"]["key"] == key
    found = visitor.get("/api/rows", params={"query": json.dumps({"text": key})}).json()
    assert [row["key"] for row in found["rows"]] == [key]


@pytest.mark.parametrize(
    "path",
    [
        "/api/rows/999999999/image",
        "/api/rows/0/layers/../../../../etc/passwd",
        "/api/rows/0/layers/..%2f..%2fetc%2fpasswd",
        "/api/rows/0/layers/nothing",
        "/api/rows/-1",
        "/api/rows/x",
        "/api/rows/0/thumbnail/../../../etc/passwd",
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static//etc/passwd",
        "/etc/passwd",
    ],
)
def test_a_path_that_leads_elsewhere_finds_nothing(visitor, path):
    answer = visitor.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "import" not in answer.text


@pytest.mark.parametrize("key", ["../labels/farm_000000.png", "", "farm_000000.jpg\0"])
def test_a_key_that_the_run_does_not_have_is_answered_with_the_reason(visitor, key):
    answer = visitor.get("/api/row", params={"key": key}).json()
    assert (answer["code"], answer.keys()) == ("not_found", {"error", "code"})


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"query": "{"}, "Invalid JSON"),
        ({"query": '{"text": "\\ud800"}'}, "Invalid JSON"),
        ({"query": '{"ranges": [{"column": "entropy", "low": NaN}]}'}, "finite number"),
        ({"query": '{"sort": "x"}'}, "no column 'x'"),
        ({"query": '{"ranges": [{"column": "entropy", "low": "a"}]}'}, "valid number"),
        ({"offset": "x"}, "invalid literal"),
        ({"query": json.dumps({"text": "x" * 501})}, "at most 500"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_by_name(visitor, params, said):
    answer = visitor.get("/api/rows", params=params)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_all_of_it_is_compressed_and_nothing_is_cached_since_the_next_run_has_the_same_numbers(visitor, ids):
    mask = visitor.get(f"/api/rows/{ids['farm_000002.jpg']}/layers/mask")
    assert mask.headers["content-encoding"] == "gzip"
    thumbnail = visitor.get(f"/api/rows/{ids['farm_000002.jpg']}/thumbnail")
    for answer in (mask, thumbnail, visitor.get("/api/run"), visitor.get("/")):
        assert answer.headers["cache-control"] == "no-store"


def test_the_choice_is_that_of_the_job(visitor, run):
    answer = visitor.get("/api/choice", params={"images": 3}).json()
    chosen = choose_images(run.url, 3).images["key"].tolist()
    assert answer["keys"] == chosen
    assert answer["left_out"] == {"not_an_image": 1}
    assert visitor.get("/api/choice", params={"images": 0}).status_code == 400


@pytest.mark.parametrize("tool", ["labelstudio", "cvat", "coco"])
def test_marked_images_come_as_a_zip_whose_names_stay_inside_it(visitor, viewed, tool):
    keys = ["farm_000002.jpg", *HOSTILE]
    answer = visitor.post(f"/api/hand-over/{tool}", json=keys)
    assert answer.headers["X-Left-Out"] == ""
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = archive.namelist()
        images = [name for name in names if name.startswith("images/")]
        assert len(images) == len(keys)
        assert all(re.fullmatch(r"[a-z_]+(/[A-Za-z0-9._~-]+)?(\.[a-z]+)?", name) for name in names)
        data = {archive.read(name) for name in images}
    assert data == {(viewed.folder / "images" / key).read_bytes() for key in keys}


@pytest.mark.parametrize(
    "posted", [[], ["x"], [1], ["../labels/farm_000000.png"], {"keys": ["x"]}, [["x"]], ["x"] * 10_001]
)
def test_a_hand_over_of_nothing_that_exists_is_refused(visitor, posted):
    assert visitor.post("/api/hand-over/coco", json=posted).status_code in (400, 404)
    assert visitor.post("/api/hand-over/..%2f..%2fetc", json=["farm_000002.jpg"]).status_code in (400, 404)


def test_a_hand_over_of_very_many_rows_is_refused_before_it_is_read(visitor):
    keys, kind = b"[" + b'"x",' * 1_100_000 + b'"x"]', {"content-type": "application/json"}
    answer = visitor.post("/api/hand-over/coco", content=keys, headers=kind)
    assert answer.status_code == 413


def test_runs_compared_again_are_paired_from_their_cached_indexes(viewed, run):
    cache = run._thumbnails.folder.parent
    shared = {"cache": cache, "max_cache_bytes": 10**8, "source": (), "labels": None}
    again = OpenedRun(viewed.url, **shared)
    again.compare_with(OpenedRun(viewed.other, **shared))
    assert [column.name for column in again.index.columns[:3]] == ["shift", "other_status", "confidence_gain"]
    assert again.index.fetch("SELECT count(*) FROM shown WHERE shift IS NOT NULL") == [(ROWS - 1,)]


def test_changes_of_classes_need_a_second_run(visitor, run, monkeypatch):
    assert len(visitor.get("/api/changes").json()) == len(FARM)
    monkeypatch.setattr(run, "other", None)
    assert visitor.get("/api/changes").status_code == 404


def test_the_shipped_script_is_built_from_the_sources_beside_it():
    sources = sorted((STATIC.parent / "page/src").glob("*.ts"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    built = (STATIC / "app.js").read_text(encoding="utf-8")
    assert re.match(r"// Built from pipeline/view/page/src, SHA-256 (\w+)", built)[1] == digest, "run `make page`"


def test_a_thumbnail_of_one_place_of_the_source_is_not_shown_for_another(viewed, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in (viewed.folder / "images").iterdir():
        (images / path.name).write_bytes((viewed.folder / "images/farm_000001.jpg").read_bytes())

    def thumbnail(*source):
        opened = OpenedRun(viewed.url, cache=tmp_path / "cache", max_cache_bytes=10**8, source=source, labels=None)
        opened.index.fill()
        data = opened.thumbnail(ids_by_key(opened.index)["farm_000003.jpg"], "image")
        opened.close()
        return data

    assert thumbnail(str(images)) != thumbnail()
