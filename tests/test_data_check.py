"""``kvarts data check``: every fault under its name and nothing on clean data, the reports, --fix, and bad input."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from kvarts import cli
from kvarts.alphabet import BLANK_ID, encode
from kvarts.features import log_mel
from kvarts.lint import KINDS, lint
from kvarts.lint_model import ctc_loss, outliers
from kvarts.lint_sound import fingerprint, levels_db, measure
from kvarts.lint_text import repaired_text, text_faults
from kvarts.lint_twins import NearTexts, near_fingerprints, repeats
from kvarts.manifest import read_manifest, write_manifest
from kvarts.recogniser import Recognizer
from tones import ToneEngine, speak

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    """Runs the command in a folder of its own, and gives its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> SimpleNamespace:
        code = cli.main(["data", "check", *arguments])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return run


def speech(seed: int, duration_s: float = 2.0) -> np.ndarray:
    """Noise in syllables of 0.2 s, each of another colour, between pauses; as loud as speech, no two alike."""
    random = np.random.default_rng(seed)
    samples = round(duration_s * 16_000)
    parts = []
    for start in range(0, samples, 3200):
        noise = random.normal(0, 0.1, 3200)
        width = int(random.integers(2, 30))
        coloured = np.convolve(noise, np.ones(width) / np.sqrt(width), "same") * random.uniform(0.4, 1.5)
        parts.append(coloured if start // 3200 % 2 and start + 3200 < samples else random.normal(0, 1e-4, 3200))
    return np.clip(np.concatenate(parts)[:samples], -0.99, 0.99).astype(np.float32)


def rows_of(*changes: dict[str, Any], folder: Path = Path()) -> list[dict[str, Any]]:
    """Rows of clean lines, each with a file of its own, with these changes."""
    rows = []
    for number, change in enumerate(changes):
        name = f"{folder.name}{number}.wav"
        soundfile.write(folder / name, speech(100_000 * len(folder.name) + number), 16_000)
        text = " ".join(np.random.default_rng([len(folder.name), number]).permutation(list("абвгдежзийклмнопр"))[:12])
        rows.append({"audio_filepath": name, "text": text, "duration": 2.0, **change})
    return rows


def names(report: Any) -> list[tuple[int, str]]:
    return [(finding.line, finding.name) for finding in report.findings]


# Texts


@pytest.mark.parametrize(
    ("text", "normal", "found"),
    [
        ("Включи свет, пожалуйста!", "включи свет пожалуйста", []),
        ("вол+ос Ёлка молоко́", "волос елка молоко", []),
        ("", "", ["empty-text"]),
        ("… - !", "", ["empty-text"]),
        ("cлово", "слово", ["look-alike"]),
        ("MOСКВА", "москва", ["look-alike"]),
        ("дом B лесу", "дом в лесу", ["look-alike"]),
        ("молокó", "молоко", ["look-alike"]),  # a Latin o with its accent
        ("eлка и ëлка", "елка и елка", ["look-alike"]),
        ("cop", "cop", ["foreign-letters"]),  # all Latin: it may be English
        ("приветz", "приветz", ["foreign-letters"]),
        ("їжак", "їжак", ["foreign-letters"]),
        ("дом 5", "дом 5", ["digits"]),
        ("wifi в 10:30", "wifi в 10 30", ["digits", "foreign-letters"]),
        ("да [смех]", "да смех", ["markup"]),
        ("да <unk>", "да unk", ["foreign-letters", "markup"]),
        ("да да да да", "да да да да", []),
        ("да да да да да", "да да да да да", ["repetition"]),
        ("раз два " * 5, "раз два раз два раз два раз два раз два", ["repetition"]),
        ("да дай " * 2 + "да да", "да дай да дай да да", []),
        ("а" * 30, "а" * 30, []),
        ("а" * 31, "а" * 31, ["long-word"]),
        ("РСФСР", "рсфср", []),
        ("Привет Иван".encode().decode("latin-1"), "привет иван", ["mojibake"]),
    ],
)
def test_faults_of_texts(text: str, normal: str, found: list[str]) -> None:
    assert text_faults(text)[0] == normal
    assert [name for name, _ in text_faults(text)[1]] == found


def mangled(text: str, codec: str) -> str:
    """As a program shows UTF-8 that takes it for a code page."""

    def shown(byte: int) -> str:
        try:
            return bytes([byte]).decode(codec)
        except UnicodeDecodeError:
            return chr(byte)

    return "".join(map(shown, text.encode()))


@pytest.mark.parametrize("codec", ["cp1251", "cp1252", "latin-1"])
def test_every_letter_comes_back_from_a_wrong_encoding(codec: str) -> None:
    text = "Съешь ещё этих мягких французских булок, да выпей же чаю. Рак!"
    assert repaired_text(mangled(text, codec)) == text
    assert text_faults(mangled(text, codec))[0] == text_faults(text)[0]


def test_names_of_letters_are_told() -> None:
    [(_, what)] = text_faults("cловo")[1]
    assert "c (LATIN SMALL LETTER C), o (LATIN SMALL LETTER O)" in what


# Twins


def test_repeats() -> None:
    assert repeats(np.array([], np.uint64)) == []
    assert repeats(np.array([7], np.uint64)) == []
    assert repeats(np.array([5, 0, 7, 5, 0, 9, 7, 5], np.uint64)) == [(3, 0), (6, 2), (7, 0)]


def test_near_texts_are_those_of_brute_force() -> None:
    """Of texts with words changed, by the sets of all 5-grams."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("абвгдежзик"), 6)) for _ in range(300)]
    known = [" ".join(random.choice(words, 12)) for _ in range(200)]
    asked = []
    for number in range(400):
        text = known[number % 200].split()
        for _ in range(number % 5):
            text[random.integers(len(text))] = str(random.choice(words))
        asked.append(" ".join(text))
    index = NearTexts()
    index.add(known[:50])
    index.add([])
    index.add(known[50:])
    assert len(index) == 200

    def grams(text: str) -> set[str]:
        padded = f" {text} "
        return {padded[place : place + 5] for place in range(len(padded) - 4)}

    grams_of_known = list(map(grams, known))
    missed = number_near = 0
    for text, found in zip(asked, index.nearest(asked), strict=True):
        own = grams(text)
        jaccard = [len(own & other) / len(own | other) for other in grams_of_known]
        best = int(np.argmax(jaccard))
        number_near += jaccard[best] >= 0.7
        if found is None:
            missed += jaccard[best] >= 0.7
        else:
            assert found == (best, pytest.approx(jaccard[best]))
            assert jaccard[best] >= 0.7
    assert 100 < number_near < 400
    assert missed <= 2


def test_short_texts_have_grams_too() -> None:
    index = NearTexts()
    assert index.nearest(["да"]) == [None]
    index.add(["да", "нет", "а"])
    assert index.nearest(["нет", "да", "мы", "а"]) == [(1, 1.0), (0, 1.0), None, (2, 1.0)]
    assert index.nearest([]) == []


def test_near_fingerprints_are_those_of_brute_force() -> None:
    random = np.random.default_rng(1)
    bits = random.integers(0, 2, (500, 256))
    durations = np.round(random.uniform(1, 3, 500), 2).astype(np.float32)
    for copy in range(250, 500):  # of those before, with 40 to 88 bits changed, up to 0.15 s longer
        bits[copy] = bits[copy - 250]
        bits[copy, random.permutation(256)[: random.integers(40, 89)]] ^= 1
        durations[copy] = np.round(durations[copy - 250] + random.choice([0, 0.05, 0.15]), 2)
    durations[[3, 300]] = np.nan
    distances = (bits[:, None, :] != bits[None, :, :]).sum(2)
    expected = []
    for second in range(500):
        for first in range(second):
            apart = abs(float(durations[first]) - float(durations[second]))
            if apart < 0.1001 and distances[first, second] <= 64:
                expected.append((second, first, int(distances[first, second])))
                break
    assert len(expected) > 50
    assert near_fingerprints(np.packbits(bits, axis=1).tobytes(), durations) == expected


def test_nothing_to_compare() -> None:
    assert near_fingerprints(b"", np.array([np.nan, np.nan], np.float32)) == []
    assert near_fingerprints(bytes(64), np.array([1.0, 1.0], np.float32)) == [(1, 0, 0)]


# Sound


def sample_recordings(number: int) -> list[Path]:
    utterances = read_manifest(ROOT / "sample" / "train_opus" / "manifest.jsonl")
    return [utterance.audio_path for utterance in sorted(utterances, key=lambda one: one.duration_s)[:number]]


def bits_of(path: Path) -> np.ndarray:
    return np.unpackbits(np.frombuffer(measure(path).fingerprint, np.uint8))


def test_fingerprints_of_speech_survive_coding(tmp_path: Path) -> None:
    from kvarts.audio import read_audio, resampled

    recordings = sample_recordings(5)
    originals = [bits_of(path) for path in recordings]
    for number, path in enumerate(recordings):
        waveform = read_audio(path)
        soundfile.write(tmp_path / "a.mp3", 0.3 * waveform, 16_000)
        soundfile.write(tmp_path / "b.ogg", waveform, 16_000)
        soundfile.write(tmp_path / "c.wav", resampled(waveform, 32_000), 8_000, subtype="ULAW")  # half the samples
        soundfile.write(tmp_path / "d.wav", np.pad(waveform, (480, 0)), 16_000)
        for name in ("a.mp3", "b.ogg", "c.wav", "d.wav"):
            distances = [int((bits_of(tmp_path / name) != original).sum()) for original in originals]
            assert distances[number] <= 50, name
            assert min(distances[:number] + distances[number + 1 :]) > 80, name


def test_a_fingerprint_does_not_depend_on_level_or_equaliser() -> None:
    features = log_mel(speech(3))
    assert fingerprint(features + np.linspace(-2, 3, 64, dtype=np.float32)) == fingerprint(features)


def test_levels() -> None:
    time = np.arange(16_000) / 16_000
    sine = np.sin(2 * np.pi * 400 * time).astype(np.float32)
    assert levels_db(sine) == pytest.approx(np.full(100, -3.01), abs=0.01)
    assert levels_db(0.1 * sine + 0.5) == pytest.approx(np.full(100, -23.01), abs=0.01)  # a constant is no sound
    assert levels_db(np.zeros(161, np.float32)) == pytest.approx([-90, -90])


def test_a_long_recording_is_hashed_to_its_end(tmp_path: Path) -> None:
    """Two of 301 s that differ in the last sample only; what is measured beside is the same."""
    waveform = np.tile(speech(1, 10), 31)[: 301 * 16_000]
    soundfile.write(tmp_path / "a.wav", waveform, 16_000)
    waveform[-1] += 0.25
    soundfile.write(tmp_path / "b.wav", waveform, 16_000)
    one, other = measure(tmp_path / "a.wav"), measure(tmp_path / "b.wav")
    assert one.duration_s == other.duration_s == 301
    assert one.sample_digest != other.sample_digest
    assert one.fingerprint == other.fingerprint
    assert one.end_db < other.end_db


# Model


@pytest.mark.parametrize("text", ["а", "аа", "да", "длинный кот", "нет"])
def test_the_loss_is_that_of_pytorch(text: str) -> None:
    random = np.random.default_rng(len(text))
    labels = encode(text)
    for frames in (len(labels), len(labels) + 2, 40):
        scores = random.normal(0, 3, (frames, 34)).astype(np.float32)
        log_probs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        expected = torch.nn.functional.ctc_loss(
            torch.from_numpy(log_probs).double()[:, None],
            torch.tensor([labels]),
            torch.tensor([frames]),
            torch.tensor([len(labels)]),
            blank=BLANK_ID,
            reduction="sum",
        )
        assert ctc_loss(log_probs, labels) == pytest.approx(float(expected), rel=1e-6)


def test_the_loss_is_that_of_all_paths() -> None:
    log_probs = np.log(np.random.default_rng(2).dirichlet(np.ones(34), 3)).astype(np.float32)
    paths = product([1, 2, BLANK_ID], repeat=3)
    total = 0.0
    for path in paths:
        merged = [label for place, label in enumerate(path) if place == 0 or label != path[place - 1]]
        if [label for label in merged if label != BLANK_ID] == [1, 2]:
            total += float(np.exp(sum(log_probs[place, label] for place, label in enumerate(path))))
    assert ctc_loss(log_probs, [1, 2]) == pytest.approx(-np.log(total), rel=1e-5)


def test_outliers() -> None:
    values = np.full(40, 1.0, np.float32) + np.tile([-0.1, 0.1], 20).astype(np.float32)
    values[[3, 5, 7]] = 2.0, np.nan, 0.0
    assert np.flatnonzero(outliers(values)).tolist() == [3]
    assert not outliers(values[:19]).any()  # too few
    assert not outliers(np.full(30, np.nan, np.float32)).any()


def test_a_transcript_that_a_model_does_not_hear(tmp_path: Path) -> None:
    rows = []
    for number in range(30):
        text = "".join(np.random.default_rng(number).permutation(list("абвгдежзик"))[:7])
        soundfile.write(tmp_path / f"{number}.wav", speak(text), 16_000)
        said = text[:3] + text[4:] + "о" if number == 8 else text
        rows.append({"audio_filepath": f"{number}.wav", "text": said, "duration": len(speak(text)) / 16_000})
    rows[10]["text"] = "wifi"  # cannot be encoded: never asked
    write_manifest(tmp_path / "m.jsonl", rows)
    report = lint([tmp_path / "m.jsonl"], recognizer=Recognizer(ToneEngine()))
    found = [finding for finding in report.findings if finding.name == "suspicious-transcript"]
    assert [finding.line for finding in found] == [9]
    heard = "".join(np.random.default_rng(8).permutation(list("абвгдежзик"))[:7])
    assert f"the model hears «{heard}»" in found[0].what


# All together


def test_every_name_of_a_line_by_itself(check: Callable[..., SimpleNamespace]) -> None:
    rows = rows_of(*({} for _ in range(20)))
    write_manifest(Path("clean.jsonl"), rows)
    assert check("clean.jsonl").out == "20 lines: 0 errors, 0 warnings\n"

    def sound(name: str, waveform: np.ndarray) -> dict[str, Any]:
        soundfile.write(name, waveform, 16_000)
        return {"audio_filepath": name, "duration": len(waveform) / 16_000}

    shutil.copy("0.wav", "cut.wav")
    Path("cut.wav").write_bytes(Path("cut.wav").read_bytes()[:9000])
    Path("folder.wav").mkdir()
    loud = np.clip(8 * speech(101), -0.5, 0.5)
    noise = np.random.default_rng(5)
    faults: list[tuple[dict[str, Any], set[str]]] = [
        ({"text": ""}, {"empty-text"}),
        ({"text": "дом 5 на улице"}, {"digits"}),
        ({"duration": 3.0}, {"duration-mismatch"}),
        ({"audio_filepath": "none.wav"}, {"audio-missing"}),
        ({"audio_filepath": "cut.wav"}, {"audio-damaged"}),
        ({"audio_filepath": "folder.wav"}, {"audio-damaged"}),
        (sound("short.wav", speech(100)[:399]), {"too-short", "infeasible"}),
        (sound("window.wav", speech(100)[3200:3600]) | {"text": "а"}, set()),
        (sound("zeros.wav", np.zeros(32_000)), {"silent"}),
        (sound("hiss.wav", noise.normal(0, 0.1, 32_000)), {"silent"}),
        (sound("quiet.wav", 0.01 * speech(102)), {"quiet"}),
        (sound("loud.wav", loud), {"clipped"}),
        (sound("start.wav", speech(103)[3200:]), {"truncated"}),
        (sound("end.wav", speech(104)[:-1600]), set()),
        (sound("end2.wav", speech(105)[: 3200 * 8 - 1600]), {"truncated"}),
        (sound("long.wav", speech(106, 30.4)) | {"text": "раз два три " * 15}, {"too-long", "repetition"}),
        ({"text": "раз два три " * 9}, {"infeasible", "repetition"}),
        ({"text": "абвгдежзиклмнопрстуфхцчшщьыэюя" + "ж"}, {"long-word"}),
    ]
    write_manifest(Path("m.jsonl"), [*rows, *rows_with(rows, faults)])
    report = lint([Path("m.jsonl")], ignored=["speech-rate"])
    found: dict[int, set[str]] = {}
    for finding in report.findings:
        found.setdefault(finding.line, set()).add(finding.name)
    assert {line: sorted(kinds) for line, kinds in found.items()} == {
        line: sorted(kinds) for line, (_, kinds) in enumerate(faults, start=21) if kinds
    }


def rows_with(rows: list[dict[str, Any]], faults: list[tuple[dict[str, Any], set[str]]]) -> list[dict[str, Any]]:
    """A row for each fault, with sound of its own, encoded nowhere else."""
    made = []
    for number, (change, _) in enumerate(faults):
        soundfile.write(f"f{number}.wav", speech(500 + number), 16_000)
        made.append({"audio_filepath": f"f{number}.wav", "text": rows[0]["text"], "duration": 2.0, **change})
    return made


def test_broken_lines_are_findings(check: Callable[..., SimpleNamespace]) -> None:
    good = json.dumps({"audio_filepath": "a.wav", "text": "привет", "duration": 1.0}, ensure_ascii=False)
    broken = [b"{", b"\xff\xfe", b"[1]", b'{"text": "x"}', good.replace("1.0", "0").encode(), good.encode()]
    broken.append(good.replace("1.0", "NaN").encode())
    Path("m.jsonl").write_bytes(b"\xef\xbb\xbf" + good.encode() + b"\n\n" + b"\n".join(broken))
    ended = check("m.jsonl", "--no-audio", "--ignore", "duplicate-audio")
    assert ended.code == 1
    lines = ended.out.splitlines()
    assert [line.split(": ")[0] for line in lines[:-2]] == [f"m.jsonl:{number}" for number in (3, 4, 5, 6, 7, 9)]
    assert all(": error: bad-line: " in line and "; " in line for line in lines[:-2])
    assert "not UTF-8" in lines[1]
    assert "; give the seconds of audio" in lines[4]
    assert lines[-1] == "8 lines: 6 errors, 0 warnings"


def test_rates_stand_out_of_the_manifest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        {"audio_filepath": f"{n}.wav", "text": "абвгд " * 4, "duration": float(d)}
        for n, d in enumerate(random.uniform(1.8, 2.2, 60))
    ]
    rows[10]["duration"], rows[20]["duration"] = 1.0, 4.5
    rows += [{"audio_filepath": "x.wav", "text": "а б", "duration": 9.0}]  # two letters: nothing is said of their rate
    rows += [{"audio_filepath": "y.wav", "text": "абвгде", "duration": 9.0}]  # slower than anybody speaks
    write_manifest(tmp_path / "m.jsonl", rows)
    report = lint([tmp_path / "m.jsonl"], audio=False)
    assert names(report) == [(11, "speech-rate"), (21, "speech-rate"), (62, "speech-rate")]
    write_manifest(tmp_path / "few.jsonl", rows[10:30])  # too few for a usual rate
    assert names(lint([tmp_path / "few.jsonl"], audio=False)) == []


def test_twins_within_and_between(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    long_text = "она завела прядь волос за ухо и пошла домой"
    tests = rows_of(
        {"speaker": "а", "text": "включи свет на кухне"}, {"text": long_text}, {}, {"id": "x"}, folder=tmp_path / "test"
    )
    changes: list[dict[str, Any]] = [
        {"speaker": "а"},  # 1
        {"text": "Включи Свет на кухне"},
        {"text": long_text.replace("домой", "домоы")},
        {"audio_filepath": "../test/test2.wav"},
        {"audio_filepath": "copy.wav"},  # 5: the bytes of line 1
        {"audio_filepath": "again.flac"},  # the samples of line 2
        {"audio_filepath": "soft.wav"},  # line 3, softer
        {"id": "x"},
        {"id": 7},
        {"id": "7"},  # 10
        {"speaker": "б"},
    ]
    rows = rows_of(*changes, folder=tmp_path / "train")
    rows[4]["text"] = rows[0]["text"]
    shutil.copy(tmp_path / "train/train0.wav", tmp_path / "train/copy.wav")
    samples, rate = soundfile.read(tmp_path / "train/train1.wav")
    soundfile.write(tmp_path / "train/again.flac", samples, rate)
    samples, rate = soundfile.read(tmp_path / "train/train2.wav")
    soundfile.write(tmp_path / "train/soft.wav", 0.3 * samples, rate)
    write_manifest(tmp_path / "train/m.jsonl", rows)
    write_manifest(tmp_path / "test/m.jsonl", tests)
    report = lint([tmp_path / "train/m.jsonl"], [tmp_path / "test/m.jsonl"])
    assert sorted(names(report)) == [
        (1, "speaker-in-both"),
        (2, "contradictory-text"),
        (2, "duplicate-text"),
        (3, "near-duplicate-text"),
        (4, "duplicate-audio"),
        (5, "duplicate-audio"),
        (6, "contradictory-text"),
        (7, "near-duplicate-audio"),
        (10, "duplicate-id"),
    ]
    what = {(finding.line, finding.name): finding.what for finding in report.findings}
    assert what[4, "duplicate-audio"].endswith(f"{tmp_path / 'test/m.jsonl'}:3")
    assert what[5, "duplicate-audio"] == f"the same bytes as {tmp_path / 'train/m.jsonl'}:1"
    assert what[6, "contradictory-text"] == f"the same samples as {tmp_path / 'train/m.jsonl'}:2, with another text"
    assert what[7, "near-duplicate-audio"].startswith(f"sounds like {tmp_path / 'train/m.jsonl'}:3: ")


def test_ignored_and_strict(check: Callable[..., SimpleNamespace]) -> None:
    write_manifest(Path("m.jsonl"), rows_of({"text": "да [смех]"}, {}))
    assert check("m.jsonl").code == 0
    assert check("m.jsonl", "--strict").code == 1
    ended = check("m.jsonl", "--strict", "--ignore", "markup", "digits")
    assert (ended.code, ended.out) == (0, "2 lines: 0 errors, 0 warnings\n")


def test_fix(check: Callable[..., SimpleNamespace]) -> None:
    Path("data").mkdir()
    text = "привет, дорогой мой мир"
    changes: list[dict[str, Any]] = [
        {"source": "книга"},
        {"text": "Cлово за словом"},
        {"duration": 2.5},
        {"text": "дом 5"},
        {"text": mangled(text, "cp1251"), "duration": 9},
        {"text": "да [смех]"},
        {"id": "1"},
        {"id": "1"},
        {"text": "cлово 5"},
    ]
    rows = rows_of(*changes, folder=Path("data"))
    rows[5]["audio_filepath"] = str(Path("data/data5.wav").resolve())
    write_manifest(Path("data/m.jsonl"), rows)
    with Path("data/m.jsonl").open("a") as file:
        file.write("{\n")
    ended = check("data/m.jsonl", "--fix", "new/fixed.jsonl")
    assert ended.code == 1
    fixed = [json.loads(line) for line in Path("new/fixed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert fixed == [
        {**rows[0], "audio_filepath": "../data/data0.wav"},
        {**rows[1], "audio_filepath": "../data/data1.wav", "text": "Слово за словом"},
        {**rows[2], "audio_filepath": "../data/data2.wav", "duration": 2.0},
        {**rows[4], "audio_filepath": "../data/data4.wav", "text": text, "duration": 2.0},
        rows[5],
        {**rows[6], "audio_filepath": "../data/data6.wav"},
        {**rows[7], "audio_filepath": "../data/data7.wav", "id": "1-8"},
    ]
    assert "data/m.jsonl:4: dropped: digits\n" in ended.out
    assert "data/m.jsonl:9: dropped: digits\n" in ended.out
    assert "data/m.jsonl:10: dropped: bad-line\n" in ended.out
    assert "data/m.jsonl:3: changed: duration 2.5 becomes 2.0\n" in ended.out
    assert ended.out.endswith("new/fixed.jsonl: 3 lines as they were, 4 changed, 3 dropped\n")
    again = check("new/fixed.jsonl", "--fix", "new/again.jsonl", "--ignore", "markup", "speech-rate", "--strict")
    assert (again.code, again.out.splitlines()[-1]) == (
        0,
        "new/again.jsonl: 7 lines as they were, 0 changed, 0 dropped",
    )
    assert Path("new/again.jsonl").read_bytes() == Path("new/fixed.jsonl").read_bytes()


def test_fix_drops_what_the_tests_have(check: Callable[..., SimpleNamespace]) -> None:
    rows = rows_of({}, {}, {}, {})
    write_manifest(Path("train.jsonl"), rows[:3])
    write_manifest(Path("test.jsonl"), rows[2:])
    ended = check("train.jsonl", "--test", "test.jsonl", "--fix", "new.jsonl")
    assert [utterance.fields for utterance in read_manifest(Path("new.jsonl"))] == rows[:2]
    assert "train.jsonl:3: dropped: duplicate-audio\n" in ended.out


def test_json(check: Callable[..., SimpleNamespace]) -> None:
    write_manifest(Path("m.jsonl"), rows_of({"text": "дом «5»"}, {}, {"text": "слово [смех]"}))
    ended = check("m.jsonl", "--format", "json", "--fix", "new.jsonl")
    found = json.loads(ended.out)
    assert (found["lines"], found["errors"], found["warnings"]) == (3, 1, 1)
    assert found["counts"] == {"digits": 1, "markup": 1}
    assert found["fixed"] == {"manifest": "new.jsonl", "kept": 2, "changed": 0, "dropped": 1}
    assert found["actions"] == ["m.jsonl:1: dropped: digits"]
    assert found["findings"][0] == {
        "manifest": "m.jsonl",
        "line": 1,
        "name": "digits",
        "severity": "error",
        "what": "text has digits: 5",
        "remedy": KINDS["digits"].remedy,
    }
    write_manifest(Path("clean.jsonl"), rows_of({}))
    assert json.loads(check("clean.jsonl", "--format", "json").out)["findings"] == []


class Page(HTMLParser):
    """What a browser makes of a page: its text, and whether every tag that was opened is closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text, self.open, self.tags = "", list[str](), set[str]()
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {"src", "href"} & {name for name, value in attrs if not (value or "").startswith("#")}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html(check: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvarts.lint_report._MOST_ROWS", 2)
    evil = "<script>alert('1 & 2')</script>"
    write_manifest(Path("m.jsonl"), rows_of({"text": evil}, *({"text": f"дом {n} на улице"} for n in range(3))))
    ended = check(
        "m.jsonl", "--format", "html", "-o", "out/report.html", "--fix", "new.jsonl", "--ignore", "look-alike"
    )
    assert ended.code == 2  # every line has an error
    ended = check("m.jsonl", "--format", "html", "-o", "out/report.html")
    assert ended.code == 1
    assert "digits                 error            4\n" in ended.out
    assert ended.out.endswith("report: out/report.html\n")
    content = Path("out/report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert not page.open
    assert "script" not in page.tags
    assert "<script>" in page.text
    assert html.escape("<script>") in content
    assert "… and 2 more, which --format json has" in page.text
    assert len(re.findall(r'<td class="place">m\.jsonl:\d+</td>', content)) == 2 + 1 + 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "none.jsonl: no such manifest; check the path"),
        (["."], ".: is a folder; give the manifest file inside it"),
        (["empty.jsonl"], "empty.jsonl: the manifest is empty"),
        (["m.jsonl", "--test", "none.jsonl"], "none.jsonl: no such manifest"),
        (["m.jsonl", "--test", "./m.jsonl"], "m.jsonl: given twice"),
        (["m.jsonl", "--ignore", "speling"], "--ignore speling: no such finding; there are bad-line, "),
        (["m.jsonl", "--no-audio", "--model", "model"], "--model needs the audio"),
        (["m.jsonl", "--model", "model"], "model"),
        (["m.jsonl", "-o", "."], ".: is a folder; name a file in it"),
        (["m.jsonl", "--fix", "m.jsonl"], "--fix m.jsonl: is read or written already"),
        (["m.jsonl", "--fix", "x", "-o", "x"], "--fix x: is read or written already"),
        (["m.jsonl", "--no-audio", "-o", "m.jsonl/report"], "m.jsonl/report: could not be written"),
        (["m.jsonl", "--no-audio", "--fix", "m.jsonl/new"], "m.jsonl/new: could not be written"),
        (["digits.jsonl", "--no-audio", "--fix", "new"], "new: not written, for every line has an error"),
    ],
)
def test_what_can_be_wrong(check: Callable[..., SimpleNamespace], arguments: list[str], said: str) -> None:
    row = {"audio_filepath": "a.wav", "text": "привет", "duration": 1.0}
    write_manifest(Path("m.jsonl"), [row])
    write_manifest(Path("digits.jsonl"), [{**row, "text": "5"}])
    Path("empty.jsonl").write_text("\n")
    ended = check(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("kvarts: error: ")
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("new").exists()


def test_memory_does_not_grow_with_the_lines(tmp_path: Path) -> None:
    """20,000 lines more, of which a quarter have a finding, may take 200 bytes each."""
    grown = []
    program = "import resource, sys; from pathlib import Path; from kvarts.lint import lint; "
    program += "lint([Path(sys.argv[1])], audio=False); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    for lines in (2_000, 22_000):
        path = tmp_path / f"{lines}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(lines):
                digits = " 5" if number % 4 == 0 else ""
                file.write(f'{{"audio_filepath": "{number}.wav", "text": "привет мой мир{digits}", "duration": 1.5}}\n')
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        grown.append(int(done.stdout))
    assert grown[1] - grown[0] < 20_000 * 200 / 1024


def test_planted_faults_are_found(tmp_path: Path) -> None:
    """The benchmark, small: one of each kind among the lines of the sample."""
    command = [sys.executable, ROOT / "benchmarks" / "lint.py", "--each", "1", "--json", tmp_path / "figures.json"]
    command += ["--manifest", *(ROOT / "sample" / part / "manifest.jsonl" for part in ("train_opus", "val_opus"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["faults"] == len(figures["recall_by_kind"]) == 27
    missed = [kind for kind, recall in figures["recall_by_kind"].items() if recall < 1]
    assert len(missed) <= 1, missed
    assert figures["false_alarm_rate"] < 0.03
    assert figures["lines_per_s_without_audio"] > 0
