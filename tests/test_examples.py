"""Example notebooks run as they are, cell by cell, and are committed without outputs."""

import io
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest

from pipeline import segment
from pipeline.config import SegmentConfig
from pipeline.datasets.farmland import generate_scene
from pipeline.models.card import load_card
from pipeline.records import Item, items_to_table
from pipeline.run import parts
from pipeline.run.ledger import Ledger
from pipeline.run.stages import InferStage, Job, RefineStage
from pipeline.store.url import Url
from tests import ROOT

NOTEBOOKS = sorted((ROOT / "docs/examples").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[str]:
    """Sources of the cells of a kind."""
    return ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def run_cells(notebook: Path) -> dict[str, object]:
    """Run all code cells in one namespace, as a kernel does; returns it."""
    namespace: dict[str, object] = {}
    for number, source in enumerate(cells(notebook, "code")):
        exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), namespace)
    return namespace


def item(key: str, pixels_hwc: np.ndarray) -> Item:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels_hwc).save(out, "PNG")
    return Item(key=key, shard="s", etag="e", data=out.getvalue())


def write_run(output: Path) -> None:
    """A part of a run, as `atrous demo` leaves it: three images and a failure."""
    cfg = SegmentConfig(source="x", output=str(output), checkpoint="farmland")
    classes = load_card("farmland").classes
    job = Job(cfg, classes, Url("run"), "m" * 12, "c" * 12, preview_share=0.0)
    items = [item(f"{seed}.png", generate_scene(seed, height=96, width=96).image_hwc) for seed in range(3)]
    items.append(Item(key="broken.png", shard="s", etag="e", data=b"no image"))
    rows = RefineStage(job, Ledger())(InferStage(job, Ledger(), threads=1)(items_to_table(items)))
    parts.write_part(Url(str(output / "run=0123456789ab")), rows, classes)


@pytest.fixture
def drawing() -> object:
    """Plots go nowhere."""
    import matplotlib.pyplot as plt

    before = mpl.get_backend()
    mpl.use("agg")
    yield plt
    plt.close("all")
    mpl.use(before)


def test_the_notebook_of_one_image_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawing) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "demo/out")
    ends = run_cells(ROOT / "docs/examples/segment_one_image.ipynb")
    assert np.array_equal(ends["mask"], segment(ends["pixels"], "farmland")[0])
    assert ends["shares"].sum() == pytest.approx(1)
    assert 0 < ends["changed"].mean() < 0.2
    assert sorted(ends["rows"]["key"]) == ["0.png", "1.png", "2.png"]
    assert ends["totals"].sum() == 3 * 96 * 96
    assert ends["stored"].shape == (96, 96)
    assert len(drawing.get_fignums()) == 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_clean_json(notebook: Path) -> None:
    text = notebook.read_text()
    content = json.loads(text)
    assert text == json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    assert (content["nbformat"], content["metadata"]["kernelspec"]["name"]) == (4, "python3")
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert cells(notebook, "markdown")[0].startswith("# ")
