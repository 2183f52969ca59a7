"""Finding the optional extensions of this package, which a machine may not have, and saying why one is not there."""

from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import distributions
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any


def import_extension(name: str, interface: int) -> tuple[Any, str | None]:
    """An extension by its full name, and why there is none: one of them is None.

    Args:
        name: such as `pipeline.refine._densecrf`.
        interface: the `INTERFACE` that the caller was written for; another one is as good as none.
    """
    try:
        try:
            found = import_module(name)
        except ImportError:
            found = _installed(name)
    except ImportError as missing:
        return None, f"the extension was not built, or not for this Python ({missing})"
    if (has := getattr(found, "INTERFACE", 0)) != interface:
        return None, f"the extension has interface {has}, this package needs {interface}: install it again"
    return found, None


def _installed(name: str) -> ModuleType:
    """The extension of the installed package: a job's working directory is a copy of this package without it.

    The copy may hold the metadata of an editable install, which lists no extension, so every distribution of the
    package on the path is looked through.
    """
    start = name.rpartition(".")[2] + "."
    for file in (file for package in distributions(name="atrous") for file in package.files or ()):
        if file.name.startswith(start) and file.name.endswith(tuple(EXTENSION_SUFFIXES)):
            spec = spec_from_file_location(name, str(file.locate()))
            if spec and spec.loader:
                module = module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    raise ImportError("the installed package has none")
