"""One training step of QuartzNet5x5 against the course's plain conv1d network: same weights, same batch, in turn.

    python benchmarks/train_step.py [--device cuda] [--batch 16] [--seconds 6.6] [--rounds 7] [--json FILE]

A step is forward, CTC, backward, clipping and Adam. Each variant lives in a process of its own, and they step one after
the other, so that every round sees the same machine. Ratios are the plain network's float32 time over ours (medians of
the rounds, above 1: ours is faster); GFLOP/s count the convolutions' multiplications and additions three times (forward
and both gradients); `sgemm_gflops` is a 2048³ float32 matrix product measured between the steps. Peak memory is that of
the variant's process (on a GPU: of its allocator).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

VARIANTS = ("plain_fp32", "plain_bf16", "ours_fp32", "ours_bf16")


class Worker:
    """A process that holds one variant and takes a step when it is told to."""

    def __init__(self, variant: str, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", variant, "--device", args.device]
        command += ["--batch", str(args.batch), "--seconds", str(args.seconds)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> float:
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("a benchmark process died; its message stands above")
        return float(answer)


def work(variant: str, args: argparse.Namespace) -> None:
    """Answers the questions of `Worker.ask`, one number a line."""
    import torch

    step = Sgemm(args) if variant == "sgemm" else Step(variant, args)
    for question in sys.stdin:
        if question == "step\n":
            start_s = time.perf_counter()
            step()
            answer = time.perf_counter() - start_s
        elif question == "gflop\n":
            answer = step.gflop()
        elif step.device.type == "cuda":
            answer = torch.cuda.max_memory_allocated() / 2**20
        else:
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(answer, flush=True)


class Step:
    """A network with its optimiser and one fixed batch; calling it trains one step."""

    def __init__(self, variant: str, args: argparse.Namespace) -> None:
        import torch

        from course_network import CourseNetwork
        from kvarts.checkpoint import COURSE_BLOCKS
        from kvarts.decoder import ConvDecoder
        from kvarts.encoder import QuartzNet
        from kvarts.frames import mel_frames, samples_of_duration
        from kvarts.model import QuartzNetCTC

        torch.manual_seed(0)
        self.plain = variant.startswith("plain")
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(variant[-4:])
        self.device = torch.device(args.device)
        network = CourseNetwork() if self.plain else QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder())
        self.network = network.to(self.device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.frames = mel_frames(samples_of_duration(args.seconds))
        # As bucketing leaves them: the shortest utterance a tenth shorter than the longest.
        lengths = torch.linspace(0.9 * self.frames, self.frames, args.batch).long()
        self.features = (3 * torch.randn(args.batch, self.frames, 64) - 10).to(self.device)
        self.lengths = lengths.to(self.device)
        targets = 13 * args.seconds  # letters a second, about what people speak
        self.targets = torch.randint(0, 33, (args.batch, int(targets))).to(self.device)
        self.target_lengths = torch.full((args.batch,), int(targets)).to(self.device)

    def __call__(self) -> None:
        import torch
        from torch import nn

        from kvarts.frames import encoded_frames

        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=self.half is not None):
            if self.plain:
                log_probs, encoded = self.network(self.features.transpose(1, 2)), encoded_frames(self.lengths)
            else:
                log_probs, encoded = self.network.log_probs(self.features, self.lengths)
        loss = nn.functional.ctc_loss(
            log_probs.float().transpose(0, 1), self.targets, encoded, self.target_lengths, blank=33, zero_infinity=True
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def gflop(self) -> float:
        """Forward and both gradients of all convolutions; every one of them gives a frame every 40 ms."""
        from torch import nn

        from kvarts.frames import encoded_frames

        per_frame = sum(
            2 * m.out_channels * m.in_channels // m.groups * m.kernel_size[0]
            for m in self.network.modules()
            if isinstance(m, nn.Conv1d)
        )
        return 3 * per_frame * len(self.lengths) * encoded_frames(self.frames) / 1e9


class Sgemm:
    """A float32 matrix product."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        self.device = torch.device(args.device)
        self.a = torch.randn(2048, 2048, device=self.device)
        self.product = self.a @ self.a

    def __call__(self) -> None:
        import torch

        torch.mm(self.a, self.a, out=self.product)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def gflop(self) -> float:
        return 2 * 2048**3 / 1e9


def measure(args: argparse.Namespace, variants: tuple[str, ...] = VARIANTS) -> dict[str, object]:
    """All figures, by the names under which --json writes them."""
    workers = {variant: Worker(variant, args) for variant in (*variants, "sgemm")}
    times: dict[str, list[float]] = {variant: [] for variant in workers}
    for _ in range(args.rounds + 1):
        for variant, worker in workers.items():
            times[variant].append(worker.ask("step"))
    # The first round warms up.
    median_s = {variant: statistics.median(values[1:]) for variant, values in times.items()}
    gflops = {variant: worker.ask("gflop") / median_s[variant] for variant, worker in workers.items()}
    result: dict[str, object] = {
        f"ratio_{name[5:]}": median_s["plain_fp32"] / seconds
        for name, seconds in median_s.items()
        if name.startswith("ours")
    }
    result["ratio_bf16_to_plain_bf16"] = median_s["plain_bf16"] / median_s["ours_bf16"]
    result["sgemm_gflops"] = gflops["sgemm"]
    for variant in variants:
        result[f"step_s_{variant}"] = median_s[variant]
        result[f"gflops_{variant}"] = gflops[variant]
        result[f"peak_rss_mb_{variant}"] = workers[variant].ask("memory")
    return {**result, "batch": args.batch, "seconds": args.seconds, "device": args.device}


def add_arguments(parser: argparse.ArgumentParser, batch: int, seconds: float) -> None:
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, batch=16, seconds=6.6)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args)
        return
    result = measure(args)
    print(f"{'':11}{'step s':>8}{'ratio':>8}{'GFLOP/s':>9}{'of sgemm':>9}{'peak MB':>9}")
    for variant in VARIANTS:
        step_s, rate, peak_mb = (result[f"{name}_{variant}"] for name in ("step_s", "gflops", "peak_rss_mb"))
        ratio, share = result["step_s_plain_fp32"] / step_s, rate / result["sgemm_gflops"]
        print(f"{variant:11}{step_s:8.3f}{ratio:8.2f}{rate:9.0f}{share:9.0%}{peak_mb:9.0f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
