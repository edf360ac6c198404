"""Augmentation of the sound itself: speeds, rooms, noises, bands, codecs and levels, drawn anew in every epoch.

`Sound` draws a plan first (which effects, with which values: plain numbers and names, which a preview can show) and
then carries it out. All randomness comes from the generator it is given, so it is a function of (seed, epoch,
utterance), and a resumed run hears exactly what the killed one would have heard.

Every effect keeps time: the first sample that comes out belongs to the first that went in, and all but `Speed` give as
many as they got. A codec's delay is taken away, a room's direct path arrives at once. What comes out is finite, and
within [-1, 1] at the end of the chain, for every finite sound that goes in: silence, one sample, none.

Costs in ms a second of sound, one core of an AMD EPYC: see benchmarks/augment.py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray

from kvarts.errors import AudioError, ConfigError
from kvarts.features import log_mel
from kvarts.frames import SAMPLE_RATE
from kvarts.rooms import NoiseFile, Response, read_noises, read_responses

Features = NDArray[np.float32]  # (frames, 64)
Waveform = NDArray[np.float32]  # (samples,), 16 kHz
Pcm = NDArray[np.int16]  # (samples,), 16 kHz
Drawn = Mapping[str, Any]  # an effect's values for one utterance: numbers with units in their names, texts

_FULL_SCALE = 32_767
_SMALLEST_BLOCK = 4096  # samples of a Fourier transform
_BAND_BINS = 257  # of a filter's gain
_EDGE_DB = 24.0  # an octave beyond a band's edge
_THIRDS_HZ = 1000 * 2 ** (np.arange(-12, 10) / 3)  # 63 Hz to 8 kHz
_CODECS = {  # libsndfile's names
    "mulaw": ("WAV", "ULAW"),
    "alaw": ("WAV", "ALAW"),
    "gsm": ("WAV", "GSM610"),
    "adpcm": ("WAV", "IMA_ADPCM"),
    "opus": ("OGG", "OPUS"),
}


class Effect(Protocol):
    """What can be done to a waveform."""

    @property
    def probability(self) -> float:
        """That an utterance gets it."""

    def draw(self, draw: np.random.Generator) -> Drawn:
        """Values for one utterance."""

    def apply(self, waveform: Waveform, drawn: Drawn) -> Waveform:
        """The waveform (samples,) with the effect of these values; must not change its argument."""


@dataclass(frozen=True)
class Speed:
    """As a tape at another speed: time by 1 / factor, all frequencies times factor (Ko et al., 2015).

    Args:
        probability: that an utterance gets it.
        change: the factor is drawn from 1 - change to 1 + change, evenly.

    Raises:
        ConfigError: a value outside its range.
    """

    probability: float = 1.0
    change: float = 0.1

    def __post_init__(self) -> None:
        _check(self, probability=(0, 1), change=(0, 0.5))

    def draw(self, draw: np.random.Generator) -> Drawn:
        return {"factor": round(float(draw.uniform(1 - self.change, 1 + self.change)), 4)}

    def apply(self, waveform: Waveform, drawn: Drawn) -> Waveform:
        """n samples become n / factor, rounded, at least 1."""
        factor = drawn["factor"]
        if factor == 1 or not len(waveform):
            return waveform
        # "MQ" rejects aliases by 96 dB up to 0.9 of the band and takes half the time of "HQ".
        played: Waveform = soxr.resample(waveform, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ")
        return _of_length(played, max(1, round(len(waveform) / factor)))


@dataclass(frozen=True)
class Room:
    """Speech as a microphone across a room hears it.

    The response is drawn evenly from a folder (`kvarts.rooms`), the folder evenly from several. The direct path arrives
    without delay, and the result has the power that the waveform had.

    Args:
        folder: of one or more room folders, simulated or measured.
        probability: that an utterance gets it.

    Raises:
        ConfigError, AudioError: as `kvarts.rooms.read_responses`.
    """

    folder: str | Sequence[str]
    probability: float = 1.0
    _responses: list[list[Response]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self, probability=(0, 1))
        object.__setattr__(self, "_responses", [read_responses(folder) for folder in _folders(self, self.folder)])

    @property
    def rooms(self) -> set[str]:
        """Names of all rooms."""
        return {response.room for responses in self._responses for response in responses}

    def draw(self, draw: np.random.Generator) -> Drawn:
        folder = int(draw.integers(len(self._responses)))
        number = int(draw.integers(len(self._responses[folder])))
        response = self._responses[folder][number]
        return {"folder": folder, "response": number, "room": response.room, "file": str(response.path)}

    @property
    def responses(self) -> Sequence[Sequence[Response]]:
        """Of each folder."""
        return self._responses

    def response(self, drawn: Drawn) -> Response:
        """The one that was drawn."""
        return self._responses[drawn["folder"]][drawn["response"]]

    def apply(self, waveform: Waveform, drawn: Drawn) -> Waveform:
        response = self.response(drawn)
        return _like(convolve(waveform, response.samples, response.lead), waveform)


@dataclass(frozen=True)
class Noise:
    """Noise from a folder (`kvarts.rooms`), from a place drawn evenly, over and over where it is shorter.

    Args:
        folder: of one or more room folders, or folders of noises; one is drawn evenly, then one of its noises.
        snr_db: the ratio of the mean powers of speech and noise is drawn from these two, evenly in dB.
        probability: that an utterance gets it.

    Raises:
        ConfigError, AudioError: as `kvarts.rooms.read_noises`, or a range that is none.
    """

    folder: str | Sequence[str]
    snr_db: Sequence[float] = (5.0, 25.0)
    probability: float = 1.0
    _noises: list[list[NoiseFile]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self, probability=(0, 1))
        _check_range(self, "snr_db", -30, 100)
        object.__setattr__(self, "_noises", [read_noises(folder) for folder in _folders(self, self.folder)])

    @property
    def noises(self) -> Sequence[Sequence[NoiseFile]]:
        """Of each folder."""
        return self._noises

    def draw(self, draw: np.random.Generator) -> Drawn:
        folder = int(draw.integers(len(self._noises)))
        number = int(draw.integers(len(self._noises[folder])))
        noise = self._noises[folder][number]
        return {
            "folder": folder,
            "noise": number,
            "kind": noise.kind,
            "file": str(noise.path),
            "start": round(float(draw.random()), 6),  # of the noise's length
            "snr_db": round(float(draw.uniform(self.snr_db[0], self.snr_db[1])), 2),
        }

    def apply(self, waveform: Waveform, drawn: Drawn) -> Waveform:
        """Silence stays silence: there is no ratio to it."""
        noise = self._noises[drawn["folder"]][drawn["noise"]].samples
        start = self.first_sample(drawn)
        repeated = np.resize(np.concatenate([noise[start:], noise[:start]]), len(waveform))
        return mixed(waveform, repeated, drawn["snr_db"])

    def first_sample(self, drawn: Drawn) -> int:
        """Of the noise, where it begins."""
        return int(drawn["start"] * len(self._noises[drawn["folder"]][drawn["noise"]].samples))


@dataclass(frozen=True)
class Band:
    """Another microphone: what it hears of the low and high frequencies, and a colour of its own in between.

    A symmetric filter (no delay, no change of phase) of 511 taps, whose gain is 0 dB in the middle of the band on
    average and falls by 24 dB an octave outside it. The result has the power that the waveform had.

    Args:
        low_hz: the lower edge is drawn from these two, evenly in its logarithm.
        high_hz: the upper edge likewise; 8000 Hz and more is none.
        tilt_db: of an octave, drawn from minus to plus so much.
        ripple_db: standard deviation of the gain, a value each third of an octave and straight lines between them.
        probability: that an utterance gets it.

    Raises:
        ConfigError: a range that is none.
    """

    low_hz: Sequence[float] = (20.0, 250.0)
    high_hz: Sequence[float] = (3500.0, 12000.0)
    tilt_db: float = 3.0
    ripple_db: float = 2.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check(self, probability=(0, 1), tilt_db=(0, 12), ripple_db=(0, 12))
        _check_range(self, "low_hz", 1, 1000)
        _check_range(self, "high_hz", 1500, 20_000)

    def draw(self, draw: np.random.Generator) -> Drawn:
        return {
            "low_hz": round(float(np.exp(draw.uniform(*np.log(self.low_hz)))), 1),
            "high_hz": round(float(np.exp(draw.uniform(*np.log(self.high_hz)))), 1),
            "tilt_db": round(float(draw.uniform(-self.tilt_db, self.tilt_db)), 2),
            "ripple_db": [round(float(gain), 2) for gain in draw.normal(0, self.ripple_db, len(_THIRDS_HZ))],
        }

    def apply(self, waveform: Waveform, drawn: Drawn) -> Waveform:
        return _like(convolve(waveform, *self.filter(drawn)), waveform)

    def filter(self, drawn: Drawn) -> tuple[Waveform, int]:
        """Its 511 taps, and the middle one's index."""
        bins_hz = np.linspace(0, SAMPLE_RATE / 2, _BAND_BINS)
        octaves = np.log2(np.maximum(bins_hz, 20) / 1000)
        gain_db = drawn["tilt_db"] * octaves + np.interp(octaves, np.log2(_THIRDS_HZ / 1000), drawn["ripple_db"])
        gain_db -= gain_db[(bins_hz > 300) & (bins_hz < 3400)].mean()
        below, above = np.log2(drawn["low_hz"] / 1000) - octaves, octaves - np.log2(drawn["high_hz"] / 1000)
        gain_db -= _EDGE_DB * (np.maximum(below, 0) + np.maximum(above, 0))
        return symmetric_filter(10 ** (gain_db / 20))


