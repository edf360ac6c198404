"""Streaming, with an engine that reads tones: what a stream says, when, and at what cost."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, pairwise, repeat, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvarts.cutting import LONGEST_PIECE_S, Piece
from kvarts.errors import AudioError, ConfigError, StreamError
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import read_manifest, write_manifest
from kvarts.recogniser import PieceResult, Recognizer, Timings, Word
from kvarts.streaming import Event, Final, Partial, Stream, Streams, StreamSettings
from kvarts.streaming_metrics import (
    StreamingEvaluation,
    _add_stability,
    evaluate_streaming,
    pause_like,
    play,
    streaming_table,
)
from tones import ToneEngine, speak

Waveform = NDArray[np.float32]
CHUNKS_S = (0.02, 0.1, 0.32, 1.0, 2.0)


@pytest.fixture
def engine() -> ToneEngine:
    return ToneEngine()


@pytest.fixture
def recognizer(engine: ToneEngine) -> Recognizer:
    return Recognizer(engine)


def silence(duration_s: float) -> Waveform:
    return np.zeros(round(duration_s * SAMPLE_RATE), np.float32)


def noise(duration_s: float, level: float = 1e-3) -> Waveform:
    return np.random.default_rng(0).normal(0, level, round(duration_s * SAMPLE_RATE)).astype(np.float32)


def hum(duration_s: float) -> Waveform:
    """Loud, never steady, and below all that the engine reads: 100 Hz that swells and fades twice a second."""
    seconds = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(200 * np.pi * seconds) * np.sin(2 * np.pi * seconds)).astype(np.float32)


def in_noise(waveform: Waveform) -> Waveform:
    return waveform + noise(len(waveform) / SAMPLE_RATE)


def chunks_of(waveform: Waveform, sizes: Iterable[int]) -> Iterator[Waveform]:
    """Consecutive chunks of these sizes, then the rest."""
    start = 0
    for size in sizes:
        if start >= len(waveform):
            return
        yield waveform[start : start + size]
        start += size
    if start < len(waveform):
        yield waveform[start:]


def chunked(waveform: Waveform, size_s: float) -> Iterator[Waveform]:
    size = round(size_s * SAMPLE_RATE)
    return chunks_of(waveform, [size] * (len(waveform) // size))


def listen(stream: Stream, chunks: Iterable[Waveform]) -> list[Event]:
    events: list[Event] = []
    for chunk in chunks:
        events += stream.feed(chunk)
    return events + stream.close()


def finals(events: Iterable[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def partials(events: Iterable[Event]) -> list[Partial]:
    return [event for event in events if isinstance(event, Partial)]


# --- Finals are what offline recognition gives ------------------------------------------------------------------------


@pytest.mark.parametrize("size_s", [*CHUNKS_S, 1 / SAMPLE_RATE * 333, 60.0])
@pytest.mark.parametrize("add_noise", [False, True], ids=["clean", "noise"])
def test_an_utterance_is_what_offline_makes_of_it(recognizer: Recognizer, size_s: float, add_noise: bool) -> None:
    waveform = np.concatenate([silence(0.7013), speak("включи свет на кухне"), silence(0.5)])
    waveform = in_noise(waveform) if add_noise else waveform
    offline = recognizer.transcribe(waveform)
    assert offline.text == "включи свет на кухне"
    [final] = finals(listen(recognizer.stream(), chunked(waveform, size_s)))
    assert (final.text, final.words) == (offline.text, offline.words)
    assert (final.start_s, final.end_s, final.time_s) == (0.0, offline.duration_s, offline.duration_s)


def conversation() -> Waveform:
    """Words, pauses of all lengths, a click, a hum that is no speech, and noise under all."""
    parts = [silence(1.8), speak("алло "), silence(0.5), speak("дом"), silence(1), speak("да"), silence(0.9)]
    parts += [np.full(40, 0.5, np.float32), silence(1.2), speak("свет"), hum(3.3), silence(1), speak("нет")]
    return in_noise(np.concatenate(parts))


CONVERSATION = conversation()


@cache
def heard_in_frames() -> list[Event]:
    """The conversation in chunks of 40 ms: no partial result is left out."""
    return listen(Recognizer(ToneEngine()).stream(), chunked(CONVERSATION, 0.04))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 5), st.integers(1, 2000), st.integers(1, 60_000)), max_size=30))
def test_any_chunks_give_the_same_finals(sizes: list[int]) -> None:
    found = listen(Recognizer(ToneEngine()).stream(), chunks_of(CONVERSATION, sizes))
    assert finals(found) == finals(heard_in_frames())
    shown = {(event.time_s, event.text) for event in partials(heard_in_frames())}
    texts = {text for _, text in shown}
    for event in partials(found):
        # One that was left out may have had the same text, and then the later one shows it.
        assert (event.time_s, event.text) in shown or event.text in texts


def test_chunks_of_one_sample(recognizer: Recognizer) -> None:
    waveform = np.concatenate([silence(0.3), speak("да")])
    one_by_one = listen(recognizer.stream(), (waveform[number : number + 1] for number in range(len(waveform))))
    assert one_by_one == listen(recognizer.stream(), chunked(waveform, 0.04))
    assert [final.text for final in finals(one_by_one)] == ["да"]


def test_every_final_is_the_offline_text_of_its_own_samples(recognizer: Recognizer) -> None:
    found = finals(listen(recognizer.stream(), chunked(CONVERSATION, 0.1)))
    assert [final.text for final in found] == ["алло дом", "да", "свет", "нет"]
    for final in found:
        start, stop = round(final.start_s * SAMPLE_RATE), round(final.end_s * SAMPLE_RATE)
        assert start / SAMPLE_RATE == final.start_s
        offline = recognizer.transcribe(CONVERSATION[start:stop])
        assert final.text == offline.text
        assert [word.start_s for word in final.words] == pytest.approx(
            [word.start_s + final.start_s for word in offline.words]
        )
    assert all(one.end_s <= other.start_s for one, other in pairwise(found))


def test_a_speaker_who_never_stops(engine: ToneEngine, recognizer: Recognizer) -> None:
    """Cut where a recording of it would be cut, in flat memory, at a bounded cost."""
    text = " ".join(f"номер {word}" for word in ["ноль", "один", "два", "три", "четыре"] * 7)
    parts = [part for word in text.split(" ") for part in (speak(word + " "), silence(0.1))]
    waveform = np.concatenate(parts)
    assert len(waveform) > 45 * SAMPLE_RATE
    offline = recognizer.transcribe(waveform)
    assert offline.text == text
    engine.batch_shapes.clear()
    stream = recognizer.stream()
    found: list[Event] = []
    for chunk in chunked(waveform, 0.1):
        found += stream.feed(chunk)
        assert len(stream._sound) // 4 <= 30.1 * SAMPLE_RATE
    found += stream.close()
    assert " ".join(final.text for final in finals(found)) == text
    assert [word for final in finals(found) for word in final.words] == list(offline.words)
    assert len(finals(found)) > 1
    assert max(final.end_s - final.start_s for final in finals(found)) <= LONGEST_PIECE_S
    assert max(frames for _, frames in engine.batch_shapes) <= 3001
    assert stream.encoded_s < (1 / stream.settings.growth + 3) * len(waveform) / SAMPLE_RATE


# --- Where utterances end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("add_noise", [False, True], ids=["clean", "noise"])
@pytest.mark.parametrize(("pause_s", "texts"), [(0.6, ["да нет"]), (1.0, ["да", "нет"]), (6.0, ["да", "нет"])])
def test_a_pause_ends_an_utterance_and_both_sides_keep_silence(
    recognizer: Recognizer, pause_s: float, texts: list[str], add_noise: bool
) -> None:
    waveform = np.concatenate([silence(0.5), speak("да "), silence(pause_s), speak("нет"), silence(1.5)])
    waveform = in_noise(waveform) if add_noise else waveform
    found = finals(listen(recognizer.stream(), chunked(waveform, 0.1)))
    assert [final.text for final in found] == texts
    for final in found:
        assert final.words[0].start_s - final.start_s > 0.38
        assert final.end_s - final.words[-1].end_s > 0.38
        assert final.words[0].start_s - final.start_s < 1.5 + 0.15
        # The last letter, silence_s, and a frame on either side.
        assert final.time_s - final.words[-1].end_s == pytest.approx(0.8, abs=0.2)


@pytest.mark.parametrize("silence_s", [0.4, 1.6])
def test_how_long_a_pause_must_be(recognizer: Recognizer, silence_s: float) -> None:
    def heard(pause_s: float) -> int:
        waveform = np.concatenate([silence(0.5), speak("да "), silence(pause_s), speak("нет")])
        return len(finals(listen(recognizer.stream(StreamSettings(silence_s=silence_s)), [waveform])))

    # A space is said between the words: 0.12 s with a tone in them.
    assert [heard(silence_s - 0.12), heard(silence_s + 0.12)] == [1, 2]


@pytest.mark.parametrize(("loudness", "every_s"), [(1.0, 6.0), (0.1, 1.5)], ids=["as loud as speech", "fainter"])
def test_the_network_ends_an_utterance_in_a_noise_that_is_loud_enough_for_speech(
    recognizer: Recognizer, loudness: float, every_s: float
) -> None:
    waveform = np.concatenate([silence(0.5), speak("включи свет"), loudness * hum(6)])
    stream = recognizer.stream()
    events = [event for chunk in chunked(waveform, 0.1) for event in stream.feed(chunk)]
    [final] = finals(events)
    assert final.text == "включи свет"
    assert 1.2 <= final.time_s - final.words[-1].end_s < 1.2 + every_s + 0.5
    assert stream.close() == []


def test_a_floor_that_rises_is_learnt(recognizer: Recognizer, engine: ToneEngine) -> None:
    """Steady noise, from one moment on 20 dB louder: after 10 s it is silence again."""
    stream = recognizer.stream()
    for chunk in chunked(np.concatenate([noise(5), noise(14, 1e-2)]), 0.1):
        assert stream.feed(chunk) == []
    engine.batch_shapes.clear()
    for chunk in chunked(noise(20, 1e-2), 0.1):
        assert stream.feed(chunk) == []
    assert engine.batch_shapes == []


def test_shorter_than_the_gate_can_know(recognizer: Recognizer) -> None:
    """What has been heard before anything was known of it is recognised at the end; nothing is lost."""
    waveform = speak("а")
    assert len(waveform) < 0.2 * SAMPLE_RATE
    assert [event.text for event in listen(recognizer.stream(), [waveform])] == ["а"]


@pytest.mark.parametrize("samples", [1, 399])
def test_less_than_a_window_holds_no_letter(recognizer: Recognizer, engine: ToneEngine, samples: int) -> None:
    assert listen(recognizer.stream(), [np.ones(samples, np.float32)]) == []
    assert recognizer.stream().close() == []
    assert engine.batch_shapes == []


@pytest.mark.parametrize("sound", [silence(20), noise(20), noise(20, 0.1)], ids=["digital", "noise", "loud noise"])
def test_silence_is_not_encoded(recognizer: Recognizer, engine: ToneEngine, sound: Waveform) -> None:
    stream = recognizer.stream()
    for chunk in chunked(sound, 0.1):
        assert stream.feed(chunk) == []
    assert engine.batch_shapes == []
    assert len(stream._sound) // 4 <= 1.6 * SAMPLE_RATE
    assert stream.close() == []


# --- Partial results --------------------------------------------------------------------------------------------------


def test_text_grows_while_one_speaks(recognizer: Recognizer) -> None:
    text = "включи свет на кухне"
    waveform = np.concatenate([silence(0.5), speak(text), silence(1)])
    events = listen(recognizer.stream(), chunked(waveform, 0.02))
    shown = partials(events)
    assert [event.time_s for event in shown] == sorted({event.time_s for event in shown})
    # A tone that breaks off where the sound ends so far is a click, and may be taken for another letter.
    assert all(text.startswith(event.text[:-1]) for event in shown)
    assert shown[0].text[:-1] in {"", "в", "вк"}
    assert shown[-1].text == text
    assert events[-1].text == text
    # Nothing is known of a sound before it is heard, and it is known 0.3 s later, two partial results, at this length.
    for event in shown:
        heard = (event.time_s - 0.5 - 0.04) / 0.12
        assert heard - 4 <= len(event.text) <= heard + 1
    assert all(event.words[-1].end_s <= event.time_s + 0.04 for event in shown)  # the last frame is centred there


def test_when_partial_results_come(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 0.2 s, then at 12 % of the open length: counted in network calls."""
    heard: list[tuple[float, float]] = []
    transcribe_pieces = Recognizer.transcribe_pieces

    def watched(self: Recognizer, pieces: Iterable[Piece]) -> Iterator[PieceResult]:
        listed = list(pieces)
        heard.extend((piece.start / SAMPLE_RATE, len(piece.waveform) / SAMPLE_RATE) for piece in listed)
        return transcribe_pieces(self, listed)

    monkeypatch.setattr(Recognizer, "transcribe_pieces", watched)
    waveform = np.concatenate([silence(0.5), speak("номер " * 25)])
    listen(recognizer.stream(), chunked(waveform, 0.02))
    assert {start_s for start_s, _ in heard} == {0.0}
    lengths_s = [length_s for _, length_s in heard]
    expected_s = [lengths_s[0]]  # speech was noticed 0.2 s before
    assert 0.5 + 0.2 <= expected_s[0] <= 0.5 + 0.2 + 0.16
    while len(expected_s) < len(heard) - 1:
        step_s = max(0.2, 0.04 * round(0.12 * expected_s[-1] / 0.04))
        expected_s.append(expected_s[-1] + step_s)
    assert lengths_s == pytest.approx([*expected_s, len(waveform) / SAMPLE_RATE])
    assert expected_s[-1] + 0.13 * expected_s[-1] > lengths_s[-1]


