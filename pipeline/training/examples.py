"""The endless order of examples, and the batches of one worker: decoded, varied and ready for the network.

In: a collection and the settings of a run. Out: `Batch`es of uint8 tensors, made by worker processes ahead of the step
that needs them. Everything random follows from the seed and the place in the order, so the batches of a step are the
same for any number of loader processes and workers, and a run that resumes draws nothing it has drawn.
"""

import multiprocessing
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing.context import BaseContext

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.classes import ClassMap
from pipeline.errors import ConfigError
from pipeline.image import channels, labels
from pipeline.records import Int64, UInt8
from pipeline.training import transforms, weak
from pipeline.training.collection import Collection, is_weak, name_of
from pipeline.training.config import TrainConfig


@dataclass(slots=True)
class Batch:
    """The examples of one worker in one step."""

    images_nchw: torch.Tensor
    """uint8, bands as in the file."""
    labels_nhw: torch.Tensor
    """uint8 class ids, and the ignore id where there is none. For `weak.CLASSES` 0 on the image, not on padding."""
    present_nk: torch.Tensor
    """bool: classes the image is said to have."""
    supervision_n: torch.Tensor
    """int8: `weak.FULL`, `weak.CLASSES` or `weak.BOXES`."""

    def __len__(self) -> int:
        return len(self.supervision_n)

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from where copies to a GPU need not be waited for."""
        return Batch(*(getattr(self, name).pin_memory() for name in self.__slots__))


def batches(
    collection: Collection,
    cfg: TrainConfig,
    classes: ClassMap,
    *,
    first_step: int,
    last_step: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """The batches of worker `rank` of `world_size` for the steps from `first_step` up to, not with, `last_step`.

    Step s takes the places s * B to (s + 1) * B - 1 of the endless order, of which each worker takes every
    `world_size`-th; B is `cfg.optimise.batch`.

    Raises:
        ConfigError: there are more workers than images in a step.
    """
    size = cfg.optimise.batch
    if world_size > size:
        raise ConfigError(
            f"{size} images per step cannot be shared by {world_size} workers",
            hint="raise --optimise.batch or lower --runtime.workers",
        )
    workers = cfg.runtime.loader_workers
    return iter(
        DataLoader(
            _Places(collection, cfg, classes),
            batch_sampler=_Steps(range(first_step, last_step), size, rank, world_size),
            collate_fn=partial(_collate, classes=len(classes)),
            num_workers=workers,
            prefetch_factor=cfg.runtime.prefetch if workers else None,
            multiprocessing_context=_processes() if workers else None,
            worker_init_fn=_end_with_parent,
            pin_memory=torch.cuda.is_available(),
        )
    )


def _processes() -> BaseContext:
    """How loader processes start: from a small process that has imported what they need, once for all of them.

    Never as a copy of this one, whose threads (Ray's, CUDA's) a copy would not have.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_parent(_: int) -> None:
    """End this loader process with the one it loads for, even if that was killed.

    torch only watches the process that forked this one, which lives for as long as its children do.
    """

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="watch", daemon=True).start()


@dataclass(frozen=True, slots=True)
class _Steps:
    """The places of one worker in each step."""

    steps: range
    batch: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(range(step * self.batch + self.rank, (step + 1) * self.batch, self.world_size))

    def __len__(self) -> int:
        return len(self.steps)


# ---------------------------------------------------------------- the order


class Order:
    """The endless order: which example stands at which place.

    Every epoch is a permutation of all examples of its own; with `sample.hard_classes` an example that has one of them
    stands in it several times (Chen 2017, arXiv 1706.05587, sec. 4.1). With `sample.weak_share` strong and weak
    examples have an order each, and the last places of every step are weak.
    """

    def __init__(self, collection: Collection, cfg: TrainConfig, classes: ClassMap) -> None:
        self._seed, self._batch = cfg.seed, cfg.optimise.batch
        times = _times(collection, cfg, classes)
        self._weak_places = _weak_places(collection, cfg)
        strong = ~collection.weak_n if self._weak_places is not None else np.ones(len(collection), bool)
        self._strong, self._weak = (np.repeat(np.flatnonzero(one), times[one]) for one in (strong, ~strong))

    def __getitem__(self, place: int) -> int:
        """Index of the example at a place."""
        if self._weak_places is None:
            return self._nth(self._strong, 0, place)
        step, slot = divmod(place, self._batch)
        strong_places = self._batch - self._weak_places
        if slot < strong_places:
            return self._nth(self._strong, 0, step * strong_places + slot)
        return self._nth(self._weak, 1, step * self._weak_places + slot - strong_places)

    def _nth(self, indices: Int64, stream: int, place: int) -> int:
        epoch, at = divmod(place, len(indices))
        return int(indices[_permutation(len(indices), self._seed, stream, epoch)[at]])


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, stream: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, stream, epoch)).permutation(size)


def _times(collection: Collection, cfg: TrainConfig, classes: ClassMap) -> Int64:
    """(N,) how often each example stands in an epoch."""
    hard = [classes.names.index(name) for name in _known(cfg.sample.hard_classes, classes)]
    has = (collection.counts_nk[:, hard] > 0).any(axis=1)
    return np.where(has, cfg.sample.hard_times, 1)


