"""``kvarts transcribe``: the words of files, folders, standard input and the microphone.

Threads read, resample and cut while the network works on what was cut before (`Recognizer.transcribe_sources`). Between
the two stand a few minutes of sound at most, whatever the length of the recordings, and what is short goes through the
network together, be it of one recording or of several.
"""

from __future__ import annotations

import argparse
import errno
import glob
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kvarts import recogniser_options
from kvarts.errors import AudioError, ConfigError
from kvarts.files import atomic_text_writer, write_error
from kvarts.frames import SAMPLE_RATE, WIN_LENGTH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvarts.cutting import Piece
    from kvarts.recogniser import Recognizer
    from kvarts.writers import Transcript

# What folders and patterns are searched for; a file that is named is read whatever its name.
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("aac", "ac3", "aif", "aifc", "aiff", "amr", "ape", "au", "caf", "dts", "eac3", "flac", "gsm", "m4a", "m4b"),
        *("mka", "mp2", "mp3", "mpga", "oga", "ogg", "opus", "ra", "rf64", "snd", "spx", "tta", "w64", "wav", "wave"),
        *("wma", "wv"),
        *("3g2", "3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "rm"),
        *("ts", "vob", "webm", "wmv"),
    )
)
_MIC_BLOCK_S = 0.1
_STDIN = "standard input"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Recognises speech. Without -o the text of one recording is printed, or a line of path, tab and text for each "
        "of several. What cannot be read is named on standard error and the others go on; the exit code is then 1."
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="audio or video of any format, rate and channel count; a folder, searched with its subfolders, without "
        "hidden files, for names of audio and video; a quoted pattern with *, ?, [] or **; - for standard input",
    )
    recogniser_options.add_model_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "-f",
        "--format",
        metavar="F",
        default="txt",
        help="txt, json, jsonl, srt, vtt, tsv, several with commas between, or all (default: %(default)s)",
    )
    output.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="write a file for each recording and format there, in subfolders as the recordings are. Recordings whose "
        "files are there and newer than themselves and the model are skipped",
    )
    output.add_argument("--force", action="store_true", help="skip none, as after a change of options")
    output.add_argument(
        "--word-timestamps",
        action="store_true",
        help="times and confidence of each word in json, jsonl and tsv, a subtitle a word in srt and vtt",
    )
    output.add_argument(
        "--channels",
        choices=("mix", "separate"),
        default="mix",
        help="average the channels, or recognise each on its own and say which (default: %(default)s)",
    )
    microphone = parser.add_argument_group("microphone (needs kvarts[mic])")
    microphone.add_argument("--mic", action="store_true", help="record until Ctrl-C, then recognise")
    seconds = recogniser_options.positive_number
    microphone.add_argument("--mic-seconds", metavar="N", type=seconds, help="record that long at most")
    recogniser_options.add_decoder_arguments(parser)
    recogniser_options.add_grammar_arguments(parser)
    confidence = recogniser_options.add_calibration_argument(parser)
    rejection = confidence.add_mutually_exclusive_group()
    rejection.add_argument(
        "--reject-below",
        metavar="P",
        type=_probability,
        help="a recording that is right with a lower probability is rejected: json and jsonl say so beside its text, "
        "every other format is as if nothing had been said in it. For commands: the longer, the less likely all right",
    )
    rejection.add_argument("--reject", action="store_true", help="the same, with the threshold of the calibration")
    parser.set_defaults(usage_error=parser.error)


