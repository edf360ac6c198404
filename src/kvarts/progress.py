"""Work that takes a while: a progress bar on the terminal, and threads that run ahead of their reader."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

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


class _Queue(Generic[Item]):
    """What a source has given and nobody has taken yet."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.held = 0  # their weights together
        self.is_over = False
        self.error: BaseException | None = None


def chain_ahead(
    sources: Iterable[Iterable[Item]], *, weight: Callable[[Item], int], limit: int, workers: int
) -> Generator[Item, None, None]:
    """``itertools.chain.from_iterable(sources)``, run by threads that are ahead of who takes the items.

    Each source is run by one thread, in its order, up to `workers` sources at a time; with 0 workers whoever takes the
    items runs the sources. No more threads are started than there are sources, and one. A thread waits when the items
    that nobody has taken yet weigh `limit` together; the source whose turn it is may reach that alone, so at worst they
    weigh twice as much. What a source raises is raised in its place, after all items before it. The threads end when
    the iterator does, or is closed.
    """
    if workers == 0:
        yield from chain.from_iterable(sources)
        return
    changed = Condition()
    queues: deque[_Queue[Item]] = deque()  # of the sources begun, in order; the first is whose turn it is
    remaining = iter(sources)
    threads: list[Thread] = []
    held = 0
    running = 0
    is_stopped = False

    def start_thread() -> None:
        nonlocal running
        running += 1
        threads.append(Thread(target=work, daemon=True))
        threads[-1].start()

    def begin() -> tuple[_Queue[Item], Iterable[Item]] | None:
        with changed:
            changed.wait_for(lambda: is_stopped or held < limit)
            if is_stopped:
                return None
            queue: _Queue[Item] = _Queue()
            try:
                source = next(remaining, None)
            except Exception as error:  # of what lists the sources: it has its place behind them
                queue.error, queue.is_over = error, True
                queues.append(queue)
                return None
            if source is None:
                return None
            queues.append(queue)
            if len(threads) < workers:
                start_thread()
            return queue, source

    def may_go_on(queue: _Queue[Item]) -> bool:
        return is_stopped or held < limit or (queue is queues[0] and queue.held < limit)

    def run(queue: _Queue[Item], source: Iterable[Item]) -> None:
        nonlocal held
        try:
            for item in source:
                with changed:
                    queue.items.append(item)
                    queue.held += weight(item)
                    held += weight(item)
                    changed.notify_all()
                    changed.wait_for(lambda: may_go_on(queue))
                    if is_stopped:
                        return
        except BaseException as error:
            queue.error = error
        finally:
            with changed:
                queue.is_over = True
                changed.notify_all()

    def work() -> None:
        nonlocal running
        try:
            while begun := begin():
                run(*begun)
        finally:
            with changed:
                running -= 1
                changed.notify_all()

    def is_known() -> bool:
        return bool(queues[0].items or queues[0].is_over) if queues else running == 0

    with changed:
        start_thread()
    try:
        while True:
            with changed:
                changed.wait_for(is_known)
                if not queues:
                    return
                queue = queues[0]
                if not queue.items:
                    if queue.error is not None:
                        raise queue.error
                    queues.popleft()
                    changed.notify_all()
                    continue
                item = queue.items.popleft()
                queue.held -= weight(item)
                held -= weight(item)
                changed.notify_all()
            yield item
    finally:
        with changed:
            is_stopped = True
            changed.notify_all()
        for thread in threads:
            thread.join()
