"""Confidence that means something: the probability that a recognised word, or a whole utterance, is right.

A network's own probabilities are too high (Guo et al., «On Calibration of Modern Neural Networks», ICML 2017). A
logistic regression on validation data mends that, as Platt did («Probabilistic Outputs for Support Vector Machines»,
1999), with a few features more than the score alone. With logit p = ln(p / (1 - p)):

    word:       logit P = w0 + w1 · logit(confidence) + w2 · logit(weakest) + w3 · ln(letters)
                           + w4 · logit(posterior) + w5 · (1 if it is outside the vocabulary)
    utterance:  logit P = u0 + u1 · logit(exp(sum of ln P over its words - letters expected outside its words))
    command:    logit P = c0 + c1 · score

`confidence` is the decoder's, `weakest` the least certain place of the word, `posterior` what the other texts of a beam
search say of it (`word_features`), `score` that of a grammar's best command. w1, w2, w4, u1 and c1 are held at 0 or
above, so no P ever falls when a word's own confidence rises and the rest stays. An utterance's formula is that of
independent words, none of them missed, with an intercept and a slope fitted: errors come together, and words that were
missed have no confidence of their own. An utterance without words has P too, that there is nothing in it. A command is
right or wrong as a whole: right is what has the intent and the slots of the text that was said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import ALPHABET, BLANK_ID
from kvarts.decoding import Decoder, WordFrames
from kvarts.errors import CalibrationError, ModelFolderError
from kvarts.files import atomic_text_writer, sha256_of
from kvarts.text import NORMALISER_VERSION, normalise

if TYPE_CHECKING:
    from typing_extensions import Self

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FORMAT_VERSION: Final = 2
LEAST_WORDS: Final = 50  # six weights are fitted to them
LEAST_UTTERANCES: Final = 10  # as many as there are folds
FOLDS: Final = 10

_SPACE_ID = ALPHABET.index(" ")
_NEAREST_CERTAINTY = 1e-6  # what is more certain in float32 is rounding
# What a fit starts from, and is held to by its ridge: no change.
_WORD_PRIOR = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
_UTTERANCE_PRIOR = np.array([0.0, 1.0])
_COMMAND_PRIOR = np.array([0.0, 1.0])
_PRIORS: Final = {
    "word_weights": _WORD_PRIOR,
    "utterance_weights": _UTTERANCE_PRIOR,
    "command_weights": _COMMAND_PRIOR,
}


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What is kept in a file and holds for the decoder and the model that it was fitted on.

    Attributes:
        utterance_threshold: an utterance, or a command, that is right with a lower probability had better not be
            believed; see `threshold_for`.
        false_accept_rate: share of what is wrong that the thresholds let through.
        decoder: its `description`; «greedy» where it has none.
        model: SHA-256 of the checkpoint, exported or not.
        engine: in which it was fitted; told, not checked.
        num_utterances: that it was fitted on.
        normaliser_version: of `kvarts.text.normalise`, which decides what is right.
    """

    OF: ClassVar[str]

    utterance_threshold: float
    false_accept_rate: float
    decoder: str
    model: str
    engine: str
    num_utterances: int
    normaliser_version: str = NORMALISER_VERSION

    def check(self, decoder: Decoder, model: str | None = None) -> None:
        """Refuses another decoder or model, of which the weights say nothing.

        Args:
            model: as `model_identity` gives it; None: not known.

        Raises:
            CalibrationError: it is another one.
        """
        given = description_of(decoder)
        if given != self.decoder:
            raise CalibrationError(
                f"the calibration is of the decoder «{self.decoder}», this one is «{given}»: calibrate with the same "
                "options (kvarts calibrate)"
            )
        if model is not None and model != self.model:
            raise CalibrationError(
                f"the calibration is of the model {self.model[:12]}…, this one is {model[:12]}… (SHA-256 of the "
                "checkpoint): calibrate this one (kvarts calibrate)"
            )

    def save(self, path: Path) -> None:
        """Writes it as JSON.

        Raises:
            OutputError: the file could not be written.
        """
        about = {"kvarts_calibration": FORMAT_VERSION, "of": self.OF}
        with atomic_text_writer(path) as file:
            json.dump(about | asdict(self), file, ensure_ascii=False, indent=2)
            file.write("\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote.

        Raises:
            CalibrationError: the file is missing, damaged, no calibration, of another version, or of commands where
                words are wanted or the other way round.
        """
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CalibrationError(f"{path}: no such calibration; make one with kvarts calibrate") from None
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read ({error.strerror}); check the path") from None
        except (ValueError, RecursionError):
            raise CalibrationError(f"{path}: damaged (no JSON); make it anew with kvarts calibrate") from None
        if not isinstance(content, dict) or type(content.get("kvarts_calibration")) is not int:
            raise CalibrationError(f"{path}: no calibration; name a file that kvarts calibrate wrote")
        for what, found, own in (
            ("format", content["kvarts_calibration"], FORMAT_VERSION),
            ("normaliser", content.get("normaliser_version"), NORMALISER_VERSION),
        ):
            if found != own:
                raise CalibrationError(
                    f"{path}: of another Kvarts ({what} {found}, here {own}); calibrate again with this one"
                )
        if content.get("of") != cls.OF:
            raise CalibrationError(
                f"{path}: a calibration of {content.get('of')}, not of {cls.OF}; a grammar takes one that kvarts "
                "calibrate --grammar wrote, any other decoder one without --grammar"
            )
        problem = _problem(cls, content)
        if problem:
            raise CalibrationError(f"{path}: damaged ({problem}); make it anew with kvarts calibrate")
        values: dict[str, Any] = {field.name: content[field.name] for field in fields(cls)}
        for name in _PRIORS.keys() & values.keys():
            values[name] = tuple(map(float, values[name]))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Calibration(_Kept):
    """Turns what a decoder gives into probabilities of words and utterances.

    Attributes:
        word_weights: w0 to w5 of the module's formula.
        utterance_weights: u0 and u1.
        word_threshold: a word with a lower confidence had better not be believed.
        num_words: that it was fitted on.
    """

    OF = "words"

    word_weights: tuple[float, ...]
    utterance_weights: tuple[float, ...]
    word_threshold: float
    num_words: int

    def apply(
        self, words: Sequence[WordFrames], log_probs: NDArray[np.floating[Any]]
    ) -> tuple[list[WordFrames], float]:
        """The words of one utterance with calibrated confidences, and that of the utterance.

        Args:
            words: as `evidenced` gave them.
            log_probs: (time, 34) log-probabilities, from which it did.
        """
        confidences = _word_confidences(self.word_weights, word_features(words, log_probs))
        calibrated = [
            replace(word, confidence=float(confidence)) for word, confidence in zip(words, confidences, strict=True)
        ]
        return calibrated, _utterance_confidence(self.utterance_weights, confidences, letters_outside(words, log_probs))


@dataclass(frozen=True, kw_only=True)
class CommandCalibration(_Kept):
    """Turns the score of a grammar's best command into the probability that it is what was meant.

    Attributes:
        command_weights: c0 and c1 of the module's formula.
    """

    OF = "commands"

    command_weights: tuple[float, ...]

    def confidence(self, score: float) -> float:
        """In [0, 1], of a score in [-inf, 0]; the lower the less, and 0 at -inf unless the slope is 0."""
        offset, slope = self.command_weights
        # -inf · 0 would be no number.
        return float(_logistic(np.array(offset + (slope * score if slope else 0.0))))


def _problem(kind: type[_Kept], content: Mapping[str, Any]) -> str:
    """What is wrong with the fields of a calibration; nothing, if nothing is."""
    for field in fields(kind):
        value = content.get(field.name)
        if field.name in _PRIORS:
            length = len(_PRIORS[field.name])
            if not isinstance(value, list) or len(value) != length or not all(map(_is_number, value)):
                return f'"{field.name}" must be {length} numbers'
        elif field.type == "float":
            if not _is_number(value):
                return f'"{field.name}" must be a number'
        elif field.type == "int":
            if type(value) is not int:
                return f'"{field.name}" must be an integer'
        elif not isinstance(value, str):
            return f'"{field.name}" must be a string'
    return ""


def _is_number(value: object) -> bool:
    # An integer of more than 308 digits is no float; JSON as Python reads it has NaN, which is no number.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def description_of(decoder: Decoder) -> str:
    """What a decoder says of itself: all that changes its confidences."""
    return str(getattr(decoder, "description", "greedy"))


def model_identity(path: Path) -> str:
    """SHA-256 of a checkpoint, or of that from which a folder was exported: the same for both.

    Raises:
        ModelFolderError: the folder is no exported model, or does not say of which checkpoint.
        CalibrationError: the checkpoint cannot be read.
    """
    from kvarts.model_folder import CONFIG, read_config

    if path.is_dir():
        identity = read_config(path).get("checkpoint_sha256")
        if not isinstance(identity, str):
            raise ModelFolderError(f"{path / CONFIG} does not say of which checkpoint it is: export the model again")
        return identity
    try:
        return sha256_of(path)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}); check the path") from None


# --- What is known of a word and an utterance -------------------------------------------------------------------------


def evidenced(decoder: Decoder, log_probs: NDArray[np.float32]) -> list[WordFrames]:
    """The words of log_probs (time, 34), with all that the decoder knows of them."""
    with_posteriors: Decoder = getattr(decoder, "with_posteriors", decoder)
    return with_posteriors(log_probs)


def word_features(words: Sequence[WordFrames], log_probs: NDArray[np.floating[Any]]) -> Floats:
    """What the confidence of each word is computed from.

    Returns:
        (words, 5): logit of the decoder's confidence; logit of the weakest place, the smallest over the runs of equal
        best labels from the word's first frame to its last, blanks included, of the run's highest probability; natural
        logarithm of the number of letters; logit of the posterior, less that of certainty, so 0 where there is but one
        text; 1 for a word outside the vocabulary, else 0. With a language model (validation, 34 utterances, 476 words,
        cross-validated) the last two bring the log-loss from 0.617 to 0.541 a word and the area under the ROC curve
        from 0.69 to 0.77. Greedy (361 and 468 words as a training went on, log-loss 0.25 and 0.52), mean entropy
        changed it by +0.002 and -0.008, margins of the best two labels by less than 0.002.
    """
    labels = log_probs.argmax(axis=1)
    best = log_probs.max(axis=1).astype(np.float64)
    rows = np.zeros((len(words), len(_WORD_PRIOR) - 1))
    for row, word in zip(rows, words, strict=True):
        inside = labels[word.start : word.stop]
        runs = np.concatenate([[0], np.flatnonzero(inside[1:] != inside[:-1]) + 1])
        weakest = np.maximum.reduceat(best[word.start : word.stop], runs).min()
        row[:] = (
            _logit(math.log(max(word.confidence, 1e-300))),
            _logit(weakest),
            math.log(len(word.text)),
            _logit(math.log(max(word.posterior, _NEAREST_CERTAINTY))) - _logit(0.0),
            not word.is_known,
        )
    return rows


def letters_outside(words: Sequence[WordFrames], log_probs: NDArray[np.floating[Any]]) -> float:
    """The sum, over the frames outside all words, of the probability of a letter: neither blank nor space."""
    letters = 1 - np.exp(log_probs[:, [BLANK_ID, _SPACE_ID]].astype(np.float64)).sum(axis=1)
    for word in words:
        letters[word.start : word.stop] = 0
    return float(np.maximum(letters, 0).sum())


def words_right(reference: str, words: Sequence[str]) -> Bools:
    """Which recognised words are right: those that a shortest way from the reference to them leaves as they are.

    A word that was missed (a deletion) has no recognised word that would be wrong for it; it makes the utterance wrong.

    Args:
        reference: raw; it goes through `kvarts.text.normalise`.
    """
    from rapidfuzz.distance import Levenshtein

    right = np.ones(len(words), bool)
    for operation in Levenshtein.editops(normalise(reference).split(), list(words)):
        if operation.tag != "delete":
            right[operation.dest_pos] = False
    return right


@dataclass(frozen=True)
class Evidence:
    """What is known of one recognised utterance of validation data.

    Attributes:
        features: (words, 5), of `word_features`.
        outside: of `letters_outside`.
        words_right: (words,).
        is_right: whether all words are right and none was missed.
    """

    features: Floats
    outside: float
    words_right: Bools
    is_right: bool


def evidence(reference: str, words: Sequence[WordFrames], log_probs: NDArray[np.floating[Any]]) -> Evidence:
    """What a reference says of the words that were recognised in `log_probs` (time, 34)."""
    texts = [word.text for word in words]
    return Evidence(
        features=word_features(words, log_probs),
        outside=letters_outside(words, log_probs),
        words_right=words_right(reference, texts),
        is_right=normalise(reference).split() == texts,
    )


def _logit(log_probability: float) -> float:
    """ln(p / (1 - p)) of ln p, p at most 1 - 1e-6."""
    limited = min(log_probability, math.log1p(-_NEAREST_CERTAINTY))
    return limited - math.log(-math.expm1(limited))


def _logistic(values: Floats) -> Floats:
    # By its half angle: exp would overflow for what is far from 0.
    return 0.5 + 0.5 * np.tanh(values / 2)


def _word_confidences(weights: Sequence[float] | Floats, features: Floats) -> Floats:
    return _logistic(weights[0] + features @ np.asarray(weights[1:]))


def _utterance_confidence(weights: Sequence[float] | Floats, confidences: Floats, outside: float) -> float:
    return float(_logistic(weights[0] + weights[1] * np.asarray(_independent(confidences, outside))))


def _independent(confidences: Floats, outside: float) -> float:
    """The logit that all is right, if words are so independently and the number of missed letters is Poisson's."""
    return _logit(float(np.log(np.maximum(confidences, 1e-300)).sum()) - outside)


# --- Fitting ----------------------------------------------------------------------------------------------------------


def fit_logistic(
    features: Floats, right: Bools, prior: Floats, *, rising: Sequence[int] = (), ridge: float = 1.0
) -> Floats:
    """Logistic regression by Newton's method, with a ridge: the weights w that minimise

        sum over rows of ln(1 + exp(z)) - right · z  +  ridge / 2 · |w - prior|²,   z = w[0] + features · w[1:]

    with those numbered in `rising` at 0 or above. The ridge holds what the data says nothing of, so there is always one
    solution, even if all rows are right; of some hundred rows it has little to say.

    Args:
        features: (rows, n).
        right: (rows,).
        prior: (n + 1,), the intercept's first.

    Returns:
        (n + 1,).
    """
    matrix = np.column_stack([np.ones(len(features)), features])

    def loss(weights: Floats) -> float:
        scores = matrix @ weights
        return float((np.logaddexp(0, scores) - right * scores).sum() + ridge / 2 * ((weights - prior) ** 2).sum())

    def minimum(free: Bools) -> Floats:
        weights = np.where(free, prior, 0.0)
        step = np.zeros_like(weights)
        for _ in range(100):
            chances = _logistic(matrix @ weights)
            slope = matrix.T @ (right - chances) - ridge * (weights - prior)
            curvature = (matrix * (chances * (1 - chances))[:, None]).T @ matrix + ridge * np.eye(len(prior))
            step[free] = np.linalg.solve(curvature[np.ix_(free, free)], slope[free])
            # Far from the minimum a whole step may lead uphill.
            while np.abs(step).max() > 1e-10 and loss(weights + step) > loss(weights):
                step /= 2
            weights = weights + step
            if np.abs(step).max() <= 1e-10:
                break
        return weights

    # The loss is convex: its minimum within bounds is the free minimum of those weights that are not at their bound.
    found = []
    for are_free in product((True, False), repeat=len(rising)):
        free = np.ones(len(prior), bool)
        free[list(rising)] = are_free
        weights = minimum(free)
        if (weights[list(rising)] >= 0).all():
            found.append(weights)
    return min(found, key=loss)


def fit(utterances: Sequence[Evidence]) -> tuple[Floats, Floats]:
    """The weights of words and of utterances, see the module's formula."""
    features = np.concatenate([utterance.features for utterance in utterances])
    right = np.concatenate([utterance.words_right for utterance in utterances])
    word_weights = fit_logistic(features, right, _WORD_PRIOR, rising=(1, 2, 4))
    independent = [
        [_independent(_word_confidences(word_weights, utterance.features), utterance.outside)]
        for utterance in utterances
    ]
    are_right = np.array([utterance.is_right for utterance in utterances])
    return word_weights, fit_logistic(np.array(independent), are_right, _UTTERANCE_PRIOR, rising=(1,))


def check_enough(utterances: Sequence[Evidence]) -> None:
    """Refuses what nothing can be fitted to.

    Raises:
        CalibrationError: fewer than 10 utterances or 50 recognised words, or none of the words wrong or none right.
    """
    words = sum(len(utterance.features) for utterance in utterances)
    right = sum(int(utterance.words_right.sum()) for utterance in utterances)
    needs = f"it takes {LEAST_UTTERANCES} utterances and {LEAST_WORDS} recognised words at least, better ten times that"
    if len(utterances) < LEAST_UTTERANCES or words < LEAST_WORDS:
        raise CalibrationError(
            f"too little to calibrate on ({len(utterances)} utterances, {words} recognised words): {needs}"
        )
    if right in (0, words):
        which = "right" if right == 0 else "wrong"
        raise CalibrationError(
            f"none of the {words} recognised words is {which}, so nothing tells wrong from right: {needs}, and some "
            "words of either kind; give more or other validation data"
        )


@dataclass(frozen=True)
class Scored:
    """Confidences and what came of them: of words, or of utterances.

    Attributes:
        confidences, right: (n,).
        utterance: (n,) number of the utterance that each belongs to.
    """

    confidences: Floats
    right: Bools
    utterance: NDArray[np.int64]


def raw_scores(utterances: Sequence[Evidence]) -> tuple[Scored, Scored]:
    """Words and utterances before calibration: the decoder's confidences, and for an utterance their product."""
    return scores(utterances, [(_WORD_PRIOR, None)] * len(utterances))


def cross_validated_scores(utterances: Sequence[Evidence]) -> tuple[Scored, Scored]:
    """Words and utterances, each scored by weights that were fitted without the tenth of the utterances it is in."""
    fold = _folds(len(utterances))
    fitted = [
        fit([utterance for utterance, number in zip(utterances, fold, strict=True) if number != left_out])
        for left_out in range(FOLDS)
    ]
    return scores(utterances, [fitted[number] for number in fold])


def scores(utterances: Sequence[Evidence], weights: Sequence[tuple[Floats, Floats | None]]) -> tuple[Scored, Scored]:
    """Words and utterances, each utterance scored by weights of its own; None: its words' product."""
    words, wholes = [], []
    for utterance, (word_weights, utterance_weights) in zip(utterances, weights, strict=True):
        words.append(_word_confidences(word_weights, utterance.features))
        wholes.append(
            float(words[-1].prod())
            if utterance_weights is None
            else _utterance_confidence(utterance_weights, words[-1], utterance.outside)
        )
    numbers = np.arange(len(utterances))
    return (
        Scored(
            np.concatenate(words),
            np.concatenate([utterance.words_right for utterance in utterances]),
            numbers.repeat([len(confidences) for confidences in words]),
        ),
        Scored(np.array(wholes), np.array([utterance.is_right for utterance in utterances]), numbers),
    )


def _folds(count: int) -> NDArray[np.int64]:
    """(count,): a number from 0 to 9 of each, drawn once and for all, as many of one as of another."""
    return np.random.default_rng(0).permutation(count) % FOLDS


def fit_commands(command_scores: Floats, right: Bools) -> Floats:
    """The weights of commands, see the module's formula.

    Args:
        command_scores: (n,), finite: `Command.score`.
        right: (n,), whether the command is what was meant.
    """
    return fit_logistic(command_scores[:, None], right, _COMMAND_PRIOR, rising=(1,))


def check_enough_commands(right: Bools) -> None:
    """Refuses what nothing can be fitted to.

    Raises:
        CalibrationError: fewer than 10 utterances, or none of them right or none wrong.
    """
    needs = f"it takes {LEAST_UTTERANCES} utterances at least, better ten times that: commands, and other speech"
    if len(right) < LEAST_UTTERANCES:
        raise CalibrationError(f"too little to calibrate on ({len(right)} utterances): {needs}")
    if right.all() or not right.any():
        which = "wrong" if right.all() else "right"
        raise CalibrationError(f"none of the {len(right)} commands found is {which}, so nothing tells them: {needs}")


def raw_command_scores(command_scores: Floats, right: Bools) -> Scored:
    """Commands before calibration: exp(score)."""
    return Scored(np.exp(command_scores), right, np.arange(len(right)))


def cross_validated_commands(command_scores: Floats, right: Bools) -> Scored:
    """Commands, each scored by weights that were fitted without the tenth it is in."""
    fold = _folds(len(right))
    confidences = np.zeros(len(right))
    for number in range(FOLDS):
        held_out = fold == number
        weights = fit_commands(command_scores[~held_out], right[~held_out])
        confidences[held_out] = scored_commands(command_scores[held_out], right[held_out], weights).confidences
    return Scored(confidences, right, np.arange(len(right)))


def scored_commands(command_scores: Floats, right: Bools, weights: Floats) -> Scored:
    """Commands with the confidences that weights give."""
    return Scored(_logistic(weights[0] + weights[1] * command_scores), right, np.arange(len(right)))


# --- How good it is ---------------------------------------------------------------------------------------------------


def bin_numbers(confidences: Floats, bins: int, equal_mass: bool) -> NDArray[np.int64]:
    """The bin of each: of equal width in [0, 1], or of equal numbers where equal confidences, kept together, allow."""
    if not equal_mass:
        return np.minimum((confidences * bins).astype(np.int64), bins - 1)
    ordered = np.sort(confidences)
    lowest = np.unique(ordered[np.arange(bins) * len(ordered) // bins])
    return np.searchsorted(lowest, confidences, side="right").astype(np.int64) - 1


def calibration_error(confidences: Floats, right: Bools, *, bins: int = 10, equal_mass: bool = False) -> float:
    """Expected calibration error: over bins, |share of the right ones - mean confidence|, weighted by their numbers.

    Of equal width by default (Naeini et al., AAAI 2015). Both kinds are above 0 by chance alone, the more the fewer
    there are.
    """
    gaps = np.bincount(bin_numbers(confidences, bins, equal_mass), weights=right - confidences)
    return float(np.abs(gaps).sum() / len(confidences))


def brier_score(confidences: Floats, right: Bools) -> float:
    """Mean square of confidence less 1 for the right ones, less 0 for the wrong ones (Brier, 1950)."""
    return float(((confidences - right) ** 2).mean())


def area_under_curve(confidences: Floats, right: Bools) -> float:
    """How often a right one has a higher confidence than a wrong one, equal ones half; NaN without one of a kind."""
    wrong = np.sort(confidences[~right])
    if not len(wrong) or len(wrong) == len(right):
        return math.nan
    below = [np.searchsorted(wrong, confidences[right], side=side) for side in ("left", "right")]
    return float(np.mean(below) / len(wrong))


def wilson_interval(share: Floats, size: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
    """The 95 % interval of shares of independent draws (Wilson, «Probable Inference», 1927)."""
    square = 1.959964**2 / size
    middle = (share + square / 2) / (1 + square)
    half = np.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return middle - half, middle + half


MEASURES: Final = {
    "ECE, equal widths": calibration_error,
    "ECE, equal numbers": lambda confidences, right: calibration_error(confidences, right, equal_mass=True),
    "Brier score": brier_score,
    "area under ROC": area_under_curve,
}


def measured(scored: Scored) -> dict[str, tuple[float, float, float]]:
    """Each of `MEASURES`: its value and a 95 % interval, for which utterances are drawn anew.

    Of a calibration error such an interval lies too high: what is drawn anew is never better calibrated by chance.
    """
    from kvarts.bootstrap import utterance_intervals

    def values(rows: NDArray[np.int64]) -> list[float]:
        return [measure(scored.confidences[rows], scored.right[rows]) for measure in MEASURES.values()]

    intervals = utterance_intervals(values, scored.utterance)
    found = zip(MEASURES, values(np.arange(len(scored.right))), intervals, strict=True)
    return {name: (value, low, high) for name, value, (low, high) in found}


@dataclass(frozen=True)
class Threshold:
    """A confidence from which on words, or utterances, are accepted, and what that does to those it was tried on.

    Attributes:
        value: accepted is what has this confidence or a higher one. Above 1: nothing is.
        false_accepts: share of the wrong ones that is accepted; NaN without any.
        false_rejects: share of the right ones that is not; NaN without any.
        accepted: share of all.
    """

    value: float
    false_accepts: float
    false_rejects: float
    accepted: float


def threshold_for(confidences: Floats, right: Bools, false_accept_rate: float) -> Threshold:
    """The lowest threshold that lets through at most this share of the wrong ones; 0 where all may pass.

    Raises:
        ValueError: the rate is not between 0 and 1.
    """
    if not 0 <= false_accept_rate <= 1:
        raise ValueError(f"false_accept_rate {false_accept_rate} is not between 0 and 1")
    wrong = np.sort(confidences[~right])[::-1]
    may_pass = math.floor(false_accept_rate * len(wrong) + 1e-9)  # 0.29 · 100 is 28.999999999999996
    return tried_threshold(
        confidences, right, float(np.nextafter(wrong[may_pass], 2)) if may_pass < len(wrong) else 0.0
    )


def tried_threshold(confidences: Floats, right: Bools, value: float) -> Threshold:
    """What a threshold does to these."""
    accepted = confidences >= value

    def share(which: Bools) -> float:
        return float(which.mean()) if len(which) else math.nan

    return Threshold(value, share(accepted[~right]), share(~accepted[right]), share(accepted))
