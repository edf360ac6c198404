"""`kvarts data import`: small corpora of every kind made by hand, bad lines, kills, and bytes at random."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archives import make_deb, make_tar
from disk import no_file_beyond
from kvarts import cli, corpora, data_import
from kvarts.corpora import Entry, Rejected
from kvarts.errors import OutputError
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import read_manifest
from kvarts.spoken import SPOKEN_VERSION


def wav_bytes(seconds: float = 0.5, hz: float = 440.0, rate: int = SAMPLE_RATE) -> bytes:
    buffer = io.BytesIO()
    time_s = np.arange(round(seconds * rate)) / rate
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * hz * time_s), rate, format="WAV")
    return buffer.getvalue()


def put(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def wav(path: Path, seconds: float = 0.5, hz: float = 440.0, rate: int = SAMPLE_RATE) -> Path:
    return put(path, wav_bytes(seconds, hz, rate))


def run(kind: str, *arguments: Path | str) -> int:
    return cli.main(["data", "import", kind, *map(str, arguments)])


def rows(manifest: Path) -> list[dict[str, Any]]:
    """The lines of a manifest, which the manifest's own reader must take and whose audio must be there."""
    for utterance in read_manifest(manifest):
        assert utterance.audio_path.is_file()
    return [json.loads(line) for line in manifest.read_bytes().splitlines()]


