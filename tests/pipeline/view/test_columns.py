from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import jaccard_score

from pipeline.records import Judgement, rows_to_table
from pipeline.view.columns import READ, columns_of, index_table, share_name
from tests.support.committed import FARM, failed_row, mask_row, rows_of, tar


def table_of(rows, **more):
    return index_table(rows_to_table(rows).select(READ), part=3, classes=FARM, sources=more.get("sources", {}))


def test_every_column_of_the_page_is_in_the_index_and_has_a_meaning():
    table = table_of([mask_row("a", tar("a"))])
    columns = columns_of(FARM)
    assert {column.name for column in columns} <= set(table.column_names)
    assert all(column.meaning.endswith(".") and column.title for column in columns)
    assert len({column.name for column in columns}) == len(columns)


def test_shares_are_those_of_the_committed_mask_and_sum_to_one():
    row = mask_row("a", tar("a"))
    table = table_of([row])
    shares = [table[share_name(index)][0].as_py() for index in range(len(FARM))]
    assert shares == pytest.approx(np.array(row.class_pixels) / sum(row.class_pixels))
    assert sum(shares) == pytest.approx(1)


def test_a_failed_row_has_no_number_but_its_time():
    table = table_of([failed_row("a", tar("a"))])
    numbers = [column.name for column in columns_of(FARM) if column.kind != "word" and column.name != "seconds"]
    assert [table[name][0].as_py() for name in numbers] == [None] * len(numbers)
    assert table["error_code"][0].as_py() == "truncated"


def test_rows_keep_their_order_and_their_place_in_the_part():
    table = table_of(rows_of(tar("a"), 5, failed=2))
    assert table["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(table["part"].to_pylist()) == {3}


def test_the_source_of_a_row_is_that_of_its_shard():
    shard = tar("a")
    table = table_of([mask_row("a", shard)], sources={shard.id: "s3://bucket/images"})
    assert table["source"].to_pylist() == ["s3://bucket/images"]


@pytest.mark.parametrize("seed", range(5))
def test_miou_agrees_with_scikit_learn_over_the_classes_that_occur(seed):
    rng = np.random.default_rng(seed)
    truth, mask = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    counts = np.zeros((7, 8), np.int64)
    np.add.at(counts, (truth, mask), 1)
    judged = Judgement(
        "crf", counts, np.zeros((1, 7, 8), np.int64), np.zeros((7, 3), np.int64), np.zeros((256, 2), np.int64)
    )
    table = table_of([replace(mask_row("a", tar("a")), judgements=[judged]), mask_row("b", tar("a"))])
    present = sorted(set(truth) | set(mask))
    expected = jaccard_score(truth, mask, labels=present, average="macro")
    assert table["iou"].to_pylist() == [pytest.approx(expected, rel=1e-6), None]


def test_who_made_the_mask_is_said_with_the_reason():
    refined = mask_row("a", tar("a"))
    timed_out = replace(refined, refined=False, refine_note="refine_timeout: 30 s, limit 20 s")
    plain = replace(refined, refined=False, refine_note=None)
    assert table_of([refined, timed_out, plain, failed_row("d", tar("a"))])["mask_of"].to_pylist() == [
        "refined",
        "network's: refine_timeout",
        "network's",
        None,
    ]


def test_parts_of_older_versions_lack_columns_and_are_read_all_the_same():
    table = (
        rows_to_table([mask_row("a", tar("a"))])
        .select(READ)
        .drop_columns(["judgements", "brightness", "nodata_pixels"])
    )
    made = index_table(table, part=0, classes=FARM, sources={})
    assert made["brightness"].to_pylist() == made["iou"].to_pylist() == made["nodata_share"].to_pylist() == [None]
    assert made.schema.field("iou").type == pa.float32()
