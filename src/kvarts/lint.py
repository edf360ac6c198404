"""The linter behind `kvarts data check`: reads manifests line by line and finds what is wrong with them.

Each fault has a short name (`KINDS`). Of a line some 60 bytes stay in memory, with sound 100, and 0.6 kB of a line of a
test set; findings go to a temporary file. So a million lines take little more than a thousand.
"""

from __future__ import annotations

import json
import math
import tempfile
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from kvarts.alphabet import encode, foreign_characters, min_ctc_frames
from kvarts.checks import DURATION_TOLERANCE_RATIO, DURATION_TOLERANCE_S
from kvarts.errors import AudioError
from kvarts.frames import SAMPLE_RATE, WIN_LENGTH, encoded_frames_of_duration, too_short
from kvarts.lint_model import ctc_loss, median_and_spread, outliers
from kvarts.lint_sound import FINGERPRINT_BYTES, Sound, measure
from kvarts.lint_text import text_faults
from kvarts.lint_twins import NearTexts, digest, near_fingerprints, repeats
from kvarts.manifest import Line, Utterance, read_lines
from kvarts.progress import progress_bar, run_ahead

if TYPE_CHECKING:
    from kvarts.recogniser import Recognizer

LONGEST_S: Final = 30.0  # what is recognised is cut to this, so longer pieces teach little and take memory
FASTEST, SLOWEST = 30.0, 1.5  # letters a second; announcers at the end of a commercial reach 25
_RATE_OUTLIER = 3.5  # robust standard deviations; of 17,612 clean lines none lay beyond, of 90 to 487 real ones neither
_FEWEST_OF_LENGTH = 30  # lines of like length that have a median of their own
_LEAST_RATE_SPREAD = 0.05  # of the logarithm: a voice that never varies would make an outlier of every slip
_FEWEST_LETTERS = 5  # of what a rate is said: «м» may last a second

_SILENT_DB = -60.0  # of the loudest 0.2 s; speech this weak is not heard beside the noise of a microphone
_STEADY_DB = 4.8  # as in `kvarts.cutting`: noise varies less over 0.2 s, speech more
_STEADY_S = 1.0  # a vowel may be as steady as noise for some tenths
_QUIET_DB = -45.0  # of the level; the quietest of the clean recordings that were looked at had -25 dB
_FLAT_TOPS_A_SECOND, _FEWEST_FLAT_TOPS = (
    4.0,
    10,
)  # cut off at half the peak 16 a second and more; some clean ones have 2
_EDGE_BELOW_DB, _EDGE_ABOVE_DB = 20.0, 12.0  # below the level, above the floor; clean ones are 29 dB below and more
_LEAST_PRINTED_S = 1.0  # a shorter recording has too little in it for a fingerprint

_BATCH = 2048  # texts that are looked up together
_MODEL_BATCH = 512  # utterances that are batched by length for the network


class Kind(NamedTuple):
    """What one name stands for."""

    severity: str  # error: training or a score would be wrong; warning: worth a look
    meaning: str
    remedy: str


_TAKE_OUT = "correct audio_filepath or take the line out"
_LISTEN = "listen to it, and correct the text or take the line out"

