from dataclasses import replace
from threading import Event

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import jaccard_score

from pipeline.image.encode import mask_png
from pipeline.run import parts
from pipeline.score import answers
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.view.agreement import OTHER_RUN, Agreement, Coverage
from pipeline.view.comparing import Comparing
from pipeline.view.counterparts import OtherMasks
from pipeline.view.opened import OpenedRun
from pipeline.view.pairs import pair_rows
from pipeline.view.query import Query, Range, find_rows
from tests.support.committed import FARM, commit, failed_row, mask_row, rows_of, tar
from tests.support.viewed_runs import committed_mask, open_index

EVERY = Query()


def never():
    return False


def between(first_url, second_url, cache=None):
    """Agreement of two runs, before anything is compared."""
    first, second = open_index(first_url, cache), open_index(second_url)
    pair_rows(first, second)
    agreement = Agreement(first, OTHER_RUN, OtherMasks(first, second, max_mpx=1), kept=True)
    agreement.forget_other_versions()
    return agreement


def compare(agreement, query=EVERY):
    return sum(agreement.compare(query, is_over=never))


def shown(agreement, query=EVERY):
    return {row["key"]: row for row in find_rows(agreement.index, query, offset=0, limit=500)}


def counts_of(pairs):
    """Per class pixels in both, in the first and in the second map, with numpy alone."""
    first, second = (np.concatenate([maps[side].ravel() for maps in pairs]) for side in (0, 1))
    return [
        {
            "both": int(((first == number) & (second == number)).sum()),
            "here": int((first == number).sum()),
            "there": int((second == number).sum()),
        }
        for number in range(len(FARM))
    ]


@pytest.fixture
def agreement(viewed):
    found = between(viewed.url, viewed.other)
    compare(found)
    return found


def test_shares_that_differ_are_those_of_the_two_committed_masks(viewed, agreement):
    rows = [row for row in shown(agreement).values() if row["status"] == "ok"]
    assert len(rows) > 10
    for row in rows:
        here, there = (committed_mask(url, row["key"]) for url in (viewed.url, viewed.other))
        assert row["other_differing"] == pytest.approx((here != there).mean(), abs=1e-6)
        assert row["shift"] <= row["other_differing"] + 1e-6
        present = sorted(set(here.ravel()) | set(there.ravel()))
        expected = jaccard_score(here.ravel(), there.ravel(), labels=present, average="macro")
        assert row["other_iou"] == pytest.approx(expected, abs=1e-6)


def test_sums_per_class_are_those_of_both_masks_over_the_rows_of_the_query(viewed, agreement):
    for query in (EVERY, Query(ranges=(Range(column="other_differing", low=0.3),))):
        keys = [key for key, row in shown(agreement, query).items() if row["status"] == "ok"]
        assert keys
        pairs = [[committed_mask(url, key) for url in (viewed.url, viewed.other)] for key in keys]
        assert agreement.by_class(query) == counts_of(pairs)


def test_rows_are_sorted_by_what_differs_and_the_others_come_last(agreement):
    values = [
        row["other_differing"] for row in shown(agreement, Query(sort="other_differing", descending=True)).values()
    ]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=True)
    assert values[len(known) :] == [None] * (len(values) - len(known))


def test_only_the_rows_of_the_query_are_compared_and_none_twice(viewed):
    agreement, query = between(viewed.url, viewed.other), Query(text="farm_00000")
    assert agreement.coverage(EVERY).compared == 0
    assert compare(agreement, query) == 10
    assert agreement.coverage(query) == Coverage(10, 0, 10)
    rest = agreement.coverage(EVERY).comparable - 10
    assert compare(agreement) == rest
    assert compare(agreement) == 0


def test_a_run_beside_itself_differs_nowhere(viewed):
    agreement = between(viewed.url, viewed.url)
    compare(agreement)
    assert {row["other_differing"] for row in shown(agreement).values() if row["status"] == "ok"} == {0.0}


def test_comparing_ends_between_two_rows_and_goes_on_later(tmp_path):
    for name in ("first", "second"):
        commit(tmp_path / name, rows_of(tar("a"), 9))
    agreement = between(*(Url(str(tmp_path / name)) for name in ("first", "second")))
    assert sum(agreement.compare(EVERY, is_over=lambda: True)) == 1
    assert compare(agreement) == 8


