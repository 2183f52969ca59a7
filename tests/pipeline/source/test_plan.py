"""Planning: what counts as input, what two machines agree on, limits, and a million tars on a laptop."""

import io
import json
import subprocess
import sys
import tarfile
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ReadConfig, SegmentConfig
from pipeline.errors import JobError, StorageError
from pipeline.source import parquet
from pipeline.source.left_out import LeftOut
from pipeline.source.plan import MAX_WARNINGS, PLAN_SCHEMA, Plan, changed, plan_source, read_item, read_items
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.examples import examples


def put(files: dict[str, bytes], root: str = "") -> str:
    """Write files under a new root, and return it."""
    root = root or f"memory://plan-{uuid.uuid4().hex}"
    for path, data in files.items():
        objects.put(Url(root) / path, data)
    return root


def cfg(*source: str, limit: int | None = None, **options: object) -> SegmentConfig:
    return SegmentConfig(source=source, output="memory://out", checkpoint="x", limit=limit, read=ReadConfig(**options))


def tar_of(names: list[str], data: bytes = b"x") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def parquet_of(rows: int, group: int) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x"] * rows}), out, row_group_size=group)
    return out.getvalue()


def keys_of(made: Plan, options: ReadConfig | None = None) -> list[str]:
    return [item.key for shard in made.shards for item in read_items(shard, options or ReadConfig(), max_bytes=2**20)]


# ---------------------------------------------------------------- what is input


def test_a_folder_is_planned_with_every_image_once_and_the_rest_counted():
    images = ["a.jpg", "B.JPEG", "deep/er/c.Png", "d.webp", "e.tif", "f.tiff", "h #?.jpg", "_DSC1.JPG", "_in/x.jpg"]
    others = ["notes.txt", "more.TXT", "README", ".hidden.jpg", "._a.jpg", "deep/.git/y.jpg", "z.gif", "..g.jpg/x"]
    made = plan_source(cfg(put(dict.fromkeys(images + others, b"x"))))
    assert keys_of(made) == sorted(images)
    assert made.ignored == {".txt": 2, "(none)": 1, "(hidden)": 4, ".gif": 1}
    assert (made.rows, made.bytes) == (9, 9)


def test_images_in_formats_that_are_not_read_are_a_warning_and_other_files_are_none():
    made = plan_source(cfg(put(dict.fromkeys(["a.jpg", "b.HEIC", "c.heic", "d.dng", "e.txt"], b"x"))))
    assert made.warnings == ["images in formats that are not read: 2 .heic, 1 .dng; convert them to JPEG, PNG or TIFF"]
    assert plan_source(cfg(put(dict.fromkeys(["a.jpg", "e.txt", "thumbs.db"], b"x")))).warnings == []


def test_names_that_begin_with_an_underscore_are_images_in_every_kind_of_source():
    assert keys_of(plan_source(cfg(put({"_1.tar": tar_of(["_DSC1.jpg", "_in/_DSC2.jpg"])})))) == [
        "_1.tar#_DSC1",
        "_1.tar#_in/_DSC2",
    ]
    assert keys_of(plan_source(cfg(put({"_1.parquet": parquet_of(1, 1), "_/2.parquet": parquet_of(1, 1)})))) == [
        "_/2.parquet#0",
        "_1.parquet#0",
    ]


def test_the_bookkeeping_of_our_runs_and_of_tables_is_no_source():
    ours = ["run=0123456789ab/_run/plan.parquet", "run=0123456789ab/_SUCCESS", "_run/shards/1.parquet"]
    tables = ["_delta_log/1.checkpoint.parquet", "_temporary/0/1.parquet"]
    made = plan_source(cfg(put(dict.fromkeys(ours + tables, b"x") | {"_data.parquet": parquet_of(1, 1)})))
    assert keys_of(made) == ["_data.parquet#0"]
    assert made.ignored == {"(bookkeeping)": 4, "(none)": 1}
    assert keys_of(plan_source(cfg(put({"_run/_DSC1.jpg": b"x"})))) == ["_run/_DSC1.jpg"]


