"""Room responses and noises on disk, and rooms made here for training: ``kvarts augment rooms``.

A room folder, simulated here or measured (nothing but these files is needed in training):

    rooms.jsonl   {"audio_filepath": "rir/0001.flac", "rt60_s": 0.42, "drr_db": 3.1, "distance_m": 2.4,
                   "direct_sample": 40, "room": "simulated-0-0001"}                  a line for each response
    noises.jsonl  {"audio_filepath": "noise/0001.flac", "duration": 20.0, "kind": "pink"}

Responses are mono; `direct_sample` is where the direct path's peak lies in samples of 16 kHz, and `room` tells rooms
from each other: those that a set is tested in are never trained in. A folder without rooms.jsonl may be any collection
of wav and flac files: each is a response, a room of its own, and its direct path is found (`direct_sample_of`).
"""

from __future__ import annotations

import hashlib
import io
import math
import multiprocessing
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
from numpy.typing import NDArray

from kvarts.audio import read_audio
from kvarts.errors import AudioError, ConfigError, listing
from kvarts.files import atomic_writer
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import LineError, field_of, json_object, write_manifest
from kvarts.progress import progress_bar

Waveform = NDArray[np.float32]  # (samples,), 16 kHz

ROOMS: Final = "rooms.jsonl"
NOISES: Final = "noises.jsonl"
_SOUND_FILES = (".wav", ".flac")
# The first sample that reaches half of the highest peak: the direct path is the first to arrive, and where something
# stands in its way a reflection may be higher, by 6 dB at the most.
_STRONG_PEAK = 0.5
_LEAD_SAMPLES = 40  # of a response are kept before the direct path's peak: 2.5 ms, the rise of its band-limited pulse
_NOISE_BLOCK = 160  # samples
_TAIL_DB = -60.0  # of a response's energy; what remains below is cut off


@dataclass(frozen=True)
class Response:
    """A room response: from the mouth to the microphone.

    `lead` samples of `samples` ((samples,) float32) lie before the direct path's peak, which is 1 or -1 high unless a
    reflection is higher: then that is. `distance_m`, from mouth to microphone, is None where nobody wrote it down.
    """

    samples: Waveform = field(repr=False)
    lead: int
    room: str
    path: Path
    distance_m: float | None = None


@dataclass(frozen=True)
class NoiseFile:
    """A recording of noise: (samples,) float32, 16 kHz."""

    samples: Waveform = field(repr=False)
    kind: str
    path: Path


def direct_sample_of(response: Waveform) -> int:
    """Index of the direct path's peak: the first local maximum of at least half the highest magnitude."""
    magnitude = np.abs(response)
    first = int(np.argmax(magnitude >= _STRONG_PEAK * magnitude.max()))
    while first + 1 < len(magnitude) and magnitude[first + 1] > magnitude[first]:
        first += 1
    return first


def as_response(samples: Waveform, direct_sample: int, room: str, path: Path) -> Response:
    """A response cut where its energy has fallen by 60 dB, or into noise, scaled to a highest magnitude of 1.

    Raises:
        AudioError: the direct path lies outside, or is silent.
    """
    if not 0 <= direct_sample < len(samples):
        raise AudioError(f'{path}: "direct_sample" is {direct_sample} of {len(samples)} samples; correct the line')
    if samples[direct_sample] == 0:
        raise AudioError(f"{path}: sample {direct_sample}, the direct path's, is 0; correct the line, or leave it out")
    start = max(0, direct_sample - _LEAD_SAMPLES)
    heard = samples[start:].astype(np.float64)
    heard = heard[: _above_noise(heard)]
    remaining = np.cumsum(heard[::-1] ** 2)[::-1]  # Schroeder's decay curve
    end = int(np.count_nonzero(remaining > remaining[0] * 10 ** (_TAIL_DB / 10)))
    end = max(end, direct_sample - start + 1)
    heard = heard[:end] / np.abs(heard[:end]).max()
    return Response(heard.astype(np.float32), direct_sample - start, room, path)


