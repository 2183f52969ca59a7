from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import classes
from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.models import checkpoint, zoo
from pipeline.models.card import Card, load_card
from pipeline.models.network import Network
from pipeline.store.url import Url
from pipeline.training import start as initial
from pipeline.training.config import NetworkConfig, TrainConfig
from tests.support.packages import installed_backbone

VGG = {"name": "deeplab_v1", "options": {"width_multiplier": 1 / 32}}
AROUND = {"name": "attention_to_scale", "options": {"network": "deeplab_v1", "width_multiplier": 1 / 32}}


def class_map(*names: str) -> ClassMap:
    said = [{"name": name, "colour": [index, 0, 0]} for index, name in enumerate(names)]
    return classes.from_dict({"name": "some", "classes": said}, origin="test")


def build(said: dict, number: int, seed: int) -> Network:
    """A network whose every weight is random, its scores' as well."""
    torch.manual_seed(seed)
    network = zoo.build_network(said["name"], number, **said["options"])
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def saved(folder: Path, network: Network, said: dict, theirs: ClassMap) -> str:
    card = Card(
        architecture=said["name"],
        options=said["options"],
        output_stride=network.output_strides[0],
        classes=theirs,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        source="test",
        license="CC0-1.0",
    )
    checkpoint.save_checkpoint(Url(str(folder)), network.state_dict(), card)
    return str(folder)


