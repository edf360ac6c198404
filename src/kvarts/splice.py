"""``kvarts augment splice``: recordings cut between their words and joined in another order, to train on.

A network that is shown few sentences often learns them by heart: which word follows which, rather than how words sound.
In a splice nothing follows from what was said before, while every word is a person's own. (An offline relative of
aligned data augmentation, arXiv 2104.01393, which takes words from other speakers too.)

Where the words are is found by a recogniser that is told the text (Viterbi, `kvarts.search.align_words`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import encode
from kvarts.audio import read_audio
from kvarts.decoding import WordFrames
from kvarts.errors import AudioError, TextError
from kvarts.features import log_mel
from kvarts.frames import HOP_LENGTH, SAMPLE_RATE, samples_of_duration, seconds_of_encoded
from kvarts.search import align_words
from kvarts.sound import to_pcm
from kvarts.text import normalise

if TYPE_CHECKING:
    from kvarts.manifest import Utterance
    from kvarts.recogniser import Recognizer

PIECE_WORDS: Final = (1, 1, 2, 2, 3, 4)  # in a piece; drawn
DURATION_S: Final = (3.0, 14.0)  # of a splice, drawn evenly; it ends with the piece that reaches it

_FADE = HOP_LENGTH // 2  # samples on either side of a cut that two pieces share, 5 ms: no click, and no letter is lost
_LEAD_S, _TAIL_S = 0.15, 0.2  # kept before the first letter of a recording, and behind its last


@dataclass(frozen=True)
class Recording:
    """An utterance, and where it may be cut.

    Attributes:
        waveform: (samples,) int16 at 16 kHz.
        cuts: samples, one more than there are words: word k lies between cuts k and k + 1.
    """

    utterance_id: str
    waveform: NDArray[np.int16]
    words: tuple[str, ...]
    cuts: tuple[int, ...]


class Piece(NamedTuple):
    """Words of a recording, from `start` up to `stop`."""

    recording: Recording
    start: int
    stop: int

    @property
    def samples(self) -> int:
        """From cut to cut."""
        return self.recording.cuts[self.stop] - self.recording.cuts[self.start]

    @property
    def text(self) -> str:
        return " ".join(self.recording.words[self.start : self.stop])

    def waveform(self) -> NDArray[np.float64]:
        """(samples + 160,) of int16's range: 5 ms more on both sides; silence where the recording has none."""
        first, last = (self.recording.cuts[cut] + shift for cut, shift in ((self.start, -_FADE), (self.stop, _FADE)))
        inside = self.recording.waveform[max(0, first) : last].astype(np.float64)
        before = max(0, -first)
        return np.pad(inside, (before, last - first - before - len(inside)))


@dataclass(frozen=True)
class Splice:
    """Pieces joined: waveform (samples,) int16 at 16 kHz, its text, and the utterances that the pieces are of."""

    waveform: NDArray[np.int16]
    text: str
    utterance_ids: tuple[str, ...]


def recording_of(
    utterance: Utterance, waveform: NDArray[np.float32], log_probs: NDArray[np.float32], stride: int
) -> Recording:
    """An utterance with its cuts.

    Args:
        waveform: (samples,) float32 at 16 kHz.
        log_probs: (time, 34), the recogniser's.
        stride: log-mel frames of one encoded frame.

    Raises:
        TextError: there are no words, or letters outside the alphabet.
        ValueError: there are too few frames for the words.
    """
    words = align_words(log_probs, encode(normalise(utterance.text)))
    if not words:
        raise TextError("there is no text; write down what is said, or take the line out")
    cuts = cut_places(len(waveform), words, stride)
    return Recording(utterance.utterance_id, to_pcm(waveform), tuple(word.text for word in words), cuts)


def cut_places(samples: int, words: Sequence[WordFrames], stride: int) -> tuple[int, ...]:
    """Samples before, between and behind words of an utterance of `samples`; rising.

    Between two words it is half way from the last letter of one to the first of the next. Looking for the weakest 10 ms
    there is no better: of splices of 120 recordings the open weights got 7.5 % of letters wrong, of those cut half way
    6.1 %, of the recordings whole 3.7 %. Between words without a pause the weakest place is in a consonant.
    """
    first = samples_of_duration(max(0.0, seconds_of_encoded(words[0].start, stride) - _LEAD_S))
    last = samples_of_duration(seconds_of_encoded(words[-1].stop, stride) + _TAIL_S)
    between = (
        samples_of_duration(seconds_of_encoded((word.stop - 1 + following.start) / 2, stride))
        for word, following in pairwise(words)
    )
    return (first, *between, min(last, samples))


def aligned(recogniser: Recognizer, utterances: Sequence[Utterance]) -> Iterator[Recording | str]:
    """Each utterance as a recording, or what is wrong with it, as ``file:line: …``. Their samples stay in memory."""
    for utterance in utterances:
        try:
            waveform = read_audio(utterance.audio_path)
            [log_probs] = recogniser.log_probs([log_mel(waveform)])
            yield recording_of(utterance, waveform, log_probs, recogniser.engine.stride)
        except (AudioError, TextError, ValueError) as error:
            yield f"{utterance.where}: {error}"


def splices(recordings: Sequence[Recording], rng: np.random.Generator) -> Iterator[Splice]:
    """Splices of one speaker, in which every word is heard once; too short a last one becomes part of that before."""
    pieces: list[Piece] = []
    for recording in recordings:
        start = 0
        while start < len(recording.words):
            stop = min(start + int(rng.choice(PIECE_WORDS)), len(recording.words))
            pieces.append(Piece(recording, start, stop))
            start = stop
    groups: list[list[Piece]] = []
    samples, wanted = 0, 0
    for number in rng.permutation(len(pieces)):
        if samples >= wanted:
            groups.append([])
            samples, wanted = 0, samples_of_duration(rng.uniform(*DURATION_S))
        groups[-1].append(pieces[number])
        samples += pieces[number].samples
    if len(groups) > 1 and samples < samples_of_duration(DURATION_S[0]):
        remnant = groups.pop()
        groups[-1] += remnant
    yield from map(_spliced, groups)


def row_of(splice: Splice, name: str, audio: str, speaker: str | None) -> dict[str, Any]:
    """What a manifest says of a splice."""
    return {
        "id": name,
        "audio_filepath": audio,
        "text": splice.text,
        "duration": len(splice.waveform) / SAMPLE_RATE,
        **({} if speaker is None else {"speaker": speaker}),
        "spliced_of": list(splice.utterance_ids),
    }


def _spliced(pieces: Sequence[Piece]) -> Splice:
    """One after the other, the last 10 ms of each fading into the first of the next."""
    rise = np.sin(np.linspace(0, np.pi / 2, 2 * _FADE)) ** 2
    waveform = np.zeros(sum(piece.samples for piece in pieces) + 2 * _FADE)
    place = 0
    for piece in pieces:
        sound = piece.waveform()
        sound[: 2 * _FADE] *= rise
        sound[-2 * _FADE :] *= rise[::-1]
        waveform[place : place + len(sound)] += sound
        place += piece.samples
    return Splice(
        np.rint(waveform).astype(np.int16),
        " ".join(piece.text for piece in pieces),
        tuple(dict.fromkeys(piece.recording.utterance_id for piece in pieces)),
    )
