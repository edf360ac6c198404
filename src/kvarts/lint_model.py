"""Transcripts that a model finds unlikely: the CTC loss of each letter of an utterance, beside all the others'."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import BLANK_ID

OUTLIER: Final = 4.0  # robust standard deviations above the median
_LEAST_SPREAD = 0.05  # nats a letter: a model that knows a manifest by heart would call every slip an outlier
FEWEST = 20  # utterances from which a median says something
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


def ctc_loss(log_probs: NDArray[np.float32], label_ids: list[int]) -> float:
    """Minus the log-probability of a text, the sum over all of its alignments.

    A. Graves et al., "Connectionist Temporal Classification" (2006), equations 6 to 8, in logarithms.

    Args:
        log_probs: (time, 34), natural logarithms.
        label_ids: at least one.

    Returns:
        Nats; infinity where the text needs more frames than there are.
    """
    extended = np.full(2 * len(label_ids) + 1, BLANK_ID)
    extended[1::2] = label_ids
    may_skip = np.zeros(len(extended), np.bool_)  # the blank before a label that differs from the one before
    may_skip[3::2] = extended[3::2] != extended[1:-2:2]
    emitted = log_probs.astype(np.float64)[:, extended]
    alpha = np.full(len(extended), -np.inf)
    alpha[:2] = emitted[0, :2]
    for frame in emitted[1:]:
        before = alpha.copy()
        before[1:] = np.logaddexp(before[1:], alpha[:-1])
        before[2:] = np.where(may_skip[2:], np.logaddexp(before[2:], alpha[:-2]), before[2:])
        alpha = before + frame
    return -float(np.logaddexp(alpha[-1], alpha[-2]))


def outliers(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of values (n,) lie far above the others: 4 robust standard deviations above the median.

    The median absolute deviation stands for the deviation, so outliers, up to half of all, do not hide each other.
    NaN are no values. Of fewer than 20 none is an outlier.
    """
    known = values[~np.isnan(values)]
    if len(known) < FEWEST:
        return np.zeros(len(values), np.bool_)
    median, spread = median_and_spread(known, _LEAST_SPREAD)
    found: NDArray[np.bool_] = values > median + OUTLIER * spread  # NaN is not greater than anything
    return found


def median_and_spread(values: NDArray[np.float32], least: float) -> tuple[float, float]:
    """The median and the median absolute deviation, which is scaled to a normal distribution's standard deviation."""
    median = float(np.median(values))
    return median, max(least, _MAD_TO_DEVIATION * float(np.median(np.abs(values - median))))
