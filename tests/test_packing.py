"""Frames in and out of batches; the spare rows that follow them count nowhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kvarts.encoder import BatchNorm, BlockConfig, QuartzNet
from kvarts.packing import Packing, _rounded_up


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 9))
def test_frames_come_back_from_where_they_were_put(lengths, more):
    packing = Packing(torch.tensor(lengths), max(lengths) + more)
    padded = torch.randn(len(lengths), packing.time, 3)
    packed = packing.pack(padded)
    assert packed.shape == (packing.num_rows, 3)
    assert not packed[packing.num_frames :].any()
    back = packing.pad(packed)
    start = 0
    for row, length in enumerate(lengths):
        assert torch.equal(packed[start : start + length], padded[row, :length])
        assert torch.equal(back[row, :length], padded[row, :length])
        assert not back[row, length:].any()
        start += length
    assert packing.num_frames == start


@given(st.lists(st.integers(1, 20), min_size=2, max_size=4))
def test_gradients_go_the_same_way_back(lengths):
    packing = Packing(torch.tensor(lengths), max(lengths))
    padded = torch.randn(len(lengths), packing.time, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(packing.pack, padded)
    torch.autograd.gradcheck(packing.pad, packing.pack(padded).detach().requires_grad_())


@given(st.integers(1, 10**7))
def test_numbers_of_rows_come_in_steps(number):
    rounded = _rounded_up(number)
    assert number <= rounded <= number * 17 / 16
    assert _rounded_up(rounded) == rounded


def test_few_numbers_of_rows_for_many_batches():
    assert len({_rounded_up(number) for number in range(1000, 2000)}) <= 18


def test_batchnorm_takes_nothing_from_spare_rows():
    packing = Packing(torch.tensor([50, 17, 34]), 50)
    assert packing.num_rows > packing.num_frames
    frames = torch.randn(packing.num_frames, 8, requires_grad=True)
    ours, plain = BatchNorm(8), nn.BatchNorm1d(8)
    x = nn.functional.pad(frames, (0, 0, 0, packing.num_rows - packing.num_frames), value=1e6)
    weights = torch.randn(packing.num_rows, 8)
    y = ours(x, packing)
    assert not y[packing.num_frames :].any()
    (y * weights).sum().backward()
    gradient, frames.grad = frames.grad, None
    expected = plain(frames)
    (expected * weights[: packing.num_frames]).sum().backward()
    torch.testing.assert_close(y[: packing.num_frames], expected)
    torch.testing.assert_close(gradient, frames.grad)
    torch.testing.assert_close(ours.running_var, plain.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_spare_rows_leave_every_gradient_as_it_is(monkeypatch, training):
    torch.manual_seed(0)
    blocks = [BlockConfig(16, 1, 5, stride=4, residual=False), BlockConfig(16, 2, 5), BlockConfig(16, 1, 7, dilation=2)]
    network = QuartzNet(blocks).double().train(training)
    features, lengths = torch.randn(3, 201, 64, dtype=torch.float64), torch.tensor([201, 40, 117])
    results = []
    for rounded_up in (_rounded_up, lambda number: number):
        monkeypatch.setattr("kvarts.packing._rounded_up", rounded_up)
        network.zero_grad()
        encoded, _ = network(features, lengths)
        encoded.square().sum().backward()
        results.append([encoded.detach(), *(p.grad.clone() for p in network.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
