"""Two processes on the CPU: the gradients of one process on the joint batch, and every utterance evaluated once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import small_run
from kvarts.checkpoint import read_checkpoint

MAIN = Path(__file__).parents[1] / "main.py"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    # Joint batches of four, four and three utterances: of the last, one rank gets two and the other one.
    return small_run.make_data(tmp_path_factory.mktemp("data"), train=11, val=3)


def train_with(processes, batch_size, data_dir, cwd):
    cwd.mkdir()
    command = [
        *(sys.executable, str(MAIN)),
        *small_run.overrides(data_dir),
        "model.encoder.dropout=0",
        f"data.batch_size={batch_size}",
        # Plain gradient descent, so that weights differ by gradients alone; Adam turns rounding errors into steps.
        "+optimizer.momentum=0",
        "optimizer._target_=torch.optim.SGD",
        "trainer.max_steps=4",
        "trainer.check_val_every_n_epoch=1",
        "trainer.gradient_clip_val=5.0",
        "evaluate.enabled=true",
        "hydra.run.dir=run",
        f"trainer.devices={processes}",
        *(["++trainer.strategy=ddp"] if processes > 1 else []),
    ]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return cwd / "run", done.stdout


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return train_with(1, 4, data_dir, folder / "one"), train_with(2, 2, data_dir, folder / "two")


def test_weights_after_some_steps_are_those_of_one_process(runs):
    (one, _), (two, _) = runs
    start = read_checkpoint(one / "checkpoints" / "last.ckpt")
    other = read_checkpoint(two / "checkpoints" / "last.ckpt")
    assert start["global_step"] == other["global_step"] == 4
    for name, tensor in start["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_val_wer_is_summed_over_all_utterances_and_ranks(runs):
    (one, _), (two, _) = runs
    single, double = small_run.points(one), small_run.points(two)
    assert any(name == "val_wer" for _, name in single)
    for key, value in single.items():
        if key[1] in ("val_wer", "val_loss"):
            assert double[key] == pytest.approx(value, rel=1e-4), key


def test_the_table_counts_every_utterance_once(runs):
    (_, one), (_, two) = runs
    results = [json.loads((run / "evaluation" / "results.json").read_text()) for run, _ in runs]
    assert [e["utterances"] for e in results[0]["manifests"]] == [2, 2]
    assert [e["utterances"] for e in results[1]["manifests"]] == [2, 2]
    assert one.count("train sample") == two.count("train sample") == 1
