"""What every process of a group does for a run: open it, train, and, the first of them, leave the report.

In: a config and this process's place. Out: the run's output, but for the mark that it is finished.
"""

from collections.abc import Mapping

from pydantic import JsonValue

from pipeline.models import checkpoint
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.training import loop, lr_finder, report, run, validate
from pipeline.training.config import TrainConfig
from pipeline.training.learner import take_step
from pipeline.training.lr_finder import LrSearch
from pipeline.training.ranks import Group
from pipeline.training.run import TrainingRun
from pipeline.training.state import Story

LR_STEPS = 200
"""Of the search for a learning rate."""


def take_part(cfg: TrainConfig, group: Group, *, about: Mapping[str, JsonValue]) -> None:
    """Train as one process of a group.

    Args:
        cfg: what is asked.
        group: this process's place.
        about: what the card is to say of the training: command, versions.

    Raises:
        ConfigError, LabelError: on every process, for what no repetition changes.
        JobError: on one of them, for what went wrong there.
    """
    opened = run.open_run(cfg, group, about=about)
    try:
        story = loop.train_phases(opened)
        if group.leads:
            write_training_report(opened, story)
    finally:
        opened.tracker.close()


def find_lr(cfg: TrainConfig, group: Group) -> LrSearch:
    """Take steps of the first phase at growing rates, as one process of a group; nothing is kept."""
    loop.check_split(cfg, group)
    opened = run.open_run(cfg, group, about={})
    made = loop.begin(opened, cfg, 0, Story(phase=-1), {})
    examples = enumerate(loop.examples_of(opened, cfg, first=0, last=LR_STEPS))

    def step(lr: float) -> float:
        number, batch = next(examples)
        return float(group.sum(take_step(made, batch, group, step=number, rate=lr / cfg.optimise.lr)))

    return lr_finder.lr_sweep(step, steps=LR_STEPS)


def write_training_report(opened: TrainingRun, story: Story) -> None:
    """Write `report/index.html`: curves, scores of classes, and predictions of the weights that are kept."""
    cfg = opened.cfg
    samples = validate.predict_samples(checkpoint.load_checkpoint(cfg.output), opened.validation, cfg, opened.group)
    page = report.render_training(
        name=redact(cfg.output),
        history=story.history,
        best_step=story.best_step,
        phases=dict(zip(["first", *(phase.name for phase in cfg.then)], opened.ends, strict=True)),
        samples=samples,
        classes=opened.classes,
        facts={name: str(value) for name, value in opened.about.items()},
        next_commands=[f"python -m jobs.segment_dataset --checkpoint {redact(cfg.output)} --source ... --output ..."],
    )
    objects.put(objects.join(cfg.output, "report/index.html"), page.encode())
