"""The same speech, the same time, from random weights: the course's recipe on its plain network, and `small_data`.

    python benchmarks/small_data.py [--data festvox] [--minutes 60] [--plain-steps N] [--our-steps N] [-o FOLDER]

One after the other, each trained by `main.py` until its steps are done or the minutes are over, then tested. The
course's recipe: Adam at 1e-3, batches of 16 in the manifest's order, each file decoded in each epoch, float32, conv1d.
The steps are chosen so that the cosine is near its end when the time is: for another machine, other steps. Draws both
curves over time into FOLDER/small_data.png; the runs lie beside it. Nothing else should run meanwhile.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from course_network import CourseNetwork
from kvarts.checkpoint import COURSE_BLOCKS
from kvarts.encoder import QuartzNet
from kvarts.frames import encoded_frames

BENCHMARKS = Path(__file__).resolve().parent
COURSE = (
    "~model.encoder",
    "+model.encoder._target_=small_data.PlainEncoder",
    "data.shuffle=false",
    "data.bucketing=false",
    "data.cache_mb=0",
)


class PlainEncoder(nn.Module):
    """The encoder of the course's network in the place of ours; padding is not masked, as in the original."""

    in_channels, out_channels, stride = 64, 1024, 4

    def __init__(self) -> None:
        super().__init__()
        self.layers = CourseNetwork().encoder.layers

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, mel frames, 64) and (batch,) lengths to (batch, time, 1024) and theirs."""
        return self.layers(features.transpose(1, 2)).transpose(1, 2), encoded_frames(lengths)

    def settings(self) -> dict[str, Any]:
        """Ours, for the weights are the same and are tested with our network."""
        return QuartzNet(COURSE_BLOCKS).settings()


def train(folder: Path, args: argparse.Namespace, *overrides: str) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS.parent / "main.py"),
        f"data_dir={args.data.resolve()}",
        f"hydra.run.dir={folder.resolve()}",
        f"++trainer.max_time={{minutes: {args.minutes}}}",
        *overrides,
    ]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    if subprocess.run(command, env=environment).returncode != 0:
        sys.exit("the run failed; its message stands above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("festvox"), help="made by kvarts data sample --whole")
    parser.add_argument("--minutes", type=int, default=60, help="at most, of each training")
    parser.add_argument("--plain-steps", type=int, default=1050)
    parser.add_argument("--our-steps", type=int, help="default: those of the recipe")
    parser.add_argument("-o", "--output", type=Path, default=Path("small_data"), metavar="FOLDER")
    args = parser.parse_args()
    ours = [] if args.our_steps is None else [f"trainer.max_steps={args.our_steps}"]
    train(args.output / "ours", args, "+experiment=small_data", *ours)
    train(args.output / "plain", args, *COURSE, f"trainer.max_steps={args.plain_steps}")
    labels = {"course's recipe, plain network": "plain", "small_data": "ours"}
    runs = [f"{label}={args.output / name}" for label, name in labels.items()]
    picture = ["-o", str(args.output / "small_data.png"), "--metric", "val_wer", "--by", "minutes"]
    subprocess.run([sys.executable, str(BENCHMARKS / "curves.py"), *runs, *picture], check=True)


if __name__ == "__main__":
    main()
