"""``kvarts augment splice``: where recordings are cut, and what is joined of them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarts.checkpoint import save_weights
from kvarts.cli import main
from kvarts.decoding import WordFrames
from kvarts.error_counts import char_errors, total
from kvarts.errors import TextError
from kvarts.features import log_mel
from kvarts.frames import SAMPLE_RATE, encoded_frames, mel_frames
from kvarts.manifest import read_manifest, write_manifest
from kvarts.recogniser import Recognizer
from kvarts.sound import from_pcm, to_pcm
from kvarts.splice import DURATION_S, Recording, cut_places, recording_of, splices
from tone_reader import ToneReader
from tones import ToneEngine, speak

SAMPLE = Path(__file__).resolve().parents[1] / "sample" / "train_opus" / "manifest.jsonl"
FADE = 80  # samples


def steps(number: int, levels: list[int], word_samples: int) -> Recording:
    """A recording whose words are levels, of `word_samples` each, and 100 samples more on both sides."""
    waveform = np.pad(np.repeat(np.array(levels, np.int16), word_samples), 100, "edge")
    cuts = tuple(range(100, len(waveform), word_samples))
    return Recording(f"id{number}", waveform, tuple(f"{number}-{level}" for level in levels), cuts)


# ------------------------------------------------------------------------------------------------------------ places


def test_cuts_are_half_way_between_the_letters_and_keep_what_is_around_them():
    words = [WordFrames("да", 10, 14, 1.0), WordFrames("нет", 20, 25, 1.0), WordFrames("я", 25, 26, 1.0)]
    # Frame k of stride 4 is centred on sample 640 k: 13 and 20, then 24 and 25.
    assert cut_places(40_000, words, stride=4) == (6400 - 2400, 10_560, 15_680, 26 * 640 + 3200)
    assert cut_places(40_000, words, stride=8)[1:3] == (2 * 10_560, 2 * 15_680)


def test_the_ends_of_a_recording_are_the_least_and_the_most():
    assert cut_places(700, [WordFrames("я", 0, 1, 1.0)], stride=4) == (0, 700)


def test_a_recording_is_cut_in_the_spaces_of_its_tones():
    text = "где мой кот"
    waveform = speak(text)
    features = log_mel(waveform)
    [row] = ToneEngine().log_probs(features[None], np.array([len(features)]))
    utterance = replace(read_manifest(SAMPLE)[0], text="Где мой кот?")
    found = recording_of(utterance, waveform, row[: encoded_frames(mel_frames(len(waveform)))], stride=4)
    assert found.words == ("где", "мой", "кот")
    assert np.array_equal(found.waveform, to_pcm(waveform))
    spaces = [640 + place * 1920 + 640 for place, character in enumerate(text) if character == " "]  # their centres
    assert found.cuts[1:3] == pytest.approx(spaces, abs=640)


@pytest.mark.parametrize("text", ["", " — ", "кот 5", "cat"])
def test_texts_that_cannot_be_cut(text):
    utterance = replace(read_manifest(SAMPLE)[0], text=text)
    with pytest.raises(TextError):
        recording_of(utterance, np.zeros(16_000, np.float32), np.zeros((26, 34), np.float32), stride=4)


# ------------------------------------------------------------------------------------------------------------- joins


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(-20_000, 20_000), min_size=1, max_size=9), min_size=1, max_size=12),
    st.integers(81, 5_000),
    st.integers(0, 2**32),
)
def test_every_word_is_heard_once_in_its_place(levels, word_samples, seed):
    recordings = [steps(number, row, word_samples) for number, row in enumerate(levels)]
    found = list(splices(recordings, np.random.default_rng(seed)))
    words = Counter(word for splice in found for word in splice.text.split())
    assert words == Counter(word for recording in recordings for word in recording.words)
    for splice in found:
        said = splice.text.split()
        assert len(splice.waveform) == len(said) * word_samples + 2 * FADE
        assert set(splice.utterance_ids) == {f"id{word.partition('-')[0]}" for word in said}
        for place, word in enumerate(said):
            inside = splice.waveform[FADE + place * word_samples :][:word_samples][FADE:-FADE]
            assert (inside == int(word.partition("-")[2])).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_durations_are_those_asked_for(seed):
    recordings = [steps(number, [1] * 8, 4800) for number in range(30)]
    durations = [len(splice.waveform) / SAMPLE_RATE for splice in splices(recordings, np.random.default_rng(seed))]
    longest_piece_s = 4 * 0.3
    assert all(DURATION_S[0] <= duration for duration in durations)
    assert all(duration < DURATION_S[1] + longest_piece_s + 0.02 for duration in durations[:-1])
    assert durations[-1] < DURATION_S[1] + longest_piece_s + DURATION_S[0] + 0.02


def test_joins_of_one_sound_are_not_heard():
    recordings = [steps(number, [10_000] * 4, 800) for number in range(20)]
    for splice in splices(recordings, np.random.default_rng(0)):
        assert np.abs(splice.waveform[2 * FADE : -2 * FADE].astype(int) - 10_000).max() <= 1


def test_a_piece_brings_5_ms_of_what_was_around_it():
    recording = Recording("a", np.arange(3000, dtype=np.int16), ("да",), (1000, 2000))
    [splice] = splices([recording], np.random.default_rng(0))
    assert len(splice.waveform) == 1160
    assert np.array_equal(splice.waveform[2 * FADE : -2 * FADE], np.arange(1080, 1920))
    assert splice.waveform[0] == 0
    assert splice.waveform[FADE] == pytest.approx(500, abs=6)


def test_where_a_recording_ends_there_is_silence():
    recording = Recording("a", np.full(1000, 500, np.int16), ("да",), (0, 1000))
    [splice] = splices([recording], np.random.default_rng(0))
    assert not splice.waveform[:FADE].any()
    assert not splice.waveform[-FADE:].any()
    assert (splice.waveform[2 * FADE : -2 * FADE] == 500).all()


def test_pieces_of_other_numbers_of_words_in_another_order():
    recordings = [steps(number, list(range(1, 13)), 1600) for number in range(10)]
    one, same, other = (
        [splice.text for splice in splices(recordings, np.random.default_rng(seed))] for seed in (1, 1, 2)
    )
    assert one == same != other
    runs = Counter()
    for text in one:
        words = [tuple(map(int, word.split("-"))) for word in text.split()]
        length = 1
        for left, right in itertools.pairwise(words):
            if (left[0], left[1] + 1) == right:
                length += 1
            else:
                runs[length] += 1
                length = 1
        runs[length] += 1
    assert {1, 2, 3, 4} <= set(runs)
    assert sum(runs[n] for n in (1, 2, 3, 4)) > 0.8 * sum(runs.values())


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def recordings(tmp_path):
    """Two speakers of tones and somebody without a name; the network that reads them."""
    save_weights(ToneReader(), tmp_path / "tones.ckpt")
    texts = {"анна": ["где мой кот", "вот он спит"], "иван": ["да нет", "не знаю"], None: ["привет"]}
    rows = []
    for speaker, lines in texts.items():
        for text in lines:
            path = f"{len(rows)}.wav"
            soundfile.write(tmp_path / path, speak(text), SAMPLE_RATE, subtype="FLOAT")
            named = {} if speaker is None else {"speaker": speaker}
            duration = len(speak(text)) / SAMPLE_RATE
            rows.append({"id": f"u{len(rows)}", "audio_filepath": path, "text": text, "duration": duration, **named})
    write_manifest(tmp_path / "manifest.jsonl", rows)
    return tmp_path


def splice(folder: Path, *options: str, output: str = "splices") -> int:
    arguments = ["--model", str(folder / "tones.ckpt"), "-o", str(folder / output), *options]
    return main(["augment", "splice", str(folder / "manifest.jsonl"), *arguments])


def test_splices_say_what_their_manifest_says(recordings, capsys):
    assert splice(recordings, "--times", "3") == 0
    found = read_manifest(recordings / "splices" / "manifest.jsonl")
    assert f"{len(found)} utterances" in capsys.readouterr().out
    words = Counter((utterance.fields.get("speaker"), word) for utterance in found for word in utterance.text.split())
    said = {"анна": "где мой кот вот он спит", "иван": "да нет не знаю", None: "привет"}
    assert words == Counter({(speaker, word): 3 for speaker, text in said.items() for word in text.split()})
    assert len({utterance.utterance_id for utterance in found}) == len(found)
    reader = Recognizer(ToneEngine())
    for utterance in found:
        samples, rate = soundfile.read(utterance.audio_path, dtype="int16")
        assert rate == SAMPLE_RATE
        assert len(samples) == round(utterance.duration_s * SAMPLE_RATE)
        [heard] = reader.texts([log_mel(from_pcm(samples))])  # at the ends of a recording no tone says there is a space
        assert heard.replace(" ", "") == utterance.text.replace(" ", "")
        mine = {"анна": {"u0", "u1"}, "иван": {"u2", "u3"}, None: {"u4"}}[utterance.fields.get("speaker")]
        assert set(utterance.fields["spliced_of"]) <= mine


def test_the_seed_decides(recordings):
    for output, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert splice(recordings, "--times", "4", "--seed", seed, output=output) == 0
    a, b, c = ([utterance.text for utterance in read_manifest(recordings / name / "manifest.jsonl")] for name in "abc")
    assert a == b != c
    assert len(set(a)) > 3  # each time another order


def test_what_cannot_be_cut_is_named_once_the_rest_is_written(recordings, capsys):
    rows = [json.loads(line) for line in (recordings / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[0]["text"] = "cat"
    rows[1]["text"] = "вот он спит " * 40
    rows[2]["audio_filepath"] = "nowhere.wav"
    write_manifest(recordings / "manifest.jsonl", rows)
    assert splice(recordings, "--times", "1") == 2
    message = capsys.readouterr().err
    for line, problem in ((1, "outside the alphabet: 'cat'"), (2, "frames are too few"), (3, "nowhere.wav")):
        assert f"manifest.jsonl:{line}: " in message
        assert problem in message
    found = read_manifest(recordings / "splices" / "manifest.jsonl")
    assert sorted(word for utterance in found for word in utterance.text.split()) == ["знаю", "не", "привет"]


def test_nothing_is_overwritten_and_numbers_are_checked(recordings, capsys):
    (recordings / "splices").mkdir()
    assert splice(recordings) == 2
    assert "exists; give a new folder" in capsys.readouterr().err
    assert splice(recordings, "--times", "0", output="other") == 2
    assert "--times 0: must be a whole number from 1 on" in capsys.readouterr().err
    assert splice(recordings, "--seed", "-1", output="other") == 2
    assert not (recordings / "other").exists()


def test_real_words_survive_it(tmp_path):
    """The open weights read splices of the sample little worse than the sample itself."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:30]
    rows = [json.loads(line) for line in lines]
    rows = [{**row, "audio_filepath": str(SAMPLE.parent / row["audio_filepath"])} for row in rows]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    arguments = ["augment", "splice", str(tmp_path / "manifest.jsonl"), "-o", str(tmp_path / "splices"), "--times", "1"]
    assert main(arguments) == 0
    recogniser = Recognizer.load()
    rates = {}
    for folder in (tmp_path, tmp_path / "splices"):
        counts = []
        for utterance in read_manifest(folder / "manifest.jsonl"):
            text = recogniser.transcribe(utterance.audio_path).text
            counts.append(char_errors(utterance.text, text))
        letters = total(counts)
        rates[folder.name] = letters.rate
    assert rates["splices"] - rates[tmp_path.name] < 0.05
