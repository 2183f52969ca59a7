"""Finding the optional extensions of this package, which a machine may not have, and saying why one is not there."""

import json
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import Distribution, distributions
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


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
    """Extension of the installed package: the working directory of a job is a copy of this package without it.

    Every distribution of the package on the path is searched, since a copy may hold metadata without files.
    """
    for package in distributions(name="atrous"):
        for file in _built_files(package, name):
            spec = spec_from_file_location(name, str(file))
            if spec and spec.loader:
                module = module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    raise ImportError("the installed package has none")


def _built_files(package: Distribution, name: str) -> Iterator[Path]:
    """Files of an extension in a distribution, or beside the sources that an editable install points to."""
    start, suffixes = name.rpartition(".")[2] + ".", tuple(EXTENSION_SUFFIXES)
    files = [Path(str(file.locate())) for file in package.files or ()]
    if root := _editable_root(package):
        files += sorted(root.joinpath(*name.split(".")[:-1]).glob(f"{start}*"))
    yield from (file for file in files if file.name.startswith(start) and file.name.endswith(suffixes))


def _editable_root(package: Distribution) -> Path | None:
    """Folder of the sources of an editable install: PEP 610, `direct_url.json`; None for any other install."""
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(origin["url"]).path))
