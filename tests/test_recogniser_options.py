"""What a command line says of a decoder reaches the search, and what it says wrongly has a name."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kvarts.alphabet import decode
from kvarts.checkpoint import save_weights
from kvarts.cli import main
from kvarts.confidence import Calibration, model_identity
from kvarts.decoding import greedy_words
from kvarts.errors import CalibrationError, ConfigError, KvartsError, LanguageModelError
from kvarts.frames import SAMPLE_RATE
from kvarts.ngram import train
from kvarts.recogniser import Recognizer
from kvarts.recogniser_options import (
    add_calibration_argument,
    add_decoder_arguments,
    add_model_arguments,
    beam_search_of,
    decoder_of,
    decoder_options,
    read_vocabulary,
    read_weights,
    recogniser_of,
    weights_path,
)
from kvarts.search import DEFAULT_BEAM, BeamSearch, Weights
from tone_reader import ToneReader
from tones import speak

SENTENCES = [["да"], ["нет"], ["да", "нет"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tones.ckpt"
    save_weights(ToneReader(), path)
    return path


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of what options can name, rightly and wrongly; «lm.arpa.json» is not there."""
    monkeypatch.chdir(tmp_path)
    text = "".join(train(SENTENCES, 2).arpa())
    Path("lm.arpa").write_text(text, encoding="utf-8")
    Path("lm.arpa.gz").write_bytes(gzip.compress(text.encode()))
    Path("broken.arpa").write_text(text.replace("ngram 1=", "ngram 1=1"), encoding="utf-8")
    Path("half.arpa.gz").write_bytes(gzip.compress(text.encode())[:-20])
    Path("empty.arpa").touch()
    Path("hot.txt").write_text("кварц\nдобрый день 2.5\n", encoding="utf-8")
    Path("words.txt").write_text("\ufeffСвет, окно!\n\nещё свет\n", encoding="utf-8")
    Path("blank.txt").write_text("\n — \n", encoding="utf-8")
    Path("foreign.txt").write_text("свет\nдом2 light\n", encoding="utf-8")
    Path("windows.txt").write_bytes("свет".encode("cp1251"))
    Path("folder").mkdir()
    soundfile.write("a.wav", speak("да"), SAMPLE_RATE)


def parsed(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, is_optional=True)
    add_decoder_arguments(parser)
    add_calibration_argument(parser)
    return parser.parse_args(line.split())


def search_of(line: str) -> BeamSearch:
    decoder = decoder_of(parsed(line))
    assert isinstance(decoder, BeamSearch)
    return decoder


def vocabulary(search: BeamSearch) -> set[str]:
    """The words of its tree, spelt from the end to the beginning."""
    tree = search.rules.tree
    assert tree is not None
    found = set()
    for node in range(len(tree.word)):
        if tree.word[node] >= 0:
            labels = []
            while node:
                labels.append(int(tree.label[node]))
                node = int(tree.parent[node])
            found.add(decode(labels[::-1]))
    return found


# --- The decoder ------------------------------------------------------------------------------------------------------


def test_without_options_it_is_greedy() -> None:
    assert decoder_of(parsed("")) is greedy_words
    assert decoder_of(parsed("--threads 2 --engine openvino --calibration c.json")) is greedy_words
    assert decoder_options(parsed("")) == []


@pytest.mark.parametrize("line", ["--beam 200", "--lm lm.arpa", "--hotwords hot.txt", "--vocabulary words.txt"])
def test_any_of_four_options_makes_it_a_search(line: str) -> None:
    rules = search_of(line).rules
    assert rules.beam == DEFAULT_BEAM == 200
    assert rules.weights == Weights() == Weights(0.5, 0.5, 0, 0.5)
    given = [rules.language_model is not None, rules.hotwords is not None, rules.tree is not None, rules.is_closed]
    assert given == ["--lm" in line, "hot" in line, "--lm" in line or "--vocabulary" in line, False]
    assert decoder_options(parsed(line)) == [line.split()[0]]


