"""The depthwise convolution and batch normalisation in C (native.c), where a C compiler is at hand.

The first training or recognition on a machine compiles the one file (`kvarts.compiled`), in about a second. Before the
library is used, it has to give PyTorch's numbers. Without a compiler (or with CC=false in the environment) PyTorch's
own functions do the same work, in two to three times the time.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
from pathlib import Path

import torch
from torch import Tensor

from kvarts.compiled import FLAGS, NoLibraryError, compiled, processor_features

logger = logging.getLogger("lightning")

LANES = 16  # the C file's: it works on whole groups of so many channels
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_FLAGS = (*FLAGS, "-fopenmp")


class NativeLibrary:
    """The compiled functions, on packed frames (frames, channels), float32 or bfloat16, of 16 · n channels."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer, number, flag, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
        self._convolution, self._convolution_backward = library.convolution, library.convolution_backward
        self._convolution.argtypes = [pointer] * 5 + [number] * 4 + [flag] * 2
        self._convolution_backward.argtypes = [pointer] * 7 + [number] * 4 + [flag] * 2
        self._normalise, self._normalise_backward = library.normalise, library.normalise_backward
        self._normalise.argtypes = [pointer] * 7 + [number] * 2 + [real] * 2 + [ctypes.c_uint32] + [flag] * 3
        self._normalise_backward.argtypes = [pointer] * 10 + [number] * 2 + [real] * 2 + [flag] * 2

    def convolution(self, x: Tensor, taps: Tensor, bias: Tensor | None, offsets: Tensor, dilation: int) -> Tensor:
        """The depthwise convolution of x by taps (kernel, channels) float32, plus bias (channels,) float32; like x."""
        y = torch.empty_like(x)
        pointers = _pointers(x, taps, bias, y)
        _check(self._convolution(*pointers, *self._shape(x, taps, offsets, dilation)))
        return y

    def convolution_backward(
        self, x: Tensor, grad_y: Tensor, taps: Tensor, offsets: Tensor, dilation: int, by_input: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients by x (like it, if asked for), by taps (kernel, channels) and by bias (channels,), float32."""
        grad_x = torch.empty_like(x) if by_input else None
        grad_taps, grad_bias = torch.empty_like(taps), taps.new_empty(taps.shape[1])
        pointers = _pointers(x, grad_y, taps, grad_x, grad_taps, grad_bias)
        _check(self._convolution_backward(*pointers, *self._shape(x, taps, offsets, dilation)))
        return grad_x, grad_taps, grad_bias

    def normalise(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        branch: Tensor | None,
        eps: float,
        relu: bool,
        dropout: float,
        seed: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Batch normalisation in training, the sum with branch (like x), ReLU and dropout, if wanted.

        weight and bias (channels,) float32. Gives y like x, and the batch's mean and (biased) variance (channels,).
        """
        y, mean, variance = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        pointers = _pointers(x, branch, y, weight, bias, mean, variance)
        is_bfloat16, threads = x.dtype == torch.bfloat16, torch.get_num_threads()
        _check(self._normalise(*pointers, *x.shape, eps, dropout, seed, relu, is_bfloat16, threads))
        return y, mean, variance

    def normalise_backward(
        self,
        x: Tensor,
        y: Tensor | None,
        grad_y: Tensor,
        weight: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        dropout: float,
        by_input: bool,
        by_branch: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """Gradients by x, by branch, by weight and by bias; y is what came out of ReLU and dropout, None without."""
        grad_x = torch.empty_like(x) if by_input else None
        grad_branch = torch.empty_like(x) if by_branch else None
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
        pointers = _pointers(x, y, grad_y, grad_x, grad_branch, weight, mean, variance, grad_weight, grad_bias)
        is_bfloat16, threads = x.dtype == torch.bfloat16, torch.get_num_threads()
        _check(self._normalise_backward(*pointers, *x.shape, eps, dropout, is_bfloat16, threads))
        return grad_x, grad_branch, grad_weight, grad_bias

    @staticmethod
    def _shape(x: Tensor, taps: Tensor, offsets: Tensor, dilation: int) -> tuple[int, ...]:
        kernel, channels = taps.shape
        is_bfloat16 = int(x.dtype == torch.bfloat16)
        return offsets.data_ptr(), len(offsets) - 1, channels, kernel, dilation, is_bfloat16, torch.get_num_threads()


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the network found no memory for its buffers")


def library_for(x: Tensor) -> NativeLibrary | None:
    """The compiled functions, if they can take such frames (frames, channels)."""
    is_fit = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.shape[1] % LANES == 0
    return library() if is_fit else None


@functools.cache
def library() -> NativeLibrary | None:
    """The compiled functions, made on the first call; None where they cannot be had."""
    try:
        return _checked(NativeLibrary(compiled("native", _FLAGS)))
    except (NoLibraryError, OSError, _WrongNumbersError) as error:
        logger.info("convolutions and normalisation: PyTorch's (%s)", error)
        return None


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (x86 since 2020, some Arm); only there is it faster."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(processor_features())


def keep_memory() -> None:
    """Lets this process keep the memory it frees, for the next step; where the C library is not glibc, nothing.

    glibc gives large blocks back to the kernel, which hands them out anew in pages that it first fills with zeros. A
    step frees all its activations; without this, one in bfloat16 took 0.23 s in place of 0.20 s (two cores with AMX).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # from this size on blocks come from the kernel; glibc's largest
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class _WrongNumbersError(Exception):
    pass


def _checked(made: NativeLibrary) -> NativeLibrary:
    """The library, if it gives PyTorch's numbers for a ragged batch of three utterances."""
    draw = torch.Generator().manual_seed(0)
    lengths, channels, kernel = [40, 1, 7], 32, 11
    x = torch.randn(sum(lengths), channels, generator=draw)
    taps = torch.randn(kernel, channels, generator=draw)
    scale, shift = torch.randn(2, channels, generator=draw)
    offsets = torch.tensor([0, 40, 41, 48])
    weight = taps.t().unsqueeze(1)
    with torch.autocast("cpu", enabled=False):
        convolved = torch.cat([
            torch.nn.functional.conv1d(part.t(), weight, padding=kernel // 2, groups=channels).t()
            for part in torch.split(x, lengths)
        ])
        normalised = torch.nn.functional.batch_norm(x, None, None, scale, shift, training=True)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        y = made.convolution(x.to(dtype), taps, None, offsets, 1)
        z, _, _ = made.normalise(x.to(dtype), scale, shift, None, 1e-5, False, 0.0, 0)
        for actual, expected in ((y, convolved), (z, normalised)):
            apart = (actual.float() - expected).abs().max()
            if not apart <= tolerance * expected.abs().max():
                raise _WrongNumbersError("what it compiled gives other numbers")
    return made
