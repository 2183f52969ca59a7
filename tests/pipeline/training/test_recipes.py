from functools import cache

import numpy as np
import pytest
import torch
import yaml

from pipeline import classes as class_maps
from pipeline.models import zoo
from pipeline.training import losses, optimiser, schedule
from pipeline.training.config import LossConfig, OptimiseConfig, ScheduleConfig, TrainConfig, WeakConfig
from tests import ROOT

FOLDER = ROOT / "jobs/configs/train"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DOCS = FOLDER.parents[2] / "docs/recipes.md"
VOC = {"dilation", "deeplab_v1", "deeplab_v2", "deeplab_v3", "deeplab_v3_coco", "deeplab_v3plus", "espnetv2", "fcn"}
MEGABYTES = 15


@cache
def recipe(name: str) -> TrainConfig:
    said = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return TrainConfig.model_validate({"data": "data", "output": "run"} | said)


def network(cfg: TrainConfig, num_classes: int = 21, **more):
    said = cfg.network
    return zoo.build_network(said.name, num_classes, output_stride=said.output_stride, **said.options | more)


def rate(name: str, step: int, *, phase: int = 0) -> float:
    cfg = recipe(name).phases()[phase]
    return cfg.optimise.lr * schedule.lr_factor(step, cfg.schedule)


