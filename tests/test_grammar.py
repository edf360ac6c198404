"""Command grammars: the reader against written-out meanings, the search against all phrases scored one by one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvarts import cli, grammar_check, grammar_search
from kvarts import grammar as grammar_module
from kvarts.alphabet import ALPHABET, BLANK_ID, NUM_CLASSES, encode
from kvarts.errors import ConfigError, GrammarError
from kvarts.grammar import Grammar, Meaning
from kvarts.grammar_check import compared_phrases, sound, sound_alikes
from kvarts.grammar_metrics import Outcome, confusions, outcome, render_table, score, threshold
from kvarts.grammar_search import Command, GrammarSearch

LIGHT = """
# a comment
[light_on]   # and another
(включи | зажги) [пожалуйста] свет {room}
Свет {room} включить!

[timer]
поставь таймер на {number} (минуту | минуты | минут)

{room}:
kitchen: на кухне | в кухню
bedroom: в спальне
{digit}:
1: одну
2: две
{number}:
{digit}
20: двадцать
2{digit}: двадцать {digit}
"""

PHRASES = {
    **{
        f"{verb}{please} свет {form}": Meaning("light_on", {"room": room})
        for verb in ("включи", "зажги")
        for please in ("", " пожалуйста")
        for form, room in (("на кухне", "kitchen"), ("в кухню", "kitchen"), ("в спальне", "bedroom"))
    },
    **{
        f"свет {form} включить": Meaning("light_on", {"room": room})
        for form, room in (("на кухне", "kitchen"), ("в кухню", "kitchen"), ("в спальне", "bedroom"))
    },
    **{
        f"поставь таймер на {said} {minutes}": Meaning("timer", {"number": number})
        for said, number in (
            *(("одну", "1"), ("две", "2"), ("двадцать", "20")),
            *(("двадцать одну", "21"), ("двадцать две", "22")),
        )
        for minutes in ("минуту", "минуты", "минут")
    },
}


# ---------------------------------------------------------------------------------------------------------- reading


def test_phrases_and_their_meanings() -> None:
    grammar = Grammar(LIGHT)
    assert grammar.intents == ("light_on", "timer")
    assert sorted(grammar.phrases()) == sorted(PHRASES)
    assert grammar.num_phrases == len(PHRASES)
    assert {text: grammar.parse(text) for text in grammar.phrases()} == PHRASES
    lengths = [len(text.replace(" ", "")) for text in PHRASES]
    assert (grammar.shortest, grammar.longest) == (min(lengths), max(lengths))
    assert grammar.warnings == []


@pytest.mark.parametrize("text", ["", "свет", "включи свет", "включи свет на кухне сейчас", "свет на кухне на кухне"])
def test_other_texts_mean_nothing(text: str) -> None:
    assert Grammar(LIGHT).parse(text) is None


def test_texts_are_normalised_on_both_sides() -> None:
    grammar = Grammar("[a]\nЁлка, пол-часа — ещё!\n")
    assert list(grammar.phrases()) == ["елка пол часа еще"]
    assert grammar.parse("елка ПОЛ ЧАСА, ещё") == Meaning("a", {})


def test_two_slots_of_a_kind_and_default_values() -> None:
    grammar = Grammar("[go]\nиз {from=city} в {to=city}\n{city}:\nТула | (старая [добрая]) рязань\nmsk: москва\n")
    assert grammar.parse("из тула в старая рязань") == Meaning("go", {"from": "тула", "to": "старая рязань"})
    assert grammar.parse("из москва в старая добрая рязань") == Meaning(
        "go", {"from": "msk", "to": "старая добрая рязань"}
    )


def test_words_that_may_be_left_out_at_the_beginning() -> None:
    grammar = Grammar("[a]\n[ну [и]] [да] {x} [нет]\n{x}:\n1: [а] б\n")
    texts = [
        " ".join(filter(None, (start, yes, a, "б", no)))
        for start in ("", "ну", "ну и")
        for yes in ("", "да")
        for a in ("", "а")
        for no in ("", "нет")
    ]
    assert sorted(grammar.phrases()) == sorted(texts)
    assert {grammar.parse(text) == Meaning("a", {"x": "1"}) for text in texts} == {True}


def test_of_several_meanings_the_first_counts() -> None:
    grammar = Grammar("[b]\nда {x}\n[a]\nда нет\n{x}:\n2: нет\n1: нет\n")
    assert grammar.meanings("да нет") == [Meaning("b", {"x": "2"}), Meaning("b", {"x": "1"}), Meaning("a", {})]
    assert grammar.parse("да нет") == Meaning("b", {"x": "2"})
    assert grammar.num_phrases == 1


def test_a_value_of_a_slot_that_was_left_out_is_empty() -> None:
    grammar = Grammar("[a]\n{n}\n{n}:\n2{d}: двадцать [{d}]\n{d}:\n1: один\n")
    assert grammar.parse("двадцать") == Meaning("a", {"n": "2"})
    assert grammar.parse("двадцать один") == Meaning("a", {"n": "21"})


def test_a_slot_at_the_end_is_shared_by_all_phrases() -> None:
    names = "{name}:\n" + "\n".join(a + b + c for a in "бвгд" for b in "аоу" for c in "клмн")
    one, two = (
        Grammar("\n".join(f"[{word}]\n{word} {{name}}" for word in words) + "\n" + names)
        for words in (("да",), ("да", "нет"))
    )
    assert len(two.graph.labels) == len(one.graph.labels) + len("нет")
    assert two.parse("нет бак") == Meaning("нет", {"name": "бак"})


def test_samples_are_phrases_and_all_of_them_come() -> None:
    grammar = Grammar(LIGHT)
    drawn = grammar.sample(2000, seed=1)
    assert set(drawn) == set(PHRASES)
    counts = np.unique(drawn, return_counts=True)[1]
    assert counts.max() < 2.5 * counts.min()  # the same probability: about 67 each
    assert grammar.sample(5, seed=2) == grammar.sample(5, seed=2) != grammar.sample(5, seed=3)


BROKEN = [
    ("", "no intent"),
    ("# nothing\n", "no intent"),
    ("да\nнет\n", ":1: a phrase before any intent"),
    ("{x}:\nда\n", "no intent"),
    ("[a]\n[b]\nда\n", ":1: intent 'a' has no phrases"),
    ("[a]\n{x}\n{x}:\n", ":3: slot 'x' has no forms"),
    ("[a]\nда\n[a]\nнет\n", ":3: intent 'a' a second time, first in line 1"),
    ("[a]\n{x}\n{x}:\nда\n{x}:\nнет\n", ":5: slot 'x' a second time, first in line 3"),
    ("[a]\nвключи {x}\n", ":2: unknown slot 'x'"),
    ("[a]\n{x}\n{x}:\nда {y}\n{y}:\nнет {x}\n", ":6: a slot leads to itself: x → y → x"),
    ("[a]\nда\n{x}:\n{x} да\n", ":4: a slot leads to itself: x → x"),
    ("[a]\n[да] [нет]\n", ":2: all of it may be left out"),
    ("[a]\n[да | нет]\n", ":2: all of it may be left out"),
    ("[a]\n—\n", ":2: all of it may be left out|:2: nothing is said"),
    ("[a]\nда {x}\n{x}:\nв: [нет]\n", ":4: all of it may be left out"),
    ("[a]\nда ()\n", ":2: nothing is said here"),
    ("[a]\nда | \n", ":2: nothing is said here"),
    ("[a]\nx {x}\n{x}:\nkitchen:\n", ":4: nothing is said here"),
    ("[a]\nда {x}\n{x}:\n: нет\n", ":4: no value before the colon"),
    ("[a]\nk: да\n", ":2: a value in an intent"),
    ("[a]\n(да\n", r":2: a '\(' without its partner"),
    ("[a]\n[да\n", r":2: a '\[' without its partner"),
    ("[a]\nда)\n", r":2: a '\)' without its partner"),
    ("[a]\n(да]\n", r":2: a '\]' without its partner"),
    ("[a]\nда {x\n", r":2: '\{' is no slot"),
    ("[a]\nда x}\n", r":2: '[x}]*' (is no slot|has letters)"),
    ("[a]\nда {x y}\n", r":2: '\{x y\}' is no slot"),
    ("[a]\nда {}\n", r":2: '\{\}' is no slot"),
    ("[a]\nplay 2\n", ":2: 'play' has letters outside the alphabet: 'play'"),
    ("[a]\nдве 2\n", ":2: '2' has letters outside the alphabet: '2'"),
    ("[a]\nда@gent\n", ":2: '@' in 'да@gent'"),
    ("[a]\n{x} и {x}\n{x}:\nда\n", ":2: slot 'x' twice"),
    ("[a]\n{x}\n{x}:\n1{y}: да\n{y}:\nда\n", r":4: the value needs \{y\}"),
    ("[a]\n{x@quux}\n{x}:\nда\n", ":2: 'quux' is no case"),
    ("[a]\n{x@gent.gent}\n{x}:\nда\n", ":2: 'gent.gent' is no case"),
    ("[a]\n" + "(" * 11 + "да" + ")" * 11 + "\n", ":2: more than 10 brackets"),
    ("[a]\n" + "да " * 101 + "\n", ":2: up to 101 words"),
    ("[a]\n{x0}\n" + "".join(f"{{x{i}}}:\n{{x{i + 1}}}\n" for i in range(12)) + "{x12}:\nда\n", "more than 10 slots"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_every_mistake_has_its_message(text: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message) as raised:
        Grammar(text, "my.grammar")
    assert str(raised.value).startswith("my.grammar:")


def test_all_bad_lines_are_named() -> None:
    with pytest.raises(GrammarError) as raised:
        Grammar("[a]\nда 1\nда\nнет 2\n{x}:\n3\n", "g")
    assert [line[:4] for line in str(raised.value).splitlines()[1:]] == ["g:2:", "g:4:", "g:6:"]


def test_a_grammar_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[a]\n{x} раз\n{x}:\n" + "\n".join(a + b for a in "бвгд" for b in "аоу")
    size = len(Grammar(text).graph.labels)
    monkeypatch.setattr(grammar_module, "MAX_STATES", size)
    Grammar(text)
    monkeypatch.setattr(grammar_module, "MAX_STATES", size - 1)
    with pytest.raises(GrammarError, match="too large"):
        Grammar(text)


def test_a_grammar_that_explodes_is_refused_before_its_graph_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "MAX_STATES", 1000)
    monkeypatch.setattr(grammar_module, "_letter_graph", None)
    words = " | ".join(a + b for a in "бвгджзклмн" for b in "аоуие")
    # Each phrase ends with a word of its own, so what comes before it cannot be shared.
    text = "[a]\n" + "\n".join(f"{{x}} {{y=x}} {end}" for end in words.split(" | ")) + f"\n{{x}}:\n{words}\n"
    with pytest.raises(GrammarError, match="too large"):
        Grammar(text)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "light.grammar"
    path.write_bytes(b"\xef\xbb\xbf" + LIGHT.replace("\n", "\r\n").encode())
    assert sorted(Grammar.load(path).phrases()) == sorted(PHRASES)
    path.write_bytes("[a]\nда".encode("cp1251"))
    with pytest.raises(GrammarError, match=r"light\.grammar: not UTF-8 \(byte 5\)"):
        Grammar.load(path)
    for missing in (tmp_path / "none", tmp_path, tmp_path / "zero\0byte"):
        with pytest.raises(GrammarError, match="could not be read"):
            Grammar.load(missing)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(list("[](){}|:=@#.\n\n\n абвx1\u0301\x00\u2028")), max_size=60))
def test_no_text_is_a_traceback(text: str) -> None:
    try:
        grammar = Grammar("[a]\n" + text)
    except (GrammarError, ConfigError):
        return
    for phrase in grammar.sample(5):
        assert grammar.parse(phrase) is not None


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(max_codepoint=0x500), max_size=80))
def test_no_other_text_is_either(text: str) -> None:
    with suppress(GrammarError):
        Grammar(text)


# ------------------------------------------------------------------------------------------------------- inflection


def test_cases() -> None:
    pytest.importorskip("pymorphy3")
    grammar = Grammar(
        "[taxi]\nиз {from=city@gent} в {to=city@accs}\n[many]\nмного {thing@gent.plur}\n[walk]\nв {place@loct}\n"
        "[meet]\nпозови {who@accs}\n[park]\nвстретимся в {park@loc2}\n"
        "{city}:\nМосква | Нижний Новгород | Ростов-на-Дону\npiter: Санкт-Петербург\n"
        "{place}:\n{city}\nhome: большой дом\n{who}:\nстарый друг\n{park}:\nсад | школа\n"
        "{thing}:\nбелая чашка | стол\n"
    )
    assert grammar.warnings == []
    for text, meaning in {
        "из москвы в нижний новгород": Meaning("taxi", {"from": "москва", "to": "нижний новгород"}),
        "из нижнего новгорода в москву": Meaning("taxi", {"from": "нижний новгород", "to": "москва"}),
        "из ростова на дону в санкт петербург": Meaning("taxi", {"from": "ростов на дону", "to": "piter"}),
        "много белых чашек": Meaning("many", {"thing": "белая чашка"}),
        "в большом доме": Meaning("walk", {"place": "home"}),
        "в санкт петербурге": Meaning("walk", {"place": "piter"}),
        "позови старого друга": Meaning("meet", {"who": "старый друг"}),
        "встретимся в саду": Meaning("park", {"park": "сад"}),
        "встретимся в школе": Meaning("park", {"park": "школа"}),
    }.items():
        assert grammar.parse(text) == meaning
    assert grammar.parse("из москва в москву") is None
    assert grammar.num_phrases == 4 * 4 + 2 + 5 + 1 + 2


def test_what_cannot_be_inflected() -> None:
    pytest.importorskip("pymorphy3")
    for form in ("вчера", "на кухне", "бежать"):
        with pytest.raises(GrammarError, match=r"g:4: '\w+' cannot be put in 'gent'"):
            Grammar(f"[a]\nдо {{x@gent}}\n{{x}}:\n{form}\n", "g")
    with pytest.raises(GrammarError, match="in 'gent' only plain words or one slot"):
        Grammar("[a]\nдо {x@gent}\n{x}:\n(большой | малый) зал\n", "g")
    with pytest.raises(GrammarError, match="g:4: 'Москва' cannot be put in"):
        Grammar("[a]\nдо {x@gent.plur}\n{x}:\nМосква\n", "g")
    [warning] = Grammar("[a]\nдо {x@gent}\n{x}:\nбурбулька\n", "g").warnings
    assert warning.startswith("g:4: 'бурбулька' is in no dictionary")


def test_without_pymorphy3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymorphy3", None)
    grammar_module._analyser.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'kvarts\[morphology\]'"):
        Grammar("[a]\nдо {x@gent}\n{x}:\nдом\n")
    Grammar("[a]\nдо {x}\n{x}:\nдома\n")


# ----------------------------------------------------------------------------------------------------------- search

SMALL = """
[a]
аа [б] | ба аб
[b]
б {x} | {x}
{x}:
1: б а | аб
2: а б а
"""
EVERY = [
    *("аа", "аа б", "ба аб"),
    *(f"{start}{x}" for start in ("", "б ") for x in ("б а", "аб", "а б а")),
]

@pytest.fixture
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        if grammar_search._library() is None:
            pytest.skip("no C compiler")
    else:
        monkeypatch.setattr(grammar_search, "_library", lambda: None)
    return bool(request.param)


both = pytest.mark.parametrize("compiled", [True, False], indirect=True, ids=["C", "NumPy"])


def random_sound(frames: int, seed: int, spread: float = 3.0) -> NDArray[np.float32]:
    """Log-probabilities in which only few labels are likely, so that phrases come into question."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(frames, NUM_CLASSES)) * spread
    scores[:, 3:BLANK_ID] -= 10
    return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)


