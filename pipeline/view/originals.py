"""Originals: images of a run and their labels, read again from the source and decoded as the run decoded them.

In: rows of a run. Out: RGB for people, and class ids of labels. Only objects of the run's sources and labels are read,
by keys that the run itself wrote. An object that changed since is refused, as its mask belongs to the older one; where
the user named another place, versions cannot be compared.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow.compute as pc
import yaml

from pipeline.classes import ClassMap
from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError, InputError, StorageError
from pipeline.geotiff.raster import Raster
from pipeline.models.card import load_card
from pipeline.records import Image, Item, UInt8
from pipeline.run import folder, pixels
from pipeline.source.plan import PLAN_SCHEMA, read_item
from pipeline.source.raster import RGB, NetworkBands
from pipeline.source.shard import Member, Shard, slice_shard
from pipeline.source.truth import raster_labels
from pipeline.store import objects
from pipeline.store.backend import FileInfo, check_info
from pipeline.store.url import Url

log = logging.getLogger(__name__)

_COPY = re.compile(r"(.*)~([0-9]+)", re.DOTALL)
"""Key of a copy, see `shard.Member.copy`; no listed path ends so."""
_SETTINGS = ("source", "checkpoint", "limit", "read", "decode", "raster", "tile", "infer", "judge")
"""Settings of a run that say which images and labels it read, and how its network saw them."""


class Originals:
    """Images and labels of one run. Calls from several threads are safe."""

    def __init__(
        self, run_url: Url, classes: ClassMap, *, source: Sequence[str] = (), labels: str | None = None
    ) -> None:
        """Look up where the images of a run are.

        Args:
            run_url: folder of the run.
            classes: class map of the run.
            source: where its sources are now, one for each; empty where they were.
            labels: place of labels, as `read.labels` names it; None as the run had it.

        Raises:
            ConfigError: another number of sources than the run had.
            StorageError: the run's config or plan is damaged.
        """
        self.classes = classes
        stored = _stored_settings(run_url)
        given: dict[str, Any] = {name: stored[name] for name in _SETTINGS if stored.get(name)}
        self.cfg = EvaluateConfig.model_validate({"source": [run_url.raw], "output": run_url.raw} | given)
        if labels is not None:
            self.cfg = self.cfg.model_copy(update={"read": self.cfg.read.model_copy(update={"labels": labels})})
        self._moved = _moved(self.cfg.source, source)
        plan = folder.read_plan(run_url)
        self._plan = PLAN_SCHEMA.empty_table() if plan is None else plan

    @property
    def has_labels(self) -> bool:
        """True when the run, or the user, named labels."""
        return self.cfg.read.labels is not None

    def sources(self) -> dict[str, str]:
        """URL of the source of each shard, for people."""
        shards, roots = self._plan["id"].to_pylist(), self._plan["root"].to_pylist()
        texts = {root: str(Url(root)) for root in set(roots)}
        return {shard: texts[root] for shard, root in zip(shards, roots, strict=True)}

    @property
    def is_of_rasters(self) -> bool:
        """True where the plan has rasters, whose windows are the rows."""
        return bool(pc.any(pc.equal(self._plan["kind"], "raster")).as_py())

    def raster_shards(self) -> list[Shard]:
        """Shards of rasters by the stored plan, under the present place of their source; versions are the plan's."""
        stored = self._plan.filter(pc.equal(self._plan["kind"], "raster")).to_pylist()
        return [Shard(**row | {"root": self._moved.get(row["root"], row["root"])}) for row in stored]

    def present(self, url: Url, raster: Raster) -> Raster:
        """A raster in the version to be read: the plan's, or what a source that moved holds now.

        Raises:
            InputError: it is gone, or another version than the run read.
        """
        now = _present(url)
        if self._moved:
            return replace(raster, etag=now.etag, size=now.size)
        check_info(now, etag=raster.etag)
        return raster

    def item(self, key: str, shard_id: str, etag: str) -> Item:
        """Encoded image of a row, with its label.

        Raises:
            InputError: it cannot be read any more, or is another version.
        """
        shard = self._shard(key, shard_id, etag)
        truth = raster_labels(self.cfg, self.classes)
        try:
            item = read_item(shard, self.cfg.read, key, max_bytes=int(self.cfg.decode.max_mib * 2**20), truth=truth)
        except (FileNotFoundError, StorageError) as error:
            raise objects.as_input_error(error) from error
        if item is None:
            raise InputError("not_found", f"{shard.uri} no longer holds this image")
        if item.failure:
            raise InputError(item.failure.code, item.failure.detail)
        return item

    def decoded(self, item: Item) -> Image:
        """Bands of an item as the network saw them, a window without its halo. Raises InputError as the run would."""
        return pixels.without_halo(item, pixels.decode_item(item, self.cfg, self._bands))

    def visible(self, decoded: Image) -> Image:
        """RGB of a decoded image, as people see it."""
        return pixels.visible(decoded, self._bands)

    def truth(self, item: Item, image: Image) -> UInt8:
        """(H, W) class ids of an item's label; raises LabelError as an evaluation would."""
        from pipeline.score import answers  # noqa: PLC0415  # scipy takes a quarter of a second to import

        size = {"height": image.height, "width": image.width}
        return answers.read_truth(item, self.cfg.judge, self.classes, **size, orientation=image.orientation)

    @cached_property
    def _bands(self) -> NetworkBands:
        """Bands that the run's checkpoint takes; RGB for existing masks."""
        if not self.cfg.checkpoint:
            return RGB
        try:
            card = load_card(self.cfg.checkpoint)
        except (ConfigError, StorageError) as error:
            log.warning("images are taken as red, green and blue: %s", error)
            return RGB
        return NetworkBands(card.channels, card.scale)

    def _shard(self, key: str, shard_id: str, etag: str) -> Shard:
        """Shard of a row, by the stored plan; for a file of a folder a slice of this file alone."""
        found = pc.index(self._plan["id"], shard_id).as_py()
        if found < 0:
            raise InputError("not_found", "the plan of the run does not hold the shard of this row")
        stored = {name: value[0] for name, value in self._plan.slice(found, 1).to_pydict().items()}
        stored |= {"packed": stored["packed"] or b"", "max_rows": None}
        if place := self._moved.get(stored["root"]):
            stored["root"] = place
        if stored["kind"] == "folder":
            copy = _COPY.fullmatch(key)
            member = Member(copy[1] if copy else key, 0, etag, int(copy[2]) if copy else 1)
            if place:
                member = replace(member, etag=_present(Url(place) / member.path).etag)
            return slice_shard(stored["root"], [member])
        shard = Shard(**stored)
        return replace(shard, etag=_present(shard.url).etag) if place else shard


def _present(url: Url) -> FileInfo:
    """Object as it is now: at a place that the user named, a copy has another version than the original."""
    try:
        return objects.info(url)
    except (FileNotFoundError, StorageError) as error:
        raise objects.as_input_error(error) from error


def _stored_settings(run_url: Url) -> dict[str, Any]:
    """Settings of a run as it stored them; empty for a run without them."""
    url = run_url / folder.CONFIG
    if not objects.exists(url):
        return {}
    with objects.naming_damage(url, hint="it names the images"):
        stored: dict[str, Any] = yaml.safe_load(objects.read_bytes(url))
        return stored


def _moved(before: Sequence[str], now: Sequence[str]) -> dict[str, str]:
    """Present place by the place in the plan, for sources that moved. A single file has the folder it is in."""
    if not now:
        return {}
    if len(before) != len(now):
        raise ConfigError(
            f"--source has {len(now)} URLs, the run read {len(before)}", hint="give one for each, in order"
        )
    folders = {Url(old).parent.raw: Url(new).parent.raw for old, new in zip(before, now, strict=True)}
    return folders | dict(zip(before, now, strict=True))
