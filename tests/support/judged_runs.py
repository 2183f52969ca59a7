"""Evaluation runs in this process: the stages of a cluster one after the other, without Ray."""

from pathlib import Path

import numpy as np
import torch

from jobs import run as runs
from jobs.run import Run
from pipeline.classes import ClassMap
from pipeline.config import EvaluateConfig
from pipeline.evaluate import inputs
from pipeline.models import checkpoint, zoo
from pipeline.models.card import Card
from pipeline.run import manifest, parts
from pipeline.run.footers import Footers
from pipeline.run.ledger import Ledger
from pipeline.run.pending import pending_shards
from pipeline.run.stages import InferStage, MaskStage, RefineStage, read_shards
from pipeline.source.plan import Plan, plan_source
from pipeline.store.url import Url

TINY = {"backbone": "mobilenet_v2", "width_multiplier": 1 / 16, "aspp_channels": 8, "decoder_channels": 8}
QUICK = {"infer": {"precision": "fp32", "batch": 1}, "refine": {"iterations": 2}}


def save_network(folder: Path, classes: ClassMap, *, seed: int = 0) -> str:
    """Checkpoint of a tiny network with fixed random weights."""
    torch.manual_seed(seed)
    network = zoo.build_network("deeplab_v3plus", len(classes), **TINY, low_level_channels=4)
    card = Card(
        architecture="deeplab_v3plus",
        options=TINY | {"low_level_channels": 4},
        classes=classes,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        source="a test",
        license="Apache-2.0",
    )
    checkpoint.save_checkpoint(Url(str(folder)), network.state_dict(), card)
    return str(folder)


def config(**said: object) -> EvaluateConfig:
    return inputs.complete_config(EvaluateConfig.model_validate(QUICK | said))


def identify(cfg: EvaluateConfig) -> Run:
    return runs.identify_labelled(cfg, inputs.data_digest(plan_source(cfg), cfg))


def carry_out(cfg: EvaluateConfig) -> Run:
    """Evaluate: run all stages over all shards in order."""
    return work_through(identify(cfg), plan_source(cfg))


def work_through(run: Run, planned: Plan) -> Run:
    """Run all stages of a run over all shards in order, and close it."""
    runs.write_run_files(run, planned)
    job, ledger = runs.stage_job(run, planned), Ledger()
    if job.masks:
        stages = [MaskStage(job, run.cfg.judge, ledger)]
    else:
        stages = [InferStage(job, ledger, threads=1), RefineStage(job, ledger)]
    for table in read_shards(job, pending_shards(run.url, planned, Footers()), ledger):
        for stage in stages:
            table = stage(table)
        parts.write_part(run.url, table, run.classes)
    fingerprint, on_duplicate = run.fingerprint, run.cfg.read.on_duplicate
    manifest.close_run(run.url, planned, run.classes, fingerprint=fingerprint, on_duplicate=on_duplicate)
    manifest.mark_finished(run.url)
    return run


def counted(truth_hw: np.ndarray, mask_hw: np.ndarray, classes: ClassMap) -> np.ndarray:
    """(K, K + 1) confusion counts, computed independently with numpy."""
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    kept = truth_hw != classes.ignore_id
    answer = np.where(mask_hw == classes.ignore_id, len(classes), mask_hw)
    np.add.at(counts, (truth_hw[kept], answer[kept]), 1)
    return counts
