"""From written to spoken Russian, for transcripts that come from anywhere.

`kvarts.text.normalise` is what training and scoring do to a text; it leaves «150 руб.» as it is. `spoken` makes «сто
пятьдесят рублей» of it, where there is one way to say it. What could be said in several ways, or is not Russian, stays
as it was written and gets a `Note`: where, what it is, what to do about it. So nothing is guessed and no word is lost.

    >>> spoken("К 5 часам приехали 2 машины по 1,5 т и BMW.").text
    'к пяти часам приехали две машины по 1,5 т и bmw'
    >>> [(note.what, note.kind) for note in spoken("К 5 часам приехали 2 машины по 1,5 т и BMW.").notes]
    [('1,5 т', 'number'), ('BMW', 'foreign')]

The gender and case of the noun behind a number come from a table of units and, where it is installed, from pymorphy3
(``pip install 'kvarts[morphology]'``). Without it more is left and noted; what is spoken is the same.
"""

from __future__ import annotations

import datetime
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kvarts.alphabet import foreign_characters
from kvarts.errors import ManifestError
from kvarts.numerals import (
    CASES,
    adjective,
    cardinal,
    compound_stem,
    count_class,
    counted,
    forms_with_ending,
    ordinal,
    roman,
    word_list,
)
from kvarts.text import INVISIBLE, STRESS_MARKS, normalise

# Changes whenever a text could come out differently; stored beside what was made with it.
SPOKEN_VERSION: Final = "2"

REMEDIES: Final = {
    "lookalike": "Latin letters that look like Russian ones; if it is a Russian word, write it in Russian letters",
    "mixed": "letters of two scripts, or letters and digits, in one word; write it in Russian letters as it is spoken",
    "foreign": "not Russian; write it in Russian letters as it is spoken, or leave the line out",
    "roman": "a Roman numeral; write the ordinal in the case that is spoken",
    "number": "a number that is read in several ways; write it in words",
    "agreement": "case or gender are not certain; write the number in words",
    "abbreviation": "an abbreviation that is read in several ways; write it as it is spoken",
    "initials": "initials; write the names or the letters' names, whichever is spoken",
    "symbol": "a sign that may be spoken; write it in words or delete it",
    "address": "an address of the Internet; write it as it is spoken, or leave the line out",
}
_NO_MORPHOLOGY: Final = "; or install pymorphy3, which knows more nouns: pip install 'kvarts[morphology]'"


@dataclass(frozen=True)
class Note:
    """What was left as it was written, or is letters that may be spoken otherwise."""

    what: str  # raw[start:stop]
    start: int  # in characters of the raw text
    stop: int
    kind: str  # one of REMEDIES
    remedy: str


@dataclass(frozen=True)
class Spoken:
    """A text as it is spoken."""

    text: str  # lower case, words and single spaces; what was left with the punctuation beside it
    notes: tuple[Note, ...]  # in the order of the raw text

    @property
    def is_clean(self) -> bool:
        """Whether the text has nothing outside the alphabet; ё, where it was kept, does not count."""
        return not foreign_characters(self.text.replace("ё", "е"))


def spoken(text: str, *, keep_yo: bool = False) -> Spoken:
    """A text as it is spoken, and notes on what could not be told.

    The same as `kvarts.text.normalise` for texts of Russian letters and punctuation, unless they hold abbreviations.
    What comes out is left alone the second time.

    Args:
        keep_yo: leave ё, which else becomes е.
    """
    normalised = normalise(text, keep_yo=keep_yo)
    if _is_plain(text, normalised):
        return Spoken(normalised, ())
    line = _cleaned(text)
    first = pieces = _Reader(line, text).read()
    # What was left is read again beside what its neighbours have become, until nothing changes: then it cannot change
    # when the result is read. Every change takes away characters outside the alphabet, so this ends.
    while (again := _joined(line, pieces, keep_yo)).text != line.text and any(piece.is_left for piece in pieces):
        line = again
        pieces = _Reader(line, text).read()
    notes = [piece for piece in pieces if piece.is_left] + [piece for piece in first if not piece.is_left]
    return Spoken(
        again.text,
        tuple(
            Note(text[piece.start : piece.stop], piece.start, piece.stop, *piece.note)
            for piece in sorted(notes, key=lambda piece: (piece.start, piece.stop))
            if piece.note
        ),
    )


def spoken_rows(
    rows: Iterable[Mapping[str, Any]], *, keep_yo: bool = False
) -> Iterator[tuple[dict[str, Any], tuple[Note, ...]]]:
    """Rows of a manifest with their `text` as it is spoken, each with its notes, which speak of the text before.

    A text that changed by more than `normalise` is kept as `written`; `spoken_version` is `SPOKEN_VERSION`. Nothing is
    left out: rows whose `text` has characters outside the alphabet are for the caller to judge.

    Raises:
        ManifestError: a row has no text, or one that is no string.
    """
    for number, row in enumerate(rows, start=1):
        text = row.get("text")
        if not isinstance(text, str):
            raise ManifestError(f'row {number}: "text" is missing or no string; add it as a string')
        result = spoken(text, keep_yo=keep_yo)
        written = {} if result.text == normalise(text, keep_yo=keep_yo) else {"written": text}
        yield {**row, "text": result.text, **written, "spoken_version": SPOKEN_VERSION}, result.notes


# ------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class _Noun:
    lemma: str
    gender: str  # masc, femn
    is_animate: bool
    singular: list[str]  # in the order of CASES
    plural: list[str]


@dataclass(frozen=True)
class _Reading:
    """One way to understand the form of a noun."""

    lemma: str
    number: str  # sing or plur
    case: str
    gender: str
    is_animate: bool


# Stems, gender, endings in the order of CASES, singular and plural; «-» is none.
_UNIT_NOUNS: Final = """
метр километр сантиметр миллиметр дециметр процент градус грамм килограмм миллиграмм центнер литр миллилитр час доллар \
фунт миллион миллиард триллион гектар | masc | - а у - ом е ы ов ам ы ами ах
ватт киловатт мегаватт герц килогерц мегагерц гигагерц раз | masc | - а у - ом е ы - ам ы ами ах
рубл | masc | ь я ю ь ём е и ей ям и ями ях
год | masc | - а у - ом е ы лет ам ы ами ах
д | masc | ень ня ню ень нём не ни ней ням ни нями нях
месяц | masc | - а у - ем е ы ев ам ы ами ах
евро промилле | masc | - - - - - - - - - - - -
человек | anim | - а у а ом е - - ам - ами ах
минут секунд тонн сил единиц | femn | а ы е у ой е ы - ам ы ами ах
штук | femn | а и е у ой е и - ам и ами ах
тысяч | femn | а и е у ей е и - ам и ами ах
недел | femn | я и е ю ей е и ь ям и ями ях
килокалори | femn | я и и ю ей и и й ям и ями ях
лож | femn | ка ки ке ку кой ке ки ек кам ки ками ках
копе | femn | йка йки йке йку йкой йке йки ек йкам йки йками йках
"""


def _nouns() -> Iterator[_Noun]:
    for row in _UNIT_NOUNS.strip().splitlines():
        stems, gender, endings = (part.strip() for part in row.split("|"))
        for stem in stems.split():
            forms = [ending if ending == "лет" else stem + ending.replace("-", "") for ending in endings.split()]
            is_animate = gender == "anim"
            yield _Noun(forms[0], "masc" if is_animate else gender, is_animate, forms[:6], forms[6:])


_NOUNS: Final = {noun.lemma: noun for noun in _nouns()}


def _fold(word: str) -> str:
    return word.replace("ё", "е")


_NOUN_FORMS: Final[dict[str, list[_Reading]]] = {}
for _noun in _NOUNS.values():
    for _number, _forms in (("sing", _noun.singular), ("plur", _noun.plural)):
        for _case, _form in zip(CASES, _forms, strict=True):
            _NOUN_FORMS.setdefault(_fold(_form), []).append(
                _Reading(_noun.lemma, _number, _case, _noun.gender, _noun.is_animate)
            )

