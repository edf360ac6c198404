"""``kvarts data shard``: a manifest and its audio files as WebDataset tars, and an index of what lies where in them.

A shard is a tar of pairs KEY.json, KEY.opus (or whatever the file was): the manifest's row and the audio file as they
were. KEY is the utterance's place in the shuffled order, nine digits. Unpacked, each .json is the row of a manifest.
``index.jsonl`` beside the shards tells a run what it has to know before it reads any of them. JSON Lines: a header,

    {"kvarts_shards": 1, "shards": 12, "utterances": 17612, "seconds": 65000.1, "shuffle_seed": 0, "source": "9f86d0…"}

and a line a shard, in the order of their names:

    {"name": "shard-000000.tar", "bytes": …, "sha256": …, "utterances": …, "seconds": …, "first": 0,
     "duration_s": […], "json_offset": […], "json_bytes": […], "json_crc32": […],
     "audio_offset": […], "audio_bytes": […], "audio_crc32": […], "audio_suffix": […]}

with one entry an utterance in each list: offsets, lengths in bytes and CRC-32 of the members' contents. "first" is the
KEY of the shard's first utterance, the number of those before it; "seconds" is the sum of durations.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvarts.errors import AudioError, ConfigError, OutputError, TrainingDataError, listing
from kvarts.files import atomic_text_writer, atomic_writer, cache_dir, sha256_of, write_error
from kvarts.manifest import Utterance
from kvarts.progress import progress_bar, run_ahead
from kvarts.utterance_table import TrainingManifest, UtteranceTable

INDEX: Final = "index.jsonl"
FORMAT: Final = 1
UTTERANCE_COLUMNS: Final = (
    *("duration_s", "json_offset", "json_bytes", "json_crc32"),
    *("audio_offset", "audio_bytes", "audio_crc32", "audio_suffix"),
)
# What is finished of an unfinished run: a line with "source", then the index's lines, in any order.
_JOURNAL = "index.partial.jsonl"
_BLOCK = tarfile.BLOCKSIZE
_STRIDE = 4  # log-mel frames for each encoded frame, of every network that ships


@dataclass(frozen=True)
class ShardEntry:
    """A shard's line of the index, and what of it one wants to know."""

    name: str
    size: int  # bytes
    utterances: int
    seconds: float
    line: str  # without its end: 60 bytes an utterance, where lists of Python's numbers would take 350


@dataclass(frozen=True)
class _Member:
    """An utterance and its place in the shuffled order."""

    number: int
    utterance: Utterance
    audio_bytes: int

    @property
    def suffix(self) -> str:
        """Of the audio file, without the dot; letters and digits alone, which WebDataset takes for a key's end."""
        suffix = self.utterance.audio_path.suffix[1:].lower()
        return suffix if re.fullmatch("[a-z0-9]+", suffix) else "audio"

    @property
    def key(self) -> str:
        return f"{self.number:09d}"

    def row(self) -> bytes:
        """Content of KEY.json."""
        utterance = self.utterance
        row = {**utterance.fields, "id": utterance.utterance_id, "audio_filepath": f"{self.key}.{self.suffix}"}
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()

    def tar_bytes(self) -> int:
        return 2 * _BLOCK + _in_blocks(len(self.row())) + _in_blocks(self.audio_bytes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Packs a manifest and its audio files into tars in WebDataset's layout, with an index. Training reads them "
        "from a folder or a server: data.train_manifest=DIR/index.jsonl, http://…/index.jsonl, s3://…/index.jsonl. "
        "A run that was killed goes on where it was."
    )
    parser.add_argument("manifest", type=Path, help="JSON Lines, one utterance a line")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help=f"for the shards and {INDEX}")
    parser.add_argument("--shard-mb", type=float, default=256, metavar="MB", help="most of a shard (256)")
    parser.add_argument("--shuffle-seed", type=int, default=0, metavar="N", help="of the order of utterances (0)")
    parser.add_argument(
        "--on-bad",
        choices=("error", "skip"),
        default="error",
        help="utterances that cannot be trained on: stop and name them, or leave them out and name them (error)",
    )


