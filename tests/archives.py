"""Archives in memory, of files given by name."""

from __future__ import annotations

import io
import tarfile
import zipfile


def make_tar(files: dict[str, bytes], mode: str = "w", top: str = "") -> bytes:
    """A tar; `mode` as of tarfile.open, `top` is put before each name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_zip(files: dict[str, bytes], top: str = "") -> bytes:
    """A compressed zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return buffer.getvalue()


def make_deb(data: bytes, data_name: str = "data.tar.xz") -> bytes:
    """A Debian package (deb(5)) that holds `data`, a tar of files, under the name of that member."""
    deb = b"!<arch>\n"
    for name, content in {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", data_name: data}.items():
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        deb += content + b"\n" * (len(content) % 2)
    return deb
