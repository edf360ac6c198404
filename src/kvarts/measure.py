"""How fast an exported folder is, and how much memory it takes: ``python -m kvarts.measure FOLDER ENGINE PRECISION``.

A process of its own, so that its memory is the recogniser's alone. The sound is noise: the time depends on its length
only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kvarts.errors import ExportError
from kvarts.features import N_MELS
from kvarts.frames import mel_frames, samples_of_duration
from kvarts.recogniser import Recognizer

COMMAND_S = 3.0
ENCODED_S = 10.0
BATCH = 8
_COMMANDS = 100
_ROUNDS = 5


@dataclass(frozen=True)
class Speed:
    """What one engine takes on this machine.

    Attributes:
        latency_ms: median and 95th percentile of the time from a waveform of 3 s to its text.
        rss_mb: peak memory of the process that did that, in megabytes; None where the system does not tell.
        rtfx: seconds of sound that pass the network in a second: 10 s alone, and eight times 10 s together.
    """

    latency_ms: tuple[float, float]
    rss_mb: float | None
    rtfx: tuple[float, float]


def measured(folder: Path, engine: str, precision: str) -> Speed:
    """Measures in a process of its own.

    Raises:
        ExportError: that process failed.
    """
    command = [sys.executable, "-m", "kvarts.measure", str(folder), engine, precision]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ExportError(f"{engine} {precision} could not be measured: {ended.stderr.strip() or ended.returncode}")
    found = json.loads(ended.stdout)
    return Speed(tuple(found["latency_ms"]), found["rss_mb"], tuple(found["rtfx"]))


def _speed(recognizer: Recognizer) -> Speed:
    generator = np.random.default_rng(0)
    command = (0.1 * generator.standard_normal(samples_of_duration(COMMAND_S))).astype(np.float32)
    recognizer.transcribe(command)  # compiles what it needs
    latencies_ms = [1000 * _seconds(lambda: recognizer.transcribe(command)) for _ in range(_COMMANDS)]
    rss_mb = _peak_rss_mb()
    frames = mel_frames(samples_of_duration(ENCODED_S))
    features = generator.normal(-8, 3, (BATCH, frames, N_MELS)).astype(np.float32)

    def rtfx(count: int) -> float:
        batch, lengths = features[:count], np.full(count, frames)
        recognizer.engine.log_probs(batch, lengths)
        repeats = BATCH // count
        seconds = [
            sum(_seconds(lambda: recognizer.engine.log_probs(batch, lengths)) for _ in range(repeats))
            for _ in range(_ROUNDS)
        ]
        return float(BATCH * ENCODED_S / np.median(seconds))

    median_ms, late_ms = np.percentile(latencies_ms, [50, 95])
    return Speed((float(median_ms), float(late_ms)), rss_mb, (rtfx(1), rtfx(BATCH)))


def _seconds(function: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    function()
    return time.perf_counter() - started_s


def _peak_rss_mb() -> float | None:
    # Not getrusage: its peak counts from before exec, where this was a part of the exporting process.
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    [peak] = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
    return int(peak.split()[1]) / 1024


if __name__ == "__main__":
    path, engine, precision = sys.argv[1:]
    print(json.dumps(asdict(_speed(Recognizer.load(path, engine=engine, precision=precision)))))