@pytest.mark.parametrize("name", RECIPES)
def test_every_phase_of_a_recipe_has_a_network(name):
    for cfg in recipe(name).phases():
        with torch.device("meta"):
            built = network(cfg)
        assert not cfg.loss.branches or cfg.loss.branches.keys() == built.loss_weights.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_command_says_is_not_in_a_recipe(name):
    said = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert not said.keys() & {"data", "output", "runtime"}
    assert "initial" not in said["network"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_it_comes_from_and_the_docs_list_it(name):
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")
    assert f"`{name}.yaml`" in DOCS.read_text()


def test_the_docs_list_no_recipe_that_is_not_there():
    listed = {line.split("`")[1] for line in DOCS.read_text().splitlines() if line.startswith("| `")}
    assert listed == {f"{name}.yaml" for name in RECIPES}


@pytest.mark.parametrize("name", sorted(VOC))
def test_hard_classes_are_classes_of_voc(name):
    assert set(recipe(name).sample.hard_classes) <= set(class_maps.load_class_map("voc").names)


# Written down from the papers a second time.
# A field that a paper leaves open is not here; the recipe says what it takes instead.
PAPERS = {
    # Chen 2014, arXiv 1412.7062, sec. 5, "Training"; the crop and the steps of the authors' train.prototxt and solver.
    "deeplab_v1": {"batch": 20, "crop": 321, "momentum": 0.9, "decay": 0.0005, "scale": (1, 1), "steps": 6000},
    # Chen 2016, arXiv 1606.00915, sec. 4.1; crop and scales of sec. 4.1.2.
    "deeplab_v2": {"batch": 10, "crop": 321, "momentum": 0.9, "decay": 0.0005, "scale": (0.5, 1.5), "steps": 20_000},
    # Chen 2017, arXiv 1706.05587, sec. 4.1: 30 000 steps at output stride 16.
    "deeplab_v3": {"batch": 16, "crop": 513, "scale": (0.5, 2.0), "steps": 30_000, "output_stride": 16},
    "deeplab_v3_coco": {"batch": 16, "crop": 513, "scale": (0.5, 2.0), "output_stride": 16},
    # Chen 2018, arXiv 1802.02611, sec. 4: v3's protocol.
    "deeplab_v3plus": {"batch": 16, "crop": 513, "scale": (0.5, 2.0), "output_stride": 16},
    # Zhao 2017, arXiv 1612.01105, sec. 5.1.
    "pspnet": {"batch": 16, "momentum": 0.9, "decay": 0.0001, "scale": (0.5, 2.0), "steps": 150_000},
    # Zhao 2018, arXiv 1704.08545, sec. 5.
    "icnet": {"batch": 16, "momentum": 0.9, "decay": 0.0001, "scale": (0.5, 2.0), "steps": 30_000},
    # Chen 2020, arXiv 1912.10917; the authors' train/config_train.py: 600 epochs of 1000 steps.
    "fasterseg": {
        "batch": 12,
        "crop": (512, 1024),
        "momentum": 0.9,
        "decay": 0.0005,
        "scale": (0.75, 1.25),
        "steps": 600_000,
    },
    # Long 2015, arXiv 1411.4038, sec. 4.3: "minibatch size of 20 images", momentum 0.9, weight decay 5^-4 or 2^-4.
    "fcn": {"batch": 20, "momentum": 0.9, "decay": 0.0005},
    # Badrinarayanan 2015, arXiv 1511.00561, sec. 3.1: mini-batches of 12, fixed rate 0.1, momentum 0.9.
    "segnet": {"batch": 12, "momentum": 0.9},
    # Yu 2015, https://github.com/fyu/dilation, train.py and docs/training.md; the crop is up to a multiple of 8.
    "dilation": {"batch": 14, "crop": 504, "momentum": 0.9, "decay": 0.0005, "scale": (1, 1)},
    # Ronneberger 2015, arXiv 1505.04597, sec. 3: a batch of one image, momentum 0.99.
    "unet": {"batch": 1, "momentum": 0.99},
    # Papandreou 2015, arXiv 1502.02734, sec. 4.1: SGD as Chen 2014, momentum 0.9, weight decay 0.0005.
    "weak_boxes": {"batch": 20, "crop": 321, "momentum": 0.9, "decay": 0.0005, "steps": 6000},
    "weak_classes": {"batch": 20, "crop": 321, "momentum": 0.9, "decay": 0.0005, "steps": 6000},
}


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_has_the_numbers_of_its_paper(name):
    cfg = recipe(name)
    numbers = {
        "batch": cfg.optimise.batch,
        "crop": cfg.augment.crop_px[0] if len(set(cfg.augment.crop_px)) == 1 else cfg.augment.crop_px,
        "momentum": cfg.optimise.momentum,
        "decay": cfg.optimise.weight_decay,
        "scale": cfg.augment.scale,
        "steps": cfg.schedule.steps,
        "output_stride": cfg.network.output_stride,
    }
    assert {field: numbers[field] for field in PAPERS[name]} == PAPERS[name]
    assert cfg.optimise.kind == "sgd"
    assert cfg.optimise.decay_all


@pytest.mark.parametrize("name", ["deeplab_v1", "deeplab_v2", "attention", "fcn"])
def test_recipes_of_caffes_networks_subtract_the_mean_of_the_authors_prototxt_files(name):
    """BGR 104.008, 116.669 and 122.675 of 255, and no division: config/DeepLab-LargeFOV/train.prototxt."""
    cfg = recipe(name).network
    assert [255 * mean for mean in cfg.mean] == pytest.approx([122.675, 116.669, 104.008], abs=1e-3)
    assert [255 * std for std in cfg.std] == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("pspnet", {"logits": 1.0, "aux": 0.4}),  # Zhao 2017, arXiv 1612.01105, sec. 3.3: alpha = 0.4
        ("icnet", {"sub4": 0.4, "sub24": 0.4, "logits": 1.0}),  # Zhao 2018, arXiv 1704.08545, sec. 5
        ("fasterseg", {"logits": 1.0, "heads16": 0.2, "heads32": 0.2}),  # the authors' train/train.py, lamb
        ("lednet", {"logits": 1.0, "encoder": 0.4}),  # ours; the authors train the encoder alone first
    ],
)
def test_auxiliary_losses_weigh_what_the_paper_says(name, branches):
    assert recipe(name).loss.branches == branches


def test_scales_of_attention_and_of_deeplab_v2_are_1_three_quarters_and_a_half():
    """Chen 2015, arXiv 1511.03339, sec. 4; Chen 2016, arXiv 1606.00915, sec. 4.1.2."""
    assert recipe("attention").network.options["scales"] == [1.0, 0.75, 0.5]
    assert recipe("deeplab_v2").network.options["msc"]


def test_the_biases_and_shares_of_the_e_steps_are_those_of_papandreou():
    """Papandreou 2015, arXiv 1502.02734: b_fg 5 and b_bg 3 (EM-Fixed), at least 20 % of the pixels for each class and
    40 % for background (EM-Adapt), and the central 20 % of a box (Bbox-Seg), in sec. 4 and the authors' prototxt."""
    for weak in (WeakConfig(), recipe("weak_classes").weak, recipe("weak_boxes").weak):
        assert (weak.bias_fg, weak.bias_bg) == (5.0, 3.0)
        assert (weak.share_fg, weak.share_bg) == (0.2, 0.4)
        assert weak.sure_share == 0.2


