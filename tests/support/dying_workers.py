"""A worker that some keys kill, in this process: its death is an exception, and its keys stay in flight."""

from collections.abc import Sequence

from pipeline.run.ledger import KeyLedger, work_guarded


class WorkerDiedError(Exception):
    """Stands for the death of a worker."""


def work_or_die(ledger: KeyLedger, batch: Sequence[str], poison: set[str], tries: list[list[str]]) -> list[str]:
    """Let one worker do a batch; adds the keys that it takes in hand at a time to `tries`.

    Raises:
        WorkerDiedError: it had one of the poison keys in hand.
    """

    def work(keys: Sequence[str]) -> list[str]:
        tries.append(list(keys))
        if poison.intersection(keys):
            raise WorkerDiedError
        return [f"done {key}" for key in keys]

    return work_guarded(
        ledger, "infer", batch, key=str, work=work, seconds=lambda _: 1.0, failure_of=lambda key, _: f"crashed {key}"
    )