def test_partial_results_that_are_overtaken_are_left_out(recognizer: Recognizer, engine: ToneEngine) -> None:
    waveform = np.concatenate([silence(0.5), speak("да нет"), silence(0.3)])

    def calls(size_s: float) -> int:
        engine.batch_shapes.clear()
        events = listen(recognizer.stream(), chunked(waveform, size_s))
        assert finals(events)[0].text == "да нет"
        return len(engine.batch_shapes)

    assert calls(0.02) > 3
    assert calls(60) == 2  # the last partial result and the final
    stream = recognizer.stream()
    engine.batch_shapes.clear()
    [partial] = stream.feed(waveform)
    assert len(engine.batch_shapes) == 1
    assert partial.text == "да нет"


# --- What is stable ---------------------------------------------------------------------------------------------------


class Scripted(Recognizer):
    """Says what it is told to, call by call, with times from the beginning of the stream."""

    def __init__(self, script: Iterator[Sequence[tuple[str, float, float]]]) -> None:
        super().__init__(ToneEngine())
        self.script = script

    def transcribe_pieces(self, pieces: Iterable[Piece]) -> Iterator[PieceResult]:
        for piece in pieces:
            words = tuple(Word(text, start_s, end_s, 1.0) for text, start_s, end_s in next(self.script))
            start_s = piece.start / SAMPLE_RATE
            yield PieceResult(start_s, start_s + len(piece.waveform) / SAMPLE_RATE, words, Timings(0, 0, 0, 0))


