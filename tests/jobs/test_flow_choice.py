import pytest

from infra import machine
from jobs.flow_choice import PROCESSES_IMAGES, choose_flow
from pipeline.config import SegmentConfig
from pipeline.errors import ConfigError


def config(**settings: object) -> SegmentConfig:
    facts = {"source": ["in"], "output": "out", "checkpoint": "farmland"}
    return SegmentConfig.model_validate(facts | settings)


@pytest.fixture(autouse=True)
def _here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "has_gpu", lambda: False)


def test_a_small_run_on_this_machine_takes_processes() -> None:
    assert choose_flow(config(), images=PROCESSES_IMAGES) == "processes"


@pytest.mark.parametrize(
    "settings",
    [
        {"read": {"kind": "raster"}},
        {"runtime": {"dashboard": True}},
        {"runtime": {"expect_cpus": 8}},
        {"runtime": {"crew": "crew.json"}},
        {"runtime": {"flow": "ray"}},
    ],
)
def test_what_only_ray_can_do_takes_ray(settings: dict[str, object]) -> None:
    assert choose_flow(config(**settings), images=1) == "ray"


def test_a_large_run_a_gpu_or_a_cluster_take_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_flow(config(), images=PROCESSES_IMAGES + 1) == "ray"
    assert choose_flow(config(runtime={"flow": "processes"}), images=PROCESSES_IMAGES + 1) == "processes"
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    assert choose_flow(config(), images=1) == "ray"
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert choose_flow(config(), images=1) == "ray"


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="rasters are read and joined on Ray"):
        choose_flow(config(read={"kind": "raster"}, runtime={"flow": "processes"}), images=1)
    with pytest.raises(ValueError, match="the dashboard is Ray's"):
        config(runtime={"flow": "processes", "dashboard": True})
