"""benchmarks.codecs: both sides give the same pixels and masks; the figures themselves are not tested."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from benchmarks import codecs
from benchmarks.densecrf import pictures
from pipeline.image import decode, encode
from pipeline.models.card import load_card

CLASSES = load_card("farmland").classes
(PIXELS,) = pictures(None, 1, 48, 64)


def test_as_before_every_photo_is_decoded_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda file: (loaded.append(file), load(file))[1])
    for name, data in codecs.photo_kinds(PIXELS).items():
        this = decode.decode_image(data, codecs.CFG)
        assert not loaded, name
        with codecs.as_before():
            other = decode.decode_image(data, codecs.CFG)
        assert loaded
        loaded.clear()
        np.testing.assert_array_equal(this.pixels_hwc, other.pixels_hwc)
        assert this.orientation == other.orientation == (6 if name == "turned" else 1)


def test_as_before_a_mask_is_written_at_level_one() -> None:
    mask_hw = codecs.network_answer(PIXELS).mask_hw
    assert mask_hw.shape == (48, 64)
    assert len(np.unique(mask_hw)) > 2
    this = encode.mask_png(mask_hw, CLASSES)
    with codecs.as_before():
        other = encode.mask_png(mask_hw, CLASSES)
    assert this != other
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(this))), np.asarray(Image.open(io.BytesIO(other))))


def test_a_side_is_as_fast_as_itself_and_twice_the_work_takes_longer() -> None:
    values = np.random.default_rng(0).random(200_000)
    assert 0.5 < codecs.ratio(lambda: np.sort(values), lambda: np.sort(values), 9) < 2
    assert codecs.ratio(lambda: [np.sort(values) for _ in range(8)], lambda: np.sort(values), 9) > 3


@pytest.mark.parametrize("engine", codecs.ENGINES)
def test_a_photo_is_decoded_behind_the_network_only_for_an_engine(engine: str) -> None:
    _, scored = codecs.refine_stage(PIXELS, engine)
    assert bool(scored.item.data) == (engine == "native")


def test_one_json_line_comes_out(capsys) -> None:
    assert codecs.main(["--sizes", "48x64", "--repeats", "3"]) == 0
    figures = json.loads(capsys.readouterr().out)["64x48"]
    assert figures.keys() == {"decode", "mask", "maps", "image", "sending"}
    assert figures["image"]["none"].keys() == {"image", "decode_share", "encode_share"}
    assert figures["sending"]["bytes"] > 1
