"""Files as an attacker would leave them in a source, a run, labels and the cache: reasons, and nothing else."""

import io
import json
import os
import struct
import zlib
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.classes import ClassInfo
from pipeline.config import SegmentConfig
from pipeline.errors import StorageError
from pipeline.image.encode import mask_png
from pipeline.records import rows_to_table
from pipeline.run import folder, parts
from pipeline.source.plan import plan_source
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.view import index as index_module
from pipeline.view.opened import OpenedRun
from tests.support.browser import browser
from tests.support.hostile_keys import encoded
from tests.support.pages import needs_browser
from tests.support.photo_runs import FARM, HEIGHT, WIDTH, mask_of, mask_row, photo, write_run
from tests.support.served import TOKEN, serving, visit

SECRET = b"root:x:0:0"
"""What no answer may hold. Of a file that is no image the reason has the first 16 bytes, so it lies behind them."""
TEXT = b"# users of this machine\n" + SECRET


def png_of(height, width):
    """A PNG that says in its header to be of a size, and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", bytes(3)), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff_of(height, width):
    """A TIFF that says to be of a size, with a strip far beyond its end."""
    tags = (
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 2**31),
        (277, 1),
        (278, height),
        (279, 2**31),
    )
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


IMAGES = {
    "html": (b"<html><script>window.owned=1</script></html>", "not_an_image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="window.owned=1"/>', "unsupported_format"),
    "truncated": (photo(1)[:-200], "truncated"),
    "empty": (b"", "empty"),
    "bomb": (png_of(60_000, 60_000), "too_many_pixels"),
    "tiff": (tiff_of(2**31 - 1, 2**31 - 1), "too_many_pixels"),
    "text": (TEXT, "not_an_image"),
}
"""Images by name: their bytes, and the reason why they are not shown."""
GREY = io.BytesIO()
Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(GREY, "PNG")
MASKS = {
    "no PNG": SECRET,
    "HTML": b"<script>alert(1)</script>",
    "other size": mask_png(np.zeros((HEIGHT + 1, WIDTH), np.uint8), FARM),
    "bomb": png_of(60_000, 60_000),
    "cut short": mask_png(mask_of("a"), FARM)[:-30],
    "header alone": mask_png(mask_of("a"), FARM)[:40],
    "no pixels": png_of(HEIGHT, WIDTH),
    "three channels": GREY.getvalue(),
    "empty": b"",
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "secret.txt").write_bytes(TEXT)
    return tmp_path


def write_rows(root, photos, change=lambda row: row, classes=FARM):
    """A source of photos by their names, and a finished run of a row for each; `change` makes a row hostile."""
    for name, data in photos.items():
        (root / "photos" / name).write_bytes(data)
    cfg = SegmentConfig(source=[str(root / "photos")], output=str(root / "out"), checkpoint="farmland")
    plan, url = plan_source(cfg), Url(str(root / "out/run=0123456789ab"))
    members = [(member, shard.id) for shard in plan.shards for member in shard.members()]
    objects.put(url / folder.CONFIG, cfg.model_dump_json().encode())
    objects.put(url / folder.PLAN, encoded(plan.to_table()))
    rows = [change(mask_row(member.key, shard, source_etag=member.etag)) for member, shard in members]
    if classes is FARM:
        write_run(url, rows)
    else:
        parts.write_part(url, rows_to_table(rows), classes)
    return url


def opened(url, root, **more):
    run = OpenedRun(url, **{"cache": root / "cache", "max_cache_bytes": 10**8, "source": (), "labels": None} | more)
    run.index.fill()
    return run


def answers(visitor):
    """Every answer about every row, by key and path; none may be an error of the page."""
    found = {}
    for row in visitor.get("/api/rows").json()["rows"]:
        paths = [f"/api/rows/{row['id']}/{end}" for end in ("image", "thumbnail", "thumbnail?picture=mask")]
        paths += [f"/api/rows/{row['id']}/layers/{name}" for name in ("mask", "truth", "confidence", "changed")]
        for path in paths:
            answer = visitor.get(path)
            assert answer.status_code == 200, (row["key"], path, answer.text)
            assert SECRET not in answer.content
            found[row["key"], path.rpartition("/")[2]] = answer
    return found


@pytest.mark.parametrize("moved", [False, True])
def test_a_hostile_image_is_answered_by_its_reason(root, moved):
    url = write_rows(root, {f"{name}.jpg": data for name, (data, _) in IMAGES.items()})
    run = opened(url, root, source=[str(root / "photos")] if moved else ())
    found = answers(visit(run))
    for name, (_, reason) in IMAGES.items():
        for path in ("image", "thumbnail"):
            assert found[f"{name}.jpg", path].json()["code"] == reason
        assert found[f"{name}.jpg", "thumbnail?picture=mask"].headers["content-type"] == "image/jpeg"


def test_a_link_that_was_put_in_place_of_an_image_gives_nothing_away(root):
    url = write_rows(root, {"a.jpg": photo(1)})
    (root / "photos/a.jpg").unlink()
    (root / "photos/a.jpg").symlink_to(root / "secret.txt")
    assert answers(visit(opened(url, root)))["a.jpg", "image"].json()["code"] == "source_changed"
    moved = opened(url, root, source=[str(root / "photos")])
    assert answers(visit(moved))["a.jpg", "image"].json()["code"] == "not_an_image"


@pytest.mark.parametrize("why", MASKS)
def test_a_hostile_mask_is_answered_by_its_reason(root, why):
    url = write_rows(root, {"a.jpg": photo(1)}, lambda row: replace(row, mask=MASKS[why]))
    visitor = visit(opened(url, root))
    found = answers(visitor)
    for path in ("layers/mask", "thumbnail", "thumbnail?picture=mask"):
        assert found["a.jpg", path.removeprefix("layers/")].json()["code"] == "mask_unusable"
    assert found["a.jpg", "image"].headers["content-type"] == "image/jpeg"
    for tool in ("labelstudio", "cvat", "coco"):
        assert visitor.post(f"/api/hand-over/{tool}", json=["a.jpg"]).status_code == 200


def test_a_mask_of_unknown_classes_is_drawn_without_a_class(root):
    unknown = mask_png(np.full((HEIGHT, WIDTH), 200, np.uint8), FARM)
    url = write_rows(root, {"a.jpg": photo(1)}, lambda row: replace(row, mask=unknown))
    assert answers(visit(opened(url, root)))["a.jpg", "thumbnail"].headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize("column", ["confidence_map", "changed_map"])
def test_a_hostile_map_of_a_window_is_answered_by_its_reason(root, column):
    url = write_rows(root, {"a.jpg": photo(1)}, lambda row: replace(row, **{column: png_of(60_000, 60_000)}))
    found = answers(visit(opened(url, root)))
    assert found["a.jpg", column.removesuffix("_map")].json()["code"] == "mask_unusable"


def test_hostile_labels_are_answered_by_their_reasons(root):
    labels = {
        "bomb": (png_of(60_000, 60_000), "label_size"),
        "html": (b"<script>", "label_format"),
        "unknown": (mask_png(np.full((HEIGHT, WIDTH), 99, np.uint8), FARM), "label_value"),
        "other": (mask_png(np.zeros((3, 3), np.uint8), FARM), "label_size"),
    }
    (root / "labels").mkdir()
    for name, (data, _) in labels.items():
        (root / f"labels/{name}.png").write_bytes(data)
    url = write_rows(root, {f"{name}.jpg": photo(number) for number, name in enumerate([*labels, "none"])})
    found = answers(visit(opened(url, root, labels=str(root / "labels"))))
    for name, (_, reason) in [*labels.items(), ("none", (b"", "label_missing"))]:
        assert found[f"{name}.jpg", "truth"].json()["code"] == reason


NUMBERS = {
    "not finite": {"confidence": float("nan"), "entropy": float("inf"), "brightness": -float("inf")},
    "no size": {"height": 0, "width": 0, "nodata_pixels": 5},
    "negative": {"height": -1, "width": -5, "class_pixels": [-3] * len(FARM), "orientation": -7},
    "huge": {"height": 2**31 - 1, "width": 2**31 - 1, "nodata_pixels": 2**62, "class_pixels": [2**62] * len(FARM)},
    "texts": {"error_code": "<script>" * 10_000, "error_detail": "\0\u202e" * 5_000, "refine_note": ":" * 9_000},
    "no counts": {"class_pixels": None, "height": None, "width": None},
}


@pytest.mark.parametrize("why", NUMBERS)
def test_hostile_cells_of_a_row_are_shown_or_left_out(root, why):
    url = write_rows(root, {"a.jpg": photo(1), "b.jpg": photo(2)}, lambda row: replace(row, **NUMBERS[why]))
    run = opened(url, root)
    visitor = visit(run)
    answers(visitor)
    assert visitor.get("/api/row?key=a.jpg").json()["row"]["key"] == "a.jpg"
    names = ",".join(column.name for column in run.index.columns)
    assert visitor.get("/api/histograms", params={"columns": names}).status_code == 200


def broken(change):
    """A part whose table is changed after its rows were made."""

    def write(url):
        (name,) = parts.list_parts(url)
        path = parts.parts_url(url) / name
        table = pq.read_table(path.raw)
        pq.write_table(change(table), path.raw)

    return write


def text_that_is_no_utf8(table):
    buffers = [None, pa.py_buffer(struct.pack("<2i", 0, 2)), pa.py_buffer(b"\xff\xfe")]
    column = pa.Array.from_buffers(pa.string(), len(table), buffers)
    return table.set_column(table.schema.get_field_index("key"), "key", column)


PARTS = {
    "text that is no UTF-8": broken(text_that_is_no_utf8),
    "without a column": broken(lambda table: table.drop_columns(["height"])),
    "column of another type": broken(lambda table: table.set_column(8, "height", pa.array([{"a": 1}] * len(table)))),
    "row without a key": broken(
        lambda table: table.set_column(0, pa.field("key", pa.string()), pa.nulls(len(table), pa.string()))
    ),
    "counts of other classes": broken(
        lambda table: table.set_column(
            table.schema.get_field_index("class_pixels"), "class_pixels", pa.array([[1, 2, 3]] * len(table))
        )
    ),
}


@pytest.mark.parametrize("why", PARTS)
def test_a_hostile_part_is_named_in_the_page(root, why):
    url = write_rows(root, {"a.jpg": photo(1)})
    PARTS[why](url)
    run = OpenedRun(url, cache=root / "cache", max_cache_bytes=10**8, source=(), labels=None)
    with pytest.raises(StorageError, match="part-"):
        run.index.fill()
    run.close()


PROGRESS = {
    "types": {"time": "", "done": "many", "failed": None},
    "texts": {"time": "", "images_per_s": "<b>"},
    "not finite": {"time": "", "images_per_s": float("nan"), "eta_s": float("inf")},
    "list": [1],
    "more": {"time": "", "__class__": "x"},
    "large": {"time": "x" * 2**21},
}


@pytest.mark.parametrize("why", PROGRESS)
def test_hostile_progress_is_no_progress(root, why):
    url = write_rows(root, {"a.jpg": photo(1)})
    objects.put(url / "_run/progress.json", json.dumps(PROGRESS[why]).encode())
    answer = visit(opened(url, root)).get("/api/run")
    assert (answer.status_code, answer.json()["progress"]) == (200, None)


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b",".join([b"*%c" % (name - 1)] * 10)) for name in range(ord("b"), ord("k"))
)
CONFIGS = {
    "tag of Python": b"source: !!python/object/apply:os.system ['touch owned']\n",
    "list": b"[1, 2]\n",
    "other types": b"source: {a: 1}\n",
    "aliases that grow without end": BOMB + b"source: *j\nread: *j\n",
    "large": b"# " + b"x" * 2**21,
}


@pytest.mark.parametrize("why", CONFIGS)
def test_a_hostile_config_is_refused_by_name(root, why, monkeypatch):
    monkeypatch.chdir(root)
    url = write_rows(root, {"a.jpg": photo(1)})
    objects.put(url / folder.CONFIG, CONFIGS[why])
    with pytest.raises(StorageError, match=r"config\.yaml"):
        opened(url, root)
    assert not (root / "owned").exists()


@pytest.mark.parametrize("change", [{"root": "/"}, {"root": "{above}"}, {"path": "../secret.jpg", "kind": "parquet"}])
def test_a_plan_that_names_another_place_reads_nothing_there(root, change):
    url = write_rows(root, {"a.jpg": photo(1)})
    (root / "a.jpg").write_bytes(photo(3))
    os.utime(root / "a.jpg", ns=(0, (root / "photos/a.jpg").stat().st_mtime_ns))
    plan = folder.read_plan(url)
    for name, value in change.items():
        column = pa.array([value.format(above=root)] * len(plan), plan.schema.field(name).type)
        plan = plan.set_column(plan.schema.get_field_index(name), name, column)
    objects.put(url / folder.PLAN, encoded(plan))
    assert answers(visit(opened(url, root)))["a.jpg", "image"].json()["code"] == "not_found"


def test_a_plan_of_other_columns_is_refused_by_name(root):
    url = write_rows(root, {"a.jpg": photo(1)})
    objects.put(url / folder.PLAN, encoded(pa.table({"x": [1]})))
    with pytest.raises(StorageError, match=r"plan\.arrow"):
        opened(url, root)


def damage_header(path):
    path.write_bytes(b"no database" * 1000)


def damage_blocks(path):
    data = bytearray(path.read_bytes())
    data[8192::512] = bytes(255 - byte for byte in data[8192::512])
    path.write_bytes(data)


def other_tables(path):
    path.unlink()
    with duckdb.connect(path) as database:
        database.execute("CREATE VIEW rows AS SELECT 0::BIGINT AS id, content AS key FROM read_text('/etc/passwd')")


def cut_short(path):
    os.truncate(path, 5000)


def put_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [damage_header, damage_blocks, other_tables, cut_short, put_a_folder])
def test_a_hostile_index_file_is_made_anew(root, damage):
    url = write_rows(root, {"a.jpg": photo(1)})
    opened(url, root).close()
    (path,) = root.glob("cache/index/*.duckdb")
    damage(path)
    run = opened(url, root)
    assert run.index.counts() == (1, 1)
    assert len(answers(visit(run))) == 7
    run.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "COPY rows TO '{root}/copy.csv'",
        "ATTACH '{root}/other.duckdb'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
    ],
)
def test_no_statement_of_the_index_reads_or_writes_another_file(root, sql):
    index = opened(write_rows(root, {"a.jpg": photo(1)}), root).index
    with pytest.raises(duckdb.Error):
        index.fetch(sql.format(root=root))


def test_cache_and_index_are_for_this_user_alone(root):
    run = opened(write_rows(root, {"a.jpg": photo(1)}), root)
    assert (root / "cache").stat().st_mode & 0o077 == 0
    assert index_module._file(run.url, run.classes, root / "cache").exists()


@needs_browser
def test_hostile_texts_of_a_run_are_text_in_the_page(root, tmp_path):
    script = "<img src=x onerror=window.owned=1>\u202e"
    classes = FARM.model_copy(
        update={
            "classes": tuple(
                ClassInfo(name=f"{script}{number}", colour=one.colour) for number, one in enumerate(FARM.classes)
            )
        }
    )

    def change(row):
        if row.key == "a.jpg":
            return row
        failed = {"status": "failed", "mask": None, "error_code": script, "error_detail": script * 100}
        return replace(row, **failed, class_pixels=None, confidence=float("nan"), height=0, width=0)

    url = write_rows(root, {"a.jpg": photo(1), "b.jpg": SECRET}, change, classes)
    progress = {"time": script, "phase": script, "bottleneck": script, "failed": {script: 1}}
    objects.put(url / "_run/progress.json", json.dumps(progress).encode())
    run = opened(url, root)
    with serving(run) as address, browser(tmp_path) as page:
        page.open(f"{address}?token={TOKEN}")
        page.wait("document.querySelector('#count')?.textContent === '2 rows'")
        page.wait(f"document.querySelector('#progress').textContent.includes({json.dumps(script)})")
        page.wait(f"document.querySelector('.badge')?.textContent === {json.dumps(script)}")
        page.wait("document.querySelectorAll('[data-column=error_code] .word').length === 2")
        for key in ("a.jpg", "b.jpg"):
            page.run(f"location.hash = 'key={key}'")
            page.wait(f"document.querySelector('#key').textContent === '{key}'")
            page.wait("document.querySelectorAll('#facts dd').length > 5")
        page.wait(f"document.querySelector('#image-problem').textContent.includes({json.dumps(script)})")
        assert page.run("document.querySelectorAll('#classes .word')[0]?.textContent ?? ''") in ("", f"{script}0")
        assert page.run("document.documentElement.scrollWidth") <= 1280
        assert page.run("[window.owned ?? null, document.querySelectorAll('img[src=x]').length]") == [None, 0]
        assert page.complaints == []
    run.close()