# Behind a number: the noun, an adjective's stem before it, what follows it. Longer ones first.
_UNITS: Final[dict[str, tuple[str, str, str]]] = {
    r"км/ч(?:ас)?": ("километр", "", "в час"),
    r"м/с(?:ек)?": ("метр", "", "в секунду"),
    r"мм\s*рт\.?\s*ст": ("миллиметр", "", "ртутного столба"),
    r"л\.\s?с": ("сила", "лошадин", ""),
    r"у\.\s?е": ("единица", "условн", ""),
    r"ст\.\s?л": ("ложка", "столов", ""),
    r"ч\.\s?л": ("ложка", "чайн", ""),
    r"кв\.?\s*км": ("километр", "квадратн", ""),
    r"кв\.?\s*см": ("сантиметр", "квадратн", ""),
    r"кв\.?\s*м": ("метр", "квадратн", ""),
    r"куб\.?\s*см": ("сантиметр", "кубическ", ""),
    r"куб\.?\s*м": ("метр", "кубическ", ""),
    "км²": ("километр", "квадратн", ""),
    "см²": ("сантиметр", "квадратн", ""),
    "м²": ("метр", "квадратн", ""),
    "м³": ("метр", "кубическ", ""),
    "квт": ("киловатт", "", ""),
    "мвт": ("мегаватт", "", ""),
    "вт": ("ватт", "", ""),
    "кгц": ("килогерц", "", ""),
    "мгц": ("мегагерц", "", ""),
    "ггц": ("гигагерц", "", ""),
    "гц": ("герц", "", ""),
    "ккал": ("килокалория", "", ""),
    "км": ("километр", "", ""),
    "см": ("сантиметр", "", ""),
    "мм": ("миллиметр", "", ""),
    "дм": ("дециметр", "", ""),
    "кг": ("килограмм", "", ""),
    "мг": ("миллиграмм", "", ""),
    "мл": ("миллилитр", "", ""),
    "га": ("гектар", "", ""),
    "руб": ("рубль", "", ""),
    "коп": ("копейка", "", ""),
    "долл": ("доллар", "", ""),
    "мин": ("минута", "", ""),
    "сек": ("секунда", "", ""),
    "час": ("час", "", ""),
    "мес": ("месяц", "", ""),
    "нед": ("неделя", "", ""),
    "дн": ("день", "", ""),
    "чел": ("человек", "", ""),
    "шт": ("штука", "", ""),
    "м": ("метр", "", ""),
    "л": ("литр", "", ""),
    "р": ("рубль", "", ""),
    "ч": ("час", "", ""),
    "ц": ("центнер", "", ""),
    "г": ("грамм", "", ""),
    r"т(?!\.\s*[екодпч]\.)": ("тонна", "", ""),
    "%": ("процент", "", ""),
    "‰": ("промилле", "", ""),
    "°": ("градус", "", ""),
    "₽": ("рубль", "", ""),
    r"\$": ("доллар", "", ""),
    "€": ("евро", "", ""),
    "£": ("фунт", "", ""),
}
# «5 час» would be a word that nobody writes; «г.» and «т.» are years, towns, thousands and comrades as well.
_UNIT: Final = re.compile(
    r"\s*(?:"
    + "|".join(f"(?P<u{place}>{unit})" for place, unit in enumerate(_UNITS))
    + r")(?:\.(?!/)|(?![\w²³/.]|-\w))"
)
_UNIT_VALUES: Final = list(_UNITS.values())
_DOTTED_OTHERWISE: Final = {"г", "т"}
_LENGTHS: Final = {"метр", "километр", "сантиметр", "миллиметр", "дециметр"}
_CURRENCY_BEFORE: Final = {"$": "доллар", "€": "евро", "£": "фунт", "₽": "рубль"}
_MULTIPLIERS: Final = {"тыс": "тысяча", "млн": "миллион", "млрд": "миллиард", "трлн": "триллион"}
_MULTIPLIER: Final = re.compile(r"\s*(тыс|млн|млрд|трлн)(?:\.|(?!\w))")
_FRACTIONS: Final = ("десят", "сот", "тысячн", "десятитысячн")

# Words that leave one case, or few, to the number behind them.
_GOVERNED: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        word_list(
            "без безо до от ото из изо у для около возле после против кроме среди вместо ради свыше более менее больше "
            "меньше старше младше выше ниже длиннее короче дороже дешевле тяжелее легче порядка накануне из-за из-под "
            "течение протяжении количестве размере возрасте нет"
        ),
        ("gent",),
    ),
    **dict.fromkeys(word_list("к ко благодаря согласно вопреки"), ("datv",)),
    **dict.fromkeys(word_list("над перед передо между"), ("ablt",)),
    **dict.fromkeys(word_list("через про сквозь спустя"), ("accs",)),
    **dict.fromkeys(word_list("о об обо при"), ("loct",)),
    **dict.fromkeys(word_list("в во на"), ("accs", "loct")),
    **dict.fromkeys(word_list("за под"), ("accs", "ablt")),
    **dict.fromkeys(word_list("с со"), ("gent", "ablt")),
    "по": ("accs", "datv"),
}
# Words that begin something else: no noun of the number before them.
_FUNCTION_WORDS: Final = frozenset(
    word_list(
        "а б бы в во да для до если ещё еще ж же за и из или к ко как ли на над не ни но о об от перед по под после "
        "при про с со то у уже через что чтобы это я ты он она оно мы вы они"
    )
)
# Nouns that stand before their number: «дом 5», «на странице 10».
_LABEL: Final = re.compile(
    "(?:дом|корпус|автобус|троллейбус|трамва|маршрут|рейс|поезд|вагон|кабинет|офис|номер|том|пункт|параграф|раздел|урок|"
    "вопрос|канал|вариант|уровн|билет|лист|сектор|объект)(?:ь|й|а|я|у|ю|ом|ем|е)?|"
    "(?:квартир|комнат|аудитори|глав|част|страниц|стать|задач|школ|платформ|палат|поликлиник|больниц|групп|версии|верси)"
    "(?:а|я|ы|и|е|у|ю|ой|ей|ью|ь)?|строени(?:е|я|ю|ем|и)|упражнени(?:е|я|ю|ем|и)|мест(?:о|а|у|ом|е)"
)
# Nouns of which one says the fifth rather than five; with 1, 2, 3 and 4 both are possible.
_RANKED: Final = frozenset(
    word_list(
        "класс курс этаж подъезд квартал степень категория группа очередь разряд созыв место век столетие число глава "
        "сезон серия тур раунд ряд съезд уровень канал размер сорт вариант маршрут отряд взвод том часть"
    )
)
_HOURS_OF: Final = frozenset(["утра", "вечера", "ночи", "дня"])

_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        word_list("января февраля марта апреля мая июня июля августа сентября октября ноября декабря"), start=1
    )
}
# Before a date that may be what is spoken of: «наступило пятое мая», «отмечаем девятое мая».
_NAMING_VERB: Final = re.compile(
    "(?:наступ|приближ|подошл|подход|настал|настан|начал|начин|законч|заканч|прошл|пройд|пришл|минова|отме[чт]|праздн|"
    "встре[чт]|любл|люби|нрав|жд[аеу]|был|будет|станет|считается|называ|значит|ненавижу|запомн|помн|выбра|назнач)[а-я]*"
)
_HOLIDAYS: Final = {(1, 1), (7, 1), (23, 2), (8, 3), (1, 5), (9, 5), (12, 6), (1, 9), (4, 11)}
_TODAY: Final = frozenset(word_list("сегодня завтра вчера послезавтра позавчера это"))
_YEARS: Final = range(1000, 2200)
_BARE_YEARS: Final = range(1800, 2100)

# The stems of what stands behind «11-» in «11-летний»; those behind «2-» in «двукратный».
_COMPOUND_TAIL: Final = re.compile(
    "(?:лет(?:н|и)|этажн|комнатн|местн|дневн|часов(?!н)|минутн|секундн|градусн|процентн|метров|километров|миллиметров|"
    "сантиметров|литров|тонн|рубл|балльн|полосн|камерн|страничн|месячн|недельн|тысячн|миллионн|ступенчат|дверн|квартирн|"
    "кратн|значн|мерн|сложн)[а-яё]+"
)
_TWOFOLD: Final = ("кратн", "значн", "мерн", "сложн")