def test_the_phases_of_dilation_learn_at_the_rates_of_its_train_py():
    front, joint = recipe("dilation").phases()
    assert (front.network.options["context"], joint.network.options) == ("none", {"context": "small", "levels": 8})
    assert (rate("dilation", 59_999), rate("dilation", 19_999, phase=1)) == (1e-4, 1e-5)
    assert [255 * mean for mean in front.network.mean] == pytest.approx([116.52, 111.36, 102.93], abs=1e-3)


def test_frrn_learns_the_worst_pixels_of_half_size_images_with_adam():
    """Pohlen 2016, arXiv 1611.08323, sec. 5.1; https://github.com/TobyPDE/FRRN, train_frrn_b.py, dltools/losses.py."""
    cfg = recipe("frrn")
    assert (cfg.optimise.kind, cfg.optimise.batch, cfg.optimise.weight_decay) == ("adamw", 3, 0)
    assert (cfg.loss.terms, cfg.loss.bootstrapped_pixels) == ({"bootstrapped": 1}, 32_768)
    assert (cfg.augment.scale, cfg.augment.crop_px) == ((0.5, 0.5), (512, 1024))
    z = 0.05 / 2**0.5
    assert cfg.augment.gamma == pytest.approx(np.log(0.5 - z) / np.log(0.5 + z), abs=1e-3)
    assert rate("frrn", 4999) == pytest.approx(1e-3)
    assert rate("frrn", 5000) / rate("frrn", 4999) == pytest.approx(1 / 1.25, abs=0.011)
    assert rate("frrn", 79_999) > 5e-5


def test_a_run_that_sets_nothing_takes_the_protocol_of_deeplab_v3():
    """Chen 2017, arXiv 1706.05587, sec. 4.1; the decay is that of train.py in tensorflow/models research/deeplab."""
    optimise, falls = OptimiseConfig(), ScheduleConfig()
    assert (optimise.kind, optimise.lr, optimise.momentum, optimise.batch) == ("sgd", 0.007, 0.9, 16)
    assert optimise.weight_decay == 0.00004
    assert (falls.kind, falls.power, falls.steps) == ("poly", 0.9, 30_000)


def test_losses_have_the_constants_of_their_papers():
    """Focal gamma 2 (Lin 2017, arXiv 1708.02002, sec. 5.1); effective number beta 0.999 (Cui 2019, arXiv 1901.05555,
    sec. 5.1 tries 0.9 to 0.9999); hard pixels below 0.7, at least a sixteenth (BiSeNet's code); 512 x 64 pixels of each
    image (Pohlen 2016, arXiv 1611.08323, sec. 5.1)."""
    loss = LossConfig()
    assert (loss.focal_gamma, loss.effective_beta) == (2.0, 0.999)
    assert (loss.ohem_below, loss.ohem_keep) == (0.7, 1 / 16)
    assert loss.bootstrapped_pixels == 512 * 64


# Rates as the papers give them, worked out by hand.
@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("deeplab_v1", 0, 1e-3),
        ("deeplab_v1", 1999, 1e-3),
        ("deeplab_v1", 2000, 1e-4),
        ("deeplab_v1", 4001, 1e-5),
        ("deeplab_v2", 0, 2.5e-4),
        ("deeplab_v2", 10_000, 2.5e-4 * 0.5**0.9),
        ("deeplab_v3", 15_000, 0.007 * 0.5**0.9),
        ("deeplab_v3plus", 27_000, 0.007 * 0.1**0.9),
        ("pspnet", 75_000, 0.01 * 0.5**0.9),
        ("icnet", 15_000, 0.01 * 0.5**0.9),
        ("fasterseg", 999, 0.01),
        ("fasterseg", 2000, 0.01 * 0.992**2),
        ("attention", 2000, 1e-4),
        ("fcn", 39_999, 1e-4),
        ("segnet", 9_999, 0.1),
        ("lednet", 89_250, 5e-4 * 0.5**0.9),
        ("esnet", 23_000, 5e-4 * 0.5**0.9),
        ("attention", 1999, 1e-3),
        ("weak_boxes", 0, 1e-3),
        ("weak_boxes", 2000, 1e-4),
        ("weak_classes", 4000, 1e-5),
    ],
)
def test_rates_are_those_of_the_paper(name, step, expected):
    assert rate(name, step) == pytest.approx(expected)


