"""Catalogue of published networks: name, paper, year, and the accuracy in the paper or repository.

A variant is a network of the zoo with the options of the publication. Accuracies are the source's, on its data and with
its training, not measured here. `PUBLISHED` lists results on test sets, some of networks that the zoo lacks.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.network import Network


@dataclass(frozen=True, slots=True)
class Variant:
    """Published network: a network of the zoo, its options and its source."""

    name: str
    network: str
    """Key of `zoo.NETWORKS`."""
    year: int
    """Year of the first publication, usually the preprint."""
    paper: str
    miou: float | None
    """Published mean IoU, percent, of a single model without a CRF unless `measured_on` says otherwise."""
    measured_on: str
    """Data set, and additions such as a CRF or multi-scale inference."""
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, num_classes: int, *, output_stride: int | None = None, in_channels: int = 3) -> Network:
        """Build the network with random weights, at its published output stride unless `output_stride` is given."""
        return zoo.build_network(
            self.network, num_classes, in_channels=in_channels, output_stride=output_stride, **self.options
        )


FCN, SEGNET, UNET = "arXiv 1411.4038", "arXiv 1511.00561", "arXiv 1505.04597"
CRF_RNN, DILATION, FRRN = "arXiv 1502.03240", "arXiv 1511.07122", "arXiv 1611.08323"
ENET = "arXiv 1606.02147"
DT = "arXiv 1511.03328"
PSPNET, ICNET, ATTENTION = "arXiv 1612.01105", "arXiv 1704.08545", "arXiv 1511.03339"
FASTERSEG = "arXiv 1912.10917"
ESPNET, LEDNET, ESNET = "arXiv 1803.06815", "arXiv 1905.02423", "arXiv 1906.09826"
ESPNETV2 = "arXiv 1811.11431"
V1, V2, V3, V3PLUS = "arXiv 1412.7062", "arXiv 1606.00915", "arXiv 1706.05587", "arXiv 1802.02611"
MOBILENET_V2 = "arXiv 1801.04381"
COCO_VOC = "COCO val2017, VOC classes (torchvision)"

VARIANTS = (
    Variant("fcn_32s", "fcn", 2014, FCN, 59.4, "VOC 2011 val subset", {"variant": "32s"}),
    Variant("fcn_16s", "fcn", 2014, FCN, 62.4, "VOC 2011 val subset", {"variant": "16s"}),
    Variant("fcn_8s", "fcn", 2014, FCN, 62.7, "VOC 2011 val subset", {"variant": "8s"}),
    Variant("fcn_resnet50", "fcn_dilated", 2014, FCN, 60.5, COCO_VOC, {"backbone": "resnet50"}),
    Variant("fcn_resnet101", "fcn_dilated", 2014, FCN, 63.7, COCO_VOC, {"backbone": "resnet101"}),
    Variant("deeplab_v1_4x4", "deeplab_v1", 2014, V1, 59.80, "VOC 2012 val", {"variant": "4x4"}),
    Variant("deeplab_v1_7x7", "deeplab_v1", 2014, V1, 64.38, "VOC 2012 val", {"variant": "7x7"}),
    Variant("deeplab_v1_largefov", "deeplab_v1", 2014, V1, 62.25, "VOC 2012 val", {"variant": "large_fov"}),
    Variant(
        "deeplab_v1_msc_largefov", "deeplab_v1", 2014, V1, 64.21, "VOC 2012 val", {"variant": "large_fov", "msc": True}
    ),
    Variant("unet", "unet", 2015, UNET, 92.03, "PhC-U373, IoU of cells"),
    Variant("unet_resnet50", "unet_resnet", 2015, UNET, None, "", {"backbone": "resnet50"}),
    Variant("segnet", "segnet", 2015, SEGNET, 57.0, "Cityscapes test"),
    Variant(
        "attention_largefov",
        "attention_to_scale",
        2015,
        ATTENTION,
        56.39,
        "PASCAL-Person-Part val",
        {"network": "deeplab_v1", "options": {"variant": "large_fov"}},
    ),
    Variant("deeplab_dt_largefov", "deeplab_dt", 2015, DT, None, "", {"network": "deeplab_v1"}),
    Variant(
        "crf_rnn",
        "crf_rnn",
        2015,
        CRF_RNN,
        62.5,
        "Cityscapes test",
        {"network": "fcn", "options": {"variant": "8s"}},
    ),
    Variant("dilation_front", "dilation", 2015, DILATION, 67.6, "VOC 2012 test", {"context": "none"}),
    Variant("dilation8_small", "dilation", 2015, DILATION, 65.3, "CamVid test", {"context": "small"}),
    Variant("dilation8_large", "dilation", 2015, DILATION, 73.5, "VOC 2012 test, COCO", {"context": "large"}),
    Variant("dilation7", "dilation", 2015, DILATION, None, "", {"levels": 7}),
    Variant(
        "dilation10",
        "dilation",
        2015,
        DILATION,
        67.1,
        "Cityscapes test",
        {"levels": 10, "deconvolution": True},
    ),
    Variant(
        "deeplab_v2_vgg16_largefov",
        "deeplab_v2",
        2016,
        V2,
        65.76,
        "VOC 2012 val",
        {"backbone": "vgg16", "head": "large_fov"},
    ),
    Variant(
        "deeplab_v2_vgg16_aspp_s",
        "deeplab_v2",
        2016,
        V2,
        66.98,
        "VOC 2012 val",
        {"backbone": "vgg16", "head": "aspp_s"},
    ),
    Variant(
        "deeplab_v2_vgg16_aspp_l",
        "deeplab_v2",
        2016,
        V2,
        68.96,
        "VOC 2012 val",
        {"backbone": "vgg16", "head": "aspp_l"},
    ),
    Variant(
        "deeplab_v2_resnet101_largefov",
        "deeplab_v2",
        2016,
        V2,
        75.54,
        "VOC 2012 val, COCO, MSC",
        {"head": "large_fov"},
    ),
    Variant("deeplab_v2_resnet101", "deeplab_v2", 2016, V2, 76.35, "VOC 2012 val, COCO, MSC"),
    Variant("frrn_a", "frrn_a", 2016, FRRN, 63.0, "Cityscapes test, a quarter of the size"),
    Variant("frrn_b", "frrn_b", 2016, FRRN, 71.8, "Cityscapes test, half the size"),
    Variant("pspnet_resnet50", "pspnet", 2016, PSPNET, 41.68, "ADE20K val", {"backbone": "resnet50"}),
    Variant(
        "pspnet_resnet101", "pspnet", 2016, PSPNET, 81.2, "Cityscapes test, coarse labels", {"backbone": "resnet101"}
    ),
    Variant("pspnet_smp_resnet50", "pspnet_smp", 2016, PSPNET, None, "", {"backbone": "resnet50"}),
    Variant("enet", "enet", 2016, ENET, 58.3, "Cityscapes test"),
    Variant("enet_davidtvs", "enet", 2016, ENET, 59.5, "Cityscapes val (davidtvs)", {"convention": "davidtvs"}),
    Variant("icnet", "icnet", 2017, ICNET, 70.6, "Cityscapes test"),
    Variant(
        "deeplab_v3_resnet50",
        "deeplab_v3",
        2017,
        V3,
        76.9,
        "VOC 2012 val, centre crop (VainF)",
        {"backbone": "resnet50", "multi_grid": None, "head_conv": True},
    ),
    Variant("deeplab_v3_resnet101", "deeplab_v3", 2017, V3, 77.21, "VOC 2012 val"),
    Variant(
        "deeplab_v3_cascade",
        "deeplab_v3",
        2017,
        V3,
        76.66,
        "VOC 2012 val",
        {"mode": "cascade", "blocks": 7, "multi_grid": [1, 2, 1]},
    ),
    Variant(
        "deeplab_v3_mobilenet_v2",
        "deeplab_v3",
        2018,
        MOBILENET_V2,
        75.32,
        "VOC 2012 val, COCO (TensorFlow)",
        {"backbone": "mobilenet_v2", "rates": [], "align_corners": True},
    ),
    Variant(
        "deeplab_v3plus_mobilenet_v2",
        "deeplab_v3plus",
        2018,
        V3PLUS,
        None,
        "",
        {"backbone": "mobilenet_v2"},
    ),
    Variant(
        "deeplab_v3plus_efficientnet_lite0",
        "deeplab_v3plus",
        2018,
        V3PLUS,
        None,
        "",
        {"backbone": "efficientnet_lite0"},
    ),
    Variant(
        "deeplab_v3plus_resnet50",
        "deeplab_v3plus",
        2018,
        V3PLUS,
        77.2,
        "VOC 2012 val, centre crop (VainF)",
        {"backbone": "resnet50", "multi_grid": None, "decoder_convs": 1},
    ),
    Variant("deeplab_v3plus_resnet101", "deeplab_v3plus", 2018, V3PLUS, 78.85, "VOC 2012 val"),
    Variant("deeplab_v3plus_xception41", "deeplab_v3plus", 2018, V3PLUS, None, "", {"backbone": "xception41"}),
    Variant(
        "deeplab_v3plus_xception65",
        "deeplab_v3plus",
        2018,
        V3PLUS,
        82.20,
        "VOC 2012 val, COCO (TensorFlow)",
        {"backbone": "xception65"},
    ),
    Variant("deeplab_v3plus_xception71", "deeplab_v3plus", 2018, V3PLUS, None, "", {"backbone": "xception71"}),
    Variant("fasterseg", "fasterseg", 2019, FASTERSEG, 71.5, "Cityscapes test", {"variant": "student"}),
    Variant("fasterseg_teacher", "fasterseg", 2019, FASTERSEG, None, "", {"variant": "teacher"}),
    Variant("espnet", "espnet", 2018, ESPNET, 60.3, "Cityscapes test"),
    Variant("espnetv2", "espnetv2", 2018, ESPNETV2, 67.01, "VOC 2012 val, 384x384 (EdgeNets)"),
    Variant("lednet", "lednet", 2019, LEDNET, 70.6, "Cityscapes test"),
    Variant("esnet", "esnet", 2019, ESNET, 70.7, "Cityscapes test"),
)


@dataclass(frozen=True, slots=True)
class Published:
    """Published result on a test set, with the source's training, code and hardware."""

    name: str
    year: int
    """Year of the first publication, usually the preprint."""
    miou: float
    """Percent."""
    data: str
    source: str
    """Paper with this result; not always the network's own."""
    images_per_s: float | None = None
    """Speed; None where the source has none."""
    ms: float | None = None
    """Time of one image, milliseconds."""


