import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import classes
from pipeline.errors import ConfigError, LabelError
from pipeline.refine import native
from pipeline.training import weak
from pipeline.training.config import WeakConfig
from pipeline.training.weak import BOXES, CLASSES, FULL, Box
from tests.support.examples import examples

FARMLAND = classes.load_class_map("farmland")
K, BACKGROUND, IGNORE = 4, 1, 255
HEIGHT, WIDTH = 12, 10


# ---------------------------------------------------------------- reading


def parse(said: object) -> weak.WeakLabel:
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    return weak.parse_weak_label(data, FARMLAND, name="north/7.json", height=HEIGHT, width=WIDTH)


def box(name: str, *corners: object) -> dict[str, object]:
    return {"boxes": [{"class": name, "box": list(corners)}]}


def test_classes_become_ascending_ids_each_once() -> None:
    assert parse({"classes": ["tree", "water", "tree"]}) == weak.WeakLabel((3, 5))
    assert parse({"classes": []}) == weak.WeakLabel(())


def test_boxes_keep_their_order_and_say_which_classes_are_there() -> None:
    said = parse({"boxes": [*box("tree", 0, 0, WIDTH, HEIGHT)["boxes"], *box("water", 2, 3, 4, 5)["boxes"]]})
    assert said == weak.WeakLabel((3, 5), (Box(5, 0, 0, WIDTH, HEIGHT), Box(3, 2, 3, 4, 5)))


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (b"", "is not valid JSON"),
        (b"\x89PNG\r\n\x1a\n", "is not valid JSON"),
        (b"[" * 100_000, "recursion limit"),
        (b" " * (weak._MAX_BYTES + 1), f"has {weak._MAX_BYTES + 1} bytes, the limit is {weak._MAX_BYTES}"),
        ({}, "either classes or boxes"),
        ({"classes": ["tree"]} | box("tree", 0, 0, 1, 1), "either classes or boxes"),
        ({"classes": "tree"}, "wrong at 'classes': .* array"),
        ({"classes": [5]}, r"wrong at 'classes\.0': .* string"),
        ({"classes": ["tree"], "colour": 1}, "wrong at 'colour'"),
        ({"classes": ["Tree"]}, "names 'Tree', no class of 'farmland'\n.*bare_soil, crop"),
        (box("shed", 0, 0, 1, 1), "names 'shed'"),
        (box("tree", 0, 0, 1), r"boxes\.0\.box\.3"),
        (box("tree", 0, 0, 1.5, 2), r"boxes\.0\.box\.2': .* integer"),
        (box("tree", 0, 0, True, 2), r"boxes\.0\.box\.2': .* integer"),
        (box("tree", 0, 0, 10**400, 2), r"boxes\.0\.box\.2"),
        (box("tree", 4, 4, 4, 5), r"box \[4, 4, 4, 5\] of class 'tree', which has no area"),
        (box("tree", 4, 4, 6, 2), "no area"),
        (box("tree", -1, 0, 2, 2), r"box \[-1, 0, 2, 2\] of class 'tree', which leaves its image of 12x10"),
        (box("tree", 0, 0, WIDTH + 1, 2), "leaves its image"),
        (box("tree", 0, 0, 2, HEIGHT + 1), "leaves its image"),
    ],
)
def test_what_is_wrong_with_a_weak_label_is_named(said: object, says: str) -> None:
    with pytest.raises(LabelError, match="(?s)the weak label north/7.json " + ".*" + says) as caught:
        parse(said)
    assert len(str(caught.value)) < 600


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda key: json.dumps({key: [key]}).encode()))
def test_no_bytes_at_all_raise_anything_but_a_label_error(data: bytes) -> None:
    try:
        parse(data)
    except LabelError:
        return
    assert json.loads(data) == {"classes": []}


def test_background_is_the_first_class_unless_one_is_named() -> None:
    assert weak.background_id(WeakConfig(), FARMLAND) == 0
    assert weak.background_id(WeakConfig(background="meadow"), FARMLAND) == 2
    with pytest.raises(ConfigError, match=r"--weak.background 'sky' is not a class\n.*bare_soil"):
        weak.background_id(WeakConfig(background="sky"), FARMLAND)


