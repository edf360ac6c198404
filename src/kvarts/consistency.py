"""CR-CTC (arXiv 2410.05101): two masked views of each utterance must be read alike, frame by frame.

Each view teaches the other what lies under its masks, and gently: a distribution over letters and not a text learnt by
heart. It is for little data and many epochs; a step costs what a batch of twice the size does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kvarts.dataset import Augmentation, Batch
from kvarts.errors import ConfigError


class Consistency:
    """The views and what their difference costs.

    Args:
        masks: makes a view of features (frames, 64); must not change them or move anything in time.
        weight: of the difference beside the CTC loss; the paper's 0.2.

    Raises:
        ConfigError: a weight that is not above 0.
    """

    def __init__(self, masks: Augmentation, weight: float = 0.2) -> None:
        if not weight > 0:
            raise ConfigError(f"model.consistency.weight={weight}: must be above 0; model.consistency=null is without")
        self._masks = masks
        self._weight = weight

    def views(self, batch: Batch) -> Batch:
        """A batch of twice the size: a view of each utterance, then another of each; drawn from PyTorch's generator."""
        draw = np.random.default_rng(int(torch.randint(2**62, ())))
        features = batch.features.cpu().numpy()
        views = np.concatenate([features, features])
        lengths = torch.cat([batch.feature_lengths] * 2)
        for view, length in zip(views, lengths.tolist(), strict=True):
            view[:length] = self._masks(view[:length], draw)
        return replace(
            batch,
            features=torch.from_numpy(views).to(batch.features.device),
            feature_lengths=lengths,
            targets=torch.cat([batch.targets] * 2),
            target_lengths=torch.cat([batch.target_lengths] * 2),
            utterances=batch.utterances * 2,
        )

    def losses(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        """Of each view, its weighted Kullback-Leibler divergence from the other, which stands still: (batch,) float32.

        Args:
            log_probs: (batch, time, classes) float32 of `views`.
            lengths: (batch,) int, frames of each.
        """
        others = log_probs.detach().roll(len(log_probs) // 2, 0)
        divergence = torch.nn.functional.kl_div(log_probs, others, reduction="none", log_target=True).sum(2)
        is_speech = torch.arange(log_probs.shape[1], device=lengths.device) < lengths[:, None]
        return self._weight * (divergence * is_speech).sum(1)