def best_of_text(log_probs: NDArray[np.float32], text: str, space_penalty: float) -> float:
    """The definition: every frame is read by one symbol of the text, in their order; by dynamic programming over pairs.

    Symbols are letters, blanks, and gaps; a gap begins with a space, or with a blank that costs, and goes on with any
    of both. Before and behind the text stands a gap that costs nothing.
    """
    losses = (log_probs - log_probs.max(axis=1, keepdims=True)).astype(float)
    blank, space = losses[:, BLANK_ID], losses[:, 0]
    either = np.maximum(blank, space)
    # (reader of its first frame, reader of further frames, may it be left out)
    symbols: list[tuple[NDArray[np.float64], NDArray[np.float64], bool]] = [(either, either, True)]
    previous = ""
    for letter in text:
        if letter == " ":
            symbols.append((blank, blank, True))
            symbols.append((np.maximum(space, blank - space_penalty), either, False))
        else:
            if previous and previous != " ":
                symbols.append((blank, blank, letter != previous))
            of_letter = losses[:, ALPHABET.index(letter)]
            symbols.append((of_letter, of_letter, False))
        previous = letter
    symbols.append((either, either, True))
    best = {-1: 0.0}  # by the last symbol used
    for frame in range(len(losses)):
        after: dict[int, float] = {}
        for last, total in best.items():
            if last >= 0:
                after[last] = max(after.get(last, -math.inf), total + symbols[last][1][frame])
            for following in range(last + 1, len(symbols)):
                after[following] = max(after.get(following, -math.inf), total + symbols[following][0][frame])
                if not symbols[following][2]:
                    break
        best = after
    least = max(place for place, symbol in enumerate(symbols) if not symbol[2])
    return max((total for last, total in best.items() if last >= least), default=-math.inf)


