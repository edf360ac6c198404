"""C files of this package, compiled on first use for exactly this processor, in a second or two each.

The libraries stay in the user's cache folder. CC in the environment names the compiler, as everywhere; CC=false leaves
it out. Whatever is done in C can be done without, slower, for machines that have no compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from kvarts.files import cache_dir

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")


class NoLibraryError(Exception):
    """There is no compiled library; the message says why."""


def compiled(name: str, flags: Sequence[str] = FLAGS) -> Path:
    """The library made of the file ``<name>.c`` of this package.

    Raises:
        NoLibraryError: no compiler, it failed, or there is no folder to keep the library in.
    """
    source = resources.files("kvarts").joinpath(f"{name}.c").read_bytes()
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise NoLibraryError("no C compiler; with one, it is faster")
    root = cache_dir()
    if root is None:
        raise NoLibraryError("you have no home folder to keep compiled ones in")
    try:
        path = root / "native" / f"kvarts-{name}-{_digest(source, compiler, flags)}.so"
        if not path.is_file():
            compile_source(source, compiler, flags, path)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoLibraryError(f"{shlex.join(compiler)}: {' '.join(str(error).split())}") from error
    return path


def compile_source(source: bytes, compiler: Sequence[str], flags: Sequence[str], path: Path) -> None:
    """Compiles a C file into a shared library at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        (Path(folder) / "source.c").write_bytes(source)
        command = [*compiler, *flags, "source.c", "-o", "library.so", "-lm"]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=120)
        (Path(folder) / "library.so").replace(path)  # whole or not at all, whoever else is at it


def processor_features() -> set[str]:
    """What this processor can do, in the kernel's words; empty where there is no /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return set()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split(":", 1)[1].split()}


def _digest(source: bytes, compiler: list[str], flags: Sequence[str]) -> str:
    """Another processor, compiler or source is another library: home folders are shared by machines."""
    with_version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    processor = " ".join((platform.machine(), *sorted(processor_features())))
    what = (source, with_version, processor.encode(), " ".join((*compiler, *flags)).encode())
    return hashlib.sha256(b"\0".join(what)).hexdigest()[:16]
