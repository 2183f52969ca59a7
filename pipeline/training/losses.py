"""Losses of scores: OHEM, bootstrapped and plain cross entropy, focal, Dice, Lovász-softmax; divergence of a teacher.

In: (N, K, h, w) scores of any float type on the grid of a network, and (N, H, W) labels. Out: a scalar, in float32 at
least, also under autocast. A loss is a sum over pixels or images divided by their number, its unit, which is counted
from the labels of the whole step. So the losses of any split of a batch, into passes or over workers, add up to the
loss of the batch, and their gradients to its gradient. Pixels of the ignore id are left out; a batch of only those has
a loss of 0 and no gradient. Weights are not changed and ranks do not communicate here.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.network import Network, grid_cells
from pipeline.records import Float64, Int64
from pipeline.training.config import LossConfig, Term

PER_IMAGE: frozenset[Term] = frozenset({"ohem", "bootstrapped", "dice", "lovasz"})
"""Terms that are divided by images; the others are divided by pixels."""


class Loss(nn.Module):
    """Weighted sum of a config's loss terms. Move it to the device of the scores like any module."""

    weight_of_id: Tensor
    """(256,) float32: weight of every label value, 0 for the ignore id and values that are no class."""

    def __init__(
        self, cfg: LossConfig, class_weights_k: Float64, *, ignore_id: int, stride: int, align_corners: bool
    ) -> None:
        super().__init__()
        self.cfg, self.ignore_id, self.num_classes = cfg, ignore_id, len(class_weights_k)
        self.stride, self.align_corners = stride, align_corners
        table = torch.zeros(256)
        table[: self.num_classes] = torch.from_numpy(class_weights_k)
        self.register_buffer("weight_of_id", table, persistent=False)

    def units(self, labels_nhw: Tensor) -> Tensor:
        """Divisor of each term, to be summed over the passes and workers of a step.

        Args:
            labels_nhw: (N, H, W) uint8.

        Returns:
            (T,) float32: for terms per pixel the summed weights of labelled pixels, as `F.cross_entropy` divides;
            for terms per image the number of images with a labelled pixel.
        """
        pixels = self.weight_of_id[labels_nhw.long()].sum()
        images = (labels_nhw != self.ignore_id).any(2).any(1).sum().to(pixels)
        return torch.stack([images if term in PER_IMAGE else pixels for term in self.cfg.terms])

    def forward(self, scores_nkhw: Tensor, labels_nhw: Tensor, units: Tensor) -> Tensor:
        """Share of these images in the loss of a step: the sum over terms of weight * sum / units, a scalar.

        Args:
            scores_nkhw: (N, K, h, w), before softmax, on the grid of the network's logits or another grid.
            labels_nhw: (N, H, W) uint8; resizing happens only where (H, W) differs from (h, w).
            units: (T,), summed over the whole step.
        """
        with torch.autocast(scores_nkhw.device.type, enabled=False):
            scores = scores_nkhw.to(torch.promote_types(scores_nkhw.dtype, torch.float32))
            scores, labels = self._at_one_size(scores, labels_nhw)
            # A cell weighs as much as the pixels it covers, because units are counted from labels.
            pixels_per_cell = labels_nhw.numel() / labels.numel()
            total = scores.new_zeros(())
            for (term, weight), unit in zip(self.cfg.terms.items(), units, strict=True):
                share = weight * (1.0 if term in PER_IMAGE else pixels_per_cell)
                total = total + share * self._sum(term, scores, labels) / torch.where(unit > 0, unit, 1)
            return total

    def valid_pixels(self, labels_nhw: Tensor) -> Tensor:
        """Divisor of `divergence`, to be summed over the passes and workers of a step: labelled pixels, (1,) float32.

        Args:
            labels_nhw: (N, H, W) uint8; padding has the ignore id, as unlabelled pixels have.
        """
        return (labels_nhw != self.ignore_id).sum().to(self.weight_of_id)[None]

    def divergence(
        self, scores_nkhw: Tensor, teacher_nkhw: Tensor, labels_nhw: Tensor, pixels: Tensor, *, temperature: float
    ) -> Tensor:
        """Share of these images in the distillation loss of a step: a sum over labelled pixels / `pixels`, a scalar.

        Args:
            scores_nkhw: (N, K, h, w) scores of the student, as in `forward`.
            teacher_nkhw: (N, K, H, W) scores of the teacher at the size of the labels.
            labels_nhw: (N, H, W) uint8.
            pixels: from `valid_pixels`, summed over the whole step.
            temperature: divides the scores of both, above 0.
        """
        with torch.autocast(scores_nkhw.device.type, enabled=False):
            scores = scores_nkhw.to(torch.promote_types(scores_nkhw.dtype, torch.float32))
            scores, labels = self._at_one_size(scores, labels_nhw)
            teacher = self._at_size_of(scores, teacher_nkhw)
            total = kl_divergence(scores, teacher, labels != self.ignore_id, temperature=temperature)
            return total * (labels_nhw.numel() / labels.numel()) / pixels.clamp(min=1).squeeze(0)

    def _at_one_size(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.cfg.at == "labels":
            height, width = labels.shape[1:]
            scores = upsample_scores(scores, height, width, stride=self.stride, align_corners=self.align_corners)
        return scores, self._at_size_of(scores, labels).long()

    def _at_size_of(self, scores: Tensor, full: Tensor) -> Tensor:
        """(..., H, W) -> (..., h, w): the pixel in the middle of each cell of the scores."""
        if full.shape[-2:] == scores.shape[2:]:
            return full
        rows, columns = (
            centres(cells, length, stride=self.stride, align_corners=self.align_corners).to(full.device)
            for cells, length in zip(scores.shape[2:], full.shape[-2:], strict=True)
        )
        return full[..., rows[:, None], columns]

    def _sum(self, term: Term, scores: Tensor, labels: Tensor) -> Tensor:
        cfg, ignore_id, weights = self.cfg, self.ignore_id, self.weight_of_id.to(scores)
        match term:
            case "cross_entropy":
                classes = weights[: self.num_classes]
                return cross_entropy(scores, labels, classes, ignore_id=ignore_id, smoothing=cfg.label_smoothing)
            case "ohem":
                keep, below = cfg.ohem_keep, cfg.ohem_below
                return ohem(scores, labels, weights[labels], ignore_id=ignore_id, keep=keep, below=below)
            case "bootstrapped":
                return bootstrapped(
                    scores, labels, weights[labels], ignore_id=ignore_id, pixels=cfg.bootstrapped_pixels
                )
            case "focal":
                return focal(scores, labels, weights[labels], ignore_id=ignore_id, gamma=cfg.focal_gamma)
            case "dice":
                return dice(scores, labels, ignore_id=ignore_id)
            case "lovasz":
                return lovasz_softmax(scores, labels, ignore_id=ignore_id)


def make_loss(
    cfg: LossConfig, *, class_weights: Float64, ignore_id: int, stride: int = 1, align_corners: bool = False
) -> Loss:
    """Make the loss of a config.

    Args:
        cfg: loss terms and their settings.
        class_weights: (K,), from `class_weights`.
        ignore_id: label of unlabelled pixels, at least K.
        stride: input pixels per logit, as in the network.
        align_corners: grid convention of the logits, as in the network.
    """
    return Loss(cfg, class_weights, ignore_id=ignore_id, stride=stride, align_corners=align_corners)


def branch_weights(cfg: LossConfig, network: Network) -> dict[str, float]:
    """Loss weight of each `supervised` score of a network, without those of weight 0.

    Raises:
        ConfigError: the config names a score that the network does not have, or every weight is 0.
    """
    known = network.loss_weights
    if unknown := cfg.branches.keys() - known.keys():
        hint = f"it has {', '.join(known)}"
        raise ConfigError(f"--loss.branches: the network has no score {', '.join(sorted(unknown))}", hint=hint)
    chosen = {name: weight for name, weight in (cfg.branches or known).items() if weight > 0}
    if not chosen:
        raise ConfigError("--loss.branches: every weight is 0", hint="set one weight above 0")
    return chosen


def upsample_scores(scores_nkhw: Tensor, height: int, width: int, *, stride: int, align_corners: bool) -> Tensor:
    """Upsample scores to the size of labels, (N, K, height, width), bilinear.

    On the grid of the network's logits each cell covers the pixels that `pipeline.models.network` defines, as in
    segment_dataset. Any other grid is stretched to the size.
    """
    cells = scores_nkhw.shape[2:]
    if cells == (height, width):
        return scores_nkhw
    if cells != (grid_cells(height, stride), grid_cells(width, stride)):
        return F.interpolate(scores_nkhw, (height, width), mode="bilinear", align_corners=align_corners)
    covered = [(side - 1) * stride + 1 if align_corners else side * stride for side in cells]
    full = F.interpolate(scores_nkhw, covered, mode="bilinear", align_corners=align_corners)
    beyond = (0, max(0, width - covered[1]), 0, max(0, height - covered[0]))  # pixels after the last cell's
    return F.pad(full[:, :, :height, :width], beyond, mode="replicate")


def centres(cells: int, length: int, *, stride: int, align_corners: bool) -> Tensor:
    """Central pixel of each cell along an axis of `length` pixels: (cells,) int64.

    Cells cover pixels as in `upsample_scores`.
    """
    cell = torch.arange(cells)
    if cells == grid_cells(length, stride):
        return (cell * stride + (0 if align_corners else stride // 2)).clamp(max=length - 1)
    if align_corners:
        return (cell * (length - 1) / max(1, cells - 1)).round().long()
    return ((cell + 0.5) * length / cells).long()


def cross_entropy(
    scores_nkhw: Tensor, labels_nhw: Tensor, weights_k: Tensor, *, ignore_id: int, smoothing: float = 0.0
) -> Tensor:
    """Cross entropy: weighted sum over pixels, nats.

    Label smoothing: Szegedy 2015, arXiv 1512.00567, sec. 7.
    """
    return F.cross_entropy(
        scores_nkhw, labels_nhw, weights_k, ignore_index=ignore_id, label_smoothing=smoothing, reduction="sum"
    )


def ohem(
    scores_nkhw: Tensor, labels_nhw: Tensor, weights_nhw: Tensor, *, ignore_id: int, keep: float, below: float
) -> Tensor:
    """Online hard example mining (bootstrapping): sum over images of the mean cross entropy of their hard pixels.

    Hard pixels are the `keep` share of an image's labelled pixels with the lowest probability of their label, and every
    pixel whose label has a probability below `below`. Wu 2016, arXiv 1605.06885, with a share in place of their number
    of pixels. They choose among the pixels of a whole batch; this chooses within each image, so that the choice does
    not depend on how a batch is split.

    Args:
        scores_nkhw: (N, K, H, W).
        labels_nhw: (N, H, W) int64.
        weights_nhw: (N, H, W), weights of the mean, 0 where ignored.
        ignore_id: label of unlabelled pixels.
        keep: above 0, at most 1.
        below: 0 to 1.
    """
    nats = F.cross_entropy(scores_nkhw, labels_nhw, ignore_index=ignore_id, reduction="none").flatten(1)
    labelled = (labels_nhw != ignore_id).flatten(1)
    probs = torch.exp(-nats.detach()).masked_fill(~labelled, torch.inf)
    last = (labelled.sum(1) * keep).ceil().long().clamp(min=1) - 1
    hardest = probs <= probs.sort(1).values.gather(1, last[:, None])
    weights = weights_nhw.flatten(1) * (labelled & (hardest | (probs < below)))
    return _mean((weights * nats).sum(1), weights.sum(1)).sum()


def bootstrapped(
    scores_nkhw: Tensor, labels_nhw: Tensor, weights_nhw: Tensor, *, ignore_id: int, pixels: int
) -> Tensor:
    """Bootstrapped cross entropy: sum over images of the mean of their largest losses, a fixed number of pixels.

    Wu 2016, arXiv 1605.06885, and Pohlen 2016, arXiv 1611.08323, sec. 5.1, within each image. As in the latter's code
    (https://github.com/TobyPDE/FRRN, dltools/losses.py) an ignored pixel has a loss of 0 and counts in the mean where
    an image has too few others; an image smaller than `pixels` has all its pixels in the mean.

    Args:
        scores_nkhw: (N, K, H, W).
        labels_nhw: (N, H, W) int64.
        weights_nhw: (N, H, W), factors on the losses, also when the largest are chosen; 0 where ignored.
        ignore_id: label of unlabelled pixels.
        pixels: number of pixels in each mean, at least 1.
    """
    nats = F.cross_entropy(scores_nkhw, labels_nhw, ignore_index=ignore_id, reduction="none")
    losses = (weights_nhw * nats).flatten(1)
    return losses.topk(min(pixels, losses.size(1)), sorted=False).values.mean(1).sum()


def kl_divergence(scores_nkhw: Tensor, teacher_nkhw: Tensor, valid_nhw: Tensor, *, temperature: float) -> Tensor:
    """Distillation: sum over valid pixels of T^2 KL(teacher || student), nats, of softmax of scores divided by T.

    Hinton 2015, arXiv 1503.02531, sec. 2: with T^2 the gradient does not shrink as T grows.

    Args:
        scores_nkhw: (N, K, H, W) of the student.
        teacher_nkhw: (N, K, H, W) of the teacher; has no gradient.
        valid_nhw: (N, H, W) bool.
        temperature: T, above 0.
    """
    log_student = F.log_softmax(scores_nkhw / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_nkhw.detach().to(scores_nkhw) / temperature, dim=1)
    nats = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    return temperature**2 * (nats * valid_nhw).sum()


def focal(scores_nkhw: Tensor, labels_nhw: Tensor, weights_nhw: Tensor, *, ignore_id: int, gamma: float) -> Tensor:
    """Focal loss: sum over pixels of -alpha_t (1 - p_t)^gamma log p_t, where the weights are the alphas.

    Lin 2017, arXiv 1708.02002, eq. 5, with softmax for their sigmoid. With gamma 0 it is the cross entropy.
    """
    nats = F.cross_entropy(scores_nkhw, labels_nhw, ignore_index=ignore_id, reduction="none")
    wrong = -torch.expm1(-nats)  # 1 - p_t, exact also where it is small
    # Clamped above 0, where the slope is infinite for a gamma below 1.
    return (weights_nhw * wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** gamma * nats).sum()


def dice(scores_nkhw: Tensor, labels_nhw: Tensor, *, ignore_id: int) -> Tensor:
    """Dice loss: sum over images of the mean, over classes in their labels, of 1 - 2 sum(p g) / (sum(p) + sum(g)).

    Sudre 2017, arXiv 1707.03237, sec. 2, the Dice loss DL2 of each class against the others; Milletari 2016 (arXiv
    1606.04797) squares in the denominator. Class weights are not applied: all classes count equally.
    """
    probs, truth, present = _one_hot(scores_nkhw, labels_nhw, ignore_id)
    overlap = 2 * (probs * truth).sum(2) / (probs.sum(2) + truth.sum(2)).clamp(min=1)
    return _mean(((1 - overlap) * present).sum(1), present.sum(1)).sum()


def lovasz_softmax(scores_nkhw: Tensor, labels_nhw: Tensor, *, ignore_id: int) -> Tensor:
    """Lovász-softmax: sum over images of the mean, over classes in their labels, of the Lovász extension of 1 - IoU.

    Berman 2018, arXiv 1705.08790, sec. 2.2, per image. Class weights are not applied.
    """
    probs, truth, present = _one_hot(scores_nkhw, labels_nhw, ignore_id)
    ignored = (labels_nhw == ignore_id).flatten(1)
    total = 0 * probs.sum((1, 2))  # zeros with a gradient of 0, also for an image without a class
    for k in present.any(0).nonzero()[:, 0].tolist():  # one class at a time: sorting takes several times its memory
        rows = present[:, k].nonzero()[:, 0]
        errors = (truth[rows, k] - probs[rows, k]).abs().masked_fill(ignored[rows], -1)  # sorted last
        total = total.index_add(0, rows, lovasz(errors, truth[rows, k]))
    return _mean(total, present.sum(1)).sum()


def lovasz(errors_np: Tensor, truth_np: Tensor) -> Tensor:
    """Lovász extension of the Jaccard loss of one class. Berman 2018, alg. 1.

    Args:
        errors_np: (N, P) from 0 to 1; below 0 for ignored pixels.
        truth_np: (N, P), 1 in the class and 0 outside.

    Returns:
        (N,), 0 to 1.
    """
    errors, order = errors_np.sort(1, descending=True)
    truth = truth_np.gather(1, order)
    intersection = truth.sum(1, keepdim=True) - truth.cumsum(1)
    union = truth.sum(1, keepdim=True) + (1 - truth).cumsum(1)
    jaccard = 1 - intersection / union
    steps = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(jaccard[:, :1]))
    return (errors.clamp(min=0) * steps).sum(1)


def _one_hot(scores: Tensor, labels: Tensor, ignore_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and one-hot labels, both (N, K, P) and 0 where ignored, and classes present, (N, K) bool."""
    labelled = (labels != ignore_id).flatten(1)[:, None]
    probs = scores.softmax(1).flatten(2) * labelled
    truth = torch.zeros_like(probs).scatter_(1, labels.flatten(1)[:, None] * labelled, 1.0) * labelled
    return probs, truth, truth.amax(2) > 0


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """Divide `total` by `count`; 0 where `count` is 0."""
    return total / torch.where(count > 0, count, 1)


def class_weights(kind: str, counts_nk: Int64, *, beta: float = 0.999, offset: float = 1.02) -> Float64:
    """Class weights from pixel counts: (K,) float64 with a mean of 1 over the classes that occur.

    A class without a pixel gets 1, the average, for its pixels in weakly labelled images.

    Args:
        kind: "none": 1 for every class. "inverse": 1 / pixels. "median_frequency": Eigen and Fergus 2015, arXiv
            1411.4734, sec. 6.3.2: 1 / frequency; frequency is a class's pixels over all pixels of the images that
            contain it. "effective_number": (1 - beta) / (1 - beta^n), Cui 2019, arXiv 1901.05555, sec. 4; n is a
            class's pixels over those of an average image. "inverse_log": 1 / ln(offset + p), Paszke 2016, arXiv
            1606.02147, sec. 5.2; p is a class's share of all labelled pixels.
        counts_nk: (N, K) labelled pixels of each class in each image; all 0 for a weakly labelled image.
        beta: of "effective_number", above 0 and below 1.
        offset: of "inverse_log", above 1; weights are within 1 / ln(1 + offset) and 1 / ln(offset) before the mean
            becomes 1.

    Raises:
        ConfigError: `kind` needs counts and all are 0.
    """
    pixels_k = counts_nk.sum(0)
    weights = np.ones(len(pixels_k))
    if kind == "none":
        return weights
    occurs_k = pixels_k > 0
    if not occurs_k.any():
        hint = "set --loss.class-weights none"
        raise ConfigError(f"--loss.class-weights {kind} needs fully labelled images, the data has none", hint=hint)
    raw = _raw_weights(kind, counts_nk[:, occurs_k], beta, offset)
    weights[occurs_k] = raw / raw.mean()
    return weights


def _raw_weights(kind: str, counts_nk: Int64, beta: float, offset: float) -> Float64:
    """Weights of classes that all occur, up to a common factor."""
    pixels_k, pixels_n = counts_nk.sum(0).astype(np.float64), counts_nk.sum(1)
    if kind == "inverse":
        weights = 1 / pixels_k
    elif kind == "inverse_log":
        weights = 1 / np.log(offset + pixels_k / pixels_k.sum())
    elif kind == "median_frequency":
        weights = ((counts_nk > 0).T @ pixels_n) / pixels_k  # the median is a common factor
    else:
        images_k = pixels_k / pixels_n[pixels_n > 0].mean()
        weights = -1 / np.expm1(images_k * np.log(beta))
    raw: Float64 = weights
    return raw
