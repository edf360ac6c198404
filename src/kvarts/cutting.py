"""Long recordings in pieces that the network takes, cut at pauses; long silence is left out.

What is speech is told by level alone. Detectors by network (silero) ran at 15 to 190 times real time where the whole
recogniser runs at over 1000; this one runs at over 10 000. It need not be clever, for nothing is lost where it keeps
too much: a pause that is transcribed costs time, and speech that is left out is gone. So a sound is left out only where

- it is digital silence, or what 16 bits leave of it; or
- it is steady and weak: for 2 s no 10 ms stand out of the quietest 80 ms around, and it lies well below the loudest
  0.2 s of the recording so far. A quiet speaker after a loud one is weak too, but syllables stand out of their gaps.

A level is the variance within 10 ms, so that a constant (DC) offset, and most of a slow one, is none. Pieces are put
together of encoded frames of 40 ms: then their frames are the recording's, and times of words are right to a frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvarts.frames import HOP_LENGTH, SAMPLE_RATE, WIN_LENGTH

LONGEST_PIECE_S: Final = 30.0

_FRAME = 4 * HOP_LENGTH  # samples of 40 ms, an encoded frame; the counts below are of these
_LONGEST = round(LONGEST_PIECE_S * SAMPLE_RATE) // _FRAME
_SHORTEST = _LONGEST // 2  # where no silence is left out: more cuts would take more context from the network
_SILENCE = 50  # 2 s
_MARGIN = 8  # 0.32 s, kept on both sides of speech: weak consonants and breath
_CHUNK = 250  # 10 s, examined at a time
_BLOCK = 5  # 0.2 s: longer than what makes noise flicker
_GAP = 2  # 80 ms: shorter than syllables. Of 0.2 s the quietest hold a whole syllable where there are five a second
# and no pause, and then the weakest speaker looked as steady as noise: of 15 of 150 such recordings a stretch was lost.
_FLOOR_CHUNKS = 3  # before a chunk, 30 s, and one behind it, tell its floor

# Powers, 1 for a waveform at ±1 all the time.
_DIGITAL_SILENCE = 1e-9  # of samples that are ±1 of 16 bits; speech is 30 dB louder at least
# Of the sample's speech with 0 to 8 s between its files, under white noise at 20 dB, these two leave 72 % of the pauses
# out and 0.03 % of what is within 30 dB of a file's peak. With 6 dB it was 0.06 %; with 6 dB and 12 dB, and noise at
# 10 dB, 1.3 %.
_STANDS_OUT = 3.0  # 4.8 dB
_WEAK = 0.01  # 20 dB below the loudest

_PAUSE = 0.3  # of the way from the quietest decibels to the loudest


@dataclass(frozen=True)
class Piece:
    """A part of a recording.

    Attributes:
        start: samples at 16 kHz from the beginning of the recording, a multiple of 640.
        waveform: (samples,) at 16 kHz, at most 30 s.
    """

    start: int
    waveform: NDArray[np.float32]


class _Chunk(NamedTuple):
    """Up to 10 s of a recording; only the last chunk is shorter, and its last frame may be incomplete."""

    waveform: NDArray[np.float32]  # (samples,)
    levels: NDArray[np.float32]  # (frames, 4): powers of 10 ms each
    floor: float  # power of the quietest 80 ms
    loudest: float  # power of the loudest 0.2 s


def pieces(blocks: Iterable[NDArray[np.float32]]) -> Iterator[Piece]:
    """Cuts a recording into pieces.

    Up to 30 s it is one piece as it is. Longer ones are cut in the middle of a pause, the longest and deepest between
    15 s and 30 s, or at the quietest place there; silence of 2 s and more is left out, except for 0.32 s beside speech.

    Args:
        blocks: (samples,) at 16 kHz, finite, of any length: the pieces do not depend on it.

    Yields:
        Pieces in order, which do not overlap, of at least 25 ms unless the recording is shorter. None if there is
        nothing but silence in more than 30 s, or no sample at all.

    Takes the memory of a minute of sound, whatever the length of the recording; blocks must not be written to again.
    """
    source = iter(blocks)
    head: list[NDArray[np.float32]] = []
    samples = 0
    while samples <= _LONGEST * _FRAME:
        block = next(source, None)
        if block is None:
            if samples:
                yield Piece(0, np.concatenate(head))
            return
        head.append(block)
        samples += len(block)
    yield from _cut(_with_activity(_chunks(_chained(head, source))))


def _chained(head: list[NDArray[np.float32]], rest: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """First what is in the list, which is forgotten as it goes."""
    while head:
        yield head.pop(0)
    yield from rest


def _chunks(blocks: Iterable[NDArray[np.float32]]) -> Iterator[_Chunk]:
    """The same sound in chunks of 10 s."""
    pending: list[NDArray[np.float32]] = []
    missing = _CHUNK * _FRAME
    for block in blocks:
        while len(block) >= missing:
            yield _chunk(np.concatenate([*pending, block[:missing]]))
            block = block[missing:]
            pending, missing = [], _CHUNK * _FRAME
        if len(block):
            pending.append(block)
            missing -= len(block)
    if pending:
        yield _chunk(np.concatenate(pending))


def _chunk(waveform: NDArray[np.float32]) -> _Chunk:
    samples = np.pad(waveform, (0, -len(waveform) % _FRAME), "edge").reshape(-1, HOP_LENGTH)
    samples = samples - samples.mean(axis=1, keepdims=True)
    levels = np.einsum("fs,fs->f", samples, samples).reshape(-1, _FRAME // HOP_LENGTH) / HOP_LENGTH
    # In the last chunk what does not fill a block belongs to the block before it.
    starts = np.arange(0, max(1, len(levels) - _BLOCK + 1), _BLOCK)
    frames = levels.mean(axis=1)
    blocks = np.add.reduceat(frames, starts) / np.diff(starts, append=len(levels))
    gaps = np.lib.stride_tricks.sliding_window_view(frames, min(_GAP, len(frames))).mean(axis=1)
    return _Chunk(waveform, levels, float(gaps.min()), float(blocks.max()))


def _with_activity(chunks: Iterable[_Chunk]) -> Iterator[tuple[_Chunk, NDArray[np.bool_]]]:
    """Each chunk, and which of its frames may be speech: (frames,)."""
    floors: deque[float] = deque(maxlen=_FLOOR_CHUNKS + 2)
    loudest = 0.0
    chunk: _Chunk | None = None
    for following in chain(chunks, [None]):
        if following is not None:
            floors.append(following.floor)
            loudest = max(loudest, following.loudest)
        if chunk is not None:
            steady_and_weak = min(_STANDS_OUT * min(floors), _WEAK * loudest)
            yield chunk, chunk.levels.max(axis=1) > max(_DIGITAL_SILENCE, steady_and_weak)
        chunk = following


def _cut(chunks: Iterator[tuple[_Chunk, NDArray[np.bool_]]]) -> Iterator[Piece]:
    """The pieces of chunks of which it is known what may be speech."""
    start = 0  # frames of the recording that are dealt with
    waveform = np.zeros(0, np.float32)  # what follows them, as far as chunks have come
    levels = np.zeros(0, np.float32)
    active = np.zeros(0, np.bool_)
    skips = False  # whether they end within silence that is left out
    ended = False
    while not ended or len(active):
        # From this many on it is known of all silence that begins within the longest piece whether it lasts 2 s.
        if not ended and len(active) < _LONGEST + _SILENCE:
            chunk, chunk_active = next(chunks, (None, active[:0]))
            if chunk is None:
                ended = True
            else:
                waveform = np.concatenate([waveform, chunk.waveform])
                levels = np.concatenate([levels, chunk.levels.mean(axis=1)])
                active = np.concatenate([active, chunk_active])
            continue
        if not skips:
            stop, skips = _end_of_piece(levels, active, len(waveform), ended)
            if stop:
                yield Piece(start * _FRAME, waveform[: stop * _FRAME].copy())
        elif active.any():
            stop, skips = max(0, int(active.argmax()) - _MARGIN), False
        else:
            stop = len(active) if ended else len(active) - _MARGIN
        start += stop
        waveform, levels, active = waveform[stop * _FRAME :], levels[stop:], active[stop:]


def _end_of_piece(
    levels: NDArray[np.float32], active: NDArray[np.bool_], samples: int, ended: bool
) -> tuple[int, bool]:
    """Where a piece that begins at frame 0 ends, in frames, and whether silence follows that is left out.

    Args:
        levels: (frames,) powers.
        active: (frames,) what may be speech.
        samples: of these frames, of which the last may be incomplete.
        ended: whether they are the last ones.
    """
    silences = _runs(~active)
    starts = [int(start) for start, stop in silences if stop - start >= _SILENCE and start <= _LONGEST]
    if starts and starts[0] + _MARGIN <= _LONGEST:
        return (starts[0] + _MARGIN if starts[0] else 0), True
    if ended and len(active) <= _LONGEST:
        return len(active), False
    latest = min([_LONGEST, *starts])
    if ended:  # what is left must be worth a piece
        latest = min(latest, (samples - WIN_LENGTH) // _FRAME)
    return _SHORTEST + _quietest(levels[_SHORTEST - 1 : latest + 1]), False


def _quietest(levels: NDArray[np.float32]) -> int:
    """Between which frames of powers (frames,) to cut: 0 is between the first and the second.

    Of all runs well below the common level, the one with the most decibels below it, added up, is the best pause.
    """
    decibels = 10 * np.log10(np.maximum((levels[:-1] + levels[1:]) / 2, _DIGITAL_SILENCE))
    low, high = np.percentile(decibels, (5, 95))
    depth = np.maximum(0, low + _PAUSE * (high - low) - decibels)
    pauses = _runs(depth > 0)
    if not len(pauses):
        return len(decibels) - 1  # the same level everywhere: as long a piece as may be
    start, stop = pauses[np.add.reduceat(depth, pauses[:, 0]).argmax()]
    return int(start + stop - 1) // 2


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(runs, 2): where each run of True begins and where the first False behind it is."""
    changes = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return changes.reshape(-1, 2)
