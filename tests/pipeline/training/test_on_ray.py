import pytest

from pipeline.errors import ConfigError
from pipeline.training.config import TrainConfig
from pipeline.training.on_ray import check_fits, scaling_config

HEAD, CORES, CARDS = {"CPU": 0.0}, {"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}


def asked(**runtime) -> TrainConfig:
    return TrainConfig.model_validate({"data": "d", "output": "o", "runtime": runtime})


@pytest.mark.parametrize(
    ("runtime", "nodes", "on_gpus"),
    [
        ({"workers": 2}, [CORES], False),
        ({"workers": 4}, [HEAD, CORES, CORES], False),
        ({"workers": 4, "cpus_per_worker": 0.5}, [CORES], False),
        ({"workers": 9, "min_workers": 2}, [CORES], False),
        ({"workers": 2}, [HEAD, CARDS], True),
        ({"workers": 8, "device": "cpu"}, [CARDS], False),
        ({"workers": 8, "expect_cpus": 64, "expect_gpus": 8}, [HEAD], True),
    ],
)
def test_what_fits_is_let_through_on_gpus_where_there_are_any(runtime, nodes, on_gpus):
    assert check_fits(asked(**runtime), nodes) is on_gpus


@pytest.mark.parametrize(
    ("runtime", "nodes", "numbers"),
    [
        ({"workers": 3}, [CORES], r"2 CPU, 0 GPU, too few for 3 worker\(s\) of 1 CPU, 0 GPU"),
        ({"workers": 2, "cpus_per_worker": 1.5}, [CORES, {"CPU": 1.0}], r"3 CPU, 0 GPU, too few for 2 worker"),
        ({"workers": 3}, [CARDS], r"8 CPU, 2 GPU, too few for 3 worker\(s\) of 1 CPU, 1 GPU"),
        ({"device": "cuda"}, [CORES], r"2 CPU, 0 GPU, too few for 1 worker\(s\) of 1 CPU, 1 GPU"),
        ({}, [], r"0 CPU, 0 GPU"),
    ],
)
def test_what_ray_would_wait_for_without_an_end_is_refused_with_the_numbers(runtime, nodes, numbers):
    with pytest.raises(ConfigError, match=numbers):
        check_fits(asked(**runtime), nodes)


def test_workers_reserve_what_was_checked():
    fixed = scaling_config(asked(workers=2, cpus_per_worker=3.0), use_gpu=True)
    assert fixed.num_workers == 2
    assert fixed.resources_per_worker == {"CPU": 3.0, "GPU": 1}
    assert scaling_config(asked(workers=4, min_workers=2), use_gpu=False).num_workers == (2, 4)
