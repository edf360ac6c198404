"""QuartzNet encoder (arXiv 1910.10261): log-mel frames in, one 1024-vector every 40 ms out.

Inside, the valid frames of all utterances are the rows of one matrix (frames, channels), see `kvarts.packing`. A
pointwise convolution is then one matrix product, BatchNorm takes its statistics from all rows, and padding, which only
the depthwise convolutions need, is what they lay around each utterance: so it is independent of its batchmates. The
parameters keep the names and shapes of `torch.nn.Conv1d`, and checkpoints of the original load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - PyTorch's own customary name
from torch import Tensor, nn

from kvarts.depthwise import DepthwiseConv
from kvarts.errors import ConfigError
from kvarts.packing import Packing


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


class PointwiseConv(nn.Conv1d):
    """A 1×1 convolution, that is one matrix product for all frames; (…, channels) in and out.

    Weight (out_channels, in_channels, 1) and bias (out_channels,), as in `Conv1d`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(2), self.bias)

    def without_bias(self, x: Tensor) -> Tensor:
        """The matrix product alone."""
        return F.linear(x, self.weight.squeeze(2))


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167) of packed frames (frames, channels).

    Same parameters, buffers and arithmetic as `torch.nn.BatchNorm1d`, statistics in float32 also of bfloat16 frames;
    with several processes they are those of the joint batch, so that DDP gives the gradients of one process.
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

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """(frames, channels) in and out.

        Args:
            shift: (channels,), in training only: what was not added to the frames, for it is the same in all of them,
                and their mean would take it away again. The running mean has to know of it; its gradient is 0.
        """
        bias = self.bias if shift is None else self.bias + 0 * shift  # DDP wants a gradient of every parameter
        y = self._apply_statistics(x, bias)
        if self.training:
            self.num_batches_tracked.add_(1)
            if shift is not None:
                # `.data`, for autograd keeps the buffer, though the gradient of training does not read it.
                self.running_mean.data.add_(shift.detach(), alpha=self.momentum)
        return y

    def _apply_statistics(self, x: Tensor, bias: Tensor) -> Tensor:
        # A single frame has a variance of 0, of which the library's unbiased estimate is 0 / 0.
        if self.training and (is_distributed() or len(x) == 1):
            return self._joint(x, bias)
        return torch.batch_norm(
            x,
            self.weight,
            bias,
            self.running_mean,
            self.running_var,
            self.training,
            self.momentum,
            self.eps,
            torch.backends.cudnn.enabled,
        )

    def _joint(self, x: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y, mean, variance, count = _JointNormalisation.apply(x, self.weight, bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return y  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}, momentum={self.momentum}"


class _JointNormalisation(torch.autograd.Function):
    """Batch normalisation in training over the frames of all ranks; analytic gradient in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        frames = x.to(weight.dtype)  # float32 also of a bfloat16 x
        count, mean, squares = _joint_statistics(frames)
        variance = squares / count
        scale = torch.rsqrt(variance + eps)
        normalised = (frames - mean).mul_(scale)
        ctx.save_for_backward(normalised, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.addcmul(bias, normalised, weight).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        normalised, weight, scale, count = ctx.saved_tensors
        grad = grad_y.to(weight.dtype)
        grad_bias = grad.sum(0)
        grad_weight = (grad * normalised).sum(0)
        sums = torch.stack((grad_bias, grad_weight))
        if is_distributed():
            dist.all_reduce(sums)
        mean_grad, mean_grad_normalised = sums / count
        grad_x = (grad - mean_grad).addcmul_(normalised, mean_grad_normalised, value=-1.0).mul_(weight * scale)
        return grad_x.to(grad_y.dtype), grad_weight, grad_bias, None


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _joint_statistics(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of frames, their mean and the sum of their squared distances from it, of all ranks together.

    Every rank's are pooled (Chan, Golub and LeVeque 1979) with one collective.
    """
    count, mean = frames.new_tensor(float(len(frames))), frames.mean(0)
    squares = (frames - mean).square_().sum(0)
    if not is_distributed():
        return count, mean, squares
    own = torch.cat((count.reshape(1), mean, squares))
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    ranks = torch.stack(gathered)
    counts, means, sums = ranks[:, :1], ranks[:, 1 : 1 + len(mean)], ranks[:, 1 + len(mean) :]
    total = counts.sum()
    pooled_mean = (counts * means).sum(0) / total
    return total, pooled_mean, (sums + counts * (means - pooled_mean).square()).sum(0)


def _normalised(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """A pointwise convolution and its BatchNorm.

    In training the bias is left out: the mean would take it away again, and adding it and summing up its gradient are
    two passes over all frames.
    """
    assert isinstance(conv, PointwiseConv)
    assert isinstance(norm, BatchNorm)
    y: Tensor = norm(conv.without_bias(x), conv.bias) if norm.training else norm(conv(x))
    return y


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
                layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
            if config.separable:
                stride = config.stride if repeat == 0 else 1
                layers.append(DepthwiseConv(channels, config.kernel, stride, config.dilation))
            layers += [PointwiseConv(channels, config.filters), BatchNorm(config.filters)]
            channels = config.filters
        self.conv = nn.Sequential(*layers)
        self.res = (
            nn.Sequential(PointwiseConv(in_channels, config.filters), BatchNorm(config.filters))
            if config.residual
            else None
        )
        self.out = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(dropout))

    def forward(self, x: Tensor, packing: Packing) -> tuple[Tensor, Packing]:
        """Packed frames (frames, in_channels) and their packing, to (frames, filters) and theirs."""
        y = x
        layers = list(self.conv)
        for index, layer in enumerate(layers):
            if isinstance(layer, DepthwiseConv):
                y, packing = layer(y, packing)
            elif isinstance(layer, PointwiseConv):
                y = _normalised(layer, layers[index + 1], y)
            elif not isinstance(layer, BatchNorm):
                y = layer(y)
        if self.res is not None:
            # In place, as ReLU too: BatchNorm's gradient needs its input, not its output.
            y = y.add_(_normalised(self.res[0], self.res[1], x))
        return self.out(y), packing


class QuartzNet(nn.Module):
    """The encoder: a stack of `QuartzNetBlock` given by its layer table.

    Args:
        blocks: rows of the layer table, as `BlockConfig` or mappings with its fields.
        in_channels: mel bands.
        dropout: probability, after every ReLU.
        local_init: random depthwise kernels are local at first, see `DepthwiseConv.localise`; they learn to be wide.
    """

    def __init__(
        self,
        blocks: Sequence[BlockConfig | Mapping[str, Any]],
        in_channels: int = 64,
        dropout: float = 0.0,
        local_init: bool = False,
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
        if local_init:
            for module in self.modules():
                if isinstance(module, DepthwiseConv):
                    module.localise()

    @property
    def stride(self) -> int:
        """Log-mel frames for each encoded frame."""
        stride = 1
        for config in self.block_configs:
            stride *= config.stride
        return stride

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, for checkpoints; not how random weights began."""
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
        packing = Packing(lengths, features.shape[1])
        x = packing.pack(features)
        for block in self.layers:
            x, packing = block(x, packing)
        return packing.pad(x), packing.lengths
