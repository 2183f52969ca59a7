import itertools
import pickle
from dataclasses import replace
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RefineConfig, RuntimeConfig, SegmentConfig, TileConfig
from pipeline.errors import ConfigError
from pipeline.run import rehearsal
from pipeline.run.ledger import Ledger, RunProgress
from pipeline.run.rehearsal import STAGES, CpuClock, Crew, CrewFile, Rate, Rates
from pipeline.run.workers import CPU_SHARE, GPU_FEEDER_CPUS, READ_CPUS, WRITE_CPUS, Resources, Workers
from pipeline.source.shard import Member, Shard, slice_shard
from pipeline.store.url import Url

SHARED = Rates(
    {"read": Rate(0.001, 0.001), "infer": Rate(0.03, 0.03), "refine": Rate(0.12, 0.12), "write": Rate(0.002, 0.001)},
    driver_cores=0.0,
    fixed_s=20.0,
)
"""As on two cores without GPUs."""
ON_GPUS = replace(SHARED, stages=SHARED.stages | {"infer": Rate(0.01, 0.004)})
seconds = st.floats(1e-4, 10)
rates = st.builds(
    lambda pairs, driver, fixed: Rates(
        {name: Rate(*pair) for name, pair in zip(STAGES, pairs, strict=True)}, driver, fixed
    ),
    st.lists(st.tuples(seconds, seconds), min_size=4, max_size=4),
    st.floats(0, 0.5),
    st.floats(0, 100),
)


def crew(cores: float, infer: int = 100, refine: int = 100, *, gpus: float = 0) -> Crew:
    return Crew(infer=infer, refine=refine, read=100, write=100, cores=cores, gpus=gpus)


def config(**groups: object) -> SegmentConfig:
    return SegmentConfig(source=("a",), output="b", checkpoint="c", **groups)


# ---------------------------------------------------------------- the images


def folder_of(*counts: int) -> list[Shard]:
    return [
        slice_shard("in", [Member(f"{number}/{index}.jpg", 10, "e") for index in range(count)])
        for number, count in enumerate(counts)
    ]


def tar(number: int, rows: int | None) -> Shard:
    return Shard(str(number), "webdataset", "in", f"{number}.tar", "e", 1000, rows)


def keys_of(pending: list[rehearsal.PendingShard]) -> list[str]:
    return [one.key for shard in pending for one in shard.shard.members() if one.key not in shard.skip]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 200))
def test_exactly_the_asked_images_of_a_folder_are_taken_evenly_spaced(counts: list[int], images: int) -> None:
    shards = folder_of(*counts)
    every = [one.key for shard in shards for one in shard.members()]
    taken = keys_of(rehearsal.spread(shards, images))
    assert len(taken) == min(images, len(every))
    places = [every.index(key) for key in taken]
    steps = [after - before for before, after in itertools.pairwise(places)]
    assert places[0] == 0
    assert max(steps, default=1) - min(steps, default=1) <= 1


def test_a_limited_slice_gives_only_its_first_images() -> None:
    (shard,) = folder_of(10)
    limited = replace(shard, rows=4, max_rows=4)
    pending = rehearsal.spread([limited], 10)
    taken = [one.key for one in limited.members()[:4] if one.key not in pending[0].skip]
    assert taken == [f"0/{index}.jpg" for index in range(4)]


@given(st.integers(1, 50), st.integers(1, 100))
def test_a_few_tars_spread_over_the_source_are_opened(tars: int, images: int) -> None:
    pending = rehearsal.spread([tar(index, None) for index in range(tars)], images)
    assert len(pending) == min(tars, images, rehearsal.OPENED_SHARDS)
    assert sum(shard.shard.max_rows or 0 for shard in pending) == images
    opened = [int(shard.shard.id) for shard in pending]
    assert max(opened) >= tars * (len(opened) - 1) // len(opened)


def test_more_images_than_a_source_has_are_all_of_them() -> None:
    pending = rehearsal.spread([tar(0, 3), tar(1, 5)], 64)
    assert [shard.shard.max_rows for shard in pending] == [3, 5]


# ---------------------------------------------------------------- rates and time


@given(rates, st.integers(1, 64), st.integers(1, 64))
def test_doubling_the_cores_halves_the_work_until_a_stage_limits(measured: Rates, cores: int, workers: int) -> None:
    measured = replace(measured, driver_cores=0.0)
    few, many = (rehearsal.forecast(measured, crew(count, workers, workers), 1000) for count in (cores, 2 * cores))
    if many.limit == "cores":
        assert many.working_s == pytest.approx(few.working_s / 2)
    else:
        assert few.working_s / 2 <= many.working_s * (1 + 1e-9)
        assert many.working_s <= few.working_s


