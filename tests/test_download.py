"""`kvarts data download` against an HTTP server on loopback, with good, broken and hostile archives."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import random
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gdown
import pytest

from archives import make_tar, make_zip
from kvarts import cli, download
from kvarts.errors import ArchiveError, ConfigError, DownloadError, KvartsError, OutputError

FILES = {
    "train_opus/manifest.jsonl": b'{"audio_filepath": "a.opus"}\n',
    "train_opus/a.opus": random.Random(0).randbytes(150_000),
    "test_opus/crowd/manifest.jsonl": b"{}\n",
    "test_opus/farfield/manifest.jsonl": b"{}\n",
    "q5x5.ckpt": random.Random(1).randbytes(50_000),
}


class Site:
    """What the server does; each list is used up request by request, its last entry stays."""

    def __init__(self) -> None:
        self.body = make_tar(FILES)
        self.honours_ranges = True
        self.etag: str | None = '"one"'
        self.content_type = "application/octet-stream"
        self.statuses = [200]
        self.sent_bytes: list[int | None] = [None]  # of the body, then the connection is cut; None: all
        self.ranges: list[str | None] = []  # asked for
        self.url = ""


def next_of(values: list) -> object:
    return values.pop(0) if len(values) > 1 else values[0]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.ranges.append(asked)
            status, sent = next_of(site.statuses), next_of(site.sent_bytes)
            body, content_range = site.body, None
            match = re.fullmatch(r"bytes=(\d+)-", asked or "")
            valid = self.headers.get("If-Range") in (None, site.etag)
            if status == 200 and match and site.honours_ranges and valid:
                start = int(match[1])
                status = 206 if start < len(body) else 416
                content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
                if status == 416:
                    content_range = f"bytes */{len(body)}"
                body = body[start:]
            self.send_response(status)
            self.send_header("Content-Type", site.content_type)
            self.send_header("Content-Length", str(len(body)))
            if content_range:
                self.send_header("Content-Range", content_range)
            if site.etag:
                self.send_header("ETag", site.etag)
            self.end_headers()
            self.wfile.write(body[:sent])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}/archive"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "RETRY_WAIT_S", 0.0)
    yield site
    server.shutdown()
    server.server_close()


def fetch(folder: Path, *arguments: str) -> None:
    """Runs the command for `folder`/data without the command line's handling of errors."""
    parser = cli._parser()
    parsed = parser.parse_args(["data", "download", "course", "-o", str(folder / "data"), *arguments])
    assert parsed.run(parsed) == 0


def assert_complete(folder: Path) -> None:
    data = folder / "data"
    found = {
        file.relative_to(data).as_posix(): file.read_bytes() for file in data.rglob("*") if file.is_file()
    }
    assert found == FILES
    assert [entry.name for entry in folder.iterdir()] == ["data"]  # nothing is left beside it


# --- Download ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["", "data/", "./", "./some/where/"])
@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_the_data_folder_is_the_same_whatever_the_archive(
    site: Site, tmp_path: Path, kind: str, top: str
) -> None:
    site.body = make_zip(FILES, top) if kind == "zip" else make_tar(FILES, kind, top)
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)


def test_size_and_hash_are_shown(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(tmp_path, "--url", site.url)
    output = capsys.readouterr().out
    assert f"{len(site.body):,} bytes" in output
    assert hashlib.sha256(site.body).hexdigest() in output
    assert "test_opus/farfield/manifest.jsonl" in output


def test_a_cut_connection_is_resumed_where_it_was_cut(site: Site, tmp_path: Path) -> None:
    site.sent_bytes = [70_000, 30_000, None]
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)
    assert site.ranges == [None, "bytes=70000-", "bytes=100000-"]


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_the_next_run_resumes(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str | None
) -> None:
    site.etag, site.sent_bytes = etag, [70_000, None]
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match="cut after 70,000 bytes; run the command again to continue"):
        fetch(tmp_path, "--url", site.url)
    assert not (tmp_path / "data").exists()
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)
    assert site.ranges == [None, "bytes=70000-"]


def test_a_server_without_ranges_is_asked_for_everything_again(site: Site, tmp_path: Path) -> None:
    site.honours_ranges, site.sent_bytes = False, [70_000, None]
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)
    assert len(site.ranges) == 2


def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    good, site.body, site.sent_bytes = site.body, bytes(len(site.body)), [70_000, None]
    with pytest.raises(DownloadError):
        fetch(tmp_path, "--url", site.url)
    site.body, site.etag = good, '"two"'
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)


