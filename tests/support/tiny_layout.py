"""A tiny labelled set with an official layout of its own, for tests of what is done with any set.

    python -m tests.support.tiny_layout MOMENT FLAG ...

runs `jobs.prepare_dataset` with this layout known as `tiny` and kills its own process with SIGKILL right after the
driver, or with `receipts=N` a worker, has put what MOMENT says: the end of a URL, or that many receipts. `never` kills
nothing.
"""

import ctypes
import io
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from pipeline.datasets.catalogue import DATASET_LAYOUTS
from pipeline.datasets.layout import DatasetLayout, ListedExample, decode_ids, fetch, fetch_listing
from pipeline.image.labels import from_ids
from pipeline.store import objects
from pipeline.store.url import Url

DEADLY = "deadly"
"""An example of this name kills the process that reads it."""


@dataclass(frozen=True)
class Tiny(DatasetLayout):
    """images/<name>.jpg or .png, labels/<name>.png whose values are ids, <split>.txt with file names."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        self.check_split(split)
        names = fetch_listing(root, f"{split}.txt").split()
        return [
            ListedExample(f"{split}/{Path(one).stem}", f"images/{one}", f"labels/{Path(one).stem}.png") for one in names
        ]

    def label(self, root: Url, one: ListedExample):
        if DEADLY in one.key:
            ctypes.string_at(0)
        raw = decode_ids(fetch(root, one.label), name=one.label)
        return from_ids(raw, {value: value for value in (*range(7), 9, 255)}, name=one.label)


TINY = Tiny("tiny", "farmland", ("train", "val"), "https://example.org/tiny", "CC0")
"""Its labels may have the value 9, which its class map does not have: a set that breaks its own word."""


def encoded(pixels: np.ndarray, form: str) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def picture(seed: int, height: int = 24, width: int = 32, form: str = "JPEG") -> tuple[bytes, bytes]:
    """An encoded image and its label."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 7, (height, width), np.uint8)
    label[0, 0] = 255
    return encoded(rng.integers(0, 256, (height, width, 3), np.uint8), form), encoded(label, "PNG")


def write(root: Url, *, train: int, val: int = 0, suffix: str = ".jpg", **sized: int) -> None:
    """Write a set in which everything is fine."""
    form = {".jpg": "JPEG", ".png": "PNG"}[suffix]
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for seed in range(first, first + count):
            add(root, f"{seed:04d}{suffix}", *picture(seed, form=form, **sized))
        listing = "".join(f"{seed:04d}{suffix}\n" for seed in range(first, first + count))
        objects.put(root / f"{split}.txt", listing.encode())


def add(root: Url, name: str, image: bytes, label: bytes) -> None:
    objects.put(root / f"images/{name}", image)
    objects.put(root / f"labels/{Path(name).stem}.png", label)


def write_broken(root: Url) -> dict[str, str]:
    """Write a train split with one of everything that can be wrong; returns the code, or `ok`, of each key."""
    image, label = picture(1)
    other_size, strange = picture(2, height=25)[1], np.full((24, 32), 9, np.uint8)
    cases = {
        "fine": ("ok", image, label),
        "html": ("not_an_image", b"<html>no</html>", label),
        "short": ("truncated", image[:-200], label),
        "nothing": ("empty", b"", label),
        "size": ("label_size", image, other_size),
        "value": ("label_value", image, encoded(np.full((24, 32), 77, np.uint8), "PNG")),
        "outside": ("label_value", image, encoded(strange, "PNG")),
        "notpng": ("label_format", image, b"no label"),
        "gone": ("not_found", image, label),
    }
    for name, (_, data, drawn) in cases.items():
        add(root, f"{name}.jpg", data, drawn)
    objects.delete(root / "labels/gone.png")
    objects.put(root / "train.txt", " ".join(f"{name}.jpg" for name in cases).encode())
    return {f"train/{name}": code for name, (code, _, _) in cases.items()}


def _die_with_receipts(output: Path, count: int) -> None:
    while len(list(output.glob("_run/shards/*.json"))) < count:
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


def main(argv: list[str]) -> int:
    """See the top of this file."""
    from jobs import prepare_dataset
    from tests.support.drivers import _then_die

    DATASET_LAYOUTS["tiny"] = tiny()
    moment, *flags = argv
    if moment.startswith("receipts="):
        output = Path(flags[flags.index("--output") + 1])
        threading.Thread(target=_die_with_receipts, args=(output, int(moment[9:])), daemon=True).start()
    elif moment != "never":
        for name in ("put", "put_if_absent"):
            setattr(objects, name, _then_die(getattr(objects, name), moment))
    return prepare_dataset.main(flags)


def tiny() -> DatasetLayout:
    """The set as a module that is not `__main__` knows it, so that workers can import it."""
    from tests.support.tiny_layout import TINY

    return TINY


if __name__ == "__main__":
    from jobs import command_line

    command_line.leave(main(sys.argv[1:]))
