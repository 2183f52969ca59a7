"""Weak labels, the classes in an image or boxes around its objects, and the pixel labels that are made from them.

In: the bytes of one JSON file that stands where a label PNG would, `{"classes": ["crop", "weed"]}` or
`{"boxes": [{"class": "car", "box": [x0, y0, x1, y1]}]}`. Out: what it says (`parse`); class ids of every pixel, made
once from boxes (`rect`, `seg`) or anew at every step from the network's own scores (`e_step`). Never reads a file and
never trains.

All of it follows Papandreou, Chen, Murphy and Yuille 2015 (arXiv 1502.02734), whose names are kept: f_m(l) is the
network's score of class l at pixel m, z the set of classes that are in the image, 0 background.
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
_MAX_BYTES = 2**20
"""Of one file; some 20 000 boxes."""
FULL, CLASSES, BOXES = 0, 1, 2
"""What `supervision_n` says of an image: labels of every pixel, its classes, or boxes that the E-step looks into."""
ROUNDS = 30
"""EM-Adapt: how often the biases are raised in turn, at most."""
UNLIKELY = -50.0
"""Bbox-Seg: score of classes that cannot be; the CRF's messages are at most the sum of its weights, about 7."""


class Box(NamedTuple):
    """One object, in pixels of the upright image."""

    class_id: int
    x0: int
    y0: int
    x1: int
    """Exclusive."""
    y1: int
    """Exclusive."""

    @property
    def area_px(self) -> int:
        """Square pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def centre(self, share: float) -> tuple[slice, slice]:
        """Rows and columns of the middle of the box: about this share of its area, at least one pixel."""
        middle = []
        for first, last in ((self.y0, self.y1), (self.x0, self.x1)):
            length = max(1, round((last - first) * share**0.5))
            start = first + (last - first - length) // 2
            middle.append(slice(start, start + length))
        return middle[0], middle[1]


@dataclass(frozen=True, slots=True)
class Weak:
    """What one weak label says."""

    present: tuple[int, ...]
    """Ids of the classes that were named, ascending, each once. Background is in the image whether named or not."""
    boxes: tuple[Box, ...] | None = None
    """In the order of the file; None where only classes were given."""


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


def parse_weak_label(data: bytes, classes: ClassMap, *, name: str, height: int, width: int) -> Weak:
    """Read and check one weak label.

    Args:
        data: the file.
        classes: whose names it may use.
        name: the file's, for messages.
        height: of its image, upright, pixels.
        width: of its image, pixels.

    Raises:
        LabelError: above `MAX_BYTES`; no JSON; other fields than `classes` or `boxes`, or both; a class that is not in
            the map; a box without area, or one that leaves the image.
    """
    if len(data) > _MAX_BYTES:
        raise LabelError(f"the weak label {name} has {len(data)} bytes, the limit is {_MAX_BYTES}")
    try:
        said = _File.model_validate_json(data)
    except ValidationError as error:
        raise LabelError(f"the weak label {name} {_first(error)}", hint=_EXAMPLE) from error
    if (said.classes is None) == (said.boxes is None):
        raise LabelError(f"the weak label {name} should have either classes or boxes", hint=_EXAMPLE)
    if said.boxes is None:
        return Weak(_ids(said.classes or (), classes, name))
    boxes = tuple(_box(one, classes, name, height, width) for one in said.boxes)
    return Weak(tuple(sorted({box.class_id for box in boxes})), boxes)


_EXAMPLE = (
    '{"classes": ["car"]} or {"boxes": [{"class": "car", "box": [x0, y0, x1, y1]}]}, whole pixels, x1 and y1 excluded'
)


def _first(error: ValidationError) -> str:
    """Where the first thing is wrong and what it is, short, whatever the file holds."""
    wrong: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in wrong["loc"])
    said = str(wrong["msg"])[:200]
    return f"is wrong at {where!r}: {said}" if where else f"is no such JSON: {said}"


def _ids(names: Iterable[str], classes: ClassMap, name: str) -> tuple[int, ...]:
    return tuple(sorted({_id(one, classes, name) for one in names}))


def _id(wanted: str, classes: ClassMap, name: str) -> int:
    if wanted not in classes.names:
        hint = f"its classes are {', '.join(classes.names)}"
        raise LabelError(f"the weak label {name} names {wanted[:80]!r}, no class of {classes.name!r}", hint=hint)
    return classes.names.index(wanted)


def _box(one: _Object, classes: ClassMap, name: str, height: int, width: int) -> Box:
    box = Box(_id(one.name, classes, name), *one.box)
    said = f"the weak label {name} has the box {list(one.box)} of class {one.name!r}"
    if box.x1 <= box.x0 or box.y1 <= box.y0:
        raise LabelError(f"{said}, which has no area", hint="x1 and y1 are excluded: [0, 0, 1, 1] is one pixel")
    if min(one.box) < 0 or box.x1 > width or box.y1 > height:
        raise LabelError(f"{said}, which leaves its image of {height}x{width} (rows x columns) pixels")
    return box


def background_id(cfg: WeakConfig, classes: ClassMap) -> int:
    """Id of the class every image has.

    Raises:
        ConfigError: the class map has no class of that name.
    """
    if cfg.background is None:
        return 0
    if cfg.background not in classes.names:
        hint = f"the classes of {classes.name!r} are {', '.join(classes.names)}"
        raise ConfigError(f"--weak.background {cfg.background!r} is no class", hint=hint)
    return classes.names.index(cfg.background)


# ---------------------------------------------------------------- labels from boxes, made once


def rect(boxes: Iterable[Box], height: int, width: int, *, background: int) -> UInt8:
    """Bbox-Rect: every pixel of a box is of its class, of several boxes the smallest has it (sec. 3.3).

    The order of boxes does not matter. Returns (height, width) class ids.
    """
    label_hw = np.full((height, width), background, np.uint8)
    for box in _largest_first(boxes):
        label_hw[box.y0 : box.y1, box.x0 : box.x1] = box.class_id
    return label_hw


def _largest_first(boxes: Iterable[Box]) -> list[Box]:
    """Equal areas by class and place, so that nothing depends on the order they came in."""
    return sorted(boxes, key=lambda box: (-box.area_px, box))


def seg(pixels_hwc: UInt8, boxes: Iterable[Box], *, sure_share: float, background: int) -> UInt8:
    """Bbox-Seg: a dense CRF finds the object within each box (sec. 3.3).

    The middle of a box, `sure_share` of its area, is of its class; pixels outside all boxes are background; a pixel in
    between can be background or of any box it lies in, and goes where its colour and its neighbours draw it. The middle
    of a box holds against larger boxes only, so smaller objects stand in front as in `rect`. One CRF answers for all
    boxes of an image at once.

    Args:
        pixels_hwc: (H, W, bands) uint8, upright.
        boxes: within the image.
        sure_share: 0 to 1; the paper's alpha.
        background: its class id.

    Returns:
        (H, W) class ids. They are the same whatever the order of boxes.
    """
    ordered = _largest_first(boxes)
    height, width = pixels_hwc.shape[:2]
    ids = np.array(sorted({background} | {box.class_id for box in ordered}), np.uint8)
    if len(ids) == 1:
        return np.full((height, width), background, np.uint8)
    ground_khw = np.broadcast_to((ids == background)[:, None, None], (len(ids), height, width))
    possible_khw = _possible(ground_khw, ordered, ids, sure_share)
    scores = np.where(possible_khw, np.float16(0), np.float16(UNLIKELY))
    return ids[_refined(pixels_hwc, scores)]


def _possible(ground_khw: Bool, ordered: list[Box], ids: UInt8, sure_share: float) -> Bool:
    """(len(ids), H, W), which classes a pixel can be of; the smallest box is the last to say."""
    unsure_khw, possible_khw = ground_khw.copy(), ground_khw.copy()
    for box in ordered:
        inside, middle = (slice(box.y0, box.y1), slice(box.x0, box.x1)), box.centre(sure_share)
        own_k = ids == box.class_id
        unsure_khw[own_k, *inside] = True
        possible_khw[:, *inside] = unsure_khw[:, *inside]
        possible_khw[:, *middle] = own_k[:, None, None]
    return possible_khw


def _refined(pixels_hwc: UInt8, scores_khw: Float16) -> UInt8:
    """(H, W) what the CRF makes of full-size scores: indices of their first axis."""
    height, width = pixels_hwc.shape[:2]
    scored = Scored(Item("", "", ""), height, width, stride=1)
    seen = engine.WindowInput(scores_khw, scored, Window(0, 0, height, width), pixels_hwc)
    return _crf()(seen, deadline=np.inf).labels_hw


@cache
def _crf() -> engine.Engine:
    """One per process, in C++ where it was built."""
    made = engine.make_engine(engine.resolve_engine(RefineConfig()))
    assert made is not None  # noqa: S101  # None is for engine "none"
    return made


# ---------------------------------------------------------------- labels from scores, made at every step


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
    """The E-step: the labels a batch is trained on next, the most likely ones that agree with what is known of it.

    Hard EM, sec. 3.2: each pixel takes argmax_l f_m(l) + b_l over the classes that can be there. A class that is not in
    the image is never among them.

    EM-Fixed (Algorithm 1): b_0 = bias_bg, b_l = bias_fg.
    EM-Adapt (sec. 3.2): for each image the smallest biases of at least 0 that give background `share_bg` of its pixels
    and every other class in it `share_fg`, see `least_biases`.
    Bbox-EM-Fixed (sec. 3.3): as EM-Fixed, but b_l only inside the boxes of class l, and outside of all boxes only
    background.

    Args:
        logits_nkhw: (N, K, H, W) float scores, at the size of the labels.
        labels_nhw: (N, H, W) uint8: class ids where supervision is `FULL`, the map of `rect` where it is `BOXES`, and
            where it is `CLASSES` anything but `ignore_id` on pixels that count.
        present_nk: (N, K) bool, background among them.
        supervision_n: (N,) `FULL`, `CLASSES` or `BOXES`.
        cfg: how labels are made.
        background: its class id.
        ignore_id: of pixels that do not count; they stay what they are.

    Returns:
        (N, H, W) uint8, a tensor of its own. Images with `FULL` labels keep them.

    Raises:
        ValueError: logits and labels differ in size.
    """
    if logits_nkhw.shape[2:] != labels_nhw.shape[1:]:
        raise ValueError(f"logits are {tuple(logits_nkhw.shape)}, labels {tuple(labels_nhw.shape)}: sizes differ")
    found_nhw = labels_nhw.clone()
    for n, supervision in enumerate(supervision_n.tolist()):
        if supervision == FULL:
            continue
        ids = present_nk[n].nonzero().flatten()
        scores_phw, ground_p = logits_nkhw[n, ids].float(), ids == background
        valid_hw = labels_nhw[n] != ignore_id
        if supervision == BOXES:
            scores_phw = _in_boxes(scores_phw, ground_p, ids[:, None, None] == labels_nhw[n], cfg)
        elif cfg.classes == "em_fixed":
            scores_phw += torch.where(ground_p, cfg.bias_bg, cfg.bias_fg)[:, None, None]
        else:
            shares = torch.where(ground_p, cfg.share_bg, cfg.share_fg).tolist()
            scores_phw += least_biases(scores_phw[:, valid_hw], shares)[:, None, None]
        answer_hw = ids[scores_phw.argmax(0)].to(labels_nhw.dtype)
        found_nhw[n] = torch.where(valid_hw, answer_hw, labels_nhw[n])
    return found_nhw


def _in_boxes(scores_phw: Tensor, ground_p: Tensor, own_phw: Tensor, cfg: WeakConfig) -> Tensor:
    """Background everywhere, and within boxes the other classes, of which each has its bias on its own pixels."""
    ground_p = ground_p[:, None, None]
    biased = scores_phw + torch.where(ground_p, cfg.bias_bg, cfg.bias_fg * own_phw)
    outside_hw = (own_phw & ground_p).any(0)
    return biased.masked_fill(~ground_p & outside_hw, -torch.inf)


def least_biases(scores_km: Tensor, shares: list[float]) -> Tensor:
    """EM-Adapt's biases, (K,): the smallest, all at least 0, with which class k wins on `shares[k]` of M pixels.

    Biases are raised in turn, each until its class wins on its share of pixels given the others: the percentile of how
    far the class is behind, as in the authors' AdaptiveBiasChannel layer. Raising one class never helps another, so the
    biases come up to the smallest solution from below, whatever the turn, mostly in fewer than ten rounds. A share can
    be missed by as many pixels as there are classes, where two of them tie. Shares that add up to more than 1 are
    scaled down to 1. Pixels whose scores are equal all go the same way.

    Args:
        scores_km: (K, M) float32, finite.
        shares: one of 0 to 1 for each class.
    """
    classes, pixels = scores_km.shape
    biases = scores_km.new_zeros(classes)
    quotas = [int(share / max(1.0, sum(shares)) * pixels) for share in shares]
    for _ in range(ROUNDS if pixels else 0):
        before = biases.clone()
        for k, quota in enumerate(quotas):
            if quota:
                biased_km = scores_km + biases[:, None]
                behind = biased_km.amax(0) - biased_km[k]
                biases[k] += behind.kthvalue(min(quota + 1, pixels)).values
        if torch.equal(biases, before):
            break
    return biases
