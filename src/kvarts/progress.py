"""Work that takes a while: a progress bar on the terminal, and threads that run ahead of their reader."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def progress_bar(description: str, total: float) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, gone when the block ends; silent where that is no terminal.

    The block gets a function to call with the amount of work just done, in the units of `total`.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from tqdm import tqdm  # 36 ms, for nothing in a pipe

    # Without counts: the units may be seconds, of which tqdm would print all decimals.
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}"
    with tqdm(desc=description, total=total, bar_format=form, leave=False, dynamic_ncols=True) as bar:

        def advance(done: float) -> None:
            bar.update(done)

        yield advance


def run_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Iterator[Result]:
    """``map(function, items)``, computed by threads up to `ahead` items before the result is asked for.

    Unlike `ThreadPoolExecutor.map` it never holds more than `ahead` results, however many items there are.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