_FIXED_ABBREVIATIONS: Final = {
    r"т\.\s*е\.": "то есть",
    r"т\.\s*к\.": "так как",
    r"т\.\s*о\.": "таким образом",
    r"т\.\s*д\.": "так далее",
    r"т\.\s*п\.": "тому подобное",
    r"т\.\s*ч\.": "том числе",
    r"н\.\s*э\.": "нашей эры",
    r"напр\.": "например",
}
_FIXED: Final = re.compile("|".join(f"({pattern})" for pattern in _FIXED_ABBREVIATIONS))
_FIXED_WORDS: Final = list(_FIXED_ABBREVIATIONS.values())
# Singular, in the order of CASES; behind them stands a name, or a number.
_NAMED: Final = {
    key: forms.split()
    for key, forms in {
        "г": "город города городу город городом городе",
        "ул": "улица улицы улице улицу улицей улице",
        "пл": "площадь площади площади площадь площадью площади",
        "пер": "переулок переулка переулку переулок переулком переулке",
        "просп": "проспект проспекта проспекту проспект проспектом проспекте",
        "оз": "озеро озера озеру озеро озером озере",
        "тов": "товарищ товарища товарищу товарища товарищем товарище",
        "проф": "профессор профессора профессору профессора профессором профессоре",
        "акад": "академик академика академику академика академиком академике",
    }.items()
}
_PEOPLE: Final = {"тов", "проф", "акад"}
_NUMBERED: Final = {
    key: forms.split()
    for key, forms in {
        "д": "дом дома дому дом домом доме",
        "кв": "квартира квартиры квартире квартиру квартирой квартире",
        "корп": "корпус корпуса корпусу корпус корпусом корпусе",
        "рис": "рисунок рисунка рисунку рисунок рисунком рисунке",
        "табл": "таблица таблицы таблице таблицу таблицей таблице",
        "гл": "глава главы главе главу главой главе",
        "тел": "телефон телефона телефону телефон телефоном телефоне",
    }.items()
}
# Read in several ways. Single letters only before something: at the end of a sentence they are words or letters.
_AMBIGUOUS: Final = "др пр гг вв ср стр ст пп обл наб пос бул см руб коп тыс долл чел шт мин сек"
_AMBIGUOUS_BEFORE: Final = "с о п т р м ч к л"
_ENDS_A_SENTENCE: Final = {"рис", "пер", "тел", "мин", "шт"}  # words as well
_ABBREVIATION: Final = re.compile(
    "(?:(?P<named>" + "|".join(_NAMED) + ")|(?P<numbered>" + "|".join(_NUMBERED) + ")|(?P<ambiguous>"
    rf"{_AMBIGUOUS.replace(' ', '|')})|(?P<before>{_AMBIGUOUS_BEFORE.replace(' ', '|')}))\."
)
# «и. о.», «б. у.», «к. т. н.»: said as letters, or as the words they stand for. «Это был я. А потом» is none.
_DOTTED_LETTERS: Final = re.compile(r"(?!я)[а-яё](?:\.\s?[а-яё](?!\w)){1,3}\.?")
_CONTRACTIONS: Final = frozenset(
    word_list(
        "р-н г-н г-жа г-на г-ну г-жи пр-т пр-кт б-р кол-во кол-ва ин-т ун-т д-р о-в м-н т-во изд-во пр-во гр-н ж-д"
    )
)
_INSTITUTION: Final = re.compile(
    "(?:завод|театр|школ|институт|университет|улиц|площад|парк|библиотек|музе|колхоз|совхоз|стадион|станци|академи|"
    "фабрик|лице|гимнази|аэропорт|больниц|дворец|дворц|фонд|преми|канал|метро|дивизи|полк)[а-я]{0,3}"
)

_LOOKALIKES: Final = {
    **dict(zip("aceopxykmth", "асеорхукмтн", strict=True)),
    "ë": "ё",
}
# A small b looks like ь, and like nothing that is spoken; a capital B is В.
_LOOKALIKES_OF_CAPITALS: Final = {**_LOOKALIKES, "b": "в"}

_VOWELS: Final = "аеёиоуыэюя"
# A word without a vowel is spoken as something else («СССР», «кг»), unless it is a sound.
_NO_VOWEL: Final = re.compile(
    r"(?!(?:хм+|гм+|м+|тс+|кш+|ш+|пс+т?|бр+|з+|ф+|ж+|р{3,}|с{3,}|х{3,})(?!\w))[бвгджзйклмнпрстфхцчшщьъ]{2,}(?!\w)"
)
_NO_VOWEL_INSIDE: Final = re.compile(" [бвгджзйклмнпрстфхцчшщьъ]{2,} ")
_PUNCTUATION: Final = frozenset(".,!?…:;()[]«»„“”\"'’–—-")
_PLAIN: Final = re.compile(f"[\\sа-яёА-ЯЁ{re.escape(''.join(_PUNCTUATION))}\u0300\u0301\u0306\u0308+-]*")
_PLUS_OF_STRESS: Final = re.compile(f"\\+(?=[{_VOWELS}{_VOWELS.upper()}])")
_WORD_AT_END: Final = re.compile(r"\w+\Z")
_BEFORE_FULL_STOP: Final = frozenset(
    [*_AMBIGUOUS.split(), *_NAMED, *_NUMBERED, *_AMBIGUOUS_BEFORE.split(), "напр", "им", "н"]
)


def _is_plain(text: str, normalised: str) -> bool:
    """Whether `normalise` has said all there is to say; 3 µs a line; one pattern for it all took 37."""
    if not _PLAIN.fullmatch(text) or _NO_VOWEL_INSIDE.search(f" {normalised} "):
        return False
    if "+" in text and "+" in _PLUS_OF_STRESS.sub("", text):
        return False
    if "-" in text and any(contraction in text.lower() for contraction in _CONTRACTIONS):
        return False
    for part in text.split(".")[:-1]:
        # What stands before a full stop: an abbreviation, or one letter, an initial or another abbreviation.
        word = _WORD_AT_END.search(part, max(0, len(part) - 10))
        if word and (word[0].lower() in _BEFORE_FULL_STOP or (len(word[0]) == 1 and word[0] != "я")):
            return False
    return True


# --------------------------------------------------------------------------------------------------------- morphology


@functools.cache
def _analyser() -> Any:
    try:
        import pymorphy3  # takes a second or two, and only numbers need it
    except ModuleNotFoundError:
        return None
    return pymorphy3.MorphAnalyzer(lang="ru")


@functools.lru_cache(maxsize=10_000)
def _morphology(word: str) -> tuple[str, tuple[_Reading, ...]]:
    """«noun», «adjective», «other» or «unknown», and what forms of nouns a word may be."""
    analyser = _analyser()
    if analyser is None or not analyser.word_is_known(word):
        return "unknown", ()
    parses = analyser.parse(word)
    readings = []
    for parse in parses:
        tag = parse.tag
        if (
            tag.POS == "NOUN"
            and not {"Abbr", "Fixd"} & tag.grammemes
            and tag.case
            and tag.number
            and parse.score > 0.001
        ):
            # Plain strings: pymorphy3's raise errors when they are compared with what is none of theirs.
            case = {"gen2": "gent", "loc2": "loct", "acc2": "accs"}.get(str(tag.case), str(tag.case))
            # Of «сутки» and «дети» there are двое, not два.
            gender = "" if {"Pltm", "GNdr"} & tag.grammemes else str(tag.gender or "")
            readings.append(_Reading(parse.normal_form, str(tag.number), case, gender, "anim" in tag))
    best = parses[0].tag.POS
    kind = "adjective" if best in ("ADJF", "PRTF") else "noun" if best == "NOUN" and readings else "other"
    return kind, tuple(reading for reading in readings if reading.case in CASES)


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class _Line:
    """A text in lower case, and where each character comes from in the raw one."""

    text: str
    starts: list[int]
    stops: list[int]


@dataclass(frozen=True)
class _Piece:
    text: str
    begin: int  # in the line that was read
    end: int
    start: int  # in the raw text
    stop: int
    is_left: bool = False
    note: tuple[str, str] | None = None  # kind and remedy


def _cleaned(raw: str) -> _Line:
    """The same letters as `normalise` makes, but with everything else still there."""
    text: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    clusters: list[tuple[int, int]] = []
    for place, character in enumerate(raw):
        if clusters and (unicodedata.combining(character) or INVISIBLE.match(character)):
            clusters[-1] = clusters[-1][0], place + 1
        else:
            clusters.append((place, place + 1))
    for start, stop in clusters:
        decomposed = unicodedata.normalize("NFD", INVISIBLE.sub("", raw[start:stop].lower()))
        without_stress = decomposed if decomposed == "+" else STRESS_MARKS.sub("", decomposed)
        for character in unicodedata.normalize("NFC", without_stress):
            text.append(character)
            starts.append(start)
            stops.append(stop)
    kept = [
        place
        for place, character in enumerate(text)
        if not (
            character == "+"
            and place + 1 < len(text)
            and text[place + 1] in _VOWELS
            and not (place and text[place - 1].isdigit())
        )
    ]
    return _Line("".join(text[place] for place in kept), [starts[k] for k in kept], [stops[k] for k in kept])


