"""Long recordings in pieces that the network takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvarts.frames import SAMPLE_RATE

LONGEST_PIECE_S = 30.0


@dataclass(frozen=True)
class Piece:
    """A part of a recording.

    Attributes:
        start: samples at 16 kHz from the beginning of the recording.
        waveform: (samples,) at 16 kHz.
    """

    start: int
    waveform: NDArray[np.float32]


def pieces(blocks: Iterable[NDArray[np.float32]]) -> Iterator[Piece]:
    """Pieces of at most 30 s of a recording that comes as blocks (samples,) at 16 kHz, in order."""
    longest = round(LONGEST_PIECE_S * SAMPLE_RATE)
    pending = np.zeros(0, np.float32)
    start = 0
    for block in blocks:
        pending = np.concatenate([pending, block])
        while len(pending) >= longest + 400:
            yield Piece(start, pending[:longest].copy())
            start += longest
            pending = pending[longest:]
    if len(pending):
        yield Piece(start, pending)
