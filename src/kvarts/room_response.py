"""Room responses: what they say of a room, and how they are found in recordings of claps and of a sweep.

A clap is no impulse: it lasts some milliseconds and has a spectrum of its own, and the first reflections arrive while
it still lasts. So the clap and the response are estimated together (`estimate_response`): a response that begins with
the direct sound at 1, ends in noise that decays, and has a few strong reflections; and for each clap a short waveform
of its own. Where the recording says nothing, in its noise and outside the claps' spectrum, the response goes on as a
noise that decays as what was heard of it did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvarts.frames import SAMPLE_RATE

Samples = NDArray[np.float64]  # (samples,), 16 kHz

DIRECT_S: Final = 0.0025  # on both sides of the direct path's peak
LEAD: Final = 40  # samples before the direct path's peak in an estimated response: 2.5 ms
BANDS_HZ: Final = (125, 250, 500, 1000, 2000, 4000)  # octaves; the first and the last take what lies beyond as well
SWEEP_RATE: Final = 48_000  # Hz; of the file that is played

_PRE = 48  # samples: what of a clap may come before its reference sample, 3 ms
_CLAP = 160  # samples after it, 10 ms
_EARLY = 480  # samples, 30 ms: here single reflections stand out of what decays
_EM_SAMPLES = 3400  # of each clap's recording go into the joint estimate, 0.21 s
_STARTS = (5, 11, 22, 38, 60)  # samples after the reference that a clap is first taken to last
_ROUNDS = (10, 30)  # from each start, and from the best; with 4 and 8 DRR was up to 0.9 dB too low for claps of 4 ms
_NOISE_ORDER = 24  # of the linear prediction that whitens the noise
_BIN = 160  # samples, 10 ms, over which energies are averaged
_MODEL_ERROR = 10**-4.8  # of a clap's energy, a sample of 64: the noise is taken to be no lower
_EXPECTED_SPREAD = 0.2  # of the logarithms of reverberation times in neighbouring octaves
_LATE_DB = 15.0  # a decay that goes on below the noise is fitted where it is no further above it
_LN_60DB = 6 * math.log(10)


# ------------------------------------------------------------------------------------------ what a response says


def schroeder_rt60(impulse_response: Samples, rate: int = SAMPLE_RATE, lowest_db: float = -35.0) -> float:
    """Reverberation time in seconds (T30: the decay from -5 to -35 dB, extrapolated to 60 dB; T20 to -25 dB).

    The decay curve is the backward integral of the squared impulse response (Schroeder, "New method of
    measuring reverberation time", 1965); a straight line is fitted to it by least squares (ISO 3382-2).
    """
    energy = np.cumsum(impulse_response[::-1] ** 2)[::-1]
    decay_db = 10 * np.log10(energy[energy > 0] / energy[0])
    fitted = np.flatnonzero((decay_db <= -5) & (decay_db >= lowest_db))
    slope_db_per_s = np.polyfit(fitted / rate, decay_db[fitted], 1)[0]
    return float(-60 / slope_db_per_s)


def decay_curve_db(response: Samples) -> Samples:
    """Schroeder's decay curve, (samples,), 0 dB at the first sample."""
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    return np.asarray(10 * np.log10(np.maximum(energy / energy[0], 1e-30)), dtype=np.float64)


def drr_db(response: Samples, direct_sample: int) -> float:
    """Direct-to-reverberant ratio: the energy within 2.5 ms of the direct path's peak to all that comes later.

    As Zahorik has it ("Direct-to-reverberant energy ratio sensitivity", 2002) and the ACE challenge measured it.
    """
    reach = round(DIRECT_S * SAMPLE_RATE)
    end = direct_sample + reach + 1
    direct = float(np.sum(response[max(0, direct_sample - reach) : end] ** 2))
    return 10 * math.log10(direct / max(float(np.sum(response[end:] ** 2)), 1e-30))


def clarity_db(response: Samples, direct_sample: int, early_s: float = 0.05) -> float:
    """C50: the energy of the first 50 ms from the direct sound on to all that comes later (ISO 3382-1)."""
    start = max(0, direct_sample - round(DIRECT_S * SAMPLE_RATE))
    end = direct_sample + round(early_s * SAMPLE_RATE)
    return 10 * math.log10(float(np.sum(response[start:end] ** 2)) / max(float(np.sum(response[end:] ** 2)), 1e-30))


def octaves(size: int) -> NDArray[np.float64]:
    """Gains of octave filters at the frequencies of a real FFT of `size` samples, (bands, size // 2 + 1).

    Their squares add up to 1; neighbours cross over within half an octave, without delay.
    """
    octave = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1e-3))
    edges = [math.log2(centre) + 0.5 for centre in BANDS_HZ[:-1]]
    above = [np.sin(np.pi / 2 * np.clip((octave - edge + 0.25) / 0.5, 0, 1)) for edge in edges]
    below = [np.cos(np.pi / 2 * np.clip((octave - edge + 0.25) / 0.5, 0, 1)) for edge in edges]
    ones = np.ones_like(octave)
    return np.array([low * high for low, high in zip([ones, *above], [*below, ones], strict=True)])


