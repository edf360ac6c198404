"""What happens beside training: the checkpoint to resume from, and the curve of loss and WER."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kvarts.curve import Point, draw_curve
from kvarts.dataset import Batch


class LastCheckpoint(pl.Callback):
    """Keeps `last.ckpt` for resuming: every `every_n_steps` steps within an epoch, or at the epoch's end if one is due.

    Where a step ends its epoch, saving waits for the validation that follows, so that a resumed run neither repeats nor
    misses it.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self._path = path
        self._every_n_steps = every_n_steps
        self._saved_at_step = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        trainer.datamodule.batch_done()  # type: ignore[attr-defined]
        accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if self._is_due(trainer) and not trainer.is_last_batch and not accumulates:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_due(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_at_step:
            self._save(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._saved_at_step = checkpoint["global_step"]

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step - self._saved_at_step >= self._every_n_steps

    def _save(self, trainer: pl.Trainer) -> None:
        # Before saving: the callbacks' states are part of what is saved.
        self._saved_at_step = trainer.global_step
        trainer.save_checkpoint(self._path)


class Curve(pl.Callback):
    """Remembers loss and WER, also across a resume, and draws them into `path` when training ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: list[Point] = []
        self._seconds = 0.0  # of training and validation before this start
        self._start = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def _seconds_so_far(self) -> float:
        return self._seconds + time.perf_counter() - self._start

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._remember(trainer, "train_loss", "train_wer")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remember(trainer, "val_loss", "val_wer")

    def _remember(self, trainer: pl.Trainer, *names: str) -> None:
        for name in names:
            if name in trainer.callback_metrics:
                value = float(trainer.callback_metrics[name])
                self.points.append((trainer.global_step, name, value, self._seconds_so_far()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.points:
            draw_curve(self.points, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"points": list(self.points), "seconds": self._seconds_so_far()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Runs before this kept the time had three values to a point.
        self.points = [(*point, math.nan)[:4] for point in state_dict["points"]]
        self._seconds = state_dict.get("seconds", 0.0)
