"""Training data in shards (`kvarts data shard`): read from a folder or streamed from a server while a run trains.

The index says how long every utterance is, so the order of an epoch is known before a shard is read. Shards are drawn
in an order of (seed, epoch); some at a time make a window, inside which utterances are shuffled and put into batches of
similar length; each rank takes its share of every joint batch, as it does of files (`kvarts.dataset.BucketSampler`).
Neither ranks nor workers have a say in the order.

Shards of a server are kept in a folder of bounded size that all processes of a machine share: each is fetched by one of
them, checked against its SHA-256, and read at an utterance's offset from then on. The next window is fetched while the
network trains on this one.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import random
import re
import string
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kvarts.audio import read_audio
from kvarts.checks import target_problem
from kvarts.data_shard import FORMAT, INDEX, UTTERANCE_COLUMNS
from kvarts.dataset import Augmentation, Batch, BucketSampler, Draw, Example, Features, Pcm, collate, example_of
from kvarts.device_sound import DeviceSound
from kvarts.errors import (
    AudioError,
    ConfigError,
    DownloadError,
    KvartsError,
    ManifestError,
    TrainingDataError,
    listing,
)
from kvarts.feature_cache import FeatureCache
from kvarts.features import log_mel
from kvarts.files import atomic_writer, digest_of, sha256_of, write_error
from kvarts.manifest import LineError, Utterance, field_of, json_object, write_manifest
from kvarts.sound import Sound, to_pcm

try:
    import fcntl
except ImportError:  # Windows: two processes may fetch the same shard, and nothing worse
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("lightning")

Result = TypeVar("Result")

_RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each further attempt
_TIMEOUT_S = 30.0  # for a connection, and for the next bytes
_CHUNK_BYTES = 2**20
_CONNECTIONS = 3  # of a process that fetches ahead
_GONE = (404, 410)
_MAY_PASS = (408, 425, 429)  # and all from 500 on: other answers of a server stay what they are
_MEND_INDEX = "copy the index again, or write it with kvarts data shard"
_UNUSED_S = 24 * 3600  # shards of other data that nobody used for so long give way first


def is_index(manifest: str) -> bool:
    """Whether a training manifest is an index of shards: a URL, or a file of the name index.jsonl."""
    return "://" in manifest or Path(manifest).name == INDEX


# ------------------------------------------------------------------------------------------------------- the index


@dataclass(frozen=True)
class Shard:
    """One tar of an index."""

    name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """Utterances in shards, one after the other; arrays are (utterances,), and utterances of a shard stand together."""

    base: str  # folder or URL that the shards lie in, with its last slash
    shards: list[Shard]
    shard: NDArray[np.int32]  # place in `shards`
    number: NDArray[np.int64]  # KEY
    duration_s: NDArray[np.float64]
    json_offset: NDArray[np.int64]  # in the shard, bytes
    json_bytes: NDArray[np.int64]
    json_crc32: NDArray[np.int64]
    audio_offset: NDArray[np.int64]
    audio_bytes: NDArray[np.int64]
    audio_crc32: NDArray[np.int64]
    audio_suffix: NDArray[np.int32]  # place in `suffixes`
    suffixes: list[str]

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def digest(self) -> str:
        """Tells training data from other data; where the shards lie does not matter."""
        return digest_of(*(shard.sha256 for shard in self.shards), self.number)

    def member(self, index: int, is_row: bool = False) -> str:
        """``shard-000003.tar: 000012345.opus``, or its row, for messages."""
        suffix = "json" if is_row else self.suffixes[self.audio_suffix[index]]
        return f"{self.shards[self.shard[index]].name}: {self.number[index]:09d}.{suffix}"

    def bounds(self) -> NDArray[np.int64]:
        """Where the utterances of each shard begin, and the last ones' end; (shards + 1,)."""
        return np.searchsorted(self.shard, np.arange(len(self.shards) + 1))

    def part(self, duration_s: float, seed: int) -> ShardIndex:
        """About `duration_s` seconds, of few shards: shards are drawn by `seed`, their beginnings are random anyway."""
        bounds = self.bounds()
        chosen: list[int] = []
        left_s = duration_s
        for shard in shard_order(len(self.shards), seed, epoch=0):
            lengths_s = self.duration_s[bounds[shard] : bounds[shard + 1]]
            count = int(np.count_nonzero(np.cumsum(lengths_s) - lengths_s < left_s))
            chosen += range(bounds[shard], bounds[shard] + count)
            left_s -= float(lengths_s.sum())
            if left_s <= 0:
                break
        return self._only(sorted(chosen))

    def _only(self, chosen: list[int]) -> ShardIndex:
        used, shard = np.unique(self.shard[chosen], return_inverse=True)
        return replace(
            self,
            shards=[self.shards[number] for number in used],
            shard=shard.astype(np.int32),
            **{name: getattr(self, name)[chosen] for name in ("number", *UTTERANCE_COLUMNS)},
        )


