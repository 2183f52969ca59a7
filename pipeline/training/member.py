"""What every process of a group does for a run: open it, train, and, the first of them, leave the report.

In: a config and this process's place. Out: the run's output, but for the mark that it is finished.
"""

from collections.abc import Callable, Mapping

from pydantic import JsonValue

from pipeline import checkpoint, storage, training_report
from pipeline.redact import redact
from pipeline.training import loop, run, validate
from pipeline.training.config import TrainConfig
from pipeline.training.group import Group
from pipeline.training.progress import Line
from pipeline.training.run import Run
from pipeline.training.state import Story


def take_part(
    cfg: TrainConfig, group: Group, *, about: Mapping[str, JsonValue], report: Callable[[Line], None] = lambda _: None
) -> None:
    """Train as one process of a group.

    Args:
        cfg: what is asked.
        group: this process's place.
        about: what the card is to say of the training: command, versions.
        report: is called with every line of progress, on every process.

    Raises:
        ConfigError, LabelError: on every process, for what no repetition changes.
        JobError: on one of them, for what went wrong there.
    """
    opened = run.open_run(cfg, group, about=about, report=report)
    try:
        story = loop.train(opened)
        if group.leads:
            write_report(opened, story)
    finally:
        opened.tracker.close()


def write_report(opened: Run, story: Story) -> None:
    """Write `report/index.html`: curves, scores of classes, and predictions of the weights that are kept."""
    cfg = opened.cfg
    samples = validate.look(checkpoint.load(cfg.output), opened.validation, cfg, opened.group)
    page = training_report.render(
        name=redact(cfg.output),
        history=story.history,
        best_step=story.best_step,
        phases=dict(zip(["first", *(phase.name for phase in cfg.then)], opened.ends, strict=True)),
        samples=samples,
        classes=opened.classes,
        facts={name: str(value) for name, value in opened.about.items()},
        next_commands=[f"python -m jobs.segment_dataset --checkpoint {redact(cfg.output)} --source ... --output ..."],
    )
    storage.put(storage.join(cfg.output, "report/index.html"), page.encode())
