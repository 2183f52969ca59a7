"""The main job on real clusters: what Ray does for a run, and what becomes of it when workers and drivers die."""

import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.datasets import farmland
from pipeline.image import encode
from pipeline.store.url import Url
from tests import ROOT
from tests.support import poison
from tests.support.drivers import IMAGES, QUICK, SMALL_PARTS, finish, flags_for, kill_a_worker, rows_of, segment, start
from tests.support.ray_servers import BIN, Cluster
from tests.support.s3_servers import FaultProxy, S3Server

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def undisturbed(fields: Path, ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The rows of a run that nothing happened to."""
    outcome = segment(*flags_for(fields, tmp_path_factory.mktemp("undisturbed")), *SMALL_PARTS, cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    assert "did not end" not in outcome.log, "a worker's last counts are missing"
    return rows_of(outcome)


@pytest.mark.smoke
def test_every_image_gets_one_row_and_any_reader_understands_it(fields: Path, undisturbed: pd.DataFrame) -> None:
    assert undisturbed["key"].tolist() == [f"images/farm_{index:06d}.jpg" for index in range(IMAGES)]
    assert (undisturbed["status"] == "ok").all()
    first = undisturbed.iloc[0]
    mask = encode.read_mask_png(first["mask"])
    assert mask.shape == (first["height"], first["width"]) == (96, 96)
    assert list(first["class_pixels"]) == np.bincount(mask.ravel(), minlength=7).tolist()
    assert undisturbed["refined"].all()


@pytest.mark.smoke
def test_ray_job_submit_runs_it_with_token_authentication(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    entry = ["python", "jobs/segment_dataset.py", *flags_for(fields, tmp_path), "--limit", "4", *QUICK]
    environment = {**ray_cluster.environment, "PATH": f"{BIN}:/usr/bin:/bin"}
    command = [BIN / "ray", "job", "submit", "--address", ray_cluster.dashboard, "--working-dir", "."]
    done = submitted([*command, "--", *entry], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_parquet(next(tmp_path.glob("run=*")) / "parts")) == 4
    refused = subprocess.run(
        [*command, "--", *entry],
        cwd=ROOT,
        env=environment | {"RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0


def submitted(command: list, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Submit a job, again for a while where the cluster's agent for jobs is not up: a busy machine starts it late."""
    until = time.monotonic() + 150
    while True:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > until:
            return done
        time.sleep(2)


@pytest.mark.faults
def test_a_driver_killed_while_its_workers_go_on_is_finished_by_the_same_command(
    fields: Path, ray_cluster: Cluster, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    """Every other moment is tried without Ray, in `test_segment_dataset`."""
    flags = [*flags_for(fields, tmp_path), *SMALL_PARTS]
    killed = finish(start("parts=1", *flags, *QUICK, cluster=ray_cluster, module="tests.support.drivers"))
    assert killed.status == -9, killed.log
    assert not list(tmp_path.glob("run=*/_SUCCESS"))
    committed = sum(len(pd.read_parquet(part)) for part in tmp_path.glob("run=*/parts/part-*"))
    resumed = segment(*flags, cluster=ray_cluster)
    assert resumed.status == 0, resumed.log
    # A write that was under way when its driver died may still land, so fewer rows may be left than were counted.
    assert resumed.summary["rows_now"] <= IMAGES - committed
    pd.testing.assert_frame_equal(rows_of(resumed), undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["InferStage", "RefineStage"])
def test_an_actor_killed_in_the_middle_of_a_task_costs_nothing(
    stage: str, fields: Path, ray_cluster: Cluster, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    driver = start(*flags_for(fields, tmp_path), *SMALL_PARTS, *QUICK, cluster=ray_cluster)
    kill_a_worker(ray_cluster, stage, when=lambda: any(tmp_path.glob("run=*/parts/part-*")))
    outcome = finish(driver)
    assert outcome.status == 0, outcome.log
    pd.testing.assert_frame_equal(rows_of(outcome), undisturbed)


@pytest.mark.faults
def test_an_image_that_kills_its_worker_fails_alone(ray_cluster: Cluster, tmp_path: Path) -> None:
    farmland.write_folder(Url(str(tmp_path / "in")), 12, size_px=64, seed=1)
    for name, mark in {"farm_000003": poison.DECODER, "farm_000007": poison.REFINER}.items():
        path = tmp_path / f"in/images/{name}.jpg"
        path.write_bytes(poison.poisoned(path.read_bytes(), mark))
    flags = [*flags_for(tmp_path / "in", tmp_path / "out"), *QUICK, "--runtime.max-failed-fraction", "0.2"]
    outcome = finish(start(*flags, cluster=ray_cluster, module="tests.support.poison"))
    assert outcome.status == 0, outcome.log
    rows = rows_of(outcome).set_index("key")
    codes = rows["error_code"].dropna().to_dict()
    assert codes == {"images/farm_000003.jpg": "crashed", "images/farm_000007.jpg": "refine_crashed"}
    assert (rows["status"] == "ok").sum() == 10
    dead = [re.findall(r"pid (\d+) on", detail) for detail in rows["error_detail"].dropna()]
    assert [len(pids) for pids in dead] == [2, 2]
    folder = Path(re.search(r"their logs are worker-\*-PID\.\* in (\S+)", outcome.log)[1])
    assert all(any(folder.glob(f"worker-*-{pid}.err")) for pids in dead for pid in pids)


def test_of_two_drivers_one_works_and_the_other_names_it(fields: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    flags = [*flags_for(fields, tmp_path), *SMALL_PARTS, *QUICK]
    first, second = (start(*flags, cluster=ray_cluster) for _ in range(2))
    outcomes = sorted((finish(driver) for driver in (first, second)), key=lambda one: one.status)
    assert [one.status for one in outcomes] == [0, 1], outcomes[1].log
    assert "another driver just took this run" in outcomes[1].log or "held by a live driver" in outcomes[1].log
    assert len(rows_of(outcomes[0])) == IMAGES


def test_a_submitted_job_refuses_a_relative_output(fields: Path, ray_cluster: Cluster) -> None:
    environment = {**ray_cluster.environment, "PATH": f"{BIN}:/usr/bin:/bin"}
    command = [BIN / "ray", "job", "submit", "--address", ray_cluster.dashboard, "--working-dir", ".", "--"]
    done = submitted([*command, "python", "jobs/segment_dataset.py", *flags_for(fields, "masks")], environment)
    assert done.returncode != 0
    assert "masks is a relative path in a submitted job" in done.stdout + done.stderr


def test_a_cluster_that_never_has_the_expected_gpu_ends_the_job_at_the_limit(
    fields: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    flags = [*flags_for(fields, tmp_path), "--runtime.expect-gpus", "1", "--runtime.start-limit-s", "2"]
    outcome = segment(*flags, cluster=ray_cluster)
    assert outcome.status == 1
    assert "waiting for 1 GPU, the cluster has 0" in outcome.log
    assert "waited 2 s for 1 GPU, the cluster has 0" in outcome.log


@pytest.mark.s3
def test_faults_of_the_store_are_survived_and_no_secret_is_written(
    s3_url: str, s3_proxy: FaultProxy, moto_server: S3Server, tmp_path: Path
) -> None:
    farmland.write_folder(Url(f"{s3_url}/in"), 6, size_px=64, seed=1)
    for fault in (503, "reset", 500):
        s3_proxy.fail_next(2, fault, prefix=f"{s3_url.removeprefix('s3://')}/in/")
    outcome = segment(*flags_for(f"{s3_url}/in", str(tmp_path)))
    assert outcome.status == 0, outcome.log
    assert outcome.summary["ok"] == 6
    secret = moto_server.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in outcome.log
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
