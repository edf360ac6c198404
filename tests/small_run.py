"""A training run small enough for a test: a tiny network with dropout and SpecAugment on a few sample utterances.

As a script, `small_run.py RUN_DIR KILL_AT_STEP [overrides]` trains and kills itself with SIGKILL when that step begins.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from kvarts.config import compose_config
from kvarts.manifest import read_manifest, write_manifest
from kvarts.model import QuartzNetCTC
from kvarts.train import train

SAMPLE = Path(__file__).parents[1] / "sample"

BLOCKS = (
    "[{filters: 16, repeat: 1, kernel: 11, stride: 4, residual: false},{filters: 16, repeat: 2, kernel: 5},"
    "{filters: 24, repeat: 1, kernel: 5, dilation: 2, residual: false}]"
)
NETWORK = [f"model.encoder.blocks={BLOCKS}", "model.decoder.in_channels=24"]


def make_data(folder, train=13, val=4, test=2):
    """A data folder in the course's layout that refers to the first files of the sample."""
    for part, count in (
        ("train_opus", train),
        ("val_opus", val),
        ("test_opus/crowd", test),
        ("test_opus/farfield", test),
    ):
        manifest = folder / part / "manifest.jsonl"
        manifest.parent.mkdir(parents=True)
        chosen = read_manifest(SAMPLE / part / "manifest.jsonl")[:count]
        write_manifest(manifest, ({**u.fields, "audio_filepath": str(u.audio_path.resolve())} for u in chosen))
    return folder


def overrides(data_dir, *more):
    return [
        f"data_dir={data_dir}",
        *NETWORK,
        "model.encoder.dropout=0.2",
        "augment=specaugment",
        "data.batch_size=2",
        "trainer.max_steps=21",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "trainer.accelerator=cpu",
        "checkpoint.every_n_steps=3",
        "evaluate.enabled=false",
        *more,
    ]


def run(data_dir, run_dir, *more):
    return train(compose_config(overrides(data_dir, *more)), Path(run_dir))


def kill_at(step, data_dir, run_dir, *more):
    """A run in a process of its own that dies when this step begins."""
    killed = subprocess.run(
        [sys.executable, __file__, str(data_dir), str(run_dir), str(step), *more], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def points(run_dir):
    """Every metric of the curve, by step and name."""
    lines = (Path(run_dir) / "curve.jsonl").read_text().splitlines()
    return {(p["step"], p["metric"]): p["value"] for p in map(json.loads, lines)}


if __name__ == "__main__":
    data_dir, run_dir, kill_at_step, *more = sys.argv[1:]
    started = QuartzNetCTC.training_step

    def dies(self, batch, batch_idx):
        if self.global_step == int(kill_at_step):
            os.kill(os.getpid(), signal.SIGKILL)
        return started(self, batch, batch_idx)

    QuartzNetCTC.training_step = dies
    run(data_dir, run_dir, *more)
