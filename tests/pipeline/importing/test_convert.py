"""Imports of every layout, compared with the source's network: a small rewriting, or what the original package gave."""

import io
import json
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.tflite_graph import FloatGraph
from pipeline import classes
from pipeline.errors import ConfigError
from pipeline.importing import caffe, convert, lasagne, reader
from pipeline.importing.convert import ImportedCheckpoint, ImportOptions
from pipeline.importing.layouts.table import LAYOUT_BY_NAME, REFUSED, WEIGHTS_LAYOUTS
from pipeline.importing.reader import WeightsFile
from pipeline.models import checkpoint, zoo
from pipeline.models.backbones.efficientnet_lite import EfficientNetLite
from tests import ROOT
from tests.pipeline.importing.test_caffe import write
from tests.support import foreign_networks as foreign
from tests.support import tflite_files
from tests.support.examples import examples
from tests.support.foreign_networks import filled, image, seeded, shapes_of

CASES = {path.stem: json.loads(path.read_text()) for path in (ROOT / "tests/fixtures/import").glob("*.json")}
WIDTH = 4


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def imported(tensors: dict[str, Tensor], **wishes) -> ImportedCheckpoint:
    source = WeightsFile("weights.pth", "0" * 64, "torch", tensors, ())
    return convert.convert_weights(source, ImportOptions(**({"classes": "voc"} | wishes)))


def normalised(made: ImportedCheckpoint, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (made.card.mean, made.card.std))
    return (pixels - mean) / std


def scores(made: ImportedCheckpoint, pixels: Tensor, **changes) -> Tensor:
    """Of the imported network; `changes` are other options than those of its card."""
    card = made.card.model_copy(update={"options": made.card.options | changes})
    network = checkpoint.Checkpoint(card, made.state, "0" * 64).build()
    with torch.no_grad():
        return network(normalised(made, pixels))


def blobs_as_tensors(blobs: foreign.Blobs) -> dict[str, Tensor]:
    data = write({name: [one.numpy() for one in values] for name, values in blobs.items()}, old="conv1_1" in blobs)
    return reader.parse_weights(data, origin="a.caffemodel").tensors


def same(given: Tensor, wanted: Tensor) -> None:
    assert given.shape == wanted.shape
    assert wanted.std((2, 3)).mean() > 1e-3 * wanted.abs().max(), "the image must matter"
    torch.testing.assert_close(given, wanted, rtol=0, atol=2e-5 * wanted.abs().max().item())


def differs(given: Tensor, wanted: Tensor) -> bool:
    return (given - wanted).abs().max() > 1e-3 * wanted.abs().max()


# ---------------------------------------------------------------- what the original packages computed


def case(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor, int]:
    """Tensors, image, output and how many rows and columns of it were left out between two."""
    kept = CASES[name]
    output = torch.tensor(kept["output"]).reshape(1, *kept["output_shape"])
    return seeded(kept["shapes"]), image(*kept["size"]), output, kept["every"]


@pytest.mark.parametrize("name", sorted(name for name in CASES if name.startswith(("torchvision", "smp"))))
def test_an_import_computes_what_the_original_package_did(name: str) -> None:
    tensors, pixels, output, every = case(name)
    made = imported(tensors)
    assert name.startswith(made.layout.name)
    with torch.no_grad():
        given = made.build()(pixels)  # the packages were given the pixels as they are
    same(given[:, :, ::every, ::every], output)


@pytest.mark.parametrize(("name", "options"), [("resnet", {"multi_grid": None}), ("timm-xception", {})])
def test_a_backbone_computes_what_the_original_package_did(name: str, options: dict) -> None:
    tensors, pixels, output, _ = case(name)
    made = imported(tensors, options=options)
    assert made.layout.name == name
    with torch.no_grad():
        dense = made.build().backbone(pixels)[1]
    same(dense[:, :, ::2, ::2], output)  # at output stride 16; the package strides down to 32


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("vgg16", "deeplab_v1"), ("vgg16", "deeplab_v2"), ("vgg16", "fcn"), ("vgg16-bn", "segnet")],
)
def test_vgg_computes_what_torchvisions_did_in_every_network(name: str, architecture: str) -> None:
    tensors, x, output, _ = case(name)
    made = imported(tensors, architecture=architecture)
    network = made.build()
    with torch.no_grad():
        for index, stage in enumerate((network.encoder if name == "vgg16-bn" else network.backbone).stages[:4]):
            x = stage(x if index == 0 else nn.functional.max_pool2d(x, 2))
    same(x, output)


# ---------------------------------------------------------------- rewritten networks


FOREIGN = {
    ("vainf-deeplab-v3", 8): lambda: foreign.VainFV3(21, width=WIDTH, output_stride=8),
    ("vainf-deeplab-v3", 16): lambda: foreign.VainFV3(21, width=WIDTH, output_stride=16),
    ("vainf-deeplab-v3plus", 8): lambda: foreign.VainFV3Plus(21, width=WIDTH, output_stride=8),
    ("vainf-deeplab-v3plus", 16): lambda: foreign.VainFV3Plus(21, width=WIDTH, output_stride=16),
    ("jfzhang-deeplab-v3plus", 8): lambda: foreign.Jfzhang(21, width=WIDTH, output_stride=8),
    ("jfzhang-deeplab-v3plus", 16): lambda: foreign.Jfzhang(21, width=WIDTH, output_stride=16),
    ("jfzhang-deeplab-v3plus-xception", 16): lambda: foreign.Jfzhang(21, width=WIDTH, output_stride=16, xception=True),
    ("semseg-pspnet", 8): lambda: foreign.Semseg(21, width=WIDTH),
    ("espnet", 8): lambda: foreign.ESPNet(21, width=2 * WIDTH, image=False),
    ("espnet-c", 8): lambda: foreign.ESPNetC(21, width=2 * WIDTH),
    ("edgenets-espnetv2", 16): lambda: foreign.EdgeESPNetv2(21, scale=0.5),
    ("lednet", 8): lambda: foreign.LEDNet(21, width=2 * WIDTH),
    ("effseg-lednet", 8): lambda: foreign.LEDNetOfCollection(21, width=2 * WIDTH),
    ("kazuto-deeplab-v2", 8): lambda: foreign.KazutoV2(21, width=WIDTH),
    ("kazuto-deeplab-v3plus", 16): lambda: foreign.KazutoV3Plus(21, width=WIDTH),
    ("fasterseg-student", 32): lambda: foreign.FasterSeg(21, "student", scale=1 / 8),
    ("fasterseg-teacher", 32): lambda: foreign.FasterSeg(21, "teacher", scale=1 / 8),
    ("tensorflow-deeplab-v3", 16): lambda: foreign.TensorFlowV3(21, width=WIDTH, head=8),
}


