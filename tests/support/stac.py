"""Validation of STAC items and collections offline, by the schemas of `tests/schemas/stac`."""

import json
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft7Validator
from jsonschema_specifications import REGISTRY
from referencing import Registry, Resource

from tests import ROOT

FOLDER = ROOT / "tests/schemas/stac"
CORE = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/"
COLLECTION = "https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json"


@cache
def validators() -> dict[str, Draft7Validator]:
    """Validator by URL: of items and of collections by the core, and of each extension."""
    schemas = {}
    for path in FOLDER.glob("*.json"):
        schema = json.loads(path.read_text())
        schemas[schema["$id"] if path.name.startswith(("geojson", "collection")) else CORE + path.name] = schema
    extensions = {schema["$id"]: schema for schema in yaml.safe_load((FOLDER / "extensions.yaml").read_text())}
    registry: Registry = REGISTRY.with_resources(
        (url, Resource.from_contents(schema)) for url, schema in (schemas | extensions).items()
    )
    checked = {url: schemas[url] for url in (f"{CORE}item.json", COLLECTION)} | extensions
    formats = Draft7Validator.FORMAT_CHECKER
    return {url: Draft7Validator(schema, registry=registry, format_checker=formats) for url, schema in checked.items()}


def faults(stac: dict[str, Any]) -> list[str]:
    """What is wrong with an item or a collection, by the core and by the extensions that it names.

    An unknown extension is a fault.
    """
    known = validators()
    extensions = stac.get("stac_extensions", [])
    wrong = [f"unknown extension {url}" for url in extensions if url not in known]
    is_collection = stac.get("type") == "Collection"
    checked = [(COLLECTION if is_collection else f"{CORE}item.json", stac)]
    checked += [(url, _fields(stac) if is_collection else stac) for url in extensions if url in known]
    for url, plain in checked:
        wrong += [f"{error.json_path}: {error.message}" for error in known[url].iter_errors(plain)]
    return wrong


def _fields(collection: dict[str, Any]) -> dict[str, Any]:
    """Fields of extensions in a collection, where an item has them: of its assets, and one value of each summary."""
    summaries = collection.get("summaries", {})
    properties = {
        name: values if name == "classification:classes" else next(iter(values), None)
        for name, values in summaries.items()
    }
    return {"properties": properties, "assets": collection.get("assets", {}) | collection.get("item_assets", {})}
