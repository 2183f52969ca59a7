import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.deeplab_dt import DeepLabDT, DeepLabDTOptions
from pipeline.refine.domain_transform_torch import domain_transform
from pipeline.refine.lattice_torch import upsample_logits
from tests.support.examples import examples

NARROW = {"aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4, "width_multiplier": 1 / 16}
INNER = {
    "deeplab_v1": {"width_multiplier": 1 / 32},
    "deeplab_v2": {"width_multiplier": 1 / 32},
    "deeplab_v2_vgg16": {"backbone": "vgg16", "width_multiplier": 1 / 32},
    "deeplab_v2_msc": {"backbone": "resnet50", "msc": True, "width_multiplier": 1 / 32},
    "deeplab_v3plus": NARROW | {"backbone": "resnet18"},
    "deeplab_v3plus_fine": NARROW | {"backbone": "resnet18", "fine_channels": 8},
    "deeplab_v3plus_mobilenet_v2": NARROW | {"backbone": "mobilenet_v2"},
    "deeplab_v3plus_lite": NARROW | {"backbone": "efficientnet_lite0"},
}
every_inner = pytest.mark.parametrize("name", INNER)


def network(name: str = "deeplab_v1", in_channels: int = 3, **options) -> DeepLabDT:
    """As the zoo builds it, but with edges that are not almost 0, and scores that differ."""
    torch.manual_seed(0)
    inner = "_".join(name.split("_")[:2])
    built = zoo.build_network("deeplab_dt", 4, in_channels=in_channels, network=inner, options=INNER[name], **options)
    for layer in built.last_layers():
        nn.init.normal_(layer.weight, std=0.3)
    built.edge.weight.data.abs_()  # features are positive: edges everywhere
    return built


@every_inner
def test_the_scores_are_those_of_the_inner_network_filtered_by_the_edge_map(name: str) -> None:
    net, x = network(name).eval(), torch.randn(2, 3, 37, 45)
    features, filtered, edges = net.embed_and_edges(x)
    inner_features, scores = net.inner.embed(x)
    full = upsample_logits(scores, 37, 45, stride=net.inner.stride, align_corners=net.inner.align_corners)
    torch.testing.assert_close(features, inner_features)
    expected = domain_transform(full.permute(0, 3, 1, 2), edges, net.sigma_s, net.sigma_r, net.iterations)
    torch.testing.assert_close(filtered, expected)
    torch.testing.assert_close(net(x), filtered)
    torch.testing.assert_close(net.edge_map(x), edges)
    assert edges.shape == (2, 37, 45)
    assert edges.min() >= 0
    assert edges.max() > 0


@every_inner
def test_the_edge_map_is_one_convolution_of_the_upsampled_and_concatenated_features(name: str) -> None:
    net, x = network(name).eval(), torch.randn(1, 3, 33, 41)
    tapped = net.inner.embed_and_tap(x)[2]
    assert [cells.size(1) for cells in tapped] == [tap.channels for tap in net.inner.taps]
    wide = [
        upsample_logits(cells, 33, 41, stride=tap.stride, align_corners=net.inner.align_corners)
        for cells, tap in zip(tapped, net.inner.taps, strict=True)
    ]
    expected = net.edge(torch.cat(wide, -1).permute(0, 3, 1, 2)).relu()[:, 0]
    torch.testing.assert_close(net.edge_map(x), expected, atol=1e-4, rtol=1e-4)


def test_the_edges_of_vgg_come_from_conv2_2_conv3_3_and_conv4_1() -> None:
    net, x = network().eval(), torch.randn(1, 3, 41, 41)
    tapped = net.inner.embed_and_tap(x)[2]
    stages, seen = net.inner.backbone.stages, []
    last = [stages[1][3], stages[2][5], stages[3][1]]
    for relu in last:
        relu.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    net.inner.embed(x)
    for cells, output in zip(tapped, seen, strict=True):
        torch.testing.assert_close(cells, output[:, :, : cells.size(2), : cells.size(3)])


@examples(5)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 16]))
def test_any_size_and_number_of_bands_works_in_training(height: int, width: int, bands: int) -> None:
    net = network("deeplab_v3plus", bands)
    scores = net.supervised(torch.randn(1, bands, height, width))
    assert scores.keys() == net.loss_weights.keys()
    assert scores["logits"].shape == (1, 4, height, width)
    scores["logits"].square().mean().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in net.parameters())


def test_gradients_reach_the_edges_from_the_first_step_on() -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        net = zoo.build_network("deeplab_dt", 4, network="deeplab_v1", width_multiplier=1 / 16)
        nn.init.normal_(net.inner.last_layers()[0].weight)
        x = torch.randn(1, 3, 33, 33)
        assert net.edge_map(x).max() < 0.01, "hardly any edges at first"
        nn.functional.cross_entropy(net(x), torch.randint(0, 4, (1, 33, 33))).backward()
        assert net.edge.weight.grad.abs().sum() > 0


def test_training_puts_edges_where_they_separate_classes() -> None:
    """Two halves of different colour: the filter is told by the loss of the scores alone where to stop."""
    torch.manual_seed(0)
    net = network("deeplab_v3plus", sigma_s=20)
    label = (torch.arange(32) >= 16).long().expand(2, 32, 32)
    x = (2.0 * label[:, None] - 1).expand(-1, 3, -1, -1) + 0.1 * torch.randn(2, 3, 32, 32)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        losses.append(nn.functional.cross_entropy(net(x), label))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["deeplab_v1", "deeplab_v3plus_fine"])
def test_it_compiles_as_one_graph_and_runs_in_bf16_and_channels_last(name: str) -> None:
    net, x = network(name).eval(), torch.randn(1, 3, 33, 41)
    plain = net(x)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), plain)
    last = net(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, atol=1e-3, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        _, filtered, edges = net.embed_and_edges(x)
    assert (filtered.dtype, edges.dtype) == (torch.float32, torch.float32)


def test_the_state_dict_adds_one_convolution_and_survives_a_build_without_memory() -> None:
    net = network()
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items() if not name.startswith("inner.")}
    assert own == {"edge.weight": (1, 28, 1, 1), "edge.bias": (1,)}
    with torch.device("meta"):
        blank = network()
    blank.load_state_dict(net.state_dict(), assign=True)
    x = torch.randn(1, 3, 20, 20)
    torch.testing.assert_close(blank.eval()(x), net.eval()(x))


def test_a_network_without_intermediate_features_is_refused() -> None:
    with pytest.raises(ConfigError, match="segnet has no intermediate features") as caught:
        zoo.build_network("deeplab_dt", 4, network="segnet")
    assert "deeplab_v3plus" in str(caught.value.hint)


def test_networks_that_predict_no_edges_have_no_edge_map() -> None:
    assert zoo.build_network("deeplab_v1", 4, width_multiplier=1 / 32).edge_map(torch.zeros(1, 3, 9, 9)) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "deeplab_dt"}, "network is deeplab_dt itself"),
        ({"sigma_s": 0}, "sigma_s"),
        ({"sigma_r": -1}, "sigma_r"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DeepLabDTOptions.model_validate(wrong)