@pytest.mark.parametrize(
    ("files", "kind", "keys"),
    [
        ({"x/1.tar": tar_of(["b.jpg", "a.png"])}, "webdataset", ["x/1.tar#b", "x/1.tar#a"]),
        ({"1.PARQUET": parquet_of(3, 2), "notes.md": b""}, "parquet", [f"1.PARQUET#{n}" for n in range(3)]),
        ({"a.jpg": b"x"}, "folder", ["a.jpg"]),
    ],
    ids=["tar", "parquet", "folder"],
)
def test_the_kind_is_known_by_suffix_and_one_file_is_a_source_too(files, kind, keys):
    root = put(files)
    made = plan_source(cfg(root))
    assert {shard.kind for shard in made.shards} == {kind}
    assert keys_of(made) == keys
    alone = plan_source(cfg(f"{root}/{next(iter(files))}"))
    assert keys_of(alone) == [key.rpartition("/")[2] for key in keys]


def test_a_file_named_without_its_folder_is_a_source(tmp_path, monkeypatch):
    put({"one.tar": tar_of(["a.jpg"])}, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert keys_of(plan_source(cfg("one.tar"))) == ["one.tar#a"]


@pytest.mark.parametrize("name", ["1.jpg", "1.tar", "1.parquet"])
def test_one_file_alone_is_the_shard_it_is_in_its_folder(name, tmp_path):
    put({name: {"1.tar": tar_of(["a.jpg"]), "1.parquet": parquet_of(3, 2)}.get(name, b"x")}, str(tmp_path))
    among = [shard.id for shard in plan_source(cfg(str(tmp_path))).shards]
    for url in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}"):
        assert [shard.id for shard in plan_source(cfg(url)).shards] == among


def test_a_part_of_a_path_that_is_two_dots_hides_nothing(monkeypatch):
    """A legal key in S3."""
    monkeypatch.setattr(objects, "list_files", lambda url: iter([objects.FileInfo("../a.jpg", 1, "v1")]))
    assert [member.key for member in plan_source(cfg("s3://bucket/x")).shards[0].members()] == ["../a.jpg"]


def test_rows_and_bytes_are_told_when_known():
    made = plan_source(cfg(put(SOURCES["parquet"])))
    assert (made.rows, made.bytes) == (15, sum(len(data) for data in SOURCES["parquet"].values()))
    made = plan_source(cfg(put(SOURCES["webdataset"])))
    assert (made.rows, made.bytes) == (None, sum(len(data) for data in SOURCES["webdataset"].values()))


def test_a_folder_named_like_a_tar_is_a_folder(tmp_path):
    put({"x.tar": tar_of(["a.jpg"])}, str(tmp_path / "x.tar"))
    assert keys_of(plan_source(cfg(str(tmp_path / "x.tar")))) == ["x.tar#a"]


def test_mixed_kinds_are_refused_until_one_is_chosen():
    root = put({"a.jpg": b"x", "b.jpg": b"x", "1.tar": tar_of(["a.jpg"]), "2.parquet": parquet_of(1, 1)})
    with pytest.raises(JobError, match=r"2 for folder, 1 for parquet, 1 for webdataset[\s\S]*--read\.kind"):
        plan_source(cfg(root))
    assert keys_of(plan_source(cfg(root, kind="folder"))) == ["a.jpg", "b.jpg"]
    assert keys_of(plan_source(cfg(root, kind="webdataset"))) == ["1.tar#a"]
    made = plan_source(cfg(root, kind="parquet"))
    assert keys_of(made) == ["2.parquet#0"]
    assert made.ignored == {".jpg": 2, ".tar": 1}


@pytest.mark.parametrize("pair", [("a.jpg", "b.tar"), ("a.jpg", "b.parquet"), ("a.tar", "b.parquet")])
def test_two_kinds_are_already_a_mixture(pair):
    with pytest.raises(JobError, match="mixes kinds"):
        plan_source(cfg(put(dict.fromkeys(pair, b"x"))))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "deep/a.tar.zst"])
