"""What Kvarts promises of a GPU, checked and measured by one command in a few minutes.

    python benchmarks/gpu.py [--device cuda] [--batch 64] [--seconds 10] [--rounds 20] [--json FILE]
    python benchmarks/gpu.py --device cpu --quick      # only whether this file still works

1. The depthwise kernels (`kvarts.depthwise_triton`; on a CPU whatever `DepthwiseConv` uses there) against `conv1d` in
   float64: the largest error over the largest number. Errors beyond their bound end the program with status 1.
2. Each depthwise layer in bfloat16 beside `conv1d` of (batch, channels, time) and beside the library's channels-last
   `conv2d`, both on batches without padding: medians of interleaved rounds, microseconds.
3. The whole training step of `benchmarks/train_step.py`: medians of interleaved rounds and the allocator's peak.
4. Where a step of ours spends its time: milliseconds that the GPU is busy, of those that a step takes, and its kernels.
5. Augmented sound (augment=farfield, made-up rooms, the utterances of sample/, decoded before): how many utterances a
   second a core makes, how many it draws for the device, and how many the device makes of those; in turn, medians.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own customary name
from torch import Tensor, nn

import train_step
from augment import SAMPLE, made_up_rooms
from kvarts.config import compose_config, instantiate
from kvarts.dataset import SpeechDataset, collate
from kvarts.depthwise import DepthwiseConv, convolve
from kvarts.device_sound import DeviceSound
from kvarts.feature_cache import SAMPLES, FeatureCache
from kvarts.frames import encoded_frames_of_duration
from kvarts.manifest import read_manifest
from kvarts.packing import Packing

LAYERS = ((256, 33, 1), (256, 39, 1), (512, 51, 1), (512, 63, 1), (512, 75, 1), (512, 87, 2))
# Of the largest number. A bfloat16 output is rounded to 8 bits; the gradients by weight and bias are float32 sums.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SUM_BOUND = 1e-5
VARIANTS = ("plain_bf16", "ours_bf16", "ours_fp16", "ours_fp32")
QUANTITIES = ("y", "by input", "by weight", "by bias")
CALLS = 10  # between two readings of the GPU's clock

Depthwise = Callable[[Tensor, nn.Parameter, nn.Parameter, Packing, int], Tensor]


def by_module(x: Tensor, weight: nn.Parameter, bias: nn.Parameter, packing: Packing, dilation: int) -> Tensor:
    """What the network does on x's device."""
    module = DepthwiseConv(x.shape[1], weight.shape[2], dilation=dilation)
    module.weight, module.bias = weight, bias
    return module(x, packing)[0]


def ours(device: torch.device) -> Depthwise:
    if device.type == "cuda":
        from kvarts.depthwise_triton import depthwise

        return depthwise
    return by_module


def errors(
    function: Depthwise,
    lengths: list[int],
    channels: int,
    kernel: int,
    dilation: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, float]:
    """Largest errors against float64 `conv1d` of each utterance, over the largest number, by `QUANTITIES`."""
    draw = torch.Generator().manual_seed(kernel)
    packing = Packing(torch.tensor(lengths, device=device), max(lengths) + 3)
    x = torch.randn(sum(lengths), channels, generator=draw).to(device, dtype)
    grad = torch.randn(channels, sum(lengths), generator=draw).to(device, dtype).t()  # not contiguous
    # Rounded to `dtype`, which the library's convolutions do where ours need not.
    weight = torch.randn(channels, 1, kernel, generator=draw).to(device, dtype)
    bias = torch.randn(channels, generator=draw).to(device, dtype)

    def all_four(function: Callable[[Tensor, nn.Parameter, nn.Parameter], Tensor], exact: torch.dtype | None) -> list:
        frames = x.to(exact or dtype).requires_grad_()
        parameters = [nn.Parameter(p.to(exact or torch.float32)) for p in (weight, bias)]
        y = function(frames, *parameters)
        return [y.detach(), *torch.autograd.grad(y, (frames, *parameters), grad.to(y.dtype))]

    def of_each_utterance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padding = dilation * (kernel - 1) // 2
        parts = [F.conv1d(part.t(), weight, bias, 1, padding, dilation, channels).t() for part in x.split(lengths)]
        return torch.cat(parts)

    actual = all_four(lambda x, w, b: function(x, w, b, packing, dilation), None)
    expected = all_four(of_each_utterance, torch.float64)
    return {
        name: float((a - e).abs().max() / e.abs().max())
        for name, a, e in zip(QUANTITIES, actual, expected, strict=True)
    }


def bound(name: str, dtype: torch.dtype) -> float:
    return BOUNDS[dtype] if name in ("y", "by input") else SUM_BOUND


