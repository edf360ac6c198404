"""``kvarts report``: a page to look at and to listen to, of what was recognised; one file that needs nothing else.

The page is report.html with report.css and report.js in it, and one JSON object that report.js draws everything from.
Sound and pictures stand behind the script, each in an element of its own: the page is drawn before they are read, and a
sound is decoded when somebody plays it. The page may load nothing from anywhere, and runs no script but its own: its
Content-Security-Policy says so.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Final

from kvarts import __version__
from kvarts.error_counts import ErrorCounts, align_letters, align_words
from kvarts.errors import AudioError, ConfigError, OutputError, listing
from kvarts.files import atomic_text_writer
from kvarts.recogniser_options import positive_number
from kvarts.text import NORMALISER_VERSION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvarts.breakdown import Intervals
    from kvarts.scored import Scored

LANGUAGES: Final = ("en", "ru")
WORST_WITH_AUDIO: Final = 100
LARGEST_MB: Final = 20.0  # of the page with its sound

_MOST_VALUES: Final = 200  # of a field that is no number; with more it is a name of its own for (nearly) each utterance
_NOT_FOR_GROUPS: Final = frozenset({"audio_filepath", "text", "pred_text", "id", "duration", "offset"})
_MOST_CONFUSIONS: Final = 25  # of a kind
_BYTES_A_SECOND: Final = 3_500  # of Opus at 28 kbit/s; what there is no room for is not decoded
_COLUMNS: Final = 600  # of a picture at most, about as many pixels as it is shown in
_LEVELS: Final = 64  # of colour; 256 look the same and take a third more
# Dark to bright in steps that look even, also to the colour-blind: nine points of matplotlib's «magma».
_MAGMA: Final = "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"


@dataclass(frozen=True)
class Written:
    """What became of the sound of a page."""

    with_sound: int  # utterances
    left_out: int  # utterances whose sound would have made the page too large
    unreadable: tuple[str, ...]  # a line for each file that could not be read


def write_report(
    path: Path,
    sections: Mapping[str, Sequence[Scored]],
    *,
    title: str,
    about: Mapping[str, Any],
    language: str = "en",
    worst_with_audio: int = WORST_WITH_AUDIO,
    largest_mb: float = LARGEST_MB,
) -> Written:
    """Writes the page: scores with intervals, plots, breakdowns, confusions, and all utterances, worst first.

    Worst is who has most word errors, of as many the higher word error rate, then the higher letter error rate. The
    same utterances give the same page, byte for byte.

    Args:
        sections: the utterances of each manifest, by its name; at least one of each.
        about: where the figures come from, shown below them in this order.
        language: that the page opens in, "en" or "ru"; it has both.
        worst_with_audio: utterances that get their sound and a picture of it.
        largest_mb: millions of bytes that the page may have with them. Sound that would make it larger is left out,
            which the page says beside the utterance; the texts are there in any case.

    Raises:
        OutputError: the page could not be written.
        ValueError: a manifest without utterances, none at all, or a language that it is not written in.
    """
    if not (sections and all(sections.values())) or language not in LANGUAGES:
        raise ValueError(f"a report needs utterances of every manifest, and one of the languages {LANGUAGES}")
    placed = [(place, one) for place, section in enumerate(sections.values()) for one in section]
    placed.sort(key=lambda pair: (-pair[1].words.errors, -pair[1].words.rate, -pair[1].characters.rate))
    content = _content(sections, placed, about, language)
    page, script, style = (_part(f"report.{kind}") for kind in ("html", "js", "css"))
    room = int(largest_mb * 1e6) - sum(len(text.encode()) for text in (page, script, style, _embedded(content)))
    worst = [one for _, one in placed[:worst_with_audio]]
    media, written = _media(worst, content["rows"], room - len(worst) * len(_NO_ROOM))
    with atomic_text_writer(path) as file:
        file.write(
            Template(page).substitute(
                lang=language,
                title=escape(_utf8(title)),
                version=__version__,
                script=script,
                script_hash=_hash_of(script),
                style=style,
                style_hash=_hash_of(style),
                data=_embedded(content),
                media="".join(media),
            )
        )
    return written


# --- What the page is drawn from ----------------------------------------------------------------------------


# Where a row has what tells of its sound: 1 if it is there, 0 if it was not asked for, else why it is missing.
_SOUND: Final = 14
_NO_ROOM: Final = "no room for the sound: the file would have become too large"


def _content(
    sections: Mapping[str, Sequence[Scored]],
    placed: Sequence[tuple[int, Scored]],
    about: Mapping[str, Any],
    language: str,
) -> dict[str, Any]:
    """The object that report.js reads; the rows worst first, as lists, for their names would be half of it."""
    ranked = [one for _, one in placed]
    # Intervals as kvarts evaluate has them: they depend on the order, a little.
    everything = [one for section in sections.values() for one in section]
    groups = _groups(everything, ranked)
    fields = [group["field"] for group in groups if group["field"] != "length"]
    versions = {"report": f"kvarts {__version__}, normaliser {NORMALISER_VERSION}"}
    return {
        "lang": language,
        "about": [[str(what), str(text)] for what, text in {**about, **versions}.items()],
        "manifests": [{"name": name, **_score(section)} for name, section in sections.items()],
        "together": _score(everything),
        "groups": groups,
        "fields": fields,
        "confusions": {"words": _confusions(ranked, align_words), "letters": _confusions(ranked, align_letters)},
        "rows": [_row(place, one, fields) for place, one in placed],
    }


def _score(scored: Sequence[Scored]) -> dict[str, Any]:
    """What is shown of some utterances: kinds of word errors, and the rates with the ends of their intervals."""
    from kvarts.breakdown import intervals

    words = sum((one.words for one in scored), ErrorCounts())
    return {
        "words": [words.substitutions, words.deletions, words.insertions, words.reference_length],
        **_rates(scored, intervals(scored)),
    }


def _rates(scored: Sequence[Scored], intervals: Intervals) -> dict[str, Any]:
    from kvarts.breakdown import MEASURES, rates

    found = rates(scored)
    ends = {name: [None, None] if (pair := intervals[name]) is None else [*pair] for name in MEASURES}
    rounded = {name: [round(found[name], 5), *(end and round(end, 5) for end in ends[name])] for name in MEASURES}
    return {"utterances": found["utterances"], "hours": round(found["hours"], 5), **rounded}


def _groups(everything: Sequence[Scored], ranked: Sequence[Scored]) -> list[dict[str, Any]]:
    """Utterances by length, and by each field of their manifests that puts some of them together."""
    from kvarts.breakdown import groupings, groups

    rows = [one.fields for one in everything]
    number_of = {id(one): number for number, one in enumerate(ranked)}
    found: list[dict[str, Any]] = []
    for grouping in groupings(["length", *_group_fields(rows)], rows):
        parts = groups(everything, grouping)
        if len(parts) < 2:
            continue
        of = [0] * len(ranked)
        for place, part in enumerate(parts):
            for one in part.scored:
                of[number_of[id(one)]] = place
        values = (row.get(grouping.name) for row in rows)
        found.append(
            {
                "field": grouping.name,
                "is_number": grouping.edges is not None or all(value is None or _is_number(value) for value in values),
                "rows": [{"label": part.label, **_rates(part.scored, part.intervals)} for part in parts],
                "of": of,
            }
        )
    return found


def _group_fields(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields of plain values: numbers, or at most `_MOST_VALUES` texts, each of two utterances on average."""
    fields = dict.fromkeys(name for row in rows for name in row if name not in _NOT_FOR_GROUPS)
    chosen = []
    for name in fields:
        values = [row[name] for row in rows if row.get(name) is not None]
        if all(map(_is_number, values)) or (
            all(isinstance(value, (str, bool)) for value in values)
            and len(set(values)) <= min(_MOST_VALUES, len(values) / 2)
        ):
            chosen.append(name)
    return chosen


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _confusions(ranked: Sequence[Scored], align: Callable[[str, str], list[tuple[str, str]]]) -> dict[str, Any]:
    """The most frequent substitutions, deletions and insertions: [said, recognised, how often, of how many]."""
    from kvarts.breakdown import confusions

    kinds: dict[str, list[list[Any]]] = {"s": [], "d": [], "i": []}
    for one in confusions(ranked, align, sys.maxsize):
        kinds[_step(one.said, one.heard)].append([one.said, one.heard, one.count, one.total])
    return {kind: found[:_MOST_CONFUSIONS] for kind, found in kinds.items()}


