import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.models import zoo
from pipeline.models.backbones.xception import BATCH_NORM_EPS, Xception
from pipeline.models.catalogue import count_macs, count_parameters
from tests.support.examples import examples

LAYOUTS = ("tensorflow", "timm", "jfzhang")
CLASSIFIER = 2048 * 1000 + 1000
"""What timm's networks have beyond the features: a layer for the classes of ImageNet."""
STRIDES = {16: [2, 2, 2, *[1] * 8, 1, 1], 8: [2, 2, 1, *[1] * 8, 1, 1]}
RATES = {16: [1, 1, 1, *[1] * 8, 1, 2], 8: [1, 1, 1, *[2] * 8, 2, 4]}
"""Of the units of Xception-41, written out from stack_blocks_dense of the authors' code."""


def on_meta(depth: int, **options) -> Xception:
    with torch.device("meta"):
        return Xception(depth, in_channels=3, output_stride=16, **options)


def tiny(depth: int, *, output_stride: int = 16, **options) -> Xception:
    """Few channels, float64, batch norm that has seen noise: without that, depthwise filters leave next to nothing."""
    torch.manual_seed(0)
    network = Xception(depth, in_channels=3, output_stride=output_stride, width=1 / 32, **options).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    return network.eval()


def deeplab(**options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("deeplab_v3plus", 21, backbone="xception65", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_xception65_has_exactly_the_parameters_of_the_port_whichever_it_is(layout: str) -> None:
    """github.com/jfzhang95/pytorch-deeplab-xception, counted without its decoder."""
    assert count_parameters(on_meta(65, layout=layout)) == 37_867_312


@pytest.mark.parametrize(("depth", "millions"), [(41, 27.0), (65, 39.9), (71, 42.3)])
def test_each_depth_has_the_parameters_that_timm_states(depth: int, millions: float) -> None:
    """Model cards of timm/xception41.tf_in1k, xception65.tf_in1k and xception71.tf_in1k."""
    assert (count_parameters(on_meta(depth)) + CLASSIFIER) / 1e6 == pytest.approx(millions, abs=0.05)


def test_deeplab_around_it_has_exactly_the_parameters_of_the_public_ports() -> None:
    smp = {"separable": "plain", "aspp_conv": True, "decoder_convs": 1, "rates": (12, 24, 36), "align_corners": True}
    assert count_parameters(deeplab(xception_layout="timm", **smp)) == 41_042_005
    assert count_macs(deeplab(xception_layout="timm", **smp), 512) / 1e9 == pytest.approx(50.2, abs=0.05)
    assert count_parameters(deeplab(xception_layout="jfzhang", align_corners=True)) == 54_705_317


def test_deeplab_around_it_costs_what_its_authors_state() -> None:
    """54.17 billion in tensorflow/models, research/deeplab/g3doc/model_zoo.md, which counts more than convolutions."""
    assert count_macs(deeplab(separable=True), 513) / 1e9 == pytest.approx(54.17, rel=0.005)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("depth", [41, 65, 71])
def test_features_at_output_stride_16_are_every_second_one_at_8(depth: int, layout: str) -> None:
    sparse = tiny(depth, layout=layout)
    dense = Xception(depth, in_channels=3, output_stride=8, layout=layout, width=1 / 32).double().eval()
    dense.load_state_dict(sparse.state_dict())
    x = torch.rand(1, 3, 75, 102, dtype=torch.float64)
    with torch.no_grad():
        (low_16, high_16), (low_8, high_8) = sparse(x), dense(x)
    assert low_16.shape[1:] == (sparse.low_channels, 19, 26)
    assert high_16.shape[1:] == (sparse.high_channels, 5, 7)
    torch.testing.assert_close(low_16, low_8)
    assert high_16.std() > 0.01
    torch.testing.assert_close(high_16, high_8[:, :, ::2, ::2])


def normed(x: Tensor, state: dict[str, Tensor], name: str, eps: float) -> Tensor:
    return F.batch_norm(
        x, *(state[f"{name}.{one}"] for one in ("running_mean", "running_var", "weight", "bias")), eps=eps
    )


def separable(x: Tensor, state: dict[str, Tensor], name: str, *, stride: int, rate: int, eps: float) -> list[Tensor]:
    """Both halves, each behind its batch norm."""
    weight = state[f"{name}.depthwise.weight"]
    x = F.pad(x, [rate] * 4)
    halfway = normed(F.conv2d(x, weight, None, stride, 0, rate, len(weight)), state, f"{name}.depthwise_bn", eps)
    return [halfway, normed(F.conv2d(halfway, state[f"{name}.pointwise.weight"]), state, f"{name}.pointwise_bn", eps)]


def rewritten(state: dict[str, Tensor], x: Tensor, *, layout: str, output_stride: int) -> tuple[Tensor, Tensor]:
    """Xception-41 once more, from the sources: no modules, ReLUs in place where the port has them in place."""
    eps = 1e-5 if layout == "jfzhang" else 1e-3
    x = normed(F.conv2d(x, state["stem.0.weight"], None, 2, 1), state, "stem.1", eps).relu()
    x = normed(F.conv2d(x, state["stem.3.weight"], None, 1, 1), state, "stem.4", eps).relu()
    low = None
    for number, (stride, rate) in enumerate(zip(STRIDES[output_stride], RATES[output_stride], strict=True)):
        entered, name = x, f"units.{number}"
        last = number == 12
        if layout == "jfzhang":
            entered.relu_()
            low = entered.clone() if number == 1 else low
        for part in range(3):
            unit = {"stride": stride if part == 2 else 1, "rate": rate, "eps": eps}
            if last and layout != "jfzhang":
                weight = state[f"{name}.convs.{part}.pointwise.weight"]
                halfway = separable(x, state, f"{name}.convs.{part}", **unit)[0].relu()
                x = normed(F.conv2d(halfway, weight), state, f"{name}.convs.{part}.pointwise_bn", eps).relu()
            else:
                x = separable(x.relu(), state, f"{name}.convs.{part}", **unit)[1]
            if number == 1 and part == 1 and layout != "jfzhang":
                low = x.relu() if layout == "timm" else x
        if f"{name}.shortcut.0.weight" in state:
            x = x + normed(
                F.conv2d(entered, state[f"{name}.shortcut.0.weight"], None, stride), state, f"{name}.shortcut.1", eps
            )
        elif not last:
            x = x + entered
    return low, x.relu()


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_computes_what_its_source_does(layout: str, output_stride: int) -> None:
    network = tiny(41, layout=layout, output_stride=output_stride)
    x = torch.randn(1, 3, 66, 49, dtype=torch.float64)
    with torch.no_grad():
        expected = rewritten(network.state_dict(), x, layout=layout, output_stride=output_stride)
        for one, other in zip(network(x), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_layouts_differ_only_in_what_they_compute() -> None:
    networks = {layout: tiny(65, layout=layout) for layout in LAYOUTS}
    names = {layout: list(network.state_dict()) for layout, network in networks.items()}
    assert names["tensorflow"] == names["timm"] == names["jfzhang"]
    first, *others = networks.values()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for other in others:
            other.load_state_dict(first.state_dict())
        lows, highs = zip(*(network(x) for network in networks.values()), strict=True)
    assert lows[0].min() < 0
    assert torch.equal(lows[0].relu(), lows[1])
    assert torch.equal(highs[0], highs[1])
    assert not torch.allclose(highs[0], highs[2])
    assert [one.size(1) for one in lows] == [8, 8, 4]
    assert [network.low_channels for network in networks.values()] == [8, 8, 4]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_divides_as_in_the_source(layout: str) -> None:
    eps = {module.eps for module in on_meta(41, layout=layout).modules() if isinstance(module, nn.BatchNorm2d)}
    assert eps == {BATCH_NORM_EPS[layout]}


SMALLEST = {depth: tiny(depth).float() for depth in (41, 71)}


@examples(20)
@given(st.sampled_from([41, 71]), st.integers(1, 70), st.integers(1, 70))
def test_features_leave_at_strides_4_and_16_of_any_size_rounded_up(depth: int, height: int, width: int) -> None:
    with torch.no_grad():
        low, high = SMALLEST[depth](torch.zeros(1, 3, height, width))
    assert low.shape[2:] == (-(-height // 4), -(-width // 4))
    assert high.shape[2:] == (-(-height // 16), -(-width // 16))