# ---------------------------------------------------------------- labels from boxes


@st.composite
def some_boxes(draw: st.DrawFn) -> Box:
    x0, y0 = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    x1, y1 = draw(st.integers(x0 + 1, WIDTH)), draw(st.integers(y0 + 1, HEIGHT))
    return Box(draw(st.sampled_from([0, 2, 3])), x0, y0, x1, y1)


lists_of_boxes = st.lists(some_boxes(), max_size=4)


def covers(one: Box, y: int, x: int) -> bool:
    return one.y0 <= y < one.y1 and one.x0 <= x < one.x1


@examples(50)
@given(lists_of_boxes)
def test_rect_gives_a_pixel_to_the_smallest_box_it_lies_in(boxes: list[Box]) -> None:
    found = weak.rectangle_labels(boxes, HEIGHT, WIDTH, background=BACKGROUND)
    assert found.dtype == np.uint8
    for y, x in itertools.product(range(HEIGHT), range(WIDTH)):
        areas = {one.area_px for one in boxes if covers(one, y, x)}
        smallest = {one.class_id for one in boxes if covers(one, y, x) and one.area_px == min(areas)}
        assert found[y, x] in (smallest or {BACKGROUND})


@given(lists_of_boxes.flatmap(lambda boxes: st.tuples(st.just(boxes), st.permutations(boxes))))
def test_the_order_of_boxes_does_not_matter(both: tuple[list[Box], list[Box]]) -> None:
    first, second = (weak.rectangle_labels(boxes, HEIGHT, WIDTH, background=BACKGROUND) for boxes in both)
    np.testing.assert_array_equal(first, second)


@given(some_boxes(), st.floats(0, 1))
def test_the_middle_of_a_box_is_inside_and_about_as_large_as_asked(one: Box, share: float) -> None:
    rows, columns = one.centre(share)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert one.y0 <= rows.start < rows.stop <= one.y1
    assert one.x0 <= columns.start < columns.stop <= one.x1
    assert abs(height - (one.y1 - one.y0) * share**0.5) <= 1
    assert abs(width - (one.x1 - one.x0) * share**0.5) <= 1
    assert abs((one.y0 + one.y1) - (rows.start + rows.stop)) <= 1


NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def segmented(boxes: list[Box], pixels_hwc: np.ndarray = NOISE, sure_share: float = 0.2) -> np.ndarray:
    return weak.crf_labels(pixels_hwc, boxes, sure_share=sure_share, background=BACKGROUND)


@examples(50)
@given(lists_of_boxes)
def test_seg_gives_no_pixel_a_class_whose_boxes_it_lies_outside_of(boxes: list[Box]) -> None:
    found = segmented(boxes)
    assert found.dtype == np.uint8
    for y, x in itertools.product(range(HEIGHT), range(WIDTH)):
        assert found[y, x] in {BACKGROUND, *(one.class_id for one in boxes if covers(one, y, x))}


@examples(50)
@given(some_boxes(), st.sampled_from([0.0, 0.2, 1.0]))
def test_seg_keeps_the_middle_of_a_box_for_its_class_and_all_of_it_when_all_is_sure(one: Box, share: float) -> None:
    found = segmented([one], sure_share=share)
    assert (found[one.centre(share)] == one.class_id).all()
    if share == 1:
        np.testing.assert_array_equal(found, weak.rectangle_labels([one], HEIGHT, WIDTH, background=BACKGROUND))


def test_in_seg_the_smaller_box_stands_in_front_whatever_the_order() -> None:
    large, small = Box(0, 0, 0, 10, 12), Box(2, 3, 4, 7, 8)
    first, second = segmented([large, small]), segmented([small, large])
    np.testing.assert_array_equal(first, second)
    assert (first[small.centre(0.2)] == 2).all()
    assert (first == 0).any()