def spread(text: str) -> list[tuple[str, float, float]]:
    """Words of 0.4 s each, one after the other."""
    return [(word, 0.4 * number, 0.4 * (number + 1)) for number, word in enumerate(text.split())]


def said(script: Iterable[Sequence[tuple[str, float, float]]], **changes: Any) -> list[tuple[str, str, float]]:
    """Text, stable text and time of the first utterance's partial results, one every 0.4 s, by a script."""
    chosen = StreamSettings(**{"partial_s": 0.4, "growth": 0, "silence_s": 2.0, **changes})
    stream = Stream(Scripted(chain(script, repeat([]))), chosen)
    sound = np.tile(speak("а"), 40)[: round(4.4 * SAMPLE_RATE)]
    events = [event for chunk in chunked(sound, 0.04) for event in stream.feed(chunk)]
    first = takewhile(lambda event: isinstance(event, Partial), events)
    return [(event.text, event.stable_text, round(event.time_s, 2)) for event in partials(first)]


def test_the_rule_by_hand() -> None:
    script = ["а", "а б", "а б в", "а г в", "а г в д", "ж г в д", "ж г в", *["а г в д е"] * 3]
    # Words end at 0.4 s, 0.8 s …; results come at 0.68 s, 1.08 s …
    assert said(map(spread, script), stable_partials=2, stable_s=0.5) == [
        ("а", "", 0.68),
        ("а б", "а", 1.08),  # «б» ended 0.28 s ago
        ("а б в", "а б", 1.48),
        ("а б в", "а б в", 1.88),  # «г» is not shown: where it stands, «б» is stable
        ("а б в д", "а б в", 2.28),
        ("а б в д", "а б в д", 2.68),
        # 3.08: «ж г в» changes nothing
        ("а б в д е", "а б в д", 3.48),
        ("а б в д е", "а б в д е", 3.88),
    ]
    assert said(map(spread, script), stable_partials=3, stable_s=1.0) == [
        ("а", "", 0.68),
        ("а б", "", 1.08),
        ("а б в", "а", 1.48),  # «а» stood three times and ended 1.08 s ago
        ("а г в", "а", 1.88),
        ("а г в д", "а", 2.28),
        ("а г в д", "а г в", 2.68),  # «ж» comes too late; «в» ended 1.48 s ago
        ("а г в", "а г в", 3.08),
        ("а г в д е", "а г в", 3.48),
        # 3.88: «д» stood twice
        ("а г в д е", "а г в д е", 4.28),
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["а", "б", "в"]), max_size=8), min_size=12, max_size=12),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_what_is_stable_stays(script: list[list[str]], stable_partials: int, stable_s: float) -> None:
    hypotheses = [spread(" ".join(words)) for words in script]
    found = said(hypotheses, stable_partials=stable_partials, stable_s=stable_s)
    for (_, earlier, _), (text, stable, time_s) in pairwise([("", "", 0.0), *found]):
        assert stable.split()[: len(earlier.split())] == earlier.split()
        assert text.split()[: len(stable.split())] == stable.split()
        if stable != earlier:
            assert 0.4 * len(stable.split()) <= time_s - stable_s + 1e-6


