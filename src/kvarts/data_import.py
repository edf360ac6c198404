"""``kvarts data import``: corpora as others keep them become manifests.

A run has stages, joined by generators, so that a million lines take the memory of a few: lines are read (`corpora.py`),
given an id that is theirs alone, looked up or encoded by threads that run ahead, and written to a journal in the order
of the source. At the end the journal becomes manifests and lists of what was rejected, each of which appears whole.

All that is under way lies in one folder, `import.part` in the output folder or `<manifest>.part` beside the manifest.
A run that was killed is continued from the journal's last whole line, and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sqlite3
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kvarts import __version__, corpora
from kvarts.corpora import CorpusPart, DiskTable, Entry, Rejected
from kvarts.errors import ArchiveError, AudioError, ConfigError, KvartsError, ManifestError, OutputError
from kvarts.files import atomic_writer, digest_of, write_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GIVEN = ("speaker", "domain", "licence")
_SHOWN = 10  # rejected lines on standard error; the file has them all
_OVERSHOOT_S = 0.5  # by which a piece may end after its recording, as in Kaldi's extract-segments
_LOOKED_UP = 32  # files at a time whose headers a thread reads; a task for each would take longer than the header
_PIECES = 256  # of one recording that are cut in one pass over it
_BAD_NAMES = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)  # errors of a file system that does not take a name
_JOURNAL_LINE = re.compile(rb"[+-]\d+\t\{.*\}\n", re.DOTALL)
# What any file system takes as it is, and tells apart: no letters of two cases, no name of a Windows device.
_PLAIN_NAME = re.compile(r"(?!(?:con|prn|aux|nul|com\d|lpt\d)$)[a-z0-9][a-z0-9_-]{0,99}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Makes manifests of a speech corpus. Lines that are no utterance are named and listed in *.rejected.jsonl, the "
        "others imported; the exit code is then 1. An interrupted run goes on when the same command is given again."
    )
    parser.add_argument(
        "kind", choices=(*corpora.KINDS, "auto"), help="what the sources are; auto: tell by the files in them"
    )
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        type=Path,
        help="course, golos: its folder, tar or one manifest; commonvoice: train.tsv or the like; kaldi: the data "
        "folder; audiofolder: the folder; nemo: a manifest; festvox: a voice's folder or .deb",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR|FILE.jsonl",
        help="folder for manifests, or one manifest",
    )
    parser.add_argument(
        "--encode", choices=("opus",), help="copy all audio as 16 kHz mono Opus, cutting it where the corpus says so"
    )
    parser.add_argument(
        "--spoken",
        action="store_true",
        help="write numbers, dates and abbreviations as they are spoken; a text of which that is not certain is listed "
        "with what is wrong in it",
    )
    for name in _GIVEN:
        parser.add_argument(
            f"--{name}", metavar="NAME", help=f"{name} of the utterances of which the corpus tells none"
        )
    parser.add_argument("--text-column", metavar="NAME", help="the field with the text, where it has an unusual name")
    parser.add_argument("--strict", action="store_true", help="stop at the first bad line and write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace manifests that are there already")
    parser.add_argument("--workers", type=_positive, metavar="N", help="threads for audio (default: by the processor)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


@dataclass(frozen=True)
class _Target:
    """Where everything goes.

    Attributes:
        folder: what relative paths may not lead out of.
        manifest: the only manifest; None for one of each part's name in `folder`.
        work: the folder of what is under way.
    """

    folder: Path
    manifest: Path | None
    work: Path

    def manifest_of(self, part: CorpusPart) -> Path:
        return self.manifest or self.folder / part.output

    def unpacked(self) -> Path:
        return _beside(self.manifest or self.folder / "manifest.jsonl", "unpacked")


def _target(output: Path) -> _Target:
    output = output.resolve()
    if output.suffix == ".jsonl" and not output.is_dir():
        return _Target(output.parent, output, output.with_name(output.name + corpora.PART_SUFFIX))
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file; give -o a folder, or a name that ends in .jsonl")
    return _Target(output, None, output / f"import{corpora.PART_SUFFIX}")


def _beside(manifest: Path, what: str) -> Path:
    """A folder that belongs to a manifest: `audio` to manifest.jsonl, `dev_audio` to dev.jsonl."""
    return manifest.with_name(what if manifest.stem == "manifest" else f"{manifest.stem}_{what}")


def run(args: argparse.Namespace) -> int:
    """Imports as the arguments say; gives 1 if a line was rejected, else 0.

    Raises:
        ConfigError: impossible options, or the output is there already.
        ManifestError: a file of the corpus is missing or not what it should be; with --strict, any bad line.
        ArchiveError: a damaged or unsafe archive.
        OutputError: the result could not be written; the next run goes on from there.
    """
    target = _target(args.output)
    sources = [source.resolve() for source in args.sources]
    kind = _kind(args.kind, sources)
    if args.encode is not None:
        _check_opus_encoder()
    if args.spoken and importlib.util.find_spec("pymorphy3") is None:
        print(
            "kvarts: pymorphy3 is not installed, so more texts are rejected; pip install 'kvarts[morphology]'",
            file=sys.stderr,
        )
    if kind in ("nemo", "commonvoice") and (packed := [source for source in sources if corpora.is_archive(source)]):
        raise ConfigError(f"{packed[0]}: unpack it and name the files in it that are to be imported")
    index = [path for source in sources for path in corpora.index_files(kind, source) if path.exists()]
    if target.manifest in index:
        raise ConfigError(f"{target.manifest}: would be written over what it is made of; give another -o")
    if kind == "kaldi" and args.encode is None and (cut := [path for path in index if path.name == "segments"]):
        raise ConfigError(f"{cut[0]}: its utterances are pieces of recordings, which have to be cut; add --encode opus")
    options = {name: getattr(args, name) for name in (*_GIVEN, "encode", "spoken", "text_column", "strict")}
    states = [(str(path), (state := path.stat()).st_size, state.st_mtime_ns) for path in sorted(set(index))]
    fingerprint = digest_of(json.dumps([__version__, kind, list(map(str, sources)), str(target.work), options, states]))
    try:
        with _Journal.opened(target, fingerprint, args.overwrite) as journal:
            return _import(args, kind, sources, target, journal)
    except sqlite3.Error as error:
        raise OutputError(f"{target.work}: tables could not be written ({error}); free some space") from error


def _kind(kind: str, sources: Sequence[Path]) -> str:
    found = [corpora.recognise(source) if kind == "auto" or not source.exists() else kind for source in sources]
    if len(set(found)) > 1:
        raise ConfigError(f"{sources[0]} is {found[0]} and others are {', '.join(found[1:])}; import each on its own")
    return found[0]


def _check_opus_encoder() -> None:
    import soundfile

    if tuple(map(int, re.findall(r"\d+", soundfile.__version__)[:2])) < (0, 13):
        raise ConfigError("--encode opus needs soundfile 0.13 or newer; pip install -U soundfile")
    if "OPUS" not in soundfile.available_subtypes("OGG"):
        raise ConfigError(f"--encode opus needs libsndfile 1.0.29 or newer, not {soundfile.__libsndfile_version__}")


def _import(args: argparse.Namespace, kind: str, sources: Sequence[Path], target: _Target, journal: _Journal) -> int:
    is_fresh = not journal.done and not args.overwrite
    unpacked = [target.unpacked()] if not args.encode and any(map(corpora.is_archive, sources)) else []
    try:
        if is_fresh:
            _refuse_existing([*unpacked, *([] if target.manifest is None else [target.manifest])])
        parts = corpora.corpus_parts(kind, _unpacked(sources, target), args.text_column)
        manifests = list(dict.fromkeys(map(target.manifest_of, parts)))
        if target.manifest is not None and len(names := sorted({part.output for part in parts})) > 1:
            raise ConfigError(f"{args.sources[0]} makes several manifests ({', '.join(names)}); give -o a folder")
        if any(part.index in manifests for part in parts):
            raise ConfigError(f"{target.folder}: its manifests are what would be written; give another -o")
        if is_fresh:
            _refuse_existing(manifests)
            _refuse_existing([_beside(manifest, "audio") for manifest in manifests] if args.encode else [])
    except OutputError:
        raise
    except KvartsError:
        if not journal.done:
            journal.forget()
        raise
    workers = args.workers or min(16, (1 if args.encode else 4) * (os.cpu_count() or 1))
    audio = _Audio(args, target, manifests)
    try:
        _process(args, target, parts, manifests, journal, audio, workers)
    except _StrictError as error:
        journal.forget()
        raise ManifestError(str(error)) from None
    if not journal.done:
        journal.forget()
        raise ManifestError(f"{args.sources[0]}: there is no utterance in it; is it the right one?")
    if not journal.rows:
        print("kvarts: no utterance could be imported, so no manifest is written", file=sys.stderr)
    return _finish(args, target, manifests, journal)


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: exists; give another -o, or --overwrite to replace what is in it")


# --- Archives -------------------------------------------------------------------------------------------------


def _unpacked(sources: Sequence[Path], target: _Target) -> list[Path]:
    """The sources, archives replaced by folders that were made of them; what is there whole is not made again."""
    found: list[Path] = []
    names: set[str] = set()
    for number, source in enumerate(sources, start=1):
        if not corpora.is_archive(source):
            found.append(source)
            continue
        suffix = next(suffix for suffix in (*corpora.ARCHIVE_SUFFIXES, ".deb") if source.name.lower().endswith(suffix))
        name = source.name[: -len(suffix)]
        name = f"{name}-{number}" if name in names else name
        names.add(name)
        folder = target.work / "unpacked" / name
        if not folder.is_dir():
            beginning = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(beginning, ignore_errors=True)
            try:
                if suffix == ".deb":
                    _unpack_deb(source, beginning)
                else:
                    from kvarts.download import unpack

                    unpack(source, beginning)
            except OutputError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in _BAD_NAMES:
                    raise ArchiveError(
                        f"{source}: has a file of a name that cannot be here ({error.__cause__.strerror}); fetch it "
                        "again, or unpack it by hand"
                    ) from error
                raise
            beginning.rename(folder)
        found.append(folder)
    return found


def _unpack_deb(package: Path, folder: Path) -> None:
    try:
        for member, content in corpora.deb_members(package, lambda name: corpora.festvox_member(name) is not None):
            place = corpora.festvox_member(member)
            assert place is not None
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(content)
    except OSError as error:
        raise write_error(folder, error) from error
    if not folder.is_dir():
        raise ArchiveError(f"{package}: no voice in it; give festvox-ru's .deb or the like")


# --- The journal ----------------------------------------------------------------------------------------------


class _Journal:
    """What has been done: a line for every utterance and every rejected line, in the order of the source.

    The first line is the fingerprint of source and options, then ``+0<tab>{…}`` is a line of the first manifest and
    ``-0<tab>{…}`` one that was rejected from it.
    """

    def __init__(self, target: _Target, file: BinaryIO) -> None:
        self._target = target
        self._file = file
        self.rows = 0
        self.rejected = 0

    @property
    def done(self) -> int:
        """How many lines of the source need not be looked at again."""
        return self.rows + self.rejected

    @classmethod
    @contextmanager
    def opened(cls, target: _Target, fingerprint: str, overwrite: bool) -> Iterator[_Journal]:
        """The journal of this import, with what an earlier run has left of it.

        Raises:
            ConfigError: another import is unfinished, or under way.
        """
        path = target.work / "journal.jsonl"
        created = next((folder for folder in reversed(target.work.parents) if not folder.exists()), None)
        try:
            target.work.mkdir(parents=True, exist_ok=True)
            with path.open("a+b", buffering=0) as file:
                _lock(path, file)
                journal = cls(target, file)
                file.seek(0)
                head = file.readline()
                if head and head != fingerprint.encode() + b"\n":
                    # A head without its end was written by a run that did no more.
                    if head.endswith(b"\n") and not overwrite:
                        raise ConfigError(
                            f"{target.work}: an unfinished import of something else; delete it, or give --overwrite"
                        )
                    journal.forget(keep_work=True)
                    head = b""
                if head:
                    journal._count()
                else:
                    file.truncate(0)
                    file.write(fingerprint.encode() + b"\n")
                yield journal
        except BrokenPipeError:  # of standard output
            raise
        except OSError as error:
            raise write_error(path, error) from error
        finally:
            if created is not None:  # by us: nothing of it stays that nothing is in
                for folder in (target.folder, *target.folder.parents):
                    with suppress(OSError):
                        folder.rmdir()
                    if folder == created:
                        break

    def _count(self) -> None:
        """Counts the whole lines and cuts off what a kill or a power cut has left behind them."""
        with (self._target.work / "journal.jsonl").open("rb") as file:
            end = len(file.readline())
            for line in file:
                if not _JOURNAL_LINE.fullmatch(line):
                    break
                end += len(line)
                self._add(line)
        self._file.truncate(end)

    def _add(self, line: bytes) -> None:
        if line.startswith(b"+"):
            self.rows += 1
        else:
            self.rejected += 1

    def write(self, lines: Sequence[bytes]) -> None:
        """Adds lines that must not be lost again."""
        content = b"".join(lines)
        while content:  # a disk that is nearly full takes a part and says nothing
            content = content[self._file.write(content) :]
        for line in lines:
            self._add(line)

    def outcomes(self) -> Iterator[bool]:
        """Of each line of the source that is done whether it is an utterance."""
        with (self._target.work / "journal.jsonl").open("rb") as file:
            next(file)
            for line in islice(file, self.done):
                yield line.startswith(b"+")

    def lines(self, number: int) -> Iterator[tuple[bool, bytes]]:
        """Of one manifest: whether it is an utterance, and its JSON."""
        with (self._target.work / "journal.jsonl").open("rb") as file:
            next(file)
            for line in file:
                head, _, content = line.partition(b"\t")
                if int(head[1:]) == number:
                    yield head.startswith(b"+"), content

    def forget(self, keep_work: bool = False) -> None:
        """Throws away all that is under way; with `keep_work` the folder and the empty journal stay."""
        if not keep_work:
            self._file.close()
        for entry in self._target.work.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif not (keep_work and entry.name == "journal.jsonl"):
                entry.unlink(missing_ok=True)
        if not keep_work:
            with suppress(OSError):
                self._target.work.rmdir()


def _lock(path: Path, file: BinaryIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{path.parent}: another import is writing there; wait for it, or give another -o") from None


# --- Lines, ids, audio ------------------------------------------------------------------------------------------


class _StrictError(Exception):
    """The first bad line of a strict import."""


@dataclass(frozen=True)
class _Item:
    """A line of the source.

    Attributes:
        number: of the manifest that it belongs to.
        keys: what no other utterance may have, its id first, in the table of ids.
        clash: what is said before and after the place of an earlier line with the first of the keys; None if there is
            none. Which of them has it shows only when the earlier one is done, for that may be rejected.
    """

    number: int
    found: Entry | Rejected
    keys: tuple[str, ...] = ()
    clash: tuple[str, str] | None = None


def _process(
    args: argparse.Namespace,
    target: _Target,
    parts: Sequence[CorpusPart],
    manifests: Sequence[Path],
    journal: _Journal,
    audio: _Audio,
    workers: int,
) -> None:
    """Everything up to the last line of the journal."""
    from kvarts.progress import progress_bar, run_ahead

    total = sum(_line_count(part.index) for part in parts)
    numbers = [manifests.index(target.manifest_of(part)) for part in parts]
    ids = DiskTable(target.work / "ids.sqlite")
    try:
        items = _with_ids(parts, numbers, target.work, ids)
        for is_row, item in zip(journal.outcomes(), items):  # noqa: B905 - in this order, or an item would be lost
            _keep_ids(item, is_row, ids)
        batches = _batches(items, encodes=args.encode is not None)
        with progress_bar(f"importing {args.output.name}", total) as advance:
            advance(journal.done)
            for batch, done in run_ahead(audio.finished, batches, workers=workers, ahead=2 * workers):
                lines = [_settled(item, line, ids, audio) for item, line in zip(batch, done, strict=True)]
                for line in lines:
                    if args.strict and line.startswith(b"-"):
                        rejected = json.loads(line.partition(b"\t")[2])
                        raise _StrictError(f"{rejected['where']}: {rejected['reason']}")
                journal.write(lines)
                advance(len(lines))
    finally:
        ids.close()


def _line_count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _with_ids(parts: Sequence[CorpusPart], numbers: Sequence[int], tables: Path, ids: DiskTable) -> Iterator[_Item]:
    """All lines of all parts, every utterance with an id, and with what is wrong where another line has it."""
    for part, number in zip(parts, numbers, strict=True):
        for entry in part.entries(tables):
            if isinstance(entry, Rejected):
                yield _Item(number, entry)
            else:
                yield _with_id(entry, part.index.parent, number, ids)


def _with_id(entry: Entry, folder: Path, number: int, ids: DiskTable) -> _Item:
    if entry.utterance_id is not None:
        key = f"{number}\t{entry.utterance_id}"
        is_first = ids.add(key, entry.where) is None
        clash = (f"id {entry.utterance_id[:80]!r} is that of ", " already; make them differ")
        return _Item(number, entry, (key,), None if is_first else clash)
    # Files of one name in several folders, and pieces of one file, are told apart by what they are.
    name = f"{os.path.relpath(entry.audio[0], folder)}\t{entry.start_s}\t{entry.end_s}"
    long_id = f"{entry.audio[0].stem}-{digest_of(name)[:8]}"
    clash = ("the same audio as ", "; take one of them out, or give them ids")
    if ids.add(f"{number}\t\t{name}", entry.where) is not None:
        return _Item(number, replace(entry, utterance_id=long_id), (f"{number}\t\t{name}",), clash)
    for utterance_id in (entry.audio[0].stem, long_id):
        key = f"{number}\t{utterance_id}"
        if ids.add(key, entry.where) is None:
            return _Item(number, replace(entry, utterance_id=utterance_id), (key, f"{number}\t\t{name}"))
    return _Item(number, replace(entry, utterance_id=long_id), (key,), clash)


def _settled(item: _Item, line: bytes, ids: DiskTable, audio: _Audio) -> bytes:
    """The line of the journal, now that all lines before are settled."""
    if item.clash is not None:
        if holder := ids.value(item.keys[0]):
            before, after = item.clash
            return audio.rejected_line(item.number, item.found.where, f"{before}{holder}{after}")
        _, [line] = audio.finished([replace(item, clash=None)])
    _keep_ids(item, line.startswith(b"+"), ids)
    return line


def _keep_ids(item: _Item, is_row: bool, ids: DiskTable) -> None:
    """An id that a rejected line has is free for the next line that has it, which then keeps it."""
    if is_row and item.clash is not None:
        ids.put(item.keys[0], item.found.where)
    elif not is_row and item.clash is None:
        for key in item.keys:
            ids.put(key, "")


def _batches(items: Iterable[_Item], *, encodes: bool) -> Iterator[list[_Item]]:
    """What one thread does at a time: headers of many files, one file, or pieces of one recording in a row."""
    batch: list[_Item] = []
    for item in items:
        if batch and not _goes_with(batch, item, encodes):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _goes_with(batch: Sequence[_Item], item: _Item, encodes: bool) -> bool:
    if not encodes:
        return len(batch) < _LOOKED_UP
    first, entry = batch[0].found, item.found
    if isinstance(first, Rejected) or isinstance(entry, Rejected) or first.start_s is None or entry.start_s is None:
        return False
    return first.audio == entry.audio and len(batch) < _PIECES


class _RejectedError(Exception):
    """What is wrong with an utterance and what to do about it."""


def _spoken(entry: Entry) -> Entry:
    """The same with its text as it is spoken."""
    from kvarts.spoken import spoken_rows

    [(row, notes)] = spoken_rows([{"text": entry.text}])
    if notes:
        what = ", ".join(f"«{note.what}» ({note.kind})" for note in notes)
        raise _RejectedError(f"text has {what}; {notes[0].remedy}")
    text = row.pop("text")
    return replace(entry, text=text, fields={**entry.fields, **row})


class _Audio:
    """What is done to batches of utterances, by several threads at a time."""

    def __init__(self, args: argparse.Namespace, target: _Target, manifests: Sequence[Path]) -> None:
        self._encodes: bool = args.encode is not None
        self._speaks: bool = args.spoken
        self._defaults = {name: getattr(args, name) for name in _GIVEN}
        self._target = target
        self._manifests = manifests

    def finished(self, batch: list[_Item]) -> tuple[list[_Item], list[bytes]]:
        """The batch, and a line of the journal for each of it; an empty one where another line may have its id.

        Raises:
            OutputError: audio could not be written.
        """
        first = batch[0].found
        if not self._encodes or isinstance(first, Rejected) or first.start_s is None:
            return batch, [b"" if item.clash else self._line(item.number, item.found) for item in batch]
        # Each is encoded as soon as it is complete, so that memory holds few of them.
        lines = [b""] * len(batch)
        own = [index for index, item in enumerate(batch) if not item.clash]
        pieces = [entry for index in own if isinstance(entry := batch[index].found, Entry)]
        for place, piece in _cut(pieces) if pieces else ():
            item = batch[own[place]]
            lines[own[place]] = self._line(item.number, item.found, piece)
        return batch, lines

    def _line(self, number: int, entry: Entry | Rejected, piece: NDArray[np.float32] | str | None = None) -> bytes:
        if isinstance(entry, Rejected):
            return self.rejected_line(number, entry.where, entry.reason)
        try:
            if self._speaks:
                entry = _spoken(entry)
            audio, duration_s = self._encoded(number, entry, piece) if self._encodes else self._looked_up(number, entry)
            return self._row_line(number, entry, audio, duration_s)
        except (_RejectedError, AudioError) as error:
            return self.rejected_line(number, entry.where, str(error))

    def rejected_line(self, number: int, where: str, reason: str) -> bytes:
        """A line of the journal for what is no utterance."""
        # What was unpacked will lie elsewhere, or be gone: it is named by its archive.
        unpacking = f"{self._target.work / 'unpacked'}{os.sep}"
        content = {"where": where.replace(unpacking, ""), "reason": reason.replace(unpacking, "")}
        return _journal_line("-", number, content)

    def _row_line(self, number: int, entry: Entry, audio: str, duration_s: float) -> bytes:
        row = {"id": entry.utterance_id, "audio_filepath": audio, "text": entry.text, "duration": duration_s}
        given = {name: value for name, value in self._defaults.items() if value is not None}
        try:
            return _journal_line("+", number, {**row, **given, **entry.fields})
        except UnicodeEncodeError:
            raise _RejectedError(f"{audio!r} is no UTF-8 name; rename the file or its folder") from None
        except (ValueError, RecursionError) as error:
            raise _RejectedError(f"a field that JSON cannot say ({error}); correct it") from None

    def _looked_up(self, number: int, entry: Entry) -> tuple[str, float]:
        """The path from the manifest to the audio where it lies, and its duration."""
        from kvarts.audio import audio_duration_s

        path = _existing(entry.audio)
        # A source that tells the duration saves opening the file; that it is there is looked at all the same.
        if entry.duration_s is None or entry.start_s is not None or not _has_content(path):
            duration_s = audio_duration_s(path)
            if entry.start_s is not None and (entry.start_s > 0 or _differs(entry.duration_s, duration_s)):
                raise _RejectedError(f"a piece of {path}, which has to be cut; add --encode opus")
        else:
            duration_s = entry.duration_s
        unpacking = self._target.work / "unpacked"
        if path.is_relative_to(unpacking):
            path = self._target.unpacked() / path.relative_to(unpacking)
        folder = self._manifests[number].parent
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix(), duration_s
        if path.is_relative_to(self._target.folder):
            return Path(os.path.relpath(path, folder)).as_posix(), duration_s
        return str(path), duration_s

    def _encoded(self, number: int, entry: Entry, piece: NDArray[np.float32] | str | None) -> tuple[str, float]:
        """The path from the manifest to the Opus copy, written to the folder of what is under way, and its duration."""
        from kvarts.audio import read_audio
        from kvarts.frames import SAMPLE_RATE
        from kvarts.sample import encode_opus

        assert entry.utterance_id is not None  # `_with_id` has seen to it
        if isinstance(piece, str):
            raise _RejectedError(piece)
        if piece is not None:
            waveform = piece
        else:
            path = _existing(entry.audio)
            waveform = read_audio(path)
            if _differs(entry.duration_s, len(waveform) / SAMPLE_RATE):
                raise _RejectedError(
                    f"the duration is {entry.duration_s:g} s but {path} has {len(waveform) / SAMPLE_RATE:.3f} s; "
                    "correct the duration or the file"
                )
        digest = hashlib.sha256(entry.utterance_id.encode("utf-8", "surrogatepass")).hexdigest()
        below = f"{digest[:2]}/{_file_stem(entry.utterance_id, digest)}.opus"
        # libsndfile would give each stream a random number, and the same sound other bytes each time.
        _write_whole(self._target.work / "audio" / str(number) / below, encode_opus(waveform, int(digest[:8], 16)))
        audio = f"{_beside(self._manifests[number], 'audio').name}/{below}"
        return audio, len(waveform) / SAMPLE_RATE


def _journal_line(sign: str, number: int, content: dict[str, Any]) -> bytes:
    # What is rejected must be listed whatever its name; only an utterance has to be UTF-8.
    errors = "strict" if sign == "+" else "backslashreplace"
    return f"{sign}{number}\t{json.dumps(content, ensure_ascii=False, allow_nan=False)}\n".encode("utf-8", errors)


def _existing(paths: Sequence[Path]) -> Path:
    return paths[0] if len(paths) == 1 else next((path for path in paths if _has_content(path)), paths[0])


def _has_content(path: Path) -> bool:
    try:
        state = path.stat()
        return stat.S_ISREG(state.st_mode) and state.st_size > 0
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        return False


def _differs(told_s: float | None, actual_s: float) -> bool:
    from kvarts.checks import DURATION_TOLERANCE_RATIO, DURATION_TOLERANCE_S

    tolerance_s = max(DURATION_TOLERANCE_S, DURATION_TOLERANCE_RATIO * actual_s)
    return told_s is not None and abs(told_s - actual_s) > tolerance_s


def _file_stem(utterance_id: str, digest: str) -> str:
    """A file name for an id: itself where that is plain, else what is plain of it and a piece of its hash."""
    if _PLAIN_NAME.fullmatch(utterance_id):
        return utterance_id
    return f"{re.sub('[^a-z0-9_-]+', '-', utterance_id.lower()).strip('-')[:60]}-{digest[:16]}".lstrip("-")


def _cut(pieces: Sequence[Entry]) -> Iterator[tuple[int, NDArray[np.float32] | str]]:
    """Cuts pieces out of one recording in one pass over it.

    Yields:
        The number of each piece, and its samples (samples,) at 16 kHz or what is wrong with it; each as soon as it is
        known.
    """
    import numpy as np

    from kvarts.audio import audio_blocks
    from kvarts.frames import SAMPLE_RATE

    path = _existing(pieces[0].audio)
    starts = [round((piece.start_s or 0) * SAMPLE_RATE) for piece in pieces]
    ends = [None if piece.end_s is None else round(piece.end_s * SAMPLE_RATE) for piece in pieces]
    unfinished: dict[int, list[NDArray[np.float32]]] = {index: [] for index in range(len(pieces))}
    position = 0  # samples of the recording that have gone by
    problem = None
    try:
        for block in audio_blocks(path):
            for index, parts in list(unfinished.items()):
                end = ends[index]
                part = block[max(starts[index] - position, 0) : None if end is None else max(end - position, 0), 0]
                if len(part):
                    parts.append(part.copy())
                if end is not None and end <= position + len(block) and parts:
                    yield index, np.concatenate(unfinished.pop(index))
            position += len(block)
            if not unfinished:
                return
    except AudioError as error:
        problem = str(error)
    for index, parts in unfinished.items():
        end = ends[index]
        if problem is not None:
            yield index, problem
        elif parts and (end is None or end <= position + round(_OVERSHOOT_S * SAMPLE_RATE)):
            yield index, np.concatenate(parts)
        else:
            until = "its end" if end is None else f"{pieces[index].end_s:g} s"
            yield (
                index,
                f"{pieces[index].start_s:g} s to {until} is not within {path}, which has "
                f"{position / SAMPLE_RATE:.3f} s; correct the times or the file",
            )


def _write_whole(path: Path, content: bytes) -> None:
    """Like `atomic_writer`, which looks through the whole folder each time: too long among thousands of files."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error


