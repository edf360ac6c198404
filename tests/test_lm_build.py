"""``kvarts lm build``: from texts to an ARPA file, and what can be wrong with either."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvarts import cli
from kvarts.arpa import read_arpa
from kvarts.ngram import train

TEXT = "Да, нет!\n\n— Ещё не знаю…\nда нет\n"
SENTENCES = [["да", "нет"], ["еще", "не", "знаю"], ["да", "нет"]]


def arpa(path: Path) -> str:
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    """Runs the command in a folder that holds text.txt, and gives its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")

    def run(*arguments: str) -> SimpleNamespace:
        code = cli.main(["lm", "build", *arguments])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return run


@pytest.mark.parametrize("name", ["lm.arpa", "new/lm.arpa.gz"])
def test_a_text_becomes_a_model(build: Callable[..., SimpleNamespace], name: str) -> None:
    ended = build("text.txt", "-o", name)
    assert (ended.code, ended.err) == (0, "")
    model = train(SENTENCES, 3)
    assert arpa(Path(name)) == "".join(model.arpa())
    rows = [line.split() for line in ended.out.splitlines()]
    assert rows[:3] == [["sentences", "3"], ["words", "7"], ["vocabulary", "5"]]
    assert [row[:2] for row in rows[5:8]] == [["1", "8"], ["2", "7"], ["3", "5"]]
    assert rows[5][2:5] == ["0.500", "1.000", "1.500"]
    assert "too few n-grams" in ended.out
    assert rows[-1] == ["model:", name]


def test_settings(build: Callable[..., SimpleNamespace]) -> None:
    assert build("text.txt", "-o", "lm.arpa", "--order", "4", "--prune", "0", "1", "--min-count", "2").code == 0
    assert arpa(Path("lm.arpa")) == "".join(train(SENTENCES, 4, [0, 1], min_count=2).arpa())


def test_words_of_the_language(build: Callable[..., SimpleNamespace]) -> None:
    Path("words.txt").write_text("нет 20\nЁлка\t2\nелка 1\n\nдом\n", encoding="utf-8")
    ended = build("text.txt", "-o", "lm.arpa", "--words", "words.txt")
    assert (ended.code, ended.err) == (0, "")
    frequencies = {"нет": 20.0, "елка": 3.0, "дом": 1.0}
    assert arpa(Path("lm.arpa")) == "".join(train(SENTENCES, 3, frequencies=frequencies).arpa())
    assert ["vocabulary", "7"] in [line.split() for line in ended.out.splitlines()]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("дом много", "words.txt:2: 'дом много' is not a word and a number above 0"),
        ("дом 0", "words.txt:2: 'дом 0' is not a word and a number above 0"),
        ("дом 1 2", "is not a word and a number above 0"),
        ("house 3", "words.txt:2: 'house' is no Russian word; leave it out"),
        ("когда-нибудь 3", "words.txt:2: 'когда-нибудь' is no Russian word"),
    ],
)
def test_lists_of_words_that_are_none(build: Callable[..., SimpleNamespace], line: str, problem: str) -> None:
    Path("words.txt").write_text(f"да 5\n{line}\n", encoding="utf-8")
    ended = build("text.txt", "-o", "lm.arpa", "--words", "words.txt")
    assert ended.code == 2
    assert problem in ended.err
    assert not Path("lm.arpa").exists()


def test_an_empty_list_of_words(build: Callable[..., SimpleNamespace]) -> None:
    Path("words.txt").write_text("\n", encoding="utf-8")
    assert "there is no word in it" in build("text.txt", "-o", "lm.arpa", "--words", "words.txt").err
    assert "no such text" in build("text.txt", "-o", "lm.arpa", "--words", "none.txt").err


def test_several_texts_manifests_and_standard_input(
    build: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"audio_filepath": "not-there.wav", "text": "Ещё не знаю", "duration": 1.0}
    Path("m.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\ufeffда нет".encode())))
    Path("one.txt").write_bytes("да\u2028нет\r\n".encode())  # no end of a line but for \n
    ended = build("one.txt", "m.jsonl", "-", "-o", "lm.arpa")
    assert (ended.code, ended.err) == (0, "")
    assert arpa(Path("lm.arpa")) == "".join(train(SENTENCES, 3).arpa())