def test_scores_are_taken_over_by_the_names_of_classes_and_everything_else_whole(tmp_path):
    theirs, ours = class_map("dining table", "cat", "dog", "person"), class_map("person", "table", "cat", "boat")
    start, network = build(VGG, 4, seed=0), build(VGG, 4, seed=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cfg = NetworkConfig(initial=saved(tmp_path, start, VGG, theirs), initial_classes={"table": "dining table"}, **VGG)
    initial.load_initial_weights(network, cfg, ours)
    heads = initial.class_tensors(load_card(str(tmp_path)))
    after, begun = network.state_dict(), start.state_dict()
    last = network.last_layers()[0]
    assert {name for name, one in network.named_parameters() if one is last.weight or one is last.bias} == heads
    for name in after.keys() - heads:
        assert torch.equal(after[name], begun[name])
    for name in heads:
        assert torch.equal(after[name][:3], begun[name][[3, 0, 1]])
        assert torch.equal(after[name][3], before[name][3])


def test_classes_of_coco_start_those_of_voc(tmp_path):
    coco, voc = classes.load_class_map("coco"), classes.load_class_map("voc")
    cfg = NetworkConfig(initial_classes={"sofa": "couch", "tvmonitor": "tv"})
    pairs = initial.class_pairs(cfg, voc, coco)
    assert pairs[voc.names.index("person")] == coco.names.index("person")
    assert pairs[voc.names.index("sofa")] == coco.names.index("couch")


def test_another_number_of_classes_is_no_hindrance(tmp_path):
    start, network = build(VGG, 2, seed=0), build(VGG, 3, seed=1)
    initial.load_initial_weights(
        network,
        NetworkConfig(initial=saved(tmp_path, start, VGG, class_map("a", "b")), **VGG),
        class_map("x", "b", "y"),
    )
    assert torch.equal(network.last_layers()[0].weight[1], start.last_layers()[0].weight[1])


def test_a_network_around_another_one_starts_from_the_checkpoint_of_that_one(tmp_path):
    start, network = build(VGG, 3, seed=0), build(AROUND, 3, seed=1)
    same = class_map("a", "b", "c")
    initial.load_initial_weights(network, NetworkConfig(initial=saved(tmp_path, start, VGG, same), **AROUND), same)
    inside = network.inner.state_dict()
    assert all(torch.equal(inside[name], tensor) for name, tensor in start.state_dict().items())


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    same = class_map("a", "b")
    url = saved(tmp_path, build(VGG, 2, seed=0), VGG, same)
    other = zoo.build_network("unet", 2, width_multiplier=0.06)
    with pytest.raises(ConfigError, match=r"no tensor of .* \(deeplab_v1\) fits the network unet"):
        initial.load_initial_weights(other, NetworkConfig(name="unet", initial=url), same)
    for wrong in ({"c": "a"}, {"a": "c"}):
        with pytest.raises(ConfigError, match="some has no class 'c'"):
            initial.load_initial_weights(
                build(VGG, 2, seed=1), NetworkConfig(initial=url, initial_classes=wrong, **VGG), same
            )


def test_filters_of_bands_are_copied_by_name_and_those_of_new_bands_start_at_zero():
    theirs = torch.arange(2 * 3 * 1 * 1.0).reshape(2, 3, 1, 1) + 1
    own = torch.full((2, 4, 1, 1), 9.0)
    mixed = initial.copy_bands(own, theirs, ("nir", "blue", "red", "green"), ("red", "green", "blue"))
    assert torch.equal(mixed[:, 1:], theirs[:, [2, 0, 1]])
    assert not mixed[:, 0].any()
    assert torch.equal(initial.copy_bands(own, theirs, ("a", "b", "c", "d"), ("red", "green", "blue")), own)


@pytest.mark.parametrize("axis", [0, 1])
def test_classes_are_copied_along_the_axis_they_lie_on(axis):
    """The second axis in the weight of a transposed convolution."""
    theirs, own = torch.arange(2 * 5 * 9.0).reshape(2, 5, 3, 3), torch.zeros(3, 5, 3, 3)
    if axis:
        theirs, own = theirs.transpose(0, 1), own.transpose(0, 1)
    mixed = initial.copy_classes(own, theirs, {0: 1, 2: 0}, 3)
    assert torch.equal(mixed.select(axis, 0), theirs.select(axis, 1))
    assert torch.equal(mixed.select(axis, 2), theirs.select(axis, 0))
    assert not mixed.select(axis, 1).any()


def test_a_square_tensor_in_which_both_axes_could_be_the_classes_stays():
    own = torch.zeros(3, 3, 1, 1)
    assert initial.copy_classes(own, torch.ones(3, 3, 1, 1), {0: 1}, 3) is own


# ---------------------------------------------------------------- pretrained backbones, and settings of the weights


LITE = "efficientnet-lite0"
CHANNELS = {"aspp_channels": 8, "decoder_channels": 8}
LITE_OPTIONS = {"backbone": "efficientnet_lite0"} | CHANNELS


def config(**network) -> TrainConfig:
    return TrainConfig(data="data", output="out", network=NetworkConfig(**network))


@pytest.mark.parametrize(
    ("name", "options", "prefix"),
    [
        ("deeplab_v3plus", LITE_OPTIONS, "backbone."),
        ("unet_resnet", {"backbone": "efficientnet_lite0"}, "encoder."),
        ("attention_to_scale", {"network": "deeplab_v3plus", "options": LITE_OPTIONS}, "inner.backbone."),
    ],
)
def test_a_pretrained_backbone_starts_every_network_that_has_it(name, options, prefix, tmp_path, monkeypatch):
    file = installed_backbone(LITE, tmp_path, monkeypatch)
    torch.manual_seed(0)
    network = zoo.build_network(name, 2, **options)
    scores = prefix.replace("backbone.", "").replace("encoder.", "") + "logits.weight"
    before = network.state_dict()[scores].clone()
    cfg = NetworkConfig(name=name, options=options, initial=LITE)
    initial.load_initial_weights(network, cfg, class_map("aeroplane", "person"))
    state = network.state_dict()
    assert torch.equal(state[prefix + "features.0.0.weight"], file["_conv_stem.weight"])
    assert torch.equal(state[prefix + "features.16.conv.2.weight"], file["_blocks.15._project_conv.weight"])
    assert torch.equal(state[scores], before)


def test_a_backbone_that_fits_only_in_part_is_refused_with_the_option_to_set(tmp_path, monkeypatch):
    installed_backbone(LITE, tmp_path, monkeypatch)
    options = {"backbone": "efficientnet_lite1"} | CHANNELS
    network = zoo.build_network("deeplab_v3plus", 2, **options)
    with pytest.raises(ConfigError, match="of 288 tensors of the backbone efficientnet-lite0 fit") as raised:
        initial.load_initial_weights(network, NetworkConfig(options=options, initial=LITE), class_map("a", "b"))
    assert "efficientnet_lite0" in str(raised.value.hint)


def test_a_backbone_has_no_classes_to_start_from(tmp_path, monkeypatch):
    installed_backbone(LITE, tmp_path, monkeypatch)
    cfg = NetworkConfig(options=LITE_OPTIONS, initial=LITE, initial_classes={"a": "person"})
    network = zoo.build_network("deeplab_v3plus", 2, **LITE_OPTIONS)
    with pytest.raises(ConfigError, match="efficientnet-lite0 is a backbone, without classes"):
        initial.load_initial_weights(network, cfg, class_map("a", "b"))


def test_a_run_takes_backbone_mean_and_deviation_of_its_initial_weights(tmp_path, monkeypatch):
    installed_backbone(LITE, tmp_path, monkeypatch)
    network = initial.with_initial_settings(config(initial=LITE, options=CHANNELS)).network
    assert network.options == {"backbone": "efficientnet_lite0"} | CHANNELS
    assert network.mean == pytest.approx((127 / 255,) * 3)
    assert network.std == pytest.approx((128 / 255,) * 3)
    again = config(**network.model_dump())
    assert initial.with_initial_settings(again) == again


def test_mean_and_deviation_that_are_set_stay_and_are_warned_of(tmp_path, caplog):
    url = saved(tmp_path, build(VGG, 2, seed=0), VGG, class_map("a", "b"))
    assert initial.with_initial_settings(config(initial=url, **VGG)).network.mean == (0.5, 0.5, 0.5)
    given = config(initial=url, mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0), **VGG)
    assert not caplog.records
    assert initial.with_initial_settings(given) == given
    assert "trained with mean (0.5, 0.5, 0.5)" in caplog.text
    other_bands = config(initial=url, channels=("red", "nir", "swir"), **VGG)
    assert initial.with_initial_settings(other_bands) == other_bands


