"""The folder of a selection: whose it is, the choice, and what became of all other rows.

    _selection.json     run, settings and counts; written first, so a folder of other files is never written into
    selection.parquet   key, rank, cluster, score, entropy, changed_share, brightness, why

A finished choice is never made anew: labellers work on it. The same command again finds it, also after the run has
grown, and says so; another choice takes another folder.
"""

import hashlib
import io
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, NothingThere
from pipeline.run import folder, parts
from pipeline.run.inspection import LITTER
from pipeline.select.choice import Choice, choose_images, counts_in_words
from pipeline.store import objects
from pipeline.store.url import Url

log = logging.getLogger(__name__)

STATE, SELECTION = "_selection.json", "selection.parquet"

SELECTION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        ("entropy", pa.float32()),
        ("changed_share", pa.float32()),
        ("brightness", pa.float32()),
        pa.field("why", pa.string(), nullable=False),
    ]
)
"""Columns of `selection.parquet`, in the order of `rank`; see `Choice.images`."""


def select_images(
    run_url: Url, images: int, output: Url, *, seed: int = 0, exclude: Sequence[Url] = ()
) -> dict[str, Any]:
    """Choose images of a run into a folder, or find what was chosen there; returns the summary.

    Args:
        run_url: the folder `run=...`.
        images: number of images.
        output: empty folder, or one with this selection.
        seed: see `choose_images`.
        exclude: files of keys that are not to be chosen, see `read_keys`.

    Raises:
        ConfigError: the folder holds other files or another selection; as `choose_images` and `read_keys`.
    """
    started = time.monotonic()
    excluded = frozenset().union(*(read_keys(url) for url in exclude))
    settings = {"run": run_url.name, "images": images, "seed": seed, "exclude": _digest(excluded)}
    found = open_folder(output, run_url, settings)
    if found:
        _log_growth(found, run_url)
        return found | {"output": str(output), "there": True, "wall_s": round(time.monotonic() - started, 2)}
    choice = choose_images(run_url, images, seed=seed, exclude=excluded)
    objects.put(output / SELECTION, encode_selection(choice.images))
    summary = summary_of(choice, run_url, images, len(excluded))
    write_state(output, settings, summary)
    log_choice(choice, images)
    if not summary["run_finished"]:
        log.warning("the run is not finished: only its %d committed rows were looked at", choice.census.rows)
    return summary | {"output": str(output), "there": False, "wall_s": round(time.monotonic() - started, 2)}


def read_keys(url: Url) -> frozenset[str]:
    """Keys of a file: the column `key` of a `selection.parquet` or another Parquet file, or a text with one a line.

    The URL of a folder of a selection stands for its `selection.parquet`.

    Raises:
        ConfigError: there is no such file, or it is neither.
    """
    if objects.exists(url / SELECTION):
        url = url / SELECTION
    try:
        data = objects.read_bytes(url)
        if data[:4] == b"PAR1":
            return frozenset(pq.read_table(io.BytesIO(data), columns=["key"])["key"].to_pylist())
        return frozenset(filter(None, data.decode().splitlines()))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"--exclude {url.located} does not exist", hint=f"give a {SELECTION} or a text") from error
    except (pa.ArrowInvalid, KeyError, UnicodeDecodeError) as error:
        hint = "give a Parquet file with a column key, or a text file with a key on each line"
        raise ConfigError(f"--exclude {url} holds no keys: {error}", hint=hint) from error


def encode_selection(images: pd.DataFrame) -> bytes:
    """Parquet of `SELECTION_SCHEMA`."""
    out = io.BytesIO()
    table = pa.Table.from_pandas(images, schema=SELECTION_SCHEMA, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(), out, compression="zstd")
    return out.getvalue()


