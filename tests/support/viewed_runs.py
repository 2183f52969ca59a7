"""Runs for the page: images in a folder, segmented in this process, with failures, labels and hostile names."""

import io
from pathlib import Path

import numpy as np
import PIL.Image

from jobs import run as runs
from pipeline.classes import load_class_map
from pipeline.config import SegmentConfig
from pipeline.datasets.farmland.files import write_folder
from pipeline.run import parts
from pipeline.source.plan import plan_source
from pipeline.store.url import Url
from pipeline.view.index import RunIndex
from tests.support import judged_runs

FARM = load_class_map("farmland")
IMAGES, SIZE_PX = 12, 64
HOSTILE = (
    "<img src=x onerror=alert(1)>.jpg",
    "'; DROP TABLE rows; --.jpg",
    '"><svg onload=document.title="owned">.jpg',
    "a%2f..%2f..%2fetc%2fpasswd.jpg",
    "{{7*7}}${7*7}.jpg",
    "a\nb\tc.jpg",
    "\u202egpj.exe.jpg",
    "&lt;b&gt;&amp;.jpg",
)
"""Names of files as an attacker would choose them."""


def write_source(folder: Path) -> Path:
    """Images and labels of farmland, a file that is no image, and files with hostile names; returns the images."""
    write_folder(Url(str(folder)), IMAGES, size_px=SIZE_PX, seed=50, with_labels=True)
    (folder / "images/zz_broken.jpg").write_bytes(b"no image at all")
    image = (folder / "images/farm_000000.jpg").read_bytes()
    label = (folder / "labels/farm_000000.png").read_bytes()
    (folder / "labels/zz_broken.png").write_bytes(label)
    for name in HOSTILE:
        (folder / "images" / name).write_bytes(image)
        (folder / "labels" / name).with_suffix(".png").write_bytes(label)
    return folder / "images"


def segment(folder: Path, images: Path, *, seed: int = 0, labels: Path | None = None) -> Url:
    """Run of a tiny random network over the images; an evaluation where labels are given."""
    checkpoint = judged_runs.save_network(folder / f"network{seed}", FARM, seed=seed)
    said = {"source": str(images), "output": str(folder / f"out{seed}"), "checkpoint": checkpoint}
    if labels:
        return judged_runs.carry_out(judged_runs.config(**said, read={"labels": str(labels)})).url
    cfg = SegmentConfig.model_validate(judged_runs.QUICK | said)
    return judged_runs.work_through(runs.identify(cfg), plan_source(cfg)).url


def open_index(run_url: Url, cache: Path | None = None) -> RunIndex:
    """Index of a run, filled."""
    index = RunIndex(run_url, parts.read_classes(run_url, parts.list_parts(run_url)[0]), cache=cache)
    index.fill()
    return index


def ids_by_key(index: RunIndex) -> dict[str, int]:
    """Number of each row in an index."""
    return dict(index.fetch("SELECT key, id FROM rows"))


def committed_mask(run_url: Url, key: str) -> np.ndarray:
    """Class ids of a row as its part holds them, read without the page's code."""
    for name in parts.list_parts(run_url):
        for row in parts.read_columns(run_url, name, ["key", "mask"]).to_pylist():
            if row["key"] == key:
                return np.asarray(PIL.Image.open(io.BytesIO(row["mask"])))
    raise KeyError(key)
