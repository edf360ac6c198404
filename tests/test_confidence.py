"""Calibrated confidence, against brute force, hand-worked figures and data made with known weights."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import bootstrap, mannwhitneyu

from kvarts import confidence
from kvarts.alphabet import ALPHABET, BLANK_ID, NUM_CLASSES
from kvarts.bootstrap import utterance_intervals
from kvarts.checkpoint import save_weights
from kvarts.cli import main
from kvarts.confidence import (
    Calibration,
    CommandCalibration,
    Evidence,
    evidence,
    fit_logistic,
    threshold_for,
    word_features,
    words_right,
)
from kvarts.cutting import pieces
from kvarts.decoding import WordFrames, greedy_words
from kvarts.errors import CalibrationError, ModelFolderError, OutputError
from kvarts.features import FEATURE_SETTINGS, log_mel
from kvarts.frames import SAMPLE_RATE
from kvarts.model_folder import CONFIG, FORMAT_VERSION
from kvarts.recogniser import Recognizer, Timings, Word, joint_confidence
from kvarts.torch_engine import Torch
from kvarts.writers import WRITERS, Transcript
from tone_reader import ToneReader
from tones import ToneEngine, speak

Floats = NDArray[np.float64]

GREEDY = Calibration(
    word_weights=(0.5, 0.8, 0.3, -0.2, 0.4, -0.6),
    utterance_weights=(-0.5, 0.7),
    word_threshold=0.6,
    utterance_threshold=0.4,
    false_accept_rate=0.05,
    decoder="greedy",
    model="a" * 64,
    engine="tones",
    num_words=100,
    num_utterances=20,
)
COMMANDS = CommandCalibration(
    command_weights=(2.0, 4.0),
    utterance_threshold=0.5,
    false_accept_rate=0.05,
    decoder="grammar 123, space penalty 2",
    model="a" * 64,
    engine="tones",
    num_utterances=20,
)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def logistic(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


def certain(text: str, probabilities: Sequence[float]) -> NDArray[np.float32]:
    """Log-probabilities (time, 34) whose best labels are `text`, with «-» for the blank; the rest is shared by all."""
    rows = np.repeat((1 - np.array(probabilities))[:, None] / (NUM_CLASSES - 1), NUM_CLASSES, axis=1)
    for row, letter, probability in zip(rows, text, probabilities, strict=True):
        row[BLANK_ID if letter == "-" else ALPHABET.index(letter)] = probability
    return np.log(rows).astype(np.float32)


# --- Features ---------------------------------------------------------------------------------------------------------


def test_features_worked_by_hand() -> None:
    #                       д    д    -     а    ' '  я
    log_probs = certain("дд-а я", [0.5, 0.8, 0.9, 0.6, 0.95, 0.7])
    words = greedy_words(log_probs)
    features = word_features(words, log_probs)
    # Of «дд» the higher counts, 0.8; the weakest run of «дд», «-», «а» is «а».
    expected = [[logit(math.sqrt(0.8 * 0.6)), logit(0.6), math.log(2), 0, 0], [logit(0.7), logit(0.7), 0, 0, 0]]
    assert features == pytest.approx(np.array(expected), abs=1e-5)
    doubted = [replace(words[0], posterior=0.3), replace(words[1], is_known=False)]
    expected[0][3] = logit(0.3) - logit(1 - 1e-6)
    expected[1][4] = 1
    assert word_features(doubted, log_probs) == pytest.approx(np.array(expected), abs=1e-5)
    # The one frame outside: 0.05 among 33 labels, of which 32 are letters.
    assert confidence.letters_outside(words, log_probs) == pytest.approx(0.05 * 32 / 33, abs=1e-6)


def test_a_blank_can_be_the_weakest_place() -> None:
    log_probs = certain("а-а", [0.9, 0.3, 0.9])
    assert word_features(greedy_words(log_probs), log_probs)[0, 1] == pytest.approx(logit(0.3), abs=1e-5)


def test_what_is_surer_than_float32_can_say() -> None:
    log_probs = np.full((1, NUM_CLASSES), -200, np.float32)
    log_probs[0, 1] = 0
    [[sure, weakest, *others]] = word_features(greedy_words(log_probs), log_probs)
    assert (sure, weakest) == (pytest.approx(logit(1 - 1e-6)), pytest.approx(logit(1 - 1e-6)))
    assert others == [0, 0, 0]
    assert np.isfinite(word_features([WordFrames("а", 0, 1, 0.0, posterior=0.0)], log_probs)).all()


def test_no_words() -> None:
    quiet, doubtful = certain("--", [0.99, 0.99]), certain("--", [0.5, 0.4])
    assert word_features([], quiet).shape == (0, 5)
    assert GREEDY.apply([], quiet)[0] == []
    chances = [GREEDY.apply([], log_probs)[1] for log_probs in (quiet, doubtful, quiet[:0])]
    outside = 0.02 * 32 / 33
    expected = 1 / (1 + math.exp(0.5 - 0.7 * logit(math.exp(-outside))))
    assert chances[0] == pytest.approx(expected, abs=1e-5)
    assert chances[1] < chances[0] < chances[2] < 1


@pytest.mark.parametrize(
    ("reference", "hypothesis", "right"),
    [
        ("Включи, свет!", "включи свет", [True, True]),
        ("включи свет", "включи цвет", [True, False]),
        ("включи свет", "ну включи свет", [False, True, True]),
        ("включи свет на кухне", "включи на кухне", [True, True, True]),  # a word missed is no word that is wrong
        ("ещё", "еще", [True]),
        ("", "да нет", [False, False]),
        ("да", "", []),
        ("а б в", "б в г", [True, True, False]),
    ],
)
def test_which_words_are_right(reference: str, hypothesis: str, right: list[bool]) -> None:
    assert words_right(reference, hypothesis.split()).tolist() == right


@given(st.lists(st.sampled_from("абв"), max_size=7), st.lists(st.sampled_from("абв"), max_size=7))
def test_right_words_stand_in_the_reference_in_their_order(reference: list[str], words: list[str]) -> None:
    right = words_right(" ".join(reference), words)
    following = iter(reference)
    assert all(word in following for word in itertools.compress(words, right))
    if reference == words:
        assert right.all()


def test_an_utterance_with_a_missed_word_is_wrong() -> None:
    log_probs = certain("да нет", [0.9] * 6)
    words = greedy_words(log_probs)
    assert evidence("да, нет", words, log_probs).is_right
    missed = evidence("да это нет", words, log_probs)
    assert missed.words_right.all()
    assert not missed.is_right
    assert evidence("", [], log_probs).is_right
    assert not evidence("да", [], log_probs).is_right


# --- Fitting ----------------------------------------------------------------------------------------------------------


def by_descent(features: Floats, right: Any, prior: Floats, rising: Sequence[int], ridge: float) -> Floats:
    """Projected gradient descent, with steps of 1 / the largest curvature there can be."""
    matrix = np.column_stack([np.ones(len(features)), features])
    step = 1 / (np.linalg.norm(matrix, 2) ** 2 / 4 + ridge)
    weights = prior.copy()
    for _ in range(4000):
        weights = weights - step * (matrix.T @ (logistic(matrix @ weights) - right) + ridge * (weights - prior))
        weights[list(rising)] = np.maximum(weights[list(rising)], 0)
    return weights


@pytest.mark.parametrize(
    ("truth", "bound"),
    [
        ((-1.0, 1.0, 0.5, -0.4), []),
        ((0.3, -1.0, 0.8, 0.2), [1]),
        ((0.0, 0.4, -1.0, 1.0), [2]),
        ((1, -1, -1, 0), [1, 2]),
    ],
)
@pytest.mark.parametrize("ridge", [1.0, 5.0])
def test_the_fit_is_that_of_gradient_descent(truth: Sequence[float], bound: list[int], ridge: float) -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(0.3, 1, (120, 3))
    right = generator.random(120) < logistic(truth[0] + features @ np.array(truth[1:]))
    prior = np.array([0.0, 1.0, 0.0, 0.0])
    weights = fit_logistic(features, right, prior, rising=(1, 2), ridge=ridge)
    assert weights == pytest.approx(by_descent(features, right, prior, (1, 2), ridge), abs=1e-5)
    assert [number for number in (1, 2) if weights[number] == 0] == bound


def test_a_weight_may_leave_its_bound_when_another_goes_there() -> None:
    # Both fall while both are free; with the worse one held at 0 the other rises: to drop both would be wrong.
    generator = np.random.default_rng(4)
    common = generator.normal(size=400)
    features = np.column_stack([common + generator.normal(0, 0.3, 400), common + generator.normal(0, 0.3, 400)])
    right = generator.random(400) < logistic(1.5 * features[:, 0] - 2.5 * features[:, 1] + 2 * common)
    prior = np.zeros(3)
    free = fit_logistic(features, right, prior)
    held = fit_logistic(features, right, prior, rising=(1, 2))
    assert free.min() < 0
    assert held == pytest.approx(by_descent(features, right, prior, (1, 2), 1.0), abs=1e-5)


@pytest.mark.parametrize("right", [[True] * 6, [False] * 6, [False, False, False, True, True, True]])
def test_what_can_be_told_apart_wholly_has_finite_weights(right: list[bool]) -> None:
    features = np.array([[-30.0], [-20.0], [-9.0], [9.0], [13.0], [30.0]])
    prior = np.array([0.0, 1.0])
    weights = fit_logistic(features, np.array(right), prior, rising=(1,))
    assert weights == pytest.approx(by_descent(features, np.array(right), prior, (1,), 1.0), abs=1e-4)


def test_the_fit_comes_down_from_far_away() -> None:
    # Whole Newton steps from here lead away to infinity.
    features = np.linspace(-1, 1, 40)[:, None]
    right = features[:, 0] > np.tile([0.3, -0.3], 20)
    weights = fit_logistic(features, right, np.array([40.0, 60.0]), ridge=1e-3)
    assert weights == pytest.approx(fit_logistic(features, right, np.array([40.0, 60.0]), ridge=1e-3), abs=1e-6)
    slope = np.column_stack([np.ones(40), features]).T @ (right - logistic(weights[0] + features[:, 0] * weights[1]))
    assert slope == pytest.approx(1e-3 * (weights - [40, 60]), abs=1e-6)


def simulated(
    truth: Sequence[float], utterances: int, seed: int, words: int = 8, letters_outside: float = 0.1
) -> list[Evidence]:
    """Utterances whose words are right with the probability that `truth` gives of their features."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(utterances):
        count = generator.integers(words + 1)
        sure = generator.normal(2.5, 2, count)
        weakest, letters = sure - generator.exponential(1, count), np.log(generator.integers(1, 12, count))
        posterior, unknown = -generator.exponential(2, count), generator.random(count) < 0.3
        features = np.column_stack([sure, weakest, letters, posterior, unknown])
        right = generator.random(count) < logistic(truth[0] + features @ np.array(truth[1:]))
        outside = generator.exponential(letters_outside)
        found.append(Evidence(features, outside, right, bool(right.all() and generator.random() < math.exp(-outside))))
    return found


