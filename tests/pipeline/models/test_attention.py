import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.attention import AttentionToScale, scaled_side
from pipeline.models.catalogue import count_parameters
from tests.support.examples import examples
from tests.support.networks import assert_one_graph, assert_trains_on_one

LARGE_FOV = {"network": "deeplab_v1", "width_multiplier": 1 / 32}
PLUS = {
    "network": "deeplab_v3plus",
    "options": {
        "backbone": "mobilenet_v2",
        "width_multiplier": 0.25,
        "aspp_channels": 8,
        "decoder_channels": 8,
        "low_level_channels": 4,
    },
    "attention_channels": 8,
}
INNER = {"aligned": LARGE_FOV, "not aligned": PLUS}


def tiny(options: dict, **changes) -> AttentionToScale:
    torch.manual_seed(0)
    network = zoo.build_network("attention_to_scale", 5, **(options | changes))
    assert isinstance(network, AttentionToScale)
    nn.init.normal_(network.attend[-1].weight)  # else all weights are nearly equal
    return network.eval()


def resized(x: Tensor, size: torch.Size, network: AttentionToScale) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=network.align_corners)


def attention(network: AttentionToScale, x: Tensor) -> Tensor:
    """(N, S, h, w): the weight of each scale in each cell of the logits."""
    features = [features for features, _ in network._at_scales(x)]
    return network._weigh(network._on_one_grid(x, features))


inner = pytest.mark.parametrize("options", INNER.values(), ids=INNER)


@inner
def test_attention_sums_to_1_over_scales_on_the_logits_grid(options: dict) -> None:
    network, x = tiny(options), torch.randn(2, 3, 70, 33)
    with torch.no_grad():
        weights, logits = attention(network, x), network(x)
    assert weights.shape == (2, 3, *logits.shape[2:])
    assert (weights >= 0).all()
    assert weights.std(dim=1).max() > 0.01
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))


@inner
def test_one_scale_is_the_inner_network(options: dict) -> None:
    network, x = tiny(options, scales=(1.0,)), torch.randn(2, 3, 70, 33)
    with torch.no_grad():
        for one, other in zip(network.embed(x), network.inner.embed(x), strict=True):
            torch.testing.assert_close(one, other)


@inner
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_head_that_wants_one_scale_gives_its_scores_resized(options: dict, chosen: int) -> None:
    network, x = tiny(options), torch.randn(2, 3, 65, 48)
    with torch.no_grad():
        nn.init.zeros_(network.attend[-1].weight)
        network.attend[-1].bias.copy_(torch.tensor([100.0 if one == chosen else 0.0 for one in range(3)]))
        scale = (1.0, 0.75, 0.5)[chosen]
        size = [scaled_side(side, scale, align_corners=network.align_corners) for side in x.shape[2:]]
        expected = network.inner(resized(x, torch.Size(size), network))
        logits = network(x)
        torch.testing.assert_close(logits, resized(expected, logits.shape[2:], network))


@inner
def test_logits_are_the_average_that_attention_says(options: dict) -> None:
    """Cell by cell, from what the network shows: attention and the scores of each scale."""
    network, x = tiny(options), torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        weights, found = attention(network, x), network.supervised(x)
        logits = found.pop("logits")
        scores = [resized(one, logits.shape[2:], network) for one in found.values()]
        for row in range(logits.size(2)):
            for column in range(logits.size(3)):
                expected = sum(weights[0, s, row, column] * one[0, :, row, column] for s, one in enumerate(scores))
                torch.testing.assert_close(logits[0, :, row, column], expected)


@inner
def test_features_are_what_the_inner_networks_last_layer_would_make_the_logits_of(options: dict) -> None:
    """Averaging commutes with a linear layer whose weights sum to 1."""
    network, x = tiny(options), torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        features, logits = network.embed(x)
        last = network.inner.classifier.fc8 if network.stride == 8 else network.inner.logits
        torch.testing.assert_close(last(features), logits, rtol=1e-4, atol=1e-5)
    assert features.size(1) == network.feature_channels


