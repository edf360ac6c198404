"""Hot words: the automaton earns what counting gives, and every mistake in a list has a name."""

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarts.alphabet import encode
from kvarts.errors import HotwordError
from kvarts.hotword_metrics import hotword_counts
from kvarts.hotwords import DEFAULT_WEIGHT, hotwords, read_hotwords

words = st.text("абв", min_size=1, max_size=3)
several = st.lists(words, min_size=1, max_size=3)
phrases = st.builds(lambda parts, ending: " ".join(parts) + ending, several, st.sampled_from(["", "*"]))


def counted(text, weights):
    """The sum of the weights of all phrases wherever they stand, word by word."""
    total = 0.0
    spoken = text.split()
    for phrase, weight in weights.items():
        wanted = phrase.rstrip("*").split()
        for at in range(len(spoken) - len(wanted) + 1):
            *whole, last = spoken[at : at + len(wanted)]
            fits = last.startswith(wanted[-1]) if phrase.endswith("*") else last == wanted[-1]
            total += weight * (whole == wanted[:-1] and fits)
    return total


def earned(text, automaton):
    state, total = 0, 0.0
    for label in encode(text + " "):
        if label == 0:
            total += automaton.reward[state]
        state = automaton.next[state, label]
    return total


@given(st.dictionaries(phrases, st.sampled_from([1.0, 2.0, 4.0]), min_size=1, max_size=6), st.lists(words, max_size=8))
def test_what_is_earned_is_what_counting_gives(weights, spoken):
    text = " ".join(spoken)
    assert earned(text, hotwords(weights)) == pytest.approx(counted(text, weights))


@given(st.dictionaries(phrases, st.floats(0.5, 9), min_size=1, max_size=5))
def test_a_promise_grows_with_every_letter_up_to_the_weight(weights):
    automaton = hotwords(weights)
    for phrase, weight in weights.items():
        spelt = phrase.rstrip("*")
        state = 0
        for place, label in enumerate(encode(spelt), start=1):
            state = automaton.next[state, label]
            assert automaton.promise[state] >= weight * place / len(spelt) * (1 - 1e-6)
    assert automaton.promise[0] == 0


def test_a_broken_promise_is_taken_back():
    automaton = hotwords({"кварц": 5.0})
    state = 0
    for label in encode("кварт"):
        state = automaton.next[state, label]
    assert automaton.promise[state] == automaton.reward[state] == 0
    for label in encode("ц кварц"):  # in the middle of a word nothing begins
        state = automaton.next[state, label]
        if label == encode("ц")[0]:
            break
    assert automaton.promise[state] == 0


def test_a_file_with_weights_phrases_and_remarks(tmp_path):
    path = tmp_path / "hot.txt"
    path.write_text("\ufeffКварц\n\n# люди\nАлёна Смирнова\t7.5\nсветл* 2  # и светлый\n", encoding="utf-8")
    assert read_hotwords(path).phrases == {"кварц": DEFAULT_WEIGHT, "алена смирнова": 7.5, "светл*": 2.0}
    assert read_hotwords(path, 3.0).phrases["кварц"] == 3.0
    assert read_hotwords(path).words() == {"кварц", "алена", "смирнова"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("кварц\nquartz\n", ":2: 'quartz' has characters outside the alphabet (quartz): spell it in Russian"),
        ("дом 5а", ":1: 'дом 5а' has characters outside the alphabet (5)"),
        ("кварц -3", ":1: weight '-3' must be a number above 0 and up to 100"),
        ("кварц 1.2.3", ":1: weight '1.2.3' must be"),
        ("кварц 1e9", "has characters outside"),
        ("кварц 1000", ":1: weight '1000' must be"),
        ("*", ":1: '*' has no letter: write a word"),
        ("!? 3", ":1: '!?' has no letter"),
        ("вкл* свет", ":1: 'вкл* свет': only the last word of a phrase may end in *"),
        ("", " has no hot word: write one a line"),
        ("# ничего\n\n", " has no hot word"),
    ],
)
def test_a_line_that_is_no_hot_word(tmp_path, text, expected):
    path = tmp_path / "hot.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(HotwordError) as caught:
        read_hotwords(path)
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(HotwordError, match=r"none\.txt cannot be read \(No such file"):
        read_hotwords(tmp_path / "none.txt")
    (tmp_path / "cp1251.txt").write_bytes("кварц".encode("cp1251"))
    with pytest.raises(HotwordError, match="is no UTF-8 text: save it as UTF-8"):
        read_hotwords(tmp_path / "cp1251.txt")
    with pytest.raises(HotwordError, match="there is no hot word"):
        hotwords([])
    with pytest.raises(HotwordError, match="weight nan must be"):
        hotwords({"кварц": float("nan")})


# --- What they gain and cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        # Two of three are found; «стол» for «столб» is the one error elsewhere.
        ("кварц и кварц у столба кварц", "кварц и кварц у стола шварц", (3, 2, 2, 0, (1, 0, 0, 3))),
        # One that was not spoken, in place of a word; another where nothing was said.
        ("мы молчали", "кварц молчали кварц", (0, 0, 2, 2, (1, 0, 1, 2))),
        # A phrase is found when all of it is.
        ("Включи свет, включи свет", "включи свет включи совет", (2, 1, 1, 0, (0, 0, 0, 0))),
        ("светлый день", "светлая тень", (1, 0, 1, 1, (1, 0, 0, 1))),
        ("", "кварц", (0, 0, 1, 1, (0, 0, 1, 0))),
        ("кварц", "", (1, 0, 0, 0, (0, 0, 0, 0))),
        ("", "", (0, 0, 0, 0, (0, 0, 0, 0))),
    ],
)
def test_counts_of_an_utterance(reference, hypothesis, expected):
    counts = hotword_counts(["кварц", "включи свет", "светл*"], reference, hypothesis)
    elsewhere = counts.elsewhere
    assert (counts.spoken, counts.found, counts.given, counts.false) == expected[:4]
    assert astuple(elsewhere) == expected[4]


def test_counts_add_up():
    one = hotword_counts(["кварц"], "кварц да", "кварц нет")
    two = hotword_counts(["кварц"], "кварц", "нет")
    assert (one + two).recall == 0.5
    assert (one + two).as_json() == {
        "spoken": 2, "found": 1, "recall": 0.5, "given": 1, "false": 0, "wer_elsewhere": 1.0,
    }  # fmt: skip
    assert hotword_counts(["кварц"], "да", "да").recall is None
