import json
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from jobs import import_checkpoint
from pipeline.errors import ConfigError
from pipeline.importing import convert, reader, verify
from pipeline.importing.verify import SourceNetwork
from pipeline.models import checkpoint
from pipeline.store.url import Url
from tests.pipeline.importing.test_convert import CASES, seeded
from tests.support import foreign_networks as foreign
from tests.support import tflite_files


@pytest.fixture
def file(tmp_path: Path) -> str:
    """torchvision's FCN, narrow, as somebody's training program would leave it."""
    path = tmp_path / "fcn.pth"
    torch.save({"state_dict": seeded(CASES["torchvision-fcn"]["shapes"]), "epoch": 3}, path)
    return str(path)


def job(*arguments: str) -> int:
    return import_checkpoint.main(list(arguments))


def said(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out)


def test_a_file_becomes_a_checkpoint_that_the_main_job_can_load(file: str, tmp_path: Path, capsys) -> None:
    target = str(tmp_path / "made")
    assert job(file, target, "--license", "BSD-3-Clause", "--report", "json") == 0
    report, kept = said(capsys), checkpoint.load_checkpoint(target)
    assert kept.sha256 == report["checkpoint"]
    assert kept.card.architecture == "fcn_dilated"
    assert kept.card.license == "BSD-3-Clause"
    assert kept.card.training == {
        "imported_from": "fcn.pth",
        "sha256": reader.read_weights(Url(file)).sha256,
        "layout": "torchvision-fcn",
    }
    assert "github.com/pytorch/vision" in kept.card.source
    assert kept.build()(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_the_report_accounts_for_every_tensor(file: str, tmp_path: Path, capsys) -> None:
    job(file, str(tmp_path / "made"), "--report", "json")
    report, tensors = said(capsys), reader.read_weights(Url(file)).tensors
    assert set(report["used"]) | set(report["unused"]) == set(tensors)
    assert report["tensors"] == len(tensors)
    assert report["left_out"] == ["epoch"]
    assert report["recognised_by"] == ["backbone.conv1.weight", "classifier.0.weight", "classifier.4.weight"]
    assert (report["classes"], report["num_classes"]) == ("voc", 21)
    assert any("21 classes were guessed to be those of voc" in note for note in report["notes"])
    assert any("--verify" in line for line in report["not_verified"])


def test_the_report_for_people_says_the_same(tmp_path: Path, capsys) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(seeded(CASES["resnet"]["shapes"]), path)
    assert job(str(path), str(tmp_path / "made"), "--classes", "camvid", "--in-channels", "4", "--seed", "5") == 0
    text = capsys.readouterr().out
    for part in (
        "layout         resnet: ResNet backbone of torchvision or timm, by conv1.weight",
        "network        deeplab_v3plus backbone=resnet50 width_multiplier=0.0625, output stride 16",
        "classes        11, camvid",
        "bands          4; normalisation: ImageNet's",
        "tensors        320: 318 used, 2 not",
        "not used     2 that begin with fc: the classifier of a backbone",
        "from a seed  ",
        "widened from 3 to 4 bands",
        "verified       names and shapes of all tensors",
        "not verified   equality of outputs with the source's",
    ):
        assert part in text, part
    card = checkpoint.load_checkpoint(str(tmp_path / "made")).card
    assert card.in_channels == 4
    assert "seed 5" in str(card.training["untrained"])


def test_the_report_says_what_was_taken_off_and_what_belongs_to_no_network(tmp_path: Path, capsys) -> None:
    tensors = seeded(CASES["torchvision-fcn"]["shapes"])
    states = {f"student.{name}": tensor for name, tensor in tensors.items()}
    states |= {f"teacher.{name}": tensor * 2 for name, tensor in tensors.items()} | {"criterion.weight": torch.ones(21)}
    torch.save({"state_dict": states, "epoch": 3}, tmp_path / "last.ckpt")
    torch.save(tensors, tmp_path / "plain.pth")
    for name, target, *arguments in (
        ("plain.pth", "plain"),
        ("last.ckpt", "student"),
        ("last.ckpt", "ema", "--weights", "ema"),
    ):
        assert job(str(tmp_path / name), str(tmp_path / target), *arguments) == 0
    text = capsys.readouterr().out
    for part in (
        "taken off    student. of the file's names",
        "that begin with criterion: a loss's, no part of a network",
        "that begin with teacher: other weights: teacher",
        "of several sets of weights student was taken, not teacher (average, 334 tensors); --weights NAME takes",
        "taken off    teacher. of the file's names",
        "the weights under teacher. are an average over training",
    ):
        assert part in text, part
    plain, student, average = (checkpoint.load_checkpoint(str(tmp_path / name)) for name in ("plain", "student", "ema"))
    for name, tensor in plain.state.items():
        assert torch.equal(student.state[name], tensor)
        assert torch.equal(average.state[name], tensor * 2)
    assert average.card.training["weights"] == "teacher"


def test_options_are_read_as_yaml(tmp_path: Path, capsys) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(seeded(CASES["resnet"]["shapes"]), path)
    options = ("--options", "multi_grid=[1, 2, 1]", "mode=cascade", "blocks=5")
    assert job(str(path), str(tmp_path / "made"), "--classes", "voc", "--architecture", "deeplab_v3", *options) == 0
    card = checkpoint.load_checkpoint(str(tmp_path / "made")).card
    assert card.options["multi_grid"] == [1, 2, 1]
    assert (card.options["mode"], card.options["blocks"]) == ("cascade", 5)
    capsys.readouterr()


def test_a_tflite_becomes_a_checkpoint_with_its_own_normalisation(tmp_path: Path, capsys) -> None:
    (tmp_path / "net.tflite").write_bytes(tflite_files.deeplab(0.125, head=8))
    assert job(str(tmp_path / "net.tflite"), str(tmp_path / "made")) == 0
    text = capsys.readouterr().out
    for part in ("layout         tflite-deeplab-v3", "batch norm   162 scales and statistics, as the identity"):
        assert part in text, part
    card = checkpoint.load_checkpoint(str(tmp_path / "made")).card
    pixels = torch.arange(256) / 255
    torch.testing.assert_close((pixels - card.mean[0]) / card.std[0], (torch.arange(256) - 128) / 128)
    assert (card.options["rates"], card.options["align_corners"]) == ([], True)
    assert job(str(tmp_path / "net.tflite"), str(tmp_path / "other"), "--weights", "ema") == 1


def test_means_and_deviations_of_the_command_line_are_the_cards(tmp_path: Path, capsys) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(seeded(CASES["resnet"]["shapes"]), path)
    numbers = ("--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25")
    assert job(str(path), str(tmp_path / "made"), "--classes", "voc", *numbers) == 0
    assert "mean 0.5, 0.5, 0.5, deviation 0.25, 0.25, 0.25, as --mean and --std say" in capsys.readouterr().out
    card = checkpoint.load_checkpoint(str(tmp_path / "made")).card
    assert (card.mean, card.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("option", ["name", "=3", "a=[1"])
def test_an_option_that_is_none_ends_the_job(file: str, tmp_path: Path, option: str, capsys) -> None:
    with pytest.raises(SystemExit):
        job(file, str(tmp_path / "made"), "--options", option)
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "ema"], "--weights ema: no set of weights of that name"),
        (["--layout", "smp-unet"], "it has no encoder.conv1.weight"),
        (["--classes", "cityscapes"], "the file has 21 classes, --classes cityscapes has 19"),
        (["--in-channels", "17"], "3 bands cannot become 17"),
        (["--output-stride", "7"], "output stride 7"),
        (["--architecture", "unet"], "--architecture unet: torchvision's FCN on a dilated ResNet is fcn_dilated"),
    ],
)
def test_a_refusal_says_why_and_writes_nothing(
    file: str, tmp_path: Path, arguments: list[str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert job(file, str(tmp_path / "made"), *arguments) == 1
    assert says in caplog.text
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_is_not_written_over(file: str, tmp_path: Path, caplog, capsys) -> None:
    assert job(file, str(tmp_path / "made")) == 0
    assert job(file, str(tmp_path / "made")) == 1
    assert "is a checkpoint already" in caplog.text
    capsys.readouterr()


class Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["a.pth", "a.caffemodel", "a.safetensors"])
def test_a_hostile_file_is_refused_with_nothing_run(tmp_path: Path, name: str, caplog) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"a": Trap(str(tmp_path / "sprung"))}, 2))
    assert job(str(tmp_path / name), str(tmp_path / "made")) == 1
    assert "calls posix.mkdir: more than tensors" in caplog.text
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "made").exists()


