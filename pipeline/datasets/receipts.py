"""Receipts of finished shards, manifest of a finished set, and its verification.

    <output>/<split>/part-<digest>.parquet or .tar     images with labels
    <output>/failures/<split>/part-<digest>.parquet    failed examples, with error codes
    <output>/classes.yaml                              the class map of the labels
    <output>/manifest.json, _SUCCESS                   of a finished set
    <output>/_run/                                     settings, plan, lease, and shards/<id>.json: the receipts

A receipt is written after every file it lists, and commits the shard. The manifest is the sum of the receipts; two runs
of the same command give the same manifest, so it has no times.
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
from pipeline.datasets.levels import BandSummary, Levels, add_levels, summarise_levels
from pipeline.errors import JobError, NothingThere
from pipeline.score.coverage import unlabelled_classes
from pipeline.store import objects
from pipeline.store.url import Url

FAILURES = "failures"
"""Folder of failure rows, beside the splits."""
_THREADS = 16
"""Concurrent requests when receipts are read or parts are verified."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartInfo(_Record):
    """One part: an object of rows."""

    path: str
    """Path relative to the output."""
    sha256: str
    """SHA-256 of the object, 64 hex digits."""
    bytes: int
    """Size of the object."""
    rows: int
    """Number of rows."""


class Moments(_Record):
    """Sums over the pixels of images with the same number of bands."""

    pixels: int
    sums: list[int]
    """Sum of values 0 to 255, per band."""
    squares: list[int]
    """Sum of squared values, per band."""


class Counts(_Record):
    """Statistics of examples: integers, so that sums do not depend on the order."""

    examples: int = 0
    """Examples, good or failed."""
    rows: int = 0
    """Images with labels; more than good examples where images are cut."""
    error_codes: dict[str, int] = {}
    """Failed examples by error code."""
    class_pixels: list[int] = []
    """Pixels per class id, without ignored pixels; empty if no example is good."""
    moments: dict[int, Moments] = {}
    """Sums of pixel values by number of bands."""
    levels: Levels | None = None
    """Histogram of the stored values of chips of rasters."""


class Receipt(_Record):
    """Receipt of one finished shard."""

    shard: str
    """Id of the shard."""
    split: str
    counts: Counts
    parts: list[PartInfo]
    failures: list[PartInfo]


class SplitSummary(_Record):
    """Summary of one split of a finished set."""

    examples: int
    ok: int
    failed: int
    error_codes: dict[str, int]
    rows: int
    class_pixels: list[int]
    class_shares: list[float]
    """Share of each class in the labelled pixels."""
    mean: list[float]
    """Mean per band, of values 0 to 1, for `--network.mean` of a training run. Only images whose number of bands
    most pixels have are counted."""
    std: list[float]
    """Standard deviation per band, counted like `mean`."""
    parts: list[PartInfo]
    failures: list[PartInfo]


class Origin(_Record):
    """Source, licence and settings of a prepared set."""

    layout: str
    """Name of the layout in `datasets.catalogue`."""
    source: str
    """URL of its official page."""
    license: str
    atrous: str
    """Version of the code."""
    format: str
    labels: str
    """Column or tar extension of the labels, for `--sets.labels` of a training run."""
    cut_px: int | None
    bands: list[str] = []
    """Names of the bands of chips of rasters."""


class SetManifest(_Record):
    """Manifest of a prepared set."""

    origin: Origin
    classes: list[str]
    splits: dict[str, SplitSummary]
    bands: BandSummary | None = None
    """Statistics of the stored values of the training split of rasters."""

    @property
    def failed_fraction(self) -> float:
        """Failed examples over all examples; 0 if there are none."""
        examples = sum(split.examples for split in self.splits.values())
        return sum(split.failed for split in self.splits.values()) / examples if examples else 0.0

    def unlabelled(self, split: str) -> list[str]:
        """Names of the classes without a labelled pixel in a split."""
        pixels = self.splits[split].class_pixels
        return unlabelled_classes(self.classes, pixels) if pixels else []


# ---------------------------------------------------------------- receipts


def _receipts_url(output: Url) -> Url:
    return output / "_run/shards"


def put_receipt(output: Url, receipt: Receipt) -> None:
    """Commit a shard."""
    objects.put(_receipts_url(output) / f"{receipt.shard}.json", receipt.model_dump_json().encode())


def finished_shards(output: Url) -> set[str]:
    """Ids of the finished shards."""
    return {path.removesuffix(".json") for path in _names(_receipts_url(output)) if path.endswith(".json")}


def read_receipts(output: Url, shards: Iterable[str]) -> list[Receipt]:
    """Read the receipts of shards, in their order."""
    urls = [_receipts_url(output) / f"{shard}.json" for shard in shards]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_read_receipt, urls))


def _read_receipt(url: Url) -> Receipt:
    with objects.naming_damage(url, hint="delete it and submit the same command again: its shard is prepared again"):
        return Receipt.model_validate_json(objects.read_bytes(url))


def forget_failed_shards(output: Url) -> int:
    """Delete the receipts of shards with failures, so that they are prepared again; returns the failed examples."""
    failed = [receipt for receipt in read_receipts(output, sorted(finished_shards(output))) if receipt.failures]
    if failed:
        _reopen(output)
    for receipt in failed:
        objects.delete(_receipts_url(output) / f"{receipt.shard}.json")
    return sum(receipt.counts.examples - _good(receipt.counts) for receipt in failed)


