"""Command line entry point `atrous`: a subcommand per job, with the flags of that job.

    atrous segment --source photos --output masks --checkpoint farmland
    atrous segment --help

`python -m jobs.segment_dataset` takes the same flags. Only the module of the chosen job is imported.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple, NoReturn

from jobs import command_line
from jobs.completion import completion_script


class Command(NamedTuple):
    """Subcommand of `atrous`."""

    module: str
    summary: str
    """Summary in `atrous --help`; fits a line of 80 columns."""


JOBS = {
    "segment": Command("jobs.segment_dataset", "Segment every image of a collection into Parquet files"),
    "train": Command("jobs.train", "Train a network on labelled images"),
    "evaluate": Command("jobs.evaluate", "Score a checkpoint or masks against labels, with gates"),
    "prepare": Command("jobs.prepare_dataset", "Convert the download of a public data set for training"),
    "import": Command("jobs.import_checkpoint", "Convert weights of another program to a checkpoint"),
    "tune-crf": Command("jobs.tune_crf", "Search the parameters of the dense CRF on labelled images"),
    "inspect": Command("jobs.inspect_run", "Show, follow, verify or clean runs; list and retry failed images"),
    "view": Command("jobs.view", "Look at a run in a browser: filter, sort, compare"),
    "assemble": Command("jobs.assemble", "Join the masks of a run over rasters to COGs"),
    "polygons": Command("jobs.polygons", "Write the masks of rasters as polygons, GeoParquet"),
    "zones": Command("jobs.zones", "Count classes in zones: hectares, confidence, NDVI"),
    "select": Command("jobs.select_images", "Choose the images most worth labelling, with pre-labels"),
    "export": Command("jobs.export", "Write masks as PNG, COCO, GeoTIFF, Hugging Face data set"),
    "models": Command("jobs.models", "List the networks: size, speed here, published mIoU"),
    "compare": Command("jobs.compare_models", "Measure networks side by side: size, speed, mIoU"),
    "compare-runs": Command("jobs.compare_runs", "Compare masks of two runs over rasters: change per zone"),
    "submit": Command("jobs.submit", "Submit a job to a running cluster, once a day"),
    "demo": Command("jobs.demo", "Generate images, segment and evaluate them on this machine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a job; returns its exit status, or 2 for an unknown command."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        command_line.print_version()
    if name == "completion":
        return print_completion(flags)
    if name not in JOBS:
        nearest = get_close_matches(name, JOBS, n=1, cutoff=0)[0]
        print(f"atrous: no command {name!r}; the nearest is {nearest!r}, `atrous --help` lists all", file=sys.stderr)
        return 2
    sys.argv = [f"atrous {name}", *flags]  # `command_line.program` and the parsers of the jobs read it
    status: int = import_module(JOBS[name].module).main()
    return status


def usage() -> str:
    """Help text of `atrous`: its subcommands."""
    width = max(map(len, [*JOBS, "completion"]))
    lines = [f"  {name:{width}}  {job.summary}" for name, job in JOBS.items()]
    lines.append(f"  {'completion':{width}}  Print the completion of a shell: bash or zsh")
    return "\n".join(
        [
            "usage: atrous COMMAND [flags]",
            "",
            "Semantic segmentation of image collections too large for one machine.",
            "",
            *lines,
            "",
            "`atrous COMMAND --help` shows the flags of a command, --help-all every setting.",
            "`atrous --version` prints the version.",
        ]
    )


def print_completion(flags: Sequence[str]) -> int:
    """Run `atrous completion SHELL`: print the completion script; returns the exit status."""
    parser = command_line.argument_parser("Print the completion of a shell: `source <(atrous completion bash)`.")
    parser.prog = "atrous completion"
    parser.add_argument("shell", choices=("bash", "zsh"))
    shell = parser.parse_args(flags).shell
    print(completion_script(shell, {name: job.module for name, job in JOBS.items()}))
    return 0


def run() -> NoReturn:
    """Entry point of the installed command; ends the process by `command_line.leave`, as every job does."""
    command_line.leave(main())


if __name__ == "__main__":
    command_line.leave(main())
