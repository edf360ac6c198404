"""How good streaming is: the errors of its finals, how soon a word is seen, and how often it changes afterwards.

Utterances are played to a `kvarts.streaming.Stream` one by one, in chunks of several sizes, by a simulated clock: a
chunk is there when its last sample has been spoken, and an event is there when the time measured for computing it has
passed as well. Nobody sleeps. Who falls behind hears all chunks that have come meanwhile at once.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kvarts.error_counts import ErrorCounts, word_errors
from kvarts.errors import AudioError, ConfigError, listing
from kvarts.frames import SAMPLE_RATE, samples_of_duration
from kvarts.manifest import Utterance
from kvarts.streaming import Event, Final, Stream, StreamSettings

if TYPE_CHECKING:
    from rich.table import Table

    from kvarts.recogniser import Recognizer, Result, Waveform

CHUNK_SIZES_S = (0.02, 0.1, 0.32, 1.0, 2.0)

_QUIETEST_S = 0.2  # of a recording, what its pause is made of


@dataclass
class StreamingEvaluation:
    """What came of one size of chunks.

    Attributes:
        chunk_s: seconds of sound in a chunk.
        words: errors of the final results, of an utterance joined by spaces.
        offline_words: errors of offline recognition of the same utterances.
        num_utterances: how many there were;
        same_as_offline: of these, how many have the same text as offline;
        split: how many were ended by a pause before their sound was over.
        audio_s: seconds of sound; of the network and of all work for it:
        network_s, work_s: seconds; and
        encoded_s: seconds of sound that the network heard, partial results included.
        first_partial_s: of each utterance, from the end of the first word that offline recognition finds, by its times,
            until the first event with any word is there. Below 0: it was there before the word was over.
        first_word_s: the same until the first event that begins with this very word.
        first_word_missed: utterances that no event of which begins so.
        endpoint_s: of each utterance, from the end of its last word until the final result is there, when a pause
            follows: the quietest 0.2 s of the recording, to and fro.
        endpoint_missed: utterances that had not ended after a pause of three times `silence_s` and 1 s.
        final_words: words of final results.
        unstable_words: after Shangguan et al., «Analyzing the Quality and Stability of a Streaming End-to-End
            On-Device Speech Recognizer», 2020. Of each partial result, the words from the first on that the next result
            of the utterance, at last the final one, does not have in the same place.
        stable_words: words given as stable, each once;
        revised_words: edits that make of an utterance's stable words the beginning of its final result that needs
            fewest.
    """

    chunk_s: float
    words: ErrorCounts = field(default_factory=ErrorCounts)
    offline_words: ErrorCounts = field(default_factory=ErrorCounts)
    num_utterances: int = 0
    same_as_offline: int = 0
    split: int = 0
    audio_s: float = 0.0
    network_s: float = 0.0
    work_s: float = 0.0
    encoded_s: float = 0.0
    first_partial_s: list[float] = field(default_factory=list)
    first_word_s: list[float] = field(default_factory=list)
    first_word_missed: int = 0
    endpoint_s: list[float] = field(default_factory=list)
    endpoint_missed: int = 0
    final_words: int = 0
    unstable_words: int = 0
    stable_words: int = 0
    revised_words: int = 0

    @property
    def unstable_ratio(self) -> float:
        """Unstable partial word ratio: unstable words for each word of the final results. May be above 1."""
        return self.unstable_words / max(self.final_words, 1)

    @property
    def revised_ratio(self) -> float:
        """Revised words for each stable one."""
        return self.revised_words / max(self.stable_words, 1)

    def as_json(self) -> dict[str, Any]:
        """All of it, with the shares, the 50th and 95th percentiles, and costs for each second of sound."""
        return {
            **asdict(self),
            "wer": self.words.rate,
            "offline_wer": self.offline_words.rate,
            "same_as_offline_share": self.same_as_offline / max(self.num_utterances, 1),
            **{
                f"{name}_p{percent}_s": percentile(values, percent)
                for name, values in (
                    ("first_partial", self.first_partial_s),
                    ("first_word", self.first_word_s),
                    ("endpoint", self.endpoint_s),
                )
                for percent in (50, 95)
            },
            "unstable_partial_word_ratio": self.unstable_ratio,
            "revised_ratio": self.revised_ratio,
            "network_s_per_s": self.network_s / self.audio_s if self.audio_s else None,
            "work_s_per_s": self.work_s / self.audio_s if self.audio_s else None,
            "encoded_s_per_s": self.encoded_s / self.audio_s if self.audio_s else None,
        }


def evaluate_streaming(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    chunk_sizes_s: Sequence[float] = CHUNK_SIZES_S,
    settings: StreamSettings | None = None,
    *,
    name: str = "utterances",
) -> list[StreamingEvaluation]:
    """Plays every utterance to a stream in chunks of every size.

    Args:
        recognizer: with any engine and decoder.
        chunk_sizes_s: seconds of sound, each at least one sample.
        name: of the manifest, for the progress bar.

    Returns:
        One evaluation a size, in the order given.

    Raises:
        ConfigError: a size is not a number of at least one sample.
        AudioError: some files could not be read.
    """
    from kvarts.audio import read_audio
    from kvarts.progress import progress_bar

    for size_s in chunk_sizes_s:
        if not (np.isfinite(size_s) and samples_of_duration(size_s) >= 1):
            raise ConfigError(f"chunks of {size_s} s: give a length of at least one sample, {1 / SAMPLE_RATE} s")
    evaluations = [StreamingEvaluation(size_s) for size_s in chunk_sizes_s]
    failures: list[str] = []
    with progress_bar(f"streaming {name}", sum(utterance.duration_s for utterance in utterances)) as advance:
        for utterance in utterances:
            try:
                waveform = read_audio(utterance.audio_path)
                offline = recognizer.transcribe(waveform)
            except AudioError as error:
                failures.append(f"{utterance.where}: {error}")
                continue
            for evaluation in evaluations:
                play(recognizer, waveform, utterance.text, offline, evaluation, settings)
            advance(utterance.duration_s)
    if failures:
        raise AudioError(listing(f"{name}: files that could not be read", failures))
    return evaluations


def play(
    recognizer: Recognizer,
    waveform: Waveform,
    reference: str,
    offline: Result,
    evaluation: StreamingEvaluation,
    settings: StreamSettings | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> None:
    """Plays one utterance and adds what comes of it to an evaluation.

    Args:
        waveform: (samples,) float32 at 16 kHz, at least 25 ms.
        reference: raw text.
        offline: what `recognizer` makes of the whole.
        timer: seconds, by which work is measured.
    """
    stream = Stream(recognizer, settings)
    chunk = samples_of_duration(evaluation.chunk_s)
    player = _Player(timer)
    heard = [*player.play(stream, waveform, chunk)]

    # From here two ways: a pause follows, or the stream is closed where the sound ends.
    paused, clock = copy.deepcopy(stream, {id(recognizer): recognizer}), copy.copy(player)
    pause = pause_like(waveform, samples_of_duration(3 * stream.settings.silence_s + 1))
    _add_endpoint(evaluation, [*heard, *clock.play(paused, pause, chunk)], missed=bool(paused.close()))

    evaluation.split += any(isinstance(event, Final) for _, event in heard)
    heard += player.work(stream.close)
    events = [event for _, event in heard]
    text = " ".join(event.text for event in events if isinstance(event, Final) and event.text)
    evaluation.num_utterances += 1
    evaluation.words += word_errors(reference, text)
    evaluation.offline_words += word_errors(reference, offline.text)
    evaluation.same_as_offline += text == offline.text
    evaluation.audio_s += len(waveform) / SAMPLE_RATE
    evaluation.network_s += stream.timings.network_s
    evaluation.work_s += player.work_s
    evaluation.encoded_s += stream.encoded_s
    _add_first_word(evaluation, heard, offline)
    _add_stability(evaluation, events)


def pause_like(waveform: Waveform, samples: int) -> Waveform:
    """A pause (samples,) as it sounds in a recording: its quietest 0.2 s, forwards and backwards in turn."""
    length = min(samples_of_duration(_QUIETEST_S), len(waveform))
    parts = waveform[: len(waveform) // length * length].reshape(-1, length)
    quietest = parts[parts.var(axis=1).argmin()]
    return np.resize(np.concatenate([quietest, quietest[::-1]]), samples)


def streaming_table(evaluations: Sequence[StreamingEvaluation]) -> Table:
    """A table for the terminal, a row for each size of chunks."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    headings = (
        "chunk s",
        "WER %",
        "offline",
        "same %",
        "1st text s",
        "1st word s",
        "end s",
        "unstable %",
        "revised %",
        "encoded",
        "RTF",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for evaluation in evaluations:
        row = evaluation.as_json()
        table.add_row(
            f"{evaluation.chunk_s:g}",
            f"{100 * row['wer']:.2f}",
            f"{100 * row['offline_wer']:.2f}",
            f"{100 * row['same_as_offline_share']:.0f}",
            *(
                f"{_seconds(row[f'{name}_p50_s'])}/{_seconds(row[f'{name}_p95_s'])}"
                for name in ("first_partial", "first_word", "endpoint")
            ),
            f"{100 * evaluation.unstable_ratio:.1f}",
            f"{100 * evaluation.revised_ratio:.2f}",
            f"{evaluation.encoded_s / max(evaluation.audio_s, 1e-9):.1f}×",
            f"{evaluation.work_s / max(evaluation.audio_s, 1e-9):.3f}",
        )
    return table


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Between the nearest two where it falls between; None of nothing."""
    return float(np.percentile(values, percent)) if values else None


class _Player:
    """Sound by the simulated clock.

    Attributes:
        clock_s: what time it is, from the beginning of the sound;
        played: samples whose time has been;
        work_s: seconds of computing so far.
    """

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self.clock_s = 0.0
        self.played = 0
        self.work_s = 0.0

    def play(self, stream: Stream, waveform: Waveform, chunk: int) -> Iterator[tuple[float, Event]]:
        """Plays samples (samples,) in chunks of so many samples; gives events and when they are there."""
        position = 0
        while position < len(waveform):
            # At least one chunk, for which it waits, and all others that are there.
            late = int((self.clock_s * SAMPLE_RATE - self.played) / chunk) * chunk
            part = waveform[position : position + max(chunk, late)]
            position += len(part)
            self.played += len(part)
            self.clock_s = max(self.clock_s, self.played / SAMPLE_RATE)
            yield from self.work(lambda part=part: stream.feed(part))  # type: ignore[misc]

    def work(self, work: Callable[[], list[Event]]) -> list[tuple[float, Event]]:
        """Events, all there when the work is done."""
        started_s = self._timer()
        events = work()
        elapsed_s = self._timer() - started_s
        self.work_s += elapsed_s
        self.clock_s += elapsed_s
        return [(self.clock_s, event) for event in events]


def _add_first_word(evaluation: StreamingEvaluation, heard: Sequence[tuple[float, Event]], offline: Result) -> None:
    if not offline.words:
        return
    first = offline.words[0]
    with_words = [there_s for there_s, event in heard if event.words]
    evaluation.first_partial_s += [there_s - first.end_s for there_s in with_words[:1]]
    for there_s, event in heard:
        if event.words and event.words[0].text == first.text:
            evaluation.first_word_s.append(there_s - first.end_s)
            return
    evaluation.first_word_missed += 1


def _add_endpoint(evaluation: StreamingEvaluation, heard: Sequence[tuple[float, Event]], *, missed: bool) -> None:
    """`missed`: the stream had something to say when it was closed behind the pause."""
    if missed:
        evaluation.endpoint_missed += 1
        return
    finals = [(there_s, event) for there_s, event in heard if isinstance(event, Final) and event.words]
    if finals:
        there_s, final = finals[-1]
        evaluation.endpoint_s.append(there_s - final.words[-1].end_s)


def _add_stability(evaluation: StreamingEvaluation, events: Sequence[Event]) -> None:
    shown: list[str] = []
    stable: list[str] = []
    for event in events:
        words = event.text.split()
        same = [one == other for one, other in zip(shown, words, strict=False)]
        evaluation.unstable_words += len(shown) - (same.index(False) if False in same else len(same))
        if isinstance(event, Final):
            evaluation.final_words += len(words)
            evaluation.stable_words += len(stable)
            evaluation.revised_words += _revised(stable, words)
            shown, stable = [], []
        else:
            shown, stable = words, event.stable_text.split()


def _revised(stable: Sequence[str], words: Sequence[str]) -> int:
    from rapidfuzz.distance import Levenshtein

    return min(Levenshtein.distance(stable, words[:length]) for length in range(len(words) + 1))


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