def run(args: argparse.Namespace) -> int:
    if not 0 < args.shard_mb < float("inf"):
        raise ConfigError(f"--shard-mb {args.shard_mb:g}: must be a number above 0")
    home = cache_dir()
    utterances = _usable(TrainingManifest(args.manifest, _STRIDE, home and home / "manifests"), args.on_bad)
    shards = write_shards(utterances, args.output, round(args.shard_mb * 2**20), args.shuffle_seed)
    print(
        f"{args.output / INDEX}: {len(shards)} shards, {sum(shard.utterances for shard in shards)} utterances, "
        f"{sum(shard.seconds for shard in shards) / 3600:.2f} h, {sum(shard.size for shard in shards) / 2**20:.1f} MB"
    )
    return 0


def _usable(manifest: TrainingManifest, on_bad: str) -> UtteranceTable:
    table = manifest.table
    problems = [*manifest.target_problems(table), *manifest.audio_problems(table)]
    problems.sort(key=lambda problem: problem.utterance.line)
    if not problems:
        return table
    message = listing("utterances that cannot be trained on", [str(problem) for problem in problems])
    bad = {problem.utterance.line for problem in problems}
    if on_bad == "error" or len(bad) == len(table):
        raise TrainingDataError(f"{message}\nmend these lines, or leave them out with --on-bad skip")
    print(f"left out {len(bad)} of {len(table)} utterances; {message}")
    return table.select(~np.isin(table.line, list(bad)))


def write_shards(utterances: Sequence[Utterance], folder: Path, shard_bytes: int, seed: int) -> list[ShardEntry]:
    """Writes shards and then the index; what an interrupted call finished is taken over.

    Args:
        utterances: in any order; they are shuffled by `seed`.
        folder: new, empty, or with what an earlier call left for the very same utterances and settings.
        shard_bytes: most of a shard, unless a single utterance takes more.

    Returns:
        The lines of the index.

    Raises:
        AudioError: an audio file is gone, or was changed while this ran.
        OutputError: the folder has other shards, the disk is full, or the place is not writable.
    """
    plan = _plan(utterances, shard_bytes, seed)
    finished = _finished(folder, plan.source)
    shards: list[ShardEntry] = []
    with (
        _journal(folder / _JOURNAL, plan.source, finished.values()) as note,
        progress_bar("shards", sum(plan.audio_bytes)) as advance,
    ):
        for number, (start, end) in enumerate(pairwise(plan.bounds)):
            path = folder / f"shard-{number:06d}.tar"
            entry = finished.get(path.name)
            if entry is None or not _has_size(path, entry.size):
                chosen = (_Member(k, utterances[plan.order[k]], plan.audio_bytes[k]) for k in range(start, end))
                entry = _write_shard(path, list(chosen))
                note(entry)
            shards.append(entry)
            advance(sum(plan.audio_bytes[start:end]))
    write_index(folder / INDEX, shards, seed, plan.source)
    (folder / _JOURNAL).unlink()
    return shards


def write_index(path: Path, shards: Sequence[ShardEntry], seed: int, source: str) -> None:
    """The index of some shards; `source` tells of what they were made."""
    header = {
        "kvarts_shards": FORMAT,
        "shards": len(shards),
        "utterances": sum(shard.utterances for shard in shards),
        "seconds": round(sum(shard.seconds for shard in shards), 6),
        "shuffle_seed": seed,
        "source": source,
    }
    with atomic_text_writer(path) as file:
        file.write(json.dumps(header) + "\n")
        file.writelines(f"{shard.line}\n" for shard in shards)


def entry_of(row: dict[str, Any]) -> ShardEntry:
    """The line of a row of the index."""
    line = json.dumps(row, separators=(",", ":"))
    return ShardEntry(str(row["name"]), int(row["bytes"]), int(row["utterances"]), float(row["seconds"]), line)


@dataclass(frozen=True)
class _Plan:
    """What goes where: 16 bytes an utterance."""

    order: array[int]  # places of utterances, shuffled
    audio_bytes: array[int]  # in that order
    bounds: list[int]  # of the shards, in that order
    source: str  # tells this set of shards from another before it is written


