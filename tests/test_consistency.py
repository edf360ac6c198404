"""Two views of an utterance, and what their difference costs (CR-CTC)."""

import math

import pytest
import torch

import small_run
from kvarts.consistency import Consistency
from kvarts.dataset import Example, collate
from kvarts.errors import ConfigError
from kvarts.manifest import read_manifest
from kvarts.specaugment import SpecAugment

MASKS = SpecAugment(freq_masks=1, freq_width=20, time_masks=2, time_width=30, time_fraction=0.2)
OVERRIDE = (
    "+model.consistency={_target_: kvarts.consistency.Consistency, weight: 0.3,"
    "masks: {_target_: kvarts.specaugment.SpecAugment}}"
)


@pytest.fixture
def batch():
    utterances = read_manifest(small_run.SAMPLE / "train_opus" / "manifest.jsonl")[:2]
    torch.manual_seed(1)
    lengths, targets = (90, 60), ([1, 2, 3], [4])
    return collate([
        Example(torch.randn(frames, 64), torch.tensor(target), utterance)
        for frames, target, utterance in zip(lengths, targets, utterances, strict=True)
    ])


def test_views_are_masked_each_for_itself_and_differ_in_nothing_else(batch):
    before = batch.features.clone()
    views = Consistency(MASKS).views(batch)
    assert torch.equal(batch.features, before)
    first, second = views.features.chunk(2)
    assert not torch.equal(first, second)
    for view in (first, second):
        assert (view[1, 60:] == 0).all()  # padding stays padding
        for row, length in enumerate((90, 60)):
            kept = view[row, :length] == batch.features[row, :length]
            assert 0.3 < kept.float().mean() < 1
    assert views.feature_lengths.tolist() == [90, 60, 90, 60]
    assert views.targets.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert views.target_lengths.tolist() == [3, 1, 3, 1]
    assert views.texts == batch.texts * 2


def test_views_follow_the_seed(batch):
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(Consistency(MASKS).views(batch).features)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_utterance_is_named_once(batch):
    assert Consistency(MASKS).views(batch).where() == batch.where()


def test_the_difference_is_the_divergence_summed_over_the_frames_of_each_utterance():
    """By hand: p and q over two classes; KL(q || p) where p learns, KL(p || q) where q does."""
    p, q = (0.5, 0.5), (0.75, 0.25)
    log_probs = torch.tensor([[p, p], [p, p], [q, q], [q, q]]).log().requires_grad_()
    losses = Consistency(MASKS, weight=0.2).losses(log_probs, torch.tensor([2, 1, 2, 1]))
    from_q = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    from_p = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = 0.2 * torch.tensor([2 * from_q, from_q, 2 * from_p, from_p])
    torch.testing.assert_close(losses, expected)
    losses[0].backward()  # the other view stands still, and so does what is no speech
    assert log_probs.grad[0].abs().sum() > 0
    assert log_probs.grad[1:].abs().sum() == 0


def test_alike_views_cost_nothing():
    log_probs = torch.randn(1, 5, 34).log_softmax(2).repeat(2, 1, 1)
    assert Consistency(MASKS).losses(log_probs, torch.tensor([5, 5])).tolist() == [0, 0]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weights_that_teach_nothing(weight):
    with pytest.raises(ConfigError, match=r"model\.consistency\.weight="):
        Consistency(MASKS, weight)


def test_a_run_with_views_resumes_to_the_bit(tmp_path):
    data_dir = small_run.make_data(tmp_path / "data", train=5)
    more = (OVERRIDE, "trainer.max_steps=6", "checkpoint.every_n_steps=2")
    small_run.run(data_dir, tmp_path / "whole", *more)
    small_run.kill_at(3, data_dir, tmp_path / "cut", *more)
    small_run.run(data_dir, tmp_path / "cut", *more, f"resume={tmp_path / 'cut' / 'checkpoints' / 'last.ckpt'}")
    assert small_run.points(tmp_path / "cut") == small_run.points(tmp_path / "whole")
    small_run.run(data_dir, tmp_path / "without", *more[1:])
    assert small_run.points(tmp_path / "without") != small_run.points(tmp_path / "whole")
