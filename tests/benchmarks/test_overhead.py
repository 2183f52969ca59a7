import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import overhead
from benchmarks.overhead import CLASSES, SIZE_PX, CheckoutFigures, Watch, kind_of, middle
from pipeline.config import SegmentConfig
from pipeline.image.decode import decode_image
from pipeline.image.encode import read_mask_png
from pipeline.records import items_from_table, items_to_table, rows_from_table
from pipeline.run.ledger import Ledger
from pipeline.source.plan import plan_source, read_items


def test_the_null_stages_give_every_image_of_a_tar_a_row_with_a_mask(tmp_path: Path) -> None:
    overhead.write_tars(tmp_path / "tars", 3)
    cfg = SegmentConfig.model_validate({"source": str(tmp_path / "tars"), "output": "o", "checkpoint": "c"})
    (shard,) = plan_source(cfg).shards
    table = items_to_table(read_items(shard, cfg.read, max_bytes=10**6))
    assert decode_image(items_from_table(table)[0].data, cfg.decode).height == SIZE_PX
    ledger = Ledger()
    rows = rows_from_table(overhead.NullRefine(None, ledger)(overhead.NullInfer(None, ledger, threads=1)(table)))
    assert [row.key for row in rows] == [f"000000000.tar#photo_{index:09d}" for index in range(3)]
    assert all(read_mask_png(row.mask).shape == (SIZE_PX, SIZE_PX) for row in rows)
    assert all(len(row.class_pixels) == len(CLASSES) for row in rows)
    assert ledger.progress().done == {"infer": 3, "refine": 3}


def test_a_figure_is_the_median_of_its_turns_and_a_kind_of_process_may_be_absent() -> None:
    turns = [
        CheckoutFigures(rate, 2.0 * rate, us) for rate, us in ((1, {"a": 10, "b": 1}), (9, {"a": 40}), (3, {"a": 20}))
    ]
    assert middle(turns) == {
        "bookkeeping_images_per_s": 3,
        "flow_images_per_s": 6,
        "flow_cpu_us_per_image": 20,
        "of_these": {"a": 20, "b": 0},
    }


def test_processor_time_is_that_of_descendants_too_by_kind_and_only_while_all_run() -> None:
    work = "print(flush=True); input(); sum(range(10**7)); print(flush=True); input()"
    committed = iter([0, 20, 90, 100])
    watch = Watch(lambda: next(committed))
    watch.look()
    with subprocess.Popen([sys.executable, "-c", work], stdin=-1, stdout=-1, text=True) as child:
        child.stdout.readline()
        watch.look()  # a fifth is done: what the child did until now was its start
        print(file=child.stdin, flush=True)
        child.stdout.readline()
        watch.look()
        child.communicate("\n")
    watch.look()
    rate, us = watch.steady(100)
    assert rate == 70 / (watch.looks[2].at_s - watch.looks[1].at_s)
    # The cluster of an earlier test may still run below this process, so that there may be more kinds than these.
    assert us.keys() >= {"driver", "agents of Ray"}
    assert watch.kinds[child.pid] == "agents of Ray"
    assert 0.05e6 < 70 * us["agents of Ray"] < 5e6
    assert kind_of(os.getpid()) == "driver"


def test_so_few_images_that_all_are_committed_at_once_are_refused() -> None:
    committed = iter([0, 100])
    watch = Watch(lambda: next(committed))
    watch.look()
    watch.look()
    with pytest.raises(RuntimeError, match="100 images are too few"):
        watch.steady(100)


@pytest.mark.ray
def test_it_measures_this_checkout_against_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = str(Path(overhead.__file__).parents[1])
    flags = ["--images", "10000", "--seconds", "0.2", "--turns", "1", "--scratch", str(tmp_path)]
    assert overhead.main([*flags, "--against", here]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["now_over_before"].keys() == {"bookkeeping_images_per_s", "flow_images_per_s"}
    for name in ("before", "now"):
        assert figures[name]["bookkeeping_images_per_s"] > 0
        # Readers and writers share processes, and their tasks may be too short to be seen.
        assert {"network's actor", "refiners' actors", "driver"} <= figures[name]["of_these"].keys()
