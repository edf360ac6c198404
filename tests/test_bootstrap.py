"""The bootstrap and the tests of a difference, against scipy's, against formulas, and against what must hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, permutation_test

from kvarts.bootstrap import (
    differences,
    needed_units,
    paired_interval,
    randomisation_p,
    ratio_intervals,
    resampled_ratios,
    smallest_difference,
    summed_by,
)
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


# --- Intervals of rates -----------------------------------------------------------------------------------------------


def utterances(number: int, seed: int, rate: float = 0.2) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Errors and lengths of utterances of which some are harder than others."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 20, number)
    return generator.binomial(lengths, np.clip(rate * generator.gamma(2, 0.5, number), 0, 1)), lengths


def test_rates_as_scipy_and_as_a_plain_loop_have_them() -> None:
    errors, lengths = utterances(150, 1)
    exact = (errors == 0).astype(int)
    ones = np.ones_like(errors)
    [wer, exact_rate] = ratio_intervals(np.column_stack([errors, exact]), np.column_stack([lengths, ones]))

    theirs = bootstrap(
        (errors, lengths),
        lambda e, n, axis: e.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=9999,
        random_state=1,
    ).confidence_interval
    assert wer == pytest.approx(tuple(theirs), abs=0.04 * (theirs.high - theirs.low))

    generator = np.random.default_rng(2)
    shares = []
    for _ in range(3000):
        drawn = [exact[generator.integers(len(exact))] for _ in range(len(exact))]
        shares.append(sum(drawn) / len(drawn))
    low, high = np.quantile(shares, [0.025, 0.975])
    assert exact_rate == pytest.approx((low, high), abs=0.06 * (high - low))


def test_rates_as_the_normal_distribution_has_them() -> None:
    errors, lengths = utterances(3000, 3)
    [(low, high)] = ratio_intervals(errors[:, None], lengths[:, None])
    rate = errors.sum() / lengths.sum()
    # Of a ratio, linearised.
    deviation = np.std(errors - rate * lengths, ddof=1) / lengths.mean() / math.sqrt(len(errors))
    assert (low, high) == pytest.approx((rate - 1.96 * deviation, rate + 1.96 * deviation), abs=0.25 * deviation)


def test_every_set_drawn_is_as_large_as_the_first() -> None:
    # Of 1s over 1s the sum is the number drawn.
    sizes = resampled_ratios(np.ones((7, 1)), np.zeros((7, 1)), draws=50)
    assert sizes.tolist() == [[7.0]] * 50  # and without words errors stand for the rate
    # Each unit is in a set 1 − 1/e of the time, here 1 − (6/7)^7.
    first = np.zeros((7, 1))
    first[0] = 1
    there = resampled_ratios(first, np.zeros((7, 1)), draws=20_000)[:, 0]
    assert np.mean(there > 0) == pytest.approx(1 - (6 / 7) ** 7, abs=0.015)
    assert there.mean() == pytest.approx(1, abs=0.03)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, lengths = utterances(40, 4)
    whole = resampled_ratios(errors[:, None], lengths[:, None], draws=101, seed=3)
    monkeypatch.setattr("kvarts.bootstrap._BLOCK", 400)
    assert resampled_ratios(errors[:, None], lengths[:, None], draws=101, seed=3).tolist() == whole.tolist()
    assert len(whole) == 101
    assert resampled_ratios(errors[:, None], lengths[:, None], draws=101, seed=4).tolist() != whole.tolist()


def test_the_interval_covers_the_truth() -> None:
    rate = 0.2
    covered = 0
    for number in range(300):
        errors, lengths = utterances(100, 1000 + number, rate)
        ratios = resampled_ratios(errors[:, None], lengths[:, None], draws=500, seed=number)
        low, high = np.quantile(ratios, [0.025, 0.975])
        covered += low <= rate <= high
    # The percentile interval is known to be a little too narrow; three standard deviations of 300 draws are 3.8 %.
    assert 0.90 <= covered / 300 <= 0.98


def test_utterances_of_a_speaker_hang_together() -> None:
    generator = np.random.default_rng(6)
    speakers = np.repeat(np.arange(12), 50)
    lengths = np.full(600, 10)
    errors = generator.binomial(lengths, generator.uniform(0.05, 0.5, 12)[speakers])
    keys = [f"s{number}" for number in speakers]
    by_speaker = summed_by(np.column_stack([errors, lengths]), keys)
    assert by_speaker.tolist() == [[errors[speakers == one].sum(), 500] for one in range(12)]
    [(low, high)] = ratio_intervals(by_speaker[:, :1], by_speaker[:, 1:])
    theirs = bootstrap(
        (by_speaker[:, 0] / 500,), np.mean, method="percentile", n_resamples=9999, random_state=1
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.04 * (theirs.high - theirs.low))
    [(near, far)] = ratio_intervals(errors[:, None], lengths[:, None])
    assert high - low > 3 * (far - near)


def test_keys_keep_their_order() -> None:
    assert summed_by(np.array([1, 2, 4, 8]), ["b", "a", "b", "c"]).tolist() == [5, 2, 8]


def test_nothing_to_draw_from() -> None:
    with pytest.raises(ValueError, match="nothing to draw from"):
        ratio_intervals(np.zeros((0, 1)), np.zeros((0, 1)))


# --- Tests of a difference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_randomisation_against_all_swaps(seed: int) -> None:
    generator = np.random.default_rng(seed)
    changes = generator.integers(-4, 6, generator.integers(1, 13))
    sums = [np.dot(signs, changes) for signs in itertools.product([1, -1], repeat=len(changes))]
    expected = np.mean([abs(one) >= abs(changes.sum()) for one in sums])
    assert randomisation_p(changes) == pytest.approx(expected, rel=1e-9)


def test_randomisation_as_scipy_has_it() -> None:
    changes = np.random.default_rng(1).integers(-6, 8, 300)
    changes[::3] = 0
    theirs = permutation_test(
        (changes, np.zeros_like(changes)),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        random_state=1,
    ).pvalue
    ours = randomisation_p(changes)
    assert 0.001 < ours < 0.5
    assert ours == pytest.approx(theirs, abs=4 * math.sqrt(theirs / 20_000))


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (3, 3), (30, 12), (1, 9), (400, 300)])
def test_signs_alone_are_the_sign_test(better: int, worse: int) -> None:
    changes = np.repeat([-1, 1, 0], [better, worse, 5])
    assert randomisation_p(changes) == pytest.approx(binomtest(better, better + worse).pvalue, rel=1e-9)


def test_nothing_changed_and_everything() -> None:
    assert randomisation_p(np.zeros(5, int)) == randomisation_p(np.zeros(0, int)) == 1
    assert randomisation_p(np.array([1, -1, 2, -2])) == 1
    assert randomisation_p(np.full(500, 3)) == 1e-12


def pairs_of(number: int, seed: int, less: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Changes and lengths where the second has `less` errors a word."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 20, number)
    hard = np.clip(0.25 * generator.gamma(3, 1 / 3, number), 0, 0.9)
    first, second = generator.binomial(lengths, hard), generator.binomial(lengths, hard * (1 - less / 0.25))
    return second - first, lengths


def test_a_difference_in_all_its_figures() -> None:
    changes, lengths = pairs_of(400, 2, 0.02)
    letters, spaces = changes * 3, lengths * 6
    words, characters = differences(np.column_stack([changes, letters]), np.column_stack([lengths, spaces]))
    assert words.value == changes.sum() / lengths.sum()
    theirs = bootstrap(
        (changes, lengths),
        lambda d, n, axis: d.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=9999,
        random_state=1,
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert (words.low, words.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.04 * width)
    assert words.standard_error == pytest.approx(theirs.standard_error, rel=0.05)
    expected = 2 * min(np.mean(theirs.bootstrap_distribution <= 0), np.mean(theirs.bootstrap_distribution >= 0))
    assert words.bootstrap_p == pytest.approx(expected, abs=0.012)
    assert words.randomisation_p == randomisation_p(changes)
    assert characters.value == pytest.approx(words.value / 2)
    assert characters.low == pytest.approx(words.low / 2)
    # The other way round it is the same difference.
    [back] = differences(-changes[:, None], lengths[:, None])
    assert (back.value, back.low, back.high) == pytest.approx((-words.value, -words.high, -words.low))
    assert (back.bootstrap_p, back.randomisation_p) == pytest.approx((words.bootstrap_p, words.randomisation_p))


def test_a_difference_that_is_the_same_everywhere_has_no_error() -> None:
    lengths = np.array([[1], [2], [30], [4], [50]])
    [always] = differences(lengths, 2 * lengths)
    assert (always.value, always.low, always.high, always.standard_error) == (0.5, 0.5, 0.5, 0)


def test_no_difference_is_no_difference() -> None:
    [same] = differences(np.zeros((9, 1), int), np.full((9, 1), 4))
    assert (same.value, same.low, same.high, same.standard_error) == (0, 0, 0, 0)
    assert (same.bootstrap_p, same.randomisation_p) == (1, 1)


def test_p_values_of_equals_are_uniform() -> None:
    found = [randomisation_p(pairs_of(60, 5000 + number, 0)[0]) for number in range(400)]
    for level in (0.05, 0.5):
        assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=3.2 * math.sqrt(level * (1 - level) / 400))


def test_a_set_of_the_size_that_is_needed_shows_the_difference_four_times_in_five() -> None:
    less = 0.02
    changes, lengths = pairs_of(20_000, 9, less)
    needed = needed_units(changes, lengths, less)
    assert 200 < needed < 3000
    shown = [randomisation_p(pairs_of(needed, 100 + number, less)[0]) < 0.05 for number in range(400)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.07)
    # Half the difference takes four times the set; a set of so many shows just that difference.
    assert needed_units(changes, lengths, less / 2) == pytest.approx(4 * needed, rel=0.01)
    assert smallest_difference(changes, lengths) == pytest.approx(less * math.sqrt(needed / 20_000), rel=0.01)


def test_the_smallest_difference_by_hand() -> None:
    # Changes −1, 0, 1, 0 a word each: a variance of 2/3, so a standard error of √(2/3/4); 1.96 + 0.8416 of these.
    changes, lengths = np.array([-1, 0, 1, 0]), np.ones(4, int)
    assert smallest_difference(changes, lengths) == pytest.approx(2.8016 * math.sqrt(1 / 6), rel=1e-4)
    assert needed_units(changes, lengths, 0.1) == math.ceil(2.80159**2 * 2 / 3 / 0.01)
    assert smallest_difference(changes[:1], lengths[:1]) == 0
