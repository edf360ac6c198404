"""All tests in two processes at a time, one thread each: `make test`. Arguments go to both pytests.

Not by pytest-xdist: a test that engines crash would leave it waiting for ever, and it mixes what must not be mixed.
Trainings fork their workers, and after OpenVINO and ONNX Runtime had run in the same process, that ended in a
segmentation fault in about one run of three; no command does both. So engines have a process to themselves, and with
them goes what trains nothing, so that both halves take about as long. `pytest` alone runs all in one, engines last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
ENGINES = ("test_export", "test_recogniser", "test_transcribe")
WITH_ENGINES = (
    *("test_benchmarks", "test_data_check", "test_data_import", "test_docs", "test_package", "test_report"),
    *("test_room", "test_spoken"),
)
_NOTHING_CHOSEN = 5  # pytest's exit code


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest"]
    files = [str(TESTS / f"{name}.py") for name in (*WITH_ENGINES, *ENGINES)]
    # With two threads each, of which one waits for the other, two processes are no faster than one.
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with tempfile.TemporaryFile("w+") as output:
        half = subprocess.Popen([*pytest, *files, *arguments], env=environment, stdout=output, stderr=output)
        ignored = [f"--ignore={file}" for file in files]
        try:
            other = subprocess.run([*pytest, str(TESTS), *ignored, *arguments], env=environment).returncode
            codes = {other, half.wait()}
        finally:
            half.kill()
            output.seek(0)
            print(output.read(), flush=True)
    return max(codes - {_NOTHING_CHOSEN}) if codes != {_NOTHING_CHOSEN} else _NOTHING_CHOSEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
