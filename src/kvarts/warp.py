"""Speakers that were not recorded: log-mel features as if spoken faster or slower, or by a longer or shorter throat.

Both act on the features, so that cached ones serve every epoch anew (no audio is resampled, no file decoded twice):

    speed     as a tape at `factor` times its speed: time by 1 / factor, all frequencies times factor
              (Ko et al., "Audio augmentation for speech recognition", 2015)
    formants  frequencies times factor, time as it was (vocal tract length perturbation: Jaitly and Hinton, 2013)
    tempo     time by 1 / factor, frequencies as they were
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvarts.errors import ConfigError
from kvarts.features import mel_of_hz, mel_peaks_hz

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Warp:
    """Draws each factor from 1 - range to 1 + range, evenly, for every utterance.

    Args:
        speed, formants, tempo: the ranges, from 0 (leave it) to 0.5.

    Raises:
        ConfigError: a range outside that.
    """

    speed: float = 0.1
    formants: float = 0.1
    tempo: float = 0.0

    def __post_init__(self) -> None:
        for name in ("speed", "formants", "tempo"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 0.5:
                raise ConfigError(f"augment: {name}={value} of Warp: must be a number from 0 to 0.5")

    def __call__(self, features: Features, draw: np.random.Generator) -> Features:
        """Warped copy of features (frames, mel bins); about frames / (speed · tempo) of them."""
        frequencies, times = self.draw(draw)
        return warp_time(warp_frequency(features, frequencies), times)

    def draw(self, draw: np.random.Generator) -> tuple[float, float]:
        """What all frequencies are multiplied by, and how much faster it goes."""
        speed, formants, tempo = (1 + draw.uniform(-r, r) for r in (self.speed, self.formants, self.tempo))
        return speed * formants, speed * tempo


def warp_time(features: Features, factor: float) -> Features:
    """Features (frames, mel bins) of the same speech `factor` times as fast; linear between frames, ends in place."""
    frames = len(features)
    return _interpolate(features, np.linspace(0, frames - 1, warped_frames(frames, factor)))


def warped_frames(frames: int, factor: float) -> int:
    """Frames that `warp_time` makes of so many."""
    return max(1, round(frames / factor))


def warp_frequency(features: Features, factor: float) -> Features:
    """Features (frames, mel bins) with every frequency times `factor`; linear between bands.

    Where the source has no band (above 8 kHz / factor, below the lowest), its outermost one is repeated.
    """
    return np.ascontiguousarray(_interpolate(features.T, bands_before(factor)).T)


def bands_before(factor: float) -> NDArray[np.float64]:
    """(mel bins,): the fractional band that each one of `warp_frequency` is taken from."""
    peaks_hz = mel_peaks_hz()
    position: NDArray[np.float64] = np.interp(
        mel_of_hz(peaks_hz / factor), mel_of_hz(peaks_hz), np.arange(len(peaks_hz))
    )
    return position


def _interpolate(rows: Features, position: NDArray[np.float64]) -> Features:
    """Rows at fractional positions: (len(position), columns)."""
    below = np.minimum(position.astype(np.int64), max(0, len(rows) - 2))
    weight = (position - below).astype(np.float32)[:, None]
    above = np.minimum(below + 1, len(rows) - 1)
    between: Features = rows[below] * (1 - weight) + rows[above] * weight
    return between


@dataclass(frozen=True)
class Chain:
    """Augmentations one after the other, all from the same random numbers."""

    steps: Sequence[Callable[[Features, np.random.Generator], Features]]

    def __call__(self, features: Features, draw: np.random.Generator) -> Features:
        """Features (frames, mel bins) through all steps."""
        for step in self.steps:
            features = step(features, draw)
        return features
