"""Text while one is still speaking.

The network is not causal: what it says of a sound depends on seconds before and behind it. So nothing is carried over
from one network call to the next. What was said lately is encoded anew for every partial result, and the final result
of an utterance is what `Recognizer.transcribe` gives for the same samples, to the letter.

All decisions are taken at multiples of 40 ms of sound, an encoded frame, and see the sound up to there alone. So where
utterances begin and end does not depend on the sizes of the chunks in which the sound comes, nor on how busy the
machine is. A partial result that is out of date before it is computed is left out; a final one never is.

**Where an utterance begins.** A frame is speech by level when the loudest of its four 10 ms stands 4.8 dB above the
floor, the quietest 0.2 s of the last 10 s, above −40 dB of the loudest 0.2 s of these, and above digital silence
(levels are those of `kvarts.cutting`). Two such frames, one after the other, begin an utterance. It also gets the
sound before them, as far back as the last one's end, but no more than `lead_s`. While nothing begins, nothing is
encoded.

**Where it ends.** By level: no frame was speech for `silence_s`. By the network, in noise that the gate takes for
speech: no word ends within the last 1.5 · `silence_s`. Partial results are asked for that every 6 s, or every 1.5 s
where the sound has become fainter, and those are never left out. The cut lies half of `silence_s` back, so that either
side keeps silence beside its speech. By length: what goes on for 30 s is cut where `kvarts.cutting` would cut it, at
the best pause between 15 s and 30 s.

**What is stable.** See `Partial`.

A stream keeps at most 30 s of sound and has no threads. Each belongs to one thread at a time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvarts import cutting
from kvarts.cutting import LONGEST_PIECE_S, Piece
from kvarts.errors import ConfigError, StreamError
from kvarts.frames import HOP_LENGTH, SAMPLE_RATE, WIN_LENGTH
from kvarts.recogniser import (
    PieceResult,
    SpokenCommand,
    Timings,
    Waveform,
    Word,
    commands_of,
    joint_confidence,
    text_of,
)

if TYPE_CHECKING:
    from kvarts.recogniser import Recognizer

Name = TypeVar("Name", bound=Hashable)

_FRAME = 4 * HOP_LENGTH  # samples of 40 ms; the counts below are of these
_FRAME_S = _FRAME / SAMPLE_RATE
_LONGEST = round(LONGEST_PIECE_S / _FRAME_S)
_BEGINS = 2  # frames of speech one after the other; a click is shorter
_BLOCK = 5  # 0.2 s
_REMEMBERED = 50  # blocks, 10 s; a floor that rises is known for one after that time
# Partial results that may end an utterance cannot be left out by who is behind. They are at least 6 s apart, and 1.5 s
# where all of a pause's length stayed 10 dB below the utterance's loudest frame: one does not speak so, noise does.
_CHECK = 38
_CHECK_SELDOM = 150
_FALLEN = 0.1
_LEVELLED = 250  # 10 s, at a time

# Of many streams: the share of the time in which they hear that partial results may take, the credit that they may save
# up, in seconds of that time, and the speed that is taken for the machine's before anything was measured.
_BUSY = 0.8
_SAVED_S = 1.0
_FIRST_SPEED = 100.0
_FORGETS = 0.95  # of what was measured, at a time

# Powers, as in `kvarts.cutting`.
_DIGITAL_SILENCE = 1e-9
_STANDS_OUT = 3.0
# Coded speech falls to nothing in some pauses and not in others: without this, in the recordings on which `silence_s`
# was chosen, the median time between the last frame of speech and the recording's end was 0.12 s, with it 0.52 s.
_WEAK = 1e-4
_NETWORK_SILENCE = 1.5  # of `silence_s`: the network may need what follows a word to see it


@dataclass(frozen=True)
class StreamSettings:
    """How a stream listens. Seconds of sound; each becomes a multiple of 40 ms.

    Attributes:
        silence_s: so long a pause ends an utterance, 0.2 to 2. Of 34 sentences read aloud two have pauses of 0.8 s and
            more inside, the longest 0.92 s; with noise at 10 dB three, the longest 0.96 s.
        partial_s: partial results are no closer together, 0.04 to 30.
        growth: nor closer than this share of the sound encoded for the last one, 0 to 10. So partial results cost
            about 1 / growth + 1 times the sound, however long an utterance is: 9.3 times with 0.12.
        stable_partials: a word is stable when that many partial results in a row agree up to it, at least 1;
        stable_s: and it ends so long before the end of what was heard, 0 to 30.
        lead_s: sound kept before an utterance, 0.2 to 1.9.

    Raises:
        ConfigError: a setting is out of these ranges.
    """

    silence_s: float = 0.8
    partial_s: float = 0.2
    growth: float = 0.12
    stable_partials: int = 2
    stable_s: float = 1.0
    lead_s: float = 1.5

    def __post_init__(self) -> None:
        ranges = {
            "silence_s": (0.2, 2.0),
            "partial_s": (0.04, LONGEST_PIECE_S),
            "growth": (0.0, 10.0),
            "stable_partials": (1, 1000),
            "stable_s": (0.0, LONGEST_PIECE_S),
            # Below the 2 s of silence that cutting.py would leave out.
            "lead_s": (0.2, 1.9),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:  # NaN is not, either
                raise ConfigError(f"{name} is {value}; give a number from {least:g} to {most:g}")


@dataclass(frozen=True)
class Partial:
    """What has been understood of the open utterance.

    `stable_text` is a beginning of `text`, of whole words, and of the `stable_text` of every later partial result of
    the utterance. That is promised; where the network changes its mind about a stable word, later partial results keep
    the old one. The final result is the network's alone and may differ from it; how often, `kvarts.streaming_metrics`
    counts.

    Attributes:
        words: of `text`, with times in seconds from the beginning of the stream.
        time_s: up to where the stream had been heard for it.
    """

    text: str
    stable_text: str
    words: tuple[Word, ...]
    time_s: float


@dataclass(frozen=True)
class Final:
    """An utterance: what offline recognition gives for the stream's samples from `start_s` to `end_s`.

    Attributes:
        text: empty only where partial results had shown words that the whole utterance does not hold.
        words: with times in seconds from the beginning of the stream.
        start_s, end_s: whole samples; utterances do not overlap.
        time_s: up to where the stream had been heard when the end was known.
        confidence, commands: as of a `kvarts.recogniser.Result`.
    """

    text: str
    words: tuple[Word, ...]
    start_s: float
    end_s: float
    time_s: float
    confidence: float | None
    commands: tuple[SpokenCommand, ...] = ()


Event = Partial | Final


class _Request(NamedTuple):
    """A part of the sound that the network is to hear."""

    kind: Literal["partial", "check", "final"]
    start: int  # samples from the beginning of the stream
    waveform: Waveform
    time: int  # samples heard when it was made


class Stream:
    """One speaker's sound, in order, to events. Made by `Recognizer.stream`.

    Attributes:
        encoded_s: seconds of sound that the network has heard, partial results included.
        timings: where the time for it went; `read_s` is of no meaning here.

    Example:
        >>> stream = recognizer.stream()  # doctest: +SKIP
        >>> for event in stream.feed(samples):  # doctest: +SKIP
        ...     print(event.text)
        >>> stream.close()  # doctest: +SKIP
        [Final(text='включи свет', …)]
    """

    def __init__(
        self, recognizer: Recognizer, settings: StreamSettings | None = None, *, sample_rate: int = SAMPLE_RATE
    ) -> None:
        if sample_rate != SAMPLE_RATE:
            raise StreamError(f"a stream takes {SAMPLE_RATE} samples a second, not {sample_rate}: resample them first")
        self.settings = settings or StreamSettings()
        self.encoded_s = 0.0
        self.timings = Timings(0.0, 0.0, 0.0, 0.0)
        self._recognizer = recognizer
        self._silence = _frames(self.settings.silence_s)
        self._events: list[Event] = []  # not given out yet
        self._request: _Request | None = None
        self._closed = False

        self._sound = bytearray()  # float32, from the beginning of the utterance, or of what may become one
        self._begin = 0  # frames before that
        self._levels: deque[tuple[float, float]] = deque()  # of the frames not looked at: peak and mean power
        self._levelled = 0  # frames that have a level
        self._frames = 0  # looked at

        self._blocks: deque[float] = deque(maxlen=_REMEMBERED)  # mean powers
        self._block: list[float] = []  # powers of the next block's frames
        self._threshold = math.inf  # until the first block is whole
        self._speech = 0  # frames of speech that are the last ones
        self._quiet = 0  # frames without speech that are the last ones
        self._may_hold_speech = True  # what follows `_begin`; of the first sound nothing is known

        self._open = False
        self._opened = 0  # frames when speech was known
        self._next = 0  # frames of the next partial result
        self._checked = 0  # frames of the last check
        self._served = 0  # frames when the network last heard something
        self._peaks: deque[float] = deque(maxlen=round(_NETWORK_SILENCE * self._silence))
        self._loudest = 0.0  # peak of a frame since the utterance began

        self._forget_partials()

    def feed(self, samples: Waveform) -> list[Event]:
        """Hears what comes next and gives what follows from it.

        Args:
            samples: (samples,) at least one, floating point, mono, 16 kHz, in [-1, 1]. They are copied.

        Raises:
            StreamError: no samples, not mono, integers, not finite, or the stream is closed. It is as it was then, and
                goes on with what comes next.
        """
        self.offer(samples)
        serve(self._recognizer, [self])
        return self.taken()

    def close(self) -> list[Event]:
        """Ends the stream. The last utterance, if one is open, gets its final result.

        Raises:
            StreamError: it is closed already.
        """
        self.end()
        serve(self._recognizer, [self])
        return self.taken()

    # --- The same in phases, for many streams at once: `Streams` puts them together. Nothing here runs the network.

    def offer(self, samples: Waveform) -> None:
        """Takes samples; otherwise as `feed`."""
        self._check_open()
        check_samples(samples)
        self._sound += np.ascontiguousarray(samples, np.float32).tobytes()
        whole = self._begin + len(self._sound) // 4 // _FRAME
        for start in range(self._levelled, whole, _LEVELLED):
            stop = min(start + _LEVELLED, whole)
            powers = _powers(self._waveform(start, stop))
            self._levels.extend(zip(powers.max(axis=1).tolist(), powers.mean(axis=1).tolist(), strict=True))
        self._levelled = whole

    def end(self) -> None:
        """Takes no more samples; otherwise as `close`."""
        self._check_open()
        self._closed = True

    def due(self) -> list[Piece]:
        """Goes on as far as it can without the network, and gives what the network must hear then; else nothing.

        The same again until `take` gets the results.
        """
        while self._levels and (self._request is None or self._request.kind == "partial"):
            self._step(*self._levels.popleft())
        if self._closed and not self._levels and (self._request is None or self._request.kind == "partial"):
            self._request = None
            if self._may_hold_speech and len(self._sound) // 4 >= WIN_LENGTH:
                waveform = self._waveform(self._begin)
                time = self._begin * _FRAME + len(waveform)
                self._request = _Request("final", self._begin * _FRAME, waveform, time)
            self._may_hold_speech = False
        if self._request is None:
            return []
        start = self._request.start
        return [Piece(start + piece.start, piece.waveform) for piece in cutting.pieces([self._request.waveform])]

    def take(self, results: Sequence[PieceResult]) -> None:
        """The results of the pieces that `due` gave."""
        request = self._request
        assert request is not None
        self._request = None
        self._served = self._frames
        self.encoded_s += sum(result.end_s - result.start_s for result in results)
        self.timings = Timings(
            *map(sum, zip(*map(astuple, [self.timings, *(r.timings for r in results)]), strict=True))
        )
        words = tuple(word for result in results for word in result.words)
        if request.kind == "final":
            self._give_final(request, words, results)
            return
        self._give_partial(request, words)
        if request.kind == "check":
            # Only what was said since the utterance began counts as silence.
            last_s = max([self._opened * _FRAME_S, *(word.end_s for word in words)])
            if self._frames * _FRAME_S - last_s >= _NETWORK_SILENCE * self._silence * _FRAME_S:
                self._end_utterance(self._frames - self._silence // 2)
                self._open = False

    @property
    def is_patient(self) -> bool:
        """Whether what is due is a partial result, that may come later or not at all."""
        return self._request is not None and self._request.kind == "partial"

    @property
    def waited_s(self) -> float:
        """Sound since the utterance began or the network last heard some of it."""
        return (self._frames - self._served) * _FRAME_S

    def taken(self) -> list[Event]:
        """The events since it was last asked, in order."""
        events, self._events = self._events, []
        return events

    # --- What happens at a frame

    def _step(self, peak: float, power: float) -> None:
        self._frames += 1
        is_speech = peak > self._threshold
        self._learn(power)
        self._speech = self._speech + 1 if is_speech else 0
        self._quiet = 0 if is_speech else self._quiet + 1
        self._may_hold_speech |= is_speech
        self._peaks.append(peak)
        self._loudest = max(self._loudest, peak) if self._open else peak
        if not self._open:
            if self._speech >= _BEGINS:
                self._open = True
                self._opened = self._checked = self._served = self._frames
                self._next = self._frames + _frames(self.settings.partial_s)
            else:
                self._drop(max(self._begin, self._frames - _frames(self.settings.lead_s)))
        elif self._quiet >= self._silence:
            self._end_utterance(self._frames - self._silence // 2)
            self._open = self._may_hold_speech = False
        elif self._frames - self._begin > _LONGEST:
            self._cut()
        elif self._frames >= self._next:
            self._ask_for_partial()

    def _learn(self, power: float) -> None:
        self._block.append(power)
        if len(self._block) == _BLOCK:
            self._blocks.append(sum(self._block) / _BLOCK)
            self._block.clear()
            floor, loudest = min(self._blocks), max(self._blocks)
            self._threshold = max(_DIGITAL_SILENCE, _STANDS_OUT * floor, _WEAK * loudest)

    def _ask_for_partial(self) -> None:
        has_fallen = max(self._peaks) < _FALLEN * self._loudest
        is_check = self._frames - self._checked >= (_CHECK if has_fallen else _CHECK_SELDOM)
        waveform = self._waveform(self._begin, self._frames)
        self._request = _Request(
            "check" if is_check else "partial", self._begin * _FRAME, waveform, self._frames * _FRAME
        )
        if is_check:
            self._checked = self._frames
        grown = round(self.settings.growth * (self._frames - self._begin))
        self._next = self._frames + max(_frames(self.settings.partial_s), grown)

    def _cut(self) -> None:
        """Ends the first piece of what has become too long; speech goes on behind it."""
        first = next(cutting.pieces([self._waveform(self._begin, self._frames)]), None)
        if first is None or first.start:  # silence at the beginning is left out, as it is offline
            self._drop(self._frames if first is None else self._begin + first.start // _FRAME)
            return
        self._end_utterance(self._begin + len(first.waveform) // _FRAME)
        self._opened = self._checked = self._frames
        self._next = self._frames + _frames(self.settings.partial_s)

    def _end_utterance(self, stop: int) -> None:
        self._request = _Request(
            "final", self._begin * _FRAME, self._waveform(self._begin, stop), self._frames * _FRAME
        )
        self._drop(stop)

    # --- Results

    def _forget_partials(self) -> None:
        self._words: tuple[Word, ...] = ()  # of the last partial result
        self._stable: tuple[Word, ...] = ()
        self._recent: deque[list[str]] = deque(maxlen=self.settings.stable_partials)
        self._shown = ("", "")

    def _give_final(self, request: _Request, words: tuple[Word, ...], results: Sequence[PieceResult]) -> None:
        if words or self._shown[0]:
            self._events.append(
                Final(
                    text=text_of(words),
                    words=words,
                    start_s=request.start / SAMPLE_RATE,
                    end_s=(request.start + len(request.waveform)) / SAMPLE_RATE,
                    time_s=request.time / SAMPLE_RATE,
                    confidence=joint_confidence(result.confidence for result in results),
                    commands=commands_of(results),
                )
            )
        self._forget_partials()

    def _give_partial(self, request: _Request, words: tuple[Word, ...]) -> None:
        count = len(self._stable)
        if _texts(words[:count]) != _texts(self._stable):
            words = _continued(self._stable, words)
        self._words = words
        self._recent.append(_texts(words))
        if len(self._recent) == self.settings.stable_partials:
            time_s = request.time / SAMPLE_RATE
            agreed = takewhile(lambda texts: len(set(texts)) == 1, zip(*self._recent, strict=False))
            old_enough = takewhile(lambda word: word.end_s <= time_s - self.settings.stable_s, words)
            self._stable = words[: max(count, min(len([*agreed]), len([*old_enough])))]
        shown = (text_of(words), text_of(self._stable))
        if shown != self._shown:
            self._shown = shown
            self._events.append(Partial(*shown, words, request.time / SAMPLE_RATE))

    # --- Sound

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError("the stream is closed; open a new one")

    def _waveform(self, start: int, stop: int | None = None) -> Waveform:
        """A copy of the samples (samples,) between two frames, or from one to the end."""
        rest = (start - self._begin) * _FRAME
        count = len(self._sound) // 4 - rest if stop is None else (stop - start) * _FRAME
        return np.frombuffer(self._sound, np.float32, count, 4 * rest).copy()

    def _drop(self, begin: int) -> None:
        del self._sound[: 4 * (begin - self._begin) * _FRAME]
        self._begin = begin


_Due = tuple[Stream, list[Piece]]


class Streams:
    """Many streams whose sound goes through the network together. Not for several threads at once.

    It holds no clock and no queue: a caller that is behind gives the sound that has come meanwhile in one chunk.
    Partial results take what time final ones leave: as much sound goes through the network for them as it could hear,
    at the speed that it had so far, while the streams hear what they are given. Who has waited longest comes first;
    what newer sound overtakes meanwhile is left out. Final results never are, nor do they depend on any of this.

    Example:
        >>> streams = Streams(recognizer)  # doctest: +SKIP
        >>> streams.open("anna")  # doctest: +SKIP
        >>> streams.feed({"anna": samples}, closing=["anna"])  # doctest: +SKIP
        {'anna': [Final(text='включи свет', …)]}
    """

    def __init__(self, recognizer: Recognizer, settings: StreamSettings | None = None) -> None:
        self._recognizer = recognizer
        self._settings = settings or StreamSettings()
        self._streams: dict[Hashable, Stream] = {}
        self._heard_s = self._worked_s = 0.0  # sound that went through the network, and how long that took, lately
        self._credit_s = 0.0  # sound that may go through it for partial results

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, name: Hashable, settings: StreamSettings | None = None, *, sample_rate: int = SAMPLE_RATE) -> Stream:
        """A new stream, with settings of its own if need be. It is fed here and not by itself.

        Raises:
            StreamError: one of that name is open, or the rate is not 16 kHz.
        """
        if name in self._streams:
            raise StreamError(f"stream {name!r} is open already; close it or choose another name")
        stream = Stream(self._recognizer, settings or self._settings, sample_rate=sample_rate)
        self._streams[name] = stream
        return stream

    def feed(self, sounds: Mapping[Name, Waveform], *, closing: Collection[Name] = ()) -> dict[Name, list[Event]]:
        """Hears what comes next in some streams, ends some, and gives the events of all of these.

        Raises:
            StreamError: there is no such stream, or its samples are none, see `check_samples`. Nothing of any stream
                has been heard then.
        """
        for name in (*sounds, *closing):
            if name not in self._streams:
                raise StreamError(f"stream {name!r} is not open; open it first")
        for name, samples in sounds.items():
            try:
                check_samples(samples)
            except StreamError as error:
                raise StreamError(f"stream {name!r}: {error}") from None
        named = {name: self._streams[name] for name in (*sounds, *closing)}
        for name, samples in sounds.items():
            named[name].offer(samples)
        for name in set(closing):
            self._streams.pop(name).end()
        longest = max((len(samples) for samples in sounds.values()), default=0)
        speed = self._heard_s / self._worked_s if self._worked_s else _FIRST_SPEED
        self._credit_s += _BUSY * speed * longest / SAMPLE_RATE
        self._credit_s = min(self._credit_s, _BUSY * speed * _SAVED_S)
        heard_s, worked_s = _spent(named.values())
        serve(self._recognizer, named.values(), self._admit)
        heard_now_s, worked_now_s = _spent(named.values())
        self._heard_s = _FORGETS * self._heard_s + heard_now_s - heard_s
        self._worked_s = _FORGETS * self._worked_s + worked_now_s - worked_s
        return {name: stream.taken() for name, stream in named.items()}

    def _admit(self, due: list[_Due]) -> list[_Due]:
        """Of what is due in the streams, what goes through the network now."""
        admitted = [one for one in due if not one[0].is_patient]
        self._credit_s -= sum(map(_sound_s, admitted))
        for one in sorted((one for one in due if one[0].is_patient), key=lambda one: -one[0].waited_s):
            if self._credit_s <= 0:
                break
            self._credit_s -= _sound_s(one)
            admitted.append(one)
        return admitted


def _spent(streams: Collection[Stream]) -> tuple[float, float]:
    """Seconds of sound that the network heard for some streams, and seconds that it took."""
    return sum(stream.encoded_s for stream in streams), sum(stream.timings.total_s for stream in streams)


def _sound_s(due: _Due) -> float:
    return sum(len(piece.waveform) for piece in due[1]) / SAMPLE_RATE


def serve(
    recognizer: Recognizer,
    streams: Iterable[Stream],
    admit: Callable[[list[_Due]], list[_Due]] = lambda due: due,
) -> None:
    """Runs what is due in some streams through the network, together, until nothing is or nothing is admitted."""
    waiting = list(streams)
    while due := admit([(stream, pieces) for stream in waiting if (pieces := stream.due())]):
        results = recognizer.transcribe_pieces(piece for _, pieces in due for piece in pieces)
        for stream, pieces in due:
            stream.take([next(results) for _ in pieces])
        waiting = [stream for stream, _ in due]


def check_samples(samples: Waveform) -> None:
    """Raises what `Stream.feed` does of samples alone."""
    if not isinstance(samples, np.ndarray) or samples.ndim != 1:
        shape = f"of shape {samples.shape}" if isinstance(samples, np.ndarray) else f"a {type(samples).__name__}"
        raise StreamError(f"a stream takes mono, an array of shape (samples,), and this is {shape}")
    if not np.issubdtype(samples.dtype, np.floating):
        raise StreamError(f"a stream takes floats in [-1, 1], not {samples.dtype}: divide by full scale first")
    if not len(samples):
        raise StreamError("a stream takes at least one sample at a time and this is none: wait until there are some")
    with np.errstate(over="ignore"):  # 1e300 is no number once it is a float32
        extremes = np.array([samples.min(), samples.max()]).astype(np.float32)
    if not np.isfinite(extremes).all():
        raise StreamError("samples that are not numbers (NaN or infinity): repair the sound")


def _frames(seconds: float) -> int:
    return max(1, round(seconds / _FRAME_S))


def _powers(waveform: Waveform) -> NDArray[np.float64]:
    """(frames, 4): variance within 10 ms each, of whole frames (samples,). As `kvarts.cutting`, in double precision."""
    samples = waveform.reshape(-1, HOP_LENGTH).astype(np.float64)
    powers: NDArray[np.float64] = samples.var(axis=1).reshape(-1, _FRAME // HOP_LENGTH)
    return powers


def _texts(words: Iterable[Word]) -> list[str]:
    return [word.text for word in words]


def _continued(first: Sequence[Word], words: Sequence[Word]) -> tuple[Word, ...]:
    """First some words, then those of the others whose middle lies behind them."""
    from_s = max((word.end_s for word in first), default=0.0)
    return (*first, *(word for word in words if word.start_s + word.end_s > 2 * from_s))
