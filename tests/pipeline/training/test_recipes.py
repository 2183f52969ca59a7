from functools import cache

import numpy as np
import pytest
import torch
import yaml

from pipeline import classes as class_maps
from pipeline.models import zoo
from pipeline.training import losses, optimiser, schedule
from pipeline.training.config import TrainConfig
from tests import ROOT

FOLDER = ROOT / "jobs/configs/train"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DOCS = FOLDER.parents[2] / "docs/recipes.md"
VOC = {"deeplab_v1", "deeplab_v2", "deeplab_v3", "deeplab_v3_coco", "deeplab_v3plus", "fcn"}
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
        ("attention", 2000, 1e-4),
        ("fcn", 39_999, 1e-4),
        ("segnet", 9_999, 0.1),
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


@pytest.mark.parametrize(("name", "weights", "biases"), [("deeplab_v1", 10, 10), ("deeplab_v2", 10, 20)])
def test_the_last_layers_learn_faster(name, weights, biases):
    cfg = recipe(name)
    with torch.device("meta"):
        made = optimiser.make_optimiser(network(cfg), cfg.optimise)
    assert sorted({group["factor"] for group in made.param_groups}) == sorted({1.0, float(weights), float(biases)})


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
