"""Train networks for equal processor time each, to set what they learn beside what they cost.

    python -m benchmarks.equal_budget --data camvid --output runs/equal --only enet espnet deeplab_v3plus_resnet50
    atrous compare --output comparison --size 361 481 --data camvid/val --only --checkpoint enet=runs/equal/enet

`--data` has the parts `train` and `val`. Every network begins from random weights and has one recipe: AdamW with a
cosine, cross entropy, the last layer at eight times the rate. Steps are the budget over the processor time of a step,
which is measured first; decoding, augmentation and the validation at the end are not counted. An interrupted benchmark
goes on, and finished networks are not trained again. Progress on stderr, the table on stdout.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import torch
from torch.nn import functional

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError
from pipeline.models import catalogue
from pipeline.models.card import load_card
from pipeline.models.catalogue import Variant
from pipeline.training import loop, losses, run
from pipeline.training.config import LossConfig, TrainConfig
from pipeline.training.ranks import Group

log = logging.getLogger(__name__)

BATCH, CROP_PX = 8, (256, 320)
TIMED_STEPS = 2
"""Steps whose processor time is that of a step; one more before them warms up."""
LEAST_STEPS = 20
"""A budget for fewer steps is refused."""
_SETTINGS = {
    "augment": {"crop_px": CROP_PX, "scale": (0.6, 1.8), "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
    "optimise": {
        "kind": "adamw",
        "lr": 0.001,
        "head_lr": 8.0,
        "weight_decay": 0.01,
        "decay_all": False,
        "clip_norm": 5.0,
        "batch": BATCH,
    },
    "loss": {"terms": {"cross_entropy": 1.0}, "at": "logits"},
}


@dataclass(frozen=True, slots=True)
class Trained:
    """One network after its budget."""

    name: str
    steps: int
    images: int
    """Training images, for epochs."""
    miou: float
    """Mean IoU of val after the last step, 0 to 1."""

    def row(self) -> str:
        """One line of the table."""
        epochs = self.steps * BATCH / self.images
        return f"| {self.name} | {self.steps} | {epochs:.1f} | {100 * self.miou:.1f} |"


def step_seconds(variant: Variant, num_classes: int) -> float:
    """Processor time of forward, loss and backward of one batch, seconds; the optimiser takes next to nothing."""
    torch.manual_seed(0)
    network = variant.build(num_classes).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = losses.branch_weights(LossConfig(), network)
    images = torch.rand(BATCH, 3, *CROP_PX).contiguous(memory_format=torch.channels_last)
    for step in range(TIMED_STEPS + 1):
        if step == 1:
            began = process_time()
        scores = network.supervised(images)
        total = torch.zeros(())
        for name in weights:
            labels = torch.randint(num_classes, (BATCH, *scores[name].shape[2:]))
            total = total + functional.cross_entropy(scores[name], labels)
        total.backward()
    return (process_time() - began) / TIMED_STEPS


def budget_config(variant: Variant, args: argparse.Namespace, steps: int) -> TrainConfig:
    """Settings of one network's run."""
    settings = _SETTINGS | {
        "data": args.data,
        "output": str(args.output / variant.name),
        "classes": args.classes,
        "network": {"name": variant.network, "options": variant.options},
        "schedule": {"kind": "cosine", "steps": steps, "warmup": max(1, steps // 20)},
        "validation": {"every": steps, "samples": 0},
        "runtime": {"device": "cpu", "loader_workers": 1, "tracker": "none", "checkpoint_every": 100},
    }
    return TrainConfig.model_validate(settings)


def train_for(variant: Variant, args: argparse.Namespace) -> Trained:
    """Train one network for its budget, or read what an earlier run of it reached.

    Raises:
        ConfigError: the budget is less than `LEAST_STEPS` steps.
    """
    folder, noted = args.output / variant.name, args.output / f"{variant.name}.steps"
    if noted.exists():
        steps = int(noted.read_text())
    else:
        seconds = step_seconds(variant, len(run.class_map_of_config(budget_config(variant, args, LEAST_STEPS))))
        steps = int(60 * args.minutes / seconds)
        if steps < LEAST_STEPS:
            needed = LEAST_STEPS * seconds / 60
            raise ConfigError(f"{variant.name}: a step takes {seconds:.1f} s; --minutes must be at least {needed:.0f}")
        noted.write_text(str(steps))
    log.info("%s: %d steps", variant.name, steps)
    loop.train_phases(run.open_run(budget_config(variant, args, steps), Group(), about={}))
    record = load_card(str(folder)).training
    return Trained(variant.name, steps, int(str(record["training_images"])), float(str(record["miou"])))


def table(trained: Sequence[Trained]) -> str:
    """Markdown, best first."""
    rows = [one.row() for one in sorted(trained, key=lambda one: -one.miou)]
    return "\n".join(["| network | steps | epochs | mean IoU, % |", "|---|---|---|---|", *rows])


def main(argv: list[str] | None = None) -> int:
    """Parse, train one network after the other, print the table."""
    parser = command_line.argument_parser(__doc__ or "")
    parser.add_argument("--data", required=True, help="folder of the parts train and val")
    parser.add_argument("--output", type=Path, required=True, help="folder with a checkpoint per network")
    parser.add_argument("--classes", default="camvid", help="class map: a file or a shipped name")
    parser.add_argument("--minutes", type=float, default=30, help="processor minutes of each network")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--only", nargs="+", required=True, metavar="NAME", help="variants, as in atrous models")
    args = parser.parse_args(argv)
    logs.configure()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)

    def train_all() -> int:
        print(table([train_for(catalogue.find_variant(name), args) for name in args.only]))
        return 0

    return command_line.exit_status(train_all)


if __name__ == "__main__":
    command_line.leave(main())