@dataclass(frozen=True)
class Codec:
    """Through a telephone or a messenger, without the delay: what a codec leaves of the sound.

    mulaw, alaw  G.711 at 8 kHz, 64 kbit/s, in a telephone's band (300 to 3400 Hz, drawn a little)
    gsm          GSM 06.10 full rate at 8 kHz, 13 kbit/s, in the same band
    adpcm        IMA ADPCM at 8 or 16 kHz, 4 bits a sample: cheap wireless microphones
    opus         Opus at 8 or 16 kHz, 6 to 16 kbit/s

    GSM takes 5 ms of computing for a second of sound and Opus 30, the others less than one: hence the weights.

    Args:
        weights: how often each is drawn, relative to the others.
        probability: that an utterance gets one.

    Raises:
        ConfigError: an unknown codec, or weights that are none.
    """

    weights: Mapping[str, float] = field(
        default_factory=lambda: {"mulaw": 1.0, "alaw": 1.0, "gsm": 0.5, "adpcm": 0.5, "opus": 0.02}
    )
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check(self, probability=(0, 1))
        for name, weight in self.weights.items():
            if name not in _CODECS:
                known = ", ".join(_CODECS)
                raise ConfigError(f"augment: weights.{name} of Codec: no codec of that name; choose from {known}")
            if not (_is_number(weight) and weight >= 0):
                raise ConfigError(f"augment: weights.{name}={weight} of Codec: must be a number from 0 on")
        if not sum(self.weights.values()) > 0:
            raise ConfigError("augment: weights of Codec: one must be above 0")

    def draw(self, draw: np.random.Generator) -> Drawn:
        weights = np.array(list(self.weights.values()), dtype=np.float64)
        codec = str(draw.choice(list(self.weights), p=weights / weights.sum()))
        is_telephone = codec in ("mulaw", "alaw", "gsm")
        rate_hz = 8000 if is_telephone or draw.random() < 0.5 else SAMPLE_RATE
        drawn = {"codec": codec, "rate_hz": rate_hz}
        if is_telephone:
            drawn |= {"low_hz": round(draw.uniform(150, 350), 1), "high_hz": round(draw.uniform(3200, 3700), 1)}
        if codec == "opus":
            drawn["kbit_s"] = round(draw.uniform(6, 16), 1)
        return drawn

    def apply(self, waveform: Waveform, drawn: Drawn) -> Waveform:
        peak = float(np.abs(waveform).max(initial=0))
        if peak == 0:
            return waveform
        # Codecs take nothing beyond full scale.
        sent = waveform / np.float32(max(1.0, peak))
        rate = drawn["rate_hz"]
        if rate != SAMPLE_RATE:
            sent = soxr.resample(sent, SAMPLE_RATE, rate, quality="MQ")
        if "low_hz" in drawn:
            bins_hz = np.linspace(0, rate / 2, _BAND_BINS)
            octaves = np.log2(np.maximum(bins_hz, 1))
            outside = np.maximum(np.log2(drawn["low_hz"]) - octaves, 0)
            outside = outside + np.maximum(octaves - np.log2(drawn["high_hz"]), 0)
            sent = convolve(sent, *symmetric_filter(10 ** (-_EDGE_DB * outside / 20)))
        heard = _coded(sent, rate, drawn) if len(sent) else sent
        if rate != SAMPLE_RATE:
            heard = soxr.resample(heard, rate, SAMPLE_RATE, quality="MQ")
        return _of_length(np.nan_to_num(heard), len(waveform))


