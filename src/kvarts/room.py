"""``kvarts room``: the response and the noise of one's own room, from a recording of claps or of a sweep.

``measure`` writes a room folder that training reads (`kvarts.rooms`): DIR/rooms.jsonl and DIR/rir/ with a response of
each recording, DIR/noises.jsonl and DIR/noise/ with its silence. ``sweep`` writes the sweep to be played.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvarts.errors import AudioError, ConfigError
from kvarts.frames import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvarts.room_response import Estimate

    Samples = NDArray[np.float64]

_LEVEL: Final = 160  # samples, 10 ms, of which a level is taken
_LEAST_SILENCE_S = 2.0
_GOOD_SILENCE_S = 20.0
_SILENCE_DB = 6.0  # above the quietest tenth of the recording, each 0.1 s, is still silence
_SWING_DB = 6.0  # from the quietest tenth of an unsteady noise to its median, at most
_KEPT_CLEAR_S = 0.5  # of the silence found, at both ends
_LONGEST_S = 1.6  # of what is heard after a clap
_SHORTEST_S = 0.4
_CLAP_DB = 15.0  # a clap's loudest 2 ms stand above the noise by this at least
_RISE_DB = 10.0  # and above all of the 50 ms before
_FALL_DB = 6.0  # and 0.2 s later it has fallen by this, or is lost in the noise
_GOOD_DB = 25.0  # above the noise; below, reverberation times are doubtful
_SHARP_DB = 25.0  # of a sweep's pulse above the mean of what surrounds it


@dataclass(frozen=True)
class Clap:
    """A clap found in a recording, or the pulse that a sweep was made."""

    time_s: float
    snr_db: float  # its loudest 2 ms above the noise, both whitened
    fault: str  # why it is not used; empty where it is


@dataclass(frozen=True)
class Measurement:
    """What was found in a recording: (samples,) `noise`, its silence, as it was recorded."""

    path: Path
    claps: tuple[Clap, ...]
    estimate: Estimate
    noise: Samples
    silence_s: tuple[float, float]
    warnings: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand, which has two of its own."""
    parser.description = "Measures rooms: writes the sweep to be played, and finds responses and noise in recordings."
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    measure = commands.add_parser("measure", help="find the room's response and noise in recordings")
    measure.description = (
        "Finds claps and silence in recordings, and writes a room folder: a response of each recording and its noise. "
        "One recording is of one place: a person who claps where speech will come from, a microphone where it will be."
    )
    measure.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING", help="claps, and a minute of silence")
    measure.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="room folder to write")
    measure.add_argument("--sweep", type=Path, metavar="FILE", help="not claps but this sweep was played")
    measure.add_argument(
        "--silence", type=float, nargs=2, metavar=("START", "END"), help="seconds; default: the longest stretch found"
    )
    measure.add_argument("--distance", type=float, metavar="M", help="metres from mouth to microphone, for the record")
    measure.add_argument("--room", metavar="NAME", help="one room for all (default: each by its file's name)")
    measure.add_argument("--picture", type=Path, metavar="PNG", help="draw the decays of energy")
    measure.add_argument("--overwrite", action="store_true", help="replace the room folder's lists")
    sweep = commands.add_parser("sweep", help="write the sweep to be played")
    sweep.description = "Writes a sine that rises from 60 Hz to 7.8 kHz, 16 bits at 48 kHz."
    sweep.add_argument(
        "-o", "--output", type=Path, default=Path("sweep.wav"), metavar="FILE", help="default: sweep.wav"
    )
    sweep.add_argument("--seconds", type=float, default=10.0, metavar="S", help="1 to 60 (default: %(default)g)")
    measure.set_defaults(action=_run_measure)
    sweep.set_defaults(action=_run_sweep)


def run(args: argparse.Namespace) -> int:
    """Measures, or writes the sweep."""
    code: int = args.action(args)
    return code


