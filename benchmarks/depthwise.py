"""The depthwise convolutions of QuartzNet5x5 on this CPU: forward and both gradients, ours against PyTorch's own.

    python benchmarks/depthwise.py [--batch 16] [--frames 165] [--repeats 9]

Ours and the library's are timed in turn; a row gives the medians as GFLOP/s and the ratio of times (above 1: ours is
faster). 165 encoded frames are 6.6 s of speech.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from kvarts.encoder import DepthwiseConv

SHAPES = ((256, 33), (256, 39), (512, 51), (512, 63), (512, 75))


def library(module: DepthwiseConv, x: torch.Tensor) -> torch.Tensor:
    """The same convolution by `conv2d` in channels-last memory with the gradients that PyTorch has for it."""
    image = x.transpose(1, 2).unsqueeze(2)
    weight = module.weight.unsqueeze(2).to(x.dtype)
    y = torch.nn.functional.conv2d(image, weight, None, 1, (0, module.padding[0]), groups=x.shape[2])
    return y.squeeze(2).transpose(1, 2)


def timed(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


def measure(channels: int, kernel: int, dtype: torch.dtype, args: argparse.Namespace) -> None:
    module = DepthwiseConv(channels, kernel)
    x = torch.randn(args.batch, args.frames, channels).to(dtype)
    gflop = 2 * x.numel() * kernel / 1e9
    grad = torch.randn_like(x)
    row = [f"{str(dtype)[6:]:9} {channels:5} {kernel:5}"]
    for what in ("forward", "by input", "by weight"):
        times: dict[str, list[float]] = {"ours": [], "library": []}
        for _ in range(args.repeats + 1):
            for name, function in (("ours", module), ("library", lambda x: library(module, x))):
                source = x.detach().requires_grad_(what == "by input")
                module.weight.requires_grad_(what == "by weight")
                module.bias.requires_grad_(False)
                if what == "forward":
                    times[name].append(timed(lambda f=function, s=source: f(s)))
                else:
                    y = function(source)
                    times[name].append(timed(lambda y=y: y.backward(grad)))
        # The first round warms up.
        ours_s, library_s = (statistics.median(times[name][1:]) for name in ("ours", "library"))
        row.append(f"{gflop / ours_s:8.0f} {gflop / library_s:8.0f} {library_s / ours_s:6.2f}")
    print(" | ".join(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=165)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"batch {args.batch}, {args.frames} frames, {torch.get_num_threads()} threads")
    print("dtype     chan. kernel| forward: ours, library, ratio | gradient by input | gradient by weight  (GFLOP/s)")
    for dtype in (torch.float32, torch.bfloat16):
        for channels, kernel in SHAPES:
            measure(channels, kernel, dtype, args)


if __name__ == "__main__":
    main()
