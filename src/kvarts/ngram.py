"""N-gram language models of words: interpolated modified Kneser–Ney smoothing, written in ARPA format.

S. F. Chen and J. Goodman, «An empirical study of smoothing techniques for language modeling», Computer Speech and
Language 13 (1999), section 3; pruning as K. Heafield et al., «Scalable modified Kneser–Ney language model estimation»,
ACL 2013, do it: what is pruned goes into the backoff weight of its context.

All n-grams of one order are rows of arrays. An n-gram of order n is known by a number, and by the numbers of two of
order n - 1: of its context (all words but the last) and of its suffix (all words but the first). So a row needs two
integers whatever its order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

BEGIN: Final = "<s>"
END: Final = "</s>"
UNKNOWN: Final = "<unk>"

MAX_ORDER: Final = 9

_BEGIN_ID, _END_ID, _UNKNOWN_ID = 0, 1, 2
# Of counts of 0, 1, 2, and 3 or more, where there are too few n-grams to estimate them, as of a hundred commands.
_FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)
_LOG10_OF_NOTHING = -99.0  # what ARPA files write for «<s>», which is never predicted

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NGrams:
    """All n-grams of one order, a row each.

    Attributes:
        context: (rows,) the row of the n-gram without its last word, of the order below; of words 0.
        suffix: (rows,) the row of the n-gram without its first word, of the order below; of words 0.
        word: (rows,) its last word.
        log10_probability: (rows,) of the last word after the context.
        log10_backoff: (rows,) weight of what a longer n-gram backs off to; 0 where no longer one begins with this.
    """

    context: Integers
    suffix: Integers
    word: Integers
    log10_probability: Floats
    log10_backoff: Floats


@dataclass(frozen=True)
class LanguageModel:
    """A backoff model.

    Attributes:
        words: by number; «<s>», «</s>» and «<unk>» are the first three.
        orders: its n-grams, those of one word first; row k of them is word k.
        discounts: of each order, what is taken off counts of 1, 2, and 3 or more.
    """

    words: tuple[str, ...]
    orders: tuple[NGrams, ...]
    discounts: tuple[tuple[float, float, float], ...]

    def arpa(self) -> Iterator[str]:
        """The lines of an ARPA file, with their ends."""
        yield "\\data\\\n"
        for order, grams in enumerate(self.orders, start=1):
            yield f"ngram {order}={len(grams.word)}\n"
        texts: list[str] = [""]
        for order, grams in enumerate(self.orders, start=1):
            yield f"\n\\{order}-grams:\n"
            words = [self.words[word] for word in grams.word]
            # The texts of the order below are needed for this one's, and only they.
            if order > 1:
                words = [f"{texts[context]} {word}" for context, word in zip(grams.context, words, strict=True)]
            texts = words
            is_last = order == len(self.orders)
            for text, probability, backoff in zip(texts, grams.log10_probability, grams.log10_backoff, strict=True):
                yield f"{probability:.6f}\t{text}\n" if is_last else f"{probability:.6f}\t{text}\t{backoff:.6f}\n"
        yield "\n\\end\\\n"


@dataclass(frozen=True)
class _Counted:
    """All n-grams of one order that were seen; see `NGrams`."""

    context: Integers
    suffix: Integers
    word: Integers
    raw: Integers  # how often it was seen
    adjusted: Integers  # after how many words it was seen; of the longest, and behind «<s>», how often


def train(sentences: Iterable[Sequence[str]], order: int = 3, prune: Sequence[int] = ()) -> LanguageModel:
    """Estimates a model.

    Args:
        sentences: the words of each.
        order: the longest n-gram, from 1 to 9.
        prune: of each order above the first, the highest count of n-grams that are left out; orders beyond those given
            are as the last one given, by default 0.

    Raises:
        ValueError: no sentence, an order that is none, or thresholds that are too many, negative, or fall.
    """
    thresholds = _thresholds(order, prune)
    words, ids, places = _numbered(sentences)
    if len(words) == _UNKNOWN_ID + 1:
        raise ValueError("there is no word to count")
    counted = _counted(ids, places, order, len(words))
    discounts = [_discounts(grams.adjusted) for grams in counted]
    kept = [grams.raw > threshold for grams, threshold in zip(counted, thresholds, strict=True)]
    kept[0][:] = True
    contexts = [1, *(len(grams.raw) for grams in counted[:-1])]
    backoffs = [_backoff(*of_order) for of_order in zip(counted, discounts, kept, contexts, strict=True)]
    orders: list[NGrams] = []
    shorter = np.array([1 / (len(words) - 1)])  # probabilities of the order below; any word but «<s>» may come
    row_of = np.zeros(1, np.int64)  # of the order below: which of its rows are left, under which number
    for index, grams in enumerate(counted):
        total = np.bincount(grams.context, grams.adjusted, len(backoffs[index]))
        own = np.maximum(grams.adjusted - discounts[index][np.minimum(grams.adjusted, 3)], 0) / total[grams.context]
        probability = own + backoffs[index][grams.context] * shorter[grams.suffix]
        backoff = backoffs[index + 1] if index + 1 < order else np.zeros(len(probability))
        log10_probability = np.log10(probability)
        if index == 0:
            log10_probability[_BEGIN_ID] = _LOG10_OF_NOTHING
        orders.append(
            NGrams(
                row_of[grams.context[kept[index]]],
                row_of[grams.suffix[kept[index]]],
                grams.word[kept[index]],
                log10_probability[kept[index]],
                np.log10(np.where(backoff > 0, backoff, 1.0))[kept[index]],
            )
        )
        shorter, row_of = probability, np.cumsum(kept[index]) - 1
    return LanguageModel(tuple(words), tuple(orders), tuple((d1, d2, d3) for _, d1, d2, d3 in map(list, discounts)))


def _thresholds(order: int, prune: Sequence[int]) -> list[int]:
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order {order}: must be from 1 to {MAX_ORDER}")
    if len(prune) > order - 1:
        raise ValueError(f"{len(prune)} thresholds: orders 2 to {order} have {order - 1}")
    if any(threshold < 0 for threshold in prune) or list(prune) != sorted(prune):
        raise ValueError(f"thresholds {list(prune)}: none may be negative or lower than that of a shorter n-gram")
    return [0, *prune, *[prune[-1] if prune else 0] * (order - 1 - len(prune))]


def _numbered(sentences: Iterable[Sequence[str]]) -> tuple[list[str], Integers, Integers]:
    """The words; their numbers, sentence after sentence with «<s>» and «</s>»; and each one's place in its sentence."""
    numbers = {BEGIN: _BEGIN_ID, END: _END_ID, UNKNOWN: _UNKNOWN_ID}
    ids, places = array("q"), array("q")
    for sentence in sentences:
        ids.append(_BEGIN_ID)
        ids.extend(numbers.setdefault(word, len(numbers)) for word in sentence)
        ids.append(_END_ID)
        places.extend(range(len(sentence) + 2))
    return list(numbers), np.array(ids, np.int64), np.array(places, np.int64)


