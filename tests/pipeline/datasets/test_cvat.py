"""CVAT's exports in miniature: XML with shapes of every kind, and colour masks."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.cvat import colours_of
from pipeline.errors import ConfigError, LabelError
from pipeline.store.url import Url
from tests.pipeline.datasets.test_exports import FARM, labels_of, opened
from tests.support.miniatures import JPEG, put, rgb_png

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

A, B = FARM.names[:2]


def write(root: Path, shapes: str, *, head: str = '<?xml version="1.0" encoding="utf-8"?>') -> None:
    """As CVAT 2 exports a task: meta, an image of 5x4 pixels, and one that is not annotated."""
    for name in ("a", "b"):
        put(root, f"images/{name}.jpg", JPEG)
    meta = "<version>1.1</version><meta><task><id>1</id><labels><label><name>x</name></label></labels></task></meta>"
    images = f'<image id="0" name="a.jpg" width="5" height="4">{shapes}</image>'
    images += '<image id="1" name="b.jpg" width="5" height="4"></image>'
    put(root, "annotations.xml", f"{head}<annotations>{meta}{images}</annotations>")


def drawn(root: Path, shapes: str, **settings: object) -> list[list[int]]:
    write(root, shapes)
    labels = labels_of(root, "cvat", **settings)
    assert list(labels) == ["images/a.jpg"]
    return labels["images/a.jpg"].tolist()


def mask(name: str, z_order: int = 0) -> str:
    """Three pixels in the second row: row by row in a box of 2x2."""
    place = f'left="1" top="1" width="2" height="2" z_order="{z_order}"'
    return f'<mask label="{name}" source="manual" occluded="0" rle="0, 3, 1" {place}></mask>'


def test_a_mask_is_read_row_by_row_in_its_box(tmp_path: Path) -> None:
    assert drawn(tmp_path, mask(B)) == [[255] * 5, [255, 1, 1, 255, 255], [255, 1, 255, 255, 255], [255] * 5]


def test_polygons_and_boxes_are_drawn(tmp_path: Path) -> None:
    polygon = f'<polygon label="{A}" points="0.00,0.00;2.00,0.00;2.00,2.00;0.00,2.00" z_order="0"></polygon>'
    box = f'<box label="{B}" xtl="3.0" ytl="1.0" xbr="5.0" ybr="4.0" z_order="0"></box>'
    expected = [[0, 0, 255, 255, 255], [0, 0, 255, 1, 1], [255, 255, 255, 1, 1], [255, 255, 255, 1, 1]]
    assert drawn(tmp_path, polygon + box) == expected


def test_a_box_turned_by_90_degrees_stands_on_its_side(tmp_path: Path) -> None:
    box = f'<box label="{A}" xtl="0" ytl="1" xbr="4" ybr="3" rotation="90.0" z_order="0"></box>'
    assert drawn(tmp_path, box) == [[255, 0, 0, 255, 255]] * 4


def test_the_upper_shape_counts_by_z_order_then_by_the_order_of_the_file(tmp_path: Path) -> None:
    whole = f'<box label="{A}" xtl="0" ytl="0" xbr="5" ybr="4" z_order="%d"></box>'
    assert drawn(tmp_path, whole % 0 + mask(B))[1] == [0, 1, 1, 0, 0]
    assert drawn(tmp_path, mask(B) + whole % 0)[1] == [0] * 5
    assert drawn(tmp_path, mask(B, 2) + whole % 1)[1] == [0, 1, 1, 0, 0]


def test_tags_are_ignored_and_counted_and_other_shapes_fail_their_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert drawn(tmp_path, f'<tag label="done" source="manual"></tag>{mask(B)}')[1][1] == 1
    assert "1 result(s) of the kind 'tag'" in caplog.text
    with pytest.raises(LabelError, match=r"images/a\.jpg has a shape of the kind 'ellipse'"):
        drawn(tmp_path, mask(B) + f'<ellipse label="{A}" cx="1" cy="1" rx="1" ry="1" z_order="0"></ellipse>')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotations", "cannot be read as XML"),
        ("", "cannot be read as XML"),
        ("<html/>", "no export of images"),
        ("<annotations><track id='0'/></annotations>", "no export of images"),
        ("<annotations><image id='0' name='a.jpg'/></annotations>", "does not have CVAT's structure"),
        ("<annotations><image name='a.jpg' width='5' height='x'/></annotations>", "does not have CVAT's structure"),
        (
            "<annotations><image name='a' width='5' height='4'><mask label='x' rle='a'/></image></annotations>",
            "does not have CVAT's structure",
        ),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>", "declares the document type 'a'"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><annotations/>", "declares the document type"),
    ],
)
def test_a_file_that_is_not_cvat_s_is_refused(text: str, says: str, tmp_path: Path) -> None:
    put(tmp_path, "images/a.jpg", JPEG)
    put(tmp_path, "annotations.xml", text)
    with pytest.raises(ConfigError, match=f"annotations.xml .*{says}"):
        opened(tmp_path, "cvat").examples(Url(str(tmp_path)), "train")


# ---------------------------------------------------------------- Segmentation mask 1.1


LABEL_MAP = f"# label:color_rgb:parts:actions\n{A}:250,50,83::\n{B}:50,183,250::\nbackground:0,0,0::\n"
RED, BLUE, BLACK = (250, 50, 83), (50, 183, 250), (0, 0, 0)


def write_masks(root: Path, rgb: list[list[tuple[int, int, int]]], label_map: str = LABEL_MAP) -> None:
    put(root, "JPEGImages/x/a.jpg", JPEG)
    put(root, "labelmap.txt", label_map)
    put(root, "SegmentationClass/x/a.png", rgb_png(np.array(rgb)))
    put(root, "SegmentationObject/x/a.png", b"not read")


def test_colours_are_the_classes_of_the_label_map_and_black_is_unlabelled(tmp_path: Path) -> None:
    write_masks(tmp_path, [[RED, BLUE], [BLACK, BLUE]])
    assert labels_of(tmp_path, "cvat_masks")["JPEGImages/x/a.jpg"].tolist() == [[0, 1], [255, 1]]
    found = labels_of(tmp_path, "cvat_masks", unlabelled=FARM.names[5])
    assert found["JPEGImages/x/a.jpg"].tolist() == [[0, 1], [5, 1]]


def test_a_colour_of_no_class_fails_its_image_by_name(tmp_path: Path) -> None:
    write_masks(tmp_path, [[RED, (1, 2, 3)]], LABEL_MAP + "tarmac:1,2,3::\n")
    with pytest.raises(LabelError, match=r"SegmentationClass/x/a\.png.*1, 2, 3"):
        labels_of(tmp_path, "cvat_masks")


def test_a_mask_without_a_label_fails(tmp_path: Path) -> None:
    write_masks(tmp_path, [[BLACK, BLACK]])
    with pytest.raises(LabelError, match="every pixel"):
        labels_of(tmp_path, "cvat_masks")


def test_names_may_hold_colons_and_two_names_no_colour_together() -> None:
    assert colours_of("a:b:1,2,3::\n") == {(1, 2, 3): "a:b"}
    with pytest.raises(ConfigError, match="one colour for 'a' and 'b'"):
        colours_of("a:1,2,3::\nb:1,2,3::\n")
    with pytest.raises(ConfigError, match="has the line 'a,1,2'"):
        colours_of("a,1,2\n")
