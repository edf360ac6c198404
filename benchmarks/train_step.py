"""One training step of QuartzNet5x5 against the course's plain conv1d network: same weights, same batch, in turn.

    python benchmarks/train_step.py [--device cuda] [--batch 16] [--seconds 6.6] [--rounds 7] [--json FILE]
                                    [--variants plain_fp32 ours_bf16]

A step is forward, CTC, backward, clipping and Adam. Each variant lives in a process of its own, and they step one after
the other, so that every round sees the same machine. Ratios are the plain network's float32 time over ours (medians of
the rounds, above 1: ours is faster); GFLOP/s count the convolutions' multiplications and additions three times (forward
and both gradients); `sgemm_gflops` is a 2048³ float32 matrix product measured between the steps. Peak memory is that of
the variant's process (on a GPU: of its allocator).
"""

import argparse
import json

from workers import Worker, medians, parser_of, serve

VARIANTS = ("plain_fp32", "plain_bf16", "ours_fp32", "ours_bf16")


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
        from kvarts.native import keep_memory

        torch.manual_seed(0)
        self.plain = variant.startswith("plain")
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(variant[-4:])
        self.device = torch.device(args.device)
        network = CourseNetwork() if self.plain else QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder())
        self.network = network.to(self.device).train()
        # As our trainer has it: memory is kept, Adam is fused (`QuartzNetCTC`). The plain network gains nothing by the
        # former.
        if not self.plain:
            keep_memory()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, fused=not self.plain)
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


def measure(args: argparse.Namespace) -> dict[str, object]:
    """All figures, by the names under which --json writes them."""
    variants = args.variants or (VARIANTS if args.device == "cpu" else (*VARIANTS, "ours_fp16"))
    workers = {variant: Worker(variant) for variant in (*variants, "sgemm")}
    median_s = medians(workers, args.rounds)
    gflops = {variant: worker.ask("gflop") / median_s[variant] for variant, worker in workers.items()}
    result: dict[str, object] = {
        f"ratio_{name[5:]}": median_s["plain_fp32"] / seconds
        for name, seconds in median_s.items()
        if name.startswith("ours")
    }
    if {"plain_bf16", "ours_bf16"} <= set(variants):
        result["ratio_bf16_to_plain_bf16"] = median_s["plain_bf16"] / median_s["ours_bf16"]
    result["sgemm_gflops"] = gflops["sgemm"]
    for variant in variants:
        result[f"step_s_{variant}"] = median_s[variant]
        result[f"gflops_{variant}"] = gflops[variant]
        result[f"peak_rss_mb_{variant}"] = workers[variant].ask("memory")
    return {**result, "batch": args.batch, "seconds": args.seconds, "device": args.device}


def main() -> None:
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.6, help="of each utterance")
    choices = [*VARIANTS, "ours_fp16"]
    parser.add_argument("--variants", nargs="+", choices=choices, help="plain_fp32 and these; default: all")
    args = parser.parse_args()
    if args.variants and "plain_fp32" not in args.variants:
        args.variants.insert(0, "plain_fp32")  # what the others are compared with
    if args.worker:
        step = Sgemm(args) if args.worker == "sgemm" else Step(args.worker, args)
        serve(step, args.device, gflop=step.gflop)
        return
    result = measure(args)
    print(f"{'':11}{'step s':>8}{'ratio':>8}{'GFLOP/s':>9}{'of sgemm':>9}{'peak MB':>9}")
    for variant in [name[7:] for name in result if name.startswith("step_s_")]:
        step_s, rate, peak_mb = (result[f"{name}_{variant}"] for name in ("step_s", "gflops", "peak_rss_mb"))
        ratio, share = result["step_s_plain_fp32"] / step_s, rate / result["sgemm_gflops"]
        print(f"{variant:11}{step_s:8.3f}{ratio:8.2f}{rate:9.0f}{share:9.0%}{peak_mb:9.0f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