def _row(place: int, one: Scored, fields: Sequence[str]) -> list[Any]:
    words = align_words(one.reference, one.text)
    letters = [_steps(align_letters(*pair)) for pair in words if _step(*pair) == "s"]
    return [
        *(place, one.where, one.utterance_id, round(one.duration_s, 3), one.reference, one.text),
        *(_steps(words), " ".join(letters)),
        *(one.words.errors, one.words.reference_length, one.characters.errors, one.characters.reference_length),
        *(one.fields["text"], str(one.audio_path), 0, [one.fields.get(name) for name in fields]),
    ]


def _steps(pairs: Iterable[tuple[str, str]]) -> str:
    """An alignment as a letter a pair: = the same, s another, d missed, i inserted."""
    return "".join(_step(said, heard) for said, heard in pairs)


def _step(said: str, heard: str) -> str:
    if said == heard:
        return "="
    return "s" if said and heard else "d" if said else "i"


def _embedded(content: object) -> str:
    """JSON that can stand inside a script element: without «<», so that no text can end it or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _utf8(text.replace("<", "\\u003c"))


def _utf8(text: str) -> str:
    """Without the halves of characters that stand for bytes in file names that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash_of(text: str) -> str:
    """As a Content-Security-Policy names the scripts and styles it allows."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- Sound and pictures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Heard:
    audio: str  # an Ogg Opus file, base64
    picture: str  # a PNG, base64


def _media(worst: Sequence[Scored], rows: Sequence[list[Any]], room: int) -> tuple[list[str], Written]:
    """Elements with the sound and the picture of utterances, and what became of it; `rows` are told, too."""
    from kvarts.progress import progress_bar, run_ahead

    elements: list[str] = []
    largest = room
    left_out = 0
    unreadable: list[str] = []

    def load(one: Scored) -> _Heard | AudioError | None:
        if one.duration_s * _BYTES_A_SECOND > largest:  # of the whole room: what is left depends on the threads
            return None
        try:
            return _heard(one)
        except AudioError as error:
            return error

    with progress_bar("sound and pictures", len(worst)) as advance:
        for number, found in enumerate(run_ahead(load, worst, workers=2, ahead=8)):
            advance(1)
            if isinstance(found, AudioError):
                unreadable.append(f"{worst[number].where}: {found}")
                rows[number][_SOUND] = str(found)
                continue
            element = "" if found is None else _elements(number, found)
            if found is None or len(element) > room:
                left_out += 1
                rows[number][_SOUND] = _NO_ROOM
                continue
            room -= len(element)
            elements.append(element)
            rows[number][_SOUND] = 1
    return elements, Written(len(elements), left_out, tuple(unreadable))


def _elements(number: int, heard: _Heard) -> str:
    return "".join(
        f'<script type="text/plain" id="{kind}{number}">{content}</script>\n'
        for kind, content in (("a", heard.audio), ("p", heard.picture))
    )


def _heard(one: Scored) -> _Heard:
    """Raises AudioError as `kvarts.audio.read_audio`."""
    from kvarts.audio import read_audio
    from kvarts.features import log_mel

    waveform = read_audio(one.audio_path)
    picture = log_mel_png(log_mel(waveform))
    return _Heard(_base64(_opus_of(one.audio_path, waveform)), _base64(picture))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _opus_of(path: Path, waveform: NDArray[np.float32]) -> bytes:
    """The file as it is where it is Ogg Opus; all else at 28 kbit/s."""
    from kvarts.sample import encode_opus

    with path.open("rb") as file:
        if file.read(64)[28:36] == b"OpusHead":  # behind the header of the first page, RFC 7845
            file.seek(0)
            return file.read()
    return encode_opus(waveform, 0)


def log_mel_png(features: NDArray[np.float32]) -> bytes:
    """A picture of log-mel features (frames, 64), low frequencies at the bottom, the loudest brightest.

    Some frames in a row are averaged, so that the picture is at most 600 pixels wide. The darkest colour is the value
    that 5 % lie below, the brightest the one that 0.2 % lie above.
    """
    import numpy as np

    step = math.ceil(len(features) / _COLUMNS)
    starts = np.arange(0, len(features), step)
    means = np.add.reduceat(features, starts) / np.diff([*starts, len(features)])[:, None]
    low, high = np.quantile(means, [0.05, 0.998])
    levels = np.clip((means - low) / max(high - low, 1.0) * _LEVELS, 0, _LEVELS - 1).astype(np.uint8)
    points = np.array([[*bytes.fromhex(colour)] for colour in _MAGMA.split()])
    places = np.linspace(0, len(points) - 1, _LEVELS)
    palette = np.stack([np.interp(places, range(len(points)), channel) for channel in points.T], axis=1)
    return palette_png(levels.T[::-1], palette.round().astype(np.uint8))


def palette_png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """A PNG (W3C, third edition) of pixels (height, width), numbers of colours in a palette (colours, 3) of RGB."""
    height, width = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, a palette
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # 0: no filter
    parts = [chunk(b"IHDR", header), chunk(b"PLTE", palette.tobytes()), chunk(b"IDAT", zlib.compress(lines, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


# --- The command ------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Writes one page of HTML about predictions: scores with intervals, plots, breakdowns, what is taken for what, "
        "and all utterances, worst first, with the sound of the worst. What results.json beside them says of the model "
        "is taken over. Exit code 1: some sound could not be read; all else is in the page."
    )
    parser.add_argument(
        "predictions",
        metavar="PRED",
        nargs="+",
        type=Path,
        help="NAME_pred.jsonl, as kvarts evaluate --output writes it",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the page, .html")
    parser.add_argument("--title", help="default: the names of the predictions")
    parser.add_argument(
        "--lang", choices=LANGUAGES, default="en", help="that the page opens in; it has both (default: %(default)s)"
    )
    parser.add_argument(
        "--audio",
        metavar="N",
        type=_count,
        default=WORST_WITH_AUDIO,
        help="of how many of the worst utterances the sound is put in (default: %(default)s)",
    )
    parser.add_argument(
        "--largest-mb",
        metavar="MB",
        type=positive_number,
        default=LARGEST_MB,
        help="how large the page may become with the sound, in millions of bytes (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page.

    Raises:
        ManifestError: predictions cannot be read.
        ConfigError: predictions are given twice, or the page would take their place.
        OutputError: the page cannot be written.
    """
    from kvarts.evaluate import name_predictions
    from kvarts.scored import read_predictions

    names = name_predictions(args.predictions)
    if args.output.is_dir():
        raise OutputError(f"{args.output}: is a folder; name a file in it")
    if args.output.resolve() in {path.resolve() for path in args.predictions}:
        raise ConfigError(f"--output {args.output}: is read already; name another file")
    sections = {name: read_predictions(path) for name, path in names.items()}
    written = write_report(
        args.output,
        sections,
        title=args.title or ", ".join(names),
        about=_about(args.predictions),
        language=args.lang,
        worst_with_audio=args.audio,
        largest_mb=args.largest_mb,
    )
    return report_written(args.output, written)