def _probability(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError
    return number


@dataclass(frozen=True)
class Recording:
    """Something to transcribe.

    Attributes:
        path: the file that is read.
        shown: what its user calls it.
        output: path below the folder of the results, still with the suffix of the sound.
        passing: comes from standard input or the microphone; `path` is temporary.
    """

    path: Path
    shown: str
    output: PurePath
    passing: bool = False


def run(args: argparse.Namespace) -> int:
    """Transcribes as the arguments say; gives 1 if something could not be read, else 0.

    Raises:
        ConfigError: impossible options, or two recordings would write the same file.
        OutputError: a result could not be written.
        KvartsError: the model or the calibration cannot be loaded.
    """
    if not args.paths and not args.mic:
        args.usage_error("name audio files, folders or -, or record with --mic")
    if args.mic_seconds is not None and not args.mic:
        args.usage_error("--mic-seconds goes with --mic")
    if args.calibration is None and (args.reject or args.reject_below is not None):
        args.usage_error("--reject and --reject-below go with --calibration")
    formats = _formats(args.format)
    with ExitStack() as stack:
        temporary = stack.enter_context(_temporary_folder()) if args.mic or "-" in args.paths else Path()
        recordings, problems = find_recordings(args.paths, temporary)
        fetch: dict[Recording, Callable[[Path], None]] = {
            recording: _save_stdin for recording in recordings if recording.passing
        }
        if args.mic:
            name = time.strftime("microphone-%Y%m%d-%H%M%S")  # so that none overwrites the one before
            microphone = Recording(temporary / name, name, PurePath(name), passing=True)
            fetch[microphone] = _microphone(args.mic_seconds)
            recordings.append(microphone)
        several = len(args.paths) + args.mic > 1 or any(map(_names_several, args.paths))
        write, todo = _sink(args, formats, recordings, several)
        recognizer = recogniser_options.recogniser_of(args)
        reject_below = args.reject_below
        if args.reject and recognizer.calibration is not None:
            reject_below = recognizer.calibration.utterance_threshold
        if len(todo) < len(recordings):
            skipped = f"{len(recordings) - len(todo)} of {len(recordings)} recordings skipped"
            print(f"kvarts: {skipped}: transcribed already; --force redoes them", file=sys.stderr)
        failures = 0
        rejected = 0

        def report(problem: str) -> None:
            nonlocal failures
            failures += 1
            clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the bar, which is drawn again below
            print(f"{clear}kvarts: error: {' '.join(problem.splitlines())}", file=sys.stderr, flush=True)

        for problem in problems:
            report(problem)
        ready = []
        for recording in todo:
            try:
                if recording in fetch:
                    fetch[recording](recording.path)
                ready.append(recording)
            except AudioError as error:
                report(str(error))
        model = args.model.resolve().name
        on_progress = stack.enter_context(_progress(len(ready), prints=args.output is None))
        separate = args.channels == "separate"
        for recording, found in transcripts(
            recognizer, ready, model, separate=separate, reject_below=reject_below, on_progress=on_progress
        ):
            if isinstance(found, AudioError):
                report(str(found))
            else:
                rejected += bool(found.rejected)
                write(recording, found)
        if rejected:
            print(f"kvarts: {rejected} of {len(ready)} recordings rejected: too unsure", file=sys.stderr)
    return 1 if failures else 0


# --- What to transcribe -----------------------------------------------------------------------------------------------


def find_recordings(paths: Sequence[str], temporary: Path) -> tuple[list[Recording], list[str]]:
    """What the PATHs of a command line name: each recording once, in their order, those of a folder sorted.

    Args:
        temporary: the folder that standard input will be saved in.

    Returns:
        The recordings, and a message for each PATH that names none.
    """
    found: dict[str, Recording] = {}
    problems: list[str] = []

    def add(path: Path, output: PurePath) -> None:
        found.setdefault(str(_place(path)), Recording(path, _shown(path), output))

    for path in paths:
        if path == "-":
            found.setdefault("-", Recording(temporary / "stdin", _STDIN, PurePath("stdin"), passing=True))
        elif _is_folder(path):
            for below in _search(Path(path), problems):
                add(below, below.relative_to(path))
        elif os.path.lexists(path):
            add(Path(path), PurePath(Path(path).name))
        elif glob.has_magic(path):
            for match, output in _matches(path, problems):
                add(match, output)
        else:
            problems.append(f"{_shown(path) or repr(path)} does not exist: check the path")
    return list(found.values()), problems


def _search(folder: Path, problems: list[str]) -> list[Path]:
    """The audio and video files in a folder and those below it; a folder without any is a problem."""

    def unreadable(error: OSError) -> None:
        problems.append(f"{_shown(error.filename)} cannot be searched ({error.strerror}): check its permissions")

    before = len(problems)
    found = []
    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if not name.startswith(".") and _is_audio(name)]
    if not found and len(problems) == before:
        problems.append(f"{_shown(folder)} has no file with a name of audio or video: name the files themselves")
    return sorted(found)


