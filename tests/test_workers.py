import pytest

from pipeline.config import RefineConfig, RuntimeConfig, SegmentConfig
from pipeline.errors import ConfigError
from pipeline.workers import READ_CPUS, WRITE_CPUS, Resources, decide, refiner_gib


def config(**runtime) -> SegmentConfig:
    return SegmentConfig(source="a", output="b", checkpoint="c", runtime=RuntimeConfig(**runtime))


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 64])
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("memory_gib", [4, 16, 256])
def test_what_is_decided_always_fits_the_cluster(cpus: int, gpus: int, memory_gib: int) -> None:
    cluster = Resources(cpus, gpus, memory_gib)
    try:
        crew = decide(config(), cluster, num_classes=21)
    except ConfigError:
        small = cpus < 0.5 * gpus + 1.4 or memory_gib < 1.5 * max(gpus, 1) + refiner_gib(config(), 21)
        assert small, "a cluster that could hold the stages was refused"
        return
    reserved = crew.infer * crew.infer_cpus + crew.refine * crew.refine_cpus + READ_CPUS + WRITE_CPUS
    assert reserved <= cpus + 1e-6
    assert crew.infer * crew.infer_gpus <= gpus
    assert crew.infer * crew.infer_gib + crew.refine * crew.refine_gib <= memory_gib
    assert crew.refine >= 1


def test_a_gpu_cluster_gives_every_gpu_a_network_and_every_other_core_a_refiner() -> None:
    crew = decide(config(), Resources(64, 4, 512), num_classes=21)
    assert (crew.infer, crew.infer_gpus) == (4, 1.0)
    assert crew.refine == 61


def test_more_classes_need_more_memory_and_so_fewer_refiners() -> None:
    few, many = (decide(config(), Resources(64, 1, 128), num_classes=k) for k in (2, 150))
    assert many.refine_gib > few.refine_gib
    assert many.refine < few.refine


def test_a_cluster_that_is_too_small_is_told_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"it has 3 CPU, 4 GPU.*4 network actor\(s\) x 0.5 CPU, 1 GPU"):
        decide(config(), Resources(3, 4, 64), num_classes=21)


def test_a_cluster_that_scales_up_is_planned_for_what_it_will_have() -> None:
    now = {"CPU": 0.0, "memory": 0.0}
    with pytest.raises(ConfigError):
        decide(config(), Resources.of(now, config().runtime), num_classes=7)
    cfg = config(expect_cpus=64, expect_gpus=4)
    crew = decide(cfg, Resources.of(now, cfg.runtime), num_classes=7)
    assert (crew.infer, crew.infer_gpus) == (4, 1.0)
    assert crew.refine > 32


def test_settings_limit_the_workers() -> None:
    crew = decide(config(infer_workers=1, refine_workers=3), Resources(64, 4, 512), num_classes=21)
    assert (crew.infer, crew.refine) == (1, 3)


def test_without_a_crf_a_refiner_needs_less() -> None:
    plain = config().model_copy(update={"refine": RefineConfig(engine="none")})
    assert (
        decide(plain, Resources(4, 0, 64), num_classes=21).refine_gib
        < decide(config(), Resources(4, 0, 64), num_classes=21).refine_gib
    )