def test_foreign_lines_are_left_out_whole_and_named(build: Callable[..., SimpleNamespace]) -> None:
    Path("mixed.txt").write_text(TEXT + "дом 5\nhello да\n", encoding="utf-8")
    ended = build("mixed.txt", "-o", "lm.arpa")
    assert ended.code == 0
    assert ended.err == (
        "kvarts: warning: left out: 2 lines have characters that are no Russian letters: mixed.txt:5 (5), "
        "mixed.txt:6 (helo); write numbers as words to have them\n"
    )
    assert arpa(Path("lm.arpa")) == "".join(train(SENTENCES, 3).arpa())
    assert "left out               2" in ended.out
    Path("lm.arpa").write_text("old", encoding="utf-8")
    ended = build("mixed.txt", "-o", "lm.arpa", "--strict")
    assert ended.code == 2
    assert "kvarts: error: 2 lines have characters" in ended.err
    assert arpa(Path("lm.arpa")) == "old"
    Path("many.txt").write_text("да\n" + "7\n" * 20, encoding="utf-8")
    assert "20 lines have" in (said := build("many.txt", "-o", "lm.arpa").err)
    assert "many.txt:6 (7), …;" in said


def test_perplexity_of_held_out_text(build: Callable[..., SimpleNamespace]) -> None:
    Path("held.txt").write_text("да нет\nда кот\n9\n", encoding="utf-8")
    ended = build("text.txt", "-o", "lm.arpa", "--perplexity", "held.txt")
    expected = read_arpa(Path("lm.arpa")).perplexity([["да", "нет"], ["да", "кот"]])
    assert f"perplexity {expected.perplexity:.1f} of 4 words, of which 25.00 % are unknown\n" in ended.out
    assert f" {expected.perplexity_of_known:.1f} without the unknown ones\n" in ended.out
    assert "held.txt:3 (9)" in ended.err


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("", [], "t.txt: there is no word in it; give a text"),
        ("\n…\n", [], "t.txt: there is no word in it; give a text"),
        ("да 5\n", [], "t.txt: no line can be used; 1 line has characters that are no Russian letters: t.txt:1 (5)"),
        ("да нет\n", ["--min-count", "2"], "t.txt: no word is there 2 times; lower --min-count"),
        (b"\xe4\xe0\n", [], "t.txt:1: not UTF-8 (byte 1 of the line); save it as UTF-8"),
        ("да\nнет ".encode() + b"\xff\n", [], "t.txt:2: not UTF-8 (byte 8 of the line)"),
        ("да\n", ["none.txt"], "none.txt: no such text; check the path"),
        ("да\n", ["."], ".: is a folder; give the files inside it"),
        ("да\n", ["none.jsonl"], "none.jsonl: no such manifest"),
        ("да\n", ["--prune", "1"], "--prune: 1 for single words, which are never pruned; begin with 0"),
        ("да\n", ["--order", "2", "--prune", "0", "0", "0"], "--prune: 3 values for 2 orders"),
        ("да\n", ["--prune", "0", "2", "1"], "--prune: [2, 1] falls"),
        ("да\n", ["--perplexity", "none.txt"], "none.txt: no such text"),
        ("да\n", ["--perplexity", "/dev/null"], "/dev/null: no line can be used for --perplexity"),
        ("да\n", ["-o", "t.txt/lm.arpa"], "t.txt/lm.arpa: could not be written"),
    ],
)
def test_what_can_be_wrong(
    build: Callable[..., SimpleNamespace], text: str | bytes, arguments: list[str], said: str
) -> None:
    Path("t.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("lm.arpa").write_text("old", encoding="utf-8")
    ended = build("t.txt", *arguments, *([] if "-o" in arguments else ["-o", "lm.arpa"]))
    assert ended.code == 2
    assert ended.err.startswith(f"kvarts: error: {said}")
    assert ended.err.count("\n") == 1
    assert arpa(Path("lm.arpa")) == "old"
    assert not list(Path().glob(".*.tmp"))


def test_what_a_test_set_says_is_not_learnt(build: Callable[..., SimpleNamespace]) -> None:
    rows = [
        {"audio_filepath": "a.wav", "text": "Он пришёл домой, когда стемнело", "duration": 2.0},
        {"audio_filepath": "b.wav", "text": "да нет", "duration": 1.0},
    ]
    Path("test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [
        "и вот он пришел домой когда все спали",  # four words in a row
        "поздно пришел домой когда стемнело",  # the last four
        "он пришел домой поздно",  # three
        "Да, нет!",  # a whole text
        "да нет же",  # more than a text
    ]
    Path("text.txt").write_text("\n".join(lines), encoding="utf-8")
    ended = build("text.txt", "-o", "lm.arpa", "--without", "test.jsonl")
    assert (ended.code, ended.err) == (0, "")
    assert arpa(Path("lm.arpa")) == "".join(train([lines[2].split(), lines[4].split()], 3).arpa())
    assert ["held", "out", "3"] in [line.split() for line in ended.out.splitlines()]
    assert build("text.txt", "-o", "lm.arpa", "--without", "test.jsonl", "3").code == 0
    assert arpa(Path("lm.arpa")) == "".join(train([lines[4].split()], 3).arpa())
    # Each manifest by its own number.
    Path("other.jsonl").write_text(json.dumps({**rows[1], "text": "пришел домой поздно"}), encoding="utf-8")
    both = ("--without", "test.jsonl", "5", "--without", "other.jsonl", "2")
    assert build("text.txt", "-o", "lm.arpa", *both).code == 0
    assert arpa(Path("lm.arpa")) == "".join(train([lines[4].split()], 3).arpa())
    assert build("text.txt", "-o", "lm.arpa", *both[:3]).code == 0
    kept = [line.split() for line in (*lines[:3], lines[4])]
    assert arpa(Path("lm.arpa")) == "".join(train(kept, 3).arpa())


@pytest.mark.parametrize("values", [("test.jsonl", "0"), ("test.jsonl", "x"), ("test.jsonl", "4", "more.jsonl")])
def test_a_manifest_held_out_is_named_with_a_number(build: Callable[..., SimpleNamespace], values: list[str]) -> None:
    ended = build("text.txt", "-o", "lm.arpa", "--without", *values)
    assert (ended.code, "name one manifest and a number of words" in ended.err) == (2, True)


def test_a_text_that_is_all_held_out(build: Callable[..., SimpleNamespace]) -> None:
    row = {"audio_filepath": "a.wav", "text": "да", "duration": 1.0}
    Path("test.jsonl").write_text(json.dumps(row), encoding="utf-8")
    Path("text.txt").write_text("Да!\n", encoding="utf-8")
    ended = build("text.txt", "-o", "lm.arpa", "--without", "test.jsonl")
    assert (ended.code, "give more text" in ended.err, Path("lm.arpa").exists()) == (2, True, False)


def test_fewer_decimals_round_the_logarithms(build: Callable[..., SimpleNamespace]) -> None:
    assert build("text.txt", "-o", "whole.arpa").code == build("text.txt", "-o", "lm.arpa", "--decimals", "2").code == 0
    whole, rounded = (arpa(Path(name)).replace("\n", " ").split() for name in ("whole.arpa", "lm.arpa"))
    assert len(rounded) == len(whole)
    assert rounded != whole
    for before, after in zip(whole, rounded, strict=True):
        is_number = re.fullmatch(r"-?\d+\.\d{6}", before)
        assert after == (f"{float(before):.2f}" if is_number else before)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["text.txt"],
        ["-o", "lm.arpa"],
        ["text.txt", "-o", "lm.bin"],
        ["text.txt", "-o", "lm.arpa", "--order", "0"],
        ["text.txt", "-o", "lm.arpa", "--order", "10"],
        ["text.txt", "-o", "lm.arpa", "--prune", "-1"],
        ["text.txt", "-o", "lm.arpa", "--min-count", "x"],
        ["text.txt", "-o", "lm.arpa", "--decimals", "0"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lm", "build", *arguments])
    assert ended.value.code == 2
    assert "usage: kvarts lm build" in capsys.readouterr().err
