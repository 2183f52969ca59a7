"""Counts which mutants the tests noticed; those in equivalent.txt are the same program and do not count."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

NOTICED_SHARE = 0.9
LISTED = Path(__file__).with_name("equivalent.txt")


class Change(NamedTuple):
    """What a mutant changes, without line numbers and mutant numbers, which move when the file is edited."""

    module: str
    function: str
    lines: tuple[str, ...]
    """The removed and added lines, each with its sign, without indentation."""


class Mutant(NamedTuple):
    """One mutant of a module."""

    name: str
    status: str | None
    """mutmut's word, such as `killed`, `survived`, `no tests`, `timeout`, `segfault`; None outside the sample."""
    change: Change
    diff: str

    @property
    def survived(self) -> bool:
        return self.status in {"survived", "no tests"}


def change(module: str, name: str, diff: str) -> Change:
    """The change of a mutant that mutmut calls by this name, from its unified diff of one function."""
    signed = [line for line in diff.splitlines() if line[:1] in ("+", "-")][2:]  # the first two are the file's name
    return Change(module, function_of(name), tuple(normalised(line) for line in signed))


def normalised(line: str) -> str:
    return f"{line[0]} {line[1:].strip()}"


def function_of(name: str) -> str:
    """`tile.x_bounds__mutmut_1` is a mutant of `bounds`, `tile.xǁGridǁplace__mutmut_3` of `Grid.place`."""
    mangled = name.rpartition(".")[2].partition("__mutmut_")[0]
    return mangled.removeprefix("x_") if mangled.startswith("x_") else ".".join(mangled.split("ǁ")[1:])


def equivalents(text: str) -> dict[Change, str]:
    """Read equivalent.txt: changes, and why each leaves the program as it is.

    Raises ValueError for an entry that lacks its function, its changed lines or its reason.
    """
    listed = {}
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in filter(str.strip, text.split("\n\n")):
        head, *rest = block.strip().splitlines()
        module, _, function = head.partition(" ")
        lines = tuple(normalised(line) for line in rest if line[:1] in ("+", "-"))
        reason = " ".join(line.strip() for line in rest if line[:1] not in ("+", "-"))
        if not (function and lines and reason):
            raise ValueError(
                f"{LISTED.name}: an entry is a line `MODULE FUNCTION`, the changed lines with - and +, and a "
                f"reason; this one is not:\n{block}"
            )
        listed[Change(module, function.strip(), lines)] = reason
    return listed


def verdict(module: str, mutants: Iterable[Mutant], listed: Mapping[Change, str]) -> tuple[list[str], bool]:
    """What to print, and whether enough were noticed and equivalent.txt tells the truth about this module."""
    mutants = list(mutants)
    tried = [mutant for mutant in mutants if mutant.status is not None]
    same = [mutant for mutant in tried if mutant.survived and mutant.change in listed]
    left = [mutant for mutant in tried if mutant.survived and mutant.change not in listed]
    denied = [mutant for mutant in tried if not mutant.survived and mutant.change in listed]
    gone = {key for key in listed if key.module == module} - {mutant.change for mutant in mutants}
    counted, noticed = len(tried) - len(same), len(tried) - len(same) - len(left)
    share = noticed / counted if counted else 1.0
    apart = Counter(mutant.status for mutant in tried if mutant.status not in {"killed", "survived"})
    lines = [f"{mutant.name}: {mutant.status}\n{mutant.diff}\n" for mutant in left]
    lines += [f"{mutant.name}: {LISTED.name} lists it, but a test noticed it\n{mutant.diff}\n" for mutant in denied]
    lines += [f"{mutant.name}: timeout\n" for mutant in tried if mutant.status == "timeout"]
    lines += [f"{LISTED.name}: no mutant of {key.module} {key.function} changes {key.lines}\n" for key in sorted(gone)]
    lines.append(
        f"{module}: {len(mutants)} mutants, {len(tried)} sampled, {len(same)} of them the same program; "
        f"{noticed} of {counted} noticed, {share:.1%}" + "".join(f"; {count} {word}" for word, count in apart.items())
    )
    return lines, share >= NOTICED_SHARE and not denied and not gone
