"""Search of CRF parameters on labelled images: grids of candidates, counts per image, and choice by mean IoU.

In: logits, image and label of one image, and parameters; out: confusion counts. Counts of all images in; the best
candidate out. Nothing here reads files or imports Ray. The protocol is that of Chen et al. 2015 (arXiv 1412.7062,
sec. 4) and 2017 (arXiv 1606.00915, sec. 4): w2 and theta_gamma stay at 3, ten mean field iterations, and w1,
theta_alpha and theta_beta are searched from coarse to fine on 100 validation images.
"""

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import RefineConfig
from pipeline.errors import ConfigError
from pipeline.records import Image, Int64, Scored, UInt8
from pipeline.refine.engine import REFINE_ENGINES
from pipeline.refine.presets import PRESETS, CrfParams
from pipeline.refine.refiner import Refiner
from pipeline.score.metrics import Interval, Scores, bootstrap, within_bands

SEARCHED_PARAMS = ("bi_w", "bi_xy", "bi_rgb")
"""Searched parameters: w1, theta_alpha and theta_beta, in this order."""
FIXED_PARAMS = ("pos_w", "pos_xy", "iterations")
PROTOCOL = CrfParams(bi_w=5, bi_xy=50, bi_rgb=3, pos_w=3, pos_xy=3, iterations=10)
"""Protocol of the papers; only `FIXED_PARAMS` of it are used."""