def test_known_weights_come_back() -> None:
    truth = (-1.0, 0.5, 0.4, -0.3, 0.2, -0.5)
    known = simulated(truth, utterances=8000, seed=0)
    words, utterances = confidence.fit(known)
    features = np.concatenate([utterance.features for utterance in known])
    matrix = np.column_stack([np.ones(len(features)), features])
    chances = logistic(matrix @ np.array(truth))
    error = np.sqrt(np.diag(np.linalg.inv((matrix * (chances * (1 - chances))[:, None]).T @ matrix)))
    assert len(features) > 30_000
    assert (np.abs(words - truth) < 4 * error).all()
    # These words are right independently, and letters missed as the formula has it: nothing is left to mend.
    assert utterances == pytest.approx([0, 1], abs=0.12)


def test_what_was_right_already_is_left_alone_and_what_was_too_sure_is_mended() -> None:
    honest = simulated((0.0, 1.0, 0.0, 0.0, 0.0, 0.0), utterances=600, seed=1)
    boastful = simulated((-1.5, 0.5, 0.0, 0.0, 0.0, 0.0), utterances=600, seed=2)
    for known, bad in ((honest, False), (boastful, True)):
        before, after = confidence.raw_scores(known), confidence.cross_validated_scores(known)
        errors = [
            [
                confidence.calibration_error(part.confidences, part.right, equal_mass=equal_mass)
                for equal_mass in (False, True)
            ]
            for part in (before[0], after[0], after[1])
        ]
        assert (min(errors[0]) > 0.2) if bad else (max(errors[0]) < 0.03)
        assert max(errors[1]) < 0.03
        assert max(errors[2]) < 0.08
        briers = [confidence.brier_score(part.confidences, part.right) for part in (before[0], after[0])]
        assert briers[1] < briers[0] - 0.05 if bad else briers[1] == pytest.approx(briers[0], abs=0.002)


