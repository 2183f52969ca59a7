import pytest

from pipeline.config import DecodeConfig, InferConfig, RefineConfig, RuntimeConfig, SegmentConfig, TileConfig
from pipeline.errors import ConfigError
from pipeline.records import Footprint
from pipeline.run.workers import (
    GIB,
    READ_CPUS,
    WRITE_CPUS,
    Resources,
    cluster_nodes,
    network_gib,
    plan_workers,
    refiner_gib,
)

VOC = Footprint(weight_bytes=240_000_000, num_classes=21, stride=4)


def config(**runtime) -> SegmentConfig:
    return SegmentConfig(source="a", output="b", checkpoint="c", runtime=RuntimeConfig(**runtime))


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 64])
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("memory_gib", [4, 16, 256])
def test_what_is_decided_always_fits_the_cluster(cpus: int, gpus: int, memory_gib: int) -> None:
    device = "cuda" if gpus else "cpu"
    try:
        crew = plan_workers(config(), [Resources(cpus, gpus, memory_gib)], VOC)
    except ConfigError:
        needs_gib = network_gib(config(), VOC, device=device) * max(gpus, 1) + refiner_gib(config(), VOC)
        small = cpus < 0.5 * gpus + 1.4 or memory_gib < needs_gib
        assert small, "a cluster that could hold the stages was refused"
        return
    reserved = crew.infer * crew.infer_cpus + crew.refine * crew.refine_cpus + READ_CPUS + WRITE_CPUS
    assert reserved <= cpus + 1e-6
    assert crew.infer * crew.infer_gpus <= gpus
    assert crew.infer * crew.infer_gib + crew.refine * crew.refine_gib <= memory_gib
    assert crew.refine >= 1


def test_a_gpu_cluster_gives_every_gpu_a_network_and_every_other_core_a_refiner() -> None:
    crew = plan_workers(config(), [Resources(64, 4, 512)], VOC)
    assert (crew.infer, crew.infer_gpus) == (4, 1.0)
    assert crew.refine == 61


def test_a_worker_that_fits_no_single_node_is_refused_although_all_nodes_together_could_hold_it() -> None:
    cfg = config()
    needs = max(network_gib(cfg, VOC, device="cpu"), refiner_gib(cfg, VOC))
    small = [Resources(4, 0, needs - 0.1)] * 8
    assert plan_workers(cfg, [Resources(32, 0, needs * 8)], VOC).refine >= 1
    with pytest.raises(ConfigError, match=r"in 8 node\(s\), the largest of 4 CPU"):
        plan_workers(cfg, small, VOC)


def test_refiners_are_counted_node_by_node() -> None:
    """Two nodes with room for one and a half refiners each hold two refiners, not three."""
    cfg = config()
    gib = refiner_gib(cfg, VOC)
    nodes = [Resources(8, 1, 16), Resources(8, 0, gib * 1.5), Resources(8, 0, gib * 1.5)]
    crew = plan_workers(cfg, nodes, VOC)
    on_gpu_node = int((16 - crew.infer_gib) / gib)
    assert crew.refine == on_gpu_node + 2


def test_a_network_needs_a_node_with_a_gpu_and_room_beside_it() -> None:
    with pytest.raises(ConfigError, match="too small"):
        plan_workers(config(), [Resources(8, 1, 1), Resources(64, 0, 256)], VOC)
    assert plan_workers(config(), [Resources(8, 1, 8), Resources(64, 0, 256)], VOC).infer == 1


def test_a_head_node_without_cpus_is_no_obstacle() -> None:
    crew = plan_workers(config(), [Resources(0, 0, 0), Resources(64, 4, 512)], VOC)
    assert (crew.infer, crew.refine) == (4, 61)


def test_more_classes_need_more_memory_and_so_fewer_refiners() -> None:
    few, many = (plan_workers(config(), [Resources(64, 1, 128)], Footprint(240_000_000, k, 4)) for k in (2, 150))
    assert many.refine_gib > few.refine_gib
    assert many.infer_gib > few.infer_gib
    assert many.refine < few.refine


def test_a_network_needs_memory_for_its_weights_three_times_over_and_for_what_it_is_shown() -> None:
    cfg = config()
    light, heavy = (network_gib(cfg, Footprint(size, 21, 4), device="cpu") for size in (0, GIB))
    assert heavy - light == pytest.approx(3)
    for larger in (
        cfg.model_copy(update={"tile": TileConfig(tile_px=1024)}),
        cfg.model_copy(update={"tile": TileConfig(mode="whole", whole_mpx=10)}),
        cfg.model_copy(update={"infer": InferConfig(batch=16)}),
        cfg.model_copy(update={"infer": InferConfig(scales=(1.0, 2.0))}),
        cfg.model_copy(update={"infer": InferConfig(flip=True)}),
        cfg.model_copy(update={"decode": DecodeConfig(max_mpx=200)}),
    ):
        assert network_gib(larger, VOC, device="cpu") > network_gib(cfg, VOC, device="cpu")


def test_the_logits_of_a_network_at_full_resolution_are_bounded_by_a_setting() -> None:
    full = Footprint(100_000_000, 21, 1)
    less = config().model_copy(update={"infer": InferConfig(max_logits_mib=256)})
    assert network_gib(config(), full, device="cpu") - network_gib(less, full, device="cpu") == pytest.approx(2.25)


def test_a_cluster_that_is_too_small_is_told_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"it has 3 CPU, 4 GPU.*4 network\(s\) x 0.5 CPU, 1 GPU"):
        plan_workers(config(), [Resources(3, 4, 64)], VOC)


def test_a_cluster_that_scales_up_is_planned_for_what_it_will_have() -> None:
    now = [{"CPU": 0.0, "memory": 0.0}, {}]
    with pytest.raises(ConfigError):
        plan_workers(config(), cluster_nodes(now, config().runtime), VOC)
    cfg = config(expect_cpus=64, expect_gpus=4)
    crew = plan_workers(cfg, cluster_nodes(now, cfg.runtime), VOC)
    assert (crew.infer, crew.infer_gpus) == (4, 1.0)
    assert crew.refine > 32


def test_settings_limit_the_workers() -> None:
    crew = plan_workers(config(infer_workers=1, refine_workers=3), [Resources(64, 4, 512)], VOC)
    assert (crew.infer, crew.refine) == (1, 3)


def test_without_a_crf_a_refiner_needs_less() -> None:
    plain = config().model_copy(update={"refine": RefineConfig(engine="none")})
    assert (
        plan_workers(plain, [Resources(4, 0, 64)], VOC).refine_gib
        < plan_workers(config(), [Resources(4, 0, 64)], VOC).refine_gib
    )
