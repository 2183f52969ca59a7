"""Runs over folders of made-up photos, whose files exist: for what reads images again."""

import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import classes
from pipeline.config import SegmentConfig
from pipeline.image import encode
from pipeline.records import Row, rows_to_table
from pipeline.run import folder, manifest, parts
from pipeline.run.footers import read_footers
from pipeline.source.plan import plan_source
from pipeline.store import objects
from pipeline.store.url import Url

FARM = classes.load_class_map("farmland")
HEIGHT, WIDTH = 9, 7


def photo(seed: int, *, kind: str = "JPEG", orientation: int = 1) -> bytes:
    """A photo whose upright size is `HEIGHT` x `WIDTH`."""
    height, width = (WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, exif=exif)
    return file.getvalue()


def mask_of(key: str) -> np.ndarray:
    """(HEIGHT, WIDTH) class ids, and ignored pixels."""
    ids = np.random.default_rng(sum(key.encode())).integers(0, len(FARM) + 1, (HEIGHT, WIDTH))
    return np.where(ids == len(FARM), FARM.ignore_id, ids).astype(np.uint8)


def mask_row(key: str, shard: str, **more: object) -> Row:
    """Row of a photo with the mask of its key."""
    mask_hw = mask_of(key)
    fields = {
        **{
            "key": key,
            "status": "ok",
            "shard": shard,
            "source_etag": "e",
            "model_fp": "0123456789ab",
            "config_fp": "c",
        },
        **{"height": HEIGHT, "width": WIDTH, "mask": encode.mask_png(mask_hw, FARM), "refined": True},
        **{"confidence": 0.5, "entropy": 0.25, "changed_share": 0.1, "brightness": 90.0},
        "class_pixels": np.bincount(mask_hw.ravel(), minlength=256)[: len(FARM)].tolist(),
    }
    return Row(**fields | more)


def failed_row(key: str, shard: str, code: str = "truncated") -> Row:
    fields = {"key": key, "status": "failed", "shard": shard, "source_etag": "e", "model_fp": "m", "config_fp": "c"}
    return Row(**fields, error_code=code, error_detail="short")


def write_run(url: Url, rows: Iterable[Row], *, part_rows: int = 1000) -> None:
    """A finished run of some rows."""
    every = list(rows)
    for start in range(0, len(every), part_rows):
        parts.write_part(url, rows_to_table(every[start : start + part_rows]), FARM)
    closed = manifest.manifest_of(read_footers(url), FARM, fingerprint="0123456789ab", shards=1)
    objects.put(url / folder.MANIFEST, json.dumps(asdict(closed)).encode())
    manifest.mark_finished(url)


def photo_run(root: Path, photos: dict[str, bytes], **of_each: object) -> Url:
    """A source of photos by their keys, and a finished run over it."""
    for key, data in photos.items():
        file = root / "photos" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    cfg = SegmentConfig(source=[str(root / "photos")], output=str(root / "out"), checkpoint="farmland")
    url = Url(str(root / "out/run=0123456789ab"))
    objects.put(url / folder.CONFIG, json.dumps(cfg.model_dump(mode="json")).encode())  # JSON is YAML
    shard_of = {member.key: shard.id for shard in plan_source(cfg).shards for member in shard.members()}
    write_run(url, [mask_row(key, shard_of[key], **of_each) for key in sorted(photos)])
    return url
