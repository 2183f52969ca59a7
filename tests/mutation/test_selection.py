"""Laws of the sample, and which names of modules are taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import ROOT
from tests.mutation.selection import OTHER_TESTS, module_path, sampled, selected_tests

NAMES = st.lists(st.integers(0, 99).map(str), unique=True)


@given(NAMES, st.integers(0, 50), st.integers(0, 50), st.integers(0, 9))
def test_a_larger_sample_holds_the_smaller(names: list[str], size: int, more: int, seed: int):
    assert set(sampled(names, size, seed)) <= set(sampled(names, size + more, seed)) <= set(names)


@given(NAMES, st.integers(0, 50), st.integers(0, 9))
def test_a_sample_has_its_size_and_does_not_depend_on_the_order(names: list[str], size: int, seed: int):
    assert sampled(names[::-1], size, seed) == sampled(names, size, seed)
    assert len(sampled(names, size, seed)) == min(size, len(names))


@given(NAMES, st.integers(0, 9))
def test_no_size_means_all(names: list[str], seed: int):
    assert sampled(names, None, seed) == sorted(names)


def test_another_seed_is_another_sample():
    names = [str(number) for number in range(200)]
    assert sampled(names, 40, 0) != sampled(names, 40, 1)


@pytest.mark.parametrize("name", ["pipeline/infer/tile.py", "pipeline.infer.tile", f"{ROOT}/pipeline/infer/tile.py"])
def test_a_module_is_named_by_path_or_with_dots(name: str):
    assert module_path(name) == "pipeline/infer/tile.py"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is no module of pipeline"),
        ("jobs/train.py", "is no module of pipeline"),
        ("pipeline/infer/tiles.py", "there is no file pipeline/infer/tiles.py; pipeline/infer holds: .*tile.py"),
        ("pipeline.nowhere.tile", "there is no file pipeline/nowhere/tile.py; no such folder of modules"),
        ("pipeline/infer/__init__.py", "has no test: write tests/pipeline/infer/test___init__.py"),
    ],
)
def test_a_wrong_module_is_named(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        module_path(name)


def test_every_module_and_test_of_the_table_exists():
    missing = [module for module in OTHER_TESTS if not (ROOT / f"pipeline/{module}.py").is_file()]
    missing += [
        path for paths in OTHER_TESTS.values() for path in paths if not (ROOT / "tests/pipeline" / path).is_file()
    ]
    assert not missing


def test_other_tests_come_beside_the_mirror():
    assert selected_tests("pipeline/image/decode.py")[0] == "tests/pipeline/image/test_decode.py"
    assert selected_tests("pipeline/infer/stitch.py") == [
        "tests/pipeline/infer/test_stitch.py",
        "tests/pipeline/infer/test_tile.py",
    ]
