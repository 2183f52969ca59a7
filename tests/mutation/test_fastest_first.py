"""The order in which tests look for a mutant."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.mutation.fastest_first import MEASURED, pytest_collection_modifyitems


def ordered(*names: str) -> list[str]:
    items = [SimpleNamespace(nodeid=name) for name in names]
    pytest_collection_modifyitems(items)
    return [item.nodeid for item in items]


def test_tests_run_from_fast_to_slow_and_new_ones_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    MEASURED.write_text(json.dumps({"duration_by_test": {"slow": 2.0, "fast": 0.01}}))
    assert ordered("slow", "fast", "new") == ["new", "fast", "slow"]


def test_before_the_first_run_the_order_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert ordered("slow", "fast") == ["slow", "fast"]