# ---------------------------------------------------------------- comparing with the source's package


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return foreign.VainFV3(21, width=64, output_stride=16).eval()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module) -> str:
    """A package that has the network of a file, as torchvision has those of its own."""
    monkeypatch.setitem(sys.modules, "a_package", ModuleType("a_package"))
    judge = SourceNetwork(
        "a_package",
        lambda package, made: foreign.VainFV3(21, width=64, output_stride=16),
        65,
        lambda judged, x: torch.nn.functional.interpolate(judged(x), x.shape[2:], mode="bilinear"),
        verify._full_size,
        "scores",
    )
    monkeypatch.setattr(verify, "SOURCE_NETWORKS", {"vainf-deeplab-v3": judge})
    return "a_package"


def compared(tensors: dict[str, Tensor], **changes) -> verify.OutputComparison:
    source = reader.WeightsFile("a.pth", "0" * 64, "torch", tensors, ())
    made = convert.convert_weights(source, convert.ImportOptions(classes="voc", **changes))
    return verify.compare_outputs(source, made, made.build())


def test_equal_outputs_are_verified_with_their_largest_difference(network: torch.nn.Module, package: str) -> None:
    found = compared(network.state_dict())
    assert not found.not_verified
    assert found.verified[0].startswith("scores of a_package on a random image of 65 x 65: largest difference ")