def _above_noise(response: NDArray[np.float64]) -> int:
    """Samples before a response ends in the noise of its recording: 10 ms blocks 3 dB above the last tenth."""
    blocks = len(response) // _NOISE_BLOCK
    if blocks < 20:
        return len(response)
    level = np.mean(response[: blocks * _NOISE_BLOCK].reshape(blocks, _NOISE_BLOCK) ** 2, axis=1)
    above = np.flatnonzero(level > 2 * np.median(level[-(blocks // 10) :]))
    return int(above[-1] + 1) * _NOISE_BLOCK if len(above) else len(response)


def read_responses(folder: Path) -> list[Response]:
    """The responses of a room folder, or of a folder of wav and flac files.

    Raises:
        ConfigError: no such folder, no responses in it, or broken lines in rooms.jsonl.
        AudioError: files that cannot be read; all are listed.
    """
    _check_folder(folder)
    responses: list[Response] = []
    bad: list[str] = []
    if (folder / ROOMS).is_file():
        for where, row in _rows(folder / ROOMS):
            path = folder / _text(where, row, "audio_filepath")
            room = _text(where, row, "room") if "room" in row else str(path)
            direct_sample = row.get("direct_sample")
            if direct_sample is not None and type(direct_sample) is not int:
                raise ConfigError(f'{where}: "direct_sample" is {direct_sample!r}; make it a whole number')
            distance_m = row.get("distance_m")
            if distance_m is not None and type(distance_m) not in (int, float):
                raise ConfigError(f'{where}: "distance_m" is {distance_m!r}; make it a number, or leave it out')
            try:
                samples = read_audio(path)
                direct = direct_sample_of(samples) if direct_sample is None else direct_sample
                responses.append(replace(as_response(samples, direct, room, path), distance_m=distance_m))
            except AudioError as error:
                bad.append(f"{where}: {error}")
    else:
        for path in _sound_files(folder):
            try:
                samples = read_audio(path)
                responses.append(as_response(samples, direct_sample_of(samples), str(path), path))
            except AudioError as error:
                bad.append(str(error))
    if bad:
        raise AudioError(listing("room responses that cannot be used", bad))
    if not responses:
        raise ConfigError(f"{folder}: no room responses in it; make some with kvarts augment rooms -o {folder}")
    return responses


def read_noises(folder: Path) -> list[NoiseFile]:
    """The noises of a room folder, or of a folder of wav and flac files.

    Raises:
        ConfigError: no such folder, no noises in it, or broken lines in noises.jsonl.
        AudioError: files that cannot be read, or silent ones; all are listed.
    """
    _check_folder(folder)
    noises: list[NoiseFile] = []
    bad: list[str] = []
    if (folder / NOISES).is_file():
        files = [
            (f"{where}: ", folder / _text(where, row, "audio_filepath"), str(row.get("kind", "noise")))
            for where, row in _rows(folder / NOISES)
        ]
    else:
        files = [("", path, "noise") for path in ([] if (folder / ROOMS).is_file() else _sound_files(folder))]
    for where, path, kind in files:
        try:
            samples = read_audio(path)
            if not samples.any():
                raise AudioError(f"{path} is silent: leave it out")
            noises.append(NoiseFile(samples, kind, path))
        except AudioError as error:
            bad.append(f"{where}{error}")
    if bad:
        raise AudioError(listing("noises that cannot be used", bad))
    if not noises:
        raise ConfigError(f"{folder}: no noises in it; make some with kvarts augment rooms -o {folder}")
    return noises


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; make one with kvarts augment rooms -o {folder}")


def _sound_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SOUND_FILES)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place, for messages, and its object."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: could not be read ({error.strerror or error}); check the path") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json_object(line.strip())
            except LineError as error:
                raise ConfigError(f"{path}:{number}: {error}") from error


def _text(where: str, row: Mapping[str, Any], name: str) -> str:
    try:
        text: str = field_of(dict(row), name, str, "a string")
    except LineError as error:
        raise ConfigError(f"{where}: {error}") from error
    return text


# ------------------------------------------------------------------------------------------------- simulated rooms

Point = tuple[float, float, float]  # metres from the room's corner

_BANDS_HZ = (125, 250, 500, 1000, 2000, 4000)  # octaves that materials are described in
_WALLS = ("east", "west", "north", "south", "ceiling", "floor")
_RT60_RANGE_S = (0.15, 1.0)
_DISTANCE_RANGE_M = (0.3, 6.0)
_RESPONSES_A_ROOM = 5
_IMAGE_ORDER = 6  # of reflections by image sources; rays give what comes later
_RAYS = 4000
_TEST_SEEDS = range(100)  # of `kvarts data sample`, whose rooms are for tests
_CLEAR_OF_TEST_ROOMS_M = 0.1


@dataclass(frozen=True)
class TrainingRoom:
    """A shoebox room with walls that absorb unlike each other and unlike at every frequency."""

    room_id: str
    dims_m: Point
    rt60_asked_s: float  # by Sabine's formula, of the mean absorption
    absorption: Mapping[str, list[float]]  # of the energy, by wall, at `_BANDS_HZ`
    scattering: float
    source_m: Point
    microphones_m: list[Point]


def draw_training_room(seed: int, number: int) -> TrainingRoom:
    """A room drawn from (seed, number), never one of those that `kvarts data sample` tests in."""
    import pyroomacoustics as pra

    generator = random.Random(f"{seed} training room {number}")
    while True:
        dims_m = (
            round(generator.uniform(2.0, 10.0), 2),
            round(generator.uniform(1.8, 7.0), 2),
            round(generator.uniform(2.2, 4.0), 2),
        )
        # Evenly in its logarithm: a third of the rooms below 0.28 s, a third above 0.53 s.
        rt60_s = round(math.exp(generator.uniform(*map(math.log, _RT60_RANGE_S))), 2)
        try:
            mean, _ = pra.inverse_sabine(rt60_s, dims_m)
        except ValueError:  # so large a room cannot be so dry
            continue
        if not is_test_room(dims_m):
            break
    tilt = generator.uniform(-0.1, 0.35)  # most walls take more of the high frequencies
    absorption = {}
    for wall in _WALLS:
        share = generator.uniform(0.4, 1.6)
        octaves = [1 + tilt * (octave - 2.5) * 0.6 for octave in range(len(_BANDS_HZ))]
        absorption[wall] = [
            round(min(0.95, max(0.01, mean * share * factor * generator.uniform(0.7, 1.3))), 3) for factor in octaves
        ]
    source_m, microphones_m = _places(dims_m, generator)
    return TrainingRoom(
        f"simulated-{seed}-{number:04d}",
        dims_m,
        rt60_s,
        absorption,
        round(generator.uniform(0.05, 0.5), 2),
        source_m,
        microphones_m,
    )


def is_test_room(dims_m: Point) -> bool:
    """Whether a room measures what one of `kvarts data sample` does, give or take 10 cm on each side."""
    return any(
        all(abs(ours - theirs) <= _CLEAR_OF_TEST_ROOMS_M for ours, theirs in zip(dims_m, test_m, strict=True))
        for test_m in _test_rooms_m()
    )


@cache
def _test_rooms_m() -> list[Point]:
    from kvarts.sample import draw_rooms

    return [dims_m for seed in _TEST_SEEDS for _, dims_m, _ in draw_rooms(seed)]


def _places(dims_m: Point, generator: random.Random) -> tuple[Point, list[Point]]:
    """A mouth and microphones, 0.3 m from the walls and more, at heights people use."""

    def point(low_m: float, high_m: float) -> Point:
        length, width, height = dims_m
        return (
            round(generator.uniform(0.3, length - 0.3), 2),
            round(generator.uniform(0.3, width - 0.3), 2),
            round(generator.uniform(low_m, min(high_m, height - 0.2)), 2),
        )

    source_m = point(0.9, 1.9)
    microphones_m: list[Point] = []
    while len(microphones_m) < _RESPONSES_A_ROOM:
        place = point(0.3, 2.6)
        distance_m = math.dist(source_m, place)
        # Evenly drawn places lie far away; the farther, the seldomer they are taken, so that near ones are not rare.
        is_taken = generator.random() < 1 / max(1.0, distance_m)
        if _DISTANCE_RANGE_M[0] <= distance_m <= _DISTANCE_RANGE_M[1] and is_taken:
            microphones_m.append(place)
    return source_m, microphones_m


def simulate_responses(room: TrainingRoom) -> list[tuple[NDArray[np.float64], int]]:
    """Response (samples,) at 16 kHz of each microphone, and the sample of its direct path.

    Early reflections by image sources (Allen and Berkley, 1979), the tail by rays that the walls also scatter
    (Schröder, "Physically based real-time auralization of interactive virtual environments", 2011), as pyroomacoustics
    joins them.
    """
    import pyroomacoustics as pra

    bands: list[float] = list(_BANDS_HZ)
    materials = {
        wall: pra.Material(
            {"coeffs": coefficients, "center_freqs": bands},
            {"coeffs": [room.scattering] * len(bands), "center_freqs": bands},
        )
        for wall, coefficients in room.absorption.items()
    }
    shoebox = pra.ShoeBox(
        room.dims_m,
        fs=SAMPLE_RATE,
        materials=materials,
        max_order=_IMAGE_ORDER,
        ray_tracing=True,
        air_absorption=True,
    )
    shoebox.set_ray_tracing(n_rays=_RAYS, receiver_radius=0.3)
    shoebox.add_source(room.source_m)
    for place in room.microphones_m:
        shoebox.add_microphone(place)
    shoebox.compute_rir()
    responses = []
    for place, (response,) in zip(room.microphones_m, shoebox.rir, strict=True):
        travel = math.dist(room.source_m, place) / shoebox.c * SAMPLE_RATE
        direct_sample = round(travel + pra.constants.get("frac_delay_length") // 2)
        responses.append((np.asarray(response, dtype=np.float64), direct_sample))
    return responses


# ------------------------------------------------------------------------------------------------ simulated noises

NOISE_KINDS: Final = ("pink", "brown", "white", "speech_shaped", "babble", "hum", "fan", "clatter", "music")
_NOISE_S = 15.0


def make_training_noise(kind: str, seed: int, number: int, duration_s: float = _NOISE_S) -> Waveform:
    """Generated noise (samples,) of RMS 0.1, peaks at most 1: no recording is in it.

    Each has a tilt of its own (up to 4 dB an octave either way) and its level wanders by some dB.
    """
    from kvarts.sample import make_noise

    generator = np.random.default_rng((seed, number, NOISE_KINDS.index(kind)))
    count = round(duration_s * SAMPLE_RATE)
    if kind in ("pink", "speech_shaped", "babble"):
        noise = make_noise(kind, count, _speech_power(), generator)
    elif kind in ("white", "brown"):
        noise = _tilted(generator.standard_normal(count), 0.0 if kind == "white" else -6.0)
    elif kind in ("hum", "fan"):
        noise = _harmonics(count, generator, is_fan=kind == "fan")
    elif kind == "clatter":
        noise = _clatter(count, generator)
    else:
        noise = _music(count, generator)
    noise = _tilted(noise, generator.uniform(-4, 4))
    # Slower than syllables, faster than a sentence.
    knots_s = np.arange(0, duration_s + 1, 0.7)
    swing_db = np.interp(np.arange(count) / SAMPLE_RATE, knots_s, generator.normal(0, 3, len(knots_s)))
    noise = noise * 10 ** (swing_db / 20)
    noise = noise * (0.1 / np.sqrt(np.mean(noise**2)))
    made: Waveform = (noise / max(1.0, float(np.abs(noise).max()))).astype(np.float32)
    return made


def _speech_power() -> NDArray[np.float64]:
    """About the long-term spectrum of speech (Byrne et al., 1994), power at 257 frequencies up to 8 kHz.

    Level up to 500 Hz, from there on 9 dB an octave down to 1 kHz, then 6.
    """
    frequencies_hz = np.linspace(0, SAMPLE_RATE / 2, 257)
    octaves = np.log2(np.maximum(frequencies_hz, 500) / 500)
    level_db = -9 * np.minimum(octaves, 1) - 6 * np.maximum(octaves - 1, 0)
    level_db[frequencies_hz < 100] -= 20
    return np.asarray(10 ** (level_db / 10))


def _tilted(noise: NDArray[np.float64], db_per_octave: float) -> NDArray[np.float64]:
    frequencies_hz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    gain = (np.maximum(frequencies_hz, 50) / 1000) ** (db_per_octave / 20 / math.log10(2))
    tilted: NDArray[np.float64] = np.fft.irfft(np.fft.rfft(noise) * gain, len(noise))
    return tilted


def _harmonics(count: int, generator: np.random.Generator, is_fan: bool) -> NDArray[np.float64]:
    """Mains hum of 50 Hz, or a machine that turns, with its rush of air."""
    time_s = np.arange(count) / SAMPLE_RATE
    lowest_hz = generator.uniform(60, 240) if is_fan else 50.0
    wobble = np.cumsum(1 + 0.01 * is_fan * np.sin(2 * np.pi * generator.uniform(0.2, 2) * time_s)) / SAMPLE_RATE
    noise = np.zeros(count)
    for harmonic in range(1, 13):
        phase = generator.uniform(0, 2 * np.pi)
        amplitude = generator.exponential() / harmonic
        noise += amplitude * np.sin(2 * np.pi * harmonic * lowest_hz * wobble + phase)
    air = _tilted(generator.standard_normal(count), -4.0)
    loudness = generator.uniform(0.5, 3) if is_fan else 0.05
    hum: NDArray[np.float64] = noise / noise.std() + loudness * air / air.std()
    return hum


def _clatter(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Dishes, keys, doors: decaying resonances at random times over faint noise."""
    noise = 0.01 * generator.standard_normal(count)
    time_s = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    for start in generator.integers(0, count, size=int(generator.uniform(1, 6) * count / SAMPLE_RATE)):
        hit = generator.standard_normal(len(time_s)) * np.exp(-time_s / generator.uniform(0.002, 0.01))
        for _ in range(int(generator.integers(0, 5))):
            decay = np.exp(-time_s / generator.uniform(0.005, 0.12))
            hit += generator.exponential() * decay * np.sin(2 * np.pi * generator.uniform(200, 7000) * time_s)
        end = min(count, start + len(hit))
        noise[start:end] += generator.exponential() * hit[: end - start]
    return noise


def _music(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Notes of a scale with overtones, some at a time."""
    noise = 0.003 * generator.standard_normal(count)
    root_hz = generator.uniform(80, 200)
    beat = round(generator.uniform(0.15, 0.5) * SAMPLE_RATE)
    for start in range(0, count, beat):
        for _ in range(int(generator.integers(0, 4))):
            note_hz = root_hz * 2 ** (generator.choice([0, 2, 4, 5, 7, 9, 11]) / 12 + generator.integers(0, 4))
            time_s = np.arange(min(count - start, 4 * beat)) / SAMPLE_RATE
            decay = np.exp(-time_s / generator.uniform(0.1, 1.0)) * np.minimum(1, time_s / 0.01)
            for overtone in range(1, 9):
                if overtone * note_hz < SAMPLE_RATE / 2:
                    amplitude = generator.uniform(0.3, 1) / overtone
                    noise[start : start + len(time_s)] += (
                        amplitude * decay * np.sin(2 * np.pi * overtone * note_hz * time_s)
                    )
    return noise


# ------------------------------------------------------------------------------------------------------ the folder


def make_room_folder(folder: Path, count: int, noises: int, seed: int, workers: int) -> None:
    """Simulates `count` responses and `noises` noises into a room folder; the seed decides them all.

    Raises:
        OutputError: a file could not be written.
    """
    numbers = range(-(-count // _RESPONSES_A_ROOM))
    rooms: list[dict[str, Any]] = []
    with progress_bar("rooms", len(numbers) + noises) as advance, ProcessPoolExecutor(workers, _spawned()) as pool:
        for number, made in enumerate(pool.map(_simulated, [seed] * len(numbers), numbers)):
            for place, (row, samples) in enumerate(made):
                if len(rooms) < count:
                    name = f"rir/{number * _RESPONSES_A_ROOM + place + 1:05d}.flac"
                    write_sound(folder / name, samples, "PCM_24")
                    rooms.append({"audio_filepath": name, **row})
            advance(1)
        noise_rows: list[dict[str, Any]] = []
        kinds = [NOISE_KINDS[number % len(NOISE_KINDS)] for number in range(noises)]
        for number, noise in enumerate(pool.map(make_training_noise, kinds, [seed] * noises, range(noises))):
            name = f"noise/{number + 1:04d}.flac"
            write_sound(folder / name, noise, "PCM_16")
            noise_rows.append({"audio_filepath": name, "duration": len(noise) / SAMPLE_RATE, "kind": kinds[number]})
            advance(1)
    write_manifest(folder / NOISES, noise_rows)
    write_manifest(folder / ROOMS, rooms)


def _spawned() -> BaseContext:
    # A process that is forked while threads run may hang.
    return multiprocessing.get_context("spawn")


def _simulated(seed: int, number: int) -> list[tuple[dict[str, Any], Waveform]]:
    """Rows and responses of a room, scaled to a highest magnitude of 0.9 and cut where nothing is left to hear."""
    import pyroomacoustics as pra

    from kvarts.room_response import drr_db, schroeder_rt60

    pra.constants.set("num_threads", 1)  # rounding depends on it
    pra.random.seed(int.from_bytes(hashlib.sha256(f"{seed} rays {number}".encode()).digest()[:4], "big"))
    room = draw_training_room(seed, number)
    made = []
    for place, (response, direct_sample) in zip(room.microphones_m, simulate_responses(room), strict=True):
        heard = as_response(response.astype(np.float32), direct_sample, room.room_id, Path())
        row = {
            "rt60_s": round(schroeder_rt60(response[direct_sample:]), 3),
            "drr_db": round(drr_db(response, direct_sample), 1),
            "distance_m": round(math.dist(room.source_m, place), 2),
            "direct_sample": heard.lead,
            "room": room.room_id,
            "room_dims_m": list(room.dims_m),
            "simulated": True,
        }
        made.append((row, 0.9 * heard.samples))
    return made


def write_sound(path: Path, samples: Waveform, subtype: str) -> None:
    """A mono file at 16 kHz, flac or wav by its name.

    Raises:
        OutputError: it could not be written.
    """
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format=path.suffix[1:].upper(), subtype=subtype)
    with atomic_writer(path) as file:
        file.write(content.getbuffer())
