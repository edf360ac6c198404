"""Says recorded speech in other voices, women's above all, for training: other pitch, throat, melody and tempo.

    pip install pyworld 'setuptools<81'
    python benchmarks/other_voices.py festvox/train_opus/manifest.jsonl --women 0.8 -o /speech/other_voices

The vocoder WORLD (Morise et al., 2016; `pyworld`) takes speech apart into the pitch, the throat's envelope and the
breath, each is changed, and speech is made of them again. `kvarts.warp` moves all frequencies, the harmonics of the
pitch too; here a man's voice becomes as high as a woman's while its formants move by a sixth, as between people. Every
utterance has a voice of its own, drawn by the seed. FOLDER gets audio/ and manifest.jsonl; a row says what was drawn.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvarts.audio import read_audio
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.progress import progress_bar
from kvarts.rooms import write_sound

FRAME_MS = 5.0
WOMEN_HZ, MEN_HZ = (165.0, 260.0), (80.0, 160.0)  # median pitch
WOMEN_FORMANTS, MEN_FORMANTS = (1.06, 1.26), (0.9, 1.08)  # times those of the source, a man
MELODY = (0.7, 1.4)  # times the pitch's distance from its median, in octaves
TEMPO = (0.85, 1.2)
BREATH = (0.6, 1.4)  # exponent of the aperiodicity, which is from 0 to 1: a smaller one is more breath
LEAST_VOICED = 20  # frames; the median pitch of fewer says nothing

Rows = NDArray[np.float64]  # (frames, bins)


@dataclass(frozen=True)
class Voice:
    """Who speaks: median pitch in Hz, what formants, melody and tempo are multiplied by, and the exponent of breath."""

    is_woman: bool
    pitch_hz: float
    formants: float
    melody: float
    tempo: float
    breath: float


def drawn_voice(draw: random.Random, women: float) -> Voice:
    """A voice: a woman's with that probability."""
    is_woman = draw.random() < women
    low_hz, high_hz = WOMEN_HZ if is_woman else MEN_HZ
    return Voice(
        is_woman,
        pitch_hz=round(low_hz * (high_hz / low_hz) ** draw.random(), 1),
        formants=round(draw.uniform(*(WOMEN_FORMANTS if is_woman else MEN_FORMANTS)), 3),
        melody=round(draw.uniform(*MELODY), 3),
        tempo=round(draw.uniform(*TEMPO), 3),
        breath=round(draw.uniform(*BREATH), 3),
    )


def said_by(waveform: NDArray[np.float32], voice: Voice) -> NDArray[np.float32]:
    """The waveform (samples,) at 16 kHz in that voice: samples / tempo of them, as loud; silence stays silence."""
    import pyworld  # no dependency of Kvarts, and all else here can be tested without

    samples = waveform.astype(np.float64)
    pitch_hz, times_s = pyworld.dio(samples, SAMPLE_RATE, frame_period=FRAME_MS)
    pitch_hz = pyworld.stonemask(samples, pitch_hz, times_s, SAMPLE_RATE)
    envelope = moved(pyworld.cheaptrick(samples, pitch_hz, times_s, SAMPLE_RATE), voice.formants)
    breath = moved(pyworld.d4c(samples, pitch_hz, times_s, SAMPLE_RATE), voice.formants) ** voice.breath
    made = pyworld.synthesize(
        of_pitch(pitch_hz, voice), envelope, np.clip(breath, 1e-6, 1.0), SAMPLE_RATE, FRAME_MS / voice.tempo
    )
    loudness, made_loudness = np.sqrt(np.mean(samples**2)), np.sqrt(np.mean(made**2))
    if made_loudness > 0:
        made *= min(loudness / made_loudness, 1 / np.abs(made).max())
    return made.astype(np.float32)


def of_pitch(pitch_hz: NDArray[np.float64], voice: Voice) -> NDArray[np.float64]:
    """Pitch (frames,) in Hz, 0 where there is none, with the voice's median and melody."""
    voiced = pitch_hz > 0
    if voiced.sum() < LEAST_VOICED:
        return pitch_hz
    octaves = np.log2(pitch_hz[voiced] / np.median(pitch_hz[voiced]))
    changed = pitch_hz.copy()
    changed[voiced] = np.clip(voice.pitch_hz * 2 ** (octaves * voice.melody), 50, 500)
    return changed


def moved(rows: Rows, factor: float) -> Rows:
    """Rows (frames, bins) with all frequencies times `factor`; above the last bin of the source it is repeated."""
    position = np.minimum(np.arange(rows.shape[1]) / factor, rows.shape[1] - 1)
    below = np.minimum(position.astype(np.int64), rows.shape[1] - 2)
    weight = position - below
    # WORLD wants rows without gaps in memory.
    return np.ascontiguousarray(rows[:, below] * (1 - weight) + rows[:, below + 1] * weight)


def made(job: tuple[int, Utterance, Voice], folder: Path) -> dict[str, Any]:
    """Writes one utterance; its row of the manifest."""
    number, utterance, voice = job
    samples = said_by(read_audio(utterance.audio_path), voice)
    path = Path("audio") / f"{number // 1000:03}" / f"{number}.flac"
    write_sound(folder / path, samples, "PCM_16")
    return {
        "id": f"other-{number}",
        "audio_filepath": str(path),
        "text": utterance.text,
        "duration": round(len(samples) / SAMPLE_RATE, 4),
        "speaker": "woman" if voice.is_woman else "man",
        "pitch_hz": voice.pitch_hz,
        "formants": voice.formants,
    }


def jobs(manifests: Iterable[Path], hours: float | None, women: float, seed: int) -> list[tuple[int, Utterance, Voice]]:
    """Utterances and who says them; of so many hours where that is less than there is, drawn by the seed."""
    draw = random.Random(seed)
    utterances = [utterance for manifest in manifests for utterance in read_manifest(manifest)]
    if hours is not None:
        draw.shuffle(utterances)
        ends_s = np.cumsum([utterance.duration_s for utterance in utterances])
        utterances = utterances[: int(np.searchsorted(ends_s, 3600 * hours)) + 1]
    return [(number, utterance, drawn_voice(draw, women)) for number, utterance in enumerate(utterances)]


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", type=Path, metavar="MANIFEST", help="of men; named twice: 2 voices")
    parser.add_argument("--hours", type=float, help="of the source, drawn at random; all where it is not given")
    parser.add_argument("--women", type=float, default=0.8, help="share of women among the voices")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    todo = jobs(args.manifests, args.hours, args.women, args.seed)
    with Pool(args.processes) as pool, progress_bar("other voices", len(todo)) as advance:

        def rows() -> Iterator[dict[str, Any]]:
            for row in pool.imap(partial(made, folder=args.output), todo, chunksize=8):
                advance(1)
                yield row

        write_manifest(args.output / "manifest.jsonl", rows())


if __name__ == "__main__":
    main()