def test_the_oracle_reads_what_is_written() -> None:
    log_probs = np.full((5, NUM_CLASSES), -10, np.float32)
    log_probs[range(5), [1, BLANK_ID, 1, 0, 2]] = -1  # а, blank, а, space, б
    assert best_of_text(log_probs, "аа б", 2.0) == 0
    assert best_of_text(log_probs, "а б", 2.0) == -9
    assert best_of_text(log_probs, "аа", 2.0) == -9
    log_probs[3] = log_probs[1]  # the space left out
    assert best_of_text(log_probs, "аа б", 2.0) == -2


@both
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.integers(1, 14), seed=st.integers(0, 2**32 - 1), penalty=st.sampled_from([0.0, 0.7, 3.0, math.inf]))
def test_the_best_of_all_phrases_is_found(compiled: bool, frames: int, seed: int, penalty: float) -> None:
    grammar = Grammar(SMALL)
    assert sorted(grammar.phrases()) == sorted(EVERY)
    log_probs = random_sound(frames, seed)
    scores = {text: best_of_text(log_probs, text, penalty) for text in EVERY}
    best = max(scores.values())
    command = GrammarSearch(grammar, space_penalty=penalty).best(log_probs)
    if best == -math.inf:
        assert (command.intent, command.text, command.score) == (None, "", -math.inf)
    else:
        letters = len(command.text.replace(" ", ""))
        assert command.score == pytest.approx(best / letters, abs=1e-4)
        assert scores[command.text] == pytest.approx(best, abs=1e-4)
        assert grammar.parse(command.text) == Meaning(command.intent or "", command.slots)
        assert [word.text for word in command.words] == command.text.split()


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(0, 40), seed=st.integers(0, 2**32 - 1), rounded=st.booleans())
def test_c_and_numpy_agree_to_the_bit(frames: int, seed: int, rounded: bool) -> None:
    if grammar_search._library() is None:
        pytest.skip("no C compiler")
    log_probs = random_sound(frames, seed)
    if rounded:  # many ties
        log_probs = np.maximum(np.round(log_probs / 4), -2)
    for text in (SMALL, LIGHT):
        search = GrammarSearch(Grammar(text))
        graph = search.grammar.graph
        by_c = grammar_search._best_path(graph, log_probs, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grammar_search, "_library", lambda: None)
            assert grammar_search._best_path(graph, log_probs, 1.0) == by_c


