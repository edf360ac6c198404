"""Manifests: JSON Lines, one utterance a line, in the layout of the course and of NeMo.

    {"id": "855e01d6", "audio_filepath": "farfield/855e01d6.opus", "text": "афина хотела", "duration": 5.46}

`audio_filepath` is relative to the manifest's folder or absolute, `duration` is in seconds, `id` may be
left out (the name of the audio file without its ending then stands in). Other fields are kept and ignored.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from kvarts.errors import ManifestError, OutputError, listing
from kvarts.files import atomic_text_writer

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest."""

    audio_path: Path  # joined to the manifest's folder; not checked to exist
    text: str  # raw, exactly as in the manifest
    duration_s: float  # as the manifest says, positive and finite
    utterance_id: str
    manifest: Path
    line: int  # 1-based
    fields: dict[str, Any] = field(hash=False, repr=False)  # the whole JSON object

    @property
    def where(self) -> str:
        """Where the utterance stands, to be shown to people: ``path/manifest.jsonl:12``."""
        return f"{self.manifest}:{self.line}"


class LineError(Exception):
    """What is wrong with a line and what to do about it."""


def read_manifest(path: Path) -> list[Utterance]:
    """All utterances of a manifest, in its order. Blank lines and a byte order mark are skipped.

    Raises:
        ManifestError: no such file, a folder, nothing in it, or bad lines; every bad line is found, and the
            first few are listed as ``file:line: what is wrong; what to do``.
    """
    utterances: list[Utterance] = []
    offenders: list[str] = []
    for line in read_lines(path):
        if line.utterance is None:
            offenders.append(f"{path}:{line.number}: {line.error}")
        else:
            utterances.append(line.utterance)
    if offenders:
        raise ManifestError(listing(f"{path}: bad lines", offenders))
    return utterances


@dataclass(frozen=True)
class Line:
    """One line of a manifest as it was read."""

    number: int
    offset: int  # of its first byte in the file
    size: int  # bytes
    utterance: Utterance | None
    error: str  # what is wrong with it and what to do, where it is none


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a manifest one by one, broken ones too; blank ones are skipped.

    Raises:
        ManifestError: the manifest cannot be read, or has no line.
    """
    is_empty = True
    offset = 0
    try:
        # Bytes, so that lines end at \n alone: str.splitlines would also cut at U+2028 inside a text.
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                start, offset = offset, offset + len(raw)
                content = (raw.removeprefix(BOM) if number == 1 else raw).strip()
                if not content:
                    continue
                is_empty = False
                try:
                    yield Line(number, start, len(raw), utterance_of(content, path, number), "")
                except LineError as error:
                    yield Line(number, start, len(raw), None, str(error))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest; check the path") from None
    except IsADirectoryError:
        raise ManifestError(f"{path}: is a folder; give the manifest file inside it") from None
    except OSError as error:
        raise ManifestError(f"{path}: could not be read ({error.strerror or error}); check the path") from error
    if is_empty:
        raise ManifestError(f"{path}: the manifest is empty; it needs one JSON object a line")


def write_manifest(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, letters unescaped; replaces `path` only once all of it is on the disk.

    Raises:
        OutputError: the disk is full, the place not writable, or a row holds NaN or infinity, which JSON
            cannot say. A manifest that was there before stays as it was.
    """
    with atomic_text_writer(path) as file:
        for number, row in enumerate(rows, start=1):
            try:
                file.write(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n")
            except ValueError as error:
                raise OutputError(f"{path}:{number}: could not be written as JSON: {error}") from error


def utterance_of(content: bytes, manifest: Path, line: int) -> Utterance:
    """The utterance that a line holds.

    Raises:
        LineError: it holds none.
    """
    row = json_object(content)
    audio_filepath = field_of(row, "audio_filepath", str, "a string")
    if not audio_filepath.strip() or "\0" in audio_filepath:
        raise LineError('"audio_filepath" names no file; give the path of the audio file')
    text = field_of(row, "text", str, "a string")
    duration = field_of(row, "duration", (int, float), "a number")
    try:
        duration_s = float(duration)
    except OverflowError:  # an integer of more than 308 digits
        duration_s = math.inf
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise LineError(f'"duration" is {duration_s:g}; give the seconds of audio, a number above 0')
    audio_path = _folder_of(manifest) / audio_filepath
    utterance_id = row.get("id")
    if utterance_id is None:
        utterance_id = audio_path.stem
    elif isinstance(utterance_id, bool) or not isinstance(utterance_id, (str, int)):
        raise LineError(f'"id" is {_type_name(utterance_id)}; make it a string or leave it out')
    return Utterance(audio_path, text, duration_s, str(utterance_id), manifest, line, row)


@functools.lru_cache(maxsize=8)
def _folder_of(manifest: Path) -> Path:
    # Asked for with every line: to take the parent of a path anew is 6 % of what reading a line takes.
    return manifest.parent


def _refuse_constant(name: str) -> NoReturn:
    raise LineError(f"{name} is not JSON; give a number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def json_object(content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8 (byte {error.start + 1} of the line); save it as UTF-8") from None
    try:
        row = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        place = f"{error.msg}, column {error.colno}"
        raise LineError(f"broken JSON ({place}); write one JSON object a line") from None
    except UnicodeEncodeError:
        # \ud800 without its partner is legal JSON that no file and no terminal can hold.
        raise LineError("half a surrogate pair in a \\u escape; write the character itself") from None
    except (ValueError, RecursionError):
        raise LineError("JSON with too long a number or too many brackets; correct the line") from None
    if not isinstance(row, dict):
        raise LineError(f'{_type_name(row)}, not an object; write {{"audio_filepath": …, …}}')
    return row


def field_of(row: dict[str, Any], name: str, kind: type | tuple[type, ...], kind_name: str) -> Any:
    if name not in row:
        raise LineError(f'"{name}" is missing; add it as {kind_name}')
    value = row[name]
    # In Python True is an int; in a manifest it is a mistake.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise LineError(f'"{name}" is {_type_name(value)}; make it {kind_name}')
    return value


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"
