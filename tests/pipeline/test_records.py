import dataclasses
import typing
from types import NoneType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import records
from pipeline.records import (
    ITEM_SCHEMA,
    ROW_SCHEMA,
    SCORED_SCHEMA,
    Failure,
    Image,
    Item,
    Judgement,
    Position,
    Row,
    Scored,
    Window,
)

ODD_KEYS = [
    "",
    "a b#c?d&e=%2F",
    "../../etc/passwd",
    "line\nbreak\tand\0nul",
    "café#NFC",
    "cafe\u0301#NFD",
    "\U0001f33e/\u202eevil.jpg",
    "\ufeffbom",
    "x" * 5000,
]

# What Arrow cannot hold is refused at the source: lone surrogates are not UTF-8.
texts = st.text(st.characters(codec="utf-8")) | st.sampled_from(ODD_KEYS)
sizes = st.integers(0, 2**31 - 1)
counts = st.integers(0, 2**62)
seconds = st.floats(0, 1e6, width=32)
shares = st.floats(0, 1, width=32)
windows = st.builds(Window, y=counts, x=counts, height=counts, width=counts)
failures = st.builds(Failure, code=texts.filter(bool), detail=texts)
degrees = st.floats(-90, 90)
positions = st.builds(Position, degrees, degrees, st.none() | st.floats(-500, 9000))
items = st.builds(
    Item,
    key=texts,
    shard=texts,
    etag=texts,
    data=st.binary(max_size=64),
    label=st.none() | st.binary(max_size=64),
    failure=st.none() | failures,
    shard_rows=st.none() | counts,
    window=st.none() | windows,
    seconds_read=seconds,
)
logits = hnp.arrays(np.float16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4))
scored = st.builds(
    Scored,
    item=items,
    height=sizes,
    width=sizes,
    orientation=st.integers(1, 8),
    position=st.none() | positions,
    logits_khw=st.none() | logits,
    stride=st.integers(1, 32),
    align_corners=st.booleans(),
    inference=texts,
    class_ids=st.none() | st.lists(st.integers(0, 254), unique=True).map(sorted).map(tuple),
    seconds_decode=seconds,
    seconds_infer=seconds,
)


@st.composite
def judgements(draw: st.DrawFn) -> Judgement:
    """Of 1 to 4 classes and up to 3 widths."""
    k, widths = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    shapes = (k, k + 1), (widths, k, k + 1), (k, 3), (256, 2)
    return Judgement(draw(texts), *(draw(hnp.arrays(np.int64, shape, elements=counts)) for shape in shapes))


COLUMN_VALUES = {
    pa.list_(records.JUDGEMENT): st.lists(judgements(), max_size=2),
    pa.string(): texts,
    pa.binary(): st.binary(max_size=64),
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-128, 127),
    pa.int32(): sizes,
    pa.int64(): counts,
    pa.float32(): shares,
    pa.float64(): st.floats(-1e6, 1e6),
    pa.list_(pa.int64()): st.lists(counts, max_size=4),
    pa.list_(pa.int32()): st.lists(sizes, max_size=4),
}
rows = st.builds(
    Row,
    **{
        field.name: COLUMN_VALUES[field.type] | st.none() if field.nullable else COLUMN_VALUES[field.type]
        for field in ROW_SCHEMA
    },
)


def without_logits(one: Scored) -> Scored:
    return dataclasses.replace(one, logits_khw=None)


@given(st.lists(items, max_size=4))
def test_items_survive_the_wire(before):
    table = records.items_to_table(before)
    assert table.schema == ITEM_SCHEMA
    assert records.items_from_table(table) == before


@given(st.lists(scored, max_size=4))
def test_scored_items_survive_the_wire(before):
    table = records.scored_to_table(before)
    assert table.schema == SCORED_SCHEMA
    after = records.scored_from_table(table)
    assert [without_logits(one) for one in after] == [without_logits(one) for one in before]
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(now.logits_khw, was.logits_khw)


@given(st.lists(rows, max_size=4))
def test_rows_survive_parquet(before):
    table = records.rows_to_table(before)
    assert table.schema == ROW_SCHEMA
    assert records.rows_from_table(written_and_read(table)) == before


def written_and_read(table: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return pq.read_table(pa.BufferReader(sink.getvalue()))


@given(st.lists(scored, min_size=1, max_size=6), st.data())
def test_slicing_and_joining_tables_is_slicing_and_joining_records(before, data):
    """Ray cuts and joins blocks as it likes."""
    table = records.scored_to_table(before)
    cut = data.draw(st.integers(0, len(before)))
    joined = pa.concat_tables([table.slice(cut), table.slice(0, cut)])
    after = records.scored_from_table(joined)
    for was, now in zip(before[cut:] + before[:cut], after, strict=True):
        assert without_logits(now) == without_logits(was)
        np.testing.assert_array_equal(now.logits_khw, was.logits_khw)


def test_logits_travel_in_row_order_whatever_their_memory_layout():
    turned = np.arange(24, dtype=np.float32).reshape(4, 3, 2).transpose(2, 0, 1)
    item = Item(key="k", shard="s", etag="e")
    (after,) = records.scored_from_table(records.scored_to_table([Scored(item=item, logits_khw=turned)]))
    np.testing.assert_array_equal(after.logits_khw, turned)
    assert after.logits_khw.dtype == np.float16


def test_received_logits_cannot_be_written_to():
    item = Item(key="k", shard="s", etag="e")
    table = records.scored_to_table([Scored(item=item, logits_khw=np.zeros((2, 3, 4), np.float16))])
    (after,) = records.scored_from_table(table)
    assert not after.logits_khw.flags.writeable


def test_every_field_of_a_row_has_its_column_and_may_be_empty_where_the_column_may():
    hints = typing.get_type_hints(Row)
    assert [field.name for field in dataclasses.fields(Row)] == ROW_SCHEMA.names
    for field in ROW_SCHEMA:
        assert field.nullable == (NoneType in typing.get_args(hints[field.name])), field.name


@pytest.mark.parametrize("schema", [ITEM_SCHEMA, SCORED_SCHEMA, ROW_SCHEMA])
def test_only_plain_arrow_types_are_stored(schema):
    """Reading an extension type may run code: CVE-2023-47248 in pyarrow, CVE-2026-41486 in Ray."""
    assert not any(isinstance(field.type, pa.BaseExtensionType) for field in schema)


def test_columns_of_others_are_left_alone():
    row = Row(key="k", status="ok", shard="s", source_etag="e", model_fp="m", config_fp="c")
    table = records.rows_to_table([row]).append_column("run", pa.array(["0123"]))
    assert records.rows_from_table(table) == [row]


@pytest.mark.parametrize("missing", ["inference", "preview_image"])
def test_rows_of_a_version_without_a_column_are_still_read(missing):
    row = Row(key="k", status="ok", shard="s", source_etag="e", model_fp="m", config_fp="c", height=3)
    assert records.rows_from_table(records.rows_to_table([row]).drop_columns([missing])) == [row]


def test_an_image_knows_its_size():
    image = Image(pixels_hwc=np.zeros((3, 5, 3), np.uint8), valid_hw=None)
    assert (image.height, image.width) == (3, 5)
