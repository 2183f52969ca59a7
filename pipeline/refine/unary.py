"""Unary potentials: logits at the network's stride in, full-size scores and probabilities of one window out.

Logits travel small (float16, stride 4 to 16). Upsampling them here, window by window, keeps full-size maps inside the
process and no larger than a window.
"""

import numpy as np
import numpy.typing as npt

from pipeline.records import Float16, Float32, Scored, Window


def _taps(
    first: int, length: int, stride: int, cells: int, *, align_corners: bool
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float32]:
    """Left cell, right cell and weight of the right cell, for `length` pixels from `first` on, along one axis."""
    pixels = np.arange(first, first + length, dtype=np.float32)
    centres = pixels / stride if align_corners else (pixels + 0.5) / stride - 0.5
    centres = centres.clip(0, cells - 1)
    left = np.floor(centres).astype(np.intp)
    return left, np.minimum(left + 1, cells - 1), (centres - left).astype(np.float32)


def upsample_window(logits_khw: Float16 | Float32, scored: Scored, window: Window) -> Float32:
    """Bilinear upsampling of one window: (K, window.height, window.width) float32.

    Cell (i, j) of the logits covers the pixels [i*stride, (i+1)*stride) of the image; with `scored.align_corners` it
    is the single pixel i*stride. Equal to `torch.nn.functional.interpolate` on the padded input, cropped.
    """
    align = scored.align_corners
    top, bottom, down = _taps(window.y, window.height, scored.stride, logits_khw.shape[1], align_corners=align)
    left, right, along = _taps(window.x, window.width, scored.stride, logits_khw.shape[2], align_corners=align)
    first, last = top[0], bottom[-1] + 1
    band = logits_khw[:, first:last].astype(np.float32)  # only the rows of cells under this window
    wide = band[:, :, left]
    wide += (band[:, :, right] - wide) * along
    tall = wide[:, top - first]
    tall += (wide[:, bottom - first] - tall) * down[:, None]
    return tall


def cells_under(logits_khw: Float16, scored: Scored, window: Window) -> tuple[Float16, int, int]:
    """Cells that the upsampling of a window reads (K, h, w), and the window's first row and column from their corner.

    Upsampled, they give the window's pixels, while memory follows the window and not the image.
    """
    align = scored.align_corners
    top, bottom, _ = _taps(window.y, window.height, scored.stride, logits_khw.shape[1], align_corners=align)
    left, right, _ = _taps(window.x, window.width, scored.stride, logits_khw.shape[2], align_corners=align)
    cells = logits_khw[:, top[0] : bottom[-1] + 1, left[0] : right[-1] + 1]
    return cells, window.y - int(top[0]) * scored.stride, window.x - int(left[0]) * scored.stride


def softmax(logits_khw: Float32) -> Float32:
    """Probabilities over the first axis, float32."""
    exp: Float32 = np.exp(logits_khw - logits_khw.max(axis=0))
    exp /= exp.sum(axis=0)
    return exp


def entropy(probs_khw: Float32) -> Float32:
    """Shannon entropy of each pixel's probabilities, nats: (H, W), from 0 for a certain class to log(K) for a tie."""
    nats: Float32 = -np.einsum("khw,khw->hw", probs_khw, np.log(np.maximum(probs_khw, 1e-30)))
    return nats


def active_classes(logits_khw: Float16, *, prune: float) -> tuple[tuple[int, ...], float]:
    """Pruning: ids of the classes that can still win a pixel, and the mean probability of the others.

    A class is dropped when its probability is below `prune` in every cell and no cell has it as the largest.

    Returns:
        Ids, ascending, all of them when `prune` is 0; and the dropped classes' probability, mean over cells, 0 to 1.
    """
    if prune == 0:
        return tuple(range(len(logits_khw))), 0.0
    probs = softmax(logits_khw.astype(np.float32)).reshape(len(logits_khw), -1)
    reached = probs.max(axis=1) >= prune
    reached[np.unique(probs.argmax(axis=0))] = True
    lost = float(probs[~reached].sum(dtype=np.float64)) / probs.shape[1]
    return tuple(np.flatnonzero(reached).tolist()), lost