# --- The end ----------------------------------------------------------------------------------------------------


def _finish(args: argparse.Namespace, target: _Target, manifests: Sequence[Path], journal: _Journal) -> int:
    """Moves audio to its place, then writes what names it. Killed in between, the next run does the rest."""
    try:
        for number, manifest in enumerate(manifests):
            _move_into(target.work / "audio" / str(number), _beside(manifest, "audio"))
        if args.encode is None:
            _move_into(target.work / "unpacked", target.unpacked())
    except OSError as error:
        raise write_error(target.folder, error) from error
    told: list[str] = []
    shown: list[str] = []
    for number, manifest in enumerate(manifests):
        written, rejected = _write_results(manifest, number, journal)
        told += written
        shown += rejected
    journal.forget()
    print(*told, sep="\n")
    if shown:
        more = [f"… and {journal.rejected - _SHOWN} more"] if journal.rejected > _SHOWN else []
        lines = "".join(f"\n  {line}" for line in [*shown[:_SHOWN], *more])
        print(f"kvarts: {journal.rejected} lines rejected:{lines}", file=sys.stderr)
    return 1 if journal.rejected else 0


def _write_results(manifest: Path, number: int, journal: _Journal) -> tuple[list[str], list[str]]:
    """Writes a manifest and the list of what was rejected from it.

    Returns:
        What was written, in words, and the first lines that were rejected.
    """
    rows, seconds, rejected = 0, 0.0, 0
    shown: list[str] = []
    for is_row, content in journal.lines(number):
        if is_row:
            rows += 1
            seconds += json.loads(content)["duration"]
        else:
            rejected += 1
            if len(shown) < _SHOWN:
                bad = json.loads(content)
                shown.append(f"{bad['where']}: {bad['reason']}")
    list_path = manifest.with_name(manifest.stem + corpora.REJECTED_SUFFIX)
    for path, wanted, count in ((manifest, True, rows), (list_path, False, rejected)):
        if count:
            with atomic_writer(path) as file:
                file.writelines(content for is_row, content in journal.lines(number) if is_row == wanted)
    if not rejected:
        list_path.unlink(missing_ok=True)  # of an import before
    told = [f"{manifest}: {rows:,} utterances, {seconds / 3600:.2f} h"] if rows else []
    return told + ([f"{list_path}: {rejected:,} lines rejected"] if rejected else []), shown


def _move_into(source: Path, folder: Path) -> None:
    """Moves all files of a folder to the same places of another one, in which other files stay."""
    if not source.is_dir():
        return
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        source.rename(folder)
        return
    for entry in source.iterdir():
        if entry.is_dir():
            _move_into(entry, folder / entry.name)
        else:
            entry.replace(folder / entry.name)
    source.rmdir()