def read_index(location: str) -> ShardIndex:
    """The index at a path or URL; it is read line by line.

    Raises:
        ManifestError: none there, or it is not what `kvarts data shard` writes; every bad line is found, and the first
            few are listed as ``location:line: what is wrong; what to do``.
        DownloadError: the network, after some attempts.
        ConfigError: a URL that needs a package which is not installed.
    """
    location = location.removeprefix("file://")
    try:
        if "://" in location:
            _check_protocol(location)
            return _retried(location, lambda: _index(location, _lines(_chunks(location))))
        with Path(location).open("rb") as file:
            return _index(location, file)
    except (FileNotFoundError, _MissingError):
        raise ManifestError(f"{location}: no such index; check the path") from None
    except OSError as error:
        raise ManifestError(f"{location}: could not be read ({error.strerror or error}); check the path") from None


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    begun: list[bytes] = []
    for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join([*begun, end])
            begun = []
        begun.append(rest)
    yield b"".join(begun)


def _index(location: str, lines: Iterable[bytes]) -> ShardIndex:
    numbered = ((number, content) for number, line in enumerate(lines, start=1) if (content := line.strip()))
    counts = _counts(location, next(numbered, (1, b""))[1])
    shards: list[Shard] = []
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("number", *UTTERANCE_COLUMNS)}
    suffixes: dict[str, int] = {}
    bad: list[str] = []
    first: int | None = 0  # utterance of the next line; None after a bad one, which may have had any number
    for number, content in numbered:
        try:
            shard, of_shard = _shard(json_object(content), first, suffixes)
        except LineError as error:
            # What the error may go on with is how to mend a line of a manifest.
            bad.append(f"{location}:{number}: {str(error).partition(';')[0]}; {_MEND_INDEX}")
            first = None
            continue
        shards.append(shard)
        for name, values in of_shard.items():
            columns[name].append(values)
        first = int(of_shard["number"][-1]) + 1
    per_shard = [len(values) for values in columns["number"]]
    found = (len(shards), sum(per_shard))
    if not bad and found != counts:
        what = "{} shards with {} utterances"
        bad = [f"{location}: the header counts {what.format(*counts)}, the lines {what.format(*found)}; {_MEND_INDEX}"]
    if bad:
        raise ManifestError(listing(f"{location}: bad lines", bad))
    if not shards:
        raise ManifestError(f"{location}: has no utterances; {_MEND_INDEX}")
    return ShardIndex(
        base=f"{location.rpartition('/')[0] if '://' in location else Path(location).parent}/",
        shards=shards,
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), per_shard),
        suffixes=list(suffixes),
        # Each list is gone before the next is put together: a million utterances take 70 MB, at most 80 meanwhile.
        **{name: np.concatenate(columns.pop(name)) for name in list(columns)},
    )