def _joined(line: _Line, pieces: Sequence[_Piece], keep_yo: bool) -> _Line:
    """What pieces make together: between words a space, beside what was left the punctuation that stands there."""
    text: list[str] = []
    starts: list[int] = []
    stops: list[int] = []

    def add(character: str, start: int, stop: int) -> None:
        if not (character.isspace() and text and text[-1] == " "):
            text.append(" " if character.isspace() else character if keep_yo else _fold(character))
            starts.append(start)
            stops.append(stop)

    before: _Piece | None = None
    for piece in pieces:
        if before is not None:
            between = line.text[before.end : piece.begin]
            if _PUNCTUATION & set(between) and (before.is_left or piece.is_left):
                if between.startswith(".") and not before.is_left:
                    between = "," + between[1:]  # a full stop would make an abbreviation of a short word
                for place, character in enumerate(between, start=before.end):
                    if character.isspace() or character in _PUNCTUATION:
                        add(character, line.starts[place], line.stops[place])
            else:
                add(" ", before.stop, before.stop)
        if piece.is_left:
            for place in range(piece.begin, piece.end):
                add(line.text[place], line.starts[place], line.stops[place])
        else:
            for character in piece.text:
                add(character, piece.start, piece.stop)
        before = piece
    return _Line("".join(text), starts, stops)


_RUSSIAN: Final = re.compile("[а-яё]+(?:[-‑][а-яё]+)*")
_TOKEN: Final = re.compile(r"[^\W_]+(?:[-‑][^\W_]+)*")
_WORD_BEFORE: Final = re.compile(r"(?<!\w)((?:из\s)?[а-яё]+(?:[-‑][а-яё]+)*)\s+\Z")
_WORD_AFTER: Final = re.compile(r"\s+([а-яё]+(?:[-‑][а-яё]+)*)(\.?)")
_REST_OF_TOKEN: Final = re.compile(r"(?:[-‑–.,:/]?[^\W_]+)*")
_GENITIVE_PLURAL: Final = re.compile("(?!(?:остров|покров|улов|рев|лев|хлев|посев|припев)$)[а-я]+(?:ов|ев|ых|их)")
_UP_TO: Final = re.compile(r"\s*(?:по|до)(?!\w)")
_LETTER_OF_A_CLASS: Final = re.compile(r"\s*[«„“\"]\s*[а-яё]\s*[»“”\"]")
_FEMININE_VERB: Final = re.compile("[а-я]+(?:ла|ло)(?:сь)?")  # «осталась 1»
_ADDRESS: Final = re.compile(
    r"(?:https?://|www\.)\S*[\w/]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|[a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+)*\.(?:ru|com|org|net|su|io|info)(?!\w)(?:/\S*[\w/])?|[а-я0-9-]+\.рф(?!\w)"
)
_DIGIT_AHEAD: Final = re.compile(r"[+−–-]?[0-9]|[$€£₽№]\s*[0-9]")
_SIGN_AFTER: Final = re.compile(r"\s*[%‰°$€£₽#^=<>~+×÷*](?:\s*(?=\w))?")
_LUMP: Final = re.compile(r"[0-9]+(?:[.,:/–—−‑×*^'’+=-][0-9]+)*")
_GROUPED: Final = re.compile(r"([1-9][0-9]{0,2}(?:\s[0-9]{3})+)(?:,([0-9]{1,4}))?(?![0-9]|[.,:/–—−‑×*^'’+=-][0-9])")
_INTEGER: Final = "(?:0|[1-9][0-9]{0,14})"
_WHOLE: Final = re.compile(_INTEGER)
_DECIMAL: Final = re.compile(rf"({_INTEGER})[.,]([0-9]{{1,4}})")
_RANGE: Final = re.compile(rf"({_INTEGER})[–—−‑-]({_INTEGER})")
_SPACED_RANGE: Final = re.compile(rf"({_INTEGER})\s*[–—−]\s*({_INTEGER})(?![0-9]|[.,:/–—−‑-][0-9])")
_ATTACHED: Final = re.compile(r"([-‑–]?)([а-яё]+)(?![^\W_]|[-‑][^\W_])")
_ENDINGS_WITHOUT_HYPHEN: Final = frozenset(word_list("й ый ой ий го ого его му ому ему ая я ое е ые ых х ми ти"))
_MORE_NUMBERS: Final = re.compile(r"(?:\s*(?:,|и|или|[–—-])\s*[0-9]+(?![0-9.,:]*[0-9]))*")
_PHONE: Final = re.compile(r"(\+7|8)((?:[\s-]*(?:\([0-9]{3,4}\)|[0-9]{2,4})){3,5})(?![0-9]|-[0-9])")
_LOCAL_PHONE: Final = re.compile(r"[0-9]{2,3}-[0-9]{2}-[0-9]{2}(?![0-9]|[.,:/–—−‑-][0-9])")
_YEAR_WORD: Final = r"(?:\s*(?:года(?!\w)|г\.|г(?!\w)))"
_DATE: Final = re.compile(rf"([0-9]{{1,2}})\.([0-9]{{2}})\.([0-9]{{4}})(?![0-9]|[.,:/–—−‑-][0-9]){_YEAR_WORD}?")
_MONTH: Final = "|".join(_MONTHS)
_DAY: Final = re.compile(
    rf"([0-9]{{1,2}})\s+({_MONTH})(?!\w)(?:\s+([12][0-9]{{3}})(?![\w-]|[.,:/–—−‑][0-9]){_YEAR_WORD}?)?"
)
_IS: Final = re.compile(r"\s*[–—-]\s+|\s*,?\s+это(?!\w)")
_MONTH_AHEAD: Final = re.compile(rf"\s+(?:{_MONTH})(?!\w)")
_DAYS: Final = re.compile(rf"[0-9]{{1,2}}(?:\s*(?:,|и|или|до|по|[–—−-])\s*[0-9]{{1,2}})+\s+(?:{_MONTH})(?!\w)")
_DAY_TO_DAY: Final = re.compile(rf"([0-9]{{1,2}})\s+(по|до)\s+([0-9]{{1,2}})(?=\s+(?:{_MONTH})(?!\w))")
_YEAR: Final = re.compile(r"([0-9]{2,4})\s*(год|года|году|годом|годе|г)(?:(?<=г)\.|(?!\w))")
_YEARS_LISTED: Final = re.compile(
    r"[0-9]{2,4}(?:\s*(?:,|и|или|/|[–—−-])\s*[0-9]{2,4})+"
    r"\s*(?:гг\.?|годы|годов|годам|годами|годах|год|года|году|г\.)(?!\w)"
)
_TIME: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})(?![0-9]|[.,:/–—−‑-][0-9])")
_CENTURY: Final = re.compile(r"\s+(век|века|веку|веком|веке|столетие|столетия|столетию|столетием)(?!\w)")
_ROMAN_TAIL: Final = re.compile(r"\s*(?:вв|в)\.")
_SLASHED: Final = re.compile(r"[а-яё]/[а-яё](?!\w)")
_NAME_AND_NUMBER: Final = re.compile("([а-яё]{2,})[-‑]([1-9][0-9]{0,3})")
_LUMP_GOES_ON: Final = re.compile(r"[.,:/–—−‑-]?[0-9]|[-‑][^\W_]")
_NUMBER_FOLLOWS: Final = re.compile(r"\s*[0-9]")
_LETTER_FOLLOWS: Final = re.compile(r"\s*[^\W\d_]")
_CYRILLIC_IN_ROMAN: Final = str.maketrans("хсмі", "xcmi")


