"""How soon a training on a large manifest has its first batch, and in how much memory: first start and second.

    python benchmarks/start.py [--manifest M] [--lines 1000000] [--json FILE]

The lines are those of the manifest, over and over, each with an id of its own. Every start is a process of its own that
imports PyTorch, reads the data as `python main.py` does with data.check_audio=false (which is to open a million files),
and takes a batch of 16. «of it for the manifest» is what lies between the imports and the batch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "sample"


def start(manifest: Path) -> None:
    """In a process of its own: prints what it took."""
    begin_s = time.perf_counter()
    from kvarts.datamodule import SpeechData

    imported_s = time.perf_counter() - begin_s
    data = SpeechData(SAMPLE, 4, seed=0, train_manifest=str(manifest), check_audio=False, cache_mb=0)
    data.prepare()
    next(iter(data.train_dataloader()))
    seconds = time.perf_counter() - begin_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"first_batch_s": seconds, "of_it_manifest_s": seconds - imported_s, "peak_rss_mb": peak_mb}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=SAMPLE / "train_opus" / "manifest.jsonl")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        start(args.manifest)
        return
    from kvarts.manifest import read_manifest

    rows = [{**u.fields, "audio_filepath": str(u.audio_path.resolve())} for u in read_manifest(args.manifest)]
    result: dict[str, object] = {"lines": args.lines}
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.jsonl"
        with manifest.open("w", encoding="utf-8") as file:
            for number, row in enumerate(islice(cycle(rows), args.lines)):
                file.write(json.dumps({**row, "id": str(number)}, ensure_ascii=False) + "\n")
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        for name in ("first", "second"):
            command = [sys.executable, __file__, "--manifest", str(manifest), "--start"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            figures = result[name] = json.loads(done.stdout.splitlines()[-1])
            first_s, of_it_s, peak_mb = figures.values()
            print(f"{name} start: first batch after {first_s:.1f} s, {of_it_s:.1f} s of it for the manifest", end="")
            print(f", {peak_mb:.0f} MB")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
