"""N-gram language models in ARPA format, of any tool, as arrays for a search in C and in Python.

The format is that of SRILM's manual page ngram-format(5). A probability that is not there is computed by backing off:
S. M. Katz, «Estimation of probabilities from sparse data for the language model component of a speech recognizer», IEEE
Transactions on Acoustics, Speech and Signal Processing 35 (1987).
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import ALPHABET
from kvarts.errors import LanguageModelError
from kvarts.ngram import BEGIN, END, MAX_ORDER, UNKNOWN
from kvarts.text import normalise

BEGIN_ID: Final = 0
END_ID: Final = 1
UNKNOWN_ID: Final = 2

_SPECIAL_IDS: Final = {BEGIN: BEGIN_ID, END: END_ID, UNKNOWN: UNKNOWN_ID, "<UNK>": UNKNOWN_ID}
_FOREIGN: Final = -1  # instead of an id

_LOG10_OF_NOTHING = -99.0  # how SRILM writes the logarithm of 0; nothing lower is kept
# Of «<unk>» or «</s>» where the model has none. KenLM takes -100, which outdoes all that a search weighs against it.
_LOG10_OF_MISSING = -7.0
_LOG10_ROUNDING = 1e-3  # IRSTLM and others write probabilities a little above 1
_UNNORMALISED_SHARE = 0.01  # of all words, by their probability; more says that the text was not normalised

_ROWS = 1 << 16  # read at a time
_UNPACKED_AT_ONCE: Final = 1 << 18  # bytes
_OTHER_FORMATS: Final = {
    b"mmap lm ": "KenLM's binary format",
    b"blmt": "IRSTLM's binary format",
    b"Qblmt": "IRSTLM's binary format",
    b"iARPA": "IRSTLM's intermediate format",
    b"qARPA": "IRSTLM's intermediate format",
    b"SRILM_BINARY": "SRILM's binary format",
}
_COUNT = re.compile(rb"ngram\s+(\d{1,9})\s*=\s*(\d{1,18})")
_IS_SPACE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))  # as bytes.split has it
_SPELLABLE = re.compile(f"[{ALPHABET.strip()}]+")

_COPY_AGAIN: Final = "copy the file again or make the model anew"
_BUILD_FROM_NORMALISED: Final = "build the model from normalised text, as kvarts lm build does"

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BackoffModel:
    """A backoff model as a tree of contexts.

    Node 0 is the empty context, node 1 + w the single word w, and then come the longer n-grams, order by order, each
    order sorted by the node of the context (all words but the last), then by the last word. So the children of a node,
    the n-grams that are its own with one word more, lie side by side.

    Attributes:
        order: longest n-gram that the file has a section for.
        words: by id; 0 is «<s>», 1 «</s>», 2 «<unk>», and the others are the spellable ones in the file's order.
        log_probability: (nodes,) float32, natural logarithm of the probability of the node's last word after its
            context; of node 0 0.
        backoff: (nodes,) float32, natural logarithm; 0 where the file has none, and of n-grams of the highest order.
        suffix: (nodes,) int32, the longest proper suffix that is a node; of single words and of node 0 it is 0.
        word: (nodes,) int32, id of the last word; of node 0 -1.
        first_child: (nodes + 1,) int32, the children of node n are first_child[n] to first_child[n + 1] - 1, sorted by
            word; those of node 0 are all single words.
        foreign_words: number of words that were left out, with all n-grams that hold them, because they have letters
            that no label stands for.
    """

    order: int
    words: tuple[str, ...]
    log_probability: NDArray[np.float32]
    backoff: NDArray[np.float32]
    suffix: NDArray[np.int32]
    word: NDArray[np.int32]
    first_child: NDArray[np.int32]
    foreign_words: int

    @cached_property
    def ids(self) -> dict[str, int]:
        """The words' ids."""
        return {word: number for number, word in enumerate(self.words)}

    def begin(self) -> int:
        """The node at the beginning of a sentence."""
        return 1 + BEGIN_ID

    def score(self, node: int, word: int) -> tuple[float, int]:
        """One word after a context.

        Args:
            node: of the context; `begin` or what this gave for the word before.
            word: its id.

        Returns:
            The natural logarithm of its probability, and the node of the next context: the longest one that can still
            change what comes.
        """
        total = 0.0
        child = self._child(node, word)
        while child < 0:
            total += float(self.backoff[node])
            node = int(self.suffix[node])
            child = self._child(node, word)
        total += float(self.log_probability[child])
        while child and self.first_child[child] == self.first_child[child + 1] and self.backoff[child] == 0:
            child = int(self.suffix[child])
        return total, child

    def _child(self, node: int, word: int) -> int:
        """The node's child by a word, or -1; node 0 has one by every word."""
        if node == 0:
            return 1 + word
        stop = int(self.first_child[node + 1])
        found = bisect_left(self.word, word, int(self.first_child[node]), stop)
        return found if found < stop and self.word[found] == word else -1

    def sentence(self, words: Sequence[str]) -> float:
        """Natural logarithm of the probability of a whole sentence with its end; what is no word is «<unk>»."""
        return sum(score for score, _ in self._scores(words))

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> Perplexity:
        """How well the model expects a text.

        Raises:
            ValueError: there is no sentence.
        """
        everything = of_known = 0.0
        words = ends = unknown = 0
        for sentence in sentences:
            for score, is_known in self._scores(sentence):
                everything += score
                of_known += score if is_known else 0.0
                unknown += not is_known
            words += len(sentence)
            ends += 1
        if not ends:
            raise ValueError("there is no sentence")
        return Perplexity(
            perplexity=math.exp(-everything / (words + ends)),
            perplexity_of_known=math.exp(-of_known / (words + ends - unknown)),
            words=words,
            unknown_words=unknown,
        )

    def _scores(self, words: Sequence[str]) -> Iterator[tuple[float, bool]]:
        """Of each word of a sentence, and of its end: the log-probability, and whether the model knows it."""
        node = self.begin()
        for number in [*(self.ids.get(word, UNKNOWN_ID) for word in words), END_ID]:
            score, node = self.score(node, number)
            yield score, number != UNKNOWN_ID


