"""A run killed with SIGKILL at any step and resumed takes the same steps as one never killed, bit for bit."""

import os

import pytest
import torch

import small_run
from kvarts.checkpoint import read_checkpoint
from kvarts.train import find_resume


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return small_run.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def never_killed(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    small_run.run(data_dir, run_dir)
    return run_dir


# Seven batches an epoch, saved every three steps or at the epoch's end, validated every other epoch: step 4 lies within
# the first epoch, 7 is the first of the second epoch, 14 the first after a validation, 20 the last of all.
@pytest.mark.parametrize("step", [4, 7, 14, 20])
def test_killed_and_resumed_equals_never_killed(step, data_dir, never_killed, tmp_path):
    small_run.kill_at(step, data_dir, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert step - 3 <= read_checkpoint(last)["global_step"] <= step
    small_run.run(data_dir, tmp_path, f"resume={last}")

    assert small_run.points(tmp_path) == small_run.points(never_killed)
    ours, theirs = (read_checkpoint(d / "checkpoints" / "last.ckpt") for d in (tmp_path, never_killed))
    assert ours["global_step"] == theirs["global_step"] == 21
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], tensor), name
    for number, state in theirs["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(ours["optimizer_states"][0]["state"][number][name]), value)
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    best, their_best = (read_checkpoint(d / "checkpoints" / "best.ckpt") for d in (tmp_path, never_killed))
    assert best["global_step"] == their_best["global_step"]


def test_resuming_with_workers_and_accumulation(data_dir, tmp_path):
    more = ("data.num_workers=1", "trainer.accumulate_grad_batches=2", "trainer.max_steps=9")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    small_run.run(data_dir, whole, *more)
    small_run.kill_at(6, data_dir, cut, *more)
    small_run.run(data_dir, cut, *more, f"resume={cut / 'checkpoints' / 'last.ckpt'}")
    assert small_run.points(cut) == small_run.points(whole)


def test_the_seed_decides(data_dir, never_killed, tmp_path):
    small_run.run(data_dir, tmp_path / "same", "trainer.max_steps=21")
    assert small_run.points(tmp_path / "same") == small_run.points(never_killed)
    small_run.run(data_dir, tmp_path / "other", "seed=7")
    assert small_run.points(tmp_path / "other") != small_run.points(never_killed)


def test_taps_decay_after_the_step_at_its_learning_rate(data_dir, tmp_path):
    states = []
    for decay in (0, 40):
        run_dir = tmp_path / str(decay)
        small_run.run(data_dir, run_dir, "trainer.max_steps=1", f"model.tap_decay={decay}", "optimizer.lr=1e-2")
        states.append(read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"])
    for name, weight in states[0].items():
        expected = weight.clone()
        if weight.ndim == 3 and weight.shape[2] > 1:  # depthwise; the first of ten steps of warm-up is at 1e-3
            taps = weight.shape[2]
            expected *= (1 - 1e-3 * 40 * (torch.arange(taps) - taps // 2) ** 2).clamp(min=0)
        torch.testing.assert_close(states[1][name], expected, msg=name)


def test_auto_finds_the_newest(tmp_path):
    assert find_resume("auto", tmp_path) is None
    for age, name in enumerate(["2026-01-02", "2026-01-01"]):  # the newest is the one written last, whatever its name
        path = tmp_path / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 + age, 1000 + age))
    assert find_resume("auto", tmp_path) == path