def test_no_utterance_is_scored_by_what_it_was_fitted_to() -> None:
    # 20 utterances whose features say nothing: in sample they seem to, and out of sample a right one is held for
    # wronger than a wrong one, for the others have one of its kind less.
    known = [Evidence(np.zeros((3, 5)), 0.0, np.full(3, number % 2 == 0), number % 2 == 0) for number in range(20)]
    words, utterances = confidence.cross_validated_scores(known)
    assert confidence.area_under_curve(words.confidences, words.right) < 0.5
    assert words.utterance.tolist() == [number for number in range(20) for _ in range(3)]
    assert utterances.right.tolist() == [number % 2 == 0 for number in range(20)]
    # And left out are all words of an utterance together: those of one have one score.
    assert (np.ptp(words.confidences.reshape(20, 3), axis=1) == 0).all()


@pytest.mark.parametrize(
    ("utterances", "words", "right", "message"),
    [
        (9, 100, 50, r"too little to calibrate on \(9 utterances, 100 recognised words\).* 10 utterances and 50"),
        (20, 49, 25, r"20 utterances, 49 recognised words"),
        (20, 0, 0, r"20 utterances, 0 recognised words"),
        (0, 0, 0, r"0 utterances"),
        (20, 60, 60, "none of the 60 recognised words is wrong"),
        (20, 60, 0, "none of the 60 recognised words is right"),
    ],
)
def test_too_little_data(utterances: int, words: int, right: int, message: str) -> None:
    are_right = np.arange(words) < right
    known = [
        Evidence(np.zeros((len(part), 3)), 0, part, False) for part in np.array_split(are_right, max(utterances, 1))
    ]
    with pytest.raises(CalibrationError, match=message):
        confidence.check_enough(known[:utterances])