class _Reader:
    """Goes through a line once, from left to right."""

    def __init__(self, line: _Line, raw: str) -> None:
        self.text = line.text
        self._line = line
        self._raw = raw
        self._pieces: list[_Piece] = []
        # Behind the last number, and the cases that it could have: «между 5 и 10», «до 5 ч. 30 мин.».
        self._last: tuple[int, tuple[str, ...]] | None = None

    def read(self) -> list[_Piece]:
        position = 0
        while position < len(self.text):
            position = self._step(position)
        return self._pieces

    def _step(self, position: int) -> int:
        character = self.text[position]
        if character.isspace():
            return position + 1
        if address := _ADDRESS.match(self.text, position):
            return self._leave(position, address.end(), "address")
        if _DIGIT_AHEAD.match(self.text, position) and not (
            character in "-−–+" and position and self.text[position - 1].isalnum()
        ):
            return self._number(position)
        if character.isalnum():
            return self._word(position)
        if character in "%‰№§°&@#" or unicodedata.category(character) in ("Sm", "Sc"):
            return self._leave(position, position + 1, "symbol")
        return position + 1

    # What comes out.

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        return self._line.starts[start], self._line.stops[stop - 1]

    def _written(self, start: int, stop: int) -> str:
        first, last = self._span(start, stop)
        return self._raw[first:last]

    def _say(self, words: str, start: int, stop: int, soft: str = "") -> int:
        note = (soft, REMEDIES[soft]) if soft else None
        self._pieces.append(_Piece(words, start, stop, *self._span(start, stop), note=note))
        return stop

    def _leave(self, start: int, stop: int, kind: str, more: str = "") -> int:
        note = kind, REMEDIES[kind] + more
        self._pieces.append(_Piece(self.text[start:stop], start, stop, *self._span(start, stop), True, note))
        return stop

    # What stands around.

    def _word_before(self, position: int) -> str:
        if position and self.text[position - 1] in "+−–-":  # the number's sign: «до +5»
            position -= 1
        found = _WORD_BEFORE.search(self.text, max(0, position - 60), position)
        if found is None:
            return ""
        word = _fold(found[1]).replace("‑", "-")
        if word.startswith("из "):
            joined = word.replace(" ", "-")
            word = joined if joined in _GOVERNED else word.partition(" ")[2]
        return word.strip()

    def _governed(self, position: int) -> tuple[str, ...] | None:
        """The cases that what stands before leaves to a number here; None if nothing does."""
        if self._last and self._last[1]:
            between = self.text[self._last[0] : position]
            words = _fold(between).split()
            if (
                between.isspace()
                or (
                    not between.strip(" \n\tабвгдежзийклмнопрстуфхцчшщъыьэюяё")
                    and len(words) in (1, 2)
                    and words[-1] in ("и", "или")
                    and all(word in _NOUN_FORMS for word in words[:-1])
                )
                or (len(words) == 1 and words[0] in _NOUN_FORMS)
            ):
                return self._last[1]
        return _GOVERNED.get(self._word_before(position))

    def _noun_after(self, position: int) -> tuple[str, Sequence[_Reading]]:
        """«noun» and its readings, «none», or «unknown» where there may be one."""
        more = _MORE_NUMBERS.match(self.text, position)
        position = more.end() if more else position
        is_adjective = False
        for _ in range(4):
            found = _WORD_AFTER.match(self.text, position)
            if found is None:
                return ("unknown" if is_adjective else "none"), ()
            word = _fold(found[1])
            if word in _NOUN_FORMS:
                return "noun", _NOUN_FORMS[word]
            if word in _FUNCTION_WORDS:
                return ("unknown" if is_adjective else "none"), ()
            if found[2] and _ABBREVIATION.match(self.text, found.start(1)):
                return "unknown", ()
            kind, readings = _morphology(word)
            if kind != "adjective":
                if kind == "other":
                    return ("unknown" if is_adjective else "none"), ()
                return kind, readings
            is_adjective = True
            position = found.end(1)
        return "unknown", ()

    def _without_morphology(self, position: int) -> str:
        """What a remedy says where pymorphy3 might know the noun behind a number."""
        is_unknown = _analyser() is None and self._noun_after(position)[0] == "unknown"
        return _NO_MORPHOLOGY if is_unknown else ""

    # Numbers.

    def _number(self, start: int) -> int:
        text = self.text
        if phone := self._phone(start):
            return phone
        position = start
        sign = text[start] if text[start] in "+−–-" else ""
        before = text[start] if text[start] in "$€£₽№" else ""
        if sign or before:
            while not text[position].isdigit():
                position += 1
        else:
            for reader in (self._date, self._days, self._years, self._year, self._time):
                stop = reader(start)
                if stop:
                    return stop
        if sign and sign in "-–" and start and not text[start - 1].isspace():
            return start + 1  # a hyphen
        amount = self._amount(position)
        if amount is None:
            lump = _GROUPED.match(text, position) or _LUMP.match(text, position)
            stop = lump.end() if lump else position + 1
            return self._leave(start, self._token_end(stop), "number")
        numbers, fraction, stop = amount
        attached = _ATTACHED.match(text, stop)
        unit = None if before == "№" else self._unit(stop, before)
        if unit is None and stop < len(text) and (text[stop].isalnum() or (text[stop] in "-‑–" and attached)):
            if attached and not sign and not before and len(numbers) == 1 and fraction is None:
                return self._with_letters(start, numbers[0], stop, attached)
            return self._leave(start, self._token_end(stop), "mixed")
        if unit is None and text[stop : stop + 1] in ("-", "‑") and text[stop + 1 : stop + 2].isalnum():
            return self._leave(start, self._token_end(stop), "mixed")
        if unit is None and (symbol := _SIGN_AFTER.match(text, stop)):
            return self._leave(start, self._token_end(symbol.end()), "number")
        if sign and sign in "-–" and (unit is None or unit[0] != "градус") and not text.startswith(" градус", stop):
            return self._leave(start, stop, "number")
        if sign:
            self._say("плюс" if sign == "+" else "минус", start, position)
        if before == "№":
            if len(numbers) > 1 or fraction is not None:
                return self._leave(start, stop, "number")
            self._say("номер", start, position)
            return self._say(cardinal(numbers[0]), position, stop)
        first = position if sign else start
        if unit is not None:
            return self._quantity(first, numbers, fraction, stop, unit)
        if fraction is not None:
            return self._plain_decimal(first, numbers[0], fraction, stop)
        return self._count(first, numbers, stop)

    def _token_end(self, position: int) -> int:
        """Behind the letters, digits and what joins them that begin here."""
        found = _REST_OF_TOKEN.match(self.text, position)
        return found.end() if found else position

    def _amount(self, position: int) -> tuple[tuple[int, ...], str | None, int] | None:
        """Numbers (two of a range), the digits behind the comma, and where that ends."""
        grouped = _GROUPED.match(self.text, position)
        if grouped:
            groups = grouped[1].split()
            is_written_so = "\u00a0" in grouped[1] or "\u202f" in grouped[1] or "\u2009" in grouped[1]
            if is_written_so or set(groups[1:]) == {"000"} or self._is_counted(grouped.end()):
                if len("".join(groups)) > 15:
                    return None
                return (int("".join(groups)),), grouped[2], grouped.end()
            return None
        spaced = _SPACED_RANGE.match(self.text, position)
        if spaced and int(spaced[1]) < int(spaced[2]):
            return (int(spaced[1]), int(spaced[2])), None, spaced.end()
        lump = _LUMP.match(self.text, position)
        if lump is None:
            return None
        if _WHOLE.fullmatch(lump[0]):
            return (int(lump[0]),), None, lump.end()
        if found := _RANGE.fullmatch(lump[0]):
            return ((int(found[1]), int(found[2])), None, lump.end()) if int(found[1]) < int(found[2]) else None
        found = _DECIMAL.fullmatch(lump[0])
        if found and ("," in lump[0] or self._is_counted(lump.end())):
            return (int(found[1]),), found[2], lump.end()
        return None

    def _is_counted(self, position: int) -> bool:
        """Whether a unit stands here, or a noun that is one."""
        if _MULTIPLIER.match(self.text, position) or _UNIT.match(self.text, position):
            return True
        found = _WORD_AFTER.match(self.text, position)
        return bool(found and _fold(found[1]) in _NOUN_FORMS)

    def _unit(self, position: int, before: str) -> tuple[str, str, str, str, int] | None:
        """Of what stands behind a number: noun, adjective's stem, what follows, multiplier, end."""
        multiplier = _MULTIPLIER.match(self.text, position)
        power = ""
        if multiplier:
            power, position = _MULTIPLIERS[multiplier[1]], multiplier.end()
        if before in _CURRENCY_BEFORE:
            return _CURRENCY_BEFORE[before], "", "", power, position
        found = _UNIT.match(self.text, position)
        if found is None:
            return ("", "", "", power, position) if power else None
        noun, stem, tail = _UNIT_VALUES[int((found.lastgroup or "u0")[1:])]
        return noun, stem, tail, power, found.end()

    def _is_phone(self, start: int) -> bool:
        return bool(_PHONE.match(self.text, start) or _LOCAL_PHONE.match(self.text, start))

    def _phone(self, start: int) -> int | None:
        found = _PHONE.match(self.text, start)
        if found and len(re.sub("[^0-9]", "", found[0])) == 11:
            groups = re.findall("[0-9]+", found[2])
            if max(map(len, groups)) <= 4 and (found[1] == "+7" or re.match(r"[\s-]*[(]|-|\s[89]00", found[2])):
                lead = "плюс семь" if found[1] == "+7" else "восемь"
                return self._say(" ".join([lead, *map(_digits, groups)]), start, found.end())
            return None
        found = _LOCAL_PHONE.match(self.text, start)
        if found:
            return self._say(" ".join(map(_digits, found[0].split("-"))), start, found.end())
        return None

    # Dates and times.

    def _date(self, start: int) -> int | None:
        found = _DATE.match(self.text, start)
        if found is not None:
            day, month, year = map(int, found.groups())
            name = next((name for name, number in _MONTHS.items() if number == month), "")
            tail = f"{name} {ordinal(year, 'gent')} года"
        else:
            found = _DAY.match(self.text, start)
            if found is None:
                return None
            day, name, year = int(found[1]), found[2], int(found[3] or 2000)
            month = _MONTHS[name]
            tail = f"{name} {ordinal(year, 'gent')} года" if found[3] else name
        try:
            datetime.date(year, month, day)
        except ValueError:
            return self._leave(start, found.end(), "number")
        case = self._case_of_date(start, found.end(), day, month, has_year=bool(found[3]))
        if case is None:
            return self._leave(start, found.end(), "agreement")
        return self._say(f"{ordinal(day, case, 'neut')} {tail}", start, found.end())

    def _case_of_date(self, start: int, stop: int, day: int, month: int, *, has_year: bool) -> str | None:
        word = self._word_before(start)
        if word in _TODAY or word in ("в", "во") or _NAMING_VERB.fullmatch(word):
            return None
        # «9 мая» alone and «1 мая — праздник» may name the day, where others say when.
        is_all = not re.search(r"\w", self.text[:start] + self.text[stop:])
        if not word and (_IS.match(self.text, stop) or (is_all and not has_year and (day, month) in _HOLIDAYS)):
            return None
        if word in ("на", "по", "за", "под"):
            return "accs"
        if word in ("с", "со"):
            # «Поздравляю с 8 марта»: the holiday itself.
            is_beginning = has_year or _UP_TO.match(self.text, stop)
            return "gent" if is_beginning or (day, month) not in _HOLIDAYS else None
        cases = _GOVERNED.get(word, ("gent",))
        return cases[0] if len(cases) == 1 else None

    def _days(self, start: int) -> int | None:
        if not (found := _DAYS.match(self.text, start)):
            return None
        pair = _DAY_TO_DAY.match(self.text, start)
        if pair and self._word_before(start) in ("с", "со") and 0 < int(pair[1]) < int(pair[3]) < 32:
            last = ordinal(int(pair[3]), "accs" if pair[2] == "по" else "gent", "neut")
            return self._say(f"{ordinal(int(pair[1]), 'gent', 'neut')} {pair[2]} {last}", start, pair.end())
        return self._leave(start, found.end(), "agreement")

    def _years(self, start: int) -> int | None:
        found = _YEARS_LISTED.match(self.text, start)
        if found is None or not any(int(number) in _YEARS for number in re.findall("[0-9]+", found[0])):
            return None
        return self._leave(start, found.end(), "agreement")

    def _year(self, start: int) -> int | None:
        found = _YEAR.match(self.text, start)
        if found is None:
            return None
        number, word = int(found[1]), found[2]
        is_year = number in _YEARS and len(found[1]) == 4
        before = self._word_before(start)
        cases = _GOVERNED.get(before)
        if word in ("году", "годе"):
            case = "datv" if cases and "datv" in cases and "loct" not in cases else "loct"
            return self._say(f"{ordinal(number, case)} {word}", start, found.end())
        if not is_year:
            # «До 41 года» are years of an age or the year 1941; «45 года» can only be the year.
            if word != "года" or count_class(number) != "many":
                is_doubtful = word == "года" and count_class(number) == "one" and cases is not None
                return self._leave(start, found.end(), "agreement") if is_doubtful else None
            return self._say(f"{ordinal(number, 'gent')} года", start, found.end())
        if word == "г":
            if before in _MONTHS:
                case = "gent"
            elif before in ("в", "во"):
                case = "loct"
            elif before in ("на", "за"):
                case = "accs"
            elif before in ("с", "со"):
                case = "gent"
            elif cases and len(cases) == 1:
                case = cases[0]
            else:
                return self._leave(start, found.end(), "agreement")
            noun = "году" if case == "loct" else _NOUNS["год"].singular[CASES.index(case)]
            return self._say(f"{ordinal(number, case)} {noun}", start, found.end())
        case = {"год": "nomn", "года": "gent", "годом": "ablt"}[word]
        return self._say(f"{ordinal(number, case)} {word}", start, found.end())

    def _time(self, start: int) -> int | None:
        found = _TIME.match(self.text, start)
        if found is None:
            return None
        hour, minute = int(found[1]), int(found[2])
        cases = self._governed(start)
        # «До 10:30» is said with and without cases; of «1:30» some say «час тридцать».
        if hour > 23 or minute > 59 or hour == 1 or (cases is not None and "accs" not in cases):
            return self._leave(start, found.end(), "number")
        hours = "ноль ноль" if found[1] == "00" else cardinal(hour)
        return self._say(f"{hours} {_digits(found[2])}", start, found.end())

    # Letters behind digits.

    def _with_letters(self, start: int, number: int, stop: int, attached: re.Match[str]) -> int:
        """«5-й», «90х», «11-летний»."""
        hyphen, letters, end = attached[1], _fold(attached[2]), attached.end()
        if hyphen and _COMPOUND_TAIL.fullmatch(letters) and 0 < number <= 1000:
            stem = "дву" if number == 2 and letters.startswith(_TWOFOLD) else compound_stem(number)
            return self._say(stem + attached[2], start, end)
        if not hyphen and letters not in _ENDINGS_WITHOUT_HYPHEN:
            return self._leave(start, self._token_end(stop), "mixed")
        forms = forms_with_ending(number, letters) if len(letters) <= 3 else ()
        if not forms:
            return self._leave(start, self._token_end(stop), "number")
        words = self._form(start, number, letters, forms, end)
        if words is None:
            return self._leave(start, end, "agreement", self._without_morphology(end))
        return self._say(words, start, end)

    def _form(
        self, start: int, number: int, ending: str, forms: tuple[tuple[str, str, str], ...], end: int
    ) -> str | None:
        distinct = {form for form, _, _ in forms}
        cases = self._governed(start)
        if ending == "ю" and cases and "ablt" in cases:
            return None  # «с 5-ю» for «с пятью»
        if ending == "х" and self._word_before(start) == "во":
            return None  # «во-вторых»
        if len(distinct) == 1:
            return distinct.pop()
        if ending == "е" and _MONTH_AHEAD.match(self.text, end):
            return ordinal(number, "nomn", "neut")
        _, readings = self._noun_after(end)
        agreeing = {
            form
            for form, gender, case in forms
            if cases is None or case in cases
            for reading in readings
            if reading.case == case and (reading.gender == gender if reading.number == "sing" else gender == "plur")
        }
        if len(agreeing) == 1:
            return agreeing.pop()
        if readings and agreeing:
            return None
        if cases is not None:
            left = {form for form, _, case in forms if case in cases}
            # «В 5-й»: день or группе?
            return left.pop() if len(left) == 1 else None
        if ending in ("й", "и") and ordinal(number) in distinct:
            return ordinal(number)
        if ending == "е" and number % 10 == 0 and (10 <= number <= 90 or number in _YEARS):
            return ordinal(number, "nomn", "plur")
        return None

    # Counts and quantities.

    def _count(self, start: int, numbers: tuple[int, ...], stop: int) -> int:
        """A number with nothing behind it, or with a noun."""
        if letter := _LETTER_OF_A_CLASS.match(self.text, stop):  # «в 6 „Б“»: in the sixth
            return self._leave(start, letter.end(), "agreement")
        words = self._counted_words(start, numbers, stop)
        if words is None:
            return self._leave(start, stop, "agreement", self._without_morphology(stop))
        said, cases = words
        self._last = (stop, cases)
        return self._say(said, start, stop)

    def _counted_words(self, start: int, numbers: tuple[int, ...], stop: int) -> tuple[str, tuple[str, ...]] | None:
        number = numbers[-1]
        kind = count_class(number)
        cases = self._governed(start)
        before = self._word_before(start)
        state, readings = self._noun_after(stop)
        following = _WORD_AFTER.match(self.text, stop)
        is_hour = bool(following and following[1] in _HOURS_OF and number <= 24)
        if is_hour and following and (following[1] != "дня" or kind == "many"):
            if number % 10 == 1 and number != 11:
                return None
            state, readings = "none", ()
        is_label = _LABEL.fullmatch(before) is not None
        if state == "noun":
            ranked = any(reading.lemma in _RANKED for reading in readings)
            if ranked and len(numbers) == 1:
                # «1 класс», «2 класса»: one or the first, two or of the second?
                singular = {r.case for r in readings if r.number == "sing" and (cases is None or r.case in cases)}
                if (kind == "one" and singular) or (kind == "few" and cases is None and "gent" in singular):
                    return None
            options = _agreeing(numbers, cases, readings)
            if options:
                if is_label and kind == "one":
                    return None
                lengths = any(reading.lemma in _LENGTHS for reading in readings)
                return self._only(options, number, cases, bool(before) and not is_label, lengths)
            if len(numbers) == 1 and not is_label:
                ordinals = {
                    ordinal(number, r.case, r.gender, animate=r.is_animate)
                    for r in readings
                    if r.number == "sing"
                    and r.gender
                    and ((cases is not None and r.case in cases) or (cases is None and r.lemma in _RANKED))
                }
                if len(ordinals) == 1:
                    return ordinals.pop(), ()
                if ordinals or any(not r.gender for r in readings if r.number == "plur" and kind != "many"):
                    return None
            state = "none" if kind == "many" or is_label else "unknown"
        if len(numbers) > 1:
            return None
        if is_label and (state != "unknown" or kind == "many"):
            return cardinal(number), ()
        if state == "unknown":
            return self._before_unknown(number, kind, cases, before, following)
        return self._alone(number, kind, cases, before, stop)

    def _only(
        self, options: Mapping[str, set[str]], number: int, cases: tuple[str, ...] | None, is_amid: bool, lengths: bool
    ) -> tuple[str, tuple[str, ...]] | None:
        """The one way to say it; «тысяча» or «тысячу» is certain only where a sentence begins."""
        if len(options) == 1:
            [(words, possible)] = options.items()
            return words, tuple(sorted(possible)) if cases is not None else ()
        if number % 1000 == 0 and cases is not None and "accs" in cases and not lengths:
            # The noun of thousands is in the genitive always: «за 1000 рублей».
            return next(words for words, possible in options.items() if "accs" in possible), ("accs",)
        if cases is None and not is_amid:
            nominative = [words for words, possible in options.items() if "nomn" in possible]
            return (nominative[0], ()) if len(nominative) == 1 else None
        return None

    def _before_unknown(
        self, number: int, kind: str, cases: tuple[str, ...] | None, before: str, following: re.Match[str] | None
    ) -> tuple[str, tuple[str, ...]] | None:
        if cases is not None:
            is_told = len(cases) == 1 and cases != ("accs",) and kind != "one"
            return (cardinal(number, cases[0]), cases) if is_told else None
        # «5 домов» is told by the ending; «5 дом» may be the fifth, «5 домам» is another case.
        if kind != "many" or following is None or not _GENITIVE_PLURAL.fullmatch(_fold(following[1])):
            return None
        if cardinal(number) != cardinal(number, "accs") and before:
            return None
        return cardinal(number), ()

    def _alone(
        self, number: int, kind: str, cases: tuple[str, ...] | None, before: str, stop: int
    ) -> tuple[str, tuple[str, ...]] | None:
        following = _WORD_AFTER.match(self.text, stop)
        word = following[1] if following else ""
        if number in _BARE_YEARS or (number > 9999 and number % 1000):
            return None
        if word == "из" and (kind == "one" or number % 10 == 2):
            return None
        if cases is None:
            if before and (
                cardinal(number) != cardinal(number, "accs")
                or (number % 10 in (1, 2) and _FEMININE_VERB.fullmatch(before))
            ):
                return None
            return cardinal(number), ()
        if kind == "one":
            return None
        if before in ("с", "со"):
            return (cardinal(number, "gent"), ("gent",)) if word == "до" else None
        case = cases[0] if len(cases) == 1 else "accs" if "accs" in cases else ""
        # «По 5»: по пять, not the fifth of a month: «с 3 по 5».
        if not case or (before == "по" and self._last is not None):
            return None
        return cardinal(number, case), (case,)

    def _plain_decimal(self, start: int, number: int, fraction: str, stop: int) -> int:
        case = self._case_of_quantity(start, "")
        if case is None or (number, fraction) == (1, "5"):
            return self._leave(start, stop, "number" if case else "agreement")
        if case == "nomn" and count_class(number) == "one" and self._word_before(start):
            return self._leave(start, stop, "agreement")
        self._last = (stop, () if case == "nomn" else (case,))
        return self._say(_decimal_words(number, fraction, case), start, stop)

    def _case_of_quantity(self, start: int, noun: str) -> str | None:
        """The case of a number whose noun does not show it; «nomn» where nothing asks for another."""
        cases = self._governed(start)
        if cases is None:
            return "nomn"
        if len(cases) == 1:
            return cases[0]
        # «В 5 км от города» and «на 5 км»: accusative and locative; of money, time and the like only the accusative.
        return "accs" if "accs" in cases and noun not in _LENGTHS else None

    def _quantity(
        self,
        start: int,
        numbers: tuple[int, ...],
        fraction: str | None,
        stop: int,
        unit: tuple[str, str, str, str, int],
    ) -> int:
        """A number with its unit: «150 тыс. руб.», «$5», «20 %»."""
        noun, stem, tail, power, end = unit
        letter = self.text[stop:end].strip()
        if letter.rstrip(".") in _DOTTED_OTHERWISE and letter.endswith("."):
            return self._leave(start, end, "abbreviation")
        if (numbers[0], fraction) == (1, "5"):
            return self._leave(start, end, "number")
        case = self._case_of_quantity(start, noun)
        if case is None and self._word_before(start) in ("с", "со") and _UP_TO.match(self.text, end):
            case = "gent"
        if case is None:
            return self._leave(start, end, "agreement")
        head = _NOUNS[power or noun]
        if fraction is not None:
            said = [_decimal_words(numbers[0], fraction, case)]
            is_one, noun_form = count_class(numbers[0]) == "one", head.singular[1]
        else:
            said = [" ".join(cardinal(n, case, head.gender, animate=head.is_animate) for n in numbers)]
            is_one = False
            noun_form = counted(numbers[-1], case, head.singular, head.plural)
        if case == "nomn" and self._word_before(start):
            # «Заплатил 21 коп.»: копейка or копейку?
            other = "accs"
            if fraction is not None:
                differs = is_one or count_class(int(fraction)) == "one"
            else:
                differs = [cardinal(n, other, head.gender) for n in numbers] != [
                    cardinal(n, case, head.gender) for n in numbers
                ] or counted(numbers[-1], other, head.singular, head.plural) != noun_form
            if differs:
                return self._leave(start, end, "agreement")
        if stem and not power:
            said.append(_unit_adjective(stem, numbers[-1], case, head.gender, is_fraction=fraction is not None))
        said.append(noun_form)
        if power and noun:
            if stem:
                said.append(_unit_adjective(stem, 5, "nomn", head.gender, is_fraction=False))
            said.append(_NOUNS[noun].plural[1])
        if tail:
            said.append(tail)
        self._last = (end, () if case == "nomn" else (case,))
        return self._say(" ".join(said), start, end)

    # Words.

    def _word(self, start: int) -> int:
        text = self.text
        token = _TOKEN.match(text, start)
        if token is None:
            return start + 1
        word, end = token[0], token.end()
        fixed = _FIXED.match(text, start)
        if fixed and fixed.lastindex and not any(c.isupper() for c in self._written(start, fixed.end())[1:]):
            return self._say(_FIXED_WORDS[fixed.lastindex - 1], start, fixed.end())
        if _RUSSIAN.fullmatch(word):
            if word in _CONTRACTIONS:
                return self._leave(start, end, "abbreviation")
            if text[end : end + 1] == ".":
                if len(word) == 1 and word != "я" and self._written(start, end).isupper():
                    return self._say(word, start, end, "initials")
                dotted = _DOTTED_LETTERS.match(text, start)
                if dotted and self._written(start, dotted.end()).islower():
                    return self._leave(start, dotted.end(), "abbreviation")
                stop = self._abbreviation(start)
                if stop:
                    return stop
            slash = _SLASHED.match(text, start)
            if slash:
                return self._leave(start, slash.end(), "abbreviation")
            return self._plain(word, start, end)
        if any(character.isnumeric() for character in word):
            numbered = _NAME_AND_NUMBER.fullmatch(word)
            if numbered and not _LUMP_GOES_ON.match(text, end):
                self._plain(numbered[1], start, start + len(numbered[1]))
                return self._say(cardinal(int(numbered[2])), start + len(numbered[1]) + 1, end)
            return self._leave(start, self._token_end(end), "number" if word.isnumeric() else "mixed")
        return self._other_script(word, start, end)

    def _plain(self, word: str, start: int, end: int) -> int:
        parts = re.split("[-‑]", word)
        return self._say(" ".join(parts), start, end, "abbreviation" if any(map(_NO_VOWEL.match, parts)) else "")

    def _other_script(self, word: str, start: int, end: int) -> int:
        written = self._written(start, end)
        is_latin = all("a" <= character <= "z" or character in "-‑" for character in word)
        has_russian = re.search("[а-яё]", word) is not None
        value = roman(word.translate(_CYRILLIC_IN_ROMAN))
        if value is not None:
            century = _CENTURY.match(self.text, end)
            if century and value < 40:
                words = self._century(start, value, century[1])
                if words:
                    return self._say(words, start, end)
                return self._leave(start, end, "roman")
            if (written.isupper() and (len(word) > 1 or word in "ivx")) or _ROMAN_TAIL.match(self.text, end):
                tail = _ROMAN_TAIL.match(self.text, end)
                return self._leave(start, tail.end() if tail else end, "roman")
        repaired = []
        for part in re.split("([-‑])", word):
            capital_b = "B" in self._written(start, end) and "b" not in self._written(start, end)
            table = _LOOKALIKES_OF_CAPITALS if capital_b else _LOOKALIKES
            if re.search("[а-яё]", part):
                part = "".join(table.get(character, character) for character in part)
            repaired.append(part)
        if _RUSSIAN.fullmatch("".join(repaired)):
            return self._plain("".join(repaired), start, end)
        if is_latin:
            is_lookalike = set(word) <= {*_LOOKALIKES_OF_CAPITALS, "-"}
            return self._leave(start, end, "lookalike" if is_lookalike else "foreign")
        return self._leave(start, end, "mixed" if has_russian and re.search("[a-z]", word) else "foreign")

    def _century(self, start: int, value: int, noun: str) -> str | None:
        """«девятнадцатого» of «XIX века»: the noun's ending and what stands before tell the case."""
        gender = "neut" if noun.startswith("столет") else "masc"
        endings = {
            "masc": {"век": "nomn accs", "века": "gent", "веку": "datv", "веком": "ablt", "веке": "loct"},
            "neut": {
                "столетие": "nomn accs",
                "столетия": "gent",
                "столетию": "datv",
                "столетием": "ablt",
            },
        }
        forms = {ordinal(value, case, gender) for case in endings[gender].get(noun, "").split()}
        # «XVIII и XIX века» may be two.
        is_listed = re.search(r"(?:(?<!\w)[ivxх]+\s*(?:и|или|,|[–—-])\s*)\Z", self.text[:start])
        return forms.pop() if len(forms) == 1 and not is_listed else None

    def _abbreviation(self, start: int) -> int | None:
        """Behind an abbreviation with its full stop; None if it is a word at the end of a sentence."""
        text = self.text
        if text.startswith("им.", start):
            following = _WORD_AFTER.match(text, start + 3)
            if (
                following
                and self._written(following.start(1), following.start(1) + 1).isupper()
                and _INSTITUTION.fullmatch(self._word_before(start))
            ):
                return self._say("имени", start, start + 3)
            return None
        found = _ABBREVIATION.match(text, start)
        if found is None:
            return None
        end = found.end()
        number = _NUMBER_FOLLOWS.match(text, end)
        following = _LETTER_FOLLOWS.match(text, end)
        key = found[0][:-1]
        if number is None:
            is_before_sentence = following and self._written(following.end() - 1, following.end()).isupper()
            if found["before"] and following is None:
                return None
            if key in _ENDS_A_SENTENCE and (following is None or is_before_sentence):
                return None
        forms: list[str] | None = None
        case: str | None = None
        if found["named"] and following:
            forms, case = _NAMED[key], self._case_of_name(start, end, key)
        elif found["numbered"] and number:
            cases = ("datv",) if self._word_before(start) == "по" else self._governed(start)
            forms, case = _NUMBERED[key], "nomn" if cases is None else cases[0] if len(cases) == 1 else None
        if forms is not None and case is not None:
            return self._say(forms[CASES.index(case)], start, end)
        if number and not self._is_phone(number.end() - 1):
            end = self._token_end(number.end() - 1)  # whose case is as uncertain
        return self._leave(start, end, "abbreviation")

    def _case_of_name(self, start: int, end: int, key: str) -> str | None:
        before = self._word_before(start)
        cases = _GOVERNED.get(before)
        if cases is None:
            # «Улица Ленина» where something begins; amid a sentence any case may be meant.
            return "nomn" if not before and key not in _PEOPLE else None
        if len(cases) == 1:
            return cases[0]
        if key in _PEOPLE:
            return None
        if before in ("с", "со"):
            return "gent"
        if before == "по":
            return "datv"
        if key != "г" or not (following := _WORD_AFTER.match(self.text, end)):
            return None
        # A town's name is in the case of «город»: в городе Москве, в город Москву.
        _, readings = _morphology(_fold(following[1]))
        possible = {reading.case for reading in readings if reading.number == "sing" and reading.case in cases}
        return possible.pop() if len(possible) == 1 else None


