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
from torch.nn.functional import interpolate, max_pool2d

from pipeline.errors import ConfigError
from pipeline.importing.convert import Import, is_counter, recognise
from pipeline.importing.reader import Source
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.backbones.xception import Xception
from pipeline.models.network import Network

TOLERANCE = 1e-4
"""Largest difference, as a part of the source's largest value, that rounding in another order may leave."""

SEED = 0

Theirs = Callable[[Any, Tensor], Tensor]
Ours = Callable[[Network, Import, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class OutputComparison:
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
    theirs: Theirs
    ours: Ours
    compared: str


def compare_outputs(source: Source, made: Import, network: Network) -> OutputComparison:
    """Run the source's network and ours on the same image.

    Raises:
        ConfigError: when they differ by more than rounding does.
    """
    judge = JUDGES.get(made.layout.name)
    if judge is None:
        return OutputComparison(not_verified=[f"that outputs are the source's: no package has {made.layout.title}"])
    if reason := _unlike(judge, made):
        return OutputComparison(not_verified=[f"that outputs are the source's: {reason}"])
    try:
        package = importlib.import_module(judge.package)
    except ImportError as error:
        return OutputComparison(
            not_verified=[f"that outputs are the source's: {judge.package} cannot be imported ({error})"]
        )
    judged = judge.build(package, made).eval()
    judged.load_state_dict(_theirs(source, made, judged))
    image = torch.randn(1, 3, judge.size, judge.size, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        wanted, given = judge.theirs(judged, image), judge.ours(network, made, image)
    largest, difference = wanted.abs().max().item(), (wanted - given).abs().max().item()
    said = f"{judge.compared} of {judge.package} on a random image of {judge.size} x {judge.size}: largest difference "
    said += f"{difference:.2e}, largest value {largest:.2e}"
    if not difference <= TOLERANCE * largest:
        raise ConfigError(f"outputs are not the source's: {said}")
    return OutputComparison(verified=[said])


def _unlike(judge: Judge, made: Import) -> str:
    """Why a package has no such network; empty when it has."""
    if "width_multiplier" in made.card.options or made.card.in_channels != 3:
        return f"{judge.package} has no network of this width"
    return ""


def _theirs(source: Source, made: Import, judged: nn.Module) -> dict[str, Tensor]:
    """The file's tensors as the package of today calls them, and the package's own where the file needs none.

    Those are counters of batch norm, absent from old files, and the classifier of a backbone, of any number of classes.
    """
    _, tensors = recognise(source.tensors, made.layout.name)
    idle = {name for name in judged.state_dict() if is_counter(name)}
    if made.layout.is_backbone:
        tensors = {name: tensor for name, tensor in tensors.items() if name in made.used}
        idle |= {name for name in judged.state_dict() if name.startswith(tuple(made.layout.unused))}
    return {name: one for name, one in judged.state_dict().items() if name in idle} | tensors


def _full_size(network: Network, made: Import, image: Tensor) -> Tensor:
    """Our logits, resized as the source resizes its own."""
    del made
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


def _torchvision_backbone(name: str) -> Callable[[Any, Import], nn.Module]:
    def build(package: Any, made: Import) -> nn.Module:
        network: nn.Module = getattr(package, name or str(made.card.options["backbone"]))(weights=None)
        return network

    return build


def _timm(package: Any, made: Import) -> nn.Module:
    network: nn.Module = package.create_model(made.card.options["backbone"])
    return network


def _extractor(network: Any) -> Any:
    return network.encoder if hasattr(network, "encoder") else network.backbone


def _strided(backbone: nn.Module, network: Network, x: Tensor) -> Tensor:
    """Features of a backbone that strides down to 32, as it was trained, with the network's weights."""
    backbone.load_state_dict(_extractor(network).state_dict())
    features: Tensor = backbone.eval()(x)[1]
    return features


def _resnet(network: Network, made: Import, x: Tensor) -> Tensor:
    depth = int(str(made.card.options["backbone"]).removeprefix("resnet"))
    return _strided(ResNet(depth, in_channels=3, output_stride=32), network, x)


def _mobilenet(network: Network, made: Import, x: Tensor) -> Tensor:
    del made
    return _strided(MobileNetV2(in_channels=3, output_stride=32, width=1.0), network, x)


def _xception(network: Network, made: Import, x: Tensor) -> Tensor:
    depth = int(str(made.card.options["backbone"]).removeprefix("xception"))
    return _strided(Xception(depth, in_channels=3, output_stride=32, layout="timm"), network, x)


def _vgg(network: Network, made: Import, x: Tensor) -> Tensor:
    """Up to the fourth stage: some networks have holes in the fifth."""
    del made
    for index, stage in enumerate(_extractor(network).stages[:4]):
        x = stage(x if index == 0 else max_pool2d(x, 2))
    return x


def _torchvision_resnet(network: Any, x: Tensor) -> Tensor:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    features: Tensor = network.layer4(network.layer3(network.layer2(network.layer1(x))))
    return features


def _torchvision_vgg(network: Any, x: Tensor) -> Tensor:
    poolings = [index for index, layer in enumerate(network.features) if isinstance(layer, nn.MaxPool2d)]
    features: Tensor = network.features[: poolings[3]](x)
    return features


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
    "resnet": Judge("torchvision.models", _torchvision_backbone(""), 224, _torchvision_resnet, _resnet, "features"),
    **{
        layout: Judge(
            "torchvision.models",
            _torchvision_backbone(name),
            224,
            _torchvision_vgg,
            _vgg,
            "features of the first four stages",
        )
        for layout, name in {"vgg16": "vgg16", "vgg16-bn": "vgg16_bn"}.items()
    },
    "mobilenet-v2": Judge(
        "torchvision.models",
        _torchvision_backbone("mobilenet_v2"),
        224,
        lambda network, x: network.features[:-1](x),
        _mobilenet,
        "features",
    ),
    "timm-xception": Judge("timm", _timm, 299, lambda network, x: network.forward_features(x), _xception, "features"),
}
"""By layout. Files without a package of their own are compared with rewritten networks in the tests instead."""
