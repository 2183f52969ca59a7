"""Comparison of an imported network with the source's own package (`--verify`), where that is installed.

In: the file's tensors and the network imported of them. Out: the largest difference of their outputs on a seeded random
image of the source's usual size, in float32 on the CPU. torchvision, timm and segmentation_models_pytorch are imported
only here, on demand; the project does not depend on them.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from pipeline.errors import ConfigError
from pipeline.importing.convert import ImportedCheckpoint, is_counter, recognise
from pipeline.importing.reader import WeightsFile
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.backbones.xception import Xception
from pipeline.models.network import Network

TOLERANCE = 1e-4
"""Largest difference accepted as rounding, relative to the source's largest value."""

SEED = 0
"""Seed of the random image."""

Theirs = Callable[[Any, Tensor], Tensor]
Ours = Callable[[Network, ImportedCheckpoint, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Result of a comparison, in sentences for the report."""

    verified: list[str] = field(default_factory=list)
    not_verified: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SourceNetwork:
    """Source's own network: how to build it, and which outputs to compare."""

    package: str
    """Module to import."""
    build: Callable[[Any, ImportedCheckpoint], nn.Module]
    """Build from the package a network that loads the file's tensors unchanged."""
    size: int
    """Side of the square image, pixels; the source's usual size."""
    theirs: Theirs
    """Outputs of the source's network."""
    ours: Ours
    """The same outputs of our network."""
    compared: str
    """Name of the outputs, for the report."""


def compare_outputs(source: WeightsFile, imported: ImportedCheckpoint, network: Network) -> OutputComparison:
    """Run the source's network and ours on the same image.

    Raises:
        ConfigError: the outputs differ by more than `TOLERANCE`.
    """
    original = SOURCE_NETWORKS.get(imported.layout.name)
    if original is None:
        return OutputComparison(
            not_verified=[f"equality of outputs with the source's: no package has {imported.layout.title}"]
        )
    if reason := _unlike(original, imported):
        return OutputComparison(not_verified=[f"equality of outputs with the source's: {reason}"])
    try:
        package = importlib.import_module(original.package)
    except ImportError as error:
        return OutputComparison(
            not_verified=[f"equality of outputs with the source's: {original.package} cannot be imported ({error})"]
        )
    their_network = original.build(package, imported).eval()
    their_network.load_state_dict(_their_tensors(source, imported, their_network))
    image = torch.randn(1, 3, original.size, original.size, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        expected, actual = original.theirs(their_network, image), original.ours(network, imported, image)
    if imported.scores == 1:
        expected = torch.cat((torch.zeros_like(expected), expected), dim=1)
    largest, difference = expected.abs().max().item(), (expected - actual).abs().max().item()
    image_text = f"a random image of {original.size} x {original.size}"
    summary = f"{original.compared} of {original.package} on {image_text}: largest difference "
    summary += f"{difference:.2e}, largest value {largest:.2e}"
    if not difference <= TOLERANCE * largest:
        raise ConfigError(f"outputs differ from the source's: {summary}")
    return OutputComparison(verified=[summary])


def _unlike(original: SourceNetwork, imported: ImportedCheckpoint) -> str:
    """Reason why a package cannot build the imported network; empty if it can."""
    if "width_multiplier" in imported.card.options or imported.card.in_channels != 3:
        return f"{original.package} has no network of this width or number of bands"
    return ""


def _their_tensors(source: WeightsFile, imported: ImportedCheckpoint, network: nn.Module) -> dict[str, Tensor]:
    """The file's tensors by the package's names, and the package's own tensors that the comparison does not need.

    Those are counters of batch norm, absent from old files, and the classifier of a backbone, of any number of classes.
    """
    _, tensors = recognise(source.tensors, imported.layout.name)
    idle = {name for name in network.state_dict() if is_counter(name)}
    if imported.layout.is_backbone:
        tensors = {name: tensor for name, tensor in tensors.items() if name in imported.used}
        idle |= {name for name in network.state_dict() if name.startswith(tuple(imported.layout.unused))}
    return {name: tensor for name, tensor in network.state_dict().items() if name in idle} | tensors


def _full_size(network: Network, imported: ImportedCheckpoint, image: Tensor) -> Tensor:
    """Our logits, upsampled as the source upsamples its own."""
    del imported
    logits = network(image)
    return interpolate(logits, image.shape[2:], mode="bilinear", align_corners=network.align_corners)


def _torchvision(kind: str) -> Callable[[Any, ImportedCheckpoint], nn.Module]:
    def build(package: Any, imported: ImportedCheckpoint) -> nn.Module:
        make = getattr(package, f"{kind}_{imported.card.options['backbone']}")
        aux = bool(imported.card.options.get("aux"))
        network: nn.Module = make(weights=None, weights_backbone=None, num_classes=imported.scores, aux_loss=aux)
        return network

    return build


def _smp(kind: str, **more: Any) -> Callable[[Any, ImportedCheckpoint], nn.Module]:
    def build(package: Any, imported: ImportedCheckpoint) -> nn.Module:
        options = dict(more)
        if kind.startswith("DeepLab"):
            options["encoder_output_stride"] = imported.card.output_stride
        network: nn.Module = getattr(package, kind)(
            imported.card.options["backbone"], encoder_weights=None, classes=imported.scores, **options
        )
        return network

    return build


def _torchvision_backbone(name: str) -> Callable[[Any, ImportedCheckpoint], nn.Module]:
    def build(package: Any, imported: ImportedCheckpoint) -> nn.Module:
        network: nn.Module = getattr(package, name or str(imported.card.options["backbone"]))(weights=None)
        return network

    return build


def _timm(package: Any, imported: ImportedCheckpoint) -> nn.Module:
    network: nn.Module = package.create_model(imported.card.options["backbone"])
    return network


def _extractor(network: Any) -> Any:
    return network.encoder if hasattr(network, "encoder") else network.backbone


def _strided(backbone: nn.Module, network: Network, x: Tensor) -> Tensor:
    """Features of a backbone at output stride 32, as it was trained, with the network's weights."""
    backbone.load_state_dict(_extractor(network).state_dict())
    features: Tensor = backbone.eval()(x)[1]
    return features


def _resnet(network: Network, imported: ImportedCheckpoint, x: Tensor) -> Tensor:
    depth = int(str(imported.card.options["backbone"]).removeprefix("resnet"))
    return _strided(ResNet(depth, in_channels=3, output_stride=32), network, x)


def _mobilenet(network: Network, imported: ImportedCheckpoint, x: Tensor) -> Tensor:
    del imported
    return _strided(MobileNetV2(in_channels=3, output_stride=32, width=1.0), network, x)


def _xception(network: Network, imported: ImportedCheckpoint, x: Tensor) -> Tensor:
    depth = int(str(imported.card.options["backbone"]).removeprefix("xception"))
    return _strided(Xception(depth, in_channels=3, output_stride=32, layout="timm"), network, x)


def _vgg(network: Network, imported: ImportedCheckpoint, x: Tensor) -> Tensor:
    """Features of the first four stages: some networks dilate the fifth."""
    del imported
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


SOURCE_NETWORKS: Mapping[str, SourceNetwork] = {
    "torchvision-deeplab-v3": SourceNetwork(
        "torchvision.models.segmentation",
        _torchvision("deeplabv3"),
        520,
        lambda network, x: network(x)["out"],
        _full_size,
        "scores",
    ),
    "torchvision-fcn": SourceNetwork(
        "torchvision.models.segmentation",
        _torchvision("fcn"),
        520,
        lambda network, x: network(x)["out"],
        _full_size,
        "scores",
    ),
    **{
        name: SourceNetwork(
            "segmentation_models_pytorch", _smp(kind), 512, lambda network, x: network(x), _full_size, "scores"
        )
        for name, kind in {
            "smp-deeplab-v3": "DeepLabV3",
            "smp-deeplab-v3plus": "DeepLabV3Plus",
            "smp-unet": "Unet",
            "smp-pspnet": "PSPNet",
        }.items()
    },
    "resnet": SourceNetwork(
        "torchvision.models", _torchvision_backbone(""), 224, _torchvision_resnet, _resnet, "features"
    ),
    **{
        layout: SourceNetwork(
            "torchvision.models",
            _torchvision_backbone(name),
            224,
            _torchvision_vgg,
            _vgg,
            "features of the first four stages",
        )
        for layout, name in {"vgg16": "vgg16", "vgg16-bn": "vgg16_bn"}.items()
    },
    "mobilenet-v2": SourceNetwork(
        "torchvision.models",
        _torchvision_backbone("mobilenet_v2"),
        224,
        lambda network, x: network.features[:-1](x),
        _mobilenet,
        "features",
    ),
    "timm-xception": SourceNetwork(
        "timm", _timm, 299, lambda network, x: network.forward_features(x), _xception, "features"
    ),
}
"""Source networks by layout. Tests compare layouts without a package with reimplementations instead."""
