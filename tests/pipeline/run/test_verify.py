import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run import parts, verify
from pipeline.store.url import Url
from tests.support.committed import commit, mask_row, rows_of, tar
from tests.support.examples import examples


def problems(run: Path | str) -> str:
    return "\n".join(verify.run_problems(Url(str(run))))


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    shard = tar("one")
    good = mask_row("one.tar#0", shard)
    wrong = mask_row("one.tar#1", shard)
    wrong.class_pixels[0] += 1
    name = commit(tmp_path, [good, wrong])
    (tmp_path / "parts" / name).rename(tmp_path / "parts/part-00000000000000000000.parquet")
    (tmp_path / "parts/.tmp-left").write_bytes(b"half")
    commit(tmp_path, [good])
    for expected in ("not the digest", "do not agree with the mask", "is also in", "left behind"):
        assert expected in problems(tmp_path)


def test_a_footer_that_does_not_count_its_rows_is_named(tmp_path: Path) -> None:
    name = commit(tmp_path, rows_of(tar("one"), 4))
    path = tmp_path / "parts" / name
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path, write_page_checksum=True)
    assert "its footer does not count its rows" in problems(tmp_path)


def test_a_damaged_part_is_named_and_the_others_are_still_checked(tmp_path: Path) -> None:
    damaged, other = (commit(tmp_path, rows_of(tar(name), 3)) for name in ("one", "two"))
    path = tmp_path / "parts" / damaged
    path.write_bytes(path.read_bytes()[:-9])
    (tmp_path / "parts" / other).rename(tmp_path / "parts/part-00000000000000000000.parquet")
    found = problems(tmp_path)
    assert f"{damaged}: cannot be read" in found
    assert "part-00000000000000000000.parquet: its name is not the digest" in found


@examples(30)
@given(st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=6))
def test_exactly_the_keys_that_several_parts_have_are_named(drawn: list[set[int]]) -> None:
    run, shard = f"memory://{uuid.uuid4().hex}", tar("one")
    groups = {commit(run, [mask_row(f"one.tar#{key}", shard) for key in keys]): keys for keys in drawn}
    twice = {key for key in range(13) if sum(key in keys for keys in groups.values()) > 1}
    lines = [line for line in problems(run).splitlines() if "is also in" in line]
    assert {line.split("'")[1] for line in lines} == {f"one.tar#{key}" for key in twice}


@pytest.mark.ray
def test_a_run_is_verified_alike_on_a_cluster_and_in_this_process(tmp_path: Path) -> None:
    from infra import session
    from pipeline.run import flow

    shard = tar("one")
    for number in range(70):
        commit(tmp_path, [mask_row(f"one.tar#{number}", shard), mask_row(f"one.tar#{number // 9}b", shard)])
    (tmp_path / "parts" / parts.list_parts(Url(str(tmp_path)))[5]).write_bytes(b"no part")
    with session.connect():
        on_cluster = list(verify.run_problems(Url(str(tmp_path)), flow.shuffle))
    assert on_cluster == list(verify.run_problems(Url(str(tmp_path))))
    assert sum("is also in" in line for line in on_cluster) > 50