def test_a_stable_word_whose_end_moves_stays_stable() -> None:
    script = [[("а", 0.0, 0.4)], [("а", 0.0, 9.0)], [("а", 0.0, 0.4), ("б", 0.4, 0.8)]]
    found = said(script, stable_partials=1, stable_s=0.2)
    assert found[:2] == [("а", "а", 0.68), ("а б", "а б", 1.48)]


def test_a_final_without_words_takes_back_what_was_shown() -> None:
    sound = np.tile(speak("а"), 8)
    script = iter([spread("а")] * 100)
    assert listen(Stream(Scripted(script)), chunked(sound, 0.04))[-1].text == "а"
    calls = 100 - len([*script])
    assert calls > 2
    events = listen(Stream(Scripted(iter([*[spread("а")] * (calls - 1), []]))), chunked(sound, 0.04))
    assert [(type(event), event.text) for event in events] == [(Partial, "а"), (Final, "")]


# --- Many streams -----------------------------------------------------------------------------------------------------


SAID = ["да", "нет", "включи свет", "алло", "это дом", "пять", "номер", "шесть"]


def speeches() -> dict[int, Waveform]:
    """One for each stream, with a pause and a second utterance in each."""
    found = {}
    for number, text in enumerate(SAID):
        parts = [silence(0.3 + 0.1 * number), speak(text), silence(1.1), speak(text), silence(0.4)]
        found[number] = in_noise(np.concatenate(parts))
    return found


