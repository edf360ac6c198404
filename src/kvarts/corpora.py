"""Speech corpora as others keep them, read a line at a time: every line becomes an `Entry` or a `Rejected`.

Nothing here looks at audio, and nothing holds more than a line: what has to be looked up (Kaldi keeps a corpus in
several files) lies in a `DiskTable`. Texts and fields stay as they are; fields of the same meaning get the names that
Kvarts' manifests have: `speaker`, `gender`, `language`, `licence`.
"""

from __future__ import annotations

import csv
import math
import os
import re
import sqlite3
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from kvarts.errors import ArchiveError, ConfigError, ManifestError
from kvarts.manifest import BOM, LineError, field_of, json_object

KINDS: Final = ("course", "golos", "commonvoice", "kaldi", "audiofolder", "nemo", "festvox")
ARCHIVE_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
REJECTED_SUFFIX: Final = ".rejected.jsonl"
PART_SUFFIX: Final = ".part"  # of the folder where an import is under way

_LONGEST_LINE = 1 << 20  # bytes; a line that is longer is no utterance, and must not fill the memory
_NAME_IN_MANIFESTS: Final = {
    "speaker_id": "speaker",
    "client_id": "speaker",
    "lang": "language",
    "locale": "language",
    "license": "licence",
}
_AUDIO_NAMES = ("audio_filepath", "audio_filename", "audio_file")
_TEXT_NAMES = ("text", "transcription", "transcript", "sentence", "normalized_text")
_COMMON_VOICE_FIELDS = ("client_id", "gender", "age", "locale")
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")


@dataclass(frozen=True)
class Entry:
    """One utterance as its corpus has it."""

    where: str  # file:line
    audio: tuple[Path, ...]  # where the file may lie; the first that exists counts
    text: str  # raw
    utterance_id: str | None  # None where the corpus gives none
    duration_s: float | None = None  # positive and finite; None where the corpus does not tell
    start_s: float | None = None  # of a piece of the file; None for the whole file
    end_s: float | None = None  # of the piece; None for the end of the file
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A line that is no utterance."""

    where: str  # file:line
    reason: str  # what is wrong; what to do


@dataclass(frozen=True)
class CorpusPart:
    """What becomes one manifest."""

    output: str  # path of the manifest below the output folder
    index: Path  # the file whose lines are the utterances
    entries: Callable[[Path], Iterator[Entry | Rejected]]  # gets a folder for tables


class DiskTable:
    """A dictionary of strings on disk, for lookups among millions of lines in 2 MB of memory.

    Raises:
        sqlite3.Error: by any method; the disk is full.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        # It is made anew by every run, so nothing of it needs to survive a crash.
        for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -2048"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT, line INTEGER, used INTEGER) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def add(self, key: str, value: str, line: int = 0) -> str | None:
        """Puts an unused value under a key; if there is one already, gives that one back and leaves it."""
        try:
            self._database.execute("INSERT INTO entries VALUES (?, ?, ?, 0)", (key, value, line))
        except sqlite3.IntegrityError:
            return self.value(key)
        return None

    def put(self, key: str, value: str) -> None:
        """Another value for a key that is there."""
        self._database.execute("UPDATE entries SET value = ? WHERE key = ?", (value, key))

    def value(self, key: str) -> str | None:
        """What stands under a key."""
        row = self._database.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def use(self, key: str) -> str | None:
        """What stands under a key, which counts as used from now on."""
        value = self.value(key)
        if value is not None:
            self._database.execute("UPDATE entries SET used = 1 WHERE key = ? AND used = 0", (key,))
        return value

    def unused(self) -> Iterator[tuple[str, int]]:
        """Keys that were never used and their lines, by line."""
        yield from self._database.execute("SELECT key, line FROM entries WHERE used = 0 ORDER BY line")

    def close(self) -> None:
        """Ends the work with the file."""
        self._database.close()


