"""How well commands are recognised: how many are done as meant, and how often something else is taken for one.

What an utterance of a manifest means is found by parsing its text with the grammar; one whose text is no phrase of it
is outside, and every command recognised in it a false accept. They are counted for an hour of such sound: that is what
is noticed where the device stands.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvarts.evaluate import BATCH_DURATION_S, manifest_log_probs
from kvarts.grammar import Meaning

if TYPE_CHECKING:
    from rich.table import Table

    from kvarts.grammar_search import Command, GrammarSearch
    from kvarts.manifest import Utterance
    from kvarts.recogniser import Recognizer


@dataclass(frozen=True)
class Outcome:
    """What was said, and the best command that was found in it.

    Attributes:
        meaning: None outside the grammar.
        command: as `GrammarSearch.best` gives it, accepted or not.
    """

    text: str
    duration_s: float
    meaning: Meaning | None
    command: Command

    @property
    def is_right(self) -> bool:
        """Whether the best command has the meaning of the text."""
        return self.meaning is not None and self.meaning == Meaning(self.command.intent or "", self.command.slots)


@dataclass(frozen=True)
class GrammarEvaluation:
    """The score of commands at one threshold. Rates are fractions, None where there was nothing to count.

    Attributes:
        unknown_penalty: a command whose score is lower than minus that counts as «[unk]».
        commands: utterances that are phrases of the grammar.
        exact: of them, those recognised with the right intent and all the right slots.
        right_slots: those with all the right slots, whatever the intent.
        right_intents: those with the right intent, whatever the slots.
        rejected: those taken for «[unk]».
        outside: other utterances.
        false_accepts: of them, those taken for a command.
        outside_s: their seconds.
    """

    name: str
    unknown_penalty: float
    commands: int
    exact: int
    right_slots: int
    right_intents: int
    rejected: int
    outside: int
    false_accepts: int
    outside_s: float

    @property
    def exact_rate(self) -> float | None:
        """Of the commands."""
        return _rate(self.exact, self.commands)

    @property
    def slots_rate(self) -> float | None:
        """Of the commands."""
        return _rate(self.right_slots, self.commands)

    @property
    def intent_rate(self) -> float | None:
        """Of the commands."""
        return _rate(self.right_intents, self.commands)

    @property
    def rejected_rate(self) -> float | None:
        """Of the commands."""
        return _rate(self.rejected, self.commands)

    @property
    def false_accepts_per_hour(self) -> float | None:
        """Of what is outside the grammar."""
        return _rate(self.false_accepts, self.outside_s / 3600)

    def as_json(self) -> dict[str, Any]:
        """Everything, with the rates."""
        return {
            "name": self.name,
            "unknown_penalty": self.unknown_penalty if math.isfinite(self.unknown_penalty) else None,
            "exact_rate": self.exact_rate,
            "slots_rate": self.slots_rate,
            "intent_rate": self.intent_rate,
            "rejected_rate": self.rejected_rate,
            "false_accepts_per_hour": self.false_accepts_per_hour,
            "commands": self.commands,
            "exact": self.exact,
            "right_slots": self.right_slots,
            "right_intents": self.right_intents,
            "rejected": self.rejected,
            "outside": self.outside,
            "false_accepts": self.false_accepts,
            "outside_s": self.outside_s,
        }


def outcome(search: GrammarSearch, text: str, duration_s: float, log_probs: NDArray[np.float32]) -> Outcome:
    """What is found in one utterance, of which the text is known.

    Args:
        log_probs: (time, 34).
    """
    return Outcome(text, duration_s, search.grammar.parse(text), search.best(log_probs))


def outcomes(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    search: GrammarSearch,
    *,
    batch_duration_s: float = BATCH_DURATION_S,
) -> list[Outcome]:
    """What is found in utterances, in their order.

    Raises:
        AudioError: files that could not be read, all of them named.
    """
    found: dict[int, Outcome] = {}
    for batch in manifest_log_probs(recognizer, utterances, name="commands", batch_duration_s=batch_duration_s):
        for index, log_probs in batch:
            found[index] = outcome(search, utterances[index].text, utterances[index].duration_s, log_probs)
    return [found[index] for index in range(len(utterances))]


def evaluate_grammar(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    search: GrammarSearch,
    *,
    name: str,
    batch_duration_s: float = BATCH_DURATION_S,
    false_accepts_per_hour: float | None = None,
) -> GrammarEvaluation:
    """Recognises and scores utterances.

    Args:
        false_accepts_per_hour: None: at the threshold of the search; else at the one that `threshold` gives for it.

    Raises:
        AudioError: files that could not be read.
    """
    found = outcomes(recognizer, utterances, search, batch_duration_s=batch_duration_s)
    penalty = search.unknown_penalty if false_accepts_per_hour is None else threshold(found, false_accepts_per_hour)
    return score(found, penalty, name=name)


def score(found: Sequence[Outcome], unknown_penalty: float, *, name: str) -> GrammarEvaluation:
    """The score with a threshold, which need not be that of the search."""
    inside = [(one.meaning, _accepted(one, unknown_penalty)) for one in found if one.meaning is not None]
    accepted = [(meaning, command) for meaning, command in inside if command is not None]
    outside = [one for one in found if one.meaning is None]
    return GrammarEvaluation(
        name=name,
        unknown_penalty=unknown_penalty,
        commands=len(inside),
        exact=sum(one.is_right and _accepted(one, unknown_penalty) is not None for one in found),
        right_slots=sum(meaning.slots == command.slots for meaning, command in accepted),
        right_intents=sum(meaning.intent == command.intent for meaning, command in accepted),
        rejected=len(inside) - len(accepted),
        outside=len(outside),
        false_accepts=sum(_accepted(one, unknown_penalty) is not None for one in outside),
        outside_s=sum(one.duration_s for one in outside),
    )


def threshold(found: Sequence[Outcome], false_accepts_per_hour: float) -> float:
    """The highest `unknown_penalty` with which there are no more false accepts than wanted; inf if any will do.

    It lies in the middle between the score of the first false accept too many and the next better score of all. 0, the
    lowest there is, still accepts what the network heard as a command without any doubt.

    Raises:
        ValueError: no utterance outside the grammar.
    """
    outside = sorted((one for one in found if one.meaning is None), key=lambda one: -one.command.score)
    if not outside:
        raise ValueError("to choose a threshold there must be utterances outside the grammar")
    allowed = math.floor(false_accepts_per_hour * sum(one.duration_s for one in outside) / 3600 + 1e-9)
    scores = [one.command.score for one in outside if one.command.intent is not None]
    if allowed >= len(scores):
        return math.inf
    too_many = scores[allowed]
    better = min((one.command.score for one in found if one.command.score > too_many), default=0.0)
    return max(0.0, min(-(too_many + better) / 2, math.nextafter(-too_many, 0.0)))


def confusions(found: Sequence[Outcome], unknown_penalty: float) -> Counter[tuple[str, str]]:
    """What was taken for what: pairs of the text said and the text found («[unk]» if none), commands alone."""
    from kvarts.grammar_search import UNKNOWN
    from kvarts.text import normalise

    pairs: Counter[tuple[str, str]] = Counter()
    for one in found:
        if one.meaning is not None:
            command = _accepted(one, unknown_penalty)
            if command is None or not one.is_right:
                pairs[normalise(one.text), UNKNOWN if command is None else command.text] += 1
    return pairs


def render_table(evaluations: Sequence[GrammarEvaluation]) -> Table:
    """A table for the terminal, a row for each evaluation in the order given."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", min_width=8, overflow="fold")
    for heading in ("exact %", "intent %", "slots %", "[unk] %", "commands", "false/h", "outside h", "penalty"):
        table.add_column(heading.replace("[", "\\["), justify="right", no_wrap=True)
    for one in evaluations:
        rates = (one.exact_rate, one.intent_rate, one.slots_rate, one.rejected_rate)
        table.add_row(
            one.name,
            *("–" if rate is None else f"{100 * rate:.2f}" for rate in rates),
            str(one.commands),
            "–" if one.false_accepts_per_hour is None else f"{one.false_accepts_per_hour:.2f}",
            f"{one.outside_s / 3600:.3f}",
            f"{one.unknown_penalty:.4g}",
        )
    return table


def _accepted(one: Outcome, unknown_penalty: float) -> Command | None:
    accepted = one.command.intent is not None and one.command.score >= -unknown_penalty
    return one.command if accepted else None


def _rate(number: int, of: float) -> float | None:
    return number / of if of else None
