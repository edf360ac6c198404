"""``kvarts lm tune``: it finds what is best, and what it found is used."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvarts import __version__
from kvarts.arpa import read_arpa
from kvarts.checkpoint import save_weights
from kvarts.cli import main
from kvarts.frames import SAMPLE_RATE
from kvarts.hotwords import read_hotwords
from kvarts.lm_tune import Trial, tuned
from kvarts.manifest import write_manifest
from kvarts.recogniser_options import read_weights
from kvarts.search import BeamSearch, Weights
from tone_reader import ToneReader
from tones import speak, unsure

# --- The search for weights -------------------------------------------------------------------------------------------

STEPS = np.array([0.4, 1.0, 4.0, 0.4, 0.4, 0.2])
LOW, HIGH = np.array([0.0, -10.0, -40.0, 0.0, 0.2, 0.0]), np.array([5.0, 10.0, 0.0, 5.0, 5.0, 2.0])
PRIOR = tuple(np.full(34, -np.log(34)).tolist())


def place(weights: Weights) -> NDArray[np.float64]:
    """The six numbers that are tuned."""
    return np.array(astuple(weights)[:6])


class Valley:
    """Its lowest place is at `target`; notes where it was measured."""

    def __init__(self, target: tuple[float, ...], *, by_characters: bool = False) -> None:
        self.target = np.array(target)
        self.by_characters = by_characters
        self.measured: list[Weights] = []

    def __call__(self, weights: Weights) -> Trial:
        self.measured.append(weights)
        depth = float(np.sum(np.abs(place(weights) - self.target) / STEPS))
        return Trial(weights, 0.5, depth) if self.by_characters else Trial(weights, depth, 0.5)


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(low - step, high + step) for low, high, step in zip(LOW, HIGH, STEPS, strict=True)]),
    st.tuples(*[st.floats(low, high) for low, high in zip(LOW, HIGH, strict=True)]),
    st.booleans(),
)
def test_it_finds_the_lowest_place_within_its_steps_and_bounds(
    target: tuple[float, ...], start: tuple[float, ...], by_characters: bool
) -> None:
    valley = Valley(target, by_characters=by_characters)
    best = tuned(valley, Weights(*start, PRIOR))
    assert valley.measured[0] == Weights(*start, PRIOR)
    assert len(set(valley.measured)) == len(valley.measured)
    for weights in valley.measured:
        weights.check()
        assert np.all(place(weights) >= LOW)
        assert np.all(place(weights) <= HIGH)
    assert best.weights is not None
    # The last steps are a quarter of the first; none of them, both ways, is better than where it stands. Near a bound
    # one of the half steps of the mean over 13 places is cut short: what lies on one side weighs 12, on the other 10.
    off = np.abs(place(best.weights) - np.clip(target, LOW, HIGH))
    assert np.all(off <= STEPS / 4 * 12 / 22 + 2e-3)


def test_where_all_is_alike_it_stays() -> None:
    measured = []

    def flat(weights: Weights) -> Trial:
        measured.append(weights)
        return Trial(weights, 0.2, 0.1)

    assert tuned(flat, Weights()) == Trial(Weights(), 0.2, 0.1)
    # Three sizes of step, six weights, two ways, but a penalty that is 0 cannot rise, and the weight of the prior not
    # fall; half a step around each of these 31, of which many lie around several.
    assert len(measured) == len(set(measured)) == 256


def test_hopeless_weights_are_not_looked_around() -> None:
    """All but the start is worse by far: beside its half steps, every other place is measured once, and none around."""
    measured = []

    def pit(weights: Weights) -> Trial:
        measured.append(weights)
        return Trial(weights, 0.2 if weights == Weights() else 0.5, 0.1)

    assert tuned(pit, Weights()).weights == Weights()
    # 30 places besides the start; its 10 half steps are among them.
    assert len(measured) == 31


def test_a_lucky_place_among_worse_ones_is_not_taken() -> None:
    lucky, good = Weights(lm_weight=0.9), Weights(word_bonus=1.5)

    def measure(weights: Weights) -> Trial:
        away = np.abs(place(weights) - place(good)) / STEPS
        return Trial(weights, 0.1 if weights == lucky else 0.2 + 0.05 * float(away.sum()), 0.1)

    assert measure(lucky).wer < measure(good).wer
    assert tuned(measure, Weights()).weights == good


def test_characters_decide_between_equal_word_errors() -> None:
    better = Weights(word_bonus=1.5)
    best = tuned(lambda weights: Trial(weights, 0.2, 0.1 if weights == better else 0.3), Weights())
    assert best.weights == better
    worse_words = tuned(lambda weights: Trial(weights, 0.3 if weights == better else 0.2, 0.0), Weights())
    assert worse_words.weights == Weights()


NUMBERS = ("lm_weight", "word_bonus", "unknown_penalty", "spelling_weight", "temperature", "prior_weight")


def without_prior(weights: Weights) -> Weights:
    """That is measured, so known to be there, and of the recordings."""
    assert weights.label_prior is not None
    assert sum(map(math.exp, weights.label_prior)) == pytest.approx(1, abs=1e-3)
    return replace(weights, label_prior=None)


# --- The command ------------------------------------------------------------------------------------------------------

# «кит» is ten times as rare as «кот», 2.3 nats. It sounds e^1.4 times as likely where both are spoken, so
# the model must weigh more than 0.5.
ARPA = """\\data\\
ngram 1=6