def test_v3_goes_on_at_output_stride_8_with_frozen_statistics_and_a_seventh_of_the_rate():
    first, second = recipe("deeplab_v3").phases()
    assert (first.network.output_stride, first.batch_norm) == (16, "sync")
    assert (second.network.output_stride, second.batch_norm) == (8, "frozen")
    assert rate("deeplab_v3", 0, phase=1) == 0.001
    assert second.schedule.steps == 30_000


def test_fcn_is_staged_and_its_finer_phases_take_a_hundredth_of_the_rate():
    phases = recipe("fcn").phases()
    assert [cfg.network.options["variant"] for cfg in phases] == ["32s", "16s", "8s"]
    assert [rate("fcn", 0, phase=phase) for phase in range(3)] == pytest.approx([1e-4, 1e-6, 1e-6])


def test_espnet_trains_its_encoder_and_then_the_decoder_and_halves_the_rate_twice():
    """Mehta 2018, train/main.py: 300 epochs each, batches of 12 and 6, lr 5e-4 halved every 100."""
    phases = recipe("espnet").phases()
    assert [cfg.network.options["decoder"] for cfg in phases] == [False, True]
    assert [cfg.optimise.batch for cfg in phases] == [12, 6]
    for index, cfg in enumerate(phases):
        last = cfg.schedule.steps - 1
        assert [rate("espnet", step, phase=index) for step in (0, last // 2, last)] == [0.0005, 0.00025, 0.000125]


@pytest.mark.parametrize(
    ("name", "weights", "biases"),
    [("deeplab_v1", 10, 10), ("deeplab_v2", 10, 20), ("attention", 10, 10), ("fcn", 1, 2), ("weak_boxes", 10, 20)],
)
def test_the_last_layers_learn_faster(name, weights, biases):
    cfg = recipe(name)
    with torch.device("meta"):
        built = network(cfg)
        made = optimiser.make_optimiser(built, cfg.optimise)
    factors = {parameter: group["factor"] for group in made.param_groups for parameter in group["params"]}
    last = {parameter for layer in built.last_layers() for parameter in layer.parameters()}
    assert {factors[parameter] for parameter in last if parameter.ndim > 1} == {weights}
    assert {factors[parameter] for parameter in last if parameter.ndim == 1} <= {biases}
    assert {factors[parameter] for parameter in factors.keys() - last} == {1.0}


@pytest.mark.parametrize("name", ["camvid", "cwfid"])
def test_weights_of_our_own_sets_fit_into_the_package_in_half_precision(name):
    with torch.device("meta"):
        state = network(recipe(name)).state_dict()
    assert sum(2 * tensor.numel() for tensor in state.values()) < MEGABYTES * 1e6


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_on_the_losses_of_a_recipe_reaches_every_weight_of_its_network(name):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cfg = recipe(name)
    made = network(cfg, 3, width_multiplier=0.0625)
    labels = torch.randint(0, 3, (2, 33, 41), dtype=torch.uint8)
    weights = losses.class_weights(cfg.loss.class_weights, np.full((4, 3), 100))
    criterion = losses.make_loss(
        cfg.loss, class_weights=weights, ignore_id=255, stride=made.stride, align_corners=made.align_corners
    )
    branches = losses.branch_weights(cfg.loss, made)
    scores = made.supervised(torch.randn(2, 3, 33, 41))
    units = criterion.units(labels)
    loss = sum(weight * criterion(scores[branch], labels, units) for branch, weight in branches.items())
    loss.backward()
    assert loss.isfinite()
    assert not [name for name, weight in made.named_parameters() if weight.grad is None]


def test_the_names_of_coco_that_the_docs_map_to_vocs_exist():
    if "coco" not in class_maps.shipped_class_maps():
        pytest.skip("no class map of COCO")
    text = DOCS.read_text().partition("initial_classes:")[2].partition("```")[0]
    pairs = yaml.safe_load(text)
    voc, coco = class_maps.load_class_map("voc").names, class_maps.load_class_map("coco").names
    assert set(pairs) <= set(voc)
    assert set(pairs.values()) <= set(coco)
    assert all(name in coco for name in voc if name not in pairs), "every class of VOC has one of COCO"
