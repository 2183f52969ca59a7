"""Tars in memory, and the items that the WebDataset source reads from them."""

import io
import tarfile
import uuid
from collections.abc import Iterable

from pipeline.config import ReadConfig
from pipeline.records import Item
from pipeline.source.plan import read_items
from pipeline.source.shard import Shard, object_shard
from pipeline.source.tar import BLOCK
from pipeline.store import objects
from pipeline.store.url import Url

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
END_KEY = "a.tar#"
"""Key of a failure of the tar of `shard_of` itself."""
THREE = [("a.jpg", b"A" * 700), ("b.jpg", b"B" * 512), ("c.jpg", b"C" * 3)]


def tar_of(members: Iterable[tuple[str, bytes]], kind: str = "pax") -> bytes:
    """A tar of plain files, without the padding behind the two end-of-archive blocks."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[kind]) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        end = tar.offset
    return out.getvalue()[: end + 2 * BLOCK]


def shard_of(tar: bytes) -> Shard:
    """Shard of a tar, `a.tar` in a new memory store."""
    root = Url(f"memory://tars-{uuid.uuid4().hex}")
    objects.put(root / "a.tar", tar)
    return object_shard("webdataset", root.raw, objects.info(root / "a.tar"))


def read_tar(tar: bytes, *, max_bytes: int = 2**20, skip: frozenset[str] = frozenset(), **cfg: str) -> list[Item]:
    """Items of a tar, read with the settings `cfg` of `ReadConfig`."""
    return list(read_items(shard_of(tar), ReadConfig(**cfg), max_bytes=max_bytes, skip=skip))


def codes(items: list[Item]) -> dict[str, str]:
    """Error code of each key, `ok` without failure."""
    return {item.key: item.failure.code if item.failure else "ok" for item in items}


def pax_header(payload: bytes) -> bytes:
    """Extended header with the records `payload`, for the next member."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(payload)
    return header.tobuf(tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % BLOCK)
