"""A training manifest of any size: five numbers of each utterance in memory, its line read when it is asked for.

To read and check a million lines takes a minute or two, so what came of it is kept in a folder, from 20,000 lines on: a
second start reads the manifest's bytes, to know that they are the same, and nothing else. `kvarts.manifest` is for
manifests that one looks at as a whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvarts.checks import Problem, check_audio, target_problem
from kvarts.errors import ManifestError, OutputError, listing
from kvarts.files import atomic_writer, digest_of, sha256_of
from kvarts.manifest import BOM, LineError, Utterance, read_lines, utterance_of
from kvarts.progress import progress_bar

logger = logging.getLogger("lightning")

KEPT_FROM: Final = 20_000  # lines; fewer are read and checked in two seconds
# To be raised whenever the columns, an utterance's identity or what target_problem says become others.
_VERSION: Final = 1
_MOST_KEPT = 16  # manifests; of a million lines 41 MB each


@dataclass(frozen=True)
class _Columns:
    """What is known of every line of a manifest; arrays are (lines,), in its order."""

    number: NDArray[np.int64]  # of the line, from 1
    offset: NDArray[np.int64]  # of its first byte in the file
    size: NDArray[np.int64]  # bytes
    duration_s: NDArray[np.float64]
    identity: NDArray[np.int64]  # a hash of id, duration and text

    def lines(self, chosen: NDArray[Any]) -> _Columns:
        return _Columns(*(getattr(self, name)[chosen] for name in _NAMES))


_NAMES = tuple(_Columns.__dataclass_fields__)


class UtteranceTable(Sequence[Utterance]):
    """Utterances of a manifest, in its order; an item is read from the file anew each time.

    Reading one takes 50 µs, beside the 90 that features from a warm cache take. Another process opens the file for
    itself.

    Raises (when an item is read):
        ManifestError: the manifest is no longer what it was when the table was made.
    """

    def __init__(self, path: Path, columns: _Columns) -> None:
        self.path = path
        self._columns = columns
        self._opened: tuple[int, BinaryIO] | None = None  # by which process

    @property
    def duration_s(self) -> NDArray[np.float64]:
        """(utterances,) seconds, as the manifest says."""
        return self._columns.duration_s

    @property
    def line(self) -> NDArray[np.int64]:
        """(utterances,) numbers of their lines, ascending."""
        return self._columns.number

    @property
    def digest(self) -> str:
        """Tells these utterances from others: ids, durations and texts in this order, not where the files lie."""
        return digest_of(self._columns.identity)

    def select(self, places: ArrayLike) -> UtteranceTable:
        """Some of them: by their places, or by a truth value for each."""
        return UtteranceTable(self.path, self._columns.lines(np.asarray(places)))

    def __len__(self) -> int:
        return len(self._columns.number)

    @overload
    def __getitem__(self, place: int) -> Utterance: ...
    @overload
    def __getitem__(self, place: slice) -> UtteranceTable: ...
    def __getitem__(self, place: int | slice) -> Utterance | UtteranceTable:
        if isinstance(place, slice):
            return self.select(np.arange(len(self))[place])
        columns = self._columns
        number = int(columns.number[place])
        try:
            file = self._file()
            file.seek(int(columns.offset[place]))
            content = file.read(int(columns.size[place]))
            utterance = utterance_of(content.removeprefix(BOM) if number == 1 else content, self.path, number)
            if _identity(utterance) == columns.identity[place]:
                return utterance
        except OSError as error:
            raise ManifestError(f"{self.path}:{number}: could not be read ({error.strerror or error})") from error
        except LineError:
            pass
        raise ManifestError(
            f"{self.path}:{number}: the manifest was changed since the run began; start again, and leave it as it is"
        )

    def _file(self) -> BinaryIO:
        # A file opened before a fork would share its position with the other process.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self.path.open("rb")
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class TrainingManifest:
    """A manifest, and what is wrong with its utterances.

    Args:
        path: of the manifest.
        stride: log-mel frames for each encoded frame.
        folder: where what is found of large manifests is kept, or None.

    Raises:
        ManifestError: as `kvarts.manifest.read_manifest`.
    """

    def __init__(self, path: Path, stride: int, folder: Path | None) -> None:
        self._kept_at: Path | None = None
        kept = None
        if folder is not None and _might_be_large(path):
            what = (str(_VERSION), str(stride), str(path.resolve().parent))  # audio paths are relative to it
            with suppress(OSError):  # reading its lines says what is wrong
                self._kept_at = folder / f"{digest_of(sha256_of(path), *what)}.npz"
                kept = _read_kept(self._kept_at)
        found = kept or _read_all(path, stride)
        self.table = UtteranceTable(path, found.columns)
        self._found = found
        if kept is None:
            self._keep()

    def target_problems(self, part: UtteranceTable) -> list[Problem]:
        """What `kvarts.checks.target_problem` says of some of the utterances."""
        return [
            Problem(self.table[place], what, remedy)
            for place, what, remedy in self._found.bad_targets
            if _has(part.line, int(self.table.line[place]))
        ]

    def audio_problems(self, part: UtteranceTable) -> list[Problem]:
        """What `kvarts.checks.check_audio` says of some of the utterances.

        Of a manifest that is kept, files found to be good are not opened again.
        """
        has_good_audio = self._found.has_good_audio
        places = np.searchsorted(self.table.line, part.line)
        unknown = places[~has_good_audio[places]]
        problems = check_audio(self.table.select(unknown))
        bad = np.searchsorted(self.table.line, [problem.utterance.line for problem in problems])
        has_good_audio[unknown] = True
        has_good_audio[bad] = False
        if len(unknown) > len(bad):
            self._keep()
        return problems

    def _keep(self) -> None:
        if self._kept_at is None or len(self.table) < KEPT_FROM:
            return
        found = self._found
        arrays = {name: getattr(found.columns, name) for name in _NAMES}
        arrays["has_good_audio"] = found.has_good_audio
        arrays["bad_targets"] = np.frombuffer(json.dumps(found.bad_targets).encode(), np.uint8)
        try:
            with atomic_writer(self._kept_at) as file:
                np.savez(file, **arrays)
        except OutputError as error:
            logger.warning("what was read of %s is not kept for the next start: %s", self.table.path, error)
            return
        with suppress(OSError):
            by_age = sorted(self._kept_at.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime)
            for path in by_age[:-_MOST_KEPT]:
                path.unlink()


@dataclass(frozen=True)
class _Found:
    columns: _Columns
    bad_targets: list[tuple[int, str, str]]  # place, what is wrong, what to do
    has_good_audio: NDArray[np.bool_]  # (lines,)


def _read_all(path: Path, stride: int) -> _Found:
    rows: dict[str, array[Any]] = {name: array("d" if name == "duration_s" else "q") for name in _NAMES}
    bad_targets: list[tuple[int, str, str]] = []
    offenders: list[str] = []
    with progress_bar(f"reading {path.name}", _size(path)) as advance:
        for line in read_lines(path):
            advance(line.size)
            utterance = line.utterance
            if utterance is None:
                offenders.append(f"{path}:{line.number}: {line.error}")
                continue
            problem = target_problem(utterance, stride)
            if problem is not None:
                bad_targets.append((len(rows["number"]), problem.what, problem.remedy))
            values = (line.number, line.offset, line.size, utterance.duration_s, _identity(utterance))
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
    if offenders:
        raise ManifestError(listing(f"{path}: bad lines", offenders))
    columns = _Columns(**{name: np.asarray(column) for name, column in rows.items()})
    return _Found(columns, bad_targets, np.zeros(len(columns.number), bool))


def _read_kept(path: Path) -> _Found | None:
    try:
        with np.load(path) as kept:
            columns = _Columns(*(kept[name] for name in _NAMES))
            bad_targets = [(place, what, remedy) for place, what, remedy in json.loads(kept["bad_targets"].tobytes())]
            found = _Found(columns, bad_targets, kept["has_good_audio"])
        os.utime(path)  # the last to be used is the last to go
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None  # not there, or damaged: it is made anew
    return found


def _might_be_large(path: Path) -> bool:
    return _size(path) >= KEPT_FROM * len('{"audio_filepath":"1","text":"а","duration":1}')


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _identity(utterance: Utterance) -> int:
    what = repr((utterance.utterance_id, utterance.duration_s, utterance.text)).encode()
    return int.from_bytes(hashlib.blake2b(what, digest_size=8).digest(), "little", signed=True)


def _has(ascending: NDArray[np.int64], number: int) -> bool:
    place = int(np.searchsorted(ascending, number))
    return place < len(ascending) and int(ascending[place]) == number
