"""Every shape an image column comes in, every way a file is damaged, and types that must never be made."""

import io
import re
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ReadConfig
from pipeline.errors import InputError
from pipeline.records import Item
from pipeline.source import parquet
from pipeline.source.parquet import read_parquet_footer, row_groups
from pipeline.source.plan import read_items
from pipeline.source.shard import Shard, object_shard
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.examples import examples

IMAGES = [f"image {n}".encode() for n in range(40)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def file_of(table: pa.Table, **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **{"row_group_size": 10, "write_page_checksum": True} | options)
    return out.getvalue()


def shards_of(data: bytes) -> list[Shard]:
    root = Url(f"memory://parquet-{uuid.uuid4().hex}")
    objects.put(root / "a.parquet", data)
    whole = object_shard("parquet", root.raw, objects.info(root / "a.parquet"))
    return list(row_groups([whole]))


def read_all(data: bytes, *, max_bytes: int = 2**20, skip: frozenset[str] = frozenset(), **cfg: str) -> list[Item]:
    return [
        item
        for shard in shards_of(data)
        for item in read_items(shard, ReadConfig(**cfg), max_bytes=max_bytes, skip=skip)
    ]


def code_of(data: bytes, **cfg: str) -> tuple[str, str]:
    """Code and detail of a file that must be one failure."""
    (item,) = read_all(data, **cfg)
    assert re.fullmatch(r"a\.parquet#(row_group=\d+)?", item.key)
    assert item.shard_rows == 1
    return item.failure.code, item.failure.detail


@pytest.mark.parametrize("rows_per_page", [1, 20_000])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array([{"bytes": one, "path": "same.jpg"} for one in IMAGES], STRUCT),
        pa.array([{"path": "p", "bytes": one, "size": 1} for one in IMAGES]),
    ],
    ids=["binary", "large_binary", "huggingface", "other fields"],
)
def test_rows_come_in_order_one_shard_per_row_group(column, rows_per_page):
    data = file_of(pa.table({"label": range(40), "image": column}), max_rows_per_page=rows_per_page)
    shards = shards_of(data)
    assert [(shard.row_group, shard.rows) for shard in shards] == [(n, 10) for n in range(4)]
    assert len({shard.id for shard in shards}) == 4
    items = [item for shard in shards for item in read_items(shard, ReadConfig(), max_bytes=2**20)]
    assert [(item.key, item.data) for item in items] == [(f"a.parquet#{n}", one) for n, one in enumerate(IMAGES)]
    assert [item.shard_rows for item in items] == ([None] * 9 + [10]) * 4


def test_a_file_read_whole_gives_the_same_keys():
    data = file_of(pa.table({"image": IMAGES}))
    (first, *_) = shards_of(data)
    whole = object_shard("parquet", first.root, objects.info(first.url))
    items = list(read_items(whole, ReadConfig(), max_bytes=100))
    assert [(item.key, item.data) for item in items] == [(one.key, one.data) for one in read_all(data)]
    assert items[-1].shard_rows == 40


def test_cells_without_an_image_are_failures_of_their_own():
    cells = [None, {"bytes": None, "path": "elsewhere.jpg"}, {"bytes": b"", "path": None}, {"bytes": b"x" * 11}]
    items = read_all(file_of(pa.table({"image": pa.array([*cells, {"bytes": b"good"}], STRUCT)})), max_bytes=10)
    assert [item.failure.code if item.failure else item.data for item in items] == [
        "empty",
        "empty",
        "empty",
        "too_many_bytes",
        b"good",
    ]


