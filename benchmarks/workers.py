"""Variants side by side, each in a process of its own, that do their work in turn when they are told to.

So every round sees the same machine, no variant shares an allocator with another, and peak memory is each one's own.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Worker:
    """A process of the same script, started as `script --worker variant` with the script's arguments."""

    def __init__(self, variant: str) -> None:
        command = [sys.executable, *sys.argv, "--worker", variant]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> float:
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("a benchmark process died; its message stands above")
        return float(answer)


def serve(run: Callable[[], object], device: str, **answers: Callable[[], float]) -> None:
    """In the worker: answers `seconds` by one run, `memory` by the peak so far in MB, and what else there is."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed must not be taken for an answer
    for line in sys.stdin:
        question = line.strip()
        if question == "seconds":
            start_s = time.perf_counter()
            run()
            answer = time.perf_counter() - start_s
        elif question == "memory":
            answer = peak_mb(device)
        else:
            answer = answers[question]()
        print(answer, file=out, flush=True)


def peak_mb(device: str) -> float:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def medians(workers: dict[str, Worker], rounds: int) -> dict[str, float]:
    """Median seconds of a run of each, over interleaved rounds after one that warms up."""
    seconds: dict[str, list[float]] = {variant: [] for variant in workers}
    for number in range(rounds + 1):
        for variant, worker in workers.items():
            seconds[variant].append(worker.ask("seconds"))
        if sys.stderr.isatty():
            print(f"\rround {number} of {rounds}", end="\n" if number == rounds else "", file=sys.stderr)
    return {variant: statistics.median(values[1:]) for variant, values in seconds.items()}


def parser_of(description: str, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=rounds, help="counted after one that warms up")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser
