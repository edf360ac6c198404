"""QuartzNet encoder (arXiv 1910.10261): log-mel frames in, one 1024-vector every 40 ms out.

Inside, tensors are (batch, time, channels): a pointwise convolution is then one matrix product over all frames, and a
depthwise convolution is a channels-last 2-D convolution, which runs many times faster on a CPU than `conv1d` does. The
parameters keep the names and shapes of `torch.nn.Conv1d`, so checkpoints of the original load unchanged.

One rule makes an utterance independent of its batchmates: padding is zero wherever a depthwise convolution reads. The
input is masked once, and every `MaskedBatchNorm` takes its statistics from the valid frames alone and leaves zeros in
the padding; ReLU, dropout and sums keep zeros zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - PyTorch's own customary name
from torch import Tensor, nn

from kvarts.errors import ConfigError
from kvarts.frames import encoded_frames


@dataclass(frozen=True)
class BlockConfig:
    """One row of the layer table. `kernel` in frames; `repeat` counts the convolutions of the block.

    Raises:
        ConfigError: a value that no block can have.
    """

    filters: int
    repeat: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    residual: bool = True
    separable: bool = True

    def __post_init__(self) -> None:
        for name in ("filters", "repeat", "kernel", "stride", "dilation"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"a block has {name}: {value}; it must be a whole number from 1 on")
        for name in ("residual", "separable"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"a block has {name}: {getattr(self, name)}; it must be true or false")


class DepthwiseConv(nn.Conv1d):
    """A convolution over time of each channel with its own kernel; (batch, time, channels) in and out.

    Weight (channels, 1, kernel) and bias (channels,), as in `Conv1d(groups=channels)`.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        stride, dilation = self.stride[0], self.dilation[0]
        if stride > 1 or dilation == 1:
            return _depthwise(x, self.weight, self.bias, stride, dilation, int(self.padding[0]))
        # Frames t, t + dilation, … meet only each other, so `dilation` neighbouring frames side by side are the
        # channels of an undilated convolution: a view, and 1.9 times faster than the dilated kernel.
        batch, time, channels = x.shape
        padded_time = -(-time // dilation) * dilation
        x = F.pad(x, (0, 0, 0, padded_time - time))
        x = x.reshape(batch, padded_time // dilation, dilation * channels)
        bias = None if self.bias is None else self.bias.repeat(dilation)
        y = _depthwise(x, self.weight.repeat(dilation, 1, 1), bias, 1, 1, (self.kernel_size[0] - 1) // 2)
        return y.reshape(batch, padded_time, channels)[:, :time]


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int, padding: int) -> Tensor:
    if stride == 1 and dilation == 1 and x.device.type == "cpu":
        y: Tensor = _CpuDepthwise.apply(x, weight.to(x.dtype), bias, padding)  # type: ignore[no-untyped-call]
        return y
    return _convolve(x, weight, bias, stride, padding, dilation)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    image = x.transpose(1, 2).unsqueeze(2)  # (batch, channels, 1, time), in channels-last memory
    y = F.conv2d(image, weight.unsqueeze(2), bias, (1, stride), (0, padding), (1, dilation), groups=x.shape[2])
    return y.squeeze(2).transpose(1, 2)


class _CpuDepthwise(torch.autograd.Function):
    """A depthwise convolution of odd kernel and equal length, whose both gradients are depthwise convolutions too.

    By input, it is the convolution with the flipped kernel. By weight, it is the correlation of the input with the
    gradient of the output, channel by channel and utterance by utterance: so each pair of both is a channel of its own,
    and the gradient its kernel, as long as the utterance. On two cores of an AMD EPYC that took 0.33 to 0.52 of the
    time of the library's own gradient by weight (`python benchmarks/depthwise.py`, ratios 1.9 to 3.0).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _convolve(x, weight, None if bias is None else bias.to(x.dtype), padding=padding)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        padding = ctx.padding
        grad_x = grad_weight = grad_bias = None
        exact = torch.promote_types(x.dtype, torch.float32)  # sums of bfloat16 numbers are float32
        if ctx.needs_input_grad[0]:
            grad_x = _convolve(grad_y, weight.flip(2), padding=padding)
        if ctx.needs_input_grad[1]:
            batch, time, channels = x.shape
            series = F.pad(x.transpose(0, 1), (0, 0, 0, 0, padding, padding))  # (padded time, batch, channels)
            kernels = grad_y.transpose(1, 2).reshape(batch * channels, 1, time)
            products = _convolve(series.reshape(1, time + 2 * padding, batch * channels), kernels)
            grad_weight = products.reshape(-1, batch, channels).sum(1, dtype=exact)  # (kernel, channels)
            grad_weight = grad_weight.t().unsqueeze(1).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_y.sum((0, 1), dtype=exact)
        return grad_x, grad_weight, grad_bias, None


class PointwiseConv(nn.Conv1d):
    """A 1×1 convolution, that is one matrix product for all frames; (batch, time, channels) in and out.

    Weight (out_channels, in_channels, 1) and bias (out_channels,), as in `Conv1d`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(2), self.bias)


class _MaskedNormalisation(torch.autograd.Function):
    """Batch normalisation in training over the valid frames of all ranks; analytic gradient in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, valid: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        frames = x.reshape(-1, x.shape[2]).to(weight.dtype)  # (batch * time, channels), float32 also of a bfloat16 x
        valid = valid.to(weight.dtype)
        count = valid.sum()
        # A product with the 0/1 vector of valid frames sums over them in one pass over memory.
        mean = (valid @ frames) / count
        centred = frames - mean
        y = centred.square()  # also the memory of the result: fresh memory costs more here than the arithmetic
        squares = valid @ y
        if is_distributed():
            count, mean, squares, centred = _pool_statistics(frames, count, mean, squares)
        variance = squares / count
        scale = torch.rsqrt(variance + eps)
        normalised = centred.mul_(scale)
        torch.addcmul(bias, normalised, weight, out=y).mul_(valid.unsqueeze(1))
        ctx.save_for_backward(normalised, weight, scale, valid, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype).view_as(x), mean, variance, count

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        normalised, weight, scale, valid, count = ctx.saved_tensors
        grad = grad_y.reshape(normalised.shape).to(weight.dtype) * valid.unsqueeze(1)
        grad_bias = grad.sum(0)
        grad_weight = (grad * normalised).sum(0)
        sums = torch.stack((grad_bias, grad_weight))
        if is_distributed():
            sums = sums.clone()
            dist.all_reduce(sums)
        mean_grad, mean_grad_normalised = sums / count
        grad.sub_(mean_grad).addcmul_(normalised, mean_grad_normalised, value=-1.0).mul_(weight * scale)
        grad.mul_(valid.unsqueeze(1))
        return grad.to(grad_y.dtype).view_as(grad_y), grad_weight, grad_bias, None, None


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, valid: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised frames, and mean, biased variance and number of the valid ones."""
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _MaskedNormalisation.apply(x, weight, bias, valid, eps)  # type: ignore[no-untyped-call]
    return outputs


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _pool_statistics(
    frames: Tensor, count: Tensor, mean: Tensor, squares: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pool every rank's count, mean and centred squares (Chan, Golub and LeVeque 1979) with one collective."""
    own = torch.cat((count.reshape(1), mean, squares))
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    ranks = torch.stack(gathered)
    counts, means, sums = ranks[:, :1], ranks[:, 1 : 1 + len(mean)], ranks[:, 1 + len(mean) :]
    total = counts.sum()
    pooled_mean = (counts * means).sum(0) / total
    pooled_squares = (sums + counts * (means - pooled_mean).square()).sum(0)
    return total, pooled_mean, pooled_squares, frames - pooled_mean


class MaskedBatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167) of (batch, time, channels) whose padding neither counts nor survives.

    Same parameters, buffers and arithmetic as `torch.nn.BatchNorm1d`; with several processes the statistics are those
    of the joint batch, so that DDP gives the gradients of one process. Statistics are float32 under autocast too.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` (batch, time, channels); `mask` (batch, time), 1.0 for valid frames, or None where all are."""
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            y = torch.addcmul(self.bias - self.running_mean * scale, x.to(scale.dtype), scale).to(x.dtype)
            return y if mask is None else y * mask.unsqueeze(2).to(y.dtype)
        valid = torch.ones(x.shape[:2], device=x.device) if mask is None else mask
        with torch.autocast(x.device.type, enabled=False):
            y, mean, variance, count = _normalise(x, self.weight, self.bias, valid.flatten(), self.eps)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked.add_(1)
        return y

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}, momentum={self.momentum}"


class QuartzNetBlock(nn.Module):
    """`repeat` times depthwise, pointwise, BatchNorm (ReLU, dropout between), a residual branch, ReLU and dropout."""

    def __init__(self, in_channels: int, config: BlockConfig, dropout: float = 0.0) -> None:
        super().__init__()
        if not config.separable and (config.kernel, config.stride) != (1, 1):
            raise ConfigError(
                f"block {config}: only 1×1 blocks of stride 1 are non-separable in QuartzNet; "
                "set separable: true, or kernel: 1 and stride: 1"
            )
        if config.kernel % 2 == 0:
            raise ConfigError(f"block {config}: the kernel must be odd, so that frames stay centred")
        if config.residual and config.stride != 1:
            raise ConfigError(f"block {config}: a residual block cannot have a stride; set residual: false")
        layers: list[nn.Module] = []
        channels = in_channels
        for repeat in range(config.repeat):
            if repeat:
                layers += [nn.ReLU(), nn.Dropout(dropout)]
            if config.separable:
                stride = config.stride if repeat == 0 else 1
                layers.append(DepthwiseConv(channels, config.kernel, stride, config.dilation))
            layers += [PointwiseConv(channels, config.filters), MaskedBatchNorm(config.filters)]
            channels = config.filters
        self.conv = nn.Sequential(*layers)
        self.res = (
            nn.Sequential(PointwiseConv(in_channels, config.filters), MaskedBatchNorm(config.filters))
            if config.residual
            else None
        )
        self.out = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, time, in_channels) to (batch, time / stride, filters); `mask` is for the frames that leave."""
        y = _run(self.conv, x, mask)
        if self.res is not None:
            y = y + _run(self.res, x, mask)
        return self.out(y)  # type: ignore[no-any-return]


def _run(layers: nn.Sequential, x: Tensor, mask: Tensor | None) -> Tensor:
    for layer in layers:
        x = layer(x, mask) if isinstance(layer, MaskedBatchNorm) else layer(x)
    return x


class QuartzNet(nn.Module):
    """The encoder: a stack of `QuartzNetBlock` given by its layer table.

    Args:
        blocks: rows of the layer table, as `BlockConfig` or mappings with its fields.
        in_channels: mel bands.
        dropout: probability, after every ReLU.
    """

    def __init__(
        self, blocks: Sequence[BlockConfig | Mapping[str, Any]], in_channels: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.block_configs = [b if isinstance(b, BlockConfig) else BlockConfig(**b) for b in blocks]
        self.in_channels = in_channels
        self.dropout = dropout
        channels = in_channels
        self.layers = nn.ModuleList()
        for config in self.block_configs:
            self.layers.append(QuartzNetBlock(channels, config, dropout))
            channels = config.filters
        self.out_channels = channels

    @property
    def stride(self) -> int:
        """Log-mel frames for each encoded frame."""
        stride = 1
        for config in self.block_configs:
            stride *= config.stride
        return stride

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, for checkpoints."""
        return {
            "blocks": [asdict(config) for config in self.block_configs],
            "in_channels": self.in_channels,
            "dropout": self.dropout,
        }

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
            features: (batch, mel_frames, in_channels) float; what lies beyond an utterance's length is ignored.
            lengths: (batch,) int, log-mel frames of each utterance, at least 1.

        Returns:
            (batch, frames, out_channels), zero beyond each length, and the encoded lengths (batch,) int.
        """
        mask = _mask(lengths, features.shape[1])
        x = features if mask is None else features.masked_fill(mask.unsqueeze(2) == 0, 0.0)
        for block, config in zip(self.layers, self.block_configs, strict=True):
            if config.stride > 1:
                lengths = encoded_frames(lengths, config.stride)
                mask = _mask(lengths, encoded_frames(x.shape[1], config.stride))
            x = block(x, mask)
        return x, lengths


def _mask(lengths: Tensor, time: int) -> Tensor | None:
    """(batch, time) of 1.0 inside and 0.0 beyond each length; None where nothing is padded."""
    if bool((lengths == time).all()):
        return None
    return (torch.arange(time, device=lengths.device) < lengths.unsqueeze(1)).float()
