"""Runs in one picture: a metric over steps or over minutes, from the curve.jsonl that every run writes.

    python benchmarks/curves.py LABEL=RUN [LABEL=RUN …] -o FILE.png [--metric val_wer] [--by minutes]
                                [--slower LABEL=FACTOR]

`--slower` stretches the time of a run: of one computed by the fast network whose steps another would have taken FACTOR
times as long for. The label then says so.
"""

import argparse
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAMES = {"val_wer": "WER, validation", "train_wer": "WER of training batches", "val_loss": "CTC loss, validation"}


def pair(text: str) -> tuple[str, str]:
    label, found, value = text.rpartition("=")
    if not found or not label:
        raise argparse.ArgumentTypeError(f"{text}: write LABEL=VALUE")
    return label, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pair, metavar="LABEL=RUN", help="RUN: a run's folder")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--metric", default="val_wer", choices=NAMES)
    parser.add_argument("--by", default="steps", choices=("steps", "minutes"))
    parser.add_argument("--slower", action="append", default=[], type=pair, metavar="LABEL=FACTOR")
    args = parser.parse_args()
    slower = {label: float(factor) for label, factor in args.slower}
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for label, run in args.runs:
        rows = [json.loads(line) for line in (Path(run) / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["metric"] == args.metric]
        factor = slower.get(label, 1.0)
        x = [row["step"] if args.by == "steps" else row["seconds"] * factor / 60 for row in rows]
        y = [100 * row["value"] if args.metric.endswith("wer") else row["value"] for row in rows]
        shown = label if factor == 1 else f"{label}, time × {factor:g}"
        panel.plot(x, y, ".-", label=f"{shown}: {y[-1]:.1f} at the end")
    panel.set_xlabel("optimiser steps" if args.by == "steps" else "minutes of training, validation included")
    panel.set_ylabel(NAMES[args.metric] + (", %" if args.metric.endswith("wer") else ""))
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(args.output, dpi=100)


if __name__ == "__main__":
    main()
