"""The one normaliser: what is done to a transcript before it is trained on or scored."""

from __future__ import annotations

import re
import unicodedata

# Changes whenever a text could come out differently; stored beside every score.
NORMALISER_VERSION = "1"

STRESS_MARKS = re.compile("[\u0300\u0301]|\\+(?=[аеёиоуыэюя])")
# Soft hyphens, zero-width spaces and joiners: nobody sees them, and they must not cut words.
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_NOT_A_WORD_CHARACTER = re.compile(r"[^\w\s]|_")


def normalise(text: str, *, keep_yo: bool = False) -> str:
    """Lower case, ё→е unless it is kept, no stress marks, punctuation and hyphens to spaces, single spaces.

    Foreign letters and digits stay: in training they are reported, in scoring they count as the errors they are.
    Stress is a combining acute or grave accent, or a plus before the vowel («вол+ос»).

    >>> normalise("Она завела, прядь волнистых вол+ос — за ухо.")
    'она завела прядь волнистых волос за ухо'
    """
    # Decomposed, an accent is a character of its own; composing again gives й (и + breve) and ё (е + dots) back.
    without_stress = STRESS_MARKS.sub("", unicodedata.normalize("NFD", INVISIBLE.sub("", text.lower())))
    composed = unicodedata.normalize("NFC", without_stress)
    if not keep_yo:
        composed = composed.replace("ё", "е")
    return " ".join(_NOT_A_WORD_CHARACTER.sub(" ", composed).split())
