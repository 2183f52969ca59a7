from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.crf_rnn import CRFRNN, CRFRNNNetwork, CRFRNNOptions, mean_field
from pipeline.refine.lattice_torch import DenseCRF, upsample_logits
from pipeline.refine.presets import PRESETS, CrfParams
from tests.support.examples import examples

PAPER = PRESETS["crf-rnn"]
SIGMAS = [PAPER.pos_xy, PAPER.bi_xy, PAPER.bi_rgb]


def inputs(*size: int, num_classes: int = 4, bands: int = 3, dtype: torch.dtype = torch.float32) -> tuple:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(90, 150, (*size, bands), generator=rng, dtype=torch.uint8)
    return images, torch.randn(*size, num_classes, generator=rng, dtype=dtype)


def learned(num_classes: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as training might leave them: different for each class, compatibilities not symmetric."""
    rng = torch.Generator().manual_seed(1)
    weights = torch.rand(2, num_classes, generator=rng, dtype=dtype) * 2
    return weights, torch.randn(num_classes, num_classes, generator=rng, dtype=dtype)


def network(in_channels: int = 3, num_classes: int = 4, name: str = "fcn", **options) -> CRFRNNNetwork:
    """As the zoo builds it, but with scores that are not all zero at first."""
    torch.manual_seed(0)
    chosen = CRFRNNOptions.model_validate({"network": name, "width_multiplier": 0.03} | options)
    inner = zoo.build_network(chosen.network, num_classes, in_channels=in_channels, **chosen.inner_options())
    for parameter in inner.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim == 1 else (2 / parameter[0].numel()) ** 0.5)
    return CRFRNNNetwork(num_classes, chosen, inner=inner, in_channels=in_channels)


# ---------------------------------------------------------------- the layer


@pytest.mark.parametrize("preset", ["crf-rnn", "deeplab-v2", "densecrf-demo"])
def test_before_training_the_layer_is_the_dense_crf_of_its_preset(preset: str) -> None:
    params = replace(PRESETS[preset], iterations=7)
    images, scores = inputs(2, 20, 30)
    layer = CRFRNN(4, params).eval()
    crf = DenseCRF().refine(images, scores.permute(0, 3, 1, 2), None, params)
    probs = layer(scores, images.float()).softmax(-1).permute(0, 3, 1, 2)
    torch.testing.assert_close(probs, crf, atol=1e-4, rtol=0)


@examples(5)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.integers(1, 4))
def test_gradients_are_those_of_finite_differences(height: int, width: int, count: int, iterations: int) -> None:
    images, scores = inputs(count, height, width, num_classes=3, dtype=torch.float64)
    leaves = [one.requires_grad_() for one in (scores, *learned(3))]

    def layer(scores: torch.Tensor, weights: torch.Tensor, compatibility: torch.Tensor) -> torch.Tensor:
        return mean_field(scores, images.double(), weights, compatibility, SIGMAS, iterations)

    assert torch.autograd.gradcheck(layer, leaves)


def test_the_layer_is_a_well_behaved_operator() -> None:
    images, scores = inputs(2, 5, 6, num_classes=3, dtype=torch.float64)
    weights, compatibility = (one.requires_grad_() for one in learned(3))
    torch.library.opcheck(mean_field, (scores.requires_grad_(), images.double(), weights, compatibility, SIGMAS, 2))


def test_the_paper_iterates_5_times_in_training_and_10_times_in_use() -> None:
    images, scores = inputs(1, 12, 12)
    layer = CRFRNN(4, PAPER)
    five, ten = (CRFRNN(4, replace(PAPER, iterations=i)).eval()(scores, images.float()) for i in (5, 10))
    torch.testing.assert_close(layer.train()(scores, images.float()), five)
    torch.testing.assert_close(layer.eval()(scores, images.float()), ten)
    assert not torch.allclose(five, ten)


def test_permuting_classes_and_all_weights_permutes_the_scores() -> None:
    images, scores = inputs(1, 9, 9, dtype=torch.float64)
    weights, compatibility = learned(4)
    order = [2, 0, 3, 1]
    plain = mean_field(scores, images.double(), weights, compatibility, SIGMAS, 3)
    moved = mean_field(
        scores[..., order].contiguous(), images.double(), weights[:, order], compatibility[order][:, order], SIGMAS, 3
    )
    torch.testing.assert_close(moved, plain[..., order])


def test_training_works_on_lattices_that_inference_made() -> None:
    images, scores = inputs(1, 11, 13)
    with torch.inference_mode():
        CRFRNN(4, PAPER)(scores, images.float())
    layer = CRFRNN(4, PAPER)
    layer(scores.requires_grad_(), images.float()).square().sum().backward()
    assert scores.grad.abs().sum() > 0
    assert layer.kernel_weights.grad.abs().sum() > 0


def test_training_raises_the_weights_of_kernels_that_help() -> None:
    """Two halves under noise that neighbours average away, and a CRF that hardly begins."""
    torch.manual_seed(0)
    label = (torch.arange(16) >= 8).long().expand(1, 16, 16)
    scores = torch.nn.functional.one_hot(label, 2).float() + 1.5 * torch.randn(1, 16, 16, 2)
    layer = CRFRNN(2, CrfParams(0.1, 10, 20, 0.1, 1))
    optimiser = torch.optim.Adam(layer.parameters(), 0.2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        found = layer(scores, 100.0 * label[..., None].expand(-1, -1, -1, 3))
        losses.append(torch.nn.functional.cross_entropy(found.permute(0, 3, 1, 2), label))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    assert (layer.kernel_weights > 0.1).all()


# ---------------------------------------------------------------- the network


def test_logits_have_the_size_of_the_input_and_are_the_crf_of_the_inner_networks() -> None:
    net = network().eval()
    pixels = torch.randint(90, 93, (2, 37, 45, 3), dtype=torch.uint8)
    pixels[:, 10:, 20:] += 60
    x = ((pixels / 255 - 0.5) / torch.tensor(net.std)).permute(0, 3, 1, 2)
    features, logits = net.embed(x)
    inner_features, inner_logits = net.inner.embed(x)
    full = upsample_logits(inner_logits, 37, 45, stride=net.inner.stride, align_corners=net.inner.align_corners)
    expected = DenseCRF().refine(pixels, full.permute(0, 3, 1, 2).detach(), None, PAPER)
    assert net.stride == 1
    assert features.shape == inner_features.shape
    assert features.shape[1] == net.feature_channels
    assert (logits.softmax(1) - expected).abs().mean() < 2e-3  # the lattice lies elsewhere without the mean
    assert (expected - full.permute(0, 3, 1, 2).softmax(1)).abs().mean() > 0.02
    levels = (pixels - 127.5).float()
    torch.testing.assert_close(logits.permute(0, 2, 3, 1).softmax(-1), net.crf(full, levels).softmax(-1))


@examples(6)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 16]))
def test_any_size_and_number_of_bands_works_in_training(height: int, width: int, bands: int) -> None:
    net = network(bands, std=(0.2,) * bands)
    scores = net.supervised(torch.randn(1, bands, height, width))
    assert scores.keys() == net.loss_weights.keys()
    assert scores["logits"].shape == (1, 4, height, width)
    scores["logits"].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.crf.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.inner.parameters())


@pytest.mark.parametrize("name", ["fcn", "deeplab_v1"])
def test_it_compiles_as_one_graph_and_runs_in_bf16_and_channels_last(name: str) -> None:
    net = network(name=name).eval()
    x = torch.randn(1, 3, 33, 41)
    plain = net(x)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), plain)
    last = net(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last.softmax(1), plain.softmax(1), atol=1e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.float32


def test_the_state_dict_adds_the_two_tensors_of_the_layer_and_survives_a_build_without_memory() -> None:
    net = network()
    own = {name: tensor.shape for name, tensor in net.state_dict().items() if not name.startswith("inner.")}
    assert own == {"crf.kernel_weights": (2, 4), "crf.compatibility": (4, 4)}
    with torch.device("meta"):
        blank = network()
    blank.load_state_dict(net.state_dict(), assign=True)
    x = torch.randn(1, 3, 20, 20)
    torch.testing.assert_close(blank.eval()(x), net.eval()(x))


def test_channels_without_a_deviation_are_refused() -> None:
    with pytest.raises(ConfigError, match="std of 3 channels for 4 channels"):
        network(4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "crf_rnn"}, "network is crf_rnn itself"),
        ({"options": {"num_classes": 3}}, "num_classes"),
        ({"preset": "best"}, "no preset 'best', known: camvid"),
        ({"std": (0.2, 0.0, 0.2)}, "greater than 0"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CRFRNNOptions.model_validate(wrong)
