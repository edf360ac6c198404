"""SpecAugment (arXiv 1904.08779): whole bands and stretches of the log-mel features are blotted out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvarts.errors import ConfigError


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

    def __call__(self, features: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
        """Masked copy of features (frames, mel bins)."""
        masked = features.copy()
        frames, bins = features.shape
        level = features.mean()
        for _ in range(self.freq_masks):
            width = int(draw.integers(0, min(self.freq_width, bins) + 1))
            start = int(draw.integers(0, bins - width + 1))
            masked[:, start : start + width] = level
        longest = min(self.time_width, int(self.time_fraction * frames))
        for _ in range(self.time_masks):
            width = int(draw.integers(0, longest + 1))
            start = int(draw.integers(0, frames - width + 1))
            masked[start : start + width] = level
        return masked