def in_bands(response: Samples) -> NDArray[np.float64]:
    """A response in octave bands, (bands, samples)."""
    size = _fft_size(2 * len(response))
    spectrum = np.fft.rfft(response, size)
    return np.asarray(np.fft.irfft(octaves(size) * spectrum, size)[:, : len(response)], dtype=np.float64)


# ---------------------------------------------------------------------------------------------- the estimate


@dataclass(frozen=True)
class Band:
    """What was heard of the decay in an octave band."""

    centre_hz: int
    rt60_s: float  # of the exponential that goes on where noise covers the decay
    heard_db: float  # how far the decay is heard: from 20 ms after the direct sound down to the noise
    is_heard: bool  # else neighbouring bands stand in


@dataclass(frozen=True)
class Estimate:
    """A room response found in a recording.

    Attributes:
        response: (samples,), the direct path's peak, 1 high, at sample `LEAD`.
        claps: (claps, 208) what was heard directly of each clap or sweep, noise whitened, from 3 ms before its
            reference sample.
        bands: a Band for each octave.
        heard_s: up to here after the direct sound the response is the recording's, later it is extrapolated.
    """

    response: Samples
    claps: NDArray[np.float64]
    bands: tuple[Band, ...]
    heard_s: float

    @property
    def rt60_s(self) -> float:
        """Reverberation time, T30."""
        return schroeder_rt60(self.response[LEAD:])

    @property
    def drr_db(self) -> float:
        """Direct-to-reverberant ratio."""
        return drr_db(self.response, LEAD)


@dataclass(frozen=True)
class _Joint:
    """Claps and the beginning of the response that fit together."""

    likelihood: float
    claps: NDArray[np.float64]  # (claps, _PRE + _CLAP)
    early: Samples  # (_EARLY,) variances of the response's samples 1, 2, …


def whitening_filter(noise: Samples, order: int = _NOISE_ORDER) -> Samples:
    """Taps (order + 1,) of the filter that makes white noise of this one: its prediction error, minimum phase."""
    window = np.hanning(512)
    frames = np.lib.stride_tricks.sliding_window_view(noise, 512)[::256] * window
    correlation = np.fft.irfft((np.abs(np.fft.rfft(frames, axis=1)) ** 2).mean(axis=0))[: order + 1]
    if correlation[0] <= 0:
        return np.concatenate([[1.0], np.zeros(order)])
    correlation[0] *= 1.0001
    predicted = np.linalg.solve(_toeplitz(correlation[:order]), correlation[1:])
    return np.concatenate([[1.0], -predicted])


