"""Shell completion of `atrous`: a script that knows every command and its flags, without starting Python at each Tab.

The flags are read from the help of the jobs, which tyro and argparse write alike: an option begins a line.
"""

import io
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from importlib import import_module

OPTION_LINE = re.compile(r"^  (-.*)$", re.MULTILINE)
"""Line of help that begins with an option: indented by two spaces, where every other line has more."""
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")

EVERYWHERE = ("--help-all", "--version")
"""Flags of every job that its help does not list."""

SCRIPT = """\
_atrous() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _atrous atrous"""
"""Script for bash and zsh; `-o default` completes file names where no flag fits."""


def completion_script(shell: str, jobs: Mapping[str, str]) -> str:
    """Completion script for a shell to source.

    Args:
        shell: `bash`, or `zsh`, which runs the script of bash after loading bashcompinit.
        jobs: module of each command.
    """
    words = {name: job_flags(name, module) for name, module in jobs.items()} | {"completion": ["bash", "zsh"]}
    cases = "\n".join(f"        {name}) words={shlex.quote(' '.join(flags))} ;;" for name, flags in words.items())
    script = SCRIPT.format(commands=shlex.quote(" ".join([*words, "--help", "--version"])), cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script


def job_flags(name: str, module: str) -> list[str]:
    """Flags of a job, in the order of its help."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = [f"atrous {name}"]
    try:
        with redirect_stdout(printed), suppress(SystemExit):
            import_module(module).main(["--help-all"])
    finally:
        sys.argv = before
    invocations = OPTION_LINE.findall(printed.getvalue())
    flags = [flag for line in invocations for flag in FLAG.findall(line)]
    return list(dict.fromkeys([*flags, *EVERYWHERE]))
