import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.network import grid_cells
from pipeline.records import Item, Scored, Window
from pipeline.refine import unary
from pipeline.training import losses
from pipeline.training.config import LossConfig
from tests.support.examples import examples

K, IGNORE = 4, 255
few = examples(25)
TERMS = ("cross_entropy", "ohem", "bootstrapped", "focal", "dice", "lovasz")
values = st.sampled_from([0, 1, 2, 3, IGNORE])
labels = arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)), elements=values)
weights = arrays(np.float64, K, elements=st.sampled_from([0.25, 0.5, 1, 3]))
sides = st.integers(1, 40)


@st.composite
def compared(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, float64, and labels of one size."""
    truth = torch.from_numpy(draw(labels))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    scores = torch.randn(len(truth), K, *truth.shape[1:], generator=generator, dtype=torch.float64)
    return 2 * scores, truth


def loss_of(terms: dict[str, float], class_weights: np.ndarray | None = None, **options) -> losses.Loss:
    stride = options.pop("stride", 1)
    weights = np.ones(K) if class_weights is None else class_weights
    return losses.make_loss(LossConfig(terms=terms, **options), class_weights=weights, ignore_id=IGNORE, stride=stride)


def value(loss: losses.Loss, scores: torch.Tensor, truth: torch.Tensor) -> float:
    return float(loss(scores, truth, loss.units(truth)))


def of_images(scores: torch.Tensor, truth: torch.Tensor):
    """(P, K) probabilities and (P,) labels of the labelled pixels of each image that has any."""
    for probs, label in zip(scores.softmax(1).numpy(), truth.numpy(), strict=True):
        if (label != IGNORE).any():
            yield probs[:, label != IGNORE].T, label[label != IGNORE]


def slow_ohem(scores, truth, class_weights, keep, below) -> float:
    found = []
    for probs, label in of_images(scores, truth):
        pixels = sorted((probs[i, k], class_weights[k]) for i, k in enumerate(label))
        hard = pixels[: math.ceil(keep * len(pixels))]
        hard += [pixel for pixel in pixels[len(hard) :] if pixel[0] < below]
        found.append(sum(-w * math.log(p) for p, w in hard) / sum(w for _, w in hard))
    return float(np.mean(found))


def slow_focal(scores, truth, class_weights, gamma) -> float:
    total = norm = 0.0
    for probs, label in of_images(scores, truth):
        for pixel, k in zip(probs, label, strict=True):
            total -= class_weights[k] * (1 - pixel[k]) ** gamma * math.log(pixel[k])
            norm += class_weights[k]
    return total / norm


def slow_dice(scores, truth) -> float:
    images = []
    for probs, label in of_images(scores, truth):
        found = []
        for k in set(label):
            overlap = sum(probs[i, k] for i in range(len(label)) if label[i] == k)
            found.append(1 - 2 * overlap / (probs[:, k].sum() + (label == k).sum()))
        images.append(np.mean(found))
    return float(np.mean(images))


def slow_lovasz(scores, truth) -> float:
    """By the definition of the extension: the loss of a set of errors, for growing sets of the largest."""
    images = []
    for probs, label in of_images(scores, truth):
        found = []
        for k in set(label):
            own = {i for i in range(len(label)) if label[i] == k}
            errors = [1 - probs[i, k] if i in own else probs[i, k] for i in range(len(label))]
            order = sorted(range(len(label)), key=lambda i, errors=errors: -errors[i])
            sets = [set(order[:n]) for n in range(len(order) + 1)]
            jaccard = [len(wrong) / len(own | wrong) for wrong in sets]
            found.append(sum(errors[i] * (b - a) for i, (a, b) in zip(order, itertools.pairwise(jaccard), strict=True)))
        images.append(np.mean(found))
    return float(np.mean(images))


@few
@given(compared(), weights, st.sampled_from([0.0, 0.1]))
def test_cross_entropy_is_that_of_torch(pair, class_weights, smoothing: float) -> None:
    scores, truth = pair
    assume((truth != IGNORE).any())
    expected = F.cross_entropy(
        scores,
        truth.long(),
        torch.from_numpy(class_weights),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    loss = loss_of({"cross_entropy": 1}, class_weights, label_smoothing=smoothing)
    assert value(loss, scores, truth) == pytest.approx(float(expected), rel=1e-6)


@few
@given(compared(), weights, st.sampled_from([0.05, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 1.0]))
def test_ohem_is_the_mean_over_a_sorted_list_of_hard_pixels(pair, class_weights, keep: float, below: float) -> None:
    scores, truth = pair
    assume((truth != IGNORE).any())
    loss = loss_of({"ohem": 1}, class_weights, ohem_keep=keep, ohem_below=below)
    assert value(loss, scores, truth) == pytest.approx(slow_ohem(*pair, class_weights, keep, below), rel=1e-5)


def slow_bootstrapped(scores, truth, class_weights, pixels: int) -> float:
    found = []
    for probs, label in zip(scores.softmax(1).numpy(), truth.numpy(), strict=True):
        if (label == IGNORE).all():
            continue
        nats = [
            0.0 if k == IGNORE else -class_weights[k] * math.log(probs[(k, *at)]) for at, k in np.ndenumerate(label)
        ]
        found.append(np.mean(sorted(nats)[-pixels:]))
    return float(np.mean(found))


@few
@given(compared(), weights, st.sampled_from([1, 3, 10, 1000]))
def test_bootstrapped_is_the_mean_of_the_largest_losses_of_a_sorted_list(pair, class_weights, pixels: int) -> None:
    assume((pair[1] != IGNORE).any())
    loss = loss_of({"bootstrapped": 1}, class_weights, bootstrapped_pixels=pixels)
    assert value(loss, *pair) == pytest.approx(slow_bootstrapped(*pair, class_weights, pixels), rel=1e-5)


@few
@given(compared())
def test_bootstrapped_over_all_pixels_of_labelled_images_is_the_mean_cross_entropy(pair) -> None:
    scores, truth = pair
    truth = truth.clamp(max=K - 1)
    loss = loss_of({"bootstrapped": 1}, bootstrapped_pixels=truth[0].numel())
    assert value(loss, scores, truth) == pytest.approx(float(F.cross_entropy(scores, truth.long())), rel=1e-6)


@few
@given(compared(), st.integers(1, 40))
def test_fewer_bootstrapped_pixels_never_have_a_smaller_mean(pair, pixels: int) -> None:
    few, more = (value(loss_of({"bootstrapped": 1}, bootstrapped_pixels=n), *pair) for n in (pixels, pixels + 1))
    assert few >= more - 1e-6


def test_ignored_pixels_count_as_0_where_an_image_has_too_few_others() -> None:
    scores, truth = torch.zeros(1, K, 4, 4), torch.full((1, 4, 4), IGNORE, dtype=torch.uint8)
    truth[0, 0] = 1
    assert value(loss_of({"bootstrapped": 1}, bootstrapped_pixels=8), scores, truth) == pytest.approx(math.log(K) / 2)
    assert value(loss_of({"bootstrapped": 1}, bootstrapped_pixels=4), scores, truth) == pytest.approx(math.log(K))


@few
@given(compared(), weights, st.sampled_from([0.5, 1.0, 2.0]))
def test_focal_is_its_formula_over_a_loop(pair, class_weights, gamma: float) -> None:
    scores, truth = pair
    assume((truth != IGNORE).any())
    loss = loss_of({"focal": 1}, class_weights, focal_gamma=gamma)
    assert value(loss, scores, truth) == pytest.approx(slow_focal(*pair, class_weights, gamma), rel=1e-5)


@few
@given(compared(), weights)
def test_without_gamma_focal_is_cross_entropy(pair, class_weights) -> None:
    plain, focal = loss_of({"cross_entropy": 1}, class_weights), loss_of({"focal": 1}, class_weights, focal_gamma=0)
    assert value(focal, *pair) == pytest.approx(value(plain, *pair), rel=1e-6)


@few
@given(compared())
def test_dice_and_lovasz_are_their_definitions_by_sets(pair) -> None:
    assume((pair[1] != IGNORE).any())
    assert value(loss_of({"dice": 1}), *pair) == pytest.approx(slow_dice(*pair), rel=1e-6)
    assert value(loss_of({"lovasz": 1}), *pair) == pytest.approx(slow_lovasz(*pair), rel=1e-6)


@few
@given(compared())
def test_dice_and_lovasz_lie_between_0_and_1_and_are_0_for_the_truth(pair) -> None:
    scores, truth = pair
    sure = 1e3 * F.one_hot(truth.long().clamp(max=K - 1), K).movedim(-1, 1).double()
    for term in ("dice", "lovasz"):
        assert 0 <= value(loss_of({term: 1}), scores, truth) <= 1 + 1e-9
        assert value(loss_of({term: 1}), sure, truth) == pytest.approx(0, abs=1e-9)


@few
@given(arrays(bool, (3, 8)), arrays(bool, (3, 8)))
def test_the_lovasz_extension_of_a_hard_answer_is_1_less_its_iou(truth, answer) -> None:
    truth[:, 0] = True  # in every image
    found = losses.lovasz(torch.from_numpy(truth ^ answer).double(), torch.from_numpy(truth).double())
    iou = (truth & answer).sum(1) / (truth | answer).sum(1)
    np.testing.assert_allclose(found, 1 - iou, atol=1e-12)


@pytest.mark.parametrize("at", ["labels", "logits"])
@few
@given(data=st.data())
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_batch(at: str, data: st.DataObject) -> None:
    _, truth = data.draw(compared())
    first = data.draw(st.integers(0, len(truth)))
    scores = torch.randn(len(truth), K, *(grid_cells(side, 2) for side in truth.shape[1:]), dtype=torch.float64)
    loss = loss_of(dict.fromkeys(TERMS, 0.5), np.array([0.5, 1, 2, 1]), at=at, stride=2)
    parts = [(scores[:first], truth[:first]), (scores[first:], truth[first:])]
    parts = [part for part in parts if len(part[0])]
    units = sum(loss.units(truth) for _, truth in parts)
    torch.testing.assert_close(units, loss.units(truth))
    found = [torch.func.grad_and_value(loss)(*part, units) for part in parts]
    whole_grad, whole = torch.func.grad_and_value(loss)(scores, truth, units)
    torch.testing.assert_close(sum(one for _, one in found), whole)
    torch.testing.assert_close(torch.cat([grad for grad, _ in found]), whole_grad)


@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_those_of_finite_differences(term: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, K, 2, 2, dtype=torch.float64, requires_grad=True)
    truth = torch.randint(0, K, (2, 4, 3), dtype=torch.uint8)
    truth[0, 0] = IGNORE
    loss = loss_of({term: 1}, label_smoothing=0.1, stride=2)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, truth, loss.units(truth)), scores)


@pytest.mark.parametrize("at", ["labels", "logits"])
@pytest.mark.parametrize("term", TERMS)
def test_a_batch_without_labels_has_no_loss_and_no_gradient(term: str, at: str) -> None:
    scores = torch.randn(2, K, 2, 3, requires_grad=True)
    truth = torch.full((2, 8, 12), IGNORE, dtype=torch.uint8)
    loss = loss_of({term: 1}, at=at, stride=4)
    found = loss(scores, truth, loss.units(truth))
    found.backward()
    assert found == 0
    assert (scores.grad == 0).all()


@pytest.mark.parametrize("term", TERMS)
def test_ignored_pixels_change_nothing(term: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, K, 4, 5)
    truth = torch.randint(0, K, (2, 4, 5), dtype=torch.uint8)
    wider, padded = F.pad(scores, (0, 3), value=7.0), F.pad(truth, (0, 3), value=IGNORE)
    loss = loss_of({term: 1}, bootstrapped_pixels=20)
    assert value(loss, wider, padded) == pytest.approx(value(loss, scores, truth), rel=1e-6)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certain_scores_have_a_finite_loss_and_gradient(term: str, gamma: float) -> None:
    scores = torch.tensor([200.0, -200.0, 0, 0]).view(1, K, 1, 1).repeat(1, 1, 2, 2).requires_grad_()
    truth = torch.tensor([[[0, 1], [0, 1]]], dtype=torch.uint8)
    loss = loss_of({term: 1}, focal_gamma=gamma)
    found = loss(scores, truth, loss.units(truth))
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("term", TERMS)
def test_half_precision_scores_are_compared_in_full(term: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, K, 5, 5).bfloat16()
    truth = torch.randint(0, K, (1, 9, 9), dtype=torch.uint8)
    loss = loss_of({term: 1}, stride=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(scores, truth, loss.units(truth))
    assert found.dtype == torch.float32
    assert found == loss(scores.float(), truth, loss.units(truth))


@few
@given(compared(), st.sampled_from([0.5, 1.0, 4.0]))
def test_divergence_from_a_teacher_is_that_of_torch_and_its_sum_over_a_loop(pair, temperature: float) -> None:
    scores, truth = pair
    teacher = torch.randn(scores.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    loss = loss_of({"cross_entropy": 1})
    pixels = loss.valid_pixels(truth)
    given = float(loss.divergence(scores, teacher, truth, pixels, temperature=temperature))
    total, count = 0.0, 0
    for n, i, j in (truth != IGNORE).nonzero().tolist():
        p, q = (torch.softmax(one[n, :, i, j] / temperature, 0) for one in (teacher, scores))
        total += temperature**2 * sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True))
        count += 1
    assert pixels == count
    assert given == pytest.approx(total / max(count, 1), abs=1e-9)
    assert given >= 0
    if (truth != IGNORE).all():
        flat = [one.movedim(1, -1).flatten(0, -2) / temperature for one in (scores, teacher)]
        wanted = F.kl_div(flat[0].log_softmax(1), flat[1].softmax(1), reduction="batchmean") * temperature**2
        assert given == pytest.approx(float(wanted), abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_teacher_that_is_the_student_has_no_loss_and_no_gradient(temperature: float) -> None:
    torch.manual_seed(0)
    scores = (5 * torch.randn(2, K, 4, 5, dtype=torch.float64)).requires_grad_()
    truth = torch.randint(0, K, (2, 4, 5), dtype=torch.uint8)
    loss = loss_of({"cross_entropy": 1})
    found = loss.divergence(scores, scores, truth, loss.valid_pixels(truth), temperature=temperature)
    found.backward()
    assert abs(found) < 1e-12
    assert scores.grad.abs().max() < 1e-12


@pytest.mark.parametrize("at", ["labels", "logits"])
def test_gradients_of_the_divergence_are_those_of_finite_differences(at: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, K, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, K, 4, 3, dtype=torch.float64)
    truth = torch.randint(0, K, (2, 4, 3), dtype=torch.uint8)
    truth[0, 0] = IGNORE
    loss = loss_of({"cross_entropy": 1}, at=at, stride=2)
    pixels = loss.valid_pixels(truth)
    assert torch.autograd.gradcheck(lambda x: loss.divergence(x, teacher, truth, pixels, temperature=2.0), scores)


def test_divergence_without_a_labelled_pixel_is_0_and_certain_scores_are_finite() -> None:
    truth = torch.full((1, 4, 5), IGNORE, dtype=torch.uint8)
    scores, loss = torch.randn(1, K, 4, 5, requires_grad=True), loss_of({"cross_entropy": 1})
    teacher = torch.randn(1, K, 4, 5)
    assert loss.divergence(scores, teacher, truth, loss.valid_pixels(truth), temperature=1.0) == 0
    certain = loss.divergence(scores, 1e4 * teacher, truth * 0, loss.valid_pixels(truth * 0), temperature=1.0)
    certain.backward()
    assert certain.isfinite()
    assert scores.grad.isfinite().all()


def test_terms_add_up_by_their_weights() -> None:
    torch.manual_seed(0)
    scores, truth = torch.randn(2, K, 4, 4), torch.randint(0, K, (2, 4, 4), dtype=torch.uint8)
    both = value(loss_of({"cross_entropy": 0.5, "lovasz": 2}), scores, truth)
    alone = [value(loss_of({term: 1}), scores, truth) for term in ("cross_entropy", "lovasz")]
    assert both == pytest.approx(0.5 * alone[0] + 2 * alone[1])


@few
@given(sides, sides, st.integers(1, 9), st.booleans())
def test_logits_are_upsampled_as_in_the_main_job(height: int, width: int, stride: int, align_corners: bool) -> None:
    logits = np.random.default_rng(height * 41 + width).normal(
        size=(2, grid_cells(height, stride), grid_cells(width, stride))
    )
    logits = logits.astype(np.float32)
    scored = Scored(Item("", "", ""), stride=stride, align_corners=align_corners)
    expected = unary.upsample_window(logits, scored, Window(0, 0, height, width))
    shape = {"stride": stride, "align_corners": align_corners}
    found = losses.upsample_scores(torch.from_numpy(logits)[None], height, width, **shape)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@few
@given(sides, st.integers(1, 9), st.booleans())
def test_labels_are_taken_from_the_middle_of_cells(length: int, stride: int, align_corners: bool) -> None:
    cells = grid_cells(length, stride)
    found = losses.centres(cells, length, stride=stride, align_corners=align_corners)
    for cell, pixel in enumerate(found.tolist()):
        inside = [cell * stride] if align_corners else range(cell * stride, min((cell + 1) * stride, length))
        assert pixel in inside
        if cell < cells - 1 and not align_corners:
            assert abs(2 * pixel + 1 - (2 * cell + 1) * stride) <= 1  # twice the distance of the centres


@few
@given(st.integers(2, 30), st.integers(2, 30), st.booleans())
def test_labels_on_another_grid_are_those_nearest_to_where_upsampling_looks(
    cells: int, length: int, align_corners: bool
) -> None:
    assume(cells <= length)
    ramp = torch.arange(length).float()
    found = losses.centres(cells, length, stride=1000, align_corners=align_corners)
    exact = F.interpolate(ramp[None, None, None], (1, cells), mode="bilinear", align_corners=align_corners)[0, 0, 0]
    assert (found - exact).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("term", ["cross_entropy", "focal", "ohem", "dice", "lovasz"])
def test_labels_that_are_constant_in_each_cell_give_the_loss_of_cells(term: str) -> None:
    torch.manual_seed(0)
    scores, truth = torch.randn(2, K, 3, 5), torch.randint(0, K, (2, 3, 5), dtype=torch.uint8)
    fine = truth.repeat_interleave(8, 1).repeat_interleave(8, 2)
    loss = loss_of({term: 1}, at="logits", stride=8)
    assert value(loss, scores, fine) == pytest.approx(value(loss, scores, truth), rel=1e-5)


def test_scores_on_a_grid_of_their_own_are_stretched_to_the_labels() -> None:
    torch.manual_seed(0)
    scores, truth = torch.randn(1, K, 4, 6), torch.randint(0, K, (1, 33, 49), dtype=torch.uint8)
    expected = F.cross_entropy(F.interpolate(scores, (33, 49), mode="bilinear"), truth.long())
    assert value(loss_of({"cross_entropy": 1}, stride=8), scores, truth) == pytest.approx(float(expected), rel=1e-6)


def test_branches_take_the_weights_of_the_network_or_those_chosen() -> None:
    network = zoo.build_network("icnet", K, width_multiplier=1 / 16)
    assert losses.branch_weights(LossConfig(), network) == {"logits": 1.0, "sub4": 0.16, "sub24": 0.4}
    assert losses.branch_weights(LossConfig(branches={"logits": 2, "sub4": 0}), network) == {"logits": 2}
    with pytest.raises(ConfigError, match=r"no score aux\n.*it has logits, sub4, sub24"):
        losses.branch_weights(LossConfig(branches={"aux": 1}), network)
    with pytest.raises(ConfigError, match="every weight is 0"):
        losses.branch_weights(LossConfig(branches={"logits": 0}), network)


counts = arrays(np.int64, st.tuples(st.integers(1, 6), st.just(K)), elements=st.integers(0, 500))


@few
@given(counts, st.sampled_from(["inverse", "inverse_log", "median_frequency", "effective_number"]))
def test_class_weights_are_1_in_the_mean_and_for_classes_nobody_drew(counts_nk, kind: str) -> None:
    there = counts_nk.any(0)
    assume(there.any())
    found = losses.class_weights(kind, counts_nk, beta=0.9)
    assert found[there].mean() == pytest.approx(1)
    assert (found[~there] == 1).all()
    assert (found > 0).all()
    repeated = losses.class_weights(kind, np.concatenate([counts_nk, 0 * counts_nk]), beta=0.9)
    np.testing.assert_allclose(repeated, found)  # images that are not fully labelled do not count


@few
@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.just(K)), elements=st.integers(1, 500)))
def test_class_weights_are_proportional_to_their_formulas(counts_nk) -> None:
    pixels = counts_nk.sum(0)
    inverse = losses.class_weights("inverse", counts_nk)
    np.testing.assert_allclose(inverse * pixels, inverse[0] * pixels[0])
    frequency = [sum(row[k] for row in counts_nk) / sum(row.sum() for row in counts_nk if row[k]) for k in range(K)]
    balanced = losses.class_weights("median_frequency", counts_nk) / (np.median(frequency) / frequency)
    np.testing.assert_allclose(balanced, balanced[0])
    images = pixels / counts_nk.sum(1).mean()
    effective = losses.class_weights("effective_number", counts_nk, beta=0.9) * (1 - 0.9**images)
    np.testing.assert_allclose(effective, effective[0])
    share = pixels / pixels.sum()
    logarithm = losses.class_weights("inverse_log", counts_nk, offset=1.1) * np.log(1.1 + share)
    np.testing.assert_allclose(logarithm, logarithm[0])


def test_median_frequency_counts_only_the_images_a_class_is_in() -> None:
    counts_nk = np.array([[50, 50], [100, 0], [100, 0]])
    np.testing.assert_allclose(losses.class_weights("median_frequency", counts_nk), [0.75, 1.25])  # of 250/300, 50/100


def test_class_weights_without_a_label_are_refused() -> None:
    nothing = np.zeros((3, K), np.int64)
    assert losses.class_weights("none", nothing).tolist() == [1] * K
    with pytest.raises(ConfigError, match="inverse needs fully labelled images"):
        losses.class_weights("inverse", nothing)