@pytest.fixture(params=["with the extension", "without"])
def engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "without":
        monkeypatch.setattr(native, "UNAVAILABLE_BECAUSE", "tests say so")
    weak._crf.cache_clear()
    yield
    weak._crf.cache_clear()


@pytest.mark.usefixtures("engines")
def test_seg_finds_a_disc_in_its_box() -> None:
    y, x = np.ogrid[:48, :40]
    disc = (y - 22) ** 2 + (x - 20) ** 2 <= 12**2
    pixels = np.where(disc[..., None], np.uint8([200, 60, 40]), np.uint8([60, 120, 50])).astype(np.uint8)
    found = segmented([Box(3, 8, 10, 33, 35)], pixels)
    np.testing.assert_array_equal(found, np.where(disc, 3, BACKGROUND))


# ---------------------------------------------------------------- labels from scores


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def batches(draw: st.DrawFn):
    """Logits, labels, classes that are there, supervision: images of every kind, with padding."""
    count, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    present = rng.random((count, K)) < 0.5
    present[:, BACKGROUND] = True
    supervision = rng.integers(0, 3, count).astype(np.int8)
    labels = np.zeros((count, height, width), np.uint8)
    for n in range(count):
        known = {FULL: np.arange(K), CLASSES: np.array([0]), BOXES: np.flatnonzero(present[n])}[int(supervision[n])]
        labels[n] = rng.choice(known, (height, width))
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    logits = normal(count, K, height, width, seed=int(rng.integers(2**31))) * 3
    return logits, *(torch.from_numpy(one) for one in (labels, present, supervision))


def answered(batch, **cfg) -> torch.Tensor:
    return weak.e_step(*batch, WeakConfig(**cfg), background=BACKGROUND, ignore_id=IGNORE)


def by_hand(scores: torch.Tensor, label: int, present: torch.Tensor, supervision: int, cfg: WeakConfig) -> int:
    """EM-Fixed and Bbox-EM-Fixed for one pixel."""
    if label == IGNORE or supervision == FULL:
        return label
    best, found = -np.inf, -1
    for k in range(K):
        bias = cfg.bias_bg if k == BACKGROUND else cfg.bias_fg
        if supervision == BOXES and k != BACKGROUND:
            bias = -np.inf if label == BACKGROUND else bias * (k == label)
        if present[k] and float(scores[k]) + bias > best:
            best, found = float(scores[k]) + bias, k
    return found


@examples(50)
@given(batches(), st.floats(0, 9), st.floats(0, 9))
def test_em_fixed_is_its_definition_pixel_by_pixel(batch, bias_fg: float, bias_bg: float) -> None:
    logits, labels, present, supervision = batch
    cfg = WeakConfig(classes="em_fixed", bias_fg=bias_fg, bias_bg=bias_bg)
    found = answered(batch, **cfg.model_dump())
    for n, y, x in itertools.product(*map(range, labels.shape)):
        said = int(labels[n, y, x]), present[n], int(supervision[n])
        assert int(found[n, y, x]) == by_hand(logits[n, :, y, x], *said, cfg)


@examples(50)
@given(batches(), st.sampled_from(["em_fixed", "em_adapt"]))
def test_only_classes_that_are_there_are_given_and_what_is_known_stays(batch, how: str) -> None:
    _, labels, present, supervision = batch
    before = labels.clone()
    found = answered(batch, classes=how)
    assert found.dtype == torch.uint8
    assert torch.equal(labels, before)
    assert torch.equal(found == IGNORE, labels == IGNORE)
    assert torch.equal(found[supervision == FULL], labels[supervision == FULL])
    for n in (supervision != FULL).nonzero().flatten():
        assert present[n, found[n][found[n] != IGNORE].long()].all()


@examples(50)
@given(batches(), st.sampled_from(["em_fixed", "em_adapt"]))
def test_each_image_is_answered_for_itself(batch, how: str) -> None:
    whole = answered(batch, classes=how)
    for n in range(len(whole)):
        assert torch.equal(answered([one[n : n + 1] for one in batch], classes=how)[0], whole[n])