def said(labels: list[int | str], other: float = -9.0) -> NDArray[np.float32]:
    """Sound in which every frame has one clear label, given by letter or number."""
    ids = [label if isinstance(label, int) else ALPHABET.index(label) for label in labels]
    log_probs = np.full((len(ids), NUM_CLASSES), other, np.float32)
    log_probs[range(len(ids)), ids] = -0.1
    return log_probs


_ = BLANK_ID


@both
def test_frames_of_the_words(compiled: bool) -> None:
    search = GrammarSearch(Grammar("[no]\nда нет\n[yes]\nда да\n"))
    command = search.search(said([_, " ", "д", "д", _, "а", " ", _, " ", "н", "е", "е", _, "т", "т", _, " "]))
    assert (command.intent, command.text, command.score) == ("no", "да нет", 0)
    assert [(word.text, word.start, word.stop) for word in command.words] == [("да", 2, 6), ("нет", 9, 15)]
    assert [word.confidence for word in command.words] == pytest.approx([math.exp(-0.1)] * 2)
    assert command.confidence == 1
    assert search(said(["д", "а", " ", "д", "а"])) == list(search.search(said(["д", "а", " ", "д", "а"])).words)


@both
def test_a_word_s_confidence_is_of_its_letters_best_frames(compiled: bool) -> None:
    log_probs = said(["д", "д", "а"])
    log_probs[range(3), encode("дда")] = np.log([0.8, 0.5, 0.2])
    [word] = GrammarSearch(Grammar("[yes]\nда\n")).best(log_probs).words
    assert word.confidence == pytest.approx((0.8 * 0.2) ** 0.5)


