"""Work that takes a while: a progress bar on the terminal, and threads that run ahead of their reader."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Advance(Protocol):
    """What moves a bar: by the amount of work just done; a note, where there is one, replaces that behind the bar."""

    def __call__(self, done: float, note: str = "") -> None: ...


@contextmanager
def progress_bar(description: str, total: float) -> Iterator[Advance]:
    """A bar on standard error, gone when the block ends; silent where that is no terminal.

    The block gets what moves it, in the units of `total`.
    """
    if not sys.stderr.isatty():
        yield lambda done, note="": None
        return
    from tqdm import tqdm  # 36 ms, for nothing in a pipe

    # Without counts: the units may be seconds, of which tqdm would print all decimals.
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}"
    with tqdm(desc=description, total=total, bar_format=form, leave=False, dynamic_ncols=True) as bar:

        def advance(done: float, note: str = "") -> None:
            bar.update(done)
            if note:
                bar.set_postfix_str(note)

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