def _coded(sent: Waveform, rate: int, drawn: Drawn) -> Waveform:
    """The sound written by libsndfile in a codec, and read again, in time; some codecs fill up their last block."""
    form, subtype = _CODECS[drawn["codec"]]
    # libsndfile maps 0…1 linearly to 256…6 kbit/s.
    level = {"compression_level": 1 - (drawn["kbit_s"] - 6) / 250} if "kbit_s" in drawn else {}
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, subtype, format=form, **level) as coder:
        coder.write(np.clip(sent, -1, 1))
    file.seek(0)
    heard: Waveform = soundfile.read(file, dtype="float32")[0]
    return heard


@dataclass(frozen=True)
class Gain:
    """Louder or quieter, drawn evenly in dB.

    Args:
        gain_db: lowest and highest.
        probability: that an utterance gets it.

    Raises:
        ConfigError: a range that is none.
    """

    gain_db: Sequence[float] = (-20.0, 6.0)
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check(self, probability=(0, 1))
        _check_range(self, "gain_db", -60, 30)

    def draw(self, draw: np.random.Generator) -> Drawn:
        return {"gain_db": round(float(draw.uniform(self.gain_db[0], self.gain_db[1])), 2)}

    def apply(self, waveform: Waveform, drawn: Drawn) -> Waveform:
        return waveform * np.float32(10 ** (drawn["gain_db"] / 20))