def source_input(made: ImportedCheckpoint, pixels: Tensor) -> Tensor:
    """Pixels as the source gives them to its network."""
    if made.layout.name.startswith("kazuto"):
        return foreign.for_caffe(pixels)
    if made.layout.name.startswith("espnet"):
        return normalised(made, pixels).flip(1)
    return normalised(made, pixels)


@pytest.mark.parametrize(("layout", "output_stride"), FOREIGN)
@pytest.mark.parametrize("size", [(65, 97), (50, 71)], ids=str)
def test_an_import_computes_what_a_rewriting_of_its_source_does(layout: str, output_stride: int, size: tuple) -> None:
    network, pixels = filled(FOREIGN[layout, output_stride]()), image(*size)
    made = imported(network.state_dict(), output_stride=output_stride)
    assert made.layout.name == layout
    with torch.no_grad():
        wanted = network(source_input(made, pixels))
    given = scores(made, pixels)
    same(
        given, wanted[:, :, : given.size(2), : given.size(3)]
    )  # rounding up, a pooling may add a cell behind the border


CAFFE = {
    "large_fov": (lambda: foreign.fill(foreign.vgg_shapes(21, WIDTH, heads=("",), fc=64)), foreign.caffe_v1),
    "4x4": (
        lambda: foreign.fill(foreign.vgg_shapes(21, WIDTH, heads=("",), fc=256, kernel=4)),
        lambda blobs, pixels: foreign.caffe_v1(blobs, pixels, pad=6, hole=4, average=False),
    ),
    "msc": (
        lambda: foreign.fill(foreign.vgg_shapes(21, WIDTH, heads=("",), fc=64) | foreign.branch_shapes(21, WIDTH)),
        foreign.caffe_v1,
    ),
    "v2-vgg": (
        lambda: foreign.fill(foreign.vgg_shapes(21, WIDTH, heads=("_1", "_2", "_3", "_4"), fc=64)),
        foreign.caffe_v2_vgg,
    ),
    "v2-resnet": (lambda: foreign.fill_resnet(foreign.resnet_shapes(21, WIDTH)), foreign.caffe_v2_resnet),
    **{
        f"dilation-{data}": (
            partial(foreign.fill_dilation, 21, WIDTH, data),
            partial(foreign.caffe_dilation, data=data),
        )
        for data in foreign.DILATION_MEANS
    },
}


@pytest.mark.parametrize("name", CAFFE)
def test_a_caffemodel_computes_what_caffe_does_with_blue_green_red_from_0_to_255(name: str) -> None:
    make, compute = CAFFE[name]
    blobs, pixels = make(), image(65, 97)
    made = imported(blobs_as_tensors(blobs))
    same(scores(made, pixels), compute(blobs, pixels))


def npz(arrays: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, *arrays)
    return file.getvalue()


FRRN = partial(foreign.lasagne_frrn, base=6, lanes=4)
"""An eighth of the channels."""


@pytest.mark.parametrize("letter", ["a", "b"])
def test_an_npz_computes_what_lasagne_does_with_pixels_from_0_to_1(letter: str) -> None:
    network, pixels = FRRN(letter, 21), image(64, 96)
    made = imported(reader.parse_weights(npz(network.arrays), origin="frrn.npz").tensors)
    assert (made.layout.name, made.card.architecture) == (f"lasagne-frrn-{letter}", f"frrn_{letter}")
    assert (made.card.mean, made.card.std) == ((0, 0, 0), (1, 1, 1))
    assert made.card.options == {"width_multiplier": 1 / 8}
    assert len(made.used) == len(network.arrays)
    assert (made.unused, all(map(convert.is_counter, made.filled))) == ({}, True)
    given, wanted = scores(made, pixels), network(pixels)
    assert given.shape == wanted.shape
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize(("letter", "parameters"), [("a", 17_746_803), ("b", 24_755_699)])
def test_an_npz_of_the_real_size_fits_to_the_last_array(letter: str, parameters: int) -> None:
    arrays = foreign.lasagne_frrn(letter, 19, base=48, lanes=32).arrays
    made = imported(lasagne.named_tensors([torch.from_numpy(array) for array in arrays]), classes="cityscapes")
    assert len(made.used) == len(arrays)
    assert made.card.options == {}
    learnt = [name for name in made.used.values() if "running" not in name]
    assert sum(made.state[name].numel() for name in learnt) == parameters


UNSAID = {
    "torchvision-deeplab-v3": {"first_block": "own", "multi_grid": (1, 2, 4), "rates": (3, 6, 9)},
    "torchvision-fcn": {"first_block": "own"},
    "smp-deeplab-v3": {"first_block": "earlier", "multi_grid": (1, 2, 4), "rates": (12, 24, 36)},
    "smp-deeplab-v3plus": {"first_block": "earlier", "rates": (6, 12, 18), "align_corners": False},
}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name, options in UNSAID.items() for option in options])
def test_what_no_shape_tells_makes_a_difference(name: str, option: str) -> None:
    """The comparisons above would notice: the same weights under another convention give other scores."""
    made, pixels = imported(case(name)[0]), image(160, 224)
    assert differs(scores(made, pixels, **{option: UNSAID[name][option]}), scores(made, pixels))


UNSAID_IN_CAFFE = {"stride_in": "3x3", "first_block": "earlier", "ceil_pool": False, "head": "aspp_s"}


@pytest.mark.parametrize("option", UNSAID_IN_CAFFE)
def test_what_no_shape_of_a_caffemodel_tells_makes_a_difference(option: str) -> None:
    made = imported(blobs_as_tensors(CAFFE["v2-resnet"][0]()))
    pixels = image(64, 96)
    assert differs(scores(made, pixels, **{option: UNSAID_IN_CAFFE[option]}), scores(made, pixels))


