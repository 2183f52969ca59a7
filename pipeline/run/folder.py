"""Names of the objects in a run's folder, and the names that runs of older versions have for them.

    parts/part-<20 hex digits>.parquet      rows
    _manifest.json  _SUCCESS                totals; exists when the run is finished
    _report/index.html, _report/overlays.png
    _points.parquet, _points.qml            GeoParquet of the photos with a position, and its style for QGIS
    masks/<path>.tif, masks/<path>.qml      COG of each raster, and its style for QGIS
    items/<path>.json                       STAC item of each raster
    collection.json, items.parquet          STAC collection of the items, and the items as a table
    polygons/<path>.parquet                 polygons of each raster's mask
    zones.parquet, zones_map.parquet        classes of each zone and date, and zones to be drawn
    _run/config.yaml, environment.json, plan.arrow, owner-000001.json, ...
    .huggingface.yaml                       names the parts for `datasets.load_dataset(<run>)`

pandas and pyarrow read a folder as one table of Parquet and skip names that begin with `_` or `.`. Hugging Face
datasets reads `_SUCCESS` and all else beside the parts too, unless this YAML (or a README.md) names the data. The rows
of a run over rasters are read from `parts/`: masks and items lie beside it.
"""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import objects
from pipeline.store.url import Url

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
POINTS, POINTS_STYLE = "_points.parquet", "_points.qml"
REPORT_FOLDER = "_report"
REPORT = f"{REPORT_FOLDER}/index.html"
OVERLAYS = f"{REPORT_FOLDER}/overlays.png"
CONFIG = "_run/config.yaml"
ENVIRONMENT = "_run/environment.json"
PLAN = "_run/plan.arrow"
HUGGING_FACE = ".huggingface.yaml"
DERIVED = (POINTS, "items.parquet", "zones.parquet", "zones_map.parquet", "polygons/")
"""Starts of the names of tables that are made from rows and masks: other zones are no other masks."""

OLDER_NAMES = {
    MANIFEST: "manifest.json",
    REPORT: "report/index.html",
    OVERLAYS: "report/overlays.png",
    PLAN: "_run/plan.parquet",
}
"""Names in the runs of older versions; nothing is written under them any more."""

_REPLANNED = "delete it if no file of the source has changed"
"""Remedy for a damaged plan."""
HUGGING_FACE_YAML = b"configs:\n- config_name: default\n  data_files: parts/*.parquet\n"
"""Content of `HUGGING_FACE`; https://huggingface.co/docs/hub/datasets-manual-configuration."""


def find_object(run_url: Url, name: str) -> Url:
    """URL of an object of a run: its older name where only that exists, else `name`."""
    older = OLDER_NAMES.get(name)
    if older and not objects.exists(run_url / name) and objects.exists(run_url / older):
        return run_url / older
    return run_url / name


def read_plan(run_url: Url, *, hint: str = _REPLANNED) -> pa.Table | None:
    """Stored plan of a run, a table of `plan.PLAN_SCHEMA`, also that of an older version; None for a run without one.

    Raises:
        StorageError: the plan is damaged; with `hint`.
    """
    url = find_object(run_url, PLAN)
    if not objects.exists(url):
        return None
    with objects.naming_damage(url, hint=hint):
        stored = io.BytesIO(objects.read_bytes(url))
        return pq.read_table(stored) if url.name.endswith(".parquet") else pa.ipc.open_file(stored).read_all()


def is_of_rasters(run_url: Url) -> bool:
    """True for a run over rasters, by its stored plan."""
    if (plan := read_plan(run_url)) is None:
        return False
    with objects.naming_damage(find_object(run_url, PLAN), hint=_REPLANNED):
        return "raster" in plan["kind"].to_pylist()


def delete_older_names(run_url: Url) -> None:
    """Delete each object of an older name that has a successor under its present name."""
    for name, older in OLDER_NAMES.items():
        if objects.exists(run_url / older) and objects.exists(run_url / name):
            objects.delete(run_url / older)
