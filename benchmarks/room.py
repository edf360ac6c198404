"""How well rooms are measured from claps: errors of RT60 and DRR over random simulated rooms.

    python benchmarks/room.py [--rooms 60] [--claps 4] [--noise-db 20 30 40] [--kinds burst decay hand double impulse]
                              [--sweep] [--folder DIR] [-o FILE]

Rooms are pyroomacoustics' shoeboxes, of three kinds: walls alike at all frequencies, with the air's absorption, and
walls that absorb high frequencies more; RT60 from 0.2 to 1 s, DRR from -6 to 8 dB. Or, with --folder, the responses of
a room folder, such as one of `kvarts augment rooms`, whose walls also scatter. The noise is pink, and so far below
the 10 ms of a clap that are loudest in the room. RT60 (T30) and DRR of the response put in are compared with what
`kvarts room measure` makes of the recording: RT60 on all frequencies and, because claps say nothing of what is lower,
from 177 Hz on. Writes a JSON line for each measurement.
"""

import argparse
import json
import math
import random
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from kvarts.errors import AudioError
from kvarts.room import measure_recording
from kvarts.room_response import LEAD, drr_db, exponential_sweep, in_bands, schroeder_rt60
from kvarts.rooms import read_responses

RATE = 16_000
KINDS = ("burst", "decay", "hand", "double", "impulse")
Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Room:
    """A response, (samples,), and what it says."""

    response: Samples
    direct_sample: int
    rt60_s: float
    rt60_above_s: float  # from 177 Hz on
    drr_db: float
    kind: str


def make_room(seed: int) -> Room:
    """A room of its own for each seed; draws again until RT60 and DRR are in range."""
    import pyroomacoustics as pra

    generator = random.Random(f"{seed} measured room")
    while True:
        dims = (generator.uniform(2.5, 9), generator.uniform(2.3, 7), generator.uniform(2.4, 3.4))
        kind = generator.choice(["flat", "air", "soft"])
        try:
            absorption, order = pra.inverse_sabine(generator.uniform(0.2, 1.0), dims)
        except ValueError:  # no walls are dull enough
            continue
        if order > 70:  # minutes of reflections
            continue
        octaves = [min(0.95, absorption * share) for share in (0.9, 0.95, 1, 1, 1.05, 1.1)]
        centres = [125, 250, 500, 1000, 2000, 4000]
        walls = {"coeffs": octaves, "center_freqs": centres} if kind == "soft" else absorption
        source, microphone = (
            (generator.uniform(0.4, dims[0] - 0.4), generator.uniform(0.4, dims[1] - 0.4), generator.uniform(0.6, 1.8))
            for _ in range(2)
        )
        distance_m = math.dist(source, microphone)
        if not 0.5 < distance_m < 5:
            continue
        box = pra.ShoeBox(dims, fs=RATE, materials=pra.Material(walls), max_order=order, air_absorption=kind != "flat")
        box.add_source(source)
        box.add_microphone(microphone)
        box.compute_rir()
        response = np.asarray(box.rir[0][0], dtype=np.float64)
        arrival = distance_m / box.c * RATE + pra.constants.get("frac_delay_length") // 2
        direct = round(arrival) - 2 + int(np.argmax(np.abs(response[round(arrival) - 2 : round(arrival) + 3])))
        room = described(response, direct, kind)
        if 0.2 <= room.rt60_s <= 1 and -6 <= room.drr_db <= 8:
            return room


def described(response: Samples, direct: int, kind: str) -> Room:
    above = in_bands(response)[1:].sum(axis=0)[max(direct - 40, 0) :]
    rt60_s = schroeder_rt60(response[max(direct - 40, 0) :])
    return Room(response, direct, rt60_s, schroeder_rt60(above), drr_db(response, direct), kind)


def band(sound: Samples, low_hz: float, high_hz: float) -> Samples:
    size = 2 * len(sound)
    hz = np.fft.rfftfreq(size, 1 / RATE)
    gain = 1 / np.sqrt(1 + (low_hz / np.maximum(hz, 1)) ** 6) / np.sqrt(1 + (hz / high_hz) ** 10)
    return np.asarray(np.fft.irfft(np.fft.rfft(sound, size) * gain, size)[: len(sound)])


