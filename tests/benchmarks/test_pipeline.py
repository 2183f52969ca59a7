from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.pipeline import MeasuredSide, compare_pipelines, ratios


@pytest.mark.slow
def test_job_and_script_segment_the_same_images_and_are_measured(tmp_path: Path) -> None:
    sides = compare_pipelines(3, tmp_path, size_px=64, checkpoint="farmland", sides=["ours", "multiprocessing"])
    masks = [
        {row["key"].rpartition("/")[2]: row["mask"] for path in found for row in pq.read_table(path).to_pylist()}
        for found in ((tmp_path / f"output-{side}").rglob("part-*.parquet") for side in sides)
    ]
    assert masks[0] == masks[1]
    assert len(masks[0]) == 3
    assert all(side.wall_s > 0 and side.peak_mib > 0 for side in sides.values())


def test_ratios_are_ours_over_each_other_side_and_many_images_over_few() -> None:
    measured = {
        8: {"ours": MeasuredSide(2.0, 30.0, 10.0), "naive_ray": MeasuredSide(4.0, 60.0, 50.0)},
        2: {"ours": MeasuredSide(1.0, 10.0, 10.0)},
    }
    assert ratios(measured) == {
        "wall_ours_over_naive_ray_8": 0.5,
        "peak_ours_over_naive_ray_8": 0.5,
        "bytes_naive_ray_over_ours_8": 5.0,
        "peak_ours_8_over_2": 3.0,
    }