@dataclass(frozen=True)
class Sound:
    """Effects one after the other, on all utterances but a share that stays as it was recorded.

    Args:
        steps: the effects, in this order.
        close_share: the probability that an utterance stays clean, so that close speech is not unlearnt.

    Raises:
        ConfigError: a share outside [0, 1].
    """

    steps: Sequence[Effect]
    close_share: float = 0.3

    def __post_init__(self) -> None:
        _check(self, close_share=(0, 1))

    @property
    def rooms(self) -> set[str]:
        """Names of the rooms that are trained in."""
        return set().union(*(step.rooms for step in self.steps if isinstance(step, Room)))

    def plan(self, draw: np.random.Generator) -> list[tuple[Effect, Drawn]]:
        """What is done to one utterance: effects with their values; nothing where it stays clean."""
        if draw.random() < self.close_share:
            return []
        return [(step, step.draw(draw)) for step in self.steps if draw.random() < step.probability]

    def features(
        self, clean: Callable[[], Features], samples: Callable[[], Pcm], draw: np.random.Generator
    ) -> Features:
        """Log-mel features (frames, 64) of an augmented utterance.

        Args:
            clean: gives its features as they are, perhaps kept on disk.
            samples: gives its samples, as `to_pcm` makes them.
            draw: of the utterance and the epoch.
        """
        plan = self.plan(draw)
        return log_mel(carried_out(plan, from_pcm(samples()))) if plan else clean()


def to_pcm(waveform: Waveform) -> Pcm:
    """Samples as integers, in half the memory: 32,767 is full scale."""
    pcm: Pcm = np.rint(waveform * np.float32(_FULL_SCALE)).astype(np.int16)
    return pcm


def from_pcm(samples: Pcm) -> Waveform:
    """What `to_pcm` was given, but for the rounding: noise 98 dB below full scale."""
    return samples.astype(np.float32) * np.float32(1 / _FULL_SCALE)