# --- Lines --------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbers from 1 and lines without their ends and without a byte order mark; None for one that is too long."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                too_long = len(line) == _LONGEST_LINE and not line.endswith(b"\n")
                while too_long and (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                start = line.removeprefix(BOM) if number == 1 else line
                yield number, None if too_long else start.rstrip(b"\r\n")
    except OSError as error:
        raise ManifestError(f"{path}: could not be read ({error.strerror or error}); check the path") from error


def _entries_of_lines(
    path: Path, parse: Callable[[bytes, str], Entry], *, first_line: int = 1
) -> Iterator[Entry | Rejected]:
    """What `parse` makes of each line that is not blank, given the line and ``file:line``."""
    for number, raw in _lines(path):
        if number < first_line or (raw is not None and not raw.strip()):
            continue
        where = f"{path}:{number}"
        found: Entry | Rejected
        try:
            if raw is None:
                raise LineError(f"longer than {_LONGEST_LINE} bytes; is it the right file?")
            found = parse(raw, where)
        except LineError as error:
            found = Rejected(where, str(error))
        yield found


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8 (byte {error.start + 1} of the line); save it as UTF-8") from None


def _file_name(value: str, column: str) -> str:
    if not value.strip() or "\0" in value:
        raise LineError(f'"{column}" names no file; give the path of the audio file')
    return value


def _kept(row: Mapping[str, Any], without: Iterable[str]) -> dict[str, Any]:
    """The fields of a row that hold something, under the names of Kvarts' manifests."""
    left_out = {"id", "audio_filepath", "text", "duration", *without}
    kept = {name: value for name, value in row.items() if name not in left_out and value is not None and value != ""}
    for other, name in _NAME_IN_MANIFESTS.items():
        if other in kept and name not in kept:
            kept[name] = kept.pop(other)
    return kept


def _given(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _number(row: Mapping[str, Any], name: str, *, zero: bool) -> float | None:
    """A field of seconds; None where it is missing or null."""
    if row.get(name) is None:
        return None
    try:
        value = float(field_of(dict(row), name, (int, float), "a number"))
    except OverflowError:  # an integer of more than 308 digits
        value = math.inf
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise LineError(f'"{name}" is {value:g}; give seconds, a number {"from" if zero else "above"} 0')
    return value


def _given_id(row: Mapping[str, Any]) -> str | None:
    value = row.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise LineError('"id" is neither a string nor a whole number; make it a string or leave it out')
    return str(value)


# --- Manifests: the course, Golos, NeMo -----------------------------------------------------------------------


def _manifest_entry(raw: bytes, where: str, *, folders: Sequence[Path], text_column: str | None) -> Entry:
    """A line of a manifest as NeMo's readers take it (`nemo.collections.common.parts.preprocessing.manifest`)."""
    row = json_object(raw.strip())
    audio_name = _given(row, _AUDIO_NAMES) or _AUDIO_NAMES[0]
    file_name = os.path.expanduser(_file_name(field_of(row, audio_name, str, "a string"), audio_name))  # noqa: PTH111
    audio = tuple(folder / file_name for folder in folders)
    text_name = text_column or _given(row, _TEXT_NAMES)
    if text_name is None and "text_filepath" in row:
        text_name = "text_filepath"
        text_file = _file_name(field_of(row, text_name, str, "a string"), text_name)
        text = _text_of_file(folders[0] / text_file)
    else:
        text = field_of(row, text_name or "text", str, "a string")
    duration_s = _number(row, "duration", zero="offset" in row)  # NeMo's 0 beside an offset is «to the end»
    start_s = _number(row, "offset", zero=True)
    dropped = (audio_name, text_name or "text", "offset")
    return Entry(
        where,
        audio,
        text,
        _given_id(row),
        duration_s or None,
        start_s,
        start_s + duration_s if start_s is not None and duration_s else None,
        fields=_kept(row, dropped),
    )


def _text_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_LINE)
    except (OSError, ValueError) as error:
        raise LineError(f"{path} could not be read ({error}); correct text_filepath") from None
    return _decoded(content).replace("\n", "")


def _course_entry(raw: bytes, where: str, *, folders: Sequence[Path], text_column: str | None) -> Entry:
    """A manifest's line whose domain, crowd or farfield, is in the names of the folders that its audio lies in."""
    entry = _manifest_entry(raw, where, folders=folders, text_column=text_column)
    # From the folder above the manifest's on, as in test_opus/crowd/manifest.jsonl.
    start = max(1, len(folders[0].parts) - 2)
    for folder in reversed(entry.audio[0].parts[start:-1]):
        # The folders of the wav archives have numbers: crowd0 … crowd9.
        if named := re.fullmatch(r"(?:train_|test_)?(crowd|farfield)\d*", folder):
            entry.fields.setdefault("domain", named[1])
            break
    return entry


def _course_manifests(root: Path) -> list[Path]:
    return sorted(
        path
        for path in root.rglob("*.jsonl")
        if not path.name.endswith(REJECTED_SUFFIX)
        and not any(part.startswith(".") or part.endswith(PART_SUFFIX) for part in path.relative_to(root).parts)
    )


def _course_root(folder: Path) -> Path:
    """The folder itself, or the one that an archive wrapped everything in."""
    while True:
        # macOS adds folders and files of its own to what it packs.
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
        wraps = len(entries) == 1 and entries[0].is_dir() and not re.match("train|val|test", entries[0].name)
        if not wraps:
            return folder
        folder = entries[0]


def _course_parts(sources: Sequence[Path], text_column: str | None) -> list[CorpusPart]:
    """All manifests of folders, under the paths they have there; a manifest that is named itself is the only one.

    Golos' wav archives have the manifests in one archive and the audio in eleven others, so a file that is not
    where its manifest says is looked for at the same place of every other source.
    """
    roots = [_course_root(source) if source.is_dir() else source.parent for source in sources]
    # An archive of audio alone may hold a single folder that belongs to the names.
    others = dict.fromkeys([*roots, *(source for source in sources if source.is_dir())])
    parts = []
    for source, root in zip(sources, roots, strict=True):
        for manifest in _course_manifests(root) if source.is_dir() else [source]:
            below = manifest.parent.relative_to(root)
            folders = [manifest.parent, *(other / place for other in others for place in (below, Path()))]
            entry_of = partial(_course_entry, folders=list(dict.fromkeys(folders)), text_column=text_column)
            output = manifest.relative_to(root).as_posix() if source.is_dir() else "manifest.jsonl"
            parts.append(CorpusPart(output, manifest, partial(_without_tables, manifest, entry_of)))
    if not parts:
        raise ManifestError(
            f"{sources[0]}: no manifest (*.jsonl) in it; of Golos' wav archives train_crowd9.tar has them"
        )
    return parts


def _without_tables(path: Path, parse: Callable[[bytes, str], Entry], _tables: Path) -> Iterator[Entry | Rejected]:
    return _entries_of_lines(path, parse)


def _nemo_parts(sources: Sequence[Path], text_column: str | None) -> list[CorpusPart]:
    return [
        CorpusPart(
            "manifest.jsonl",
            source,
            partial(
                _without_tables, source, partial(_manifest_entry, folders=[source.parent], text_column=text_column)
            ),
        )
        for source in sources
    ]


# --- Common Voice ---------------------------------------------------------------------------------------------


def _header(path: Path) -> str:
    for _, raw in _lines(path):
        with suppress(LineError):
            if raw is not None:
                return _decoded(raw)
        raise ManifestError(f"{path}:1: the header is not UTF-8 text; is it the right file?")
    raise ManifestError(f"{path}: is empty; download it again")


def _common_voice_part(path: Path, text_column: str | None) -> CorpusPart:
    columns = _header(path).split("\t")
    text_name = text_column or "sentence"
    for needed in ("path", text_name):
        if columns.count(needed) != 1:
            raise ManifestError(
                f"{path}:1: the header has no single column {needed!r} but {', '.join(columns)[:200]!r}; "
                "give a TSV of Common Voice (train.tsv, dev.tsv, test.tsv, validated.tsv, …)"
            )

    def entry(raw: bytes, where: str) -> Entry:
        # Without quoting: a quotation mark in a sentence is nothing but that.
        values = _decoded(raw).split("\t")
        if len(values) != len(columns):
            raise LineError(f"{len(values)} fields where the header has {len(columns)}; correct the tabs in it")
        row = dict(zip(columns, values, strict=True))
        clip = _file_name(row["path"], "path")
        # The first releases leave the ending out.
        clip += "" if Path(clip).suffix else ".mp3"
        fields = _kept({name: row.get(name) for name in _COMMON_VOICE_FIELDS}, ())
        return Entry(where, (path.parent / "clips" / clip,), row[text_name], Path(clip).stem, fields=fields)

    def entries(_tables: Path) -> Iterator[Entry | Rejected]:
        return _entries_of_lines(path, entry, first_line=2)

    return CorpusPart(f"{path.stem}/manifest.jsonl", path, entries)


# --- Kaldi ----------------------------------------------------------------------------------------------------

_KALDI_FILES = ("text", "wav.scp", "segments", "utt2spk", "spk2gender")
_GENDERS = {"m": "male", "f": "female"}


def _kaldi_pairs(path: Path, table: DiskTable, what: str) -> Iterator[Rejected]:
    """Fills a table with a file of lines «key value»; gives the lines that are none."""
    for number, raw in _lines(path):
        where = f"{path}:{number}"
        if raw is not None and not raw.strip():
            continue
        try:
            if raw is None:
                raise LineError(f"longer than {_LONGEST_LINE} bytes; is it the right file?")
            # Kaldi splits at white space of ASCII, so that a non-breaking space belongs to a word.
            key, *rest = (_decoded(part) for part in raw.split(None, 1))
            if not rest:
                raise LineError(f"{key!r} stands alone; write {what} behind it")
            if (earlier := table.add(key, rest[0].rstrip(" \t\v\f"), number)) is not None:
                raise LineError(f"{key!r} has a line already ({earlier[:80]!r}); keep one of them")
        except LineError as error:
            yield Rejected(where, str(error))


def _kaldi_part(folder: Path) -> CorpusPart:
    for name in _KALDI_FILES[:2]:
        if not (folder / name).is_file():
            raise ManifestError(f"{folder / name}: is missing; give a folder with Kaldi's wav.scp, text, utt2spk")
    return CorpusPart("manifest.jsonl", folder / "text", partial(_kaldi_entries, folder))


def _kaldi_entries(folder: Path, tables: Path) -> Iterator[Entry | Rejected]:
    """The lines of `text` with what the other files say of them, then every line elsewhere that nothing was said of.

    The files need not be sorted. Format: https://kaldi-asr.org/doc/data_prep.html
    """
    wanted = {
        "wav.scp": "the path of the audio",
        "segments": "recording, start and end",
        "utt2spk": "the speaker",
        "spk2gender": "m or f",
    }
    found = {name: DiskTable(tables / f"{name}.sqlite") for name in wanted if (folder / name).is_file()}
    try:
        for name, table in found.items():
            yield from _kaldi_pairs(folder / name, table, wanted[name])
        yield from _entries_of_lines(folder / "text", partial(_kaldi_entry, folder=folder, tables=found))
        for name, table in found.items():
            if name != "spk2gender":
                for key, line in table.unused():
                    of = "segments" if name == "wav.scp" and "segments" in found else "text"
                    yield Rejected(f"{folder / name}:{line}", f"{key!r} is of no line in {of}; add one or take it out")
    finally:
        for table in found.values():
            table.close()


def _kaldi_entry(raw: bytes, where: str, *, folder: Path, tables: Mapping[str, DiskTable]) -> Entry:
    utterance, *rest = (_decoded(part) for part in raw.split(None, 1))
    recording, start_s, end_s = utterance, None, None
    speaker = tables["utt2spk"].use(utterance) if "utt2spk" in tables else None
    if "segments" in tables:
        segment = tables["segments"].use(utterance)
        if segment is None:
            raise LineError(f"{utterance!r} has no line in segments; add one or take it out")
        recording, start_s, end_s = _kaldi_segment(segment, utterance)
    name = tables["wav.scp"].use(recording)
    if name is None:
        raise LineError(f"{recording!r} has no line in wav.scp; add one or take it out")
    if name.endswith("|") or name.startswith("|"):
        raise LineError(
            f"wav.scp has a command for {recording!r} ({name[:80]!r}), and commands are never run; "
            "run it once yourself and write the path of what comes out"
        )
    gender = tables["spk2gender"].value(speaker) if speaker is not None and "spk2gender" in tables else None
    fields = {"speaker": speaker, "gender": None if gender is None else _GENDERS.get(gender.lower(), gender)}
    # Kaldi starts from the folder that a recipe runs in, which is that of data/train or above it.
    bases = (folder, folder.parent, folder.parent.parent, Path.cwd())
    audio = tuple(base / _file_name(name, "wav.scp") for base in bases)
    text = rest[0].rstrip(" \t\v\f") if rest else ""
    return Entry(where, audio, text, utterance, start_s=start_s, end_s=end_s, fields=_kept(fields, ()))


def _kaldi_segment(segment: str, utterance: str) -> tuple[str, float, float | None]:
    words = segment.split()
    with suppress(ValueError):
        recording, start_s, end_s = words[0], float(words[1]), float(words[2])
        # -1 is the end of the recording.
        if len(words) == 3 and 0 <= start_s < math.inf and (end_s == -1 or start_s < end_s < math.inf):
            return recording, start_s, None if end_s == -1 else end_s
    raise LineError(
        f"segments has {segment[:80]!r} for {utterance!r}; write recording, start and end in seconds, the end later"
    ) from None


# --- AudioFolder ----------------------------------------------------------------------------------------------


def _metadata_files(folder: Path) -> list[Path]:
    found = [path for depth in ("", "*/", "*/*/") for path in sorted(folder.glob(f"{depth}metadata.*"))]
    for path in found:
        if path.suffix not in (".csv", ".jsonl"):
            raise ConfigError(f"{path}: only metadata.csv and metadata.jsonl can be read; convert it to one of them")
        if path.suffix == ".jsonl" and path.with_suffix(".csv") in found:
            raise ConfigError(f"{path}: there is a metadata.csv beside it; keep one of them")
    return found


def _audio_folder_parts(folder: Path, text_column: str | None) -> list[CorpusPart]:
    """A part for each metadata file, or one for each split where the audio of one file lies in folders of splits."""
    parts = []
    for path in _metadata_files(folder):
        if path.suffix == ".csv":
            entries = _csv_reader(path, text_column)
        else:
            entries = partial(
                _without_tables, path, partial(_audio_folder_json, folder=path.parent, text_column=text_column)
            )
        below = path.parent.relative_to(folder)
        splits = [split for split in _SPLITS if (path.parent / split).is_dir()]
        parts += [
            CorpusPart((below / split / "manifest.jsonl").as_posix(), path, partial(_only_split, entries, path, split))
            for split in splits
        ]
        rest = partial(_no_split, entries, path, splits) if splits else entries
        parts.append(CorpusPart((below / "manifest.jsonl").as_posix(), path, rest))
    if not parts:
        raise ManifestError(f"{folder}: has no metadata.csv or metadata.jsonl; write one with file_name and text")
    return parts


def _split_of(entry: Entry, path: Path) -> str:
    return entry.audio[0].relative_to(path.parent).parts[0]


def _only_split(
    entries: Callable[[Path], Iterator[Entry | Rejected]], path: Path, split: str, tables: Path
) -> Iterator[Entry | Rejected]:
    return (entry for entry in entries(tables) if isinstance(entry, Entry) and _split_of(entry, path) == split)


def _no_split(
    entries: Callable[[Path], Iterator[Entry | Rejected]], path: Path, splits: Sequence[str], tables: Path
) -> Iterator[Entry | Rejected]:
    return (entry for entry in entries(tables) if isinstance(entry, Rejected) or _split_of(entry, path) not in splits)


def _audio_folder_entry(row: Mapping[str, Any], where: str, folder: Path, text_column: str | None) -> Entry:
    file_name = _file_name(field_of(dict(row), "file_name", str, "a string"), "file_name")
    if Path(file_name).is_absolute():
        raise LineError(f'"file_name" is {file_name[:80]!r}; start from the folder of the metadata')
    text_name = text_column or _given(row, _TEXT_NAMES) or "transcription"
    text = field_of(dict(row), text_name, str, "a string")
    # 1.wav may be in every folder, so the folder belongs to the name.
    utterance_id = _given_id(row) or Path(file_name).with_suffix("").as_posix()
    duration_s = _number(row, "duration", zero=False)
    fields = _kept(row, ("file_name", text_name))
    return Entry(where, (folder / file_name,), text, utterance_id, duration_s, fields=fields)


def _audio_folder_json(raw: bytes, where: str, *, folder: Path, text_column: str | None) -> Entry:
    return _audio_folder_entry(json_object(raw.strip()), where, folder, text_column)


def _csv_reader(path: Path, text_column: str | None) -> Callable[[Path], Iterator[Entry | Rejected]]:
    try:
        columns = next(csv.reader([_header(path)]), [])
    except csv.Error as error:
        raise ManifestError(f"{path}:1: the header is not CSV ({error}); is it the right file?") from None
    text_name = text_column or _given(dict.fromkeys(columns), _TEXT_NAMES) or "transcription"
    for needed in ("file_name", text_name):
        if columns.count(needed) != 1:
            raise ManifestError(
                f"{path}:1: the header has no single column {needed!r} but {', '.join(columns)[:200]!r}; "
                "name the column of the texts with --text-column"
            )

    def entries(_tables: Path) -> Iterator[Entry | Rejected]:
        # Bytes that are not UTF-8 come through as surrogates, which nothing that is UTF-8 has.
        lines = (b"\xff" if raw is None else raw for _, raw in _lines(path))
        reader = csv.reader((line.decode("utf-8", "surrogateescape") + "\n" for line in lines), strict=True)
        last = 0
        while True:
            found: Entry | Rejected | None = None
            try:
                values = next(reader, None)
                if values is None:
                    return
                where = f"{path}:{last + 1}"
                if last and values:
                    found = _csv_entry(columns, values, where, path.parent, text_column)
            except csv.Error as error:
                where = f"{path}:{last + 1}"
                until = f"lines {last + 1} to {reader.line_num}: " if reader.line_num > last + 1 else ""
                found = Rejected(where, f"{until}not CSV ({error}); close every quotation mark, double those inside")
            except LineError as error:
                found = Rejected(where, str(error))
            last = reader.line_num
            if found is not None:
                yield found

    return entries


def _csv_entry(columns: list[str], values: list[str], where: str, folder: Path, text_column: str | None) -> Entry:
    if any("\udc80" <= character <= "\udcff" for value in values for character in value):
        raise LineError(f"not UTF-8, or longer than {_LONGEST_LINE} bytes; save it as UTF-8")
    if len(values) != len(columns):
        raise LineError(f"{len(values)} fields where the header has {len(columns)}; put texts with commas in quotes")
    row: dict[str, Any] = dict(zip(columns, values, strict=True))
    if "duration" in row:
        try:
            row["duration"] = float(row["duration"]) if row["duration"].strip() else None
        except ValueError:
            raise LineError(f'"duration" is {row["duration"][:80]!r}; give seconds as a number') from None
    return _audio_folder_entry(row, where, folder, text_column)


# --- Festvox --------------------------------------------------------------------------------------------------

_FESTVOX_LINE = re.compile(r'\(\s*(\S+)\s+"(.*)"\s*\)')
_FESTVOX_MEMBER = re.compile(r"(?:^|/)(?P<voice>[^/]+)/(?P<place>wav/[^/]+\.wav|etc/txt\.done\.data)$")


def festvox_member(member: str) -> Path | None:
    """Where a member of a voice's package belongs, voice/wav/name.wav or voice/etc/txt.done.data; None for others."""
    found = _FESTVOX_MEMBER.search(member)
    if found is None or found["voice"] in (".", "..") or "\\" in found[0] or "\0" in found[0]:
        return None
    return Path(found["voice"]) / found["place"]


def _festvox_parts(folder: Path) -> list[CorpusPart]:
    texts = sorted(folder.rglob("etc/txt.done.data"))
    if not texts:
        raise ManifestError(f"{folder}: has no etc/txt.done.data; give a Festvox voice, its folder or its .deb")
    return [CorpusPart("manifest.jsonl", text, partial(_without_tables, text, _festvox_entry(text))) for text in texts]


def _festvox_entry(text: Path) -> Callable[[bytes, str], Entry]:
    voice = text.parent.parent

    def entry(raw: bytes, where: str) -> Entry:
        found = _FESTVOX_LINE.fullmatch(_decoded(raw.strip()))
        if found is None:
            raise LineError('not of the form ( name "text" ); correct the line')
        name = _file_name(found[1], "name")
        if "/" in name or "\\" in name:
            raise LineError(f"{name!r} is no name of a recording; correct the line")
        spoken = re.sub(r"\\(.)", r"\1", found[2])  # as in Lisp
        return Entry(where, (voice / "wav" / f"{name}.wav",), spoken, name, fields={"speaker": voice.name})

    return entry


class _Extent:
    """`length` bytes of an open file from where it stands: all that tarfile's stream mode asks of a file."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file = file
        self._left = length

    def read(self, size: int) -> bytes:
        content = self._file.read(min(size, self._left))
        self._left -= len(content)
        return content


def deb_members(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The files of a Debian package whose names are wanted, one after the other; nothing is unpacked.

    Raises:
        ArchiveError: missing, damaged or not a Debian package.
    """
    # A .deb is an `ar` archive (deb(5)): an 8-byte magic, then members, each with a 60-byte header of text
    # fields (name 16 bytes, …, size 10 bytes at 48) and padded to even length. One is data.tar, compressed.
    try:
        with path.open("rb") as file:
            if file.read(8) != b"!<arch>\n":
                raise ArchiveError(f"{path}: not a Debian package; get one with: apt-get download festvox-ru")
            while header := file.read(60):
                name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
                if file.tell() + size > path.stat().st_size:
                    raise ArchiveError(f"{path}: damaged package (cut off); fetch it again")
                if name.startswith("data.tar"):
                    with tarfile.open(fileobj=_Extent(file, size), mode="r|*") as archive:  # type: ignore[call-overload]
                        for member in archive:
                            if member.isfile() and is_wanted(member.name):
                                yield member.name, archive.extractfile(member).read()
                    return
                file.seek(size + size % 2, os.SEEK_CUR)
    except FileNotFoundError:
        raise ArchiveError(f"{path}: no such file; get it with: apt-get download festvox-ru") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArchiveError(f"{path}: damaged package ({error}); fetch it again") from error
    raise ArchiveError(f"{path}: damaged package (no data.tar in it); fetch it again")


# --- Which corpus it is -----------------------------------------------------------------------------------------


def is_archive(source: Path) -> bool:
    """Whether a source has to be unpacked, by its name."""
    return source.name.lower().endswith((*ARCHIVE_SUFFIXES, ".deb")) and not source.is_dir()


def recognise(source: Path) -> str:
    """The kind of a corpus, by the names in its folder.

    Raises:
        ConfigError: it could be none of them, or does not exist.
    """
    name = source.name.lower()
    if source.is_file():
        if name.endswith(".deb"):
            return "festvox"
        if is_archive(source):
            return "course"
        if name.endswith(".tsv"):
            return "commonvoice"
        if name in ("metadata.csv", "metadata.jsonl"):
            return "audiofolder"
        if name.endswith((".jsonl", ".json")):
            in_course = re.fullmatch("(train|val|test)_opus", source.parent.name) or re.fullmatch(
                "test_opus", source.parent.parent.name
            )
            return "course" if in_course else "nemo"
        if name in _KALDI_FILES:
            return "kaldi"
    elif source.is_dir():
        if (source / "wav.scp").is_file():
            return "kaldi"
        if (source / "clips").is_dir() and any(source.glob("*.tsv")):
            return "commonvoice"
        if any(any(source.glob(f"{depth}metadata.*")) for depth in ("", "*/", "*/*/")):
            return "audiofolder"
        if any(source.rglob("etc/txt.done.data")):
            return "festvox"
        if any(source.rglob("*.jsonl")):
            return "course"
    else:
        raise ConfigError(f"{source}: no such file or folder; check the path")
    raise ConfigError(f"{source}: no corpus that is known by its files; say which it is: {', '.join(KINDS)}")


def index_files(kind: str, source: Path) -> list[Path]:
    """The files, apart from audio, that the corpus of a source consists of."""
    if source.is_file():
        return [source.parent / name for name in _KALDI_FILES] if kind == "kaldi" else [source]
    if kind in ("course", "golos"):
        return _course_manifests(source)
    if kind == "kaldi":
        return [source / name for name in _KALDI_FILES]
    if kind == "audiofolder":
        return _metadata_files(source)
    return sorted(source.rglob("etc/txt.done.data")) if kind == "festvox" else []


def corpus_parts(kind: str, sources: Sequence[Path], text_column: str | None) -> list[CorpusPart]:
    """What is to be read, with headers checked; `sources` are files and folders that exist, and no archives.

    Raises:
        ConfigError: a file where a folder is needed, or the other way round.
        ManifestError: nothing of the kind is there, or a header lacks a column.
    """
    if kind in ("course", "golos"):
        return _course_parts(sources, text_column)
    if kind == "nemo" or kind == "commonvoice":
        for source in sources:
            if source.is_dir():
                ending = "tsv" if kind == "commonvoice" else "json*"
                there = ", ".join(path.name for path in sorted(source.glob(f"*.{ending}"))[:20]) or "none"
                raise ConfigError(f"{source}: name the files in it that are to be imported; there are: {there}")
        if kind == "nemo":
            return _nemo_parts(sources, text_column)
        return [_common_voice_part(source, text_column) for source in sources]
    parts = []
    for source in sources:
        folder = source if source.is_dir() else source.parent
        if kind == "kaldi":
            parts.append(_kaldi_part(folder))
        elif kind == "audiofolder":
            parts += _audio_folder_parts(folder, text_column)
        else:
            parts += _festvox_parts(folder if source.is_dir() else folder.parent)
    return parts
