"""Segmentation of one image in this process, as a library: an array in, mask and confidence out.

The same settings give the same mask as the job `segment_dataset`. Ray is not needed, no image file
is read and nothing is written. Import it with `from pipeline import segment`.
"""

import logging
from functools import lru_cache
from os import PathLike, fspath

import numpy as np

from pipeline.config import InferConfig, RefineConfig, TileConfig
from pipeline.infer.segmenter import Segmenter
from pipeline.models.card import Card
from pipeline.models.checkpoint import load_checkpoint
from pipeline.records import Bool, Float32, Image, Item, Scored, UInt8
from pipeline.refine.engine import guide_bands, resolve_engine
from pipeline.refine.refiner import Refiner
from pipeline.refine.unary import active_classes

log = logging.getLogger(__name__)

CACHED_NETWORKS = 2
"""Networks kept in memory; the least recently used is dropped first."""


def segment(
    pixels_hwc: UInt8,
    checkpoint: str | PathLike[str],
    *,
    refine: bool | RefineConfig = True,
    valid_hw: Bool | None = None,
    tile: TileConfig | None = None,
    infer: InferConfig | None = None,
) -> tuple[UInt8, Float32]:
    """Segment one image, with the defaults of `segment_dataset`; the same settings give the same mask.

    The network of a checkpoint stays in memory for later calls; changes in its folder are not noticed. Calls from
    several threads are safe: two simultaneous first calls load the network twice, and nothing else is shared.

    Args:
        pixels_hwc: (H, W, 3) uint8 RGB, upright; for other bands (H, W, C), in the order of the checkpoint's card.
        checkpoint: shipped name such as `farmland`, or folder or URL of `model.safetensors` and `card.json`.
        refine: True for the default dense CRF, a `RefineConfig` for other settings, False for the network's mask.
        valid_hw: (H, W) bool, False for pixels without data; None when every pixel is valid.
        tile: tiling of large images.
        infer: precision, output stride, scales and flip.

    Returns:
        mask, (H, W) uint8: class ids, and 255 for pixels that are not valid; and confidence, (H, W) float32: the
        largest probability of the network before any refinement, 0 to 1 in steps of 1/255.

    Raises:
        TypeError: an array has another dtype.
        ValueError: an array has another shape than allowed, or no pixel.
        ConfigError: the checkpoint does not exist, or `refine.guide` names a band that it does not take.
        InputError: the image is too large for the limits of `tile`, `infer` or the GPU, or the network's scores are
            not finite.
    """
    network, card = _network(fspath(checkpoint), tile or TileConfig(), infer or InferConfig())
    _check_pixels(pixels_hwc, card)
    _check_valid(valid_hw, pixels_hwc)
    cfg = resolve_engine(_refinement(refine))
    guide_hwc = np.ascontiguousarray(pixels_hwc[..., guide_bands(cfg, card.channels)])
    scored = _score(network, Image(pixels_hwc, valid_hw), cfg)
    refinement = Refiner(cfg, card.classes)(scored, Image(guide_hwc, valid_hw))
    if refinement.note:
        log.warning("the mask is the network's, not refined: %s", refinement.note)
    return refinement.mask_hw, refinement.confidence_hw.astype(np.float32) / np.float32(255)


@lru_cache(maxsize=CACHED_NETWORKS)
def _network(checkpoint: str, tile: TileConfig, infer: InferConfig) -> tuple[Segmenter, Card]:
    model = load_checkpoint(checkpoint)
    return Segmenter(model, infer, tile), model.card


def _score(network: Segmenter, image: Image, cfg: RefineConfig) -> Scored:
    """Logits of the active classes of an image."""
    (prediction,) = network([image])
    if prediction.error or prediction.logits_khw is None:
        raise prediction.error or ValueError("the network gave neither logits nor an error")
    ids, lost = active_classes(prediction.logits_khw, prune=0 if cfg.engine == "none" else cfg.prune)
    return Scored(
        Item(key="array", shard="", etag=""),
        height=image.height,
        width=image.width,
        logits_khw=prediction.logits_khw[list(ids)],
        class_ids=ids,
        pruned_mass=lost,
        stride=network.stride,
        align_corners=network.align_corners,
    )


def _refinement(refine: bool | RefineConfig) -> RefineConfig:
    if isinstance(refine, RefineConfig):
        return refine
    return RefineConfig() if refine else RefineConfig(engine="none")


def _check_pixels(pixels_hwc: UInt8, card: Card) -> None:
    _check_dtype("pixels_hwc", pixels_hwc, np.uint8)
    bands = f"(H, W, {len(card.channels)}): {', '.join(card.channels)}"
    if pixels_hwc.ndim != 3 or pixels_hwc.shape[2] != len(card.channels):
        raise ValueError(f"pixels_hwc has shape {pixels_hwc.shape}, this checkpoint needs {bands}")
    if 0 in pixels_hwc.shape:
        raise ValueError(f"pixels_hwc has shape {pixels_hwc.shape}: the image has no pixel")


def _check_valid(valid_hw: Bool | None, pixels_hwc: UInt8) -> None:
    if valid_hw is None:
        return
    _check_dtype("valid_hw", valid_hw, np.bool_)
    if valid_hw.shape != pixels_hwc.shape[:2]:
        raise ValueError(f"valid_hw has shape {valid_hw.shape}, the image is {pixels_hwc.shape[:2]}")


def _check_dtype(name: str, array: object, dtype: type[np.generic]) -> None:
    required = f"it must be a numpy array of {np.dtype(dtype)}"
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(array).__name__}; {required}")
    if array.dtype != dtype:
        raise TypeError(f"{name} is an array of {array.dtype}; {required}")
