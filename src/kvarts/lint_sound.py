"""What `kvarts data check` and `kvarts data stats` measure of a recording, and which faults these measures show.

A level is the variance of the samples within 10 ms, as in `kvarts.cutting`, in decibels to a waveform at ±1 all the
time; a sine at full scale has -3 dB, 16 bits of digital silence -90 dB and less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvarts.audio import audio_blocks
from kvarts.features import log_mel, mel_peaks_hz
from kvarts.files import sha256_of
from kvarts.frames import HOP_LENGTH, SAMPLE_RATE

_MEASURED = 300 * SAMPLE_RATE  # samples; of longer recordings the rest is only hashed, so memory stays flat
_LOWEST_DB = -90.0  # digital silence, or what 16 bits leave of it
_EDGE = 2  # levels: 20 ms

FINGERPRINT_BYTES: Final = 32
_SEGMENTS = 33  # of a recording, of equal length; 33 by 9 bands have 32 by 8 differences of differences
_BANDS = 9
_BANDS_HZ = (200.0, 3600.0)  # what a telephone leaves
_FINGERPRINT_FLOOR = 4.6  # nepers of power, 20 dB, below a recording's mean: what lies deeper is the coder's business
_LEAST_DIFFERENCE = 1e-3  # nepers; where all lies below the floor the sign of nothing would be rounding's


@dataclass(frozen=True)
class Sound:
    """What was measured of a recording.

    Attributes:
        duration_s: of what was decoded.
        level_db, floor_db: 95th and 10th percentile of the levels.
        loudest_db, quietest_db: of the means over 0.2 s.
        speech_s: from the first level that stands out of the floor to the last.
        start_db, end_db: the mean level of the first and the last 20 ms.
        flat_tops: places where the waveform stays at its extreme, see `_flat_tops`.
        spectrum_db: (64,) mean of the log-mel power, in decibels.
        file_digest, sample_digest: 8 bytes of the SHA-256 of the file and of its samples at 16 kHz.
        fingerprint: 32 bytes, see `fingerprint`.
    """

    duration_s: float
    level_db: float
    floor_db: float
    loudest_db: float
    quietest_db: float
    speech_s: float
    start_db: float
    end_db: float
    flat_tops: int
    spectrum_db: NDArray[np.float32]
    file_digest: int
    sample_digest: int
    fingerprint: bytes

    @property
    def snr_db(self) -> float:
        """Loud levels over quiet ones: an estimate of the signal-to-noise ratio, too high where pauses are digital
        silence and too low where there are none."""
        return self.level_db - self.floor_db


def measure(path: Path) -> Sound:
    """Decodes a recording and measures it; of more than 300 s the first 300 s, and the end of the last block.

    Raises:
        AudioError: as `kvarts.audio.read_audio`.
    """
    kept: list[NDArray[np.float32]] = []
    samples = 0
    digest = hashlib.sha256()
    end = np.zeros(0, np.float32)
    for block in _mono(path):
        if samples < _MEASURED:
            kept.append(block)
        samples += len(block)
        digest.update(block.tobytes())
        end = np.concatenate([end, block])[-_EDGE * HOP_LENGTH :]
    waveform = np.concatenate(kept)[:_MEASURED]
    levels = levels_db(waveform)
    features = log_mel(waveform)
    level_db, floor_db = (float(value) for value in np.percentile(levels, (95, 10)))
    blocks = _block_levels_db(levels)
    active = np.flatnonzero(levels > max(level_db - 30.0, min(floor_db + 10.0, level_db - 6.0)))
    return Sound(
        duration_s=samples / SAMPLE_RATE,
        level_db=level_db,
        floor_db=floor_db,
        loudest_db=float(blocks.max()),
        quietest_db=float(blocks.min()),
        speech_s=float(active[-1] - active[0] + 1) * HOP_LENGTH / SAMPLE_RATE if len(active) else 0.0,
        start_db=_mean_db(levels[:_EDGE]),
        end_db=_mean_db(levels_db(end)),
        flat_tops=_flat_tops(waveform),
        spectrum_db=features.mean(axis=0) * np.float32(10 / np.log(10)),
        file_digest=int(sha256_of(path)[:16], 16),
        sample_digest=int(digest.hexdigest()[:16], 16),
        fingerprint=fingerprint(features),
    )


def _mono(path: Path) -> Iterator[NDArray[np.float32]]:
    for block in audio_blocks(path):
        yield block[:, 0]


def levels_db(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """(samples,) to the level of each 10 ms, (ceil(samples / 160),), at least -90 dB."""
    padded = np.pad(waveform, (0, -len(waveform) % HOP_LENGTH), "edge").reshape(-1, HOP_LENGTH)
    powers = padded.var(axis=1, dtype=np.float64)
    decibels: NDArray[np.float64] = 10 * np.log10(np.maximum(powers, 10 ** (_LOWEST_DB / 10)))
    return decibels


def _block_levels_db(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of powers over 0.2 s."""
    starts = np.arange(0, max(1, len(levels) - 19), 20)
    powers = np.add.reduceat(10 ** (levels / 10), starts) / np.diff(starts, append=len(levels))
    decibels: NDArray[np.float64] = 10 * np.log10(powers)
    return decibels


def _mean_db(levels: NDArray[np.float64]) -> float:
    return float(10 * np.log10(np.mean(10 ** (levels / 10))))


def _flat_tops(waveform: NDArray[np.float32]) -> int:
    """Runs of 3 samples and more within 3 % of the largest magnitude.

    Natural speech has its largest peak once; what was cut off at a level reaches it in every loud period. A lossy coder
    makes ripples of flat tops: at full scale they are cut off again when they are decoded; of what was made softer
    before it was coded nothing can be seen here.
    """
    peak = max(float(waveform.max()), -float(waveform.min()))
    if peak == 0:
        return 0
    near = np.abs(waveform) >= 0.97 * peak
    changes = np.flatnonzero(np.diff(near, prepend=False, append=False)).reshape(-1, 2)
    return int((changes[:, 1] - changes[:, 0] >= 3).sum())


def fingerprint(features: NDArray[np.float32]) -> bytes:
    """256 bits that a recording keeps when it is encoded anew, made louder or softer, or resampled down to 8 kHz.

    J. Haitsma and T. Kalker, "A Highly Robust Audio Fingerprinting System" (2002): each bit says whether the
    difference of neighbouring bands grows or falls with time. Here of the whole recording in 33 parts of equal
    length, so that two of the same length can be compared bit by bit.

    Args:
        features: (frames, 64) of log-mel.
    """
    peaks = mel_peaks_hz()
    inside = features[:, (peaks >= _BANDS_HZ[0]) & (peaks <= _BANDS_HZ[1])]
    bands = np.stack([part.mean(axis=1) for part in np.array_split(inside, _BANDS, axis=1)], axis=1)
    bands = np.maximum(bands, bands.mean(axis=0) - _FINGERPRINT_FLOOR)
    # Linear interpolation of the sum so far gives means over parts that begin and end between frames.
    total = np.concatenate([np.zeros((1, _BANDS)), np.cumsum(bands, axis=0, dtype=np.float64)])
    places = np.linspace(0, len(bands), _SEGMENTS + 1)
    parts = np.diff([np.interp(places, np.arange(len(total)), column) for column in total.T], axis=1).T
    return np.packbits(np.diff(np.diff(parts, axis=0), axis=1) > _LEAST_DIFFERENCE).tobytes()
