"""`kvarts data download`: fetches the course's archive and unpacks it into the data folder.

What is under way (a part of a download, the archive, half-unpacked files) lies in `<folder>.download` beside
the data folder and is gone at the end. The data folder itself appears in one step, whole, by a rename; it is
never written into, so an interrupted run leaves nothing half done, and the next run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kvarts.errors import ArchiveError, ConfigError, DownloadError, OutputError
from kvarts.files import write_error

if TYPE_CHECKING:
    from typing import Self

DRIVE_URL = "https://drive.google.com/uc?id=1TEOR60JXgOkPrC6jSLhuR2Nb6eCegjpd"

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0  # for a connection, and for the next bytes
ATTEMPTS = 5
RETRY_WAIT_S = 2.0  # before the second attempt; twice, thrice … as long before later ones

_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a zip compressed in a way that Python cannot undo
    UnicodeDecodeError,
)


# --- Download ----------------------------------------------------------------------------------------------


def fetch_drive(url: str, archive: Path) -> None:
    """Downloads a public file of Google Drive to `archive`; an earlier, interrupted attempt is continued.

    Raises:
        DownloadError: no network, the file's quota is used up, or the transfer broke off too often.
        OutputError: the disk is full.
    """
    import gdown
    import requests

    by_hand = f"or open {url} in a browser and pass what it saves with --archive FILE"
    try:
        gdown.download(
            url,
            os.fspath(archive),
            quiet=not sys.stderr.isatty(),
            use_cookies=False,
            resume=True,
            timeout=TIMEOUT_S,
            retries=ATTEMPTS - 1,
        )
    except gdown.exceptions.FileURLRetrievalError as error:
        raise DownloadError(
            "Google Drive does not hand out the file: its quota is used up, or it is no longer public; "
            f"try again in a few hours, {by_hand}"
        ) from error
    except (gdown.exceptions.DownloadError, requests.RequestException) as error:
        raise DownloadError(f"{_reason(url, error)}; run the command again to continue, {by_hand}") from error
    except OSError as error:
        raise write_error(archive, error) from error


class _TryAgainError(Exception):
    """The transfer broke off in a way that another attempt may mend."""


def fetch_http(url: str, archive: Path) -> None:
    """Downloads `url` to `archive`, continuing `<archive>.part` where the server can (RFC 9110, section 14).

    Raises:
        DownloadError: no network, a status other than success, or the transfer broke off too often.
        OutputError: the disk is full.
    """
    part = archive.with_name(f"{archive.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(url, part)
            part.replace(archive)
            return
        except _TryAgainError as error:
            if attempt == ATTEMPTS:
                raise DownloadError(f"{error}; run the command again to continue") from error
            print(f"{error}; trying again ({attempt} of {ATTEMPTS - 1})", file=sys.stderr)
            time.sleep(attempt * RETRY_WAIT_S)
        except OSError as error:
            raise write_error(part, error) from error


def _fetch_rest(url: str, part: Path) -> None:
    """One request for what `part` still lacks; returns when all of it is there."""
    import requests
    import urllib3

    validator_file = part.with_name(f"{part.name}.validator")
    offset = part.stat().st_size if part.exists() else 0
    # Without this, a server may compress what it sends, and its lengths would not be those of the file.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator_file.exists():
            # A file that has changed since then comes whole instead of being glued to the old one's head.
            headers["If-Range"] = validator_file.read_text(encoding="latin-1")
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            content_range = response.headers.get("Content-Range", "")
            if response.status_code == 416 and content_range == f"bytes */{offset}":
                return  # everything was there but the last rename
            if response.status_code == 416 or (
                response.status_code == 206 and not content_range.startswith(f"bytes {offset}-")
            ):
                part.unlink()
                raise _TryAgainError(f"{url}: the server has no rest of this length; starting over")
            if response.status_code not in (200, 206):
                message = f"{url}: the server answered {response.status_code} {response.reason}"
                if response.status_code >= 500:
                    raise _TryAgainError(message)
                raise DownloadError(f"{message}; check the address")
            if response.status_code == 200:
                offset = 0
            if validator := _validator(response.headers):
                validator_file.write_text(validator, encoding="latin-1")
            else:
                validator_file.unlink(missing_ok=True)
            length = response.headers.get("Content-Length", "")
            total = offset + int(length) if length.isdecimal() else None
            with part.open("ab" if offset else "wb") as file, _byte_bar("download", total, offset) as show:
                for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                    file.write(chunk)
                    show(file.tell())
                received = file.tell()
            if total is not None and received != total:
                raise _cut_after(url, part)
    except urllib3.exceptions.HTTPError as error:
        raise _cut_after(url, part) from error
    except requests.RequestException as error:
        if isinstance(error, ValueError):  # as all of requests' complaints about addresses are
            raise DownloadError(f"{url}: not a web address; it starts with http:// or https://") from error
        raise _TryAgainError(_reason(url, error)) from error


def _validator(headers: Mapping[str, str]) -> str:
    """What `If-Range` takes to name this version of the file, or nothing."""
    etag = headers.get("ETag", "")
    # A weak ETag may stay the same although bytes change.
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _cut_after(url: str, part: Path) -> _TryAgainError:
    return _TryAgainError(f"{url}: the connection was cut after {part.stat().st_size:,} bytes")


def _reason(url: str, error: Exception) -> str:
    """What went wrong, in one line; the libraries' own messages nest several exceptions."""
    import requests

    if isinstance(error.__cause__, requests.RequestException):  # gdown's own error says less
        error = error.__cause__
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{url}: the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"{url}: no answer within {TIMEOUT_S:.0f} s"
    if isinstance(error, requests.ConnectionError):
        return f"{url}: no connection; check the network"
    return f"{url}: the transfer broke off ({' '.join(str(error).split())[:200]})"