def _names(url: Url) -> list[str]:
    try:
        return [file.path for file in objects.list_files(url)]
    except NothingThere:
        return []


# ---------------------------------------------------------------- sums


def add_counts(parts: Sequence[Counts]) -> Counts:
    """Add up counts."""
    return Counts(
        examples=sum(part.examples for part in parts),
        rows=sum(part.rows for part in parts),
        error_codes=dict(sorted(sum((Counter(part.error_codes) for part in parts), Counter[str]()).items())),
        class_pixels=_sums(part.class_pixels for part in parts),
        moments={
            bands: _add_moments([part.moments[bands] for part in parts if bands in part.moments])
            for bands in sorted({bands for part in parts for bands in part.moments})
        },
        levels=add_levels(part.levels for part in parts),
    )


def _add_moments(parts: Sequence[Moments]) -> Moments:
    return Moments(
        pixels=sum(part.pixels for part in parts),
        sums=_sums(part.sums for part in parts),
        squares=_sums(part.squares for part in parts),
    )


def _sums(columns: Iterable[list[int]]) -> list[int]:
    """Sum columns element by element; columns are empty or of equal length."""
    return [sum(values) for values in zip(*filter(None, columns), strict=True)]


def _good(counts: Counts) -> int:
    return counts.examples - sum(counts.error_codes.values())


def summarise_split(split_receipts: Sequence[Receipt]) -> SplitSummary:
    """Summarise the receipts of one split. Shares, means, deviations have six digits; none without a good example."""
    counts = add_counts([receipt.counts for receipt in split_receipts])
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
        parts=sorted((part for receipt in split_receipts for part in receipt.parts), key=lambda part: part.path),
        failures=sorted((part for receipt in split_receipts for part in receipt.failures), key=lambda part: part.path),
    )


def _mean_and_std(counts: Counts) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per band, of values 0 to 1, for the most common number of bands by pixels."""
    if not counts.moments:
        return [], []
    most = max(counts.moments.values(), key=lambda moments: moments.pixels)
    mean = np.array(most.sums) / most.pixels / 255
    variance = np.array(most.squares) / most.pixels / 255**2 - mean**2
    return mean.round(6).tolist(), np.sqrt(variance.clip(min=0)).round(6).tolist()


# ---------------------------------------------------------------- the whole set


def read_set_manifest(output: Url) -> SetManifest | None:
    """Read the manifest of a finished set; None if it is unfinished."""
    if not objects.exists(output / "_SUCCESS"):
        return None
    url, hint = output / "manifest.json", f"delete {output / '_SUCCESS'} and submit the same command again"
    with objects.naming_damage(url, hint=hint):
        return SetManifest.model_validate_json(objects.read_bytes(url))


def close_set(output: Url, planned: Mapping[str, Sequence[str]], classes: ClassMap, origin: Origin) -> SetManifest:
    """Finish a set: delete what writers that died have left, and write class map, manifest and `_SUCCESS`.

    Args:
        output: folder of the set.
        planned: ids of the planned shards of each split.
        classes: class map of the labels.
        origin: source, licence and settings of the set.

    Raises:
        JobError: a shard is unfinished.
    """
    missing = {shard for shards in planned.values() for shard in shards} - finished_shards(output)
    if missing:
        raise JobError(
            f"{len(missing)} shard(s) are unfinished, first {min(missing)}", hint="run the same command again"
        )
    split_receipts = {split: read_receipts(output, shards) for split, shards in planned.items()}
    splits = {split: summarise_split(finished) for split, finished in split_receipts.items()}
    learned = split_receipts.get("train", next(iter(split_receipts.values())))
    levels = add_levels(receipt.counts.levels for receipt in learned)
    bands = None if levels is None else summarise_levels(levels, origin.bands)
    manifest = SetManifest(origin=origin, classes=list(classes.names), splits=splits, bands=bands)
    objects.remove_unfinished(output)
    for path in unlisted_files(output, manifest):
        objects.delete(output / path)
    class_map = yaml.safe_dump(classes.model_dump(mode="json"), sort_keys=False)
    objects.put(output / "classes.yaml", class_map.encode())
    objects.put(output / "manifest.json", manifest.model_dump_json(indent=1).encode())
    objects.put(output / "_SUCCESS", b"")
    return manifest


def _reopen(output: Url) -> None:
    objects.delete(output / "_SUCCESS")


def unlisted_files(output: Url, manifest: SetManifest) -> list[str]:
    """Paths, relative to the output, of parts outside the manifest and temporary files of writers that died."""
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
    """Yield differences from the manifest, one line each; every part is read completely."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from filter(None, pool.map(partial(_problem, output), _parts(manifest)))
    yield from (f"{path}: not in the manifest" for path in unlisted_files(output, manifest))


def _problem(output: Url, part: PartInfo) -> str:
    try:
        with objects.open_read(output / part.path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{part.path}: missing"
    return "" if sha256 == part.sha256 else f"{part.path}: SHA-256 {sha256}, expected {part.sha256}"
