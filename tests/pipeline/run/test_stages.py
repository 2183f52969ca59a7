"""Stages with a local ledger, without Ray."""

import io
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from pipeline.config import SegmentConfig
from pipeline.image import encode
from pipeline.models.card import load_card
from pipeline.records import Failure, Image, Item, items_from_table, items_to_table, rows_from_table, scored_from_table
from pipeline.run import stages
from pipeline.run.ledger import Ledger
from pipeline.run.pending import PendingShard
from pipeline.run.pixels import decode_item
from pipeline.run.stages import InferStage, Job, RefineStage, read_shards
from pipeline.source.shard import Member, slice_shard
from pipeline.store import objects
from pipeline.store.url import Url


def job(**settings) -> Job:
    cfg = SegmentConfig(source="x", output="y", checkpoint="farmland", infer={"precision": "fp32"}, **settings)
    classes = load_card("farmland").classes
    return Job(cfg, classes, Url("run"), "m" * 12, "c" * 12, preview_share=0.0)


def jpeg(height: int, width: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def item(key: str, data: bytes = b"", **fields) -> Item:
    return Item(key=key, shard="s", etag="e", data=data, **fields)


ITEMS = [
    item("good", jpeg(40, 60)),
    item("broken", jpeg(64, 64)[:300]),
    item("gone", failure=Failure("not_found", "the object is gone")),
    item("tiny", jpeg(1, 1)),
    item("wide", jpeg(20, 700), shard_rows=5),
]


@pytest.mark.parametrize("engine", ["none", "native"])
def test_every_item_comes_out_as_one_row_in_order(engine: str) -> None:
    work, ledger = job(refine={"engine": engine, "iterations": 1}), Ledger()
    scored = InferStage(work, ledger, threads=1)(items_to_table(ITEMS))
    rows = rows_from_table(RefineStage(work, ledger)(scored))
    assert [row.key for row in rows] == [one.key for one in ITEMS]
    assert [row.error_code for row in rows] == [None, "truncated", "not_found", None, None]
    assert [(row.height, row.width) for row in rows if row.status == "ok"] == [(40, 60), (1, 1), (20, 700)]
    assert rows[-1].shard_rows == 5
    assert [row.inference for row in rows] == ["os16 fp32 sliding", None, None, *["os16 fp32 sliding"] * 2]
    assert all(encode.read_mask_png(row.mask).shape == (row.height, row.width) for row in rows if row.mask)
    assert ledger.progress().done == {"infer": 5, "refine": 5}


@pytest.mark.parametrize(("engine", "decodings"), [("none", 1), ("native", 2)])
def test_decoding_is_counted_as_such_in_both_stages(engine: str, decodings: int, monkeypatch) -> None:
    """On a clock that only decoding moves: one second for every image."""
    clock = [0.0]

    def decode_in_a_second(*args) -> Image:
        clock[0] += 1
        return decode_item(*args)

    monkeypatch.setattr(stages, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(stages, "decode_item", decode_in_a_second)
    work, ledger = job(refine={"engine": engine, "iterations": 1}), Ledger()
    infer, refine = InferStage(work, ledger, threads=1), RefineStage(work, ledger)
    (good,), (broken,) = (rows_from_table(refine(infer(items_to_table([one])))) for one in ITEMS[:2])
    assert (good.seconds_decode, good.seconds_refine) == (decodings, 0)
    assert broken.seconds_decode == 1
    assert ledger.progress().seconds["refine"] == decodings - 1


def test_bytes_travel_on_only_when_the_refiner_needs_the_pixels() -> None:
    kept = {}
    for engine in ("none", "native"):
        table = InferStage(job(refine={"engine": engine}), Ledger(), threads=1)(items_to_table(ITEMS))
        kept[engine] = [bool(one.item.data) for one in scored_from_table(table)]
    assert kept == {"none": [False] * 5, "native": [True, False, False, True, True]}


def test_logits_travel_in_half_precision_at_the_stride_without_classes_that_cannot_win() -> None:
    table = InferStage(job(), Ledger(), threads=1)(items_to_table(ITEMS[:1]))
    (scored,) = scored_from_table(table)
    assert scored.logits_khw.dtype == np.float16
    assert scored.logits_khw.shape == (len(scored.class_ids), 10, 15)
    (whole,) = scored_from_table(InferStage(job(refine={"prune": 0.0}), Ledger(), threads=1)(items_to_table(ITEMS[:1])))
    assert whole.class_ids == tuple(range(7))
    np.testing.assert_array_equal(whole.logits_khw[list(scored.class_ids)], scored.logits_khw)


def test_shards_are_read_in_blocks_of_bounded_size(tmp_path) -> None:
    for index in range(10):
        (tmp_path / f"{index}.jpg").write_bytes(bytes(200_000))
    files = [Member(found.path, found.size, found.etag) for found in objects.list_files(Url(str(tmp_path)))]
    shard = slice_shard(str(tmp_path), files)
    work = job(runtime={"block_mib": 0.5})
    tables = list(read_shards(work, [PendingShard(shard, frozenset({"3.jpg"}))], Ledger()))
    assert [len(table) for table in tables] == [3, 3, 3]
    keys = [one.key for table in tables for one in items_from_table(table)]
    assert keys == [f"{index}.jpg" for index in range(10) if index != 3]


HANG = """
import ctypes, time
from pipeline.run.stages import kill_process_after
with kill_process_after(0.3) as progress:
    for _ in range(4):
        time.sleep(0.2)
        progress()
    print("alive", flush=True)
    libc = ctypes.PyDLL(None)  # holds the GIL, as pydensecrf does
    libc.sleep(30)
"""


def test_a_worker_that_hangs_in_native_code_is_killed_but_not_one_that_makes_progress() -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n"
    assert done.returncode != 0
    assert time.monotonic() - started < 20
