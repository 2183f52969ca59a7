"""How many examples Hypothesis tries of each law: few while one works (`quick`), all before a change is taken (`full`).

HYPOTHESIS_PROFILE chooses; without it, it is `full`.
"""

import os

from hypothesis import settings

QUICK = 20
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "full")

# No deadlines: on shared cores, how long an example takes says nothing about the code.
settings.register_profile("quick", deadline=None, max_examples=QUICK)
settings.register_profile("full", deadline=None)
settings.load_profile(PROFILE)


def examples(count: int, **others: object) -> settings:
    """Try so many examples of a law in the full profile, for laws that need more or fewer than most."""
    return settings(max_examples=count if PROFILE == "full" else min(count, QUICK), **others)