KINDS: Final[dict[str, Kind]] = {
    "bad-line": Kind("error", "no valid line", "write one JSON object a line"),
    "empty-text": Kind("error", "there is no text", "write what is said or take the line out"),
    "mojibake": Kind("error", "UTF-8 read in another encoding", "save the text in its right encoding, or use --fix"),
    "look-alike": Kind("error", "Latin or Greek letters in Russian words", "type them in Russian, or use --fix"),
    "digits": Kind("error", "digits", "write numbers as words, as they are spoken"),
    "foreign-letters": Kind("error", "letters without a label", "spell it in Russian letters, as it is spoken"),
    "markup": Kind("warning", "tags or remarks in brackets", "take out what is not spoken"),
    "repetition": Kind("warning", "the same words over and over", _LISTEN),
    "long-word": Kind("warning", "a word too long for Russian", "put the spaces in"),
    "infeasible": Kind("error", "more text than CTC can place", "check that text and audio belong together"),
    "duration-mismatch": Kind("error", "duration is not the file's", "correct the duration or the file, or use --fix"),
    "audio-missing": Kind("error", "no such file", _TAKE_OUT),
    "audio-damaged": Kind("error", "no audio, cut short or damaged", _TAKE_OUT),
    "too-short": Kind("error", "less sound than one analysis window", _TAKE_OUT),
    "too-long": Kind("warning", f"more than {LONGEST_S:g} s", "cut it at pauses"),
    "silent": Kind("error", "no speech in it", "record it again or take the line out"),
    "quiet": Kind("warning", "very weak", "make it louder"),
    "clipped": Kind("warning", "the tops of the waveform are cut off", "record it with less gain"),
    "truncated": Kind("warning", "speech runs into the beginning or the end", "cut it with a margin of 0.1 s"),
    "speech-rate": Kind("warning", "too much or too little text for the time", _LISTEN),
    "duplicate-id": Kind("error", "the id of another line", "give each line an id of its own"),
    "duplicate-audio": Kind("error", "the sound of another line", "take one of the lines out"),
    "contradictory-text": Kind("error", "one sound with two texts", "listen to it, and take the wrong line out"),
    "near-duplicate-audio": Kind("warning", "nearly the sound of another line", "listen to both; take one out"),
    "duplicate-text": Kind("warning", "a text of the test set", "take it out of one of them"),
    "near-duplicate-text": Kind("warning", "nearly a text of the test set", "take it out of one of them"),
    "speaker-in-both": Kind("warning", "a speaker of the test set", "give each speaker to one of them"),
    "suspicious-transcript": Kind("warning", "a model hears something else", _LISTEN),
}
_NAMES: Final = list(KINDS)
_ERRORS: Final = sum(1 << number for number, kind in enumerate(KINDS.values()) if kind.severity == "error")


@dataclass(frozen=True)
class Finding:
    """One fault of one line."""

    manifest: Path
    line: int
    name: str  # of KINDS
    what: str
    remedy: str

    @property
    def severity(self) -> str:
        """error or warning."""
        return KINDS[self.name].severity

    def __str__(self) -> str:
        return f"{self.manifest}:{self.line}: {self.severity}: {self.name}: {self.what}; {self.remedy}"


class Texts:
    """Texts in a temporary file, by number."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, text: str) -> None:
        """Keeps one more."""
        self._ends.append(self._ends[-1] + self._file.write(text.encode()))

    def __getitem__(self, number: int) -> str:
        start, end = self._ends[number : number + 2]
        self._file.seek(start)
        content = self._file.read(end - start).decode()
        self._file.seek(0, 2)
        return content


class Lines:
    """Which line of which manifest each index stands for: those of the tests first."""

    def __init__(self) -> None:
        self._manifests: list[Path] = []
        self._firsts: list[int] = []
        self._numbers = array("I")
        self.num_tests = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def begin(self, manifest: Path) -> None:
        """The lines that follow are this manifest's."""
        self._manifests.append(manifest)
        self._firsts.append(len(self))

    def append(self, number: int) -> None:
        """One more line, of this number."""
        self._numbers.append(number)

    def place(self, index: int) -> tuple[Path, int]:
        """Its manifest and its number there."""
        which = int(np.searchsorted(self._firsts, index, "right")) - 1
        return self._manifests[which], self._numbers[index]

    def where(self, index: int) -> str:
        """``path/manifest.jsonl:12``."""
        manifest, number = self.place(index)
        return f"{manifest}:{number}"


