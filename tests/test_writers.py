"""What is written of given words: exact bytes, exact times, subtitles that can be read."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvarts
from kvarts.recogniser import Timings, Word
from kvarts.writers import (
    CUE_S,
    LINE_CHARACTERS,
    PAUSE_S,
    WRITERS,
    Transcript,
    clock,
    cues,
    one_line,
    text_lines,
)


def transcript(
    *channels: Sequence[Word], separate: bool = False, duration_s: float = 100.0, file: str = "дом/a.wav"
) -> Transcript:
    timings = Timings(read_s=0.5, features_s=0.25, network_s=1.0, decoding_s=0.125)
    return Transcript(file, "kvarts-small", "openvino int8", duration_s, timings, tuple(map(tuple, channels)), separate)


HELLO = [Word("привет", 0.04, 0.6, 0.9), Word("дом", 0.72, 1.0, 0.81234)]
LATER = [Word("пять", 59.9996, 3661.5, 0.5)]
TALK = ([Word("алло", 1.0, 1.4, 0.9), Word("да", 5.0, 5.2, 0.8)], [Word("нет", 3.0, 3.5, 0.7)])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "00:00:00.000"),
        (0.0004, "00:00:00.000"),
        (0.0006, "00:00:00.001"),
        (59.9994, "00:00:59.999"),
        (59.9996, "00:01:00.000"),
        (3599.9996, "01:00:00.000"),
        (3661.5, "01:01:01.500"),
        (360_000.04, "100:00:00.040"),
    ],
)
def test_the_clock_carries(seconds: float, shown: str) -> None:
    assert clock(seconds, ".") == shown
    assert clock(seconds, ",") == shown.replace(".", ",")


def test_txt() -> None:
    assert WRITERS["txt"](transcript(HELLO), False) == "привет дом\n"
    assert WRITERS["txt"](transcript(*TALK, separate=True), False) == "Канал 1: алло да\nКанал 2: нет\n"
    assert text_lines(transcript([])) == [""]


def test_srt() -> None:
    assert WRITERS["srt"](transcript(HELLO + LATER, duration_s=4000.0), False) == (
        "1\n00:00:00,040 --> 00:00:01,040\nпривет дом\n\n2\n00:01:00,000 --> 00:01:06,000\nпять\n"
    )
    assert WRITERS["srt"](transcript(HELLO), True) == (
        "1\n00:00:00,040 --> 00:00:00,600\nпривет\n\n2\n00:00:00,720 --> 00:00:01,000\nдом\n"
    )


def test_channels_of_subtitles_take_turns() -> None:
    assert WRITERS["srt"](transcript(*TALK, separate=True), False) == (
        "1\n00:00:01,000 --> 00:00:02,000\nКанал 1: алло\n\n"
        "2\n00:00:03,000 --> 00:00:04,000\nКанал 2: нет\n\n"
        "3\n00:00:05,000 --> 00:00:06,000\nКанал 1: да\n"
    )
    assert WRITERS["vtt"](transcript(*TALK, separate=True), False) == (
        "WEBVTT\n\n"
        "00:00:01.000 --> 00:00:02.000\n<v Channel 1>алло\n\n"
        "00:00:03.000 --> 00:00:04.000\n<v Channel 2>нет\n\n"
        "00:00:05.000 --> 00:00:06.000\n<v Channel 1>да\n"
    )


def test_vtt_escapes_what_would_be_markup() -> None:
    assert WRITERS["vtt"](transcript([Word("<b>&-->", 0.0, 2.0, 1.0)]), False) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n&lt;b&gt;&amp;--&gt;\n"
    )


def test_tsv() -> None:
    assert WRITERS["tsv"](transcript(HELLO), False) == (
        "file\tstart_s\tend_s\ttext\nдом/a.wav\t0.040\t1.040\tпривет дом\n"
    )
    assert WRITERS["tsv"](transcript(HELLO), True) == (
        "file\tstart_s\tend_s\ttext\tconfidence\n"
        "дом/a.wav\t0.040\t0.600\tпривет\t0.9000\n"
        "дом/a.wav\t0.720\t1.000\tдом\t0.8123\n"
    )
    rows = list(csv.DictReader(io.StringIO(WRITERS["tsv"](transcript(*TALK, separate=True), True)), delimiter="\t"))
    assert [(row["channel"], row["text"]) for row in rows] == [("1", "алло"), ("2", "нет"), ("1", "да")]


def test_a_name_with_tabs_and_line_ends_stays_in_its_cell() -> None:
    assert one_line("a\tb\nc\rd") == "a\\tb\\nc\\rd"
    rows = WRITERS["tsv"](transcript(HELLO, file="a\tb\nc"), False).splitlines()
    assert [row.count("\t") for row in rows] == [3, 3]


def test_json() -> None:
    whole = {
        "file": "дом/a.wav",
        "text": "привет дом",
        "duration_s": 100.0,
        "timings": {"read_s": 0.5, "features_s": 0.25, "network_s": 1.0, "decoding_s": 0.125, "total_s": 1.875},
        "model": "kvarts-small",
        "engine": "openvino int8",
        "kvarts_version": kvarts.__version__,
    }
    assert json.loads(WRITERS["json"](transcript(HELLO), False)) == whole
    words = [
        {"text": "привет", "start_s": 0.04, "end_s": 0.6, "confidence": 0.9},
        {"text": "дом", "start_s": 0.72, "end_s": 1.0, "confidence": 0.8123},
    ]
    assert json.loads(WRITERS["json"](transcript(HELLO), True)) == whole | {"words": words}
    assert "привет" in WRITERS["json"](transcript(HELLO), False)  # in letters, not in escapes


def test_json_of_channels() -> None:
    found = json.loads(WRITERS["json"](transcript(*TALK, separate=True), True))
    assert found["text"] == "алло да\nнет"
    assert found["channels"] == [{"channel": 1, "text": "алло да"}, {"channel": 2, "text": "нет"}]
    assert [(word["channel"], word["text"]) for word in found["words"]] == [(1, "алло"), (2, "нет"), (1, "да")]


def test_jsonl_is_the_same_in_one_line() -> None:
    for spoken in (transcript(HELLO), transcript(*TALK, separate=True, file="a\nb")):
        line = WRITERS["jsonl"](spoken, True)
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert json.loads(line) == json.loads(WRITERS["json"](spoken, True))


def test_silence_is_written_too() -> None:
    silent = transcript([])
    assert {name: write(silent, False) for name, write in WRITERS.items() if "json" not in name} == {
        "txt": "\n",
        "srt": "",
        "vtt": "WEBVTT\n",
        "tsv": "file\tstart_s\tend_s\ttext\n",
    }
    assert json.loads(WRITERS["json"](silent, True))["words"] == []


def test_a_pause_begins_a_new_cue() -> None:
    def talk(pause_s: float) -> list[tuple[Word, ...]]:
        words = [Word("раз", 0.0, 1.5, 1.0), Word("два", 1.5 + pause_s, 3.0, 1.0)]
        return [cue.words for cue in cues(transcript(words), False)]

    assert [len(words) for words in talk(PAUSE_S - 0.01)] == [2]
    assert [len(words) for words in talk(PAUSE_S + 0.01)] == [1, 1]


def test_a_short_cue_stands_until_the_next_or_the_end() -> None:
    words = [Word("раз", 0.0, 0.1, 1.0), Word("два", 0.9, 1.0, 1.0), Word("три", 99.5, 99.6, 1.0)]
    spans = [(cue.start_s, cue.end_s) for cue in cues(transcript(words, duration_s=100.0), False)]
    assert spans == [(0.0, 0.9), (0.9, 1.9), (99.5, 100.0)]


def test_two_lines_are_of_like_length() -> None:
    words = [Word(text, 0.3 * index, 0.3 * index + 0.2, 1.0) for index, text in enumerate(["деревня"] * 6)]
    [*_, first, second, _] = WRITERS["srt"](transcript(words), False).split("\n")
    assert (first, second) == ("деревня деревня деревня", "деревня деревня деревня")


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.floats(0.04, 8.0), st.floats(0.0, 2.0)),
        min_size=1,
        max_size=60,
    ),
    st.booleans(),
)
def test_cues_lose_no_word_and_keep_to_their_limits(spoken: list[tuple[int, float, float]], separate: bool) -> None:
    words, now_s = [], 0.0
    for length, lasts_s, pause_s in spoken:
        words.append(Word("я" * length, now_s, now_s + lasts_s, 0.5))
        now_s += lasts_s + pause_s
    found = cues(transcript(words, separate=separate, duration_s=now_s), False)
    assert [word for cue in found for word in cue.words] == words
    for cue, following in zip(found, [*found[1:], None], strict=True):
        assert cue.start_s < cue.end_s <= cue.start_s + CUE_S + 1e-9
        assert cue.start_s == cue.words[0].start_s
        if following is not None:
            assert cue.end_s <= following.start_s
    blocks = WRITERS["srt"](transcript(words, separate=separate, duration_s=now_s), False).split("\n\n")
    assert len(blocks) == len(found)
    for block, cue in zip(blocks, found, strict=True):
        lines = block.strip("\n").split("\n")[2:]
        assert len(lines) <= 2
        for line in lines:
            assert len(line) <= LINE_CHARACTERS or len(cue.words) == 1
        assert re.sub("Канал 1: ", "", " ".join(lines)) == " ".join(word.text for word in cue.words)
