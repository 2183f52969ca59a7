"""Presets: published parameters of the dense CRF by paper or project, and parameters of the domain transform.

Names follow Krähenbühl and Koltun 2011, eq. 3: an appearance kernel with weight w1 (`bi_w`), spatial sigma theta_alpha
(`bi_xy`, pixels) and colour sigma theta_beta (`bi_rgb`, 8-bit levels), and a smoothness kernel with weight w2 (`pos_w`)
and sigma theta_gamma (`pos_xy`, pixels).
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import RefineConfig  # engines take parameters alone, without the packages of settings


@dataclass(frozen=True, slots=True)
class CrfParams:
    """Parameters of a dense CRF with a Potts model."""

    bi_w: float
    """Weight of the appearance kernel."""
    bi_xy: float
    """Spatial sigma of the appearance kernel, pixels."""
    bi_rgb: float
    """Colour sigma of the appearance kernel, 8-bit levels."""
    pos_w: float
    """Weight of the smoothness kernel."""
    pos_xy: float
    """Sigma of the smoothness kernel, pixels."""
    iterations: int = 10
    """Mean field iterations."""


@dataclass(frozen=True, slots=True)
class DomainTransformParams:
    """Parameters of the domain transform; the defaults are DeepLab-DT's (Chen et al. 2016, arXiv 1511.03328)."""

    sigma_s: float = 100.0
    """Spatial standard deviation in areas without edges, pixels."""
    sigma_r: float = 1.0
    """Range standard deviation: larger smooths across stronger edges."""
    iterations: int = 3
    """Passes over the rows and the columns."""

    def __post_init__(self) -> None:
        if not (self.sigma_s > 0 and self.sigma_r > 0 and self.iterations >= 1):
            raise ValueError(f"sigmas must be above 0 and iterations at least 1, got {self}")


PRESETS: dict[str, CrfParams] = {
    # Chen et al. 2015 (DeepLab v1), cross-validated on VOC 2012 val: values from the authors' project page.
    "deeplab-v1": CrfParams(5, 50, 10, 3, 3),
    "deeplab-v1-msc": CrfParams(3, 95, 3, 3, 3),
    "deeplab-v1-coco": CrfParams(5, 67, 3, 3, 3),
    "deeplab-v1-largefov": CrfParams(4, 121, 5, 3, 3),
    "deeplab-v1-msc-largefov": CrfParams(4, 83, 5, 3, 3),
    # Chen et al. 2017 (DeepLab v2), ResNet-101 on VOC and COCO-Stuff:
    # https://github.com/kazuto1011/deeplab-pytorch configs
    "deeplab-v2": CrfParams(4, 67, 3, 3, 1),
    # Zheng et al. 2015 (CRF-RNN), initial values of its training: https://github.com/torrvision/crfasrnn prototxt
    "crf-rnn": CrfParams(5, 160, 3, 3, 3),
    # Third-party script for CamVid with MSc-LargeFOV.
    "camvid": CrfParams(5, 50, 3, 3, 3),
    # Krähenbühl's demo, as in pydensecrf's README.
    "densecrf-demo": CrfParams(10, 80, 13, 3, 3, 5),
}


def crf_params(cfg: "RefineConfig") -> CrfParams:
    """Parameters of the config's preset, overridden by the parameters that the config sets itself.

    Raises:
        ConfigError: the preset is unknown.
    """
    if cfg.preset not in PRESETS:
        hint = f"--refine.preset is one of {', '.join(sorted(PRESETS))}"
        raise ConfigError(f"no CRF preset {cfg.preset!r}", hint=hint)
    names = ("bi_w", "bi_xy", "bi_rgb", "pos_w", "pos_xy", "iterations")
    given = {name: value for name in names if (value := getattr(cfg, name)) is not None}
    return replace(PRESETS[cfg.preset], **given)


def domain_transform_params(cfg: "RefineConfig") -> DomainTransformParams:
    """Parameters of the domain transform by the config; 3 iterations unless the config sets a number."""
    params = DomainTransformParams(cfg.sigma_s, cfg.sigma_r)
    return params if cfg.iterations is None else replace(params, iterations=cfg.iterations)
