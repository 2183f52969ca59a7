"""Draw the pictures of the model zoo page: the IoU of each class, and what the network sees on a generated scene.

    python -m benchmarks.zoo --output docs/zoo

One PNG per shipped checkpoint. Scenes are generated farmland with a seed that training did not use; networks of other
classes have bars alone, since the licences of their photos do not allow us to show them.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jobs import command_line
from pipeline import segment
from pipeline.classes import ClassMap
from pipeline.datasets.farmland.scene import Scene, generate_scene
from pipeline.evaluate.shipped import ShippedCheckpoint, list_shipped
from pipeline.models.card import load_card
from pipeline.page.paint import paint
from pipeline.records import UInt8

UNSEEN_SEED = 7_000_001
"""Training and validation have the seeds of `pipeline.datasets.generated.SEEDS`."""
SIDE_PX = 320
FALSE_COLOUR = ("nir", "red", "green")
"""Bands shown as red, green and blue where a network reads near infrared: the usual picture of plants."""
DPI = 110


def bands_of(scene: Scene, names: tuple[str, ...]) -> UInt8:
    """The named bands of a scene, (H, W, C) uint8."""
    by_name = dict(zip(("red", "green", "blue"), np.moveaxis(scene.image_hwc, 2, 0), strict=True), nir=scene.nir_hw)
    return np.stack([by_name[name] for name in names], 2)


def draw(one: ShippedCheckpoint) -> Figure:
    """One checkpoint: a scene, the mask with its default CRF and the truth where there is a scene, and its bars."""
    card = load_card(one.name)
    pictures = scene_pictures(one.name, card.channels, card.classes) if one.name.startswith("farmland") else []
    figure = Figure(figsize=(2.6 * len(pictures) + 3.6, 2.6), layout="constrained")
    axes = figure.subplots(1, len(pictures) + 1, squeeze=False, width_ratios=[1] * len(pictures) + [1.35])[0]
    for place, (title, pixels_hwc) in zip(axes, pictures, strict=False):
        place.imshow(pixels_hwc)
        place.set_title(title, fontsize=9)
        place.set_axis_off()
    names = list(one.iou)
    colours = [np.array(card.classes.classes[card.classes.names.index(name)].colour) / 255 for name in names]
    bars = axes[-1].barh(names, list(one.iou.values()), color=colours, edgecolor="0.3", linewidth=0.5)
    axes[-1].bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes[-1].set(xlim=(0, 1.12), title=f"IoU on {one.validation_images} images, mean {one.miou:.3f}")
    axes[-1].title.set_fontsize(9)
    axes[-1].invert_yaxis()
    axes[-1].tick_params(labelsize=7)
    axes[-1].spines[["top", "right"]].set_visible(False)
    return figure


def scene_pictures(checkpoint: str, channels: tuple[str, ...], classes: ClassMap) -> list[tuple[str, UInt8]]:
    """An unseen scene as the network's bands show it, the mask, and the truth."""
    scene = generate_scene(UNSEEN_SEED, height=SIDE_PX, width=SIDE_PX)
    mask_hw, _ = segment(bands_of(scene, channels), checkpoint)
    shown = bands_of(scene, FALSE_COLOUR) if "nir" in channels else scene.image_hwc
    title = "near infrared, red, green" if "nir" in channels else "image"
    return [(title, shown), ("mask", paint(mask_hw, classes)), ("truth", paint(scene.label_hw, classes))]


def main(argv: list[str] | None = None) -> int:
    """Parse and draw."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    for one in list_shipped(size_px=1, measure=False):
        draw(one).savefig(args.output / f"{one.name}.png", dpi=DPI, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    command_line.leave(main())