def test_outputs_of_one_score_are_verified_as_two_classes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "a_package", ModuleType("a_package"))
    original = SourceNetwork(
        "a_package",
        lambda package, made: foreign.VainFV3(made.scores, width=64, output_stride=16),
        65,
        lambda judged, x: torch.nn.functional.interpolate(judged(x), x.shape[2:], mode="bilinear"),
        verify._full_size,
        "scores",
    )
    monkeypatch.setattr(verify, "SOURCE_NETWORKS", {"vainf-deeplab-v3": original})
    class_map = tmp_path / "road.yaml"
    class_map.write_text(
        "name: road\nclasses:\n- {name: other, colour: [0, 0, 0]}\n- {name: road, colour: [255, 0, 0]}\n"
    )
    torch.manual_seed(0)
    tensors = foreign.VainFV3(1, width=64, output_stride=16).state_dict()
    source = reader.WeightsFile("a.pth", "0" * 64, "torch", tensors, ())
    made = convert.convert_weights(source, convert.ImportOptions(classes=str(class_map)))
    assert verify.compare_outputs(source, made, made.build()).verified


def test_other_outputs_are_a_refusal(network: torch.nn.Module, package: str) -> None:
    with pytest.raises(ConfigError, match="outputs differ from the source's"):
        compared(network.state_dict(), options={"multi_grid": (1, 2, 4)})


def test_what_cannot_be_compared_is_said_not_to_be_verified(network: torch.nn.Module, monkeypatch) -> None:
    tensors = seeded(CASES["torchvision-fcn"]["shapes"])
    assert "has no network of this width" in compared(tensors).not_verified[0]
    narrow = foreign.VainFV3(21, width=4, output_stride=16).state_dict()
    assert "no package has VainF's DeepLab v3" in compared(narrow).not_verified[0]
    judge = SourceNetwork("no_such_package", lambda *_: None, 8, lambda *_: None, verify._full_size, "scores")
    monkeypatch.setattr(verify, "SOURCE_NETWORKS", {"vainf-deeplab-v3": judge})
    assert "no_such_package cannot be imported" in compared(network.state_dict()).not_verified[0]


def test_every_source_network_is_of_a_layout() -> None:
    assert verify.SOURCE_NETWORKS.keys() <= convert.LAYOUT_BY_NAME.keys()
