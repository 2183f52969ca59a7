"""Plans: which files are input, how sources and limits are cut into shards, and how many shards a laptop holds."""

import io
import json
import os
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.config import SegmentConfig
from pipeline.errors import JobError, NothingThere
from pipeline.records import Item
from pipeline.source import parquet
from pipeline.source.plan import PLAN_SCHEMA, Plan, changed, plan, read

ROOT = Path(__file__).parents[1]
FORMS = ("folder", "webdataset", "parquet")


def config(*sources: str, limit: int | None = None, **settings_: object) -> SegmentConfig:
    return SegmentConfig.model_validate(
        {"source": sources, "output": "o", "checkpoint": "c", "limit": limit, "read": settings_}
    )


def planned(*sources: str, limit: int | None = None, **read_settings: object) -> Plan:
    return plan(config(*sources, limit=limit, **read_settings))


def read_plan(made: Plan, **read_settings: object) -> list[Item]:
    cfg = config("unused", **read_settings).read
    return [item for shard in made.shards for item in read(shard, cfg, max_bytes=1000)]


def fresh(scheme: str = "memory") -> str:
    return f"{scheme}://plan-{uuid.uuid4().hex}"


def store(files: dict[str, bytes] | list[str]) -> str:
    """A folder of files; a list of names gets one byte each."""
    root = fresh()
    for name in files:
        storage.put(storage.join(root, name), files[name] if isinstance(files, dict) else b"x")
    return root


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def parquet_of(cells: list[bytes], *, row_group: int = 100) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), out, row_group_size=row_group)
    return out.getvalue()


def images_in(form: str, count: int, *, per_file: int = 5, row_group: int = 2) -> str:
    """`count` one-byte images as a folder, tars or Parquet files."""
    if form == "folder":
        return store({f"{number:02d}.jpg": bytes([number]) for number in range(count)})
    files: dict[str, bytes] = {}
    for number, first in enumerate(range(0, count, per_file)):
        some = range(first, min(first + per_file, count))
        if form == "webdataset":
            files[f"{number}.tar"] = tar_of({f"{one:02d}.jpg": bytes([one]) for one in some})
        else:
            files[f"{number}.parquet"] = parquet_of([bytes([one]) for one in some], row_group=row_group)
    return store(files)


# ---------------------------------------------------------------- which files are input


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.jpg", "b.JPEG", "c.png", "d.webp", "e.tif", "f.TIFF"], "folder"),
        (["a.tar", "d/b.TAR"], "webdataset"),
        (["a.parquet", "b.Parquet"], "parquet"),
    ],
)
def test_the_kind_of_a_source_is_told_by_its_names(names: list[str], kind: str):
    made = planned(store([*names, "notes.txt", "README", "model.pkl", "README"]), slice_images=1)
    assert {shard.kind for shard in made.shards} == {kind}
    assert [shard.path for shard in made.shards] == sorted(names)
    assert made.ignored == {".txt": 1, "(none)": 1, ".pkl": 1}


MIXED = ["a.jpg", "b.png", "c.tar", "d.parquet", "e.parquet", "f.parquet", "note.txt"]


def test_mixed_kinds_are_refused_naming_how_many_there_are_of_each():
    with pytest.raises(JobError) as refusal:
        planned(store(MIXED))
    assert all(said in str(refusal.value) for said in ("2 for folder", "1 for webdataset", "3 for parquet"))
    assert "--read.kind" in refusal.value.hint


@pytest.mark.parametrize(
    ("kind", "paths", "ignored"),
    [
        ("folder", ["a.jpg", "b.png"], {".tar": 1, ".parquet": 3, ".txt": 1}),
        ("webdataset", ["c.tar"], {".jpg": 1, ".png": 1, ".parquet": 3, ".txt": 1}),
        ("parquet", ["d.parquet", "e.parquet", "f.parquet"], {".jpg": 1, ".png": 1, ".tar": 1, ".txt": 1}),
    ],
)
def test_read_kind_takes_one_kind_and_counts_the_others(kind: str, paths: list[str], ignored: dict[str, int]):
    made = planned(store(MIXED), kind=kind, slice_images=1)
    assert [shard.path for shard in made.shards] == paths
    assert made.ignored == ignored


