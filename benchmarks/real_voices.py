"""Real people who are in Debian, as manifests: what a recogniser makes of voices that it has not heard.

    apt-get install --no-install-recommends asterisk-core-sounds-ru asterisk-core-sounds-ru-g722 tuxpaint-stamps-default
    python benchmarks/real_voices.py -o real

A woman's announcements for telephone exchanges (Asterisk; G.722, 16 kHz, needs PyAV): `mailbox` are those of the voice
mailbox, `exchange` all others, so that one can be adapted to and the other measured. `stamps`: what the stamps of Tux
Paint are called, read out by a volunteer; `stamps_val` has one name in eight. Digits are put in words; what cannot be,
or is not Russian, is left out, as are English letters and what is no speech. --root reads packages that are unpacked
there and not installed.
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import soundfile

from kvarts.audio import read_audio
from kvarts.errors import KvartsError
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import write_manifest
from kvarts.spoken import spoken
from kvarts.text import normalise

PROMPTS = Path("usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU")
PROMPT_TEXTS = Path("usr/share/doc/asterisk-core-sounds-ru/core-sounds-ru.txt.gz")
STAMPS = Path("usr/share/tuxpaint/stamps")
PACKAGES = "asterisk-core-sounds-ru asterisk-core-sounds-ru-g722 tuxpaint-stamps-default"
VAL_SHARE = 8  # one text in so many is for validation; a text is never in both
MAILBOX = "vm-"  # how the names of the voice mailbox's prompts begin
ENGLISH_LETTER = re.compile(r"letters/([a-z]|zed)")
NOT_READ = re.compile(r"\[[^]]*\]|<[^>]*>|\([^)]*\)")  # [@], <beep>, (1 second of silence)
MISTYPED = {"Что бы": "Чтобы", "что бы": "чтобы", "чтобы бы": "чтобы", "взёздочка": "звёздочка", "октрября": "октября"}

Found = Iterator[tuple[str, Path, str]]


def prompts(root: Path) -> Found:
    """Name, sound and text of each announcement."""
    with gzip.open(root / PROMPT_TEXTS, "rt", encoding="utf-8") as file:
        for line in file:
            name, _, text = line.strip().partition(":")
            path = root / PROMPTS / f"{name}.g722"
            if path.is_file() and not ENGLISH_LETTER.fullmatch(name):
                yield name, path, text.removeprefix(f" {name}:")


def stamps(root: Path) -> Found:
    """Name, sound and text of each stamp."""
    for path in sorted((root / STAMPS).rglob("*_desc_ru.ogg")):
        name = path.name.removesuffix("_desc_ru.ogg")
        lines = (path.parent / f"{name}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            if line.startswith("ru.utf8="):
                yield str(path.parent.relative_to(root / STAMPS) / name), path, line.removeprefix("ru.utf8=")


def text_of(written: str) -> str:
    """What is spoken, normalised; empty where that is not certain or nothing."""
    written = NOT_READ.sub(" ", written)
    for wrong, right in MISTYPED.items():
        written = written.replace(wrong, right)
    read = spoken(written)
    return "" if read.notes else normalise(read.text)


def readable(found: Found) -> Found:
    """Those whose text is certain, with it."""
    for name, path, written in found:
        text = text_of(written)
        if text:
            yield name, path, text


def put(found: Found, speaker: str, folder: Path) -> None:
    """Sound as flac of 16 kHz, and a manifest."""
    rows = []
    for name, path, text in found:
        samples = read_audio(path)
        audio = folder / "audio" / f"{name}.flac"
        audio.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio, samples, SAMPLE_RATE)
        about = {"id": f"{speaker}-{name.replace('/', '-')}", "speaker": speaker}
        duration_s = round(len(samples) / SAMPLE_RATE, 4)
        rows.append({"audio_filepath": f"audio/{name}.flac", "text": text, "duration": duration_s, **about})
    write_manifest(folder / "manifest.jsonl", rows)
    minutes = sum(float(str(row["duration"])) for row in rows) / 60
    print(f"{folder / 'manifest.jsonl'}: {len(rows)} utterances, {minutes:.1f} min")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    for needed in (PROMPTS, PROMPT_TEXTS, STAMPS):
        if not (args.root / needed).exists():
            parser.error(f"there is no {args.root / needed} (Debian: apt-get install {PACKAGES})")
    announced, named = list(readable(prompts(args.root))), list(readable(stamps(args.root)))
    held_out = set(sorted({text for *_, text in named})[::VAL_SHARE])
    try:
        put((one for one in announced if one[0].startswith(MAILBOX)), "ivrvoice", args.output / "mailbox")
        put((one for one in announced if not one[0].startswith(MAILBOX)), "ivrvoice", args.output / "exchange")
        put((one for one in named if one[2] not in held_out), "stamps", args.output / "stamps")
        put((one for one in named if one[2] in held_out), "stamps", args.output / "stamps_val")
    except KvartsError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
