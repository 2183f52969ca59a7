import hashlib
import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from pipeline import classes
from pipeline.classes import ClassInfo, ClassMap
from pipeline.errors import ConfigError
from pipeline.models import card, checkpoint, zoo
from pipeline.models.card import CARD_FILE, WEIGHTS_FILE, Card, load_card, shipped_checkpoints
from pipeline.models.checkpoint import Checkpoint
from pipeline.store.url import Url
from tests.support.examples import examples

OPTIONS = {
    "backbone": "mobilenet_v2",
    "width_multiplier": 0.25,
    "aspp_channels": 8,
    "decoder_channels": 8,
    "low_level_channels": 4,
}
CLASSES = ClassMap(
    name="field", classes=tuple(ClassInfo(name=name, colour=(0, 0, 0)) for name in ("soil", "crop", "weed"))
)
CARD = Card(
    architecture="deeplab_v3plus",
    options=OPTIONS,
    classes=CLASSES,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.2, 0.3),
    training={"seed": 7, "metrics": {"mean_iou": 0.5}},
    source="a test",
    license="Apache-2.0",
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def trained(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return zoo.build_network("deeplab_v3plus", len(CLASSES), **OPTIONS).eval()


@pytest.fixture
def folder(tmp_path) -> str:
    checkpoint.save_checkpoint(Url(str(tmp_path / "kept")), trained().state_dict(), CARD)
    return str(tmp_path / "kept")


def refusal(ref: str) -> str:
    with pytest.raises(ConfigError) as caught:
        checkpoint.load_checkpoint(ref)
    return str(caught.value)


def rewrite_weights(folder: str, change) -> None:
    path = os.path.join(folder, WEIGHTS_FILE)
    state = safetensors.torch.load_file(path)
    change(state)
    safetensors.torch.save_file(state, path)


def rewrite_card(folder: str, **changes) -> None:
    path = os.path.join(folder, CARD_FILE)
    with open(path) as file:
        card = json.load(file)
    with open(path, "w") as file:
        json.dump(card | changes, file)


def test_a_loaded_network_computes_what_the_saved_one_did(folder: str) -> None:
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load_checkpoint(folder).build()(x), trained()(x), rtol=0, atol=0)


def test_a_network_is_built_for_evaluation_in_float32_from_half_the_bytes(folder: str, tmp_path) -> None:
    halves = {name: one.half() if one.is_floating_point() else one for name, one in trained().state_dict().items()}
    checkpoint.save_checkpoint(Url(str(tmp_path / "half")), halves, CARD)
    network = checkpoint.load_checkpoint(str(tmp_path / "half")).build()
    assert not network.training
    assert {one.dtype for one in network.parameters()} == {torch.float32}
    for name, one in network.state_dict().items():
        assert torch.equal(one, halves[name].to(one.dtype))
    sizes = [os.path.getsize(os.path.join(one, WEIGHTS_FILE)) for one in (folder, tmp_path / "half")]
    assert sizes[1] < 0.75 * sizes[0]


def test_one_checkpoint_serves_both_output_strides(folder: str) -> None:
    kept = checkpoint.load_checkpoint(folder)
    at_16, at_8 = kept.build(), kept.build(8)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(at_16.backbone(x)[1], at_8.backbone(x)[1][:, :, ::2, ::2])


def test_networks_of_one_checkpoint_share_no_memory(folder: str) -> None:
    kept = checkpoint.load_checkpoint(folder)
    first, second = kept.build(), kept.build()
    with torch.no_grad():
        first.logits.weight.zero_()
    assert second.logits.weight.abs().sum() > 0
    assert kept.state["logits.weight"].abs().sum() > 0