def test_rows_that_cannot_be_compared_have_a_reason(tmp_path):
    shard, small = tar("a"), mask_png(np.zeros((2, 2), np.uint8), FARM)
    first = [mask_row(key, shard) for key in "abcdef"]
    unknown = mask_png(np.full((6, 5), 99, np.uint8), FARM)
    second = [
        mask_row("a", shard),
        replace(mask_row("b", shard), mask=small, height=2, width=2),
        replace(mask_row("c", shard), mask=b"no PNG"),
        replace(mask_row("d", shard), mask=None),
        failed_row("e", shard),
        replace(mask_row("f", shard), mask=unknown),
    ]
    for name, rows in (("first", first), ("second", second)):
        commit(tmp_path / name, rows)
    agreement = between(*(Url(str(tmp_path / name)) for name in ("first", "second")))
    compare(agreement)
    words = {key: row["other_compared"] for key, row in shown(agreement).items()}
    unusable = "mask_unusable"
    assert words == {"a": "compared", "b": unusable, "c": unusable, "d": "mask_missing", "e": None, "f": unusable}
    assert agreement.coverage(EVERY) == Coverage(1, 4, 5)


def test_keys_may_lie_in_other_parts_of_the_other_run(tmp_path):
    rng = np.random.default_rng(0)
    rows = {
        side: [
            replace(
                mask_row(f"{number:02}", tar("a")), mask=mask_png(rng.integers(0, 7, (6, 5)).astype(np.uint8), FARM)
            )
            for number in range(20)
        ]
        for side in ("first", "second")
    }
    for start in range(0, 20, 5):
        commit(tmp_path / "first", rows["first"][start : start + 5])
    for start in range(3):
        commit(tmp_path / "second", rows["second"][start::3])
    urls = [Url(str(tmp_path / name)) for name in ("first", "second")]
    agreement = between(*urls)
    assert compare(agreement) == 20
    for key, row in shown(agreement).items():
        here, there = (committed_mask(url, key) for url in urls)
        assert row["other_differing"] == pytest.approx((here != there).mean())


def test_what_was_compared_is_there_when_the_run_is_opened_again(viewed, tmp_path):
    first = between(viewed.url, viewed.other, tmp_path)
    rows = compare(first)
    first.index.close()
    again = between(viewed.url, viewed.other, tmp_path)
    assert again.coverage(EVERY).compared == rows
    again.index.close()
    assert between(viewed.url, viewed.url, tmp_path).coverage(EVERY).compared == 0


def test_rows_of_a_part_that_is_gone_are_compared_anew_also_when_the_runs_were_apart(tmp_path):
    urls = [Url(str(tmp_path / name)) for name in ("first", "second")]
    for url in urls:
        commit(url.raw, rows_of(tar("a"), 3))
        commit(url.raw, rows_of(tar("b"), 4))
    agreement = between(*urls, tmp_path / "cache")
    assert compare(agreement) == 7
    agreement.index.close()
    alone = open_index(urls[0], tmp_path / "cache")
    for name in parts.list_parts(urls[0])[1:]:
        objects.delete(parts.parts_url(urls[0]) / name)
    alone.fill()
    commit(urls[0].raw, rows_of(tar("c"), 5))
    alone.fill()
    kept = alone.fetch("SELECT count(*) FROM rows JOIN agreement_other USING (id)")[0][0]
    assert kept == alone.fetch("SELECT count(*) FROM rows WHERE key NOT LIKE 'c.tar%'")[0][0]
    alone.close()


# ---------------------------------------------------------------- labels


@pytest.fixture
def labelled(viewed, tmp_path):
    """A run that was not judged, compared with labels that the user named."""
    settings = {"cache": tmp_path, "max_cache_bytes": 10**8, "source": ()}
    run = OpenedRun(viewed.other, labels=str(viewed.folder / "labels"), **settings)
    run.index.fill()
    yield run
    run.close()


def label(viewed, key):
    return np.asarray(PIL.Image.open((viewed.folder / "labels" / key).with_suffix(".png")))


def test_wrong_pixels_and_miou_are_those_of_mask_and_label(viewed, labelled):
    (agreement,) = labelled.comparing.agreements
    compare(agreement)
    rows = [row for row in shown(agreement).values() if row["status"] == "ok"]
    assert len(rows) > 10
    pairs = []
    for row in rows:
        truth, mask = label(viewed, row["key"]), committed_mask(viewed.other, row["key"])
        used = truth != FARM.ignore_id
        pairs.append([truth[used], mask[used]])
        assert row["labels_differing"] == pytest.approx((truth != mask)[used].mean(), abs=1e-6)
        present = sorted(set(truth[used]) | set(mask[used]))
        expected = jaccard_score(truth[used], mask[used], labels=present, average="macro")
        assert row["labels_iou"] == pytest.approx(expected, abs=1e-6)
    assert agreement.by_class(EVERY) == counts_of(pairs)