def _matches(pattern: str, problems: list[str]) -> Iterator[tuple[Path, PurePath]]:
    """Files that a pattern matches, or has in matching folders; with their paths below the pattern's fixed part."""
    root = Path(pattern)
    while glob.has_magic(str(root)):
        root = root.parent
    # Where the pattern says which suffix it wants, that is wanted; «**» and «*» match notes and pictures too.
    suffix = PurePath(pattern).suffix
    wants_suffix = bool(suffix) and not glob.has_magic(suffix)
    files: list[Path] = []
    before = len(problems)
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob takes hidden files
        if not _is_folder(match):
            files += [Path(match)] if wants_suffix or _is_audio(match) else []
        elif "**" not in pattern:  # which matches what is in the folder itself
            files += _search(Path(match), [])
    if not files and len(problems) == before:
        problems.append(f"{_shown(pattern)} matches no file of audio or video: check the pattern")
    yield from ((path, path.relative_to(root)) for path in files)


def _names_several(path: str) -> bool:
    return _is_folder(path) or (glob.has_magic(path) and not os.path.lexists(path))


def _is_folder(path: str) -> bool:
    try:
        return bool(path) and Path(path).is_dir()  # an empty path, as of a variable that is not set, is none
    except OSError:  # a name longer than the system takes
        return False


def _place(path: Path) -> Path:
    """What a path names; links to files stay what they are, for they have names of their own."""
    return path.parent.resolve() / path.name


def _is_audio(name: str) -> bool:
    return PurePath(name).suffix.lower() in SUFFIXES


