"""`kvarts transcribe`, with a real model that was built by hand to read tones: all through the command line."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

import kvarts
from disk import no_file_beyond
from kvarts.checkpoint import save_weights
from kvarts.cli import main
from kvarts.cutting import Piece
from kvarts.decoding import greedy_words
from kvarts.frames import SAMPLE_RATE
from kvarts.ngram import train
from kvarts.recogniser import PieceResult, Recognizer
from tone_reader import ToneReader
from tones import speak, unsure

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "tones.ckpt"
    save_weights(ToneReader(), path)
    os.utime(path, (0, 0))  # older than whatever was recognised with it
    return str(path)


@pytest.fixture(autouse=True)
def in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def say(path: str | Path, sound: str | Floats, rate: int = SAMPLE_RATE, **settings: Any) -> str:
    """A file that says a text, or has the samples (samples,) or (samples, channels)."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    samples = speak(sound) if isinstance(sound, str) else sound
    soundfile.write(
        path, samples if rate == SAMPLE_RATE else soxr.resample(samples, SAMPLE_RATE, rate), rate, **settings
    )
    return str(path)


def side_by_side(*texts: str) -> Floats:
    """Texts one after the other, each in a channel of its own: (samples, channels)."""
    spoken = [speak(text) for text in texts]
    samples = np.zeros((sum(map(len, spoken)), len(texts)), np.float32)
    start = 0
    for channel, part in enumerate(spoken):
        samples[start : start + len(part), channel] = part
        start += len(part)
    return samples


def transcribe(model: str, *arguments: str) -> int:
    return main(["transcribe", "--model", model, *arguments])