def test_who_is_too_slow_leaves_partial_results_out_and_no_final_one(
    recognizer: Recognizer, engine: ToneEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heard() -> tuple[int, list[list[str]], float]:
        streams = Streams(recognizer)
        opened = [streams.open(number) for number in speeches()]
        chunks = [list(chunked(sound, 0.1)) for sound in speeches().values()]
        events: list[list[Event]] = [[] for _ in opened]
        for tick in range(max(map(len, chunks))):
            given = {number: parts[tick] for number, parts in enumerate(chunks) if tick < len(parts)}
            closing = [number for number, parts in enumerate(chunks) if tick == len(parts) - 1]
            for number, found in streams.feed(given, closing=closing).items():
                events[number] += found
        texts = [[final.text for final in finals(of_one)] for of_one in events]
        return sum(len(partials(of_one)) for of_one in events), texts, sum(stream.encoded_s for stream in opened)

    enough, texts, heard_s = heard()
    log_probs = engine.log_probs
    clock_s = 0.0

    def slow(features: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        nonlocal clock_s
        clock_s += lengths.sum() / 100 / 5  # five times real time, for eight streams
        return log_probs(features, lengths)

    monkeypatch.setattr(engine, "log_probs", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock_s)
    fewer, same_texts, less_s = heard()
    assert same_texts == texts == [[text] * 2 for text in SAID]
    assert fewer < enough / 2
    assert less_s < heard_s / 2


def test_streams_together_say_what_each_says_alone(recognizer: Recognizer, engine: ToneEngine) -> None:
    sounds = speeches()
    alone = {number: listen(recognizer.stream(), chunked(sound, 0.1)) for number, sound in sounds.items()}
    assert [[final.text for final in finals(events)] for events in alone.values()] == [[text] * 2 for text in SAID]
    engine.batch_shapes.clear()
    streams = Streams(recognizer)
    parts = {number: list(chunked(sound, 0.1)) for number, sound in sounds.items()}
    together: dict[int, list[Event]] = {number: [] for number in sounds}
    for number in sounds:
        streams.open(number)
    assert len(streams) == len(sounds)
    for tick in range(max(map(len, parts.values()))):
        now = {number: chunks[tick] for number, chunks in parts.items() if tick < len(chunks)}
        over = [number for number, chunks in parts.items() if tick == len(chunks) - 1]
        for number, events in streams.feed(now, closing=over).items():
            together[number] += events
    assert together == alone
    assert len(streams) == 0
    assert max(utterances for utterances, _ in engine.batch_shapes) > 2


def test_names_of_streams(recognizer: Recognizer) -> None:
    streams = Streams(recognizer)
    streams.open("а")
    with pytest.raises(StreamError, match="stream 'а' is open already; close it or choose another name"):
        streams.open("а")
    with pytest.raises(StreamError, match="stream 'б' is not open; open it first"):
        streams.feed({"б": silence(1)})
    assert streams.feed({}, closing=["а"]) == {"а": []}
    with pytest.raises(StreamError, match="not open"):
        streams.feed({}, closing=["а"])
    streams.open("а")


def test_one_bad_chunk_leaves_all_streams_as_they_were(recognizer: Recognizer) -> None:
    streams = Streams(recognizer)
    for name in "аб":
        streams.open(name)
    good = np.concatenate([silence(0.3), speak("да")])
    with pytest.raises(StreamError, match="stream 'б': samples that are not numbers"):
        streams.feed({"а": good, "б": np.full(9, np.nan, np.float32)})
    found = streams.feed({"а": good, "б": good}, closing="аб")
    assert [[final.text for final in finals(events)] for events in found.values()] == [["да"], ["да"]]


def test_a_network_that_fails_once_loses_nothing(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = finals(heard_in_frames())
    failing = [False]
    log_probs = ToneEngine.log_probs

    def broken(self: ToneEngine, *arguments: Any) -> NDArray[np.float32]:
        if failing[0]:
            raise RuntimeError("out of memory")
        return log_probs(self, *arguments)

    monkeypatch.setattr(ToneEngine, "log_probs", broken)
    stream = recognizer.stream()
    events: list[Event] = []
    failures = 0
    for number, chunk in enumerate(chunked(CONVERSATION, 0.3)):
        failing[0] = number % 2 == 0
        try:
            events += stream.feed(chunk)
        except RuntimeError:
            failures += 1
    failing[0] = False
    events += stream.close()
    assert failures > 3
    assert finals(events) == expected


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (silence(0), "at least one sample at a time and this is none"),
        (np.full(100, np.nan, np.float32), "not numbers"),
        (np.append(silence(0.1), np.float32(-np.inf)), "not numbers"),
        (np.zeros(100, np.int16), "floats in [-1, 1], not int16"),
        (np.zeros(100, np.bool_), "floats in [-1, 1], not bool"),
        (np.zeros((100, 1), np.float32), "of shape (100, 1)"),
        (np.float32(0), "this is a float32"),
        (np.zeros((), np.float32), "of shape ()"),
        ([0.0, 0.0], "this is a list"),
        (b"\0" * 100, "this is a bytes"),
        (np.full(3, 1e300), "not numbers"),
    ],
)
def test_what_is_no_sound(recognizer: Recognizer, samples: Any, message: str) -> None:
    stream = recognizer.stream()
    with pytest.raises(StreamError) as caught:
        stream.feed(samples)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    sound = np.concatenate([silence(0.3), speak("да")])
    assert [final.text for final in finals(listen(stream, [sound.astype(np.float64)]))] == ["да"]


def test_after_the_end(recognizer: Recognizer) -> None:
    stream = recognizer.stream()
    stream.close()
    for call in (stream.close, lambda: stream.feed(silence(1))):
        with pytest.raises(StreamError, match="the stream is closed; open a new one"):
            call()


@pytest.mark.parametrize("rate", [8000, 48_000, 0])
def test_another_rate(recognizer: Recognizer, rate: int) -> None:
    with pytest.raises(StreamError, match=f"takes 16000 samples a second, not {rate}: resample them first"):
        recognizer.stream(sample_rate=rate)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(StreamSettings)])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 1e9])
