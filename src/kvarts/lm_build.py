"""``kvarts lm build``: an n-gram language model from texts, as an ARPA file."""

from __future__ import annotations

import argparse
import gzip
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

from kvarts import ngram
from kvarts.alphabet import foreign_characters
from kvarts.arpa import Perplexity, read_arpa
from kvarts.errors import ConfigError, LanguageModelError
from kvarts.files import atomic_text_writer, atomic_writer
from kvarts.manifest import read_manifest
from kvarts.progress import progress_bar
from kvarts.text import normalise

_STDIN: Final = Path("-")
_MANIFEST_SUFFIXES: Final = (".jsonl", ".json")
_SUFFIXES: Final = (".arpa", ".arpa.gz")
_NAMED = 5  # lines that a message names
_LINES = 10_000  # written at a time
# In a row. Of 222,667 sentences of prose and manuals 138 share four with one of 133 others, and all that they share are
# eleven set phrases, as «до тех пор пока».
_COMMON_WORDS: Final = 4


@dataclass
class Reading:
    """What was found in texts so far.

    Attributes:
        sentences: that were taken.
        words: in them.
        left_out: lines with characters outside the alphabet.
        first_left_out: where the first of them are, and which characters.
        held_out: lines that were left out because a test set says the same.
    """

    sentences: int = 0
    words: int = 0
    left_out: int = 0
    first_left_out: list[str] = field(default_factory=list)
    held_out: int = 0

    def problem(self) -> str:
        """What is to be said of the lines that were left out."""
        more = ", …" if self.left_out > len(self.first_left_out) else ""
        lines = "1 line has" if self.left_out == 1 else f"{self.left_out} lines have"
        return f"{lines} characters that are no Russian letters: {', '.join(self.first_left_out)}{more}"


class HeldOut:
    """Texts of manifests that a language model must not have seen, for they are to test it.

    Args:
        manifests: paths, and how many words in a row a sentence may not share with one of their texts.

    Raises:
        ManifestError: see `read_manifest`.
    """

    def __init__(self, manifests: Sequence[tuple[Path, int]]) -> None:
        self._texts: set[tuple[str, ...]] = set()
        self._runs: dict[int, set[tuple[str, ...]]] = {}  # by their number of words
        for path, length in manifests:
            for utterance in read_manifest(path):
                words = normalise(utterance.text).split()
                self._texts.add(tuple(words))
                self._runs.setdefault(length, set()).update(_runs(words, length))

    def says(self, words: Sequence[str]) -> bool:
        """Whether a sentence is one of the texts, or shares too many words in a row with one."""
        shares = any(not of_length.isdisjoint(_runs(words, length)) for length, of_length in self._runs.items())
        return shares or tuple(words) in self._texts


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def read_sentences(path: Path, reading: Reading, held_out: HeldOut | None = None) -> Iterator[list[str]]:
    """The normalised words of each line of a text, or of each text of a manifest.

    Lines without words are skipped. Those that hold characters outside the alphabet even when normalised are left out
    whole, and noted, and so are those that are held out.

    Args:
        path: a UTF-8 text, a manifest if its name ends in .jsonl or .json, «-» for standard input.
        reading: is added to.
        held_out: texts that are to test the model.

    Raises:
        LanguageModelError: the text is missing, cannot be read, or is not UTF-8.
        ManifestError: see `read_manifest`.
    """
    for where, text in _manifest_texts(path) if path.suffix in _MANIFEST_SUFFIXES else _lines(path):
        normalised = normalise(text)
        foreign = foreign_characters(normalised)
        if foreign:
            reading.left_out += 1
            if len(reading.first_left_out) < _NAMED:
                reading.first_left_out.append(f"{where} ({foreign})")
        elif normalised:
            words = normalised.split()
            if held_out is not None and held_out.says(words):
                reading.held_out += 1
                continue
            reading.sentences += 1
            reading.words += len(words)
            yield words


def _manifest_texts(path: Path) -> Iterator[tuple[str, str]]:
    for utterance in read_manifest(path):
        yield utterance.where, utterance.text


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    name = "standard input" if path == _STDIN else str(path)
    try:
        with nullcontext(sys.stdin.buffer) if path == _STDIN else path.open("rb") as file:
            size = 0 if path == _STDIN else path.stat().st_size
            with progress_bar(f"reading {name}", size) as advance:
                # Bytes, so that lines end at \n alone, as in manifests.
                for number, line in enumerate(file, start=1):
                    try:
                        text = line.decode()  # a byte order mark is nothing to `normalise`
                    except UnicodeDecodeError as error:
                        place = f"byte {error.start + 1} of the line"
                        raise LanguageModelError(f"{name}:{number}: not UTF-8 ({place}); save it as UTF-8") from None
                    yield f"{name}:{number}", text
                    advance(len(line))
    except FileNotFoundError:
        raise LanguageModelError(f"{name}: no such text; check the path") from None
    except IsADirectoryError:
        raise LanguageModelError(f"{name}: is a folder; give the files inside it") from None
    except OSError as error:
        raise LanguageModelError(f"{name}: could not be read ({error.strerror or error}); check the path") from error