@pytest.mark.parametrize("surplus", [0, 10])
def test_a_part_as_long_as_the_file_or_longer(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surplus: int
) -> None:
    # Killed between the last byte and the rename; or the part of a longer file, from a server without ETags.
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.sent_bytes, site.etag = [70_000, None], None
    with pytest.raises(DownloadError):
        fetch(tmp_path, "--url", site.url)
    (part,) = (tmp_path / "data.download").glob("*.part")
    part.write_bytes(site.body + bytes(surplus))
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)
    assert len(site.ranges) == (3 if surplus else 2)


def test_a_body_that_is_always_cut_ends_in_one_line(site: Site, tmp_path: Path) -> None:
    site.honours_ranges, site.sent_bytes = False, [1000]
    with pytest.raises(DownloadError, match="cut after 1,000 bytes"):
        fetch(tmp_path, "--url", site.url)
    assert len(site.ranges) == download.ATTEMPTS
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 5), (503, 5)])
def test_refusals_name_the_status(site: Site, tmp_path: Path, status: int, requests: int) -> None:
    site.statuses = [status]
    with pytest.raises(DownloadError, match=f"the server answered {status}"):
        fetch(tmp_path, "--url", site.url)
    assert (
        len(site.ranges) == requests
    )  # a server in trouble is asked again, a clear no is taken for an answer
    assert list(tmp_path.iterdir()) == []


def test_trouble_that_passes(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 200]
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)


def test_a_web_page_is_not_kept_as_the_archive(site: Site, tmp_path: Path) -> None:
    archive, site.content_type = site.body, "text/html"
    site.body = b"\n<!DOCTYPE html><html><title>Quota exceeded</title></html>"
    with pytest.raises(
        DownloadError, match="a web page came instead of an archive, as when a quota is used up"
    ):
        fetch(tmp_path, "--url", site.url)
    site.body = archive
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)


