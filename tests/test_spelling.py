"""The spelling model against one of dictionaries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarts.alphabet import ALPHABET, encode
from kvarts.errors import TextError
from kvarts.spelling import LABELS, STATES, next_state, spelling_model


@lru_cache
def counted(words: frozenset[str]) -> dict[str, Counter[str]]:
    """What follows each beginning of three letters and less, a space standing for no letter."""
    found: dict[str, Counter[str]] = {}
    for word in words:
        text = f"   {word} "
        for place in range(3, len(text)):
            for length in range(4):
                found.setdefault(text[place - length : place], Counter())[text[place]] += 1
    return found


def probability(words: Collection[str], history: str, letter: str) -> float:
    """Witten and Bell's, by the book."""
    lower = probability(words, history[1:], letter) if history else 1 / 33
    followers = counted(frozenset(words)).get(history)
    if followers is None:
        return lower
    return (followers[letter] + len(followers) * lower) / (followers.total() + len(followers))


def log_spelling(words: Collection[str], word: str) -> float:
    """log P of a word's letters and its end, by a model of some words."""
    text = f"   {word} "
    return sum(math.log(probability(words, text[place - 3 : place], text[place])) for place in range(3, len(text)))


def of_model(words: list[str], word: str) -> float:
    table = spelling_model(words)
    state, total = 0, 0.0
    for label in [*encode(word), 0]:
        total += float(table[state, label])
        state = next_state(state, label)
    return total


some_words = st.lists(st.text(st.sampled_from(ALPHABET[1:9]), min_size=1, max_size=7), max_size=12, unique=True)


@settings(deadline=None)
@given(some_words, st.text(st.sampled_from(ALPHABET[1:11]), max_size=6))
def test_it_is_that_of_dictionaries(words: list[str], word: str) -> None:
    assert of_model(words, word) == pytest.approx(log_spelling(words, word), abs=1e-4)


def test_what_follows_anything_sums_to_one() -> None:
    table = spelling_model(["мама", "мыла", "раму", "щи"])
    assert table.shape == (STATES, LABELS)
    assert table.dtype == np.float32
    assert np.exp(table).sum(axis=1) == pytest.approx(np.ones(STATES), abs=1e-5)


def test_worked_by_hand() -> None:
    # «а», once: a letter at the beginning, the end behind it. Below all, each of 33 is equally likely.
    end = beginning = (1 + 2 / 33) / (2 + 2)  # of two labels seen, each once
    for _ in range(3):  # with one, two and three labels before it there is but one that follows
        beginning, end = (1 + beginning) / 2, (1 + end) / 2
    assert of_model(["а"], "а") == pytest.approx(math.log(beginning * end), abs=1e-5)


def test_run_together_is_less_likely_than_a_new_word() -> None:
    words = ["дом", "домик", "сад", "садик", "лес", "лесок", "кот", "котик", "нос", "носик", "рот", "ротик"]
    assert of_model(words, "дом") > of_model(words, "том") > of_model(words, "домсадлес")
    assert of_model(words, "лесик") > of_model(words, "лкысе")


def test_letters_without_a_label() -> None:
    with pytest.raises(TextError, match="outside the alphabet"):
        spelling_model(["да", "yes"])


def test_without_words_all_is_alike() -> None:
    assert np.abs(spelling_model([]) + math.log(33)).max() < 1e-5
