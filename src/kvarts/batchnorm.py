"""Batch normalisation of packed frames, together with what follows it in a block: residual sum, ReLU and dropout.

Apart, these are five passes over memory forward and five backward, and took a quarter of a training step in bfloat16;
on a CPU with a C compiler they are one function each way (`kvarts.native`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kvarts import native


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167) of packed frames (frames, channels), then what is to follow.

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

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None = None,
        relu: bool = False,
        dropout: float = 0.0,
        shift: Tensor | None = None,
    ) -> Tensor:
        """(frames, channels) in and out.

        Args:
            branch: like x, added to the normalised frames.
            relu: what is negative then becomes 0.
            dropout: in training and after a ReLU, the share of numbers that become 0, while the others grow to
                1 / (1 - dropout) times. What is drawn depends on PyTorch's generator, and on the path taken here.
            shift: (channels,), in training only: what was not added to the frames, for it is the same in all of them,
                and their mean would take it away again. The running mean has to know of it; its gradient is 0.
        """
        if not self.training:
            return _finished(self._librarys(x, self.bias), branch, relu, 0.0)
        self.num_batches_tracked.add_(1)
        bias = self.bias if shift is None else self.bias + 0 * shift  # DDP wants a gradient of every parameter
        y = self._of_this_batch(x, bias, branch, relu, dropout)
        if shift is not None:
            # `.data`, for autograd keeps the buffer, though the gradient of training does not read it.
            self.running_mean.data.add_(shift.detach(), alpha=self.momentum)
        return y

    def _of_this_batch(self, x: Tensor, bias: Tensor, branch: Tensor | None, relu: bool, dropout: float) -> Tensor:
        # A single frame has a variance of 0, of which the library's unbiased estimate is 0 / 0.
        if is_distributed() or len(x) == 1:
            with torch.autocast(x.device.type, enabled=False):
                y, mean, variance, count = _Joint.apply(x, self.weight, bias, self.eps)  # type: ignore[no-untyped-call]
            y = _finished(y, branch, relu, dropout)
        elif self._is_native(x, branch):
            y, mean, variance = _Native.apply(  # type: ignore[no-untyped-call]
                x, self.weight, bias, branch, self.eps, relu, dropout if relu else 0.0
            )
            count = x.new_tensor(len(x), dtype=torch.float32)
        else:
            return _finished(self._librarys(x, bias), branch, relu, dropout)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return y  # type: ignore[no-any-return]

    def _is_native(self, x: Tensor, branch: Tensor | None) -> bool:
        """Frames that come from one network in float32 or under autocast, on a CPU with a C compiler."""
        has_one_type = branch is None or branch.dtype == x.dtype
        return has_one_type and self.weight.dtype == torch.float32 and native.library_for(x) is not None

    def _librarys(self, x: Tensor, bias: Tensor) -> Tensor:
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

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}, momentum={self.momentum}"


def _finished(y: Tensor, branch: Tensor | None, relu: bool, dropout: float) -> Tensor:
    # In place: the gradient of a normalisation needs its input, not its output.
    if branch is not None:
        y = y.add_(branch)
    if not relu:
        return y
    y = y.relu_()
    return torch.nn.functional.dropout(y, dropout) if dropout else y


class _Native(torch.autograd.Function):
    """In C on the packed frames themselves, with all that follows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        branch: Tensor | None,
        eps: float,
        relu: bool,
        dropout: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        library = native.library_for(x)
        assert library is not None
        x = x.contiguous()
        branch = None if branch is None else branch.contiguous()
        seed = int(torch.randint(2**32, ())) if dropout else 0
        y, mean, variance = library.normalise(x, weight, bias, branch, eps, relu, dropout, seed)
        ctx.save_for_backward(x, y if relu else None, weight, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        ctx.eps, ctx.dropout = eps, dropout
        return y, mean, variance

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor, *_: Any
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, None, None, None]:
        x, y, weight, mean, variance = ctx.saved_tensors
        library = native.library_for(x)
        assert library is not None
        grad_y = grad_y.to(x.dtype).contiguous()
        by_input, _, _, by_branch, *_ = ctx.needs_input_grad
        grad_x, grad_branch, grad_weight, grad_bias = library.normalise_backward(
            x, y, grad_y, weight, mean, variance, ctx.eps, ctx.dropout, by_input, by_branch and y is not None
        )
        if by_branch and y is None:
            grad_branch = grad_y
        return grad_x, grad_weight, grad_bias, grad_branch, None, None, None


class _Joint(torch.autograd.Function):
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
