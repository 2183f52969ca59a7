import json
import sys

import pytest

from pipeline import extension
from pipeline.refine import native
from tests import ROOT

NAME = "pipeline.refine._densecrf"


class Installed:
    """A file of an installed package: the extension that lies beside the sources."""

    def __init__(self) -> None:
        self.name = native._densecrf.__file__.rpartition("/")[2]

    def locate(self) -> str:
        return native._densecrf.__file__


class Distribution:
    """An installed package."""

    files: tuple[Installed, ...] = ()

    @staticmethod
    def read_text(name: str) -> str | None:
        return None


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the working directory of a submitted job, which comes before the installed package."""
    monkeypatch.setitem(sys.modules, NAME, None)
    monkeypatch.delattr(NAME, raising=False)
    monkeypatch.setattr(extension, "distributions", lambda **_: [Distribution])


needs_one = pytest.mark.skipif(not native.available(), reason=str(native.UNAVAILABLE_BECAUSE))


@needs_one
def test_a_copy_of_the_package_without_the_extension_takes_the_installed_one(copied, monkeypatch) -> None:
    monkeypatch.setattr(Distribution, "files", (Installed(),))
    found, why = extension.import_extension(NAME, native.NATIVE_INTERFACE)
    assert (found.INTERFACE, why) == (native.NATIVE_INTERFACE, None)


@needs_one
def test_an_extension_of_another_version_is_as_good_as_none() -> None:
    found, why = extension.import_extension(NAME, -1)
    assert found is None
    assert "this package needs -1: install it again" in why


def test_an_extension_that_nobody_built_is_none(copied) -> None:
    found, why = extension.import_extension(NAME, native.NATIVE_INTERFACE)
    assert found is None
    assert "was not built" in why


def test_a_package_that_is_not_installed_has_no_extension(copied, monkeypatch) -> None:
    monkeypatch.setattr(extension, "distributions", lambda **_: [])
    assert "was not built" in extension.import_extension(NAME, native.NATIVE_INTERFACE)[1]


@needs_one
def test_metadata_in_the_working_directory_does_not_hide_the_installed_package(copied, monkeypatch) -> None:
    installed = type("", (Distribution,), {"files": (Installed(),)})
    monkeypatch.setattr(extension, "distributions", lambda **_: [Distribution, installed])
    assert extension.import_extension(NAME, native.NATIVE_INTERFACE)[1] is None


@needs_one
def test_an_editable_install_is_followed_to_its_sources(copied, monkeypatch) -> None:
    origin = {"url": ROOT.as_uri(), "dir_info": {"editable": True}}
    editable = type("", (Distribution,), {"read_text": staticmethod(lambda name: json.dumps(origin))})
    monkeypatch.setattr(extension, "distributions", lambda **_: [Distribution, editable])
    assert extension.import_extension(NAME, native.NATIVE_INTERFACE)[1] is None
