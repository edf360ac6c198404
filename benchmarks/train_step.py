"""One training step of QuartzNet5x5 against the course's plain conv1d network: same weights, same batch, in turn.

    python benchmarks/train_step.py [--device cuda] [--batch 16] [--seconds 6.6] [--rounds 7] [--json FILE]

A step is forward, CTC, backward, clipping and Adam. Ratios are the plain network's float32 time over ours (medians of
interleaved rounds, above 1: ours is faster); GFLOP/s count the convolutions' multiplications and additions three times
(forward and both gradients); `sgemm_gflops` is a 2048³ float32 matrix product measured between the steps. Peak memory
is that of a process of its own for each variant (on a GPU: of the allocator).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from course_network import CourseNetwork
from kvarts.checkpoint import COURSE_BLOCKS
from kvarts.decoder import ConvDecoder
from kvarts.encoder import QuartzNet
from kvarts.frames import encoded_frames, mel_frames, samples_of_duration
from kvarts.model import QuartzNetCTC

VARIANTS = ("plain_fp32", "plain_bf16", "ours_fp32", "ours_bf16")


class Step:
    """A network with its optimiser and one fixed batch; calling it trains one step."""

    def __init__(self, variant: str, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.plain = variant.startswith("plain")
        self.bf16 = variant.endswith("bf16")
        self.device = torch.device(args.device)
        network = CourseNetwork() if self.plain else QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder())
        self.network = network.to(self.device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        frames = mel_frames(samples_of_duration(args.seconds))
        # As bucketing leaves them: the shortest utterance a tenth shorter than the longest.
        lengths = torch.linspace(0.9 * frames, frames, args.batch).long()
        self.features = (3 * torch.randn(args.batch, frames, 64) - 10).to(self.device)
        self.lengths = lengths.to(self.device)
        targets = 13 * args.seconds  # letters a second, about what people speak
        self.targets = torch.randint(0, 33, (args.batch, int(targets))).to(self.device)
        self.target_lengths = torch.full((args.batch,), int(targets)).to(self.device)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            log_probs, encoded = self._log_probs()
        loss = nn.functional.ctc_loss(
            log_probs.float().transpose(0, 1), self.targets, encoded, self.target_lengths, blank=33, zero_infinity=True
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _log_probs(self) -> tuple[Tensor, Tensor]:
        if self.plain:
            return self.network(self.features.transpose(1, 2)), encoded_frames(self.lengths)
        log_probs, encoded = self.network.log_probs(self.features, self.lengths)
        return log_probs, encoded


def gflop(network: nn.Module, batch: int, time_steps: int) -> float:
    """Forward and both gradients of all convolutions; every one of them gives `time_steps` frames."""
    per_frame = sum(
        2 * m.out_channels * m.in_channels // m.groups * m.kernel_size[0]
        for m in network.modules()
        if isinstance(m, nn.Conv1d)
    )
    return 3 * per_frame * batch * time_steps / 1e9


def timed(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


def sgemm(device: torch.device) -> float:
    """GFLOP/s of a float32 matrix product."""
    a = torch.randn(2048, 2048, device=device)
    product = a @ a
    if device.type == "cuda":
        torch.cuda.synchronize()

    def run() -> None:
        torch.mm(a, a, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * 2048**3 / 1e9 / timed(run)


def peak_rss_mb(variant: str, args: argparse.Namespace) -> float:
    """Peak memory of three steps in a process of their own."""
    command = [sys.executable, __file__, "--only", variant, "--device", args.device]
    command += ["--batch", str(args.batch), "--seconds", str(args.seconds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run_alone(variant: str, args: argparse.Namespace) -> None:
    step = Step(variant, args)
    for _ in range(3):
        step()
    if step.device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        run_alone(args.only, args)
        return
    # First: on Linux a child's peak starts at what its parent held when it was forked.
    peaks_mb = {variant: peak_rss_mb(variant, args) for variant in VARIANTS}
    steps = {variant: Step(variant, args) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    sgemms: list[float] = []
    for _ in range(args.rounds + 1):
        for variant, step in steps.items():
            times[variant].append(timed(step))
        sgemms.append(sgemm(torch.device(args.device)))
    # The first round warms up.
    median_s = {variant: statistics.median(values[1:]) for variant, values in times.items()}
    time_steps = encoded_frames(mel_frames(samples_of_duration(args.seconds)))
    work = gflop(steps["plain_fp32"].network, args.batch, time_steps)
    result = {
        "ratio_fp32": median_s["plain_fp32"] / median_s["ours_fp32"],
        "ratio_bf16": median_s["plain_fp32"] / median_s["ours_bf16"],
        "ratio_bf16_to_plain_bf16": median_s["plain_bf16"] / median_s["ours_bf16"],
        "sgemm_gflops": statistics.median(sgemms[1:]),
        **{f"step_s_{variant}": value for variant, value in median_s.items()},
        **{f"gflops_{variant}": work / value for variant, value in median_s.items()},
        **{f"peak_rss_mb_{variant}": value for variant, value in peaks_mb.items()},
        "batch": args.batch,
        "seconds": args.seconds,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(f"{'':11}{'step s':>8}{'ratio':>8}{'GFLOP/s':>9}{'of sgemm':>9}{'peak MB':>9}")
    for variant in VARIANTS:
        rate = result[f"gflops_{variant}"]
        print(
            f"{variant:11}{median_s[variant]:8.3f}{median_s['plain_fp32'] / median_s[variant]:8.2f}{rate:9.0f}"
            f"{100 * rate / result['sgemm_gflops']:8.0f}%{result[f'peak_rss_mb_{variant}']:9.0f}"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
