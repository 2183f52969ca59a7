"""Which module may import which, read from the source: nothing is imported here."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "infra", "jobs")

# Every module belongs to one layer; the name of a package stands for all of its modules, except for `pipeline` itself,
# which stands for its empty __init__.
LAYER = {
    # L0, the vocabulary: standard library, numpy, pyarrow, pydantic.
    "pipeline": "L0",
    "pipeline.records": "L0",
    "pipeline.errors": "L0",
    "pipeline.classes": "L0",
    "pipeline.config": "L0",
    "pipeline.redact": "L0",
    "pipeline.ahead": "L0",
    "pipeline.extension": "L0",
    # L1, what happens to pixels: no I/O, no torch, no Ray.
    "pipeline.decode": "L1",
    "pipeline.tile": "L1",
    "pipeline.stitch": "L1",
    "pipeline.pyramid": "L1",
    "pipeline.workers": "L1",  # arithmetic on what a cluster has
    "pipeline.refine": "L1",
    "pipeline.encode": "L1",
    "pipeline.stats": "L1",
    "pipeline.metrics": "L1",
    "pipeline.paint": "L1",
    "pipeline.boundary": "L1",
    "pipeline.calibration": "L1",
    "pipeline.label_maps": "L1",
    "pipeline.intervals": "L1",
    "pipeline.drift": "L1",
    "pipeline.labels": "L1",
    "pipeline.judging": "L1",
    # L1t, the network: torch.
    "pipeline.refine.lattice_torch": "L1t",
    "pipeline.models": "L1t",
    "pipeline.checkpoint": "L1t",
    "pipeline.infer": "L1t",
    "pipeline.training": "L1t",
    # L2, what touches a store.
    "pipeline.storage": "L2",
    "pipeline.https": "L2",
    "pipeline.source": "L2",
    "pipeline.sink": "L2",
    "pipeline.manifest": "L2",
    "pipeline.owner": "L2",
    "pipeline.run": "L2",
    "pipeline.datasets": "L2",
    "pipeline.inventory": "L2",
    # L3, the stages put together. Only `flow` knows Ray; what it runs, decides and counts stands beside it.
    "pipeline.flow": "L3",
    "pipeline.stages": "L3",
    "pipeline.ledger": "L3",
    "pipeline.cards": "L3",
    "pipeline.page": "L3",
    "pipeline.plots": "L3",
    "pipeline.comparison": "L3",
    "pipeline.comparison_table": "L3",
    "pipeline.report": "L3",
    "pipeline.evaluation_plots": "L3",
    "pipeline.evaluation_report": "L3",
    "pipeline.gate": "L3",
    "pipeline.history": "L3",
    "pipeline.trend": "L3",
    "pipeline.training_report": "L3",
    "pipeline.evaluation": "L3",
    "pipeline.scoring": "L3",
    "pipeline.masks": "L3",
    "pipeline.samples": "L3",
    "pipeline.tuning": "L3",
    "pipeline.tuning_report": "L3",
    "pipeline.verify": "L3",
    "pipeline.prepare": "L3",
    "pipeline.importing": "L3",
    # The same for training, whose pure parts are above. Only `on_ray` knows Ray.
    "pipeline.training.collection": "L3",
    "pipeline.training.examples": "L3",
    "pipeline.training.state": "L3",
    "pipeline.training.tracker": "L3",
    "pipeline.training.initial": "L3",
    "pipeline.training.learner": "L3",
    "pipeline.training.validate": "L3",
    "pipeline.training.run": "L3",
    "pipeline.training.loop": "L3",
    "pipeline.training.forecast": "L3",
    "pipeline.training.member": "L3",
    "pipeline.training.on_ray": "L3",
    # What knows the cluster, and what knows the user.
    "infra": "infra",
    "jobs": "L4",
    "jobs.baselines": "L4",
}

MAY_IMPORT = {
    "L0": {"L0"},
    "L1": {"L0", "L1"},
    "L1t": {"L0", "L1", "L1t"},
    "L2": {"L0", "L2"},
    "L3": {"L0", "L1", "L1t", "L2", "L3"},
    "infra": {"L0", "infra"},
    "L4": {"L0", "L1", "L1t", "L2", "L3", "infra", "L4"},
}

# Single imports beyond the rule, each with its reason.
EXCEPTIONS = {
    ("pipeline.refine", "pipeline.refine.lattice_torch"),  # one engine of several, imported when it is asked for
    ("pipeline.datasets", "pipeline.labels"),  # ids and colours of public sets are translated as those of any label
    ("pipeline.checkpoint", "pipeline.storage"),  # weights are read from where they are
    ("infra", "pipeline.storage"),  # preflight tries the output's store
    ("infra", "pipeline.ledger"),  # progress lines say what the ledger counted
}

# Libraries that only some layers or modules may import.
ONLY_IN = {
    "torch": {"L1t", "L3", "L4"},
    "ray": {"pipeline.flow", "pipeline.training.on_ray", "infra", "L4"},
    "ray.data": {"pipeline.flow", "jobs.baselines"},  # the baseline is the naive use of it
    "fsspec": {"L2"},
    "s3fs": {"L2"},
    "aiohttp": {"L2"},
}

# Ways in which data becomes code, or an archive writes where it likes.
DANGEROUS_IMPORTS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
DANGEROUS_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "pandas.read_pickle", "pd.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
}
ALLOWED_CALLS = {"pipeline.importing.reader": "torch.load"}
"""The one module that may unpickle, and only with weights_only=True: everything else is given plain tensors."""
DANGEROUS_METHODS = {"extractall"}
DANGEROUS_KEYWORDS = {"allow_pickle", "shell"}  # when they are true


def sources() -> dict[str, Path]:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = sources()


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def entry_of(module: str) -> str | None:
    """The line of LAYER that `module` falls under."""
    if module in LAYER:
        return module
    parent = module.rpartition(".")[0]
    return entry_of(parent) if parent and parent != "pipeline" else None


def imports_of(tree: ast.Module, module: str, *, is_package: bool = False) -> set[str]:
    """Full names of what is imported anywhere in a module's body.

    `from a import b` counts as a.b when `a` is a library or a.b is a module of ours, and as `a` otherwise.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = module.split(".")[: module.count(".") + 1 - node.level + is_package] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            full = {f"{base}.{alias.name}" for alias in node.names}
            found |= {one if one in MODULES or base.partition(".")[0] not in PACKAGES else base for one in full}
    return found


