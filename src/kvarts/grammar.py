"""Command grammars: what may be said to a device, and what it means.

    # light.grammar
    [light_on]                                         # an intent; its phrases follow, one a line
    (включи | зажги) [пожалуйста] свет {room}          # alternatives, words that may be left out, a slot
    [taxi]
    такси из {from=city@gent} в {to=city@accs}         # two of one slot need names; @gent is a case

    {room}:                                            # a slot; its values follow, each with what is said for it
    kitchen: на кухне | в кухню
    bedroom: в спальне
    {city}:                                            # what has no value is its own value
    москва | тула

Slots may hold slots, and a value what was chosen in them: ``2{digit}: двадцать {digit}``. Words go through
`kvarts.text.normalise`.

All phrases together become one graph: the smallest deterministic automaton over words, in which equal remainders of
phrases are one state whatever intent they are of, and for each of its states the tree of the letters of the words that
may come next. So a slot that ends two hundred phrases is there once. A text's meaning is found by parsing it.
"""

from __future__ import annotations

import functools
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import ALPHABET, encode, foreign_characters
from kvarts.errors import ConfigError, GrammarError, listing
from kvarts.files import digest_of
from kvarts.text import normalise

Ints = NDArray[np.int32]

MAX_STATES = 1_000_000  # of the graph; a search through so many takes a byte of each for every frame
_MAX_WORDS = 100  # of a phrase: the recogniser takes 30 s at a time, in which nobody says more
_MAX_DEPTH = 10  # of brackets in brackets, and of slots in slots; Python's stack ends at 1000 calls

_CASES = {"nomn", "gent", "gen2", "datv", "accs", "ablt", "loct", "loc2"}
_PLAIN_CASE = {"gen2": "gent", "loc2": "loct"}  # чаю, в саду: only some words have such a case
_NUMBERS = {"sing", "plur"}

_NAME = r"[\w-]+"
_INTENT_LINE = re.compile(rf"\[\s*({_NAME})\s*\]")
_SLOT_LINE = re.compile(rf"\{{\s*({_NAME})\s*\}}\s*:")
_TOKEN = re.compile(r"[()\[\]|]|\{[^{}]*\}|[^\s()\[\]|{}]+|[{}]")
_REFERENCE = re.compile(rf"\{{\s*(?:({_NAME})\s*=\s*)?({_NAME})\s*(?:@\s*([\w.]+)\s*)?\}}")
_IN_VALUE = re.compile(rf"\{{({_NAME})\}}")


@dataclass(frozen=True)
class Meaning:
    """What a text means.

    Attributes:
        slots: values by the names of the slots of its phrase.
    """

    intent: str
    slots: Mapping[str, str]


@dataclass(frozen=True)
class LetterGraph:
    """The graph that a search goes through, nodes in arrays.

    The first `num_spaces` nodes are spaces: node 0 before the first word, the last of them behind the last word, the
    others between words. All others are letters, and every letter has one node before it.

    Attributes:
        labels: (nodes,) label ids.
        parents: (nodes,) the node before a letter; of a space the space itself. A letter's is less than its own.
        barriers: (nodes,) float32, -inf for a letter that is the same as its parent, so that a blank must lie between
            them, else 0.
        first_ends: (num_spaces + 1,) where the last letters of the words before each space begin in `ends`.
        ends: nodes of last letters; of node 0 there are none, of every other space one or more.
    """

    num_spaces: int
    labels: Ints
    parents: Ints
    barriers: NDArray[np.float32]
    first_ends: Ints
    ends: Ints


# What a phrase consists of. Compared by identity: a node is its place in the file.
@dataclass(frozen=True, eq=False)
class _Word:
    raw: str  # as written: «санкт-петербург» is inflected as one word and searched as two
    base: str  # normalised, before inflection
    words: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, eq=False)
class _Choice:
    options: tuple[_Node, ...]


@dataclass(frozen=True, eq=False)
class _Reference:
    name: str  # under which the value is given
    slot: str
    case: str | None


@dataclass(frozen=True, eq=False)
class _Use:
    """A reference once it is known what it refers to."""

    name: str
    slot: _Slot


_Node: TypeAlias = _Word | _Sequence | _Choice | _Reference | _Use
_NOTHING = _Sequence(())