def test_hidden_names_are_counted_and_never_read():
    hidden = [".a.jpg", "_b.jpg", ".git/c.jpg", "d/_tmp/e.jpg", "_SUCCESS", ".hidden.tar.gz", "_temporary/0/f.parquet"]
    made = planned(store([*hidden, "d/ok_.jpg"]))
    assert made.ignored == {"(hidden)": len(hidden)}
    assert [member.key for member in made.shards[0].members()] == ["d/ok_.jpg"]


@pytest.mark.parametrize("name", ["a.tar.gz", "d/B.TGZ", "a.tar.zst", "a.tar.xz", "a.tar.bz2"])
def test_compressed_tars_are_refused_by_name(name: str):
    with pytest.raises(JobError, match=r"compressed tar.*\n.*uncompress") as refusal:
        planned(store(["ok.tar", name]))
    assert repr(name) in str(refusal.value)


@pytest.mark.parametrize(("kind", "form"), [("folder", "a.jpg"), ("parquet", "a.parquet")])
def test_a_compressed_tar_is_ignored_where_another_kind_is_asked_for(kind: str, form: str):
    made = planned(store([form, "old.tar.gz"]), kind=kind)
    assert [shard.path for shard in made.shards] == [form]
    assert made.ignored == {".gz": 1}


def test_an_empty_folder_is_an_empty_plan_and_a_missing_one_is_an_error(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    made = planned(str(tmp_path / "empty"))
    assert (made.shards, made.rows, made.bytes, made.ignored) == ([], 0, 0, {})
    with pytest.raises(NothingThere):
        planned(str(tmp_path / "missing"))


def test_a_folder_of_other_files_is_an_empty_plan_that_says_what_it_ignored():
    made = planned(store(["a.txt", "b.txt", "c.zip"]))
    assert made.shards == []
    assert made.ignored == {".txt": 2, ".zip": 1}


@pytest.mark.parametrize("name", ["one.jpg", "one.tar", "one.parquet"])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_the_url_of_one_file_plans_as_a_folder_that_holds_only_it(where: str, name: str, tmp_path: Path):
    root = str(tmp_path) if where == "local" else fresh()
    data = {"one.jpg": b"x", "one.tar": tar_of({"s.jpg": b"x"}), "one.parquet": parquet_of([b"x"])}[name]
    storage.put(storage.join(root, name), data)
    alone, among = planned(storage.join(root, name)), planned(root)
    assert [shard.id for shard in alone.shards] == [shard.id for shard in among.shards]
    assert [(item.key, item.data) for item in read_plan(alone)] == [(item.key, item.data) for item in read_plan(among)]
    assert [item.data for item in read_plan(alone)] == [b"x"]


def test_a_file_named_without_its_folder_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "one.tar").write_bytes(tar_of({"s.jpg": b"x"}))
    monkeypatch.chdir(tmp_path)
    assert [item.key for item in read_plan(planned("one.tar"))] == ["one.tar#s"]


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize("form", FORMS)
def test_every_image_is_one_item_and_the_plan_is_the_same_again_and_elsewhere(form: str):
    source, twin = images_in(form, 13), images_in(form, 13)
    made = planned(source, slice_images=3)
    items = read_plan(made)
    assert [item.data for item in items] == [bytes([number]) for number in range(13)]
    assert len({item.key for item in items}) == 13
    assert planned(source, slice_images=3) == made
    assert planned(source + "/", slice_images=3).shards[0].id == made.shards[0].id
    if form == "folder":  # memory:// puts the time into the version of a file
        return
    assert [(shard.path, shard.row_group) for shard in planned(twin).shards] == [
        (shard.path, shard.row_group) for shard in made.shards
    ]


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_keys_do_not_depend_on_where_the_source_lies(form: str, tmp_path: Path):
    source = images_in(form, 7)
    for file in storage.list_files(source):
        for folder in ("one", "two"):
            path = tmp_path / folder / file.path
            storage.put(str(path), storage.read_bytes(storage.join(source, file.path)))
            os.utime(path, ns=(10**18, 10**18))  # as a copy that keeps times does
    here, there = (planned(str(tmp_path / folder)) for folder in ("one", "two"))
    assert [shard.id for shard in here.shards] == [shard.id for shard in there.shards]
    assert [item.key for item in read_plan(here)] == [item.key for item in read_plan(there)]