def estimate_response(recordings: Sequence[Samples], noise: Samples, *, seed: int = 0) -> Estimate:
    """The room response in recordings of claps at one place, heard at one place.

    Expectation maximisation, over and over: given the claps, the response is Gaussian, with variances that decay
    exponentially, those of the first 30 ms each estimated on its own (Tipping, "Sparse Bayesian learning", 2001), so
    that single reflections stand out; given the response and its uncertainty, each clap is a least-squares fit of
    13 ms. It begins with several lengths of the clap, and the likeliest result is taken: begun with a longer clap, it
    would take early reflections for the clap's own. Then the variances are estimated anew in octave bands, without
    the noise's, and a response is drawn from what the recording leaves possible (Papandreou and Yuille, "Gaussian
    sampling by local perturbations", 2010): what is heard comes out as it was, what is not has the energy expected.

    Args:
        recordings: (samples,) each, of the same length, the direct sound at sample 48 (3 ms), with nothing of another
            clap in them.
        noise: (samples,) the same microphone in silence, at least 512 of them.
        seed: of what is drawn.
    """
    whiten = whitening_filter(noise)
    variance = float(np.mean(np.convolve(noise, whiten, "valid") ** 2))
    white = [np.convolve(recording, whiten)[: len(recording)] for recording in recordings]
    energy = np.mean([recording**2 for recording in white], axis=0)
    variance = max(variance, 1e-9 * float(energy.max()))
    heard = [recording[:_EM_SAMPLES] for recording in white]
    rt60_s, level = fit_decay(energy, variance, start=_PRE + _CLAP)
    # Half as long again as it takes until the noise is reached: what is later costs time and tells nothing.
    knee_s = rt60_s * math.log10(max(level / variance, 1.0)) / 6
    white = [recording[: round(max(0.4, 0.1 + 1.5 * knee_s) * SAMPLE_RATE)] for recording in white]
    begun = [
        _joint(heard, _first_claps(heard, length), None, variance, rt60_s, level, _ROUNDS[0]) for length in _STARTS
    ]
    best = max(begun, key=lambda joint: joint.likelihood)
    best = _joint(heard, best.claps, best.early, variance, rt60_s, level, _ROUNDS[1])
    return _drawn(white, best, variance, rt60_s, np.random.default_rng(seed))


