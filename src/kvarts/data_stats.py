"""``kvarts data stats``: what is in manifests: how much, how long, which words, whose voices, how loud, how noisy.

Levels are those of `kvarts.lint_sound`. The signal-to-noise ratio is an estimate: the 95th percentile of the levels of
10 ms of a recording over its 10th. It is too high where pauses were made digital silence, and too low where there are
none or the room is reverberant. The spectrum is the mean log-mel of all frames, pauses too.
"""

from __future__ import annotations

import argparse
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvarts.errors import AudioError, ManifestError, OutputError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvarts.lint_sound import Sound
    from kvarts.manifest import Line

_PERCENTILES: Final = (0, 5, 50, 95, 100)
_SHOWN: Final = 8  # speakers, domains and characters; --json has all of them
_GROUPS: Final = ("speaker", "gender", "domain", "language", "licence")


@dataclass
class Stats:
    """What is in one manifest, or in several together. A line takes 28 bytes, beside the vocabulary.

    Attributes:
        durations_s: of each line, of its file where audio is read, else as the manifest says.
        levels_db, snrs_db, peaks: of each recording; empty without audio.
        spectrum_db: (64,) sum of the recordings' mean spectra, each weighed by its seconds.
        groups: of each field that lines have (speaker, domain, …) by value the number of lines and their seconds.
    """

    name: str
    durations_s: array[float] = field(default_factory=lambda: array("d"))
    word_counts: array[int] = field(default_factory=lambda: array("I"))
    words: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    groups: dict[str, dict[str, tuple[int, float]]] = field(default_factory=dict)
    levels_db: array[float] = field(default_factory=lambda: array("f"))
    snrs_db: array[float] = field(default_factory=lambda: array("f"))
    spectrum_db: NDArray[np.float64] | None = None

    def add(self, fields: dict[str, Any], text: str, duration_s: float, sound: Sound | None) -> None:
        """One more line, with its normalised text."""
        words = text.split()
        if sound is not None:
            duration_s = sound.duration_s
            self.levels_db.append(sound.level_db)
            self.snrs_db.append(sound.snr_db)
            weighed = sound.spectrum_db.astype("f8") * duration_s
            self.spectrum_db = weighed if self.spectrum_db is None else self.spectrum_db + weighed
        self.durations_s.append(duration_s)
        self.word_counts.append(len(words))
        self.words.update(words)
        self.characters.update(text.replace(" ", ""))
        for name in _GROUPS:
            if fields.get(name) is not None:
                self.add_to_group(name, str(fields[name]), 1, duration_s)

    def add_to_group(self, name: str, value: str, lines: int, seconds: float) -> None:
        """More lines with this value of a field."""
        group = self.groups.setdefault(name, {})
        before = group.get(value, (0, 0.0))
        group[value] = before[0] + lines, before[1] + seconds

    def as_json(self) -> dict[str, Any]:
        """Plain numbers; percentiles by their number; what is not known is left out."""
        import numpy as np

        from kvarts.features import mel_peaks_hz

        durations_s, words = np.array(self.durations_s), np.array(self.word_counts)
        found: dict[str, Any] = {
            "name": self.name,
            "utterances": len(durations_s),
            "hours": float(durations_s.sum()) / 3600,
            "duration_s": _percentiles(durations_s),
            "words": int(words.sum()),
            "vocabulary": len(self.words),
            "words_once": sum(count == 1 for count in self.words.values()),
            "words_per_utterance": _percentiles(words),
            "words_per_second": _percentiles(words / durations_s),
            "characters": dict(self.characters.most_common()),
        }
        for name, group in self.groups.items():
            most_first = sorted(group.items(), key=lambda item: -item[1][1])
            found[name] = {
                value: {"utterances": lines, "hours": seconds / 3600} for value, (lines, seconds) in most_first
            }
        if self.spectrum_db is not None:
            mean_db = self.spectrum_db / durations_s.sum()
            found["level_db"] = _percentiles(np.array(self.levels_db))
            found["snr_db"] = _percentiles(np.array(self.snrs_db))
            found["spectrum_hz"] = [round(float(hz), 1) for hz in mel_peaks_hz()]
            found["spectrum_db"] = [round(float(value), 2) for value in mean_db]
        return found


def _percentiles(values: NDArray[Any]) -> dict[str, float]:
    import numpy as np

    return {str(q): float(value) for q, value in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True)}


def together(parts: Sequence[Stats]) -> Stats:
    """Several manifests as one."""
    whole = Stats("together")
    for part in parts:
        whole.durations_s.extend(part.durations_s)
        whole.word_counts.extend(part.word_counts)
        whole.levels_db.extend(part.levels_db)
        whole.snrs_db.extend(part.snrs_db)
        whole.words.update(part.words)
        whole.characters.update(part.characters)
        for name, group in part.groups.items():
            for value, (lines, seconds) in group.items():
                whole.add_to_group(name, value, lines, seconds)
        if part.spectrum_db is not None:
            whole.spectrum_db = part.spectrum_db + (0 if whole.spectrum_db is None else whole.spectrum_db)
    return whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Counts and measures what is in manifests: hours, lengths, words, characters, speakers, levels, an estimate of "
        "the signal-to-noise ratio, the mean spectrum."
    )
    parser.add_argument("manifests", metavar="M", nargs="+", type=Path, help="a manifest, JSON Lines")
    parser.add_argument("--no-audio", action="store_true", help="read no audio: durations are the manifest's")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers there")
    parser.add_argument(
        "--picture", metavar="PNG", type=Path, help="draw durations, words a second, signal-to-noise ratio and spectrum"
    )


