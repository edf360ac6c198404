"""The recogniser: audio in, text out, without PyTorch. `Recognizer._understand` is the way from waveform to text."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvarts import cutting
from kvarts.audio import audio_blocks, resampled
from kvarts.cutting import Piece
from kvarts.decoding import CommandDecoder, Decoder, WordFrames, greedy_words
from kvarts.engines import Engine, cpu_threads
from kvarts.errors import AudioError
from kvarts.features import N_MELS, check_waveform, log_mel
from kvarts.frames import SAMPLE_RATE, WIN_LENGTH, encoded_frames, seconds_of_encoded, too_short
from kvarts.progress import chain_ahead

if TYPE_CHECKING:
    from kvarts.confidence import Calibration, CommandCalibration
    from kvarts.grammar_search import Command
    from kvarts.streaming import Stream, StreamSettings

Waveform = NDArray[np.float32]
Tag = TypeVar("Tag")
Timed = TypeVar("Timed", "Word", "SpokenCommand")

_LARGEST_BATCH = 120 * SAMPLE_RATE  # samples with padding; some 4 MB of features and a few times that in the network
_LARGEST_GROUP = 200 * SAMPLE_RATE  # samples from which batches are made; with 120 s they fit worse, 10 % slower
_LEAST_FILLED = 0.8  # of a batch's length is each waveform's


@dataclass(frozen=True, slots=True)
class Word:
    """A recognised word.

    Attributes:
        start_s, end_s: seconds from the beginning of the audio, to one encoded frame (40 ms).
        confidence: in [0, 1]: the probability that it is right, if the recogniser has a calibration; else what its
            decoder says, which is too high as a rule: greedy, the geometric mean of its letters' probabilities.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class SpokenCommand:
    """What a grammar found in a recording, or in a piece of it.

    Attributes:
        intent: None if it was no command of the grammar; the text is then «[unk]».
        slots: values by name.
        start_s, end_s: from its first word to its last, seconds from the beginning of the audio.
        score: the best command's log-likelihood ratio to what the network would rather hear, for each letter, at most
            0; of «[unk]» too.
        confidence: in [0, 1]: the probability that the best command was meant, if the recogniser has a calibration;
            else exp(score).
    """

    intent: str | None
    slots: Mapping[str, str]
    text: str
    start_s: float
    end_s: float
    score: float
    confidence: float


@dataclass(frozen=True)
class Timings:
    """Where the seconds went: waiting for sound to be read and resampled, log-mel, the network, decoding.

    Files are read while others are recognised, without waiting. Of a batch each result has its share by duration.
    """

    read_s: float
    features_s: float
    network_s: float
    decoding_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.read_s + self.features_s + self.network_s + self.decoding_s


@dataclass(frozen=True)
class PieceResult:
    """What was recognised in a piece of a recording.

    Attributes:
        start_s, end_s: of the piece, seconds from the beginning of the recording; its words count from there too.
        confidence: the probability that all of it is right; None without a calibration.
        command: None unless the decoder has a grammar, and where nothing was heard.
    """

    start_s: float
    end_s: float
    words: tuple[Word, ...]
    timings: Timings
    confidence: float | None = None
    command: SpokenCommand | None = None


@dataclass(frozen=True)
class Result:
    """What was recognised in one recording.

    Attributes:
        confidence: the probability that all of it is right, nothing missed; where it was cut into pieces of 30 s at
            most, the product of theirs. None without a calibration.
        commands: with a grammar that of each piece in which something was heard, so of a short recording at most one.
    """

    text: str
    words: tuple[Word, ...]
    duration_s: float
    timings: Timings
    confidence: float | None = None
    commands: tuple[SpokenCommand, ...] = ()


@dataclass(frozen=True, slots=True)
class Understood:
    """What was understood of one utterance, with times from its beginning; otherwise as `PieceResult`."""

    words: tuple[Word, ...]
    confidence: float | None
    command: SpokenCommand | None