@pytest.mark.parametrize(
    ("line", "what", "value"),
    [
        ("--beam 7", lambda rules: rules.beam, 7),
        ("--lm lm.arpa", lambda rules: rules.language_model.words[3:], ("да", "нет")),
        ("--lm lm.arpa.gz", lambda rules: rules.language_model.order, 2),
        ("--lm lm.arpa --lm-weight 0.25", lambda rules: rules.weights, Weights(lm_weight=0.25)),
        ("--lm lm.arpa --lm-weight 0", lambda rules: rules.weights, Weights(lm_weight=0)),
        ("--lm lm.arpa --word-bonus=-2", lambda rules: rules.weights, Weights(word_bonus=-2)),
        ("--lm lm.arpa --unknown-penalty=-3", lambda rules: rules.weights, Weights(unknown_penalty=-3)),
        ("--lm lm.arpa --unknown-penalty 0", lambda rules: rules.weights, Weights(unknown_penalty=0)),
        ("--lm lm.arpa --spelling-weight 0", lambda rules: rules.weights, Weights(spelling_weight=0)),
        ("--lm lm.arpa --temperature 2", lambda rules: rules.weights, Weights(temperature=2)),
        ("--lm lm.arpa --prior-weight 0", lambda rules: rules.weights, Weights()),
        ("--beam 7 --temperature 2", lambda rules: rules.weights, Weights(temperature=2)),
        ("--hotwords hot.txt --temperature 2", lambda rules: rules.weights, Weights(temperature=2)),
        ("--vocabulary words.txt --unknown-penalty=-3", lambda rules: rules.weights, Weights(unknown_penalty=-3)),
        ("--vocabulary words.txt --spelling-weight 2", lambda rules: rules.weights, Weights(spelling_weight=2)),
        ("--hotwords hot.txt", lambda rules: rules.hotwords.phrases, {"кварц": 5, "добрый день": 2.5}),
        ("--hotwords hot.txt --hotword-weight 8", lambda rules: rules.hotwords.phrases["кварц"], 8),
        ("--hotwords hot.txt --hotword-weight 8", lambda rules: rules.hotwords.phrases["добрый день"], 2.5),
        ("--lm lm.arpa --closed", lambda rules: rules.is_closed, True),
        ("--vocabulary words.txt --closed", lambda rules: rules.is_closed, True),
    ],
)
def test_an_option_reaches_the_search(line: str, what: Callable[[Any], Any], value: object) -> None:
    assert what(search_of(line).rules) == value


def test_the_vocabulary_is_all_that_is_known() -> None:
    assert vocabulary(search_of("--vocabulary words.txt")) == {"свет", "окно", "еще"}
    assert vocabulary(search_of("--lm lm.arpa --vocabulary words.txt")) == {"да", "нет", "свет", "окно", "еще"}
    hot = search_of("--lm lm.arpa --hotwords hot.txt")
    assert vocabulary(hot) == {"да", "нет", "кварц", "добрый", "день"}
    assert search_of("--hotwords hot.txt").rules.tree is None


def test_words_are_normalised_and_taken_once() -> None:
    assert read_vocabulary(Path("words.txt")) == ["свет", "окно", "еще"]


# --- Weights that were tuned ------------------------------------------------------------------------------------------

TUNED = {"lm_weight": 0.9, "word_bonus": -1, "unknown_penalty": -6.5, "spelling_weight": 0.2}


def test_tuned_weights_are_taken_and_options_go_before() -> None:
    path = weights_path(Path("lm.arpa"))
    assert path == Path("lm.arpa.json")
    assert read_weights(Path("lm.arpa")) == Weights()
    path.write_text(json.dumps({**TUNED, "wer": 0.1}), encoding="utf-8")
    assert read_weights(Path("lm.arpa")) == search_of("--lm lm.arpa").rules.weights == Weights(0.9, -1, -6.5, 0.2)
    assert search_of("--lm lm.arpa --word-bonus 0").rules.weights == Weights(0.9, 0, -6.5, 0.2)
    all_given = search_of("--lm lm.arpa --lm-weight 1 --word-bonus 2 --unknown-penalty=-3 --spelling-weight 1.5")
    assert all_given.rules.weights == Weights(1, 2, -3, 1.5)
    assert search_of("--lm lm.arpa.gz").rules.weights == Weights()  # of another model
    assert search_of("--vocabulary words.txt").rules.weights == Weights()


PRIOR = tuple(np.log(np.linspace(1, 3, 34) / 68).round(4).tolist())
SOFT = TUNED | {"temperature": 1.5, "prior_weight": 0.25, "label_prior": PRIOR}


def test_temperature_and_prior_are_among_them() -> None:
    weights_path(Path("lm.arpa")).write_text(json.dumps(SOFT), encoding="utf-8")
    assert read_weights(Path("lm.arpa")) == Weights(0.9, -1, -6.5, 0.2, 1.5, 0.25, PRIOR)
    assert search_of("--lm lm.arpa --prior-weight 1").rules.weights == Weights(0.9, -1, -6.5, 0.2, 1.5, 1, PRIOR)
    assert search_of("--lm lm.arpa --temperature 1").rules.weights == Weights(0.9, -1, -6.5, 0.2, 1, 0.25, PRIOR)


