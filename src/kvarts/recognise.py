"""From audio files to texts: read, log-mel, the network, greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kvarts.audio import read_audio
from kvarts.checks import too_short
from kvarts.decoding import greedy
from kvarts.errors import AudioError, ConfigError
from kvarts.features import N_MELS, log_mel
from kvarts.frames import HOP_LENGTH, SAMPLE_RATE, WIN_LENGTH

if TYPE_CHECKING:
    from kvarts.model import QuartzNetCTC


def file_features(path: Path) -> NDArray[np.float32]:
    """Log-mel features (frames, 64) of an audio file.

    Raises:
        AudioError: the file is missing, empty, truncated, no audio, or shorter than one analysis window (25 ms),
            which can hold no letter: the network would say whatever it says to a click.
    """
    waveform = read_audio(path)
    if len(waveform) < WIN_LENGTH:
        raise AudioError(f"{path}: {too_short(len(waveform) / SAMPLE_RATE)}; record more of it")
    return log_mel(waveform)


def texts(model: QuartzNetCTC, features: Sequence[NDArray[np.float32]]) -> list[str]:
    """Recognises one batch of features, (frames, 64) each, on the device the model is on; one text for each.

    The model masks the padding, so a text does not depend on its batchmates. It is run in evaluation mode and
    left in the mode it was in.

    Raises:
        ConfigError: the batch does not fit into the GPU's memory.
    """
    if not features:
        return []
    lengths = [len(matrix) for matrix in features]
    padded = np.zeros((len(features), max(lengths), N_MELS), np.float32)
    for row, matrix in zip(padded, features, strict=True):
        row[: len(matrix)] = matrix
    device = next(model.parameters()).device
    try:
        with _evaluating(model), torch.inference_mode():
            log_probs, num_frames = model.log_probs(
                torch.from_numpy(padded).to(device),
                torch.tensor(lengths, device=device),
            )
    except torch.cuda.OutOfMemoryError:
        batch_s = padded.shape[0] * padded.shape[1] * HOP_LENGTH / SAMPLE_RATE
        raise ConfigError(
            f"{batch_s:.0f} s of sound in one batch do not fit into the memory of {device}; "
            "lower --batch-duration-s or use --device cpu"
        ) from None
    # The network puts spaces before the first word and behind the last one; no reader wants them.
    return [text.strip() for text in greedy(log_probs.float().cpu().numpy(), num_frames.cpu().numpy())]


def find_device(name: str) -> str:
    """The PyTorch device of a ``--device`` argument; ``auto`` is the GPU where there is one.

    Raises:
        ConfigError: no such kind of device, or none of it here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--device {name}: cannot be used here ({reason}); use cpu") from None
    return name


@contextmanager
def _evaluating(model: QuartzNetCTC) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
