"""A pretrained backbone is the file of its package, found without running the package, and refused if it is another."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.importing import pretrained
from pipeline.importing.pretrained import PRETRAINED
from tests.support.packages import installed_backbone


def test_the_backbone_of_a_package_is_its_file_and_the_package_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = installed_backbone("efficientnet-lite1", tmp_path, monkeypatch)
    made = pretrained.load_backbone("efficientnet-lite1")
    assert made.card.options == {"backbone": "efficientnet_lite1"}
    assert made.card.license == "Apache-2.0"
    assert made.card.training["sha256"] == PRETRAINED["efficientnet-lite1"].sha256
    trained = made.trained()
    assert all(name.startswith("backbone.") for name in trained)
    assert torch.equal(trained["backbone.features.0.0.weight"], file["_conv_stem.weight"])


def test_a_package_that_is_not_installed_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(PRETRAINED["efficientnet-lite0"], package="no-such-package-of-weights")
    monkeypatch.setitem(PRETRAINED, "efficientnet-lite0", missing)
    assert missing.path is None
    with pytest.raises(ConfigError, match="needs the package no-such-package-of-weights") as raised:
        pretrained.load_backbone("efficientnet-lite0")
    assert "atrous[pretrained]" in str(raised.value.hint)


def test_another_file_than_that_of_the_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_backbone("efficientnet-lite0", tmp_path, monkeypatch)
    path = PRETRAINED["efficientnet-lite0"].path
    assert path is not None
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match="has SHA-256 " + hashlib.sha256(path.read_bytes()).hexdigest()):
        pretrained.load_backbone("efficientnet-lite0")


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_file_is_named_by_the_beginning_of_its_digest(name: str) -> None:
    assert PRETRAINED[name].sha256[:8] in PRETRAINED[name].file
    assert len(PRETRAINED[name].sha256) == 64
