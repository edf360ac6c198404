"""``kvarts data check --fix``: a new manifest without the lines that have errors, and with what could be put right."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

from kvarts.errors import ManifestError
from kvarts.lint import Report, Texts
from kvarts.lint_text import repaired_text
from kvarts.manifest import Utterance, read_lines, write_manifest

_MENDED: Final = {"look-alike", "mojibake", "duration-mismatch", "duplicate-id"}


@dataclass
class Fixed:
    """What was done with the lines of the manifests."""

    path: Path
    kept: int = 0  # as they were
    changed: int = 0
    dropped: int = 0
    actions: Texts = field(default_factory=Texts)  # of each line that was changed or dropped, in order

    def __str__(self) -> str:
        return f"{self.path}: {self.kept} lines as they were, {self.changed} changed, {self.dropped} dropped"


def write_fixed(report: Report, manifests: Sequence[Path], path: Path) -> Fixed:
    """Writes the lines of manifests, those of the tests not, into one new manifest.

    A line with errors is dropped, unless all of them can be put right: letters that only look Russian and text in
    another encoding are replaced, a wrong duration becomes the file's, and an id that another line has gets the number
    of its line behind it. Warnings change nothing. Paths of audio are
    written as seen from the new manifest.

    Raises:
        ManifestError: no line is left; nothing is written then.
        OutputError: the manifest cannot be written.
    """
    fixed = Fixed(path)
    write_manifest(path, _rows(report, manifests, fixed))
    return fixed


def _rows(report: Report, manifests: Sequence[Path], fixed: Fixed) -> Iterator[dict[str, Any]]:
    for index, line in enumerate(chain.from_iterable(map(read_lines, manifests)), start=report.lines.num_tests):
        errors = report.findings.names(index, errors_only=True)
        utterance = line.utterance
        if utterance is None or not _MENDED.issuperset(errors):
            fixed.dropped += 1
            reasons = [name for name in errors if name not in _MENDED] or ["bad-line"]
            fixed.actions.append(f"{report.lines.where(index)}: dropped: {', '.join(reasons)}")
            continue
        changes: dict[str, Any] = {}
        if not {"look-alike", "mojibake"}.isdisjoint(errors):
            changes["text"] = repaired_text(utterance.text)
        if "duration-mismatch" in errors:
            changes["duration"] = round(report.durations_s[index], 4)
        if "duplicate-id" in errors:
            changes["id"] = f"{utterance.utterance_id}-{line.number}"
        if changes:
            fixed.changed += 1
            done = "; ".join(f"{name} {utterance.fields[name]!r} becomes {value!r}" for name, value in changes.items())
            fixed.actions.append(f"{report.lines.where(index)}: changed: {done}")
        else:
            fixed.kept += 1
        yield {**utterance.fields, **changes, "audio_filepath": _seen_from(fixed.path.parent, utterance)}
    if not fixed.kept + fixed.changed:
        raise ManifestError(f"{fixed.path}: not written, for every line has an error that only you can correct")


def _seen_from(folder: Path, utterance: Utterance) -> str:
    named: str = utterance.fields["audio_filepath"]
    own = utterance.manifest.parent
    if Path(named).is_absolute() or own.resolve() == folder.resolve():
        return named
    return Path(os.path.relpath(own.resolve() / named, folder.resolve())).as_posix()
