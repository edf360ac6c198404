"""From log-probabilities to text: greedy CTC decoding in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvarts.alphabet import ALPHABET, BLANK_ID

_LABELS = np.array(list(ALPHABET))


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