@given(st.sets(st.integers(0, 39)))
@examples(20)
def test_reading_with_skip_is_reading_less_skip(rows):
    for shard in shards_of(file_of(pa.table({"image": IMAGES}))):
        mine = {row for row in rows if row // 10 == shard.row_group}
        skip = frozenset(f"a.parquet#{row}" for row in mine)
        items = list(read_items(shard, ReadConfig(), max_bytes=100, skip=skip))
        left = [row for row in range(10 * shard.row_group, 10 * shard.row_group + 10) if row not in mine]
        assert [(item.key, item.data) for item in items] == [(f"a.parquet#{row}", IMAGES[row]) for row in left]
        assert [item.shard_rows for item in items][-1:] == [10] * bool(left)


# ---------------------------------------------------------------- columns


def test_the_only_column_of_bytes_is_taken_whatever_its_name():
    items = read_all(file_of(pa.table({"label": range(40), "jpg": IMAGES})))
    assert [item.data for item in items] == IMAGES


@pytest.mark.parametrize(
    "table",
    [
        {"one": IMAGES, "two": IMAGES},
        {"image": ["text"] * 40, "other": IMAGES},
        {"label": range(40)},
        {"image": [{"path": "x.jpg"}] * 40},
    ],
    ids=["two candidates", "text", "none", "struct without bytes"],
)
def test_a_file_without_a_clear_image_column_names_its_columns(table):
    for item in read_all(file_of(pa.table(table), row_group_size=40)):
        assert item.failure.code == "bad_parquet"
        assert all(f"{name}: " in item.failure.detail for name in table)
        assert "--read.image-column" in item.failure.detail


def test_the_option_chooses_among_several_columns():
    items = read_all(file_of(pa.table({"one": [b"x"] * 40, "two": IMAGES})), image_column="two")
    assert [item.data for item in items] == IMAGES


# ---------------------------------------------------------------- damage


def test_a_file_cut_anywhere_is_one_failure():
    data = file_of(pa.table({"image": IMAGES}))
    for at in range(1, len(data), 97):
        assert code_of(data[:at])[0] == "bad_parquet"


@pytest.mark.parametrize("data", [b"", b"PAR1", b"<html>", b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1"])
def test_what_is_not_parquet_is_one_failure(data):
    assert code_of(data)[0] in ("bad_parquet", "empty")


def test_a_file_without_rows_is_one_failure():
    assert code_of(file_of(pa.table({"image": pa.array([], pa.binary())})))[0] == "empty_archive"


@given(st.integers(4, 2**31), st.integers(0, 7))
@examples(150)
def test_a_flipped_bit_never_changes_an_image_quietly(position, bit):
    """With page checksums every row is right or its shard ends in a failure; only page headers have no checksum."""
    data = bytearray(file_of(pa.table({"image": IMAGES}), compression="none", use_dictionary=False))
    footer_at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4 + position % (footer_at - 4)] ^= 1 << bit
    expected = {f"a.parquet#{n}": one for n, one in enumerate(IMAGES)}
    for shard in shards_of(bytes(data)):
        *items, last = read_items(shard, ReadConfig(), max_bytes=2**20)
        assert all(item.data == expected[item.key] for item in items)
        assert last.failure.code == "bad_parquet" if last.failure else last.data == expected[last.key]
        assert last.shard_rows == len(items) + 1 <= 11
        assert last.failure or last.shard_rows == 10


def test_a_flipped_bit_in_a_page_is_found_by_its_checksum():
    data = file_of(pa.table({"image": IMAGES}), compression="none", use_dictionary=False)
    at = data.index(b"image 25")
    items = read_all(data[:at] + b"X" + data[at + 1 :])
    assert [item.key for item in items if item.failure] == ["a.parquet#row_group=2"]
    assert "CRC" in items[-11].failure.detail
    assert [item.data for item in items if not item.failure] == IMAGES[:20] + IMAGES[30:]


@given(st.integers(0, 2**31), st.integers(0, 7))
@examples(300)
def test_a_flipped_bit_in_the_footer_never_loses_a_row_quietly(position, bit):
    """The footer has no checksum: Arrow itself reads fewer rows without a word."""
    data = bytearray(file_of(pa.table({"image": IMAGES})))
    length = int.from_bytes(data[-8:-4], "little") + 8
    data[len(data) - length + position % length] ^= 1 << bit
    shards = [list(read_items(shard, ReadConfig(), max_bytes=100)) for shard in shards_of(bytes(data))]
    assert all(items and items[-1].shard_rows == len(items) for items in shards)
    items = [item for items in shards for item in items]
    assert len({item.key for item in items}) == len(items)
    assert [item.data for item in items] == IMAGES or any(item.failure for item in items)


@pytest.mark.parametrize("total", [39, 40, 41])
def test_row_counts_that_disagree_are_one_failure(total):
    """The 40 rows of the groups against the number the footer gives for the file."""
    data = bytearray(file_of(pa.table({"image": IMAGES})))
    footer_at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    field = data.index(bytes([0x16, 40 * 2, 0x19]), footer_at)  # thrift: an i64, zigzag, before the list of row groups
    data[field + 1] = total * 2
    items = read_all(bytes(data))
    if total == 40:
        assert [item.data for item in items] == IMAGES
    else:
        assert [(item.key, item.failure.code) for item in items] == [("a.parquet#", "bad_parquet")]
        assert f"{total} rows" in items[0].failure.detail


def test_pages_that_hold_fewer_rows_than_the_footer_says_are_a_failure():
    """The pages of 40 rows of 6 bytes under the footer of 50 rows of 4 bytes: both take 10 bytes a row or 8."""

    def halves(rows: int, size: int) -> tuple[bytes, bytes]:
        data = file_of(pa.table({"image": [b"x" * size] * rows}), **plain)
        at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        return data[:at], data[at:]

    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "row_group_size": 50}
    (pages, _), (longer, footer) = halves(40, 6), halves(50, 4)
    assert len(pages) == len(longer)
    *items, last = read_all(pages + footer)
    assert all(item.data == b"x" * 6 for item in items)
    assert last.failure.code == "bad_parquet"


@given(st.binary(max_size=300), st.integers(0, 2**31))
@examples(150)
def test_nothing_but_input_errors_comes_out_of_a_damaged_footer(noise, position):
    data = file_of(pa.table({"image": IMAGES}))
    length = int.from_bytes(data[-8:-4], "little")
    footer = bytearray(data[-8 - length : -8])
    at = position % length
    footer[at : at + len(noise)] = noise
    damaged = data[: -8 - length] + bytes(footer) + len(footer).to_bytes(4, "little") + b"PAR1"
    for item in read_all(damaged):
        assert item.failure is None or item.failure.code in ("bad_parquet", "empty_archive", "empty")


def test_a_file_that_is_gone_or_replaced_is_one_failure_per_row_group():
    shards = shards_of(file_of(pa.table({"image": IMAGES})))
    objects.put(shards[0].url, file_of(pa.table({"image": IMAGES[:5]})))
    assert [item.failure.code for shard in shards for item in read_items(shard, ReadConfig(), max_bytes=9)] == [
        "source_changed"
    ] * 4
    objects.delete(shards[0].url)
    gone = [item for shard in shards for item in read_items(shard, ReadConfig(), max_bytes=9)]
    assert {item.failure.code for item in gone} == {"not_found"}
    assert len({item.key for item in gone}) == 4


# ---------------------------------------------------------------- extension types


class _Recorder(pa.ExtensionType):
    """An extension type whose making is what an attacker wants: `made` must stay empty."""

    made: list[bytes] = []  # noqa: RUF012

    def __init__(self, before: str) -> None:
        self.before = before
        super().__init__(pa.binary(), f"{before}.recorder")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        cls.made.append(serialized)
        return cls("")


@pytest.mark.parametrize("name", ["x", "xy", "xyz"])
@pytest.mark.parametrize("column", ["image", "another column", "c" * 11])
def test_an_extension_type_is_refused_before_arrow_makes_it(name, column):
    kind = _Recorder(name)
    pa.register_extension_type(kind)
    try:
        data = file_of(pa.table({"label": range(40), column: pa.ExtensionArray.from_storage(kind, pa.array(IMAGES))}))
        _Recorder.made.clear()
        code, detail = code_of(data)
        assert (code, "extension type" in detail) == ("bad_parquet", True)
        assert _Recorder.made == []
        pq.read_metadata(io.BytesIO(data))
        assert _Recorder.made, "Arrow no longer makes the type here: the test proves nothing"
    finally:
        pa.unregister_extension_type(kind.extension_name)


def test_the_types_of_ray_are_refused_where_ray_is_not_loaded():
    field = pa.field("image", pa.binary(), metadata={"ARROW:extension:name": "ray.data.arrow_tensor"})
    assert code_of(file_of(pa.table([pa.array(IMAGES)], schema=pa.schema([field]))))[0] == "bad_parquet"


# ---------------------------------------------------------------- cost


def test_a_footer_larger_than_the_first_read_is_read_whole(monkeypatch):
    monkeypatch.setattr(parquet, "TAIL_BYTES", 16)
    assert [item.data for item in read_all(file_of(pa.table({"image": IMAGES})))] == IMAGES


def test_a_footer_costs_two_reads_at_most():
    class Counted(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            return super().read(size)

    file = Counted(file_of(pa.table({"image": IMAGES})))
    assert read_parquet_footer(file).num_rows == 40
    assert file.reads == 1


def test_a_footer_that_claims_gigabytes_is_not_allocated():
    with pytest.raises(InputError, match="limit 268435456"):
        read_parquet_footer(io.BytesIO(bytes(100) + (2**31).to_bytes(4, "little") + b"PAR1"))


def test_row_groups_are_planned_only_as_far_as_asked(monkeypatch):
    opened = []
    monkeypatch.setattr(parquet, "_row_groups_of", lambda shard: opened.append(shard) or [shard])
    (shard, *_) = shards_of(b"")
    next(row_groups([shard] * 1000))
    assert len(opened) <= 2 * parquet.FOOTERS_AT_ONCE


def test_a_row_group_is_streamed():
    """100 MB in one row group pass through a reader that holds a page and a few rows: Arrow's own pool is measured."""
    table = pa.table({"image": [bytes([n]) * 2**20 for n in range(100)]})
    data = file_of(table, row_group_size=100, write_batch_size=1, compression="none", use_dictionary=False)
    (shard,) = shards_of(data)
    del table, data
    before, peak = pa.total_allocated_bytes(), 0
    for item in read_items(shard, ReadConfig(), max_bytes=2**20):
        assert len(item.data) == 2**20
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 80 * 2**20


# ---------------------------------------------------------------- labels and names

LABELS = [None if n == 3 else f"label {n}".encode() for n in range(40)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), STRUCT])
@pytest.mark.parametrize("label_first", [True, False])
def test_labels_come_with_the_images_of_their_rows(kind, label_first):
    cells = [label and {"bytes": label, "path": "x"} for label in LABELS] if kind is STRUCT else LABELS
    columns = {"label": pa.array(cells, kind), "image": IMAGES}
    table = pa.table(columns if label_first else dict(reversed(columns.items())))
    items = read_all(file_of(table), labels="label")
    assert [(item.data, item.label) for item in items] == list(zip(IMAGES, LABELS, strict=True))
    assert [item.label for item in read_all(file_of(table), image_column="image")] == [None] * 40


