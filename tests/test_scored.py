"""Scored utterances and predictions files; the alignment, against all alignments there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from kvarts import error_counts
from kvarts.error_counts import ErrorCounts, align_letters, align_words, char_errors, word_errors
from kvarts.errors import ManifestError
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.scored import read_predictions, scored
from kvarts.text import normalise

# --- Alignment --------------------------------------------------------------------------------------------------------


def all_alignments(reference: list[str], text: list[str]) -> list[list[tuple[str, str]]]:
    if not reference and not text:
        return [[]]
    found = []
    if reference:
        found += [[(reference[0], ""), *rest] for rest in all_alignments(reference[1:], text)]
    if text:
        found += [[("", text[0]), *rest] for rest in all_alignments(reference, text[1:])]
    if reference and text:
        found += [[(reference[0], text[0]), *rest] for rest in all_alignments(reference[1:], text[1:])]
    return found


def letters_wrong(pair: tuple[str, str]) -> float:
    """Of two words the share of letters to be changed; half of one for a word without partner."""
    return 0.5 if "" in pair else Levenshtein.normalized_distance(*pair)


def sounds_unlike(pair: tuple[str, str]) -> float:
    if "" in pair:
        return 0.5
    if pair[0] == pair[1]:
        return 0
    if " " in pair:
        return 1
    return 0.25 if (pair[0] in "аеиоуыэюя") == (pair[1] in "аеиоуыэюя") else 1


WORDS = st.lists(st.sampled_from(["кот", "кит", "дом", "дым", "и", "он", "она"]), max_size=5)


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS)
def test_words_stand_beside_the_likest(reference: list[str], text: list[str]) -> None:
    found = align_words(" ".join(reference), " ".join(text))
    assert found in all_alignments(reference, text)
    edits = sum(one != other for one, other in found)
    assert edits == word_errors(" ".join(reference), " ".join(text)).errors
    best = min(
        sum(map(letters_wrong, pairs))
        for pairs in all_alignments(reference, text)
        if sum(one != other for one, other in pairs) == edits
    )
    assert sum(map(letters_wrong, found)) == pytest.approx(best)


LETTERS = st.text("аок ", max_size=5).map(normalise)


@settings(max_examples=150, deadline=None)
@given(LETTERS, LETTERS)
def test_letters_stand_beside_their_kind(reference: str, text: str) -> None:
    found = align_letters(reference, text)
    every = all_alignments(list(reference), list(text))
    assert found in every
    edits = sum(one != other for one, other in found)
    assert edits == char_errors(reference, text).errors
    best = min(sum(map(sounds_unlike, pairs)) for pairs in every if sum(one != other for one, other in pairs) == edits)
    assert sum(map(sounds_unlike, found)) == pytest.approx(best)


@settings(max_examples=100, deadline=None)
@given(st.text("абв ", max_size=60), st.text("абв ", max_size=60))
def test_long_alignments_count_the_same_errors(reference: str, text: str) -> None:
    for align, errors in ((align_words, word_errors), (align_letters, char_errors)):
        pairs = align(reference, text)
        assert sum(one != other for one, other in pairs) == errors(reference, text).errors
        between = " " if align is align_words else ""
        assert between.join(one for one, _ in pairs if one) == normalise(reference)
        assert between.join(other for _, other in pairs if other) == normalise(text)


@pytest.mark.parametrize(
    ("align", "reference", "text", "pairs"),
    [
        (align_words, "Мой кот!", "мой кит", [("мой", "мой"), ("кот", "кит")]),
        (align_words, "", "", []),
        (align_words, "да", "", [("да", "")]),
        (align_words, "", "да", [("", "да")]),
        # Two errors in each of three ways; a missed and an inserted word would be two as well.
        (align_words, "столы стоят", "стоят", [("столы", ""), ("стоят", "стоят")]),
        (align_words, "включи свет", "включи цвет свет", [("включи", "включи"), ("", "цвет"), ("свет", "свет")]),
        (align_words, "салют вызов", "салюты", [("салют", "салюты"), ("вызов", "")]),
        (align_words, "вызов салют", "салюты", [("вызов", ""), ("салют", "салюты")]),
        (align_letters, "кот", "ат", [("к", ""), ("о", "а"), ("т", "т")]),
        (align_letters, "да нет", "данет", [*zip("да", "да", strict=True), (" ", ""), *zip("нет", "нет", strict=True)]),
    ],
)
def test_alignments_by_hand(
    align: Callable[[str, str], list[tuple[str, str]]], reference: str, text: str, pairs: list[tuple[str, str]]
) -> None:
    assert align(reference, text) == pairs


def test_an_hour_is_aligned_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, text = "кот дом дым он " * 20, "кит дом он она " * 20
    expected = word_errors(reference, text).errors
    monkeypatch.setattr(error_counts, "_LARGEST_TABLE", 100)
    pairs = align_words(reference, text)
    assert sum(one != other for one, other in pairs) == expected
    assert [one for one, _ in pairs if one] == reference.split()
    assert [other for _, other in pairs if other] == text.split()


# --- Predictions ------------------------------------------------------------------------------------------------------

ROWS = [
    {"id": "a", "audio_filepath": "x/1.wav", "text": "Ёж, идёт!", "duration": 2, "pred_text": "еж идет", "domain": "d"},
    {"audio_filepath": "x/2.wav", "text": "дом 5", "duration": 1.5, "pred_text": "дом"},
    {"id": 7, "audio_filepath": "/far/3.wav", "text": "", "duration": 1, "pred_text": "да"},
]


def test_predictions_are_scored(tmp_path: Path) -> None:
    path = tmp_path / "set_pred.jsonl"
    write_manifest(path, ROWS)
    first, second, third = read_predictions(path)
    assert (first.reference, first.text, first.is_exact) == ("еж идет", "еж идет", True)
    assert (first.words, first.characters) == (ErrorCounts(reference_length=2), ErrorCounts(reference_length=7))
    assert (first.fields, first.where, first.duration_s) == (ROWS[0], f"{path}:1", 2.0)
    assert (second.words, second.is_exact) == (ErrorCounts(deletions=1, reference_length=2), False)
    assert second.characters == ErrorCounts(deletions=2, reference_length=5)
    assert (third.words, third.characters) == (ErrorCounts(insertions=1), ErrorCounts(insertions=2))
    assert [one.utterance_id for one in (first, second, third)] == ["a", "2", "7"]
    expected = [tmp_path / "x/1.wav", tmp_path / "x/2.wav", Path("/far/3.wav")]
    assert [one.audio_path for one in (first, second, third)] == expected


def test_scored_at_once_or_read_again(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, [{key: value for key, value in row.items() if key != "pred_text"} for row in ROWS])
    utterances = read_manifest(manifest)
    now = scored(utterances, ["еж идет", "дом", "да"])
    path = tmp_path / "elsewhere" / "set_pred.jsonl"
    write_manifest(path, [one.fields for one in now])
    again = read_predictions(path)
    for one, other, utterance in zip(now, again, utterances, strict=True):
        assert (one.fields, one.words, one.characters) == (other.fields, other.words, other.characters)
        assert (one.reference, one.text, one.utterance_id) == (other.reference, other.text, utterance.utterance_id)
        assert one.audio_path == other.audio_path == utterance.audio_path.absolute()
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        scored(utterances, ["да"])


@settings(max_examples=300, deadline=None)
@given(st.text("абёй я+\u0301Б-1 ", max_size=8), st.text("абёй я+\u0301Б-1 ", max_size=8))
def test_texts_are_normalised_as_everywhere(reference: str, text: str) -> None:
    row = {"audio_filepath": "1.wav", "text": reference, "duration": 1, "pred_text": text}
    path = Path("manifest.jsonl")
    [one] = scored([Utterance(path, reference, 1.0, "1", path, 1, row)], [text])
    assert (one.reference, one.text) == (normalise(reference), normalise(text))
    assert (one.words, one.characters) == (word_errors(reference, text), char_errors(reference, text))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (
            {**ROWS[0], "pred_text": None},
            '"pred_text" is null; make it a string, as kvarts evaluate --output writes it',
        ),
        ({**ROWS[0], "pred_text": 5}, '"pred_text" is a number'),
        ({key: ROWS[0][key] for key in ("audio_filepath", "text", "duration")}, '"pred_text" is missing; add it as'),
        ({**ROWS[0], "duration": 0}, '"duration" is 0'),
        ({**ROWS[0], "text": None}, '"text" is null'),
    ],
)
def test_bad_lines_are_named(line: dict[str, object], what: str, tmp_path: Path) -> None:
    path = tmp_path / "set_pred.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (ROWS[1], line)), encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}:2: {what}")
    assert "\n" not in str(caught.value)


def test_all_bad_lines_and_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "set_pred.jsonl"
    path.write_text('{\n{"a": 1}\n', encoding="utf-8")
    with pytest.raises(ManifestError, match=r"(?s):1: broken JSON.*:2: \"audio_filepath\" is missing"):
        read_predictions(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(ManifestError, match="empty"):
        read_predictions(path)
    with pytest.raises(ManifestError, match="no such manifest"):
        read_predictions(tmp_path / "none.jsonl")
