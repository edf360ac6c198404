"""``kvarts transcribe``: the text of audio files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kvarts.errors import AudioError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Prints the text of one audio file, or a line of path, tab and text for each of several, in the "
        "order given. Files that cannot be read are named on standard error and the others go on; the exit "
        "code is then 2."
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="audio of any rate and channel count")
    parser.add_argument("--checkpoint", metavar="C", type=Path, required=True, help=".ckpt or .safetensors")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …; auto: the GPU if there is one")


def run(args: argparse.Namespace) -> int:
    """Transcribes and prints; gives 2 if a file could not be read, else 0."""
    from kvarts.progress import run_ahead
    from kvarts.recogniser import Recognizer, file_features
    from kvarts.torch_engine import Torch

    def read(path: Path) -> tuple[Path, NDArray[np.float32] | AudioError]:
        try:
            return path, file_features(path)
        except AudioError as error:
            return path, error

    recognizer = Recognizer(Torch.load(args.checkpoint, args.device))
    code = 0
    for path, features in run_ahead(read, args.files, workers=1, ahead=2):
        if isinstance(features, AudioError):
            print(f"kvarts: error: {features}", file=sys.stderr)
            code = 2
            continue
        [text] = recognizer.texts([features])
        print(text if len(args.files) == 1 else f"{path}\t{text}", flush=True)
    return code