def read_frequencies(path: Path) -> dict[str, float]:
    """Words and how often they occur: a word a line, then a number above 0 if there is one.

    Words are normalised; those that are then the same are counted together.

    Raises:
        LanguageModelError: see `read_sentences`; or a line that is neither, or no line at all.
    """
    found: dict[str, float] = {}
    for where, line in _lines(path):
        parts = line.split()
        if not parts:
            continue
        word = normalise(parts[0])
        try:
            count = float(parts[1]) if len(parts) == 2 else 1.0
        except ValueError:
            count = math.nan
        if len(parts) > 2 or not 0 < count < math.inf:
            raise LanguageModelError(f"{where}: {line.strip()!r} is not a word and a number above 0; write one a line")
        if word.split() != [word] or foreign_characters(word):
            raise LanguageModelError(f"{where}: {parts[0]!r} is no Russian word; leave it out")
        found[word] = found.get(word, 0.0) + count
    if not found:
        raise LanguageModelError(f"{path}: there is no word in it; write one a line")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Estimates an n-gram language model of words with modified Kneser-Ney smoothing and writes it as an ARPA file. "
        "Every line of a text is a sentence. It is normalised as transcripts are: lower case, ё as е, no punctuation. "
        "A line that then still has digits or foreign letters is left out whole, for what is said there is not known, "
        "and a warning names the first of them."
    )
    parser.add_argument(
        "texts",
        metavar="TEXT",
        type=Path,
        nargs="+",
        help="UTF-8, a sentence a line; - is standard input; of manifests (.jsonl, .json) the field text is taken",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=_arpa_path, required=True, help="the model, .arpa or .arpa.gz"
    )
    parser.add_argument(
        "--order",
        metavar="N",
        type=int,
        choices=range(1, ngram.MAX_ORDER + 1),
        default=3,
        help=f"words in the longest n-grams, 1 to {ngram.MAX_ORDER} (default: %(default)s)",
    )
    parser.add_argument(
        "--prune",
        metavar="N",
        type=_count,
        nargs="+",
        default=[],
        help="leave out n-grams seen N times or less, a number for each order, the last one for all above it; the "
        "first must be 0: «0 0 1» leaves out what is longer than two words and seen once",
    )
    parser.add_argument(
        "--decimals",
        type=int,
        choices=range(1, 10),
        default=ngram.ARPA_DECIMALS,
        metavar="N",
        help="of the logarithms in the file, 1 to 9 (default: %(default)s); 3 make the file smaller by a fifth, and "
        "change a probability by a thousandth",
    )
    parser.add_argument(
        "--min-count",
        metavar="N",
        type=_count,
        default=1,
        help="words seen less often are counted as unknown (default: %(default)s)",
    )
    parser.add_argument(
        "--words",
        metavar="FILE",
        type=Path,
        help="words of the language, one a line, each with how often it occurs (1 if there is no number): the model "
        "knows them all, and expects of new words the frequent ones first",
    )
    parser.add_argument(
        "--without",
        metavar=("MANIFEST", "N"),
        nargs="+",
        action="append",
        default=[],
        help=f"leave out lines that share N words in a row (default: {_COMMON_WORDS}) with a text of this manifest, or "
        "are one of them: a test set that the model has read is none. Once for each manifest",
    )
    parser.add_argument(
        "--perplexity", metavar="TEXT", type=Path, help="say how well the model expects this text, which is not learnt"
    )
    parser.add_argument("--strict", action="store_true", help="a line that would be left out is an error instead")


