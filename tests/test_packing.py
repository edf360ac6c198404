"""Frames in and out of batches."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvarts.packing import Packing


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 9))
def test_frames_come_back_from_where_they_were_put(lengths, more):
    packing = Packing(torch.tensor(lengths), max(lengths) + more)
    padded = torch.randn(len(lengths), packing.time, 3)
    packed = packing.pack(padded)
    assert packed.shape == (sum(lengths), 3)
    back = packing.pad(packed)
    start = 0
    for row, length in enumerate(lengths):
        assert torch.equal(packed[start : start + length], padded[row, :length])
        assert torch.equal(back[row, :length], padded[row, :length])
        assert not back[row, length:].any()
        start += length
    assert packing.offsets.tolist()[-1] == start


@given(st.lists(st.integers(1, 20), min_size=2, max_size=4))
def test_gradients_go_the_same_way_back(lengths):
    packing = Packing(torch.tensor(lengths), max(lengths))
    padded = torch.randn(len(lengths), packing.time, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(packing.pack, padded)
    torch.autograd.gradcheck(packing.pad, packing.pack(padded).detach().requires_grad_())
