"""How sure a measure is, such as a difference of two word error rates: the bootstrap, over utterances or speakers.

M. Bisani and H. Ney, «Bootstrap estimates for confidence intervals in ASR performance evaluation», ICASSP 2004.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvarts.error_counts import ErrorCounts

LEVEL: Final = 0.05  # of significance
POWER: Final = 0.8

_DRAWS: Final = 10_000
# Of many units fewer sets are drawn, 1000 at least, which takes 0.1 s for 10,000 units and finds the ends of
# an interval to 2 % of its width, one standard deviation.
_MOST_DRAWN: Final = 10_000_000
_BLOCK: Final = 1_000_000  # weights at a time, 8 MB
_SMALLEST_P: Final = 1e-12  # below it there is only the rounding of the Fourier transform


def resampled_ratios(
    numerators: NDArray[Any], denominators: NDArray[Any], *, draws: int | None = None, seed: int = 0
) -> NDArray[np.float64]:
    """Ratios of sums, such as error rates, of units drawn anew with replacement, as many as there are.

    How often each unit is drawn is a row of weights, and the sums of all draws are a matrix product.

    Args:
        numerators, denominators: (units, measures); a unit is an utterance, or all utterances of a speaker.
        draws: 10,000, or fewer where there are more than 1000 units.

    Returns:
        (draws, measures); where the denominator is 0 the numerator, as in `ErrorCounts.rate`.

    Raises:
        ValueError: no unit.
    """
    if not len(numerators):
        raise ValueError("there is nothing to draw from")
    units, measures = numerators.shape
    draws = draws or min(_DRAWS, max(1000, _MOST_DRAWN // units))
    sums = np.empty((draws, 2 * measures))
    values = np.hstack([numerators, denominators]).astype(np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // units)
    for start in range(0, draws, rows):
        drawn = generator.integers(units, size=(min(rows, draws - start), units), dtype=np.int32)  # twice as fast
        weights = np.array([np.bincount(numbers, minlength=units) for numbers in drawn], dtype=np.float64)
        sums[start : start + len(drawn)] = weights @ values
    ratios: NDArray[np.float64] = sums[:, :measures] / np.where(sums[:, measures:] > 0, sums[:, measures:], 1)
    return ratios


def ratio_intervals(
    numerators: NDArray[Any], denominators: NDArray[Any], *, level: float = 0.95, seed: int = 0
) -> list[tuple[float, float]]:
    """The middle `level` of each measure's `resampled_ratios`; the same seed gives the same intervals."""
    ratios = resampled_ratios(numerators, denominators, seed=seed)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def summed_by(values: NDArray[Any], keys: Sequence[Hashable]) -> NDArray[Any]:
    """(keys, …) sums of the rows of `values` (rows, …) that have the same key, in the order of first appearance."""
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    sums = np.zeros((len(number_of), *values.shape[1:]), values.dtype)
    np.add.at(sums, [number_of[key] for key in keys], values)
    return sums


@dataclass(frozen=True)
class Difference:
    """The second error rate less the first one, of the same utterances; fractions.

    Attributes:
        low, high: the middle 95 % of the differences in sets drawn anew.
        bootstrap_p: two-sided: twice the share of draws in which the difference has the other sign, or none.
        randomisation_p: two-sided, see `randomisation_p`.
        standard_error: of the linearised ratio, see `smallest_difference`.
    """

    value: float
    low: float
    high: float
    bootstrap_p: float
    randomisation_p: float
    standard_error: float


