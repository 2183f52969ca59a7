"""Segmentation of large image collections. As a library: `mask, confidence = segment(array, "farmland")`.

Importing this package imports nothing else: `segment` and torch come with its first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.run.one_image import segment

__all__ = ["segment"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.run import one_image  # noqa: PLC0415  # torch, which most importers of the package do without

    return getattr(one_image, name)
