"""The CTC head: one 1×1 convolution and a log-softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kvarts.alphabet import NUM_CLASSES
from kvarts.encoder import PointwiseConv


class ConvDecoder(nn.Module):
    """Encoded frames to log-probabilities of the 33 letters and the blank (last)."""

    def __init__(self, in_channels: int = 1024, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.layers = nn.Sequential(PointwiseConv(in_channels, num_classes))

    def forward(self, encoded: Tensor) -> Tensor:
        """(batch, time, in_channels) to log-probs (batch, time, num_classes), float32 under autocast too."""
        logits: Tensor = self.layers(encoded)
        return torch.log_softmax(logits.float(), dim=-1)
