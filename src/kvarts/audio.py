"""Audio files to 16 kHz mono: libsndfile first; FFmpeg, through PyAV, for what libsndfile does not know.

Whatever is wrong with a file is an `AudioError` that names the file and says what to do. A file that was cut
short is refused wherever that can be known:

- wav, aiff, w64, au: the header promises more bytes than the file has, one forgiven. Not known where it gives
  no length (0, or close to 2 GiB and more, as programs write it that cannot go back to the header).
- flac: the header promises more samples, or the decoder complains.
- ogg (opus, vorbis): the last page is incomplete, or not marked as the end of the stream (RFC 3533 and 7845).
- mp3: the Xing or Info header promises more samples, one MPEG frame (1152) forgiven. Not known without it.
- mp4, m4a, mkv, webm, wma: the container promises over 0.25 s more. Not known where it gives no length.
- anything else that comes through PyAV: only where the decoder stumbles over the end.

`audio_duration_s` reads headers alone, so it refuses what they show: wav, aiff, w64, au and ogg, and nothing
of the others. What cannot be known here, the duration in a manifest shows.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from kvarts.errors import AudioError
from kvarts.frames import SAMPLE_RATE

_BLOCK_SAMPLES = 2**18  # decoded at a time, so that memory holds the 16 kHz result and little more
_SAMPLE_RATES = range(1000, 1_000_001)  # Hz; a header with any other is damaged
# Codecs and resamplers overshoot full scale by a little. Beyond this are integers stored as floats.
_LARGEST_PEAK = 16.0

_UNKNOWN_FRAMES = 2**62  # libsndfile gives 2**63 - 1 for a flac stream of unknown length
_UNKNOWN_BYTES = 2**31 - 2**16  # what writes to a pipe puts the largest number it can, or nearly
_MPEG_FRAME = 1152  # samples
_CONTAINER_SLACK_S = 0.25  # containers count codec delay and padding, and round
_CONTAINERS_WITH_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf"}
_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255  # bytes

# How libsndfile logs that a header promises more bytes of sound than the file has.
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class _Sound:
    """An opened file: its rate, its sound as (frames, channels) of float32, and how long it ought to be."""

    rate: int  # Hz
    channels: int
    blocks: Iterator[NDArray[np.float32]]
    promised_frames: int | None  # None where no header promises anything that can be relied on
    slack_frames: int  # may be missing without the file being cut short


def read_audio(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Decode a file, average its channels, and resample to 16 kHz where it has another rate.

    Args:
        path: wav, flac, mp3, ogg, opus and the like; with PyAV installed anything that FFmpeg reads, also the
            sound of a video. Any sample rate from 1 kHz to 1 MHz, any number of channels.

    Returns:
        Shape (samples,), float32, in [-1, 1], at least one sample; n samples at another rate become
        n * 16000 / rate, rounded. What overshoots full scale by a little, as lossy codecs do, is clipped.

    Raises:
        AudioError: missing, a folder, unreadable, empty, not audio, cut short (see above), without samples,
            or with samples that are not finite or far beyond full scale.

    Takes the memory of the result twice, and a few blocks. Resampling is soxr's, in its quality "HQ".
    """
    return np.concatenate([block[:, 0] for block in audio_blocks(path)])


def audio_blocks(
    path: str | os.PathLike[str], channels: Literal["mix", "separate"] = "mix"
) -> Iterator[NDArray[np.float32]]:
    """The sound of a file block by block, as `read_audio` gives it whole, in the memory of a few blocks.

    Args:
        path: as of `read_audio`.
        channels: "mix" averages them to one; "separate" keeps and resamples each, as telephone calls have a
            speaker in each.

    Yields:
        Shape (samples, channels), float32, in [-1, 1], at least one sample in each block and at least one block.
        At 16 kHz a block has at most 2**18 numbers of all channels together; at other rates as many as they become.

    Raises:
        AudioError: as `read_audio`, at the block where it shows: what is cut short at the end, after all others.
    """
    path = Path(path)
    frames = 0
    gave_any = False
    with _opened(path) as sound:
        count = 1 if channels == "mix" else sound.channels
        resample = _resampler(sound.rate, count)
        for decoded in sound.blocks:
            frames += len(decoded)
            # The mean over one channel copies it, at 5 ns a sample.
            block = decoded.mean(axis=1, keepdims=True) if count < decoded.shape[1] else decoded
            if not np.isfinite(block).all():
                raise AudioError(f"{path} has samples that are not numbers (NaN or infinity): export it again")
            converted = resample(block, False)
            if len(converted):
                gave_any = True
                yield _clipped(path, converted)
        rest = resample(np.zeros((0, count), np.float32), True)
        _check_length(path, frames, sound)
        if len(rest):
            yield _clipped(path, rest)
        elif not gave_any:  # a sample or two at a high rate would be rounded to none
            yield _clipped(path, block[:1])


def channel_count(path: str | os.PathLike[str]) -> int:
    """How many channels a file has, from its header.

    Raises:
        AudioError: as `read_audio`, as far as headers show it.
    """
    path = Path(path)
    with _opened(path) as sound:
        if sound.promised_frames == 0:
            raise _without_samples(path)
        return sound.channels


