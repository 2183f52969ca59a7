import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RefineConfig
from pipeline.errors import ConfigError
from pipeline.refine.presets import PRESETS, CrfParams, DomainTransformParams, crf_params, domain_transform_params

# Written down from the sources a second time, not from the module: w1, theta_alpha, theta_beta, w2, theta_gamma, steps.
PUBLISHED = {
    # DeepLab v1 (arXiv 1412.7062), sec. 5, "Training": w2 = 3, theta_gamma = 3 and 10 mean field iterations; the other
    # three as the authors' project page lists them for each model.
    "deeplab-v1": (5, 50, 10, 3, 3, 10),
    "deeplab-v1-msc": (3, 95, 3, 3, 3, 10),
    "deeplab-v1-coco": (5, 67, 3, 3, 3, 10),
    "deeplab-v1-largefov": (4, 121, 5, 3, 3, 10),
    "deeplab-v1-msc-largefov": (4, 83, 5, 3, 3, 10),
    # DeepLab v2 (arXiv 1606.00915), sec. 4.1: 10 iterations; values of github.com/kazuto1011/deeplab-pytorch,
    # configs/voc12.yaml and cocostuff164k.yaml, section CRF.
    "deeplab-v2": (4, 67, 3, 3, 1, 10),
    # CRF-RNN (Zheng 2015, arXiv 1502.03240): 10 iterations in use; values of github.com/torrvision/crfasrnn, prototxt.
    "crf-rnn": (5, 160, 3, 3, 3, 10),
    "camvid": (5, 50, 3, 3, 3, 10),  # a third party's script
    # Krähenbühl and Koltun 2011 in the example of github.com/lucasb-eyer/pydensecrf, README.
    "densecrf-demo": (10, 80, 13, 3, 3, 5),
}
NAMES = ("bi_w", "bi_xy", "bi_rgb", "pos_w", "pos_xy", "iterations")


def test_presets_are_the_published_parameters() -> None:
    assert {name: crf_params(RefineConfig(preset=name)) for name in PRESETS} == {
        name: CrfParams(*values) for name, values in PUBLISHED.items()
    }


def test_the_preset_of_a_run_that_names_none_is_that_of_deeplab_v2() -> None:
    assert crf_params(RefineConfig()) == CrfParams(*PUBLISHED["deeplab-v2"])


def test_the_domain_transform_of_a_run_that_sets_nothing_is_that_of_deeplab_dt() -> None:
    """Chen 2016, arXiv 1511.03328: sigma_s 100, sigma_r 1 and K = 3 iterations."""
    assert domain_transform_params(RefineConfig()) == DomainTransformParams() == DomainTransformParams(100, 1, 3)


@given(st.sampled_from(sorted(PUBLISHED)), st.sets(st.sampled_from(NAMES)))
def test_a_setting_replaces_its_own_parameter_and_no_other(preset: str, changed: set[str]) -> None:
    settings = {name: 90 + NAMES.index(name) for name in changed}
    assert crf_params(RefineConfig(preset=preset, **settings)) == CrfParams(
        *(settings.get(name, value) for name, value in zip(NAMES, PUBLISHED[preset], strict=True))
    )


def test_a_weight_of_0_is_a_setting() -> None:
    params = crf_params(RefineConfig(bi_w=0, pos_w=0))
    assert (params.bi_w, params.pos_w) == (0, 0)


@given(st.floats(1, 500), st.floats(0.01, 10), st.none() | st.integers(1, 20))
def test_settings_of_the_domain_transform_reach_it(sigma_s: float, sigma_r: float, iterations: int | None) -> None:
    cfg = RefineConfig(sigma_s=sigma_s, sigma_r=sigma_r, iterations=iterations)
    assert domain_transform_params(cfg) == DomainTransformParams(sigma_s, sigma_r, iterations or 3)


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no CRF preset 'best'") as refused:
        crf_params(RefineConfig(preset="best"))
    assert refused.value.hint == f"--refine.preset is one of {', '.join(sorted(PUBLISHED))}"


@pytest.mark.parametrize("wrong", [{"sigma_s": 0.0}, {"sigma_r": 0.0}, {"sigma_s": -1.0}, {"iterations": 0}])
def test_a_domain_transform_without_a_sigma_or_a_pass_is_refused_with_its_values(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"at least 1, got .*{name}={value}"):
        DomainTransformParams(**wrong)


def test_a_domain_transform_may_have_one_pass_and_any_sigma_above_zero() -> None:
    assert DomainTransformParams(sigma_s=1e-3, sigma_r=1e-3, iterations=1).iterations == 1
