"""Lets a synthetic voice say commands of a grammar, and lines of a text that are none: a manifest to try a grammar on.

    python benchmarks/speak.py --grammar benchmarks/commands.grammar [--commands 200]
                               [--text FILE [--lines 200]] [--voice festival|espeak-ng] -o FOLDER

festival (Debian: apt install festival, and festvox-ru for the voice) speaks with the recordings of festvox-ru,
espeak-ng by formants. FOLDER gets wav files and commands.jsonl; the same seed chooses the same phrases and lines.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile

from kvarts.alphabet import foreign_characters
from kvarts.grammar import Grammar
from kvarts.manifest import write_manifest
from kvarts.text import normalise

PROGRAMS = {"festival": "text2wave", "espeak-ng": "espeak-ng"}
FESTIVAL_VOICE = "(voice_msu_ru_nsh_clunits)"


def speak(voice: str, text: str, path: Path) -> None:
    """Writes what a voice says."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write(f"{text}\n")
        file.flush()
        command = {
            "festival": ["text2wave", "-eval", FESTIVAL_VOICE, file.name, "-o", str(path)],
            "espeak-ng": ["espeak-ng", "-v", "ru", "-w", str(path), "-f", file.name],
        }[voice]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def texts_of(args: argparse.Namespace) -> list[str]:
    """Distinct phrases of the grammar, then lines that are none."""
    grammar = Grammar.load(args.grammar)
    draw = random.Random(args.seed)
    phrases = list(grammar.phrases()) if grammar.num_phrases <= 100_000 else grammar.sample(10 * args.commands)
    texts = draw.sample(sorted(set(phrases)), min(args.commands, len(set(phrases))))
    if args.text is not None:
        lines = {normalise(line) for line in args.text.read_text(encoding="utf-8").splitlines()}
        others = sorted(line for line in lines if line and not foreign_characters(line) and not grammar.parse(line))
        texts += draw.sample(others, min(args.lines, len(others)))
    return texts


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grammar", type=Path, required=True)
    parser.add_argument("--commands", type=int, default=200)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--voice", choices=PROGRAMS, default="festival")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    if shutil.which(PROGRAMS[args.voice]) is None:
        parser.error(f"{args.voice} is not installed (Debian: apt install {args.voice})")
    args.output.mkdir(parents=True, exist_ok=True)
    texts = texts_of(args)
    paths = [args.output / f"{number:04}.wav" for number in range(len(texts))]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda text, path: speak(args.voice, text, path), texts, paths))
    rows = (
        {"audio_filepath": path.name, "text": text, "duration": soundfile.info(path).duration}
        for text, path in zip(texts, paths, strict=True)
    )
    write_manifest(args.output / "commands.jsonl", rows)
    print(f"{len(texts)} utterances: {args.output / 'commands.jsonl'}")


if __name__ == "__main__":
    main()
