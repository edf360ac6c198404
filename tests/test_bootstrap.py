"""The paired bootstrap, against scipy's and against what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from kvarts.bootstrap import paired_interval
from kvarts.error_counts import ErrorCounts


def counts(errors: list[int], lengths: list[int]) -> list[ErrorCounts]:
    return [ErrorCounts(substitutions=e, reference_length=n) for e, n in zip(errors, lengths, strict=True)]


def test_as_scipy_has_it() -> None:
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, 20, 200)
    first = generator.binomial(lengths, 0.30)
    second = generator.binomial(lengths, 0.25)

    def difference(a: np.ndarray, b: np.ndarray, n: np.ndarray) -> float:
        return float((b.sum() - a.sum()) / n.sum())

    theirs = bootstrap(
        (first, second, lengths),
        difference,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=5000,
        random_state=1,
    ).confidence_interval
    ours = paired_interval(counts(first.tolist(), lengths.tolist()), counts(second.tolist(), lengths.tolist()))
    width = theirs.high - theirs.low
    assert ours == pytest.approx(tuple(theirs), abs=0.05 * width)


def test_pairs_are_kept() -> None:
    # Both have the same errors but for one more in every utterance: the difference does not vary, errors do.
    lengths = [10] * 50
    first = [number % 9 for number in range(50)]
    second = [errors + 1 for errors in first]
    assert paired_interval(counts(first, lengths), counts(second, lengths)) == pytest.approx((0.1, 0.1))
    assert paired_interval(counts(first, lengths), counts(first, lengths)) == (0, 0)


def test_each_draw_is_divided_by_its_own_words() -> None:
    # One more error for every ten words, in utterances of very different length: 0.1 whatever is drawn.
    lengths = [10, 20, 1000, 50, 4000, 10]
    none = counts([0] * 6, lengths)
    assert paired_interval(none, counts([length // 10 for length in lengths], lengths)) == pytest.approx((0.1, 0.1))


def test_what_does_not_belong_together() -> None:
    for first, second in (([], []), (counts([1], [2]), counts([1], [3])), (counts([1], [2]), counts([1, 1], [2, 2]))):
        with pytest.raises(ValueError, match="same utterances"):
            paired_interval(first, second)
