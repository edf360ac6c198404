"""The recogniser on recordings of any length, with an engine that reads tones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from kvarts.cutting import LONGEST_PIECE_S, Piece, pieces
from kvarts.errors import AudioError
from kvarts.frames import HOP_LENGTH, SAMPLE_RATE
from kvarts.recogniser import Recognizer, Result, Timings, Word
from kvarts.torch_engine import Torch
from tone_reader import ToneReader
from tones import ToneEngine, speak

FRAME_S = 0.04
HEARD_S = 0.015  # a tone swells so long before it is loud enough
TESTS = Path(__file__).parent

Waveform = NDArray[np.float32]


@pytest.fixture
def engine() -> ToneEngine:
    return ToneEngine()


def silence(duration_s: float) -> Waveform:
    return np.zeros(round(duration_s * SAMPLE_RATE), np.float32)


def sentences(count: int, pause_s: float) -> tuple[Waveform, list[str], list[float]]:
    """Numbered sentences with pauses behind them, off the frames' grid; their words and where their tones begin."""
    digits = ["ноль", "один", "два", "три", "четыре", "пять", "шесть", "семь", "восемь", "девять"]
    parts: list[Waveform] = []
    words: list[str] = []
    starts_s: list[float] = []
    samples = 0
    for number in range(count):
        spoken = ["номер", *(digits[int(digit)] for digit in str(number))]
        letters = 0
        for word in spoken:
            starts_s.append(samples / SAMPLE_RATE + FRAME_S + 0.12 * letters)
            letters += len(word) + 1
        words += spoken
        parts += [speak(" ".join(spoken) + " "), silence(pause_s + 0.0013 * number)]
        samples += len(parts[-2]) + len(parts[-1])
    return np.concatenate(parts), words, starts_s


def same(one: Result, other: Result) -> bool:
    """Whether all is equal but the seconds that it took."""
    none = Timings(0, 0, 0, 0)
    return replace(one, timings=none) == replace(other, timings=none)


def check_words(found: tuple[Word, ...], words: list[str], starts_s: list[float]) -> None:
    assert [word.text for word in found] == words
    for word, start_s in zip(found, starts_s, strict=True):
        assert word.start_s == pytest.approx(start_s + HEARD_S, abs=FRAME_S)
        # The last tone ends 40 ms before its slot of 120 ms does.
        assert word.end_s == pytest.approx(start_s + 0.12 * len(word.text) - 0.04, abs=FRAME_S)
        assert 0 < word.confidence <= 1


# --- Any length


@pytest.mark.parametrize("pause_s", [0.3, 2.5], ids=["cut", "cut and left out"])
def test_words_of_a_long_waveform_and_when_they_are_said(engine: ToneEngine, pause_s: float) -> None:
    waveform, words, starts_s = sentences(60, pause_s)
    result = Recognizer(engine).transcribe(waveform)
    check_words(result.words, words, starts_s)
    assert result.text == " ".join(words)
    assert result.duration_s == len(waveform) / SAMPLE_RATE
    assert sum(count for count, _ in engine.batch_shapes) > 3


def test_a_file_says_what_its_waveform_does(engine: ToneEngine, tmp_path: Path) -> None:
    waveform, words, starts_s = sentences(40, 1.0)
    soundfile.write(tmp_path / "a.wav", waveform, SAMPLE_RATE, subtype="FLOAT")
    recognizer = Recognizer(engine)
    result = recognizer.transcribe(tmp_path / "a.wav")
    assert same(result, recognizer.transcribe(waveform))
    # At another rate samples differ by what resampling does, and times by a frame at most.
    doubled = np.repeat(waveform, 2)
    check_words(recognizer.transcribe(doubled, sample_rate=2 * SAMPLE_RATE).words, words, starts_s)


