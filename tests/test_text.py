"""The normaliser and the alphabet."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarts.alphabet import (
    ALPHABET,
    BLANK_ID,
    NUM_CLASSES,
    decode,
    encode,
    encode_long,
    foreign_characters,
    min_ctc_frames,
)
from kvarts.errors import TextError
from kvarts.text import normalise


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("салют хватит", "салют хватит"),
        ("САЛЮТ, Хватит!", "салют хватит"),
        ("  два\t слова \n", "два слова"),
        ("ёлка Ёж", "елка еж"),
        ("е\u0308лка", "елка"),  # ё in two characters
        ("во\u0301лос", "волос"),
        ("вол+ос", "волос"),
        ("е\u0308\u0301лка", "елка"),  # ё with a stress mark on top
        ("и\u0306од", "йод"),  # й in two characters stays й
        ("йод", "йод"),
        ("кто-то", "кто то"),
        ("«Да» — сказал он…", "да сказал он"),
        ("под_черк", "под черк"),
        ("дом 5", "дом 5"),
        ("c нами", "c нами"),  # a Latin c is not repaired silently
        ("a + b", "a b"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalise(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


@given(st.text())
def test_normalise_changes_nothing_the_second_time(raw: str) -> None:
    once = normalise(raw)
    assert normalise(once) == once
    assert once == once.strip()
    assert "  " not in once


@given(st.text(alphabet=ALPHABET))
def test_texts_of_the_alphabet_only_lose_spaces(text: str) -> None:
    assert normalise(text) == " ".join(text.split())


def test_the_alphabet_is_the_courses() -> None:
    assert ALPHABET == " абвгдежзийклмнопрстуфхцчшщъыьэюя"
    assert (len(ALPHABET), BLANK_ID, NUM_CLASSES) == (33, 33, 34)
    assert encode(" аея") == [0, 1, 6, 32]


@given(st.text(alphabet=ALPHABET))
def test_decode_is_the_inverse_of_encode(text: str) -> None:
    assert decode(encode(text)) == text


def test_encode_names_foreign_characters() -> None:
    with pytest.raises(TextError, match="'ё5'"):
        encode("ёлка 55 ё")
    assert foreign_characters("ёлка 55 ё") == "ё5"
    assert foreign_characters("елка") == ""


@given(st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters(exclude_categories=()))))
def test_long_texts_are_encoded_like_short_ones(text: str) -> None:
    foreign = foreign_characters(text)
    if foreign:
        with pytest.raises(TextError, match=re.escape(repr(foreign))):
            encode_long(text)
    else:
        assert encode_long(text).tolist() == encode(text)


def test_of_a_long_text_only_what_is_around_a_foreign_character_is_quoted() -> None:
    with pytest.raises(TextError) as refused:
        encode_long(1000 * "дом" + "z" + 1000 * "лес")
    assert f"{10 * 'дом'}z{9 * 'лес'}" in str(refused.value)
    assert len(str(refused.value)) < 200


@given(st.text(alphabet="аб ", max_size=20))
def test_min_ctc_frames_counts_what_ctc_has_to_emit(text: str) -> None:
    # The shortest path: every label once, and a blank wherever the next label equals the one before.
    path: list[str] = []
    for character in text:
        if path and path[-1] == character:
            path.append("blank")
        path.append(character)
    assert min_ctc_frames(encode(text)) == len(path)