@both
def test_a_missing_space_costs(compiled: bool) -> None:
    grammar = Grammar("[a]\nда нет\n")
    sound_of = said(["д", "а", _, "н", "е", "т"])
    assert GrammarSearch(grammar, space_penalty=1.0).best(sound_of).score == pytest.approx(-1.0 / 5)
    assert GrammarSearch(grammar, space_penalty=99.0).best(sound_of).score == pytest.approx(-8.9 / 5)
    together = said(["д", "а", "н", "е", "т"])  # not even a blank: a frame has to be given up for one
    assert GrammarSearch(grammar, space_penalty=1.0, unknown_penalty=math.inf).best(together).text == ""


@both
def test_something_else_is_unknown(compiled: bool) -> None:
    grammar = Grammar(LIGHT)
    search = GrammarSearch(grammar, unknown_penalty=1.0)
    other = said([_, _, *"что ты там говориш", _, _] + [_] * 10)
    command = search.search(other)
    assert (command.intent, command.text) == (None, "[unk]")
    assert [(word.text, word.start, word.stop) for word in command.words] == [("[unk]", 2, 20)]
    assert command.score == search.best(other).score < -1
    assert GrammarSearch(grammar, unknown_penalty=math.inf).search(other).intent is not None
    # The threshold itself still passes.
    assert GrammarSearch(grammar, unknown_penalty=-command.score).search(other).intent is not None


