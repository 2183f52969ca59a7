"""No module turns data into code, and no archive is unpacked to disk: read from the source, not by importing it."""

import ast
from functools import cache

import pytest

from tests import ROOT

PACKAGES = ("pipeline", "infra", "jobs", "benchmarks")

DANGEROUS_IMPORTS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
DANGEROUS_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "pandas.read_pickle", "pd.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
}
ALLOWED_CALLS = {"pipeline/importing/reader.py": "torch.load"}
"""The one module that may unpickle, and only with weights_only=True: every other one is given plain tensors."""
DANGEROUS_METHODS = {"extractall"}
DANGEROUS_KEYWORDS = {"allow_pickle", "shell"}  # when they are true


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the project, parsed, by its path in the repository."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def imports_of(tree: ast.Module) -> set[str]:
    """Full names of what a module imports anywhere in its body; `from a import b` is a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def dangers_in(tree: ast.Module, *, allowed: str = "") -> list[str]:
    """Calls and imports that turn data into code; `allowed` is a call that may stand there with weights_only=True."""
    dangers = [name for name in imports_of(tree) if is_dangerous_import(name)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        names = {dotted(call.func)} & DANGEROUS_CALLS
        names -= {allowed} if loads_only_weights(call) else set()
        names |= {call.func.attr} & DANGEROUS_METHODS if isinstance(call.func, ast.Attribute) else set()
        names |= {word.arg for word in call.keywords if word.arg in DANGEROUS_KEYWORDS and not is_false(word.value)}
        dangers += [f"line {call.lineno}: {name}" for name in names]
    return dangers


def loads_only_weights(call: ast.Call) -> bool:
    """The call has the literal weights_only=True, one positional argument, and no **keywords that could undo it."""
    values = [word.value for word in call.keywords if word.arg == "weights_only"]
    literal = len(values) == 1 and isinstance(values[0], ast.Constant) and values[0].value is True
    return literal and all(word.arg for word in call.keywords) and len(call.args) == 1


def is_dangerous_import(name: str) -> bool:
    return name in DANGEROUS_CALLS or name.partition(".")[0] in DANGEROUS_IMPORTS


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def test_no_module_turns_data_into_code():
    dangers = {path: dangers_in(tree, allowed=ALLOWED_CALLS.get(path, "")) for path, tree in sources().items()}
    assert {path: lines for path, lines in dangers.items() if lines} == {}


def test_each_allowance_is_used():
    assert all(dangers_in(ast.parse((ROOT / path).read_text())) for path in ALLOWED_CALLS)


def test_only_the_flow_and_its_benchmarks_import_ray_data():
    paths = {path for path, tree in sources().items() if any(name.startswith("ray.data") for name in imports_of(tree))}
    assert paths == {"pipeline/run/flow.py", "benchmarks/baselines/naive_ray.py", "benchmarks/overhead.py"}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=flag)",
        "torch.load(file, weights_only=1)",
        "torch.load(file, weights_only=True, **more)",
        "torch.load(file, 'cpu', pickle, weights_only=True)",
        "torch.jit.load(file, weights_only=True)",
        "from torch import load",
        "import pickle",
    ],
)
def test_the_allowance_covers_nothing_but_weights_only(source):
    assert dangers_in(ast.parse(source), allowed="torch.load")


def test_the_allowance_covers_a_load_of_weights_only():
    source = "torch.load(file, weights_only=True, map_location='cpu')"
    assert dangers_in(ast.parse(source), allowed="torch.load") == []
    assert dangers_in(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "torch.load(path, weights_only=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "tarfile.open(path).extractall()",
        "def late():\n    from cloudpickle import loads",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=flag)",
    ],
)
def test_dangers_are_found(source):
    assert dangers_in(ast.parse(source))


@pytest.mark.parametrize("source", ["model.eval()", "yaml.safe_load(text)", "np.load(path, allow_pickle=False)"])
def test_harmless_namesakes_are_let_through(source):
    assert not dangers_in(ast.parse(source))
