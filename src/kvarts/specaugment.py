"""SpecAugment (arXiv 1904.08779): whole bands and stretches of the log-mel features are blotted out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvarts.errors import ConfigError


@dataclass(frozen=True)
class Masks:
    """What is blotted out of an utterance: mel bins and frames, each from a first to one behind the last."""

    bands: Sequence[tuple[int, int]]
    stretches: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class SpecAugment:
    """Frequency and time masking, without time warping.

    Each mask has a width drawn from 0 to its maximum and takes the mean of the utterance's features, so that
    nothing looks like silence that is not.

    Args:
        freq_masks: number of masked bands.
        freq_width: widest band, in mel bins.
        time_masks: number of masked stretches.
        time_width: longest stretch, in frames of 10 ms.
        time_fraction: longest stretch as a fraction of the utterance, so that short commands keep their
            words.

    Raises:
        ConfigError: a negative or broken number, or a fraction above 1.
    """

    freq_masks: int = 2
    freq_width: int = 15
    time_masks: int = 2
    time_width: int = 50
    time_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("freq_masks", "freq_width", "time_masks", "time_width"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ConfigError(f"augment.features.{name}={value}: must be a whole number from 0 on")
        fraction = self.time_fraction
        if type(fraction) not in (int, float) or not 0 <= fraction <= 1:
            raise ConfigError(f"augment.features.time_fraction={fraction}: must be a number from 0 to 1")

    def draw(self, frames: int, bins: int, draw: np.random.Generator) -> Masks:
        """Masks for features (frames, mel bins)."""
        bands = [_drawn(min(self.freq_width, bins), bins, draw) for _ in range(self.freq_masks)]
        longest = min(self.time_width, int(self.time_fraction * frames))
        return Masks(bands, [_drawn(longest, frames, draw) for _ in range(self.time_masks)])

    def __call__(self, features: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
        """Masked copy of features (frames, mel bins)."""
        masked = features.copy()
        masks = self.draw(len(features), features.shape[1], draw)
        level = features.mean()
        for start, stop in masks.bands:
            masked[:, start:stop] = level
        for start, stop in masks.stretches:
            masked[start:stop] = level
        return masked


def _drawn(widest: int, total: int, draw: np.random.Generator) -> tuple[int, int]:
    width = int(draw.integers(0, widest + 1))
    start = int(draw.integers(0, total - width + 1))
    return start, start + width
