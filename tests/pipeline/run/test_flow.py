"""Distribution of shards over read tasks; the tests of the jobs show that tasks survive their workers."""

import pytest

from pipeline.run import flow
from pipeline.run.flow import MAX_READ_TASKS, TaskSource


@pytest.mark.parametrize("count", [1, 7, MAX_READ_TASKS, 2 * MAX_READ_TASKS + 1])
def test_every_unit_is_done_by_exactly_one_of_not_too_many_tasks(count: int) -> None:
    done: list[int] = []
    tasks = TaskSource("count", range(count), done.append).get_read_tasks(1)
    assert len(tasks) <= MAX_READ_TASKS
    said = sum(len(block) for task in tasks for block in task())
    assert said == count
    assert sorted(done) == list(range(count))


def test_the_settings_of_ray_data_are_ours_only_while_they_are_used() -> None:
    before = flow.DataContext.get_current().target_max_block_size
    with flow._ray_data_settings(block_mib=1.5):
        assert flow.DataContext.get_current().target_max_block_size == 1.5 * 2**20
    assert flow.DataContext.get_current().target_max_block_size == before
