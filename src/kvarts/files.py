"""Files that are either written whole or not touched at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from kvarts.errors import OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` only when the block ends without an error.

    Missing folders are made. What is written goes to a temporary file in the same folder, reaches the disk
    (fsync) and is then renamed, so a crash, a kill or a full disk leaves the old file as it was.

    Raises:
        OutputError: the operating system refused: disk full, no permission, a folder in the way.
    """
    # The process id keeps two processes that write the same file out of each other's way.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Removes what writers of `path` left that were killed while they wrote: 81 MB each time for a checkpoint."""
    for entry in path.parent.iterdir():
        if entry.name.startswith(f".{path.name}.") and entry.suffix == ".tmp":
            pid = entry.stem.rpartition(".")[2]
            if os.name == "posix" and pid.isdecimal() and not _is_running(int(pid)):
                entry.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to somebody else
    return True


@contextmanager
def atomic_text_writer(path: Path) -> Iterator[TextIO]:
    """Like `atomic_writer`, for UTF-8 text."""
    with atomic_writer(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="\n")
        try:
            yield text
        finally:
            # Passes on what is buffered, and leaves `file` open for the fsync.
            text.detach()


def write_error(path: Path, error: OSError) -> OutputError:
    """The one-line error for a file that the operating system would not let us write."""
    kept = "; the file there before is unchanged" if path.is_file() else ""
    return OutputError(
        f"{path}: could not be written ({error.strerror or error}){kept}; free space or choose another place"
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(*parts: str | NDArray[Any]) -> str:
    """12 hexadecimal digits that tell texts and arrays from others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\n" if isinstance(part, str) else part.tobytes())
    return digest.hexdigest()[:12]


def cache_dir() -> Path | None:
    """Where Kvarts keeps what it can make again: $XDG_CACHE_HOME/kvarts, else ~/.cache/kvarts; None without a home."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # to be ignored, says the XDG Base Directory Specification
        try:
            root = Path.home() / ".cache"
        except RuntimeError:  # a user without an entry in /etc/passwd, in a container
            return None
    return root / "kvarts"