def make_clap(kind: str, generator: np.random.Generator) -> Samples:
    """(256,): a burst of noise of 2 to 5 ms, one that decays, a hand clap with a resonance, two in one, an impulse."""
    clap, seconds = np.zeros(256), np.arange(240) / RATE
    if kind == "impulse":
        clap[40] = 1
        return clap
    if kind == "double":
        first, second = make_clap("decay", generator), make_clap("decay", generator)
        delay = int(generator.integers(8, 40))
        first[delay:] += generator.uniform(0.3, 0.7) * second[:-delay]
        return first
    if kind == "burst":
        length = int(generator.integers(32, 80))
        clap[16 : 16 + length] = generator.standard_normal(length) * np.hanning(length)
    else:
        clap[16:] = generator.standard_normal(240) * np.exp(-seconds / 0.001)
    if kind == "hand":
        ring = np.exp(-seconds / 0.0012) * np.sin(2 * np.pi * generator.uniform(900, 2200) * seconds)
        clap += 0.2 * np.convolve(clap, ring)[:256]
    return band(clap, generator.uniform(150, 400), generator.uniform(5000, 7500))


def pink(samples: int, generator: np.random.Generator) -> Samples:
    """Noise of unit power, which falls by 3 dB an octave from 50 Hz on."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 50)), samples)
    return np.asarray(noise / noise.std())


def loudest(sound: Samples) -> float:
    """The mean square of the 10 ms of it that are loudest."""
    return float(np.convolve(sound**2, np.full(160, 1 / 160), "same").max())


def make_recording(room: Room, excitations: Sequence[Samples], noise_db: float, seed: int) -> Samples:
    """Each sound in the room, 2 s and more apart, and 10 s of silence; 0.7 is the highest peak."""
    generator = np.random.default_rng(seed)
    parts, power = [np.zeros(RATE)], 0.0
    for excitation in excitations:
        heard = np.convolve(excitation * generator.uniform(0.7, 1.3), room.response)
        power = max(power, loudest(heard))
        parts += [heard, np.zeros(2 * RATE + int(generator.integers(0, 4000)))]
    recording = np.concatenate([*parts, np.zeros(10 * RATE)])
    recording += math.sqrt(power) * 10 ** (-noise_db / 20) * pink(len(recording), generator)
    return np.asarray(0.7 * recording / np.abs(recording).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=60)
    parser.add_argument("--claps", type=int, default=4)
    parser.add_argument("--noise-db", type=float, nargs="+", default=[20, 30, 40])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="each room gets one, in turn")
    parser.add_argument("--sweep", action="store_true", help="play a sweep of 5 s instead")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="measure in these rooms, evenly chosen responses")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE")
    args = parser.parse_args()
    sweep = exponential_sweep(5, RATE) if args.sweep else None
    if args.folder is None:
        rooms = [make_room(seed) for seed in range(args.rooms)]
    else:
        found = read_responses(args.folder)
        chosen = found[:: max(1, len(found) // args.rooms)][: args.rooms]
        rooms = [described(one.samples.astype(np.float64), one.lead, one.room) for one in chosen]
    with tempfile.TemporaryDirectory() as folder, args.output.open("w") if args.output else nullcontext() as file:
        for noise_db in args.noise_db:
            errors = []
            for number, room in enumerate(rooms):
                kind = "sweep" if args.sweep else args.kinds[number % len(args.kinds)]
                generator = np.random.default_rng([7, number])
                sounds = [sweep] if sweep is not None else [make_clap(kind, generator) for _ in range(args.claps)]
                path = Path(folder) / "recording.wav"
                recording = make_recording(room, sounds, noise_db, number)
                soundfile.write(path, recording, RATE, subtype="PCM_24")
                try:
                    found = measure_recording(path, sweep=sweep).estimate
                except AudioError as error:
                    print(f"room {number}: {error}")
                    continue
                above_s = schroeder_rt60(in_bands(found.response)[1:].sum(axis=0)[LEAD:])
                drr_error = 10 ** ((found.drr_db - room.drr_db) / 10) - 1
                errors.append((found.rt60_s / room.rt60_s - 1, above_s / room.rt60_above_s - 1, drr_error))
                row = {"room": number, "walls": room.kind, "kind": kind, "noise_db": noise_db, "rt60_s": room.rt60_s}
                row |= {"rt60_above_s": room.rt60_above_s, "rt60_above_found_s": above_s}
                row |= {"rt60_found_s": found.rt60_s, "drr_db": room.drr_db, "drr_found_db": found.drr_db}
                if file:
                    print(json.dumps(row), file=file, flush=True)
            for name, column in zip(("RT60", "RT60 from 177 Hz on", "DRR (linear)"), np.array(errors).T, strict=True):
                spread = " ".join(f"{100 * value:.1f}" for value in np.quantile(np.abs(column), [0.5, 0.9, 0.95, 1]))
                within = 100 * np.mean(np.abs(column) <= 0.15)
                print(
                    f"noise {noise_db:g} dB below, {len(errors)} of {len(rooms)} rooms: {name}: "
                    f"median error {100 * np.median(column):+.1f} %, 50, 90, 95, 100 % of all below {spread} %; "
                    f"{within:.0f} % within 15 %",
                    flush=True,
                )


if __name__ == "__main__":
    main()
