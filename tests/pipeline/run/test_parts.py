import io
import json
import random
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import classes
from pipeline.errors import StorageError
from pipeline.records import ROW_SCHEMA, Row, rows_from_table, rows_to_table
from pipeline.run import parts
from pipeline.store.url import Url

FARM = classes.load_class_map("farmland")


def row(key: str, shard: str = "s", **fields) -> Row:
    return Row(key=key, status="ok", shard=shard, source_etag="e", model_fp="m", config_fp="c", **fields)


@given(st.lists(st.text(max_size=8), unique=True), st.randoms(use_true_random=False))
def test_the_name_depends_on_the_keys_and_not_on_their_order(keys: list[str], rng: random.Random) -> None:
    shuffled = rng.sample(keys, len(keys))
    assert parts.part_name(keys) == parts.part_name(shuffled)
    if keys:
        assert parts.part_name(keys) != parts.part_name(keys[1:])


def test_no_two_lists_of_keys_are_confused_by_what_stands_between_them() -> None:
    assert len({parts.part_name(keys) for keys in (["ab"], ["a", "b"], ['a", "b'], ["a,b"], ["a\nb"])}) == 5


def test_a_part_holds_its_rows_sorted_with_checksums_and_explains_itself() -> None:
    data = parts.encode_part(rows_to_table([row("b"), row("c", shard_rows=3), row("a")]), FARM)
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    assert [one.key for one in rows_from_table(file.read())] == ["a", "b", "c"]
    assert file.schema_arrow.names == ROW_SCHEMA.names
    metadata = file.schema_arrow.metadata
    assert json.loads(metadata[parts.CLASSES_KEY])["name"] == "farmland"
    assert json.loads(metadata[parts.SHARDS_KEY]) == {"s": [3, 3]}


def test_a_flipped_byte_in_a_part_is_noticed(tmp_path) -> None:
    name = parts.write_part(Url(str(tmp_path)), rows_to_table([row("a", mask=bytes(range(256)) * 20)]), FARM)
    path = tmp_path / "parts" / name
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match=r"is damaged: .*(CRC|corrupt|checksum)"):
        parts.read_columns(Url(str(tmp_path)), name, ROW_SCHEMA.names)


def test_footers_count_rows_per_shard_without_reading_one(tmp_path) -> None:
    table = rows_to_table([row("a", "s1"), row("b", "s1", shard_rows=9), row("c", "s2")])
    name = parts.write_part(Url(str(tmp_path)), table, FARM)
    part = parts.read_part_footer(Url(str(tmp_path)), name)
    assert (part.name, part.rows) == (name, 3)
    assert part.shards == {"s1": parts.ShardCount(2, 9), "s2": parts.ShardCount(1, None)}
    assert part.failed == {}


@pytest.mark.parametrize("written", [True, False])
def test_footers_count_failures_and_those_of_an_older_version_are_read_from_the_rows(written: bool, tmp_path) -> None:
    codes = {"a": "corrupt", "b": "empty", "c": "corrupt"}
    failed = [replace(row(key), status="failed", error_code=code) for key, code in codes.items()]
    data = parts.encode_part(rows_to_table([*failed, row("d")]), FARM)
    if not written:
        table = pq.read_table(io.BytesIO(data))
        kept = {name: text for name, text in table.schema.metadata.items() if name != parts.FAILED_KEY}
        pq.write_table(table.replace_schema_metadata(kept), out := io.BytesIO())
        data = out.getvalue()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/part-0.parquet").write_bytes(data)
    assert parts.read_part_footer(Url(str(tmp_path)), "part-0.parquet").failed == {"corrupt": 2, "empty": 1}


def test_a_part_of_a_version_without_a_column_can_be_read_and_written_anew(tmp_path) -> None:
    table = rows_to_table([row("a"), row("b")]).drop_columns(["inference"])
    name = parts.write_part(Url(str(tmp_path)), table, FARM)
    old = parts.read_columns(Url(str(tmp_path)), name, ROW_SCHEMA.names)
    assert [one.inference for one in rows_from_table(old)] == [None, None]
    again = parts.write_part(Url(str(tmp_path)), old.slice(0, 1), FARM)
    assert parts.read_part_footer(Url(str(tmp_path)), again).rows == 1


def test_writing_the_same_rows_again_changes_nothing(tmp_path) -> None:
    table = rows_to_table([row("a"), row("b")])
    names = {parts.write_part(Url(str(tmp_path)), table, FARM) for _ in range(3)}
    assert parts.list_parts(Url(str(tmp_path))) == sorted(names)
    assert len(names) == 1


def test_a_run_without_parts_lists_none(tmp_path) -> None:
    assert parts.list_parts(Url(str(tmp_path / "nothing"))) == []
