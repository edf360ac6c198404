"""Lets the narrator of festvox-ru read other texts, for training: his units, joined by festival, none held out.

    apt install festival festvox-ru
    python benchmarks/narrator.py --text sentences.txt 16000 --text commands.txt 3500 -o /speech/narrator

The voice of the Debian package joins pieces of all 620 recordings. Those from ru_0651 on are to validate and test, so
they are taken out first: every one of their pieces out of the selection trees, their files out of the folder, so that
festival would stop if it wanted one. (Which questions the trees ask was still found on all of them, by the voice's
makers.) FOLDER gets voice/, audio/ and manifest.jsonl. Each --text is a file of sentences, one a line, and how many are
drawn; one to three of them make an utterance, for the narrator's are long. The seed decides what is said.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import soundfile

from kvarts.alphabet import foreign_characters
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import write_manifest
from kvarts.progress import progress_bar
from kvarts.sample import LAST_TRAIN
from kvarts.text import normalise

VOICE = Path("/usr/share/festival/voices/russian/msu_ru_nsh_clunits")
SPEAKER = "nsh-voice"  # not the narrator himself
SENTENCES = (1, 1, 1, 2, 3)  # in an utterance; drawn
BATCH = 1000  # utterances for each festival, which takes 10 s to start
LETTERS_PER_S = (6.0, 26.0)  # others were joined badly: the narrator speaks 9 to 20
DURATION_S = (0.4, 20.0)

Tree: TypeAlias = "str | list[Tree]"


def parsed(text: str) -> list[Tree]:
    """S-expressions as lists; comments are left out."""
    stack: list[list[Tree]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    [found] = stack
    return found


def written(tree: Tree) -> str:
    """The S-expression of lists."""
    return tree if isinstance(tree, str) else f"({' '.join(map(written, tree))})"


def without(tree: Tree, phone: str, held_out: set[str]) -> Tree | None:
    """A selection tree without the units held out; None where nothing is left.

    A leaf is ((units, score)), a unit (number, distance), its name phone_number; a node (question, yes, no).
    """
    assert not isinstance(tree, str)
    if len(tree) == 1:
        [leaf] = tree
        units, score = leaf
        kept: list[Tree] = [unit for unit in units if f"{phone}_{unit[0]}" not in held_out]
        return [[kept, score]] if kept else None
    question, *branches = tree
    yes, no = (without(branch, phone, held_out) for branch in branches)
    if yes is None or no is None:
        return no if yes is None else yes
    return [question, yes, no]


def is_held_out(recording: str) -> bool:
    """Whether a recording, ru_0123, is not for training."""
    return int(recording.removeprefix("ru_")) > LAST_TRAIN


def make_voice(source: Path, target: Path) -> None:
    """Copies the voice without what is held out."""

    def held_files(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if re.fullmatch(r"ru_\d{4}\.\w+", name) and is_held_out(name[:7])]

    shutil.copytree(source, target, ignore=held_files)
    catalogue = (target / "festival/clunits/msu_ru_nsh.catalogue").read_text(encoding="utf-8").splitlines()
    units = [line.split() for line in catalogue if len(line.split()) == 5]
    held_out = {name for name, recording, *_ in units if is_held_out(recording)}
    path = target / "festival/trees/msu_ru_nsh.tree"
    [[command, variable, quote, trees]] = parsed(path.read_text(encoding="utf-8"))
    kept = [[name, without(tree, name.strip('"'), held_out)] for name, tree in trees]
    assert all(tree is not None for _, tree in kept), "a sound of which nothing is left"
    path.write_text(f"({command} {variable} {quote}{written(kept)})\n", encoding="utf-8")


def utterances_of(texts: Sequence[tuple[Path, int]], draw: random.Random) -> list[list[str]]:
    """Sentences drawn from the files, shuffled, in utterances."""
    sentences: list[str] = []
    for path, number in texts:
        lines = (normalise(line) for line in path.read_text(encoding="utf-8").splitlines())
        known = sorted({line for line in lines if line and not foreign_characters(line)})
        sentences += draw.sample(known, min(number, len(known)))
    draw.shuffle(sentences)
    utterances, start = [], 0
    while start < len(sentences):
        length = draw.choice(SENTENCES)
        utterances.append(sentences[start : start + length])
        start += length
    return utterances


def spoken(voice: Path, utterances: Sequence[Sequence[str]], folder: Path) -> Iterator[tuple[str, Path]]:
    """One festival says a batch: text and wav file of each utterance that it could say."""
    # Festival loads its default voice before any script, and a voice of one name only once. Where no other is there,
    # the default is the narrator with all of his recordings: so this one is made the default, as a user would do it.
    location = f"(voice-location 'msu_ru_nsh_clunits \"{voice}/\" \"without what is held out\")"
    settings = f"{location}\n(set! voice_default 'voice_msu_ru_nsh_clunits)\n"
    (folder / ".festivalrc").write_text(settings, encoding="utf-8")
    commands = [f'(if (not (string-equal msu_ru_nsh::dir "{voice}/")) (error "another voice:" msu_ru_nsh::dir))']
    for number, sentences in enumerate(utterances):
        text = ", ".join(sentences)  # at a comma he makes a pause
        wave = f"(utt.synth (eval (list 'Utterance 'Text \"{text}\")))"
        commands.append(f"(unwind-protect (utt.save.wave {wave} \"{folder / f'{number}.wav'}\" 'riff) nil)")
    script = folder / "batch.scm"
    script.write_text("\n".join(commands), encoding="utf-8")
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(["festival", "-b", str(script)], capture_output=True, timeout=3600, env=environment)
    if done.returncode:
        raise SystemExit(f"festival: {done.stderr.decode(errors='replace')[-2000:]}")
    for number, sentences in enumerate(utterances):
        path = folder / f"{number}.wav"
        if path.exists():
            yield " ".join(sentences), path


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs=2, action="append", metavar=("FILE", "NUMBER"), required=True)
    parser.add_argument("--voice", type=Path, default=VOICE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    if shutil.which("festival") is None or not args.voice.is_dir():
        parser.error(f"there is no festival or no {args.voice} (Debian: apt install festival festvox-ru)")
    voice = args.output.resolve() / "voice"
    make_voice(args.voice, voice)
    utterances = utterances_of([(Path(path), int(number)) for path, number in args.text], random.Random(args.seed))
    batches = [utterances[start : start + BATCH] for start in range(0, len(utterances), BATCH)]

    def say(number: int) -> list[dict[str, object]]:
        rows = []
        audio = args.output / "audio" / f"{number:03}"
        audio.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as folder:
            for text, path in spoken(voice, batches[number], Path(folder)):
                samples, rate = soundfile.read(path, dtype="int16")
                duration_s = len(samples) / rate
                speed = len(text) / duration_s if duration_s else 0.0
                is_fit = DURATION_S[0] <= duration_s <= DURATION_S[1] and LETTERS_PER_S[0] <= speed <= LETTERS_PER_S[1]
                if rate != SAMPLE_RATE or not is_fit:
                    continue
                name = f"audio/{number:03}/{path.stem}.flac"
                soundfile.write(args.output / name, samples, rate)
                about = {"id": f"narrator-{number:03}-{path.stem}", "speaker": SPEAKER}
                rows.append({"audio_filepath": name, "text": text, "duration": round(duration_s, 4), **about})
        return rows

    rows: list[dict[str, object]] = []
    with progress_bar("speaking", len(batches)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(say, range(len(batches))):
            rows += found
            advance(1)
    write_manifest(args.output / "manifest.jsonl", rows)
    hours = sum(float(str(row["duration"])) for row in rows) / 3600
    print(f"{len(rows)} of {len(utterances)} utterances, {hours:.2f} h: {args.output / 'manifest.jsonl'}")


if __name__ == "__main__":
    main()