@examples(50)
@given(batches(), st.sampled_from(["em_fixed", "em_adapt"]))
def test_what_a_pixel_adds_to_all_of_its_scores_does_not_matter(batch, how: str) -> None:
    logits, *rest = batch
    eighths = (logits * 8).round() / 8  # so that sums are exact, and ties stay ties
    shift = (normal(*logits.shape[2:], seed=1) * 8).round()
    assert torch.equal(answered([eighths, *rest], classes=how), answered([eighths + shift, *rest], classes=how))


def test_logits_of_another_size_are_refused() -> None:
    batch = torch.zeros(1, K, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8), torch.ones(1, K, dtype=torch.bool)
    with pytest.raises(ValueError, match="sizes differ"):
        answered([*batch, torch.ones(1, dtype=torch.int8)])


def test_no_gradient_flows_through_the_labels() -> None:
    logits = torch.zeros(1, K, 4, 4, requires_grad=True)
    batch = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.ones(1, K, dtype=torch.bool), torch.ones(1, dtype=torch.int8)
    assert not answered([logits, *batch]).requires_grad


@st.composite
def problems(draw: st.DrawFn):
    """Scores (P, M) and the share each class should get, up to all pixels together."""
    count, pixels = draw(st.integers(1, 4)), draw(st.integers(30, 200))
    scores = (
        normal(count, pixels, seed=draw(st.integers(0, 2**31))) + normal(count, 1, seed=draw(st.integers(0, 9))) * 5
    )
    return scores, draw(st.lists(st.floats(0, 0.9 / count), min_size=count, max_size=count))


def won(scores_km: torch.Tensor, biases: torch.Tensor) -> list[int]:
    return torch.bincount((scores_km + biases[:, None]).argmax(0), minlength=len(biases)).tolist()


@examples(40)
@given(problems())
def test_em_adapt_gives_every_class_its_share_but_for_a_tied_pixel_per_class(problem) -> None:
    scores, shares = problem
    biases = weak.least_biases(scores, shares)
    assert (biases >= 0).all()
    for got, share in zip(won(scores, biases), shares, strict=True):
        assert got >= int(share * scores.shape[1]) - len(shares)


@examples(40)
@given(problems())
def test_no_bias_of_em_adapt_is_larger_than_it_must_be(problem) -> None:
    scores, shares = problem
    biases = weak.least_biases(scores, shares)
    for k in biases.nonzero().flatten().tolist():
        lower = biases.clone()
        lower[k] -= 1e-3 * (1 + lower[k])
        quota = int(shares[k] * scores.shape[1])
        assert won(scores, biases)[k] <= quota + 1
        assert won(scores, lower)[k] <= quota


@examples(40)
@given(problems())
def test_the_order_of_classes_does_not_matter_to_em_adapt(problem) -> None:
    scores, shares = problem
    there, back = weak.least_biases(scores, shares), weak.least_biases(scores.flip(0), shares[::-1])
    torch.testing.assert_close(there, back.flip(0), atol=1e-4, rtol=1e-4)


