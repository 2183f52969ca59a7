from pathlib import Path

import pytest

from infra import preflight
from pipeline.errors import ConfigError, StorageError
from pipeline.store.url import Url


@pytest.mark.parametrize(
    ("source", "output"),
    [("photos", "photos/out"), ("s3://b/in", "s3://b/in/out"), ("/a/b/", "/a/b"), ("s3://b", "s3://b/out")],
)
def test_an_output_inside_a_source_is_refused_by_name(source: str, output: str) -> None:
    with pytest.raises(ConfigError, match="lies inside the source"):
        preflight.check_apart([Url(source)], Url(output))


@pytest.mark.parametrize(("source", "output"), [("photos", "photos2"), ("s3://b/in", "s3://b/out"), ("a/b", "a")])
def test_an_output_beside_or_above_a_source_is_fine(source: str, output: str) -> None:
    preflight.check_apart([Url(source)], Url(output))


def test_an_output_that_cannot_be_written_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError):
        preflight.check_output(Url(str(tmp_path / "file" / "out")))


def test_checking_the_output_leaves_nothing_behind(tmp_path: Path) -> None:
    preflight.check_output(Url(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_shared_cluster_without_authentication_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    preflight.check_authentication()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="token authentication is disabled"):
        preflight.check_authentication()


@pytest.mark.parametrize("output", ["out", "./out", "../out"])
def test_a_relative_path_in_a_submitted_job_is_refused_with_what_it_would_mean(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preflight.check_apart([Url("s3://b/in")], Url(output))
    monkeypatch.setenv(preflight.SUBMITTED, "{}")
    with pytest.raises(ConfigError, match=f"{output} is a relative path in a submitted job") as refusal:
        preflight.check_apart([Url("s3://b/in")], Url(output))
    assert Url(output).place in str(refusal.value)
    preflight.check_apart([Url("s3://b/in")], Url(f"{tmp_path}/out"))


@pytest.mark.parametrize(
    ("output", "nodes", "warns"),
    [
        ("/disk/out", [{"CPU": 2.0}, {"CPU": 2.0}], True),
        ("/disk/out", [{"CPU": 2.0}, {"memory": 1.0}], False),
        ("s3://b/out", [{"CPU": 2.0}, {"CPU": 2.0}], False),
    ],
)
def test_a_local_output_that_several_nodes_write_is_warned_of(output, nodes, warns, caplog) -> None:
    preflight.warn_of_local_output(Url(output), nodes)
    assert ("2 nodes write to it" in caplog.text) is warns
