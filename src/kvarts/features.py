"""Log-mel features: the front end that every QuartzNet checkpoint of this family was trained on.

The same numbers as torchaudio's MelSpectrogram(16000, n_fft=400, win_length=400, hop_length=160, n_mels=64)
with its defaults, followed by log(clamp(x, 1e-9, 1e9)), in NumPy alone:

    power[k, f] = |sum_n hann[n] x[160 k - 200 + n] exp(-2 pi i f n / 400)|^2,    n = 0 … 399, f = 0 … 200
    mel[k, m]   = sum_f power[k, f] triangle_m(40 Hz f),                          m = 0 … 63
    log_mel     = ln(min(max(mel, 1e-9), 1e9))

with the waveform mirrored at both ends (the end samples are not repeated). The triangles stand evenly on the
HTK mel scale, mel = 2595 log10(1 + Hz / 700) (S. Young et al., "The HTK Book"), and all have height 1.

Everything up to the logarithm is computed in double precision. torchaudio in single precision departs from
this, and from itself in double precision, in bands that lie far below the loudest one of their frame, where
the rounding of a float32 FFT is all one sees: tests/golden/make_torchaudio_golden.py prints by how much.
Double precision is little slower, gives the same numbers with every NumPy (before 2.0 its FFT knew no other),
and no float32 waveform overflows it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvarts.errors import AudioError
from kvarts.frames import HOP_LENGTH, SAMPLE_RATE, WIN_LENGTH, mel_frames

N_MELS: Final = 64
N_FFT: Final = WIN_LENGTH
F_MIN: Final = 0.0  # Hz
F_MAX: Final = SAMPLE_RATE / 2  # Hz
CLAMP_MIN: Final = 1e-9  # mel power; its logarithm, -20.7, is what silence looks like
CLAMP_MAX: Final = 1e9

# What a checkpoint embeds, so that it can be told which features it was trained on. Plain JSON values only.
FEATURE_SETTINGS: Final[dict[str, Any]] = {
    "kind": "log_mel",
    "sample_rate": SAMPLE_RATE,
    "n_fft": N_FFT,
    "win_length": WIN_LENGTH,
    "hop_length": HOP_LENGTH,
    "window": "hann_periodic",
    "center": True,
    "pad_mode": "reflect",
    "power": 2.0,
    "n_mels": N_MELS,
    "f_min": F_MIN,
    "f_max": F_MAX,
    "mel_scale": "htk",
    "mel_norm": None,
    "clamp_min": CLAMP_MIN,
    "clamp_max": CLAMP_MAX,
    "log": "natural",
}

_PAD = N_FFT // 2  # samples before the centre of a frame
# Frames transformed at a time: the block, 0.8 MB, and its spectrum stay in a core's cache.
_BLOCK_FRAMES = 256
# 0.2 million multiplications: below 2^18 OpenBLAS stays on one processor. At 64 frames it did on an Intel Xeon with AMX
# and did not on an AMD EPYC without AVX-512.
_PRODUCT_FRAMES = 16


def hann_window() -> NDArray[np.float64]:
    """Periodic Hann window, shape (400,): one period of a raised cosine, the closing zero left out."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WIN_LENGTH) / WIN_LENGTH)


def mel_of_hz(frequency_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """HTK's mel scale."""
    return 2595 * np.log10(1 + frequency_hz / 700)


def mel_peaks_hz() -> NDArray[np.float64]:
    """Frequency of each mel band's peak: (64,)."""
    return _mel_corners_hz()[1:-1]


def _mel_corners_hz() -> NDArray[np.float64]:
    lowest, highest = mel_of_hz(np.array([F_MIN, F_MAX]))
    return np.asarray(700 * (10 ** (np.linspace(lowest, highest, N_MELS + 2) / 2595) - 1))


def mel_filters() -> NDArray[np.float64]:
    """Weights of the mel triangles, shape (201, 64): FFT bins by bands."""
    corners_hz = _mel_corners_hz()
    lower, peak, upper = corners_hz[:-2], corners_hz[1:-1], corners_hz[2:]
    bins_hz = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]
    rising = (bins_hz - lower) / (peak - lower)
    falling = (upper - bins_hz) / (upper - peak)
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return filters


