"""The search from end to end, on a real cluster."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as PilImage

from jobs import command_line, tune_crf
from jobs.segment_dataset import SegmentArguments
from pipeline import classes
from pipeline.config import SegmentConfig
from pipeline.datasets import farmland
from pipeline.errors import ConfigError
from pipeline.image import labels
from pipeline.models import checkpoint
from pipeline.refine.presets import CrfParams, crf_params
from pipeline.run.stages import Job
from pipeline.source.plan import plan_source
from pipeline.store.url import Url
from pipeline.tune import chunks as tune_chunks
from pipeline.tune import inputs, search
from pipeline.tune.config import TuneConfig
from pipeline.tune.search import Candidate
from tests.support.drivers import Outcome, finish, start
from tests.support.ray_servers import Cluster

FARM = classes.load_class_map("farmland")
QUICK = ["--refine.iterations", "2", "--infer.precision", "fp32", "--chunk-images", "2", "--samples", "100"]
IMAGES = 9


def flags(fields: Path, output: Path) -> list[str]:
    said = ["--images", str(fields / "images"), "--labels", str(fields / "labels"), "--output", str(output)]
    return [*said, "--checkpoint", "farmland", *QUICK]


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small farmland; one image has no label, one is none."""
    folder = tmp_path_factory.mktemp("fields")
    farmland.write_folder(Url(str(folder)), IMAGES, size_px=64, seed=7, with_labels=True)
    (folder / "images/no_label.jpg").write_bytes((folder / "images/farm_000000.jpg").read_bytes())
    (folder / "images/broken.jpg").write_bytes(b"<html>no</html>")
    (folder / "labels/broken.png").write_bytes((folder / "labels/farm_000000.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def searched(fields: Path, ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    output = tmp_path_factory.mktemp("tuned")
    return finish(start(*flags(fields, output), cluster=ray_cluster, module="jobs.tune_crf")), output


@pytest.mark.ray
@pytest.mark.smoke
def test_a_search_ends_with_parameters_a_table_a_page_and_a_summary(searched: tuple[Outcome, Path]) -> None:
    outcome, output = searched
    assert outcome.status == 0, outcome.log
    assert {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()} == {
        "params.yaml",
        "results.parquet",
        "report/index.html",
    }
    said = outcome.summary
    assert said["images"] == IMAGES
    assert said["left_out"] == {"no label": 1, "not_an_image": 1}
    assert "no_label.jpg" in outcome.log
    assert "no_label.jpg" in (output / "report/index.html").read_text()
    rows = pq.read_table(output / "results.parquet").to_pylist()
    assert said["candidates"] == len(rows) - 1 > len(search.reference_candidates()) + 26
    assert max(row["stage"] for row in rows) == 2
    assert said["mean_iou_best"] == pytest.approx(max(row["mean_iou"] for row in rows[1:]), abs=1e-5)
    cfg = command_line.parse(
        ["--source", "in", "--output", "out", "--checkpoint", "farmland", "--config", str(output / "params.yaml")],
        SegmentArguments,
        description="test",
    ).cfg
    assert (cfg.refine.engine == "none") is (said["verdict"] == "no CRF")
    if said["verdict"] == "crf":
        assert crf_params(cfg.refine) == CrfParams(**said["best"])


@pytest.mark.ray
@pytest.mark.smoke
def test_counts_of_the_cluster_are_those_of_a_loop_in_one_process(
    fields: Path, searched: tuple[Outcome, Path], tmp_path: Path
) -> None:
    _, output = searched
    cfg = TuneConfig(
        images=str(fields / "images"), labels=str(fields / "labels"), checkpoint="farmland", output=str(tmp_path)
    )
    cfg = cfg.model_validate(
        cfg.model_dump() | {"chunk_images": 2, "infer": {"precision": "fp32"}, "refine": {"iterations": 2}}
    )
    run = inputs.segment_config(cfg, inputs.first_grid(cfg))
    model = checkpoint.load_checkpoint("farmland")
    job = Job(run, model.card.classes, Url(""), "", "", 0)
    at = labels.by_stem(path.name for path in (fields / "labels").iterdir())
    scorer = tune_chunks.Scorer(job, threads=1)
    chunks = []
    for shard in plan_source(run).shards:
        keys = [one.key for one in shard.members() if labels.label_stem(one.key) in at]
        urls = {key: Url(str(fields / "labels")) / at[labels.label_stem(key)] for key in keys}
        kept, found = tune_chunks.fetch_chunk(job, shard, urls, labels.IDS)
        if found.images:
            chunks.append(scorer.score(kept))
    rows = pq.read_table(output / "results.parquet").to_pylist()
    for row in [rows[0], rows[2], rows[-1]]:
        names = (*search.SEARCHED_PARAMS, *search.FIXED_PARAMS)
        params = CrfParams(*(row[name] for name in names)) if row["bi_w"] is not None else None
        candidate = Candidate(row["name"], params, row["stage"])
        judged = [tune_chunks.count_chunk(one, candidate.config(cfg.refine), FARM, run.decode) for one in chunks]
        total = sum(one.counts_nkk.sum(axis=0) for one in judged)
        np.testing.assert_array_equal(np.ravel(total), row["counts"])


@pytest.mark.ray
def test_wrong_labels_stop_the_search_before_the_network_and_are_all_named(
    fields: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    farmland.write_folder(Url(str(tmp_path)), 6, size_px=64, seed=7, with_labels=True)
    PilImage.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "labels/farm_000001.png")
    PilImage.fromarray(np.zeros((64, 32), np.uint8)).save(tmp_path / "labels/farm_000004.png")
    outcome = finish(start(*flags(tmp_path, tmp_path / "out"), cluster=ray_cluster, module="jobs.tune_crf"))
    assert outcome.status == 1
    assert "farm_000001.png has the value 9" in outcome.log
    assert "farm_000004.png has 64x32 pixels, its image 64x64" in outcome.log
    assert "Traceback" not in outcome.log
    assert not (tmp_path / "out/params.yaml").exists()


# ---------------------------------------------------------------- refused before anything starts


def config(fields: Path, **changes) -> TuneConfig:
    said = {
        "images": fields / "images",
        "labels": fields / "labels",
        "output": fields / "out",
        "checkpoint": "farmland",
    }
    return TuneConfig(**{name: str(value) for name, value in said.items()} | changes)


def test_an_unknown_grid_is_refused_with_those_there_are(fields: Path) -> None:
    with pytest.raises(ConfigError, match="--grid 'fine' is not a grid") as error:
        tune_crf.tune(config(fields, grid="fine"))
    assert "coarse, papers" in error.value.hint.replace(" or ", ", ")


def test_labels_elsewhere_are_said_to_be_missing(fields: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/farm_1.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"0 of 11 image.* have a label"):
        tune_crf.tune(config(fields, labels=str(tmp_path / "other")))


def test_an_output_among_the_images_or_labels_is_refused(fields: Path) -> None:
    for name in ("images", "labels"):
        with pytest.raises(ConfigError, match="lies inside the source"):
            tune_crf.tune(config(fields, output=str(fields / name / "tuned")))


def test_the_memory_of_refiners_is_planned_for_the_largest_sigma(fields: Path) -> None:
    cfg = config(fields, finer=2)
    grid = search.candidate_grid("papers", cfg.refine)
    largest = inputs.segment_config(cfg, grid).refine.bi_xy
    tried = [*search.reference_candidates(), *grid]
    for best in (one.params for one in list(tried) if one.params):
        assert all(one.params.bi_xy <= largest for one in search.finer_grid(best, tried))


def test_the_stages_of_a_search_are_set_by_the_flags_of_a_run() -> None:
    stages = {"decode", "tile", "infer", "refine"}
    assert stages <= TuneConfig.model_fields.keys() & SegmentConfig.model_fields.keys()
