"""Laws of preparing a set: nothing is lost, nothing is changed, and what is written is what training reads."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import DecodeConfig, ReadConfig, SegmentConfig
from pipeline.datasets import prepare, receipts
from pipeline.datasets.layout import Labelled, ListedExample
from pipeline.datasets.prepare import ExampleShard, Preparation, PreparedRow
from pipeline.errors import InputError, JobError
from pipeline.image import labels
from pipeline.image.decode import decode_image
from pipeline.run.ledger import Ledger
from pipeline.source import plan as source
from pipeline.store.url import Url
from tests.support import tiny_layout
from tests.support.examples import examples
from tests.support.tiny_layout import TINY, Tiny

SIZES = st.integers(1, 400)


@pytest.fixture
def tiny(tmp_path: Path) -> Preparation:
    """Six good images of 24x32 pixels, to be prepared whole as Parquet."""
    tiny_layout.write(Url(str(tmp_path / "in")), train=6)
    return preparation(tmp_path)


def preparation(folder: Path, **changed) -> Preparation:
    how = {
        "layout": TINY,
        "root": Url(str(folder / "in")),
        "output": Url(str(folder / "out")),
        "format": "parquet",
        "label_member": "png",
        "cut_px": None,
        "part_bytes": 2**20,
        "decode": DecodeConfig(),
        "timeout_s": 60.0,
    }
    return Preparation(**how | changed)


def prepared(job: Preparation, *, shard_examples: int = 4) -> list[receipts.Receipt]:
    """Prepare the train split in this process."""
    shards = prepare.plan_examples(job.layout, job.root, ["train"], shard_examples=shard_examples)
    return [prepare.prepare_shard(job, shard, Ledger()) for shard in shards]


def read_back(job: Preparation, split: str = "train") -> dict[str, tuple[bytes, bytes]]:
    """(image, label) of every key as training reads them: through the plan of the main job's sources."""
    member = job.label_member if job.format == "tar" else "label"
    url = f"{job.output.raw}/{split}"
    read = ReadConfig(image_column="image", labels=member)
    planned = source.plan_source(SegmentConfig(source=(url,), output="-", checkpoint="-", read=read))
    items = [item for shard in planned.shards for item in source.read_items(shard, read, max_bytes=2**28)]
    assert not [item.failure for item in items if item.failure]
    if job.format == "tar":
        return {unquote(item.key.partition("#")[2]): (item.data, item.label) for item in items}
    tables = {path.name: pq.read_table(path)["key"].to_pylist() for path in Path(url).iterdir()}
    keys = [tables[item.key.partition("#")[0]][int(item.key.partition("#")[2])] for item in items]
    return dict(zip(keys, [(item.data, item.label) for item in items], strict=True))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ids_of_shards_are_those_of_outputs_begun_earlier() -> None:
    one = ExampleShard("train", (ListedExample("train/a", "a.jpg", "a.png"),))
    two = (ListedExample("val/ä", "ä.jpg", None, ("b", "c")), ListedExample("val/'\"", "x.tif", "y.mat"))
    assert [one.id, ExampleShard("val", two).id] == ["ba483dbbed667219", "15d4d7b750ad85b9"]


# ---------------------------------------------------------------- what training reads