@pytest.mark.parametrize(
    ("layout", "make"), [("esnet", foreign.ESNet), ("effseg-esnet", foreign.ESNetOfCollection)], ids=["esnet", "effseg"]
)
@pytest.mark.parametrize("size", [(64, 96), (48, 72)], ids=str)
def test_esnet_computes_what_a_rewriting_of_its_source_does_for_sides_of_multiples_of_8(layout, make, size) -> None:
    network, pixels = filled(make(21, width=2 * WIDTH)), image(*size)
    made = imported(network.state_dict())
    assert made.layout.name == layout
    with torch.no_grad():
        wanted = network(normalised(made, pixels))
    same(scores(made, pixels), wanted)


# ---------------------------------------------------------------- ESPNet


def espnet(classes: int = 12, *, image: bool = True, width: int = 2 * WIDTH, **more) -> foreign.ESPNet:
    return filled(foreign.ESPNet(classes, width=width, image=image, **more))


@pytest.mark.parametrize(
    ("mean", "std", "classes", "dropped"),
    [
        ((109.9, 108.1, 104.8), (71.7, 72.3, 69.6), 12, 11),
        ((72.3923, 82.9089, 73.1584), (45.3192, 46.1529, 44.9148), 20, 19),
    ],
    ids=["camvid", "cityscapes"],
)
def test_espnet_gets_the_statistics_of_its_training_images_and_is_given_red_green_blue(
    mean: tuple, std: tuple, classes: int, dropped: int
) -> None:
    """(x - mean) / std of blue, green, red from 0 to 255, then all of it by 255: train/Transforms.py."""
    network, pixels = espnet(classes), image(64, 96)
    with torch.no_grad():
        bgr = 255 * pixels.flip(1)
        means, stds = (torch.tensor(values)[:, None, None] for values in (mean, std))
        wanted = network((bgr - means) / stds / 255)
    made = imported(network.state_dict(), classes={11: "camvid", 19: "cityscapes"}[dropped], drop_scores=(dropped,))
    same(scores(made, pixels), wanted[:, :dropped])


@pytest.mark.parametrize(("classes", "parameters", "image"), [(12, 354_517, True), (20, 364_569, False)])
def test_espnet_of_the_real_size_fits_to_the_last_tensor(classes: int, parameters: int, image: bool, tmp_path) -> None:
    file = without_counters(full_size(lambda: foreign.ESPNet(classes, width=16, image=image, q=8)))
    assert len(file) == 189
    assert sum(one.numel() for name, one in file.items() if "running" not in name) == parameters
    made = imported(file, classes=map_of(classes, tmp_path))
    assert (len(made.used), made.unused) == (189, {})
    expected = {"p": 2, "q": 8, "fuse_image": image, "decoder_channels": classes}
    assert (made.card.architecture, made.card.options) == ("espnet", expected)


def test_espnetv2_of_the_real_size_fits_but_for_the_slopes_that_nothing_uses(tmp_path) -> None:
    """espnetv2_s_2.0_pascal_384x384.pth of the authors' EdgeNets."""
    file = without_counters(full_size(lambda: foreign.EdgeESPNetv2(21, scale=2.0)))
    assert sum(one.numel() for name, one in file.items() if "running" not in name) == 789_253
    made = imported(file)
    assert made.card.options == {"scale": 2.0, "decoder_channels": 16, "pyramid_channels": 10}
    assert sum(file[name].numel() for name in made.unused) == 96 + 128 + 256
    assert all(name.endswith("eesp.module_act.weight") for name in made.unused)


@pytest.mark.parametrize("scale", [0.5, 1.25])
def test_espnetv2_of_another_width_and_decoder_computes_what_the_source_does(scale: float, tmp_path) -> None:
    network, pixels = filled(foreign.EdgeESPNetv2(12, scale=scale, base=32)), image(64, 96)
    made = imported(network.state_dict(), classes="camvid", drop_scores=(11,))
    assert made.card.options == {"scale": scale, "decoder_channels": 32, "pyramid_channels": 6}
    with torch.no_grad():
        same(scores(made, pixels), network(normalised(made, pixels))[:, :11])


def map_of(classes: int, folder) -> str:
    path = folder / "numbered.yaml"
    path.write_text(
        "name: numbered\nclasses:\n" + "".join(f"- {{name: c{n}, colour: [{n}, 0, 0]}}\n" for n in range(classes))
    )
    return str(path)


@pytest.mark.parametrize("bands", [1, 4, 6])
def test_a_network_that_joins_the_image_to_its_features_is_widened_at_every_joint(bands: int, tmp_path) -> None:
    made = imported(espnet(12).state_dict(), classes=map_of(12, tmp_path))
    wide = convert.widen_input(made, bands)
    network = wide.build()
    assert network(torch.zeros(1, bands, 40, 40)).isfinite().all()
    joined = network.state_dict()["encoder.join1.0.running_mean"]
    assert len(joined) == 2 * WIDTH + bands
    if bands == 6:
        pixels = image(40, 48)
        same(scores(wide, pixels.repeat(1, 2, 1, 1)), scores(made, pixels))


def test_a_network_whose_first_filters_make_room_for_the_pooled_image_is_not_widened() -> None:
    made = imported(filled(foreign.LEDNet(21, width=2 * WIDTH)).state_dict())
    with pytest.raises(ConfigError, match=r"lednet of 3 bands cannot have 4: encoder\.0\.conv\.weight is 5x4x3x3"):
        convert.widen_input(made, 4)


@pytest.mark.parametrize(
    ("classes", "bgr_mean"),
    [(11, (109.9, 108.1, 104.8)), (19, (72.3923, 82.9089, 73.1584))],
    ids=["camvid", "cityscapes"],
)
def test_the_collections_lednet_gets_red_green_blue_less_the_mean_from_0_to_255(classes: int, bgr_mean: tuple) -> None:
    network, pixels = filled(foreign.LEDNetOfCollection(classes, width=2 * WIDTH)), image(64, 96)
    with torch.no_grad():
        wanted = network(255 * pixels - torch.tensor(bgr_mean[::-1])[:, None, None])
    same(scores(imported(network.state_dict(), classes={11: "camvid", 19: "cityscapes"}[classes]), pixels), wanted)


# ---------------------------------------------------------------- scores that are left out