@examples(15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(training=st.dictionaries(st.text(), plain, max_size=4))
def test_card_and_digest_survive_writing_and_reading(tmp_path, training: dict) -> None:
    card = CARD.model_copy(update={"training": training})
    written = checkpoint.save_checkpoint(Url(str(tmp_path)), trained().state_dict(), card)
    kept = checkpoint.load_checkpoint(str(tmp_path))
    assert kept.card == card == load_card(str(tmp_path))
    assert kept.sha256 == written


def test_the_digest_is_sha256_of_the_weights_file_and_the_sorted_card(folder: str) -> None:
    with open(os.path.join(folder, WEIGHTS_FILE), "rb") as weights:
        digest = hashlib.sha256(weights.read())
    with open(os.path.join(folder, CARD_FILE), "rb") as card:
        digest.update(json.dumps(json.load(card), sort_keys=True, separators=(",", ":")).encode())
    assert checkpoint.load_checkpoint(folder).sha256 == digest.hexdigest()


def test_the_digest_knows_no_order_of_tensors_and_no_layout_of_json(folder: str, tmp_path) -> None:
    state = {
        name: one.to(memory_format=torch.channels_last) if one.dim() == 4 else one
        for name, one in trained().state_dict().items()
    }
    again = checkpoint.save_checkpoint(Url(str(tmp_path / "again")), dict(reversed(state.items())), CARD)
    before = checkpoint.load_checkpoint(folder).sha256
    rewrite_card(folder)
    assert again == before == checkpoint.load_checkpoint(folder).sha256


@pytest.mark.parametrize("change", [{"source": "another"}, {"mean": [0.4, 0.5, 0.7]}, {"output_stride": 8}])
def test_the_digest_changes_with_the_card(folder: str, change: dict) -> None:
    before = checkpoint.load_checkpoint(folder).sha256
    rewrite_card(folder, **change)
    assert checkpoint.load_checkpoint(folder).sha256 != before


def test_the_digest_changes_with_one_weight(folder: str) -> None:
    before = checkpoint.load_checkpoint(folder).sha256
    rewrite_weights(folder, lambda state: state["logits.bias"][0].add_(1e-6))
    assert checkpoint.load_checkpoint(folder).sha256 != before


def test_missing_extra_and_misshapen_tensors_are_each_named(folder: str) -> None:
    def damage(state: dict) -> None:
        del state["reduce.0.weight"]
        state["stranger"] = torch.zeros(2, 3)
        state["decoder.0.0.weight"] = torch.zeros(8, 12, 1, 1)
        state["logits.bias"] = state["logits.bias"].int()

    rewrite_weights(folder, damage)
    said = refusal(folder)
    assert "missing: reduce.0.weight 4x8x1x1" in said
    assert "extra: stranger 2x3" in said
    assert "other shape: decoder.0.0.weight is 8x12x1x1, the network's is 8x12x3x3" in said
    assert "other shape: logits.bias is 3 int32, the network's is 3" in said


def test_a_long_list_of_wrong_tensors_is_cut_short(folder: str) -> None:
    rewrite_weights(folder, dict.clear)
    said = refusal(folder)
    assert said.count("missing: ") == card._SHOWN
    assert f"... and {len(trained().state_dict()) - card._SHOWN} more" in said


def test_a_card_with_another_number_of_classes_is_refused(folder: str) -> None:
    rewrite_card(folder, classes=classes.load_class_map("voc").model_dump(mode="json"))
    said = refusal(folder)
    assert "logits.weight is 3x8x1x1, the network's is 21x8x1x1" in said
    assert "21 classes (voc)" in said


def test_wrong_tensors_are_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        checkpoint.save_checkpoint(Url(str(tmp_path / "new")), {}, CARD)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="missing"):
        Checkpoint(CARD, {}, "0" * 64)


class Trap:
    """Creates a folder when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_under_another_name_is_refused_and_not_run(folder: str, tmp_path, write) -> None:
    with open(os.path.join(folder, WEIGHTS_FILE), "wb") as file:
        write(Trap(str(tmp_path / "sprung")), file)
    assert "is a pickle" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


WHOLE = safetensors.torch.save(trained().state_dict())


@given(st.data())
def test_a_weights_file_with_a_piece_cut_out_is_refused(data) -> None:
    start = data.draw(st.integers(0, len(WHOLE) - 1) | st.integers(0, 64))
    end = data.draw(st.integers(start + 1, min(len(WHOLE), start + 64)) | st.just(len(WHOLE)))
    with pytest.raises(ConfigError, match="safetensors"):
        checkpoint._parse_weights(WHOLE[:start] + WHOLE[end:], origin="here")


def test_a_truncated_weights_file_is_refused(folder: str) -> None:
    os.truncate(os.path.join(folder, WEIGHTS_FILE), len(WHOLE) // 2)
    assert "not a whole safetensors file" in refusal(folder)


@given(st.binary(max_size=200))
def test_bytes_that_are_not_safetensors_are_a_config_error(garbage: bytes) -> None:
    try:
        checkpoint._parse_weights(garbage, origin="here")
    except ConfigError as error:
        assert "here" in error.message  # noqa: PT017


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"output_stride": 32}, "output stride 32"),
        ({"architecture": "resnext"}, "deeplab_v3plus"),
        ({"options": {"depth": 5}}, "depth"),
    ],
)
def test_a_card_of_no_network_is_refused(folder: str, change: dict, says: str) -> None:
    rewrite_card(folder, **change)
    assert says in refusal(folder)


@pytest.mark.parametrize("ref", ["no_such_name", "kept/model.safetensors"])
def test_an_unknown_checkpoint_lists_the_shipped_ones(folder: str, tmp_path, monkeypatch, ref: str) -> None:
    monkeypatch.setattr(card, "SHIPPED", tmp_path)
    assert "shipped checkpoint: kept" in refusal(ref if "/" not in ref else str(tmp_path / ref))


def test_a_shipped_checkpoint_is_known_by_name(folder: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(card, "SHIPPED", tmp_path)
    assert shipped_checkpoints() == ["kept"]
    assert checkpoint.load_checkpoint("kept").sha256 == checkpoint.load_checkpoint(folder).sha256


def test_every_shipped_checkpoint_loads() -> None:
    for name in shipped_checkpoints():
        model = checkpoint.load_checkpoint(name)
        assert model.build()(torch.zeros(1, model.card.in_channels, 32, 32)).isfinite().all()


def test_an_output_stride_that_the_network_lacks_is_refused_before_weights_are_read() -> None:
    assert checkpoint.blank(CARD, 8).output_strides == (16, 8)
    with pytest.raises(ConfigError, match=r"output stride 4 is not one of \(16, 8\)"):
        checkpoint.blank(CARD, 4)
