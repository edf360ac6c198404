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
import torch.nn.functional as F  # noqa: N812 - PyTorch's own customary name
from torch import Tensor, nn

from kvarts.batchnorm import BatchNorm
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
        return self._product(x, self.bias)

    def without_bias(self, x: Tensor) -> Tensor:
        """The matrix product alone."""
        return self._product(x, None)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weight = self.weight.squeeze(2)
        if x.device.type != "cpu" or x.dtype != torch.bfloat16:
            return F.linear(x, weight, bias)
        y: Tensor = _RaggedProduct.apply(x.flatten(0, -2), weight)  # type: ignore[no-untyped-call]
        y = y.view(*x.shape[:-1], -1)
        return y if bias is None else y + bias.to(y.dtype)


_ROWS = 128


class _RaggedProduct(torch.autograd.Function):
    """x (frames, in_channels) bfloat16 times a weight (out_channels, in_channels), for ever new numbers of frames.

    PyTorch's library for bfloat16 on a CPU, oneDNN, compiles a product anew for every number of rows, which took 2 to 3
    ms where the product itself took 0.4 (512 channels, 1,000 rows, a processor with AMX), and keeps a thousand of them.
    So rows are taken in a multiple of 128, of which there are few, and what remains, filled up with zeros, in 128.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        half = weight.to(x.dtype)
        ctx.save_for_backward(x, half)
        ctx.weight_type = weight.dtype
        return _rows_times(x, half.t())

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_y = grad_y.to(x.dtype).contiguous()
        grad_x = _rows_times(grad_y, weight) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        even = len(x) - len(x) % _ROWS
        grad_weight = torch.mm(grad_y[:even].t(), x[:even]).to(ctx.weight_type)
        if even < len(x):
            grad_weight += torch.mm(_filled_up(grad_y[even:]).t(), _filled_up(x[even:]))
        return grad_x, grad_weight


def _rows_times(x: Tensor, matrix: Tensor) -> Tensor:
    even = len(x) - len(x) % _ROWS
    if even == len(x):
        return torch.mm(x, matrix)
    y = x.new_empty(len(x), matrix.shape[1])
    torch.mm(x[:even], matrix, out=y[:even])
    y[even:] = torch.mm(_filled_up(x[even:]), matrix)[: len(x) - even]
    return y


def _filled_up(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 0, 0, _ROWS - len(rows)))


def _normalised(
    conv: nn.Module,
    norm: nn.Module,
    x: Tensor,
    branch: Tensor | None = None,
    relu: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """A pointwise convolution, its BatchNorm and what follows there.

    In training the bias is left out: the mean would take it away again, and adding it and summing up its gradient are
    two passes over all frames.
    """
    assert isinstance(conv, PointwiseConv)
    assert isinstance(norm, BatchNorm)
    if norm.training:
        return norm(conv.without_bias(x), branch, relu, dropout, conv.bias)  # type: ignore[no-any-return]
    return norm(conv(x), branch, relu)  # type: ignore[no-any-return]


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
                # Never called, for BatchNorm does what they stand for: they keep the numbers in the parameters' names.
                layers += [nn.ReLU(), nn.Dropout(dropout)]
            if config.separable:
                stride = config.stride if repeat == 0 else 1
                layers.append(DepthwiseConv(channels, config.kernel, stride, config.dilation))
            layers += [PointwiseConv(channels, config.filters), BatchNorm(config.filters)]
            channels = config.filters
        self.dropout = dropout
        self.conv = nn.Sequential(*layers)
        self.res = (
            nn.Sequential(PointwiseConv(in_channels, config.filters), BatchNorm(config.filters))
            if config.residual
            else None
        )

    def forward(self, x: Tensor, packing: Packing) -> tuple[Tensor, Packing]:
        """Packed frames (frames, in_channels) and their packing, to (frames, filters) and theirs."""
        y = x
        last = len(self.conv) - 2
        for index, layer in enumerate(self.conv):
            if isinstance(layer, DepthwiseConv):
                y, packing = layer(y, packing)
            elif isinstance(layer, PointwiseConv):
                branch = _normalised(self.res[0], self.res[1], x) if self.res is not None and index == last else None
                y = _normalised(layer, self.conv[index + 1], y, branch, relu=True, dropout=self.dropout)
        return y, packing


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
        if not 0 <= dropout < 1:
            raise ConfigError(f"model.encoder.dropout={dropout}: must be a number from 0 to less than 1")
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
