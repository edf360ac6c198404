"""Greedy decoding against a loop that follows the definition frame by frame."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvarts.alphabet import ALPHABET, BLANK_ID, NUM_CLASSES
from kvarts.decoding import greedy, greedy_words

# Few labels, so that repeats and blanks between repeats are common.
label_rows = st.lists(st.sampled_from([0, 1, 6, 32, BLANK_ID]), max_size=30)


def one_hot(rows: list[list[int]], frames: int, seed: int) -> NDArray[np.float32]:
    """Scores whose best labels are `rows`; whatever comes after them, up to `frames`, is random."""
    random = np.random.default_rng(seed)
    scores = random.uniform(-9, -1, size=(len(rows), frames, NUM_CLASSES)).astype(np.float32)
    for scores_of_row, row in zip(scores, rows, strict=True):
        scores_of_row[np.arange(len(row)), row] = 0
    return scores


def slow(labels: list[int]) -> str:
    text = ""
    previous = BLANK_ID
    for label in labels:
        if label != BLANK_ID and label != previous:
            text += ALPHABET[label]
        previous = label
    return text


@settings(deadline=None)
@given(rows=st.lists(label_rows, min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_equals_the_slow_loop(rows: list[list[int]], seed: int) -> None:
    scores = one_hot(rows, frames=30, seed=seed)
    assert greedy(scores, [len(row) for row in rows]) == [slow(row) for row in rows]


def test_repeats_merge_and_a_blank_keeps_them_apart() -> None:
    а, б, blank = 1, 2, BLANK_ID
    rows = [[а, а, б, б, б], [а, blank, а], [blank, а, blank, blank, б], [а, 0, а], []]
    assert greedy(one_hot(rows, 6, 0), [len(row) for row in rows]) == ["аб", "аа", "аб", "а а", ""]


def test_takes_tensors_and_no_utterances() -> None:
    scores = torch.from_numpy(one_hot([[1, 2]], 3, 0))
    assert greedy(scores.numpy(), torch.tensor([2])) == ["аб"]
    assert greedy(scores, torch.tensor([2])) == ["аб"]  # type: ignore[arg-type]
    assert greedy(np.empty((0, 5, NUM_CLASSES)), np.empty(0, int)) == []
    assert greedy(np.empty((1, 0, NUM_CLASSES)), [0]) == [""]


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((1, 5, 33), [5]), ((5, 34), [5]), ((2, 5, 34), [5]), ((1, 5, 34), [6]), ((1, 5, 34), [-1])],
)
def test_refuses_shapes_and_lengths_that_do_not_fit(shape: tuple[int, ...], lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        greedy(np.zeros(shape), lengths)


@given(label_rows, st.integers(0, 100))
def test_words_are_those_of_the_text(row: list[int], seed: int) -> None:
    scores = one_hot([row], len(row), seed)
    words = greedy_words(scores[0])
    assert [word.text for word in words] == greedy(scores, [len(row)])[0].split()
    for word in words:
        path = [ALPHABET[label] if label != BLANK_ID else "" for label in row[word.start : word.stop]]
        assert path[0] == word.text[0]
        assert path[-1] == word.text[-1]
        assert " " not in path
    assert all(left.stop < right.start for left, right in itertools.pairwise(words))  # a space at least between


def test_confidence_is_the_mean_of_the_letters_best_frames() -> None:
    probabilities = np.full((5, NUM_CLASSES), 1e-6)
    for frame, (letter, probability) in enumerate([("д", 0.5), ("д", 0.8), ("а", 0.2), (" ", 0.9), ("я", 0.4)]):
        probabilities[frame, ALPHABET.index(letter)] = probability
    first, second = greedy_words(np.log(probabilities))
    assert (first.text, first.start, first.stop) == ("да", 0, 3)
    assert first.confidence == pytest.approx((0.8 * 0.2) ** 0.5)
    assert (second.text, second.start, second.stop) == ("я", 4, 5)
    assert second.confidence == pytest.approx(0.4)