@dataclass(frozen=True)
class Perplexity:
    """How well a model expects a text: the lower the better.

    Attributes:
        perplexity: per word, ends of sentences counted as words; unknown ones have the probability of «<unk>».
        perplexity_of_known: the same without unknown words, as SRILM gives it; only their being in contexts counts.
        words: in the text, without ends of sentences.
        unknown_words: those of them that the model does not have.
    """

    perplexity: float
    perplexity_of_known: float
    words: int
    unknown_words: int


def read_arpa(path: Path) -> BackoffModel:
    """Reads an ARPA file, as text or compressed by gzip (whatever its name).

    Tabs or spaces part columns, the backoff may be left out, «<unk>» may be written «<UNK>», and text before the line
    ``\\data\\`` is skipped. Logarithms below -99 are taken as -99. A model without «<unk>» or «</s>» gets it with the
    probability 1e-7, one without «<s>» a context of which nothing is known. Words with letters that no label stands for
    are left out, see `BackoffModel.foreign_words`.

    Raises:
        LanguageModelError: the file is missing, empty, cut off, or no ARPA file; a line is not as it must be, an n-gram
            stands there twice, or its context or a word of it has no line; no word can be spelt with the alphabet, or
            those that only normalising (ё as е, lower case) would make spellable hold more than 1 % of the probability.
    """
    with _opened(path) as file:
        lines = _Lines(path, file)
        counts = _counts(lines)
        single = _single_words(lines, counts[0])
        num_words = len(single.words)
        # Of all nodes but node 0: context node · number of words + word. Keys rise from node to node, so that a node is
        # found by bisection: that of the key at place k is k + 1.
        keys = np.arange(num_words)
        suffix = np.zeros(1 + num_words, np.int64)
        log10_probability, log10_backoff = [np.zeros(1), single.log10_probability], [np.zeros(1), single.log10_backoff]
        for order, count in enumerate(counts[1:], start=2):
            lines.heading(order)
            grams = _ngrams(lines, order, count, single.ids)
            context = 1 + grams.words[:, 0]
            for position in range(1, order - 1):
                context = _children(keys, context * num_words + grams.words[:, position])
                if (context < 0).any():
                    row = int(context.argmin())
                    text = " ".join(single.words[word] for word in grams.words[row, : position + 1])
                    problem = f"its context «{text}» is not among the {position + 1}-grams; {_COPY_AGAIN}"
                    lines.refuse(problem, grams.line[row])
            own = context * num_words + grams.words[:, -1]
            sorting = np.argsort(own, kind="stable")
            own, context, grams = own[sorting], context[sorting], grams.taken(sorting)
            twice = 1 + np.flatnonzero(np.diff(own) == 0)
            if len(twice):
                lines.refuse(f"this n-gram was there before; {_COPY_AGAIN}", grams.line[twice].min())
            suffix = np.concatenate([suffix, _suffixes(keys, suffix, context, grams.words[:, -1], num_words)])
            keys = np.concatenate([keys, own])
            log10_probability.append(grams.log10_probability)
            log10_backoff.append(grams.log10_backoff)
        lines.heading(None)
    # Of the longest n-grams there should be none; a context of all their words would be one too long.
    log10_backoff[-1] = np.zeros_like(log10_backoff[-1])
    contexts, words = np.divmod(keys, num_words)
    return BackoffModel(
        order=len(counts),
        words=single.words,
        log_probability=_natural(log10_probability),
        backoff=_natural(log10_backoff),
        suffix=suffix.astype(np.int32),
        word=np.concatenate([[-1], words]).astype(np.int32),
        first_child=np.concatenate([[1], 1 + np.bincount(contexts, minlength=len(suffix)).cumsum()]).astype(np.int32),
        foreign_words=single.foreign_words,
    )


