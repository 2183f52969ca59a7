"""Validation of STAC items offline, by the schemas of `tests/schemas/stac`."""

import json
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from tests import ROOT

FOLDER = ROOT / "tests/schemas/stac"
CORE = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/"


@cache
def validators() -> dict[str, Draft7Validator]:
    """Validator of items by URL: of the core, and of each extension."""
    schemas = {}
    for path in FOLDER.glob("*.json"):
        schema = json.loads(path.read_text())
        schemas[schema["$id"] if path.name.startswith("geojson") else CORE + path.name] = schema
    extensions = {schema["$id"]: schema for schema in yaml.safe_load((FOLDER / "extensions.yaml").read_text())}
    registry: Registry = Registry().with_resources(
        (url, Resource.from_contents(schema)) for url, schema in (schemas | extensions).items()
    )
    checked = {f"{CORE}item.json": schemas[f"{CORE}item.json"]} | extensions
    formats = Draft7Validator.FORMAT_CHECKER
    return {url: Draft7Validator(schema, registry=registry, format_checker=formats) for url, schema in checked.items()}


def faults(item: dict[str, Any]) -> list[str]:
    """What is wrong with an item, by the core and by the extensions that it names; an unknown extension is a fault."""
    known = validators()
    wrong = [f"unknown extension {url}" for url in item.get("stac_extensions", []) if url not in known]
    for url in [f"{CORE}item.json", *item.get("stac_extensions", [])]:
        if url in known:
            wrong += [f"{error.json_path}: {error.message}" for error in known[url].iter_errors(item)]
    return wrong