def _counted(ids: Integers, places: Integers, order: int, num_words: int) -> list[_Counted]:
    """The n-grams of every order."""
    all_words = np.arange(num_words)
    nothing = np.zeros(num_words, np.int64)
    found = [_Counted(nothing, nothing, all_words, np.bincount(ids, minlength=num_words), nothing)]
    behind_begin = [all_words == _BEGIN_ID]  # which begin with «<s>»
    ending = ids  # at each place the number of the n-gram that ends there
    for length in range(2, order + 1):
        at = np.flatnonzero(places >= length - 1)
        keys, first, inverse, raw = np.unique(
            ending[at - 1] * num_words + ids[at], return_index=True, return_inverse=True, return_counts=True
        )
        context, word = np.divmod(keys, num_words)
        found.append(_Counted(context, ending[at[first]], word, raw, raw))
        behind_begin.append(places[at[first]] == length - 1)
        ending = np.zeros_like(ids)
        ending[at] = inverse
    for index, grams in enumerate(found):
        adjusted = grams.raw
        if index + 1 < order:
            words_before = np.bincount(found[index + 1].suffix, minlength=len(grams.raw))
            adjusted = np.where(behind_begin[index], grams.raw, words_before)
        if index == 0:  # «<s>» is never predicted
            adjusted = np.where(all_words == _BEGIN_ID, 0, adjusted)
        found[index] = replace(grams, adjusted=adjusted)
    return found


def _discounts(adjusted: Integers) -> Floats:
    """What is taken off counts of 0, 1, 2, and 3 or more: (4,)."""
    n1, n2, n3, n4 = np.bincount(adjusted, minlength=5)[1:5].tolist()
    if 0 in (n1, n2, n3):
        return np.array(_FALLBACK_DISCOUNTS)
    y = n1 / (n1 + 2 * n2)
    found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return found if (found >= 0).all() else np.array(_FALLBACK_DISCOUNTS)


def _backoff(grams: _Counted, discounts: Floats, kept: NDArray[np.bool_], contexts: int) -> Floats:
    """Of each context, the share that its n-grams leave to shorter ones: discounts, and all of what is pruned."""
    left = np.where(kept, discounts[np.minimum(grams.adjusted, 3)], grams.adjusted)
    total = np.bincount(grams.context, grams.adjusted, contexts)
    return np.asarray(np.bincount(grams.context, left, contexts) / np.maximum(total, 1))