_WINDOW = hann_window()
_FILTERS = mel_filters()


def log_mel(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-mel features of a waveform.

    Args:
        waveform: shape (samples,), floating point, 16 kHz mono, at least one sample.

    Returns:
        Shape (frames, 64), float32, natural logarithm of mel power; frames = samples // 160 + 1, frame k
        centred on sample 160 k. Beside it some megabytes are needed, however long the waveform is.

    A frame reaches up to 200 samples beyond the ends, mirrored there. A waveform of 200 samples or fewer does
    not have that many to mirror (torchaudio refuses it): the mirroring then goes on from end to end, as
    numpy.pad does it in mode "reflect"; a single sample is repeated.

    Raises:
        AudioError: no samples, more than one channel, integers, or samples that are not finite.
    """
    check_waveform(waveform)
    num_samples = len(waveform)
    log_mels = np.empty((mel_frames(num_samples), N_MELS), np.float32)
    # Frames first … last - 1 lie inside the waveform and are read in place; the few others are gathered.
    first = mel_frames(_PAD - 1)
    last = max(first, mel_frames(num_samples - _PAD))
    outside = [*range(min(first, len(log_mels))), *range(last, len(log_mels))]
    samples = HOP_LENGTH * np.array(outside)[:, None] - _PAD + np.arange(WIN_LENGTH)
    log_mels[outside] = _log_mel_of_frames(waveform[_reflected(samples, num_samples)])
    if last > first:
        inside = np.lib.stride_tricks.sliding_window_view(waveform[HOP_LENGTH * first - _PAD :], WIN_LENGTH)
        inside = inside[::HOP_LENGTH]
        for start in range(first, last, _BLOCK_FRAMES):
            stop = min(start + _BLOCK_FRAMES, last)
            log_mels[start:stop] = _log_mel_of_frames(inside[start - first : stop - first])
    return log_mels


def check_waveform(waveform: NDArray[np.float32]) -> None:
    """Raises what `log_mel` does."""
    if waveform.ndim != 1:
        raise AudioError(f"features need mono, shape (samples,), not {waveform.shape}: mix the channels down")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise AudioError(f"features need floats in [-1, 1], not {waveform.dtype}: divide by full scale first")
    if len(waveform) == 0:
        raise AudioError("features need at least one sample and the waveform has none: leave this audio out")
    # The extremes are NaN or infinite exactly when some sample is, and take no memory to find.
    if not (np.isfinite(waveform.min()) and np.isfinite(waveform.max())):
        raise AudioError("the waveform has samples that are not numbers (NaN or infinity): repair the audio")


def _reflected(index: NDArray[np.int64], num_samples: int) -> NDArray[np.int64]:
    """Where samples beyond the ends are taken from: there and back again, the end samples not repeated."""
    period = max(1, 2 * (num_samples - 1))
    index = index % period
    return np.where(index < num_samples, index, period - index)


def _log_mel_of_frames(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """(frames, 400) of samples to (frames, 64) of log-mel."""
    spectrum = np.fft.rfft(frames * _WINDOW)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    # In small products, which the library computes on one processor. Larger ones wake threads that go on spinning when
    # the product is done, beside the network: ONNX Runtime then recognised 300 s of wav in a second and not 600.
    mel = np.empty((len(power), N_MELS))
    for start in range(0, len(power), _PRODUCT_FRAMES):
        rows = slice(start, start + _PRODUCT_FRAMES)
        np.matmul(power[rows], _FILTERS, out=mel[rows])
    log_mels: NDArray[np.float32] = np.log(np.clip(mel, CLAMP_MIN, CLAMP_MAX).astype(np.float32))
    return log_mels
