"""All layouts of weight files that can be imported, and known files that cannot."""

from collections.abc import Mapping

from pipeline.importing.layouts.backbones import BACKBONE_LAYOUTS
from pipeline.importing.layouts.deeplab_caffe import DEEPLAB_CAFFE_LAYOUTS
from pipeline.importing.layouts.dilation_caffe import DILATION_CAFFE_LAYOUTS
from pipeline.importing.layouts.enet import ENET_LAYOUTS
from pipeline.importing.layouts.espnet import ESPNET_LAYOUTS
from pipeline.importing.layouts.espnetv2 import ESPNETV2_LAYOUTS
from pipeline.importing.layouts.fasterseg import FASTERSEG_LAYOUTS
from pipeline.importing.layouts.frrn_lasagne import FRRN_LASAGNE_LAYOUTS
from pipeline.importing.layouts.jfzhang95 import JFZHANG_LAYOUTS
from pipeline.importing.layouts.kazuto1011 import KAZUTO_LAYOUTS
from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.semseg import SEMSEG_LAYOUTS
from pipeline.importing.layouts.smp import SMP_LAYOUTS
from pipeline.importing.layouts.tensorflow_deeplab import TENSORFLOW_DEEPLAB_LAYOUTS
from pipeline.importing.layouts.torchvision import TORCHVISION_LAYOUTS
from pipeline.importing.layouts.vainf import VAINF_LAYOUTS
from pipeline.importing.layouts.xiaoyufenfei import XIAOYUFENFEI_LAYOUTS

WEIGHTS_LAYOUTS: tuple[WeightsLayout, ...] = (
    *TORCHVISION_LAYOUTS,
    *VAINF_LAYOUTS,
    *SMP_LAYOUTS,
    *SEMSEG_LAYOUTS,
    *KAZUTO_LAYOUTS,
    *JFZHANG_LAYOUTS,
    *DEEPLAB_CAFFE_LAYOUTS,
    *DILATION_CAFFE_LAYOUTS,
    *FRRN_LASAGNE_LAYOUTS,
    *ENET_LAYOUTS,
    *ESPNET_LAYOUTS,
    *ESPNETV2_LAYOUTS,
    *FASTERSEG_LAYOUTS,
    *XIAOYUFENFEI_LAYOUTS,
    *TENSORFLOW_DEEPLAB_LAYOUTS,
    *BACKBONE_LAYOUTS,
)
"""Every layout; a file has the first one that fits, so backbones, with the fewest marks, come last."""

LAYOUT_BY_NAME = {layout.name: layout for layout in WEIGHTS_LAYOUTS}

REFUSED: Mapping[str, tuple[str, ...]] = {
    "torchvision's LRASPP on MobileNetV3-Large: there is no such network here": (
        "backbone.0.0.weight",
        "classifier.cbr.0.weight",
    ),
    "torchvision's DeepLab v3 on MobileNetV3-Large: no network here has that backbone": (
        "backbone.0.0.weight",
        "classifier.0.convs.4.1.weight",
    ),
    "VainF's MobileNetV2 pads in front of its widening convolutions, ours behind them: borders would differ": (
        "backbone.low_level_features.0.0.weight",
    ),
    "VainF's HRNet: no network here has that backbone": ("backbone.stage2.0.branch1.0.conv1.weight",),
    "jfzhang95's MobileNetV2 pads in front of its widening convolutions, ours behind them: borders would differ": (
        "backbone.features.0.0.weight",
        "aspp.aspp1.atrous_conv.weight",
    ),
    "jfzhang95's DRN: no network here has that backbone": ("backbone.layer0.0.weight", "aspp.aspp1.atrous_conv.weight"),
    "EfficientNet with squeeze-and-excitation: no network here has that backbone, only its lite versions 0 to 2": (
        "_conv_stem.weight",
        "_blocks.0._se_reduce.weight",
    ),
    "timm's MobileNetV2 has names and blocks of timm's own; torchvision's can be read": (
        "conv_stem.weight",
        "blocks.0.0.conv_dw.weight",
    ),
}
"""Known files that fit no network here: the reason, and names that identify the file."""
