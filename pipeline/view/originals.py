"""Originals: images of a run and their labels, read again from the source and decoded as the run decoded them.

In: rows of a run. Out: RGB for people, and class ids of labels. Only objects of the run's sources and labels are read,
by keys that the run itself wrote. An object that changed since is refused, as its mask belongs to the older one; where
the user named another place, versions cannot be compared.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from pipeline.classes import ClassMap
from pipeline.config import EvaluateConfig, explain_without_values
from pipeline.errors import AccessDenied, ConfigError, InputError, NothingThere, StorageError
from pipeline.geotiff.raster import Raster
from pipeline.models.card import load_card
from pipeline.prefetch import ahead
from pipeline.records import Image, Item, UInt8
from pipeline.run import folder, pixels
from pipeline.source.folder import FILES_AHEAD
from pipeline.source.plan import PLAN_SCHEMA, read_item, read_some
from pipeline.source.raster import RGB, NetworkBands
from pipeline.source.shard import Member, Shard, slice_shard
from pipeline.source.truth import raster_labels
from pipeline.store import objects
from pipeline.store.backend import FileInfo, check_info
from pipeline.store.url import Url

log = logging.getLogger(__name__)

_COPY = re.compile(r"(.*)~([0-9]+)", re.DOTALL)
"""Key of a copy, see `shard.Member.copy`; no listed path ends so."""
_MOST_CONFIG_BYTES = 2**20
_PLACED_LABELS = {"folder", "raster"}
"""Kinds of shards whose labels have a place of their own; in an archive `read.labels` names a member or a column."""
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
            ConfigError: another number of sources than the run had, or nothing at a place that the user named.
            StorageError: the run's config or plan is damaged.
        """
        self.classes = classes
        self.cfg = _stored_config(run_url)
        if labels is not None:
            self.cfg = self.cfg.model_copy(update={"read": self.cfg.read.model_copy(update={"labels": labels})})
        self._moved = _moved(self.cfg.source, source)
        self._plan = _stored_plan(run_url)
        for place in source:
            _check_there("--source", Url(place))
        if labels is not None and not _PLACED_LABELS.isdisjoint(self._plan["kind"].to_pylist()):
            _check_there("--labels", Url(labels))
        for url in () if source else map(Url, self.cfg.source):
            if url.scheme == "file" and not os.path.exists(url.place):
                log.warning(
                    "there is no %s, so its images are not shown; --source says where they are now", url.located
                )

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
        """Shards of rasters by the stored plan, under the present place of their source; versions are the plan's.

        Raises:
            InputError: the plan names a place outside the sources.
        """
        stored = self._plan.filter(pc.equal(self._plan["kind"], "raster")).to_pylist()
        for root, path in {(row["root"], row["path"]) for row in stored}:
            self._check_inside(root, path)
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
        try:
            item = read_item(shard, self.cfg.read, key, **self._limits)
        except (FileNotFoundError, StorageError) as error:
            raise objects.as_input_error(error) from error
        if item is None:
            raise InputError("not_found", f"{shard.uri} no longer holds this image")
        if item.failure:
            raise InputError(item.failure.code, item.failure.detail)
        return item

    def items(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Item | InputError]]:
        """Encoded images of rows with their labels, or why there is none; an archive is read once for all its rows.

        Args:
            rows: `key`, `shard` and `source_etag` of each; no key twice.

        Raises:
            AccessDenied: 403, which every other image would get too.
        """
        by_shard: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            by_shard[row["shard"]].append(row)
        kinds = dict(zip(self._plan["id"].to_pylist(), self._plan["kind"].to_pylist(), strict=True))
        with ThreadPoolExecutor(FILES_AHEAD) as pool:
            for shard, of_shard in by_shard.items():
                if kinds.get(shard) == "folder":
                    yield from ahead(pool, self._item_or_reason, of_shard, FILES_AHEAD)
                else:
                    yield from self._items_of_archive(of_shard)

    def _item_or_reason(self, row: Mapping[str, Any]) -> tuple[str, Item | InputError]:
        try:
            return row["key"], self.item(row["key"], row["shard"], row["source_etag"])
        except InputError as error:
            return row["key"], error

    def _items_of_archive(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Item | InputError]]:
        left = {row["key"]: row for row in rows}
        reason = InputError("not_found", "its archive no longer holds this image")
        try:
            shard = self._shard(rows[0]["key"], rows[0]["shard"], rows[0]["source_etag"])
            for item in read_some(shard, self.cfg.read, frozenset(left), **self._limits):
                if left.pop(item.key, None):
                    yield item.key, InputError(item.failure.code, item.failure.detail) if item.failure else item
        except (FileNotFoundError, StorageError) as error:
            reason = objects.as_input_error(error)
        except InputError as error:
            reason = error
        yield from ((key, reason) for key in left)

    @cached_property
    def _limits(self) -> dict[str, Any]:
        """Limit of the bytes of an image, and labels of rasters."""
        return {
            "max_bytes": int(self.cfg.decode.max_mib * 2**20),
            "truth": raster_labels(self.cfg, self.classes),
        }

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
        copy = _COPY.fullmatch(key)
        path = stored["path"] if stored["kind"] != "folder" else copy[1] if copy else key
        self._check_inside(stored["root"], path)
        if place := self._moved.get(stored["root"]):
            stored["root"] = place
        if stored["kind"] == "folder":
            member = Member(path, 0, etag, int(copy[2]) if copy else 1)
            if place:
                member = replace(member, etag=_present(Url(place) / member.path).etag)
            return slice_shard(stored["root"], [member])
        shard = Shard(**stored)
        return replace(shard, etag=_present(shard.url).etag) if place else shard

    def _check_inside(self, root: str, path: str) -> None:
        """Refuse what lies outside the sources of the config: plan and keys are as good as who wrote them.

        Raises:
            InputError: `not_found`.
        """
        sources = [Url(source) for source in self.cfg.source]
        is_source = any(
            Url(root).place in (url.place, url.parent.place if url.name == path else None) for url in sources
        )
        if not is_source or ".." in path.split("/") or "://" in path or "\0" in path:
            raise InputError(
                "not_found", "the plan of the run, or the key of the row, names a place outside its sources"
            )


