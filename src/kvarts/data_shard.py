"""``kvarts data shard``: a manifest and its audio files as WebDataset tars, and an index of what lies where in them.

A shard is a tar of pairs KEY.json, KEY.opus (or whatever the file was): the manifest's row and the audio file as they
were. KEY is the utterance's place in the shuffled order, nine digits. Unpacked, each .json is the row of a manifest.
``index.json`` beside the shards tells a run what it has to know before it reads any of them:

    {"kvarts_shards": 1, "utterances": 17612, "seconds": 65000.1, "shuffle_seed": 0, "source": "9f86d081884c",
     "shards": [{"name": "shard-000000.tar", "bytes": …, "sha256": …, "utterances": …, "seconds": …, "first": 0,
                 "duration_s": […], "json_offset": […], "json_bytes": […], "json_crc32": […],
                 "audio_offset": […], "audio_bytes": […], "audio_crc32": […], "audio_suffix": […]}, …]}

with one entry an utterance in each list: offsets, lengths in bytes and CRC-32 of the members' contents. "first" is the
KEY of the shard's first utterance.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from kvarts.checks import check_audio, check_targets
from kvarts.errors import AudioError, ConfigError, OutputError, TrainingDataError, listing
from kvarts.files import atomic_text_writer, atomic_writer, digest_of, sha256_of, write_error
from kvarts.manifest import Utterance, read_manifest
from kvarts.progress import progress_bar, run_ahead

INDEX: Final = "index.json"
FORMAT: Final = 1
UTTERANCE_COLUMNS: Final = (
    *("duration_s", "json_offset", "json_bytes", "json_crc32"),
    *("audio_offset", "audio_bytes", "audio_crc32", "audio_suffix"),
)
# What is finished of an unfinished run: a line with "source", then a line a shard.
_JOURNAL = "index.partial.jsonl"
_BLOCK = tarfile.BLOCKSIZE
_STRIDE = 4  # log-mel frames for each encoded frame, of every network that ships


@dataclass(frozen=True)
class _Member:
    """An utterance and its place in the shuffled order."""

    number: int
    utterance: Utterance
    audio_bytes: int
    touched_ns: int

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
        "from a folder or a server: data.train_manifest=DIR/index.json, http://…/index.json, s3://…/index.json. "
        "A run that was killed goes on where it was."
    )
    parser.add_argument("manifest", type=Path, help="JSON Lines, one utterance a line")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="for the shards and index.json")
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
    utterances = _usable(read_manifest(args.manifest), args.on_bad)
    index = write_shards(utterances, args.output, round(args.shard_mb * 2**20), args.shuffle_seed)
    total_bytes = sum(shard["bytes"] for shard in index["shards"])
    print(
        f"{args.output / INDEX}: {len(index['shards'])} shards, {index['utterances']} utterances, "
        f"{index['seconds'] / 3600:.2f} h, {total_bytes / 2**20:.1f} MB"
    )
    return 0


def _usable(utterances: list[Utterance], on_bad: str) -> list[Utterance]:
    problems = [*check_targets(utterances, _STRIDE), *check_audio(utterances)]
    problems.sort(key=lambda problem: problem.utterance.line)
    if not problems:
        return utterances
    message = listing("utterances that cannot be trained on", [str(problem) for problem in problems])
    bad = {problem.utterance.line for problem in problems}
    usable = [utterance for utterance in utterances if utterance.line not in bad]
    if on_bad == "error" or not usable:
        raise TrainingDataError(f"{message}\nmend these lines, or leave them out with --on-bad skip")
    print(f"left out {len(bad)} of {len(utterances)} utterances; {message}")
    return usable


def write_shards(utterances: Sequence[Utterance], folder: Path, shard_bytes: int, seed: int) -> dict[str, Any]:
    """Writes shards and then the index, which is returned; what an interrupted call finished is taken over.

    Args:
        utterances: in any order; they are shuffled by `seed`.
        folder: new, empty, or with what an earlier call left for the very same utterances and settings.
        shard_bytes: most of a shard, unless a single utterance takes more.

    Raises:
        AudioError: an audio file is gone, or was changed while this ran.
        OutputError: the folder has other shards, the disk is full, or the place is not writable.
    """
    members = list(_members(utterances, seed))
    source = _source(members, shard_bytes, seed)
    finished = _finished(folder, source)
    shards: list[dict[str, Any]] = []
    with (
        _journal(folder / _JOURNAL, [{"source": source}, *finished.values()]) as note,
        progress_bar("shards", sum(member.audio_bytes for member in members)) as advance,
    ):
        for number, chosen in enumerate(_cut(members, shard_bytes)):
            path = folder / f"shard-{number:06d}.tar"
            entry = finished.get(path.name)
            if entry is None or not _has_size(path, entry["bytes"]):
                entry = _write_shard(path, chosen)
                note(entry)
            shards.append(entry)
            advance(sum(member.audio_bytes for member in chosen))
    index = {
        "kvarts_shards": FORMAT,
        "utterances": len(members),
        "seconds": round(sum(shard["seconds"] for shard in shards), 6),
        "shuffle_seed": seed,
        "source": source,
        "shards": shards,
    }
    with atomic_text_writer(folder / INDEX) as file:
        file.write(json.dumps({**index, "shards": []})[:-2] + "\n")
        file.write(",\n".join(json.dumps(shard, separators=(",", ":")) for shard in shards) + "\n]}\n")
    (folder / _JOURNAL).unlink()
    return index


def _members(utterances: Sequence[Utterance], seed: int) -> Iterator[_Member]:
    order = list(utterances)
    random.Random(seed).shuffle(order)
    for number, utterance in enumerate(order):
        try:
            status = utterance.audio_path.stat()
        except OSError as error:
            raise AudioError(f"{utterance.where}: {utterance.audio_path}: {error.strerror or error}") from None
        yield _Member(number, utterance, status.st_size, status.st_mtime_ns)


def _source(members: Sequence[_Member], shard_bytes: int, seed: int) -> str:
    """Tells one set of shards from another before it is written."""
    parts = (f"{member.row().decode()}{member.audio_bytes} {member.touched_ns}" for member in members)
    return digest_of(f"{FORMAT} {shard_bytes} {seed}", *parts)


def _cut(members: Sequence[_Member], shard_bytes: int) -> Iterator[list[_Member]]:
    """Members of each shard, in order, as many as fit."""
    chosen: list[_Member] = []
    total = 0
    for member in members:
        size = member.tar_bytes()
        if chosen and total + size + tarfile.RECORDSIZE > shard_bytes:
            yield chosen
            chosen, total = [], 0
        chosen.append(member)
        total += size
    yield chosen


def _finished(folder: Path, source: str) -> dict[str, dict[str, Any]]:
    """Entries of the shards that are there already, by name.

    Raises:
        OutputError: the folder holds something else.
    """
    try:
        if (folder / INDEX).is_file():
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            found, entries = index["source"], index["shards"]
        elif (folder / _JOURNAL).is_file():
            # What stands behind the last line's end was cut short by a kill; its shard is written anew.
            lines = (folder / _JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]
            rows = [json.loads(line) for line in lines]
            found, entries = rows[0]["source"], rows[1:]
        else:
            found, entries = ("" if any(folder.glob("shard-*.tar")) else source), []
        by_name = {entry["name"]: entry for entry in entries}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise OutputError(f"{folder}: its index cannot be read ({error}); remove the folder or name another") from error
    except OSError as error:
        raise write_error(folder, error) from error
    if found != source:
        raise OutputError(
            f"{folder}: has shards of other utterances, files or settings; remove the folder or name another"
        )
    return by_name


@contextmanager
def _journal(path: Path, rows: Sequence[dict[str, Any]]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A file with these rows; the block gets what adds one and has it on the disk."""
    with atomic_text_writer(path) as beginning:
        beginning.writelines(json.dumps(row) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:

        def note(row: dict[str, Any]) -> None:
            try:
                file.write(json.dumps(row) + "\n")
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


def _write_shard(path: Path, members: Sequence[_Member]) -> dict[str, Any]:
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
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "utterances": len(members),
        "seconds": round(sum(columns["duration_s"]), 6),
        "first": members[0].number,
        **columns,
    }


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