def test_rows_and_bytes_are_told_when_known():
    slices, tars, groups = (planned(images_in(form, 13)) for form in FORMS)
    assert (slices.rows, slices.bytes) == (13, 13)
    assert tars.rows is None
    assert tars.bytes == sum(shard.size for shard in tars.shards)
    assert groups.rows == 13
    assert groups.bytes == sum({shard.path: shard.size for shard in groups.shards}.values())


def test_beyond_so_many_parquet_files_none_is_opened(monkeypatch: pytest.MonkeyPatch):
    source = images_in("parquet", 13)
    monkeypatch.setattr(parquet, "MAX_FOOTERS", 2)
    monkeypatch.setattr(storage, "open_read", None)
    assert [(shard.path, shard.row_group, shard.rows) for shard in planned(source).shards] == [
        (f"{number}.parquet", None, None) for number in range(3)
    ]
    monkeypatch.undo()
    assert [item.data[0] for item in read_plan(planned(source))] == list(range(13))


def test_a_damaged_parquet_file_is_planned_and_fails_when_read():
    made = planned(store({"a.parquet": parquet_of([b"x"]), "b.parquet": b"PAR1 garbage PAR1", "c.parquet": b""}))
    codes = {item.key: item.failure.code if item.failure else "ok" for item in read_plan(made)}
    assert codes == {"a.parquet#0": "ok", "b.parquet#": "bad_parquet", "c.parquet#": "bad_parquet"}


def test_names_that_collide_elsewhere_are_warned_of_and_kept():
    made = planned(store(["A.jpg", "a.jpg", "b.jpg"]))
    assert made.rows == 3
    assert len(made.warnings) == 1
    assert "'A.jpg' and 'a.jpg'" in made.warnings[0]


# ---------------------------------------------------------------- several sources


@pytest.mark.parametrize("form", FORMS)
def test_a_key_of_two_sources_is_refused_naming_both(form: str):
    one, two = images_in(form, 3), images_in(form, 3)
    with pytest.raises(JobError) as refusal:
        planned(one, two)
    path = next(storage.list_files(one)).path
    assert f"{one}/{path} and {two}/{path}" in str(refusal.value)
    assert "--read.on-duplicate suffix" in refusal.value.hint


@pytest.mark.parametrize("form", FORMS)
def test_suffix_keeps_both_under_keys_of_their_own(form: str):
    sources = [images_in(form, 3) for _ in range(3)]
    items = read_plan(planned(*sources, on_duplicate="suffix"), on_duplicate="suffix")
    assert [item.data for item in items] == [bytes([number]) for number in range(3)] * 3
    assert len({item.key for item in items}) == len(items)
    first = {"folder": "00.jpg", "webdataset": "0.tar", "parquet": "0.parquet"}[form]
    objects = [item.key.partition("#")[0] for item in items[::3]]
    assert objects == [first, f"{first}~2", f"{first}~3"]


def test_sources_of_different_kinds_are_read_one_after_the_other():
    sources = [images_in(form, 4) for form in FORMS]
    made = planned(*sources)
    kinds = [shard.kind for shard in made.shards]
    assert kinds == sorted(kinds, key=FORMS.index)
    assert [item.data[0] for item in read_plan(made)] == [0, 1, 2, 3] * 3


def test_the_same_source_twice_is_a_mistake():
    source = images_in("folder", 2)
    with pytest.raises(JobError, match="occurs twice"):
        planned(source, source)


# ---------------------------------------------------------------- limit


