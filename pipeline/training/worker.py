"""Entry point of each training rank: open the run, train, and write the report on rank 0.

In: a config and this process's rank. Out: the run's output, except `_SUCCESS`.
"""

from collections.abc import Mapping

from pydantic import JsonValue

from pipeline.models import checkpoint
from pipeline.store import objects
from pipeline.training import loop, lr_finder, report, run, validate
from pipeline.training.config import TrainConfig
from pipeline.training.learner import take_step
from pipeline.training.lr_finder import LrSearch
from pipeline.training.ranks import Group
from pipeline.training.run import TrainingRun
from pipeline.training.state import RunState

LR_STEPS = 200
"""Steps of the learning rate finder."""


def train_rank(cfg: TrainConfig, group: Group, *, about: Mapping[str, JsonValue]) -> None:
    """Train as one rank.

    Args:
        cfg: settings of the run.
        group: this process's rank.
        about: facts for the checkpoint card: command, versions.

    Raises:
        ConfigError, LabelError: on every rank; a retry would repeat it.
        JobError: on one rank, an error of its own.
    """
    opened = run.open_run(cfg, group, about=about)
    try:
        run_state = loop.train_phases(opened)
        if group.leads:
            write_training_report(opened, run_state)
    finally:
        opened.tracker.close()


def find_lr(cfg: TrainConfig, group: Group) -> LrSearch:
    """Run the learning rate finder on the first phase, as one rank; nothing is saved."""
    loop.check_batch_split(cfg, group)
    opened = run.open_run(cfg, group, about={})
    learner = loop.begin_phase(opened, cfg, 0, RunState(phase=-1), {})
    examples = enumerate(loop.rank_batches(opened, cfg, first=0, last=LR_STEPS))

    def step(lr: float) -> float:
        number, batch = next(examples)
        return float(group.sum(take_step(learner, batch, group, step=number, rate=lr / cfg.optimise.lr)))

    return lr_finder.lr_sweep(step, steps=LR_STEPS)


def write_training_report(opened: TrainingRun, run_state: RunState) -> None:
    """Write `report/index.html`: curves, scores per class, and sample predictions of the best weights."""
    cfg = opened.cfg
    samples = validate.predict_samples(checkpoint.load_checkpoint(cfg.output), opened.validation, cfg, opened.group)
    page = report.render_training(
        name=str(cfg.output_url),
        history=run_state.history,
        best_step=run_state.best_step,
        phases=dict(zip(["first", *(phase.name for phase in cfg.then)], opened.ends, strict=True)),
        samples=samples,
        classes=opened.classes,
        facts=_facts(opened),
        next_commands=[f"python -m jobs.segment_dataset --checkpoint {cfg.output_url} --source ... --output ..."],
    )
    objects.put(cfg.output_url / "report/index.html", page.encode())


def _facts(opened: TrainingRun) -> dict[str, str]:
    """Facts about the run for the report, and about its labels where none is weak."""
    facts = {name: str(value) for name, value in opened.about.items()}
    sets = {"training labels": opened.training[opened.cfg.sets.train], "validation labels": opened.validation}
    return facts | {name: str(examples.coverage) for name, examples in sets.items() if not examples.weak_n.any()}
