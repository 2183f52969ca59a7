"""Samples for the report: images and labels read again from the source, with their committed masks.

In: an evaluation and keys. Out: samples, in the order of the plan. Images that cannot be read any more are left out,
so that the report is written all the same. A network that predicts edges is asked again for them, here on the driver:
rows do not hold them.
"""

import logging
from collections.abc import Callable, Iterator, Set
from dataclasses import replace

import numpy as np

from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError, InputError, LabelError, StorageError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.geotiff.window import decode_window
from pipeline.image.decode import decode_image
from pipeline.image.encode import read_mask_png
from pipeline.infer.segmenter import Segmenter
from pipeline.models import checkpoint, zoo
from pipeline.models.card import load_card
from pipeline.records import Float32, Image, Item, Sample
from pipeline.run.masks import PartMasks
from pipeline.run.pixels import decode_item, without_halo
from pipeline.score import answers
from pipeline.source.plan import Plan, read_items
from pipeline.source.raster import NetworkBands
from pipeline.source.truth import raster_labels

log = logging.getLogger(__name__)


def reread(
    evaluation: Evaluation, keys: Set[str], planned: Plan, cfg: EvaluateConfig, *, with_edges: Set[str] = frozenset()
) -> Iterator[Sample]:
    """Reread images and labels of `keys` for the report. Reads only their shards, and in a folder only their files.

    Those of `with_edges` also have the edge map of a network that predicts one.
    """
    edge_map = _edge_maps(cfg.named()[evaluation.name]) if with_edges else None
    images = evaluation.images
    shards = set(images["shard"][images["key"].isin(keys)])
    masks = PartMasks(evaluation.run_url)
    others = frozenset(images["key"]) - keys
    truth = raster_labels(cfg, evaluation.classes)
    for shard in planned.shards:
        if shard.id in shards:
            for item in read_items(
                shard, cfg.read, max_bytes=int(cfg.decode.max_mib * 2**20), skip=others, truth=truth
            ):
                if item.key in keys and (sample := _sample(item, masks, evaluation, cfg)):
                    edges = edge_map(item) if edge_map and item.key in with_edges else None
                    yield replace(sample, edges_hw=edges)


def _sample(item: Item, masks: PartMasks, evaluation: Evaluation, cfg: EvaluateConfig) -> Sample | None:
    if item.failure:
        return None
    try:
        image = _visible_window(item) if item.outer else decode_image(item.data, cfg.decode)
        truth = answers.read_truth(item, cfg.judge, evaluation.classes, height=image.height, width=image.width)
        return Sample(item.key, image.pixels_hwc, truth, read_mask_png(masks(item.key)))
    except (InputError, LabelError):
        return None


def _edge_maps(cfg: EvaluateConfig) -> Callable[[Item], Float32 | None] | None:
    """Edge map of an item, (H, W), of a window's core alone.

    None when the network predicts no edges, the masks are another program's, or the checkpoint is gone by now.
    """
    if not cfg.checkpoint:
        return None
    try:
        card = load_card(cfg.checkpoint)
        if not zoo.predicts_edges(card.architecture):
            return None
        segmenter = Segmenter(checkpoint.load_checkpoint(cfg.checkpoint), cfg.infer, cfg.tile)
    except (ConfigError, StorageError) as error:
        log.warning("the report has no edge maps: %s", error)
        return None
    bands = NetworkBands(card.channels, card.scale)
    return lambda item: segmenter.edge_map(without_halo(item, decode_item(item, cfg, bands)))


def _visible_window(item: Item) -> Image:
    """Core of a window of a raster, for display: its first three bands, or the first one as grey."""
    image = without_halo(item, decode_window(item.data))
    bands = [0, 1, 2] if image.pixels_hwc.shape[2] > 2 else [0, 0, 0]
    return replace(image, pixels_hwc=np.ascontiguousarray(image.pixels_hwc[..., bands]))
