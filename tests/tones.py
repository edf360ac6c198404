"""Speech in tones, for a recogniser of which it is known in advance what it hears.

Every label of the alphabet is a tone in the middle of a mel band of its own, and silence is the blank. What reads it
hands the bands on and picks the loudest: `ToneEngine` in NumPy, `tone_reader.ToneReader` as a real network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import BLANK_ID, encode
from kvarts.features import CLAMP_MIN, N_MELS
from kvarts.frames import SAMPLE_RATE

FIRST_BAND = 28  # from here on bands are wider than the spectrum of a tone cut by the analysis window
SILENCE = float(np.log(CLAMP_MIN))
LOUD = 4.0  # log-mel; a tone of the tests has about 7


def speak(text: str) -> NDArray[np.float32]:
    """80 ms of tone and 40 ms of silence for each character, a waveform at 16 kHz."""
    mels = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), N_MELS + 2)[1:-1]
    hz = 700 * (10 ** (mels / 2595) - 1)
    seconds = np.arange(1280) / SAMPLE_RATE
    gap = np.zeros(640)
    tones = [np.sin(2 * np.pi * hz[FIRST_BAND + label] * seconds) * np.hanning(1280) for label in encode(text)]
    parts = [gap, *(part for tone in tones for part in (tone, gap))]
    return 0.5 * np.concatenate(parts).astype(np.float32)


def unsure(text: str, other: str) -> NDArray[np.float32]:
    """Two texts of the same length at once, the second half as loud: where they differ, the first is e^1.4 likelier."""
    return speak(text) + np.float32(0.5) * speak(other)


class ToneEngine:
    """An engine of stride 4 that reads tones, without PyTorch."""

    name = "tones"
    stride = 4

    def __init__(self) -> None:
        self.batch_shapes: list[tuple[int, int]] = []  # utterances and frames

    def log_probs(self, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        self.batch_shapes.append(features.shape[:2])
        scores = np.full((*features[:, :: self.stride].shape[:2], BLANK_ID + 1), LOUD, np.float32)
        scores[..., :BLANK_ID] = features[:, :: self.stride, FIRST_BAND : FIRST_BAND + BLANK_ID]
        log_probs: NDArray[np.float32] = scores - np.logaddexp.reduce(scores, axis=2, keepdims=True)
        return log_probs