def _clipped(path: Path, block: NDArray[np.float32]) -> NDArray[np.float32]:
    """A block in [-1, 1]; the extremes take no memory to find, an array of magnitudes would."""
    peak = max(-block.min(), block.max())
    if peak > _LARGEST_PEAK:
        raise AudioError(
            f"{path} reaches {peak:.0f} where 1 is full scale: scale it to [-1, 1], or replace it if damaged"
        )
    return np.clip(block, -1.0, 1.0) if peak > 1 else block


def audio_duration_s(path: str | os.PathLike[str]) -> float:
    """Duration of a file in seconds, from its header, without decoding it.

    Exact for what libsndfile reads; through PyAV it is what the container says, codec delay and all. Files
    whose header does not tell are decoded: mp3 without a Xing header, streamed flac, raw aac, live webm.

    Raises:
        AudioError: as `read_audio`, as far as headers show it.
    """
    path = Path(path)
    with _opened(path) as sound:
        if sound.promised_frames == 0:
            raise _without_samples(path)
        if sound.promised_frames is not None:
            return sound.promised_frames / sound.rate
    return sum(map(len, audio_blocks(path))) / SAMPLE_RATE


def _check_length(path: Path, frames: int, sound: _Sound) -> None:
    promised = sound.promised_frames
    if promised is not None and frames + sound.slack_frames < promised:
        raise AudioError(
            f"{path} is cut short or damaged: it has {frames / sound.rate:.2f} s of the "
            f"{promised / sound.rate:.2f} s that its header promises; copy or download it again"
        )
    if frames == 0:
        raise _without_samples(path)


def _without_samples(path: Path) -> AudioError:
    return AudioError(f"{path} has a header and no sound after it: record or download it again")


def _resampler(rate: int, channels: int) -> Callable[[NDArray[np.float32], bool], NDArray[np.float32]]:
    """A function of (the next (samples, channels), whether they are the last)."""
    if rate == SAMPLE_RATE:
        return lambda block, last: block
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, channels, dtype="float32", quality="HQ")
    resample: Callable[[NDArray[np.float32], bool], NDArray[np.float32]] = stream.resample_chunk
    return resample