GridAxes = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
"""Values of each parameter of `SEARCHED_PARAMS`; a grid has all their combinations."""
_V1: GridAxes = ((5, 10), (50, 60, 70, 80, 90, 100), (3, 4, 5, 6, 7, 8, 9, 10))
_V2: GridAxes = ((3, 4, 5, 6), (30, 40, 50, 60, 70, 80, 90, 100), (3, 4, 5, 6))
GRIDS: dict[str, tuple[GridAxes, ...]] = {
    # Ends and middle of the ranges of both papers.
    "coarse": (((3, 5, 10), (30, 60, 100), (3, 6, 10)),),
    # Ranges as printed, in MATLAB's notation: [5, 10], 50:10:100, 3:1:10 (2015) and 3:6, 30:10:100, 3:6 (2017).
    "papers": (_V1, _V2),
}
FOLDS = 5
"""Folds of the cross-validation: each is scored with the parameters chosen on the others."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """CRF parameters to try."""

    name: str
    params: CrfParams | None
    """None for no CRF."""
    stage: int
    """0 for no CRF and the published presets, 1 for the grid, 2 and up for the finer ones."""

    def config(self, base: RefineConfig) -> RefineConfig:
        """`base` with these parameters, or with engine none for no CRF."""
        if self.params is None:
            return base.model_copy(update={"engine": "none"})
        return base.model_copy(update={name: getattr(self.params, name) for name in (*SEARCHED_PARAMS, *FIXED_PARAMS)})


NO_CRF = Candidate("no CRF", None, 0)


def reference_candidates() -> list[Candidate]:
    """Candidates of every search: no CRF, and all published parameters."""
    return [NO_CRF, *(Candidate(name, params, 0) for name, params in PRESETS.items())]


def candidate_grid(name: str, base: RefineConfig) -> list[Candidate]:
    """Candidates of a grid, without the published parameters of `reference_candidates`.

    Parameters that are not searched are those of `base`, by default those of the protocol.

    Raises:
        ConfigError: the engine of `base` is no dense CRF, or `base` sets a searched parameter.
    """
    if not REFINE_ENGINES[base.engine].has_preset:
        searchable = ", ".join(name for name, spec in REFINE_ENGINES.items() if spec.has_preset)
        message = f"refine.engine {base.engine} has none of the parameters to search, which are those of a dense CRF"
        raise ConfigError(message, hint=f"set --refine.engine to one of: {searchable}")
    if given := [name for name in SEARCHED_PARAMS if getattr(base, name) is not None]:
        raise ConfigError(
            f"refine.{given[0]} is a searched parameter, so it cannot be set", hint=f"leave out --refine.{given[0]}"
        )
    fixed: dict[str, Any] = {name: value for name in FIXED_PARAMS if (value := getattr(base, name)) is not None}
    boxes = (_grid_params(axes, replace(PROTOCOL, **fixed)) for axes in GRIDS[name])
    known = set(PRESETS.values())
    return [_candidate(params, 1) for params in dict.fromkeys(itertools.chain(*boxes)) if params not in known]


def finer_grid(best: CrfParams, tried: Collection[Candidate]) -> list[Candidate]:
    """Finer grid around the best: each searched parameter at its value and half way to its neighbours.

    Neighbours are the nearest values of the grids so far. Without a neighbour on one side, the step to the other side
    serves both, so that the search follows an optimum at the edge of a grid. Candidates already tried are left out.
    """
    grids = [candidate.params for candidate in tried if candidate.params and candidate.stage]
    axes = [_half_steps(getattr(best, name), {getattr(params, name) for params in grids}) for name in SEARCHED_PARAMS]
    known = {candidate.params for candidate in tried}
    stage = 1 + max(candidate.stage for candidate in tried)
    around = _grid_params((axes[0], axes[1], axes[2]), best)
    return [_candidate(params, stage) for params in around if params not in known]


def _half_steps(centre: float, values: Iterable[float]) -> tuple[float, ...]:
    others = [value - centre for value in values if value != centre]
    below = max((step for step in others if step < 0), default=None)
    above = min((step for step in others if step > 0), default=None)
    steps = (below if below is not None else -(above or 0), 0, above if above is not None else -(below or 0))
    return tuple(sorted({centre + step / 2 for step in steps if centre + step / 2 > 0}))


def _grid_params(axes: GridAxes, fixed: CrfParams) -> list[CrfParams]:
    return [replace(fixed, bi_w=w, bi_xy=xy, bi_rgb=rgb) for w, xy, rgb in itertools.product(*axes)]


def _candidate(params: CrfParams, stage: int) -> Candidate:
    names = [*SEARCHED_PARAMS, *(name for name in FIXED_PARAMS if getattr(params, name) != getattr(PROTOCOL, name))]
    return Candidate(" ".join(f"{name}={getattr(params, name):g}" for name in names), params, stage)


# ---------------------------------------------------------------- one image


@dataclass(frozen=True, slots=True)
class ImageCounts:
    """Confusion counts of one image."""

    counts_kk: Int64
    """(K, K + 1), see `metrics.confusion`."""
    bands_bkk: Int64
    """(B, K, K + 1), the same within trimaps around label boundaries."""
    note: str | None
    """Reason why refinement failed, e.g. `refine_timeout`; None if it succeeded."""


def refine_and_count(
    scored: Scored, image: Image, truth_hw: UInt8, refiner: Refiner, *, widths_px: Sequence[float] = ()
) -> ImageCounts:
    """Refine one image and count its mask against its label, over all pixels and within trimaps of `widths_px`."""
    refinement = refiner(scored, image)
    num_classes, ignore_id = len(refiner.classes), refiner.classes.ignore_id
    counts, bands = within_bands(truth_hw, refinement.mask_hw, num_classes, widths_px, ignore_id=ignore_id)
    return ImageCounts(counts, bands, refinement.note)


# ---------------------------------------------------------------- the choice


def fold_of_each_image(images: int) -> npt.NDArray[np.intp]:
    """Fold of each image, (N,). Folds are consecutive images, since neighbouring frames of a video are alike."""
    return np.arange(images) * FOLDS // max(images, 1)


def best_index(counts_ckk: Int64) -> int:
    """Index of the candidate with the highest mean IoU, by counts (C, K, K + 1); the first on a tie."""
    return int(np.nan_to_num(Scores(counts_ckk).mean_iou, nan=-1).argmax())


def best_index_per_fold(counts_cfkk: Int64) -> list[int]:
    """For each fold, the index of the best candidate on all other folds; counts are (C, F, K, K + 1)."""
    total = counts_cfkk.sum(axis=1)
    return [best_index(total - counts_cfkk[:, fold]) for fold in range(counts_cfkk.shape[1])]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Gain of a CRF in mean IoU, with and without cross-validation."""

    gain: Interval
    """Mean IoU of the best parameters minus that without a CRF, on the images that chose them: biased upwards."""
    fair_gain: Interval
    """The same with cross-validation: each fold is scored with the parameters chosen on the others."""

    @property
    def helps(self) -> bool:
        """True if both intervals lie above 0."""
        return self.gain.low > 0 and self.fair_gain.low > 0


def recommend(best_nkk: Int64, fair_nkk: Int64, none_nkk: Int64, *, samples: int, seed: int) -> Recommendation:
    """Compare counts per image, (N, K, K + 1), of the best parameters and of the folds' choices with no CRF."""

    def gain(counts: Int64) -> Interval:
        return bootstrap(counts, lambda scores: scores.mean_iou, against_nkk=none_nkk, samples=samples, seed=seed)

    return Recommendation(gain(best_nkk), gain(fair_nkk))