def _digits(group: str) -> str:
    """A group of digits as a number, with its leading zeros: «05» is «ноль пять»."""
    value = group.lstrip("0")
    return " ".join(["ноль"] * (len(group) - len(value)) + ([cardinal(int(value))] if value else []))


def _agreeing(
    numbers: tuple[int, ...], cases: tuple[str, ...] | None, readings: Sequence[_Reading]
) -> dict[str, set[str]]:
    """What numbers may be called before a noun, and in which cases; nominative and accusative first."""
    attempts = [cases] if cases is not None else [("nomn", "accs"), ("gent", "datv", "ablt", "loct")]
    for attempt in attempts:
        options: dict[str, set[str]] = {}
        for case in attempt:
            for reading in readings:
                is_animate = reading.is_animate and reading.number == "plur"
                if _agrees(numbers[-1], case, reading):
                    one = count_class(numbers[-1]) == "one"
                    words = " ".join(
                        cardinal(n, case, reading.gender or "masc", animate=is_animate or (one and reading.is_animate))
                        for n in numbers
                    )
                    options.setdefault(words, set()).add(case)
        if options:
            return options
    return {}


def _agrees(number: int, case: str, reading: _Reading) -> bool:
    kind = count_class(number)
    is_singular = reading.number == "sing"
    if number and number % 1000 == 0:
        return not is_singular and reading.case == "gent"
    if kind == "one":
        return is_singular and reading.case == case and bool(reading.gender)
    if kind == "few" and not reading.gender:
        return False
    if case in ("nomn", "accs"):
        if kind == "many":
            return not is_singular and reading.case == "gent"
        if is_singular:
            return reading.case == "gent"
        return case == "accs" and reading.is_animate and number in (2, 3, 4) and reading.case == "gent"
    return not is_singular and reading.case == case


def _decimal_words(number: int, fraction: str, case: str) -> str:
    """«три целых пять десятых»; what is counted stands behind it in the genitive singular."""
    words = []
    for value, stem in ((number, "цел"), (int(fraction), _FRACTIONS[len(fraction) - 1])):
        words.append(cardinal(value, case, "femn"))
        if count_class(value) == "one":
            words.append(adjective(stem, case, "femn"))
        else:
            words.append(adjective(stem, "gent" if case in ("nomn", "accs") else case, "plur"))
    return " ".join(words)


def _unit_adjective(stem: str, number: int, case: str, gender: str, *, is_fraction: bool) -> str:
    """«квадратных» of «5 кв. м»."""
    if is_fraction:
        words = adjective(stem, "gent", gender)
    elif count_class(number) == "one":
        words = adjective(stem, case, gender)
    elif case in ("nomn", "accs"):
        is_nominative = count_class(number) == "few" and gender == "femn"
        words = adjective(stem, "nomn" if is_nominative else "gent", "plur")
    else:
        words = adjective(stem, case, "plur")
    return words.replace("кый", "кий").replace("кых", "ких").replace("кым", "ким")
