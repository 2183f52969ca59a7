"""Small untrained checkpoints of any bands, for tests of everything around a network."""

from pathlib import Path

import torch

from pipeline.config import BandScale
from pipeline.models import checkpoint, zoo
from pipeline.models.card import Card, load_card
from pipeline.store.url import Url

OPTIONS = {"width_multiplier": 1 / 16, "padding": "same"}


def small_edges(folder: Path) -> Path:
    """Write a DeepLab-DT with the classes of farmland and edges that are not all 0."""
    torch.manual_seed(1)
    classes = load_card("farmland").classes
    options = {"network": "deeplab_v1", "width_multiplier": 1 / 32}
    network = zoo.build_network("deeplab_dt", len(classes), **options)
    network.edge.weight.data.normal_().abs_()
    card = Card(
        architecture="deeplab_dt",
        options=options,
        output_stride=8,
        classes=classes,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        source="a test",
        license="Apache-2.0",
    )
    checkpoint.save_checkpoint(Url(str(folder)), network.state_dict(), card)
    return folder


def small_checkpoint(folder: Path, channels: tuple[str, ...], scale: BandScale | None = None) -> Path:
    """Write a U-Net with the classes of farmland; the same weights for the same number of channels."""
    torch.manual_seed(1)
    classes = load_card("farmland").classes
    state = zoo.build_network("unet", len(classes), in_channels=len(channels), **OPTIONS).state_dict()
    card = Card(
        architecture="unet",
        options=OPTIONS,
        in_channels=len(channels),
        channels=channels,
        classes=classes,
        mean=(0.5,) * len(channels),
        std=(0.2,) * len(channels),
        scale=scale,
        source="a test",
        license="Apache-2.0",
    )
    checkpoint.save_checkpoint(Url(str(folder)), state, card)
    return folder