def test_compressed_tars_are_refused_not_left_out(name):
    root = put({name: b"x", "b.tar": tar_of(["a.jpg"])})
    with pytest.raises(JobError, match=r"compressed tar[\s\S]*uncompress"):
        plan_source(cfg(root))
    assert plan_source(cfg(put({name: b"x", "a.jpg": b"x"}), kind="folder")).rows == 1


@pytest.mark.parametrize(
    ("files", "options", "ignored"),
    [
        ([], {}, "nothing"),
        (
            ["a.yaml", "b.yaml", "c.yaml", "d.txt", ".e.jpg", "README"],
            {},
            "3 .yaml, 1 .txt, 1 hidden, 1 without suffix",
        ),
        (["a.gif", "b.heic"], {}, "1 .gif, 1 .heic"),
        (["a.jpg"], {"kind": "parquet"}, "1 .jpg"),
        (["a.tar", "b.tar"], {"kind": "folder"}, "2 .tar"),
    ],
)
def test_a_source_without_images_is_refused_with_what_it_holds(files, options, ignored, tmp_path):
    put(dict.fromkeys(files, b"x"), str(tmp_path))
    with pytest.raises(JobError) as refused:
        plan_source(cfg(str(tmp_path), **options))
    assert refused.value.message == f"no images in {tmp_path}; ignored: {ignored}"


def test_one_source_of_several_without_images_is_refused_by_its_name(tmp_path):
    with pytest.raises(JobError, match=f"no images in {tmp_path}; ignored: nothing"):
        plan_source(cfg(put({"a.jpg": b"x", "b.txt": b"x"}), str(tmp_path)))


def test_a_missing_source_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=f"nowhere/in \\({tmp_path}/nowhere/in\\)"):
        plan_source(cfg("nowhere/in"))


def test_names_that_other_file_systems_would_confuse_are_named():
    root = put(dict.fromkeys(["a/x.jpg", "a/X.jpg", "caf\u00e9.jpg", "cafe\u0301.jpg"], b"x"))
    made = plan_source(cfg(root, slice_images=1000))
    assert made.rows == 4
    assert [sorted(warning.split(" differ")[0].split(" and ")) for warning in made.warnings] == [
        sorted([repr("a/X.jpg"), repr("a/x.jpg")]),
        sorted([repr("cafe\u0301.jpg"), repr("caf\u00e9.jpg")]),
    ]


def test_many_parquet_files_are_planned_without_opening_them(monkeypatch):
    monkeypatch.setattr(parquet, "MAX_FOOTERS", 2)
    files = {f"{n}.parquet": parquet_of(4, 2) for n in range(3)}
    root = put(files)
    with monkeypatch.context() as patch:
        patch.setattr(objects, "open_read", None)
        made = plan_source(cfg(root))
    assert [(shard.row_group, shard.rows) for shard in made.shards] == [(None, None)] * 3
    assert made.rows is None
    assert keys_of(made) == [f"{name}#{row}" for name in files for row in range(4)]


def test_a_parquet_file_that_cannot_be_opened_is_planned_all_the_same():
    made = plan_source(cfg(put({"bad.parquet": b"x" * 100, "good.parquet": parquet_of(2, 2)})))
    assert keys_of(made) == ["bad.parquet#", "good.parquet#0", "good.parquet#1"]


@pytest.mark.parametrize("chosen", ["auto", "webdataset", "folder", "parquet"])
@pytest.mark.parametrize("name", ["a.tar.gz", "b.tgz", "c.tar.zst", "d.tar.xz", "e.TAR.BZ2"])
def test_compressed_tars_matter_where_tars_are_read(name, chosen):
    files = {name: b"x", "1.tar": tar_of(["a.jpg"]), "a.jpg": b"x", "1.parquet": parquet_of(1, 1)}
    root = put(files)
    if chosen in ("folder", "parquet"):
        assert plan_source(cfg(root, kind=chosen)).rows == 1
        return
    with pytest.raises(JobError, match=f"'{name}' is a compressed tar"):
        plan_source(cfg(root, kind=chosen))


