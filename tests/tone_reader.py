"""The real model, with weights set by hand so that it reads the tones of `tones.speak`."""

from __future__ import annotations

import torch
from torch import Tensor

from kvarts.alphabet import BLANK_ID
from kvarts.decoder import ConvDecoder
from kvarts.encoder import BlockConfig, QuartzNet
from kvarts.features import N_MELS
from kvarts.model import QuartzNetCTC
from tones import FIRST_BAND, LOUD, SILENCE


class ToneReader(QuartzNetCTC):
    """The real model, of one block and with weights set by hand; can be told to fail in a certain batch."""

    def __init__(self, stride: int = 1) -> None:
        separable = stride > 1  # the only blocks that stride
        block = BlockConfig(filters=N_MELS, repeat=1, kernel=1, stride=stride, residual=False, separable=separable)
        super().__init__(QuartzNet([block]), ConvDecoder(N_MELS))
        state = self.state_dict()
        if separable:
            state["encoder.layers.0.conv.0.weight"] = torch.ones(N_MELS, 1, 1)
            state["encoder.layers.0.conv.0.bias"] = torch.zeros(N_MELS)
        pointwise = f"encoder.layers.0.conv.{int(separable)}"
        state[f"{pointwise}.weight"] = torch.eye(N_MELS).unsqueeze(2)
        state[f"{pointwise}.bias"] = torch.full((N_MELS,), -SILENCE)
        head = torch.zeros(BLANK_ID + 1, N_MELS, 1)
        head[torch.arange(BLANK_ID), FIRST_BAND + torch.arange(BLANK_ID)] = 1
        state["decoder.layers.0.weight"] = head
        state["decoder.layers.0.bias"] = torch.zeros(BLANK_ID + 1)
        state["decoder.layers.0.bias"][BLANK_ID] = LOUD - SILENCE
        self.load_state_dict(state)
        self.batch_shapes: list[tuple[int, int]] = []  # utterances and frames
        self.failure: tuple[int, BaseException] | None = None  # in which batch, and how

    def log_probs(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.failure is not None and self.failure[0] == len(self.batch_shapes):
            raise self.failure[1]
        self.batch_shapes.append((features.shape[0], features.shape[1]))
        return super().log_probs(features, lengths)