def run(args: argparse.Namespace) -> int:
    """Builds the model and prints what it is made of."""
    try:
        ngram.thresholds(args.order, args.prune)
    except ValueError as error:
        raise ConfigError(f"--prune: {error}") from None
    # Before the model is built, for it may take a while.
    expected = [] if args.perplexity is None else _to_expect(args.perplexity, args.strict)
    held_out = HeldOut([_held_out_manifest(values) for values in args.without])
    reading = Reading()
    # Opened first: where nothing can be written, that is known at once.
    with _writer(args.output) as file:
        model = _model(args, reading, held_out)
        total = sum(len(grams.word) for grams in model.orders)
        lines = model.arpa(args.decimals)
        with progress_bar(f"writing {args.output.name}", total) as advance:
            while part := list(islice(lines, _LINES)):
                file.write("".join(part))
                advance(len(part))
    _print_table(model, reading)
    if expected:
        _print_perplexity(read_arpa(args.output).perplexity(expected))
    print(f"model: {args.output}")
    return 0


def _model(args: argparse.Namespace, reading: Reading, held_out: HeldOut) -> ngram.LanguageModel:
    sentences = (words for path in args.texts for words in read_sentences(path, reading, held_out))
    frequencies = None if args.words is None else read_frequencies(args.words)
    try:
        model = ngram.train(sentences, args.order, args.prune, args.min_count, frequencies)
    except ValueError:  # there is no word
        names = ", ".join(map(str, args.texts))
        if reading.sentences:
            problem = f"no word is there {args.min_count} times; lower --min-count"
        elif reading.held_out:
            problem = "all that it says is in the manifests of --without; give more text"
        elif reading.left_out:
            problem = f"no line can be used; {reading.problem()}; write numbers as words"
        else:
            problem = "there is no word in it; give a text with a sentence a line"
        raise LanguageModelError(f"{names}: {problem}") from None
    _warn(reading, args.strict)
    return model


def _held_out_manifest(values: Sequence[str]) -> tuple[Path, int]:
    number = values[1] if len(values) == 2 else str(_COMMON_WORDS)
    if len(values) > 2 or not number.isdecimal() or int(number) < 1:
        what = "name one manifest and a number of words, 1 or more; give the option once for each"
        raise ConfigError(f"--without {' '.join(values)}: {what}")
    return Path(values[0]), int(number)


def _to_expect(path: Path, is_strict: bool) -> list[list[str]]:
    reading = Reading()
    sentences = list(read_sentences(path, reading))
    _warn(reading, is_strict)
    if not sentences:
        raise LanguageModelError(f"{path}: no line can be used for --perplexity; give a text with a sentence a line")
    return sentences


def _warn(reading: Reading, is_strict: bool) -> None:
    """Tells of lines that were left out.

    Raises:
        LanguageModelError: there are some, and none may be.
    """
    if reading.left_out and is_strict:
        raise LanguageModelError(
            f"{reading.problem()}; write numbers as words, or leave such lines out without --strict"
        )
    if reading.left_out:
        print(f"kvarts: warning: left out: {reading.problem()}; write numbers as words to have them", file=sys.stderr)


@contextmanager
def _writer(path: Path) -> Iterator[TextIO]:
    if path.suffix != ".gz":
        with atomic_text_writer(path) as text:
            yield text
        return
    with (
        atomic_writer(path) as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
        TextIOWrapper(packed, encoding="utf-8", newline="\n") as text,
    ):
        yield text


def _print_table(model: ngram.LanguageModel, reading: Reading) -> None:
    special = (ngram.BEGIN, ngram.END, ngram.UNKNOWN)
    rows = [("sentences", reading.sentences), ("words", reading.words), ("vocabulary", len(model.words) - len(special))]
    if reading.held_out:
        rows.insert(1, ("held out", reading.held_out))
    if reading.left_out:
        rows.insert(1, ("left out", reading.left_out))
    for name, number in rows:
        print(f"{name:10} {number:13,}")
    print(f"\n{'order':10} {'n-grams':>13}   discounts of counts 1, 2, 3 and more")
    for order, (grams, discounts) in enumerate(zip(model.orders, model.discounts, strict=True), start=1):
        note = "   (too few n-grams to estimate them)" if discounts == ngram.FALLBACK_DISCOUNTS else ""
        print(f"{order:<10} {len(grams.word):13,}   {'  '.join(f'{each:.3f}' for each in discounts)}{note}")
    print()


def _print_perplexity(found: Perplexity) -> None:
    share = 100 * found.unknown_words / found.words
    print(f"perplexity {found.perplexity:.1f} of {found.words:,} words, of which {share:.2f} % are unknown")
    print(f"           {found.perplexity_of_known:.1f} without the unknown ones\n")


def _arpa_path(text: str) -> Path:
    if not text.endswith(_SUFFIXES):
        raise argparse.ArgumentTypeError(f"{text} should end in {' or '.join(_SUFFIXES)}")
    return Path(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 up")
    return int(text)
