"""``kvarts augment``: rooms and noises, what training makes of a recording, test sets in rooms, splices."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvarts.errors import AudioError, ConfigError, TrainingDataError, listing
from kvarts.files import atomic_text_writer, atomic_writer
from kvarts.frames import SAMPLE_RATE
from kvarts.recogniser_options import add_model_arguments, recogniser_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvarts.rooms import Response
    from kvarts.sound import Drawn, Effect

# What a manifest may say of the room and the noise before: of others than the utterance is put into.
_OF_A_ROOM: Final = frozenset(
    {"room", "room_dims_m", "rt60_s", "rt60_asked_s", "drr_db", "distance_m", "snr_db", "noise"}
)
_STYLE: Final = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; margin: 0.5em 0; } td { padding: 0.3em 0.8em; border-bottom: 1px solid #8884; }
td { vertical-align: top; } img { max-width: 100%; } code { overflow-wrap: anywhere; }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvarts augment rooms`, `preview`, `manifest` and `splice`."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="action", required=True)
    rooms = commands.add_parser("rooms", help="simulate rooms and noises to train with")
    rooms.description = (
        "Simulates room responses (pyroomacoustics) and generates noises. Training needs the folder alone: "
        "augment=farfield augment.rooms=DIR. None of the rooms is one that kvarts data sample tests in."
    )
    rooms.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    rooms.add_argument("--count", type=int, default=500, metavar="N", help="room responses, five a room (500)")
    rooms.add_argument("--noises", type=int, default=45, metavar="N", help="noises of 15 s (45)")
    rooms.add_argument("--seed", type=int, default=0, metavar="N", help="another seed makes other rooms (0)")
    rooms.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (as many as there are cores)"
    )
    preview = commands.add_parser("preview", help="write what training makes of recordings, to be listened to")
    preview.description = (
        "Writes variants of recordings as training draws them: wav files, their spectrograms, and what was drawn, as "
        "JSON and as a page to listen to (preview.html)."
    )
    preview.add_argument("audio", type=Path, nargs="+", help="recordings")
    preview.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    preview.add_argument("--variants", type=int, default=8, metavar="N", help="of each recording (8)")
    preview.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws others (0)")
    preview.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a setting of training, as main.py takes it; may be repeated (augment=farfield)",
    )
    manifest = commands.add_parser("manifest", help="put the utterances of a manifest into rooms: a test set")
    manifest.description = (
        "Writes each utterance of a manifest as a microphone in one of the rooms hears it, as long and as loud as it "
        "was, and a manifest that says of each which room it is and how far, how reverberant and how noisy. A run that "
        "trains in these rooms refuses it as a test set."
    )
    manifest.add_argument("manifest", type=Path, help="close speech")
    manifest.add_argument(
        "--rooms", type=Path, nargs="+", required=True, metavar="DIR", help="room folders, simulated or measured"
    )
    manifest.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    manifest.add_argument(
        "--snr-db", type=float, nargs=2, metavar=("LOW", "HIGH"), help="with noise of the folders so far below (none)"
    )
    manifest.add_argument(
        "--noises", type=Path, nargs="+", metavar="DIR", help="with --snr-db: noise of these folders in place of theirs"
    )
    manifest.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws others (0)")
    splice = commands.add_parser("splice", help="cut utterances between their words and join them in another order")
    splice.description = (
        "Writes new utterances of one to four words each of many, of one speaker after the other, and their manifest. "
        "Training on few sentences of a voice learns them by heart; in these nothing follows from what was said "
        "before. A model that knows the voice a little finds where the words are: the open weights, or one trained on "
        "it already. An hour of recordings takes 115 MB of memory."
    )
    splice.add_argument("manifest", type=Path, help="utterances to train on")
    splice.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    splice.add_argument("--times", type=int, default=8, metavar="N", help="how often each word is to be heard (8)")
    splice.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws others (0)")
    add_model_arguments(splice)


def run(args: argparse.Namespace) -> int:
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: must be a whole number from 0 on")
    actions = {"rooms": _rooms, "preview": _preview, "manifest": _manifest, "splice": _splice}
    return actions[args.action](args)


def _rooms(args: argparse.Namespace) -> int:
    from kvarts.rooms import make_room_folder, read_noises, read_responses

    importlib.import_module("pyroomacoustics")  # if it is not installed, say so before any work is done
    _check_positive(args, "count", "noises", "workers")
    _check_new(args.output)
    make_room_folder(args.output, args.count, args.noises, args.seed, args.workers)
    rooms = {response.room for response in read_responses(args.output)}
    noises = read_noises(args.output)
    print(f"{args.output}: {args.count} responses of {len(rooms)} rooms, {len(noises)} noises")
    return 0


def _check_new(folder: Path) -> None:
    if folder.exists():
        raise ConfigError(f"{folder} exists; give a new folder")


def _check_positive(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: must be a whole number from 1 on")


def _manifest(args: argparse.Namespace) -> int:
    """Raises AudioError for utterances that could not be read, once all others are written."""
    import numpy as np

    from kvarts.audio import read_audio
    from kvarts.manifest import read_manifest, write_manifest
    from kvarts.progress import progress_bar
    from kvarts.rooms import write_sound
    from kvarts.sound import Noise, Room, carried_out

    _check_new(args.output)
    if args.noises is not None and args.snr_db is None:
        raise ConfigError("--noises goes with --snr-db; say how loud they shall be")
    utterances = read_manifest(args.manifest)
    room = Room([str(folder) for folder in args.rooms])
    noise = None if args.snr_db is None else Noise([str(one) for one in args.noises or args.rooms], args.snr_db)
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []
    with progress_bar("utterances", len(utterances)) as advance:
        for number, utterance in enumerate(utterances):
            advance(1)
            draw = np.random.default_rng((args.seed, number))
            heard_in = room.draw(draw)
            response = room.response(heard_in)
            plan: list[tuple[Effect, Drawn]] = [(room, heard_in)]
            noisy: Drawn = {}
            if noise is not None:
                noisy = noise.draw(draw)
                plan.append((noise, noisy))
            try:
                heard = carried_out(plan, read_audio(utterance.audio_path))
            except AudioError as error:
                unreadable.append(f"{utterance.where}: {error}")
                continue
            audio = f"audio/{number + 1:06d}.flac"
            write_sound(args.output / audio, heard, "PCM_16")
            rows.append(
                {
                    **{name: value for name, value in utterance.fields.items() if name not in _OF_A_ROOM},
                    "audio_filepath": audio,
                    "duration": len(heard) / SAMPLE_RATE,
                    "id": utterance.utterance_id,
                    "simulated": True,
                    **_described(response),
                    **({"snr_db": noisy["snr_db"], "noise": noisy["kind"]} if noisy else {}),
                }
            )
    if rows:
        write_manifest(args.output / "manifest.jsonl", rows)
        print(f"{args.output / 'manifest.jsonl'}: {len(rows)} utterances in {len({row['room'] for row in rows})} rooms")
    if unreadable:
        raise AudioError(listing("utterances that could not be read, and are not in it", unreadable))
    return 0


def _described(response: Response) -> dict[str, Any]:
    """What a manifest says of a room; of one that does not ring, such as an echo, only its name and the distance."""
    import numpy as np

    from kvarts.room_response import decay_curve_db, drr_db, schroeder_rt60

    samples = response.samples.astype(np.float64)
    curve = decay_curve_db(samples[response.lead :])
    fitted = curve[(curve <= -5) & (curve >= -35)]
    rings = {}
    if len(fitted) > 1 and fitted[0] - fitted[-1] > 10:
        rt60_s = schroeder_rt60(samples[response.lead :])
        rings = {"rt60_s": round(rt60_s, 2), "drr_db": round(drr_db(samples, response.lead), 1)}
    distance = {} if response.distance_m is None else {"distance_m": response.distance_m}
    return {"room": response.room, **rings, **distance}


def _splice(args: argparse.Namespace) -> int:
    """Raises TrainingDataError for utterances that could not be cut, once all splices of the others are written."""
    import numpy as np

    from kvarts.manifest import read_manifest, write_manifest
    from kvarts.progress import progress_bar
    from kvarts.rooms import write_sound
    from kvarts.sound import from_pcm
    from kvarts.splice import Recording, aligned, row_of, splices

    _check_positive(args, "times")
    _check_new(args.output)
    utterances = read_manifest(args.manifest)
    recogniser = recogniser_of(args)
    of_speaker: dict[str | None, list[Recording]] = {}
    not_cut: list[str] = []
    with progress_bar("utterances cut", len(utterances)) as advance:
        for utterance, found in zip(utterances, aligned(recogniser, utterances), strict=True):
            advance(1)
            if isinstance(found, Recording):
                speaker = utterance.fields.get("speaker")
                of_speaker.setdefault(None if speaker is None else str(speaker), []).append(found)
            else:
                not_cut.append(found)
    rows: list[dict[str, Any]] = []
    with progress_bar("passes", len(of_speaker) * args.times) as advance:
        for number, (speaker, recordings) in enumerate(of_speaker.items()):
            for time in range(args.times):
                for splice in splices(recordings, np.random.default_rng((args.seed, number, time))):
                    audio = f"audio/{len(rows) + 1:06d}.flac"
                    write_sound(args.output / audio, from_pcm(splice.waveform), "PCM_16")
                    rows.append(row_of(splice, f"{args.output.name}-{len(rows) + 1}", audio, speaker))
                advance(1)
    if rows:
        write_manifest(args.output / "manifest.jsonl", rows)
        hours = sum(row["duration"] for row in rows) / 3600
        print(f"{args.output / 'manifest.jsonl'}: {len(rows)} utterances, {hours:.2f} h")
    if not_cut:
        raise TrainingDataError(listing("utterances that could not be cut, and are not in it", not_cut))
    return 0


# -------------------------------------------------------------------------------------------------------- a preview


def _preview(args: argparse.Namespace) -> int:
    import numpy as np

    from kvarts.audio import read_audio
    from kvarts.config import compose_config, instantiate
    from kvarts.features import log_mel
    from kvarts.rooms import write_sound
    from kvarts.sound import Sound, carried_out

    _check_positive(args, "variants")
    named = any(setting.startswith("augment=") for setting in args.settings)
    config = compose_config([*([] if named else ["augment=farfield"]), *args.settings])
    sound: Sound | None = instantiate(config.augment.sound)
    if sound is None:
        raise ConfigError("these settings leave the sound as it is; choose others with --set augment=farfield")
    augmentation = instantiate(config.augment.features)
    rows: list[dict[str, Any]] = []
    for number, path in enumerate(args.audio):
        waveform = read_audio(path)
        name = f"{number:03d}-{path.stem}"
        write_sound(args.output / f"{name}-0.wav", waveform, "PCM_16")
        rows.append({"audio": str(path), "variant": 0, "wav": f"{name}-0.wav", "effects": []})
        pictures = [("as recorded", log_mel(waveform))]
        for variant in range(1, args.variants + 1):
            # As the data set does it: seed, epoch, utterance.
            draw = np.random.default_rng((args.seed, variant - 1, number))
            plan = sound.plan(draw)
            try:
                heard = carried_out(plan, waveform)
            except AudioError as error:
                raise AudioError(f"{path}: {error}") from error
            features = log_mel(heard)
            wav = f"{name}-{variant}.wav"
            write_sound(args.output / wav, heard, "PCM_16")
            effects = [{"effect": type(effect).__name__, **drawn} for effect, drawn in plan]
            rows.append({"audio": str(path), "variant": variant, "wav": wav, "effects": effects})
            title = ", ".join(effect["effect"] for effect in effects) or "clean"
            pictures.append((f"{variant}: {title}", features if augmentation is None else augmentation(features, draw)))
        _draw(pictures, args.output / f"{name}.png")
        for row in rows[-args.variants - 1 :]:
            row["picture"] = f"{name}.png"
    with atomic_text_writer(args.output / "preview.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _write_page(rows, args.output / "preview.html")
    print(f"{args.output / 'preview.html'}: {len(args.audio)} recordings, {args.variants} variants of each")
    return 0


def _draw(pictures: Sequence[tuple[str, NDArray[np.float32]]], path: Path) -> None:
    """Log-mel features (frames, 64), one panel below the other, on the same scales of time and level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.4 * len(pictures) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(pictures), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (title, features) in zip(panels, pictures, strict=True):
        panel.imshow(
            features.T, origin="lower", aspect="auto", vmin=-20, vmax=5, extent=(0, len(features) / 100, 0, 64)
        )
        panel.set_title(title, fontsize=8, loc="left")
        panel.set_ylabel("mel band")
    panels[-1].set_xlabel("s")
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _write_page(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with atomic_text_writer(path) as file:
        file.write(
            f'<!doctype html>\n<meta charset="utf-8"><title>kvarts augment preview</title><style>{_STYLE}</style>\n'
        )
        for number, row in enumerate(rows):
            if row["variant"] == 0:
                file.write(f"<h2>{escape(row['audio'])}</h2>\n<table>\n")
            drawn = [json.dumps(effect, ensure_ascii=False) for effect in row["effects"]]
            what = "<br>".join(f"<code>{escape(effect)}</code>" for effect in drawn)
            what = what or ("as recorded" if row["variant"] == 0 else "clean")
            source = escape(row["wav"], quote=True)
            file.write(
                f'<tr><td>{row["variant"]}</td><td><audio controls preload="none" src="{source}"></audio></td>'
                f"<td>{what}</td></tr>\n"
            )
            if number + 1 == len(rows) or rows[number + 1]["variant"] == 0:
                picture = escape(row["picture"], quote=True)
                file.write(f'</table>\n<img src="{picture}" alt="log-mel features of the variants">\n')