def test_impossible_settings(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*; give a number from"):
        StreamSettings(**{name: value})


def test_a_caller_may_use_its_buffer_again(recognizer: Recognizer) -> None:
    sound = np.concatenate([silence(0.3), speak("да")])
    buffer = np.zeros(1600, np.float32)
    stream = recognizer.stream()
    for chunk in chunked(np.pad(sound, (0, -len(sound) % 1600)), 0.1):
        buffer[:] = chunk
        stream.feed(buffer)
        buffer[:] = 1
    assert [final.text for final in finals(stream.close())] == ["да"]


# --- The metrics ------------------------------------------------------------------------------------------------------


def word(text: str) -> tuple[Word, ...]:
    return tuple(Word(part, 0.0, 0.0, 1.0) for part in text.split())


def partial(text: str, stable: str = "") -> Partial:
    return Partial(text, stable, word(text), 0.0)


def final(text: str) -> Final:
    return Final(text, word(text), 0.0, 0.0, 0.0, None)


@pytest.mark.parametrize(
    ("events", "unstable", "words", "stable", "revised"),
    [
        ([], 0, 0, 0, 0),
        ([final("а б")], 0, 2, 0, 0),
        ([partial("а"), partial("а б"), final("а б в")], 0, 3, 0, 0),
        # а·б в → а·г: two; → а г д: none; → а·г е: one
        ([partial("а б в"), partial("а г"), partial("а г д"), final("а г е")], 3, 3, 0, 0),
        ([partial("а б"), partial("а"), final("а б")], 1, 2, 0, 0),  # taken back
        ([partial("а б в"), final("а г в")], 2, 3, 0, 0),  # what stands behind a change has changed its place
        ([partial("а б"), final("")], 2, 0, 0, 0),
        ([partial("а б", "а"), partial("а б в", "а б"), final("а б в")], 0, 3, 2, 0),
        ([partial("а б", "а б"), final("а в г")], 1, 3, 2, 1),
        ([partial("а б", "а б"), final("в а б г")], 2, 4, 2, 1),  # one came in before; both are still there
        ([partial("а б", "а б"), final("")], 2, 0, 2, 2),
        ([partial("а", "а"), final("а"), partial("б", "б"), final("в")], 1, 2, 2, 1),  # two utterances
    ],
)
def test_words_that_change_by_hand(events: list[Event], unstable: int, words: int, stable: int, revised: int) -> None:
    evaluation = StreamingEvaluation(0.1)
    _add_stability(evaluation, events)
    found = (evaluation.unstable_words, evaluation.final_words, evaluation.stable_words, evaluation.revised_words)
    assert found == (unstable, words, stable, revised)


@pytest.mark.parametrize("work_s", [0.0, 0.05, 3.0])
@pytest.mark.parametrize("size_s", [0.02, 0.32, 1.0])
def test_the_clock(recognizer: Recognizer, size_s: float, work_s: float) -> None:
    """Every call takes `work_s` by a timer that is ours; with 3 s it falls behind and hears all that has come."""
    waveform = np.concatenate([silence(0.5), speak("включи свет"), silence(0.2)])
    ticks = iter(range(10**6))

    def timer() -> float:
        tick = next(ticks)  # two calls for each piece of work
        return tick // 2 * work_s + (tick % 2) * work_s

    offline = recognizer.transcribe(waveform)
    evaluation = StreamingEvaluation(size_s)
    play(recognizer, waveform, "Включи свет!", offline, evaluation, timer=timer)
    assert (evaluation.words.errors, evaluation.words.reference_length) == (0, 2)
    assert (evaluation.num_utterances, evaluation.same_as_offline, evaluation.split) == (1, 1, 0)
    assert (evaluation.first_word_missed, evaluation.endpoint_missed) == (0, 0)
    duration_s = len(waveform) / SAMPLE_RATE
    assert evaluation.audio_s == duration_s
    # A chunk's length, 0.2 s between partial results, the letter's tail; then what computing takes.
    [first_s] = evaluation.first_word_s
    [text_s] = evaluation.first_partial_s
    assert text_s <= first_s
    [end_s] = evaluation.endpoint_s
    if work_s <= size_s:
        assert -0.12 <= first_s <= size_s + 0.25 + work_s  # the network sees a letter before it is over
        assert 0.8 <= end_s <= 0.8 + 0.09 + size_s + work_s
        assert evaluation.work_s == pytest.approx(work_s * (math.ceil(duration_s / size_s) + 1))
    else:
        # It hears the first chunk until size + work, then all there is: twice, if that is all, or three times.
        assert evaluation.work_s <= 3 * work_s + work_s * (duration_s / max(work_s, size_s) + 1)
        assert end_s >= 0.8 + work_s


def test_a_first_word_offline_does_not_end_alike_is_missed(recognizer: Recognizer) -> None:
    waveform = np.concatenate([silence(0.5), speak("да")])
    offline = dataclasses.replace(recognizer.transcribe(waveform), words=word("нет"), text="нет")
    evaluation = StreamingEvaluation(0.1)
    play(recognizer, waveform, "нет", offline, evaluation)
    assert (evaluation.first_word_missed, evaluation.first_word_s, evaluation.same_as_offline) == (1, [], 0)
    assert evaluation.words.errors == 1
    assert len(evaluation.first_partial_s) == 1


def test_a_pause_is_made_of_the_quietest_part() -> None:
    waveform = np.concatenate([speak("да"), noise(0.8), speak("да")])
    pause = pause_like(waveform, 10_000)
    assert len(pause) == 10_000
    assert pause.std() == pytest.approx(1e-3, rel=0.1)
    assert np.array_equal(pause[3200:6400], pause[:3200][::-1])
    assert np.array_equal(pause_like(silence(0.0001), 5), np.zeros(5))


def test_utterances_of_a_manifest(recognizer: Recognizer, tmp_path: Path) -> None:
    rows = []
    for number, text in enumerate(SAID[:3]):
        sound = in_noise(np.concatenate([silence(0.4), speak(text), silence(0.3)]))
        soundfile.write(tmp_path / f"{number}.wav", sound, SAMPLE_RATE, "FLOAT")
        rows.append({"audio_filepath": f"{number}.wav", "text": text, "duration": len(sound) / SAMPLE_RATE})
    write_manifest(tmp_path / "manifest.jsonl", rows)
    utterances = read_manifest(tmp_path / "manifest.jsonl")
    evaluations = evaluate_streaming(recognizer, utterances, (0.1, 1.0))
    assert [evaluation.chunk_s for evaluation in evaluations] == [0.1, 1.0]
    for evaluation in evaluations:
        found = evaluation.as_json()
        assert (found["wer"], found["offline_wer"], found["same_as_offline_share"]) == (0, 0, 1)
        assert found["first_partial_p50_s"] <= found["first_word_p50_s"] <= found["first_word_p95_s"]
        assert 0.8 <= found["endpoint_p50_s"] <= found["endpoint_p95_s"]
        assert 0 < found["network_s_per_s"] <= found["work_s_per_s"]
    assert evaluations[0].encoded_s > evaluations[1].encoded_s > evaluations[0].audio_s
    table = streaming_table(evaluations)
    assert table.row_count == 2
    assert list(table.columns[3].cells) == ["100", "100"]

    (tmp_path / "1.wav").write_text("не звук", encoding="utf-8")
    with pytest.raises(AudioError, match=r"manifest\.jsonl:2: .*1\.wav"):
        evaluate_streaming(recognizer, utterances, (1.0,))
    for size_s in (0.0, -1.0, math.nan, 1e-6):
        with pytest.raises(ConfigError, match="chunks of"):
            evaluate_streaming(recognizer, utterances, (0.1, size_s))


def test_no_utterances(recognizer: Recognizer) -> None:
    [evaluation] = evaluate_streaming(recognizer, [], (0.1,))
    assert (evaluation.as_json()["first_word_p50_s"], evaluation.as_json()["work_s_per_s"]) == (None, None)
    assert list(streaming_table([evaluation]).columns[4].cells) == ["–/–"]


def test_the_benchmark(
    recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import streams

    sound = in_noise(np.concatenate([silence(0.4), speak("да нет"), silence(0.4)]))
    soundfile.write(tmp_path / "a.wav", sound, SAMPLE_RATE, "FLOAT")
    row = {"audio_filepath": "a.wav", "text": "да нет", "duration": len(sound) / SAMPLE_RATE}
    write_manifest(tmp_path / "manifest.jsonl", [row])
    monkeypatch.setattr(streams, "load", lambda *_: recognizer)
    arguments = ["--model", "m", "--manifest", str(tmp_path / "manifest.jsonl"), "--streams", "3", "--minutes", "0.4"]
    monkeypatch.setattr(sys, "argv", ["streams.py", *arguments, "--json", str(tmp_path / "figures.json")])
    streams.main()
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert all(name in capsys.readouterr().out for name in [*figures][:1])
    assert (figures["streams"], figures["minutes"]) == (3, pytest.approx(0.4))
    # An utterance of 1.6 s with a pause of 0.5 to 3 s: two words in 2.1 to 4.6 s. Pauses below 0.8 s join some.
    assert 3 * 24 / 4.6 * 2 * 0.8 < figures["words"] < 3 * 24 / 2.1 * 2
    assert figures["finals"] <= figures["words"] / 2
    assert 0 < figures["partial_p50_s"] <= figures["partial_p95_s"]
    assert 0 < figures["final_p50_s"] <= figures["final_p95_s"]
    assert figures["times_real_time"] > 0
    assert figures["rss_mb_end"] - figures["rss_mb_start"] < 30
