"""Weak supervision: pixel labels from image-level classes or boxes.

In: the bytes of one JSON file in place of a label PNG, `{"classes": ["crop", "weed"]}` or
`{"boxes": [{"class": "car", "box": [x0, y0, x1, y1]}]}`. Out: a checked `WeakLabel`; class ids of every pixel, made
once from boxes (`rectangle_labels`, `crf_labels`) or at every step from the network's own scores (`e_step`). No file is
read and no weight is changed here.

Source of all methods: Papandreou, Chen, Murphy and Yuille 2015 (arXiv 1502.02734). In its notation f_m(l) is the
network's score of class l at pixel m, z the set of classes in the image, and 0 background.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.classes import ClassMap
from pipeline.config import RefineConfig
from pipeline.errors import ConfigError, LabelError
from pipeline.records import Bool, Float16, Item, Scored, UInt8, Window
from pipeline.refine import engine
from pipeline.training.config import WeakConfig

WEAK_SUFFIX = ".json"
"""Suffix of a weak label, in place of .png."""
_MAX_BYTES = 2**20
"""Largest size of one weak label, bytes; about 20 000 boxes."""
FULL, CLASSES, BOXES = 0, 1, 2
"""Values of `supervision_n`: labels of every pixel, image-level classes, or boxes for the E-step."""
ROUNDS = 30
"""EM-Adapt: largest number of rounds that raise every bias once."""
UNLIKELY = -50.0
"""Bbox-Seg: score of impossible classes; the CRF's messages are at most the sum of its weights, about 7."""


