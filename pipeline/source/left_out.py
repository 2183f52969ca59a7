"""What a source leaves out: counts by reason, and an example of each, for logs and error messages."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_LONGEST_EXAMPLE = 80
_IN_WORDS = {"(none)": "without suffix", "(other)": "with another suffix"}


@dataclass(slots=True)
class LeftOut:
    """Counts by suffix, or by a reason in brackets, with the first name of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count a name that is left out."""
        self.counts[reason] += 1
        self.first.setdefault(reason, name[:_LONGEST_EXAMPLE])

    def update(self, other: "LeftOut") -> None:
        """Add the counts of another part of the source."""
        self.counts.update(other.counts)
        self.first = other.first | self.first

    def __str__(self) -> str:
        """In words: `3 .yaml ('a.yaml'), 1 hidden ('._x.jpg')`."""
        return in_words(self.counts, self.first)


def in_words(counts: Mapping[str, int], first: Mapping[str, str] | None = None) -> str:
    """Counts by reason in words: `3 .yaml, 1 hidden`, or `nothing`; the most frequent first."""
    examples = {reason: f" ({name!r})" for reason, name in (first or {}).items()}
    texts = {reason: _IN_WORDS.get(reason, reason.strip("()")) + examples.get(reason, "") for reason in counts}
    order = sorted(counts, key=lambda reason: (-counts[reason], texts[reason]))
    return ", ".join(f"{counts[reason]} {texts[reason]}" for reason in order) or "nothing"