def _plan(utterances: Sequence[Utterance], shard_bytes: int, seed: int) -> _Plan:
    """Each shard takes as many utterances, in the shuffled order, as fit."""
    order = array("q", range(len(utterances)))
    random.Random(seed).shuffle(order)
    audio_bytes: array[int] = array("q")
    bounds, total = [0], 0
    source = hashlib.sha256(f"{FORMAT} {shard_bytes} {seed}\n".encode())
    for number, place in enumerate(order):
        utterance = utterances[place]
        try:
            status = utterance.audio_path.stat()
        except OSError as error:
            raise AudioError(f"{utterance.where}: {utterance.audio_path}: {error.strerror or error}") from None
        member = _Member(number, utterance, status.st_size)
        source.update(member.row() + f"{status.st_size} {status.st_mtime_ns}\n".encode())
        size = member.tar_bytes()
        if number > bounds[-1] and total + size + tarfile.RECORDSIZE > shard_bytes:
            bounds.append(number)
            total = 0
        total += size
        audio_bytes.append(status.st_size)
    return _Plan(order, audio_bytes, [*bounds, len(order)], source.hexdigest()[:12])


def _finished(folder: Path, source: str) -> dict[str, ShardEntry]:
    """Entries of the shards that are there already, by name.

    Raises:
        OutputError: the folder holds something else.
    """
    path = next((path for name in (INDEX, _JOURNAL) if (path := folder / name).is_file()), None)
    found, entries = ("" if any(folder.glob("shard-*.tar")) else source), []
    try:
        if path is not None:
            with path.open(encoding="utf-8", newline="\n") as file:
                found = json.loads(next(file, ""))["source"]
                # What stands behind the last line's end was cut short by a kill; its shard is written anew.
                entries = [entry_of(json.loads(line)) for line in file if line.endswith("\n")]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); remove the folder or name another") from error
    except OSError as error:
        raise write_error(folder, error) from error
    if found != source:
        raise OutputError(
            f"{folder}: has shards of other utterances, files or settings; remove the folder or name another"
        )
    return {entry.name: entry for entry in entries}


@contextmanager
def _journal(path: Path, source: str, finished: Iterable[ShardEntry]) -> Iterator[Callable[[ShardEntry], None]]:
    """A file with what is finished; the block gets what adds an entry and has it on the disk."""
    with atomic_text_writer(path) as beginning:
        beginning.write(json.dumps({"source": source}) + "\n")
        beginning.writelines(f"{entry.line}\n" for entry in finished)
    with path.open("a", encoding="utf-8") as file:

        def note(entry: ShardEntry) -> None:
            try:
                file.write(f"{entry.line}\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise write_error(path, error) from error

        yield note


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _write_shard(path: Path, members: Sequence[_Member]) -> ShardEntry:
    """A tar that depends on its members alone, and its entry in the index."""
    columns: dict[str, list[Any]] = {name: [] for name in UTTERANCE_COLUMNS}
    with atomic_writer(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, audio in zip(members, run_ahead(_audio, members, workers=2, ahead=16), strict=True):
            row = member.row()
            values = (
                member.utterance.duration_s,
                _add(tar, f"{member.key}.json", row),
                len(row),
                zlib.crc32(row),
                _add(tar, f"{member.key}.{member.suffix}", audio),
                len(audio),
                zlib.crc32(audio),
                member.suffix,
            )
            for name, value in zip(UTTERANCE_COLUMNS, values, strict=True):
                columns[name].append(value)
    return entry_of(
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
            "utterances": len(members),
            "seconds": round(sum(columns["duration_s"]), 6),
            "first": members[0].number,
            **columns,
        }
    )


def _audio(member: _Member) -> bytes:
    utterance = member.utterance
    try:
        content = utterance.audio_path.read_bytes()
    except OSError as error:
        raise AudioError(f"{utterance.where}: {utterance.audio_path}: {error.strerror or error}") from None
    if len(content) != member.audio_bytes:
        raise AudioError(f"{utterance.where}: {utterance.audio_path} was changed meanwhile; start again")
    return content


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a member; where its content begins. Owner and time stay 0."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    begin = tar.offset + _BLOCK
    tar.addfile(header, BytesIO(content))
    return begin


def _in_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
