"""``kvarts grammar check``: is a grammar right, how large is it, and which of its commands sound alike?

Commands of different meaning are compared letter by letter, without spaces, which nobody hears. A letter more, less or
another costs 1; where both are written differently and sound alike, as the table `_SOUNDS` has it, it costs a quarter.
The table is coarse: it knows no stress, so every о counts as а. Pairs that are one letter apart or less are found.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvarts.errors import ConfigError, ManifestError
from kvarts.grammar import Grammar, Meaning
from kvarts.recogniser_options import add_model_arguments, recogniser_of

if TYPE_CHECKING:
    from kvarts.grammar_metrics import Outcome
    from kvarts.manifest import Utterance

MOST_PHRASES = 20_000  # that are compared
DEFAULT_DISTANCE = 1.0
_SHOWN = 20  # pairs in the text; --json has all of them
_SAME_SOUND = 0.25  # what letters cost that differ and sound alike
_SPOKEN = 200  # phrases that --speak makes

# What stands on the left is heard as what stands on the right; in this order.
_SOUNDS: Final = (
    (r"ть?ся\b", "ца"),  # включаться
    (r"тс|дс", "ц"),  # детский
    (r"стн", "сн"),  # местный
    (r"здн", "зн"),  # поздно
    (r"лнц", "нц"),  # солнце
    (r"[сз]ч|жч", "щ"),  # счёт
    (r"(?<=[ое])г(?=о\b)", "в"),  # первого
    (r"[оа]", "а"),  # unstressed о
    (r"[еэияы]", "и"),  # unstressed е and я
    (r"[ьъ]", ""),
    # Voiced consonants at the end of a word and before voiceless ones.
    *((rf"{voiced}(?=\b|[кпстфхцчшщ])", voiceless) for voiced, voiceless in zip("бвгджз", "пфктшс", strict=True)),
    (r"(.)\1", r"\1"),  # double letters
)


@dataclass(frozen=True)
class Pair:
    """Two phrases of different meaning that sound alike.

    Attributes:
        distance: see the module; 0 for the same letters.
        number: such pairs that differ in the same words, of which this is the first.
    """

    first: str
    second: str
    first_meaning: Meaning
    second_meaning: Meaning
    distance: float
    number: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Reads a grammar, names every mistake by file and line, counts what is in it, and warns of commands that sound "
        "alike: by their letters, and with --model by what a model takes for what. Exit code 0: nothing found; 1: "
        "warnings; 2: no grammar."
    )
    parser.add_argument("grammar", metavar="FILE", type=Path, help="the grammar")
    parser.add_argument("--json", action="store_true", help="all of it as JSON")
    parser.add_argument(
        "--distance",
        metavar="N",
        type=_distance,
        default=DEFAULT_DISTANCE,
        help="letters in which commands differ that sound alike, from 0 to 1.75; one that sounds the same is a quarter "
        "(default: %(default)g)",
    )
    add_model_arguments(parser, is_optional=True)
    sound = parser.add_mutually_exclusive_group()
    sound.add_argument("--audio", metavar="MANIFEST", type=Path, help="recorded commands, for --model")
    sound.add_argument(
        "--speak",
        choices=["espeak-ng"],
        help=f"let this program speak up to {_SPOKEN} phrases, for --model; no voice of a human, but better than none",
    )
    parser.set_defaults(usage_error=parser.error)


def _distance(text: str) -> float:
    number = float(text)
    if not 0 <= number < 2:
        raise ValueError
    return number


def run(args: argparse.Namespace) -> int:
    """Checks as the arguments say and prints what was found.

    Raises:
        GrammarError: the file is no grammar.
        KvartsError: the model or the sound cannot be read.
    """
    if (args.model is None) != (args.audio is None and args.speak is None):
        args.usage_error("--model goes with --audio or --speak, and they with it")
    grammar = Grammar.load(args.grammar)
    texts = compared_phrases(grammar)
    pairs = sound_alikes(grammar, texts, args.distance)
    confused: list[tuple[tuple[str, str], int]] = []
    heard = 0
    if args.model is not None:
        found = _spoken(args, grammar) if args.speak else _recorded(args, grammar)
        heard = len(found)
        confused = _confusions(found).most_common()
    report = {
        "grammar": str(args.grammar),
        "intents": len(grammar.intents),
        "phrases": grammar.num_phrases,
        "letter_states": len(grammar.graph.labels),
        "shortest_letters": grammar.shortest,
        "longest_letters": grammar.longest,
        "compared_phrases": len(texts),
        "is_sample": len(texts) < grammar.num_phrases,
        "warnings": grammar.warnings,
        "sound_alike": [asdict(pair) for pair in pairs],
        "heard_utterances": heard,
        "confused": [{"said": said, "taken_for": taken, "times": times} for (said, taken), times in confused],
    }
    print(json.dumps(report, ensure_ascii=False, indent=2) if args.json else _text(report, pairs))
    return 1 if grammar.warnings or pairs or confused else 0


def compared_phrases(grammar: Grammar) -> list[str]:
    """All phrases, or of more than 20,000 so many drawn by chance, without those that came twice."""
    if grammar.num_phrases <= MOST_PHRASES:
        return list(grammar.phrases())
    return list(dict.fromkeys(grammar.sample(MOST_PHRASES)))


def sound_alikes(grammar: Grammar, texts: Sequence[str], distance: float) -> list[Pair]:
    """Pairs of phrases of different meaning at most so far apart, the nearest first.

    Pairs that differ in the same words are counted and shown once.
    """
    from rapidfuzz.distance import Levenshtein

    found: dict[tuple[Any, ...], Pair] = {}
    meanings: dict[str, list[Meaning]] = {}

    def meanings_of(text: str) -> list[Meaning]:
        if text not in meanings:
            meanings[text] = grammar.meanings(text)
        return meanings[text]

    def add(first: str, second: str, one: Meaning, other: Meaning, apart: float) -> None:
        key = (one.intent, other.intent, *_difference(first, second))
        if key in found:
            found[key] = replace(found[key], number=found[key].number + 1)
        else:
            found[key] = Pair(first, second, one, other, apart, 1)

    for text in texts:
        for other in meanings_of(text)[1:]:
            add(text, text, meanings_of(text)[0], other, 0.0)
    sounds = [sound(text) for text in texts]
    letters = [text.replace(" ", "") for text in texts]
    for first, second in sorted(_near(sounds) | _near(letters)):
        by_sound = Levenshtein.distance(sounds[first], sounds[second])
        by_letters = Levenshtein.distance(letters[first], letters[second])
        apart = min(by_letters, by_sound + _SAME_SOUND * max(0, by_letters - by_sound))
        if apart <= distance:
            one, other = meanings_of(texts[first])[0], meanings_of(texts[second])[0]
            if one != other:
                add(texts[first], texts[second], one, other, apart)
    return sorted(found.values(), key=lambda pair: pair.distance)


def _near(strings: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs that differ in one letter (more, less or another), and some that differ in two.

    Such strings are equal once a letter of each, or of one, is taken out; so not all pairs need be looked at.
    """
    by_rest: dict[int, list[int]] = {}
    for number, string in enumerate(strings):
        # Numbers in place of the strings themselves: they are smaller, and who meets by chance is compared in vain.
        rests = {hash(string), *(hash(string[:place] + string[place + 1 :]) for place in range(len(string)))}
        for rest in rests:
            by_rest.setdefault(rest, []).append(number)
    return {pair for numbers in by_rest.values() for pair in combinations(numbers, 2)}


