"""Layout of the generated farmland: each example is generated when it is read, nothing is downloaded.

The root is ignored, and the paths of examples are not files.
"""

from dataclasses import dataclass, replace

from pipeline.datasets import farmland, picture
from pipeline.datasets.layout import DatasetLayout, Labelled, ListedExample
from pipeline.records import UInt8
from pipeline.store.url import Url

_IMAGE_PX = 256
"""Height and width of each image, pixels."""
SEEDS = {"train": range(1_000_000, 1_004_000), "val": range(500_000, 500_400)}
"""Seeds of each split; demonstrations and tests use others."""


@dataclass(frozen=True)
class Generated(DatasetLayout):
    """Keys are `<split>/farm_<seed>`."""

    infrared: bool = False
    """Images have a fourth band, near infrared."""

    def examples(self, root: Url, split: str) -> list[ListedExample]:
        """List the seeds of a split."""
        self.check_split(split)
        names = [f"farm_{seed:07}" for seed in SEEDS[split]]
        return [ListedExample(f"{split}/{name}", f"{name}.png", None) for name in names]

    def label(self, root: Url, example: ListedExample) -> UInt8:
        """Generate one scene and return its label."""
        return _scene(example).label_hw

    def read(self, root: Url, example: ListedExample) -> Labelled:
        """Generate one scene; its image becomes a PNG or TIFF without loss, for augmentation in training."""
        scene = _scene(example)
        image = picture.encode_tiff(scene.four_bands_hwc) if self.infrared else farmland.scene_png(scene)
        return Labelled(example.key, image, scene.label_hw)


def _scene(example: ListedExample) -> farmland.Scene:
    seed = int(example.key.rpartition("_")[2])
    return farmland.generate_scene(seed, height=_IMAGE_PX, width=_IMAGE_PX)


FARMLAND = Generated(
    name="farmland",
    palette="farmland",
    splits=tuple(SEEDS),
    source="pipeline/datasets/farmland/",
    license="Apache-2.0, as this project",
)
FARMLAND_NIR = replace(FARMLAND, name="farmland_nir", infrared=True)