def _shown(path: str | os.PathLike[str]) -> str:
    """A path as text that UTF-8 can hold, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = TemporaryDirectory(prefix="kvarts-")
    except OSError as error:
        raise ConfigError(f"no temporary folder for the sound ({error.strerror}): set TMPDIR to one") from None
    with folder:
        yield Path(folder.name)


def _save_stdin(path: Path) -> None:
    if sys.stdin is None:
        raise AudioError(f"{_STDIN} is closed: pipe the bytes of an audio file into it")
    with path.open("wb") as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise AudioError(f"{_STDIN} cannot be read ({error.strerror}): pipe an audio file into it") from None


def _microphone(limit_s: float | None) -> Callable[[Path], None]:
    """A function that records the microphone into a file, until Ctrl-C or for `limit_s` seconds.

    Raises:
        ConfigError: the package sounddevice is not installed, or finds no PortAudio.
    """
    try:
        import sounddevice
    except ImportError:
        raise ConfigError("--mic needs the package 'sounddevice': pip install 'kvarts[mic]'") from None
    except OSError as error:
        raise ConfigError(f"--mic: {error}; install PortAudio (Debian, Ubuntu: apt install libportaudio2)") from None

    def record(path: Path) -> None:
        import soundfile

        lost = False
        try:
            rate = round(sounddevice.query_devices(kind="input")["default_samplerate"])
            block = round(_MIC_BLOCK_S * rate)
            left = math.inf if limit_s is None else max(1, round(limit_s * rate))
            # FLAC, for WAV ends at 4 GB, which are half a day.
            with (
                soundfile.SoundFile(path, "w", rate, 1, format="FLAC", subtype="PCM_16") as file,
                sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32") as stream,
            ):
                print("kvarts: recording; Ctrl-C ends it", file=sys.stderr, flush=True)
                try:
                    while left > 0:
                        samples, overflowed = stream.read(min(block, left))
                        file.write(samples)
                        left -= len(samples)
                        lost = lost or overflowed
                except KeyboardInterrupt:
                    pass
        except sounddevice.PortAudioError as error:
            what = " ".join(str(error).split())
            raise AudioError(f"no sound from the microphone ({what}): connect one and allow its use") from None
        if lost:
            print("kvarts: the computer was too busy to record all of the sound", file=sys.stderr, flush=True)

    return record


# --- Where to write it ------------------------------------------------------------------------------------------------


def _formats(names: str) -> list[str]:
    from kvarts.writers import WRITERS

    chosen = [name.strip() for name in names.split(",")]
    if "all" in chosen:
        return list(WRITERS)
    for name in chosen:
        if name not in WRITERS:
            raise ConfigError(f"--format {name!r}: there is none of that name; choose from {', '.join(WRITERS)}, all")
    return list(dict.fromkeys(chosen))


def _sink(
    args: argparse.Namespace, formats: list[str], recordings: list[Recording], several: bool
) -> tuple[Callable[[Recording, Transcript], None], list[Recording]]:
    """What writes a result, and the recordings that have none yet."""
    if args.output is None:
        return _printer(formats, args.word_timestamps, several), recordings
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(args.output, error) from error
    outputs = _output_files(recordings, formats, args.output)

    def write(recording: Recording, transcript: Transcript) -> None:
        from kvarts.writers import WRITERS

        for name, path in outputs[recording].items():
            with atomic_text_writer(path) as file:
                file.write(WRITERS[name](transcript, args.word_timestamps))

    model = args.model / "config.json" if args.model.is_dir() else args.model
    todo = [
        recording
        for recording in recordings
        if args.force or not _is_newer(outputs[recording].values(), [recording.path, model])
    ]
    return write, todo


def _printer(formats: list[str], word_timestamps: bool, several: bool) -> Callable[[Recording, Transcript], None]:
    from kvarts import writers

    [name, *others] = formats
    if others:
        raise ConfigError(f"--format {','.join(formats)}: standard output takes one format; name a folder with -o")
    if several and name in ("json", "srt", "vtt"):
        raise ConfigError(
            f"--format {name}: standard output takes one recording in it; name a folder with -o, or choose txt, "
            "jsonl or tsv"
        )
    has_header = False

    def write(recording: Recording, transcript: Transcript) -> None:
        nonlocal has_header
        if several and name == "txt":
            lines = writers.text_lines(transcript)
            text = "".join(f"{writers.one_line(transcript.file)}\t{line}\n" for line in lines)
        elif has_header:
            text = writers.tsv_rows(transcript, word_timestamps)
        else:
            text = writers.WRITERS[name](transcript, word_timestamps)
            has_header = name == "tsv"
        sys.stdout.write(text)
        sys.stdout.flush()

    return write


def _output_files(
    recordings: Sequence[Recording], formats: Sequence[str], folder: Path
) -> dict[Recording, dict[str, Path]]:
    """The files that each recording gets, by format.

    Of recordings that differ in their suffix alone each keeps it: a.wav.txt and a.mp3.txt, where one gets a.txt.

    Raises:
        ConfigError: two recordings would write the same file even so, or one would be overwritten.
    """
    stems = [
        recording.output.with_suffix("") if _is_audio(recording.output.name) else recording.output
        for recording in recordings
    ]
    times = Counter(os.path.normcase(stem) for stem in stems)
    outputs: dict[Recording, dict[str, Path]] = {}
    writers: dict[str, Recording] = {}
    sources = {os.path.normcase(_place(recording.path)): recording for recording in recordings}
    for recording, stem in zip(recordings, stems, strict=True):
        name = stem if times[os.path.normcase(stem)] == 1 else recording.output
        outputs[recording] = {suffix: folder / f"{name}.{suffix}" for suffix in formats}
        for path in outputs[recording].values():
            key = os.path.normcase(_place(path))
            if key in sources:
                raise ConfigError(f"{path} is to be read and would be overwritten: choose another folder with -o")
            if writers.setdefault(key, recording) is not recording:
                twins = f"{writers[key].shown} and {recording.shown}"
                raise ConfigError(f"{twins} would both write {path}: transcribe them into two folders")
    return outputs


def _is_newer(results: Iterable[Path], sources: Iterable[Path]) -> bool:
    """Whether all results are there and none is older than any source."""
    try:
        newest_ns = max(path.stat().st_mtime_ns for path in sources)
        return all(path.stat().st_mtime_ns >= newest_ns for path in results)
    except OSError:
        return False


# --- The work ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _End:
    """All pieces of a recording were given, or it cannot be read."""

    recording: Recording
    channels: int
    duration_s: float
    error: AudioError | None = None


@contextmanager
def _progress(total: int, prints: bool) -> Iterator[Callable[[int, float], None]]:
    """A bar with the count of recordings and seconds of sound a second; none among text that goes to a terminal."""
    from kvarts.progress import progress_bar

    if prints and sys.stdout.isatty():
        yield lambda finished, sound_s: None
        return
    started_s = time.perf_counter()
    shown = 0
    with progress_bar("transcribing", total) as advance:

        def show(finished: int, sound_s: float) -> None:
            nonlocal shown
            speed = sound_s / (time.perf_counter() - started_s)
            advance(finished - shown, f"{finished} of {total} recordings, {speed:.0f} × real time")
            shown = finished

        yield show


def transcripts(
    recognizer: Recognizer,
    recordings: Sequence[Recording],
    model: str,
    *,
    separate: bool,
    reject_below: float | None = None,
    on_progress: Callable[[int, float], None],
) -> Iterator[tuple[Recording, Transcript | AudioError]]:
    """The words of recordings, one after the other, each as soon as they are known; or why it cannot be read.

    Args:
        model: its name, for the transcripts.
        separate: recognise each channel on its own.
        reject_below: confidence of a whole recording from which on it is not rejected; None: none is. Needs a
            recogniser with a calibration.
        on_progress: called again and again with the recordings that are finished, and the seconds of sound so far.
    """
    from kvarts.decoding import CommandDecoder
    from kvarts.recogniser import SpokenCommand, Timings, Word, joint_confidence
    from kvarts.writers import Transcript

    has_grammar = isinstance(recognizer.decoder, CommandDecoder)
    # Of the pieces so far, by channel where it matters.
    words: dict[int, list[Word]] = {}
    commands: dict[int, list[SpokenCommand]] = {}
    confidences: list[float | None] = []
    seconds = [0.0] * 4
    finished, finished_s, heard_s = 0, 0.0, 0.0
    sources = (_read(recording, separate) for recording in recordings)
    for event, result in recognizer.transcribe_sources(sources):
        if isinstance(event, _End):
            confidence = joint_confidence(confidences)
            channels = range(event.channels)
            yield (
                event.recording,
                event.error
                or Transcript(
                    file=event.recording.shown,
                    model=model,
                    engine=recognizer.engine.name,
                    duration_s=event.duration_s,
                    timings=Timings(*seconds),
                    channels=tuple(tuple(words.get(channel, ())) for channel in channels),
                    separate=separate,
                    confidence=confidence,
                    commands=tuple(tuple(commands.get(channel, ())) for channel in channels) if has_grammar else None,
                    rejected=None if confidence is None or reject_below is None else confidence < reject_below,
                ),
            )
            words, commands, confidences = {}, {}, []
            seconds = [0.0] * 4
            finished, finished_s, heard_s = finished + 1, finished_s + event.duration_s, 0.0
        elif result is not None:
            words.setdefault(event, []).extend(result.words)
            if result.command is not None:
                commands.setdefault(event, []).append(result.command)
            confidences.append(result.confidence)
            heard_s = max(heard_s, result.end_s)
            seconds = [sum(pair) for pair in zip(seconds, astuple(result.timings), strict=True)]
        on_progress(finished, finished_s + heard_s)


def _read(recording: Recording, separate: bool) -> Iterator[tuple[int | _End, Piece | None]]:
    """The pieces of a recording, each with its channel, those of the first channel first; and its end."""
    try:
        yield from _read_all(recording, separate)
    except AudioError as error:
        # What is temporary has a path that says nothing.
        what = str(error).replace(str(recording.path), recording.shown)
        yield _End(recording, 0, 0.0, AudioError(what)), None


def _read_all(recording: Recording, separate: bool) -> Iterator[tuple[int | _End, Piece | None]]:
    import numpy as np

    from kvarts.audio import audio_blocks, channel_count
    from kvarts.cutting import pieces
    from kvarts.frames import too_short

    samples = 0

    def blocks(channel: int) -> Iterator[NDArray[np.float32]]:
        nonlocal samples
        samples = 0
        for block in audio_blocks(recording.path, "separate" if separate else "mix"):
            samples += len(block)
            yield np.ascontiguousarray(block[:, channel])
        if samples < WIN_LENGTH:
            raise AudioError(f"{recording.shown}: {too_short(samples / SAMPLE_RATE)}; record more of it")

    channels = channel_count(recording.path) if separate else 1
    for channel in range(channels):
        # Decoded anew for each: kept, the others would take memory as long as the recording.
        for piece in pieces(blocks(channel)):
            yield channel, piece
    yield _End(recording, channels, samples / SAMPLE_RATE), None
