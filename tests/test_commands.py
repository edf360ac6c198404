"""Commands on their whole way: sound, grammar, intent, slots and a probability; on the command line too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from kvarts import confidence
from kvarts.checkpoint import save_weights
from kvarts.cli import main
from kvarts.confidence import CommandCalibration
from kvarts.cutting import pieces
from kvarts.features import log_mel
from kvarts.frames import SAMPLE_RATE
from kvarts.grammar import Grammar
from kvarts.grammar_search import GrammarSearch
from kvarts.recogniser import Recognizer, SpokenCommand
from kvarts.streaming import Final
from kvarts.torch_engine import Torch
from tone_reader import ToneReader
from tones import ToneEngine, speak, unsure

GRAMMAR = """
[light]
включи свет [{room}]
[stop]
стоп
{room}:
kitchen: на кухне
hall: в зале
"""
SEARCH = GrammarSearch(Grammar(GRAMMAR))


def calibration(search: GrammarSearch = SEARCH, **changes: Any) -> CommandCalibration:
    made = CommandCalibration(
        command_weights=(3.0, 2.0),
        utterance_threshold=0.5,
        false_accept_rate=0.05,
        decoder=search.description,
        model="a" * 64,
        engine="tones",
        num_utterances=20,
    )
    return replace(made, **changes)


def meanings(commands: Sequence[SpokenCommand]) -> list[tuple[str | None, dict[str, str], str]]:
    return [(command.intent, dict(command.slots), command.text) for command in commands]


# --- The recogniser ---------------------------------------------------------------------------------------------------


def test_a_result_has_the_command() -> None:
    sounds = [speak("включи свет на кухне"), speak("стоп"), speak("погода завтра утром"), np.zeros(8000, np.float32)]
    results = Recognizer(ToneEngine(), decoder=SEARCH).transcribe_batch(sounds)
    assert [meanings(result.commands) for result in results] == [
        [("light", {"room": "kitchen"}, "включи свет на кухне")],
        [("stop", {}, "стоп")],
        [(None, {}, "[unk]")],
        [],
    ]
    for result, sound in zip(results[:3], sounds, strict=False):
        [command] = result.commands
        assert (command.start_s, command.end_s) == (result.words[0].start_s, result.words[-1].end_s)
        assert command.end_s == pytest.approx(len(sound) / SAMPLE_RATE, abs=0.1)
        assert command.confidence == math.exp(command.score)
        assert result.confidence is None
    assert results[0].commands[0].score > -0.1 > results[2].commands[0].score


def test_a_calibrated_command_is_right_or_wrong_as_a_whole() -> None:
    recognizer = Recognizer(ToneEngine(), decoder=SEARCH, calibration=calibration(command_weights=(3.0, 20.0)))
    misheard = unsure("включи сват на кухне", "включи свет на кухне")
    sounds = [speak("включи свет на кухне"), misheard, np.zeros(8000, np.float32)]
    clear, doubtful, silent = recognizer.transcribe_batch(sounds)
    for result in (clear, doubtful):
        [command] = result.commands
        chance = 1 / (1 + math.exp(-(3 + 20 * command.score)))
        assert command.confidence == pytest.approx(chance)
        assert result.confidence == command.confidence
        assert {word.confidence for word in result.words} == {command.confidence}
    assert clear.commands[0].confidence > doubtful.commands[0].confidence + 0.02
    assert meanings(clear.commands) == meanings(doubtful.commands)
    assert silent.commands == ()
    assert silent.confidence is not None
    assert silent.confidence < 0.5


def test_each_piece_of_a_long_recording_has_its_command() -> None:
    silence = np.zeros(20 * SAMPLE_RATE, np.float32)
    sound = np.concatenate([speak("стоп"), silence, speak("включи свет в зале"), silence, speak("стоп")])
    recognizer = Recognizer(ToneEngine(), decoder=SEARCH, calibration=calibration())
    result = recognizer.transcribe(sound)
    found = [piece.command for piece in recognizer.transcribe_pieces(pieces(iter([sound])))]
    assert len(found) > 1
    assert result.commands == tuple(found)
    texts = [text for *_, text in meanings(result.commands)]
    assert texts[0] == "стоп"
    assert result.commands[-1].end_s == pytest.approx(len(sound) / SAMPLE_RATE, abs=0.1)
    assert result.confidence == pytest.approx(math.prod(one.confidence for one in result.commands))


def test_a_stream_gives_commands_when_an_utterance_ends() -> None:
    pause = np.zeros(2 * SAMPLE_RATE, np.float32)
    sound = np.concatenate([pause, speak("включи свет в зале"), pause, speak("стоп"), pause])
    stream = Recognizer(ToneEngine(), decoder=SEARCH, calibration=calibration()).stream()
    events = [event for start in range(0, len(sound), 1600) for event in stream.feed(sound[start : start + 1600])]
    finals = [event for event in [*events, *stream.close()] if isinstance(event, Final)]
    assert [meanings(final.commands) for final in finals] == [
        [("light", {"room": "hall"}, "включи свет в зале")],
        [("stop", {}, "стоп")],
    ]
    for final in finals:
        [command] = final.commands
        assert final.start_s <= command.start_s < command.end_s <= final.end_s
        assert final.confidence == command.confidence > 0.9


# --- The command line -------------------------------------------------------------------------------------------------

SAID = ["включи свет", "включи свет на кухне", "включи свет в зале", "стоп"]
OTHER = ["погода завтра", "который час сейчас", "позвони маме домой", "включи музыку громче", "стоял столб"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a grammar, commands and other speech."""
    folder = tmp_path_factory.mktemp("data")
    save_weights(ToneReader(), folder / "tones.ckpt")
    (folder / "light.grammar").write_text(GRAMMAR, encoding="utf-8")
    generator = np.random.default_rng(0)

    def write(name: str, texts: Sequence[str], count: int) -> None:
        rows = []
        for number in range(count):
            text = texts[number % len(texts)]
            sound = speak(text) * np.float32(generator.uniform(0.2, 1))
            soundfile.write(folder / f"{name}{number}.wav", sound, SAMPLE_RATE, subtype="FLOAT")
            row = {"audio_filepath": f"{name}{number}.wav", "text": text, "duration": len(sound) / SAMPLE_RATE}
            rows.append(json.dumps(row, ensure_ascii=False))
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")

    write("commands", SAID, 24)
    write("speech", OTHER, 20)
    soundfile.write(folder / "two.wav", np.column_stack([pad(speak("стоп")), pad(speak("погода"))]), SAMPLE_RATE)
    return folder


