"""`kvarts data sample`: builds the speech that ships with Kvarts from Debian's package `festvox-ru`.

One speaker reads 620 sentences. By their number, for ever: up to 650 they may be trained on, 651 to 700
they validate, from 701 on they test. Half of the test sentences stay as recorded (`crowd`, close talk), the
other half are put through simulated rooms with noise (`farfield`), and every manifest line of those says so.

All choices follow from the seed, by hashing or Python's own generator and never by NumPy's, whose choices may
change between releases: the same seed and package give the same manifests, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import math
import os
import random
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import foreign_characters
from kvarts.corpora import deb_members
from kvarts.errors import ArchiveError, AudioError, ConfigError
from kvarts.files import write_error
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import write_manifest
from kvarts.progress import progress_bar
from kvarts.room_response import schroeder_rt60 as schroeder_rt60
from kvarts.text import normalise

SPEAKER = "nsh"  # the voice's name in the package: msu_ru_nsh
KNOWN_VERSION = "0.5+dfsg-6"
KNOWN_SHA256 = "21ef3f0f2978ecf2e2eddb367cb0ff4a72572196d28dc69feb84f4177af5e6c4"

LAST_TRAIN = 650
LAST_VALIDATION = 700
TRAIN_TARGET_S = 600.0
# The hundred shortest last 605 s together, so ten minutes of a hundred would be no random choice any more.
TRAIN_UTTERANCES = 90
# Trained on and validated is what a command to an assistant may last; the tests take all there is.
MIN_DURATION_S = 3.0
MAX_DURATION_S = 12.0

# libsndfile maps 0…1 linearly to 256…6 kbit/s; on these recordings this makes 27.8 kbit/s on average.
OPUS_COMPRESSION_LEVEL = 0.908

NUM_ROOMS = 8
# The longest asked stays below 0.8 s because places in one room differ by a few per cent.
RT60_RANGE_S = (0.34, 0.75)
DISTANCE_RANGE_M = (1.0, 5.0)
SNR_RANGE_DB = (5.0, 20.0)
NOISES = ("pink", "speech_shaped", "babble")
PEAK_LIMIT = 0.9

Waveform = NDArray[np.float32]  # (samples,), 16 kHz, in [-1, 1]
Samples = NDArray[np.float64]  # (samples,): impulse responses, noise, mixtures


# --- The package --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """One sentence as the package holds it."""

    name: str  # ru_0123
    text: str  # as printed, with stress marks and punctuation
    wav: bytes

    @property
    def number(self) -> int:
        """The sentence's number, which decides for ever whether it trains, validates or tests."""
        return int(self.name.removeprefix("ru_"))


_WAV_PATH = re.compile(r"(?:^|/)wav/(ru_\d{4})\.wav$")
_TEXT_PATH = re.compile(r"(?:^|/)etc/txt\.done\.data$")
_TEXT_LINE = re.compile(r'\(\s*(ru_\d{4})\s+"(.*)"\s*\)')


def read_package(path: Path) -> list[Recording]:
    """All recordings that have a text, by name, from the .deb or from the folder it was unpacked to.

    Nothing is unpacked: members are read into memory, and none of their paths is ever used as a path.

    Raises:
        ArchiveError: missing, damaged, not a Debian package, or without Russian recordings.
    """
    wavs: dict[str, bytes] = {}
    texts: dict[str, str] = {}
    members = _folder_members(path) if path.is_dir() else deb_members(path, _is_wanted)
    try:
        for member, content in members:
            if wav := _WAV_PATH.search(member):
                wavs[wav[1]] = content
            else:
                texts.update(_read_texts(content, f"{path}: {member}"))
    except OSError as error:
        raise ArchiveError(f"{path}: could not be read ({error.strerror or error})") from error
    recordings = [Recording(name, texts[name], wavs[name]) for name in sorted(wavs.keys() & texts.keys())]
    if not recordings:
        raise ArchiveError(
            f"{path}: no recordings in it; give festvox-ru's .deb or the folder it was unpacked to"
        )
    return recordings


