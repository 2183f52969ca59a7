import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import zoo
from pipeline.models.catalogue import count_parameters
from pipeline.models.unet import mirror, mirror_indices
from tests.support.examples import examples
from tests.support.networks import assert_one_graph, assert_trains_on_one

VARIANTS = {
    "valid": ("unet", {"width_multiplier": 1 / 32}),
    "same": ("unet", {"width_multiplier": 1 / 32, "padding": "same", "batch_norm": True}),
    "resnet": ("unet_resnet", {"width_multiplier": 1 / 16, "backbone": "resnet50"}),
    "shallow": ("unet_resnet", {"width_multiplier": 1 / 16, "backbone": "resnet18"}),
    "lite": ("unet_resnet", {"width_multiplier": 1 / 16, "backbone": "efficientnet_lite0"}),
}
variants = pytest.mark.parametrize("variant", list(VARIANTS))


def tiny(variant: str, num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    name, tiny_options = VARIANTS[variant]
    return zoo.build_network(name, num_classes, **(tiny_options | options))


def on_meta(name: str, num_classes: int, **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network(name, num_classes, **options)


def counted(in_channels: int, num_classes: int, *, batch_norm: bool = False) -> int:
    """Parameters of the paper's figure 1, layer by layer."""
    widths = [64, 128, 256, 512, 1024]
    shift = 2 if batch_norm else 1  # a weight and a bias of batch norm, or a bias alone
    total = 0
    for entering, width in zip([in_channels, *widths], widths, strict=False):
        total += 9 * entering * width + 9 * width * width + 2 * shift * width
    for width in widths[:-1]:
        total += 4 * 2 * width * width + width
        total += 9 * 2 * width * width + 9 * width * width + 2 * shift * width
    return total + 64 * num_classes + num_classes


@pytest.mark.parametrize(
    ("in_channels", "num_classes", "count"), [(1, 2, 31_030_658), (1, 1, 31_030_593), (3, 21, 31_033_045)]
)
def test_the_papers_network_has_the_published_number_of_parameters(
    in_channels: int, num_classes: int, count: int
) -> None:
    network = on_meta("unet", num_classes, in_channels=in_channels)
    assert count_parameters(network) == counted(in_channels, num_classes) == count
    assert count_parameters(on_meta("unet", num_classes, in_channels=in_channels, padding="same")) == count


def test_batch_norm_takes_the_place_of_the_bias() -> None:
    assert count_parameters(on_meta("unet", 2, batch_norm=True)) == counted(3, 2, batch_norm=True)


def test_the_resnet_network_has_the_size_and_the_cost_of_the_public_one() -> None:
    """segmentation_models.pytorch, `Unet("resnet50", classes=21)`, counted at 512 x 512."""
    network = on_meta("unet_resnet", 21).eval()
    assert count_parameters(network) == 32_524_005
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, 512, 512, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(43.3, abs=0.05)


def test_sizes_inside_are_those_of_figure_1() -> None:
    """572 pixels in, 388 out, and what the copy-and-crop arrows take in between."""
    network, sizes = on_meta("unet", 2, in_channels=1), []
    for module in [*network.contracting, *network.expanding]:
        module.register_forward_hook(lambda _, inputs, output: sizes.append((inputs[0].size(2), output.size(3))))
    features, logits = network.embed(torch.empty(1, 1, 388, 388, device="meta"))
    down, up = sizes[:5], sizes[5:]
    assert down == [(572, 568), (284, 280), (140, 136), (68, 64), (32, 28)]
    assert up == [(56, 52), (104, 100), (200, 196), (392, 388)]
    assert features.shape == (1, 64, 388, 388)
    assert logits.shape == (1, 2, 388, 388)


@examples(40)
@given(st.sampled_from(list(VARIANTS)), st.integers(1, 70), st.integers(1, 70))
def test_logits_have_the_size_of_the_input(variant: str, height: int, width: int) -> None:
    network = tiny(variant).eval()
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
    assert logits.shape == (1, 3, height, width)
    assert features.shape == (1, network.feature_channels, height, width)


@given(st.integers(1, 40), st.integers(0, 120), st.integers(0, 120))
def test_mirroring_is_numpys_reflection(length: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    assert mirror_indices(length, before, after, device=torch.device("cpu")).tolist() == expected.tolist()


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["valid", "same"]))
def test_an_image_is_mirrored_by_no_more_than_the_network_needs(height: int, width: int, padding: str) -> None:
    wide = mirror(torch.arange(height * width).reshape(1, 1, height, width), padding)
    margin, remainder = (92, 12) if padding == "valid" else (0, 0)
    torch.testing.assert_close(
        wide[0, 0, margin : margin + height, margin : margin + width].flatten(), torch.arange(height * width)
    )
    for length, mirrored_length in zip((height, width), wide.shape[2:], strict=True):
        assert mirrored_length % 16 == remainder
        assert 0 <= mirrored_length - length - 2 * margin < 16


def plain_unet(network: nn.Module, x: Tensor) -> Tensor:
    """The paper's figure 1 step by step: 572 in gives 388 out."""
    weights = network.state_dict()

    def convolved(x: Tensor, path: str) -> Tensor:
        for layer in (0, 2):
            x = F.conv2d(x, weights[f"{path}.{layer}.weight"], weights[f"{path}.{layer}.bias"]).relu()
        return x

    copied = []
    for depth in range(5):
        x = convolved(x, f"contracting.{depth}")
        copied.append(x)
        if depth < 4:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    for step in range(4):
        weight, bias = weights[f"upsamplings.{step}.weight"], weights[f"upsamplings.{step}.bias"]
        # Each pixel becomes a 2x2 square: one matrix product per corner.
        square = torch.einsum("nchw,cdij->ndhiwj", x, weight)
        x = square.reshape(len(x), len(bias), 2 * x.size(2), 2 * x.size(3)) + bias[:, None, None]
        other = copied[3 - step]
        cut = [(other.size(axis) - x.size(axis)) // 2 for axis in (2, 3)]
        other = other[:, :, cut[0] : other.size(2) - cut[0], cut[1] : other.size(3) - cut[1]]
        x = convolved(torch.cat([x, other], dim=1), f"expanding.{step}")
    return F.conv2d(x, weights["logits.weight"], weights["logits.bias"])


@pytest.mark.parametrize("size", [(1, 1), (20, 36), (33, 50)])
def test_logits_are_those_of_the_plain_network_on_the_mirrored_image(size: tuple[int, int]) -> None:
    network, x = tiny("valid").eval(), torch.randn(2, 3, *size)
    margins = [(92, 92 + (12 - length - 184) % 16) for length in size]
    wide = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), *margins], mode="reflect"))
    with torch.no_grad():
        expected = plain_unet(network, wide)
        torch.testing.assert_close(network(x), expected[:, :, : size[0], : size[1]], rtol=1e-4, atol=1e-4)