@pytest.mark.parametrize("name", ["vainf-deeplab-v3", "espnet", "lednet"])
def test_the_others_keep_their_scores_when_one_is_left_out(name: str, tmp_path) -> None:
    made = FOREIGN.get((name, 16)) or FOREIGN[name, 8]
    tensors, pixels = filled(made()).state_dict(), image(64, 64)
    whole = imported(tensors)
    fewer = imported(tensors, classes=map_of(19, tmp_path), drop_scores=(0, 20))
    torch.testing.assert_close(scores(fewer, pixels), scores(whole, pixels)[:, 1:20])
    assert fewer.card.training["dropped_scores"] == [0, 20]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"drop_scores": (21,)}, "--drop-scores 21: the file has the scores 0 to 20"),
        ({"drop_scores": tuple(range(20))}, "--drop-scores leaves 1 of 21 scores"),
        ({"drop_scores": (3,)}, "the file has 20 classes, --classes voc has 21"),
    ],
)
def test_scores_that_cannot_be_left_out_are_refused(tensors: dict, wishes: dict, message: str) -> None:
    assert message in refusal(tensors, **wishes)
    assert "a backbone has no scores" in refusal(seeded(CASES["resnet"]["shapes"]), drop_scores=(1,))


# ---------------------------------------------------------------- names and sizes of the real ones


