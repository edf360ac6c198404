"""How sure a measure is, such as a difference of two word error rates: the bootstrap over utterances.

M. Bisani and H. Ney, «Bootstrap estimates for confidence intervals in ASR performance evaluation», ICASSP 2004.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kvarts.error_counts import ErrorCounts

_DRAWS = 10_000
_BLOCK = 500  # draws at a time: of 10,000 utterances 40 MB


def paired_interval(
    first: Sequence[ErrorCounts], second: Sequence[ErrorCounts], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The interval of the second error rate less the first one, both of the same utterances.

    Utterances are drawn anew 10,000 times, with their errors in both; the interval holds the middle `level` of the
    differences. The same seed gives the same interval.

    Raises:
        ValueError: not the same number of utterances, none, or references of other lengths.
    """
    lengths = np.array([counts.reference_length for counts in first])
    if not len(first) or lengths.tolist() != [counts.reference_length for counts in second]:
        raise ValueError("both must hold the counts of the same utterances, at least one")
    changes = np.array([b.errors - a.errors for a, b in zip(first, second, strict=True)])
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(_DRAWS // _BLOCK):
        drawn = generator.integers(len(lengths), size=(_BLOCK, len(lengths)))
        differences.append(changes[drawn].sum(axis=1) / np.maximum(lengths[drawn].sum(axis=1), 1))
    low, high = np.quantile(np.concatenate(differences), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def utterance_intervals(
    measure: Callable[[NDArray[np.int64]], Sequence[float]],
    utterance: NDArray[np.int64],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """The intervals of measures of rows, such as words, that hang together by utterance.

    Utterances are drawn anew with all their rows; each interval holds the middle `level` of a measure's values. What is
    NaN in a draw, for want of rows of a kind, is left out of it.

    Args:
        measure: of some rows, given by their numbers, (rows,) integers, with repeats.
        utterance: (rows,) the utterance of each row, ascending.
    """
    rows_of = np.split(np.arange(len(utterance)), np.flatnonzero(np.diff(utterance)) + 1)
    generator = np.random.default_rng(seed)
    values = np.array(
        [
            measure(np.concatenate([rows_of[number] for number in generator.integers(len(rows_of), size=len(rows_of))]))
            for _ in range(draws)
        ]
    )
    intervals = []
    for column in values.T:
        told = column[~np.isnan(column)]
        low, high = np.quantile(told, [(1 - level) / 2, (1 + level) / 2]) if len(told) else (math.nan, math.nan)
        intervals.append((float(low), float(high)))
    return intervals