def report_written(path: Path, written: Written) -> int:
    """Says on the terminal where the page is, how large, and what sound is missing; 1 if some could not be read."""
    if written.unreadable:
        print(f"kvarts: warning: {listing('sound that could not be read', written.unreadable)}", file=sys.stderr)
    missing = f", {written.left_out} left out for want of room" if written.left_out else ""
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, sound of {written.with_sound} utterances{missing})")
    return 1 if written.unreadable else 0


def _about(paths: Sequence[Path]) -> dict[str, str]:
    """What the results.json beside each of the predictions says of it; where they differ, all that is said."""
    found: dict[str, dict[str, None]] = {}
    for path in paths:
        for name, value in _results_of(path).items():
            found.setdefault(name, {})[str(value)] = None
    return {name: "; ".join(values) for name, values in found.items()}


def _results_of(path: Path) -> dict[str, Any]:
    results = path.with_name("results.json")
    try:
        content = json.loads(results.read_bytes())
        manifests = [row for row in content.pop("manifests") if row["predictions"] == path.name]
        for name in ("complete", "together", "normaliser_version"):  # scored anew, by this version
            content.pop(name, None)
    except FileNotFoundError:
        manifests = []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ConfigError(f"{results}: is not what kvarts evaluate writes; repair it, or move it away") from None
    if not manifests:
        return {"predictions": path}
    return {**described(content), "manifest": manifests[0].get("manifest"), "predictions": path}


def described(results: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says of the model and the decoder, for the foot of the page: {"checkpoint sha256": …}."""
    flat: dict[str, Any] = {}
    for name, value in results.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat.update({f"{name} {key}".strip().replace("_", " "): part for key, part in inner})
    return flat


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number