def _read_texts(content: bytes, where: str) -> dict[str, str]:
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{where}: not UTF-8 ({error.reason}); fetch the package again") from None
    matches = (_TEXT_LINE.match(line) for line in lines)
    return {match[1]: match[2] for match in matches if match}


def _is_wanted(member: str) -> bool:
    return bool(_WAV_PATH.search(member) or _TEXT_PATH.search(member))


def _folder_members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("*")):
        member = file.relative_to(folder).as_posix()
        if _is_wanted(member) and file.is_file():
            yield member, file.read_bytes()


def decode_wav(recording: Recording) -> Waveform:
    """The recording as float32 (samples,) at 16 kHz.

    Raises:
        AudioError: not audio, or nothing in it.
    """
    import soundfile

    try:
        waveform, rate = soundfile.read(io.BytesIO(recording.wav), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{recording.name}.wav: not readable as audio ({error.error_string})") from error
    mono: Waveform = waveform.mean(axis=1)
    if rate != SAMPLE_RATE:
        import soxr

        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    if not mono.size:
        raise AudioError(f"{recording.name}.wav: has no samples; fetch the package again")
    return mono


# --- Which recording goes where -----------------------------------------------------------------------------


def split_of(number: int) -> str:
    """`train`, `validation` or `test`: what a sentence of this number may ever be used for."""
    if number <= LAST_TRAIN:
        return "train"
    return "validation" if number <= LAST_VALIDATION else "test"


def _rank(name: str, seed: int, purpose: str) -> bytes:
    return hashlib.sha256(f"{seed} {purpose} {name}".encode()).digest()


def _shuffled(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    return sorted(names, key=lambda name: _rank(name, seed, purpose))


def choose_train(durations_s: dict[str, float], seed: int) -> list[str]:
    """About `TRAIN_UTTERANCES` names at random, together as near to `TRAIN_TARGET_S` seconds as swaps get.

    Random swaps that bring the sum nearer to the target keep the choice random otherwise: long and short
    sentences both stay, only their shares move.
    """
    shuffled = _shuffled(durations_s, seed, "train")
    chosen, others = shuffled[:TRAIN_UTTERANCES], shuffled[TRAIN_UTTERANCES:]
    if not others:
        return sorted(chosen)
    generator = random.Random(f"{seed} train")
    excess = sum(durations_s[name] for name in chosen) - TRAIN_TARGET_S
    for _ in range(20_000):
        i, j = int(generator.random() * len(chosen)), int(generator.random() * len(others))
        swapped = excess - durations_s[chosen[i]] + durations_s[others[j]]
        if abs(swapped) < abs(excess):
            chosen[i], others[j] = others[j], chosen[i]
            excess = swapped
    return sorted(chosen)


def choose(durations_s: dict[str, float], seed: int, whole: bool = False) -> dict[str, list[str]]:
    """Names for `train`, `validation`, `crowd` and `farfield`, true to `split_of`.

    Of the `whole` package every sentence is used, each test sentence in both test sets; else ten minutes train, and
    no sentence is in two sets.

    Raises:
        ConfigError: one of them would be empty.
    """
    pools: dict[str, dict[str, float]] = {"train": {}, "validation": {}, "test": {}}
    for name, duration_s in durations_s.items():
        split = split_of(int(name.removeprefix("ru_")))
        if whole or split == "test" or MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
            pools[split][name] = duration_s
    test = _shuffled(pools["test"], seed, "test")
    half = (len(test) + 1) // 2
    chosen = {
        "train": sorted(pools["train"]) if whole else choose_train(pools["train"], seed),
        "validation": sorted(pools["validation"]),
        "crowd": sorted(test if whole else test[:half]),
        "farfield": sorted(test if whole else test[half:]),
    }
    for use, names in chosen.items():
        if not names:
            raise ConfigError(f"the package has no recordings for {use}; give the whole festvox-ru package")
        expected = use if use in pools else "test"
        assert all(split_of(int(name.removeprefix("ru_"))) == expected for name in names), "held-out rule"
    return chosen


# --- Simulated rooms ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """A shoebox room: what was asked of it and what makes it so."""

    room_id: str
    dims_m: tuple[float, float, float]  # length, width, height
    rt60_asked_s: float
    absorption: float  # of the energy, the same on all six walls
    max_order: int  # of reflections


@dataclass(frozen=True)
class Placement:
    """Where the speaker's mouth and the microphone are, in metres from the room's corner."""

    source_m: tuple[float, float, float]
    microphone_m: tuple[float, float, float]

    @property
    def distance_m(self) -> float:
        """Metres from mouth to microphone."""
        return math.dist(self.source_m, self.microphone_m)


def simulate_impulse_response(room: Room, placement: Placement) -> Samples:
    """Impulse response (samples,) at 16 kHz from the arrival of the direct sound on.

    Image sources: Allen and Berkley, "Image method for efficiently simulating small-room acoustics", 1979.
    """
    import pyroomacoustics as pra

    shoebox = pra.ShoeBox(
        room.dims_m, fs=SAMPLE_RATE, materials=pra.Material(room.absorption), max_order=room.max_order
    )
    shoebox.add_source(placement.source_m)
    shoebox.add_microphone(placement.microphone_m)
    shoebox.compute_rir()
    # Sound travels, and the filters that place an echo between two samples are centred: both come off.
    latency = placement.distance_m / shoebox.c * SAMPLE_RATE + pra.constants.get("frac_delay_length") // 2
    impulse_response: Samples = np.asarray(shoebox.rir[0][0], dtype=np.float64)[round(latency) :]
    return impulse_response


def make_room(room_id: str, dims_m: tuple[float, float, float], rt60_s: float) -> Room:
    """A room whose reverberation time, measured at one place, is the one asked for.

    Sabine's formula starts the search; it assumes a diffuse field and is far off in flat rooms. The decay
    rate is proportional to -ln(1 - absorption) (Eyring), so scaling that by measured/asked soon converges.
    """
    import pyroomacoustics as pra

    absorption, max_order = pra.inverse_sabine(rt60_s, dims_m)
    length, width, _ = dims_m
    reference = Placement((0.3 * length, 0.35 * width, 1.5), (0.65 * length, 0.7 * width, 1.1))
    exponent = -math.log1p(-absorption)
    for _ in range(4):
        room = Room(room_id, dims_m, rt60_s, -math.expm1(-exponent), max_order)
        exponent *= schroeder_rt60(simulate_impulse_response(room, reference)) / rt60_s
    return Room(room_id, dims_m, rt60_s, -math.expm1(-exponent), max_order)


def draw_rooms(seed: int) -> list[tuple[str, tuple[float, float, float], float]]:
    """Name, (length, width, height) in metres and RT60 in seconds of each room; larger ones ring longer."""
    generator = random.Random(f"{seed} rooms")

    def draw(low: float, high: float) -> float:
        return round(low + (high - low) * generator.random(), 2)

    sizes = [(draw(3.2, 8.0), draw(2.8, 6.0), draw(2.5, 3.2)) for _ in range(NUM_ROOMS)]
    sizes.sort(key=math.prod)
    low_s, high_s = RT60_RANGE_S
    return [
        (f"room_{i + 1}", dims_m, round(low_s + (high_s - low_s) * i / (NUM_ROOMS - 1), 2))
        for i, dims_m in enumerate(sizes)
    ]


def draw_placement(dims_m: tuple[float, float, float], generator: random.Random) -> Placement:
    """A mouth and a microphone, 1 to 5 m apart and at least 0.5 m from the walls, at heights people use."""
    length, width, _ = dims_m

    def point(low_m: float, high_m: float) -> tuple[float, float, float]:
        return (
            round(0.5 + (length - 1) * generator.random(), 2),
            round(0.5 + (width - 1) * generator.random(), 2),
            round(low_m + (high_m - low_m) * generator.random(), 2),
        )

    while True:
        placement = Placement(point(1.1, 1.8), point(0.6, 1.4))
        if DISTANCE_RANGE_M[0] <= placement.distance_m <= DISTANCE_RANGE_M[1]:
            return placement


# --- Noise and mixing ---------------------------------------------------------------------------------------


def long_term_spectrum(waveforms: Iterable[Waveform]) -> Samples:
    """Mean power at 257 frequencies from 0 to 8 kHz: (257,)."""
    window = np.hanning(512)
    total, count = np.zeros(257), 0
    for waveform in waveforms:
        frames = np.lib.stride_tricks.sliding_window_view(waveform, 512)[::256]
        total += (np.abs(np.fft.rfft(frames * window, axis=1)) ** 2).sum(axis=0)
        count += len(frames)
    return total / max(count, 1)


def make_noise(kind: str, num_samples: int, speech_power: Samples, generator: np.random.Generator) -> Samples:
    """Generated noise (num_samples,) of unit power; no recording is in it, so none can leak between sets.

    `pink`: power falls by 3 dB an octave. `speech_shaped`: the long-term spectrum `speech_power` (257,).
    `babble`: four such voices, each with slow swings of its own in loudness, as of syllables and pauses.
    """
    frequencies_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    if kind == "pink":
        amplitude = 1 / np.sqrt(np.maximum(frequencies_hz, 50))
    else:
        amplitude = np.sqrt(np.interp(frequencies_hz, np.linspace(0, SAMPLE_RATE / 2, 257), speech_power))

    def shaped(gain: Samples) -> Samples:
        spectrum = np.fft.rfft(generator.standard_normal(num_samples)) * gain
        return np.fft.irfft(spectrum, num_samples)

    noise = np.zeros(num_samples)
    if kind == "babble":
        syllables = np.asarray((frequencies_hz >= 0.5) & (frequencies_hz <= 6), dtype=np.float64)
        for _ in range(4):
            swing = shaped(syllables)
            loudness = np.clip(1 + swing / max(float(swing.std()), 1e-12), 0, None)
            noise += loudness * shaped(amplitude)
    else:
        noise = shaped(amplitude)
    unit_power: Samples = noise / np.sqrt(np.mean(noise**2))
    return unit_power


def reverberate(dry: Waveform, impulse_response: Samples) -> Samples:
    """`dry` in the room, as long as it was and in time with it: the direct sound arrives without delay."""
    size = len(dry) + len(impulse_response) - 1
    spectrum = np.fft.rfft(dry, size) * np.fft.rfft(impulse_response, size)
    return np.fft.irfft(spectrum, size)[: len(dry)]


def mix(speech: Samples, noise: Samples, snr_db: float) -> Samples:
    """Speech plus noise (of unit power), scaled so that their mean powers are `snr_db` apart."""
    noise_power = float(np.mean(speech**2)) / 10 ** (snr_db / 10)
    return speech + noise * math.sqrt(noise_power)


def level_like(mixture: Samples, dry: Waveform) -> Waveform:
    """The mixture at the dry recording's power, or quieter where its peak would exceed `PEAK_LIMIT`."""
    same_power = math.sqrt(float(np.mean(dry.astype(np.float64) ** 2)) / float(np.mean(mixture**2)))
    gain = min(same_power, PEAK_LIMIT / float(np.abs(mixture).max()))
    return np.asarray(mixture * gain, dtype=np.float32)


@dataclass(frozen=True)
class FarFieldLabel:
    """What was done to a recording; written into its manifest line."""

    room: Room
    distance_m: float
    rt60_s: float  # measured from the impulse response that was used
    snr_db: float
    noise: str

    def fields(self) -> dict[str, Any]:
        """The label as manifest fields."""
        return {
            "simulated": True,
            "room": self.room.room_id,
            "room_dims_m": list(self.room.dims_m),
            "distance_m": round(self.distance_m, 2),
            "rt60_asked_s": self.room.rt60_asked_s,
            "rt60_s": round(self.rt60_s, 2),
            "snr_db": self.snr_db,
            "noise": self.noise,
        }


def simulate_far_field(
    name: str, dry: Waveform, room: Room, noise_kind: str, speech_power: Samples, seed: int
) -> tuple[Waveform, FarFieldLabel]:
    """The recording as a microphone across the room hears it, and the label that says what was done."""
    generator = random.Random(f"{seed} far field {name}")
    placement = draw_placement(room.dims_m, generator)
    snr_db = round(SNR_RANGE_DB[0] + (SNR_RANGE_DB[1] - SNR_RANGE_DB[0]) * generator.random(), 1)
    impulse_response = simulate_impulse_response(room, placement)
    noise_seed = int.from_bytes(_rank(name, seed, "noise")[:8], "big")
    noise = make_noise(noise_kind, len(dry), speech_power, np.random.default_rng(noise_seed))
    mixture = mix(reverberate(dry, impulse_response), noise, snr_db)
    rt60_s = schroeder_rt60(impulse_response)
    return level_like(mixture, dry), FarFieldLabel(room, placement.distance_m, rt60_s, snr_db, noise_kind)


# --- Opus ---------------------------------------------------------------------------------------------------


def encode_opus(waveform: Waveform, serial: int) -> bytes:
    """An Ogg Opus file of a 16 kHz waveform, 24 to 32 kbit/s, the same bytes each time.

    libsndfile gives each Ogg stream a random serial number; here it is `serial` (32 bits).
    """
    import soundfile

    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", SAMPLE_RATE, 1, "OPUS", format="OGG", compression_level=OPUS_COMPRESSION_LEVEL
    ) as file:
        file.write(waveform)
    return with_ogg_serial(buffer.getvalue(), serial)


def _ogg_crc_table() -> list[int]:
    table = []
    for byte in range(256):
        register = byte << 24
        for _ in range(8):
            register = (register << 1) ^ (0x04C11DB7 if register & 0x80000000 else 0)
        table.append(register & 0xFFFFFFFF)
    return table


_OGG_CRC = _ogg_crc_table()


def with_ogg_serial(ogg: bytes, serial: int) -> bytes:
    """The Ogg file (one stream) with another serial number, page checksums renewed (RFC 3533, section 6)."""
    pages = bytearray(ogg)
    start = 0
    while start < len(pages):
        # Header: "OggS", …, serial at 14, checksum at 22, number of segments at 26, then their lengths.
        segments = pages[start + 26]
        end = start + 27 + segments + sum(pages[start + 27 : start + 27 + segments])
        pages[start + 14 : start + 18] = serial.to_bytes(4, "little")
        pages[start + 22 : start + 26] = bytes(4)
        checksum = 0
        for byte in pages[start:end]:
            checksum = ((checksum << 8) & 0xFFFFFFFF) ^ _OGG_CRC[(checksum >> 24) ^ byte]
        pages[start + 22 : start + 26] = checksum.to_bytes(4, "little")
        start = end
    return bytes(pages)


# --- The folder ---------------------------------------------------------------------------------------------

_TOP_FOLDERS = ("train_opus", "val_opus", "test_opus")
# Where a set's manifest lies, and the folder beside it that holds the audio, as in the course's archive.
_PLACES = {
    "train": (Path("train_opus"), "audio"),
    "validation": (Path("val_opus"), "audio"),
    "crowd": (Path("test_opus/crowd"), "crowd"),
    "farfield": (Path("test_opus/farfield"), "farfield"),
}


def build_sample(
    recordings: list[Recording], folder: Path, seed: int, whole: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Writes all four sets (see `choose`) under `folder` and returns their manifest rows by set.

    A recording whose normalised text has characters outside the alphabet is left out with a warning.

    Raises:
        AudioError: a recording is not audio.
        ConfigError: too few recordings for one of the sets.
        OutputError: a file could not be written.
    """
    import pyroomacoustics as pra

    # Threads share out the echoes, so rounding, and with it every far-field file, depends on their number.
    pra.constants.set("num_threads", 1)
    texts = dict(_usable_texts(recordings))
    waveforms = {recording.name: decode_wav(recording) for recording in recordings if recording.name in texts}
    chosen = choose({name: len(waveform) / SAMPLE_RATE for name, waveform in waveforms.items()}, seed, whole)
    speech_power = long_term_spectrum(waveforms[name] for name in chosen["train"])
    rows: dict[str, list[dict[str, Any]]] = {}
    total = NUM_ROOMS + sum(map(len, chosen.values()))
    with progress_bar("sample", total) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        rooms: list[Room] = []
        for room in draw_rooms(seed):
            rooms.append(make_room(*room))
            advance(1)
        # By rank, so that every room and every noise gets its share of the utterances.
        far_field_rank = {name: i for i, name in enumerate(_shuffled(chosen["farfield"], seed, "rooms"))}

        def make(use: str, name: str) -> dict[str, Any]:
            waveform, label = waveforms[name], {}
            if use == "farfield":
                turn, room_index = divmod(far_field_rank[name], NUM_ROOMS)
                room, noise = rooms[room_index], NOISES[turn % len(NOISES)]
                waveform, simulated = simulate_far_field(name, waveform, room, noise, speech_power, seed)
                label = simulated.fields()
            source = f"festvox-ru {name}"
            utterance_id = hashlib.md5(source.encode(), usedforsecurity=False).hexdigest()
            place, audio_folder = _PLACES[use]
            audio_filepath = f"{audio_folder}/{utterance_id}.opus"
            opus = encode_opus(waveform, int(utterance_id[:8], 16))
            (folder / place / audio_filepath).write_bytes(opus)
            advance(1)
            return {
                "id": utterance_id,
                "audio_filepath": audio_filepath,
                "text": texts[name],
                "duration": len(waveform) / SAMPLE_RATE,
                "source": source,
                "speaker": SPEAKER,
                **label,
            }

        for use, names in chosen.items():
            place, audio_folder = _PLACES[use]
            (folder / place / audio_folder).mkdir(parents=True)
            rows[use] = list(pool.map(make, [use] * len(names), names))
            write_manifest(folder / place / "manifest.jsonl", rows[use])
    return rows


def _usable_texts(recordings: list[Recording]) -> Iterator[tuple[str, str]]:
    for recording in recordings:
        text = normalise(recording.text)
        foreign = foreign_characters(text)
        if text and not foreign:
            yield recording.name, text
        else:
            reason = f"its text has {foreign!r}, which the alphabet lacks" if foreign else "its text is empty"
            print(f"warning: {recording.name} is left out: {reason}", file=sys.stderr)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvarts data sample`."""
    parser.add_argument(
        "--deb",
        type=Path,
        required=True,
        metavar="PATH",
        help="Debian's festvox-ru package (apt-get download festvox-ru), or the folder it was unpacked to",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("sample"), help="folder to write (default: sample)"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="every sentence, not ten minutes: up to 650 train, to 700 validate, the rest test close and in rooms",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other choices (default: 0)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the sets that are in the folder already"
    )


def run(args: argparse.Namespace) -> int:
    """Builds the folder beside its place first, so that a failure leaves what was there."""
    importlib.import_module("pyroomacoustics")  # if it is not installed, say so before any work is done
    package: Path = args.deb
    output: Path = args.output
    present = [name for name in _TOP_FOLDERS if (output / name).exists()]
    if present and not args.overwrite:
        raise ConfigError(f"{output / present[0]} exists; give another -o, or --overwrite to replace it")
    recordings = read_package(package)
    if package.is_file():
        _report_version(package)
    building = output.resolve().parent / f".{output.resolve().name}.{os.getpid()}.tmp"
    try:
        rows = build_sample(recordings, building, args.seed, args.whole)
        output.mkdir(parents=True, exist_ok=True)
        for name in _TOP_FOLDERS:
            if (output / name).exists():
                shutil.rmtree(output / name)
            (building / name).rename(output / name)
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for use, set_rows in rows.items():
        seconds = sum(row["duration"] for row in set_rows)
        print(f"{output / _PLACES[use][0]}: {len(set_rows)} utterances, {seconds:.1f} s")
    return 0


def _report_version(package: Path) -> None:
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    if digest == KNOWN_SHA256:
        print(f"{package}: festvox-ru {KNOWN_VERSION}, sha256 {digest}")
    else:
        print(
            f"warning: {package} (sha256 {digest}) is not festvox-ru {KNOWN_VERSION}, of which the sample "
            "that ships was made; the result may differ",
            file=sys.stderr,
        )
