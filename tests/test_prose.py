"""What `benchmarks/prose.py` takes out of packages: sentences, and only those that are prose."""

import struct

import pytest

from prose import cleaned, few_of_a_template, is_prose, prose, sentences, translations, without_markup


def test_a_paragraph_is_cut_at_full_stops_but_not_behind_abbreviations():
    text = "В 1812 г. Наполеон, т. е. император, ушёл!  И.\nИ. Иванов видел его… «Куда?» — Спросил он."
    assert list(sentences([text, "Да."])) == [
        "В 1812 г. Наполеон, т. е. император, ушёл!",
        "И. И. Иванов видел его…",
        "«Куда?»",
        "— Спросил он.",
        "Да.",
    ]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Мороз и солнце.", True),
        ("Мороз, солнце.", False),  # two words
        ("слово " * 61, False),
        ("Нажмите <b>эту</b> кнопку.", False),
        ("Он купил Windows за день.", False),
        ("ГЛАВА ПЕРВАЯ НАЧАЛО пути", False),
        ("У нас 1 000 000 000 000 роз.", False),  # mostly digits
        ("Це було дуже їм.", False),
    ],
)
def test_what_is_prose(sentence, expected):
    assert is_prose(sentence, 3, 60) is expected


def test_what_was_there_before_is_left_out():
    lines = [
        "Ёлка в лесу росла.",
        "елка, в лесу росла!",
        "— Кто там ещё стоит?",
        "• Кто там  еще стоит?",
        "Зима была долгой.",
    ]
    assert prose(lines, {"зима была долгой"}) == ["Ёлка в лесу росла.", "Кто там ещё стоит?"]


def test_accents_and_invisible_hyphens_go():
    assert cleaned("  *  — Во\u0301ро\u00adна &laquo;кар&raquo;\u00a0сказала ") == "Ворона «кар» сказала"


def test_of_a_template_a_few_stay():
    names = [f"Моего друга зовут {name}." for name in ("Иван", "Пётр", "Анна-Мария", "Фёдор", "Юрий")]
    assert list(few_of_a_template(["Шёл снег.", *names, "Шёл дождь."])) == ["Шёл снег.", *names[:3], "Шёл дождь."]


def test_wiki_text_as_it_is_read():
    text = "x~ru~'''Дом''' {{--}} [[жилище|кров]] для [[человек]]а, {{выдел|родной}}<ref name=a>b</ref>~1~22"
    assert without_markup(text) == "Дом — кров для человека, родной "


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_of_gettext_but_not_the_header(order):
    messages = [("", "Language: ru"), ("Castle", "Замок"), ("%d elf\0%d elves", "эльф\0эльфа\0эльфов")]
    tables, strings = [b"", b""], b""
    start = 28 + 16 * len(messages)
    for pair in messages:
        for index, text in enumerate(pair):
            content = text.encode()
            tables[index] += struct.pack(f"{order}2I", len(content), start + len(strings))
            strings += content + b"\0"
    header = struct.pack(f"{order}7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    assert list(translations(header + b"".join(tables) + strings)) == ["Замок", "эльф"]