def fit_decay(
    energy: Samples, noise: float, *, start: int, share: float = 1.0, expected_s: float | None = None
) -> tuple[float, float]:
    """Reverberation time in seconds and energy at sample 0 of the exponential decay that, with noise, fits best.

    The likeliest one where squared samples are those of Gaussian noise, of 200 times from 0.05 to 4 s.

    Args:
        energy: (samples,) squared samples, or means of several.
        noise: the mean square of the noise.
        start: the first sample that counts.
        share: of all frequencies that are in the band; less of them tell less.
        expected_s: what is likely, by 20 %, before anything is heard.
    """
    bins = energy[start : start + (len(energy) - start) // _BIN * _BIN].reshape(-1, _BIN).mean(axis=1)
    noise = max(noise, 1e-9 * float(bins.max()))
    times = (np.arange(len(bins)) + 0.5) * _BIN  # from `start` on, where no decay is too small for a number
    rt60_s = np.geomspace(0.05, 4, 200)
    decay = np.exp(-_LN_60DB / SAMPLE_RATE * times / rt60_s[:, None])
    level = np.maximum(np.sum(bins - noise) / decay.sum(axis=1), 1e-9 * noise)[:, None]
    for _ in range(12):
        model = level * decay + noise
        step = np.sum((bins - model) * decay / model**2, axis=1) / np.sum(decay**2 / model**2, axis=1)
        level = np.maximum(level + step[:, None], 0.1 * level)
    model = level * decay + noise
    likelihood = -share * _BIN / 2 * np.sum(np.log(model) + bins / model, axis=1)
    if expected_s is not None:
        likelihood -= 0.5 * (np.log(rt60_s / expected_s) / _EXPECTED_SPREAD) ** 2
    best = int(np.argmax(likelihood))
    before = _LN_60DB / SAMPLE_RATE * start / float(rt60_s[best])
    return float(rt60_s[best]), float(level[best, 0]) * math.exp(before)


def _first_claps(recordings: Sequence[Samples], length: int) -> NDArray[np.float64]:
    """The recordings up to `length` samples after the reference, faded out."""
    claps = np.zeros((len(recordings), _PRE + _CLAP))
    end, fade = _PRE + length, min(16, length // 2)
    for clap, recording in zip(claps, recordings, strict=True):
        clap[:end] = recording[:end]
        clap[end - fade : end] *= np.hanning(2 * fade)[fade:]
    return claps


def _joint(
    recordings: Sequence[Samples],
    claps: NDArray[np.float64],
    early: Samples | None,
    noise: float,
    rt60_s: float,
    level: float,
    rounds: int,
) -> _Joint:
    """Rounds of expectation and maximisation from some claps on; `level` is of the recordings' energy."""
    samples = len(recordings[0]) - _PRE
    size = _fft_size(samples + 3 * (_PRE + _CLAP))
    heard = [_advanced(recording, size) for recording in recordings]
    response = np.zeros(size)
    decay = np.exp(-_LN_60DB * np.arange(samples) / (rt60_s * SAMPLE_RATE))
    # Where the variance of the posterior is computed, and how many samples each place stands for.
    places = np.concatenate([np.arange(1, _EARLY + 1), np.arange(_EARLY + 1, samples, 64)])
    weights = np.where(places <= _EARLY, 1.0, 64.0)
    lags = np.arange(-_PRE, _CLAP)
    # Claps are short: what lies outside -1…3 ms has to pay.
    cost = np.exp(np.maximum(lags - 48, 0) / 16.0 + np.maximum(-lags - 16, 0) / 4.0)
    likelihood = -math.inf
    posterior = np.zeros(size)
    for _ in range(rounds):
        energy = float(np.mean(np.sum(claps**2, axis=1)))
        spectra = [_advanced(clap, size) for clap in claps]
        gain = np.sum(np.abs(spectra) ** 2, axis=0)
        noise_here = max(noise, _MODEL_ERROR * energy / 64)
        prior = np.zeros(size)
        prior[1:samples] = level / energy * decay[1:]
        smooth = prior[1 : _EARLY + 1].copy()
        if early is not None:
            prior[1 : _EARLY + 1] = early
        scale = np.sqrt(prior)
        rest = [recording - clap for recording, clap in zip(heard, spectra, strict=True)]  # without the direct sound
        matched = np.sum([np.conj(clap) * left for clap, left in zip(spectra, rest, strict=True)], axis=0)
        target = scale * np.fft.irfft(matched, size) / noise_here
        solved = _solve(
            scale, gain / noise_here, target, np.divide(response, scale, where=scale > 0, out=np.zeros(size))
        )
        response = scale * solved
        coarse = gain[:: max(1, len(gain) // 256)] / noise_here
        known = coarse * prior[places][:, None]
        posterior = np.interp(np.arange(size), places, np.mean(prior[places][:, None] / (1 + known), axis=1))
        posterior[prior == 0] = 0
        # Of the recordings, given the claps; with what the variances of the first samples and long claps cost.
        unexplained = sum(float(np.sum(np.fft.irfft(left, size) ** 2)) for left in rest) / noise_here
        unexplained -= float(target @ solved)
        volume = float(np.sum(np.mean(np.log1p(known), axis=1) * weights))
        here = prior[1 : _EARLY + 1]
        hyper = float(np.sum(np.log(here / smooth) + smooth / here))
        length = float(np.sum(cost * claps**2)) / (energy / 40)
        likelihood = -0.5 * (unexplained + volume + hyper + length)
        early = (smooth + response[1 : _EARLY + 1] ** 2 + posterior[1 : _EARLY + 1]) / 2
        claps = _fitted_claps(response, posterior, heard, noise_here / (energy / 40) * cost)
        expected = response**2 + posterior
        measured = slice(LEAD, min(samples, LEAD + max(_EARLY, round(0.3 * rt60_s * SAMPLE_RATE))))
        level = float(np.mean(np.sum(claps**2, axis=1))) * float(np.sum(expected[measured]) / np.sum(decay[measured]))
    assert early is not None, "rounds is at least 1"
    return _Joint(likelihood, claps, early)


def _fitted_claps(
    response: Samples, posterior: Samples, heard: Sequence[NDArray[np.complex128]], ridge: Samples
) -> NDArray[np.float64]:
    """The claps that fit best to what was heard, where the response has this mean and these variances."""
    size, length = len(response), len(ridge)
    whole = response.copy()
    whole[0] += 1
    spectrum = np.fft.rfft(whole)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:length]
    correlation[0] += posterior.sum()
    matrix = _toeplitz(correlation) + np.diag(ridge)
    matched = [np.roll(np.fft.irfft(np.conj(spectrum) * recording, size), _PRE)[:length] for recording in heard]
    return np.asarray(np.linalg.solve(matrix, np.array(matched).T).T, dtype=np.float64)


def _solve(scale: Samples, gain: Samples, target: Samples, start: Samples, rounds: int = 25) -> Samples:
    """x with (1 + scale · gain · scale) x = target, by conjugate gradients; `gain` multiplies the spectrum."""
    size = len(target)

    def apply(x: Samples) -> Samples:
        return np.asarray(x + scale * np.fft.irfft(gain * np.fft.rfft(scale * x), size), dtype=np.float64)

    return _conjugate_gradients(apply, target, start, rounds)


def _conjugate_gradients(
    apply: Callable[[Samples], Samples],
    target: Samples,
    start: Samples,
    rounds: int,
    precondition: Callable[[Samples], Samples] = lambda residual: residual,
) -> Samples:
    """x with apply(x) = target, or what is near it after so many rounds; precondition(apply(x)) is like x."""
    solution = start.copy()
    residual = target - apply(solution)
    steep = precondition(residual)
    direction = steep.copy()
    square = float(residual @ steep)
    enough = 1e-9 * float(target @ precondition(target))
    for _ in range(rounds):
        if square <= enough:
            break
        applied = apply(direction)
        step = square / float(direction @ applied)
        solution += step * direction
        residual -= step * applied
        steep = precondition(residual)
        before, square = square, float(residual @ steep)
        direction = steep + square / before * direction
    return solution


def _drawn(
    recordings: Sequence[Samples], joint: _Joint, noise: float, rt60_s: float, generator: np.random.Generator
) -> Estimate:
    """The response drawn from what the recordings, the claps and the decays in octave bands leave possible."""
    observed = len(recordings[0]) - _PRE - _CLAP
    size = _fft_size(max(len(recordings[0]), round(1.1 * rt60_s * SAMPLE_RATE)) + 2 * (_PRE + _CLAP))
    spectra = [_advanced(clap, size) for clap in joint.claps]
    gain = np.sum(np.abs(spectra) ** 2, axis=0)
    amplitude = np.sqrt(gain)
    heard = [_advanced(recording, size) for recording in recordings]
    matched = np.sum([np.conj(clap) * recording for clap, recording in zip(spectra, heard, strict=True)], axis=0)
    # All claps as one, of no phase, in noise that is still white.
    together = np.fft.irfft(matched / np.maximum(amplitude, 1e-12 * amplitude.max()), size)
    together[observed:] = 0
    filters = octaves(size)
    bands, variances, heard_samples = _decays(together, observed, gain, filters, noise)
    noise = max(noise, _MODEL_ERROR * float(np.mean(gain)) / 64)
    samples = variances.shape[1]
    blend = np.clip((np.arange(samples) - _EARLY / 2) / (_EARLY / 2), 0, 1)
    early = np.zeros(samples)
    early[1 : _EARLY + 1] = joint.early
    prior = np.zeros((len(BANDS_HZ), size))
    prior[:, :samples] = blend * variances + (1 - blend) * early
    prior[:, 0] = 0
    mask = np.zeros(size)
    mask[:observed] = 1
    shares = np.mean(filters**2, axis=1)
    likely = noise + prior * (np.mean(filters**2 * gain, axis=1) / shares)[:, None]

    def in_bands_times(factors: NDArray[np.float64], sound: Samples) -> Samples:
        parts = factors * np.fft.irfft(filters * np.fft.rfft(sound), size)
        return np.asarray(np.fft.irfft(np.sum(filters * np.fft.rfft(parts), axis=0), size), dtype=np.float64)

    def heard_of(sound: Samples) -> Samples:
        return np.asarray(np.fft.irfft(amplitude * np.fft.rfft(sound), size), dtype=np.float64)

    def apply(x: Samples) -> Samples:
        return mask * heard_of(in_bands_times(prior, heard_of(mask * x))) + noise * x

    white = np.sqrt(prior) * generator.standard_normal(prior.shape)
    response = np.fft.irfft(1 + np.sum(filters * np.fft.rfft(white), axis=0), size)
    difference = mask * (together - heard_of(response) - math.sqrt(noise) * generator.standard_normal(size))
    # The preconditioner knows how the decay changes with time; without it 80 rounds left RT60 6 % short.
    weights = _conjugate_gradients(
        apply, difference, np.zeros(size), 100, lambda residual: mask * in_bands_times(1 / likely, residual)
    )
    response += in_bands_times(prior, heard_of(mask * weights))
    response = np.concatenate([response[-LEAD:], response[:samples]])
    length = int(np.count_nonzero(decay_curve_db(response) > -75))
    return Estimate(response[: max(LEAD + _EARLY, length)], joint.claps, bands, heard_samples / SAMPLE_RATE)


def _decays(
    together: Samples, observed: int, gain: Samples, filters: NDArray[np.float64], noise: float
) -> tuple[tuple[Band, ...], NDArray[np.float64], int]:
    """The decay in each octave band.

    Returns:
        The bands; the variance of the response's samples in each, (bands, samples), noise taken off; and how many
        samples of the response stand out of the noise in the band where it is heard longest.
    """
    size = len(together)
    in_band = np.fft.irfft(filters * np.fft.rfft(together), size)[:, :observed]
    shares = np.mean(filters**2, axis=1)
    gains = np.mean(filters**2 * gain, axis=1)
    whole_s, _ = _late_fit(together[:observed] ** 2, noise, 1.0, None)
    fits: dict[int, tuple[float, float]] = {}
    for index, (band, share) in enumerate(zip(in_band, shares, strict=True)):
        floor = noise * float(share)
        if np.mean(band[_EARLY : _EARLY + 5 * _BIN] ** 2) > 2 * floor:
            fits[index] = _late_fit(band**2, floor, float(share), whole_s)
    if not fits:  # what decays is heard in no band alone; as if it were in the loudest
        index = int(np.argmax(gains / shares))
        fits[index] = _late_fit(in_band[index] ** 2, noise * float(shares[index]), float(shares[index]), whole_s)
    bands: list[Band] = []
    samples = size - 2 * (_PRE + _CLAP)
    variances = np.zeros((len(BANDS_HZ), samples))
    knees: list[int] = []
    for index, centre_hz in enumerate(BANDS_HZ):
        nearest = min(fits, key=lambda other: abs(other - index))
        rt60_s, level = fits[nearest]
        floor = noise * float(shares[nearest])
        decay = level * np.exp(-_LN_60DB / (rt60_s * SAMPLE_RATE) * np.arange(samples))
        knee = min(int(np.count_nonzero(decay > floor)), observed - 3 * _BIN)
        bands.append(Band(centre_hz, rt60_s, 10 * math.log10(decay[_EARLY] / floor), nearest == index))
        # Before the noise is reached, what was heard; only its prior, so that 30 ms may be taken together.
        ratio = _smooth(in_band[nearest] ** 2 - floor) / _smooth(decay[:observed])
        decay[:knee] *= np.maximum(ratio[:knee], 0.1)
        # As the variance of a white noise that the band's filter lets through.
        variances[index] = decay / gains[nearest]
        knees.append(knee if nearest == index else 0)
    return tuple(bands), variances, max(knees)


def _late_fit(energy: Samples, floor: float, share: float, expected_s: float | None) -> tuple[float, float]:
    """The decay that goes on below the noise; decays bend, so it is fitted near the noise, over 0.1 s and more."""
    loud = np.flatnonzero(_smooth(energy) > 10 ** (_LATE_DB / 10) * floor)
    first = max(_EARLY, int(loud[-1]) if len(loud) else 0)
    return fit_decay(energy, floor, start=min(first, len(energy) - 10 * _BIN), share=share, expected_s=expected_s)


def _smooth(energy: Samples) -> Samples:
    return np.convolve(energy, np.full(3 * _BIN, 1 / (3 * _BIN)), "same")


def _advanced(waveform: Samples, size: int) -> NDArray[np.complex128]:
    """The spectrum of a waveform whose reference sample is moved to 0."""
    turn = np.exp(2j * np.pi * _PRE / size * np.arange(size // 2 + 1))
    return np.asarray(np.fft.rfft(waveform, size) * turn, dtype=np.complex128)


def _toeplitz(row: Samples) -> NDArray[np.float64]:
    return row[np.abs(np.subtract.outer(np.arange(len(row)), np.arange(len(row))))]


def _fft_size(samples: int) -> int:
    return 1 << (samples - 1).bit_length()


# ----------------------------------------------------------------------------------------------------- sweeps


def exponential_sweep(
    duration_s: float, rate: int = SWEEP_RATE, low_hz: float = 60.0, high_hz: float = 7800.0
) -> Samples:
    """A sine whose frequency grows exponentially, (samples,) in [-0.5, 0.5], faded in and out.

    A. Farina, "Simultaneous measurement of impulse response and distortion with a swept-sine technique", 2000.
    """
    time_s = np.arange(round(duration_s * rate)) / rate
    growth = math.log(high_hz / low_hz)
    sweep = 0.5 * np.sin(2 * np.pi * low_hz * duration_s / growth * np.expm1(time_s * growth / duration_s))
    fade_in, fade_out = round(0.05 * rate), round(0.005 * rate)
    sweep[:fade_in] *= np.hanning(2 * fade_in)[:fade_in]
    sweep[-fade_out:] *= np.hanning(2 * fade_out)[fade_out:]
    return np.asarray(sweep, dtype=np.float64)


def compress_sweep(recording: Samples, sweep: Samples) -> Samples:
    """The recording with each sweep in it made a pulse, (samples,): sample n is of a sweep that begins there.

    The recording's spectrum divided by the sweep's, which is bounded from below outside its range. Harmonics that the
    loudspeaker adds come out before the pulse, as with Farina's inverse filter.
    """
    size = _fft_size(len(recording) + len(sweep))
    spectrum = np.fft.rfft(sweep, size)
    power = np.abs(spectrum) ** 2
    # The power falls by 3 dB an octave, 21 dB from 60 Hz to 7.8 kHz; -40 dB lies below all of it.
    bound = 1e-4 * float(power.max())
    return np.fft.irfft(np.fft.rfft(recording, size) * np.conj(spectrum) / (power + bound), size)[: len(recording)]