def test_overlapping_tiles_agree_wherever_neither_is_mirrored() -> None:
    """The overlap-tile strategy: 92 pixels and a cell of 16 from its borders, a tile knows nothing of them."""
    network, x = tiny("valid").eval(), torch.randn(1, 3, 272, 240)
    with torch.no_grad():
        whole, tile = network(x), network(x[:, :, 16:256])
    inner = slice(92 + 15, -92 - 15)
    assert whole.std() > 0
    torch.testing.assert_close(tile[:, :, inner, inner], whole[:, :, 16:256][:, :, inner, inner], rtol=1e-4, atol=1e-4)


def test_zero_padding_needs_no_mirror_for_multiples_of_16() -> None:
    x = torch.randn(1, 3, 32, 48)
    assert torch.equal(mirror(x, "same"), x)


def test_dropout_ends_the_contracting_path() -> None:
    network = on_meta("unet", 2)
    found = [[type(one) for one in level].count(nn.Dropout) for level in [*network.contracting, *network.expanding]]
    assert found == [0, 0, 0, 1, 1, 0, 0, 0, 0]


def test_first_weights_keep_the_variance_as_the_paper_asks() -> None:
    torch.manual_seed(0)
    network = zoo.build_network("unet", 2, width_multiplier=1 / 4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 4000:
            taps = 1 if isinstance(module, nn.ConvTranspose2d) else module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / (taps * module.in_channels)) ** 0.5, rel=0.05)


def public_unet(network: nn.Module, x: Tensor) -> Tensor:
    """segmentation_models.pytorch's network step by step, for multiples of 32."""
    encoder = network.encoder
    skipped = [encoder.stem(x)]
    x = encoder.layer1(encoder.maxpool(skipped[0]))
    for layer in (encoder.layer2, encoder.layer3, encoder.layer4):
        skipped.append(x)
        x = layer(x)
    for block, skip in zip(network.decoder, [*skipped[::-1], None], strict=True):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = block(x if skip is None else torch.cat([x, skip], dim=1))
    return network.logits(x)


@pytest.mark.parametrize("variant", ["resnet", "shallow"])
@pytest.mark.parametrize("size", [(32, 64), (33, 31), (1, 1)])
def test_the_resnet_network_is_the_public_one_on_an_image_filled_up_with_zeros(
    variant: str, size: tuple[int, int]
) -> None:
    network, x = tiny(variant).eval(), torch.randn(2, 3, *size)
    filled = torch.zeros(2, 3, *(-(-length // 32) * 32 for length in size))
    filled[:, :, : size[0], : size[1]] = x
    with torch.no_grad():
        expected = public_unet(network, filled)[:, :, : size[0], : size[1]]
        torch.testing.assert_close(network(x), expected)


@variants
def test_every_parameter_learns(variant: str) -> None:
    network = tiny(variant).eval()  # without dropout
    F.cross_entropy(network(torch.randn(2, 3, 64, 48)), torch.randint(0, 3, (2, 64, 48))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@variants
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(variant: str, side: int) -> None:
    assert_trains_on_one(tiny(variant), side)


@variants
@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(variant: str, bands: int) -> None:
    network = tiny(variant, in_channels=bands).eval()
    assert network(torch.zeros(1, bands, 9, 8)).shape == (1, 3, 9, 8)


@variants
def test_half_precision_and_channels_last_agree_with_float32(variant: str) -> None:
    network, x = tiny(variant).eval(), torch.randn(2, 3, 61, 48)
    with torch.no_grad():
        expected = network(x)
        lasting = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    torch.testing.assert_close(lasting, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert (half.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.slow
@variants
def test_the_network_is_one_graph_for_the_compiler(variant: str) -> None:
    network, x = tiny(variant).eval(), torch.randn(1, 3, 33, 50)
    assert_one_graph(network, x)
