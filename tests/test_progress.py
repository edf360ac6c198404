"""The progress bar: there on a terminal, gone when the work is done, silent elsewhere. Threads that run ahead."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from kvarts.progress import chain_ahead, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_that_is_wiped_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("recognising crowd", 2.5) as advance:
        assert "recognising crowd   0%" in terminal.getvalue()
        time.sleep(0.15)  # tqdm draws every 0.1 s at most
        advance(0.5)
        assert "recognising crowd  20%" in terminal.getvalue()
    drawn = terminal.getvalue()
    assert drawn.endswith("\r")
    assert not drawn.split("\r")[-2].strip()


def test_elsewhere_it_is_silent_and_tqdm_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from kvarts.progress import progress_bar\n"
        "with progress_bar('x', 3) as advance: advance(1)\n"
        "assert 'tqdm' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_sources_are_chained_in_order_whoever_is_fastest(workers: int) -> None:
    def source(number: int) -> Iterator[tuple[int, int]]:
        for index in range(number % 4):
            time.sleep(0.003 * ((number * 7 + index) % 3))
            yield number, index

    sources = (source(number) for number in range(20))
    found = list(chain_ahead(sources, weight=lambda _: 1, limit=3, workers=workers))
    assert found == [(number, index) for number in range(20) for index in range(number % 4)]


def test_sources_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def source() -> Iterator[int]:
        yield meeting.wait()

    assert sorted(chain_ahead([source(), source()], weight=lambda _: 1, limit=9, workers=2)) == [0, 1]


def test_threads_wait_when_enough_is_ahead() -> None:
    given = [0, 0]

    def source(number: int) -> Iterator[int]:
        for _ in range(100):
            given[number] += 1
            yield number

    with closing(chain_ahead(map(source, range(2)), weight=lambda _: 60, limit=120, workers=2)) as items:
        assert next(items) == 0
        time.sleep(0.3)  # in which all could be given
        assert sum(given) * 60 <= 60 + 2 * 120
        assert list(items) == [0] * 99 + [1] * 100
    assert given == [100, 100]


def test_what_a_source_raises_comes_in_its_place_and_ends_the_threads() -> None:
    def source(number: int) -> Iterator[int]:
        yield number
        if number == 1:
            raise ValueError("a bug")

    before = threading.active_count()
    items = chain_ahead(map(source, range(9)), weight=lambda _: 1, limit=99, workers=3)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="a bug"):
        next(items)
    assert threading.active_count() == before


def test_who_stops_taking_stops_the_threads() -> None:
    before = threading.active_count()
    endless = (iter(int, 1) for _ in range(3))
    with closing(chain_ahead(endless, weight=lambda _: 1, limit=5, workers=2)) as items:
        assert next(items) == 0
    assert threading.active_count() == before


def test_what_lists_the_sources_may_fail_and_is_not_taken_for_their_end() -> None:
    def sources() -> Iterator[list[int]]:
        yield [1, 2]
        raise OSError("no more names")

    items = chain_ahead(sources(), weight=lambda _: 1, limit=99, workers=3)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="no more names"):
        next(items)


def test_one_source_does_not_start_all_threads() -> None:
    before = threading.active_count()
    with closing(chain_ahead([iter(int, 1)], weight=lambda _: 1, limit=5, workers=50)) as items:
        assert next(items) == 0
        assert threading.active_count() <= before + 2