def test_up_to_30_s_go_through_the_network_as_they_are(engine: ToneEngine) -> None:
    waveform, _, _ = sentences(100, 0.5)
    longest = round(LONGEST_PIECE_S * SAMPLE_RATE)
    Recognizer(engine).transcribe(waveform[:longest])
    assert engine.batch_shapes == [(1, longest // HOP_LENGTH + 1)]


def test_a_batch_gives_what_each_gives_alone_in_batches_of_little_padding(engine: ToneEngine) -> None:
    recognizer = Recognizer(engine)
    waveforms = [sentences(count, 0.4)[0] for count in (1, 40, 2, 3, 1, 80, 5, 2, 10, 1)]
    waveforms.insert(3, silence(0.1))
    waveforms.insert(7, silence(100))
    alone = [recognizer.transcribe(waveform) for waveform in waveforms]
    engine.batch_shapes.clear()
    together = recognizer.transcribe_batch(waveforms)
    assert all(same(one, other) for one, other in zip(together, alone, strict=True))
    assert [result.duration_s for result in together] == [len(waveform) / SAMPLE_RATE for waveform in waveforms]
    for count, frames in engine.batch_shapes:
        assert count * (frames - 1) * HOP_LENGTH <= 120 * SAMPLE_RATE
    assert max(count for count, _ in engine.batch_shapes) > 1
    padded_s = sum(count * frames for count, frames in engine.batch_shapes) * HOP_LENGTH / SAMPLE_RATE
    assert padded_s < 1.5 * sum(result.duration_s for result in together)


def test_an_empty_batch(engine: ToneEngine) -> None:
    assert Recognizer(engine).transcribe_batch([]) == []


def test_pieces_come_back_in_order_before_all_are_read(engine: ToneEngine) -> None:
    waveform, words, starts_s = sentences(400, 0.3)
    assert len(waveform) > 600 * SAMPLE_RATE
    read: list[Piece] = []

    def watched() -> Iterator[Piece]:
        for piece in pieces([waveform]):
            read.append(piece)
            yield piece

    results = Recognizer(engine).transcribe_pieces(watched())
    first = next(results)
    assert sum(len(piece.waveform) for piece in read) < 270 * SAMPLE_RATE
    everything = [first, *results]
    assert [result.start_s for result in everything] == [piece.start / SAMPLE_RATE for piece in read]
    assert [result.end_s for result in everything] == [
        (piece.start + len(piece.waveform)) / SAMPLE_RATE for piece in read
    ]
    check_words(tuple(word for result in everything for word in result.words), words, starts_s)


def test_seconds_are_shared_by_length(engine: ToneEngine) -> None:
    short, long = Recognizer(engine).transcribe_batch([silence(1), silence(1.25)])
    assert len(engine.batch_shapes) == 1  # so the seconds of both are of the same batch
    for part in ("read_s", "features_s", "network_s", "decoding_s"):
        assert getattr(short.timings, part) > 0
        assert getattr(long.timings, part) == pytest.approx(1.25 * getattr(short.timings, part))
    assert short.timings.total_s == pytest.approx(sum(vars(short.timings).values()))


def test_a_long_file_takes_little_memory_and_its_last_words_have_their_times(tmp_path: Path) -> None:
    minute, words, starts_s = sentences(12, 0.7)
    minute = np.concatenate([minute, silence(60.013 - len(minute) / SAMPLE_RATE)])
    with soundfile.SoundFile(tmp_path / "long.flac", "w", SAMPLE_RATE, 1, "PCM_16", compression_level=0) as file:
        for _ in range(120):
            file.write(minute)
    soundfile.write(tmp_path / "short.flac", np.tile(minute, 4), SAMPLE_RATE)
    program = """
import json, resource, sys
from kvarts.recogniser import Recognizer
from tones import ToneEngine

recognizer = Recognizer(ToneEngine())
recognizer.transcribe(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = recognizer.transcribe(sys.argv[2])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert "torch" not in sys.modules
print(json.dumps({"grown": grown, "duration_s": result.duration_s, "count": len(result.words),
                  "last": [[word.text, word.start_s] for word in result.words[-20:]]}))
"""
    files = [str(tmp_path / name) for name in ("short.flac", "long.flac")]
    output = subprocess.run(
        [sys.executable, "-c", program, *files], cwd=TESTS, check=True, stdout=subprocess.PIPE, timeout=300
    )
    found = json.loads(output.stdout)
    assert found["duration_s"] == 120 * len(minute) / SAMPLE_RATE
    assert found["count"] == 120 * len(words)
    assert [text for text, _ in found["last"]] == words[-20:]
    for (_, start_s), expected_s in zip(found["last"], starts_s[-20:], strict=True):
        assert start_s == pytest.approx(119 * len(minute) / SAMPLE_RATE + expected_s + HEARD_S, abs=FRAME_S)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    assert found["grown"] * unit < 30e6  # the recording has 460 MB


def test_threads_do_not_mix_their_results_up() -> None:
    recognizer = Recognizer(Torch(ToneReader().eval()))
    waveforms = [sentences(count, 0.3)[0] for count in (1, 2, 3, 5, 8, 13, 21, 34)]
    alone = [recognizer.transcribe(waveform) for waveform in waveforms]
    assert len({result.text for result in alone}) == 8
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            results = list(pool.map(recognizer.transcribe, waveforms))
            assert all(same(one, other) for one, other in zip(results, alone, strict=True))


# --- Bad input


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), "features need at least one sample and the waveform has none"),
        (np.zeros(1, np.float32), "0.0625 ms of sound, less than one analysis window of 25 ms; record more of it"),
        (np.zeros(399, np.float32), "24.9 ms of sound, less than one analysis window of 25 ms; record more of it"),
        (np.full(1000, np.nan, np.float32), "the waveform has samples that are not numbers (NaN or infinity)"),
        (np.append(np.zeros(99_999, np.float32), np.inf), "the waveform has samples that are not numbers"),
        (np.zeros(1000, np.int16), "features need floats in [-1, 1], not int16: divide by full scale first"),
        (np.zeros((1000, 2), np.float32), "one channel, shape (samples,), this one is (1000, 2): choose a channel"),
        (np.zeros((1, 1000), np.float32), "one channel, shape (samples,), this one is (1, 1000): choose a channel"),
    ],
    ids=["empty", "one sample", "399 samples", "NaN", "infinity at the end", "integers", "stereo", "channel first"],
)
def test_what_is_no_waveform_is_told_in_words(engine: ToneEngine, waveform: Waveform, message: str) -> None:
    recognizer = Recognizer(engine)
    with pytest.raises(AudioError) as caught:
        recognizer.transcribe(waveform)
    assert message in str(caught.value)
    assert engine.batch_shapes == []
    with pytest.raises(AudioError) as caught:
        recognizer.transcribe_batch([silence(1), waveform])
    assert message in str(caught.value)


