"""Archive of marked images for a labelling tool: what `atrous select --to` writes, as one zip to be saved.

In: keys of a run. Out: the bytes of the zip, and what is left out by reason. Nothing is written beside the run.
"""

import io
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.select.hand_over import Tool, hand_over
from pipeline.store.url import Url
from pipeline.view.opened import OpenedRun


def zip_for_tool(run: OpenedRun, keys: Sequence[str], tool: Tool) -> tuple[bytes, dict[str, int]]:
    """Zip of the images and masks of some rows, in the order of their marks; raises as `hand_over`."""
    with tempfile.TemporaryDirectory(prefix="atrous-view-") as place:
        summary = hand_over(run.url, keys, Url(place), [tool], source=list(run.source) or None)
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:  # images and masks are compressed already
            for path in sorted(Path(place).rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(place))
        return data.getvalue(), summary["not_handed_over"]