def resampled(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """A waveform (samples,) of another rate at 16 kHz; n samples become n * 16000 / rate, rounded.

    Raises:
        AudioError: a rate below 1 kHz or above 1 MHz.
    """
    if sample_rate not in _SAMPLE_RATES:
        raise AudioError(f"a waveform at {sample_rate} Hz: the rate must lie between 1 kHz and 1 MHz")
    return _resampler(sample_rate, 1)(waveform.astype(np.float32, copy=False)[:, None], True)[:, 0]


@contextmanager
def _opened(path: Path) -> Iterator[_Sound]:
    """The sound in a file, whoever can read it."""
    with _opened_file(path) as file:
        _check_ogg_ends(path, file)
        file.seek(0)
        try:
            # By descriptor: given a name, libsndfile believes its suffix (mp3, raw) rather than the content.
            # A copy, which it closes whether it can read the file or not; asked to leave a descriptor open,
            # libsndfile 1.2.0 closes it even so where it cannot. On Windows a descriptor means nothing to it.
            source = str(path) if os.name == "nt" else os.dup(file.fileno())
            sound_file = _ForwardSoundFile(source, closefd=True)
        except (soundfile.SoundFileError, TypeError):  # TypeError: a name that ends in .raw
            sound_file = None
        if sound_file is not None:
            with sound_file:
                yield _sound_of_libsndfile(path, file, sound_file)
            return
    with _opened_by_ffmpeg(path) as sound:
        yield sound


def _opened_file(path: Path) -> FileIO:
    """Opened for reading, at its end; what is no file with at least one byte is an error."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{path} is a folder: name an audio file")
        if not stat.S_ISREG(mode):
            raise AudioError(f"{path} is not a regular file: copy the sound into one")
        file = path.open("rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(
            f"{path} does not exist: check the path (audio_filepath starts from the manifest's folder)"
        ) from None
    except PermissionError:
        raise AudioError(f"{path} may not be read by you: have its permissions changed") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise AudioError(f"{path} cannot be opened ({error}): check the path and the disk") from None
    if file.seek(0, os.SEEK_END) == 0:
        file.close()
        raise AudioError(f"{path} is empty (0 bytes): copy or download it again")
    return file


class _ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read once, from its beginning to its end.

    After each read from a file that can seek, soundfile seeks to where it already is. There an mp3 loses what
    a frame borrows from the one before it, and a flac of unknown length fails. So this says that it cannot.
    """

    def seekable(self) -> bool:
        return False


def _sound_of_libsndfile(path: Path, file: FileIO, sound_file: _ForwardSoundFile) -> _Sound:
    rate: int = sound_file.samplerate
    frames: int = sound_file.frames
    _check_rate(path, rate)
    cut = _CUT_CHUNK.search(sound_file.extra_info)
    if cut:
        promised_bytes, bytes_there = int(cut[1]), int(cut[2])
        # One byte may be padding that was counted and not written.
        if bytes_there + 1 < promised_bytes < _UNKNOWN_BYTES:
            raise AudioError(
                f"{path} is cut short: it has {bytes_there} of the {promised_bytes} bytes of sound that its "
                "header promises; copy or download it again"
            )
    is_mp3 = sound_file.format == "MP3"
    unknown = frames >= _UNKNOWN_FRAMES or (is_mp3 and not _has_xing_header(file))
    return _Sound(
        rate,
        sound_file.channels,
        _blocks_of_libsndfile(path, sound_file),
        promised_frames=None if unknown else frames,
        slack_frames=_MPEG_FRAME if is_mp3 else 0,
    )


def _blocks_of_libsndfile(path: Path, sound_file: _ForwardSoundFile) -> Iterator[NDArray[np.float32]]:
    frames = max(1, _BLOCK_SAMPLES // sound_file.channels)
    done = 0
    while True:
        try:
            block = sound_file.read(frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            raise AudioError(
                f"{path} is damaged or cut short at {done / sound_file.samplerate:.2f} s or later: copy or "
                "download it again"
            ) from None
        if len(block) == 0:
            return
        done += len(block)
        yield block


def _check_rate(path: Path, rate: int) -> None:
    if rate not in _SAMPLE_RATES:
        raise AudioError(f"{path} has a sample rate of {rate} Hz, its header is damaged: export it again")


def _bytes_at(file: FileIO, offset: int, count: int) -> bytes:
    """Bytes of a file, without moving the place that libsndfile reads from."""
    place = file.tell()
    file.seek(offset)
    found = file.read(count)
    file.seek(place)
    return found


def _check_ogg_ends(path: Path, file: FileIO) -> None:
    """To libsndfile an Ogg file whose end is missing is a shorter one: only the last page tells the length.

    A page (RFC 3533, section 6) is "OggS", version, flags (4: end of stream), 20 bytes of numbers, the count
    of segments, their sizes, and the segments.
    """
    if _bytes_at(file, 0, 4) != b"OggS":
        return
    size = file.seek(0, os.SEEK_END)
    tail = _bytes_at(file, max(0, size - _LARGEST_OGG_PAGE), _LARGEST_OGG_PAGE)
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    segments = page[26] if len(page) > 26 else 0
    is_whole = len(page) >= 27 + segments + sum(page[27 : 27 + segments]) and len(page) > 26
    if not (is_whole and page[5] & 4):
        raise AudioError(
            f"{path} is cut short: the last page of its Ogg stream is missing; copy or download it again"
        )


def _has_xing_header(file: FileIO) -> bool:
    """Whether the first MPEG frame counts them all (tag "Xing", or "Info" at a constant bit rate)."""
    start = 0
    tag = _bytes_at(file, 0, 10)
    if tag[:3] == b"ID3":  # four bytes of size, seven bits each
        start = 10 + sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    first_frame = _bytes_at(file, start, 2048)
    return b"Xing" in first_frame or b"Info" in first_frame


@contextmanager
def _opened_by_ffmpeg(path: Path) -> Iterator[_Sound]:
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{path} is not audio that libsndfile reads (wav, flac, mp3, ogg, opus): convert it to one of "
            "these, or install kvarts[av] for other formats"
        ) from None
    try:
        # Titles in an encoding other than UTF-8 must not matter.
        container = av.open(os.fspath(path), metadata_errors="replace")
    except (av.error.FFmpegError, ValueError):
        raise AudioError(
            f"{path} is not audio, or damaged at its beginning: copy or convert it again"
        ) from None
    with container:
        streams = container.streams.audio
        # Without a decoder there is no context; what FFmpeg took for audio by its suffix has no sample rate.
        if not streams or streams[0].codec_context is None or not streams[0].codec_context.sample_rate:
            raise AudioError(f"{path} is not audio and has no sound track that FFmpeg can decode: convert it")
        stream = streams[0]
        rate = stream.codec_context.sample_rate
        _check_rate(path, rate)
        promised_s = _promised_by_container_s(container, stream)
        yield _Sound(
            rate,
            stream.codec_context.channels,
            _blocks_of_ffmpeg(path, container, rate),
            promised_frames=None if promised_s is None else round(promised_s * rate),
            slack_frames=round(_CONTAINER_SLACK_S * rate),
        )


def _promised_by_container_s(container: Any, stream: Any) -> float | None:
    if container.format.name not in _CONTAINERS_WITH_LENGTH:
        return None  # FFmpeg would guess from the bit rate
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration) / 1e6
    return None


def _blocks_of_ffmpeg(path: Path, container: Any, rate: int) -> Iterator[NDArray[np.float32]]:
    import av

    done = 0
    to_float: Any = av.AudioResampler(format="fltp", rate=rate)
    try:
        for frame in container.decode(audio=0):
            for converted in to_float.resample(frame):
                done += converted.samples
                planes: NDArray[np.float32] = converted.to_ndarray()
                yield planes.T
    except (av.error.FFmpegError, ValueError):
        raise AudioError(f"{path} is damaged or cut short at {done / rate:.2f} s: copy it again") from None
