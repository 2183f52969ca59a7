"""Weights of TensorFlow's DeepLab on MobileNetV2, https://github.com/tensorflow/models/tree/master/research/deeplab.

The authors' small networks have no atrous branches: a 1x1 convolution and image pooling, each of 256 channels at every
width, then a projection whose input begins with image pooling (research/deeplab/model.py, `extract_features`).
"""

from functools import partial

from pipeline.importing.layouts.layout import CORNERS, FOLDED, STRIDE_UNKNOWN, WeightsLayout
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, filters, width_option
from pipeline.models.normalisation import TENSORFLOW_8_BIT

DEEPLAB = "https://github.com/tensorflow/models/tree/master/research/deeplab"
HEAD = {
    "aspp0": "context.aspp.branches.0",
    "image_pooling": "context.aspp.image",
    "concat_projection": "context.aspp.project",
}
"""Our Sequential by TensorFlow's scope of each convolution between backbone and logits."""
RATES_UNREAD = (
    "strides and rates of the file's graph are not read: it is taken for output stride 16, as the authors' are; "
    "set --output-stride if it is 8"
)
BLOCKS = 17
"""Inverted residuals of MobileNetV2."""


def _scopes() -> dict[str, tuple[str, str]]:
    """Our convolution and batch norm by TensorFlow's scope; the first block widens nothing, so it has no `expand`."""
    scopes = {"MobilenetV2.Conv": ("backbone.features.0.0.", "backbone.features.0.1.")}
    for block in range(BLOCKS):
        theirs = f"MobilenetV2.expanded_conv{f'_{block}' if block else ''}."
        ours, last = f"backbone.features.{block + 1}.conv.", 2 if block else 1
        layers = ("expand", "depthwise") if block else ("depthwise",)
        scopes |= {f"{theirs}{name}": (f"{ours}{at}.0.", f"{ours}{at}.1.") for at, name in enumerate(layers)}
        scopes[f"{theirs}project"] = (f"{ours}{last}.", f"{ours}{last + 1}.")
    return scopes | {theirs: (f"{ours}.0.", f"{ours}.1.") for theirs, ours in HEAD.items()}


def _folded_rules() -> dict[str, str]:
    """Rules for convolutions with folded batch norm: the bias becomes that of the batch norm."""
    rules: dict[str, str] = {}
    for theirs, (conv, norm) in _scopes().items():
        rules |= {f"{theirs}.weight": f"{conv}weight", f"{theirs}.bias": f"{norm}bias"}
    return rules | {"logits.semantic.": "logits."}


def _deeplab_v3(tensors: Tensors, *, stem: str, head: str) -> ShapeOptions:
    """DeepLab v3 without rates; narrow networks round channels to whole numbers: core/feature_extractor.py."""
    width, channels = width_option(tensors, stem, 32), filters(tensors, head)
    options = {"backbone": "mobilenet_v2", "rates": (), "align_corners": True} | width
    if width:
        options["channels_multiple"] = 1
    if width or channels != 256:
        options["aspp_channels"] = channels
    return options


_deeplab_v3_layout = partial(
    WeightsLayout,
    url=DEEPLAB,
    architecture="deeplab_v3",
    first=("backbone.features.0.0.weight",),
    swapped={"context.aspp.project.0.weight": (1, "context.aspp.branches.0.0.weight")},
    normalisation=TENSORFLOW_8_BIT,
)

TENSORFLOW_DEEPLAB_LAYOUTS: tuple[WeightsLayout, ...] = (
    _deeplab_v3_layout(
        name="tflite-deeplab-v3",
        title="TensorFlow's DeepLab v3 on MobileNetV2, of 8 bits",
        marks=("MobilenetV2.Conv.weight", "image_pooling.weight", "concat_projection.bias", "logits.semantic.weight"),
        options=partial(_deeplab_v3, stem="MobilenetV2.Conv.weight", head="concat_projection.weight"),
        rules=_folded_rules(),
        scores="logits.semantic.weight",
        folded=True,
        notes=(RATES_UNREAD, CORNERS, FOLDED),
    ),
    _deeplab_v3_layout(
        name="tensorflow-deeplab-v3",
        title="TensorFlow's DeepLab v3 on MobileNetV2, under torchvision's names",
        marks=("backbone.features.0.0.weight", "image_pooling.0.weight", "concat_projection.1.bias", "logits.weight"),
        options=partial(_deeplab_v3, stem="backbone.features.0.0.weight", head="concat_projection.0.weight"),
        rules={
            "backbone.features.": "backbone.features.",
            **{f"{theirs}.": f"{ours}." for theirs, ours in HEAD.items()},
            "logits.": "logits.",
        },
        scores="logits.weight",
        notes=(STRIDE_UNKNOWN, CORNERS),
    ),
)