def written(folder: str | Path) -> dict[str, str]:
    """All files below a folder and what is in them."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


# --- Standard output --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--model", "--checkpoint"])
def test_one_file_prints_its_text(option: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", option, model, say("a.wav", "салют вызов светлане")]) == 0
    assert capsys.readouterr() == ("салют вызов светлане\n", "")


def test_what_cannot_be_read_is_named_and_the_others_go_on(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.wav").write_text("не звук", encoding="utf-8")
    Path("empty.wav").touch()
    Path("nothing").mkdir()
    say("one.wav", np.ones(1, np.float32))
    say("headless.wav", np.zeros(0, np.float32))
    nan = speak("нет")
    nan[-700] = np.nan
    say("nan.wav", nan, subtype="FLOAT")
    whole = Path(say("cut.flac", "это не то")).read_bytes()
    Path("cut.flac").write_bytes(whole[: len(whole) // 2])
    bad = ["one.wav", "notes.wav", "empty.wav", "headless.wav", "nan.wav", "cut.flac"]
    unnamed = ["none.wav", "nothing", "no*.mp3", "", "long" * 1000]
    arguments = [say("a.wav", "да"), *bad[:3], *unnamed, *bad[3:], say("b.wav", "афина хотела номер")]

    assert transcribe(model, *arguments) == 1

    captured = capsys.readouterr()
    assert captured.out == "a.wav\tда\nb.wav\tафина хотела номер\n"
    reported = captured.err.splitlines()
    assert len(reported) == len(unnamed) + len(bad)
    for line, name in zip(reported, [*unnamed, *bad], strict=True):
        assert line.startswith(f"kvarts: error: {name or repr(name)}")


def test_several_in_txt_tsv_and_jsonl(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [say("b.wav", "да"), say("a b.wav", "нет")]
    assert transcribe(model, *files, "-f", "txt") == 0
    assert capsys.readouterr().out == "b.wav\tда\na b.wav\tнет\n"
    assert transcribe(model, *files, "-f", "tsv") == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["file", "start_s", "end_s", "text"]
    assert [(row[0], row[3]) for row in rows[1:]] == [("b.wav", "да"), ("a b.wav", "нет")]
    assert transcribe(model, *files, "-f", "jsonl") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["file"], line["text"]) for line in lines] == [("b.wav", "да"), ("a b.wav", "нет")]


def test_json_says_all_about_one(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    samples = speak("да нет")
    assert transcribe(model, say("a.wav", samples), "-f", "json", "--word-timestamps") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["text"], found["model"]) == ("a.wav", "да нет", "tones.ckpt")
    assert (found["engine"], found["kvarts_version"]) == ("torch cpu", kvarts.__version__)
    assert found["duration_s"] == round(len(samples) / SAMPLE_RATE, 3)
    assert found["timings"]["total_s"] >= found["timings"]["network_s"] > 0 < found["timings"]["read_s"]
    yes, no = found["words"]
    # 0.04 s of silence, then 0.12 s a character, of which the last 0.04 s are silence.
    assert (yes["text"], yes["start_s"], yes["end_s"]) == (
        "да",
        pytest.approx(0.04, abs=0.03),
        pytest.approx(0.24, abs=0.05),
    )
    assert (no["text"], no["start_s"], no["end_s"]) == (
        "нет",
        pytest.approx(0.40, abs=0.03),
        pytest.approx(0.72, abs=0.05),
    )
    assert 0 < yes["confidence"] <= 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["a.wav", "-f", "docx"], "--format 'docx'"),
        (["a.wav", "-f", "srt,,txt"], "--format ''"),
        (["a.wav", "-f", "srt,txt"], "standard output takes one format"),
        (["a.wav", "-f", "all"], "standard output takes one format"),
        (["a.wav", "b.wav", "-f", "srt"], "standard output takes one recording"),
        (["folder", "-f", "json"], "standard output takes one recording"),
        (["a.wav", "--device", "abacus"], "--device abacus"),
        (["a.wav", "--engine", "openvino"], "--engine openvino"),
        (["a.wav", "--precision", "int8"], "--precision int8"),
        (["a.wav", "--model", "none.ckpt"], "none.ckpt"),
        (["a.wav", "--model", "none"], "none does not exist"),
        (["a.wav", "--model", "folder"], "folder is no model"),
        (["a.wav", "--model", "folder", "--device", "cpu"], "--device cpu"),
        (["a.wav", "-o", "a.wav"], "a.wav"),
    ],
)
def test_a_mistake_is_one_line_before_the_work(
    arguments: list[str], what: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("a.wav", "b.wav", "folder/c.wav"):
        say(path, "да")
    assert transcribe(model, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvarts: error: ")
    assert what in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "m"],
        [],
        ["--model", "m", "a.wav", "--mic-seconds", "3"],
        ["--model", "m", "--mic", "--mic-seconds", "0"],
        ["--model", "m", "--mic", "--mic-seconds", "nan"],
        ["--model", "m", "a.wav", "--threads", "0"],
        ["--model", "m", "a.wav", "--channels", "left"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["transcribe", *arguments])
    assert ended.value.code == 2
    assert "usage: kvarts transcribe" in capsys.readouterr().err


def test_a_folder_is_an_exported_model(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    loaded: list[tuple[Path, dict[str, Any]]] = []

    def load(path: Path, **options: Any) -> Recognizer:
        loaded.append((path, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Recognizer, "load", load)
    Path("v1.ckpt").mkdir()
    options = ["--engine", "onnxruntime", "--precision", "float32", "--threads", "2"]
    assert transcribe("v1.ckpt", say("a.wav", "да"), *options) == 130
    assert transcribe("v1.ckpt", "a.wav") == 130
    plain = {"decoder": greedy_words, "calibration": None}
    assert loaded == [
        (Path("v1.ckpt"), {"engine": "onnxruntime", "precision": "float32", "threads": 2, **plain}),
        (Path("v1.ckpt"), {"engine": None, "precision": None, "threads": None, **plain}),
    ]


@pytest.mark.parametrize("name", ["gone", "full"])
def test_standard_output_that_takes_nothing(name: str, model: str) -> None:
    if name == "full" and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    say("a.wav", "да")
    if name == "gone":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    ended = subprocess.run(
        [sys.executable, "-m", "kvarts", "transcribe", "--model", model, "a.wav"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    if name == "gone":
        assert (ended.returncode, ended.stderr) == (141, "")
    else:
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert "No space left on device" in ended.stderr


# --- What is named ----------------------------------------------------------------------------------------------------


@pytest.fixture
def calls() -> None:
    for name, text in {"b.wav": "да", "a.flac": "нет", "deep/er/c.WAV": "дом", "deep/d.ogg": "пять"}.items():
        say(f"calls/{name}", text)
    say("calls/.hidden.wav", "тайна")
    say("calls/.git/e.wav", "тайна")
    Path("calls/notes.txt").write_text("не звук", encoding="utf-8")


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["calls"], ["a.flac", "b.wav", "deep/d.ogg", "deep/er/c.WAV"]),
        (["calls/**"], ["a.flac", "b.wav", "deep/d.ogg", "deep/er/c.WAV"]),
        (["calls/**/*.wav"], ["b.wav"]),
        (["calls/**/*.[wW]*"], ["b.wav", "deep/er/c.WAV"]),
        (["calls/*"], ["a.flac", "b.wav", "deep/d.ogg", "deep/er/c.WAV"]),
        (["calls/?.wav", "calls/a.flac"], ["b.wav", "a.flac"]),
        (["calls/b.wav", "calls", "./calls/../calls/b.wav"], ["b.wav", "a.flac", "deep/d.ogg", "deep/er/c.WAV"]),
        (["calls/deep/", "calls/.hidden.wav"], ["deep/d.ogg", "deep/er/c.WAV", ".hidden.wav"]),
    ],
)
@pytest.mark.usefixtures("calls")
def test_folders_and_patterns(
    paths: list[str], found: list[str], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe(model, *paths) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    texts = {"b.wav": "да", "a.flac": "нет", "deep/er/c.WAV": "дом", "deep/d.ogg": "пять", ".hidden.wav": "тайна"}
    assert captured.out.splitlines() == [f"calls/{name}\t{texts[name]}" for name in found]


def test_a_name_with_brackets_is_no_pattern(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    say("a.wav", "нет")
    assert transcribe(model, say("[a].wav", "да")) == 0
    assert capsys.readouterr().out == "да\n"


def test_a_name_that_is_no_utf8_or_has_a_tab(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    strange = os.fsdecode(b"\xff.wav")
    os.rename(say("x.wav", "да"), strange)  # noqa: PTH104 - soundfile would not write it
    say("a\tb.wav", "нет")
    assert transcribe(model, ".") == 0
    assert capsys.readouterr().out == "a\\tb.wav\tнет\n\\xff.wav\tда\n"
    assert transcribe(model, ".", "-f", "json", "-o", "out") == 0
    assert sorted(json.loads(text)["file"] for text in written("out").values()) == ["\\xff.wav", "a\tb.wav"]


def test_standard_input(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say("a.flac", "да")
    for content, code, out in ((Path("a.flac").read_bytes(), 0, "да\n"), (b"", 1, ""), (b"RIFF", 1, "")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert transcribe(model, "-") == code
        captured = capsys.readouterr()
        assert captured.out == out
        assert captured.err.startswith("kvarts: error: standard input is ") == bool(code)
    monkeypatch.setattr(sys, "stdin", None)
    assert transcribe(model, "-", "a.flac") == 1
    captured = capsys.readouterr()
    assert captured.out == "a.flac\tда\n"
    assert "standard input is closed" in captured.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("a.flac").read_bytes())))
    assert transcribe(model, "-", "-o", "out") == 0
    assert written("out") == {"stdin.txt": "да\n"}


class Microphone:
    """The part of the package sounddevice that is used, at 48 kHz; says a text, then silence."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, text: str, *, interrupted_at_s: float | None = None, fails: bool = False) -> None:
        self.sound = soxr.resample(speak(text), SAMPLE_RATE, 48_000)
        self.interrupted_at = None if interrupted_at_s is None else round(48_000 * interrupted_at_s)
        self.fails = fails
        self.place = 0

    def query_devices(self, kind: str) -> dict[str, float]:
        if self.fails:
            raise self.PortAudioError("Error querying device -1")
        return {"default_samplerate": 48_000.0}

    def InputStream(self, samplerate: int, channels: int, dtype: str) -> Microphone:  # noqa: N802 - its name there
        assert (samplerate, channels, dtype) == (48_000, 1, "float32")
        return self

    def __enter__(self) -> Microphone:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, frames: int) -> tuple[Floats, bool]:
        if self.interrupted_at is not None and self.place >= self.interrupted_at:
            raise KeyboardInterrupt
        samples = np.zeros((frames, 1), np.float32)
        said = self.sound[self.place : self.place + frames]
        samples[: len(said), 0] = said
        self.place += frames
        return samples, False