def test_agreement_with_labels_is_that_of_an_evaluation(viewed, tmp_path):
    """The first run of the pair is an evaluation: its rows were judged against the same labels."""
    run = OpenedRun(viewed.url, labels=str(viewed.folder / "labels"), cache=tmp_path, max_cache_bytes=10**8, source=())
    run.index.fill()
    (agreement,) = run.comparing.agreements
    compare(agreement)
    rows = [row for row in shown(agreement).values() if row["status"] == "ok"]
    assert [row["labels_iou"] for row in rows] == pytest.approx([row["iou"] for row in rows])


def test_labels_are_read_anew_at_each_visit_since_they_may_have_been_corrected(viewed, tmp_path):
    settings = {"labels": str(viewed.folder / "labels"), "cache": tmp_path, "max_cache_bytes": 10**8, "source": ()}
    for _ in range(2):
        run = OpenedRun(viewed.other, **settings)
        run.index.fill()
        (agreement,) = run.comparing.agreements
        assert agreement.coverage(EVERY).compared == 0
        compare(agreement)
        run.close()


def test_an_image_without_a_usable_label_has_the_reason(viewed, labelled, monkeypatch):
    def none(item, *args, **settings):
        return read(replace(item, label=None) if item.key == "farm_000001.jpg" else item, *args, **settings)

    read = answers.read_truth
    monkeypatch.setattr(answers, "read_truth", none)
    (agreement,) = labelled.comparing.agreements
    compare(agreement)
    assert shown(agreement)["farm_000001.jpg"]["labels_compared"] == "label_missing"
    assert agreement.coverage(EVERY).refused == 1


# ---------------------------------------------------------------- the thread


class Slow:
    """Agreement of rows that take as long as the test wants."""

    def __init__(self):
        self.queries, self.go_on = [], Event()

    def compare(self, query, *, is_over):
        self.queries.append(query.text)
        while not is_over():
            yield 1
            if self.go_on.wait(0.01):
                return


def wait_for(condition):
    pause = Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("never came true")


def test_a_new_request_takes_the_place_of_the_one_before():
    slow = Slow()
    comparing = Comparing([slow])
    comparing.request(Query(text="a"))
    wait_for(lambda: comparing.pace.rows > 2)
    comparing.request(Query(text="b"))
    wait_for(lambda: slow.queries == ["a", "b"])
    slow.go_on.set()
    wait_for(lambda: not comparing.pace.is_working)
    assert comparing.pace.problem is None
    comparing.close()


def test_what_ends_the_comparison_is_said_and_the_next_request_is_carried_out():
    class Failing(Slow):
        def compare(self, query, *, is_over):
            yield 3
            if query.text == "bad":
                raise RuntimeError("no disk")

    comparing = Comparing([Failing()])
    comparing.request(Query(text="bad"))
    wait_for(lambda: not comparing.pace.is_working)
    assert (comparing.pace.problem, comparing.pace.rows) == ("no disk", 3)
    comparing.request(Query(text="good"))
    wait_for(lambda: not comparing.pace.is_working)
    assert comparing.pace.problem is None
    comparing.close()


def test_what_ends_one_comparison_does_not_end_the_other():
    class Failing(Slow):
        def compare(self, query, *, is_over):
            yield 3
            raise RuntimeError("no labels")

    class Sound(Slow):
        def compare(self, query, *, is_over):
            yield 4

    comparing = Comparing([Failing(), Sound(), Failing()])
    comparing.request(Query())
    wait_for(lambda: not comparing.pace.is_working)
    assert (comparing.pace.rows, comparing.pace.problem) == (10, "no labels; no labels")
    comparing.close()


def test_a_thread_that_was_never_asked_ends_at_once():
    Comparing([]).close()


def test_rows_to_compare_are_read_once_from_each_part(viewed, monkeypatch):
    read = []
    original = parts.read_batches

    def watched(url, name, columns, *, rows):
        read.append((url.place, name))
        return original(url, name, columns, rows=rows)

    agreement = between(viewed.url, viewed.other)
    monkeypatch.setattr(parts, "read_batches", watched)
    compare(agreement)
    assert len(read) == len(set(read))
