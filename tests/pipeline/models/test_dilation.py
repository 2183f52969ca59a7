from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.catalogue import count_parameters
from pipeline.models.dilation import bilinear_kernel, context_dilations, deconvolved, mirrored
from tests.support.examples import examples
from tests.support.networks import assert_formats_agree, assert_one_graph

torch.set_num_threads(1)

TINY = {"width_multiplier": 1 / 16}
CONTEXTS = ("none", "small", "large")
CITYSCAPES = {"levels": 10, "deconvolution": True}


def tiny(num_classes: int = 3, **changes) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("dilation", num_classes, **(TINY | changes))


@cache
def evaluated(context: str, deconvolution: bool) -> nn.Module:
    return tiny(width_multiplier=1 / 64, context=context, deconvolution=deconvolution).eval()


def on_meta(num_classes: int, **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("dilation", num_classes, **options)


def giga_macs(network: nn.Module, height: int, width: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops() / 2e9


PUBLISHED = {
    "Dilation10 Cityscapes": (19, CITYSCAPES, 134_368_179),
    "Dilation8 CamVid": (11, {}, 134_313_443),
    "VOC, small context": (21, {}, 134_374_973),
    "VOC, large context": (21, {"context": "large"}, 141_149_720),
    "VOC, front end": (21, {"context": "none"}, 134_374_973 - 28_392),
    "Dilation7 KITTI": (11, {"levels": 7}, 134_313_443 - (9 * 11 + 1) * 11),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_authors_prototxt_files(name: str) -> None:
    classes, options, count = PUBLISHED[name]
    assert count_parameters(on_meta(classes, **options)) == count


@pytest.mark.parametrize(
    ("classes", "options", "size", "expected"),
    [
        (19, CITYSCAPES, (1024, 1024), 2647),  # 1396 x 1396 with its margins
        (11, {}, (528, 728), 1053),  # 900 x 1100
        (21, {}, (528, 528), 792),  # 900 x 900
    ],
)
def test_macs_are_those_of_the_authors_input_sizes(
    classes: int, options: dict, size: tuple[int, int], expected: float
) -> None:
    assert giga_macs(on_meta(classes, **options), *size) == pytest.approx(expected, abs=0.5)


def test_the_large_context_module_costs_what_its_valid_convolutions_add_up_to() -> None:
    """From 66 scores per side: padded by 33, then 2, 2, 4, 8, 16, 32 and 2 rows fewer."""
    sides, channels = (130, 128, 124, 116, 100, 68, 66), (21, 42, 42, 84, 168, 336, 672, 672)
    macs = sum(9 * side**2 * channels[i] * channels[i + 1] for i, side in enumerate(sides)) + 66**2 * 672 * 21
    front = giga_macs(on_meta(21, context="none"), 528, 528)
    assert giga_macs(on_meta(21, context="large"), 528, 528) == pytest.approx(front + macs / 1e9)


def test_levels_give_the_dilations_of_the_published_networks() -> None:
    assert context_dilations(7) == (1, 1, 2, 4, 8)
    assert context_dilations(8) == (1, 1, 2, 4, 8, 16)
    assert context_dilations(10) == (1, 1, 2, 4, 8, 16, 32, 64)


def test_the_large_module_has_the_channels_of_table_1() -> None:
    convolutions = [one for one in on_meta(21, context="large").context.modules() if isinstance(one, nn.Conv2d)]
    assert [one.out_channels for one in convolutions] == [42, 42, 84, 168, 336, 672, 672, 21]
    assert [one.padding for one in convolutions] == [(33, 33), *[(0, 0)] * 7]


@examples(25)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(CONTEXTS), st.booleans())
def test_any_size_gives_a_score_for_every_8th_pixel_or_for_each(
    height: int, width: int, context: str, deconvolution: bool
) -> None:
    network = evaluated(context, deconvolution)
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(1, 3, height, width))
    cells = -(-height // 8), -(-width // 8)
    assert features.shape == (1, network.feature_channels, *cells)
    assert logits.shape == (1, 3, *((height, width) if deconvolution else cells))
    assert (network.stride, network.align_corners) == ((1, False) if deconvolution else (8, True))


@pytest.mark.parametrize("size", [(400, 264), (187, 186), (40, 7), (2, 1)])
def test_margins_are_mirrored_as_numpy_does(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size)
    margins = [(186, 186 + -length % 8) for length in size]
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *margins], mode="reflect")
    np.testing.assert_array_equal(mirrored(x).numpy(), expected)


