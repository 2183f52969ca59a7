from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.importing.layouts.fasterseg import FASTERSEG_LAYOUTS
from pipeline.models import zoo
from pipeline.models.catalogue import count_parameters
from tests.support.examples import examples
from tests.support.foreign_networks import FasterSeg
from tests.support.networks import assert_formats_agree, assert_one_graph, assert_trains_on_one

TINY = {"width_multiplier": 1 / 16}
VARIANTS = ("student", "teacher")
UNRUN = {"student": 32_768, "teacher": 73_728}
"""Weights of the authors' channel attention, which their forward pass does not reach: two 1x1 convolutions."""


def tiny(variant: str = "student", num_classes: int = 3, **changes) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_network("fasterseg", num_classes, **(TINY | {"variant": variant} | changes))


@cache
def evaluated(variant: str, align_corners: bool) -> nn.Module:
    return tiny(variant, align_corners=align_corners).eval()


def on_meta(variant: str, **options) -> nn.Module:
    with torch.device("meta"):
        return zoo.build_network("fasterseg", 19, variant=variant, **options)


@pytest.mark.parametrize(
    ("variant", "inference", "training"),
    [("student", 3_454_643, 4_385_689), ("teacher", 22_188_931, 23_524_137)],
)
def test_it_has_the_authors_parameters_but_for_an_attention_that_never_runs(
    variant: str, inference: int, training: int
) -> None:
    """Theirs, with the searched architectures that they published; the paper says 4.4 million for the student."""
    fused = on_meta(variant).fuse[0].out_channels
    assert UNRUN[variant] == 2 * fused**2
    assert count_parameters(on_meta(variant, aux=False)) + UNRUN[variant] == inference
    assert count_parameters(on_meta(variant)) + UNRUN[variant] == training


@pytest.mark.parametrize(("variant", "billions"), [("student", 27.77), ("teacher", 107.8)])
def test_it_computes_as_much_as_the_authors_at_1024_by_2048(variant: str, billions: float) -> None:
    """The paper says 28.2 G for the student."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(variant).eval()(torch.empty(1, 3, 1024, 2048, device="meta"))
    digits = len(str(billions).partition(".")[2])
    assert round(counter.get_total_flops() / 2e9, digits) == billions


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (352, 64), (33, 40)])
def test_all_scores_are_those_of_the_authors_graph_written_down_again(variant: str, size: tuple[int, int]) -> None:
    """At 352 the map at stride 32 has 11 rows, of which the zoomed cells see 5."""
    ours, theirs = tiny(variant).double(), FasterSeg(3, variant, scale=1 / 16).double()
    ours(torch.randn(2, 3, 64, 64, dtype=torch.float64))  # gives the batch norms statistics of their own
    layout = next(layout for layout in FASTERSEG_LAYOUTS if layout.name.endswith(variant))
    state = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        first = name.replace("-1.", "-0.") if name.startswith(tuple(layout.copies)) else name
        prefix = max((rule for rule in layout.rules if first.startswith(rule)), key=len, default=None)
        if prefix:
            tensor.copy_(state[layout.rules[prefix] + first.removeprefix(prefix)])
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        given, wanted = ours.eval().supervised(x), theirs.eval().scores(x)
    assert list(given) == ["logits", "heads16", "heads32"]
    for one, other in zip(given.values(), wanted, strict=True):
        assert one.std() > 0
        torch.testing.assert_close(one, other)


@examples(25)
@given(st.integers(1, 140), st.integers(1, 140), st.sampled_from(VARIANTS), st.booleans())
def test_logits_leave_at_an_eighth_of_any_size_rounded_up(
    height: int, width: int, variant: str, align_corners: bool
) -> None:
    network = evaluated(variant, align_corners)
    with torch.no_grad():
        features, logits = network.embed(torch.zeros(2, 3, height, width))
        scores = network.supervised(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 3, -(-height // 8), -(-width // 8))
    assert features.shape == (2, network.feature_channels, *logits.shape[2:])
    torch.testing.assert_close(network.logits(features), logits)
    torch.testing.assert_close(scores["logits"], logits)
    assert scores["heads16"].shape == (2, 3, -(-height // 16), -(-width // 16))
    assert scores["heads32"].shape == (2, 3, -(-height // 32), -(-width // 32))


def test_auxiliary_scores_weigh_a_fifth_each_and_can_be_left_out() -> None:
    assert tiny().loss_weights == {"logits": 1.0, "heads16": 0.2, "heads32": 0.2}
    without = tiny(aux=False)
    assert without.loss_weights == {"logits": 1.0}
    assert without.supervised(torch.randn(2, 3, 33, 33)).keys() == {"logits"}
    assert tiny().state_dict().keys() - without.state_dict().keys() == {
        name for name in tiny().state_dict() if name.startswith("aux.")
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_branches_begin_with_the_same_cells_which_run_once(variant: str) -> None:
    network, calls = tiny(variant).eval(), []
    for cell in network.shared:
        cell.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(torch.randn(1, 3, 64, 64))
    assert len(calls) == len(network.shared) == {"student": 3, "teacher": 4}[variant]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [1, 33])
def test_a_batch_of_one_trains(variant: str, side: int) -> None:
    assert_trains_on_one(tiny(variant), side)


@pytest.mark.parametrize("bands", [1, 2, 4, 16])
def test_bands_other_than_three_are_accepted(bands: int) -> None:
    assert tiny(in_channels=bands).eval()(torch.zeros(1, bands, 20, 20)).shape == (1, 3, 3, 3)


def test_half_precision_and_channels_last_agree_with_float32() -> None:
    network, x = tiny(width_multiplier=1 / 4).eval(), torch.randn(2, 3, 64, 96)
    assert_formats_agree(network, x, atol=1e-5)


@pytest.mark.slow
def test_the_network_is_one_graph_for_the_compiler() -> None:
    network, x = tiny().eval(), torch.randn(1, 3, 64, 64)
    assert_one_graph(network, x)


@pytest.mark.parametrize("options", [{"output_stride": 8}, {"width_multiplier": 0}, {"variant": "third"}])
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        zoo.build_network("fasterseg", 5, **options)
