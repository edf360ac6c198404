"""All sample and frame arithmetic. Nothing else in the package divides by a hop or a stride."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Frames = TypeVar("Frames", int, "Tensor")

SAMPLE_RATE: Final = 16_000  # Hz
WIN_LENGTH = 400  # samples: 25 ms, also the FFT length
HOP_LENGTH = 160  # samples: 10 ms


def mel_frames(num_samples: int) -> int:
    """Log-mel frames of a 16 kHz waveform: one centred on every 160th sample, the first on sample 0."""
    return num_samples // HOP_LENGTH + 1


def encoded_frames(num_mel_frames: Frames, stride: int = 4) -> Frames:
    """Frames that leave the encoder: trunc((length - 1) / stride) + 1."""
    return (num_mel_frames - 1) // stride + 1


def samples_of_duration(duration_s: float) -> int:
    """Samples at 16 kHz of a duration in seconds, rounded to the nearest."""
    return round(duration_s * SAMPLE_RATE)


def encoded_frames_of_duration(duration_s: float, stride: int = 4) -> int:
    """Encoded frames of an utterance of `duration_s` seconds."""
    return encoded_frames(mel_frames(samples_of_duration(duration_s)), stride)


def seconds_of_encoded(num_encoded_frames: float, stride: int = 4) -> float:
    """Time of an encoded frame's centre from the beginning: frame k is centred on sample 160 · stride · k."""
    return num_encoded_frames * stride * HOP_LENGTH / SAMPLE_RATE


def too_short(duration_s: float) -> str:
    """What is wrong with less sound than one analysis window, in words."""
    window_ms = 1000 * WIN_LENGTH // SAMPLE_RATE
    return f"{1000 * duration_s:.3g} ms of sound, less than one analysis window of {window_ms} ms"