def test_no_network(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with pytest.raises(DownloadError, match=r"^http://127.0.0.1:1/x: no connection; check the network; run"):
        fetch(tmp_path, "--url", "http://127.0.0.1:1/x")


@pytest.mark.parametrize("url", ["example", "ftp://example/x", "http://"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match=f"^{url}: not a web address"):
        fetch(tmp_path, "--url", url)


def test_the_hash_is_checked_when_given(site: Site, tmp_path: Path) -> None:
    right = hashlib.sha256(site.body).hexdigest()
    with pytest.raises(DownloadError, match=f"sha256 {right} instead of {'0' * 64}"):
        fetch(tmp_path, "--url", site.url, "--sha256", "0" * 64)
    assert not (tmp_path / "data").exists()
    fetch(tmp_path, "--url", site.url, "--sha256", right.upper())
    assert_complete(tmp_path)
    assert len(site.ranges) == 1  # 3 GB are not fetched again because of a slip of the pen
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        fetch(tmp_path / "other", "--url", site.url, "--sha256", "abc")


def test_data_that_exist_are_never_touched(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is left as it is"):
        fetch(tmp_path, "--url", site.url)
    assert site.ranges == []
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_an_empty_folder_and_a_link_to_another_disk_are_used(site: Site, tmp_path: Path) -> None:
    (tmp_path / "large disk/data").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "large disk/data")
    fetch(tmp_path, "--url", site.url)
    assert (tmp_path / "data").is_symlink()
    assert_complete(tmp_path / "large disk")


def test_an_archive_fetched_by_other_means_is_kept(tmp_path: Path) -> None:
    archive = tmp_path / "elsewhere" / "archive.zip"
    archive.parent.mkdir()
    archive.write_bytes(make_zip(FILES, "data/"))
    fetch(tmp_path / "here", "--archive", str(archive))
    assert_complete(tmp_path / "here")
    assert archive.exists()
    with pytest.raises(ArchiveError, match="no such file"):
        fetch(tmp_path / "there", "--archive", str(tmp_path / "missing"))


def test_a_full_disk_while_downloading(site: Site, tmp_path: Path) -> None:
    # The operating system's own limit on the size of files, in a process of its own.
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from kvarts.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["data", "download", "course", "-o", str(tmp_path / "data"), "--url", site.url]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"kvarts: error: \S+\.part: could not be written \(File too large\).*\n", done.stderr)
    assert not (tmp_path / "data").exists()


def test_the_command_line_gives_one_line_and_code_2(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.statuses = [404]
    assert cli.main(["data", "download", "course", "-o", str(tmp_path / "data"), "--url", site.url]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "404" in error


# --- Google Drive ------------------------------------------------------------------------------------------


def test_the_drive_is_asked_for_the_courses_file() -> None:
    assert download.DRIVE_URL == "https://drive.google.com/uc?id=1TEOR60JXgOkPrC6jSLhuR2Nb6eCegjpd"


def test_gdown_fetches_and_resumes(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "DRIVE_URL", site.url)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.body += bytes(1_000_000)  # gdown keeps whole pieces of half a megabyte
    site.sent_bytes = [600_000, None]
    with pytest.raises(DownloadError, match="run the command again to continue, or open http") as caught:
        fetch(tmp_path)
    assert "\n" not in str(caught.value)
    fetch(tmp_path)
    assert_complete(tmp_path)
    assert site.ranges[-1] == f"bytes={512 * 1024}-"


@pytest.mark.parametrize(
    ("status", "message"), [(404, "the server answered 404"), (500, "the server answered 500")]
)
def test_gdown_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    monkeypatch.setattr(download, "DRIVE_URL", site.url)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.statuses = [status]
    with pytest.raises(DownloadError, match=message):
        fetch(tmp_path)


@pytest.mark.parametrize("attempts", [1, 2])
def test_gdown_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "DRIVE_URL", "http://127.0.0.1:1/x")
    monkeypatch.setattr(download, "ATTEMPTS", attempts)
    with pytest.raises(DownloadError, match="no connection; check the network"):
        fetch(tmp_path)


def test_a_quota_that_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise gdown.exceptions.FileURLRetrievalError(
            "Too many users have viewed\n\nor downloaded this file recently."
        )

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(
        DownloadError, match=r"^Google Drive does not hand out the file: its quota .*--archive FILE$"
    ):
        fetch(tmp_path)


# --- Broken archives ---------------------------------------------------------------------------------------


def unpack(folder: Path, content: bytes) -> Path:
    """Unpacks `content` through the whole command and returns the data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder.parent / "archive.tar"
    archive.write_bytes(content)
    fetch(folder, "--archive", str(archive))
    return folder / "data"


def tar_end(content: bytes) -> int:
    """Where the zeros that end a plain tar begin."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.getmembers()
        return tar.offset


BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no archive at all\n" * 100,
    "tar cut in a file": lambda: make_tar(FILES)[:100_000],
    "tar cut between files": lambda: make_tar(FILES)[: tar_end(make_tar(FILES))],
    "tar cut in a header": lambda: make_tar(FILES)[: 1024 + 300],
    "tar with a broken header": lambda: make_tar(FILES)[:1024] + b"\xff" * 512 + make_tar(FILES)[1536:],
    "gz cut": lambda: make_tar(FILES, "w:gz")[:100_000],
    "gz cut in its check sum": lambda: make_tar(FILES, "w:gz")[:-6],
    "gz with a wrong check sum": lambda: gzip.compress(make_tar(FILES))[:-8] + bytes(8),
    "bz2 cut": lambda: make_tar(FILES, "w:bz2")[:100_000],
    "bz2 with broken data": lambda: make_tar(FILES, "w:bz2")[:-5000] + bytes(5000),
    "xz cut": lambda: make_tar(FILES, "w:xz")[:100_000],
    "zip cut": lambda: make_zip(FILES)[:100_000],
    "zip with broken data": lambda: make_zip(FILES).replace(FILES["q5x5.ckpt"][100:200], bytes(100)),
    "zip with a password": lambda: make_zip(FILES).replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ),
    "another archive": lambda: make_tar({"readme.txt": b"hello"}),
    "file as folder": lambda: make_tar({"train_opus": b"", "train_opus/manifest.jsonl": b"{}\n"}),
    "folder as file": lambda: make_tar({**FILES, "train_opus": b""}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_archives_leave_no_data_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        unpack(tmp_path / "here", BROKEN[name]())
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "here").iterdir()) == []
    assert (tmp_path / "archive.tar").exists()


