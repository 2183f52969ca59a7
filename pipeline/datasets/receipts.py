"""What a prepared set holds: receipts of its shards while it is made, a manifest when it is whole, and their check.

    <output>/<split>/part-<digest>.parquet or .tar     images with labels
    <output>/failures/<split>/part-<digest>.parquet    examples that failed, and why
    <output>/classes.yaml                              the class map of the labels
    <output>/manifest.json, _SUCCESS                   of a set that is whole
    <output>/_run/                                     settings, plan, lease, and shards/<id>.json: the receipts

A receipt is put after everything it names, and is what makes a shard done. The manifest is the sum of the receipts and
holds nothing that differs between two runs of the same command, times least of all.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from pipeline.classes import ClassMap
from pipeline.errors import JobError, NothingThere
from pipeline.store import objects
from pipeline.store.url import Url

FAILURES = "failures"
"""Folder of the failure rows, beside the splits."""
_THREADS = 16
"""Requests at once when receipts are read or parts are checked."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartInfo(_Record):
    """One object of rows."""

    path: str
    """Relative to the output."""
    sha256: str
    """64 hex digits."""
    bytes: int
    rows: int


class Moments(_Record):
    """Sums over the pixels of images with the same number of bands."""

    pixels: int
    sums: list[int]
    """Per band, of values 0 to 255."""
    squares: list[int]
    """Per band, of their squares."""


class Counts(_Record):
    """Sums over examples, all of them whole numbers: they add up to the same in any order."""

    examples: int = 0
    """Planned, whatever became of them."""
    rows: int = 0
    """Images with labels; more than there are good examples where images were cut."""
    error_codes: dict[str, int] = {}
    """Failed examples."""
    class_pixels: list[int] = []
    """Per class id, ignored pixels left out; empty when no example is good."""
    moments: dict[int, Moments] = {}
    """By number of bands."""


class Receipt(_Record):
    """One shard that is done."""

    shard: str
    """Its id."""
    split: str
    counts: Counts
    parts: list[PartInfo]
    failures: list[PartInfo]


class SplitSummary(_Record):
    """One split of a set that is whole."""

    examples: int
    ok: int
    failed: int
    error_codes: dict[str, int]
    rows: int
    class_pixels: list[int]
    class_shares: list[float]
    """Of the pixels that have a class."""
    mean: list[float]
    """Per band, of values 0 to 1: what `network.mean` of a training run takes. Images with another number of bands than
    most pixels of the split have are left out."""
    std: list[float]
    """The same of the standard deviation."""
    parts: list[PartInfo]
    failures: list[PartInfo]


class Origin(_Record):
    """Where a set comes from and how it was prepared."""

    layout: str
    """Name of the set in `datasets.catalogue`."""
    source: str
    """URL of its official page."""
    license: str
    atrous: str
    """Version of the code."""
    format: str
    labels: str
    """Column of the labels, or extension of their members of the tars: what `sets.labels` of a training run takes."""
    cut_px: int | None


class SetManifest(_Record):
    """Everything that is in a prepared set."""

    origin: Origin
    classes: list[str]
    splits: dict[str, SplitSummary]

    @property
    def failed_fraction(self) -> float:
        """Failed examples over all; 0 when there are none."""
        examples = sum(one.examples for one in self.splits.values())
        return sum(one.failed for one in self.splits.values()) / examples if examples else 0.0


# ---------------------------------------------------------------- receipts


def _receipts_url(output: Url) -> Url:
    return output / "_run/shards"


def commit(output: Url, receipt: Receipt) -> None:
    """Say that a shard is done."""
    objects.put(_receipts_url(output) / f"{receipt.shard}.json", receipt.model_dump_json().encode())


def done(output: Url) -> set[str]:
    """Ids of the shards that are done."""
    return {path.removesuffix(".json") for path in _names(_receipts_url(output)) if path.endswith(".json")}


def receipts(output: Url, shards: Iterable[str]) -> list[Receipt]:
    """The receipts of some shards, in their order."""
    urls = [_receipts_url(output) / f"{shard}.json" for shard in shards]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [Receipt.model_validate_json(data) for data in pool.map(objects.read_bytes, urls)]


def forget_failed_shards(output: Url) -> int:
    """Take back the receipts of shards with failures; returns how many examples failed. They are done anew."""
    held = [one for one in receipts(output, sorted(done(output))) if one.failures]
    if held:
        _reopen(output)
    for one in held:
        objects.delete(_receipts_url(output) / f"{one.shard}.json")
    return sum(one.counts.examples - _good(one.counts) for one in held)


def _names(url: Url) -> list[str]:
    try:
        return [found.path for found in objects.list_files(url)]
    except NothingThere:
        return []


# ---------------------------------------------------------------- sums


