"""Images that kill the process which touches them, for real: a segmentation fault in a worker of Ray.

`python -m tests.support.poison FLAG ...` runs the main job with workers in which bytes that hold one of the marks are
deadly.
"""

import ctypes
import sys
from functools import partial

DECODER, REFINER = b"<kills the decoder>", b"<kills the refiner>"


def poisoned(jpeg: bytes, mark: bytes) -> bytes:
    """A JPEG that is perfectly fine, but for a comment."""
    comment = b"\xff\xfe" + (len(mark) + 2).to_bytes(2) + mark
    return jpeg[:2] + comment + jpeg[2:]


def make_deadly() -> None:
    """Runs in every worker before anything else is imported."""
    from pipeline.image import decode as decoding
    from pipeline.refine.refiner import Refiner

    decode, refine = decoding.decode_image, Refiner.__call__

    def deadly_decode(data, cfg):
        if DECODER in data:
            ctypes.string_at(0)
        return decode(data, cfg)

    def deadly_refine(self, scored, image, **options):
        if REFINER in scored.item.data:
            ctypes.string_at(0)
        return refine(self, scored, image, **options)

    decoding.decode_image, Refiner.__call__ = deadly_decode, deadly_refine


def main() -> None:
    """See the top of this file."""
    import ray

    from jobs import command_line, segment_dataset

    ray.init = partial(ray.init, runtime_env={"worker_process_setup_hook": "tests.support.poison.make_deadly"})
    command_line.leave(segment_dataset.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
