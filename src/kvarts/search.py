"""Beam search: the text that the sound, a language model and the words one expects agree on best.

A CTC prefix search (A. Hannun et al., «First-pass large vocabulary continuous speech recognition using bi-directional
recurrent DNNs», 2014, arXiv 1408.2873) for

    log P(letters | sound) + lm_weight · log P(words) + word_bonus · number of words
                           + unknown_penalty · words outside the vocabulary + spelling_weight · log P(their letters)
                           + bonus of the hot words,

all in natural logarithms. P(letters | sound) sums the ways that give the same letters; what the network says of a frame
may be softened before, see `softened`. A word outside the vocabulary
costs the more the less it is spelt like the words of the vocabulary (`kvarts.spelling`); at one price for any of them,
several words run together would be cheapest. While a word is not finished, the most probable word that may still come
of it stands in for it. search.c does the work; where there is no C
compiler, search_plain.py does, to the same result.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvarts import search_plain
from kvarts.alphabet import NUM_CLASSES, decode
from kvarts.arpa import END_ID, UNKNOWN_ID, BackoffModel
from kvarts.compiled import NoLibraryError, compiled
from kvarts.decoding import WordFrames
from kvarts.errors import ConfigError
from kvarts.files import digest_of
from kvarts.hotwords import Hotwords
from kvarts.spelling import spelling_model
from kvarts.vocabulary import LetterTree, letter_tree

logger = logging.getLogger(__name__)

# With a width of 8 and a temperature of 2, 19.9 % of the words of the validation set were wrong and 39.2 in rooms, as
# many as with 400 and a width of 10 (20.1 and 39.2) in a third of the time; with 100 and 10 it was 20.8 and 41.5.
DEFAULT_BEAM: Final = 200
# Of 100 (validation, 476 words, with a language model) the words' confidences are no better: log-loss 0.541 for both,
# 0.539 of 10 and 0.552 of 5, at 0.7 to 5 ms for 10 s of speech.
_ALTERNATIVES: Final = 20
_LEAST_PRIOR: Final = 1e-6  # of a label that hardly ever comes


@dataclass(frozen=True)
class Weights:
    """What words weigh against the sound, in natural logarithms, and how sure the network is believed to be of it.

    Attributes:
        lm_weight: times the log-probability of the language model.
        word_bonus: added for each word, where there is a language model.
        unknown_penalty: added for each word outside the vocabulary, where there is one.
        spelling_weight: times the log-probability of the letters of such a word.
        temperature, prior_weight, label_prior: see `softened`; label_prior is None where there is none.
    """

    lm_weight: float = 0.5
    word_bonus: float = 0.5
    unknown_penalty: float = 0.0
    spelling_weight: float = 0.5
    temperature: float = 1.0
    prior_weight: float = 0.0
    label_prior: tuple[float, ...] | None = None

    def check(self) -> None:
        """Raises:
        ConfigError: a weight is impossible.
        """
        if not 0 <= self.lm_weight <= 100:
            raise ConfigError(f"weight of the language model {self.lm_weight}: must be from 0 to 100")
        if not -100 <= self.word_bonus <= 100:
            raise ConfigError(f"word bonus {self.word_bonus}: must be from -100 to 100")
        if not -1000 <= self.unknown_penalty <= 0:
            raise ConfigError(f"penalty of unknown words {self.unknown_penalty}: must be from -1000 to 0")
        if not 0 <= self.spelling_weight <= 100:
            raise ConfigError(f"weight of the spelling {self.spelling_weight}: must be from 0 to 100")
        if not 0.1 <= self.temperature <= 100:
            raise ConfigError(f"temperature {self.temperature}: must be from 0.1 to 100")
        if not 0 <= self.prior_weight <= 100:
            raise ConfigError(f"weight of the label prior {self.prior_weight}: must be from 0 to 100")
        if self.label_prior is None:
            if self.prior_weight:
                raise ConfigError(f"label prior {self.prior_weight}: no prior is known; run kvarts lm tune")
        elif len(self.label_prior) != NUM_CLASSES or not all(-1000 <= value <= 0 for value in self.label_prior):
            raise ConfigError(f"the label prior must be {NUM_CLASSES} log-probabilities")


@dataclass(frozen=True)
class Rules:
    """What a search goes by.

    Attributes:
        language_model: or None.
        tree: the vocabulary, or None where any letters are a word.
        word: (tree's nodes,) int32, number in the language model of the word that ends there, 2 («<unk>») of one that
            it does not have; -1 where none ends.
        best_word: (tree's nodes,) float32, highest log-probability of a single word that ends there or below.
        spelling: of `kvarts.spelling.spelling_model`.
        hotwords: or None.
        beam: prefixes that are kept after a frame.
        width: those that score so much less than the best are not kept.
        least_log_prob: labels below it are not tried, unless the best one of the frame.
        is_closed: no words but those of the vocabulary.
    """

    language_model: BackoffModel | None
    tree: LetterTree | None
    word: NDArray[np.int32]
    best_word: NDArray[np.float32]
    spelling: NDArray[np.float32]
    hotwords: Hotwords | None
    beam: int
    width: float
    least_log_prob: float
    is_closed: bool
    weights: Weights

    @property
    def lm_weight(self) -> float:
        """0 without a language model."""
        return 0.0 if self.language_model is None else self.weights.lm_weight

    @property
    def word_bonus(self) -> float:
        """0 without a language model."""
        return 0.0 if self.language_model is None else self.weights.word_bonus


@dataclass(frozen=True)
class Hypothesis:
    """A text that was found.

    Attributes:
        labels: its letters and single spaces, as label ids.
        sound: log P(labels | sound), over all ways that were kept, of log-probabilities as the search believes them.
        words: all else that makes up the score.
    """

    labels: tuple[int, ...]
    sound: float
    words: float

    @property
    def text(self) -> str:
        """The labels as text."""
        return decode(self.labels)


class BeamSearch:
    """A decoder (`kvarts.decoding.Decoder`); may be used from several threads at once.

    Args:
        language_model: see `kvarts.arpa.read_arpa`; its words are the vocabulary.
        hotwords: see `kvarts.hotwords`; their words belong to the vocabulary, if there is one.
        vocabulary: further words, or, without a language model, all.
        is_closed: give no words but those of the vocabulary.
        beam, width, least_log_prob: see `Rules`.
        weights: of all but the hot words.
        is_compiled: None: in C if that can be had; False: in Python.

    Raises:
        ConfigError: a setting is impossible, or the vocabulary should be closed and there is none.
    """

    def __init__(
        self,
        *,
        language_model: BackoffModel | None = None,
        hotwords: Hotwords | None = None,
        vocabulary: Sequence[str] = (),
        is_closed: bool = False,
        beam: int = DEFAULT_BEAM,
        width: float = 8.0,
        least_log_prob: float = -5.0,
        weights: Weights = Weights(),
        is_compiled: bool | None = None,
    ) -> None:
        if not 1 <= beam <= 100_000:
            raise ConfigError(f"beam {beam}: must be from 1 to 100000")
        if not width > 0:
            raise ConfigError(f"width {width}: must be above 0")
        weights.check()
        words = dict.fromkeys(vocabulary)
        number_of: dict[str, int] = {}
        if language_model is not None:
            words.update(dict.fromkeys(language_model.words[UNKNOWN_ID + 1 :]))
            number_of = language_model.ids
        if is_closed and not words:
            raise ConfigError("a closed vocabulary needs words: give a language model or a list of words")
        if hotwords is not None and words:
            words.update(dict.fromkeys(sorted(hotwords.words())))
        tree, word = None, np.zeros(0, np.int32)
        best_word, spelling = np.zeros(0, np.float32), np.zeros(0, np.float32)
        if words:
            tree = letter_tree(list(words))
            numbers = np.fromiter(map(number_of.get, words, repeat(UNKNOWN_ID)), np.int32, len(words))
            word = np.where(tree.word >= 0, numbers[tree.word], -1).astype(np.int32)
            single = np.zeros(len(words), np.float32)
            if language_model is not None:
                single = language_model.log_probability[1 + numbers]
            best_word = tree.highest_below(single)
            spelling = spelling_model(list(words))
        self._hotwords = hotwords
        hot = self._softened_hotwords(weights)
        self.rules = Rules(
            language_model, tree, word, best_word, spelling, hot, beam, width, least_log_prob, is_closed, weights
        )
        self._native = None if is_compiled is False else _library()
        if is_compiled and self._native is None:
            raise ConfigError("the search in C could not be compiled: install a C compiler")
        self._in_c = None if self._native is None else _InC(self.rules)

    def weighing(self, weights: Weights) -> BeamSearch:
        """The same search with other weights; shares all that is large."""
        weights.check()
        other = copy.copy(self)
        other.rules = replace(self.rules, weights=weights, hotwords=self._softened_hotwords(weights))
        other._in_c = None if self._native is None else _InC(other.rules)
        return other

    def _softened_hotwords(self, weights: Weights) -> Hotwords | None:
        """Their bonuses are meant for what the network says; where that is softened, so are they."""
        return None if self._hotwords is None else self._hotwords.divided(weights.temperature)

    @property
    def description(self) -> str:
        """What a calibration has to agree with: all that decides which words come out, what is long as a digest."""
        rules = self.rules
        weights = rules.weights
        parts = [f"beam {rules.beam}, width {rules.width:g}, labels from {rules.least_log_prob:g}"]
        if weights.temperature != 1:
            parts += [f"temperature {weights.temperature:g}"]
        if weights.prior_weight:
            parts += [f"label prior {digest_of(repr(weights.label_prior))}, weight {weights.prior_weight:g}"]
        if rules.language_model is not None:
            model = rules.language_model
            digest = digest_of(*model.words, model.log_probability, model.backoff)
            parts += [f"language model {digest}, weight {rules.lm_weight:g}, word bonus {rules.word_bonus:g}"]
        if rules.tree is not None:
            unknown = f"others {weights.unknown_penalty:g} and by their spelling, weight {weights.spelling_weight:g}"
            unknown = "no others" if rules.is_closed else unknown
            parts += [f"vocabulary {digest_of(rules.tree.mask, rules.word)}, {unknown}"]
        if rules.hotwords is not None:
            parts += [f"hot words {digest_of(repr(sorted(rules.hotwords.phrases.items())))}"]
        return ", ".join(parts)

    def __call__(self, log_probs: NDArray[np.float32]) -> list[WordFrames]:
        """The words of log_probs (time, 34), with their frames on the most probable way through them."""
        best = self.hypotheses(log_probs, 1)
        return align_words(log_probs, best[0].labels, self._native) if best else []

    def with_posteriors(self, log_probs: NDArray[np.float32]) -> list[WordFrames]:
        """As when called, and of each word its posterior among the best texts, and whether it is in the vocabulary.

        The posteriors are those of G. Evermann and P. Woodland, «Posterior probability decoding, confidence estimation
        and system combination» (2000), over the `_ALTERNATIVES` best texts in place of a lattice.
        """
        found = self.hypotheses(log_probs, _ALTERNATIVES)
        if not found:
            return []
        words = align_words(log_probs, found[0].labels, self._native)
        posteriors = word_posteriors(found)
        return [
            replace(word, posterior=posterior, is_known=self._knows(word.text))
            for word, posterior in zip(words, posteriors, strict=True)
        ]

    def _knows(self, word: str) -> bool:
        tree = self.rules.tree
        return tree is None or tree.has(word)

    def hypotheses(self, log_probs: NDArray[np.float32], wanted: int) -> list[Hypothesis]:
        """The best texts of log_probs (time, 34), best first, at most `wanted`.

        Raises:
            ValueError: the shape is another.
        """
        _check_shape(log_probs)
        log_probs = softened(log_probs, self.rules.weights)
        if self._native is None or self._in_c is None:
            return [Hypothesis(*found) for found in search_plain.beam_search(self.rules, log_probs, wanted)]
        return self._in_c.hypotheses(self._native, log_probs, wanted)


def label_prior(log_probs: Sequence[NDArray[np.float32]]) -> tuple[float, ...]:
    """How probable the network finds each label in any frame: logarithms of the means over all frames of (time, 34)."""
    total = np.sum([np.exp(one, dtype=np.float64).sum(axis=0) for one in log_probs], axis=0)
    mean = total / max(1, sum(map(len, log_probs)))
    return tuple(np.log(np.maximum(mean, _LEAST_PRIOR)).round(4).tolist())


def softened(log_probs: NDArray[np.float32], weights: Weights) -> NDArray[np.float32]:
    """What the search believes of log_probs (time, 34): as many log-probabilities, in each frame those of

        P(label)^(1 / temperature) / prior(label)^prior_weight, made to sum to 1.

    A network is surest of what it has learnt by heart, so a temperature above 1 (Guo et al., «On Calibration of Modern
    Neural Networks», 2017) leaves the language model more to say where it hesitates. And it knows which letters are
    frequent, as the language model does: its prior, most of it the blank's, counts twice unless divided by (Y. Miao et
    al., «EESEN», 2015, arXiv 1507.08240). With both, tuned with all other weights, 29.7 % of the words of 34 validation
    utterances, close and in rooms, were wrong, without them 33.2 (`kvarts lm tune`, weights that shipped earlier).
    """
    if weights.temperature == 1 and weights.prior_weight == 0:
        return log_probs
    logits = log_probs.astype(np.float64) / weights.temperature
    if weights.label_prior is not None:
        logits -= weights.prior_weight * np.array(weights.label_prior)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits.astype(np.float32)


def word_posteriors(hypotheses: Sequence[Hypothesis]) -> list[float]:
    """Of each word of the first text, the share of the probability of all that has it in this place.

    Places are the matching blocks of `difflib`, which every Python has.
    """
    scores = np.array([hypothesis.sound + hypothesis.words for hypothesis in hypotheses])
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = hypotheses[0].text.split()
    posteriors = np.zeros(len(best))
    matcher = SequenceMatcher(b=best, autojunk=False)
    for share, hypothesis in zip(shares, hypotheses, strict=True):
        matcher.set_seq1(hypothesis.text.split())
        for block in matcher.get_matching_blocks():
            posteriors[block.b : block.b + block.size] += share
    return np.minimum(posteriors, 1.0).tolist()  # type: ignore[no-any-return]


def align_words(
    log_probs: NDArray[np.float32], labels: Sequence[int], native: ctypes.CDLL | None = None
) -> list[WordFrames]:
    """The words of a text, with their frames, and confidences as `kvarts.decoding.greedy_words` has them.

    Args:
        log_probs: (time, 34).
        labels: letters and single spaces, neither first nor last a space.
    """
    ids = np.array(labels, np.int32)
    frames = align(log_probs, ids, native)
    if frames is None:
        raise ValueError(f"{len(log_probs)} frames are too few for {len(ids)} labels")
    starts, stops = frames
    best = np.array([log_probs[start:stop, label].max() for start, stop, label in zip(starts, stops, ids, strict=True)])
    words = []
    begin = 0
    for text in decode(labels).split(" ") if len(ids) else []:
        end = begin + len(text)
        confidence = float(np.exp(best[begin:end].mean()))
        words.append(WordFrames(text, int(starts[begin]), int(stops[end - 1]), confidence))
        begin = end + 1
    return words


def align(
    log_probs: NDArray[np.float32], labels: NDArray[np.int32], native: ctypes.CDLL | None = None
) -> NDArray[np.int32] | None:
    """The most probable way through a text (Viterbi).

    Spaces at the ends of an utterance, or more than one between words, count as blanks.

    Args:
        log_probs: (time, 34).
        labels: (letters,) int32.
        native: what `_library` gave, None: in Python.

    Returns:
        (2, letters): the first frame of each letter and the one behind its last; None where there are too few frames.
    """
    _check_shape(log_probs)
    if native is None:
        return search_plain.align(log_probs, labels)
    matrix = np.ascontiguousarray(log_probs, np.float32)
    frames = np.zeros((2, len(labels)), np.int32)
    starts, stops = map(_pointer, frames)
    found = native.align(_pointer(matrix), len(matrix), _pointer(labels), len(labels), starts, stops)
    if found < 0:
        raise MemoryError("the alignment found no memory")
    return frames if found else None


def _check_shape(log_probs: NDArray[np.float32]) -> None:
    if log_probs.ndim != 2 or log_probs.shape[1] != NUM_CLASSES:
        raise ValueError(f"log_probs must be (time, {NUM_CLASSES}), got {log_probs.shape}")


# --- search.c ---------------------------------------------------------------------------------------------------------


class _Vocabulary(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("mask", "first_child", "word", "best_word", "spelling")]


class _LanguageModel(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("log_probability", "backoff", "suffix", "word", "first_child")),
        ("begin", ctypes.c_int32),
        ("end_word", ctypes.c_int32),
    ]


class _Hotwords(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("next", "reward", "promise")]


class _Search(ctypes.Structure):
    _fields_ = [
        ("vocabulary", ctypes.POINTER(_Vocabulary)),
        ("language_model", ctypes.POINTER(_LanguageModel)),
        ("hotwords", ctypes.POINTER(_Hotwords)),
        ("beam", ctypes.c_int32),
        ("is_closed", ctypes.c_int32),
        ("width", ctypes.c_double),
        ("least_log_prob", ctypes.c_double),
        ("lm_weight", ctypes.c_double),
        ("word_bonus", ctypes.c_double),
        ("unknown_penalty", ctypes.c_double),
        ("spelling_weight", ctypes.c_double),
    ]


class _InC:
    """Rules as search.c reads them. The arrays belong to the rules, which must live as long as this."""

    def __init__(self, rules: Rules) -> None:
        self._kept: list[Any] = []
        self.search = _Search(
            beam=rules.beam,
            is_closed=rules.is_closed,
            width=rules.width,
            least_log_prob=rules.least_log_prob,
            lm_weight=rules.lm_weight,
            word_bonus=rules.word_bonus,
            unknown_penalty=rules.weights.unknown_penalty,
            spelling_weight=rules.weights.spelling_weight,
        )
        if rules.tree is not None:
            own = self._keep(rules.tree.mask, rules.tree.first_child, rules.word, rules.best_word, rules.spelling)
            self.search.vocabulary = ctypes.pointer(_Vocabulary(*own))
        if rules.language_model is not None:
            model = rules.language_model
            own = self._keep(model.log_probability, model.backoff, model.suffix, model.word, model.first_child)
            self.search.language_model = ctypes.pointer(_LanguageModel(*own, model.begin(), END_ID))
        if rules.hotwords is not None:
            own = self._keep(rules.hotwords.next, rules.hotwords.reward, rules.hotwords.promise)
            self.search.hotwords = ctypes.pointer(_Hotwords(*own))

    def _keep(self, *arrays: NDArray[Any]) -> list[int]:
        whole = [np.ascontiguousarray(array) for array in arrays]
        self._kept += whole
        return [_pointer(array) for array in whole]

    def hypotheses(self, native: ctypes.CDLL, log_probs: NDArray[np.float32], wanted: int) -> list[Hypothesis]:
        """See `BeamSearch.hypotheses`."""
        matrix = np.ascontiguousarray(log_probs, np.float32)
        labels = np.zeros((wanted, len(matrix)), np.int32)
        lengths = np.zeros(wanted, np.int64)
        scores = np.zeros((wanted, 2))
        found = native.beam_search(
            ctypes.byref(self.search), _pointer(matrix), len(matrix), wanted,
            _pointer(labels), _pointer(lengths), _pointer(scores),
        )  # fmt: skip
        if found < 0:
            raise MemoryError("the search found no memory: take a narrower beam")
        return [
            Hypothesis(tuple(labels[row, : lengths[row]].tolist()), float(scores[row, 0]), float(scores[row, 1]))
            for row in range(found)
        ]


def _pointer(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(compiled("search")))
    except (NoLibraryError, OSError) as error:
        logger.warning("beam search in Python, some hundred times slower (%s)", error)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.beam_search.argtypes = [pointer, pointer, number, number, pointer, pointer, pointer]
    library.align.argtypes = [pointer, number, pointer, number, pointer, pointer]
    library.beam_search.restype = library.align.restype = number
    return library