def test_random_damage_is_never_a_traceback(tmp_path: Path) -> None:
    generator = random.Random(0)
    small = {name: content[:700] for name, content in FILES.items()}
    originals = [make_tar(small), make_tar(small, "w:gz"), make_tar(small, "w:xz"), make_zip(small)]
    messages: list[str] = []
    for turn in range(200):
        damaged = bytearray(originals[turn % 4])
        for _ in range(generator.randint(1, 20)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            unpack(tmp_path / str(turn) / "here", bytes(damaged))
        except KvartsError as error:
            messages.append(str(error))
        assert {entry.name for entry in (tmp_path / str(turn)).iterdir()} == {"here", "archive.tar"}
        assert {entry.name for entry in (tmp_path / str(turn) / "here").iterdir()} <= {"data"}
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


def test_what_a_killed_run_left_does_not_get_into_the_data(site: Site, tmp_path: Path) -> None:
    left = tmp_path / "data.download/unpacked/train_opus/half.opus"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    fetch(tmp_path, "--url", site.url)
    assert_complete(tmp_path)


def test_a_full_disk_while_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OutputError, match="No space left on device"):
        unpack(tmp_path / "here", make_tar(FILES))
    assert list((tmp_path / "here").iterdir()) == []


# --- Hostile archives --------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, linkname, 0o4777
    return info


HOSTILE = {
    "parent": [member("../evil")],
    "parent inside": [member("train_opus/../../evil")],
    "absolute": [member("/tmp/kvarts-evil")],
    "backslashes": [member("..\\evil")],
    "drive letter": [member("C:evil")],
    "drive letter inside": [member("train_opus/C:evil")],
    "symbolic link out": [member("link", tarfile.SYMTYPE, "../../evil")],
    "absolute symbolic link": [member("link", tarfile.SYMTYPE, "/etc/passwd")],
    "through a symbolic link": [member("link", tarfile.SYMTYPE, ".."), member("link/evil")],
    "through a link to a folder": [member("link", tarfile.SYMTYPE, "train_opus"), member("link/evil")],
    "chain of links": [member("a", tarfile.SYMTYPE, "b"), member("b", tarfile.SYMTYPE, "a")],
    "hard link out": [member("link", tarfile.LNKTYPE, "../evil")],
    "absolute hard link": [member("link", tarfile.LNKTYPE, "/etc/passwd")],
    "hard link to nothing": [member("link", tarfile.LNKTYPE, "nothing")],
    "device": [member("device", tarfile.CHRTYPE)],
    "block device": [member("device", tarfile.BLKTYPE)],
    "pipe": [member("pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_refused(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file, content in FILES.items():
            info = tarfile.TarInfo(file)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in HOSTILE[name]:
            tar.addfile(info)
    with pytest.raises(ArchiveError):
        unpack(tmp_path / "inner/here", buffer.getvalue())
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/kvarts-evil").exists()
    assert list((tmp_path / "inner/here").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/kvarts-evil", "train_opus/../../evil", "..\\evil", "C:\\evil"]
)
def test_zip_slip_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match=r"refused: .* outside the target folder"):
        unpack(tmp_path / "inner/here", make_zip({**FILES, name: b"evil"}))
    assert not list(tmp_path.rglob("*evil*"))
    assert list((tmp_path / "inner/here").iterdir()) == []


def test_links_in_zips_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO(make_zip(FILES))
    with zipfile.ZipFile(buffer, "a") as zipped:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match="'link' is a link or device"):
        unpack(tmp_path / "here", buffer.getvalue())


def test_links_within_the_archive_become_copies(tmp_path: Path) -> None:
    buffer = io.BytesIO(make_tar(FILES))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        tar.addfile(member("last.ckpt", tarfile.SYMTYPE, "q5x5.ckpt"))
        tar.addfile(member("train_opus/up.ckpt", tarfile.SYMTYPE, "../q5x5.ckpt"))
        tar.addfile(member("train_opus/hard.opus", tarfile.LNKTYPE, "train_opus/a.opus"))
    data = unpack(tmp_path / "here", buffer.getvalue())
    for name, original in [
        ("last.ckpt", "q5x5.ckpt"),
        ("train_opus/up.ckpt", "q5x5.ckpt"),
        ("train_opus/hard.opus", "train_opus/a.opus"),
    ]:
        assert not (data / name).is_symlink()
        assert (data / name).read_bytes() == FILES[original]


def test_no_modes_come_from_the_archive(tmp_path: Path) -> None:
    buffer = io.BytesIO(make_tar(FILES))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        tar.addfile(member("program"))  # setuid, and writable for everyone
    data = unpack(tmp_path / "here", buffer.getvalue())
    assert (data / "program").stat().st_mode & 0o7133 == 0
