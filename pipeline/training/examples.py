"""Batches of one worker: the endless order of examples, decoded and augmented for the network.

In: a collection and the settings of a run. Out: `Batch`es of uint8 tensors, which loader processes prepare ahead of the
step. All randomness follows from the seed and the place in the order, so the batches of a step are the same for any
number of loader processes and workers, and a resumed run continues the order where it stopped.
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
from pipeline.training.collection import Collection, is_weak, label_name
from pipeline.training.config import TrainConfig


@dataclass(slots=True)
class Batch:
    """The examples of one worker in one step."""

    images_nchw: torch.Tensor
    """(N, C, H, W) uint8, bands as in the file."""
    labels_nhw: torch.Tensor
    """(N, H, W) uint8 class ids and ignore ids. For `weak.CLASSES` 0 on the image and the ignore id on padding."""
    present_nk: torch.Tensor
    """(N, K) bool: classes that the label declares present."""
    supervision_n: torch.Tensor
    """(N,) int8: `weak.FULL`, `weak.CLASSES` or `weak.BOXES`."""

    def __len__(self) -> int:
        return len(self.supervision_n)

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory, so that copies to a GPU are asynchronous."""
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
    """Batches of worker `rank` of `world_size` for the steps from `first_step` up to `last_step`, exclusive.

    Step s takes the places s * B to (s + 1) * B - 1 of the endless order, of which each worker takes every
    `world_size`-th; B is `cfg.optimise.batch`.

    Raises:
        ConfigError: there are more workers than images per step.
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
            multiprocessing_context=_fork_server() if workers else None,
            worker_init_fn=_end_with_parent,
            pin_memory=torch.cuda.is_available(),
        )
    )


def _fork_server() -> BaseContext:
    """Start loader processes from a fork server that has imported this module once for all of them.

    A fork of this process would lack its threads (Ray's, CUDA's).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_parent(_: int) -> None:
    """End this loader process when its training process ends, even by SIGKILL.

    torch watches only the fork server, which lives as long as its children.
    """

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="watch", daemon=True).start()


@dataclass(frozen=True, slots=True)
class _Steps:
    """Batch sampler: the places of one worker in each step."""

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


class ExampleOrder:
    """The endless order of examples: an index for every place.

    Every epoch is a new permutation of all examples; with `sample.hard_classes` it repeats the examples that have one
    of them (Chen 2017, arXiv 1706.05587, sec. 4.1). With `sample.weak_share` fully and weakly labelled examples have an
    order each, and the last places of every step are weak.
    """

    def __init__(self, collection: Collection, cfg: TrainConfig, classes: ClassMap) -> None:
        self._seed, self._batch = cfg.seed, cfg.optimise.batch
        times = _times(collection, cfg, classes)
        self._weak_places = _weak_places(collection, cfg)
        strong_n = ~collection.weak_n if self._weak_places is not None else np.ones(len(collection), bool)
        self._strong, self._weak = (
            np.repeat(np.flatnonzero(kind_n), times[kind_n]) for kind_n in (strong_n, ~strong_n)
        )

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
    """(N,) repeats of each example per epoch."""
    hard = [classes.names.index(name) for name in _known(cfg.sample.hard_classes, classes)]
    has = (collection.counts_nk[:, hard] > 0).any(axis=1)
    return np.where(has, cfg.sample.hard_times, 1)


def _known(names: tuple[str, ...], classes: ClassMap) -> tuple[str, ...]:
    unknown = [name for name in names if name not in classes.names]
    if unknown:
        raise ConfigError(
            f"--sample.hard-classes: the class map {classes.name!r} has no class {', '.join(unknown)}",
            hint=f"it has {', '.join(classes.names)}",
        )
    return names


def _weak_places(collection: Collection, cfg: TrainConfig) -> int | None:
    """Number of weak examples per step; None to mix them into one order."""
    if cfg.sample.weak_share is None:
        return None
    places = round(cfg.sample.weak_share * cfg.optimise.batch)
    for wanted, available, kind in (
        (places, collection.weak_n, "weak"),
        (cfg.optimise.batch - places, ~collection.weak_n, "full"),
    ):
        if wanted and not available.any():
            raise ConfigError(
                f"--sample.weak-share wants {wanted} images with {kind} labels per step, the data has none"
            )
    return places