def _counts(location: str, header: bytes) -> tuple[int, int]:
    """Shards and utterances, as the first line has it."""
    try:
        row = json_object(header)
        if field_of(row, "kvarts_shards", int, "a number") != FORMAT:
            raise LineError(f"its format is {row['kvarts_shards']}, this version reads {FORMAT}")
        return field_of(row, "shards", int, "a number"), field_of(row, "utterances", int, "a number")
    except LineError as error:
        what = f"no index of shards, {str(error).partition(';')[0]}"
        raise ManifestError(
            f"{location}:1: {what}; write one with kvarts data shard, or give a manifest another name"
        ) from None


def _shard(row: dict[str, Any], first: int | None, suffixes: dict[str, int]) -> tuple[Shard, dict[str, NDArray[Any]]]:
    """A line of the index, and its columns (utterances,); new suffixes are added to those with their numbers.

    Raises:
        LineError: it is not what `kvarts data shard` writes, or its first utterance is not that.
    """
    shard = Shard(
        name=field_of(row, "name", str, "a string"),
        size=field_of(row, "bytes", int, "a number"),
        sha256=field_of(row, "sha256", str, "a string"),
    )
    # Both become paths.
    if not (re.fullmatch(r"[\w-][\w.-]*\.tar", shard.name) and re.fullmatch("[0-9a-f]{64}", shard.sha256)):
        raise LineError(f"a shard is called {shard.name[:80]!r}, with the SHA-256 {shard.sha256[:80]!r}")
    begins, count = (field_of(row, name, int, "a number") for name in ("first", "utterances"))
    if begins != first and (first is not None or not 0 <= begins < 2**53):
        raise LineError(f"{shard.name} begins with utterance {begins}, not {first}, so lines are missing or misplaced")
    columns = {name: field_of(row, name, list, "a list") for name in UTTERANCE_COLUMNS}
    for name, values in columns.items():
        if not values or len(values) != count:
            raise LineError(f'{shard.name}: "{name}" has {len(values)} entries for {count} utterances')
    texts = columns.pop("audio_suffix")
    if not all(isinstance(text, str) for text in texts) or not all(
        re.fullmatch("[a-z0-9]+", text) for text in set(texts)
    ):
        raise LineError(f'{shard.name}: an "audio_suffix" is not one of a file')
    numbers = {name: _numbers(shard, name, values) for name, values in columns.items()}
    lengths_s = numbers["duration_s"]
    if not (np.isfinite(lengths_s) & (lengths_s > 0)).all():
        raise LineError(f'{shard.name}: a "duration_s" is no number above 0')
    # Written with 6 digits after the point: one that was altered shows.
    if abs(lengths_s.sum() - field_of(row, "seconds", (int, float), "a number")) > 1e-5:
        raise LineError(f'{shard.name}: "seconds" is not the sum of "duration_s"')
    for kind in ("json", "audio"):
        offset, size = numbers[f"{kind}_offset"], numbers[f"{kind}_bytes"]
        # No sum of the two, which may be too large for 64 bits.
        if (np.minimum(offset, size) < 0).any() or (offset > shard.size).any() or (size > shard.size - offset).any():
            raise LineError(f"{shard.name}: a member lies outside it")
    return shard, {
        "number": begins + np.arange(count),
        **numbers,
        "audio_suffix": np.array([suffixes.setdefault(text, len(suffixes)) for text in texts], np.int32),
    }


def _numbers(shard: Shard, name: str, values: list[Any]) -> NDArray[Any]:
    kinds, dtype = ("iuf", np.float64) if name == "duration_s" else ("iu", np.int64)
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # lists among numbers
        array = np.array(None)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise LineError(f'{shard.name}: "{name}" has what is no {"whole " if dtype is np.int64 else ""}number')
    return array.astype(dtype)


# ------------------------------------------------------------------------------------------------------- the order


def shard_order(count: int, seed: int | None, epoch: int) -> list[int]:
    """Shards in the order of an epoch; as they are without a seed."""
    order = list(range(count))
    if seed is not None:
        random.Random(f"{seed} {epoch} shards").shuffle(order)
    return order