@example([1.0, 1.0])
@example([0.0, 0.0])
@given(st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_shares_of_more_than_everything_are_scaled_down(shares: list[float]) -> None:
    scores = normal(2, 100, seed=3) + torch.tensor([[9.0], [0.0]])
    got = won(scores, weak.least_biases(scores, shares))
    for one, share in zip(got, shares, strict=True):
        assert one >= int(share / max(1, sum(shares)) * 100) - 1
    assert got == [100, 0] or shares[1] > 0


def test_em_adapt_gives_shares_of_the_pixels_that_count() -> None:
    logits = normal(1, K, 20, 20, seed=0)
    logits[:, BACKGROUND] += 9
    labels = torch.zeros(1, 20, 20, dtype=torch.uint8)
    labels[:, :10] = IGNORE
    present = torch.tensor([[False, True, True, False]])
    found = answered([logits, labels, present, torch.tensor([CLASSES])], share_fg=0.25, share_bg=0.25)
    assert (found == 2).sum() == 0.25 * 200


def test_an_image_of_padding_alone_stays_as_it_is() -> None:
    labels = torch.full((1, 3, 3), IGNORE, dtype=torch.uint8)
    present = torch.ones(1, K, dtype=torch.bool)
    assert torch.equal(answered([torch.zeros(1, K, 3, 3), labels, present, torch.tensor([CLASSES])]), labels)


# ---------------------------------------------------------------- the E-step against brute force and the authors' layer


LABELLINGS = torch.tensor(list(itertools.product(range(K), repeat=4)))
"""Every labelling of four pixels."""


def log_joints(scores_km: torch.Tensor, biases_k: torch.Tensor) -> torch.Tensor:
    """log P(y | x) + log P(z | y) of each of `LABELLINGS`, up to a constant: eq. 5 and 6 of the paper."""
    each_km = scores_km.log_softmax(0) + biases_k[:, None]
    return each_km[LABELLINGS, torch.arange(4)].sum(1)


@examples(50)
@given(st.integers(0, 2**31), st.sampled_from(["em_fixed", "em_adapt"]))
def test_the_labels_are_the_best_of_all_labellings_and_their_loss_has_the_gradient_of_that_maximum(
    seed: int, how: str
) -> None:
    """Hard EM climbs max over y of log P(y | x) + log P(z | y), with the biases held fixed."""
    cfg = WeakConfig(classes=how, bias_bg=0.7, bias_fg=1.3, share_bg=0.4, share_fg=0.2)
    logits = (2 * normal(1, K, 1, 4, seed=seed).double()).requires_grad_()
    scores = logits[0, :, 0].detach()
    batch = torch.zeros(1, 1, 4, dtype=torch.uint8), torch.ones(1, K, dtype=torch.bool), torch.tensor([CLASSES])
    chosen = answered([logits, *batch], **cfg.model_dump())
    of_background = torch.arange(K) == BACKGROUND
    biases = torch.where(of_background, cfg.bias_bg, cfg.bias_fg)
    if how == "em_adapt":
        biases = weak.least_biases(scores.float(), torch.where(of_background, cfg.share_bg, cfg.share_fg).tolist())
    joints = log_joints(scores, biases)
    place = (chosen[0, 0] == LABELLINGS).all(1).nonzero().item()
    assert float(joints[place]) == pytest.approx(float(joints.max()), abs=1e-5)

    torch.nn.functional.cross_entropy(logits, chosen.long(), reduction="sum").backward()
    best, second = (scores + biases[:, None]).topk(2, dim=0).values
    step = 1e-5
    # EM-Adapt raises a class until it wins at its last pixel by nothing: the maximum has a kink there.
    for k, m in itertools.product(range(K), (best - second > 0.01).nonzero().flatten().tolist()):
        change = torch.zeros_like(scores)
        change[k, m] = step
        slope = (log_joints(scores + change, biases).max() - log_joints(scores - change, biases).max()) / (2 * step)
        assert float(logits.grad[0, k, 0, m]) == pytest.approx(-float(slope), abs=1e-4)


def adaptive_bias_channel(scores_km: np.ndarray, shares: list[float], rounds: int, seed: int) -> np.ndarray:
    """The authors' layer, written anew: in each round background first, then the others in random order."""
    biased, random = scores_km.copy(), np.random.default_rng(seed)
    for _ in range(rounds):
        for k in [0, *random.permutation(np.arange(1, len(biased)))]:
            deficit = np.sort(biased.max(0) - biased[k])
            biased[k] += deficit[int(shares[k] * len(deficit))]
    return biased.argmax(0)


@examples(30)
@given(problems(), st.integers(0, 99))
def test_em_adapt_is_the_authors_layer_run_until_nothing_moves(problem, seed: int) -> None:
    scores, shares = problem
    ours = (scores + weak.least_biases(scores, shares)[:, None]).argmax(0)
    theirs = adaptive_bias_channel(scores.double().numpy(), shares, rounds=100, seed=seed)
    assert (ours.numpy() != theirs).sum() <= 2 * len(shares)  # ties: a class wins at a pixel by exactly nothing