def _run_sweep(args: argparse.Namespace) -> int:
    from kvarts.room_response import SWEEP_RATE, exponential_sweep

    if not 1 <= args.seconds <= 60:
        raise ConfigError(f"--seconds is {args.seconds:g}; give 1 to 60, 10 is good")
    _write_sound(args.output, exponential_sweep(args.seconds), SWEEP_RATE, "WAV", "PCM_16")
    print(f"{args.output}: {args.seconds:g} s; play it once while recording, then keep silent for a minute")
    return 0


def _run_measure(args: argparse.Namespace) -> int:
    from kvarts.manifest import write_manifest
    from kvarts.rooms import NOISES, ROOMS

    output: Path = args.output
    if args.distance is not None and not 0 < args.distance < 100:
        raise ConfigError(f"--distance is {args.distance:g}; give metres, above 0")
    if not args.overwrite and (output / ROOMS).exists():
        raise ConfigError(f"{output / ROOMS} exists; give another -o, or --overwrite to replace it")
    if args.picture is not None:
        import matplotlib  # noqa: F401  # if it is not installed, say so before any work is done
    sweep = None if args.sweep is None else _strongest_channel(args.sweep)[0]
    measurements = []
    for path in args.recordings:
        measurements.append(measure_recording(path, sweep=sweep, silence_s=args.silence))
        print("\n".join(_table(measurements[-1])))
        for warning in measurements[-1].warnings:
            print(f"warning: {path}: {warning}", file=sys.stderr)
    rooms: list[dict[str, Any]] = []
    noises: list[dict[str, Any]] = []
    for number, one in enumerate(measurements, start=1):
        name = f"{number:04d}.flac"
        response = one.estimate.response
        _write_sound(output / "rir" / name, 0.9 / abs(response).max() * response, SAMPLE_RATE, "FLAC", "PCM_24")
        rooms.append(_room_row(one, f"rir/{name}", args.room or one.path.stem, args.distance))
        if one.noise.any():
            _write_sound(output / "noise" / name, one.noise, SAMPLE_RATE, "FLAC", "PCM_24")
            duration_s = len(one.noise) / SAMPLE_RATE
            noises.append({"audio_filepath": f"noise/{name}", "duration": duration_s, "kind": "measured"})
    write_manifest(output / NOISES, noises)
    write_manifest(output / ROOMS, rooms)
    print(f"{output}: {len(rooms)} responses, {len(noises)} noises")
    if args.picture is not None:
        draw_decays(measurements, args.picture)
        print(f"picture: {args.picture}")
    return 0


def _room_row(one: Measurement, audio_filepath: str, room: str, distance_m: float | None) -> dict[str, Any]:
    from kvarts.room_response import LEAD

    return {
        "audio_filepath": audio_filepath,
        "rt60_s": round(one.estimate.rt60_s, 3),
        "drr_db": round(one.estimate.drr_db, 2),
        **({} if distance_m is None else {"distance_m": distance_m}),
        "direct_sample": LEAD,
        "room": room,
    }


# ----------------------------------------------------------------------------------------------- the recording


