"""README and docs: links lead somewhere, commands name jobs and flags, snippets run, the site builds strictly."""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from jobs import cli
from pipeline.datasets import farmland
from pipeline.datasets.catalogue import DATASET_LAYOUTS
from pipeline.models import zoo
from pipeline.store.url import Url
from tests import ROOT
from tests.support import judged_runs

SITE = ROOT / "docs/site"
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README_BYTES = 9000
PLACES = 10
"""Named by the walk of the architecture, at most."""

JOBS = {name: job.module for name, job in cli.JOBS.items()}
"""What `atrous NAME` runs."""
NEEDED_BY_A_SNIPPET_ALONE = ("cv2", "polars", "datasets", "duckdb")
COMMAND = re.compile(
    r"(?:^|\s)(?:atrous (?P<name>[a-z-]+)|python -m (?P<module>(?:jobs|benchmarks)\.\w+)|python (?P<file>jobs/\w+\.py))"
    r"(?=\s|$)"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SETTING = re.compile(r"`(--[a-z]+\.[a-z0-9-]+)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*(?:\.[a-z0-9_-]+)*")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def generator() -> ModuleType:
    """`docs/site/generate.py`, which is no package."""
    spec = importlib.util.spec_from_file_location("generate", SITE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_blocks(page: Path) -> list[str]:
    """Text of the fenced and the indented blocks."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return fenced + re.findall(r"(?:^ {4}.*\n?)+", rest, re.M)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The module and the words of each command line of ours on a page; a command may contain another one after `--`."""
    lines = [line for block in code_blocks(page) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    found = []
    for line in lines:
        command = line.partition("  #")[0]
        starts = list(COMMAND.finditer(command))
        for match, end in zip(starts, [*(one.start() for one in starts[1:]), len(command)], strict=False):
            found.append((module_of(match), command[match.end() : end].split()))
    return found


def module_of(match: re.Match[str]) -> str:
    """The module that a command runs; `atrous x` itself where there is no such job."""
    if match["name"]:
        return "jobs.cli" if match["name"] == "completion" else JOBS.get(match["name"], f"atrous {match['name']}")
    return str(match["module"] or match["file"].removesuffix(".py").replace("/", "."))


@cache
def help_of(module: str) -> str:
    """What a job prints for `--help-all`, or for `--help` where that is all there is."""
    status, text = printed_by(module, "--help-all")
    if status:
        status, text = printed_by(module, "--help")
    assert status == 0
    return text


def printed_by(module: str, flag: str) -> tuple[int, str]:
    """Exit status and standard output of a job."""
    job = importlib.import_module(module)
    main = (importlib.import_module(f"{module}.__main__") if hasattr(job, "__path__") else job).main  # of a package
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "1000")
        patch.setattr(sys, "argv", [module, flag])
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code
    return int(status or 0), printed.getvalue()


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= README_BYTES


def test_relative_links_lead_to_a_file_or_a_generated_page() -> None:
    generated = {(ROOT / "docs" / path).resolve() for path in generator().PAGES}
    targets = [(page, one.partition("#")[0]) for page in PAGES for one in LINK.findall(page.read_text())]
    local = {(name_of(page), (page.parent / one).resolve()) for page, one in targets if one and "://" not in one}
    assert [(page, str(path)) for page, path in local if path not in generated and not path.exists()] == []


def test_the_readme_and_contributing_link_to_no_generated_page() -> None:
    """They are read where pages are not generated."""
    for page in PAGES[:2]:
        assert not [path for path in generator().PAGES if f"(docs/{path}" in page.read_text()]


def test_the_pages_show_commands_of_every_job() -> None:
    shown = {module for page in PAGES for module, _ in commands(page)}
    assert shown >= set(JOBS.values()) - {"jobs.demo"}


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_name_jobs_and_flags_that_exist(page: Path) -> None:
    for module, words in commands(page):
        assert importlib.util.find_spec(module), f"{module} is no module"
        flags = {word.partition("=")[0] for word in words if word.startswith("--") and len(word) > len("--")}
        unknown = flags - set(FLAG.findall(help_of(module))) - {"--help", "--help-all", "--version"}
        assert not unknown, f"{module} has no {sorted(unknown)}"


def test_flags_named_in_the_text_exist() -> None:
    """Those with a dot are settings of one of the jobs."""
    known = {flag for job in JOBS.values() for flag in FLAG.findall(help_of(job))}
    named = {(name_of(page), flag.rstrip(".")) for page in PAGES for flag in SETTING.findall(page.read_text())}
    assert [(page, flag) for page, flag in named if flag not in known] == []


# ---------------------------------------------------------------- snippets


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what `make demo` leaves behind, of smaller images; beside the run another and one begun."""
    folder = tmp_path_factory.mktemp("snippets")
    farmland.write_folder(Url(str(folder / "demo/source")), 3, size_px=96, seed=2026, with_labels=True)
    said = {"source": [str(folder / "demo/source")], "output": str(folder / "demo/out"), "checkpoint": "farmland"}
    run = judged_runs.carry_out(judged_runs.config(**said))
    judged_runs.carry_out(judged_runs.config(**said | {"limit": 2}))
    begun = Path(run.url.raw).with_name("run=000000000000") / "_run/config.yaml"  # sorts before all others
    begun.parent.mkdir(parents=True)
    begun.write_text("")
    return folder


def snippets() -> list[tuple[str, str]]:
    """Every Python block of the pages, with a name; those of the loop need its commands, and run in `test_loop`."""
    return [
        (f"{name_of(page)}:{number}", code)
        for page in PAGES
        if page.name != "loop.md"
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M), start=1)
    ]


def imports_of(code: str) -> set[str]:
    """First names of the modules that a snippet imports."""
    nodes = list(ast.walk(ast.parse(code)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.partition(".")[0]
        for name in plain | {one.module or "" for one in nodes if isinstance(one, ast.ImportFrom)}
    }


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in snippets()])
def test_python_snippets_run_as_pasted(code: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in sorted(imports_of(code) & set(NEEDED_BY_A_SNIPPET_ALONE)):
        pytest.importorskip(package)
    monkeypatch.chdir(demo)
    monkeypatch.setenv("HF_HOME", str(demo / "hub"))
    for _ in range(2):  # a second time it finds what the first one left
        exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


# ---------------------------------------------------------------- tables that repeat the code


def first_column(page: str, heading: str) -> list[str]:
    """The names in backquotes that begin the lines of the first table whose header begins with `heading`."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading}"))
    rows = lines[start + 2 :]
    until = next((number for number, line in enumerate(rows) if not line.startswith("|")), len(rows))
    return [line.split("`")[1] for line in rows[:until]]