def run(args: argparse.Namespace) -> int:
    """Reads the manifests and prints the table.

    Raises:
        ConfigError: a manifest is given twice.
        ManifestError, AudioError: a manifest has bad lines, or files could not be read.
        OutputError: a file could not be written.
    """
    from kvarts.evaluate import name_manifests
    from kvarts.files import atomic_text_writer

    for path in (args.json, args.picture):
        if path is not None and path.is_dir():  # told before the work
            raise OutputError(f"{path}: is a folder; name a file in it")
    parts = [
        manifest_stats(path, name=name, audio=not args.no_audio)
        for name, path in name_manifests(args.manifests).items()
    ]
    shown = [*parts, together(parts)] if len(parts) > 1 else parts
    figures = [part.as_json() for part in shown]
    print("\n".join(_table(figures)))
    if args.json is not None:
        with atomic_text_writer(args.json) as file:
            json.dump({"manifests": figures}, file, ensure_ascii=False, indent=2)
            file.write("\n")
        print(f"figures: {args.json}")
    if args.picture is not None:
        draw_stats(parts, args.picture)
        print(f"picture: {args.picture}")
    return 0


def manifest_stats(path: Path, *, name: str, audio: bool = True) -> Stats:
    """Reads a manifest line by line and, unless `audio` is false, decodes its files.

    Raises:
        ManifestError: it cannot be read, is empty or has bad lines.
        AudioError: files could not be read.
    """
    from kvarts.lint import with_sound
    from kvarts.manifest import read_lines
    from kvarts.progress import progress_bar
    from kvarts.text import normalise

    stats = Stats(name)
    bad_lines: list[str] = []
    failures: list[str] = []
    size = path.stat().st_size if path.is_file() else 0
    with progress_bar(f"reading {name}", size) as advance:
        line: Line
        for line, sound in with_sound(read_lines(path), audio):
            advance(line.size)
            if line.utterance is None:
                bad_lines.append(f"{path}:{line.number}: {line.error}")
            elif isinstance(sound, AudioError):
                failures.append(f"{line.utterance.where}: {sound}")
            else:
                stats.add(line.utterance.fields, normalise(line.utterance.text), line.utterance.duration_s, sound)
    if bad_lines:
        raise ManifestError(listing(f"{path}: bad lines, which kvarts data check --fix leaves out", bad_lines))
    if failures:
        raise AudioError(listing(f"{path}: files that could not be read; try --no-audio", failures))
    return stats


def _table(figures: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of text, a column for each manifest; lists of speakers and the like below."""
    percentiles = {
        "duration, s": "duration_s",
        "words an utterance": "words_per_utterance",
        "words a second": "words_per_second",
        "level, dB": "level_db",
        "SNR estimate, dB": "snr_db",
    }
    rows = [
        ["", *(one["name"] for one in figures)],
        ["utterances", *(f"{one['utterances']:,}" for one in figures)],
        ["hours", *(f"{one['hours']:.3f}" for one in figures)],
        ["words", *(f"{one['words']:,}" for one in figures)],
        ["vocabulary", *(f"{one['vocabulary']:,}" for one in figures)],
        ["  of them once", *(f"{one['words_once']:,}" for one in figures)],
        ["characters", *(str(len(one["characters"])) for one in figures)],
        *([f"{name}s", *(str(len(one.get(name, {}))) for one in figures)] for name in ("speaker", "domain")),
    ]
    for title, key in percentiles.items():
        if key in figures[0]:
            rows.append([f"{title} (0, 5, 50, 95, 100 %)", *(_five(one[key].values()) for one in figures)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    whole = figures[-1]
    for name in _GROUPS:
        if name in whole:
            lines.append(f"{name}: {_most(whole[name])}")
    rare = sorted(whole["characters"].items(), key=lambda pair: pair[1])[:_SHOWN]
    lines.append("rarest characters: " + ", ".join(f"{character} {count:,}" for character, count in rare))
    return lines


def _five(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _most(groups: dict[str, dict[str, float]]) -> str:
    shown = [f"{value} {one['hours']:.3f} h" for value, one in list(groups.items())[:_SHOWN]]
    more = [f"… and {len(groups) - _SHOWN} more"] if len(groups) > _SHOWN else []
    return ", ".join([*shown, *more])


def draw_stats(parts: Sequence[Stats], path: Path) -> None:
    """Histograms of durations, words a second and signal-to-noise ratios, and mean spectra, of each manifest, as PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from kvarts.features import mel_peaks_hz
    from kvarts.files import atomic_writer

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).flat
    histograms = {
        "duration, s": [np.array(part.durations_s) for part in parts],
        "words a second": [np.array(part.word_counts) / np.array(part.durations_s) for part in parts],
        "SNR estimate, dB": [np.array(part.snrs_db) for part in parts],
    }
    for panel, (label, columns) in zip(panels, histograms.items(), strict=False):
        known = [column for column in columns if len(column)]
        if known:
            edges = np.histogram_bin_edges(np.concatenate(known), 40)
            for part, column in zip(parts, columns, strict=True):
                panel.hist(column, edges, histtype="step", label=part.name)
        panel.set_xlabel(label)
        panel.set_ylabel("utterances")
        panel.grid(alpha=0.3)
    spectra = figure.axes[3]
    for part in parts:
        if part.spectrum_db is not None:
            spectra.plot(mel_peaks_hz(), part.spectrum_db / sum(part.durations_s), label=part.name)
    spectra.set_xlabel("Hz")
    spectra.set_ylabel("mean log-mel power, dB")
    spectra.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=100)