class ShardSampler(BucketSampler):
    """`BucketSampler` for shards: what it does with all utterances happens in windows of `window` shards.

    Batches are as many and as large as they would be of files: what does not fill a window's last joint batch is drawn
    with the next window.

    Args:
        index: of the utterances.
        window: shards that are mixed.
        (the rest: of `BucketSampler`)
    """

    def __init__(
        self,
        index: ShardIndex,
        batch_size: int,
        window: int,
        shuffle: bool = True,
        bucketing: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(index.duration_s, batch_size, shuffle, bucketing, seed, rank, world_size)
        self._bounds = index.bounds().tolist()
        self._window = window

    def _joint_batches(self, epoch: int) -> Iterator[list[int]]:
        draw = random.Random(f"{self._seed} {epoch}")
        order = shard_order(len(self._bounds) - 1, self._seed if self._shuffle else None, epoch)
        pool: list[int] = []
        for start in range(0, len(order), self._window):
            for shard in order[start : start + self._window]:
                pool += range(self._bounds[shard], self._bounds[shard + 1])
            ready = len(pool)
            if start + self._window < len(order):
                # At least one for each rank stays: the last batch of all must reach every rank.
                ready = max(0, (len(pool) - self._world_size) // self._joint_size * self._joint_size)
                if self._shuffle:
                    draw.shuffle(pool)
            if ready:
                yield from self._drawn(pool[:ready], draw)
            pool = pool[ready:]


# ------------------------------------------------------------------------------------------------ shards on this disk


class ShardFiles:
    """The shards of an index as files of this machine.

    Those in a folder are read where they are. Those of a server are fetched into ``folder`` as ``<SHA-256>.tar``. All
    processes of a machine share it; a file lock sees to it that a shard is fetched once. Where more than `max_bytes`
    would be, first those are removed that nobody used for a day, the oldest first, then those of this data that were
    used last, for the epoch needs them last. What this process is about to need is kept in any case. A shard that the
    server has damaged is kept as ``<SHA-256>.damaged.tar``, for what of it is whole, until the next run.

    Args:
        index: of the shards.
        folder: where shards of a server are kept.
        max_bytes: of all shards there, those of other data too.
    """

    def __init__(self, index: ShardIndex, folder: Path, max_bytes: int) -> None:
        self._shards = index.shards
        self._base = index.base
        self._is_remote = "://" in index.base
        self._folder = folder
        self._max_bytes = max_bytes
        self._kept: frozenset[int] = frozenset()
        self._open: dict[int, BinaryIO] = {}
        self._lost: dict[int, str] = {}  # why
        self._renewed: set[int] = set()
        if self._is_remote:
            for path in folder.glob("*.damaged.tar"):
                with suppress(OSError):
                    path.unlink()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """So many bytes of a shard; fewer where it ends before.

        Raises:
            AudioError: the shard is not there, or cannot be read.
            DownloadError: the network, after some attempts.
            OutputError: the disk is full.
        """
        file = self._open.get(shard)
        if file is None:
            file = self._open[shard] = self._opened(shard)
        try:
            file.seek(offset)
            return file.read(size)
        except OSError as error:
            raise self._unreadable(shard, error) from error

    def renew(self, shard: int) -> bool:
        """Whether it is worth while to read a shard again, for it was damaged on this disk since it was fetched."""
        path = self._path(shard)
        if not self._is_remote or shard in self._renewed or _damaged(path).exists():
            return False
        self._renewed.add(shard)  # once, or an index that is wrong would have it hashed for every member
        self._open.pop(shard).close()
        with suppress(OSError):
            if sha256_of(path) != self._shards[shard].sha256:
                logger.warning("%s: was damaged on this disk; it is fetched again", path)
                path.unlink()
        return True

    def _path(self, shard: int) -> Path:
        wanted = self._shards[shard]
        return self._folder / f"{wanted.sha256}.tar" if self._is_remote else Path(self._base) / wanted.name

    def _unreadable(self, shard: int, error: OSError) -> AudioError:
        return AudioError(f"{self._path(shard)}: could not be read ({error.strerror or error}); copy it there again")

    def look_ahead(self, before: Sequence[int], now: Sequence[int], following: Sequence[int]) -> None:
        """Keeps some shards and lets go of all others; fetches those of now and then the following, in the background.

        A window's shards are needed together, so several are fetched at a time: one connection is often slower than
        the network. The following wait, for they would take of what those of now need.
        """
        self._kept = frozenset((*before, *now, *following))
        for shard in [shard for shard in self._open if shard not in self._kept]:
            self._open.pop(shard).close()
        if self._is_remote:
            Thread(target=self._fetch_windows, args=(now, following), daemon=True).start()

    def _fetch_windows(self, *windows: Sequence[int]) -> None:
        for window in windows:
            left = iter(window)
            threads = [Thread(target=self._fetch_ahead, args=(left,), daemon=True) for _ in range(_CONNECTIONS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _fetch_ahead(self, shards: Iterator[int]) -> None:
        # A shard that another process is at is left to it: together they fetch several at a time. What goes wrong
        # here goes wrong again where the shard is needed, and is raised there.
        for shard in shards:
            with suppress(KvartsError, _MissingError):
                self._fetch(shard, wait=False)

    def _opened(self, shard: int) -> BinaryIO:
        if shard in self._lost:
            raise AudioError(self._lost[shard])
        path = self._path(shard)
        while True:
            try:
                file = (_damaged(path) if self._is_remote and _damaged(path).exists() else path).open("rb")
            except (FileNotFoundError, NotADirectoryError):
                try:
                    if not self._is_remote:
                        raise _MissingError("no such file") from None
                    self._fetch(shard, wait=True)
                except _MissingError as error:
                    self._lost[shard] = f"{self._base}{self._shards[shard].name}: {error}; copy it there again"
                    raise AudioError(self._lost[shard]) from None
            except OSError as error:
                raise self._unreadable(shard, error) from error
            else:
                if self._is_remote:
                    with suppress(OSError):
                        os.utime(path)  # says when it was last used
                return file

    def _fetch(self, shard: int, wait: bool) -> None:
        """Has a shard of a server in the folder, unless another process is at it and `wait` is false."""
        wanted, path = self._shards[shard], self._path(shard)
        with _lock(path.with_suffix(".lock"), wait) as is_ours:
            if not is_ours or path.exists() or _damaged(path).exists():
                return
            self._make_room(wanted.size)
            url = self._base + wanted.name
            digests: list[str] = []

            def attempt() -> None:
                digest = hashlib.sha256()
                size = 0
                with atomic_writer(path) as file:
                    for chunk in _chunks(url):
                        file.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                    digests.append(digest.hexdigest())
                    # Twice the same is what the server has.
                    is_final = digests[-1] == wanted.sha256 or digests[-1:] == digests[-2:-1]
                    if not is_final:
                        raise _TroubleError(
                            f"SHA-256 {digests[-1][:12]}… of {size} bytes, the index says {_what(wanted)}"
                        )

            _retried(url, attempt)
            if digests[-1] != wanted.sha256:
                path.replace(_damaged(path))
                logger.warning("%s: damaged: SHA-256 %s…, the index says %s", url, digests[-1][:12], _what(wanted))

    def _make_room(self, size: int) -> None:
        kept = {self._path(shard) for shard in self._kept}
        ours = {self._path(shard) for shard in range(len(self._shards))}
        found: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        excess = sum(bytes_ for _, bytes_, _ in found) + size - self._max_bytes
        unused_since = time.time() - _UNUSED_S
        old = sorted(entry for entry in found if entry[0] < unused_since)
        passed = sorted((e for e in found if e[0] >= unused_since and e[2] in ours), reverse=True)
        for _, bytes_, path in [*old, *passed]:
            if excess <= 0:
                return
            if path not in kept:
                path.unlink(missing_ok=True)
                excess -= bytes_


@contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Whether the lock is ours; it goes with the process, however that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        is_ours = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                is_ours = False
            except OSError:
                pass  # a file system without locks: two may fetch the same shard, and nothing worse
        yield is_ours
    finally:
        os.close(file)


def _damaged(path: Path) -> Path:
    return path.with_suffix(".damaged.tar")


def _what(shard: Shard) -> str:
    return f"{shard.sha256[:12]}… of {shard.size}"


# ------------------------------------------------------------------------------------------------------- the network


class _TroubleError(Exception):
    """What may pass: another attempt is worth while."""


class _MissingError(Exception):
    """There is no such file, and there won't be."""


def _retried(url: str, attempt: Callable[[], Result]) -> Result:
    """The result of an attempt; after `_TroubleError` there are more, each after a longer wait.

    Raises:
        DownloadError: none succeeded.
    """
    for wait_s in (*_RETRY_WAITS_S, None):
        try:
            return attempt()
        except _TroubleError as error:
            if wait_s is None:
                tries = len(_RETRY_WAITS_S) + 1
                raise DownloadError(
                    f"{url}: {error}, {tries} times; check address and network, then go on with resume=auto"
                ) from None
            logger.warning("%s: %s; another attempt in %g s", url, error, wait_s)
            time.sleep(wait_s)
    raise AssertionError


def _chunks(url: str) -> Iterator[bytes]:
    """Content of a URL.

    Raises:
        _MissingError: there is nothing there.
        _TroubleError: what may pass.
        DownloadError: the server refuses.
    """
    if url.startswith(("http://", "https://")):
        yield from _chunks_over_http(url)
        return
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except FileNotFoundError:
        raise _MissingError("no such file") from None
    except PermissionError as error:
        raise DownloadError(f"{url}: {_one_line(error)}; check your credentials") from None
    except Exception as error:  # each of its file systems has errors of its own
        if "credentials" in str(error).lower():
            raise DownloadError(f"{url}: {_one_line(error)}; check your credentials") from None
        raise _TroubleError(_one_line(error)) from None


def _chunks_over_http(url: str) -> Iterator[bytes]:
    try:
        # Letters that are not ASCII, and spaces, as servers want them.
        quoted = urllib.parse.quote(url, safe=string.punctuation)
        with urllib.request.urlopen(quoted, timeout=_TIMEOUT_S) as response:
            while chunk := response.read(_CHUNK_BYTES):
                yield chunk
            if response.length:
                raise _TroubleError(f"the connection broke off {response.length} bytes before the end")
    except urllib.error.HTTPError as error:
        what = f"HTTP {error.code} {error.reason}"
        if error.code in _GONE:
            raise _MissingError(what) from None
        if error.code in _MAY_PASS or error.code >= 500:
            raise _TroubleError(what) from None
        raise DownloadError(f"{url}: {what}; check the address and your rights there") from None
    except ValueError as error:
        raise DownloadError(f"{url}: {_one_line(error)}; check the address") from None
    except (OSError, http.client.HTTPException) as error:
        raise _TroubleError(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split()) or type(error).__name__


def _check_protocol(url: str) -> None:
    protocol = url.partition("://")[0]
    if protocol in ("http", "https"):
        return
    try:
        import fsspec

        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}.get(protocol)
        raise ConfigError(
            f"data.train_manifest={url}…: {protocol}:// cannot be read ({_one_line(error)}); "
            f"pip install fsspec{f' {package}' if package else ''}, or use http(s):// or a folder"
        ) from None


# ------------------------------------------------------------------------------------------------------ the examples


def read_row(index: ShardIndex, files: ShardFiles, number: int) -> Utterance:
    """An utterance by its place in the index; its path is that of the audio in an unpacked shard.

    Raises:
        AudioError: cut short, damaged, or the shard is not there.
        DownloadError, OutputError: of `ShardFiles.read`.
    """
    member = index.member(number, is_row=True)
    where = (index.json_offset[number], index.json_bytes[number], index.json_crc32[number])
    try:
        fields = json.loads(_content(index, files, number, member, *map(int, where)))
        return Utterance(
            audio_path=Path(fields["audio_filepath"]),
            text=fields["text"],
            duration_s=float(index.duration_s[number]),
            utterance_id=str(fields["id"]),
            manifest=Path(index.shards[index.shard[number]].name),
            line=int(index.number[number]),
            fields=fields,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise AudioError(f"{member}: no row of a manifest ({error}); write the shards again") from error


def read_content(index: ShardIndex, files: ShardFiles, number: int) -> bytes:
    """The audio file of an utterance, as it was packed.

    Raises:
        as `read_row`.
    """
    where = (index.audio_offset[number], index.audio_bytes[number], index.audio_crc32[number])
    return _content(index, files, number, index.member(number), *map(int, where))


def _content(
    index: ShardIndex, files: ShardFiles, number: int, member: str, offset: int, size: int, crc32: int
) -> bytes:
    shard = int(index.shard[number])
    try:
        content = files.read(shard, offset, size)
        if zlib.crc32(content) != crc32 and files.renew(shard):
            content = files.read(shard, offset, size)
    except AudioError as error:
        raise AudioError(f"{member}: {error}") from error
    if len(content) < size:
        raise AudioError(f"{member}: missing, for the shard is cut short; copy it again")
    if zlib.crc32(content) != crc32:
        raise AudioError(f"{member}: damaged, it has not the checksum of the index; copy the shard again")
    return content


def unpack(index: ShardIndex, files: ShardFiles, folder: Path, skip_bad: bool) -> list[Utterance]:
    """Writes the utterances of an index as audio files and a manifest; what cannot be read is left out or raised."""
    utterances: list[Utterance] = []
    bad: list[str] = []
    for number in range(len(index)):
        try:
            utterance, audio = read_row(index, files, number), read_content(index, files, number)
        except AudioError as error:
            bad.append(str(error))
            continue
        path = folder / utterance.audio_path.name
        with atomic_writer(path) as file:
            file.write(audio)
        utterances.append(replace(utterance, audio_path=path, manifest=folder / "manifest.jsonl"))
    if bad and not skip_bad:
        raise AudioError(listing("members of shards that cannot be used", bad))
    write_manifest(folder / "manifest.jsonl", [utterance.fields for utterance in utterances])
    return [replace(utterance, line=line) for line, utterance in enumerate(utterances, start=1)]


class ShardDataset(Dataset[Batch | KvartsError]):
    """Whole batches by their draws (epoch, utterance); errors come as items, for those of a worker process.

    Args:
        index: of the utterances.
        files: where their shards are.
        window: shards that are mixed, as the sampler does it.
        stride: log-mel frames for each encoded frame.
        skip_bad: leave out what cannot be used, and name it in `Batch.left_out`; else it is an error.
        shuffle: as the sampler does it.
        augmentation, seed, cache, sound, sample_cache, device_sound: as of `kvarts.dataset.SpeechDataset`.
    """

    def __init__(
        self,
        index: ShardIndex,
        files: ShardFiles,
        window: int,
        stride: int,
        *,
        skip_bad: bool = False,
        shuffle: bool = True,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache: FeatureCache | None = None,
        sound: Sound | None = None,
        sample_cache: FeatureCache | None = None,
        device_sound: DeviceSound | None = None,
    ) -> None:
        self._index = index
        self._files = files
        self._window = window
        self._stride = stride
        self._skip_bad = skip_bad
        self._order_seed = seed if shuffle else None
        self._augmentation = augmentation
        self._seed = seed
        self._cache = cache
        self._sound = sound
        self._sample_cache = sample_cache
        self._device_sound = device_sound
        self._epoch = -1
        self._window_of = np.zeros(0, np.int64)  # (shards,), in this epoch
        self._window_now = -1  # counted over all epochs
        self._has_good_text = np.zeros(len(index), bool)  # checked in 0.05 ms, of the 0.5 that a warm cache takes

    def __getitem__(self, draws: list[Draw]) -> Batch | KvartsError:
        try:
            self._look_ahead(draws)
            return self._batch(draws)
        except KvartsError as error:
            return error

    def _batch(self, draws: list[Draw]) -> Batch:
        examples: list[Example] = []
        bad: list[str] = []
        for draw in draws:
            try:
                examples.append(self._example(draw))
            except (AudioError, TrainingDataError) as error:
                bad.append(str(error))
        if bad and not self._skip_bad:
            what = listing("members of shards that cannot be used", bad)
            raise TrainingDataError(f"{what}\nmend them, or leave them out with data.on_bad=skip")
        batch = collate(examples or [self._stand_in(draws[0])], self._device_sound)
        return replace(batch, left_out=bad)

    def _stand_in(self, draw: Draw) -> Example:
        """For a batch of which nothing is left, since every rank must take the step: the next that can be used."""
        epoch, index = draw
        for step in range(1, len(self._index)):
            with suppress(AudioError, TrainingDataError):
                return self._example((epoch, (index + step) % len(self._index)))
        raise TrainingDataError(f"{self._index.base}{INDEX}: no utterance of it can be used")

    def _example(self, draw: Draw) -> Example:
        _, index = draw
        utterance = read_row(self._index, self._files, index)
        if not self._has_good_text[index]:
            problem = target_problem(utterance, self._stride)
            if problem is not None:
                raise TrainingDataError(f"{self._index.member(index)}: {problem.what}; {problem.remedy}")
            self._has_good_text[index] = True

        def decoded() -> NDArray[np.float32]:
            return _decoded(read_content(self._index, self._files, index), self._index.member(index))

        def features() -> Features:
            return (
                log_mel(decoded()) if self._cache is None else self._cache.get_named(name, lambda: log_mel(decoded()))
            )

        def samples() -> Pcm:
            cache = self._sample_cache
            return to_pcm(decoded()) if cache is None else cache.get_named(name, lambda: to_pcm(decoded()))

        shard = self._index.shards[self._index.shard[index]]
        name = f"{shard.sha256} {self._index.number[index]}"  # of the entry, so that its audio need not be read
        how = (self._sound, self._augmentation, self._seed, draw, self._device_sound)
        return example_of(utterance, features, samples, *how)

    def _look_ahead(self, draws: list[Draw]) -> None:
        """Keeps the shards of the window before, of which some utterances may be left, of this one and of the next."""
        epoch = draws[0][0]
        if epoch != self._epoch:
            self._epoch = epoch
            self._window_of = np.argsort(self._order(epoch)) // self._window
        in_epoch = -(-len(self._index.shards) // self._window)
        now = epoch * in_epoch + int(self._window_of[self._index.shard[[index for _, index in draws]]].max())
        if now <= self._window_now:
            return
        self._window_now = now
        self._files.look_ahead(*(self._shards_of(*divmod(number, in_epoch)) for number in (now - 1, now, now + 1)))

    def _shards_of(self, epoch: int, window: int) -> list[int]:
        return self._order(epoch)[window * self._window : (window + 1) * self._window] if epoch >= 0 else []

    def _order(self, epoch: int) -> list[int]:
        return shard_order(len(self._index.shards), self._order_seed, epoch)


def _decoded(audio: bytes, member: str) -> NDArray[np.float32]:
    # What reads audio reads files. One in a folder of temporary files costs 0.1 ms of the 12 that decoding takes.
    with tempfile.TemporaryDirectory(prefix="kvarts-") as folder:
        path = Path(folder) / "audio"
        try:
            path.write_bytes(audio)
            return read_audio(path)
        except OSError as error:
            raise write_error(path, error) from error
        except AudioError as error:
            raise AudioError(f"{member}: {str(error).replace(str(path), 'the audio')}") from error