def test_just_enough_data() -> None:
    are_right = np.arange(50) < 1
    known = [Evidence(np.zeros((5, 5)), 0, part, False) for part in np.array_split(are_right, 10)]
    confidence.check_enough(known)
    words, utterances = confidence.fit(known)
    assert np.isfinite([*words, *utterances]).all()
    for part in confidence.cross_validated_scores(known):  # one fold has no right word to learn from
        assert ((part.confidences > 0) & (part.confidences < 0.2)).all()


# --- Measures ---------------------------------------------------------------------------------------------------------


def test_calibration_error_worked_by_hand() -> None:
    confidences = np.array([0.0, 0.05, 0.31, 0.39, 0.35, 0.95, 1.0])
    right = np.array([False, True, True, False, False, True, True])
    # Bins [0, 0.1): |1 - 0.05|; [0.3, 0.4): |1 - 1.05|; [0.9, 1]: |2 - 1.95|; of 7.
    assert confidence.calibration_error(confidences, right) == pytest.approx((0.95 + 0.05 + 0.05) / 7)
    # Three bins of equal number: (0, 0.05), (0.31, 0.35), (0.39, 0.95, 1).
    expected = (abs(1 - 0.05) + abs(1 - 0.66) + abs(2 - 2.34)) / 7
    assert confidence.calibration_error(confidences, right, bins=3, equal_mass=True) == pytest.approx(expected)


def test_equal_confidences_stay_in_one_bin() -> None:
    # Cut apart, the same words in another order would have another error.
    confidences = np.full(20, 0.5)
    right = np.arange(20) < 10
    for order in (right, right[::-1]):
        assert confidence.calibration_error(confidences, order, equal_mass=True) == 0


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=40))
def test_area_and_brier_against_other_formulas(rows: list[tuple[float, bool]]) -> None:
    confidences, right = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    assert confidence.brier_score(confidences, right) == pytest.approx(
        sum((score - 1) ** 2 if is_right else score**2 for score, is_right in rows) / len(rows)
    )
    area = confidence.area_under_curve(confidences, right)
    if right.all() or not right.any():
        assert math.isnan(area)
    else:
        pairs = mannwhitneyu(confidences[right], confidences[~right]).statistic
        assert area == pytest.approx(pairs / right.sum() / (~right).sum())


def test_wilson_as_in_the_books() -> None:
    # Newcombe, «Two-sided confidence intervals for the single proportion», 1998, table I: 81 of 263, 0 of 20.
    low, high = confidence.wilson_interval(np.array([81 / 263, 0.0]), np.array([263, 20]))
    assert (low[0], high[0]) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert (low[1], high[1]) == (pytest.approx(0, abs=1e-12), pytest.approx(0.1611, abs=5e-5))


