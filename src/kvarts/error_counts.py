"""Word and character errors of one text against another, with their kinds. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvarts.text import normalise


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


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors in words. Both texts go through `kvarts.text.normalise` first."""
    return _count(normalise(reference).split(), normalise(hypothesis).split())


def char_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors in characters, the spaces between words included. Both texts go through `normalise` first."""
    return _count(normalise(reference), normalise(hypothesis))


def _count(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    # Imported here so that the command line starts without it where only recognition is installed.
    from rapidfuzz.distance import Levenshtein

    kinds = [operation.tag for operation in Levenshtein.editops(reference, hypothesis)]
    return ErrorCounts(kinds.count("replace"), kinds.count("delete"), kinds.count("insert"), len(reference))
