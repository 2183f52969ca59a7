"""Rehearsals from end to end, without Ray; the two tests at the end start it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.rehearsal import STAGES
from tests.support import tars
from tests.support.drivers import IMAGES, QUICK, Outcome, finish, flags_for, forked, segment, start
from tests.support.forked import ForkServer
from tests.support.ray_servers import Cluster

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def job(forks: ForkServer) -> Run:
    """Runs the job to its end, small and quick, in a process of its own and without Ray."""

    def run(*flags: str, **how: Any) -> Outcome:
        return forked(forks, *flags, "--infer.precision", "fp32", "--refine.iterations", "2", **how)

    return run


def test_a_rehearsal_forecasts_the_plan_and_leaves_nothing_behind(fields: Path, job: Run, tmp_path: Path) -> None:
    outcome = job(*flags_for(fields, tmp_path / "out"), "--plan", "--rehearse", "8")
    assert outcome.status == 0, outcome.log
    said = outcome.summary
    assert (said["rehearsed"], said["failed"], said["images"]) == (8, 0, IMAGES)
    assert set(said["images_per_s_per_worker"]) == set(STAGES)
    assert min(said["images_per_s_per_worker"].values()) > 0
    assert said["working_s"] == pytest.approx(IMAGES / said["images_per_s"], abs=0.1)
    assert said["hours"] == pytest.approx((said["start_s"] + said["working_s"]) / 3600, rel=0.02, abs=1e-4)
    assert said["bytes_read"] == sum(path.stat().st_size for path in fields.rglob("*.jpg"))
    assert said["requests"]["GET"] >= IMAGES
    assert said["bytes_written"] > 0
    assert "check before relying" in said["prices_note"]
    assert "limited by" in outcome.log
    assert list((tmp_path / "out").rglob("*")) == []


def test_a_budget_asks_for_more_cores_and_a_file_of_prices_changes_the_money(
    fields: Path, job: Run, tmp_path: Path
) -> None:
    dear = tmp_path / "dear.yaml"
    text = (Path(__file__).parents[2] / "infra/prices.yaml").read_text()
    dear.write_text(text.replace("usd: 0.0593", "usd: 1000000"))
    flags = ["--budget-hours", "0.05", "--prices", str(dear), "--crew-output", str(tmp_path / "crew.json")]
    outcome = job(*flags_for(fields, tmp_path / "out"), "--plan", "--rehearse", "4", *flags)
    assert outcome.status == 0, outcome.log
    assert outcome.summary["hours"] <= 0.05
    assert outcome.summary["usd"]["compute"] == pytest.approx(1e6 * outcome.summary["core_hours"], rel=1e-3)
    written = json.loads((tmp_path / "crew.json").read_text())
    assert written["crew"] == outcome.summary["workers"]


def test_more_images_than_the_source_has_are_all_of_them_and_it_is_said(fields: Path, job: Run, tmp_path: Path) -> None:
    outcome = job(*flags_for(fields, tmp_path), "--limit", "3", "--plan", "--rehearse", "64")
    assert outcome.summary["rehearsed"] == 3
    assert "--rehearse 64: the source has 3 image(s), all of them are rehearsed" in outcome.log


def test_figures_that_rest_on_few_images_say_so_and_on_none_are_refused(fields: Path, job: Run, tmp_path: Path) -> None:
    photo = next(fields.rglob("*.jpg")).read_bytes()
    (tmp_path / "in").mkdir()
    for index in range(4):
        (tmp_path / f"in/{index}.jpg").write_bytes(photo if index == 2 else b"no JPEG")
    outcome = job(*flags_for(tmp_path / "in", tmp_path / "out"), "--plan", "--rehearse", "4")
    assert outcome.status == 0, outcome.log
    assert "3 of 4 rehearsed image(s) failed: the figures rest on 1 image(s)" in outcome.log
    (tmp_path / "in/2.jpg").unlink()
    refused = job(*flags_for(tmp_path / "in", tmp_path / "out"), "--plan", "--rehearse", "4")
    assert refused.status == 1
    assert "none of the 3 rehearsed image(s) could be segmented, first 0.jpg: " in refused.log
    assert list((tmp_path / "out").rglob("*")) == []


def test_images_of_tars_are_estimated_from_bytes(fields: Path, job: Run, tmp_path: Path) -> None:
    photo = next(fields.rglob("*.jpg")).read_bytes()
    (tmp_path / "in").mkdir()
    tar = tars.tar_of([(f"{index}.jpg", photo) for index in range(20)])
    (tmp_path / "in/a.tar").write_bytes(tar)
    outcome = job(*flags_for(tmp_path / "in", tmp_path / "out"), "--plan", "--rehearse", "4")
    assert outcome.status == 0, outcome.log
    assert outcome.summary["images_estimated"]
    assert 20 <= outcome.summary["images"] <= 20 * (len(photo) + 1024) / len(photo) + 10


def test_a_run_refuses_the_crew_of_other_settings_by_name(fields: Path, job: Run, tmp_path: Path) -> None:
    crew = str(tmp_path / "crew.json")
    rehearsed = job(*flags_for(fields, tmp_path / "out"), "--plan", "--rehearse", "2", "--crew-output", crew)
    assert rehearsed.status == 0, rehearsed.log
    refused = job(*flags_for(fields, tmp_path / "out"), "--runtime.crew", crew, "--tile.tile-px", "640")
    assert refused.status == 1
    assert "crew.json was rehearsed with tile.tile_px 512, here 640" in refused.log
    larger = json.loads(Path(crew).read_text())
    larger["crew"] |= {"cores": 64, "gpus": 4}
    Path(crew).write_text(json.dumps(larger))
    refused = job(*flags_for(fields, tmp_path / "out"), "--runtime.crew", crew)
    assert refused.status == 1
    assert "crew.json is for 64 CPU and 4 GPU, the cluster has 2 CPU, 0 GPU" in refused.log


@pytest.mark.ray
def test_on_ray_a_run_takes_the_workers_that_a_rehearsal_found(
    fields: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    crew = str(tmp_path / "crew.json")
    flags = flags_for(fields, tmp_path / "out")
    rehearsed = segment(*flags, "--plan", "--rehearse", "8", "--crew-output", crew, cluster=ray_cluster)
    assert rehearsed.status == 0, rehearsed.log
    said = rehearsed.summary
    assert (said["rehearsed"], said["failed"], said["workers"]["infer"], said["workers"]["refine"]) == (8, 0, 1, 1)
    assert min(said["images_per_s_per_worker"].values()) > 0
    assert min(said["cpu_s_per_image"].values()) > 0
    assert list((tmp_path / "out").rglob("*")) == []
    outcome = run_with(crew, flags, ray_cluster)
    assert outcome.status == 0, outcome.log
    assert "1 network(s)" in outcome.log
    assert "up to 1 refiner(s)" in outcome.log
    assert outcome.summary["rows"] == IMAGES


def run_with(crew: str, flags: list[str], cluster: Cluster) -> Outcome:
    """A run that takes its workers from a file, and else what QUICK says."""
    others = QUICK[QUICK.index("--runtime.lease-s") :]
    return finish(start(*flags, *others, "--runtime.crew", crew, cluster=cluster))
