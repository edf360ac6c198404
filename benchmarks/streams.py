"""Many streams at once: does the machine keep up, how late is text, and does memory stay flat?

    python benchmarks/streams.py --model M --manifest MANIFEST [--streams 50] [--minutes 60] [--chunk 0.1] [--json FILE]

Every stream hears the manifest's utterances in an order of its own, with pauses of 0.5 to 3 s between them, made of
each recording's quietest 0.2 s. Time is simulated: a chunk of every stream is there when its last sample has been
spoken, the time measured for computing is added, and nobody sleeps, so it goes as fast as it can. What falls behind
hears all that has come meanwhile, and leaves partial results out.

`times_real_time` is the sound's length by the time for computing: at 1 and above it keeps up. A latency is from the
moment at which the sound that an event needs was spoken until the event is there; a final's does not include
`silence_s`. Memory is what the process holds, with 10 s streamed before the first figure.
"""

import argparse
import gc
import itertools
import json
import random
import resource
import sys
import time
from pathlib import Path

import numpy as np


def load(model: Path, engine: str | None, precision: str | None, threads: int | None):
    from kvarts.recogniser import Recognizer

    if model.is_dir():
        return Recognizer.load(model, engine=engine, precision=precision, threads=threads)
    from kvarts.torch_engine import Torch

    return Recognizer(Torch.load(model, "auto"), threads)


def endless(waveforms: list[np.ndarray], seed: int, chunk: int):
    """Chunks of so many samples, for ever: utterances in a random order with pauses between them."""
    from kvarts.frames import SAMPLE_RATE
    from kvarts.streaming_metrics import pause_like

    order = random.Random(seed)
    rest = np.zeros(0, np.float32)
    while True:
        waveform = order.choice(waveforms)
        pause = pause_like(waveform, round(order.uniform(0.5, 3) * SAMPLE_RATE))
        rest = np.concatenate([rest, pause, waveform])
        while len(rest) >= chunk:
            yield rest[:chunk]
            rest = rest[chunk:]


def held_mb() -> float:
    """Resident memory now; its peak where the system does not tell."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return pages * resource.getpagesize() / 2**20


def measure(args: argparse.Namespace) -> dict[str, object]:
    from kvarts.audio import read_audio
    from kvarts.frames import SAMPLE_RATE
    from kvarts.manifest import read_manifest
    from kvarts.streaming import Final, Streams
    from kvarts.streaming_metrics import percentile

    recognizer = load(args.model, args.engine, args.precision, args.threads)
    waveforms = [read_audio(utterance.audio_path) for utterance in read_manifest(args.manifest)]
    chunk = round(args.chunk * SAMPLE_RATE)
    sources = [endless(waveforms, number, chunk) for number in range(args.streams)]
    streams = Streams(recognizer)
    opened = [streams.open(number) for number in range(args.streams)]
    clock_s = work_s = 0.0
    latencies_s: dict[str, list[float]] = {"partial": [], "final": []}
    words = 0
    most_chunks = 0

    def run(ticks: int, start: int) -> None:
        """Hears so many chunks of every stream; `start` were heard before."""
        nonlocal clock_s, work_s, words, most_chunks
        done = start
        while done < start + ticks:
            clock_s = max(clock_s, (done + 1) * args.chunk)
            count = min(int(clock_s / args.chunk + 1e-6) - done, start + ticks - done)
            most_chunks = max(most_chunks, count)
            sounds = {
                number: np.concatenate(list(itertools.islice(source, count))) for number, source in enumerate(sources)
            }
            done += count
            started_s = time.perf_counter()
            found = streams.feed(sounds)
            elapsed_s = time.perf_counter() - started_s
            clock_s += elapsed_s
            work_s += elapsed_s
            for event in itertools.chain.from_iterable(found.values()):
                is_final = isinstance(event, Final)
                latencies_s["final" if is_final else "partial"].append(clock_s - event.time_s)
                words += len(event.words) if is_final else 0
            if sys.stderr.isatty():
                print(f"\r{done * args.chunk / 60:.1f} min", end="", file=sys.stderr)

    warm = round(10 / args.chunk)
    run(warm, 0)
    work_s, words, most_chunks = 0.0, 0, 0
    for values in latencies_s.values():
        values.clear()
    encoded_s = sum(stream.encoded_s for stream in opened)
    network_s = sum(stream.timings.network_s for stream in opened)
    memory_mb = [held_mb()]
    quarter = max(1, round(60 * args.minutes / args.chunk / 4))
    for number in range(4):
        run(quarter, warm + number * quarter)
        memory_mb.append(held_mb())
    sound_s = 4 * quarter * args.chunk
    return {
        "engine": recognizer.engine.name,
        "streams": args.streams,
        "minutes": sound_s / 60,
        "chunk_s": args.chunk,
        "times_real_time": sound_s / work_s,
        "partials": len(latencies_s["partial"]),
        "finals": len(latencies_s["final"]),
        "words": words,
        **{
            f"{kind}_p{percent}_s": percentile(values, percent)
            for kind, values in latencies_s.items()
            for percent in (50, 95)
        },
        "most_chunks_at_once": most_chunks,
        "encoded_s_per_s": (sum(stream.encoded_s for stream in opened) - encoded_s) / sound_s / args.streams,
        "network_share": (sum(stream.timings.network_s for stream in opened) - network_s) / work_s,
        "rss_mb_start": memory_mb[0],
        "rss_mb_quarter": memory_mb[1],
        "rss_mb_end": memory_mb[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that kvarts export wrote, or a checkpoint")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60, help="of sound of every stream")
    parser.add_argument("--chunk", type=float, default=0.1, help="seconds")
    parser.add_argument("--engine")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if args.streams < 1 or args.minutes <= 0 or not 0.001 <= args.chunk <= 10:
        parser.error("give at least one stream, minutes above 0 and chunks of 0.001 to 10 s")
    figures = measure(args)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for name, value in figures.items():
        print(f"{name:20} {value:.3f}" if isinstance(value, float) else f"{name:20} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
