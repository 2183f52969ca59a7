"""Files of the generated farmland: JPEG images and PNG labels in a folder."""

import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from PIL import Image as PILImage

from pipeline.datasets.farmland.scene import Scene, generate_scene
from pipeline.store import objects
from pipeline.store.url import Url


def write_folder(url: Url, count: int, *, size_px: int, seed: int, with_labels: bool = False, workers: int = 1) -> None:
    """Write `images/farm_000000.jpg`, `images/farm_000001.jpg`, ... into a folder.

    Args:
        url: folder, local or in an object store.
        count: number of images; image i is `generate_scene(seed + i)`.
        size_px: height and width, pixels.
        seed: seed of the first image.
        with_labels: also write `labels/farm_000000.png`, a grey PNG of class ids.
        workers: number of processes that generate images.
    """
    for index, jpeg in enumerate(encoded_jpegs(count, size_px=size_px, seed=seed, workers=workers)):
        objects.put(url / "images" / _file_name(index, "jpg"), jpeg)
        if with_labels:
            label = PILImage.fromarray(generate_scene(seed + index, height=size_px, width=size_px).label_hw)
            objects.put(url / "labels" / _file_name(index, "png"), _encode(label, "PNG"))


def encode_jpeg(scene: Scene) -> bytes:
    """Encode the image as JPEG of quality 88."""
    return _encode(PILImage.fromarray(scene.image_hwc), "JPEG", quality=88)


def scene_png(scene: Scene) -> bytes:
    """Encode the image as PNG."""
    return _encode(PILImage.fromarray(scene.image_hwc), "PNG")


def encoded_jpegs(count: int, *, size_px: int, seed: int, workers: int) -> Iterator[bytes]:
    """Yield the JPEG images of `count` seeds in order, from any number of processes."""
    make, seeds = partial(_jpeg, size_px=size_px), range(seed, seed + count)
    if workers == 1:
        yield from map(make, seeds)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make, seeds, chunksize=8)


def _jpeg(seed: int, *, size_px: int) -> bytes:
    return encode_jpeg(generate_scene(seed, height=size_px, width=size_px))


def _encode(image: PILImage.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _file_name(index: int, suffix: str) -> str:
    return f"farm_{index:06}.{suffix}"
