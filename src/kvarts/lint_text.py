"""Faults of a transcript that the text itself shows, and which of them can be put right without listening."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from kvarts.alphabet import ALPHABET
from kvarts.text import normalise

LONGEST_WORD: Final = 30  # letters; «человеконенавистнический» has 24
MOST_REPEATS: Final = 5  # of a word or phrase in a row; what a recogniser writes that got stuck has dozens

# What looks like a Russian letter, or does as a capital: the normaliser's lower case makes «b» of a «B» for «В».
_LOOK_ALIKES: Final = str.maketrans(
    "abcehkmoptxyABCEHKMOPTXYαεκορτυχΑΒΕΗΚΜΟΡΤΥΧ", "авсенкмортхуАВСЕНКМОРТХУаекортухАВЕНКМОРТУХ"
)
_WORD: Final = re.compile(r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f\u00ad])*")  # decomposed
_RUSSIAN: Final = re.compile("[а-яё]", re.IGNORECASE)
_FOREIGN: Final = re.compile(f"[^{ALPHABET}]")
_DIGITS: Final = re.compile(r"\d+")
_MARKUP: Final = re.compile(r"<[^<>]*>|\[[^][]*\]|\{[^{}]*\}|\([^()]*\)")
_REPEATED: Final = re.compile(rf"(?:^|(?<= ))(\S+(?: \S+){{0,5}})(?: \1){{{MOST_REPEATS - 1},}}(?= |$)")
# UTF-8's first bytes of Russian letters, 0xD0 and 0xD1, as Windows-1251 and as Windows-1252 show them.
_MANGLED: Final = {"cp1251": "РС", "cp1252": "ÐÑ"}

Fault = tuple[str, str]  # its name, and what is wrong


def text_faults(text: str) -> tuple[str, list[Fault]]:
    """The normalised text, repaired where that is certain, and the faults of `text`.

    Found are: no text at all; UTF-8 that was read in another encoding; letters that only look Russian; other letters
    and digits; tags and remarks in brackets, which the normaliser would make words of; a word or phrase of up to six
    words five times in a row; words of more than 30 letters. Not found are misspellings and wrong words.
    """
    normal = normalise(text)
    if not normal:
        return "", [("empty-text", "text is empty")]
    faults: list[Fault] = []
    if _FOREIGN.search(normal):
        demangled = _demangled(text)
        if demangled != text:
            faults.append(("mojibake", f"text is UTF-8 read in another encoding, of «{_short(demangled)}»"))
        decomposed = unicodedata.normalize("NFD", demangled)
        repaired = _without_look_alikes(decomposed)
        if replaced := [was for was, now in zip(decomposed, repaired, strict=True) if was != now]:
            faults.append(("look-alike", f"letters that only look Russian: {_named(replaced)}"))
        text, normal = demangled, normalise(repaired)
        if digits := _DIGITS.findall(normal):
            faults.append(("digits", f"text has digits: {_listed(list(map(_short, digits)))}"))
        if foreign := [character for character in _FOREIGN.findall(normal) if not character.isdigit()]:
            faults.append(("foreign-letters", f"text has characters outside the alphabet: {_named(foreign)}"))
    if markup := _MARKUP.findall(text):
        faults.append(("markup", f"text has what looks like a tag or a remark: {_listed(list(map(_short, markup)))}"))
    words = normal.split()
    if len(words) - len(set(words)) >= MOST_REPEATS - 1 and (repeated := _REPEATED.search(normal)):
        times = (len(repeated[0]) + 1) // (len(repeated[1]) + 1)
        faults.append(("repetition", f"«{_short(repeated[1])}» stands {times} times in a row"))
    if long := [word for word in words if len(word) > LONGEST_WORD]:
        faults.append(("long-word", f"a word of {len(long[0])} letters: «{_short(long[0])}»"))
    return normal, faults


def repaired_text(text: str) -> str:
    """`text` in its right encoding, and with Russian letters in place of those that only look so."""
    decomposed = unicodedata.normalize("NFD", _demangled(text))
    return unicodedata.normalize("NFC", _without_look_alikes(decomposed))


def _without_look_alikes(decomposed: str) -> str:
    """Only in words that have a Russian letter, and in words of a single letter; elsewhere «cop» may be English."""
    return _WORD.sub(_russian, decomposed)


def _russian(word: re.Match[str]) -> str:
    translated = word[0].translate(_LOOK_ALIKES)
    if (_RUSSIAN.search(word[0]) or len(word[0]) == 1) and not _FOREIGN.search(normalise(translated)):
        return translated
    return word[0]


def _demangled(text: str) -> str:
    for codec, firsts in _MANGLED.items():
        # Every second character of Russian words.
        if 3 * sum(map(text.count, firsts)) >= len(text):
            try:
                decoded = b"".join(_byte(character, codec) for character in text).decode("utf-8")
            except (UnicodeError, ValueError):
                continue
            if _RUSSIAN.search(decoded):
                return decoded
    return text


def _byte(character: str, codec: str) -> bytes:
    """A code page has holes, which programs fill with the control character of the same number."""
    try:
        return character.encode(codec)
    except UnicodeEncodeError:
        return bytes([ord(character)])


def _named(characters: list[str]) -> str:
    """With their names, for a Latin c in a Russian word looks right."""
    distinct = list(dict.fromkeys(characters))
    return _listed([f"{character} ({unicodedata.name(character, 'unnamed')})" for character in distinct])


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:5])
    return f"{shown}, … ({len(items)})" if len(items) > 5 else shown


def _short(text: str) -> str:
    """On one line, of 48 characters at most."""
    one_line = " ".join(text.split())
    return f"{one_line[:47]}…" if len(one_line) > 48 else one_line