@both
@pytest.mark.parametrize("frames", [0, 1, 2, 60])
def test_silence_is_no_command(compiled: bool, frames: int) -> None:
    command = GrammarSearch(Grammar("[stop]\nстоп\n")).search(said([_] * frames))
    assert (command.intent, command.text, command.words) == (None, "", ())
    assert command.confidence < 0.01
    assert (command.score == -math.inf) == (frames < 4)


def test_a_description_says_what_scores_depend_on() -> None:
    def described(text: str, name: str = "a", **options: float) -> str:
        return GrammarSearch(Grammar(text, name), **options).description

    yes = described("[yes]\nда\n")
    # Neither where the file lies, nor from which score on a command is accepted.
    assert described("[yes]\nда\n", "b", unknown_penalty=3.0) == yes
    others = {described("[no]\nда\n"), described("[yes]\nдай\n"), described("[yes]\nда\n", space_penalty=1.0)}
    assert len({yes, *others}) == 4


def test_refuses_shapes_and_penalties() -> None:
    grammar = Grammar("[a]\nда\n")
    for shape in ((5, 33), (5,), (1, 5, 34)):
        with pytest.raises(ValueError, match="log_probs must be"):
            GrammarSearch(grammar).search(np.zeros(shape, np.float32))
    for penalty in (-1.0, math.nan):
        with pytest.raises(ConfigError, match="space_penalty"):
            GrammarSearch(grammar, space_penalty=penalty)
        with pytest.raises(ConfigError, match="unknown_penalty"):
            GrammarSearch(grammar, unknown_penalty=penalty)


@both
def test_many_threads_find_what_one_finds(compiled: bool) -> None:
    search = GrammarSearch(Grammar(LIGHT), unknown_penalty=math.inf)
    sounds = [random_sound(frames, frames) for frames in range(30, 60)]
    alone = [search.search(one) for one in sounds]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(search.search, sounds)) == alone


# ---------------------------------------------------------------------------------------------------------- metrics


GRAMMAR = Grammar(LIGHT)


def found(text: str, intent: str | None, value: float, seconds: float = 1.0, **slots: str) -> Outcome:
    return Outcome(text, seconds, GRAMMAR.parse(text), Command(intent, slots, "x", (), value, 0.5))


OUTCOMES = [
    found("включи свет на кухне", "light_on", -0.1, room="kitchen"),
    found("включи свет на кухне", "light_on", -0.2, room="bedroom"),
    found("включи свет в спальне", "timer", -0.3, room="bedroom"),
    found("зажги свет в спальне", "light_on", -0.9, room="bedroom"),
    found("свет в спальне включить", None, -math.inf),
    found("который час", "timer", -0.6, 900, number="1"),
    found("и так далее", "timer", -0.8, 900, number="1"),
    found("", None, -math.inf, 1800),
]


def test_rates() -> None:
    result = score(OUTCOMES, 0.7, name="x")
    assert (result.commands, result.exact, result.right_slots, result.right_intents, result.rejected) == (5, 1, 2, 2, 2)
    assert (result.exact_rate, result.slots_rate, result.intent_rate, result.rejected_rate) == (0.2, 0.4, 0.4, 0.4)
    assert (result.outside, result.false_accepts, result.false_accepts_per_hour) == (3, 1, 1.0)
    assert score(OUTCOMES, math.inf, name="x").false_accepts == 2
    assert score(OUTCOMES, math.inf, name="x").exact == 2
    nothing = score([], 1.0, name="x")
    assert nothing.exact_rate is None
    assert nothing.false_accepts_per_hour is None
    json.dumps(score(OUTCOMES, math.inf, name="x").as_json(), allow_nan=False)