class Layers:
    """The authors' network.py written down again, in test mode, on the network's tensors."""

    def __init__(self, network: nn.Module) -> None:
        self.state = network.state_dict()

    def conv(self, x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def front(self, data: Tensor) -> Tensor:
        x = torch.from_numpy(np.pad(data.numpy(), ((0, 0), (0, 0), (186, 186), (186, 186)), mode="reflect"))
        for stage, (count, dilation) in enumerate(((2, 1), (2, 1), (3, 1), (3, 1), (3, 2))):
            for index in range(count):
                x = self.conv(x, f"backbone.stages.{stage}.{2 * index}", dilation=dilation).relu()
            if stage < 3:
                x = F.max_pool2d(x, 2, 2)
        fc6 = self.conv(x, "classifier.0", dilation=4).relu()
        return self.conv(self.conv(fc6, "classifier.3").relu(), "front")

    def small(self, x: Tensor, dilations: tuple[int, ...]) -> Tensor:
        names = [f"context.dilated.{2 * index}" for index in range(len(dilations))]
        for name, dilation in zip([*names, "context.last.0"], [*dilations, 1], strict=True):
            x = self.conv(x, name, dilation=dilation, padding=dilation).relu()
        return self.conv(x, "context.scores")

    def large(self, x: Tensor, dilations: tuple[int, ...]) -> Tensor:
        x = F.pad(x, [33] * 4)
        names = [f"context.dilated.{2 * index}" for index in range(len(dilations))]
        for name, dilation in zip([*names, "context.last.0"], [*dilations, 1], strict=True):
            x = self.conv(x, name, dilation=dilation).relu()
        return self.conv(x, "context.scores")


def shaken(network: nn.Module) -> nn.Module:
    """The network in test mode with weights that are far from their initial ones."""
    with torch.no_grad():
        for parameter in network.parameters():
            spread = (2 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.normal_(0, spread)
    return network.eval()


@pytest.mark.parametrize(("context", "levels"), [("none", 8), ("small", 7), ("small", 8), ("small", 10), ("large", 8)])
def test_its_scores_are_those_of_the_authors_graph_written_down_again(context: str, levels: int) -> None:
    network = shaken(tiny(context=context, levels=levels).double())
    x, again = torch.randn(1, 3, 72, 40, dtype=torch.float64), Layers(network)
    dilations = {7: (1, 1, 2, 4, 8), 8: (1, 1, 2, 4, 8, 16), 10: (1, 1, 2, 4, 8, 16, 32, 64)}[levels]
    with torch.no_grad():
        expected = again.front(x)
        expected = expected if context == "none" else getattr(again, context)(expected, dilations)
        found = network(x)
    assert found.shape == (1, 3, 9, 5)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected)


def test_a_score_sees_the_380_pixels_from_186_before_its_own() -> None:
    network, x = shaken(tiny(context="none")), torch.randn(1, 3, 400, 400)
    with torch.no_grad():
        score = network(x)[:, :, 24, 25]
        alone = network.front(network._front_features(x[:, :, 192 - 186 : 192 + 194, 200 - 186 : 200 + 194]))
    torch.testing.assert_close(alone[:, :, 0, 0], score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [7, 8, 10])
def test_the_small_module_begins_as_the_identity_of_positive_scores(levels: int) -> None:
    context, x = tiny(5, levels=levels).context, torch.randn(2, 5, 20, 17)
    with torch.no_grad():
        torch.testing.assert_close(context.scores(context(x)), x.relu(), rtol=0, atol=0)


def test_the_large_module_begins_as_the_identity_but_for_noise_that_tells_channels_apart() -> None:
    context, x = tiny(5, context="large").context, torch.rand(2, 5, 20, 17)
    with torch.no_grad():
        error = context.scores(context(x)) - x
        weight = context.dilated[4].weight[:, :, 1, 1]
    assert error.std() < 0.1
    assert error.abs().max() < 0.5
    assert (weight[0, :2] - weight[1, :2]).abs().min() > 0


def test_a_front_end_alone_begins_the_whole_network() -> None:
    """The first phase of the recipe has the tensors of the second under the same names."""
    front, whole = (on_meta(21, context=context).state_dict() for context in ("none", "small"))
    assert all(whole[name].shape == one.shape for name, one in front.items())
    assert {name.split(".")[0] for name in whole.keys() - front.keys()} == {"context"}


def test_deconvolution_is_bilinear_with_zeros_around_the_map() -> None:
    """Caffe's filler: f = 8, c = (2 f - 1 - f % 2) / (2 f); (1 - |x / f - c|) (1 - |y / f - c|)."""
    centre = (2 * 8 - 1) / (2 * 8)
    tent = 1 - (torch.arange(16) / 8 - centre).abs()
    torch.testing.assert_close(bilinear_kernel(8), torch.outer(tent, tent), rtol=0, atol=0)
    scores = torch.randn(2, 4, 5, 6)
    found = deconvolved(scores)
    assert found.shape == (2, 4, 40, 48)
    expected = F.interpolate(F.pad(scores, [1] * 4), scale_factor=8, mode="bilinear")[:, :, 8:-8, 8:-8]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_parameter_learns(context: str) -> None:
    network = shaken(tiny(context=context))
    F.cross_entropy(network(torch.randn(2, 3, 48, 32)), torch.randint(0, 3, (2, 6, 4))).backward()
    idle = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().any()]
    assert idle == []


@pytest.mark.parametrize("side", [1, 33])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_batch_of_one_trains(side: int, context: str) -> None:
    network = tiny(context=context)
    network(torch.randn(1, 3, side, side)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_any_number_of_bands_is_accepted(bands: int) -> None:
    assert tiny(in_channels=bands).eval()(torch.zeros(1, bands, 9, 8)).shape == (1, 3, 2, 1)


def test_half_precision_and_channels_last_agree_with_float32() -> None:
    network, x = shaken(tiny(deconvolution=True)), torch.randn(2, 3, 64, 48)
    assert_formats_agree(network, x, atol=1e-5)


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny(deconvolution=True).eval(), torch.randn(1, 3, 33, 50)
    assert_one_graph(network, x)


@pytest.mark.parametrize("options", [{"output_stride": 16}, {"levels": 4}, {"levels": 11}, {"context": "huge"}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("dilation", 5, **options)