@dataclass(frozen=True)
class _NGrams:
    """N-grams of one order as the file has them: a row each, without those that hold foreign words."""

    words: Integers  # (rows, order) ids
    log10_probability: Floats
    log10_backoff: Floats
    line: Integers  # of the file

    def taken(self, rows: Integers) -> _NGrams:
        return _NGrams(self.words[rows], self.log10_probability[rows], self.log10_backoff[rows], self.line[rows])


@dataclass(frozen=True)
class _SingleWords:
    words: tuple[str, ...]
    log10_probability: Floats  # (words,)
    log10_backoff: Floats  # (words,)
    ids: dict[bytes, int]  # of all words of the file as they stand there; `_FOREIGN` for those left out
    foreign_words: int


class _Lines:
    """The lines of an ARPA file, and where in it one is."""

    def __init__(self, path: Path, file: Iterable[bytes]) -> None:
        self.path = path
        self.number = 0  # lines taken
        self._lines = iter(file)

    def take(self, count: int) -> list[bytes]:
        """The next lines, fewer than `count` where the file ends, but one at least."""
        taken = list(islice(self._lines, count))
        self.number += len(taken)
        if not taken:
            self.refuse(f"the file ends here without \\end\\; {_COPY_AGAIN}")
        return taken

    def filled(self) -> bytes:
        """The next line that is not blank, without space around it."""
        line = b""
        while not line:
            line = self.take(1)[0].strip()
        return line

    def heading(self, order: int | None) -> None:
        """Takes the heading of an order's section, or, for None, the end.

        Raises:
            LanguageModelError: another line is there.
        """
        expected = "\\end\\" if order is None else f"\\{order}-grams:"
        line = self.filled()
        if line != expected.encode():
            above = f"{(order or 1) - 1}-grams" if order else "n-grams"
            self.refuse(
                f"{expected} should be here; there are more {above} than \\data\\ says, or it is cut; {_COPY_AGAIN}"
            )

    def refuse(self, problem: str, number: int | np.int64 | None = None) -> NoReturn:
        """Raises the error for the line of a number, by default the last one taken."""
        raise LanguageModelError(f"{self.path}:{self.number if number is None else number}: {problem}")


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    """The lines of a file, unpacked if need be."""
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] != b"\x1f\x8b":
                yield _checked(path, file.peek(16), file)
                return
            # A GzipFile finds its lines in Python: half a million of them took 0.2 s longer.
            with gzip.open(file) as unpacked, io.BufferedReader(unpacked, _UNPACKED_AT_ONCE) as lines:
                yield _checked(path, lines.peek(16), lines)
    except FileNotFoundError:
        raise LanguageModelError(f"{path}: no such language model; check the path") from None
    except IsADirectoryError:
        raise LanguageModelError(f"{path}: is a folder; give the ARPA file inside it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LanguageModelError(f"{path}: damaged or cut off ({error}); {_COPY_AGAIN}") from None
    except OSError as error:
        raise LanguageModelError(f"{path}: could not be read ({error.strerror or error}); check the path") from error


def _checked(path: Path, beginning: bytes, lines: Iterable[bytes]) -> Iterable[bytes]:
    if not beginning:
        raise LanguageModelError(f"{path}: is empty; {_COPY_AGAIN}")
    for magic, name in _OTHER_FORMATS.items():
        if beginning.startswith(magic):
            raise LanguageModelError(f"{path}: is in {name}; give the ARPA file that belongs to it")
    return lines


def _counts(lines: _Lines) -> list[int]:
    """How many n-grams of each order \\data\\ says there are. Takes all lines to the heading of the single words."""
    try:
        while lines.filled().removeprefix(b"\xef\xbb\xbf") != b"\\data\\":
            pass
    except LanguageModelError:
        raise LanguageModelError(f"{lines.path}: has no line \\data\\, so it is no ARPA file; give one") from None
    counts: list[int] = []
    while (line := lines.filled()) != b"\\1-grams:":
        found = _COUNT.fullmatch(line)
        if found is None or int(found[1]) != len(counts) + 1:
            lines.refuse(f"should be «ngram {len(counts) + 1}=…», or \\1-grams: behind all of these; {_COPY_AGAIN}")
        counts.append(int(found[2]))
    if not 1 <= len(counts) <= MAX_ORDER:
        lines.refuse(f"\\data\\ has {len(counts)} orders; there must be 1 to {MAX_ORDER}; make the model anew")
    return counts


@dataclass(frozen=True)
class _Rows:
    """Lines of one section, but for the blank ones."""

    words: list[NDArray[np.object_]]  # of each position, as bytes
    log10_probability: Floats
    log10_backoff: Floats
    line: Integers  # of the file


def _rows(lines: _Lines, order: int, count: int) -> Iterator[_Rows]:
    """The lines of a section, in parts."""
    while count:
        first = lines.number + 1
        text = b"".join(lines.take(min(count, _ROWS)))
        # Fields of all lines one after the other: a list for each line would keep Python's collector of garbage busy.
        fields = np.array(text.split(), object)
        widths = _widths(text)
        line = first + np.flatnonzero(widths)
        widths = widths[widths > 0]
        start = np.cumsum(widths) - widths
        for row in np.flatnonzero((widths != order + 1) & (widths != order + 2))[:1]:
            if fields[start[row]].startswith(b"\\"):
                lines.refuse(
                    f"\\data\\ says that {count - row} more {order}-grams come before; {_COPY_AGAIN}", line[row]
                )
            fields_wanted = f"log-probability, {order} words and perhaps a backoff"
            lines.refuse(f"{widths[row]} fields where there should be {fields_wanted}; {_COPY_AGAIN}", line[row])
        has_backoff = widths == order + 2
        backoff = np.zeros(len(widths))
        backoff[has_backoff] = _logarithms(
            lines, fields[start[has_backoff] + order + 1], line[has_backoff], -_LOG10_OF_NOTHING
        )
        count -= len(widths)
        yield _Rows(
            [fields[start + position] for position in range(1, order + 1)],
            np.minimum(_logarithms(lines, fields[start], line, _LOG10_ROUNDING), 0),
            backoff,
            line,
        )


def _widths(text: bytes) -> Integers:
    """How many fields each line has."""
    characters = np.frombuffer(text if text.endswith(b"\n") else text + b"\n", np.uint8)
    is_space = _IS_SPACE[characters]
    starts = np.flatnonzero(~is_space & np.concatenate([[True], is_space[:-1]]))
    return np.diff(np.searchsorted(starts, np.flatnonzero(characters == ord("\n"))), prepend=0)


def _logarithms(lines: _Lines, texts: NDArray[np.object_], line: Integers, highest: float) -> Floats:
    """Decimal logarithms from their texts, not below -99.

    Raises:
        LanguageModelError: one is no number or above `highest`.
    """
    try:
        values = np.array(list(map(float, texts.tolist())), np.float64)
    except ValueError:
        values = np.array([_number_or_nan(text) for text in texts])
    for row in np.flatnonzero(~(values <= highest))[:1]:  # not a number is no less than anything
        text = texts[row].decode("utf-8", "replace")
        what = "is no number" if math.isnan(values[row]) else "is too high for the logarithm of a probability"
        lines.refuse(f"{text!r} {what}; {_COPY_AGAIN}", line[row])
    return np.asarray(np.maximum(values, _LOG10_OF_NOTHING))


def _number_or_nan(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _single_words(lines: _Lines, count: int) -> _SingleWords:
    parts = list(_rows(lines, 1, count))
    at = [line for part in parts for line in part.line.tolist()]
    words = [BEGIN, END, UNKNOWN]
    ids: dict[bytes, int] = {}
    foreign: list[tuple[str, int]] = []  # and the row of each
    for row, raw in enumerate(raw for part in parts for raw in part.words[0]):
        word = raw.decode("utf-8", "replace")
        number = _SPECIAL_IDS.get(word, _FOREIGN)
        if raw in ids or (number == UNKNOWN_ID and UNKNOWN_ID in ids.values()):
            lines.refuse(f"the word «{word}» was there before; {_COPY_AGAIN}", at[row])
        if _is_spellable(word):
            number = len(words)
            words.append(word)
        elif number == _FOREIGN:
            foreign.append((word, row))
        ids[raw] = number
    if len(words) == len((BEGIN, END, UNKNOWN)):
        first = f"; the first is «{foreign[0][0]}»" if foreign else ""
        raise LanguageModelError(
            f"{lines.path}: none of its words has only the recogniser's letters{first}; {_BUILD_FROM_NORMALISED}"
        )
    probabilities = np.concatenate([part.log10_probability for part in parts])
    _refuse_unnormalised(lines, foreign, 10**probabilities, at)
    numbers = np.array(list(ids.values()))  # of each row
    is_kept = numbers != _FOREIGN
    log10_probability = np.full(len(words), _LOG10_OF_MISSING)
    log10_probability[BEGIN_ID] = _LOG10_OF_NOTHING
    log10_probability[numbers[is_kept]] = probabilities[is_kept]
    log10_backoff = np.zeros(len(words))
    log10_backoff[numbers[is_kept]] = np.concatenate([part.log10_backoff for part in parts])[is_kept]
    return _SingleWords(tuple(words), log10_probability, log10_backoff, ids, len(foreign))


def _refuse_unnormalised(
    lines: _Lines, foreign: Sequence[tuple[str, int]], probabilities: Floats, at: Sequence[int]
) -> None:
    """Refuses a model that would lose much for its spelling: «ещё» can never be found, and «еще» is not there."""
    found = [row for word, row in foreign if _is_spellable(normalise(word))]
    share = probabilities[found].sum() / probabilities.sum()
    if share > _UNNORMALISED_SHARE:
        word = next(word for word, row in foreign if row == found[0])
        lines.refuse(
            f"«{word}» should be «{normalise(word)}»; words that the recogniser spells otherwise ({len(found)}) have "
            f"{100 * share:.1f} % of the probability; {_BUILD_FROM_NORMALISED}",
            at[found[0]],
        )


def _ngrams(lines: _Lines, order: int, count: int, ids: dict[bytes, int]) -> _NGrams:
    parts = [_NGrams(np.zeros((0, order), np.int64), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))]
    for part in _rows(lines, order, count):
        try:
            words = np.array([list(map(ids.__getitem__, column.tolist())) for column in part.words], np.int64).T
        except KeyError as error:
            row = min(int((column == error.args[0]).argmax()) for column in part.words if error.args[0] in column)
            word = error.args[0].decode("utf-8", "replace")
            lines.refuse(f"the word «{word}» is not among the 1-grams; {_COPY_AGAIN}", part.line[row])
        rows = _NGrams(words, part.log10_probability, part.log10_backoff, part.line)
        parts.append(rows.taken(np.flatnonzero((words != _FOREIGN).all(axis=1))))
    return _NGrams(
        np.concatenate([part.words for part in parts]),
        np.concatenate([part.log10_probability for part in parts]),
        np.concatenate([part.log10_backoff for part in parts]),
        np.concatenate([part.line for part in parts]),
    )


def _children(keys: Integers, wanted: Integers) -> Integers:
    """The nodes of keys, -1 where there is none."""
    place = np.searchsorted(keys, wanted)
    is_there = keys[np.minimum(place, len(keys) - 1)] == wanted
    return np.where(is_there, place + 1, -1)


def _suffixes(keys: Integers, suffix: Integers, contexts: Integers, words: Integers, num_words: int) -> Integers:
    """Of each n-gram, the node of its longest proper suffix: that of its context, or a shorter one, with its word."""
    found = np.zeros(len(words), np.int64)
    pending = np.arange(len(words))
    shorter = suffix[contexts]
    while len(pending):
        nodes = _children(keys, shorter * num_words + words[pending])
        found[pending] = nodes
        # Where the model was pruned, the suffix may be missing; that of one word never is.
        pending, shorter = pending[nodes < 0], suffix[shorter[nodes < 0]]
    return found


def _is_spellable(word: str) -> bool:
    return _SPELLABLE.fullmatch(word) is not None


def _natural(parts: Sequence[Floats]) -> NDArray[np.float32]:
    return (np.concatenate(parts) * math.log(10)).astype(np.float32)