def measure_recording(
    path: Path, *, sweep: Samples | None = None, silence_s: Sequence[float] | None = None
) -> Measurement:
    """Finds silence and claps, or a sweep, in a recording, and estimates the room's response.

    Args:
        path: the recording; of several channels the one with the loudest claps is taken.
        sweep: (samples,) at 16 kHz, what was played.
        silence_s: where the silence is, start and end in seconds; found where it is None.

    Raises:
        AudioError: the file cannot be read, is too short, has no silence, or no claps that can be used.
        ConfigError: `silence_s` lies outside the recording, or is too short.
    """
    import numpy as np

    from kvarts.room_response import estimate_response, whitening_filter

    warnings: list[str] = []
    recording, channels = _strongest_channel(path)
    if channels > 1:
        warnings.append(f"of {channels} channels only the loudest is measured")
    if len(recording) < (_LEAST_SILENCE_S + _SHORTEST_S) * SAMPLE_RATE:
        raise AudioError(
            f"{path} is {len(recording) / SAMPLE_RATE:.1f} s long, too short to measure a room: record four claps, "
            "3 s apart, and a minute of silence"
        )
    start, end = _silence(path, recording, silence_s)
    noise = recording[start:end]
    if end - start < _GOOD_SILENCE_S * SAMPLE_RATE:
        warnings.append(
            f"only {(end - start) / SAMPLE_RATE:.1f} s of silence; for noise to train with, record a minute"
        )
    if np.mean(noise == 0) > 0.5:
        warnings.append(
            "the silence is digital zero: something removes the noise, and with it the end of the decay; switch off "
            "noise suppression"
        )
    if sweep is not None:
        claps, heard, noise_heard = _pulse(path, recording, noise, sweep)
    else:
        heard, noise_heard = recording, noise
        whiten = whitening_filter(noise)
        white = np.convolve(recording, whiten)[: len(recording)]
        power = float(np.mean(np.convolve(noise, whiten, "valid") ** 2))
        claps = _claps(path, recording, white, max(power, 1e-9 * float((white**2).max())), (start, end))
    used = [clap for clap in claps if not clap.fault]
    if not used:
        faults = "; ".join(sorted({clap.fault for clap in claps}))
        raise AudioError(f"{path}: {len(claps)} claps, and none can be used: {faults}")
    samples = _length(used, claps, len(recording))
    begins = [round(clap.time_s * SAMPLE_RATE) - 48 for clap in used]
    pieces = [heard[max(begin, 0) : begin + samples] for begin in begins]
    pieces = [np.concatenate([np.zeros(samples - len(piece)), piece]) for piece in pieces]
    if len(used) == 1 and sweep is None:
        warnings.append("one clap only: its own sound cannot be told from the first reflections; clap four times")
    best_db = max(clap.snr_db for clap in used)
    if best_db < _GOOD_DB:
        warnings.append(
            f"the loudest clap is only {best_db:.0f} dB above the noise, so the end of the decay is a guess; clap "
            "louder, or come when it is quieter"
        )
    estimate = estimate_response(pieces, noise_heard)
    if not 0.05 < estimate.rt60_s < 3.5:
        warnings.append(f"a reverberation time of {estimate.rt60_s:.2f} s is hardly a room's; look at --picture")
    return Measurement(path, tuple(claps), estimate, noise, (start / SAMPLE_RATE, end / SAMPLE_RATE), tuple(warnings))


def _strongest_channel(path: Path) -> tuple[Samples, int]:
    """The channel with the highest peak, (samples,) at 16 kHz, and the number of channels.

    The mean of two microphones would be a comb filter.
    """
    import numpy as np

    from kvarts.audio import audio_blocks

    sound = np.concatenate(list(audio_blocks(path, "separate"))).astype(np.float64)
    return sound[:, int(np.argmax(np.abs(sound).max(axis=0)))], sound.shape[1]