def test_too_short_a_file_is_named_and_too_short_a_piece_is_refused(engine: ToneEngine, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", silence(0.02), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"a\.wav: 20 ms of sound, less than one analysis window"):
        Recognizer(engine).transcribe(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"^20 ms of sound, less than one analysis window"):
        list(Recognizer(engine).transcribe_pieces([Piece(0, silence(0.02))]))


@pytest.mark.parametrize("duration_s", [0.025, 1, 30, 31, 100])
def test_silence_has_no_words(engine: ToneEngine, duration_s: float) -> None:
    result = Recognizer(engine).transcribe(silence(duration_s))
    assert (result.text, result.words, result.duration_s) == ("", (), duration_s)


def test_sources_are_recognised_in_order_with_what_stands_between_them(engine: ToneEngine) -> None:
    def source(number: int) -> Iterator[tuple[str, Piece | None]]:
        time.sleep(0.02 * (number % 3))
        for index in range(number):
            yield f"{number}.{index}", Piece(index * 16000, silence(1))
        yield f"end of {number}", None

    found = list(Recognizer(engine, threads=3).transcribe_sources(map(source, range(6))))
    expected = [item for number in range(6) for item in source(number)]
    assert [tag for tag, _ in found] == [tag for tag, _ in expected]
    for (_, result), (_, piece) in zip(found, expected, strict=True):
        assert (result is None) == (piece is None)
        assert result is None or result.start_s == piece.start / SAMPLE_RATE


def test_no_result_is_lost_by_a_source_that_fails_later(engine: ToneEngine) -> None:
    def source() -> Iterator[tuple[int, Piece | None]]:
        yield 1, Piece(0, silence(1))
        raise AudioError("broken")

    results = Recognizer(engine).transcribe_sources([source()])
    tag, result = next(results)
    assert result is not None
    assert (tag, result.end_s) == (1, 1.0)
    with pytest.raises(AudioError, match="broken"):
        next(results)


def test_which_files_go_through_the_network_together_does_not_depend_on_how_fast_they_are_read(
    engine: ToneEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kvarts.recogniser as module

    read = module.audio_blocks
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], silence(1 + number % 4), SAMPLE_RATE)
    recognizer = Recognizer(engine, threads=2)
    recognizer.transcribe_batch(paths)
    shapes = list(engine.batch_shapes)
    engine.batch_shapes.clear()

    def slow(path: Path) -> Iterator[Waveform]:
        time.sleep(0.02 if path.stem in "036" else 0)
        return read(path)

    monkeypatch.setattr(module, "audio_blocks", slow)
    recognizer.transcribe_batch(paths)
    assert engine.batch_shapes == shapes