def check(args: argparse.Namespace) -> list[dict]:
    device = torch.device(args.device)
    dtypes, shapes = tuple(BOUNDS), (*LAYERS, (70, 75, 1), (70, 33, 2))
    if device.type == "cpu":  # where other dtypes and channels are left to PyTorch, whose bounds these are not
        dtypes, shapes = dtypes[:2], LAYERS
    rows = []
    print(f"{'errors':9}{'chan.':>6}{'kernel':>7}{'dil.':>5}" + "".join(f"{name:>11}" for name in QUANTITIES))
    for dtype in dtypes:
        for channels, kernel, dilation in shapes:
            lengths = [1, 2, kernel // 2, kernel, 250, 64, 129]
            found = errors(ours(device), lengths, channels, kernel, dilation, dtype, device)
            bad = [name for name, value in found.items() if not value <= bound(name, dtype)]
            rows.append({"dtype": str(dtype), "layer": [channels, kernel, dilation], **found, "failed": bad})
            figures = "".join(f"{value:11.1e}" for value in found.values())
            verdict = f"  WRONG: {', '.join(bad)}" if bad else ""
            print(f"{str(dtype)[6:]:9}{channels:6}{kernel:7}{dilation:5}{figures}{verdict}", flush=True)
    return rows


def microseconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call; on a GPU what it computes, not what Python needs to ask for it."""
    if device.type == "cpu":
        start_s = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - start_s)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000_000)  # some 10 ms, in which Python gets ahead of the GPU
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / CALLS


def runs(layer: tuple[int, int, int], args: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(implementation, quantity, call) in bfloat16, all of the same numbers."""
    channels, kernel, dilation = layer
    device, bf16 = torch.device(args.device), torch.bfloat16
    frames = encoded_frames_of_duration(args.seconds)
    packing = Packing(torch.full((args.batch,), frames, device=device), frames)
    padding = dilation * (kernel - 1) // 2
    weight = nn.Parameter(torch.randn(channels, 1, kernel, device=device))
    bias = nn.Parameter(torch.randn(channels, device=device))
    half = [nn.Parameter(p.detach().to(bf16)) for p in (weight, bias)]
    depthwise = ours(device)
    packed = torch.randn(args.batch * frames, channels, device=device, dtype=bf16)
    padded = packed.view(args.batch, frames, channels)
    implementations = {
        "conv1d": (
            padded.transpose(1, 2).contiguous(),
            half,
            lambda x: F.conv1d(x, *half, 1, padding, dilation, channels),
        ),
        "conv2d": (padded, half, lambda x: convolve(x, *half, 1, padding, dilation)),
        "ours": (packed, [weight, bias], lambda x: depthwise(x, weight, bias, packing, dilation)),
    }
    for name, (x, parameters, function) in implementations.items():
        x = x.detach().requires_grad_()
        y = function(x)
        grad = torch.randn_like(y)
        yield name, "forward", lambda f=function, x=x: f(x.detach())
        for quantity, inputs in (("by input", [x]), ("by weight", parameters)):
            yield name, quantity, lambda y=y, i=inputs, g=grad: torch.autograd.grad(y, i, g, retain_graph=True)


def layers(args: argparse.Namespace) -> list[dict]:
    device = torch.device(args.device)
    rows = []
    print("\nµs of conv1d, conv2d and ours, and the quicker one of the library's over ours")
    for layer in LAYERS[:: 5 if args.quick else 1]:
        calls = list(runs(layer, args))
        times: dict[tuple[str, str], list[float]] = {(name, quantity): [] for name, quantity, _ in calls}
        for _ in range(args.rounds + 1):
            for name, quantity, run in calls:
                times[name, quantity].append(microseconds(run, device))
        # The first round warms up.
        median_us = {key: statistics.median(values[1:]) for key, values in times.items()}
        gflop = 2 * args.batch * encoded_frames_of_duration(args.seconds) * layer[0] * layer[1] / 1e9
        row: dict = {"layer": list(layer)}
        print(f"{layer[0]:4} channels, {layer[1]} taps, dilation {layer[2]}", end="")
        for quantity in ("forward", "by input", "by weight"):
            plain, library, own = (median_us[name, quantity] for name in ("conv1d", "conv2d", "ours"))
            row[quantity] = {"conv1d_us": plain, "conv2d_us": library, "ours_us": own, "ours_gflops": gflop / own * 1e6}
            print(f" | {quantity}: {plain:8.0f}{library:8.0f}{own:8.0f}{min(plain, library) / own:6.2f}", end="")
        print(flush=True)
        rows.append(row)
    return rows


def steps(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    is_cuda = args.device != "cpu"
    rows: dict[str, dict[str, float]] = {variant: {} for variant in VARIANTS}
    if is_cuda:
        for variant, row in rows.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            step = train_step.Step(variant, args)
            for _ in range(3):
                step()
            row["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
            del step
    networks = {variant: train_step.Step(variant, args) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.rounds + 1):
        for variant, step in networks.items():
            start_s = time.perf_counter()
            step()
            times[variant].append(time.perf_counter() - start_s)
    print(f"\n{'step':12}{'ms':>8}{'plain_bf16 / it':>17}{'peak MB':>9}")
    for variant, row in rows.items():
        row["ms"] = 1e3 * statistics.median(times[variant][1:])  # the first round warms up
        print(f"{variant:12}{row['ms']:8.1f}{rows['plain_bf16']['ms'] / row['ms']:17.2f}{row.get('peak_mb', 0):9.0f}")
    return rows


def profile(variant: str, args: argparse.Namespace) -> dict:
    """Milliseconds of a step, those of them that the GPU computes, and the kernels that take longest."""
    step = train_step.Step(variant, args)
    for _ in range(3):
        step()
    start_s = time.perf_counter()
    step()
    step_ms = 1e3 * (time.perf_counter() - start_s)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        step()
    kernels_ms: dict[str, float] = {}
    for event in trace.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels_ms[event.name] = kernels_ms.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e3
    longest = sorted(kernels_ms.items(), key=lambda item: -item[1])
    busy_ms = sum(kernels_ms.values())
    print(f"\n{variant}: a step takes {step_ms:.1f} ms, the GPU is busy for {busy_ms:.1f} ms of them")
    for name, value in longest[:20]:
        print(f"{value:9.2f} ms  {name[:100]}")
    return {"step_ms": step_ms, "busy_ms": busy_ms, "kernels_ms": dict(longest[:40])}


def sound(args: argparse.Namespace) -> dict[str, float]:
    """Utterances a second; of one core, and of the device with the way of the samples to it."""
    with tempfile.TemporaryDirectory() as folder:
        made_up_rooms(Path(folder) / "rooms")
        settings = compose_config(["augment=farfield", f"augment.rooms={folder}/rooms"]).augment
        chain, augmentation = instantiate(settings.sound), instantiate(settings.features)
        utterances = read_manifest(SAMPLE / "train_opus" / "manifest.jsonl")
        caches = [FeatureCache(Path(folder) / "cache", 2**30, *kind) for kind in ((), (SAMPLES,))]
        on_device = DeviceSound(chain, augmentation)
        here = SpeechDataset(utterances, augmentation, 0, caches[0], chain, caches[1])
        there = SpeechDataset(utterances, augmentation, 0, caches[0], chain, caches[1], on_device)
        draws = [(0, place % len(utterances)) for place in range(args.batch)]
        seconds: dict[str, list[float]] = {"made by a core": [], "drawn by a core": [], "made by the device": []}
        threads = torch.get_num_threads()
        for number in range(args.rounds + 2):  # the first fill the cache
            torch.set_num_threads(1)
            times_s = [time.perf_counter()]
            collate([here[number, place] for _, place in draws])
            times_s.append(time.perf_counter())
            batch = collate([there[number, place] for _, place in draws], on_device)
            times_s.append(time.perf_counter())
            torch.set_num_threads(threads)
            if args.device != "cpu":
                batch = batch.pin_memory()  # another thread's work in training
            start_s = time.perf_counter()
            found = batch.to(args.device, non_blocking=True).sound
            assert found is not None
            float(on_device.features(found)[-1, -1, -1])  # waits for it
            taken_s = (times_s[1] - times_s[0], times_s[2] - times_s[1], time.perf_counter() - start_s)
            for list_s, one_s in zip(seconds.values(), taken_s, strict=True):
                list_s.append(one_s)
    rates = {name: args.batch / statistics.median(list_s[2:]) for name, list_s in seconds.items()}
    mean_s = sum(utterances[place].duration_s for _, place in draws) / len(draws)
    print(f"\nutterances of {mean_s:.1f} s a second, in batches of {args.batch}")
    for name, rate in rates.items():
        print(f"{rate:9.0f}  {name}")
    return {"utterance_s": mean_s, **rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each utterance")
    parser.add_argument("--rounds", type=int, default=20, help="counted after one that warms up")
    parser.add_argument("--quick", action="store_true", help="two layers, two utterances of a second")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.seconds, args.rounds = 2, 1.0, 1
    start_s = time.perf_counter()
    result: dict = {"torch": torch.__version__, "device": args.device}
    if args.device != "cpu":
        result["gpu"] = torch.cuda.get_device_name()
    result["errors"] = check(args)
    result["layers"] = layers(args)
    result["steps"] = steps(args)
    if args.device != "cpu":
        result["profiles"] = {variant: profile(variant, args) for variant in ("plain_bf16", "ours_bf16")}
    result["sound"] = sound(args)
    result["took_s"] = time.perf_counter() - start_s
    print(f"\n{result['took_s']:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if any(row["failed"] for row in result["errors"]):
        sys.exit("wrong numbers: see above")


if __name__ == "__main__":
    main()
