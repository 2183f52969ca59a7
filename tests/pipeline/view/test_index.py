import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError
from pipeline.run import parts
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.view import index as index_module
from pipeline.view.index import RunIndex
from tests.support.committed import FARM, commit, rows_of, tar, watch_reads
from tests.support.viewed_runs import ids_by_key, open_index


@pytest.fixture
def run(tmp_path):
    for name in "abc":
        commit(tmp_path / "run", rows_of(tar(name), 4, failed=1))
    return Url(str(tmp_path / "run"))


def keys(index):
    return sorted(key for (key,) in index.fetch("SELECT key FROM shown"))


def test_every_committed_row_is_in_the_index_once(run):
    index = open_index(run)
    assert index.counts() == (12, 3)
    assert keys(index) == sorted(f"{name}.tar#{row}" for name in "abc" for row in range(4))
    assert len(set(ids_by_key(index).values())) == 12


def test_filling_twice_adds_nothing(run):
    index = open_index(run)
    assert index.fill() == 0
    assert index.counts() == (12, 3)


def test_new_parts_of_a_run_that_goes_on_are_added_and_old_numbers_stay(run):
    index = open_index(run)
    before = ids_by_key(index)
    commit(run.raw, rows_of(tar("d"), 2))
    assert index.fill() == 1
    assert before.items() <= ids_by_key(index).items()
    assert index.counts() == (14, 4)


def test_rows_of_a_part_that_a_repair_removed_are_gone(run):
    index = open_index(run)
    name = parts.list_parts(run)[0]
    lost = set(parts.read_columns(run, name, ["key"])["key"].to_pylist())
    objects.delete(parts.parts_url(run) / name)
    index.fill()
    assert not lost & set(keys(index))
    assert index.counts() == (8, 2)


def test_rows_of_a_part_that_was_written_anew_are_read_again(run, tmp_path):
    index = open_index(run, tmp_path / "cache")
    name = parts.list_parts(run)[0]
    url = parts.parts_url(run) / name
    table = pq.read_table(url.raw)
    entropy = table.schema.get_field_index("entropy")
    changed = table.set_column(entropy, "entropy", pa.array([0.5] * len(table), table.schema.field("entropy").type))
    pq.write_table(changed, url.raw)
    assert index.fill() == 2
    assert index.counts() == (12, 3)
    sql = "SELECT DISTINCT name FROM parts JOIN rows ON part = number WHERE entropy = 0.5"
    assert index.fetch(sql) == [(name,)]


def test_filling_ends_between_parts_and_goes_on_the_next_time(run, monkeypatch):
    monkeypatch.setattr(index_module, "FIRST_BATCH_PARTS", 1)
    index = RunIndex(run, FARM)
    index.fill(is_over=lambda: index.counts()[1] == 1)
    assert index.counts() == (4, 1)
    index.fill()
    assert index.counts() == (12, 3)


def test_the_index_is_for_one_user_though_the_cache_is_for_all(run, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o755)
    open_index(run, tmp_path / "cache").close()
    assert (tmp_path / "cache/index").stat().st_mode & 0o077 == 0


def test_a_run_opened_again_reads_no_part(run, tmp_path, monkeypatch):
    open_index(run, tmp_path / "cache").close()
    read = watch_reads(monkeypatch)
    index = open_index(run, tmp_path / "cache")
    assert index.counts() == (12, 3)
    assert not read


def test_masks_are_never_read_for_the_index(run, monkeypatch):
    read = watch_reads(monkeypatch)
    open_index(run)
    assert read
    assert all("mask" not in columns for columns in read.values())


def test_an_index_that_another_process_has_open_is_kept_in_memory(run, tmp_path, monkeypatch, caplog):
    def busy(path, **settings):
        if path != ":memory:":
            raise duckdb.IOException("Could not set lock on file")
        return connect(path, **settings)

    connect = duckdb.connect
    monkeypatch.setattr(index_module.duckdb, "connect", busy)
    assert open_index(run, tmp_path / "cache").counts() == (12, 3)
    assert "open in another process" in caplog.text


def test_a_damaged_part_is_named_and_the_others_stay(run):
    index = open_index(run)
    name = commit(run.raw, rows_of(tar("e"), 2))
    path = run / "parts" / name
    with open(path.raw, "r+b") as file:
        file.truncate(40)
    with pytest.raises(StorageError, match=name):
        index.fill()
    assert index.counts() == (12, 3)


def test_runs_of_other_places_or_classes_do_not_share_a_file(run, tmp_path):
    first = index_module._file(run, FARM, tmp_path)
    assert first != index_module._file(run / "x", FARM, tmp_path)
    assert first != index_module._file(run, FARM.model_copy(update={"name": "other"}), tmp_path)
    assert RunIndex(run, FARM, cache=None).counts() == (0, 0)


def test_rows_of_new_parts_never_take_the_numbers_of_rows_that_are_gone(tmp_path):
    url = Url(str(tmp_path / "run"))
    _, last = (commit(url.raw, rows_of(tar(name), 3)) for name in "ab")
    index, given = open_index(url), set()
    for name in "cde":
        before = {number for (number,) in index.fetch("SELECT id FROM rows")}
        (tmp_path / "run/parts" / last).unlink()
        index.fill()
        last = commit(url.raw, rows_of(tar(name), 4))
        index.fill()
        now = {number for (number,) in index.fetch("SELECT id FROM rows")}
        assert not (now - before) & given
        given |= before | now
