"""A picture of loss and WER over steps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from kvarts.files import atomic_text_writer, atomic_writer

# Step, metric (train_loss, train_wer, val_loss, val_wer), value, seconds of training up to there.
Point = tuple[int, str, float, float]


def draw_curve(points: Sequence[Point], path: Path) -> None:
    """Draw loss above WER into a PNG, and write the numbers as JSON lines beside it.

    Raises:
        OutputError: a file cannot be written.
    """
    # Figure and canvas directly: pyplot keeps global state and looks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True)
    for panel, quantity, label in zip(panels, ("loss", "wer"), ("CTC loss per utterance", "WER"), strict=True):
        for part, colour, style in (("train", "tab:blue", "-"), ("val", "tab:orange", ".-")):
            steps = [step for step, name, *_ in points if name == f"{part}_{quantity}"]
            values = [value for _, name, value, _ in points if name == f"{part}_{quantity}"]
            if steps:
                panel.plot(steps, values, style, color=colour, label=f"{part} ({values[-1]:.3g} at the end)")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    panels[1].set_xlabel("optimiser steps")
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=100)
    with atomic_text_writer(path.with_suffix(".jsonl")) as text:
        for step, name, value, seconds in points:
            row = {"step": step, "metric": name, "value": _finite(value), "seconds": _finite(round(seconds, 1))}
            text.write(json.dumps(row) + "\n")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no word for anything else