def test_the_column_of_labels_is_never_taken_for_that_of_images():
    table = pa.table({"photo": IMAGES, "mask": LABELS})
    assert [item.data for item in read_all(file_of(table), labels="mask")] == IMAGES
    code, detail = code_of(file_of(table.select(["mask"])[:9]), labels="mask")
    assert (code, "'image'" in detail) == ("bad_parquet", True)


def test_a_column_of_labels_that_is_not_there_is_named():
    code, detail = code_of(file_of(pa.table({"image": IMAGES[:9]})), labels="mask")
    assert code == "bad_parquet"
    assert "'mask'" in detail
    assert "--read.labels" in detail


def test_a_label_that_cannot_be_used_fails_its_row_alone():
    items = read_all(
        file_of(pa.table({"image": IMAGES[:3], "label": [b"", b"x" * 99, b"fine"]})), labels="label", max_bytes=50
    )
    assert [item.failure and item.failure.code for item in items] == ["empty", "too_many_bytes", None]
    assert [(item.data, item.label) for item in items] == [(b"", None), (b"", None), (IMAGES[2], b"fine")]


def test_rows_are_named_by_a_column_where_there_is_one_and_it_says_something():
    names = [None if n == 5 else f"field {n}" for n in range(40)]
    table = pa.table({"image": IMAGES, "key": pa.array(names, pa.string())})
    keys = [item.key for item in read_all(file_of(table), key_column="key")]
    assert keys == [f"a.parquet#{n if name is None else name}" for n, name in enumerate(names)]
    kept = read_all(file_of(table), key_column="key", skip=frozenset(keys[1:]))
    assert [item.data for item in kept] == IMAGES[:1]
    without = file_of(table.select(["image"]))
    assert [item.key for item in read_all(without, key_column="key")] == [f"a.parquet#{n}" for n in range(40)]
