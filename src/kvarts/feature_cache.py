"""Features on disk, so that an audio file is decoded once: for all epochs, workers, ranks and later runs.

Where the sound itself is augmented, decoded samples are kept in the same way (`SAMPLES`), beside the features.

A folder with one file for each utterance, ``ab/cdef….mel``, named by a SHA-256 of what the features depend on: the
bytes of the audio file (not its path), the feature settings, the versions of the libraries that compute them, and
`CACHE_VERSION`. Another file under the same path, or other settings, is therefore another entry; nothing ever has to
be declared out of date. To have a 170 kB entry mapped, checked and copied into a batch takes 0.09 ms; to compute it
from 6.7 s of opus, 12.7 ms (sample/, one core of an AMD EPYC).

Why a file each, and no pack with an index: entries appear whole (written beside, then renamed), so they are read
without a lock, and a writer that is killed leaves nothing but an unused temporary file; entries are removed one by one;
and there is no index to be loaded or repaired. Opening and mapping is 0.01 ms of the time above. A million utterances
are 4000 files in each of 256 folders.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import logging
import math
import mmap
import os
import re
import secrets
import shutil
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
from numpy.typing import NDArray

from kvarts.features import FEATURE_SETTINGS, N_MELS
from kvarts.frames import SAMPLE_RATE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Entry = NDArray[Any]

# To be raised whenever audio.py or features.py gives other numbers for the same file and settings.
CACHE_VERSION: Final = 1
BYTES_PER_SECOND: Final = 25_600  # of audio: 100 frames of 64 float32; samples take 32,000 more


@dataclass(frozen=True)
class Kind:
    """What is kept: rows of numbers, and what they depend on beside the audio."""

    suffix: str
    magic: bytes
    dtype: np.dtype[Any]
    columns: tuple[int, ...]  # shape of a row
    settings: tuple[str, object]  # with their name

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.columns)


FEATURES: Final = Kind("mel", b"KVARTSML", np.dtype(np.float32), (N_MELS,), ("features", FEATURE_SETTINGS))
# Decoded audio, 32,767 times its value and rounded: the noise of that lies 98 dB below full scale.
SAMPLES: Final = Kind("pcm", b"KVARTSPC", np.dtype(np.int16), (), ("samples", {"sample_rate": SAMPLE_RATE}))

logger = logging.getLogger("lightning")

# An entry: magic, CRC-32 of the rows, their number, zeros up to 64 bytes; then the rows: features (frames, 64) float32,
# or samples int16. In the machine's byte order: on a machine of the other, the number does not fit the file's size.
_HEADER = struct.Struct("=8sIQ44x")
_ENTRY = re.compile(r"[0-9a-f]{62}\.(mel|pcm)(\.[0-9a-f]{16}\.tmp)?")  # and what writers leave that were killed
_DISK_BLOCK = 4096  # bytes; what file systems round up to, commonly
# What nobody used for a day may give way. A run uses each of its entries once an epoch, and its epochs are shorter.
_UNUSED_S = 24 * 3600
_TOUCH_S = 3600  # how exactly the time of last use is kept
# So that checkpoints and logs, which a run cannot do without, still find room on the same disk.
_LEFT_FREE = 2**30
# A file written to twice within a tick of the file system's clock looks untouched: 4 ms on Linux, 2 s on FAT.
_CLOCK_TICK_NS = 2 * 10**9
# Hashes in memory, 0.5 kB each; the files of further utterances are hashed once an epoch, in 0.03 ms.
_MOST_KNOWN = 100_000
_WORKING = 0  # else the process that found that nothing more can be stored
_TOGETHER_S = 0.05


class FeatureCache:
    """Features by the content of audio files, in a folder on disk of bounded size.

    Whatever is wrong with the folder (disk full, not writable, not a folder), features are computed all the same, and a
    warning on the logger "lightning" says so, once for all worker processes that hold a copy of this object.

    The bound: entries are stored one at a time, under a file lock, and counted in whole disk blocks before they are
    written. So entries and temporary files never exceed it, however many processes write; folders come on top, some MB
    for a million entries. Where there are no file locks (Windows, some network file systems) additions to the count
    can get lost, and the bound is exceeded by as many entries until they are next counted.

    When the bound is reached, the files are counted, and those not used for a day are removed, oldest first, down to
    nine tenths. If that makes no room, nothing more is stored: training needs every entry once an epoch, so the oldest
    is just what is needed next, and making way for another saves nothing, while the part that stays is not decoded.

    Args:
        folder: is made when the first entry is stored.
        max_bytes: bound of the entries' size on disk, those of all kinds; 1 GiB holds 11 hours of features.
        kind: of the entries.
    """

    def __init__(self, folder: Path, max_bytes: int, kind: Kind = FEATURES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._kind = kind
        self._settings = json.dumps(_settings(kind), sort_keys=True).encode()
        # By audio file: SHA-256 of the entry, and what tells an untouched file.
        self._known: dict[Path, tuple[bytes, int]] = {}
        # Shared with worker processes, which are forked from this one or get the object pickled when spawned.
        self._state = RawValue(ctypes.c_int64, _WORKING)

    def get(self, audio_path: Path, compute: Callable[[Path], Entry]) -> Entry:
        """Features (frames, 64) of an audio file: those stored, else those computed and, if there is room, stored.

        What was stored is mapped, not read, and copied by the system page by page if it is written to, so that nobody
        can spoil the cache.

        Raises:
            whatever `compute` does.
        """
        key = self._key(audio_path)
        if key is None:
            return compute(audio_path)
        # Hashed again, in 0.03 ms, in case the file was replaced between hashing and decoding.
        return self._kept(key, lambda: compute(audio_path), lambda: self._hashed(audio_path) == key)

    def get_named(self, name: str, compute: Callable[[], Entry]) -> Entry:
        """Like `get`, for audio that is no file of its own; `name` must tell its content from any other."""
        key = hashlib.sha256(self._settings + b"\0" + name.encode()).digest()
        return self._kept(key, compute, lambda: True)

    def _kept(self, key: bytes, compute: Callable[[], Entry], is_current: Callable[[], bool]) -> Entry:
        name = key.hex()
        entry = self.folder / name[:2] / f"{name[2:]}.{self._kind.suffix}"
        features = self._read(entry)
        if features is None:
            features = compute()
            if self._state.value == _WORKING and is_current():
                self._store(entry, features)
        return features

    def _key(self, audio_path: Path) -> bytes | None:
        """Name of the entry, from the file's content; None where it cannot be read, which `compute` will explain.

        Hashing takes 0.03 ms for 22 kB of opus, but reads the file, so an epoch looks only whether it was touched.
        """
        try:
            status = audio_path.stat()
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        touched_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        look = hash((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        known = self._known.get(audio_path)
        if known is not None and known[1] == look:
            return known[0]
        key = self._hashed(audio_path)
        is_settled = time.time_ns() - touched_ns > _CLOCK_TICK_NS
        if key is not None and is_settled and len(self._known) < _MOST_KNOWN:
            self._known[audio_path] = (key, look)
        return key

    def _hashed(self, audio_path: Path) -> bytes | None:
        digest = hashlib.sha256(self._settings)
        try:
            with audio_path.open("rb", buffering=0) as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError:
            return None
        return digest.digest()

    def _read(self, entry: Path) -> Entry | None:
        """The features of an entry; None if there is none, or it is not exactly what was written."""
        try:
            with entry.open("rb", buffering=0) as file:
                used_s = os.fstat(file.fileno()).st_mtime
                # Private: written to, pages are copied. So an array that may be written to costs no copy, and is what
                # torch.from_numpy asks for.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (FileNotFoundError, ValueError):  # ValueError: an empty file
            return None
        except OSError as error:
            self._stop(error)
            return None
        if len(mapped) < _HEADER.size:
            return None
        magic, checksum, frames = _HEADER.unpack_from(mapped)
        if magic != self._kind.magic or len(mapped) != _HEADER.size + frames * self._kind.row_bytes:
            return None
        features: Entry = np.frombuffer(mapped, self._kind.dtype, offset=_HEADER.size)
        features = features.reshape(frames, *self._kind.columns)
        if zlib.crc32(features.data) != checksum:  # 0.04 ms for 170 kB
            return None
        if time.time() - used_s > _TOUCH_S:
            with suppress(OSError):  # somebody else's
                os.utime(entry)
        return features

    def _store(self, entry: Path, features: Entry) -> None:
        header = _HEADER.pack(self._kind.magic, zlib.crc32(features.data), len(features))
        size = _on_disk(len(header) + features.nbytes)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            # Held for about 0.5 ms after 12.7 ms of computing: up to some 20 processes hardly wait for each other.
            with self._locked_count() as file:
                if self._read(entry) is not None:
                    return  # another process was faster
                if shutil.disk_usage(self.folder).free < _LEFT_FREE + size:
                    raise OSError(errno.ENOSPC, f"less than {_LEFT_FREE / 2**30:.0f} GiB of the disk is free")
                if self._has_room(file, size):
                    _write(entry, header, features)
                else:
                    self._stop(f"its bound of {self._max_bytes // 2**20} MB is reached")
        except OSError as error:
            self._stop(error)

    def _has_room(self, file: int, size: int) -> bool:
        """Adds to the count of bytes, before they are written, unless that would exceed the bound."""
        try:
            total = int(os.read(file, 20))
        except ValueError:  # new
            total = self._counted(room_for=0)
        if total + size > self._max_bytes:
            total = self._counted(room_for=size)
        fits = total + size <= self._max_bytes
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, b"%020d" % (total + size * fits))
        return fits

    @contextmanager
    def _locked_count(self) -> Iterator[int]:
        """Descriptor of the file with the count, 20 digits. The lock goes with the process, however that ends."""
        file = os.open(self.folder / "stored_bytes", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _counted(self, room_for: int) -> int:
        """Bytes of all entries on disk, after removing old ones if `room_for` bytes more exceed the bound.

        Takes 0.3 s for 40,000 entries, 4 GB of short commands. Touches nothing but files that are named like ours.
        """
        found: list[tuple[float, int, str]] = []
        for number in range(256):
            with suppress(FileNotFoundError), os.scandir(self.folder / f"{number:02x}") as files:
                for file in files:
                    if _ENTRY.fullmatch(file.name):
                        with suppress(FileNotFoundError):  # renamed meanwhile
                            status = file.stat()
                            found.append((status.st_mtime, _on_disk(status.st_size), file.path))
        total = sum(size for _, size, _ in found)
        if total + room_for > self._max_bytes:
            for used_s, size, path in sorted(found):
                # Down to nine tenths, so that counting is seldom.
                if total + room_for <= 0.9 * self._max_bytes or time.time() - used_s < _UNUSED_S:
                    break
                Path(path).unlink(missing_ok=True)
                total -= size
        return total

    def _stop(self, why: OSError | str) -> None:
        """Nothing more is stored by any process of this run; says so, once."""
        if self._state.value != _WORKING:
            return
        # Two processes may come here at once, in 1 of 200 runs of the test: the last to sign says it (Fischer's
        # algorithm, Lamport 1987), for a lock could not be handed to workers that are forked and spawned alike.
        self._state.value = os.getpid()
        time.sleep(_TOGETHER_S)
        if self._state.value != os.getpid():
            return
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return  # rank 0 of this machine meets the same
        logger.warning(
            "feature cache: no more features are stored in %s (%s), so files that are not in it are decoded in every "
            "epoch; make room there, or set data.cache_mb= or data.cache_dir=",
            *(self.folder, (why.strerror or why) if isinstance(why, OSError) else why),
        )


def _write(entry: Path, header: bytes, features: Entry) -> None:
    """Whole or not at all. Without fsync: what a power cut leaves is told by its size and checksum."""
    temporary = entry.with_name(f"{entry.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(header)
            file.write(features.data)
        temporary.replace(entry)
    finally:
        temporary.unlink(missing_ok=True)


def _on_disk(size: int) -> int:
    return -(-size // _DISK_BLOCK) * _DISK_BLOCK


def _settings(kind: Kind) -> dict[str, object]:
    """What entries depend on beside the audio file. Other libraries may round otherwise, or decode otherwise."""
    versions = {"numpy": np.__version__, "libsndfile": soundfile.__libsndfile_version__}
    for name in ("soxr", "av"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    name, settings = kind.settings
    return {"version": CACHE_VERSION, name: settings, "libraries": versions}