def differences(changes: NDArray[np.int64], lengths: NDArray[np.int64], *, seed: int = 0) -> list[Difference]:
    """How sure differences of error rates are.

    Args:
        changes: (units, measures) errors of the second less those of the first, in the same utterance or of the same
            speaker; measures are such as words and characters.
        lengths: (units, measures) words or characters of the references.

    Raises:
        ValueError: no unit.
    """
    ratios = resampled_ratios(changes, lengths, seed=seed)
    low, high = np.quantile(ratios, [0.025, 0.975], axis=0)
    # One more than were drawn: the observed set itself. So p is never 0.
    below, above = (1 + np.count_nonzero(side, axis=0) for side in (ratios <= 0, ratios >= 0))
    bootstrap_p = np.minimum(1, 2 * np.minimum(below, above) / (1 + len(ratios)))
    return [
        Difference(
            value=float(changed.sum() / max(length.sum(), 1)),
            low=float(low[measure]),
            high=float(high[measure]),
            bootstrap_p=float(bootstrap_p[measure]),
            randomisation_p=randomisation_p(changed),
            standard_error=_standard_error(changed, length),
        )
        for measure, (changed, length) in enumerate(zip(changes.T, lengths.T, strict=True))
    ]


def randomisation_p(changes: NDArray[np.int64]) -> float:
    """The p-value of «which of the two systems gave which result is chance», two-sided.

    It is the share of all 2ⁿ ways to swap the two results of some units in which the sum of changes is as far from 0 as
    it is, or farther. What approximate randomisation (E. Noreen, 1989) estimates from some thousand swaps is exact
    here, since changes are whole numbers: the sum of |change| over the units that count for one side has the
    characteristic function Π (1 + exp(iω|change|)) / 2, and a Fourier transform gives its distribution. Of signs alone,
    `np.sign` of the changes, it is the sign test.

    Returns:
        In [1e-12, 1].
    """
    sizes, counts = np.unique(np.abs(changes[changes != 0]), return_counts=True)
    total, observed = int((sizes * counts).sum()), abs(int(changes.sum()))
    if observed == 0:
        return 1.0
    points = total + 2 - total % 2  # even, and more than the sums 0 … total
    half_omega = np.pi * np.arange(points // 2 + 1) / points
    spectrum = np.exp(-1j * half_omega * total)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spectrum *= np.cos(half_omega * size) ** count
    probabilities = np.fft.irfft(spectrum, points)
    tail = float(probabilities[(total + observed) // 2 : total + 1].sum())
    return min(1.0, max(2 * tail, _SMALLEST_P))


def smallest_difference(changes: NDArray[np.int64], lengths: NDArray[np.int64]) -> float:
    """The difference of error rates that a set of so many units like these shows with `POWER`.

    In a share `POWER` of sets in which the difference is so large it is significant at `LEVEL`, two-sided. From the
    variance of the ratio's residuals, change less ratio times length (W. Cochran, «Sampling Techniques», 1977, 6.4),
    and the normal distribution; the variance is assumed to be the same whatever the difference.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)) * _standard_error(changes, lengths)


def needed_units(changes: NDArray[np.int64], lengths: NDArray[np.int64], size: float) -> int:
    """How many units like these a set needs to show a difference of `size`, above 0; see `smallest_difference`."""
    return max(1, math.ceil(len(changes) * (smallest_difference(changes, lengths) / size) ** 2))


def _standard_error(changes: NDArray[np.int64], lengths: NDArray[np.int64]) -> float:
    """Of the difference; 0 of a single unit, which says nothing."""
    if len(changes) < 2:
        return 0.0
    residuals = changes - lengths * (changes.sum() / max(lengths.sum(), 1))
    return float(residuals.std(ddof=1) * math.sqrt(len(changes)) / max(lengths.sum(), 1))


def paired_interval(
    first: Sequence[ErrorCounts], second: Sequence[ErrorCounts], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The interval of the second error rate less the first one, both of the same utterances.

    Utterances are drawn anew, with their errors in both; the interval holds the middle `level` of the differences. The
    same seed gives the same interval.

    Raises:
        ValueError: not the same number of utterances, none, or references of other lengths.
    """
    lengths = np.array([counts.reference_length for counts in first])
    if not len(first) or lengths.tolist() != [counts.reference_length for counts in second]:
        raise ValueError("both must hold the counts of the same utterances, at least one")
    changes = np.array([b.errors - a.errors for a, b in zip(first, second, strict=True)])
    [interval] = ratio_intervals(changes[:, None], lengths[:, None], level=level, seed=seed)
    return interval


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
