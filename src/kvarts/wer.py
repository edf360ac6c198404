"""Word error rate as a torchmetrics metric: summed over all utterances of an epoch and all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from kvarts.error_counts import ErrorCounts, word_errors


class WER(Metric):
    """Word errors of everything seen since the last reset, divided by its reference words.

    Not the mean of the rates of batches or utterances: a long utterance weighs as much as it has words, and
    how the data were cut into batches or dealt out to processes does not matter.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    errors: Tensor  # int64 scalar: substitutions, deletions and insertions
    reference_words: Tensor  # int64 scalar

    def __init__(self) -> None:
        super().__init__()
        # Whole numbers: a float32 sum would stop counting at 16.8 million.
        self.add_state("errors", default=torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("reference_words", default=torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, references: Sequence[str], hypotheses: Sequence[str]) -> None:
        """Adds utterances. References are the manifest's raw texts, hypotheses what the decoder gave.

        Raises:
            ValueError: the two differ in length.
        """
        pairs = zip(references, hypotheses, strict=True)
        total = sum((word_errors(reference, hypothesis) for reference, hypothesis in pairs), ErrorCounts())
        self.errors += total.errors
        self.reference_words += total.reference_length

    def compute(self) -> Tensor:
        """WER as a float32 scalar, 0 being perfect; see `ErrorCounts.rate` for a reference without words."""
        return self.errors.float() / self.reference_words.clamp(min=1).float()
