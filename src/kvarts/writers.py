"""What `kvarts transcribe` writes: the words of one recording as plain text, JSON, subtitles or a table.

Every format is a function of a `Transcript` alone, so that the same words are the same bytes wherever they go.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import kvarts
from kvarts.recogniser import SpokenCommand, Timings, Word, text_of

LINE_CHARACTERS: Final = 42  # what subtitles of films keep to; a longer word stands alone on its line
CUE_S: Final = 6.0  # no subtitle stands longer,
READABLE_S: Final = 1.0  # nor shorter where nothing follows it: a network's «да» lasts a tenth of a second
PAUSE_S: Final = 0.7  # between words: a new subtitle


@dataclass(frozen=True)
class Transcript:
    """What was recognised in one recording.

    Attributes:
        file: the recording, as its user named it.
        model, engine: what recognised it, in words.
        channels: the words of each channel; where they were mixed there is one.
        separate: whether the channels were recognised each on its own, so that a reader wants to know which it was.
        confidence: the probability that all of it is right, in all channels; None without a calibration.
        rejected: whether that is too low to be believed; None where nobody set a threshold. Only JSON tells what was
            rejected, the other formats are then as if nothing had been said.
        commands: of each channel, where the decoder has a grammar; None where it has none.
    """

    file: str
    model: str
    engine: str
    duration_s: float
    timings: Timings
    channels: tuple[tuple[Word, ...], ...]
    separate: bool
    confidence: float | None = None
    rejected: bool | None = None
    commands: tuple[tuple[SpokenCommand, ...], ...] | None = None

    @property
    def text(self) -> str:
        """All words; of separate channels a line each."""
        return "\n".join(map(text_of, self.channels))

    @property
    def numbered(self) -> Iterator[tuple[int | None, tuple[Word, ...]]]:
        """Each channel's number, from 1, and words; None for the number of mixed channels."""
        for number, words in enumerate(self.channels, start=1):
            yield number if self.separate else None, words

    @property
    def believed(self) -> Iterator[tuple[int | None, tuple[Word, ...]]]:
        """As `numbered`, without the words of what was rejected."""
        return ((number, () if self.rejected else words) for number, words in self.numbered)


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that are shown together, in at most two lines."""

    start_s: float
    end_s: float
    channel: int | None
    words: tuple[Word, ...]

    @property
    def confidence(self) -> float:
        """Of the least certain word."""
        return min(word.confidence for word in self.words)


def text_lines(transcript: Transcript) -> list[str]:
    """The text in one line; of separate channels a line each, which begins with the channel."""
    return [_label(number) + text_of(words) for number, words in transcript.believed]


def cues(transcript: Transcript, word_timestamps: bool) -> list[Cue]:
    """The words of all channels in the order of their time, grouped as subtitles are, or one by one.

    A group ends at a pause, when two lines are full, and after six seconds; it stands for a second at least, as far as
    the next one of its channel and the end of the recording let it.
    """
    found = []
    for number, words in transcript.believed:
        if word_timestamps:
            found += [Cue(word.start_s, word.end_s, number, (word,)) for word in words]
            continue
        groups = list(_groups(words, _label(number)))
        for index, group in enumerate(groups):
            start_s = group[0].start_s
            follower_s = groups[index + 1][0].start_s if index + 1 < len(groups) else transcript.duration_s
            readable_s = min(start_s + READABLE_S, follower_s)
            end_s = min(max(group[-1].end_s, readable_s), start_s + CUE_S)
            found.append(Cue(start_s, end_s, number, group))
    return sorted(found, key=lambda cue: (cue.start_s, cue.channel or 0))


def _groups(words: Sequence[Word], label: str) -> Iterator[tuple[Word, ...]]:
    group: list[Word] = []
    for word in words:
        if group and not (
            word.start_s - group[-1].end_s < PAUSE_S
            and word.end_s - group[0].start_s <= CUE_S
            and _fits([*group, word], label)
        ):
            yield tuple(group)
            group = []
        group.append(word)
    if group:
        yield tuple(group)


def _fits(words: Sequence[Word], label: str) -> bool:
    return all(len(line) <= LINE_CHARACTERS for line in _lines(words, label))


def _lines(words: Sequence[Word], label: str) -> list[str]:
    """One line, or the two whose longer one is the shortest possible."""
    whole = label + text_of(words)
    if len(whole) <= LINE_CHARACTERS or len(words) == 1:
        return [whole]
    pairs = [[label + text_of(words[:stop]), text_of(words[stop:])] for stop in range(1, len(words))]
    return min(pairs, key=lambda pair: max(map(len, pair)))


def clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and thousandths; `point` stands before the last. Rounded before it is split up."""
    whole_s, ms = divmod(round(1000 * seconds), 1000)
    minutes, s = divmod(whole_s, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{s:02}{point}{ms:03}"


def one_line(text: str) -> str:
    """Without tabs and line ends, which file names may have: they are shown as escapes."""
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _label(channel: int | None) -> str:
    return "" if channel is None else f"Канал {channel}: "


def _txt(transcript: Transcript, word_timestamps: bool) -> str:
    return "".join(f"{line}\n" for line in text_lines(transcript))


def _json(transcript: Transcript, word_timestamps: bool) -> str:
    return "{\n  " + "".join(_parts(_fields(transcript, word_timestamps), indent=2)) + "\n}\n"


def _jsonl(transcript: Transcript, word_timestamps: bool) -> str:
    return "{" + "".join(_parts(_fields(transcript, word_timestamps), indent=None)) + "}\n"


def _parts(fields: Iterator[tuple[str, object]], indent: int | None) -> Iterator[str]:
    """The inside of an object, word by word: as objects, and joined step by step, those of 10 hours took 75 MB more."""
    for number, (name, value) in enumerate(fields):
        yield f"{_between(indent) if number else ''}{_dumped(name)}: "
        if not isinstance(value, Iterator):
            yield _dumped(value, indent)
            continue
        between = _between(None if indent is None else 2 * indent)
        before = "[" + between.lstrip(", ")
        for item in value:
            yield before + _dumped(item)
            before = between
        is_empty = before != between
        yield "[]" if is_empty else "]" if indent is None else f"\n{indent * ' '}]"


def _between(indent: int | None) -> str:
    """What stands between items: each has a line of its own where there is an indent."""
    return ", " if indent is None else ",\n" + indent * " "


def _dumped(value: object, indent: int | None = None) -> str:
    """JSON in one line, or as what stands in an object of that indent."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if indent is None else text.replace("\n", "\n" + indent * " ")


def _fields(transcript: Transcript, word_timestamps: bool) -> Iterator[tuple[str, object]]:
    """Names and values of an object; the words are an iterator."""
    yield "file", transcript.file
    yield "text", transcript.text
    if transcript.confidence is not None:
        yield "confidence", round(transcript.confidence, 4)
    if transcript.rejected is not None:
        yield "rejected", transcript.rejected
    if transcript.commands is not None:
        yield "commands", _commands(transcript)
    yield "duration_s", round(transcript.duration_s, 3)
    if transcript.separate:
        yield "channels", [{"channel": number, "text": text_of(words)} for number, words in transcript.numbered]
    if word_timestamps:
        yield "words", _words(transcript)
    seconds = asdict(transcript.timings) | {"total_s": transcript.timings.total_s}
    yield "timings", {name: round(value, 4) for name, value in seconds.items()}
    yield "model", transcript.model
    yield "engine", transcript.engine
    yield "kvarts_version", kvarts.__version__


def _commands(transcript: Transcript) -> Iterator[dict[str, object]]:
    """Channel by channel, in the order of their time."""
    for number, commands in enumerate(transcript.commands or (), start=1):
        for command in commands:
            fields: dict[str, object] = {
                "intent": command.intent,
                "slots": dict(command.slots),
                "text": command.text,
                "start_s": round(command.start_s, 3),
                "end_s": round(command.end_s, 3),
                "score": round(command.score, 4),
                "confidence": round(command.confidence, 4),
            }
            yield fields | {"channel": number} if transcript.separate else fields


def _words(transcript: Transcript) -> Iterator[dict[str, object]]:
    """In the order of their time, of the same time by channel."""
    channels = [[(number, word) for word in words] for number, words in transcript.numbered]
    for number, word in heapq.merge(*channels, key=lambda found: found[1].start_s):
        fields: dict[str, object] = {
            "text": word.text,
            "start_s": round(word.start_s, 3),
            "end_s": round(word.end_s, 3),
            "confidence": round(word.confidence, 4),
        }
        yield fields if number is None else fields | {"channel": number}


def _srt(transcript: Transcript, word_timestamps: bool) -> str:
    blocks = [
        f"{index}\n{clock(cue.start_s, ',')} --> {clock(cue.end_s, ',')}\n"
        + "".join(f"{line}\n" for line in _lines(cue.words, _label(cue.channel)))
        for index, cue in enumerate(cues(transcript, word_timestamps), start=1)
    ]
    return "\n".join(blocks)


def _vtt(transcript: Transcript, word_timestamps: bool) -> str:
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript, word_timestamps):
        voice = "" if cue.channel is None else f"<v Channel {cue.channel}>"
        text = "\n".join(_lines(cue.words, ""))
        # «-->» in a text would begin a new cue, «<» a tag.
        escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{clock(cue.start_s, '.')} --> {clock(cue.end_s, '.')}\n{voice}{escaped}\n")
    return "\n".join(blocks)


def tsv_header(separate: bool, word_timestamps: bool) -> str:
    """The first line of a table."""
    columns = ["file", *(["channel"] if separate else []), "start_s", "end_s"]
    return "\t".join([*columns, "text", *(["confidence"] if word_timestamps else [])]) + "\n"


def tsv_rows(transcript: Transcript, word_timestamps: bool) -> str:
    """A row for each subtitle, or for each word with its confidence."""
    rows = []
    for cue in cues(transcript, word_timestamps):
        row = [one_line(transcript.file), *([] if cue.channel is None else [str(cue.channel)])]
        row += [f"{cue.start_s:.3f}", f"{cue.end_s:.3f}", text_of(cue.words)]
        rows.append("\t".join([*row, *([f"{cue.confidence:.4f}"] if word_timestamps else [])]) + "\n")
    return "".join(rows)


def _tsv(transcript: Transcript, word_timestamps: bool) -> str:
    return tsv_header(transcript.separate, word_timestamps) + tsv_rows(transcript, word_timestamps)


# By the suffix that their files get. Each takes a transcript, and whether single words get their times.
WRITERS: Final[dict[str, Callable[[Transcript, bool], str]]] = {
    "txt": _txt,
    "json": _json,
    "jsonl": _jsonl,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
}
