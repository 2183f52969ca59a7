"""Pages of the site that are generated from the code at every build: settings, commands, errors, columns, networks.

A hook of mkdocs: `on_files` adds each page of `PAGES` to the site. None of them is a file in the repository, so none
can be out of date. `CONTRIBUTING.md` of the repository's root becomes a page as well.
"""

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[2]
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
"""Keywords of JSON schema, in words."""
TYPE_NAMES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "yes or no", "object": "mapping"}
IN_A_FILE = ("then", "settings", "network.options", "loss.terms", "network.scale")
"""Settings that no flag can say: mappings and lists of groups."""
COMMAND_WIDTH = 100
"""Characters per line of the printed help."""
COMMANDS = {
    "inspect": "jobs.inspect_run",
    "polygons": "jobs.polygons",
    "zones": "jobs.zones",
    "export": "jobs.export",
    "select": "jobs.select_images",
    "import": "jobs.import_checkpoint",
    "models": "jobs.models",
    "compare": "jobs.compare_models",
    "compare-runs": "jobs.compare_runs",
    "submit": "jobs.submit",
    "demo": "jobs.demo",
}
"""Jobs whose flags are not a config, and their modules."""


def escaped(cell: str) -> str:
    """Text of a table's cell: no bar ends the cell, and outside of backquotes nothing is taken for HTML."""
    plain = cell.replace("|", "\\|").split("`")
    plain[::2] = [part.replace("<", "&lt;") for part in plain[::2]]
    return "`".join(plain)


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *([escaped(str(cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ---------------------------------------------------------------- settings


def model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The config class of a group of settings; None for a single setting."""
    kind = field.annotation
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def described_kind(schema: dict[str, Any]) -> str:
    """Type and limits of one setting, in words, from its JSON schema."""
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(described_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
    if schema.get("type") == "array":
        each = schema.get("items") or next(iter(schema.get("prefixItems", [])), {})
        count = (
            f"{schema['minItems']} times " if schema.get("minItems", 0) == schema.get("maxItems", -1) else "several: "
        )
        return count + described_kind(each)
    words = [TYPE_NAMES.get(schema.get("type", ""), schema.get("type", "group"))]
    words += [f"{said} {schema[name]:g}" for name, said in BOUNDS.items() if name in schema]
    words += [f"a multiple of {schema['multipleOf']:g}"] if "multipleOf" in schema else []
    return ", ".join(words)


def shown_default(field: FieldInfo) -> str:
    """The default as a flag takes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(f"`{one}`" for one in value) or "none"
    return f"`{value}`" if value not in ("", {}) else "empty"


def setting_rows(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Dotted name, kind, default and description of the single settings of a config."""
    schema = model.model_json_schema()["properties"]
    return [
        (prefix + name, described_kind(schema[name]), shown_default(field), field.description or "")
        for name, field in model.model_fields.items()
        if model_of(field) is None
    ]


def as_flag(name: str) -> str:
    """A setting as the command line takes it; of those that it cannot, the key of a file."""
    from pipeline.config import OTHER_FLAGS  # noqa: PLC0415

    flag = OTHER_FLAGS.get(name, f"--{name.replace('_', '-')}")
    return f"`{name}` in a file" if name in IN_A_FILE else f"`{flag}`"


def setting_tables(model: type[BaseModel], prefix: str = "", level: int = 2) -> Iterator[str]:
    """One table for the settings of a config, then one for each of its groups."""
    rows = [(as_flag(name), *rest) for name, *rest in setting_rows(model, prefix)]
    yield markdown_table(("flag", "value", "default", "meaning"), rows)
    for name, field in model.model_fields.items():
        if group := model_of(field):
            yield f"\n{'#' * level} {prefix}{name}\n\n{first_paragraph(group)}\n\n"
            yield from setting_tables(group, f"{prefix}{name}.", level + 1)


def first_paragraph(thing: Any) -> str:
    """The first paragraph of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0]


INTRODUCTION = """A setting is a flag, `--infer.batch 4`, and a key of a YAML file for `--config`:

    infer:
      batch: 4

Flags override the file, and the file overrides the defaults. A setting that says *yes or no* is switched by
`--infer.flip` and `--infer.no-flip`.

"""


def settings_page(title: str, model: type[BaseModel], *items: type[BaseModel]) -> str:
    """A page for one config; `items` are configs of which its file may hold several."""
    page = f"# {title}\n\n{first_paragraph(model)}\n\n{INTRODUCTION}" + "".join(setting_tables(model))
    for item in items:
        rows = [(f"`{name}`", *rest) for name, *rest in setting_rows(item)]
        page += f"\n## {item.__name__}\n\n{first_paragraph(item)}\n\n"
        page += markdown_table(("key in the file", "value", "default", "meaning"), rows)
    return page


def segment_settings() -> str:
    """Settings of `atrous segment`."""
    from pipeline.config import SegmentConfig  # noqa: PLC0415

    return settings_page("Settings", SegmentConfig)


def train_settings() -> str:
    """Settings of `atrous train`."""
    from pipeline.training.config import Phase, TrainConfig  # noqa: PLC0415

    return settings_page("Settings of train", TrainConfig, Phase)


def evaluate_settings() -> str:
    """Settings of `atrous evaluate`, and of the file of its gates."""
    from pipeline.config import EvaluateConfig, Setting  # noqa: PLC0415
    from pipeline.evaluate.gate import Gates, MetricGate  # noqa: PLC0415

    return settings_page("Settings of evaluate", EvaluateConfig, Setting, Gates, MetricGate)


def other_settings() -> str:
    """Settings of `atrous prepare` and `atrous tune-crf`."""
    prepare = importlib.import_module("jobs.prepare_dataset").PrepareConfig
    tune = importlib.import_module("jobs.tune_crf").TuneConfig
    page = "# Settings of prepare and tune-crf\n\n" + INTRODUCTION
    for name, model in (("prepare", prepare), ("tune-crf", tune)):
        page += f"## atrous {name}\n\n{first_paragraph(model)}\n\n" + "".join(setting_tables(model, level=3)) + "\n"
    return page


def commands_page() -> str:
    """The printed help of the jobs whose flags are not a config."""
    page = "# Commands\n\nThe jobs with few flags. Those with many have pages of their own: [segment](settings.md),\n"
    page += "[train](settings-train.md), [evaluate](settings-evaluate.md), [prepare and tune-crf](settings-other.md).\n"
    for name, module in COMMANDS.items():
        page += f"\n## atrous {name}\n\n```text\n{printed_help(name, module)}```\n"
    return page


def printed_help(name: str, module: str) -> str:
    """What `atrous NAME --help` prints."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), str(COMMAND_WIDTH)
    argv, sys.argv = sys.argv, [f"atrous {name}"]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            importlib.import_module(module).main(["--help"])
    finally:
        sys.argv = argv
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return printed.getvalue()


# ---------------------------------------------------------------- errors and columns


def errors_page() -> str:
    """Every code of a failed row, and the classes of errors."""
    from pipeline import errors  # noqa: PLC0415

    tree = re.search(r"(?ms)^( {4}AtrousError\n.*?)\n\n", errors.__doc__ or "")
    page = "# Error codes\n\nA row with `status = failed` has one of these in `error_code`, and the case itself in\n"
    page += "`error_detail`. The codes are stable: scripts may rely on them.\n\n"
    page += markdown_table(("code", "meaning"), ((f"`{code}`", said) for code, said in errors.ERROR_CODES.items()))
    page += "\n## Errors that end a job\n\nA job that cannot go on prints a message and, after `->`, what to change. "
    page += "It ends with status 1.\n\n"
    return page + (tree[1] if tree else "") + "\n"


def field_docstrings(module: Any, name: str) -> dict[str, str]:
    """The docstring below each field of a dataclass."""
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for field, after in pairwise(body):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def columns_page() -> str:
    """Every column of a part."""
    from pipeline import records  # noqa: PLC0415

    said = field_docstrings(records, "Row")
    rows = [(f"`{column.name}`", shown_type(column.type), said.get(column.name, "")) for column in records.ROW_SCHEMA]
    never = ", ".join(f"`{column.name}`" for column in records.ROW_SCHEMA if not column.nullable)
    page = (
        "# Columns\n\nOne row per image, in `parts/*.parquet`. Columns that need a mask are null for failed images.\n"
    )
    return page + f"Never null are {never}.\n\n" + markdown_table(("column", "type", "meaning"), rows)


def shown_type(kind: pa.DataType) -> str:
    """An Arrow type in a few words."""
    if pa.types.is_list(kind):
        return f"list of {shown_type(kind.value_type)}"
    return "struct" if pa.types.is_struct(kind) else str(kind)


# ---------------------------------------------------------------- networks


def networks_page() -> str:
    """Options of every network, published variants, and the presets of the CRF."""
    from pipeline.models import catalogue, zoo  # noqa: PLC0415
    from pipeline.refine.presets import PRESETS, CrfParams  # noqa: PLC0415

    page = "# Network options\n\nOptions stand under `network: options:` of a training config, and in the card of a "
    page += "checkpoint.\n"
    for name, (network, options) in zoo.NETWORKS.items():
        rows = [(f"`{option}`", *rest) for option, *rest in setting_rows(options)]
        strides = ", ".join(map(str, network.output_strides))
        page += f"\n## {name}\n\n{first_paragraph(network)} Output strides: {strides}.\n\n"
        page += markdown_table(("option", "value", "default", "meaning"), rows)
    page += "\n## Published variants\n\nNames for `atrous models --only` and `atrous compare --only`. Figures are "
    page += "those of the papers or repositories.\n\n"
    page += markdown_table(
        ("variant", "network", "year", "paper", "mean IoU, %", "measured on"),
        (
            (
                f"`{one.name}`",
                f"`{one.network}`",
                one.year,
                one.paper,
                "" if one.miou is None else one.miou,
                one.measured_on,
            )
            for one in catalogue.VARIANTS
        ),
    )
    names = list(CrfParams.__dataclass_fields__)
    page += "\n## CRF presets\n\nValues of `--refine.preset`.\n\n"
    rows = [(f"`{name}`", *(getattr(params, one) for one in names)) for name, params in PRESETS.items()]
    return page + markdown_table(("preset", *names), rows)


def contributing_page() -> str:
    """`CONTRIBUTING.md`, whose links start at the repository's root."""
    return (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")


PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": segment_settings,
    "reference/settings-train.md": train_settings,
    "reference/settings-evaluate.md": evaluate_settings,
    "reference/settings-other.md": other_settings,
    "reference/commands.md": commands_page,
    "reference/error-codes.md": errors_page,
    "reference/columns.md": columns_page,
    "reference/network-options.md": networks_page,
    "contributing.md": contributing_page,
}
"""Every generated page and what makes it."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that are files."""
    if str(ROOT) not in sys.path:  # here: mkdocs takes back what a hook does to it while it is loaded
        sys.path.insert(0, str(ROOT))
    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    style = Path(__file__).with_name("wide.css")
    files.append(File.generated(config, "assets/wide.css", abs_src_path=str(style)))
    return files
