"""The progress bar: there on a terminal, gone when the work is done, silent elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest

from kvarts.progress import progress_bar


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