@given(rates, st.integers(1, 10**6))
def test_hours_are_the_start_and_a_time_for_each_image(measured: Rates, images: int) -> None:
    once, twice = (rehearsal.forecast(measured, crew(8), count) for count in (images, 2 * images))
    assert twice.working_s == pytest.approx(2 * once.working_s)
    assert twice.hours - once.hours == pytest.approx(once.working_s / 3600)
    assert once.core_hours == 8 * once.hours


def test_without_gpus_the_cores_limit_and_with_them_the_slowest_stage() -> None:
    assert rehearsal.forecast(SHARED, crew(2, 1, 2), 1000).limit == "cores"
    assert rehearsal.forecast(ON_GPUS, crew(400, 4, 10, gpus=4), 1000).limit == "refine"
    assert rehearsal.forecast(ON_GPUS, crew(400, 1, 100, gpus=1), 1000).limit == "infer"


@given(rates, st.integers(1, 1000), st.floats(0, 1000))
def test_a_forecast_of_the_rehearsal_itself_takes_as_long_as_it_did(
    measured: Rates, images: int, more_s: float
) -> None:
    wall_s = rehearsal.forecast(measured, crew(2), images).working_s + more_s
    again = rehearsal.with_fixed(measured, crew(2), images, wall_s)
    assert rehearsal.forecast(again, crew(2), images).hours * 3600 == pytest.approx(wall_s)


@given(rates, st.integers(1, 10**7), st.floats(0.1, 1000), st.booleans())
def test_the_crew_for_a_budget_keeps_it_and_fits_its_cluster(
    measured: Rates, images: int, hours: float, gpus: bool
) -> None:
    found = rehearsal.crew_for(measured, images, hours, gpus=gpus)
    assert rehearsal.forecast(measured, found, images).hours <= hours * (1 + 1e-6)
    share = (GPU_FEEDER_CPUS, 1.0) if gpus else (CPU_SHARE, CPU_SHARE)
    reserved = found.infer * share[0] + found.refine * share[1] + found.read * READ_CPUS + found.write * WRITE_CPUS
    assert reserved <= found.cores + 1e-6
    assert found.gpus == (found.infer if gpus else 0)


@given(rates, st.floats(1.0, 100))
def test_more_hours_need_no_more_cores(measured: Rates, hours: float) -> None:
    tight, loose = (rehearsal.crew_for(measured, 10**6, h, gpus=True) for h in (hours, 2 * hours))
    assert loose.cores <= tight.cores
    assert loose.gpus <= tight.gpus


def test_a_budget_shorter_than_the_start_is_refused_with_both() -> None:
    with pytest.raises(ConfigError, match=r"--budget-hours 0\.001 is 4 s, and starting alone took 20 s"):
        rehearsal.crew_for(SHARED, 100, 0.001, gpus=False)


def test_the_crew_of_a_cluster_reads_and_writes_in_what_the_workers_leave() -> None:
    cluster = Resources(64, 4, 512)
    workers = Workers(4, 0.5, 1, 4, 60, 1.0, 2)
    found = rehearsal.crew_of(workers, cluster)
    assert (found.infer, found.refine, found.gpus, found.cores) == (4, 60, 4, 64)
    assert (found.read + found.write) * READ_CPUS == pytest.approx(64 - 4 * 0.5 - 60)


def test_rates_are_busy_seconds_and_cpu_seconds_over_the_images_that_were_segmented() -> None:
    counted = {"read": 4.0, "read cpu": 1.0, "infer": 30.0, "infer cpu": 20.0, "refine": 50.0, "refine cpu": 40.0}
    progress = RunProgress(seconds=counted | {"write": 2.0, "write cpu": 1.0})
    measured = rehearsal.rates_of(progress, 10, driver_cores=0.1)
    assert {name: (rate.held_s, rate.cpu_s) for name, rate in measured.stages.items()} == {
        "read": (0.4, 0.1),
        "infer": (3.0, 2.0),
        "refine": (5.0, 4.0),
        "write": (0.2, 0.1),
    }
    assert measured.cpu_s == pytest.approx(6.2)


# ---------------------------------------------------------------- the clock


def burn(cpu_s: float) -> None:
    until = process_time() + cpu_s
    while process_time() < until:
        pass


