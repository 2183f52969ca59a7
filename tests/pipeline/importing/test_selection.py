"""Weights of one network among what training programs save beside and before them."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.importing import reader, selection
from pipeline.importing.convert import ImportedCheckpoint, ImportOptions, convert_weights, owns
from pipeline.importing.layouts.table import WEIGHTS_LAYOUTS
from pipeline.importing.reader import WeightsFile
from tests.pipeline.importing.test_convert import CASES, seeded
from tests.pipeline.importing.test_reader import saved
from tests.support.examples import examples

PLAIN = seeded(CASES["torchvision-fcn"]["shapes"])
AVERAGE = {name: tensor * 2 for name, tensor in PLAIN.items()}
NETWORK_PARTS = ("module", "model", "net", "network", "_orig_mod", "student", "segmentor", "deeplab", "my_net")
LOSS_AND_METRIC_BUFFERS = {
    "criterion.weight": torch.ones(21),
    "loss.pos_weight": torch.ones(1),
    "aux_loss.ce.weight": torch.ones(21),
    "loss_fn.class_weights": torch.ones(21),
    "metrics.confmat": torch.ones(21, 21),
    "train_iou.confmat": torch.ones(21, 21),
    "valIoU.confmat": torch.ones(21, 21),
    "val_metrics.MulticlassJaccardIndex.confmat": torch.ones(21, 21),
    "test_acc.tp": torch.ones(21),
    "class_weights": torch.ones(21),
    "pixel_mean": torch.zeros(3, 1, 1),
    "normalize.std": torch.ones(1, 3, 1, 1),
    "global_step": torch.tensor(5),
}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def selected(value: object, weights: str | None = None) -> WeightsFile:
    source = reader.parse_weights(saved(value), origin="weights.pth")
    return selection.select_weights(source, weights=weights)


def imported(value: object, weights: str | None = None) -> ImportedCheckpoint:
    return convert_weights(selected(value, weights), ImportOptions(classes="voc"))


def refusal(value: object, weights: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        imported(value, weights)
    return str(caught.value)


def same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- prefixes


@examples(25)
@given(st.lists(st.sampled_from(NETWORK_PARTS), max_size=5), st.sampled_from([None, "state_dict", "model", "weights"]))
def test_any_nesting_of_prefixes_gives_the_plain_weights(parts: list[str], wrapper: str | None) -> None:
    prefix = "".join(f"{part}." for part in parts)
    value = under(prefix, PLAIN)
    source = selected(value if wrapper is None else {wrapper: value, "epoch": 3})
    assert same(source.tensors, PLAIN)
    before = ("weights." if wrapper == "weights" else "") + prefix
    assert source.taken_off == ((before,) if before else ())
    assert not source.notes


@examples(25)
@given(st.data())
def test_a_wrapper_around_any_part_of_a_network_is_taken_off(data) -> None:
    wrappers, depth = (
        st.lists(st.sampled_from(sorted(selection.MODULE_WRAPPERS)), min_size=1, max_size=2),
        st.integers(0, 3),
    )
    parts = {name: name.split(".") for name in PLAIN}
    for added, place in data.draw(st.lists(st.tuples(wrappers, depth), min_size=1, max_size=3)):
        for name in parts:
            parts[name] = (
                [*parts[name][:place], *added, *parts[name][place:]] if place < len(parts[name]) else parts[name]
            )
    source = selected({"model.".join(["", ".".join(parts[name])]): PLAIN[name] for name in PLAIN})
    assert same(source.tensors, PLAIN)
    assert "model." in source.taken_off[0]


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_layout_is_recognised_behind_a_prefix(name: str) -> None:
    tensors = seeded(CASES[name]["shapes"])
    assert same(selected(under("model.module.", tensors)).tensors, tensors)
    assert same(selected(tensors).tensors, tensors)


def test_nested_dicts_are_a_prefix() -> None:
    source = selected({"model": {"state_dict": PLAIN, "config": {"depth": 50}}, "optimizer": {"state": {0: {}}}})
    assert same(source.tensors, PLAIN)
    assert source.taken_off == ("model.state_dict.",)
    assert source.left_out == ("model.config", "optimizer")


def test_a_reason_why_a_known_file_fits_no_network_is_given_behind_a_prefix_too() -> None:
    value = {"model.backbone.low_level_features.0.0.weight": torch.ones(1), "model.a.b": torch.ones(1)}
    assert "VainF's MobileNetV2 pads" in refusal(value)


# ---------------------------------------------------------------- what is no network


@pytest.mark.parametrize("name", LOSS_AND_METRIC_BUFFERS)
@pytest.mark.parametrize(("prefix", "place"), [("", ""), ("model.", ""), ("model.", "model."), ("", "module.")])
def test_a_buffer_of_the_program_is_left_out_with_a_reason(name: str, prefix: str, place: str) -> None:
    made = imported(under(prefix, PLAIN) | {place + name: LOSS_AND_METRIC_BUFFERS[name]})
    assert len(made.used) == len(PLAIN)
    assert made.unused.keys() == {place + name}
    assert "no part of a network" in made.unused[place + name]


def test_no_name_of_a_layout_is_taken_for_a_buffer_of_the_program() -> None:
    for name, case in CASES.items():
        tensors = seeded(case["shapes"])
        assert not selected(tensors).beside, name


@pytest.mark.parametrize(("prefix", "place"), [("", ""), ("model.", ""), ("model.", "model."), ("student.", "")])
@pytest.mark.parametrize("name", ["refiner.conv.weight", "temperature", "neck.bn.running_mean", "mean.weight"])
def test_an_unknown_tensor_is_an_error_by_name(name: str, prefix: str, place: str) -> None:
    assert f"unknown: {name} 7" in refusal(under(prefix, PLAIN) | {place + name: torch.ones(7)})


def test_a_backbone_of_an_unknown_network_is_not_taken_for_it() -> None:
    value = under("backbone.", seeded(CASES["resnet"]["shapes"])) | {"decode_head.conv_seg.weight": torch.ones(21, 8)}
    assert "unknown: decode_head.conv_seg.weight 21x8" in refusal(value)
    made = imported(value, "backbone")
    assert made.layout.name == "resnet"
    assert made.unused["decode_head.conv_seg.weight"] == "beside --weights backbone"


def test_a_normalisation_other_than_the_cards_is_a_note() -> None:
    equal = {"mean": torch.tensor([123.675, 116.28, 103.53]), "std": torch.tensor([0.229, 0.224, 0.225])}
    assert not imported(under("model.", PLAIN) | equal).notes
    note = imported(under("model.", PLAIN) | {"mean": torch.tensor([0.5, 0.5, 0.5])}).notes[0]
    assert note.startswith("the program's mean is (0.5, 0.5, 0.5), the card's (0.485, 0.456, 0.406)")


# ---------------------------------------------------------------- averages

AVERAGES_BESIDE = {
    "ema.module": lambda: {"model": PLAIN, "ema": {"module": AVERAGE, "decay": 0.9}},
    "state_dict_ema": lambda: {"state_dict": PLAIN, "state_dict_ema": AVERAGE, "epoch": 1},
    "model_ema": lambda: {"model": under("module.", PLAIN), "model_ema": AVERAGE},
    "ema_state.shadow": lambda: {"model_state_dict": PLAIN, "ema_state": {"shadow": AVERAGE, "num_updates": 9}},
    "ema_model": lambda: under("model.", PLAIN) | under("ema_model.", AVERAGE),
    "teacher": lambda: {"state_dict": under("student.", PLAIN) | under("teacher.", AVERAGE)},
    "ema": lambda: PLAIN | under("ema.", AVERAGE),
    "swa.module": lambda: under("net.", PLAIN) | under("swa.module.", AVERAGE) | {"swa.n_averaged": torch.tensor(5)},
    "shadow_params": lambda: {"state_dict": PLAIN, "shadow_params": AVERAGE},
    "online_avg": lambda: {"state_dict": PLAIN, "averages": {"online_avg": AVERAGE}},
    "state_dict": lambda: {
        "state_dict": under("model.", AVERAGE),
        "current_model_state": under("model.", PLAIN),
        "averaging_state": {"n_averaged": torch.tensor(5)},
    },
}


@pytest.mark.parametrize("name", AVERAGES_BESIDE)
def test_plain_weights_are_taken_and_the_average_beside_them_is_said(name: str) -> None:
    made = imported(AVERAGES_BESIDE[name]())
    assert same(made.state, imported(PLAIN).state)
    average = name.removesuffix(".module")
    assert any("of several sets of weights" in note and average in note for note in made.notes)
    assert any(reason.startswith("other weights: ") for reason in made.unused.values())


@pytest.mark.parametrize(("name", "by_name"), list(product(AVERAGES_BESIDE, [False, True])))
def test_the_average_is_taken_where_it_is_asked_for(name: str, by_name: bool) -> None:
    made = imported(AVERAGES_BESIDE[name](), name if by_name else "ema")
    assert same(made.state, imported(AVERAGE).state)
    assert any("are an average over training" in note for note in made.notes)
    assert name.split(".")[0] in str(made.card.training["weights"])


def test_mmengine_saves_the_average_under_the_name_of_the_plain_weights() -> None:
    value = {
        "state_dict": AVERAGE,
        "ema_state_dict": under("module.", PLAIN) | {"steps": torch.tensor(7)},
        "meta": {"epoch": 3},
    }
    assert same(selected(value).tensors, PLAIN)
    assert same(selected(value, "ema").tensors, AVERAGE)
    assert same(selected(value, "state_dict").tensors, AVERAGE)
    assert any("ema_state_dict" in note and "state_dict (average" in note for note in selected(value).notes)
    other = {"state_dict": PLAIN, "ema_state_dict": under("module.", AVERAGE)}  # of programs that do not swap
    assert same(selected(other).tensors, PLAIN)
    assert same(selected(other, "ema").tensors, AVERAGE)


@pytest.mark.parametrize("prefix", ["ema.", "ema_model.module.", "teacher.", "swa_model."])
def test_an_average_that_is_alone_is_taken_and_said(prefix: str) -> None:
    for value in (under(prefix, AVERAGE), {"state_dict": under(prefix, AVERAGE)}, {prefix[:-1]: AVERAGE}):
        made = imported(value)
        assert same(made.state, imported(AVERAGE).state)
        assert f"the weights under {prefix.split('.')[0]}. are an average over training" in made.notes[0]


@pytest.mark.parametrize("outer", ["", "_orig_mod.", "model."])
def test_a_module_with_a_counter_of_averages_is_an_average(outer: str) -> None:
    value = under(f"{outer}module.", AVERAGE) | {f"{outer}n_averaged": torch.tensor(5)}
    made = imported(value)
    assert made.unused == {f"{outer}n_averaged": selection.TRAINING_COUNTER}
    assert "are an average over training; the file has none of a single step" in made.notes[0]
    assert "average" not in "".join(imported(under("module.", PLAIN)).notes)


def test_an_average_of_parameters_runs_with_the_statistics_of_the_plain_weights() -> None:
    parameters = {name: t for name, t in AVERAGE.items() if "running" not in name and "num_batches" not in name}
    dotless = {"model_ema." + name.replace(".", ""): tensor for name, tensor in parameters.items()}
    for value in (
        {"model": PLAIN, "ema": {"shadow": parameters}},
        under("model.", PLAIN) | dotless | {"model_ema.decay": torch.tensor(0.9)},
    ):
        made = imported(value, "ema")
        expected = {name: parameters.get(name, PLAIN[name]) for name in PLAIN}
        assert same(made.state, imported(expected).state)
        assert any("has parameters alone" in note for note in made.notes)
        assert same(imported(value).state, imported(PLAIN).state)
    assert "missing: backbone.bn1.running_mean" in refusal({"ema": parameters})


def test_weights_of_two_networks_are_not_chosen_by_chance() -> None:
    value = {"model": PLAIN, "state_dict": {name: tensor + 1 for name, tensor in PLAIN.items()}}
    assert "weights of 2 networks: model (" in refusal(value)
    assert same(selected(value, "model").tensors, PLAIN)
    assert same(selected({"model": PLAIN, "state_dict": PLAIN}).tensors, PLAIN)
    assert "no set of weights of that name" in refusal(value, "ema")
    assert "no set of weights of that name" in refusal(PLAIN, "ema")
    two = {"model": PLAIN, "swa": AVERAGE, "avg": AVERAGE}
    assert "--weights ema: 2 sets of weights of that name" in refusal(two, "ema")


def test_a_dict_without_a_network_beside_the_weights_is_left_out() -> None:
    made = imported({"model": PLAIN, "head": {"fc.weight": torch.ones(3, 4)}})
    assert made.unused == {"head.fc.weight": "in an entry without a known network"}


def test_averages_without_names_are_said_to_be_left_out() -> None:
    value = {"model": PLAIN, "ema": {"shadow_params": [torch.ones(1)]}}
    assert selected(value).left_out == ("ema",)
    assert "334 tensors); entries without named weights: ema" in refusal(value, "ema")


def test_an_average_may_have_numbers_among_its_tensors() -> None:
    value = {"model": PLAIN, "ema": AVERAGE | {"decay": 0.9, "num_updates": 4, "warm": True}}
    assert same(selected(value, "ema").tensors, AVERAGE)
    assert selected(value).left_out == ("ema.decay", "ema.num_updates", "ema.warm")


def test_moments_of_an_optimiser_are_no_weights() -> None:
    source = selected({"model": PLAIN, "optimizer": {"exp_avg": AVERAGE}, "optim_state": AVERAGE})
    assert same(source.tensors, PLAIN)
    assert source.left_out == ("optimizer", "optim_state")


def test_a_caffemodel_has_one_set_of_weights() -> None:
    source = WeightsFile("a.caffemodel", "0" * 64, "caffemodel", {"conv1.weight": torch.ones(1)}, ())
    assert selection.select_weights(source) is source
    with pytest.raises(ConfigError, match="caffemodel has one set of weights"):
        selection.select_weights(source, weights="ema")


# ---------------------------------------------------------------- precision and counters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_counters_of_any_dtype_are_integers_again(dtype: torch.dtype) -> None:
    made = imported(under("module.", {name: tensor.to(dtype) for name, tensor in PLAIN.items()}))
    kept = torch.float32 if dtype == torch.float64 else dtype
    for name, tensor in made.state.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else kept)
    assert made.build()(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_a_file_keeps_its_names_where_no_layout_recognises_it() -> None:
    assert selected({"a.b": torch.ones(1)}).tensors.keys() == {"a.b"}
    assert "no known layout among 1 tensors" in refusal({"a.b": torch.ones(1)})


def test_every_layout_owns_its_marks() -> None:
    for layout in WEIGHTS_LAYOUTS:
        assert all(owns(layout, mark) for mark in layout.marks), layout.name
