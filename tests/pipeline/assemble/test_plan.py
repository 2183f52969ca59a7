"""Plans of assemblies: names of files, and what is left to do after parts, masks or items went missing."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.assemble.assemble import do_squares, group_squares, plan_work, squares_left
from pipeline.assemble.plan import plan_assemblies, read_shards
from pipeline.assemble.squares import Square
from pipeline.records import Window
from pipeline.run import parts
from pipeline.run.footers import read_footers
from pipeline.store import objects
from pipeline.store.url import Url
from tests.pipeline.assemble.test_assemble import assemble_all, read_cog, run, source_of
from tests.support.examples import examples
from tests.support.raster_runs import commit_masks
from tests.support.rasters import config, values, write_raster

__all__ = ["run"]


def names_of(folder, files) -> dict[str, str]:
    from pipeline.source.plan import plan_source
    from pipeline.source.raster import NetworkBands

    for file in files:
        write_raster(folder / file, values(1, 1, 3))
    plan = plan_source(config(folder, core_px=512), NetworkBands(("red", "green", "blue")))
    return {one.uri: one.name for one in plan_assemblies(plan.shards, [])}


def test_a_name_that_another_raster_kept_is_not_given_twice(tmp_path) -> None:
    names = names_of(tmp_path, ["a.tif", "a.tiff", "a.tif.tif", "b/a.tif"])
    assert names == {"a.tif": "a.tif", "a.tiff": "a.tiff", "a.tif.tif": "a.tif.tif", "b/a.tif": "b/a"}


@given(
    st.sets(
        st.text("a.", min_size=1, max_size=2).flatmap(
            lambda stem: st.sampled_from([".tif", ".tiff", ".tif.tif"]).map(lambda suffix: f"x{stem}{suffix}")
        ),
        max_size=6,
    )
)
@examples(20)
def test_no_two_rasters_share_the_name_of_a_file(tmp_path_factory, files) -> None:
    names = names_of(tmp_path_factory.mktemp("names"), files) if files else {}
    assert len({name.casefold() for name in names.values()}) == len(names)


def test_windows_that_are_not_committed_are_holes(tmp_path, run: Url) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (1100, 1300), "b.tif": (100, 100)})
    commit_masks(run, tmp_path / "in", masks, rows_per_part=2)
    table = read_footers(run).table
    lost = table["name"][table["rows"].to_pylist().index(2)].as_py()
    objects.delete(parts.parts_url(run) / lost)
    todo = assemble_all(run)
    assert todo.with_holes == {"a.tif": 2}
    assert [one.uri for one in todo.assemblies] == ["b.tif"]
    assert not objects.exists(run / "masks/a.tif")
    assemble_all(run, holes=True)
    assert json.loads(objects.read_bytes(run / "items/a.json"))["properties"]["atrous:failed_windows"] == 2
    assert (read_cog(run, "a") == 255).sum() > (masks["a.tif"] == 255).sum()
    (one,) = [one for one in plan_assemblies(read_shards(run), read_footers(run).summaries()) if one.uri == "a.tif"]
    assert (one.missing, one.failed) == (2, 0)


def test_a_mask_or_an_item_that_was_deleted_is_made_again(tmp_path, run: Url) -> None:
    masks = source_of(tmp_path / "in", {"a.tif": (700, 700), "b.tif": (100, 100)})
    commit_masks(run, tmp_path / "in", masks)
    assemble_all(run)
    for file in ("masks/a.tif", "items/b.json"):
        before = objects.read_bytes(run / file)
        objects.delete(run / file)
        assert len(plan_work(run, holes=False).assemblies) == 1
        assemble_all(run)
        assert objects.read_bytes(run / file) == before
    np.testing.assert_array_equal(read_cog(run, "a"), masks["a.tif"])


def test_no_empty_folders_are_left_on_a_disk(tmp_path, run: Url) -> None:
    commit_masks(run, tmp_path / "in", source_of(tmp_path / "in", {"a.tif": (700, 700)}))
    for _ in range(2):
        assemble_all(run)
        assert sorted(path.name for path in (tmp_path / "out/run=0123456789ab/_run").iterdir()) == ["plan.arrow"]


def test_groups_of_squares_give_the_bytes_of_squares_alone_and_read_parts_once(tmp_path, run: Url, monkeypatch) -> None:
    sizes = {f"{number}.tif": (30 + 7 * number, 600 - 9 * number) for number in range(12)}
    masks = source_of(tmp_path / "in", sizes)
    alone = Url(run.raw + "0")
    for url in (run, alone):
        commit_masks(url, tmp_path / "in", masks, rows_per_part=6)
    for square in squares_left(alone, plan_work(alone, holes=False).assemblies):
        do_squares([square], run_url=alone)
    read: list[str] = []
    read_batches = parts.read_batches
    monkeypatch.setattr(
        parts, "read_batches", lambda url, name, *a, **k: read.append(name) or read_batches(url, name, *a, **k)
    )
    (group,) = group_squares(squares_left(run, plan_work(run, holes=False).assemblies))
    do_squares(group, run_url=run)
    assert sorted(read) == parts.list_parts(run)
    blocks = {
        file.path: objects.read_bytes(run / "_run/blocks" / file.path)
        for file in objects.list_files(run / "_run/blocks")
    }
    assert len(blocks) == len(sizes)
    assert all(objects.read_bytes(alone / "_run/blocks" / path) == data for path, data in blocks.items())


@given(st.lists(st.tuples(st.integers(1, 16384), st.integers(1, 16384)), max_size=200))
@examples(50)
def test_groups_keep_the_order_and_are_no_larger_than_a_square(sizes) -> None:
    squares = [Square(None, Window(0, 0, *size)) for size in sizes]
    groups = group_squares(squares)
    assert [square for group in groups for square in group] == squares
    for group in groups:
        assert 1 <= len(group) <= 64
        assert sum(square.window.height * square.window.width for square in group) <= 16384**2