@pytest.mark.parametrize("form", ["parquet", "tar"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_training_reads_back_what_the_layout_gives(form: str, suffix: str, tmp_path: Path) -> None:
    tiny_layout.write(Url(str(tmp_path / "in")), train=6, suffix=suffix)
    shards = prepare.plan_examples(TINY, Url(str(tmp_path / "in")), ["train"], shard_examples=4)
    job = preparation(tmp_path, format=form, label_member=prepare.label_member(shards, None))
    prepared(job)
    found = read_back(job)
    assert sorted(found) == [f"train/{index:04d}" for index in range(6)]
    for one in TINY.examples(job.root, "train"):
        expected = TINY.read(job.root, one)
        image, label = found[one.key]
        assert image == expected.image
        height, width = expected.label_hw.shape
        read = labels.decode_label(label, TINY.classes, name=one.key, height=height, width=width)
        np.testing.assert_array_equal(read, expected.label_hw)


@pytest.mark.parametrize("cut_px", [None, 64])
def test_parquet_and_tar_hold_the_same(cut_px: int | None, tmp_path: Path) -> None:
    tiny_layout.write(Url(str(tmp_path / "in")), train=3, height=150, width=90)
    parquet = preparation(tmp_path, cut_px=cut_px, output=Url(str(tmp_path / "parquet")))
    tar = replace(parquet, format="tar", label_member="label.png", output=Url(str(tmp_path / "tar")))
    totals = [receipts.add_counts([one.counts for one in prepared(job)]) for job in (parquet, tar)]
    assert totals[0] == totals[1]
    assert read_back(parquet) == read_back(tar)


def test_the_windows_of_an_image_together_are_the_image(tmp_path: Path) -> None:
    tiny_layout.write(Url(str(tmp_path / "in")), train=1, height=150, width=90, suffix=".png")
    job = preparation(tmp_path, cut_px=64)
    prepared(job)
    one = TINY.examples(job.root, "train")[0]
    whole = TINY.read(job.root, one)
    pixels = prepare.decode_bands(whole.image, job.decode)
    seen = np.zeros(whole.label_hw.shape, int)
    for key, (image, label) in read_back(job).items():
        y, x = map(int, key.partition("#")[2].split(","))
        window = prepare.decode_bands(image, job.decode)
        place = np.s_[y : y + window.shape[0], x : x + window.shape[1]]
        np.testing.assert_array_equal(window, pixels[place])
        np.testing.assert_array_equal(np.array(PIL.Image.open(io.BytesIO(label))), whole.label_hw[place])
        seen[place] += 1
    assert (seen == 1).all()


@given(height=SIZES, width=SIZES, cut_px=st.integers(16, 200) | st.none())
def test_windows_partition_an_image_and_none_is_larger_than_asked(height: int, width: int, cut_px: int | None) -> None:
    seen = np.zeros((height, width), int)
    for y, x in prepare.windows_of(height, width, cut_px):
        seen[y, x] += 1
        assert cut_px is None or (y.stop - y.start) <= max(cut_px, min(height, 1.25 * cut_px))
        assert cut_px is None or (x.stop - x.start) <= max(cut_px, min(width, 1.25 * cut_px))
    assert (seen == 1).all()


@given(bands=st.integers(3, 6), seed=st.integers(0, 99))
def test_any_number_of_bands_comes_back_as_it_was(bands: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, bands), np.uint8)
    np.testing.assert_array_equal(prepare.decode_bands(prepare.encode_lossless(pixels), DecodeConfig()), pixels)


def test_bands_that_are_not_8_or_16_bit_are_refused_by_name() -> None:
    out = io.BytesIO()
    tifffile.imwrite(out, np.zeros((8, 8, 5), np.float32), photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match=r"band_mismatch.*float32"):
        prepare.decode_bands(out.getvalue(), DecodeConfig())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_a_tiff_of_colours_is_read_as_in_a_run(mode: str) -> None:
    out = io.BytesIO()
    PIL.Image.new(mode, (9, 7), "white").save(out, "TIFF")
    pixels = prepare.decode_bands(out.getvalue(), DecodeConfig())
    np.testing.assert_array_equal(pixels, decode_image(out.getvalue(), DecodeConfig()).pixels_hwc)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_damaged_tiff_is_named_as_in_a_run() -> None:
    with pytest.raises(InputError, match=r"truncated|corrupt"):
        prepare.decode_bands(prepare.encode_lossless(np.zeros((9, 7, 4), np.uint8))[:60], DecodeConfig())


@given(keys=st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=5))
@examples(30)
def test_member_names_are_safe_and_give_the_keys_back(keys: set[str]) -> None:
    rows = [PreparedRow(key, b"\xff\xd8image", b"label") for key in sorted(keys)]
    with tarfile.open(fileobj=io.BytesIO(prepare.encode_tar(rows, "png"))) as tar:
        names = tar.getnames()
    assert [unquote(name.removesuffix(".jpg")) for name in names[::2]] == sorted(keys)
    assert [name.removesuffix(".png") for name in names[1::2]] == [name.removesuffix(".jpg") for name in names[::2]]
    assert all("/" not in name and name.count(".") == 1 for name in names)


# ---------------------------------------------------------------- what is wrong with it


def test_every_example_ends_as_one_row_with_the_code_of_what_is_wrong(tmp_path: Path) -> None:
    expected = tiny_layout.write_broken(Url(str(tmp_path / "in")))
    job = preparation(tmp_path)
    shards = prepared(job)
    rows = [row for path in Path(job.output.raw).rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["key"]: row["error_code"] or row["status"] for row in rows} == expected
    assert len(rows) == len(expected)
    counts = receipts.add_counts([one.counts for one in shards])
    assert (counts.examples, counts.rows) == (len(expected), 1)
    assert sum(counts.error_codes.values()) == len(expected) - 1
    for row in rows:
        assert (row["image"] is None) == (row["label"] is None) == (row["status"] == "failed")
        assert bool(row["error_detail"]) == (row["status"] == "failed")


