"""The recogniser: audio in, text out, without PyTorch. `Recognizer._words` is the way from waveform to text."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import NUM_CLASSES
from kvarts.audio import read_audio, resampled
from kvarts.checks import too_short
from kvarts.decoding import greedy_words
from kvarts.engines import Engine
from kvarts.errors import AudioError
from kvarts.features import N_MELS, check_waveform, log_mel
from kvarts.frames import SAMPLE_RATE, WIN_LENGTH, encoded_frames, seconds_of_encoded

Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Word:
    """A recognised word.

    Attributes:
        start_s, end_s: seconds from the beginning of the audio, to one encoded frame (40 ms).
        confidence: in (0, 1]: geometric mean of the probabilities of its letters. Not calibrated.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class Timings:
    """Where the seconds went: reading and resampling, log-mel, the network, decoding.

    Of a batch each result has its share by duration.
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
class Result:
    """What was recognised in one recording."""

    text: str
    words: tuple[Word, ...]
    duration_s: float
    timings: Timings


class Recognizer:
    """Turns speech into text. Made by `load`; may be used from several threads at once.

    Example:
        >>> recognizer = Recognizer.load("model")  # doctest: +SKIP
        >>> recognizer.transcribe("command.wav").text  # doctest: +SKIP
        'включи свет на кухне'
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        engine: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> Recognizer:
        """A recogniser from a folder that `kvarts export` wrote.

        Args:
            path: the folder.
            engine: «openvino» or «onnxruntime»; None: the faster of those installed.
            precision: «float32», «bfloat16» (OpenVINO only) or «int8»; None: the fastest that this processor computes
                at no noticeable loss, see `kvarts.model_folder.default_precision`.
            threads: of the engine; None: all processors that this process may use.

        Raises:
            ModelFolderError: no such folder, a file is missing, damaged or was altered.
            ConfigError: no such engine or precision, or it is not installed.
        """
        from kvarts.model_folder import load_engine

        return cls(load_engine(Path(path), engine, precision, threads))

    def transcribe(self, audio: str | os.PathLike[str] | Waveform, *, sample_rate: int = SAMPLE_RATE) -> Result:
        """Recognises one recording.

        Args:
            audio: a file (see `kvarts.audio.read_audio`), or a waveform (samples,), floating point, mono, in [-1, 1].
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
        started_s = time.perf_counter()
        waveforms = [_waveform(audio, sample_rate) for audio in audios]
        read_s = time.perf_counter() - started_s
        words, timings = self._words(waveforms)
        samples = sum(map(len, waveforms))
        return [
            Result(
                text=text_of(found),
                words=found,
                duration_s=len(waveform) / SAMPLE_RATE,
                timings=_share(Timings(read_s, *timings), len(waveform) / samples),
            )
            for waveform, found in zip(waveforms, words, strict=True)
        ]

    def _words(self, waveforms: Sequence[Waveform]) -> tuple[list[tuple[Word, ...]], tuple[float, float, float]]:
        """The way from waveforms (samples,) at 16 kHz to words; and the seconds of its three parts."""
        started_s = time.perf_counter()
        features = [log_mel(waveform) for waveform in waveforms]
        features_s = time.perf_counter()
        log_probs, num_frames = self.log_probs(features)
        network_s = time.perf_counter()
        words = self._decoded(log_probs, num_frames)
        decoded_s = time.perf_counter()
        return words, (features_s - started_s, network_s - features_s, decoded_s - network_s)

    def log_probs(self, features: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], list[int]]:
        """One batch of log-mel features, (frames, 64) each, to log-probabilities.

        Returns:
            (batch, encoded frames, 34), the blank last, and how many frames of each utterance count.
        """
        if not features:
            return np.zeros((0, 0, NUM_CLASSES), np.float32), []
        lengths = np.array([len(matrix) for matrix in features], np.int64)
        padded = np.zeros((len(features), lengths.max(), N_MELS), np.float32)
        for row, matrix in zip(padded, features, strict=True):
            row[: len(matrix)] = matrix
        return self.engine.log_probs(padded, lengths), [
            encoded_frames(int(length), self.engine.stride) for length in lengths
        ]

    def texts(self, features: Sequence[NDArray[np.float32]]) -> list[str]:
        """The texts of one batch of log-mel features, (frames, 64) each."""
        return [text_of(words) for words in self._decoded(*self.log_probs(features))]

    def _decoded(self, log_probs: NDArray[np.float32], num_frames: Sequence[int]) -> list[tuple[Word, ...]]:
        def seconds(frame: int) -> float:
            return seconds_of_encoded(frame, self.engine.stride)

        return [
            tuple(
                Word(word.text, seconds(word.start), seconds(word.stop), word.confidence)
                for word in greedy_words(matrix[:length])
            )
            for matrix, length in zip(log_probs, num_frames, strict=True)
        ]


def text_of(words: Sequence[Word]) -> str:
    """Words joined by single spaces."""
    return " ".join(word.text for word in words)


def file_features(path: Path) -> NDArray[np.float32]:
    """Log-mel features (frames, 64) of an audio file.

    Raises:
        AudioError: the file is missing, empty, truncated, no audio, or shorter than one analysis window (25 ms),
            which can hold no letter: the network would say whatever it says to a click.
    """
    return log_mel(_waveform(path, SAMPLE_RATE))


def _waveform(audio: str | os.PathLike[str] | Waveform, sample_rate: int) -> Waveform:
    if not isinstance(audio, np.ndarray):
        where = f"{os.fspath(audio)}: "
        waveform = read_audio(audio)
    else:
        where = ""
        check_waveform(audio)
        waveform = resampled(audio, sample_rate)
    if len(waveform) < WIN_LENGTH:
        raise AudioError(f"{where}{too_short(len(waveform) / SAMPLE_RATE)}; record more of it")
    return waveform


def _share(timings: Timings, share: float) -> Timings:
    return Timings(*(share * seconds for seconds in astuple(timings)))