CITYSCAPES, VOC = "Cityscapes test", "VOC 2012 test"

PUBLISHED = (
    # Results up to ICNet are from its paper, sec. 5: images of 1024x2048, or at each network's own input size.
    Published("DeepLab", 2014, 63.1, CITYSCAPES, ICNET, 0.25, 4000),
    Published("FCN-8s", 2014, 65.3, CITYSCAPES, ICNET, 2, 500),
    Published("SegNet", 2015, 57.0, CITYSCAPES, ICNET, 16.7, 60),
    Published("CRF-RNN", 2015, 62.5, CITYSCAPES, ICNET, 1.4, 700),
    Published("Dilation10", 2015, 67.1, CITYSCAPES, ICNET, 0.25, 4000),
    Published("ENet", 2016, 58.3, CITYSCAPES, ICNET, 76.9, 13),
    Published("FRRN", 2016, 71.8, CITYSCAPES, ICNET, 2.1, 469),
    Published("PSPNet", 2016, 81.2, CITYSCAPES, ICNET, 0.78, 1288),
    Published("ICNet", 2017, 70.6, CITYSCAPES, ICNET, 30.3, 33),
    Published("ENet, Lovász-softmax", 2017, 63.1, CITYSCAPES, "arXiv 1705.08790", 76.9, 13),
    Published("LEDNet", 2019, 70.6, CITYSCAPES, LEDNET, 71, 14),
    Published("ESNet", 2019, 70.7, CITYSCAPES, ESNET, 63, 16),
    Published("FasterSeg", 2019, 71.5, CITYSCAPES, FASTERSEG, 163.9, 6.1),
    Published("DeepLab LargeFOV, CRF", 2014, 70.3, VOC, V1),
    Published("DeepLab MSc LargeFOV, CRF", 2014, 71.6, VOC, V1),
    Published("DeepLab v2 ResNet-101, CRF", 2016, 79.7, VOC, V2),
    Published("PSPNet", 2016, 85.4, VOC, PSPNET),
    Published("DeepLab v3", 2017, 85.7, VOC, V3),
    Published("DeepLab v3, JFT", 2017, 86.9, VOC, V3),
    Published("DeepLab v3+ Xception", 2018, 87.8, VOC, V3PLUS),
    Published("DeepLab v3+ Xception, JFT", 2018, 89.0, VOC, V3PLUS),
)


def find_variant(name: str) -> Variant:
    """Variant of a name.

    Raises:
        ConfigError: the name is unknown; the hint lists all.
    """
    by_name = {variant.name: variant for variant in VARIANTS}
    if name not in by_name:
        raise ConfigError(f"no variant {name!r}", hint=f"known: {', '.join(by_name)}")
    return by_name[name]


def count_parameters(network: Network) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: Network, height_px: int, width_px: int | None = None, *, in_channels: int = 3) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image, square without a width.

    The network must be on the meta device, since tensors have no memory here; it is left in eval mode.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, in_channels, height_px, width_px or height_px, device="meta"))
    return int(counter.get_total_flops()) // 2
