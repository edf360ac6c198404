"""Word and character errors of one text against another, with their kinds and places. Needs no PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from kvarts.text import normalise

if TYPE_CHECKING:
    from rapidfuzz.distance import Editops

_LARGEST_TABLE: Final = 2_000_000  # cells that an alignment may fill, 2 s; an utterance of 30 s takes some 10,000
_GAP: Final = 0.5  # how unlike a missed or inserted word is: two are as bad as one pair of words with nothing in common
_VOWELS: Final = frozenset("аеёиоуыэюя")


@dataclass(frozen=True)
class ErrorCounts:
    """Edits of a shortest way from the reference to the hypothesis; they add up over utterances."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0  # words or characters of the reference

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )

    @property
    def errors(self) -> int:
        """All edits together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word or character; above 1 where much was inserted.

        Without a reference word there is nothing to divide by: the rate is then the number of insertions (as
        jiwer has it), and so 0 if nothing was recognised either.
        """
        return self.errors / max(self.reference_length, 1)


def total(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    """All of them added up. Adding one by one makes an object for every sum: 8 times as slow."""
    return ErrorCounts(
        substitutions=sum(one.substitutions for one in counts),
        deletions=sum(one.deletions for one in counts),
        insertions=sum(one.insertions for one in counts),
        reference_length=sum(one.reference_length for one in counts),
    )


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors in words. Both texts go through `kvarts.text.normalise` first."""
    return _count(normalise(reference).split(), normalise(hypothesis).split())


def char_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors in characters, the spaces between words included. Both texts go through `normalise` first."""
    return _count(normalise(reference), normalise(hypothesis))


def normalised_errors(reference: str, text: str) -> tuple[ErrorCounts, ErrorCounts]:
    """Errors in words and in characters of texts that went through `normalise` already."""
    return _count(reference.split(), text.split()), _count(reference, text)


def _count(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    if reference == hypothesis:
        return ErrorCounts(reference_length=len(reference))
    # Tuples: to make an object of each edit takes twice as long.
    kinds = [kind for kind, _, _ in _editops()(reference, hypothesis).as_list()]
    return ErrorCounts(kinds.count("replace"), kinds.count("delete"), kinds.count("insert"), len(reference))


@functools.cache
def _editops() -> Callable[[Sequence[str], Sequence[str]], Editops]:
    # Imported late, so that the command line starts without it where only recognition is installed; and once, for an
    # import of what is there already takes half as long as the edits of a short text.
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.editops


def align_words(reference: str, text: str) -> list[tuple[str, str]]:
    """Which word was recognised for which. Both texts go through `normalise` first.

    As many pairs differ as `word_errors` counts errors. Of all alignments with so few it is one whose pairs are most
    alike in their letters, so that «кит» stands beside «кот».

    Returns:
        Pairs in the texts' order; "" stands for the word that a missed or inserted one has no partner in.

    >>> align_words("мой кот дома", "мой и код дома")
    [('мой', 'мой'), ('', 'и'), ('кот', 'код'), ('дома', 'дома')]
    """
    return _aligned(normalise(reference).split(), normalise(text).split(), _unlike_words)


def align_letters(reference: str, text: str) -> list[tuple[str, str]]:
    """The same of characters, spaces included: as many pairs differ as `char_errors` counts errors.

    Of all such alignments it is one that puts vowels beside vowels and consonants beside consonants where it can.

    >>> align_letters("дом", "дам и")
    [('д', 'д'), ('о', 'а'), ('м', 'м'), ('', ' '), ('', 'и')]
    """
    return _aligned(normalise(reference), normalise(text), _unlike_letters)


@functools.lru_cache(maxsize=100_000)
def _unlike_words(one: str, other: str) -> float:
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_distance(one, other)


def _unlike_letters(one: str, other: str) -> float:
    if " " in (one, other):
        return 1.0
    return 0.25 if (one in _VOWELS) == (other in _VOWELS) else 1.0


def _aligned(
    reference: Sequence[str], text: Sequence[str], unlike: Callable[[str, str], float]
) -> list[tuple[str, str]]:
    """The alignment with fewest edits and, of those, with the least sum of `unlike` over its pairs (`_GAP` for a gap).

    A way with k edits strays from the diagonal by k cells at most, and must end on the last one: so only a band of some
    k diagonals is looked at (E. Ukkonen, «Algorithms for approximate string matching», 1985).
    """
    from rapidfuzz.distance import Levenshtein

    num_reference, num_text = len(reference), len(text)
    edits = Levenshtein.distance(reference, text)
    spare = (edits - abs(num_text - num_reference)) // 2
    first = min(0, num_text - num_reference) - spare  # diagonals are columns less rows
    width = abs(num_text - num_reference) + 2 * spare + 1
    if (num_reference + 1) * width > _LARGEST_TABLE:
        return _any_alignment(reference, text)
    nowhere = (num_reference + num_text + 1, 0.0)
    best = [nowhere] * (width + 1)  # of the row above, by diagonal; one more, so that the last has a neighbour
    came_from: list[list[int]] = []
    for row in range(num_reference + 1):
        here = [nowhere] * (width + 1)
        steps = [0] * width
        for place in range(max(0, -first - row), min(width, num_text - first - row + 1)):
            column = row + first + place
            cost, step = ((0, 0.0), 0) if row == column == 0 else (nowhere, 0)
            if row and column:
                before = best[place]
                said, heard = reference[row - 1], text[column - 1]
                cost = before if said == heard else (before[0] + 1, before[1] + unlike(said, heard))
            if row and (missed := (best[place + 1][0] + 1, best[place + 1][1] + _GAP)) < cost:
                cost, step = missed, 1
            if place and (inserted := (here[place - 1][0] + 1, here[place - 1][1] + _GAP)) < cost:
                cost, step = inserted, 2
            here[place], steps[place] = cost, step
        came_from.append(steps)
        best = here
    pairs: list[tuple[str, str]] = []
    row, column = num_reference, num_text
    while row or column:
        step = came_from[row][column - row - first]
        row, column = row - (step != 2), column - (step != 1)
        pairs.append((reference[row] if step != 2 else "", text[column] if step != 1 else ""))
    return pairs[::-1]


def _any_alignment(reference: Sequence[str], text: Sequence[str]) -> list[tuple[str, str]]:
    from rapidfuzz.distance import Levenshtein

    pairs: list[tuple[str, str]] = []
    for block in Levenshtein.opcodes(reference, text):
        said = reference[block.src_start : block.src_end]
        heard = text[block.dest_start : block.dest_end]
        pairs += zip_longest(said, heard, fillvalue="")
    return pairs