def rejected(path: Path) -> dict[str, str]:
    """What was rejected: the reason for each place, without the folders of the file."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert all("; " in line["reason"] or ": " in line["reason"] for line in lines)  # what to do about it
    return {line["where"].rpartition("/")[2]: line["reason"] for line in lines}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def json_lines(*objects: dict[str, Any]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)


# --- The course and Golos -------------------------------------------------------------------------------------


def golos_files() -> dict[str, bytes]:
    def line(name: str, **more: Any) -> dict[str, Any]:
        return {"id": Path(name).stem, "audio_filepath": name, "text": f"текст {name}", "duration": 0.5, **more}

    return {
        "train_opus/manifest.jsonl": json_lines(line("crowd/0/a.wav"), line("farfield/b.wav", speaker="s")).encode(),
        "train_opus/10min.jsonl": json_lines(line("crowd/0/a.wav")).encode(),
        "train_opus/crowd/0/a.wav": wav_bytes(),
        "train_opus/farfield/b.wav": wav_bytes(),
        "test_opus/crowd/manifest.jsonl": json_lines(line("files/c.wav")).encode(),
        "test_opus/crowd/files/c.wav": wav_bytes(),
    }


def test_texts_as_they_are_spoken(tmp_path: Path) -> None:
    texts = ["Приходи в 10:05!", "Дом.", "Это BMW, ну и что", "Вес 5 кг"]
    lines = [{"audio_filepath": wav(tmp_path / f"{n}.wav").name, "text": text} for n, text in enumerate(texts)]
    source = put(tmp_path / "nemo.json", json_lines(*lines))
    out = tmp_path / "out.jsonl"
    assert run("nemo", source, "-o", out, "--spoken") == 1
    found = {row["text"]: row.get("written") for row in rows(out)}
    assert found == {"приходи в десять ноль пять": texts[0], "дом": None, "вес пять килограммов": texts[3]}
    assert {row["spoken_version"] for row in rows(out)} == {SPOKEN_VERSION}
    [(where, reason)] = rejected(tmp_path / "out.rejected.jsonl").items()
    assert where == "nemo.json:3"
    assert reason.startswith("text has «BMW» (foreign); ")


@pytest.mark.parametrize("kind", ["golos", "course", "auto"])
@pytest.mark.parametrize("top", [None, "", "golos_opus/"], ids=["folder", "tar", "tar in a folder"])
def test_golos_keeps_its_layout_its_subsets_and_the_domain(tmp_path: Path, kind: str, top: str | None) -> None:
    if top is None:
        source = tmp_path / "golos"
        for name, content in golos_files().items():
            put(source / name, content)
    else:
        source = put(tmp_path / "golos_opus.tar", make_tar(golos_files(), top=top))
    out = tmp_path / "out"
    assert run(kind, source, "-o", out, "--speaker", "неизвестен", "--licence", "Golos") == 0
    train, subset = rows(out / "train_opus/manifest.jsonl"), rows(out / "train_opus/10min.jsonl")
    assert [(row["id"], row["domain"], row["speaker"]) for row in train] == [
        ("a", "crowd", "неизвестен"),
        ("b", "farfield", "s"),
    ]
    assert subset == train[:1]
    [test] = rows(out / "test_opus/crowd/manifest.jsonl")
    assert (test["text"], test["domain"], test["licence"]) == ("текст files/c.wav", "crowd", "Golos")
    assert Path(test["audio_filepath"]).is_absolute() == (top is None)  # audio of a tar lies below the output folder
    assert not list(out.glob("*.part"))


def test_golos_manifests_find_audio_of_other_archives(tmp_path: Path) -> None:
    files = golos_files()
    first = {name: content for name, content in files.items() if name.endswith(".jsonl")}
    crowd = {name: content for name, content in files.items() if "/crowd/" in name and name.endswith(".wav")}
    # One that was packed from inside the folder.
    farfield = {"farfield/b.wav": files["train_opus/farfield/b.wav"]}
    tars = [
        put(tmp_path / f"{name}.tar", make_tar(content))
        for name, content in {"crowd9": first, "crowd0": crowd, "far": farfield}.items()
    ]
    assert run("golos", *tars, "-o", tmp_path / "out") == 0
    assert [row["id"] for row in rows(tmp_path / "out/train_opus/manifest.jsonl")] == ["a", "b"]
    assert run("golos", tars[0], "-o", tmp_path / "alone") == 1
    reasons = rejected(tmp_path / "alone/train_opus/manifest.rejected.jsonl")
    assert [place for place, reason in reasons.items() if "does not exist" in reason] == [
        "manifest.jsonl:1",
        "manifest.jsonl:2",
    ]
    assert not (tmp_path / "alone/train_opus/manifest.jsonl").exists()


@pytest.mark.parametrize("top", ["", "golos/"])
def test_the_wav_archives_of_golos_are_one_corpus(tmp_path: Path, top: str) -> None:
    """As they are published: folders of train/ in eleven archives, its manifests in the last, test/ in another."""

    def line(name: str) -> dict[str, Any]:
        return {"id": Path(name).stem, "audio_filepath": name, "text": "текст", "duration": 0.5}

    crowd, far = [f"crowd/{number}/c{number}.wav" for number in range(10)], "farfield/f.wav"
    train = json_lines(*map(line, [*crowd, far])).encode()
    archives = {f"train_crowd{number}": {f"train/{name}": wav_bytes()} for number, name in enumerate(crowd)}
    archives["train_farfield"] = {f"train/{far}": wav_bytes()}
    archives["train_crowd9"] |= {"train/manifest.jsonl": train, "train/10min.jsonl": json_lines(line(far)).encode()}
    test = {"manifest.jsonl": json_lines(line("files/t.wav")).encode(), "files/t.wav": wav_bytes()}
    archives["test"] = {f"test/{of}/{name}": test[name] for of in ("crowd", "farfield") for name in test}
    tars = [put(tmp_path / f"{name}.tar", make_tar(files, top=top)) for name, files in sorted(archives.items())]
    assert run("golos", *tars, "-o", tmp_path / "out") == 0
    found = rows(tmp_path / "out/train/manifest.jsonl")
    assert [row["id"] for row in found] == [*(f"c{number}" for number in range(10)), "f"]
    assert [row["domain"] for row in found] == ["crowd"] * 10 + ["farfield"]
    assert [row["id"] for row in rows(tmp_path / "out/train/10min.jsonl")] == ["f"]
    for domain in ("crowd", "farfield"):
        assert [row["domain"] for row in rows(tmp_path / f"out/test/{domain}/manifest.jsonl")] == [domain]


def test_one_manifest_of_a_folder_makes_one_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in golos_files().items():
        put(tmp_path / "golos" / name, content)
    assert run("golos", tmp_path / "golos/train_opus/10min.jsonl", "-o", tmp_path / "golos/ten.jsonl") == 0
    [row] = rows(tmp_path / "golos/ten.jsonl")
    assert (row["audio_filepath"], row["domain"]) == ("train_opus/crowd/0/a.wav", "crowd")
    assert run("golos", tmp_path / "golos", "-o", tmp_path / "all.jsonl") == 2
    assert "several manifests" in capsys.readouterr().err


def test_an_archive_that_leads_outside_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = put(tmp_path / "evil.tar", make_tar({**golos_files(), "../escaped.txt": b"x"}))
    assert run("golos", evil, "-o", tmp_path / "below/out") == 2
    assert "outside" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evil.tar"]


# --- Common Voice ---------------------------------------------------------------------------------------------

COLUMNS = ["client_id", "path", "sentence_id", "sentence", "up_votes", "age", "gender", "locale"]


def tsv_line(clip: str, sentence: str, **more: str) -> str:
    row = {"client_id": "c1", "path": clip, "sentence": sentence, "locale": "ru", **more}
    return "\t".join(row.get(column, "") for column in COLUMNS)


def common_voice(folder: Path, *lines: str | bytes, end: bytes = b"\n", bom: bytes = b"") -> Path:
    for name in ("a.mp3", "b.mp3", "c.mp3"):
        wav(folder / "clips" / name)
    all_lines = ["\t".join(COLUMNS), *lines]
    content = [line if isinstance(line, bytes) else line.encode() for line in all_lines]
    return put(folder / "train.tsv", bom + b"".join(line + end for line in content))


@pytest.mark.parametrize(("end", "bom"), [(b"\n", b""), (b"\r\n", b"\xef\xbb\xbf")])
def test_quotation_marks_in_common_voice_are_characters(tmp_path: Path, end: bytes, bom: bytes) -> None:
    source = common_voice(
        tmp_path / "cv",
        tsv_line("a.mp3", '"Да, — сказал он', gender="male_masculine", age="thirties"),
        tsv_line("b.mp3", 'он"а"'),
        "",
        tsv_line("c", "«Ёлка»\u2028 и\u00a0+ "),  # the first releases have no endings
        end=end,
        bom=bom,
    )
    assert run("auto", source, "-o", tmp_path / "out", "--licence", "CC0-1.0") == 0
    first, second, third = rows(tmp_path / "out/train/manifest.jsonl")
    assert first == {
        "id": "a",
        "audio_filepath": str(tmp_path / "cv/clips/a.mp3"),
        "text": '"Да, — сказал он',
        "duration": 0.5,
        "licence": "CC0-1.0",
        "speaker": "c1",
        "gender": "male_masculine",
        "age": "thirties",
        "language": "ru",
    }
    assert (second["text"], third["text"], third["id"]) == ('он"а"', "«Ёлка»\u2028 и\u00a0+ ", "c")
    assert not (tmp_path / "out/train/manifest.rejected.jsonl").exists()


def test_bad_lines_of_common_voice_are_named_and_the_others_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = common_voice(
        tmp_path,
        tsv_line("a.mp3", "раз"),
        tsv_line("b.mp3", "с\tтабуляцией"),
        tsv_line("b.mp3", "нет полей").rstrip("\t").removesuffix("\tru"),
        tsv_line("missing.mp3", "нет файла"),
        tsv_line("a.mp3", "второй раз"),
        tsv_line("", "без имени"),
        tsv_line("c.mp3", "не текст").encode().replace("не".encode(), b"\xff\xfe"),
        tsv_line("b.mp3", "два"),
        tsv_line("c.mp3", "длинный" * 200_000),
    )
    put(tmp_path / "clips/broken.mp3", b"no sound")
    put(tmp_path / "clips/empty.mp3")
    with source.open("a") as file:
        file.write(tsv_line("broken.mp3", "шум") + "\n" + tsv_line("empty.mp3", "пусто") + "\n")
    assert run("commonvoice", source, "-o", tmp_path / "train.jsonl") == 1
    assert [row["text"] for row in rows(tmp_path / "train.jsonl")] == ["раз", "два"]
    assert rows(tmp_path / "train.jsonl")[0]["audio_filepath"] == "clips/a.mp3"
    reasons = rejected(tmp_path / "train.rejected.jsonl")
    words = ["9 fields where the header has 8", "fields where the header has 8", "does not exist", "is that of"]
    words += ["names no file", "not UTF-8", "longer than", "audio", "is empty"]
    assert list(reasons) == [f"train.tsv:{number}" for number in (3, 4, 5, 6, 7, 8, 10, 11, 12)]
    for reason, word in zip(reasons.values(), words, strict=True):
        assert word in reason
    assert f"{source}:2" in reasons["train.tsv:6"]  # where the id was first
    told = capsys.readouterr()
    assert "9 lines rejected" in told.err
    assert f"{source}:5: " in told.err


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"path,sentence\n", b"path\tother\n", b"path\tsentence\tpath\n", "путь".encode("utf-16")]
)
def test_a_tsv_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    source = put(tmp_path / "x.tsv", content)
    assert run("commonvoice", source, "-o", tmp_path / "out") == 2
    assert str(source) in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [source]


def test_the_tsv_decides_the_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common_voice(tmp_path / "ru", tsv_line("a.mp3", "раз")).rename(tmp_path / "ru/dev.tsv")
    common_voice(tmp_path / "ru", tsv_line("b.mp3", "два"), tsv_line("c.mp3", "три"))
    assert run("auto", tmp_path / "ru", "-o", tmp_path / "out") == 2
    assert "dev.tsv, train.tsv" in capsys.readouterr().err
    assert run("auto", tmp_path / "ru/dev.tsv", tmp_path / "ru/train.tsv", "-o", tmp_path / "out") == 0
    assert [row["id"] for row in rows(tmp_path / "out/dev/manifest.jsonl")] == ["a"]
    assert [row["id"] for row in rows(tmp_path / "out/train/manifest.jsonl")] == ["b", "c"]


# --- Kaldi ----------------------------------------------------------------------------------------------------


def kaldi(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        put(folder / {"wav": "wav.scp"}.get(name, name), content)
    return folder


def test_kaldi_files_are_joined_in_any_order(tmp_path: Path) -> None:
    wav(tmp_path / "s5/wavs/один два.wav", 0.25)
    wav(tmp_path / "b.wav", rate=8000)
    source = kaldi(
        tmp_path / "s5/data/train",
        wav=f"u2  {tmp_path}/b.wav \r\nu1\twavs/один два.wav\r\n",
        text="u1 Привет,  мир\u00a0ё \r\n\r\nu2\r\n",
        utt2spk="u2 s2\nu1 s1\n",
        spk2gender="s1 f\ns2 m\n",
    )
    assert run("auto", source, "-o", tmp_path / "out") == 0
    first, second = rows(tmp_path / "out/manifest.jsonl")
    assert (first["text"], first["duration"], first["speaker"], first["gender"]) == (
        "Привет,  мир\u00a0ё",
        0.25,
        "s1",
        "female",
    )
    assert first["audio_filepath"].endswith("s5/wavs/один два.wav") or "/.." in first["audio_filepath"]
    assert (second["text"], second["duration"], second["speaker"]) == ("", 0.5, "s2")


def test_every_line_of_kaldi_files_is_imported_or_named(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    source = kaldi(
        tmp_path,
        wav="a a.wav\na b.wav\np sox a.wav -t wav - |\nlonely a.wav\nalone\nm missing.ark:12\n",
        text="a раз\np два\nx три\na снова\nm нет\n",
        utt2spk="a s\nghost s\n",
    )
    assert run("kaldi", source, "-o", tmp_path / "out.jsonl") == 1
    assert [row["id"] for row in rows(tmp_path / "out.jsonl")] == ["a"]
    reasons = rejected(tmp_path / "out.rejected.jsonl")
    assert {place: [word for word in words if word in reasons[place]] for place, words in EXPECTED.items()} == EXPECTED
    assert reasons.keys() == EXPECTED.keys()


EXPECTED = {
    "wav.scp:2": ["'a' has a line already", "a.wav"],
    "wav.scp:5": ["'alone' stands alone"],
    "text:2": ["never run", "run it once yourself"],
    "text:3": ["'x' has no line in wav.scp"],
    "text:4": ["is that of"],
    "text:5": ["does not exist"],
    "wav.scp:4": ["'lonely' is of no line in text"],
    "utt2spk:2": ["'ghost' is of no line in text"],
}


def pitch_hz(path: Path) -> float:
    """Of the loudest frequency."""
    waveform, rate = soundfile.read(path)
    assert rate == SAMPLE_RATE
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * rate / len(waveform))


def test_segments_are_cut_where_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A second at each pitch, so that a piece cut elsewhere would sound otherwise; at another rate, in stereo.
    rate = 8000
    tones = [np.sin(2 * np.pi * hz * np.arange(rate) / rate) for hz in (400, 800, 1200, 1600)]
    (tmp_path / "w").mkdir()
    soundfile.write(tmp_path / "w/r.wav", 0.3 * np.repeat(np.concatenate(tones)[:, None], 2, 1), rate)
    segments = {
        "s1": "r 0 1",
        "s2": "r 2.1 2.9",  # not in the order of time
        "s3": "r 1.25 1.75",
        "s4": "r 3.5 -1",
        "s5": "r 3.2 4.4",  # over the end by less than half a second
        "s6": "r 3.2 4.6",
        "s7": "r 5 6",
        "s8": "r 2 1",
        "s9": "r nan 1",
        "sx": "gone 0 1",
    }
    source = kaldi(
        tmp_path / "data",
        wav=f"r {tmp_path}/w/r.wav\n",
        text="".join(f"{name} текст {name}\n" for name in [*segments, "sy"]),
        segments="".join(f"{name} {where}\n" for name, where in segments.items()),
    )
    assert run("kaldi", source, "-o", tmp_path / "out") == 2
    assert "--encode opus" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("kaldi", source, "-o", tmp_path / "out", "--encode", "opus") == 1
    found = rows(tmp_path / "out/manifest.jsonl")
    assert [(row["id"], row["duration"]) for row in found] == [
        ("s1", 1.0),
        ("s2", 0.8),
        ("s3", 0.5),
        ("s4", 0.5),
        ("s5", 0.8),
    ]
    for row, hz in zip(found, (400, 1200, 800, 1600, 1600), strict=True):
        path = tmp_path / "out" / row["audio_filepath"]
        assert pitch_hz(path) == pytest.approx(hz, abs=2)
        assert soundfile.info(path).frames == row["duration"] * SAMPLE_RATE
        assert row["audio_filepath"].startswith("audio/")
    reasons = rejected(tmp_path / "out/manifest.rejected.jsonl")
    assert list(reasons) == [f"text:{number}" for number in range(6, 12)]
    assert all("not within" in reasons[f"text:{number}"] for number in (6, 7))
    assert all("recording, start and end" in reasons[f"text:{number}"] for number in (8, 9))
    assert "'gone' has no line in wav.scp" in reasons["text:10"]
    assert "no line in segments" in reasons["text:11"]


def test_pieces_across_blocks_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvarts.audio._BLOCK_SAMPLES", 1000)
    generator = np.random.default_rng(0)
    waveform = generator.uniform(-0.5, 0.5, 10_000).astype(np.float32)
    soundfile.write(tmp_path / "r.wav", waveform, SAMPLE_RATE, subtype="FLOAT")
    bounds = sorted(generator.integers(0, 10_001, 2).tolist() for _ in range(40))
    bounds = [(low, high) for low, high in map(sorted, bounds) if low < high] + [(0, 10_000), (999, 1000), (1000, 2000)]
    pieces = [
        Entry("x:1", (tmp_path / "r.wav",), "", str(number), None, low / SAMPLE_RATE, high / SAMPLE_RATE)
        for number, (low, high) in enumerate(bounds)
    ]
    found = dict(data_import._cut(pieces))
    assert sorted(found) == list(range(len(pieces)))
    for number, (low, high) in enumerate(bounds):
        np.testing.assert_array_equal(found[number], waveform[low:high])


# --- AudioFolder ----------------------------------------------------------------------------------------------


def test_audio_folder_with_csv(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        wav(tmp_path / f"data/train/{name}.wav")
    put(
        tmp_path / "data/train/metadata.csv",
        b"\xef\xbb\xbffile_name,transcription,speaker_id,duration\r\n"
        + 'a.wav,"Да, ""так""\r\nи этак",7,\r\n'.encode()
        + "b.wav,просто,8,0.5\r\n".encode()
        + b"\r\n"
        + "c.wav,без кавычек, с запятой,9,\r\n".encode()
        + 'd.wav,"кавычка"не на месте,9,\r\n'.encode()
        + "e.wav,\xff,9,\r\n".encode("latin-1")
        + "e.wav,пять,9,пять\r\n".encode()
        + "/etc/e.wav,шесть,9,\r\n".encode()
        + 'e.wav,"не закрыта,9,\r\n'.encode(),
    )
    assert run("auto", tmp_path / "data", "-o", tmp_path / "out") == 1
    first, second = rows(tmp_path / "out/train/manifest.jsonl")
    assert (first["id"], first["text"], first["speaker"]) == ("a", 'Да, "так"\nи этак', "7")
    assert (second["id"], second["text"], second["duration"]) == ("b", "просто", 0.5)
    reasons = rejected(tmp_path / "out/train/manifest.rejected.jsonl")
    assert list(reasons) == [f"metadata.csv:{number}" for number in (6, 7, 8, 9, 10, 11)]
    for reason, word in zip(
        reasons.values(), ("5 fields", "not CSV", "not UTF-8", '"duration"', "file_name", "not CSV"), strict=True
    ):
        assert word in reason


def test_an_open_quotation_mark_costs_what_it_encloses_and_no_more(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    lines = [f'a.wav,"{number}' if number == 0 else f"a.wav,{'слово ' * 100}" for number in range(500)]
    put(tmp_path / "metadata.csv", "file_name,text\n" + "\n".join(lines) + "\n")
    assert run("audiofolder", tmp_path, "-o", tmp_path / "out.jsonl") == 1
    first, *others = rejected(tmp_path / "out.rejected.jsonl").items()
    assert first[0] == "metadata.csv:2"
    assert "lines 2 to 2" in first[1]  # up to what a field may hold
    last = int(first[1].split("to ")[1].split(":")[0])
    # From the next line on, lines are lines again: the first is imported, the others are the same audio.
    assert len(rows(tmp_path / "out.jsonl")) == 1
    assert [int(place.split(":")[1]) for place, _ in others] == list(range(last + 2, 502))


def test_audio_folder_with_json_lines_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/x/1", "train/y/1", "test/1", "other"):
        wav(tmp_path / "set" / f"{name}.wav")
    content = [
        {"file_name": "train/x/1.wav", "sentence": "раз", "license": "CC-BY-4.0", "room": {"big": True}},
        {"file_name": "test/1.wav", "sentence": "два", "locale": "ru"},
        {"file_name": "train/y/1.wav", "sentence": "три"},
        {"file_name": "train/z/1.wav", "sentence": None},
        {"sentence": "без имени"},
        {"file_name": "other.wav", "sentence": "ещё"},
    ]
    source = put(tmp_path / "set/metadata.jsonl", json_lines(*content) + "{\n")
    assert run("auto", source, "-o", tmp_path / "out") == 1
    first, second = rows(tmp_path / "out/train/manifest.jsonl")
    assert (first["id"], first["licence"], first["room"]) == ("train/x/1", "CC-BY-4.0", {"big": True})
    assert second["id"] == "train/y/1"
    assert [row["language"] for row in rows(tmp_path / "out/test/manifest.jsonl")] == ["ru"]
    assert [row["id"] for row in rows(tmp_path / "out/manifest.jsonl")] == ["other"]
    assert list(rejected(tmp_path / "out/manifest.rejected.jsonl")) == [f"metadata.jsonl:{n}" for n in (4, 5, 7)]
    assert run("audiofolder", source, "-o", tmp_path / "out2", "--text-column", "words") == 1
    assert '"words" is missing' in capsys.readouterr().err
    put(tmp_path / "set/metadata.csv", "file_name,text\n")
    assert run("audiofolder", source, "-o", tmp_path / "out3") == 2
    assert "keep one" in capsys.readouterr().err
    (tmp_path / "set/metadata.csv").rename(tmp_path / "set/metadata.parquet")
    assert run("audiofolder", tmp_path / "set", "-o", tmp_path / "out3") == 2
    assert "metadata.parquet" in capsys.readouterr().err


# --- NeMo -----------------------------------------------------------------------------------------------------


def test_nemo_manifests_under_all_their_names(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "x/a"):
        wav(tmp_path / f"wavs/{name}.wav", 0.5)
    put(tmp_path / "d.txt", "из\nфайла")
    source = put(
        tmp_path / "nemo.json",
        json_lines(
            {"audio_filepath": "wavs/a.wav", "text": "Раз +!", "duration": 0.49, "lang": "ru", "snr": 3.5},
            {"audio_filename": str(tmp_path / "wavs/b.wav"), "normalized_text": "два", "duration": None},
            {"audio_file": "wavs/c.wav", "text": "три", "duration": 0.5, "offset": 0.0, "id": 7},
            {"audio_filepath": "wavs/d.wav", "text_filepath": "d.txt", "duration": 0.5, "speaker": None},
            {"audio_filepath": "wavs/x/a.wav", "text": "ещё", "duration": 0.5},
        ),
    )
    assert run("auto", source, "-o", tmp_path / "out.jsonl", "--speaker", "кто-то") == 0
    first, second, third, fourth, fifth = rows(tmp_path / "out.jsonl")
    assert first == {
        "id": "a",
        "audio_filepath": "wavs/a.wav",
        "text": "Раз +!",
        "duration": 0.49,
        "speaker": "кто-то",
        "snr": 3.5,
        "language": "ru",
    }
    assert (second["id"], second["text"], second["duration"]) == ("b", "два", 0.5)
    assert (third["id"], third["duration"], "offset" in third) == ("7", 0.5, False)
    assert (fourth["text"], fourth["speaker"]) == ("изфайла", "кто-то")
    assert fifth["id"].startswith("a-")  # an id of its own, as the name is taken


BAD_NEMO = [
    ("{", "broken JSON"),
    ("[]", "a list"),
    ('{"text": "а", "duration": 1}', '"audio_filepath" is missing'),
    ('{"audio_filepath": "a.wav", "duration": 1}', '"text" is missing'),
    ('{"audio_filepath": "a.wav", "text": "а", "duration": "1"}', '"duration" is a string'),
    ('{"audio_filepath": "a.wav", "text": "а", "duration": -1}', '"duration" is -1'),
    ('{"audio_filepath": "a.wav", "text": "а", "duration": 1e999}', '"duration" is inf'),
    ('{"audio_filepath": "a.wav", "text": "а", "duration": NaN}', "NaN"),
    ('{"audio_filepath": "a.wav", "text": "а", "snr": 1e999}', "JSON cannot say"),
    ('{"audio_filepath": "a.wav", "text": "а", "duration": 0}', '"duration" is 0'),
    ('{"audio_filepath": "a.wav", "text": "а", "id": []}', '"id"'),
    ('{"audio_filepath": "a\\u0000.wav", "text": "а"}', "names no file"),
    ('{"audio_filepath": "' + "a" * 5000 + '.wav", "text": "а"}', "cannot be opened"),
    ('{"audio_filepath": ".", "text": "а"}', "folder"),
    ('{"audio_filepath": "a.wav", "text": "а", "offset": 0.1, "duration": 0.2}', "--encode opus"),
    ('{"audio_filepath": "a.wav", "text": "а", "offset": 0, "duration": 0.2}', "--encode opus"),
    ('{"audio_filepath": "a.wav", "text_filepath": "gone.txt"}', "text_filepath"),
    ('{"audio_filepath": "a.wav", "text": "\\ud800"}', "surrogate"),
]


def test_bad_lines_of_nemo_are_named(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    good = '{"audio_filepath": "a.wav", "text": "а", "id": "good"}'
    source = put(tmp_path / "nemo.jsonl", "\n".join([*(line for line, _ in BAD_NEMO), good]) + "\n")
    assert run("nemo", source, "-o", tmp_path / "out") == 1
    assert [row["id"] for row in rows(tmp_path / "out/manifest.jsonl")] == ["good"]
    reasons = rejected(tmp_path / "out/manifest.rejected.jsonl")
    assert list(reasons) == [f"nemo.jsonl:{number + 1}" for number in range(len(BAD_NEMO))]
    for reason, (line, word) in zip(reasons.values(), BAD_NEMO, strict=True):
        assert word in reason, line


@pytest.mark.parametrize("more", [[], ["--encode", "opus"]], ids=["looked up", "encoded"])
@pytest.mark.parametrize("workers", ["1", "7"])
def test_an_id_of_a_rejected_line_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], workers: str
) -> None:
    """Whatever is done at the same time: of the lines of an id the first that can be imported has it."""
    for name in ("a", "b", "c"):
        wav(tmp_path / f"{name}.wav")
    put(tmp_path / "broken.wav", b"no sound")
    plan = [("broken", "x"), ("gone", "x"), ("a", "x"), ("b", "x"), ("b", None), ("broken", None), ("broken", None)]
    plan += [("gone", "gone"), ("c", "gone"), ("b", None), ("c", "b")]
    # As many as are looked at together, so that ids are read again before it is known what became of the first.
    filler = [(f"gone{number}", f"y{number}") for number in range(40)]
    lines = [
        {"audio_filepath": f"{name}.wav", "text": "текст", **({} if utterance_id is None else {"id": utterance_id})}
        for name, utterance_id in [*plan[:1], *filler, *plan[1:], *filler]
    ]
    source = put(tmp_path / "n.jsonl", json_lines(*lines))
    assert run("nemo", source, "-o", tmp_path / "out.jsonl", "--workers", workers, *more) == 1
    kept = [row["id"] for row in rows(tmp_path / "out.jsonl")]
    assert kept == ["x", "b", "gone"]
    reasons = rejected(tmp_path / "out.rejected.jsonl")
    assert "n.jsonl:43 already" in reasons["n.jsonl:44"]
    assert "the same audio as" in reasons["n.jsonl:50"]
    assert "n.jsonl:45 already" in reasons["n.jsonl:51"]
    assert len(kept) + len(reasons) == len(lines)
    undisturbed = (tmp_path / "out.jsonl").read_bytes(), (tmp_path / "out.rejected.jsonl").read_bytes()
    # An import that goes on knows what became of the lines before.
    write = data_import._Journal.write
    for calls in (1, 2):
        left = iter(range(calls))

        def stops(journal: data_import._Journal, content: list[bytes], left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OutputError("the disk is full")
            write(journal, content)

        monkeypatch.setattr(data_import._Journal, "write", stops)
        assert run("nemo", source, "-o", tmp_path / "out.jsonl", "--workers", workers, "--overwrite", *more) == 2
        monkeypatch.undo()
        assert run("nemo", source, "-o", tmp_path / "out.jsonl", "--workers", workers, *more) == 1
        assert ((tmp_path / "out.jsonl").read_bytes(), (tmp_path / "out.rejected.jsonl").read_bytes()) == undisturbed


def test_offsets_of_nemo_are_cut(tmp_path: Path) -> None:
    tones = [np.sin(2 * np.pi * hz * np.arange(SAMPLE_RATE) / SAMPLE_RATE) for hz in (500, 1000)]
    soundfile.write(tmp_path / "r.wav", 0.3 * np.concatenate(tones), SAMPLE_RATE)
    line = {"audio_filepath": "r.wav", "text": "а"}
    source = put(
        tmp_path / "nemo.jsonl",
        json_lines(
            {**line, "offset": 1.2, "duration": 0.5},
            {**line, "offset": 0, "duration": 0.9},
            {**line, "offset": 1.5, "duration": 0},
            {**line, "duration": 2},
            {**line, "duration": 1, "id": "wrong"},
            {**line, "offset": 0, "duration": 0.9},
        ),
    )
    assert run("nemo", source, "-o", tmp_path / "out", "--encode", "opus") == 1
    found = rows(tmp_path / "out/manifest.jsonl")
    assert [row["duration"] for row in found] == [0.5, 0.9, 0.5, 2.0]
    pitches = [pitch_hz(tmp_path / "out" / row["audio_filepath"]) for row in found[:3]]
    assert pitches == pytest.approx([1000, 500, 1000], abs=3)
    assert len({row["id"] for row in found}) == 4
    reasons = rejected(tmp_path / "out/manifest.rejected.jsonl")
    assert "the duration is 1 s but" in reasons["nemo.jsonl:5"]
    assert "the same audio as" in reasons["nemo.jsonl:6"]


# --- Festvox --------------------------------------------------------------------------------------------------

FESTVOX_TEXT = '( ru_0001 "Она завела, прядь вол+ос." )\n( ru_0002 "Он сказал: \\"да\\"." )\n( ru_0003 нет )\n'


@pytest.mark.parametrize("packed", [True, False])
def test_festvox_keeps_stress_marks(tmp_path: Path, packed: bool) -> None:
    voice = "usr/share/festival/voices/russian/msu_ru_nsh/"
    files = {
        f"./{voice}etc/txt.done.data": FESTVOX_TEXT.encode(),
        f"./{voice}wav/ru_0002.wav": wav_bytes(),
        f"./{voice}wav/ru_0001.wav": wav_bytes(0.25),
        f"./{voice}lpc/ru_0001.lpc": b"of no use",
        "./usr/../../wav/evil.wav": b"x",
    }
    if packed:
        source = put(tmp_path / "festvox-ru_0.5.deb", make_deb(make_tar(files, "w:xz")))
    else:
        source = tmp_path / "voice"
        for name, content in files.items():
            if "evil" not in name:
                put(source / name, content)
    assert run("auto", source, "-o", tmp_path / "out", "--domain", "books") == 1
    first, second = rows(tmp_path / "out/manifest.jsonl")
    assert (first["id"], first["text"], first["duration"]) == ("ru_0001", "Она завела, прядь вол+ос.", 0.25)
    assert (second["text"], second["speaker"], second["domain"]) == ('Он сказал: "да".', "msu_ru_nsh", "books")
    assert list(rejected(tmp_path / "out/manifest.rejected.jsonl")) == ["txt.done.data:3"]
    names = {path.name for path in tmp_path.rglob("*")}
    assert "evil.wav" not in names
    if packed:
        assert "ru_0001.lpc" not in names
        assert first["audio_filepath"].startswith("unpacked/festvox-ru_0.5/msu_ru_nsh/wav/")


# --- Encoding, options, what is there already -------------------------------------------------------------------


def nemo(folder: Path, count: int = 5, seconds: float = 0.1) -> Path:
    """A manifest without durations; of every seven lines one is bad, and one has no audio, but the id of the next."""
    lines = []
    for number in range(count):
        name = f"w/{number:04d}.wav"
        if number % 7 != 6:
            wav(folder / name, seconds, 300 + 10 * number)
        own_id = {"id": f"i{(number + 1) // 7}"} if number % 7 in (6, 0) else {}
        row = {"audio_filepath": name, "text": f"т {number}", **own_id}
        lines.append(json.dumps(row) if number % 7 != 3 else "{")
    return put(folder / "nemo.jsonl", "\n".join(lines) + "\n")


def test_encoded_audio_is_the_same_sound_under_a_safe_name(tmp_path: Path) -> None:
    ids = ["plain-1", "Plain-1", "../../up", "папка/файл", "con", "a" * 300, ".", "a b", "a-b", 7]
    for number in range(len(ids)):
        wav(tmp_path / f"{number}.wav", 0.2, 300 + 100 * number, rate=44100)
    lines = [{"audio_filepath": f"{number}.wav", "text": "а", "id": name} for number, name in enumerate(ids)]
    source = put(tmp_path / "n.jsonl", json_lines(*lines))
    assert run("nemo", source, "-o", tmp_path / "out/dev.jsonl", "--encode", "opus") == 0
    found = rows(tmp_path / "out/dev.jsonl")
    assert [row["id"] for row in found] == [str(name) for name in ids]
    assert len({row["audio_filepath"].lower() for row in found}) == len(ids)
    for number, row in enumerate(found):
        folder, shard, name = row["audio_filepath"].split("/")
        assert (folder, shard) == ("dev_audio", hashlib.sha256(row["id"].encode()).hexdigest()[:2])
        assert len(name) < 120
        path = tmp_path / "out" / row["audio_filepath"]
        assert soundfile.info(path).subtype == "OPUS"
        assert row["duration"] == 0.2
        assert pitch_hz(path) == pytest.approx(300 + 100 * number, abs=6)
    assert found[0]["audio_filepath"].endswith("/plain-1.opus")
    assert run("nemo", source, "-o", tmp_path / "again/dev.jsonl", "--encode", "opus", "--workers", "1") == 0
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_encoding_an_archive_leaves_none_of_it(tmp_path: Path) -> None:
    source = put(tmp_path / "golos_opus.tar", make_tar(golos_files()))
    assert run("golos", source, "-o", tmp_path / "out", "--encode", "opus") == 0
    assert not list((tmp_path / "out").rglob("*.wav"))
    assert len(list((tmp_path / "out").rglob("*.opus"))) == 4  # the subset has its own copy
    assert rows(tmp_path / "out/train_opus/10min.jsonl")[0]["audio_filepath"].startswith("10min_audio/")


def test_strict_stops_at_the_first_bad_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = nemo(tmp_path / "in", 60)
    for more in ((), ("--encode", "opus")):
        assert run("nemo", source, "-o", tmp_path / "new/out", "--strict", *more) == 2
        assert f"error: {source}:4: broken JSON" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = nemo(tmp_path / "in"), tmp_path / "out/m.jsonl"
    put(output, "old")
    put(tmp_path / "out/m_audio/mine.txt", "mine")
    assert run("nemo", source, "-o", output) == 2
    assert "exists" in capsys.readouterr().err
    assert tree(tmp_path / "out") == {"m.jsonl": b"old", "m_audio/mine.txt": b"mine"}
    assert run("nemo", source, "-o", output, "--encode", "opus", "--overwrite") == 1
    assert len(rows(output)) == 4
    assert (tmp_path / "out/m_audio/mine.txt").read_text() == "mine"
    put(source, source.read_text().replace("{\n", ""))
    assert run("nemo", source, "-o", output, "--overwrite") == 0
    assert not (tmp_path / "out/m.rejected.jsonl").exists()  # of the import before
    assert run("nemo", source, "-o", source) == 2
    assert "over what it is made of" in capsys.readouterr().err
    assert run("nemo", output, "-o", source, "--overwrite") == 0  # another file may be replaced
    for name, content in golos_files().items():
        put(tmp_path / "golos" / name, content)
    before = tree(tmp_path / "golos")
    assert run("golos", tmp_path / "golos", "-o", tmp_path / "golos", "--overwrite") == 2
    assert "give another -o" in capsys.readouterr().err
    assert tree(tmp_path / "golos") == before


@pytest.mark.parametrize(
    ("kind", "name", "content", "word"),
    [
        ("auto", "gone", None, "no such file"),
        ("nemo", "gone.jsonl", None, "no such file"),
        ("auto", "x.txt", b"", "say which it is"),
        ("nemo", "x.jsonl", b"\n\n", "no utterance"),
        ("festvox", "x.deb", b"odd", "not a Debian package"),
        ("golos", "x.tar", b"odd", "not an archive"),
        ("kaldi", "text", b"a b\n", "wav.scp"),
        ("audiofolder", "metadata.csv", b"a,b\n", "'file_name'"),
        ("audiofolder", "metadata.csv", b'file_name,"text' + b"x" * 200_000, "not CSV"),
    ],
)
def test_what_is_no_corpus_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str, content: bytes | None, word: str
) -> None:
    source = tmp_path / "in" / name
    source.parent.mkdir()
    if content is not None:
        put(source, content)
    assert run(kind, source, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_different_kinds_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = common_voice(tmp_path, tsv_line("a.mp3", "а"))
    assert run("auto", source, nemo(tmp_path), "-o", tmp_path / "out") == 2
    assert "import each on its own" in capsys.readouterr().err


# --- Killed, full, resumed --------------------------------------------------------------------------------------

# Kills the process at the n-th call of a function; before the call, or in the middle of it.
KILLER = """
import os, signal, sys
from pathlib import Path
from kvarts import cli, data_import
owner, name, count = eval(sys.argv[1]), sys.argv[2], int(sys.argv[3])
function = getattr(owner, name)
calls = 0
def killing(*arguments, **options):
    global calls
    calls += 1
    if calls == count:
        if name == "write":
            arguments[0]._file.write(arguments[1][0][:-7])
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)
setattr(owner, name, killing)
sys.exit(cli.main(sys.argv[4:]))
"""


def killed_at(owner: str, name: str, count: int, arguments: list[str]) -> int:
    command = [sys.executable, "-c", KILLER, owner, name, str(count), *arguments]
    return subprocess.run(command, capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], dict[str, bytes]]:
    """A corpus in a tar, and what an import makes of it that nobody disturbs: as it lies, and encoded."""
    folder = tmp_path_factory.mktemp("corpus")
    nemo(folder / "in/train_opus", 24)
    source = put(folder / "golos.tar", make_tar(tree(folder / "in")))
    results = []
    for more in ([], ["--encode", "opus"]):
        assert run("golos", source, "-o", folder / "whole", *more) == 1
        results.append(tree(folder / "whole"))
        for path in sorted((folder / "whole").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    return source, results[0], results[1]


@pytest.mark.parametrize(
    ("owner", "name", "count", "encode"),
    [
        ("data_import._Journal", "write", 1, False),
        ("data_import._Journal", "write", 17, True),
        ("data_import", "_write_whole", 9, True),
        ("Path", "rename", 1, False),  # what was unpacked
        ("data_import", "_move_into", 1, False),
        ("data_import", "_write_results", 1, True),
        ("data_import._Journal", "forget", 1, True),
    ],
)
def test_a_killed_import_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path,
    corpus: tuple[Path, dict[str, bytes], dict[str, bytes]],
    owner: str,
    name: str,
    count: int,
    encode: bool,
) -> None:
    source, plain, encoded = corpus
    arguments = ["data", "import", "golos", str(source), "-o", str(tmp_path / "out")]
    arguments += ["--encode", "opus"] if encode else []
    assert killed_at(owner, name, count, arguments) == -signal.SIGKILL
    assert list((tmp_path / "out").glob("import.part/*"))
    assert cli.main(arguments) == 1
    assert tree(tmp_path / "out") == (encoded if encode else plain)
    assert not list(tmp_path.rglob("*.part"))


def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = nemo(tmp_path / "in", 40)
    arguments = ["data", "import", "nemo", str(source), "-o", str(tmp_path / "out.jsonl"), "--encode", "opus"]
    assert killed_at("data_import._Journal", "write", 30, arguments) == -signal.SIGKILL
    journal = tmp_path / "out.jsonl.part/journal.jsonl"
    assert not journal.read_bytes().endswith(b"\n")
    with journal.open("ab") as file:
        file.write(b"\0" * 100)  # as a power cut leaves it
    encoded: list[Path] = []
    write = data_import._write_whole

    def counted(path: Path, content: bytes) -> None:
        encoded.append(path)
        write(path, content)

    monkeypatch.setattr(data_import, "_write_whole", counted)
    assert cli.main(arguments) == 1
    assert 0 < len(encoded) <= 11  # of 40, 29 were done
    assert len(rows(tmp_path / "out.jsonl")) == 29
    assert not journal.parent.exists()


def test_an_unfinished_import_of_something_else_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = nemo(tmp_path / "in", 40)
    arguments = ["data", "import", "nemo", str(source), "-o", str(tmp_path / "out")]
    assert killed_at("data_import._Journal", "write", 2, arguments) == -signal.SIGKILL
    before = tree(tmp_path / "out")
    for other in (["--speaker", "другой"], ["--encode", "opus"], ["--strict"]):
        assert cli.main([*arguments, *other]) == 2
        assert "unfinished import of something else" in capsys.readouterr().err
        assert tree(tmp_path / "out") == before
    put(source, source.read_text() + "\n")  # the corpus itself is another one
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--overwrite"]) == 1
    assert len(rows(tmp_path / "out/manifest.jsonl")) == 29


def test_two_imports_do_not_write_to_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = nemo(tmp_path / "in")
    target = data_import._target(tmp_path / "out")
    with data_import._Journal.opened(target, "x", False):
        assert run("nemo", source, "-o", tmp_path / "out") == 2
    assert "another import is writing there" in capsys.readouterr().err


@pytest.mark.parametrize("encode", [False, True])
def test_a_full_disk_is_named_and_the_import_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encode: bool
) -> None:
    source = nemo(tmp_path / "in", 10, seconds=0.4)
    more = ["--encode", "opus"] if encode else []
    with no_file_beyond(1200):
        assert run("nemo", source, "-o", tmp_path / "out", *more) == 2
    assert "could not be written" in capsys.readouterr().err
    assert run("nemo", source, "-o", tmp_path / "out", *more) == 1
    assert run("nemo", source, "-o", tmp_path / "undisturbed", *more) == 1
    found = tree(tmp_path / "out")
    assert {
        name: content.replace(b"undisturbed", b"out") for name, content in tree(tmp_path / "undisturbed").items()
    } == found


# --- Bytes at random --------------------------------------------------------------------------------------------

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [
                *(
                    b"\n",
                    b"\r\n",
                    b"\r",
                    b"\t",
                    b" ",
                    b",",
                    b'"',
                    b"a.wav",
                    b"a",
                    b"1",
                    b"{",
                    b"}",
                    b'"text"',
                    b":",
                    b"\0",
                ),
                *(b'{"audio_filepath": "a.wav", "text": "\xd0\xb0"}\n', b"a a.wav\n", b'a.wav,"x"\n', b"a.wav\tx\n"),
                *(
                    b"|",
                    b"\xef\xbb\xbf",
                    b"\xff",
                    b"\x0b",
                    b"\x85",
                    b"\xe2\x80\xa8",
                    b"a r 0 1\n",
                    b'( a "x" )\n',
                    b"\\",
                ),
            ]
        ),
    ),
    max_size=30,
).map(b"".join)
FUZZED: dict[str, Callable[[Path, bytes, bytes], object]] = {
    "nemo": lambda folder, content, _: put(folder / "n.jsonl", content),
    "commonvoice": lambda folder, content, _: put(folder / "n.tsv", b"path\tsentence\n" + content),
    "audiofolder": lambda folder, content, _: put(folder / "metadata.csv", b"file_name,text\n" + content),
    "festvox": lambda folder, content, _: put(folder / "v/etc/txt.done.data", content),
    "kaldi": lambda folder, content, other: (put(folder / "text", content), put(folder / "wav.scp", other)),
}
SOURCES = {"nemo": "n.jsonl", "commonvoice": "n.tsv", "audiofolder": ".", "festvox": "v", "kaldi": "."}


@pytest.mark.parametrize("kind", FUZZED)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=PIECES, other=PIECES)
def test_every_line_of_any_bytes_is_imported_or_named(kind: str, content: bytes, other: bytes) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        for place in ("a.wav", "clips/a.wav", "v/wav/a.wav"):
            wav(folder / place, 0.01)
        FUZZED[kind](folder, content, other)
        code = run(kind, folder / SOURCES[kind], "-o", folder / "out")
        assert code in (0, 1, 2)
        manifest = next((folder / "out").rglob("manifest.jsonl"), None)
        bad_lines = next((folder / "out").rglob("manifest.rejected.jsonl"), None)
        good = [] if manifest is None else rows(manifest)
        bad = {} if bad_lines is None else rejected(bad_lines)
        # An independent count: lines end at \n alone, and what has only white space is no line.
        index = {"nemo": "n.jsonl", "commonvoice": "n.tsv", "festvox": "v/etc/txt.done.data", "kaldi": "text"}
        if kind in index:
            lines = (folder / index[kind]).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
            filled = [line for line in lines if line.strip()][1 if kind == "commonvoice" else 0 :]
            named = sum(place.startswith(Path(index[kind]).name + ":") for place in bad)
            assert len(good) + named == len(filled)
            assert (code == 2) == (not good and not bad)
        if kind == "kaldi":
            recordings = [line for line in other.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
            used = {row["id"] for row in good}
            assert sum(place.startswith("wav.scp:") for place in bad) >= len(recordings) - len(used) - len(filled)
        assert (code == 1) == bool(bad)


# --- Memory ---------------------------------------------------------------------------------------------------

MEASURED = """
import sys
from pathlib import Path
from kvarts import cli
code = cli.main(sys.argv[1:])
# ru_maxrss would hold the memory of who started this process, too.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
sys.exit(code)
"""


def peak_kib(folder: Path, lines: int) -> int:
    wav(folder / "a.wav", 0.01)
    text = "слово " * 50
    with (folder / "n.jsonl").open("w") as file:
        for number in range(lines):
            if number % 10 == 9:
                file.write(f'{{"audio_filepath": "a.wav", "id": "{number}", "text": 5}}\n')
            else:
                file.write(
                    f'{{"audio_filepath": "a.wav", "id": "utterance-{number}", "text": "{text}", "duration": 0.01}}\n'
                )
    command = [
        sys.executable,
        "-c",
        MEASURED,
        "data",
        "import",
        "nemo",
        str(folder / "n.jsonl"),
        "-o",
        str(folder / "out"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert len(rows_quick(folder / "out/manifest.jsonl")) == lines - lines // 10
    return int(ended.stdout.split()[-1])


def rows_quick(manifest: Path) -> list[bytes]:
    return manifest.read_bytes().splitlines()


def test_memory_does_not_grow_with_the_lines(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few, many = peak_kib(tmp_path / "few", 1_000), peak_kib(tmp_path / "many", 13_000)
    # The texts alone would take 7 MB. Measured with 2,000, 20,000 and 200,000 lines: 39.7, 40.7 and 42.3 MB.
    assert many - few < 4_000, (few, many)


def test_a_disk_table_is_a_dictionary(tmp_path: Path) -> None:
    table = corpora.DiskTable(tmp_path / "t.sqlite")
    assert table.add("б", "1", 2) is None
    assert table.add("а", "2", 1) is None
    assert table.add("б", "3", 3) == "1"
    assert table.value("в") is None
    assert table.use("в") is None
    assert list(table.unused()) == [("а", 1), ("б", 2)]
    assert table.use("б") == "1"
    assert list(table.unused()) == [("а", 1)]
    table.close()
    assert isinstance(Rejected("a:1", "b"), Rejected)