def test_the_clock_counts_cpu_seconds_of_batches_and_not_of_loading() -> None:
    ledger = Ledger()
    clock = pickle.loads(pickle.dumps(CpuClock(ledger)))
    burn(0.2)  # loads a network
    clock.enter("infer", ["a"], "w")
    burn(0.05)
    clock.leave("infer", ["a"], 9.0)
    burn(0.05)  # moves a block
    clock.enter("infer", ["b"], "w")
    clock.leave("infer", ["b"], 9.0)
    counted = clock.progress()
    assert counted.seconds["infer"] == 18.0
    assert 0.1 <= counted.seconds["infer cpu"] < 0.2
    assert counted.done == {"infer": 2, "infer cpu": 0}


def test_what_a_reader_does_before_its_first_block_counts() -> None:
    clock = pickle.loads(pickle.dumps(CpuClock(Ledger())))
    burn(0.05)
    clock.leave("read", ["a"], 0.01)
    assert clock.progress().seconds["read cpu"] >= 0.05


def test_commits_are_counted_as_writing() -> None:
    clock = CpuClock(Ledger())
    clock.commit(3, {"empty": 1}, 0.5)
    counted = clock.progress()
    assert (counted.committed, counted.failed, counted.seconds["write"]) == (3, {"empty": 1}, 0.5)
    assert "write cpu" in counted.seconds


# ---------------------------------------------------------------- the file


def crew_file(cfg: SegmentConfig, found: Crew) -> CrewFile:
    settings = rehearsal.settings_of_a_rate(cfg)
    return CrewFile(crew=found, checkpoint="f" * 64, source=cfg.source, settings=settings, rehearsal={"images": 64})


def test_a_file_is_read_as_it_was_written(tmp_path) -> None:
    written = crew_file(config(), crew(2.0))
    rehearsal.write_crew(Url(str(tmp_path / "crew.json")), written)
    read = rehearsal.read_crew(Url(str(tmp_path / "crew.json")))
    assert read == written
    read.check(config(), "f" * 64)


@pytest.mark.parametrize(
    ("groups", "checkpoint", "words"),
    [
        ({}, "e" * 64, "checkpoint ffffffffffff, here eeeeeeeeeeee"),
        ({"refine": RefineConfig(iterations=3)}, "f" * 64, "refine.iterations None, here 3"),
        ({"tile": TileConfig(tile_px=640)}, "f" * 64, "tile.tile_px 512, here 640"),
    ],
)
def test_another_checkpoint_or_setting_is_named_with_both_values(
    groups: dict[str, object], checkpoint: str, words: str
) -> None:
    made = crew_file(config(), crew(2.0))
    with pytest.raises(ConfigError) as refused:
        made.check(config(runtime=RuntimeConfig(crew="c.json"), **groups), checkpoint)
    assert words in str(refused.value)
    assert "c.json" in str(refused.value)


def test_settings_of_the_run_that_cost_nothing_may_differ() -> None:
    made = crew_file(config(), crew(2.0))
    made.check(config(runtime=RuntimeConfig(rows_per_part=8), limit=3), "f" * 64)


@pytest.mark.parametrize("text", ["{}", "[", '{"crew": {"infer": 0}}'])
def test_what_is_no_crew_is_refused_by_name(tmp_path, text: str) -> None:
    (tmp_path / "crew.json").write_text(text)
    with pytest.raises(ConfigError, match=r"--runtime\.crew .*crew\.json"):
        rehearsal.read_crew(Url(str(tmp_path / "crew.json")))


def test_a_crew_for_a_larger_cluster_is_refused_with_both(tmp_path) -> None:
    url = Url(str(tmp_path / "crew.json"))
    rehearsal.write_crew(url, crew_file(config(), crew(128.0, 4, 120, gpus=4)))
    with pytest.raises(ConfigError, match="is for 128 CPU and 4 GPU, the cluster has 2 CPU, 0 GPU"):
        rehearsal.runtime_of(RuntimeConfig(), url, Resources(2, 0, 16))
    runtime = rehearsal.runtime_of(RuntimeConfig(), url, Resources(128, 4, 512))
    assert (runtime.infer_workers, runtime.refine_workers) == (4, 120)


def test_the_number_of_workers_is_outside_the_fingerprint() -> None:
    prints = {
        config(runtime=runtime).fingerprint(model_sha256="m", classes=[])
        for runtime in (RuntimeConfig(), RuntimeConfig(crew="c.json"))
    }
    assert len(prints) == 1