def _check_there(flag: str, url: Url) -> None:
    """Raise ConfigError where a place that the user named holds nothing, as far as its store lists what it holds."""
    if url.scheme == "https":  # without listings; objects are asked for by name
        return
    try:
        if next(objects.list_files(url), None) is None:
            raise ConfigError("it is empty")
    except AccessDenied as error:  # of listing: objects may still be readable
        log.warning("%s %s cannot be listed: %s", flag, url.located, error)
    except (ConfigError, NothingThere) as error:
        raise ConfigError(f"{flag} {url.located}: {error}", hint="name a place that holds files") from error


def _present(url: Url) -> FileInfo:
    """Object as it is now: at a place that the user named, a copy has another version than the original."""
    try:
        return objects.info(url)
    except (FileNotFoundError, StorageError) as error:
        raise objects.as_input_error(error) from error


def _stored_config(run_url: Url) -> EvaluateConfig:
    """Settings of a run that images are read by, as it stored them; those that it did not store have their defaults."""
    url, given = run_url / folder.CONFIG, dict[str, Any]()
    with objects.naming_damage(url, hint="it names the images"):
        try:
            if objects.exists(url):
                stored = yaml.safe_load(objects.read_bytes(url, max_bytes=_MOST_CONFIG_BYTES))
                given = {name: stored[name] for name in _SETTINGS if stored.get(name)}
            return EvaluateConfig.model_validate({"source": [run_url.raw], "output": run_url.raw} | given)
        except InputError as error:
            raise ValueError(error.detail) from error
        except ValidationError as error:
            raise ValueError(explain_without_values(error)) from None


def _stored_plan(run_url: Url) -> pa.Table:
    """Plan of a run as it stored it; empty for a run without one."""
    if (plan := folder.read_plan(run_url)) is None:
        return PLAN_SCHEMA.empty_table()
    with objects.naming_damage(folder.find_object(run_url, folder.PLAN), hint="the images cannot be found without it"):
        return plan.select(PLAN_SCHEMA.names).cast(PLAN_SCHEMA)


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
