"""URLs of objects and folders, joined with `/` and printed without credentials.

A `Url` is made of a local path, or of a URL of any scheme. `Url.raw` is for the clients of the stores, `str(url)` for
people. Unsupported schemes are refused by `objects`, not here.
"""

import os
from typing import Never

from pipeline.redact import redact


class Url:
    """URL of an object or a folder, immutable and normalised: `file:///a/` equals `/a`.

    `str`, `repr` and f-strings give a redacted text (`pipeline.redact`), so a URL can be used in any log or error. It
    is not a dataclass: `dataclasses.asdict` would unpack it, and write the raw text into JSON files.
    """

    __slots__ = ("raw",)

    raw: str
    """Text for clients, for files that a program reads back, and for command lines; it may contain credentials.
    `file://` and slashes at the end are removed. All else is kept: `//`, spaces, `?`, `#` and `%` are part of an
    object's name."""

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "raw", _normalise(text))

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError(f"a Url is immutable: {name} cannot be set")

    def __reduce__(self) -> tuple[type["Url"], tuple[str]]:
        return Url, (self.raw,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __truediv__(self, path: str) -> "Url":
        """URL of the object or folder `path` below this folder; `url / info.path` is the URL of a listed object."""
        separator = "" if self.raw.endswith("/") or not self.raw else "/"
        return Url(f"{self.raw}{separator}{path}")

    def __str__(self) -> str:
        return redact(self.raw)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    @property
    def scheme(self) -> str:
        """`s3`, `gs`, `memory`, `https` or another; `file` for a local path."""
        scheme, separator, _ = self.raw.partition("://")
        return scheme if separator else "file"

    @property
    def place(self) -> str:
        """The one spelling of a place, for digests and comparisons: a local path is absolute, without `.` and `..`."""
        return os.path.abspath(self.raw) if self.scheme == "file" else self.raw

    @property
    def located(self) -> str:
        """Text for people that says where a relative path is looked for: `photos (/home/me/photos)`."""
        if self.scheme != "file" or os.path.isabs(self.raw):
            return str(self)
        return f"{self} ({redact(self.place)})"

    @property
    def parent(self) -> "Url":
        """URL of the folder that holds this one."""
        return Url(self.raw.rstrip("/").rpartition("/")[0] or ".")

    @property
    def name(self) -> str:
        """Last part of the path; the name of a bucket."""
        return self.raw.rpartition("/")[2]


def _normalise(text: str) -> str:
    """Remove `file://`, and slashes at the end except for the root."""
    scheme, separator, path = text.partition("://")
    if not separator or scheme == "file":
        path = path if separator else text
        return path.rstrip("/") or path[:1]
    return f"{scheme}://{path.rstrip('/')}"