# ---------------------------------------------------------------- examples


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One decoded example."""

    pixels_hwc: UInt8
    label_hw: UInt8
    present: Sequence[int]
    """Ids of classes declared present."""
    supervision: int


class _Places(Dataset[_Decoded]):
    """Dataset of the endless order: the decoded and augmented example at each place."""

    def __init__(self, collection: Collection, cfg: TrainConfig, classes: ClassMap) -> None:
        self.collection, self.cfg, self.classes = collection, cfg, classes
        self.order = ExampleOrder(collection, cfg, classes)
        self.fill = [round(255 * mean) for mean in cfg.network.mean]
        self.rare = _rare(collection, cfg)
        self.drawn: dict[int, bytes] = {}
        """Cache of compressed CRF labels by example index: the CRF takes longer than all other steps."""

    def __getitem__(self, place: int) -> _Decoded:
        example, ignore_id = self._read(self.order[place]), self.classes.ignore_id
        pixels, label = example.pixels_hwc, example.label_hw
        if self.cfg.overfit:
            size = self.cfg.augment.crop_px
            view = transforms.centre_crop(pixels, label, size, ignore_id=ignore_id, fill=self.fill)
        else:
            rng = np.random.default_rng((self.cfg.seed, place))
            view = transforms.augment(
                pixels,
                label,
                self.cfg.augment,
                rng,
                ignore_id=ignore_id,
                fill=self.fill,
                rare=self.rare,
            )
        return replace(example, pixels_hwc=view[0], label_hw=view[1])

    def _read(self, index: int) -> _Decoded:
        example = self.collection[index]
        image = channels.decode_channels(example.image, self.cfg.network.channels, scale=self.cfg.network.scale)
        name, pixels = label_name(example.key), image.pixels_hwc
        if is_weak(example.label):
            known = weak.parse_weak_label(
                example.label, self.classes, name=name, height=image.height, width=image.width
            )
            background = weak.background_id(self.cfg.weak, self.classes)
            label, supervision = self._weak_label(index, pixels, known, background)
            decoded = _Decoded(pixels, label, [background, *known.present], supervision)
        else:
            label = labels.decode_label(example.label, self.classes, name=name, height=image.height, width=image.width)
            decoded = _Decoded(pixels, label, np.flatnonzero(self.collection.counts_nk[index]).tolist(), weak.FULL)
        if image.valid_hw is not None:
            decoded.label_hw[~image.valid_hw] = self.classes.ignore_id
        return decoded

    def _weak_label(self, index: int, pixels_hwc: UInt8, known: weak.WeakLabel, background: int) -> tuple[UInt8, int]:
        """Initial label of a weakly labelled image, and its supervision."""
        height, width, _ = pixels_hwc.shape
        if known.boxes is None:
            return np.zeros((height, width), np.uint8), weak.CLASSES
        if self.cfg.weak.boxes != "seg":
            supervision = weak.FULL if self.cfg.weak.boxes == "rect" else weak.BOXES
            return weak.rectangle_labels(known.boxes, height, width, background=background), supervision
        if index not in self.drawn:
            share = self.cfg.weak.sure_share
            drawn = weak.crf_labels(pixels_hwc, known.boxes, sure_share=share, background=background)
            self.drawn[index] = zlib.compress(drawn.tobytes(), 1)
        label = np.frombuffer(zlib.decompress(self.drawn[index]), np.uint8).reshape(height, width)
        return label.copy(), weak.FULL


def _rare(collection: Collection, cfg: TrainConfig) -> list[int]:
    """Ids of rare classes: fewer labelled pixels than the mean class."""
    if cfg.augment.rare_share == 0:
        return []
    counts = collection.counts_nk.sum(axis=0)
    return np.flatnonzero(counts < counts.mean()).tolist()


def _collate(examples: list[_Decoded], classes: int) -> Batch:
    present = torch.zeros((len(examples), classes), dtype=torch.bool)
    for row, example in zip(present, examples, strict=True):
        row[list(example.present)] = True
    images = np.stack([example.pixels_hwc for example in examples]).transpose(0, 3, 1, 2)
    return Batch(
        images_nchw=torch.from_numpy(np.ascontiguousarray(images)),
        labels_nhw=torch.from_numpy(np.stack([example.label_hw for example in examples])),
        present_nk=present,
        supervision_n=torch.tensor([example.supervision for example in examples], dtype=torch.int8),
    )
