"""Does an imported network compute what its source computes? Asked of the source's own package, where it is installed.

In: the file's tensors and the network made of them. Out: the largest difference of their outputs on a seeded random
image of the size the source is used at, in float32 on the CPU. torchvision, timm and segmentation_models_pytorch are
imported only here, only when asked, and nothing of the project depends on them.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.errors import ConfigError
from pipeline.importing.convert import Import
from pipeline.importing.reader import Source
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.network import Network

TOLERANCE = 1e-3
"""Largest difference, as a part of the source's largest value, that rounding in another order may leave."""

SEED = 0

Output = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Found:
    """What a comparison found, in words."""

    verified: list[str] = field(default_factory=list)
    not_verified: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Judge:
    """How the source's own network is built and asked."""

    package: str
    build: Callable[[Any, Import], nn.Module]
    """From the package and the import: a network that takes the file's tensors as they are."""
    size: int
    """Side of the square image, pixels: the source's own."""
    theirs: Output
    ours: Output
    compared: str


def compare(source: Source, made: Import, network: Network) -> Found:
    """Run the source's network and ours on the same image.

    Raises:
        ConfigError: when they differ by more than rounding does.
    """
    judge = JUDGES.get(made.layout.name)
    if judge is None:
        return Found(not_verified=[f"that outputs are the source's: no package has {made.layout.title}"])
    if reason := _unlike(judge, made):
        return Found(not_verified=[f"that outputs are the source's: {reason}"])
    try:
        package = importlib.import_module(judge.package)
    except ImportError as error:
        return Found(not_verified=[f"that outputs are the source's: {judge.package} cannot be imported ({error})"])
    judged = judge.build(package, made).eval()
    judged.load_state_dict(_theirs(source.tensors, judged.state_dict()))
    image = torch.randn(1, 3, judge.size, judge.size, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        wanted, given = judge.theirs(judged, image), judge.ours(network, image)
    largest, difference = wanted.abs().max().item(), (wanted - given).abs().max().item()
    said = f"{judge.compared} of {judge.package} on a random image of {judge.size} x {judge.size}: largest difference "
    said += f"{difference:.2e}, largest value {largest:.2e}"
    if not difference <= TOLERANCE * largest:
        raise ConfigError(f"outputs are not the source's: {said}")
    return Found(verified=[said])


def _unlike(judge: Judge, made: Import) -> str:
    """Why a package has no such network; empty when it has."""
    if "width_multiplier" in made.card.options or made.card.in_channels != 3:
        return f"{judge.package} has no network of this width"
    if made.layout.is_backbone and made.card.output_stride < 16:
        return f"{judge.package} has no backbone of output stride {made.card.output_stride}"
    return ""


def _theirs(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, with counters of batch norm where an old file has none."""
    counters = {name: one for name, one in wanted.items() if name.endswith(".num_batches_tracked")}
    return counters | dict(tensors)


def _full_size(network: Network, image: Tensor) -> Tensor:
    """Our logits, resized as the source resizes its own."""
    logits = network(image)
    return interpolate(logits, image.shape[2:], mode="bilinear", align_corners=network.align_corners)


def _torchvision(kind: str) -> Callable[[Any, Import], nn.Module]:
    def build(package: Any, made: Import) -> nn.Module:
        make = getattr(package, f"{kind}_{made.card.options['backbone']}")
        aux = bool(made.card.options.get("aux"))
        network: nn.Module = make(weights=None, weights_backbone=None, num_classes=len(made.card.classes), aux_loss=aux)
        return network

    return build


def _smp(kind: str, **more: Any) -> Callable[[Any, Import], nn.Module]:
    def build(package: Any, made: Import) -> nn.Module:
        options = dict(more)
        if kind.startswith("DeepLab"):
            options["encoder_output_stride"] = made.card.output_stride
        network: nn.Module = getattr(package, kind)(
            made.card.options["backbone"], encoder_weights=None, classes=len(made.card.classes), **options
        )
        return network

    return build


def _backbone(name: str | None = None) -> Callable[[Any, Import], nn.Module]:
    def build(package: Any, made: Import) -> nn.Module:
        network: nn.Module = getattr(package, name or str(made.card.options["backbone"]))(weights=None)
        return network

    return build


def _three_stages(network: Any, x: Tensor) -> Tensor:
    """A ResNet's third stage, the last that no multi-grid changes; torchvision's or ours."""
    if isinstance(network, ResNet):
        x = network.maxpool(network.stem(x))
    else:
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    stages: Tensor = network.layer3(network.layer2(network.layer1(x)))
    return stages


def _ours_three_stages(network: Any, x: Tensor) -> Tensor:
    return _three_stages(network.encoder if hasattr(network, "encoder") else network.backbone, x)


JUDGES: Mapping[str, Judge] = {
    "torchvision-deeplab-v3": Judge(
        "torchvision.models.segmentation",
        _torchvision("deeplabv3"),
        520,
        lambda network, x: network(x)["out"],
        _full_size,
        "scores",
    ),
    "torchvision-fcn": Judge(
        "torchvision.models.segmentation",
        _torchvision("fcn"),
        520,
        lambda network, x: network(x)["out"],
        _full_size,
        "scores",
    ),
    **{
        name: Judge("segmentation_models_pytorch", _smp(kind), 512, lambda network, x: network(x), _full_size, "scores")
        for name, kind in {
            "smp-deeplab-v3": "DeepLabV3",
            "smp-deeplab-v3plus": "DeepLabV3Plus",
            "smp-unet": "Unet",
            "smp-pspnet": "PSPNet",
        }.items()
    },
    "resnet": Judge(
        "torchvision.models", _backbone(), 224, _three_stages, _ours_three_stages, "features of the third stage"
    ),
}
"""By layout. Files without a package of their own are compared with rewritten networks in the tests instead."""