def test_a_hidden_compressed_tar_is_left_out_as_hidden():
    made = plan_source(cfg(put({".cache/a.tar.gz": b"x", "a.jpg": b"x"})))
    assert (made.rows, made.ignored) == (1, {"(hidden)": 1})


def test_a_source_without_images_lists_the_suffixes_that_are_read():
    with pytest.raises(JobError) as refused:
        plan_source(cfg(put({"a.gif": b"x"})))
    for suffix in (".jpg", ".tiff", ".bmp", ".tar", ".parquet"):
        assert suffix in refused.value.hint
    with pytest.raises(JobError) as refused:
        plan_source(cfg(put({"a.gif": b"x"}), kind="webdataset"))
    assert refused.value.hint == "files to read: .tar"


def test_ignored_files_of_all_sources_are_counted_together():
    one, two = put({"a.jpg": b"x", "a.txt": b"x"}), put({"b.jpg": b"x", "b.txt": b"x", "c.md": b"x"})
    assert plan_source(cfg(one, two)).ignored == {".txt": 2, ".md": 1}


def test_warnings_end_at_twenty_over_all_slices():
    files = dict.fromkeys([f"{n:03}/{name}.jpg" for n in range(25) for name in "aA"], b"x")
    made = plan_source(cfg(put(files), slice_images=10))
    assert len(made.warnings) == MAX_WARNINGS == 20
    assert len(set(made.warnings)) == 20


def test_a_file_below_a_folder_of_its_own_name_is_found_there(tmp_path):
    """The URL ends with the path of the first file, and is a folder all the same."""
    put({"a.jpg/a.jpg": b"x", "a.jpg/b.jpg": b"x"}, str(tmp_path))
    assert keys_of(plan_source(cfg(str(tmp_path / "a.jpg")))) == ["a.jpg", "b.jpg"]
    put({"only/deep/b.jpg": b"x"}, str(tmp_path))
    assert keys_of(plan_source(cfg(str(tmp_path / "only")))) == ["deep/b.jpg"]


def test_parquet_files_are_opened_up_to_a_number_of_files_and_planned_by_row_group(monkeypatch):
    monkeypatch.setattr(parquet, "MAX_FOOTERS", 3)
    made = plan_source(cfg(put({f"{n}.parquet": parquet_of(4, 2) for n in range(3)})))
    assert [(shard.row_group, shard.rows) for shard in made.shards] == [(0, 2), (1, 2)] * 3


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_images_above_the_limit_of_bytes_are_failures_in_every_kind_of_source(kind):
    large, small = b"x" * 101, b"x" * 100
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [small, large]}), table)
    files = {
        "folder": {"1.jpg": small, "2.jpg": large},
        "webdataset": {"1.tar": tar_of(["1.jpg"], small), "2.tar": tar_of(["2.jpg"], large)},
        "parquet": {"1.parquet": table.getvalue()},
    }
    made = plan_source(cfg(put(files[kind])))
    items = [item for shard in made.shards for item in read_items(shard, ReadConfig(), max_bytes=100)]
    assert [item.failure and item.failure.code for item in items] == [None, "too_many_bytes"]
    assert [len(item.data) for item in items] == [100, 0]


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_images_to_skip_are_not_asked_for_in_any_kind_of_source(kind):
    made = plan_source(cfg(put(SOURCES[kind]), slice_images=1000))
    everything = keys_of(made)
    skip = frozenset(everything[::2])
    left = [item for shard in made.shards for item in read_items(shard, ReadConfig(), max_bytes=100, skip=skip)]
    assert [item.key for item in left] == everything[1::2]
    assert all(item.data for item in left)


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_each_item_can_be_read_again_alone_and_is_the_same(kind):
    made = plan_source(cfg(put(SOURCES[kind]), slice_images=1000))
    for shard in made.shards:
        for item in read_items(shard, ReadConfig(), max_bytes=100):
            again = read_item(shard, ReadConfig(), item.key, max_bytes=100)
            assert (again.key, again.data, again.etag) == (item.key, item.data, item.etag)
        assert read_item(shard, ReadConfig(), "nothing.jpg", max_bytes=100) is None


