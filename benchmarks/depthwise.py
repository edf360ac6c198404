"""The depthwise convolutions of QuartzNet5x5 on this CPU: forward and all gradients, three ways, in turn.

    python benchmarks/depthwise.py [--batch 16] [--frames 165] [--repeats 9]

`conv1d` is what the course's network calls, `conv2d` the way Kvarts takes without a C compiler, `C` the one with it. A
row gives the medians as GFLOP/s. 165 encoded frames are 6.6 s of speech.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

from kvarts import native
from kvarts.depthwise import DepthwiseConv
from kvarts.packing import Packing

SHAPES = ((256, 33, 1), (256, 39, 1), (512, 51, 1), (512, 63, 1), (512, 75, 1), (512, 87, 2))


def timed(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


def measure(channels: int, kernel: int, dilation: int, dtype: torch.dtype, args: argparse.Namespace) -> str:
    padding = dilation * (kernel - 1) // 2
    ours = DepthwiseConv(channels, kernel, 1, dilation)
    conv1d = nn.Conv1d(channels, channels, kernel, 1, padding, dilation, groups=channels).to(dtype)
    packing = Packing(torch.tensor([args.frames] * args.batch), args.frames)
    packed = torch.randn(args.batch * args.frames, channels).to(dtype).requires_grad_()
    padded = packed.detach().view(args.batch, args.frames, channels).transpose(1, 2).contiguous().requires_grad_()

    def conv2d(x: Tensor) -> Tensor:
        with mock.patch.object(native, "library", return_value=None):
            return ours(x, packing)[0]

    ways = {"conv1d": (conv1d, padded), "conv2d": (conv2d, packed), "C": (lambda x: ours(x, packing)[0], packed)}
    if native.library() is None:
        del ways["C"]
    forward_s: dict[str, list[float]] = {name: [] for name in ways}
    backward_s: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats + 1):
        for name, (function, x) in ways.items():
            start_s = time.perf_counter()
            y = function(x)
            forward_s[name].append(time.perf_counter() - start_s)
            grad = torch.ones_like(y)
            backward_s[name].append(timed(lambda y=y, grad=grad: y.backward(grad)))
    gflop = 2 * packed.numel() * kernel / 1e9
    row = [f"{str(dtype)[6:]:9}{channels:5}{kernel:5}{dilation:4}"]
    for seconds, work in ((forward_s, gflop), (backward_s, 2 * gflop)):
        # The first round warms up.
        row.append("".join(f"{work / statistics.median(seconds[name][1:]):8.0f}" for name in ways))
    return " |".join(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=165)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"batch {args.batch}, {args.frames} frames, {torch.get_num_threads()} threads; GFLOP/s")
    print("dtype    chan. kern dil | forward: conv1d, conv2d, C | backward: conv1d, conv2d, C")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            print(measure(*shape, dtype, args), flush=True)


if __name__ == "__main__":
    main()