@inner
def test_scores_under_a_loss_have_the_names_of_their_weights(options: dict) -> None:
    network, x = tiny(options), torch.randn(1, 3, 64, 64)
    assert list(network.supervised(x)) == list(network.loss_weights) == ["logits", "scale_1", "scale_0.75", "scale_0.5"]
    plain = tiny(options, extra_supervision=False)
    assert list(plain.supervised(x)) == list(plain.loss_weights) == ["logits"]


@inner
@pytest.mark.parametrize("extra_supervision", [True, False])
def test_every_parameter_learns(options: dict, extra_supervision: bool) -> None:
    network = tiny(options, extra_supervision=extra_supervision).train()
    found = network.supervised(torch.randn(2, 3, 64, 64))
    losses = [network.loss_weights[name] * one.square().mean() for name, one in found.items()]
    torch.stack(losses).sum().backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@inner
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(options: dict, side: int) -> None:
    assert_trains_on_one(tiny(options).train(), side)


READY = [tiny(options) for options in INNER.values()]


@examples(25)
@given(st.sampled_from(READY), st.integers(1, 70), st.integers(1, 70))
def test_logits_leave_at_the_inner_networks_stride_for_any_size(
    network: AttentionToScale, height: int, width: int
) -> None:
    with torch.no_grad():
        logits = network(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 5, -(-height // network.stride), -(-width // network.stride))


@given(st.integers(1, 2000), st.sampled_from([1.0, 0.75, 0.5, 0.3]), st.booleans())
def test_a_smaller_scale_has_at_least_a_pixel_and_at_most_those_of_the_image(
    side: int, scale: float, align_corners: bool
) -> None:
    assert 1 <= scaled_side(side, scale, align_corners=align_corners) <= side
    assert scaled_side(side, 1.0, align_corners=align_corners) == side


def test_scales_of_the_paper_keep_caffes_sizes() -> None:
    """321 pixels are 41 cells of the finest scale; Interp shrinks the steps between pixels, not their number."""
    assert [scaled_side(321, scale, align_corners=True) for scale in (1.0, 0.75, 0.5)] == [321, 241, 161]


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny(LARGE_FOV), torch.randn(1, 3, 48, 32)
    assert_one_graph(network, x)


@inner
def test_half_precision_and_channels_last_agree_with_float32(options: dict) -> None:
    network, x = tiny(options), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = network(x)
        strided = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(strided, expected, rtol=1e-4, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_defaults_are_large_fov_and_the_head_of_the_paper() -> None:
    with torch.device("meta"):
        network, alone = zoo.build_network("attention_to_scale", 7), zoo.build_network("deeplab_v1", 7)
    assert count_parameters(network) - count_parameters(alone) == (3 * 1024 * 9 + 1) * 512 + (512 + 1) * 3
    assert (network.stride, network.align_corners) == (8, True)


def test_output_strides_and_bands_are_the_inner_networks() -> None:
    network = zoo.build_network("attention_to_scale", 5, output_stride=8, in_channels=4, **PLUS)
    assert network.output_strides == (16, 8)
    assert network.inner.aspp.branches[1][0].dilation == (12, 12)
    assert network.eval()(torch.zeros(1, 4, 8, 8)).shape == (1, 5, 2, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"network": "attention_to_scale"}, "network is attention_to_scale itself"),
        ({"network": "deeplab_v9"}, "no network 'deeplab_v9'"),
        ({"options": {"depth": 3}}, "options of deeplab_v1"),
        ({"options": {"in_channels": 4}}, "must not contain in_channels"),
        ({"output_stride": 16}, "deeplab_v1: output stride 16 is not one of (8,)"),
        ({"scales": (0.5,)}, "must be distinct and contain 1"),
        ({"scales": (1.0, 0.5, 0.5)}, "distinct"),
        ({"scales": (1.0, 1.5)}, "scales.1"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.build_network("attention_to_scale", 5, **options)
    assert says in str(caught.value)
