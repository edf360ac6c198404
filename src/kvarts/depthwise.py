"""The depthwise convolution over packed frames, forward and both gradients: nine parts of a hundred of the
network's arithmetic, and half of a training step where it is left to `conv1d`.

On a CPU with a C compiler all three are functions of our own (`kvarts.native`), at 57 to 132 GFLOP/s on two cores of
an Intel Xeon in float32 and 78 to 153 in bfloat16; without one they are channels-last 2-D convolutions of PyTorch,
whose gradient by weight is slower. `conv1d` reaches 5 to 16.
`python benchmarks/depthwise.py` measures all of them. On a GPU they are Triton kernels
(`kvarts.depthwise_triton`) where Triton is installed.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own customary name
from torch import Tensor, nn

from kvarts import native
from kvarts.frames import encoded_frames
from kvarts.packing import Packing, take_rows

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _has_triton() -> bool:
    """It comes with PyTorch for CUDA on Linux, and not on Windows; without it the library's conv2d gives the same."""
    return importlib.util.find_spec("triton") is not None


class DepthwiseConv(nn.Conv1d):
    """A convolution over time of each channel with its own odd kernel; packed frames in and out.

    Weight (channels, 1, kernel) and bias (channels,), as in `Conv1d(groups=channels)`.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels)

    def localise(self) -> None:
        """Shrinks the taps away from the centre, by a Gaussian of half a frame (of one stride where there is one).

        The kernel's norm stays. PyTorch's random kernels weigh all taps alike, and those of QuartzNet span 1.3 to 7
        seconds, 25 of them in a row: what leaves the encoder at random then is a blur of everything said, in which CTC
        is long in finding the letters. With local kernels a frame begins as what was said there. On 78 minutes of one
        voice (Adam 5e-4, batches of 40 s) the loss was 2.0 a letter after 250 steps, with augmentation, and CER 54 % on
        sentences not heard; without it 2.9 after 500, even without augmentation, where 3.0 is blind guessing.
        """
        kernel = self.kernel_size[0]
        width = float(self.stride[0]) if self.stride[0] > 1 else 0.5  # frames
        envelope = torch.exp(-0.5 * ((torch.arange(kernel) - kernel // 2) / width) ** 2)
        with torch.no_grad():
            self.weight.mul_(envelope * math.sqrt(kernel / float(envelope.square().sum())))

    def decay_taps(self, rate: float) -> None:
        """Shrinks every tap by `rate` times the square of its distance from the centre in taps; see `QuartzNetCTC`."""
        kernel = self.kernel_size[0]
        distance = torch.arange(kernel, device=self.weight.device) - kernel // 2
        with torch.no_grad():
            self.weight.mul_((1 - rate * distance.square()).clamp(min=0))

    def forward(self, x: Tensor, packing: Packing) -> tuple[Tensor, Packing]:  # type: ignore[override]
        """Packed frames (frames, channels) and their packing, to those that leave and theirs."""
        stride, dilation = self.stride[0], self.dilation[0]
        if stride == 1 and native.library_for(x) is not None:
            return _apply(_NativeDepthwise, x, self.weight, self.bias, packing, dilation), packing
        if stride == 1 and x.device.type == "cpu":
            return _apply(_CpuDepthwise, x, self.weight.to(x.dtype), self.bias, packing, dilation), packing
        if stride == 1 and x.device.type == "cuda" and x.dtype in _TRITON_DTYPES and _has_triton():
            from kvarts.depthwise_triton import depthwise

            return depthwise(x, self.weight, self.bias, packing, dilation), packing
        y = convolve(packing.pad(x), self.weight, self.bias, stride, int(self.padding[0]), dilation)
        if stride > 1:
            packing = Packing(encoded_frames(packing.lengths, stride), y.shape[1])
        return packing.pack(y), packing


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Depthwise convolution of x (batch, time, channels) by weight (channels, 1, kernel)."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[2] < 64:
        # oneDNN 3.12 (PyTorch 2.13) never returns from such a one with 16 or 32 channels on two threads.
        with torch.autocast("cpu", enabled=False):
            exact = None if bias is None else bias.float()
            return convolve(x.float(), weight.float(), exact, stride, padding, dilation).to(x.dtype)
    image = x.transpose(1, 2).unsqueeze(2)  # (batch, channels, 1, time), in channels-last memory
    y = F.conv2d(image, weight.unsqueeze(2), bias, (1, stride), (0, padding), (1, dilation), groups=x.shape[2])
    return y.squeeze(2).transpose(1, 2)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    y: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return y


class _NativeDepthwise(torch.autograd.Function):
    """Stride 1, in C on the packed frames themselves."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packing: Packing, dilation: int
    ) -> Tensor:
        library = native.library_for(x)
        assert library is not None
        x = x.contiguous()
        taps = weight.squeeze(1).t().float().contiguous()  # (kernel, channels)
        ctx.save_for_backward(x, taps)
        ctx.packing, ctx.dilation = packing, dilation
        return library.convolution(x, taps, None if bias is None else bias.float(), packing.offsets, dilation)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, taps = ctx.saved_tensors
        library = native.library_for(x)
        assert library is not None
        grad_x, grad_taps, grad_bias = library.convolution_backward(
            x, grad_y.to(x.dtype).contiguous(), taps, ctx.packing.offsets, ctx.dilation, ctx.needs_input_grad[0]
        )
        return grad_x, grad_taps.t().unsqueeze(1), grad_bias, None, None


class _CpuDepthwise(torch.autograd.Function):
    """Stride 1. Both gradients are depthwise convolutions too.

    By input, it is the convolution with the flipped kernel. By weight, it is the correlation of the input with the
    gradient of the output, channel by channel and utterance by utterance: so each pair of both is a channel of its own,
    and the gradient its kernel, as long as the utterance. On two cores of an AMD EPYC that took a third to a half
    of the time of the library's own gradient by weight.

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