def sound(text: str) -> str:
    """A normalised text as it is heard, roughly, without spaces.

    >>> sound("вход у моста"), sound("вхот у маста")
    ('фхатумаста', 'фхатумаста')
    """
    for pattern, replacement in _SOUNDS:
        text = re.sub(pattern, replacement, text)
    return text.replace(" ", "")


def _difference(first: str, second: str) -> tuple[str, ...]:
    """The words of both that the other has not, or the text if they are the same."""
    if first == second:
        return (first,)
    one, other = first.split(), second.split()
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return tuple(
        " ".join(words) for kind, a, b, c, d in blocks if kind != "equal" for words in (one[a:b], other[c:d])
    )


def _recorded(args: argparse.Namespace, grammar: Grammar) -> list[Outcome]:
    """What a model finds in recorded commands.

    Raises:
        ManifestError: no text of the manifest is a phrase of the grammar.
    """
    from kvarts.manifest import read_manifest

    utterances = read_manifest(args.audio)
    inside = [utterance for utterance in utterances if grammar.parse(utterance.text) is not None]
    if not inside:
        raise ManifestError(f"{args.audio}: no text in it is a phrase of {grammar.name}; give its commands, recorded")
    return _outcomes(args, grammar, inside)


def _spoken(args: argparse.Namespace, grammar: Grammar) -> list[Outcome]:
    """What a model finds in phrases that espeak-ng speaks: all, or 200 drawn by chance.

    Raises:
        ConfigError: espeak-ng is not installed, or failed.
    """
    from kvarts.manifest import Utterance

    program = shutil.which("espeak-ng")
    if program is None:
        raise ConfigError("espeak-ng is not installed; on Debian and Ubuntu, as root: apt install espeak-ng")
    few = grammar.num_phrases <= _SPOKEN
    texts = list(grammar.phrases()) if few else list(dict.fromkeys(grammar.sample(_SPOKEN)))
    with tempfile.TemporaryDirectory() as folder:
        utterances: list[Utterance] = []
        for number, text in enumerate(texts, start=1):
            path = Path(folder) / f"{number}.wav"
            try:
                command = [program, "-v", "ru", "-w", str(path), text]
                subprocess.run(command, capture_output=True, check=True, timeout=60)
            except (OSError, subprocess.SubprocessError) as error:
                raise ConfigError(f"espeak-ng failed ({error}); use --audio, or install its Russian voice") from None
            utterances.append(Utterance(path, text, 1.0, str(number), Path(folder) / "spoken", number, {}))
        return _outcomes(args, grammar, utterances)


