import io
import json
import random
import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.errors import StorageError
from pipeline.records import ROW_SCHEMA, Row, rows_from_table, rows_to_table
from pipeline.run import parts
from pipeline.run.parts import Part
from pipeline.store.url import Url

FARM = classes.load_class_map("farmland")


def row(key: str, shard: str = "s", **fields) -> Row:
    return Row(key=key, status="ok", shard=shard, source_etag="e", model_fp="m", config_fp="c", **fields)


def encoded(table: pa.Table, class_map: ClassMap) -> bytes:
    return parts.encode_part(table, class_map, parts.describe_part(table))


def footer_at(run: object) -> Part:
    return parts.read_part_footer(Url(str(run)), "part-0.parquet")


@given(st.lists(st.text(max_size=8), unique=True), st.randoms(use_true_random=False))
def test_the_name_depends_on_the_keys_and_not_on_their_order(keys: list[str], rng: random.Random) -> None:
    shuffled = rng.sample(keys, len(keys))
    assert parts.part_name(keys) == parts.part_name(shuffled)
    if keys:
        assert parts.part_name(keys) != parts.part_name(keys[1:])


def test_a_part_is_named_by_20_digits_and_found_by_its_name_alone(tmp_path) -> None:
    names = sorted(parts.write_part(Url(str(tmp_path)), rows_to_table([row(key)]), FARM).name for key in "abc")
    assert all(re.fullmatch(r"part-[0-9a-f]{20}\.parquet", name) for name in names)
    for other in ("part-0.parquet.tmp", "notes.parquet", ".part-1.parquet", "part-0"):
        (tmp_path / "parts" / other).write_bytes(b"")
    assert parts.list_parts(Url(str(tmp_path))) == names
    assert {path.name for path in tmp_path.iterdir()} == {"parts"}


def test_no_two_lists_of_keys_are_confused_by_what_stands_between_them() -> None:
    assert len({parts.part_name(keys) for keys in (["ab"], ["a", "b"], ['a", "b'], ["a,b"], ["a\nb"])}) == 5


def test_a_part_holds_its_rows_sorted_with_checksums_and_explains_itself() -> None:
    data = encoded(rows_to_table([row("b"), row("c", shard_rows=3), row("a")]), FARM)
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    assert [one.key for one in rows_from_table(file.read())] == ["a", "b", "c"]
    assert file.schema_arrow.names == ROW_SCHEMA.names
    metadata = file.schema_arrow.metadata
    assert json.loads(metadata[parts.CLASSES_KEY])["name"] == "farmland"
    assert json.loads(metadata[parts.SHARDS_KEY]) == {"s": [3, 3]}


def test_texts_have_dictionaries_and_images_none_and_only_keys_have_statistics() -> None:
    """Masks are compressed already and differ: a dictionary of them would be built in vain."""
    rows = [row(key, mask=bytes([at]) * 50, preview_image=b"p") for at, key in enumerate("abc")]
    group = pq.read_metadata(io.BytesIO(encoded(rows_to_table(rows), FARM))).row_group(0)
    columns = {group.column(at).path_in_schema: group.column(at) for at in range(group.num_columns)}
    for name, column in columns.items():
        assert ("RLE_DICTIONARY" in column.encodings) == (name in parts.TEXT_COLUMNS), name
        assert column.is_stats_set == (name == "key"), name
        assert column.compression == "ZSTD", name
    assert {"mask", "preview_image", *parts.TEXT_COLUMNS} < set(columns)


class Counted(io.BytesIO):
    """A file that counts the bytes read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_of_a_part_no_more_is_read_than_is_asked_for(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Footers and columns of a part with a large mask; those of an older version without counts of failures too."""
    noise = random.Random(0).randbytes(2**20)
    data = encoded(rows_to_table([row("a", mask=noise), failed_row("b", "corrupt")]), FARM)
    older = pq.read_table(io.BytesIO(data))
    kept = {name: text for name, text in older.schema.metadata.items() if name != parts.TOTALS_KEY}
    pq.write_table(older.replace_schema_metadata(kept), old := io.BytesIO())
    for content in (data, old.getvalue()):
        calls = {
            "footer": lambda: (
                parts.read_part_footer(Url("memory://run"), "part-0.parquet").totals.error_codes == {"corrupt": 1}
            ),
            "classes": lambda: parts.read_classes(Url("memory://run"), "part-0.parquet") == FARM,
            "columns": lambda: parts.read_columns(Url("memory://run"), "p", ["key"]).column_names == ["key"],
        }
        for name, call in calls.items():
            file = Counted(content)
            monkeypatch.setattr(parts.objects, "open_read", lambda _, file=file: file)
            assert call(), name
            assert 0 < file.count < 2**18, name


def failed_row(key: str, code: str) -> Row:
    return replace(row(key), status="failed", error_code=code)


def test_a_flipped_byte_in_a_part_is_noticed(tmp_path) -> None:
    name = parts.write_part(Url(str(tmp_path)), rows_to_table([row("a", mask=bytes(range(256)) * 20)]), FARM).name
    path = tmp_path / "parts" / name
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match=r"is damaged: .*(CRC|corrupt|checksum)"):
        parts.read_columns(Url(str(tmp_path)), name, ROW_SCHEMA.names)