@contextmanager
def _byte_bar(description: str, total: int | None, start: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar in bytes; the block gets a function to call with the number of bytes done so far."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, total=total, completed=start)
        yield lambda done: progress.update(task, completed=done)


# --- Check -------------------------------------------------------------------------------------------------


def check_archive(archive: Path, source: str, sha256: str | None) -> str:
    """The file's SHA-256 in hex, once it is known to be no web page and to have the hash `sha256`, if given.

    Raises:
        DownloadError: a web page (it is deleted, so that the next run asks anew), or another hash.
    """
    with archive.open("rb") as file:
        head = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if head.startswith((b"<!doctype html", b"<html")):
            archive.unlink()
            raise DownloadError(
                f"{source}: a web page came instead of an archive, as when a quota is used up; "
                "open the address in a browser to read it, or try again in a few hours"
            )
        file.seek(0)
        digest, size = hashlib.sha256(), archive.stat().st_size
        with _byte_bar("sha256", size) as show:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                show(file.tell())
    if sha256 is not None and digest.hexdigest() != sha256.lower():
        raise DownloadError(
            f"{archive}: {size:,} bytes with sha256 {digest.hexdigest()} instead of {sha256.lower()}; "
            "delete it to download it again, or correct --sha256"
        )
    return digest.hexdigest()


# --- Unpack ------------------------------------------------------------------------------------------------


class _StrictMember(tarfile.TarInfo):
    """A header that may not be broken or missing; tarfile takes such a one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the zeros that end an archive
        except tarfile.HeaderError as error:
            # Not a HeaderError, which tarfile would swallow.
            raise tarfile.ReadError(f"cut off or broken after {archive.offset:,} bytes: {error}") from error


def unpack(archive: Path, folder: Path) -> int:
    """Unpacks a tar (plain, gz, bz2, xz) or zip into the new `folder` and returns the number of files.

    Only folders and plain files are written, through no link, with no owner, mode or time of the archive's.
    A link to a file of the archive becomes a copy of that file, after everything else.

    Raises:
        ArchiveError: damaged, of another type, or with a device or something that would lie outside `folder`.
        OutputError: the disk is full.
    """
    try:
        folder.mkdir(parents=True)
        with archive.open("rb") as raw, _byte_bar("unpack", archive.stat().st_size) as show:
            unpack_kind = _unpack_zip if raw.read(4) == b"PK\x03\x04" else _unpack_tar
            raw.seek(0)
            return unpack_kind(raw, archive, folder, show)
    except _DAMAGE as error:
        raise _damaged(archive, error) from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ArchiveError(f"{archive}: a name in it is a file and a folder ({error.filename})") from error
    except OSError as error:
        if error.errno is None:  # bz2 has no exception of its own for broken data
            raise _damaged(archive, error) from error
        raise write_error(folder, error) from error


def _damaged(archive: Path, error: Exception) -> ArchiveError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ArchiveError(
        f"{archive}: not an archive, or a damaged one ({reason}); delete it to fetch it again"
    )


def _unpack_tar(raw: IO[bytes], archive: Path, folder: Path, show: Callable[[int], None]) -> int:
    links: list[tuple[Path, Path, str]] = []
    num_files = 0
    with tarfile.open(fileobj=raw, mode="r:*", tarinfo=_StrictMember) as tar:
        while (member := tar.next()) is not None:
            path = _inside(folder, member.name, archive)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                content = tar.extractfile(member)
                assert content is not None  # is only for members that are neither file nor link
                _write(content, path)
                num_files += 1
            elif member.issym() or member.islnk():
                # A hard link names its target from the archive's root, a symbolic one from its own folder.
                start = Path(member.name).parent if member.issym() else Path()
                target = _inside(folder, os.path.normpath(start / member.linkname), archive)
                links.append((path, target, member.name))
            else:
                raise ArchiveError(f"{archive}: refused: {member.name!r} is a device or pipe, not a file")
            # tarfile keeps all headers it has seen; hundreds of thousands of them would fill the memory.
            tar.members.clear()  # type: ignore[attr-defined]
            show(raw.tell())
        # The check sums of compressed archives come last.
        while tar.fileobj is not None and tar.fileobj.read(CHUNK_BYTES):
            pass
    for path, target, name in links:
        if not target.is_file():
            raise ArchiveError(f"{archive}: refused: {name!r} is a link to no file of the archive")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, path)
    return num_files + len(links)


def _unpack_zip(raw: IO[bytes], archive: Path, folder: Path, show: Callable[[int], None]) -> int:
    num_files = 0
    with zipfile.ZipFile(raw) as zipped:
        for member in zipped.infolist():
            path = _inside(folder, member.filename, archive)
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the packer's system has no modes
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{archive}: refused: {member.filename!r} is a link or device, not a file")
            if member.flag_bits & 0x1:
                raise ArchiveError(f"{archive}: is encrypted; unpack it by hand")
            if member.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            with zipped.open(member) as content:
                _write(content, path)
            num_files += 1
            show(raw.tell())
    return num_files


def _inside(folder: Path, name: str, archive: Path) -> Path:
    """`folder / name`, if that lies in `folder` on any system.

    Raises:
        ArchiveError: an absolute path, one with `..`, one with a drive letter, or no valid file name.
    """
    parts = re.split(r"[/\\]", name)
    if not parts[0] or ".." in parts or "\0" in name or any(re.match("[A-Za-z]:", part) for part in parts):
        raise ArchiveError(f"{archive}: refused: {name!r} would be written outside the target folder")
    return folder.joinpath(*parts)


def _write(content: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file, CHUNK_BYTES)


def data_root(folder: Path) -> Path:
    """The folder in which `train_opus/manifest.jsonl` lies: `folder`, or the only folder in it, and so on.

    Raises:
        ArchiveError: there is none.
    """
    root = folder
    while not (root / "train_opus" / "manifest.jsonl").is_file():
        # macOS adds folders and files of its own to what it packs.
        entries = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith((".", "__MACOSX"))]
        if len(entries) != 1 or not entries[0].is_dir():
            found = ", ".join(entry.name for entry in entries[:5]) or "nothing"
            raise ArchiveError(
                f"the archive has no train_opus/manifest.jsonl but {found}; is it the right one?"
            )
        root = entries[0]
    return root


# --- Command -----------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvarts data download`."""
    parser.add_argument(
        "name", choices=["course"], help="the course's data: Russian speech for a voice assistant"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("data"), help="folder to make (default: data)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", help="fetch the archive from here instead of from Google Drive")
    source.add_argument(
        "--archive", type=Path, metavar="FILE", help="unpack this archive, fetched by other means"
    )
    parser.add_argument("--sha256", metavar="HEX", help="refuse an archive with another SHA-256")


def run(args: argparse.Namespace) -> int:
    """Fetches, checks, unpacks, renames; what succeeded is not done again by the next run."""
    output: Path = args.output.resolve()  # a link to a folder on a larger disk: work on that disk
    if args.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", args.sha256):
        raise ConfigError(f"--sha256 {args.sha256}: not a SHA-256; give 64 hexadecimal digits")
    _refuse_existing(output)
    workspace = output.with_name(f"{output.name}.download")
    staging = workspace / "unpacked"
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        archive, source = _obtain(args, workspace)
        digest = check_archive(archive, source, args.sha256)
        print(f"{archive}: {archive.stat().st_size:,} bytes, sha256 {digest}")
        shutil.rmtree(staging, ignore_errors=True)
        num_files = unpack(archive, staging)
        root = data_root(staging)
        _refuse_existing(output)
        root.rename(output)
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if workspace.is_dir() and not any(workspace.iterdir()):
            workspace.rmdir()
    shutil.rmtree(workspace, ignore_errors=True)
    print(f"{output}: {num_files:,} files")
    for manifest in sorted(output.rglob("manifest.jsonl")):
        print(f"  {manifest.relative_to(output)}")
    return 0


def _refuse_existing(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(f"{output}: exists and is left as it is; move it away, or choose another with -o")


def _obtain(args: argparse.Namespace, workspace: Path) -> tuple[Path, str]:
    """The archive's path, downloaded if it is not there yet, and what to call its source."""
    if args.archive is not None:
        archive: Path = args.archive
        if not archive.is_file():
            raise ArchiveError(f"{archive}: no such file; give the archive that was downloaded")
        return archive, str(archive)
    url: str = args.url or DRIVE_URL
    # Named by its source, so that parts of two different archives never meet.
    archive = workspace / f"archive-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    if not archive.is_file():
        print(f"from {url}")
        if args.url:
            fetch_http(url, archive)
        else:
            fetch_drive(url, archive)
    return archive, url
