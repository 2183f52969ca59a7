"""One run for all tests of the page, since segmenting takes seconds."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.store.url import Url
from tests.support import viewed_runs


@dataclass(frozen=True)
class Viewed:
    """A run, a second one of other weights over the same images, and their files."""

    url: Url
    other: Url
    folder: Path


@pytest.fixture(scope="session")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Viewed:
    """A run with masks, labels, a failure and hostile keys, and one to compare it with."""
    folder = tmp_path_factory.mktemp("viewed")
    images = viewed_runs.write_source(folder)
    url = viewed_runs.segment(folder, images, labels=folder / "labels")
    return Viewed(url, viewed_runs.segment(folder, images, seed=1), folder)