def test_intervals_are_those_of_utterances() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 30, 80)
    shares = generator.random(80)
    utterance = np.repeat(np.arange(80) * 3, sizes)  # numbers may be left out
    right = generator.random(len(utterance)) < np.repeat(shares, sizes)
    [ours, never] = utterance_intervals(lambda rows: [right[rows].mean(), math.nan], utterance, draws=2000)
    hits = np.bincount(utterance // 3, weights=right)
    theirs = bootstrap(
        (hits, sizes), lambda h, n: h.sum() / n.sum(), paired=True, vectorized=False, method="percentile",
        n_resamples=2000, random_state=1,
    ).confidence_interval  # fmt: skip
    assert ours == pytest.approx(tuple(theirs), abs=0.1 * (theirs.high - theirs.low))
    assert all(map(math.isnan, never))


some_confidences = st.one_of(st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.floats(0, 1))


@given(
    st.lists(st.tuples(some_confidences, st.booleans()), max_size=30),
    st.one_of(st.sampled_from([0.0, 0.05, 0.1, 0.29, 0.5, 1.0]), st.floats(0, 1)),
)
def test_the_threshold_is_the_lowest_that_keeps_the_rate(rows: list[tuple[float, bool]], rate: float) -> None:
    confidences = np.array([row[0] for row in rows])
    right = np.array([row[1] for row in rows], bool)
    found = threshold_for(confidences, right, rate)
    wrong = [score for score, is_right in rows if not is_right]

    def accepted(value: float) -> int:
        return sum(score >= value for score in wrong)

    assert accepted(found.value) <= rate * len(wrong) + 1e-6
    lower = [value for value in [0.0, *wrong, *(math.nextafter(score, 2) for score in wrong)] if value < found.value]
    assert all(accepted(value) > rate * len(wrong) for value in lower)
    if wrong:
        assert found.false_accepts == pytest.approx(accepted(found.value) / len(wrong))
    else:
        assert (found.value, math.isnan(found.false_accepts)) == (0, True)
    if len(wrong) < len(rows):
        rejected = sum(score < found.value for score, is_right in rows if is_right)
        assert found.false_rejects == pytest.approx(rejected / (len(rows) - len(wrong)))


def test_thresholds_worked_by_hand() -> None:
    confidences = np.concatenate([np.arange(100) / 100, [0.2, 0.705, 0.9, 0.95]])
    right = np.arange(104) >= 100
    found = threshold_for(confidences, right, 0.29)  # 29 of 100 wrong ones may pass: those from 0.71 on
    assert 0.7 < found.value < 0.70001
    assert (found.false_accepts, found.false_rejects, found.accepted) == (0.29, 0.25, 32 / 104)
    assert threshold_for(np.array([1.0, 1.0]), np.array([True, False]), 0.0).value > 1
    assert threshold_for(confidences, right, 1.0).value == 0
    with pytest.raises(ValueError, match=r"1\.5"):
        threshold_for(confidences, right, 1.5)


# --- The calibration --------------------------------------------------------------------------------------------------


def test_apply_keeps_texts_and_frames_and_follows_the_formula() -> None:
    log_probs = certain("дд-а я", [0.5, 0.8, 0.9, 0.6, 0.95, 0.7])
    words = greedy_words(log_probs)
    calibrated, whole = GREEDY.apply(words, log_probs)
    assert [(word.text, word.start, word.stop) for word in calibrated] == [("да", 0, 4), ("я", 5, 6)]
    sure = [math.sqrt(0.8 * 0.6), 0.7]
    scores = [
        0.5 + 0.8 * logit(sure[0]) + 0.3 * logit(0.6) - 0.2 * math.log(2),
        0.5 + 0.8 * logit(0.7) + 0.3 * logit(0.7),
    ]
    chances = [1 / (1 + math.exp(-score)) for score in scores]
    assert [word.confidence for word in calibrated] == pytest.approx(chances, abs=1e-5)
    both = chances[0] * chances[1] * math.exp(-0.05 * 32 / 33)
    assert whole == pytest.approx(1 / (1 + math.exp(0.5 - 0.7 * logit(both))), abs=1e-5)


@lru_cache
def fitted_on_little() -> list[Calibration]:
    fitted = [confidence.fit(simulated((-1, 0.6, 0.3, -0.5, 0.2, -1), 15, seed)) for seed in range(8)]
    fitted.append(confidence.fit(simulated((1, -0.6, -0.3, -0.5, -0.2, 0), 60, 0)))  # who is surer is wrong: held at 0
    return [replace(GREEDY, word_weights=tuple(w), utterance_weights=tuple(u)) for w, u in fitted]


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=5), st.data())
def test_no_confidence_falls_where_the_raw_one_rises(raw: list[float], data: st.DataObject) -> None:
    calibration = data.draw(st.sampled_from(fitted_on_little()))
    log_probs = certain(" ".join("а" * len(raw)), [0.9] * (2 * len(raw) - 1))
    words = [WordFrames("а", 2 * number, 2 * number + 1, value) for number, value in enumerate(raw)]
    number = data.draw(st.integers(0, len(raw) - 1))
    surer = [*words]
    surer[number] = replace(words[number], confidence=data.draw(st.floats(raw[number], 1)))
    if data.draw(st.booleans()):
        words[number] = replace(words[number], posterior=data.draw(st.floats(0.01, 1)))
    (before, whole_before), (after, whole_after) = (calibration.apply(each, log_probs) for each in (words, surer))
    assert after[number].confidence >= before[number].confidence
    assert whole_after >= whole_before
    assert all(0 <= word.confidence <= 1 for word in after)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.json"
    calibration = replace(GREEDY, decoder="beam 100, язык.arpa", word_threshold=math.nextafter(0.3, 1))
    calibration.save(path)
    assert Calibration.load(path) == calibration
    assert "язык" in path.read_text(encoding="utf-8")
    COMMANDS.save(path)
    assert CommandCalibration.load(path) == COMMANDS
    with pytest.raises(CalibrationError, match="a calibration of commands, not of words"):
        Calibration.load(path)
    with pytest.raises(OutputError):
        GREEDY.save(path / "below")


