from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.rehearse import PRICES
from pipeline.config import RuntimeConfig
from pipeline.errors import ConfigError
from pipeline.run import price
from pipeline.run.price import Prices, Usage
from pipeline.source.shard import Member, Shard, slice_shard

USAGE = Usage(
    hours=2, core_hours=200, gpu_hours=8, gets=10**6, puts=1000, lists=100, bytes_read=2e11, bytes_written=3e10
)
amounts = st.floats(0, 1e9)
usages = st.builds(Usage, *[amounts] * len(fields(Usage)))


@pytest.fixture(scope="module")
def prices() -> Prices:
    return price.read_prices(PRICES)


def test_the_shipped_prices_say_where_they_come_from_and_that_they_are_to_be_checked(prices: Prices) -> None:
    listed = [value for _, value in prices if isinstance(value, price.ListPrice)]
    assert len(listed) == 9
    assert all("https://" in one.source for one in listed)
    assert "check before relying" in prices.note


@given(usage=usages, factor=st.integers(0, 1000))
def test_money_is_linear(prices: Prices, usage: Usage, factor: int) -> None:
    more = Usage(**{name: value * factor for name, value in asdict(usage).items()})
    once, often = price.price_of(usage, prices), price.price_of(more, prices)
    assert asdict(often) == pytest.approx({name: value * factor for name, value in asdict(once).items()})
    assert often.total == pytest.approx(factor * once.total)


def test_the_cores_beside_a_gpu_are_paid_with_it(prices: Prices) -> None:
    beside = replace(USAGE, core_hours=USAGE.gpu_hours * prices.cores_per_gpu)
    assert price.price_of(replace(beside, core_hours=0), prices) == price.price_of(beside, prices)
    dearer = price.price_of(replace(beside, core_hours=beside.core_hours + 10), prices).compute
    assert dearer - price.price_of(beside, prices).compute == pytest.approx(10 * prices.core_hour.usd)


def test_a_million_requests_cost_a_thousand_times_the_price_of_a_thousand(prices: Prices) -> None:
    nothing = Usage(*[0.0] * len(fields(Usage)))
    for name, listed in {"gets": prices.thousand_get, "puts": prices.thousand_put}.items():
        assert price.price_of(replace(nothing, **{name: 10**6}), prices).total == pytest.approx(1000 * listed.usd)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"core_hours": {"usd": 1, "source": "me"}}, "did you mean core_hour?"),
        ({"gb_read": None}, "gb_read"),
        ({"gb_read": {"usd": -1, "source": "me"}}, "gb_read.usd"),
        ({"gb_read": {"usd": 1}}, "gb_read.source"),
        ({"as_of": "soon"}, "as_of"),
    ],
)
def test_a_wrong_file_is_refused_by_the_name_of_the_price(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(Path(PRICES).read_text()) | change))
    with pytest.raises(ConfigError) as refused:
        price.read_prices(str(path))
    assert words in str(refused.value)
    assert "mine.yaml" in str(refused.value)


def requests_of(shards: list[Shard], images: int, hours: float = 0.0) -> price.Requests:
    return price.estimate_requests(shards, images, runtime=RuntimeConfig(rows_per_part=100), hours=hours)


def test_each_image_file_is_one_get_and_each_part_one_put() -> None:
    shards = [slice_shard("in", [Member(f"{index}.jpg", 10, "e") for index in range(1000)])]
    few, many = (requests_of(shards, images) for images in (1000, 101_000))
    parts = 1000
    assert many.gets - few.gets == 100_000 + parts * price.READS_PER_PART
    assert many.puts - few.puts == parts
    assert many.lists - few.lists == 100 + 2


def test_a_tar_is_read_in_ranges_and_row_groups_of_one_file_count_once() -> None:
    size = 3 * price.RANGE_BYTES + 1
    shards = [Shard(str(group), "parquet", "in", "a.parquet", "e", size, 10, group) for group in range(5)]
    assert requests_of(shards, 50).gets == 2 + 4 + price.READS_PER_PART
    assert requests_of(shards, 50, hours=2.0).puts > requests_of(shards, 50).puts
