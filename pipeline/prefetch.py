"""Work done ahead in threads: results in order, a bounded number of them in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(pool: Executor, call: Callable[[T], R], things: Iterable[T], depth: int) -> Iterator[R]:
    """`map` in a pool, in order, with at most `depth` results waiting: a thing is only taken once there is room."""
    waiting: deque[Future[R]] = deque()
    for thing in things:
        waiting.append(pool.submit(call, thing))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
