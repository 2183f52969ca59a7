"""Which mutants of a module are tried, and which tests have to notice them."""

import hashlib
from collections.abc import Iterable

from tests import ROOT

LEFT_OUT = "not ray and not slow and not s3 and not faults"
"""Marks of tests that start clusters or servers, or take long: a mutant has to be noticed without them."""

OTHER_TESTS = {
    "evaluate/history": ["evaluate/test_trend.py"],
    "image/decode": ["image/test_channels.py", "image/test_tiff.py"],
    "infer/stitch": ["infer/test_tile.py"],
    "refine/refiner": ["refine/test_engine.py"],
    "source/plan": ["source/test_folder.py", "source/test_parquet.py", "source/test_webdataset.py"],
    "training/learner": ["training/test_loop.py"],
}
"""Tests of a module beside its mirror: both below `tests/pipeline/` and `pipeline/`."""


def module_path(name: str) -> str:
    """`pipeline.infer.tile` or its path as a path from the root. Raises ValueError for anything else, and says why."""
    path = name if name.endswith(".py") else name.replace(".", "/") + ".py"
    path = path.removeprefix("./").removeprefix(f"{ROOT}/")
    if not path.startswith("pipeline/"):
        raise ValueError(f"{name!r} is no module of pipeline; MODULE=pipeline/infer/tile.py is one")
    if not (ROOT / path).is_file():
        folder = (ROOT / path).parent
        held = ", ".join(sorted(file.name for file in folder.glob("*.py")))
        near = f"{folder.relative_to(ROOT)} holds: {held}" if held else "no such folder of modules"
        raise ValueError(f"{name!r}: there is no file {path}; {near}")
    if not selected_tests(path):
        raise ValueError(f"{path} has no test: write {mirror(path)}, or name its tests in {__name__}.OTHER_TESTS")
    return path


def mirror(module: str) -> str:
    """`tests/pipeline/infer/test_tile.py` for `pipeline/infer/tile.py`."""
    folder, _, file = module.rpartition("/")
    return f"tests/{folder}/test_{file}"


def selected_tests(module: str) -> list[str]:
    """The mirror of a module and the other tests of it that exist, as paths from the root."""
    others = OTHER_TESTS.get(module.removeprefix("pipeline/").removesuffix(".py"), [])
    candidates = dict.fromkeys([mirror(module), *(f"tests/pipeline/{path}" for path in others)])
    return [path for path in candidates if (ROOT / path).is_file()]


def sampled(names: Iterable[str], size: int | None, seed: int) -> list[str]:
    """`size` of the names, all for None: the same for the same seed, and among those of any larger size."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return sorted(ranked[:size])
