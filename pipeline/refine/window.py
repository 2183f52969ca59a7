"""Windows: how an image is cut for refinement, and where one rectangle lies within another.

In: sizes and rectangles, pixels. Out: rectangles, and slices of arrays. No pixel is touched.
"""

from collections.abc import Iterator

from pipeline.records import LEFT_WHOLE, Window


def windows(height: int, width: int, core_px: int) -> Iterator[Window]:
    """Cores that cover an image exactly, row by row; an image up to a quarter larger than a core is left whole."""
    if max(height, width) <= core_px * LEFT_WHOLE:
        yield Window(0, 0, height, width)
        return
    for y in range(0, height, core_px):
        for x in range(0, width, core_px):
            yield Window(y, x, min(core_px, height - y), min(core_px, width - x))


def with_halo(core: Window, height: int, width: int, halo_px: int) -> Window:
    """The core widened by `halo_px` on each side, cut off at the borders of the image."""
    y, x = max(core.y - halo_px, 0), max(core.x - halo_px, 0)
    bottom = min(core.y + core.height + halo_px, height)
    right = min(core.x + core.width + halo_px, width)
    return Window(y, x, bottom - y, right - x)


def halves(height: int, width: int, halo_px: int) -> Iterator[tuple[Window, Window]]:
    """Core and outer rectangle of the two halves of a window along its longer side, which has at least two pixels.

    The halo is at most a quarter of that side, so each half is smaller than the whole, however wide the halo is.
    """
    halo_px = min(halo_px, max(height, width) // 4)
    middle = max(height, width) // 2
    if height >= width:
        cores = Window(0, 0, middle, width), Window(middle, 0, height - middle, width)
    else:
        cores = Window(0, 0, height, middle), Window(0, middle, height, width - middle)
    for core in cores:
        yield core, with_halo(core, height, width, halo_px)


def inside(outer: Window, inner: Window) -> tuple[slice, slice]:
    """Rows and columns of `inner` within an array that covers `outer`."""
    y, x = inner.y - outer.y, inner.x - outer.x
    return slice(y, y + inner.height), slice(x, x + inner.width)
