"""Each network of the zoo, small and untrained, through the stages of the main job; two of them on a real cluster."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline import classes
from pipeline.datasets import farmland
from pipeline.image import encode
from pipeline.models import checkpoint, zoo
from pipeline.models.card import Card
from pipeline.models.catalogue import VARIANTS
from pipeline.store.url import Url
from tests.support import judged_runs
from tests.support.drivers import rows_of, segment
from tests.support.networks import small
from tests.support.ray_servers import Cluster


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    farmland.write_folder(Url(str(folder)), 3, size_px=75, seed=3, with_labels=True)
    return folder


def save_random(network: str, folder: Path) -> None:
    """A checkpoint of random weights."""
    options = next(small(variant) for variant in VARIANTS if variant.network == network)
    torch.manual_seed(1)
    built = zoo.build_network(network, 7, **options)
    card = Card(
        architecture=network,
        options=options,
        output_stride=built.output_strides[0],
        classes=classes.load_class_map("farmland"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        source="a test",
        license="Apache-2.0",
    )
    checkpoint.save_checkpoint(Url(str(folder)), built.state_dict(), card)


def check(rows: pd.DataFrame) -> None:
    assert len(rows) == 3
    assert (rows["status"] == "ok").all()
    assert all(encode.read_mask_png(mask).shape == (75, 75) for mask in rows["mask"])
    assert (rows["class_pixels"].map(sum) == 75 * 75).all()


@pytest.mark.parametrize("network", zoo.NETWORKS)
def test_the_stages_segment_with_it(network: str, fields: Path, tmp_path: Path) -> None:
    save_random(network, tmp_path / "model")
    said = {"source": [str(fields)], "output": str(tmp_path / "out"), "checkpoint": str(tmp_path / "model")}
    run = judged_runs.carry_out(judged_runs.config(**said))
    check(pd.read_parquet(f"{run.url.raw}/parts"))


@pytest.mark.ray
@pytest.mark.parametrize("network", ["attention_to_scale", "crf_rnn"])
def test_the_main_job_segments_on_a_cluster_with_networks_around_others(
    network: str, fields: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    save_random(network, tmp_path / "model")
    flags = ["--source", f"{fields}/images", "--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "model")]
    outcome = segment(*flags, cluster=ray_cluster)
    assert outcome.status == 0, outcome.log
    check(rows_of(outcome))
