"""The depthwise convolution over packed frames, forward and both gradients: nine parts of a hundred of the
network's arithmetic, and half of a training step where it is left to `conv1d`.

On a CPU all three are channels-last 2-D depthwise convolutions, which oneDNN runs at 100 GFLOP/s and more on two cores
where `conv1d` reaches 2 to 5. On a GPU with Triton they are kernels of our own, see `kvarts.depthwise_triton`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own customary name
from torch import Tensor, nn

from kvarts.frames import encoded_frames
from kvarts.packing import Packing, take_rows


class DepthwiseConv(nn.Conv1d):
    """A convolution over time of each channel with its own odd kernel; packed frames in and out.

    Weight (channels, 1, kernel) and bias (channels,), as in `Conv1d(groups=channels)`.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels)

    def forward(self, x: Tensor, packing: Packing) -> tuple[Tensor, Packing]:  # type: ignore[override]
        """Packed frames (frames, channels) and their packing, to those that leave and theirs."""
        stride, dilation = self.stride[0], self.dilation[0]
        if stride == 1 and x.device.type == "cpu":
            y: Tensor = _CpuDepthwise.apply(x, self.weight.to(x.dtype), self.bias, packing, dilation)  # type: ignore[no-untyped-call]
            return y, packing
        y = convolve(packing.pad(x), self.weight, self.bias, stride, int(self.padding[0]), dilation)
        if stride > 1:
            packing = Packing(encoded_frames(packing.lengths, stride), y.shape[1])
        return packing.pack(y), packing


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Depthwise convolution of x (batch, time, channels) by weight (channels, 1, kernel)."""
    image = x.transpose(1, 2).unsqueeze(2)  # (batch, channels, 1, time), in channels-last memory
    y = F.conv2d(image, weight.unsqueeze(2), bias, (1, stride), (0, padding), (1, dilation), groups=x.shape[2])
    return y.squeeze(2).transpose(1, 2)


class _CpuDepthwise(torch.autograd.Function):
    """Stride 1. Both gradients are depthwise convolutions too.

    By input, it is the convolution with the flipped kernel. By weight, it is the correlation of the input with the
    gradient of the output, channel by channel and utterance by utterance: so each pair of both is a channel of its own,
    and the gradient its kernel, as long as the utterance. On two cores of an AMD EPYC that took 0.33 to 0.52 of the
    time of the library's own gradient by weight (`python benchmarks/depthwise.py`, ratios 1.9 to 3.0).

    With a dilation, frames t, t + dilation, … meet only each other, so that `dilation` neighbouring frames side by side
    are the channels of an undilated convolution: a view, and 1.9 times faster than the dilated kernel.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packing: Packing, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.packing, ctx.dilation = packing, dilation
        return _same_convolution(x, weight, None if bias is None else bias.to(x.dtype), packing, dilation)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _same_convolution(grad_y, weight.flip(2), None, ctx.packing, ctx.dilation)
        if ctx.needs_input_grad[1]:
            grad_weight = _gradient_by_weight(x, grad_y, weight.shape[2], ctx.packing, ctx.dilation)
            grad_weight = grad_weight.t().unsqueeze(1).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_y.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))
        return grad_x, grad_weight, grad_bias, None, None


def _side_by_side(x: Tensor, packing: Packing, dilation: int) -> Tensor:
    """Packed x as (batch, groups of `dilation` frames, dilation · channels), zero beyond each length."""
    groups = -(-packing.time // dilation)
    if packing.is_full and groups * dilation == packing.time:
        return x.view(len(packing), groups, -1)
    return take_rows(x, packing.places(0, groups * dilation)).view(len(packing), groups, -1)


def _same_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, packing: Packing, dilation: int) -> Tensor:
    if dilation > 1:
        weight = weight.repeat(dilation, 1, 1)
        bias = None if bias is None else bias.repeat(dilation)
    y = convolve(_side_by_side(x, packing, dilation), weight, bias, padding=(weight.shape[2] - 1) // 2)
    y = y.reshape(len(packing), -1, x.shape[1])  # (batch, groups · dilation, channels)
    return packing.pack(y[:, : packing.time])


def _gradient_by_weight(x: Tensor, grad_y: Tensor, kernel: int, packing: Packing, dilation: int) -> Tensor:
    """(kernel, channels), summed in float32 at least."""
    batch, channels = len(packing), x.shape[1]
    groups = -(-packing.time // dilation)
    margin = (kernel - 1) // 2  # groups
    total = groups + 2 * margin
    places = packing.places(margin * dilation, total * dilation).view(batch, total, dilation)
    series = take_rows(x, places.transpose(0, 1))  # (total, batch, dilation, channels)
    kernels = _side_by_side(grad_y, packing, dilation).transpose(1, 2).reshape(-1, 1, groups)
    products = convolve(series.view(1, total, -1), kernels)  # (1, kernel, batch · dilation · channels)
    exact = torch.promote_types(x.dtype, torch.float32)  # sums of bfloat16 numbers are float32
    return products.view(kernel, -1, channels).sum(1, dtype=exact)