class Findings:
    """All that was found; lies on the disk but for 12 bytes each, and 4 bytes a line."""

    def __init__(self, lines: Lines, ignored: Collection[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._lines = lines
        self._ignored = frozenset(ignored)
        self._whats = Texts()
        self._indices = array("Q")
        self._kinds = array("I")
        self._masks = array("I")

    def __len__(self) -> int:
        return len(self._indices)

    def add(self, index: int, name: str, what: str, remedy: str = "") -> None:
        """One more, unless its name is ignored; with a remedy of its own where the kind's is too general."""
        if name in self._ignored:
            return
        number = _NAMES.index(name)
        self._indices.append(index)
        self._kinds.append(number)
        self._whats.append(f"{what}\0{remedy}")
        self.counts[name] += 1
        if len(self._masks) <= index:
            self._masks.extend([0] * (index + 1 - len(self._masks)))
        self._masks[index] |= 1 << number

    def names(self, index: int, *, errors_only: bool = False) -> list[str]:
        """The names of what was found on a line."""
        mask = self._masks[index] if index < len(self._masks) else 0
        mask &= _ERRORS if errors_only else ~0
        return [name for number, name in enumerate(_NAMES) if mask >> number & 1]

    @property
    def num_errors(self) -> int:
        """Findings of severity error."""
        return sum(count for name, count in self.counts.items() if KINDS[name].severity == "error")

    def __iter__(self) -> Iterator[Finding]:
        """In the order of the manifests, the tests last, and of their lines."""
        indices = np.array(self._indices, np.int64)
        return map(self._finding, np.lexsort((indices, indices < self._lines.num_tests)).tolist())

    def of(self, name: str, most: int) -> list[Finding]:
        """The first findings of a name, in that order."""
        own = np.flatnonzero(np.array(self._kinds) == _NAMES.index(name))
        indices = np.array(self._indices, np.int64)[own]
        order = np.lexsort((indices, indices < self._lines.num_tests))[:most]
        return [self._finding(number) for number in own[order].tolist()]

    def _finding(self, number: int) -> Finding:
        name = _NAMES[self._kinds[number]]
        what, _, remedy = self._whats[number].partition("\0")
        return Finding(*self._lines.place(self._indices[number]), name, what, remedy or KINDS[name].remedy)


@dataclass
class Report:
    """What `lint` found."""

    lines: Lines
    findings: Findings
    durations_s: array[float]  # of each line's file, to the sample; NaN: not known


@dataclass
class _Kept:
    """What is kept of each line, by index."""

    ids: array[int] = field(default_factory=lambda: array("Q"))  # digests; 0 where there is none
    paths: array[int] = field(default_factory=lambda: array("Q"))
    texts: array[int] = field(default_factory=lambda: array("Q"))
    files: array[int] = field(default_factory=lambda: array("Q"))
    samples: array[int] = field(default_factory=lambda: array("Q"))
    prints: bytearray = field(default_factory=bytearray)
    printed_s: array[float] = field(default_factory=lambda: array("f"))  # NaN where there is no fingerprint
    letters: array[int] = field(default_factory=lambda: array("I"))
    speech_s: array[float] = field(default_factory=lambda: array("f"))
    durations_s: array[float] = field(default_factory=lambda: array("d"))
    usable: bytearray = field(default_factory=bytearray)  # 1 where a model can be asked
    near: dict[int, tuple[int, float]] = field(default_factory=dict)  # the test's line, and the Jaccard index
    speakers: tuple[dict[str, list[int]], dict[str, list[int]]] = field(default_factory=lambda: ({}, {}))

    def begin_line(self) -> None:
        """Room for one more line, of which nothing is known."""
        for digests in (self.ids, self.paths, self.texts, self.files, self.samples, self.letters):
            digests.append(0)
        for seconds in (self.printed_s, self.speech_s, self.durations_s):
            seconds.append(np.nan)
        self.usable.append(0)


def lint(
    manifests: Sequence[Path],
    tests: Sequence[Path] = (),
    *,
    audio: bool = True,
    recognizer: Recognizer | None = None,
    ignored: Collection[str] = (),
) -> Report:
    """Checks manifests, each line by itself, against the others, and against test sets, which are checked likewise.

    Args:
        manifests: JSON Lines.
        tests: what must have nothing in common with them.
        audio: decode every file; False: do not even look whether it is there.
        recognizer: a model to tell which transcripts are unlikely; needs the audio.
        ignored: names of `KINDS` that are not to be reported.

    Raises:
        ManifestError: a manifest cannot be read, or is empty.
    """
    lines, kept = Lines(), _Kept()
    findings = Findings(lines, ignored)
    near = NearTexts()
    near_lines = array("Q")  # of what is in `near`
    pending: list[tuple[int, str]] = []  # texts to be added to `near`, or looked up in it
    stride = 4 if recognizer is None else recognizer.engine.stride

    def deal_with_texts(*, of_tests: bool) -> None:
        texts = [text for _, text in pending]
        if of_tests:
            near.add(texts)
            near_lines.extend(index for index, _ in pending)
        else:
            for (index, _), found in zip(pending, near.nearest(texts), strict=True):
                if found is not None:
                    kept.near[index] = near_lines[found[0]], found[1]
        pending.clear()

    with progress_bar("checking", sum(map(_size, chain(tests, manifests)))) as advance:
        for path, is_test in chain(((path, True) for path in tests), ((path, False) for path in manifests)):
            lines.begin(path)
            for line, sound in with_sound(read_lines(path), audio):
                index = len(lines)
                lines.append(line.number)
                kept.begin_line()
                if line.utterance is None:
                    what, _, remedy = line.error.rpartition("; ")
                    findings.add(index, "bad-line", what, remedy)
                else:
                    text = _check_line(index, line.utterance, sound, stride, is_test, kept, findings)
                    if text and tests:
                        pending.append((index, text))
                kept.prints.extend(bytes(FINGERPRINT_BYTES * (index + 1) - len(kept.prints)) if audio else b"")
                if len(pending) == _BATCH:
                    deal_with_texts(of_tests=is_test)
                advance(line.size)
            deal_with_texts(of_tests=is_test)
            if is_test:
                lines.num_tests = len(lines)
    _find_rates(kept, findings)
    _find_twins(lines, kept, findings)
    if recognizer is not None:
        _find_unlikely(recognizer, [*tests, *manifests], lines.num_tests, kept, findings)
    return Report(lines, findings, kept.durations_s)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def with_sound(source: Iterable[Line], audio: bool) -> Iterator[tuple[Line, Sound | AudioError | None]]:
    """Each line with what was measured of its file, by threads that run ahead."""
    if not audio:
        yield from ((line, None) for line in source)
        return
    from kvarts.engines import cpu_threads

    workers = cpu_threads()
    yield from run_ahead(_measured, source, workers=workers, ahead=4 * workers)


def _measured(line: Line) -> tuple[Line, Sound | AudioError | None]:
    if line.utterance is None:
        return line, None
    try:
        return line, measure(line.utterance.audio_path)
    except AudioError as error:
        return line, error


def _check_line(
    index: int,
    utterance: Utterance,
    sound: Sound | AudioError | None,
    stride: int,
    is_test: bool,
    kept: _Kept,
    findings: Findings,
) -> str:
    """Finds what a line by itself shows, keeps what the comparison needs, and gives the normalised text."""
    text, faults = text_faults(utterance.text)
    for name, what in faults:
        findings.add(index, name, what)
    duration_s = utterance.duration_s
    if isinstance(sound, Sound):
        duration_s = sound.duration_s
        _check_sound(index, utterance, sound, kept, findings)
    elif sound is not None:
        name = "audio-damaged" if utterance.audio_path.exists() else "audio-missing"
        findings.add(index, name, str(sound))
    available = encoded_frames_of_duration(duration_s, stride)
    # Twice as many frames as letters are enough for any text.
    needed = min_ctc_frames([*map(ord, text)]) if available < 2 * len(text) else 0
    if available < needed:
        what = f"{duration_s:.4g} s give {available} encoded frames, the text needs {needed}"
        findings.add(index, "infeasible", what)
    elif text:
        kept.letters[index] = len(text) - text.count(" ")
        if math.isnan(kept.speech_s[index]):
            kept.speech_s[index] = duration_s
        if isinstance(sound, Sound) and not foreign_characters(text):
            kept.usable[index] = not findings.names(index, errors_only=True)
    kept.texts[index] = digest(text)
    kept.paths[index] = digest(str(utterance.audio_path))
    if utterance.fields.get("id") is not None:
        kept.ids[index] = digest(utterance.utterance_id)
    if utterance.fields.get("speaker") is not None:
        first_and_count = kept.speakers[is_test].setdefault(str(utterance.fields["speaker"]), [index, 0])
        first_and_count[1] += 1
    return text


def _check_sound(index: int, utterance: Utterance, sound: Sound, kept: _Kept, findings: Findings) -> None:
    kept.durations_s[index] = sound.duration_s
    kept.files[index], kept.samples[index] = sound.file_digest, sound.sample_digest
    add = partial(findings.add, index)
    if abs(sound.duration_s - utterance.duration_s) > max(
        DURATION_TOLERANCE_S, DURATION_TOLERANCE_RATIO * sound.duration_s
    ):
        add("duration-mismatch", f"duration is {utterance.duration_s:g} s, the file has {sound.duration_s:.3f} s")
    if round(sound.duration_s * SAMPLE_RATE) < WIN_LENGTH:
        add("too-short", too_short(sound.duration_s))
        return
    if sound.duration_s > LONGEST_S:
        add("too-long", f"{sound.duration_s:.1f} s")
    is_steady = sound.loudest_db - sound.quietest_db < _STEADY_DB and sound.duration_s >= _STEADY_S
    if sound.loudest_db < _SILENT_DB:
        add("silent", f"the loudest 0.2 s have {sound.loudest_db:.0f} dB of full scale")
        return
    if is_steady:
        add("silent", f"a steady {sound.level_db:.0f} dB from beginning to end, which no speech has")
        return
    kept.speech_s[index] = sound.speech_s
    if sound.duration_s >= _LEAST_PRINTED_S:
        kept.prints.extend(sound.fingerprint)
        kept.printed_s[index] = sound.duration_s
    if sound.level_db < _QUIET_DB:
        add("quiet", f"the loud parts have {sound.level_db:.0f} dB of full scale")
    measured_s = min(sound.duration_s, 300.0)
    if sound.flat_tops >= max(_FEWEST_FLAT_TOPS, _FLAT_TOPS_A_SECOND * measured_s):
        add("clipped", f"the waveform stays at its extreme in {sound.flat_tops} places")
    lowest = max(sound.level_db - _EDGE_BELOW_DB, sound.floor_db + _EDGE_ABOVE_DB)
    ends = [name for name, edge_db in (("first", sound.start_db), ("last", sound.end_db)) if edge_db > lowest]
    if ends:
        add("truncated", f"full speech in the {' and the '.join(ends)} 20 ms")


def _find_rates(kept: _Kept, findings: Findings) -> None:
    """Letters a second that lie far from those of texts of like length: short ones have more margin around them."""
    letters, seconds = np.array(kept.letters), np.array(kept.speech_s, np.float64)
    known = np.flatnonzero((letters >= _FEWEST_LETTERS) & (seconds > 0))
    if not len(known):
        return
    rates = letters[known] / seconds[known]
    logs = np.log(rates)
    octaves = np.log2(letters[known]).astype(int)
    sizes = np.bincount(octaves)
    groups = np.where(sizes[octaves] >= _FEWEST_OF_LENGTH, octaves, -1)  # the few others against all
    for group in np.unique(groups).tolist():
        own = np.flatnonzero(groups == group)
        of_group = logs[own] if group >= 0 else logs
        median, spread = median_and_spread(of_group, _LEAST_RATE_SPREAD)
        bound = _RATE_OUTLIER * spread if len(of_group) >= _FEWEST_OF_LENGTH else np.inf
        is_far = (np.abs(logs[own] - median) > bound) | (rates[own] > FASTEST) | (rates[own] < SLOWEST)
        for place in own[is_far].tolist():
            compared = f", {np.exp(median):.1f} is usual here" if bound < np.inf else ""
            what = f"{rates[place]:.1f} letters a second{compared}"
            findings.add(int(known[place]), "speech-rate", what)


def _find_twins(lines: Lines, kept: _Kept, findings: Findings) -> None:
    """Lines that are the same as others, or nearly."""
    tests = lines.num_tests
    ids, texts = np.array(kept.ids, np.uint64), np.array(kept.texts, np.uint64)
    for start, part in ((0, ids[:tests]), (tests, ids[tests:])):
        for index, first in repeats(part):
            findings.add(start + index, "duplicate-id", f"the id of {lines.where(start + first)}")
    twins: set[int] = set()
    contradicted: set[int] = set()
    for digests, what in ((kept.paths, "file"), (kept.files, "bytes"), (kept.samples, "samples")):
        for index, first in repeats(np.array(digests, np.uint64)):
            if index in twins:
                continue
            twins.add(index)
            if texts[index] == texts[first] or first < tests <= index:
                findings.add(index, "duplicate-audio", f"the same {what} as {lines.where(first)}")
            else:
                findings.add(index, "contradictory-text", f"the same {what} as {lines.where(first)}, with another text")
                if first not in contradicted:
                    contradicted.add(first)
                    what_first = f"the same {what} as {lines.where(index)}, with another text"
                    findings.add(first, "contradictory-text", what_first)
    for index, first, apart in near_fingerprints(kept.prints, np.array(kept.printed_s, np.float32)):
        if index not in twins:
            what = f"sounds like {lines.where(first)}: {apart} of 256 bits of their fingerprints differ"
            findings.add(index, "near-duplicate-audio", what)
    same = {index: first for index, first in repeats(texts) if first < tests <= index}
    for index, first in same.items():
        findings.add(index, "duplicate-text", f"the text of {lines.where(first)}")
    for index, (other, jaccard) in kept.near.items():
        if index not in same:
            what = f"{100 * jaccard:.0f} % of its 5-grams are those of {lines.where(other)}"
            findings.add(index, "near-duplicate-text", what)
    of_train, of_tests = kept.speakers
    for speaker in of_train.keys() & of_tests.keys():
        (index, count), (other, other_count) = of_train[speaker], of_tests[speaker]
        what = f"{json.dumps(speaker, ensure_ascii=False)} speaks {count} lines, and in the test set {other_count}"
        findings.add(index, "speaker-in-both", f"{what} from {lines.where(other)} on")


def _find_unlikely(
    recognizer: Recognizer, paths: Sequence[Path], num_tests: int, kept: _Kept, findings: Findings
) -> None:
    """Transcripts with an outlying CTC loss of a letter: the files are read once more, for the network.

    Tests are compared with tests, for the model may have been trained on the others.
    """
    from kvarts.evaluate import manifest_log_probs

    losses = np.full(len(kept.usable), np.nan, np.float32)
    heard = Texts()
    heard_lines = array("Q")
    usable = (
        (index, line.utterance)
        for index, line in enumerate(chain.from_iterable(map(read_lines, paths)))
        if index < len(losses) and kept.usable[index] and line.utterance is not None
    )
    while batch := list(islice(usable, _MODEL_BATCH)):
        utterances = [utterance for _, utterance in batch]
        for found in manifest_log_probs(recognizer, utterances, name="to compare"):
            texts = recognizer.decoded([log_probs for _, log_probs in found])
            for (place, log_probs), words in zip(found, texts, strict=True):
                labels = encode(text_faults(utterances[place].text)[0])
                index = batch[place][0]
                losses[index] = ctc_loss(log_probs, labels) / len(labels)
                heard.append(" ".join(word.text for word in words))
                heard_lines.append(index)
    number_of = np.zeros(len(losses), np.int64)
    number_of[np.array(heard_lines, np.int64)] = np.arange(len(heard_lines))
    for start, part in ((0, losses[:num_tests]), (num_tests, losses[num_tests:])):
        for place in np.flatnonzero(outliers(part)).tolist():
            said = heard[int(number_of[start + place])] or "nothing"
            usual = f"{np.nanmedian(part):.2f} is usual here"
            what = f"{part[place]:.2f} nats a letter, {usual}; the model hears «{said}»"
            findings.add(start + place, "suspicious-transcript", what)
