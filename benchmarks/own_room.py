"""A model adapted to rooms as `kvarts room measure` finds them, against one adapted to the rooms as they are.

    python benchmarks/own_room.py --weights model.ckpt [--data festvox] [--rooms 3] [--claps 4] [--noise-db 35]
                                  [--kind hand] [-o FOLDER] [OVERRIDE ...]

Simulates rooms of its own (those of benchmarks/room.py) with a noise in each, and records in each some claps and a
minute of silence. FOLDER/estimate is what `kvarts room measure` makes of the recordings, FOLDER/truth holds the true
responses and the very noise of the silence. `+experiment=finetune_farfield` trains on either, from the same weights in
the same order; OVERRIDEs go to both. The test set's close-talk speech is then put into these rooms, with noise that was
not recorded, and `kvarts evaluate` and `kvarts compare` tell what the three models make of it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from kvarts import cli
from kvarts.manifest import write_manifest
from kvarts.rooms import NOISES, ROOMS, make_training_noise, write_sound
from room import KINDS, RATE, Samples, loudest, make_clap, make_room

SILENCE_S = 60
KINDS_OF_NOISE = ("fan", "babble", "pink")
FIRST_ROOM = 1000  # none of those that measuring was developed on
SNR_DB = (5.0, 20.0)  # of the test set


def record(response: Samples, noise: Samples, args: argparse.Namespace, generator: np.random.Generator) -> Samples:
    """Claps 2.5 s apart, then silence; the noise lies --noise-db below the loudest 10 ms of the claps."""
    claps = np.zeros(len(noise))
    for number in range(args.claps):
        heard = np.convolve(make_clap(args.kind, generator) * generator.uniform(0.7, 1.3), response)
        start = RATE + round(2.5 * RATE * number)
        claps[start : start + len(heard)] += heard
    recording = claps + noise / noise.std() * np.sqrt(loudest(claps)) * 10 ** (-args.noise_db / 20)
    return np.asarray(0.7 * recording / np.abs(recording).max())


def make(folder: Path, args: argparse.Namespace) -> None:
    """The recordings, both room folders and the test set."""
    truth, rooms, noises = folder / "truth", [], []
    unheard: list[Samples] = []
    for number in range(args.rooms):
        room = make_room(FIRST_ROOM + number)
        claps_s = 1 + 2.5 * args.claps
        kind = KINDS_OF_NOISE[number % len(KINDS_OF_NOISE)]
        noise = make_training_noise(kind, FIRST_ROOM, number, claps_s + 2 * SILENCE_S).astype(np.float64)
        end = round((claps_s + SILENCE_S) * RATE)
        recording = record(room.response, noise[:end], args, np.random.default_rng([7, number]))
        write_sound(folder / f"own_{number}.wav", recording.astype(np.float32), "PCM_24")
        name = f"{number:04d}.flac"
        scaled = 0.9 * room.response / np.abs(room.response).max()
        write_sound(truth / "rir" / name, scaled.astype(np.float32), "PCM_24")
        write_sound(truth / "noise" / name, noise[round(claps_s * RATE) : end].astype(np.float32), "PCM_24")
        where = {"direct_sample": room.direct_sample, "room": f"own_{number}"}
        rooms.append({"audio_filepath": f"rir/{name}", **where, "rt60_s": room.rt60_s, "drr_db": room.drr_db})
        noises.append({"audio_filepath": f"noise/{name}", "duration": SILENCE_S, "kind": kind})
        unheard.append(noise[end:].astype(np.float32))
        print(f"own_{number}: RT60 {room.rt60_s:.2f} s, DRR {room.drr_db:.1f} dB, {kind}")
    write_manifest(truth / ROOMS, rooms)
    write_manifest(truth / NOISES, noises)
    recordings = [str(folder / f"own_{number}.wav") for number in range(args.rooms)]
    command("room", "measure", *recordings, "-o", str(folder / "estimate"))
    # The true responses again, under other names: these rooms are trained in, knowingly.
    tested = [
        {**row, "audio_filepath": f"../truth/{row['audio_filepath']}", "room": f"in {row['room']}"} for row in rooms
    ]
    write_manifest(folder / "tested" / ROOMS, tested)
    for number, noise in enumerate(unheard):
        write_sound(folder / "tested" / "noise" / f"{number:04d}.flac", noise, "PCM_24")
    close = args.data / "test_opus" / "crowd" / "manifest.jsonl"
    noisy = ["--noises", str(folder / "tested" / "noise"), "--snr-db", *map(str, SNR_DB)]
    command("augment", "manifest", str(close), "--rooms", str(folder / "tested"), *noisy, "-o", str(folder / "test"))


def command(*arguments: str) -> None:
    print("$ kvarts", *arguments, flush=True)
    if cli.main(list(arguments)) != 0:
        sys.exit("the command failed; its message stands above")


def train(folder: Path, which: str, args: argparse.Namespace) -> Path:
    """Trains on the rooms of one folder; gives the checkpoint."""
    main = Path(__file__).resolve().parents[1] / "main.py"
    settings = [f"augment.rooms={folder.resolve() / which}", f"hydra.run.dir={(folder / f'run_{which}').resolve()}"]
    settings += [f"data_dir={args.data.resolve()}", f"model.init_weights={args.weights.resolve()}"]
    settings += ["evaluate.enabled=false", *args.overrides]
    run = [sys.executable, str(main), "+experiment=finetune_farfield", *settings]
    if subprocess.run(run).returncode != 0:
        sys.exit("the run failed; its message stands above")
    return folder / f"run_{which}" / "checkpoints" / "last.ckpt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="settings of both trainings")
    parser.add_argument("--weights", type=Path, required=True, help="the checkpoint to start from")
    parser.add_argument("--data", type=Path, default=Path("festvox"), help="made by kvarts data sample --whole")
    parser.add_argument("--rooms", type=int, default=3)
    parser.add_argument("--claps", type=int, default=4)
    parser.add_argument("--noise-db", type=float, default=35.0)
    parser.add_argument("--kind", choices=KINDS, default="hand")
    parser.add_argument("-o", "--output", type=Path, default=Path("own_room"), metavar="FOLDER")
    args = parser.parse_args()
    folder: Path = args.output
    make(folder, args)
    models = {"before": args.weights, **{which: train(folder, which, args) for which in ("truth", "estimate")}}
    for name, path in models.items():
        model, output = ["--model", str(path)], ["--output", str(folder / name)]
        command("evaluate", *model, "--manifest", str(folder / "test" / "manifest.jsonl"), *output)
    for name in ("before", "truth"):
        command("compare", str(folder / name), str(folder / "estimate"), "--changes", "0")


if __name__ == "__main__":
    main()
