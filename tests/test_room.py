"""``kvarts room``: responses that are known, played through claps and sweeps, come back; and what can be wrong."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from kvarts import cli
from kvarts.audio import read_audio
from kvarts.errors import AudioError, ConfigError
from kvarts.room import measure_recording, noise_kind
from kvarts.room_response import (
    BANDS_HZ,
    clarity_db,
    compress_sweep,
    decay_curve_db,
    drr_db,
    exponential_sweep,
    fit_decay,
    in_bands,
    octaves,
    schroeder_rt60,
    whitening_filter,
)
from kvarts.rooms import make_training_noise, read_noises, read_responses

RATE = 16_000
Samples = NDArray[np.float64]


def _benchmark() -> ModuleType:
    """benchmarks/room.py, whose name other modules have too."""
    place = Path(__file__).resolve().parents[1] / "benchmarks" / "room.py"
    spec = importlib.util.spec_from_file_location("room_benchmark", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["room_benchmark"] = module
    spec.loader.exec_module(module)
    return module


benchmark = _benchmark()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at anything but the estimate."""
    monkeypatch.setattr("kvarts.room_response._STARTS", (11,))
    monkeypatch.setattr("kvarts.room_response._ROUNDS", (1, 2))


def decaying(rt60_s: float, direct: float, seed: int = 0) -> Samples:
    """The direct sound at sample 40, then noise that decays; (samples,)."""
    seconds = np.arange(round(1.1 * rt60_s * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(seconds)) * 10 ** (-3 * seconds / rt60_s)
    noise[:80] = 0
    noise[80] = direct
    return noise[40:]


def write(path: Path, sound: Samples, rate: int = RATE) -> Path:
    soundfile.write(path, sound, rate, subtype="PCM_24")
    return path


def recording(response: Samples, kind: str = "decay", claps: int = 4, noise_db: float = 40, seed: int = 0) -> Samples:
    room = SimpleNamespace(response=response)
    generator = np.random.default_rng(seed)
    sound: Samples = benchmark.make_recording(
        room, [benchmark.make_clap(kind, generator) for _ in range(claps)], noise_db, seed
    )
    return sound


def measure(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> SimpleNamespace:
    output = path.with_suffix("")
    code = cli.main(["room", "measure", str(path), "-o", str(output), *arguments])
    said = capsys.readouterr()
    rooms = output / "rooms.jsonl"
    rows = [json.loads(line) for line in rooms.read_text().splitlines()] if rooms.exists() else []
    return SimpleNamespace(code=code, out=said.out, err=said.err, rows=rows, folder=output)


# --------------------------------------------------------------------------------------------- what a response says


def test_ratios_by_hand() -> None:
    response = np.zeros(2000)
    response[100] = 2.0  # energy 4
    response[140] = 1.0  # 2.5 ms later: still direct
    response[141] = 1.0  # reverberant, and early
    response[100 + 800] = 0.5  # 50 ms: late
    assert drr_db(response, 100) == pytest.approx(10 * math.log10(5 / 1.25))
    assert clarity_db(response, 100) == pytest.approx(10 * math.log10(6 / 0.25))
    curve = decay_curve_db(response)
    assert curve[0] == 0
    assert curve[142] == pytest.approx(10 * math.log10(0.25 / 6.25))


@pytest.mark.parametrize("lowest_db", [-25, -35])
def test_reverberation_time_of_an_exact_decay(lowest_db: float) -> None:
    decay = 10 ** (-3 * np.arange(RATE) / RATE / 0.4)
    assert schroeder_rt60(decay, lowest_db=lowest_db) == pytest.approx(0.4, rel=1e-3)


def test_octaves_keep_energy_and_places() -> None:
    assert np.allclose((octaves(4096) ** 2).sum(axis=0), 1)
    seconds = np.arange(RATE) / RATE
    for index, centre_hz in enumerate(BANDS_HZ):
        energy = (in_bands(np.sin(2 * np.pi * centre_hz * seconds)) ** 2).sum(axis=1)
        assert energy[index] > 0.97 * energy.sum()


@pytest.mark.parametrize(("rt60_s", "noise"), [(0.2, 1e-6), (0.8, 1e-3), (0.5, 1e-2)])
def test_a_decay_in_noise_is_fitted(rt60_s: float, noise: float) -> None:
    """A plain regression on 10 log10 of these energies, floor and all, would be far too long."""
    generator = np.random.default_rng(1)
    seconds = np.arange(RATE) / RATE
    energy = (10 ** (-6 * seconds / rt60_s) + noise) * generator.standard_normal(RATE) ** 2
    found_s, level = fit_decay(energy, noise, start=0)
    assert found_s == pytest.approx(rt60_s, rel=0.05)
    assert level == pytest.approx(1, rel=0.15)


def test_whitening_makes_noise_white() -> None:
    noise = benchmark.pink(RATE, np.random.default_rng(0))
    white = np.convolve(noise, whitening_filter(noise), "valid")
    halves = [np.mean(np.abs(np.fft.rfft(part))[100:2000] ** 2) for part in (white[:8000], white[-8000:])]
    power = np.abs(np.fft.rfft(white)) ** 2
    low, high = power[100:1000].mean(), power[-4000:].mean()
    assert low / high == pytest.approx(1, abs=0.25)
    assert halves[0] / halves[1] == pytest.approx(1, abs=0.3)


# ------------------------------------------------------------------------------------------------------ measuring


@pytest.mark.parametrize(("room", "kind", "noise_db"), [(1, "burst", 30), (3, "hand", 40), (8, "double", 35)])
def test_a_known_room_comes_back(room: int, kind: str, noise_db: float, tmp_path: Path) -> None:
    """RT60 within 15 %, and DRR within 15 % of the ratio itself, which is 0.6 dB."""
    known = benchmark.make_room(room)
    found = measure_recording(
        write(tmp_path / "claps.wav", recording(known.response, kind, noise_db=noise_db, seed=room))
    )
    assert len(found.claps) == 4
    assert found.estimate.rt60_s == pytest.approx(known.rt60_s, rel=0.15)
    assert 10 ** ((found.estimate.drr_db - known.drr_db) / 10) == pytest.approx(1, abs=0.15)


def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As written by the command, read back from its own file."""
    played = tmp_path / "sweep.wav"
    assert cli.main(["room", "sweep", "-o", str(played), "--seconds", "4"]) == 0
    assert soundfile.info(played).samplerate == 48_000
    known = benchmark.make_room(1)
    sound = benchmark.make_recording(known, [read_audio(played).astype(np.float64)], 30, 1)
    ended = measure(write(tmp_path / "room.wav", sound), capsys, "--sweep", str(played))
    assert ended.code == 0, ended.err
    assert ended.rows[0]["rt60_s"] == pytest.approx(known.rt60_s, rel=0.15)
    assert 10 ** ((ended.rows[0]["drr_db"] - known.drr_db) / 10) == pytest.approx(1, abs=0.15)


def test_a_compressed_sweep_is_a_pulse_where_it_began() -> None:
    sweep = exponential_sweep(2, RATE)
    sound = np.concatenate([np.zeros(1000), sweep, np.zeros(4000)])
    sound[2000 : 2000 + len(sweep)] += 0.5 * sweep
    pulses = compress_sweep(sound, sweep)
    assert np.argmax(np.abs(pulses)) == 1000
    assert pulses[2000] / pulses[1000] == pytest.approx(0.5, abs=0.02)


def test_the_response_is_the_room_s_and_its_noise_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reflections stand where they were, and the decay goes on where noise covered it, 30 dB down and more."""
    response = decaying(0.4, 6.0)
    response[40 + 300] += 3.0
    response[40 + 500] -= 2.5
    path = write(tmp_path / "room.wav", recording(response, noise_db=30))
    ended = measure(path, capsys, "--distance", "1.5", "--room", "кухня", "--picture", str(tmp_path / "decay.png"))
    assert ended.code == 0, ended.err
    [row] = ended.rows
    assert (row["direct_sample"], row["distance_m"], row["room"]) == (40, 1.5, "кухня")
    assert row["rt60_s"] == pytest.approx(0.4, rel=0.1)
    assert row["drr_db"] == pytest.approx(drr_db(response, 40), abs=0.6)
    found = read_audio(ended.folder / row["audio_filepath"]).astype(np.float64)
    assert soundfile.info(ended.folder / row["audio_filepath"]).subtype == "PCM_24"
    assert np.argmax(np.abs(found)) == 40
    found /= found[40] / 6.0
    assert found[340] - response[340] == pytest.approx(0, abs=0.6)
    assert found[540] - response[540] == pytest.approx(0, abs=0.6)
    late = slice(40 + round(0.3 * RATE), 40 + round(0.36 * RATE))  # 45 dB down
    assert 10 * np.log10(np.mean(found[late] ** 2) / np.mean(response[late] ** 2)) == pytest.approx(0, abs=4)
    assert (tmp_path / "decay.png").read_bytes()[:4] == b"\x89PNG"
    [heard] = read_responses(ended.folder)
    assert (heard.room, heard.lead) == ("кухня", 40)
    [noise] = read_noises(ended.folder)
    recorded = read_audio(path)
    assert len(noise.samples) > 8 * RATE
    assert np.std(noise.samples) == pytest.approx(np.std(recorded[-5 * RATE :]), rel=0.1)
    assert "RT60" in ended.out
    assert "pink" in ended.out
    assert "record a minute" in ended.err


@pytest.mark.usefixtures("quick")
def test_the_same_recording_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "room.wav", recording(decaying(0.3, 5.0), claps=1))
    first = measure(path, capsys)
    sound = (first.folder / "rir/0001.flac").read_bytes()
    assert "one clap only" in first.err
    refused = measure(path, capsys)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert measure(path, capsys, "--overwrite").rows == first.rows
    assert (first.folder / "rir/0001.flac").read_bytes() == sound


@pytest.mark.usefixtures("quick")
def test_other_rates_and_channels(tmp_path: Path) -> None:
    """44.1 kHz, and two channels, of which the quieter comes with its own delay: not mixed in."""
    import soxr

    response = decaying(0.3, 5.0)
    sound = soxr.resample(recording(response), RATE, 44_100)
    both = np.stack([0.3 * np.roll(sound, 40), sound], axis=1)
    found = measure_recording(write(tmp_path / "stereo.wav", both, 44_100))
    assert found.estimate.rt60_s == pytest.approx(0.3, rel=0.1)
    assert found.estimate.drr_db == pytest.approx(drr_db(response, 40), abs=1)
    assert np.std(found.noise) == pytest.approx(np.std(sound[-5 * 44_100 :]), rel=0.1)
    assert any("2 channels" in warning for warning in found.warnings)


# -------------------------------------------------------------------------------------------------- what can be wrong


def _music(sound: Samples) -> Samples:
    seconds = np.arange(len(sound)) / RATE
    notes = np.repeat(np.random.default_rng(0).choice([262, 330, 392, 523], len(sound) // 8000 + 1), 8000)[: len(sound)]
    music = 0.2 * np.sin(2 * np.pi * notes * seconds) * (seconds < 12)
    return music + 1e-4 * np.random.default_rng(1).standard_normal(len(sound))


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda sound: sound[:RATE], AudioError, "too short to measure"),
        (lambda sound: np.clip(30 * sound, -1, 1), AudioError, "clipped; step back"),
        (lambda sound: 0.02 * benchmark.pink(len(sound), np.random.default_rng(0)), AudioError, "clap louder"),
        (_music, AudioError, "claps in silence|begins suddenly|what follows is as loud"),
        (lambda sound: np.tile(sound[RATE : 2 * RATE], 8), AudioError, "no silence"),
    ],
)
def test_recordings_that_cannot_be_measured(
    spoil: Callable[[Samples], Samples], error: type[Exception], words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad.wav", spoil(recording(decaying(0.3, 5.0))))
    with pytest.raises(error, match=words) as caught:
        measure_recording(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("quick")
def test_one_clipped_clap_is_left_out(tmp_path: Path) -> None:
    sound = recording(decaying(0.3, 5.0))
    start = int(np.argmax(np.abs(sound[: 3 * RATE])))
    sound[start : start + 3] = 1.0
    sound[3 * RATE + int(np.argmax(np.abs(sound[3 * RATE : 5 * RATE])))] = 1.0  # one peak brought to full scale
    found = measure_recording(write(tmp_path / "one.wav", sound))
    assert [bool(clap.fault) for clap in found.claps] == [True, False, False, False]


@pytest.mark.usefixtures("quick")
def test_claps_that_follow_each_other_too_soon(tmp_path: Path) -> None:
    response = decaying(0.3, 5.0)
    sound = recording(response)
    place = int(np.argmax(np.abs(sound[: 3 * RATE])))
    sound[place + 5600 : place + 5600 + 4000] += sound[place - 50 : place + 3950]
    found = measure_recording(write(tmp_path / "double.wav", sound))
    assert "too soon" in found.claps[0].fault
    assert found.estimate.rt60_s == pytest.approx(0.3, rel=0.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["babble", "fan", "pink"])
def test_silence_in_a_noise_that_swings(kind: str, tmp_path: Path) -> None:
    """Voices and gusts are no claps: all of the minute is noise to train with, and nothing before it."""
    generator = np.random.default_rng(0)
    claps = np.zeros(70 * RATE)
    for start in (RATE, 3 * RATE, 5 * RATE, 7 * RATE):
        heard = np.convolve(benchmark.make_clap("hand", generator), decaying(0.4, 20))
        claps[start : start + len(heard)] += heard
    noise = make_training_noise(kind, 3, 0, 70.0)
    noise = 10 ** (-35 / 20) * math.sqrt(benchmark.loudest(claps)) * noise / noise.std()
    path = write(tmp_path / "room.wav", 0.002 * (claps + noise))
    found = measure_recording(path)
    assert [clap.time_s for clap in found.claps] == pytest.approx([1, 3, 5, 7], abs=0.01)
    assert 7.2 < found.silence_s[0] < 8.5
    assert found.silence_s[1] == 70
    assert not found.warnings


def test_silence_given_and_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "room.wav", recording(decaying(0.3, 5.0)))
    found = measure_recording(path, silence_s=(14, 18))
    assert len(found.noise) == 4 * RATE
    for wrong, words in (((14, 100), "lies outside"), ((5, 4), "lies outside"), ((14, 15), "give 2 s")):
        with pytest.raises(ConfigError, match=words):
            measure_recording(path, silence_s=wrong)


@pytest.mark.usefixtures("quick")
def test_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Claps hardly above the noise; silence from which noise suppression has taken all."""
    quiet = measure(write(tmp_path / "quiet.wav", recording(decaying(0.3, 5.0), noise_db=12)), capsys)
    assert "clap louder" in quiet.err
    sound = recording(decaying(0.3, 5.0), noise_db=50)
    sound[-11 * RATE :] = 0
    zero = measure(write(tmp_path / "zero.wav", sound), capsys)
    assert zero.code == 0
    assert "digital zero" in zero.err
    assert (zero.folder / "noises.jsonl").read_text() == ""


def test_a_sweep_that_was_not_played(tmp_path: Path) -> None:
    path = write(tmp_path / "room.wav", recording(decaying(0.3, 5.0)))
    with pytest.raises(AudioError, match="sweep is not heard"):
        measure_recording(path, sweep=exponential_sweep(3, RATE))


@pytest.mark.parametrize(
    "arguments", [["sweep", "--seconds", "0"], ["measure", "a.wav", "-o", "x", "--distance", "-1"]]
)
def test_settings_out_of_range(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["room", *arguments]) == 2
    assert "give" in capsys.readouterr().err


def test_kinds_of_noise() -> None:
    generator = np.random.default_rng(0)
    white = generator.standard_normal(10 * RATE)
    hum = sum(np.sin(2 * np.pi * hz * np.arange(10 * RATE) / RATE) for hz in (50, 100, 150))
    assert noise_kind(white) == "white"
    assert noise_kind(benchmark.pink(10 * RATE, generator)) == "pink"
    assert noise_kind(np.cumsum(white)).startswith("brown")
    assert noise_kind(0.1 * white + hum).endswith("hum of 50 Hz")
    assert noise_kind(np.where(np.arange(10 * RATE) % 32_000 < 16_000, 1, 0.1) * white) == "white, unsteady"
    assert noise_kind(np.zeros(RATE)) == "digital silence"