def _outcomes(args: argparse.Namespace, grammar: Grammar, utterances: Sequence[Utterance]) -> list[Outcome]:
    from kvarts.grammar_metrics import outcomes
    from kvarts.grammar_search import GrammarSearch

    return outcomes(recogniser_of(args), utterances, GrammarSearch(grammar))


def _confusions(found: Sequence[Outcome]) -> Counter[tuple[str, str]]:
    from kvarts.grammar_metrics import confusions

    # Whatever the threshold: here it is asked which command wins.
    return confusions(found, float("inf"))


def _text(report: dict[str, Any], pairs: Sequence[Pair]) -> str:
    lines = [
        f"{report['grammar']}: {report['intents']} intents, {report['phrases']:,} phrases of "
        f"{report['shortest_letters']} to {report['longest_letters']} letters, {report['letter_states']:,} states"
    ]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    if report["is_sample"]:
        lines.append(f"compared: {report['compared_phrases']:,} phrases, drawn by chance; of others nothing is known")
    for pair in pairs[:_SHOWN]:
        more = f", and {pair.number - 1} more pairs like it" if pair.number > 1 else ""
        if pair.first == pair.second:
            both = f"{_said(pair.first_meaning)} and {_said(pair.second_meaning)}"
            lines.append(f"warning: «{pair.first}» means {both}{more}; the first counts")
        else:
            lines.append(
                f"warning: sounds alike ({pair.distance:g}): «{pair.first}» {_said(pair.first_meaning)}, "
                f"«{pair.second}» {_said(pair.second_meaning)}{more}"
            )
    if len(pairs) > _SHOWN:
        lines.append(f"… and {len(pairs) - _SHOWN} more kinds of pairs; --json has all of them")
    if report["heard_utterances"]:
        lines.append(f"heard: {report['heard_utterances']} utterances")
    for confusion in report["confused"]:
        what = f"«{confusion['said']}» for «{confusion['taken_for']}»"
        lines.append(f"warning: taken for another ({confusion['times']} times): {what}")
    return "\n".join(lines)


def _said(meaning: Meaning) -> str:
    slots = ", ".join(f"{name}={value}" for name, value in meaning.slots.items())
    return f"{meaning.intent}({slots})" if slots else meaning.intent