def test_failures_stand_where_no_reader_of_a_split_meets_them(tmp_path: Path) -> None:
    tiny_layout.write_broken(Url(str(tmp_path / "in")))
    job = preparation(tmp_path)
    prepared(job)
    assert sorted(read_back(job)) == ["train/fine"]
    assert len(list(Path(job.output.raw, "failures/train").iterdir())) == 3


def test_a_shard_without_a_good_example_writes_no_part(tmp_path: Path) -> None:
    tiny_layout.add(Url(str(tmp_path / "in")), "bad.jpg", b"<html>", b"")
    (tmp_path / "in/train.txt").write_text("bad.jpg")
    (receipt,) = prepared(preparation(tmp_path))
    assert receipt.parts == []
    assert receipts.summarise_split([receipt]).mean == []


def test_a_key_listed_twice_is_refused_by_name(tmp_path: Path) -> None:
    tiny_layout.write(Url(str(tmp_path)), train=2)
    (tmp_path / "train.txt").write_text("0001.jpg 0000.jpg 0001.jpg")
    with pytest.raises(JobError, match="train/0001"):
        prepare.plan_examples(TINY, Url(str(tmp_path)), ["train"], shard_examples=4)


class Upright(Tiny):
    """Images as a phone stores them: lying, with a tag that says so; labels upright."""

    def read(self, root: Url, one: ListedExample) -> Labelled:
        labelled = super().read(root, one)
        out = io.BytesIO()
        picture = PIL.Image.open(io.BytesIO(labelled.image))
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(out, "JPEG", exif=exif)
        return replace(labelled, image=out.getvalue())


def test_a_label_must_fit_the_upright_image(tiny: Preparation) -> None:
    layout = Upright("tiny", "farmland", ("train",), "", "")
    counts = receipts.add_counts([one.counts for one in prepared(replace(tiny, layout=layout))])
    assert counts.error_codes == {"label_size": 6}


# ---------------------------------------------------------------- statistics and determinism


def test_counts_are_those_of_all_pixels(tmp_path: Path) -> None:
    tiny_layout.write(Url(str(tmp_path / "in")), train=5, height=130, width=70)
    job = preparation(tmp_path, cut_px=64)
    summary = receipts.summarise_split(prepared(job, shard_examples=2))
    examples = [TINY.read(job.root, one) for one in TINY.examples(job.root, "train")]
    pixels = np.concatenate([np.array(PIL.Image.open(io.BytesIO(one.image))).reshape(-1, 3) for one in examples])
    ids = np.concatenate([one.label_hw.ravel() for one in examples])
    expected = np.bincount(ids[ids != 255], minlength=7)
    assert summary.class_pixels == expected.tolist()
    np.testing.assert_allclose(summary.class_shares, expected / expected.sum(), atol=1e-6)
    np.testing.assert_allclose(summary.mean, (pixels / 255).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(summary.std, (pixels / 255).std(axis=0), atol=1e-6)


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_doing_it_again_gives_the_same_bytes_under_the_same_names(form: str, tiny: Preparation, tmp_path: Path) -> None:
    prepared(replace(tiny, format=form))
    again = replace(tiny, format=form, output=Url(str(tmp_path / "again")))
    prepared(again)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")


def test_a_part_is_closed_at_its_size_and_no_row_is_lost(tiny: Preparation) -> None:
    (receipt,) = prepared(replace(tiny, part_bytes=1), shard_examples=6)
    assert [part.rows for part in receipt.parts] == [1] * 6
    assert len(read_back(tiny)) == 6


def test_the_mean_is_that_of_the_images_with_the_number_of_bands_most_have() -> None:
    three, four = (receipts.Moments(pixels=size, sums=[255 * size] * size, squares=[0] * size) for size in (3, 4))
    counts = receipts.add_counts([receipts.Counts(moments={3: three}), receipts.Counts(moments={4: four})])
    receipt = receipts.Receipt(shard="", split="", counts=counts, parts=[], failures=[])
    assert receipts.summarise_split([receipt]).mean == [1.0] * 4


def test_an_example_that_has_killed_two_workers_fails_alone(tiny: Preparation) -> None:
    shard = prepare.plan_examples(TINY, tiny.root, ["train"], shard_examples=6)[0]
    ledger = Ledger()
    for _ in range(2):  # two workers that died with this one in hand
        ledger.enter(prepare.STAGE, ["train/0003"], "pid 1 on a")
        ledger.enter_alone(prepare.STAGE, "train/0003", "pid 1 on a")
    receipt = prepare.prepare_shard(tiny, shard, ledger)
    assert receipt.counts.error_codes == {"crashed": 1}
    assert receipt.counts.rows == 5
