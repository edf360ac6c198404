"""``kvarts data mix``: one manifest of several, each as often as it is to be heard; voices left out, or they alone."""

from __future__ import annotations

import argparse
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvarts.errors import ConfigError, ManifestError
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.text import normalise


@dataclass(frozen=True)
class Part:
    """A manifest and how often it is heard in an epoch: 8 is each utterance eight times, 0.5 a random half of them."""

    manifest: Path
    times: float = 1.0


def mixed(
    parts: Sequence[Part], output: Path, is_wanted: Callable[[Utterance], bool] = lambda _: True, seed: int = 0
) -> list[float]:
    """Writes the mix and gives the hours of each part in it.

    Rows keep their fields; audio_filepath is relative to `output`. The second and later copies of an utterance have
    «-2», «-3» … behind their id. Which utterances a fraction takes depends on the seed and the manifest alone.

    Args:
        is_wanted: which utterances of all parts.

    Raises:
        ManifestError: a manifest cannot be read, or nothing is left of it.
        OutputError: `output` cannot be written.
    """
    taken = [list(_taken(part, is_wanted, seed)) for part in parts]
    for part, utterances in zip(parts, taken, strict=True):
        if not utterances:
            raise ManifestError(f"{part.manifest}: nothing is left of it; leave it out, or less of it")
    rows = (_row(utterance, copy, output.parent) for utterances in taken for utterance, copy in utterances)
    write_manifest(output, rows)
    return [sum(utterance.duration_s for utterance, _ in utterances) / 3600 for utterances in taken]


def _taken(part: Part, is_wanted: Callable[[Utterance], bool], seed: int) -> Iterator[tuple[Utterance, int]]:
    """Utterances, and which copy of it each is, from 1 on."""
    kept = [utterance for utterance in read_manifest(part.manifest) if is_wanted(utterance)]
    whole = math.floor(part.times)
    for copy in range(1, whole + 1):
        for utterance in kept:
            yield utterance, copy
    chosen = random.Random(seed).sample(range(len(kept)), round((part.times - whole) * len(kept)))
    for number in sorted(chosen):
        yield kept[number], whole + 1


def _row(utterance: Utterance, copy: int, folder: Path) -> dict[str, Any]:
    path = Path(os.path.relpath(utterance.audio_path, folder)).as_posix()
    name = utterance.utterance_id if copy == 1 else f"{utterance.utterance_id}-{copy}"
    return {**utterance.fields, "id": name, "audio_filepath": path}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Writes one manifest of several: what an epoch is to hear, and how much of each. A small corpus beside a large "
        "one is named with a number of times. A voice can be left out, and a manifest made of it alone, to test on."
    )
    parser.add_argument(
        "--manifest",
        metavar=("M", "TIMES"),
        nargs="+",
        action="append",
        required=True,
        help="a manifest, and how often each of its utterances is to be heard in an epoch (default: 1); below 1, a "
        "random part is. Once for each manifest",
    )
    parser.add_argument("-o", "--output", metavar="M", type=Path, required=True, help="the manifest to write")
    for option, what in (("--without", "leave out utterances"), ("--only", "take only utterances")):
        parser.add_argument(
            option,
            metavar="FIELD=VALUE",
            type=_field_and_value,
            action="append",
            default=[],
            help=f"{what} with this value of a field, as speaker=anna; may be given more than once",
        )
    for option, what in (
        ("--texts", "take only utterances whose text is a line of this file"),
        ("--without-texts", "leave out utterances in whose text a line of this file stands, word for word"),
    ):
        parser.add_argument(option, metavar="FILE", type=Path, help=what)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of random parts (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Writes the mix and prints the hours of each part."""
    parts = [_part(values) for values in args.manifest]
    texts = None if args.texts is None else _texts("--texts", args.texts)
    is_held_out = _stands_in(set() if args.without_texts is None else _texts("--without-texts", args.without_texts))

    def is_wanted(utterance: Utterance) -> bool:
        fields = {(name, str(value)) for name, value in utterance.fields.items()}
        is_only = not args.only or not fields.isdisjoint(args.only)
        text = normalise(utterance.text)
        is_text = (texts is None or text in texts) and not is_held_out(text)
        return is_only and fields.isdisjoint(args.without) and is_text

    hours = mixed(parts, args.output, is_wanted, args.seed)
    for part, part_hours in zip(parts, hours, strict=True):
        print(f"{part_hours:8.2f} h {100 * part_hours / sum(hours):5.1f} %  {part.manifest}")
    print(f"{sum(hours):8.2f} h          {args.output}")
    return 0


def _part(values: Sequence[str]) -> Part:
    if len(values) > 2:
        what = "name one manifest and how often; give the option once for each"
        raise ConfigError(f"--manifest {' '.join(values)}: {what}")
    try:
        times = float(values[1]) if len(values) == 2 else 1.0
    except ValueError:
        times = math.nan
    if not 0 < times < math.inf:
        raise ConfigError(f"--manifest {' '.join(values)}: how often must be a number above 0")
    return Part(Path(values[0]), times)


def _texts(option: str, path: Path) -> set[str]:
    try:
        return {normalise(line) for line in path.read_text(encoding="utf-8-sig").splitlines()}
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {path}: is no UTF-8 text; save it as UTF-8") from None


def _stands_in(lines: set[str]) -> Callable[[str], bool]:
    """Whether one of the lines is in a text, as these words one after the other; an empty line is in an empty text."""
    known = {tuple(line.split()) for line in lines}
    lengths = sorted({len(words) for words in known})

    def stands_in(text: str) -> bool:
        words = text.split()
        if not words:
            return () in known
        starts = ((start, length) for length in lengths if length for start in range(len(words) - length + 1))
        return any(tuple(words[start : start + length]) in known for start, length in starts)

    return stands_in


def _field_and_value(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not (field and equals):
        raise argparse.ArgumentTypeError(f"{text} is not FIELD=VALUE, as speaker=anna")
    return field, value