def carried_out(plan: Sequence[tuple[Effect, Drawn]], waveform: Waveform) -> Waveform:
    """The waveform after all effects, quieter where it would exceed [-1, 1].

    Raises:
        AudioError: samples that are not finite.
    """
    if not len(waveform):
        return waveform
    if not (np.isfinite(waveform.min()) and np.isfinite(waveform.max())):
        raise AudioError("the waveform has samples that are not numbers (NaN or infinity): repair the audio")
    for effect, drawn in plan:
        waveform = effect.apply(waveform, drawn)
    peak = max(-float(waveform.min()), float(waveform.max()))
    return waveform / np.float32(peak) if peak > 1 else waveform


def convolve(waveform: Waveform, response: Waveform, lead: int = 0) -> Waveform:
    """The waveform through a filter: (samples,), as many as it has; sample `lead` of the response is time 0.

    By overlap-save (Oppenheim and Schafer, "Discrete-Time Signal Processing", section 8.7.3), blocks as rows of one
    matrix. Those of two to four times the response are fastest (from 511 to 12,000 taps, 0.09 to 0.3 ms a second of
    sound on one core); a transform of the whole waveform takes 0.8 ms.
    """
    length, taps = len(waveform), len(response)
    if not length:
        return waveform
    size = max(_SMALLEST_BLOCK, 2 ** math.ceil(math.log2(2 * taps)))
    hop = size - taps + 1
    blocks = -(-length // hop)
    padded = torch.zeros(blocks * hop + taps - 1)
    padded[taps - 1 - lead : taps - 1 - lead + length] = torch.from_numpy(waveform)
    spectra = torch.fft.rfft(padded.unfold(0, size, hop))
    spectra *= torch.fft.rfft(torch.from_numpy(response), size)
    filtered: Waveform = torch.fft.irfft(spectra, size)[:, taps - 1 :].reshape(-1)[:length].numpy()
    return filtered


def symmetric_filter(gain: NDArray[np.float64]) -> tuple[Waveform, int]:
    """Taps of a filter without delay, for `convolve`, and the middle one's index.

    By frequency sampling: the inverse transform of the gains (bins,), from 0 Hz to half the rate, under a Hann window.
    """
    bins = len(gain)
    taps = np.roll(np.fft.irfft(gain, 2 * (bins - 1)), bins - 1)[1:]  # the middle one at bins - 2
    return (taps * np.hanning(len(taps) + 2)[1:-1]).astype(np.float32), bins - 2


def mixed(speech: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """Speech plus noise, (samples,) each, scaled so that their mean powers are `snr_db` apart."""
    noise_power = power(noise)
    if noise_power == 0:
        return speech
    return speech + noise * np.float32(math.sqrt(power(speech) / noise_power / 10 ** (snr_db / 10)))


def power(waveform: Waveform) -> float:
    """Mean of the squares; 0 of no samples."""
    return float(np.dot(waveform, waveform)) / max(1, len(waveform))


def _like(waveform: Waveform, reference: Waveform) -> Waveform:
    """The waveform scaled to the reference's power."""
    is_power = power(waveform)
    return waveform * np.float32(math.sqrt(power(reference) / is_power)) if is_power > 0 else waveform


def _of_length(waveform: Waveform, length: int) -> Waveform:
    return waveform[:length] if len(waveform) >= length else np.pad(waveform, (0, length - len(waveform)))


def _folders(effect: object, folder: str | Sequence[str]) -> list[Path]:
    names = [folder] if isinstance(folder, str) else list(folder) if isinstance(folder, Sequence) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"augment: folder={folder} of {type(effect).__name__}: must be a path, or a list of paths")
    return [Path(name) for name in names]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(effect: object, **limits: tuple[float, float]) -> None:
    for name, (low, high) in limits.items():
        value = getattr(effect, name)
        if not (_is_number(value) and low <= value <= high):
            kind = type(effect).__name__
            raise ConfigError(f"augment: {name}={value} of {kind}: must be a number from {low:g} to {high:g}")


def _check_range(effect: object, name: str, low: float, high: float) -> None:
    value = getattr(effect, name)
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value))
    if not (is_pair and low <= value[0] <= value[1] <= high):
        kind = type(effect).__name__
        raise ConfigError(f"augment: {name}={value} of {kind}: must be two rising numbers from {low:g} to {high:g}")