def test_thresholds() -> None:
    assert threshold(OUTCOMES, 2) == math.inf
    assert threshold(OUTCOMES, 1.5) == pytest.approx(0.7)  # one may pass, at -0.6; the other, at -0.8, must not
    assert threshold(OUTCOMES, 0) == pytest.approx(0.45)  # between -0.6 and the command at -0.3
    assert threshold([found("другое", "timer", 0.0)], 0) == 0
    with pytest.raises(ValueError, match="outside"):
        threshold(OUTCOMES[:5], 1)


@given(st.lists(st.floats(-5, 0), min_size=1, max_size=12), st.integers(0, 12))
def test_a_threshold_keeps_its_promise(scores: list[float], wanted: int) -> None:
    outcomes = [found("другое", "timer", value, 3600 / len(scores)) for value in scores]
    passing = sum(value >= -threshold(outcomes, wanted) for value in scores)
    assert passing <= max(wanted, scores.count(0))


def test_confusions_and_outcomes() -> None:
    assert confusions(OUTCOMES, 0.7) == {
        ("включи свет на кухне", "x"): 1,
        ("включи свет в спальне", "x"): 1,
        ("зажги свет в спальне", "[unk]"): 1,
        ("свет в спальне включить", "[unk]"): 1,
    }
    search = GrammarSearch(Grammar("[yes]\nда\n"))
    one = outcome(search, "Да!", 1.5, said(["д", "а"]))
    assert one == Outcome("Да!", 1.5, Meaning("yes", {}), search.best(said(["д", "а"])))
    table = render_table([score(OUTCOMES, 0.7, name="set")])
    assert [column._cells[0] for column in table.columns][:6] == ["set", "20.00", "40.00", "40.00", "40.00", "5"]


# ------------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("first", "second"),
    [("сад", "сат"), ("вода", "вада"), ("мел", "мель"), ("рейс", "рейз"), ("купаться", "купаца"), ("лес", "лис")],
)
def test_letters_that_sound_alike(first: str, second: str) -> None:
    assert sound(first) == sound(second)
    assert sound("дом") != sound("том")


def test_sound_alikes_are_those_of_all_pairs() -> None:
    from rapidfuzz.distance import Levenshtein

    grammar = Grammar(
        "[on]\nвключи свет {x}\n[off]\nвыключи свет {x}\n[pond]\nгде пруд\n[rod]\nгде прут\n[same]\nгде пруды\n"
        "[far]\nсовсем другое\n{x}:\n1: на кухне | на кухню\n2: в ванне\n3: в ванну\n"
    )
    texts = compared_phrases(grammar)
    expected = {}
    for i, one in enumerate(texts):
        for other in texts[i + 1 :]:
            letters = Levenshtein.distance(one.replace(" ", ""), other.replace(" ", ""))
            sounds = Levenshtein.distance(sound(one), sound(other))
            apart = min(letters, sounds + 0.25 * max(0, letters - sounds))
            if grammar.parse(one) != grammar.parse(other) and apart <= 1:
                expected[one, other] = apart
    pairs = sound_alikes(grammar, texts, 1.0)
    assert sum(pair.number for pair in pairs) == len(expected)
    assert all(expected[pair.first, pair.second] == pair.distance for pair in pairs)
    assert (pairs[0].first, pairs[0].second, pairs[0].distance) == ("где пруд", "где прут", 0.25)
    assert max(pair.number for pair in pairs) == 4  # включи and выключи, for each form
    assert sound_alikes(grammar, texts, 0.2) == []


def run(*arguments: str | Path) -> int:
    return cli.main(["grammar", "check", *map(str, arguments)])


@pytest.fixture
def light(tmp_path: Path) -> Path:
    path = tmp_path / "light.grammar"
    path.write_text(LIGHT, encoding="utf-8")
    return path


