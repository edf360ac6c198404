"""Hot words: words and phrases that are expected, and get a bonus in the search; no model needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import ALPHABET, encode, foreign_characters
from kvarts.errors import HotwordError
from kvarts.text import normalise
from kvarts.vocabulary import letter_tree

_State = tuple[frozenset[int], frozenset[int]]

DEFAULT_WEIGHT: Final = 5.0
_LARGEST_WEIGHT: Final = 100.0
_ANY_ENDING: Final = "*"


@dataclass(frozen=True)
class Hotwords:
    """The automaton that follows hot phrases letter by letter, after Aho and Corasick (CACM 18, 1975).

    A phrase begins where a word begins and ends where one ends. While letters agree, its bonus is promised in equal
    parts a letter, so that the search does not give the beginning up; where they cease to agree, the promise is void.
    Where a phrase breaks off, a shorter one that began at a later word goes on.

    Attributes:
        phrases: what was asked for, with the bonus of each in natural logarithms.
        next: (states, 33) int32, the state after a label; state 0 stands where a word begins.
        reward: (states,) float32, what is earned if a word ends in this state.
        promise: (states,) float32, what is added for as long as the search is in this state.
    """

    phrases: Mapping[str, float]
    next: NDArray[np.int32]
    reward: NDArray[np.float32]
    promise: NDArray[np.float32]

    def divided(self, by: float) -> Hotwords:
        """The same with bonuses divided by so much in the search; `phrases` stay as they were asked for."""
        return self if by == 1 else replace(self, reward=self.reward / by, promise=self.promise / by)

    def words(self) -> set[str]:
        """The words in the phrases, without those of which only the beginning is given."""
        return {word for phrase in self.phrases for word in phrase.split() if not word.endswith(_ANY_ENDING)}


def read_hotwords(path: Path, default_weight: float = DEFAULT_WEIGHT) -> Hotwords:
    """Hot words of a file: a word or phrase a line, after a tab or spaces its weight, if another than the default.

    A word that ends in an asterisk stands for all that begin so: «кварц*». Text is normalised as transcripts are; empty
    lines and what follows a «#» are skipped.

    Raises:
        HotwordError: the file cannot be read or has no hot word, or a line has foreign letters, no letter, or a weight
            that is no number above 0 and up to 100.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise HotwordError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError:
        raise HotwordError(f"{path} is no UTF-8 text: save it as UTF-8") from None
    phrases: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        where = f"{path}:{number}"
        weight = default_weight
        if len(fields) > 1 and not any(character.isalpha() for character in fields[-1]):
            weight = _weight(fields.pop(), where)
        phrases[_phrase(" ".join(fields), where)] = weight
    if not phrases:
        raise HotwordError(f"{path} has no hot word: write one a line")
    return hotwords(phrases)


def hotwords(phrases: Mapping[str, float] | Iterable[str]) -> Hotwords:
    """Hot words with the weight of each, or all with the default.

    Raises:
        HotwordError: none, or a phrase or a weight that `read_hotwords` would refuse.
    """
    given = phrases if isinstance(phrases, Mapping) else dict.fromkeys(phrases, DEFAULT_WEIGHT)
    if not given:
        raise HotwordError("there is no hot word: give one at least")
    checked = {_phrase(phrase, "hot words"): _weight(weight, "hot words") for phrase, weight in given.items()}
    return Hotwords(checked, *_automaton(checked))


def _weight(text: str | float, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= _LARGEST_WEIGHT:
        raise HotwordError(f"{where}: weight {text!r} must be a number above 0 and up to {_LARGEST_WEIGHT:g}")
    return weight


def _phrase(text: str, where: str) -> str:
    words = [_word(word) for word in text.split()]
    phrase = " ".join(word for word in words if word)
    foreign = foreign_characters(phrase.replace(_ANY_ENDING, ""))
    if foreign:
        raise HotwordError(f"{where}: {text!r} has characters outside the alphabet ({foreign}): spell it in Russian")
    if not phrase:
        raise HotwordError(f"{where}: {text!r} has no letter: write a word")
    if _ANY_ENDING in phrase[:-1]:
        raise HotwordError(f"{where}: {text!r}: only the last word of a phrase may end in {_ANY_ENDING}")
    return phrase


def _word(text: str) -> str:
    ending = _ANY_ENDING if text.endswith(_ANY_ENDING) else ""
    letters = normalise(text)
    return letters + ending if letters else ""


def _automaton(phrases: Mapping[str, float]) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """`next`, `reward` and `promise` of `Hotwords`, made deterministic from all that may go on at a time.

    A state is the nodes of a tree of all phrases that have been reached from this word's or an earlier word's
    beginning, and the open ends that this word has passed.
    """
    tree = letter_tree(sorted({phrase.rstrip(_ANY_ENDING) for phrase in phrases}))
    whole, open_ended, promise = np.zeros((3, len(tree.word)))
    for phrase, weight in phrases.items():
        stem = phrase.rstrip(_ANY_ENDING)
        node = 0
        for length, label in enumerate(encode(stem), start=1):
            node = tree.child(node, label)
            promise[node] = max(promise[node], weight * length / len(stem))
        (open_ended if phrase.endswith(_ANY_ENDING) else whole)[node] += weight

    children: list[dict[int, int]] = [{} for _ in tree.word]
    for node in range(1, len(children)):
        children[int(tree.parent[node])][int(tree.label[node])] = node
    numbers: dict[_State, int] = {(frozenset([0]), frozenset()): 0}
    waiting = list(numbers)
    follows: list[NDArray[np.int32]] = []
    reward: list[float] = []
    promised: list[float] = []

    def number(nodes: frozenset[int], passed: frozenset[int]) -> int:
        state = nodes, passed
        if state not in numbers:
            numbers[state] = len(numbers)
            waiting.append(state)
        return numbers[state]

    for nodes, passed in waiting:  # grows as it goes
        earned = sum(float(open_ended[node]) for node in passed)
        reward.append(earned + sum(float(whole[node]) for node in nodes))
        promised.append(max(earned, *(float(promise[node]) for node in nodes), 0.0))
        reached: dict[int, set[int]] = {0: {0}}
        for node in nodes:
            for label, child in children[node].items():
                reached.setdefault(label, set()).add(child)
        row = np.full(len(ALPHABET), number(frozenset(), passed), np.int32)
        for label, found in reached.items():
            behind = passed | {node for node in found if open_ended[node]} if label else ()
            row[label] = number(frozenset(found), frozenset(behind))
        follows.append(row)
    return np.array(follows), np.array(reward, np.float32), np.array(promised, np.float32)