def _silence(path: Path, recording: Samples, silence_s: Sequence[float] | None) -> tuple[int, int]:
    """First and last sample, exclusive, of the silence."""
    import numpy as np

    if silence_s is not None:
        start, end = (round(second * SAMPLE_RATE) for second in silence_s)
        if not 0 <= start < end <= len(recording):
            raise ConfigError(
                f"--silence {silence_s[0]:g} {silence_s[1]:g} lies outside {path}, which is "
                f"{len(recording) / SAMPLE_RATE:.1f} s long"
            )
        if end - start < _LEAST_SILENCE_S * SAMPLE_RATE:
            raise ConfigError(f"--silence is {(end - start) / SAMPLE_RATE:.2f} s; give {_LEAST_SILENCE_S:g} s or more")
        return start, end
    levels = (recording[: len(recording) // _LEVEL * _LEVEL].reshape(-1, _LEVEL) ** 2).mean(axis=1)
    smooth = np.convolve(levels, np.full(10, 0.1), "same")  # 0.1 s
    floor, middle = (max(float(level), 1e-12) for level in np.quantile(smooth, [0.1, 0.5]))
    swing_db = 10 * math.log10(middle / floor)
    # Voices next door and gusts swing: where levels in dB are Gaussian, the quietest tenth lies 1.3 standard deviations
    # below the median, and one level in 17,000 lies above four times that, 3.8 above the median. Where half of the
    # recording is far louder than the quietest tenth, it is no noise that swings.
    limit_db = max(_SILENCE_DB, 4 * swing_db) if swing_db < _SWING_DB else _SILENCE_DB
    quiet = smooth <= 10 ** (limit_db / 10) * floor
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(int), [0]])))
    stretches = edges.reshape(-1, 2)
    lengths = stretches[:, 1] - stretches[:, 0]
    margin = round(_KEPT_CLEAR_S * SAMPLE_RATE / _LEVEL)
    longest = int(np.argmax(lengths))
    first, last = (int(place) for place in stretches[longest])
    # Where the recording itself begins or ends no clap is near.
    first += margin if first > 0 else 0
    last -= margin if last < len(levels) else 0
    if (last - first) * _LEVEL < _LEAST_SILENCE_S * SAMPLE_RATE:
        raise AudioError(
            f"{path}: no silence of {_LEAST_SILENCE_S:g} s in it; record a minute in which nothing sounds, or say "
            "where it is with --silence START END"
        )
    return first * _LEVEL, last * _LEVEL


