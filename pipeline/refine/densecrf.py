"""Dense CRF by the package pydensecrf: Krähenbühl and Koltun 2011, mean field over a permutohedral lattice.

In: 8-bit RGB, full-size logits, valid mask. Out: the marginals Q. The call runs on one thread and holds the GIL, so a
machine needs one process per core.
"""

from time import monotonic

import numpy as np
import pydensecrf.densecrf as pydensecrf

from pipeline.errors import DeadlinePassed
from pipeline.records import Bool, Float32, UInt8
from pipeline.refine.presets import CrfParams
from pipeline.refine.unary import softmax


def pydensecrf_marginals(
    pixels_hwc: UInt8, logits_khw: Float32, valid_hw: Bool | None, params: CrfParams, *, deadline: float = np.inf
) -> Float32:
    """Marginals of the mean field after `params.iterations` steps: (K, H, W) float32, sums to 1 over K.

    The unary is -logits: it equals -log softmax up to a constant per pixel, which cancels in the mean field (eq. 2).
    Pixels that are not valid are no nodes of the CRF: they take no part and keep the softmax of their logits.

    Args:
        pixels_hwc: (H, W, 3) uint8.
        logits_khw: (K, H, W) float32, K at least 2, finite.
        valid_hw: (H, W), or None when all pixels are valid.
        params: kernel weights and sigmas.
        deadline: `time.monotonic()` after which no further iteration starts.

    Raises:
        DeadlinePassed: the deadline passed before an iteration.
    """
    valid = np.ones(logits_khw.shape[1:], bool) if valid_hw is None else valid_hw
    probs = softmax(logits_khw)
    if not valid.any():
        return probs
    crf = pydensecrf.DenseCRF(int(valid.sum()), len(logits_khw))
    crf.setUnaryEnergy(np.ascontiguousarray(-logits_khw[:, valid]))
    ys, xs = np.nonzero(valid)
    place = np.stack([xs, ys]).astype(np.float32)
    if params.pos_w:
        crf.addPairwiseEnergy(place / np.float32(params.pos_xy), compat=params.pos_w)
    if params.bi_w:
        colour = np.ascontiguousarray(pixels_hwc[valid].T, np.float32) / np.float32(params.bi_rgb)
        features = np.concatenate([place / np.float32(params.bi_xy), colour])
        crf.addPairwiseEnergy(features, compat=params.bi_w)
    marginals, scratch_1, scratch_2 = crf.startInference()
    for done in range(params.iterations):
        if monotonic() > deadline:
            raise DeadlinePassed(f"after {done} of {params.iterations} iterations")
        crf.stepInference(marginals, scratch_1, scratch_2)
    probs[:, valid] = np.array(marginals, np.float32)
    return probs