def test_the_table_of_networks_lists_the_zoo() -> None:
    assert sorted(first_column("docs/networks.md", "network")) == sorted(zoo.NETWORKS)


def test_the_table_of_networks_has_their_output_strides() -> None:
    for line in (ROOT / "docs/networks.md").read_text().splitlines():
        if line.startswith("| `") and line.split("`")[1] in zoo.NETWORKS and "inner network" not in line:
            strides = zoo.NETWORKS[line.split("`")[1]][0].output_strides
            assert line.split("|")[3].partition("(")[0].strip() == ", ".join(map(str, strides))


def test_the_table_of_data_sets_lists_every_layout() -> None:
    assert first_column("docs/datasets.md", "`--layout`") == list(DATASET_LAYOUTS)


def test_the_walk_through_the_architecture_names_at_most_ten_places_that_exist() -> None:
    places = re.findall(r"`([\w.]+):(\w+)`", (ROOT / "docs/architecture.md").read_text())
    assert 5 < len(places) <= PLACES
    missing = [f"{module}:{name}" for module, name in places if not hasattr(importlib.import_module(module), name)]
    assert not missing


# ---------------------------------------------------------------- generated pages and the site


def test_the_generated_settings_are_the_flags_of_the_jobs() -> None:
    pages = {"jobs.segment_dataset": "settings", "jobs.train": "settings-train", "jobs.evaluate": "settings-evaluate"}
    of_the_command = {"--help", "--help-all", "--version", "--config", "--plan", "--bare", "--dry-run", "--find-lr"}
    of_the_command |= {"--notify", "--rehearse", "--budget-hours", "--prices", "--crew-output"}
    of_defaults = {"--loss.terms.cross-entropy"}  # tyro makes flags of the keys that a default has
    of_ray = {"--working-dir", "--submission-id"}  # in the example that begins the help
    for module, page in pages.items():
        listed = set(re.findall(r"^\| `(--[^`]+)`", generator().PAGES[f"reference/{page}.md"](), re.M))
        flags = {one for one in FLAG.findall(help_of(module)) if not re.search(r"--(\w[\w-]*\.)*no-", one)}
        assert not listed - flags
        assert not flags - listed - of_the_command - of_ray - of_defaults


def test_the_generated_columns_are_all_described() -> None:
    page = generator().PAGES["reference/columns.md"]()
    empty = re.findall(r"^\| `(\w+)` \|.*\|  \|$", page, re.M)
    assert "Palette PNG" in page
    assert not empty


@pytest.mark.timeout(300)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m mkdocs build --strict -f {SITE / 'mkdocs.yml'} -d {tmp_path}"
    built = subprocess.run(shlex.split(command), capture_output=True, text=True, cwd=ROOT, env=None)
    assert built.returncode == 0, built.stderr
    assert 'src="http' not in (tmp_path / "index.html").read_text()  # nothing is loaded from elsewhere