def test_without_initial_weights_the_settings_stay():
    cfg = config()
    assert initial.with_initial_settings(cfg) is cfg


ESPNET = {"name": "espnet", "options": {"width_multiplier": 0.4, "q": 1}}


def test_layers_that_join_the_image_or_are_as_wide_as_there_are_classes_are_taken_over_by_the_same_network(tmp_path):
    """Their axes of bands and classes are not where those of scores and first filters are."""
    same = class_map("a", "b", "c", "d", "e", "f")
    start, network = build(ESPNET, 6, seed=0), build(ESPNET, 6, seed=1)
    url = saved(tmp_path, start, ESPNET, same)
    initial.load_initial_weights(network, NetworkConfig(initial=url, **ESPNET), same)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in start.state_dict().items())


def test_such_layers_keep_their_initial_values_for_other_classes_or_bands(tmp_path):
    url = saved(tmp_path, build(ESPNET, 6, seed=0), ESPNET, class_map("a", "b", "c", "d", "e", "f"))
    other, bands = class_map("f", "b", "c", "d", "e", "a"), ("nir", "red", "green", "blue")
    torch.manual_seed(1)
    network = zoo.build_network("espnet", 6, in_channels=4, **ESPNET["options"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    initial.load_initial_weights(
        network, NetworkConfig(initial=url, channels=bands, mean=(0.5,) * 4, std=(0.2,) * 4, **ESPNET), other
    )
    after, begun = network.state_dict(), checkpoint.load_checkpoint(url).state
    assert torch.equal(after["encoder.level3.0.reduce.weight"], begun["encoder.level3.0.reduce.weight"])
    assert torch.equal(after["encoder.first.0.weight"][:, 1:], begun["encoder.first.0.weight"])
    assert torch.equal(after["score.weight"][0], begun["score.weight"][5])
    for name in ("encoder.join1.0.weight", "encoder.down2.reduce.weight", "decoder.fuse2.reduce.weight"):
        assert torch.equal(after[name], before[name])