def test_members_of_tars_that_are_no_images_are_counted_for_the_caller():
    made = plan_source(cfg(put({"1.tar": tar_of(["a.jpg", "b.pkl", "c.jpg", "d.pkl"])})))
    left_out = LeftOut()
    items = list(read_items(made.shards[0], ReadConfig(), max_bytes=100, left_out=left_out))
    assert str(left_out) == "2 .pkl ('b.pkl')"
    assert [item.key for item in items if not item.failure] == ["1.tar#a", "1.tar#c"]


def test_images_of_a_folder_come_with_their_labels_where_these_are_asked_for():
    photos, labels = put({"a/1.jpg": b"photo"}), put({"a/1.png": b"label"})
    (shard,) = plan_source(cfg(photos)).shards
    for options, expected in ((ReadConfig(), None), (ReadConfig(labels=labels), b"label")):
        (item,) = read_items(shard, options, max_bytes=100)
        assert (item.data, item.label) == (b"photo", expected)


# ---------------------------------------------------------------- the same everywhere

SOURCES = {
    "folder": {f"{n % 5}/{n}.jpg": str(n).encode() for n in range(50)},
    "webdataset": {f"{n}.tar": tar_of([f"{n}.jpg"]) for n in range(5)},
    "parquet": {f"{n}.parquet": parquet_of(5, 2) for n in range(3)},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_ids_do_not_depend_on_where_the_source_is(kind, monkeypatch):
    original = objects.list_files

    def with_stable_etags(url: Url):
        return (objects.FileInfo(file.path, file.size, f"etag of {file.path}") for file in original(url))

    monkeypatch.setattr(objects, "list_files", with_stable_etags)
    monkeypatch.setattr(parquet, "MAX_FOOTERS", 0)
    here, there = (plan_source(cfg(put(SOURCES[kind]), slice_images=4)) for _ in range(2))
    assert [shard.id for shard in here.shards] == [shard.id for shard in there.shards]
    assert len({shard.id for shard in here.shards}) == len(here.shards) > 2


@pytest.mark.parametrize("kind", SOURCES)
def test_replacing_one_file_changes_only_its_own_ids(kind):
    root = put(SOURCES[kind])
    before = {shard.id: shard for shard in plan_source(cfg(root, slice_images=4)).shards}
    path = sorted(SOURCES[kind])[1]
    put({path: SOURCES[kind][path][:-1] + b"\1"}, root)
    after = {shard.id: shard for shard in plan_source(cfg(root, slice_images=4)).shards}
    for shard in [before[id_] for id_ in before.keys() - after.keys()]:
        assert path in ([shard.path] if kind != "folder" else [member.path for member in shard.members()])
    assert before.keys() != after.keys()


def test_what_changed_since_a_plan_is_named():
    root = put({f"{n}.tar": tar_of([f"{n}.jpg"]) for n in range(4)})
    before = plan_source(cfg(root)).to_table()
    assert changed(before, plan_source(cfg(root))) == []
    put({"1.tar": tar_of(["new.jpg"]), "9.tar": tar_of(["more.jpg"])}, root)
    objects.delete(Url(root) / "2.tar")
    assert changed(before, plan_source(cfg(root))) == ["1.tar"]
    photos = put({"a.jpg": b"x"})
    before = plan_source(cfg(photos)).to_table()
    put({"a.jpg": b"longer"}, photos)
    assert changed(before, plan_source(cfg(photos))) == []  # slices are compared row by row


def test_what_changed_is_found_however_its_source_is_spelled_and_sorted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put({f"{n}.tar": tar_of([f"{n}.jpg"]) for n in (3, 1, 2)}, str(tmp_path / "in"))
    before = plan_source(cfg("in")).to_table()
    put({f"{n}.tar": tar_of(["another.jpg"] * 9) for n in (3, 1)}, str(tmp_path / "in"))
    for spelling in ("in", "./in/", str(tmp_path / "in")):
        assert changed(before, plan_source(cfg(spelling))) == ["1.tar", "3.tar"]


def test_what_changed_in_several_sources_is_sorted_by_path():
    one, two = (put({name: tar_of(["a.jpg"])}) for name in ("2.tar", "1.tar"))
    before = plan_source(cfg(one, two)).to_table()
    put({"2.tar": tar_of(["b.jpg"])}, one)
    put({"1.tar": tar_of(["b.jpg"])}, two)
    assert changed(before, plan_source(cfg(one, two))) == ["1.tar", "2.tar"]


def test_the_same_path_of_another_source_is_no_change():
    one, two = put({"1.tar": tar_of(["a.jpg"])}), put({"1.tar": tar_of(["a.jpg", "b.jpg"])})
    assert changed(plan_source(cfg(one)).to_table(), plan_source(cfg(two))) == []


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_the_columns_of_a_plan_have_their_types_also_where_all_are_unknown(kind):
    for made in (plan_source(cfg(put(SOURCES[kind]))), Plan([])):
        assert made.to_table().schema == PLAN_SCHEMA


def test_a_plan_fits_a_parquet_file_that_anyone_can_read():
    made = plan_source(cfg(put(SOURCES["parquet"])))
    out = io.BytesIO()
    pq.write_table(made.to_table(), out)
    rows = pq.read_table(io.BytesIO(out.getvalue())).to_pylist()
    assert [(row["id"], row["path"], row["row_group"], row["rows"]) for row in rows] == [
        (shard.id, shard.path, shard.row_group, shard.rows) for shard in made.shards
    ]


# ---------------------------------------------------------------- several sources


def same_key_sources() -> tuple[str, str]:
    return put({"a.jpg": b"1", "b.jpg": b"2"}), put({"b.jpg": b"3", "c.jpg": b"4"})


def test_one_key_in_two_sources_is_refused_by_both_urls():
    one, two = same_key_sources()
    with pytest.raises(JobError) as caught:
        plan_source(cfg(one, two))
    for said in ("'b.jpg'", f"{one}/b.jpg", f"{two}/b.jpg", "--read.on-duplicate"):
        assert said in str(caught.value)


def test_the_second_of_two_sources_is_named_with_the_first_that_had_the_key():
    one, two, three = put({"a.jpg": b"1"}), put({"b.jpg": b"2"}), put({"a.jpg": b"3"})
    with pytest.raises(JobError, match=f"'a.jpg' occurs twice: {one}/a.jpg and {three}/a.jpg"):
        plan_source(cfg(one, two, three))


@pytest.mark.parametrize("kind", SOURCES)
def test_one_source_given_twice_can_be_kept_twice(kind):
    root = put(SOURCES[kind])
    options = ReadConfig(on_duplicate="suffix", slice_images=4)
    made = plan_source(cfg(root, root, root, **options.model_dump()))
    once = keys_of(plan_source(cfg(root, slice_images=4)))
    keys = keys_of(made, options)
    assert len(keys) == len(set(keys)) == 3 * len(once)
    assert len({shard.id for shard in made.shards}) == len(made.shards)
    for copy in (2, 3):
        numbered = [f"{key}~{copy}" if kind == "folder" else key.replace("#", f"~{copy}#") for key in once]
        assert keys[(copy - 1) * len(once) : copy * len(once)] == numbered


def test_kinds_may_differ_between_sources():
    tars, photos = put({"1.tar": tar_of(["a.jpg"])}), put({"a.jpg": b"x"})
    assert keys_of(plan_source(cfg(tars, photos))) == ["1.tar#a", "a.jpg"]


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("kind", SOURCES)
@given(limit=st.integers(1, 60))
@examples(25)
def test_a_limit_gives_the_first_keys_of_the_whole(kind, limit):
    root = put(SOURCES[kind])
    everything = keys_of(plan_source(cfg(root, slice_images=4)))
    made = plan_source(cfg(root, limit=limit, slice_images=4))
    assert keys_of(made) == everything[:limit]
    assert made.rows == min(limit, len(everything))
    for shard in made.shards:
        items = list(read_items(shard, ReadConfig(), max_bytes=100))
        assert items[-1].shard_rows == len(items) == shard.rows


@pytest.mark.parametrize("kind", SOURCES)
@given(limit=st.integers(1, 15), committed=st.sets(st.integers(0, 14)))
@examples(25)
def test_resuming_within_a_limit_gives_what_is_left_of_it(kind, limit, committed):
    made = plan_source(cfg(put(SOURCES[kind]), limit=limit, slice_images=4))
    skip = {key for number, key in enumerate(keys_of(made)) if number in committed}
    for shard in made.shards:
        everything = list(read_items(shard, ReadConfig(), max_bytes=100))
        mine = frozenset(item.key for item in everything if item.key in skip)
        rest = list(read_items(shard, ReadConfig(), max_bytes=100, skip=mine))
        assert [item.key for item in rest] == [item.key for item in everything if item.key not in skip]
        assert [item.shard_rows for item in rest][-1:] == [shard.rows] * bool(rest)


def test_a_limit_spans_sources():
    made = plan_source(cfg(put(SOURCES["webdataset"]), put(SOURCES["parquet"]), limit=8))
    assert keys_of(made) == [f"{n}.tar#{n}" for n in range(5)] + [f"0.parquet#{n}" for n in range(3)]


def test_a_limit_counts_failures_too():
    cut = tar_of(["a.jpg", "b.jpg"], b"x" * 700)[: 512 + 1024 + 512 + 100]
    root = put({"1.tar": cut, "2.tar": b"nonsense", "3.tar": tar_of(["c.jpg"]), "4.parquet": b""})
    expected = ["1.tar#a", "1.tar#", "2.tar#", "3.tar#c"]
    for limit in range(1, 5):
        made = plan_source(cfg(root, kind="webdataset", limit=limit))
        assert (keys_of(made), made.rows) == (expected[:limit], limit)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_limit_opens_no_more_files_than_it_needs(kind, monkeypatch):
    data = tar_of(["a.jpg", "b.jpg"]) if kind == "webdataset" else parquet_of(2, 2)
    root = put({f"{n:03}.{'tar' if kind == 'webdataset' else kind}": data for n in range(100)})
    opened = []
    original = objects.open_read
    monkeypatch.setattr(objects, "open_read", lambda url, **known: (opened.append(url), original(url, **known))[1])
    assert plan_source(cfg(root, limit=3)).rows == 3
    assert len(opened) <= (2 if kind == "webdataset" else parquet.FOOTERS_AT_ONCE)


# ---------------------------------------------------------------- a million tars

MILLION = """
import json, sys, time
from pipeline.process_memory import peak_bytes
from pipeline.config import SegmentConfig
from pipeline.store import backend, objects
from pipeline.source.plan import changed, plan_source

def listing(url):
    for n in range(1_000_000):
        yield backend.FileInfo(f"train/{n // 1000:04}/laion-{n:08}.tar", 300_000_000 + n, f"{n:032x}")

objects.list_files = listing
began = time.process_time()
made = plan_source(SegmentConfig(source=tuple(sys.argv[1:]), output="memory://o", checkpoint="x",
                                 read={"on_duplicate": "suffix"}))
planned_s = time.process_time() - began
table = made.to_table()
assert changed(table, made) == []
print(json.dumps({"shards": len(made.shards), "ids": len({s.id for s in made.shards}), "planned_s": planned_s,
                  "total_s": time.process_time() - began, "peak_gib": peak_bytes() / 2**30}))
"""


@pytest.mark.slow
def test_a_million_tars_are_planned_in_two_minutes_of_processor_and_2_gib():
    said = subprocess.run([sys.executable, "-c", MILLION, "s3://bucket"], capture_output=True, text=True, check=True)
    figures = json.loads(said.stdout)
    assert figures["shards"] == figures["ids"] == 1_000_000
    assert figures["peak_gib"] < 2
    assert figures["total_s"] < 120
