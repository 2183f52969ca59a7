"""Fixtures of the tests of the main job."""

from pathlib import Path

import pytest

from pipeline.datasets import farmland
from pipeline.store.url import Url
from tests.support.drivers import IMAGES


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small farmland images."""
    folder = tmp_path_factory.mktemp("fields")
    farmland.write_folder(Url(str(folder)), IMAGES, size_px=96, seed=7)
    return folder