@pytest.mark.parametrize(("seconds", "interrupted_at_s"), [(None, 2.0), ("1.5", None), ("100", 2.0)])
def test_the_microphone(
    seconds: str | None,
    interrupted_at_s: float | None,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    microphone = Microphone("включи", interrupted_at_s=interrupted_at_s)
    monkeypatch.setitem(sys.modules, "sounddevice", microphone)
    arguments = ["--mic", *([] if seconds is None else ["--mic-seconds", seconds])]
    assert transcribe(model, *arguments) == 0
    assert capsys.readouterr() == ("включи\n", "kvarts: recording; Ctrl-C ends it\n")
    assert microphone.place == 48_000 * (interrupted_at_s or 1.5)


def test_a_microphone_that_is_not_there(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert transcribe(model, "--mic") == 2
    assert "pip install 'kvarts[mic]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", Microphone("", fails=True))
    assert transcribe(model, "--mic", say("a.wav", "да")) == 1
    captured = capsys.readouterr()
    assert captured.out == "a.wav\tда\n"
    assert "no sound from the microphone (Error querying device -1)" in captured.err
    assert captured.err.count("\n") == 1


# --- Sound of every kind ----------------------------------------------------------------------------------------------


def test_channels_apart(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    say("call.wav", side_by_side("алло", "да"))
    assert transcribe(model, "call.wav", "--channels", "separate") == 0
    assert capsys.readouterr().out == "Канал 1: алло\nКанал 2: да\n"
    assert transcribe(model, "call.wav") == 0
    assert capsys.readouterr().out.replace(" ", "") == "аллода\n"
    assert transcribe(model, "call.wav", say("mono.wav", "нет"), "--channels", "separate") == 0
    assert capsys.readouterr().out == "call.wav\tКанал 1: алло\ncall.wav\tКанал 2: да\nmono.wav\tКанал 1: нет\n"
    assert transcribe(model, "call.wav", "--channels", "separate", "-f", "vtt") == 0
    voices = [line for line in capsys.readouterr().out.splitlines() if line.startswith("<v")]
    assert voices == ["<v Channel 1>алло", "<v Channel 2>да"]


def test_twelve_channels_at_96_khz(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["раз", "два", "три", "пять", "шесть", "семь", "девять", "сто", "да", "нет", "дом", "ежик"]
    say("studio.wav", side_by_side(*texts), 96_000)
    assert transcribe(model, "studio.wav", "--channels", "separate") == 0
    expected = [f"Канал {number}: {text}" for number, text in enumerate(texts, start=1)]
    assert capsys.readouterr().out.splitlines() == expected
    say("same.wav", np.repeat(speak("включи")[:, None], 12, axis=1), 96_000)
    assert transcribe(model, "same.wav") == 0
    assert capsys.readouterr().out == "включи\n"


def test_silence_gives_files_too(model: str) -> None:
    say("short.wav", np.zeros(SAMPLE_RATE, np.float32))
    say("long.wav", np.zeros(100 * SAMPLE_RATE, np.float32))
    assert transcribe(model, "short.wav", "long.wav", "-f", "txt,srt,json", "-o", "out") == 0
    found = written("out")
    for name, duration_s in (("short", 1.0), ("long", 100.0)):
        assert (found[f"{name}.txt"], found[f"{name}.srt"]) == ("\n", "")
        assert json.loads(found[f"{name}.json"])["text"] == ""
        assert json.loads(found[f"{name}.json"])["duration_s"] == duration_s


MEASURE = """
import resource, sys
from kvarts.cli import main
model, short, long = sys.argv[1:]
def peak_mb(path):
    assert main(["transcribe", "--model", model, "--word-timestamps", "-f", "tsv", path]) == 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak_mb(short)
print("grown by", peak_mb(long) - before)
"""


def test_eight_hours_in_the_memory_of_minutes(model: str) -> None:
    rate, hours = 8000, 8
    words = {0.0: "да", 4 * 3600.0: "середина", hours * 3600.0 - 20: "пока"}  # in letters below 4 kHz
    with soundfile.SoundFile("day.flac", "w", rate, 1, compression_level=0.0) as file:
        for minute in range(60 * hours):
            samples = np.zeros(60 * rate, np.float32)
            for start_s, text in words.items():
                if start_s // 60 == minute:
                    said = soxr.resample(speak(text), SAMPLE_RATE, rate)
                    samples[round((start_s % 60) * rate) :][: len(said)] = said
            file.write(samples)
    # Two minutes of sound that is recognised fill all that stands in between.
    say("short.wav", np.tile(speak("включи свет "), 200))
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, model, "short.wav", "day.flac"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    *_, first, second, third, grown = ended.stdout.splitlines()
    rows = [row.split("\t") for row in (first, second, third)]
    assert [row[3] for row in rows] == list(words.values())
    for row, start_s in zip(rows, words, strict=True):
        assert float(row[1]) == pytest.approx(start_s + 0.04, abs=0.05)
    assert int(grown.removeprefix("grown by ")) < 60  # the samples alone would be 1843 MB


def test_many_short_files_go_through_the_network_together(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches: list[int] = []
    log_probs = Recognizer.log_probs

    def slowly(self: Recognizer, features: Sequence[Floats]) -> Any:
        batches.append(len(features))
        time.sleep(0.2)  # in which the others are read
        return log_probs(self, features)

    monkeypatch.setattr(Recognizer, "log_probs", slowly)
    texts = {say(f"{number:02}.wav", text): text for number, text in enumerate(["да", "нет", "дом", "пять"] * 5)}
    assert transcribe(model, *texts) == 0
    assert capsys.readouterr().out.splitlines() == [f"{path}\t{text}" for path, text in texts.items()]
    assert sum(batches) == len(texts)
    assert len(batches) <= 5


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_tells_count_and_speed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [say("a.wav", "да"), "none.wav", say("b.wav", "нет"), say("c.wav", np.ones(1, np.float32))]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert transcribe(model, *files, "-o", "out") == 1
    drawn = terminal.getvalue().split("\r")
    for count in (1, 2, 3):
        assert re.search(rf"transcribing .*, {count} of 3 recordings, \d+ × real time", terminal.getvalue())
    # Each error begins a line of its own, whatever was drawn there.
    assert sum("kvarts: error: " in part for part in drawn) == 2
    assert all(part.startswith("\x1b[Kkvarts: ") for part in drawn if "kvarts: error: " in part)
    # Text on a terminal needs no bar beside it.
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert transcribe(model, files[0]) == 0
    assert (sys.stdout.getvalue(), sys.stderr.getvalue()) == ("да\n", "")


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("calls")
def test_files_lie_as_the_recordings_do(model: str) -> None:
    say("calls/deep/bad.wav", np.ones(1, np.float32))
    assert transcribe(model, "calls", "-f", "txt,srt", "-o", "out/new") == 1
    found = written("out")
    assert sorted(found) == sorted(
        f"new/{name}.{suffix}" for name in ("a", "b", "deep/d", "deep/er/c") for suffix in ("txt", "srt")
    )
    assert found["new/deep/er/c.txt"] == "дом\n"
    assert found["new/deep/d.srt"].startswith("1\n00:00:00,0")
    assert transcribe(model, "calls/b.wav", "-f", "all", "-o", "all") == 0
    assert sorted(written("all")) == ["b.json", "b.jsonl", "b.srt", "b.tsv", "b.txt", "b.vtt"]


def test_patterns_keep_folders_from_their_fixed_part_on(model: str) -> None:
    for path in ("x/mon/a.wav", "x/tue/a.wav"):
        say(path, path[2:3].replace("m", "м").replace("t", "т"))
    assert transcribe(model, "x/*/a.wav", "-o", "out") == 0
    assert written("out") == {"mon/a.txt": "м\n", "tue/a.txt": "т\n"}


def test_recordings_that_differ_in_their_suffix_alone_keep_it(model: str) -> None:
    say("calls/a.wav", "да")
    say("calls/a.flac", "нет")
    say("calls/b.wav", "дом")
    assert transcribe(model, "calls", "-o", "out") == 0
    assert written("out") == {"a.flac.txt": "нет\n", "a.wav.txt": "да\n", "b.txt": "дом\n"}


def test_two_recordings_never_write_one_file(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    say("x/a.wav", "да")
    say("y/a.wav", "нет")
    assert transcribe(model, "x", "y", "-o", "out") == 2
    assert "x/a.wav and y/a.wav would both write out/a.wav.txt" in capsys.readouterr().err
    assert written("out") == {}


def test_a_recording_is_not_overwritten(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("a.txt", speak("да"), SAMPLE_RATE, format="WAV")
    before = Path("a.txt").read_bytes()
    say("a.wav", "нет")
    assert transcribe(model, "a.txt", "a.wav", "-o", ".") == 2
    assert "a.txt is to be read and would be overwritten" in capsys.readouterr().err
    assert Path("a.txt").read_bytes() == before


def test_what_is_there_and_newer_is_skipped(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [say("a.wav", "да"), say("b.wav", "нет"), say("c.wav", "дом")]
    arguments = [*files, "-f", "txt,srt", "-o", "out"]
    assert transcribe(model, *arguments) == 0
    assert capsys.readouterr() == ("", "")
    for path in Path("out").iterdir():
        path.write_text("old", encoding="utf-8")
    Path("out/b.srt").unlink()
    later_s = time.time() + 100
    say("c.wav", "пять")
    os.utime("c.wav", (later_s, later_s))

    assert transcribe(model, *arguments) == 0

    assert capsys.readouterr().err == ("kvarts: 1 of 3 recordings skipped: transcribed already; --force redoes them\n")
    found = written("out")
    assert (found["a.txt"], found["a.srt"]) == ("old", "old")
    assert (found["b.txt"], found["c.txt"]) == ("нет\n", "пять\n")
    assert transcribe(model, *arguments, "--force") == 0
    assert capsys.readouterr().err == ""
    assert written("out")["a.txt"] == "да\n"
    assert transcribe(model, *files, "-f", "json", "-o", "out") == 0
    assert capsys.readouterr().err == ""


def test_a_newer_model_redoes_all(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    newer = Path("new.ckpt")
    newer.write_bytes(Path(model).read_bytes())
    for _ in range(2):
        os.utime(newer, (time.time() + 100,) * 2)
        assert transcribe(str(newer), say("a.wav", "да"), "-o", "out") == 0
        assert capsys.readouterr().err == ""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    done = 0
    transcribe_pieces = Recognizer.transcribe_pieces

    def some(self: Recognizer, found: Iterable[Piece]) -> Iterator[PieceResult]:
        nonlocal done
        for result in transcribe_pieces(self, found):
            if done == pieces:
                raise KeyboardInterrupt
            done += 1
            yield result

    monkeypatch.setattr(Recognizer, "transcribe_pieces", some)


def test_ctrl_c_keeps_what_is_done(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_after(monkeypatch, 2)
    files = [say(f"{name}.wav", "да") for name in "abcd"]
    assert transcribe(model, *files, "-o", "out") == 130
    assert capsys.readouterr().err == "kvarts: interrupted\n"
    assert written("out") == {"a.txt": "да\n", "b.txt": "да\n"}


def test_a_full_disk_keeps_what_is_done(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    say("a.wav", "да")
    say("b.wav", "афина хотела номер " * 5)
    with no_file_beyond(40):
        assert transcribe(model, "a.wav", "b.wav", "-o", "out") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("kvarts: error: out/b.txt: could not be written")
    assert captured.err.count("\n") == 1
    assert written("out") == {"a.txt": "да\n"}


def test_what_fails_in_the_reading_thread_is_no_silence(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(path: Path, channels: str) -> Iterator[Floats]:
        if path.name == "b.wav":
            raise RuntimeError("a bug")
        yield speak("да")[:, None]

    monkeypatch.setattr("kvarts.audio.audio_blocks", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        transcribe(model, say("a.wav", "да"), say("b.wav", "да"))
    assert capsys.readouterr().out == "a.wav\tда\n"


# --- Decoders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that reads tones in frames of 40 ms."""
    path = tmp_path_factory.mktemp("checkpoint") / "coarse.ckpt"
    save_weights(ToneReader(stride=4), path)
    return str(path)


DECODERS = [
    ([], "мой кит дома"),
    (["--beam", "50"], "мой кит дома"),
    (["--lm", "lm.arpa"], "мой кот дома"),
    (["--lm", "lm.arpa", "--lm-weight", "0", "--spelling-weight", "0"], "мой кит дома"),
    (["--lm", "lm.arpa", "--lm-weight", "0"], "мой кот дома"),
    (["--lm", "lm.arpa", "--vocabulary", "words.txt", "--lm-weight", "0"], "мой кит дома"),
    (["--hotwords", "hot.txt"], "мой кот дома"),
    (["--hotwords", "hot.txt", "--hotword-weight", "0.5"], "мой кит дома"),
    (["--vocabulary", "words.txt"], "мой кит дома"),
    (["--vocabulary", "known.txt", "--spelling-weight", "0"], "мой кит дома"),
    (["--vocabulary", "known.txt"], "мой кот дома"),
    (["--vocabulary", "known.txt", "--closed"], "мой кот дома"),
]


@pytest.mark.parametrize(("options", "text"), DECODERS, ids=[" ".join(options) for options, _ in DECODERS])
@pytest.mark.parametrize("lead_s", [0.0, 1.0])
def test_a_decoder_changes_words_and_their_times_stay(
    options: list[str], text: str, lead_s: float, coarse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("lm.arpa").write_text("".join(train([["мой", "кот"], ["дома", "кот"]], 2).arpa()), encoding="utf-8")
    Path("hot.txt").write_text("кот", encoding="utf-8")
    Path("known.txt").write_text("мой кот дома", encoding="utf-8")
    Path("words.txt").write_text("мой кот дома кит", encoding="utf-8")
    silence = np.zeros(round(lead_s * SAMPLE_RATE), np.float32)
    say("a.wav", np.concatenate([silence, unsure("мой кит дома", "мой кот дома")]), subtype="FLOAT")
    assert transcribe(coarse, "a.wav", "-f", "json", "--word-timestamps", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == text
    assert [word["text"] for word in found["words"]] == text.split()
    # 0.04 s of silence, then 0.12 s a character, of which the last 0.04 s are silence.
    for word, (first, last) in zip(found["words"], [(0, 2), (4, 6), (8, 11)], strict=True):
        assert word["start_s"] == pytest.approx(lead_s + 0.04 + 0.12 * first, abs=0.0401)
        assert word["end_s"] == pytest.approx(lead_s + 0.12 + 0.12 * last, abs=0.0401)
        assert 0 < word["confidence"] <= 1


def test_a_decoder_works_on_every_recording_and_channel(coarse: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hot.txt").write_text("кот\nдом", encoding="utf-8")
    one, other = unsure("кит", "кот"), unsure("дым", "дом")
    say("a.wav", one, subtype="FLOAT")
    say("b.wav", np.stack([one, other], axis=1), subtype="FLOAT")
    assert transcribe(coarse, "a.wav", "b.wav", "--channels", "separate", "--hotwords", "hot.txt") == 0
    expected = ["a.wav\tКанал 1: кот", "b.wav\tКанал 1: кот", "b.wav\tКанал 2: дом"]
    assert capsys.readouterr().out.splitlines() == expected