def unfolded(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of full size in the memory of one number each."""
    return {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else torch.ones(()).expand(size)
        for name, size in shapes.items()
    }


def full_size(make) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = make()
    return unfolded(shapes_of(network))


def without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not convert.is_counter(name)}


REAL = {
    "vainf-deeplab-v3": (lambda: foreign.VainFV3(21, width=64, output_stride=16), 362, 39_638_869),
    "vainf-deeplab-v3plus": (lambda: foreign.VainFV3Plus(21, width=64, output_stride=16), 368, 39_761_845),
    "vainf-deeplab-v3plus ": (
        lambda: foreign.VainFV3Plus(21, width=64, output_stride=16, depth=101),
        674,
        58_753_973,
    ),
    "tensorflow-deeplab-v3": (lambda: foreign.TensorFlowV3(21, width=32, head=256), 326, 2_113_557),
    "kazuto-deeplab-v2": (lambda: foreign.KazutoV2(21, width=64), 632, 44_048_532),
    "esnet": (lambda: foreign.ESNet(21, width=16), 279, 1_661_910),
    "effseg-esnet": (lambda: foreign.ESNetOfCollection(21, width=16), 277, 1_659_201),
    "lednet": (lambda: foreign.LEDNet(21, width=32), 547, 926_054),
    "effseg-lednet": (lambda: foreign.LEDNetOfCollection(21, width=32), 557, 917_911),
    "kazuto-deeplab-v3plus": (lambda: foreign.KazutoV3Plus(21, width=64), 680, 59_344_309),
    "jfzhang-deeplab-v3plus": (lambda: foreign.Jfzhang(21, width=64, output_stride=16), 680, 59_344_309),
    "jfzhang-deeplab-v3plus-xception": (
        lambda: foreign.Jfzhang(21, width=64, output_stride=16, xception=True),
        848,
        54_705_317,
    ),
}
"""Tensors and parameters of the originals."""


@pytest.mark.parametrize("layout", REAL)
def test_a_state_dict_of_the_real_size_fits_to_the_last_tensor(layout: str) -> None:
    make, count, parameters = REAL[layout]
    file = full_size(make)
    assert len(file) == count
    assert sum(one.numel() for name, one in file.items() if "running" not in name and one.dim()) == parameters
    made = imported(file)
    assert made.layout.name == layout.strip()
    assert (len(made.used), made.unused, made.filled) == (count, {}, ())
    assert (
        not {"width_multiplier", "aspp_channels", "low_level_channels", "decoder_channels"} & made.card.options.keys()
    )


@pytest.mark.parametrize(
    ("variant", "shared", "attention", "parameters"),
    [("student", 3, 32_768, 4_385_689), ("teacher", 4, 73_728, 23_524_137)],
)
def test_fasterseg_of_the_real_size_fits_but_for_its_attention_and_second_names(
    variant: str, shared: int, attention: int, parameters: int
) -> None:
    file = full_size(lambda: foreign.FasterSeg(19, variant, scale=1))
    made = imported(file, classes="cityscapes")
    assert made.layout.name == f"fasterseg-{variant}"
    assert made.card.options == {"variant": variant}
    assert made.filled == ()
    copies = {name for name, why in made.unused.items() if why.startswith("equal to")}
    assert {name.partition(".")[2].partition(".")[0] for name in copies} == {f"{n}-1" for n in range(shared)}
    rest = made.unused.keys() - copies
    assert rest == {f"ffm.channel_attention.{n}.conv.weight" for n in (1, 2)}
    assert sum(file[name].numel() for name in rest) == attention
    counted = [name for name in made.used if "running" not in name and file[name].dim()]
    assert sum(file[name].numel() for name in counted) + attention == parameters


def test_fasterseg_without_scores_of_training_is_read_and_second_names_must_repeat_the_first() -> None:
    network = filled(foreign.FasterSeg(21, "student", scale=1 / 8))
    file = network.state_dict()
    inference = {name: tensor for name, tensor in file.items() if not name.startswith(("heads16.", "heads32."))}
    made, pixels = imported(inference), image(64, 96)
    assert made.card.options == {"variant": "student", "width_multiplier": 1 / 8, "aux": False}
    with torch.no_grad():
        same(scores(made, pixels), network(normalised(made, pixels)))
    name = "cells.1-1._op._op.bn2.weight"
    said = refusal(file | {name: file[name] + 1})
    assert f"other values: {name} is not equal to cells.1-0._op._op.bn2.weight, which it repeats" in said


def test_files_of_before_there_were_counters_get_them() -> None:
    old = without_counters(full_size(lambda: foreign.KazutoV2(21, width=64)))
    made = imported(old)
    assert len(made.used) == len(old) == 632 - 104
    assert len(made.filled) == 104
    assert all(convert.is_counter(name) and made.state[name] == 0 for name in made.filled)


def test_a_narrow_network_of_tensorflow_rounds_its_channels_to_whole_numbers_but_not_its_head() -> None:
    """deeplabv3_mnv2_dm05_pascal: 697,013 parameters."""
    file = full_size(lambda: foreign.TensorFlowV3(21, width=16, head=256))
    made = imported(file)
    options = {"width_multiplier": 0.5, "channels_multiple": 1, "aspp_channels": 256}
    assert options.items() <= made.card.options.items()
    assert (
        sum(tensor.numel() for name, tensor in made.state.items() if "running" not in name and tensor.dim()) == 697_013
    )


@pytest.mark.parametrize("size", [(65, 97), (33, 129)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_tflite_computes_what_its_graph_does_in_float32(size: tuple, seed: int) -> None:
    """At sides of a multiple of 16 plus one, where TensorFlow pads both ends alike."""
    data = tflite_files.deeplab(0.125, head=8, seed=seed)
    made, graph = imported(reader.parse_weights(data, origin="a.tflite").tensors), FloatGraph(data)
    assert (made.layout.name, made.unused) == ("tflite-deeplab-v3", {})
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    logits = scores(made, torch.tensor(pixels).permute(2, 0, 1)[None] / 255)
    full = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
    same(full, graph(graph.normalised(pixels)))


def test_folded_batch_norm_is_filled_in_as_the_identity_and_said() -> None:
    made = imported(reader.parse_weights(tflite_files.deeplab(0.125, head=8), origin="a.tflite").tensors)
    statistics = {name for name in made.filled if not convert.is_counter(name)}
    assert statistics == {
        name
        for name in made.state
        if name.endswith(("running_mean", "running_var")) or (name.endswith(".weight") and made.state[name].dim() == 1)
    }
    assert any("train on with --batch-norm frozen" in note for note in made.notes)
    norm = made.build().backbone.features[0][1]
    x = torch.randn(1, norm.num_features, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), x + norm.bias[:, None, None], rtol=0, atol=1e-6)


def test_a_folded_file_that_lacks_a_bias_is_refused() -> None:
    tensors = reader.parse_weights(tflite_files.deeplab(0.125, head=8), origin="a.tflite").tensors
    del tensors["aspp0.bias"]
    assert "missing: context.aspp.branches.0.1.bias 8" in refusal(tensors)


def test_means_and_deviations_that_are_said_win() -> None:
    file = seeded(CASES["resnet"]["shapes"])
    made = imported(file, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert (made.card.mean, made.card.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert "mean has 1 values for 3 channels" in refusal(file, mean=(0.5,))


@pytest.mark.parametrize("shared", [(), ("res075", "res05")])
def test_a_caffemodel_of_the_real_size_fits_to_the_last_blob(shared: tuple) -> None:
    shapes = foreign.resnet_shapes(21, 64)
    blobs = {name: [torch.ones(()).expand(size) for size in sizes] for name, sizes in shapes.items()}
    blobs |= {f"{name}_{scale}": blobs[name] for scale in shared for name in ("conv1", "bn_conv1", "scale_conv1")}
    made = imported(caffe.named_tensors(blobs))
    assert made.layout.name == "caffe-deeplab-v2-resnet"
    assert made.card.options.get("msc", False) is bool(shared)
    assert len(made.used) == 104 * 5 + 8
    assert len(made.unused) == len(shared) * 5
    assert all("copy of the weights" in why for why in made.unused.values())


DILATION = {
    "voc": (32 + 16, 141_149_720, 21, "voc"),
    "camvid": (32 + 16, 134_313_443, 11, "camvid"),
    "kitti": (32 + 14, 134_313_443 - (9 * 11 + 1) * 11, 11, "camvid"),
    "cityscapes": (32 + 20, 134_368_179, 19, "cityscapes"),
    "front": (32, 134_346_581, 21, "voc"),
}
"""Blobs of the front end and of the context module, their numbers, and the classes."""


@pytest.mark.parametrize("data", DILATION)
def test_a_caffemodel_of_dilation_of_the_real_size_fits_to_the_last_blob(data: str) -> None:
    count, parameters, num_classes, class_map = DILATION[data]
    shapes = foreign.dilation_shapes(num_classes, 64, data)
    blobs = {name: [torch.ones(()).expand(size) for size in sizes] for name, sizes in shapes.items()}
    if data == "cityscapes":
        blobs["ctx_upsample"] = foreign.fill_dilation(19, 1, data)["ctx_upsample"]
    made = imported(caffe.named_tensors(blobs), classes=class_map)
    assert made.layout.name == f"caffe-dilation-{data}"
    assert len(made.used) == count
    assert sum(tensor.numel() for tensor in made.state.values()) == parameters
    assert made.unused == ({"ctx_upsample.weight": "a fixed bilinear interpolation"} if data == "cityscapes" else {})
    assert made.filled == ()


def test_a_learnt_deconvolution_of_dilation_is_refused() -> None:
    blobs = foreign.fill_dilation(21, WIDTH, "cityscapes")
    blobs["ctx_upsample"][0][3, 0, 8, 8] += 0.1
    assert "ctx_upsample.weight is not the bilinear interpolation by 8" in refusal(blobs_as_tensors(blobs))


def test_the_coco_initialisation_of_deeplab_pytorch_becomes_a_backbone() -> None:
    network = filled(foreign.kazuto_init(91, width=WIDTH))
    made = imported(network.state_dict())
    assert made.layout.name == "kazuto-init"
    assert made.unused == {"fc.weight": "the classifier of a backbone", "fc.bias": "the classifier of a backbone"}
    assert made.card.options["backbone"] == "resnet101"
    assert {name.split(".")[0] for name in made.filled} == {"head"}
    pixels = image(65, 97)
    with torch.no_grad():
        wanted = network[:-1](foreign.for_caffe(pixels))
        same(made.build().backbone(normalised(made, pixels))[1], wanted)


def test_blue_green_red_is_turned_around_in_every_network() -> None:
    file = filled(foreign.kazuto_init(91, width=WIDTH)).state_dict()
    turned = file["layer1.conv1.conv.weight"].flip(1)
    for architecture, name in (("deeplab_v2", "backbone.conv1.weight"), ("unet_resnet", "encoder.conv1.weight")):
        made = imported(file, architecture=architecture)
        assert torch.equal(made.state[name], turned)
        assert convert.widen_input(made, 5).state[name].shape == (WIDTH, 5, 7, 7)


def test_plain_vgg_of_caffe_becomes_a_backbone() -> None:
    shapes = foreign.vgg_shapes(21, 8, heads=(), fc=0) | {"fc6": [(64, 8 * 49 * 8)], "fc8": [(1000, 64)]}
    made = imported(blobs_as_tensors(foreign.fill(shapes)))
    assert (made.layout.name, made.card.architecture) == ("caffe-vgg16", "deeplab_v1")
    assert set(made.unused) == {"fc6.weight", "fc8.weight"}


def test_mobilenet_v2_fits_by_name() -> None:
    network = zoo.build_network("deeplab_v3plus", 21, backbone="mobilenet_v2")
    file = {name.removeprefix("backbone."): one for name, one in network.state_dict().items() if "backbone" in name}
    file |= {"features.18.0.weight": torch.ones(1280, 320, 1, 1), "classifier.1.weight": torch.ones(1000, 1280)}
    made = imported(file)
    assert made.layout.name == "mobilenet-v2"
    assert made.card.options == {"backbone": "mobilenet_v2"}
    assert set(made.unused) == {"features.18.0.weight", "classifier.1.weight"}


# ENet: its sources round down where ours rounds up, so sides are multiples of 8

ENETS = {
    "davidtvs-enet": lambda **more: foreign.DavidtvsENet(11, **more),
    "davidtvs-enet-prelu": lambda **more: foreign.DavidtvsENet(11, old=True, **more),
    "iarunava-enet": lambda **more: foreign.ArunavaENet(11, **more),
}


@pytest.mark.parametrize("layout", ENETS)
@pytest.mark.parametrize("width", [8, 16])
def test_an_enet_computes_what_its_source_does(layout: str, width: int) -> None:
    network, pixels = filled(ENETS[layout](width=width)), image(48, 72)
    made = imported(network.state_dict(), classes="camvid")
    assert made.layout.name == layout
    assert made.card.mean == (0, 0, 0)
    assert made.card.std == (1, 1, 1)
    with torch.no_grad():
        wanted = network(pixels)
    same(scores(made, pixels), wanted)


@pytest.mark.parametrize("encoder_relu", [False, True])
@pytest.mark.parametrize("decoder_relu", [False, True])
def test_slopes_in_a_file_say_where_davidtvs_has_relu(encoder_relu: bool, decoder_relu: bool) -> None:
    network, pixels = (
        foreign.DavidtvsENet(11, width=8, encoder_relu=encoder_relu, decoder_relu=decoder_relu),
        image(16, 24),
    )
    made = imported(filled(network).state_dict(), classes="camvid")
    with torch.no_grad():
        same(scores(made, pixels), network(pixels))


def test_a_slope_that_differs_where_iarunava_has_one_is_refused() -> None:
    tensors = filled(ENETS["iarunava-enet"](width=8)).state_dict()
    assert "prelu1.weight" in str(imported(tensors, classes="camvid").unused)
    tensors["b11.prelu1.weight"] = torch.ones(1)
    assert "other values: b11.prelu1.weight is not equal to b11.prelu3.weight" in refusal(tensors, classes="camvid")


def test_the_score_of_unlabelled_is_left_out_of_a_transposed_convolution() -> None:
    network, pixels = filled(foreign.ArunavaENet(12, width=8)), image(16, 24)
    made = imported(network.state_dict(), classes="camvid", drop_scores=(11,))
    with torch.no_grad():
        same(scores(made, pixels), network(pixels)[:, :11])


@pytest.mark.parametrize("bands", [1, 6])
def test_an_enet_of_equal_bands_gives_what_three_gave(bands: int) -> None:
    made = imported(filled(foreign.DavidtvsENet(11, width=8)).state_dict(), classes="camvid")
    grey, wide = image(16, 24)[:, :1], convert.widen_input(made, bands)
    with torch.no_grad():
        given, wanted = wide.build()(grey.expand(-1, bands, -1, -1)), made.build()(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


# ---------------------------------------------------------------- the account


@pytest.mark.parametrize("number", foreign.LITE_BLOCKS)
@pytest.mark.parametrize("architecture", ["deeplab_v3", "deeplab_v3plus", "unet_resnet"])
def test_efficientnet_lite_computes_what_its_rewriting_does_in_every_network(number: int, architecture: str) -> None:
    file = seeded(foreign.lite_shapes(number))
    made = imported(file, architecture=architecture)
    assert made.card.options == {"backbone": f"efficientnet_lite{number}"}
    network = made.build()
    backbone = network.encoder if architecture == "unet_resnet" else network.backbone
    # At output stride 16 the last stages keep their grid: only stride 32 is the file's.
    classifier = EfficientNetLite(number, in_channels=3, output_stride=32).eval()
    classifier.load_state_dict(backbone.state_dict())
    pixels = image(97, 65)
    with torch.no_grad():
        same(classifier(normalised(made, pixels))[1], foreign.lite_features(file, number, pixels))


def test_an_efficientnet_lite_of_another_size_is_refused() -> None:
    file = {name: tensor for name, tensor in seeded(foreign.lite_shapes(1)).items() if "_blocks.20" not in name}
    with pytest.raises(ConfigError, match="no EfficientNet-Lite has 20 blocks and 192 channels"):
        imported(file)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return seeded(CASES["torchvision-fcn"]["shapes"])


def refusal(tensors: dict[str, Tensor], **wishes) -> str:
    with pytest.raises(ConfigError) as caught:
        imported(tensors, **wishes)
    return str(caught.value)


def test_every_tensor_is_used_or_has_a_reason() -> None:
    for name in CASES:
        file = seeded(CASES[name]["shapes"])
        made = imported(file)
        assert set(made.used) | set(made.unused) == set(file)
        assert not set(made.used) & set(made.unused)
        assert set(made.used.values()) | set(made.filled) == set(made.state)
        assert all(made.unused.values())


def test_missing_unknown_misshapen_and_infinite_tensors_are_each_named(tensors: dict) -> None:
    broken = dict(tensors)
    del broken["backbone.layer2.0.bn1.bias"]
    broken["backbone.layer2.0.conv2.weight"] = torch.ones(8, 8, 1, 1)
    broken["backbone.layer9.weight"] = torch.ones(2, 3)
    broken["stranger"] = torch.ones(())
    broken["classifier.4.bias"] = torch.full((21,), torch.nan)
    said = refusal(broken)
    assert "missing: backbone.layer2.0.bn1.bias 8" in said
    assert "other shape: backbone.layer2.0.conv2.weight is 8x8x1x1, backbone.layer2.0.conv2.weight is 8x8x3x3" in said
    assert "missing: backbone.layer2.0.conv2.weight 8x8x3x3" in said
    assert "unknown: backbone.layer9.weight 2x3" in said
    assert "unknown: stranger scalar" in said
    assert "not finite: classifier.4.bias" in said


def test_a_long_list_is_cut_and_counted(tensors: dict) -> None:
    said = refusal(tensors | {f"stranger{number}": torch.ones(1) for number in range(100)})
    assert said.count("unknown: ") == convert._SHOWN
    assert "... and 60 more" in said


def test_a_backbone_with_a_hole_is_refused(tensors: dict) -> None:
    file = seeded(CASES["resnet"]["shapes"])
    del file["layer3.2.conv1.weight"]
    assert "5 blocks" in refusal(file)
    file = seeded(CASES["resnet"]["shapes"])
    del file["layer3.2.conv2.weight"]
    assert "missing: backbone.layer3.2.conv2.weight" in refusal(file)


@examples(50)
@given(st.data())
def test_tensors_of_the_right_names_and_any_shapes_are_converted_or_refused(data) -> None:
    """And one or two of them are missing."""
    shapes = dict(CASES[data.draw(st.sampled_from(sorted(CASES)))]["shapes"])
    for name in data.draw(st.lists(st.sampled_from(sorted(shapes)), max_size=2)):
        shapes.pop(name, None)
    changed = data.draw(st.sampled_from(sorted(shapes)[:12] + sorted(shapes)[-12:]))
    shapes[changed] = data.draw(st.lists(st.integers(0, 300), max_size=5))
    with suppress(ConfigError):
        made = imported(unfolded(shapes))
        assert made.state.keys() == checkpoint.blank(made.card).state_dict().keys()


def test_recognition_says_what_a_layout_lacks(tensors: dict) -> None:
    assert "it has no encoder.conv1.weight" in refusal(tensors, layout="smp-unet")
    assert "known: auto, torchvision-deeplab-v3" in refusal(tensors, layout="keras")
    assert "no known layout among 2 tensors" in refusal({"a": torch.ones(1), "b": torch.ones(1)})


@pytest.mark.parametrize("reason", REFUSED)
def test_known_files_that_fit_nothing_are_refused_with_the_reason(reason: str) -> None:
    assert refusal({name: torch.ones(1) for name in REFUSED[reason]}) == reason


def test_no_file_is_of_two_layouts() -> None:
    files = {name: seeded(one["shapes"]) for name, one in CASES.items()}
    files |= {f"{layout}-{stride}": filled(make()).state_dict() for (layout, stride), make in FOREIGN.items()}
    files |= {"esnet": filled(foreign.ESNet(21, width=8)).state_dict()}
    files |= {"effseg-esnet": filled(foreign.ESNetOfCollection(21, width=8)).state_dict()}
    files["tflite"] = reader.parse_weights(tflite_files.deeplab(0.125, head=8), origin="a.tflite").tensors
    files |= {name: filled(make(width=8)).state_dict() for name, make in ENETS.items()}
    files |= {f"caffe-{name}": blobs_as_tensors(make()) for name, (make, _) in CAFFE.items()}
    for letter in ("a", "b"):
        arrays = [torch.from_numpy(array) for array in FRRN(letter, 21).arrays]
        files[f"lasagne-frrn-{letter}"] = lasagne.named_tensors(arrays)
    for name, file in files.items():
        fits = []
        for layout in WEIGHTS_LAYOUTS:
            try:
                fits.append(convert.recognise(file, layout.name)[0].name)
            except ConfigError:
                continue
        assert len(fits) == 1, f"{name}: {fits}"


def test_names_of_layouts_are_their_own() -> None:
    assert len(LAYOUT_BY_NAME) == len(WEIGHTS_LAYOUTS)


def test_older_files_of_smp_number_their_decoder() -> None:
    file = seeded(CASES["smp-deeplab-v3"]["shapes"])
    pairs = (("decoder.aspp.", "decoder.0."), ("decoder.conv.", "decoder.1."), ("decoder.bn.", "decoder.2."))
    old = {}
    for name, tensor in file.items():
        new, before = next((pair for pair in pairs if name.startswith(pair[0])), ("", ""))
        old[before + name.removeprefix(new)] = tensor
    assert old.keys() != file.keys()
    one, other = imported(old), imported(file)
    assert all(torch.equal(one.state[name], other.state[name]) for name in other.state)


def test_older_files_of_deeplab_pytorch_have_other_names_for_three_parts() -> None:
    """convert.py there, as of 2018."""
    file = filled(foreign.KazutoV2(21, width=WIDTH)).state_dict()
    parts = (("base.aspp.", "base.aspp.stages."), (".shortcut.", ".proj."), ("base.", "scale."))
    old = {}
    for name, tensor in file.items():
        for new, before in parts:
            name = name.replace(new, before)
        old[name] = tensor
    one, other = imported(old), imported(file)
    assert all(torch.equal(one.state[name], other.state[name]) for name in other.state)


# ---------------------------------------------------------------- what a person says


def test_a_number_of_classes_is_guessed_and_said_or_asked_for(tensors: dict) -> None:
    made = imported(tensors, classes=None)
    assert made.card.classes == classes.load_class_map("voc")
    assert any("21 classes were guessed to be those of voc" in note for note in made.notes)
    fewer = {
        name: one[:7] if name.endswith("classifier.4.weight") or name.endswith("classifier.4.bias") else one
        for name, one in tensors.items()
    }
    assert "the file has 7 unnamed classes" in refusal(fewer, classes=None)
    assert imported(fewer, classes="farmland").card.classes.name == "farmland"
    assert "the file has 7 classes, --classes voc has 21" in refusal(fewer, classes="voc")
    assert "a backbone has no classes" in refusal(seeded(CASES["resnet"]["shapes"]), classes=None)


def test_options_that_are_said_win_and_are_checked(tensors: dict) -> None:
    assert imported(tensors, options={"first_block": "own"}).card.options["first_block"] == "own"
    assert "known:" in refusal(tensors, options={"colour": "blue"})
    assert "is fcn_dilated" in refusal(tensors, architecture="unet")


def test_smp_keeps_its_rates_at_every_output_stride() -> None:
    file = seeded(CASES["smp-deeplab-v3"]["shapes"])
    dense, coarse = imported(file), imported(file, output_stride=16)
    for made in (dense, coarse):
        branches = made.build().context.aspp.branches
        assert [one[0].dilation[0] for one in branches[1:]] == [12, 24, 36]


def test_a_seed_gives_the_same_head_each_time_and_leaves_torchs_own_alone() -> None:
    file = seeded(CASES["resnet"]["shapes"])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = imported(file), imported(file), imported(file, seed=1)
    assert torch.rand(1) == expected
    assert torch.equal(first.state["logits.weight"], again.state["logits.weight"])
    assert not torch.equal(first.state["logits.weight"], other.state["logits.weight"])
    assert torch.equal(first.state["backbone.conv1.weight"], file["conv1.weight"])
    assert "filled from seed 0" in first.card.training["untrained"]


@pytest.mark.parametrize("architecture", ["deeplab_v3", "deeplab_v3plus", "fcn_dilated", "unet_resnet"])
def test_a_resnet_begins_any_network_that_has_one(architecture: str) -> None:
    file = seeded(CASES["resnet"]["shapes"])
    made = imported(file, architecture=architecture)
    encoder = made.build()
    encoder = encoder.encoder if hasattr(encoder, "encoder") else encoder.backbone
    assert torch.equal(encoder.layer4[2].conv3.weight, file["layer4.2.conv3.weight"])


@pytest.mark.parametrize("name", ["resnet", "smp-unet"])
@pytest.mark.parametrize("bands", [1, 2, 3, 5, 16])
def test_equal_bands_give_what_three_gave_when_a_network_is_widened(name: str, bands: int) -> None:
    made = imported(seeded(CASES[name]["shapes"]))
    wide = convert.widen_input(made, bands)
    assert wide.card.in_channels == bands == len(wide.card.mean) == len(wide.card.channels)
    grey = torch.rand(1, 1, 64, 64)
    if bands in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(
                wide.build()(grey.expand(-1, bands, -1, -1)), made.build()(grey.expand(-1, 3, -1, -1))
            )
    else:
        assert wide.build()(grey.expand(-1, bands, -1, -1)).isfinite().all()


def test_a_network_of_more_bands_than_three_is_not_widened_again() -> None:
    made = convert.widen_input(imported(seeded(CASES["resnet"]["shapes"])), 5)
    with pytest.raises(ConfigError, match="5 bands cannot become 4"):
        convert.widen_input(made, 4)


def test_a_file_of_four_bands_keeps_them() -> None:
    file = seeded(CASES["smp-unet"]["shapes"])
    file["encoder.conv1.weight"] = torch.ones(4, 4, 7, 7)
    made = imported(file)
    assert made.card.in_channels == 4
    assert made.card.channels == ("red", "green", "blue", "band 4")


@pytest.mark.parametrize("bands", [0, 17])
def test_a_file_of_more_bands_than_a_network_can_have_is_refused(bands: int) -> None:
    file = seeded(CASES["smp-unet"]["shapes"])
    file["encoder.conv1.weight"] = torch.ones(4, bands, 7, 7)
    assert f"takes {bands} bands" in refusal(file)


@pytest.mark.parametrize(
    "wishes", [{"output_stride": -8}, {"options": {"num_classes": 3}}, {"options": {"aux": {1, 2}}}]
)
def test_wishes_that_make_no_card_are_refused(tensors: dict, wishes: dict) -> None:
    assert "the card of weights.pth" in refusal(tensors, **wishes)


def test_half_precision_stays_and_double_becomes_single() -> None:
    file = seeded(CASES["resnet"]["shapes"])
    assert imported({n: t.half() for n, t in file.items()}).state["backbone.conv1.weight"].dtype == torch.float16
    assert imported({n: t.double() for n, t in file.items()}).state["backbone.conv1.weight"].dtype == torch.float32


# ---------------------------------------------------------------- one score, for a sigmoid

ONE_SCORE = {
    "vainf-deeplab-v3": lambda: foreign.VainFV3(1, width=WIDTH, output_stride=16),
    "vainf-deeplab-v3plus": lambda: foreign.VainFV3Plus(1, width=WIDTH, output_stride=16),
    "jfzhang-deeplab-v3plus": lambda: foreign.Jfzhang(1, width=WIDTH, output_stride=16),
    "semseg-pspnet": lambda: foreign.Semseg(1, width=WIDTH),
    "kazuto-deeplab-v2": lambda: foreign.KazutoV2(1, width=WIDTH),
    "kazuto-deeplab-v3plus": lambda: foreign.KazutoV3Plus(1, width=WIDTH),
    "fasterseg-student": lambda: foreign.FasterSeg(1, "student", scale=1 / 8),
}


@pytest.fixture
def two_classes(tmp_path) -> str:
    path = tmp_path / "road.yaml"
    path.write_text(
        "name: road\nclasses:\n- {name: other, colour: [0, 0, 0]}\n- {name: road, colour: [255, 255, 255]}\n"
    )
    return str(path)


@pytest.mark.parametrize("name", ONE_SCORE)
def test_softmax_over_two_classes_is_the_sigmoid_of_a_files_one_score(name: str, two_classes: str) -> None:
    network = filled(ONE_SCORE[name]())
    made = imported(network.state_dict(), classes=two_classes)
    assert (made.layout.name, made.scores) == (name, 1)
    pixels = image(65, 97)
    with torch.no_grad():
        pixels_there = foreign.for_caffe(pixels) if name.startswith("kazuto") else normalised(made, pixels)
        score = network(pixels_there)
    logits = scores(made, pixels)
    assert torch.equal(logits[:, :1], torch.zeros_like(score))
    same(logits[:, 1:], score)
    torch.testing.assert_close(logits.softmax(1)[:, 1:], score.sigmoid(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(name for name in CASES if name.startswith(("torchvision", "smp"))))
def test_every_layout_of_a_whole_network_can_have_one_score(name: str, two_classes: str) -> None:
    file = {
        name: tensor[:1] if tensor.dim() and len(tensor) == 21 else tensor
        for name, tensor in seeded(CASES[name]["shapes"]).items()
    }
    made = imported(file, classes=two_classes)
    assert "class 1 (road) has that score, class 0 (other) the score 0" in made.notes[0]
    assert set(made.used) | set(made.unused) == set(file)
    logits = scores(made, image(64, 64))
    assert logits[:, 0].abs().max() == 0 < logits[:, 1].std()


def test_one_score_needs_a_map_of_two_classes(tensors: dict) -> None:
    one = {name: tensor[:1] if tensor.dim() and len(tensor) == 21 else tensor for name, tensor in tensors.items()}
    assert "one score per pixel, as for a sigmoid; --classes voc has 21 classes" in refusal(one)
    assert "one score per pixel, as for a sigmoid; --classes is unset" in refusal(one, classes=None)
