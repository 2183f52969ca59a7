"""Measure decoding of photos and encoding of masks against Pillow, and sending pixels against decoding twice.

    python -m benchmarks.codecs --photos camvid/val/images --labels camvid/val/labels --ray

    python -m benchmarks.codecs --repeats 3 --sizes 320x320           # half a minute, generated farmland

*Before* is Pillow alone, with the same checks: JPEGs by `Image.load`, masks at compression level 1, maps of windows at
level 6. The sides take turns in one process. *Image* is all that a run does for one photo beside the network: decoding,
logits through an Arrow table, refining (`none`: only the largest score of each pixel), encoding. Figures are ratios of
CPU time, this over before. Prints one JSON line.
"""

import argparse
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import pyarrow as pa
from PIL import Image as PilImage

from benchmarks.densecrf import pictures, size, synthetic_case
from infra import log as logs
from jobs import command_line
from pipeline.classes import ClassMap
from pipeline.config import DecodeConfig, SegmentConfig
from pipeline.image import decode, encode
from pipeline.models.card import load_card
from pipeline.records import Item, Refinement, Scored, UInt8, scored_to_table
from pipeline.run.ledger import Ledger
from pipeline.run.stages import Job, RefineStage
from pipeline.store.url import Url

log = logging.getLogger(__name__)

CFG = DecodeConfig()
QUALITY = 90
"""Quality of JPEGs that are made here."""
ENGINES = ("none", "native")

_Side = Callable[[], object]


def cpu_s(work: _Side) -> float:
    """CPU time of all threads of this process, seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def ratio(this: _Side, other: _Side, repeats: int) -> float:
    """Median over the repeats of the CPU time of one side over that of the other; they take turns."""
    this(), other()
    return round(median(cpu_s(this) / max(cpu_s(other), 1e-9) for _ in range(repeats)), 3)


def pillow_png(picture: PilImage.Image, level: int) -> bytes:
    """PNG by Pillow with its own choice of repetitions."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=level)
    return out.getvalue()


def mask_before(mask_hw: UInt8, classes: ClassMap) -> bytes:
    """Mask as palette PNG at compression level 1."""
    picture = PilImage.fromarray(mask_hw, mode="P")
    picture.putpalette(classes.png_palette())
    return pillow_png(picture, 1)


@contextmanager
def as_before() -> Iterator[None]:
    """Codecs as before: Pillow alone."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(decode, "decode_jpeg", return_value=None))
        stack.enter_context(mock.patch.object(encode, "mask_png", mask_before))
        stack.enter_context(mock.patch.object(encode, "_png_of_runs", lambda picture: pillow_png(picture, 6)))
        yield


def before(work: _Side) -> _Side:
    """The same work with the codecs as before."""

    def side() -> None:
        with as_before():
            work()

    return side


def jpeg(pixels_hwc: UInt8, **options: int) -> bytes:
    """JPEG of RGB pixels, 4:2:0 unless `options` say otherwise."""
    out = io.BytesIO()
    PilImage.fromarray(pixels_hwc).save(out, "JPEG", **{"quality": QUALITY, **options})
    return out.getvalue()


def photo_kinds(pixels_hwc: UInt8) -> dict[str, bytes]:
    """The same picture as JPEGs of several kinds."""
    exif = PilImage.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    PilImage.fromarray(pixels_hwc).save(turned, "JPEG", quality=QUALITY, exif=exif)
    kinds = {"4:2:0": {}, "4:4:4": {"subsampling": 0}, "progressive": {"progressive": True}}
    return {name: jpeg(pixels_hwc, **options) for name, options in kinds.items()} | {"turned": turned.getvalue()}


def measure_decoding(data: bytes, repeats: int) -> float:
    """CPU time of decoding over Pillow's."""

    def work() -> None:
        decode.decode_image(data, CFG)

    return ratio(work, before(work), repeats)


def measure_mask(mask_hw: UInt8, classes: ClassMap, repeats: int) -> dict[str, float]:
    """Time of encoding, bytes, and time of reading a mask, over those before."""
    ours, theirs = encode.mask_png(mask_hw, classes), mask_before(mask_hw, classes)
    return {
        "encode": ratio(lambda: encode.mask_png(mask_hw, classes), lambda: mask_before(mask_hw, classes), repeats),
        "bytes": round(len(ours) / len(theirs), 3),
        "read": ratio(lambda: encode.read_mask_png(ours), lambda: encode.read_mask_png(theirs), repeats),
    }


def measure_maps(refinement: Refinement, classes: ClassMap, repeats: int) -> dict[str, float]:
    """Time and bytes of the two maps of a window, over those before; two pixels along every border are changed."""
    shifted_hw = np.roll(refinement.mask_hw, 2, axis=1)
    changed = replace(refinement, network_hw=shifted_hw)

    def work() -> None:
        encode.encode_maps(changed, classes.ignore_id)

    with as_before():
        theirs = sum(map(len, encode.encode_maps(changed, classes.ignore_id)))
    ours = sum(map(len, encode.encode_maps(changed, classes.ignore_id)))
    return {"encode": ratio(work, before(work), repeats), "bytes": round(ours / theirs, 3)}


