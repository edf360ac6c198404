# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803, N806 - constants of a kernel are capitals in Triton
"""The depthwise convolution over packed frames as Triton kernels, forward and all gradients; stride 1.

Needs Triton, which comes with PyTorch for CUDA on Linux, so `kvarts.depthwise` imports this module only there. Its
tests also run without a GPU, in Triton's interpreter: `pip install triton`, `pytest tests/test_depthwise_triton.py`.

All three are correlations of two series of frames, channel by channel:

    forward                y[n] = sum_m weight[m] x[n + m - margin]
    gradient by input      the same of y's gradient, with the weight flipped
    gradient by weight     dw[j] = sum_n dy[n] x[n + j - margin], summed over the utterances

so one loop serves them all, `_correlate`. A frame that it reads meets REUSE terms while it is in a register, and the
terms wander on from sum to sum, so that each of them is read once as well: most instructions are multiplications.

Numbers are read as they are, in float32, bfloat16 or float16, and summed in float32. No sum depends on which program
ends first: the same inputs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kvarts.packing import Packing

ROWS = 8  # of a tile; a thread has four neighbouring channels of one of them
BLOCK_CHANNELS = 64  # 128 bytes of a row in bfloat16: a whole line of the cache
MOST_REUSE = 8  # sums of a tile's row, as many as `_correlate` has variables
WARPS = 4  # ROWS · BLOCK_CHANNELS / (32 threads · 4 channels)
CHUNK_FRAMES = 128  # what a program of the gradient by weight takes at a time
PROGRAMS = 1024  # of the gradient by weight, about: some eight for each multiprocessor of an H100
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, packing: Packing, dilation: int) -> Tensor:
    """Depthwise convolution of each utterance, zeros beyond its ends; differentiable once.

    Args:
        x: packed frames (frames, channels) of one of `DTYPES`.
        weight: (channels, 1, kernel), kernel odd; any floating dtype.
        bias: (channels,) or None.
        packing: where the utterances lie in x.
        dilation: frames between neighbouring taps.

    Returns:
        (frames, channels), dtype of x.

    Raises:
        TypeError: x has another dtype.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"frames of {x.dtype}: the Triton kernels take float32, bfloat16 or float16")
    y: Tensor = _Depthwise.apply(x, weight, bias, packing, dilation)
    return y


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packing: Packing, dilation: int
    ) -> Tensor:
        x = x.contiguous()
        taps = weight.squeeze(1).t().contiguous()  # (kernel, channels), so that channels are neighbours
        ctx.save_for_backward(x, taps)
        ctx.packing, ctx.dilation = packing, dilation
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _convolve(x, taps, bias, packing, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, taps = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _convolve(grad_y, taps.flip(0), None, ctx.packing, ctx.dilation)
        if ctx.needs_input_grad[1]:
            grad_taps = _gradient_by_taps(x, grad_y, len(taps), ctx.packing, ctx.dilation)
            grad_weight = grad_taps.t().unsqueeze(1).to(taps.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_y.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None, None


def _convolve(x: Tensor, taps: Tensor, bias: Tensor | None, packing: Packing, dilation: int) -> Tensor:
    """Packed frames x (frames, channels) convolved by taps (kernel, channels)."""
    y = torch.empty_like(x)
    blocks = _ceil_div(_ceil_div(packing.time, dilation), ROWS * MOST_REUSE)
    grid = (_ceil_div(x.shape[1], BLOCK_CHANNELS), blocks, len(packing) * dilation)
    with torch.cuda.device_of(x):
        _convolve_kernel[grid](
            x, taps, bias, y, packing.offsets,
            CHANNELS=x.shape[1], KERNEL=len(taps), DILATION=dilation, REUSE=MOST_REUSE,
            ROWS=ROWS, BLOCK_CHANNELS=BLOCK_CHANNELS, num_warps=WARPS, num_stages=1,
        )  # fmt: skip
    return y


def _gradient_by_taps(x: Tensor, grad_y: Tensor, kernel: int, packing: Packing, dilation: int) -> Tensor:
    """(kernel, channels) float32, of packed frames x and gradients by the output, both (frames, channels)."""
    channels = x.shape[1]
    channel_blocks = _ceil_div(channels, BLOCK_CHANNELS)
    tap_blocks = _ceil_div(kernel, ROWS * MOST_REUSE)
    reuse = _ceil_div(kernel, ROWS * tap_blocks)  # the fewest sums to which all taps come
    chunks = _ceil_div(_ceil_div(packing.time, dilation), CHUNK_FRAMES)
    items = len(packing) * dilation * chunks
    # Every program sums the same number of chunks, and the sums of all programs are added up by one that knows no
    # order but its own: quick, and repeatable, as atomic additions are not.
    items_each = _ceil_div(items * channel_blocks * tap_blocks, PROGRAMS)
    splits = _ceil_div(items, items_each)
    sums = torch.empty(splits, kernel, channels, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _gradient_kernel[(channel_blocks, tap_blocks, splits)](
            x, grad_y, sums, packing.offsets, items, chunks,
            CHANNELS=channels, KERNEL=kernel, DILATION=dilation, REUSE=reuse, CHUNK=CHUNK_FRAMES,
            ROWS=ROWS, BLOCK_CHANNELS=BLOCK_CHANNELS, num_warps=WARPS, num_stages=1,
        )  # fmt: skip
    return sums.sum(0)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@triton.jit
def _correlate(
    frames,
    position,
    length,
    terms,
    count,
    inside,
    s0, s1, s2, s3, s4, s5, s6, s7,
    FRAME_PITCH: tl.constexpr,
    TERM_PITCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    REUSE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """s_i[r] += sum over m < count of terms[m] · frames[r, i + m], for i < REUSE; the sums s_i are (ROWS, channels).

    `frames` (ROWS, channels) and `terms` (channels,) point to the first of each and go on in steps of their pitches;
    `position` (ROWS, 1) is where in a series of `length` frames those are, which is zero outside.
    """
    nought = tl.zeros((BLOCK_CHANNELS,), tl.int32)
    t0 = nought.to(tl.float32)
    t1 = t0
    t2 = t0
    t3 = t0
    t4 = t0
    t5 = t0
    t6 = t0
    t7 = t0
    for step in range(0, count + REUSE - 1, REUSE):
        # REUSE steps at a time: the terms are then where they began, and no register is copied to another.
        for ahead in tl.static_range(REUSE):
            t7 = t6
            t6 = t5
            t5 = t4
            t4 = t3
            t3 = t2
            t2 = t1
            t1 = t0
            at = position + ahead
            here = (at >= 0) & (at < length)
            exists = nought + (step + ahead) < count  # for each channel: one comparison is no mask to the interpreter
            if CHANNELS % BLOCK_CHANNELS != 0:
                here = here & inside[None, :]
                exists = exists & inside
            t0 = tl.load(terms + ahead * TERM_PITCH, mask=exists, other=0.0).to(tl.float32)
            x = tl.load(frames + ahead * FRAME_PITCH, mask=here, other=0.0).to(tl.float32)
            s0 += x * t0[None, :]
            if REUSE > 1:
                s1 += x * t1[None, :]
            if REUSE > 2:
                s2 += x * t2[None, :]
            if REUSE > 3:
                s3 += x * t3[None, :]
            if REUSE > 4:
                s4 += x * t4[None, :]
            if REUSE > 5:
                s5 += x * t5[None, :]
            if REUSE > 6:
                s6 += x * t6[None, :]
            if REUSE > 7:
                s7 += x * t7[None, :]
        frames += REUSE * FRAME_PITCH
        terms += REUSE * TERM_PITCH
        position += REUSE
    return s0, s1, s2, s3, s4, s5, s6, s7


@triton.jit
def _series(offsets, number, DILATION: tl.constexpr):
    """First packed row and number of frames of a series: with a dilation, frames t, t + dilation, … of an utterance
    meet only each other, and are one of its `dilation` series."""
    utterance = number // DILATION
    first = tl.load(offsets + utterance)
    phase = number % DILATION
    length = (tl.load(offsets + utterance + 1) - first).to(tl.int32)
    return first + phase, (length - phase + DILATION - 1) // DILATION


@triton.jit
def _store(out, row, rows, inside, s, PITCH: tl.constexpr):
    """The sums s (ROWS, channels) to rows `row` (ROWS, 1) of `out` (channels,), those below `rows`."""
    tl.store(out[None, :] + row * PITCH, s, mask=(row < rows) & inside[None, :])


@triton.jit
def _convolve_kernel(
    x,
    taps,
    bias,
    y,
    offsets,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    REUSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """ROWS · REUSE frames of a series and a block of channels; grid (channels, frames, series)."""
    PITCH: tl.constexpr = DILATION * CHANNELS
    first, length = _series(offsets, tl.program_id(2), DILATION)
    start = tl.program_id(1) * ROWS * REUSE
    if start >= length:
        return
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < CHANNELS
    row = start + REUSE * tl.arange(0, ROWS)[:, None]
    s = tl.zeros((ROWS, BLOCK_CHANNELS), tl.float32)
    if bias is not None:
        s += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    position = row - (KERNEL - 1) // 2
    frames = x + first * CHANNELS + position * PITCH + channel[None, :]
    s0, s1, s2, s3, s4, s5, s6, s7 = _correlate(
        frames, position, length, taps + channel, KERNEL, inside,
        s, s, s, s, s, s, s, s, PITCH, CHANNELS, CHANNELS, REUSE, BLOCK_CHANNELS,
    )  # fmt: skip
    out = y + first * CHANNELS + channel
    _store(out, row, length, inside, s0, PITCH)
    _store(out, row + 1, length, inside, s1, PITCH)
    _store(out, row + 2, length, inside, s2, PITCH)
    _store(out, row + 3, length, inside, s3, PITCH)
    _store(out, row + 4, length, inside, s4, PITCH)
    _store(out, row + 5, length, inside, s5, PITCH)
    _store(out, row + 6, length, inside, s6, PITCH)
    _store(out, row + 7, length, inside, s7, PITCH)


@triton.jit
def _gradient_kernel(
    x,
    grad_y,
    sums,
    offsets,
    items,
    chunks,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    REUSE: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """ROWS · REUSE taps and a block of channels, over every splits-th item, an item being CHUNK frames of a series.

    Grid (channels, taps, splits); sums (splits, kernel, channels).
    """
    PITCH: tl.constexpr = DILATION * CHANNELS
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < CHANNELS
    tap = REUSE * (tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None])
    s0 = tl.zeros((ROWS, BLOCK_CHANNELS), tl.float32)
    s1 = s0
    s2 = s0
    s3 = s0
    s4 = s0
    s5 = s0
    s6 = s0
    s7 = s0
    for item in range(tl.program_id(2), items, tl.num_programs(2)):
        first, length = _series(offsets, item // chunks, DILATION)
        start = (item % chunks) * CHUNK
        if start < length:
            position = start + tap - (KERNEL - 1) // 2
            frames = x + first * CHANNELS + position * PITCH + channel[None, :]
            terms = grad_y + first * CHANNELS + start * PITCH + channel
            s0, s1, s2, s3, s4, s5, s6, s7 = _correlate(
                frames, position, length, terms, tl.minimum(length - start, CHUNK), inside,
                s0, s1, s2, s3, s4, s5, s6, s7, PITCH, PITCH, CHANNELS, REUSE, BLOCK_CHANNELS,
            )  # fmt: skip
    out = sums + tl.program_id(2) * (KERNEL * CHANNELS) + channel
    _store(out, tap, KERNEL, inside, s0, CHANNELS)
    if REUSE > 1:
        _store(out, tap + 1, KERNEL, inside, s1, CHANNELS)
    if REUSE > 2:
        _store(out, tap + 2, KERNEL, inside, s2, CHANNELS)
    if REUSE > 3:
        _store(out, tap + 3, KERNEL, inside, s3, CHANNELS)
    if REUSE > 4:
        _store(out, tap + 4, KERNEL, inside, s4, CHANNELS)
    if REUSE > 5:
        _store(out, tap + 5, KERNEL, inside, s5, CHANNELS)
    if REUSE > 6:
        _store(out, tap + 6, KERNEL, inside, s6, CHANNELS)
    if REUSE > 7:
        _store(out, tap + 7, KERNEL, inside, s7, CHANNELS)
