"""A pytest plugin for the runs of mutants: fast tests first, so that most mutants are noticed within milliseconds."""

import json
from pathlib import Path

import pytest

MEASURED = Path("mutmut-stats.json")
"""What mutmut wrote of its first run of the tests, in the folder in which it runs them."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MEASURED.exists():
        seconds = json.loads(MEASURED.read_text())["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
