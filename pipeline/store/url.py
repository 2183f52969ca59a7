"""Urls: where an object or a folder is, joined with `/`, and printed without credentials.

A text goes in: a local path, or a URL of any scheme. `Url.raw` goes to the clients of the stores, `str(url)` to people.
Nothing here knows which schemes are supported; `objects` refuses the others.
"""

from typing import Never

from pipeline.redact import redact


class Url:
    """The place of an object or a folder. Equal places have equal URLs: `file:///a/` is `/a`. Immutable.

    `str`, `repr` and f-strings give a redacted text (`pipeline.redact`), so a URL may stand in any log or error. It is
    no dataclass: `dataclasses.asdict` would unpack it, and write its raw text into a file of JSON.
    """

    __slots__ = ("raw",)

    raw: str
    """The text for clients, for files that a program reads back, and for command lines: it may hold credentials.
    Without `file://`, and without slashes at the end of a folder. All else is kept: `//`, spaces, `?`, `#` and `%` are
    part of an object's name."""

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
        """The object or folder `path` below this folder; `url / info.path` is a listed object, whatever its name."""
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
    def name(self) -> str:
        """The last part of the path; of a bucket, its name."""
        return self.raw.rpartition("/")[2]


def _normalise(text: str) -> str:
    """Remove `file://`, and the slashes at the end but that of the root."""
    scheme, separator, path = text.partition("://")
    if not separator or scheme == "file":
        path = path if separator else text
        return path.rstrip("/") or path[:1]
    return f"{scheme}://{path.rstrip('/')}"
