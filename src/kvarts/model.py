"""QuartzNetCTC: encoder, CTC head, loss and metric as one Lightning module. What training does with a batch is here."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

import kvarts
from kvarts.alphabet import ALPHABET, BLANK_ID, NUM_CLASSES
from kvarts.batchnorm import is_distributed
from kvarts.consistency import Consistency
from kvarts.dataset import Batch
from kvarts.decoder import ConvDecoder
from kvarts.decoding import greedy
from kvarts.depthwise import DepthwiseConv
from kvarts.encoder import QuartzNet
from kvarts.error_counts import ErrorCounts, word_errors
from kvarts.errors import CheckpointError, ConfigError, NonFiniteLossError
from kvarts.features import FEATURE_SETTINGS, N_MELS
from kvarts.native import keep_memory
from kvarts.wer import WER

if TYPE_CHECKING:  # Lightning 2.0 has no such type
    from pytorch_lightning.utilities.types import OptimizerLRScheduler

# The logger's name is the original's: its users search their logs for it.
logger = logging.getLogger("lightning")

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def warmup_cosine(step: int, warmup_steps: int, max_steps: int) -> float:
    """Factor on the learning rate: linear over `warmup_steps`, then a cosine down to 0 at `max_steps`.

    The annealing of SGDR (arXiv 1608.03983) without restarts. The first step already learns: factor 1 / warmup_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class QuartzNetCTC(pl.LightningModule):
    """The recogniser in PyTorch: log-mel features in, log-probabilities out; and its training.

    Args:
        encoder: the QuartzNet.
        decoder: the CTC head.
        optimizer: makes the optimiser from parameters (Hydra: `_partial_: true`); needed for training only.
        warmup_steps: optimiser steps of linear warm-up before the cosine annealing to 0 at the last step.
        init_weights: a checkpoint to start from (the course's, one of ours, or .safetensors), or «open», the weights
            that ship with Kvarts.
        tap_decay: decoupled weight decay (arXiv 1711.05101) of the depthwise kernels that grows with the square of a
            tap's distance d from the centre: after every step each is multiplied by 1 - lr · tap_decay · d². Little
            speech is learnt by heart through the kernels' seconds of context; what is local must be heard.
        consistency: trains on two views of every utterance that must be read alike; None: on the utterance.
    """

    def __init__(
        self,
        encoder: QuartzNet,
        decoder: ConvDecoder,
        optimizer: OptimizerFactory | None = None,
        warmup_steps: int = 10,
        init_weights: str | Path | None = None,
        tap_decay: float = 0.0,
        consistency: Consistency | None = None,
    ) -> None:
        super().__init__()
        _check_fit(encoder, decoder)
        self.encoder = encoder
        self.decoder = decoder
        self.wer = WER()
        self.ctc_loss = nn.CTCLoss(blank=BLANK_ID, reduction="none", zero_infinity=True)
        self._optimizer = optimizer
        self._warmup_steps = warmup_steps
        self._tap_decay = tap_decay
        self._consistency = consistency
        self._rng_to_restore: dict[str, Any] | None = None
        self._val_loss = torch.zeros(2, dtype=torch.float64)  # sum over utterances, and their number
        self._batch: Batch | None = None  # the one being trained on, to be named where its gradient is not finite
        if init_weights is not None:
            from kvarts.checkpoint import load_weights
            from kvarts.open_weights import checkpoint_named

            load_weights(self, checkpoint_named(init_weights))
            logger.info("successful load initial weights")

    def log_probs(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The way from features to log-probabilities; independent of padding and, in eval mode, of batchmates.

        Args:
            features: (batch, mel_frames, 64) float32 log-mel.
            lengths: (batch,) int, log-mel frames of each utterance.

        Returns:
            (batch, time, 34) float32 log-probs and the encoded lengths (batch,) int.
        """
        encoded, encoded_lengths = self.encoder(features, lengths)
        return self.decoder(encoded), encoded_lengths

    forward = log_probs

    def losses(self, log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """CTC loss (Graves et al. 2006) of each utterance: (batch,) float32, negative log-likelihood of its text."""
        with torch.autocast(log_probs.device.type, enabled=False):
            losses: Tensor = self.ctc_loss(log_probs.transpose(0, 1), batch.targets, lengths, batch.target_lengths)
        return losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._consistency is not None:
            batch = self._consistency.views(batch)
        self._batch = batch
        log_probs, lengths = self.log_probs(batch.features, batch.feature_lengths)
        losses = self.losses(log_probs, lengths, batch)
        finite = torch.isfinite(losses) & torch.isfinite(log_probs.detach()).flatten(1).all(1)
        if not bool(finite.all()):
            raise NonFiniteLossError(
                f"step {self.global_step}: the loss is not finite for {batch.where(~finite)}; "
                "lower the learning rate or look at these utterances. The last checkpoint is untouched"
            )
        differences = 0.0 if self._consistency is None else self._consistency.losses(log_probs, lengths)
        loss = self._joint_mean(losses + differences)
        self.log("train_loss", losses.detach().mean(), prog_bar=True, batch_size=len(losses))
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        # Of what is logged, Lightning passes on every n-th step's, counted from 1. The first is for the reader's eye.
        every_n_steps = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.global_step == 0 or (self.global_step + 1) % every_n_steps == 0:
            hypotheses = greedy(log_probs.detach().cpu().numpy(), lengths.cpu().numpy())
            errors = sum(map(word_errors, batch.texts, hypotheses), ErrorCounts())
            self.log("train_wer", errors.rate, prog_bar=True, batch_size=len(losses))
            _log_example(batch.texts[0], hypotheses[0])
        return loss

    def _joint_mean(self, losses: Tensor) -> Tensor:
        """Mean over the utterances of all ranks: DDP averages gradients, so a rank's share is weighted by its size."""
        if not is_distributed():
            return losses.mean()
        utterances = torch.tensor(float(len(losses)), device=losses.device)
        dist.all_reduce(utterances)
        return losses.sum() * dist.get_world_size() / utterances

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # With float16 the gradient scaler meets gradients that are not finite by design and skips the step itself.
        if self.trainer.precision == "16-mixed" or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        # A loss may be finite and its gradient not; the step would destroy the weights.
        if not bool(torch.isfinite(norm)):
            assert self._batch is not None
            raise NonFiniteLossError(
                f"step {self.global_step}: the gradient is not finite for {self._batch.where()}; "
                "lower the learning rate. The last checkpoint is untouched"
            )

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._tap_decay:
            rate = self._tap_decay * optimizer.param_groups[0]["lr"]
            for module in self.encoder.modules():
                if isinstance(module, DepthwiseConv):
                    module.decay_taps(rate)

    def on_validation_epoch_start(self) -> None:
        self.wer.reset()
        self._val_loss = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_probs, lengths = self.log_probs(batch.features, batch.feature_lengths)
        losses = self.losses(log_probs, lengths, batch)
        hypotheses = greedy(log_probs.cpu().numpy(), lengths.cpu().numpy())
        self.wer.update(batch.texts, hypotheses)
        self._val_loss += torch.tensor([float(losses.sum()), len(losses)], dtype=torch.float64)
        if batch_idx == 0:
            _log_example(batch.texts[0], hypotheses[0])

    def on_validation_epoch_end(self) -> None:
        # Errors and words, losses and utterances of all ranks are summed before the division. Not by sync_dist, which
        # gave 1.5 times the mean loss where ranks had two utterances and one (Lightning 2.6).
        self.log("val_wer", self.wer.compute(), prog_bar=True)
        sums = self._val_loss.to(self.device, torch.float32)
        if is_distributed():
            dist.all_reduce(sums)
        self.log("val_loss", sums[0] / sums[1], prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self._optimizer is None:
            raise ValueError("training needs an optimizer; pass one to QuartzNetCTC")
        optimizer = self._optimizer(self.parameters(), **self._fused())
        max_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self._warmup_steps, max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _fused(self) -> dict[str, bool]:
        """Adam in one pass over memory: 3 ms of a step instead of 14 on two cores; PyTorch has it for CPUs since 2.4.

        Not with float16, where it would undo the scaling of gradients itself, after they were clipped.
        """
        factory = getattr(self._optimizer, "func", self._optimizer)
        settings = getattr(self._optimizer, "keywords", {})
        fusible = factory in (torch.optim.Adam, torch.optim.AdamW) and not {"fused", "foreach"} & settings.keys()
        recent = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)
        return {"fused": True} if fusible and recent and self.trainer.precision != "16-mixed" else {}

    def settings(self) -> dict[str, Any]:
        """What a checkpoint says of itself: version, alphabet, features, network; plain values."""
        return {
            "kvarts_version": kvarts.__version__,
            "alphabet": ALPHABET,
            "features": dict(FEATURE_SETTINGS),
            "encoder": self.encoder.settings(),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        broken = [name for name, tensor in self.state_dict().items() if not bool(torch.isfinite(tensor).all())]
        if broken:
            raise NonFiniteLossError(
                f"step {self.global_step}: {broken[0]} is not finite, so nothing was saved; "
                "the last checkpoint is untouched. Lower the learning rate and resume from it"
            )
        checkpoint["kvarts"] = self.settings()
        checkpoint["optimizer"] = type(self.trainer.optimizers[0]).__name__
        checkpoint["rng"] = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            checkpoint["rng"]["cuda"] = torch.cuda.get_rng_state_all()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "rng" not in checkpoint:
            raise CheckpointError(
                "this checkpoint holds weights but no state of a training run of ours, so it cannot be resumed; "
                "start from its weights with model.init_weights= instead"
            )
        if self._optimizer is not None:
            now = type(self._optimizer([nn.Parameter(torch.zeros(1))])).__name__
            then = checkpoint.get("optimizer", now)
            if now != then:
                raise ConfigError(
                    f"the run to resume was optimised by {then}, this one is by {now}; resume with the same optimizer, "
                    "or start from its weights with model.init_weights="
                )
        self._rng_to_restore = checkpoint["rng"]

    def on_fit_start(self) -> None:
        keep_memory()

    def on_train_start(self) -> None:
        # Here and not while loading: what Lightning sets up in between may draw random numbers.
        if self._rng_to_restore is not None:
            torch.set_rng_state(self._rng_to_restore["torch"])
            if "cuda" in self._rng_to_restore and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self._rng_to_restore["cuda"])
            self._rng_to_restore = None


def _check_fit(encoder: QuartzNet, decoder: ConvDecoder) -> None:
    classes, channels, _ = decoder.state_dict()["layers.0.weight"].shape
    if encoder.in_channels != N_MELS:
        raise ConfigError(f"model.encoder.in_channels={encoder.in_channels}: features have {N_MELS} mel bands")
    if channels != encoder.out_channels:
        raise ConfigError(
            f"model.decoder.in_channels={channels}: the last block of the encoder has {encoder.out_channels} filters"
        )
    if classes != NUM_CLASSES:
        raise ConfigError(f"model.decoder.num_classes={classes}: the alphabet and the blank make {NUM_CLASSES} classes")


@rank_zero_only
def _log_example(reference: str, hypothesis: str) -> None:
    logger.info("reference : %s", reference)
    logger.info("prediction: %s", hypothesis)