\\1-grams:
-99 <s>
-1 </s>
-3 <unk>
-0.5 кот
-1.5 кит
-0.5 мой

\\end\\
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "tones.ckpt"
    save_weights(ToneReader(stride=4), path)
    return str(path)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lm.arpa").write_text(ARPA, encoding="utf-8")
    Path("folder").mkdir()
    Path("hot.txt").write_text("кот", encoding="utf-8")
    rows = []
    for number, (sound, text) in enumerate([(unsure("мой кит", "мой кот"), "Мой кот!"), (speak("кит"), "кит")]):
        soundfile.write(f"{number}.wav", sound, SAMPLE_RATE, subtype="FLOAT")
        rows.append({"audio_filepath": f"{number}.wav", "text": text, "duration": len(sound) / SAMPLE_RATE})
    write_manifest(Path("val.jsonl"), rows)
    write_manifest(Path("lost.jsonl"), [rows[0], rows[1] | {"audio_filepath": "lost.wav"}])


def tune(model: str, *arguments: str) -> int:
    return main(["lm", "tune", "--model", model, *arguments])


def test_what_it_finds_is_used_afterwards(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transcribe = ["transcribe", "--model", model, "0.wav", "--lm", "lm.arpa"]
    assert main(transcribe) == 0
    assert capsys.readouterr().out == "мой кит\n"

    weighed: list[Weights] = []
    weighing = BeamSearch.weighing

    def noting(self: BeamSearch, weights: Weights) -> BeamSearch:
        weighed.append(weights)
        return weighing(self, weights)

    monkeypatch.setattr(BeamSearch, "weighing", noting)
    assert tune(model, "--manifest", "val.jsonl", "--lm", "lm.arpa") == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    # One word of three and one letter of ten are wrong with the default weights, as without a language model.
    assert cells == [
        ["greedy", "33.33", "10.00", "", "", "", "", "", ""],
        ["before", "33.33", "10.00", "0.5", "0.5", "0", "0.5", "1", "0"],
        ["tuned", "0.00", "0.00", "0.9", "0.5", "0", "0.5", "1", "0"],
    ]
    assert printed.splitlines()[-1] == "weights: lm.arpa.json"
    searched = weighed[:-1]  # the last is for the description
    assert len(set(searched)) == len(searched)
    assert without_prior(searched[0]) == Weights()

    about = json.loads(Path("lm.arpa.json").read_text(encoding="utf-8"))
    assert {name: about[name] for name in NUMBERS} == {name: getattr(Weights(0.9), name) for name in NUMBERS}
    assert (about["wer"], about["wer_greedy"], about["utterances"]) == (0, pytest.approx(1 / 3), 2)
    assert about["kvarts_version"] == __version__
    assert about["command"] == f"kvarts lm tune --model {model} --manifest val.jsonl --lm lm.arpa"
    found = BeamSearch(language_model=read_arpa(Path("lm.arpa")), weights=Weights(0.9))
    assert about["search"] == found.description

    assert without_prior(read_weights(Path("lm.arpa"))) == Weights(0.9)
    assert main(transcribe) == 0
    assert capsys.readouterr().out == "мой кот\n"
    assert main([*transcribe, "--lm-weight", "0.5"]) == 0
    assert capsys.readouterr().out == "мой кит\n"


@pytest.mark.parametrize("content", [json.dumps(asdict(Weights(3, 3, -3, 3))), '{"lm_weight": 3}', "", "{"])
def test_what_was_found_before_is_no_start(content: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """So the table says what tuning gains, tuning twice gives the same, and what is damaged is mended by it."""
    Path("lm.arpa.json").write_text(content, encoding="utf-8")
    assert tune(model, "--manifest", "val.jsonl", "--lm", "lm.arpa") == 0
    assert "│ before │ 33.33 │" in " ".join(capsys.readouterr().out.split())
    assert without_prior(read_weights(Path("lm.arpa"))) == Weights(0.9)


def test_other_options_and_another_place(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--hotwords", "hot.txt", "--beam", "20", "--closed", "-o", "new/weights.json"]
    assert tune(model, "--manifest", "val.jsonl", "--lm", "lm.arpa", *options) == 0
    assert "weights: new/weights.json" in capsys.readouterr().out
    about = json.loads(Path("new/weights.json").read_text(encoding="utf-8"))
    found = BeamSearch(
        language_model=read_arpa(Path("lm.arpa")), hotwords=read_hotwords(Path("hot.txt")), beam=20, is_closed=True
    )
    assert about["search"] == found.description
    # The hot word alone puts it right.
    assert {name: about[name] for name in NUMBERS} == {name: getattr(Weights(), name) for name in NUMBERS}
    assert not Path("lm.arpa.json").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--manifest val.jsonl", "--lm: name the language model whose weights are wanted"),
        ("--manifest val.jsonl --hotwords hot.txt", "--lm: name the language model"),
        *[
            (f"--manifest val.jsonl --lm lm.arpa {weight}=0", f"{weight} is what is to be found: leave it out")
            for weight in [f"--{name.replace('_', '-')}" for name in NUMBERS]
        ],
        ("--manifest val.jsonl --lm lm.arpa --hotword-weight 3", "--hotword-weight goes with --hotwords"),
        ("--manifest val.jsonl --lm none.arpa", "none.arpa"),
        ("--manifest none.jsonl --lm lm.arpa", "none.jsonl: no such manifest"),
        ("--manifest lost.jsonl --lm lm.arpa", "lost.jsonl:2: "),
        ("--manifest val.jsonl --lm lm.arpa --beam 0", "beam 0"),
        ("--manifest val.jsonl --lm lm.arpa -o folder", "folder: is a folder; name a file in it"),
        ("--manifest val.jsonl --lm lm.arpa -o .", ".: is a folder; name a file in it"),
        ("--manifest val.jsonl --lm lm.arpa --model none.ckpt", "none.ckpt"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(Path().rglob("*"))
    assert tune(model, *line.split()) == 2
    printed, errors = capsys.readouterr()
    assert (printed, errors.count("\n")) == ("", 1)
    assert errors.startswith("kvarts: error: ")
    assert message in errors
    assert set(Path().rglob("*")) == before


def test_a_place_that_cannot_be_written_is_told(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(model, "--manifest", "val.jsonl", "--lm", "lm.arpa", "-o", "hot.txt/weights.json") == 2
    printed, errors = capsys.readouterr()
    assert "tuned" in printed  # the work is not lost
    assert "hot.txt/weights.json: could not be written" in errors
    assert errors.count("\n") == 1