def test_footers_count_rows_per_shard_without_reading_one(tmp_path) -> None:
    table = rows_to_table([row("a", "s1"), row("b", "s1", shard_rows=9), row("c", "s2")])
    name = parts.write_part(Url(str(tmp_path)), table, FARM).name
    part = parts.read_part_footer(Url(str(tmp_path)), name)
    assert (part.name, part.totals.rows) == (name, 3)
    assert part.shards == {"s1": parts.ShardCount(2, 9), "s2": parts.ShardCount(1, None)}
    assert (part.totals.error_codes, part.owner) == ({}, None)


@pytest.mark.parametrize("written", [True, False])
def test_footers_have_totals_and_those_of_an_older_version_are_counted_from_the_rows(written: bool, tmp_path) -> None:
    codes = {"a": "corrupt", "b": "empty", "c": "corrupt"}
    failed = [replace(row(key), status="failed", error_code=code) for key, code in codes.items()]
    data = encoded(rows_to_table([*failed, row("d")]), FARM)
    if not written:
        table = pq.read_table(io.BytesIO(data))
        kept = {name: text for name, text in table.schema.metadata.items() if name != parts.TOTALS_KEY}
        pq.write_table(table.replace_schema_metadata(kept), out := io.BytesIO())
        data = out.getvalue()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/part-0.parquet").write_bytes(data)
    assert (
        parts.read_part_footer(Url(str(tmp_path)), "part-0.parquet").totals
        == parts.describe_part(rows_to_table([*failed, row("d")])).totals
    )


def test_the_class_map_of_a_part_is_the_one_it_was_written_with(tmp_path) -> None:
    for name in ("farmland", "camvid"):
        written = classes.load_class_map(name)
        part = parts.write_part(Url(str(tmp_path)), rows_to_table([row(name)]), written).name
        assert parts.read_classes(Url(str(tmp_path)), part) == written


def test_shards_are_counted_in_the_order_of_their_ids_with_their_own_totals() -> None:
    rows = [row("a", "s2"), row("b", "s1", shard_rows=4), row("c", "s2", shard_rows=2), row("d", "s3")]
    found = parts.count_shards(rows_to_table(rows))
    expected = {"s1": parts.ShardCount(1, 4), "s2": parts.ShardCount(2, 2), "s3": parts.ShardCount(1, None)}
    assert found == expected
    assert list(found) == ["s1", "s2", "s3"]


def test_a_part_of_a_version_without_a_column_can_be_read_and_written_anew(tmp_path) -> None:
    table = rows_to_table([row("a"), row("b")]).drop_columns(["inference"])
    name = parts.write_part(Url(str(tmp_path)), table, FARM).name
    old = parts.read_columns(Url(str(tmp_path)), name, ROW_SCHEMA.names)
    assert [one.inference for one in rows_from_table(old)] == [None, None]
    again = parts.write_part(Url(str(tmp_path)), old.slice(0, 1), FARM).name
    assert parts.read_part_footer(Url(str(tmp_path)), again).totals.rows == 1


def test_writing_the_same_rows_again_changes_nothing(tmp_path) -> None:
    table = rows_to_table([row("a"), row("b")])
    names = {parts.write_part(Url(str(tmp_path)), table, FARM).name for _ in range(3)}
    assert parts.list_parts(Url(str(tmp_path))) == sorted(names)
    assert len(names) == 1


def test_a_run_without_parts_lists_none(tmp_path) -> None:
    assert parts.list_parts(Url(str(tmp_path / "nothing"))) == []


def test_a_part_is_read_a_few_rows_at_a_time_in_bounded_memory(tmp_path) -> None:
    url = Url(str(tmp_path))
    masks = [random.Random(number).randbytes(2**18) for number in range(100)]
    rows = [row(f"{number:03}", mask=mask) for number, mask in enumerate(masks)]
    name = parts.write_part(url, rows_to_table(rows), FARM).name
    most, read = 0, []
    before = pa.total_allocated_bytes()
    for batch in parts.read_batches(url, name, ["mask"], rows=4):
        most = max(most, pa.total_allocated_bytes() - before)
        read += batch["mask"].to_pylist()
    assert read == masks
    assert most < sum(map(len, masks)) / 3


def test_any_row_of_a_part_can_be_read_alone(tmp_path) -> None:
    url = Url(str(tmp_path))
    rows = [row(f"{number:03}", mask=bytes([number])) for number in range(100)]
    name = parts.write_part(url, rows_to_table(rows), FARM).name
    for number in (0, 7, 8, 99):
        assert parts.read_row(url, name, number, ["key", "mask"]) == {"key": f"{number:03}", "mask": bytes([number])}
    with pytest.raises(IndexError, match="no row 100"):
        parts.read_row(url, name, 100, ["key"])


def test_a_row_of_an_older_version_has_none_in_columns_that_it_lacks(tmp_path) -> None:
    url = Url(str(tmp_path))
    name = parts.write_part(url, rows_to_table([row("a")]).drop_columns(["brightness"]), FARM).name
    assert parts.read_row(url, name, 0, ["key", "brightness"]) == {"key": "a", "brightness": None}
