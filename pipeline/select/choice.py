"""Choice of the images of a run that are most worth labelling: uncertain, and unlike each other.

In: the URL of a run, finished or not. Out: the choice with its reasons, and counts of all rows. Two passes over light
columns of the parts, in memory that does not grow with the run: the first draws a sample, from which the ranks of the
uncertainty and the groups of alike images are made; the second keeps the best of each group. Then the choice goes round
the groups. They are those of the more uncertain half of the sample: else one place in two would go to images that the
network knows. Decision 028.
"""

import logging
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.records import Int64
from pipeline.run import parts
from pipeline.select.candidates import Candidates, Census, read_candidates
from pipeline.select.groups import Groups, fit_groups
from pipeline.select.sample import RowSample
from pipeline.select.shortlist import Shortlist
from pipeline.select.uncertainty import Ranks, ranks_of
from pipeline.store.url import Url

log = logging.getLogger(__name__)

MOST_GROUPS = 256
"""Groups at most: the second pass compares every row with every centre."""
SAMPLED = 32_768
"""Rows of the sample: a rank is off by less than 0.01, and a group of 256 has 64 rows of the uncertain half."""
PROGRESS_S = 10.0
"""Seconds between progress lines."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Images chosen of a run, and what became of all others."""

    images: pd.DataFrame
    """One row for each chosen image, in the order of `rank`: key; rank, 1 for the first; cluster; score, entropy,
    changed_share (NaN where no refiner made the mask), brightness; why, a sentence for people."""
    classes: ClassMap
    census: Census
    """Counts of the rows that were read."""
    clusters: Int64
    """(G,) candidates in each cluster."""
    refined: bool
    """False when no mask of the sample is a refiner's: the uncertainty is that of the entropy alone."""


def choose_images(run_url: Url, images: int, *, seed: int = 0, exclude: Set[str] = frozenset()) -> Choice:
    """Choose the images of a run to label next. The same keys, statistics and seed give the same choice.

    Args:
        run_url: the folder `run=...`; of a run over rasters, windows are chosen.
        images: number of images, at least 1; fewer are chosen when there are fewer candidates.
        seed: seed of the sample, and of the order of equal scores.
        exclude: keys that are not to be chosen, such as those already labelled.

    Raises:
        ConfigError: the run has no rows, or none that can be chosen.
        StorageError: a part is damaged, or a repair removed it meanwhile.
    """
    names = parts.list_parts(run_url)
    if not names:
        raise ConfigError(f"{run_url} has no rows yet", hint="give one run= folder in the --output of a segment job")
    classes, census = parts.read_classes(run_url, names[0]), Census()

    def every(counted: Census, told: str) -> Iterator[Candidates]:
        found = read_candidates(run_url, names, len(classes), seed=seed, exclude=exclude, census=counted)
        return _with_progress(found, len(names), told)

    sample = RowSample(SAMPLED)
    for some in every(census, "sampled"):
        sample.add(some)
    drawn = sample.drawn()
    if not len(drawn):
        raise ConfigError(f"no row of {run_url} can be chosen: {counts_in_words(census)}", hint="see --exclude")
    ranks = ranks_of(drawn)
    groups = fit_groups(uncertain_half(drawn, ranks), min(images, MOST_GROUPS), seed=seed)
    shortlist = Shortlist(images, len(groups))
    for some in every(Census(), "compared"):
        _consider(some, ranks, groups, shortlist)
    chosen = described(shortlist.choose(), classes, shortlist.sizes)
    return Choice(chosen, classes, census, shortlist.sizes, refined=bool(len(ranks.changed)))


def uncertain_half(sample: Candidates, ranks: Ranks) -> Candidates:
    """Rows whose score is above the median, in their order; all rows when none is."""
    scores = ranks.scores(sample)
    above = scores > np.median(scores)
    return sample.take(above) if above.any() else sample


def _consider(some: Candidates, ranks: Ranks, groups: Groups, shortlist: Shortlist) -> None:
    """Put those candidates that may be chosen on the shortlist."""
    numbers, scores = groups.of(some), ranks.scores(some)
    likely = shortlist.may_be_chosen(numbers, scores)
    if not likely.any():
        return
    best = some.take(likely)
    most_n2 = np.argsort(-best.pixels_nk, axis=1, kind="stable")[:, :2]
    columns = {
        "group": numbers[likely],
        "score": scores[likely],
        "draw": best.draws,
        "key": best.keys,
        "entropy": best.entropy,
        "changed_share": best.changed,
        "brightness": best.brightness,
        "entropy_rank": ranks.entropy_ranks(best),
        "changed_rank": ranks.changed_ranks(best),
        "first": most_n2[:, 0],
        "second": np.where(np.take_along_axis(best.pixels_nk, most_n2, 1)[:, 1] > 0, most_n2[:, 1], -1),
    }
    shortlist.add(pd.DataFrame(columns))


def described(rows: pd.DataFrame, classes: ClassMap, sizes: Int64) -> pd.DataFrame:
    """Columns of `Choice.images`, from those of a shortlist."""
    rows = rows.rename(columns={"group": "cluster"})
    rows["rank"] = np.arange(1, len(rows) + 1)
    columns = ("entropy_rank", "changed_rank", "place", "cluster", "first", "second")
    rows["why"] = [
        why(entropy, changed, place + 1, sizes[cluster], _shown(classes, first, second))
        for entropy, changed, place, cluster, first, second in zip(
            *(rows[name].tolist() for name in columns), strict=True
        )
    ]
    return rows[["key", "rank", "cluster", "score", "entropy", "changed_share", "brightness", "why"]]


def why(entropy_rank: float, changed_rank: float, place: int, size: int, shown: str) -> str:
    """Reason of one choice for people: both ranks, its place in its cluster of `size`, its most frequent classes."""
    reasons = [f"entropy above {entropy_rank:.1%} of the run"]
    if not np.isnan(changed_rank):
        reasons.append(f"the CRF changed more than in {changed_rank:.1%}")
    return "; ".join([*reasons, f"number {place} of {size} alike, mostly {shown}"])


def _shown(classes: ClassMap, first: int, second: int) -> str:
    """Names of the two most frequent classes; `second` is -1 without one."""
    return " and ".join(classes.names[class_id] for class_id in (first, second) if class_id >= 0)


def counts_in_words(census: Census) -> str:
    """Counts of the rows that cannot be chosen, for messages."""
    counts = [(f"failed with {code}", count) for code, count in sorted(census.failed.items())]
    counts += sorted(census.left_out.items())
    return ", ".join(f"{count} {reason}" for reason, count in counts if count) or "it has none"


def _with_progress(found: Iterator[Candidates], parts_in_all: int, told: str) -> Iterator[Candidates]:
    said = time.monotonic()
    for number, some in enumerate(found, start=1):
        yield some
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            log.info("%s: %d of %d parts", told, number, parts_in_all)
