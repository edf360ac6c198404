"""What search.c does, in Python: for machines without a C compiler, and for tests of it. Some hundred times slower."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import BLANK_ID
from kvarts.arpa import END_ID, UNKNOWN_ID
from kvarts.spelling import next_state

if TYPE_CHECKING:
    from kvarts.search import Rules

_Found = tuple[tuple[int, ...], float, float]

_SPACE = 0


@dataclass(eq=False)
class _Prefix:
    """The letters so far; fields as those of Node in search.c."""

    parent: _Prefix | None
    label: int
    place: int = 0
    context: int = 0
    hot: int = 0
    spelt: int = 0
    spelling: float = 0.0
    fixed: float = 0.0
    bound: float = 0.0
    blank: float = -math.inf
    letter: float = -math.inf
    children: dict[int, _Prefix | None] = field(default_factory=dict)

    @property
    def sound(self) -> float:
        """Log-probability of all ways to these letters."""
        return _log_add(self.blank, self.letter)

    def labels(self) -> list[int]:
        """From the first letter on."""
        found: list[int] = []
        prefix: _Prefix | None = self
        while prefix is not None and prefix.label >= 0:
            found.append(prefix.label)
            prefix = prefix.parent
        return found[::-1]


def beam_search(rules: Rules, log_probs: NDArray[np.float32], wanted: int) -> list[_Found]:
    """Of each text its labels and both parts of its score, see `kvarts.search.BeamSearch.hypotheses`."""
    root = _Prefix(None, -1, blank=0.0)
    if rules.language_model is not None:
        root.context = rules.language_model.begin()
    active = [root]
    for row in log_probs.astype(np.float64).tolist():
        active = _pruned(rules, _step(rules, active, row))
    return _finished(rules, active)[:wanted]


def _step(rules: Rules, active: list[_Prefix], row: list[float]) -> dict[_Prefix, tuple[float, float]]:
    """Log-probabilities after one more frame, of ways that end in the blank and of those that end in the label."""
    best = max(range(len(row)), key=lambda label: row[label])
    labels = [label for label in range(BLANK_ID) if row[label] >= rules.least_log_prob or label == best]
    reached: dict[_Prefix, tuple[float, float]] = {}

    def add(prefix: _Prefix, blank: float = -math.inf, letter: float = -math.inf) -> None:
        before = reached.get(prefix, (-math.inf, -math.inf))
        reached[prefix] = (_log_add(before[0], blank), _log_add(before[1], letter))

    for prefix in active:
        add(prefix, blank=prefix.sound + row[BLANK_ID])
        if prefix.label >= 0:
            add(prefix, letter=prefix.letter + row[prefix.label])
        for label in labels:
            before = prefix.blank if label == prefix.label else prefix.sound
            if before == -math.inf:
                continue
            if label == _SPACE and prefix.label <= _SPACE:
                add(prefix, blank=before + row[label])
                continue
            if label not in prefix.children:
                prefix.children[label] = _followed(rules, prefix, label)
            child = prefix.children[label]
            if child is not None:
                add(child, letter=before + row[label])
    return reached


def _followed(rules: Rules, parent: _Prefix, label: int) -> _Prefix | None:
    """The prefix with one letter more, None where there must be none."""
    child = _Prefix(parent, label, context=parent.context, fixed=parent.fixed)
    promise = 0.0
    if label == _SPACE:
        ended = _word_end(rules, parent)
        if ended is None:
            return None
        child.fixed, child.context = ended
    elif rules.tree is not None:
        child.place = rules.tree.child(parent.place, label) if parent.place >= 0 else -1
        child.spelt = next_state(parent.spelt, label)
        spelling = float(rules.spelling[parent.spelt, label])
        child.spelling = parent.spelling + spelling
        if child.place >= 0:
            promise = rules.lm_weight * float(rules.best_word[child.place])
        elif rules.is_closed:
            return None
        elif parent.place >= 0:
            child.fixed += rules.weights.unknown_penalty + rules.weights.spelling_weight * child.spelling
        else:
            child.fixed += rules.weights.spelling_weight * spelling
    if rules.hotwords is not None:
        child.hot = int(rules.hotwords.next[parent.hot, label])
        promise += float(rules.hotwords.promise[child.hot])
    child.bound = child.fixed + promise
    return child


def _word_end(rules: Rules, prefix: _Prefix) -> tuple[float, int] | None:
    """`fixed` and `context` after the word that ends here; None where none must end."""
    score, context = prefix.fixed, prefix.context
    word = -1
    if rules.tree is not None:
        word = int(rules.word[prefix.place]) if prefix.place >= 0 else -1
        if word < 0:
            if rules.is_closed:
                return None
            score += rules.weights.spelling_weight * float(rules.spelling[prefix.spelt, _SPACE])
            if prefix.place >= 0:
                score += rules.weights.unknown_penalty + rules.weights.spelling_weight * prefix.spelling
    if rules.language_model is not None:
        of_word, context = rules.language_model.score(context, word if word >= 0 else UNKNOWN_ID)
        score += rules.lm_weight * of_word
    if rules.hotwords is not None:
        score += float(rules.hotwords.reward[prefix.hot])
    return score + rules.word_bonus, context


def _pruned(rules: Rules, reached: dict[_Prefix, tuple[float, float]]) -> list[_Prefix]:
    for prefix, (blank, letter) in reached.items():
        prefix.blank, prefix.letter = blank, letter
    ranked = sorted(reached, key=lambda prefix: -(prefix.sound + prefix.bound))[: rules.beam]
    least = ranked[0].sound + ranked[0].bound - rules.width
    return [prefix for prefix in ranked if prefix.sound + prefix.bound >= least]


def _finished(rules: Rules, active: list[_Prefix]) -> list[_Found]:
    texts: dict[_Prefix, tuple[float, float]] = {}
    for drop_last in (False, True):
        for prefix in active:
            text, sound = prefix, prefix.sound
            while drop_last and text.label > _SPACE and text.parent is not None:
                text = text.parent
            ended = _word_end(rules, text) if text.label > _SPACE else (text.fixed, text.context)
            if ended is None:
                continue
            score, context = ended
            if rules.language_model is not None:
                score += rules.lm_weight * rules.language_model.score(context, END_ID)[0]
            if text.label == _SPACE and text.parent is not None:
                text = text.parent
            before = texts.get(text)
            texts[text] = (sound, score) if before is None else (_log_add(before[0], sound), before[1])
        if texts:
            break
    ranked = sorted(texts.items(), key=lambda item: -sum(item[1]))
    return [(tuple(prefix.labels()), sound, score) for prefix, (sound, score) in ranked]


def align(log_probs: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """See `kvarts.search.align`; None where there are too few frames."""
    states = 2 * len(labels) + 1
    letters = np.arange(states) % 2 == 1
    of_state = np.full(states, BLANK_ID)
    of_state[1::2] = labels
    # At the ends, and behind a space, a further space says nothing new.
    passes = ~letters
    passes[2:-1:2] &= labels[:-1] == _SPACE
    skips = letters.copy()
    skips[:3] = False
    skips[3::2] &= labels[1:] != labels[:-1]
    scores = np.where(np.arange(states) == 0, 0.0, -np.inf)
    back = np.zeros((len(log_probs), states), np.int64)
    for frame, row in enumerate(log_probs.astype(np.float64)):
        ways = np.full((3, states), -np.inf)
        ways[0] = scores
        ways[1, 1:] = scores[:-1]
        ways[2, 2:] = scores[:-2]
        ways[2, ~skips] = -np.inf
        back[frame] = ways.argmax(axis=0)
        own = np.where(passes, max(row[BLANK_ID], row[_SPACE]), row[of_state])
        scores = ways.max(axis=0) + own
    state = states - 1
    if states > 1 and scores[-2] >= scores[-1]:
        state = states - 2
    if scores[state] == -np.inf:
        return None
    found = np.zeros((2, len(labels)), np.int32)
    for frame in range(len(log_probs) - 1, -1, -1):
        if letters[state]:
            found[0, state // 2] = frame
            found[1, state // 2] = max(found[1, state // 2], frame + 1)
        state -= int(back[frame, state])
    return found


def _log_add(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
