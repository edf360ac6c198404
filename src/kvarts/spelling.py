"""How likely words are spelt: what tells a word that one does not know from several that were run together.

An n-gram model of letters, estimated from the words of a vocabulary, each counted once: new words are like rare ones
and not like the frequent. Witten and Bell's interpolation («The zero-frequency problem», 1991, method C):

    P(x | h) = (n(h, x) + t(h) · P(x | h without its first letter)) / (n(h) + t(h))

with n how often, and t(h) how many different ones follow h; below all of them every letter is equally likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import ALPHABET, encode_long

LABELS: Final = len(ALPHABET)  # label 0, the space, stands before the first letter and ends a word
ORDER: Final = 4
STATES: Final[int] = LABELS ** (ORDER - 1)


def next_state(state: int, label: int) -> int:
    """The state, the last three labels as a number, after one more."""
    return (state * LABELS + label) % STATES


def spelling_model(words: Sequence[str]) -> NDArray[np.float32]:
    """(states, 33): log-probability of each label after the last three; state 0 stands before a word.

    Raises:
        TextError: a letter has no label.
    """
    between = (ORDER - 1) * " "
    labels = encode_long(between + between.join(words) + between)
    windows = np.lib.stride_tricks.sliding_window_view(labels, ORDER)
    # What begins behind the end of one word and before the next is none.
    windows = windows[(windows[:, -1] > 0) | (windows[:, -2] > 0)]
    places = windows @ LABELS ** np.arange(ORDER - 1, -1, -1)
    counts = np.bincount(places, minlength=LABELS**ORDER).reshape(-1, LABELS).astype(np.float64)
    probability = np.full((1, LABELS), 1 / LABELS)
    for order in range(1, ORDER + 1):
        followers = counts.reshape(-1, LABELS ** (order - 1), LABELS).sum(axis=0)
        total, kinds = followers.sum(axis=1, keepdims=True), (followers > 0).sum(axis=1, keepdims=True)
        lower = np.tile(probability, (LABELS if order > 1 else 1, 1))
        probability = np.where(total > 0, (followers + kinds * lower) / np.maximum(total + kinds, 1), lower)
    logarithms: NDArray[np.float32] = np.log(probability).astype(np.float32)
    return logarithms
