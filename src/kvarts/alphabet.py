"""The 33 labels of the course's network and the way between text and label ids."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from kvarts.errors import TextError

# The order is part of every checkpoint: space first, then the Russian letters without ё.
ALPHABET = " абвгдежзийклмнопрстуфхцчшщъыьэюя"
BLANK_ID = len(ALPHABET)  # 33: the CTC blank is the last class
NUM_CLASSES = len(ALPHABET) + 1

_ID_OF = {character: index for index, character in enumerate(ALPHABET)}


def foreign_characters(text: str) -> str:
    """The distinct characters of `text` that have no label, in order of first appearance."""
    return "".join(dict.fromkeys(character for character in text if character not in _ID_OF))


def encode(text: str) -> list[int]:
    """Label ids of a normalised text.

    Raises:
        TextError: a character has no label.
    """
    foreign = foreign_characters(text)
    if foreign:
        raise TextError(f"text {text!r} has characters outside the alphabet: {foreign!r}")
    return [_ID_OF[character] for character in text]


def decode(label_ids: Iterable[int]) -> str:
    """Text of label ids (no blanks, repeats already merged)."""
    return "".join(ALPHABET[label_id] for label_id in label_ids)


def min_ctc_frames(label_ids: list[int]) -> int:
    """Encoded frames CTC needs for a target: one a label, and a blank between two equal neighbours."""
    repeats = sum(first == second for first, second in pairwise(label_ids))
    return len(label_ids) + repeats