def test_confidence_of_a_score() -> None:
    for score in (0.0, -0.5, -1000.0):
        assert COMMANDS.confidence(score) == pytest.approx(1 / (1 + math.exp(-(2 + 4 * score))) if score > -9 else 0)
    assert COMMANDS.confidence(-math.inf) == 0
    assert replace(COMMANDS, command_weights=(0.0, 0.0)).confidence(-math.inf) == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kvarts_calibration": 1}, r"format 1, here 2\); calibrate again"),
        ({"of": "commands"}, "a calibration of commands, not of words; a grammar takes one that kvarts calibrate"),
        ({"of": None}, "a calibration of None, not of words"),
        ({"kvarts_calibration": None}, "no calibration; name a file"),
        ({"kvarts_calibration": True}, "no calibration; name a file"),
        ({"normaliser_version": "0"}, r"normaliser 0, here 1\); calibrate again"),
        ({"word_weights": [1, 2, 3]}, r'damaged \("word_weights" must be 6 numbers'),
        ({"word_weights": [1, 2, 3, 4, 5, math.nan]}, '"word_weights" must be 6 numbers'),
        ({"word_weights": [1, 2, 3, 4, 5, "6"]}, '"word_weights" must be 6 numbers'),
        ({"word_weights": None}, '"word_weights" must be 6 numbers'),
        ({"utterance_weights": [1, True]}, '"utterance_weights" must be 2 numbers'),
        ({"utterance_weights": [1, 10**400]}, '"utterance_weights" must be 2 numbers'),
        ({"word_threshold": math.inf}, '"word_threshold" must be a number'),
        ({"utterance_threshold": "0.5"}, '"utterance_threshold" must be a number'),
        ({"false_accept_rate": None}, '"false_accept_rate" must be a number'),
        ({"decoder": 1}, '"decoder" must be a string'),
        ({"model": None}, '"model" must be a string'),
        ({"engine": []}, '"engine" must be a string'),
        ({"num_words": 1.5}, '"num_words" must be an integer'),
        ({"num_utterances": "20"}, '"num_utterances" must be an integer'),
    ],
)
def test_a_damaged_file_says_what_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    GREEDY.save(path)
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CalibrationError, match=message) as caught:
        Calibration.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3"])
