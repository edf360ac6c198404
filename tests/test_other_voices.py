"""Other voices of `benchmarks/other_voices.py`: what is moved and by how much, who speaks, and that it is heard."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import read_manifest, write_manifest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from other_voices import (
    MEN_FORMANTS,
    MEN_HZ,
    WOMEN_FORMANTS,
    WOMEN_HZ,
    Voice,
    drawn_voice,
    jobs,
    made,
    moved,
    of_pitch,
    said_by,
)

WOMAN = Voice(is_woman=True, pitch_hz=220.0, formants=1.2, melody=1.0, tempo=0.9, breath=1.0)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.26])
def test_a_formant_moves_by_its_factor(factor: float) -> None:
    bins = np.arange(513)
    rows = np.exp(-0.5 * ((bins - 200) / 20) ** 2)[None].repeat(3, 0)
    there = moved(rows, factor)
    assert there.shape == rows.shape
    assert there.flags.c_contiguous
    assert np.abs(there.argmax(1) - 200 * factor).max() <= 0.5
    assert there.max() == pytest.approx(1, abs=2e-3)  # between two bins a straight line


def test_above_the_last_bin_it_is_repeated() -> None:
    rows = np.arange(9.0)[None]
    assert moved(rows, 1.0).tolist() == rows.tolist()
    assert moved(rows, 0.5).tolist() == [[0, 2, 4, 6, 8, 8, 8, 8, 8]]
    assert moved(rows, 2.0).tolist() == [[0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]]


def test_pitch_gets_the_voices_median_and_melody() -> None:
    octaves = np.linspace(-0.5, 0.5, 41)
    pitch_hz = np.concatenate([[0.0, 0.0], 120 * 2**octaves, [0.0]])
    flat = Voice(True, 200.0, 1.0, melody=0.5, tempo=1.0, breath=1.0)
    there = of_pitch(pitch_hz, flat)
    assert (there == 0).tolist() == (pitch_hz == 0).tolist()
    np.testing.assert_allclose(np.log2(there[2:-1] / 200), octaves / 2, atol=1e-12)
    few = np.zeros(100)
    few[:19] = 120
    assert of_pitch(few, flat) is few
    wild = of_pitch(np.concatenate([np.full(50, 100.0), np.full(49, 700.0)]), Voice(True, 260.0, 1.0, 1.4, 1.0, 1.0))
    assert wild.max() == 500


def test_women_and_men_are_drawn_within_their_ranges() -> None:
    voices = [drawn_voice(random.Random(seed), women=0.75) for seed in range(400)]
    women = [voice for voice in voices if voice.is_woman]
    assert 0.68 < len(women) / len(voices) < 0.82
    for voice in voices:
        pitch, formants = (WOMEN_HZ, WOMEN_FORMANTS) if voice.is_woman else (MEN_HZ, MEN_FORMANTS)
        assert pitch[0] <= voice.pitch_hz <= pitch[1]
        assert formants[0] <= voice.formants <= formants[1]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [
        {"audio_filepath": f"{number}.wav", "text": f"раз {'и' * number}", "duration": 36.0, "speaker": "a"}
        for number in range(1, 101)
    ]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    return tmp_path / "manifest.jsonl"


def test_each_utterance_has_a_voice_of_its_own(manifest: Path) -> None:
    once, twice = jobs([manifest], None, 0.5, 1), jobs([manifest, manifest], None, 0.5, 1)
    assert [job[1].text for job in once] == [f"раз {'и' * number}" for number in range(1, 101)]
    assert len({job[2] for job in twice}) == 200
    assert [job[0] for job in twice] == list(range(200))
    assert jobs([manifest], None, 0.5, 1) == once != jobs([manifest], None, 0.5, 2)


def test_hours_are_of_the_source_and_drawn(manifest: Path) -> None:
    part = jobs([manifest], 0.25, 0.5, 1)
    assert len(part) == 25  # of 36 s each
    assert {job[1].text for job in part} != {job[1].text for job in jobs([manifest], 0.25, 0.5, 2)}
    assert len(jobs([manifest], 5.0, 0.5, 1)) == 100


def vowel(pitch_hz: float, duration_s: float) -> np.ndarray:
    """Pulses through three resonances."""
    samples = np.zeros(round(duration_s * SAMPLE_RATE))
    samples[:: round(SAMPLE_RATE / pitch_hz)] = 1
    for centre_hz in (600, 1200, 2500):
        radius, angle = np.exp(-np.pi * 100 / SAMPLE_RATE), 2 * np.pi * centre_hz / SAMPLE_RATE
        ring = radius ** np.arange(800) * np.sin(angle * (np.arange(800) + 1))
        samples = np.convolve(samples, ring)[: len(samples)]
    return (0.3 * samples / np.abs(samples).max()).astype(np.float32)


def loudest_period_hz(samples: np.ndarray) -> float:
    middle = samples[len(samples) // 3 :][:4096].astype(np.float64)
    correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    shortest, longest = SAMPLE_RATE // 400, SAMPLE_RATE // 70
    return SAMPLE_RATE / (shortest + correlation[shortest:longest].argmax())


def test_a_mans_vowel_in_a_womans_voice(tmp_path: Path) -> None:
    pytest.importorskip("pyworld", exc_type=ImportError)  # of the benchmark alone
    source = vowel(110, 1.5)
    assert loudest_period_hz(source) == pytest.approx(110, rel=0.02)
    woman = said_by(source, WOMAN)
    assert loudest_period_hz(woman) == pytest.approx(220, rel=0.03)
    assert len(woman) / len(source) == pytest.approx(1 / 0.9, rel=0.02)
    assert np.sqrt(np.mean(woman**2)) == pytest.approx(np.sqrt(np.mean(source**2)), rel=0.05)
    assert not said_by(np.zeros(8000, np.float32), WOMAN).any()
    soundfile.write(tmp_path / "1.wav", source, SAMPLE_RATE)
    write_manifest(tmp_path / "manifest.jsonl", [{"audio_filepath": "1.wav", "text": "а", "duration": 1.5}])
    [utterance] = read_manifest(tmp_path / "manifest.jsonl")
    row = made((7, utterance, WOMAN), tmp_path / "there")
    sound, rate = soundfile.read(tmp_path / "there" / row["audio_filepath"])
    assert (rate, len(sound), row["text"], row["speaker"]) == (SAMPLE_RATE, len(woman), "а", "woman")
