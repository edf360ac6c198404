"""The 33 labels of the course's network and the way between text and label ids."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvarts.errors import TextError

# The order is part of every checkpoint: space first, then the Russian letters without ё.
ALPHABET = " абвгдежзийклмнопрстуфхцчшщъыьэюя"
BLANK_ID = len(ALPHABET)  # 33: the CTC blank is the last class
NUM_CLASSES = len(ALPHABET) + 1

_ID_OF = {character: index for index, character in enumerate(ALPHABET)}
_FOREIGN_ID: Final = 255
# By the character's number in Unicode; the last is all others'.
_ID_AT: Final = np.full(max(map(ord, ALPHABET)) + 2, _FOREIGN_ID, np.uint8)
_ID_AT[list(map(ord, ALPHABET))] = np.arange(len(ALPHABET))
_SHOWN: Final = 30  # characters before and behind a foreign one that a message quotes of a long text


def foreign_characters(text: str) -> str:
    """The distinct characters of `text` that have no label, in order of first appearance."""
    return "".join(character for character in dict.fromkeys(text) if character not in _ID_OF)


def encode(text: str) -> list[int]:
    """Label ids of a normalised text.

    Raises:
        TextError: a character has no label.
    """
    if foreign := foreign_characters(text):
        raise TextError(f"text {text!r} has characters outside the alphabet: {foreign!r}")
    return [_ID_OF[character] for character in text]


def encode_long(text: str) -> NDArray[np.uint8]:
    """(characters,) label ids of a normalised text, as of a whole vocabulary: from some hundred characters on faster.

    Raises:
        TextError: a character has no label.
    """
    ids = _ID_AT[np.minimum(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), len(_ID_AT) - 1)]
    if (ids == _FOREIGN_ID).any():
        at = int((ids == _FOREIGN_ID).argmax())
        around = text[max(at - _SHOWN, 0) : at + _SHOWN]
        raise TextError(f"text «…{around}…» has characters outside the alphabet: {foreign_characters(text)!r}")
    return ids


def decode(label_ids: Iterable[int]) -> str:
    """Text of label ids (no blanks, repeats already merged)."""
    return "".join(ALPHABET[label_id] for label_id in label_ids)


def min_ctc_frames(label_ids: list[int]) -> int:
    """Encoded frames CTC needs for a target: one a label, and a blank between two equal neighbours."""
    repeats = sum(first == second for first, second in pairwise(label_ids))
    return len(label_ids) + repeats
