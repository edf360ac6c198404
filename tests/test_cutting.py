"""Pieces of recordings: where they are cut, what is left out, and that no speech ever is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvarts.cutting import LONGEST_PIECE_S, Piece, pieces
from kvarts.frames import SAMPLE_RATE, WIN_LENGTH

FRAME = 640  # samples of an encoded frame
MARGIN = 0.32  # seconds kept beside speech
LONGEST = round(LONGEST_PIECE_S * SAMPLE_RATE)

Waveform = NDArray[np.float32]


def noise(duration_s: float, level: float = 1.0, seed: int = 0) -> Waveform:
    samples = np.random.default_rng(seed).standard_normal(round(duration_s * SAMPLE_RATE), np.float32)
    return np.float32(level) * samples


def syllables(duration_s: float, level: float = 0.1, seed: int = 0) -> Waveform:
    """Noise that swells and fades five times a second, down to a hundredth, and is loud at both ends."""
    sound = noise(duration_s, level, seed)
    phase = np.arange(len(sound)) / SAMPLE_RATE * 5
    return (sound * (0.01 + np.cos(np.pi * phase) ** 2)).astype(np.float32)


def silence(duration_s: float) -> Waveform:
    return np.zeros(round(duration_s * SAMPLE_RATE), np.float32)


def cut(*parts: Waveform) -> list[Piece]:
    """The pieces of the parts together, which must be as all pieces are."""
    whole = np.concatenate(parts)
    found = list(pieces([whole]))
    for piece in found:
        assert piece.start % FRAME == 0
        assert min(len(whole), WIN_LENGTH) <= len(piece.waveform) <= LONGEST
        np.testing.assert_array_equal(piece.waveform, whole[piece.start : piece.start + len(piece.waveform)])
    for before, after in pairwise(found):
        assert before.start + len(before.waveform) <= after.start
    return found


def seconds(found: list[Piece]) -> list[tuple[float, float]]:
    return [(piece.start / SAMPLE_RATE, (piece.start + len(piece.waveform)) / SAMPLE_RATE) for piece in found]


def is_covered(found: list[Piece], start: int, stop: int) -> bool:
    covered = np.zeros(stop, np.bool_)
    for piece in found:
        covered[piece.start : piece.start + len(piece.waveform)] = True
    return bool(covered[start:].all())


def in_blocks(whole: Waveform, cuts: list[int]) -> Iterator[Waveform]:
    for start, stop in pairwise([0, *sorted(cuts), len(whole)]):
        yield whole[start:stop]


# --- What becomes one piece


@pytest.mark.parametrize("samples", [1, 399, 400, 16_000, LONGEST - 1, LONGEST])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_up_to_30_s_are_one_piece_as_they_are(samples: int, level: float) -> None:
    whole = noise(samples / SAMPLE_RATE, level) + np.float32(0.2)
    [piece] = pieces(in_blocks(whole, [samples // 3, samples // 2]))
    assert piece.start == 0
    np.testing.assert_array_equal(piece.waveform, whole)


def test_nothing_has_no_pieces() -> None:
    assert list(pieces([])) == []
    assert list(pieces([silence(0), silence(0)])) == []


# --- Any recording


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Waveform, list[tuple[int, int]]]:
    """Speech of different speakers and pauses of different kinds, up to some minutes; and the samples of speech.

    The speakers' levels lie 40 dB apart at most, the noise 34 dB under the weakest.
    """
    parts = []
    speech = []
    place = 0
    floor = draw(st.sampled_from([0.0, 1e-5, 2e-5]))
    for seed in range(draw(st.integers(3, 8))):
        voiced_s, silent_s = draw(st.floats(0.2, 40)), draw(st.sampled_from([0.0, 0.1, 1.9, 2.1, 5.0, 40.0]))
        part = syllables(voiced_s, draw(st.sampled_from([0.001, 0.01, 0.1])), seed)
        parts += [part, silence(silent_s)]
        speech.append((place, place + len(part)))
        place += len(part) + len(parts[-1])
    whole = np.concatenate(parts)
    return whole + noise(len(whole) / SAMPLE_RATE, floor, 99), speech


@settings(max_examples=40, deadline=None)
@given(recording=recordings(), offset=st.sampled_from([0.0, 0.1, -0.3]))
def test_no_speech_is_lost(recording: tuple[Waveform, list[tuple[int, int]]], offset: float) -> None:
    whole, speech = recording
    found = cut(whole + np.float32(offset))
    for start, stop in speech:
        assert is_covered(found, start, stop)


@pytest.mark.parametrize("seed", range(5))
def test_a_quiet_speaker_who_never_pauses_is_no_noise(seed: int) -> None:
    """40 dB below the loudest, as many syllables a second as blocks of 0.2 s: of the first a stretch was lost."""
    parts = [syllables(duration_s, 0.001, 7 * seed + part) for part, duration_s in enumerate((1, 1, 1, 1.125, 29))]
    quiet = np.concatenate(parts)
    assert is_covered(cut(quiet, syllables(2, 0.1, seed)), 0, len(quiet))


@settings(max_examples=40, deadline=None)
@given(recording=recordings(), data=st.data())
def test_pieces_do_not_depend_on_blocks(recording: tuple[Waveform, list[tuple[int, int]]], data: st.DataObject) -> None:
    whole, _ = recording
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=20))
    if data.draw(st.booleans()):
        cuts = [*range(0, len(whole), data.draw(st.integers(500, 5000)))]
    split = list(pieces(in_blocks(whole, cuts)))
    together = list(pieces([whole]))
    assert [piece.start for piece in split] == [piece.start for piece in together]
    for one, other in zip(split, together, strict=True):
        np.testing.assert_array_equal(one.waveform, other.waveform)


# --- Where pieces are cut


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("floor", [0.0, 1e-4, 0.1 * 0.6 * 10 ** (-10 / 20)], ids=["clean", "quiet", "10 dB"])
def test_the_cut_is_in_the_middle_of_the_longest_pause(floor: float, offset: float) -> None:
    parts = [syllables(17, seed=1), silence(0.15), syllables(5, seed=2), silence(0.6), syllables(20, seed=3)]
    whole = np.concatenate(parts)
    found = cut(whole + noise(len(whole) / SAMPLE_RATE, floor, 9) + np.float32(offset))
    assert len(found) == 2
    assert found[1].start / SAMPLE_RATE == pytest.approx(17 + 0.15 + 5 + 0.3, abs=0.08)
    assert found[0].start + len(found[0].waveform) == found[1].start


def test_without_a_pause_the_cut_is_at_the_quietest_place() -> None:
    whole = noise(40, 0.1)
    dip = round(23.4 * SAMPLE_RATE)
    whole[dip : dip + 3 * FRAME] *= 0.5
    found = cut(whole)
    assert dip <= found[1].start <= dip + 3 * FRAME


def test_a_pause_before_15_s_is_no_reason_to_cut() -> None:
    found = cut(syllables(10), silence(1.5), syllables(50, seed=1))
    assert 15 <= found[1].start / SAMPLE_RATE <= 30


@pytest.mark.parametrize("rest", [1, 240, 399, 400, 640, 1039, 1040])
def test_no_piece_is_shorter_than_a_window(rest: int) -> None:
    # A square wave of 400 Hz, in which all 10 ms are equally loud: the longest piece is as good as any.
    steady = np.where(np.arange(LONGEST + rest) % 40 < 20, 0.1, -0.1).astype(np.float32)
    tempting = steady.copy()
    tempting[LONGEST - 400 :] = 0
    for whole in (steady, tempting):
        assert sum(len(piece.waveform) for piece in cut(whole)) == LONGEST + rest


# --- What is left out


@pytest.mark.parametrize("floor", [0.0, 1 / 32_768, 0.002], ids=["zeros", "last bit", "noise"])
def test_silence_is_left_out_up_to_its_margins(floor: float) -> None:
    parts = [silence(7), syllables(20.2, seed=1), silence(5), syllables(20, seed=2), silence(3)]
    whole = np.concatenate(parts)
    rough = noise(len(whole) / SAMPLE_RATE, 1, 9)
    if floor == 1 / 32_768:
        rough = np.round(0.7 * rough).clip(-1, 1)
    found = seconds(cut(whole + np.float32(floor) * rough))
    expected = [(7 - MARGIN, 27.2 + MARGIN), (32.2 - MARGIN, 52.2 + MARGIN)]
    assert len(found) == 2
    np.testing.assert_allclose(found, expected, atol=0.08)


def test_silence_of_less_than_2_s_is_kept() -> None:
    found = cut(silence(1.8), syllables(20.2), silence(1.8), syllables(20, seed=1), silence(1.8))
    assert sum(len(piece.waveform) for piece in found) == round(45.6 * SAMPLE_RATE)


@pytest.mark.parametrize("voiced_s", [29.6, 29.7, 29.8, 29.9, 30.0, 30.1])
def test_silence_that_begins_where_the_longest_piece_ends(voiced_s: float) -> None:
    found = cut(syllables(voiced_s, seed=1), silence(10), syllables(5, seed=2))
    voiced = round(voiced_s * SAMPLE_RATE)
    assert is_covered(found, 0, voiced + round(0.3 * SAMPLE_RATE))
    assert sum(len(piece.waveform) for piece in found) < voiced + round((5 + 3 * MARGIN + 0.1) * SAMPLE_RATE)


@pytest.mark.parametrize("decibels", [-20, -40, -46])
def test_a_quiet_speaker_after_a_loud_one_is_kept(decibels: int) -> None:
    loud, quiet = syllables(60, 0.3, 1), syllables(60, 0.3 * 10 ** (decibels / 20), 2)
    whole = np.concatenate([loud, silence(4), quiet, silence(4), quiet])
    whole += noise(len(whole) / SAMPLE_RATE, 0.3 * 10 ** (-60 / 20), 3)
    found = cut(whole)
    for start_s in (0, 64, 128):
        assert is_covered(found, start_s * SAMPLE_RATE, (start_s + 60) * SAMPLE_RATE)
    assert sum(len(piece.waveform) for piece in found) < 184 * SAMPLE_RATE  # but the pauses are not


@pytest.mark.parametrize("silent_s", [40, 120, 300, 320.1])
def test_a_single_word_in_long_silence_is_kept_with_its_margins(silent_s: float) -> None:
    found = cut(silence(silent_s), syllables(0.3), silence(silent_s))
    assert len(found) == 1
    np.testing.assert_allclose(seconds(found), [(silent_s - MARGIN, silent_s + 0.3 + MARGIN)], atol=0.08)


@pytest.mark.parametrize("level", [0.001, 0.3])
def test_steady_noise_alone_may_be_speech_for_all_that_is_known(level: float) -> None:
    found = cut(noise(100, level))
    assert sum(len(piece.waveform) for piece in found) == 100 * SAMPLE_RATE


@pytest.mark.parametrize("offset", [0.0, -0.5])
@pytest.mark.parametrize("bits", [0, 1])
def test_silence_alone_has_no_pieces(offset: float, bits: int) -> None:
    last_bit = np.round(noise(100, 0.7)).clip(-bits, bits) / np.float32(32_768)
    assert cut(last_bit + np.float32(offset)) == []


def test_memory_does_not_grow_with_the_recording() -> None:
    def blocks() -> Iterator[Waveform]:
        for seed in range(60):
            yield syllables(25, seed=seed % 5)
            yield silence(5)

    tracemalloc.start()
    try:
        samples = sum(len(piece.waveform) for piece in pieces(blocks()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert samples > 60 * 25 * SAMPLE_RATE
    assert peak < 20e6  # the recording has 115 MB