def test_check(light: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(light) == 0
    assert capsys.readouterr().out == (
        f"{light}: 2 intents, {len(PHRASES)} phrases of 15 to 33 letters, {len(Grammar(LIGHT).graph.labels)} states\n"
    )
    light.write_text(LIGHT + "[off]\nвыключи свет {room}\n{unused}:\nда\n", encoding="utf-8")
    assert run(light) == 1
    text = capsys.readouterr().out
    assert f"warning: {light}:{light.read_text(encoding='utf-8').count(chr(10))}: slot 'unused' is not used" in text
    assert "«включи свет в кухню» light_on(room=kitchen), «выключи свет в кухню» off(room=kitchen)" in text
    assert run(light, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["phrases"], report["is_sample"], report["sound_alike"][0]["number"]) == (len(PHRASES) + 3, False, 3)
    assert run(light, "--distance", "0.5") == 1  # the slot that is not used
    assert "sounds alike" not in capsys.readouterr().out


def test_check_of_the_same_text_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g"
    path.write_text("[a]\nда\n[b]\nда\n", encoding="utf-8")
    assert run(path) == 1
    assert "«да» means a and b; the first counts" in capsys.readouterr().out


def test_check_of_a_large_grammar_says_that_it_drew(
    light: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grammar_check, "MOST_PHRASES", 10)
    assert run(light) == 0
    assert "drawn by chance" in capsys.readouterr().out


def test_check_of_what_is_wrong(tmp_path: Path, light: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none") == 2
    path = tmp_path / "g"
    path.write_text("[a]\nда {x}\n", encoding="utf-8")
    assert run(path) == 2
    assert capsys.readouterr().err.splitlines()[1].startswith(f"kvarts: error: {path}:2: unknown slot 'x'")
    for arguments in (["--model", "m"], ["--speak", "espeak-ng"], ["--distance", "2"], ["--distance", "x"]):
        with pytest.raises(SystemExit) as ended:
            run(light, *arguments)
        assert ended.value.code == 2


class _Deaf:
    """An engine that hears «нет» in everything."""

    name, stride = "deaf", 4

    def log_probs(self, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.stack([said(["н", "е", "т", *[_] * 22]) for _length in lengths])


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvarts.recogniser import Recognizer

    monkeypatch.setattr(Recognizer, "load", classmethod(lambda cls, path, **options: cls(_Deaf(), 1)))


def write_wave(path: Path) -> None:
    import soundfile

    soundfile.write(path, np.zeros(16000, np.float32), 16000)


@pytest.mark.usefixtures("deaf")
def test_check_with_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grammar, manifest = tmp_path / "g", tmp_path / "m.jsonl"
    grammar.write_text("[yes]\nконечно\n[no]\nнет\n", encoding="utf-8")
    write_wave(tmp_path / "a.wav")
    rows = [{"audio_filepath": "a.wav", "text": text, "duration": 1.0} for text in ("Конечно!", "нет", "что")]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run(grammar, "--model", "m", "--audio", manifest) == 1
    text = capsys.readouterr().out
    assert "heard: 2 utterances" in text
    assert "taken for another (1 times): «конечно» for «нет»" in text
    manifest.write_text(json.dumps(rows[2]) + "\n", encoding="utf-8")
    assert run(grammar, "--model", "m", "--audio", manifest) == 2
    assert "no text in it is a phrase" in capsys.readouterr().err


@pytest.mark.usefixtures("deaf")
def test_check_with_a_voice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grammar, program = tmp_path / "g", tmp_path / "bin" / "espeak-ng"
    grammar.write_text("[yes]\nконечно\n[no]\nнет\n", encoding="utf-8")
    monkeypatch.setenv("PATH", str(program.parent))
    assert run(grammar, "--model", "m", "--speak", "espeak-ng") == 2
    assert "apt install espeak-ng" in capsys.readouterr().err
    program.parent.mkdir()
    write_wave(tmp_path / "a.wav")
    program.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "-v ru -w" ] && /bin/cp "{tmp_path}/a.wav" "$4"\n', encoding="utf-8")
    program.chmod(0o755)
    assert run(grammar, "--model", "m", "--speak", "espeak-ng") == 1
    assert "heard: 2 utterances" in capsys.readouterr().out
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert run(grammar, "--model", "m", "--speak", "espeak-ng") == 2
    assert "espeak-ng failed" in capsys.readouterr().err


def test_the_search_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom kvarts.grammar_search import GrammarSearch\nfrom kvarts.grammar import Grammar\n"
        "Grammar('[a]\\nда\\n')\n"
        "assert not {'torch', 'rapidfuzz', 'pymorphy3', 'rich', 'scipy'} & sys.modules.keys()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
