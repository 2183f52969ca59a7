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


def pydensecrf_marginals(
    pixels_hwc: UInt8, logits_khw: Float32, valid_hw: Bool | None, params: CrfParams, *, deadline: float = np.inf
) -> Float32:
    """Marginals of the mean field after `params.iterations` steps: (K, H, W) float32, sums to 1 over K.

    The unary is -logits: it equals -log softmax up to a constant per pixel, which cancels in the mean field (eq. 2).
    Pixels that are not valid get a flat unary, so they follow their neighbours and influence no class.

    Args:
        pixels_hwc: (H, W, 3) uint8.
        logits_khw: (K, H, W) float32, K at least 2, finite.
        valid_hw: (H, W), or None when all pixels are valid.
        params: kernel weights and sigmas.
        deadline: `time.monotonic()` after which no further iteration starts.

    Raises:
        DeadlinePassed: the deadline passed before an iteration.
    """
    num_classes, height, width = logits_khw.shape
    unary = np.negative(logits_khw).reshape(num_classes, -1)
    if valid_hw is not None:
        unary[:, ~valid_hw.ravel()] = 0
    # pydensecrf refuses read-only arrays, as the object store and decoders give: copy the image.
    image = np.array(pixels_hwc, order="C")
    crf = pydensecrf.DenseCRF2D(width, height, num_classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    if params.pos_w:
        crf.addPairwiseGaussian(sxy=params.pos_xy, compat=params.pos_w)
    if params.bi_w:
        crf.addPairwiseBilateral(sxy=params.bi_xy, srgb=params.bi_rgb, rgbim=image, compat=params.bi_w)
    marginals, scratch_1, scratch_2 = crf.startInference()
    for done in range(params.iterations):
        if monotonic() > deadline:
            raise DeadlinePassed(f"after {done} of {params.iterations} iterations")
        crf.stepInference(marginals, scratch_1, scratch_2)
    return np.array(marginals, np.float32).reshape(num_classes, height, width)
