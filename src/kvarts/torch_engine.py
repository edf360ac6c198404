"""PyTorch as an engine: a checkpoint recognises as an exported model does, on a GPU too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from kvarts.checkpoint import load_model
from kvarts.engines import Floats, Lengths
from kvarts.errors import ConfigError
from kvarts.frames import HOP_LENGTH, SAMPLE_RATE
from kvarts.model import QuartzNetCTC


class Torch:
    """A `QuartzNetCTC`, on the device it is on.

    It is run in evaluation mode and left in the mode it was in; one that is in training mode must not be used from
    several threads, since each would put it back while others still run.
    """

    def __init__(self, model: QuartzNetCTC) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self.name = f"torch {self._device}"
        self.stride = model.encoder.stride

    @classmethod
    def load(cls, checkpoint: Path, device: str) -> Torch:
        """A checkpoint on a device; `find_device` says which names there are.

        Raises:
            CheckpointError: it is missing, damaged, or no checkpoint.
            ConfigError: the device cannot be used here.
        """
        return cls(load_model(checkpoint, find_device(device)))

    def log_probs(self, features: Floats, lengths: Lengths) -> Floats:
        """As `kvarts.engines.Engine.log_probs`.

        Raises:
            ConfigError: the batch does not fit into the GPU's memory.
        """
        try:
            with _evaluating(self._model), torch.inference_mode():
                log_probs, _ = self._model.log_probs(
                    torch.from_numpy(features).to(self._device), torch.from_numpy(lengths).to(self._device)
                )
        except torch.cuda.OutOfMemoryError:
            batch_s = features.shape[0] * features.shape[1] * HOP_LENGTH / SAMPLE_RATE
            raise ConfigError(
                f"{batch_s:.0f} s of sound in one batch do not fit into the memory of {self._device}; "
                "use --device cpu, or lower --batch-duration-s where there is one (kvarts evaluate)"
            ) from None
        return np.asarray(log_probs.float().cpu().numpy())


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