def test_the_weight_of_a_prior_needs_one() -> None:
    with pytest.raises(ConfigError, match=r"^label prior 0.5: no prior is known; run kvarts lm tune$"):
        search_of("--lm lm.arpa --prior-weight 0.5")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "[" * 100_000,
        json.dumps({name: TUNED[name] for name in ("lm_weight", "word_bonus")}),
        *[
            json.dumps(TUNED | {"lm_weight": value})
            for value in ("0.5", None, True, [1], -0.1, 101, float("nan"), float("inf"), 10**400)
        ],
        json.dumps({name: value for name, value in TUNED.items() if name != "spelling_weight"}),
        json.dumps(TUNED | {"unknown_penalty": 1}),
        json.dumps(TUNED | {"spelling_weight": -1}),
        json.dumps(TUNED | {"word_bonus": 1000}),
        json.dumps(SOFT | {"temperature": 0}),
        json.dumps(SOFT | {"prior_weight": "1"}),
        *[json.dumps(SOFT | {"label_prior": prior}) for prior in (None, 3, PRIOR[1:], [*PRIOR[1:], None], "prior")],
        b"\xff\xfe",
    ],
    ids=lambda content: str(content)[:40],
)
def test_damaged_weights(content: str | bytes, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("lm.arpa.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = r"^lm\.arpa\.json is damaged, or of another Kvarts: delete it, or run `kvarts lm tune`"
    with pytest.raises(LanguageModelError, match=message):
        read_weights(Path("lm.arpa"))
    assert main(["transcribe", "--model", str(model), "a.wav", "--lm", "lm.arpa"]) == 2
    assert capsys.readouterr().err.startswith("kvarts: error: lm.arpa.json is damaged")


def test_weights_that_cannot_be_read() -> None:
    Path("lm.arpa.json").mkdir()
    with pytest.raises(LanguageModelError, match=r"^lm\.arpa\.json cannot be read \(Is a directory\)"):
        read_weights(Path("lm.arpa"))


# --- Mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("--beam 0", "beam 0: must be from 1"),
    ("--beam -1", "beam -1: must be from 1"),
    ("--beam 100001", "beam 100001: must be from 1 to 100000"),
    ("--lm none.arpa", "none.arpa"),
    ("--lm broken.arpa", "broken.arpa"),
    ("--lm half.arpa.gz", "half.arpa.gz"),
    ("--lm empty.arpa", "empty.arpa"),
    ("--lm words.txt", "words.txt"),
    ("--lm folder", "folder"),
    ("--lm /", "/"),
    ("--lm=", "."),
    ("--lm a.wav/lm.arpa", "a.wav/lm.arpa"),
    (f"--lm {'long' * 1000}", "long"),
    ("--lm lm.arpa --lm-weight=-1", "weight of the language model -1.0: must be from 0 to 100"),
    ("--lm lm.arpa --lm-weight nan", "weight of the language model nan: must be from 0 to 100"),
    ("--lm lm.arpa --word-bonus inf", "word bonus inf: must be from -100 to 100"),
    ("--lm lm.arpa --unknown-penalty 1", "penalty of unknown words 1.0: must be from -1000 to 0"),
    ("--lm-weight 0.5", "--lm-weight goes with --lm"),
    ("--lm-weight 0", "--lm-weight goes with --lm"),
    ("--beam 5 --lm-weight 0", "--lm-weight goes with --lm"),
    ("--word-bonus 0 --vocabulary words.txt", "--word-bonus goes with --lm"),
    ("--unknown-penalty 0", "--unknown-penalty goes with --lm or --vocabulary"),
    ("--hotwords hot.txt --unknown-penalty=-1", "--unknown-penalty goes with --lm or --vocabulary"),
    ("--hotword-weight 3 --lm lm.arpa", "--hotword-weight goes with --hotwords"),
    ("--closed", "--closed goes with --lm or --vocabulary"),
    ("--closed --hotwords hot.txt", "--closed goes with --lm or --vocabulary"),
    ("--hotwords none.txt", "none.txt cannot be read (No such file or directory): check the path"),
    ("--hotwords blank.txt", "blank.txt"),
    ("--hotwords foreign.txt", "foreign.txt:2: 'дом2 light' has characters outside the alphabet"),
    ("--hotwords hot.txt --hotword-weight 0", "weight 0.0 must be a number above 0"),
    ("--hotwords hot.txt --hotword-weight nan", "weight nan must be a number above 0"),
    ("--vocabulary none.txt", "none.txt cannot be read (No such file or directory): check the path"),
    ("--vocabulary folder", "folder cannot be read (Is a directory): check the path"),
    ("--vocabulary blank.txt", "blank.txt has no words: write one a line"),
    ("--vocabulary empty.arpa", "empty.arpa has no words: write one a line"),
    ("--vocabulary foreign.txt", "foreign.txt:2: 'дом2' has letters outside the alphabet: spell it in Russian"),
    ("--vocabulary windows.txt", "windows.txt is no UTF-8 text: save it as UTF-8"),
    ("--device abacus", "--device abacus"),
    ("--engine openvino", "--engine openvino: checkpoints run in PyTorch"),
    ("--precision int8", "--precision int8: checkpoints run in PyTorch"),
    ("--calibration none.json", "none.json: no such calibration"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line[:50] for line, _ in MISTAKES])
def test_a_mistake_is_one_line(line: str, message: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "--model", str(model), "a.wav", *line.split()]) == 2
    printed, errors = capsys.readouterr()
    assert (printed, errors.count("\n")) == ("", 1)
    assert errors.startswith("kvarts: error: ")
    assert message in errors
    if not line.startswith(("--device", "--engine", "--precision", "--calibration")):
        with pytest.raises(KvartsError):
            beam_search_of(parsed(line))