@cache
def imported_by(module: str) -> set[str]:
    return imports_of(tree_of(module), module, is_package=MODULES[module].name == "__init__.py")


def ours_imported_by(module: str) -> set[str]:
    return {name for name in imported_by(module) if name.partition(".")[0] in PACKAGES}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def dangers_in(tree: ast.Module, *, allowed: str = "") -> list[str]:
    """Calls and imports that turn data into code; `allowed` is a call that may stand there with weights_only=True."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [name for name in imports_of(tree, "snippet") if is_dangerous_import(name)]
    for call in calls:
        names = {dotted(call.func)} & DANGEROUS_CALLS
        names -= {allowed} if only_weights(call) else set()
        names |= {call.func.attr} & DANGEROUS_METHODS if isinstance(call.func, ast.Attribute) else set()
        names |= {one.arg for one in call.keywords if one.arg in DANGEROUS_KEYWORDS and not is_false(one.value)}
        found += [f"line {call.lineno}: {name}" for name in names]
    return found


def only_weights(call: ast.Call) -> bool:
    """Whether it says weights_only=True, in so many words, and hands nothing on that could say otherwise."""
    said = [one.value for one in call.keywords if one.arg == "weights_only"]
    literal = len(said) == 1 and isinstance(said[0], ast.Constant) and said[0].value is True
    return literal and all(one.arg for one in call.keywords) and len(call.args) == 1


def is_dangerous_import(name: str) -> bool:
    return name in DANGEROUS_CALLS or name.partition(".")[0] in DANGEROUS_IMPORTS


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def is_under(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module):
    assert entry_of(module), f"add {module} to LAYER at the top of tests/test_layers.py"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    entry = entry_of(module)
    layer = LAYER[entry]
    wrong = {
        name
        for name in ours_imported_by(module)
        if LAYER.get(entry_of(name)) not in MAY_IMPORT[layer] and (entry, entry_of(name)) not in EXCEPTIONS
    }
    assert not wrong, f"{module} ({layer}) may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_layers(module):
    at_home = {entry_of(module), LAYER[entry_of(module)]}
    for library, allowed in ONLY_IN.items():
        strays = [name for name in imported_by(module) if is_under(name, library)]
        assert not strays or at_home & allowed, f"{module} may not import {library}"


@pytest.mark.parametrize("module", ["pipeline.classes", "pipeline.config"])
def test_the_vocabulary_imports_only_errors(module):
    assert ours_imported_by(module) <= {"pipeline.errors"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_turns_data_into_code(module):
    assert dangers_in(tree_of(module), allowed=ALLOWED_CALLS.get(module, "")) == []


@pytest.mark.parametrize("module", ALLOWED_CALLS)
def test_what_is_allowed_is_there_and_nowhere_else(module):
    assert dangers_in(tree_of(module)), "take it out of ALLOWED_CALLS"


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
def test_the_allowance_goes_no_further_than_its_words(source):
    assert dangers_in(ast.parse(source), allowed="torch.load")


def test_the_allowance_is_for_a_load_of_weights_only():
    source = "torch.load(file, weights_only=True, map_location='cpu')"
    assert dangers_in(ast.parse(source), allowed="torch.load") == []
    assert dangers_in(ast.parse(source))


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import ray.data", "ray.data"),
        ("from ray import data", "ray.data"),
        ("def late():\n    import ray.data as rd", "ray.data"),
        ("from pipeline import storage", "pipeline.storage"),
        ("from pipeline.errors import InputError", "pipeline.errors"),
        ("from . import storage", "pipeline.storage"),
        ("from .errors import InputError", "pipeline.errors"),
    ],
)
def test_imports_are_found_however_they_are_written(source, imported):
    assert imports_of(ast.parse(source), "pipeline.snippet") == {imported}


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