def test_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"(no JSON|no calibration).*kvarts calibrate"):
        Calibration.load(path)
    with pytest.raises(CalibrationError, match="no such calibration"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(CalibrationError, match="cannot be read"):
        Calibration.load(tmp_path)


def test_another_decoder_is_refused() -> None:
    class Beam:
        description = "beam 100"

        def __call__(self, log_probs: NDArray[np.float32]) -> list[WordFrames]:
            return greedy_words(log_probs)

    with pytest.raises(CalibrationError, match="of the decoder «greedy», this one is «beam 100»: calibrate with"):
        Recognizer(ToneEngine(), decoder=Beam(), calibration=GREEDY)
    of_beam = replace(GREEDY, decoder="beam 100")
    with pytest.raises(CalibrationError, match="of the decoder «beam 100», this one is «greedy»"):
        Recognizer(ToneEngine(), calibration=of_beam)
    recognizer = Recognizer(ToneEngine(), decoder=Beam(), calibration=of_beam)
    assert recognizer.transcribe(speak("да")).text == "да"


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "a.ckpt"
    checkpoint.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of FIPS 180-4
    assert confidence.model_identity(checkpoint) == abc
    with pytest.raises(CalibrationError, match=r"of the model aaaaaaaaaaaa…, this one is ba7816bf8f01…"):
        GREEDY.check(greedy_words, abc)
    replace(GREEDY, model=abc).check(greedy_words, abc)
    with pytest.raises(CalibrationError, match="cannot be read"):
        confidence.model_identity(tmp_path / "none.ckpt")


def test_an_exported_model_is_its_checkpoint(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "kvarts_model": FORMAT_VERSION,
        "files": {},
        "stride": 4,
        "alphabet": ALPHABET,
        "blank_id": BLANK_ID,
        "features": FEATURE_SETTINGS,
    }
    (tmp_path / CONFIG).write_text(json.dumps(config | {"checkpoint_sha256": "b" * 64}), encoding="utf-8")
    assert confidence.model_identity(tmp_path) == "b" * 64
    with pytest.raises(CalibrationError, match=r"this one is bbbbbbbbbbbb…"):
        Recognizer.load(tmp_path, calibration=GREEDY)
    (tmp_path / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="export the model again"):
        confidence.model_identity(tmp_path)


# --- The recogniser ---------------------------------------------------------------------------------------------------


def test_the_recogniser_gives_calibrated_confidences() -> None:
    sounds = [speak("да нет"), speak("это"), np.zeros(8000, np.float32)]
    plain = Recognizer(ToneEngine()).transcribe_batch(sounds)
    recognizer = Recognizer(ToneEngine(), calibration=GREEDY)
    results = recognizer.transcribe_batch(sounds)
    for before, after, sound in zip(plain, results, sounds, strict=True):
        assert before.confidence is None
        assert [replace(word, confidence=0) for word in after.words] == [
            replace(word, confidence=0) for word in before.words
        ]
        [log_probs] = recognizer.log_probs([log_mel(sound)])
        words, whole = GREEDY.apply(greedy_words(log_probs), log_probs)
        assert [word.confidence for word in after.words] == pytest.approx([word.confidence for word in words], abs=1e-6)
        assert after.confidence == pytest.approx(whole, abs=1e-6)
    assert plain[0].words[0].confidence != results[0].words[0].confidence
    [texts] = recognizer.texts([log_mel(sounds[0])])
    assert texts == "да нет"


def test_a_long_recording_is_as_sure_as_all_of_its_pieces() -> None:
    sound = np.concatenate([speak("да "), np.zeros(16 * SAMPLE_RATE, np.float32), speak("нет")] * 2)
    recognizer = Recognizer(ToneEngine(), calibration=GREEDY)
    parts = [part.confidence for part in recognizer.transcribe_pieces(pieces(iter([sound])))]
    assert len(parts) > 1
    assert recognizer.transcribe(sound).confidence == pytest.approx(math.prod(part or 0 for part in parts))
    assert joint_confidence([0.5, None]) is None
    assert joint_confidence([]) is None


# --- The command line -------------------------------------------------------------------------------------------------

WORDS = ["свет", "окно", "дверь", "музыка", "чайник", "кухня", "звук", "номер", "весь", "вызов"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and manifests: what is said loudly is right, what is said softly often wrong in its manifest."""
    folder = tmp_path_factory.mktemp("data")
    save_weights(ToneReader(), folder / "tones.ckpt")
    generator = np.random.default_rng(0)
    for name, count in (("val", 24), ("test", 12), ("small", 6), ("right", 24)):
        rows = []
        for number in range(count):
            spoken = list(generator.choice(WORDS, 3))
            soft = number % 2 and name != "right"
            sound = speak(" ".join(spoken)) * (0.35 if soft else 1)
            soundfile.write(folder / f"{name}{number}.wav", sound, SAMPLE_RATE, subtype="FLOAT")
            if soft and number % 6 != 1:
                spoken[number % 3] = "тишина"
            row = {
                "audio_filepath": f"{name}{number}.wav",
                "text": " ".join(spoken),
                "duration": len(sound) / SAMPLE_RATE,
            }
            rows.append(json.dumps(row, ensure_ascii=False))
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def calibrate(data: Path, *arguments: str) -> int:
    return main(["calibrate", "--model", str(data / "tones.ckpt"), *arguments])


@pytest.fixture(scope="module")
def calibration(data: Path) -> Path:
    path = data / "calibration.json"
    assert calibrate(data, "--manifest", str(data / "val.jsonl"), "-o", str(path), "--false-accept-rate", "0.2") == 0
    return path


def test_calibrate_writes_prints_and_draws(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert calibrate(data, "--manifest", str(data / "val.jsonl"), "--picture", "out/reliability.png") == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert "val.jsonl, cross-validated by utterance: 72 words, 24 utterances" in " ".join(printed.split())
    assert "ECE, equal widths" in printed
    assert "threshold for 0.05" in printed
    found = Calibration.load(Path("calibration.json"))
    assert (found.decoder, found.engine, found.num_words, found.num_utterances) == ("greedy", "torch cpu", 72, 24)
    assert found.model == confidence.model_identity(data / "tones.ckpt")
    assert Path("out/reliability.png").read_bytes().startswith(b"\x89PNG")
    # 8 of the 12 soft ones are wrong and none of the loud ones: that must have been learnt, as far as so few can tell.
    recognizer = Recognizer(Torch(ToneReader()), calibration=found)
    loud, soft = (recognizer.transcribe(speak("свет окно дверь") * scale) for scale in (1, np.float32(0.35)))
    assert (loud.confidence or 0) > 0.62 > (soft.confidence or 1)


def test_calibrate_shows_the_figures_of_a_test_set(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c.json"
    arguments = ["--manifest", str(data / "val.jsonl"), "--test", str(data / "test.jsonl"), "-o", str(output)]
    assert calibrate(data, *arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "test.jsonl: 36 words, 12 utterances" in printed
    # 4 words of 36 are wrong, in 4 utterances of 12.
    assert "share right 0.889 0.667" in printed
    assert Calibration.load(output).num_words == 72


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--manifest", "val.jsonl", "--grammar", "none.grammar"], "none.grammar: could not be read"),
        (["--manifest", "val.jsonl", "--grammar", "g.grammar", "--lm", "a"], "--grammar is a decoder of its own"),
        (["--manifest", "small.jsonl", "--grammar", "g.grammar"], "too little to calibrate on (6 utterances)"),
        (["--manifest", "val.jsonl", "--grammar", "g.grammar"], "none of the 24 commands found is right"),
        (["--manifest", "small.jsonl"], "too little to calibrate on (6 utterances, 18 recognised words)"),
        (["--manifest", "right.jsonl"], "none of the 72 recognised words is wrong"),
        (["--manifest", "none.jsonl"], "none.jsonl: no such manifest"),
        (["--manifest", "val.jsonl", "--test", "none.jsonl"], "none.jsonl: no such manifest"),
        (["--manifest", "lost.jsonl"], "lost.wav"),
        (["--manifest", "val.jsonl", "-o", "."], ".: is a folder; name a file"),
        (["--manifest", "val.jsonl", "--picture", "/"], "/: is a folder; name a file"),
        (["--manifest", "val.jsonl", "--model", "none.ckpt"], "none.ckpt"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(data)
    Path("lost.jsonl").write_text('{"audio_filepath": "lost.wav", "text": "да", "duration": 1}', encoding="utf-8")
    Path("g.grammar").write_text("[a]\nне то\n", encoding="utf-8")
    assert calibrate(data, "-o", "unwritten.json", *arguments) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("kvarts: error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not Path("unwritten.json").exists()


def test_wrong_rates(data: Path) -> None:
    for rate in ("1.5", "-0.1", "nan", "many"):
        with pytest.raises(SystemExit):
            calibrate(data, "--manifest", "val.jsonl", f"--false-accept-rate={rate}")


def transcribe(data: Path, *arguments: str) -> int:
    return main(["transcribe", "--model", str(data / "tones.ckpt"), *arguments])


def test_transcribe_gives_calibrated_confidences(
    data: Path, calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    sound = str(data / "val1.wav")
    assert transcribe(data, sound, "-f", "json", "--word-timestamps") == 0
    raw = json.loads(capsys.readouterr().out)
    assert not {"confidence", "rejected"} & raw.keys()
    assert transcribe(data, sound, "-f", "json", "--word-timestamps", "--calibration", str(calibration)) == 0
    found = json.loads(capsys.readouterr().out)
    assert "rejected" not in found
    expected = Recognizer(Torch(ToneReader()), calibration=Calibration.load(calibration)).transcribe(sound)
    assert found["confidence"] == pytest.approx(expected.confidence, abs=1e-3)
    assert [word["confidence"] for word in found["words"]] == pytest.approx(
        [word.confidence for word in expected.words], abs=1e-3
    )
    assert [word["confidence"] for word in found["words"]] != [word["confidence"] for word in raw["words"]]


def test_rejected_recordings(data: Path, calibration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    loud, soft = str(data / "val0.wav"), str(data / "val1.wav")
    for option in (["--reject"], ["--reject-below", "0.6"]):
        assert transcribe(data, loud, soft, "--calibration", str(calibration), *option) == 0
        printed, errors = capsys.readouterr()
        heard, unheard = printed.splitlines()
        assert len(heard.split("\t")[1].split()) == 3
        assert unheard == f"{soft}\t"
        assert errors == "kvarts: 1 of 2 recordings rejected: too unsure\n"
    assert transcribe(data, loud, soft, "--calibration", str(calibration), "--reject", "-f", "jsonl") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rejected"] for row in rows] == [False, True]
    assert len(rows[1]["text"].split()) == 3
    threshold = Calibration.load(calibration).utterance_threshold
    assert rows[1]["confidence"] < threshold <= rows[0]["confidence"]
    # What came before has no part in it.
    assert transcribe(data, soft, loud, "--calibration", str(calibration), "-f", "jsonl") == 0
    turned = [json.loads(line)["confidence"] for line in capsys.readouterr().out.splitlines()]
    assert turned == pytest.approx([rows[1]["confidence"], rows[0]["confidence"]], abs=2e-4)
    assert transcribe(data, soft, "--calibration", str(calibration), "--reject-below", "0") == 0
    assert len(capsys.readouterr().out.split()) == 3


def test_options_that_do_not_go_together(data: Path, calibration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = str(data / "val0.wav")
    for options in (
        ["--reject"],
        ["--reject-below", "0.5"],
        ["--calibration", "c.json", "--reject", "--reject-below", "0.5"],
        ["--calibration", "c.json", "--reject-below", "5"],
        ["--calibration", "c.json", "--reject-below", "nan"],
    ):
        with pytest.raises(SystemExit):
            transcribe(data, sound, *options)
    capsys.readouterr()
    assert transcribe(data, sound, "--calibration", "none.json") == 2
    assert "none.json: no such calibration" in capsys.readouterr().err
    other = data / "other.json"
    replace(Calibration.load(calibration), model="b" * 64).save(other)
    assert transcribe(data, sound, "--calibration", str(other)) == 2
    assert "of the model bbbbbbbbbbbb…" in capsys.readouterr().err


def test_how_what_is_rejected_is_written() -> None:
    timings = Timings(0, 0, 0, 0)
    channels = ((Word("да", 0.1, 0.3, 0.4),), (Word("нет", 0.2, 0.5, 0.3),))
    rejected = Transcript("a.wav", "m", "e", 1.0, timings, channels, True, 0.12345, True)
    kept = replace(rejected, rejected=False)
    texts = {name: write(rejected, True) for name, write in WRITERS.items()}
    assert texts["txt"] == "Канал 1: \nКанал 2: \n"
    assert (texts["srt"], texts["vtt"]) == ("", "WEBVTT\n")
    assert texts["tsv"].count("\n") == 1
    for name in ("json", "jsonl"):
        found = json.loads(texts[name])
        assert (found["confidence"], found["rejected"], found["text"]) == (0.1235, True, "да\nнет")
        assert [word["text"] for word in found["words"]] == ["да", "нет"]
        assert json.loads(WRITERS[name](kept, True))["rejected"] is False
    assert "да" in WRITERS["txt"](kept, True)