@given(st.sampled_from(FORMS), st.integers(1, 14), st.integers(1, 20), st.integers(1, 6))
@settings(max_examples=60)
def test_a_limit_takes_the_first_items_and_no_more(form: str, total: int, limit: int, slice_images: int):
    source = images_in(form, total)
    everything = read_plan(planned(source, slice_images=slice_images))
    some = planned(source, limit=limit, slice_images=slice_images)
    items = read_plan(some)
    assert some.rows == len(items) == min(limit, total)
    assert [(item.key, item.data) for item in items] == [(item.key, item.data) for item in everything[:limit]]
    for shard in some.shards:
        assert list(read(shard, config(source).read, max_bytes=10))[-1].shard_rows == shard.rows


def test_a_limit_spans_sources():
    sources = [images_in(form, 4) for form in FORMS]
    made = planned(*sources, limit=9)
    assert [item.data[0] for item in read_plan(made)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_limit_opens_no_file_behind_it(form: str, monkeypatch: pytest.MonkeyPatch):
    source = images_in(form, 60, per_file=1)
    opened = []
    real = storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda url, **how: opened.append(url) or real(url, **how))
    assert planned(source, limit=2).rows == 2
    assert len(opened) <= (2 if form == "webdataset" else parquet.FOOTERS_AT_ONCE)


@pytest.mark.parametrize("cut", [700, 1100, 1536, 2200])
def test_a_damaged_tar_counts_as_many_items_as_it_gives(cut: int):
    source = store({"a.tar": tar_of({"a.jpg": b"x" * 100, "b.jpg": b"x" * 600, "c.jpg": b"x"})[:cut]})
    made = planned(source, limit=10)
    items = read_plan(made)
    assert made.rows == len(items)
    assert items[-1].failure.code == "archive_truncated"


# ---------------------------------------------------------------- the stored plan


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_plan_has_one_row_per_shard(form: str):
    made = planned(images_in(form, 13), limit=9)
    table = made.to_table()
    assert table.schema == PLAN_SCHEMA
    for row, shard in zip(table.to_pylist(), made.shards, strict=True):
        assert row == {name: getattr(shard, name) for name in PLAN_SCHEMA.names}


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_changed_names_archives_that_were_replaced_and_nothing_else(form: str):
    source = images_in(form, 20)
    before = planned(source).to_table()
    assert changed(before, planned(source)) == []
    first, second, third, _ = (file.path for file in storage.list_files(source))
    storage.put(storage.join(source, third), storage.read_bytes(storage.join(source, first)) + b"x")
    storage.put(storage.join(source, f"new-{first}"), storage.read_bytes(storage.join(source, first)))
    storage.delete(storage.join(source, second))
    assert changed(before, planned(source)) == [third]


def test_slices_are_not_compared_as_archives():
    source = images_in("folder", 5)
    before = planned(source).to_table()
    storage.put(storage.join(source, "00.jpg"), b"longer")
    assert changed(before, planned(source)) == []


# ---------------------------------------------------------------- size

A_MILLION = """
import json, resource, time
from pipeline import storage
from pipeline.config import SegmentConfig
from pipeline.source.plan import plan
from pipeline.storage import FileInfo

names = (f"part-{number // 1000:04d}/shard-{number:07d}.tar" for number in range(1_000_000))
storage.list_files = lambda url: (FileInfo(name, 10**9, f"{hash(name):032x}") for name in names)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.monotonic()
made = plan(SegmentConfig(source="s3://bucket/tars", output="o", checkpoint="c"))
rows = made.to_table().num_rows
seconds = time.monotonic() - began
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = len({shard.id for shard in made.shards})
print(json.dumps({"rows": rows, "ids": ids, "seconds": seconds, "gib": after / 2**20, "gib_before": before / 2**20}))
"""


def test_a_million_tars_are_planned_and_tabled_on_a_laptop():
    done = subprocess.run([sys.executable, "-c", A_MILLION], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(found)
    assert found["rows"] == found["ids"] == 1_000_000
    assert found["seconds"] < 120
    assert found["gib"] < 2