class Recognizer:
    """Turns speech into text. Made by `load`; may be used from several threads at once.

    Example:
        >>> recognizer = Recognizer.load()  # doctest: +SKIP
        >>> recognizer.transcribe("command.wav").text  # doctest: +SKIP
        'включи свет на кухне'
    """

    def __init__(
        self,
        engine: Engine,
        threads: int | None = None,
        decoder: Decoder = greedy_words,
        calibration: Calibration | CommandCalibration | None = None,
    ) -> None:
        if calibration is not None:
            calibration.check(decoder)
        self.engine = engine
        self.decoder = decoder
        self.calibration = calibration
        self.threads = threads or cpu_threads()
        self._pool = ThreadPoolExecutor(self.threads)  # starts its threads when there is a batch

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        engine: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        decoder: Decoder = greedy_words,
        calibration: Calibration | CommandCalibration | None = None,
    ) -> Recognizer:
        """A recogniser from a folder that `kvarts export` wrote, or the one that ships with Kvarts.

        Args:
            path: the folder; None: the open weights, see `kvarts.open_weights`.
            engine: «openvino» or «onnxruntime»; None: the faster of those installed.
            precision: «float32», «bfloat16» (OpenVINO only) or «int8»; None: the fastest that this processor computes
                at no noticeable loss, see `kvarts.model_folder.default_precision`; of a compact folder, int8.
            threads: of the engine, of reading, of features and of the decoder; None: all processors that this process
                may use.
            decoder: greedy, a `kvarts.search.BeamSearch`, or a `kvarts.grammar_search.GrammarSearch` for commands.
            calibration: that `kvarts calibrate` wrote for this model and decoder; confidences are then probabilities.
                Of a grammar it is a `kvarts.confidence.CommandCalibration`.

        Raises:
            ModelFolderError: no such folder, a file is missing, damaged or was altered.
            ConfigError: no such engine or precision, or it is not installed.
            CalibrationError: the calibration is of another model or decoder.
        """
        from kvarts.model_folder import load_engine
        from kvarts.open_weights import MODEL

        folder = MODEL if path is None else Path(path)
        if calibration is not None:
            from kvarts.confidence import model_identity

            calibration.check(decoder, model_identity(folder))
        return cls(load_engine(folder, engine, precision, threads), threads, decoder, calibration)

    def transcribe(self, audio: str | os.PathLike[str] | Waveform, *, sample_rate: int = SAMPLE_RATE) -> Result:
        """Recognises one recording of any length.

        Args:
            audio: a file (see `kvarts.audio.read_audio`), or a waveform (samples,), floating point, mono, in [-1, 1].
                A file's channels are averaged, and it is read as it is recognised, in flat memory.
            sample_rate: Hz, of a waveform.

        Raises:
            AudioError: the file cannot be read, or the audio is shorter than one window (25 ms) or not finite.
        """
        [result] = self.transcribe_batch([audio], sample_rate=sample_rate)
        return result

    def transcribe_batch(
        self, audios: Sequence[str | os.PathLike[str] | Waveform], *, sample_rate: int = SAMPLE_RATE
    ) -> list[Result]:
        """Recognises several recordings together, as `transcribe` does each; faster where there are many short ones.

        Raises:
            AudioError: as `transcribe`, of the first that fails.
        """
        samples = [0] * len(audios)

        def pieces_of(number: int) -> Iterator[tuple[int, Piece]]:
            for piece in cutting.pieces(_counted(_blocks(audios[number], sample_rate), samples, number)):
                yield number, piece

        found: list[list[PieceResult]] = [[] for _ in audios]
        # Of waveforms alone nothing is read, and to start threads would take longer than a command's features.
        workers = 0 if all(isinstance(audio, np.ndarray) for audio in audios) else self.threads
        for number, result in self.transcribe_sources(map(pieces_of, range(len(audios))), workers=workers):
            if result is not None:
                found[number].append(result)
        return [_whole(results, count / SAMPLE_RATE) for results, count in zip(found, samples, strict=True)]

    def stream(self, settings: StreamSettings | None = None, *, sample_rate: int = SAMPLE_RATE) -> Stream:
        """For text while one is still speaking: a `kvarts.streaming.Stream` of one speaker.

        Raises:
            StreamError: the rate is not 16 kHz.
        """
        from kvarts.streaming import Stream

        return Stream(self, settings, sample_rate=sample_rate)

    def transcribe_sources(
        self, sources: Iterable[Iterable[tuple[Tag, Piece | None]]], *, workers: int | None = None
    ) -> Iterator[tuple[Tag, PieceResult | None]]:
        """Recognises pieces from several sources, which threads read while others are recognised.

        Args:
            sources: each gives pieces, and beside each whatever tells it from others; without a piece that passes by.
            workers: threads that read; 0: none; None: as many as the engine has.

        Yields:
            What stood beside each piece and its result, in the order of the sources and within each.

        Raises:
            AudioError: as `transcribe_pieces`. What a source raises comes after the results of all pieces before it.
        """

        def weight(item: tuple[Tag, Piece | None]) -> int:
            return 0 if item[1] is None else len(item[1].waveform)

        if workers is None:
            workers = self.threads
        waiting: deque[tuple[Tag, bool]] = deque()  # read, without a result yet; and whether it will get one
        with closing(chain_ahead(sources, weight=weight, limit=_LARGEST_GROUP, workers=workers)) as read:

            def pieces() -> Iterator[Piece]:
                for tag, piece in read:
                    waiting.append((tag, piece is not None))
                    if piece is not None:
                        yield piece

            def passing() -> Iterator[tuple[Tag, None]]:
                while waiting and not waiting[0][1]:
                    yield waiting.popleft()[0], None

            for result in self.transcribe_pieces(pieces()):
                yield from passing()
                yield waiting.popleft()[0], result
                yield from passing()
            yield from passing()

    def transcribe_pieces(self, pieces: Iterable[Piece]) -> Iterator[PieceResult]:
        """Recognises pieces (see `kvarts.cutting.pieces`) as they come, some 200 s of sound at a time.

        Yields:
            The results in the order of the pieces, each piece's share of the seconds by its length.

        Raises:
            AudioError: a piece that is empty, shorter than one window (25 ms), not finite, or no mono floats.
        """
        for group, read_s in _groups(pieces):
            yield from self._group_results(group, read_s)

    def _group_results(self, group: Sequence[Piece], read_s: float) -> list[PieceResult]:
        """The results of pieces that are in memory together, the longest recognised first."""
        samples = sum(len(piece.waveform) for piece in group)
        results: dict[int, PieceResult] = {}
        for batch in _batches([len(piece.waveform) for piece in group]):
            understood, seconds = self._understand([group[number].waveform for number in batch])
            batch_samples = sum(len(group[number].waveform) for number in batch)
            for number, found in zip(batch, understood, strict=True):
                piece, length = group[number], len(group[number].waveform)
                timings = Timings(
                    read_s * length / samples, *(part_s * length / batch_samples for part_s in seconds)
                )
                start_s = piece.start / SAMPLE_RATE
                results[number] = PieceResult(
                    start_s=start_s,
                    end_s=(piece.start + length) / SAMPLE_RATE,
                    words=tuple(_later(word, start_s) for word in found.words),
                    timings=timings,
                    confidence=found.confidence,
                    command=None if found.command is None else _later(found.command, start_s),
                )
        return [results[number] for number in range(len(group))]

    def _understand(self, waveforms: Sequence[Waveform]) -> tuple[list[Understood], tuple[float, float, float]]:
        """The way from waveforms (samples,) at 16 kHz to words; and the seconds of its three parts."""
        started_s = time.perf_counter()
        # One after the other in this thread costs 30 % more with two processors, and a lone one needs no other thread.
        features = list(self._pool.map(log_mel, waveforms) if len(waveforms) > 1 else map(log_mel, waveforms))
        features_s = time.perf_counter()
        log_probs = self.log_probs(features)
        network_s = time.perf_counter()
        understood = self.understood(log_probs)
        decoded_s = time.perf_counter()
        return understood, (features_s - started_s, network_s - features_s, decoded_s - network_s)

    def log_probs(self, features: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """One batch of log-mel features, (frames, 64) each, to log-probabilities, (encoded frames, 34) each."""
        if not features:
            return []
        lengths = np.array([len(matrix) for matrix in features], np.int64)
        padded = np.zeros((len(features), lengths.max(), N_MELS), np.float32)
        for row, matrix in zip(padded, features, strict=True):
            row[: len(matrix)] = matrix
        found = self.engine.log_probs(padded, lengths)
        frames = [encoded_frames(len(matrix), self.engine.stride) for matrix in features]
        return [row[:length] for row, length in zip(found, frames, strict=True)]

    def texts(self, features: Sequence[NDArray[np.float32]]) -> list[str]:
        """The texts of one batch of log-mel features, (frames, 64) each."""
        return [text_of(words) for words in self.decoded(self.log_probs(features))]

    def decoded(self, log_probs: Sequence[NDArray[np.float32]]) -> list[tuple[Word, ...]]:
        """The words of each utterance of what `log_probs` gave, with times from its beginning."""
        return [found.words for found in self.understood(log_probs)]

    def understood(self, log_probs: Sequence[NDArray[np.float32]]) -> list[Understood]:
        """What is understood of each utterance of what `log_probs` gave."""
        # The greedy decoder holds the interpreter and takes less than a thread's start.
        alone = self.decoder is greedy_words or len(log_probs) < 2
        return list(map(self._understood, log_probs) if alone else self._pool.map(self._understood, log_probs))

    def _understood(self, log_probs: NDArray[np.float32]) -> Understood:
        if isinstance(self.decoder, CommandDecoder):
            return self._understood_command(self.decoder.search(log_probs))
        if self.calibration is None:
            return Understood(self._timed(self.decoder(log_probs)), None, None)
        from kvarts.confidence import Calibration, evidenced

        assert isinstance(self.calibration, Calibration), "checked when the recogniser was made"
        words, confidence = self.calibration.apply(evidenced(self.decoder, log_probs), log_probs)
        return Understood(self._timed(words), confidence, None)

    def _understood_command(self, command: Command) -> Understood:
        """Where there is a calibration, each word is as sure as all of the command: it is right or wrong as a whole."""
        confidence = None
        words = command.words
        if self.calibration is not None:
            from kvarts.confidence import CommandCalibration

            assert isinstance(self.calibration, CommandCalibration), "checked when the recogniser was made"
            confidence = self.calibration.confidence(command.score)
            words = tuple(replace(word, confidence=confidence) for word in words)
        timed = self._timed(words)
        if not timed:
            return Understood(timed, confidence, None)
        sure = command.confidence if confidence is None else confidence
        spoken = SpokenCommand(
            *(command.intent, command.slots, command.text, timed[0].start_s, timed[-1].end_s, command.score, sure)
        )
        return Understood(timed, confidence, spoken)

    def _timed(self, words: Iterable[WordFrames]) -> tuple[Word, ...]:
        def seconds(frame: int) -> float:
            return seconds_of_encoded(frame, self.engine.stride)

        return tuple(Word(word.text, seconds(word.start), seconds(word.stop), word.confidence) for word in words)


def text_of(words: Sequence[Word]) -> str:
    """Words joined by single spaces."""
    return " ".join(word.text for word in words)


def file_features(path: Path) -> NDArray[np.float32]:
    """Log-mel features (frames, 64) of an audio file.

    Raises:
        AudioError: the file is missing, empty, truncated, no audio, or shorter than one analysis window (25 ms),
            which can hold no letter: the network would say whatever it says to a click.
    """
    return log_mel(np.concatenate([*_blocks(path, SAMPLE_RATE)]))


def _blocks(audio: str | os.PathLike[str] | Waveform, sample_rate: int) -> Iterator[Waveform]:
    """Blocks (samples,) at 16 kHz of a file or a waveform.

    Raises:
        AudioError: as `Recognizer.transcribe`; of too short a file at its end.
    """
    where = ""
    if isinstance(audio, np.ndarray):
        _check_waveform(audio)
        blocks = iter([resampled(audio, sample_rate)])
    else:
        where = f"{os.fspath(audio)}: "
        blocks = (block[:, 0] for block in audio_blocks(audio))
    samples = 0
    for block in blocks:
        samples += len(block)
        yield block
    if samples < WIN_LENGTH:
        raise AudioError(f"{where}{too_short(samples / SAMPLE_RATE)}; record more of it")


def _check_waveform(waveform: Waveform) -> None:
    if waveform.ndim == 2:
        raise AudioError(
            f"a waveform has one channel, shape (samples,), this one is {waveform.shape}: choose a channel, or "
            "average them"
        )
    check_waveform(waveform)


def _counted(blocks: Iterable[Waveform], samples: list[int], number: int) -> Iterator[Waveform]:
    """The blocks, their samples added to `samples[number]` as they pass."""
    for block in blocks:
        samples[number] += len(block)
        yield block


def _groups(pieces: Iterable[Piece]) -> Iterator[tuple[list[Piece], float]]:
    """Neighbouring pieces of at most 200 s together, and the seconds that it took to get them."""
    group: list[Piece] = []
    samples = 0
    read_s = 0.0
    source = iter(pieces)
    while True:
        started_s = time.perf_counter()
        try:
            piece = next(source, None)
            if piece is not None and len(piece.waveform) < WIN_LENGTH:
                raise AudioError(f"{too_short(len(piece.waveform) / SAMPLE_RATE)}; record more of it")
        except Exception:
            if group:  # no result is lost by what comes behind it
                yield group, read_s
            raise
        read_s += time.perf_counter() - started_s
        if group and (piece is None or samples + len(piece.waveform) > _LARGEST_GROUP):
            yield group, read_s
            group, samples, read_s = [], 0, 0.0
        if piece is None:
            return
        group.append(piece)
        samples += len(piece.waveform)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Which waveforms run together: longest first, at most 120 s with the padding, each filling 0.8 of its row."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        longest = lengths[batches[-1][0]] if batches else 0
        fits = batches and (len(batches[-1]) + 1) * longest <= _LARGEST_BATCH
        if fits and lengths[number] >= _LEAST_FILLED * longest:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _later(timed: Timed, seconds: float) -> Timed:
    # Whole hundredths, the grid of the features: 30.04 + 0.04 is 30.08 and not 30.080000000000002.
    return replace(timed, start_s=round(timed.start_s + seconds, 2), end_s=round(timed.end_s + seconds, 2))


def _whole(results: Sequence[PieceResult], duration_s: float) -> Result:
    words = tuple(word for result in results for word in result.words)
    parts = [astuple(result.timings) for result in results]
    timings = Timings(*map(sum, zip((0.0,) * 4, *parts, strict=True)))
    confidence = joint_confidence(result.confidence for result in results)
    return Result(text_of(words), words, duration_s, timings, confidence, commands_of(results))


def commands_of(results: Iterable[PieceResult]) -> tuple[SpokenCommand, ...]:
    """Those of the pieces that have one."""
    return tuple(result.command for result in results if result.command is not None)


def joint_confidence(confidences: Iterable[float | None]) -> float | None:
    """That all parts are right: the product, as if they were so independently; None if one is not known, or none is."""
    known = []
    for confidence in confidences:
        if confidence is None:
            return None
        known.append(confidence)
    return math.prod(known) if known else None
