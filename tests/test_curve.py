"""The curve of a run: what it shows is what the steps were."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kvarts.model
from kvarts.config import compose_config
from kvarts.curve import draw_curve
from kvarts.dataset import Batch
from kvarts.error_counts import word_errors
from kvarts.manifest import write_manifest
from kvarts.model import QuartzNetCTC
from kvarts.train import train

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_picture_and_the_numbers_beside_it(tmp_path: Path) -> None:
    points = [
        (5, "train_loss", 3.0, 1.0),
        (5, "train_wer", 1.0, 1.0),
        (5, "val_loss", 2.5, 2.04),
        (10, "train_loss", float("nan"), float("nan")),
    ]
    draw_curve(points, tmp_path / "new" / "curve.png")
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(PNG)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "new" / "curve.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    values = [tuple(row[name] for name in ("step", "metric", "value", "seconds")) for row in rows]
    assert values == [*points[:2], (5, "val_loss", 2.5, 2.0), (10, "train_loss", None, None)]


def test_a_curve_of_one_point_can_be_drawn(tmp_path: Path) -> None:
    draw_curve([(1, "val_wer", 0.5, 3.0)], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def curve_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    metrics = defaultdict(list)
    for line in (run_dir / "curve.jsonl").read_text().splitlines():
        point = json.loads(line)
        metrics[point["metric"]].append((point["step"], point["value"]))
    return metrics


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loss_and_wer_of_a_step_are_those_of_its_batch(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five batches an epoch, every third step logged, so that logged steps lie anywhere in an epoch."""
    for part in ("train_opus", "val_opus"):
        (tmp_path / part).mkdir()
        rows = []
        for number, text in enumerate(["да", "нет да", "нет", "да да нет", "нет нет"]):
            noise = 0.1 * np.random.default_rng(number).standard_normal(8000 + 800 * number)
            soundfile.write(tmp_path / part / f"{number}.wav", noise.astype(np.float32), 16_000)
            rows.append({"audio_filepath": f"{number}.wav", "text": text, "duration": len(noise) / 16_000})
        write_manifest(tmp_path / part / "manifest.jsonl", rows)

    batches: list[tuple[int, float, float]] = []  # steps made after it, loss, WER
    learn = QuartzNetCTC.training_step

    def watched(self: QuartzNetCTC, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = learn(self, batch, batch_idx)
        wer = word_errors(batch.texts[0], "да").rate
        batches.append((self.global_step + 1, float(loss.detach()), wer))
        return loss

    # So little is learnt here that all WERs would be 1; these differ from text to text.
    monkeypatch.setattr(kvarts.model, "greedy", lambda _log_probs, lengths: ["да"] * len(lengths))
    monkeypatch.setattr(QuartzNetCTC, "training_step", watched)
    settings: dict[str, Any] = {
        "data_dir": tmp_path,
        "model.encoder.blocks": "[{filters:8,repeat:1,kernel:5,stride:4,residual:false}]",
        "model.decoder.in_channels": 8,
        "data.batch_size": 1,
        "trainer.max_steps": 12,
        "trainer.log_every_n_steps": 3,
        "trainer.accumulate_grad_batches": accumulate,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "evaluate.enabled": "false",
    }
    train(compose_config([f"{key}={value}" for key, value in settings.items()]), tmp_path / "run")

    wanted = {step: (loss, wer) for step, loss, wer in batches if step % 3 == 0}  # the last batch of each step
    assert list(wanted) == [3, 6, 9, 12]
    assert len({wer for _, wer in wanted.values()}) > 1, "nothing to tell one step from another"
    curve = curve_of(tmp_path / "run")
    assert curve["train_loss"] == [(step, pytest.approx(loss)) for step, (loss, _) in wanted.items()]
    assert curve["train_wer"] == [(step, pytest.approx(wer)) for step, (_, wer) in wanted.items()]

    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    # TensorBoard counts steps from 0.
    shown = {event.step + 1: event.value for event in events.Scalars("train_wer")}
    assert shown == {step: pytest.approx(wer) for step, (_, wer) in wanted.items()}
    assert {event.step + 1 for event in events.Scalars("train_loss")} == set(wanted)
    assert {"val_loss", "val_wer", "lr"} <= set(events.Tags()["scalars"])