class Box(NamedTuple):
    """Box of one object, in pixels of the upright image."""

    class_id: int
    x0: int
    y0: int
    x1: int
    """Exclusive."""
    y1: int
    """Exclusive."""

    @property
    def area_px(self) -> int:
        """Area, square pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def centre(self, share: float) -> tuple[slice, slice]:
        """Rows and columns of the centre of the box: about `share` of its area, at least one pixel."""
        centre = []
        for first, last in ((self.y0, self.y1), (self.x0, self.x1)):
            length = max(1, round((last - first) * share**0.5))
            start = first + (last - first - length) // 2
            centre.append(slice(start, start + length))
        return centre[0], centre[1]


@dataclass(frozen=True, slots=True)
class WeakLabel:
    """Classes or boxes of one image."""

    present: tuple[int, ...]
    """Ids of the named classes, ascending, each once. Background is present in every image, named or not."""
    boxes: tuple[Box, ...] | None = None
    """Boxes in the order of the file; None for image-level classes."""


# ---------------------------------------------------------------- reading


_Pixel = Annotated[int, Field(gt=-(2**31), lt=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Object(_Strict):
    name: str = Field(alias="class")
    box: tuple[_Pixel, _Pixel, _Pixel, _Pixel]


class _File(_Strict):
    classes: tuple[str, ...] | None = None
    boxes: tuple[_Object, ...] | None = None


def parse_weak_label(data: bytes, classes: ClassMap, *, name: str, height: int, width: int) -> WeakLabel:
    """Parse and check one weak label.

    Args:
        data: content of the JSON file.
        classes: class map whose names it uses.
        name: name of the label in error messages.
        height: of the upright image, pixels.
        width: of the upright image, pixels.

    Raises:
        LabelError: more than 1 MiB; not JSON; fields other than either `classes` or `boxes`; a class that is not in the
            map; a box without area or beyond the image.
    """
    if len(data) > _MAX_BYTES:
        raise LabelError(f"the weak label {name} has {len(data)} bytes, the limit is {_MAX_BYTES}")
    try:
        file = _File.model_validate_json(data)
    except ValidationError as error:
        raise LabelError(f"the weak label {name} {_first_error(error)}", hint=_EXAMPLE) from error
    if (file.classes is None) == (file.boxes is None):
        raise LabelError(f"the weak label {name} should have either classes or boxes", hint=_EXAMPLE)
    if file.boxes is None:
        return WeakLabel(_ids(file.classes or (), classes, name))
    boxes = tuple(_box(entry, classes, name, height, width) for entry in file.boxes)
    return WeakLabel(tuple(sorted({box.class_id for box in boxes})), boxes)


_EXAMPLE = (
    '{"classes": ["car"]} or {"boxes": [{"class": "car", "box": [x0, y0, x1, y1]}]}, whole pixels, x1 and y1 excluded'
)


def _first_error(error: ValidationError) -> str:
    """Field and message of the first error, of bounded length for any file."""
    first: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part)[:40] for part in first["loc"])
    message = str(first["msg"])[:200]
    return f"is wrong at {field!r}: {message}" if field else f"is not valid JSON: {message}"


def _ids(names: Iterable[str], classes: ClassMap, name: str) -> tuple[int, ...]:
    return tuple(sorted({_id(class_name, classes, name) for class_name in names}))


def _id(class_name: str, classes: ClassMap, name: str) -> int:
    if class_name not in classes.names:
        hint = f"its classes are {', '.join(classes.names)}"
        raise LabelError(f"the weak label {name} names {class_name[:80]!r}, no class of {classes.name!r}", hint=hint)
    return classes.names.index(class_name)


def _box(entry: _Object, classes: ClassMap, name: str, height: int, width: int) -> Box:
    box = Box(_id(entry.name, classes, name), *entry.box)
    subject = f"the weak label {name} has the box {list(entry.box)} of class {entry.name!r}"
    if box.x1 <= box.x0 or box.y1 <= box.y0:
        raise LabelError(f"{subject}, which has no area", hint="x1 and y1 are excluded: [0, 0, 1, 1] is one pixel")
    if min(entry.box) < 0 or box.x1 > width or box.y1 > height:
        raise LabelError(f"{subject}, which leaves its image of {height}x{width} (rows x columns) pixels")
    return box


def background_id(cfg: WeakConfig, classes: ClassMap) -> int:
    """Id of the background class.

    Raises:
        ConfigError: the class map has no class `cfg.background`.
    """
    if cfg.background is None:
        return 0
    if cfg.background not in classes.names:
        hint = f"the classes of {classes.name!r} are {', '.join(classes.names)}"
        raise ConfigError(f"--weak.background {cfg.background!r} is not a class", hint=hint)
    return classes.names.index(cfg.background)


# ---------------------------------------------------------------- labels from boxes


def rectangle_labels(boxes: Iterable[Box], height: int, width: int, *, background: int) -> UInt8:
    """Bbox-Rect: every pixel of a box gets its class; where boxes overlap, the smallest box wins (sec. 3.3).

    Returns (height, width) uint8 class ids, independent of the order of boxes.
    """
    label_hw = np.full((height, width), background, np.uint8)
    for box in _largest_first(boxes):
        label_hw[box.y0 : box.y1, box.x0 : box.x1] = box.class_id
    return label_hw


def _largest_first(boxes: Iterable[Box]) -> list[Box]:
    """Sort boxes by descending area, then by class and place, so that the order of the file does not matter."""
    return sorted(boxes, key=lambda box: (-box.area_px, box))


def crf_labels(pixels_hwc: UInt8, boxes: Iterable[Box], *, sure_share: float, background: int) -> UInt8:
    """Bbox-Seg: a dense CRF segments the object within each box (sec. 3.3).

    The centre of a box, `sure_share` of its area, is fixed to its class, and pixels outside all boxes to background.
    The CRF labels a pixel in between as background or the class of any box it lies in. A centre overrides larger boxes
    only, so smaller objects are in front as in `rectangle_labels`. One CRF labels all boxes of an image together.

    Args:
        pixels_hwc: (H, W, bands) uint8, upright.
        boxes: boxes within the image.
        sure_share: 0 to 1; the paper's alpha.
        background: id of the background class.

    Returns:
        (H, W) uint8 class ids, independent of the order of boxes.
    """
    ordered = _largest_first(boxes)
    height, width = pixels_hwc.shape[:2]
    ids = np.array(sorted({background} | {box.class_id for box in ordered}), np.uint8)
    if len(ids) == 1:
        return np.full((height, width), background, np.uint8)
    ground_khw = np.broadcast_to((ids == background)[:, None, None], (len(ids), height, width))
    possible_khw = _possible_classes(ground_khw, ordered, ids, sure_share)
    scores = np.where(possible_khw, np.float16(0), np.float16(UNLIKELY))
    return ids[_refine(pixels_hwc, scores)]


def _possible_classes(ground_khw: Bool, ordered: list[Box], ids: UInt8, sure_share: float) -> Bool:
    """(len(ids), H, W) bool, possible classes of each pixel; smaller boxes override larger ones."""
    unsure_khw, possible_khw = ground_khw.copy(), ground_khw.copy()
    for box in ordered:
        inside, centre = (slice(box.y0, box.y1), slice(box.x0, box.x1)), box.centre(sure_share)
        own_k = ids == box.class_id
        unsure_khw[own_k, *inside] = True
        possible_khw[:, *inside] = unsure_khw[:, *inside]
        possible_khw[:, *centre] = own_k[:, None, None]
    return possible_khw


def _refine(pixels_hwc: UInt8, scores_khw: Float16) -> UInt8:
    """Refine full-size scores by the CRF: (H, W) indices of their first axis."""
    height, width = pixels_hwc.shape[:2]
    scored = Scored(Item("", "", ""), height, width, stride=1)
    window = engine.WindowInput(scores_khw, scored, Window(0, 0, height, width), pixels_hwc)
    return _crf()(window, deadline=np.inf).labels_hw


@cache
def _crf() -> engine.Engine:
    """CRF engine of this process, in C++ where it was built."""
    crf = engine.make_engine(engine.resolve_engine(RefineConfig()))
    assert crf is not None  # noqa: S101  # None is for engine "none"
    return crf


# ---------------------------------------------------------------- labels from scores, at every step


@torch.no_grad()
def e_step(
    logits_nkhw: Tensor,
    labels_nhw: Tensor,
    present_nk: Tensor,
    supervision_n: Tensor,
    cfg: WeakConfig,
    *,
    background: int,
    ignore_id: int,
) -> Tensor:
    """E-step of hard EM (sec. 3.2): the most likely labels of a batch under its weak labels, for the next update.

    Each pixel takes argmax_l f_m(l) + b_l over the classes that are possible there, all of them in the image.

    EM-Fixed (Algorithm 1): b_0 = bias_bg, b_l = bias_fg.
    EM-Adapt (sec. 3.2): per image the smallest biases of at least 0 that give background `share_bg` of the pixels and
    every other present class `share_fg`, see `least_biases`.
    Bbox-EM-Fixed (sec. 3.3): as EM-Fixed, but b_l applies inside the boxes of class l only, and pixels outside all
    boxes are background.

    Args:
        logits_nkhw: (N, K, H, W) float scores, at the size of the labels.
        labels_nhw: (N, H, W) uint8: class ids for `FULL`, `rectangle_labels` for `BOXES`, and for `CLASSES` any value
            except `ignore_id` on valid pixels.
        present_nk: (N, K) bool, classes present; background always is.
        supervision_n: (N,) `FULL`, `CLASSES` or `BOXES`.
        cfg: method, biases and shares.
        background: id of the background class.
        ignore_id: label of ignored pixels, which keep it.

    Returns:
        (N, H, W) uint8, a new tensor. `FULL` labels are copied.

    Raises:
        ValueError: logits and labels differ in size.
    """
    if logits_nkhw.shape[2:] != labels_nhw.shape[1:]:
        raise ValueError(f"logits are {tuple(logits_nkhw.shape)}, labels {tuple(labels_nhw.shape)}: sizes differ")
    completed_nhw = labels_nhw.clone()
    for n, supervision in enumerate(supervision_n.tolist()):
        if supervision == FULL:
            continue
        ids = present_nk[n].nonzero().flatten()
        scores_phw, ground_p = logits_nkhw[n, ids].float(), ids == background
        valid_hw = labels_nhw[n] != ignore_id
        if supervision == BOXES:
            scores_phw = _bias_in_boxes(scores_phw, ground_p, ids[:, None, None] == labels_nhw[n], cfg)
        elif cfg.classes == "em_fixed":
            scores_phw += torch.where(ground_p, cfg.bias_bg, cfg.bias_fg)[:, None, None]
        else:
            shares = torch.where(ground_p, cfg.share_bg, cfg.share_fg).tolist()
            scores_phw += least_biases(scores_phw[:, valid_hw], shares)[:, None, None]
        label_hw = ids[scores_phw.argmax(0)].to(labels_nhw.dtype)
        completed_nhw[n] = torch.where(valid_hw, label_hw, labels_nhw[n])
    return completed_nhw


def _bias_in_boxes(scores_phw: Tensor, ground_p: Tensor, own_phw: Tensor, cfg: WeakConfig) -> Tensor:
    """Add background's bias everywhere and a class's bias on its own boxes; mask other classes outside all boxes."""
    ground_p = ground_p[:, None, None]
    biased = scores_phw + torch.where(ground_p, cfg.bias_bg, cfg.bias_fg * own_phw)
    outside_hw = (own_phw & ground_p).any(0)
    return biased.masked_fill(~ground_p & outside_hw, -torch.inf)


def least_biases(scores_km: Tensor, shares: list[float]) -> Tensor:
    """EM-Adapt's biases, (K,): the smallest, all at least 0, with which class k wins on `shares[k]` of M pixels.

    Each round raises every bias until its class wins on its share of pixels given the others: by the percentile of the
    class's deficit, as in the authors' AdaptiveBiasChannel layer. Raising one class never helps another, so the biases
    converge to the smallest solution from below in any order, mostly in fewer than ten rounds. With ties a share can be
    missed by as many pixels as there are classes. Shares that add up to more than 1 are scaled down to 1. Pixels with
    equal scores all get the same class.

    Args:
        scores_km: (K, M) float32, finite.
        shares: share of pixels of each class, 0 to 1.
    """
    classes, pixels = scores_km.shape
    biases = scores_km.new_zeros(classes)
    quotas = [int(share / max(1.0, sum(shares)) * pixels) for share in shares]
    for _ in range(ROUNDS if pixels else 0):
        before = biases.clone()
        for k, quota in enumerate(quotas):
            if quota:
                biased_km = scores_km + biases[:, None]
                deficit = biased_km.amax(0) - biased_km[k]
                biases[k] += deficit.kthvalue(min(quota + 1, pixels)).values
        if torch.equal(biases, before):
            break
    return biases
