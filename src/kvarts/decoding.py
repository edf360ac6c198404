"""From log-probabilities to text and words: greedy CTC decoding in NumPy, and what every decoder gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvarts.alphabet import ALPHABET, BLANK_ID

if TYPE_CHECKING:
    from kvarts.grammar_search import Command

_LABELS = np.array(list(ALPHABET))
_SPACE_ID = ALPHABET.index(" ")


@dataclass(frozen=True)
class WordFrames:
    """A word on the best path: where it lies, and how sure the network is.

    Attributes:
        start, stop: encoded frames, from that of its first letter to the one behind its last.
        confidence: geometric mean over its letters of each one's probability where it is highest, in (0, 1].
        posterior: share that texts with this word in this place have of the probability of the best texts, in (0, 1];
            1 where a decoder gives but one text or was not asked.
        is_known: whether it is in the vocabulary, if there is one.
    """

    text: str
    start: int
    stop: int
    confidence: float
    posterior: float = 1.0
    is_known: bool = True


# From one utterance's log-probabilities (time, 34) to its words. It may be called from several threads at once.
Decoder = Callable[[NDArray[np.float32]], list[WordFrames]]


@runtime_checkable
class CommandDecoder(Protocol):
    """A decoder that finds a command, with its meaning: `kvarts.grammar_search.GrammarSearch`."""

    def search(self, log_probs: NDArray[np.float32]) -> Command:
        """The command in log_probs (time, 34) of one utterance."""
        ...


def greedy(log_probs: NDArray[np.floating[Any]], lengths: ArrayLike) -> list[str]:
    """The text of the most probable label of every frame: repeats merged, then blanks dropped.

    That is best-path decoding (Graves et al., «Connectionist Temporal Classification», 2006, section 3.2). Of
    equally probable labels the first in the alphabet is taken.

    Args:
        log_probs: (batch, time, 34), log-probabilities or scores that rise with them; a CPU tensor will do.
        lengths: (batch,) integers, the frames of each utterance that count; what lies behind them is ignored.

    Returns:
        One text an utterance, not stripped of spaces at its ends.

    Raises:
        ValueError: the shapes do not fit, or a length is negative or beyond the last frame.
    """
    scores = np.asarray(log_probs)
    num_frames = np.asarray(lengths)
    if scores.ndim != 3 or scores.shape[2] != BLANK_ID + 1 or num_frames.shape != scores.shape[:1]:
        raise ValueError(f"log_probs {scores.shape} and lengths {num_frames.shape} do not fit together")
    if num_frames.size and not 0 <= num_frames.min() <= num_frames.max() <= scores.shape[1]:
        raise ValueError(f"lengths must lie between 0 and {scores.shape[1]}, got {num_frames.tolist()}")
    labels = scores.argmax(axis=2)
    starts = np.ones_like(labels, dtype=bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    counts = np.arange(labels.shape[1]) < num_frames[:, None]
    kept = starts & counts & (labels != BLANK_ID)
    return ["".join(_LABELS[row[mask]]) for row, mask in zip(labels, kept, strict=True)]


def greedy_words(log_probs: NDArray[np.floating[Any]]) -> list[WordFrames]:
    """The words of one utterance's best path; joined by single spaces they are its `greedy` text without outer spaces.

    Args:
        log_probs: (time, 34) log-probabilities.
    """
    labels = log_probs.argmax(axis=1)
    scores = log_probs[np.arange(len(labels)), labels]
    changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    starts = np.concatenate([[0], changes]) if len(labels) else changes
    stops = np.append(changes, len(labels))
    best = np.maximum.reduceat(scores, starts) if len(starts) else scores
    words: list[WordFrames] = []
    letters: list[int] = []  # of the word so far: indices into the runs of equal labels

    def close() -> None:
        if letters:
            text = "".join(_LABELS[labels[starts[letters]]])
            confidence = float(np.exp(best[letters].mean()))
            words.append(WordFrames(text, int(starts[letters[0]]), int(stops[letters[-1]]), confidence))
            letters.clear()

    for run, label in enumerate(labels[starts]):
        if label == _SPACE_ID:
            close()
        elif label != BLANK_ID:
            letters.append(run)
    close()
    return words
