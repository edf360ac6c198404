"""What hot words gain and cost: how many of those spoken are found, how many are found that were not, WER elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvarts.error_counts import ErrorCounts
from kvarts.text import normalise

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class HotwordCounts:
    """They add up over utterances.

    Attributes:
        spoken: places in the references where a hot phrase stands;
        found: of these, where all its words were recognised.
        given: places in the hypotheses where one stands;
        false: of these, where it was not spoken.
        elsewhere: word errors without the reference words of hot phrases. What is inserted counts here, hot or not.
    """

    spoken: int = 0
    found: int = 0
    given: int = 0
    false: int = 0
    elsewhere: ErrorCounts = field(default_factory=ErrorCounts)

    def __add__(self, other: HotwordCounts) -> HotwordCounts:
        return HotwordCounts(
            self.spoken + other.spoken,
            self.found + other.found,
            self.given + other.given,
            self.false + other.false,
            self.elsewhere + other.elsewhere,
        )

    @property
    def recall(self) -> float | None:
        """Share of the spoken ones that were found; None where none was spoken."""
        return self.found / self.spoken if self.spoken else None

    def as_json(self) -> dict[str, Any]:
        """What results.json says of it."""
        return {
            "spoken": self.spoken,
            "found": self.found,
            "recall": self.recall,
            "given": self.given,
            "false": self.false,
            "wer_elsewhere": self.elsewhere.rate,
        }


def hotword_counts(phrases: Iterable[str], reference: str, hypothesis: str) -> HotwordCounts:
    """Counts of one utterance. Both texts go through `kvarts.text.normalise` first.

    Args:
        phrases: normalised; one that ends in an asterisk stands for all last words that begin so.
    """
    from rapidfuzz.distance import Levenshtein

    wanted = [phrase.split() for phrase in phrases]
    spoken, heard = normalise(reference).split(), normalise(hypothesis).split()
    right_spoken, right_heard = [False] * len(spoken), [False] * len(heard)
    hot_places = _places(wanted, spoken)
    is_hot = [any(start <= at < stop for start, stop in hot_places) for at in range(len(spoken))]
    substitutions = deletions = insertions = 0
    for block in Levenshtein.opcodes(spoken, heard):
        here, there = slice(block.src_start, block.src_end), slice(block.dest_start, block.dest_end)
        if block.tag == "equal":
            right_spoken[here] = [True] * len(spoken[here])
            right_heard[there] = [True] * len(heard[there])
        elif block.tag == "replace":
            substitutions += is_hot[here].count(False)
        elif block.tag == "delete":
            deletions += is_hot[here].count(False)
        else:
            insertions += len(heard[there])
    given = _places(wanted, heard)
    return HotwordCounts(
        spoken=len(hot_places),
        found=sum(all(right_spoken[start:stop]) for start, stop in hot_places),
        given=len(given),
        false=sum(not all(right_heard[start:stop]) for start, stop in given),
        elsewhere=ErrorCounts(substitutions, deletions, insertions, is_hot.count(False)),
    )


def render_table(counts: Sequence[tuple[str, HotwordCounts]]) -> Table:
    """A row for each name."""
    from rich.table import Table

    table = Table(title="hot words")
    table.add_column("", min_width=8, overflow="fold")
    for heading in ("spoken", "found", "recall %", "false", "WER % elsewhere"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, of_name in counts:
        recall = "–" if of_name.recall is None else f"{100 * of_name.recall:.1f}"
        elsewhere = f"{100 * of_name.elsewhere.rate:.2f}"
        table.add_row(name, str(of_name.spoken), str(of_name.found), recall, str(of_name.false), elsewhere)
    return table


def _places(phrases: Sequence[Sequence[str]], words: Sequence[str]) -> list[tuple[int, int]]:
    """Where phrases stand: the first word and the one behind the last."""
    return [
        (at, at + len(phrase))
        for phrase in phrases
        for at in range(len(words) - len(phrase) + 1)
        if list(words[at : at + len(phrase) - 1]) == list(phrase[:-1])
        and _fits(phrase[-1], words[at + len(phrase) - 1])
    ]


def _fits(wanted: str, word: str) -> bool:
    return word.startswith(wanted[:-1]) if wanted.endswith("*") else word == wanted