def _known(names: tuple[str, ...], classes: ClassMap) -> tuple[str, ...]:
    unknown = [name for name in names if name not in classes.names]
    if unknown:
        raise ConfigError(
            f"no class {', '.join(unknown)} in the class map {classes.name!r}", hint="--sample.hard-classes"
        )
    return names


def _weak_places(collection: Collection, cfg: TrainConfig) -> int | None:
    """Places of weak examples in every step; None where they come as they are."""
    if cfg.sample.weak_share is None:
        return None
    places = round(cfg.sample.weak_share * cfg.optimise.batch)
    for wanted, there, kind in (
        (places, collection.weak_n, "weak"),
        (cfg.optimise.batch - places, ~collection.weak_n, "full"),
    ):
        if wanted and not there.any():
            raise ConfigError(
                f"{wanted} images with {kind} labels per step, but there are none", hint="--sample.weak-share"
            )
    return places


# ---------------------------------------------------------------- examples


@dataclass(frozen=True, slots=True)
class _Made:
    """One example, decoded."""

    pixels_hwc: UInt8
    label_hw: UInt8
    present: Sequence[int]
    """Ids of classes in the image."""
    supervision: int


class _Places(Dataset[_Made]):
    """The example at each place of the endless order, decoded and varied."""

    def __init__(self, collection: Collection, cfg: TrainConfig, classes: ClassMap) -> None:
        self.collection, self.cfg, self.classes = collection, cfg, classes
        self.order = Order(collection, cfg, classes)
        self.fill = [round(255 * mean) for mean in cfg.network.mean]
        self.rare = _rare(collection, cfg)
        self.drawn: dict[int, bytes] = {}
        """Compressed labels that a CRF drew into boxes, by example: it takes longer than all the rest."""

    def __getitem__(self, place: int) -> _Made:
        made, ignore_id = self._read(self.order[place]), self.classes.ignore_id
        if self.cfg.overfit:
            size = self.cfg.augment.crop_px
            view = transforms.centre_crop(made.pixels_hwc, made.label_hw, size, ignore_id=ignore_id, fill=self.fill)
        else:
            rng = np.random.default_rng((self.cfg.seed, place))
            view = transforms.vary(
                made.pixels_hwc,
                made.label_hw,
                self.cfg.augment,
                rng,
                ignore_id=ignore_id,
                fill=self.fill,
                rare=self.rare,
            )
        return replace(made, pixels_hwc=view[0], label_hw=view[1])

    def _read(self, index: int) -> _Made:
        example = self.collection[index]
        image = channels.decode_channels(example.image, self.cfg.network.channels)
        name, pixels = name_of(example.key), image.pixels_hwc
        if is_weak(example.label):
            said = weak.parse_weak_label(example.label, self.classes, name=name, height=image.height, width=image.width)
            background = weak.background_id(self.cfg.weak, self.classes)
            label, supervision = self._weak_label(index, pixels, said, background)
            made = _Made(pixels, label, [background, *said.present], supervision)
        else:
            label = labels.decode_label(example.label, self.classes, name=name, height=image.height, width=image.width)
            made = _Made(pixels, label, np.flatnonzero(self.collection.counts_nk[index]).tolist(), weak.FULL)
        if image.valid_hw is not None:
            made.label_hw[~image.valid_hw] = self.classes.ignore_id
        return made

    def _weak_label(self, index: int, pixels_hwc: UInt8, said: weak.Weak, background: int) -> tuple[UInt8, int]:
        """The label to begin with, and how much is known of it."""
        height, width, _ = pixels_hwc.shape
        if said.boxes is None:
            return np.zeros((height, width), np.uint8), weak.CLASSES
        if self.cfg.weak.boxes != "seg":
            supervision = weak.FULL if self.cfg.weak.boxes == "rect" else weak.BOXES
            return weak.rect(said.boxes, height, width, background=background), supervision
        if index not in self.drawn:
            share = self.cfg.weak.sure_share
            drawn = weak.seg(pixels_hwc, said.boxes, sure_share=share, background=background)
            self.drawn[index] = zlib.compress(drawn.tobytes(), 1)
        label = np.frombuffer(zlib.decompress(self.drawn[index]), np.uint8).reshape(height, width)
        return label.copy(), weak.FULL


def _rare(collection: Collection, cfg: TrainConfig) -> list[int]:
    """Ids of the classes with less than an even share of the labelled pixels."""
    if cfg.augment.rare_share == 0:
        return []
    counts = collection.counts_nk.sum(axis=0)
    return np.flatnonzero(counts < counts.mean()).tolist()


def _collate(made: list[_Made], classes: int) -> Batch:
    present = torch.zeros((len(made), classes), dtype=torch.bool)
    for row, one in zip(present, made, strict=True):
        row[list(one.present)] = True
    images = np.stack([one.pixels_hwc for one in made]).transpose(0, 3, 1, 2)
    return Batch(
        images_nchw=torch.from_numpy(np.ascontiguousarray(images)),
        labels_nhw=torch.from_numpy(np.stack([one.label_hw for one in made])),
        present_nk=present,
        supervision_n=torch.tensor([one.supervision for one in made], dtype=torch.int8),
    )
