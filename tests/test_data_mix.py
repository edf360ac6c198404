"""``kvarts data mix``: what is heard how often, and who is not."""

import json
from collections import Counter

import pytest

from kvarts.cli import main
from kvarts.manifest import read_manifest, write_manifest


@pytest.fixture
def corpora(tmp_path):
    """Two manifests in folders of their own: ten utterances of a man, twenty of two voices in turn."""
    for name, number, speakers in (("man", 10, ["man"]), ("voices", 20, ["anna", "irina"])):
        rows = [
            {
                "id": f"{name}{i}",
                "audio_filepath": f"audio/{i}.opus",
                "text": "да",
                "duration": 360,
                "speaker": speakers[i % len(speakers)],
            }
            for i in range(number)
        ]
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name / "manifest.jsonl", rows)
    return tmp_path


def mix(folder, *arguments, output="mixed/train.jsonl"):
    (folder / "mixed").mkdir(exist_ok=True)
    assert main(["data", "mix", "-o", str(folder / output), *map(str, arguments)]) == 0
    return read_manifest(folder / output)


def test_each_as_often_as_asked_with_paths_that_still_lead_there(corpora, capsys):
    man, voices = (corpora / name / "manifest.jsonl" for name in ("man", "voices"))
    found = mix(corpora, "--manifest", man, 2.5, "--manifest", voices)
    assert Counter(Counter(utterance.audio_path.resolve() for utterance in found).values()) == {3: 5, 2: 5, 1: 20}
    assert len({utterance.utterance_id for utterance in found}) == len(found) == 45
    assert {utterance.audio_path.resolve() for utterance in found} == {
        *(corpora / "man" / "audio" / f"{i}.opus" for i in range(10)),
        *(corpora / "voices" / "audio" / f"{i}.opus" for i in range(20)),
    }
    assert all(utterance.fields["speaker"] in ("man", "anna", "irina") for utterance in found)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in printed[:2]] == [["2.50", "h", "55.6", "%"], ["2.00", "h", "44.4", "%"]]
    assert printed[2].split()[:2] == ["4.50", "h"]


def test_a_voice_left_out(corpora):
    found = mix(corpora, "--manifest", corpora / "voices" / "manifest.jsonl", "--without", "speaker=anna")
    assert Counter(utterance.fields["speaker"] for utterance in found) == {"irina": 10}


def test_that_voice_alone_and_some_texts(corpora):
    voices = corpora / "voices" / "manifest.jsonl"
    texts = ["Раз, два!"] * 6 + ["Раз, три!"] * 14
    rows = [{**utterance.fields, "text": text} for utterance, text in zip(read_manifest(voices), texts, strict=True)]
    write_manifest(voices, rows)
    (corpora / "texts.txt").write_text("четыре\nраз, два\n", encoding="utf-8")
    found = mix(corpora, "--manifest", voices, "--only", "speaker=anna", "--texts", corpora / "texts.txt")
    assert [utterance.utterance_id for utterance in found] == ["voices0", "voices2", "voices4"]
    others = mix(corpora, "--manifest", voices, "--only", "speaker=anna", "--without-texts", corpora / "texts.txt")
    assert {utterance.text for utterance in others} == {"Раз, три!"}
    assert len(others) == 10 - 3
    both = mix(corpora, "--manifest", voices, "--only", "speaker=anna", "--only", "speaker=irina")
    assert len(both) == 20


def test_a_text_left_out_stands_in_no_longer_one(corpora):
    voices = corpora / "voices" / "manifest.jsonl"
    said = ["ну Раз, два!", "раз два три", "а раз два и", "раз и два", "раз двадцать", "четыре", "раз", "два раз", ""]
    rows = [
        {**utterance.fields, "text": said[number % len(said)]} for number, utterance in enumerate(read_manifest(voices))
    ]
    write_manifest(voices, rows)
    texts = corpora / "texts.txt"
    texts.write_text("четыре\nРаз, два!\n\n", encoding="utf-8")
    left = mix(corpora, "--manifest", voices, "--without-texts", texts)
    assert {utterance.text for utterance in left} == {"раз и два", "раз двадцать", "раз", "два раз"}
    assert {utterance.text for utterance in mix(corpora, "--manifest", voices, "--texts", texts)} == {"четыре", ""}
    texts.write_text("пять\n", encoding="utf-8")
    assert len(mix(corpora, "--manifest", voices, "--without-texts", texts)) == 20


def test_the_seed_alone_draws(corpora):
    voices = corpora / "voices" / "manifest.jsonl"
    one, again, other = (
        [utterance.utterance_id for utterance in mix(corpora, "--manifest", voices, 0.5, "--seed", seed)]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    assert len(one) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--manifest", "voices/manifest.jsonl", "0"], "how often must be a number above 0"),
        (["--manifest", "voices/manifest.jsonl", "twice"], "how often must be a number above 0"),
        (["--manifest", "voices/manifest.jsonl", "man/manifest.jsonl", "2"], "give the option once for each"),
        (["--manifest", "nowhere.jsonl"], "nowhere.jsonl: no such manifest"),
        (["--manifest", "man/manifest.jsonl", "--without", "speaker=man"], "nothing is left of it"),
        (["--manifest", "man/manifest.jsonl", "0.01"], "nothing is left of it"),
        (["--manifest", "man/manifest.jsonl", "--texts", "none.txt"], "--texts none.txt: cannot be read"),
        (["--manifest", "man/manifest.jsonl", "--without-texts", "none.txt"], "--without-texts none.txt: cannot be"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(corpora, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(corpora)
    assert main(["data", "mix", "-o", "train.jsonl", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (corpora / "train.jsonl").exists()


def test_what_is_left_out_needs_a_field_and_a_value(corpora, capsys):
    with pytest.raises(SystemExit):
        main(["data", "mix", "-o", "x.jsonl", "--manifest", "m.jsonl", "--without", "anna"])
    assert "anna is not FIELD=VALUE" in capsys.readouterr().err


def test_rows_keep_what_they_said(corpora):
    found = mix(corpora, "--manifest", corpora / "man" / "manifest.jsonl")
    rows = [json.loads(line) for line in (corpora / "mixed" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[3] == {
        "id": "man3",
        "audio_filepath": "../man/audio/3.opus",
        "text": "да",
        "duration": 360,
        "speaker": "man",
    }
    assert len(found) == 10
