from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from jobs import demo


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that ran: `segment` leaves a mask of the mosaic, without a network or Ray."""
    commands: list[list[str]] = []

    def run(argv: list[str]) -> int:
        commands.append(argv)
        flags = dict(zip(argv[1::2], argv[2::2], strict=True))
        (source,) = Path(flags["--source"]).iterdir()
        mask = Path(flags["--output"]) / "run=0123" / "masks" / source.name
        mask.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(source) as raster:
            profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "width": raster.width, "height": raster.height}
            with rasterio.open(mask, "w", crs=raster.crs, transform=raster.transform, **profile) as ids:
                ids.write(np.full((1, *raster.shape), 2, np.uint8))
        return 0

    monkeypatch.setattr(demo.cli, "main", run)
    return commands


def test_a_mosaic_is_made_once_segmented_as_a_raster_and_drawn(tmp_path: Path, segmented: list[list[str]]) -> None:
    arguments = ["--output", str(tmp_path), "--rasters", "--size-px", "300"]
    assert demo.main(arguments) == 0
    mosaic = tmp_path / "mosaic/mosaic.tif"
    made = mosaic.stat().st_mtime_ns
    assert demo.main(arguments) == 0
    assert mosaic.stat().st_mtime_ns == made
    assert segmented[0] == segmented[1]
    assert segmented[0][0] == "segment"
    assert {"farmland_nir", "raster"} < set(segmented[0])
    assert Image.open(tmp_path / "mosaic.png").size == (612, 300)


def test_a_run_that_fails_is_the_status_and_leaves_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.cli, "main", lambda argv: 3)
    assert demo.main(["--output", str(tmp_path), "--rasters", "--size-px", "90"]) == 3
    assert not (tmp_path / "mosaic.png").exists()