@dataclass(frozen=True, eq=False)
class _Entry:
    """A phrase of an intent, or a form of a slot."""

    where: str  # file:line
    owner: str  # the intent or the slot
    value: str | None  # of a slot, if one is given
    node: _Node


@dataclass(eq=False)
class _Slot:
    """A slot in one case."""

    entries: list[_Entry] = field(default_factory=list)
    by_word: dict[str, list[_Entry]] = field(default_factory=dict)  # entries by words that they can begin with
    min_words: int = 0
    max_words: int = 0


# A part of a match: words as written, or a slot's name and value.
_Piece: TypeAlias = str | tuple[str, str]
_Matches: TypeAlias = tuple[tuple[int, tuple[_Piece, ...]], ...]


class _LineError(Exception):
    """What is wrong with a line and what to do about it."""


class Grammar:
    """A grammar that has been read, checked and made into a graph. It never changes: any thread may use it.

    Attributes:
        name: for messages.
        intents: their names, in the order of the file.
        num_phrases: different texts that it accepts.
        shortest, longest: letters of its shortest and longest text, without spaces.
        graph: for `kvarts.grammar_search.GrammarSearch`.
        warnings: what is no mistake but looks like one, as ``file:line: …``.
        digest: of its text and its graph, which depends on the forms that the morphology gives.

    Example:
        >>> grammar = Grammar("[light_on]\\nвключи свет {room}\\n{room}:\\nkitchen: на кухне | в кухне")
        >>> grammar.parse("Включи свет в кухне!")
        Meaning(intent='light_on', slots={'room': 'kitchen'})
    """

    def __init__(self, text: str, name: str = "grammar") -> None:
        """Reads a grammar.

        Args:
            name: of the file.

        Raises:
            GrammarError: the text is no grammar, or too large a one; every bad line is named.
            ConfigError: a case is asked for and pymorphy3 is not installed.
        """
        self.name = name
        self.warnings: list[str] = []
        phrases, slots = _read(text, name)
        resolver = _Resolver(slots, self.warnings)
        self._phrases = _Slot(resolver.entries(phrases, None))
        for slot in slots:  # those that no phrase uses, too
            resolver.slot(slot, None)
        _raise(name, resolver.problems)
        self.warnings += resolver.unused(name)
        _index(self._phrases)
        self.intents = tuple(dict.fromkeys(entry.owner for entry in self._phrases.entries))
        words = _WordGraph(name)
        self._root = words.slot(self._phrases, _END)
        self._states = words.states
        self._counts = _counts(self._states)
        self.num_phrases = self._counts[self._root]
        self.shortest, self.longest = _lengths_in_letters(self._states, self._root)
        self.graph = _letter_graph(self._states, self._root, name)
        self.digest = digest_of(text, self.graph.labels, self.graph.parents)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Grammar:
        """A grammar from a file, UTF-8.

        Raises:
            GrammarError: no such file, it cannot be read, or it is no grammar.
            ConfigError: a case is asked for and pymorphy3 is not installed.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise GrammarError(f"{path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = getattr(error, "strerror", None) or error
            raise GrammarError(f"{path}: could not be read ({reason}); check the path") from None
        return cls(text, os.fspath(path))

    def parse(self, text: str) -> Meaning | None:
        """What a text means, None if it is no phrase of the grammar.

        Of several meanings the one whose phrase stands first in the file, and in it the value that does.
        """
        return next(iter(self.meanings(text)), None)

    def meanings(self, text: str) -> list[Meaning]:
        """All different meanings of a text."""
        words = normalise(text).split()
        found: list[Meaning] = []
        if not words:
            return found
        match = _matcher(words)
        for entry in self._phrases.by_word.get(words[0], ()):
            for stop, pieces in match(entry.node, 0):
                slots = dict(piece for piece in pieces if isinstance(piece, tuple))
                meaning = Meaning(entry.owner, slots)
                if stop == len(words) and meaning not in found:
                    found.append(meaning)
        return found

    def phrases(self) -> Iterator[str]:
        """All different texts that the grammar accepts, `num_phrases` of them."""
        stack: list[tuple[int, tuple[str, ...]]] = [(self._root, ())]
        while stack:
            state, words = stack.pop()
            is_final, arcs = self._states[state]
            if is_final:
                yield " ".join(words)
            stack += [(target, (*words, word)) for word, target in reversed(arcs)]

    def sample(self, number: int, seed: int = 0) -> list[str]:
        """So many random phrases, each drawn from all of them with the same probability; some may come twice."""
        generator = random.Random(seed)
        return [self._drawn(generator) for _ in range(number)]

    def _drawn(self, generator: random.Random) -> str:
        state, words = self._root, list[str]()
        while True:
            is_final, arcs = self._states[state]
            rest = generator.randrange(self._counts[state]) - is_final
            if rest < 0:
                return " ".join(words)
            for word, target in arcs:
                rest -= self._counts[target]
                if rest < 0:
                    words.append(word)
                    state = target
                    break


# ---------------------------------------------------------------------------------------------------------- reading


def _read(text: str, name: str) -> tuple[list[_Entry], dict[str, list[_Entry]]]:
    """Phrases of intents, and forms of slots by slot, references unresolved."""
    sections: dict[tuple[str, str], list[_Entry]] = {}
    headings: dict[tuple[str, str], str] = {}  # where they stand
    entries: list[_Entry] | None = None
    problems: list[str] = []
    owner, in_slot = "", False
    # Lines end at \n alone: str.splitlines would also cut at characters that nobody sees.
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.partition("#")[0].strip()
        where = f"{name}:{number}"
        intent, slot = _INTENT_LINE.fullmatch(line), _SLOT_LINE.fullmatch(line)
        if heading := intent or slot:
            owner, in_slot = heading[1], heading is slot
            key = ("slot" if in_slot else "intent", owner)
            if key in sections:
                problems.append(
                    f"{where}: {key[0]} {owner!r} a second time, first in line {headings[key].rpartition(':')[2]}; "
                    "put its lines together or give it another name"
                )
            headings.setdefault(key, where)
            entries = sections.setdefault(key, [])
        elif line and entries is None:
            problems.append(f"{where}: a phrase before any intent; write [name_of_the_intent] above it")
            entries = []  # once is enough
        elif line and entries is not None:
            try:
                entries += _entries(line, where, owner, in_slot)
            except _LineError as error:
                problems.append(f"{where}: {error}")
                entries.append(_Entry(where, owner, None, _NOTHING))  # so that the section does not count as empty
    for (kind, owner), lines in sections.items():
        if not lines:
            what = "phrases" if kind == "intent" else "forms"
            problems.append(f"{headings[kind, owner]}: {kind} {owner!r} has no {what}; add a line or remove it")
    if not problems and not any(kind == "intent" for kind, _ in sections):
        problems.append(f"{name}: no intent; begin one with [name] and write its phrases below")
    _raise(name, problems)
    phrases = [entry for (kind, _), lines in sections.items() if kind == "intent" for entry in lines]
    return phrases, {owner: lines for (kind, owner), lines in sections.items() if kind == "slot"}


def _raise(name: str, problems: list[str]) -> None:
    if problems:
        raise GrammarError(listing(f"{name}: bad lines", problems))


def _entries(line: str, where: str, owner: str, in_slot: bool) -> list[_Entry]:
    """A line as one entry for each alternative that it consists of."""
    value: str | None = None
    if ":" in line:
        if not in_slot:
            raise _LineError("a value in an intent; values belong below a slot, which begins with {name}:")
        value, _, line = (part.strip() for part in line.partition(":"))
        if not value:
            raise _LineError("no value before the colon; write one, or leave out the colon")
    node = _parsed(line)
    options = node.options if isinstance(node, _Choice) else (node,)
    return [_Entry(where, owner, value, option) for option in options]


def _parsed(line: str) -> _Node:
    """A line as a tree: a choice of sequences, or one sequence."""
    # A level is its alternatives so far, the last one unfinished, and the bracket that opened it.
    levels: list[tuple[list[list[_Node]], str]] = [([[]], "")]
    for token in _TOKEN.findall(line):
        alternatives, opening = levels[-1]
        if token in ("(", "["):
            if len(levels) > _MAX_DEPTH:
                raise _LineError(f"more than {_MAX_DEPTH} brackets in each other; make a slot of what is inside")
            levels.append(([[]], token))
        elif token in (")", "]"):
            if opening + token not in ("()", "[]"):
                raise _LineError(f"a {token!r} without its partner; add the other bracket or remove this one")
            levels.pop()
            node = _choice(alternatives)
            levels[-1][0][-1].append(node if token == ")" else _Choice((node, _NOTHING)))
        elif token == "|":
            alternatives.append([])
        elif token[0] in "{}":
            alternatives[-1].append(_reference(token))
        else:
            alternatives[-1] += _word(token)
    if len(levels) > 1:
        raise _LineError(f"a {levels[-1][1]!r} without its partner; add the other bracket or remove this one")
    return _choice(levels[0][0])


def _choice(alternatives: list[list[_Node]]) -> _Node:
    if not all(alternatives):
        raise _LineError("nothing is said here; write words, and [words] for what may be left out")
    options = tuple(_Sequence(tuple(parts)) for parts in alternatives)
    return options[0] if len(options) == 1 else _Choice(options)


def _reference(token: str) -> _Reference:
    found = _REFERENCE.fullmatch(token)
    if found is None:
        raise _LineError(f"{token!r} is no slot; write {{slot}}, {{name=slot}}, {{slot@gent}} or {{name=slot@gent}}")
    name, slot, case = found.groups()
    kind, _, number = (case or "nomn").partition(".")
    if kind not in _CASES or number not in {"", *_NUMBERS}:
        cases = ", ".join(sorted(_CASES))
        raise _LineError(f"{case!r} is no case; choose from {cases}, and behind it .sing or .plur")
    return _Reference(name or slot, slot, case)


def _word(token: str) -> list[_Node]:
    if found := re.search("[=@:]", token):
        raise _LineError(f"{found[0]!r} in {token!r}: it has a meaning in {{slots}} alone; leave it out")
    base = normalise(token)
    if foreign := foreign_characters(base):
        raise _LineError(f"{token!r} has letters outside the alphabet: {foreign!r}; write what is spoken, in letters")
    return [_Word(token, base, tuple(base.split()))] if base else []


# -------------------------------------------------------------------------------------------------------- resolving


class _Resolver:
    """Puts slots in the place of references, in the case asked for, and finds what cannot be."""

    def __init__(self, slots: Mapping[str, list[_Entry]], warnings: list[str]) -> None:
        self.problems: list[str] = []
        self._slots = slots
        self._warnings = warnings
        self._made: dict[tuple[str, str | None], _Slot] = {}
        self._chain: list[str] = []
        self._used: set[str] = set()

    def entries(self, entries: list[_Entry], case: str | None) -> list[_Entry]:
        """The entries that are right; the others become problems."""
        resolved: list[_Entry] = []
        for entry in entries:
            try:
                node = self._node(_in_case(entry, case, self._warnings), entry)
                _check(node, entry)
            except _LineError as error:
                problem = f"{entry.where}: {error}"
                if problem not in self.problems:  # the alternatives of a line, the same slot in other cases
                    self.problems.append(problem)
            else:
                resolved.append(_Entry(entry.where, entry.owner, entry.value, node))
        return resolved

    def slot(self, name: str, case: str | None) -> _Slot:
        """A slot in one case, made when it is first asked for."""
        if name in self._chain:
            chain = " → ".join([*self._chain[self._chain.index(name) :], name])
            raise _LineError(f"a slot leads to itself: {chain}; take one of the references out")
        if len(self._chain) >= _MAX_DEPTH:
            raise _LineError(f"more than {_MAX_DEPTH} slots in each other; write some of them out")
        key = (name, case)
        if key not in self._made:
            self._chain.append(name)
            slot = self._made[key] = _Slot(self.entries(self._slots[name], case))
            self._chain.pop()
            _index(slot)
        return self._made[key]

    def unused(self, name: str) -> list[str]:
        """Warnings of slots to which nothing refers."""
        return [
            f"{lines[0].where}: slot {slot!r} is not used; refer to it or remove it"
            for slot, lines in self._slots.items()
            if slot not in self._used
        ]

    def _node(self, node: _Node, entry: _Entry) -> _Node:
        if isinstance(node, _Sequence):
            return _Sequence(tuple(self._node(part, entry) for part in node.parts))
        if isinstance(node, _Choice):
            return _Choice(tuple(self._node(option, entry) for option in node.options))
        if isinstance(node, _Reference):
            if node.slot not in self._slots:
                raise _LineError(
                    f"unknown slot {node.slot!r}; begin it with a line {{{node.slot}}}: and write its forms below"
                )
            self._used.add(node.slot)
            return _Use(node.name, self.slot(node.slot, node.case))
        return node


def _check(node: _Node, entry: _Entry) -> None:
    """Raises _LineError for an entry that may be empty, is too long, or has a name twice."""
    shortest, longest = _lengths(node)
    if shortest == 0:
        raise _LineError("all of it may be left out; leave a word outside [ ]")
    if longest > _MAX_WORDS:
        raise _LineError(f"up to {longest} words; a phrase has at most {_MAX_WORDS}")
    missing = set(_IN_VALUE.findall(entry.value or "")) - _names(node)
    if missing:
        name = min(missing)
        raise _LineError(f"the value needs {{{name}}}, which the form does not have; add it to the form")


def _lengths(node: _Node) -> tuple[int, int]:
    """The fewest and the most words."""
    if isinstance(node, _Word):
        return len(node.words), len(node.words)
    if isinstance(node, _Use):
        return node.slot.min_words, node.slot.max_words
    if isinstance(node, _Sequence):
        parts = [_lengths(part) for part in node.parts]
        return sum(low for low, _ in parts), sum(high for _, high in parts)
    assert isinstance(node, _Choice)
    options = [_lengths(option) for option in node.options]
    return min(low for low, _ in options), max(high for _, high in options)


def _names(node: _Node) -> set[str]:
    """Names of slots that may have a value."""
    if isinstance(node, _Use):
        return {node.name}
    names: set[str] = set()
    if isinstance(node, _Sequence):
        for part in node.parts:
            more = _names(part)
            if twice := names & more:
                name = min(twice)
                raise _LineError(f"slot {name!r} twice in a phrase; give one of them a name: {{other={name}}}")
            names |= more
    elif isinstance(node, _Choice):
        names.update(*map(_names, node.options))
    return names


def _index(slot: _Slot) -> None:
    """Fills in what follows from the entries."""
    lengths = [_lengths(entry.node) for entry in slot.entries] or [(1, 1)]  # without entries there is a problem already
    slot.min_words, slot.max_words = min(low for low, _ in lengths), max(high for _, high in lengths)
    for entry in slot.entries:
        for word in _first_words(entry.node):
            slot.by_word.setdefault(word, []).append(entry)


def _first_words(node: _Node) -> set[str]:
    if isinstance(node, _Word):
        return {node.words[0]}
    if isinstance(node, _Use):
        return set(node.slot.by_word)
    words: set[str] = set()
    if isinstance(node, _Sequence):
        for part in node.parts:
            words |= _first_words(part)
            if _lengths(part)[0] > 0:
                break
    elif isinstance(node, _Choice):
        words.update(*map(_first_words, node.options))
    return words


# ------------------------------------------------------------------------------------------------------- inflection


def _in_case(entry: _Entry, case: str | None, warnings: list[str]) -> _Node:
    """A form in a case such as «gent» or «gent.plur»."""
    if case is None:
        return entry.node
    parts = entry.node.parts if isinstance(entry.node, _Sequence) else ()
    if len(parts) == 1 and isinstance(parts[0], _Reference):
        reference = parts[0]
        return _Sequence((_Reference(reference.name, reference.slot, reference.case or case),))
    words = [part for part in parts if isinstance(part, _Word)]
    if not words or len(words) < len(parts):
        raise _LineError(f"in {case!r} only plain words or one slot can be put; write the form out in another slot")
    inflected = _inflected([word.raw for word in words], case, entry.where, warnings)
    return _Sequence(
        tuple(
            _Word(word.raw, word.base, tuple(normalise(form).split()))
            for word, form in zip(words, inflected, strict=True)
        )
    )


def _inflected(words: list[str], case: str, where: str, warnings: list[str]) -> list[str]:
    """Words in a case: the first noun and the adjectives before it; what comes behind stays («ростов на дону»)."""
    analyser = _analyser()
    wanted = set(case.split("."))
    cleaned = ["-".join(filter(None, map(normalise, word.split("-")))) for word in words]
    readings = [[one for one in analyser.parse(word) if "nomn" in one.tag] for word in cleaned]
    nouns: list[Any] = [next((one for one in of_word if one.tag.POS == "NOUN"), None) for of_word in readings]
    head = next((place for place, noun in enumerate(nouns) if noun is not None), None)
    agreement: set[str] = set()
    last = len(words) - 1
    if head is not None:
        noun, last = nouns[head], head
        number = wanted & _NUMBERS or {noun.tag.number or "sing"}
        agreement = number | ({noun.tag.gender} if number == {"sing"} and noun.tag.gender else set())
        if "accs" in wanted and noun.tag.animacy:
            agreement |= {noun.tag.animacy}
    forms = list(words)
    for place in range(last + 1):
        noun, word = nouns[place], words[place]
        candidates = [noun] if place == head else readings[place]
        agreed = set() if place == head else agreement
        found = next(filter(None, (_form(one, wanted, agreed) for one in candidates)), None)
        if found is None:
            raise _LineError(f"{word!r} cannot be put in {case!r}; write the forms out in a slot of their own")
        if not analyser.word_is_known(cleaned[place]):
            warnings.append(f"{where}: {word!r} is in no dictionary, its {case!r} is guessed as {found!r}; check it")
        forms[place] = found
    return forms


def _form(reading: Any, wanted: set[str], agreement: set[str]) -> str | None:
    for grammemes in (wanted, {_PLAIN_CASE.get(grammeme, grammeme) for grammeme in wanted}):
        # Adjectives tell animate from inanimate only in some of their accusatives.
        for agreed in (agreement, agreement - {"anim", "inan"}):
            if inflected := reading.inflect(grammemes | agreed):
                return str(inflected.word)
    return None


@functools.cache
def _analyser() -> Any:
    try:
        import pymorphy3
    except ModuleNotFoundError:
        raise ConfigError(
            "cases in a grammar need the package pymorphy3: pip install 'kvarts[morphology]', or write the forms out"
        ) from None
    return pymorphy3.MorphAnalyzer(lang="ru")


# ---------------------------------------------------------------------------------------------------------- parsing


def _matcher(words: list[str]) -> Callable[[_Node, int], _Matches]:
    """A function from a node and a place to all ways to match from there: where each ends, and its pieces."""

    @functools.cache
    def match(node: _Node, start: int) -> _Matches:
        if isinstance(node, _Word):
            stop = start + len(node.words)
            return ((stop, (node.base,)),) if tuple(words[start:stop]) == node.words else ()
        if isinstance(node, _Choice):
            return unique(found for option in node.options for found in match(option, start))
        if isinstance(node, _Use):
            return unique((stop, ((node.name, value),)) for stop, value in values(node.slot, start))
        assert isinstance(node, _Sequence)
        found: _Matches = ((start, ()),)
        for part in node.parts:
            found = unique(
                (stop, (*before, *pieces)) for middle, before in found for stop, pieces in match(part, middle)
            )
        return found

    @functools.cache
    def values(slot: _Slot, start: int) -> tuple[tuple[int, str], ...]:
        if start == len(words):
            return ()
        return tuple(
            (stop, _value(entry.value, pieces))
            for entry in slot.by_word.get(words[start], ())
            for stop, pieces in match(entry.node, start)
        )

    def unique(found: Iterator[tuple[int, tuple[_Piece, ...]]]) -> _Matches:
        return tuple(dict.fromkeys(found))

    return match


def _value(template: str | None, pieces: tuple[_Piece, ...]) -> str:
    if template is None:
        return " ".join(piece if isinstance(piece, str) else piece[1] for piece in pieces)
    inner = dict(piece for piece in pieces if isinstance(piece, tuple))
    # Braces that name no slot of the form have been refused; a slot that was left out has no value.
    return _IN_VALUE.sub(lambda found: inner.get(found[1], ""), template)


# ------------------------------------------------------------------------------------------------------------ graph

_State: TypeAlias = tuple[bool, tuple[tuple[str, int], ...]]  # whether a text may end here; words and the next states
_END = 0


class _WordGraph:
    """Builds the automaton over words from the end of the phrases to their beginning.

    States are equal if the same remainders follow, and then they are one: so it is minimal. A state's number is higher
    than those of all that follow it.
    """

    def __init__(self, name: str) -> None:
        self.states: list[_State] = [(True, ())]
        self._name = name
        self._ids: dict[_State, int] = {self.states[0]: _END}
        self._unions: dict[frozenset[int], int] = {}
        self._slots: dict[tuple[_Slot, int], int] = {}
        self._arcs = 0

    def slot(self, slot: _Slot, after: int) -> int:
        """The state from which the slot is said, and then what follows the state `after`."""
        key = (slot, after)
        if key not in self._slots:
            self._slots[key] = self._union(frozenset(self._before(entry.node, after) for entry in slot.entries))
        return self._slots[key]

    def _before(self, node: _Node, after: int) -> int:
        if isinstance(node, _Word):
            for word in reversed(node.words):
                after = self._state((False, ((word, after),)))
            return after
        if isinstance(node, _Sequence):
            for part in reversed(node.parts):
                after = self._before(part, after)
            return after
        if isinstance(node, _Choice):
            return self._union(frozenset(self._before(option, after) for option in node.options))
        assert isinstance(node, _Use)
        return self.slot(node.slot, after)

    def _union(self, ids: frozenset[int]) -> int:
        if len(ids) == 1:
            return next(iter(ids))
        if ids not in self._unions:
            targets: dict[str, set[int]] = {}
            for state in ids:
                for word, target in self.states[state][1]:
                    targets.setdefault(word, set()).add(target)
            arcs = tuple((word, self._union(frozenset(targets[word]))) for word in sorted(targets))
            self._unions[ids] = self._state((any(self.states[state][0] for state in ids), arcs))
        return self._unions[ids]

    def _state(self, state: _State) -> int:
        if state not in self._ids:
            self._ids[state] = len(self.states)
            self.states.append(state)
            self._arcs += len(state[1])
            if self._arcs > 4 * MAX_STATES:  # some of them serve only to build others
                raise _too_large(self._name)
        return self._ids[state]


def _too_large(name: str) -> GrammarError:
    return GrammarError(
        f"{name}: too large, more than {MAX_STATES:,} letters in the graph; take out alternatives, or put slots at the "
        "end of phrases, where all of them share it"
    )


def _counts(states: list[_State]) -> list[int]:
    """Of each state the number of texts that follow it."""
    counts: list[int] = []
    for is_final, arcs in states:
        counts.append(is_final + sum(counts[target] for _, target in arcs))
    return counts


def _reachable(states: list[_State], root: int) -> list[int]:
    """States that a text can come by, the root first and the others before all that follow them."""
    reached = {root}
    for state in range(root, -1, -1):
        if state in reached:
            reached.update(target for _, target in states[state][1])
    return sorted(reached, reverse=True)


def _lengths_in_letters(states: list[_State], root: int) -> tuple[int, int]:
    shortest: dict[int, int] = {}
    longest: dict[int, int] = {}
    for state in reversed(_reachable(states, root)):
        is_final, arcs = states[state]
        ends = [0] if is_final else []
        shortest[state] = min(ends + [len(word) + shortest[target] for word, target in arcs])
        longest[state] = max(ends + [len(word) + longest[target] for word, target in arcs])
    return shortest[root], longest[root]


def _letter_graph(states: list[_State], root: int, name: str) -> LetterGraph:
    spaces = {state: node for node, state in enumerate(s for s in _reachable(states, root) if states[s][1])}
    last = len(spaces)  # the space behind the last word
    labels = [ALPHABET.index(" ")] * (last + 1)
    parents = list(range(last + 1))
    ends: list[list[int]] = [[] for _ in labels]
    for state, space in spaces.items():
        children: dict[tuple[int, int], int] = {}
        for word, target in states[state][1]:
            node = space
            for label in encode(word):
                child = children.get((node, label))
                if child is None:
                    child = children[node, label] = len(labels)
                    labels.append(label)
                    parents.append(node)
                node = child
            if states[target][1]:
                ends[spaces[target]].append(node)
            if states[target][0]:
                ends[last].append(node)
        if len(labels) > MAX_STATES:
            raise _too_large(name)
    first_ends = np.cumsum([0, *map(len, ends)])
    flat = [node for nodes in ends for node in nodes]
    label_array, parent_array = np.array(labels, np.int32), np.array(parents, np.int32)
    is_repeat = label_array[parent_array] == label_array
    is_repeat[: last + 1] = False
    return LetterGraph(
        num_spaces=last + 1,
        labels=label_array,
        parents=parent_array,
        barriers=np.where(is_repeat, -np.inf, 0).astype(np.float32),
        first_ends=first_ends.astype(np.int32),
        ends=np.array(flat, np.int32),
    )
