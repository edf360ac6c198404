"""`kvarts data check` against faults of which it is known where they are: how many it finds, and what it makes up.

    python benchmarks/lint.py --manifest M [M2 …] [--lines 10000] [--each 40] [--seed 0] [--model MODEL] [--json FILE]
    python benchmarks/lint.py --manifest M [M2 …] --model MODEL --transcripts
    python benchmarks/lint.py --speak TEXT --output FOLDER [--lines 10000] [--manifest M …]

Lines are drawn from clean manifests, no text twice; one in ten becomes the test set, and what is nearly one of its
texts is left out. Into the others 27 kinds of fault are planted, each into `--each` lines of its own, with --model one
more. A fault is found if its line has a finding of that name. A false alarm is a line without a fault that has any
finding; the line that a fault copies from is counted with the fault. The same manifest is read without audio three
times; lines a second is the median, of the clock and, where other programs run, of the processor's time.

--transcripts plants wrong transcripts alone: in one line of ten the text of another one of like length, or a text
without its last words, or with other words in places of some. Ten times over, each line is among the wrong ones once.

--speak makes clean lines, of a text's lines that are not in the manifests: espeak-ng says them in 12 voices, at many
rates and levels, with noise 50 to 75 dB below full scale. No threshold of the linter was chosen on such lines.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import soxr
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from kvarts.alphabet import encode
from kvarts.audio import read_audio
from kvarts.frames import SAMPLE_RATE
from kvarts.lint import KINDS, Report, lint
from kvarts.lint_model import ctc_loss, outliers
from kvarts.manifest import read_manifest, write_manifest
from kvarts.text import normalise

if TYPE_CHECKING:
    from kvarts.recogniser import Recognizer

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


VOICES = ["ru", *(f"ru+m{number}" for number in range(1, 8)), *(f"ru+f{number}" for number in range(1, 5))]


def say(number: int, text: str, folder: Path) -> Row:
    """Speaks a line into a file of its own, in a voice and at a rate and level that depend on the number alone."""
    random = Random(f"lint {number}")
    voice = random.choice(VOICES)
    how = ["-v", voice, "-s", str(random.randint(130, 190)), "-p", str(random.randint(35, 65))]
    done = subprocess.run(["espeak-ng", *how, "--stdout", text], check=True, capture_output=True, timeout=60)
    spoken, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    spoken = soxr.resample(spoken, rate, SAMPLE_RATE)
    spoken *= 10 ** (-random.uniform(1, 15) / 20) / np.abs(spoken).max()
    waveform = np.pad(spoken, [round(SAMPLE_RATE * random.uniform(0.1, 0.4)) for _ in range(2)])
    noise = 10 ** (-random.uniform(50, 75) / 20)
    waveform += np.random.default_rng(number).normal(0, noise, len(waveform)).astype(np.float32)
    path = folder / f"{number // 500:02}" / f"{number:05}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, SAMPLE_RATE)
    name = path.relative_to(folder).as_posix()
    return {"audio_filepath": name, "text": text, "duration": len(waveform) / SAMPLE_RATE, "speaker": voice}


def speak(text: Path, known: list[Path], folder: Path, lines: int, random: Random) -> None:
    """Makes a manifest of clean lines."""
    in_manifests = {normalise(utterance.text) for path in known for utterance in read_manifest(path)}
    texts = sorted({normalise(line) for line in text.read_text(encoding="utf-8").splitlines()} - in_manifests - {""})
    drawn = random.sample(texts, min(lines, len(texts)))
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(say, range(len(drawn)), drawn, [folder] * len(drawn)))
    write_manifest(folder / "manifest.jsonl", rows)
    print(f"{folder / 'manifest.jsonl'}: {len(rows)} lines")


def wrong_transcripts(texts: list[str], random: Random) -> dict[str, list[str]]:
    """Of each kind of fault a wrong text for every line; a text too short for it stays as it is."""
    words = sorted({word for text in texts for word in text.split()})

    def swapped(text: str) -> str:
        others = [other for other in texts if other != text]
        return min(others, key=lambda other: (abs(len(other) - len(text)), random.random()))

    def dropped(text: str, count: int) -> str:
        kept = text.split()[:-count]
        return " ".join(kept) or text

    def replaced(text: str, count: int) -> str:
        own = text.split()
        if len(own) > count:
            for place in random.sample(range(len(own)), count):
                like = [word for word in words if abs(len(word) - len(own[place])) <= 1 and word != own[place]]
                own[place] = random.choice(like or words)
        return " ".join(own)

    wrong = {"the text of another line": [swapped(text) for text in texts]}
    for count in (1, 2, 3):
        wrong[f"last words dropped: {count}"] = [dropped(text, count) for text in texts]
    for count in (1, 2, 3):
        wrong[f"words replaced: {count}"] = [replaced(text, count) for text in texts]
    return wrong


def transcripts(recognizer: Recognizer, manifests: list[Path], random: Random) -> Row:
    """How many wrong transcripts `--model` finds, and how many right ones it suspects, where one in ten is wrong."""
    from kvarts.evaluate import manifest_log_probs

    utterances = [utterance for path in manifests for utterance in read_manifest(path)]
    texts = [normalise(utterance.text) for utterance in utterances]
    wrong = {"": texts, **wrong_transcripts(texts, random)}
    losses = {kind: np.zeros(len(texts), np.float32) for kind in wrong}
    for batch in manifest_log_probs(recognizer, utterances, name="to compare"):
        for index, log_probs in batch:
            for kind, said in wrong.items():
                labels = encode(said[index])
                losses[kind][index] = ctc_loss(log_probs, labels) / len(labels)
    fold = np.array(random.sample(range(len(texts)), len(texts))) % 10
    clean = losses.pop("")
    figures: Row = {"lines": len(texts), "nats_a_letter": float(np.median(clean))}
    print(f"{'one line in ten has':28} found  right ones suspected  right among the suspects")
    for kind, planted in losses.items():
        can_be = np.array([said != text for said, text in zip(wrong[kind], texts, strict=True)])
        hits, alarms, clean_lines, planted_lines = 0, 0, 0, 0
        for part in range(10):
            is_wrong = (fold == part) & can_be
            found = outliers(np.where(is_wrong, planted, clean))
            hits += int(found[is_wrong].sum())
            alarms += int(found[~is_wrong].sum())
            planted_lines += int(is_wrong.sum())
            clean_lines += int((~is_wrong).sum())
        figures[kind] = {
            "recall": hits / planted_lines,
            "false_alarm_rate": alarms / clean_lines,
            "precision": hits / max(1, hits + alarms),
        }
        recall, rate, precision = (f"{100 * share:.1f} %" for share in figures[kind].values())
        print(f"{kind:28} {recall:>6}{rate:>22}{precision:>25}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, nargs="+", default=[])
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=40, help="lines with each kind of fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="an exported model: texts of other lines are planted, too")
    parser.add_argument("--transcripts", action="store_true", help="plant wrong transcripts alone; needs --model")
    parser.add_argument("--speak", type=Path, metavar="TEXT", help="make clean lines of a text's; needs espeak-ng")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of the clean lines")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    random = Random(args.seed)
    if args.speak is not None:
        if args.output is None:
            parser.error("--speak needs --output")
        speak(args.speak, args.manifest, args.output, args.lines, random)
        return
    if not args.manifest or (args.transcripts and args.model is None):
        parser.error("--transcripts needs --model" if args.manifest else "--manifest is missing")
    recognizer = None
    if args.model is not None:
        from kvarts.recogniser import Recognizer

        recognizer = Recognizer.load(args.model)
    if args.transcripts and recognizer is not None:
        write_json(args.json, transcripts(recognizer, args.manifest, random))
        return
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
    write_json(args.json, figures)


def write_json(path: Path | None, figures: Row) -> None:
    if path is not None:
        path.write_text(json.dumps(figures, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
