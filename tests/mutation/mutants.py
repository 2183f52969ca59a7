"""Plant small mistakes in one module and see which of them its tests notice; docs/development/mutants.md is the guide.

    python -m tests.mutation.mutants pipeline/infer/tile.py --sample 40

mutmut writes the mutants into a folder that is thrown away, and runs for each the tests that call the changed function.
Exit status: 0 where at least 90 % are noticed, 1 where fewer are, 2 where nothing could be measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from tests import ROOT
from tests.mutation.selection import LEFT_OUT, module_path, sampled, selected_tests
from tests.mutation.verdict import LISTED, Mutant, change, equivalents, verdict

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
"""How mutmut begins its lines of progress."""

# Each mutant starts from a process that has only imported the tests: torch's threads do not survive a fork. One that
# hangs is ended after (seconds of its tests + constant) * multiplier.
SETTINGS = """
[tool.mutmut]
source_paths = ["pipeline"]
only_mutate = ["{module}"]
also_copy = {copied}
pytest_add_cli_args_test_selection = ["-m", "{marks}", {tests}]
pytest_add_cli_args = ["-p", "tests.mutation.fastest_first", "-p", "no:cacheprovider"]
process_isolation = "forkserver"
timeout_constant = 15.0
timeout_multiplier = 4.0
"""


class NothingMeasured(Exception):
    """What kept mutmut from trying the mutants."""


@contextmanager
def project_of(module: str) -> Iterator[None]:
    """Work in a folder whose entries lead to the checkout: mutmut copies all it needs from them into `mutants/`."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    entries = {line.partition("/")[0] for line in listing.splitlines()} - {"pyproject.toml"}
    tests = ", ".join(f'"{path}"' for path in selected_tests(module))
    settings = SETTINGS.format(module=module, copied=sorted(entries - {"pipeline"}), marks=LEFT_OUT, tests=tests)
    with tempfile.TemporaryDirectory(prefix="mutants") as folder, chdir(folder):
        for entry in entries:
            Path(entry).symlink_to(ROOT / entry)
        Path("pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)
        yield


def try_mutants(module: str, size: int | None, seed: int) -> list[Mutant]:
    """All mutants of a module, with the status of those in the sample; to be called inside `project_of`.

    Raises NothingMeasured where there are none, and where the tests fail without a mutant.
    """
    from mutmut.mutation.data import SourceFileMutationData  # an extra that `make mutants` alone installs
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.format_utils import get_mutant_name

    path = Path(module)
    every = [get_mutant_name(path, name) for name in mutate_file_contents(module, path.read_text()).mutant_names]
    if not every:
        raise NothingMeasured(f"{module} has no mutants: mutmut changes functions, not decorated ones or module level")
    names = sampled(every, size, seed)
    run(names)
    data = SourceFileMutationData(path=path)
    data.load()
    diffs = {name: get_diff_for_mutant(name, path=path) for name in every}
    status = {name: status_by_exit_code[data.exit_code_by_key[name]] for name in names}
    if "not checked" in status.values():
        raise NothingMeasured(f"mutmut left mutants of {module} untried")
    return [Mutant(name, status.get(name), change(module, name, diffs[name]), diffs[name]) for name in every]


def run(names: list[str]) -> None:
    """Let mutmut try these mutants. Raises NothingMeasured with its output where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "quick"}
    command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run", "--max-children", "1", *names]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line and line[0] not in SPINNER]
        raise NothingMeasured(f"mutmut ended with status {done.returncode}:\n" + "\n".join(said[-100:]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", help="pipeline/infer/tile.py or pipeline.infer.tile")
    parser.add_argument("--sample", default="40", help="how many mutants, or `all`")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another sample")
    arguments = parser.parse_args(argv)
    if arguments.sample != "all" and not (arguments.sample.isdecimal() and int(arguments.sample)):
        parser.error(f"--sample is a number of mutants from 1 on, or `all`, not {arguments.sample!r}")
    size = None if arguments.sample == "all" else int(arguments.sample)
    try:
        module = module_path(arguments.module)
        listed = equivalents(LISTED.read_text())
        with project_of(module):
            tried = try_mutants(module, size, arguments.seed)
    except (ValueError, NothingMeasured) as error:
        print(error, file=sys.stderr)
        return 2
    lines, enough = verdict(module, tried, listed)
    print(*lines, sep="\n")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