def total(some: Sequence[Counts]) -> Counts:
    """Add up counts."""
    return Counts(
        examples=sum(one.examples for one in some),
        rows=sum(one.rows for one in some),
        error_codes=dict(sorted(sum((Counter(one.error_codes) for one in some), Counter[str]()).items())),
        class_pixels=_sums(one.class_pixels for one in some),
        moments={
            bands: _total_moments([one.moments[bands] for one in some if bands in one.moments])
            for bands in sorted({bands for one in some for bands in one.moments})
        },
    )


def _total_moments(some: Sequence[Moments]) -> Moments:
    return Moments(
        pixels=sum(one.pixels for one in some),
        sums=_sums(one.sums for one in some),
        squares=_sums(one.squares for one in some),
    )


def _sums(columns: Iterable[list[int]]) -> list[int]:
    """Sums per place; columns are empty or of one length."""
    return [sum(values) for values in zip(*filter(None, columns), strict=True)]


def _good(counts: Counts) -> int:
    return counts.examples - sum(counts.error_codes.values())


def summarise_split(held: Sequence[Receipt]) -> SplitSummary:
    """What the receipts of one split add up to. Shares and moments have six digits; empty without a good example."""
    counts = total([one.counts for one in held])
    ok, labelled = _good(counts), max(sum(counts.class_pixels), 1)
    mean, std = _mean_and_std(counts)
    return SplitSummary(
        examples=counts.examples,
        ok=ok,
        failed=counts.examples - ok,
        error_codes=counts.error_codes,
        rows=counts.rows,
        class_pixels=counts.class_pixels,
        class_shares=[round(pixels / labelled, 6) for pixels in counts.class_pixels],
        mean=mean,
        std=std,
        parts=sorted((part for one in held for part in one.parts), key=lambda part: part.path),
        failures=sorted((part for one in held for part in one.failures), key=lambda part: part.path),
    )


def _mean_and_std(counts: Counts) -> tuple[list[float], list[float]]:
    """Per band, of values 0 to 1, of the number of bands that most pixels have."""
    if not counts.moments:
        return [], []
    most = max(counts.moments.values(), key=lambda one: one.pixels)
    mean = np.array(most.sums) / most.pixels / 255
    variance = np.array(most.squares) / most.pixels / 255**2 - mean**2
    return mean.round(6).tolist(), np.sqrt(variance.clip(min=0)).round(6).tolist()


# ---------------------------------------------------------------- the whole set


def read_set_manifest(output: Url) -> SetManifest | None:
    """The manifest of a set that is whole; None when it is not."""
    if not objects.exists(output / "_SUCCESS"):
        return None
    return SetManifest.model_validate_json(objects.read_bytes(output / "manifest.json"))


def close_set(output: Url, planned: Mapping[str, Sequence[str]], classes: ClassMap, origin: Origin) -> SetManifest:
    """Write class map, manifest and `_SUCCESS`.

    Args:
        output: folder of the set.
        planned: ids of the shards of each split.
        classes: what the labels mean.
        origin: where the set comes from.

    Raises:
        JobError: a shard is not done.
    """
    missing = {shard for shards in planned.values() for shard in shards} - done(output)
    if missing:
        raise JobError(f"{len(missing)} shard(s) are not done, first {min(missing)}", hint="run the same command again")
    splits = {split: summarise_split(receipts(output, shards)) for split, shards in planned.items()}
    manifest = SetManifest(origin=origin, classes=list(classes.names), splits=splits)
    for path in strays(output, manifest):
        objects.delete(output / path)
    class_map = yaml.safe_dump(classes.model_dump(mode="json"), sort_keys=False)
    objects.put(output / "classes.yaml", class_map.encode())
    objects.put(output / "manifest.json", manifest.model_dump_json(indent=1).encode())
    objects.put(output / "_SUCCESS", b"")
    return manifest


def _reopen(output: Url) -> None:
    objects.delete(output / "_SUCCESS")


def strays(output: Url, manifest: SetManifest) -> list[str]:
    """Parts that the manifest does not name, and temporary files of writers that died, relative to the output."""
    named = {part.path for part in _parts(manifest)}
    folders = [folder for split in manifest.splits for folder in (split, f"{FAILURES}/{split}")]
    paths = [f"{folder}/{name}" for folder in folders for name in _names(output / folder)]
    ours = [path for path in paths if path.rpartition("/")[2].startswith(("part-", ".tmp-"))]
    return [path for path in ours if path not in named]


def _parts(manifest: SetManifest) -> Iterator[PartInfo]:
    for split in manifest.splits.values():
        yield from split.parts
        yield from split.failures


def set_problems(output: Url, manifest: SetManifest) -> Iterator[str]:
    """Everything that is not as the manifest says, one line each: every byte of every part is read again."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from filter(None, pool.map(partial(_problem, output), _parts(manifest)))
    yield from (f"{path}: the manifest does not name it" for path in strays(output, manifest))


def _problem(output: Url, part: PartInfo) -> str:
    try:
        with objects.open_read(output / part.path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{part.path}: is gone"
    return "" if sha256 == part.sha256 else f"{part.path}: SHA-256 {sha256}, the manifest says {part.sha256}"