def _claps(path: Path, recording: Samples, white: Samples, power: float, silence: tuple[int, int]) -> list[Clap]:
    """What rises suddenly out of the noise, outside the silence; with a fault where it cannot be used."""
    import numpy as np

    short = 32  # samples, 2 ms
    energy = (white[: len(white) // short * short].reshape(-1, short) ** 2).mean(axis=1) / power
    frame_s = short / SAMPLE_RATE
    before, after, apart = round(0.05 / frame_s), round(0.02 / frame_s), round(0.25 / frame_s)
    loud = np.flatnonzero(energy > 10 ** (_CLAP_DB / 10))
    loud = loud[(loud * short < silence[0]) | (loud * short >= silence[1])]
    if not len(loud):
        raise AudioError(
            f"{path}: no clap in it stands {_CLAP_DB:g} dB above the noise; clap louder, nearer to the microphone, or "
            "come when it is quieter"
        )
    claps: list[Clap] = []
    last = -apart
    for frame in map(int, loud):
        if frame - last < apart:
            continue
        quiet = energy[max(0, frame - before) : max(frame - 1, 0)]
        peak = float(energy[frame : frame + after].max())
        rises = not len(quiet) or peak > 10 ** (_RISE_DB / 10) * max(float(quiet.max()), 1.0)
        if not rises:
            continue
        last = frame
        later = energy[frame + round(0.2 / frame_s) : frame + round(0.25 / frame_s)]
        falls = len(later) and float(later.mean()) < max(10 ** (-_FALL_DB / 10) * peak, 4.0)
        start = max(frame * short - short, 0)
        magnitude = np.abs(white[start : start + 320])
        reference = start + int(np.argmax(magnitude > 0.35 * magnitude.max()))
        snr_db = 10 * math.log10(peak)
        fault = ""
        if not falls:
            fault = "what follows is as loud, so it is no clap; let nothing else sound"
        elif _is_clipped(recording[start : start + 800]):
            fault = "it is clipped; step back, or lower the recording level"
        claps.append(Clap(reference / SAMPLE_RATE, snr_db, fault))
    if not claps:
        raise AudioError(
            f"{path}: it is loud, but no sound in it begins suddenly after quiet, as a clap does; clap, or give --sweep"
        )
    if (
        len(claps) > 3
        and sum(bool(clap.fault) for clap in claps) > len(claps) / 2
        and not any("clipped" in clap.fault for clap in claps)
    ):
        raise AudioError(
            f"{path}: most sounds in it go on as loud as they begin, as in music or speech; record claps in silence"
        )
    gaps = [second.time_s - first.time_s for first, second in pairwise(claps)]
    return [
        Clap(clap.time_s, clap.snr_db, "the next sound comes too soon; leave 3 s between claps")
        if not clap.fault and gap < _SHORTEST_S
        else clap
        for clap, gap in zip(claps, [*gaps, math.inf], strict=True)
    ]


def _is_clipped(sound: Samples) -> bool:
    """Whether two samples in a row are at full scale; a peak brought to it has one."""
    import numpy as np

    full = np.abs(sound) >= 0.999
    return bool(np.any(full[1:] & full[:-1] & (np.sign(sound[1:]) == np.sign(sound[:-1]))))


def _length(used: Sequence[Clap], claps: Sequence[Clap], total: int) -> int:
    """Samples after each clap that nothing else is in; at most 1.6 s, at least as many as `_SHORTEST_S`."""
    import numpy as np

    times = [clap.time_s for clap in claps] + [total / SAMPLE_RATE]
    free_s = [min(time for time in times if time > clap.time_s) - clap.time_s for clap in used]
    return round(float(np.clip(min(free_s) - 0.02, _SHORTEST_S, _LONGEST_S)) * SAMPLE_RATE)


def _pulse(path: Path, recording: Samples, noise: Samples, sweep: Samples) -> tuple[list[Clap], Samples, Samples]:
    """The recording and the noise with the sweep made a pulse, and where the pulse is."""
    import numpy as np

    from kvarts.room_response import compress_sweep

    pulses = compress_sweep(recording, sweep)
    peak = int(np.argmax(np.abs(pulses)))
    near = pulses[max(0, peak - 2 * SAMPLE_RATE) : peak + 2 * SAMPLE_RATE]
    sharpness_db = 10 * math.log10(float(pulses[peak] ** 2) / max(float(np.mean(near**2)), 1e-30))
    if sharpness_db < _SHARP_DB:
        raise AudioError(
            f"{path}: the sweep is not heard in it; give the file that was played to --sweep, and play it louder"
        )
    if peak + _SHORTEST_S * SAMPLE_RATE + len(sweep) > len(recording) + SAMPLE_RATE:
        raise AudioError(f"{path}: it ends before the sweep has died away; go on recording for a minute")
    magnitude = np.abs(pulses[max(0, peak - 80) : peak + 1])
    reference = max(0, peak - 80) + int(np.argmax(magnitude > 0.5 * magnitude.max()))
    compressed = compress_sweep(noise, sweep)[: max(len(noise) - len(sweep), SAMPLE_RATE)]
    snr_db = 10 * math.log10(float(pulses[peak] ** 2) / max(float(np.mean(compressed**2)), 1e-30))
    fault = "it is clipped; turn the sound down" if _is_clipped(recording[peak : peak + len(sweep)]) else ""
    return [Clap(reference / SAMPLE_RATE, snr_db, fault)], pulses, compressed


# ------------------------------------------------------------------------------------------------- what it tells


def noise_kind(noise: Samples) -> str:
    """What the noise sounds like: the slope of its power from 100 Hz to 6 kHz, hum, and whether it is steady."""
    import numpy as np

    if not noise.any():
        return "digital silence"
    window = np.hanning(4096)
    frames = np.lib.stride_tricks.sliding_window_view(noise, 4096)[::2048] * window
    power = np.maximum((np.abs(np.fft.rfft(frames, axis=1)) ** 2).mean(axis=0), 1e-30)
    hz = np.fft.rfftfreq(4096, 1 / SAMPLE_RATE)
    centres = 100 * 2 ** np.arange(0, 6.01, 1 / 3)
    levels_db = [10 * np.log10(np.mean(power[(hz >= at / 2 ** (1 / 6)) & (hz < at * 2 ** (1 / 6))])) for at in centres]
    slope = float(np.polyfit(np.log2(centres), levels_db, 1)[0])
    kinds = {"rising (hiss)": slope > 1.5, "white": slope > -1.5, "pink": slope > -4.5}
    words = [next((kind for kind, fits in kinds.items() if fits), "brown (rumble)")]
    for mains_hz in (50, 60):
        lines = [float(power[np.abs(hz - mains_hz * k).argmin()]) for k in (1, 2, 3)]
        around = [float(np.median(power[np.abs(hz - mains_hz * k) < 25])) for k in (1, 2, 3)]
        if sum(line > 20 * near for line, near in zip(lines, around, strict=True)) >= 2:
            words.append(f"hum of {mains_hz} Hz")
    blocks = noise[: len(noise) // 3200 * 3200].reshape(-1, 3200)
    levels = 10 * np.log10(np.maximum((blocks**2).mean(axis=1), 1e-30))
    if np.quantile(levels, 0.95) - np.quantile(levels, 0.05) > 6:
        words.append("unsteady")
    return ", ".join(words)


def _table(one: Measurement) -> list[str]:
    import numpy as np

    from kvarts.room_response import LEAD, clarity_db, in_bands, schroeder_rt60

    response = one.estimate.response
    octaves = in_bands(response)[:, LEAD:]
    level_db = 10 * math.log10(max(float(np.mean(one.noise**2)), 1e-12))
    return [
        f"{one.path}",
        *(
            f"  clap at {clap.time_s:7.2f} s  {clap.snr_db:5.1f} dB above the noise"
            + (f"  left out: {clap.fault}" if clap.fault else "")
            for clap in one.claps
        ),
        f"  RT60      {one.estimate.rt60_s:6.2f} s (T30)  {schroeder_rt60(response[LEAD:], lowest_db=-25):.2f} s (T20)",
        f"  DRR       {one.estimate.drr_db:6.1f} dB (direct sound: 2.5 ms around its peak)",
        f"  C50       {clarity_db(response, LEAD):6.1f} dB",
        f"  heard     {one.estimate.heard_s:6.2f} s of the decay above the noise; what follows is extrapolated",
        f"  noise     {level_db:6.1f} dB full scale, {noise_kind(one.noise)}, "
        f"from {one.silence_s[0]:.1f} to {one.silence_s[1]:.1f} s",
        "  octave, Hz  " + "".join(f"{band.centre_hz:7d}" for band in one.estimate.bands),
        "  RT60, s     " + "".join(f"{schroeder_rt60(octave):7.2f}" for octave in octaves),
        "  heard, dB   "
        + "".join(f"{band.heard_db:7.0f}" if band.is_heard else "      –" for band in one.estimate.bands),
    ]


def draw_decays(measurements: Sequence[Measurement], path: Path) -> None:
    """The decay curve of each response with the line that RT60 is read from, and the octaves' curves, as PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from kvarts.files import atomic_writer
    from kvarts.room_response import BANDS_HZ, LEAD, decay_curve_db, in_bands

    figure = Figure(figsize=(9, 4 * len(measurements)), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, one in zip(figure.subplots(len(measurements), squeeze=False).flat, measurements, strict=True):
        response = one.estimate.response
        seconds = np.arange(len(response) - LEAD) / SAMPLE_RATE
        for octave, centre_hz in zip(in_bands(response)[:, LEAD:], BANDS_HZ, strict=True):
            panel.plot(seconds, decay_curve_db(octave), linewidth=0.7, label=f"{centre_hz} Hz")
        curve = decay_curve_db(response[LEAD:])
        panel.plot(seconds, curve, "k", linewidth=2, label="all")
        fitted = np.flatnonzero((curve <= -5) & (curve >= -35))
        slope, offset = np.polyfit(seconds[fitted], curve[fitted], 1)
        panel.plot(seconds, slope * seconds + offset, "k--", label=f"T30: {-60 / slope:.2f} s")
        panel.axvline(one.estimate.heard_s, color="grey", linestyle=":", label="extrapolated from here on")
        panel.set(title=one.path.name, xlabel="s after the direct sound", ylabel="energy to come, dB", ylim=(-65, 2))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _write_sound(path: Path, samples: Samples, rate: int, form: str, subtype: str) -> None:
    import soundfile

    from kvarts.files import atomic_writer

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    with atomic_writer(path) as file:
        file.write(buffer.getvalue())