def read_selection(output: Url) -> pa.Table:
    """Table of `SELECTION_SCHEMA` in a folder.

    Raises:
        StorageError: the file is damaged.
    """
    with objects.naming_damage(output / SELECTION, hint="delete the folder and select again"):
        return pq.read_table(io.BytesIO(objects.read_bytes(output / SELECTION))).cast(SELECTION_SCHEMA)


# ---------------------------------------------------------------- whose folder it is


def open_folder(output: Url, run_url: Url, settings: dict[str, Any]) -> dict[str, Any]:
    """Take a folder for a selection; returns the summary of a finished one, else an empty mapping.

    Raises:
        ConfigError: the folder is inside the run, holds other files, or a selection with other settings.
    """
    if f"{output.place}/".startswith(f"{run_url.place}/"):
        raise ConfigError(f"--output {output} lies inside the run", hint="choose a folder beside it")
    if not objects.exists(output / STATE):
        _refuse_other_files(output)
        write_state(output, settings, {})
        return {}
    with objects.naming_damage(output / STATE, hint="delete the folder and select again"):
        state = json.loads(objects.read_bytes(output / STATE))
        stored, summary = state["settings"], dict(state["summary"])
    other = [f"{name}: {stored.get(name)} there, now {value}" for name, value in settings.items()]
    other = [text for text, name in zip(other, settings, strict=True) if stored.get(name) != settings[name]]
    if other:
        raise ConfigError(f"{output} holds another selection ({'; '.join(other)})", hint="give another --output")
    return summary


def write_state(output: Url, settings: dict[str, Any], summary: dict[str, Any]) -> None:
    """Write `_selection.json`; `summary` is empty until the choice is made."""
    state = {"settings": settings, "summary": summary}
    objects.put(output / STATE, json.dumps(state, indent=1, ensure_ascii=False).encode())


def _refuse_other_files(output: Url) -> None:
    try:
        paths = (file.path for file in objects.list_files(output))
        other = next((path for path in paths if not path.rpartition("/")[2].startswith(LITTER)), None)
    except NothingThere:
        return
    if other is not None:
        raise ConfigError(f"{output} is not empty and holds no {STATE}: {other}", hint="give an empty --output")


def _digest(keys: frozenset[str]) -> str:
    """Digest of excluded keys; empty without any."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:12] if keys else ""


# ---------------------------------------------------------------- the summary


def summary_of(choice: Choice, run_url: Url, images: int, excluded: int) -> dict[str, Any]:
    """Plain data of the JSON line."""
    census = choice.census
    return {
        "run": str(run_url),
        "run_finished": objects.exists(run_url / folder.SUCCESS),
        "parts": len(parts.list_parts(run_url)),
        "rows": census.rows,
        "candidates": census.candidates,
        "failed": dict(sorted(census.failed.items())),
        "left_out": {reason: count for reason, count in sorted(census.left_out.items()) if count},
        "excluded_keys": excluded,
        "asked": images,
        "chosen": len(choice.images),
        "clusters": len(choice.clusters),
        "uncertainty": ["entropy", "changed_share"] if choice.refined else ["entropy"],
    }


def log_choice(choice: Choice, images: int) -> None:
    """Log what was chosen, and what a reader of the choice must know."""
    census = choice.census
    log.info("%d of %d candidates chosen, of %d clusters", len(choice.images), census.candidates, len(choice.clusters))
    if not choice.refined:
        log.warning("no refiner made these masks: the choice rests on the entropy alone, not on what the CRF changed")
    if census.candidates < census.rows:
        log.warning("%d row(s) cannot be chosen: %s", census.rows - census.candidates, counts_in_words(census))
    if len(choice.images) < images:
        log.warning("only %d image(s) could be chosen, %d were asked for (--images)", len(choice.images), images)


def _log_growth(found: dict[str, Any], run_url: Url) -> None:
    log.info("nothing to choose: %d image(s) were chosen here before", found["chosen"])
    if len(parts.list_parts(run_url)) != found["parts"]:
        log.warning("the run has changed since: choose into another --output, with --exclude of this one")
