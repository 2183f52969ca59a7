"""CamVid in miniature: SegNet's folder, and the original stills with their colours."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.camvid import CAMVID, CAMVID32, segnet_split
from pipeline.errors import InputError, LabelError
from pipeline.store.url import Url
from tests.support.miniatures import grey_png, put, rgb_png

PHOTOGRAPH = rgb_png(np.zeros((2, 4, 3)))
COLOURS = """
64 128 64 Animal, 192 0 128 Archway, 0 128 192 Bicyclist, 0 128 64 Bridge, 128 0 0 Building, 64 0 128 Car,
64 0 192 CartLuggagePram, 192 128 64 Child, 192 192 128 Column_Pole, 64 64 128 Fence, 128 0 192 LaneMkgsDriv,
192 0 64 LaneMkgsNonDriv, 128 128 64 Misc_Text, 192 0 192 MotorcycleScooter, 128 64 64 OtherMoving,
64 192 128 ParkingBlock, 64 64 0 Pedestrian, 128 64 128 Road, 128 128 192 RoadShoulder, 0 0 192 Sidewalk,
192 128 128 SignSymbol, 128 128 128 Sky, 64 128 192 SUVPickupTruck, 0 0 64 TrafficCone, 0 64 64 TrafficLight,
192 64 128 Train, 128 128 0 Tree, 192 128 192 Truck_Bus, 64 0 64 Tunnel, 192 192 0 VegetationMisc, 0 0 0 Void,
64 192 0 Wall
"""
"""label_colors.txt of the data set."""
OFFICIAL = {words[3]: tuple(map(int, words[:3])) for words in (line.split() for line in COLOURS.split(","))}
FRAMES = {
    "train": ["0001TP_006690", "0001TP_008520", "0006R0_f03930", "0016E5_00390", "0016E5_08640"],
    "val": ["0016E5_07959", "0016E5_08159"],
    "test": ["0001TP_008550", "0001TP_010380", "Seq05VD_f00000", "Seq05VD_f05100"],
}


@pytest.fixture
def segnet(tmp_path: Path) -> Path:
    for split, names in FRAMES.items():
        lines = [f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png" for name in names]
        put(tmp_path, f"CamVid/{split}.txt", "\n".join(lines))
        for name in names:
            put(tmp_path, f"CamVid/{split}/{name}.png", PHOTOGRAPH)
            put(tmp_path, f"CamVid/{split}annot/{name}.png", grey_png(np.arange(12).reshape(3, 4)))
    return tmp_path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    for names in FRAMES.values():
        for name in names:
            put(tmp_path, f"701_StillsRaw_full/{name}.png", PHOTOGRAPH)
            put(tmp_path, f"LabeledApproved_full/{name}_L.png", rgb_png(np.array([list(OFFICIAL.values())])))
    return tmp_path


@pytest.mark.parametrize("split", FRAMES)
def test_11_classes_are_read_and_the_twelfth_id_is_ignored(segnet: Path, split: str) -> None:
    examples = CAMVID.examples(Url(str(segnet)), split)
    assert [one.key for one in examples] == [f"{split}/{name}" for name in FRAMES[split]]
    for one in examples:
        read = CAMVID.read(Url(str(segnet)), one)
        assert read.image == PHOTOGRAPH
        assert read.label_hw.ravel().tolist() == [*range(len(CAMVID.classes)), 255]


@pytest.mark.parametrize("split", FRAMES)
def test_32_colours_become_31_classes_and_void_is_ignored(original: Path, split: str) -> None:
    examples = CAMVID32.examples(Url(str(original)), split)
    assert [one.key for one in examples] == [f"{split}/{name}" for name in FRAMES[split]]
    names = [*CAMVID32.classes.names, *["Void"] * (256 - len(CAMVID32.classes))]
    for one in examples:
        read = CAMVID32.read(Url(str(original)), one)
        assert read.image == PHOTOGRAPH
        assert [names[class_id] for class_id in read.label_hw[0]] == list(OFFICIAL)
        assert set(read.label_hw.ravel()) == {*range(31), 255}


def test_names_and_colours_are_those_of_the_download() -> None:
    drawn = {info.name: info.colour for info in CAMVID32.classes.classes}
    assert drawn | {"Void": (0, 0, 0)} == OFFICIAL


def test_what_both_maps_have_is_drawn_alike() -> None:
    """All but the pavement, for which SegNet took a colour of its own."""
    by_lower = {name.lower(): colour for name, colour in OFFICIAL.items()} | {"pole": OFFICIAL["Column_Pole"]}
    same = {info.name for info in CAMVID.classes.classes if by_lower.get(info.name.replace("_", "")) == info.colour}
    assert set(CAMVID.classes.names) - same == {"pavement"}


def test_splits_of_both_layouts_are_of_the_same_frames() -> None:
    assert {name: segnet_split(name) for names in FRAMES.values() for name in names} == {
        name: split for split, names in FRAMES.items() for name in names
    }


def test_a_colour_of_no_class_is_named(original: Path) -> None:
    rgb_hwc = np.array([[OFFICIAL["Sky"], (1, 2, 3), (1, 2, 3)]])
    put(original, "LabeledApproved_full/0016E5_07959_L.png", rgb_png(rgb_hwc))
    with pytest.raises(LabelError, match=r"0016E5_07959_L\.png has the colour \(1, 2, 3\) on 2 pixel"):
        CAMVID32.read(Url(str(original)), CAMVID32.examples(Url(str(original)), "val")[0])


def test_an_id_of_no_class_is_named(segnet: Path) -> None:
    put(segnet, "CamVid/valannot/0016E5_07959.png", grey_png(np.full((2, 2), 12)))
    with pytest.raises(LabelError, match=r"valannot/0016E5_07959\.png has the value 12 on 4"):
        CAMVID.read(Url(str(segnet)), CAMVID.examples(Url(str(segnet)), "val")[0])


def test_a_label_without_its_still_fails_alone(original: Path) -> None:
    (original / "701_StillsRaw_full/0016E5_07959.png").unlink()
    first, second = CAMVID32.examples(Url(str(original)), "val")
    with pytest.raises(InputError, match="not_found"):
        CAMVID32.read(Url(str(original)), first)
    assert CAMVID32.read(Url(str(original)), second).key == "val/0016E5_08159"
