"""`kvarts data check` against faults of which it is known where they are: how many it finds, and what it makes up.

    python benchmarks/lint.py --manifest M [M2 …] [--lines 10000] [--each 40] [--seed 0] [--model MODEL] [--json FILE]

Lines are drawn from clean manifests, no text twice; one in ten becomes the test set, and what is nearly one of its
texts is left out. Into the others 27 kinds of fault are planted, each into `--each` lines of its own, with --model one
more. A fault is found if its line has a finding of that name. A false alarm is a line without a fault that has any
finding; the line that a fault copies from is counted with the fault. The same manifest is read without audio three
times; lines a second is the median, of the clock and, where other programs run, of the processor's time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from kvarts.audio import read_audio
from kvarts.frames import SAMPLE_RATE
from kvarts.lint import KINDS, Report, lint
from kvarts.manifest import read_manifest
from kvarts.text import normalise

Row = dict[str, Any]


class Planter:
    """Plants one fault a call; every method gets a line's row and changes it, and may give a line of its own instead.

    `others` are clean training lines that come before, `tests` lines of the test set, each used once.
    """

    def __init__(self, folder: Path, random: Random, others: list[Row], tests: list[Row]) -> None:
        self.folder, self.random, self.others, self.tests = folder, random, others, tests
        self.noise = np.random.default_rng(random.randrange(2**32))
        self.files = 0

    def sound(self, row: Row, waveform: np.ndarray, kind: str = "wav") -> None:
        """Gives the row a new file, and its duration."""
        self.files += 1
        path = self.folder / f"planted-{self.files}.{kind}"
        coder = {"format": "OGG", "subtype": "OPUS"} if kind == "opus" else {}
        soundfile.write(path, waveform, SAMPLE_RATE, **coder)
        row["audio_filepath"] = str(path)
        row["duration"] = len(waveform) / SAMPLE_RATE

    def broken_json(self, row: Row) -> str:
        line = json.dumps(row, ensure_ascii=False)
        return line[: self.random.randrange(1, len(line) - 1)]

    def missing_field(self, row: Row) -> None:
        del row[self.random.choice(["audio_filepath", "text", "duration"])]

    def bad_duration(self, row: Row) -> None:
        row["duration"] = self.random.choice([0, -1.5, "3.2", None])

    def empty_text(self, row: Row) -> None:
        row["text"] = self.random.choice(["", "…", " - "])

    def mojibake(self, row: Row) -> None:
        codec = self.random.choice(["cp1251", "cp1252"])

        def shown(byte: int) -> str:
            try:
                return bytes([byte]).decode(codec)
            except UnicodeDecodeError:
                return chr(byte)

        row["text"] = "".join(map(shown, row["text"].encode()))

    def look_alike(self, row: Row) -> None:
        places = [place for place, letter in enumerate(row["text"]) if letter in "асеорх"]
        place = self.random.choice(places)
        letter = dict(zip("асеорх", "aceopx", strict=True))[row["text"][place]]
        row["text"] = row["text"][:place] + letter + row["text"][place + 1 :]

    def digits(self, row: Row) -> None:
        self.replace_word(row, str(self.random.randrange(2000)))

    def foreign_letters(self, row: Row) -> None:
        self.replace_word(row, self.random.choice(["wifi", "їжак", "google", "ω"]))

    def markup(self, row: Row) -> None:
        row["text"] += self.random.choice([" [смех]", " <шум>", " (неразборчиво)"])

    def repetition(self, row: Row) -> None:
        word = self.random.choice(row["text"].split())
        row["text"] += f" {word}" * 6

    def long_word(self, row: Row) -> None:
        row["text"] = row["text"].replace(" ", "")
        while len(row["text"]) < 32:
            row["text"] += self.random.choice(self.others)["text"].replace(" ", "")

    def infeasible(self, row: Row) -> None:
        while len(row["text"]) < 26 * row["duration"]:
            row["text"] += " " + self.random.choice(self.others)["text"]

    def duration_mismatch(self, row: Row) -> None:
        row["duration"] *= self.random.choice([0.5, 0.9, 1.1, 3.0])

    def audio_missing(self, row: Row) -> None:
        row["audio_filepath"] += ".gone"

    def audio_damaged(self, row: Row) -> None:
        content = Path(row["audio_filepath"]).read_bytes()
        cut = self.random.choice([content[: len(content) // 2], b"", self.random.randbytes(5000)])
        self.files += 1
        path = self.folder / f"planted-{self.files}{Path(row['audio_filepath']).suffix}"
        path.write_bytes(cut)
        row["audio_filepath"] = str(path)

    def too_short(self, row: Row) -> None:
        self.sound(row, read_audio(row["audio_filepath"])[: self.random.randrange(1, 390)])

    def silent(self, row: Row) -> None:
        samples = round(row["duration"] * SAMPLE_RATE)
        level = self.random.choice([0.0, 1e-4, 0.03])
        self.sound(row, self.noise.normal(0, level, samples).astype(np.float32) if level else np.zeros(samples))

    def clipped(self, row: Row) -> None:
        waveform = read_audio(row["audio_filepath"])
        cut = np.clip(self.random.uniform(2, 6) / np.abs(waveform).max() * waveform, -1, 1)
        if self.random.random() < 0.5:
            self.sound(row, cut, "opus")
        else:
            self.sound(row, self.random.uniform(0.3, 1) * cut)

    def truncated(self, row: Row) -> None:
        """Cut where speech is within 10 dB of the recording's loud parts, up to a third from either end."""
        waveform = read_audio(row["audio_filepath"])
        powers = waveform[: len(waveform) // 320 * 320].reshape(-1, 320).var(axis=1)
        loud = np.flatnonzero(powers > 0.1 * np.percentile(powers, 95))
        if self.random.random() < 0.5:
            stop = self.random.choice(loud[loud >= 2 * len(powers) // 3].tolist() or loud[-1:].tolist())
            self.sound(row, waveform[: 320 * (stop + 1)])
        else:
            start = self.random.choice(loud[loud <= len(powers) // 3].tolist() or loud[:1].tolist())
            self.sound(row, waveform[320 * start :])

    def speech_rate(self, row: Row) -> None:
        """A third of the text and less, or the texts of other lines behind it, more than twice as long together."""
        if self.random.random() < 0.5:
            row["text"] = row["text"][: max(6, round(self.random.uniform(0.2, 0.35) * len(row["text"])))].strip()
            return
        target = self.random.uniform(2.2, 3) * len(row["text"])
        while len(row["text"]) < target:
            row["text"] += " " + self.random.choice(self.others)["text"]

    def duplicate_id(self, row: Row) -> None:
        row["id"] = self.others.pop()["id"]

    def duplicate_audio(self, row: Row) -> None:
        """Of the test set, as it is or as wav."""
        other = self.tests.pop()
        row.update(audio_filepath=other["audio_filepath"], duration=other["duration"], text=other["text"])
        if self.random.random() < 0.5:
            waveform = read_audio(other["audio_filepath"])
            self.files += 1
            path = self.folder / f"planted-{self.files}.wav"
            soundfile.write(path, waveform, SAMPLE_RATE, subtype="FLOAT")
            row["audio_filepath"] = str(path)

    def contradictory_text(self, row: Row) -> None:
        other = self.others.pop()
        row.update(audio_filepath=other["audio_filepath"], duration=other["duration"])

    def near_duplicate_audio(self, row: Row) -> None:
        """Of the test set, softer, in another format."""
        other = self.tests.pop()
        kind = self.random.choice(["opus", "mp3", "ogg", "wav"])
        waveform = read_audio(other["audio_filepath"])
        self.sound(row, self.random.uniform(0.2, 0.9) * waveform / np.abs(waveform).max(), kind)
        row["text"] = other["text"]

    def duplicate_text(self, row: Row) -> None:
        row["text"] = self.tests.pop()["text"].capitalize() + "."

    def near_duplicate_text(self, row: Row) -> None:
        """A long text of the test set with one letter left out, another, or a short word before it."""
        longest = max(range(len(self.tests)), key=lambda number: len(self.tests[number]["text"]))
        text = self.tests.pop(longest)["text"]
        place = self.random.randrange(len(text))
        row["text"] = self.random.choice(
            [text[:place] + text[place + 1 :], text[:place] + "ъ" + text[place + 1 :], f"и {text}"]
        )

    def speaker_in_both(self, row: Row) -> None:
        row["speaker"] = self.tests.pop()["speaker"]

    def suspicious_transcript(self, row: Row) -> None:
        """The text of another line of about the same length."""
        row["text"] = min(self.others, key=lambda other: abs(len(other["text"]) - len(row["text"])))["text"]

    def replace_word(self, row: Row, word: str) -> None:
        words = row["text"].split()
        words[self.random.randrange(len(words))] = word
        row["text"] = " ".join(words)


# What is planted, and as what it may be found. Much more text than there is time for is first of all infeasible.
FAULTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("broken_json", "missing_field", "bad_duration"), ("bad-line",)),
    **{
        name.replace("-", "_"): (name,)
        for name in KINDS
        if name not in ("bad-line", "too-long", "quiet", "suspicious-transcript")
    },
    "speech_rate": ("speech-rate", "infeasible"),
}


def clean_rows(manifests: list[Path], lines: int, random: Random) -> list[Row]:
    """Rows of lines, in random order, with absolute paths and no text twice; each has its own id and speaker."""
    rows: dict[str, Row] = {}
    for path in manifests:
        for utterance in read_manifest(path):
            text = normalise(utterance.text)
            audio = str(utterance.audio_path.resolve())
            rows[text] = {"audio_filepath": audio, "text": text, "duration": utterance.duration_s}
    drawn = random.sample(list(rows.values()), min(lines, len(rows)))
    return [{**row, "id": f"line-{number}", "speaker": f"speaker-{number}"} for number, row in enumerate(drawn)]


def unlike(rows: list[Row], tests: list[Row]) -> list[Row]:
    """Rows without those whose text is near one of the tests, by edit distance: commands from a template are."""
    texts, others = ([row["text"] for row in part] for part in (rows, tests))
    nearest = cdist(texts, others, scorer=Levenshtein.normalized_similarity, score_cutoff=0.75).max(axis=1)
    return [row for row, similarity in zip(rows, nearest, strict=True) if similarity == 0]


def plant(
    folder: Path, rows: list[Row], each: int, with_model: bool, random: Random
) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Writes train.jsonl and test.jsonl, and says which lines of the first have which fault, found as what."""
    faults = {**FAULTS, **({"suspicious_transcript": ("suspicious-transcript",)} if with_model else {})}
    num_tests = max(len(rows) // 10, 5 * each + 1)
    tests = rows[:num_tests]
    train = unlike(rows[num_tests:], tests)
    num_planted = each * len(faults)
    # Copies come behind what they copy, so that theirs are the findings.
    behind = len(train) - num_planted
    if behind < 3 * each:
        raise SystemExit(f"{len(rows)} lines are too few for {num_planted} faults: give more, or a smaller --each")
    others = random.sample(train[:behind], behind)
    planter = Planter(folder, random, others, random.sample(tests, len(tests)))
    copied_from = {row["id"] for row in others}
    names = [name for name in faults for _ in range(each)]
    random.shuffle(names)
    planted: dict[int, tuple[str, tuple[str, ...]]] = {}
    lines = [json.dumps(row, ensure_ascii=False) for row in train[:behind]]
    for name, row in zip(names, train[behind:], strict=True):
        do: Callable[[Row], str | None] = getattr(planter, name)
        line = do(row)
        lines.append(json.dumps(row, ensure_ascii=False) if line is None else line)
        planted[len(lines)] = name, faults[name]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "test.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tests), encoding="utf-8"
    )
    gone = copied_from - {row["id"] for row in others}
    for number, row in enumerate(train[:behind], start=1):
        if row["id"] in gone:  # contradictory-text is said of both lines
            planted[number] = "", ()
    return planted


def figures_of(report: Report, planted: dict[int, tuple[str, tuple[str, ...]]], train: Path) -> Row:
    """Recall of each kind of fault, and false alarms by name."""
    found: dict[int, set[str]] = {}
    alarms: Counter[str] = Counter()
    alarmed: set[tuple[str, int]] = set()
    for finding in report.findings:
        if finding.manifest == train and finding.line in planted:
            found.setdefault(finding.line, set()).add(finding.name)
        else:
            alarms[finding.name] += 1
            alarmed.add((str(finding.manifest), finding.line))
    hits: dict[str, list[bool]] = {}
    for line, (name, expected) in planted.items():
        if name:
            hits.setdefault(name, []).append(not found.get(line, set()).isdisjoint(expected))
    everything = [hit for of_kind in hits.values() for hit in of_kind]
    clean = len(report.lines) - len(planted)
    return {
        "lines": len(report.lines),
        "faults": len(everything),
        "recall": statistics.mean(everything),
        "recall_by_kind": {name: statistics.mean(hits[name]) for name in sorted(hits)},
        "clean_lines": clean,
        "false_alarm_rate": len(alarmed) / clean,
        "false_alarms": dict(alarms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, nargs="+", required=True)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=40, help="lines with each kind of fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="an exported model: texts of other lines are planted, too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    random = Random(args.seed)
    recognizer = None
    if args.model is not None:
        from kvarts.recogniser import Recognizer

        recognizer = Recognizer.load(args.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = clean_rows(args.manifest, args.lines, random)
        planted = plant(folder, rows, args.each, recognizer is not None, random)
        train, test = folder / "train.jsonl", folder / "test.jsonl"
        times, cpu_times = [], []
        for _ in range(3):
            started_s, cpu_started_s = time.perf_counter(), time.process_time()
            lint([train], [test], audio=False)
            times.append(time.perf_counter() - started_s)
            cpu_times.append(time.process_time() - cpu_started_s)
        started_s = time.perf_counter()
        report = lint([train], [test], recognizer=recognizer)
        with_audio_s = time.perf_counter() - started_s
        figures = figures_of(report, planted, train)
    figures["lines_per_s_without_audio"] = figures["lines"] / statistics.median(times)
    figures["lines_per_cpu_s_without_audio"] = figures["lines"] / statistics.median(cpu_times)
    figures["lines_per_s_with_audio"] = figures["lines"] / with_audio_s
    figures["rtfx_with_audio"] = sum(
        row.get("duration") or 0 for row in rows if not isinstance(row.get("duration"), str)
    )
    figures["rtfx_with_audio"] /= with_audio_s
    figures["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for kind, recall in figures["recall_by_kind"].items():
        print(f"{kind:24} {100 * recall:6.1f} %")
    print(f"{'all ' + str(figures['faults']) + ' faults':24} {100 * figures['recall']:6.1f} %")
    print(f"false alarms: {100 * figures['false_alarm_rate']:.2f} % of {figures['clean_lines']} clean lines")
    for kind, count in sorted(figures["false_alarms"].items()):
        print(f"  {kind:22} {count:6}")
    for what in (
        "lines_per_s_without_audio",
        "lines_per_cpu_s_without_audio",
        "lines_per_s_with_audio",
        "rtfx_with_audio",
        "peak_rss_mb",
    ):
        print(f"{what:30} {figures[what]:10.0f}")
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
