"""Russian numerals in words: cardinals and ordinals in all cases and genders, with ё.

Cases are named as in OpenCorpora and pymorphy3: nomn, gent, datv, accs, ablt, loct. Forms are those of A. A. Zalizniak,
«Грамматический словарь русского языка». The 1 of one thousand is not spoken: 1945 is «тысяча девятьсот …».
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

CASES: Final = ("nomn", "gent", "datv", "accs", "ablt", "loct")
LARGEST: Final = 10**15 - 1


def word_list(words: str) -> list[str]:
    """Words of a table."""
    return words.split()


_ONE: Final = {
    "masc": word_list("один одного одному один одним одном"),
    "femn": word_list("одна одной одной одну одной одной"),
    "neut": word_list("одно одного одному одно одним одном"),
}
_FEW: Final = {
    2: word_list("два двух двум два двумя двух"),
    3: word_list("три трёх трём три тремя трёх"),
    4: word_list("четыре четырёх четырём четыре четырьмя четырёх"),
}


def _soft(stem: str, oblique: str | None = None) -> list[str]:
    oblique = oblique or stem
    return [stem + "ь", oblique + "и", oblique + "и", stem + "ь", stem + "ью", oblique + "и"]


def _tens(unit: str, oblique: str, instrumental: str) -> list[str]:
    return [f"{unit}десят", *2 * [f"{oblique}десяти"], f"{unit}десят", f"{instrumental}десятью", f"{oblique}десяти"]


def _hundreds(nominative: str, oblique: str, dative: str, instrumental: str) -> list[str]:
    return [nominative, f"{oblique}сот", f"{dative}стам", nominative, f"{instrumental}стами", f"{oblique}стах"]


_FORMS: Final[dict[int, list[str]]] = {
    0: word_list("ноль нуля нулю ноль нулём нуле"),
    **_FEW,
    **{5: _soft("пят"), 6: _soft("шест"), 7: _soft("сем"), 8: _soft("восем", "восьм"), 9: _soft("девят")},
    10: _soft("десят"),
    **{
        10 + number: _soft(f"{stem}надцат")
        for number, stem in enumerate(word_list("один две три четыр пят шест сем восем девят"), start=1)
    },
    **{20: _soft("двадцат"), 30: _soft("тридцат")},
    40: ["сорок", "сорока", "сорока", "сорок", "сорока", "сорока"],
    50: _tens("пять", "пяти", "пятью"),
    60: _tens("шесть", "шести", "шестью"),
    70: _tens("семь", "семи", "семью"),
    80: _tens("восемь", "восьми", "восемью"),
    90: ["девяносто", "девяноста", "девяноста", "девяносто", "девяноста", "девяноста"],
    100: ["сто", "ста", "ста", "сто", "ста", "ста"],
    200: _hundreds("двести", "двух", "двум", "двумя"),
    300: _hundreds("триста", "трёх", "трём", "тремя"),
    400: _hundreds("четыреста", "четырёх", "четырём", "четырьмя"),
    500: _hundreds("пятьсот", "пяти", "пяти", "пятью"),
    600: _hundreds("шестьсот", "шести", "шести", "шестью"),
    700: _hundreds("семьсот", "семи", "семи", "семью"),
    800: _hundreds("восемьсот", "восьми", "восьми", "восемью"),
    900: _hundreds("девятьсот", "девяти", "девяти", "девятью"),
}

_THOUSAND: Final = (
    word_list("тысяча тысячи тысяче тысячу тысячей тысяче"),
    word_list("тысячи тысяч тысячам тысячи тысячами тысячах"),
)
_MASCULINE: Final = (["", "а", "у", "", "ом", "е"], ["ы", "ов", "ам", "ы", "ами", "ах"])
# Powers of ten from the largest: value, singular, plural, gender.
_POWERS: Final = [
    *(
        (10**power, [stem + end for end in _MASCULINE[0]], [stem + end for end in _MASCULINE[1]], "masc")
        for power, stem in ((12, "триллион"), (9, "миллиард"), (6, "миллион"))
    ),
    (1000, *_THOUSAND, "femn"),
]

_ORDINAL_STEMS: Final = {
    0: "нулев",
    1: "перв",
    2: "втор",
    4: "четвёрт",
    5: "пят",
    6: "шест",
    7: "седьм",
    8: "восьм",
    9: "девят",
    **{number: _FORMS[number][0][:-1] for number in (*range(10, 21), 30)},
    40: "сороков",
    **{number: _FORMS[number][1][:-1] for number in (50, 60, 70, 80)},
    90: "девяност",
    100: "сот",
    **{number: _FORMS[number][1] for number in range(200, 1000, 100)},
}
_STRESSED: Final = {0, 2, 6, 7, 8, 40}  # нулевой, второй, …: -ой instead of -ый
_THIRD: Final = {
    "masc": word_list("третий третьего третьему третий третьим третьем"),
    "femn": word_list("третья третьей третьей третью третьей третьей"),
    "neut": word_list("третье третьего третьему третье третьим третьем"),
    "plur": word_list("третьи третьих третьим третьи третьими третьих"),
}
_ADJECTIVE: Final = {
    "masc": word_list("ый ого ому ый ым ом"),
    "femn": word_list("ая ой ой ую ой ой"),
    "neut": word_list("ое ого ому ое ым ом"),
    "plur": word_list("ые ых ым ые ыми ых"),
}
_POWER_STEMS: Final = {1000: "тысячн", 10**6: "миллионн", 10**9: "миллиардн", 10**12: "триллионн"}


def count_class(number: int) -> str:
    """What a number asks of its noun: «one» (21 дом), «few» (22 дома), «many» (25 домов)."""
    if number % 100 in range(11, 15):
        return "many"
    return {1: "one", 2: "few", 3: "few", 4: "few"}.get(number % 10, "many")


def _parts(number: int) -> list[int]:
    """A number below 1000 as hundreds, tens and units that have a word each; none for 0."""
    tens = number % 100
    below = [tens] if tens < 21 else [tens - tens % 10, tens % 10]
    return [part for part in (number - tens, *below) if part]


def cardinal(number: int, case: str = "nomn", gender: str = "masc", *, animate: bool = False) -> str:
    """«двадцать две», of a number from 0 to `LARGEST`, counting a noun of this gender.

    Args:
        gender: masc, femn or neut.
        animate: matters in the accusative alone: «вижу двух, двадцать одного», but «двадцать два».

    Raises:
        ValueError: the number is out of range.
    """
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{number}: only numbers from 0 to {LARGEST} have words here")
    if number == 0:
        return _FORMS[0][CASES.index(case)]
    words: list[str] = []
    rest = number
    for value, singular, plural, power_gender in _POWERS:
        count, rest = divmod(rest, value)
        if count:
            if not (value == 1000 and count == 1 and not words):
                words.append(cardinal(count, case, power_gender))
            words.append(counted(count, case, singular, plural))
    like_genitive = animate and case == "accs"
    for part in _parts(rest):
        own_case = "gent" if like_genitive and (part == 1 or number in _FEW) and gender != "femn" else case
        if like_genitive and gender == "femn" and number in _FEW:
            own_case = "gent"
        if part == 1:
            words.append(_ONE[gender][CASES.index(own_case)])
        elif part == 2 and gender == "femn" and own_case in ("nomn", "accs"):
            words.append("две")
        else:
            words.append(_FORMS[part][CASES.index(own_case)])
    return " ".join(words)


def counted(number: int, case: str, singular: list[str], plural: list[str]) -> str:
    """The noun behind a cardinal in this case: рубль, рубля, рублей; after thousands always the genitive plural."""
    kind = count_class(number)
    if number and number % 1000 == 0:
        return plural[1]
    if kind == "one":
        return singular[CASES.index(case)]
    if case in ("nomn", "accs"):
        return singular[1] if kind == "few" else plural[1]
    return plural[CASES.index(case)]


def adjective(stem: str, case: str, gender: str, *, animate: bool = False) -> str:
    """A form of an adjective in -ый; gender is masc, femn, neut or plur."""
    if animate and case == "accs" and gender in ("masc", "plur"):
        case = "gent"
    return stem + _ADJECTIVE[gender][CASES.index(case)]


def ordinal(number: int, case: str = "nomn", gender: str = "masc", *, animate: bool = False) -> str:
    """«две тысячи двадцать первого»: only the last word is inflected. Gender is masc, femn, neut or plur.

    Raises:
        ValueError: the number is out of range.
    """
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{number}: only numbers from 0 to {LARGEST} have words here")
    if animate and case == "accs" and gender in ("masc", "plur"):
        case = "gent"
    below = number % 1000
    if number and not below:
        value = next(power for power, *_ in reversed(_POWERS) if number % (1000 * power))
        count = number // value % 1000
        last = adjective(("" if count == 1 else compound_stem(count)) + _POWER_STEMS[value], case, gender)
        before = number - count * value
    else:
        part = _parts(below)[-1] if below else 0
        before = number - part
        if part == 3:
            last = _THIRD[gender][CASES.index(case)]
        elif part in _STRESSED and gender == "masc" and case in ("nomn", "accs"):
            last = _ORDINAL_STEMS[part] + "ой"
        else:
            last = adjective(_ORDINAL_STEMS[part], case, gender)
    return f"{cardinal(before)} {last}" if before else last


def compound_stem(number: int) -> str:
    """How a number from 1 to 1000 begins a word: «двадцатиодно-», «сто-», «тысяче-»."""
    irregular = {1: "одно", 90: "девяносто", 100: "сто", 1000: "тысяче"}
    parts = [1000] if number == 1000 else _parts(number)
    return "".join(irregular.get(part) or _FORMS[part][1] for part in parts)


@lru_cache(maxsize=4096)
def forms_with_ending(number: int, ending: str) -> tuple[tuple[str, str, str], ...]:
    """What «5-й» may stand for: (form, gender, case) of ordinals, or of cardinals for «5-ти», «2-х», «7-ми».

    A cardinal's gender is «» . Endings are compared with ё as е.
    """
    few = count_class(number) == "few"
    is_cardinal = (
        ending in ("ти", "мя", "умя", "ка", "та", "ух", "ех", "ёх")
        or (ending == "х" and few)
        or (ending == "ми" and number % 10 in (7, 8) and number % 100 not in (17, 18))
    )
    pattern = re.compile(re.escape(ending.replace("ё", "е")) + r"\Z")
    if is_cardinal:
        forms = [(cardinal(number, case), "", case) for case in CASES]
    else:
        forms = [
            (ordinal(number, case, gender, animate=animate), gender, case)
            for gender in _ADJECTIVE
            for case in CASES
            for animate in (False, True)
        ]
    return tuple(dict.fromkeys(form for form in forms if pattern.search(form[0].replace("ё", "е"))))


_ROMAN: Final = re.compile("(?=.)m{0,3}(cm|cd|d?c{0,3})(xc|xl|l?x{0,3})(ix|iv|v?i{0,3})")
_ROMAN_VALUES: Final = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}


def roman(numeral: str) -> int | None:
    """The value of a Roman numeral in small Latin letters; None if it is none."""
    if not _ROMAN.fullmatch(numeral):
        return None
    values = [_ROMAN_VALUES[letter] for letter in numeral]
    following = [*values[1:], 0]
    return sum(-value if value < after else value for value, after in zip(values, following, strict=True))
