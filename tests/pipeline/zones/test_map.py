"""The map of a run over rasters: what is drawn, and what is said to be missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.transform import from_origin

from pipeline.assemble.assemble import do_join, do_squares, group_squares, plan_work, squares_left
from pipeline.assemble.collection import write_collection
from pipeline.page.map import PageMap
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.zones.map import run_map
from tests.support.raster_runs import CLASSES, busy_mask, commit_masks
from tests.support.rasters import values, write_raster

FACTS = {"atrous:run": "r", "atrous:model": "m"}


def assembled(folder: Path, places: dict[str, dict[str, Any]], failed: frozenset[str] = frozenset()) -> Url:
    """Run over small rasters at these places, whose masks are joined."""
    masks = {}
    for seed, (name, place) in enumerate(places.items()):
        write_raster(folder / "source" / name, values(90, 120, 3), names=("red", "green", "blue"), **place)
        masks[name] = busy_mask(90, 120, seed=seed)
    url = Url(str(folder / "run"))
    commit_masks(url, folder / "source", masks, failed=failed)
    todo = plan_work(url, holes=False)
    for group in group_squares(squares_left(url, todo.assemblies)):
        do_squares(group, run_url=url)
    for assembly in todo.assemblies:
        do_join(assembly, run_url=url, classes=CLASSES, facts=FACTS)
    write_collection(url, CLASSES, facts=FACTS)
    return url


def layers_of(page_map: PageMap | None) -> dict[str, Any]:
    assert page_map is not None
    text = str(page_map.html).partition('id="map-data">')[2].removesuffix("</script>")
    return {layer["name"]: layer for layer in json.loads(text)["layers"]}


def at(x: float) -> dict[str, Any]:
    return {"crs": "EPSG:32614", "transform": from_origin(500000 + x, 5200000, 1, 1)}


def test_masks_of_one_date_are_a_layer_and_the_latest_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = assembled(tmp_path, {"a.tif": at(0), "b.tif": at(150), "c.tif": at(0)})
    for name, date in (("a", "2020-05-01"), ("b", "2020-05-01"), ("c", "2021-05-01")):
        item = json.loads(objects.read_bytes(url / f"items/{name}.json"))
        item["properties"]["datetime"] = f"{date}T00:00:00Z"
        objects.put(url / f"items/{name}.json", json.dumps(item).encode())
    layers = layers_of(run_map(url, CLASSES))
    assert {name: (len(layer["images"]), layer["shown"]) for name, layer in layers.items() if layer["images"]} == {
        "masks 2020-05-01": (2, False),
        "masks 2021-05-01": (1, True),
    }
    assert len(layers["outlines of rasters"]["shapes"]) == 3


def test_what_is_not_on_the_map_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"crs": None, "transform": None}
    url = assembled(tmp_path, {"a.tif": at(0), "b.tif": nowhere, "c.tif": at(300)}, frozenset({"c.tif#0,0"}))
    html = str(run_map(url, CLASSES).html)
    assert "1 of 2 rasters have no coordinates and are not on the map." in html
    assert "1 raster(s) have no mask, because windows of them failed." in html
    monkeypatch.setattr("pipeline.zones.map.IMAGE_BYTES", 10)
    assert "The masks of 0 of 1 rasters are drawn" in str(run_map(url, CLASSES).html)


def test_a_run_without_a_mask_on_earth_has_no_map(tmp_path: Path) -> None:
    assert run_map(assembled(tmp_path, {"a.tif": {"crs": None, "transform": None}}), CLASSES) is None


def test_pictures_are_small_and_clear_where_there_is_no_data(tmp_path: Path) -> None:
    import io
    from base64 import b64decode

    from PIL import Image

    layers = layers_of(run_map(assembled(tmp_path, {"a.tif": at(0)}), CLASSES))
    uri = layers["masks"]["images"][0]["uri"]
    with Image.open(io.BytesIO(b64decode(uri.partition(",")[2]))) as picture:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    assert 0 < (alpha == 0).mean() < 0.5
