"""The depthwise convolution in C (depthwise.c), where a C compiler is at hand.

The first training or recognition on a machine compiles the one file for exactly this processor, in about a second, and
keeps the library in the user's cache folder. Before it is used, it has to give PyTorch's numbers. Without a compiler
(or with CC=false in the environment) PyTorch's own convolutions do the same work, in two to three times the time.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from kvarts.files import cache_dir

logger = logging.getLogger("lightning")

LANES = 16  # the C file's: it works on whole groups of so many channels
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


class DepthwiseLibrary:
    """The compiled functions, on packed frames (frames, channels), float32 or bfloat16, of 16 · n channels."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._forward, self._backward = library.forward, library.backward
        self._forward.argtypes = [pointer] * 5 + [number] * 4 + [ctypes.c_int] * 2
        self._backward.argtypes = [pointer] * 7 + [number] * 4 + [ctypes.c_int] * 2

    def forward(self, x: Tensor, taps: Tensor, bias: Tensor | None, offsets: Tensor, dilation: int) -> Tensor:
        """The convolution of x by taps (kernel, channels) float32, plus bias (channels,) float32; like x."""
        y = torch.empty_like(x)
        shift = None if bias is None else bias.data_ptr()
        _check(
            self._forward(x.data_ptr(), taps.data_ptr(), shift, y.data_ptr(), *self._shape(x, taps, offsets, dilation))
        )
        return y

    def backward(
        self, x: Tensor, grad_y: Tensor, taps: Tensor, offsets: Tensor, dilation: int, by_input: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients by x (like it, if asked for), by taps (kernel, channels) and by bias (channels,), float32."""
        grad_x = torch.empty_like(x) if by_input else None
        grad_taps, grad_bias = torch.empty_like(taps), taps.new_empty(taps.shape[1])
        pointers = [
            None if tensor is None else tensor.data_ptr() for tensor in (x, grad_y, taps, grad_x, grad_taps, grad_bias)
        ]
        _check(self._backward(*pointers, *self._shape(x, taps, offsets, dilation)))
        return grad_x, grad_taps, grad_bias

    @staticmethod
    def _shape(x: Tensor, taps: Tensor, offsets: Tensor, dilation: int) -> tuple[int, ...]:
        kernel, channels = taps.shape
        is_bfloat16 = int(x.dtype == torch.bfloat16)
        return offsets.data_ptr(), len(offsets) - 1, channels, kernel, dilation, is_bfloat16, torch.get_num_threads()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the depthwise convolution found no memory for its buffers")


def suits(x: Tensor) -> bool:
    """Whether the C functions can take such frames (frames, channels)."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.shape[1] % LANES == 0


@functools.cache
def library() -> DepthwiseLibrary | None:
    """The compiled functions, made on the first call; None where they cannot be had."""
    source = resources.files("kvarts").joinpath("depthwise.c").read_bytes()
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        logger.info("depthwise convolutions: PyTorch's (no C compiler; with one, training is faster)")
        return None
    root = cache_dir()
    if root is None:
        logger.info("depthwise convolutions: PyTorch's (you have no home folder to keep compiled ones in)")
        return None
    try:
        path = root / "native" / f"depthwise-{_digest(source, compiler)}.so"
        if not path.is_file():
            _compile(source, compiler, path)
        return _checked(DepthwiseLibrary(path))
    except (OSError, subprocess.SubprocessError, _WrongNumbersError) as error:
        logger.info("depthwise convolutions: PyTorch's (%s: %s)", shlex.join(compiler), " ".join(str(error).split()))
        return None


def _digest(source: bytes, compiler: list[str]) -> str:
    """Another processor, compiler or source is another library: home folders are shared by machines."""
    with_version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    processor = " ".join((platform.machine(), *sorted(_processor_features())))
    what = (source, with_version, processor.encode(), " ".join((*compiler, *_FLAGS)).encode())
    return hashlib.sha256(b"\0".join(what)).hexdigest()[:16]


def _processor_features() -> set[str]:
    """What this processor can do, in the kernel's words; empty where there is no /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return set()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split(":", 1)[1].split()}


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (x86 since 2020, some Arm); only there is it faster."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_processor_features())


def _compile(source: bytes, compiler: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        (Path(folder) / "depthwise.c").write_bytes(source)
        command = [*compiler, *_FLAGS, "depthwise.c", "-o", "depthwise.so"]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=120)
        (Path(folder) / "depthwise.so").replace(path)  # whole or not at all, whoever else is at it


class _WrongNumbersError(Exception):
    pass


def _checked(compiled: DepthwiseLibrary) -> DepthwiseLibrary:
    """The library, if it gives the numbers of a plain convolution for a ragged batch of three utterances."""
    draw = torch.Generator().manual_seed(0)
    lengths, channels, kernel = [40, 1, 7], LANES, 11
    x = torch.randn(sum(lengths), channels, generator=draw)
    taps = torch.randn(kernel, channels, generator=draw)
    offsets = torch.tensor([0, 40, 41, 48])
    weight = taps.t().unsqueeze(1)
    with torch.autocast("cpu", enabled=False):
        expected = torch.cat([
            torch.nn.functional.conv1d(part.t(), weight, padding=kernel // 2, groups=channels).t()
            for part in torch.split(x, lengths)
        ])
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        apart = (compiled.forward(x.to(dtype), taps, None, offsets, 1).float() - expected).abs().max()
        if not apart <= tolerance * expected.abs().max():
            raise _WrongNumbersError("what it compiled gives other numbers")
    return compiled