def refine_stage(pixels_hwc: UInt8, engine: str) -> tuple[RefineStage, Scored]:
    """The stage behind the network, and a photo as the network hands it on, with logits from its brightness."""
    card = load_card("farmland")
    cfg = SegmentConfig(source="x", output="y", checkpoint="farmland", refine={"engine": engine})
    job = Job(cfg, card.classes, Url("run"), "m" * 12, "c" * 12, preview_share=0.0)
    case = synthetic_case(pixels_hwc, len(card.classes)).scored
    item = Item(key="photo.jpg", shard="s", etag="e", data=b"" if engine == "none" else jpeg(pixels_hwc))
    scored = Scored(item, case.height, case.width, logits_khw=case.logits_khw, stride=case.stride)
    return RefineStage(job, Ledger()), scored


def network_answer(pixels_hwc: UInt8) -> Refinement:
    """Mask and confidence of a photo without refinement: the largest of its interpolated logits."""
    stage, scored = refine_stage(pixels_hwc, "none")
    return stage.refiner(scored, None)


def measure_image(pixels_hwc: UInt8, engine: str, classes: ClassMap, repeats: int) -> dict[str, float]:
    """Time of one image beside the network over that before; shares of decoding and encoding in what it was before."""
    stage, scored = refine_stage(pixels_hwc, engine)
    data, mask_hw = jpeg(pixels_hwc), network_answer(pixels_hwc).mask_hw

    def decode_once() -> None:
        decode.decode_image(data, CFG)

    def work() -> None:
        decode_once()
        stage(scored_to_table([scored]))

    decodings = 2 if scored.item.data else 1
    return {
        "image": ratio(work, before(work), repeats),
        "decode_share": decodings * ratio(before(decode_once), before(work), repeats),
        "encode_share": ratio(lambda: mask_before(mask_hw, classes), before(work), repeats),
    }


def measure_sending(pixels_hwc: UInt8, repeats: int, *, ray: bool) -> dict[str, float]:
    """Time to hand on pixels as Arrow over that of decoding the JPEG again, and their bytes over the JPEG's.

    Args:
        pixels_hwc: the picture.
        repeats: times to measure.
        ray: through Ray's object store, which must be started; else through a buffer in memory.
    """
    data = jpeg(pixels_hwc)

    def send() -> UInt8:
        table = pa.table({"pixels": pa.array([memoryview(pixels_hwc).cast("B")], pa.binary())})
        received = through_ray(table) if ray else through_memory(table)
        flat: UInt8 = np.frombuffer(received.column("pixels")[0].as_buffer(), np.uint8)
        return flat.reshape(pixels_hwc.shape)

    if not np.array_equal(send(), pixels_hwc):
        raise RuntimeError("the pixels that came out of the table are not those that went in")
    return {
        "sending_over_decoding": ratio(send, lambda: decode.decode_image(data, CFG), repeats),
        "bytes": round(pixels_hwc.nbytes / len(data), 1),
    }


def through_memory(table: pa.Table) -> pa.Table:
    """Write a table as an Arrow stream and open it again: one copy, as into an object store."""
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(out.getvalue()).read_all()


def through_ray(table: pa.Table) -> pa.Table:
    """Put a table into Ray's object store and get it from there."""
    import ray  # noqa: PLC0415 - the other measurements need no Ray

    received: pa.Table = ray.get(ray.put(table))
    return received


def label_maps(folder: Path) -> dict[str, UInt8]:
    """A few labels of a folder, by name."""
    files = sorted(folder.glob("*.png"))
    return {file.stem: np.array(PilImage.open(file), np.uint8) for file in files[:: max(1, len(files) // 3)][:3]}


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Every figure, by what is measured and its size."""
    classes = load_card("farmland").classes
    found: dict[str, object] = {}
    for height, width in args.sizes:
        (pixels_hwc,) = pictures(args.photos, 1, height, width)
        repeats = max(3, min(args.repeats, int(args.repeats * 1e6 / pixels_hwc.size)))
        answer = network_answer(pixels_hwc)
        found[f"{width}x{height}"] = figures = {
            "decode": {kind: measure_decoding(data, repeats) for kind, data in photo_kinds(pixels_hwc).items()},
            "mask": measure_mask(answer.mask_hw, classes, repeats),
            "maps": measure_maps(answer, classes, repeats),
            "image": {engine: measure_image(pixels_hwc, engine, classes, min(repeats, 7)) for engine in args.engines},
            "sending": measure_sending(pixels_hwc, repeats, ray=args.ray),
        }
        log.info("%dx%d: %s", width, height, json.dumps(figures))
    if args.photos:
        files = sorted(args.photos.glob("*.jpg"))[:5]
        found["photos"] = median(measure_decoding(file.read_bytes(), args.repeats) for file in files)
    if args.labels:
        found["labels"] = {n: measure_mask(m, classes, args.repeats) for n, m in label_maps(args.labels).items()}
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure at every size, then print one JSON line with every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos to resize; generated farmland without")
    parser.add_argument("--labels", type=Path, help="folder of PNG labels to encode as well")
    parser.add_argument("--sizes", type=size, nargs="+", default=[(320, 320), (360, 480)], help="HEIGHTxWIDTH")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["none"], help="refinement of whole images")
    parser.add_argument(
        "--repeats", type=int, default=15, help="calls of each side; fewer above a third of a megapixel"
    )
    parser.add_argument("--ray", action="store_true", help="send pixels through Ray's object store, not a buffer")
    args = parser.parse_args(argv)
    logs.configure()
    if args.ray:
        import ray  # noqa: PLC0415 - the other measurements need no Ray

        ray.init(num_cpus=1, include_dashboard=False, logging_level="error")
    print(json.dumps(measure(args)))
    return 0


if __name__ == "__main__":
    command_line.leave(main())
