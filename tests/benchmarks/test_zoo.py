from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from benchmarks import zoo
from pipeline.datasets.farmland.scene import generate_scene
from pipeline.datasets.generated import SEEDS
from pipeline.models.card import shipped_checkpoints


def test_bands_are_taken_by_their_names() -> None:
    scene = generate_scene(1, height=8, width=9)
    assert np.array_equal(zoo.bands_of(scene, ("red", "green", "blue")), scene.image_hwc)
    assert np.array_equal(zoo.bands_of(scene, ("nir", "blue"))[..., 0], scene.nir_hw)


def test_each_checkpoint_has_a_picture_and_the_scene_was_not_trained_on(tmp_path: Path) -> None:
    assert not any(zoo.UNSEEN_SEED in seeds for seeds in SEEDS.values())
    assert zoo.main(["--output", str(tmp_path)]) == 0
    sizes = {path.stem: PILImage.open(path).size for path in tmp_path.iterdir()}
    assert sorted(sizes) == shipped_checkpoints()
    assert sizes["farmland"][0] > 2 * sizes["camvid"][0]  # a scene, its mask and the truth beside the bars