def heard(texts: Sequence[str]) -> list[NDArray[np.float32]]:
    recognizer = Recognizer(Torch(ToneReader()))
    return recognizer.log_probs([log_mel(speak(text)) for text in texts])


def pad(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.pad(sound, (0, 2 * SAMPLE_RATE - len(sound)))


def kvarts(data: Path, command: str, *arguments: str) -> int:
    return main([command, "--model", str(data / "tones.ckpt"), "--grammar", str(data / "light.grammar"), *arguments])


@pytest.fixture(scope="module")
def calibrated(data: Path) -> Path:
    path = data / "commands.json"
    manifests = [option for name in ("commands", "speech") for option in ("--manifest", str(data / f"{name}.jsonl"))]
    assert kvarts(data, "calibrate", *manifests, "-o", str(path), "--picture", str(data / "c.png")) == 0
    return path


def test_calibrate(data: Path, tmp_path: Path, calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = CommandCalibration.load(calibrated)
    assert (found.decoder, found.engine, found.num_utterances) == (SEARCH.description, "torch cpu", 44)
    assert found.model == confidence.model_identity(data / "tones.ckpt")
    assert (data / "c.png").read_bytes().startswith(b"\x89PNG")
    # All commands are heard well and all else badly: that must have been learnt, as far as so few can tell.
    speech = [SEARCH.best(log_probs).score for log_probs in heard(OTHER)]
    assert max(speech) < -2
    assert found.confidence(-0.05) > 0.9 > 0.3 > max(map(found.confidence, speech))
    arguments = ["--manifest", str(data / "commands.jsonl"), "--manifest", str(data / "speech.jsonl")]
    capsys.readouterr()
    assert kvarts(data, "calibrate", *arguments, "-o", str(tmp_path / "c.json")) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert "cross-validated by utterance: 44 commands; decoder: grammar " in " ".join(printed.split())
    assert f"share right {24 / 44:.3f}" in " ".join(printed.split())
    assert CommandCalibration.load(tmp_path / "c.json") == found


def test_calibrate_shows_the_figures_of_a_test_set(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--manifest", str(data / "commands.jsonl"), "--manifest", str(data / "speech.jsonl")]
    tests = ["--test", str(data / "speech.jsonl")]
    assert kvarts(data, "calibrate", *known, *tests, "-o", str(tmp_path / "c.json")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "speech.jsonl: 20 commands; decoder" in printed
    assert "share right 0.000" in printed
    # None of it is a command, so what is accepted of the wrong is what is accepted of all.
    rates = re.search(r"of wrong accepted (\S+) of right rejected – of all accepted (\S+)", printed)
    assert rates is not None
    assert rates[1] == rates[2]
    assert float(rates[1]) <= 0.2


def test_transcribe_gives_commands(data: Path, calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, other = str(data / "commands1.wav"), str(data / "speech0.wav")
    capsys.readouterr()
    assert kvarts(data, "transcribe", command, other) == 0
    assert capsys.readouterr().out == f"{command}\tвключи свет на кухне\n{other}\t[unk]\n"
    options = ["--calibration", str(calibrated), "--reject", "-f", "jsonl"]
    assert kvarts(data, "transcribe", command, other, *options) == 0
    printed, errors = capsys.readouterr()
    heard, unheard = map(json.loads, printed.splitlines())
    [found] = heard["commands"]
    assert (found["intent"], found["slots"], found["text"]) == ("light", {"room": "kitchen"}, "включи свет на кухне")
    assert 0 <= found["start_s"] < found["end_s"] <= heard["duration_s"]
    assert found["confidence"] == heard["confidence"] > 0.8 > unheard["confidence"]
    assert (heard["rejected"], unheard["rejected"]) == (False, True)
    assert [one["intent"] for one in unheard["commands"]] == [None]
    assert errors == "kvarts: 1 of 2 recordings rejected: too unsure\n"
    assert found["score"] > -0.5 > -2 > unheard["commands"][0]["score"]
    # The threshold of [unk] is one's own, too.
    assert kvarts(data, "transcribe", other, "--unknown-below", "1000", "-f", "json") == 0
    [found] = json.loads(capsys.readouterr().out)["commands"]
    assert found["intent"] is not None
    assert kvarts(data, "transcribe", str(data / "two.wav"), "--channels", "separate", "-f", "json") == 0
    both = json.loads(capsys.readouterr().out)["commands"]
    assert [(one["channel"], one["intent"]) for one in both] == [(1, "stop"), (2, None)]


def test_a_recording_without_a_word_has_no_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(data / "silence.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    assert kvarts(data, "transcribe", str(data / "silence.wav"), "-f", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["commands"], found["text"]) == ([], "")


def test_without_a_grammar_there_are_no_commands(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(data / "tones.ckpt"), str(data / "commands1.wav"), "-f", "json"]
    assert main(["transcribe", *arguments]) == 0
    assert "commands" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grammar", "none.grammar"], "none.grammar: could not be read"),
        (["--grammar", "light.grammar", "--beam", "9"], "--grammar is a decoder of its own; leave out --beam"),
        (["--unknown-below", "3"], "--unknown-below goes with --grammar"),
        (["--grammar", "light.grammar", "--calibration", "words.json"], "words.json: a calibration of words"),
        (["--calibration", "commands.json"], "commands.json: a calibration of commands, not of words"),
        (["--grammar", "other.grammar", "--calibration", "commands.json"], "is of the decoder «grammar "),
        (["--grammar", "light.grammar", "--calibration", "other.json"], "of the model bbbbbbbbbbbb…"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str],
    message: str,
    data: Path,
    calibrated: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(data)
    Path("other.grammar").write_text("[stop]\nстоп\n", encoding="utf-8")
    found = CommandCalibration.load(calibrated)
    replace(found, model="b" * 64).save(Path("other.json"))
    content = json.loads(calibrated.read_text(encoding="utf-8")) | {"of": "words"}
    Path("words.json").write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    assert main(["transcribe", "--model", "tones.ckpt", "commands1.wav", *options]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert message in errors
    assert errors.count("\n") == 1


def test_a_recogniser_of_a_checkpoint_takes_the_calibration(data: Path, calibrated: Path) -> None:
    recognizer = Recognizer(Torch(ToneReader()), decoder=SEARCH, calibration=CommandCalibration.load(calibrated))
    [command] = recognizer.transcribe(speak("стоп")).commands
    assert command.intent == "stop"
    assert command.confidence > 0.8