@pytest.mark.parametrize(
    "line", ["--beam x", "--beam 1.5", "--lm-weight x", "--threads 0", "--threads x", "--closed=1"]
)
def test_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["transcribe", "--model", "m", "a.wav", *line.split()])
    assert ended.value.code == 2
    assert line.partition(" ")[0].partition("=")[0] in capsys.readouterr().err


# --- The recogniser ---------------------------------------------------------------------------------------------------


def test_the_recogniser_has_the_decoder_of_the_options(model: Path) -> None:
    assert recogniser_of(parsed(f"--model {model}")).decoder is greedy_words
    search = recogniser_of(parsed(f"--model {model} --vocabulary words.txt --closed --threads 1"))
    assert isinstance(search.decoder, BeamSearch)
    assert search.decoder.rules.is_closed
    assert search.threads == 1
    assert search.engine.name.startswith("torch")

    def other(log_probs: object) -> list[Any]:
        return []

    assert recogniser_of(parsed(f"--model {model} --beam 3"), other).decoder is other
    without = argparse.ArgumentParser()  # as `kvarts grammar check` has it
    add_model_arguments(without)
    assert recogniser_of(without.parse_args(["--model", str(model)])).decoder is greedy_words


def test_an_exported_model_gets_the_decoder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(Recognizer, "load", lambda path, **options: loaded.append((path, options)))
    recogniser_of(parsed("--model folder --engine onnxruntime --precision int8 --threads 3 --beam 9"))
    [(path, options)] = loaded
    assert path == Path("folder")
    assert options.pop("decoder").rules.beam == 9
    expected = {"engine": "onnxruntime", "precision": "int8", "threads": 3, "calibration": None}
    assert options == expected
    with pytest.raises(ConfigError, match=r"^--device cpu: exported models run on the processor; name a checkpoint$"):
        recogniser_of(parsed("--model folder --device cpu"))
    assert len(loaded) == 1


def test_a_calibration_belongs_to_a_decoder(model: Path) -> None:
    about = {"model": model_identity(model), "engine": "torch cpu", "num_words": 9, "num_utterances": 3}
    values = {
        "word_weights": (0.5, 0.8, 0.3, -0.2, 0.0, 0.0),
        "utterance_weights": (-0.5, 0.7),
        "word_threshold": 0.6,
        "utterance_threshold": 0.4,
        "false_accept_rate": 0.05,
    }
    beam = search_of("--beam 9")
    Calibration(**values, decoder="greedy", **about).save(Path("greedy.json"))
    Calibration(**values, decoder=beam.description, **about).save(Path("beam.json"))
    for line in ("--calibration greedy.json", "--calibration beam.json --beam 9"):
        calibration = recogniser_of(parsed(f"--model {model} {line}")).calibration
        assert isinstance(calibration, Calibration)
        assert calibration.num_words == 9
    for line in ("--calibration beam.json", "--calibration greedy.json --beam 9", "--calibration beam.json --beam 8"):
        with pytest.raises(CalibrationError, match="decoder"):
            recogniser_of(parsed(f"--model {model} {line}"))
