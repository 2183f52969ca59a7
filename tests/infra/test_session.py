"""What a cluster is expected to reach is waited for with a limit, and refused where nothing can scale up."""

import pytest

from infra import session
from pipeline.errors import ConfigError, JobError


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Resources of a made-up cluster, which a request for more changes to `grows`."""
    resources: dict[str, float] = {"CPU": 2.0}
    monkeypatch.setattr(session.ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(session, "request_resources", lambda bundles: resources.setdefault("asked", len(bundles)))
    monkeypatch.setattr(session, "RESOURCE_POLL_S", 0.01)
    return resources


def test_a_cluster_of_our_own_is_refused_what_the_machine_lacks(cluster, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"--runtime.expect-gpus 1: this job started Ray .* which has 0 GPU"):
        session.wait_for_expected({"CPU": 2, "GPU": 1}, limit_s=9)
    session.wait_for_expected({"CPU": 2, "GPU": None}, limit_s=9)
    session.wait_for_expected({"CPU": None, "GPU": 0}, limit_s=9)


def test_a_shared_cluster_is_waited_for_until_it_has_the_first_of_each(cluster, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(session, "request_resources", lambda bundles: cluster.update(bundles[0] if bundles else {}))
    monkeypatch.setattr(session.ray, "cluster_resources", iter([{}, {}, {"GPU": 4.0}]).__next__)
    session.wait_for_expected({"GPU": 8}, limit_s=9)
    assert "waiting for 1 GPU, the cluster has 0" in caplog.text
    assert cluster["GPU"] == 1, "the autoscaler is asked for one"


def test_a_shared_cluster_that_never_grows_ends_the_job_at_the_limit(cluster, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(JobError, match=r"waited 0.05 s for 1 GPU, the cluster has 0"):
        session.wait_for_expected({"CPU": 128, "GPU": 4}, limit_s=0.05)
    assert cluster["asked"] == 1
