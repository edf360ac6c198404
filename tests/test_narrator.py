"""The narrator's voice of `benchmarks/narrator.py`: nothing held out is in it; what he is given to say."""

import random
import shutil
from collections import Counter
from itertools import islice

import pytest
import soundfile

from narrator import VOICE, make_voice, parsed, spoken, utterances_of, without, written
from word_list import FLATTER, random_texts

CATALOGUE = """EST_File index
NumEntries 5
EST_Header_End
a_0 ru_0001 0.0 0.1 0.2
a_1 ru_0650 0.0 0.1 0.2
a_2 ru_0651 0.0 0.1 0.2
a_3 ru_0701 0.0 0.1 0.2
b_0 ru_0844 0.2 0.3 0.4
b_1 ru_0002 0.2 0.3 0.4
"""
# A leaf that keeps some, one that keeps none, and one where the other sound of the same number is held out.
TREES = """(set! clunits_selection_trees '
(("a" ((n.name is b) ((((0 1.5) (2 3.5)) 2.5)) ((((3 1.0)) 1.0)))) ; the right branch goes
("b" ((((0 1.0) (1 2.0)) 1.5)))))
"""


@pytest.fixture
def voice(tmp_path):
    source = tmp_path / "source"
    for folder in ("festival/clunits", "festival/trees", "wav", "mcep", "lab", "festvox"):
        (source / folder).mkdir(parents=True)
    (source / "festival/clunits/msu_ru_nsh.catalogue").write_text(CATALOGUE, encoding="utf-8")
    (source / "festival/trees/msu_ru_nsh.tree").write_text(TREES, encoding="utf-8")
    (source / "festvox/msu_ru_nsh_clunits.scm").write_text("()", encoding="utf-8")
    for number in (1, 650, 651, 701, 844):
        for name in (f"wav/ru_{number:04}.wav", f"mcep/ru_{number:04}.mcep", f"lab/ru_{number:04}.lab"):
            (source / name).write_bytes(b"x")
    make_voice(source, tmp_path / "made")
    return tmp_path / "made"


def test_nothing_held_out_is_in_the_voice(voice):
    files = sorted(path.relative_to(voice).as_posix() for path in voice.rglob("ru_*"))
    kinds = ("wav", "mcep", "lab")
    assert files == sorted(f"{kind}/ru_{number}.{kind}" for kind in kinds for number in ("0001", "0650"))
    [[_, variable, _, trees]] = parsed((voice / "festival/trees/msu_ru_nsh.tree").read_text(encoding="utf-8"))
    assert variable == "clunits_selection_trees"
    assert trees == [['"a"', [[[["0", "1.5"]], "2.5"]]], ['"b"', [[[["1", "2.0"]], "1.5"]]]]
    assert (voice / "festvox/msu_ru_nsh_clunits.scm").exists()


def test_a_tree_of_which_all_is_kept_stays_as_it_was():
    kept = parsed("((n.ph_cvox is +) ((((20 10.77) (85 8.5)) 9.1)) ((((7 1.0)) 1.0)))")[0]
    assert without(kept, "a", {"a_8", "b_7"}) == kept
    assert written(kept) == "((n.ph_cvox is +) ((((20 10.77) (85 8.5)) 9.1)) ((((7 1.0)) 1.0)))"


def test_what_he_says_is_the_seeds_and_known_letters_alone(tmp_path):
    text = tmp_path / "text.txt"
    sentences = [f"раз {'а' * number}" for number in range(1, 41)]
    text.write_text("\n".join([*sentences, "hello", "7 раз"]), encoding="utf-8")
    one, again, other = (utterances_of([(text, 30)], random.Random(seed)) for seed in (0, 0, 1))
    assert one == again != other
    assert sum(map(len, one)) == 30
    assert {len(utterance) for utterance in one} <= {1, 2, 3}
    everything = utterances_of([(text, 99)], random.Random(0))
    assert sorted(sentence for utterance in everything for sentence in utterance) == sorted(sentences)


FESTIVAL = """#!/bin/sh
mkdir -p "$(dirname "$2")/seen" && cp "$HOME/.festivalrc" "$2" "$(dirname "$2")/seen"
echo what was wrong >&2
exit {code}
"""


@pytest.mark.parametrize("code", [0, 255])
def test_festival_starts_with_the_voice_as_its_default_and_says_what_was_wrong(tmp_path, monkeypatch, code):
    (tmp_path / "festival").write_text(FESTIVAL.format(code=code), encoding="utf-8")
    (tmp_path / "festival").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if code:
        with pytest.raises(SystemExit, match="what was wrong"):
            list(spoken(tmp_path / "voice", [["мама", "мыла раму"]], tmp_path))
    else:
        assert not list(spoken(tmp_path / "voice", [["мама", "мыла раму"]], tmp_path))  # it has made no file
    location, default = (tmp_path / "seen/.festivalrc").read_text(encoding="utf-8").splitlines()
    assert f'"{tmp_path}/voice/"' in location
    assert default == "(set! voice_default 'voice_msu_ru_nsh_clunits)"
    guard, said = (tmp_path / "seen/batch.scm").read_text(encoding="utf-8").splitlines()
    assert f'(string-equal msu_ru_nsh::dir "{tmp_path}/voice/")' in guard
    assert '"мама, мыла раму"' in said


@pytest.mark.skipif(not (shutil.which("festival") and VOICE.is_dir()), reason="needs festival and festvox-ru of Debian")
def test_what_is_held_out_is_not_spoken_with_even_where_no_other_voice_is_installed(tmp_path):
    make_voice(VOICE, tmp_path / "voice")
    [(text, path)] = spoken(tmp_path / "voice", [["мама", "мыла раму"]], tmp_path)
    samples, rate = soundfile.read(path)
    assert (text, rate) == ("мама мыла раму", 16_000)
    assert 0.5 < len(samples) / rate < 3
    # without its sounds the voice is silent: so it is its own files that it speaks with, not those of the package
    shutil.rmtree(tmp_path / "voice/wav")
    path.unlink()
    assert not list(spoken(tmp_path / "voice", [["мама", "мыла раму"]], tmp_path))
    # a folder that is no voice, or whose files lead to another one, is an error
    (tmp_path / "led_away/festvox").mkdir(parents=True)
    lead = f'(set! msu_ru_nsh::dir "{VOICE}/")\n(load "{VOICE}/festvox/msu_ru_nsh_clunits.scm")\n'
    (tmp_path / "led_away/festvox/msu_ru_nsh_clunits.scm").write_text(lead, encoding="utf-8")
    for name in ("nowhere", "led_away"):
        with pytest.raises(SystemExit, match="festival: "):
            list(spoken(tmp_path / name, [["мама", "мыла раму"]], tmp_path))


def test_random_texts_hold_rare_words_more_often_than_speech_does():
    words = [("дом", 10_000), ("и", 10_000), ("б", 10_000), ("лес", 100)]
    texts = list(random_texts(words, 3000, seed=1))
    assert {len(text.split()) for text in texts} == set(range(3, 10))
    counts = Counter(" ".join(texts).split())
    assert set(counts) == {"дом", "и", "лес"}  # «б» is no word
    assert counts["дом"] / counts["лес"] == pytest.approx(100**FLATTER, rel=0.1)
    assert counts["дом"] / counts["и"] == pytest.approx(1, rel=0.1)
    assert list(islice(random_texts(words, 3000, seed=1), 5)) == texts[:5] != list(random_texts(words, 5, seed=2))
